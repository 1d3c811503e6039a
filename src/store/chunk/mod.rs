//! A sealed chunk: a device's entries in order of time, in at most [`MAX_BYTES`] bytes. Pure.
//!
//! Owns the coding of the store's bulk. Promises that what was pushed comes back as it was, to the millisecond and the
//! milliwatt; that a chunk never exceeds its size; that damaged or foreign bytes are an error, never a panic, a guess or
//! much memory. Leaves it to the store when to seal, and under which key.
//!
//! ```text
//! head | events | time | power | voltage | current | counter | u32 CRC-32 of all before
//! ```
//!
//! Each column is a stream of its own, so that a power curve reads time and power alone. `header` is what a chunk says of
//! itself, `events` what changes rarely, `model` what a column is expected to say next, `coder` the bits.
//!
//! # Why so
//! Measured over 20 generated plugs x 7 days x 10 s (`cargo bench --bench chunk`), keys and heads included. The range
//! coder takes 2.70 B/reading, 1.10 for an old plug's coarse steps. Adaptive Rice codes of the very same differences take
//! 5 % and 12 % more (7 to 11 % with real power curves) and read a day 1.6 times faster, 1.2 instead of 2.0 ms: not worth
//! the bytes, and the codec's number lets it be changed. Sharpening the odds beforehand gained nothing, choosing them by
//! the difference before lost: a chunk of 1,500 readings is too short to teach more than some hundred odds.
//! pco 1.1 at its best level took 3.2 to 3.9 where this coder took 2.4 to 3.2, and 330 KB of program: it reads a day six
//! times faster, which no query needs that badly.
//! The voltage's noise, 80 mV by assumption, is 1.05 B/reading of the total: no coder can take it away.

use std::fmt;

use super::bytes::{BadBytes, Input};
use crate::limits;
use crate::reading::{Entry, Reading};
use crate::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

mod coder;
mod events;
mod header;
mod model;

use coder::{Reader, Writer};
use events::{COARSEST, Event, Events, State, Unit, finer, scale};
pub use header::{Clock, CounterSummary, PowerSummary, STREAMS, Summary};
use header::{Header, time};
use model::{Counters, Currents, Steady, Times};

/// The first byte of a chunk: how the rest is coded.
const CODEC: u8 = 1;
/// The longest chunk: with its key of 12 bytes it fills one 4 KiB leaf of the store's B-tree.
pub const MAX_BYTES: usize = 4_076;
const CRC_BYTES: usize = 4;
/// More than one entry can take, whatever it holds, and the longest header: nearer to the end every step is checked.
const MARGIN: usize = 400;

/// One entry with the interval of polls in force: how long a reading may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The entry.
    pub entry: Entry,
    /// Milliseconds between two polls when it was made.
    pub interval_ms: u32,
}

/// An entry that the encoder did not take, handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The chunk is full: finish it and start the next one with this entry.
    Full(Stored),
    /// It is not later than the entry before it.
    NotLater(Stored),
}

/// Why bytes are not a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChunk {
    /// The bytes end before the chunk does, go on after it, or are more than a chunk may have.
    Length,
    /// The checksum does not fit.
    Checksum,
    /// Written by a newer program.
    Codec(u8),
    /// A number that the field cannot hold.
    Value,
}

impl fmt::Display for BadChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the chunk is cut off or too long"),
            Self::Checksum => f.write_str("the chunk's checksum does not fit its bytes"),
            Self::Codec(v) => write!(f, "the chunk has codec {v}, this program reads codec {CODEC}"),
            Self::Value => f.write_str("the chunk holds a value that no entry can have"),
        }
    }
}

impl std::error::Error for BadChunk {}

impl From<BadBytes> for BadChunk {
    fn from(bad: BadBytes) -> Self {
        match bad {
            BadBytes::Length => Self::Length,
            BadBytes::Value => Self::Value,
        }
    }
}

/// Which columns to decode. Time, power, relay, gaps and intervals always are; the others come as None unless named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns(u8);

