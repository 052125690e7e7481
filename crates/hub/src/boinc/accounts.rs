//! Accounts: who a person is at this hub. Passwords reach it as BOINC's hash (MD5 of password and address) and are kept
//! stretched by Argon2; everything that opens something is kept as a hash.

use std::{net::IpAddr, sync::LazyLock};

use anyhow::Result;
use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use md5::{Digest, Md5};
use network::world;
use protocol::{SecretKey, api::accounts::DEVICE_KEY_PREFIX};
use tokio::sync::Semaphore;

use super::{
    Door, entropy,
    store::{self, Caller, KeyUse, Standing},
    xml::is_in_xml,
};

pub(crate) use store::Account;

/// Longest address.
const EMAIL_BYTES_MAX: usize = 254;
/// Longest name for people.
pub(crate) const NAME_BYTES_MAX: usize = 64;
/// Passwords stretched at once: each takes 19 MiB.
const STRETCHED_AT_ONCE: usize = 2;
/// Time that a session lasts, in milliseconds.
pub(crate) const SESSION_MS: u64 = 30 * 24 * 3_600_000;
/// Time that a link works, in milliseconds.
const LINK_MS: u64 = 15 * 60_000;

/// The turns of those who stretch passwords.
static STRETCHING: Semaphore = Semaphore::const_new(STRETCHED_AT_ONCE);

/// What is checked where there is no account, so that the time taken tells nothing.
static NOBODYS: LazyLock<String> = LazyLock::new(|| {
    let salt = SaltString::encode_b64(&[7; 16]).expect("sixteen bytes are a salt");
    let hash = Argon2::default().hash_password(&[0; 32], &salt);
    hash.expect("the defaults hash").to_string()
});

/// Why somebody has no account or is not let in. The numbers are BOINC's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error("that is no e-mail address")]
    BadEmail,
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes, all of them of characters that are seen")]
    BadName,
    #[error("that is no password")]
    BadPassword,
    /// Also where there is no such account: who has one is nobody's business.
    #[error("wrong e-mail address or password")]
    Wrong,
    #[error("there is an account with that e-mail address, and its password is another")]
    Taken,
    #[error("that was tried too often; try again later")]
    TooMany,
    #[error("the account has as many keys as it may have; revoke some")]
    TooManyKeys,
    #[error("the hub failed; try again later")]
    Inside(#[source] anyhow::Error),
}

impl AccountError {
    /// BOINC's number for it.
    pub(crate) fn number(&self) -> i32 {
        match self {
            Self::BadEmail => -205,
            Self::BadName => -188,
            Self::BadPassword | Self::Wrong => -206,
            Self::Taken => -137,
            Self::TooMany | Self::TooManyKeys | Self::Inside(_) => -1,
        }
    }
}

impl From<anyhow::Error> for AccountError {
    fn from(error: anyhow::Error) -> Self {
        Self::Inside(error)
    }
}

/// A secret that opens something, and the hash by which it is kept.
pub(crate) struct Secret {
    pub(crate) text: String,
    pub(crate) hash: [u8; 32],
}

impl Secret {
    /// A new one, of 160 random bits.
    fn new(prefix: &str) -> Result<Self> {
        let digits = BASE32_NOPAD.encode(&entropy::<20>()?).to_lowercase();
        let text = format!("{prefix}{digits}");
        Ok(Self {
            hash: Self::hash_of(&text),
            text,
        })
    }

    /// The hash by which a secret is kept.
    pub(crate) fn hash_of(text: &str) -> [u8; 32] {
        *blake3::hash(text.as_bytes()).as_bytes()
    }
}

/// BOINC's hash of a password. Its clients lower the letters of ASCII alone.
pub(crate) fn password_hash(email: &str, password: &str) -> String {
    md5_hex(format!("{password}{}", email.trim().to_ascii_lowercase()).as_bytes())
}

