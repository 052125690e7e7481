//! Accounts, and who is signed in.

use anyhow::Result;
use protocol::{PublicKey, SecretKey, units::AccountId};
use sqlx::{Row, sqlite::SqliteRow};

use super::{DoorStore, bytes_of, count, optional};

/// Sessions of one account; the oldest end when there are more.
const SESSIONS_MAX: i64 = 64;

/// An account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: u64,
    pub(crate) email: String,
    pub(crate) name: String,
    /// Argon2 of BOINC's hash of the password.
    pub(crate) password: String,
    pub(crate) key: AccountId,
    /// The secret of that key, where the hub made and holds it.
    pub(crate) held_key: Option<SecretKey>,
    /// The person's own key, for which the log lets the held one act.
    pub(crate) own_key: Option<AccountId>,
    pub(crate) cross_id: String,
    pub(crate) team: Option<u64>,
    pub(crate) shows_statistics: bool,
    pub(crate) created_ms: u64,
}

/// An account that is to be made.
pub(crate) struct NewAccount {
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) held_key: SecretKey,
    pub(crate) cross_id: String,
    pub(crate) now_ms: u64,
}

impl DoorStore {
    /// Makes an account; `None` if the address has one.
    pub(crate) async fn create_account(&self, new: NewAccount) -> Result<Option<u64>> {
        self.write(move |connection| {
            Box::pin(async move {
                let made = sqlx::query_scalar(
                    "INSERT INTO account (email, name, password, key, held_key, cross_id, created_ms)
                     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (email) DO NOTHING RETURNING id",
                )
                .bind(new.email)
                .bind(new.name)
                .bind(new.password)
                .bind(new.held_key.public().0.to_vec())
                .bind(new.held_key.to_secret_text())
                .bind(new.cross_id)
                .bind(new.now_ms as i64)
                .fetch_optional(connection)
                .await?;
                Ok(made.map(i64::unsigned_abs))
            })
        })
        .await
    }

    /// The account with an address, which is in lower case.
    pub(crate) async fn account_by_email(&self, email: &str) -> Result<Option<Account>> {
        let row = sqlx::query("SELECT * FROM account WHERE email = ?")
            .bind(email)
            .fetch_optional(&mut *self.reader().await)
            .await?;
        row.as_ref().map(account).transpose()
    }

    /// An account by number.
    pub(crate) async fn account(&self, id: u64) -> Result<Option<Account>> {
        let row = sqlx::query("SELECT * FROM account WHERE id = ?")
            .bind(id as i64)
            .fetch_optional(&mut *self.reader().await)
            .await?;
        row.as_ref().map(account).transpose()
    }

    /// The account whose person has this key.
    pub(crate) async fn account_by_own_key(&self, key: AccountId) -> Result<Option<Account>> {
        let row = sqlx::query("SELECT * FROM account WHERE own_key = ?")
            .bind(key.0.0.to_vec())
            .fetch_optional(&mut *self.reader().await)
            .await?;
        row.as_ref().map(account).transpose()
    }

