//! How much energy an outlet has drawn: one total per device that never falls, from power and the plug's own counter.
//!
//! Owns the total T and the reading of the counter. With C the counter's sum across restarts,
//! T = clamp(T + integral of P dt, C, C + one counter step). Promises: T never falls, never rises faster than an outlet
//! can carry (5 kW), and is a pure function of the entries in order of time; a total that is saved and resumed goes on
//! as if it had never been put away. Leaves buckets to [`super::Fold`].
//!
//! All sums are whole mW ms, so that nothing is rounded away; [`MILLIWATT_HOUR`] of them are one mWh.
//!
//! A reading stands for the time around it, up to the middle between it and its neighbours. The load changed at an
//! unknown moment between two readings; taking the middle is right on average for a rise and for a fall, however long
//! the time between them was, so that intervals which adapt to the load bias neither energy nor means. Holding the
//! earlier reading instead would lose energy: a rise is noticed late, after a long interval, a fall soon, after a short
//! one. Before a gap a reading stands for all of its hold.
//!
//! The counter says more about long times between readings ([`COUNTER_LAG`]): when it contradicts a change in the middle,
//! it tells where the change was, or that something came and went unseen.
//!
//! How the counter is read:
//!
//! | the counter | taken as |
//! |---|---|
//! | rises by what the outlet can carry since it was last seen | energy |
//! | falls | a restart: its new value is energy if power x time, x 1.2, and a step allow it; measured power counts anyway |
//! | falls by up to two steps, to what no restart explains | wobble: nothing happened |
//! | rises by more than that | a spike: dropped, counted; the next reading says which of the two values goes on |
//! | comes back to where it stood before a fall or spike | the fall or spike was a glitch |
//! | is absent | power alone counts, no bound is known |
//!
//! A reading with a voltage that no mains socket has (a dip to 15 V) is passed over: what came before it holds on.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::reading::{Entry, Reading};
use crate::units::{MilliwattHours, Milliwatts, UnixMillis};

/// One mWh in mW ms.
pub const MILLIWATT_HOUR: u64 = 3_600_000;
/// The largest total: what [`MilliwattHours`] can hold.
const MOST: u64 = MILLIWATT_HOUR * 1_000_000_000_000;
/// What an outlet can carry.
const OUTLET: u64 = 5_000_000;
/// The counter's step unless it shows a finer one: 1 Wh.
const COUNTER_STEP: u64 = 1_000;
/// How far a counter may lag behind what is drawn, in ms. What lies within it is no contradiction to the power.
pub(super) const COUNTER_LAG: u64 = 60_000;
/// Falls of so many steps are rounding inside the plug, unless a restart explains them.
const WOBBLE_STEPS: u64 = 2;

/// The form in which a state is saved; an unknown one is refused when it is read back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Form {
    #[default]
    V1,
}

/// The energy that one device has drawn, in order of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Energy {
    form: Form,
    /// T, in mW ms.
    total: u64,
    /// The counter's step, in mWh.
    step: u64,
    last: Option<Last>,
    /// The counter as it goes on.
    track: Option<Track>,
    /// Where the counter stood before its last fall or spike, until the next reading shows which of the two goes on.
    other: Option<Track>,
    restarts: u32,
    spikes: u32,
}

/// The last reading and what of its hold is still to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    /// The last entry.
    at: UnixMillis,
    /// Up to where its power is in the total.
    from: UnixMillis,
    /// Where its hold ends, as far as known.
    until: UnixMillis,
    /// In mW.
    power: u64,
}

/// A counter that goes on from a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Track {
    /// The last value, in mWh.
    value: u64,
    /// C at that value, in mW ms.
    counted: u64,
    seen: UnixMillis,
    /// Integral of power since then, in mW ms.
    since_seen: u64,
    /// Integral of power since the value last rose, in mW ms: some plugs count in bursts.
    since_rise: u64,
}

/// What an entry settled: the time since the entry before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where the settled hold begins,
    pub from: UnixMillis,
    /// up to where it is the earlier reading's, from where on the later one's,
    pub turn: UnixMillis,
    /// where it ends (what follows, up to `to`, was not observed),
    pub until: UnixMillis,
    /// and the entry itself.
    pub to: UnixMillis,
    /// The power held before the turn, in mW,
    pub power: u64,
    /// and after it.
    pub after: u64,
    /// Energy over the hold, in mW ms.
    pub gain: u64,
    /// Energy that only a counter saw, while nobody looked; booked at `to`.
    pub late: u64,
    pub restart: bool,
    pub spike: bool,
}

