//! The store's file: redb behind one door. Blocking; called on the store's own threads, and at start.
//!
//! Owns the tables and their encodings:
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | `format`: u16; `store_id`: 16 bytes; `log`: a [`headlog::Mark`]; `wear`: u64 bytes, u64 ms |
//! | `device` | device number | a [`row`]: postcard [`Record`] |
//! | `device_id` | public id, `9c5322aabbcc.0` | device number |
//! | `head` | batch sequence | one [`batch`] that is not in the [`headlog`]; the newest stays, for its number |
//! | `tail` | device number | a [`row`]: i64 time up to which entries are sealed, postcard [`TailState`] |
//! | `sealed` | device number, time of the first entry | one [`chunk`] |
//! | `late` | device number, time | a reading that came out of order and after its time was sealed: a batch of one |
//! | `rollup` | tier, device number, period | the buckets of one UTC day or week as one blob |
//! | `event` | time, rank | an [`event`] |
//!
//! A record or tail that is damaged is made again when the file is opened, see [`mend`].
//!
//! After an error redb's handle answers nothing more, so it is dropped, and the next call opens the file anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::backup::{self, BackupError};
use super::batch::{self, BadBatch, Span};
use super::chunk::{self, Columns, Stored};
use super::compact::{self, Compacted, Compaction, Expiry};
use super::disk::{Counted, Disk};
use super::event::{self, EVENT, Event, EventPage, EventScan};
use super::headlog::{self, Appended, Log, Mark};
use super::journal::StoreId;
use super::mend;
use super::recent::KEEP;
use super::replay;
use super::scan::{self, InMemory};
use super::{
    BatchNumber, BucketPage, Device, DeviceNumber, Item, Order, Page, Record, Scan, StoreError, Tier, Touched, Wear,
};
use crate::clock::Stopwatch;
use crate::limits;
use crate::reading::{Entry, Reading};
use crate::rollup::{Bucket, Fold};
use crate::units::UnixMillis;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const DEVICE: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("device");
pub(super) const DEVICE_ID: TableDefinition<'_, &str, u32> = TableDefinition::new("device_id");
pub(super) const HEAD: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("head");
pub(super) const TAIL: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("tail");
pub(super) const SEALED: TableDefinition<'_, (u32, i64), &[u8]> = TableDefinition::new("sealed");
pub(super) const LATE: TableDefinition<'_, (u32, i64), &[u8]> = TableDefinition::new("late");
pub(super) const ROLLUP: TableDefinition<'_, (u8, u32, i32), &[u8]> = TableDefinition::new("rollup");

/// The format this program writes. A file with a higher one is refused. One of format 1 has no log: it gets one when it is
/// opened, and is of format 2 from then on, so that a program that knows of no log does not pass over what is in it.
pub const FORMAT: u16 = 2;
/// How a [`row`] begins, and how one began before rows had a checksum. No single bit makes one of the other.
const SUMMED: u8 = 2;
const UNSUMMED: u8 = 1;

/// Head batches by the time of their first entry and their number, with the time of their last entry.
pub type Batches = BTreeMap<(UnixMillis, BatchNumber), UnixMillis>;

/// Where a device's sealed entries end, and what was known of its energy there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The time of the last sealed entry. None before the first chunk.
    pub sealed_to: Option<UnixMillis>,
    /// What of it stands in the file beside the time.
    pub state: TailState,
}

/// The larger part of a [`Tail`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailState {
    /// Energy and the unfinished bucket, as of the last sealed entry.
    pub fold: Fold,
    /// Readings sealed so far.
    pub readings: u64,
    /// Entries in the last chunk: the next one will take about as many.
    pub chunk_entries: u32,
}

impl Tail {
    pub(super) fn read(device: DeviceNumber, bytes: &[u8]) -> Result<Self, StoreError> {
        let parts = content(device, bytes)?.split_first_chunk::<8>();
        let (time, state) = parts.ok_or(StoreError::BadRecord { device })?;
        let state = postcard::from_bytes(state).map_err(|_| StoreError::BadRecord { device })?;
        Ok(Self { sealed_to: Some(UnixMillis::new(i64::from_le_bytes(*time))), state })
    }

