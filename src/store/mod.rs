//! Readings on disk, keyed by device and time, behind one door.
//!
//! Owns the file, device numbers, and what is not yet committed. Promises: a batch whose commit returned is there after
//! a power cut, whole and once; a scan sees every reading that was appended before it began, committed or not, in order
//! of (time, device), once; a device number is never used for another device.
//!
//! The executor's side is [`Store`]. Writing and reading the file happens on two threads ([`worker`]), so that a slow
//! card delays neither a poll nor a request. Does not know what a plug is, nor HTTP.

pub mod backup;
pub mod batch;
pub mod bytes;
pub mod check;
pub mod chunk;
mod compact;
pub mod disk;
pub mod event;
pub mod file;
mod headlog;
pub mod hold;
pub mod journal;
mod live;
mod mend;
mod recent;
pub mod replay;
mod scan;
pub mod worker;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol::channel::{Receiver, Sender, bounded};
use smol::lock::Mutex;

use crate::clock::Stopwatch;
use crate::limits;
use crate::reading::{DeviceId, Entry, PlugFacts, Reading};
use crate::rollup::Bucket;
use crate::rollup::bucket::quarter_hour;
use crate::rollup::codec::BadBlob;
use crate::stats::{Operation, Stats};
use crate::units::{MilliwattHours, UnixMillis};
use batch::BadBatch;
use chunk::{BadChunk, Columns, Stored};
pub use compact::Expiry;
use compact::{Compacted, Compaction, Due};
use disk::{Disk, io_error};
pub use disk::{on_disk, put_in_place};
pub use event::{Event, EventPage, EventScan, What};
use file::{Batches, Commit, Committed, File};
use journal::{Journal, StoreId};
use live::Live;
use recent::Recent;
use scan::InMemory;
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

/// One entry of a device's stream, as the head keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose.
    pub device: DeviceNumber,
    /// What, and the polling interval in force.
    pub stored: Stored,
    /// Whether an entry with a later time had come before it: the wall clock was set back.
    pub late: bool,
}

impl Item {
    /// When.
    #[must_use]
    pub const fn time(&self) -> UnixMillis {
        self.stored.entry.time()
    }

    /// As a row, when it is a reading.
    #[must_use]
    pub const fn row(&self) -> Option<Row> {
        match self.stored.entry {
            Entry::Reading(reading) => Some(Row { device: self.device, reading }),
            Entry::Gap { .. } => None,
        }
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
    /// The columns wanted; others may be absent. Fewer are read faster.
    pub columns: Columns,
}

impl Scan {
    /// The earliest and the latest time that rows of this page can have. Empty when the second is before the first.
    fn bounds(&self) -> (UnixMillis, UnixMillis) {
        let (from, to) = (self.from, self.to.plus(-1));
        match (self.order, self.after) {
            (Order::Ascending, Some(after)) => (from.max(after.time), to),
            (Order::Descending, Some(after)) => (from, to.min(after.time)),
            (_, None) => (from, to),
        }
    }

    /// Whether a row of one of the devices belongs to the page or a later one.
    fn covers(&self, row: &Row) -> bool {
        let beyond = |after: Position| match self.order {
            Order::Ascending => row.position() > after,
            Order::Descending => row.position() < after,
        };
        (self.from..self.to).contains(&row.reading.time) && self.after.is_none_or(beyond)
    }
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the scan's order.
    pub rows: Vec<Row>,
    /// Whether the scan has more rows after these.
    pub more: bool,
    /// What it took to find them.
    pub touched: Touched,
}

/// What a scan read for one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Chunks of the file: as many pages, and as many random reads when nothing is cached.
    pub chunks: u32,
    /// Rows that were decoded, in chunks and in memory.
    pub rows: u32,
}

/// One page of a device's buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketPage {
    /// The buckets, in order of time.
    pub buckets: Vec<Bucket>,
    /// Where the next page begins. None after the last.
    pub next: Option<UnixMillis>,
}

impl Touched {
    /// Rows alone.
    fn of_rows(rows: usize) -> Self {
        Self { rows: u32::try_from(rows).unwrap_or(u32::MAX), chunks: 0 }
    }
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chunks (a page each), {} rows", self.chunks, self.rows)
    }
}

/// The length of stored buckets. Both are aligned to UTC; civil periods are sums of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// 15 minutes, one blob per UTC day.
    QuarterHour,
    /// An hour, one blob per week: sums of quarter hours, for long ranges.
    Hour,
}

const DAY_MS: i64 = 86_400_000;

impl Tier {
    const fn code(self) -> u8 {
        match self {
            Self::QuarterHour => 0,
            Self::Hour => 1,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::QuarterHour => "quarter hours",
            Self::Hour => "hours",
        }
    }

    const fn period_ms(self) -> i64 {
        match self {
            Self::QuarterHour => DAY_MS,
            Self::Hour => 7 * DAY_MS,
        }
    }

    /// The blob that a bucket beginning at `time` belongs to.
    fn period(self, time: UnixMillis) -> i32 {
        i32::try_from(time.get().div_euclid(self.period_ms())).unwrap_or(i32::MAX)
    }

