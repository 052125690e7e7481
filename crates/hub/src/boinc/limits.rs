//! How often strangers may try what costs the door something: accounts, and passwords, whose hash is slow on purpose.

mod passwords;

use std::{net::IpAddr, num::NonZeroU32};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota};
use network::server::share_of;

use self::passwords::Passwords;
pub(super) use self::passwords::Try;

/// Accounts made from one address in an hour.
const ACCOUNTS_PER_HOUR_PER_ADDRESS: u32 = 60;
/// Accounts made in an hour, of all addresses together.
const ACCOUNTS_PER_HOUR: u32 = 5_000;
/// Passwords tried from one address in a minute.
const PASSWORDS_PER_MINUTE_PER_ADDRESS: u32 = 30;

/// Counts what is tried.
pub(super) struct DoorLimits {
    accounts: DefaultDirectRateLimiter,
    accounts_of_address: DefaultKeyedRateLimiter<IpAddr>,
    passwords_of_address: DefaultKeyedRateLimiter<IpAddr>,
    passwords: Passwords,
}

impl DoorLimits {
    pub(super) fn new() -> Self {
        let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let of_address = Quota::per_hour(count(ACCOUNTS_PER_HOUR_PER_ADDRESS));
        let tried = Quota::per_minute(count(PASSWORDS_PER_MINUTE_PER_ADDRESS));
        Self {
            accounts: DefaultDirectRateLimiter::direct(Quota::per_hour(count(ACCOUNTS_PER_HOUR))),
            accounts_of_address: DefaultKeyedRateLimiter::keyed(of_address),
            passwords_of_address: DefaultKeyedRateLimiter::keyed(tried),
            passwords: Passwords::default(),
        }
    }

    /// Whether an account more may be made from this address.
    pub(super) fn admit_account(&self, client: IpAddr) -> bool {
        let is_admitted = self.accounts_of_address.check_key(&share_of(client));
        is_admitted.is_ok() && self.accounts.check().is_ok()
    }

    /// The right to try one password more from this address for this account: it counts as wrong until it is said to be
    /// right.
    pub(super) fn try_password(&self, client: IpAddr, email: &str) -> Option<Try<'_>> {
        let share = share_of(client);
        self.passwords_of_address.check_key(&share).ok()?;
        self.passwords.begin(share, email)
    }

    /// Notes that the owner of an account was at an address.
    pub(super) fn note_owner(&self, client: IpAddr, email: &str) {
        self.passwords.note_owner(share_of(client), email);
    }

    /// Forgets whom nothing is held against any more.
    pub(super) fn forget(&self) {
        self.accounts_of_address.retain_recent();
        self.accounts_of_address.shrink_to_fit();
        self.passwords_of_address.retain_recent();
        self.passwords_of_address.shrink_to_fit();
        self.passwords.forget();
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
        let passwords =
            (0..100_000).filter(|it| limits.try_password(client, &it.to_string()).is_some());
        assert!(passwords.count() <= PASSWORDS_PER_MINUTE_PER_ADDRESS as usize + 2);
        assert!(limits.admit_account(IpAddr::from([198, 51, 100, 1])));
        limits.forget();
    }
}
