//! What is known at this moment of every plug: where it is, whether it answers, what went wrong last.
//!
//! Owns the live picture; readings are the store's. Promises that each plug stands here once, under its MAC, whatever
//! its address. `poll` writes it, everybody above reads it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::adaptive::Reason;
use crate::reading::{Alias, DeviceId, Mac, PlugFacts};
use crate::units::{Dbm, UnixMillis};

/// Every plug known, by MAC, and the configured addresses behind which none has been met yet.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    plugs: BTreeMap<Mac, Plug>,
    unmet: BTreeMap<IpAddr, Unmet>,
    /// Counts whatever could have changed plugs or addresses.
    version: u64,
    /// How punctual the polls of this run were.
    pub lateness: Lateness,
}

/// How long plugs that were due had to wait for their turn: those that answer, and those not asked yet. A plug in its
/// back-off waits for a place without anybody missing it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Polls begun.
    pub polls: u64,
    /// All waits together.
    pub total: Duration,
    /// The longest wait.
    pub worst: Duration,
    /// Polls by wait: up to each of [`Lateness::STEPS`], and longer.
    steps: [u64; Self::STEPS.len() + 1],
}

impl Lateness {
    /// The waits, in milliseconds, up to which polls are counted together.
    pub const STEPS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

    /// Notes one poll's wait.
    pub fn note(&mut self, late: Duration) {
        self.polls += 1;
        self.total = self.total.saturating_add(late);
        self.worst = self.worst.max(late);
        let step =
            Self::STEPS.iter().position(|step| late <= Duration::from_millis(*step)).unwrap_or(Self::STEPS.len());
        if let Some(count) = self.steps.get_mut(step) {
            *count += 1;
        }
    }

    /// Upper bounds of waits, and how many polls did not wait longer.
    pub fn up_to(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let polls = self.steps.iter().scan(0, |polls, count| {
            *polls += count;
            Some(*polls)
        });
        Self::STEPS.into_iter().map(Duration::from_millis).zip(polls)
    }

    /// A wait that at least so many thousandths of the polls did not exceed: the upper end of their step, or the longest
    /// wait of all. Zero before the first poll.
    #[must_use]
    pub fn quantile(&self, thousandths: u64) -> Duration {
        let wanted = self.polls.saturating_mul(thousandths).div_ceil(1_000);
        let mut polls = 0;
        for (count, step) in self.steps.iter().zip(Self::STEPS) {
            polls += count;
            if polls >= wanted {
                return Duration::from_millis(step).min(self.worst);
            }
        }
        self.worst
    }
}

/// One plug, now.
#[derive(Clone, Debug)]
pub struct Plug {
    /// What it says of itself.
    pub facts: PlugFacts,
    /// The name the configuration gives it, before its own alias.
    pub name: Option<Alias>,
    /// Where it answers, or last did.
    pub address: SocketAddr,
    /// Whether it answers.
    pub presence: Presence,
    /// When it last answered, in this run or an earlier one.
    pub last_seen: Option<UnixMillis>,
    /// The last thing that went wrong, in plain words. None once it answers again.
    pub last_error: Option<Trouble>,
    /// Signal strength at the plug.
    pub signal: Option<Dbm>,
    /// How often it is asked at present.
    pub interval: Duration,
    /// Why that often.
    pub reason: Reason,
    /// The newest reading of each of its devices in this run: its time, and the elapsed time at which it came.
    pub newest: Vec<(DeviceId, UnixMillis, Duration)>,
    /// Times without its readings, in this run.
    pub outages: Outages,
    /// How its polls went in this run.
    pub polls: PollFigures,
}

impl Plug {
    /// How old a device's reading of `time` is, by elapsed time, which no step of the wall clock changes. None when it is
    /// not the one that came last in this run.
    #[must_use]
    pub fn age(&self, id: DeviceId, time: UnixMillis, elapsed: Duration) -> Option<Duration> {
        let newest = self.newest.iter().find(|(known, at, _)| *known == id && *at == time);
        newest.map(|(_, _, came)| elapsed.saturating_sub(*came))
    }

    /// Notes a reading's time and when it came.
    pub fn note_newest(&mut self, id: DeviceId, time: UnixMillis, elapsed: Duration) {
        match self.newest.iter_mut().find(|(known, ..)| *known == id) {
            Some(newest) => *newest = (id, time, elapsed),
            None => self.newest.push((id, time, elapsed)), // at most as many as it has outlets
        }
    }

    /// The name people know it by: the configured one, else its own alias, else its model.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.device_name(DeviceId::plug(self.facts.mac))
    }

    /// How log lines call it: name, id and address.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} ({}) at {}", self.display_name(), self.facts.mac, self.address.ip())
    }

    /// The name people know one of its devices by: an outlet's own alias, else the plug's name.
    #[must_use]
    pub fn device_name(&self, id: DeviceId) -> &str {
        let outlet = id.outlet.and_then(|n| self.facts.outlets.get(usize::from(n)));
        let is_named = outlet.is_some_and(|outlet| !outlet.alias.is_empty());
        self.name.as_ref().filter(|_| !is_named).map_or(self.facts.name_of(id), Alias::as_str)
    }
}

/// Whether a plug answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Not asked yet in this run.
    Unknown,
    /// Its last polls were answered.
    Online,
    /// It missed so many polls in a row that it counts as away, since then.
    Offline {
        /// When it was noticed.
        since: UnixMillis,
    },
}

/// Times in which a plug that had answered did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// How many, the present one included.
    pub count: u32,
    /// When the last one began: the end of the time for which the reading before it stands.
    pub last_from: Option<UnixMillis>,
    /// When it ended; none while it lasts.
    pub last_to: Option<UnixMillis>,
}

