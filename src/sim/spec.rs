//! What a fleet is made of, the mixed fleet of `plugsim`, and addresses for tests.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Load, Model, load::mix};
use crate::plug::klap::Hashes;
use crate::plug::session::{Credentials, Whose};
use crate::plug::xor;
use crate::reading::{Mac, Protocol};
use crate::units::UnixMillis;

/// One plug.
#[derive(Clone, Debug, PartialEq)]
pub struct PlugSpec {
    /// What it is.
    pub model: Model,
    /// Where it listens: a loopback address of its own.
    pub address: Ipv4Addr,
    /// Its hardware address; the device id of 40 hex digits follows from it.
    pub mac: Mac,
    /// The owner's name for it. A strip's outlets are this and their number from 1.
    pub alias: String,
    /// What is connected. Outlet `n` of a strip has load `n`; when there are fewer they are used in turn, none is
    /// [`Load::Zero`].
    pub loads: Vec<Load>,
    /// Seed of its loads and of its counter's first value.
    pub seed: u64,
    /// What it speaks at first.
    pub protocol: Protocol,
    /// Whose credentials it takes, where it wants any.
    pub owner: Whose,
    /// Which hashes it uses over KLAP.
    pub hashes: Hashes,
}

impl PlugSpec {
    /// A plug with a fridge (a strip: one of each), an alias and a MAC made from address and seed.
    #[must_use]
    pub fn new(model: Model, address: Ipv4Addr, seed: u64) -> Self {
        let loads = match model {
            _ if model.children() > 0 => {
                vec![Load::Fridge, Load::Kettle, Load::WashingMachine, Load::Standby, Load::Zero]
            }
            _ => vec![Load::Fridge],
        };
        Self {
            model,
            address,
            mac: mac(address, seed),
            alias: format!("{model} at {address}"),
            loads,
            seed,
            protocol: model.protocol(),
            owner: Whose::Account,
            hashes: Hashes::V2,
        }
    }

    /// The same, speaking this at first.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// The same, with these hashes where it speaks KLAP.
    #[must_use]
    pub fn hashes(mut self, hashes: Hashes) -> Self {
        self.hashes = hashes;
        self
    }

    /// The same, bound to this account or to none.
    #[must_use]
    pub fn owner(mut self, owner: Whose) -> Self {
        self.owner = owner;
        self
    }

    /// The same with another alias.
    #[must_use]
    pub fn alias(mut self, alias: &str) -> Self {
        alias.clone_into(&mut self.alias);
        self
    }

    /// The same with these loads.
    #[must_use]
    pub fn loads(mut self, loads: &[Load]) -> Self {
        self.loads = loads.to_vec();
        self
    }

    /// The same with one load that draws exactly `power`, for a reading that can be foretold.
    #[must_use]
    pub fn constant(self, power: crate::units::Milliwatts) -> Self {
        self.loads(&[Load::Constant(power)])
    }
}

/// A MAC with one of the vendor's prefixes; different for different addresses of one /8.
fn mac(address: Ipv4Addr, seed: u64) -> Mac {
    let [_, b, c, d] = address.octets();
    // Exclusive or with the same three bytes keeps different addresses different.
    let [x, y, z, ..] = mix(seed, 0x6d61_6300).to_be_bytes();
    Mac::new([0x50, 0xc7, 0xbf, b ^ x, c ^ y, d ^ z])
}

/// How simulated time runs: the time that loads, counters, `on_time` and the plugs' own clocks live by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// This many simulated seconds in one real second. 1 is real time; bounded to 0 to 100,000.
    Times(f64),
    /// Simulated time stands still at this moment: every reading of an outlet is the same.
    Frozen(Duration),
}

/// A whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetSpec {
    /// The plugs, each on an address of its own.
    pub plugs: Vec<PlugSpec>,
    /// The port of those that speak XOR, TCP and UDP.
    pub port: u16,
    /// The port of those that speak HTTP. Real ones have 80.
    pub http_port: u16,
    /// The account that those with an owner are bound to.
    pub account: Credentials,
    /// A query to this address is answered by every plug from its own: what a broadcast address is on a real network.
    pub discovery: Option<Ipv4Addr>,
    /// How simulated time runs.
    pub pace: Pace,
    /// Wall time at simulated time 0, for the plugs' own clocks; the time of the start when `None`.
    pub epoch: Option<UnixMillis>,
    /// How many served readings are kept for [`super::Fleet::ledger`]; 0 keeps none.
    pub ledger: usize,
}

/// The HTTP port of simulated plugs unless told otherwise. Real ones have 80, which needs root here.
pub const HTTP_PORT: u16 = 9_980;

/// The account of simulated plugs unless told otherwise: `user@example.com` and `hunter22`.
#[must_use]
pub fn account() -> Credentials {
    Credentials::new("user@example.com", "hunter22")
}

/// One plug of a mixture.
type Sort = (&'static str, Model, Protocol, Hashes, &'static [Load]);

