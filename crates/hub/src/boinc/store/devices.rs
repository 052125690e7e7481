//! Keys of devices, by hash.

use anyhow::Result;
use protocol::api::accounts::DeviceKeySummary;
use rusqlite::{Connection, params};

use super::{Account, DoorStore, accounts, all, execute, first, number, sql};

/// Keys of one account; the oldest revoked ones are forgotten when there are more.
pub(crate) const DEVICE_KEYS_MAX: i64 = 1_024;
/// The last use of a key is noted this seldom.
const USE_NOTED_MS: u64 = 600_000;

impl DoorStore {
    /// Notes a new key; `None` if the account has too many.
    pub(crate) async fn add_device_key(
        &self,
        account: u64,
        hash: [u8; 32],
        name: String,
        is_of_client: bool,
        now_ms: u64,
    ) -> Result<Option<u64>> {
        self.write(move |it| {
            execute(
                it,
                "DELETE FROM device_key WHERE account = ?1 AND revoked_ms IS NOT NULL AND id NOT IN
                 (SELECT id FROM device_key WHERE account = ?1 ORDER BY id DESC LIMIT ?2)",
                params![account, DEVICE_KEYS_MAX / 2],
            )?;
            first(
                it,
                "INSERT INTO device_key (hash, account, name, made_ms, is_of_client) SELECT ?1, ?2, ?3, ?4, ?6
                 WHERE (SELECT count(*) FROM device_key WHERE account = ?2) < ?5 RETURNING id",
                params![hash, account, name, now_ms, DEVICE_KEYS_MAX, is_of_client],
                number,
            )
        })
        .await
    }

    /// The account that a key computes for, unless it was revoked.
    pub(crate) async fn account_of_device(
        &self,
        hash: [u8; 32],
        now_ms: u64,
    ) -> Result<Option<(Account, KeyUse)>> {
        self.read(move |it| account_of(it, hash, now_ms)).await
    }

    /// Notes that a key was used.
    pub(crate) async fn note_device_use(&self, hash: [u8; 32], now_ms: u64) -> Result<()> {
        let change = "UPDATE device_key SET used_ms = ? WHERE hash = ?";
        self.write(move |it| execute(it, change, params![now_ms, hash]).map(drop))
            .await
    }

    /// The keys of an account, newest first.
    pub(crate) async fn device_keys(&self, account: u64) -> Result<Vec<DeviceKeySummary>> {
        let question = "SELECT * FROM device_key WHERE account = ? ORDER BY id DESC LIMIT ?";
        self.read(move |it| {
            all(it, question, params![account, DEVICE_KEYS_MAX], |row| {
                Ok(DeviceKeySummary {
                    id: row.get("id")?,
                    name: row.get("name")?,
                    made_ms: row.get("made_ms")?,
                    used_ms: row.get("used_ms")?,
                    revoked_ms: row.get("revoked_ms")?,
                })
            })
        })
        .await
    }

    /// Revokes a key of an account; whether there is such a key.
    pub(crate) async fn revoke_device_key(
        &self,
        account: u64,
        id: u64,
        now_ms: u64,
    ) -> Result<bool> {
        let change = "UPDATE device_key SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ? AND account = ?";
        self.write(move |it| Ok(execute(it, change, params![now_ms, sql(id), account])? > 0))
            .await
    }
}

/// What there is to know of a key that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUse {
    /// Whether its use is to be noted.
    pub(crate) is_news: bool,
    /// Whether a client got it for the account's password.
    pub(crate) is_of_client: bool,
}

/// The account that a key of this hash computes for.
pub(super) fn account_of(
    connection: &Connection,
    hash: [u8; 32],
    now_ms: u64,
) -> Result<Option<(Account, KeyUse)>> {
    first(
        connection,
        "SELECT account.*, device_key.used_ms, device_key.is_of_client FROM device_key JOIN account ON account.id = device_key.account
         WHERE device_key.hash = ? AND device_key.revoked_ms IS NULL",
        [hash],
        |row| {
            let used: Option<u64> = row.get("used_ms")?;
            let key = KeyUse {
                is_news: used.is_none_or(|it| it + USE_NOTED_MS < now_ms),
                is_of_client: row.get("is_of_client")?,
            };
            Ok((accounts::account(row)?, key))
        },
    )
}
