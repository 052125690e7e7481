//! The same seed gives the same log.

use sim::{Profile, simulate};

#[test]
fn the_same_seed_gives_the_same_log() {
    let run = |seed| {
        let profile = Profile {
            workers: 6,
            rounds: 6,
            ..Profile::churn()
        };
        simulate(seed, profile).unwrap().holding().unwrap()
    };
    let first = run(11);
    assert_eq!(first, run(11));
    assert_ne!(first.log_hash, run(12).log_hash);
}
