//! Who seals a run's log: the charter's hub, and after it the hubs that succession keys name, each by a signed statement.
//!
//! A statement is good for one place of one log: it names the entry that it will be, the hash of the entry before, and
//! its generation, the number of takeovers up to and with it. The entry that carries it ([`Event::HubReplaced`]) and all
//! after it are sealed by the new hub.
//!
//! Where two logs of one run differ, [`choose`] says which of them counts. It looks at nothing but statements, so that a
//! hub that was away can be shown that it is the hub no longer before a single entry was copied. What a key signed twice
//! is no matter of choice: it is proven ([`crate::equivocation`]) and shown to people.

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey, SecretKey, Signature, canonical,
    charter::Charter,
    equivocation::{Equivocation, Kind},
    event::Event,
    key::KeyError,
    log::{ChainError, Entry, Head},
    units::RunId,
};

/// Longest address of a hub, as in a charter.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Longest encoded statement.
pub const SUCCESSION_BYTES_MAX: usize = 1024;
/// Most takeovers of one run.
pub const GENERATIONS_MAX: u64 = 1024;
const DOMAIN: &str = "AI@home 2026 succession v1";

/// The statement "from this entry on, this hub keeps the run", signed by a succession key of the charter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The run.
    pub run: RunId,
    /// How many takeovers the log then has; the first makes generation 1.
    pub generation: u64,
    /// Position of the entry that carries this statement.
    pub index: u64,
    /// Hash of the entry before it.
    pub previous: Hash,
    /// Key of the new hub.
    pub hub: PublicKey,
    /// Where the new hub is reached.
    pub address: String,
    /// The succession key that says so.
    pub key: PublicKey,
    /// Its signature over all of the above.
    pub signature: Signature,
}

/// Why a statement names no hub of a run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SuccessionError {
    /// The bytes are no statement.
    #[error("the succession does not read")]
    Encoding(#[source] canonical::CanonicalError),
    /// The charter names no such key.
    #[error("{} is not among the charter's succession keys", .0.short())]
    NotNamed(PublicKey),
    /// Made for another place, or not by the key it names.
    #[error("the succession's signature")]
    Signature(#[source] KeyError),
    /// It names another run, generation, position or predecessor than it stands at.
    #[error("the succession is of another place: {0}")]
    OtherPlace(&'static str),
    /// The address is too long or empty.
    #[error("the succession's address is empty or longer than {ADDRESS_BYTES_MAX} bytes")]
    Address,
}

/// Who sealed a log so far, and who seals its next entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealing {
    run: RunId,
    first: PublicKey,
    keys: Vec<PublicKey>,
    successions: Vec<Succession>,
}

/// A chain of entries with whoever may seal it: what a stranger needs to read a log on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: Head,
    sealing: Sealing,
}

/// Which of two logs of one run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The same takeovers: one is the other's beginning, or their hub sealed two entries at one place.
    Same,
    /// The first.
    First,
    /// The second.
    Second,
    /// One key named two hubs for one generation: nobody's rule decides, people do, by a further takeover.
    Undecided,
}

impl Succession {
    /// States that `hub`, reached at `address`, continues the log after `head`.
    #[must_use]
    pub fn sign(
        key: &SecretKey,
        sealing: &Sealing,
        head: &Head,
        hub: PublicKey,
        address: &str,
    ) -> Self {
        let mut statement = Self {
            run: sealing.run,
            generation: sealing.generation() + 1,
            index: head.length,
            previous: head.hash,
            hub,
            address: address.to_owned(),
            key: key.public(),
            signature: Signature([0; 64]),
        };
        statement.signature = key.sign(DOMAIN, &statement.message());
        statement
    }

    /// Checks the signature and the address; whether the charter names the key is [`Sealing`]'s to say.
    ///
    /// # Errors
    /// [`SuccessionError`].
    pub fn check(&self) -> Result<(), SuccessionError> {
        if self.address.is_empty() || self.address.len() > ADDRESS_BYTES_MAX {
            return Err(SuccessionError::Address);
        }
        self.key
            .verify(DOMAIN, &self.message(), &self.signature)
            .map_err(SuccessionError::Signature)
    }