    /// The bytes for the `tail` table. None before the first chunk.
    pub(super) fn bytes(&self, device: DeviceNumber) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(sealed_to) = self.sealed_to else { return Ok(None) };
        let time = sealed_to.get().to_le_bytes().to_vec();
        let content = postcard::to_extend(&self.state, time).map_err(|_| StoreError::BadRecord { device })?;
        Ok(Some(row(device, &content)))
    }
}

/// A value of `device` or `tail`: [`SUMMED`], u32 CRC-32 of the device number and the content, the content.
fn row(device: DeviceNumber, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![SUMMED];
    bytes.extend(row_sum(device, content).to_le_bytes());
    bytes.extend(content);
    bytes
}

fn row_sum(device: DeviceNumber, content: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&device.get().to_le_bytes());
    sum.update(content);
    sum.finalize()
}

/// The content of a [`row`].
fn content(device: DeviceNumber, bytes: &[u8]) -> Result<&[u8], StoreError> {
    let content = match bytes.split_first() {
        Some((&UNSUMMED, content)) => Some(content),
        Some((&SUMMED, rest)) => rest
            .split_first_chunk::<4>()
            .filter(|(sum, content)| u32::from_le_bytes(**sum) == row_sum(device, content))
            .map(|(_, content)| content),
        _ => None,
    };
    content.ok_or(StoreError::BadRecord { device })
}

/// A device's tail; the default for one that has nothing sealed.
pub(super) fn tail(table: &impl ReadableTable<u32, &'static [u8]>, device: DeviceNumber) -> Result<Tail, StoreError> {
    let bytes = table.get(device.get())?;
    bytes.map_or(Ok(Tail::default()), |bytes| Tail::read(device, bytes.value()))
}

/// The open file, or the way to open it again, and the log.
pub struct File {
    disk: Disk,
    open: Mutex<Handle>,
    log: Mutex<Logged>,
    /// Bytes written to both.
    written: Arc<AtomicU64>,
}

/// The log as one commit at a time sees it.
#[derive(Default)]
struct Logged {
    /// None: this disk has none, or no room for one.
    log: Option<Log>,
    /// A commit of the file failed: it may have its mark nevertheless, so that the next one must go there too.
    unsure: bool,
}

enum Handle {
    Closed,
    Open(Arc<Database>),
    /// Given up after an error; whoever still reads with it must end first.
    Failed(Weak<Database>),
}

/// What is sealed of a device when the file is opened.
pub struct Known {
    /// The device.
    pub device: Device,
    /// Where its sealed entries end.
    pub tail: Tail,
    /// The newest reading of its last chunk.
    pub newest: Option<Reading>,
    /// The last entry of its last chunk.
    pub last: Option<Stored>,
    /// Its newest sealed entries, in order of time, then those of them that came late.
    pub recent: Vec<Stored>,
    /// All that the file has after this time is in `recent`. None when nothing was ever sealed.
    pub complete_after: Option<UnixMillis>,
}

/// What a file holds when it is opened.
#[derive(Default)]
pub struct Contents {
    /// The store's identity.
    pub store_id: StoreId,
    /// Every device, in order of number.
    pub devices: Vec<Known>,
    /// Readings that came after their time was sealed.
    pub late: u64,
    /// Every head batch.
    pub batches: Batches,
    /// The number after the highest in the head.
    pub next_batch: BatchNumber,
    /// What was written over the life of the store.
    pub wear: Wear,
    /// Head batches that could not be read, and why. They stay where they are.
    pub damaged: Vec<(BatchNumber, BadBatch)>,
}

/// What a commit writes.
pub struct Commit {
    /// The new batch and its number. One that is already there is left as it is.
    pub batch: Option<(BatchNumber, Arc<Vec<Item>>)>,
    /// Devices whose record is new.
    pub devices: Vec<Device>,
    /// What happened since the last commit.
    pub events: Vec<Event>,
    /// What to seal, roll up and delete in the same transaction.
    pub compaction: Compaction,
    /// The number that the next batch will have.
    pub next: BatchNumber,
    /// What was written so far; noted when it is looked what is too old.
    pub wear: Wear,
}

