//! The simulator on real sockets: what its tests rely on when they blame a monitor.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a helper of a test may fail as loudly as the test itself

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use wattd::plug::xor;
use wattd::sim::{CONNECTIONS_PER_PLUG, Fault, Fleet, FleetSpec, Load, Model, Pace, PlugSpec, TestNet, test_net};
use wattd::units::Milliwatts;

/// Long enough for a loaded machine; only a bug waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to tell silence from an answer.
const SHORT: Duration = Duration::from_millis(400);

const SYSINFO: &str = r#"{"system":{"get_sysinfo":{}}}"#;
const REALTIME: &str = r#"{"emeter":{"get_realtime":{}}}"#;

struct Client(TcpStream);

impl Client {
    fn connect(address: Ipv4Addr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((address, xor::PORT)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    fn send(&mut self, request: &str) {
        self.0.write_all(&xor::frame(request.as_bytes()).unwrap()).unwrap();
    }

    fn receive(&mut self) -> std::io::Result<Value> {
        let mut prefix = [0; xor::PREFIX];
        self.0.read_exact(&mut prefix)?;
        let length = xor::payload_length(prefix).map_err(|_| ErrorKind::InvalidData)?;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        xor::decrypt(&mut payload);
        serde_json::from_slice(&payload).map_err(|_| ErrorKind::InvalidData.into())
    }

    fn ask(&mut self, request: &str) -> std::io::Result<Value> {
        self.send(request);
        self.receive()
    }

    /// Everything until the peer closes, or until nothing comes for a while; and whether it closed.
    fn rest(&mut self) -> (Vec<u8>, bool) {
        self.0.set_read_timeout(Some(SHORT)).unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 4_096]);
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return (all, true),
                Ok(n) => all.extend(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return (all, false);
                }
                Err(_) => return (all, true),
            }
        }
    }
}

/// Asks by UDP and gathers who answers with what, until `wanted` have or nothing comes for `patience`.
fn discover(to: Ipv4Addr, wanted: usize, patience: Duration) -> Vec<(SocketAddr, Vec<u8>)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(&xor::encrypt(SYSINFO.as_bytes()), (to, xor::PORT)).unwrap();
    let (mut found, mut buffer) = (Vec::new(), [0; 65_536]);
    while found.len() < wanted {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
        let mut plain = buffer[..length].to_vec();
        xor::decrypt(&mut plain);
        found.push((from, plain));
    }
    found
}

fn one(n: u32) -> (TestNet, Fleet, Ipv4Addr) {
    let net = test_net(n).unwrap();
    let address = net.host(1);
    let fleet = Fleet::start(net.fleet(vec![PlugSpec::new(Model::Kp115, address, 1)])).unwrap();
    (net, fleet, address)
}

fn refusal(address: Ipv4Addr) -> Option<ErrorKind> {
    Client::connect(address).err().map(|error| error.kind())
}

