//! History for a store: what an agent would have recorded of simulated plugs over days or years, put through the real
//! store as fast as it takes it.
//!
//! Owns the polls that never happened. Promises the same readings for the same plugs, times and interval, with the loads
//! that [`super::Fleet`] would show; that one poll in 256 is lost and leaves a gap; and that counters never fall. The store
//! seals, rolls up and commits as it does in life.

use std::net::SocketAddr;
use std::time::Duration;

use super::load::{current, mains_voltage, mix};
use super::{Load, Model, PlugSpec, PlugState};
use crate::limits;
use crate::plug::xor;
use crate::reading::{Alias, ChildId, DeviceId, Label, OutletFacts, PlugFacts, Reading, Relay};
use crate::store::{Store, StoreError};
use crate::units::{MilliwattHours, UnixMillis};

/// A span of history.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Of which plugs.
    pub plugs: Vec<PlugSpec>,
    /// From when on.
    pub from: UnixMillis,
    /// The end, not in it.
    pub to: UnixMillis,
    /// Time between two polls of a plug.
    pub interval: Duration,
    /// Time between two polls of a strip's outlets.
    pub strip_interval: Duration,
    /// Time between two commits; many plugs are committed more often.
    pub commit_every: Duration,
}

/// One outlet with a meter.
struct Metered {
    id: DeviceId,
    load: Load,
    seed: u64,
    interval: Duration,
    /// When it is asked next, after the beginning.
    due: Duration,
    /// Milliwatt-milliseconds since the counter stood at 0.
    work: u64,
    lost: bool,
}

/// Milliwatt-milliseconds in a watt-hour, the step of the counters.
const WORK_PER_WH: u64 = 3_600_000_000;

impl Feed {
    /// Puts it through `store`. `told` hears the time after each commit. Returns how many readings became durable.
    ///
    /// # Errors
    /// [`StoreError`] of the commit that failed.
    pub async fn run(&self, store: &Store, mut told: impl FnMut(UnixMillis)) -> Result<u64, StoreError> {
        let mut outlets = Vec::new();
        for plug in &self.plugs {
            let facts = facts(plug);
            store.remember(&facts, SocketAddr::from((plug.address, xor::PORT)), self.from);
            for (n, id) in facts.metered_ids().enumerate() {
                outlets.push(self.outlet(plug, n, id));
            }
        }
        let mut readings = 0;
        let mut span = Duration::ZERO;
        let length = Duration::from_millis(u64::try_from(self.to.since(self.from)).unwrap_or(0));
        let tick = self.interval.max(Duration::from_secs(1)).min(self.commit_every);
        while span < length {
            let next_commit = (span + self.commit_every).min(length);
            // All outlets advance together, so that rows come in order of time but for the jitter of one tick.
            let mut taken = 0;
            while span < next_commit && taken < limits::BATCH_READINGS {
                span = (span + tick).min(next_commit);
                for outlet in &mut outlets {
                    while outlet.due < span {
                        self.poll(store, outlet);
                        taken += 1;
                    }
                }
            }
            let now = self.after(span);
            readings += u64::try_from(store.commit(now).await?).unwrap_or(0);
            told(now);
        }
        Ok(readings)
    }

    fn outlet(&self, plug: &PlugSpec, n: usize, id: DeviceId) -> Metered {
        let salt = u64::try_from(n).unwrap_or(0);
        let seed = super::reply::outlet_seed(plug.seed, salt);
        let load = plug.loads.iter().cycle().nth(n).copied().unwrap_or(Load::Zero);
        let interval = if plug.model.children() > 0 { self.strip_interval } else { self.interval };
        let interval = interval.max(Duration::from_millis(100));
        let phase = seed % u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let work = (seed % 500_000).saturating_mul(WORK_PER_WH);
        Metered { id, load, seed, interval, due: Duration::from_millis(phase), work, lost: false }
    }

