//! The compaction job: head batches become chunks and buckets, what is too old goes. Runs inside a commit, in its
//! transaction, on the committer thread.
//!
//! A device is due when its open entries are about to fill a chunk, or the oldest waits for [`SEAL_AGE_MS`]. Its entries,
//! which memory has, are put in order of time, and encoded until a page is full; the same entries go through the device's
//! fold, and the buckets it finishes into the rollup blobs. The tail moves in the same transaction, so that each entry is
//! sealed and rolled up exactly once, whatever the moment of a crash. Head batches that every device has left behind are
//! deleted. All steps are bounded per run; what is left over waits for the next commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use super::batch;
use super::chunk::{self, Clock, Encoder, Refused, Stored};
use super::event;
use super::file::{Batches, HEAD, LATE, ROLLUP, SEALED, TAIL, Tail, tail};
use super::recent::Block;
use super::{BatchNumber, BucketPage, DeviceNumber, Item, Order, StoreError, Tier};
use crate::limits;
use crate::rollup::Bucket;
use crate::rollup::codec::{self, BadBlob};
use crate::units::UnixMillis;

/// An entry that has waited so long in the head is sealed in a chunk that is not full: the head stays short.
pub const SEAL_AGE_MS: i64 = 6 * 3_600_000;
/// Devices sealed in one run.
pub const DEVICES_A_RUN: usize = 8;
/// Head batches deleted in one run.
const BATCHES_A_RUN: usize = 64;
/// Chunks, and rollup blobs, deleted in one run.
const EXPIRED_A_RUN: usize = 64;
/// What a chunk, with its share of the inner pages, takes in the file.
const CHUNK_COST: u64 = 4_096 + 64;

/// How long what is kept: entries before these times go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Single readings.
    pub raw: Option<UnixMillis>,
    /// Buckets of 15 minutes.
    pub quarter_hour: Option<UnixMillis>,
    /// Buckets of an hour.
    pub hour: Option<UnixMillis>,
    /// The most chunks; beyond it the oldest go.
    pub max_chunks: Option<u64>,
}

impl Expiry {
    /// The number of chunks that fit into `bytes`.
    #[must_use]
    pub const fn chunks_in(bytes: u64) -> u64 {
        bytes / CHUNK_COST
    }
}

/// What one run is to do.
#[derive(Clone, Default)]
pub struct Compaction {
    /// Devices to seal, at most [`DEVICES_A_RUN`].
    pub due: Vec<Due>,
    /// Readings that came after their time was sealed.
    pub late: Vec<Item>,
    /// The oldest entry not sealed of all other devices.
    pub others_open_from: Option<UnixMillis>,
    /// Head batches before this commit's.
    pub batches: Arc<Batches>,
    /// Entries that have waited since before this are sealed whether they fill a chunk or not.
    pub seal_before: UnixMillis,
    /// What to delete; none when it is not yet time to look.
    pub expiry: Option<Expiry>,
}

impl Compaction {
    /// Whether there is nothing to seal, keep or delete.
    pub fn is_nothing(&self) -> bool {
        self.due.is_empty() && self.late.is_empty() && self.expiry.is_none()
    }
}

/// A device to seal.
#[derive(Clone)]
pub struct Due {
    /// Which.
    pub device: DeviceNumber,
    /// All its entries that are not sealed, in order of arrival, and maybe some that are.
    pub blocks: Vec<Arc<Block>>,
    /// So many of the last ones belong to later commits.
    pub later: usize,
}

/// What one run did.
#[derive(Default)]
pub struct Compacted {
    /// Where the devices that were due stand now.
    pub tails: Vec<(DeviceNumber, Standing)>,
    /// Head batches that are gone.
    pub dropped: Vec<(UnixMillis, BatchNumber)>,
    /// Chunks written, and entries in them.
    pub chunks: u64,
    /// Entries in them.
    pub sealed_entries: u64,
    /// Buckets rolled up.
    pub buckets: u64,
    /// Chunks, late readings and blobs deleted.
    pub deleted_rows: u64,
    /// Devices of which entries up to a time may be deleted now.
    pub deleted: Vec<(DeviceNumber, UnixMillis)>,
    /// Whether more is to be deleted than one run may.
    pub more_to_expire: bool,
}

/// A device after a run.
pub struct Standing {
    /// Its tail.
    pub tail: Tail,
    /// Its entries that are not sealed, in order of arrival: so they are taken again when the file is opened, and energy
    /// must come out the same.
    pub open: Vec<Stored>,
}

