//! A round's merge in bounded memory: what there is room for stays decoded, everything else is read and decoded one after the
//! other, first for its norms and then window by window for its values.

use std::sync::Arc;

use anyhow::{Context, Result};
use engine::{
    replay::proportion::Measured,
    update::{
        decoded::{DecodedUpdate, Piece},
        merge::{Norms, Share},
    },
};
use protocol::{
    Hash,
    event::{MergedUpdate, RefusalReason},
    update,
};

use super::{Arithmetic, Model};
use crate::blobs::Blobs;

/// A merge that was computed and not yet decided on.
pub(crate) struct Merge {
    pub(crate) model: Model,
    pub(crate) delta: Vec<u8>,
}

/// One accepted update.
pub(crate) struct Part {
    pub(crate) merged: MergedUpdate,
    /// Its maker's accepted tokens before the merge.
    pub(crate) standing: u64,
    /// Its values, if there was room for them when it was judged.
    pub(crate) decoded: Option<Arc<DecodedUpdate>>,
}

/// What came of a merge.
pub(crate) enum Merged {
    /// The next model.
    Whole(Merge),
    /// These are not to be merged.
    Refused(Vec<(Hash, RefusalReason)>),
    /// The bytes of these are gone.
    Lost(Vec<Hash>),
}

/// A part's values.
enum Found {
    Whole(Arc<DecodedUpdate>),
    /// It no longer passes: another version of this program had accepted it.
    Refused(RefusalReason),
    Lost,
}

/// A part in a window.
enum Held {
    Whole(Arc<DecodedUpdate>),
    Piece(Piece),
}

/// A round to merge.
#[derive(Clone, Copy)]
pub(crate) struct Round {
    pub(crate) number: u64,
    /// Rate of the step in units of 2^-16.
    pub(crate) rate_q16: u32,
    /// Whether the log has the merge already: nothing of it can be sent again then, and nothing is removed.
    pub(crate) is_logged: bool,
}

impl Arithmetic {
    /// Computes a round's merge; a pure function of model, round and parts. Twice `bytes_max` of values are in memory at
    /// once, beside those that came decoded, and one update.
    pub(crate) async fn merge(
        self: &Arc<Self>,
        model: &Model,
        round: Round,
        mut parts: Vec<Part>,
        blobs: &Blobs,
        bytes_max: usize,
    ) -> Result<Merged> {
        let (mut lost, mut refused) = (Vec::new(), Vec::new());
        let (mut norms, mut room) = (Norms::default(), bytes_max);
        for part in &mut parts {
            let update = match self.find(part, round, blobs).await? {
                Found::Whole(update) => update,
                Found::Refused(reason) => {
                    refused.push((part.merged.update.hash, reason));
                    continue;
                }
                Found::Lost => {
                    lost.push(part.merged.update.hash);
                    continue;
                }
            };
            if part.decoded.is_none() && update.memory_bytes() <= room {
                room -= update.memory_bytes();
                part.decoded = Some(Arc::clone(&update));
            }
            norms = blocking(move || {
                norms.push(&update)?;
                Ok(norms)
            })
            .await?;
        }
        if !lost.is_empty() {
            return Ok(Merged::Lost(lost));
        }
        if refused.is_empty() {
            refused = self.outliers(&parts, &norms);
        }
        if !refused.is_empty() {
            return Ok(Merged::Refused(refused));
        }
        self.add_up(model.clone(), round, &parts, norms, blobs, bytes_max)
            .await
    }

    async fn add_up(
        self: &Arc<Self>,
        mut model: Model,
        round: Round,
        parts: &[Part],
        norms: Norms,
        blobs: &Blobs,
        bytes_max: usize,
    ) -> Result<Merged> {
        let share = |it: &Part| Share {
            weight: it.merged.weight,
            standing: it.standing,
        };
        let shares: Vec<Share> = parts.iter().map(share).collect();
        let rules = &self.rules;
        let mut merging = rules.begin_merge(&model, round.rate_q16, norms, &shares)?;
        let all_are_here = parts.iter().all(|it| it.decoded.is_some());
        let windows = merging.windows(if all_are_here { usize::MAX } else { bytes_max });
        for window in windows {
            let mut held = Vec::with_capacity(parts.len());
            for part in parts {
                if let Some(decoded) = &part.decoded {
                    held.push(Held::Whole(Arc::clone(decoded)));
                    continue;
                }
                // It was here and passed a moment ago.
                let Found::Whole(update) = self.find(part, round, blobs).await? else {
                    return Ok(Merged::Lost(vec![part.merged.update.hash]));
                };
                held.push(Held::Piece(update.piece(&window)));
            }
            (model, merging) = blocking(move || {
                let pieces: Vec<_> = held
                    .iter()
                    .map(|it| match it {
                        Held::Whole(update) => update.whole(),
                        Held::Piece(piece) => piece.as_ref(),
                    })
                    .collect();
                merging.add(&window, &pieces, Arc::make_mut(&mut model.outer));
                Ok((model, merging))
            })
            .await?;
        }
        let this = Arc::clone(self);
        blocking(move || {
            let merged = this.rules.finish_merge(&mut model, round.number, merging);
            if merged.saturated > 0 {
                tracing::warn!(
                    round = round.number,
                    saturated = merged.saturated,
                    "values of the public residual were cut at its limit"
                );
            }
            let delta = merged.delta_bytes;
            Ok(Merged::Whole(Merge { model, delta }))
        })
        .await
    }

    async fn find(self: &Arc<Self>, part: &Part, round: Round, blobs: &Blobs) -> Result<Found> {
        if let Some(decoded) = &part.decoded {
            return Ok(Found::Whole(Arc::clone(decoded)));
        }
        let blob = &part.merged.update;
        let bytes = match round.is_logged {
            true => blobs.read(blob).await?,
            false => blobs.read_or_drop(blob).await?,
        };
        let Some(bytes) = bytes else {
            return Ok(Found::Lost);
        };
        let this = Arc::clone(self);
        blocking(move || {
            let (header, _) = update::open(&bytes).context("an accepted update does not read")?;
            Ok(match this.judge(&bytes, &header) {
                Ok(update) => Found::Whole(Arc::new(update)),
                Err(reason) => Found::Refused(reason),
            })
        })
        .await
    }

    /// The updates whose norm is out of proportion to the round's.
    fn outliers(&self, parts: &[Part], norms: &Norms) -> Vec<(Hash, RefusalReason)> {
        let measured: Vec<Measured> = parts
            .iter()
            .zip(norms.whole())
            .map(|(it, norm)| Measured {
                norm,
                tokens: it.merged.tokens,
                standing: it.standing,
            })
            .collect();
        let outliers = self.rules.outliers(&measured).into_iter();
        outliers
            .map(|(place, reason)| (parts[place].merged.update.hash, reason))
            .collect()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    network::world::blocking(work).await?
}

#[cfg(test)]
mod tests;
