//! A release of the BOINC application: a folder with its files and `release.json`, which names and signs them.
//!
//! BOINC clients run only what the project's code signing key signed, and remember the key of their first contact. So the
//! key stays off the hub: `athome boinc key` and `athome boinc sign` work where no network needs to be, and the hub gets a
//! folder in which nothing is secret. It checks every file of it at each start, because a client that is given a file with
//! a wrong signature fails, and fetches the file again whenever it is started.
//!
//! BOINC's format is fixed: RSA of 1024 bits over the MD5 of a file. That is weak today; it keeps strangers out and no
//! more. What the application itself believes is signed with the hub's ed25519 key (`protocol::boinc`).

mod key;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use md5::{Digest, Md5};
use protocol::Hash;
use serde::{Deserialize, Serialize};

pub use key::SigningKey;

/// The list's name in the folder of a release.
pub const LIST_NAME: &str = "release.json";

/// Longest list in bytes.
const LIST_BYTES_MAX: u64 = 1 << 20;
/// Most platforms of a release.
const PLATFORMS_MAX: usize = 32;
/// Most files for a platform.
const FILES_MAX: usize = 16;
/// Longest name in bytes, of a file, a platform or a plan class; BOINC's clients take 255.
const NAME_BYTES_MAX: usize = 128;
/// Largest version number: BOINC writes it as major version times 100 plus minor version.
const VERSION_MAX: u32 = 99_999;
/// Bytes read at once from a file that is hashed.
const BLOCK_BYTES: usize = 1 << 16;

/// What `release.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The application's short name at the project.
    pub app: String,
    /// Its version: 101 is 1.01.
    pub version_num: u32,
    /// Public part of the key that signed the files, as BOINC writes it.
    pub code_sign_key: String,
    /// The key's signature by the key before it, by which clients that know that one go over to this one; a client is sent
    /// both as `code_sign_key` and `code_sign_key_signature`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_sign_key_signature: Option<String>,
    /// What runs where.
    pub platforms: Vec<Platform>,
}

/// The application for one kind of machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// BOINC's name of the kind of machine, such as `x86_64-pc-linux-gnu`.
    pub platform: String,
    /// BOINC's name of a variant; empty for the only one.
    #[serde(default)]
    pub plan_class: String,
    /// The program, and what it needs beside it.
    pub files: Vec<ReleaseFile>,
}

/// A file of the application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFile {
    /// Its name, in the folder and at every client: a client never fetches a name that it has, so a name never changes its
    /// content.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3 hash.
    pub blake3: Hash,
    /// Its MD5 in hexadecimal.
    pub md5: String,
    /// The signature as BOINC writes it.
    pub file_signature: String,
    /// Whether the client starts this one.
    pub main_program: bool,
}

/// A program that is to be added to a release.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// The application's short name.
    pub app: &'a str,
    /// Its version.
    pub version_num: u32,
    /// BOINC's name of the kind of machine that it runs on.
    pub platform: &'a str,
    /// BOINC's name of the variant, or nothing.
    pub plan_class: &'a str,
    /// Where the program is now.
    pub file: &'a Path,
}

/// What signs a release.
#[derive(Clone, Copy, Debug)]
pub struct Signing<'a> {
    /// The project's key.
    pub key: &'a SigningKey,
    /// The key before it, while clients are about that know no other.
    pub previous: Option<&'a SigningKey>,
}

impl Release {
    /// Reads a release and checks it: every file is there, with the length and the hashes that the list says, and signed by
    /// the list's key.
    ///
    /// # Errors
    /// Anything else, with the name of the file.
    pub fn read(folder: &Path) -> Result<Self> {
        let release = Self::read_list(folder)?
            .with_context(|| format!("{} is not there", folder.join(LIST_NAME).display()))?;
        for file in release.platforms.iter().flat_map(|it| &it.files) {
            release
                .check_file(folder, file)
                .with_context(|| format!("{} of the BOINC release", file.name))?;
        }
        Ok(release)
    }

