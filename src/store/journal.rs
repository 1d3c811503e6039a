//! The journal: entries between two commits, in a file that lives in memory, so that a killed agent loses nothing and the
//! card pays nothing.
//!
//! Owns one file on a tmpfs, the unit's runtime directory. Promises that an entry whose append returned is found again
//! after kill -9, a crash or an upgrade, once; that another store's journal, or one from before a restore, is left aside;
//! that it never grows beyond [`limits::JOURNAL_BYTES`]. A power cut empties it: that is what commits are for. A journal
//! that cannot be written costs a log line, never a reading.
//!
//! ```text
//! 8 bytes "wattdjnl" | u16 version | 16 bytes store id | frames
//! frame: u32 length of what follows | u64 number of the batch that was next | u32 device | id as text in 32 bytes
//!        one entry as a batch of one
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use super::batch;
use super::bytes::Input;
use super::{BatchNumber, Item};
use crate::limits;
use crate::reading::DeviceId;

const MAGIC: &[u8; 8] = b"wattdjnl";
const VERSION: u16 = 1;
const HEAD: usize = 8 + 2 + 16;
/// A device's id in a frame, padded with zeros.
const ID: usize = 32;
/// What `statfs` calls a tmpfs.
const TMPFS: i64 = 0x0102_1994;

/// A store's identity, drawn when it is made.
pub type StoreId = [u8; 16];

/// An entry found in a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The batch that was next when it was appended.
    pub next_batch: BatchNumber,
    /// Whose it is.
    pub id: DeviceId,
    /// The entry. Its device number is that of the program which wrote it.
    pub item: Item,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    store: StoreId,
    file: File,
    bytes: usize,
    /// Whether the last write failed or did not fit, and was said.
    failing: bool,
}

impl Journal {
    /// Reads what `dir` holds of this store, and starts a new journal there. Entries found must be written again by
    /// [`Journal::restart`].
    ///
    /// # Errors
    /// When `dir` is no directory in memory, or cannot be written.
    pub fn open(dir: &Path, store: StoreId) -> io::Result<(Self, Vec<Found>)> {
        #[allow(clippy::useless_conversion)] // its type differs from machine to machine
        if i64::try_from(statfs(dir)?.f_type).ok() != Some(TMPFS) {
            let what = format!("{} is not in memory (tmpfs): the journal would wear the card out", dir.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let path = dir.join("wattd.journal");
        let found = match read(&path) {
            Ok(bytes) => parse(&bytes, store),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok((Self { path, store, file, bytes: 0, failing: false }, found))
    }

    /// Adds an entry.
    pub fn append(&mut self, next_batch: BatchNumber, id: DeviceId, item: &Item) {
        let Some(frame) = frame(next_batch, id, item) else { return };
        let fits = self.bytes.saturating_add(frame.len()) <= limits::JOURNAL_BYTES;
        let written = if fits { self.file.write_all(&frame) } else { Err(io::ErrorKind::StorageFull.into()) };
        match written {
            Ok(()) => self.bytes = self.bytes.saturating_add(frame.len()),
            Err(error) => self.complain(&error),
        }
    }

    /// Begins anew with `entries`, those that no commit covers, in one step: before it the old journal holds, after it the
    /// new one.
    pub fn restart<'a>(&mut self, next_batch: BatchNumber, entries: impl Iterator<Item = (DeviceId, &'a Item)>) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.store);
        for (id, item) in entries {
            let frame = frame(next_batch, id, item).unwrap_or_default();
            if bytes.len() + frame.len() > limits::JOURNAL_BYTES {
                break;
            }
            bytes.extend(frame);
        }
        let replace = || {
            let fresh = self.path.with_extension("new");
            std::fs::write(&fresh, &bytes)?;
            let file = OpenOptions::new().append(true).open(&fresh)?;
            std::fs::rename(&fresh, &self.path)?;
            Ok(file)
        };
        match replace() {
            Ok(file) => {
                (self.file, self.bytes) = (file, bytes.len());
                if std::mem::take(&mut self.failing) {
                    log::info!("the journal works again");
                }
            }
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            log::warn!("{}: {error}; until the next commit a crash may cost readings", self.path.display());
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limits::JOURNAL_BYTES).unwrap_or(u64::MAX);
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn frame(next_batch: BatchNumber, id: DeviceId, item: &Item) -> Option<Vec<u8>> {
    let (entry, _) = batch::encode(std::slice::from_ref(item))?;
    let mut name = id.to_string().into_bytes();
    name.resize(ID, 0);
    let mut content = next_batch.get().to_le_bytes().to_vec();
    content.extend(item.device.get().to_le_bytes());
    content.extend(name);
    content.extend(entry);
    let mut frame = u32::try_from(content.len()).ok()?.to_le_bytes().to_vec();
    frame.extend(content);
    Some(frame)
}

/// The entries of a journal, as far as it is whole: the last frame may have been cut off by the end of the program.
fn parse(bytes: &[u8], store: StoreId) -> Vec<Found> {
    let mut found = Vec::new();
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return found };
    let expected = [&MAGIC[..], &VERSION.to_le_bytes(), &store].concat();
    if head != expected {
        log::warn!("the journal found belongs to another store or version: it is left aside");
        return found;
    }
    let mut input = Input(rest);
    while let Some(entry) = next(&mut input) {
        found.push(entry);
    }
    found
}

