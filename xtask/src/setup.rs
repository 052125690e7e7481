//! Installing what building, running and testing need, through the package clients: apt-get, npm, pip, cargo.
//!
//! Every step looks first and does nothing if the thing is there.
//! What a step installs for this repository alone lies in `target/athome-tools` or beside its lock file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// Debian packages of the tests: an unmodified BOINC client, a browser with fonts, `ip` and `tc` for shaped links, clocks that
/// are wrong, PyTorch to check exported models against, venv.
const DEBIAN_PACKAGES: [&str; 7] = [
    "boinc-client",
    "chromium",
    "fonts-dejavu-core",
    "iproute2",
    "libfaketime",
    "python3-torch",
    "python3-venv",
];
/// What opens an exported model the way its users will; this version works with Debian's PyTorch.
const TRANSFORMERS: [&str; 2] = ["transformers==4.49.0", "safetensors"];
/// The client that customers already have.
const OPENAI: [&str; 1] = ["openai"];
/// The test runner, where it has to be built first.
const NEXTEST_VERSION: &str = "0.9.143";
/// What Debian's packages ask before they start a service, and the answer "no": the tests start their own BOINC clients, and
/// nobody asked for one that runs on this machine for ever.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";
const START_NO_SERVICE: &str = "#!/bin/sh\nexit 101\n";
/// The source that takes the built web app into the hub.
const EMBEDS_WEB: &str = "crates/hub/src/http/web.rs";
/// Debian's Python, the one that sees `python3-torch`.
const PYTHON: &str = "/usr/bin/python3";

/// Packages are installed one after the other: apt and dpkg have one lock.
static DEBIAN: Mutex<()> = Mutex::new(());

/// All of it, for `cargo xtask setup`.
pub(crate) fn everything() -> Result<()> {
    corpora()?;
    println!("corpora are in corpora/node_modules");
    web()?;
    println!("the web app is built in web/dist");
    nextest()?;
    test_tools()?;
    println!("browser, Python, nextest and what faults are made with are there");
    Ok(())
}

/// Chromium, PyTorch, transformers and the `openai` client.
pub(crate) fn test_tools() -> Result<()> {
    debian(&DEBIAN_PACKAGES)?;
    transformers()?;
    openai()?;
    Ok(())
}

/// The text corpora, pinned by `corpora/package-lock.json`.
pub(crate) fn corpora() -> Result<()> {
    npm_ci(&workspace::root().join("corpora"), "corpora")
}

/// The web app's packages and its build, if the sources are newer than the build.
pub(crate) fn web() -> Result<()> {
    let folder = workspace::root().join("web");
    web_packages()?;
    let built = folder.join("dist/index.html");
    let newest_source = ["src", "public", "index.html", "package-lock.json"]
        .iter()
        .filter_map(|it| newest(&folder.join(it)))
        .max();
    let build_time = fs::metadata(&built).and_then(|it| it.modified()).ok();
    if build_time.is_none() || build_time < newest_source {
        process::required(
            "web-build",
            &mut process::command_in(&folder, "npm", &["run", "build"]),
        )?;
        // A hub that was compiled when there was no web app has none, and cargo sees no new files in a folder.
        fs::File::open(workspace::root().join(EMBEDS_WEB))?.set_modified(SystemTime::now())?;
    }
    Ok(())
}

/// The web app's packages alone.
pub(crate) fn web_packages() -> Result<()> {
    npm_ci(&workspace::root().join("web"), "web")
}

/// The Python that has transformers, safetensors and Debian's PyTorch.
pub(crate) fn transformers() -> Result<PathBuf> {
    virtual_environment("python-transformers", &TRANSFORMERS, true)
}

/// The Python that has the `openai` client.
pub(crate) fn openai() -> Result<PathBuf> {
    virtual_environment("python-openai", &OPENAI, false)
}

