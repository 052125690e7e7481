//! Takeovers: who may, where, and which of two logs counts.

use super::*;
use crate::{charter::tests::sample_charter, event::Event, state::State};

fn key(number: u8) -> SecretKey {
    SecretKey::from_entropy([number; 32])
}

/// The charter's hub has key 1; keys 50, 51 and 52 may name successors, in this order.
fn charter() -> Charter {
    Charter {
        succession: [50, 51, 52].map(|it| key(it).public()).to_vec(),
        ..sample_charter()
    }
}

/// A log that a hub or its successors go on with.
#[derive(Clone)]
struct Log {
    hub: SecretKey,
    chain: Chain,
    entries: Vec<Entry>,
}

impl Log {
    fn of(charter: &Charter) -> Self {
        Self {
            hub: key(1),
            chain: Chain::of(charter),
            entries: Vec::new(),
        }
    }

    /// The hub goes on.
    fn go_on(mut self, round: u64) -> Self {
        let event = Event::RoundEmpty { round };
        let entry = self
            .chain
            .head()
            .next(&self.hub, self.chain.run(), 1_000, event);
        self.push(entry);
        self
    }

    /// `by` names the hub of key `hub`.
    fn taken_over(mut self, by: u8, hub: u8) -> Self {
        self.hub = key(hub);
        let entry = self.takeover(by, hub, |_| ());
        self.push(entry);
        self
    }

    fn takeover(&self, by: u8, hub: u8, change: impl FnOnce(&mut Succession)) -> Entry {
        let hub = key(hub);
        let head = self.chain.head();
        let mut succession = Succession::sign(
            &key(by),
            self.chain.sealing(),
            &head,
            hub.public(),
            "http://b",
        );
        change(&mut succession);
        head.next(
            &hub,
            self.chain.run(),
            1_000,
            Event::HubReplaced { succession },
        )
    }

    fn push(&mut self, entry: Entry) {
        self.chain.advance(&entry).unwrap();
        self.entries.push(entry);
    }
}

fn choice(one: &Log, other: &Log) -> Choice {
    let chosen = choose(one.chain.sealing(), other.chain.sealing());
    let reversed = choose(other.chain.sealing(), one.chain.sealing());
    let expected = match chosen {
        Choice::First => Choice::Second,
        Choice::Second => Choice::First,
        Choice::Same | Choice::Undecided => chosen,
    };
    assert_eq!(reversed, expected, "the choice depends on who asks");
    chosen
}

#[test]
fn golden_statement() {
    let log = Log::of(&charter()).go_on(1).taken_over(51, 2);
    let statement = log.chain.sealing().newest().unwrap();
    let event = Event::HubReplaced {
        succession: statement.clone(),
    };
    assert_eq!(
        canonical::encode(&event),
        [[18].as_slice(), &statement.to_bytes()].concat(),
        "the event is its tag and the statement"
    );
    expect_test::expect!["191be5776da997ff66cffc3c15905ab8af6baeb77393136f81e73ce58d55dfa701012b71ac9e1331d522d5c7e4a9f726b9a11b4717f6545080aeceee3c2eba926e888139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b39408687474703a2f2f6217cb79fb2b4120f2b1ec65e4198d6e08b28e813feb01e4a400839b85e18080cea495f0d6bfeeb27a353c00a1b688bc646badcdfaec0709e4e66857dc98f02f533dbe8f2810e54cb3f234fd2c76db3c622876c66efe072b6460a740a46e858f09"].assert_eq(&data_encoding::HEXLOWER.encode(&statement.to_bytes()));
    assert_eq!(
        Succession::from_bytes(&statement.to_bytes()).unwrap(),
        *statement
    );
}

#[test]
fn the_new_hub_seals_from_its_own_entry_on() {
    let log = Log::of(&charter()).go_on(1).taken_over(50, 2).go_on(2);
    assert_eq!(log.chain.sealing().generation(), 1);
    assert_eq!(log.chain.sealing().hub(), key(2).public());
    let old = log.chain.head().next(
        &key(1),
        log.chain.run(),
        1_000,
        Event::RoundEmpty { round: 3 },
    );
    let refused = log.chain.clone().advance(&old);
    assert!(matches!(refused, Err(ChainError::Signature { .. })));
}

