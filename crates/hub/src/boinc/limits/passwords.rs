//! How often a password may be wrong: from one address for one account, and from all addresses for one account. The second
//! bound is wide, and holds for no address from which the account's owner came before: whoever tries passwords from
//! everywhere keeps strangers out, and not the owner.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The time in which tries are counted.
const HOUR: Duration = Duration::from_secs(3_600);
/// Wrong passwords for one account from one address in an hour.
const WRONG_PER_HOUR_FROM_ADDRESS: u32 = 20;
/// Wrong passwords for one account in an hour from all addresses from which its owner never came.
const WRONG_PER_HOUR: u32 = 1_000;
/// Addresses of an account's owner that are remembered, the last ones.
const ADDRESSES_KNOWN_MAX: usize = 8;
/// Accounts whose owners' addresses are remembered, those that signed in last. Only in memory: who came from where is not
/// for the disk.
const ACCOUNTS_KNOWN_MAX: usize = 1 << 16;
/// How long they are.
const KNOWN: Duration = Duration::from_secs(90 * 86_400);

/// An account: the hash of the address by which one signs in, whether there is one or not.
type Account = [u8; 32];

/// Counts wrong passwords.
#[derive(Default)]
pub(in crate::boinc) struct Passwords {
    from_address: Wrong<(Account, IpAddr)>,
    from_anywhere: Wrong<Account>,
    owners: Mutex<HashMap<Account, Vec<(IpAddr, Instant)>>>,
}

/// A password being tried.
pub(in crate::boinc) struct Try<'a> {
    passwords: &'a Passwords,
    account: Account,
    share: IpAddr,
    is_known: bool,
}

