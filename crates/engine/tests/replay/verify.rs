//! A run is computed again from its log and blobs: an honest one holds; a flipped byte or a forged entry is found and named.

use engine::replay::verify::{Finding, Report, Verifier, VerifyError};
use protocol::{Hash, event::Event, log::Entry, state::State, units::BlobReference};

use crate::recorded::{Kind, Recorded, Size, hub_key, record, record_blindly, worker};

const SMALL: Size = Size {
    width: 32,
    layers: 2,
    workers: 3,
    rounds: 4,
    checkpoint_every: 2,
};

fn verify(recorded: &Recorded) -> Result<(Report, State), VerifyError> {
    let mut blobs = recorded.clone();
    let mut verifier = Verifier::begin(&recorded.entries[0], &mut blobs)?;
    for entry in &recorded.entries[1..] {
        verifier.next(entry, &mut blobs)?;
    }
    verifier.end(&mut blobs);
    Ok((verifier.report().clone(), verifier.state().clone()))
}

fn honest() -> Recorded {
    record(SMALL, |_, _| Kind::Honest)
}

fn find<T>(recorded: &Recorded, wanted: impl Fn(&Event) -> Option<T>) -> (usize, T) {
    let found = recorded.entries.iter().enumerate();
    found
        .filter_map(|(index, entry)| Some((index, wanted(&entry.event)?)))
        .next_back()
        .expect("the run has one")
}

fn merged(event: &Event) -> Option<(BlobReference, BlobReference)> {
    match event {
        Event::RoundMerged { delta, updates, .. } => Some((*delta, updates[0].update)),
        _ => None,
    }
}

fn stored(event: &Event) -> Option<(BlobReference, BlobReference)> {
    match event {
        Event::CheckpointPublished { checkpoint, .. } => {
            Some((checkpoint.parameters, checkpoint.outer))
        }
        _ => None,
    }
}

/// One bit in the middle of a blob is another.
fn flip(recorded: &mut Recorded, hash: &Hash) {
    let bytes = recorded.blobs.get_mut(hash).expect("the blob is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
}

#[test]
fn an_honest_run_holds() {
    let recorded = honest();
    let (report, state) = verify(&recorded).unwrap();
    assert!(report.holds(), "{report:#?}");
    assert_eq!(report.entries, recorded.entries.len() as u64);
    assert_eq!((report.merges, report.merges_recomputed), (4, 4));
    assert_eq!((report.updates, report.checkpoints), (12, 3));
    assert!(report.is_first_model_drawn);
    let step = state.charter.tokens_per_step();
    assert_eq!(state.tokens, 12 * step);
    assert!(state.workers.values().all(|it| it.tokens == 4 * step));
}

#[test]
fn a_flipped_bit_in_any_blob_is_named() {
    let recorded = honest();
    for hash in recorded.blobs.keys() {
        let mut changed = recorded.clone();
        flip(&mut changed, hash);
        let (report, _) = verify(&changed).unwrap();
        assert!(!report.holds());
        let Finding { blob, problem, .. } = &report.findings[0];
        assert_eq!(blob.as_ref(), Some(hash), "{report:#?}");
        assert!(problem.contains("they were changed"), "{problem}");
    }
}

#[test]
fn a_flipped_bit_in_any_entry_ends_the_log_there() {
    let recorded = honest();
    for (index, entry) in recorded.entries.iter().enumerate() {
        let mut bytes = entry.to_bytes();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let Ok(entry) = Entry::from_bytes(&bytes) else {
            continue;
        };
        let mut changed = recorded.clone();
        changed.entries[index] = entry;
        let Err(error) = verify(&changed) else {
            panic!("entry {index} was changed and passes");
        };
        let text = error.to_string();
        assert!(text.contains(&format!("log entry {index}")), "{text}");
    }
}

#[test]
fn after_damage_it_goes_on_from_the_next_checkpoint() {
    let mut recorded = honest();
    let first = recorded.entries.iter().find_map(|it| merged(&it.event));
    let (_, update) = first.expect("a run has merges");
    recorded.blobs.remove(&update.hash);
    let (report, _) = verify(&recorded).unwrap();
    assert_eq!(report.findings_count, 0, "{report:#?}");
    // The update itself, and both merges before the checkpoint of round 2.
    let names: Vec<&str> = report.unchecked.iter().map(|it| &it.what[..]).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[1..], ["the merge of round 1", "the merge of round 2"]);
    assert_eq!((report.merges, report.merges_recomputed), (4, 2));
    assert!(!report.holds(), "what was not checked does not hold");
}

#[test]
fn a_hub_that_signs_another_model_is_found() {
    let mut recorded = honest();
    let (at, _) = find(&recorded, merged);
    let entry = &recorded.entries[at];
    let mut event = entry.event.clone();
    if let Event::RoundMerged { model, .. } = &mut event {
        model.outer = Hash([7; 32]);
    }
    let head = protocol::log::Head {
        length: entry.index,
        hash: entry.previous,
        time_ms: entry.time_ms,
    };
    let forged = head.next(&hub_key(), entry.run, entry.time_ms, event);
    recorded.entries.truncate(at);
    recorded.entries.push(forged);
    let (report, _) = verify(&recorded).unwrap();
    assert_eq!(report.findings_count, 1, "{report:#?}");
    assert_eq!(report.findings[0].entry, Some(at as u64));
    assert!(report.findings[0].problem.contains("outer state"));
}

