//! What changes rarely: gaps, which columns there are, the switch, the interval, each column's unit. Written when it
//! changes, as an event after so many entries, so that an entry without an event pays nothing.

use super::BadChunk;
use super::Stored;
use super::coder::{Odds, Stream};
use crate::reading::{Entry, Relay};
use crate::units::MilliwattHours;

/// A column's unit as a power of ten of its smallest: 3 when all values so far are whole thousands.
pub type Unit = u8;
/// The coarsest unit.
pub const COARSEST: Unit = 3;

/// How many of its smallest a unit is.
pub fn scale(unit: Unit) -> u32 {
    match unit {
        0 => 1,
        1 => 10,
        2 => 100,
        _ => 1_000,
    }
}

/// The coarsest unit up to `unit` that `value` is whole in.
fn fitting(mut unit: Unit, value: u64) -> Unit {
    while unit > 0 && !value.is_multiple_of(u64::from(scale(unit))) {
        unit = unit.saturating_sub(1);
    }
    unit
}

/// What holds for many readings in a row, so that a reading pays nothing for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub has_voltage: bool,
    pub has_current: bool,
    pub has_counter: bool,
    pub relay: Option<Relay>,
    pub interval_ms: u32,
    pub power: Unit,
    pub voltage: Unit,
    pub current: Unit,
    pub counter: Unit,
}

impl State {
    /// Before the first entry.
    pub const START: Self = Self {
        has_voltage: false,
        has_current: false,
        has_counter: false,
        relay: None,
        interval_ms: 10_000,
        power: COARSEST,
        voltage: COARSEST,
        current: COARSEST,
        counter: COARSEST,
    };

    /// The state that `stored` needs, with units no coarser than before.
    pub fn for_entry(self, stored: &Stored) -> Self {
        let state = Self { interval_ms: stored.interval_ms, ..self };
        let Entry::Reading(reading) = &stored.entry else { return state };
        let unit = |unit: Unit, value: Option<u64>| value.map_or(unit, |value| fitting(unit, value));
        Self {
            has_voltage: reading.voltage.is_some(),
            has_current: reading.current.is_some(),
            has_counter: reading.counter.is_some(),
            relay: reading.relay,
            power: fitting(self.power, reading.power.get().into()),
            voltage: unit(self.voltage, reading.voltage.map(|v| v.get().into())),
            current: unit(self.current, reading.current.map(|v| v.get().into())),
            counter: unit(self.counter, reading.counter.map(MilliwattHours::get)),
            ..state
        }
    }
}

/// What happens between entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The next entry is a gap.
    Gap,
    /// The state is another from the next entry on.
    State(State),
}

/// Writes events: the entries that pass before each, then what it is.
#[derive(Clone, Debug)]
pub struct Events {
    length: [Odds; 16],
    is_gap: Odds,
    is_relay: Odds,
    is_interval: Odds,
}

impl Default for Events {
    fn default() -> Self {
        Self { length: [Odds::EVEN; 16], is_gap: Odds::EVEN, is_relay: Odds::EVEN, is_interval: Odds::EVEN }
    }
}

impl Events {
    /// The readings that pass before the next event, at most 65,535, and the event. `state` is the one before it.
    ///
    /// # Errors
    /// [`BadChunk::Value`] for a state that cannot follow `state`.
    pub fn code(
        &mut self,
        stream: &mut impl Stream,
        run: u32,
        event: Event,
        state: State,
    ) -> Result<(u32, Event), BadChunk> {
        let number = run.saturating_add(1);
        let bits = 31_u32.saturating_sub(number.leading_zeros());
        let mut length = 0_u32;
        for odds in &mut self.length {
            if !stream.ask(odds, bits > length) {
                break;
            }
            length = length.wrapping_add(1);
        }
        let low = u32::try_from(stream.plain(number.into(), length) & 0xffff).unwrap_or(0);
        let mask = (1_u32 << length.min(16)).wrapping_sub(1);
        let run = ((1 << length.min(16)) | low & mask).wrapping_sub(1);
        if stream.ask(&mut self.is_gap, event == Event::Gap) {
            return Ok((run, Event::Gap));
        }
        let next = match event {
            Event::State(next) => next,
            Event::Gap => state,
        };
        let relay = match next.relay {
            None => 0,
            Some(Relay::Off) => 1,
            Some(Relay::On) => 2,
        };
        let relay = match stream.plain(relay, 2) & 3 {
            0 => None,
            1 => Some(Relay::Off),
            2 => Some(Relay::On),
            _ => return Err(BadChunk::Value),
        };
        let only_relay = State { relay, ..state };
        if stream.ask(&mut self.is_relay, next == only_relay) {
            return Ok((run, Event::State(only_relay)));
        }
        let mut flag = |flag: bool| stream.plain(flag.into(), 1) & 1 == 1;
        let (has_voltage, has_current, has_counter) =
            (flag(next.has_voltage), flag(next.has_current), flag(next.has_counter));
        let mut unit = |unit: Unit| u8::try_from(stream.plain(unit.into(), 2) & 3).unwrap_or(0);
        let (power, voltage, current, counter) =
            (unit(next.power), unit(next.voltage), unit(next.current), unit(next.counter));
        let interval_ms = if stream.ask(&mut self.is_interval, next.interval_ms != state.interval_ms) {
            u32::try_from(stream.plain(next.interval_ms.into(), 32)).unwrap_or(0)
        } else {
            state.interval_ms
        };
        // Units only get finer.
        if power > state.power || voltage > state.voltage || current > state.current || counter > state.counter {
            return Err(BadChunk::Value);
        }
        let next =
            State { has_voltage, has_current, has_counter, relay, interval_ms, power, voltage, current, counter };
        Ok((run, Event::State(next)))
    }
}

/// By what a column's numbers grow when its unit becomes finer.
pub fn finer(before: Unit, after: Unit) -> Option<u32> {
    (after < before).then(|| scale(before).checked_div(scale(after)).unwrap_or(1))
}
