//! A disk in memory that is slow, or does not answer at all for a while.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use redb::{Builder, DatabaseError, StorageBackend};
use wattd::store::disk::{Disk, Medium};

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    sync: Duration,
    read: Duration,
    is_blocked: bool,
    waiting: u32,
    syncs: u64,
    reads: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SlowDisk {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl SlowDisk {
    /// How the store opens it.
    pub fn into_disk(self) -> Disk {
        Box::new(self)
    }

    /// Makes every sync and every read take this long.
    pub fn slow_down(&self, sync: Duration, read: Duration) {
        let mut state = self.state.0.lock().unwrap();
        (state.sync, state.read) = (sync, read);
    }

    /// From now on a sync does not return.
    pub fn block(&self) {
        self.state.0.lock().unwrap().is_blocked = true;
    }

    /// Syncs return again.
    pub fn release(&self) {
        self.state.0.lock().unwrap().is_blocked = false;
        self.state.1.notify_all();
    }

    /// Whether a sync waits for [`SlowDisk::release`].
    pub fn waits(&self) -> bool {
        self.state.0.lock().unwrap().waiting > 0
    }

    /// Syncs and reads so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.0.lock().unwrap();
        (state.syncs, state.reads)
    }
}

impl Medium for SlowDisk {
    fn open(&self, _: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        Ok(Box::new(self.clone()))
    }
}

fn range(bytes: &[u8], offset: u64, length: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).unwrap();
    let end = start + length;
    if end > bytes.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(start..end) }
}

impl StorageBackend for SlowDisk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.state.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let pause = {
            let mut state = self.state.0.lock().unwrap();
            state.reads += 1;
            out.copy_from_slice(&state.bytes[range(&state.bytes, offset, out.len())?]);
            state.read
        };
        thread::sleep(pause);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        self.state.0.lock().unwrap().bytes.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let (lock, bell) = &*self.state;
        let mut state = lock.lock().unwrap();
        state.syncs += 1;
        state.waiting += 1;
        let mut state = bell.wait_while(state, |state| state.is_blocked).unwrap();
        state.waiting -= 1;
        let pause = state.sync;
        drop(state);
        thread::sleep(pause);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut state = self.state.0.lock().unwrap();
        let range = range(&state.bytes, offset, data.len())?;
        state.bytes[range].copy_from_slice(data);
        Ok(())
    }
}
