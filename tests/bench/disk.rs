//! What reaches the disk: a redb backend that counts, and a file system of its own whose device counts.
#![allow(dead_code)] // each benchmark uses a part of it
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{Builder, DatabaseError, StorageBackend};
use wattd::store::disk::{Disk, Medium, log_of};

/// What a backend was asked to do.
#[derive(Debug, Default)]
pub struct Counts {
    read: AtomicU64,
    written: AtomicU64,
    syncs: AtomicU64,
}

impl Counts {
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Counted {
    file: FileBackend,
    counts: Arc<Counts>,
}

impl StorageBackend for Counted {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.counts.read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.counts.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
}

/// A file whose reads, writes and syncs are counted, and those of its log.
pub fn counted(path: PathBuf) -> (Disk, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    (Box::new(CountedFiles { path, counts: counts.clone() }), counts)
}

struct CountedFiles {
    path: PathBuf,
    counts: Arc<Counts>,
}

impl CountedFiles {
    fn file(&self, path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Ok(Box::new(Counted { file: FileBackend::new(file)?, counts: self.counts.clone() }))
    }
}

impl Medium for CountedFiles {
    fn open(&self, _: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        self.file(&self.path)
    }

    fn open_log(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        self.file(&log_of(&self.path)).map(Some).map_err(io::Error::other)
    }
}

/// An ext4 file system in a file, behind a loop device of its own: everything that is written to the device is ours, the
/// file system's journal included. Needs root.
pub struct Image {
    device: String,
    file: PathBuf,
    mount: PathBuf,
}

impl Image {
    /// None where this system does not let us.
    pub fn new(dir: &Path) -> Option<Self> {
        let (file, mount) = (dir.join("ext4.img"), dir.join("ext4"));
        File::create(&file).and_then(|file| file.set_len(2 << 30)).ok()?;
        fs::create_dir_all(&mount).ok()?;
        let path = file.to_str()?;
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", path])?;
        let device = run("losetup", &["--find", "--show", path])?.trim().to_owned();
        let image = Self { device, file, mount };
        run("mount", &["-o", "noatime", &image.device, image.mount.to_str()?])?;
        Some(image)
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Bytes written to the device so far, all that is on its way included.
    pub fn written(&self) -> u64 {
        run("sync", &["-f", self.mount.to_str().unwrap()]).unwrap();
        let name = self.device.rsplit('/').next().unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = run("umount", &[self.mount.to_str().unwrap_or_default()]);
        let _ = run("losetup", &["-d", &self.device]);
        let _ = fs::remove_file(&self.file);
    }
}

/// What a program printed, when it was there and went well.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let done: io::Result<_> = Command::new(program).args(args).output();
    let done = done.ok().filter(|done| done.status.success())?;
    String::from_utf8(done.stdout).ok()
}

/// A number of /proc/self.
pub fn of_self(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
