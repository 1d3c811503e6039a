//! A disk for tests, with the store's file and, where wanted, the log beside it: it remembers every write, length change and
//! sync of both in one order, fails or fills up on request, and gives back what a power cut at any moment could leave of them.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use redb::{Builder, DatabaseError, StorageBackend};
use wattd::store::disk::{Disk, Medium};

/// What a disk writes in one piece.
pub const SECTOR: usize = 512;

/// What stands on a disk: the store's file and its log.
pub type Image = [Vec<u8>; 2];

/// Bytes of a log on this disk: so few that it is used round and round.
const LOG: u64 = 12 * 4_096;

/// One thing that the store did to one of the two.
#[derive(Clone, Debug)]
pub struct Event {
    pub file: usize,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Write(usize, Vec<u8>),
    Length(usize),
    Sync,
}

#[derive(Default)]
struct State {
    bytes: Image,
    has_log: bool,
    /// None: not recorded.
    events: Option<Vec<Event>>,
    /// Operations so far, reads among them.
    operations: usize,
    /// Operations from this number on fail.
    fails_from: Option<usize>,
    /// The disk takes no byte beyond this.
    size: Option<usize>,
    /// Says that there is room for a length but takes no bytes, as a sparse file on a full disk does.
    sparse: bool,
}

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<State>>);

/// One of its files.
#[derive(Clone, Debug)]
struct OneFile(Recorder, usize);

impl Medium for Recorder {
    fn open(&self, _: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        Ok(Box::new(OneFile(self.clone(), 0)))
    }

    fn open_log(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let has_log = self.0.lock().unwrap().has_log;
        Ok(if has_log { Some(Box::new(OneFile(self.clone(), 1))) } else { None })
    }

    fn log_bytes(&self) -> u64 {
        LOG
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// A disk with the store's file alone: no log is kept on it.
    pub fn holding(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().bytes[0] = bytes;
        disk
    }

    /// A disk with both files.
    pub fn holding_both(image: Image) -> Self {
        let disk = Self::default();
        {
            let mut state = disk.0.lock().unwrap();
            (state.bytes, state.has_log) = (image, true);
        }
        disk
    }

    pub fn recording(image: Image) -> Self {
        let disk = Self::holding_both(image);
        disk.0.lock().unwrap().events = Some(Vec::new());
        disk
    }

    /// As the store takes it.
    pub fn disk(&self) -> Disk {
        Box::new(self.clone())
    }

    /// As redb takes the store's file.
    pub fn backend(&self) -> impl StorageBackend + use<> {
        OneFile(self.clone(), 0)
    }

    /// The store's file.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes[0].clone()
    }

    pub fn image(&self) -> Image {
        self.0.lock().unwrap().bytes.clone()
    }

    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().events.clone().unwrap_or_default()
    }

    pub fn event_count(&self) -> usize {
        self.0.lock().unwrap().events.as_ref().map_or(0, Vec::len)
    }

    pub fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// The `n`th operation from now and all later ones fail; none do with None.
    pub fn fail_from(&self, n: Option<usize>) {
        let mut state = self.0.lock().unwrap();
        state.fails_from = n.map(|n| state.operations + n);
    }

    /// The disk has room for `size` bytes. `sparse`: a length beyond it is accepted, bytes are not.
    pub fn resize(&self, size: Option<usize>, sparse: bool) {
        let mut state = self.0.lock().unwrap();
        (state.size, state.sparse) = (size, sparse);
    }

    fn operate<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        state.operations += 1;
        if state.fails_from.is_some_and(|from| state.operations > from) {
            return Err(io::Error::other("the disk is gone"));
        }
        work(&mut state)
    }
}

impl State {
    fn note(&mut self, file: usize, what: impl FnOnce() -> What) {
        if let Some(events) = &mut self.events {
            events.push(Event { file, what: what() });
        }
    }
}

