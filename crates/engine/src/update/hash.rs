//! Hashes of parameters and of the state beside them: BLAKE3 in key-derivation mode, one context string for each kind.

use blake3::Hasher;

/// The context of [`parameters_hash`].
const PARAMETERS_CONTEXT: &str = "athome 1 model parameters";

/// The context of [`moment_hash`].
const MOMENT_CONTEXT: &str = "athome 1 optimizer moment";

/// The context of [`samples_hash`].
const SAMPLES_CONTEXT: &str = "athome 1 sample numbers";

/// Bytes handed to BLAKE3 at once: enough for its widest vectors, within the L2 cache.
const BLOCK_BYTES: usize = 1 << 16;

/// The hash that names parameters: BLAKE3 over their number (`u64`) and their bits, little endian.
pub fn parameters_hash(parameters: &[f32]) -> [u8; 32] {
    floats_hash(PARAMETERS_CONTEXT, parameters)
}

/// The hash of one moment vector of the inner optimiser.
pub fn moment_hash(moment: &[f32]) -> [u8; 32] {
    floats_hash(MOMENT_CONTEXT, moment)
}

/// The hash of the samples of a step by their numbers in the order of training, `u64` little endian.
pub fn samples_hash(samples: &[u64]) -> [u8; 32] {
    let mut hasher = Hasher::new_derive_key(SAMPLES_CONTEXT);
    hasher.update(&(samples.len() as u64).to_le_bytes());
    for_each_block(samples.iter().map(|sample| sample.to_le_bytes()), |block| {
        hasher.update(block);
    });
    hasher.finalize().into()
}

fn floats_hash(context: &str, values: &[f32]) -> [u8; 32] {
    let mut hasher = Hasher::new_derive_key(context);
    hasher.update(&(values.len() as u64).to_le_bytes());
    for_each_block(values.iter().map(|value| value.to_le_bytes()), |block| {
        hasher.update(block);
    });
    hasher.finalize().into()
}

/// Gathers words into blocks of bytes.
pub(super) fn for_each_block<const N: usize>(
    words: impl ExactSizeIterator<Item = [u8; N]>,
    mut each: impl FnMut(&[u8]),
) {
    let mut block = Vec::with_capacity(BLOCK_BYTES.min(words.len() * N));
    let mut words = words;
    while words.len() > 0 {
        block.clear();
        block.extend(words.by_ref().take(BLOCK_BYTES / N).flatten());
        each(&block);
    }
}
