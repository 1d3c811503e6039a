//! Whether everything in a store's file is what it should be: each page, batch, chunk, record, tail and blob, and the
//! buckets against a recomputation from what raw readings are still there.
//!
//! Owns the reading of a closed file without changing a byte of it: what redb repairs on the way stays in memory. Promises
//! to name everything that is wrong, at most [`limits::CHECK_PROBLEMS`] times, and to hold one chunk and one device's
//! buckets at a time. redb's own checksums are looked at first; when they fail, the rest is read all the same, so that the
//! damaged thing gets its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend};

use super::chunk::{self, Columns};
use super::event;
use super::file::{self, DEVICE, DEVICE_ID, HEAD, LATE, META, ROLLUP, SEALED, TAIL, Tail};
use super::headlog::{Found, Log};
use super::{DeviceNumber, StoreError, Tier, batch, compact, disk, io_error};
use crate::limits;
use crate::reading::{DeviceId, Entry};
use crate::rollup::{Bucket, Fold, codec};
use crate::units::UnixMillis;

/// Where a problem is that is not in one table.
pub const WHOLE_FILE: &str = "file";

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The table it is in; [`WHOLE_FILE`] for the file as a whole.
    pub table: &'static str,
    /// What, in words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.what)
    }
}

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Devices.
    pub devices: u64,
    /// Head batches.
    pub batches: u64,
    /// Sealed chunks.
    pub chunks: u64,
    /// Readings in chunks, late ones and those of the head that are not sealed.
    pub readings: u64,
    /// Blobs of buckets.
    pub blobs: u64,
    /// Buckets that were compared with a recomputation.
    pub recomputed: u64,
    /// What is wrong, at most [`limits::CHECK_PROBLEMS`].
    pub problems: Vec<Problem>,
}

impl Report {
    fn note(&mut self, table: &'static str, what: impl Into<String>) {
        if self.problems.len() < limits::CHECK_PROBLEMS {
            self.problems.push(Problem { table, what: what.into() });
        }
    }
}

/// Looks at the closed store at `path`. The file is locked meanwhile, and not changed.
///
/// # Errors
/// [`StoreError::InUse`] when an agent has it open, [`StoreError::System`] when it cannot be read at all. What is wrong
/// with it is no error but in the report.
pub fn check(path: &Path) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let file = std::fs::File::open(path).map_err(StoreError::System)?;
    lock(&file)?;
    let open = |check_pages| {
        let overlay = Overlay::over(file.try_clone()?)?;
        let mut builder = Builder::new();
        builder.set_cache_size(limits::STORE_CACHE).set_check_integrity_on_open(check_pages);
        Ok::<_, io::Error>(builder.create_with_backend(overlay))
    };
    let (database, pages) = match open(true).map_err(StoreError::System)? {
        Ok(database) => (Ok(database), Pages::Sound),
        Err(error) => {
            report.note(WHOLE_FILE, StoreError::opening(error).to_string());
            (open(false).map_err(StoreError::System)?, Pages::Damaged)
        }
    };
    let looked = database.map_err(StoreError::opening).and_then(|database| {
        let logged = open_log(&database, path).unwrap_or_else(|error| {
            report.note("log", error.to_string());
            None
        });
        let (beyond, logged) = logged.map_or((None, Vec::new()), |(log, found)| (log.beyond(), found));
        if let Some(number) = beyond {
            report.note("log", format!("a commit is damaged or lost, and all after it, batch {} too", number.get()));
        }
        look(&database, &logged, pages, &mut report)
    });
    if let Err(error) = looked {
        report.note(WHOLE_FILE, error.to_string());
    }
    Ok(report)
}

/// The closed store at `path`, every page looked at; what is written to it stays in memory. The file is locked meanwhile.
///
/// # Errors
/// [`StoreError`] when it is in use, damaged or no store.
pub(super) fn open_unchanged(path: &Path) -> Result<Database, StoreError> {
    let file = std::fs::File::open(path).map_err(StoreError::System)?;
    lock(&file)?;
    let overlay = Overlay::over(file).map_err(StoreError::System)?;
    let mut builder = Builder::new();
    builder.set_cache_size(limits::STORE_CACHE).set_check_integrity_on_open(true);
    builder.create_with_backend(overlay).map_err(StoreError::opening)
}

