//! Which text a worker trains on: a pure function of the round's seed and the worker's id, so that anyone can recompute it.
//!
//! Seeds are fixed two rounds ahead ([`crate::state::State::ahead`]): a worker knows what comes before it has a slot.

use crate::{Hash, charter::Charter, units::WorkerId};

/// Where one training sequence begins: `sequence + 1` tokens from `start` of shard `shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Index into the charter's training shards.
    pub shard: u32,
    /// First token within the shard.
    pub start: u64,
}

const SHARDS_DOMAIN: &str = "AI@home 2026 assigned shards v2";
const SAMPLE_DOMAIN: &str = "AI@home 2026 training sample v2";

/// The shards of a worker in a round: `shards_per_assignment` of them, fewer if the run has fewer.
///
/// The first is drawn with probability proportional to its tokens, the rest follow it in order,
/// so that a worker's shards are few and every token is drawn alike over many rounds.
#[must_use]
pub fn assigned_shards(charter: &Charter, seed: &Hash, worker: &WorkerId) -> Vec<u32> {
    let training = &charter.data.training;
    let count = (charter.round.shards_per_assignment as usize).min(training.len());
    if count == training.len() {
        return (0..count as u32).collect();
    }
    let draw = draw(SHARDS_DOMAIN, seed, worker, &[]);
    let total: u64 = training.iter().map(|it| it.tokens).sum();
    let mut position = scale(draw, total);
    let mut first = 0;
    for (index, shard) in training.iter().enumerate() {
        if position < shard.tokens {
            first = index;
            break;
        }
        position -= shard.tokens;
    }
    (0..count)
        .map(|offset| ((first + offset) % training.len()) as u32)
        .collect()
}

/// The sample of one row of one inner step; `None` when no assigned shard is longer than a sequence.
#[must_use]
pub fn sample(
    charter: &Charter,
    seed: &Hash,
    worker: &WorkerId,
    shards: &[u32],
    step: u32,
    row: u32,
) -> Option<Sample> {
    let sequence = u64::from(charter.inner.sequence);
    let starts = |shard: u32| {
        charter.data.training[shard as usize]
            .tokens
            .saturating_sub(sequence)
    };
    let total: u64 = shards.iter().map(|&it| starts(it)).sum();
    if total == 0 {
        return None;
    }
    let draw = draw(
        SAMPLE_DOMAIN,
        seed,
        worker,
        &[u64::from(step), u64::from(row)],
    );
    let mut position = scale(draw, total);
    for &shard in shards {
        if position < starts(shard) {
            return Some(Sample {
                shard,
                start: position,
            });
        }
        position -= starts(shard);
    }
    unreachable!("the position is below the sum of the starts")
}

/// A round's seed: the run's seed, the round, and the newest model two rounds before.
#[must_use]
pub fn round_seed(charter: &Charter, round: u64, parameters: &Hash) -> Hash {
    let mut message = [0_u8; 48];
    message[..8].copy_from_slice(&charter.seed.to_le_bytes());
    message[8..16].copy_from_slice(&round.to_le_bytes());
    message[16..].copy_from_slice(&parameters.0);
    Hash::in_domain("AI@home 2026 round seed v1", &message)
}

fn draw(domain: &str, seed: &Hash, worker: &WorkerId, numbers: &[u64]) -> u64 {
    let mut message = [seed.0.as_slice(), &worker.0.0].concat();
    for number in numbers {
        message.extend_from_slice(&number.to_le_bytes());
    }
    let hash = Hash::in_domain(domain, &message);
    u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes of thirty-two"))
}

/// Maps 64 random bits onto `0..total`; the bias is below 2^-20 for any real corpus.
fn scale(draw: u64, total: u64) -> u64 {
    ((u128::from(draw) * u128::from(total)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SecretKey, charter::tests::sample_charter};

    fn worker(number: u16) -> WorkerId {
        let mut entropy = [7; 32];
        entropy[..2].copy_from_slice(&number.to_le_bytes());
        WorkerId(SecretKey::from_entropy(entropy).public())
    }

    #[test]
    fn samples_lie_within_the_assigned_shards_and_cover_them() {
        let charter = sample_charter();
        let seed = Hash::of_blob(b"seed");
        let shards = assigned_shards(&charter, &seed, &worker(3));
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..200 {
            let sample = sample(&charter, &seed, &worker(3), &shards, step, 1).unwrap();
            assert!(shards.contains(&sample.shard));
            let tokens = charter.data.training[sample.shard as usize].tokens;
            assert!(sample.start + u64::from(charter.inner.sequence) < tokens);
            seen.insert((sample.shard, sample.start));
        }
        assert!(seen.len() > 150, "samples repeat: {}", seen.len());
        assert_eq!(
            seen.iter()
                .map(|it| it.0)
                .collect::<std::collections::BTreeSet<_>>(),
            shards.iter().copied().collect()
        );
    }

    #[test]
    fn a_value_pinned_forever() {
        let charter = sample_charter();
        let seed = round_seed(&charter, 7, &Hash::of_blob(b"parameters"));
        let shards = assigned_shards(&charter, &seed, &worker(0));
        let sample = sample(&charter, &seed, &worker(0), &shards, 5, 2).unwrap();
        expect_test::expect!["5f297334a84d7f371cc97f6250f8dca9e60603792b26bb25fa7977dc35f5de7e [0, 1] Sample { shard: 1, start: 0 }"].assert_eq(&format!("{seed} {shards:?} {sample:?}"));
    }

    #[test]
    fn a_subset_of_shards_is_drawn_by_tokens() {
        let mut charter = sample_charter();
        charter.round.shards_per_assignment = 1;
        let mut counts = vec![0_u32; charter.data.training.len()];
        for number in 0..1_000 {
            let shards = assigned_shards(&charter, &Hash::of_blob(b"s"), &worker(number));
            assert_eq!(shards.len(), 1);
            counts[shards[0] as usize] += 1;
        }
        // The sample charter's shards have 1000, 3000 tokens.
        assert!((180..320).contains(&counts[0]), "{counts:?}");
    }
}
