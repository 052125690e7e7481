//! An unmodified BOINC client of Debian as a process: in a data directory of its own, without a window, driven by `boinccmd`.
//!
//! `cargo xtask setup` installs it. What this module sets is what a person could set in the BOINC Manager or in
//! `cc_config.xml`; the client is the one that volunteers run.

mod answers;
mod applications;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub use answers::{Project, Task};

use crate::process::{self, Process};

/// Debian's client and its command line.
const CLIENT: &str = "/usr/bin/boinc";
const COMMAND_LINE: &str = "/usr/bin/boinccmd";
/// Word that `boinccmd` shows the client; it is reached from this machine alone.
const PASSWORD: &str = "for tests";
/// Longest wait for the client to answer after its start.
const READY_MAX: Duration = Duration::from_secs(20);
/// Longest wait for the client to have ended its applications and itself.
const QUIT_MAX: Duration = Duration::from_secs(30);
/// Time between two looks at anything of the client's.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for an end when a test lets go of a client.
const DROP_MAX: Duration = Duration::from_secs(3);

/// One processor, no requests to other hosts, a log that tells of every message.
const SETTINGS: &str = "\
<cc_config>
  <log_flags>
    <app_msg_send>1</app_msg_send>
    <checkpoint_debug>1</checkpoint_debug>
    <file_xfer>1</file_xfer>
    <file_xfer_debug>1</file_xfer_debug>
    <sched_op_debug>1</sched_op_debug>
    <task>1</task>
    <task_debug>1</task_debug>
    <work_fetch_debug>1</work_fetch_debug>
  </log_flags>
  <options>
    <ncpus>1</ncpus>
    <dont_contact_ref_site>1</dont_contact_ref_site>
    <no_info_fetch>1</no_info_fetch>
    <skip_cpu_benchmarks>1</skip_cpu_benchmarks>
  </options>
</cc_config>
";
/// A checkpoint every five seconds; busy neighbours do not suspend work; nearly no work in stock.
const PREFERENCES: &str = "\
<global_preferences>
  <disk_interval>5</disk_interval>
  <suspend_cpu_usage>0</suspend_cpu_usage>
  <run_if_user_active>1</run_if_user_active>
  <run_on_batteries>1</run_on_batteries>
  <leave_apps_in_memory>1</leave_apps_in_memory>
  <work_buf_min_days>0.001</work_buf_min_days>
  <work_buf_additional_days>0.001</work_buf_additional_days>
</global_preferences>
";

/// What shortens the waits of tests. Without the usual priorities: on a machine whose cores are all taken, applications that
/// run only when nothing else does would not run.
const OPTIONS: [&str; 10] = [
    "--skip_cpu_benchmarks",
    "--no_info_fetch",
    "--no_gpus",
    "--no_priority_change",
    "--sched_retry_delay_min",
    "5",
    "--pers_retry_delay_min",
    "3",
    "--pers_retry_delay_max",
    "6",
];

/// A client, and how to start it again.
pub struct BoincClient {
    folder: PathBuf,
    log: PathBuf,
    port: u16,
    process: Option<Process>,
    /// The project's master URL, with the slash at its end, and the key that it was attached with.
    project: Option<(String, String)>,
}

impl BoincClient {
    /// Starts a client in a new data directory; `folder` is removed by whoever owns the folder around it.
    ///
    /// # Errors
    /// If it is not installed, or does not answer.
    pub async fn start(folder: &Path) -> Result<Self> {
        Self::open(folder, PREFERENCES).await
    }