/// The log of the closed store at `path` and the batches in it; None when the file says that it has none.
///
/// # Errors
/// [`StoreError::Log`] when it does not have what the file says that it has.
pub(super) fn open_log(database: &Database, path: &Path) -> Result<Option<(Log, Vec<Found>)>, StoreError> {
    let Some(mark) = file::read_mark(database)? else { return Ok(None) };
    let file = std::fs::File::open(disk::log_of(path)).map_err(StoreError::Log)?;
    let overlay = Overlay::over(file).map_err(StoreError::Log)?;
    Log::open(Box::new(overlay), mark).map(Some).map_err(StoreError::Log)
}

/// Takes the lock that an agent holds on its store.
///
/// # Errors
/// [`StoreError::InUse`] when one does.
pub(super) fn lock(file: &std::fs::File) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse),
        Err(TryLockError::Error(error)) => Err(StoreError::of(io_error(error).into())),
    }
}

/// What redb's own checksums say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Sound,
    Damaged,
}

fn look(database: &Database, logged: &[Found], pages: Pages, report: &mut Report) -> Result<(), StoreError> {
    let read = database.begin_read()?;
    match pages {
        Pages::Sound => look_at_meta(&read, report)?,
        // redb stops the program at a key that should be a text and is none.
        Pages::Damaged => report.note(WHOLE_FILE, "`meta` and `device_id` are passed over: their pages may be damaged"),
    }
    let devices = look_at_devices(&read, pages, report)?;
    let mut tails = BTreeMap::new();
    for device in &devices {
        match file::tail(&read.open_table(TAIL)?, *device) {
            Ok(tail) => drop(tails.insert(*device, tail)),
            Err(error) => report.note("tail", error.to_string()),
        }
    }
    for entry in read.open_table(TAIL)?.iter()? {
        let number = DeviceNumber::new(entry?.0.value());
        if !devices.contains(&number) {
            report.note("tail", format!("device {} has a tail and no record", number.get()));
        }
    }
    look_at_head(&read, logged, &devices, &tails, report)?;
    look_at_late(&read, &devices, report)?;
    for device in &devices {
        look_at_device(&read, *device, tails.get(device), report)?;
    }
    for entry in read.open_table(SEALED)?.iter()? {
        let number = DeviceNumber::new(entry?.0.value().0);
        if !devices.contains(&number) {
            report.note("sealed", format!("a chunk belongs to device {}, which has no record", number.get()));
        }
    }
    for entry in read.open_table(ROLLUP)?.iter()? {
        let (tier, number, _) = entry?.0.value();
        if !devices.contains(&DeviceNumber::new(number)) || tier > Tier::Hour.code() {
            report.note("rollup", format!("buckets of tier {tier} belong to device {number}: one of both is unknown"));
        }
    }
    event::check(&read, |device| devices.contains(&device), |problem| report.note("event", problem))
}

fn look_at_meta(read: &ReadTransaction, report: &mut Report) -> Result<(), StoreError> {
    let meta = read.open_table(META)?;
    match meta.get("format")?.and_then(|bytes| bytes.value().try_into().ok()).map(u16::from_le_bytes) {
        Some(1..=file::FORMAT) => {}
        Some(format) => report.note("meta", format!("the format is {format}, this program writes {}", file::FORMAT)),
        None => report.note("meta", "the format cannot be read"),
    }
    if meta.get("store_id")?.is_none_or(|id| id.value().len() != 16) {
        report.note("meta", "the store's id is missing or cut off");
    }
    Ok(())
}

fn look_at_devices(
    read: &ReadTransaction,
    pages: Pages,
    report: &mut Report,
) -> Result<BTreeSet<DeviceNumber>, StoreError> {
    let ids = read.open_table(DEVICE_ID)?;
    let mut devices = BTreeSet::new();
    for entry in read.open_table(DEVICE)?.iter()? {
        let (number, bytes) = entry?;
        let number = DeviceNumber::new(number.value());
        if usize::try_from(number.get()) != Ok(devices.len()) {
            report.note("device", format!("there is no device before number {}", number.get()));
        }
        devices.insert(number);
        report.devices += 1;
        match file::read_record(number, bytes.value()) {
            Err(error) => report.note("device", error.to_string()),
            Ok(_) if pages == Pages::Damaged => {}
            Ok(record) => {
                let listed = ids.get(record.id.to_string().as_str())?.map(|listed| listed.value());
                if listed != Some(number.get()) {
                    report.note("device_id", format!("{} is not listed as device {}", record.id, number.get()));
                }
            }
        }
    }
    let listed = (pages == Pages::Sound).then(|| ids.iter()).transpose()?;
    for entry in listed.into_iter().flatten() {
        let (id, number) = entry?;
        if id.value().parse::<DeviceId>().is_err() || !devices.contains(&DeviceNumber::new(number.value())) {
            report.note("device_id", format!("{:?} is no id, or device {} is unknown", id.value(), number.value()));
        }
    }
    Ok(devices)
}

