//! What the log says of an update, of its round and of its worker's updates before it.

use std::{collections::BTreeMap, str::FromStr, sync::Arc};

use anyhow::{Context as _, bail};
use protocol::{
    Hash,
    charter::Charter,
    command::{Command, Commitment},
    event::{Event, ModelState},
    state::decide::fresh,
    units::{BlobReference, WorkerId},
};
use tokio_util::sync::CancellationToken;

use super::fold;
use crate::source::Source;

/// Which update is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The file of this hash.
    File(Hash),
    /// That of this slot of the round whose samples it is of.
    Slot(u64, u32),
}

/// A commitment in the log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Position of its entry.
    pub(super) entry: u64,
    /// What was promised.
    pub(super) commitment: Commitment,
}

/// How a round began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) base: ModelState,
    pub(super) seed: Hash,
    pub(super) slots: u32,
    pub(super) tokens_before: u64,
    /// Position of its entry.
    pub(super) entry: u64,
}

/// A merge in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) model: ModelState,
    pub(super) delta: BlobReference,
}

/// Everything about a run that an audit needs, up to the update's commitment.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) charter: Arc<Charter>,
    pub(super) worker: WorkerId,
    /// The arithmetic class of the worker's machine.
    pub(super) arithmetic: String,
    /// By round.
    pub(super) openings: BTreeMap<u64, Opening>,
    /// In order of rounds.
    pub(super) merges: Vec<Merged>,
    /// Stored parameters by round.
    pub(super) checkpoints: BTreeMap<u64, BlobReference>,
    /// Published inner states with the entry that each came by.
    inner_starts: Vec<(u64, BlobReference)>,
    /// Position of the commitment's entry.
    target: u64,
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(hash) = text.parse() {
            return Ok(Self::File(hash));
        }
        let numbers = text
            .split_once('/')
            .and_then(|(round, slot)| Some((round.parse().ok()?, slot.parse().ok()?)));
        let (round, slot) =
            numbers.with_context(|| format!("{text:?} is neither a hash nor ROUND/SLOT"))?;
        Ok(Self::Slot(round, slot))
    }
}

impl Wanted {
    fn is_met(&self, commitment: &Commitment) -> bool {
        match self {
            Self::File(hash) => commitment.update.hash == *hash,
            Self::Slot(round, slot) => {
                (commitment.header.round, commitment.header.slot) == (*round, *slot)
            }
        }
    }
}

impl Facts {
    /// Folds the log, trusting nothing, up to the commitment.
    pub(super) fn read(
        source: &mut Source,
        wanted: &Wanted,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut facts: Option<Self> = None;
        let mut is_found = false;
        fold(source, shutdown, |entry, state| {
            let facts = facts.get_or_insert_with(|| Self {
                charter: Arc::new(state.charter.clone()),
                worker: WorkerId(state.charter.hub),
                arithmetic: String::new(),
                openings: BTreeMap::new(),
                merges: Vec::new(),
                checkpoints: BTreeMap::new(),
                inner_starts: Vec::new(),
                target: 0,
            });
            facts.note(entry.index, &entry.event);
            if let Some(start) = state.inner_start
                && facts.inner_starts.last().is_none_or(|it| it.1 != start)
            {
                facts.inner_starts.push((entry.index, start));
            }
            if let Some(commitment) = commitment(&entry.event)
                && wanted.is_met(commitment)
            {
                facts.target = entry.index;
                facts.worker = commitment.header.worker;
                let record = state.workers.get(&facts.worker);
                facts.arithmetic =
                    record.map_or_else(String::new, |it| it.device.arithmetic.clone());
                is_found = true;
            }
            Ok(is_found)
        })?;
        match facts {
            Some(facts) if is_found => Ok(facts),
            Some(_) | None => bail!("the run's log has no commitment to this update"),
        }
    }

    fn note(&mut self, index: u64, event: &Event) {
        match event {
            Event::RunCreated { checkpoint, .. } => {
                self.checkpoints.insert(0, checkpoint.parameters);
            }
            Event::CheckpointPublished { round, checkpoint } => {
                self.checkpoints.insert(*round, checkpoint.parameters);
            }
            Event::RoundOpened {
                round,
                base,
                seed,
                tokens_before,
                assignments,
                ..
            } => {
                let opening = Opening {
                    base: *base,
                    seed: *seed,
                    slots: assignments.len() as u32,
                    tokens_before: *tokens_before,
                    entry: index,
                };
                self.openings.insert(*round, opening);
            }
            Event::RoundMerged { delta, model, .. } => self.merges.push(Merged {
                model: *model,
                delta: *delta,
            }),
            _ => {}
        }
    }

    /// All commitments of the update's worker up to it, in order of the log.
    pub(super) fn records_of_worker(
        &self,
        source: &mut Source,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        fold(source, shutdown, |entry, _| {
            if let Some(commitment) = commitment(&entry.event)
                && commitment.header.worker == self.worker
            {
                records.push(Record {
                    entry: entry.index,
                    commitment: commitment.clone(),
                });
            }
            Ok(entry.index >= self.target)
        })?;
        Ok(records)
    }