    /// The bytes that travel outside of a log.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads and checks a statement that came outside of a log.
    ///
    /// # Errors
    /// [`SuccessionError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SuccessionError> {
        let statement: Self =
            canonical::decode(bytes, SUCCESSION_BYTES_MAX).map_err(SuccessionError::Encoding)?;
        statement.check()?;
        Ok(statement)
    }

    fn message(&self) -> Vec<u8> {
        canonical::encode(&(
            (self.run, self.generation, self.index, self.previous),
            (self.hub, &self.address, self.key),
        ))
    }
}

impl Sealing {
    /// As a run begins: its charter's hub seals.
    #[must_use]
    pub fn of(charter: &Charter) -> Self {
        Self::new(charter.id(), charter.hub, charter.succession.clone())
    }

    /// As a run begins whose charter names this hub and these succession keys.
    #[must_use]
    pub fn new(run: RunId, hub: PublicKey, keys: Vec<PublicKey>) -> Self {
        Self {
            run,
            first: hub,
            keys,
            successions: Vec::new(),
        }
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Who seals the next entry, unless that one names another hub.
    #[must_use]
    pub fn hub(&self) -> PublicKey {
        self.newest().map_or(self.first, |it| it.hub)
    }

    /// Takeovers so far.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.successions.len() as u64
    }

    /// The newest takeover's statement.
    #[must_use]
    pub fn newest(&self) -> Option<&Succession> {
        self.successions.last()
    }

    /// All takeovers, oldest first.
    #[must_use]
    pub fn successions(&self) -> &[Succession] {
        &self.successions
    }

    /// Whether the charter names this key as one that may name a hub.
    #[must_use]
    pub fn names(&self, key: &PublicKey) -> bool {
        self.keys.contains(key)
    }

    /// Whether this key seals or sealed a part of this log, or may name who does.
    #[must_use]
    pub fn concerns(&self, key: &PublicKey) -> bool {
        self.first == *key || self.names(key) || self.successions.iter().any(|it| it.hub == *key)
    }

    /// Adds the next takeover, if a key of the charter signed it for the generation that follows.
    ///
    /// # Errors
    /// [`SuccessionError`]; then nothing has changed.
    pub fn replace(&mut self, statement: &Succession) -> Result<(), SuccessionError> {
        self.check_next(statement)?;
        self.successions.push(statement.clone());
        Ok(())
    }

    fn check_next(&self, statement: &Succession) -> Result<(), SuccessionError> {
        if statement.run != self.run {
            return Err(SuccessionError::OtherPlace("another run"));
        }
        if statement.generation != self.generation() + 1 || statement.generation > GENERATIONS_MAX {
            return Err(SuccessionError::OtherPlace("another generation"));
        }
        if !self.names(&statement.key) {
            return Err(SuccessionError::NotNamed(statement.key));
        }
        statement.check()
    }

    /// The same beginning with other takeovers, each checked: what a stranger says of its log.
    ///
    /// # Errors
    /// [`SuccessionError`] of the first that does not hold.
    pub fn with(&self, statements: &[Succession]) -> Result<Self, SuccessionError> {
        let mut other = Self {
            successions: Vec::new(),
            ..self.clone()
        };
        for statement in statements {
            other.replace(statement)?;
        }
        Ok(other)
    }

    /// Who must have sealed `entry`, which would follow `head`: the hub, or the new one that it names and may name.
    ///
    /// # Errors
    /// [`ChainError::Succession`] if it names one that it may not.
    pub fn sealer(&self, head: &Head, entry: &Entry) -> Result<PublicKey, ChainError> {
        let Event::HubReplaced { succession } = &entry.event else {
            return Ok(self.hub());
        };
        let refuse = |source| ChainError::Succession {
            index: head.length,
            source,
        };
        if succession.index != head.length || succession.previous != head.hash {
            return Err(refuse(SuccessionError::OtherPlace(
                "another position or predecessor",
            )));
        }
        self.check_next(succession).map_err(refuse)?;
        Ok(succession.hub)
    }

