//! Whether a hub's answer can be true of the run: sizes, counts and times that no honest hub of this charter names.
//!
//! A hub is not believed: blobs must hash to their names and the model to what the log says. What is checked here is what
//! would harm before a hash tells: an absurd size would empty the cache, an absurd time stand in the way of arithmetic.

use engine::update::{delta::delta_bytes_max, inner_start};
use network::text::printable;
use protocol::{api::Work, charter::Charter};

/// A checkpoint's file beside its parameters: names, shapes and metadata.
const CHECKPOINT_HEADER_BYTES_MAX: u64 = 16 << 20;
/// A deadline further away than so many windows is no round's.
const WINDOWS_MAX: u64 = 8;
/// And so much more, for runs with very short windows.
const DEADLINE_SLACK_MS: u64 = 60_000;
/// Slots of a round beyond what the charter names: some are assigned in excess.
const SLOTS_FACTOR: u64 = 4;
/// A sequence number is a time in milliseconds; this one lies 35 million years ahead.
const SEQUENCE_MAX: u64 = 1 << 60;
/// Deltas listed at most.
const DELTAS_MAX: usize = 65_536;
/// Longest sentence taken over from a hub.
const SENTENCE_CHARS_MAX: usize = 1_000;

/// What a charter bounds.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    checkpoint_bytes: u64,
    delta_bytes: u64,
    inner_start_bytes: u64,
    window_ms: u64,
    slots: u64,
}

impl Bounds {
    /// The bounds of a run; the charter has passed [`engine::charter::check`].
    pub(crate) fn of(charter: &Charter) -> Self {
        let config = engine::charter::model_config(&charter.model);
        let settings = engine::charter::merge_settings(&charter.outer).delta;
        let parameters = charter.model.parameter_count();
        let slots = u64::from(charter.round.slots_max);
        Self {
            checkpoint_bytes: parameters * 4 + CHECKPOINT_HEADER_BYTES_MAX,
            delta_bytes: delta_bytes_max(&config.layout().lengths(), &settings) as u64,
            inner_start_bytes: inner_start::bytes_of(config.parameter_count()) as u64,
            window_ms: charter.round.window_ms,
            slots: slots.saturating_mul(SLOTS_FACTOR).saturating_add(16),
        }
    }

    /// Makes an answer fit for use.
    ///
    /// # Errors
    /// What can't be true, for the owner of the machine.
    pub(crate) fn check(&self, work: &mut Work) -> Result<(), String> {
        let at_most = |what: &str, value: u64, limit: u64| {
            if value <= limit {
                return Ok(());
            }
            Err(format!(
                "the hub's answer can't be true: {what} is {value}, more than {limit}"
            ))
        };
        let model = &work.model;
        at_most(
            "a checkpoint's size",
            model.checkpoint_bytes,
            self.checkpoint_bytes,
        )?;
        at_most("a checkpoint's round", model.checkpoint_round, model.round)?;
        at_most(
            "the number of deltas",
            model.deltas.len() as u64,
            DELTAS_MAX as u64,
        )?;
        for delta in &model.deltas {
            at_most("a delta's size", delta.bytes, self.delta_bytes)?;
        }
        if let Some(start) = &work.inner_start {
            at_most(
                "the optimiser's state's size",
                start.bytes,
                self.inner_start_bytes,
            )?;
        }
        at_most(
            "this worker's sequence number",
            work.worker.sequence,
            SEQUENCE_MAX,
        )?;
        if let Some(assignment) = &work.assignment {
            let left = assignment.deadline_ms.saturating_sub(work.now_ms);
            at_most(
                "the time to a deadline in ms",
                left,
                self.window_ms
                    .saturating_mul(WINDOWS_MAX)
                    .saturating_add(DEADLINE_SLACK_MS),
            )?;
            at_most(
                "the number of slots",
                u64::from(assignment.slots),
                self.slots,
            )?;
        }
        if let Some(refusal) = &mut work.worker.last_refusal {
            *refusal = printable(refusal, SENTENCE_CHARS_MAX);
        }
        Ok(())
    }
}
