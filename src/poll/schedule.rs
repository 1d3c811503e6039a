//! Whose turn it is: a pure state machine. It is told the time and what happened, and says what to do next.
//!
//! Promises: a plug in flight is not asked again before it is done; no plug is asked more often than its own minimum
//! ([`Pace::least`]) nor the common one, whoever wants it; at most `in_flight` plugs are asked at once; every plug gets
//! its turn. Plugs that failed, or that nobody ever met, share a quarter of the places; together with those that were
//! not asked yet in this run they have three quarters: so plugs that answer always find places that no dead plug holds.
//! A plug that answers keeps to a grid of its own (its phase plus a whole number of intervals), and the phases of all
//! plugs are spread evenly, so that many plugs make a level load.
//!
//! What it cannot help: a plug that answered last time and now does not holds its place until the poll is given up, once
//! per outage. When as many plugs as there are places die within [`SLOW`], as behind an access point that fails, the others
//! wait for one timeout, once: by then the silence of half of the places has put all who wait in doubt. Those whom a probe
//! finds alive go on at once, and those it does not cannot take the last quarter of the places.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::backoff::{self, Failure, Pauses};

/// A plug's place in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this plug; it counts as in flight until [`Schedule::finish`].
    Poll {
        /// Whom.
        slot: Slot,
        /// How long it had to wait for its turn: the time between when it was due and now.
        late: Duration,
        /// What was known of it.
        standing: Standing,
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
    /// Not, in this way.
    Failed(Failure),
}

/// How often a plug is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time between its turns.
    pub interval: Duration,
    /// The least time between two questions, whatever happens: retries and wishes keep to it too. Not above `interval`.
    pub least: Duration,
}

/// What is known of a plug that waits for its turn. The better known has the larger part of the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answered when it was asked last.
    Answering,
    /// The same, but half of the places were then held by others that fell silent, and it has not been heard of since.
    Suspect,
    /// Not asked yet in this run, but a probe or an earlier run has met it.
    Hearsay,
    /// It failed last time, or nobody ever met it.
    Doubtful,
}

/// The bounds that every plug has in common.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A plug is never asked more often than this.
    pub min_interval: Duration,
    /// Plugs asked at once.
    pub in_flight: usize,
    /// How long plugs that failed are left alone.
    pub pauses: Pauses,
    /// Where the jitter of these pauses comes from.
    pub seed: u64,
}

impl Rules {
    /// Places for plugs in doubt.
    fn doubtful_places(&self) -> usize {
        (self.in_flight / 4).max(1)
    }

    /// Places for all but those that answer.
    fn unproven_places(&self) -> usize {
        (self.in_flight.saturating_mul(3) / 4).max(1)
    }
}

#[derive(Debug)]
struct Entry {
    pace: Pace,
    /// Where in each interval its turn lies, from 0 up to but not including 1.
    turn: f64,
    due: Duration,
    /// The turn that it is due for: `due`, or a little before it where its minimum interval put it off.
    due_for: Duration,
    /// When it was last asked.
    asked: Option<Duration>,
    in_flight: bool,
    /// Failures in a row.
    misses: u32,
    standing: Standing,
    /// When it last gave a sign of life.
    heard: Duration,
}

impl Entry {
    /// The first moment at which it may be asked again.
    fn earliest(&self, now: Duration) -> Duration {
        self.asked.map_or(now, |asked| asked.saturating_add(self.pace.least)).max(now)
    }

    fn set_due(&mut self, due: Duration) {
        (self.due, self.due_for) = (due, due);
    }