    /// When a blob's period begins.
    fn base(self, period: i32) -> UnixMillis {
        UnixMillis::new(i64::from(period).saturating_mul(self.period_ms()))
    }
}

/// What was written to the card, and over how long. Counted in pages of 4 KiB, as a page cache writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wear {
    /// Bytes.
    pub bytes: u64,
    /// The time over which they were written, as far as the store was open.
    pub over: Duration,
}

impl Wear {
    /// Bytes a day. None when less than ten minutes are known.
    #[must_use]
    pub fn bytes_a_day(&self) -> Option<u64> {
        let day = u128::from(self.bytes) * 86_400_000;
        let known = self.over >= Duration::from_secs(600);
        known.then(|| u64::try_from(day / self.over.as_millis().max(1)).unwrap_or(u64::MAX))
    }

    fn bytes(self) -> Vec<u8> {
        let millis = u64::try_from(self.over.as_millis()).unwrap_or(u64::MAX);
        [self.bytes.to_le_bytes(), millis.to_le_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk::<8>()?;
        let over = Duration::from_millis(u64::from_le_bytes(rest.try_into().ok()?));
        Some(Self { bytes: u64::from_le_bytes(*first), over })
    }
}

/// Figures of a store, for people and for tests. Those that count since the start only rise: what one commit or one scan did
/// is their difference.
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
    /// Chunks sealed since the start.
    pub chunks: u64,
    /// Head batches not yet compacted.
    pub head_batches: usize,
    /// Commits since the start.
    pub commits: u64,
    /// Of these, commits that wrote the store's file and not the log alone.
    pub file_commits: u64,
    /// Entries sealed since the start.
    pub sealed_entries: u64,
    /// Buckets rolled up since the start.
    pub buckets: u64,
    /// Chunks, late readings and blobs deleted since the start, for their age or for size.
    pub deleted: u64,
    /// Bytes written since the start, in pages of 4 KiB, as the store counts them.
    pub written: u64,
    /// The same over the life of the store, as of the last hour.
    pub wear: Wear,
    /// Bytes written to the block device since the machine was started, by everybody. None where that cannot be read.
    pub device_written: Option<u64>,
    /// Bytes that the newest entries take in memory.
    pub recent_bytes: usize,
}

/// Why stored bytes cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A head batch.
    Batch(BadBatch),
    /// A sealed chunk.
    Chunk(BadChunk),
    /// Rolled-up buckets.
    Blob(BadBlob),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(why) => why.fmt(f),
            Self::Chunk(why) => why.fmt(f),
            Self::Blob(why) => why.fmt(f),
        }
    }
}

impl From<BadBatch> for Damage {
    fn from(why: BadBatch) -> Self {
        Self::Batch(why)
    }
}

impl From<BadChunk> for Damage {
    fn from(why: BadChunk) -> Self {
        Self::Chunk(why)
    }
}

impl From<BadBlob> for Damage {
    fn from(why: BadBlob) -> Self {
        Self::Blob(why)
    }
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
    /// A read still holds the file that failed; it can be opened again when that read is over.
    Reopening,
    /// The file is something else.
    NotAStore,
    /// The disk failed or is full.
    Disk(Box<redb::Error>),
    /// The file is so damaged that redb cannot read on.
    Broken,
    /// The log beside the file does not have what the file says that it has.
    Log(std::io::Error),
    /// The file is damaged beyond what redb can repair. It is left as it is.
    BeyondRepair(Box<redb::Error>),
    /// Something in the file is damaged; the rest is not.
    Damaged {
        /// What, in words.
        what: String,
        /// How.
        why: Damage,
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
    /// A backup is being made already.
    BackupRunning,
    /// A backup took longer than one may.
    BackupTooSlow,
    /// A backup broke off.
    Backup(Box<backup::BackupError>),
}

impl StoreError {
    /// Whether the file itself is at fault, and stays so until somebody moves it away.
    #[must_use]
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::BeyondRepair(_) | Self::Broken | Self::Log(_) | Self::NotAStore | Self::BadRecord { .. })
    }

    fn opening(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            other => Self::of(other.into()),
        }
    }

    fn of(error: redb::Error) -> Self {
        match error {
            redb::Error::Corrupted(_) | redb::Error::RepairAborted => Self::BeyondRepair(Box::new(error)),
            // What redb says of a file that does not begin as its own do.
            redb::Error::Io(ref io) if io.kind() == std::io::ErrorKind::InvalidData => Self::NotAStore,
            // It is shorter than what it says of itself.
            redb::Error::Io(ref io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::BeyondRepair(Box::new(error))
            }
            other => Self::Disk(Box::new(other)),
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
            Self::Reopening => f.write_str("the store's file is about to be opened again after an error"),
            Self::NotAStore => f.write_str("the file is not a wattd store; move it away, or give another data_dir"),
            Self::Disk(error) => match error.as_ref() {
                redb::Error::Io(why) if why.kind() == std::io::ErrorKind::InvalidData => {
                    write!(f, "the file is not a wattd store ({why}); move it away, or give another data_dir")
                }
                error => write!(f, "the store's file: {error}"),
            },
            Self::Broken => {
                f.write_str("the file is damaged; move it away (what is in it is not lost yet) and restore a copy")
            }
            Self::Log(error) => write!(
                f,
                "{error}; put the log that belongs to the file beside it, or save what the file has: `wattd backup`, then `wattd restore --force`"
            ),
            Self::BeyondRepair(error) => {
                write!(f, "the store's file is damaged beyond repair and was left as it is: {error}")
            }
            Self::Damaged { what, why } => write!(f, "{what} in the store is left out: {why}"),
            Self::BadRecord { device } => {
                write!(f, "the record of device {} in the store cannot be read", device.get())
            }
            Self::System(error) => write!(f, "{error}"),
            Self::ThreadGone => f.write_str("the store's thread has ended"),
            Self::BackupRunning => f.write_str("a backup is being made already"),
            Self::BackupTooSlow => write!(f, "the backup was not fetched within {:?}", limits::BACKUP_TIME),
            Self::Backup(error) => write!(f, "the backup broke off: {error}"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Disk(error) | Self::BeyondRepair(error) => Some(error.as_ref()),
            Self::System(error) | Self::Log(error) => Some(error),
            _ => None,
        }
    }
}

