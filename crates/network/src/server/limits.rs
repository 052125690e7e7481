//! What connections may do, and how many files the system lets them be.

use std::{net::IpAddr, time::Duration};

use super::pace::Pace;

/// Files that a process needs beside its connections: database, blobs, logs.
const OTHER_FILES: u64 = 512;

/// Limits of a server's connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections of one address at once (of one /64 network, for IPv6).
    pub connections_per_address_max: u32,
    /// Time from the first byte of a request, or from the connection's beginning, to the end of its headers.
    pub header_timeout: Duration,
    /// Time that a connection may stay open between requests.
    pub idle_timeout: Duration,
    /// Least speed of a body, either way, while the other end is waited for.
    pub bytes_per_s_min: u32,
    /// How long the other end may stall before its speed counts.
    pub stall_max: Duration,
    /// Proxies of the operator's own: they bring many clients over few connections, so these count for no address.
    pub trusted_proxies: Vec<IpAddr>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 512,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            bytes_per_s_min: 2_048,
            stall_max: Duration::from_secs(20),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Limits {
    pub(super) fn pace(&self) -> Pace {
        Pace {
            bytes_per_s_min: self.bytes_per_s_min.max(1),
            stall_max: self.stall_max,
        }
    }
}

/// Raises the process's limit of open files as far as the system allows without asking, and gives how many connections
/// that leaves room for.
#[must_use]
pub fn raise_open_files() -> usize {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            let wanted = rustix::process::Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            };
            match setrlimit(Resource::Nofile, wanted) {
                Ok(()) => limit = wanted,
                Err(error) => tracing::debug!("the limit of open files stays: {error}"),
            }
        }
        let files = limit.current.unwrap_or(u64::MAX);
        usize::try_from(files.saturating_sub(OTHER_FILES).max(16)).unwrap_or(usize::MAX)
    }
    #[cfg(not(unix))]
    {
        usize::MAX
    }
}
