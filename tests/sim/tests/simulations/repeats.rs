//! The same seed gives the same log.

use sim::{Profile, simulate};

#[track_caller]
fn check(profile: &Profile) {
    let run = |seed| {
        let profile = Profile {
            workers: 6,
            rounds: 6,
            ..profile.clone()
        };
        simulate(seed, profile).unwrap().holding().unwrap()
    };
    let first = run(11);
    assert_eq!(first, run(11));
    assert_ne!(first.log_hash, run(12).log_hash);
}

#[test]
fn the_same_seed_gives_the_same_log() {
    check(&Profile::churn());
}

#[test]
fn a_storm_repeats_itself() {
    check(&Profile::storm());
}
