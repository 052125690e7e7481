//! Shares: what of something limited one address may hold at once.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts what each address holds. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Shares {
    counts: Arc<Mutex<HashMap<IpAddr, u32>>>,
    per_address_max: u32,
}

/// One thing held by an address, until it is dropped.
#[derive(Debug)]
pub struct Share {
    counts: Arc<Mutex<HashMap<IpAddr, u32>>>,
    address: IpAddr,
}

/// Whom an address counts for: an IPv4 address for itself, an IPv6 address for its /64 network, which is what one
/// household or machine is given.
#[must_use]
pub fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
            address.to_bits() & !u128::from(u64::MAX),
        )),
    }
}

impl Shares {
    /// Nothing is held yet.
    #[must_use]
    pub fn new(per_address_max: u32) -> Self {
        Self {
            counts: Arc::default(),
            per_address_max,
        }
    }

    /// Counts one more for an address; `None` if it holds its share already.
    #[must_use]
    pub fn begin(&self, address: IpAddr) -> Option<Share> {
        let address = share_of(address);
        let mut counts = lock(&self.counts);
        let count = counts.entry(address).or_default();
        if *count >= self.per_address_max {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Share {
            counts: Arc::clone(&self.counts),
            address,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            // Memory is for those who are here.
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn lock(counts: &Mutex<HashMap<IpAddr, u32>>) -> std::sync::MutexGuard<'_, HashMap<IpAddr, u32>> {
    // Each change is one assignment: the map is right after any panic.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_its_share_and_gives_it_back() {
        let shares = Shares::new(2);
        let ours: IpAddr = "192.0.2.1".parse().unwrap();
        let first = shares.begin(ours).unwrap();
        let _second = shares.begin("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(shares.begin(ours).is_none());
        assert!(shares.begin("192.0.2.2".parse().unwrap()).is_some());
        drop(first);
        assert!(shares.begin(ours).is_some());
        assert_eq!(lock(&shares.counts).len(), 1);
    }

    #[test]
    fn a_network_is_one_holder() {
        let shares = Shares::new(1);
        let _held = shares.begin("2001:db8:1:2::1".parse().unwrap()).unwrap();
        assert!(
            shares
                .begin("2001:db8:1:2:ffff::9".parse().unwrap())
                .is_none()
        );
        assert!(shares.begin("2001:db8:1:3::1".parse().unwrap()).is_some());
    }
}
