//! The programs of a network: each in its own process group, with its own log, restarted when it dies.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::process::tail;

/// A program that dies more often than this within [`DEATHS_WITHIN`] has a fault that starting again won't mend.
const DEATHS_MAX: usize = 3;
/// See [`DEATHS_MAX`].
const DEATHS_WITHIN: Duration = Duration::from_secs(60);
/// Time that a program has to stop by itself.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Time between two looks at a stopping program.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to run.
pub(super) struct Program {
    /// Name for people and for the log file.
    pub(super) name: String,
    /// The binary.
    pub(super) binary: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// How to run it where the first way is not permitted.
    pub(super) fallback: Option<Fallback>,
    /// Whether it may be done one day: a worker is when its run is finished.
    pub(super) may_end: bool,
}

/// Another way to run a program.
pub(super) struct Fallback {
    /// What the program's log says when this way is needed.
    pub(super) reason: &'static str,
    /// The other arguments.
    pub(super) arguments: Vec<String>,
}

/// Running programs, in the order they were started.
pub(super) struct Children {
    logs: PathBuf,
    running: Vec<Running>,
}

struct Running {
    program: Program,
    child: Child,
    deaths: VecDeque<Instant>,
    is_done: bool,
}

impl Children {
    /// None yet; their logs will lie in `logs`.
    pub(super) fn new(logs: PathBuf) -> Result<Self> {
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Self {
            logs,
            running: Vec::new(),
        })
    }

    /// Where the logs lie.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts one more.
    pub(super) fn start(&mut self, program: Program) -> Result<()> {
        let child = spawn(&program, &self.log(&program.name))?;
        self.running.push(Running {
            program,
            child,
            deaths: VecDeque::new(),
            is_done: false,
        });
        Ok(())
    }

    /// Starts again what has died, with a sentence; gives up on what dies again and again.
    pub(super) fn look_after(&mut self) -> Result<()> {
        for running in &mut self.running {
            if running.is_done {
                continue;
            }
            let Some(status) = running
                .child
                .try_wait()
                .context("cannot look at a program")?
            else {
                continue;
            };
            let name = running.program.name.clone();
            let log = self.logs.join(format!("{name}.log"));
            if running.program.takes_fallback(&log) {
                println!(
                    "\n{name}: this machine permits no processor quota; it gets a lower priority instead"
                );
                running.child = spawn(&running.program, &log)?;
                continue;
            }
            if running.program.may_end && status.success() {
                running.is_done = true;
                println!("\n{name} is done; its log is {}", log.display());
                continue;
            }
            let now = Instant::now();
            running.deaths.push_back(now);
            while running
                .deaths
                .front()
                .is_some_and(|it| DEATHS_WITHIN < now - *it)
            {
                running.deaths.pop_front();
            }
            if DEATHS_MAX < running.deaths.len() {
                let text = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "{name} stopped {} times within a minute ({status}). Read {}; it ends with:\n{}",
                    running.deaths.len(),
                    log.display(),
                    last_lines(&tail(&text))
                );
            }
            println!(
                "\n{name} stopped ({status}) and is started again; its log is {}",
                log.display()
            );
            running.child = spawn(&running.program, &log)?;
        }
        Ok(())
    }

    /// Asks all to stop, the last started first, and ends what does not.
    pub(super) fn stop(&mut self) {
        self.running.retain(|it| !it.is_done);
        for running in self.running.iter().rev() {
            signal(&running.child, Signal::TERM);
        }
        let begin = Instant::now();
        while begin.elapsed() < STOP_MAX
            && self.running.iter_mut().any(|it| is_running(&mut it.child))
        {
            thread::sleep(LOOK_EVERY);
        }
        for running in &mut self.running {
            if is_running(&mut running.child) {
                println!(
                    "{} did not stop within {} s and was ended",
                    running.program.name,
                    STOP_MAX.as_secs()
                );
                signal(&running.child, Signal::KILL);
                // It has been killed; what wait says changes nothing.
                let _ = running.child.wait();
            }
        }
        self.running.clear();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

impl Program {
    /// Changes to the fallback if the log asks for it; once.
    fn takes_fallback(&mut self, log: &Path) -> bool {
        let text = fs::read_to_string(log).unwrap_or_default();
        let Some(fallback) = self.fallback.take_if(|it| tail(&text).contains(it.reason)) else {
            return false;
        };
        self.arguments = fallback.arguments;
        true
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(program: &Program, log: &Path) -> Result<Child> {
    let output: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context("cannot share a log file")?;
    let mut command = Command::new(&program.binary);
    command
        .args(&program.arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0);
    // SAFETY: between fork and exec only prctl is called, which is safe there; it allocates nothing.
    unsafe {
        command.pre_exec(die_with_parent);
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.binary.display()))
}

/// Has the kernel stop the program when this one is killed and cannot do it.
fn die_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    Ok(())
}

fn is_running(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}

fn signal(child: &Child, signal: Signal) {
    let Some(pid) = Pid::from_raw(child.id().cast_signed()) else {
        return;
    };
    // It may have ended by itself in between.
    if kill_process_group(pid, signal).is_err() {
        let _ = kill_process(pid, signal);
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program {
            name: "program".to_owned(),
            binary: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            fallback: None,
            may_end: false,
        }
    }

    fn logs(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("athome-children-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_is_done_is_left_alone() {
        let folder = logs("done");
        let mut children = Children::new(folder.clone()).unwrap();
        let mut done = shell("echo once >> \"$0\"");
        done.may_end = true;
        let marks = folder.join("marks");
        done.arguments.push(marks.to_string_lossy().into_owned());
        children.start(done).unwrap();
        while !children.running[0].is_done {
            children.look_after().unwrap();
            thread::yield_now();
        }
        children.look_after().unwrap();
        children.stop();
        assert_eq!(fs::read_to_string(&marks).unwrap(), "once\n");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_dies_again_and_again_is_given_up_with_its_log() {
        let folder = logs("dies");
        let mut children = Children::new(folder.clone()).unwrap();
        children
            .start(shell("echo no room on this disk; exit 7"))
            .unwrap();
        let error = loop {
            if let Err(error) = children.look_after() {
                break error.to_string();
            }
            thread::yield_now();
        };
        assert!(error.contains("no room on this disk"), "{error}");
        assert!(error.contains("program.log"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_not_permitted_is_done_the_other_way() {
        let folder = logs("fallback");
        let mut children = Children::new(folder.clone()).unwrap();
        let mut program = shell("echo not permitted; exit 1");
        program.fallback = Some(Fallback {
            reason: "not permitted",
            arguments: shell("echo the other way; tail -f /dev/null").arguments,
        });
        children.start(program).unwrap();
        let log = folder.join("program.log");
        while !fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("the other way")
        {
            children.look_after().unwrap();
            thread::yield_now();
        }
        drop(children);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn stop_ends_the_whole_group() {
        let folder = logs("stop");
        let mut children = Children::new(folder.clone()).unwrap();
        children
            .start(shell("tail -f /dev/null & echo $!; wait"))
            .unwrap();
        let log = folder.join("program.log");
        let grandchild = loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                break pid.to_owned();
            }
            thread::yield_now();
        };
        let runs = || {
            // A zombie that nobody waits for has ended.
            fs::read_to_string(format!("/proc/{grandchild}/stat"))
                .is_ok_and(|it| !it.contains(") Z "))
        };
        assert!(runs());
        children.stop();
        let begin = Instant::now();
        while runs() {
            assert!(
                begin.elapsed() < STOP_MAX,
                "process {grandchild} still runs"
            );
            thread::yield_now();
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