    /// Puts it on the next turn of its grid that leaves its minimum interval after the turn before. It is counted from
    /// that turn, not from when it was asked: that was a hair later, and a plug whose interval is its minimum would lose
    /// every other turn for it.
    fn take_next_turn(&mut self, now: Duration) {
        let phase = self.pace.interval.mul_f64(self.turn);
        let after = self.due_for.saturating_add(self.pace.least).max(now);
        self.due_for = next_on_grid(phase, self.pace.interval, after);
        self.due = self.due_for.max(self.earliest(now));
    }
}

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    rules: Rules,
    random: fastrand::Rng,
    entries: BTreeMap<Slot, Entry>,
    /// Who waits for a turn, by when it is due, one queue for each [`Standing`].
    answering: BTreeSet<(Duration, Slot)>,
    suspect: BTreeSet<(Duration, Slot)>,
    hearsay: BTreeSet<(Duration, Slot)>,
    doubtful: BTreeSet<(Duration, Slot)>,
    in_flight: usize,
    /// Of these, the ones that answered last time, by when they were asked,
    answering_in_flight: BTreeSet<(Duration, Slot)>,
    /// when so many of them had been asked that their silence put those who waited in doubt,
    alarm: Option<Duration>,
    /// the ones that were not answering when they were asked, and the ones in doubt.
    unproven_in_flight: usize,
    doubtful_in_flight: usize,
    added: u32,
    /// When the plug that is added next is first asked, at the earliest.
    next_first: Duration,
}

/// First questions keep this distance, or a hundredth of the interval where that is shorter: so the dead among many plugs met
/// at once do not take all places at once, and a house with few waits for nothing.
const FIRST_SPACING: Duration = Duration::from_millis(100);

/// A poll that takes no more than this part of the minimum interval counts as asked when it began.
const QUICK: u32 = 8;

