//! Writes what our encoders make of small values to `fuzz/corpus`: where fuzzing begins, also after the formats have changed.
//! Run it for a new decoder; files of older formats stay, since they are what strangers may still send.

use std::fs;

use anyhow::Result;
use protocol::Hash;
use tests::{decoders::ALL, places};

/// Longest file kept: larger seeds are made when they are needed.
const BYTES_MAX: usize = 4 << 10;

fn main() -> Result<()> {
    for decoder in ALL {
        let folder = places::root().join("fuzz/corpus").join(decoder.name);
        fs::create_dir_all(&folder)?;
        for mut seed in (decoder.seeds)() {
            // The beginning of a long one is worth something too.
            seed.truncate(BYTES_MAX);
            let name = Hash::of_blob(&seed).to_string();
            fs::write(folder.join(&name[..16]), &seed)?;
        }
    }
    Ok(())
}