    /// Whether a statement that came outside of a log shows that another log than this one's counts ([`choose`]): it holds,
    /// and is of a generation that this log has not reached, or takes the place of its only one. (Of later generations one
    /// statement alone does not say where the logs part.)
    #[must_use]
    pub fn is_superseded_by(&self, statement: &Succession) -> bool {
        if statement.run != self.run || !self.names(&statement.key) {
            return false;
        }
        let counts = match statement.generation.cmp(&self.generation()) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => {
                let only = self.newest().filter(|it| it.generation == 1);
                only.is_some_and(|only| self.rank(&statement.key) < self.rank(&only.key))
            }
        };
        counts && statement.check().is_ok()
    }

    /// Whether a proof, which was checked, shows that whoever seals this log now sealed two different entries at one place since
    /// it took over: it must seal nothing more. What was proven of the time before the newest takeover is settled by that.
    #[must_use]
    pub fn is_stopped_by(&self, proof: &Equivocation) -> bool {
        let Ok(Kind::TwoEntries { index }) = proof.check() else {
            return false;
        };
        let since = self.newest().map_or(0, |it| it.index);
        proof.first.run == self.run && proof.key == self.hub() && since <= index
    }

    /// The place of a succession key in the charter, from 0; `None` for any other key.
    #[must_use]
    pub fn rank(&self, key: &PublicKey) -> Option<usize> {
        self.keys.iter().position(|it| it == key)
    }
}

impl Chain {
    /// The empty chain of a charter's run.
    #[must_use]
    pub fn of(charter: &Charter) -> Self {
        Self {
            head: Head::empty(),
            sealing: Sealing::of(charter),
        }
    }

    /// A chain that stands at `head`, sealed as `sealing` says.
    #[must_use]
    pub fn at(head: Head, sealing: Sealing) -> Self {
        Self { head, sealing }
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.sealing.run
    }

    /// Where it stands.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Who seals it.
    #[must_use]
    pub fn sealing(&self) -> &Sealing {
        &self.sealing
    }

    /// Checks that `entry` is the next one, sealed by who may, and moves onto it.
    ///
    /// # Errors
    /// [`ChainError`]; then nothing has changed.
    pub fn advance(&mut self, entry: &Entry) -> Result<(), ChainError> {
        let sealer = self.sealing.sealer(&self.head, entry)?;
        self.head.advance(self.sealing.run, &sealer, entry)?;
        if let Event::HubReplaced { succession } = &entry.event {
            // The sealer was found by the same check.
            self.sealing.successions.push(succession.clone());
        }
        Ok(())
    }
}

/// The fork choice: the log with more takeovers counts; of as many, the one whose first differing takeover was stated by
/// the key that stands earlier in the charter.
///
/// Whoever follows it and gave up its own log has lost what only that one said, even if it was acknowledged: that is the
/// price of going on without a hub that cannot be asked.
#[must_use]
pub fn choose(first: &Sealing, second: &Sealing) -> Choice {
    match first.generation().cmp(&second.generation()) {
        std::cmp::Ordering::Greater => return Choice::First,
        std::cmp::Ordering::Less => return Choice::Second,
        std::cmp::Ordering::Equal => {}
    }
    let differing = first
        .successions
        .iter()
        .zip(&second.successions)
        .find(|(one, other)| one != other);
    let Some((one, other)) = differing else {
        return Choice::Same;
    };
    match first.rank(&one.key).cmp(&first.rank(&other.key)) {
        std::cmp::Ordering::Less => Choice::First,
        std::cmp::Ordering::Greater => Choice::Second,
        std::cmp::Ordering::Equal => Choice::Undecided,
    }
}

#[cfg(test)]
mod tests;
