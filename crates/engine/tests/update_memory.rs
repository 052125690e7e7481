//! Bytes that claim much and bring little are refused without memory being spent on the claim.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::update::DecodeError;
use engine::update::carried::CarriedState;
use engine::update::codec::{decode, encode};
use engine::update::delta::Delta;
use engine::update::outer::OuterState;
use engine::update::settings::{
    DeltaSettings, DenseSettings, DenseWidth, SparseSettings, UpdateSettings,
};

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

/// The largest piece of memory that `work` asks for. The only test of this file, so that nobody else allocates.
fn largest_during(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    work();
    LARGEST.load(Ordering::Relaxed)
}

/// A header for one tensor of 2⁴⁰ parameters.
fn header(magic: &[u8; 4], kind: u8, chunk: u32, parameter: u32) -> Vec<u8> {
    let mut bytes = [magic.as_slice(), &[1, kind]].concat();
    bytes.extend(chunk.to_le_bytes());
    bytes.extend(parameter.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend((1u64 << 40).to_le_bytes());
    bytes
}

#[test]
fn claims_cost_nothing() {
    const SMALL: usize = 4096;
    let model = [1usize << 40];
    let sparse = SparseSettings {
        chunk: 4096,
        kept: 4096,
    };
    let dense = DenseSettings {
        chunk: 4096,
        width: DenseWidth::Sixteen,
    };

    // Another model than ours, whatever it claims.
    let bomb = header(b"AHup", 1, 4096, 4096);
    let update = UpdateSettings::Sparse(sparse);
    let spent = largest_during(|| {
        let refused = decode(&bomb, &[1000], &update).unwrap_err();
        assert_eq!(
            refused,
            DecodeError::WrongShape {
                tensors: 1,
                total: 1 << 40
            }
        );
    });
    assert!(spent < SMALL, "{spent}");

    // Our model, were it huge: nothing follows the header, or a little does.
    for tail in [0, 1000] {
        let with_tail = |mut bytes: Vec<u8>| {
            bytes.resize(bytes.len() + tail, 0xff);
            bytes
        };
        let sparse_bomb = with_tail(bomb.clone());
        let dense_bomb = with_tail(header(b"AHup", 2, 4096, 16));
        let sparse_delta = with_tail(header(b"AHde", 1, 4096, 4096));
        let dense_delta = with_tail(header(b"AHde", 2, 4096, 16));
        let spent = largest_during(|| {
            assert_eq!(
                decode(&sparse_bomb, &model, &update).unwrap_err(),
                DecodeError::Truncated
            );
            let settings = UpdateSettings::Dense(dense);
            assert_eq!(
                decode(&dense_bomb, &model, &settings).unwrap_err(),
                DecodeError::Truncated
            );
            let settings = DeltaSettings::Sparse(sparse);
            assert_eq!(
                Delta::decode(&sparse_delta, &model, &settings).unwrap_err(),
                DecodeError::Truncated
            );
            let settings = DeltaSettings::Dense(dense);
            assert_eq!(
                Delta::decode(&dense_delta, &model, &settings).unwrap_err(),
                DecodeError::Truncated
            );
            assert!(OuterState::from_bytes(&sparse_bomb, 1 << 40).is_err());
            assert!(CarriedState::from_bytes(&sparse_bomb, 1 << 40, true).is_err());
        });
        assert!(spent < SMALL, "{spent}");
    }

    // The most that bytes can unfold to: every chunk full, its entries in the fewest bits (three for each here, which
    // become two bytes), or every chunk a single parameter left out (one bit, which becomes a chunk's entry).
    let accumulated = vec![1e-3; 100_000];
    for (chunk, kept, values, times) in [
        (4096, 4096, &accumulated, 20),
        (1, 1, &vec![0.0; 100_000], 500),
    ] {
        let settings = UpdateSettings::Sparse(SparseSettings { chunk, kept });
        let bytes = encode(&[100_000], &settings, values).unwrap();
        let spent = largest_during(|| assert!(decode(&bytes, &[100_000], &settings).is_ok()));
        assert!(spent < bytes.len() * times, "{spent} for {}", bytes.len());
    }
}
