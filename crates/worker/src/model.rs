//! The way from the model that is held to the newest one: deltas in order, or a whole checkpoint and the deltas after it.

use anyhow::{Context, Result, bail};
use protocol::{
    Hash,
    api::{Work, WorkDelta, WorkModel},
    event::Event,
    log::Entry,
    units::BlobReference,
};

use crate::machine::Held;

/// Log entries read back at most to find deltas that the hub no longer lists.
pub(crate) const ENTRIES_BACK_MAX: u64 = 4_000;
/// Deltas of one catch-up at most; more than a hub lists is nonsense.
const DELTAS_MAX: usize = 65_536;

/// A published delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeltaStep {
    /// The round whose merge it is.
    pub(crate) round: u64,
    /// Its bytes.
    pub(crate) blob: BlobReference,
    /// Hash of the parameters after it.
    pub(crate) after: Hash,
}

/// The newest model as the hub tells it, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The model.
    pub(crate) model: Held,
    checkpoint_round: u64,
    checkpoint: BlobReference,
    /// As listed, oldest first.
    deltas: Vec<DeltaStep>,
}

/// What brings a machine to the newest model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Checkpoint to begin with: its round and its bytes.
    pub(crate) checkpoint: Option<(u64, BlobReference)>,
    /// Deltas to apply, in order.
    pub(crate) deltas: Vec<DeltaStep>,
}

impl Target {
    /// Reads the hub's answer.
    pub(crate) fn of(work: &Work) -> Result<Self> {
        let WorkModel {
            round,
            parameters_hash,
            checkpoint_round,
            checkpoint_blob,
            checkpoint_bytes,
            deltas,
        } = &work.model;
        if deltas.len() > DELTAS_MAX {
            bail!("the hub lists {} deltas", deltas.len());
        }
        let deltas: Vec<DeltaStep> = deltas.iter().map(delta_step).collect::<Result<_>>()?;
        if !deltas.is_sorted_by(|a, b| a.round < b.round) {
            bail!("the hub lists deltas out of order");
        }
        Ok(Self {
            model: Held {
                round: *round,
                parameters: hash(parameters_hash)?,
            },
            checkpoint_round: *checkpoint_round,
            checkpoint: BlobReference {
                hash: hash(checkpoint_blob)?,
                bytes: *checkpoint_bytes,
            },
            deltas,
        })
    }

    /// The deltas that lead on from what is held, if the hub's list and `since` tell them: all merges since what is held was
    /// the newest model, oldest first.
    fn deltas_from(&self, held: Held, since: Option<&[DeltaStep]>) -> Option<Vec<DeltaStep>> {
        if held == self.model {
            return Some(vec![]);
        }
        let listed = self.deltas.iter().position(|it| it.round == held.round);
        let mut chain: Vec<DeltaStep> = match (listed, since) {
            (Some(at), _) if self.deltas[at].after == held.parameters => {
                self.deltas[at + 1..].to_vec()
            }
            (Some(_), _) => return None,
            (None, _) if held.round == self.checkpoint_round => self.deltas.clone(),
            (None, Some(since)) => [since, &self.deltas].concat(),
            (None, None) => return None,
        };
        chain.retain(|it| it.round > held.round && it.round <= self.model.round);
        chain.sort_by_key(|it| it.round);
        chain.dedup_by_key(|it| it.round);
        let last = chain.last()?;
        let leads_there = last.round == self.model.round && last.after == self.model.parameters;
        leads_there.then_some(chain)
    }

    /// The checkpoint and the deltas after it.
    fn by_checkpoint(&self) -> Route {
        let after = self.deltas.iter().copied();
        Route {
            checkpoint: Some((self.checkpoint_round, self.checkpoint)),
            deltas: after
                .filter(|it| it.round > self.checkpoint_round)
                .collect(),
        }
    }

    /// Whether the log could tell more deltas than the hub lists.
    pub(crate) fn needs_log(&self, held: Option<Held>) -> bool {
        held.is_some_and(|held| self.deltas_from(held, None).is_none())
    }

    /// The way from what is held to the newest model, whichever is fewer bytes that are not here.
    pub(crate) fn route(
        &self,
        held: Option<Held>,
        since: Option<&[DeltaStep]>,
        is_here: impl Fn(&BlobReference) -> bool,
    ) -> Route {
        let whole = self.by_checkpoint();
        let Some(deltas) = held.and_then(|held| self.deltas_from(held, since)) else {
            return whole;
        };
        let by_deltas = Route {
            checkpoint: None,
            deltas,
        };
        if by_deltas.missing_bytes(&is_here) <= whole.missing_bytes(&is_here) {
            by_deltas
        } else {
            whole
        }
    }
}

