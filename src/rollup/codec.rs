//! Up to a few hundred buckets of one device as bytes: a UTC day of quarter hours, a week of hours, a year of days.
//! Pure.
//!
//! ```text
//! u8 version | varint buckets | buckets | u32 CRC-32 of base time and all before
//! per bucket: u8 what follows or is as expected
//!   start       as far from the start before as that one was from its own, else varint quarter hours beyond the next
//!   observed    as before, else varint ms
//!   on          unknown, never, always, else varint ms
//!   readings    as before, else zigzag varint difference
//!   flags       none, else u8
//!   when observed: zigzag varint min, difference to the bucket before
//!     flat (max = min, power integral = min x observed), else varint max - min,
//!     zigzag varint power integral - min x observed, mJ
//!   energy      what the power integral says, else zigzag varint difference, mWh
//! ```
//!
//! Starts count in quarter hours from a base that the caller knows (it is in the row's key) and that goes into the
//! checksum, so that a blob under a wrong key is an error. Whole mWh and mJ make short numbers and stay exact: the fold
//! carries what it rounds off from bucket to bucket. No bucket takes more than 41 bytes, so that 96 of them fit a page
//! of 4,076 bytes whatever they hold; a busy quarter hour takes 9 to 14, an idle one 2 to 5. Longer
//! tiers may not: a week of hours took 1.6 kB, a year of busy days 4.8 kB.

use std::fmt;
use std::time::Duration;

use super::bucket::{Bucket, Flags, Millijoules, PowerRange, QUARTER_HOUR_MS};
use crate::limits;
use crate::units::{MilliwattHours, Milliwatts, UnixMillis};

const VERSION: u8 = 1;

/// Bytes of a blob beside its buckets.
const FRAME: usize = 1 + 2 + 4;
/// The most bytes of a bucket: 1 for the head, start 3, observed 5, on 5, readings 5, flags 1, min 4, max 4, power
/// integral 7, energy 6.
const BUCKET: usize = 41;
/// The most quarter hours from the base to a bucket: 59 years, three bytes.
const LAST_START: i64 = (1 << 21) - 1;
/// The largest power integral: 5 kW for as long as `observed` may last.
const MOST_POWER: u64 = 1 << 45;

const START_AS_EXPECTED: u8 = 1;
const OBSERVED_AS_BEFORE: u8 = 1 << 1;
const ON_NEVER: u8 = 1 << 2;
const ON_ALWAYS: u8 = 2 << 2;
const ON_PART: u8 = 3 << 2;
const READINGS_AS_BEFORE: u8 = 1 << 4;
const HAS_FLAGS: u8 = 1 << 5;
const FLAT: u8 = 1 << 6;
const ENERGY_AS_EXPECTED: u8 = 1 << 7;

/// Why bytes are not buckets, or buckets cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBlob {
    /// The bytes end before the buckets do, or go on after them; or there are too many buckets.
    Length,
    /// The checksum does not fit: damaged, or another row's blob.
    Checksum,
    /// Written by a newer program.
    Version(u8),
    /// A number that a bucket cannot have, or buckets out of order.
    Value,
}

impl fmt::Display for BadBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the buckets are cut off, too long or too many"),
            Self::Checksum => f.write_str("the buckets' checksum does not fit their bytes"),
            Self::Version(v) => write!(f, "the buckets have version {v}, this program reads version {VERSION}"),
            Self::Value => f.write_str("the buckets hold a value that none can have"),
        }
    }
}

impl std::error::Error for BadBlob {}

/// The most bytes that `buckets` buckets can take.
#[must_use]
pub const fn most_bytes(buckets: usize) -> usize {
    FRAME + BUCKET * buckets
}

/// What a bucket is compared with.
#[derive(Clone, Copy)]
struct Before {
    start: i64,
    stride: i64,
    observed: u64,
    readings: u32,
    min: i64,
}

impl Before {
    /// Before the first bucket of a day of quarter hours.
    const FIRST: Self = Self { start: -1, stride: 1, observed: QUARTER_HOUR_MS.unsigned_abs(), readings: 0, min: 0 };
}

