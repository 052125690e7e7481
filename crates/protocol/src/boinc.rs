//! What a hub and the BOINC application say to each other, inside the files that a stock BOINC client carries.
//!
//! A BOINC host is a worker like any other: its application holds the worker's key and signs the worker's commands. It has
//! no connection of its own; so what a connected worker asks for one after the other comes in one file, the [`Unit`], and
//! what it would send goes back in one file, the [`Output`]. BOINC's own checks (MD5, RSA-1024) protect neither: the unit
//! carries the hub's signature, and every other file is named in it by hash.

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey, SecretKey, Signature,
    api::Work,
    canonical,
    command::SignedCommand,
    key::KeyError,
    units::{AccountId, BlobReference, RunId},
};

/// Name by which the application opens the unit.
pub const UNIT_NAME: &str = "unit";
/// Name under which the application writes what goes back.
pub const OUTPUT_NAME: &str = "output";
/// Longest unit.
pub const UNIT_BYTES_MAX: usize = 1 << 20;
/// Longest head of an output; files follow it.
pub const OUTPUT_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most commands in an output.
pub const COMMANDS_MAX: usize = 4;
/// Most files in an output: an update and the optimiser's m and v.
pub const FILES_MAX: usize = 2;
/// Longest name of a unit.
pub const NAME_BYTES_MAX: usize = 64;

const DOMAIN: &str = "AI@home 2026 BOINC work unit v1";
const MAGIC: &[u8; 16] = b"athome boinc 1\r\n";
/// Signature and key before a unit's text.
const SEAL_BYTES: usize = 64 + 32;

/// What a host is to do, with everything that it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name at the hub, which the output repeats; letters, digits, `-` and `_`.
    pub name: String,
    /// The run.
    pub run: RunId,
    /// The account that the host's worker is bound to.
    pub account: AccountId,
    /// What to do.
    pub task: UnitTask,
    /// Statements of the takeovers of the run so far, in hexadecimal ([`crate::succession::Succession::to_bytes`]): they
    /// lead from the charter's hub to the one that signed this.
    pub takeovers: Vec<String>,
    /// What the run is, and what may be needed of it.
    pub files: Vec<UnitFile>,
}

/// What a host is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitTask {
    /// Make a key if there is none, measure the machine, and join.
    Enrol {
        /// Sequence number of the worker's last command, if the hub knows the worker.
        sequence: u64,
        /// Whether the key of before must not be used: another host has it.
        with_new_key: bool,
    },
    /// Train a round.
    Train(Box<TrainingTask>),
    /// Measure the loss of a model on held-out text, while there is no round to train.
    Evaluate(Box<EvaluationTask>),
}

/// A round to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingTask {
    /// The worker that the assignment is of.
    pub worker: PublicKey,
    /// The hub's answer to a worker's poll, with an assignment.
    pub work: Work,
    /// Time to train, in milliseconds: the charter's `round.boinc_unit_ms`.
    pub train_ms: u64,
    /// Last moment for the end of training, in Unix milliseconds by the host's own clock as its client told it.
    pub until_ms: u64,
    /// Whether the round is another worker's, trained from a fresh start, which is done again as a check of it: with exactly so
    /// many steps. The update's file goes back and nothing is committed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated_steps: Option<u32>,
}

/// A model to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationTask {
    /// Round whose merge made the model.
    pub round: u64,
    /// Hash of its parameters.
    pub parameters: Hash,
    /// The model's newest checkpoint before it, and the deltas from there.
    pub work: Work,
    /// Position in `data.held_out` of the charter.
    pub shard: u32,
    /// First window of that shard, in sequences.
    pub first_window: u64,
    /// Windows to measure at most.
    pub windows: u32,
    /// Time for it in milliseconds: what is not measured by then is left out.
    pub measure_ms: u64,
}

/// A file that comes with a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFile {
    /// Name by which the application opens it: `charter`, or the hash in hexadecimal.
    pub open_name: String,
    /// What it must hash to.
    pub blob: BlobReference,
}