impl Piece {
    /// The integral of the power held up to `time`.
    fn measured_by(&self, time: UnixMillis) -> u64 {
        let time = time.min(self.until);
        let before = self.power.saturating_mul(millis(self.from, time.min(self.turn)));
        before.saturating_add(self.after.saturating_mul(millis(self.turn, time)))
    }

    /// The energy of the hold up to `time`: the power held as long as it lasts, and what the counter saw beyond it where
    /// the outlet could carry more. So no part of a hold has more than that.
    pub fn gained_by(&self, time: UnixMillis) -> u64 {
        let (part, whole) = (self.measured_by(time), self.measured_by(self.until));
        let beyond = self.gain.saturating_sub(whole);
        let room = |time: UnixMillis, measured| {
            OUTLET.saturating_mul(millis(self.from, time.min(self.until))).saturating_sub(measured)
        };
        let share = u128::from(beyond) * u128::from(room(time, part)) / u128::from(room(self.until, whole).max(1));
        part.saturating_add(u64::try_from(share).unwrap_or(beyond)).min(self.gain)
    }

    /// Heeds a counter that went from `track` to `value` in steps of `step`. Where what it rose by contradicts the power held
    /// by more than a step, the change between the two readings moves to where the counter has it. Where no moment of
    /// change explains it, and no lag of the counter, something came and went unseen: its mean power is held throughout.
    fn heed(&mut self, track: &Track, value: u64, step: u64) {
        let span = millis(self.from, self.until);
        let rise = value.saturating_sub(track.value).saturating_mul(MILLIWATT_HOUR);
        if span < COUNTER_LAG || rise == 0 || self.has_gap() || rise.abs_diff(track.since_rise) <= step {
            return;
        }
        let held = self.measured_by(self.until);
        let energy = held.saturating_add(rise).saturating_sub(track.since_rise).min(OUTLET.saturating_mul(span));
        let (low, high) = (self.power.min(self.after), self.power.max(self.after));
        let (least, most) = (low.saturating_mul(span), high.saturating_mul(span));
        let slack = high.saturating_mul(COUNTER_LAG).saturating_add(step);
        if energy.saturating_add(slack) < least || energy > most.saturating_add(slack) {
            (self.power, self.after) = (energy / span, energy / span);
        } else if low < high {
            // power x s + after x (span - s) = energy
            let s = energy.clamp(least, most).abs_diff(self.after.saturating_mul(span)) / (high - low);
            self.turn = self.from.plus(i64::try_from(s.min(span)).unwrap_or(i64::MAX));
        }
    }

    /// Whether some of its time was not observed.
    pub fn has_gap(&self) -> bool {
        self.until < self.to
    }
}

impl Default for Energy {
    fn default() -> Self {
        Self {
            form: Form::V1,
            total: 0,
            step: COUNTER_STEP,
            last: None,
            track: None,
            other: None,
            restarts: 0,
            spikes: 0,
        }
    }
}

impl Energy {
    /// Nothing drawn yet; the counter's step is 1 Wh until the counter shows a finer one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing drawn yet, and a counter that is known to move in steps of `step` at most.
    #[must_use]
    pub fn with_step(step: MilliwattHours) -> Self {
        Self { step: step.get().max(1), ..Self::default() }
    }

    /// The same, after `energy` that was drawn before the first entry.
    #[must_use]
    pub(super) fn preceded_by(mut self, energy: MilliwattHours) -> Self {
        let before = energy.get().saturating_mul(MILLIWATT_HOUR);
        let later = |counted: u64| counted.saturating_add(before).min(MOST);
        self.total = later(self.total);
        for track in [&mut self.track, &mut self.other].into_iter().flatten() {
            track.counted = later(track.counted);
        }
        self
    }

    /// The total as of the last entry, rounded down.
    #[must_use]
    pub fn total(&self) -> MilliwattHours {
        milliwatt_hours(self.total / MILLIWATT_HOUR)
    }

    /// The total as of `now`, the last reading held on. Never more than what the next entry will make it at that time.
    #[must_use]
    pub fn total_at(&self, now: UnixMillis) -> MilliwattHours {
        let gain = self.outlook(now).map_or(0, |piece| piece.gain);
        milliwatt_hours(self.total.saturating_add(gain) / MILLIWATT_HOUR)
    }

    /// The counter's step as known so far.
    #[must_use]
    pub fn step(&self) -> MilliwattHours {
        milliwatt_hours(self.step)
    }

    /// How often the counter fell.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How many values of the counter were dropped as impossible.
    #[must_use]
    pub fn spikes(&self) -> u32 {
        self.spikes
    }

