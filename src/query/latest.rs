//! The newest reading of each device, with its age, and whether it is live.

use std::time::Duration;

use crate::clock::Now;
use crate::limits;
use crate::poll::fleet::{Fleet, Plug, Presence};
use crate::reading::{DeviceId, Reading};
use crate::store::Store;
use crate::units::MilliwattHours;

/// Intervals for which a reading holds: the rule of the energy account, and of what counts as live.
const INTERVALS_HELD: u32 = 3;

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
    /// How long ago. By elapsed time for a reading of this run; for an older one by wall time, zero when the clock was set
    /// back since.
    pub age: Duration,
    /// Whether the plug answers and the reading is no older than three of its intervals and a poll.
    pub online: bool,
}

impl Latest {
    /// The newest reading of `id`. None when there was never one.
    #[must_use]
    pub fn of(id: DeviceId, fleet: &Fleet, store: &Store, now: Now) -> Option<Self> {
        let reading = store.latest(id)?;
        let plug = fleet.get(id.plug);
        let by_wall = || Duration::from_millis(u64::try_from(now.wall.since(reading.time)).unwrap_or(0));
        let age = plug.and_then(|plug| plug.age(id, reading.time, now.elapsed)).unwrap_or_else(by_wall);
        let alias = plug.map_or_else(String::new, |plug| plug.device_name(id).to_owned());
        let total = store.total(id);
        Some(Self { id, alias, reading, total, age, online: plug.is_some_and(|plug| is_live(plug, age)) })
    }
}

/// A plug that answers may still keep silent about one outlet; its old value is not live.
fn is_live(plug: &Plug, age: Duration) -> bool {
    let held = plug.interval.saturating_mul(INTERVALS_HELD).saturating_add(limits::POLL_BUDGET);
    plug.presence == Presence::Online && age <= held
}
