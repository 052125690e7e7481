//! What a run computes aside from its log: judging, merging, storing, evaluating, sampling.

use std::{any::Any, collections::HashMap, fmt, panic::AssertUnwindSafe, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use engine::update::decoded::DecodedUpdate;
use futures_util::FutureExt;
use protocol::{
    Hash,
    command::Commitment,
    event::{Checkpoint, Evaluation, RefusalReason},
    state::Shown,
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
        late: Vec<Late>,
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

/// An update that was committed to late.
pub(super) struct Late {
    pub(super) update: BlobReference,
    pub(super) decoded: Option<Arc<DecodedUpdate>>,
    /// What it may be a copy of.
    pub(super) earlier: Vec<Shown>,
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
    late: &[Late],
    arithmetic: Arc<Arithmetic>,
    blobs: Blobs,
    room: Room,
) -> Result<Done> {
    let _turn = room.turn().await;
    let bytes_max = room.merge_bytes_max();
    let (work, mut lost) = (Work::Merge, Vec::new());
    let copies = copies(late, &arithmetic, &blobs, bytes_max, &mut lost).await?;
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
    late: &[Late],
    arithmetic: &Arc<Arithmetic>,
    blobs: &Blobs,
    bytes_max: usize,
    lost: &mut Vec<Hash>,
) -> Result<Vec<(Hash, RefusalReason)>> {
    let mut refused = Vec::new();
    // Each is read once, however many are late, as long as there is room.
    let mut shown: HashMap<Hash, Option<Bytes>> = HashMap::new();
    let mut room = bytes_max as u64;
    for part in late {
        let hash = part.update.hash;
        let update = match &part.decoded {
            Some(decoded) => Arc::clone(decoded),
            None => match blobs.read_or_drop(&part.update).await? {
                Some(bytes) => {
                    let arithmetic = Arc::clone(arithmetic);
                    Arc::new(blocking(move || arithmetic.decode(&bytes)).await?)
                }
                None => {
                    lost.push(hash);
                    continue;
                }
            },
        };
        for other in &part.earlier {
            let earlier = other.update;
            let bytes = match shown.get(&earlier.hash) {
                Some(bytes) => bytes.clone(),
                None => {
                    let bytes = blobs.read_if_whole(&earlier).await?;
                    if bytes.is_none() {
                        tracing::warn!(blob = %earlier.hash, "an update is gone or damaged: late ones are not compared with it");
                    }
                    if earlier.bytes <= room {
                        room -= earlier.bytes;
                        shown.insert(earlier.hash, bytes.clone());
                    }
                    bytes
                }
            };
            let Some(bytes) = bytes else {
                continue;
            };
            let (arithmetic, update) = (Arc::clone(arithmetic), Arc::clone(&update));
            let copied =
                blocking(move || arithmetic.copied((&hash, &update), (&earlier.hash, &bytes)));
            if let Some(reason) = copied.await? {
                refused.push((hash, reason));
                break;
            }
        }
    }
    Ok(refused)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    network::world::blocking(work).await?
}