    /// Takes the next entry. `interval_ms` is the polling interval in force: a reading holds at most three of them.
    ///
    /// An entry before the last one is passed over: whoever has late rows folds again from an earlier state.
    pub fn push(&mut self, entry: &Entry, interval_ms: u32) {
        let _ = self.settle(entry, interval_ms);
    }

    /// T in mW ms.
    pub(super) fn exact(&self) -> u64 {
        self.total
    }

    /// As [`Energy::push`], and what it settled. `None` when the entry was passed over.
    pub(super) fn settle(&mut self, entry: &Entry, interval_ms: u32) -> Option<Piece> {
        match entry {
            Entry::Gap { time } => {
                let last = self.last.filter(|last| *time >= last.at)?;
                let piece = self.draw(last, *time, None);
                let piece = Piece { gain: self.add(piece.gain), ..piece };
                self.last = Some(Last { at: *time, from: piece.until, until: piece.until, ..last });
                Some(piece)
            }
            Entry::Reading(reading) => self.settle_reading(reading, interval_ms),
        }
    }

    fn settle_reading(&mut self, reading: &Reading, interval_ms: u32) -> Option<Piece> {
        let time = reading.time;
        if reading.voltage.is_some_and(|voltage| !voltage.is_plausible()) {
            return None;
        }
        let power = u64::from(reading.power.get());
        let mut piece = match self.last {
            None => Piece { from: time, turn: time, until: time, to: time, ..Piece::default() },
            Some(last) if time < last.at => return None,
            Some(last) => self.draw(last, time, Some(power)),
        };
        let mut fresh = piece.gain;
        let step = self.step_exact(); // a finer one learnt now holds from the next reading on
        if piece.has_gap() {
            // The end of a hold is final, whether or not a mark told of it.
            piece.gain = self.add(fresh);
            fresh = 0;
        }
        // Only a counter that was seen at the reading before, and is not in doubt, can tell of the time since then.
        let track = self.track.filter(|track| track.seen == piece.from && self.other.is_none());
        let counted =
            reading.counter.map(|counter| self.judge(counter.get(), time, power.max(piece.power), fresh, &mut piece));
        let wanted = self.total.saturating_add(fresh);
        let wanted = match counted {
            Some(counted) => wanted.clamp(counted, counted.saturating_add(step)),
            None => wanted,
        };
        if let Some((track, counter)) = track.zip(reading.counter)
            && !piece.restart
            && !piece.spike
        {
            piece.heed(&track, counter.get(), step);
        }
        let unsettled = millis(if piece.has_gap() { piece.until } else { piece.from }, time);
        let gain = wanted.saturating_sub(self.total).min(OUTLET.saturating_mul(unsettled));
        let gain = self.add(gain);
        if piece.has_gap() {
            piece.late = gain;
        } else {
            piece.gain = gain;
        }
        self.last = Some(Last {
            at: time,
            from: time,
            until: time.plus(i64::from(interval_ms).saturating_mul(limits::HOLD_INTERVALS.into())),
            power,
        });
        Some(piece)
    }

    /// What of the hold is certain as of `now`, nothing changed: the next reading may come at once and then stands for the
    /// later half. `None` before the first reading and for a time before the last entry.
    pub(super) fn outlook(&self, now: UnixMillis) -> Option<Piece> {
        let last = self.last.filter(|last| now >= last.at)?;
        let mut piece = piece(&last, now, Some(0));
        if !piece.has_gap() {
            (piece.until, piece.to) = (piece.turn, piece.turn);
            piece.gain = piece.measured_by(piece.until);
        }
        // The next value of the counter may go on from either.
        if let Some(counted) = [&self.track, &self.other].into_iter().flatten().map(|track| track.counted).min() {
            let most = counted.saturating_add(self.step_exact());
            piece.gain = piece.gain.min(most.saturating_sub(self.total));
        }
        piece.gain = piece.gain.min(MOST.saturating_sub(self.total));
        Some(piece)
    }

    /// The hold up to `time`, told to the counter's tracks but not yet in the total. `after` is the power of a reading at
    /// that time.
    fn draw(&mut self, last: Last, time: UnixMillis, after: Option<u64>) -> Piece {
        let piece = piece(&last, time, after);
        for track in [&mut self.track, &mut self.other].into_iter().flatten() {
            track.since_seen = track.since_seen.saturating_add(piece.gain);
            track.since_rise = track.since_rise.saturating_add(piece.gain);
        }
        piece
    }

