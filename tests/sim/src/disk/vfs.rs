//! SQLite's view of a simulated disk: a VFS of its own for each (<https://www.sqlite.org/vfs.html>), with the shared
//! memory and locks of write-ahead mode between the connections of one process.
//!
//! A VFS serves one life of a process: after a power cut or the death of the process it answers nothing but errors, for
//! connections of the old life close on threads of their own and must not touch what the next one does.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
};

use libsqlite3_sys as sqlite;

use super::SimDisk;

/// Longest file name.
const NAME_BYTES_MAX: c_int = 512;
/// Locks of the shared memory.
const SHARED_LOCKS: usize = sqlite::SQLITE_SHM_NLOCK as usize;

/// A disk that SQLite knows by a name, until this is dropped.
#[derive(Debug)]
pub struct Vfs {
    name: String,
    registered: *mut sqlite::sqlite3_vfs,
}

// SAFETY: SQLite may use a VFS from any thread; everything that it points to is behind locks or never changes.
unsafe impl Send for Vfs {}
// SAFETY: as above.
unsafe impl Sync for Vfs {}

#[derive(Debug)]
struct Application {
    disk: SimDisk,
    /// The life of the process that it serves.
    boot: u64,
    databases: Mutex<BTreeMap<String, Arc<Database>>>,
}

/// What the connections to one database share.
#[derive(Debug, Default)]
struct Database {
    locks: Mutex<Locks>,
    shared: Mutex<SharedMemory>,
}

#[derive(Debug, Default)]
struct Locks {
    readers: u32,
    is_reserved: bool,
    is_pending: bool,
    is_exclusive: bool,
}

#[derive(Debug, Default)]
struct SharedMemory {
    regions: Vec<Box<[u64]>>,
    /// Holders: -1 for an exclusive one.
    locks: [i32; SHARED_LOCKS],
}

/// An open file as SQLite holds it.
#[repr(C)]
struct OpenFile {
    base: sqlite::sqlite3_file,
    handle: *mut Handle,
}

struct Handle {
    application: &'static Application,
    file: u64,
    /// Removed when it is closed.
    temporary: Option<String>,
    database: Arc<Database>,
    level: c_int,
    shared_locks: [i32; SHARED_LOCKS],
}

impl Vfs {
    /// Makes a disk known to SQLite, for the process that runs on it now.
    ///
    /// # Panics
    /// SQLite refuses, which it does only for want of memory.
    #[must_use]
    pub fn register(disk: SimDisk) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("simulated-{}-{number}", std::process::id());
        let c_name = CString::new(name.clone()).expect("no zero in it");
        let boot = disk.lock_inner().boot;
        let application = Box::new(Application {
            boot,
            disk,
            databases: Mutex::default(),
        });
        // Connections close on threads of their own, maybe after everything else is gone: what they point to stays.
        let registered = Box::into_raw(Box::new(sqlite::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<OpenFile>() as c_int,
            mxPathname: NAME_BYTES_MAX,
            pNext: ptr::null_mut(),
            zName: c_name.into_raw(),
            pAppData: Box::into_raw(application).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: Some(current_time_ms),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        }));
        // SAFETY: the structure and what it points to are never freed.
        let result = unsafe { sqlite::sqlite3_vfs_register(registered, 0) };
        assert_eq!(result, sqlite::SQLITE_OK, "SQLite takes another VFS");
        Self { name, registered }
    }

    /// The name by which SQLite knows the disk.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        // SAFETY: it was registered.
        unsafe { sqlite::sqlite3_vfs_unregister(self.registered) };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SQLite's code of a failed write.
fn failed(error: &std::io::Error, code: c_int) -> c_int {
    match error.kind() {
        std::io::ErrorKind::StorageFull => sqlite::SQLITE_FULL,
        _ => code,
    }
}

/// # Safety
/// `vfs` is one that [`Vfs::register`] registered.
unsafe fn application(vfs: *mut sqlite::sqlite3_vfs) -> &'static Application {
    // SAFETY: `pAppData` points to an `Application` that is never freed.
    unsafe { &*(*vfs).pAppData.cast::<Application>() }
}

/// # Safety
/// `file` was opened by [`open`] and not closed.
unsafe fn handle<'a>(file: *mut sqlite::sqlite3_file) -> &'a mut Handle {
    // SAFETY: `open` has put a `Handle` there; SQLite uses a connection's file from one thread at a time.
    unsafe { &mut *(*file.cast::<OpenFile>()).handle }
}

/// # Safety
/// `name` is null or a text of SQLite's.
unsafe fn text(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let text = unsafe { CStr::from_ptr(name) };
    Some(text.to_string_lossy().into_owned())
}