#[test]
fn one_connection_serves_many_requests_and_is_counted() {
    let (_net, fleet, address) = one(1);
    let mut client = Client::connect(address).unwrap();
    for _ in 0..20 {
        let answer = client.ask(REALTIME).unwrap();
        let reading = &answer["emeter"]["get_realtime"];
        let ledger = fleet.ledger();
        let served = ledger.iter().last().unwrap().reading;
        assert_eq!(reading["power_mw"], served.power.get());
        assert_eq!(reading["total_wh"].as_u64().unwrap() * 1_000, served.counter.get());
    }
    let counters = fleet.counters(address);
    assert_eq!((counters.connections, counters.max_connections, counters.requests), (1, 1, 20));
    assert_eq!((counters.max_in_flight, counters.split_requests, counters.writes_seen), (1, 0, 0));
    let ledger = fleet.ledger();
    assert_eq!(ledger.iter().map(|served| served.sequence).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
}

#[test]
fn rudeness_is_counted() {
    let (_net, fleet, address) = one(2);
    let mut client = Client::connect(address).unwrap();
    let message = xor::frame(SYSINFO.as_bytes()).unwrap();
    client.0.write_all(&message[..7]).unwrap();
    std::thread::sleep(SHORT); // so that the first part is read alone
    client.0.write_all(&message[7..]).unwrap();
    client.receive().unwrap();
    assert_eq!(fleet.counters(0).split_requests, 1);

    client.ask(r#"{"system":{"set_relay_state":{"state":0}}}"#).unwrap();
    assert_eq!(fleet.counters(0).writes_seen, 1);

    // Two requests on one connection before the first is answered.
    fleet.set_fault(0, Fault::Delay(SHORT)).unwrap();
    client.send(REALTIME);
    client.send(SYSINFO);
    assert!(client.receive().unwrap().get("emeter").is_some());
    assert!(client.receive().unwrap().get("system").is_some());
    assert_eq!(fleet.counters(0).max_in_flight, 2);
}

#[test]
fn a_peer_that_gives_up_and_asks_anew_has_one_request_in_flight() {
    let (_net, fleet, address) = one(3);
    for fault in [Fault::Delay(PATIENCE), Fault::Silence, Fault::HalfThenSilence, Fault::HugeLength] {
        fleet.set_fault(0, fault).unwrap();
        for _ in 0..3 {
            let mut client = Client::connect(address).unwrap();
            client.send(REALTIME);
            assert!(!client.rest().1, "{fault}: the plug closed");
        }
    }
    let counters = fleet.counters(0);
    assert_eq!((counters.connections, counters.max_in_flight), (12, 1));
    assert!(fleet.ledger().is_empty());
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let (_net, fleet, address) = one(4);
    let mut clients: Vec<_> = (0..CONNECTIONS_PER_PLUG).map(|_| Client::connect(address).unwrap()).collect();
    for client in &mut clients {
        client.ask(SYSINFO).unwrap();
    }
    assert!(Client::connect(address).unwrap().rest().1);
    assert_eq!(fleet.counters(0).over_limit, 1);
    drop(clients.pop());
    // Sooner or later the plug has seen that one has ended.
    let answered = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let mut client = Client::connect(address).unwrap();
        client.0.write_all(&xor::frame(SYSINFO.as_bytes()).unwrap()).is_ok() && client.receive().is_ok()
    });
    assert!(answered);
}

#[test]
fn discovery_is_answered_by_every_plug_from_its_own_address() {
    let net = test_net(5).unwrap();
    let plugs: Vec<_> = (1..=20).map(|n| PlugSpec::new(Model::IOT[usize::from(n) % 5], net.host(n), 1)).collect();
    let macs: Vec<_> = plugs.iter().map(|plug| plug.mac).collect();
    let fleet = Fleet::start(net.fleet(plugs)).unwrap();
    let mut found = discover(net.broadcast(), 20, PATIENCE);
    found.sort_unstable_by_key(|(from, _)| *from);
    assert_eq!(found.len(), 20);
    for (n, (from, plain)) in found.iter().enumerate() {
        assert_eq!(*from, SocketAddr::from((net.host(u8::try_from(n).unwrap() + 1), xor::PORT)));
        let answer: Value = serde_json::from_slice(plain).unwrap();
        let info = &answer["system"]["get_sysinfo"];
        assert_eq!(info["mac"].as_str().unwrap().parse(), Ok(macs[n]));
        if let Some(children) = info["children"].as_array() {
            assert_eq!(children[0]["id"], "00");
        }
    }
    assert_eq!(discover(net.host(7), 1, PATIENCE)[0].0.ip(), net.host(7));
    assert_eq!(fleet.total().datagrams, 21);
}