/// A plug that answers does so within this time, mostly by far. When half of the places are held for longer, something has
/// happened to many.
pub const SLOW: Duration = Duration::from_millis(250);

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
            answering: BTreeSet::new(),
            suspect: BTreeSet::new(),
            hearsay: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            in_flight: 0,
            answering_in_flight: BTreeSet::new(),
            alarm: None,
            unproven_in_flight: 0,
            doubtful_in_flight: 0,
            added: 0,
            next_first: Duration::ZERO,
        }
    }

    /// Adds a plug that is to be asked at once, or soon after those added before it, and then at its pace. `met`: a probe or an earlier run has met it.
    pub fn add(&mut self, slot: Slot, pace: Pace, met: bool, now: Duration) {
        self.remove(slot);
        let turn = (f64::from(self.added) * GOLDEN).fract();
        self.added = self.added.wrapping_add(1);
        let standing = if met { Standing::Hearsay } else { Standing::Doubtful };
        let pace = self.bounded(pace);
        let due = self.next_first.max(now);
        self.next_first = due.saturating_add(FIRST_SPACING.min(pace.interval / 100));
        let (asked, heard) = (None, now);
        let entry = Entry { pace, turn, due, due_for: due, asked, in_flight: false, misses: 0, standing, heard };
        self.entries.insert(slot, entry);
        self.enqueue(slot);
    }

    /// Forgets a plug. What it has in flight no longer counts.
    pub fn remove(&mut self, slot: Slot) {
        self.dequeue(slot);
        if let Some(entry) = self.entries.remove(&slot)
            && entry.in_flight
        {
            self.land(slot, &entry);
        }
    }

    /// Changes how often a plug is asked. Its turn that is waiting stays; the one after it lies on the new grid.
    pub fn set_pace(&mut self, slot: Slot, pace: Pace) {
        let pace = self.bounded(pace);
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.pace = pace;
        }
    }

    fn bounded(&self, pace: Pace) -> Pace {
        let least = pace.least.max(self.rules.min_interval);
        Pace { interval: pace.interval.max(least), least }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Step {
        self.beware(now);
        let room = self.rules.in_flight.saturating_sub(self.in_flight);
        // Who answered last time and now takes long has as little claim to the last quarter as who never answered.
        let slow = self.answering_in_flight.iter().take_while(|(asked, _)| asked.saturating_add(SLOW) <= now).count();
        let unproven_room = self.rules.unproven_places().saturating_sub(self.unproven_in_flight + slow).min(room);
        let doubtful_room = self.rules.doubtful_places().saturating_sub(self.doubtful_in_flight).min(unproven_room);
        let first = |queue: &BTreeSet<_>, room| queue.first().copied().filter(|_| room > 0);
        let answering = first(&self.answering, room);
        let others = [
            first(&self.suspect, unproven_room),
            first(&self.hearsay, unproven_room),
            first(&self.doubtful, doubtful_room),
        ];
        let Some((due, slot)) = others.into_iter().flatten().chain(answering).min() else { return Step::Rest };
        if due > now {
            return Step::RestUntil(due);
        }
        self.dequeue(slot);
        let Some(entry) = self.entries.get_mut(&slot) else { return Step::Rest }; // cannot happen: it was queued
        entry.in_flight = true;
        entry.asked = Some(now);
        let standing = entry.standing;
        self.in_flight += 1;
        self.unproven_in_flight += usize::from(standing > Standing::Answering);
        self.doubtful_in_flight += usize::from(standing == Standing::Doubtful);
        if standing == Standing::Answering {
            self.answering_in_flight.insert((now, slot));
        }
        Step::Poll { slot, late: now.saturating_sub(due), standing }
    }

    /// Puts all in doubt who wait, when half of the places are held by plugs that answered last time and now keep silent.
    fn beware(&mut self, now: Duration) {
        let many = (self.rules.in_flight / 2).max(2);
        let Some((asked, _)) = self.answering_in_flight.iter().nth(many - 1).copied() else { return };
        if now < asked.saturating_add(SLOW) || self.alarm.is_some_and(|alarm| alarm >= asked) {
            return;
        }
        self.alarm = Some(asked);
        for (due, slot) in std::mem::take(&mut self.answering) {
            if let Some(entry) = self.entries.get_mut(&slot) {
                if entry.heard < asked {
                    entry.standing = Standing::Suspect;
                }
                let standing = entry.standing;
                self.queue(standing).insert((due, slot));
            }
        }
    }

    /// The last time at which so many plugs fell silent together that those who waited were put in doubt.
    #[must_use]
    pub fn alarm(&self) -> Option<Duration> {
        self.alarm
    }

    /// A plug's poll has ended. Says how often in a row it has failed now.
    pub fn finish(&mut self, slot: Slot, outcome: Outcome, now: Duration) -> u32 {
        if !self.entries.get(&slot).is_some_and(|entry| entry.in_flight) {
            return 0;
        }
        let Some(mut entry) = self.entries.remove(&slot) else { return 0 };
        self.land(slot, &entry);
        entry.in_flight = false;
        match outcome {
            Outcome::Answered => {
                // A poll that took long, by a login or a retry, asked its last question late: its minimum counts from there.
                let quick = entry.pace.least / QUICK;
                entry.asked = entry.asked.max(Some(now.saturating_sub(quick)));
                entry.misses = 0;
                entry.standing = Standing::Answering;
                entry.heard = now;
                entry.take_next_turn(now);
            }
            Outcome::Failed(failure) => {
                entry.misses = entry.misses.saturating_add(1);
                entry.standing = Standing::Doubtful;
                let pause = backoff::pause(failure, entry.misses, self.rules.pauses, &mut self.random);
                entry.set_due(now.saturating_add(pause).max(entry.earliest(now)));
            }
        }
        let misses = entry.misses;
        self.entries.insert(slot, entry);
        self.enqueue(slot);
        misses
    }

    /// A plug has given a sign of life: an answer to a probe. One in its back-off gets its next turn as soon as its minimum
    /// allows, and among those that were met; one in doubt for the silence of others counts as answering again.
    pub fn seen(&mut self, slot: Slot, now: Duration) {
        self.dequeue(slot);
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.heard = now;
            match entry.standing {
                _ if entry.in_flight => {}
                Standing::Suspect => {
                    // Until now it may have been away: its turn is counted from here.
                    entry.standing = Standing::Answering;
                    entry.set_due(entry.due.max(now));
                }
                Standing::Doubtful => {
                    entry.standing = Standing::Hearsay;
                    if entry.asked.is_some() {
                        entry.set_due(entry.due.min(entry.earliest(now)));
                    }
                }
                Standing::Answering | Standing::Hearsay => {}
            }
        }
        self.enqueue(slot);
    }

    /// Something was heard of a plug that is being left alone: it gets its next turn as soon as its minimum allows, but
    /// not before `pause` has passed since it was last asked.
    pub fn hasten(&mut self, slot: Slot, pause: Duration, now: Duration) {
        self.dequeue(slot);
        if let Some(entry) = self.entries.get_mut(&slot).filter(|entry| entry.standing == Standing::Doubtful) {
            let rested = entry.asked.map_or(now, |asked| asked.saturating_add(pause));
            entry.set_due(entry.due.min(entry.earliest(now).max(rested)));
        }
        self.enqueue(slot);
    }

    /// Somebody wants a plug's newest value: its next turn comes as soon as its minimum allows, and the grid goes on as
    /// before after it. A plug that is being left alone is not disturbed.
    pub fn request(&mut self, slot: Slot, now: Duration) -> Wish {
        let Some(entry) = self.entries.get(&slot) else { return Wish::Refused };
        if entry.in_flight {
            return Wish::UnderWay;
        }
        if entry.misses > 0 {
            return Wish::Refused;
        }
        self.dequeue(slot);
        let Some(entry) = self.entries.get_mut(&slot) else { return Wish::Refused };
        let due = entry.due.min(entry.earliest(now));
        if due < entry.due {
            entry.set_due(due);
        }
        self.enqueue(slot);
        Wish::Due(due)
    }

    /// When a plug's next turn is. None while it is being asked, and for an unknown one.
    #[must_use]
    pub fn due(&self, slot: Slot) -> Option<Duration> {
        self.entries.get(&slot).filter(|entry| !entry.in_flight).map(|entry| entry.due)
    }

    /// Whether a sign of life would change a plug's turn: it fails, or is in doubt for the silence of others.
    #[must_use]
    pub fn is_missed(&self, slot: Slot) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.misses > 0 || entry.standing == Standing::Suspect)
    }

    /// How often in a row a plug has failed.
    #[must_use]
    pub fn misses(&self, slot: Slot) -> u32 {
        self.entries.get(&slot).map_or(0, |entry| entry.misses)
    }

    /// Frees the place of a plug in flight.
    fn land(&mut self, slot: Slot, entry: &Entry) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match entry.standing {
            Standing::Answering => {
                self.answering_in_flight.remove(&(entry.asked.unwrap_or_default(), slot));
                return;
            }
            Standing::Doubtful => self.doubtful_in_flight = self.doubtful_in_flight.saturating_sub(1),
            Standing::Suspect | Standing::Hearsay => {}
        }
        self.unproven_in_flight = self.unproven_in_flight.saturating_sub(1);
    }

    fn queue(&mut self, standing: Standing) -> &mut BTreeSet<(Duration, Slot)> {
        match standing {
            Standing::Answering => &mut self.answering,
            Standing::Suspect => &mut self.suspect,
            Standing::Hearsay => &mut self.hearsay,
            Standing::Doubtful => &mut self.doubtful,
        }
    }

    fn enqueue(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get(&slot).filter(|entry| !entry.in_flight) {
            let (due, standing) = (entry.due, entry.standing);
            self.queue(standing).insert((due, slot));
        }
    }

    fn dequeue(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get(&slot) {
            let (due, standing) = (entry.due, entry.standing);
            self.queue(standing).remove(&(due, slot));
        }
    }
}