/// A virtual environment of Debian's Python; returns its interpreter.
pub(crate) fn virtual_environment(
    name: &str,
    packages: &[&str],
    system_site_packages: bool,
) -> Result<PathBuf> {
    let folder = workspace::tools().join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("athome-packages");
    let wanted = packages.join("\n");
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|it| it == wanted) {
        return Ok(python);
    }
    debian(&["python3-venv"])?;
    fs::create_dir_all(workspace::tools()).context("cannot make target/athome-tools")?;
    let mut make = Command::new(PYTHON);
    make.args(["-m", "venv", "--clear"]);
    if system_site_packages {
        make.arg("--system-site-packages");
    }
    process::required(&format!("{name}-venv"), make.arg(&folder))?;
    let mut install = Command::new(&python);
    install
        .args(["-m", "pip", "install", "--no-input", "--quiet"])
        .args(packages);
    process::required(&format!("{name}-pip"), &mut install)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// Installs the Debian packages that are missing.
pub(crate) fn debian(packages: &[&str]) -> Result<()> {
    let _guard = DEBIAN.lock().unwrap_or_else(|poison| poison.into_inner());
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|it| !is_installed(it))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if process::answer("apt-get", &["--version"]).is_none() {
        bail!(
            "This machine has no apt-get, and these Debian packages are needed: {list}. Install their like by hand."
        );
    }
    let superuser = if rustix::process::geteuid().is_root() {
        None
    } else if process::answer("sudo", &["-n", "true"]).is_some() {
        Some("sudo")
    } else {
        bail!("These packages are needed: {list}. Run: sudo apt-get install {list}");
    };
    let as_superuser = |program: &str| match superuser {
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    let apt = |arguments: &[&str]| {
        let mut command = as_superuser("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments);
        command
    };
    process::required("apt-update", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    without_services(&as_superuser, || {
        process::required("apt-install", install.args(&missing))
            .with_context(|| format!("cannot install {list}"))
    })?;
    Ok(())
}

/// Runs `work` while nothing that is installed may start a service; a policy that this machine has stays as it is.
fn without_services<T>(
    as_superuser: &impl Fn(&str) -> Command,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if Path::new(SERVICE_POLICY).exists() {
        return work();
    }
    let policy = workspace::tools().join("policy-rc.d");
    fs::create_dir_all(workspace::tools()).context("cannot make target/athome-tools")?;
    fs::write(&policy, START_NO_SERVICE)?;
    let mut put = as_superuser("install");
    process::required(
        "apt-policy",
        put.args(["-m", "755"]).arg(&policy).arg(SERVICE_POLICY),
    )?;
    let outcome = work();
    process::required(
        "apt-policy-removal",
        as_superuser("rm").args(["-f", SERVICE_POLICY]),
    )?;
    outcome
}

/// cargo-nextest; returns the folder to put on the path if it had to be built.
pub(crate) fn nextest() -> Result<Option<PathBuf>> {
    let root = workspace::tools().join("nextest");
    if root.join("bin/cargo-nextest").exists() {
        return Ok(Some(root.join("bin")));
    }
    if process::answer("cargo", &["nextest", "--version"]).is_some() {
        return Ok(None);
    }
    let mut install = process::cargo(&["install", "cargo-nextest", "--locked", "--version"]);
    install.arg(NEXTEST_VERSION).arg("--root").arg(&root);
    process::required("nextest-install", &mut install)?;
    Ok(Some(root.join("bin")))
}

fn is_installed(package: &str) -> bool {
    process::answer("dpkg-query", &["-W", "-f=${Status}", package])
        .is_some_and(|it| it == "install ok installed")
}

fn npm_ci(folder: &Path, name: &str) -> Result<()> {
    let lock = folder.join("package-lock.json");
    let wanted = fs::read(&lock).with_context(|| format!("{} is missing", lock.display()))?;
    let stamp = folder.join("node_modules/.athome-lock");
    if fs::read(&stamp).is_ok_and(|it| it == wanted) {
        return Ok(());
    }
    process::required(
        &format!("{name}-npm-ci"),
        &mut process::command_in(folder, "npm", &["ci", "--no-audit", "--no-fund"]),
    )?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// The newest modification time of a file or anything in a folder.
fn newest(path: &Path) -> Option<std::time::SystemTime> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_dir() {
        return metadata.modified().ok();
    }
    fs::read_dir(path)
        .ok()?
        .flatten()
        .filter_map(|it| newest(&it.path()))
        .max()
}