impl Commit {
    /// Whether it only adds readings.
    fn is_plain(&self) -> bool {
        self.devices.is_empty() && self.events.is_empty() && self.compaction.is_nothing()
    }
}

/// What a commit did.
pub struct Committed {
    /// Where the new batch lies in time.
    pub span: Option<Span>,
    /// What was sealed, rolled up and deleted.
    pub compacted: Compacted,
    /// Whether the file was written, and not the log alone.
    pub in_file: bool,
    /// Bytes written since the start.
    pub written: u64,
    /// Bytes written to the block device, by everybody.
    pub device_written: Option<u64>,
    /// How long sealing took.
    pub sealing: Duration,
}

impl File {
    /// Opens the file, or makes a new one, and reads what it holds. `visit` is given every entry of the head that is not
    /// sealed, in order of arrival.
    ///
    /// # Errors
    /// [`StoreError`] when it is in use, newer than this program, no store, or cannot be read.
    pub fn open(disk: Disk, visit: impl FnMut(&mut Contents, Item)) -> Result<(Self, Contents), StoreError> {
        let file = Self { disk, open: Mutex::new(Handle::Closed), log: Mutex::default(), written: Arc::default() };
        let logged = file.open_log()?;
        let contents = file.with(|database| read_contents(database, logged, visit))?;
        file.disk.opened();
        Ok((file, contents))
    }