    /// The list alone; `None` if there is none.
    fn read_list(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LIST_NAME);
        let mut text = String::new();
        match fs::File::open(&path) {
            Ok(file) => file.take(LIST_BYTES_MAX + 1).read_to_string(&mut text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        }
        .with_context(|| format!("can't read {}", path.display()))?;
        if text.len() as u64 > LIST_BYTES_MAX {
            bail!("{} is longer than {LIST_BYTES_MAX} bytes", path.display());
        }
        let release: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no list of a release", path.display()))?;
        release
            .check_list()
            .with_context(|| path.display().to_string())?;
        Ok(Some(release))
    }

    /// What can be said without looking at the files.
    fn check_list(&self) -> Result<()> {
        check_name("application", &self.app)?;
        check_version(self.version_num)?;
        key::read_public(&self.code_sign_key)?;
        if let Some(signature) = &self.code_sign_key_signature {
            key::check_form(signature).context("the signature of the code signing key")?;
        }
        if !(1..=PLATFORMS_MAX).contains(&self.platforms.len()) {
            bail!("a release is for 1 to {PLATFORMS_MAX} platforms");
        }
        let (mut variants, mut contents) = (BTreeSet::new(), std::collections::BTreeMap::new());
        for it in &self.platforms {
            check_name("platform", &it.platform)?;
            if !it.plan_class.is_empty() {
                check_name("plan class", &it.plan_class)?;
            }
            if !variants.insert((&it.platform, &it.plan_class)) {
                bail!("the platform {} is there twice", it.platform);
            }
            if it.files.len() > FILES_MAX {
                bail!("{} has more than {FILES_MAX} files", it.platform);
            }
            if it.files.iter().filter(|file| file.main_program).count() != 1 {
                bail!("{} needs one main program", it.platform);
            }
            for file in &it.files {
                check_name("file", &file.name)?;
                if *contents.entry(&file.name).or_insert(file.blake3) != file.blake3 {
                    bail!("the file {} is there with two contents", file.name);
                }
            }
        }
        Ok(())
    }

    fn check_file(&self, folder: &Path, listed: &ReleaseFile) -> Result<()> {
        let measured = Measured::of(&folder.join(&listed.name))?;
        if measured.bytes != listed.bytes {
            bail!(
                "it has {} bytes, {LIST_NAME} says {}",
                measured.bytes,
                listed.bytes
            );
        }
        if measured.blake3 != listed.blake3 {
            bail!(
                "its BLAKE3 is {}, {LIST_NAME} says {}",
                measured.blake3,
                listed.blake3
            );
        }
        if measured.md5 != listed.md5 {
            bail!(
                "its MD5 is {}, {LIST_NAME} says {}",
                measured.md5,
                listed.md5
            );
        }
        key::verify(&self.code_sign_key, &measured.md5, &listed.file_signature)
    }
}

/// Signs a program and puts it into the folder of a release, which is begun if there is none. Gives the file's entry.
///
/// # Errors
/// The folder holds another version, another key's release or this platform already: what was published under a name stays
/// as it is.
pub fn sign(folder: &Path, by: Signing<'_>, program: Program<'_>) -> Result<ReleaseFile> {
    check_name("application", program.app)?;
    check_name("platform", program.platform)?;
    if !program.plan_class.is_empty() {
        check_name("plan class", program.plan_class)?;
    }
    check_version(program.version_num)?;
    fs::create_dir_all(folder)
        .with_context(|| format!("can't make the folder {}", folder.display()))?;
    let mut release = match Release::read_list(folder)? {
        Some(release) => release,
        None => Release {
            app: program.app.to_owned(),
            version_num: program.version_num,
            code_sign_key: by.key.public_text(),
            code_sign_key_signature: None,
            platforms: vec![],
        },
    };
    check_extends(&release, by.key, program)?;
    if let Some(previous) = by.previous {
        release.code_sign_key_signature = Some(previous.sign_key(by.key)?);
    }
    let name = file_name(program);
    let target = folder.join(&name);
    copy_program(program.file, &target)?;
    let measured = Measured::of(&target)?;
    if measured.bytes == 0 {
        let _ = fs::remove_file(&target);
        bail!("{} is empty", program.file.display());
    }
    let file = ReleaseFile {
        file_signature: by.key.sign(&measured.md5)?,
        name,
        bytes: measured.bytes,
        blake3: measured.blake3,
        md5: measured.md5,
        main_program: true,
    };
    release.platforms.push(Platform {
        platform: program.platform.to_owned(),
        plan_class: program.plan_class.to_owned(),
        files: vec![file.clone()],
    });
    release.check_list()?;
    write_list(folder, &release)?;
    Ok(file)
}

