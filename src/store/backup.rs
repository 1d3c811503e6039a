//! All of a store as one stream of bytes, from one snapshot, and a store made of such a stream.
//!
//! ```text
//! "wattd backup" | u16 version | u16 format of the store | 16 bytes id of the store
//! per table: u8 length of its name | name | rows | u32 2^32 - 1 | u64 rows
//! per row:   u32 length of the key | key | u32 length of the value | value
//! u8 0 | u64 rows in all | u32 CRC-32 of all before
//! ```
//!
//! Numbers are little-endian; keys and values are the tables' own bytes, so that what is restored is what was there, bit by
//! bit. Whatever is cut off or changed is refused before anything is written. Memory holds one row.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use redb::{Builder, Key, ReadTransaction, ReadableDatabase, TableDefinition, Value, WriteTransaction};

use super::check::{self, Problem};
use super::event::EVENT;
use super::file::{self, DEVICE, DEVICE_ID, HEAD, LATE, META, ROLLUP, SEALED, TAIL};
use super::headlog::Found;
use super::{StoreError, put_in_place};
use crate::limits;

const MAGIC: &[u8; 12] = b"wattd backup";
const VERSION: u16 = 1;
const END_OF_TABLE: u32 = u32::MAX;
/// The longest key: an id.
const KEY: usize = 64;
/// Bytes written to the new store between two commits.
const STEP: usize = 4 * 1024 * 1024;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The id of the store that it was made of.
    pub store_id: [u8; 16],
    /// Rows of all tables.
    pub rows: u64,
}

/// Why no backup was made, or none restored.
#[derive(Debug)]
pub enum BackupError {
    /// The store.
    Store(StoreError),
    /// Reading or writing the backup.
    Io(io::Error),
    /// The file is something else.
    NotABackup,
    /// Made by a newer program.
    Newer,
    /// Cut off, or changed since it was made.
    Damaged(&'static str),
    /// There is a store already.
    Exists,
    /// What was restored is no sound file.
    Unsound(Problem),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "{error}"),
            Self::Io(error) => write!(f, "{error}"),
            Self::NotABackup => f.write_str("this is no backup that wattd has made"),
            Self::Newer => f.write_str("a newer wattd has made this backup; restore it with that one"),
            Self::Damaged(what) => write!(f, "the backup is damaged: {what}; nothing was restored"),
            Self::Exists => f.write_str("there is a store already; --force puts the backup in its place"),
            Self::Unsound(problem) => write!(f, "the restored store is not sound: {problem}; nothing was replaced"),
        }
    }
}

impl std::error::Error for BackupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it ends too soon"),
            _ => Self::Io(error),
        }
    }
}

macro_rules! store_errors {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for BackupError {
            fn from(error: redb::$error) -> Self {
                Self::Store(error.into())
            }
        }
    )*};
}
store_errors!(TransactionError, TableError, StorageError, CommitError);

/// Bytes on their way, and their checksum.
struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self { inner, sum: crc32fast::Hasher::new() }
    }
}

impl<T: Write> Summed<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }

    fn put_long(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.put(bytes)
    }

    fn put_table<K: Key + 'static, V: Value + 'static>(
        &mut self,
        read: &ReadTransaction,
        name: &str,
        table: TableDefinition<'_, K, V>,
    ) -> Result<u64, BackupError> {
        self.put_rows(read, name, table, |_| true, &[])
    }

    /// The rows whose key `wanted` accepts, and `more`.
    fn put_rows<K: Key + 'static, V: Value + 'static>(
        &mut self,
        read: &ReadTransaction,
        name: &str,
        table: TableDefinition<'_, K, V>,
        wanted: impl Fn(&[u8]) -> bool,
        more: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<u64, BackupError> {
        let table = match read.open_table(table) {
            // A store of before there was such a table.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
            other => other?,
        };
        self.put(&[u8::try_from(name.len()).map_err(io::Error::other)?])?;
        self.put(name.as_bytes())?;
        let mut rows = 0_u64;
        for entry in redb::ReadableTable::iter(&table)? {
            let (key, value) = entry?;
            let key = key.value();
            let key = K::as_bytes(&key);
            if wanted(key.as_ref()) {
                self.put_long(key.as_ref())?;
                self.put_long(V::as_bytes(&value.value()).as_ref())?;
                rows = rows.saturating_add(1);
            }
        }
        for (key, value) in more {
            self.put_long(key)?;
            self.put_long(value)?;
            rows = rows.saturating_add(1);
        }
        self.put(&END_OF_TABLE.to_le_bytes())?;
        self.put(&rows.to_le_bytes())?;
        Ok(rows)
    }
}