impl Columns {
    /// Time and power alone.
    pub const POWER: Self = Self(0);
    /// And voltage.
    pub const VOLTAGE: Self = Self(1);
    /// And current.
    pub const CURRENT: Self = Self(2);
    /// And the counter.
    pub const COUNTER: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Makes one chunk, entry by entry.
#[derive(Clone, Debug)]
pub struct Encoder {
    summary: Summary,
    last: Option<Stored>,
    state: State,
    /// Events, and entries since the last one.
    events: u32,
    run: u32,
    event_model: Events,
    event_stream: Writer,
    times: Times,
    time_stream: Writer,
    power: Steady,
    power_stream: Writer,
    voltage: Steady,
    voltage_stream: Writer,
    current: Currents,
    current_stream: Writer,
    counter: Counters,
    counter_stream: Writer,
}

impl Encoder {
    /// An empty chunk.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let summary = Summary {
            first: UnixMillis::MIN,
            last: UnixMillis::MIN,
            readings: 0,
            gaps: 0,
            power: None,
            counter: None,
            held_ms: 0,
            work: 0,
            clock,
        };
        Self {
            summary,
            last: None,
            state: State::START,
            events: 0,
            run: 0,
            event_model: Events::default(),
            event_stream: Writer::default(),
            times: Times::default(),
            time_stream: Writer::default(),
            power: Steady::default(),
            power_stream: Writer::default(),
            voltage: Steady::default(),
            voltage_stream: Writer::default(),
            current: Currents::default(),
            current_stream: Writer::default(),
            counter: Counters::default(),
            counter_stream: Writer::default(),
        }
    }

    /// Adds the next entry.
    ///
    /// # Errors
    /// [`Refused`] hands it back; the chunk is as it was.
    pub fn push(&mut self, stored: Stored) -> Result<(), Refused> {
        if self.last.is_some_and(|last| stored.entry.time() <= last.entry.time()) {
            return Err(Refused::NotLater(stored));
        }
        if usize::try_from(self.summary.entries()).is_ok_and(|n| n >= limits::CHUNK_ENTRIES) {
            return Err(Refused::Full(stored));
        }
        if self.streams().iter().map(|stream| stream.len()).sum::<usize>() < MAX_BYTES - MARGIN {
            self.add(&stored);
            return Ok(());
        }
        let before = self.clone();
        self.add(&stored);
        if self.size() > MAX_BYTES {
            *self = before;
            return Err(Refused::Full(stored));
        }
        Ok(())
    }

    /// How many bytes [`Self::finish`] gives now, at most.
    #[must_use]
    pub fn size(&self) -> usize {
        let lengths = self.streams().map(Writer::len);
        self.header(lengths).len() + lengths.iter().sum::<usize>() + CRC_BYTES
    }

    /// What is in it so far. The times mean nothing while it is empty.
    #[must_use]
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Whether nothing was added yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// The chunk.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let streams = self.streams().map(|stream| stream.clone().finish());
        let mut bytes = self.header([0, 1, 2, 3, 4, 5].map(|n: usize| streams.get(n).map_or(0, Vec::len)));
        bytes.extend(streams.iter().flatten());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn streams(&self) -> [&Writer; STREAMS] {
        [
            &self.event_stream,
            &self.time_stream,
            &self.power_stream,
            &self.voltage_stream,
            &self.current_stream,
            &self.counter_stream,
        ]
    }

    /// How many bytes each column's stream takes, for measurements: events, time, power, voltage, current, counter.
    #[must_use]
    pub fn column_sizes(&self) -> [usize; STREAMS] {
        self.streams().map(Writer::len)
    }

    fn header(&self, lengths: [usize; STREAMS]) -> Vec<u8> {
        Header { summary: self.summary, events: self.events, lengths }.bytes()
    }

    fn event(&mut self, event: Event) {
        // Writing cannot fail: what comes back is what went in.
        let _ = self.event_model.code(&mut self.event_stream, self.run, event, self.state);
        self.events = self.events.saturating_add(1);
        self.run = 0;
    }

    fn add(&mut self, stored: &Stored) {
        let time = stored.entry.time().get();
        let state = self.state.for_entry(stored);
        if state != self.state {
            self.event(Event::State(state));
            self.rescale(state);
            self.state = state;
        }
        let is_gap = matches!(stored.entry, Entry::Gap { .. });
        if is_gap {
            self.event(Event::Gap);
        } else {
            self.run = self.run.saturating_add(1);
        }
        if self.last.is_none() {
            self.times = Times::start(time);
        } else {
            self.times.code(&mut self.time_stream, is_gap, state.interval_ms, time);
        }
        if let Entry::Reading(reading) = &stored.entry {
            self.add_reading(reading);
        }
        self.summarise(stored);
        self.last = Some(*stored);
    }

    fn rescale(&mut self, state: State) {
        if let Some(factor) = finer(self.state.power, state.power) {
            self.power.rescale(factor);
        }
        if let Some(factor) = finer(self.state.voltage, state.voltage) {
            self.voltage.rescale(factor);
        }
        if let Some(factor) = finer(self.state.current, state.current) {
            self.current.rescale(factor);
        }
        if let Some(factor) = finer(self.state.counter, state.counter) {
            self.counter.rescale(factor);
        }
    }

    fn add_reading(&mut self, reading: &Reading) {
        let state = self.state;
        let units = |value: u64, unit: Unit| match unit {
            0 => value.cast_signed(),
            unit => (value / u64::from(scale(unit))).cast_signed(),
        };
        let power = reading.power.get();
        self.power.code(&mut self.power_stream, true, units(power.into(), state.power));
        if let Some(voltage) = reading.voltage {
            self.voltage.code(&mut self.voltage_stream, false, units(voltage.get().into(), state.voltage));
        }
        if let Some(current) = reading.current {
            let value = units(current.get().into(), state.current);
            let voltage = reading.voltage.map(Millivolts::get);
            self.current.code(&mut self.current_stream, power, voltage, scale(state.current), value);
        }
        self.counter.pass(reading.time.get(), power, state.counter);
        if let Some(counter) = reading.counter {
            self.counter.code(&mut self.counter_stream, units(counter.get(), state.counter));
        }
    }

    fn summarise(&mut self, stored: &Stored) {
        let summary = &mut self.summary;
        let time = stored.entry.time();
        if let Some(Stored { entry: Entry::Reading(before), interval_ms }) = &self.last {
            let elapsed = u64::try_from(time.since(before.time)).unwrap_or(0);
            let held = elapsed.min(u64::from(*interval_ms).saturating_mul(3));
            summary.held_ms = summary.held_ms.saturating_add(held);
            summary.work = summary.work.saturating_add(held.saturating_mul(before.power.get().into()));
        }
        if self.last.is_none() {
            summary.first = time;
        }
        summary.last = time;
        let Entry::Reading(reading) = &stored.entry else {
            summary.gaps = summary.gaps.saturating_add(1);
            return;
        };
        summary.readings = summary.readings.saturating_add(1);
        let power = reading.power;
        let so_far = summary.power.unwrap_or(PowerSummary { min: power, max: power, sum: 0 });
        summary.power = Some(PowerSummary {
            min: so_far.min.min(power),
            max: so_far.max.max(power),
            sum: so_far.sum.saturating_add(power.get().into()),
        });
        if let Some(counter) = reading.counter {
            let so_far = summary.counter.unwrap_or(CounterSummary { first: counter, last: counter, falls: 0 });
            let fell = u32::from(counter < so_far.last);
            summary.counter =
                Some(CounterSummary { last: counter, falls: so_far.falls.saturating_add(fell), ..so_far });
        }
    }
}