/// MD5 in hexadecimal.
pub(crate) fn md5_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Md5::digest(bytes))
}

impl Door {
    /// Makes an account, or gives the one that is there if the password is its.
    pub(crate) async fn create_account(
        &self,
        (email, passwd_hash, name): (&str, &str, &str),
        client: IpAddr,
        now_ms: u64,
    ) -> Result<Account, AccountError> {
        let email = normal_email(email).ok_or(AccountError::BadEmail)?;
        let passwd_hash = normal_hash(passwd_hash).ok_or(AccountError::BadPassword)?;
        let name = normal_name(name).ok_or(AccountError::BadName)?;
        if self.store.account_by_email(&email).await?.is_some() {
            let found = self.sign_in(&email, &passwd_hash, client).await;
            return found.map_err(|error| match error {
                AccountError::Wrong => AccountError::Taken,
                other => other,
            });
        }
        if !self.limits.admit_account(client) {
            return Err(AccountError::TooMany);
        }
        let new = store::NewAccount {
            email: email.clone(),
            name,
            password: stretch(passwd_hash).await?,
            held_key: SecretKey::from_entropy(entropy()?),
            cross_id: HEXLOWER.encode(&entropy::<16>()?),
            now_ms,
        };
        // Somebody may have been quicker.
        self.store
            .create_account(new)
            .await?
            .ok_or(AccountError::Taken)?;
        self.limits.note_owner(client, &email);
        let made = self.store.account_by_email(&email).await?;
        made.ok_or(AccountError::Wrong)
    }

    /// The account with this address and password.
    pub(crate) async fn sign_in(
        &self,
        email: &str,
        passwd_hash: &str,
        client: IpAddr,
    ) -> Result<Account, AccountError> {
        let email = normal_email(email).ok_or(AccountError::BadEmail)?;
        let passwd_hash = normal_hash(passwd_hash).ok_or(AccountError::Wrong)?;
        let tried = self.limits.try_password(client, &email);
        let tried = tried.ok_or(AccountError::TooMany)?;
        let account = self.store.account_by_email(&email).await?;
        let kept = account.as_ref().map(|it| it.password.clone());
        let is_right = is_stretched_from(kept, passwd_hash).await?;
        if is_right {
            tried.was_right();
        }
        account.filter(|_| is_right).ok_or(AccountError::Wrong)
    }

    /// Makes a key of a device, with which it computes for an account; a client gets its own for the account's password.
    pub(crate) async fn make_device_key(
        &self,
        account: u64,
        name: &str,
        is_of_client: bool,
        now_ms: u64,
    ) -> Result<(u64, Secret), AccountError> {
        let name = normal_name(name).ok_or(AccountError::BadName)?;
        let secret = Secret::new(DEVICE_KEY_PREFIX)?;
        let made = self
            .store
            .add_device_key(account, secret.hash, name, is_of_client, now_ms)
            .await?;
        Ok((made.ok_or(AccountError::TooManyKeys)?, secret))
    }

