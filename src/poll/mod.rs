//! Asking plugs, at their pace.
//!
//! Owns who is watched, where, and when each is asked. What is decided is decided by pure state machines ([`schedule`],
//! [`backoff`]); the loop here obeys them. Promises: one request in flight per plug, because whoever asks holds the
//! plug's only client; a plug that fails delays nobody; a plug found at another address goes on under its own id; a plug
//! that answers is never moved by what a datagram claims. Readings leave through a [`Sink`] in the order of arrival.

pub mod backoff;
pub mod fleet;
pub mod schedule;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use smol::channel::{Receiver, Sender, bounded};
use smol::{LocalExecutor, Task};

use crate::clock::{Clock, within};
use crate::limits;
use crate::plug::discovery::{Listener, Prober, Sighting};
use crate::plug::{Answer, Client, Patience, PollError, Transport};
use crate::reading::{Alias, DeviceId, Mac, PlugFacts, Reading};
use crate::units::OutOfRange;
use fleet::{Fleet, Presence, Trouble};
use schedule::{Outcome, Rules, Schedule, Slot, Step};

/// Where readings and facts go.
pub trait Sink {
    /// A plug answered from `address` and said this of itself.
    fn remember(&self, facts: &PlugFacts, address: SocketAddr);
    /// One outlet's reading.
    fn append(&self, id: DeviceId, reading: Reading);
}

/// What the loop goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a plug is asked.
    pub interval: Duration,
    /// How often a strip, whose outlets are asked one by one, and a plug without a meter is asked.
    pub strip_interval: Duration,
    /// No plug is asked more often.
    pub min_interval: Duration,
    /// Plugs asked at once.
    pub in_flight: usize,
    /// How long an exchange and a poll may take.
    pub patience: Patience,
    /// Time between discovery rounds; none when discovery is off.
    pub discover_every: Option<Duration>,
    /// Where discovery probes go.
    pub targets: Vec<Ipv4Addr>,
    /// The port that plugs listen on.
    pub port: u16,
    /// Addresses that the configuration names, and its names for the plugs there.
    pub pinned: Vec<(IpAddr, Option<Alias>)>,
    /// Where jitter and phases come from.
    pub seed: u64,
}

impl Settings {
    fn interval_of(&self, facts: &PlugFacts) -> Duration {
        let single = facts.has_meter && facts.outlets.is_empty();
        if single { self.interval } else { self.strip_interval.max(self.interval) }.max(self.min_interval)
    }

    fn name_at(&self, address: SocketAddr) -> Option<Alias> {
        self.pinned.iter().find(|(ip, _)| *ip == address.ip()).and_then(|(_, name)| name.clone())
    }
}

/// What the loop works with.
pub struct World<T> {
    /// Runs the polls.
    pub executor: Rc<LocalExecutor<'static>>,
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// The way to the plugs.
    pub transport: Rc<T>,
    /// The live picture, kept up to date here.
    pub fleet: Rc<RefCell<Fleet>>,
    /// Takes what was read.
    pub sink: Rc<dyn Sink>,
    /// Set once every plug known at the start, or found by the first discovery round, has been asked.
    pub ready: Rc<Cell<bool>>,
}

/// A plug, or an address where one should be, and its client while nobody is asking.
struct Watched<S> {
    address: SocketAddr,
    mac: Option<Mac>,
    client: Option<Client<S>>,
    /// The poll under way; dropping it ends it.
    poll: Option<Task<()>>,
    /// Whether a poll of it has ended, well or badly.
    tried: bool,
    /// Probes sent since it was last heard of.
    unanswered_probes: u32,
    /// Whether its present back-off was already cut short once.
    hastened: bool,
    /// When an implausible value was last reported.
    reported: Option<Duration>,
}

enum Event<S> {
    Polled { slot: Slot, client: Client<S>, took: Duration, result: Result<Answer, PollError> },
    Sighted(Sighting),
}

