//! The simulator's plugs that want a login, on real sockets and by the client's own codecs: what its tests rely on when
//! they blame a monitor.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a helper of a test may fail as loudly as the test itself

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use wattd::plug::klap::Hashes;
use wattd::plug::session::{Login, Reply, Request, Seed, Session, SessionError, Step, Whose};
use wattd::plug::tdp::{self, Way};
use wattd::reading::Protocol;
use wattd::sim::{Fault, Fleet, Model, PlugSpec, TestNet, account, test_net};

/// Long enough for a loaded machine; only a bug waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to tell silence from an answer.
const SHORT: Duration = Duration::from_millis(400);

struct Http(TcpStream);

impl Http {
    fn connect(fleet: &Fleet, address: Ipv4Addr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((address, fleet.http_port())), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    fn send(&mut self, request: &Request) -> std::io::Result<()> {
        let mut head = format!("POST {} HTTP/1.1\r\nHost: plug\r\n", request.path);
        head += &format!("Content-Type: {}\r\nContent-Length: {}\r\n", request.content_type, request.body.len());
        for (name, value) in request.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(cookie) = &request.cookie {
            head += &format!("Cookie: {cookie}\r\n");
        }
        self.0.write_all(&[head.as_bytes(), b"\r\n", &request.body].concat())
    }

    fn receive(&mut self) -> std::io::Result<Reply> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = header("Content-Length: ").unwrap().parse().unwrap();
        if length > 65_536 {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let status = head[9..12].parse().unwrap();
        Ok(Reply::new(status, header("Set-Cookie: ").map(str::as_bytes), body))
    }

    fn post(&mut self, request: &Request) -> std::io::Result<Reply> {
        self.send(request)?;
        self.receive()
    }

    fn ask(&mut self, session: &mut Session, plain: &str) -> Result<Value, SessionError> {
        let request = session.seal(plain.as_bytes()).unwrap();
        let reply = self.post(&request).unwrap();
        session.open(&reply).map(|plain| serde_json::from_slice(&plain).unwrap())
    }
}

fn start(protocol: Protocol) -> (Login, Request) {
    let (account, seed) = (account(), Seed::new([5; 32]));
    match protocol {
        Protocol::IotKlap | Protocol::SmartKlap => Login::klap(Some(&account), &seed),
        Protocol::SmartTpap => Login::tpap(Some(&account), &seed).unwrap(),
        #[cfg(feature = "aes-passthrough")]
        Protocol::SmartAes => {
            use std::sync::LazyLock;
            use wattd::plug::aes::RunKey;
            static KEY: LazyLock<RunKey> = LazyLock::new(|| RunKey::generate(&Seed::new([6; 32])).unwrap());
            Login::aes(Some(&account), &KEY, wattd::units::UnixMillis::new(1))
        }
        other => panic!("{other} has no login"),
    }
}

fn login(http: &mut Http, protocol: Protocol) -> Result<Session, SessionError> {
    let (mut login, mut request) = start(protocol);
    loop {
        match login.hear(&http.post(&request).unwrap())? {
            Step::Send(next, sent) => (login, request) = (next, sent),
            Step::Ready(session) => return Ok(session),
        }
    }
}

fn one(model: Model, protocol: Protocol) -> (TestNet, Fleet, Ipv4Addr) {
    let net = test_net(7).unwrap();
    let address = net.host(1);
    let spec = PlugSpec::new(model, address, 1).protocol(protocol);
    let fleet = Fleet::start(net.fleet(vec![spec])).unwrap();
    (net, fleet, address)
}

/// Asks by UDP and gathers who announces what, until `wanted` have or nothing comes for a while.
fn discover(to: Ipv4Addr, port: u16, wanted: usize) -> Vec<(SocketAddr, tdp::Announcement)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(if wanted == 0 { SHORT } else { PATIENCE })).unwrap();
    socket.send_to(&tdp::probe(), (to, port)).unwrap();
    let (mut found, mut buffer) = (Vec::new(), [0; 65_536]);
    while found.len() < wanted.max(1) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
        found.push((from, tdp::parse(&buffer[..length]).unwrap()));
    }
    found
}

