//! The two clocks: wall time, which may jump, and elapsed time, which never does.
//!
//! Owns the only calls to the system's clocks. Promises that [`Clock::elapsed`] never runs backwards. Schedules use
//! elapsed time, stored readings use wall time; the types keep the two apart.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::units::UnixMillis;

/// A wait on a clock.
pub type Sleep = Pin<Box<dyn Future<Output = ()>>>;

/// Where time comes from. One real form, [`SystemClock`], and one for tests, [`ManualClock`].
pub trait Clock {
    /// Wall time in UTC. May jump in both directions.
    fn wall(&self) -> UnixMillis;
    /// Time since the clock was made. Never runs backwards.
    fn elapsed(&self) -> Duration;
    /// Ready once [`Clock::elapsed`] has reached `at`.
    fn sleep_until(&self, at: Duration) -> Sleep;
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall time.
    pub wall: UnixMillis,
    /// Elapsed time.
    pub elapsed: Duration,
}

impl Now {
    /// What `clock` says.
    #[must_use]
    pub fn of(clock: &dyn Clock) -> Self {
        Self { wall: clock.wall(), elapsed: clock.elapsed() }
    }
}

/// Notices when wall time and elapsed time part: the clock was set, or the machine slept. Pure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    last: Option<Now>,
}

impl Steps {
    /// Less than this, in milliseconds, is a clock that is kept in step by slewing, or a delay of ours.
    const LEAST: i64 = 2_000;

    /// Takes a moment. What the wall clock would have shown, if it has stepped since the moment before.
    pub fn take(&mut self, now: Now) -> Option<UnixMillis> {
        let last = self.last.replace(now)?;
        let passed = now.elapsed.saturating_sub(last.elapsed).as_millis();
        let expected = last.wall.plus(i64::try_from(passed).unwrap_or(i64::MAX));
        (now.wall.since(expected).abs() >= Self::LEAST).then_some(expected)
    }
}

/// When this program was written: a wall clock before it is wrong.
pub const BUILT: UnixMillis = UnixMillis::new(1_795_392_000_000);

/// Where systemd's time service notes that the clock was set from the network.
pub const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// Whether `wall` can be believed: the system says that it was set, or it lies neither before this program was written nor
/// before the `newest` reading known. (adjtimex would be the first to ask, but the unit's confinement forbids it.)
#[must_use]
pub fn is_trusted(wall: UnixMillis, newest: Option<UnixMillis>) -> bool {
    wall >= newest.map_or(BUILT, |newest| newest.max(BUILT)) || std::path::Path::new(SYNCHRONISED).exists()
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose elapsed time starts now.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the one door
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one door
    fn wall(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis::new(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        match self.start.checked_add(at) {
            Some(instant) => {
                let timer = smol::Timer::at(instant);
                Box::pin(async move {
                    timer.await;
                })
            }
            None => Box::pin(std::future::pending()),
        }
    }
}

/// Measures how long work really took, on whichever thread: for figures, never for decisions.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Default for Stopwatch {
    #[allow(clippy::disallowed_methods)] // the one door
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Stopwatch {
    /// Since it was made.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that a test moves by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: Cell<UnixMillis>,
    elapsed: std::rc::Rc<Cell<Duration>>,
    sleepers: std::rc::Rc<RefCell<Vec<Waker>>>,
}

impl ManualClock {
    /// A clock that stands at `wall`, with no time elapsed.
    #[must_use]
    pub fn at(wall: UnixMillis) -> Self {
        Self { wall: Cell::new(wall), ..Self::default() }
    }

    /// Lets `by` pass on both clocks and wakes who waited for it.
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.wall.set(self.wall.get().plus(millis));
        self.elapsed.set(self.elapsed.get().saturating_add(by));
        for waker in self.sleepers.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Sets the wall clock, as a person or NTP would; elapsed time goes on undisturbed.
    pub fn set_wall(&self, wall: UnixMillis) {
        self.wall.set(wall);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> UnixMillis {
        self.wall.get()
    }

    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    fn sleep_until(&self, at: Duration) -> Sleep {
        let (elapsed, sleepers) = (self.elapsed.clone(), self.sleepers.clone());
        Box::pin(std::future::poll_fn(move |context| {
            if elapsed.get() >= at {
                return std::task::Poll::Ready(());
            }
            sleepers.borrow_mut().push(context.waker().clone());
            std::task::Poll::Pending
        }))
    }
}

/// `work`, or nothing when `clock` reaches `at` first. The work is dropped then.
pub async fn within<T>(clock: &dyn Clock, at: Duration, work: impl Future<Output = T>) -> Option<T> {
    smol::future::or(async { Some(work.await) }, async {
        clock.sleep_until(at).await;
        None
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_wakes_sleepers_only_when_their_time_has_come() {
        let clock = ManualClock::at(UnixMillis::new(1_000));
        let mut sleep = clock.sleep_until(Duration::from_secs(5));
        let poll = |sleep: &mut Sleep| smol::block_on(smol::future::poll_once(sleep.as_mut()));
        assert!(poll(&mut sleep).is_none());
        clock.advance(Duration::from_secs(4));
        assert!(poll(&mut sleep).is_none());
        clock.set_wall(UnixMillis::MIN);
        clock.advance(Duration::from_secs(1));
        assert!(poll(&mut sleep).is_some());
        assert_eq!(clock.wall(), UnixMillis::new(1_000));
    }

    #[test]
    fn a_step_is_noticed_once_and_a_slewing_clock_is_none() {
        let now = |wall, secs| Now { wall: UnixMillis::new(wall), elapsed: Duration::from_secs(secs) };
        let mut steps = Steps::default();
        let taken =
            [now(10_000, 1), now(20_500, 11), now(30_000, 21), now(3_640_000, 31), now(3_650_000, 41), now(0, 51)];
        let seen: Vec<_> = taken.into_iter().map(|now| steps.take(now).map(UnixMillis::get)).collect();
        assert_eq!(seen, [None, None, None, Some(40_000), None, Some(3_660_000)]);
    }

    #[test]
    fn work_that_takes_too_long_is_dropped() {
        let clock = SystemClock::start();
        let late = smol::block_on(within(&clock, Duration::ZERO, std::future::pending::<()>()));
        assert_eq!(late, None);
        let done = smol::block_on(within(&clock, Duration::from_secs(60), std::future::ready(1)));
        assert_eq!(done, Some(1));
    }
}