macro_rules! disk_errors {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::of(error.into())
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

/// How the store keeps house.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// How long single readings are kept; for ever when none.
    pub raw: Option<Duration>,
    /// How long buckets of 15 minutes are kept.
    pub quarter_hour: Option<Duration>,
    /// How long buckets of an hour are kept.
    pub hour: Option<Duration>,
    /// The most bytes that sealed readings may take.
    pub max_size: Option<u64>,
}

/// The executor's side of the store. Cheap calls touch memory only; `async` ones wait for a store thread.
pub struct Store {
    memory: RefCell<Memory>,
    file: Arc<File>,
    keeping: Keeping,
    id: StoreId,
    /// Held by the one commit that is under way.
    commit: Mutex<()>,
    committer: Worker,
    reader: Worker,
    /// Whether a backup is being made.
    backing_up: Arc<AtomicBool>,
    /// Takes how commits and reads went.
    stats: Rc<Stats>,
}

/// A backup on its way, piece by piece; it ends with the last one, or with an error.
pub type Pieces = Receiver<Result<Vec<u8>, StoreError>>;

/// The writing end of [`Pieces`].
struct PieceWriter {
    pieces: Sender<Result<Vec<u8>, StoreError>>,
    piece: Vec<u8>,
    /// Given back at the end, however it comes.
    backing_up: Arc<AtomicBool>,
}

impl std::io::Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend(bytes);
        if self.piece.len() >= limits::STREAM_CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.send_blocking(Ok(piece)).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        self.backing_up.store(false, Ordering::Release);
    }
}

/// A batch on its way to the disk. It is repeated unchanged until the disk has it.
#[derive(Clone)]
struct Outgoing {
    number: BatchNumber,
    items: Arc<Vec<Item>>,
}

/// Which state of some devices an answer shows. Another one means that the answer may be another; the same one, in the same
/// run of the program or a later one, that it is not. Ask for it before the answer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataVersion(u64);

impl DataVersion {
    /// As a number, to be compared for equality.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A device and what is going on with it.
struct Kept {
    device: Device,
    live: Live,
    latest: Option<Reading>,
    recent: Recent,
    /// The number of its last change, and of the last one that was more than a reading in order of time.
    changed: u64,
    disturbed: u64,
}

impl Kept {
    fn new(device: Device) -> Self {
        let recent = Recent::new(device.number, None);
        Self { device, live: Live::default(), latest: None, recent, changed: 0, disturbed: 0 }
    }
}

#[derive(Default)]
struct Memory {
    /// By number.
    devices: Vec<Kept>,
    numbers: HashMap<DeviceId, DeviceNumber>,
    /// Devices whose record the file does not have yet in this form.
    changed: BTreeSet<DeviceNumber>,
    /// Entries that no batch has taken yet, in order of arrival.
    pending: VecDeque<Item>,
    outgoing: Option<Outgoing>,
    journal: Option<Journal>,
    /// Readings found in the head whose time was sealed before they came; the next commit makes sure that they stay.
    late: Vec<Item>,
    /// Changes so far. It begins with a random number, so that two runs have none in common.
    changes: u64,
    /// Every committed head batch.
    batches: Arc<Batches>,
    next_batch: BatchNumber,
    /// Events that no commit covers.
    events: event::Pending,
    /// When it was last looked what is too old.
    expired: Option<UnixMillis>,
    /// The last commit.
    committed: Option<UnixMillis>,
    /// What was written before this start.
    worn: Wear,
    figures: Figures,
}

/// The longest time one batch may span, in milliseconds, so that a scan knows how far back a batch can reach that overlaps
/// its range.
const BATCH_SPAN: i64 = 3_600_000;

/// How often it is looked what is too old, in milliseconds.
const EXPIRE_EVERY: i64 = 3_600_000;

impl Store {
    /// Opens the store, or makes a new one. Blocks; for the start of the program.
    ///
    /// # Errors
    /// [`StoreError`] with what to do about it.
    pub fn open(disk: Disk, keeping: Keeping) -> Result<Self, StoreError> {
        let mut memory = Memory { changes: fastrand::u64(..u64::MAX / 4), ..Memory::default() };
        let (file, contents) = File::open(disk, |contents, item| memory.recall(contents, &item))?;
        memory.worn = contents.wear;
        memory.figures.wear = contents.wear;
        memory.figures.device_written = file.device_written();
        memory.figures.readings += contents.late;
        memory.know(contents.devices);
        for (batch, why) in &contents.damaged {
            let what = format!("batch {}", batch.get());
            log::error!("{}", StoreError::Damaged { what, why: (*why).into() });
        }
        let id = contents.store_id;
        memory.batches = Arc::new(contents.batches);
        memory.next_batch = contents.next_batch;
        memory.figures.batches = contents.next_batch.0;
        Ok(Self {
            memory: RefCell::new(memory),
            file: Arc::new(file),
            keeping,
            id,
            commit: Mutex::new(()),
            committer: Worker::start("wattd-commit").map_err(StoreError::System)?,
            reader: Worker::start("wattd-read").map_err(StoreError::System)?,
            backing_up: Arc::default(),
            stats: Rc::default(),
        })
    }