fn look_at_head(
    read: &ReadTransaction,
    logged: &[Found],
    devices: &BTreeSet<DeviceNumber>,
    tails: &BTreeMap<DeviceNumber, Tail>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut look = |table, number: u64, bytes: &[u8]| {
        report.batches += 1;
        match batch::decode(bytes, |_| true) {
            Err(why) => report.note(table, format!("batch {number}: {why}")),
            Ok(items) => {
                if let Some(item) = items.iter().find(|item| !devices.contains(&item.device)) {
                    let what = format!("batch {number} has a reading of device {}", item.device.get());
                    report.note(table, format!("{what}, which has no record"));
                }
                let sealed_to = |device| tails.get(&device).and_then(|tail| tail.sealed_to);
                let is_new = |time, device| sealed_to(device).is_none_or(|to: UnixMillis| time > to);
                let new = items.iter().filter(|item| item.row().is_some() && is_new(item.time(), item.device));
                report.readings += u64::try_from(new.count()).unwrap_or(0);
            }
        }
    };
    for entry in read.open_table(HEAD)?.iter()? {
        let (number, bytes) = entry?;
        look("head", number.value(), bytes.value());
    }
    logged.iter().for_each(|(number, bytes)| look("log", number.get(), bytes));
    Ok(())
}

fn look_at_late(
    read: &ReadTransaction,
    devices: &BTreeSet<DeviceNumber>,
    report: &mut Report,
) -> Result<(), StoreError> {
    for entry in read.open_table(LATE)?.iter()? {
        let (key, bytes) = entry?;
        let (device, time) = key.value();
        let what = format!("the reading of device {device} at {}", UnixMillis::new(time));
        report.readings += 1;
        match batch::decode(bytes.value(), |_| true).as_deref() {
            Err(why) => report.note("late", format!("{what}: {why}")),
            Ok([item]) if item.device.get() == device && item.time().get() == time => {}
            Ok(_) => report.note("late", format!("{what} stands under another device or time")),
        }
        if !devices.contains(&DeviceNumber::new(device)) {
            report.note("late", format!("{what} is of a device without a record"));
        }
    }
    Ok(())
}

/// A device's chunks and buckets.
fn look_at_device(
    read: &ReadTransaction,
    device: DeviceNumber,
    tail: Option<&Tail>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let n = device.get();
    let (mut fold, mut computed, mut readings) = (Fold::new(), BTreeMap::new(), 0);
    let (mut first, mut last, mut whole) = (None, None, true);
    for entry in read.open_table(SEALED)?.range((n, i64::MIN)..=(n, i64::MAX))? {
        let (key, bytes) = entry?;
        let start = UnixMillis::new(key.value().1);
        report.chunks += 1;
        let entries = match chunk::decode(bytes.value(), Columns::ALL) {
            Ok(entries) => entries,
            Err(why) => {
                report.note("sealed", format!("the chunk of device {n} from {start}: {why}"));
                whole = false;
                continue;
            }
        };
        if entries.first().map(|stored| stored.entry.time()) != Some(start) || last.is_some_and(|last| last >= start) {
            report.note("sealed", format!("the chunk of device {n} from {start} begins elsewhere"));
            whole = false;
        }
        first = first.or(Some(start));
        for stored in &entries {
            last = Some(stored.entry.time());
            readings += u64::from(matches!(stored.entry, Entry::Reading(_)));
            fold.push(&stored.entry, stored.interval_ms, |bucket| computed.extend([(bucket.start, bucket)]));
        }
    }
    report.readings += readings;
    let stored = look_at_buckets(read, device, report)?;
    let (Some(tail), Some(first), true) = (tail, first, whole) else { return Ok(()) };
    if tail.sealed_to != last {
        report.note("tail", format!("device {n} is sealed to another time than its last chunk ends"));
    }
    // With the first chunk still there, energy comes out to the mWh. Without, the counter's past is not known, and only what
    // a bucket observed by itself can be compared, from the second bucket on.
    let from_start = readings == tail.state.readings;
    if from_start && fold != tail.state.fold {
        report.note("tail", format!("the energy of device {n} differs from what its readings say"));
    }
    let oldest = stored.keys().next().copied();
    let second = computed.keys().nth(1).copied().unwrap_or(UnixMillis::MAX);
    let since = if from_start { first } else { second };
    for (start, bucket) in computed.iter().filter(|(start, _)| **start >= since.min(UnixMillis::MAX)) {
        let Some(oldest) = oldest.filter(|oldest| start >= oldest) else { continue };
        let same = match stored.get(start) {
            None => false,
            Some(stored) if from_start => stored == bucket,
            Some(stored) => observed(stored) == observed(bucket),
        };
        report.recomputed += 1;
        if !same && *start >= oldest {
            report.note("rollup", format!("the quarter hour of device {n} from {start} is not what its readings say"));
        }
    }
    Ok(())
}