    /// The account that a device's key computes for.
    pub(crate) async fn account_of_device(
        &self,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<Account>> {
        if !key.starts_with(DEVICE_KEY_PREFIX) {
            return Ok(None);
        }
        let hash = Secret::hash_of(key);
        let found = self.store.account_of_device(hash, now_ms).await?;
        let used = self.used(hash, found, now_ms).await?;
        Ok(used.map(|it| it.0))
    }

    /// The same account, whether a client got the key for its password, and what is known of the host of a number; whether
    /// it is the account's is not looked at.
    pub(super) async fn caller(
        &self,
        key: &str,
        host: u64,
        now_ms: u64,
    ) -> Result<Option<(Account, bool, Option<Standing>)>> {
        if !key.starts_with(DEVICE_KEY_PREFIX) {
            return Ok(None);
        }
        let hash = Secret::hash_of(key);
        let Caller { account, standing } = self.store.caller(hash, host, now_ms).await?;
        let used = self.used(hash, account, now_ms).await?;
        Ok(used.map(|(account, key)| (account, key.is_of_client, standing)))
    }

    async fn used(
        &self,
        hash: [u8; 32],
        found: Option<(Account, KeyUse)>,
        now_ms: u64,
    ) -> Result<Option<(Account, KeyUse)>> {
        if found.as_ref().is_some_and(|it| it.1.is_news) {
            self.store.note_device_use(hash, now_ms).await?;
        }
        Ok(found)
    }

    /// Opens a session.
    pub(crate) async fn open_session(&self, account: u64, now_ms: u64) -> Result<Secret> {
        self.add_session(account, false, now_ms, SESSION_MS).await
    }

    /// Makes a link that opens one session; when it stops working too.
    pub(crate) async fn make_link(&self, account: u64, now_ms: u64) -> Result<(Secret, u64)> {
        let secret = self.add_session(account, true, now_ms, LINK_MS).await?;
        Ok((secret, now_ms + LINK_MS))
    }

    async fn add_session(
        &self,
        account: u64,
        is_link: bool,
        now_ms: u64,
        lasts_ms: u64,
    ) -> Result<Secret> {
        let secret = Secret::new(if is_link { "l_" } else { "s_" })?;
        let expires_ms = now_ms + lasts_ms;
        self.store
            .add_session(secret.hash, account, is_link, now_ms, expires_ms)
            .await?;
        Ok(secret)
    }
}

/// An address as it is kept.
pub(crate) fn normal_email(text: &str) -> Option<String> {
    let email = text.trim().to_lowercase();
    let (name, place) = email.rsplit_once('@')?;
    let is_plain = |it: char| !it.is_whitespace() && !it.is_control() && !"<>\"'&".contains(it);
    let is_address = !name.is_empty()
        && place.contains('.') | (place == "localhost")
        && email.len() <= EMAIL_BYTES_MAX
        && email.chars().all(is_plain);
    is_address.then_some(email)
}

/// A name as it is kept.
pub(crate) fn normal_name(text: &str) -> Option<String> {
    let name = text.trim();
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(is_visible);
    is_name.then(|| name.to_owned())
}

/// Whether a character may stand in a name: it is in XML, is seen, and does not turn what stands beside it.
fn is_visible(character: char) -> bool {
    let is_turn = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    let is_nothing = matches!(
        character,
        '\u{ad}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
    );
    !is_turn && !is_nothing && is_in_xml(character) && !character.is_control()
}

fn normal_hash(text: &str) -> Option<String> {
    let hash = text.trim().to_ascii_lowercase();
    let is_hash = hash.len() == 32 && hash.bytes().all(|it| it.is_ascii_hexdigit());
    is_hash.then_some(hash)
}

async fn stretch(passwd_hash: String) -> Result<String> {
    let salt = SaltString::encode_b64(&entropy::<16>()?)
        .map_err(|error| anyhow::anyhow!("no salt: {error}"))?;
    let _turn = STRETCHING.acquire().await?;
    let stretching = move || {
        let hash = Argon2::default().hash_password(passwd_hash.as_bytes(), &salt);
        hash.map(|it| it.to_string())
    };
    let stretched = world::blocking(stretching).await?;
    stretched.map_err(|error| anyhow::anyhow!("a password was not hashed: {error}"))
}

async fn is_stretched_from(kept: Option<String>, passwd_hash: String) -> Result<bool> {
    let _turn = STRETCHING.acquire().await?;
    let checking = move || {
        let is_known = kept.is_some();
        let kept = kept.as_ref().unwrap_or(&NOBODYS);
        let is_right = PasswordHash::new(kept).is_ok_and(|kept| {
            let checked = Argon2::default().verify_password(passwd_hash.as_bytes(), &kept);
            checked.is_ok()
        });
        is_known && is_right
    };
    Ok(world::blocking(checking).await?)
}

#[cfg(test)]
mod tests;
