//! The head batch: all entries of one commit as bytes, device after device, delta coded, with a CRC. Pure.
//!
//! ```text
//! u8 version | i64 first time, ms | u32 span, ms | varint devices
//! per device: varint number | varint bytes of what follows | varint entries | entries
//! per entry:  u8 what it is and which columns are present | zigzag varint time | varint interval, when it changes
//!             zigzag varints: power, voltage, current, counter
//!             each as the difference to the device's entry before that had one
//! u32 CRC-32 of all before
//! ```
//!
//! Fixed-width numbers are little-endian. A device's entries keep the order in which they arrived. Every length and
//! count is checked when a batch is read back; a batch that fails its CRC is an error, never a guess.

use std::fmt;

use super::bytes::{BadBytes, Input, put_varint};
use super::chunk::Stored;
use super::{DeviceNumber, Item};
use crate::limits;
use crate::reading::{Entry, Reading, Relay};
use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

const VERSION: u8 = 1;

/// Where a batch lies in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The earliest reading.
    pub first: UnixMillis,
    /// The latest reading.
    pub last: UnixMillis,
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBatch {
    /// The bytes end before the batch does, or go on after it.
    Length,
    /// The checksum does not fit.
    Checksum,
    /// Written by a newer program.
    Version(u8),
    /// A number that the field cannot hold.
    Value,
}

impl fmt::Display for BadBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the batch is cut off or too long"),
            Self::Checksum => f.write_str("the batch's checksum does not fit its bytes"),
            Self::Version(v) => write!(f, "the batch has version {v}, this program reads version {VERSION}"),
            Self::Value => f.write_str("the batch holds a value that no reading can have"),
        }
    }
}

impl std::error::Error for BadBatch {}

impl From<BadBytes> for BadBatch {
    fn from(bad: BadBytes) -> Self {
        match bad {
            BadBytes::Length => Self::Length,
            BadBytes::Value => Self::Value,
        }
    }
}

/// The bytes of `rows`, and where they lie in time. `None` for no rows.
///
/// Rows of one device keep their order; devices are written in order of their numbers.
#[must_use]
pub fn encode(rows: &[Item]) -> Option<(Vec<u8>, Span)> {
    let first = rows.iter().map(|row| row.time()).min()?;
    let last = rows.iter().map(|row| row.time()).max()?;
    let mut order: Vec<&Item> = rows.iter().collect();
    order.sort_by_key(|row| row.device); // stable: arrival order stays within a device

    let mut out = Vec::with_capacity(rows.len() * 12 + 32);
    out.push(VERSION);
    out.extend(first.get().to_le_bytes());
    out.extend(u32::try_from(last.since(first)).unwrap_or(u32::MAX).to_le_bytes());
    put_varint(&mut out, count(order.chunk_by(same_device).count()));
    let mut body = Vec::new();
    for group in order.chunk_by(same_device) {
        body.clear();
        put_varint(&mut body, count(group.len()));
        let mut previous = Columns { time: first.get(), ..Columns::default() };
        for row in group {
            previous.put(&mut body, row);
        }
        if let Some(row) = group.first() {
            put_varint(&mut out, u64::from(row.device.get()));
            put_varint(&mut out, count(body.len()));
            out.append(&mut body);
        }
    }
    out.extend(crc32fast::hash(&out).to_le_bytes());
    Some((out, Span { first, last }))
}

fn same_device(a: &&Item, b: &&Item) -> bool {
    a.device == b.device
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Where a stored batch lies in time, without reading its rows.
///
/// # Errors
/// [`BadBatch`] when the bytes are not a whole batch.
pub fn span(bytes: &[u8]) -> Result<Span, BadBatch> {
    Ok(Header::read(&mut checked(bytes)?)?.span)
}

/// The rows of a stored batch whose device `wanted` accepts, device after device. Other devices are skipped unread.
///
/// # Errors
/// [`BadBatch`] when the bytes are not a whole batch.
pub fn decode(bytes: &[u8], mut wanted: impl FnMut(DeviceNumber) -> bool) -> Result<Vec<Item>, BadBatch> {
    let mut input = checked(bytes)?;
    let header = Header::read(&mut input)?;
    let mut rows = Vec::new();
    for _ in 0..header.devices {
        let device = DeviceNumber::new(u32::try_from(input.varint()?).map_err(|_| BadBatch::Value)?);
        let length = usize::try_from(input.varint()?).map_err(|_| BadBatch::Length)?;
        let mut body = Input(input.take(length)?);
        if !wanted(device) {
            continue;
        }
        // An entry takes at least two bytes, so the count cannot make us take more memory than a batch may have.
        let readings = usize::try_from(body.varint()?).ok().filter(|n| n.saturating_mul(2) <= length);
        let mut previous = Columns { time: header.span.first.get(), ..Columns::default() };
        for _ in 0..readings.ok_or(BadBatch::Length)? {
            rows.push(previous.take(&mut body, device)?);
        }
        body.end()?;
    }
    input.end()?;
    Ok(rows)
}

/// The bytes before the checksum, once it fits.
fn checked(bytes: &[u8]) -> Result<Input<'_>, BadBatch> {
    if bytes.len() > limits::BATCH_BYTES {
        return Err(BadBatch::Length);
    }
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or(BadBatch::Length)?;
    if crc32fast::hash(content) == u32::from_le_bytes(*crc) { Ok(Input(content)) } else { Err(BadBatch::Checksum) }
}

