//! `athome boinc`: what the operator of a project for BOINC's stock clients does away from the hub.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use hub::boinc::release::{self, Program, Release, Signing, SigningKey};
use serde::Serialize;

use crate::output::{Output, size};

/// The application's short name in releases.
const APP: &str = "athome";

/// Prepare the program that BOINC's stock clients run.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome boinc key signing.pem\n  athome boinc sign target/release/athome-boinc --key signing.pem --version 101 --platform x86_64-pc-linux-gnu --release release-101\n  athome hub --boinc-release release-101\n\nBOINC clients remember a project's signing key from their first contact: keep its secret part where no hub runs.\nWith --json every command prints one JSON document."
)]
pub(crate) struct Boinc {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make the key pair that signs a project's programs
    Key(Key),
    /// Sign a program and put it into the folder of a release
    Sign(Sign),
    /// Check a release as a hub does at its start
    Show(Show),
}

/// Make the key pair that signs a project's programs.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome boinc key signing.pem\n\nThe secret part is written to the file, for its owner's eyes alone, the public part beside it with `.public` at the\nend. An existing key is never overwritten. Whoever has the secret part can have every volunteer's machine run what\nthey like; whoever loses it must ask every volunteer to attach again. Keep it, and a copy, away from the hub."
)]
struct Key {
    /// Where the secret part is written
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Sign a program and put it into the folder of a release.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome boinc sign target/release/athome-boinc --key signing.pem --version 101 --platform x86_64-pc-linux-gnu --release release-101\n\nA release holds one version for any number of platforms: sign into the same folder for each of them, then give the\nfolder to the hub (`--boinc-release`). A client never fetches a file name twice, so a changed program needs a higher\nversion and a new folder."
)]
struct Sign {
    /// The program, built for the platform
    #[arg(value_name = "PROGRAM")]
    program: PathBuf,
    /// Secret part of the signing key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Secret part of the key before it: clients that know that one go over to the new one
    #[arg(long, value_name = "FILE")]
    previous_key: Option<PathBuf>,
    /// The version as BOINC counts: 101 is 1.01
    #[arg(long, value_name = "NUMBER")]
    version: u32,
    /// BOINC's name of the kind of machine
    #[arg(long, value_name = "NAME", default_value = "x86_64-pc-linux-gnu")]
    platform: String,
    /// Folder of the release; it is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    release: PathBuf,
}

/// Check every file and signature of a release, as a hub does at its start.
#[derive(Args)]
#[command(after_help = "Examples:\n  athome boinc show release-101")]
struct Show {
    /// Folder of the release
    #[arg(value_name = "FOLDER")]
    release: PathBuf,
}

/// What `key --json` prints.
#[derive(Serialize)]
struct Made {
    secret: PathBuf,
    public: PathBuf,
    public_key: String,
}

impl Boinc {
    pub(crate) fn execute(self) -> anyhow::Result<()> {
        let output = Output { json: self.json };
        match self.command {
            Command::Key(command) => command.execute(output),
            Command::Sign(command) => command.execute(output),
            Command::Show(command) => command.execute(output),
        }
    }
}

impl Key {
    fn execute(self, output: Output) -> anyhow::Result<()> {
        let mut public = self.file.clone().into_os_string();
        public.push(".public");
        let public = PathBuf::from(public);
        let key = SigningKey::generate()?;
        write_new(&self.file, &key.to_pem(), true)?;
        write_new(&public, &key.public_text(), false)?;
        let made = Made {
            public_key: key.public_text(),
            secret: self.file,
            public,
        };
        output.result(&made, || {
            format!(
                "secret part  {}\npublic part  {}\nKeep the secret part, and a copy of it, away from the hub.",
                made.secret.display(),
                made.public.display()
            )
        })
    }
}

impl Sign {
    fn execute(self, output: Output) -> anyhow::Result<()> {
        let key = read_key(&self.key)?;
        check_format(&self.program, &self.platform)?;
        let program = Program {
            app: APP,
            version_num: self.version,
            platform: &self.platform,
            plan_class: "",
            file: &self.program,
        };
        let previous = self.previous_key.as_deref().map(read_key).transpose()?;
        anyhow::ensure!(
            previous
                .as_ref()
                .is_none_or(|it| it.public_text() != key.public_text()),
            "the key before is the same as the key"
        );
        let by = Signing {
            key: &key,
            previous: previous.as_ref(),
        };
        let file = release::sign(&self.release, by, program)?;
        // What a hub would refuse is better known here.
        Release::read(&self.release)?;
        output.result(&file, || {
            format!(
                "{}\n  {}, MD5 {}\nThe hub offers it with --boinc-release {}",
                self.release.join(&file.name).display(),
                size(file.bytes),
                file.md5,
                self.release.display()
            )
        })
    }
}