/// The bytes of `buckets`, whose starts are whole quarter hours after `base`, ascending.
///
/// # Errors
/// [`BadBlob::Length`] for more than [`limits::BLOB_BUCKETS`]; [`BadBlob::Value`] for buckets out of order or before
/// `base`, and for what no bucket can be: on for longer than observed, observed without a power.
pub fn encode(base: UnixMillis, buckets: &[Bucket]) -> Result<Vec<u8>, BadBlob> {
    if buckets.len() > limits::BLOB_BUCKETS {
        return Err(BadBlob::Length);
    }
    let mut out = Vec::with_capacity(FRAME + 14 * buckets.len());
    out.push(VERSION);
    put_varint(&mut out, u64::try_from(buckets.len()).map_err(|_| BadBlob::Length)?);
    let mut before = Before::FIRST;
    for bucket in buckets {
        put(&mut out, base, bucket, &mut before)?;
    }
    out.extend(checksum(base, &out).to_le_bytes());
    Ok(out)
}

/// The buckets of a blob that was written with the same `base`.
///
/// # Errors
/// [`BadBlob`] when the bytes are not a whole blob of this base.
pub fn decode(base: UnixMillis, bytes: &[u8]) -> Result<Vec<Bucket>, BadBlob> {
    if bytes.len() > most_bytes(limits::BLOB_BUCKETS) {
        return Err(BadBlob::Length);
    }
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or(BadBlob::Length)?;
    if checksum(base, content) != u32::from_le_bytes(*crc) {
        return Err(BadBlob::Checksum);
    }
    let mut input = Input(content);
    match input.byte()? {
        VERSION => {}
        other => return Err(BadBlob::Version(other)),
    }
    let count = usize::try_from(input.varint()?).ok().filter(|n| *n <= limits::BLOB_BUCKETS).ok_or(BadBlob::Length)?;
    let mut before = Before::FIRST;
    let buckets = (0..count).map(|_| take(&mut input, base, &mut before)).collect::<Result<_, _>>()?;
    if input.0.is_empty() { Ok(buckets) } else { Err(BadBlob::Length) }
}

