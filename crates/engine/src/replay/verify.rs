//! Checks a whole run: every entry of its log, every update that counts, every merge, every stored model.
//!
//! [`Verifier`] folds a log that it does not trust and recomputes what the log says was computed. What does not hold is
//! a [`Finding`], what could not be looked at is [`Unchecked`]; neither stops it, unless the log itself breaks. After a
//! merge that can't be recomputed it goes on from the next stored checkpoint, which must hash to what the log names.
//!
//! Memory: one model, the updates of the rounds in progress, one blob. It never writes, and trusts no source of blobs.

mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::{
    Hash,
    command::Commitment,
    event::{Checkpoint, Event, MergedUpdate, ModelState, RefusalReason},
    log::Entry,
    state::{Shown, State, apply::ApplyError, late::LateUpdates},
    units::{BlobReference, WorkerId},
};
use thiserror::Error;

pub use report::{Finding, LISTED_MAX, Report, Unchecked};

use super::{
    Rules, RunModel,
    copies::Compared,
    proportion::{Measured, Standings},
};
use crate::{
    charter::CharterSettingsError,
    checkpoint, initial_parameters,
    update::{decoded::DecodedUpdate, merge::Weighted, outer::OuterState},
};

/// Newest models kept by hash, for checkpoints that are stored when the run has gone on.
const STATES_KEPT: usize = 64;
/// What is compared of late updates at once takes so much memory, whatever a log says.
const COMPARED_BYTES_MAX: usize = 256 << 20;

/// Where blobs are read: a folder, a hub, a mirror.
pub trait Blobs {
    /// The bytes under this name, `None` if there are none. They need not be checked: the verifier does.
    ///
    /// # Errors
    /// In words, why bytes that are there can't be read.
    fn read(&mut self, blob: &BlobReference) -> Result<Option<Vec<u8>>, String>;
}

/// Why a log can't be followed at all, or no further.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// An entry that can't stand where it stands.
    #[error(transparent)]
    Log(#[from] ApplyError),
    /// The charter is beyond this engine.
    #[error("this engine can't recompute the run")]
    Charter(#[from] CharterSettingsError),
}

/// An update that counts in a merge to come.
struct Accepted {
    /// Position of the entry that accepted it.
    entry: u64,
    /// `None` if the bytes don't hold, or aren't there.
    update: Option<DecodedUpdate>,
    hash: Hash,
    worker: WorkerId,
    tokens: u64,
}

/// What the hub said of an update.
struct Verdict {
    /// Position of the entry that says it.
    entry: u64,
    /// Round and slot.
    slot: (u64, u32),
    commitment: Commitment,
    /// `None` if it was accepted.
    refused: Option<RefusalReason>,
    /// It, if it is late and refused, and what it may be a copy of.
    late: LateUpdates,
}

/// A refusal of the log.
struct Refused<'a> {
    /// Round and slot.
    slot: (u64, u32),
    commitment: &'a Commitment,
    reason: &'a RefusalReason,
    /// It, if it is late, and what it may be a copy of.
    late: &'a LateUpdates,
}

/// A verification under way.
pub struct Verifier {
    state: State,
    rules: Rules,
    /// `None` while it can't be known.
    model: Option<RunModel>,
    /// The newest models as the log names them.
    states: VecDeque<ModelState>,
    /// Verdicts on updates of the round that takes commitments: their bytes are private until it takes no more.
    private: Vec<Verdict>,
    /// Accepted updates that wait for their merge, by round and slot.
    accepted: BTreeMap<(u64, u32), Accepted>,
    /// What everyone's word weighs, as of the last merge.
    standings: Standings,
    /// Slots of a round whose norm the hub may refuse, while it does.
    outliers: Option<(u64, BTreeSet<u32>)>,
    report: Report,
}

