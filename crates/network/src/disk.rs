//! The file operations that roles need, so that the simulator can lose power in the middle of any of them.
//!
//! Calls block. What was written is on the disk after [`Disk::sync`], what was made, renamed or removed in a folder after
//! [`Disk::sync_folder`]; before, a power cut may keep any part of it.

use std::{
    fmt, fs,
    io::{self, BufWriter, Read, Write},
    path::Path,
    time::SystemTime,
};

use protocol::Hash;

/// Bytes gathered before they are handed to the file.
const BUFFER_BYTES: usize = 1 << 16;

/// A disk: the machine's, or the simulator's.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a folder and those above it, if they are not there.
    ///
    /// # Errors
    /// The disk's.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;

    /// The files of a folder (not its folders), in no particular order.
    ///
    /// # Errors
    /// The disk's.
    fn list(&self, folder: &Path) -> io::Result<Vec<Listed>>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn length(&self, file: &Path) -> io::Result<u64>;

    /// The first bytes of a file, at most `bytes_max`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn read_start(&self, file: &Path, bytes_max: u64) -> io::Result<Vec<u8>>;

    /// All bytes of a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn read(&self, file: &Path) -> io::Result<Vec<u8>> {
        self.read_start(file, u64::MAX)
    }

    /// The BLAKE3 hash of a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn hash(&self, file: &Path) -> io::Result<Hash>;

    /// Makes or empties a file and writes what `content` writes.
    ///
    /// # Errors
    /// The disk's, or `content`'s.
    fn write(
        &self,
        file: &Path,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Adds bytes at the end of a file, which is made if it is not there.
    ///
    /// # Errors
    /// The disk's.
    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Waits until a file's bytes are on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn sync(&self, file: &Path) -> io::Result<()>;

    /// Waits until a folder's names are on the disk.
    ///
    /// # Errors
    /// The disk's.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of what had it.
    ///
    /// # Errors
    /// The disk's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn remove(&self, file: &Path) -> io::Result<()>;

    /// Notes that a file was used at a time.
    ///
    /// # Errors
    /// The disk's.
    fn touch(&self, file: &Path, used: SystemTime) -> io::Result<()>;
}

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the folder; names that are not text are left out.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was last written or touched.
    pub used: SystemTime,
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for item in fs::read_dir(folder)? {
            let item = item?;
            let meta = item.metadata()?;
            if let Some(name) = item.file_name().to_str().filter(|_| meta.is_file()) {
                found.push(Listed {
                    name: name.to_owned(),
                    bytes: meta.len(),
                    used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
        }
        Ok(found)
    }

    fn length(&self, file: &Path) -> io::Result<u64> {
        Ok(fs::metadata(file)?.len())
    }

    fn read_start(&self, file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        if bytes_max == u64::MAX {
            return fs::read(file);
        }
        let mut bytes = Vec::new();
        fs::File::open(file)?
            .take(bytes_max)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn hash(&self, file: &Path) -> io::Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(file)?)?;
        Ok(Hash(*hasher.finalize().as_bytes()))
    }

    fn write(
        &self,
        file: &Path,
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, fs::File::create(file)?);
        content(&mut file)?;
        file.flush()
    }

    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)?;
        file.write_all(bytes)
    }

    fn sync(&self, file: &Path) -> io::Result<()> {
        fs::File::open(file)?.sync_all()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        fs::File::open(folder)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn touch(&self, file: &Path, used: SystemTime) -> io::Result<()> {
        fs::File::options()
            .write(true)
            .open(file)?
            .set_modified(used)
    }
}
