//! What happened beside readings: switches, restarts of counters, gaps, steps of the clock, new firmware, plugs that come and
//! go, starts of the agent. Kept in a table of its own, written with the commit that covers the readings around it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `event` | time, rank: 16 x device number + kind | version byte, what the kind has to say |
//!
//! What readings tell is noted when they are appended ([`between`]), so that a list of events costs its rows, not all
//! readings of its range. An event is what it is by (time, device, kind): noted twice, it is there once.

use std::fmt;

use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use super::bytes::{BadBytes, Input, put_varint};
use super::chunk::Stored;
use super::{DeviceNumber, Order, Store, StoreError, Touched};
use crate::limits;
use crate::reading::{Alias, DeviceId, Entry, Label, PlugFacts, Reading, Relay, Text};
use crate::units::{MilliwattHours, UnixMillis};

pub(super) const EVENT: TableDefinition<'_, (i64, u32), &[u8]> = TableDefinition::new("event");

const VERSION: u8 = 1;
/// Kinds of one device.
const KINDS: u32 = 16;
/// Stands for no device: what concerns the agent as a whole. It comes after all devices.
const NO_DEVICE: u32 = u32::MAX / KINDS;
/// Events deleted in one run.
const EXPIRED_A_RUN: usize = 256;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The outlet was switched, by whomever.
    Relay {
        /// What it is now.
        to: Relay,
    },
    /// The plug's own counter fell: it was restarted or reset.
    CounterRestart {
        /// What it had been.
        from: MilliwattHours,
        /// What it was then.
        to: MilliwattHours,
    },
    /// Nothing was known of the device until now.
    Gap {
        /// Since when: the end of the time for which the reading before it stands.
        since: UnixMillis,
    },
    /// The plug does not answer any more.
    Offline,
    /// The plug answers again.
    Online,
    /// The wall clock was set, or the machine slept.
    ClockStep {
        /// What it would have shown.
        from: UnixMillis,
    },
    /// The plug has other firmware.
    Firmware {
        /// What it had.
        from: Label,
        /// What it has now.
        to: Label,
    },
    /// The plug is spoken to in another way.
    Protocol {
        /// The name of the one before.
        from: Label,
        /// The name of the one now.
        to: Label,
    },
    /// The plug or outlet was given another name.
    Renamed {
        /// The old one.
        from: Alias,
        /// The new one.
        to: Alias,
    },
    /// The agent began.
    AgentStart {
        /// Its version.
        version: Label,
    },
    /// The agent was told to end.
    AgentStop,
}

impl What {
    /// The name in replies.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Relay { .. } => "relay",
            Self::CounterRestart { .. } => "counter_restart",
            Self::Gap { .. } => "gap",
            Self::Offline => "offline",
            Self::Online => "online",
            Self::ClockStep { .. } => "clock_step",
            Self::Firmware { .. } => "firmware",
            Self::Protocol { .. } => "protocol",
            Self::Renamed { .. } => "renamed",
            Self::AgentStart { .. } => "agent_start",
            Self::AgentStop => "agent_stop",
        }
    }

    /// Its place among the events of one device at one time, below [`KINDS`].
    const fn kind(&self) -> u32 {
        match self {
            Self::AgentStop => 0,
            Self::AgentStart { .. } => 1,
            Self::ClockStep { .. } => 2,
            Self::Offline => 3,
            Self::Online => 4,
            Self::Gap { .. } => 5,
            Self::CounterRestart { .. } => 6,
            Self::Relay { .. } => 7,
            Self::Firmware { .. } => 8,
            Self::Protocol { .. } => 9,
            Self::Renamed { .. } => 10,
        }
    }
}

/// What happened, when, to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When. Of a gap, its end.
    pub time: UnixMillis,
    /// To whom. None for what concerns the agent as a whole.
    pub device: Option<DeviceNumber>,
    /// What.
    pub what: What,
}