/// The bytes before the checksum, once it fits.
fn checked(bytes: &[u8]) -> Result<Input<'_>, BadChunk> {
    if bytes.len() > MAX_BYTES {
        return Err(BadChunk::Length);
    }
    let (content, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(BadChunk::Length)?;
    if crc32fast::hash(content) == u32::from_le_bytes(*crc) { Ok(Input(content)) } else { Err(BadChunk::Checksum) }
}

/// What a chunk says of itself. The checksum is checked.
///
/// # Errors
/// [`BadChunk`] when the bytes are not a whole chunk.
pub fn summary(bytes: &[u8]) -> Result<Summary, BadChunk> {
    Ok(Header::read(&mut checked(bytes)?)?.summary)
}

/// The entries of a chunk in order of time, with the columns asked for.
///
/// # Errors
/// [`BadChunk`] when the bytes are not a whole chunk.
pub fn decode(bytes: &[u8], columns: Columns) -> Result<Vec<Stored>, BadChunk> {
    let mut input = checked(bytes)?;
    let header = Header::read(&mut input)?;
    let [events, times, power, voltage, current, counter] = header.lengths;
    let mut stream = |length| input.take(length).map(Reader::new);
    let (events, times, power) = (stream(events)?, stream(times)?, stream(power)?);
    let (voltage, current, counter) = (stream(voltage)?, stream(current)?, stream(counter)?);
    input.end()?;

    let mut rows = Rows::outline(&header, events)?;
    rows.times(&header.summary, times)?;
    rows.power(power)?;
    if columns.has(Columns::VOLTAGE.with(Columns::CURRENT)) {
        rows.voltage(voltage)?;
    }
    if columns.has(Columns::CURRENT) {
        rows.current(current)?;
    }
    if columns.has(Columns::COUNTER) {
        rows.counter(counter)?;
    }
    if !columns.has(Columns::VOLTAGE) && columns.has(Columns::CURRENT) {
        rows.each(|_, reading| {
            reading.voltage = None;
            Ok(())
        })?;
    }
    Ok(rows.entries)
}