/// Writes everything that `read` shows to `out`, with the batches of the log among those of the head: what is restored
/// begins with a log of its own.
///
/// # Errors
/// [`BackupError`]; what was written then has no end, and is refused when it is read.
pub(super) fn write(read: &ReadTransaction, logged: Vec<Found>, out: impl Write) -> Result<Summary, BackupError> {
    let logged: Vec<_> =
        logged.into_iter().map(|(number, batch)| (number.get().to_le_bytes().to_vec(), batch)).collect();
    let store_id = read.open_table(META)?.get("store_id")?.and_then(|id| id.value().try_into().ok());
    let store_id: [u8; 16] = store_id.ok_or(StoreError::NotAStore)?;
    let mut out = Summed::new(out);
    out.put(MAGIC)?;
    out.put(&VERSION.to_le_bytes())?;
    out.put(&file::FORMAT.to_le_bytes())?;
    out.put(&store_id)?;
    let mut rows = 0_u64;
    for table in [
        out.put_rows(read, "meta", META, |name| name != b"log", &[])?,
        out.put_table(read, "device", DEVICE)?,
        out.put_table(read, "device_id", DEVICE_ID)?,
        out.put_rows(read, "head", HEAD, |_| true, &logged)?,
        out.put_table(read, "tail", TAIL)?,
        out.put_table(read, "sealed", SEALED)?,
        out.put_table(read, "late", LATE)?,
        out.put_table(read, "rollup", ROLLUP)?,
        out.put_table(read, "event", EVENT)?,
    ] {
        rows = rows.saturating_add(table);
    }
    out.put(&[0])?;
    out.put(&rows.to_le_bytes())?;
    let sum = out.sum.finalize();
    out.inner.write_all(&sum.to_le_bytes())?;
    out.inner.flush()?;
    Ok(Summary { store_id, rows })
}

/// Writes everything in the closed store at `path` to `out`.
///
/// # Errors
/// [`BackupError`], with [`StoreError::InUse`] when an agent has the store open.
pub fn of_closed(path: &Path, out: impl Write) -> Result<Summary, BackupError> {
    let database = check::open_unchanged(path)?;
    let logged = check::open_log(&database, path).unwrap_or_else(|error| {
        log::error!("{error}; the backup is without what was in the log");
        None
    });
    let logged = logged.map_or(Vec::new(), |(_, found)| found);
    write(&database.begin_read()?, logged, out)
}

impl<T: Read> Summed<T> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn take_into(&mut self, bytes: &mut Vec<u8>, length: usize, most: usize) -> Result<(), BackupError> {
        if length > most {
            return Err(BackupError::Damaged("a row is longer than any can be"));
        }
        bytes.resize(length, 0);
        self.inner.read_exact(bytes)?;
        self.sum.update(bytes);
        Ok(())
    }
}

/// Reads a backup to its end and hands every row, with the name of its table, to `visit`.
///
/// # Errors
/// [`BackupError`] when it is none, or not as it was made. The checksum is at the end: rows were visited by then.
pub fn read(
    input: impl Read,
    mut visit: impl FnMut(&str, &[u8], &[u8]) -> Result<(), BackupError>,
) -> Result<Summary, BackupError> {
    let mut input = Summed::new(input);
    match input.take::<12>() {
        Ok(magic) if magic == *MAGIC => {}
        Ok(_) | Err(BackupError::Damaged(_)) => return Err(BackupError::NotABackup),
        Err(error) => return Err(error),
    }
    let version = u16::from_le_bytes(input.take()?);
    let format = u16::from_le_bytes(input.take()?);
    if version > VERSION || format > file::FORMAT {
        return Err(BackupError::Newer);
    }
    let store_id = input.take()?;
    let (mut name, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
    let mut total = 0_u64;
    loop {
        let [length] = input.take()?;
        if length == 0 {
            break;
        }
        input.take_into(&mut name, length.into(), KEY)?;
        let name = std::str::from_utf8(&name).map_err(|_| BackupError::Damaged("a table has no name"))?;
        let mut rows = 0_u64;
        loop {
            let length = u32::from_le_bytes(input.take()?);
            if length == END_OF_TABLE {
                break;
            }
            input.take_into(&mut key, usize::try_from(length).unwrap_or(usize::MAX), KEY)?;
            let length = u32::from_le_bytes(input.take()?);
            input.take_into(&mut value, usize::try_from(length).unwrap_or(usize::MAX), limits::BATCH_BYTES)?;
            visit(name, &key, &value)?;
            rows = rows.saturating_add(1);
        }
        if u64::from_le_bytes(input.take()?) != rows {
            return Err(BackupError::Damaged("a table's rows are not as many as it says"));
        }
        total = total.saturating_add(rows);
    }
    if u64::from_le_bytes(input.take()?) != total {
        return Err(BackupError::Damaged("its rows are not as many as it says"));
    }
    let sum = input.sum.clone().finalize();
    if u32::from_le_bytes(input.take()?) != sum {
        return Err(BackupError::Damaged("its checksum does not fit"));
    }
    if input.inner.read(&mut [0])? > 0 {
        return Err(BackupError::Damaged("it goes on after its end"));
    }
    Ok(Summary { store_id, rows: total })
}

/// Reads the backup at `path` to its end, and changes nothing.
///
/// # Errors
/// [`BackupError`] when it is none, or not as it was made.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    read(BufReader::new(File::open(path)?), |_, _, _| Ok(()))
}

