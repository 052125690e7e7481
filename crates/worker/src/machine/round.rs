//! A round's work and its end: the assignment, the update, and what is carried out of the round.

use anyhow::{Context, Result};
use bytes::Bytes;
use engine::update::{
    carried::{CarriedState, Moments},
    codec,
    decoded::DecodedUpdate,
    feedback, inner_start, leaves,
    steps::StepLeaf,
};
use protocol::{
    Hash,
    charter::Codec,
    command::Commitment,
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};

use super::{Carried, Held, Machine};
use crate::carried::CarriedStore;

/// An assignment, and what its update names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    /// The run.
    pub(crate) run: RunId,
    /// This worker.
    pub(crate) worker: WorkerId,
    /// The round.
    pub(crate) round: u64,
    /// The slot.
    pub(crate) slot: u32,
    /// Slots when the round opened.
    pub(crate) slots: u32,
    /// Seed of the samples.
    pub(crate) seed: Hash,
    /// Tokens before the round, accepted or waiting for their merge.
    pub(crate) tokens_before: u64,
    /// The model to start from, which the machine holds: the newest when the round opened, or a newer one.
    pub(crate) base: Held,
    /// What is carried in; the machine holds it, or held it when training began.
    pub(crate) carried: Carried,
    /// Whether the optimiser's m and v are published beside the update.
    pub(crate) publish_inner_state: bool,
}

/// What the inner steps came to.
#[derive(Clone, Debug)]
pub(crate) struct Trained {
    /// Steps done.
    pub(crate) steps: u32,
    /// Steps of those from before a newer model was taken up.
    pub(super) head_start_steps: u32,
    pub(super) loss_sum: f64,
    /// The states that the update commits to, the last among them.
    pub(crate) leaves: Vec<StepLeaf>,
}

/// An update, ready to be committed to; both states that may follow are on disk.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    /// What the update says about itself.
    pub(crate) header: UpdateHeader,
    /// The update file.
    pub(crate) file: Bytes,
    /// The file's name.
    pub(crate) reference: BlobReference,
    /// The published m and v, if the run warms up; the header names them.
    pub(crate) inner_state: Option<Bytes>,
}

/// A trained round's end, in memory until both states that may follow it are on disk.
pub(crate) struct Ending {
    payload: Vec<u8>,
    /// What the error feedback loses by a merge; the dense codec has none.
    sent: Option<DecodedUpdate>,
    /// At first the state after a refusal, then the one after a merge: both at once would take another copy of the model.
    state: CarriedState,
    if_refused: Hash,
    is_written_if_refused: bool,
    after: Option<Hash>,
    steps_root: Hash,
}

impl Ending {
    /// Writes what is not written yet; to be called again after an error.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn write(&mut self, store: &CarriedStore) -> Result<()> {
        if !self.is_written_if_refused {
            store.write(&self.if_refused, &self.if_refused, &self.state)?;
            self.is_written_if_refused = true;
        }
        if let Some(sent) = self.sent.take() {
            feedback::subtract_decoded(&mut self.state.error, &sent);
        }
        let after = *self.after.get_or_insert_with(|| Hash(self.state.hash()));
        store.write(&after, &self.if_refused, &self.state)
    }
}

impl Machine {
    /// Writes the update of a trained round and both states that may follow it. The machine then carries the state
    /// after a merge.
    ///
    /// # Errors
    /// Parameters that are not finite, or the disk.
    pub(crate) fn seal(
        &mut self,
        task: &Task,
        trained: &Trained,
        store: &CarriedStore,
    ) -> Result<Sealed> {
        let mut ending = self.end_round(trained)?;
        ending.write(store)?;
        self.seal_ended(task, trained, ending, store)
    }

