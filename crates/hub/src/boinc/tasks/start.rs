//! From where a host comes to the newest model with the fewest bytes, and what it need not keep.

use anyhow::Result;
use protocol::{
    Hash,
    api::{Work, WorkDelta},
    units::BlobReference,
};

use super::{FILES_MAX, For};
use crate::boinc::{Door, reply::Task};

/// Older checkpoints that are looked at for one that a host holds.
const CHECKPOINTS_MAX: u64 = 16;

impl Door {
    /// Lets the host come to the model from the checkpoint from which fewest bytes are missing: the newest, or an older one
    /// that it holds with the deltas since.
    pub(super) async fn choose_start(&self, whom: &For<'_>, work: &mut Work) -> Result<()> {
        let held = |hash: &str| whom.request.files.iter().any(|it| it.name == hash);
        let model = &work.model;
        let missing = |bytes: u64, hash: &str| if held(hash) { 0 } else { bytes };
        let all = |checkpoint: (&str, u64), deltas: &[WorkDelta]| {
            let deltas = deltas.iter().map(|it| missing(it.bytes, &it.blob));
            missing(checkpoint.1, checkpoint.0) + deltas.sum::<u64>()
        };
        let mut fewest = all(
            (&model.checkpoint_blob, model.checkpoint_bytes),
            &model.deltas,
        );
        if fewest == 0 {
            return Ok(());
        }
        let (store, run) = (&whom.hub.store, whom.run.id);
        let mut start = None;
        for older in store.checkpoints(run, CHECKPOINTS_MAX).await? {
            if older.round >= model.checkpoint_round || !held(&older.blob) {
                continue;
            }
            let mut deltas = store.deltas_after(run, older.round).await?;
            deltas.retain(|it| it.round <= model.round);
            let bytes = all((&older.blob, older.bytes), &deltas);
            if bytes < fewest && deltas.len() < FILES_MAX / 2 {
                fewest = bytes;
                start = Some((older, deltas));
            }
        }
        if let Some((checkpoint, deltas)) = start {
            work.model.checkpoint_round = checkpoint.round;
            work.model.checkpoint_blob = checkpoint.blob;
            work.model.checkpoint_bytes = checkpoint.bytes;
            work.model.deltas = deltas;
        }
        Ok(())
    }
}

/// Sticky files of a host that nothing asks for any more: old checkpoints and deltas.
pub(in crate::boinc) fn to_delete(whom: &For<'_>, task: &Task) -> Vec<String> {
    let data = &whom.run.charter.data;
    let shards = data.training.iter().chain(&data.held_out);
    let shards: Vec<String> = shards.map(|it| it.blob.hash.to_string()).collect();
    let held = whom.request.files.iter().map(|it| &it.name);
    held.filter(|name| {
        let is_ours = name.parse::<Hash>().is_ok();
        let is_needed = task.inputs.iter().any(|it| it.name == **name);
        is_ours && !is_needed && !shards.contains(name)
    })
    .cloned()
    .collect()
}

/// The checkpoint and the deltas of a model.
pub(super) fn model_files(work: &Work) -> Result<Vec<BlobReference>> {
    let model = &work.model;
    let mut blobs = vec![BlobReference {
        hash: model.checkpoint_blob.parse()?,
        bytes: model.checkpoint_bytes,
    }];
    for delta in &model.deltas {
        blobs.push(BlobReference {
            hash: delta.blob.parse()?,
            bytes: delta.bytes,
        });
    }
    Ok(blobs)
}