struct Header {
    span: Span,
    devices: u64,
}

impl Header {
    fn read(input: &mut Input<'_>) -> Result<Self, BadBatch> {
        let [version] = input.array()?;
        if version != VERSION {
            return Err(BadBatch::Version(version));
        }
        let first = UnixMillis::new(i64::from_le_bytes(input.array()?));
        let last = first.plus(i64::from(u32::from_le_bytes(input.array()?)));
        Ok(Self { span: Span { first, last }, devices: input.varint()? })
    }
}

/// The last value of each column; what the next entry's differences are taken from.
#[derive(Debug, Default)]
pub(super) struct Columns {
    time: i64,
    interval_ms: u32,
    power: i64,
    voltage: i64,
    current: i64,
    counter: i64,
}

const HAS_VOLTAGE: u8 = 1;
const HAS_CURRENT: u8 = 2;
const HAS_COUNTER: u8 = 4;
const RELAY_OFF: u8 = 8;
const RELAY_ON: u8 = 16;
const IS_GAP: u8 = 32;
const NEW_INTERVAL: u8 = 64;
const IS_LATE: u8 = 128;

impl Columns {
    pub fn put(&mut self, out: &mut Vec<u8>, item: &Item) {
        let Stored { entry, interval_ms } = item.stored;
        let bit = |present: bool, bit: u8| if present { bit } else { 0 };
        let what = match &entry {
            Entry::Gap { .. } => IS_GAP,
            Entry::Reading(reading) => {
                let relay = match reading.relay {
                    None => 0,
                    Some(Relay::Off) => RELAY_OFF,
                    Some(Relay::On) => RELAY_ON,
                };
                relay
                    | bit(reading.voltage.is_some(), HAS_VOLTAGE)
                    | bit(reading.current.is_some(), HAS_CURRENT)
                    | bit(reading.counter.is_some(), HAS_COUNTER)
            }
        };
        out.push(what | bit(interval_ms != self.interval_ms, NEW_INTERVAL) | bit(item.late, IS_LATE));
        put_difference(out, &mut self.time, entry.time().get());
        if interval_ms != self.interval_ms {
            self.interval_ms = interval_ms;
            put_varint(out, interval_ms.into());
        }
        let Entry::Reading(reading) = entry else { return };
        put_difference(out, &mut self.power, reading.power.get().into());
        if let Some(voltage) = reading.voltage {
            put_difference(out, &mut self.voltage, voltage.get().into());
        }
        if let Some(current) = reading.current {
            put_difference(out, &mut self.current, current.get().into());
        }
        if let Some(counter) = reading.counter {
            // A counter is at most 10^12.
            put_difference(out, &mut self.counter, i64::try_from(counter.get()).unwrap_or(i64::MAX));
        }
    }

    pub fn take(&mut self, input: &mut Input<'_>, device: DeviceNumber) -> Result<Item, BadBatch> {
        let [bits] = input.array()?;
        let time = UnixMillis::new(take_difference(input, &mut self.time)?);
        if bits & NEW_INTERVAL != 0 {
            self.interval_ms = u32::try_from(input.varint()?).map_err(|_| BadBatch::Value)?;
        }
        let entry = if bits & IS_GAP != 0 {
            if bits & (HAS_VOLTAGE | HAS_CURRENT | HAS_COUNTER | RELAY_OFF | RELAY_ON) != 0 {
                return Err(BadBatch::Value);
            }
            Entry::Gap { time }
        } else {
            Entry::Reading(self.take_reading(input, bits, time)?)
        };
        Ok(Item { device, stored: Stored { entry, interval_ms: self.interval_ms }, late: bits & IS_LATE != 0 })
    }

    fn take_reading(&mut self, input: &mut Input<'_>, bits: u8, time: UnixMillis) -> Result<Reading, BadBatch> {
        let power = Milliwatts::new(take_difference(input, &mut self.power)?).map_err(|_| BadBatch::Value)?;
        let mut column = |bit: u8, last: &mut i64| {
            if bits & bit == 0 { Ok(None) } else { take_difference(input, last).map(Some) }
        };
        let voltage = column(HAS_VOLTAGE, &mut self.voltage)?.map(Millivolts::new).transpose();
        let current = column(HAS_CURRENT, &mut self.current)?.map(Milliamps::new).transpose();
        let counter = column(HAS_COUNTER, &mut self.counter)?.map(MilliwattHours::new).transpose();
        Ok(Reading {
            time,
            power,
            voltage: voltage.map_err(|_| BadBatch::Value)?,
            current: current.map_err(|_| BadBatch::Value)?,
            counter: counter.map_err(|_| BadBatch::Value)?,
            relay: match bits & (RELAY_OFF | RELAY_ON) {
                0 => None,
                RELAY_OFF => Some(Relay::Off),
                RELAY_ON => Some(Relay::On),
                _ => return Err(BadBatch::Value),
            },
        })
    }
}