impl Verifier {
    /// Begins with a log's first entry and the model that it names.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn begin(entry: &Entry, blobs: &mut dyn Blobs) -> Result<Self, VerifyError> {
        let state = State::create(entry)?;
        let rules = Rules::new(&state.charter)?;
        let mut verifier = Self {
            states: VecDeque::from([state.model]),
            state,
            rules,
            model: None,
            private: Vec::new(),
            accepted: BTreeMap::new(),
            standings: Standings::default(),
            outliers: None,
            report: Report {
                entries: 1,
                ..Report::default()
            },
        };
        let (_, stored) = verifier.state.checkpoint;
        verifier.take_checkpoint(0, verifier.state.model, &stored, blobs);
        verifier.check_first_model();
        Ok(verifier)
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// The entry can't follow; the verifier stands where it stood and nothing after the entry can be checked.
    pub fn next(&mut self, entry: &Entry, blobs: &mut dyn Blobs) -> Result<(), VerifyError> {
        let judged = self.judged(&entry.event);
        let mut late = self.late(&entry.event);
        self.state.apply(entry)?;
        self.report.entries += 1;
        match &entry.event {
            Event::UpdateAccepted { .. } | Event::UpdateRefused { .. } => {
                if let Some((slot, commitment)) = judged {
                    let refused = match &entry.event {
                        Event::UpdateRefused { reason, .. } => Some(reason.clone()),
                        _ => None,
                    };
                    late.late.retain(|it| it.0 == slot.1);
                    let verdict = Verdict {
                        entry: entry.index,
                        slot,
                        commitment,
                        refused,
                        late,
                    };
                    let training = self.state.training.as_ref().map(|it| it.round);
                    if training == Some(slot.0) {
                        self.private.push(verdict);
                    } else {
                        self.verdict(verdict, blobs);
                    }
                }
            }
            Event::CommitmentsClosed { .. } => {
                for verdict in std::mem::take(&mut self.private) {
                    self.verdict(verdict, blobs);
                }
            }
            Event::RoundMerged {
                round,
                rate_q16,
                updates,
                delta,
                model,
            } => {
                self.outliers = None;
                self.fetch(
                    entry.index,
                    delta,
                    &format!("the delta of round {round}"),
                    blobs,
                );
                self.check_late(entry.index, *round, &late, blobs);
                self.merge(entry.index, *rate_q16, updates, delta, model);
            }
            Event::RoundEmpty { round } => self.accepted.retain(|(of, _), _| of != round),
            Event::CheckpointPublished { round, checkpoint } => {
                self.checkpoint(entry.index, *round, checkpoint, blobs);
            }
            Event::ModelEvaluated { .. } => self.report.evaluations += 1,
            Event::SampleDrawn { .. } => self.report.samples += 1,
            Event::RunCreated { .. }
            | Event::WorkerJoined { .. }
            | Event::WorkerLeft { .. }
            | Event::IdentityBound { .. }
            | Event::RoundOpened { .. }
            | Event::SlotAdded { .. }
            | Event::UpdateCommitted { .. }
            | Event::HubReplaced { .. }
            | Event::RoundExtended { .. }
            | Event::UpdateDeferred { .. }
            | Event::RunFinished { .. } => {}
        }
        Ok(())
    }

    /// Looks at what the log's last round has got so far, after the last entry: a hub does not give it out, a folder has it.
    pub fn end(&mut self, blobs: &mut dyn Blobs) {
        for verdict in std::mem::take(&mut self.private) {
            let commitment = &verdict.commitment;
            let mut named = [Some(commitment.update), commitment.header.inner_state]
                .into_iter()
                .flatten();
            if named.all(|it| !matches!(blobs.read(&it), Ok(None))) {
                self.verdict(verdict, blobs);
            } else {
                self.report.private += 1;
            }
        }
    }

    /// The run as it stands after the last entry.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest model, if it could be recomputed.
    pub fn model(&self) -> Option<&RunModel> {
        self.model.as_ref()
    }

    /// What the charter means.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Adds a finding of the caller's own: about the charter's data, or about the log's end.
    pub fn add_finding(&mut self, finding: Finding) {
        self.report.add_finding(finding);
    }

