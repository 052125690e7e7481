//! Does an update again from public data, with the very code that workers run, and says whether it comes out the same.
//!
//! The log names everything that an update follows from: base, seed, samples, learning rates, and by hash what the worker
//! carried in. Only that carried state is the worker's own: it comes from the worker, or from doing its earlier updates
//! again since it last began afresh. On machines of one arithmetic class the bits are equal or the update is not what it
//! says (training reference, 1.5); on others they are alike ([`compare`]).

pub mod compare;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use engine::update::steps::StepLeaf;
use network::disk::RealDisk;
use protocol::{
    Hash,
    charter::Charter,
    sampling::assigned_shards,
    units::{RunId, WorkerId},
    update::UpdateHeader,
};

use crate::{
    carried::CarriedStore,
    ground::engine_trainer,
    machine::{self, Held, Machine, Newer, Task},
    shards::{self, Shards},
};

/// What the log says of an update and its round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What the worker committed to.
    pub header: UpdateHeader,
    /// Seed of the round's samples.
    pub seed: Hash,
    /// Slots when the round opened: the pace of the learning rate.
    pub slots: u32,
    /// The run's tokens when the round opened.
    pub tokens_before: u64,
}

/// A published merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Its round.
    pub round: u64,
    /// Hash of the parameters after it.
    pub after: Hash,
    /// The delta's bytes.
    pub delta: Bytes,
}

/// An update as it comes out here.
#[derive(Clone, Debug)]
pub struct Executed {
    /// What it says about itself.
    pub header: UpdateHeader,
    /// The update file.
    pub file: Bytes,
    /// The states after some of its inner steps, the last among them.
    pub leaves: Vec<StepLeaf>,
}

/// A machine that does other workers' updates again.
pub struct Auditor {
    charter: Arc<Charter>,
    run: RunId,
    machine: Machine,
    shards: Shards,
    /// States that came out of updates done here.
    states: CarriedStore,
}

impl Auditor {
    /// Allocates everything; `folder` takes the states between updates that are done one after the other.
    ///
    /// # Errors
    /// A charter beyond the engine's limits, or the disk.
    pub fn new(charter: Arc<Charter>, threads: usize, folder: &Path) -> Result<Self> {
        engine::charter::check(&charter)?;
        Ok(Self {
            run: charter.id(),
            machine: Machine::new(Arc::clone(&charter), engine_trainer(&charter, threads)),
            shards: Shards::default(),
            states: CarriedStore::open(Arc::new(RealDisk), folder.join("carried"))?,
            charter,
        })
    }

    /// Bytes that an auditor for this charter takes.
    #[must_use]
    pub fn memory_bytes(charter: &Charter) -> u64 {
        machine::memory_bytes(charter)
    }

    /// The model that is held: the round whose merge made it, and its hash.
    #[must_use]
    pub fn held(&self) -> Option<(u64, Hash)> {
        self.machine.held().map(|it| (it.round, it.parameters))
    }

    /// Takes a whole checkpoint as the model.
    ///
    /// # Errors
    /// Bytes that are none of this model.
    pub fn load_checkpoint(&mut self, round: u64, safetensors: &[u8]) -> Result<()> {
        self.machine.load_checkpoint(round, safetensors)
    }

    /// Applies a published delta to the model.
    ///
    /// # Errors
    /// A delta that does not decode, or gives another model than it should; then no model is held.
    pub fn apply(&mut self, merge: &Merge) -> Result<()> {
        let applied = self
            .machine
            .apply_delta(merge.round, &merge.delta, merge.after);
        applied.map(drop)
    }

    /// The training shards of an update that are not here yet, by their place in the charter.
    #[must_use]
    pub fn missing_shards(&self, case: &Case) -> Vec<u32> {
        let mut shards = self.assigned(case);
        shards.retain(|it| !self.shards.contains(*it));
        shards
    }

    /// Takes a training shard's bytes.
    ///
    /// # Errors
    /// They are not what the charter says of this shard.
    pub fn add_shard(&mut self, shard: u32, bytes: &[u8]) -> Result<()> {
        let tokens = shards::decode(&self.charter, shard, bytes)?;
        self.shards.insert(shard, tokens);
        Ok(())
    }

    /// Begins without error feedback, from published moments (their hash and bytes) or zeros.
    ///
    /// # Errors
    /// The bytes are no moments of this model.
    pub fn begin_fresh(&mut self, published: Option<(Hash, Vec<u8>)>) -> Result<()> {
        self.machine.begin_fresh(published)
    }

    /// Goes on from a state that an update done here left; false if there is none of this hash.
    ///
    /// # Errors
    /// The disk.
    pub fn continue_from(&mut self, state: Hash) -> Result<bool> {
        self.machine.continue_from(state, &self.states)
    }

    /// Goes on from a state that a worker keeps in its folder of carried states; false if it is not there.
    ///
    /// # Errors
    /// The disk.
    pub fn continue_from_folder(&mut self, state: Hash, folder: &Path) -> Result<bool> {
        self.machine.continue_from(
            state,
            &CarriedStore::existing(Arc::new(RealDisk), folder.to_owned()),
        )
    }

    /// Does an update again; blocks while it computes. The machine holds the model that it began from and what it carried in; `newer` are the merges
    /// that it took up after [`UpdateHeader::head_start_steps`]. States that it leaves can be gone on from.
    ///
    /// # Errors
    /// Training that diverges, a delta that does not fit, or the disk.
    pub async fn execute(&mut self, case: &Case, newer: &[Merge]) -> Result<Executed> {
        let header = &case.header;
        ensure!(header.run == self.run, "the update is of another run");
        ensure!(
            self.missing_shards(case).is_empty(),
            "the update's data shards are not here"
        );
        let task = self.task(case)?;
        self.shards.trim(&self.assigned(case));
        let head_start = header.head_start_steps;
        let newer = |steps: u32| match steps == head_start {
            true => newer.iter().map(Newer::from).collect(),
            false => Vec::new(),
        };
        let trained = self
            .machine
            .train(&task, &self.shards, newer, |steps, _| steps < header.steps)
            .await?;
        let sealed = self.machine.seal(&task, &trained, &self.states)?;
        Ok(Executed {
            header: sealed.header,
            file: sealed.file,
            leaves: trained.leaves,
        })
    }

    /// Keeps only these states on the disk.
    ///
    /// # Errors
    /// The disk.
    pub fn keep_only(&self, states: &[Hash]) -> Result<()> {
        self.states.keep_only(states)
    }

    fn task(&self, case: &Case) -> Result<Task> {
        let header = &case.header;
        let base: Held = self.machine.held().context("no model is held")?;
        let carried = self.machine.carried().context("nothing is carried in")?;
        Ok(Task {
            run: header.run,
            worker: header.worker,
            round: header.round,
            slot: header.slot,
            slots: case.slots,
            seed: case.seed,
            tokens_before: case.tokens_before,
            base,
            carried,
            publish_inner_state: header.inner_state.is_some(),
        })
    }

    fn assigned(&self, case: &Case) -> Vec<u32> {
        let worker: WorkerId = case.header.worker;
        assigned_shards(&self.charter, &case.seed, &worker)
    }
}

impl From<&Merge> for Newer {
    fn from(merge: &Merge) -> Self {
        Self {
            round: merge.round,
            after: merge.after,
            delta: merge.delta.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
