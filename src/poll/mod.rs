//! Asking plugs, at their pace.
//!
//! Owns who is watched, where, and when each is asked. What is decided is decided by pure state machines ([`schedule`],
//! [`backoff`], [`adaptive`]); the loop here obeys them. Promises: one request in flight per plug, because whoever asks holds the
//! plug's only client; a plug that fails delays nobody; a plug found at another address goes on under its own id; a plug
//! that answers is never moved by what a datagram claims. Readings leave through a [`Sink`] in the order of arrival. Nobody else asks a plug:
//! who wants a newer value than the one in memory says so through [`requests`]. All pace is by elapsed time: a step of the
//! wall clock moves no poll.

pub mod adaptive;
pub mod backoff;
pub mod fleet;
pub mod requests;
pub mod schedule;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use smol::channel::{Receiver, Sender, bounded};
use smol::{LocalExecutor, Task, future};

use crate::clock::{Clock, within};
use crate::limits;
use crate::plug::discovery::{Listener, Manner, Prober, Sighting};
use crate::plug::keyring::Keyring;
use crate::plug::session::SessionError;
use crate::plug::{Answer, Client, Means, Patience, Place, PollError, Stream, Transport};
use crate::reading::{Alias, DeviceId, Mac, PlugFacts, Protocol, Reading};
use crate::stats::{Operation, Stats};
use crate::units::{OutOfRange, UnixMillis};
use crate::watchdog::Pulse;
use adaptive::{Adaptive, Bounds, Reason};
use backoff::{Failure, Pauses};
use fleet::{Fleet, Presence, Trouble};
use requests::{Request, Requests};
use schedule::{Outcome, Pace, Rules, Schedule, Slot, Standing, Step, Wish};

/// Where readings and facts go.
pub trait Sink {
    /// A plug answered from `address` and said this of itself.
    fn remember(&self, facts: &PlugFacts, address: SocketAddr);
    /// One outlet's reading; it is polled every `interval`.
    fn append(&self, id: DeviceId, reading: Reading, interval: Duration);
    /// Nothing is known of this device from `from` until its next reading: a poll failed, or brought nothing of it. Called
    /// once for each device and outage. `from` is the end of the time for which the reading before stands, its own time
    /// and the interval then in force, but not later than now.
    fn gap(&self, id: DeviceId, from: UnixMillis);
    /// A plug has begun or ceased to answer: what it was before and what it is now, as the fleet shows it already.
    fn presence(&self, _plug: Mac, _was: Presence, _is: Presence) {}
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
    /// The longest interval, where intervals adapt to the load; none where they are fixed.
    pub adaptive: Option<Duration>,
    /// Plugs asked at once.
    pub in_flight: usize,
    /// How long plugs that failed are left alone.
    pub pauses: Pauses,
    /// How long an exchange and a poll may take.
    pub patience: Patience,
    /// Time between discovery rounds; none when discovery is off.
    pub discover_every: Option<Duration>,
    /// Where discovery probes go.
    pub targets: Vec<Ipv4Addr>,
    /// The TCP port of plugs that need no login: where a plug is asked of which nothing else is known.
    pub port: u16,
    /// Addresses that the configuration names, and its names for the plugs there.
    pub pinned: Vec<(IpAddr, Option<Alias>)>,
    /// Where jitter and phases come from.
    pub seed: u64,
}

impl Settings {
    /// How often such a plug is asked unless its interval adapts. A strip is never asked faster than `strip_interval`,
    /// not after a failure either: more questions make its switch fail.
    fn pace_of(&self, facts: &PlugFacts) -> Pace {
        let single = facts.has_meter && facts.outlets.is_empty();
        let interval = if single { self.interval } else { self.strip_interval.max(self.interval) };
        let least = if facts.outlets.is_empty() { self.min_interval } else { self.strip_interval };
        let least = least.max(self.min_interval);
        Pace { interval: interval.max(least), least }
    }