/// An event's place: events are ordered by time, at the same time by device and kind. It fits where a row's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When.
    pub time: UnixMillis,
    /// Device and kind.
    pub rank: u32,
}

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadEvent {
    /// They end too soon, or go on too long.
    Length,
    /// Written by a newer program.
    Unknown,
    /// A value that the field cannot hold.
    Value,
}

impl fmt::Display for BadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "it is cut off or too long",
            Self::Unknown => "a newer wattd has written it",
            Self::Value => "it holds a value that no event can have",
        })
    }
}

impl From<BadBytes> for BadEvent {
    fn from(bad: BadBytes) -> Self {
        match bad {
            BadBytes::Length => Self::Length,
            BadBytes::Value => Self::Value,
        }
    }
}

impl Event {
    /// Its place among all events.
    #[must_use]
    pub fn place(&self) -> Place {
        let device = self.device.map_or(NO_DEVICE, |device| device.get().min(NO_DEVICE - 1));
        Place { time: self.time, rank: device * KINDS + self.what.kind() }
    }

    fn value(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match &self.what {
            What::Offline | What::Online | What::AgentStop => {}
            What::Relay { to } => out.push(u8::from(*to == Relay::On)),
            What::CounterRestart { from, to } => {
                put_varint(&mut out, from.get());
                put_varint(&mut out, to.get());
            }
            What::Gap { since: at } | What::ClockStep { from: at } => {
                put_varint(&mut out, at.get().unsigned_abs()); // never below zero
            }
            What::Firmware { from, to } | What::Protocol { from, to } => {
                put_text(&mut out, from);
                put_text(&mut out, to);
            }
            What::Renamed { from, to } => {
                put_text(&mut out, from);
                put_text(&mut out, to);
            }
            What::AgentStart { version } => put_text(&mut out, version),
        }
        out
    }

    fn read((time, rank): (i64, u32), bytes: &[u8]) -> Result<Self, BadEvent> {
        let (device, kind) = (rank / KINDS, rank % KINDS);
        let mut input = Input(bytes);
        if input.array()? != [VERSION] {
            return Err(BadEvent::Unknown);
        }
        let what = match kind {
            0 => What::AgentStop,
            1 => What::AgentStart { version: text(&mut input)? },
            2 => What::ClockStep { from: moment(&mut input)? },
            3 => What::Offline,
            4 => What::Online,
            5 => What::Gap { since: moment(&mut input)? },
            6 => What::CounterRestart { from: energy(&mut input)?, to: energy(&mut input)? },
            7 => What::Relay {
                to: match input.array()? {
                    [0] => Relay::Off,
                    [1] => Relay::On,
                    _ => return Err(BadEvent::Value),
                },
            },
            8 => What::Firmware { from: text(&mut input)?, to: text(&mut input)? },
            9 => What::Protocol { from: text(&mut input)?, to: text(&mut input)? },
            10 => What::Renamed { from: text(&mut input)?, to: text(&mut input)? },
            _ => return Err(BadEvent::Unknown),
        };
        input.end()?;
        let device = (device < NO_DEVICE).then(|| DeviceNumber::new(device));
        Ok(Self { time: UnixMillis::new(time), device, what })
    }
}

fn put_text<const N: usize>(out: &mut Vec<u8>, text: &Text<N>) {
    put_varint(out, u64::try_from(text.as_str().len()).unwrap_or(0));
    out.extend(text.as_str().as_bytes());
}

fn text<const N: usize>(input: &mut Input<'_>) -> Result<Text<N>, BadEvent> {
    let length = usize::try_from(input.varint()?).ok().filter(|length| *length <= N).ok_or(BadEvent::Length)?;
    std::str::from_utf8(input.take(length)?).map(Text::new).map_err(|_| BadEvent::Value)
}

fn moment(input: &mut Input<'_>) -> Result<UnixMillis, BadEvent> {
    i64::try_from(input.varint()?).map(UnixMillis::new).map_err(|_| BadEvent::Value)
}

