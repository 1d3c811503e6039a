//! One page of a scan, read in one snapshot of the file.
//!
//! Rows come from four places: sealed chunks, readings that came late, head batches, and what is only in memory. An entry
//! of the head that is not late counts only beyond its device's sealed time, so that it is seen once while its batch waits
//! for other devices. The places are read a step at a time, always the one that is furthest behind, and no further than
//! the page needs; memory holds a page and one chunk or batch.

use std::collections::BTreeMap;
use std::iter::Peekable;

use redb::{AccessGuard, Range, ReadOnlyTable, ReadTransaction};

use super::batch;
use super::chunk;
use super::file::{Batches, HEAD, LATE, SEALED, TAIL, tail};
use super::{BATCH_SPAN, BatchNumber, DeviceNumber, Item, Order, Page, Row, Scan, StoreError};
use crate::limits;
use crate::reading::Entry;
use crate::units::UnixMillis;

/// Rows kept beyond what the page needs before they are sorted and cut.
const SLACK: usize = 4_096;

/// The page. `memory` holds what no commit covers, `batches` every head batch that was committed before.
pub(super) fn page(
    read: &ReadTransaction,
    scan: &Scan,
    batches: &Batches,
    memory: Vec<Item>,
) -> Result<Page, StoreError> {
    let tails = read.open_table(TAIL)?;
    let mut sealed_to = BTreeMap::new();
    for device in &scan.devices {
        sealed_to.insert(*device, tail(&tails, *device)?.sealed_to);
    }
    let mut found = Found { scan, sealed_to, limit: scan.limit.min(limits::PAGE_ROWS), rows: Vec::new() };
    for item in memory {
        found.add_item(&item);
    }
    let late = read.open_table(LATE)?;
    for device in &scan.devices {
        found.add_late(&late, *device)?;
    }
    let sealed = read.open_table(SEALED)?;
    let mut sources = vec![Source::Head(Head::new(read.open_table(HEAD)?, scan, batches))];
    for device in &scan.devices {
        sources.push(Source::Chunks(Box::new(Chunks::new(&sealed, scan, *device)?)));
    }
    loop {
        let horizons = sources.iter_mut().map(Source::horizon).enumerate();
        let next = horizons.filter_map(|(n, horizon)| horizon.map(|horizon| (horizon, n)));
        let next = match scan.order {
            Order::Ascending => next.min(),
            Order::Descending => next.max(),
        };
        let Some((horizon, n)) = next else { break };
        if found.is_settled_before(horizon) {
            break;
        }
        if let Some(source) = sources.get_mut(n) {
            source.step(&mut found)?;
        }
    }
    Ok(found.into_page())
}

/// A place that rows come from, read a step at a time.
enum Source<'a> {
    Head(Head<'a>),
    Chunks(Box<Chunks<'a>>),
}

impl Source<'_> {
    /// The time that rows of further steps may reach: their earliest when reading forwards, their latest backwards. None
    /// when there are none.
    fn horizon(&mut self) -> Option<UnixMillis> {
        match self {
            Self::Head(head) => head.horizon(),
            Self::Chunks(chunks) => chunks.horizon(),
        }
    }

    fn step(&mut self, found: &mut Found<'_>) -> Result<(), StoreError> {
        match self {
            Self::Head(head) => head.step(found),
            Self::Chunks(chunks) => chunks.step(found),
        }
    }
}

/// Head batches that overlap the range.
struct Head<'a> {
    table: ReadOnlyTable<u64, &'static [u8]>,
    order: Order,
    batches: &'a Batches,
    /// Those still to be read, the next one last.
    left: Vec<(UnixMillis, BatchNumber)>,
}

impl<'a> Head<'a> {
    fn new(table: ReadOnlyTable<u64, &'static [u8]>, scan: &Scan, batches: &'a Batches) -> Self {
        let (from, to) = scan.bounds();
        let reach = (from.plus(-BATCH_SPAN), BatchNumber(0))..=(to, BatchNumber(u64::MAX));
        let overlapping = (!reach.is_empty()).then(|| batches.range(reach)).into_iter().flatten();
        let mut left: Vec<_> = overlapping.filter(|(_, last)| **last >= from).map(|(key, _)| *key).collect();
        if scan.order == Order::Ascending {
            left.reverse();
        }
        Self { table, order: scan.order, batches, left }
    }

    fn horizon(&self) -> Option<UnixMillis> {
        let (first, _) = *self.left.last()?;
        match self.order {
            Order::Ascending => Some(first),
            Order::Descending => {
                // Batches hardly overlap, but a step of the clock can make one that began earlier end later.
                let near = self.left.iter().rev().take_while(|(other, _)| *other >= first.plus(-BATCH_SPAN));
                near.filter_map(|key| self.batches.get(key).copied()).max()
            }
        }
    }

    fn step(&mut self, found: &mut Found<'_>) -> Result<(), StoreError> {
        let Some((_, number)) = self.left.pop() else { return Ok(()) };
        // A batch that is gone was sealed by a commit after the index was taken: its rows come from chunks.
        let Some(bytes) = self.table.get(number.get())? else { return Ok(()) };
        match batch::decode(bytes.value(), |device| found.sealed_to.contains_key(&device)) {
            Ok(items) => items.iter().for_each(|item| found.add_item(item)),
            Err(why) => {
                log::error!("{}", StoreError::Damaged { what: format!("batch {}", number.get()), why: why.into() })
            }
        }
        Ok(())
    }
}

type Entries<'a> = Range<'a, (u32, i64), &'static [u8]>;
type Chunk<'a> = (AccessGuard<'a, (u32, i64)>, AccessGuard<'a, &'static [u8]>);

