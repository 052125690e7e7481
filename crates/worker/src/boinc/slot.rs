//! The slot: the folder in which the client starts the program, and what it says there.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Longest file that tells about the task.
const INIT_BYTES_MAX: u64 = 1 << 20;
/// Longest file that names another one.
const LINK_BYTES_MAX: u64 = 4096;
/// How often a checkpoint is due if the client does not say.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(60);
/// And at most and at least, whatever it says.
const CHECKPOINT_PERIOD_MAX: Duration = Duration::from_secs(24 * 3600);
const CHECKPOINT_PERIOD_MIN: Duration = Duration::from_secs(1);

/// A client's slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    folder: PathBuf,
    /// What the client says of the task.
    pub(crate) init: Init,
}

/// What `init_data.xml` says, as far as it is of use here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Init {
    /// The project's folder.
    project: Option<PathBuf>,
    /// Processor time of this task before this start, in seconds.
    pub(crate) cpu_s: f64,
    /// The client's process.
    pub(crate) client: Option<i32>,
    /// How often the user allows a checkpoint.
    pub(crate) checkpoint_period: Option<Duration>,
    /// Processors that the task may use.
    pub(crate) processors: Option<f64>,
    /// Memory that the task may use.
    pub(crate) memory_max: Option<u64>,
}

impl Slot {
    /// Reads what the client says in this folder.
    ///
    /// # Errors
    /// There is no such file: the client did not start this.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("init_data.xml");
        let text = read_text(&path, INIT_BYTES_MAX)
            .with_context(|| format!("reading {}: this program is started by a BOINC client; `athome join` is what people start", path.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            init: Init::parse(&text),
        })
    }

    /// A file of the slot's own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where a file of the task lies: the client puts a file into the slot that names it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn resolve(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let resolving = || format!("looking for the task's file {name}");
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error).with_context(resolving),
        };
        if metadata.is_symlink() {
            let target = fs::read_link(&path).with_context(resolving)?;
            return Ok(self.folder.join(target));
        }
        if !metadata.is_file() || metadata.len() > LINK_BYTES_MAX {
            return Ok(path);
        }
        // What is no text is no link.
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(LINK_BYTES_MAX).read_to_end(&mut bytes))
            .with_context(resolving)?;
        let text = String::from_utf8_lossy(&bytes);
        let is_link = text.trim_start().starts_with("<soft_link>");
        let target = is_link.then(|| tag(&text, "soft_link")).flatten();
        Ok(target.map_or(path, |it| self.folder.join(it)))
    }

    /// The project's folder, which lasts: that of the file behind `name`.
    ///
    /// # Errors
    /// The client put the file itself into the slot, and does not say where the project's folder is.
    pub(crate) fn project(&self, name: &str) -> Result<PathBuf> {
        let path = self.resolve(name)?;
        if path != self.path(name)
            && let Some(folder) = path.parent()
        {
            return Ok(folder.to_owned());
        }
        match &self.init.project {
            Some(folder) => Ok(self.folder.join(folder)),
            None => bail!("the client does not say where the project's folder is"),
        }
    }

    /// Tells the client that the task is done.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn finish(&self) -> Result<()> {
        fs::write(self.path("boinc_finish_called"), "0\n")
            .context("telling the client that the task is done")
    }

    /// Asks the client to start the task again later.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn ask_for_restart(&self, wait_s: u64, reason: &str) -> Result<()> {
        let text = format!("{wait_s}\n{reason}\n");
        fs::write(self.path("boinc_temporary_exit"), text)
            .context("asking the client for another start")
    }
}

