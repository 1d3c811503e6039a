//! A thousand plugs for thirty simulated days, with every kind of failure mixed: the schedule's promises hold at every
//! step, and plugs that answer are asked on time whatever the others do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::time::Duration;

use wattd::poll::backoff::{Failure, Pauses};
use wattd::poll::fleet::Lateness;
use wattd::poll::schedule::{Outcome, Pace, Rules, Schedule, Slot, Standing, Step, Wish};

const SECOND: Duration = Duration::from_secs(1);
const DAYS: u32 = 30;
const PLUGS: u32 = 1_000;
const IN_FLIGHT: usize = 16;
/// Probes go out once in ten seconds, the minimum interval is five, and the longest queue is gone in a few.
const RETURN: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a plug behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Healthy,
    /// Every seventh is a strip: slower answers, a minimum interval of its own.
    Strip,
    /// Dead in each of these ways, for ever.
    Refusing,
    Silent,
    Garbled,
    Stranger,
    /// Answers UDP, never TCP.
    Deaf,
    /// Away for some minutes every few hours.
    Flapping,
    /// Restarts once a day, and is found at another address by a probe some seconds later.
    Moving,
}

impl Kind {
    fn of(n: u32) -> Self {
        match n % 40 {
            0 => Self::Refusing,
            1 => Self::Silent,
            2 => Self::Garbled,
            3 => Self::Stranger,
            4 => Self::Deaf,
            5 | 6 => Self::Flapping,
            7 => Self::Moving,
            8..14 => Self::Strip,
            _ => Self::Healthy,
        }
    }

    /// Seconds of each cycle for which the plug is away, and the cycle.
    fn absence(self, n: u32) -> Option<(u64, u64)> {
        match self {
            Self::Flapping => Some((120 + u64::from(n % 7) * 60, 7_200 + u64::from(n) * 11)),
            Self::Moving => Some((40, 86_400)),
            _ => None,
        }
    }

    /// What a poll that begins at `now` comes to, and how long that takes.
    fn answer(self, n: u32, now: Duration, random: &mut fastrand::Rng) -> (Outcome, Duration) {
        let quick = Duration::from_micros(random.u64(3_000..90_000));
        let is_away = self.absence(n).is_some_and(|(away, cycle)| (now.as_secs() + u64::from(n) * 997) % cycle < away);
        match self {
            _ if is_down(n, now) => (Outcome::Failed(Failure::Timeout), TIMEOUT),
            Self::Refusing => (Outcome::Failed(Failure::Refused), Duration::from_millis(2)),
            Self::Silent | Self::Deaf => (Outcome::Failed(Failure::Timeout), TIMEOUT),
            Self::Garbled => (Outcome::Failed(Failure::Garbage), quick),
            Self::Stranger => (Outcome::Failed(Failure::WrongDevice), quick),
            Self::Flapping if is_away => (Outcome::Failed(Failure::Timeout), TIMEOUT),
            Self::Moving if is_away => (Outcome::Failed(Failure::Refused), Duration::from_millis(2)),
            Self::Strip => (Outcome::Answered, quick * 6),
            _ => (Outcome::Answered, quick),
        }
    }
}

/// Every other day the access point is down for two minutes, and nobody behind it answers.
const OUTAGE: Range<u64> = 100_000..100_120;

/// Seconds of the time between two such outages.
fn phase(now: Duration) -> u64 {
    now.as_secs() % 172_800
}

/// Whether nobody hears this plug: every tenth is behind another access point.
fn is_down(n: u32, now: Duration) -> bool {
    OUTAGE.contains(&phase(now)) && n % 10 != 9
}

/// Whether all places may be held by plugs that had just answered when the access point failed: for one timeout, once.
fn is_struck(now: Duration) -> bool {
    (OUTAGE.start..OUTAGE.start + 2 * TIMEOUT.as_secs()).contains(&phase(now))
}