fn energy(input: &mut Input<'_>) -> Result<MilliwattHours, BadEvent> {
    let energy = i64::try_from(input.varint()?).ok().and_then(|n| MilliwattHours::new(n).ok());
    energy.ok_or(BadEvent::Value)
}

/// What an entry that comes after `last` tells, beside itself. `before` is the reading before it, however long ago.
pub(super) fn between(last: Option<Stored>, before: Option<Reading>, new: &Stored) -> Vec<What> {
    let mut told = Vec::new();
    let Entry::Reading(reading) = new.entry else { return told };
    match last.map(|last| (last.entry, i64::from(last.interval_ms))) {
        Some((Entry::Gap { time }, _)) => told.push(What::Gap { since: time }),
        // The agent was off, or the plug was silent without a miss: the reading before does not hold so long.
        Some((Entry::Reading(last), interval))
            if reading.time.since(last.time) > interval.saturating_mul(limits::HOLD_INTERVALS.into()) =>
        {
            told.push(What::Gap { since: last.time.plus(interval) });
        }
        _ => {}
    }
    let Some(before) = before else { return told };
    if let (Some(from), Some(to)) = (before.counter, reading.counter)
        && to < from
    {
        told.push(What::CounterRestart { from, to });
    }
    if let (Some(from), Some(to)) = (before.relay, reading.relay)
        && to != from
    {
        told.push(What::Relay { to });
    }
    told
}

/// What changed in what a plug says of itself. Outlets are numbered as the plug does.
pub(super) fn changes(old: &PlugFacts, new: &PlugFacts) -> Vec<(Option<u8>, What)> {
    let mut told = Vec::new();
    // What an announcement says of a plug is not all of it: it has no firmware.
    let is_whole = |facts: &PlugFacts| !facts.firmware.is_empty();
    if !is_whole(old) || !is_whole(new) {
        return told;
    }
    if old.firmware != new.firmware {
        told.push((None, What::Firmware { from: old.firmware.clone(), to: new.firmware.clone() }));
    }
    if old.protocol != new.protocol {
        let name = |facts: &PlugFacts| Label::new(facts.protocol.name());
        told.push((None, What::Protocol { from: name(old), to: name(new) }));
    }
    if old.alias != new.alias {
        told.push((None, What::Renamed { from: old.alias.clone(), to: new.alias.clone() }));
    }
    for (n, (old, new)) in (0..).zip(old.outlets.iter().zip(&new.outlets)) {
        if old.alias != new.alias {
            told.push((Some(n), What::Renamed { from: old.alias.clone(), to: new.alias.clone() }));
        }
    }
    told
}

/// Which events to read: of `devices`, or all and the agent's own; in `[from, to)`, in order, after a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventScan {
    /// Whose. None for everything.
    pub devices: Option<Vec<DeviceNumber>>,
    /// The earliest time.
    pub from: UnixMillis,
    /// The end of the range, not in it.
    pub to: UnixMillis,
    /// Which end first.
    pub order: Order,
    /// Where an earlier page of the same scan ended.
    pub after: Option<Place>,
    /// The most events to return.
    pub limit: usize,
}

impl EventScan {
    fn covers(&self, event: &Event) -> bool {
        let place = event.place();
        let beyond = |after: Place| match self.order {
            Order::Ascending => place > after,
            Order::Descending => place < after,
        };
        let is_wanted = |devices: &Vec<DeviceNumber>| event.device.is_some_and(|device| devices.contains(&device));
        self.devices.as_ref().is_none_or(is_wanted)
            && (self.from..self.to).contains(&event.time)
            && self.after.is_none_or(beyond)
    }
}

/// One page of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// The events, in the scan's order.
    pub events: Vec<Event>,
    /// Whether there are more after these.
    pub more: bool,
}

/// Events on their way to the disk, oldest first, at most [`limits::PENDING_EVENTS`].
#[derive(Default)]
pub(super) struct Pending(Vec<Event>);