#[test]
fn each_fault_does_what_its_name_says() {
    let (_net, fleet, address) = one(6);
    let first = Client::connect(address).unwrap().ask(REALTIME).unwrap();
    let whole = first.to_string().len() + xor::PREFIX;
    let after = |fault: Fault| {
        fleet.set_fault(0, fault).unwrap();
        let mut client = Client::connect(address).unwrap();
        client.send(REALTIME);
        client.rest()
    };
    assert_eq!(after(Fault::Silence), (Vec::new(), false));
    let (bytes, is_closed) = after(Fault::HalfThenClose);
    assert!(is_closed && (1..whole).contains(&bytes.len()), "{} bytes", bytes.len());
    let (bytes, is_closed) = after(Fault::HalfThenSilence);
    assert!(!is_closed && (1..whole).contains(&bytes.len()), "{} bytes", bytes.len());
    assert_eq!(after(Fault::HugeLength), (vec![0xff; 4], false));
    assert_eq!(after(Fault::ZeroLength), (vec![0; 4], false));
    let (mut bytes, is_closed) = after(Fault::Garbage);
    assert_eq!(xor::payload_length(*bytes.first_chunk().unwrap()), Ok(bytes.len() - 4));
    xor::decrypt(&mut bytes[4..]);
    assert!(!is_closed && serde_json::from_slice::<Value>(&bytes[4..]).is_err());
    let (bytes, _) = after(Fault::StrayBytes);
    assert_eq!(xor::payload_length(*bytes.first_chunk().unwrap()), Ok(bytes.len() - 4 - 3));
    assert_eq!(after(Fault::Drip).0.len(), 1);
    assert_eq!(fleet.ledger().served(), 2, "the first and the one with stray bytes were whole");

    fleet.set_fault(0, Fault::Close).unwrap();
    assert!(Client::connect(address).unwrap().rest().1);
    assert_eq!(discover(address, 1, PATIENCE).len(), 1);
    fleet.set_fault(0, Fault::Refuse).unwrap();
    assert_eq!(refusal(address), Some(ErrorKind::ConnectionRefused));
    assert!(discover(address, 1, SHORT).is_empty());

    fleet.set_fault(0, Fault::Glitch).unwrap();
    let mut client = Client::connect(address).unwrap();
    assert_eq!(client.ask(REALTIME).unwrap()["emeter"]["get_realtime"]["power_mw"], 20_000_000);
    fleet.set_fault(0, Fault::WrongDevice).unwrap();
    let mac = |answer: &Value| answer["system"]["get_sysinfo"]["mac"].as_str().unwrap().to_owned();
    let wrong = mac(&client.ask(SYSINFO).unwrap());
    fleet.clear(0).unwrap();
    assert_ne!(mac(&client.ask(SYSINFO).unwrap()), wrong);
    fleet.set_fault(0, Fault::Delay(SHORT)).unwrap();
    client.ask(SYSINFO).unwrap();
}

#[test]
fn counters_fall_on_a_reset_and_on_a_restart() {
    let (_net, fleet, address) = one(7);
    let total =
        |client: &mut Client| client.ask(REALTIME).unwrap()["emeter"]["get_realtime"]["total_wh"].as_u64().unwrap();
    let mut client = Client::connect(address).unwrap();
    assert!(total(&mut client) >= 2_000);
    fleet.set_fault(0, Fault::CounterReset).unwrap();
    assert_eq!(total(&mut client), 0);

    fleet.set_fault(0, Fault::Restart(Duration::from_secs(1))).unwrap();
    assert!(client.rest().1, "connections drop");
    let mut back = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        Client::connect(address).ok()
    });
    assert_eq!(total(back.as_mut().unwrap()), 0);
    assert_eq!(fleet.plugs()[0].fault, None);
}

#[test]
fn a_plug_that_moves_answers_from_its_new_address_alone() {
    let (net, fleet, old) = one(8);
    let new = net.host(99);
    let mut client = Client::connect(old).unwrap();
    client.ask(SYSINFO).unwrap();
    fleet.move_to(old, new).unwrap();
    assert!(client.rest().1, "connections drop");
    assert_eq!(refusal(old), Some(ErrorKind::ConnectionRefused));
    Client::connect(new).unwrap().ask(SYSINFO).unwrap();
    let found = discover(net.broadcast(), 1, PATIENCE);
    assert_eq!(found[0].0.ip(), new);
    assert_eq!(fleet.counters(new).connections, 2);
    fleet.move_to(new, old).unwrap();
    Client::connect(old).unwrap().ask(SYSINFO).unwrap();
}

