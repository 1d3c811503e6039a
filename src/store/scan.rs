//! One page of a scan, read in one snapshot of the file, or from memory alone.
//!
//! Rows come from three places: what is in memory, sealed chunks, and readings that came late. A row may be in two of
//! them; it is shown once. Memory and chunks are read a step at a time, always the one that is furthest behind, and no
//! further than the page needs, so that no more is decoded than a page and one chunk or block of each device.

use std::iter::Peekable;
use std::sync::Arc;

use redb::{AccessGuard, Range, ReadOnlyTable, ReadTransaction};

use super::batch;
use super::chunk;
use super::file::{LATE, SEALED};
use super::recent::{Block, Recent};
use super::{DeviceNumber, Item, Order, Page, Row, Scan, StoreError, Touched};
use crate::limits;
use crate::reading::Entry;
use crate::units::UnixMillis;

/// Rows kept beyond what the page needs before they are sorted and cut.
const SLACK: usize = 4_096;

/// What of the devices of a scan is in memory, in its range.
pub(super) struct InMemory {
    blocks: Vec<Vec<Arc<Block>>>,
    /// All rows later than this are in `blocks`.
    complete_after: Option<UnixMillis>,
}

impl InMemory {
    /// Of `devices`, those that the scan names. Those that are unknown have nothing.
    pub fn of<'a>(devices: impl Iterator<Item = &'a Recent>, scan: &Scan) -> Self {
        let (from, to) = scan.bounds();
        let mut found = Self { blocks: Vec::new(), complete_after: None };
        for recent in devices {
            found.complete_after = found.complete_after.max(recent.complete_after());
            found.blocks.push(recent.blocks_in(from, to));
        }
        found
    }

    fn sources<'a>(&self, scan: &Scan) -> Vec<Source<'a>> {
        self.blocks.iter().map(|blocks| Source::Blocks(Blocks::new(blocks.clone(), scan.order))).collect()
    }

    /// The page, when it can be made of memory alone.
    pub fn page(&self, scan: &Scan) -> Option<Page> {
        let (from, _) = scan.bounds();
        let is_covered = self.complete_after.is_none_or(|after| from > after);
        if !is_covered && scan.order == Order::Ascending {
            return None;
        }
        let mut found = Found::new(scan, self.complete_after.filter(|_| !is_covered));
        found.read(self.sources(scan)).ok()?;
        let page = found.into_page();
        (is_covered || page.more).then_some(page)
    }
}

/// The page, from the file and from memory.
pub(super) fn page(read: &ReadTransaction, scan: &Scan, memory: &InMemory) -> Result<Page, StoreError> {
    let mut found = Found::new(scan, None);
    let late = read.open_table(LATE)?;
    for device in &scan.devices {
        found.add_late(&late, *device)?;
    }
    let sealed = read.open_table(SEALED)?;
    let mut sources = memory.sources(scan);
    for device in &scan.devices {
        sources.push(Source::Chunks(Box::new(Chunks::new(&sealed, scan, *device)?)));
    }
    found.read(sources)?;
    Ok(found.into_page())
}

/// A place that rows come from, read a step at a time.
enum Source<'a> {
    Blocks(Blocks),
    Chunks(Box<Chunks<'a>>),
}

impl Source<'_> {
    /// The time that rows of further steps may reach: their earliest when reading forwards, their latest backwards. None
    /// when there are none.
    fn horizon(&mut self) -> Option<UnixMillis> {
        match self {
            Self::Blocks(blocks) => blocks.horizon(),
            Self::Chunks(chunks) => chunks.horizon(),
        }
    }

    fn step(&mut self, found: &mut Found<'_>) -> Result<(), StoreError> {
        match self {
            Self::Blocks(blocks) => {
                blocks.step(found);
                Ok(())
            }
            Self::Chunks(chunks) => chunks.step(found),
        }
    }
}

/// One device's blocks that overlap the range.
struct Blocks {
    order: Order,
    /// Those still to be read, the next one last.
    left: Vec<Arc<Block>>,
}

impl Blocks {
    fn new(mut left: Vec<Arc<Block>>, order: Order) -> Self {
        // They are nearly in order; a step of the clock can mix them.
        match order {
            Order::Ascending => left.sort_by_key(|block| std::cmp::Reverse(block.first)),
            Order::Descending => left.sort_by_key(|block| block.last),
        }
        Self { order, left }
    }

    fn horizon(&self) -> Option<UnixMillis> {
        let next = self.left.last()?;
        Some(match self.order {
            Order::Ascending => next.first,
            Order::Descending => next.last,
        })
    }

    fn step(&mut self, found: &mut Found<'_>) {
        let Some(block) = self.left.pop() else { return };
        block.items().filter_map(|item| item.row()).for_each(|row| found.add(row));
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
        found.touched.chunks = found.touched.chunks.saturating_add(1);
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
    /// Rows up to this time are passed over.
    after: Option<UnixMillis>,
    limit: usize,
    rows: Vec<Row>,
    touched: Touched,
}

impl<'a> Found<'a> {
    fn new(scan: &'a Scan, after: Option<UnixMillis>) -> Self {
        Self { scan, after, limit: scan.limit.min(limits::PAGE_ROWS), rows: Vec::new(), touched: Touched::default() }
    }

    /// Reads `sources` as far as the page needs.
    fn read(&mut self, mut sources: Vec<Source<'_>>) -> Result<(), StoreError> {
        loop {
            let horizons = sources.iter_mut().map(Source::horizon).enumerate();
            let next = horizons.filter_map(|(n, horizon)| horizon.map(|horizon| (horizon, n)));
            let next = match self.scan.order {
                Order::Ascending => next.min(),
                Order::Descending => next.max(),
            };
            let Some((horizon, n)) = next else { return Ok(()) };
            if self.is_settled_before(horizon) {
                return Ok(());
            }
            if let Some(source) = sources.get_mut(n) {
                source.step(self)?;
            }
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
                Ok(items) => items.iter().filter_map(Item::row).for_each(|row| self.add(row)),
                Err(why) => {
                    let what = format!("a late reading of device {}", device.get());
                    log::error!("{}", StoreError::Damaged { what, why: why.into() });
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, row: Row) {
        self.touched.rows = self.touched.rows.saturating_add(1);
        if self.scan.covers(&row) && self.after.is_none_or(|after| row.reading.time > after) {
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
        Page { rows: self.rows, more, touched: self.touched }
    }
}
