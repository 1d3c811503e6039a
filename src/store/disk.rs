//! What the store lies on, and how much was written to it.
//!
//! Owns the way to the two files, in life and for tests, and the count of bytes that they were given. A page cache writes
//! whole pages, so every write counts as the pages that it touches; what a file system adds for itself is not in it (ext4:
//! some 4 to 12 KB a sync that changes a file's length or its blocks, next to nothing for others).

use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, DatabaseError, StorageBackend};

use crate::limits;

/// Where a store lies: files in life, a disk that fails or forgets in tests.
pub trait Medium: Send + Sync {
    /// The store's file, made when it is not there. `builder` may be told to look at every page first.
    ///
    /// # Errors
    /// What redb shall say of it.
    fn open(&self, builder: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError>;

    /// The file was opened and is sound.
    fn opened(&self) {}

    /// The log beside it, empty when it is not there. None: there is none, and every commit goes into the file.
    ///
    /// # Errors
    /// When the system refuses.
    fn open_log(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        Ok(None)
    }

    /// Bytes that a log shall take, when one is made.
    fn log_bytes(&self) -> u64 {
        limits::LOG_BYTES
    }

    /// Bytes written to the block device since the machine was started, by whomever. None where that cannot be read.
    fn device_written(&self) -> Option<u64> {
        None
    }
}

/// Where a store lies.
pub type Disk = Box<dyn Medium>;

/// A file at `path`, made when it is not there.
///
/// A new file is made beside and renamed once it is whole: half of one, after a power cut, could not be told from one that
/// is damaged, and would be refused for ever.
///
/// redb trusts a file that was closed in order, even when a card that lies about syncs lost some of it in the power cut
/// after: that gave panics, and states that never were. Every page is therefore looked at when the file is opened for
/// the first time since the machine was started, unless it is so large that readings would be missed meanwhile; later
/// openings find the file as this kernel has left it. A small file beside says in which run of the machine it was opened
/// last.
#[must_use]
pub fn on_disk(path: PathBuf) -> Disk {
    Box::new(OnDisk { path })
}

/// The log of the store at `path`.
#[must_use]
pub fn log_of(path: &Path) -> PathBuf {
    path.with_extension("log")
}

struct OnDisk {
    path: PathBuf,
}

impl OnDisk {
    fn is_large(&self) -> io::Result<bool> {
        Ok(std::fs::metadata(&self.path)?.len() > limits::CHECK_AT_BOOT)
    }

    fn was_opened(&self) -> PathBuf {
        self.path.with_extension("opened")
    }
}

impl Medium for OnDisk {
    fn open(&self, builder: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        let path = &self.path;
        if !path.try_exists().map_err(io_error)? {
            let new = path.with_extension("new");
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
                _ => {}
            }
            drop(builder.create(&new)?);
            put_in_place(&new, path).map_err(io_error)?;
        }
        let boot = boot_id();
        let is_trusted =
            self.is_large().map_err(io_error)? || boot.is_some() && std::fs::read(self.was_opened()).ok() == boot;
        builder.set_check_integrity_on_open(!is_trusted);
        let file = std::fs::File::options().read(true).write(true).open(path).map_err(io_error)?;
        Ok(Box::new(FileBackend::new(file)?))
    }

    fn opened(&self) {
        let was_opened = self.was_opened();
        if let (Some(boot), Ok(false)) = (boot_id(), self.is_large())
            && std::fs::read(&was_opened).ok().as_ref() != Some(&boot)
        {
            let _ = std::fs::write(was_opened, boot); // else the next opening is as careful
        }
    }

    fn open_log(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let path = log_of(&self.path);
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Some(Box::new(backend)))
    }

    fn device_written(&self) -> Option<u64> {
        let device = std::fs::metadata(&self.path).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        // The seventh number: sectors of 512 bytes written. Source: the kernel's Documentation/block/stat.rst.
        stat.split_whitespace().nth(6)?.parse::<u64>().ok()?.checked_mul(512)
    }
}

/// What the kernel calls this run of the machine.
fn boot_id() -> Option<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())
}

pub(super) fn io_error(error: io::Error) -> DatabaseError {
    DatabaseError::Storage(redb::StorageError::Io(error))
}

/// Renames a file that is whole, so that it is there under its new name, whole, after a power cut.
///
/// # Errors
/// When the system refuses one of the steps.
pub fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    std::fs::File::open(new)?.sync_all()?;
    std::fs::rename(new, path)?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => std::fs::File::open(".")?.sync_all(),
    }
}

/// A file whose written bytes are counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub inner: Box<dyn StorageBackend>,
    pub written: Arc<AtomicU64>,
}

const PAGE: u64 = 4_096;

impl StorageBackend for Counted {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let pages = offset.saturating_add(length).div_ceil(PAGE).saturating_sub(offset / PAGE);
        self.written.fetch_add(pages.saturating_mul(PAGE), Ordering::Relaxed);
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