#[test]
fn a_checkpoint_of_another_model_is_found() {
    let mut recorded = honest();
    let (at, (parameters, _)) = find(&recorded, stored);
    let first = recorded.entries.iter().find_map(|it| stored(&it.event));
    let (older, _) = first.expect("a run stores models");
    // Whole and readable, but the model of an earlier round: signed by the hub as the newest.
    let entry = recorded.entries[at].clone();
    let mut event = entry.event.clone();
    if let Event::CheckpointPublished { checkpoint, .. } = &mut event {
        checkpoint.parameters = older;
    }
    let head = protocol::log::Head {
        length: entry.index,
        hash: entry.previous,
        time_ms: entry.time_ms,
    };
    recorded.entries.truncate(at);
    let forged = head.next(&hub_key(), entry.run, entry.time_ms, event);
    recorded.entries.push(forged);
    assert_ne!(older, parameters);
    let (report, _) = verify(&recorded).unwrap();
    assert_eq!(report.findings_count, 1, "{report:#?}");
    assert_eq!(report.findings[0].blob, Some(older.hash));
    assert!(report.findings[0].problem.contains("another model"));
}

/// Refused and accepted updates of each of two workers.
fn verdicts_of_two(kind: impl Fn(u64, u8) -> Kind) -> Vec<(u64, u64)> {
    let size = Size {
        workers: 2,
        ..SMALL
    };
    let recorded = record(size, kind);
    let (report, state) = verify(&recorded).unwrap();
    assert!(report.holds(), "{report:#?}");
    let workers = (0..2).map(|number| &state.workers[&worker(number)]);
    let verdicts = workers.map(|it| (it.updates_refused, it.updates_accepted));
    verdicts.collect()
}

#[test]
fn a_tiny_update_gets_itself_refused_and_nobody_else() {
    // Who brought nothing that counts in rounds 1 and 2 is refused for a tiny update in round 3.
    let verdicts = verdicts_of_two(|round, number| match (round, number) {
        (1 | 2, 1) => Kind::Garbage,
        (3 | 4, 1) => Kind::Tiny,
        _ => Kind::Honest,
    });
    assert_eq!(verdicts, [(0, 4), (4, 0)]);
    // Of two who brought as much, neither is.
    let verdicts = verdicts_of_two(|_, number| match number {
        1 => Kind::Tiny,
        _ => Kind::Honest,
    });
    assert_eq!(verdicts, [(0, 4), (0, 4)]);
}

#[test]
fn a_late_copy_is_refused_and_a_late_update_is_not() {
    let late = |copied: bool| {
        move |round: u64, number: u8| match (round, number) {
            (2, 1) if copied => Kind::LateCopy,
            (2, 1) => Kind::Late,
            _ => Kind::Honest,
        }
    };
    let (report, state) = verify(&record(SMALL, late(false))).unwrap();
    assert!(report.holds(), "{report:#?}");
    assert_eq!((report.updates, report.refusals), (11, 0));
    assert_eq!(state.workers[&worker(1)].updates_accepted, 3);
    let (report, state) = verify(&record(SMALL, late(true))).unwrap();
    assert!(report.holds(), "{report:#?}");
    assert_eq!((report.updates, report.refusals), (11, 1));
    assert_eq!(state.workers[&worker(1)].updates_refused, 1);
    // A hub that merges it all the same is found out.
    let (report, _) = verify(&record_blindly(SMALL, late(true))).unwrap();
    assert_eq!(report.findings_count, 1, "{report:#?}");
    let problem = &report.findings[0].problem;
    assert!(problem.contains("is a copy"), "{problem}");
}

#[test]
fn refusals_are_looked_at_again() {
    let recorded = record(SMALL, |round, number| match (round, number) {
        (2, 1) => Kind::Garbage,
        (3, 2) => Kind::Huge,
        _ => Kind::Honest,
    });
    let (report, state) = verify(&recorded).unwrap();
    assert!(report.holds(), "{report:#?}");
    assert_eq!((report.refusals, report.refusals_gone), (2, 0));
    let refused: u64 = state.workers.values().map(|it| it.updates_refused).sum();
    assert_eq!(refused, 2);
}

#[test]
fn what_the_hub_lost_before_the_merge_is_missed_by_nobody() {
    let recorded = record(
        Size {
            workers: 4,
            ..SMALL
        },
        |round, number| match (round, number) {
            (2, 1) => Kind::Lost,
            // Its norm is measured without the lost one.
            (2, 2) => Kind::Huge,
            _ => Kind::Honest,
        },
    );
    let (report, state) = verify(&recorded).unwrap();
    assert!(report.holds(), "{report:#?}");
    assert_eq!((report.merges, report.merges_recomputed), (4, 4));
    assert_eq!((report.refusals, report.refusals_gone), (1, 1));
    assert_eq!(
        state.tokens,
        14 * state.charter.tokens_per_step(),
        "only what was merged counts"
    );
    // A merge without its updates is no such thing.
    let (_, (_, update)) = find(&recorded, merged);
    let mut changed = recorded.clone();
    changed.blobs.remove(&update.hash);
    assert!(!verify(&changed).unwrap().0.holds());
}