    /// Adds something that the caller left out.
    pub fn add_unchecked(&mut self, unchecked: Unchecked) {
        self.report.add_unchecked(unchecked);
    }

    /// A blob that hashes to its name; if it does not or is not there, that is in the report.
    pub fn fetch(
        &mut self,
        entry: u64,
        blob: &BlobReference,
        what: &str,
        blobs: &mut dyn Blobs,
    ) -> Option<Vec<u8>> {
        self.report.fetch(entry, blob, what, blobs)
    }

    /// What was found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Looks at the bytes that a verdict is about.
    fn verdict(&mut self, verdict: Verdict, blobs: &mut dyn Blobs) {
        let Verdict {
            entry,
            slot,
            commitment,
            refused,
            late,
        } = &verdict;
        if let Some(reason) = refused {
            let refused = Refused {
                slot: *slot,
                commitment,
                reason,
                late,
            };
            self.refuse(*entry, &refused, blobs);
            return;
        }
        self.outliers = None;
        let accepted = Accepted {
            entry: *entry,
            update: self.accept(*entry, commitment, blobs),
            hash: commitment.update.hash,
            worker: commitment.header.worker,
            tokens: commitment.header.tokens,
        };
        self.accepted.insert(*slot, accepted);
    }

    /// The round, slot and commitment that a verdict is about, before it is folded.
    fn judged(&self, event: &Event) -> Option<((u64, u32), Commitment)> {
        let (Event::UpdateAccepted { round, slot, .. } | Event::UpdateRefused { round, slot, .. }) =
            event
        else {
            return None;
        };
        let open = self.state.round_in_progress(*round)?;
        let part = open.slots().get(*slot as usize)?;
        Some(((*round, *slot), part.commitment()?.clone()))
    }

    /// The late updates of the round that an event merges, or refuses one of, and what they may be copies of; before it is
    /// folded.
    fn late(&self, event: &Event) -> LateUpdates {
        let round = match event {
            Event::RoundMerged { round, .. }
            | Event::UpdateRefused {
                round,
                reason: RefusalReason::Copied(_),
                ..
            } => self.state.round_in_progress(*round),
            _ => None,
        };
        round.map_or_else(LateUpdates::default, |it| self.state.late_updates(it))
    }

