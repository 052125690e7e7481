//! Liars get nothing, and keep nobody from what is theirs.

use std::collections::BTreeSet;

use sim::{Profile, liar::Lie};

use super::{check, few};

#[test]
fn liars_get_nothing() {
    let profile = Profile {
        liars_per_mille: 400,
        ..few(10)
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = check(61, profile, async move |simulation| {
        simulation.live_to_round(25).await?;
        let told: BTreeSet<Lie> = simulation
            .liars
            .iter()
            .flat_map(|it| it.told().times.into_keys())
            .collect();
        sender.send((told, simulation.liars.len()))?;
        Ok(())
    });
    let (told, liars) = receiver.recv().unwrap();
    assert_eq!(liars, 4);
    // What the checks say of liars says something only if they lied.
    assert!(told.len() >= 12, "{told:?}");
    assert!(outcome.lies >= 60, "{}", outcome.lies);
    assert!(outcome.updates_refused > 0);
    // The six honest ones took part all the time.
    assert_eq!(outcome.rounds_of.len(), 6);
    for (worker, rounds) in &outcome.rounds_of {
        assert!(rounds.len() >= 20, "{worker}: {}", rounds.len());
    }
}
