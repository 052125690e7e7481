//! What a run computes aside from its log: judging, merging, storing, evaluating, sampling.

use std::{any::Any, collections::HashMap, fmt, panic::AssertUnwindSafe, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use engine::{replay::copies::Compared, update::decoded::DecodedUpdate};
use futures_util::FutureExt;
use protocol::{
    Hash,
    command::Commitment,
    event::{Checkpoint, Evaluation, RefusalReason},
    state::{Shown, late::LateUpdates},
    units::{BlobReference, RunId},
};

use super::{
    evaluate::HeldOut,
    room::{Kept, Room},
};
use crate::{
    blobs::Blobs,
    model::{Arithmetic, Merged, Model, Part, Round},
};

/// A piece of work for another thread.
pub(super) enum Job {
    /// Look at an update whose bytes are here.
    Judge(Box<Commitment>),
    /// Make the next model.
    Merge {
        round: Round,
        model: Model,
        parts: Vec<Part>,
        late: LateUpdates,
    },
    /// Keep a model whole.
    Store { run: RunId, model: Model },
    /// Measure a model.
    Evaluate {
        model: Model,
        held_out: Arc<HeldOut>,
        threads: usize,
    },
    /// Let a model write.
    Sample {
        model: Model,
        held_out: Arc<HeldOut>,
        prompt: String,
        tokens: usize,
    },
}

/// What came of it.
pub(super) enum Done {
    Judged {
        update: Hash,
        /// An update that passed stays decoded if there is room.
        verdict: Result<Option<Kept>, RefusalReason>,
    },
    Outliers {
        refused: Vec<(Hash, RefusalReason)>,
    },
    Merged {
        model: Model,
        delta: BlobReference,
    },
    Stored {
        model: Model,
        checkpoint: Checkpoint,
    },
    Evaluated {
        round: u64,
        evaluation: Evaluation,
    },
    Sampled {
        round: u64,
        prompt: String,
        text: String,
    },
    /// Bytes that had been here are missing or were damaged. What was damaged is removed: it can be sent again.
    Lost {
        work: Work,
        updates: Vec<Hash>,
    },
    Failed {
        work: Work,
        error: anyhow::Error,
    },
}

/// What a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Judging(Hash),
    Merge,
    Checkpoint,
    Evaluation,
    Sample,
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Judging(update) => write!(formatter, "judging the update {}", update.short()),
            Self::Merge => formatter.write_str("the merge"),
            Self::Checkpoint => formatter.write_str("storing a checkpoint"),
            Self::Evaluation => formatter.write_str("the evaluation"),
            Self::Sample => formatter.write_str("drawing a sample"),
        }
    }
}

impl Job {
    /// Does the work; an error is a result too, and so is a panic in it, which is our bug and must not stop the run.
    pub(super) async fn run(self, arithmetic: Arc<Arithmetic>, blobs: Blobs, room: Room) -> Done {
        let work = self.work();
        let done = AssertUnwindSafe(self.done(arithmetic, blobs, room)).catch_unwind();
        let done = done.await.unwrap_or_else(|panic| Err(panicked(&*panic)));
        done.unwrap_or_else(|error| Done::Failed { work, error })
    }

    fn work(&self) -> Work {
        match self {
            Self::Judge(commitment) => Work::Judging(commitment.update.hash),
            Self::Merge { .. } => Work::Merge,
            Self::Store { .. } => Work::Checkpoint,
            Self::Evaluate { .. } => Work::Evaluation,
            Self::Sample { .. } => Work::Sample,
        }
    }