/// One device's chunks that overlap the range.
struct Chunks<'a> {
    order: Order,
    from: UnixMillis,
    forwards: Peekable<ChunkIter<'a>>,
    /// Backwards: what is not yet read lies before this.
    before: UnixMillis,
}

enum ChunkIter<'a> {
    Forwards(Entries<'a>),
    Backwards(Entries<'a>),
}

impl<'a> Iterator for ChunkIter<'a> {
    type Item = Result<Chunk<'a>, redb::StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Forwards(range) => range.next(),
            Self::Backwards(range) => range.next_back(),
        }
    }
}

impl<'a> Chunks<'a> {
    fn new(
        sealed: &'a ReadOnlyTable<(u32, i64), &'static [u8]>,
        scan: &Scan,
        device: DeviceNumber,
    ) -> Result<Self, StoreError> {
        let (from, to) = scan.bounds();
        let device = device.get();
        // The last chunk that begins at or before the range may reach into it.
        let first = sealed.range((device, i64::MIN)..=(device, from.get()))?.next_back().transpose()?;
        let start = first.map_or(from.get(), |(key, _)| key.value().1);
        let end = to.get().max(start);
        let range = sealed.range((device, start)..=(device, end))?;
        let forwards = match scan.order {
            Order::Ascending => ChunkIter::Forwards(range),
            Order::Descending => ChunkIter::Backwards(range),
        };
        Ok(Self { order: scan.order, from, forwards: forwards.peekable(), before: UnixMillis::MAX })
    }

    fn horizon(&mut self) -> Option<UnixMillis> {
        let next = self.forwards.peek()?;
        match self.order {
            // An error is met, and told, by the step.
            Order::Ascending => Some(next.as_ref().map_or(self.from, |(key, _)| UnixMillis::new(key.value().1))),
            Order::Descending => Some(self.before),
        }
    }

    fn step(&mut self, found: &mut Found<'_>) -> Result<(), StoreError> {
        let Some(next) = self.forwards.next().transpose()? else { return Ok(()) };
        let (device, first) = next.0.value();
        let device = DeviceNumber::new(device);
        self.before = UnixMillis::new(first);
        match chunk::decode(next.1.value(), found.scan.columns) {
            Ok(entries) => {
                for stored in entries {
                    if let Entry::Reading(reading) = stored.entry {
                        found.add(Row { device, reading });
                    }
                }
            }
            Err(why) => {
                let what = format!("a chunk of device {} from {}", device.get(), UnixMillis::new(first));
                log::error!("{}", StoreError::Damaged { what, why: why.into() });
            }
        }
        Ok(())
    }
}

/// Rows gathered for one page.
struct Found<'a> {
    scan: &'a Scan,
    sealed_to: BTreeMap<DeviceNumber, Option<UnixMillis>>,
    limit: usize,
    rows: Vec<Row>,
}

impl Found<'_> {
    fn add_item(&mut self, item: &Item) {
        let is_sealed = self.sealed_to.get(&item.device).is_some_and(|to| to.is_some_and(|to| item.time() <= to));
        if item.late || !is_sealed {
            self.rows_of(item);
        }
    }

    fn rows_of(&mut self, item: &Item) {
        if let Some(row) = item.row() {
            self.add(row);
        }
    }

    fn add_late(
        &mut self,
        late: &ReadOnlyTable<(u32, i64), &'static [u8]>,
        device: DeviceNumber,
    ) -> Result<(), StoreError> {
        let (from, to) = self.scan.bounds();
        if from > to {
            return Ok(());
        }
        let range = late.range((device.get(), from.get())..=(device.get(), to.get()))?;
        let range: Box<dyn Iterator<Item = _>> = match self.scan.order {
            Order::Ascending => Box::new(range),
            Order::Descending => Box::new(range.rev()),
        };
        for entry in range.take(self.limit.saturating_add(2)) {
            let (_, bytes) = entry?;
            match batch::decode(bytes.value(), |_| true) {
                Ok(items) => items.iter().for_each(|item| self.rows_of(item)),
                Err(why) => {
                    let what = format!("a late reading of device {}", device.get());
                    log::error!("{}", StoreError::Damaged { what, why: why.into() });
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, row: Row) {
        if self.scan.covers(&row) {
            self.rows.push(row);
            if self.rows.len() > 2 * self.limit + SLACK {
                self.sort_and_cut();
            }
        }
    }

    /// Rows beyond the page and the one after it cannot come into it any more.
    fn sort_and_cut(&mut self) {
        match self.scan.order {
            Order::Ascending => self.rows.sort_by_key(Row::position),
            Order::Descending => self.rows.sort_by_key(|row| std::cmp::Reverse(row.position())),
        }
        // A row that was committed or sealed while the scan ran was found in both places.
        self.rows.dedup_by_key(|row| row.position());
        self.rows.truncate(self.limit + 1);
    }

    /// Whether the page is full, and one row more, with rows that come before all that lie at or beyond `horizon`.
    fn is_settled_before(&mut self, horizon: UnixMillis) -> bool {
        if self.settled_before(horizon) <= self.limit {
            return false;
        }
        // Enough rows; whether they are different ones shows when they are in order.
        self.sort_and_cut();
        self.settled_before(horizon) > self.limit
    }

    fn settled_before(&self, horizon: UnixMillis) -> usize {
        let is_settled = |row: &&Row| match self.scan.order {
            Order::Ascending => row.reading.time < horizon,
            Order::Descending => row.reading.time > horizon,
        };
        if self.rows.len() <= self.limit { 0 } else { self.rows.iter().filter(is_settled).count() }
    }

    fn into_page(mut self) -> Page {
        self.sort_and_cut();
        let more = self.rows.len() > self.limit;
        self.rows.truncate(self.limit);
        Page { rows: self.rows, more }
    }
}