/// Of a mixed fleet: plugs that need no account.
const MIX: [Sort; 6] = {
    use {Hashes::V2, Protocol::IotXor};
    [
        ("fridge", Model::Hs110V1, IotXor, V2, &[Load::Fridge]),
        ("kettle", Model::Kp115, IotXor, V2, &[Load::Kettle]),
        ("washing machine", Model::Hs110V4, IotXor, V2, &[Load::WashingMachine]),
        (
            "desk strip",
            Model::Hs300,
            IotXor,
            V2,
            &[Load::Standby, Load::Standby, Load::Fridge, Load::Kettle, Load::Zero, Load::Standby],
        ),
        ("router", Model::Kp115, IotXor, V2, &[Load::Standby]),
        ("hall lamp", Model::Hs103, IotXor, V2, &[Load::Zero]),
    ]
};

/// Of a fleet that speaks everything.
const EVERY: [Sort; 10] = {
    use Hashes::{V1, V2};
    use Protocol::{IotKlap, IotXor, SmartAes, SmartKlap, SmartTpap};
    [
        ("fridge", Model::Hs110V1, IotXor, V2, &[Load::Fridge]),
        ("kettle", Model::P110, SmartKlap, V2, &[Load::Kettle]),
        ("washing machine", Model::Kp125m, SmartTpap, V2, &[Load::WashingMachine]),
        ("dryer", Model::Hs110V4, IotKlap, V1, &[Load::WashingMachine]),
        ("router", Model::Kp115, IotKlap, V2, &[Load::Standby]),
        ("freezer", Model::P110V1, SmartAes, V2, &[Load::Fridge]),
        ("desk strip", Model::P304m, SmartKlap, V2, &[Load::Standby, Load::Fridge, Load::Kettle, Load::Zero]),
        ("shelf strip", Model::Hs300, IotKlap, V2, &[Load::Standby, Load::Zero, Load::Standby]),
        ("kitchen strip", Model::P316m, SmartTpap, V2, &[Load::Kettle, Load::Fridge, Load::Standby]),
        ("hall lamp", Model::P100, SmartKlap, V2, &[Load::Zero]),
    ]
};

impl FleetSpec {
    /// These plugs on ports 9999 and [`HTTP_PORT`], bound to [`account`], in real time, without a discovery address and without a ledger.
    #[must_use]
    pub fn new(plugs: Vec<PlugSpec>) -> Self {
        Self {
            plugs,
            port: xor::PORT,
            http_port: HTTP_PORT,
            account: account(),
            discovery: None,
            pace: Pace::Times(1.0),
            epoch: None,
            ledger: 0,
        }
    }

    /// `count` IOT plugs of all models and loads on the addresses from `base` on, skipping those that end in 0 and 255,
    /// discovered at `x.y.255.255` of `base`. At most 2,000.
    ///
    /// # Errors
    /// When `base` is not a loopback address or the addresses leave its /16; the text says what to change.
    pub fn mixed(count: usize, base: Ipv4Addr, seed: u64) -> io::Result<Self> {
        Self::of_sorts(&MIX, count, base, seed)
    }

    /// The same with plugs of both dialects that speak every protocol, most of them bound to [`account`].
    ///
    /// # Errors
    /// As [`FleetSpec::mixed`].
    pub fn every_protocol(count: usize, base: Ipv4Addr, seed: u64) -> io::Result<Self> {
        Self::of_sorts(&EVERY, count, base, seed)
    }

    fn of_sorts(sorts: &[Sort], count: usize, base: Ipv4Addr, seed: u64) -> io::Result<Self> {
        const MOST: usize = 2_000;
        if count > MOST {
            return Err(invalid(format!("{count} plugs are too many; choose at most {MOST}")));
        }
        if !base.is_loopback() {
            return Err(invalid(format!("{base} is not a loopback address; choose one like 127.80.0.1")));
        }
        let [x, y, ..] = base.octets();
        let discovery = Ipv4Addr::new(x, y, 255, 255);
        let addresses = (u32::from(base)..u32::from(discovery))
            .map(Ipv4Addr::from)
            .filter(|address| !matches!(address.octets(), [.., 0 | 255]));
        let mut plugs = Vec::with_capacity(count);
        let sorted = addresses.zip(0..count).zip(sorts.iter().cycle());
        for ((address, n), (alias, model, protocol, hashes, loads)) in sorted {
            let round = n / sorts.len() + 1;
            let alias = if round == 1 { (*alias).to_owned() } else { format!("{alias} {round}") };
            let salt = u64::try_from(n).unwrap_or_default();
            let spec = PlugSpec::new(*model, address, seed).alias(&alias).loads(loads);
            let spec = spec.protocol(*protocol).hashes(*hashes);
            plugs.push(PlugSpec { seed: mix(seed, salt), ..spec });
        }
        if plugs.len() < count {
            let fit = plugs.len();
            return Err(invalid(format!(
                "only {fit} of {count} plugs fit between {base} and {discovery}; choose a lower base"
            )));
        }
        Ok(Self { discovery: Some(discovery), ..Self::new(plugs) })
    }
}