unsafe extern "C" fn open(
    vfs: *mut sqlite::sqlite3_vfs,
    name: sqlite::sqlite3_filename,
    file: *mut sqlite::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls with a registered VFS, a name or null, and room of `szOsFile` bytes.
    unsafe {
        (*file).pMethods = ptr::null();
        let application = application(vfs);
        let given = text(name);
        let Some(mut inner) = application.disk() else {
            return sqlite::SQLITE_CANTOPEN;
        };
        let is_temporary = given.is_none();
        let name = given.unwrap_or_else(|| format!("/temporary/{}", inner.next_file));
        let found = match inner.file(&name) {
            Ok(found) => found,
            Err(_) if flags & sqlite::SQLITE_OPEN_CREATE != 0 => {
                if inner.is_full {
                    return sqlite::SQLITE_FULL;
                }
                inner.make(&name)
            }
            Err(_) => return sqlite::SQLITE_CANTOPEN,
        };
        drop(inner);
        let database = {
            let mut databases = lock(&application.databases);
            Arc::clone(databases.entry(name.clone()).or_default())
        };
        let handle = Box::new(Handle {
            application,
            file: found,
            temporary: is_temporary.then_some(name),
            database,
            level: sqlite::SQLITE_LOCK_NONE,
            shared_locks: [0; SHARED_LOCKS],
        });
        (*file.cast::<OpenFile>()).handle = Box::into_raw(handle);
        (*file).pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn delete(
    vfs: *mut sqlite::sqlite3_vfs,
    name: *const c_char,
    sync: c_int,
) -> c_int {
    // SAFETY: SQLite calls with a registered VFS and a name.
    let (application, name) = unsafe { (application(vfs), text(name)) };
    let Some(mut inner) = application.disk() else {
        return sqlite::SQLITE_IOERR_DELETE;
    };
    let removed = inner.remove(&name.unwrap_or_default());
    let done = match removed {
        Ok(()) if sync != 0 => inner.sync(None),
        other => other,
    };
    match done {
        Ok(()) => sqlite::SQLITE_OK,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            sqlite::SQLITE_IOERR_DELETE_NOENT
        }
        Err(_) => sqlite::SQLITE_IOERR_DELETE,
    }
}

unsafe extern "C" fn access(
    vfs: *mut sqlite::sqlite3_vfs,
    name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls with a registered VFS, a name and a place for the answer.
    unsafe {
        let Some(inner) = application(vfs).disk() else {
            return sqlite::SQLITE_IOERR_ACCESS;
        };
        let name = text(name).unwrap_or_default();
        let length = inner.file(&name).map(|it| inner.files[&it].content.len());
        *out = c_int::from(length.is_ok_and(|it| it > 0 || !name.ends_with("-journal")));
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut sqlite::sqlite3_vfs,
    name: *const c_char,
    out_bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite calls with a name and room for `out_bytes` bytes.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > out_bytes as usize {
            return sqlite::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len());
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn randomness(
    vfs: *mut sqlite::sqlite3_vfs,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite calls with a registered VFS and room for `bytes` bytes.
    unsafe {
        let mut inner = application(vfs).disk.lock_inner();
        for index in 0..bytes as usize {
            *out.add(index) = inner.chance.bits() as c_char;
        }
    }
    bytes
}

unsafe extern "C" fn sleep(_vfs: *mut sqlite::sqlite3_vfs, microseconds: c_int) -> c_int {
    // Another connection of this process has the lock; it is at work on its thread.
    std::thread::yield_now();
    microseconds
}

unsafe extern "C" fn current_time(_vfs: *mut sqlite::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite calls with a place for the answer.
    unsafe { *out = 2_461_000.5 };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn current_time_ms(
    _vfs: *mut sqlite::sqlite3_vfs,
    out: *mut sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: as above. No statement of the hub asks for the time.
    unsafe { *out = 212_630_443_200_000 };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn last_error(
    _vfs: *mut sqlite::sqlite3_vfs,
    _bytes: c_int,
    _out: *mut c_char,
) -> c_int {
    0
}

static METHODS: sqlite::sqlite3_io_methods = sqlite::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock_file),
    xUnlock: Some(unlock_file),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shared_map),
    xShmLock: Some(shared_lock),
    xShmBarrier: Some(shared_barrier),
    xShmUnmap: Some(shared_unmap),
    xFetch: None,
    xUnfetch: None,
};

impl Application {
    /// The disk, while the process lives.
    fn disk(&self) -> Option<MutexGuard<'_, super::Inner>> {
        let inner = self.disk.lock_inner();
        (inner.boot == self.boot && inner.alive().is_ok()).then_some(inner)
    }
}

impl Handle {
    fn disk(&self) -> Option<MutexGuard<'static, super::Inner>> {
        self.application.disk()
    }

    fn unlock_to(&mut self, level: c_int) {
        let mut locks = lock(&self.database.locks);
        if self.level >= sqlite::SQLITE_LOCK_EXCLUSIVE {
            locks.is_exclusive = false;
        }
        if self.level >= sqlite::SQLITE_LOCK_PENDING {
            locks.is_pending = false;
        }
        if self.level >= sqlite::SQLITE_LOCK_RESERVED {
            locks.is_reserved = false;
        }
        if self.level >= sqlite::SQLITE_LOCK_SHARED && level == sqlite::SQLITE_LOCK_NONE {
            locks.readers -= 1;
        }
        self.level = level.min(self.level);
    }

    fn lock_to(&mut self, level: c_int) -> bool {
        if self.level >= level {
            return true;
        }
        let mut locks = lock(&self.database.locks);
        if self.level == sqlite::SQLITE_LOCK_NONE {
            if locks.is_exclusive || locks.is_pending {
                return false;
            }
            locks.readers += 1;
            self.level = sqlite::SQLITE_LOCK_SHARED;
        }
        if level >= sqlite::SQLITE_LOCK_RESERVED && self.level < sqlite::SQLITE_LOCK_RESERVED {
            if locks.is_reserved {
                return false;
            }
            locks.is_reserved = true;
            self.level = sqlite::SQLITE_LOCK_RESERVED;
        }
        if level >= sqlite::SQLITE_LOCK_PENDING && self.level < sqlite::SQLITE_LOCK_PENDING {
            locks.is_pending = true;
            self.level = sqlite::SQLITE_LOCK_PENDING;
        }
        if level >= sqlite::SQLITE_LOCK_EXCLUSIVE {
            if locks.readers > 1 {
                return false;
            }
            locks.is_exclusive = true;
            self.level = sqlite::SQLITE_LOCK_EXCLUSIVE;
        }
        true
    }

    fn unlock_shared(&mut self, first: usize, count: usize) {
        let mut shared = lock(&self.database.shared);
        for index in first..first + count {
            match self.shared_locks[index] {
                -1 => shared.locks[index] = 0,
                1 => shared.locks[index] -= 1,
                _ => {}
            }
            self.shared_locks[index] = 0;
        }
    }
}

