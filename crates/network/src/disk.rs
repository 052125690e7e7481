//! The file operations that roles need, so that the simulator can lose power in the middle of any of them.
//!
//! Calls block. What was written is on the disk after [`Disk::sync`], what was made, renamed or removed in a folder after
//! [`Disk::sync_folder`]; before, a power cut may keep any part of it.

use std::{
    any::Any,
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

    /// Makes or empties a file that only its owner may read.
    ///
    /// # Errors
    /// The disk's.
    fn write_private(&self, file: &Path, bytes: &[u8]) -> io::Result<()>;

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

    /// Takes a lock on a file, which is made if it is not there, until the guard is dropped or its process ends;
    /// `None` if another has it.
    ///
    /// # Errors
    /// The disk's.
    fn lock(&self, file: &Path) -> io::Result<Option<Lock>>;

    /// Notes that a file was used at a time.
    ///
    /// # Errors
    /// The disk's.
    fn touch(&self, file: &Path, used: SystemTime) -> io::Result<()>;
}

/// Held as long as a lock is wanted.
pub struct Lock {
    _held: Box<dyn Any + Send + Sync>,
}

impl Lock {
    /// A lock that is let go of when `held` is dropped.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self {
            _held: Box::new(held),
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Lock")
    }
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

    fn write_private(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(file)?.write_all(bytes)
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

    fn lock(&self, file: &Path) -> io::Result<Option<Lock>> {
        let mut options = fs::OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(file)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn touch(&self, file: &Path, used: SystemTime) -> io::Result<()> {
        fs::File::options()
            .write(true)
            .open(file)?
            .set_modified(used)
    }
}
