//! All that the scheduler reads of who asks, on one way to the database and back.

use anyhow::Result;
use protocol::units::{RunId, WorkerId};
use rusqlite::Connection;

use super::{
    DoorStore, KeyUse, all, devices, first,
    hosts::{self, Enrolment, Host},
    number,
    units::{self, Unit},
};
use crate::boinc::store::Account;

/// Who asks the scheduler.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// The account of the key that was shown, if it is valid, and what of the key.
    pub(crate) account: Option<(Account, KeyUse)>,
    /// The host of the number that was named; whether it is the account's is not looked at.
    pub(crate) standing: Option<Standing>,
}

/// A host and what it has to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) host: Host,
    /// Which workers it is, by run.
    pub(crate) enrolments: Vec<(RunId, Enrolment)>,
    /// The same with those that it was.
    pub(crate) workers: Vec<(RunId, WorkerId)>,
    /// Its tasks that its client has not reported and that are not given up.
    pub(crate) open: Vec<Unit>,
    /// Whether results of it were refused and its user was not told.
    pub(crate) has_untold: bool,
}

impl DoorStore {
    /// Who asks with a device key of this hash, and as the host of this number.
    pub(crate) async fn caller(&self, key: [u8; 32], host: u64, now_ms: u64) -> Result<Caller> {
        self.read(move |it| {
            Ok(Caller {
                account: devices::account_of(it, key, now_ms)?,
                standing: standing(it, host)?,
            })
        })
        .await
    }
}

fn standing(connection: &Connection, host: u64) -> Result<Option<Standing>> {
    let Some(host) = hosts::by_number(connection, host)? else {
        return Ok(None);
    };
    let untold = "SELECT 1 FROM unit WHERE host = ? AND is_told = 0 LIMIT 1";
    Ok(Some(Standing {
        enrolments: hosts::enrolments(connection, host.id)?,
        workers: hosts::workers_of(connection, host.id)?,
        open: all(connection, units::OPEN, [host.id], units::unit)?,
        has_untold: first(connection, untold, [host.id], number)?.is_some(),
        host,
    }))
}
