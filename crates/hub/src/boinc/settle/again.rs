//! An update that was made again by another account's host: compared with the one that was handed in, and dropped.

use anyhow::{Context, Result};
use protocol::{
    boinc::Output,
    command::{CheckedCommand, Commitment},
    state::decide::fresh,
};

use super::{No, Settling, never, spoilt};
use crate::boinc::{
    entropy,
    store::{Likeness, NewCheck, Settled},
};

/// Checks in a row that must have agreed with a host before some of its updates go unchecked.
const ALWAYS_BELOW: u64 = 10;
/// Comparisons of two arithmetic classes before the bound is theirs.
const LEARNED_FROM: usize = 5;
/// The bound until then, and the lowest that is ever learned.
const COSINE_AT_FIRST: f64 = 0.9;
const COSINE_LEAST: f64 = 0.5;
/// Even classes that differ little differ: nobody is doubted above this.
const COSINE_ENOUGH: f64 = 0.999;
/// How many times as far as usual two updates may be apart.
const TIMES_USUAL: f64 = 4.0;

impl Settling<'_> {
    /// Has an update that was just handed in checked, if it is one that others can make, and as chance has it.
    pub(super) async fn have_checked(&self, commitment: &Commitment) -> Result<()> {
        let header = &commitment.header;
        // What a worker carries is its own: nobody else can begin with it.
        if header.carried_before != fresh() || header.head_start_steps > 0 {
            return Ok(());
        }
        let host = self.door.store.host(self.unit.host).await?;
        let host = host.context("the task's host is gone")?;
        if !is_checked(host.valid_in_row, u64::from_le_bytes(entropy()?)) {
            return Ok(());
        }
        let arithmetic = {
            let state = self.run.state.read().await;
            let record = state.workers.get(&header.worker);
            record.map_or_else(String::new, |it| it.device.arithmetic.clone())
        };
        let check = NewCheck {
            unit: self.unit.name.clone(),
            run: self.run.id,
            account: self.unit.account,
            host: self.unit.host,
            update: commitment.update,
            steps: header.steps,
            arithmetic,
            now_ms: self.hub.clock.now_ms(),
        };
        self.door.store.add_check(check).await
    }

    /// Compares a copy with what it is a copy of.
    pub(super) async fn again(
        &mut self,
        start: u64,
        output: &Output,
        commands: &[CheckedCommand],
    ) -> Result<Settled, No> {
        let store = &self.door.store;
        let (true, [copy]) = (commands.is_empty(), output.files.as_slice()) else {
            return Err(never("the machine did not make the update again"));
        };
        if copy.bytes > self.run.arithmetic.upload_bytes_max(true) {
            return Err(spoilt("no update of this run is that long"));
        }
        self.check_files_once(start, &[*copy]).await?;
        let Some(check) = store.check_of_copy(&self.unit.name).await? else {
            return Err(never("what it was to check is decided"));
        };
        let worker = self.unit.worker.context("a check by no worker")?;
        let own = {
            let state = self.run.state.read().await;
            let record = state.workers.get(&worker);
            record.map_or_else(String::new, |it| it.device.arithmetic.clone())
        };
        let mut classes = [own.as_str(), check.arithmetic.as_str()];
        classes.sort_unstable();
        let (is_one_class, classes) = (own == check.arithmetic, classes.join(" | "));
        let cosine = if *copy == check.update {
            1.0
        } else {
            let Some(theirs) = self.hub.blobs.read(&check.update).await? else {
                store.drop_check(check.id).await?;
                return Ok(Settled::default());
            };
            let bytes = self.content.part(start, copy.bytes as usize).await?;
            let arithmetic = std::sync::Arc::clone(&self.run.arithmetic);
            let compared = tokio::task::spawn_blocking(move || {
                let theirs = arithmetic.decode(&theirs)?;
                // What does not read is like nothing.
                let copy = arithmetic.decode(&bytes).ok();
                anyhow::Ok(copy.map_or(0.0, |it| it.cosine(&theirs)))
            });
            compared.await.context("comparing two updates")??
        };
        let agrees = match is_one_class {
            true => *copy == check.update,
            false => bound(store.cosines(&classes).await?) <= cosine,
        };
        if !agrees {
            tracing::warn!(
                unit = self.unit.name,
                cosine,
                classes,
                "an update came out differently when another machine made it again"
            );
        }
        let likeness = Likeness {
            classes,
            cosine,
            agrees,
        };
        store.settle_copy(self.unit.name.clone(), likeness).await?;
        Ok(Settled::default())
    }
}

/// Whether an update is checked: always at first, then one of as many as agreed in a row.
fn is_checked(valid_in_row: u64, chance: u64) -> bool {
    valid_in_row < ALWAYS_BELOW || chance.is_multiple_of(valid_in_row)
}

/// The least cosine of two updates of one pair of arithmetic classes that agree. Most pairs compared are honest: what is much
/// further apart than the middle one is not.
fn bound(mut cosines: Vec<f64>) -> f64 {
    if cosines.len() < LEARNED_FROM {
        return COSINE_AT_FIRST;
    }
    cosines.sort_by(f64::total_cmp);
    let middle = cosines[cosines.len() / 2];
    (1.0 - TIMES_USUAL * (1.0 - middle)).clamp(COSINE_LEAST, COSINE_ENOUGH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_earned_and_never_whole() {
        for chance in [0, 1, 7, u64::MAX] {
            assert!(is_checked(0, chance) && is_checked(9, chance));
        }
        let checked = (0..1_000).filter(|it| is_checked(20, *it)).count();
        assert_eq!(checked, 50);
    }

    #[test]
    fn what_is_usual_between_two_classes_is_learned() {
        assert_eq!(bound(vec![0.2; 4]), COSINE_AT_FIRST);
        let learned = bound(vec![0.99, 0.98, 0.1, 0.97, 0.98]);
        assert!((learned - 0.92).abs() < 1e-9, "{learned}");
        assert_eq!(bound(vec![1.0; 9]), COSINE_ENOUGH);
        // Liars who are many move it no further than this.
        assert_eq!(bound(vec![0.0; 9]), COSINE_LEAST);
    }
}
