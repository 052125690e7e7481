//! One real process: its log in a file, ended when the test lets go of it.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;

use crate::places;

/// Lines of a log that a failure shows.
const LOG_LINES: usize = 40;
/// Longest wait for a command that comes to an end by itself.
const COMMAND_MAX: Duration = Duration::from_secs(180);
/// Longest wait for a program that was asked to stop: a worker takes 10 s for its update, as long for its other files, and 5 s
/// for its leave at most.
const STOP_MAX: Duration = Duration::from_secs(60);

/// A running program.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `athome` with its log in `log`, appended to.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn athome<A: AsRef<OsStr>>(arguments: &[A], log: &Path) -> Result<Self> {
        let mut command = Command::new(places::athome()?);
        command.args(arguments);
        Self::start(command, log)
    }

    /// Starts a program with its log in `log`, appended to.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output);
        // SAFETY: between fork and exec only prctl is called, which is safe there; it allocates nothing.
        unsafe {
            command.pre_exec(die_with_parent);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Ends it at once, as a power cut would: `kill -9`.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "it had stopped before it was killed:\n{}",
            self.log_end()
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop.
    ///
    /// # Errors
    /// If it has ended.
    pub fn ask_to_stop(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no process id")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Asks it to stop and waits until it has.
    ///
    /// # Errors
    /// If it does not stop, or not with 0.
    pub async fn stop(self) -> Result<()> {
        self.ask_to_stop()?;
        self.end().await
    }

    /// Waits until it has stopped, as it was asked to.
    ///
    /// # Errors
    /// If it does not stop, or not with 0.
    pub async fn end(mut self) -> Result<()> {
        let status = self.ended(STOP_MAX).await?;
        ensure!(
            status.success(),
            "it stopped with {status}:\n{}",
            self.log_end()
        );
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it takes, in bytes.
    ///
    /// # Errors
    /// Where the system has no `/proc`, or the process has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.context("the process has no memory")? * 1024)
    }

    /// Whether it still runs; its log's end if not.
    ///
    /// # Errors
    /// If it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} ended with {status}:\n{}",
                self.log.display(),
                self.log_end()
            );
        }
        Ok(())
    }

    /// The end of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it does not within `wait`.
    pub async fn ended(&mut self, wait: Duration) -> Result<ExitStatus> {
        let begin = std::time::Instant::now();
        let mut look = tokio::time::interval(Duration::from_millis(20));
        while begin.elapsed() < wait {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            look.tick().await;
        }
        bail!(
            "{} did not end within {wait:?}:\n{}",
            self.log.display(),
            self.log_end()
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended or not, nothing more can be done about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Errors
/// If it can't be started or does not end.
pub async fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Result<Output> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(places::root())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_MAX, command.output())
        .await
        .with_context(|| format!("{} did not end", program.display()))?
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command to its end that reads this from standard input.
///
/// # Errors
/// If it can't be started, does not read, or does not end.
pub async fn run_told<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    told: &str,
) -> Result<Output> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .current_dir(places::root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut input = child.stdin.take().context("it has no standard input")?;
    input.write_all(told.as_bytes()).await?;
    drop(input);
    let output = tokio::time::timeout(COMMAND_MAX, child.wait_with_output())
        .await
        .with_context(|| format!("{} did not end", program.display()))??;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a command that must exit with 0; returns its standard output.
///
/// # Errors
/// If it does not.
pub async fn run_well<A: AsRef<OsStr> + std::fmt::Debug>(
    program: &Path,
    arguments: &[A],
) -> Result<String> {
    let output = run(program, arguments).await?;
    ensure!(
        output.success,
        "{} {arguments:?} failed:\n{}{}",
        program.display(),
        output.stdout,
        output.stderr
    );
    Ok(output.stdout)
}

/// Has the kernel end the process when a test dies without letting go of it.
fn die_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}
