//! What `boinccmd` prints, read: lists of records, each a list of `name: value`.

use std::collections::BTreeMap;

/// A record of a list: names and values as printed.
pub(super) type Record = BTreeMap<String, String>;

/// A task as the client shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// Name of the result.
    pub name: String,
    /// `downloading`, `downloaded`, `uploading`, `uploaded`, `compute error` and the like.
    pub state: String,
    /// `EXECUTING`, `SUSPENDED`, `UNINITIALIZED` and the like; empty if it never ran.
    pub active_state: String,
    /// 0 to 1, as its application says.
    pub fraction_done: f64,
    /// Seconds of processor time, as its application says.
    pub cpu_s: f64,
    /// The same at its last checkpoint.
    pub checkpoint_cpu_s: f64,
    /// Exit status of its application.
    pub exit_status: i64,
    /// Whether the user suspended it.
    pub is_suspended: bool,
}

/// A project as the client shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Credit of the account, in BOINC's unit.
    pub user_credit: f64,
    /// Credit of this host, in BOINC's unit.
    pub host_credit: f64,
    /// The account's team.
    pub team: String,
}

impl From<Record> for Task {
    fn from(record: Record) -> Self {
        Self {
            name: text(&record, "name"),
            state: text(&record, "state"),
            active_state: text(&record, "active_task_state"),
            fraction_done: number(&record, "fraction done"),
            cpu_s: number(&record, "current CPU time"),
            checkpoint_cpu_s: number(&record, "CPU time at last checkpoint"),
            exit_status: text(&record, "exit_status").parse().unwrap_or_default(),
            is_suspended: text(&record, "suspended via GUI") == "yes",
        }
    }
}

impl From<Record> for Project {
    fn from(record: Record) -> Self {
        Self {
            name: text(&record, "name"),
            user_credit: number(&record, "user_total_credit"),
            host_credit: number(&record, "host_total_credit"),
            team: text(&record, "team_name"),
        }
    }
}

/// The records of a list; each begins with a line such as `1) -----------`.
pub(super) fn records(said: &str) -> impl Iterator<Item = Record> + '_ {
    let mut found: Vec<Record> = Vec::new();
    for line in said.lines() {
        let line = line.trim();
        if line.ends_with(") -----------") {
            found.push(Record::new());
        } else if let (Some(record), Some((name, value))) = (found.last_mut(), line.split_once(':'))
        {
            // The first of a name is the record's own; nested parts repeat some.
            record
                .entry(name.to_owned())
                .or_insert_with(|| value.trim().to_owned());
        }
    }
    found.into_iter()
}

fn text(record: &Record, name: &str) -> String {
    record.get(name).cloned().unwrap_or_default()
}

fn number(record: &Record, name: &str) -> f64 {
    record
        .get(name)
        .and_then(|it| it.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: &str = "
======== Tasks ========
1) -----------
   name: t_12_0
   WU name: t_12
   project URL: http://127.0.0.1:7700/
   received: Sat Nov 28 11:41:51 2026
   report deadline: Sat Nov 28 12:41:51 2026
   ready to report: no
   state: downloaded
   scheduler state: scheduled
   active_task_state: EXECUTING
   app version num: 101
   resources: 1 CPU
   suspended via GUI: no
   CPU time at last checkpoint: 4.500000
   current CPU time: 5.250000
   fraction done: 0.400000
2) -----------
   name: t_13_0
   state: new
   suspended via GUI: yes
";

    #[test]
    fn tasks_read_as_they_are_printed() {
        let tasks: Vec<Task> = records(TASKS).map(Task::from).collect();
        let first = Task {
            name: "t_12_0".into(),
            state: "downloaded".into(),
            active_state: "EXECUTING".into(),
            fraction_done: 0.4,
            cpu_s: 5.25,
            checkpoint_cpu_s: 4.5,
            exit_status: 0,
            is_suspended: false,
        };
        let second = Task {
            name: "t_13_0".into(),
            state: "new".into(),
            is_suspended: true,
            ..Task::default()
        };
        assert_eq!(tasks, [first, second]);
    }

    #[test]
    fn no_task_is_no_task() {
        assert_eq!(records("\n======== Tasks ========\n").count(), 0);
    }
}
