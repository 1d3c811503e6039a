//! Whose turn it is: a pure state machine. It is told the time and what happened, and says what to do next.
//!
//! Promises: a plug in flight is not asked again before it is done; no plug is asked more often than the minimum
//! interval; at most `in_flight` plugs are asked at once, and of these at most a quarter are plugs that failed or never
//! answered, so that dead plugs delay nobody; every plug gets its turn. A plug that answers keeps to a grid of its own
//! (its phase plus a whole number of intervals), and the phases of all plugs are spread evenly, so that many plugs make
//! a level load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backoff;

/// A plug's place in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this plug; it counts as in flight until [`Schedule::finish`]. `late` is how long it had to wait for its turn.
    Poll {
        /// Whom.
        slot: Slot,
        /// Time between when it was due and now.
        late: Duration,
    },
    /// Nothing before this time, or before something happens.
    RestUntil(Duration),
    /// Nothing before something happens.
    Rest,
}

/// How a poll ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Answered,
    /// Not.
    Failed,
}

/// The bounds that every plug has in common.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A plug is never asked more often than this.
    pub min_interval: Duration,
    /// Plugs asked at once.
    pub in_flight: usize,
    /// Where the phases and the jitter of back-off come from.
    pub seed: u64,
}

#[derive(Debug)]
struct Entry {
    interval: Duration,
    phase: Duration,
    due: Duration,
    /// When it was last asked.
    asked: Option<Duration>,
    in_flight: bool,
    /// Failures in a row.
    misses: u32,
    proven: bool,
}

impl Entry {
    /// Failed last time, or never answered.
    fn is_doubtful(&self) -> bool {
        self.misses > 0 || !self.proven
    }
}

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    rules: Rules,
    random: fastrand::Rng,
    entries: BTreeMap<Slot, Entry>,
    /// Who waits for a turn, by when it is due: the proven ones and the doubtful ones.
    proven: BTreeSet<(Duration, Slot)>,
    doubtful: BTreeSet<(Duration, Slot)>,
    in_flight: usize,
    doubtful_in_flight: usize,
    added: u32,
}

/// The golden ratio's fraction: multiples of it fill the circle evenly, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