unsafe extern "C" fn close(file: *mut sqlite::sqlite3_file) -> c_int {
    // SAFETY: `open` made the handle, and SQLite closes a file once.
    let mut handle = unsafe { Box::from_raw((*file.cast::<OpenFile>()).handle) };
    handle.unlock_shared(0, SHARED_LOCKS);
    handle.unlock_to(sqlite::SQLITE_LOCK_NONE);
    if let (Some(name), Some(mut inner)) = (handle.temporary.clone(), handle.disk()) {
        // It may be gone already; nobody else knows of it.
        let _ = inner.remove(&name);
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut sqlite::sqlite3_file,
    out: *mut c_void,
    bytes: c_int,
    offset: sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls with an open file and room for `bytes` bytes.
    let (handle, out) = unsafe {
        let out = std::slice::from_raw_parts_mut(out.cast::<u8>(), bytes as usize);
        (handle(file), out)
    };
    let Some(inner) = handle.disk() else {
        return sqlite::SQLITE_IOERR_READ;
    };
    let Some(found) = inner.files.get(&handle.file) else {
        return sqlite::SQLITE_IOERR_READ;
    };
    let start = (offset as usize).min(found.content.len());
    let end = (start + out.len()).min(found.content.len());
    let (there, beyond) = out.split_at_mut(end - start);
    there.copy_from_slice(&found.content[start..end]);
    if beyond.is_empty() {
        return sqlite::SQLITE_OK;
    }
    beyond.fill(0);
    sqlite::SQLITE_IOERR_SHORT_READ
}

unsafe extern "C" fn write(
    file: *mut sqlite::sqlite3_file,
    from: *const c_void,
    bytes: c_int,
    offset: sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls with an open file and `bytes` bytes.
    let (handle, from) = unsafe {
        let from = std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize);
        (handle(file), from)
    };
    let Some(mut inner) = handle.disk() else {
        return sqlite::SQLITE_IOERR_WRITE;
    };
    match inner.write_at(handle.file, offset as usize, from) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(error) => failed(&error, sqlite::SQLITE_IOERR_WRITE),
    }
}