    /// Where it is noted how commits and reads go, and whatever others have to note.
    #[must_use]
    pub const fn stats(&self) -> &Rc<Stats> {
        &self.stats
    }

    /// Takes back what a killed program left in the journal in `dir`, and goes on writing it. Returns how many entries were
    /// saved.
    ///
    /// # Errors
    /// When `dir` is not in memory or cannot be written; the store then goes on without a journal.
    pub fn keep_journal(&self, dir: &Path) -> std::io::Result<usize> {
        let (journal, found) = Journal::open(dir, self.id)?;
        let mut memory = self.memory.borrow_mut();
        let before = memory.pending.len();
        for entry in found {
            let known = memory.kept(entry.id).and_then(|kept| kept.live.last_time());
            // What the batch that was next holds is on disk if that batch is; what is later than all on disk is not.
            if entry.next_batch >= memory.next_batch || known.is_none_or(|known| entry.item.time() > known) {
                memory.append(entry.id, entry.item.stored);
            }
        }
        memory.journal = Some(journal);
        memory.restart_journal();
        Ok(memory.pending.len() - before)
    }

    /// Keeps what a plug says of itself and where it answered; new facts reach the disk with the next commit.
    pub fn remember(&self, facts: &PlugFacts, address: SocketAddr, seen: UnixMillis) {
        let mut memory = self.memory.borrow_mut();
        let plug = PlugRecord { facts: facts.clone(), address };
        let number = memory.number_of(DeviceId::plug(facts.mac), seen);
        let Some(kept) = memory.devices.get_mut(number.index()) else { return };
        let old = kept.device.record.plug.replace(plug.clone());
        let changed = old.as_ref() != Some(&plug);
        if changed {
            memory.changed.insert(number);
            memory.note_change(number, true);
        }
        for id in facts.metered_ids() {
            let number = memory.number_of(id, seen);
            if changed {
                memory.note_change(number, true);
            }
        }
        for (outlet, what) in old.map_or_else(Vec::new, |old| event::changes(&old.facts, facts)) {
            let device = Some(memory.number_of(DeviceId { plug: facts.mac, outlet }, seen));
            memory.events.push(Event { time: seen, device, what });
        }
    }

    /// Takes a reading of a device that is polled every `interval`. It is seen by reads at once and durable after the next
    /// commit.
    ///
    /// When the disk has taken nothing for so long that memory is full, the oldest entry of the same device goes, and is
    /// counted.
    pub fn append(&self, id: DeviceId, reading: Reading, interval: Duration) {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        self.memory.borrow_mut().append(id, Stored { entry: Entry::Reading(reading), interval_ms });
    }

    /// Shows a reading as the device's newest without keeping it: its time is not known yet.
    pub fn show(&self, id: DeviceId, reading: Reading) {
        let mut memory = self.memory.borrow_mut();
        let number = memory.number_of(id, reading.time);
        if let Some(kept) = memory.devices.get_mut(number.index()) {
            kept.latest = Some(reading);
            memory.note_change(number, false);
        }
    }

    /// The time of the newest entry of any device.
    #[must_use]
    pub fn newest_time(&self) -> Option<UnixMillis> {
        self.memory.borrow().devices.iter().filter_map(|kept| kept.live.last_time()).max()
    }

    /// Notes that a device was not observed from `from` until its next reading.
    pub fn gap(&self, id: DeviceId, from: UnixMillis) {
        let mut memory = self.memory.borrow_mut();
        let kept = memory.numbers.get(&id).and_then(|number| memory.devices.get(number.index()));
        // Nothing was being observed, or something was read since: there is no gap there.
        let Some(interval_ms) = kept.and_then(|kept| kept.live.gap_may_begin(from)) else { return };
        memory.append(id, Stored { entry: Entry::Gap { time: from }, interval_ms });
    }

