//! Records and tails that are damaged are made again from what else the file has, when it is opened.
//!
//! Promises that a damaged row of `device` or `tail` costs no more than itself: a device keeps its number and its id, its
//! readings and its buckets, and its total is what it was, to a mWh. What the plug said of itself and where it was is lost until it
//! answers again. Each row that was made again is told in the log. A device whose row of `device_id` is lost too cannot be
//! told: the file is refused then.

use std::collections::BTreeSet;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::chunk::{self, Columns};
use super::file::{DEVICE, DEVICE_ID, ROLLUP, SEALED, TAIL, Tail, read_record, record_bytes};
use super::{Device, DeviceNumber, Record, StoreError, Tier, compact};
use crate::reading::{DeviceId, Entry};
use crate::rollup::bucket::QUARTER_HOUR_MS;
use crate::rollup::{Bucket, codec};
use crate::units::{MilliwattHours, UnixMillis};

const HOUR_MS: i64 = 3_600_000;

/// Makes again what is damaged, in one transaction.
pub fn mend(database: &Database) -> Result<(), StoreError> {
    let (devices, tails) = {
        let read = database.begin_read()?;
        let (sound, lost) = devices(&read)?;
        let numbers = sound.into_iter().chain(lost.iter().map(|device| device.number));
        let mut tails = Vec::new();
        for device in numbers {
            tails.extend(lost_tail(&read, device)?.map(|tail| (device, tail)));
        }
        (lost, tails)
    };
    if devices.is_empty() && tails.is_empty() {
        return Ok(());
    }
    let write = database.begin_write()?;
    {
        let (mut records, mut table) = (write.open_table(DEVICE)?, write.open_table(TAIL)?);
        for device in &devices {
            let (number, id) = (device.number.get(), device.record.id);
            records.insert(number, record_bytes(device)?.as_slice())?;
            log::error!(
                "the store is damaged: the record of device {number} was made again. It is {id}; what its plug said of itself is known again when it answers"
            );
        }
        for (device, tail) in &tails {
            match tail.bytes(*device)? {
                Some(bytes) => drop(table.insert(device.get(), bytes.as_slice())?),
                None => drop(table.remove(device.get())?),
            }
            log::error!(
                "the store is damaged: where the sealed readings of device {} end, and its energy there, was made again from its readings and buckets",
                device.get()
            );
        }
    }
    write.commit()?;
    Ok(())
}

/// The devices whose record is sound, and those whose record is made again.
fn devices(read: &ReadTransaction) -> Result<(BTreeSet<DeviceNumber>, Vec<Device>), StoreError> {
    let (mut sound, mut rows) = (BTreeSet::new(), 0);
    for entry in read.open_table(DEVICE)?.iter()? {
        let (number, bytes) = entry?;
        let number = DeviceNumber::new(number.value());
        rows += 1;
        if read_record(number, bytes.value()).is_ok() {
            sound.insert(number);
        }
    }
    let mut lost = Vec::new();
    // Numbers are dense from 0.
    let is_dense = sound.last().is_none_or(|last| last.index() < sound.len());
    if sound.len() == rows && is_dense {
        return Ok((sound, lost));
    }
    for entry in read.open_table(DEVICE_ID)?.iter()? {
        let (id, number) = entry?;
        let number = DeviceNumber::new(number.value());
        if !sound.contains(&number)
            && let Ok(id) = id.value().parse::<DeviceId>()
        {
            lost.push(Device { number, record: Record { id, first_seen: first_seen(read, number)?, plug: None } });
        }
    }
    Ok((sound, lost))
}

/// The time of the first chunk or the first bucket. The end of time without both: what is not sealed says it.
fn first_seen(read: &ReadTransaction, device: DeviceNumber) -> Result<UnixMillis, StoreError> {
    let n = device.get();
    let first = read.open_table(SEALED)?.range((n, i64::MIN)..=(n, i64::MAX))?.next().transpose()?;
    let mut seen = first.map_or(UnixMillis::MAX, |(key, _)| UnixMillis::new(key.value().1));
    for tier in [Tier::QuarterHour, Tier::Hour] {
        each_bucket(read, device, tier, |bucket| seen = seen.min(bucket.start))?;
    }
    Ok(seen)
}

/// A device's tail made again, when it is damaged, or missing while there are chunks.
fn lost_tail(read: &ReadTransaction, device: DeviceNumber) -> Result<Option<Tail>, StoreError> {
    let n = device.get();
    let sealed = read.open_table(SEALED)?;
    let chunks = || sealed.range((n, i64::MIN)..=(n, i64::MAX));
    let is_sound = match read.open_table(TAIL)?.get(n)? {
        Some(bytes) => Tail::read(device, bytes.value()).is_ok(),
        None => chunks()?.next().is_none(),
    };
    if is_sound {
        return Ok(None);
    }
    let mut tail = Tail::default();
    let (mut first, mut whole) = (None, true);
    for entry in chunks()? {
        let (key, bytes) = entry?;
        let start = UnixMillis::new(key.value().1);
        first = first.or(Some(start));
        // Of a chunk that cannot be read, what is still in the head is sealed once more.
        tail.sealed_to = Some(start);
        let Ok(entries) = chunk::decode(bytes.value(), Columns::ALL) else {
            whole = false;
            continue;
        };
        for stored in &entries {
            tail.sealed_to = Some(stored.entry.time());
            tail.state.readings += u64::from(matches!(stored.entry, Entry::Reading(_)));
            tail.state.fold.push(&stored.entry, stored.interval_ms, |_| {});
        }
        tail.state.chunk_entries = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    }
    // What is there no more stands in the buckets.
    let (mut oldest, mut last, mut energy, mut readings) = (None, None, 0_u64, 0_u64);
    each_bucket(read, device, Tier::Hour, |hour| {
        oldest = oldest.or(Some(hour.start));
        last = Some(hour.start.plus(HOUR_MS));
        energy = energy.saturating_add(hour.energy.get());
        readings = readings.saturating_add(hour.readings.into());
    })?;
    if !whole || oldest.is_some_and(|oldest| first.is_none_or(|first| oldest < compact::hour_of(first))) {
        let fold = std::mem::take(&mut tail.state.fold);
        let missing = i64::try_from(energy.saturating_sub(fold.reported().get())).unwrap_or(i64::MAX);
        tail.state.fold = fold.preceded_by(MilliwattHours::new(missing).unwrap_or(MilliwattHours::MAX));
        tail.state.readings = readings.max(tail.state.readings.saturating_add(1));
    }
    if tail.sealed_to.is_none() {
        each_bucket(read, device, Tier::QuarterHour, |quarter| last = Some(quarter.start.plus(QUARTER_HOUR_MS)))?;
        tail.sealed_to = last.map(|end| end.plus(-1));
    }
    Ok(Some(tail))
}

/// Visits a device's stored buckets that can be read, in order of time.
fn each_bucket(
    read: &ReadTransaction,
    device: DeviceNumber,
    tier: Tier,
    mut visit: impl FnMut(Bucket),
) -> Result<(), StoreError> {
    let n = device.get();
    for entry in read.open_table(ROLLUP)?.range((tier.code(), n, i32::MIN)..=(tier.code(), n, i32::MAX))? {
        let (key, bytes) = entry?;
        codec::decode(tier.base(key.value().2), bytes.value()).unwrap_or_default().into_iter().for_each(&mut visit);
    }
    Ok(())
}