    /// How often a plug is asked of which nothing is known yet.
    fn pace_at_first(&self) -> Pace {
        Pace { interval: self.interval.max(self.min_interval), least: self.min_interval }
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
    /// What opens plugs that want a login.
    pub keys: Rc<Keyring>,
    /// The live picture, kept up to date here.
    pub fleet: Rc<RefCell<Fleet>>,
    /// Takes what was read.
    pub sink: Rc<dyn Sink>,
    /// Wishes for newer values.
    pub requests: Requests,
    /// Set once every plug known at the start, or found by the first discovery round, has been asked.
    pub ready: Rc<Cell<bool>>,
    /// Takes how polls went.
    pub stats: Rc<Stats>,
}

/// A plug, or an address where one should be, and its client while nobody is asking.
struct Watched<S: Stream> {
    place: Place,
    mac: Option<Mac>,
    client: Option<Client<S>>,
    /// The poll under way; dropping it ends it.
    poll: Option<Task<()>>,
    /// When the last poll began.
    asked: Duration,
    /// Where it last answered a poll, or refused a login. None for a stranger: heard of by datagram, never met.
    home: Option<Place>,
    /// Why and until when nobody logs in there: it has refused the credentials, or locked itself.
    barred: Option<Bar>,
    /// When it last answered a probe in the open: then it needs no other protocol.
    heard_open: Option<Duration>,
    /// Why it cannot be asked at all, as it announces: says more than that nobody answers.
    unsupported: Option<PollError>,
    /// Whether a poll of it has ended, well or badly.
    tried: bool,
    /// Probes sent since it was last heard of.
    unanswered_probes: u32,
    /// Whether its present back-off was already cut short once.
    hastened: bool,
    /// What the log was told of it.
    said: Said,
    /// What its interval goes by, where it adapts.
    adaptive: Adaptive,
    /// Its devices whose last poll brought a reading: what an outage ends.
    observed: Vec<DeviceId>,
    /// Held for those who wait for its next poll; at most [`limits::WAITERS`].
    waiters: Vec<Sender<()>>,
}

/// A login that was refused is not repeated before its time, whatever is heard of the plug meanwhile.
struct Bar {
    place: Place,
    until: Duration,
    error: PollError,
}

/// How a poll went.
struct Polled<S: Stream> {
    slot: Slot,
    client: Client<S>,
    took: Duration,
    result: Result<Answer, PollError>,
}

/// Small, for the channel has room for many.
enum Event<S: Stream> {
    Polled(Box<Polled<S>>),
    Sighted(Box<Sighting>),
    Wished(Request),
}

/// When the log was last told of a plug that something is wrong, by cause: one that comes and goes, or keeps claiming what no
/// outlet can have, fills no journal.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    implausible: Option<Duration>,
    broken_off: Option<Duration>,
    offline: Option<Duration>,
    /// Whether the present outage was told, and so its end is news.
    is_offline: bool,
}

/// Whether a cause that was last told at `last` may be told at `now`. If so, it is.
fn may_say(last: &mut Option<Duration>, now: Duration) -> bool {
    let may = last.is_none_or(|last| now >= last.saturating_add(REPORT_EVERY));
    if may {
        *last = Some(now);
    }
    may
}

/// One warning about a plug in this time, for each cause.
const REPORT_EVERY: Duration = Duration::from_secs(3_600);
/// While a plug is missing it may have moved: broadcast discovery then runs at least this often.
const SEARCH_EVERY: Duration = Duration::from_secs(60);
/// A broadcast search that a plug's first miss brings forward still keeps this distance from the one before.
const SEARCH_GAP: Duration = Duration::from_secs(15);
/// A plug that has answered in the open so recently is not asked in a protocol with a login.
const OPEN_LASTS: Duration = Duration::from_secs(10);
/// Time between the probes of one round, and at least between two rounds of probes to silent plugs.
const PROBE_SPACING: Duration = Duration::from_secs(1);

