//! Keys of devices, by hash.

use anyhow::Result;
use protocol::api::accounts::DeviceKeySummary;
use sqlx::{Row, sqlite::SqliteRow};

use super::{Account, DoorStore, accounts, count, optional};

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
        now_ms: u64,
    ) -> Result<Option<u64>> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "DELETE FROM device_key WHERE account = ?1 AND revoked_ms IS NOT NULL AND id NOT IN
                     (SELECT id FROM device_key WHERE account = ?1 ORDER BY id DESC LIMIT ?2)",
                )
                .bind(account as i64)
                .bind(DEVICE_KEYS_MAX / 2)
                .execute(&mut *connection)
                .await?;
                let made: Option<i64> = sqlx::query_scalar(
                    "INSERT INTO device_key (hash, account, name, made_ms) SELECT ?1, ?2, ?3, ?4
                     WHERE (SELECT count(*) FROM device_key WHERE account = ?2) < ?5 RETURNING id",
                )
                .bind(hash.to_vec())
                .bind(account as i64)
                .bind(name)
                .bind(now_ms as i64)
                .bind(DEVICE_KEYS_MAX)
                .fetch_optional(connection)
                .await?;
                Ok(made.map(i64::unsigned_abs))
            })
        })
        .await
    }

    /// The account that a key computes for, unless it was revoked. Says too whether its use should be noted.
    pub(crate) async fn account_of_device(
        &self,
        hash: [u8; 32],
        now_ms: u64,
    ) -> Result<Option<(Account, bool)>> {
        let row = sqlx::query(
            "SELECT account.*, device_key.used_ms FROM device_key JOIN account ON account.id = device_key.account
             WHERE device_key.hash = ? AND device_key.revoked_ms IS NULL",
        )
        .bind(hash.to_vec())
        .fetch_optional(&mut *self.reader().await)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let is_news = is_news(&row, now_ms)?;
        Ok(Some((accounts::account(&row)?, is_news)))
    }

    /// Notes that a key was used.
    pub(crate) async fn note_device_use(&self, hash: [u8; 32], now_ms: u64) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE device_key SET used_ms = ? WHERE hash = ?")
                    .bind(now_ms as i64)
                    .bind(hash.to_vec())
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// The keys of an account, newest first.
    pub(crate) async fn device_keys(&self, account: u64) -> Result<Vec<DeviceKeySummary>> {
        let rows =
            sqlx::query("SELECT * FROM device_key WHERE account = ? ORDER BY id DESC LIMIT ?")
                .bind(account as i64)
                .bind(DEVICE_KEYS_MAX)
                .fetch_all(&mut *self.reader().await)
                .await?;
        rows.iter()
            .map(|row| {
                Ok(DeviceKeySummary {
                    id: count(row, "id")?,
                    name: row.try_get("name")?,
                    made_ms: count(row, "made_ms")?,
                    used_ms: optional(row, "used_ms")?,
                    revoked_ms: optional(row, "revoked_ms")?,
                })
            })
            .collect()
    }

    /// Revokes a key of an account; whether there is such a key.
    pub(crate) async fn revoke_device_key(
        &self,
        account: u64,
        id: u64,
        now_ms: u64,
    ) -> Result<bool> {
        let id = i64::try_from(id).unwrap_or(-1);
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE device_key SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ? AND account = ?",
                )
                .bind(now_ms as i64)
                .bind(id)
                .bind(account as i64)
                .execute(connection)
                .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }
}

/// Whether a use of the key in this row is to be noted.
pub(super) fn is_news(row: &SqliteRow, now_ms: u64) -> Result<bool> {
    let used = optional(row, "used_ms")?;
    Ok(used.is_none_or(|it| it + USE_NOTED_MS < now_ms))
}
