//! One device since what of it is sealed: its energy up to this moment, the buckets not yet in the file, and how much waits
//! to be sealed. Pure.

use super::chunk::Stored;
use super::file::Tail;
use crate::reading::Entry;
use crate::rollup::{Bucket, Fold};
use crate::units::{MilliwattHours, UnixMillis};

/// Entries that a first chunk is expected to take.
const FIRST_CHUNK: u32 = 1_000;

/// A device since its tail.
#[derive(Default)]
pub struct Live {
    sealed_to: Option<UnixMillis>,
    fold: Fold,
    /// Finished since the tail.
    finished: Vec<Bucket>,
    last: Option<Stored>,
    /// The earliest entry not sealed, and how many there are.
    open_from: Option<UnixMillis>,
    open: u32,
    /// How many entries the last chunk took.
    chunk_entries: u32,
}

impl Live {
    /// Where the tail ends; `last` is the last sealed entry, when it is known.
    #[must_use]
    pub fn after(tail: &Tail, last: Option<Stored>) -> Self {
        Self {
            sealed_to: tail.sealed_to,
            fold: tail.state.fold.clone(),
            chunk_entries: tail.state.chunk_entries,
            last,
            ..Self::default()
        }
    }

    /// The last entry in order of time.
    #[must_use]
    pub fn last(&self) -> Option<Stored> {
        self.last
    }

    /// Takes an entry. False when it is late: not after the one before. It is then stored, but its energy is counted only
    /// when the entries around it are sealed.
    pub fn push(&mut self, stored: &Stored) -> bool {
        let time = stored.entry.time();
        if self.sealed_to.is_none_or(|to| time > to) {
            self.open = self.open.saturating_add(1);
            self.open_from = Some(self.open_from.map_or(time, |from| from.min(time)));
        }
        if self.last_time().is_some_and(|latest| time <= latest) {
            return false;
        }
        let finished = &mut self.finished;
        self.fold.push(&stored.entry, stored.interval_ms, |bucket| finished.push(bucket));
        self.last = Some(*stored);
        true
    }

    /// Takes an entry that was appended before. False when its time is sealed already.
    pub fn recall(&mut self, stored: &Stored) -> bool {
        let is_open = !self.is_sealed(stored.entry.time());
        if is_open {
            self.push(stored);
        }
        is_open
    }

    /// Whether what has this time belongs to chunks.
    #[must_use]
    pub fn is_sealed(&self, time: UnixMillis) -> bool {
        self.sealed_to.is_some_and(|to| time <= to)
    }

    /// The time of the last sealed entry.
    #[must_use]
    pub const fn sealed_to(&self) -> Option<UnixMillis> {
        self.sealed_to
    }

    /// The time of the last entry in order.
    #[must_use]
    pub fn last_time(&self) -> Option<UnixMillis> {
        self.last.map(|last| last.entry.time()).max(self.sealed_to)
    }

    /// The interval in force, when the device is observed at `from`, so that a gap may begin there.
    #[must_use]
    pub fn gap_may_begin(&self, from: UnixMillis) -> Option<u32> {
        let last = self.last.filter(|last| matches!(last.entry, Entry::Reading(_)) && last.entry.time() < from)?;
        Some(last.interval_ms)
    }

    /// Whether it is time to seal: a chunk would be full, or an entry has waited since before `seal_before`.
    #[must_use]
    pub fn is_due(&self, seal_before: UnixMillis) -> bool {
        let enough = if self.chunk_entries == 0 { FIRST_CHUNK } else { self.chunk_entries };
        self.open > enough || self.open_from.is_some_and(|from| from < seal_before)
    }

    /// What is open now did not fill a chunk: the next try comes when there is a little more.
    pub fn learn_chunk(&mut self) {
        self.chunk_entries = self.chunk_entries.max(self.open.saturating_add(self.open / 16));
    }

    /// The earliest entry not sealed.
    #[must_use]
    pub fn open_from(&self) -> Option<UnixMillis> {
        self.open_from
    }

    /// All energy drawn so far.
    #[must_use]
    pub fn total(&self) -> MilliwattHours {
        self.fold.energy().total()
    }

    /// The buckets not in the file, the unfinished ones as of `now`.
    #[must_use]
    pub fn buckets(&self, now: UnixMillis) -> Vec<Bucket> {
        let mut buckets = self.finished.clone();
        self.fold.peek(now, |bucket| buckets.push(bucket));
        buckets
    }
}
