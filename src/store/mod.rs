//! Readings on disk, keyed by device and time, behind one door.
//!
//! Owns the file, device numbers, and what is not yet committed. Promises: a batch whose commit returned is there after
//! a power cut, whole and once; a scan sees every reading that was appended before it began, committed or not, in order
//! of (time, device), once; a device number is never used for another device.
//!
//! The executor's side is [`Store`]. Writing and reading the file happens on two threads ([`worker`]), so that a slow
//! card delays neither a poll nor a request. Does not know what a plug is, nor HTTP.

pub mod batch;
pub mod file;
pub mod worker;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::reading::{DeviceId, PlugFacts, Reading};
use crate::units::UnixMillis;
use batch::BadBatch;
use file::{Disk, File};
use worker::Worker;

/// A device's number in this store: small, dense from 0, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber(u32);

impl DeviceNumber {
    /// Device number `n`.
    #[must_use]
    pub const fn new(n: u32) -> Self {
        Self(n)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A head batch's sequence number, from 0, one higher with each commit that wrote readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchNumber(u64);

impl BatchNumber {
    /// Batch number `n`.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What is kept of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: DeviceId,
    /// When it was first seen.
    pub first_seen: UnixMillis,
    /// For a plug: what it says of itself and where it was last. None for an outlet of a strip, whose plug has it.
    pub plug: Option<PlugRecord>,
}

/// What is kept of a plug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlugRecord {
    /// What it says of itself.
    pub facts: PlugFacts,
    /// Where it last answered.
    pub address: SocketAddr,
}

/// A device and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number in this store.
    pub number: DeviceNumber,
    /// What is kept of it.
    pub record: Record,
}

/// A stored reading and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub device: DeviceNumber,
    /// What was read.
    pub reading: Reading,
}

impl Row {
    /// Where the row stands among all rows.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { time: self.reading.time, device: self.device }
    }
}

/// A row's place: rows are ordered by time, and by device number at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When.
    pub time: UnixMillis,
    /// Whose.
    pub device: DeviceNumber,
}

/// Which end of a range comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// What to read: the rows of `devices` in `[from, to)`, in order, after a position, at most `limit` of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Whose rows.
    pub devices: Vec<DeviceNumber>,
    /// The earliest time.
    pub from: UnixMillis,
    /// The end of the range, not in it.
    pub to: UnixMillis,
    /// Which end first.
    pub order: Order,
    /// Where an earlier page of the same scan ended.
    pub after: Option<Position>,
    /// The most rows to return, at most [`limits::PAGE_ROWS`].
    pub limit: usize,
}

impl Scan {
    fn covers(&self, row: &Row) -> bool {
        let beyond = |after: Position| match self.order {
            Order::Ascending => row.position() > after,
            Order::Descending => row.position() < after,
        };
        self.devices.contains(&row.device)
            && (self.from..self.to).contains(&row.reading.time)
            && self.after.is_none_or(beyond)
    }
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the scan's order.
    pub rows: Vec<Row>,
    /// Whether the scan has more rows after these.
    pub more: bool,
}

/// Figures of a store, for people and for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Batches committed, since the store was made.
    pub batches: u64,
    /// Readings committed, since the store was made.
    pub readings: u64,
    /// Readings in memory that no commit covers yet.
    pub pending: usize,
    /// Readings dropped since the start because the disk took none for too long.
    pub dropped: u64,
}

/// Why the store did not do what was asked.
#[derive(Debug)]
pub enum StoreError {
    /// Another process has the file open.
    InUse,
    /// The file was written by a newer program.
    Newer {
        /// The file's format.
        format: u16,
    },
    /// The file is something else.
    NotAStore,
    /// The disk failed, is full, or the file is damaged beyond what redb can repair.
    Disk(Box<redb::Error>),
    /// A batch is damaged; the others are not.
    Damaged {
        /// Which one.
        batch: BatchNumber,
        /// How.
        why: BadBatch,
    },
    /// A device's record cannot be read or written.
    BadRecord {
        /// Whose.
        device: DeviceNumber,
    },
    /// A directory or thread could not be had.
    System(std::io::Error),
    /// A store thread ended: a bug, or the program is going down.
    ThreadGone,
}