    /// Opens the log that the file says it has, or makes one, and returns the batches in it.
    fn open_log(&self) -> Result<Vec<headlog::Found>, StoreError> {
        let (mark, next) = self.with(|database| Ok((read_mark(database)?, next_in_head(database)?)))?;
        let backend = self.disk.open_log().map_err(StoreError::System)?;
        let backend = backend.map(|inner| Box::new(Counted { inner, written: self.written.clone() }));
        let (log, found) = match (mark, backend) {
            (None, None) => return Ok(Vec::new()),
            (Some(_), None) => return Err(StoreError::Log(std::io::ErrorKind::NotFound.into())),
            (Some(mark), Some(backend)) => Log::open(backend, mark).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => StoreError::Log(error),
                _ => StoreError::of(redb::Error::Io(error)),
            })?,
            (None, Some(backend)) => {
                let id = fastrand::u128(..).to_le_bytes();
                let log = match Log::create(backend, self.disk.log_bytes(), id, next) {
                    Ok(log) => log,
                    Err(error) => {
                        log::warn!("no log beside the store ({error}): every commit writes the store's file");
                        return Ok(Vec::new());
                    }
                };
                self.with(|database| {
                    let write = database.begin_write()?;
                    {
                        let mut meta = write.open_table(META)?;
                        meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
                        meta.insert("log", log.mark().bytes().as_slice())?;
                    }
                    write.commit()?;
                    Ok(())
                })?;
                (log, Vec::new())
            }
        };
        if let Some(number) = log.beyond() {
            log::error!(
                "the log has lost a commit: it is left out with what followed, up to batch {} or later",
                number.get()
            );
        }
        self.log.lock().unwrap_or_else(PoisonError::into_inner).log = Some(log);
        Ok(found)
    }

    /// Bytes written to the block device since the machine was started, by everybody.
    pub fn device_written(&self) -> Option<u64> {
        self.disk.device_written()
    }

    /// Writes what is new, durably, and does what the compaction says in the same transaction. It can be repeated: what
    /// is there already stays as it is.
    ///
    /// # Errors
    /// [`StoreError`]; the handle is then dropped, and the next call opens the file again.
    pub fn commit(&self, commit: &Commit) -> Result<Committed, StoreError> {
        let mut logged = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |span, compacted, sealing, in_file| Committed {
            span,
            compacted,
            sealing,
            in_file,
            written: self.written.load(Ordering::Relaxed),
            device_written: self.disk.device_written(),
        };
        if commit.is_plain()
            && !logged.unsure
            && let Some(log) = &mut logged.log
            && let Some((number, items)) = &commit.batch
            && let Some((bytes, span)) = batch::encode(items)
        {
            let appended = log.append(*number, &bytes).map_err(|error| StoreError::of(redb::Error::Io(error)))?;
            if appended == Appended::Done {
                return Ok(done(Some(span), Compacted::default(), Duration::ZERO, false));
            }
        }
        let Logged { log, unsure } = &mut *logged;
        *unsure = true;
        let (span, compacted, sealing, mark) = self.with(|database| {
            let mut write = database.begin_write()?;
            write.set_quick_repair(is_large(database)?);
            let (span, compacted, sealing) = write_commit(&write, commit)?;
            let mark = log.as_ref().map(|log| {
                let batches = commit.compaction.batches.keys();
                let left: BTreeSet<_> =
                    batches.filter(|key| !compacted.dropped.contains(key)).map(|key| key.1).collect();
                log.next_mark(commit.next, |number| left.contains(&number))
            });
            if let Some(mark) = &mark {
                write.open_table(META)?.insert("log", mark.bytes().as_slice())?;
            }
            if commit.compaction.expiry.is_some() {
                write.open_table(META)?.insert("wear", commit.wear.bytes().as_slice())?;
            }
            write.commit()?;
            Ok((span, compacted, sealing, mark))
        })?;
        *unsure = false;
        if let (Some(log), Some(mark)) = (log, mark) {
            log.settle(mark);
        }
        Ok(done(span, compacted, sealing, true))
    }

    /// One page of a scan: sealed entries, late ones, and what is in memory.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub(super) fn scan(&self, scan: &Scan, memory: &InMemory) -> Result<Page, StoreError> {
        self.with(|database| scan::page(&database.begin_read()?, scan, memory))
    }

    /// What lies after `mark` in its batch.
    ///
    /// # Errors
    /// [`StoreError`] when the file or the log cannot be read.
    pub fn after(&self, mark: replay::Mark) -> Result<(replay::After, Touched), StoreError> {
        let bytes = self.with(|database| replay::in_head(&database.begin_read()?, mark))?;
        let bytes = match bytes {
            Some(bytes) => Some(bytes),
            None => self.logged(mark.batch)?,
        };
        Ok(replay::after(bytes.as_deref(), mark))
    }

    /// A batch in the log.
    fn logged(&self, wanted: BatchNumber) -> Result<Option<Vec<u8>>, StoreError> {
        let logged = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = &logged.log else { return Ok(None) };
        let batches = log.batches().map_err(|error| StoreError::of(redb::Error::Io(error)))?;
        Ok(batches.into_iter().find(|(number, _)| *number == wanted).map(|(_, bytes)| bytes))
    }

    /// One page of events; `memory` holds those that no commit covers yet.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub fn events(&self, scan: &EventScan, memory: Vec<Event>) -> Result<(EventPage, Touched), StoreError> {
        self.with(|database| event::page(&database.begin_read()?, scan, memory))
    }

    /// A page of the buckets of a device that begin in `[from, to)`: of `tier` as far as they are sealed, then quarter hours, `live`
    /// among them.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub fn buckets(
        &self,
        device: DeviceNumber,
        tier: Tier,
        from: UnixMillis,
        to: UnixMillis,
        live: Vec<Bucket>,
    ) -> Result<BucketPage, StoreError> {
        self.with(|database| compact::buckets(&database.begin_read()?, device, tier, from, to, live))
    }

    /// Where in `[from, to)` the stored buckets of `devices` begin when read in `order`, to the day or week of their blob.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub fn first_bucket(
        &self,
        devices: &[DeviceNumber],
        order: Order,
        from: UnixMillis,
        to: UnixMillis,
    ) -> Result<Option<UnixMillis>, StoreError> {
        self.with(|database| compact::first_bucket(&database.begin_read()?, devices, order, from, to))
    }

    /// Writes everything that is committed now to `out`, see [`backup`].
    ///
    /// # Errors
    /// [`BackupError`]; what was written then has no end.
    pub fn back_up(&self, out: impl Write) -> Result<backup::Summary, BackupError> {
        let (read, logged) = {
            // No commit moves a batch meanwhile.
            let logged = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let batches = logged.log.as_ref().map_or(Ok(Vec::new()), Log::batches);
            let batches = batches.map_err(|error| StoreError::of(redb::Error::Io(error)))?;
            (self.database()?.begin_read().map_err(StoreError::from)?, batches)
        };
        backup::write(&read, logged, out)
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Handle::Open(database) = &*open {
            return Ok(database.clone());
        }
        if let Handle::Failed(old) = &*open
            && old.strong_count() > 0
        {
            return Err(StoreError::Reopening);
        }
        let mut builder = Builder::new();
        let inner = self.disk.open(builder.set_cache_size(limits::STORE_CACHE)).map_err(StoreError::opening)?;
        let counted = Counted { inner, written: self.written.clone() };
        let database = builder.create_with_backend(counted).map_err(StoreError::opening)?;
        prepare(&database)?;
        mend::mend(&database)?;
        let database = Arc::new(database);
        *open = Handle::Open(database.clone());
        Ok(database)
    }

    /// Does `work` with the open file. After an error, and after a panic inside redb, which some damaged pages cause, the
    /// handle is given up.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Nothing of ours is left half done by a panic: the transaction is gone, and so is the handle after it.
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let database = self.database()?;
            work(&database)
        }));
        let done = caught.unwrap_or(Err(StoreError::Broken));
        if done.is_err() {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Handle::Open(database) = &*open {
                let failed = Handle::Failed(Arc::downgrade(database));
                let given_up = std::mem::replace(&mut *open, failed);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(given_up))); // it may be as broken as its file
            }
        }
        done
    }
}

