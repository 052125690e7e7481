//! The processes that a client runs: they work in its slots.

use std::{fs, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// Linux counts processor time for programs in hundredths of a second, whatever the machine.
const TICK: Duration = Duration::from_millis(10);

/// Process ids of what runs in a client's slots.
pub(super) fn of(client: &Path) -> Vec<u32> {
    let slots = client.join("slots");
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|it| fs::read_link(it.path().join("cwd")).is_ok_and(|it| it.starts_with(&slots)))
        .filter_map(|it| it.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processor time of a process and all its threads, those that ended included.
pub(super) fn cpu(id: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // A program's name stands in parentheses and can hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

/// Ends all of them at once.
pub(super) fn kill_all(client: &Path) {
    for id in of(client) {
        if let Some(pid) = Pid::from_raw(id.cast_signed()) {
            // One that ended meanwhile is what was wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
