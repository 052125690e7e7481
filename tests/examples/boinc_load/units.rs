//! `boinc_overhead_s` and `boinc_counted_share_…`: what a stock client of Debian's makes of its machine's time.
//!
//! The client, one processor, is on a core of its own with its application; hub and judging have another. The model has
//! 12.29 M parameters, as in the bench `home-link`. The host is the run's only one: a round ends when it has committed, and
//! what is measured is the way from one unit to the next alone (sealing, upload, report, merge, files, start), not waiting
//! for others.
//!
//! Overhead: from the end of a unit's training to the beginning of the next one's. Share: processor seconds in inner steps
//! of accepted updates over all seconds of the core, from the beginning of one unit's training to the beginning of another's.
//! The application measures its inner steps by the clock; where its processes used less processor time than that, their
//! processor time counts. Shares of units of another length than measured are computed from the measured overhead, and say
//! so in their name.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use protocol::{api::ROUNDS_PAGE_MAX, units::RunId};
use tests::{
    boinc::BoincClient,
    charters,
    network::{Network, Start},
};

/// Length of the units that are to be told of.
const STATED_S: u64 = 900;
/// Units before the counted ones: the first brings the checkpoint.
const UNITS_BEFORE: usize = 1;
/// Counted units: more where they are short.
const UNITS_OF_SHORT: usize = 4;
const UNITS_OF_LONG: usize = 2;
const SHORT_S_MAX: u64 = 300;
/// Time that may pass beside a unit's training, at most.
const BESIDE_MAX: Duration = Duration::from_secs(120);
/// Time between two looks at what the application says.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Files of finished units that are still looked at.
const FILES_MAX: usize = 8;

/// A unit whose training begins or ends.
struct Moment {
    round: u64,
    at: Instant,
    /// Processor time of the application so far.
    cpu: Duration,
    /// At its end: milliseconds in inner steps.
    stepping_ms: Option<u64>,
}

pub(super) async fn measure(unit_s: u64) -> Result<()> {
    ensure!(unit_s > 0, "a unit takes time");
    let mut network =
        Network::start_with_boinc_as("bench-boinc", Start::under("taskset -c 0")).await?;
    let run = network.open_run_of(&charter(unit_s * 1_000)?).await?;
    let mut host = BoincClient::start_unhurried(&network.folder.join("host")).await?;
    let url = network.project_url();
    let key = host
        .create_account(&url, "host@example.org", "correct horse battery")
        .await?;
    host.attach(&url, &key).await?;

    let units = match unit_s <= SHORT_S_MAX {
        true => UNITS_OF_SHORT,
        false => UNITS_OF_LONG,
    };
    let moments = follow(&mut network, &mut host, unit_s, UNITS_BEFORE + units).await?;
    let begins: Vec<&Moment> = moments
        .iter()
        .filter(|it| it.stepping_ms.is_none())
        .collect();
    let (first, last) = (begins[UNITS_BEFORE], begins[UNITS_BEFORE + units]);
    let accepted = accepted(&network, run, last.round).await?;
    let (mut counted, mut training, mut overhead) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for pair in begins[UNITS_BEFORE..].windows(2) {
        let (begin, next) = (pair[0], pair[1]);
        let mut ends = moments.iter().filter(|it| it.round == begin.round);
        let end = ends.rfind(|it| it.stepping_ms.is_some());
        let end = end.with_context(|| format!("round {} has no end", begin.round))?;
        let stepping = Duration::from_millis(end.stepping_ms.unwrap_or_default());
        let cpu = end.cpu.saturating_sub(begin.cpu);
        let is_accepted = accepted.contains(&begin.round);
        println!(
            "round {}: {:.1} s of training, {:.1} s in inner steps, {:.1} s of processor time, {:.1} s to the next{}",
            begin.round,
            (end.at - begin.at).as_secs_f64(),
            stepping.as_secs_f64(),
            cpu.as_secs_f64(),
            (next.at - end.at).as_secs_f64(),
            if is_accepted { "" } else { "; not accepted" }
        );
        training += end.at - begin.at;
        overhead += next.at - end.at;
        if is_accepted {
            counted += stepping.min(cpu);
        }
    }
    let all = (last.at - first.at).as_secs_f64();
    let overhead_s = overhead.as_secs_f64() / units as f64;
    println!("figure boinc_overhead_s {overhead_s} s");
    let share = counted.as_secs_f64() / all;
    println!("figure boinc_counted_share_{unit_s}s_measured {share} ratio");
    if unit_s != STATED_S {
        // What training is to steps stays; the way from one unit to the next is gone once for so much more of it.
        let of_training = counted.as_secs_f64() / training.as_secs_f64();
        let stated = STATED_S as f64;
        let share = of_training * stated / (stated + overhead_s);
        println!("figure boinc_counted_share_{STATED_S}s_computed {share} ratio");
    }
    host.quit().await?;
    drop(host);
    network.finish().await
}