fn next(input: &mut Input<'_>) -> Option<Found> {
    let length = u32::from_le_bytes(input.array().ok()?);
    let mut content = Input(input.take(usize::try_from(length).ok()?).ok()?);
    let next_batch = BatchNumber::new(u64::from_le_bytes(content.array().ok()?));
    let _device: [u8; 4] = content.array().ok()?;
    let name: [u8; ID] = content.array().ok()?;
    let id = std::str::from_utf8(&name).ok()?.trim_end_matches('\0').parse().ok()?;
    let item = batch::decode(content.0, |_| true).ok()?.into_iter().next()?;
    Some(Found { next_batch, id, item })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Entry, Mac, Reading};
    use crate::store::DeviceNumber;
    use crate::store::chunk::Stored;
    use crate::units::{Milliwatts, UnixMillis};
    use proptest::prelude::*;

    fn item(n: u32, time: i64) -> Item {
        let reading = Reading {
            time: UnixMillis::new(time),
            power: Milliwatts::new(time % 1_000).unwrap(),
            voltage: None,
            current: None,
            counter: None,
            relay: None,
        };
        let stored = Stored { entry: Entry::Reading(reading), interval_ms: 10_000 };
        Item { device: DeviceNumber::new(n), stored, late: false }
    }

    fn id(n: u8) -> DeviceId {
        DeviceId::outlet(Mac::new([n; 6]), n)
    }

    fn shm() -> Option<tempfile::TempDir> {
        tempfile::tempdir_in("/dev/shm").ok() // not everywhere
    }

    #[test]
    fn what_was_written_is_found_again_and_another_stores_is_not() {
        let Some(dir) = shm() else { return };
        let (mut journal, found) = Journal::open(dir.path(), [1; 16]).unwrap();
        assert_eq!(found, []);
        journal.restart(BatchNumber::new(7), std::iter::once((id(1), &item(1, 5))));
        journal.append(BatchNumber::new(7), id(2), &item(2, 6));
        drop(journal);
        let (_, found) = Journal::open(dir.path(), [1; 16]).unwrap();
        assert_eq!(
            found.iter().map(|f| (f.id, f.item)).collect::<Vec<_>>(),
            [(id(1), item(1, 5)), (id(2), item(2, 6))]
        );
        assert!(found.iter().all(|f| f.next_batch == BatchNumber::new(7)));
        assert_eq!(Journal::open(dir.path(), [2; 16]).unwrap().1, []);
    }

    #[test]
    fn a_directory_on_a_disk_is_refused() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let error = Journal::open(dir.path(), [1; 16]);
        if let Err(error) = error {
            assert!(error.to_string().contains("tmpfs"), "{error}");
        }
    }

    #[test]
    fn a_full_journal_takes_no_more_and_begins_anew() {
        let Some(dir) = shm() else { return };
        let (mut journal, _) = Journal::open(dir.path(), [1; 16]).unwrap();
        journal.restart(BatchNumber::new(0), std::iter::empty());
        for n in 0..150_000 {
            journal.append(BatchNumber::new(0), id(1), &item(1, n));
        }
        let length = std::fs::metadata(dir.path().join("wattd.journal")).unwrap().len();
        assert!(length <= limits::JOURNAL_BYTES as u64 && journal.failing, "{length}");
        journal.restart(BatchNumber::new(1), std::iter::empty());
        assert!(!journal.failing);
    }

    proptest! {
        #[test]
        fn a_journal_that_is_cut_off_or_damaged_gives_what_is_whole(cut in 0..600_usize, at in 0..600_usize, byte: u8) {
            let mut bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &[1; 16]].concat();
            for n in 0..5 {
                bytes.extend(frame(BatchNumber::new(n), id(1), &item(1, n as i64)).unwrap());
            }
            bytes.truncate(cut);
            if let Some(damaged) = bytes.get_mut(at) {
                *damaged = byte;
            }
            let found = parse(&bytes, [1; 16]);
            prop_assert!(found.len() <= 5);
        }
    }
}
