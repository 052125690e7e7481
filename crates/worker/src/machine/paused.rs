//! A round in the middle of its steps, on disk: whoever is stopped goes on from there, and comes to the same bits.
//!
//! Magic `AHwr`, version 1, length of the head (`u32`), head (canonical encoding), parameters, m, v (`f32`), BLAKE3 of all
//! that; numbers little-endian. What is not whole, or of another task, is a round that was not begun.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use engine::{
    train::{InnerState, StepReport},
    update::{
        carried::{values_of_bytes, values_to_bytes},
        steps::StepLeaf,
    },
};
use network::disk::Disk;
use protocol::{Hash, canonical};
use serde::{Deserialize, Serialize};

use super::{Carried, Machine, Progress, Task};

const MAGIC: &[u8; 5] = b"AHwr\x01";
const HASH_BYTES: u64 = 32;
/// Longest head: a round's leaves.
const HEAD_BYTES_MAX: usize = 64 << 20;
/// Bytes read at once.
const BLOCK_BYTES: usize = 1 << 16;
const TASK_DOMAIN: &str = "AI@home 2026 paused round v1";

/// Where a round is kept while it pauses.
#[derive(Clone, Debug)]
pub(crate) struct PausedRound {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Head {
    task: Hash,
    trained_ms: u64,
    steps: u32,
    head_start_steps: u32,
    loss_bits: Option<u32>,
    loss_sum_bits: u64,
    inner_step: u64,
    values: u64,
    open_leaf: Option<(Vec<u64>, u32, u32)>,
    leaves: Vec<StepLeaf>,
}

impl PausedRound {
    /// In this file, which need not be there.
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path }
    }

    /// Keeps a round that has trained for so long, in place of what was kept before.
    ///
    /// # Errors
    /// The disk's; then what was kept before is still here.
    pub(crate) fn write(
        &self,
        machine: &Machine,
        task: &Task,
        progress: &Progress,
        trained_ms: u64,
    ) -> Result<()> {
        let inner = machine.trainer.inner_state();
        let parameters = machine.trainer.parameters();
        let open_leaf = progress.open_leaf.as_ref();
        let head = canonical::encode(&Head {
            task: name_of(task),
            trained_ms,
            steps: progress.steps,
            head_start_steps: progress.head_start_steps,
            loss_bits: progress.loss.map(f32::to_bits),
            loss_sum_bits: progress.loss_sum.to_bits(),
            inner_step: inner.step,
            values: parameters.len() as u64,
            open_leaf: open_leaf.map(|(samples, report)| {
                let bits = (report.loss.to_bits(), report.gradient_norm.to_bits());
                (samples.clone(), bits.0, bits.1)
            }),
            leaves: progress.leaves.clone(),
        });
        let content = &mut |file: &mut dyn Write| -> io::Result<()> {
            let mut hasher = blake3::Hasher::new();
            let mut put = |bytes: &[u8]| {
                hasher.update(bytes);
                file.write_all(bytes)
            };
            put(MAGIC)?;
            put(&(head.len() as u32).to_le_bytes())?;
            put(&head)?;
            for values in [parameters, &inner.m, &inner.v] {
                values_to_bytes(values, &mut put)?;
            }
            file.write_all(hasher.finalize().as_bytes())
        };
        let disk = &*self.disk;
        let fresh = self.path.with_extension("new");
        let written = disk
            .write(&fresh, content)
            .and_then(|()| disk.sync(&fresh))
            .and_then(|()| disk.rename(&fresh, &self.path));
        if written.is_err() {
            let _ = disk.remove(&fresh);
        }
        written.with_context(|| format!("writing {}", self.path.display()))
    }

    /// Takes up a round of which [`Machine::begin_round`] was called: what was done of it, and how long it had trained;
    /// `None`, and nothing has changed, if none of this task is here whole.
    ///
    /// # Errors
    /// The disk's, while it is read; the machine is then to begin the round anew.
    pub(crate) fn read(
        &self,
        machine: &mut Machine,
        task: &Task,
    ) -> Result<Option<(Progress, u64)>> {
        let reading = || format!("reading {}", self.path.display());
        let length = match self.disk.length(&self.path) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(reading),
        };
        if !self.is_whole(length).with_context(reading)? {
            tracing::warn!("the checkpoint of this round is torn: the round begins anew");
            return Ok(None);
        }
        let mut file = BufReader::new(fs::File::open(&self.path).with_context(reading)?);
        let Some(head) = read_head(&mut file).with_context(reading)? else {
            return Ok(None);
        };
        let values = machine.base.len();
        if head.task != name_of(task) || head.values != values as u64 {
            tracing::warn!("the checkpoint is of another round: this one begins anew");
            return Ok(None);
        }
        read_values(&mut file, machine.trainer.parameters_mut()).with_context(reading)?;
        let mut inner = InnerState::zeroed(values);
        inner.step = head.inner_step;
        read_values(&mut file, &mut inner.m).with_context(reading)?;
        read_values(&mut file, &mut inner.v).with_context(reading)?;
        machine.trainer.set_inner_state(inner);
        let progress = Progress {
            steps: head.steps,
            loss: head.loss_bits.map(f32::from_bits),
            head_start_steps: head.head_start_steps,
            loss_sum: f64::from_bits(head.loss_sum_bits),
            leaves: head.leaves,
            // Of this process alone.
            stepping: Duration::ZERO,
            open_leaf: head.open_leaf.map(|(samples, loss, norm)| {
                let report = StepReport {
                    loss: f32::from_bits(loss),
                    gradient_norm: f32::from_bits(norm),
                };
                (samples, report)
            }),
        };
        Ok(Some((progress, head.trained_ms)))
    }

    /// Whether the file ends with the hash of what comes before.
    fn is_whole(&self, length: u64) -> io::Result<bool> {
        let Some(hashed) = length.checked_sub(HASH_BYTES) else {
            return Ok(false);
        };
        let mut file = fs::File::open(&self.path)?;
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut (&mut file).take(hashed), &mut hasher)?;
        let mut expected = [0; HASH_BYTES as usize];
        file.read_exact(&mut expected)?;
        Ok(hasher.finalize() == expected)
    }
}

/// Everything that a round's bits follow from, by hash.
fn name_of(task: &Task) -> Hash {
    let start = match task.carried {
        Carried::Fresh(start) => start,
        Carried::State(_) => None,
    };
    let place = (task.run, task.worker, task.round, task.slot, task.slots);
    let from = (task.seed, task.tokens_before, task.base.round);
    let state = (task.base.parameters, task.carried.hash(), start);
    Hash::in_domain(TASK_DOMAIN, &canonical::encode(&(place, from, state)))
}

fn read_head(file: &mut impl Read) -> io::Result<Option<Head>> {
    let mut begin = [0; MAGIC.len() + 4];
    file.read_exact(&mut begin)?;
    let (magic, length) = begin.split_at(MAGIC.len());
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if magic != MAGIC || length > HEAD_BYTES_MAX {
        return Ok(None);
    }
    let mut head = vec![0; length];
    file.read_exact(&mut head)?;
    Ok(canonical::decode(&head, HEAD_BYTES_MAX).ok())
}

fn read_values(file: &mut impl Read, values: &mut [f32]) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    for part in values.chunks_mut(BLOCK_BYTES / 4) {
        let bytes = &mut block[..part.len() * 4];
        file.read_exact(bytes)?;
        part.copy_from_slice(&values_of_bytes(bytes));
    }
    Ok(())
}
