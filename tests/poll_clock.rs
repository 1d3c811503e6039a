//! The poll loop in virtual time, with plugs that are not there: its pace whatever the clocks do, wishes for newer
//! values, gaps, adaptive intervals. No socket, no waiting.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use smol::io::{AsyncRead, AsyncWrite};
use smol::{LocalExecutor, Task};
use wattd::clock::{Clock, ManualClock};
use wattd::limits;
use wattd::plug::keyring::Keyring;
use wattd::plug::{Patience, Transport, xor};
use wattd::poll::adaptive::Reason;
use wattd::poll::backoff::Pauses;
use wattd::poll::fleet::{Fleet, Plug, Presence};
use wattd::poll::requests::Requests;
use wattd::poll::{Poller, Settings, Sink, World};
use wattd::reading::{DeviceId, Mac, PlugFacts, Reading};
use wattd::sim::{Load, Model, PlugSpec, PlugState, Via, reply};
use wattd::units::{Milliwatts, UnixMillis};

const SECOND: Duration = Duration::from_secs(1);
const START: i64 = 1_795_423_474_000;

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    /// Connections are refused, open ones end.
    Off,
    /// Neither connections nor requests are ever answered.
    Hangs,
}

struct Fake {
    state: PlugState,
    mood: Mood,
    /// Counted up to end every open connection.
    era: u32,
    /// When requests came.
    asked: Vec<Duration>,
    open: u32,
    most_open: u32,
}

/// The network: plugs by address.
struct Net {
    clock: Rc<ManualClock>,
    plugs: RefCell<BTreeMap<IpAddr, Fake>>,
}

struct Wire {
    net: Rc<Net>,
    to: IpAddr,
    era: u32,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

/// Handed to the loop: `Transport` needs a type of its own.
struct Way(Rc<Net>);

impl Transport for Way {
    type Stream = Wire;