unsafe extern "C" fn truncate(
    file: *mut sqlite::sqlite3_file,
    bytes: sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls with an open file.
    let handle = unsafe { handle(file) };
    let Some(mut inner) = handle.disk() else {
        return sqlite::SQLITE_IOERR_TRUNCATE;
    };
    match inner.cut(handle.file, bytes as usize) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(_) => sqlite::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn sync(file: *mut sqlite::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite calls with an open file.
    let handle = unsafe { handle(file) };
    let Some(mut inner) = handle.disk() else {
        return sqlite::SQLITE_IOERR_FSYNC;
    };
    match inner.sync(Some(handle.file)) {
        Ok(()) => sqlite::SQLITE_OK,
        Err(_) => sqlite::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn file_size(
    file: *mut sqlite::sqlite3_file,
    out: *mut sqlite::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls with an open file and a place for the answer.
    let handle = unsafe { handle(file) };
    let Some(inner) = handle.disk() else {
        return sqlite::SQLITE_IOERR_FSTAT;
    };
    let length = inner
        .files
        .get(&handle.file)
        .map_or(0, |it| it.content.len());
    // SAFETY: as above.
    unsafe { *out = length as sqlite::sqlite3_int64 };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn lock_file(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls with an open file.
    if unsafe { handle(file) }.lock_to(level) {
        sqlite::SQLITE_OK
    } else {
        sqlite::SQLITE_BUSY
    }
}

unsafe extern "C" fn unlock_file(file: *mut sqlite::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls with an open file.
    unsafe { handle(file) }.unlock_to(level);
    sqlite::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut sqlite::sqlite3_file,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls with an open file and a place for the answer.
    unsafe { *out = c_int::from(lock(&handle(file).database.locks).is_reserved) };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn file_control(
    _file: *mut sqlite::sqlite3_file,
    _operation: c_int,
    _argument: *mut c_void,
) -> c_int {
    sqlite::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut sqlite::sqlite3_file) -> c_int {
    super::SECTOR_BYTES as c_int
}

unsafe extern "C" fn device_characteristics(_file: *mut sqlite::sqlite3_file) -> c_int {
    // As SQLite says of Unix: a torn write damages no byte outside of it.
    sqlite::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shared_map(
    file: *mut sqlite::sqlite3_file,
    region: c_int,
    region_bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls with an open file and a place for the answer.
    let handle = unsafe { handle(file) };
    let mut shared = lock(&handle.database.shared);
    let region = region as usize;
    if region >= shared.regions.len() && extend == 0 {
        // SAFETY: as above.
        unsafe { *out = ptr::null_mut() };
        return sqlite::SQLITE_OK;
    }
    while shared.regions.len() <= region {
        let words = (region_bytes as usize).div_ceil(8);
        shared.regions.push(vec![0; words].into_boxed_slice());
    }
    // SAFETY: as above. A region's bytes never move, and live as long as the handle keeps its database.
    unsafe { *out = shared.regions[region].as_mut_ptr().cast() };
    sqlite::SQLITE_OK
}

unsafe extern "C" fn shared_lock(
    file: *mut sqlite::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite calls with an open file and locks within the limit.
    let handle = unsafe { handle(file) };
    let (first, count) = (first as usize, count as usize);
    if flags & sqlite::SQLITE_SHM_UNLOCK != 0 {
        handle.unlock_shared(first, count);
        return sqlite::SQLITE_OK;
    }
    let mut shared = lock(&handle.database.shared);
    let is_exclusive = flags & sqlite::SQLITE_SHM_EXCLUSIVE != 0;
    let range = first..first + count;
    let is_free = |index: usize| {
        if is_exclusive {
            shared.locks[index] == 0
        } else {
            shared.locks[index] >= 0
        }
    };
    if !range.clone().all(is_free) {
        return sqlite::SQLITE_BUSY;
    }
    for index in range {
        if is_exclusive {
            shared.locks[index] = -1;
            handle.shared_locks[index] = -1;
        } else if handle.shared_locks[index] == 0 {
            shared.locks[index] += 1;
            handle.shared_locks[index] = 1;
        }
    }
    sqlite::SQLITE_OK
}

unsafe extern "C" fn shared_barrier(_file: *mut sqlite::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shared_unmap(file: *mut sqlite::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite calls with an open file.
    let handle = unsafe { handle(file) };
    handle.unlock_shared(0, SHARED_LOCKS);
    if delete != 0 {
        let mut shared = lock(&handle.database.shared);
        // Regions that another handle still maps must stay where they are; emptied, they say "rebuild me".
        for region in &mut shared.regions {
            region.fill(0);
        }
    }
    sqlite::SQLITE_OK
}