pub(super) fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// A loopback /24 that nobody else uses as long as this value lives.
#[derive(Debug)]
pub struct TestNet {
    a: u8,
    b: u8,
    /// Holds the network against other test processes that go by the same rule.
    _reservation: UdpSocket,
}

impl TestNet {
    /// Address `host` of the network; 1 to 254 are for plugs.
    #[must_use]
    pub const fn host(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.a, self.b, host)
    }

    /// The network's "broadcast" address: where a test's fleet is to be discovered.
    #[must_use]
    pub const fn broadcast(&self) -> Ipv4Addr {
        self.host(255)
    }

    /// These plugs, discovered at [`TestNet::broadcast`], with a ledger of 100,000 readings.
    #[must_use]
    pub fn fleet(&self, plugs: Vec<PlugSpec>) -> FleetSpec {
        FleetSpec { discovery: Some(self.broadcast()), ledger: 100_000, ..FleetSpec::new(plugs) }
    }
}

/// A loopback /24 (127.100.0.0 to 127.249.254.0) for a test, so that tests run in parallel although plugs have a fixed port.
/// `n` tells the tests of one process apart; two calls with the same `n` get different networks too.
///
/// # Errors
/// When no network is free, or binding fails for another reason than that one is in use.
pub fn test_net(n: u32) -> io::Result<TestNet> {
    const NETS: u32 = 150 * 255;
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97).wrapping_add(n).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
    for try_number in 0..64_u32 {
        let index = first.wrapping_add(try_number.wrapping_mul(1_009)) % NETS;
        let a = u8::try_from(100 + index / 255).unwrap_or(100);
        let b = u8::try_from(index % 255).unwrap_or(0);
        // The port below the plugs' own is the reservation; the plugs' port is tried too, for strangers may hold it.
        let reserve = || -> io::Result<UdpSocket> {
            let reservation = UdpSocket::bind((Ipv4Addr::new(127, a, b, 255), xor::PORT - 1))?;
            drop(UdpSocket::bind((Ipv4Addr::new(127, a, b, 255), xor::PORT))?);
            drop(TcpListener::bind((Ipv4Addr::new(127, a, b, 1), xor::PORT))?);
            Ok(reservation)
        };
        match reserve() {
            Ok(reservation) => return Ok(TestNet { a, b, _reservation: reservation }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no loopback network is free for this test; is port 9999 held everywhere?",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_fleet_has_every_model_and_no_address_or_mac_twice() {
        let spec = FleetSpec::mixed(1_000, Ipv4Addr::new(127, 80, 0, 1), 1).unwrap();
        assert_eq!(spec.discovery, Some(Ipv4Addr::new(127, 80, 255, 255)));
        let addresses: std::collections::BTreeSet<_> = spec.plugs.iter().map(|plug| plug.address).collect();
        let macs: std::collections::BTreeSet<_> = spec.plugs.iter().map(|plug| plug.mac).collect();
        assert_eq!((addresses.len(), macs.len()), (1_000, 1_000));
        assert!(addresses.iter().all(|a| (1..=254).contains(&a.octets()[3])));
        assert!(Model::IOT.iter().all(|model| spec.plugs.iter().any(|plug| plug.model == *model)));
        assert_eq!(spec.plugs[6].alias, "fridge 2");
        assert_eq!(spec, FleetSpec::mixed(1_000, Ipv4Addr::new(127, 80, 0, 1), 1).unwrap());
    }

    #[test]
    fn a_fleet_of_every_protocol_has_each() {
        let spec = FleetSpec::every_protocol(20, Ipv4Addr::new(127, 80, 0, 1), 1).unwrap();
        for (_, model, protocol, hashes, _) in EVERY {
            let is_there = |plug: &PlugSpec| (plug.model, plug.protocol, plug.hashes) == (model, protocol, hashes);
            assert_eq!(spec.plugs.iter().filter(|plug| is_there(plug)).count(), 2);
        }
    }

    #[test]
    fn fleets_that_cannot_be_are_refused_with_what_to_change() {
        let refused = |count, base: [u8; 4]| FleetSpec::mixed(count, base.into(), 1).unwrap_err().to_string();
        assert!(refused(6, [192, 168, 1, 20]).contains("choose one like 127.80.0.1"));
        assert!(refused(2_001, [127, 80, 0, 1]).contains("at most 2000"));
        assert!(refused(300, [127, 80, 255, 1]).contains("only 254 of 300"));
    }

    #[test]
    fn networks_for_tests_do_not_overlap() {
        let nets: Vec<_> = (0..8).map(|_| test_net(0).unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = nets.iter().map(TestNet::broadcast).collect();
        assert_eq!(distinct.len(), nets.len());
    }
}