/// The loop.
pub struct Poller<T: Transport> {
    settings: Settings,
    world: World<T>,
    schedule: Schedule,
    watched: BTreeMap<Slot, Watched<T::Stream>>,
    /// The slot of each plug whose MAC is known: sightings and wishes name it by that.
    slots: BTreeMap<Mac, Slot>,
    next_slot: u32,
    report: Sender<Event<T::Stream>>,
    events: Receiver<Event<T::Stream>>,
    prober: Option<Prober>,
    /// Probes still to send in this discovery round, and when the next one goes out.
    round: (u32, Duration),
    /// When the last round's last probe went out.
    searched: Duration,
    /// When silent plugs were probed last, and when they are next.
    probed: Duration,
    next_probe: Duration,
    /// The last alarm of the schedule that was heeded.
    alarm: Option<Duration>,
    /// When what the first discovery round found is known.
    settled: Duration,
    /// Whether it was said that no more plugs fit.
    full: bool,
    /// What tells that the loop turns.
    pulse: Pulse,
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
        let Settings { min_interval, in_flight, pauses, seed, .. } = settings;
        let rules = Rules { min_interval, in_flight, pauses, seed };
        let (report, events) = bounded(limits::DISCOVERED_HOSTS);
        let prober = discovery.map(|(prober, listener)| {
            world.executor.spawn(listen(listener, report.clone())).detach();
            prober
        });
        let searching = settings.discover_every.is_some() && prober.is_some();
        let mut poller = Self {
            schedule: Schedule::new(rules),
            watched: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            report,
            events,
            prober,
            round: (if searching { limits::DISCOVERY_PROBES } else { 0 }, now),
            searched: now,
            probed: now,
            next_probe: now.saturating_add(settings.interval),
            alarm: None,
            settled: if searching { now.saturating_add(limits::DISCOVERY_ROUND) } else { now },
            full: false,
            pulse: Pulse::default(),
            settings,
            world,
        };
        poller.watch_known();
        poller
    }

    fn watch_known(&mut self) {
        let known: Vec<_> = self.world.fleet.borrow().plugs().map(|plug| (plug.address, plug.facts.clone())).collect();
        for (address, facts) in known {
            let place = Place { address, protocol: facts.protocol };
            let pace = self.settings.pace_of(&facts);
            let name = self.settings.name_at(address);
            let mac = facts.mac;
            let mut fleet = self.world.fleet.borrow_mut();
            fleet.meet(facts, address, name).interval = pace.interval;
            drop(fleet);
            self.watch(place, Some(mac), pace, true, false);
        }
        for (ip, name) in self.settings.pinned.clone() {
            if !self.watched.values().any(|watched| watched.place.address.ip() == ip) {
                let address = SocketAddr::new(ip, self.settings.port);
                self.world.fleet.borrow_mut().expect(address, name);
                let place = Place { address, protocol: Protocol::IotXor };
                self.watch(place, None, self.settings.pace_at_first(), false, false);
            }
        }
    }

    /// What tells that the loop turns, and that every poll ends.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            let now = self.world.clock.elapsed();
            self.pulse.work(now);
            self.search(now).await;
            self.note_ready(now);
            let step = self.schedule.next(now);
            if self.schedule.alarm() > self.alarm {
                // Many fell silent at once: who of the others is still there?
                self.alarm = self.schedule.alarm();
                self.look_for_lost(now);
            }
            let wake = match step {
                Step::Poll { slot, late, standing } => {
                    self.note_late(slot, late, standing);
                    self.ask(slot);
                    continue;
                }
                Step::RestUntil(due) => due,
                Step::Rest => Duration::MAX,
            };
            let ready = [self.settled, self.ready_at_last()].into_iter().find(|at| now < *at).unwrap_or(Duration::MAX);
            let wake = wake.min(self.next_search()).min(ready);
            let event = async { self.events.recv().await.ok() };
            let wish = async { self.world.requests.next().await.map(Event::Wished) };
            let under_way = self.watched.values().filter(|watched| watched.poll.is_some());
            let oldest = under_way.map(|watched| watched.asked).min();
            let end = oldest.map_or(Duration::MAX, |asked| asked.saturating_add(self.settings.patience.poll));
            self.pulse.rest(wake.min(end));
            match within(self.world.clock.as_ref(), wake, future::or(event, wish)).await {
                Some(Some(event)) => self.handle(event),
                Some(None) => return, // cannot happen: both ends are kept here
                None => {}
            }
        }
    }

    /// Takes wishes for newer values, all that are there.
    fn wished(&mut self, first: Request) {
        let now = self.world.clock.elapsed();
        let mut next = Some(first);
        while let Some(Request { plug, done }) = next {
            if let Some(slot) = self.slot_of(plug) {
                let is_coming = match self.schedule.request(slot, now) {
                    Wish::UnderWay => true,
                    Wish::Due(due) => requests::is_soon(due, now),
                    Wish::Refused => false,
                };
                if let Some(watched) = self.watched.get_mut(&slot)
                    && is_coming
                    && watched.waiters.len() < limits::WAITERS
                {
                    watched.waiters.push(done);
                }
            }
            next = self.world.requests.try_next();
        }
    }

    /// Notes how long a plug had to wait for its turn. One in its back-off, or in doubt for the silence of many, waits without
    /// being missed.
    fn note_late(&self, slot: Slot, late: Duration, standing: Standing) {
        if matches!(standing, Standing::Doubtful | Standing::Suspect) {
            return;
        }
        let mut fleet = self.world.fleet.borrow_mut();
        fleet.lateness.note(late);
        if let Some(plug) = self.watched.get(&slot).and_then(|watched| watched.mac).and_then(|mac| fleet.get_mut(mac)) {
            plug.polls.worst_late = plug.polls.worst_late.max(late);
        }
    }

    fn watch(&mut self, place: Place, mac: Option<Mac>, pace: Pace, met: bool, is_stranger: bool) -> Slot {
        let slot = Slot(self.next_slot);
        self.next_slot = self.next_slot.wrapping_add(1);
        let client = Some(Client::new(place, mac));
        let watched = Watched {
            place,
            mac,
            client,
            poll: None,
            asked: Duration::ZERO,
            home: (!is_stranger).then_some(place),
            barred: None,
            heard_open: None,
            unsupported: None,
            tried: false,
            unanswered_probes: 0,
            hastened: false,
            said: Said::default(),
            adaptive: Adaptive::default(),
            observed: Vec::new(),
            waiters: Vec::new(),
        };
        self.watched.insert(slot, watched);
        self.slots.extend(mac.map(|mac| (mac, slot)));
        self.schedule.add(slot, pace, met, self.world.clock.elapsed());
        slot
    }

    fn ask(&mut self, slot: Slot) {
        if let Some(error) = self.displaced(slot) {
            // A second connection would only disturb the plug that answers there.
            return self.failed(slot, error);
        }
        let now = self.world.clock.elapsed();
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        if let Some(bar) = watched.barred.as_ref().filter(|bar| bar.place == watched.place && now < bar.until) {
            let error = bar.error.clone();
            return self.failed(slot, error);
        }
        let mut client = watched.client.take().unwrap_or_else(|| Client::new(watched.place, watched.mac));
        let (clock, transport, keys) =
            (self.world.clock.clone(), self.world.transport.clone(), self.world.keys.clone());
        let (patience, report) = (self.settings.patience, self.report.clone());
        watched.asked = clock.elapsed();
        watched.poll = Some(self.world.executor.spawn(async move {
            let start = clock.elapsed();
            let (transport, clock, keys) = (transport.as_ref(), clock.as_ref(), keys.as_ref());
            let result = client.poll(Means { transport, clock, keys, patience }).await;
            let took = clock.elapsed().saturating_sub(start);
            let _ = report.send(Event::Polled(Box::new(Polled { slot, client, took, result }))).await;
        }));
    }

    fn handle(&mut self, event: Event<T::Stream>) {
        match event {
            Event::Sighted(sighting) => self.sighted(*sighting),
            Event::Wished(wish) => self.wished(wish),
            Event::Polled(polled) => {
                let Polled { slot, mut client, took, result } = *polled;
                let Some(watched) = self.watched.get_mut(&slot) else { return };
                if watched.poll.is_none() || watched.place != client.place() {
                    return; // the plug has moved while this answer was on its way
                }
                watched.poll = None;
                watched.tried = true;
                let logins = client.take_logins();
                watched.client = Some(client);
                let waiters = std::mem::take(&mut watched.waiters);
                let address = watched.place.address;
                for (took, ok) in logins {
                    self.world.stats.note(Operation::Handshake, took, ok, || address.ip());
                }
                self.world.stats.note(Operation::Poll, took, result.is_ok(), || match &result {
                    Ok(answer) => format!("{} readings from {}", answer.readings.len(), address.ip()),
                    Err(error) => format!("{}: {error}", address.ip()),
                });
                match result {
                    Ok(answer) => self.answered(slot, answer, took),
                    Err(error) => self.failed(slot, error),
                }
                drop(waiters); // after the reading has its place
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
        let (pace, reason) = self.adapt(slot, &answer);
        let broken_off = answer.broken_off.take();
        let outcome = broken_off.as_ref().map_or(Outcome::Answered, |error| Outcome::Failed(kind(error)));
        self.schedule.set_pace(slot, pace);
        let misses = self.schedule.finish(slot, outcome, now);
        let is_there = |id: &DeviceId| {
            answer.readings.iter().any(|(known, _)| known == id)
                || answer.implausible.iter().any(|(known, _)| known == id)
        };
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        if let Some(other) = watched.mac.replace(mac).filter(|other| *other != mac) {
            self.slots.remove(&other);
        }
        self.slots.insert(mac, slot);
        watched.unanswered_probes = 0;
        watched.hastened = false;
        watched.barred = None;
        watched.unsupported = None;
        let lost: Vec<_> = watched.observed.iter().copied().filter(|id| !is_there(id)).collect();
        watched.observed.retain(is_there);
        for (id, _) in &answer.readings {
            if !watched.observed.contains(id) {
                watched.observed.push(*id);
            }
        }
        let back = std::mem::take(&mut watched.said.is_offline);
        let tell_break = broken_off.is_some() && misses == 1 && may_say(&mut watched.said.broken_off, now);
        let (address, name) = (watched.place.address, self.settings.name_at(watched.place.address));
        let home = watched.home.replace(watched.place);
        let moved_from = home.map(|home| home.address.ip()).filter(|home| *home != address.ip());

        self.world.sink.remember(&answer.facts, address);
        self.end_observation(&lost, wall);
        for (id, reading) in &answer.readings {
            self.world.sink.append(*id, *reading, pace.interval);
        }
        let mut fleet = self.world.fleet.borrow_mut();
        let before = fleet.get(mac).map(|plug| (plug.facts.firmware.clone(), plug.facts.protocol));
        let plug = fleet.meet(answer.facts, address, name);
        plug.interval = pace.interval;
        plug.reason = reason;
        for (id, reading) in &answer.readings {
            plug.note_newest(*id, reading.time, now);
        }
        plug.outages.end(wall);
        plug.signal = answer.signal;
        plug.last_seen = Some(wall);
        let silent = answer.silent.first().map(|(id, error)| format!("{id}: {error}"));
        let trouble = broken_off.as_ref().map(ToString::to_string).or(silent);
        plug.last_error = trouble.map(|text| Trouble { time: wall, text });
        plug.polls.answered += 1;
        plug.polls.last = took;
        plug.polls.total = plug.polls.total.saturating_add(took);
        plug.polls.refused += u64::try_from(answer.implausible.len()).unwrap_or(0);
        let (presence, title) = (plug.presence, plug.title());
        if let Some(old) = moved_from {
            log::info!("{title}: moved here from {old}");
        }
        plug.presence = Presence::Online;
        match presence {
            Presence::Online => {}
            Presence::Unknown => {
                let meter = if plug.facts.has_meter { "" } else { ", which has no meter: listed only" };
                log::info!("{title}: {} with firmware {}{meter}", plug.facts.model, plug.facts.firmware);
            }
            Presence::Offline { since } => {
                let level = if back { log::Level::Info } else { log::Level::Debug };
                log::log!(level, "{title}: answers again, after {} s", wall.since(since).max(0) / 1_000);
            }
        }
        // What an announcement says of a plug is not all of it: it has no firmware.
        if let Some((firmware, protocol)) = before.filter(|(firmware, _)| !firmware.is_empty()) {
            if firmware != plug.facts.firmware {
                log::info!("{title}: has new firmware, {} after {firmware}", plug.facts.firmware);
            }
            if protocol != plug.facts.protocol {
                log::info!("{title}: is now asked over {} instead of {protocol}", plug.facts.protocol);
            }
        }
        drop(fleet);
        if presence != Presence::Online {
            self.world.sink.presence(mac, presence, Presence::Online);
        }
        self.report(slot, &title, &answer.implausible, now);
        if let Some((id, error)) = answer.silent.first() {
            log::debug!("{title}: {id} does not answer: {error}");
        }
        match broken_off {
            Some(error) if tell_break => {
                log::warn!("{title}: some outlets did not answer: {error} (said once an hour)")
            }
            Some(error) => log::debug!("{title}: some outlets did not answer: {error} (miss {misses})"),
            None => {}
        }
    }

    /// How often a plug that has just answered is to be asked, and why.
    fn adapt(&mut self, slot: Slot, answer: &Answer) -> (Pace, Reason) {
        let pace = self.settings.pace_of(&answer.facts);
        let watched = self.watched.get_mut(&slot).filter(|_| answer.facts.has_meter);
        let Some((most, watched)) = self.settings.adaptive.zip(watched) else { return (pace, Reason::Fixed) };
        for (id, reading) in &answer.readings {
            watched.adaptive.note(id.outlet.unwrap_or(0), reading.power);
        }
        let bounds = Bounds { base: pace.interval, least: pace.least, most };
        let (interval, reason) = watched.adaptive.decide(bounds);
        (Pace { interval, ..pace }, reason)
    }

    /// Tells the sink that these devices are no longer observed. Says from when, the earliest of them.
    fn end_observation(&self, ids: &[DeviceId], now: UnixMillis) -> Option<UnixMillis> {
        let ends = ids.iter().filter_map(|id| {
            let fleet = self.world.fleet.borrow();
            let plug = fleet.get(id.plug)?;
            let (_, last, _) = plug.newest.iter().find(|(known, ..)| known == id)?;
            let interval = i64::try_from(plug.interval.as_millis()).unwrap_or(i64::MAX);
            // Not before the reading itself, where the wall clock was set back meanwhile.
            Some((*id, last.plus(interval).min(now.max(*last))))
        });
        let ends: Vec<_> = ends.collect();
        for (id, from) in &ends {
            self.world.sink.gap(*id, *from);
        }
        ends.into_iter().map(|(_, from)| from).min()
    }

    /// Which other plug answers at this plug's address, if one does.
    fn displaced(&self, slot: Slot) -> Option<PollError> {
        let own = self.watched.get(&slot)?;
        let others = self
            .watched
            .iter()
            .filter(|(other, watched)| **other != slot && watched.place.address.ip() == own.place.address.ip());
        let answering = others.filter_map(|(_, other)| other.mac).find(|mac| self.answers(*mac))?;
        let found = self.world.fleet.borrow().get(answering)?.facts.clone();
        Some(PollError::WrongDevice { expected: own.mac?, found: Box::new(found) })
    }

    /// Whether the plug answers where it is.
    fn answers(&self, mac: Mac) -> bool {
        let online = self.world.fleet.borrow().get(mac).is_some_and(|plug| plug.presence == Presence::Online);
        online && self.slot_of(mac).is_some_and(|slot| self.schedule.misses(slot) == 0)
    }

    /// One line an hour about values that no outlet can have.
    fn report(&mut self, slot: Slot, title: &str, implausible: &[(DeviceId, OutOfRange)], now: Duration) {
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        if let Some((id, value)) = implausible.first()
            && may_say(&mut watched.said.implausible, now)
        {
            log::warn!("{title}: {id} claims that {value}; not recorded (said once an hour)");
        }
    }

    fn failed(&mut self, slot: Slot, error: PollError) {
        let now = self.world.clock.elapsed();
        self.world.stats.poll_failed(kind(&error).name());
        let misses = self.schedule.finish(slot, Outcome::Failed(kind(&error)), now);
        if misses == 1 {
            self.look_for_lost(now);
        }
        let due = self.schedule.due(slot).unwrap_or(now);
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        watched.adaptive.forget();
        if is_refused_login(&error) {
            // Whatever refuses a login is there. It is not asked again before its time, whoever speaks of it meanwhile.
            watched.home.get_or_insert(watched.place);
            if watched.barred.as_ref().is_none_or(|bar| bar.place != watched.place || now >= bar.until) {
                watched.barred = Some(Bar { place: watched.place, until: due, error: error.clone() });
            }
        }
        let (mac, lost) = (watched.mac, std::mem::take(&mut watched.observed));
        let wall = self.world.clock.wall();
        let from = self.end_observation(&lost, wall);
        let mut fleet = self.world.fleet.borrow_mut();
        if let Some(plug) = mac.and_then(|mac| fleet.get_mut(mac))
            && plug.polls.answered > 0
        {
            plug.outages.begin(from.unwrap_or(wall));
        }
        drop(fleet);
        self.note_trouble(slot, &error, misses);
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let place = watched.place;
        match watched.home {
            None if misses >= limits::STRANGER_MISSES => {
                self.forget(slot);
                if let Some(mac) = mac {
                    self.world.fleet.borrow_mut().forget(mac);
                }
            }
            // A datagram had called it here in vain: it is looked for again where it last was.
            Some(home) if home != place => {
                watched.place = home;
                watched.client = Some(Client::new(home, mac));
            }
            _ => {}
        }
        if let PollError::WrongDevice { found, .. } = error {
            let is_open = place.protocol == Protocol::IotXor;
            let manner = if is_open { Manner::Introduced } else { Manner::Announced };
            self.sighted(Sighting { address: place.address, facts: *found, manner });
        }
    }

    /// Notes what went wrong with a plug, and says so once per outage; of a refused login at once, for a person has to act.
    fn note_trouble(&mut self, slot: Slot, error: &PollError, misses: u32) {
        let now = self.world.clock.elapsed();
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let wall = self.world.clock.wall();
        let until = watched.barred.as_ref().filter(|bar| bar.place == watched.place && now < bar.until);
        let is_login = is_refused_login(error);
        let text = match until {
            // When it is asked again is worth knowing only where nobody can hasten it.
            Some(bar) if is_login => {
                let pause = i64::try_from(bar.until.saturating_sub(now).as_millis()).unwrap_or(i64::MAX);
                format!("{error}; not asked again before {}", wall.plus(pause))
            }
            _ => watched.unsupported.as_ref().unwrap_or(error).to_string(),
        };
        let trouble = Trouble { time: wall, text: text.clone() };
        let mut fleet = self.world.fleet.borrow_mut();
        let mut gone = None;
        let title = match watched.mac.and_then(|mac| fleet.get_mut(mac)) {
            Some(plug) => {
                plug.polls.failed += 1;
                plug.last_error = Some(trouble);
                if misses >= limits::MISSES_UNTIL_OFFLINE && !matches!(plug.presence, Presence::Offline { .. }) {
                    let was = std::mem::replace(&mut plug.presence, Presence::Offline { since: wall });
                    gone = Some((plug.facts.mac, was, plug.presence));
                }
                plug.title()
            }
            None => {
                if let Some(unmet) = fleet.unmet_mut(watched.place.address.ip()) {
                    unmet.last_error = Some(trouble);
                }
                format!("the plug at {}", watched.place.address.ip())
            }
        };
        drop(fleet);
        if let Some((plug, was, is)) = gone {
            self.world.sink.presence(plug, was, is);
        }
        if is_login && misses == 1 {
            watched.said.is_offline = true;
            log::warn!("{title}: {text}");
        } else if !is_login
            && misses == limits::MISSES_UNTIL_OFFLINE
            && watched.home.is_some()
            && may_say(&mut watched.said.offline, now)
        {
            watched.said.is_offline = true;
            log::warn!("{title}: offline: {text}; trying again, less and less often");
        } else {
            log::debug!("{title}: {text} (miss {misses})");
        }
    }

    fn sighted(&mut self, sighting: Sighting) {
        let now = self.world.clock.elapsed();
        let ip = sighting.address.ip();
        // Without discovery only those are heard that are asked.
        let is_asked = || self.watched.values().any(|watched| watched.place.address.ip() == ip);
        if self.settings.discover_every.is_none() && !is_asked() {
            return;
        }
        let mac = sighting.facts.mac;
        let Some(slot) = self.slot_of(mac) else { return self.discovered(sighting) };
        let (misses, answers) = (self.schedule.misses(slot), self.answers(mac));
        let Some(watched) = self.watched.get_mut(&slot) else { return };
        let is_here = watched.place.address.ip() == ip;
        match &sighting.manner {
            Manner::Introduced if is_here => watched.heard_open = Some(now),
            Manner::Introduced => {}
            // A plug that answers in the open as well is asked there.
            _ if is_here && watched.heard_open.is_some_and(|at| now < at.saturating_add(OPEN_LASTS)) => return,
            Manner::Announced => {}
            Manner::Unsupported(_) => {
                if misses > 0 && is_here {
                    watched.unsupported = sighting.trouble();
                }
                return;
            }
        }
        watched.unsupported = None;
        let probes = std::mem::take(&mut watched.unanswered_probes);
        let place = sighting.place();
        if watched.place == place {
            // News after silence ends the back-off. A plug that answers every datagram but no connection is no news: it
            // is tried at a bounded pace, so that it is missed neither for minutes nor in a storm.
            let is_barred = watched.barred.as_ref().is_some_and(|bar| bar.place == place && now < bar.until);
            if misses == 0 {
                self.schedule.seen(slot, now);
            } else if !is_barred {
                let is_news = probes > 1 || !std::mem::replace(&mut watched.hastened, true);
                if is_news {
                    self.schedule.seen(slot, now);
                } else {
                    self.schedule.hasten(slot, limits::RETRY_SEEN.max(self.settings.interval), now);
                }
            }
            return;
        }
        // Anyone can send a datagram. A plug that answers where it is stays there, and stays with its protocol.
        if answers {
            return;
        }
        let old = std::mem::replace(&mut watched.place, place);
        watched.client = Some(Client::new(place, Some(mac)));
        if watched.poll.take().is_some() {
            self.schedule.finish(slot, Outcome::Failed(Failure::WrongDevice), now);
        }
        self.schedule.hasten(slot, Duration::ZERO, now);
        let title = self.world.fleet.borrow().get(mac).map(fleet::Plug::title).unwrap_or_default();
        let (old_at, at) = (old.address, place.address);
        log::debug!("{title}: heard of at {at} over {} instead of {old_at} over {}", place.protocol, old.protocol);
    }

    fn discovered(&mut self, sighting: Sighting) {
        let place = sighting.place();
        let ip = place.address.ip();
        let waiting =
            self.watched.iter_mut().find(|(_, watched)| watched.place.address.ip() == ip && watched.mac.is_none());
        if let Some((slot, waiting)) = waiting {
            let slot = *slot;
            waiting.unsupported = sighting.trouble();
            if waiting.unsupported.is_none() && waiting.poll.is_none() {
                // What a pinned address speaks is known only now.
                waiting.mac = Some(sighting.facts.mac);
                waiting.heard_open = (sighting.manner == Manner::Introduced).then(|| self.world.clock.elapsed());
                waiting.home = waiting.home.map(|_| place);
                waiting.place = place;
                waiting.client = Some(Client::new(place, waiting.mac));
                self.slots.insert(sighting.facts.mac, slot);
                self.schedule.seen(slot, self.world.clock.elapsed());
            }
            return;
        }
        if let Manner::Unsupported(name) = &sighting.manner {
            return log::debug!("{} at {ip} wants \"{name}\", which is not supported", sighting.facts.mac);
        }
        let Sighting { facts, manner, .. } = sighting;
        let at_address = self.watched.values().filter(|watched| watched.place.address.ip() == ip);
        let (mut here, mut strangers_here) = (0, 0);
        for watched in at_address {
            here += 1;
            strangers_here += usize::from(watched.home.is_none());
        }
        let strangers = self.watched.values().filter(|watched| watched.home.is_none()).count();
        if strangers_here > 0 || here >= limits::PLUGS_AN_ADDRESS {
            return;
        }
        if self.watched.len() >= limits::PLUGS || strangers >= limits::STRANGERS {
            if !std::mem::replace(&mut self.full, true) {
                log::warn!(
                    "{} at {ip} and others are passed over: at most {} plugs are watched, {} of them before they have answered",
                    facts.mac,
                    limits::PLUGS,
                    limits::STRANGERS
                );
            }
            return;
        }
        let (mac, pace) = (facts.mac, self.settings.pace_of(&facts));
        let mut fleet = self.world.fleet.borrow_mut();
        fleet.meet(facts, place.address, self.settings.name_at(place.address)).interval = pace.interval;
        drop(fleet);
        let slot = self.watch(place, Some(mac), pace, true, true);
        if let Some(watched) = self.watched.get_mut(&slot).filter(|_| manner == Manner::Introduced) {
            watched.heard_open = Some(self.world.clock.elapsed());
        }
    }

    fn forget(&mut self, slot: Slot) {
        self.schedule.remove(slot);
        if let Some(watched) = self.watched.remove(&slot) {
            self.slots.retain(|_, other| *other != slot);
            self.world.fleet.borrow_mut().found_elsewhere(watched.place.address.ip());
        }
    }

    fn slot_of(&self, mac: Mac) -> Option<Slot> {
        self.slots.get(&mac).copied()
    }

    /// When the agent counts as ready though some plugs have not had their turn: dead ones may take long.
    fn ready_at_last(&self) -> Duration {
        self.settled.saturating_add(limits::POLL_BUDGET)
    }

    fn note_ready(&mut self, now: Duration) {
        let all_tried = now >= self.settled && self.watched.values().all(|watched| watched.tried);
        if !self.world.ready.get() && (all_tried || now >= self.ready_at_last()) {
            self.world.ready.set(true);
            let fleet = self.world.fleet.borrow();
            let online = fleet.plugs().filter(|plug| plug.presence == Presence::Online).count();
            let rest = fleet.plugs().count() - online + fleet.unmet().count();
            log::info!("ready: {online} plugs answer, {rest} do not");
        }
    }

    /// A plug has missed a poll, or many fall silent: before it is given up as offline, it is probed, and looked for elsewhere.
    fn look_for_lost(&mut self, now: Duration) {
        self.next_probe = self.next_probe.min(self.probed.saturating_add(PROBE_SPACING).max(now));
        if self.round.0 == limits::DISCOVERY_PROBES {
            self.round.1 = self.round.1.min(self.searched.saturating_add(SEARCH_GAP).max(now));
        }
    }

    /// Sends the probes that are due: of the discovery round, and to plugs that have gone silent.
    async fn search(&mut self, now: Duration) {
        let Some(prober) = self.prober.clone() else { return };
        if now >= self.next_probe {
            self.probed = now;
            self.next_probe = now.saturating_add(self.settings.interval);
            for (slot, watched) in &mut self.watched {
                if self.schedule.is_missed(*slot) {
                    watched.unanswered_probes = watched.unanswered_probes.saturating_add(1);
                    probe(&prober, watched.place.address.ip()).await;
                }
            }
        }
        let Some(every) = self.settings.discover_every else { return };
        let (left, at) = self.round;
        if now >= at {
            for target in &self.settings.targets {
                probe(&prober, IpAddr::V4(*target)).await;
            }
            self.searched = now;
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
        let silent = self.watched.keys().any(|slot| self.schedule.is_missed(*slot));
        let probe = if silent { self.next_probe } else { Duration::MAX };
        probe.min(if self.settings.discover_every.is_some() { self.round.1 } else { Duration::MAX })
    }
}

/// What kind of failure an error is: how soon it makes sense to try again.
fn kind(error: &PollError) -> Failure {
    match error {
        PollError::Timeout { .. } | PollError::Io(_) => Failure::Timeout,
        PollError::ConnectionRefused | PollError::Closed => Failure::Refused,
        PollError::BadLength(_)
        | PollError::NotJson
        | PollError::Missing { .. }
        | PollError::Refused { .. }
        | PollError::NotAPlug { .. }
        | PollError::BadHttp { .. }
        | PollError::UnknownProtocol { .. }
        | PollError::TooManyOutlets => Failure::Garbage,
        PollError::WrongDevice { .. } => Failure::WrongDevice,
        PollError::Session(error) => match error {
            SessionError::WrongCredentials | SessionError::AccountNeeded | SessionError::Unsupported { .. } => {
                Failure::Login
            }
            SessionError::LockedOut => Failure::LockedOut,
            SessionError::SessionGone => Failure::Refused,
            SessionError::OtherProtocol
            | SessionError::BadSignature
            | SessionError::Garbage { .. }
            | SessionError::Status(_)
            | SessionError::Refused { .. } => Failure::Garbage,
        },
    }
}

/// Whether it is of no use, or does harm, to log in again soon.
fn is_refused_login(error: &PollError) -> bool {
    matches!(kind(error), Failure::Login | Failure::LockedOut)
}

async fn probe(prober: &Prober, target: IpAddr) {
    if let Err(error) = prober.probe(target).await {
        log::debug!("no probe could be sent to {target}: {error}");
    }
}

async fn listen<S: Stream>(mut listener: Listener, events: Sender<Event<S>>) {
    let (mut failing, mut heard) = (false, 0_usize);
    loop {
        match listener.next().await {
            Ok(sighting) => {
                failing = false;
                if events.send(Event::Sighted(Box::new(sighting))).await.is_err() {
                    return;
                }
                // A flood is cut to what a second of an honest network can bring; the system drops the rest.
                heard += 1;
                if heard % limits::DISCOVERED_HOSTS == 0 {
                    smol::Timer::after(PROBE_SPACING).await;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("discovery hears nothing: {error}; tried again every second, plugs already known go on");
                }
                smol::Timer::after(PROBE_SPACING).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plug_that_comes_and_goes_all_day_is_told_once_an_hour() {
        let mut last = None;
        let told = (0..86_400).step_by(20).filter(|second| may_say(&mut last, Duration::from_secs(*second))).count();
        assert_eq!(told, 24);
    }
}
