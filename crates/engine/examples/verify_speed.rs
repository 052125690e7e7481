//! Measures what checking a run costs: the time of a whole verification over that of reading and merging alone.
//!
//! `cargo run -p engine --example verify_speed [width] [layers] [workers] [rounds]` makes a run in a folder of its own
//! (updates of drawn values, everything else as in production) and goes through it twice, best of a few times each:
//!
//! - **read and merge**: every log entry is decoded, every blob that the verification reads is read from its file, every
//!   update decoded, every round merged into model and residual, its delta taken, applied and encoded. No hash, no
//!   signature, no state machine.
//! - **replay**: [`Verifier`] with the same files: all of that, and the chain's hashes and signatures, each transition, the
//!   hash of every blob, of every round's parameters and outer state, and the comparison with each stored model.
//!
//! Files lie in the system's page cache in both. Prints one `name value` a line.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/replay/recorded.rs"]
mod recorded;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use engine::{
    replay::{Rules, RunModel, proportion::Standings, verify::Blobs, verify::Verifier},
    update::{decoded::DecodedUpdate, merge::Weighted, round::merge_weighted},
};
use protocol::{Hash, event::Event, log::Entry, units::BlobReference, update};
use recorded::{Kind, Size, record};

const RUNS: usize = 5;

/// Blobs as files.
struct Folder(PathBuf);

impl Folder {
    fn bytes(&self, hash: &Hash) -> Vec<u8> {
        fs::read(self.0.join(hash.to_string())).expect("the blob was written")
    }
}

impl Blobs for Folder {
    fn read(&mut self, blob: &BlobReference) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(self.bytes(&blob.hash)))
    }
}

fn main() {
    let argument = |at: usize, otherwise: u32| {
        std::env::args()
            .nth(at)
            .map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let size = Size {
        width: argument(1, 256),
        layers: argument(2, 8),
        workers: argument(3, 8) as u8,
        rounds: u64::from(argument(4, 20)),
        checkpoint_every: 10,
    };
    let place = tempfile::tempdir().expect("a folder for the run");
    let log = write(size, place.path());
    let folder = Folder(place.path().to_owned());
    let (mut merging, mut replaying) = (f64::INFINITY, f64::INFINITY);
    let mut report = None;
    for _ in 0..RUNS {
        merging = merging.min(timed(|| read_and_merge(&log, &folder)));
        replaying = replaying.min(timed(|| report = Some(replay(&log, place.path()))));
    }
    let report = report.expect("it ran");
    assert!(report.holds(), "the run does not hold: {report:#?}");
    println!("verify_rounds {}", report.merges_recomputed);
    println!("verify_updates {}", report.updates);
    println!("verify_blob_bytes {}", report.blob_bytes);
    println!("verify_read_and_merge_s {merging:.3}");
    println!("verify_replay_s {replaying:.3}");
    println!("verify_ratio {:.3}", replaying / merging);
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Makes the run, its blobs as files; returns its log.
fn write(size: Size, folder: &Path) -> Vec<Vec<u8>> {
    let recorded = record(size, |_, _| Kind::Honest);
    for (hash, bytes) in &recorded.blobs {
        fs::write(folder.join(hash.to_string()), bytes).expect("room for the run");
    }
    recorded.entries.iter().map(Entry::to_bytes).collect()
}

fn replay(log: &[Vec<u8>], folder: &Path) -> engine::replay::verify::Report {
    let mut blobs = Folder(folder.to_owned());
    let entry = |bytes: &Vec<u8>| Entry::from_bytes(bytes).expect("an entry");
    let mut verifier = Verifier::begin(&entry(&log[0]), &mut blobs).expect("a log");
    for bytes in &log[1..] {
        let next = verifier.next(&entry(bytes), &mut blobs);
        next.expect("a log that holds");
    }
    verifier.end(&mut blobs);
    verifier.report().clone()
}

/// What nobody can do without who wants the model.
fn read_and_merge(log: &[Vec<u8>], folder: &Folder) {
    let mut rules: Option<Rules> = None;
    let mut model: Option<RunModel> = None;
    let mut decoded: BTreeMap<Hash, DecodedUpdate> = BTreeMap::new();
    let mut standings = Standings::default();
    for bytes in log {
        let entry = Entry::from_bytes(bytes).expect("an entry");
        match &entry.event {
            Event::RunCreated {
                charter,
                checkpoint,
                model: state,
            } => {
                let read = Rules::new(charter).expect("a charter within the limits");
                let parameters = folder.bytes(&checkpoint.parameters.hash);
                let parameters = engine::checkpoint::from_safetensors(&parameters, read.config());
                let parameters = parameters.expect("a checkpoint");
                let outer = folder.bytes(&checkpoint.outer.hash);
                let outer = engine::update::outer::OuterState::from_bytes(&outer, parameters.len());
                model = Some(RunModel {
                    state: *state,
                    parameters: parameters.into(),
                    outer: outer.expect("an outer state").into(),
                });
                rules = Some(read);
            }
            Event::RoundMerged {
                updates,
                delta,
                rate_q16,
                ..
            } => {
                let (rules, model) = (rules.as_ref(), model.as_mut());
                let (rules, model) = rules.zip(model).expect("the run was created");
                std::hint::black_box(folder.bytes(&delta.hash));
                decoded.clear();
                for merged in updates {
                    let file = folder.bytes(&merged.update.hash);
                    let (_, payload) = update::open(&file).expect("an update");
                    let update = rules.decode(payload).expect("an update");
                    decoded.insert(merged.update.hash, update);
                }
                let weighted: Vec<Weighted<'_>> = updates
                    .iter()
                    .map(|it| Weighted {
                        update: &decoded[&it.update.hash],
                        weight: it.weight,
                        standing: standings.of(&it.worker),
                    })
                    .collect();
                standings.count(updates);
                let mut settings = *rules.merge_settings();
                settings.outer_rate_q16 = *rate_q16;
                let parameters = std::sync::Arc::get_mut(&mut model.parameters);
                let outer = std::sync::Arc::get_mut(&mut model.outer);
                let (parameters, outer) = parameters.zip(outer).expect("nobody shares the model");
                let merged = merge_weighted(parameters, outer, &weighted, &settings);
                std::hint::black_box(merged.expect("updates of one model"));
            }
            Event::CheckpointPublished { checkpoint, .. } => {
                std::hint::black_box(folder.bytes(&checkpoint.parameters.hash));
                std::hint::black_box(folder.bytes(&checkpoint.outer.hash));
            }
            _ => {}
        }
    }
}
