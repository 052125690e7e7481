//! Running other programs: output to a log, and on failure the part of it that explains.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Most lines of a log that a failure shows.
const EXCERPT_LINES_MAX: usize = 120;

/// A program's output, kept in a file.
pub(crate) struct Log {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Standard output and error together.
    pub(crate) text: String,
    /// Whether the program exited with 0.
    pub(crate) success: bool,
}

/// Runs `command` to its end with its output in `target/test-logs/NAME.log`.
pub(crate) fn logged(name: &str, command: &mut Command) -> Result<Log> {
    let folder = workspace::logs();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{name}.log"));
    let output = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let errors = output.try_clone().context("cannot share a log file")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status();
    let success = match status {
        Ok(status) => status.success(),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{}", missing(command)),
        Err(error) => return Err(error).with_context(|| format!("cannot start {command:?}")),
    };
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Log {
        path,
        text: String::from_utf8_lossy(&bytes).into_owned(),
        success,
    })
}

/// Like [`logged`]; a failure is an error that shows the end of the log.
pub(crate) fn required(name: &str, command: &mut Command) -> Result<Log> {
    let log = logged(name, command)?;
    if !log.success {
        bail!(
            "{name} failed; all of it is in {}\n{}",
            log.path.display(),
            tail(&log.text)
        );
    }
    Ok(log)
}

/// What a program prints, or `None` if it is missing or fails.
pub(crate) fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command that runs in `folder`.
pub(crate) fn command_in(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments);
    command
}

/// Cargo, in the repository's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = command_in(&workspace::root(), &program, arguments);
    // What cargo tells `cargo run`'s child must not reach the next cargo.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// The end of a log.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(EXCERPT_LINES_MAX);
    lines[from..].join("\n")
}

fn missing(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let advice = match program.as_str() {
        "npm" | "node" => {
            "install Node.js 20 or newer with npm (Debian: `apt-get install nodejs npm`)"
        }
        "apt-get" | "dpkg-query" => {
            "this task installs Debian packages; elsewhere install Chromium, PyTorch for Python and python3-venv by hand"
        }
        "git" => "install git",
        _ => "install it and try again",
    };
    format!("`{program}` was not found: {advice}.")
}