/// Entries on their way out, column after column.
struct Rows {
    entries: Vec<Stored>,
    /// The states, each with the number of entries that it holds for.
    spans: Vec<(usize, State)>,
}

const BLANK: Reading = Reading {
    time: UnixMillis::MIN,
    power: Milliwatts::ZERO,
    voltage: None,
    current: None,
    counter: None,
    relay: None,
};

impl Rows {
    /// Which entries are gaps, and the state of each.
    fn outline(header: &Header, mut stream: Reader<'_>) -> Result<Self, BadChunk> {
        let count = usize::try_from(header.summary.entries()).map_err(|_| BadChunk::Value)?;
        let mut rows = Self { entries: Vec::with_capacity(count), spans: Vec::new() };
        let (mut model, mut state, mut begun) = (Events::default(), State::START, 0);
        for _ in 0..header.events {
            let (run, event) = model.code(&mut stream, 0, Event::Gap, state)?;
            rows.readings(count, usize::try_from(run).unwrap_or(usize::MAX), state)?;
            match event {
                Event::Gap if rows.entries.len() < count => {
                    let entry = Entry::Gap { time: UnixMillis::MIN };
                    rows.entries.push(Stored { entry, interval_ms: state.interval_ms });
                }
                // Every state but the first holds for an entry at least, which bounds the list.
                Event::State(next) if begun < rows.entries.len() || rows.spans.is_empty() => {
                    rows.spans.push((rows.entries.len() - begun, state));
                    (begun, state) = (rows.entries.len(), next);
                }
                _ => return Err(BadChunk::Value),
            }
        }
        let left = count.saturating_sub(rows.entries.len());
        rows.readings(count, left, state)?;
        rows.spans.push((rows.entries.len() - begun, state));
        let gaps = rows.entries.iter().filter(|stored| matches!(stored.entry, Entry::Gap { .. })).count();
        if usize::try_from(header.summary.gaps).is_ok_and(|n| n == gaps) { Ok(rows) } else { Err(BadChunk::Value) }
    }

    fn readings(&mut self, count: usize, run: usize, state: State) -> Result<(), BadChunk> {
        if run > count.saturating_sub(self.entries.len()) {
            return Err(BadChunk::Value);
        }
        let entry = Entry::Reading(Reading { relay: state.relay, ..BLANK });
        self.entries.extend(std::iter::repeat_n(Stored { entry, interval_ms: state.interval_ms }, run));
        Ok(())
    }