impl Show {
    fn execute(self, output: Output) -> anyhow::Result<()> {
        let release = Release::read(&self.release)?;
        output.result(&release, || {
            let files = release.platforms.iter().flat_map(|platform| {
                platform.files.iter().map(|file| {
                    format!(
                        "\n  {}  {}  {}",
                        platform.platform,
                        file.name,
                        size(file.bytes)
                    )
                })
            });
            format!(
                "{} {}: every file is there and signed{}",
                release.app,
                release.version_num,
                files.collect::<String>()
            )
        })
    }
}

fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("can't read the signing key {}", path.display()))?;
    SigningKey::from_pem(&text).with_context(|| {
        format!(
            "{} is no signing key; `athome boinc key` makes one",
            path.display()
        )
    })
}

/// How platforms call processors, and what ELF has for them (`e_machine`, little-endian).
const MACHINES: [(&str, u16); 5] = [
    ("x86_64-", 62),
    ("i686-", 3),
    ("aarch64-", 183),
    ("arm-", 40),
    ("riscv64-", 243),
];

/// Checks that a program begins as those of its platform do: a wrong one fails on every volunteer's machine.
fn check_format(program: &Path, platform: &str) -> anyhow::Result<()> {
    let (format, starts): (&str, &[&[u8]]) = match platform {
        it if it.contains("windows") => ("a Windows program", &[b"MZ"]),
        it if it.contains("darwin") => (
            "a Mach-O program",
            &[b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"],
        ),
        _ => ("an ELF program", &[b"\x7fELF"]),
    };
    let mut start = Vec::new();
    std::fs::File::open(program)
        .and_then(|file| file.take(20).read_to_end(&mut start))
        .with_context(|| format!("can't read {}", program.display()))?;
    anyhow::ensure!(
        starts.iter().any(|it| start.starts_with(it)),
        "{} is not {format}, which {platform} needs",
        program.display()
    );
    let wanted = MACHINES.iter().find(|it| platform.starts_with(it.0));
    if let (true, Some((name, number))) = (format.contains("ELF"), wanted) {
        anyhow::ensure!(
            start.get(18..20) == Some(&number.to_le_bytes()),
            "{} is built for another processor than {name}",
            program.display()
        );
    }
    Ok(())
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, text: &str, is_secret: bool) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, if is_secret { 0o600 } else { 0o644 });
    #[cfg(not(unix))]
    let _ = is_secret;
    let mut file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => anyhow::anyhow!(
            "{} is there already, and a key is never overwritten: clients know the old one",
            path.display()
        ),
        _ => anyhow::Error::from(error).context(format!("can't write {}", path.display())),
    })?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_and_is_never_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("signing.pem");
        let make = || Key { file: file.clone() }.execute(Output { json: true });
        make().unwrap();
        let before = std::fs::read_to_string(&file).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let error = format!("{:#}", make().unwrap_err());
        assert!(error.contains("never overwritten"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    }

    #[test]
    fn a_signed_program_is_a_release() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("athome-boinc"), b"\x7fELF, a program of\x3e\x00 x86-64").unwrap();
        Key { file: at("key") }
            .execute(Output { json: true })
            .unwrap();
        let sign_for = |key: &str, previous: Option<&str>, platform: &str| {
            let command = Sign {
                program: at("athome-boinc"),
                key: at(key),
                previous_key: previous.map(at),
                version: 101,
                platform: platform.into(),
                release: at("release"),
            };
            command.execute(Output { json: true })
        };
        let linux = "x86_64-pc-linux-gnu";
        for (key, previous, platform, expected) in [
            ("athome-boinc", None, linux, "no signing key"),
            ("key", None, "windows_x86_64", "not a Windows program"),
            ("key", None, "arm64-apple-darwin", "not a Mach-O program"),
            (
                "key",
                None,
                "aarch64-unknown-linux-gnu",
                "another processor",
            ),
            ("key", Some("key"), linux, "the same as the key"),
        ] {
            let error = format!("{:#}", sign_for(key, previous, platform).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        sign_for("key", None, linux).unwrap();
        let release = Release::read(&at("release")).unwrap();
        let public = std::fs::read_to_string(at("key.public")).unwrap();
        assert_eq!(release.code_sign_key, public);
        let show = Show {
            release: at("release"),
        };
        show.execute(Output { json: true }).unwrap();
    }
}