    /// The same with the time between two checkpoints that people have who change nothing: a minute.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_unhurried(folder: &Path) -> Result<Self> {
        let usual = PREFERENCES.replace("<disk_interval>5<", "<disk_interval>60<");
        Self::open(folder, &usual).await
    }

    async fn open(folder: &Path, preferences: &str) -> Result<Self> {
        ensure!(
            Path::new(CLIENT).exists(),
            "{CLIENT} is missing: run `cargo xtask setup`"
        );
        fs::create_dir_all(folder)?;
        // The client takes its own directory for granted, so the paths in it must not hang on ours.
        let folder = fs::canonicalize(folder)?;
        fs::write(folder.join("cc_config.xml"), SETTINGS)?;
        fs::write(folder.join("global_prefs_override.xml"), preferences)?;
        fs::write(folder.join("gui_rpc_auth.cfg"), PASSWORD)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let mut client = Self {
            log: folder.join("client.log"),
            folder,
            port,
            process: None,
            project: None,
        };
        client.resume().await?;
        Ok(client)
    }

    /// Starts it again after [`Self::quit`] or [`Self::kill`], in the same data directory.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn resume(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the client runs already");
        let mut command = Command::new(CLIENT);
        command
            .current_dir(&self.folder)
            .arg("--dir")
            .arg(&self.folder)
            .args(["--gui_rpc_port", &self.port.to_string()])
            .args(OPTIONS);
        let mut process = Process::start(command, &self.log)?;
        let begin = Instant::now();
        loop {
            process.must_run()?;
            // An exit status of 0 alone says that the client answered.
            if self.ask(&["--client_version"]).await?.success {
                break;
            }
            ensure!(
                begin.elapsed() < READY_MAX,
                "the client does not answer:\n{}",
                process.log_end()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Makes an account at a project, as the BOINC Manager does, and gives its key.
    ///
    /// # Errors
    /// The project's words, if it refuses.
    pub async fn create_account(&self, url: &str, email: &str, password: &str) -> Result<String> {
        let name = email.split('@').next().unwrap_or(email);
        self.made_key(&["--create_account", url, email, password, name])
            .await
    }

    /// Looks up the account of an address and password, and gives its key.
    ///
    /// # Errors
    /// The project's words, if it refuses.
    pub async fn look_up_account(&self, url: &str, email: &str, password: &str) -> Result<String> {
        self.made_key(&["--lookup_account", url, email, password])
            .await
    }

    async fn made_key(&self, arguments: &[&str]) -> Result<String> {
        let said = self.ask(arguments).await?;
        let key = said
            .stdout
            .lines()
            .find_map(|it| it.strip_prefix("account key: "));
        let Some(key) = key else {
            bail!("{}{}", said.stdout, said.stderr)
        };
        Ok(key.trim().to_owned())
    }

    /// Attaches to the project at this address, with an account's key.
    ///
    /// # Errors
    /// If the client refuses; what the project says comes later, in its log.
    pub async fn attach(&mut self, url: &str, key: &str) -> Result<()> {
        self.order(&["--project_attach", url, key]).await?;
        self.project = Some((url.to_owned(), key.to_owned()));
        Ok(())
    }

    /// Has the client contact the project now.
    ///
    /// # Errors
    /// If it is not attached.
    pub async fn update(&self) -> Result<()> {
        self.project_order("update").await
    }

    /// Something to do with the project: `suspend`, `resume`, `nomorework`, `detach` and what else `boinccmd` knows.
    ///
    /// # Errors
    /// If it is not attached.
    pub async fn project_order(&self, order: &str) -> Result<()> {
        let (project, _) = self.project.as_ref().context("it is not attached")?;
        self.order(&["--project", project, order]).await
    }

    /// Something to do with a task: `suspend`, `resume` or `abort`.
    ///
    /// # Errors
    /// If it has no such task.
    pub async fn task_order(&self, task: &str, order: &str) -> Result<()> {
        let (project, _) = self.project.as_ref().context("it is not attached")?;
        self.order(&["--task", project, task, order]).await
    }

    /// Its tasks.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn tasks(&self) -> Result<Vec<Task>> {
        let said = self.answer(&["--get_tasks"]).await?;
        Ok(answers::records(&said).map(Task::from).collect())
    }

    /// What it knows of the project.
    ///
    /// # Errors
    /// If it is attached to none.
    pub async fn project(&self) -> Result<Project> {
        let said = self.answer(&["--get_project_status"]).await?;
        let record = answers::records(&said).next();
        Ok(Project::from(
            record.context("it is attached to no project")?,
        ))
    }

    /// What the project told its user.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn messages(&self) -> Result<String> {
        self.answer(&["--get_messages"]).await
    }

    /// Waits for a task that `found` likes.
    ///
    /// # Errors
    /// If there is none within `wait`; with the end of the client's log.
    pub async fn task_that(
        &mut self,
        what: &str,
        wait: Duration,
        mut found: impl FnMut(&Task) -> bool,
    ) -> Result<Task> {
        let begin = Instant::now();
        loop {
            self.must_run()?;
            let tasks = self.tasks().await?;
            if let Some(task) = tasks.iter().find(|it| found(it)) {
                return Ok(task.clone());
            }
            ensure!(
                begin.elapsed() < wait,
                "no {what} within {wait:?} among {tasks:?}; the client's log ends:\n{}",
                self.log_end()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until its log holds a line with `text` after the first `from` bytes; gives the log's length behind it.
    ///
    /// # Errors
    /// If there is none within `wait`; with the end of the client's log.
    pub async fn says(&mut self, text: &str, from: usize, wait: Duration) -> Result<usize> {
        let begin = Instant::now();
        loop {
            let log = self.log();
            if let Some(at) = log.get(from..).and_then(|it| it.find(text)) {
                return Ok(from + at + text.len());
            }
            self.must_run()?;
            ensure!(
                begin.elapsed() < wait,
                "the client did not say {text:?} within {wait:?}; its log ends:\n{}",
                self.log_end()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its data directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The key that it was attached with.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.project.as_ref().map(|(_, key)| key.as_str())
    }

    /// The name of the project's folder in `projects`: its address, as the client writes it.
    ///
    /// # Errors
    /// If it is not attached.
    pub fn project_folder(&self) -> Result<String> {
        let (project, _) = self.project.as_ref().context("it is not attached")?;
        let address = project
            .split_once("://")
            .map_or(project.as_str(), |it| it.1);
        let is_plain = |it: char| it.is_ascii_alphanumeric() || ".-_".contains(it);
        let name: String = address
            .chars()
            .map(|it| if is_plain(it) { it } else { '_' })
            .collect();
        Ok(name.trim_end_matches('_').to_owned())
    }

    /// Processor time of its applications so far, those that run now.
    #[must_use]
    pub fn applications_cpu(&self) -> Duration {
        applications::of(&self.folder)
            .into_iter()
            .filter_map(applications::cpu)
            .sum()
    }

    /// Its applications that run now, by process id.
    #[must_use]
    pub fn applications(&self) -> Vec<u32> {
        applications::of(&self.folder)
    }

    /// Asks it to end as a shutdown of the machine does, and waits until it has.
    ///
    /// # Errors
    /// If it does not.
    pub async fn quit(&mut self) -> Result<()> {
        self.order(&["--quit"]).await?;
        let mut process = self.process.take().context("the client does not run")?;
        process.ended(QUIT_MAX).await?;
        Ok(())
    }

    /// Ends it as a power cut would, with its applications.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        let process = self.process.take().context("the client does not run")?;
        process.kill()?;
        applications::kill_all(&self.folder);
        Ok(())
    }

    /// An error with the end of its log if it has ended.
    ///
    /// # Errors
    /// See there.
    pub fn must_run(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("the client does not run")?;
        process.must_run()
    }

    fn log_end(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, Process::log_end)
    }

    async fn order(&self, arguments: &[&str]) -> Result<()> {
        self.answer(arguments).await.map(drop)
    }

    async fn answer(&self, arguments: &[&str]) -> Result<String> {
        let said = self.ask(arguments).await?;
        // `boinccmd` tells of a refusal in words more often than in its exit status.
        let is_well = said.success && !said.stderr.contains("Operation failed");
        ensure!(
            is_well,
            "boinccmd {arguments:?} failed: {}{}",
            said.stdout,
            said.stderr
        );
        Ok(said.stdout)
    }

    async fn ask(&self, arguments: &[&str]) -> Result<process::Output> {
        let host = format!("127.0.0.1:{}", self.port);
        let all = [&["--host", &host, "--passwd", PASSWORD], arguments].concat();
        process::run(Path::new(COMMAND_LINE), &all).await
    }
}

impl Drop for BoincClient {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        let asked = Command::new(COMMAND_LINE)
            .args(["--host", &format!("127.0.0.1:{}", self.port)])
            .args(["--passwd", PASSWORD, "--quit"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let begin = Instant::now();
        while asked.is_ok()
            && begin.elapsed() < DROP_MAX
            && !applications::of(&self.folder).is_empty()
        {
            std::thread::sleep(LOOK_EVERY);
        }
        drop(process);
        applications::kill_all(&self.folder);
    }
}
