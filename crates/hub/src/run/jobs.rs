//! What a run computes aside from its log: judging, merging, storing, evaluating, sampling.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use engine::update::decoded::DecodedUpdate;
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
    Failed {
        what: &'static str,
        error: anyhow::Error,
    },
}

impl Job {
    /// Does the work; an error is a result too.
    pub(super) async fn run(self, arithmetic: Arc<Arithmetic>, blobs: Blobs) -> Done {
        let (what, done) = match self {
            Self::Judge(commitment) => (
                "judging an update",
                judge(*commitment, arithmetic, blobs).await,
            ),
            Self::Merge {
                round,
                rate_q16,
                model,
                parts,
            } => (
                "the merge",
                merge((round, rate_q16), model, parts, arithmetic, blobs).await,
            ),
            Self::Store { run, model } => {
                let stored = arithmetic.store(&model, run, &blobs).await;
                (
                    "storing a checkpoint",
                    stored.map(|checkpoint| Done::Stored { model, checkpoint }),
                )
            }
            Self::Evaluate {
                model,
                held_out,
                threads,
            } => (
                "the evaluation",
                blocking(move || {
                    Ok(Done::Evaluated {
                        round: model.state.round,
                        evaluation: held_out.evaluate(&arithmetic.config, &model, threads)?,
                    })
                })
                .await,
            ),
            Self::Sample {
                model,
                held_out,
                prompt,
                tokens,
            } => (
                "drawing a sample",
                blocking(move || {
                    Ok(Done::Sampled {
                        round: model.state.round,
                        text: held_out.sample(&arithmetic.config, &model, &prompt, tokens)?,
                        prompt,
                    })
                })
                .await,
            ),
        };
        done.unwrap_or_else(|error| Done::Failed { what, error })
    }
}

async fn judge(commitment: Commitment, arithmetic: Arc<Arithmetic>, blobs: Blobs) -> Result<Done> {
    let bytes = blobs
        .read(&commitment.update)
        .await?
        .context("the update's bytes are missing")?;
    let header = commitment.header;
    let inner_state = match &header.inner_state {
        Some(blob) => blobs.read(blob).await?,
        None => None,
    };
    blocking(move || {
        let mut verdict = arithmetic.judge(&bytes, &header).map(Arc::new);
        if let (Ok(_), Some(inner_state)) = (&verdict, &inner_state)
            && let Err(reason) = arithmetic.judge_inner_state(inner_state)
        {
            verdict = Err(reason);
        }
        Ok(Done::Judged {
            update: commitment.update.hash,
            verdict,
        })
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
    let copies = copies(&parts, &arithmetic, &blobs).await?;
    if !copies.is_empty() {
        return Ok(Done::Outliers { refused: copies });
    }
    let mut read = Vec::with_capacity(parts.len());
    for part in parts {
        let bytes = match part.decoded {
            Some(_) => None,
            None => Some(
                blobs
                    .read(&part.merged.update)
                    .await?
                    .context("an accepted update's bytes are missing")?,
            ),
        };
        read.push((part, bytes));
    }
    let computed = {
        let arithmetic = Arc::clone(&arithmetic);
        blocking(move || {
            let parts = read
                .into_iter()
                .map(|(part, bytes)| decoded_part(&arithmetic, part, bytes.as_deref()))
                .collect::<Result<Vec<_>>>()?;
            let refused = arithmetic.outliers(&parts);
            if !refused.is_empty() {
                return Ok(Err(refused));
            }
            Ok(Ok(arithmetic.merge(&model, round, rate_q16, &parts)?))
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

/// The late updates that are copies of what others had shown before.
async fn copies(
    parts: &[MergePart],
    arithmetic: &Arc<Arithmetic>,
    blobs: &Blobs,
) -> Result<Vec<(Hash, RefusalReason)>> {
    let mut refused = Vec::new();
    // Each is read once, however many are late.
    let mut shown: HashMap<Hash, Bytes> = HashMap::new();
    for part in parts.iter().filter(|it| !it.earlier.is_empty()) {
        let mut earlier = Vec::with_capacity(part.earlier.len());
        for other in &part.earlier {
            let hash = other.update.hash;
            if let Entry::Vacant(place) = shown.entry(hash) {
                let Some(bytes) = blobs.read(&other.update).await? else {
                    tracing::warn!(blob = %hash, "a merged update is gone: late ones are not compared with it");
                    continue;
                };
                place.insert(bytes);
            }
            earlier.push((hash, shown[&hash].clone()));
        }
        let late = part.merged.update;
        let bytes = blobs.read(&late).await?;
        let bytes = bytes.context("an accepted update's bytes are missing")?;
        let arithmetic = Arc::clone(arithmetic);
        let copied = blocking(move || arithmetic.copied(&late.hash, &bytes, &earlier)).await?;
        refused.extend(copied.map(|reason| (late.hash, reason)));
    }
    Ok(refused)
}

fn decoded_part(arithmetic: &Arithmetic, part: MergePart, bytes: Option<&[u8]>) -> Result<Part> {
    let update = match (part.decoded, bytes) {
        (Some(decoded), _) => decoded,
        (None, Some(bytes)) => {
            let header = header_of(bytes)?;
            let decoded = arithmetic
                .judge(bytes, &header)
                .map_err(|reason| anyhow::anyhow!(reason.sentence()))?;
            Arc::new(decoded)
        }
        (None, None) => anyhow::bail!("an accepted update is missing"),
    };
    Ok(Part {
        hash: part.merged.update.hash,
        weight: part.merged.weight,
        tokens: part.merged.tokens,
        standing: part.standing,
        update,
    })
}

fn header_of(bytes: &[u8]) -> Result<UpdateHeader> {
    Ok(protocol::update::open(bytes)?.0)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    network::world::blocking(work).await?
}