impl StoreError {
    fn opening(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            other => Self::Disk(Box::new(other.into())),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => {
                f.write_str("another wattd has the store open; stop it first, or give this one another data_dir")
            }
            Self::Newer { format } => write!(
                f,
                "the store has format {format}, this wattd knows up to {}; install the newer wattd that wrote it, or give this one another data_dir",
                file::FORMAT
            ),
            Self::NotAStore => f.write_str("the file is not a wattd store; move it away, or give another data_dir"),
            Self::Disk(error) => write!(f, "the store's file: {error}"),
            Self::Damaged { batch, why } => write!(f, "batch {} of the store is left out: {why}", batch.get()),
            Self::BadRecord { device } => {
                write!(f, "the record of device {} in the store cannot be read", device.get())
            }
            Self::System(error) => write!(f, "{error}"),
            Self::ThreadGone => f.write_str("the store's thread has ended"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Disk(error) => Some(error.as_ref()),
            Self::Damaged { why, .. } => Some(why),
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

macro_rules! disk_errors {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Disk(Box::new(error.into()))
            }
        }
    )*};
}
disk_errors!(TransactionError, TableError, StorageError, CommitError);

impl From<worker::Gone> for StoreError {
    fn from(_: worker::Gone) -> Self {
        Self::ThreadGone
    }
}

/// The store's file in a data directory.
#[must_use]
pub fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join("wattd.redb")
}

/// A file at `path`, made when it is not there.
#[must_use]
pub fn on_disk(path: PathBuf) -> Disk {
    Box::new(move |builder| builder.create(&path))
}

/// The executor's side of the store. Cheap calls touch memory only; `async` ones wait for a store thread.
pub struct Store {
    memory: RefCell<Memory>,
    file: Arc<File>,
    committer: Worker,
    reader: Worker,
}

/// A batch on its way to the disk. It is repeated unchanged until the disk has it.
struct Outgoing {
    number: BatchNumber,
    rows: Arc<Vec<Row>>,
}

#[derive(Default)]
struct Memory {
    devices: Vec<Device>,
    numbers: HashMap<DeviceId, DeviceNumber>,
    latest: Vec<Option<Reading>>,
    /// Devices whose record the file does not have yet in this form.
    changed: BTreeSet<DeviceNumber>,
    /// Readings that no batch has taken yet, in order of arrival.
    pending: VecDeque<Row>,
    outgoing: Option<Outgoing>,
    /// Every committed batch by (first time, number), with its last time.
    batches: BTreeMap<(UnixMillis, BatchNumber), UnixMillis>,
    next_batch: BatchNumber,
    figures: Figures,
}

/// The longest time one batch may span, so that a scan knows how far back a batch can reach that overlaps its range.
const BATCH_SPAN: i64 = 3_600_000;

/// Batches read by the first turn of the reader thread, and the most by a later one; each turn reads twice as many.
const FIRST_TURN: usize = 16;
const LAST_TURN: usize = 256;

