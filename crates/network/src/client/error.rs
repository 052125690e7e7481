//! What can go wrong between a client and a hub.

use super::TransportError;

/// Code of a refusal that is not in the API's form.
pub(super) const NOT_THE_API: &str = "http";

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

    /// Whether a hub that lives said this: it has too much to do, or could not do this one thing. A proxy that has no hub behind
    /// it says 500 or more too, but not in the API's form.
    #[must_use]
    pub fn is_from_a_living_hub(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => match status {
                429 => true,
                408 | 500 | 503 => code != NOT_THE_API,
                _ => false,
            },
            Self::Unreachable { .. }
            | Self::Address { .. }
            | Self::Malformed { .. }
            | Self::TooLong { .. } => false,
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

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::super::refusal;

    #[test]
    fn a_hub_that_is_asked_too_much_lives_and_a_proxy_without_one_does_not() {
        let check = |status: u16, body: &str, expected| {
            let error = refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!(error.is_from_a_living_hub(), expected, "{status} {body}");
        };
        let body = r#"{"code":"any","message":"any"}"#;
        for status in [408, 429, 500, 503] {
            check(status, body, true);
        }
        for status in [500, 502, 503, 504] {
            check(status, "<html>", false);
        }
        // The run is not there, or somebody else is.
        for status in [400, 404, 421] {
            check(status, body, false);
        }
    }
}
