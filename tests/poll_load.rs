//! Two hundred plugs, forty of them dead from the start in five ways: the others are read on time. And a disk that does
//! not answer holds up neither a poll nor a request, nor does it fill memory.
//!
//! `cargo test --release --test poll_load -- --ignored --nocapture` is the same at the real pace, for figures.

mod common;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use common::slow_disk::SlowDisk;
use common::{House, quick};
use http_body_util::BodyExt as _;
use smol::{LocalExecutor, Timer};
use wattd::clock::{Clock, SystemClock};
use wattd::http::App;
use wattd::limits;
use wattd::plug::discovery::{self, Ports};
use wattd::plug::keyring::Keyring;
use wattd::plug::{Patience, Tcp, Transport, xor};
use wattd::poll::backoff::Pauses;
use wattd::poll::fleet::Fleet as Picture;
use wattd::poll::requests::Requests;
use wattd::poll::{Poller, Settings, Sink, World};
use wattd::reading::{DeviceId, Mac, PlugFacts, Reading};
use wattd::sim::{Fault, Fleet, Load, Model, PlugSpec, TestNet, test_net};
use wattd::store::{Keeping, Store};
use wattd::units::{Milliwatts, UnixMillis};

const PLUGS: u8 = 200;

/// The real network, but for some addresses to which connecting never ends, as to a host that drops packets.
struct Holes(Vec<Ipv4Addr>);

impl Transport for Holes {
    type Stream = <Tcp as Transport>::Stream;

    async fn connect(&self, to: SocketAddr) -> io::Result<Self::Stream> {
        if self.0.iter().any(|hole| to.ip() == *hole) {
            return std::future::pending().await;
        }
        Tcp.connect(to).await
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn remember(&self, _: &PlugFacts, _: SocketAddr) {}
    fn append(&self, _: DeviceId, _: Reading, _: Duration) {}
    fn gap(&self, _: DeviceId, _: UnixMillis) {}
}

/// Every fifth plug is dead, in turn in each way.
fn fault(n: u8) -> Option<Option<Fault>> {
    let ways = [Some(Fault::Silence), Some(Fault::Refuse), None, Some(Fault::Drip), Some(Fault::Close)];
    n.is_multiple_of(5).then(|| ways[usize::from(n / 5 % 5)])
}

/// Runs the fleet at `interval` until each live plug has been read `rounds` times, and reports how late polls were.
fn run(net: &TestNet, interval: Duration, timeout: Duration, rounds: u64) {
    let spec = |n: u8| PlugSpec::new(Model::Kp115, net.host(n + 1), u64::from(n)).loads(&[Load::Fridge]);
    let plugs = Fleet::start(net.fleet((0..PLUGS).map(spec).collect())).unwrap();
    for n in 0..PLUGS {
        if let Some(Some(fault)) = fault(n) {
            plugs.set_fault(usize::from(n), fault).unwrap();
        }
    }
    let live: Vec<Mac> =
        (0..PLUGS).filter(|n| fault(*n).is_none()).map(|n| plugs.plugs()[usize::from(n)].mac).collect();
    assert_eq!(live.len(), 160);
    let settings = Settings {
        interval,
        strip_interval: interval,
        min_interval: interval / 2,
        adaptive: None,
        in_flight: 16,
        pauses: Pauses { first: timeout, last: timeout * 60 },
        patience: Patience { exchange: timeout, poll: timeout * 3 },
        discover_every: Some(30 * interval),
        targets: vec![net.broadcast()],
        port: xor::PORT,
        // The dead that answer no probe are known by their addresses.
        pinned: (0..PLUGS).map(|n| (net.host(n + 1).into(), None)).collect(),
        seed: 1,
    };
    let holes = (0..PLUGS).filter(|n| fault(*n) == Some(None)).map(|n| net.host(n + 1)).collect();
    let executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.clone().run(async {
        let picture: Rc<RefCell<Picture>> = Rc::default();
        let clock = Rc::new(SystemClock::start());
        let world = World {
            executor: executor.clone(),
            clock: clock.clone(),
            transport: Rc::new(Holes(holes)),
            keys: Rc::new(Keyring::new(None)),
            fleet: picture.clone(),
            sink: Rc::new(Nowhere),
            requests: Requests::default(),
            ready: Rc::<Cell<bool>>::default(),
            stats: Rc::default(),
        };
        let discovery = discovery::open(Ports { iot: settings.port, ..Ports::REAL }).await.unwrap();
        let _polling = executor.spawn(Poller::new(settings, world, Some(discovery)).run());
        let answered = |mac: &Mac| picture.borrow().get(*mac).map_or(0, |plug| plug.polls.answered);
        // Each has its first answer before the dead have had theirs three times over.
        let mut first = None;
        loop {
            Timer::after(Duration::from_millis(20)).await;
            let fewest = live.iter().map(answered).min().unwrap();
            if fewest > 0 && first.is_none() {
                first = Some(clock.elapsed());
            }
            if fewest >= rounds {
                break;
            }
            assert!(clock.elapsed() < interval * (rounds as u32 * 3 + 30), "{fewest} of {rounds} rounds");
        }
        let took = clock.elapsed();
        let lateness = picture.borrow().lateness;
        println!(
            "200 plugs at {interval:?}, 40 dead, timeout {timeout:?}: all 160 met after {:.1?}; in {took:.1?} {} polls, \
             p50 {:.0?}, p99 {:.0?}, p99.9 {:.0?}, worst {:.0?} late",
            first.unwrap(),
            lateness.polls,
            lateness.quantile(500),
            lateness.quantile(990),
            lateness.quantile(999),
            lateness.worst
        );
        assert!(lateness.quantile(990) < Duration::from_millis(500), "{lateness:?}");
        let polls: u64 = live.iter().map(answered).sum();
        let due = took.as_secs_f64() / interval.as_secs_f64() * 160.0;
        assert!(polls as f64 > due * 0.7, "{polls} polls, {due:.0} were due");
    }));
    let seen = plugs.total();
    assert!(seen.max_in_flight <= 1, "{seen:?}");
}