fn put_difference(out: &mut Vec<u8>, last: &mut i64, value: i64) {
    let difference = value.wrapping_sub(*last);
    *last = value;
    put_varint(out, (difference.wrapping_shl(1) ^ (difference >> 63)).cast_unsigned()); // zigzag
}

fn take_difference(input: &mut Input<'_>, last: &mut i64) -> Result<i64, BadBatch> {
    let zigzag = input.varint()?;
    let difference = (zigzag >> 1).cast_signed() ^ (zigzag & 1).cast_signed().wrapping_neg();
    *last = last.wrapping_add(difference);
    Ok(*last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any reading that a plug can bring.
    fn any_reading() -> impl Strategy<Value = Reading> {
        let relay = prop_oneof![Just(None), Just(Some(Relay::Off)), Just(Some(Relay::On))];
        (
            0..4_000_000_000_000_i64,
            0..=5_000_000_i64,
            proptest::option::of(0..=500_000_i64),
            proptest::option::of(0..=100_000_i64),
            proptest::option::of(0..=1_000_000_000_000_i64),
            relay,
        )
            .prop_map(|(time, power, voltage, current, counter, relay)| Reading {
                time: UnixMillis::new(time),
                power: Milliwatts::new(power).unwrap(),
                voltage: voltage.map(|n| Millivolts::new(n).unwrap()),
                current: current.map(|n| Milliamps::new(n).unwrap()),
                counter: counter.map(|n| MilliwattHours::new(n).unwrap()),
                relay,
            })
    }

    fn any_rows() -> impl Strategy<Value = Vec<Item>> {
        let entry = prop_oneof![
            9 => any_reading().prop_map(Entry::Reading),
            1 => (0..4_000_000_000_000_i64).prop_map(|time| Entry::Gap { time: UnixMillis::new(time) }),
        ];
        let item = (0..6_u32, entry, prop_oneof![Just(10_000), any::<u32>()], any::<bool>());
        let item = item.prop_map(|(n, entry, interval_ms, late)| Item {
            device: DeviceNumber::new(n),
            stored: Stored { entry, interval_ms },
            late,
        });
        proptest::collection::vec(item, 1..60)
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(mut rows in any_rows()) {
            let (bytes, _) = encode(&rows).unwrap();
            rows.sort_by_key(|row| row.device);
            prop_assert_eq!(decode(&bytes, |_| true).unwrap(), rows.clone());
            rows.retain(|row| row.device.get() == 3);
            prop_assert_eq!(decode(&bytes, |n| n.get() == 3).unwrap(), rows);
        }

        #[test]
        fn any_damaged_byte_is_an_error_and_never_a_panic(rows in any_rows(), at: prop::sample::Index, bit in 0..8_u8) {
            let (mut bytes, _) = encode(&rows).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, |_| true).is_err());
        }

        #[test]
        fn foreign_bytes_with_a_right_checksum_never_panic(mut bytes: Vec<u8>) {
            bytes.insert(0, VERSION);
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            let _ = decode(&bytes, |_| true);
            let _ = span(&bytes);
        }
    }

    #[test]
    fn an_unchanged_reading_costs_little() {
        let reading = Reading {
            time: UnixMillis::new(1_795_423_474_120),
            power: Milliwatts::new(41_237).unwrap(),
            voltage: Some(Millivolts::new(231_400).unwrap()),
            current: Some(Milliamps::new(214).unwrap()),
            counter: Some(MilliwattHours::new(8_123_000).unwrap()),
            relay: Some(Relay::On),
        };
        let row = |n: i64| {
            let entry = Entry::Reading(Reading { time: reading.time.plus(n * 10_000), ..reading });
            Item { device: DeviceNumber::new(1), stored: Stored { entry, interval_ms: 10_000 }, late: false }
        };
        let bytes = |n: i64| encode(&(0..n).map(row).collect::<Vec<_>>()).unwrap().0.len();
        assert_eq!((bytes(100) - bytes(10)) / 90, 8); // flags, three bytes of time, a zero for each other column
        assert_eq!(span(&encode(&[row(0), row(6)]).unwrap().0).unwrap().last, reading.time.plus(60_000));
    }

    #[test]
    fn nothing_is_no_batch() {
        assert_eq!(encode(&[]), None);
        assert_eq!(decode(&[], |_| true), Err(BadBatch::Length));
    }
}
