//! A server on a real socket with a fridge and a strip behind it, a clock moved by hand, and the way to talk to it byte by
//! byte.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use async_net::{TcpListener, TcpStream};
use serde_json::Value;
use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use wattd::clock::ManualClock;
use wattd::http::access::Access;
use wattd::http::{App, serve};
use wattd::poll::fleet::{Fleet, Presence, Trouble};
use wattd::reading::{Alias, DeviceId, Mac, OutletFacts, PlugFacts, Protocol, Reading, Relay, Text};
use wattd::store::{Keeping, Store, on_disk, path_in};
use wattd::units::{Millivolts, MilliwattHours, Milliwatts, UnixMillis};

pub const NOW: i64 = 1_795_423_474_120; // 2026-11-23T08:44:34.120Z
pub const FRIDGE: DeviceId = DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, 1]));
pub const STRIP: Mac = Mac::new([0x9c, 0x53, 0x22, 0, 0, 2]);
pub const LEFT: DeviceId = DeviceId::outlet(STRIP, 0);
pub const RIGHT: DeviceId = DeviceId::outlet(STRIP, 1);

/// A server, everything behind it, and the way to talk to it.
pub struct World {
    pub executor: Rc<LocalExecutor<'static>>,
    pub app: Rc<App>,
    pub clock: Rc<ManualClock>,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn code(&self) -> String {
        let json = self.json();
        assert!(json["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
        assert!(json["error"]["hint"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
        json["error"]["code"].as_str().unwrap().to_owned()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub fn facts(mac: Mac, alias: &str, outlets: &[&str]) -> PlugFacts {
    PlugFacts {
        mac,
        alias: Alias::new(alias),
        model: Text::new("HS110(EU)"),
        hardware: Text::new("1.0"),
        firmware: Text::new("1.2.6"),
        protocol: Protocol::IotXor,
        has_meter: true,
        outlets: outlets.iter().map(|alias| OutletFacts { alias: Alias::new(alias), child: Text::new("00") }).collect(),
    }
}

pub fn reading(time: i64, milliwatts: i64) -> Reading {
    Reading {
        time: UnixMillis::new(time),
        power: Milliwatts::new(milliwatts).unwrap(),
        voltage: Some(Millivolts::new(231_400).unwrap()),
        current: None,
        counter: Some(MilliwattHours::new(8_123_000).unwrap()),
        relay: Some(Relay::On),
    }
}

/// Runs `test` against a server with a fridge and a strip; the strip is offline.
pub fn with_server<F: Future<Output = ()>>(access: Access, test: impl FnOnce(Rc<World>) -> F) {
    with_app(|app| App { access, ..app }, test);
}

/// The same with an interface that `change` has changed.
pub fn with_app<F: Future<Output = ()>>(change: impl FnOnce(App) -> App, test: impl FnOnce(Rc<World>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let store = Rc::new(Store::open(on_disk(path_in(dir.path())), Keeping::default()).unwrap());
    let clock = Rc::new(ManualClock::at(UnixMillis::new(NOW)));
    let mut fleet = Fleet::default();
    for facts in [facts(FRIDGE.plug, "Fridge <b>", &[]), facts(STRIP, "Desk", &["Left", "Right"])] {
        let address: SocketAddr = format!("192.168.1.{}:9999", facts.mac.bytes()[5]).parse().unwrap();
        store.remember(&facts, address, UnixMillis::new(NOW - 90_000_000));
        let mac = facts.mac;
        fleet.meet(facts, address, None).interval = Duration::from_secs(10);
        fleet.get_mut(mac).unwrap().presence = Presence::Online;
    }
    let strip = fleet.get_mut(STRIP).unwrap();
    strip.presence = Presence::Offline { since: UnixMillis::new(NOW - 60_000) };
    strip.last_error = Some(Trouble { time: UnixMillis::new(NOW - 50_000), text: "no answer within 5 s".to_owned() });
    fleet.expect("192.168.1.77:9999".parse().unwrap(), Some(Alias::new("Boiler")));
    let app = Rc::new(change(App {
        zone: jiff::tz::TimeZone::get("Europe/Berlin").unwrap(),
        ..App::local(store, Rc::new(RefCell::new(fleet)), clock.clone())
    }));
    let executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.clone().run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = executor.spawn(serve(executor.clone(), listener, app.clone(), std::future::pending()));
        test(Rc::new(World { executor: executor.clone(), app, clock, address, dir })).await;
        server.cancel().await;
    }));
}

pub fn local() -> Access {
    Access { loopback: true, ..Access::default() }
}

impl World {
    /// Sends bytes, reads until the server closes.
    pub async fn raw(&self, bytes: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        parse(&all)
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, "").await
    }

    pub async fn ask(&self, method: &str, target: &str, headers: &str) -> Answer {
        self.raw(&format!("{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n")).await
    }

    pub fn append(&self, id: DeviceId, time: i64, milliwatts: i64) {
        self.app.store.append(id, reading(time, milliwatts), Duration::from_secs(10));
    }

    pub async fn commit(&self) {
        self.app.store.commit(UnixMillis::MIN).await.unwrap();
    }
}

pub fn parse(all: &[u8]) -> Answer {
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {all:?}"));
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: all[end + 4..].to_vec() };
    if answer.header("transfer-encoding") == Some("chunked") && !answer.body.is_empty() {
        answer.body = unchunk(&answer.body).expect("a whole chunked body");
    }
    answer
}

/// The body of a chunked reply. None when it breaks off.
pub fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        bytes = &bytes[end + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend(bytes.get(..length)?);
        bytes = bytes.get(length + 2..)?;
    }
}