impl Route {
    /// Everything to download, in order.
    pub(crate) fn blobs(&self) -> Vec<BlobReference> {
        let checkpoint = self.checkpoint.map(|(_, blob)| blob);
        let deltas = self.deltas.iter().map(|it| it.blob);
        checkpoint.into_iter().chain(deltas).collect()
    }

    /// Bytes of it to download.
    pub(crate) fn missing_bytes(&self, is_here: impl Fn(&BlobReference) -> bool) -> u64 {
        let blobs = self.blobs().into_iter();
        blobs.filter(|it| !is_here(it)).map(|it| it.bytes).sum()
    }
}

/// The merges among log entries.
pub(crate) fn merges(entries: &[Entry]) -> Vec<DeltaStep> {
    let merge = |entry: &Entry| match &entry.event {
        Event::RoundMerged {
            round,
            delta,
            model,
            ..
        } => Some(DeltaStep {
            round: *round,
            blob: *delta,
            after: model.parameters,
        }),
        _ => None,
    };
    entries.iter().filter_map(merge).collect()
}

fn delta_step(delta: &WorkDelta) -> Result<DeltaStep> {
    Ok(DeltaStep {
        round: delta.round,
        blob: BlobReference {
            hash: hash(&delta.blob)?,
            bytes: delta.bytes,
        },
        after: hash(&delta.parameters_hash)?,
    })
}

/// A hash from the hub's JSON.
pub(crate) fn hash(text: &str) -> Result<Hash> {
    text.parse()
        .with_context(|| format!("the hub names a hash that is none: {text:.80}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(round: u64) -> Held {
        Held {
            round,
            parameters: Hash([round as u8; 32]),
        }
    }

    fn step(round: u64, bytes: u64) -> DeltaStep {
        DeltaStep {
            round,
            blob: BlobReference {
                hash: Hash([round as u8 + 100; 32]),
                bytes,
            },
            after: model(round).parameters,
        }
    }

    /// Newest model 9, checkpoint 6 of 1000 bytes, merges of 7 and 9; round 8 was empty.
    fn target() -> Target {
        Target {
            model: model(9),
            checkpoint_round: 6,
            checkpoint: BlobReference {
                hash: Hash([99; 32]),
                bytes: 1_000,
            },
            deltas: vec![step(7, 10), step(9, 10)],
        }
    }

    fn check(held: Option<Held>, since: Option<&[DeltaStep]>, expected: Option<&[u64]>) {
        let route = target().route(held, since, |_| false);
        let rounds: Vec<u64> = route.deltas.iter().map(|it| it.round).collect();
        match expected {
            Some(deltas) => assert_eq!((route.checkpoint, &rounds[..]), (None, deltas)),
            None => {
                assert_eq!(route.checkpoint.map(|it| it.0), Some(6));
                assert_eq!(rounds, [7, 9]);
            }
        }
    }

    #[test]
    fn deltas_lead_on_from_what_is_held() {
        check(Some(model(9)), None, Some(&[]));
        check(Some(model(7)), None, Some(&[9]));
        check(Some(model(6)), None, Some(&[7, 9]));
    }

    #[test]
    fn without_a_way_the_checkpoint_is_taken() {
        check(None, None, None);
        check(Some(model(4)), None, None);
        // The round is known, but what is held is not what its merge gave.
        let mut other = model(7);
        other.parameters = Hash([77; 32]);
        check(Some(other), None, None);
    }

    #[test]
    fn the_log_closes_the_gap() {
        let (five, six) = (step(5, 10), step(6, 10));
        assert!(target().needs_log(Some(model(4))));
        assert!(!target().needs_log(Some(model(7))));
        let since = [five, six, step(7, 10)];
        check(Some(model(4)), Some(&since), Some(&[5, 6, 7, 9]));
        // Fewer bytes by the checkpoint.
        check(Some(model(4)), Some(&[five, step(6, 2_000)]), None);
    }

    #[test]
    fn what_is_here_costs_nothing() {
        let since = [step(5, 10), step(6, 10), step(7, 10)];
        let route = |here: &[u64]| {
            let is_here = |it: &BlobReference| here.contains(&it.bytes);
            let route = target().route(Some(model(4)), Some(&since), is_here);
            (route.checkpoint.is_some(), route.missing_bytes(is_here))
        };
        assert_eq!(route(&[]), (false, 40));
        // A worker that was stopped while it fetched the checkpoint has that already.
        assert_eq!(route(&[1_000]), (true, 20));
        assert_eq!(route(&[1_000, 10]), (false, 0));
    }
}
