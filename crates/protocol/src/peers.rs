//! Who else has a blob: a worker's signed question, which says in the same breath where the worker itself is reached.
//!
//! The hub keeps what it learns in memory alone and forgets it with the worker's presence; nothing of this is in the log.
//! A question sent a second time by somebody else changes nothing but a place in the order of asking, so it carries no
//! sequence number.

use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey, SecretKey, Signature, canonical,
    key::KeyError,
    units::{RunId, WorkerId},
};

/// Longest encoded question accepted.
pub const PEERS_QUESTION_BYTES_MAX: usize = 2048;
/// Most socket addresses of one peer.
pub const PEER_ADDRESSES_MAX: usize = 8;
/// Longest address of a relay.
pub const RELAY_BYTES_MAX: usize = 256;
/// Most peers that one question reports about.
pub const PEERS_REPORTED_MAX: usize = 8;
const DOMAIN: &str = "AI@home 2026 peers question v1";

/// Where a worker's blobs can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddress {
    /// Public key of its endpoint, which QUIC's handshake proves; made afresh at each start, not the worker's key.
    pub endpoint: PublicKey,
    /// Addresses that it listens on, at most [`PEER_ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// The relay that it can be met at.
    pub relay: Option<String>,
}

/// "Who has this blob? I am here, and this is how the last ones did."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersQuestion {
    /// The run whose blob it is.
    pub run: RunId,
    /// Who asks.
    pub worker: WorkerId,
    /// The blob.
    pub blob: Hash,
    /// Where the worker serves what it has; nothing if it does not.
    pub address: Option<PeerAddress>,
    /// Endpoints that gave a blob since the last question, at most [`PEERS_REPORTED_MAX`].
    pub served: Vec<PublicKey>,
    /// Endpoints that did not, though the hub had named them, at most [`PEERS_REPORTED_MAX`].
    pub failed: Vec<PublicKey>,
}

/// A question with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPeersQuestion {
    /// What is asked.
    pub question: PeersQuestion,
    /// The worker's signature over it.
    pub signature: Signature,
}

