//! Files of secret keys: readable by their owner alone, never overwritten.

use std::{fs::OpenOptions, io::Write, path::Path};

use anyhow::Context as _;
use protocol::SecretKey;

/// The key in a file; nothing if there is no file.
pub(crate) fn read(file: &Path) -> anyhow::Result<Option<SecretKey>> {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            let key = SecretKey::from_text(text.trim())
                .with_context(|| format!("{} is there and is no key", file.display()))?;
            Ok(Some(key))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("can't read {}", file.display())),
    }
}

/// Draws a key.
pub(crate) fn draw() -> anyhow::Result<SecretKey> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy)
        .map_err(|error| anyhow::anyhow!("no entropy for a key: {error}"))?;
    Ok(SecretKey::from_entropy(entropy))
}

/// Writes a key to a new file that its owner alone reads.
pub(crate) fn write(file: &Path, key: &SecretKey) -> anyhow::Result<()> {
    let unwritable = || format!("can't write the key {}", file.display());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(unwritable)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut opened = options.open(file).with_context(unwritable)?;
    writeln!(opened, "{}", key.to_secret_text()).with_context(unwritable)?;
    opened.sync_all().with_context(unwritable)
}