/// What `restore` did.
#[derive(Debug)]
pub struct Restored {
    /// What the backup held.
    pub summary: Summary,
    /// What is damaged in the store, and was when the backup was made.
    pub problems: Vec<Problem>,
}

/// Makes a store at `path` of the backup at `from`: verified, built beside, checked, and renamed when it is whole. With
/// `replace`, in place of a store that is there.
///
/// # Errors
/// [`BackupError`]; what was at `path` is then as it was.
pub fn restore(from: &Path, path: &Path, replace: bool) -> Result<Restored, BackupError> {
    let before = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(before) = &before {
        check::lock(before)?; // held to the end: no agent begins meanwhile
        if !replace {
            return Err(BackupError::Exists);
        }
    }
    let verified = verify(from)?;
    let new = path.with_extension("restore");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let built = build(from, &new).and_then(|summary| {
        if summary != verified {
            return Err(BackupError::Damaged("it changed while it was read"));
        }
        let problems = check::check(&new)?.problems;
        match problems.iter().find(|problem| problem.table == check::WHOLE_FILE) {
            Some(problem) => Err(BackupError::Unsound(problem.clone())),
            None => Ok(Restored { summary, problems }),
        }
    });
    let restored = built.inspect_err(|_| {
        let _ = std::fs::remove_file(&new); // the error that is returned says more
    })?;
    let _ = std::fs::remove_file(path.with_extension("opened")); // the next opening looks at every page
    put_in_place(&new, path)?;
    Ok(restored)
}

fn build(from: &Path, new: &Path) -> Result<Summary, BackupError> {
    let mut builder = Builder::new();
    builder.set_cache_size(limits::STORE_CACHE);
    let database = builder.create(new).map_err(StoreError::opening)?;
    let mut write = Some(database.begin_write()?);
    write.as_ref().map(file::make_tables).transpose()?;
    let mut bytes = 0_usize;
    let summary = read(BufReader::new(File::open(from)?), |table, key, value| {
        if bytes >= STEP {
            bytes = 0;
            write.take().map(WriteTransaction::commit).transpose()?;
        }
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
        let begun = match write.take() {
            Some(write) => write,
            None => database.begin_write()?,
        };
        put(write.insert(begun), table, key, value)
    })?;
    write.map(WriteTransaction::commit).transpose()?;
    Ok(summary)
}

fn put(write: &WriteTransaction, table: &str, key: &[u8], value: &[u8]) -> Result<(), BackupError> {
    match table {
        "meta" => put_row(write, META, text(key)?, value),
        "device" => put_row(write, DEVICE, key, value),
        "device_id" => put_row(write, DEVICE_ID, text(key)?, value),
        "head" => put_row(write, HEAD, key, value),
        "tail" => put_row(write, TAIL, key, value),
        "sealed" => put_row(write, SEALED, key, value),
        "late" => put_row(write, LATE, key, value),
        "rollup" => put_row(write, ROLLUP, key, value),
        "event" => put_row(write, EVENT, key, value),
        _ => Err(BackupError::Damaged("it has a table that no store has")),
    }
}

/// A key that is a text: redb believes that it is one.
fn text(key: &[u8]) -> Result<&[u8], BackupError> {
    std::str::from_utf8(key).map(str::as_bytes).map_err(|_| BackupError::Damaged("a name is no text"))
}

fn put_row<K: Key + 'static, V: Value + 'static>(
    write: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
    key: &[u8],
    value: &[u8],
) -> Result<(), BackupError> {
    let fits = |width: Option<usize>, bytes: &[u8]| width.is_none_or(|width| width == bytes.len());
    if !fits(K::fixed_width(), key) || !fits(V::fixed_width(), value) {
        return Err(BackupError::Damaged("a row has another size than it can have"));
    }
    write.open_table(table)?.insert(K::from_bytes(key), V::from_bytes(value))?;
    Ok(())
}
