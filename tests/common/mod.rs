//! A house for tests: simulated plugs on loopback addresses of their own, the real poll loop over real sockets, a real
//! store in a temporary directory, all at a quick pace.
#![allow(dead_code)] // each test file uses a part

pub mod server;
pub mod slow_disk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use smol::{LocalExecutor, Task, Timer};
use wattd::clock::{Clock, SystemClock};
use wattd::plug::discovery::{self, Ports};
use wattd::plug::keyring::Keyring;
use wattd::plug::{Patience, Tcp, xor};
use wattd::poll::backoff::Pauses;
use wattd::poll::fleet::{Fleet, Plug};
use wattd::poll::requests::Requests;
use wattd::poll::{Poller, Settings, Sink, World};
use wattd::reading::{DeviceId, Mac, PlugFacts, Reading};
use wattd::sim;
use wattd::store::chunk::Columns;
use wattd::store::{self, Keeping, Order, Row, Scan, Store};
use wattd::units::UnixMillis;

thread_local! {
    static LINES: RefCell<Vec<(log::Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what each test's thread logs.
struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("wattd::poll") {
            LINES.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
        }
    }

    fn flush(&self) {}
}

/// What this test's thread has logged at `level`, of those that name `what`.
pub fn logged(level: log::Level, what: &str) -> Vec<String> {
    let wanted = |(l, line): &&(log::Level, String)| *l == level && line.contains(what);
    LINES.with_borrow(|lines| lines.iter().filter(wanted).map(|(_, line)| line.clone()).collect())
}

/// The whole house.
pub struct House {
    pub executor: Rc<LocalExecutor<'static>>,
    pub clock: Rc<SystemClock>,
    pub store: Rc<Store>,
    pub fleet: Rc<RefCell<Fleet>>,
    pub ready: Rc<Cell<bool>>,
    pub requests: Requests,
    keys: Rc<Keyring>,
    polling: Option<Task<()>>,
}

struct Recorder(Rc<Store>, Rc<SystemClock>);

impl Sink for Recorder {
    fn remember(&self, facts: &PlugFacts, address: std::net::SocketAddr) {
        self.0.remember(facts, address, self.1.wall());
    }

    fn append(&self, id: DeviceId, reading: Reading, interval: Duration) {
        self.0.append(id, reading, interval);
    }

    fn gap(&self, id: DeviceId, from: UnixMillis) {
        self.0.gap(id, from);
    }
}

/// A tenth of a second between polls, so that a test is over soon; patient enough for a loaded machine.
pub fn quick(target: std::net::Ipv4Addr) -> Settings {
    Settings {
        interval: Duration::from_millis(100),
        strip_interval: Duration::from_millis(200),
        min_interval: Duration::from_millis(50),
        adaptive: None,
        in_flight: 16,
        pauses: Pauses { first: Duration::from_millis(100), last: Duration::from_millis(400) },
        patience: Patience { exchange: Duration::from_millis(800), poll: Duration::from_secs(4) },
        discover_every: Some(Duration::from_secs(2)),
        targets: vec![target],
        port: xor::PORT,
        pinned: Vec::new(),
        seed: 1,
    }
}

impl House {
    /// Runs `test` in a house that polls by `settings`.
    pub fn run(settings: Settings, test: impl AsyncFnOnce(Rc<Self>)) {
        let dir = tempfile::tempdir().unwrap();
        Self::run_on(store::on_disk(store::path_in(dir.path())), settings, test);
    }

    /// The same with the keys to plugs that want a login.
    pub fn run_with(keys: Keyring, settings: Settings, test: impl AsyncFnOnce(Rc<Self>)) {
        let dir = tempfile::tempdir().unwrap();
        Self::run_all(keys, store::on_disk(store::path_in(dir.path())), settings, test);
    }

    /// The same on a disk of the test's own.
    pub fn run_on(disk: store::disk::Disk, settings: Settings, test: impl AsyncFnOnce(Rc<Self>)) {
        Self::run_all(Keyring::new(None), disk, settings, test);
    }