impl Passwords {
    /// Begins a try, which counts as wrong from now on; `None` if there were too many.
    pub(super) fn begin(&self, share: IpAddr, email: &str) -> Option<Try<'_>> {
        let account = account(email);
        let is_known = self.is_owners(&account, share);
        let begun = Try {
            passwords: self,
            account,
            share,
            is_known,
        };
        if !self
            .from_address
            .take((account, share), WRONG_PER_HOUR_FROM_ADDRESS)
        {
            return None;
        }
        if !is_known && !self.from_anywhere.take(account, WRONG_PER_HOUR) {
            self.from_address
                .give_back(&(account, share), WRONG_PER_HOUR_FROM_ADDRESS);
            return None;
        }
        Some(begun)
    }

    /// Notes that an account's owner was at an address.
    pub(super) fn note_owner(&self, share: IpAddr, email: &str) {
        self.note(account(email), share);
    }

    /// Forgets what counts no more.
    pub(super) fn forget(&self) {
        self.from_address.forget();
        self.from_anywhere.forget();
        let mut owners = self.owners();
        owners.retain(|_, addresses| {
            addresses.retain(|it| it.1.elapsed() < KNOWN);
            !addresses.is_empty()
        });
        owners.shrink_to_fit();
    }

    fn is_owners(&self, account: &Account, share: IpAddr) -> bool {
        let owners = self.owners();
        let mut known = owners.get(account).into_iter().flatten();
        known.any(|it| it.0 == share)
    }

    fn note(&self, account: Account, share: IpAddr) {
        let now = Instant::now();
        let mut owners = self.owners();
        if owners.len() >= ACCOUNTS_KNOWN_MAX && !owners.contains_key(&account) {
            let last = |it: &Vec<(IpAddr, Instant)>| it.last().map(|it| it.1);
            let oldest = owners.iter().min_by_key(|it| last(it.1)).map(|it| *it.0);
            owners.remove(&oldest.expect("there are accounts"));
        }
        let addresses = owners.entry(account).or_default();
        addresses.retain(|it| it.0 != share);
        if addresses.len() >= ADDRESSES_KNOWN_MAX {
            addresses.remove(0);
        }
        addresses.push((share, now));
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<Account, Vec<(IpAddr, Instant)>>> {
        // A list that a panic left behind half changed is one of addresses all the same.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Try<'_> {
    /// Says that the password was right: nothing is held against anybody.
    pub(in crate::boinc) fn was_right(self) {
        let Self {
            passwords,
            account,
            share,
            is_known,
        } = self;
        let of_address = &passwords.from_address;
        of_address.give_back(&(account, share), WRONG_PER_HOUR_FROM_ADDRESS);
        if !is_known {
            passwords.from_anywhere.give_back(&account, WRONG_PER_HOUR);
        }
        passwords.note(account, share);
    }
}

fn account(email: &str) -> Account {
    *blake3::hash(email.as_bytes()).as_bytes()
}

/// How many of a kind are counted: for each, when all of its are forgotten, one after the other evenly over an hour.
struct Wrong<K>(Mutex<HashMap<K, Instant>>);

impl<K> Default for Wrong<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Wrong<K> {
    /// Counts one more, unless so many an hour are counted.
    fn take(&self, of: K, per_hour: u32) -> bool {
        let now = Instant::now();
        let mut all = self.lock();
        let until = all.get(&of).copied().unwrap_or(now).max(now) + HOUR / per_hour;
        let is_taken = until <= now + HOUR;
        if is_taken {
            all.insert(of, until);
        }
        is_taken
    }

    /// Counts one less.
    fn give_back(&self, of: &K, per_hour: u32) {
        if let Some(until) = self.lock().get_mut(of) {
            *until = until.checked_sub(HOUR / per_hour).unwrap_or(*until);
        }
    }

    fn forget(&self) {
        let now = Instant::now();
        let mut all = self.lock();
        all.retain(|_, until| *until > now);
        all.shrink_to_fit();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        // Each change is one insertion: the map is right after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMAIL: &str = "alice@example.org";

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    /// Wrong passwords that are taken of so many.
    fn wrong(passwords: &Passwords, from: impl Iterator<Item = IpAddr>) -> usize {
        from.filter(|it| passwords.begin(*it, EMAIL).is_some())
            .count()
    }

    fn is_let_in(passwords: &Passwords, from: IpAddr) -> bool {
        let begun = passwords.begin(from, EMAIL);
        begun.map(Try::was_right).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn who_tries_passwords_from_everywhere_does_not_keep_the_owner_out() {
        let passwords = Passwords::default();
        let (home, work, road) = (address(1), address(2), address(3));
        assert!(is_let_in(&passwords, home));
        passwords.note_owner(work, EMAIL);
        let one = std::iter::repeat_n(address(9), 100);
        assert_eq!(wrong(&passwords, one), 20);
        // One address takes nothing from anyone else.
        assert!(is_let_in(&passwords, road));
        let many = (1_000..100_000).map(address);
        assert_eq!(wrong(&passwords, many), 1_000 - 20);
        assert!(is_let_in(&passwords, home) && is_let_in(&passwords, work));
        assert!(is_let_in(&passwords, road));
        assert!(!is_let_in(&passwords, address(4)));
        // Right ones count for nothing, however many.
        assert!((0..100).all(|_| is_let_in(&passwords, home)));
        // Wrong ones from the owner's address do.
        let own = std::iter::repeat_n(home, 100);
        assert_eq!(wrong(&passwords, own), 20);
        assert!(!is_let_in(&passwords, home));
        tokio::time::advance(HOUR).await;
        assert!(is_let_in(&passwords, home) && is_let_in(&passwords, address(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_counts_no_more_is_forgotten() {
        let passwords = Passwords::default();
        for number in 0..1_000 {
            let begun = passwords.begin(address(number), &format!("{number}@example.org"));
            assert!(begun.is_some());
            passwords.note_owner(address(number), EMAIL);
        }
        assert_eq!(passwords.owners().len(), 1);
        assert_eq!(
            passwords.owners()[&account(EMAIL)].len(),
            ADDRESSES_KNOWN_MAX
        );
        tokio::time::advance(HOUR).await;
        passwords.forget();
        assert_eq!(passwords.from_address.lock().len(), 0);
        assert_eq!(passwords.from_anywhere.lock().len(), 0);
        assert!(passwords.is_owners(&account(EMAIL), address(999)));
        for number in 0..=ACCOUNTS_KNOWN_MAX {
            passwords.note_owner(address(1), &number.to_string());
        }
        assert_eq!(passwords.owners().len(), ACCOUNTS_KNOWN_MAX);
        tokio::time::advance(KNOWN).await;
        passwords.forget();
        assert_eq!(passwords.owners().len(), 0);
    }
}