/// Whether reading the whole file after a power cut would take too long. Pages that are free do not count: a repair does not
/// read them.
fn is_large(database: &Database) -> Result<bool, StoreError> {
    let chunks = database.begin_read()?.open_table(SEALED)?.len()?;
    Ok(chunks > Expiry::chunks_in(limits::QUICK_REPAIR))
}

/// Makes the tables of a new file, and refuses a file of a newer format.
fn prepare(database: &Database) -> Result<(), StoreError> {
    let read = database.begin_read()?;
    if read.list_tables()?.next().is_some() {
        let meta = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Err(StoreError::NotAStore),
            other => other?,
        };
        let format = meta.get("format")?.ok_or(StoreError::NotAStore)?;
        let format = format.value().try_into().map(u16::from_le_bytes).map_err(|_| StoreError::NotAStore)?;
        return if format > FORMAT { Err(StoreError::Newer { format }) } else { Ok(()) };
    }
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
        meta.insert("store_id", fastrand::u128(..).to_le_bytes().as_slice())?;
    }
    make_tables(&write)?;
    write.commit()?;
    Ok(())
}

/// Makes every table that is not there.
pub(super) fn make_tables(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(META)?;
    write.open_table(DEVICE)?;
    write.open_table(DEVICE_ID)?;
    write.open_table(HEAD)?;
    write.open_table(TAIL)?;
    write.open_table(SEALED)?;
    write.open_table(LATE)?;
    write.open_table(ROLLUP)?;
    write.open_table(EVENT)?;
    Ok(())
}

/// Where the log stands; None when there is none.
pub(super) fn read_mark(database: &impl ReadableDatabase) -> Result<Option<Mark>, StoreError> {
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let Some(bytes) = meta.get("log")? else { return Ok(None) };
    let damaged = || StoreError::Log(std::io::Error::other("where the log stands cannot be read"));
    Mark::read(bytes.value()).map(Some).ok_or_else(damaged)
}

/// The number after the last batch in the file.
fn next_in_head(database: &Database) -> Result<BatchNumber, StoreError> {
    let last = database.begin_read()?.open_table(HEAD)?.last()?.map(|(number, _)| number.value());
    Ok(BatchNumber::new(last.map_or(0, |last| last.saturating_add(1))))
}

