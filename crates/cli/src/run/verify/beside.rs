//! What a hub's folder has beside log and blobs: entries that were set aside, proofs of what was said twice, the hub's key.
//! None of it makes the model; each of it says by itself whether it was changed.

use std::collections::HashSet;

use protocol::{
    PublicKey, equivocation::Equivocation, event::Event, log::Entry, state::State,
    succession::Sealing, units::RunId,
};

use super::report::Verified;
use crate::{output::StatusLine, source::Source};

const SET_ASIDE: &str = "an entry that was set aside";
const PROOF: &str = "a proof of what was said twice";
const KEY: &str = "the hub's key";

/// Checks it all; `state` is that after the log's last entry that holds.
pub(super) fn check(
    state: &State,
    source: &Source,
    verified: &mut Verified,
    status: &mut StatusLine,
) -> anyhow::Result<()> {
    let Some(archive) = source.archive() else {
        return Ok(());
    };
    let run = source.run();
    status.set("reading what was set aside");
    let mut sealers = sealers(state);
    // Hubs of takeovers that were set aside themselves sealed what followed: those first.
    for is_known in [false, true] {
        let mut after = None;
        loop {
            let rows = source.wait(archive.set_aside(run, after))?;
            let Some(last) = rows.last() else {
                break;
            };
            after = Some(last.row);
            for row in &rows {
                let read = read(run, row.position, &row.bytes);
                if !is_known {
                    sealers.extend(read.iter().filter_map(|it| named(&state.sealing, it)));
                    continue;
                }
                match read.and_then(|it| sealed(&it, &sealers)) {
                    Ok(()) => verified.set_aside_checked += 1,
                    Err(problem) => {
                        let place = source.log_place();
                        verified.add_beside(place, Some(row.position), SET_ASIDE, problem);
                    }
                }
            }
        }
    }
    for row in source.wait(archive.proofs(run))? {
        match proof(run, &state.sealing, &sealers, &row.id, &row.bytes) {
            Ok(()) => verified.proofs_checked += 1,
            Err(problem) => verified.add_beside(source.log_place(), None, PROOF, problem),
        }
    }
    match archive.key() {
        Ok(key) => verified.key = key.map(|it| whose(&it, state)),
        Err(error) => {
            let place = archive.key_path().display().to_string();
            verified.add_beside(place, None, KEY, format!("{error:#}"));
        }
    }
    Ok(())
}

/// Whoever sealed a part of the log.
fn sealers(state: &State) -> HashSet<PublicKey> {
    let later = state.sealing.successions().iter().map(|it| it.hub);
    later.chain([state.charter.hub]).collect()
}

fn read(run: RunId, position: u64, bytes: &[u8]) -> Result<Entry, String> {
    let entry = Entry::from_bytes(bytes).map_err(|error| error.to_string())?;
    if entry.run != run {
        return Err("it is another run's".to_owned());
    }
    if entry.index != position {
        return Err(format!(
            "it is entry {}, by its row {position}",
            entry.index
        ));
    }
    Ok(entry)
}

/// The hub that an entry names, if a succession key of the charter does.
fn named(sealing: &Sealing, entry: &Entry) -> Option<PublicKey> {
    let Event::HubReplaced { succession } = &entry.event else {
        return None;
    };
    let holds = sealing.names(&succession.key) && succession.check().is_ok();
    (holds && succession.run == sealing.run()).then_some(succession.hub)
}

fn sealed(entry: &Entry, sealers: &HashSet<PublicKey>) -> Result<(), String> {
    if sealers.iter().any(|it| entry.is_sealed_by(it)) {
        return Ok(());
    }
    Err("no hub of this run sealed it: it was changed".to_owned())
}

fn proof(
    run: RunId,
    sealing: &Sealing,
    sealers: &HashSet<PublicKey>,
    id: &[u8],
    bytes: &[u8],
) -> Result<(), String> {
    let proof = Equivocation::from_bytes(bytes).map_err(|error| error.to_string())?;
    if proof.id().0 != *id {
        return Err("its bytes are not those of its name".to_owned());
    }
    if proof.first.run != run || !sealing.concerns(&proof.key) && !sealers.contains(&proof.key) {
        return Err("it is of another run, or of a key that this run does not know".to_owned());
    }
    Ok(())
}

/// Whose the folder's key is, for people.
fn whose(key: &PublicKey, state: &State) -> String {
    let role = if state.sealing.hub() == *key {
        "seals this run"
    } else if sealers(state).contains(key) {
        "sealed this run once: another hub keeps it now"
    } else {
        "never sealed this run: the folder is a mirror's"
    };
    format!("{} {role}", key.short())
}

#[cfg(test)]
mod tests {
    use protocol::{Hash, SecretKey, log::Head, succession::Succession};

    use super::*;

    /// Every byte of it matters.
    fn check(bytes: &[u8], holds: impl Fn(&[u8]) -> Result<(), String>) {
        holds(bytes).unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[place] ^= 1;
            assert!(holds(&changed).is_err(), "byte {place}");
        }
    }

    #[test]
    fn a_flipped_byte_is_found() {
        let [hub, later, succession] = [1, 2, 3].map(|seed| SecretKey::from_entropy([seed; 32]));
        let run = RunId(Hash([9; 32]));
        let sealing = Sealing::new(run, hub.public(), vec![succession.public()]);
        let begun = Head {
            length: 5,
            ..Head::empty()
        };
        let empty = |round| Event::RoundEmpty { round };
        let one = begun.next(&hub, run, 1_000, empty(1));
        let other = begun.next(&hub, run, 1_000, empty(2));
        let mut sealers: HashSet<PublicKey> = [hub.public()].into();
        let holds = |bytes: &[u8]| read(run, 5, bytes).and_then(|it| sealed(&it, &sealers));
        check(&one.to_bytes(), holds);
        assert!(read(run, 6, &one.to_bytes()).is_err());

        let proven = Equivocation::find(hub.public(), &one, &other).unwrap();
        let id = proven.id();
        let holds = |bytes: &[u8]| proof(run, &sealing, &sealers, &id.0, bytes);
        check(&proven.to_bytes(), holds);
        let bytes = proven.to_bytes();
        assert!(proof(run, &sealing, &sealers, &[0; 32], &bytes).is_err());

        // Of a takeover that was set aside, and what followed.
        let statement = Succession::sign(
            &succession,
            &sealing,
            &begun,
            later.public(),
            "http://later.example",
        );
        let replaced = Event::HubReplaced {
            succession: statement,
        };
        let replaced = begun.next(&later, run, 1_000, replaced);
        assert!(sealed(&replaced, &sealers).is_err());
        sealers.extend(named(&sealing, &replaced));
        sealed(&replaced, &sealers).unwrap();
        assert_eq!(named(&sealing, &one), None);
    }
}
