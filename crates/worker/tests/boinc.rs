//! The program itself, started as a BOINC client starts it: what it does with the client's messages, measured.

#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use protocol::boinc::UnitTask;

#[path = "../src/boinc/testing.rs"]
mod testing;

use testing::{Project, key};

const CHANNEL_BYTES: u64 = 1024;
const CONTROL: u64 = 0;
const HEARTBEAT: u64 = 4;
const STATUS: u64 = 5;
const TRICKLE_UP: u64 = 6;
/// Longest wait for anything: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(300);

/// A client's side of a running task.
struct Task {
    slot: PathBuf,
    file: File,
    program: Child,
}

/// What the task says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Status {
    cpu_s: f64,
    checkpoint_cpu_s: f64,
    fraction: f64,
}

impl Task {
    /// Starts the program in a slot, as a client does.
    fn start(slot: &Path) -> Self {
        fs::write(
            slot.join("boinc_mmap_file"),
            [0; 8 * CHANNEL_BYTES as usize],
        )
        .unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(slot.join("boinc_mmap_file"))
            .unwrap();
        let errors = File::options()
            .create(true)
            .append(true)
            .open(slot.join("stderr.txt"))
            .unwrap();
        let program = Command::new(env!("CARGO_BIN_EXE_athome-boinc"))
            .args(["--nthreads", "2"])
            .current_dir(slot)
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Self {
            slot: slot.to_owned(),
            file,
            program,
        }
    }

    fn byte(&self, channel: u64) -> u8 {
        let mut flag = [0];
        self.file
            .read_exact_at(&mut flag, channel * CHANNEL_BYTES)
            .unwrap();
        flag[0]
    }

    /// Says something to the program, and waits until it was heard.
    fn say(&mut self, channel: u64, text: &str) {
        self.until("room for a message", |task| {
            (task.byte(channel) == 0).then_some(())
        });
        self.put(channel, text);
        self.until("being heard", |task| {
            (task.byte(channel) == 0).then_some(())
        });
    }

    fn put(&self, channel: u64, text: &str) {
        let text = [text.as_bytes(), b"\0"].concat();
        let place = channel * CHANNEL_BYTES;
        self.file.write_all_at(&text, place + 1).unwrap();
        self.file.write_all_at(&[1], place).unwrap();
    }

    /// The next message of the program.
    fn next(&mut self, channel: u64) -> String {
        self.until("a message", |task| {
            (task.byte(channel) != 0).then(|| {
                let mut bytes = [0; CHANNEL_BYTES as usize - 1];
                let place = channel * CHANNEL_BYTES;
                task.file.read_exact_at(&mut bytes, place + 1).unwrap();
                task.file.write_all_at(&[0], place).unwrap();
                let end = bytes.iter().position(|it| *it == 0).unwrap();
                String::from_utf8(bytes[..end].to_vec()).unwrap()
            })
        })
    }

    fn status(&mut self) -> Status {
        let text = self.next(STATUS);
        let number = |tag: &str| -> f64 {
            let (_, rest) = text.split_once(&format!("<{tag}>")).unwrap();
            rest.split_once('<').unwrap().0.parse().unwrap()
        };
        assert!(number("wss") > 0.0);
        Status {
            cpu_s: number("current_cpu_time"),
            checkpoint_cpu_s: number("checkpoint_cpu_time"),
            fraction: number("fraction_done"),
        }
    }

    fn status_when(&mut self, is_it: impl Fn(&Status) -> bool) -> Status {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if is_it(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{status:?}");
        }
    }