impl Schedule {
    /// An empty schedule.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            random: fastrand::Rng::with_seed(rules.seed),
            entries: BTreeMap::new(),
            proven: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            in_flight: 0,
            doubtful_in_flight: 0,
            added: 0,
        }
    }

    /// Adds a plug that is to be asked at once and then every `interval`. `proven`: it has just answered a probe.
    pub fn add(&mut self, slot: Slot, interval: Duration, proven: bool, now: Duration) {
        self.remove(slot);
        let interval = interval.max(self.rules.min_interval);
        let phase = interval.mul_f64((f64::from(self.added) * GOLDEN).fract());
        self.added = self.added.wrapping_add(1);
        let entry = Entry { interval, phase, due: now, asked: None, in_flight: false, misses: 0, proven };
        self.entries.insert(slot, entry);
        self.enqueue(slot);
    }

    /// Forgets a plug. What it has in flight no longer counts.
    pub fn remove(&mut self, slot: Slot) {
        self.dequeue(slot);
        if let Some(entry) = self.entries.remove(&slot)
            && entry.in_flight
        {
            self.land(entry.is_doubtful());
        }
    }

    /// Changes how often a plug is asked, from its next turn on.
    pub fn set_interval(&mut self, slot: Slot, interval: Duration) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            let interval = interval.max(self.rules.min_interval);
            let turn = entry.phase.as_secs_f64() / entry.interval.as_secs_f64();
            entry.phase = interval.mul_f64(turn.fract());
            entry.interval = interval;
        }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Step {
        let room = self.rules.in_flight.saturating_sub(self.in_flight);
        let doubtful_room = (self.rules.in_flight / 4).max(1).saturating_sub(self.doubtful_in_flight).min(room);
        let proven = self.proven.first().copied().filter(|_| room > 0);
        let doubtful = self.doubtful.first().copied().filter(|_| doubtful_room > 0);
        let Some((due, slot)) = proven.into_iter().chain(doubtful).min() else { return Step::Rest };
        if due > now {
            return Step::RestUntil(due);
        }
        self.dequeue(slot);
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.in_flight = true;
            entry.asked = Some(now);
            self.in_flight += 1;
            self.doubtful_in_flight += usize::from(entry.is_doubtful());
        }
        Step::Poll { slot, late: now.saturating_sub(due) }
    }

    /// A plug's poll has ended. Says how often in a row it has failed now.
    pub fn finish(&mut self, slot: Slot, outcome: Outcome, now: Duration) -> u32 {
        let Some(entry) = self.entries.get_mut(&slot).filter(|entry| entry.in_flight) else { return 0 };
        let was_doubtful = entry.is_doubtful();
        entry.in_flight = false;
        let earliest = entry.asked.map_or(now, |asked| asked.saturating_add(self.rules.min_interval)).max(now);
        match outcome {
            Outcome::Answered => {
                entry.misses = 0;
                entry.proven = true;
                entry.due = next_on_grid(entry.phase, entry.interval, earliest);
            }
            Outcome::Failed => {
                entry.misses = entry.misses.saturating_add(1);
                entry.due = now.saturating_add(backoff::pause(entry.misses, &mut self.random)).max(earliest);
            }
        }
        let misses = entry.misses;
        self.land(was_doubtful);
        self.enqueue(slot);
        misses
    }

    /// Something was heard of a plug that is being left alone: it gets its next turn as soon as the minimum allows.
    pub fn hasten(&mut self, slot: Slot, now: Duration) {
        self.dequeue(slot);
        if let Some(entry) = self.entries.get_mut(&slot).filter(|entry| entry.is_doubtful()) {
            let earliest = entry.asked.map_or(now, |asked| asked.saturating_add(self.rules.min_interval)).max(now);
            entry.due = entry.due.min(earliest);
        }
        self.enqueue(slot);
    }

    /// How often in a row a plug has failed.
    #[must_use]
    pub fn misses(&self, slot: Slot) -> u32 {
        self.entries.get(&slot).map_or(0, |entry| entry.misses)
    }

    fn land(&mut self, doubtful: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.doubtful_in_flight = self.doubtful_in_flight.saturating_sub(usize::from(doubtful));
    }

    fn enqueue(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get(&slot).filter(|entry| !entry.in_flight) {
            let queue = if entry.is_doubtful() { &mut self.doubtful } else { &mut self.proven };
            queue.insert((entry.due, slot));
        }
    }

    fn dequeue(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get(&slot) {
            self.proven.remove(&(entry.due, slot));
            self.doubtful.remove(&(entry.due, slot));
        }
    }
}