#[test]
fn forty_dead_plugs_in_five_ways_delay_nobody() {
    run(&test_net(0).unwrap(), Duration::from_secs(1), Duration::from_millis(500), 8);
}

#[test]
#[ignore = "two minutes, for figures"]
fn forty_dead_plugs_in_five_ways_delay_nobody_at_the_real_pace() {
    run(&test_net(0).unwrap(), Duration::from_secs(10), Duration::from_secs(5), 20);
}

#[test]
fn what_falls_silent_at_once_delays_nobody_else_and_returns_when_it_answers_probes() {
    let net = test_net(0).unwrap();
    let spec = |n: u8| PlugSpec::new(Model::Kp115, net.host(n + 1), u64::from(n));
    let plugs = Fleet::start(net.fleet((0..60).map(spec).collect())).unwrap();
    let macs: Vec<Mac> = plugs.plugs().iter().map(|plug| plug.mac).collect();
    let (away, there) = macs.split_at(48);
    let mut settings = quick(net.broadcast());
    settings.interval = Duration::from_secs(1);
    settings.in_flight = 8;
    settings.patience = Patience { exchange: Duration::from_secs(2), poll: Duration::from_secs(2) };
    // Whoever waited out a pause would come back too late for this test.
    settings.pauses = Pauses { first: Duration::from_secs(60), last: Duration::from_secs(300) };
    House::run(settings, async |house| {
        let answered = |mac: &Mac| house.fleet.borrow().get(*mac).map_or(0, |plug| plug.polls.answered);
        house.until("all to be read", || macs.iter().all(|mac| answered(mac) >= 2)).await;
        for n in 0..away.len() {
            plugs.set_fault(n, Fault::Silence).unwrap();
        }
        let (before, start) = (there.iter().map(answered).sum::<u64>(), house.now());
        let is_missed = |mac: &Mac| house.plug(*mac).polls.failed > 0;
        house.until("all 48 to be missed", || away.iter().all(is_missed)).await;
        // 48 timeouts of 2 s on 6 places: those that answer have had their turns in the meantime.
        let (polls, took) = (there.iter().map(answered).sum::<u64>() - before, house.now() - start);
        println!(
            "48 of 60 missed after {took:.1?}; the other 12 were read {polls} times; {:?}",
            house.fleet.borrow().lateness
        );
        assert!(polls >= 12 * (took.as_secs() / 4), "{polls} polls in {took:?}");
        let seen: Vec<u64> = away.iter().map(answered).collect();
        for n in 0..away.len() {
            plugs.clear(n).unwrap();
        }
        let start = house.now();
        house.until("all to be back", || away.iter().zip(&seen).all(|(mac, seen)| answered(mac) > *seen)).await;
        println!("all 48 back {:.1?} after they answer again", house.now() - start);
        for mac in away {
            let outages = house.plug(*mac).outages;
            assert!(outages.count == 1 && !outages.is_open(), "{outages:?}");
        }
    });
}