    fn until<T>(&mut self, what: &str, mut it: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(it) = it(self) {
                return it;
            }
            let ended = self.program.try_wait().unwrap();
            assert!(ended.is_none(), "ended before {what}: {}", self.errors());
            assert!(begun.elapsed() < PATIENCE, "no {what}: {}", self.errors());
            thread::yield_now();
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.slot.join("stderr.txt")).unwrap()
    }

    /// Process numbers of the program's children.
    fn children(&self) -> Vec<String> {
        let id = self.program.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let text = fs::read_to_string(path).unwrap();
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    fn end(mut self) -> ExitStatus {
        self.program.wait().unwrap()
    }

    fn is_finished(&self) -> bool {
        self.slot.join("boinc_finish_called").exists()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// Processor time of a process in ticks, by the system's account and not by its own word.
fn ticks(process: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
    next() + next()
}

fn state(process: &str) -> char {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = text.rsplit_once(')').unwrap();
    fields.trim_start().chars().next().unwrap()
}

/// Width and rows of a step that takes far longer than a message.
const LONG_STEP: (u32, u32) = (256, 256);
/// And of one that takes no time.
const SHORT_STEP: (u32, u32) = (64, 16);

/// A computer with a key, in a run whose steps are of this size.
fn enrolled((width, rows): (u32, u32), steps: (u32, u32)) -> Project {
    let project = Project::new(width, rows, steps);
    let folder = project.folder().join("athome");
    fs::create_dir_all(&folder).unwrap();
    let text = key(5).to_secret_text();
    fs::write(folder.join("worker.key"), text).unwrap();
    project
}

fn begin(project: &Project, name: &str) -> Task {
    let slot = project.give(name, project.first_round(project.worker().public()));
    Task::start(&slot)
}

#[test]
fn a_unit_runs_to_its_end_and_says_how_far_it_is() {
    let project = enrolled(SHORT_STEP, (2, 12));
    let mut task = begin(&project, "t_1");
    task.say(HEARTBEAT, "<heartbeat/>");
    let trickle = task.next(TRICKLE_UP);
    assert_eq!(trickle, "<have_new_trickle_up/>\n");
    let body = fs::read_to_string(task.slot.join("trickle_up.xml")).unwrap();
    assert!(
        body.starts_with("<variety>progress</variety>\n<unit>t_1</unit><steps>"),
        "{body}"
    );
    let slot = task.slot.clone();
    // A client reads the status as it goes.
    let status = loop {
        let status = task.status();
        if status.fraction == 1.0 {
            break status;
        }
        assert!(status.cpu_s >= 1000.0);
    };
    // Time is counted in ticks: a short round may take less than one.
    assert!(status.cpu_s >= 1000.0, "{status:?}");
    let ended = task.end();
    assert!(ended.success());
    assert_eq!(
        fs::read_to_string(slot.join("boinc_finish_called")).unwrap(),
        "0\n"
    );
    let (output, files) = project.output("t_1");
    assert_eq!(output.files[0].bytes, files.len() as u64);
}

#[test]
fn suspend_stops_the_processor_in_the_middle_of_a_step() {
    let project = enrolled(LONG_STEP, (1, 2));
    let mut task = begin(&project, "t_1");
    let child = task.until("a process that computes", |task| task.children().pop());
    task.until("a step", |task| {
        task.errors().contains("training begins").then_some(())
    });
    task.say(CONTROL, "<suspend/>");
    let heard = ticks(&child);
    task.until("being stopped", |_| (state(&child) == 'T').then_some(()));
    let stopped = ticks(&child);
    // A second of both threads: on a busy machine the clock says little.
    assert!(stopped - heard <= 200, "{} ticks", stopped - heard);
    // Messages come every second: three seconds without a tick.
    let said = task.status();
    for _ in 0..3 {
        let status = task.status();
        assert!(status.cpu_s - said.cpu_s < 0.05, "{said:?} {status:?}");
    }
    assert_eq!(ticks(&child), stopped);
    assert!(!task.errors().contains("first step done"));
    task.say(CONTROL, "<resume/>");
    let resumed = task.status_when(|it| it.cpu_s > said.cpu_s + 0.2);
    assert!(resumed.fraction <= 1.0);
    assert!(ticks(&child) > stopped);
    // Stopped, it goes with the one that attends to the client, however that ends.
    task.say(CONTROL, "<suspend/>");
    task.program.kill().unwrap();
    let begun = Instant::now();
    while Path::new(&format!("/proc/{child}/stat")).exists() && state(&child) != 'Z' {
        assert!(begun.elapsed() < PATIENCE, "it stays behind");
        thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn quit_keeps_the_state_and_the_next_start_goes_on() {
    let project = enrolled(SHORT_STEP, (2, 800));
    let mut task = begin(&project, "t_1");
    task.status_when(|it| it.fraction > 0.05);
    task.say(CONTROL, "<suspend/>");
    // A client that ends says so to suspended tasks too.
    task.say(CONTROL, "<quit/>");
    task.program.wait().unwrap();
    assert!(!task.is_finished());
    assert!(
        task.errors().contains("checkpoint steps="),
        "{}",
        task.errors()
    );
    let slot = task.slot.clone();
    assert!(task.end().success());

    let mut task = Task::start(&slot);
    task.until("going on", |task| {
        task.errors().contains("the round goes on").then_some(())
    });
    let status = task.status_when(|it| it.fraction > 0.1);
    assert!(status.checkpoint_cpu_s >= 1000.0);
    task.put(HEARTBEAT, "<heartbeat/>");
    task.status_when(|it| it.fraction == 1.0);
    assert!(task.end().success());
    let (output, _) = project.output("t_1");
    assert_eq!(output.commands.len(), 2, "a join and a commitment");
}

#[test]
fn abort_ends_both_processes_at_once() {
    let project = enrolled(LONG_STEP, (1, 2));
    let mut task = begin(&project, "t_1");
    let child = task.until("a process that computes", |task| task.children().pop());
    task.put(CONTROL, "<abort/>");
    assert_eq!(task.program.wait().unwrap().code(), Some(194));
    assert!(!Path::new(&format!("/proc/{child}")).exists());
    assert!(!task.is_finished());
}

#[test]
fn a_client_that_is_gone_leaves_nothing_running() {
    let project = enrolled(SHORT_STEP, (2, 100_000));
    let slot = project.give("t_1", project.first_round(project.worker().public()));
    // The number of a process that has ended: a client's that was killed.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let init = format!("<client_pid>{}</client_pid>", gone.id());
    fs::write(slot.join("init_data.xml"), init).unwrap();
    let mut task = Task::start(&slot);
    assert!(task.program.wait().unwrap().success());
    assert!(!task.is_finished());
    assert!(
        task.errors().contains("the client is gone"),
        "{}",
        task.errors()
    );
    assert!(slot.join("round").exists());
}

#[test]
fn a_unit_that_can_t_be_believed_fails_in_words() {
    let project = enrolled(SHORT_STEP, (2, 4));
    let task = UnitTask::Enrol {
        sequence: 0,
        with_new_key: false,
    };
    let slot = project.give_from(&key(1), "e_1", task, &[]);
    let mut task = Task::start(&slot);
    assert_eq!(task.program.wait().unwrap().code(), Some(1));
    assert!(!task.is_finished());
    assert!(
        task.errors().contains("the run's hub is"),
        "{}",
        task.errors()
    );
    assert!(!project.output_file("e_1").exists());
}