    /// Adds to the total, and says how much of it there was room for.
    fn add(&mut self, gain: u64) -> u64 {
        let gain = gain.min(MOST.saturating_sub(self.total));
        self.total = self.total.saturating_add(gain);
        gain
    }

    fn step_exact(&self) -> u64 {
        self.step.saturating_mul(MILLIWATT_HOUR)
    }

    /// C after the counter showed `value`. `power` is the larger of the readings on both sides, `fresh` the measured
    /// energy not yet in the total.
    fn judge(&mut self, value: u64, at: UnixMillis, power: u64, fresh: u64, piece: &mut Piece) -> u64 {
        let Some(track) = self.track else {
            let counted = self.total.saturating_add(fresh);
            self.learn(value);
            return self.go_on(Track { value, counted, seen: at, since_seen: 0, since_rise: 0 }, None);
        };
        let step = self.step_exact();
        let followed = track.follow(value, at, step);
        if let Some(next) = followed.or_else(|| self.other.and_then(|other| other.follow(value, at, step))) {
            self.learn(value);
            return self.go_on(next, None);
        }

        let away = millis(track.seen, at);
        let drawn = power.saturating_mul(away);
        let allowed = drawn.saturating_add(drawn / 5).min(OUTLET.saturating_mul(away)).saturating_add(step);
        let worth = value.saturating_mul(MILLIWATT_HOUR);
        let has_fallen = value < track.value;
        let credit = if has_fallen && worth <= allowed { worth } else { 0 };
        let wobble = self.step.saturating_mul(WOBBLE_STEPS);
        if has_fallen && worth > allowed && track.value.saturating_sub(value) <= wobble {
            return self.go_on(Track { seen: at, since_seen: 0, ..track }, None);
        }
        if has_fallen {
            piece.restart = true;
            self.restarts = self.restarts.saturating_add(1);
        } else {
            piece.spike = true;
            self.spikes = self.spikes.saturating_add(1);
        }
        // What the counter lost, power has measured: a restart at midnight costs nothing.
        let counted = track.counted.saturating_add(credit.max(track.since_seen));
        self.go_on(Track { value, counted, seen: at, since_seen: 0, since_rise: 0 }, Some(track))
    }

    fn go_on(&mut self, track: Track, other: Option<Track>) -> u64 {
        (self.track, self.other) = (Some(track), other);
        track.counted
    }

    /// A believed value that is not a multiple of the step shows a finer step.
    fn learn(&mut self, value: u64) {
        let (mut a, mut b) = (self.step, value);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        self.step = a.max(1);
    }
}

impl Track {
    /// This counter at a later `value`, if it can have got there.
    fn follow(&self, value: u64, at: UnixMillis, step: u64) -> Option<Self> {
        let rise = value.checked_sub(self.value)?.saturating_mul(MILLIWATT_HOUR);
        let carried = OUTLET.saturating_mul(millis(self.seen, at));
        let drawn = self.since_rise.saturating_add(self.since_rise / 5);
        (rise <= carried.saturating_add(drawn).saturating_add(step)).then(|| Self {
            value,
            counted: self.counted.saturating_add(rise),
            seen: at,
            since_seen: 0,
            since_rise: if rise == 0 { self.since_rise } else { 0 },
        })
    }
}

/// The hold up to `time` with the energy of the power held: that of the last reading, from the middle on that of the one
/// at `time` where there is one.
fn piece(last: &Last, time: UnixMillis, after: Option<u64>) -> Piece {
    let until = last.until.min(time).max(last.from);
    let (turn, after) = match after.filter(|_| until == time) {
        Some(after) => (last.from.plus(until.since(last.from) / 2), after),
        None => (until, last.power),
    };
    let mut piece = Piece { from: last.from, turn, until, to: time, power: last.power, after, ..Piece::default() };
    piece.gain = piece.measured_by(until);
    piece
}

/// Milliseconds from one time to a later one; 0 when it is not later.
pub(super) fn millis(from: UnixMillis, to: UnixMillis) -> u64 {
    u64::try_from(to.since(from)).unwrap_or(0)
}

/// As the unit's type; what it cannot hold is its largest value.
pub(super) fn milliwatt_hours(thousandths: u64) -> MilliwattHours {
    i64::try_from(thousandths).ok().and_then(|n| MilliwattHours::new(n).ok()).unwrap_or(MilliwattHours::MAX)
}

/// As the unit's type; what it cannot hold is its largest value.
pub(super) fn milliwatts(thousandths: u64) -> Milliwatts {
    i64::try_from(thousandths).ok().and_then(|n| Milliwatts::new(n).ok()).unwrap_or(Milliwatts::MAX)
}
