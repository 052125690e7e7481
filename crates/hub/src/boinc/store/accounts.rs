//! Accounts, and who is signed in.

use anyhow::Result;
use protocol::{PublicKey, SecretKey, units::AccountId};
use rusqlite::{Row, params};

use super::{DoorStore, execute, first, number};

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
        self.write(move |it| {
            let key = new.held_key.public();
            first(
                it,
                "INSERT INTO account (email, name, password, key, held_key, cross_id, created_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (email) DO NOTHING RETURNING id",
                params![
                    new.email,
                    new.name,
                    new.password,
                    key.0,
                    new.held_key.to_secret_text(),
                    new.cross_id,
                    new.now_ms
                ],
                number,
            )
        })
        .await
    }

    /// The account with an address, which is in lower case.
    pub(crate) async fn account_by_email(&self, email: &str) -> Result<Option<Account>> {
        let email = email.to_owned();
        let question = "SELECT * FROM account WHERE email = ?";
        self.read(move |it| first(it, question, [email], account))
            .await
    }

    /// An account by number.
    pub(crate) async fn account(&self, id: u64) -> Result<Option<Account>> {
        let question = "SELECT * FROM account WHERE id = ?";
        self.read(move |it| first(it, question, [id], account))
            .await
    }

    /// The secret of an account's key, where the hub made and holds it.
    pub(crate) async fn held_key(&self, id: u64) -> Result<Option<SecretKey>> {
        let question = "SELECT held_key FROM account WHERE id = ?";
        self.read(move |it| {
            let held = first(it, question, [id], |row| Ok(row.get(0)?))?;
            let held: Option<String> = held.flatten();
            Ok(held.as_deref().map(SecretKey::from_text).transpose()?)
        })
        .await
    }

    /// The account whose person has this key.
    pub(crate) async fn account_by_own_key(&self, key: AccountId) -> Result<Option<Account>> {
        let question = "SELECT * FROM account WHERE own_key = ?";
        self.read(move |it| first(it, question, [key.0.0], account))
            .await
    }

    /// Notes a person's own key; whether it may be: no other account's person has it.
    pub(crate) async fn set_own_key(&self, id: u64, key: AccountId) -> Result<bool> {
        self.write(move |it| {
            let changed = execute(
                it,
                "UPDATE account SET own_key = ?1 WHERE id = ?2
                 AND NOT EXISTS (SELECT 1 FROM account WHERE own_key = ?1 AND id <> ?2)",
                params![key.0.0, id],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Accounts that agreed to be shown, by number.
    pub(crate) async fn shown_accounts(&self) -> Result<Vec<Account>> {
        let question =
            "SELECT * FROM account WHERE shows_statistics = 1 AND id > ? ORDER BY id LIMIT ?";
        self.in_pages(question, account, |it| it.id).await
    }

    /// Keys of all accounts.
    pub(crate) async fn account_keys(&self) -> Result<Vec<AccountId>> {
        let question = "SELECT key, id FROM account WHERE id > ? ORDER BY id LIMIT ?";
        let keyed = |row: &Row<'_>| Ok((key_of(row)?, row.get(1)?));
        let keys = self.in_pages(question, keyed, |it: &(_, u64)| it.1).await?;
        Ok(keys.into_iter().map(|it| it.0).collect())
    }

    /// Sets whether an account may be shown.
    pub(crate) async fn set_consent(&self, id: u64, shows: bool) -> Result<()> {
        let change = "UPDATE account SET shows_statistics = ? WHERE id = ?";
        self.write(move |it| execute(it, change, params![shows, id]).map(drop))
            .await
    }

    /// Takes over the identifier that a client brings from other projects.
    pub(crate) async fn set_cross_id(&self, id: u64, cross_id: String) -> Result<()> {
        let change = "UPDATE account SET cross_id = ? WHERE id = ?";
        self.write(move |it| execute(it, change, params![cross_id, id]).map(drop))
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
        self.write(move |it| {
            execute(it, "DELETE FROM session WHERE expires_ms <= ?", [now_ms])?;
            execute(
                it,
                "INSERT INTO session (hash, account, is_link, expires_ms) VALUES (?, ?, ?, ?)",
                params![hash, account, is_link, expires_ms],
            )?;
            execute(
                it,
                "DELETE FROM session WHERE account = ?1 AND hash NOT IN
                 (SELECT hash FROM session WHERE account = ?1 ORDER BY expires_ms DESC LIMIT ?2)",
                params![account, SESSIONS_MAX],
            )?;
            Ok(())
        })
        .await
    }

    /// Whose session a token opens.
    pub(crate) async fn session(&self, hash: [u8; 32], now_ms: u64) -> Result<Option<u64>> {
        let question =
            "SELECT account FROM session WHERE hash = ? AND is_link = 0 AND expires_ms > ?";
        self.read(move |it| first(it, question, params![hash, now_ms], number))
            .await
    }

    /// Uses up a link; whose it was.
    pub(crate) async fn use_link(&self, hash: [u8; 32], now_ms: u64) -> Result<Option<u64>> {
        let change = "DELETE FROM session WHERE hash = ? AND is_link = 1 AND expires_ms > ? RETURNING account";
        self.write(move |it| first(it, change, params![hash, now_ms], number))
            .await
    }

    /// Ends a session.
    pub(crate) async fn end_session(&self, hash: [u8; 32]) -> Result<()> {
        let change = "DELETE FROM session WHERE hash = ?";
        self.write(move |it| execute(it, change, [hash]).map(drop))
            .await
    }
}

/// The account's key in the first column.
pub(super) fn key_of(row: &Row<'_>) -> Result<AccountId> {
    Ok(AccountId(PublicKey(row.get(0)?)))
}

pub(super) fn account(row: &Row<'_>) -> Result<Account> {
    let own: Option<[u8; 32]> = row.get("own_key")?;
    Ok(Account {
        id: row.get("id")?,
        email: row.get("email")?,
        name: row.get("name")?,
        password: row.get("password")?,
        key: AccountId(PublicKey(row.get("key")?)),
        own_key: own.map(|it| AccountId(PublicKey(it))),
        cross_id: row.get("cross_id")?,
        team: row.get("team")?,
        shows_statistics: row.get("shows_statistics")?,
        created_ms: row.get("created_ms")?,
    })
}
