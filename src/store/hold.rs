//! Readings taken before the clock can be trusted: a Pi has no clock of its own and may think that it is 1970. Pure.
//!
//! Promises that a reading held is stamped with the time at which it was taken, once the clock is known; that readings come
//! out in the order they went in; that nothing is held for longer than [`limits::HOLD_TIME`] or beyond
//! [`limits::HELD_READINGS`]: what the clock says counts then, and the caller is told so.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Now;
use crate::limits;
use crate::reading::{DeviceId, Reading};

/// A reading, its device, and how often that is polled.
pub type Taken = (DeviceId, Reading, Duration);

/// What is held.
#[derive(Debug, Default)]
pub struct Hold {
    /// Whether the clock was trusted once: from then on it is.
    released: bool,
    held: VecDeque<(Duration, Taken)>,
}

/// What to do with a reading.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It is held: show it, do not store it.
    Held,
    /// Store these, in this order. `doubtful`: the wait was over before the clock could be trusted.
    Store {
        /// The readings, with their times.
        readings: Vec<Taken>,
        /// Whether their times may be wrong.
        doubtful: bool,
    },
}

impl Hold {
    /// Takes a reading. `trusted`: whether the wall clock can be believed at this moment.
    pub fn take(&mut self, taken: Taken, now: Now, trusted: bool) -> Verdict {
        let oldest = self.held.front().map_or(now.elapsed, |(at, _)| *at);
        let waited =
            now.elapsed.saturating_sub(oldest) >= limits::HOLD_TIME || self.held.len() >= limits::HELD_READINGS;
        if !self.released && !trusted && !waited {
            self.held.push_back((now.elapsed, taken));
            return Verdict::Held;
        }
        let doubtful = !self.released && !trusted;
        self.released = true;
        let stamp = |(at, (id, reading, interval)): (Duration, Taken)| {
            let ago = i64::try_from(now.elapsed.saturating_sub(at).as_millis()).unwrap_or(i64::MAX);
            (id, Reading { time: now.wall.plus(ago.saturating_neg()), ..reading }, interval)
        };
        let mut readings: Vec<_> = self.held.drain(..).map(stamp).collect();
        readings.push(taken);
        Verdict::Store { readings, doubtful }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Mac;
    use crate::units::{Milliwatts, UnixMillis};

    fn taken(time: i64) -> Taken {
        let power = Milliwatts::new(1).unwrap();
        let reading =
            Reading { time: UnixMillis::new(time), power, voltage: None, current: None, counter: None, relay: None };
        (DeviceId::plug(Mac::new([1; 6])), reading, Duration::from_secs(10))
    }

    fn now(wall: i64, seconds: u64) -> Now {
        Now { wall: UnixMillis::new(wall), elapsed: Duration::from_secs(seconds) }
    }

    const TODAY: i64 = 1_795_423_474_000;

    #[test]
    fn readings_from_1970_get_the_time_at_which_they_were_taken() {
        let mut hold = Hold::default();
        assert_eq!(hold.take(taken(4_000), now(4_000, 4), false), Verdict::Held);
        assert_eq!(hold.take(taken(14_000), now(14_000, 14), false), Verdict::Held);
        let Verdict::Store { readings, doubtful } = hold.take(taken(TODAY), now(TODAY, 24), true) else { panic!() };
        let times: Vec<_> = readings.iter().map(|(_, reading, _)| reading.time.get()).collect();
        assert_eq!((times, doubtful), (vec![TODAY - 20_000, TODAY - 10_000, TODAY], false));
        // Once trusted, it stays so: a step back is the store's to sort in.
        let one = hold.take(taken(5_000), now(5_000, 34), false);
        assert_eq!(one, Verdict::Store { readings: vec![taken(5_000)], doubtful: false });
    }

    #[test]
    fn the_wait_ends_even_if_the_clock_is_never_set() {
        let mut hold = Hold::default();
        for second in 0..limits::HOLD_TIME.as_secs() {
            assert_eq!(
                hold.take(taken(second as i64 * 1_000), now(second as i64 * 1_000, second), false),
                Verdict::Held
            );
        }
        let end = limits::HOLD_TIME.as_secs();
        let Verdict::Store { readings, doubtful } = hold.take(taken(0), now(end as i64 * 1_000, end), false) else {
            panic!()
        };
        assert!(doubtful && readings.len() as u64 == end + 1);
    }
}
