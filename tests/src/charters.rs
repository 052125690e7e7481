//! Charters of test runs: the demo's with other numbers; and a text that a very small model learns from in seconds.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use crate::places;

/// Documents of the small text.
const DOCUMENTS: usize = 400;
/// Sentences of each.
const SENTENCES: usize = 12;

/// The demo's charter with some of its numbers replaced.
///
/// # Errors
/// If the demo has no such number.
pub fn with(changes: &[(&str, u64)]) -> Result<String> {
    let mut lines: Vec<String> = places::demo_charter()?.lines().map(str::to_owned).collect();
    for (name, value) in changes {
        let key = format!("{name} = ");
        let mut found = 0;
        for line in lines.iter_mut().filter(|it| it.starts_with(&key)) {
            *line = format!("{key}{value}");
            found += 1;
        }
        ensure!(found == 1, "the demo's charter has {found} lines `{name}`");
    }
    Ok(lines.join("\n") + "\n")
}

/// A model of 0.1 M parameters, rounds of a second and a half.
///
/// # Errors
/// As [`with`].
pub fn small() -> Result<String> {
    with(&[
        ("hidden_size", 64),
        ("intermediate_size", 128),
        ("num_hidden_layers", 2),
        ("max_position_embeddings", 64),
        ("batch_rows", 2),
        ("sequence", 64),
        ("warmup_tokens", 5_000),
        ("warm_start_tokens", 2_000),
        ("window_ms", 1_500),
        ("reveal_ms", 10_000),
        ("steps_max", 20),
        ("checkpoint_every", 4),
    ])
}

/// The small model in a run that takes BOINC hosts: their units train this long, and a round leaves them the time that their
/// client takes beside. Rounds end as soon as everyone who is there has committed.
///
/// # Errors
/// As [`with`].
pub fn boinc(unit_ms: u64, window_ms: u64, steps_max: u64) -> Result<String> {
    let charter = small()?
        .replace("window_ms = 1500", &format!("window_ms = {window_ms}"))
        .replace("warm_start_tokens = 2000", "warm_start_tokens = 0")
        .replace("steps_max = 20", &format!("steps_max = {steps_max}"));
    with_boinc_hosts(&charter, unit_ms)
}

/// A charter whose run takes BOINC hosts, with units that train so long.
///
/// # Errors
/// If it is not one of the demo's form.
pub fn with_boinc_hosts(charter: &str, unit_ms: u64) -> Result<String> {
    let rules = "[round]\n";
    ensure!(
        charter.matches(rules).count() == 1,
        "the demo's charter has one [round]"
    );
    Ok(charter.replace(rules, &format!("{rules}boinc_unit_ms = {unit_ms}\n")))
}

/// Sentences made of few words in a fixed order, one document a line as JSON: the same text each time.
#[must_use]
pub fn small_text() -> String {
    const SUBJECTS: [&str; 8] = [
        "the farmer",
        "a young sailor",
        "my neighbour",
        "the old teacher",
        "every child",
        "some engineer",
        "the quiet baker",
        "a tired doctor",
    ];
    const VERBS: [&str; 8] = [
        "carries",
        "forgets",
        "repairs",
        "paints",
        "remembers",
        "borrows",
        "watches",
        "finds",
    ];
    const OBJECTS: [&str; 8] = [
        "the broken window",
        "a wooden boat",
        "seven letters",
        "the northern road",
        "an empty basket",
        "the village clock",
        "a heavy hammer",
        "some green apples",
    ];
    const ENDS: [&str; 4] = [
        "before winter",
        "after the rain",
        "without a word",
        "at last",
    ];
    let mut text = String::new();
    let mut state = 1_u32;
    let mut draw = |count: usize| {
        // Numerical Recipes' linear congruential generator; its upper bits are good enough for words.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize % count
    };
    for document in 0..DOCUMENTS {
        write!(text, "{{\"text\": \"Number {document}.").expect("writing to a string");
        for _ in 0..SENTENCES {
            let subject = draw(SUBJECTS.len());
            // A subject has two verbs and a verb three objects: something to learn.
            let verb = (2 * subject + draw(2)) % VERBS.len();
            let object = (3 * verb + draw(3)) % OBJECTS.len();
            let (subject, verb, object) = (SUBJECTS[subject], VERBS[verb], OBJECTS[object]);
            let end = ENDS[draw(ENDS.len())];
            write!(text, " {subject} {verb} {object} {end}.").expect("writing to a string");
        }
        text.push_str("\"}\n");
    }
    text
}
