//! What can go wrong between a client and a hub.

use super::TransportError;

/// Why a call to a hub did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is no address of a hub.
    #[error("{address:?} is not a hub's address: {problem}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection, a cut connection or no answer in time. Waiting may help.
    #[error("the hub at {address} does not answer")]
    Unreachable {
        /// The hub's address.
        address: String,
        /// What happened.
        #[source]
        source: TransportError,
    },
    /// The hub said no.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code for programs; `http` if the answer was not the API's.
        code: String,
        /// The hub's sentence for people.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("{what} from the hub is malformed: {problem}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The answer is longer than it may be.
    #[error("the hub's answer is longer than the {bytes_max} bytes allowed here")]
    TooLong {
        /// Bytes allowed.
        bytes_max: u64,
    },
}

impl ClientError {
    /// The hub's code for its refusal, if it refused.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Address { .. }
            | Self::Unreachable { .. }
            | Self::Malformed { .. }
            | Self::TooLong { .. } => None,
        }
    }

    /// Whether the same call may succeed later without anyone changing it: no connection, an overloaded or restarting hub, a mirror.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => {
                matches!(status, 408 | 421 | 425 | 429 | 500 | 502..=504)
            }
            Self::Address { .. } | Self::Malformed { .. } | Self::TooLong { .. } => false,
        }
    }

    /// The code of a refusal; `None` for any other error.
    #[must_use]
    pub fn refusal_code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Address { .. }
            | Self::Unreachable { .. }
            | Self::Malformed { .. }
            | Self::TooLong { .. } => None,
        }
    }
}