impl StorageBackend for OneFile {
    fn len(&self) -> io::Result<u64> {
        self.0.operate(|state| Ok(state.bytes[self.1].len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.operate(|state| {
            let at = offset as usize;
            let bytes = state.bytes[self.1].get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.operate(|state| {
            let len = len as usize;
            let bytes = &mut state.bytes[self.1];
            if !state.sparse && len > bytes.len() && state.size.is_some_and(|size| len > size) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            bytes.resize(len, 0);
            state.note(self.1, || What::Length(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.operate(|state| {
            state.note(self.1, || What::Sync);
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.operate(|state| {
            let at = offset as usize;
            if state.size.is_some_and(|size| at + data.len() > size) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let bytes = state.bytes[self.1].get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(data);
            state.note(self.1, || What::Write(at, data.to_vec()));
            Ok(())
        })
    }
}

/// What the disk has not promised to keep yet.
#[derive(Clone)]
enum Loose {
    /// A sector's content, and the write that it is a part of.
    Sector(usize, Box<[u8; SECTOR]>, usize),
    Length(usize),
}

/// One file that is played back.
#[derive(Default)]
struct Played {
    /// All that was synced.
    synced: Vec<u8>,
    /// As the program sees it.
    seen: Vec<u8>,
    loose: Vec<Loose>,
    writes: usize,
}

impl Played {
    fn from(bytes: Vec<u8>) -> Self {
        Self { synced: bytes.clone(), seen: bytes, ..Self::default() }
    }

    fn play(&mut self, what: &What, lies: bool) {
        match what {
            What::Sync if lies => {}
            What::Sync => {
                // Only what is loose differs.
                self.synced.resize(self.seen.len(), 0);
                if self.loose.iter().any(|loose| matches!(loose, Loose::Length(_))) {
                    self.synced.copy_from_slice(&self.seen);
                }
                for loose in self.loose.drain(..) {
                    if let Loose::Sector(n, ..) = loose {
                        let range = n * SECTOR..((n + 1) * SECTOR).min(self.seen.len());
                        if let Some(sector) = self.seen.get(range.clone()) {
                            self.synced[range].copy_from_slice(sector);
                        }
                    }
                }
            }
            What::Length(length) => {
                self.seen.resize(*length, 0);
                self.loose.push(Loose::Length(*length));
            }
            What::Write(at, bytes) => {
                self.seen[*at..at + bytes.len()].copy_from_slice(bytes);
                for n in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
                    let mut sector = Box::new([0; SECTOR]);
                    let range = n * SECTOR..((n + 1) * SECTOR).min(self.seen.len());
                    sector[..range.len()].copy_from_slice(&self.seen[range]);
                    self.loose.push(Loose::Sector(n, sector, self.writes));
                }
                self.writes += 1;
            }
        }
    }

    fn image(&self, kept: impl Iterator<Item = usize>) -> Vec<u8> {
        let mut image = self.synced.clone();
        for k in kept {
            match &self.loose[k] {
                Loose::Length(length) => image.resize(*length, 0),
                Loose::Sector(n, bytes, _) => {
                    // Beyond the length that the file system knows there is nothing.
                    let range = n * SECTOR..((n + 1) * SECTOR).min(image.len());
                    if !range.is_empty() {
                        let length = range.len();
                        image[range].copy_from_slice(&bytes[..length]);
                    }
                }
            }
        }
        image
    }
}

/// A disk that is played back event by event, and what a power cut may leave of it at each.
#[derive(Default)]
pub struct Playback {
    files: [Played; 2],
}

impl Playback {
    pub fn from(image: Image) -> Self {
        Self { files: image.map(Played::from) }
    }

    /// Plays an event. A sync that `lies` keeps nothing.
    pub fn play(&mut self, event: &Event, lies: bool) {
        self.files[event.file].play(&event.what, lies);
    }

    /// Sectors and lengths of both files that a power cut may or may not keep.
    pub fn loose(&self) -> usize {
        self.files.iter().map(|file| file.loose.len()).sum()
    }

    /// A choice of what is kept, in the order in which it reaches the disk: all, nothing, all but one, one alone, whole
    /// writes, or sectors at random, of both files alike.
    pub fn choose(&self, random: &mut fastrand::Rng) -> Vec<usize> {
        let n = self.loose();
        if n == 0 {
            return Vec::new();
        }
        let loose: Vec<(usize, &Loose)> = self
            .files
            .iter()
            .enumerate()
            .flat_map(|(k, file)| file.loose.iter().map(move |loose| (k, loose)))
            .collect();
        let keep_one_in = [2, 2, 4, 8][random.usize(..4)];
        let one = random.usize(..n);
        let kind = random.u8(..8);
        let mut coins: BTreeMap<(usize, usize), bool> = BTreeMap::new();
        let mut kept: Vec<usize> = (0..n)
            .filter(|k| match kind {
                0 => *k != one,
                1 => *k == one,
                2 | 3 => match loose[*k] {
                    (file, Loose::Sector(_, _, write)) => *coins.entry((file, *write)).or_insert_with(|| random.bool()),
                    (_, Loose::Length(_)) => random.bool(),
                },
                4 => random.usize(..keep_one_in) != 0,
                5 => random.usize(..16) != 0,
                _ => random.usize(..keep_one_in) == 0,
            })
            .collect();
        if random.u8(..3) == 0 {
            random.shuffle(&mut kept);
        }
        kept
    }

    /// What is on the disk after the power cut when of the loose things those of `kept` reached it, in that order.
    pub fn image(&self, kept: &[usize]) -> Image {
        let first = self.files[0].loose.len();
        let of_file = kept.iter().copied().filter(|k| *k < first);
        let of_log = kept.iter().filter(|k| **k >= first).map(|k| k - first);
        [self.files[0].image(of_file), self.files[1].image(of_log)]
    }

    /// Everything that was written, as if all of it had reached the disk.
    pub fn all(&self) -> Vec<usize> {
        (0..self.loose()).collect()
    }
}
