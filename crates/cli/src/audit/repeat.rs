//! Brings an auditor's machine to where an update began, and does it again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use engine::{
    replay::{Rules, verify::Blobs as _},
    update::{
        leaves,
        steps::{LEAVES_MAX, StepLeaf},
    },
};
use protocol::{Hash, state::decide::fresh, units::BlobReference};
use tokio::runtime::Handle;
use worker::audit::{
    Auditor, Case, Executed, Merge,
    compare::{Comparison, compare},
};

use super::{
    history::{Facts, Merged, Record, chain},
    required,
};
use crate::source::Source;

/// Longest file of leaves that is read, in bytes.
const LEAVES_BYTES_MAX: u64 = 9 + 144 * LEAVES_MAX as u64;

/// What the worker showed.
pub(super) struct Given {
    /// Its folder of carried states, or a file in it.
    pub(super) carried: Option<PathBuf>,
    /// Its folder of leaves, or a file in it.
    pub(super) leaves: Option<PathBuf>,
}

/// Updates of one worker being done again, one after the other.
pub(super) struct Repetition<'a> {
    auditor: Auditor,
    rules: Rules,
    facts: &'a Facts,
    source: &'a mut Source,
    given: Given,
    runtime: Handle,
    /// What the worker says it carried, and what came out here instead.
    own: HashMap<Hash, Hash>,
}

