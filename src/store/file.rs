//! The store's file: redb behind one door. Blocking; called on the store's own threads, and at start.
//!
//! Owns the tables and their encodings:
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | `format`: u16; `store_id`: 16 bytes |
//! | `device` | device number | postcard [`Record`] after a version byte |
//! | `device_id` | public id, `9c5322aabbcc.0` | device number |
//! | `head` | batch sequence | one [`batch`] |
//!
//! After an error redb's handle answers nothing more, so it is dropped, and the next call opens the file anew.

use std::sync::{Arc, Mutex, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::batch::{self, BadBatch, Span};
use super::{BatchNumber, Device, DeviceNumber, Record, Row, StoreError};
use crate::limits;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const DEVICE: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("device");
const DEVICE_ID: TableDefinition<'_, &str, u32> = TableDefinition::new("device_id");
const HEAD: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("head");

/// The format this program writes. A file with a higher one is refused.
pub const FORMAT: u16 = 1;
const RECORD_VERSION: u8 = 1;

/// How the file is opened: a path in life, a disk that fails or forgets in tests.
pub type Disk = Box<dyn Fn(&mut Builder) -> Result<Database, DatabaseError> + Send + Sync>;

/// The open file, or the way to open it again.
pub struct File {
    disk: Disk,
    open: Mutex<Option<Arc<Database>>>,
}

/// What a file holds when it is opened.
#[derive(Default)]
pub struct Contents {
    /// Every device, in order of number.
    pub devices: Vec<Device>,
    /// Every head batch with its place in time, in order of sequence.
    pub batches: Vec<(BatchNumber, Span)>,
    /// The newest row of each device that has any.
    pub newest: Vec<Row>,
    /// Readings in the head.
    pub readings: u64,
    /// Head batches that could not be read, and why. They stay where they are.
    pub damaged: Vec<(BatchNumber, BadBatch)>,
}

impl File {
    /// Opens the file, or makes a new one, and reads what it holds.
    ///
    /// # Errors
    /// [`StoreError`] when it is in use, newer than this program, no store, or cannot be read.
    pub fn open(disk: Disk) -> Result<(Self, Contents), StoreError> {
        let file = Self { disk, open: Mutex::new(None) };
        let database = file.database()?;
        let contents = read_contents(&database)?;
        Ok((file, contents))
    }

    /// Writes one batch and what is new about devices, durably. A batch that is already there is left as it is, so that
    /// a commit whose outcome is unknown can be repeated.
    ///
    /// # Errors
    /// [`StoreError`]; the handle is then dropped, and the next call opens the file again.
    pub fn commit(&self, batch: Option<(BatchNumber, &[u8])>, devices: &[Device]) -> Result<(), StoreError> {
        let database = self.database()?;
        let done = write_commit(&database, batch, devices);
        self.forget_after_error(done)
    }

    /// The rows of `wanted` devices in `batches`, batch after batch. A batch that is damaged is left out and named.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub fn read(&self, batches: &[BatchNumber], wanted: &[DeviceNumber]) -> Result<Vec<Row>, StoreError> {
        let database = self.database()?;
        let read = || {
            let head = database.begin_read()?.open_table(HEAD)?;
            let mut rows = Vec::new();
            for number in batches {
                let Some(bytes) = head.get(number.get())? else { continue };
                match batch::decode(bytes.value(), |device| wanted.contains(&device)) {
                    Ok(found) => rows.extend(found),
                    Err(why) => log::error!("{}", StoreError::Damaged { batch: *number, why }),
                }
            }
            Ok(rows)
        };
        let done = read();
        self.forget_after_error(done)
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*open {
            return Ok(database.clone());
        }
        let database = (self.disk)(Builder::new().set_cache_size(limits::STORE_CACHE)).map_err(StoreError::opening)?;
        prepare(&database)?;
        let database = Arc::new(database);
        *open = Some(database.clone());
        Ok(database)
    }

    fn forget_after_error<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_err() {
            *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }
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
        write.open_table(DEVICE)?;
        write.open_table(DEVICE_ID)?;
        write.open_table(HEAD)?;
    }
    write.commit()?;
    Ok(())
}

fn read_contents(database: &Database) -> Result<Contents, StoreError> {
    let read = database.begin_read()?;
    let mut contents = Contents::default();
    for entry in read.open_table(DEVICE)?.iter()? {
        let (number, bytes) = entry?;
        let number = DeviceNumber::new(number.value());
        contents.devices.push(Device { number, record: read_record(number, bytes.value())? });
    }
    let mut newest: Vec<Option<Row>> = vec![None; contents.devices.len()];
    let head = read.open_table(HEAD)?;
    contents.batches.reserve(usize::try_from(head.len()?).unwrap_or(0));
    for entry in head.iter()? {
        let (number, bytes) = entry?;
        let number = BatchNumber::new(number.value());
        let whole = batch::span(bytes.value()).and_then(|span| Ok((span, batch::decode(bytes.value(), |_| true)?)));
        match whole {
            Err(bad) => contents.damaged.push((number, bad)),
            Ok((span, rows)) => {
                contents.batches.push((number, span));
                contents.readings += u64::try_from(rows.len()).unwrap_or(0);
                for row in rows {
                    let kept = usize::try_from(row.device.get()).ok().and_then(|n| newest.get_mut(n));
                    if let Some(kept) = kept.filter(|kept| kept.is_none_or(|k| k.reading.time <= row.reading.time)) {
                        *kept = Some(row);
                    }
                }
            }
        }
    }
    contents.newest = newest.into_iter().flatten().collect();
    Ok(contents)
}

fn read_record(number: DeviceNumber, bytes: &[u8]) -> Result<Record, StoreError> {
    match bytes.split_first() {
        Some((&RECORD_VERSION, record)) => postcard::from_bytes(record).ok(),
        _ => None,
    }
    .ok_or(StoreError::BadRecord { device: number })
}

fn write_commit(
    database: &Database,
    batch: Option<(BatchNumber, &[u8])>,
    devices: &[Device],
) -> Result<(), StoreError> {
    let write = database.begin_write()?;
    {
        if let Some((number, bytes)) = batch {
            let mut head = write.open_table(HEAD)?;
            if head.get(number.get())?.is_none() {
                head.insert(number.get(), bytes)?;
            }
        }
        if !devices.is_empty() {
            let (mut table, mut ids) = (write.open_table(DEVICE)?, write.open_table(DEVICE_ID)?);
            for device in devices {
                let bytes = postcard::to_extend(&device.record, vec![RECORD_VERSION])
                    .map_err(|_| StoreError::BadRecord { device: device.number })?;
                table.insert(device.number.get(), bytes.as_slice())?;
                ids.insert(device.record.id.to_string().as_str(), device.number.get())?;
            }
        }
    }
    write.commit()?;
    Ok(())
}