fn checksum(base: UnixMillis, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&base.get().to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// The smallest integral that `observed` ms of `min` mW can have, in mJ. Both are bounded far below overflow.
fn least_power(min: u32, observed: u64) -> u64 {
    u64::from(min).saturating_mul(observed) / 1_000
}

fn put(out: &mut Vec<u8>, base: UnixMillis, bucket: &Bucket, before: &mut Before) -> Result<(), BadBlob> {
    let after_base = bucket.start.since(base);
    let start = after_base / QUARTER_HOUR_MS;
    let observed = whole_millis(bucket.observed)?;
    let on = bucket.on.map(whole_millis).transpose()?;
    let power = bucket.power.get();
    let is_sound = after_base % QUARTER_HOUR_MS == 0
        && start > before.start
        && (0..=LAST_START).contains(&start)
        && on.is_none_or(|on| on <= observed)
        && bucket.range.is_some() == (observed > 0)
        && bucket.range.is_none_or(|range| range.min <= range.max)
        && power <= if observed > 0 { MOST_POWER } else { 0 };
    if !is_sound {
        return Err(BadBlob::Value);
    }
    let (min, max) = bucket.range.map_or((0, 0), |range| (range.min.get(), range.max.get()));
    let least = least_power(min, observed);
    let expected_energy = power / 3_600;
    let energy = bucket.energy.get();
    let on_bits = match on {
        None => 0,
        Some(0) => ON_NEVER,
        Some(on) if on == observed => ON_ALWAYS,
        Some(_) => ON_PART,
    };
    let head = on_bits
        | bit(start == before.start.saturating_add(before.stride), START_AS_EXPECTED)
        | bit(observed == before.observed, OBSERVED_AS_BEFORE)
        | bit(bucket.readings == before.readings, READINGS_AS_BEFORE)
        | bit(bucket.flags != Flags::NONE, HAS_FLAGS)
        | bit(min == max && power == least, FLAT)
        | bit(energy == expected_energy, ENERGY_AS_EXPECTED);

    out.push(head);
    if head & START_AS_EXPECTED == 0 {
        put_varint(out, start.saturating_sub(before.start).saturating_sub(1).unsigned_abs());
    }
    if head & OBSERVED_AS_BEFORE == 0 {
        put_varint(out, observed);
    }
    if on_bits == ON_PART {
        put_varint(out, on.unwrap_or(0));
    }
    if head & READINGS_AS_BEFORE == 0 {
        put_signed(out, i64::from(bucket.readings) - i64::from(before.readings));
    }
    if head & HAS_FLAGS != 0 {
        out.push(bucket.flags.bits());
    }
    if observed > 0 {
        put_signed(out, i64::from(min) - before.min);
        if head & FLAT == 0 {
            put_varint(out, u64::from(max - min)); // checked above
            put_signed(out, difference(power, least));
        }
    }
    if head & ENERGY_AS_EXPECTED == 0 {
        put_signed(out, difference(energy, expected_energy));
    }
    let min = if observed > 0 { i64::from(min) } else { before.min };
    *before = Before { start, stride: start - before.start, observed, readings: bucket.readings, min };
    Ok(())
}

fn take(input: &mut Input<'_>, base: UnixMillis, before: &mut Before) -> Result<Bucket, BadBlob> {
    let head = input.byte()?;
    let has = |bit: u8| head & bit != 0;
    let stride = if has(START_AS_EXPECTED) { before.stride } else { input.bounded(LAST_START)?.saturating_add(1) };
    let start = before.start.saturating_add(stride);
    let observed =
        if has(OBSERVED_AS_BEFORE) { before.observed } else { input.bounded(u32::MAX.into())?.unsigned_abs() };
    let on = match head & ON_PART {
        0 => None,
        ON_NEVER => Some(0),
        ON_ALWAYS => Some(observed),
        _ => Some(input.varint()?),
    };
    let readings = if has(READINGS_AS_BEFORE) {
        before.readings
    } else {
        u32::try_from(i64::from(before.readings).saturating_add(input.signed()?)).map_err(|_| BadBlob::Value)?
    };
    let flags = if has(HAS_FLAGS) { Flags::from_bits(input.byte()?).ok_or(BadBlob::Value)? } else { Flags::NONE };
    let (mut range, mut power) = (None, 0);
    if observed > 0 {
        let min = before.min.saturating_add(input.signed()?);
        let min = Milliwatts::new(min).map_err(|_| BadBlob::Value)?;
        let least = least_power(min.get(), observed);
        before.min = i64::from(min.get());
        if has(FLAT) {
            (range, power) = (Some(PowerRange { min, max: min }), least);
        } else {
            let spread = input.bounded(Milliwatts::MAX.get().into())?;
            let max = Milliwatts::new(before.min.saturating_add(spread)).map_err(|_| BadBlob::Value)?;
            (range, power) = (Some(PowerRange { min, max }), apart(least, input.signed()?)?);
        }
    }
    let expected_energy = power / 3_600;
    let energy = if has(ENERGY_AS_EXPECTED) { expected_energy } else { apart(expected_energy, input.signed()?)? };
    let after_base = start.saturating_mul(QUARTER_HOUR_MS);
    let at = base.plus(after_base);
    if start > LAST_START || at.since(base) != after_base || on.is_some_and(|on| on > observed) || power > MOST_POWER {
        return Err(BadBlob::Value);
    }
    *before = Before { start, stride, observed, readings, min: before.min };
    Ok(Bucket {
        start: at,
        energy: i64::try_from(energy).ok().and_then(|n| MilliwattHours::new(n).ok()).ok_or(BadBlob::Value)?,
        power: Millijoules::new(power),
        observed: Duration::from_millis(observed),
        range,
        on: on.map(Duration::from_millis),
        readings,
        flags,
    })
}

fn bit(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// A time that a blob can hold: whole ms, at most 49 days.
fn whole_millis(time: Duration) -> Result<u64, BadBlob> {
    let millis = u32::try_from(time.as_millis()).map(u64::from).map_err(|_| BadBlob::Value)?;
    if Duration::from_millis(millis) == time { Ok(millis) } else { Err(BadBlob::Value) }
}

/// Both lie below 2^46.
fn difference(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b).cast_signed()
}

fn apart(from: u64, difference: i64) -> Result<u64, BadBlob> {
    from.checked_add_signed(difference).ok_or(BadBlob::Value)
}

fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value.wrapping_shl(1) ^ (value >> 63)).cast_unsigned()); // zigzag
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Bytes not yet read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, BadBlob> {
        let (byte, rest) = self.0.split_first().ok_or(BadBlob::Length)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn varint(&mut self) -> Result<u64, BadBlob> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if low << shift >> shift != low {
                return Err(BadBlob::Value);
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BadBlob::Value)
    }

    fn signed(&mut self) -> Result<i64, BadBlob> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ (zigzag & 1).cast_signed().wrapping_neg())
    }

    /// A number from 0 to `most`.
    fn bounded(&mut self, most: i64) -> Result<i64, BadBlob> {
        i64::try_from(self.varint()?).ok().filter(|n| *n <= most).ok_or(BadBlob::Value)
    }
}
