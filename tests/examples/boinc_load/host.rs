//! A host of the load: what it knows, and the results that its application would make. Its worker's key signs as any other.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use data_encoding::HEXLOWER;
use md5::{Digest, Md5};
use protocol::{
    Hash, SecretKey,
    boinc::{Output, TrainingTask, Unit, UnitTask},
    charter::Charter,
    command::{Command, Commitment, Device, SignedCommand},
    identity::{KeyRole, sign_half},
    units::{BlobReference, WorkerId},
    update::UpdateHeader,
};

use super::wire::{Done, Given};

/// Bytes of an update: one of the small model of the tests has as many.
const UPDATE_BYTES: usize = 4_000;

/// An account, as its hosts know it.
pub(super) struct Account {
    pub(super) authenticator: String,
}

pub(super) struct Host {
    pub(super) account: Rc<Account>,
    /// The address that it asks from.
    pub(super) address: String,
    pub(super) cpid: String,
    /// 0 before the first reply.
    pub(super) id: u64,
    pub(super) sequence: u64,
    pub(super) code_sign_key: String,
    pub(super) cross_id: String,
    pub(super) files: Vec<(String, u64)>,
    /// The task that it has, and what its signed file says.
    pub(super) given: Option<(Given, Unit)>,
    pub(super) done: Option<Done>,
    /// Steps that its application told of.
    pub(super) steps: u32,
    key: SecretKey,
}

impl Host {
    /// The host of this number, never seen before.
    pub(super) fn new(number: usize, account: Rc<Account>) -> Self {
        let mut entropy = [0xB0; 32];
        entropy[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let [_, second, third, fourth] = (number as u32).to_be_bytes();
        Self {
            account,
            address: format!("10.{second}.{third}.{fourth}"),
            cpid: md5(format!("host {number}").as_bytes()),
            id: 0,
            sequence: 0,
            code_sign_key: String::new(),
            cross_id: String::new(),
            files: Vec::new(),
            given: None,
            done: None,
            steps: 0,
            key: SecretKey::from_entropy(entropy),
        }
    }

    /// Notes the signed file of the task that it was given: nothing else is believed of a reply.
    pub(super) fn take(&mut self, given: Given, sealed: &[u8]) -> Result<()> {
        ensure!(
            Hash::of_blob(sealed).to_string() == given.file,
            "a unit's file is another than its name says"
        );
        let (unit, _) = Unit::open(sealed)?;
        ensure!(unit.name == given.name, "a unit has two names");
        for file in &unit.files {
            let held = (file.blob.hash.to_string(), file.blob.bytes);
            if !self.files.contains(&held) {
                self.files.push(held);
            }
        }
        self.given = Some((given, unit));
        Ok(())
    }

    /// The name of its task.
    pub(super) fn held(&self) -> Option<&str> {
        self.given.as_ref().map(|it| it.0.name.as_str())
    }

    /// Does its task: the result, and the task is to be reported.
    pub(super) fn finish(&mut self, charter: &Charter) -> Result<(Given, String, Vec<u8>)> {
        let (given, unit) = self.given.take().context("the host has no task")?;
        let bytes = match &unit.task {
            UnitTask::Enrol { .. } => self.enrolled(&unit),
            UnitTask::Train(task) => self.trained(&unit, task, charter)?,
            UnitTask::Evaluate(_) => anyhow::bail!("this load measures no model"),
        };
        let sum = md5(&bytes);
        self.done = Some(Done {
            name: unit.name,
            bytes: bytes.len(),
            bytes_max: given.bytes_max,
            md5: sum.clone(),
        });
        Ok((given, sum, bytes))
    }

    fn enrolled(&self, unit: &Unit) -> Vec<u8> {
        let join = Command::Join {
            name: format!("host-{}", self.id),
            device: Device {
                arithmetic: "none".into(),
                threads: 1,
                memory_mib: 100,
                tokens_per_s: 1_000_000,
            },
        };
        let (run, public) = (unit.run, self.key.public());
        Output {
            unit: unit.name.clone(),
            commands: vec![SignedCommand::sign(&self.key, run, 1, join)],
            binding: Some(sign_half(
                &self.key,
                run,
                unit.account,
                public,
                KeyRole::Worker,
            )),
            evaluation: None,
            files: vec![],
        }
        .head()
    }

    /// An update whose bytes are those that it commits to. They decode to nothing: the hub judges them and says so.
    fn trained(&self, unit: &Unit, task: &TrainingTask, charter: &Charter) -> Result<Vec<u8>> {
        let (work, public) = (&task.work, self.key.public());
        ensure!(task.worker == public, "the unit is another worker's");
        let assignment = work.assignment.as_ref().context("no assignment")?;
        let mut bytes = vec![0xA5; UPDATE_BYTES];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        let update = BlobReference::of(&bytes);
        let header = UpdateHeader {
            payload: update.hash,
            ..tests::stranger::header(unit.run, WorkerId(public), charter, work, assignment)?
        };
        let commit = Command::Commit(Box::new(Commitment { update, header }));
        let sequence = work.worker.sequence + 1;
        let output = Output {
            unit: unit.name.clone(),
            commands: vec![SignedCommand::sign(&self.key, unit.run, sequence, commit)],
            binding: None,
            evaluation: None,
            files: vec![update],
        };
        Ok([output.head(), bytes].concat())
    }
}

/// MD5 in hexadecimal.
pub(super) fn md5(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Md5::digest(bytes))
}