const EMETER: &str = r#"{"method":"get_emeter_data"}"#;
const USAGE: &str = r#"{"method":"get_energy_usage"}"#;
const REALTIME: &str = r#"{"emeter":{"get_realtime":{}}}"#;

fn protocols() -> Vec<(Model, Protocol, Hashes, &'static str)> {
    let mut all = vec![
        (Model::Kp115, Protocol::IotKlap, Hashes::V1, REALTIME),
        (Model::Kp115, Protocol::IotKlap, Hashes::V2, REALTIME),
        (Model::Kp115, Protocol::IotKlap, Hashes::Mixed, REALTIME),
        (Model::P110, Protocol::SmartKlap, Hashes::V2, EMETER),
        (Model::Kp125m, Protocol::SmartTpap, Hashes::V2, EMETER),
    ];
    if cfg!(feature = "aes-passthrough") {
        all.push((Model::P110V1, Protocol::SmartAes, Hashes::V2, USAGE));
    }
    all
}

#[test]
fn every_protocol_is_served_and_counted() {
    let net = test_net(8).unwrap();
    let plugs: Vec<_> = protocols()
        .iter()
        .zip(1..)
        .map(|((model, protocol, hashes, _), n)| {
            PlugSpec::new(*model, net.host(n), n.into()).protocol(*protocol).hashes(*hashes)
        })
        .collect();
    let fleet = Fleet::start(net.fleet(plugs.clone())).unwrap();
    for (plug, (_, protocol, _, question)) in plugs.iter().zip(protocols()) {
        let mut http = Http::connect(&fleet, plug.address).unwrap();
        let mut session = login(&mut http, protocol).unwrap();
        assert_eq!(session.whose(), Whose::Account);
        for _ in 0..3 {
            let answer = http.ask(&mut session, question).unwrap();
            let served = fleet.ledger().iter().last().unwrap().reading;
            let power = match question {
                EMETER => &answer["result"]["power_mw"],
                USAGE => &answer["result"]["current_power"],
                _ => &answer["emeter"]["get_realtime"]["power_mw"],
            };
            assert_eq!((power.as_u64(), served.device.plug), (Some(served.power.get().into()), plug.mac), "{protocol}");
        }
        let counters = fleet.counters(plug.address);
        assert_eq!((counters.connections, counters.max_in_flight, counters.handshakes), (1, 1, 1), "{protocol}");
        assert_eq!((counters.logins_refused, counters.writes_seen), (0, 0), "{protocol}");
        assert!(counters.closest.is_some_and(|gap| gap < PATIENCE));
    }
}

#[test]
fn each_plug_announces_itself_from_its_own_address() {
    let net = test_net(9).unwrap();
    let mut plugs: Vec<_> = protocols()
        .iter()
        .zip(1..)
        .map(|((model, protocol, ..), n)| PlugSpec::new(*model, net.host(n), n.into()).protocol(*protocol))
        .collect();
    let xor = net.host(100);
    plugs.push(PlugSpec::new(Model::Kp115, xor, 9));
    let fleet = Fleet::start(net.fleet(plugs.clone())).unwrap();
    for port in tdp::PORTS {
        let found = discover(net.broadcast(), port, plugs.len() - 1);
        for plug in plugs.iter().filter(|plug| plug.address != xor) {
            let (_, announced) = found.iter().find(|(from, _)| from.ip() == plug.address).unwrap();
            assert_eq!((announced.mac, announced.is_owned_by(&account())), (plug.mac, Some(true)));
            assert_eq!(announced.way, Way::Known { protocol: plug.protocol, port: fleet.http_port() });
        }
    }
    assert!(discover(xor, tdp::PORTS[0], 0).is_empty(), "the old firmware listens on port 9999 alone");
    // What is no probe is not answered.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let mut damaged = tdp::probe();
    damaged[15] ^= 1;
    socket.send_to(&damaged, (net.host(1), tdp::PORTS[0])).unwrap();
    assert!(socket.recv_from(&mut [0; 2_048]).is_err());
}