/// What `/api/v1/latest` says, through the whole of the HTTP interface but its socket.
async fn latest(house: &House, query: &str) -> serde_json::Value {
    let app = App {
        requests: house.requests.clone(),
        ready: house.ready.clone(),
        ..App::local(house.store.clone(), house.fleet.clone(), house.clock.clone())
    };
    let request = hyper::Request::get(format!("/api/v1/latest{query}")).header("host", "127.0.0.1");
    let (head, ()) = request.body(()).unwrap().into_parts();
    let body = app.handle(&head).await.into_body();
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

#[test]
fn a_reading_is_as_young_as_was_asked_for_and_the_plug_is_asked_once() {
    let net = test_net(0).unwrap();
    let plugs = Fleet::start(net.fleet(vec![PlugSpec::new(Model::Kp115, net.host(1), 1)])).unwrap();
    let id = DeviceId::plug(plugs.plugs()[0].mac);
    let mut settings = quick(net.broadcast());
    settings.interval = Duration::from_secs(60);
    settings.min_interval = Duration::from_millis(300);
    House::run(settings, async |house| {
        house.until_read(&[id], 1).await;
        let first = house.store.latest(id).unwrap();
        let asked = plugs.counters(0).requests;
        let old = latest(&house, "?max_age=1m").await;
        assert_eq!(old["readings"][0]["time"], first.time.to_string(), "young enough: answered from memory");
        let all = (0..20).map(|_| {
            let house = house.clone();
            smol::LocalExecutor::spawn(&house.executor.clone(), async move { latest(&house, "?max_age=0s").await })
        });
        for answer in all.collect::<Vec<_>>() {
            let answer = answer.await;
            assert_ne!(answer["readings"][0]["time"], first.time.to_string(), "{answer}");
            assert!(answer["readings"][0]["age_ms"].as_u64().unwrap() < 2_000, "{answer}");
        }
        assert_eq!(plugs.counters(0).requests, asked + 1, "many wishes, one request");
        assert_eq!(plugs.counters(0).connections, 1);
    });
}

#[test]
fn polls_and_newest_values_go_on_while_the_disk_holds_a_sync() {
    let net = test_net(0).unwrap();
    let plugs = Fleet::start(net.fleet(vec![PlugSpec::new(Model::Kp115, net.host(1), 1)])).unwrap();
    let id = DeviceId::plug(plugs.plugs()[0].mac);
    let disk = SlowDisk::default();
    House::run_on(disk.clone().into_disk(), quick(net.broadcast()), async |house| {
        house.until_read(&[id], 2).await;
        disk.block();
        let store = house.store.clone();
        let committing = house.executor.spawn(async move { store.commit(UnixMillis::MIN).await });
        house.until("the commit to reach the disk", || disk.waits()).await;
        let worst = house.fleet.borrow().lateness.worst;
        house.until_read(&[id], 10).await;
        house.requests.freshen([id.plug], house.clock.as_ref()).await;
        let newest = latest(&house, "").await;
        assert_eq!(newest["readings"][0]["online"], true, "{newest}");
        assert!(!committing.is_finished() && disk.waits());
        assert!(house.fleet.borrow().lateness.worst < worst + Duration::from_secs(2));
        disk.release();
        assert!(committing.await.unwrap() >= 2);
    });
}

#[test]
fn a_disk_that_takes_nothing_fills_no_memory_and_the_oldest_of_the_same_plug_go_first() {
    let disk = SlowDisk::default();
    let store = Rc::new(Store::open(disk.clone().into_disk(), Keeping::default()).unwrap());
    let ids: Vec<_> = (0..3).map(|n| DeviceId::plug(Mac::new([1, 2, 3, 4, 5, n]))).collect();
    let reading = |n: usize| Reading {
        time: UnixMillis::new(n as i64 * 10),
        power: Milliwatts::new(n as i64).unwrap(),
        voltage: None,
        current: None,
        counter: None,
        relay: None,
    };
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        disk.block();
        store.append(ids[0], reading(0), Duration::from_secs(10));
        let committing = executor.spawn({
            let store = store.clone();
            async move { store.commit(UnixMillis::MIN).await }
        });
        while !disk.waits() {
            smol::future::yield_now().await;
        }
        // One plug that talks much, and one that said three things long ago: those stay.
        (1..4).for_each(|n| store.append(ids[1], reading(n), Duration::from_secs(10)));
        let most = limits::PENDING_READINGS;
        let all = most + 2_000;
        (4..all).for_each(|n| store.append(ids[2], reading(n), Duration::from_secs(10)));
        let figures = store.figures();
        assert_eq!(figures.pending, most + 1, "what waits, and the batch under way");
        assert_eq!(figures.dropped as usize, all - 1 - most);
        assert_eq!(store.latest(ids[2]).unwrap(), reading(all - 1), "the newest is served");
        disk.release();
        committing.await.unwrap();
        while store.figures().pending > 0 {
            store.commit(UnixMillis::MIN).await.unwrap();
        }
        assert_eq!(store.figures().readings as usize, most + 1);
        let scan = |id| wattd::store::Scan {
            devices: vec![store.number(id).unwrap()],
            from: UnixMillis::MIN,
            to: UnixMillis::MAX,
            order: wattd::store::Order::Ascending,
            after: None,
            limit: 10,
            columns: wattd::store::chunk::Columns::ALL,
        };
        let rows = store.scan(scan(ids[1])).await.unwrap().rows;
        assert_eq!(rows.iter().map(|row| row.reading.power.get()).collect::<Vec<_>>(), [1, 2, 3]);
        let oldest = store.scan(scan(ids[2])).await.unwrap().rows[0].reading;
        assert_eq!(oldest, reading(4 + (all - 1 - most)));
    }));
}
