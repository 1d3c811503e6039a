//! What is known at this moment of every plug: where it is, whether it answers, what went wrong last.
//!
//! Owns the live picture; readings are the store's. Promises that each plug stands here once, under its MAC, whatever
//! its address. `poll` writes it, everybody above reads it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::reading::{Alias, DeviceId, Mac, PlugFacts};
use crate::units::{Dbm, UnixMillis};

/// Every plug known, by MAC, and the configured addresses behind which none has been met yet.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    plugs: BTreeMap<Mac, Plug>,
    unmet: BTreeMap<SocketAddr, Unmet>,
    /// How punctual the polls of this run were.
    pub lateness: Lateness,
}

/// How long plugs that were due had to wait for their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Polls begun.
    pub polls: u64,
    /// All waits together.
    pub total: Duration,
    /// The longest wait.
    pub worst: Duration,
}

impl Lateness {
    /// Notes one poll's wait.
    pub fn note(&mut self, late: Duration) {
        self.polls += 1;
        self.total = self.total.saturating_add(late);
        self.worst = self.worst.max(late);
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
    /// How its polls went in this run.
    pub polls: PollFigures,
}

impl Plug {
    /// The name people know it by: the configured one, else its own alias, else its model.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let own = if self.facts.alias.is_empty() { self.facts.model.as_str() } else { self.facts.alias.as_str() };
        self.name.as_ref().map_or(own, Alias::as_str)
    }

    /// How log lines call it: name, id and address.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} ({}) at {}", self.display_name(), self.facts.mac, self.address.ip())
    }

    /// The name people know one of its devices by: an outlet's own alias, else the plug's.
    #[must_use]
    pub fn device_name(&self, id: DeviceId) -> &str {
        let outlet = id.outlet.and_then(|n| self.facts.outlets.get(usize::from(n)));
        outlet.map(|outlet| outlet.alias.as_str()).filter(|alias| !alias.is_empty()).unwrap_or(self.display_name())
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
}

/// A configured address behind which no plug has answered yet.
#[derive(Clone, Debug, Default)]
pub struct Unmet {
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

    /// The plug with this MAC, to change it.
    pub fn get_mut(&mut self, mac: Mac) -> Option<&mut Plug> {
        self.plugs.get_mut(&mac)
    }

    /// Every plug, by MAC.
    pub fn plugs(&self) -> impl Iterator<Item = &Plug> {
        self.plugs.values()
    }

    /// Adds a plug, or takes its newer facts and address. `name` is the one that the configuration gives to what is at
    /// this address; a plug keeps it when it moves, and no other plug gets the same.
    pub fn meet(&mut self, facts: PlugFacts, address: SocketAddr, name: Option<Alias>) -> &mut Plug {
        self.unmet.remove(&address);
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
            polls: PollFigures::default(),
        });
        plug.facts = facts;
        plug.address = address;
        plug.name = name.or(plug.name.take());
        plug
    }

    /// Notes a configured address behind which no plug has been met.
    pub fn expect(&mut self, address: SocketAddr, name: Option<Alias>) {
        self.unmet.insert(address, Unmet { name, last_error: None });
    }

    /// No plug of its own is behind this address: the one there is watched elsewhere, or none is expected any more.
    pub fn found_elsewhere(&mut self, address: SocketAddr) {
        self.unmet.remove(&address);
    }

    /// A configured address without a plug, to change it.
    pub fn unmet_mut(&mut self, address: SocketAddr) -> Option<&mut Unmet> {
        self.unmet.get_mut(&address)
    }

    /// Configured addresses behind which no plug has been met.
    pub fn unmet(&self) -> impl Iterator<Item = (SocketAddr, &Unmet)> {
        self.unmet.iter().map(|(address, unmet)| (*address, unmet))
    }
}