/// The first time at or after `earliest` that lies a whole number of intervals after `phase`.
fn next_on_grid(phase: Duration, interval: Duration, earliest: Duration) -> Duration {
    let past = earliest.saturating_sub(phase).as_nanos();
    let turns = past.div_ceil(interval.as_nanos().max(1));
    let turns = u32::try_from(turns).unwrap_or(u32::MAX); // at 100 ms an interval, 13 years
    phase.saturating_add(interval.saturating_mul(turns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules(in_flight: usize) -> Rules {
        Rules { min_interval: 5 * SECOND, in_flight, seed: 7 }
    }

    #[test]
    fn every_plug_is_asked_at_once_and_then_on_a_grid_of_its_own() {
        let mut schedule = Schedule::new(rules(16));
        for n in 0..3 {
            schedule.add(Slot(n), 10 * SECOND, true, Duration::ZERO);
        }
        let mut phases = Vec::new();
        for _ in 0..3 {
            let Step::Poll { slot, late } = schedule.next(Duration::ZERO) else { panic!("all are due") };
            assert_eq!(late, Duration::ZERO);
            schedule.finish(slot, Outcome::Answered, SECOND);
        }
        for _ in 0..3 {
            let Step::RestUntil(due) = schedule.next(SECOND) else { panic!("nobody is due yet") };
            let Step::Poll { slot, .. } = schedule.next(due) else { panic!("due now") };
            schedule.finish(slot, Outcome::Answered, due);
            phases.push(due);
        }
        assert!(phases.windows(2).all(|pair| pair[1] - pair[0] > SECOND), "spread: {phases:?}");
        let Step::RestUntil(due) = schedule.next(phases[2]) else { panic!() };
        assert_eq!(due, phases[0] + 10 * SECOND, "the pace does not drift");
    }

    #[test]
    fn dead_plugs_take_at_most_a_quarter_of_the_places() {
        let mut schedule = Schedule::new(rules(8));
        for n in 0..50 {
            schedule.add(Slot(n), 10 * SECOND, false, Duration::ZERO);
        }
        schedule.add(Slot(99), 10 * SECOND, true, SECOND);
        let mut asked = Vec::new();
        while let Step::Poll { slot, .. } = schedule.next(SECOND) {
            asked.push(slot);
        }
        assert_eq!(asked, [Slot(0), Slot(1), Slot(99)]);
    }

    #[test]
    fn a_plug_that_is_heard_of_again_need_not_wait_for_its_back_off_to_end() {
        let mut schedule = Schedule::new(rules(4));
        schedule.add(Slot(1), 10 * SECOND, true, Duration::ZERO);
        let mut now = Duration::ZERO;
        for misses in 1..=6 {
            while let Step::RestUntil(due) = schedule.next(now) {
                now = due;
            }
            assert_eq!(schedule.finish(Slot(1), Outcome::Failed, now), misses);
        }
        let Step::RestUntil(due) = schedule.next(now) else { panic!() };
        assert!(due > now + 100 * SECOND);
        schedule.hasten(Slot(1), now + SECOND);
        assert_eq!(schedule.next(now + SECOND), Step::RestUntil(now + 5 * SECOND), "the minimum interval still holds");
    }

    proptest! {
        /// Random plugs, intervals, durations and failures, for a simulated time: the promises of the module head hold
        /// at every step.
        #[test]
        fn promises_hold(
            intervals in proptest::collection::vec(1..40_u64, 1..30),
            in_flight in 1..10_usize,
            seed: u64,
        ) {
            let mut schedule = Schedule::new(Rules { min_interval: 5 * SECOND, in_flight, seed });
            let mut random = fastrand::Rng::with_seed(seed);
            for (n, interval) in intervals.iter().enumerate() {
                schedule.add(Slot(n as u32), SECOND * (*interval as u32), random.bool(), Duration::ZERO);
            }
            let (mut now, end) = (Duration::ZERO, 1_000 * SECOND);
            let mut running: BTreeSet<(Duration, Slot)> = BTreeSet::new();
            let mut last_asked: BTreeMap<Slot, Duration> = BTreeMap::new();
            while now < end {
                match schedule.next(now) {
                    Step::Poll { slot, .. } => {
                        prop_assert!(running.iter().all(|(_, other)| *other != slot), "asked twice at once");
                        prop_assert!(running.len() < in_flight, "too many at once");
                        if let Some(last) = last_asked.insert(slot, now) {
                            prop_assert!(now - last >= 5 * SECOND, "asked too often");
                        }
                        running.insert((now + Duration::from_millis(random.u64(1..3_000)), slot));
                    }
                    step => {
                        let wake = if let Step::RestUntil(due) = step { due } else { end };
                        prop_assert!(wake > now, "a rest that is none");
                        now = running.first().map_or(wake, |(done, _)| wake.min(*done)).min(end);
                        while let Some((done, slot)) = running.first().copied().filter(|(done, _)| *done <= now) {
                            running.pop_first();
                            let outcome = if random.u8(..) < 40 { Outcome::Failed } else { Outcome::Answered };
                            schedule.finish(slot, outcome, done);
                        }
                        if random.u8(..) < 5 {
                            schedule.hasten(Slot(random.u32(..intervals.len() as u32)), now);
                        }
                    }
                }
            }
            prop_assert_eq!(last_asked.len(), intervals.len(), "somebody never had a turn");
        }
    }
}