    /// Makes everything appended so far durable, and compacts a little. Returns how many readings became durable. Dropping
    /// the future loses nothing; a second commit waits for the first. `now` is the wall clock's time.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is lost, the next commit tries again with the same batch.
    pub async fn commit(&self, now: UnixMillis) -> Result<usize, StoreError> {
        let _only_one = self.commit.lock().await;
        let mut committed = 0;
        loop {
            let Some(commit) = self.memory.borrow_mut().next_commit(&self.keeping, now) else { return Ok(committed) };
            let (file, commit) = (self.file.clone(), Arc::new(commit));
            let watch = Stopwatch::default();
            let written = {
                let commit = commit.clone();
                self.committer.run(move || file.commit(&commit)).await
            };
            let written = written.map_err(StoreError::from).flatten();
            self.note_commit(watch.elapsed(), &commit, written.as_ref());
            let done = written?;
            let mut memory = self.memory.borrow_mut();
            memory.outgoing = None;
            memory.late.clear();
            memory.note_commit(&done, now);
            memory.events.forget(&commit.events);
            memory.note_written(&commit.devices);
            if let (Some((number, items)), Some(span)) = (&commit.batch, done.span) {
                Arc::make_mut(&mut memory.batches).insert((span.first, *number), span.last);
                let readings = items.iter().filter(|item| item.row().is_some()).count();
                memory.figures.batches += 1;
                memory.figures.readings += u64::try_from(readings).unwrap_or(0);
                committed += readings;
            }
            if commit.compaction.expiry.is_some() && !done.compacted.more_to_expire {
                memory.expired = Some(now);
            }
            memory.note_compacted(done.compacted);
            memory.restart_journal();
        }
    }

    fn note_commit(&self, took: Duration, commit: &Commit, written: Result<&Committed, &StoreError>) {
        let entries = commit.batch.as_ref().map_or(0, |(_, items)| items.len());
        self.stats.note(Operation::Commit, took, written.is_ok(), || match written {
            Ok(Committed { compacted, .. }) => format!(
                "{entries} entries, {} device records, {} chunks sealed, {} head batches dropped",
                commit.devices.len(),
                compacted.chunks,
                compacted.dropped.len()
            ),
            Err(error) => format!("{entries} entries: {error}"),
        });
        if let Ok(Committed { compacted, sealing, .. }) = written
            && compacted.chunks > 0
        {
            let did = || format!("{} chunks of {} devices", compacted.chunks, compacted.tails.len());
            self.stats.note(Operation::Seal, *sealing, true, did);
        }
    }

    /// Reads the file on the reading thread, and notes how long that took and what it touched.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<(T, Touched), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (file, watch) = (self.file.clone(), Stopwatch::default());
        let read = self.reader.run(move || work(&file)).await.map_err(StoreError::from).flatten();
        self.stats.note(Operation::Query, watch.elapsed(), read.is_ok(), || match &read {
            Ok((_, touched)) => touched.to_string(),
            Err(error) => error.to_string(),
        });
        read.map(|(found, _)| found)
    }

