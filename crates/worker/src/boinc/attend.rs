//! The process that the client started: hears the client, tells it how far the work is, and stops, resumes and ends the
//! process that computes.

use std::{
    collections::VecDeque,
    fs,
    io::{BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use network::disk::{Disk, RealDisk};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{
    Arguments, COMPUTE,
    channels::{Channel, Channels},
    reins::{EXIT_PAUSED, Order, Told, lines},
    slot::Slot,
};

/// How often the client is heard: BOINC's own pace.
const TICK: Duration = Duration::from_millis(100);
/// How often it is told how far the work is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Silence after which a client that gave no process number is taken for gone.
const HEARTBEAT_MAX: Duration = Duration::from_secs(30);
/// Time to keep the state when the client says quit; it kills after a minute.
const QUIT_MAX: Duration = Duration::from_secs(50);
/// Time for the client to read the last message about a task that is done.
const GOODBYE: Duration = Duration::from_secs(2);
/// Messages for the project that wait at most.
const TRICKLES_MAX: usize = 4;
/// Lines of the computing process that wait at most.
const LINES_MAX: usize = 64;
/// BOINC's exit status of a task that the client aborted.
const EXIT_ABORTED: u8 = 194;
/// Wait before the next try in a slot that another process works in.
const LOCKED_WAIT_S: u64 = 10;

/// Least wait before the next try after somebody else ended the computing process (Debian's client takes a minute all the
/// same), and the signals by which that is told from a failure of its own.
const KILLED_WAIT_S: u64 = 10;
const KILLED_BY: [i32; 2] = [Signal::KILL.as_raw(), Signal::TERM.as_raw()];

/// How attending ended.
enum Ended {
    Done,
    /// The state is kept; the client starts the task again.
    Paused,
    Wait(u64, String),
    Aborted,
    Failed(String),
}

struct Attendance<'a> {
    slot: &'a Slot,
    channels: Option<Channels>,
    child: Child,
    orders: ChildStdin,
    told: mpsc::Receiver<Told>,
    stopped_since: Option<Instant>,
    stopped: Duration,
    fraction: f64,
    /// Processor seconds of the computing process, as last seen.
    child_cpu_s: f64,
    checkpoint_cpu_s: f64,
    trickles: VecDeque<String>,
    wait: Option<(u64, String)>,
    quitting_since: Option<Instant>,
    heard: Instant,
}

/// Attends to a client until its task is done, or it wants the task ended.
pub(super) fn main(program: &Path, arguments: &[String]) -> Result<ExitCode> {
    let slot = Slot::open(Path::new("."))?;
    Arguments::parse(arguments)?;
    let Some(_lock) = RealDisk
        .lock(&slot.path("boinc_lockfile"))
        .context("locking the slot")?
    else {
        slot.ask_for_restart(LOCKED_WAIT_S, "another process works in this slot")?;
        return Ok(ExitCode::SUCCESS);
    };
    let ended = Attendance::begin(&slot, program, arguments)?.attend()?;
    Ok(match ended {
        Ended::Done => {
            thread::sleep(GOODBYE);
            slot.finish()?;
            ExitCode::SUCCESS
        }
        Ended::Paused => ExitCode::SUCCESS,
        Ended::Wait(seconds, reason) => {
            tracing::info!("to be tried again in {seconds} s: {reason}");
            slot.ask_for_restart(seconds, &reason)?;
            ExitCode::SUCCESS
        }
        Ended::Aborted => ExitCode::from(EXIT_ABORTED),
        Ended::Failed(how) => bail!("{how}"),
    })
}

impl<'a> Attendance<'a> {
    fn begin(slot: &'a Slot, program: &Path, arguments: &[String]) -> Result<Self> {
        let channels = Channels::open(&slot.path("")).context("opening the client's messages")?;
        let mut child = Command::new(program)
            .args([COMPUTE, &std::process::id().to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the process that computes")?;
        let orders = child.stdin.take().context("it has no input")?;
        let output = child.stdout.take().context("it has no output")?;
        let (sender, told) = mpsc::sync_channel(LINES_MAX);
        thread::spawn(move || {
            lines(BufReader::new(output), |line| {
                if let Some(it) = Told::read(line) {
                    // Nobody listens only at the very end.
                    let _ = sender.send(it);
                }
            });
        });
        Ok(Self {
            slot,
            channels,
            child,
            orders,
            told,
            stopped_since: None,
            stopped: Duration::ZERO,
            fraction: 0.0,
            child_cpu_s: 0.0,
            checkpoint_cpu_s: slot.init.cpu_s,
            trickles: VecDeque::new(),
            wait: None,
            quitting_since: None,
            heard: Instant::now(),
        })
    }

    fn attend(mut self) -> Result<Ended> {
        let (mut told_at, mut looked_at) = (Instant::now(), Instant::now());
        loop {
            let status = self.child.try_wait().context("the process that computes")?;
            self.hear_child();
            if let Some(status) = status {
                // What it said last may be on its way through the other thread.
                while let Ok(told) = self.told.recv() {
                    self.note(told);
                }
                self.tell_client();
                return Ok(self.ended(status));
            }
            if self.hear_client() {
                self.kill();
                return Ok(Ended::Aborted);
            }
            if told_at.elapsed() >= TELL_EVERY {
                told_at = Instant::now();
                self.tell_client();
            }
            if looked_at.elapsed() >= LOOK_EVERY {
                looked_at = Instant::now();
                if self.is_client_gone() && self.quitting_since.is_none() {
                    tracing::warn!("the client is gone: keeping the state");
                    self.quit();
                }
            }
            if self
                .quitting_since
                .is_some_and(|it| it.elapsed() >= QUIT_MAX)
            {
                tracing::warn!("the state could not be kept in time: the last checkpoint counts");
                self.kill();
                return Ok(Ended::Paused);
            }
            thread::sleep(TICK);
        }
    }

    fn hear_child(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            self.note(told);
        }
    }

    fn note(&mut self, told: Told) {
        match told {
            Told::Fraction(fraction) => self.fraction = fraction.clamp(0.0, 1.0),
            Told::Checkpoint => self.checkpoint_cpu_s = self.cpu_s(),
            Told::Trickle(text) => {
                self.trickles.truncate(TRICKLES_MAX - 1);
                self.trickles.push_back(text);
            }
            Told::Wait(seconds, reason) => self.wait = Some((seconds, reason)),
        }
    }

    /// Does what the client says; true if it wants the task gone.
    fn hear_client(&mut self) -> bool {
        let Some(channels) = &self.channels else {
            return false;
        };
        if let Ok(Some(_)) = channels.take(Channel::Heartbeat) {
            self.heard = Instant::now();
        }
        if let Ok(Some(_)) = channels.take(Channel::TrickleDown) {
            self.remove_trickles_down();
        }
        let Some(Ok(Some(message))) = self.channels.as_ref().map(|it| it.take(Channel::Control))
        else {
            return false;
        };
        if message.contains("<abort/>") {
            tracing::info!("the client aborts the task");
            return true;
        }
        if message.contains("<quit/>") {
            self.quit();
        } else if message.contains("<suspend/>") {
            self.stop();
        } else if message.contains("<resume/>") {
            self.go_on();
        }
        if message.contains("<reread_app_info/>") || message.contains("<reread_prefs/>") {
            self.reread();
        }
        false
    }

    fn stop(&mut self) {
        if self.stopped_since.is_none() && self.quitting_since.is_none() {
            self.signal(Signal::STOP);
            self.stopped_since = Some(Instant::now());
        }
    }

    fn go_on(&mut self) {
        if let Some(since) = self.stopped_since.take() {
            self.stopped += since.elapsed();
            // Said before it runs again, so that no clock of it counts the time.
            self.order(Order::Stopped(self.stopped.as_millis() as u64));
            self.signal(Signal::CONT);
        }
    }

    fn quit(&mut self) {
        self.go_on();
        self.order(Order::Quit);
        self.quitting_since.get_or_insert_with(Instant::now);
    }

    fn reread(&mut self) {
        match Slot::open(&self.slot.path("")) {
            Ok(slot) => {
                let period = slot.init.checkpoint_period();
                self.order(Order::Period(period.as_millis() as u64));
            }
            Err(error) => tracing::warn!("the changed settings: {error:#}"),
        }
    }

    fn order(&mut self, order: Order) {
        // A process that is gone is noticed by its end.
        let _ = writeln!(self.orders, "{}", order.line());
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process(Pid::from_child(&self.child), signal) {
            tracing::warn!("the process that computes takes no signal: {error}");
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn is_client_gone(&self) -> bool {
        match self.slot.init.client.and_then(Pid::from_raw) {
            // Another user's client may not be sent a signal, and is there.
            Some(client) => test_kill_process(client) == Err(rustix::io::Errno::SRCH),
            None => self.channels.is_some() && self.heard.elapsed() >= HEARTBEAT_MAX,
        }
    }

    fn tell_client(&mut self) {
        let (cpu_s, memory) = (self.cpu_s(), self.memory());
        let Some(channels) = &self.channels else {
            return;
        };
        let text = format!(
            "<current_cpu_time>{cpu_s:e}</current_cpu_time>\n<checkpoint_cpu_time>{:e}</checkpoint_cpu_time>\n<fraction_done>{:e}</fraction_done>\n<wss>{memory:e}</wss>\n",
            self.checkpoint_cpu_s, self.fraction
        );
        if let Err(error) = channels.put(Channel::Status, &text) {
            tracing::debug!("telling the client: {error}");
        }
        let path = self.slot.path("trickle_up.xml");
        if !path.exists()
            && let Some(text) = self.trickles.pop_front()
        {
            let written = fs::write(&path, format!("<variety>progress</variety>\n{text}\n"));
            let put =
                written.and_then(|()| channels.put(Channel::TrickleUp, "<have_new_trickle_up/>\n"));
            if let Err(error) = put {
                tracing::debug!("telling the project: {error}");
            }
        }
    }

    /// The project has nothing to say to a running task: what it says is taken away.
    fn remove_trickles_down(&self) {
        let Ok(entries) = fs::read_dir(self.slot.path("")) else {
            return;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"trickle_down_")
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Processor seconds of the task, those before this start included.
    fn cpu_s(&mut self) -> f64 {
        if let Some(seconds) = cpu_s_of(&self.child.id().to_string()) {
            self.child_cpu_s = self.child_cpu_s.max(seconds);
        }
        self.slot.init.cpu_s + self.child_cpu_s + cpu_s_of("self").unwrap_or(0.0)
    }

    /// Bytes of memory in use.
    fn memory(&self) -> u64 {
        let pages = [self.child.id().to_string(), "self".into()].map(|it| resident_pages(&it));
        pages.into_iter().flatten().sum::<u64>() * rustix::param::page_size() as u64
    }

    fn ended(self, status: ExitStatus) -> Ended {
        match (status.code(), self.wait) {
            (Some(code), Some((seconds, reason))) if code == i32::from(EXIT_PAUSED) => {
                Ended::Wait(seconds, reason)
            }
            (Some(code), None) if code == i32::from(EXIT_PAUSED) => Ended::Paused,
            (Some(0), _) => Ended::Done,
            // Ended while the client wants the task ended: what was kept counts.
            _ if self.quitting_since.is_some() => Ended::Paused,
            // By somebody, or by a system that is short of memory: what was kept counts too. The client gives up a task that
            // asks for too many starts.
            _ if status.signal().is_some_and(|it| KILLED_BY.contains(&it)) => Ended::Wait(
                KILLED_WAIT_S,
                format!("the process that computes was killed: {status}"),
            ),
            (_, _) => Ended::Failed(format!("the process that computes ended: {status}")),
        }
    }
}

/// User and system time of a process by Linux's account of it.
fn cpu_s_of(process: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // A name may contain spaces and brackets; what follows its last bracket does not.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((ticks + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn resident_pages(process: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}