#[test]
fn a_plug_without_an_owner_takes_the_default_credentials() {
    for (n, whose) in Whose::UNOWNED.into_iter().enumerate() {
        let net = test_net(10 + u32::try_from(n).unwrap()).unwrap();
        let plug = PlugSpec::new(Model::P110, net.host(1), 1).owner(whose);
        let fleet = Fleet::start(net.fleet(vec![plug])).unwrap();
        let mut http = Http::connect(&fleet, net.host(1)).unwrap();
        assert_eq!(login(&mut http, Protocol::SmartKlap).unwrap().whose(), whose);
    }
}

#[test]
fn firmware_changes_the_protocol_and_the_ports() {
    let (net, fleet, address) = one(Model::Kp115, Protocol::IotXor);
    let is_open = |port| TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE).is_ok();
    assert!(is_open(fleet.port()) && !is_open(fleet.http_port()));
    fleet.speak(address, Protocol::IotKlap).unwrap();
    assert!(!is_open(fleet.port()) && is_open(fleet.http_port()));
    let mut http = Http::connect(&fleet, address).unwrap();
    let mut session = login(&mut http, Protocol::IotKlap).unwrap();
    http.ask(&mut session, REALTIME).unwrap();
    assert!(fleet.speak(address, Protocol::SmartKlap).is_err(), "a dialect is for life");
    drop((fleet, net));

    let (_net, fleet, address) = one(Model::P110, Protocol::SmartKlap);
    fleet.speak(address, Protocol::SmartTpap).unwrap();
    let mut http = Http::connect(&fleet, address).unwrap();
    assert_eq!(login(&mut http, Protocol::SmartKlap).err(), Some(SessionError::OtherProtocol));
    assert!(login(&mut http, Protocol::SmartTpap).is_ok());
    fleet.speak(address, Protocol::SmartKlap).unwrap();
    let mut http = Http::connect(&fleet, address).unwrap();
    assert_eq!(login(&mut http, Protocol::SmartTpap).err(), Some(SessionError::OtherProtocol));
}