    /// The late updates of a round that are copies, by slot; those whose bytes don't show it are not among them.
    fn copies(
        &mut self,
        entry: u64,
        round: u64,
        late: &LateUpdates,
        blobs: &mut dyn Blobs,
    ) -> BTreeMap<u32, RefusalReason> {
        let (mut copies, mut compared, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
        for (slot, shown) in &late.late {
            let Some(accepted) = self.accepted.get(&(round, *slot)) else {
                continue;
            };
            let Some(update) = &accepted.update else {
                continue;
            };
            let of_one = Compared::of(&accepted.hash, update);
            bytes += of_one.memory_bytes();
            compared.push((*slot, *shown, of_one));
            if bytes >= COMPARED_BYTES_MAX {
                let full = std::mem::take(&mut compared);
                self.copies_among(entry, &full, &late.shown, blobs, &mut copies);
                bytes = 0;
            }
        }
        self.copies_among(entry, &compared, &late.shown, blobs, &mut copies);
        copies
    }

    /// Compares late updates with all that were shown, each of which is read once, however many are late.
    fn copies_among(
        &mut self,
        entry: u64,
        late: &[(u32, Shown, Compared)],
        shown: &[Shown],
        blobs: &mut dyn Blobs,
        copies: &mut BTreeMap<u32, RefusalReason>,
    ) {
        for other in shown {
            let left: Vec<_> = late
                .iter()
                .filter(|(slot, it, _)| !copies.contains_key(slot) && it.may_be_copy_of(other))
                .collect();
            if left.is_empty() {
                continue;
            }
            let what = "an update that a late one is compared with";
            let bytes = self
                .report
                .fetch_if_there(entry, &other.update, what, blobs);
            let Some(Ok((_, payload))) = bytes.as_deref().map(protocol::update::open) else {
                continue;
            };
            let Ok(earlier) = self.rules.decode(payload) else {
                continue;
            };
            for (slot, _, compared) in left {
                if let Some(reason) = compared.copied(&earlier, &other.update.hash) {
                    copies.insert(*slot, reason);
                }
            }
        }
    }

    /// A late update that is merged must not be a copy.
    fn check_late(&mut self, entry: u64, round: u64, late: &LateUpdates, blobs: &mut dyn Blobs) {
        for (slot, reason) in self.copies(entry, round, late, blobs) {
            let problem = format!(
                "slot {slot} was merged, but it is late, and {}",
                reason.sentence()
            );
            let what = format!("the merge of round {round}");
            self.report.wrong(entry, None, what, problem);
        }
    }

    fn accept(
        &mut self,
        entry: u64,
        commitment: &Commitment,
        blobs: &mut dyn Blobs,
    ) -> Option<DecodedUpdate> {
        let what = named(commitment);
        if let Some(blob) = &commitment.header.inner_state {
            let what = format!("the inner state beside {what}");
            if let Some(bytes) = self.fetch(entry, blob, &what, blobs) {
                match self.rules.judge_inner_state(&bytes) {
                    Ok(()) => self.report.inner_states += 1,
                    Err(reason) => self.report.wrong(
                        entry,
                        Some(blob.hash),
                        what,
                        format!("it was accepted, but {}", reason.sentence()),
                    ),
                }
            }
        }
        let bytes = self.fetch(entry, &commitment.update, &what, blobs)?;
        match self.rules.judge(&bytes, &commitment.header) {
            Ok(update) => {
                self.report.updates += 1;
                Some(update)
            }
            Err(reason) => {
                let problem = format!("it was accepted, but {}", reason.sentence());
                self.report
                    .wrong(entry, Some(commitment.update.hash), what, problem);
                None
            }
        }
    }

    /// A refusal must be deserved as far as the bytes are there to say.
    fn refuse(&mut self, entry: u64, refused: &Refused<'_>, blobs: &mut dyn Blobs) {
        let Refused {
            slot,
            commitment,
            reason,
            late,
        } = *refused;
        let what = named(commitment);
        if *reason == RefusalReason::Lost
            && let Some(accepted) = self.accepted.remove(&slot)
        {
            // That its hub lost the bytes nobody can check; nothing follows from them, so nobody must have them.
            self.outliers = None;
            self.report.is_not_needed(accepted.entry);
            self.report.refusals_gone += 1;
            return;
        }
        let is_deserved = if self.accepted.contains_key(&slot) {
            let is_deserved = if matches!(reason, RefusalReason::Copied(_)) {
                // The others are judged without it.
                self.outliers = None;
                !self.copies(entry, slot.0, late, blobs).is_empty()
            } else {
                self.is_outlier(slot.0, slot.1)
            };
            self.accepted.remove(&slot);
            is_deserved
        } else {
            if matches!(reason, RefusalReason::NotRevealed) {
                return;
            }
            let Some(found) = self.judge_again(entry, commitment, blobs) else {
                self.report.refusals_gone += 1;
                return;
            };
            found
        };
        if is_deserved {
            self.report.refusals += 1;
        } else {
            let problem = format!(
                "it was refused ({}), but passes every check",
                reason.sentence()
            );
            self.report
                .wrong(entry, Some(commitment.update.hash), what, problem);
        }
    }

    /// Whether a refused update's bytes deserve it; `None` if they are not there.
    fn judge_again(
        &mut self,
        entry: u64,
        commitment: &Commitment,
        blobs: &mut dyn Blobs,
    ) -> Option<bool> {
        let what = named(commitment);
        let header = &commitment.header;
        let update = self
            .report
            .fetch_if_there(entry, &commitment.update, &what, blobs)?;
        let is_refused = self.rules.judge(&update, header).is_err();
        let inner_state = match &header.inner_state {
            Some(blob) => Some(self.report.fetch_if_there(entry, blob, &what, blobs)?),
            None => None,
        };
        let is_inner_refused =
            inner_state.is_some_and(|bytes| self.rules.judge_inner_state(&bytes).is_err());
        Some(is_refused || is_inner_refused)
    }

    /// Whether a slot's norm is out of proportion, as far as it can be known; what the hub refused before stands aside.
    fn is_outlier(&mut self, round: u64, slot: u32) -> bool {
        let is_among =
            |outliers: Option<BTreeSet<u32>>| outliers.is_none_or(|it| it.contains(&slot));
        if is_among(self.outliers_of(round)) {
            return true;
        }
        self.outliers = None;
        is_among(self.outliers_of(round))
    }

    /// The slots of this round whose norms are out of proportion; `None` if not all its updates are known. Computed at the
    /// first refusal of several in a row: the hub found them together.
    fn outliers_of(&mut self, round: u64) -> Option<BTreeSet<u32>> {
        if let Some((of, slots)) = &self.outliers
            && *of == round
        {
            return Some(slots.clone());
        }
        let mut slots = Vec::new();
        let mut measured = Vec::new();
        for ((_, slot), accepted) in self.accepted.range((round, 0)..=(round, u32::MAX)) {
            slots.push(*slot);
            measured.push(Measured {
                norm: accepted.update.as_ref()?.norm(),
                tokens: accepted.tokens,
                standing: self.standings.of(&accepted.worker),
            });
        }
        let outliers = self.rules.outliers(&measured).into_iter();
        let outliers: BTreeSet<u32> = outliers.map(|(place, _)| slots[place]).collect();
        self.outliers = Some((round, outliers.clone()));
        Some(outliers)
    }

    fn merge(
        &mut self,
        entry: u64,
        rate_q16: u32,
        updates: &[MergedUpdate],
        delta: &BlobReference,
        logged: &ModelState,
    ) {
        self.report.merges += 1;
        self.states.push_back(*logged);
        if self.states.len() > STATES_KEPT {
            self.states.pop_front();
        }
        let round = logged.round;
        let what = format!("the merge of round {round}");
        let outliers = self.outliers_of(round);
        self.outliers = None;
        let mut accepted = std::mem::take(&mut self.accepted);
        self.accepted = accepted.split_off(&(round + 1, 0));
        for slot in outliers.unwrap_or_default() {
            let problem =
                format!("the norm of slot {slot} is out of proportion, but it was merged");
            self.report.wrong(entry, None, what.clone(), problem);
        }
        let weighted: Option<Vec<Weighted<'_>>> = updates
            .iter()
            .map(|it| {
                let update = accepted.get(&(round, it.slot))?.update.as_ref()?;
                let weight = it.weight;
                let standing = self.standings.of(&it.worker);
                Some(Weighted {
                    update,
                    weight,
                    standing,
                })
            })
            .collect();
        self.standings.count(updates);
        let (Some(weighted), Some(mut model)) = (weighted, self.model.take()) else {
            self.report.not_checked(entry, None, what);
            return;
        };
        let merged = match self.rules.merge(&mut model, round, rate_q16, &weighted) {
            Ok(merged) => merged,
            Err(error) => {
                let problem = format!("its updates can't be merged: {error}");
                self.report.wrong(entry, None, what, problem);
                return;
            }
        };
        let delta_found = BlobReference::of(&merged.delta_bytes);
        for (part, found, expected) in [
            ("delta", delta_found.hash, delta.hash),
            ("parameters", model.state.parameters, logged.parameters),
            ("outer state", model.state.outer, logged.outer),
        ] {
            if found != expected {
                let problem = format!("it gives {part} of hash {found}, the log says {expected}");
                self.report.wrong(entry, None, what.clone(), problem);
            }
        }
        if model.state == *logged {
            self.model = Some(model);
        }
        self.report.merges_recomputed += 1;
    }

    fn checkpoint(&mut self, entry: u64, round: u64, stored: &Checkpoint, blobs: &mut dyn Blobs) {
        let newest = self.model.as_ref().filter(|it| it.state.round == round);
        if newest.is_some() {
            self.compare_checkpoint(entry, round, stored, blobs);
            return;
        }
        let named = self.states.iter().find(|it| it.round == round).copied();
        let Some(named) = named else {
            let what = format!("the checkpoint of round {round}");
            self.report.not_checked(entry, None, what);
            return;
        };
        self.take_checkpoint(entry, named, stored, blobs);
    }

    /// The stored model must be the recomputed one, bit for bit.
    fn compare_checkpoint(
        &mut self,
        entry: u64,
        round: u64,
        stored: &Checkpoint,
        blobs: &mut dyn Blobs,
    ) {
        let what = format!("the checkpoint of round {round}");
        let bytes = self.fetch(entry, &stored.parameters, &what, blobs);
        let outer_what = format!("the outer state in {what}");
        let outer_bytes = self.fetch(entry, &stored.outer, &outer_what, blobs);
        let model = self.model.as_ref().expect("the caller looked");
        let mut is_whole = bytes.is_some() && outer_bytes.is_some();
        if let Some(bytes) = bytes {
            let problem = match checkpoint::from_safetensors(&bytes, self.rules.config()) {
                Ok(parameters) if is_same(&parameters, &model.parameters) => None,
                Ok(_) => Some("it is another model than the merges give".to_owned()),
                Err(error) => Some(format!("it doesn't read: {error}")),
            };
            if let Some(problem) = problem {
                is_whole = false;
                self.report
                    .wrong(entry, Some(stored.parameters.hash), what, problem);
            }
        }
        if let Some(bytes) = outer_bytes {
            let problem = match OuterState::from_bytes(&bytes, model.parameters.len()) {
                Ok(outer) if outer == *model.outer => None,
                Ok(_) => Some("it is another than the merges give".to_owned()),
                Err(error) => Some(format!("it doesn't read: {error}")),
            };
            if let Some(problem) = problem {
                is_whole = false;
                self.report
                    .wrong(entry, Some(stored.outer.hash), outer_what, problem);
            }
        }
        self.report.checkpoints += u64::from(is_whole);
    }

    /// A stored model whose hashes the log names; the verifier goes on from it if it has none or only an older one.
    fn take_checkpoint(
        &mut self,
        entry: u64,
        named: ModelState,
        stored: &Checkpoint,
        blobs: &mut dyn Blobs,
    ) {
        let what = format!("the checkpoint of round {}", named.round);
        let parameters = self.fetch(entry, &stored.parameters, &what, blobs);
        let outer_what = format!("the outer state in {what}");
        let outer = self.fetch(entry, &stored.outer, &outer_what, blobs);
        let (Some(parameters), Some(outer)) = (parameters, outer) else {
            return;
        };
        match self.rules.load(named, &parameters, &outer) {
            Ok(model) => {
                self.report.checkpoints += 1;
                if self.model.is_none() && self.state.model == named {
                    self.model = Some(model);
                }
            }
            Err(error) => {
                let problem = chain(&error);
                self.report
                    .wrong(entry, Some(stored.parameters.hash), what, problem);
            }
        }
    }

    fn check_first_model(&mut self) {
        let Some(model) = &self.model else {
            return;
        };
        let owed = OuterState::new(model.parameters.len(), model.outer.momentum.is_some());
        if *model.outer != owed {
            let problem = "a run begins with nothing owed, this one's outer state is not zero";
            self.report
                .wrong(0, None, "the first model".to_owned(), problem.to_owned());
        }
        let drawn = initial_parameters(self.rules.config(), self.state.charter.seed);
        self.report.is_first_model_drawn = is_same(&drawn, &model.parameters);
    }
}

fn named(commitment: &Commitment) -> String {
    let header = &commitment.header;
    format!(
        "the update of worker {} for round {}, slot {}",
        header.worker.short(),
        header.round,
        header.slot
    )
}

/// An error with its causes, as the last line of a program would print it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Equal bit for bit.
fn is_same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
