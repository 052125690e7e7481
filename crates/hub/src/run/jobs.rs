//! What a run computes aside from its log: judging, merging, storing, evaluating, sampling.

use std::{
    any::Any,
    collections::{HashMap, hash_map::Entry},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use anyhow::Result;
use bytes::Bytes;
use engine::update::decoded::DecodedUpdate;
use futures_util::FutureExt;
use protocol::{
    Hash,
    command::Commitment,
    event::{Checkpoint, Evaluation, MergedUpdate, RefusalReason},
    state::Shown,
    units::{BlobReference, RunId},
    update::UpdateHeader,
};

use super::evaluate::HeldOut;
use crate::{
    blobs::Blobs,
    model::{Arithmetic, Model, Part},
};

/// A piece of work for another thread.
pub(super) enum Job {
    /// Look at an update whose bytes are here.
    Judge(Box<Commitment>),
    /// Make the next model.
    Merge {
        round: u64,
        /// Rate of the step in units of 2^-16.
        rate_q16: u32,
        model: Model,
        parts: Vec<MergePart>,
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

/// One accepted update; decoded already unless the hub was restarted since.
pub(super) struct MergePart {
    pub(super) merged: MergedUpdate,
    /// Its maker's accepted tokens before the merge.
    pub(super) standing: u64,
    /// What it may be a copy of, if it is late.
    pub(super) earlier: Vec<Shown>,
    pub(super) decoded: Option<Arc<DecodedUpdate>>,
}

/// What came of it.
pub(super) enum Done {
    Judged {
        update: Hash,
        verdict: Result<Arc<DecodedUpdate>, RefusalReason>,
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
    pub(super) async fn run(self, arithmetic: Arc<Arithmetic>, blobs: Blobs) -> Done {
        let work = self.work();
        let done = AssertUnwindSafe(self.done(arithmetic, blobs)).catch_unwind();
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

    async fn done(self, arithmetic: Arc<Arithmetic>, blobs: Blobs) -> Result<Done> {
        match self {
            Self::Judge(commitment) => judge(*commitment, arithmetic, blobs).await,
            Self::Merge {
                round,
                rate_q16,
                model,
                parts,
            } => merge((round, rate_q16), model, parts, arithmetic, blobs).await,
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

async fn judge(commitment: Commitment, arithmetic: Arc<Arithmetic>, blobs: Blobs) -> Result<Done> {
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
        Ok(Done::Judged { update, verdict })
    })
    .await
}

async fn merge(
    (round, rate_q16): (u64, u32),
    model: Model,
    parts: Vec<MergePart>,
    arithmetic: Arc<Arithmetic>,
    blobs: Blobs,
) -> Result<Done> {
    let mut lost = Vec::new();
    let copies = copies(&parts, &arithmetic, &blobs, &mut lost).await?;
    if lost.is_empty() && !copies.is_empty() {
        return Ok(Done::Outliers { refused: copies });
    }
    let mut read = Vec::with_capacity(parts.len());
    for part in parts {
        let bytes = match part.decoded {
            Some(_) => None,
            None => {
                let bytes = blobs.read_or_drop(&part.merged.update).await?;
                if bytes.is_none() {
                    lost.push(part.merged.update.hash);
                }
                bytes
            }
        };
        read.push((part, bytes));
    }
    if !lost.is_empty() {
        let (work, updates) = (Work::Merge, lost);
        return Ok(Done::Lost { work, updates });
    }
    let computed = {
        let arithmetic = Arc::clone(&arithmetic);
        blocking(move || {
            let mut refused = Vec::new();
            let mut decoded = Vec::with_capacity(read.len());
            for (part, bytes) in read {
                match decoded_part(&arithmetic, part, bytes.as_deref())? {
                    Ok(part) => decoded.push(part),
                    Err(reason) => refused.push(reason),
                }
            }
            if refused.is_empty() {
                refused = arithmetic.outliers(&decoded);
            }
            if !refused.is_empty() {
                return Ok(Err(refused));
            }
            Ok(Ok(arithmetic.merge(&model, round, rate_q16, &decoded)?))
        })
        .await?
    };
    match computed {
        Err(refused) => Ok(Done::Outliers { refused }),
        Ok(merge) => Ok(Done::Merged {
            model: merge.model,
            delta: blobs.put(merge.delta).await?,
        }),
    }
}

/// The late updates that are copies of what others had shown before; those whose bytes are gone go to `lost`.
async fn copies(
    parts: &[MergePart],
    arithmetic: &Arc<Arithmetic>,
    blobs: &Blobs,
    lost: &mut Vec<Hash>,
) -> Result<Vec<(Hash, RefusalReason)>> {
    let mut refused = Vec::new();
    // Each is read once, however many are late.
    let mut shown: HashMap<Hash, Bytes> = HashMap::new();
    for part in parts.iter().filter(|it| !it.earlier.is_empty()) {
        let mut earlier = Vec::with_capacity(part.earlier.len());
        for other in &part.earlier {
            let hash = other.update.hash;
            if let Entry::Vacant(place) = shown.entry(hash) {
                let Some(bytes) = blobs.read_if_whole(&other.update).await? else {
                    tracing::warn!(blob = %hash, "an update is gone or damaged: late ones are not compared with it");
                    continue;
                };
                place.insert(bytes);
            }
            earlier.push((hash, shown[&hash].clone()));
        }
        let late = part.merged.update;
        let Some(bytes) = blobs.read_or_drop(&late).await? else {
            lost.push(late.hash);
            continue;
        };
        let arithmetic = Arc::clone(arithmetic);
        let copied = blocking(move || arithmetic.copied(&late.hash, &bytes, &earlier)).await?;
        refused.extend(copied.map(|reason| (late.hash, reason)));
    }
    Ok(refused)
}

/// An update decoded, or why it no longer passes: another version of this program had accepted it.
fn decoded_part(
    arithmetic: &Arithmetic,
    part: MergePart,
    bytes: Option<&[u8]>,
) -> Result<Result<Part, (Hash, RefusalReason)>> {
    let hash = part.merged.update.hash;
    let update = match (part.decoded, bytes) {
        (Some(decoded), _) => decoded,
        (None, Some(bytes)) => match arithmetic.judge(bytes, &header_of(bytes)?) {
            Ok(decoded) => Arc::new(decoded),
            Err(reason) => return Ok(Err((hash, reason))),
        },
        (None, None) => anyhow::bail!("an accepted update is missing"),
    };
    Ok(Ok(Part {
        hash,
        weight: part.merged.weight,
        tokens: part.merged.tokens,
        standing: part.standing,
        update,
    }))
}

fn header_of(bytes: &[u8]) -> Result<UpdateHeader> {
    Ok(protocol::update::open(bytes)?.0)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    network::world::blocking(work).await?
}