fn check_extends(release: &Release, key: &SigningKey, program: Program<'_>) -> Result<()> {
    let is_of = |it: &Platform| {
        (it.platform.as_str(), it.plan_class.as_str()) == (program.platform, program.plan_class)
    };
    if release.app != program.app || release.version_num != program.version_num {
        bail!(
            "the folder holds {} {}; give a new folder for {} {}",
            release.app,
            release.version_num,
            program.app,
            program.version_num
        );
    }
    if release.code_sign_key != key.public_text() {
        bail!(
            "the folder's release was signed with another key: BOINC clients take one key from a project"
        );
    }
    if release.platforms.iter().any(is_of) {
        bail!(
            "version {} for {} is there; BOINC clients never fetch a name twice, so a changed program needs a higher version",
            program.version_num,
            program.platform
        );
    }
    Ok(())
}

fn file_name(program: Program<'_>) -> String {
    let Program {
        app,
        version_num,
        platform,
        plan_class,
        ..
    } = program;
    let variant = match plan_class {
        "" => String::new(),
        class => format!("__{class}"),
    };
    let ending = match platform.starts_with("windows") {
        true => ".exe",
        false => "",
    };
    format!("{app}_{version_num}_{platform}{variant}{ending}")
}

fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::File::open(from)
        .with_context(|| format!("can't read {}", from.display()))
        .and_then(|mut read| {
            let mut options = fs::OpenOptions::new();
            // A file without an entry is what an interrupted signing left; one with an entry was refused before.
            options.write(true).create(true).truncate(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o755);
            let mut write = options
                .open(to)
                .with_context(|| format!("can't write {}", to.display()))?;
            std::io::copy(&mut read, &mut write)
                .and_then(|_| write.sync_all())
                .with_context(|| format!("can't write {}", to.display()))
        });
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

/// Beside and renamed, so that a release is whole at any moment.
fn write_list(folder: &Path, release: &Release) -> Result<()> {
    let path = folder.join(LIST_NAME);
    let fresh: PathBuf = folder.join(format!("{LIST_NAME}.new"));
    let mut text = serde_json::to_string_pretty(release).expect("a release has a JSON form");
    text.push('\n');
    fs::File::create(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, &path))
        .with_context(|| format!("can't write {}", path.display()))
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let is_allowed = |it: u8| it.is_ascii_alphanumeric() || b"-_.+".contains(&it);
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !name.starts_with('.')
        && name != LIST_NAME;
    if !is_name {
        bail!(
            "{name:?} can't be the name of {what}: 1 to {NAME_BYTES_MAX} of a-z A-Z 0-9 - _ . +, the first no dot"
        );
    }
    Ok(())
}

fn check_version(version: u32) -> Result<()> {
    if !(1..=VERSION_MAX).contains(&version) {
        bail!("a version is a number from 1 to {VERSION_MAX}: 101 is 1.01");
    }
    Ok(())
}

/// What a file is.
struct Measured {
    bytes: u64,
    blake3: Hash,
    md5: String,
}

impl Measured {
    fn of(path: &Path) -> Result<Self> {
        let reading = || format!("can't read {}", path.display());
        let mut file = fs::File::open(path).with_context(reading)?;
        let (mut blake3, mut md5, mut bytes) = (blake3::Hasher::new(), Md5::new(), 0);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let length = file.read(&mut block).with_context(reading)?;
            if length == 0 {
                break;
            }
            blake3.update(&block[..length]);
            md5.update(&block[..length]);
            bytes += length as u64;
        }
        Ok(Self {
            bytes,
            blake3: Hash(*blake3.finalize().as_bytes()),
            md5: data_encoding::HEXLOWER.encode(&md5.finalize()),
        })
    }
}

#[cfg(test)]
mod tests;