impl Store {
    /// Opens the store, or makes a new one. Blocks; for the start of the program.
    ///
    /// # Errors
    /// [`StoreError`] with what to do about it.
    pub fn open(disk: Disk) -> Result<Self, StoreError> {
        let (file, contents) = File::open(disk)?;
        for (batch, why) in &contents.damaged {
            log::error!("{}", StoreError::Damaged { batch: *batch, why: *why });
        }
        let after = |number: &BatchNumber| BatchNumber(number.0.saturating_add(1));
        let numbers = contents.batches.iter().map(|(n, _)| n).chain(contents.damaged.iter().map(|(n, _)| n));
        let next_batch = numbers.map(after).max().unwrap_or_default();
        let mut memory = Memory {
            latest: vec![None; contents.devices.len()],
            numbers: contents.devices.iter().map(|device| (device.record.id, device.number)).collect(),
            devices: contents.devices,
            batches: contents.batches.iter().map(|(n, span)| ((span.first, *n), span.last)).collect(),
            next_batch,
            figures: Figures { batches: next_batch.0, readings: contents.readings, ..Figures::default() },
            ..Memory::default()
        };
        for row in contents.newest {
            memory.note_latest(&row);
        }
        Ok(Self {
            memory: RefCell::new(memory),
            file: Arc::new(file),
            committer: Worker::start("wattd-commit").map_err(StoreError::System)?,
            reader: Worker::start("wattd-read").map_err(StoreError::System)?,
        })
    }

    /// Keeps what a plug says of itself and where it answered; new facts reach the disk with the next commit.
    pub fn remember(&self, facts: &PlugFacts, address: SocketAddr, seen: UnixMillis) {
        let mut memory = self.memory.borrow_mut();
        let plug = PlugRecord { facts: facts.clone(), address };
        let number = memory.number_of(DeviceId::plug(facts.mac), seen);
        let changed = memory.devices.get_mut(number.index()).is_some_and(|device| {
            let differs = device.record.plug.as_ref() != Some(&plug);
            device.record.plug = Some(plug);
            differs
        });
        if changed {
            memory.changed.insert(number);
        }
        for id in facts.metered_ids() {
            memory.number_of(id, seen);
        }
    }

    /// Takes a reading. It is seen by reads at once and durable after the next commit.
    ///
    /// When the disk has taken nothing for so long that memory is full, the oldest reading of the same device goes, and
    /// is counted.
    pub fn append(&self, id: DeviceId, reading: Reading) {
        let mut memory = self.memory.borrow_mut();
        let row = Row { device: memory.number_of(id, reading.time), reading };
        memory.note_latest(&row);
        if memory.pending.len() >= limits::PENDING_READINGS {
            let oldest = memory.pending.iter().position(|old| old.device == row.device).unwrap_or(0);
            memory.pending.remove(oldest);
            memory.figures.dropped += 1;
        }
        memory.pending.push_back(row);
    }

    /// Makes everything appended so far durable. Returns how many readings that were.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is lost, the next commit tries again with the same batch.
    pub async fn commit(&self) -> Result<usize, StoreError> {
        let mut committed = 0;
        loop {
            let Some((batch, devices)) = self.memory.borrow_mut().take_batch() else { return Ok(committed) };
            let (file, rows) = (self.file.clone(), batch.as_ref().map(|(_, rows)| rows.clone()));
            let number = batch.as_ref().map(|(number, _)| *number);
            let written = devices.clone();
            let span = self
                .committer
                .run(move || {
                    let encoded = rows.as_ref().and_then(|rows| batch::encode(rows));
                    let bytes = encoded.as_ref().map(|(bytes, _)| bytes.as_slice());
                    file.commit(number.zip(bytes), &written)?;
                    Ok::<_, StoreError>(encoded.map(|(_, span)| span))
                })
                .await;
            let mut memory = self.memory.borrow_mut();
            match span.map_err(StoreError::from).flatten() {
                Err(error) => {
                    memory.changed.extend(devices.iter().map(|device| device.number));
                    return Err(error);
                }
                Ok(span) => {
                    memory.outgoing = None;
                    if let (Some((number, rows)), Some(span)) = (batch, span) {
                        memory.batches.insert((span.first, number), span.last);
                        memory.figures.batches += 1;
                        memory.figures.readings += u64::try_from(rows.len()).unwrap_or(0);
                        committed += rows.len();
                    }
                }
            }
        }
    }

