//! A small disk of its own for a process, to be filled and freed: a tmpfs in a mount namespace that only the processes
//! started here see, and that goes with the last of them.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::network::Start;

/// Mounts the disk, says so, and keeps the namespace for as long as its standard input is open.
const HOLD: &str =
    r#"mkdir -p "$1" && mount -t tmpfs -o "size=$2" athome "$1" && echo ready && exec cat"#;
/// What takes the room.
const BALLAST: &str = "ballast";
/// Written at once.
const BALLAST_BYTES: usize = 64 << 10;
/// A disk that takes more than this is not the small one.
const BALLAST_BYTES_MAX: usize = 256 << 20;

/// A small disk; it is gone when this is dropped.
pub struct SmallDisk {
    holder: Child,
    folder: PathBuf,
}

impl SmallDisk {
    /// A disk of so many bytes at this place.
    ///
    /// # Errors
    /// If this machine permits no mounts of one's own.
    pub fn new(folder: &Path, bytes: u64) -> Result<Self> {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let mut holder = command
            .args(["--mount", "sh", "-c", HOLD, "sh"])
            .arg(folder)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start `unshare`: install Debian's util-linux")?;
        let output = holder.stdout.take().context("it has an output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let disk = Self {
            holder,
            folder: folder.to_owned(),
        };
        ensure!(
            line.trim() == "ready",
            "this machine does not permit a disk of one's own: a full disk can't be tried without one"
        );
        Ok(disk)
    }

    /// How a process is started that sees this disk.
    #[must_use]
    pub fn start(&self) -> Start<'static> {
        let user = if rustix::process::geteuid().is_root() {
            ""
        } else {
            "--user --preserve-credentials"
        };
        Start::under(&format!(
            "nsenter --target {} --mount {user} --",
            self.holder.id()
        ))
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// If there is no end of it.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(self.inside().join(BALLAST))
            .context("cannot write to the small disk")?;
        let piece = vec![0; BALLAST_BYTES];
        for _ in 0..BALLAST_BYTES_MAX / BALLAST_BYTES {
            if file.write_all(&piece).is_err() {
                return Ok(());
            }
        }
        anyhow::bail!("the small disk has no end");
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// If it was not taken.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.inside().join(BALLAST)).context("the disk was not filled")
    }

    /// The disk as seen from outside of its namespace.
    fn inside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.strip_prefix("/").unwrap_or(&self.folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Ended or not, nothing more can be done about it here.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
