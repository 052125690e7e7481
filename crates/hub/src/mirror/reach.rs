//! How far a log could be gone on with from the blobs that are here: up to the first merge that could not be done again. So
//! much of it a mirror confirms to its hub, and nothing of that does it set aside when it takes over.

use std::collections::VecDeque;

use anyhow::Result;
use protocol::{
    Hash,
    event::Event,
    log::Entry,
    units::{BlobReference, RunId},
};

use crate::store::Store;

/// Log entries read at once.
const PAGE: u64 = 500;

/// What the log says of models, from the newest checkpoint on that is here.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Entries read, and the hash of the last of them.
    read: u64,
    last: Hash,
    /// What every hub of the run needs: tokenizer and held-out text.
    texts: Vec<BlobReference>,
    /// Round and blobs.
    checkpoints: VecDeque<(u64, [BlobReference; 2])>,
    merges: VecDeque<Merge>,
    /// Whether the first of the checkpoints is here.
    has_checkpoint: bool,
}

#[derive(Debug)]
struct Merge {
    index: u64,
    round: u64,
    updates: Vec<BlobReference>,
}

impl Reach {
    /// Notes the entries that were not read yet; all of them again if the log is another one than it was.
    pub(super) async fn read_on(&mut self, store: &Store, run: RunId) -> Result<()> {
        if let Some(before) = self.read.checked_sub(1) {
            let entries = store.entries(run, before, 1).await?;
            if entries.first().map(Entry::hash) != Some(self.last) {
                *self = Self::default();
            }
        }
        loop {
            let entries = store.entries(run, self.read, PAGE).await?;
            let Some(last) = entries.last() else {
                return Ok(());
            };
            self.last = last.hash();
            for entry in &entries {
                self.note(entry.index, &entry.event);
            }
        }
    }

    fn note(&mut self, index: u64, event: &Event) {
        self.read = index + 1;
        match event {
            Event::RunCreated {
                charter,
                checkpoint,
                ..
            } => {
                self.texts = vec![charter.data.tokenizer];
                self.texts
                    .extend(charter.data.held_out.iter().map(|it| it.blob));
                let blobs = [checkpoint.parameters, checkpoint.outer];
                self.checkpoints.push_back((0, blobs));
            }
            Event::CheckpointPublished { round, checkpoint } => {
                let blobs = [checkpoint.parameters, checkpoint.outer];
                self.checkpoints.push_back((*round, blobs));
            }
            Event::RoundMerged { round, updates, .. } => self.merges.push_back(Merge {
                index,
                round: *round,
                updates: updates.iter().map(|it| it.update).collect(),
            }),
            _ => {}
        }
    }

    /// Everything that matters, whether it is here or not.
    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobReference> {
        let checkpoints = self.checkpoints.iter().flat_map(|it| it.1);
        let updates = self.merges.iter().flat_map(|it| &it.updates);
        let texts = self.texts.iter();
        texts.chain(updates).copied().chain(checkpoints)
    }

    /// How many entries could be gone on from; forgets what is behind the newest checkpoint that is here.
    pub(super) fn length(&mut self, is_here: impl Fn(&Hash) -> bool) -> u64 {
        let are_here = |blobs: &[BlobReference]| blobs.iter().all(|it| is_here(&it.hash));
        let newest = self.checkpoints.iter().rposition(|it| are_here(&it.1));
        self.has_checkpoint = newest.is_some();
        let Some(newest) = newest else {
            return 0;
        };
        self.checkpoints.drain(..newest);
        let (round, _) = self.checkpoints[0];
        self.merges.retain(|it| round < it.round);
        if !are_here(&self.texts) {
            return 0;
        }
        let lacking = self.merges.iter().find(|it| !are_here(&it.updates));
        lacking.map_or(self.read, |it| it.index)
    }

    /// What is fetched before anything else: without it the log's end can't be gone on from. As [`Self::length`] found last.
    pub(super) fn needed(&self) -> impl Iterator<Item = BlobReference> {
        let named = self.checkpoints.back().filter(|_| !self.has_checkpoint);
        let since = named.map_or(0, |it| it.0);
        let merges = self.merges.iter().filter(move |it| since < it.round);
        let updates = merges.flat_map(|it| &it.updates).copied();
        let checkpoint = named.into_iter().flat_map(|it| it.1);
        self.texts.iter().copied().chain(checkpoint).chain(updates)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::{
        PublicKey, SecretKey,
        event::{Checkpoint, MergedUpdate, ModelState},
        units::{MicroCredits, WorkerId},
    };

    use super::*;
    use crate::store::tests::created;

    fn blob(seed: u8) -> BlobReference {
        BlobReference {
            hash: Hash([seed; 32]),
            bytes: 1,
        }
    }

    fn merge(round: u64, updates: &[u8]) -> Event {
        let merged = |seed: &u8| MergedUpdate {
            slot: 0,
            of_round: round,
            worker: WorkerId(PublicKey([1; 32])),
            update: blob(*seed),
            tokens: 1,
            weight: 1,
            credits: MicroCredits(1),
        };
        Event::RoundMerged {
            round,
            rate_q16: 65_536,
            updates: updates.iter().map(merged).collect(),
            delta: blob(200),
            model: ModelState {
                round,
                parameters: Hash::default(),
                outer: Hash::default(),
            },
        }
    }

    #[test]
    fn no_more_is_confirmed_than_could_be_gone_on_from() {
        let (entry, _) = created(&SecretKey::from_entropy([1; 32]), "one");
        let mut reach = Reach::default();
        reach.note(0, &entry.event);
        let first: BTreeSet<Hash> = reach.blobs().map(|it| it.hash).collect();
        reach.note(1, &merge(1, &[10, 11]));
        reach.note(2, &Event::RoundEmpty { round: 2 });
        reach.note(3, &merge(3, &[30]));
        let checkpoint = Checkpoint {
            parameters: blob(50),
            outer: blob(51),
        };
        let published = Event::CheckpointPublished {
            round: 3,
            checkpoint,
        };
        reach.note(4, &published);
        reach.note(5, &merge(4, &[40]));

        let mut here: BTreeSet<Hash> = BTreeSet::new();
        let mut check = |more: &[Hash], length: u64, needed: &[u8]| {
            here.extend(more);
            assert_eq!(reach.length(|it| here.contains(it)), length, "{more:?}");
            let found: BTreeSet<Hash> = reach.needed().map(|it| it.hash).collect();
            let lacking = found.difference(&here).copied();
            let expected = needed.iter().map(|it| blob(*it).hash);
            let own = |it: &Hash| !first.contains(it);
            assert_eq!(
                lacking.filter(own).collect::<BTreeSet<_>>(),
                expected.collect::<BTreeSet<_>>(),
                "{more:?}"
            );
        };
        // Nothing is here: the newest checkpoint is the shortest way.
        check(&[], 0, &[50, 51, 40]);
        let all_of_first: Vec<Hash> = first.iter().copied().collect();
        check(&all_of_first, 1, &[10, 11, 30, 40]);
        check(&[blob(30).hash, blob(11).hash], 1, &[10, 40]);
        check(&[blob(10).hash], 5, &[40]);
        check(&[blob(50).hash], 5, &[40]);
        // With a whole checkpoint what was merged before is needed no more.
        check(&[blob(51).hash], 5, &[40]);
        check(&[blob(40).hash], 6, &[]);
    }
}