#[test]
fn a_takeover_that_nobody_may_make_is_none() {
    let log = Log::of(&charter()).go_on(1);
    let refused = |entry: &Entry| {
        let mut chain = log.chain.clone();
        let error = chain.advance(entry).unwrap_err();
        assert_eq!(chain, log.chain, "an error changes nothing");
        error
    };
    for (entry, expected) in [
        (log.takeover(60, 2, |_| ()), "not among the charter's"),
        (
            log.takeover(50, 2, |it| it.address = "http://c".into()),
            "signature",
        ),
        (
            log.takeover(50, 2, |it| it.address = String::new()),
            "address",
        ),
        (log.takeover(50, 2, |it| it.generation = 2), "generation"),
        (log.takeover(50, 2, |it| it.index = 0), "position"),
        (
            log.takeover(50, 2, |it| it.previous = Hash([7; 32])),
            "position",
        ),
        (
            log.takeover(50, 2, |it| it.run = RunId::default()),
            "another run",
        ),
    ] {
        let message = refused(&entry).to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    // A statement is good for its place alone.
    let shown = log.clone().taken_over(50, 2);
    let later = log.clone().go_on(2);
    let head = later.chain.head();
    let again = head.next(
        &key(2),
        later.chain.run(),
        1_000,
        shown.entries.last().unwrap().event.clone(),
    );
    assert!(later.chain.clone().advance(&again).is_err());
}

#[test]
fn the_old_hub_may_not_use_a_statement_for_itself() {
    let log = Log::of(&charter()).go_on(1);
    let statement = log.takeover(50, 2, |_| ());
    let sealed_by_old = log
        .chain
        .head()
        .next(&key(1), log.chain.run(), 1_000, statement.event);
    assert!(matches!(
        log.chain.clone().advance(&sealed_by_old),
        Err(ChainError::Signature { .. })
    ));
}

#[test]
fn more_takeovers_win() {
    let common = Log::of(&charter()).go_on(1);
    let old = common.clone().go_on(2).go_on(3).go_on(4);
    let new = common.taken_over(52, 2);
    assert_eq!(choice(&old, &new), Choice::Second);
    let newer = old.taken_over(50, 3).taken_over(52, 1);
    assert_eq!(choice(&newer, &new), Choice::First);
}

#[test]
fn of_as_many_the_earlier_key_wins() {
    let common = Log::of(&charter()).go_on(1);
    let first = common.clone().taken_over(50, 2);
    let second = common.clone().go_on(2).taken_over(51, 3).go_on(3);
    assert_eq!(choice(&first, &second), Choice::First);
    // The first takeover that differs decides, not the last.
    let first = first.taken_over(52, 4);
    let second = second.taken_over(50, 5);
    assert_eq!(choice(&first, &second), Choice::First);
}

#[test]
fn the_same_takeovers_are_the_same_log_or_its_hubs_fault() {
    let common = Log::of(&charter()).go_on(1).taken_over(50, 2);
    assert_eq!(choice(&common, &common.clone().go_on(2)), Choice::Same);
    assert_eq!(
        choice(&Log::of(&charter()), &Log::of(&charter())),
        Choice::Same
    );
}

#[test]
fn one_key_with_two_hubs_is_nobodys_choice_until_a_further_takeover() {
    let common = Log::of(&charter()).go_on(1);
    let one = common.clone().taken_over(50, 2);
    let other = common.go_on(2).taken_over(50, 3);
    assert_eq!(choice(&one, &other), Choice::Undecided);
    assert_eq!(choice(&one.taken_over(52, 2), &other), Choice::First);
}

#[test]
fn statements_from_outside_are_checked() {
    let log = Log::of(&charter())
        .go_on(1)
        .taken_over(50, 2)
        .taken_over(51, 3);
    let known = Sealing::of(&charter());
    let shown = known.with(log.chain.sealing().successions()).unwrap();
    assert_eq!(shown, *log.chain.sealing());
    let only_the_second = &log.chain.sealing().successions()[1..];
    assert!(known.with(only_the_second).is_err());
    let mut changed = log.chain.sealing().successions().to_vec();
    changed[1].address = "http://elsewhere".into();
    assert_eq!(
        known.with(&changed),
        Err(SuccessionError::Signature(KeyError::BadSignature))
    );
}

#[test]
fn the_state_follows_its_hub() {
    let charter = charter();
    let created = crate::state::tests::created(&key(1), charter.clone());
    let mut state = State::create(&created).unwrap();
    let mut log = Log::of(&charter);
    log.push(created);
    let log = log.taken_over(51, 2);
    let before = state.clone();
    // Sealed by a hub that nobody named.
    let forged = Head::next(
        &before.head,
        &key(9),
        before.run,
        1_000_000,
        log.entries[1].event.clone(),
    );
    assert!(state.apply(&forged).is_err());
    assert_eq!(state, before);
    state.apply(&log.entries[1]).unwrap();
    assert_eq!(state.sealing, *log.chain.sealing());
    assert_eq!(state.sealing.newest().unwrap().address, "http://b");
}
