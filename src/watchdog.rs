//! Whether the loops that do the work still turn. Pure.
//!
//! Each loop keeps a [`Pulse`]: before work it says since when it works, before a rest until when it rests at most. A loop
//! is stuck when it is later than that by more than its patience. Promises that a quiet house is none: a loop that has
//! nothing to do until an hour from now, or ever, is well until then. What is told to systemd follows from this, so the
//! agent is started anew when it no longer records, and never because there is nothing to record.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// By when a loop has to turn again. Elapsed time.
#[derive(Clone, Debug)]
pub struct Pulse(Rc<Cell<Duration>>);

impl Default for Pulse {
    /// Of a loop that has not begun: nothing is expected of it.
    fn default() -> Self {
        Self(Rc::new(Cell::new(Duration::MAX)))
    }
}

impl Pulse {
    /// The loop works from `now` on.
    pub fn work(&self, now: Duration) {
        self.0.set(now);
    }

    /// The loop waits, until `until` at the latest.
    pub fn rest(&self, until: Duration) {
        self.0.set(until);
    }

    /// How long the loop has been overdue at `now`.
    fn overdue(&self, now: Duration) -> Duration {
        now.saturating_sub(self.0.get())
    }
}

/// The loops that are watched.
#[derive(Debug, Default)]
pub struct Watchdog {
    loops: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    pulse: Pulse,
    patience: Duration,
}

/// A loop that no longer turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Which.
    pub name: &'static str,
    /// For how long it has been overdue.
    pub overdue: Duration,
}

impl Watchdog {
    /// Watches one more loop. Work may take `patience`, and a rest may end so much late.
    pub fn watch(&mut self, name: &'static str, pulse: Pulse, patience: Duration) {
        self.loops.push(Watched { name, pulse, patience });
    }

    /// The loop that is stuck at `now`: of several the one that has been so for longest.
    #[must_use]
    pub fn stuck(&self, now: Duration) -> Option<Stuck> {
        let overdue = self.loops.iter().filter(|watched| watched.pulse.overdue(now) > watched.patience);
        let stuck = overdue.map(|watched| Stuck { name: watched.name, overdue: watched.pulse.overdue(now) });
        stuck.max_by_key(|stuck| stuck.overdue)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watching() -> (Watchdog, Pulse, Pulse) {
        let (mut watchdog, polls, commits) = (Watchdog::default(), Pulse::default(), Pulse::default());
        watchdog.watch("polls", polls.clone(), 10 * SECOND);
        watchdog.watch("commits", commits.clone(), 60 * SECOND);
        (watchdog, polls, commits)
    }

    #[test]
    fn a_quiet_house_is_well() {
        let (watchdog, polls, commits) = watching();
        assert_eq!(watchdog.stuck(Duration::MAX), None, "nothing has begun");
        polls.rest(Duration::MAX); // no plugs, no discovery: nothing will ever be due
        commits.rest(3_600 * SECOND);
        assert_eq!(watchdog.stuck(3_660 * SECOND), None);
    }

    #[test]
    fn a_poll_loop_that_does_not_come_back_is_stuck() {
        let (watchdog, polls, _) = watching();
        polls.work(5 * SECOND);
        assert_eq!(watchdog.stuck(15 * SECOND), None);
        assert_eq!(watchdog.stuck(16 * SECOND), Some(Stuck { name: "polls", overdue: 11 * SECOND }));
        polls.rest(30 * SECOND);
        assert_eq!(watchdog.stuck(40 * SECOND), None);
        assert!(watchdog.stuck(41 * SECOND).is_some(), "a rest that does not end");
    }

    #[test]
    fn a_commit_that_hangs_is_told_from_polls_that_go_on() {
        let (watchdog, polls, commits) = watching();
        commits.work(100 * SECOND);
        polls.rest(170 * SECOND);
        assert_eq!(watchdog.stuck(160 * SECOND), None);
        assert_eq!(watchdog.stuck(161 * SECOND).map(|stuck| stuck.name), Some("commits"));
        commits.rest(220 * SECOND);
        assert_eq!(watchdog.stuck(161 * SECOND), None, "it was slow, not stuck");
    }

    proptest! {
        #[test]
        fn a_loop_that_keeps_its_word_is_never_stuck(turns in prop::collection::vec((0_u64..20_000, 0_u64..3_600_000), 1..50)) {
            let (watchdog, _, commits) = watching();
            let mut now = 0;
            for (work, rest) in turns {
                commits.work(Duration::from_millis(now));
                now += work;
                prop_assert_eq!(watchdog.stuck(Duration::from_millis(now)), None);
                commits.rest(Duration::from_millis(now + rest));
                now += rest;
                prop_assert_eq!(watchdog.stuck(Duration::from_millis(now)), None);
            }
        }
    }
}