fn read_contents(
    database: &Database,
    logged: Vec<headlog::Found>,
    mut visit: impl FnMut(&mut Contents, Item),
) -> Result<Contents, StoreError> {
    let read = database.begin_read()?;
    let mut contents = Contents::default();
    let id = read.open_table(META)?.get("store_id")?.map(|id| id.value().try_into());
    contents.store_id = id.and_then(Result::ok).ok_or(StoreError::NotAStore)?;
    let (tails, sealed, late) = (read.open_table(TAIL)?, read.open_table(SEALED)?, read.open_table(LATE)?);
    contents.late = late.len()?;
    for entry in read.open_table(DEVICE)?.iter()? {
        let (number, bytes) = entry?;
        let number = DeviceNumber::new(number.value());
        if number.index() != contents.devices.len() {
            return Err(StoreError::BadRecord { device: number }); // it would stand for another device
        }
        let device = Device { number, record: read_record(number, bytes.value())? };
        contents.devices.push(known(device, tail(&tails, number)?, &sealed, &late)?);
    }
    contents.wear = read.open_table(META)?.get("wear")?.and_then(|bytes| Wear::read(bytes.value())).unwrap_or_default();
    let mark = read_mark(database)?;
    let mut take = |number: BatchNumber, bytes: &[u8]| {
        contents.next_batch = BatchNumber::new(number.get().saturating_add(1));
        let whole = batch::span(bytes).and_then(|span| Ok((span, batch::decode(bytes, |_| true)?)));
        match whole {
            Err(bad) => contents.damaged.push((number, bad)),
            Ok((span, items)) => {
                contents.batches.insert((span.first, number), span.last);
                for item in items {
                    visit(&mut contents, item);
                }
            }
        }
    };
    let mut logged = logged.into_iter().peekable();
    for entry in read.open_table(HEAD)?.iter()? {
        let (number, bytes) = entry?;
        let number = BatchNumber::new(number.value());
        while let Some((earlier, bytes)) = logged.next_if(|(earlier, _)| *earlier < number) {
            take(earlier, &bytes);
        }
        take(number, bytes.value());
    }
    logged.for_each(|(number, bytes)| take(number, &bytes));
    contents.next_batch = contents.next_batch.max(mark.map_or(BatchNumber::new(0), |mark| mark.next()));
    Ok(contents)
}

/// What is sealed of a device, with its newest entries; a damaged chunk has none.
fn known(
    device: Device,
    tail: Tail,
    sealed: &impl ReadableTable<(u32, i64), &'static [u8]>,
    late: &impl ReadableTable<(u32, i64), &'static [u8]>,
) -> Result<Known, StoreError> {
    let n = device.number.get();
    let last = sealed.range((n, i64::MIN)..=(n, i64::MAX))?.next_back().transpose()?;
    let mut recent = match &last {
        Some((_, bytes)) => chunk::decode(bytes.value(), Columns::ALL).unwrap_or_default(),
        None => Vec::new(),
    };
    let newest = recent.iter().rev().find_map(|stored| match stored.entry {
        Entry::Reading(reading) => Some(reading),
        Entry::Gap { .. } => None,
    });
    let last = recent.last().copied();
    let before = recent.drain(..recent.len().saturating_sub(KEEP)).next_back().map(|stored| stored.entry.time());
    let first = recent.first().map(|stored| stored.entry.time().plus(-1));
    let mut complete_after = before.or(first).or(tail.sealed_to);
    if let Some(after) = complete_after {
        let mut came_late = Vec::new();
        for entry in late.range((n, after.plus(1).get())..=(n, i64::MAX))?.rev() {
            let (key, bytes) = entry?;
            if came_late.len() >= KEEP {
                complete_after = Some(UnixMillis::new(key.value().1));
                break;
            }
            let items = batch::decode(bytes.value(), |_| true).unwrap_or_default(); // check names what is damaged
            came_late.extend(items.iter().map(|item| item.stored));
        }
        recent.extend(came_late.iter().rev());
    }
    Ok(Known { device, tail, newest, last, recent, complete_after })
}

