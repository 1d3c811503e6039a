//! A device's entries become buckets of 15 minutes.
//!
//! Owns the state between entries. Promises that folding in any batching, or from a state that was saved and resumed,
//! gives the same buckets, each once, in order of time; that the energies of the buckets add up to the difference of
//! [`Energy::total`] at their borders, exactly; and that asking for the unfinished buckets changes nothing.
//!
//! A bucket is finished by the first entry at or after its end: only then is it known for what time the last reading in it
//! stands, and what the counter says of that time. Energy between two readings is split at a border by the power held.
//! A reading after a border stands for some time before it, so that its power and switch count there too.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Flags, Millijoules, PowerRange, QUARTER_HOUR_MS, quarter_hour};
use super::energy::{Energy, Form, MILLIWATT_HOUR, Piece, millis, milliwatt_hours, milliwatts};
use crate::reading::{Entry, Relay};
use crate::units::{MilliwattHours, UnixMillis};

/// mW ms in one mJ.
const MILLIJOULE: u64 = 1_000;

/// The state of one device's fold: its energy, and the bucket that is not yet finished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    form: Form,
    energy: Energy,
    /// The switch as of the last reading.
    relay: Option<Relay>,
    /// T in whole mWh as of the last finished bucket.
    reported: u64,
    /// What the last bucket left of the power integral, below one mJ, in mW ms.
    rest: u64,
    open: Option<Open>,
}

/// A bucket in the making. Powers in mW, times in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    start: UnixMillis,
    observed: u64,
    /// In mW ms.
    power: u64,
    range: Option<(u64, u64)>,
    on: Option<u64>,
    readings: u32,
    flags: u8,
}

impl Open {
    const fn new(start: UnixMillis) -> Self {
        Self { start, observed: 0, power: 0, range: None, on: None, readings: 0, flags: 0 }
    }

    fn end(&self) -> UnixMillis {
        self.start.plus(QUARTER_HOUR_MS)
    }

    fn hold(&mut self, power: u64, relay: Option<Relay>, millis: u64) {
        self.observed = self.observed.saturating_add(millis);
        self.power = self.power.saturating_add(power.saturating_mul(millis));
        let (min, max) = self.range.unwrap_or((power, power));
        self.range = Some((min.min(power), max.max(power)));
        if let Some(relay) = relay {
            let on = if relay == Relay::On { millis } else { 0 };
            self.on = Some(self.on.unwrap_or(0).saturating_add(on));
        }
    }

    fn flag(&mut self, flags: Flags) {
        self.flags |= flags.bits();
    }
}

impl Fold {
    /// Nothing folded yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing folded yet, energy counted on from `energy`.
    #[must_use]
    pub fn from_energy(energy: Energy) -> Self {
        Self { reported: energy.exact() / MILLIWATT_HOUR, energy, ..Self::default() }
    }

    /// The same, after `energy` that was drawn before all that was folded.
    #[must_use]
    pub fn preceded_by(self, energy: MilliwattHours) -> Self {
        let reported = self.reported.saturating_add(energy.get());
        Self { reported, energy: self.energy.preceded_by(energy), ..self }
    }

    /// The total as of the last finished bucket.
    #[must_use]
    pub fn reported(&self) -> MilliwattHours {
        milliwatt_hours(self.reported)
    }

    /// The device's energy.
    #[must_use]
    pub fn energy(&self) -> &Energy {
        &self.energy
    }

    /// Takes the next entry and hands every bucket that it finishes to `emit`, in order of time.
    ///
    /// `interval_ms` is the polling interval in force: a reading holds at most three intervals, and half the way to the next
    /// reading when that comes before.
    /// Entries come in order of time; one before the last is passed over. Buckets without observation and energy are
    /// not emitted.
    pub fn push(&mut self, entry: &Entry, interval_ms: u32, mut emit: impl FnMut(Bucket)) {
        let before = self.energy.exact();
        let Some(piece) = self.energy.settle(entry, interval_ms) else { return };
        let relay = if let Entry::Reading(reading) = entry { reading.relay } else { None };
        self.spread(&piece, relay, before, &mut emit);
        let Entry::Reading(reading) = entry else { return };
        let open = self.open.get_or_insert(Open::new(quarter_hour(piece.to)));
        open.readings = open.readings.saturating_add(1);
        for (is_set, flag) in [
            (piece.restart, Flags::RESTART_SEEN),
            (piece.spike, Flags::SPIKE_DROPPED),
            (piece.late > 0, Flags::BOOKED_LATE),
            (piece.has_gap() && open.start < piece.to, Flags::GAP_INSIDE),
        ] {
            if is_set {
                open.flag(flag);
            }
        }
        self.relay = reading.relay;
    }

    /// The buckets not yet emitted as of `now`, the last reading held on half the way: usually one, more when a hold spans
    /// a border.
    ///
    /// Nothing is changed. All energy here together is never more than what the next entry at or after `now` makes it;
    /// time before the last entry is taken as that entry's.
    pub fn peek(&self, now: UnixMillis, mut emit: impl FnMut(Bucket)) {
        let mut copy = self.clone();
        let mut booked = self.energy.exact();
        if let Some(piece) = self.energy.outlook(now) {
            copy.spread(&piece, None, booked, &mut emit);
            booked = booked.saturating_add(piece.gain);
        }
        copy.close(booked, &mut emit);
    }

    /// Gives the settled time to the buckets it lies in. `after` is the switch as of the entry, `before` is T where it
    /// begins.
    fn spread(&mut self, piece: &Piece, after: Option<Relay>, before: u64, emit: &mut impl FnMut(Bucket)) {
        let mut at = piece.from;
        while at < piece.until {
            let start = quarter_hour(at);
            let is_before = at < piece.turn;
            let (power, relay) = if is_before { (piece.power, self.relay) } else { (piece.after, after) };
            let end = start.plus(QUARTER_HOUR_MS).min(if is_before { piece.turn } else { piece.until });
            if end <= at {
                break; // the end of time
            }
            if self.open.is_some_and(|open| open.start != start) {
                self.close(before.saturating_add(piece.gained_by(at)), emit);
            }
            self.open.get_or_insert(Open::new(start)).hold(power, relay, millis(at, end));
            at = end;
        }
        if let Some(open) = &mut self.open {
            if piece.has_gap() && piece.until < open.end() {
                open.flag(Flags::GAP_INSIDE);
            }
            if open.end() <= piece.to {
                self.close(before.saturating_add(piece.gain), emit);
            }
        }
    }

    /// Finishes the open bucket. `booked` is T at its end, in mW ms.
    fn close(&mut self, booked: u64, emit: &mut impl FnMut(Bucket)) {
        let Some(open) = self.open.take() else { return };
        let total = booked / MILLIWATT_HOUR;
        let energy = total.saturating_sub(self.reported);
        if open.observed == 0 && energy == 0 {
            return;
        }
        self.reported = total.max(self.reported);
        let power = open.power.saturating_add(self.rest);
        self.rest = power % MILLIJOULE;
        emit(Bucket {
            start: open.start,
            energy: milliwatt_hours(energy),
            power: Millijoules::new(power / MILLIJOULE),
            observed: Duration::from_millis(open.observed),
            range: open.range.map(|(min, max)| PowerRange { min: milliwatts(min), max: milliwatts(max) }),
            on: open.on.map(Duration::from_millis),
            readings: open.readings,
            flags: Flags::from_bits(open.flags).unwrap_or_default(),
        });
    }
}
