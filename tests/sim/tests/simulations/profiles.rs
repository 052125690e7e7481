//! The profiles hold, over several seeds.

use sim::{Outcome, Profile, simulate};

fn check(profile: &Profile, seeds: std::ops::Range<u64>) -> Vec<Outcome> {
    seeds
        .map(|seed| {
            let outcome = simulate(seed, profile.clone()).and_then(Outcome::holding);
            outcome.unwrap_or_else(|error| panic!("seed {seed} of {}: {error:#}", profile.name))
        })
        .collect()
}

#[test]
fn calm() {
    for outcome in check(&Profile::calm(), 1..4) {
        // Without trouble nothing is lost, and everyone is in nearly every round.
        assert_eq!(outcome.updates_refused + outcome.updates_not_revealed, 0);
        assert_eq!(outcome.rounds_empty, 0);
        assert!(outcome.updates_merged >= 180, "{}", outcome.updates_merged);
    }
}

#[test]
fn churn() {
    let outcomes = check(&Profile::churn(), 1..6);
    assert!(outcomes.iter().any(|it| it.updates_late > 0));
}

#[test]
fn storm() {
    let outcomes = check(&Profile::storm(), 1..7);
    assert!(outcomes.iter().any(|it| it.lies > 0));
}

/// The profile of the bench, of a size for every day.
#[test]
fn crowd() {
    let profile = Profile {
        workers: 150,
        rounds: 5,
        ..Profile::crowd()
    };
    check(&profile, 1..2);
}