pub(super) fn read_record(device: DeviceNumber, bytes: &[u8]) -> Result<Record, StoreError> {
    postcard::from_bytes(content(device, bytes)?).map_err(|_| StoreError::BadRecord { device })
}

/// The bytes for the `device` table.
pub(super) fn record_bytes(device: &Device) -> Result<Vec<u8>, StoreError> {
    let bad = |_| StoreError::BadRecord { device: device.number };
    Ok(row(device.number, &postcard::to_allocvec(&device.record).map_err(bad)?))
}

fn write_commit(write: &WriteTransaction, commit: &Commit) -> Result<(Option<Span>, Compacted, Duration), StoreError> {
    let mut span = None;
    if let Some((number, items)) = &commit.batch
        && let Some((bytes, lies)) = batch::encode(items)
    {
        let mut head = write.open_table(HEAD)?;
        if head.get(number.get())?.is_none() {
            head.insert(number.get(), bytes.as_slice())?;
        }
        span = Some(lies);
    }
    if !commit.devices.is_empty() {
        let (mut table, mut ids) = (write.open_table(DEVICE)?, write.open_table(DEVICE_ID)?);
        for device in &commit.devices {
            table.insert(device.number.get(), record_bytes(device)?.as_slice())?;
            ids.insert(device.record.id.to_string().as_str(), device.number.get())?;
        }
    }
    event::write(write, &commit.events)?;
    let watch = Stopwatch::default();
    let compacted = compact::run(write, &commit.compaction)?;
    Ok((span, compacted, watch.elapsed()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::AtomicBool;

    use redb::backends::FileBackend;
    use redb::{DatabaseError, StorageBackend};

    use super::*;
    use crate::reading::{DeviceId, Mac};
    use crate::store::disk::Medium;

    /// A file; the flag says whether redb had to read all of it to repair it.
    struct Watched(PathBuf, Arc<AtomicBool>);

    impl Medium for Watched {
        fn open(&self, builder: &mut Builder) -> Result<Box<dyn StorageBackend>, DatabaseError> {
            let seen = self.1.clone();
            builder.set_repair_callback(move |_| seen.store(true, Ordering::Relaxed));
            let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(&self.0);
            Ok(Box::new(FileBackend::new(file.unwrap())?))
        }
    }

    fn watched(path: PathBuf) -> (Disk, Arc<AtomicBool>) {
        let repaired = Arc::new(AtomicBool::new(false));
        (Box::new(Watched(path, repaired.clone())), repaired)
    }

    fn commit_a_device(file: &File) {
        let record = Record { id: DeviceId::plug(Mac::new([1; 6])), first_seen: UnixMillis::new(1), plug: None };
        let device = Device { number: DeviceNumber::new(0), record };
        file.commit(&Commit {
            batch: None,
            devices: vec![device],
            events: Vec::new(),
            compaction: Compaction::default(),
            next: BatchNumber::new(0),
            wear: Wear::default(),
        })
        .unwrap();
    }

    /// Whether the file as it is now would be read whole if the power went.
    fn needs_repair(dir: &Path, live: &Path) -> bool {
        let image = dir.join("image");
        fs::copy(live, &image).unwrap();
        let (disk, repaired) = watched(image);
        File::open(disk, |_, _| {}).unwrap();
        repaired.load(Ordering::Relaxed)
    }

    #[test]
    fn a_large_file_is_not_read_whole_after_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let (file, _) = File::open(watched(live.clone()).0, |_, _| {}).unwrap();
        commit_a_device(&file);
        assert!(needs_repair(dir.path(), &live), "a small file saves the writing");
        let write = file.database().unwrap().begin_write().unwrap();
        {
            let mut sealed = write.open_table(SEALED).unwrap();
            let chunk = [0; chunk::MAX_BYTES];
            for n in 0..=i64::try_from(Expiry::chunks_in(limits::QUICK_REPAIR)).unwrap() {
                sealed.insert((1, n), chunk.as_slice()).unwrap();
            }
        }
        write.commit().unwrap();
        commit_a_device(&file);
        assert!(!needs_repair(dir.path(), &live));
    }
}