    async fn done(self, arithmetic: Arc<Arithmetic>, blobs: Blobs, room: Room) -> Result<Done> {
        match self {
            Self::Judge(commitment) => judge(*commitment, arithmetic, blobs, room).await,
            Self::Merge {
                round,
                model,
                parts,
                late,
            } => merge(round, &model, parts, &late, arithmetic, blobs, room).await,
            Self::Store { run, model } => {
                let checkpoint = arithmetic.store(&model, run, &blobs).await?;
                Ok(Done::Stored { model, checkpoint })
            }
            Self::Evaluate {
                model,
                held_out,
                threads,
            } => {
                blocking(move || {
                    Ok(Done::Evaluated {
                        round: model.state.round,
                        evaluation: held_out.evaluate(&arithmetic.config, &model, threads)?,
                    })
                })
                .await
            }
            Self::Sample {
                model,
                held_out,
                prompt,
                tokens,
            } => {
                blocking(move || {
                    Ok(Done::Sampled {
                        round: model.state.round,
                        text: held_out.sample(&arithmetic.config, &model, &prompt, tokens)?,
                        prompt,
                    })
                })
                .await
            }
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> anyhow::Error {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    anyhow::anyhow!("a panic: {}", said.unwrap_or("it said nothing"))
}

async fn judge(
    commitment: Commitment,
    arithmetic: Arc<Arithmetic>,
    blobs: Blobs,
    room: Room,
) -> Result<Done> {
    let _turn = room.turn().await;
    let update = commitment.update.hash;
    let header = commitment.header;
    let bytes = blobs.read_or_drop(&commitment.update).await?;
    let (inner_state, is_complete) = match &header.inner_state {
        Some(blob) => {
            let bytes = blobs.read_or_drop(blob).await?;
            let is_here = bytes.is_some();
            (bytes, is_here)
        }
        None => (None, true),
    };
    let Some(bytes) = bytes.filter(|_| is_complete) else {
        let (work, updates) = (Work::Judging(update), vec![update]);
        return Ok(Done::Lost { work, updates });
    };
    blocking(move || {
        let mut verdict = arithmetic.judge(&bytes, &header).map(Arc::new);
        if let (Ok(_), Some(inner_state)) = (&verdict, &inner_state)
            && let Err(reason) = arithmetic.judge_inner_state(inner_state)
        {
            verdict = Err(reason);
        }
        let verdict = verdict.map(|decoded| room.keep(decoded));
        Ok(Done::Judged { update, verdict })
    })
    .await
}

async fn merge(
    round: Round,
    model: &Model,
    parts: Vec<Part>,
    late: &LateUpdates,
    arithmetic: Arc<Arithmetic>,
    blobs: Blobs,
    room: Room,
) -> Result<Done> {
    let _turn = room.turn().await;
    let bytes_max = room.merge_bytes_max();
    let (work, mut lost) = (Work::Merge, Vec::new());
    let copies = copies(late, &parts, &arithmetic, &blobs, bytes_max, &mut lost).await?;
    if !lost.is_empty() {
        let updates = lost;
        return Ok(Done::Lost { work, updates });
    }
    if !copies.is_empty() {
        return Ok(Done::Outliers { refused: copies });
    }
    let merged = arithmetic.merge(model, round, parts, &blobs, bytes_max);
    match merged.await? {
        Merged::Refused(refused) => Ok(Done::Outliers { refused }),
        Merged::Lost(updates) => Ok(Done::Lost { work, updates }),
        Merged::Whole(merge) => Ok(Done::Merged {
            model: merge.model,
            delta: blobs.put(merge.delta).await?,
        }),
    }
}

/// The late updates that are copies of what others had shown before; those whose bytes are gone go to `lost`.
async fn copies(
    updates: &LateUpdates,
    parts: &[Part],
    arithmetic: &Arc<Arithmetic>,
    blobs: &Blobs,
    bytes_max: usize,
    lost: &mut Vec<Hash>,
) -> Result<Vec<(Hash, RefusalReason)>> {
    let decoded: HashMap<Hash, &Arc<DecodedUpdate>> = parts
        .iter()
        .filter_map(|it| Some((it.merged.update.hash, it.decoded.as_ref()?)))
        .collect();
    let (mut refused, mut compared, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (_, late) in &updates.late {
        let hash = late.update.hash;
        let update = match decoded.get(&hash) {
            Some(decoded) => Arc::clone(decoded),
            None => match blobs.read_or_drop(&late.update).await? {
                Some(bytes) => decode(bytes, arithmetic).await?,
                None => {
                    lost.push(hash);
                    continue;
                }
            },
        };
        let of_one = blocking(move || Ok(Compared::of(&hash, &update))).await?;
        bytes += of_one.memory_bytes();
        compared.push((*late, of_one));
        if bytes >= bytes_max {
            let full = std::mem::take(&mut compared);
            refused.extend(copies_among(full, &updates.shown, &decoded, arithmetic, blobs).await?);
            bytes = 0;
        }
    }
    refused.extend(copies_among(compared, &updates.shown, &decoded, arithmetic, blobs).await?);
    Ok(refused)
}

/// Compares late updates with all that were shown, each of which is read once, however many are late.
async fn copies_among(
    late: Vec<(Shown, Compared)>,
    shown: &[Shown],
    decoded: &HashMap<Hash, &Arc<DecodedUpdate>>,
    arithmetic: &Arc<Arithmetic>,
    blobs: &Blobs,
) -> Result<Vec<(Hash, RefusalReason)>> {
    let mut left = late;
    let mut refused = Vec::new();
    for other in shown {
        if !left.iter().any(|(late, _)| late.may_be_copy_of(other)) {
            continue;
        }
        let hash = other.update.hash;
        let earlier = match decoded.get(&hash) {
            Some(decoded) => Arc::clone(decoded),
            None => match blobs.read_if_whole(&other.update).await? {
                Some(bytes) => decode(bytes, arithmetic).await?,
                None => {
                    tracing::warn!(blob = %hash, "an update is gone or damaged: late ones are not compared with it");
                    continue;
                }
            },
        };
        let other = *other;
        (left, refused) = blocking(move || {
            left.retain(|(late, compared)| {
                let is_concerned = late.may_be_copy_of(&other);
                match is_concerned.then(|| compared.copied(&earlier, &hash)) {
                    Some(Some(reason)) => {
                        refused.push((late.update.hash, reason));
                        false
                    }
                    _ => true,
                }
            });
            Ok((left, refused))
        })
        .await?;
    }
    Ok(refused)
}

async fn decode(bytes: Bytes, arithmetic: &Arc<Arithmetic>) -> Result<Arc<DecodedUpdate>> {
    let arithmetic = Arc::clone(arithmetic);
    Ok(Arc::new(blocking(move || arithmetic.decode(&bytes)).await?))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    network::world::blocking(work).await?
}
