//! The short run of what `cargo xtask fuzz` runs for long: each decoder over its seeds, its committed corpus and some
//! thousands of seeded mutations of both, with every piece of memory that it asks for measured.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use tests::{
    decoders::{
        ALL, Decoder,
        mutate::{Chance, mutated},
    },
    places,
};

/// Mutations of each decoder's inputs.
const MUTATIONS: u64 = 8_000;
/// Of the tokenizer's, which takes a millisecond to build.
const MUTATIONS_OF_SLOW: u64 = 300;

/// The system's allocator, which remembers the largest piece ever asked for.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The committed inputs: what our encoders wrote once (`tests/examples/corpus.rs`), and what fuzzing found.
fn corpus(decoder: &Decoder) -> Vec<Vec<u8>> {
    let folder: PathBuf = places::root().join("fuzz/corpus").join(decoder.name);
    let items = fs::read_dir(&folder).unwrap_or_else(|error| {
        panic!(
            "there is no corpus {}: {error}; `cargo run -p tests --example corpus` writes one",
            folder.display()
        )
    });
    let mut paths: Vec<PathBuf> = items.map(|it| it.unwrap().path()).collect();
    assert!(
        !paths.is_empty(),
        "the corpus {} is empty",
        folder.display()
    );
    paths.sort();
    paths.iter().map(|it| fs::read(it).unwrap()).collect()
}

/// Reads bytes; on a panic says which.
fn read(decoder: &Decoder, bytes: &[u8]) {
    LARGEST.store(0, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(|| (decoder.read)(bytes)));
    let largest = LARGEST.load(Ordering::Relaxed);
    if outcome.is_err() || largest > decoder.piece_bytes_max {
        let path = places::kept().join(format!("fuzz-{}", decoder.name));
        fs::create_dir_all(places::kept()).unwrap();
        fs::write(&path, bytes).unwrap();
        panic!(
            "{} fails on the {} bytes in {} (it asked for {largest} bytes at once)",
            decoder.name,
            bytes.len(),
            path.display()
        );
    }
}

/// The only test of this file, so that nobody else allocates.
#[test]
fn no_bytes_make_a_decoder_panic_or_spend_memory() {
    let targets = fs::read_to_string(places::root().join("fuzz/Cargo.toml")).unwrap();
    for decoder in ALL {
        let target = format!("name = \"{}\"\n", decoder.name);
        assert!(
            targets.contains(&target),
            "{} is no fuzz target",
            decoder.name
        );
        let seeds = (decoder.seeds)();
        assert!(!seeds.is_empty());
        let inputs = [seeds, corpus(&decoder)].concat();
        for input in &inputs {
            read(&decoder, input);
        }
        let mutations = match decoder.name {
            "tokenizer" => MUTATIONS_OF_SLOW,
            _ => MUTATIONS,
        };
        let mut chance = Chance::new(1);
        for _ in 0..mutations {
            read(&decoder, &mutated(&inputs, &mut chance));
        }
    }
}