impl Pending {
    /// Takes an event. When the disk has taken none for long, the oldest go.
    pub fn push(&mut self, event: Event) {
        if self.0.len() >= limits::PENDING_EVENTS {
            self.0.remove(0);
        }
        self.0.push(event);
    }

    /// What waits.
    pub fn all(&self) -> &[Event] {
        &self.0
    }

    /// These are on disk.
    pub fn forget(&mut self, written: &[Event]) {
        self.0.retain(|event| !written.contains(event));
    }
}

/// Writes events; one that is there already stays as it is.
pub(super) fn write(write: &WriteTransaction, events: &[Event]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let mut table = write.open_table(EVENT)?;
    for event in events {
        let place = event.place();
        table.insert((place.time.get(), place.rank), event.value().as_slice())?;
    }
    Ok(())
}

/// Deletes events before a time, a few of them. Says whether more are to be deleted.
pub(super) fn expire(write: &WriteTransaction, before: UnixMillis) -> Result<bool, StoreError> {
    let mut table = write.open_table(EVENT)?;
    let old = table.range(..(before.get(), 0))?.take(EXPIRED_A_RUN).map(|entry| entry.map(|(key, _)| key.value()));
    let old = old.collect::<Result<Vec<_>, _>>()?;
    for key in &old {
        table.remove(key)?;
    }
    Ok(old.len() == EXPIRED_A_RUN)
}

/// One page; `memory` holds what no commit covers.
pub(super) fn page(
    read: &ReadTransaction,
    scan: &EventScan,
    memory: Vec<Event>,
) -> Result<(EventPage, Touched), StoreError> {
    let mut events: Vec<Event> = memory.into_iter().filter(|event| scan.covers(event)).collect();
    let mut touched = Touched::of_rows(events.len());
    let (from, to) = match (scan.order, scan.after) {
        (Order::Ascending, Some(after)) => (scan.from.max(after.time), scan.to),
        (Order::Descending, Some(after)) => (scan.from, scan.to.min(after.time.plus(1))),
        (_, None) => (scan.from, scan.to),
    };
    let table = match read.open_table(EVENT) {
        // A store of before there were events.
        Err(TableError::TableDoesNotExist(_)) => None,
        other => Some(other?),
    };
    if let Some(table) = table.filter(|_| from < to) {
        let mut range = table.range((from.get(), 0)..(to.get(), 0))?;
        let mut found = 0;
        while found <= scan.limit {
            let entry = match scan.order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let Some((key, value)) = entry.transpose()? else { break };
            touched.rows = touched.rows.saturating_add(1);
            match Event::read(key.value(), value.value()) {
                Ok(event) if scan.covers(&event) => {
                    found += 1;
                    events.push(event);
                }
                Ok(_) => {}
                Err(why) => log::error!("the event at {} is left out: {why}", UnixMillis::new(key.value().0)),
            }
        }
    }
    match scan.order {
        Order::Ascending => events.sort_by_key(Event::place),
        Order::Descending => events.sort_by_key(|event| std::cmp::Reverse(event.place())),
    }
    events.dedup_by_key(|event| event.place()); // one that was committed meanwhile was found in both places
    let more = events.len() > scan.limit;
    events.truncate(scan.limit);
    Ok((EventPage { events, more }, touched))
}