    /// Notes a person's own key; whether it may be: no other account's person has it.
    pub(crate) async fn set_own_key(&self, id: u64, key: AccountId) -> Result<bool> {
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE account SET own_key = ?1 WHERE id = ?2
                     AND NOT EXISTS (SELECT 1 FROM account WHERE own_key = ?1 AND id <> ?2)",
                )
                .bind(key.0.0.to_vec())
                .bind(id as i64)
                .execute(connection)
                .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }

    /// Accounts that agreed to be shown, by number.
    pub(crate) async fn shown_accounts(&self) -> Result<Vec<Account>> {
        let rows = sqlx::query("SELECT * FROM account WHERE shows_statistics = 1 ORDER BY id")
            .fetch_all(&mut *self.reader().await)
            .await?;
        rows.iter().map(account).collect()
    }

    /// Keys of all accounts.
    pub(crate) async fn account_keys(&self) -> Result<Vec<AccountId>> {
        let rows = sqlx::query("SELECT key FROM account")
            .fetch_all(&mut *self.reader().await)
            .await?;
        let key = |row| Ok(AccountId(PublicKey(bytes_of(row, "key")?)));
        rows.iter().map(key).collect()
    }

    /// Sets whether an account may be shown.
    pub(crate) async fn set_consent(&self, id: u64, shows: bool) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE account SET shows_statistics = ? WHERE id = ?")
                    .bind(shows)
                    .bind(id as i64)
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Takes over the identifier that a client brings from other projects.
    pub(crate) async fn set_cross_id(&self, id: u64, cross_id: String) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE account SET cross_id = ? WHERE id = ?")
                    .bind(cross_id)
                    .bind(id as i64)
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Notes a session, or a link that opens one.
    pub(crate) async fn add_session(
        &self,
        hash: [u8; 32],
        account: u64,
        is_link: bool,
        now_ms: u64,
        expires_ms: u64,
    ) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM session WHERE expires_ms <= ?")
                    .bind(now_ms as i64)
                    .execute(&mut *connection)
                    .await?;
                sqlx::query(
                    "INSERT INTO session (hash, account, is_link, expires_ms) VALUES (?, ?, ?, ?)",
                )
                .bind(hash.to_vec())
                .bind(account as i64)
                .bind(is_link)
                .bind(expires_ms as i64)
                .execute(&mut *connection)
                .await?;
                sqlx::query(
                    "DELETE FROM session WHERE account = ?1 AND hash NOT IN
                     (SELECT hash FROM session WHERE account = ?1 ORDER BY expires_ms DESC LIMIT ?2)",
                )
                .bind(account as i64)
                .bind(SESSIONS_MAX)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Whose session a token opens.
    pub(crate) async fn session(&self, hash: [u8; 32], now_ms: u64) -> Result<Option<u64>> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT account FROM session WHERE hash = ? AND is_link = 0 AND expires_ms > ?",
        )
        .bind(hash.to_vec())
        .bind(now_ms as i64)
        .fetch_optional(&mut *self.reader().await)
        .await?;
        Ok(found.map(i64::unsigned_abs))
    }

    /// Uses up a link; whose it was.
    pub(crate) async fn use_link(&self, hash: [u8; 32], now_ms: u64) -> Result<Option<u64>> {
        self.write(move |connection| {
            Box::pin(async move {
                let found: Option<i64> = sqlx::query_scalar(
                    "DELETE FROM session WHERE hash = ? AND is_link = 1 AND expires_ms > ?
                     RETURNING account",
                )
                .bind(hash.to_vec())
                .bind(now_ms as i64)
                .fetch_optional(connection)
                .await?;
                Ok(found.map(i64::unsigned_abs))
            })
        })
        .await
    }

    /// Ends a session.
    pub(crate) async fn end_session(&self, hash: [u8; 32]) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM session WHERE hash = ?")
                    .bind(hash.to_vec())
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }
}

pub(super) fn account(row: &SqliteRow) -> Result<Account> {
    let held: Option<&str> = row.try_get("held_key")?;
    Ok(Account {
        id: count(row, "id")?,
        email: row.try_get("email")?,
        name: row.try_get("name")?,
        password: row.try_get("password")?,
        key: AccountId(PublicKey(bytes_of(row, "key")?)),
        held_key: held.map(SecretKey::from_text).transpose()?,
        own_key: match row.try_get::<Option<&[u8]>, _>("own_key")? {
            Some(_) => Some(AccountId(PublicKey(bytes_of(row, "own_key")?))),
            None => None,
        },
        cross_id: row.try_get("cross_id")?,
        team: optional(row, "team")?,
        shows_statistics: row.try_get("shows_statistics")?,
        created_ms: count(row, "created_ms")?,
    })
}