    async fn connect(&self, to: SocketAddr) -> io::Result<Wire> {
        let mood = self.0.plugs.borrow()[&to.ip()].mood;
        match mood {
            Mood::Hangs => std::future::pending().await,
            Mood::Off => Err(io::ErrorKind::ConnectionRefused.into()),
            Mood::Answers => {
                let mut plugs = self.0.plugs.borrow_mut();
                let plug = plugs.get_mut(&to.ip()).unwrap();
                plug.open += 1;
                plug.most_open = plug.most_open.max(plug.open);
                let (net, era) = (self.0.clone(), plug.era);
                Ok(Wire { net, to: to.ip(), era, input: Vec::new(), output: VecDeque::new() })
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.net.plugs.borrow_mut().get_mut(&self.to).unwrap().open -= 1;
    }
}

impl Wire {
    fn is_over(&self) -> bool {
        let plugs = self.net.plugs.borrow();
        plugs[&self.to].era != self.era || plugs[&self.to].mood == Mood::Off
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_over() {
            return Poll::Ready(Ok(0));
        }
        let count = into.len().min(self.output.len());
        for (place, byte) in into.iter_mut().zip(self.output.drain(..count)) {
            *place = byte;
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_over() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.input.extend(bytes);
        if let Some((prefix, payload)) = self.input.split_first_chunk::<{ xor::PREFIX }>()
            && payload.len() >= xor::payload_length(*prefix).unwrap()
        {
            let mut request = payload.to_vec();
            self.input.clear();
            xor::decrypt(&mut request);
            let (net, to) = (self.net.clone(), self.to);
            let now = net.clock.elapsed();
            let mut plugs = net.plugs.borrow_mut();
            let plug = plugs.get_mut(&to).unwrap();
            plug.asked.push(now);
            if plug.mood == Mood::Answers {
                self.output.extend(xor::frame(&reply(&mut plug.state, &request, Via::Tcp, now)).unwrap());
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Notes {
    readings: RefCell<Vec<(DeviceId, UnixMillis)>>,
    gaps: RefCell<Vec<(DeviceId, UnixMillis)>>,
}

impl Sink for Notes {
    fn remember(&self, _: &PlugFacts, _: SocketAddr) {}

    fn append(&self, id: DeviceId, reading: Reading, _: Duration) {
        self.readings.borrow_mut().push((id, reading.time));
    }

    fn gap(&self, id: DeviceId, from: UnixMillis) {
        self.gaps.borrow_mut().push((id, from));
    }
}

struct House {
    executor: Rc<LocalExecutor<'static>>,
    clock: Rc<ManualClock>,
    net: Rc<Net>,
    fleet: Rc<RefCell<Fleet>>,
    notes: Rc<Notes>,
    requests: Requests,
    ready: Rc<Cell<bool>>,
    macs: Vec<Mac>,
    _polling: Task<()>,
}

fn address(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n + 1).into()
}

impl House {
    fn new(plugs: &[(Model, Load)], change: impl FnOnce(&mut Settings)) -> Self {
        Self::start(plugs, Mood::Answers, change)
    }

    fn start(plugs: &[(Model, Load)], mood: Mood, change: impl FnOnce(&mut Settings)) -> Self {
        let clock = Rc::new(ManualClock::at(UnixMillis::new(START)));
        let mut macs = Vec::new();
        let mut fakes = BTreeMap::new();
        for (n, (model, load)) in (0..).zip(plugs) {
            let IpAddr::V4(at) = address(n) else { panic!() };
            let spec = PlugSpec::new(*model, at, u64::from(n)).loads(&[*load]);
            macs.push(spec.mac);
            let state = PlugState::new(&spec, UnixMillis::new(START));
            let fake = Fake { state, mood, era: 0, asked: Vec::new(), open: 0, most_open: 0 };
            fakes.insert(at.into(), fake);
        }
        let mut settings = Settings {
            interval: 10 * SECOND,
            strip_interval: 60 * SECOND,
            min_interval: 5 * SECOND,
            adaptive: None,
            in_flight: 16,
            pauses: Pauses::default(),
            patience: Patience { exchange: 5 * SECOND, poll: limits::POLL_BUDGET },
            discover_every: None,
            targets: Vec::new(),
            port: xor::PORT,
            pinned: fakes.keys().map(|ip| (*ip, None)).collect(),
            seed: 1,
        };
        change(&mut settings);
        let net = Rc::new(Net { clock: clock.clone(), plugs: RefCell::new(fakes) });
        let executor = Rc::new(LocalExecutor::new());
        let (fleet, notes, requests) = (Rc::default(), Rc::new(Notes::default()), Requests::default());
        let ready = Rc::default();
        let world = World {
            executor: executor.clone(),
            clock: clock.clone(),
            transport: Rc::new(Way(net.clone())),
            keys: Rc::new(Keyring::new(None)),
            fleet: Rc::clone(&fleet),
            sink: notes.clone(),
            requests: requests.clone(),
            ready: Rc::clone(&ready),
            stats: Rc::default(),
        };
        let _polling = executor.spawn(Poller::new(settings, world, None).run());
        let house = Self { executor, clock, net, fleet, notes, requests, ready, macs, _polling };
        house.settle();
        house
    }

    fn settle(&self) {
        while self.executor.try_tick() {}
    }

    /// Lets time pass, a tenth of a second at a time.
    fn pass(&self, time: Duration) {
        let until = self.clock.elapsed() + time;
        while self.clock.elapsed() < until {
            self.clock.advance(Duration::from_millis(100));
            self.settle();
        }
    }

    fn set_mood(&self, n: u8, mood: Mood) {
        self.net.plugs.borrow_mut().get_mut(&address(n)).unwrap().mood = mood;
    }

    /// When plug `n` was asked since `since`.
    fn asked(&self, n: u8, since: Duration) -> Vec<Duration> {
        self.net.plugs.borrow()[&address(n)].asked.iter().copied().filter(|at| *at >= since).collect()
    }

    fn plug(&self, n: usize) -> Plug {
        self.fleet.borrow().get(self.macs[n]).unwrap().clone()
    }

    fn id(&self, n: usize) -> DeviceId {
        DeviceId::plug(self.macs[n])
    }
}

const STANDBY: (Model, Load) = (Model::Kp115, Load::Standby);

fn constant(watts: f64) -> (Model, Load) {
    (Model::Kp115, Load::Constant(Milliwatts::from_base(watts).unwrap()))
}

/// Each plug is asked every ten seconds, to the step of the test's clock, from `since` on.
fn assert_pace(house: &House, since: Duration, polls: usize) {
    for n in 0..house.macs.len() {
        let asked = house.asked(n as u8, since);
        assert!(asked.len().abs_diff(polls) <= 1, "plug {n}: {} polls, not {polls}", asked.len());
        for pair in asked.windows(2) {
            let step = pair[1] - pair[0];
            assert!(step.abs_diff(10 * SECOND) <= Duration::from_millis(200), "plug {n}: {step:?} between two polls");
        }
    }
}

#[test]
fn steps_of_the_wall_clock_by_hours_move_no_poll() {
    let house = House::new(&[STANDBY; 8], |_| {});
    house.pass(60 * SECOND);
    assert!(house.ready.get());
    let since = house.clock.elapsed();
    let hour = 3_600_000;
    for step in [5 * hour, -9 * hour, 26 * hour, -26 * hour, 1] {
        house.clock.set_wall(house.clock.wall().plus(step));
        house.pass(100 * SECOND);
        for n in 0..8 {
            let plug = house.plug(n);
            assert_eq!((plug.presence, plug.polls.failed, plug.outages.count), (Presence::Online, 0, 0));
            let (_, time) = *house.notes.readings.borrow().iter().rfind(|(id, _)| *id == house.id(n)).unwrap();
            let age = plug.age(house.id(n), time, house.clock.elapsed()).unwrap();
            assert!(age <= 11 * SECOND, "{age:?}, though the wall clock is far off");
        }
    }
    assert_pace(&house, since, 50);
    assert!(house.notes.gaps.borrow().is_empty());
}

#[test]
fn the_leap_of_ntp_at_boot_moves_no_poll() {
    let house = House::new(&[STANDBY; 3], |_| {});
    house.clock.set_wall(UnixMillis::new(5_000)); // a Pi without a clock
    house.pass(30 * SECOND);
    let since = house.clock.elapsed();
    house.clock.set_wall(UnixMillis::new(START));
    house.pass(200 * SECOND);
    assert_pace(&house, since, 20);
}

#[test]
fn a_machine_that_slept_goes_on_as_before_with_new_connections() {
    // The elapsed clock stands still in sleep (as Linux's does); the wall clock goes on, connections die.
    let house = House::new(&[STANDBY; 8], |_| {});
    house.pass(60 * SECOND);
    house.clock.set_wall(house.clock.wall().plus(8 * 3_600_000));
    house.net.plugs.borrow_mut().values_mut().for_each(|plug| plug.era += 1);
    let since = house.clock.elapsed();
    house.pass(100 * SECOND);
    assert_pace(&house, since, 10);
    assert!((0..8).all(|n| house.plug(n).polls.failed == 0), "a dead connection costs no reading");

    // A clock that counts sleep: everybody is due at once, is asked once, and is back on its grid.
    house.clock.advance(8 * 3_600 * SECOND);
    house.settle();
    let since = house.clock.elapsed();
    house.pass(100 * SECOND);
    for n in 0..8 {
        let asked = house.asked(n, since);
        assert!((10..=12).contains(&asked.len()), "no burst to catch up: {asked:?}");
    }
    assert_pace(&house, since + 20 * SECOND, 8);
}

#[test]
fn an_outage_is_one_gap_for_each_device_with_a_start_and_an_end() {
    let house = House::new(&[STANDBY, STANDBY, (Model::Hs300, Load::Standby)], |_| {});
    house.pass(95 * SECOND);
    house.set_mood(0, Mood::Hangs);
    house.set_mood(2, Mood::Off);
    let last = |id: DeviceId| house.notes.readings.borrow().iter().rfind(|(known, _)| *known == id).unwrap().1;
    let before = last(house.id(0));
    house.pass(300 * SECOND);
    let gaps = house.notes.gaps.borrow().clone();
    let mut of_strip: Vec<_> =
        gaps.iter().filter(|(id, _)| id.plug == house.macs[2]).map(|(id, _)| id.outlet).collect();
    of_strip.sort();
    assert_eq!(of_strip, (0..6).map(Some).collect::<Vec<_>>());
    let of_plug: Vec<_> = gaps.iter().filter(|(id, _)| *id == house.id(0)).collect();
    assert_eq!(of_plug.len(), 1, "{gaps:?}");
    assert_eq!(of_plug[0].1, before.plus(10_000), "its last reading stands for its interval");
    assert_eq!(gaps.len(), 7);
    let outages = house.plug(0).outages;
    assert_eq!((outages.count, outages.last_from, outages.last_to), (1, Some(before.plus(10_000)), None));
    assert!(matches!(house.plug(0).presence, Presence::Offline { .. }));
    assert_eq!(house.plug(1).outages.count, 0);

    house.set_mood(0, Mood::Answers);
    house.set_mood(2, Mood::Answers);
    house.pass(320 * SECOND);
    let outages = house.plug(0).outages;
    let back = house.notes.readings.borrow().iter().find(|(id, at)| *id == house.id(0) && *at > before).unwrap().1;
    assert_eq!((outages.count, outages.last_to), (1, Some(back)));
    assert_eq!(house.notes.gaps.borrow().len(), 7);
    let asked = house.asked(2, Duration::ZERO);
    let polls: Vec<_> = asked.iter().zip(asked.iter().skip(1)).filter(|(a, b)| a != b).map(|(a, b)| *b - *a).collect();
    assert!(polls.iter().all(|pause| *pause >= 60 * SECOND), "a strip is never asked faster: {polls:?}");
}

#[test]
fn a_plug_dead_from_the_start_has_no_outage_and_no_gap() {
    for mood in [Mood::Off, Mood::Hangs] {
        let house = House::start(&[STANDBY; 2], mood, |_| {});
        house.pass(100 * SECOND);
        assert!(house.notes.gaps.borrow().is_empty() && house.notes.readings.borrow().is_empty());
        assert_eq!(house.fleet.borrow().unmet().count(), 2);
        house.set_mood(0, Mood::Answers);
        house.pass(61 * SECOND);
        if mood == Mood::Off {
            assert_eq!(house.plug(0).outages.count, 0, "an open port is found within the longest pause of its kind");
        }
    }
}

#[test]
fn many_wishes_for_one_plug_are_one_poll_within_its_minimum_interval() {
    let house = House::new(&[constant(40.0); 2], |_| {});
    house.pass(60 * SECOND);
    while house.plug(0).age(house.id(0), house.plug(0).newest[0].1, house.clock.elapsed()).unwrap() < 2 * SECOND {
        house.pass(SECOND);
    }
    let start = house.clock.elapsed();
    let last = *house.asked(0, Duration::ZERO).last().unwrap();
    let wishes: Vec<_> = (0..50)
        .map(|_| {
            let (requests, clock, plug) = (house.requests.clone(), house.clock.clone(), house.macs[0]);
            house.executor.spawn(async move { requests.freshen([plug], clock.as_ref()).await })
        })
        .collect();
    house.settle();
    assert!(wishes.iter().all(|wish| !wish.is_finished()));
    house.pass(4 * SECOND);
    let asked = house.asked(0, start);
    assert_eq!(asked.len(), 1, "coalesced");
    assert!(asked[0] - last >= 5 * SECOND && asked[0] - last <= 5 * SECOND + Duration::from_millis(200));
    assert!(wishes.iter().all(Task::is_finished));
    assert_eq!(house.net.plugs.borrow()[&address(0)].most_open, 1, "never a second connection");
    house.pass(60 * SECOND);
    let asked = house.asked(0, start);
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 5 * SECOND), "{asked:?}");
    assert!((6..=7).contains(&house.asked(1, start).len()), "the other keeps its pace");
}

#[test]
fn a_wish_ends_when_its_plug_hangs_is_away_or_is_nobody() {
    let house = House::new(&[constant(40.0), (Model::Hs300, Load::Zero)], |_| {});
    house.pass(63 * SECOND);
    let wish = |plug: Mac| {
        let (requests, clock) = (house.requests.clone(), house.clock.clone());
        house.executor.spawn(async move { requests.freshen([plug], clock.as_ref()).await })
    };
    house.set_mood(0, Mood::Hangs);
    let hanging = wish(house.macs[0]);
    house.pass(9 * SECOND);
    let is_over_after_the_timeout = hanging.is_finished();
    assert!(is_over_after_the_timeout);
    while house.plug(0).polls.failed < 2 {
        house.pass(SECOND);
    }
    // In its back-off it is left alone, and nobody waits.
    let asked = house.asked(0, Duration::ZERO).len();
    let (away, nobody, strip) = (wish(house.macs[0]), wish(Mac::new([1; 6])), wish(house.macs[1]));
    house.settle();
    assert!(away.is_finished() && nobody.is_finished());
    assert!(strip.is_finished(), "a strip's minimum is too far away to wait for");
    assert_eq!(house.asked(0, Duration::ZERO).len(), asked);
}

#[test]
fn intervals_follow_the_load_and_say_why() {
    let plugs = [constant(0.0), constant(60.0), (Model::Kp115, Load::Kettle), (Model::Hs300, Load::Zero)];
    let house = House::new(&plugs, |settings| settings.adaptive = Some(300 * SECOND));
    assert_eq!((house.plug(0).interval, house.plug(0).reason), (10 * SECOND, Reason::Settling));
    house.pass(20 * SECOND);
    // The kettle goes on between 20 s and 40 s after the start.
    house.pass(24 * SECOND);
    assert_eq!((house.plug(2).interval, house.plug(2).reason), (5 * SECOND, Reason::Step));
    house.pass(156 * SECOND);
    for n in [0, 1] {
        assert_eq!((house.plug(n).interval, house.plug(n).reason), (40 * SECOND, Reason::Unchanged));
    }
    let since = house.clock.elapsed();
    house.pass(1_200 * SECOND);
    assert!((29..=31).contains(&house.asked(0, since).len()), "{:?}", house.asked(0, since));
    let strip = house.plug(3);
    assert_eq!((strip.interval, strip.reason), (240 * SECOND, Reason::Unchanged));
    // After an outage nothing is known of the load.
    house.set_mood(0, Mood::Off);
    house.pass(60 * SECOND);
    house.set_mood(0, Mood::Answers);
    house.pass(60 * SECOND);
    assert_eq!((house.plug(0).interval, house.plug(0).reason), (10 * SECOND, Reason::Settling));
    assert!(house.notes.gaps.borrow().iter().any(|(id, _)| *id == house.id(0)));
}