impl<'a> Repetition<'a> {
    pub(super) fn new(
        auditor: Auditor,
        facts: &'a Facts,
        source: &'a mut Source,
        given: Given,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            auditor,
            rules: Rules::new(&facts.charter)?,
            facts,
            source,
            given,
            runtime: Handle::current(),
            own: HashMap::new(),
        })
    }

    /// What must be done again for the last of these: itself alone if its worker showed what it carried in.
    pub(super) fn chain(&mut self, records: &[Record]) -> anyhow::Result<Vec<Record>> {
        let last = records.last().context("there is no update")?;
        let wanted = last.commitment.header.carried_before;
        match self.given.carried.clone() {
            Some(path) if wanted != fresh() => {
                let folder = if path.is_dir() {
                    path.clone()
                } else {
                    path.parent().unwrap_or(Path::new(".")).to_owned()
                };
                ensure!(
                    self.auditor.continue_from_folder(wanted, &folder)?,
                    "{} does not hold the state {wanted} that the update carried in; without --carried it is computed",
                    path.display()
                );
                Ok(vec![last.clone()])
            }
            Some(_) | None => chain(records),
        }
    }

    /// Does an update again and compares it with what its worker committed to.
    pub(super) fn repeat(&mut self, record: &Record) -> anyhow::Result<Comparison> {
        let header = &record.commitment.header;
        let opening = self
            .facts
            .openings
            .get(&header.round)
            .with_context(|| format!("the log has no opening of round {}", header.round))?;
        let case = Case {
            header: header.clone(),
            seed: opening.seed,
            slots: opening.slots,
            tokens_before: opening.tokens_before,
        };
        for shard in self.auditor.missing_shards(&case) {
            let reference = &self.facts.charter.data.training[shard as usize];
            let bytes = required(self.source, &reference.blob, "a training data shard")?;
            self.auditor.add_shard(shard, &bytes)?;
        }
        // Whoever had a head start began from the round's own base and took the merges since up on the way.
        let begun = match header.head_start_steps {
            0 => (header.base_round, header.base),
            _ => (opening.base.round, opening.base.parameters),
        };
        let newer = self.merged_between(begun.0, header.base_round);
        let newer = newer.iter().map(|it| self.merge(it));
        let newer = newer.collect::<anyhow::Result<Vec<Merge>>>()?;
        let file = self.file(&record.commitment.update)?;
        let shown = self.leaves(&header.steps_root)?;
        let starts = if header.carried_before == fresh() {
            self.facts.inner_starts(record)
        } else {
            vec![None]
        };
        let mut best: Option<(Comparison, Executed)> = None;
        for start in starts {
            self.go_to(begun)?;
            self.take_carried(header.carried_before, start)?;
            let executed = self.runtime.block_on(self.auditor.execute(&case, &newer))?;
            let (file, shown) = (file.as_deref(), shown.as_deref());
            let comparison = compare(&self.rules, header, file, shown, &executed);
            let is_equal = comparison.is_equal();
            if is_equal || best.is_none() {
                best = Some((comparison, executed));
            }
            if is_equal {
                break;
            }
        }
        let (comparison, executed) = best.context("nothing to begin from")?;
        let found = &executed.header;
        self.auditor
            .keep_only(&[found.carried_after, found.carried_if_refused])?;
        self.own = HashMap::from([
            (header.carried_after, found.carried_after),
            (header.carried_if_refused, found.carried_if_refused),
        ]);
        Ok(comparison)
    }

    /// Brings what is carried in to what the update says: from the worker, from an update done before, or afresh.
    fn take_carried(&mut self, wanted: Hash, start: Option<BlobReference>) -> anyhow::Result<()> {
        if wanted == fresh() {
            let start = match start {
                None => None,
                Some(blob) => {
                    let what = "the published inner state that it began from";
                    Some((blob.hash, required(self.source, &blob, what)?))
                }
            };
            return self.auditor.begin_fresh(start);
        }
        if self.own.is_empty() {
            // Shown by the worker, and taken already.
            return Ok(());
        }
        let own = self
            .own
            .get(&wanted)
            .context("the chain of updates broke")?;
        ensure!(
            self.auditor.continue_from(*own)?,
            "a state that was computed a moment ago is gone"
        );
        Ok(())
    }

    /// Brings the machine's model to this one: onward by deltas, or from the newest checkpoint before it.
    fn go_to(&mut self, (round, parameters): (u64, Hash)) -> anyhow::Result<()> {
        let held = self.auditor.held().filter(|(held, _)| *held <= round);
        let from = match held {
            Some((held, _)) => held,
            None => {
                let newest = self.facts.checkpoints.range(..=round).next_back();
                let (at, blob) = newest.context("the log has no checkpoint before the update")?;
                let what = format!("the checkpoint of round {at}");
                let bytes = required(self.source, blob, &what)?;
                self.auditor.load_checkpoint(*at, &bytes)?;
                *at
            }
        };
        for merged in self.merged_between(from, round) {
            let merge = self.merge(&merged)?;
            self.auditor.apply(&merge)?;
        }
        let held = self.auditor.held();
        ensure!(
            held == Some((round, parameters)),
            "checkpoint and deltas do not give the model of round {round} that the update names"
        );
        Ok(())
    }

    /// The merges after one round up to another, as the log names them.
    fn merged_between(&self, after: u64, up_to: u64) -> Vec<Merged> {
        let between = |it: &&Merged| after < it.model.round && it.model.round <= up_to;
        self.facts.merges.iter().filter(between).cloned().collect()
    }

    fn merge(&mut self, merged: &Merged) -> anyhow::Result<Merge> {
        let round = merged.model.round;
        let what = format!("the delta of round {round}");
        Ok(Merge {
            round,
            after: merged.model.parameters,
            delta: required(self.source, &merged.delta, &what)?.into(),
        })
    }

    /// The update's file, if it is there.
    fn file(&mut self, blob: &BlobReference) -> anyhow::Result<Option<Vec<u8>>> {
        match self.source.read(blob) {
            Ok(None) => Ok(None),
            Ok(Some(_)) | Err(_) => required(self.source, blob, "the update's file").map(Some),
        }
    }

    /// The leaves that the worker showed for this root; none if it showed none.
    fn leaves(&self, root: &Hash) -> anyhow::Result<Option<Vec<StepLeaf>>> {
        let Some(path) = &self.given.leaves else {
            return Ok(None);
        };
        let Some(path) = leaves_file(path, root)? else {
            return Ok(None);
        };
        let length = fs::metadata(&path)?.len();
        ensure!(
            length <= LEAVES_BYTES_MAX,
            "{} is longer than any list of leaves",
            path.display()
        );
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let leaves = leaves::from_bytes(&bytes);
        Ok(Some(leaves.with_context(|| {
            format!("{} can't be read", path.display())
        })?))
    }
}

/// The file itself, or the one of a folder that is named by this root; none if there is none.
fn leaves_file(path: &Path, root: &Hash) -> anyhow::Result<Option<PathBuf>> {
    if !path.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    let ending = format!("-{root}.leaves");
    let listing = || format!("can't list the folder {}", path.display());
    for item in fs::read_dir(path).with_context(listing)? {
        let file = item.with_context(listing)?.path();
        let name = file.file_name().and_then(|it| it.to_str());
        if name.is_some_and(|it| it.ends_with(&ending)) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
