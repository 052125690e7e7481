//! What a million identities cost a hub in memory: a bounded number of bytes for each that has joined.
//!
//! Made of a sixteenth of them, one after the other, with the longest texts and most addresses that any may have. Maps
//! double when they are full, so sixteen times as many take sixteen times the memory; the addresses of peers have a bound,
//! which so many reach.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
};

use protocol::{
    Hash, PublicKey, SecretKey,
    command::{Command, Device, SignedCommand},
    event::Event,
    peers::{PEER_ADDRESSES_MAX, PeerAddress, PeersQuestion, RELAY_BYTES_MAX},
    state::WORKERS_MAX,
    units::WorkerId,
};

use crate::{
    config::Config,
    http::Admission,
    run::{concerns::Concerns, peers::PeerBook},
    store::tests::created,
};

/// The part of a million that is made.
const PART: usize = 16;
const MADE: usize = WORKERS_MAX / PART;
/// Longest name and arithmetic class that a join may have.
const NAME_BYTES: usize = protocol::charter::NAME_BYTES_MAX;
/// What a million may cost: 1.25 GiB.
const BYTES_MAX: isize = 5 << 28;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

thread_local! {
    /// Bytes that this thread has asked for and not given back.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread.
struct Counting;

fn count(bytes: isize) {
    // A thread that ends counts no more.
    let _ = HELD.try_with(|it| it.set(it.get() + bytes));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `make` holds on to in what it gives back, and that.
fn held<T>(make: impl FnOnce() -> T) -> (isize, T) {
    let before = HELD.get();
    let made = make();
    (HELD.get() - before, made)
}

fn key(number: usize, kind: u8) -> PublicKey {
    let mut bytes = *blake3::hash(&number.to_le_bytes()).as_bytes();
    bytes[31] = kind;
    PublicKey(bytes)
}

fn worker(number: usize) -> WorkerId {
    WorkerId(key(number, 1))
}

#[test]
fn a_million_identities_have_a_price() {
    let hub = SecretKey::from_entropy([1; 32]);
    let one = SecretKey::from_entropy([2; 32]);
    let (_, mut state) = created(&hub, "one");
    let device = Device {
        arithmetic: "a".repeat(NAME_BYTES),
        threads: 1,
        memory_mib: 1,
        tokens_per_s: 1,
    };
    let name = "n".repeat(NAME_BYTES);
    let command = SignedCommand::sign(&one, state.run, 1, Command::Join { name, device });
    command.check().expect("a join may say so much");
    let joined_again = command.clone();
    let joined = Event::WorkerJoined { command };
    let entry = state.head.next(&hub, state.run, 2_000, joined.clone());
    state.apply(&entry).unwrap();
    let record = state.workers[&WorkerId(one.public())].clone();

    let (of_state, state) = held(|| {
        let all = (0..MADE).map(|it| (worker(it), record.clone()));
        state.workers.extend(all);
        state
    });
    let concerns = Concerns::new(0);
    let (of_concerns, ()) = held(|| {
        for number in 0..MADE {
            let mut joined = joined.clone();
            if let Event::WorkerJoined { command } = &mut joined {
                command.worker = worker(number);
            }
            concerns.note(number as u64, &joined);
        }
    });
    let admission = Admission::new(&Config::default());
    let (of_limits, ()) = held(|| {
        for number in 0..MADE {
            let mut command = joined_again.clone();
            command.worker = worker(number);
            let admitted = admission.admit(&state, &command, &mut HERE.into());
            assert!(admitted.is_ok(), "everyone says one thing");
        }
    });
    let book = PeerBook::default();
    let (of_book, ()) = held(|| {
        for number in 0..MADE {
            ask(&book, &state.run, number);
        }
    });
    // Everyone's state, and that of the run's task.
    let all = (2 * of_state + of_concerns + of_limits) * PART as isize + of_book;
    assert!(
        all <= BYTES_MAX,
        "a million cost {all} bytes; of a part state {of_state}, concerns {of_concerns}, limits {of_limits}, peers {of_book}"
    );
    // Whoever comes now is not remembered as a peer.
    let (of_next, ()) = held(|| ask(&book, &state.run, MADE));
    assert!(of_next < 256, "the addresses of peers are bounded");
    assert_eq!(state.workers.len(), MADE + 1);
}

/// One more asks for a blob and says at length where it is.
fn ask(book: &PeerBook, run: &protocol::units::RunId, number: usize) {
    let question = PeersQuestion {
        run: *run,
        worker: worker(number),
        blob: Hash([number as u8 % 4; 32]),
        address: Some(PeerAddress {
            endpoint: key(number, 2),
            addresses: vec!["127.0.0.1:4433".parse().unwrap(); PEER_ADDRESSES_MAX],
            relay: Some("r".repeat(RELAY_BYTES_MAX)),
        }),
        served: vec![],
        failed: vec![key(number / 2, 2)],
    };
    book.ask(&question, HERE, true, 1_000, |_| true);
}