/// What of a bucket does not depend on what was before it.
fn observed(bucket: &Bucket) -> impl PartialEq + use<> {
    (bucket.observed, bucket.range, bucket.on, bucket.readings)
}

/// A device's quarter hours, after its hours were compared with them.
fn look_at_buckets(
    read: &ReadTransaction,
    device: DeviceNumber,
    report: &mut Report,
) -> Result<BTreeMap<UnixMillis, Bucket>, StoreError> {
    let n = device.get();
    let rollups = read.open_table(ROLLUP)?;
    let mut found = [BTreeMap::new(), BTreeMap::new()];
    for (tier, found) in [Tier::QuarterHour, Tier::Hour].into_iter().zip(&mut found) {
        for entry in rollups.range((tier.code(), n, i32::MIN)..=(tier.code(), n, i32::MAX))? {
            let (key, bytes) = entry?;
            let base = tier.base(key.value().2);
            report.blobs += 1;
            match codec::decode(base, bytes.value()) {
                Ok(buckets) => found.extend(buckets.into_iter().map(|bucket| (bucket.start, bucket))),
                Err(why) => report.note("rollup", format!("the {} of device {n} from {base}: {why}", tier.name())),
            }
        }
    }
    let [quarters, hours] = found;
    let oldest = quarters.keys().next().copied().map(compact::hour_of);
    for (start, hour) in hours.iter().filter(|(start, _)| oldest.is_some_and(|oldest| **start > oldest)) {
        let sum = Bucket::sum(quarters.range(*start..start.plus(3_600_000)).map(|(_, bucket)| *bucket));
        if sum.map(|sum| Bucket { start: *start, ..sum }) != Some(*hour) {
            report.note("rollup", format!("the hour of device {n} from {start} is not the sum of its quarters"));
        }
    }
    Ok(quarters)
}

/// A file that is read, and whose changes stay in memory.
#[derive(Debug)]
struct Overlay {
    file: std::fs::File,
    /// The length of the file itself, as far as it has not been cut here.
    below: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    length: u64,
    /// How much of the file still shows.
    shows: u64,
    /// Bytes written here, by page.
    pages: BTreeMap<u64, Vec<u8>>,
}

const PAGE: usize = 4_096;
const PAGE_BYTES: u64 = 4_096;

impl Overlay {
    fn over(file: std::fs::File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, below: Mutex::new(Changes { length, shows: length, pages: BTreeMap::new() }) })
    }

    /// A page as it is now; zeros beyond the end.
    fn page(&self, changes: &Changes, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = changes.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE];
        let at = number.saturating_mul(PAGE_BYTES);
        let length = usize::try_from(changes.shows.saturating_sub(at)).unwrap_or(PAGE).min(PAGE);
        if let Some(part) = page.get_mut(..length) {
            self.file.read_exact_at(part, at)?;
        }
        Ok(page)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.below.lock().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let end = u64::try_from(out.len()).ok().and_then(|length| offset.checked_add(length));
        if end.is_none_or(|end| end > changes.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let page = self.page(&changes, at / PAGE_BYTES)?;
            let from = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
            let source = page.get(from..).unwrap_or_default();
            let length = source.len().min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(source.get(..length).unwrap_or_default());
            rest = later;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut changes = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        changes.length = length;
        changes.shows = changes.shows.min(length);
        changes.pages.retain(|number, _| number.saturating_mul(PAGE_BYTES) < length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = self.below.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let number = at / PAGE_BYTES;
            let mut page = self.page(&changes, number)?;
            let from = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
            let target = page.get_mut(from..).unwrap_or_default();
            let length = target.len().min(rest.len());
            let (now, later) = rest.split_at(length);
            if let Some(target) = target.get_mut(..length) {
                target.copy_from_slice(now);
            }
            changes.pages.insert(number, page);
            rest = later;
            at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}
