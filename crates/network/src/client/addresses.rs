//! Several addresses of one hub: the one that answered last is asked first, the next one when it does not answer.
//!
//! A run's hub can be replaced by one of its mirrors. Both speak the same API, so a client that knows both goes on with
//! whichever answers; a mirror that is asked for what only a hub can do names the hub's address, and the client goes there
//! if it knows that address from elsewhere: from its owner, a charter, or a signed succession.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::ClientError;
use crate::disk::Disk;

/// Most addresses that a client remembers; a charter names at most 16.
pub const ADDRESSES_MAX: usize = 32;
/// Longest address.
const ADDRESS_BYTES_MAX: usize = 256;
/// Longest file of addresses.
const FILE_BYTES_MAX: u64 = (ADDRESSES_MAX * (ADDRESS_BYTES_MAX + 1)) as u64;

/// Addresses and the one in use. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    /// Without slashes at their ends; the first is the one that was given.
    list: Vec<Arc<str>>,
    current: usize,
    /// Where they are kept from one start to the next.
    file: Option<(Arc<dyn Disk>, PathBuf)>,
}

impl Addresses {
    pub(super) fn new(first: Arc<str>) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                list: vec![first],
                current: 0,
                file: None,
            })),
        }
    }

    /// The one to ask.
    pub(super) fn current(&self) -> Arc<str> {
        let inner = self.lock();
        Arc::clone(&inner.list[inner.current])
    }

    pub(super) fn all(&self) -> Vec<Arc<str>> {
        self.lock().list.clone()
    }

    /// Remembers an address; false if it is none, is known, or there are too many.
    pub(super) fn add(&self, address: &str) -> bool {
        let Ok(address) = checked(address) else {
            tracing::debug!("not an address of a hub: {address:.80}");
            return false;
        };
        let mut inner = self.lock();
        // What a charter calls its hub's machine is this one only for who was told so.
        if is_here(&address) && !is_here(&inner.list[0]) {
            return false;
        }
        if inner.list.len() >= ADDRESSES_MAX || inner.list.iter().any(|it| **it == address) {
            return false;
        }
        inner.list.push(address.into());
        inner.keep();
        true
    }

    /// Goes to this one, if it is an address that can be remembered.
    pub(super) fn prefer(&self, address: &str) {
        self.add(address);
        self.go_to_known(address);
    }

    /// Goes to this one, if it is known; false if not.
    pub(super) fn go_to_known(&self, address: &str) -> bool {
        let Ok(address) = checked(address) else {
            return false;
        };
        let mut inner = self.lock();
        let place = inner.list.iter().position(|it| **it == address);
        if let Some(place) = place {
            inner.current = place;
        }
        place.is_some()
    }

    /// Goes to the next one, unless somebody else has left `failed` already; false if there is no other.
    pub(super) fn leave(&self, failed: &str) -> bool {
        let mut inner = self.lock();
        if *inner.list[inner.current] == *failed {
            inner.current = (inner.current + 1) % inner.list.len();
        }
        *inner.list[inner.current] != *failed
    }

    /// Takes over what an earlier process kept in `file` for the same first address, and keeps it there from now on.
    pub(super) fn keep_in(&self, disk: Arc<dyn Disk>, file: &Path) {
        let kept = read(&*disk, file).unwrap_or_default();
        let mut lines = kept.lines();
        let is_same = lines.next() == Some(&*self.all()[0]);
        self.lock().file = Some((disk, file.to_owned()));
        if is_same {
            for line in lines.take(ADDRESSES_MAX) {
                self.add(line);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Consistent after any panic: each change is one assignment or push.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A file that cannot be written costs the next start its knowledge, no more.
    fn keep(&self) {
        let Some((disk, file)) = &self.file else {
            return;
        };
        let fresh = file.with_extension("new");
        let text = self.list.join("\n");
        let written = disk
            .write(&fresh, &mut |into| into.write_all(text.as_bytes()))
            .and_then(|()| disk.sync(&fresh))
            .and_then(|()| disk.rename(&fresh, file));
        if let Err(error) = written {
            tracing::warn!(
                "can't keep the hub's addresses in {}: {error}",
                file.display()
            );
        }
    }
}

fn read(disk: &dyn Disk, file: &Path) -> io::Result<String> {
    let bytes = disk.read_start(file, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// An address as it is asked: with its scheme, without a slash at its end.
///
/// # Errors
/// What is no `http` or `https` address of a host, or too long.
pub fn checked(address: &str) -> Result<String, ClientError> {
    let bad = |problem: &str| ClientError::Address {
        address: address.chars().take(ADDRESS_BYTES_MAX).collect(),
        problem: problem.to_owned(),
    };
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    let with_scheme = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let url = reqwest::Url::parse(&with_scheme).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("it is not http://HOST:PORT or https://HOST"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query or a fragment"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether an address is this machine's whoever asks.
fn is_here(address: &str) -> bool {
    let host = reqwest::Url::parse(address)
        .ok()
        .and_then(|it| it.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|it| it.is_loopback() || it.is_unspecified())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn addresses(list: &[&str]) -> Addresses {
        let addresses = Addresses::new(list[0].into());
        for address in &list[1..] {
            assert!(addresses.add(address));
        }
        addresses
    }

    #[test]
    fn who_does_not_answer_is_left_once() {
        let addresses = addresses(&["http://a", "http://b", "c:7700/"]);
        assert!(addresses.leave("http://a"));
        // A second call that failed at the same address changes nothing.
        assert!(addresses.leave("http://a"));
        assert_eq!(&*addresses.current(), "http://b");
        assert!(addresses.leave("http://b"));
        assert_eq!(&*addresses.current(), "http://c:7700");
        addresses.prefer("http://b/");
        assert_eq!(&*addresses.current(), "http://b");
        assert!(addresses.go_to_known("c:7700"));
        assert!(!addresses.go_to_known("http://elsewhere"));
        assert_eq!(&*addresses.current(), "http://c:7700");
        let alone = Addresses::new("http://a".into());
        assert!(!alone.leave("http://a"));
    }

    #[test]
    fn noise_is_not_remembered() {
        let addresses = addresses(&["http://a"]);
        for noise in ["", "ftp://x", "http://a/", "http://b?x", &"a".repeat(300)] {
            assert!(!addresses.add(noise), "{noise:.20}");
        }
        for here in ["localhost:1", "127.0.0.1:1", "https://[::1]:1", "0.0.0.0:1"] {
            assert!(!addresses.add(here), "{here}");
        }
        assert!(Addresses::new("http://[::1]:7700".into()).add("localhost:1"));
        for number in 0..2 * ADDRESSES_MAX {
            addresses.add(&format!("http://n{number}"));
        }
        assert_eq!(addresses.all().len(), ADDRESSES_MAX);
        addresses.prefer("http://one-too-many");
        assert_eq!(&*addresses.current(), "http://a");
    }

    #[test]
    fn a_restart_knows_them_again_unless_it_is_told_another_hub() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("addresses");
        let first = Addresses::new("http://a".into());
        first.keep_in(Arc::new(RealDisk), &file);
        first.add("http://b");
        let again = Addresses::new("http://a".into());
        again.keep_in(Arc::new(RealDisk), &file);
        assert_eq!(again.all(), first.all());
        let other = Addresses::new("http://z".into());
        other.keep_in(Arc::new(RealDisk), &file);
        assert_eq!(other.all().len(), 1);
    }
}