/// Why a question was not looked at.
#[derive(Debug, thiserror::Error)]
pub enum PeersQuestionError {
    /// The bytes are no question.
    #[error("the question does not read: {0}")]
    Encoding(#[from] canonical::CanonicalError),
    /// Signed by somebody else, or changed on the way.
    #[error("the question's signature: {0}")]
    Signature(#[from] KeyError),
    /// A list or text is too long.
    #[error("the question's {0} is too long")]
    TooLong(&'static str),
}

impl PeerAddress {
    /// The same peer with those socket addresses only that a stranger may be sent to, when the statement came from `from`.
    ///
    /// A worker speaks for its own machine and its own local network: its addresses must be those that it asks from, or
    /// both must be local. Otherwise one worker could send all others to a machine that never asked for it. The address it
    /// asks from is tried with each port that it names, which finds forwarded ports.
    #[must_use]
    pub fn as_seen_from(&self, from: IpAddr) -> Self {
        let from = from.to_canonical();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        let named = self.addresses.iter().take(PEER_ADDRESSES_MAX);
        let seen = named
            .clone()
            .map(|it| SocketAddr::new(from, it.port()))
            .filter(|it| !is_local(it.ip()));
        let told = named.copied().filter(|it| {
            let ip = it.ip().to_canonical();
            ip == from
                || is_local(ip) && is_local(from) && (!ip.is_loopback() || from.is_loopback())
        });
        for address in told.chain(seen) {
            let is_sendable = address.port() != 0
                && !address.ip().is_unspecified()
                && !address.ip().is_multicast()
                && address.ip() != IpAddr::from([255, 255, 255, 255]);
            if is_sendable && !addresses.contains(&address) && addresses.len() < PEER_ADDRESSES_MAX
            {
                addresses.push(address);
            }
        }
        Self {
            endpoint: self.endpoint,
            addresses,
            relay: self.relay.clone(),
        }
    }
}

impl PeerAddress {
    /// The same peer with those socket addresses only that somebody at `from` can reach; `None` if nothing is left.
    #[must_use]
    pub fn for_asker_at(&self, from: IpAddr) -> Option<Self> {
        let from = from.to_canonical();
        let reached = self.addresses.iter().copied().filter(|it| {
            let ip = it.ip().to_canonical();
            !is_local(ip) || is_local(from) && (!ip.is_loopback() || from.is_loopback())
        });
        let addresses: Vec<SocketAddr> = reached.collect();
        (!addresses.is_empty() || self.relay.is_some()).then(|| Self {
            endpoint: self.endpoint,
            addresses,
            relay: self.relay.clone(),
        })
    }
}

/// Loopback, link-local and the networks of homes and offices.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

impl SignedPeersQuestion {
    /// Signs a question with its worker's key.
    ///
    /// # Panics
    /// If the key is another worker's.
    #[must_use]
    pub fn sign(key: &SecretKey, question: PeersQuestion) -> Self {
        assert_eq!(question.worker, WorkerId(key.public()));
        let signature = key.sign(DOMAIN, &canonical::encode(&question));
        Self {
            question,
            signature,
        }
    }

    /// The bytes that travel.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads a question and checks limits and signature.
    ///
    /// # Errors
    /// [`PeersQuestionError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PeersQuestionError> {
        let signed: Self = canonical::decode(bytes, PEERS_QUESTION_BYTES_MAX)?;
        let question = &signed.question;
        if let Some(address) = &question.address {
            if address.addresses.len() > PEER_ADDRESSES_MAX {
                return Err(PeersQuestionError::TooLong("list of addresses"));
            }
            if address
                .relay
                .as_ref()
                .is_some_and(|it| it.len() > RELAY_BYTES_MAX)
            {
                return Err(PeersQuestionError::TooLong("relay's address"));
            }
        }
        if question.served.len().max(question.failed.len()) > PEERS_REPORTED_MAX {
            return Err(PeersQuestionError::TooLong("report"));
        }
        let message = canonical::encode(question);
        question
            .worker
            .0
            .verify(DOMAIN, &message, &signed.signature)?;
        Ok(signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> PeersQuestion {
        PeersQuestion {
            run: RunId(Hash([1; 32])),
            worker: WorkerId(SecretKey::from_entropy([3; 32]).public()),
            blob: Hash([2; 32]),
            address: Some(PeerAddress {
                endpoint: SecretKey::from_entropy([4; 32]).public(),
                addresses: vec!["192.168.1.7:4433".parse().unwrap()],
                relay: None,
            }),
            served: vec![SecretKey::from_entropy([5; 32]).public()],
            failed: vec![],
        }
    }

    fn signed(question: PeersQuestion) -> SignedPeersQuestion {
        SignedPeersQuestion::sign(&SecretKey::from_entropy([3; 32]), question)
    }

    #[test]
    fn golden_bytes() {
        expect_test::expect!["0101010101010101010101010101010101010101010101010101010101010101ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1020202020202020202020202020202020202020202020202020202020202020201ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c0100c0a80107d12200016e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf100979495c10da17aaa40370605076efdd491052037160745e6f7a263e29867ac9482b0ae1e5954796a3da17205778eece4c6a45296150ba8ea1828767b75a7240e"]
            .assert_eq(&data_encoding::HEXLOWER.encode(&signed(question()).to_bytes()));
    }

    #[test]
    fn each_byte_is_covered_by_the_signature() {
        let bytes = signed(question()).to_bytes();
        assert_eq!(
            SignedPeersQuestion::from_bytes(&bytes).unwrap().question,
            question()
        );
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(
                SignedPeersQuestion::from_bytes(&changed).is_err(),
                "byte {index}"
            );
        }
    }

    #[test]
    fn lists_are_bounded() {
        let refused = |change: fn(&mut PeersQuestion)| {
            let mut question = question();
            change(&mut question);
            let read = SignedPeersQuestion::from_bytes(&signed(question).to_bytes());
            matches!(read, Err(PeersQuestionError::TooLong(_)))
        };
        assert!(refused(|it| {
            let address = it.address.as_mut().unwrap();
            address.addresses = vec![address.addresses[0]; PEER_ADDRESSES_MAX + 1];
        }));
        assert!(refused(
            |it| it.address.as_mut().unwrap().relay = Some("r".repeat(RELAY_BYTES_MAX + 1))
        ));
        assert!(refused(
            |it| it.failed = vec![it.worker.0; PEERS_REPORTED_MAX + 1]
        ));
        assert!(!refused(
            |it| it.failed = vec![it.worker.0; PEERS_REPORTED_MAX]
        ));
    }

    #[test]
    fn nobody_is_sent_where_it_cannot_go() {
        #[track_caller]
        fn check(from: &str, addresses: &[&str], kept: &[&str]) {
            let address = PeerAddress {
                endpoint: PublicKey([0; 32]),
                addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
                relay: None,
            };
            let named = address.for_asker_at(from.parse().unwrap());
            let named = named.map_or(vec![], |it| it.addresses);
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            assert_eq!(named, kept);
        }
        let all = ["127.0.0.1:5", "192.168.1.7:5", "203.0.113.9:5"];
        check("127.0.0.1", &all, &all);
        check("192.168.1.8", &all, &all[1..]);
        check("198.51.100.1", &all, &all[2..]);
        check("198.51.100.1", &all[..2], &[]);
    }

    #[test]
    fn a_worker_speaks_for_its_own_machine_alone() {
        #[track_caller]
        fn check(from: &str, named: &[&str], kept: &[&str]) {
            let address = PeerAddress {
                endpoint: PublicKey([0; 32]),
                addresses: named.iter().map(|it| it.parse().unwrap()).collect(),
                relay: None,
            };
            let seen = address.as_seen_from(from.parse().unwrap()).addresses;
            let seen: Vec<String> = seen.iter().map(ToString::to_string).collect();
            assert_eq!(seen, kept);
        }
        // Everything on one machine, or in one home.
        check("127.0.0.1", &["127.0.0.1:5"], &["127.0.0.1:5"]);
        check("::ffff:127.0.0.1", &["127.0.0.1:5"], &["127.0.0.1:5"]);
        check("127.0.0.1", &["192.168.1.7:5"], &["192.168.1.7:5"]);
        check(
            "192.168.1.7",
            &["192.168.1.7:5", "127.0.0.1:5"],
            &["192.168.1.7:5"],
        );
        // Somewhere on the internet: its own address, with the ports that it names.
        check("203.0.113.9", &["192.168.1.7:5"], &["203.0.113.9:5"]);
        check(
            "203.0.113.9",
            &["203.0.113.9:5", "10.0.0.1:5"],
            &["203.0.113.9:5"],
        );
        check("203.0.113.9", &["198.51.100.1:53"], &["203.0.113.9:53"]);
        // What is no address of a machine.
        check(
            "127.0.0.1",
            &[
                "0.0.0.0:5",
                "224.0.0.1:5",
                "127.0.0.1:0",
                "255.255.255.255:5",
            ],
            &[],
        );
    }
}
