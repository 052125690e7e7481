//! A bound on processor time: a control group of our own around this process (Linux; version 2 or 1).
//!
//! Only the machine's own rules can hold a process to half a core. Where they do not permit it, the owner is told to use
//! fewer threads instead; nothing is pretended.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};

/// The length of an accounting period: short enough that a stalled step is not felt.
const PERIOD_US: u32 = 100_000;
/// The kernel's least quota.
const QUOTA_US_MIN: u32 = 1_000;
const CORES_MAX: f32 = 1024.0;
/// Of our groups' names; the process's number follows.
const GROUP_PREFIX: &str = "athome-";

/// A control group with this process in it; dropped, the process is moved back and the group removed.
#[derive(Debug)]
pub(crate) struct Quota {
    group: PathBuf,
    /// The group that the process came from.
    origin: PathBuf,
}

/// The kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where control groups with a processor controller may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    mount: PathBuf,
    /// This process's own group, at or below `mount`.
    own: PathBuf,
}

impl Quota {
    /// Holds this process and all its threads to `cores` cores' worth of time.
    pub(crate) fn set(cores: f32) -> Result<Self> {
        if !(cores > 0.0 && cores <= CORES_MAX) {
            bail!("a processor quota of {cores} cores is not between 0 and {CORES_MAX}");
        }
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let places = read("/proc/self/mountinfo")
            .and_then(|mounts| Ok(places(&mounts, &read("/proc/self/cgroup")?)))
            .unwrap_or_default();
        let mut problems = Vec::new();
        for place in places {
            // The own group first, then outwards: version 2 wants no processes beside a group with controllers.
            for parent in place
                .own
                .ancestors()
                .take_while(|it| it.starts_with(&place.mount))
            {
                match Self::set_in(&place, parent, cores) {
                    Ok(quota) => return Ok(quota),
                    Err(error) => problems.push(format!("{error:#}")),
                }
            }
        }
        let problem = problems
            .pop()
            .unwrap_or_else(|| "it has no control groups".to_owned());
        bail!(
            "this machine does not permit a processor quota ({problem}): use fewer threads instead, or start the worker where it may make control groups"
        )
    }

    fn set_in(place: &Place, parent: &Path, cores: f32) -> Result<Self> {
        remove_orphans(parent);
        let group = parent.join(format!("{GROUP_PREFIX}{}", process::id()));
        fs::create_dir(&group).with_context(|| format!("making {}", group.display()))?;
        // From here on a failure removes the group again, by its drop.
        let quota = Self {
            group,
            origin: place.own.clone(),
        };
        for (file, text) in settings(place.version, cores) {
            quota.write(file, &text)?;
        }
        quota.write("cgroup.procs", &process::id().to_string())?;
        Ok(quota)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.group.join(file);
        // No file is made where the controller is missing.
        let open = fs::File::options().write(true).open(&path);
        open.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .with_context(|| format!("writing {}", path.display()))
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        let back = fs::write(self.origin.join("cgroup.procs"), process::id().to_string());
        if let Err(error) = back {
            tracing::debug!("leaving the control group: {error}");
        }
        if let Err(error) = fs::remove_dir(&self.group) {
            tracing::debug!("removing the control group: {error}");
        }
    }
}

/// Removes the groups of workers that were killed before they could. The kernel removes none that has a process in it.
fn remove_orphans(parent: &Path) {
    for item in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = item.file_name();
        let number = name.to_str().and_then(|it| it.strip_prefix(GROUP_PREFIX));
        if let Some(number) = number.and_then(|it| it.parse::<u32>().ok())
            && !Path::new("/proc").join(number.to_string()).exists()
            && let Err(error) = fs::remove_dir(item.path())
        {
            tracing::debug!("removing {}: {error}", item.path().display());
        }
    }
}

fn settings(version: Version, cores: f32) -> Vec<(&'static str, String)> {
    let quota_us = ((cores * PERIOD_US as f32) as u32).max(QUOTA_US_MIN);
    match version {
        Version::Two => vec![("cpu.max", format!("{quota_us} {PERIOD_US}"))],
        Version::One => vec![
            ("cpu.cfs_period_us", PERIOD_US.to_string()),
            ("cpu.cfs_quota_us", quota_us.to_string()),
        ],
    }
}

/// Reads `/proc/self/mountinfo` (proc(5)) and `/proc/self/cgroup` (cgroups(7)).
fn places(mounts: &str, groups: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let (&[_, _, _, root, mount, ..], &[kind, _, options, ..]) = (&before[..], &after[..])
        else {
            continue;
        };
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|it| it == "cpu") => Version::One,
            _ => continue,
        };
        let Some(group) = own_group(groups, version) else {
            continue;
        };
        // Seen from a container, the mount may begin in the middle of the hierarchy.
        let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
        let mount = PathBuf::from(mount);
        places.push(Place {
            version,
            own: mount.join(below),
            mount,
        });
    }
    places
}

fn own_group(groups: &str, version: Version) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (hierarchy, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let ours = match version {
            Version::Two => hierarchy == "0" && controllers.is_empty(),
            Version::One => controllers.split(',').any(|it| it == "cpu"),
        };
        ours.then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 30 0:22 / /proc rw,nosuid shared:12 - proc proc rw
33 24 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
34 24 0:30 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct
35 24 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
nonsense";
    const GROUPS: &str = "\
4:cpuset:/elsewhere
3:cpu,cpuacct:/docker/ab/job
0::/user.slice/session";

    #[test]
    fn finds_both_interfaces() {
        let place = |version, mount: &str, own: &str| Place {
            version,
            mount: mount.into(),
            own: own.into(),
        };
        assert_eq!(
            places(MOUNTS, GROUPS),
            [
                place(
                    Version::Two,
                    "/sys/fs/cgroup/unified",
                    "/sys/fs/cgroup/unified/user.slice/session"
                ),
                place(
                    Version::One,
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/job"
                ),
            ]
        );
        assert_eq!(places("", GROUPS), []);
        assert_eq!(places(MOUNTS, "no groups"), []);
    }

    #[test]
    fn quotas_are_parts_of_a_period() {
        assert_eq!(
            settings(Version::Two, 0.5),
            [("cpu.max", "50000 100000".to_owned())]
        );
        assert_eq!(
            settings(Version::One, 0.001),
            [
                ("cpu.cfs_period_us", "100000".to_owned()),
                ("cpu.cfs_quota_us", "1000".to_owned())
            ]
        );
    }

    #[test]
    fn groups_of_dead_workers_go_and_others_stay() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str| fs::create_dir(place.path().join(name)).unwrap();
        let alive = format!("athome-{}", process::id());
        // Process numbers end far below this one.
        make("athome-4294967295");
        for name in [&alive, "athome-test", "other-4294967295"] {
            make(name);
        }
        remove_orphans(place.path());
        let mut left: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [&alive, "athome-test", "other-4294967295"]);
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        for cores in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let refusal = Quota::set(cores).unwrap_err().to_string();
            assert!(refusal.contains("quota"), "{refusal}");
        }
    }
}
