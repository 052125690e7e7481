//! Content-addressed blobs: bytes whose BLAKE3 hash is their name.
//!
//! Downloads and uploads resume where a connection was cut. No byte is handed on before the whole has hashed to its name,
//! and no more bytes are read than the reference promises.

pub(crate) mod cache;
pub(crate) mod download;
mod part;
mod upload;

use protocol::{Hash, SecretKey};

pub use cache::{BlobCache, CacheError};

use crate::client::ClientError;

/// Consecutive failures without a byte of progress after which a transfer is given up; it resumes when asked for again.
const FAILURES_MAX: u32 = 8;

/// Who answers for an upload.
#[derive(Clone, Debug)]
pub enum UploadAuthorisation {
    /// The worker that committed to the blob.
    Worker(SecretKey),
    /// The operator of the hub: by token, or by coming from the hub's own machine.
    Operator {
        /// The operator's token; loopback peers need none.
        token: Option<String>,
    },
}

/// Why a blob did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The hub refused, or did not answer often enough.
    #[error("blob {} was not transferred", hash.short())]
    Client {
        /// The blob.
        hash: Hash,
        /// What happened last.
        #[source]
        source: ClientError,
    },
    /// The bytes are others than the name says.
    #[error("the hub's bytes of blob {} are not those of its hash", hash.short())]
    WrongHash {
        /// The blob.
        hash: Hash,
    },
    /// The blob has another length than the reference says.
    #[error("blob {} has {found} bytes at the hub instead of {expected}", hash.short())]
    WrongLength {
        /// The blob.
        hash: Hash,
        /// Bytes that the reference promises.
        expected: u64,
        /// Bytes that the hub has.
        found: u64,
    },
    /// The local cache could not keep it.
    #[error("blob {} could not be kept", hash.short())]
    Cache {
        /// The blob.
        hash: Hash,
        /// What happened.
        #[source]
        source: CacheError,
    },
}

impl TransferError {
    /// Whether trying again later may succeed without anyone changing anything.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Client { source, .. } => source.is_temporary(),
            Self::WrongHash { .. } | Self::WrongLength { .. } | Self::Cache { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