/// Model A of the other benches, in a run whose rounds leave a unit twice its time.
fn charter(unit_ms: u64) -> Result<String> {
    let charter = charters::with(&[
        ("vocab_size", 4_096),
        ("hidden_size", 384),
        ("intermediate_size", 1_024),
        ("num_hidden_layers", 6),
        ("num_attention_heads", 6),
        ("num_key_value_heads", 6),
        ("max_position_embeddings", 256),
        ("batch_rows", 4),
        ("sequence", 256),
        ("kept", 64),
        ("window_ms", 2 * unit_ms + 60_000),
        ("reveal_ms", 60_000),
        ("warm_start_tokens", 0),
        ("steps_max", 100_000),
        ("checkpoint_every", 20),
        ("tokens_max", 1_000_000_000),
    ])?;
    charters::with_boinc_hosts(&charter, unit_ms)
}

/// Beginnings and ends of trainings, until so many units and the beginning of one more are there.
async fn follow(
    network: &mut Network,
    host: &mut BoincClient,
    unit_s: u64,
    units: usize,
) -> Result<Vec<Moment>> {
    let mut said = Said {
        slots: host.folder().join("slots"),
        files: Vec::new(),
    };
    let longest = (Duration::from_secs(unit_s) + BESIDE_MAX) * (units as u32 + 2);
    let (begun, mut moments) = (Instant::now(), Vec::new());
    let mut begins = 0;
    while begins <= units {
        for line in said.lines()? {
            let Some((round, stepping_ms)) = read(&line) else {
                continue;
            };
            begins += usize::from(stepping_ms.is_none());
            moments.push(Moment {
                round,
                at: Instant::now(),
                cpu: host.applications_cpu(),
                stepping_ms,
            });
        }
        host.must_run()?;
        network.must_run()?;
        ensure!(
            begun.elapsed() < longest,
            "{begins} units began within {longest:?}; the client's log ends:\n{}",
            host.log()
                .lines()
                .rev()
                .take(30)
                .collect::<Vec<_>>()
                .join("\n")
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(moments)
}

fn read(line: &str) -> Option<(u64, Option<u64>)> {
    let field = |name: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    match line {
        _ if line.contains("training begins") => Some((field("round")?, None)),
        _ if line.contains("training ends") => Some((field("round")?, Some(field("stepping_ms")?))),
        _ => None,
    }
}

/// What applications wrote to their standard error; the client removes the files when it is done with a task.
struct Said {
    slots: PathBuf,
    /// By inode, with what was read after the last whole line.
    files: Vec<(u64, File, String)>,
}

impl Said {
    fn lines(&mut self) -> Result<Vec<String>> {
        let slots = fs::read_dir(&self.slots).into_iter().flatten().flatten();
        for slot in slots {
            let Ok(file) = File::open(slot.path().join("stderr.txt")) else {
                continue;
            };
            let number = file.metadata()?.ino();
            if !self.files.iter().any(|it| it.0 == number) {
                self.files.push((number, file, String::new()));
            }
        }
        if self.files.len() > FILES_MAX {
            self.files.remove(0);
        }
        let mut lines = Vec::new();
        for (_, file, text) in &mut self.files {
            file.read_to_string(text)?;
            if let Some(end) = text.rfind('\n') {
                lines.extend(text[..end].lines().map(str::to_owned));
                text.drain(..=end);
            }
        }
        Ok(lines)
    }
}

/// Rounds before `before` whose only update was accepted. What is judged when this is asked will have been when it ends.
async fn accepted(network: &Network, run: RunId, before: u64) -> Result<HashSet<u64>> {
    let rounds = network.client()?.rounds(run, None, ROUNDS_PAGE_MAX).await?;
    let is_accepted = |state: &str| matches!(state, "accepted" | "merged");
    let rounds = rounds.iter().filter(|round| {
        let mut contributions = round.contributions.iter();
        round.round < before && contributions.any(|it| is_accepted(&it.state))
    });
    Ok(rounds.map(|it| it.round).collect())
}