impl Init {
    /// Reads the client's file; what is not there or does not read is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let number = |name: &str| {
            let number: f64 = tag(text, name)?.parse().ok()?;
            number.is_finite().then_some(number)
        };
        let positive = |name: &str| number(name).filter(|it| *it > 0.0);
        let bound = positive("rsc_memory_bound");
        // The client suspends what takes more than its user allows; of two limits the wider one is never exceeded.
        let share = [
            "ram_max_used_busy_pct",
            "ram_max_used_idle_pct",
            "ram_max_used_busy_frac",
            "ram_max_used_idle_frac",
        ]
        .iter()
        .filter_map(|name| {
            let unit = if name.ends_with("pct") { 100.0 } else { 1.0 };
            positive(name).map(|it| it / unit)
        })
        .fold(None, |most: Option<f64>, it| {
            Some(most.map_or(it, |most| most.max(it)))
        });
        let allowed = positive("m_nbytes").map(|it| it * share.unwrap_or(1.0).min(1.0));
        let memory_max = [bound, allowed].into_iter().flatten().reduce(f64::min);
        Self {
            project: tag(text, "project_dir").map(PathBuf::from),
            cpu_s: positive("wu_cpu_time").unwrap_or(0.0),
            client: positive("client_pid").map(|it| it as i32),
            checkpoint_period: positive("checkpoint_period").map(checkpoint_period),
            processors: positive("ncpus"),
            memory_max: memory_max.map(|it| it as u64),
        }
    }

    /// How often a checkpoint is due.
    pub(crate) fn checkpoint_period(&self) -> Duration {
        self.checkpoint_period.unwrap_or(CHECKPOINT_PERIOD)
    }

    /// Threads to compute with: as many as asked for, or as many as the task has processors, but not more than there are.
    pub(crate) fn threads(&self, asked: Option<usize>) -> usize {
        let there = std::thread::available_parallelism().map_or(1, usize::from);
        let given = self.processors.map_or(1, |it| it as usize);
        asked.unwrap_or(given).clamp(1, there)
    }
}

fn checkpoint_period(seconds: f64) -> Duration {
    let most = CHECKPOINT_PERIOD_MAX.as_secs_f64();
    Duration::from_secs_f64(seconds.min(most)).max(CHECKPOINT_PERIOD_MIN)
}

/// The text of an element without attributes.
pub(crate) fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inner.trim())
}

fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(bytes_max)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: &str = "<app_init_data>
<major_version>7</major_version>
<project_dir>/var/lib/boinc/projects/hub.example.org</project_dir>
<wu_cpu_time>12.500000</wu_cpu_time>
<client_pid>4711</client_pid>
<checkpoint_period>60.000000</checkpoint_period>
<ncpus>3.000000</ncpus>
<rsc_memory_bound>1000000000.000000</rsc_memory_bound>
<host_info>
    <m_nbytes>1600000000.000000</m_nbytes>
</host_info>
<global_preferences>
   <ram_max_used_busy_pct>50.000000</ram_max_used_busy_pct>
   <ram_max_used_idle_pct>90.000000</ram_max_used_idle_pct>
</global_preferences>
</app_init_data>";

    #[test]
    fn what_the_client_says_is_read() {
        let init = Init::parse(INIT);
        let expected = Init {
            project: Some("/var/lib/boinc/projects/hub.example.org".into()),
            cpu_s: 12.5,
            client: Some(4711),
            checkpoint_period: Some(Duration::from_secs(60)),
            processors: Some(3.0),
            memory_max: Some(1_000_000_000),
        };
        assert_eq!(init, expected);
        assert_eq!(init.threads(Some(1)), 1);
        let smaller = INIT.replace("1600000000", "1000000000");
        assert_eq!(Init::parse(&smaller).memory_max, Some(900_000_000));
        for text in ["", "<ncpus>", "<ncpus>many</ncpus>", "<ncpus>-1</ncpus>"] {
            assert_eq!(Init::parse(text), Init::default(), "{text}");
            assert_eq!(Init::parse(text).threads(None), 1);
        }
        let period = Init::parse("<checkpoint_period>1e300</checkpoint_period>");
        assert_eq!(period.checkpoint_period(), CHECKPOINT_PERIOD_MAX);
    }

    #[test]
    fn a_name_leads_to_the_projects_file() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("slots/0");
        fs::create_dir_all(&folder).unwrap();
        let refusal = format!("{:#}", Slot::open(&folder).unwrap_err());
        assert!(refusal.contains("athome join"), "{refusal}");
        fs::write(folder.join("init_data.xml"), "<app_init_data>").unwrap();
        let slot = Slot::open(&folder).unwrap();
        let link = "<soft_link>../../projects/hub/unit_7</soft_link>\n";
        fs::write(folder.join("unit"), link).unwrap();
        let expected = folder.join("../../projects/hub/unit_7");
        assert_eq!(slot.resolve("unit").unwrap(), expected);
        assert_eq!(
            slot.project("unit").unwrap(),
            folder.join("../../projects/hub")
        );
        std::os::unix::fs::symlink("../../projects/hub/x", folder.join("linked")).unwrap();
        assert_eq!(
            slot.resolve("linked").unwrap(),
            folder.join("../../projects/hub/x")
        );
        for content in [&b"\xff\xfe"[..], b"a file", &[0; 5000]] {
            fs::write(folder.join("copied"), content).unwrap();
            assert_eq!(slot.resolve("copied").unwrap(), folder.join("copied"));
        }
        assert!(slot.project("copied").is_err());
    }
}