/// What goes back: the head; the files follow it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The unit's name.
    pub unit: String,
    /// The worker's commands in the order in which they are to be granted, at most [`COMMANDS_MAX`]. A round to train whose
    /// worker is not this host any more (the client's project was reset, and the key with it) is answered as [`UnitTask::Enrol`]
    /// is: with the new worker's joining and its binding.
    pub commands: Vec<SignedCommand>,
    /// The worker's half of its binding to the account, if it is new ([`crate::identity::sign_half`]).
    pub binding: Option<Signature>,
    /// What was measured.
    pub evaluation: Option<Evaluation>,
    /// The files after the head, at most [`FILES_MAX`].
    pub files: Vec<BlobReference>,
}

/// What a host measured of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Windows measured.
    pub windows: u32,
    /// Tokens predicted.
    pub tokens: u64,
    /// Sum of their losses in 10^-6 nats.
    pub loss_micronats: u64,
}

/// Why a unit or an output was refused.
#[derive(Debug, thiserror::Error)]
pub enum BoincError {
    /// Cut, or nothing of the kind.
    #[error("the bytes are no {0} of this version")]
    Form(&'static str),
    /// Longer than allowed.
    #[error("{what} has {bytes} bytes, more than {max}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not signed by the key that it names.
    #[error("the unit's signature")]
    Signature(#[source] KeyError),
    /// The text is no unit.
    #[error("the unit does not read")]
    Text(#[source] serde_json::Error),
    /// The head is no output.
    #[error("the output does not read")]
    Encoding(#[source] canonical::CanonicalError),
}

impl Unit {
    /// The bytes of the file, signed by the run's hub.
    #[must_use]
    pub fn seal(&self, hub: &SecretKey) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("a unit has a JSON form");
        let signature = hub.sign(DOMAIN, &text);
        let mut bytes = Vec::with_capacity(SEAL_BYTES + text.len());
        bytes.extend_from_slice(&signature.0);
        bytes.extend_from_slice(&hub.public().0);
        bytes.extend_from_slice(&text);
        bytes
    }

    /// Reads a unit and says which key signed it. Whether that key keeps the run is for the reader to ask: the charter and
    /// [`Self::takeovers`] tell.
    ///
    /// # Errors
    /// Not a unit, or not signed by the key that it names.
    pub fn open(bytes: &[u8]) -> Result<(Self, PublicKey), BoincError> {
        if bytes.len() > UNIT_BYTES_MAX {
            return Err(BoincError::TooLong {
                what: "the unit",
                bytes: bytes.len(),
                max: UNIT_BYTES_MAX,
            });
        }
        let form = BoincError::Form("work unit");
        let Some((signature, rest)) = bytes.split_first_chunk::<64>() else {
            return Err(form);
        };
        let Some((key, text)) = rest.split_first_chunk::<32>() else {
            return Err(form);
        };
        let key = PublicKey(*key);
        key.verify(DOMAIN, text, &Signature(*signature))
            .map_err(BoincError::Signature)?;
        let unit: Self = serde_json::from_slice(text).map_err(BoincError::Text)?;
        if !is_unit_name(&unit.name) {
            return Err(form);
        }
        Ok((unit, key))
    }
}

impl Output {
    /// The bytes before the files.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let head = canonical::encode(self);
        assert!(
            head.len() <= OUTPUT_HEAD_BYTES_MAX,
            "an output's head is short"
        );
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes
    }

    /// Reads the head from the beginning of a file; gives its length too: there the first file begins. Signatures and
    /// hashes are the reader's to check.
    ///
    /// # Errors
    /// Not an output, or one with more commands or files than allowed.
    pub fn read_head(bytes: &[u8]) -> Result<(Self, usize), BoincError> {
        let form = || BoincError::Form("output of a work unit");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(form)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(form)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > OUTPUT_HEAD_BYTES_MAX {
            return Err(BoincError::TooLong {
                what: "the output's head",
                bytes: length,
                max: OUTPUT_HEAD_BYTES_MAX,
            });
        }
        let head = rest.get(..length).ok_or_else(form)?;
        let output: Self =
            canonical::decode(head, OUTPUT_HEAD_BYTES_MAX).map_err(BoincError::Encoding)?;
        let is_bounded = output.commands.len() <= COMMANDS_MAX
            && output.files.len() <= FILES_MAX
            && is_unit_name(&output.unit);
        match is_bounded {
            true => Ok((output, MAGIC.len() + 4 + length)),
            false => Err(form()),
        }
    }

    /// Most bytes before the files.
    #[must_use]
    pub const fn head_bytes_max() -> usize {
        MAGIC.len() + 4 + OUTPUT_HEAD_BYTES_MAX
    }
}

fn is_unit_name(name: &str) -> bool {
    let is_allowed = |it: u8| it.is_ascii_alphanumeric() || it == b'-' || it == b'_';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command::Command, identity::KeyRole};

    fn unit() -> Unit {
        Unit {
            name: "e_12_0".into(),
            run: RunId(Hash([1; 32])),
            account: AccountId(SecretKey::from_entropy([2; 32]).public()),
            task: UnitTask::Enrol {
                sequence: 0,
                with_new_key: false,
            },
            takeovers: vec![],
            files: vec![UnitFile {
                open_name: "charter".into(),
                blob: BlobReference {
                    hash: Hash([3; 32]),
                    bytes: 12,
                },
            }],
        }
    }

    fn output() -> Output {
        let worker = SecretKey::from_entropy([4; 32]);
        let unit = unit();
        let leave = Command::Leave {
            reason: "for tests".into(),
        };
        Output {
            unit: unit.name,
            commands: vec![SignedCommand::sign(&worker, unit.run, 1, leave)],
            binding: Some(crate::identity::sign_half(
                &worker,
                unit.run,
                unit.account,
                worker.public(),
                KeyRole::Worker,
            )),
            evaluation: None,
            files: vec![],
        }
    }

    #[test]
    fn golden_bytes() {
        let hub = SecretKey::from_entropy([5; 32]);
        let sealed = unit().seal(&hub);
        expect_test::expect![[r#"{"name":"e_12_0","run":"0101010101010101010101010101010101010101010101010101010101010101","account":"8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394","task":{"enrol":{"sequence":0,"with_new_key":false}},"takeovers":[],"files":[{"open_name":"charter","blob":{"hash":"0303030303030303030303030303030303030303030303030303030303030303","bytes":12}}]}"#]].assert_eq(core::str::from_utf8(&sealed[96..]).unwrap());
        expect_test::expect!["6174686f6d6520626f696e6320310d0ad700000006655f31325f30010101010101010101010101010101010101010101010101010101010101010101ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c010209666f72207465737473bb250ebeaff4c574820c850a1d8acdb00b401f806090454aaf2e42a271f66dd7715524bf3c97e5115f9a909102245484e8303fcf1f1891e566866568a90be007013517dbdabe64c1ff8a5f899b1f444a7d5daff00975ee50a63519ae97127c98ef5c3095e12ca37af91db072d5f94a3a576edae2f9ac2a603be5daaaf7055fce090000"].assert_eq(&data_encoding::HEXLOWER.encode(&output().head()));
    }

    #[test]
    fn a_unit_reads_as_its_hub_sealed_it_and_in_no_other_way() {
        let hub = SecretKey::from_entropy([5; 32]);
        let sealed = unit().seal(&hub);
        assert_eq!(Unit::open(&sealed).unwrap(), (unit(), hub.public()));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(Unit::open(&changed).is_err(), "byte {at}");
            assert!(Unit::open(&sealed[..at]).is_err(), "cut at {at}");
        }
        assert!(Unit::open(&vec![0; UNIT_BYTES_MAX + 1]).is_err());
        let strange = Unit {
            name: "../x".into(),
            ..unit()
        };
        assert!(Unit::open(&strange.seal(&hub)).is_err());
    }

    #[test]
    fn an_output_says_where_its_files_begin() {
        let mut bytes = output().head();
        let length = bytes.len();
        bytes.extend_from_slice(b"files");
        assert_eq!(Output::read_head(&bytes).unwrap(), (output(), length));
        for at in 0..length {
            assert!(Output::read_head(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut long = output();
        long.commands = vec![long.commands[0].clone(); COMMANDS_MAX + 1];
        assert!(Output::read_head(&long.head()).is_err());
        let mut claims_much = bytes.clone();
        claims_much[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            Output::read_head(&claims_much),
            Err(BoincError::TooLong { .. })
        ));
    }
}