/// One warning about a device's implausible values in this time.
const REPORT_EVERY: Duration = Duration::from_secs(3_600);
/// While a plug is missing it may have moved: broadcast discovery then runs at least this often.
const SEARCH_EVERY: Duration = Duration::from_secs(60);
/// Time between the probes of one round.
const PROBE_SPACING: Duration = Duration::from_secs(1);

/// The loop.
pub struct Poller<T: Transport> {
    settings: Settings,
    world: World<T>,
    schedule: Schedule,
    watched: BTreeMap<Slot, Watched<T::Stream>>,
    next_slot: u32,
    report: Sender<Event<T::Stream>>,
    events: Receiver<Event<T::Stream>>,
    prober: Option<Prober>,
    /// Probes still to send in this discovery round, and when the next one goes out.
    round: (u32, Duration),
    /// When silent plugs are probed next.
    next_probe: Duration,
    /// When what the first discovery round found is known.
    settled: Duration,
    /// Whether it was said that no more plugs fit.
    full: bool,
}

impl<T: Transport + 'static> Poller<T>
where
    T::Stream: 'static,
{
    /// A loop that watches the plugs already in the fleet and the pinned addresses. `discovery` is none where the system
    /// gave no socket.
    #[must_use]
    pub fn new(settings: Settings, world: World<T>, discovery: Option<(Prober, Listener)>) -> Self {
        let now = world.clock.elapsed();
        let rules = Rules { min_interval: settings.min_interval, in_flight: settings.in_flight, seed: settings.seed };
        let (report, events) = bounded(limits::DISCOVERED_HOSTS);
        let prober = discovery.map(|(prober, listener)| {
            world.executor.spawn(listen(listener, report.clone())).detach();
            prober
        });
        let searching = settings.discover_every.is_some() && prober.is_some();
        let mut poller = Self {
            schedule: Schedule::new(rules),
            watched: BTreeMap::new(),
            next_slot: 0,
            report,
            events,
            prober,
            round: (if searching { limits::DISCOVERY_PROBES } else { 0 }, now),
            next_probe: now.saturating_add(settings.interval),
            settled: if searching { now.saturating_add(limits::DISCOVERY_ROUND) } else { now },
            full: false,
            settings,
            world,
        };
        poller.watch_known();
        poller
    }

    fn watch_known(&mut self) {
        let known: Vec<_> = self.world.fleet.borrow().plugs().map(|plug| (plug.address, plug.facts.clone())).collect();
        for (address, facts) in known {
            let interval = self.settings.interval_of(&facts);
            let name = self.settings.name_at(address);
            let mac = facts.mac;
            let mut fleet = self.world.fleet.borrow_mut();
            fleet.meet(facts, address, name).interval = interval;
            drop(fleet);
            self.watch(address, Some(mac), interval, false);
        }
        for (ip, name) in self.settings.pinned.clone() {
            let address = SocketAddr::new(ip, self.settings.port);
            if !self.watched.values().any(|watched| watched.address == address) {
                self.world.fleet.borrow_mut().expect(address, name);
                self.watch(address, None, self.settings.interval, false);
            }
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            let now = self.world.clock.elapsed();
            self.search(now).await;
            self.note_ready(now);
            let wake = match self.schedule.next(now) {
                Step::Poll { slot, late } => {
                    self.world.fleet.borrow_mut().lateness.note(late);
                    self.ask(slot);
                    continue;
                }
                Step::RestUntil(due) => due,
                Step::Rest => Duration::MAX,
            };
            let ready = [self.settled, self.ready_at_last()].into_iter().find(|at| now < *at).unwrap_or(Duration::MAX);
            let wake = wake.min(self.next_search()).min(ready);
            match within(self.world.clock.as_ref(), wake, self.events.recv()).await {
                Some(Ok(event)) => self.handle(event),
                Some(Err(_)) => return, // cannot happen: a sender is kept here
                None => {}
            }
        }
    }

    fn watch(&mut self, address: SocketAddr, mac: Option<Mac>, interval: Duration, proven: bool) {
        let slot = Slot(self.next_slot);
        self.next_slot = self.next_slot.wrapping_add(1);
        let client = Some(Client::new(address, mac));
        let watched = Watched {
            address,
            mac,
            client,
            poll: None,
            tried: false,
            unanswered_probes: 0,
            hastened: false,
            reported: None,
        };
        self.watched.insert(slot, watched);
        self.schedule.add(slot, interval, proven, self.world.clock.elapsed());
    }

    fn ask(&mut self, slot: Slot) {
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let mut client = watched.client.take().unwrap_or_else(|| Client::new(watched.address, watched.mac));
        let (clock, transport) = (self.world.clock.clone(), self.world.transport.clone());
        let (patience, report) = (self.settings.patience, self.report.clone());
        watched.poll = Some(self.world.executor.spawn(async move {
            let start = clock.elapsed();
            let result = client.poll(transport.as_ref(), clock.as_ref(), patience).await;
            let took = clock.elapsed().saturating_sub(start);
            let _ = report.send(Event::Polled { slot, client, took, result }).await;
        }));
    }

    fn handle(&mut self, event: Event<T::Stream>) {
        match event {
            Event::Sighted(sighting) => self.sighted(sighting),
            Event::Polled { slot, client, took, result } => {
                let Some(watched) = self.watched.get_mut(&slot) else { return };
                if watched.poll.is_none() || watched.address != client.address() {
                    return; // the plug has moved while this answer was on its way
                }
                watched.poll = None;
                watched.tried = true;
                watched.client = Some(client);
                match result {
                    Ok(answer) => self.answered(slot, answer, took),
                    Err(error) => self.failed(slot, error),
                }
            }
        }
    }

    fn answered(&mut self, slot: Slot, mut answer: Answer, took: Duration) {
        let (now, wall) = (self.world.clock.elapsed(), self.world.clock.wall());
        let mac = answer.facts.mac;
        if let Some(twin) = self.slot_of(mac).filter(|twin| *twin != slot) {
            // A pinned address turned out to be a plug that is watched already, somewhere else.
            if self.answers(mac) {
                return self.forget(slot);
            }
            self.forget(twin);
        }
        let interval = self.settings.interval_of(&answer.facts);
        let broken_off = answer.broken_off.take();
        let outcome = if broken_off.is_some() { Outcome::Failed } else { Outcome::Answered };
        self.schedule.set_interval(slot, interval);
        let misses = self.schedule.finish(slot, outcome, now);
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        watched.mac = Some(mac);
        watched.unanswered_probes = 0;
        watched.hastened = false;
        let (address, name) = (watched.address, self.settings.name_at(watched.address));

        self.world.sink.remember(&answer.facts, address);
        for (id, reading) in &answer.readings {
            self.world.sink.append(*id, *reading);
        }
        let mut fleet = self.world.fleet.borrow_mut();
        let firmware = fleet.get(mac).map(|plug| plug.facts.firmware.clone());
        let plug = fleet.meet(answer.facts, address, name);
        plug.interval = interval;
        plug.signal = answer.signal;
        plug.last_seen = Some(wall);
        plug.last_error = broken_off.as_ref().map(|error| Trouble { time: wall, text: error.to_string() });
        plug.polls.answered += 1;
        plug.polls.last = took;
        plug.polls.total = plug.polls.total.saturating_add(took);
        plug.polls.refused += u64::try_from(answer.implausible.len()).unwrap_or(0);
        let (before, title) = (plug.presence, plug.title());
        plug.presence = Presence::Online;
        match before {
            Presence::Online => {}
            Presence::Unknown => {
                let meter = if plug.facts.has_meter { "" } else { ", which has no meter: listed only" };
                log::info!("{title}: {} with firmware {}{meter}", plug.facts.model, plug.facts.firmware);
            }
            Presence::Offline { since } => {
                log::info!("{title}: answers again, after {} s", wall.since(since).max(0) / 1_000);
            }
        }
        if before != Presence::Unknown && firmware.is_some_and(|firmware| firmware != plug.facts.firmware) {
            log::info!("{title}: has new firmware, {}", plug.facts.firmware);
        }
        drop(fleet);
        self.report(slot, &title, &answer.implausible, now);
        match broken_off {
            Some(error) if misses == 1 => log::warn!("{title}: some outlets did not answer: {error}"),
            Some(error) => log::debug!("{title}: some outlets did not answer: {error} (miss {misses})"),
            None => {}
        }
    }

    /// Whether the plug answers where it is.
    fn answers(&self, mac: Mac) -> bool {
        let online = self.world.fleet.borrow().get(mac).is_some_and(|plug| plug.presence == Presence::Online);
        online && self.slot_of(mac).is_some_and(|slot| self.schedule.misses(slot) == 0)
    }

    /// One line an hour about values that no outlet can have.
    fn report(&mut self, slot: Slot, title: &str, implausible: &[(DeviceId, OutOfRange)], now: Duration) {
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let due = watched.reported.is_none_or(|last| now >= last.saturating_add(REPORT_EVERY));
        if let Some((id, value)) = implausible.first().filter(|_| due) {
            watched.reported = Some(now);
            log::warn!("{title}: {id} claims that {value}; not recorded (said once an hour)");
        }
    }

    fn failed(&mut self, slot: Slot, error: PollError) {
        let misses = self.schedule.finish(slot, Outcome::Failed, self.world.clock.elapsed());
        self.note_trouble(slot, &error, misses);
        let Some(watched) = self.watched.get(&slot) else { return };
        if let PollError::WrongDevice { found, .. } = error {
            self.sighted(Sighting { address: watched.address, facts: *found });
        }
    }

    /// Notes what went wrong with a plug, and says so once per outage.
    fn note_trouble(&mut self, slot: Slot, error: &PollError, misses: u32) {
        let Some(watched) = self.watched.get(&slot) else { return };
        let wall = self.world.clock.wall();
        let trouble = Trouble { time: wall, text: error.to_string() };
        let mut fleet = self.world.fleet.borrow_mut();
        let title = match watched.mac.and_then(|mac| fleet.get_mut(mac)) {
            Some(plug) => {
                plug.polls.failed += 1;
                plug.last_error = Some(trouble);
                if misses >= limits::MISSES_UNTIL_OFFLINE && !matches!(plug.presence, Presence::Offline { .. }) {
                    plug.presence = Presence::Offline { since: wall };
                }
                plug.title()
            }
            None => {
                if let Some(unmet) = fleet.unmet_mut(watched.address) {
                    unmet.last_error = Some(trouble);
                }
                format!("the plug at {}", watched.address.ip())
            }
        };
        if misses == limits::MISSES_UNTIL_OFFLINE {
            log::warn!("{title}: offline: {error}; trying again, less and less often");
        } else {
            log::debug!("{title}: {error} (miss {misses})");
        }
    }

    fn sighted(&mut self, Sighting { address, facts }: Sighting) {
        let now = self.world.clock.elapsed();
        let Some(slot) = self.slot_of(facts.mac) else { return self.discovered(address, facts) };
        let (misses, answers) = (self.schedule.misses(slot), self.answers(facts.mac));
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let probes = std::mem::take(&mut watched.unanswered_probes);
        if watched.address == address {
            // News only after silence: a plug that answers datagrams but no connection keeps its back-off.
            if misses > 0 && (probes > 1 || !watched.hastened) {
                watched.hastened = true;
                self.schedule.hasten(slot, now);
            }
            return;
        }
        // Anyone can send a datagram. A plug that answers where it is stays there.
        if answers {
            return;
        }
        let old = std::mem::replace(&mut watched.address, address);
        watched.client = Some(Client::new(address, Some(facts.mac)));
        if watched.poll.take().is_some() {
            self.schedule.finish(slot, Outcome::Failed, now);
        }
        self.schedule.hasten(slot, now);
        let mut fleet = self.world.fleet.borrow_mut();
        let plug = fleet.meet(facts, address, self.settings.name_at(address));
        log::info!("{}: moved here from {}", plug.title(), old.ip());
    }

    fn discovered(&mut self, address: SocketAddr, facts: PlugFacts) {
        let waiting = self.watched.values_mut().find(|watched| watched.address == address && watched.mac.is_none());
        if let Some(waiting) = waiting {
            if waiting.poll.is_none() {
                waiting.mac = Some(facts.mac);
                waiting.client = Some(Client::new(address, waiting.mac));
            }
            return;
        }
        if self.watched.len() >= limits::PLUGS {
            if !std::mem::replace(&mut self.full, true) {
                let most = limits::PLUGS;
                log::warn!(
                    "{} at {} and others are passed over: {most} are watched, no more fit",
                    facts.mac,
                    address.ip()
                );
            }
            return;
        }
        let (mac, interval) = (facts.mac, self.settings.interval_of(&facts));
        let mut fleet = self.world.fleet.borrow_mut();
        fleet.meet(facts, address, self.settings.name_at(address)).interval = interval;
        drop(fleet);
        self.watch(address, Some(mac), interval, true);
    }

    fn forget(&mut self, slot: Slot) {
        self.schedule.remove(slot);
        if let Some(watched) = self.watched.remove(&slot) {
            self.world.fleet.borrow_mut().found_elsewhere(watched.address);
        }
    }

    fn slot_of(&self, mac: Mac) -> Option<Slot> {
        self.watched.iter().find(|(_, watched)| watched.mac == Some(mac)).map(|(slot, _)| *slot)
    }

    /// When the agent counts as ready though some plugs have not had their turn: dead ones may take long.
    fn ready_at_last(&self) -> Duration {
        self.settled.saturating_add(limits::POLL_BUDGET)
    }

    fn note_ready(&mut self, now: Duration) {
        let all_tried = now >= self.settled && self.watched.values().all(|watched| watched.tried);
        if all_tried || now >= self.ready_at_last() {
            self.world.ready.set(true);
        }
    }

    /// Sends the probes that are due: of the discovery round, and to plugs that have gone silent.
    async fn search(&mut self, now: Duration) {
        let Some(prober) = self.prober.clone() else { return };
        if now >= self.next_probe {
            self.next_probe = now.saturating_add(self.settings.interval);
            for (slot, watched) in &mut self.watched {
                if self.schedule.misses(*slot) > 0 {
                    watched.unanswered_probes = watched.unanswered_probes.saturating_add(1);
                    probe(&prober, watched.address.ip()).await;
                }
            }
        }
        let Some(every) = self.settings.discover_every else { return };
        let (left, at) = self.round;
        if now >= at {
            for target in &self.settings.targets {
                probe(&prober, IpAddr::V4(*target)).await;
            }
            let missing = self.watched.keys().any(|slot| self.schedule.misses(*slot) > 0);
            let pause = if missing { every.min(SEARCH_EVERY) } else { every };
            self.round = match left.saturating_sub(1) {
                0 => (limits::DISCOVERY_PROBES, now.saturating_add(pause)),
                left => (left, now.saturating_add(PROBE_SPACING)),
            };
        }
    }

    fn next_search(&self) -> Duration {
        if self.prober.is_none() {
            return Duration::MAX;
        }
        let silent = self.watched.keys().any(|slot| self.schedule.misses(*slot) > 0);
        let probe = if silent { self.next_probe } else { Duration::MAX };
        probe.min(if self.settings.discover_every.is_some() { self.round.1 } else { Duration::MAX })
    }
}

async fn probe(prober: &Prober, target: IpAddr) {
    if let Err(error) = prober.probe(target).await {
        log::debug!("no probe could be sent to {target}: {error}");
    }
}

async fn listen<S>(mut listener: Listener, events: Sender<Event<S>>) {
    loop {
        match listener.next().await {
            Ok(sighting) => {
                if events.send(Event::Sighted(sighting)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                log::error!("discovery has stopped: {error}; plugs already known go on");
                return;
            }
        }
    }
}
