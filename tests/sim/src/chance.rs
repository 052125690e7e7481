//! Seeded chance: streams of numbers that depend on the seed and on what they are for, not on who asks first.

/// One stream (SplitMix64: Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream of a seed for one purpose and one number, such as a worker's.
    #[must_use]
    pub fn of(seed: u64, purpose: &str, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("AI@home 2026 simulator chance v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        hasher.update(purpose.as_bytes());
        let (bytes, _) = hasher
            .finalize()
            .as_bytes()
            .split_first_chunk()
            .map(|(first, rest)| (*first, rest.len()))
            .expect("a hash has 32 bytes");
        Self::new(u64::from_le_bytes(bytes))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = self.state;
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below((last - first).saturating_add(1))
    }

    /// True in `per_million` of a million cases.
    pub fn happens(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }

    /// Thirty-two bytes, for a key.
    pub fn key(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.as_chunks_mut::<8>().0 {
            *part = self.bits().to_le_bytes();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let numbers = |purpose, number| {
            let mut chance = Chance::of(7, purpose, number);
            [chance.below(1_000), chance.between(5, 9), chance.bits()]
        };
        assert_eq!(numbers("latency", 1), numbers("latency", 1));
        assert_ne!(numbers("latency", 1), numbers("latency", 2));
        assert_ne!(numbers("latency", 1), numbers("loss", 1));
        let mut chance = Chance::new(1);
        let often = (0..10_000).filter(|_| chance.happens(250_000)).count();
        assert!((2_300..2_700).contains(&often), "{often}");
        assert!((0..1_000).all(|_| (5..=9).contains(&chance.between(5, 9))));
    }
}