    /// Every device, in order of number.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.memory.borrow().devices.iter().map(|kept| kept.device.clone()).collect()
    }

    /// A device's number.
    #[must_use]
    pub fn number(&self, id: DeviceId) -> Option<DeviceNumber> {
        self.memory.borrow().numbers.get(&id).copied()
    }

    /// The id behind a number.
    #[must_use]
    pub fn id(&self, number: DeviceNumber) -> Option<DeviceId> {
        self.memory.borrow().devices.get(number.index()).map(|kept| kept.device.record.id)
    }

    /// The reading of a device that arrived last, committed or not. After a step of the wall clock its time may be
    /// earlier than that of others.
    #[must_use]
    pub fn latest(&self, id: DeviceId) -> Option<Reading> {
        self.memory.borrow().kept(id).and_then(|kept| kept.latest)
    }

    /// All energy that a device has drawn since it was first seen: it never falls, whatever its own counter does. None for
    /// a device without readings.
    #[must_use]
    pub fn total(&self, id: DeviceId) -> Option<MilliwattHours> {
        self.memory.borrow().kept(id).filter(|kept| kept.latest.is_some()).map(|kept| kept.live.total())
    }

    /// How full the store is.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let memory = self.memory.borrow();
        let pending = memory.uncommitted().filter(|item| item.row().is_some()).count();
        let recent_bytes = memory.devices.iter().map(|kept| kept.recent.bytes()).sum();
        Figures { pending, head_batches: memory.batches.len(), recent_bytes, ..memory.figures }
    }

    /// The version of what the store says of `ids` before `to`. Cheap: it touches one number of each device.
    ///
    /// It changes with every reading of one of them, with what arrives late, is sealed, deleted or learnt of a plug. For a
    /// range that all of them have left behind, readings that go on in order do not count: an answer about last week stays
    /// what it was. What depends on the time of asking (how long the last reading has held) is not in it.
    #[must_use]
    pub fn version(&self, ids: &[DeviceId], to: UnixMillis) -> DataVersion {
        let memory = self.memory.borrow();
        let kept = || ids.iter().filter_map(|id| memory.kept(*id));
        let is_past = |kept: &Kept| kept.live.last_time().is_some_and(|last| to <= quarter_hour(last));
        let is_settled = kept().all(is_past);
        let last = kept().map(|kept| if is_settled { kept.disturbed } else { kept.changed }).max();
        // A version of settled state is never one of a state that goes on.
        DataVersion(last.unwrap_or(memory.changes) << 1 | u64::from(is_settled))
    }

    /// One page of a scan. Recent rows come from memory, whatever the disk does.
    ///
    /// # Errors
    /// [`StoreError`] when the file is needed and cannot be read. What is damaged is left out and logged.
    pub async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let watch = Stopwatch::default();
        // A commit that ends before the file is read seals some of what is in memory: a row seen twice is shown once.
        let in_memory = {
            let memory = self.memory.borrow();
            let devices = scan.devices.iter().filter_map(|number| memory.devices.get(number.index()));
            InMemory::of(devices.map(|kept| &kept.recent), &scan)
        };
        if let Some(page) = in_memory.page(&scan) {
            let rows = page.rows.len();
            self.stats.note(Operation::Query, watch.elapsed(), true, || format!("{rows} rows from memory"));
            return Ok(page);
        }
        self.read(move |file| {
            let page = file.scan(&scan, &in_memory)?;
            let touched = page.touched;
            Ok((page, touched))
        })
        .await
    }

    /// Everything that is committed now, as [`backup`] writes it, while recording goes on. It is read on a thread of its own,
    /// no faster than the pieces are taken; dropping them ends it. One at a time.
    ///
    /// # Errors
    /// [`StoreError::BackupRunning`], or [`StoreError::System`] without a thread.
    pub fn back_up(&self) -> Result<Pieces, StoreError> {
        if self.backing_up.swap(true, Ordering::AcqRel) {
            return Err(StoreError::BackupRunning);
        }
        let (pieces, taken) = bounded(2);
        let mut writer = PieceWriter { pieces, piece: Vec::new(), backing_up: self.backing_up.clone() };
        let file = self.file.clone();
        let work = move || {
            if let Err(error) = file.back_up(&mut writer) {
                let _ = writer.pieces.send_blocking(Err(StoreError::Backup(Box::new(error)))); // nobody may listen
            }
        };
        thread::Builder::new().name("wattd-backup".to_owned()).spawn(work).map_err(StoreError::System)?;
        Ok(taken)
    }

    /// The buckets of a device that begin in `[from, to)`, in order of time: of `tier` as far as entries are sealed, and
    /// quarter hours from there on, the last one as of `now`. All of them are in memory at once: 64 days of quarter hours take
    /// 0.6 MB, and longer ranges are read by [`Store::bucket_page`].
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read. What is damaged is left out and logged.
    pub async fn buckets(
        &self,
        id: DeviceId,
        tier: Tier,
        from: UnixMillis,
        to: UnixMillis,
        now: UnixMillis,
    ) -> Result<Vec<Bucket>, StoreError> {
        let BucketPage { mut buckets, mut next } = self.bucket_page(id, tier, from, to, now).await?;
        while let Some(from) = next {
            let page = self.bucket_page(id, tier, from, to, now).await?;
            buckets.extend(page.buckets);
            next = page.next;
        }
        Ok(buckets)
    }

    /// The first of the buckets that [`Store::buckets`] gives, about [`limits::PAGE_BUCKETS`], and where to go on.
    ///
    /// # Errors
    /// As for [`Store::buckets`].
    pub async fn bucket_page(
        &self,
        id: DeviceId,
        tier: Tier,
        from: UnixMillis,
        to: UnixMillis,
        now: UnixMillis,
    ) -> Result<BucketPage, StoreError> {
        let asked = {
            let memory = self.memory.borrow();
            memory.numbers.get(&id).copied().zip(memory.kept(id).map(|kept| kept.live.buckets(now)))
        };
        let Some((number, live)) = asked else { return Ok(BucketPage::default()) };
        self.read(move |file| {
            let page = file.buckets(number, tier, from, to, live)?;
            let touched = Touched::of_rows(page.buckets.len());
            Ok((page, touched))
        })
        .await
    }
}

impl Store {
    /// Where in `[from, to)` the buckets of `ids` begin when read in `order`, told without reading them: ascending, no
    /// bucket begins before it; descending, none at or after it. None when there is none. `now` is as in
    /// [`Store::buckets`].
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn first_bucket(
        &self,
        ids: &[DeviceId],
        order: Order,
        (from, to): (UnixMillis, UnixMillis),
        now: UnixMillis,
    ) -> Result<Option<UnixMillis>, StoreError> {
        let (numbers, live) = {
            let memory = self.memory.borrow();
            let numbers: Vec<_> = ids.iter().filter_map(|id| memory.numbers.get(id).copied()).collect();
            let buckets = ids.iter().filter_map(|id| memory.kept(*id)).flat_map(|kept| kept.live.buckets(now));
            let starts = buckets.map(|bucket| bucket.start).filter(|start| (from..to).contains(start));
            let live = match order {
                Order::Ascending => starts.min(),
                Order::Descending => starts.max().map(|start| start.plus(1)),
            };
            (numbers, live)
        };
        let stored =
            self.read(move |file| Ok((file.first_bucket(&numbers, order, from, to)?, Touched::default()))).await?;
        Ok(match order {
            Order::Ascending => stored.into_iter().chain(live).min(),
            Order::Descending => stored.into_iter().chain(live).max(),
        })
    }
}

impl Memory {
    fn kept(&self, id: DeviceId) -> Option<&Kept> {
        self.numbers.get(&id).and_then(|number| self.devices.get(number.index()))
    }

