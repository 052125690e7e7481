//! How often strangers may try what costs the door something: accounts, and passwords, whose hash is slow on purpose.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};
use network::server::share_of;

/// Accounts made from one address in an hour.
const ACCOUNTS_PER_HOUR_PER_ADDRESS: u32 = 60;
/// Accounts made in an hour, of all addresses together.
const ACCOUNTS_PER_HOUR: u32 = 5_000;
/// Passwords tried from one address in a minute.
const PASSWORDS_PER_MINUTE_PER_ADDRESS: u32 = 30;
/// Passwords tried for one account in an hour.
const PASSWORDS_PER_HOUR_PER_ACCOUNT: u32 = 60;

/// Counts what is tried.
pub(super) struct DoorLimits {
    accounts: DefaultDirectRateLimiter,
    accounts_of_address: DefaultKeyedRateLimiter<IpAddr>,
    passwords_of_address: DefaultKeyedRateLimiter<IpAddr>,
    /// By hash of the address by which one signs in.
    passwords_of_account: DefaultKeyedRateLimiter<[u8; 32]>,
}

impl DoorLimits {
    pub(super) fn new() -> Self {
        let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let of_address = Quota::per_hour(count(ACCOUNTS_PER_HOUR_PER_ADDRESS));
        let tried = Quota::per_minute(count(PASSWORDS_PER_MINUTE_PER_ADDRESS));
        let for_account = Quota::per_hour(count(PASSWORDS_PER_HOUR_PER_ACCOUNT));
        Self {
            accounts: DefaultDirectRateLimiter::direct(Quota::per_hour(count(ACCOUNTS_PER_HOUR))),
            accounts_of_address: DefaultKeyedRateLimiter::keyed(of_address),
            passwords_of_address: DefaultKeyedRateLimiter::keyed(tried),
            passwords_of_account: DefaultKeyedRateLimiter::keyed(for_account),
        }
    }

    /// Whether an account more may be made from this address.
    pub(super) fn admit_account(&self, client: IpAddr) -> bool {
        let is_admitted = self.accounts_of_address.check_key(&share_of(client));
        is_admitted.is_ok() && self.accounts.check().is_ok()
    }

    /// Whether a password more may be tried from this address for this account.
    pub(super) fn admit_password(&self, client: IpAddr, email: &str) -> bool {
        let of_address = self.passwords_of_address.check_key(&share_of(client));
        let account = *blake3::hash(email.as_bytes()).as_bytes();
        of_address.is_ok() && self.passwords_of_account.check_key(&account).is_ok()
    }

    /// Forgets whom nothing is held against any more.
    pub(super) fn forget(&self) {
        self.accounts_of_address.retain_recent();
        self.accounts_of_address.shrink_to_fit();
        self.passwords_of_address.retain_recent();
        self.passwords_of_address.shrink_to_fit();
        self.passwords_of_account.retain_recent();
        self.passwords_of_account.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_tries_of_one_address_are_few() {
        let limits = DoorLimits::new();
        let client = IpAddr::from([192, 0, 2, 1]);
        let accounts = (0..100_000).filter(|_| limits.admit_account(client));
        assert!(accounts.count() <= ACCOUNTS_PER_HOUR_PER_ADDRESS as usize + 2);
        let passwords = (0..100_000).filter(|it| limits.admit_password(client, &it.to_string()));
        assert!(passwords.count() <= PASSWORDS_PER_MINUTE_PER_ADDRESS as usize + 2);
        // Nor does one account's password fall to many addresses.
        let addresses = (0..100_000_u32).map(|it| IpAddr::from(it.to_be_bytes()));
        let tried = addresses.filter(|it| limits.admit_password(*it, "alice@example.org"));
        assert!(tried.count() <= PASSWORDS_PER_HOUR_PER_ACCOUNT as usize + 2);
        assert!(limits.admit_account(IpAddr::from([198, 51, 100, 1])));
        limits.forget();
    }
}
