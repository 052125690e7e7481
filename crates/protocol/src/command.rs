//! What a worker asks of the hub, signed by the worker's own key.

use serde::{Deserialize, Serialize};

use crate::{
    SecretKey, Signature, canonical,
    charter::is_name,
    key::KeyError,
    units::{BlobReference, RunId, WorkerId},
    update::UpdateHeader,
};

/// Longest encoded command accepted.
pub const COMMAND_BYTES_MAX: usize = 4096;
/// Longest free text in a command.
pub const TEXT_BYTES_MAX: usize = 256;
const DOMAIN: &str = "AI@home 2026 worker command v1";

/// A request of a worker that becomes an event when the state machine grants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Take part, or take part again with another name or device.
    Join {
        /// Name for people.
        name: String,
        /// What the machine is.
        device: Device,
    },
    /// Commit to an update before the round's deadline.
    Commit(Box<Commitment>),
    /// Take no further part until the next join.
    Leave {
        /// Why, for people.
        reason: String,
    },
}

/// A worker's machine, as measured by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The arithmetic class (`engine::arithmetic::class`).
    pub arithmetic: String,
    /// Threads that train.
    pub threads: u32,
    /// Memory that training needs, in MiB.
    pub memory_mib: u32,
    /// Tokens a second in the benchmark.
    pub tokens_per_s: u32,
}

/// The promise of an update: its hash and what it says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// The update file.
    pub update: BlobReference,
    /// The header that the file carries.
    pub header: UpdateHeader,
}

/// A command with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCommand {
    /// The run it is meant for.
    pub run: RunId,
    /// Who asks.
    pub worker: WorkerId,
    /// Larger with each command of this worker in this run.
    pub sequence: u64,
    /// What is asked.
    pub command: Command,
    /// The worker's signature over all of the above.
    pub signature: Signature,
}

/// A command whose signature and texts hold, so that nobody checks them twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedCommand(SignedCommand);

impl CheckedCommand {
    /// The command.
    #[must_use]
    pub fn get(&self) -> &SignedCommand {
        &self.0
    }
}

/// Why a command was refused before its meaning was looked at.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The bytes are no command.
    #[error("the command does not read: {0}")]
    Encoding(#[from] canonical::CanonicalError),
    /// Signed by somebody else, or changed on the way.
    #[error("the command's signature: {0}")]
    Signature(#[from] KeyError),
    /// A text is too long or has characters that names do not have.
    #[error("the command's {0} is too long or has characters that are not allowed")]
    Text(&'static str),
}

impl SignedCommand {
    /// Signs a command.
    #[must_use]
    pub fn sign(key: &SecretKey, run: RunId, sequence: u64, command: Command) -> Self {
        let worker = WorkerId(key.public());
        let signature = key.sign(DOMAIN, &message(run, worker, sequence, &command));
        Self {
            run,
            worker,
            sequence,
            command,
            signature,
        }
    }

    /// The bytes that travel.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads a command and checks signature and texts.
    pub fn from_bytes(bytes: &[u8]) -> Result<CheckedCommand, CommandError> {
        canonical::decode::<Self>(bytes, COMMAND_BYTES_MAX)?.checked()
    }

    /// Checks signature and texts, and remembers that they hold.
    pub fn checked(self) -> Result<CheckedCommand, CommandError> {
        self.check()?;
        Ok(CheckedCommand(self))
    }

    /// Checks signature and texts.
    pub fn check(&self) -> Result<(), CommandError> {
        match &self.command {
            Command::Join { name, device } => {
                if !is_name(name) {
                    return Err(CommandError::Text("name"));
                }
                if !is_name(&device.arithmetic) {
                    return Err(CommandError::Text("arithmetic class"));
                }
            }
            Command::Leave { reason } => {
                if reason.len() > TEXT_BYTES_MAX || reason.chars().any(char::is_control) {
                    return Err(CommandError::Text("reason"));
                }
            }
            Command::Commit(_) => {}
        }
        let message = message(self.run, self.worker, self.sequence, &self.command);
        self.worker.0.verify(DOMAIN, &message, &self.signature)?;
        Ok(())
    }
}

fn message(run: RunId, worker: WorkerId, sequence: u64, command: &Command) -> Vec<u8> {
    canonical::encode(&(run, worker, sequence, command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    fn join() -> SignedCommand {
        SignedCommand::sign(
            &SecretKey::from_entropy([3; 32]),
            RunId(Hash([1; 32])),
            9,
            Command::Join {
                name: "kitchen laptop".into(),
                device: Device {
                    arithmetic: "avx2-f32-1".into(),
                    threads: 2,
                    memory_mib: 80,
                    tokens_per_s: 15_000,
                },
            },
        )
    }

    #[test]
    fn golden_bytes() {
        expect_test::expect!["0101010101010101010101010101010101010101010101010101010101010101ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d109000e6b69746368656e206c6170746f700a617678322d6633322d31025098752175932e627990e78aca4ae75c24758c2afb08723a93c98ba6e4649e4d6ef21cc10bb77a0ff7cb390220c51184509927a663ac7b4b14cb680bf0e435fe6cc908"].assert_eq(&data_encoding::HEXLOWER.encode(&join().to_bytes()));
    }

    #[test]
    fn each_byte_is_covered_by_the_signature() {
        let bytes = join().to_bytes();
        assert!(SignedCommand::from_bytes(&bytes).is_ok());
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert!(SignedCommand::from_bytes(&changed).is_err(), "byte {index}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let key = SecretKey::from_entropy([3; 32]);
        let leave = |reason: String| {
            SignedCommand::sign(&key, RunId::default(), 1, Command::Leave { reason }).check()
        };
        assert!(leave("going to sleep".into()).is_ok());
        assert!(matches!(
            leave("x".repeat(257)),
            Err(CommandError::Text("reason"))
        ));
        assert!(matches!(
            leave("a\u{1b}[2J".into()),
            Err(CommandError::Text("reason"))
        ));
    }
}