    /// Every device, in order of number.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.memory.borrow().devices.clone()
    }

    /// A device's number.
    #[must_use]
    pub fn number(&self, id: DeviceId) -> Option<DeviceNumber> {
        self.memory.borrow().numbers.get(&id).copied()
    }

    /// The id behind a number.
    #[must_use]
    pub fn id(&self, number: DeviceNumber) -> Option<DeviceId> {
        self.memory.borrow().devices.get(number.index()).map(|device| device.record.id)
    }

    /// The newest reading of a device, committed or not.
    #[must_use]
    pub fn latest(&self, id: DeviceId) -> Option<Reading> {
        let memory = self.memory.borrow();
        memory.numbers.get(&id).and_then(|number| memory.latest.get(number.index()).copied().flatten())
    }

    /// How full the store is.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let memory = self.memory.borrow();
        let outgoing = memory.outgoing.as_ref().map_or(0, |outgoing| outgoing.rows.len());
        Figures { pending: memory.pending.len() + outgoing, ..memory.figures }
    }

    /// One page of a scan.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read. A damaged batch is left out and logged.
    pub async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let mut found = Found { limit: scan.limit.min(limits::PAGE_ROWS), rows: Vec::new(), scan };
        found.add(self.memory.borrow().uncommitted());
        let (mut done, mut turn) = (None, FIRST_TURN);
        loop {
            let batches: Vec<_> = self.memory.borrow().overlapping(&found.scan, done).take(turn).collect();
            done = batches.last().copied().or(done);
            if !batches.is_empty() {
                let (file, wanted) = (self.file.clone(), found.scan.devices.clone());
                let numbers: Vec<_> = batches.iter().map(|(_, number)| *number).collect();
                let read = self.reader.run(move || file.read(&numbers, &wanted)).await.map_err(StoreError::from);
                found.add(read.flatten()?);
            }
            match self.memory.borrow().horizon(&found.scan, done) {
                Some(horizon) if !found.is_settled_before(horizon) => turn = (turn * 2).min(LAST_TURN),
                _ => return Ok(found.into_page()),
            }
        }
    }
}

impl Memory {
    fn number_of(&mut self, id: DeviceId, seen: UnixMillis) -> DeviceNumber {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let number = DeviceNumber(u32::try_from(self.devices.len()).unwrap_or(u32::MAX));
        self.devices.push(Device { number, record: Record { id, first_seen: seen, plug: None } });
        self.latest.push(None);
        self.numbers.insert(id, number);
        self.changed.insert(number);
        number
    }

    fn note_latest(&mut self, row: &Row) {
        if let Some(latest) = self.latest.get_mut(row.device.index()) {
            *latest = Some(row.reading);
        }
    }

    /// What the next commit writes: the batch under way if there is one, else a new one. None when nothing is new.
    #[allow(clippy::type_complexity)]
    fn take_batch(&mut self) -> Option<(Option<(BatchNumber, Arc<Vec<Row>>)>, Vec<Device>)> {
        if self.outgoing.is_none() && !self.pending.is_empty() {
            let mut rows = Vec::new();
            let (mut first, mut last) = (UnixMillis::MAX, UnixMillis::MIN);
            while let Some(row) = self.pending.front() {
                (first, last) = (first.min(row.reading.time), last.max(row.reading.time));
                if rows.len() >= limits::BATCH_READINGS || last.since(first) > BATCH_SPAN {
                    break;
                }
                rows.extend(self.pending.pop_front());
            }
            self.outgoing = Some(Outgoing { number: self.next_batch, rows: Arc::new(rows) });
            self.next_batch = BatchNumber(self.next_batch.0.saturating_add(1));
        }
        let changed = std::mem::take(&mut self.changed);
        let batch = self.outgoing.as_ref().map(|outgoing| (outgoing.number, outgoing.rows.clone()));
        if batch.is_none() && changed.is_empty() {
            return None;
        }
        Some((batch, changed.iter().filter_map(|n| self.devices.get(n.index()).cloned()).collect()))
    }

