//! Seeded mutations of bytes: the same seed gives the same bytes on every machine.

use super::INPUT_BYTES_MAX;

/// Most changes made to one input.
const CHANGES_MAX: u64 = 4;
/// Longest piece that is copied, removed or overwritten at once.
const PIECE_MAX: u64 = 64;
/// Numbers at which lengths and counts go wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The chance of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

/// One of the `inputs`, changed a little.
#[must_use]
pub fn mutated(inputs: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = picked(inputs, chance).to_vec();
    for _ in 0..=chance.below(CHANGES_MAX) {
        change(&mut bytes, inputs, chance);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn picked<'a>(inputs: &'a [Vec<u8>], chance: &mut Chance) -> &'a [u8] {
    let index = chance.below(inputs.len() as u64) as usize;
    inputs.get(index).map_or(&[], Vec::as_slice)
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], chance: &mut Chance) {
    let length = bytes.len() as u64;
    // Headers lie at the beginning: half of all changes are made there.
    let near = if chance.below(2) == 0 {
        length.min(64)
    } else {
        length
    };
    let at = chance.below(near) as usize;
    let end = (at + 1 + chance.below(PIECE_MAX) as usize).min(bytes.len());
    match chance.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
        1 if at < bytes.len() => bytes[at] = chance.below(256) as u8,
        2 => bytes.truncate(at),
        3 => {
            bytes.drain(at.min(end)..end);
        }
        4 => {
            let piece = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let number = NUMBERS[chance.below(NUMBERS.len() as u64) as usize];
            let number = number
                .wrapping_add(chance.below(3))
                .wrapping_sub(1)
                .to_le_bytes();
            let width = [1, 2, 4, 8][chance.below(4) as usize];
            for (byte, new) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                *byte = *new;
            }
        }
        6 => {
            let other = picked(inputs, chance);
            let from = chance.below(other.len() as u64) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => bytes.insert(at, chance.below(256) as u8),
    }
}
