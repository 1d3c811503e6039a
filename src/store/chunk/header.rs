//! The head of a chunk: what it says of itself, and where its streams lie.
//!
//! ```text
//! u8 codec | u8 flags | u48 first time, ms | varints: last time - first time, readings, gaps
//! with readings:   varints: least, most and sum of power, time held, work
//! with a counter:  varints: first, last, falls
//! varints: events, bytes of each stream
//! ```

use super::{BadChunk, CODEC};
use crate::limits;
use crate::store::bytes::{Input, put_varint};
use crate::units::{MilliwattHours, Milliwatts, UnixMillis};

/// Whether the times of a chunk can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// They come from a clock that was synchronised.
    Trusted,
    /// They were stamped without one, or the clock was stepped.
    Doubtful,
}

/// What a chunk says of its power column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerSummary {
    /// The least.
    pub min: Milliwatts,
    /// The most.
    pub max: Milliwatts,
    /// The sum over all readings, in mW.
    pub sum: u64,
}

/// What a chunk says of its counter column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterSummary {
    /// Of the first reading that has one.
    pub first: MilliwattHours,
    /// Of the last reading that has one.
    pub last: MilliwattHours,
    /// How often it fell.
    pub falls: u32,
}

/// What a chunk says of itself, without its entries being decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Time of the first entry.
    pub first: UnixMillis,
    /// Time of the last entry.
    pub last: UnixMillis,
    /// How many entries are readings.
    pub readings: u32,
    /// How many entries are gaps.
    pub gaps: u32,
    /// Of the power; None without readings.
    pub power: Option<PowerSummary>,
    /// Of the counter; None when no reading has one.
    pub counter: Option<CounterSummary>,
    /// How long readings held, in ms: each until the next entry of the chunk, at most three intervals.
    pub held_ms: u64,
    /// Power times the time that it held, in mW ms; at most `u64::MAX`.
    pub work: u64,
    /// Whether the times can be believed.
    pub clock: Clock,
}

impl Summary {
    /// How many entries there are.
    #[must_use]
    pub const fn entries(&self) -> u32 {
        self.readings.saturating_add(self.gaps)
    }
}

/// Streams of a chunk.
pub const STREAMS: usize = 6;

/// The first bytes of a chunk.
pub struct Header {
    /// For everyone.
    pub summary: Summary,
    /// Events in the first stream.
    pub events: u32,
    /// Bytes of each stream.
    pub lengths: [usize; STREAMS],
}

const CLOCK_DOUBTFUL: u8 = 1;
pub(super) const HAS_POWER: u8 = 2;
const HAS_COUNTER: u8 = 4;
const FLAGS: u8 = CLOCK_DOUBTFUL | HAS_POWER | HAS_COUNTER;

impl Header {
    /// As bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let summary = &self.summary;
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let mut out = vec![
            CODEC,
            bit(summary.clock == Clock::Doubtful, CLOCK_DOUBTFUL)
                | bit(summary.power.is_some(), HAS_POWER)
                | bit(summary.counter.is_some(), HAS_COUNTER),
        ];
        let [first @ .., _, _] = summary.first.get().to_le_bytes(); // all times fit 48 bits
        out.extend(first);
        put_varint(&mut out, u64::try_from(summary.last.since(summary.first)).unwrap_or(0));
        put_varint(&mut out, summary.readings.into());
        put_varint(&mut out, summary.gaps.into());
        if let Some(power) = summary.power {
            put_varint(&mut out, power.min.get().into());
            put_varint(&mut out, power.max.get().into());
            put_varint(&mut out, power.sum);
            put_varint(&mut out, summary.held_ms);
            put_varint(&mut out, summary.work);
        }
        if let Some(counter) = summary.counter {
            put_varint(&mut out, counter.first.get());
            put_varint(&mut out, counter.last.get());
            put_varint(&mut out, counter.falls.into());
        }
        put_varint(&mut out, self.events.into());
        for length in self.lengths {
            put_varint(&mut out, u64::try_from(length).unwrap_or(u64::MAX));
        }
        out
    }

    /// From a chunk's first bytes.
    ///
    /// # Errors
    /// [`BadChunk`] when a number is out of its range, or the bytes end too soon.
    pub fn read(input: &mut Input<'_>) -> Result<Self, BadChunk> {
        let [codec, flags] = input.array()?;
        if codec != CODEC {
            return Err(BadChunk::Codec(codec));
        }
        if flags & !FLAGS != 0 {
            return Err(BadChunk::Value);
        }
        let [a, b, c, d, e, f] = input.array()?;
        let first = time(i64::from_le_bytes([a, b, c, d, e, f, 0, 0]))?;
        let last = i64::try_from(input.varint()?).ok().and_then(|span| first.get().checked_add(span));
        let last = time(last.ok_or(BadChunk::Value)?)?;
        let mut count = |most: usize| {
            let n = input.varint()?;
            if usize::try_from(n).is_ok_and(|n| n <= most) {
                u32::try_from(n).map_err(|_| BadChunk::Value)
            } else {
                Err(BadChunk::Value)
            }
        };
        let (readings, gaps) = (count(limits::CHUNK_ENTRIES)?, count(limits::CHUNK_ENTRIES)?);
        let entries = readings.saturating_add(gaps);
        if entries == 0 || usize::try_from(entries).is_ok_and(|n| n > limits::CHUNK_ENTRIES) {
            return Err(BadChunk::Value);
        }
        let has_power = flags & HAS_POWER != 0;
        if has_power != (readings > 0) {
            return Err(BadChunk::Value);
        }
        let milliwatts =
            |input: &mut Input<'_>| -> Result<Milliwatts, BadChunk> { typed(input.varint()?, Milliwatts::new) };
        let (mut power, mut counter, mut held_ms, mut work) = (None, None, 0, 0);
        if has_power {
            let (min, max, sum) = (milliwatts(input)?, milliwatts(input)?, input.varint()?);
            power = Some(PowerSummary { min, max, sum });
            (held_ms, work) = (input.varint()?, input.varint()?);
        }
        if flags & HAS_COUNTER != 0 {
            let first = typed(input.varint()?, MilliwattHours::new)?;
            let last = typed(input.varint()?, MilliwattHours::new)?;
            let falls = u32::try_from(input.varint()?).map_err(|_| BadChunk::Value)?;
            counter = Some(CounterSummary { first, last, falls });
        }
        let clock = if flags & CLOCK_DOUBTFUL == 0 { Clock::Trusted } else { Clock::Doubtful };
        let events = u32::try_from(input.varint()?).map_err(|_| BadChunk::Value)?;
        let mut lengths = [0; STREAMS];
        for length in &mut lengths {
            *length = usize::try_from(input.varint()?).map_err(|_| BadChunk::Length)?;
        }
        let summary = Summary { first, last, readings, gaps, power, counter, held_ms, work, clock };
        Ok(Self { summary, events, lengths })
    }
}

fn typed<T, E>(value: u64, new: impl FnOnce(i64) -> Result<T, E>) -> Result<T, BadChunk> {
    new(i64::try_from(value).map_err(|_| BadChunk::Value)?).map_err(|_| BadChunk::Value)
}

/// A time, if it is one.
pub fn time(millis: i64) -> Result<UnixMillis, BadChunk> {
    let time = UnixMillis::new(millis);
    if time.get() == millis { Ok(time) } else { Err(BadChunk::Value) }
}
