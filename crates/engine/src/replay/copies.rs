//! Whether a late update is a copy of one that its maker could have seen.
//!
//! Two workers that train honestly keep few of the same places: 0.07 to 0.12 of them at 64 of 4096 (training reference,
//! 1.5). Here, with 128 of 4096 and the model and text of `loss-gap`, 0.09 to 0.20 of one round's, and at most 0.28 of the
//! round before; the most was 0.40, in the first round after a warm start between machines of 30 and of 10 steps. Half or
//! more of them means that one was made from the other. Whoever changes more than half of what it copies, or rescales a
//! mean of many, is not found this way: that takes doing the work again.

use protocol::{Hash, event::RefusalReason};

use crate::update::decoded::DecodedUpdate;

/// An update is a copy if it keeps this share of its places in common with another, in percent and beyond what two
/// blind choices have in common: what is called Cohen's kappa between two raters.
const COPY_PERCENT: i128 = 50;
/// The largest such share of two honest updates.
const HONEST_PERCENT: i128 = 40;
/// By Hoeffding's bound n places exceed their expected share by more than √(this / n) with a chance of exp(−2 · this):
/// below 10⁻¹⁹, because a run compares thousands of millions of pairs.
const CHANCE: i128 = 22;
/// Chunks compared of an update: all of a small model's; of a large one's so many, which the update's own hash draws, so
/// that nobody can choose what is looked at.
const CHUNKS_MAX: usize = 256;
const DOMAIN: &str = "AI@home 2026 compared chunk v1";

/// What of a late update is compared with others.
#[derive(Clone, Debug)]
pub struct Compared {
    chunks: Vec<usize>,
    /// One bit for each parameter of these chunks: whether the update sends it.
    sent: Vec<u64>,
    /// Words of one chunk.
    width: usize,
    /// How many parameters these chunks have.
    parameters: u64,
    /// How many of them the update sends.
    count: u64,
}

impl Compared {
    /// Of the update file of this hash.
    pub fn of(hash: &Hash, update: &DecodedUpdate) -> Self {
        let chunks = drawn(hash, update.chunks().count());
        let width = update.chunks().chunk().div_ceil(64);
        let mut sent = vec![0; chunks.len() * width];
        let mut lengths = update.chunks().spans().enumerate();
        let length = |chunk: &usize| {
            lengths
                .find(|it| it.0 == *chunk)
                .map_or(0, |it| it.1.length)
        };
        let parameters: usize = chunks.iter().map(length).sum();
        let mut count = 0;
        for (part, chunk) in chunks.iter().enumerate() {
            for place in update.places(*chunk) {
                sent[part * width + place / 64] |= 1 << (place % 64);
                count += 1;
            }
        }
        Self {
            chunks,
            sent,
            width,
            parameters: parameters as u64,
            count,
        }
    }

    /// Memory that it takes, bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&self.sent[..]) + size_of_val(&self.chunks[..])
    }

    /// At how many of the places that the late update sends in its chunks `earlier`, cut alike, sends something too.
    fn common(&self, earlier: &DecodedUpdate) -> u64 {
        let mut common = 0;
        for (part, chunk) in self.chunks.iter().enumerate() {
            let sent = &self.sent[part * self.width..][..self.width];
            let places = earlier.places(*chunk);
            common += places
                .map(|it| (sent[it / 64] >> (it % 64)) & 1)
                .sum::<u64>();
        }
        common
    }

    /// Why the late update does not count beside `earlier`, the update file of this hash, if it does not.
    pub fn copied(&self, earlier: &DecodedUpdate, hash: &Hash) -> Option<RefusalReason> {
        let common = self.common(earlier);
        is_copy(common, self.count, self.parameters).then(|| {
            let percent = common * 100 / self.count;
            RefusalReason::Copied(format!(
                "it came late and keeps {percent} % of the same places as the update {}",
                hash.short()
            ))
        })
    }
}

