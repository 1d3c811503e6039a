//! Readings once more in the order in which they came, for whoever listened and was cut off.
//!
//! A [`Mark`] is a place in the stream of entries: a batch, how many of its entries came before, and the time of the last of
//! them. It outlives the program, since batches are numbered on disk. Promises that what lies after a mark is told whole, or
//! that it is said to be lost. What is told may hold up to fifteen seconds of entries twice when the batch was committed
//! meanwhile: a batch on disk is ordered by device and no longer knows what came first.

use std::fmt;
use std::str::FromStr;

use redb::ReadTransaction;

use super::batch;
use super::file::HEAD;
use super::{BatchNumber, Item, Row, Store, StoreError, Touched};
use crate::limits;
use crate::units::UnixMillis;

/// A place in the stream of entries. Text form: `BATCH.ENTRIES.MILLISECONDS`; the batch alone is read as its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The batch that the next entry belongs to.
    pub batch: BatchNumber,
    /// Entries of it that came before.
    entries: usize,
    /// The time of the last of them; tells a place of this run from one in a batch that was lost.
    time: UnixMillis,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.batch.get(), self.entries, self.time.get())
    }
}

/// A text that is no mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMark;

impl FromStr for Mark {
    type Err = NotAMark;

    fn from_str(text: &str) -> Result<Self, NotAMark> {
        let mut parts = text.split('.');
        let batch = parts.next().and_then(|text| text.parse().ok()).ok_or(NotAMark)?;
        let entries = parts.next().map_or(Ok(0), str::parse).map_err(|_| NotAMark)?;
        let time = parts.next().map_or(Ok(0), str::parse).map_err(|_| NotAMark)?;
        if parts.next().is_some() {
            return Err(NotAMark);
        }
        Ok(Self { batch: BatchNumber::new(batch), entries, time: UnixMillis::new(time) })
    }
}

/// What lies after a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing yet.
    Nothing,
    /// These readings, as they came, and where they end.
    Rows(Vec<Row>, Mark),
    /// It is sealed and its order forgotten, or it never was: the range of time is all that can be asked for.
    Lost,
}

impl Mark {
    const fn beginning(batch: BatchNumber) -> Self {
        Self { batch, entries: 0, time: UnixMillis::MIN }
    }

    /// The mark after the last of `items`, the entries of `batch` in order of arrival.
    fn behind<'a>(batch: BatchNumber, items: impl ExactSizeIterator<Item = &'a Item>) -> Self {
        let entries = items.len();
        Self { batch, entries, time: items.last().map_or(UnixMillis::MIN, Item::time) }
    }

    /// How many of `items` lie before it. None of them when it is not a place among them.
    fn passed<'a>(&self, mut items: impl Iterator<Item = &'a Item>) -> usize {
        let last = self.entries.checked_sub(1).and_then(|last| items.nth(last));
        if last.is_some_and(|last| last.time() == self.time) { self.entries } else { 0 }
    }

    /// Whether an entry of its batch, now on disk, came certainly before it: an entry comes within the time that a poll may
    /// take.
    fn is_past(&self, item: &Item) -> bool {
        let slack = i64::try_from(limits::POLL_BUDGET.as_millis()).unwrap_or(i64::MAX);
        self.entries > 0 && !item.late && item.time() < self.time.plus(-slack)
    }
}

impl Store {
    /// The place after the newest entry.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let memory = self.memory.borrow();
        Mark::behind(memory.next_batch, memory.pending.iter())
    }

    /// What lies after `mark`, when memory has it; nothing is awaited then. None when the file has to be read.
    #[must_use]
    pub fn after(&self, mark: Mark) -> Option<After> {
        let memory = self.memory.borrow();
        let rows = |items: Vec<&Item>| items.into_iter().filter_map(Item::row).collect::<Vec<_>>();
        if mark.batch > memory.next_batch {
            return Some(After::Lost);
        }
        if mark.batch == memory.next_batch {
            let passed = mark.passed(memory.pending.iter());
            let next = Mark::behind(memory.next_batch, memory.pending.iter());
            if passed == memory.pending.len() {
                return Some(After::Nothing);
            }
            return Some(After::Rows(rows(memory.pending.iter().skip(passed).collect()), next));
        }
        let outgoing = memory.outgoing.as_ref().filter(|outgoing| outgoing.number == mark.batch)?;
        let passed = mark.passed(outgoing.items.iter());
        Some(After::Rows(rows(outgoing.items.iter().skip(passed).collect()), Mark::beginning(memory.next_batch)))
    }

    /// What lies after `mark` in the file: the rest of its batch.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn after_in_file(&self, mark: Mark) -> Result<After, StoreError> {
        self.read(move |file| file.after(mark)).await
    }
}

/// The bytes of the batch of `mark`, where the file's head has it.
pub(super) fn in_head(read: &ReadTransaction, mark: Mark) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(read.open_table(HEAD)?.get(mark.batch.get())?.map(|bytes| bytes.value().to_vec()))
}

/// The rest of the batch of `mark`, whose bytes are these; lost when it is nowhere.
pub(super) fn after(bytes: Option<&[u8]>, mark: Mark) -> (After, Touched) {
    let Some(bytes) = bytes else { return (After::Lost, Touched::default()) };
    let next = Mark::beginning(BatchNumber::new(mark.batch.get().saturating_add(1)));
    let items = batch::decode(bytes, |_| true).unwrap_or_else(|why| {
        let what = format!("batch {}", mark.batch.get());
        log::error!("{}", StoreError::Damaged { what, why: why.into() });
        Vec::new()
    });
    let mut rows: Vec<Row> = items.iter().filter(|item| !mark.is_past(item)).filter_map(Item::row).collect();
    rows.sort_by_key(Row::position);
    (After::Rows(rows, next), Touched::of_rows(items.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_and_read() {
        let mark = Mark { batch: BatchNumber::new(17), entries: 3, time: UnixMillis::new(1_795_423_474_120) };
        assert_eq!(mark.to_string(), "17.3.1795423474120");
        assert_eq!(mark.to_string().parse(), Ok(mark));
        assert_eq!("17".parse(), Ok(Mark::beginning(BatchNumber::new(17))));
        for bad in ["", "x", "-1", "1.2.3.4", "1..3", "99999999999999999999"] {
            assert_eq!(bad.parse::<Mark>(), Err(NotAMark), "{bad}");
        }
    }
}