    fn poll(&self, store: &Store, outlet: &mut Metered) {
        let due = outlet.due;
        outlet.due += outlet.interval;
        let drawn = mix(outlet.seed, u64::try_from(due.as_millis()).unwrap_or(u64::MAX));
        let power = outlet.load.power(outlet.seed, due);
        let millis = u64::try_from(outlet.interval.as_millis()).unwrap_or(u64::MAX);
        outlet.work = outlet.work.saturating_add(u64::from(power.get()).saturating_mul(millis));
        if drawn & 0xff == 0 {
            if !outlet.lost {
                store.gap(outlet.id, self.after(due));
            }
            outlet.lost = true;
            return;
        }
        outlet.lost = false;
        let wh = i64::try_from(outlet.work / WORK_PER_WH).unwrap_or(i64::MAX);
        let voltage = mains_voltage(outlet.seed, due);
        let reading = Reading {
            // Answers take 20 to 52 ms.
            time: self.after(due + Duration::from_millis(20 + (drawn >> 59))),
            power,
            voltage: Some(voltage),
            current: Some(current(power, voltage, outlet.load)),
            counter: MilliwattHours::new(wh.saturating_mul(1_000)).ok(),
            relay: Some(Relay::On),
        };
        store.append(outlet.id, reading, outlet.interval);
    }

    fn after(&self, span: Duration) -> UnixMillis {
        self.from.plus(i64::try_from(span.as_millis()).unwrap_or(i64::MAX))
    }
}

/// What a plug says of itself.
fn facts(plug: &PlugSpec) -> PlugFacts {
    let state = PlugState::new(plug, UnixMillis::new(0));
    let outlet = |n: u8| OutletFacts {
        alias: Alias::new(&format!("{} {}", plug.alias, u16::from(n) + 1)),
        child: ChildId::new(&state.child_id(n.into())),
    };
    let model: Model = plug.model;
    PlugFacts {
        mac: plug.mac,
        alias: Alias::new(&plug.alias),
        model: Label::new(model.label()),
        hardware: Label::new(model.hardware()),
        firmware: Label::new(model.firmware()),
        protocol: plug.protocol,
        has_meter: model.meter().is_some(),
        outlets: (0..model.children()).map(outlet).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plug::iot;
    use crate::sim::{FleetSpec, Via, reply};
    use crate::store::{self, Keeping};

    #[test]
    fn facts_are_what_the_plug_itself_would_say() {
        for plug in FleetSpec::mixed(6, [127, 80, 0, 1].into(), 1).unwrap().plugs {
            let mut state = PlugState::new(&plug, UnixMillis::new(0));
            let answer = reply(&mut state, br#"{"system":{"get_sysinfo":{}}}"#, Via::Tcp, Duration::ZERO);
            assert_eq!(facts(&plug), iot::parse(&answer).unwrap().sysinfo.unwrap().facts);
        }
    }

    #[test]
    fn a_day_of_a_mixed_fleet_is_recorded_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::on_disk(store::path_in(dir.path())), Keeping::default()).unwrap();
        let from = UnixMillis::new(1_795_000_000_000);
        let feed = Feed {
            plugs: FleetSpec::mixed(6, [127, 80, 0, 1].into(), 1).unwrap().plugs,
            from,
            to: from.plus(86_400_000),
            interval: Duration::from_secs(60),
            strip_interval: Duration::from_secs(300),
            commit_every: Duration::from_secs(600),
        };
        let mut commits = 0;
        let readings = smol::block_on(feed.run(&store, |_| commits += 1)).unwrap();
        let polls = 4 * 1_440 + 6 * 288;
        assert!((polls - polls / 100..polls).contains(&readings), "{readings} of {polls}");
        assert_eq!((commits, store.figures().readings), (144, readings));
        for device in store.devices() {
            let latest = store.latest(device.record.id);
            let has_meter = device.record.plug.is_none_or(|plug| plug.facts.has_meter && plug.facts.outlets.is_empty());
            assert_eq!(latest.is_some(), has_meter, "{}", device.record.id);
            assert!(latest.is_none_or(|reading| reading.time >= feed.to.plus(-900_000)));
        }
    }
}
