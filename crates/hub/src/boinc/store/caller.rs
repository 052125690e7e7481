//! All that the scheduler reads of who asks, in one question: each way to the database and back costs more than what it finds.

use anyhow::Result;
use protocol::{Hash, units::RunId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{
    DoorStore, accounts, bytes_of, devices,
    hosts::{self, Enrolment, Host},
    units::{self, Unit},
};
use crate::boinc::store::Account;

/// Who asks the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// The account of the key that was shown, if it is valid, and whether its use is to be noted.
    pub(crate) account: Option<(Account, bool)>,
    /// The host of the number that was named; whether it is the account's is not looked at.
    pub(crate) standing: Option<Standing>,
}

/// A host and what it has to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) host: Host,
    /// Which workers it is, by run.
    pub(crate) enrolments: Vec<(RunId, Enrolment)>,
    /// Its tasks that its client has not reported and that are not given up.
    pub(crate) open: Vec<Unit>,
    /// Whether results of it were refused and its user was not told.
    pub(crate) has_untold: bool,
}

impl DoorStore {
    /// Who asks with a device key of this hash, and as the host of this number.
    pub(crate) async fn caller(&self, key: [u8; 32], host: u64, now_ms: u64) -> Result<Caller> {
        let question = format!(
        // `$2` and not `?2`: where the first place has no name, sqlx counts it, and soon has more than were given.
            "SELECT 'account' AS part, account.*, device_key.used_ms FROM device_key
             JOIN account ON account.id = device_key.account WHERE device_key.hash = $1 AND device_key.revoked_ms IS NULL;
             SELECT 'host' AS part, * FROM host WHERE id = $2;
             SELECT 'enrolment' AS part, * FROM enrolment WHERE host = $2;
             SELECT 'unit' AS part, * FROM ({});
             SELECT 'untold' AS part FROM unit WHERE host = $2 AND is_told = 0 LIMIT 1",
            units::open_units("$2")
        );
        let rows = sqlx::query(&question)
            .bind(key.to_vec())
            .bind(i64::try_from(host).unwrap_or(-1))
            .fetch_all(&mut *self.reader().await)
            .await?;
        let (mut account, mut host, mut standing) = (None, None, Standing::default());
        for row in &rows {
            match row.try_get("part")? {
                "account" => {
                    let is_news = devices::is_news(row, now_ms)?;
                    account = Some((accounts::account(row)?, is_news));
                }
                "host" => host = Some(hosts::host(row)?),
                "enrolment" => standing.enrolments.push(enrolment(row)?),
                "unit" => standing.open.push(units::unit(row)?),
                _ => standing.has_untold = true,
            }
        }
        let standing = host.map(|host| Standing { host, ..standing });
        Ok(Caller { account, standing })
    }
}

fn enrolment(row: &SqliteRow) -> Result<(RunId, Enrolment)> {
    Ok((RunId(Hash(bytes_of(row, "run")?)), hosts::enrolment(row)?))
}