    /// Takes the devices of a file that is being opened.
    fn know(&mut self, devices: Vec<file::Known>) {
        for file::Known { device, tail, newest, last, recent, complete_after } in devices {
            self.numbers.insert(device.record.id, device.number);
            self.figures.readings += tail.state.readings;
            let mut kept = Kept {
                live: Live::after(&tail, last),
                latest: newest,
                recent: Recent::new(device.number, complete_after),
                ..Kept::new(device)
            };
            recent.iter().for_each(|stored| kept.recent.push(stored));
            let number = kept.device.number;
            self.devices.push(kept);
            self.note_change(number, true);
        }
    }

    /// Takes an entry of the head of a file that is being opened.
    fn recall(&mut self, contents: &mut file::Contents, item: &Item) {
        self.know(std::mem::take(&mut contents.devices));
        let Some(kept) = self.devices.get_mut(item.device.index()) else { return };
        if kept.device.record.first_seen == UnixMillis::MAX {
            // A record that was made again, of a device of which nothing is sealed.
            kept.device.record.first_seen = item.time();
            self.changed.insert(item.device);
        }
        let is_open = kept.live.recall(&item.stored);
        if is_open || item.late {
            kept.recent.push(&item.stored);
        }
        if let Some(row) = item.row() {
            kept.latest = Some(row.reading);
            self.figures.readings += u64::from(is_open);
        }
        if item.late && !is_open {
            self.late.push(*item);
        }
    }

    fn number_of(&mut self, id: DeviceId, seen: UnixMillis) -> DeviceNumber {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let number = DeviceNumber(u32::try_from(self.devices.len()).unwrap_or(u32::MAX));
        let device = Device { number, record: Record { id, first_seen: seen, plug: None } };
        self.devices.push(Kept::new(device));
        self.numbers.insert(id, number);
        self.changed.insert(number);
        self.note_change(number, true);
        number
    }

    /// Something changed that answers about a device may show; `disturbs`: also answers about times long past.
    fn note_change(&mut self, number: DeviceNumber, disturbs: bool) {
        self.changes = self.changes.wrapping_add(1);
        if let Some(kept) = self.devices.get_mut(number.index()) {
            kept.changed = self.changes;
            if disturbs {
                kept.disturbed = self.changes;
            }
        }
    }

    fn append(&mut self, id: DeviceId, stored: Stored) {
        let device = self.number_of(id, stored.entry.time());
        let Some(kept) = self.devices.get_mut(device.index()) else { return };
        let (last, before) = (kept.live.last(), kept.latest);
        if let Entry::Reading(reading) = stored.entry {
            if before == Some(reading) {
                return; // the same once more
            }
            kept.latest = Some(reading);
        }
        let late = !kept.live.push(&stored);
        kept.recent.push(&stored);
        self.note_change(device, late);
        if !late {
            for what in event::between(last, before, &stored) {
                self.events.push(Event { time: stored.entry.time(), device: Some(device), what });
            }
        }
        if self.pending.len() >= limits::PENDING_READINGS {
            let oldest = self.pending.iter().position(|old| old.device == device).unwrap_or(0);
            if let Some(gone) = self.pending.remove(oldest)
                && let Some(kept) = self.devices.get_mut(gone.device.index())
            {
                kept.recent.remove(&gone.stored);
                self.note_change(gone.device, true);
            }
            self.figures.dropped += 1;
        }
        let item = Item { device, stored, late };
        self.pending.push_back(item);
        if let Some(journal) = &mut self.journal {
            journal.append(self.next_batch, id, &item);
        }
    }

    /// What the next commit writes: the batch under way if there is one, else a new one, the devices whose record the file
    /// lacks, and what is due to be compacted with it. None when nothing is new.
    fn next_commit(&mut self, keeping: &Keeping, now: UnixMillis) -> Option<Commit> {
        if self.outgoing.is_none() && !self.pending.is_empty() {
            let mut items = Vec::new();
            let (mut first, mut last) = (UnixMillis::MAX, UnixMillis::MIN);
            while let Some(item) = self.pending.front() {
                (first, last) = (first.min(item.time()), last.max(item.time()));
                if items.len() >= limits::BATCH_READINGS || last.since(first) > BATCH_SPAN {
                    break;
                }
                items.extend(self.pending.pop_front());
            }
            self.outgoing = Some(Outgoing { number: self.next_batch, items: Arc::new(items) });
            self.next_batch = BatchNumber(self.next_batch.0.saturating_add(1));
        }
        if self.outgoing.is_none() && self.changed.is_empty() && self.events.all().is_empty() {
            return None;
        }
        let devices = self.changed.iter().filter_map(|n| self.devices.get(n.index()).map(|kept| kept.device.clone()));
        Some(Commit {
            batch: self.outgoing.as_ref().map(|outgoing| (outgoing.number, outgoing.items.clone())),
            devices: devices.collect(),
            events: self.events.all().to_vec(),
            compaction: self.compaction(keeping, now),
            next: self.next_batch,
            wear: self.figures.wear,
        })
    }