#[test]
fn a_sleeping_port_opens_after_a_probe() {
    let (_net, fleet, address) = one(Model::P110, Protocol::SmartKlap);
    fleet.set_fault(address, Fault::Asleep).unwrap();
    assert_eq!(Http::connect(&fleet, address).err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    assert_eq!(discover(address, tdp::PORTS[0], 1).len(), 1);
    assert!(login(&mut Http::connect(&fleet, address).unwrap(), Protocol::SmartKlap).is_ok());
}

#[test]
fn logins_and_sessions_fail_as_ordered() {
    for (model, protocol, _, question) in protocols().into_iter().skip(2) {
        let (_net, fleet, address) = one(model, protocol);
        let under = |fault| {
            fleet.set_fault(address, fault).unwrap();
            let failed = login(&mut Http::connect(&fleet, address).unwrap(), protocol).err();
            fleet.clear(address).unwrap();
            failed
        };
        assert_eq!(under(Fault::WrongPassword), Some(SessionError::WrongCredentials), "{protocol}");
        assert_eq!(under(Fault::LocalOff), Some(SessionError::OtherProtocol), "{protocol}");
        let locked = under(Fault::Locked).unwrap();
        assert_eq!(locked == SessionError::LockedOut, protocol == Protocol::SmartTpap, "{protocol}: {locked}");

        let mut http = Http::connect(&fleet, address).unwrap();
        let mut session = login(&mut http, protocol).unwrap();
        fleet.set_fault(address, Fault::SessionLost).unwrap();
        assert_eq!(http.ask(&mut session, question), Err(SessionError::SessionGone), "{protocol}");
        let mut session = login(&mut http, protocol).unwrap();
        assert!(http.ask(&mut session, question).is_ok(), "{protocol}");
        fleet.set_fault(address, Fault::WrongSignature).unwrap();
        let forged = http.ask(&mut session, question).unwrap_err();
        assert!(matches!(forged, SessionError::BadSignature | SessionError::Garbage { .. }), "{protocol}: {forged}");
        fleet.set_fault(address, Fault::NoSession).unwrap();
        let mut session = login(&mut http, protocol).unwrap();
        assert_eq!(http.ask(&mut session, question), Err(SessionError::SessionGone), "{protocol}");
    }
}

#[test]
fn the_wire_fails_as_ordered() {
    let (_net, fleet, address) = one(Model::P110, Protocol::SmartKlap);
    let under = |fault| {
        fleet.clear(address).unwrap();
        let mut http = Http::connect(&fleet, address).unwrap();
        let session = login(&mut http, Protocol::SmartKlap).unwrap();
        fleet.set_fault(address, fault).unwrap();
        (http, session)
    };
    let fails = |fault, wanted: &[ErrorKind]| {
        let (mut http, mut session) = under(fault);
        http.0.set_read_timeout(Some(SHORT)).unwrap();
        let request = session.seal(EMETER.as_bytes()).unwrap();
        let kind = http.post(&request).err().map(|error| error.kind());
        assert!(kind.is_some_and(|kind| wanted.contains(&kind)), "{fault}: {kind:?}");
    };
    use ErrorKind::{ConnectionReset, InvalidData, TimedOut, UnexpectedEof, WouldBlock};
    fails(Fault::Silence, &[WouldBlock, TimedOut]);
    fails(Fault::HalfThenSilence, &[WouldBlock, TimedOut]);
    fails(Fault::HalfThenClose, &[UnexpectedEof]);
    fails(Fault::HugeLength, &[InvalidData]);
    let opened = |fault| {
        let (mut http, mut session) = under(fault);
        http.ask(&mut session, EMETER)
    };
    assert!(matches!(opened(Fault::ZeroLength), Err(SessionError::Garbage { .. })));
    assert_eq!(opened(Fault::Garbage), Err(SessionError::BadSignature));
    assert_eq!(opened(Fault::Glitch).unwrap()["result"]["power_mw"], 20_000_000);

    // One reply and an end, and a reset where a second request comes.
    for (fault, wanted) in
        [(Fault::OneReply, [UnexpectedEof, ErrorKind::BrokenPipe]), (Fault::ResetReused, [ConnectionReset; 2])]
    {
        let (mut http, mut session) = under(fault);
        http.ask(&mut session, EMETER).unwrap();
        let request = session.seal(EMETER.as_bytes()).unwrap();
        let kind = http.post(&request).err().map(|error| error.kind());
        assert!(kind.is_some_and(|kind| wanted.contains(&kind) || kind == ConnectionReset), "{fault}: {kind:?}");
        // The session outlives the connection.
        let mut http = Http::connect(&fleet, address).unwrap();
        assert!(http.ask(&mut session, EMETER).is_ok(), "{fault}");
    }

    let (mut http, mut session) = under(Fault::SilentBatch);
    assert!(http.ask(&mut session, EMETER).is_ok());
    http.0.set_read_timeout(Some(SHORT)).unwrap();
    let batch = json!({"method": "multipleRequest", "params": {"requests": [{"method": "get_device_info"}]}});
    let request = session.seal(batch.to_string().as_bytes()).unwrap();
    assert!(http.post(&request).is_err());
}

#[test]
fn header_names_count_letter_by_letter() {
    let (_net, fleet, address) = one(Model::P110, Protocol::SmartKlap);
    let mut http = Http::connect(&fleet, address).unwrap();
    http.0
        .write_all(b"POST /app/handshake1 HTTP/1.1\r\nhost: plug\r\ncontent-length: 16\r\n\r\n0123456789abcdef")
        .unwrap();
    let reply = http.receive().unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 49), "the page that a browser gets");
    assert_eq!(http.receive().err().map(|error| error.kind()), Some(ErrorKind::UnexpectedEof));
}