    /// Whether this machine computes the bits that the worker's does.
    pub(super) fn is_own_class(&self) -> bool {
        self.arithmetic == engine::arithmetic::class()
    }

    /// The published inner states that an update without carried state may have begun from, the likeliest first: the one
    /// that its round opened with, then newer ones; `None` stands for zeros.
    pub(super) fn inner_starts(&self, record: &Record) -> Vec<Option<BlobReference>> {
        if !self.charter.inner.carry_inner_state {
            return vec![None];
        }
        let opened = self
            .openings
            .get(&record.commitment.header.round)
            .map_or(0, |it| it.entry);
        let known = |entry: u64| {
            let mut earlier = self.inner_starts.iter().filter(|(at, _)| *at <= entry);
            earlier.next_back().map(|(_, blob)| *blob)
        };
        let mut starts = vec![known(opened)];
        let newer = self
            .inner_starts
            .iter()
            .filter(|(at, _)| opened < *at && *at < record.entry);
        starts.extend(newer.map(|(_, blob)| Some(*blob)));
        starts
    }
}

fn commitment(event: &Event) -> Option<&Commitment> {
    match event {
        Event::UpdateCommitted { command } => match &command.command {
            Command::Commit(commitment) => Some(commitment),
            Command::Join { .. } | Command::Leave { .. } => None,
        },
        _ => None,
    }
}

/// The updates that lead to the last one, oldest first, from one that began afresh: each carries in what the one before
/// left.
pub(super) fn chain(records: &[Record]) -> anyhow::Result<Vec<Record>> {
    let (last, mut earlier) = records.split_last().context("there is no update")?;
    let mut chain = vec![last.clone()];
    let mut carried = last.commitment.header.carried_before;
    while carried != fresh() {
        let found = earlier.iter().rposition(|it| {
            let header = &it.commitment.header;
            header.carried_after == carried || header.carried_if_refused == carried
        });
        let Some(place) = found else {
            bail!("the log has no update of this worker that leaves the state {carried}");
        };
        chain.push(earlier[place].clone());
        carried = earlier[place].commitment.header.carried_before;
        earlier = &earlier[..place];
    }
    chain.reverse();
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use protocol::{SecretKey, units::RunId, update::UpdateHeader};

    use super::*;

    fn record(entry: u64, before: u8, after: u8, if_refused: u8) -> Record {
        let header = UpdateHeader {
            run: RunId(Hash([1; 32])),
            worker: WorkerId(SecretKey::from_entropy([2; 32]).public()),
            round: entry,
            slot: 0,
            base_round: 0,
            base: Hash([3; 32]),
            steps: 1,
            head_start_steps: 0,
            tokens: 64,
            loss_micronats: 1,
            carried_before: Hash([before; 32]),
            carried_after: Hash([after; 32]),
            carried_if_refused: Hash([if_refused; 32]),
            steps_root: Hash([7; 32]),
            payload: Hash::of_blob(&entry.to_le_bytes()),
            inner_state: None,
        };
        Record {
            entry,
            commitment: Commitment {
                update: BlobReference::of(&entry.to_le_bytes()),
                header,
            },
        }
    }

    fn check(records: &[Record], expected: &[u64]) {
        let chain = chain(records).unwrap();
        let entries: Vec<u64> = chain.iter().map(|it| it.entry).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_chain_goes_back_to_the_last_fresh_start() {
        let records = [
            record(1, 0, 11, 12),
            // Its folder was lost: it began afresh.
            record(2, 0, 21, 22),
            record(3, 21, 31, 32),
            // The one before was refused: its work is still carried.
            record(4, 32, 41, 42),
        ];
        check(&records, &[2, 3, 4]);
        check(&records[..2], &[2]);
        check(&records[..1], &[1]);
        // A state that two updates left is that of the later one.
        check(
            &[
                record(1, 0, 11, 12),
                record(2, 0, 11, 12),
                record(3, 11, 31, 32),
            ],
            &[2, 3],
        );
    }

    #[test]
    fn a_state_from_nowhere_is_no_chain() {
        assert!(chain(&[record(1, 0, 11, 12), record(2, 99, 21, 22)]).is_err());
        assert!(chain(&[]).is_err());
        // What a later update left cannot have been carried in before.
        assert!(chain(&[record(1, 21, 11, 12)]).is_err());
    }

    #[test]
    fn updates_are_named_by_hash_or_place() {
        let hash = Hash([5; 32]);
        assert_eq!(
            hash.to_string().parse::<Wanted>().unwrap(),
            Wanted::File(hash)
        );
        assert_eq!("12/3".parse::<Wanted>().unwrap(), Wanted::Slot(12, 3));
        for wrong in ["", "12", "12/", "a/b", "-1/0"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }
}