impl Outages {
    /// Whether one lasts.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.last_from.is_some() && self.last_to.is_none()
    }

    /// One begins.
    pub fn begin(&mut self, from: UnixMillis) {
        if !self.is_open() {
            *self = Self { count: self.count.saturating_add(1), last_from: Some(from), last_to: None };
        }
    }

    /// The present one ends. Not before its beginning, whatever the wall clock did.
    pub fn end(&mut self, to: UnixMillis) {
        if let Some(from) = self.last_from.filter(|_| self.is_open()) {
            self.last_to = Some(to.max(from));
        }
    }
}

/// Something that went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When.
    pub time: UnixMillis,
    /// What, in plain words, with what to do about it where that is known.
    pub text: String,
}

/// How a plug's polls went in this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollFigures {
    /// Polls answered.
    pub answered: u64,
    /// Polls failed.
    pub failed: u64,
    /// How long the last answered poll took.
    pub last: Duration,
    /// How long all answered polls took together.
    pub total: Duration,
    /// Values refused because no outlet can have them.
    pub refused: u64,
    /// The longest that a poll which was due had to wait for its turn.
    pub worst_late: Duration,
}

/// A configured address behind which no plug has answered yet.
#[derive(Clone, Debug)]
pub struct Unmet {
    /// Where it was last asked.
    pub address: SocketAddr,
    /// The name that the configuration gives to the plug there.
    pub name: Option<Alias>,
    /// What went wrong last.
    pub last_error: Option<Trouble>,
}

impl Fleet {
    /// The plug with this MAC.
    #[must_use]
    pub fn get(&self, mac: Mac) -> Option<&Plug> {
        self.plugs.get(&mac)
    }

    /// The version of what is known of plugs and addresses: while it is the same, nothing has changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The plug with this MAC, to change it.
    pub fn get_mut(&mut self, mac: Mac) -> Option<&mut Plug> {
        self.version += 1;
        self.plugs.get_mut(&mac)
    }

    /// Every plug, by MAC.
    pub fn plugs(&self) -> impl Iterator<Item = &Plug> {
        self.plugs.values()
    }

    /// Adds a plug, or takes its newer facts and address. `name` is the one that the configuration gives to what is at
    /// this address; a plug keeps it when it moves, and no other plug gets the same.
    pub fn meet(&mut self, facts: PlugFacts, address: SocketAddr, name: Option<Alias>) -> &mut Plug {
        self.version += 1;
        self.unmet.remove(&address.ip());
        let taken =
            |name: &Alias| self.plugs.values().any(|p| p.facts.mac != facts.mac && p.name.as_ref() == Some(name));
        let name = name.filter(|name| !taken(name));
        let plug = self.plugs.entry(facts.mac).or_insert_with(|| Plug {
            facts: facts.clone(),
            name: None,
            address,
            presence: Presence::Unknown,
            last_seen: None,
            last_error: None,
            signal: None,
            interval: Duration::ZERO,
            reason: Reason::Fixed,
            newest: Vec::new(),
            outages: Outages::default(),
            polls: PollFigures::default(),
        });
        plug.facts = facts;
        plug.address = address;
        plug.name = name.or(plug.name.take());
        plug
    }

    /// Takes back a plug that was only heard of.
    pub fn forget(&mut self, mac: Mac) {
        self.version += 1;
        self.plugs.remove(&mac);
    }

    /// Notes a configured address behind which no plug has been met.
    pub fn expect(&mut self, address: SocketAddr, name: Option<Alias>) {
        self.version += 1;
        self.unmet.insert(address.ip(), Unmet { address, name, last_error: None });
    }

    /// Forgets what the configuration said, before it says something else.
    pub fn forget_configured(&mut self) {
        self.version += 1;
        self.unmet.clear();
        self.plugs.values_mut().for_each(|plug| plug.name = None);
    }

    /// No plug of its own is behind this address: the one there is watched elsewhere, or none is expected any more.
    pub fn found_elsewhere(&mut self, address: IpAddr) {
        self.version += 1;
        self.unmet.remove(&address);
    }

    /// A configured address without a plug, to change it.
    pub fn unmet_mut(&mut self, address: IpAddr) -> Option<&mut Unmet> {
        self.version += 1;
        self.unmet.get_mut(&address)
    }

    /// Configured addresses behind which no plug has been met.
    pub fn unmet(&self) -> impl Iterator<Item = &Unmet> {
        self.unmet.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_ends_and_never_above_the_worst() {
        let mut lateness = Lateness::default();
        assert_eq!(lateness.quantile(990), Duration::ZERO);
        (0..990).for_each(|_| lateness.note(Duration::from_millis(3)));
        (0..10).for_each(|_| lateness.note(Duration::from_millis(30)));
        assert_eq!(lateness.quantile(990), Duration::from_millis(5));
        assert_eq!(lateness.quantile(991), Duration::from_millis(30));
        lateness.note(Duration::from_secs(60));
        assert_eq!(lateness.quantile(1_000), Duration::from_secs(60));
    }

    #[test]
    fn an_outage_begins_and_ends_once_and_never_ends_before_it_began() {
        let at = UnixMillis::new;
        let mut outages = Outages::default();
        outages.end(at(1));
        assert_eq!(outages, Outages::default());
        outages.begin(at(10_000));
        outages.begin(at(20_000));
        outages.end(at(5_000));
        outages.end(at(30_000));
        assert_eq!(outages, Outages { count: 1, last_from: Some(at(10_000)), last_to: Some(at(10_000)) });
        outages.begin(at(40_000));
        assert!(outages.is_open() && outages.count == 2);
    }
}
