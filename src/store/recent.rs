//! A device's newest entries, packed in memory: all that are not sealed, and at least the last [`KEEP`] of all.
//!
//! Promises that every stored reading later than [`Recent::complete_after`] is here, so that a scan of recent time touches
//! no disk, goes on while the disk is gone, and is warm after a restart; and that what is here but sealed never exceeds
//! [`KEEP`] entries and a block. An entry takes 8 to 12 bytes: 20 devices at 10 s take 0.1 MB just after everything was
//! sealed and 0.4 MB at most, 200 take ten times that.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::Columns;
use super::bytes::Input;
use super::chunk::Stored;
use super::{DeviceNumber, Item};
use crate::units::UnixMillis;

/// Entries kept although the file has them: an hour at 10 s, and some.
pub const KEEP: usize = 384;
/// Entries in a block: what is decoded at least, and given up at once.
const BLOCK: usize = 64;

/// Some entries in order of arrival. It never changes once it is full, so scans share it.
#[derive(Clone, Debug)]
pub struct Block {
    device: DeviceNumber,
    /// The earliest entry.
    pub first: UnixMillis,
    /// The latest entry.
    pub last: UnixMillis,
    entries: usize,
    bytes: Vec<u8>,
}

impl Block {
    fn new(device: DeviceNumber) -> Self {
        Self { device, first: UnixMillis::MAX, last: UnixMillis::MIN, entries: 0, bytes: Vec::new() }
    }

    fn push(&mut self, columns: &mut Columns, item: &Item) {
        self.first = self.first.min(item.time());
        self.last = self.last.max(item.time());
        self.entries += 1;
        columns.put(&mut self.bytes, item);
    }

    /// The block without an entry, and what the next one would be told apart from. None when it is not in it.
    fn without(&self, gone: &Stored) -> Option<(Self, Columns)> {
        let at = self.items().position(|item| item.stored == *gone)?;
        let (mut rest, mut columns) = (Self::new(self.device), Columns::default());
        for (_, item) in self.items().enumerate().filter(|(n, _)| *n != at) {
            rest.push(&mut columns, &item);
        }
        Some((rest, columns))
    }

    /// The entries, in order of arrival.
    pub fn items(&self) -> impl Iterator<Item = Item> + '_ {
        let (mut input, mut columns) = (Input(&self.bytes), Columns::default());
        // What this program has just written can be read.
        (0..self.entries).map_while(move |_| columns.take(&mut input, self.device).ok())
    }
}

/// The entries of one device.
#[derive(Debug)]
pub struct Recent {
    device: DeviceNumber,
    /// Full ones, the oldest first.
    blocks: VecDeque<Arc<Block>>,
    open: Block,
    /// What the next entry of the open block is told apart from.
    columns: Columns,
    entries: usize,
    complete_after: Option<UnixMillis>,
}

impl Recent {
    /// Nothing yet, of a device of which the file has entries up to `complete_after`.
    pub fn new(device: DeviceNumber, complete_after: Option<UnixMillis>) -> Self {
        let (blocks, open) = (VecDeque::new(), Block::new(device));
        Self { device, blocks, open, columns: Columns::default(), entries: 0, complete_after }
    }

    /// All stored readings after this time are here; all there are when it is None.
    pub const fn complete_after(&self) -> Option<UnixMillis> {
        self.complete_after
    }

    /// Takes the entry that arrived next.
    pub fn push(&mut self, stored: &Stored) {
        let item = Item { device: self.device, stored: *stored, late: false };
        self.open.push(&mut self.columns, &item);
        self.entries += 1;
        if self.open.entries >= BLOCK {
            let mut full = std::mem::replace(&mut self.open, Block::new(self.device));
            full.bytes.shrink_to_fit();
            self.blocks.push_back(Arc::new(full));
            self.columns = Columns::default();
        }
    }

    /// What all of it takes, without what the allocator adds.
    pub fn bytes(&self) -> usize {
        let of = |block: &Block| size_of::<Block>() + block.bytes.capacity();
        size_of::<Self>() + self.open.bytes.capacity() + self.blocks.iter().map(|block| of(block)).sum::<usize>()
    }

    /// All blocks, in order of arrival.
    pub fn blocks(&self) -> Vec<Arc<Block>> {
        let open = (self.open.entries > 0).then(|| Arc::new(self.open.clone()));
        self.blocks.iter().cloned().chain(open).collect()
    }

    /// The blocks that have an entry in `[from, to]`.
    pub fn blocks_in(&self, from: UnixMillis, to: UnixMillis) -> Vec<Arc<Block>> {
        let overlaps = |block: &Block| block.entries > 0 && block.first <= to && block.last >= from;
        let open = overlaps(&self.open).then(|| Arc::new(self.open.clone()));
        self.blocks.iter().filter(|block| overlaps(block)).cloned().chain(open).collect()
    }

    /// Everything up to `sealed_to` is in the file's chunks; the last `uncommitted` entries are in no commit. Gives up the
    /// oldest of what need not be kept.
    pub fn give_up(&mut self, sealed_to: Option<UnixMillis>, uncommitted: usize) {
        let Some(sealed_to) = sealed_to else { return };
        let keep = KEEP.max(uncommitted);
        while let Some(oldest) = self.blocks.front() {
            let is_needed = oldest.last > sealed_to || self.entries.saturating_sub(oldest.entries) < keep;
            if is_needed {
                break;
            }
            self.entries = self.entries.saturating_sub(oldest.entries);
            self.complete_after = self.complete_after.max(Some(oldest.last));
            self.blocks.pop_front();
        }
    }

    /// Entries up to `time` may be gone from the file: what the file still has of them counts.
    pub fn forget(&mut self, time: UnixMillis) {
        self.complete_after = self.complete_after.max(Some(time));
        while self.blocks.front().is_some_and(|oldest| oldest.last <= time) {
            self.entries = self.entries.saturating_sub(self.blocks.pop_front().map_or(0, |block| block.entries));
        }
        let rest: Vec<Stored> = self.blocks().iter().flat_map(|block| block.items()).map(|item| item.stored).collect();
        self.refill(rest.iter().filter(|stored| stored.entry.time() > time));
    }

    /// Takes out an entry that will never be in the file.
    pub fn remove(&mut self, gone: &Stored) {
        let time = gone.entry.time();
        let may_have = |block: &Block| (block.first..=block.last).contains(&time);
        for n in 0..self.blocks.len() {
            let Some(block) = self.blocks.get(n).filter(|block| may_have(block)) else { continue };
            let Some(without) = block.without(gone) else { continue };
            self.entries = self.entries.saturating_sub(1);
            if without.0.entries == 0 {
                self.blocks.remove(n);
            } else if let Some(block) = self.blocks.get_mut(n) {
                *block = Arc::new(without.0);
            }
            return;
        }
        if let Some((without, columns)) = self.open.without(gone) {
            self.entries = self.entries.saturating_sub(1);
            (self.open, self.columns) = (without, columns);
        }
    }

    fn refill<'a>(&mut self, entries: impl Iterator<Item = &'a Stored>) {
        let mut fresh = Self::new(self.device, self.complete_after);
        entries.for_each(|stored| fresh.push(stored));
        *self = fresh;
    }
}