/// Whether so many common places of so many that an update sends of these parameters make it a copy. Few places say
/// little, so the limit rises with fewer than some 2,200, and some 60 say nothing.
fn is_copy(common: u64, sent: u64, parameters: u64) -> bool {
    let [common, sent, parameters] = [common, sent, parameters].map(i128::from);
    // In units of 1 / (sent · parameters).
    let beyond = common * parameters - sent * sent;
    let most = sent * parameters - sent * sent;
    // The same a hundredfold.
    let unexpected = beyond * 100 - most * HONEST_PERCENT;
    beyond * 100 >= most * COPY_PERCENT
        && unexpected > 0
        && unexpected.pow(2) > CHANCE * sent * (100 * parameters).pow(2)
}

/// The chunks that are compared of the update file of this hash, which has so many.
fn drawn(update: &Hash, count: usize) -> Vec<usize> {
    let drawn = count.min(CHUNKS_MAX);
    let first = |part: usize| part * count / drawn;
    let chunk = |part: usize| {
        let width = (first(part + 1) - first(part)) as u64;
        if width == 1 {
            return first(part);
        }
        let message = [update.0.as_slice(), &(part as u64).to_le_bytes()].concat();
        let hash = Hash::in_domain(DOMAIN, &message);
        let number = u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes"));
        first(part) + (number % width) as usize
    };
    (0..drawn).map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::{
        codec,
        settings::{SparseSettings, UpdateSettings},
    };

    const LENGTHS: [usize; 2] = [64 * 600, 100];
    const SETTINGS: UpdateSettings = UpdateSettings::Sparse(SparseSettings { chunk: 64, kept: 8 });

    fn decoded(value: impl Fn(usize) -> f32) -> DecodedUpdate {
        let values: Vec<f32> = (0..LENGTHS.iter().sum()).map(value).collect();
        let payload = codec::encode(&LENGTHS, &SETTINGS, &values).unwrap();
        codec::decode(&payload, &LENGTHS, &SETTINGS).unwrap()
    }

    fn noise(seed: u64) -> impl Fn(usize) -> f32 {
        move |at| {
            let hash = Hash::of_blob(&[seed.to_le_bytes(), (at as u64).to_le_bytes()].concat());
            (f32::from(hash.0[0]) - 127.5) * 1e-5
        }
    }

    #[test]
    fn a_changed_copy_is_found_and_another_update_is_none() {
        let original = decoded(noise(1));
        let hash = Hash([1; 32]);
        let compared = |late: &DecodedUpdate| Compared::of(&Hash([2; 32]), late);
        assert_eq!(compared(&original).common(&original), 8 * CHUNKS_MAX as u64);
        let copied = |late: &DecodedUpdate| compared(late).copied(&original, &hash);
        // Rescaled, and every third chunk done anew.
        let (old, new) = (noise(1), noise(3));
        let changed = decoded(|at| match at / 64 % 3 {
            0 => new(at),
            _ => old(at) * 1.3,
        });
        let Some(RefusalReason::Copied(reason)) = copied(&changed) else {
            panic!("two thirds of it are the original's");
        };
        assert!(reason.contains("% of the same places"), "{reason}");
        assert_eq!(copied(&decoded(noise(4))), None);
        let other = compared(&decoded(noise(4)));
        let (sent, common) = (other.count, other.common(&original));
        assert!(common * 4 < sent, "an eighth by chance: {common} of {sent}");
    }

    #[test]
    fn few_places_say_less_than_many() {
        let limit =
            |sent: u64, one_of: u64| (0..=sent).find(|it| is_copy(*it, sent, sent * one_of));
        assert_eq!(limit(0, 32), None);
        assert_eq!(limit(60, 32), None);
        assert_eq!(limit(80, 32), Some(76));
        assert_eq!(limit(120, 32), Some(102));
        assert_eq!(limit(1_000, 32), Some(568));
        assert_eq!(limit(32_768, 32), Some(16_896));
        // Of updates that send half or all of the parameters, half and all of the places are the same by chance.
        assert_eq!(limit(32_768, 2), Some(24_576));
        assert_eq!(limit(32_768, 1), None);
    }

    #[test]
    fn what_is_compared_depends_on_the_update() {
        let of = |seed: u8| drawn(&Hash([seed; 32]), 602);
        assert_eq!(of(1).len(), CHUNKS_MAX);
        assert!(of(1).is_sorted());
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1));
        assert_eq!(drawn(&Hash([1; 32]), 5), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(&Hash([1; 32]), 0), [0; 0]);
    }
}