/// Does what `what` says.
pub fn run(write: &WriteTransaction, what: &Compaction) -> Result<Compacted, StoreError> {
    let mut done = Compacted::default();
    if !what.late.is_empty() {
        let mut late = write.open_table(LATE)?;
        what.late.iter().try_for_each(|item| keep_late(&mut late, item))?;
    }
    if !what.due.is_empty() {
        seal_devices(write, what, &mut done)?;
    }
    let open = done.tails.iter().flat_map(|(_, standing)| standing.open.iter().map(|stored| stored.entry.time()));
    let floor = open.chain(what.others_open_from).min().unwrap_or(UnixMillis::MAX);
    drop_batches(write, &what.batches, floor, &mut done)?;
    if let Some(expiry) = &what.expiry {
        expire(write, expiry, &mut done)?;
    }
    Ok(done)
}

fn seal_devices(write: &WriteTransaction, what: &Compaction, done: &mut Compacted) -> Result<(), StoreError> {
    let mut tails = write.open_table(TAIL)?;
    let mut sealed = write.open_table(SEALED)?;
    let mut rollups = write.open_table(ROLLUP)?;
    for Due { device, blocks, later } in &what.due {
        let device = *device;
        let mut tail = tail(&tails, device)?;
        let mut arrived: Vec<Stored> = blocks.iter().flat_map(|block| block.items()).map(|item| item.stored).collect();
        arrived.truncate(arrived.len().saturating_sub(*later));
        arrived.retain(|stored| tail.sealed_to.is_none_or(|to| stored.entry.time() > to));
        let mut entries = arrived.clone();
        entries.sort_by_key(|stored| stored.entry.time());
        entries.dedup_by_key(|stored| stored.entry.time()); // the one that arrived first stays
        let before = done.chunks;
        let mut buckets = Vec::new();
        while let Some((bytes, count)) = fill(&entries, what.seal_before) {
            let rest = entries.split_off(count.min(entries.len()));
            let chunk = std::mem::replace(&mut entries, rest);
            let Some((first, last)) = chunk.first().zip(chunk.last()) else { break };
            sealed.insert((device.get(), first.entry.time().get()), bytes.as_slice())?;
            for stored in &chunk {
                tail.state.fold.push(&stored.entry, stored.interval_ms, |bucket| buckets.push(bucket));
            }
            tail.sealed_to = Some(last.entry.time());
            tail.state.chunk_entries = u32::try_from(count).unwrap_or(u32::MAX);
            tail.state.readings += chunk::summary(&bytes).map_or(0, |summary| u64::from(summary.readings));
            done.chunks += 1;
            done.sealed_entries += u64::try_from(chunk.len()).unwrap_or(0);
        }
        if done.chunks > before {
            if let Some(bytes) = tail.bytes(device)? {
                tails.insert(device.get(), bytes.as_slice())?;
            }
            roll_up(&mut rollups, device, &buckets)?;
            done.buckets += u64::try_from(buckets.len()).unwrap_or(0);
        }
        arrived.retain(|stored| tail.sealed_to.is_none_or(|to| stored.entry.time() > to));
        done.tails.push((device, Standing { tail, open: arrived }));
    }
    Ok(())
}

/// The first chunk of `entries` and how many it holds. None when they neither fill one nor are old enough.
fn fill(entries: &[Stored], seal_before: UnixMillis) -> Option<(Vec<u8>, usize)> {
    let first = entries.first()?;
    let mut encoder = Encoder::new(Clock::Trusted);
    let mut count = 0;
    for stored in entries {
        match encoder.push(*stored) {
            Ok(()) => count += 1,
            Err(Refused::Full(_)) => return Some((encoder.finish(), count)),
            Err(Refused::NotLater(_)) => {} // cannot be: they are in order, each time once
        }
    }
    (first.entry.time() < seal_before).then(|| (encoder.finish(), count))
}

/// A reading whose time was sealed before it came: it stands alone.
fn keep_late(late: &mut Table<'_, (u32, i64), &'static [u8]>, item: &Item) -> Result<(), StoreError> {
    if let Some((bytes, _)) = batch::encode(std::slice::from_ref(item)) {
        late.insert((item.device.get(), item.time().get()), bytes.as_slice())?;
    }
    Ok(())
}

/// Puts finished buckets into the blobs of their days, and the sums of their hours into those of their weeks.
fn roll_up(
    rollups: &mut Table<'_, (u8, u32, i32), &'static [u8]>,
    device: DeviceNumber,
    buckets: &[Bucket],
) -> Result<(), StoreError> {
    let mut hours = BTreeMap::new();
    for day in buckets.chunk_by(|a, b| Tier::QuarterHour.period(a.start) == Tier::QuarterHour.period(b.start)) {
        let Some(first) = day.first() else { continue };
        let whole = upsert(rollups, Tier::QuarterHour, device, Tier::QuarterHour.period(first.start), day)?;
        let touched: BTreeSet<_> = day.iter().map(|bucket| hour_of(bucket.start)).collect();
        for hour in touched {
            let quarters = whole.iter().filter(|bucket| hour_of(bucket.start) == hour).copied();
            if let Some(sum) = Bucket::sum(quarters) {
                hours.insert(hour, Bucket { start: hour, ..sum });
            }
        }
    }
    let hours: Vec<_> = hours.into_values().collect();
    for week in hours.chunk_by(|a, b| Tier::Hour.period(a.start) == Tier::Hour.period(b.start)) {
        if let Some(first) = week.first() {
            upsert(rollups, Tier::Hour, device, Tier::Hour.period(first.start), week)?;
        }
    }
    Ok(())
}

