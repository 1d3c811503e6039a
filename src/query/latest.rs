//! The newest reading of each device, with its age, and whether it is live.

use std::time::Duration;

use crate::clock::Now;
use crate::limits;
use crate::poll::fleet::{Fleet, Plug, Presence};
use crate::reading::{DeviceId, Reading};
use crate::store::Store;
use crate::units::{MilliwattHours, UnixMillis};

/// A device's newest reading, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// Whose.
    pub id: DeviceId,
    /// The name people know it by; empty when the plug is not in this run's fleet.
    pub alias: String,
    /// What was read.
    pub reading: Reading,
    /// All energy drawn since the device was first seen: never falls, whatever its own counter does.
    pub total: Option<MilliwattHours>,
    /// From when its age counts.
    pub since: Since,
    /// How long ago that was.
    pub age: Duration,
    /// Whether the plug answers and the reading is no older than three of its intervals and a poll.
    pub online: bool,
    /// How much longer it stays so when nothing comes; zero when it is not.
    pub live_for: Duration,
}

/// The moment from which an age is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Elapsed time, for a reading of this run: no step of the wall clock changes its age.
    Elapsed(Duration),
    /// Wall time, for an older one. Its age is zero when the clock was set back since.
    Wall(UnixMillis),
}

impl Since {
    /// How long ago that is.
    #[must_use]
    pub fn age(self, now: Now) -> Duration {
        match self {
            Self::Elapsed(came) => now.elapsed.saturating_sub(came),
            Self::Wall(time) => Duration::from_millis(u64::try_from(now.wall.since(time)).unwrap_or(0)),
        }
    }
}

impl Latest {
    /// The newest reading of `id`. None when there was never one.
    #[must_use]
    pub fn of(id: DeviceId, fleet: &Fleet, store: &Store, now: Now) -> Option<Self> {
        let reading = store.latest(id)?;
        let plug = fleet.get(id.plug);
        let came = plug.and_then(|plug| plug.age(id, reading.time, now.elapsed));
        let since = came.map_or(Since::Wall(reading.time), |age| Since::Elapsed(now.elapsed.saturating_sub(age)));
        let age = since.age(now);
        let alias = plug.map_or_else(String::new, |plug| plug.device_name(id).to_owned());
        let total = store.total(id);
        let live_for = plug.and_then(|plug| live_for(plug, age));
        let (online, live_for) = (live_for.is_some(), live_for.unwrap_or_default());
        Some(Self { id, alias, reading, total, since, age, online, live_for })
    }
}

/// How much longer a value of this age is live. None when it is not: a plug that answers may still keep silent about one
/// outlet.
fn live_for(plug: &Plug, age: Duration) -> Option<Duration> {
    let held = plug.interval.saturating_mul(limits::HOLD_INTERVALS).saturating_add(limits::POLL_BUDGET);
    held.checked_sub(age).filter(|_| plug.presence == Presence::Online)
}