    /// The first third of [`Self::seal`]: what a trained round comes to, in memory. Until the last third, or after a round
    /// that does not come so far, what is carried is to be restored by [`Machine::continue_from`] or
    /// [`Machine::begin_fresh`].
    ///
    /// # Errors
    /// Parameters that are not finite.
    pub(crate) fn end_round(&mut self, trained: &Trained) -> Result<Ending> {
        assert!(self.carried.is_none(), "a round was trained");
        self.accumulate();
        let payload = codec::encode(&self.lengths, &self.settings, &self.error)
            .context("writing the update")?;
        let sent = codec::decode(&payload, &self.lengths, &self.settings)
            .expect("what was just written can be read");
        let mut state = self.take_state();
        if matches!(self.charter.outer.codec, Codec::Dense { .. }) {
            // This codec has no error feedback: a zero says the same everywhere.
            state.error.fill(0.0);
        }
        let is_sparse = matches!(self.charter.outer.codec, Codec::Sparse { .. });
        Ok(Ending {
            payload,
            sent: is_sparse.then_some(sent),
            if_refused: Hash(state.hash()),
            is_written_if_refused: false,
            after: None,
            state,
            steps_root: Hash(leaves::root(&trained.leaves)),
        })
    }

    /// The last third of [`Self::seal`]: the update of a round whose states are written.
    ///
    /// # Errors
    /// No model is held.
    pub(crate) fn seal_ended(
        &mut self,
        task: &Task,
        trained: &Trained,
        ending: Ending,
        store: &CarriedStore,
    ) -> Result<Sealed> {
        let after = ending.after.expect("both states are written");
        let (if_refused, payload) = (ending.if_refused, ending.payload);
        let base = self.held.context("no model is held")?;
        self.error = ending.state.error;
        self.carried = Some(Carried::State(after));
        let inner_state = task.publish_inner_state.then(|| {
            let inner = self.trainer.inner_state();
            inner_start::to_bytes(inner.step, &inner.m, &inner.v)
        });
        store.keep_leaves(task.round, &ending.steps_root, &trained.leaves);
        let header = UpdateHeader {
            run: task.run,
            worker: task.worker,
            round: task.round,
            slot: task.slot,
            base_round: base.round,
            base: base.parameters,
            steps: trained.steps,
            head_start_steps: trained.head_start_steps,
            tokens: u64::from(trained.steps) * self.charter.tokens_per_step(),
            loss_micronats: trained.loss_micronats(),
            carried_before: task.carried.hash(),
            carried_after: after,
            carried_if_refused: if_refused,
            steps_root: ending.steps_root,
            payload: Hash::of_blob(&payload),
            inner_state: inner_state.as_deref().map(BlobReference::of),
        };
        let file = update::seal(&header, &payload);
        Ok(Sealed {
            header,
            reference: BlobReference::of(&file),
            file: file.into(),
            inner_state: inner_state.map(Bytes::from),
        })
    }

    /// Goes over to the error feedback of the state of this hash, in the middle of a round: the last update turned out
    /// refused, and its work is still to be sent. False if the state is not in the store.
    pub(crate) fn take_error_of(&mut self, wanted: Hash, store: &CarriedStore) -> Result<bool> {
        let state = store.read(&wanted, self.base.len())?;
        let is_here = state.is_some();
        if let Some(state) = state {
            self.error = state.error;
        }
        Ok(is_here)
    }

    /// `error ← decay · error + (base − trained)`.
    pub(super) fn accumulate(&mut self) {
        let decay = engine::charter::error_decay(&self.charter.outer);
        feedback::accumulate(
            &mut self.error,
            &self.base,
            self.trainer.parameters(),
            decay,
        );
    }

    /// The error is moved out, the moments are copied.
    fn take_state(&mut self) -> CarriedState {
        let inner = self.trainer.inner_state();
        let carries = self.charter.inner.carry_inner_state;
        CarriedState {
            step: if carries { inner.step } else { 0 },
            moments: carries.then(|| Moments {
                first: inner.m.clone(),
                second: inner.v.clone(),
            }),
            error: std::mem::take(&mut self.error),
        }
    }
}

impl Sealed {
    /// What is committed to.
    pub(crate) fn commitment(&self) -> Commitment {
        Commitment {
            update: self.reference,
            header: self.header.clone(),
        }
    }

    /// What is uploaded, by hash: the smaller file first.
    pub(crate) fn files(&self) -> Vec<(Hash, Bytes)> {
        let update = (self.reference.hash, self.file.clone());
        let named = self.header.inner_state.map(|it| it.hash);
        let inner = named.zip(self.inner_state.clone());
        std::iter::once(update).chain(inner).collect()
    }
}

impl Trained {
    fn loss_micronats(&self) -> u64 {
        let mean = self.loss_sum / f64::from(self.steps.max(1));
        (mean * 1e6).round().max(0.0) as u64
    }
}