/// What the world knows of a plug, beside the schedule.
#[derive(Clone, Copy, Default)]
struct Seen {
    asked: Option<Duration>,
    is_in_flight: bool,
    misses: u32,
    polls: u32,
    /// Whether it was missed when the access point came back, until it was read.
    waits: bool,
}

/// Paces as adaptive intervals make them: most loads are calm, some are not.
fn pace(n: u32, random: &mut fastrand::Rng) -> Pace {
    if Kind::of(n) == Kind::Strip {
        return Pace { interval: 60 * SECOND * [1, 4, 5, 5][random.usize(..4)], least: 60 * SECOND };
    }
    let interval = match random.u8(..) {
        0..2 => 30,
        2..8 => 60,
        8..30 => 120,
        _ => 300,
    };
    Pace { interval: SECOND * interval, least: 5 * SECOND }
}

#[test]
fn a_thousand_plugs_for_thirty_days() {
    let rules = Rules { min_interval: 5 * SECOND, in_flight: IN_FLIGHT, pauses: Pauses::default(), seed: 3 };
    let mut schedule = Schedule::new(rules);
    let mut random = fastrand::Rng::with_seed(4);
    let mut plugs = vec![Seen::default(); PLUGS as usize];
    let mut paces = Vec::new();
    for n in 0..PLUGS {
        let pace = pace(n, &mut random);
        paces.push(pace);
        schedule.add(Slot(n), pace, Kind::of(n) != Kind::Silent, Duration::ZERO);
    }
    let end = SECOND * 86_400 * DAYS;
    let mut running = BinaryHeap::new(); // by end: slot, outcome as an index, standing
    let (mut now, mut polls, mut doubtful, mut unproven) = (Duration::ZERO, 0_u64, 0_usize, 0_usize);
    let (mut lateness, mut next_probe, mut probed) = (Lateness::default(), SECOND, 0_u32);
    let (mut storm, mut returned, mut alarm) = (Duration::ZERO, Duration::ZERO, None);
    while now < end {
        match schedule.next(now) {
            Step::Poll { slot, late, standing } => {
                let n = slot.0;
                let plug = &mut plugs[n as usize];
                assert!(!plug.is_in_flight, "{slot:?} is asked twice at once");
                if let Some(asked) = plug.asked {
                    let since = now - asked;
                    assert!(since >= paces[n as usize].least, "{slot:?} is asked again after {since:?}");
                }
                // A plug that answers has its turn: never later than its interval and what the others may cost it.
                if standing == Standing::Answering {
                    lateness.note(late);
                    storm = storm.max(late);
                    let most = if is_struck(now) { TIMEOUT + SECOND } else { SECOND };
                    assert!(late <= most, "{slot:?}, which answers, is {late:?} late at {now:?}");
                }
                *plug = Seen { asked: Some(now), is_in_flight: true, polls: plug.polls + 1, ..*plug };
                let (outcome, takes) = Kind::of(n).answer(n, now, &mut random);
                running.push(Reverse((now + takes, n, outcome != Outcome::Answered, standing)));
                polls += 1;
                doubtful += usize::from(standing == Standing::Doubtful);
                unproven += usize::from(standing > Standing::Answering);
                assert!(running.len() <= IN_FLIGHT, "{} at once", running.len());
                assert!(doubtful <= IN_FLIGHT / 4, "{doubtful} in doubt at once");
                assert!(unproven <= IN_FLIGHT * 3 / 4, "{unproven} unproven at once");
            }
            step => {
                let wake = if let Step::RestUntil(due) = step { due } else { end };
                assert!(wake > now, "a rest that is none");
                now = running.peek().map_or(wake, |Reverse((done, ..))| wake.min(*done)).min(next_probe).min(end);
                while let Some(Reverse((done, n, failed, standing))) = running.peek().copied() {
                    if done > now {
                        break;
                    }
                    running.pop();
                    doubtful -= usize::from(standing == Standing::Doubtful);
                    unproven -= usize::from(standing > Standing::Answering);
                    let kind = Kind::of(n);
                    let outcome = match kind {
                        _ if !failed => Outcome::Answered,
                        Kind::Refusing | Kind::Moving => Outcome::Failed(Failure::Refused),
                        Kind::Garbled => Outcome::Failed(Failure::Garbage),
                        Kind::Stranger => Outcome::Failed(Failure::WrongDevice),
                        _ => Outcome::Failed(Failure::Timeout),
                    };
                    if !failed && random.u8(..) < 10 {
                        paces[n as usize] = pace(n, &mut random);
                        schedule.set_pace(Slot(n), paces[n as usize]);
                    }
                    let plug = &mut plugs[n as usize];
                    plug.is_in_flight = false;
                    if !failed && std::mem::take(&mut plug.waits) {
                        let took = SECOND * (phase(done) - OUTAGE.end) as u32;
                        returned = returned.max(took);
                        assert!(took <= RETURN, "{n}, {kind:?}, was read {took:?} after the access point came back");
                    }
                    plug.misses = schedule.finish(Slot(n), outcome, done);
                    assert_eq!(plug.misses == 0, !failed);
                }
                if now >= next_probe {
                    next_probe = now + SECOND;
                    if phase(now) == OUTAGE.end {
                        for (n, plug) in (0..).zip(&mut plugs) {
                            plug.waits = Kind::of(n) == Kind::Healthy && plug.misses > 0;
                        }
                    }
                    // Each is probed once in ten seconds while it is missed, all of them when many fall silent; those that
                    // are there answer.
                    let all = schedule.alarm() != alarm;
                    alarm = schedule.alarm();
                    for _ in 0..if all { PLUGS } else { PLUGS / 10 } {
                        probed = (probed + 1) % PLUGS;
                        let (n, slot, kind) = (probed, Slot(probed), Kind::of(probed));
                        // Who was read since is not missed; only after an alarm there is more to it.
                        let is_calm = alarm.is_none_or(|alarm| now > alarm + 400 * SECOND);
                        let is_fine = is_calm && plugs[n as usize].misses == 0;
                        if is_fine || !schedule.is_missed(slot) || is_down(n, now) {
                            continue;
                        }
                        match kind {
                            Kind::Healthy | Kind::Strip => schedule.seen(slot, now),
                            Kind::Deaf => schedule.hasten(slot, 30 * SECOND, now),
                            Kind::Flapping | Kind::Moving
                                if kind.answer(n, now, &mut random).0 == Outcome::Answered =>
                            {
                                schedule.seen(slot, now);
                            }
                            _ => {}
                        }
                    }
                    if random.u8(..) < 30 {
                        let wanted = random.u32(..PLUGS);
                        let wish = schedule.request(Slot(wanted), now);
                        let Seen { is_in_flight, misses, .. } = plugs[wanted as usize];
                        assert_eq!(wish == Wish::UnderWay, is_in_flight);
                        assert_eq!(wish == Wish::Refused, !is_in_flight && misses > 0);
                    }
                }
            }
        }
    }
    // Everybody had a turn to the end, the dead too, and those that answer all of theirs.
    for (n, plug) in (0..PLUGS).zip(&plugs) {
        let since = end - plug.asked.unwrap();
        let patience = match Kind::of(n) {
            Kind::Healthy | Kind::Strip => 310 * SECOND,
            _ => 900 * SECOND,
        };
        assert!(since < patience, "{:?} was asked last {since:?} before the end", Kind::of(n));
        assert!(plug.polls > 8_000 / 2, "{n}, {:?}: {} polls", Kind::of(n), plug.polls);
    }
    println!(
        "{polls} polls; of those that answer p50 {:?}, p99 {:?}, p99.9 {:?} late; at worst {storm:?}, when most fell silent at \
         once; all that came back with the access point were read within {returned:?}",
        lateness.quantile(500),
        lateness.quantile(990),
        lateness.quantile(999)
    );
    assert!(lateness.quantile(999) <= Duration::from_millis(100), "{lateness:?}");
}