    fn compaction(&self, keeping: &Keeping, now: UnixMillis) -> Compaction {
        let seal_before = now.plus(-compact::SEAL_AGE_MS);
        let is_due = |kept: &&Kept| kept.live.is_due(seal_before);
        let due: Vec<_> = self.devices.iter().filter(is_due).take(compact::DEVICES_A_RUN).collect();
        let due: Vec<_> = due
            .iter()
            .map(|kept| Due {
                device: kept.device.number,
                blocks: kept.recent.blocks(),
                later: self.pending_of(kept.device.number),
            })
            .collect();
        let is_other = |kept: &&Kept| due.iter().all(|due| due.device != kept.device.number);
        let others = self.devices.iter().filter(is_other);
        let outgoing = self.outgoing.iter().flat_map(|outgoing| outgoing.items.iter());
        let is_sealed = |item: &&Item| {
            let kept = self.devices.get(item.device.index());
            item.late && kept.is_some_and(|kept| kept.live.is_sealed(item.time()))
        };
        let before = |kept_for: Option<Duration>| {
            kept_for.map(|kept_for| now.plus(-i64::try_from(kept_for.as_millis()).unwrap_or(i64::MAX)))
        };
        let is_time = self.expired.is_none_or(|last| now.since(last).abs() >= EXPIRE_EVERY);
        Compaction {
            others_open_from: others.filter_map(|kept| kept.live.open_from()).min(),
            due,
            late: self.late.iter().chain(outgoing.filter(is_sealed)).copied().collect(),
            batches: self.batches.clone(),
            seal_before,
            expiry: is_time.then(|| Expiry {
                raw: before(keeping.raw),
                quarter_hour: before(keeping.quarter_hour),
                hour: before(keeping.hour),
                max_chunks: keeping.max_size.map(Expiry::chunks_in),
            }),
        }
    }

    /// What a commit did, and how much was written in what time.
    fn note_commit(&mut self, done: &Committed, now: UnixMillis) {
        let figures = &mut self.figures;
        figures.commits += 1;
        figures.file_commits += u64::from(done.in_file);
        figures.sealed_entries += done.compacted.sealed_entries;
        figures.buckets += done.compacted.buckets;
        figures.deleted += done.compacted.deleted_rows;
        figures.written = done.written;
        figures.device_written = done.device_written;
        let since = self.committed.replace(now).map_or(0, |last| now.since(last));
        // A step of the clock is no time that has passed.
        let passed = u64::try_from(since).unwrap_or(0);
        if passed <= 3_600_000 {
            self.worn.over = self.worn.over.saturating_add(Duration::from_millis(passed));
        }
        figures.wear = Wear { bytes: self.worn.bytes.saturating_add(done.written), over: self.worn.over };
    }

    /// The file has these records now; a device that changed again meanwhile is still to be written.
    fn note_written(&mut self, written: &[Device]) {
        for device in written {
            if self.devices.get(device.number.index()).is_some_and(|kept| kept.device == *device) {
                self.changed.remove(&device.number);
            }
        }
    }

    fn note_compacted(&mut self, compacted: Compacted) {
        self.figures.chunks += compacted.chunks;
        if !compacted.dropped.is_empty() {
            let batches = Arc::make_mut(&mut self.batches);
            for key in &compacted.dropped {
                batches.remove(key);
            }
        }
        for (number, deleted_to) in compacted.deleted {
            if let Some(kept) = self.devices.get_mut(number.index())
                && let Some(sealed_to) = kept.live.sealed_to()
            {
                kept.recent.forget(deleted_to.min(sealed_to));
                self.note_change(number, true);
            }
        }
        for (number, standing) in compacted.tails {
            let later = self.pending_of(number);
            let Some(kept) = self.devices.get_mut(number.index()) else { continue };
            // The last entry may be sealed now; it still says whether a gap may begin.
            let sealed_to = standing.tail.sealed_to;
            let last = kept.live.last().filter(|last| sealed_to.is_some_and(|to| last.entry.time() <= to));
            let mut live = Live::after(&standing.tail, last);
            for stored in &standing.open {
                live.recall(stored);
            }
            live.learn_chunk();
            // What arrived while the commit ran.
            for item in self.pending.iter().filter(|item| item.device == number) {
                live.recall(&item.stored);
            }
            kept.live = live;
            kept.recent.give_up(sealed_to, later);
            self.note_change(number, true);
        }
    }

    /// The journal forgets what is on disk.
    fn restart_journal(&mut self) {
        let Some(mut journal) = self.journal.take() else { return };
        let devices = &self.devices;
        let named = |item: &'_ Item| devices.get(item.device.index()).map(|kept| kept.device.record.id);
        let outgoing = self.outgoing.iter().flat_map(|outgoing| outgoing.items.iter());
        let entries = outgoing.chain(&self.pending).filter_map(|item| named(item).map(|id| (id, item)));
        journal.restart(self.next_batch, entries);
        self.journal = Some(journal);
    }

    /// Entries of a device that no batch has taken yet.
    fn pending_of(&self, number: DeviceNumber) -> usize {
        self.pending.iter().filter(|item| item.device == number).count()
    }

    fn uncommitted(&self) -> impl Iterator<Item = Item> + '_ {
        let outgoing = self.outgoing.iter().flat_map(|outgoing| outgoing.items.iter());
        outgoing.chain(&self.pending).copied()
    }
}