/// What is wrong with the stored events, in words.
pub(super) fn check(
    read: &ReadTransaction,
    is_known: impl Fn(DeviceNumber) -> bool,
    mut report: impl FnMut(String),
) -> Result<(), StoreError> {
    let table = match read.open_table(EVENT) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        other => other?,
    };
    for entry in table.iter()? {
        let (key, value) = entry?;
        let time = UnixMillis::new(key.value().0);
        match Event::read(key.value(), value.value()) {
            Err(why) => report(format!("the event at {time}: {why}")),
            Ok(Event { device: Some(device), .. }) if !is_known(device) => {
                report(format!("the event at {time} is of device {}, which has no record", device.get()));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

impl Store {
    /// Notes what happened to a device, or to the agent as a whole. It is seen at once and durable after the next commit.
    pub fn note(&self, id: Option<DeviceId>, time: UnixMillis, what: What) {
        let mut memory = self.memory.borrow_mut();
        let device = id.map(|id| memory.number_of(id, time));
        memory.events.push(Event { time, device, what });
    }

    /// One page of events.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read. What is damaged is left out and logged.
    pub async fn events(&self, scan: EventScan) -> Result<EventPage, StoreError> {
        let memory = self.memory.borrow().events.all().to_vec();
        self.read(move |file| file.events(&scan, memory)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_what() -> impl Strategy<Value = What> {
        let time = (0..=UnixMillis::MAX.get()).prop_map(UnixMillis::new);
        let energy = || (0..=1_000_000_000_000_i64).prop_map(|n| MilliwattHours::new(n).unwrap());
        let label = || "[ -~]{0,40}".prop_map(|text| Label::new(&text));
        let alias = || "\\PC{0,12}".prop_map(|text| Alias::new(&text));
        prop_oneof![
            Just(What::AgentStop),
            Just(What::Offline),
            Just(What::Online),
            any::<bool>().prop_map(|on| What::Relay { to: if on { Relay::On } else { Relay::Off } }),
            (energy(), energy()).prop_map(|(from, to)| What::CounterRestart { from, to }),
            time.clone().prop_map(|since| What::Gap { since }),
            time.prop_map(|from| What::ClockStep { from }),
            (label(), label()).prop_map(|(from, to)| What::Firmware { from, to }),
            (label(), label()).prop_map(|(from, to)| What::Protocol { from, to }),
            (alias(), alias()).prop_map(|(from, to)| What::Renamed { from, to }),
            label().prop_map(|version| What::AgentStart { version }),
        ]
    }

    proptest! {
        #[test]
        fn an_event_comes_back_as_it_went(what in any_what(), time in 0..=UnixMillis::MAX.get(), n in proptest::option::of(0..1_000_u32)) {
            let event = Event { time: UnixMillis::new(time), device: n.map(DeviceNumber::new), what };
            let place = event.place();
            prop_assert_eq!(Event::read((place.time.get(), place.rank), &event.value()), Ok(event));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, rank: u32) {
            let _ = Event::read((0, rank), &bytes);
            let _ = Event::read((0, rank), &[&[VERSION], bytes.as_slice()].concat());
        }
    }

    fn reading(time: i64, counter: i64, relay: Option<Relay>) -> Reading {
        let power = crate::units::Milliwatts::ZERO;
        let counter = Some(MilliwattHours::new(counter).unwrap());
        Reading { time: UnixMillis::new(time), power, voltage: None, current: None, counter, relay }
    }

    #[test]
    fn readings_tell_switches_restarts_and_gaps() {
        let stored = |reading| Stored { entry: Entry::Reading(reading), interval_ms: 10_000 };
        let (on, off) = (Some(Relay::On), Some(Relay::Off));
        let first = reading(1_000, 5_000, on);
        let told = |last, new| between(Some(last), Some(first), &stored(new));
        assert_eq!(told(stored(first), reading(11_000, 5_000, on)), []);
        assert_eq!(told(stored(first), reading(31_000, 5_000, None)), [], "it holds for three intervals");
        assert_eq!(told(stored(first), reading(31_001, 5_000, on)), [What::Gap { since: UnixMillis::new(11_000) }]);
        let gap = Stored { entry: Entry::Gap { time: UnixMillis::new(9_000) }, interval_ms: 10_000 };
        assert_eq!(
            told(gap, reading(12_000, 3_000, off)),
            [
                What::Gap { since: UnixMillis::new(9_000) },
                What::CounterRestart { from: first.counter.unwrap(), to: MilliwattHours::new(3_000).unwrap() },
                What::Relay { to: Relay::Off },
            ]
        );
        assert_eq!(between(None, None, &stored(first)), []);
        assert_eq!(between(Some(stored(first)), Some(first), &gap), []);
    }
}