    fn uncommitted(&self) -> impl Iterator<Item = Row> + '_ {
        let outgoing = self.outgoing.iter().flat_map(|outgoing| outgoing.rows.iter());
        outgoing.chain(&self.pending).copied()
    }

    /// Batches that may hold rows of the scan, in its order by first time, beyond `done`.
    fn overlapping<'a>(
        &'a self,
        scan: &Scan,
        done: Option<(UnixMillis, BatchNumber)>,
    ) -> Box<dyn Iterator<Item = (UnixMillis, BatchNumber)> + 'a> {
        let (mut from, mut to) = (scan.from, scan.to.plus(-1));
        match (scan.order, scan.after) {
            (Order::Ascending, Some(after)) => from = from.max(after.time),
            (Order::Descending, Some(after)) => to = to.min(after.time),
            (_, None) => {}
        }
        let mut lower = Bound::Included((from.plus(-BATCH_SPAN), BatchNumber(0)));
        let mut upper = Bound::Included((to, BatchNumber(u64::MAX)));
        match (scan.order, done) {
            (Order::Ascending, Some(done)) => lower = Bound::Excluded(done),
            (Order::Descending, Some(done)) => upper = Bound::Excluded(done),
            (_, None) => {}
        }
        if is_empty(lower, upper) {
            return Box::new(std::iter::empty());
        }
        let overlaps = move |(key, last): (&(UnixMillis, BatchNumber), &UnixMillis)| (*last >= from).then_some(*key);
        let range = self.batches.range((lower, upper));
        match scan.order {
            Order::Ascending => Box::new(range.filter_map(overlaps)),
            Order::Descending => Box::new(range.rev().filter_map(overlaps)),
        }
    }

    /// The time that rows of batches beyond `done` may reach: their earliest when reading forwards, their latest when
    /// reading backwards. None when no batch is left.
    fn horizon(&self, scan: &Scan, done: Option<(UnixMillis, BatchNumber)>) -> Option<UnixMillis> {
        let mut further = self.overlapping(scan, done);
        match scan.order {
            Order::Ascending => further.next().map(|(first, _)| first),
            Order::Descending => {
                let (nearest, _) = further.next()?;
                let reach = (nearest.plus(-BATCH_SPAN), BatchNumber(0))..=(nearest, BatchNumber(u64::MAX));
                self.batches
                    .range(reach)
                    .filter(|(key, _)| done.is_none_or(|done| **key < done))
                    .map(|(_, last)| *last)
                    .max()
            }
        }
    }
}

fn is_empty<T: Ord>(lower: Bound<T>, upper: Bound<T>) -> bool {
    use Bound::{Excluded, Included, Unbounded};
    match (lower, upper) {
        (Included(a), Included(b)) => a > b,
        (Included(a) | Excluded(a), Excluded(b)) | (Excluded(a), Included(b)) => a >= b,
        (Unbounded, _) | (_, Unbounded) => false,
    }
}

/// Rows gathered for one page.
struct Found {
    scan: Scan,
    limit: usize,
    rows: Vec<Row>,
}

impl Found {
    fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows.into_iter().filter(|row| self.scan.covers(row)));
    }

    /// Whether the page is full, and one row more, with rows that come before all that lie at or beyond `horizon`.
    fn is_settled_before(&self, horizon: UnixMillis) -> bool {
        let settled = self.rows.iter().filter(|row| match self.scan.order {
            Order::Ascending => row.reading.time < horizon,
            Order::Descending => row.reading.time > horizon,
        });
        settled.count() > self.limit
    }

    fn into_page(mut self) -> Page {
        self.rows.sort_by_key(Row::position);
        // A row that was committed while the scan ran was found in memory and on disk.
        self.rows.dedup_by_key(|row| row.position());
        if self.scan.order == Order::Descending {
            self.rows.reverse();
        }
        let more = self.rows.len() > self.limit;
        self.rows.truncate(self.limit);
        Page { rows: self.rows, more }
    }
}
