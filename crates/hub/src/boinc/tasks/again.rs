//! A round that another account's host trained, to be trained again: the spot check of its update.

use anyhow::{Context, Result};
use protocol::{
    boinc::{Output, Unit as SignedUnit, UnitTask},
    units::WorkerId,
};

use super::{Draft, For, OTHERS_DEADLINE_MS};
use crate::boinc::{Door, reply::Task, store::Check};

/// A host that would need so many times a round's own time makes no copy of it: it would miss too many rounds.
const SLOWNESS_MAX: u64 = 2;

impl Door {
    /// The task that makes another account's update again; none if there is nothing to check, or nothing that this host is
    /// fast enough for.
    pub(in crate::boinc) async fn train_again(
        &self,
        whom: &For<'_>,
        worker: WorkerId,
    ) -> Result<Option<Task>> {
        let (run, store) = (whom.run.id, &self.store);
        let before_ms = whom.now_ms.saturating_sub(OTHERS_DEADLINE_MS);
        store.drop_old_checks(run, before_ms).await?;
        for check in store.open_checks(run, whom.account.id).await? {
            let Some(expected_ms) = expected_ms(whom, worker, &check).await else {
                continue;
            };
            let Some(draft) = self.draft_again(whom, worker, &check, expected_ms).await? else {
                store.drop_check(check.id).await?;
                continue;
            };
            let task = self.give(whom, draft).await?;
            let (account, host) = (whom.account.id, whom.host.id);
            store
                .add_copy(task.name.clone(), check.id, account, host)
                .await?;
            return Ok(Some(task));
        }
        Ok(None)
    }

    /// The checked task again; nothing if a file of it is gone.
    async fn draft_again(
        &self,
        whom: &For<'_>,
        worker: WorkerId,
        check: &Check,
        expected_ms: u64,
    ) -> Result<Option<Draft>> {
        let (signed, _) = SignedUnit::open(&check.sealed)?;
        let UnitTask::Train(mut task) = signed.task else {
            anyhow::bail!("the checked task {} trained nothing", signed.name);
        };
        let assignment = task.work.assignment.as_ref();
        let round = assignment.context("there is no assignment")?.round;
        // The charter is the first file of every task.
        let blobs: Vec<_> = signed.files.iter().skip(1).map(|it| it.blob).collect();
        for blob in &blobs {
            if whom.hub.blobs.length(&blob.hash).await? != Some(blob.bytes) {
                return Ok(None);
            }
        }
        let deadline_ms = whom.now_ms + OTHERS_DEADLINE_MS;
        let host_now_ms = whom.request.now_ms.unwrap_or(whom.now_ms);
        // The worker began afresh, whatever the log said that it carried.
        task.work.worker.carried = None;
        task.train_ms = expected_ms;
        task.until_ms = host_now_ms.saturating_add(OTHERS_DEADLINE_MS);
        task.repeated_steps = Some(check.steps);
        Ok(Some(Draft {
            kind: "again",
            round: Some(round),
            worker: Some(worker),
            blobs,
            expected_ms,
            deadline_ms,
            upload_bytes_max: Output::head_bytes_max() as u64
                + whom.run.arithmetic.upload_bytes_max(true),
            task: UnitTask::Train(task),
        }))
    }
}

/// How long a host takes for a copy, by what it said of its speed; nothing if that is too long.
async fn expected_ms(whom: &For<'_>, worker: WorkerId, check: &Check) -> Option<u64> {
    let state = whom.run.state.read().await;
    let per_s = state.workers.get(&worker)?.device.tokens_per_s.max(1);
    let tokens = u64::from(check.steps) * state.charter.tokens_per_step();
    let expected_ms = tokens.saturating_mul(1_000) / u64::from(per_s);
    let longest = SLOWNESS_MAX * state.charter.round.boinc_unit_ms;
    (expected_ms <= longest).then_some(expected_ms)
}