    fn run_all(keys: Keyring, disk: store::disk::Disk, settings: Settings, test: impl AsyncFnOnce(Rc<Self>)) {
        let _ = log::set_logger(&Keeper).map(|()| log::set_max_level(log::LevelFilter::Debug));
        let executor = Rc::new(LocalExecutor::new());
        let house = Self {
            executor: executor.clone(),
            clock: Rc::new(SystemClock::start()),
            store: Rc::new(Store::open(disk, Keeping::default()).unwrap()),
            fleet: Rc::default(),
            ready: Rc::default(),
            requests: Requests::default(),
            keys: Rc::new(keys),
            polling: None,
        };
        smol::block_on(executor.run(async {
            let mut house = house;
            house.polling = Some(house.start(settings).await);
            test(Rc::new(house)).await;
        }));
    }

    async fn start(&self, settings: Settings) -> Task<()> {
        let world = World {
            executor: self.executor.clone(),
            clock: self.clock.clone(),
            transport: Rc::new(Tcp),
            keys: self.keys.clone(),
            fleet: self.fleet.clone(),
            sink: Rc::new(Recorder(self.store.clone(), self.clock.clone())),
            requests: self.requests.clone(),
            ready: self.ready.clone(),
            stats: Rc::default(),
        };
        let discovery = discovery::open(Ports { iot: settings.port, ..Ports::REAL }).await.unwrap();
        self.executor.spawn(Poller::new(settings, world, Some(discovery)).run())
    }

    /// Time since the house began.
    pub fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Waits until `condition` holds; fails the test after half a minute.
    pub async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let patience = self.now() + Duration::from_secs(30);
        while !condition() {
            assert!(self.now() < patience, "waited in vain: {what}");
            Timer::after(Duration::from_millis(5)).await;
        }
    }

    /// Waits until each of `ids` has `more` readings more than now.
    pub async fn until_read(&self, ids: &[DeviceId], more: usize) {
        let mut last: BTreeMap<DeviceId, (Option<UnixMillis>, usize)> = BTreeMap::new();
        self.until(&format!("{more} more readings of {ids:?}"), || {
            // Every one is looked at each time, so that no reading slips by.
            let seen = ids.iter().map(|id| {
                let newest = self.store.latest(*id).map(|reading| reading.time);
                let (seen, count) = last.entry(*id).or_insert((newest, 0));
                if *seen != newest {
                    (*seen, *count) = (newest, *count + 1);
                }
                *count
            });
            seen.min().unwrap_or(more) >= more
        })
        .await;
    }

    /// The live picture of a plug.
    pub fn plug(&self, mac: Mac) -> Plug {
        self.fleet.borrow().get(mac).unwrap().clone()
    }

    /// All readings of a device, oldest first.
    pub async fn readings(&self, id: DeviceId) -> Vec<Reading> {
        let Some(number) = self.store.number(id) else { return Vec::new() };
        let mut scan = Scan {
            devices: vec![number],
            from: UnixMillis::MIN,
            to: UnixMillis::MAX,
            order: Order::Ascending,
            after: None,
            limit: 10_000,
            columns: Columns::ALL,
        };
        let mut rows = Vec::new();
        loop {
            let page = self.store.scan(scan.clone()).await.unwrap();
            scan.after = page.rows.last().map(Row::position);
            rows.extend(page.rows.into_iter().map(|row| row.reading));
            if !page.more {
                return rows;
            }
        }
    }

    /// Everything recorded was served, in a whole reply, in this order, and is recorded once.
    pub async fn assert_all_was_served(&self, plugs: &sim::Fleet) {
        let ledger = plugs.ledger();
        assert_eq!(ledger.len() as u64, ledger.served(), "the ledger must hold everything");
        for device in self.store.devices() {
            let id = device.record.id;
            let mut served = ledger.iter().map(|entry| entry.reading).filter(|reading| reading.device == id);
            for reading in self.readings(id).await {
                // Not every plug says all of it.
                let same = |s: &sim::ServedReading| {
                    s.power == reading.power
                        && reading.voltage.is_none_or(|voltage| voltage == s.voltage)
                        && reading.current.is_none_or(|current| current == s.current)
                        && reading.counter.is_none_or(|counter| counter == s.counter)
                        && reading.relay.is_none_or(|relay| relay == s.relay)
                };
                assert!(served.any(|s| same(&s)), "{id}: {reading:?} was never served");
            }
        }
    }
}