pub(super) fn hour_of(time: UnixMillis) -> UnixMillis {
    time.plus(-time.get().rem_euclid(3_600_000))
}

/// Puts `buckets` into a blob, over those of the same start, and returns all that it holds now.
fn upsert(
    rollups: &mut Table<'_, (u8, u32, i32), &'static [u8]>,
    tier: Tier,
    device: DeviceNumber,
    period: i32,
    buckets: &[Bucket],
) -> Result<Vec<Bucket>, StoreError> {
    let key = (tier.code(), device.get(), period);
    let base = tier.base(period);
    let damaged = |why: BadBlob| {
        let what = format!("the {} of device {} from {base}", tier.name(), device.get());
        StoreError::Damaged { what, why: why.into() }
    };
    let stored = rollups.get(key)?.map(|bytes| codec::decode(base, bytes.value()));
    let mut all: BTreeMap<UnixMillis, Bucket> = match stored {
        Some(Ok(stored)) => stored.into_iter().map(|bucket| (bucket.start, bucket)).collect(),
        Some(Err(why)) => {
            log::error!("{}; what is known now takes its place", damaged(why));
            BTreeMap::new()
        }
        None => BTreeMap::new(),
    };
    all.extend(buckets.iter().map(|bucket| (bucket.start, *bucket)));
    let all: Vec<Bucket> = all.into_values().collect();
    rollups.insert(key, codec::encode(base, &all).map_err(damaged)?.as_slice())?;
    Ok(all)
}

/// Deletes head batches that lie wholly before `floor`, before which every entry is sealed.
fn drop_batches(
    write: &WriteTransaction,
    batches: &Batches,
    floor: UnixMillis,
    done: &mut Compacted,
) -> Result<(), StoreError> {
    // The newest batch stays, for its number: numbers are never used again.
    let newest = batches.keys().map(|(_, number)| *number).max();
    let passed = batches.iter().filter(|((_, number), last)| **last < floor && Some(*number) != newest);
    let passed: Vec<_> = passed.map(|(key, _)| *key).collect();
    if passed.is_empty() {
        return Ok(());
    }
    let mut head = write.open_table(HEAD)?;
    let mut removed = 0;
    for (first, number) in passed {
        // One that is in the log goes with the log's mark.
        if head.get(number.get())?.is_some() {
            if removed >= BATCHES_A_RUN {
                break;
            }
            head.remove(number.get())?;
            removed += 1;
        }
        done.dropped.push((first, number));
    }
    Ok(())
}

/// Deletes what is too old, or too much, a bounded number of rows.
fn expire(write: &WriteTransaction, expiry: &Expiry, done: &mut Compacted) -> Result<(), StoreError> {
    let mut left = EXPIRED_A_RUN;
    let mut touched = BTreeSet::new();
    let devices: Vec<u32> = {
        let tails = write.open_table(TAIL)?;
        let keys = tails.iter()?.map(|entry| entry.map(|(key, _)| key.value()));
        keys.collect::<Result<_, _>>()?
    };
    let mut sealed = write.open_table(SEALED)?;
    if let Some(raw) = expiry.raw {
        for device in &devices {
            // A chunk goes when the next one begins before the limit: then all of it lies before.
            let starts = sealed.range((*device, i64::MIN)..(*device, raw.get()))?.take(left + 1);
            let starts = starts.map(|entry| entry.map(|(key, _)| key.value())).collect::<Result<Vec<_>, _>>()?;
            for pair in starts.windows(2) {
                if let [old, _] = pair {
                    sealed.remove(*old)?;
                    touched.insert(*device);
                    left = left.saturating_sub(1);
                }
            }
            let mut late = write.open_table(LATE)?;
            let old = late.range((*device, i64::MIN)..(*device, raw.get()))?.take(left);
            let old = old.map(|entry| entry.map(|(key, _)| key.value())).collect::<Result<Vec<_>, _>>()?;
            for key in old {
                late.remove(key)?;
                done.deleted.push((DeviceNumber::new(*device), UnixMillis::new(key.1)));
                left = left.saturating_sub(1);
            }
        }
    }
    if let Some(most) = expiry.max_chunks {
        while left > 0 && sealed.len()? > most {
            let first = |device: &u32| -> Result<Option<(i64, u32)>, StoreError> {
                let first = sealed.range((*device, i64::MIN)..=(*device, i64::MAX))?.next().transpose()?;
                Ok(first.map(|(key, _)| (key.value().1, *device)))
            };
            let firsts = devices.iter().map(first).collect::<Result<Vec<_>, _>>()?;
            let Some((time, device)) = firsts.into_iter().flatten().min() else { break };
            sealed.remove((device, time))?;
            touched.insert(device);
            left -= 1;
        }
    }
    for device in touched {
        let first = sealed.range((device, i64::MIN)..=(device, i64::MAX))?.next().transpose()?;
        let left_from = first.map_or(UnixMillis::MAX, |(key, _)| UnixMillis::new(key.value().1));
        done.deleted.push((DeviceNumber::new(device), left_from.plus(-1)));
    }
    let mut rollups = write.open_table(ROLLUP)?;
    for (tier, before) in [(Tier::QuarterHour, expiry.quarter_hour), (Tier::Hour, expiry.hour)] {
        let Some(before) = before else { continue };
        for device in &devices {
            let range = (tier.code(), *device, i32::MIN)..(tier.code(), *device, tier.period(before));
            let old = rollups.range(range)?.take(left).map(|entry| entry.map(|(key, _)| key.value()));
            for key in old.collect::<Result<Vec<_>, _>>()? {
                rollups.remove(key)?;
                left = left.saturating_sub(1);
            }
        }
    }
    let more_events = expiry.raw.map(|before| event::expire(write, before)).transpose()?;
    done.more_to_expire = left == 0 || more_events == Some(true);
    done.deleted_rows = u64::try_from(EXPIRED_A_RUN.saturating_sub(left)).unwrap_or(0);
    Ok(())
}

