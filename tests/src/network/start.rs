//! Starting hub and workers in other ways than the usual one: behind a relay or a link, under another program, with another
//! clock.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use protocol::units::RunId;

use super::{Network, Worker};
#[cfg(target_os = "linux")]
use crate::link::Link;
use crate::{
    charters, places,
    process::{Process, run_well},
};

/// Version of the application for BOINC clients, as they count: 1.01.
const BOINC_VERSION: &str = "101";

/// How a process is started, if not in the usual way.
#[derive(Default)]
pub struct Start<'a> {
    /// What a worker is told is the hub; the hub itself if this is empty.
    pub hub_url: String,
    /// A program and its arguments that start `athome`, such as `taskset -c 1`.
    pub under: Vec<String>,
    /// Variables of the environment.
    pub environment: Vec<(&'static str, String)>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// The link that a worker sits behind.
    #[cfg(target_os = "linux")]
    pub link: Option<&'a Link>,
    /// Keeps the lifetime where there are no links.
    #[cfg(not(target_os = "linux"))]
    pub link: std::marker::PhantomData<&'a ()>,
}

impl Start<'_> {
    /// Under `program` with its arguments, separated by spaces.
    #[must_use]
    pub fn under(program: &str) -> Self {
        Self {
            under: program.split_whitespace().map(str::to_owned).collect(),
            ..Self::default()
        }
    }

    /// With the hub at another address.
    #[must_use]
    pub fn with_hub(hub_url: String) -> Self {
        Self {
            hub_url,
            ..Self::default()
        }
    }

    fn command(&self, arguments: &[String]) -> Result<Command> {
        let athome = places::athome()?;
        let mut command = match self.under.split_first() {
            None => Command::new(athome),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(athome);
                command
            }
        };
        command.args(arguments).args(&self.arguments);
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        #[cfg(target_os = "linux")]
        if let Some(link) = self.link {
            link.put_in(&mut command)?;
        }
        Ok(command)
    }
}

impl Network {
    /// A network whose hub takes BOINC clients, with the application signed by a key of this test.
    ///
    /// # Errors
    /// If the application can't be signed, or the hub does not answer.
    pub async fn start_with_boinc(name: &str) -> Result<Self> {
        Self::start_with_boinc_as(name, Start::default()).await
    }

    /// The same with the hub started in another way.
    ///
    /// # Errors
    /// As [`Self::start_with_boinc`].
    pub async fn start_with_boinc_as(name: &str, hub: Start<'static>) -> Result<Self> {
        let folder = Self::fresh_folder(name)?;
        let release = folder.join("release");
        sign_boinc_application(&folder, &release).await?;
        let hub = Start {
            arguments: vec![
                "--boinc-release".to_owned(),
                release.to_string_lossy().into_owned(),
            ],
            ..hub
        };
        Self::start_in(folder, hub).await
    }

    /// The hub's address as BOINC clients want it: with a slash at its end.
    #[must_use]
    pub fn project_url(&self) -> String {
        format!("{}/", self.hub_url())
    }

    /// Starts a worker with one thread and no quota, again after [`Self::kill_worker`], on the same folder.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_worker_as(&mut self, run: RunId, name: &str, start: &Start) -> Result<()> {
        ensure!(
            !self.workers.contains_key(name),
            "the worker {name} runs already"
        );
        let hub_url = match start.hub_url.as_str() {
            "" => self.hub_url(),
            url => url.to_owned(),
        };
        let run = run.to_string();
        let folder = self.path(&format!("worker-{name}"));
        let arguments = ["join", &hub_url, "--run", &run, "--name", name]
            .into_iter()
            .chain(["--folder", &folder, "--threads", "1"])
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let log = self.worker_log(name);
        let worker = Worker {
            process: Process::start(start.command(&arguments)?, &log)?,
            instead: arguments,
            log,
        };
        self.workers.insert(name.to_owned(), worker);
        Ok(())
    }

    /// Opens a run that trains a very small model on a small text.
    ///
    /// # Errors
    /// If `athome` refuses.
    pub async fn open_small_run(&self) -> Result<RunId> {
        self.open_small_run_of(&charters::small()?).await
    }

    /// The same with a charter of its own.
    ///
    /// # Errors
    /// If `athome` refuses.
    pub async fn open_small_run_of(&self, charter: &str) -> Result<RunId> {
        let (file, data) = (self.path("small.jsonl"), self.path("small"));
        std::fs::write(&file, charters::small_text())?;
        let mut import = vec!["data", "import", "jsonl", &file, "--out", &data];
        import.extend(["--licence", "CC0-1.0", "--owner", "nobody"]);
        self.athome(&import).await?;
        self.create(charter, &data).await
    }

    /// Opens a run of this charter on a dataset.
    pub(super) async fn create(&self, charter: &str, data: &str) -> Result<RunId> {
        let file = self.folder.join("charter.toml");
        // Unless a test says so, nobody finds a way to the hub around the relay or link that was put before it.
        let addresses = match charter.contains("addresses = ") {
            true => "",
            false => "addresses = []\n",
        };
        std::fs::write(&file, format!("{addresses}{charter}"))?;
        let charter = file.to_string_lossy();
        let hub = self.hub_url();
        self.athome(&["run", "create", &charter, "--data", data, "--hub", &hub])
            .await?;
        let runs = self.client()?.runs().await?;
        let run = runs.first();
        let run = run.context("the hub has no run after creating one")?;
        Ok(run.id.parse()?)
    }

    /// Asks a worker to stop, and does not wait.
    ///
    /// # Errors
    /// If no such worker runs.
    pub fn ask_worker_to_stop(&self, name: &str) -> Result<()> {
        let worker = self.workers.get(name).context("no such worker runs")?;
        worker.process.ask_to_stop()
    }

    /// Waits until a worker has stopped that was asked to.
    ///
    /// # Errors
    /// If no such worker runs, or it does not stop.
    pub async fn worker_ends(&mut self, name: &str) -> Result<()> {
        let worker = self.workers.remove(name);
        let worker = worker.context("no such worker runs")?;
        worker.process.end().await
    }

    /// Stops a worker in order.
    ///
    /// # Errors
    /// If no such worker runs, or it does not stop.
    pub async fn stop_worker(&mut self, name: &str) -> Result<()> {
        let worker = self.workers.remove(name);
        let worker = worker.context("no such worker runs")?;
        worker.process.stop().await
    }

    /// Where a worker's output goes.
    #[must_use]
    pub fn worker_log(&self, name: &str) -> std::path::PathBuf {
        self.folder.join(format!("worker-{name}.log"))
    }

    pub(super) fn hub_process(&self, arguments: &[String]) -> Result<Process> {
        Process::start(
            self.hub_start.command(arguments)?,
            &self.folder.join("hub.log"),
        )
    }
}

/// Does what an operator does once for a release, away from the hub.
async fn sign_boinc_application(folder: &Path, release: &Path) -> Result<()> {
    let (athome, application) = (places::athome()?, places::boinc_application()?);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let key = text(&folder.join("signing.pem"));
    run_well(&athome, &["boinc", "key", &key]).await?;
    let (application, release) = (text(&application), text(release));
    let mut sign = vec!["boinc", "sign", &application, "--key", &key];
    sign.extend(["--version", BOINC_VERSION, "--release", &release]);
    run_well(&athome, &sign).await?;
    Ok(())
}