    /// Calls `f` with each reading, its state, and whether the state is a new one.
    fn each(&mut self, mut f: impl FnMut(&State, &mut Reading) -> Result<(), BadChunk>) -> Result<(), BadChunk> {
        let mut rest = self.entries.as_mut_slice();
        for (length, state) in &self.spans {
            let (span, after) = std::mem::take(&mut rest).split_at_mut_checked(*length).ok_or(BadChunk::Value)?;
            rest = after;
            for stored in span {
                if let Entry::Reading(reading) = &mut stored.entry {
                    f(state, reading)?;
                }
            }
        }
        Ok(())
    }

    fn times(&mut self, summary: &Summary, mut stream: Reader<'_>) -> Result<(), BadChunk> {
        let mut model = Times::start(summary.first.get());
        let mut last = None;
        for stored in &mut self.entries {
            let is_gap = matches!(stored.entry, Entry::Gap { .. });
            let next = match last {
                None => summary.first,
                Some(last) => {
                    let next = time(model.code(&mut stream, is_gap, stored.interval_ms, 0))?;
                    if next <= last {
                        return Err(BadChunk::Value);
                    }
                    next
                }
            };
            last = Some(next);
            match &mut stored.entry {
                Entry::Reading(reading) => reading.time = next,
                Entry::Gap { time } => *time = next,
            }
        }
        if last == Some(summary.last) { Ok(()) } else { Err(BadChunk::Value) }
    }

    fn power(&mut self, mut stream: Reader<'_>) -> Result<(), BadChunk> {
        let (mut model, mut unit) = (Steady::default(), COARSEST);
        self.each(|state, reading| {
            if let Some(factor) = finer(unit, state.power) {
                model.rescale(factor);
                unit = state.power;
            }
            reading.power = whole(model.code(&mut stream, true, 0), unit, Milliwatts::new)?;
            Ok(())
        })
    }

    fn voltage(&mut self, mut stream: Reader<'_>) -> Result<(), BadChunk> {
        let (mut model, mut unit) = (Steady::default(), COARSEST);
        self.each(|state, reading| {
            if state.has_voltage {
                if let Some(factor) = finer(unit, state.voltage) {
                    model.rescale(factor);
                    unit = state.voltage;
                }
                reading.voltage = Some(whole(model.code(&mut stream, false, 0), unit, Millivolts::new)?);
            }
            Ok(())
        })
    }

    fn current(&mut self, mut stream: Reader<'_>) -> Result<(), BadChunk> {
        let (mut model, mut unit) = (Currents::default(), COARSEST);
        self.each(|state, reading| {
            if state.has_current {
                if let Some(factor) = finer(unit, state.current) {
                    model.rescale(factor);
                    unit = state.current;
                }
                let voltage = reading.voltage.map(Millivolts::get);
                let value = model.code(&mut stream, reading.power.get(), voltage, scale(unit), 0);
                reading.current = Some(whole(value, unit, Milliamps::new)?);
            }
            Ok(())
        })
    }

    fn counter(&mut self, mut stream: Reader<'_>) -> Result<(), BadChunk> {
        let (mut model, mut unit) = (Counters::default(), COARSEST);
        self.each(|state, reading| {
            if let Some(factor) = finer(unit, state.counter) {
                model.rescale(factor);
                unit = state.counter;
            }
            model.pass(reading.time.get(), reading.power.get(), unit);
            if state.has_counter {
                reading.counter = Some(whole(model.code(&mut stream, 0), unit, MilliwattHours::new)?);
            }
            Ok(())
        })
    }
}

/// A value from a count of its column's units.
fn whole<T, E>(units: i64, unit: Unit, new: impl FnOnce(i64) -> Result<T, E>) -> Result<T, BadChunk> {
    let value = if unit == 0 { Some(units) } else { units.checked_mul(scale(unit).into()) };
    new(value.ok_or(BadChunk::Value)?).map_err(|_| BadChunk::Value)
}

#[cfg(test)]
mod tests;