/// What becomes of a wish for a plug's newest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is being asked at this moment.
    UnderWay,
    /// It will be asked at this time, or as soon after it as there is a place.
    Due(Duration),
    /// It fails and is being left alone, or is not known.
    Refused,
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

    const PACE: Pace = Pace { interval: Duration::from_secs(10), least: Duration::from_secs(5) };

    fn rules(in_flight: usize) -> Rules {
        Rules { min_interval: 5 * SECOND, in_flight, pauses: Pauses::default(), seed: 7 }
    }

    #[test]
    fn every_plug_is_asked_at_once_and_then_on_a_grid_of_its_own() {
        let mut schedule = Schedule::new(rules(16));
        for n in 0..3 {
            schedule.add(Slot(n), PACE, true, Duration::ZERO);
        }
        let mut phases = Vec::new();
        for n in 0..3 {
            let Step::Poll { slot, late, .. } = schedule.next(FIRST_SPACING * n) else { panic!("all are due") };
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
            schedule.add(Slot(n), PACE, false, Duration::ZERO);
        }
        schedule.add(Slot(99), PACE, true, SECOND);
        let mut asked = Vec::new();
        while let Step::Poll { slot, .. } = schedule.next(8 * SECOND) {
            asked.push(slot);
        }
        assert_eq!(asked, [Slot(0), Slot(1), Slot(99)]);
    }

    #[test]
    fn a_plug_that_is_heard_of_again_need_not_wait_for_its_back_off_to_end() {
        let mut schedule = Schedule::new(rules(4));
        schedule.add(Slot(1), PACE, true, Duration::ZERO);
        let mut now = Duration::ZERO;
        for misses in 1..=6 {
            while let Step::RestUntil(due) = schedule.next(now) {
                now = due;
            }
            assert_eq!(schedule.finish(Slot(1), Outcome::Failed(Failure::Timeout), now), misses);
        }
        let Step::RestUntil(due) = schedule.next(now) else { panic!() };
        assert!(due > now + 100 * SECOND);
        schedule.seen(Slot(1), now + SECOND);
        assert_eq!(schedule.next(now + SECOND), Step::RestUntil(now + 5 * SECOND), "the minimum interval still holds");
    }

    #[test]
    fn when_half_of_the_places_fall_silent_only_those_heard_of_since_go_first() {
        let mut schedule = Schedule::new(rules(8));
        for n in 0..40 {
            schedule.add(Slot(n), PACE, true, Duration::ZERO);
        }
        let mut now = Duration::ZERO;
        for _ in 0..40 {
            while let Step::RestUntil(due) = schedule.next(now) {
                now = due;
            }
            let slot = schedule.entries.iter().find(|(_, entry)| entry.in_flight).map(|(slot, _)| *slot).unwrap();
            schedule.finish(slot, Outcome::Answered, now);
        }
        // Nobody answers any more. Four are asked, then a moment passes; the fifth already stands in doubt.
        now += 20 * SECOND;
        let ask = |schedule: &mut Schedule, now| match schedule.next(now) {
            Step::Poll { slot, standing, .. } => Some((slot, standing)),
            _ => None,
        };
        for _ in 0..4 {
            assert_eq!(ask(&mut schedule, now).unwrap().1, Standing::Answering);
        }
        assert_eq!(schedule.alarm(), None);
        now += SLOW;
        let mut suspects = Vec::new();
        while let Some((slot, standing)) = ask(&mut schedule, now) {
            assert_eq!(standing, Standing::Suspect);
            suspects.push(slot);
        }
        assert!(schedule.alarm().is_some());
        assert_eq!(suspects.len(), 2, "with those that are slow, three quarters of the places");
        // The last quarter is for those that are heard of.
        let alive = schedule.suspect.last().unwrap().1;
        assert!(schedule.is_missed(alive));
        schedule.seen(alive, now);
        assert!(!schedule.is_missed(alive));
        assert_eq!(ask(&mut schedule, now), Some((alive, Standing::Answering)));
        schedule.finish(alive, Outcome::Answered, now);
        schedule.seen(suspects[0], now); // it answers a probe while it is being asked: that changes nothing
        schedule.finish(suspects[0], Outcome::Failed(Failure::Timeout), now + 5 * SECOND);
        schedule.finish(suspects[1], Outcome::Answered, now + 5 * SECOND);
        assert!(!schedule.is_missed(suspects[1]) && schedule.is_missed(suspects[0]));
        let more: Vec<_> = std::iter::from_fn(|| ask(&mut schedule, now + 5 * SECOND)).collect();
        assert_eq!(more.len(), 2, "{more:?}");
        assert!(more.iter().all(|(_, standing)| *standing == Standing::Suspect));
    }

    #[test]
    fn a_plug_whose_interval_is_its_minimum_loses_no_turn_for_being_a_hair_late() {
        let mut schedule = Schedule::new(rules(4));
        let pace = Pace { interval: 60 * SECOND, least: 60 * SECOND };
        schedule.add(Slot(1), pace, true, Duration::ZERO);
        let (mut now, mut polls) = (Duration::ZERO, 0);
        while now < 3_600 * SECOND {
            match schedule.next(now) {
                Step::Poll { slot, .. } => {
                    polls += 1;
                    now += Duration::from_millis(30);
                    schedule.finish(slot, Outcome::Answered, now);
                }
                Step::RestUntil(due) => now = due + Duration::from_millis(3), // a loop wakes a little late
                Step::Rest => panic!("nobody is in flight"),
            }
        }
        assert!((59..=61).contains(&polls), "{polls} polls in an hour");
    }

    #[test]
    fn dead_plugs_that_were_heard_of_leave_a_quarter_of_the_places_to_those_that_answer() {
        let mut schedule = Schedule::new(rules(8));
        schedule.add(Slot(99), PACE, true, Duration::ZERO);
        assert!(matches!(schedule.next(Duration::ZERO), Step::Poll { standing: Standing::Hearsay, .. }));
        schedule.finish(Slot(99), Outcome::Answered, Duration::ZERO);
        for n in 0..50 {
            schedule.add(Slot(n), PACE, n % 2 == 0, SECOND);
        }
        let mut asked = 0;
        while let Step::Poll { .. } = schedule.next(9 * SECOND) {
            asked += 1;
        }
        assert_eq!(asked, 6);
        let at = 20 * SECOND;
        assert!(matches!(schedule.next(at), Step::Poll { slot: Slot(99), standing: Standing::Answering, .. }));
    }

    #[test]
    fn two_hundred_plugs_make_a_level_load() {
        // Strips among them, and every tenth on another pace, as adaptive intervals make it.
        for odd in [10, 20, 40, 60] {
            let mut schedule = Schedule::new(rules(16));
            for n in 0..200 {
                let interval = if n % 10 == 3 { odd * SECOND } else { 10 * SECOND };
                schedule.add(Slot(n), Pace { interval, ..PACE }, true, Duration::ZERO);
            }
            let mut due = [0_u32; 100]; // of the interval from 60 s to 70 s, each 100 ms
            let mut now = Duration::ZERO;
            while now < 70 * SECOND {
                match schedule.next(now) {
                    Step::Poll { slot, .. } => {
                        if now >= 60 * SECOND {
                            due[usize::try_from((now - 60 * SECOND).as_millis() / 100).unwrap()] += 1;
                        }
                        schedule.finish(slot, Outcome::Answered, now);
                    }
                    Step::RestUntil(due) => now = due,
                    Step::Rest => panic!("nobody is in flight"),
                }
            }
            let (most, all) = (due.iter().max().unwrap(), due.iter().sum::<u32>());
            assert!((180..=201).contains(&all) && *most <= 4, "{all} polls, at most {most} in 100 ms, mean 2");
        }
    }

    #[test]
    fn a_wish_is_granted_within_the_minimum_interval_and_costs_no_regular_turn() {
        let mut schedule = Schedule::new(rules(4));
        schedule.add(Slot(1), PACE, true, Duration::ZERO);
        assert_eq!(schedule.request(Slot(2), Duration::ZERO), Wish::Refused);
        assert!(matches!(schedule.next(Duration::ZERO), Step::Poll { .. }));
        assert_eq!(schedule.request(Slot(1), Duration::ZERO), Wish::UnderWay);
        schedule.finish(Slot(1), Outcome::Answered, Duration::ZERO);
        assert_eq!(schedule.next(Duration::ZERO), Step::RestUntil(10 * SECOND));
        for second in 1..5 {
            assert_eq!(schedule.request(Slot(1), SECOND * second), Wish::Due(5 * SECOND));
        }
        assert_eq!(schedule.next(4 * SECOND), Step::RestUntil(5 * SECOND));
        assert!(matches!(schedule.next(5 * SECOND), Step::Poll { late: Duration::ZERO, .. }));
        schedule.finish(Slot(1), Outcome::Answered, 5 * SECOND);
        assert_eq!(schedule.next(5 * SECOND), Step::RestUntil(10 * SECOND), "the grid stays");
        assert!(matches!(schedule.next(10 * SECOND), Step::Poll { .. }));
        schedule.finish(Slot(1), Outcome::Failed(Failure::Timeout), 15 * SECOND);
        assert_eq!(schedule.request(Slot(1), 16 * SECOND), Wish::Refused, "a plug in its back-off is left alone");
    }

    #[test]
    fn what_answers_probes_alone_is_tried_at_a_bounded_pace() {
        let mut schedule = Schedule::new(rules(4));
        schedule.add(Slot(1), PACE, true, Duration::ZERO);
        let mut now = Duration::ZERO;
        let mut asked = Vec::new();
        while now < 3_600 * SECOND {
            match schedule.next(now) {
                Step::Poll { slot, .. } => {
                    asked.push(now);
                    schedule.finish(slot, Outcome::Failed(Failure::Timeout), now + 5 * SECOND);
                }
                // A probe is answered every 10 s.
                _ => schedule.hasten(Slot(1), 30 * SECOND, now),
            }
            now += SECOND;
        }
        assert!(asked.windows(2).skip(4).all(|pair| pair[1] - pair[0] == 30 * SECOND), "{asked:?}");
    }

    proptest! {
        /// Random plugs, paces, durations, failures, wishes, probes, changes of pace and of the fleet, for a simulated
        /// time: the promises of the module head hold at every step.
        #[test]
        fn promises_hold(
            paces in proptest::collection::vec((1..40_u32, 0..60_u32), 1..30),
            in_flight in 1..10_usize,
            seed: u64,
        ) {
            let rules = Rules { min_interval: 5 * SECOND, in_flight, pauses: Pauses::default(), seed };
            let mut schedule = Schedule::new(rules);
            let mut random = fastrand::Rng::with_seed(seed);
            let pace = |(interval, least): (u32, u32)| Pace { interval: SECOND * interval, least: SECOND * least };
            for (n, given) in (0..).zip(&paces) {
                schedule.add(Slot(n), pace(*given), random.bool(), Duration::ZERO);
            }
            let (mut now, end) = (Duration::ZERO, 1_000 * SECOND);
            let mut running: BTreeSet<(Duration, Slot, Standing)> = BTreeSet::new();
            let mut last_asked: BTreeMap<Slot, Duration> = BTreeMap::new();
            while now < end {
                match schedule.next(now) {
                    Step::Poll { slot, standing, .. } => {
                        prop_assert!(running.iter().all(|(_, other, _)| *other != slot), "asked twice at once");
                        prop_assert!(running.len() < in_flight, "too many at once");
                        running.insert((now + Duration::from_millis(random.u64(1..3_000)), slot, standing));
                        let standing = |least| running.iter().filter(|(_, _, standing)| *standing >= least).count();
                        prop_assert!(standing(Standing::Doubtful) <= rules.doubtful_places(), "too many in doubt");
                        prop_assert!(standing(Standing::Suspect) <= rules.unproven_places(), "too many unproven");
                        if let Some(last) = last_asked.insert(slot, now) {
                            let least = pace(paces[slot.0 as usize]).least.max(rules.min_interval);
                            prop_assert!(now - last >= least, "asked too often");
                        }
                    }
                    step => {
                        let wake = if let Step::RestUntil(due) = step { due } else { end };
                        prop_assert!(wake > now, "a rest that is none");
                        now = running.first().map_or(wake, |(done, _, _)| wake.min(*done)).min(end);
                        while let Some((done, slot, _)) = running.first().copied().filter(|(done, ..)| *done <= now) {
                            running.pop_first();
                            let kinds =
                                [Failure::Timeout, Failure::Refused, Failure::Garbage, Failure::WrongDevice];
                            let failed = Outcome::Failed(kinds[random.usize(..4)]);
                            let outcome = if random.u8(..) < 40 { failed } else { Outcome::Answered };
                            if random.u8(..) < 30 {
                                let (_, least) = paces[slot.0 as usize];
                                schedule.set_pace(slot, pace((random.u32(1..300), least)));
                            }
                            schedule.finish(slot, outcome, done);
                        }
                        let any = Slot(random.u32(..paces.len() as u32));
                        match random.u8(..) {
                            0..5 => schedule.hasten(any, SECOND * random.u32(..40), now),
                            20..25 => schedule.seen(any, now),
                            5..15 => {
                                let wish = schedule.request(any, now);
                                let is_running = running.iter().any(|(_, slot, _)| *slot == any);
                                prop_assert_eq!(wish == Wish::UnderWay, is_running);
                            }
                            _ => {}
                        }
                    }
                }
            }
            prop_assert_eq!(last_asked.len(), paces.len(), "somebody never had a turn");
        }
    }
}