#[test]
fn wrong_orders_are_refused_in_words() {
    let (net, fleet, address) = one(9);
    assert_eq!(fleet.set_fault(1, Fault::Close).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fleet.clear(net.host(2)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fleet.move_to(0, Ipv4Addr::new(192, 168, 1, 1)).unwrap_err().kind(), ErrorKind::InvalidInput);
    let plug = |address| PlugSpec::new(Model::Kp115, address, 1);
    let error = Fleet::start(FleetSpec::new(vec![plug(address)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("{address}:9999")) && error.to_string().contains("choose another"));
    let error = Fleet::start(FleetSpec::new(vec![plug(Ipv4Addr::new(10, 0, 0, 1))])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let twice = Fleet::start(FleetSpec::new(vec![plug(net.host(3)), plug(net.host(3))])).unwrap_err();
    assert!(twice.to_string().contains("two plugs"));
}

#[test]
fn addresses_are_free_again_when_the_fleet_is_dropped() {
    let net = test_net(10).unwrap();
    let spec = net.fleet(vec![PlugSpec::new(Model::Kp115, net.host(1), 1)]);
    for _ in 0..5 {
        let fleet = Fleet::start(spec.clone()).unwrap();
        let mut client = Client::connect(net.host(1)).unwrap();
        client.ask(SYSINFO).unwrap();
        drop(fleet);
        assert!(client.rest().1);
        assert_eq!(refusal(net.host(1)), Some(ErrorKind::ConnectionRefused));
    }
}

#[test]
fn a_frozen_fleet_says_the_same_every_time() {
    let net = test_net(11).unwrap();
    let power = Milliwatts::new(41_237).unwrap();
    let plugs = vec![
        PlugSpec::new(Model::Hs110V1, net.host(1), 1).constant(power),
        PlugSpec::new(Model::Hs300, net.host(2), 1).loads(&[Load::Kettle]),
    ];
    let fleet = Fleet::start(FleetSpec { pace: Pace::Frozen(Duration::from_secs(60)), ..net.fleet(plugs) }).unwrap();
    for host in [1, 2] {
        let mut client = Client::connect(net.host(host)).unwrap();
        let first = client.ask(REALTIME).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.ask(REALTIME).unwrap(), first);
    }
    let ledger = fleet.ledger();
    assert_eq!(ledger.iter().next().unwrap().reading.power, power);
    assert_eq!(ledger.iter().last().unwrap().reading.device.to_string(), format!("{}.0", fleet.plugs()[1].mac));
}

#[test]
fn a_thousand_plugs_run_on_one_thread() {
    // A /16 that test_net never gives out, different for processes that run at the same time.
    let base = Ipv4Addr::new(127, 10 + u8::try_from(std::process::id() % 50).unwrap(), 0, 1);
    let spec = FleetSpec::mixed(1_000, base, 1).unwrap();
    let discovery = spec.discovery.unwrap();
    let fleet = Fleet::start(spec).unwrap();
    let mut clients: Vec<_> = fleet.plugs().iter().map(|plug| Client::connect(plug.address).unwrap()).collect();
    for client in &mut clients {
        client.send(SYSINFO);
    }
    for client in &mut clients {
        assert_eq!(client.receive().unwrap()["system"]["get_sysinfo"]["err_code"], json!(0));
    }
    assert_eq!(fleet.total().requests, 1_000);
    // Datagrams may get lost on a loaded machine, as they do elsewhere.
    assert!(discover(discovery, 1_000, Duration::from_secs(3)).len() > 500);
}
