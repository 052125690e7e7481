//! What must hold before anything starts; each refusal is a sentence that says what to do.

use std::{
    fs::{self, File, TryLockError},
    io::{IsTerminal, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::Addresses;
use crate::{process, setup};

/// Free space below which checkpoints would soon have no place.
const FREE_BYTES_MIN: u64 = 2 * 1024 * 1024 * 1024;

/// Makes the folder and takes its lock, which lasts as long as the file returned; `fresh` empties it first.
pub(super) fn claim(folder: &Path, fresh: bool) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| {
        format!(
            "Cannot make the folder {}: choose another with --folder",
            folder.display()
        )
    })?;
    let path = folder.join("up.lock");
    let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "Another `cargo xtask up` uses {}. Stop it with Ctrl-C, or start this one with --folder, --hub-port and --gateway-port.",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    if fresh {
        for entry in fs::read_dir(folder)?.flatten() {
            let path = entry.path();
            let removed = match path.file_name().and_then(|it| it.to_str()) {
                Some("up.lock") => Ok(()),
                _ if path.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(lock)
}

/// Whether both ports are free.
pub(super) fn check_ports(addresses: Addresses) -> Result<()> {
    for (address, option) in [
        (addresses.hub, "--hub-port"),
        (addresses.gateway, "--gateway-port"),
    ] {
        check_port(address, option)?;
    }
    Ok(())
}

fn check_port(address: SocketAddr, option: &str) -> Result<()> {
    let Err(error) = TcpListener::bind(address) else {
        return Ok(());
    };
    bail!(
        "Port {} is taken by another program ({error}). Stop that program, or choose another port: cargo xtask up {option} {}",
        address.port(),
        address.port().wrapping_add(100).max(1024)
    );
}

/// Whether the disk has room for a while.
pub(super) fn check_disk(folder: &Path) -> Result<()> {
    let space = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot ask for the free space of {}", folder.display()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < FREE_BYTES_MIN {
        bail!(
            "Only {} MiB are free where {} lies, and a run needs about {} MiB. Free some space, or choose another disk with --folder.",
            free >> 20,
            folder.display(),
            FREE_BYTES_MIN >> 20
        );
    }
    Ok(())
}

/// Corpora, web app and binary.
pub(crate) fn build() -> Result<()> {
    say("corpora");
    setup::corpora()?;
    say("web app");
    setup::web()?;
    say("building (the first time takes about ten minutes on two cores)");
    // Where somebody watches, cargo's own progress is the best there is.
    let mut command = process::cargo(&["build", "--workspace", "--bins", "--locked"]);
    if std::io::stderr().is_terminal() {
        let status = command.status().context("cannot start cargo")?;
        anyhow::ensure!(status.success(), "The build failed; cargo says why above.");
    } else {
        process::required("up-build", &mut command)?;
    }
    Ok(())
}

/// One line about what happens now.
pub(super) fn say(what: &str) {
    println!("· {what}");
    // Nothing to be done if nobody reads.
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_option_that_changes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let message = check_port(address, "--hub-port").unwrap_err().to_string();
        assert!(message.contains(&address.port().to_string()), "{message}");
        assert!(message.contains("--hub-port"), "{message}");
    }

    #[test]
    fn a_folder_has_one_up_at_a_time() {
        let folder = std::env::temp_dir().join(format!("athome-claim-{}", std::process::id()));
        let first = claim(&folder, false).unwrap();
        assert!(claim(&folder, false).is_err());
        drop(first);
        fs::write(folder.join("state"), "old").unwrap();
        let second = claim(&folder, true).unwrap();
        assert!(!folder.join("state").exists());
        drop(second);
        fs::remove_dir_all(&folder).unwrap();
    }
}