/// A page of the buckets of a device that begin in `[from, to)`, in order of time: of `tier` up to the hour in which its
/// sealed entries end, from there on quarter hours, from the file and then from `live`.
pub fn buckets(
    read: &ReadTransaction,
    device: DeviceNumber,
    tier: Tier,
    from: UnixMillis,
    to: UnixMillis,
    live: Vec<Bucket>,
) -> Result<BucketPage, StoreError> {
    let sealed_to = tail(&read.open_table(TAIL)?, device)?.sealed_to.unwrap_or(UnixMillis::MIN);
    let rollups = read.open_table(ROLLUP)?;
    let mut all: Vec<Bucket> = Vec::new();
    let border = if tier == Tier::Hour { hour_of(sealed_to).clamp(from, to.max(from)) } else { from };
    for (tier, from, to) in [(Tier::Hour, from, border), (Tier::QuarterHour, border, to)] {
        if from >= to {
            continue;
        }
        let key = |time| (tier.code(), device.get(), tier.period(time));
        for entry in rollups.range(key(from)..=key(to.plus(-1)))? {
            let (key, bytes) = entry?;
            let base = tier.base(key.value().2);
            if all.len() >= limits::PAGE_BUCKETS {
                return Ok(BucketPage { buckets: all, next: Some(base.max(from)) });
            }
            match codec::decode(base, bytes.value()) {
                Ok(buckets) => all.extend(buckets.into_iter().filter(|bucket| (from..to).contains(&bucket.start))),
                Err(why) => {
                    let what = format!("the {} of device {} from {base}", tier.name(), device.get());
                    log::error!("{}", StoreError::Damaged { what, why: why.into() });
                }
            }
        }
    }
    // A commit may have sealed some of these since they were copied; they are the same then.
    for bucket in live.into_iter().filter(|bucket| (border..to).contains(&bucket.start)) {
        if let Err(place) = all.binary_search_by_key(&bucket.start, |stored| stored.start) {
            all.insert(place, bucket);
        }
    }
    Ok(BucketPage { buckets: all, next: None })
}

/// Where in `[from, to)` the stored buckets of `devices` begin when read in `order`, as far as keys tell it.
pub fn first_bucket(
    read: &ReadTransaction,
    devices: &[DeviceNumber],
    order: Order,
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Option<UnixMillis>, StoreError> {
    if from >= to {
        return Ok(None);
    }
    let rollups = read.open_table(ROLLUP)?;
    let mut found: Option<UnixMillis> = None;
    for device in devices {
        for tier in [Tier::QuarterHour, Tier::Hour] {
            let key = |time| (tier.code(), device.get(), tier.period(time));
            let mut range = rollups.range(key(from)..=key(to.plus(-1)))?;
            let entry = match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let Some((key, _)) = entry.transpose()? else { continue };
            let period = key.value().2;
            found = Some(match order {
                Order::Ascending => found.unwrap_or(to).min(tier.base(period).max(from)),
                Order::Descending => found.unwrap_or(from).max(tier.base(period.saturating_add(1)).min(to)),
            });
        }
    }
    Ok(found)
}
