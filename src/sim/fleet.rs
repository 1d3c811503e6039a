//! Plugs on sockets: a thread, an executor of its own, and the handle that tests and `plugsim` hold.
//!
//! Owns listening, framing, faults and counts. Promises that a call on [`Fleet`] has taken effect when it returns (after
//! [`Fault::Refuse`] nothing listens any more), that the thread and its sockets are gone when the handle has been dropped,
//! that only loopback addresses are bound, and that the ledger holds the readings of whole replies alone, each from the
//! moment before its reply leaves.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_net::{TcpListener, TcpStream, UdpSocket};
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::{LocalExecutor, Timer, future};

use super::door::{Door, Event, Keeper};
use super::load::mix;
use super::spec::invalid;
use super::web::Ask;
use super::{Fault, FleetSpec, Lie, Model, Pace, PlugState, Served, ServedReading, Via, announce, reply, smart, web};
use crate::clock::{Clock, SystemClock};
use crate::plug::{tdp, xor};
use crate::reading::{DeviceId, Mac, Protocol};

/// Connections a plug holds at once; a further one is accepted and closed. Real ones have memory for a handful.
pub const CONNECTIONS_PER_PLUG: u64 = 4;
/// How long a connection may be idle, or a peer may leave a reply unread.
const IDLE: Duration = Duration::from_secs(900);
/// Datagrams of a plug that wait for their delay to pass.
const DELAYED: u64 = 16;
/// Bytes read at a time; also the longest datagram understood. Requests are shorter.
const BUFFER: usize = 4 * 1024;
/// What [`Fault::StrayBytes`] sends too much.
const STRAY: [u8; 3] = [0, 0, 0x2a];

/// A plug by its place in the spec, from 0, or by the address it has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Its place in [`FleetSpec::plugs`].
    Index(usize),
    /// Its address.
    Address(Ipv4Addr),
}

impl From<usize> for Which {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl From<Ipv4Addr> for Which {
    fn from(address: Ipv4Addr) -> Self {
        Self::Address(address)
    }
}

/// What a plug has seen of its peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub connections: u64,
    /// The most connections open at one time.
    pub max_connections: u64,
    /// Connections closed at once because [`CONNECTIONS_PER_PLUG`] were open.
    pub over_limit: u64,
    /// Whole requests over TCP.
    pub requests: u64,
    /// Datagrams, discovery included.
    pub datagrams: u64,
    /// The most TCP requests without a finished reply at one time, a request sent behind an unanswered one included.
    pub max_in_flight: u64,
    /// Requests that did not come in one piece: real plugs take each segment for a message.
    pub split_requests: u64,
    /// Commands that change something or disturb the plug's network. A monitor sends none.
    pub writes_seen: u64,
    /// Logins begun.
    pub handshakes: u64,
    /// Logins that were refused for what they proved.
    pub logins_refused: u64,
    /// The least real time between two readings of one outlet, asked over TCP.
    pub closest: Option<Duration>,
}

impl Counters {
    /// Sums, and the larger of what is a maximum.
    fn with(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            max_connections: self.max_connections.max(other.max_connections),
            over_limit: self.over_limit + other.over_limit,
            requests: self.requests + other.requests,
            datagrams: self.datagrams + other.datagrams,
            max_in_flight: self.max_in_flight.max(other.max_in_flight),
            split_requests: self.split_requests + other.split_requests,
            writes_seen: self.writes_seen + other.writes_seen,
            handshakes: self.handshakes + other.handshakes,
            logins_refused: self.logins_refused + other.logins_refused,
            closest: self.closest.into_iter().chain(other.closest).min(),
        }
    }
}

/// A plug as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct PlugView {
    /// Its place in [`FleetSpec::plugs`].
    pub index: usize,
    /// Where it listens, or would.
    pub address: Ipv4Addr,
    /// Its hardware address, the true one.
    pub mac: Mac,
    /// What it is.
    pub model: Model,
    /// Its alias.
    pub alias: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// What is connected, outlet by outlet.
    pub loads: Vec<super::Load>,
    /// What is wrong with it.
    pub fault: Option<Fault>,
    /// What it has seen.
    pub counters: Counters,
}

/// What was served in whole replies, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: VecDeque<Served>,
    room: usize,
    next: u64,
}

impl Ledger {
    fn add(&mut self, readings: Vec<ServedReading>) {
        for reading in readings {
            if self.room == 0 {
                return;
            }
            if self.entries.len() >= self.room {
                self.entries.pop_front();
            }
            self.entries.push_back(Served { sequence: self.next, reading });
            self.next += 1;
        }
    }

    /// What is kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Served> {
        self.entries.iter()
    }

    /// How many readings are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many were served in all. More than [`Ledger::len`] means that the oldest had to go.
    #[must_use]
    pub const fn served(&self) -> u64 {
        self.next
    }
}

enum Task {
    Fault(Which, Option<Fault>),
    Move(Which, Ipv4Addr),
    Speak(Which, Protocol),
    View,
}

enum Done {
    Changed(io::Result<()>),
    Plugs(Vec<PlugView>),
}

struct Command {
    task: Task,
    done: mpsc::SyncSender<Done>,
}

/// A running fleet. It stops when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    ledger: Arc<Mutex<Ledger>>,
    discovery: Option<Ipv4Addr>,
    port: u16,
    http_port: u16,
}

impl Fleet {
    /// Binds all addresses and starts to answer. The file limit of the process is raised as far as that needs and may.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for an address that is not loopback or is there twice, else the error of binding;
    /// both with the address in the text.
    pub fn start(spec: FleetSpec) -> io::Result<Self> {
        check(&spec)?;
        make_room_for(&spec);
        let ledger = Arc::new(Mutex::new(Ledger { room: spec.ledger, ..Ledger::default() }));
        let (discovery, port, http_port) = (spec.discovery, spec.port, spec.http_port);
        // Commands come from callers that wait for each, so that few are ever under way.
        let (commands, orders) = smol::channel::bounded(64);
        let (started, has_started) = mpsc::sync_channel(1);
        let shared = Arc::clone(&ledger);
        let thread = std::thread::Builder::new()
            .name("plugs".to_owned())
            .spawn(move || smol::block_on(run(spec, shared, orders, started)))?;
        let fleet = Self { commands, thread: Some(thread), ledger, discovery, port, http_port };
        has_started.recv().map_err(|_| gone())??;
        Ok(fleet)
    }

    /// Lets a plug misbehave from now on, in place of the fault it had. A [`Fault::Restart`] clears itself.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no such plug; an error of binding when a plug that did not listen cannot.
    pub fn set_fault(&self, plug: impl Into<Which>, fault: Fault) -> io::Result<()> {
        self.change(Task::Fault(plug.into(), Some(fault)))
    }

    /// Lets a plug behave again.
    ///
    /// # Errors
    /// As [`Fleet::set_fault`].
    pub fn clear(&self, plug: impl Into<Which>) -> io::Result<()> {
        self.change(Task::Fault(plug.into(), None))
    }

    /// Gives a plug another address: nothing listens on the old one any more, its connections drop, and from the new one
    /// it also answers discovery. When the new one cannot be had the plug stays where it was.
    ///
    /// # Errors
    /// As [`Fleet::set_fault`], and [`io::ErrorKind::InvalidInput`] when the address is not loopback or another plug's.
    pub fn move_to(&self, plug: impl Into<Which>, address: Ipv4Addr) -> io::Result<()> {
        self.change(Task::Move(plug.into(), address))
    }

    /// Gives a plug firmware that speaks another protocol, as updates do over night: the ports of the old one close, and
    /// its sessions are gone.
    ///
    /// # Errors
    /// As [`Fleet::set_fault`], and [`io::ErrorKind::InvalidInput`] when the model cannot.
    pub fn speak(&self, plug: impl Into<Which>, protocol: Protocol) -> io::Result<()> {
        self.change(Task::Speak(plug.into(), protocol))
    }

    /// All plugs in the order of the spec.
    #[must_use]
    pub fn plugs(&self) -> Vec<PlugView> {
        match self.send(Task::View) {
            Ok(Done::Plugs(plugs)) => plugs,
            _ => Vec::new(), // only a thread that has ended does not answer
        }
    }

    /// What one plug has seen; nothing when there is no such plug.
    #[must_use]
    pub fn counters(&self, plug: impl Into<Which>) -> Counters {
        let which = plug.into();
        let found = self.plugs().into_iter().find(|plug| match which {
            Which::Index(index) => plug.index == index,
            Which::Address(address) => plug.address == address,
        });
        found.map(|plug| plug.counters).unwrap_or_default()
    }

    /// What all plugs together have seen: sums, and the maximum over the plugs of what is a maximum.
    #[must_use]
    pub fn total(&self) -> Counters {
        self.plugs().into_iter().fold(Counters::default(), |sum, plug| sum.with(plug.counters))
    }

    /// A copy of what was served in whole replies.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        lock(&self.ledger).clone()
    }

    /// Where a query is answered by every plug.
    #[must_use]
    pub const fn discovery(&self) -> Option<Ipv4Addr> {
        self.discovery
    }

    /// The port of all plugs that speak XOR.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The port of all plugs that speak HTTP.
    #[must_use]
    pub const fn http_port(&self) -> u16 {
        self.http_port
    }

    fn change(&self, task: Task) -> io::Result<()> {
        match self.send(task)? {
            Done::Changed(result) => result,
            Done::Plugs(_) => Ok(()),
        }
    }

    fn send(&self, task: Task) -> io::Result<Done> {
        let (done, answer) = mpsc::sync_channel(1);
        self.commands.send_blocking(Command { task, done }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.commands.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in there has already been printed
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the simulator's thread has ended")
}

/// The lock, whatever happened to the thread that had it: counts and ledger are whole after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(spec: &FleetSpec) -> io::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for address in spec.plugs.iter().map(|plug| plug.address).chain(spec.discovery) {
        check_loopback(address)?;
        if !seen.insert(address) {
            return Err(invalid(format!("{address} is given to two plugs; each needs an address of its own")));
        }
    }
    spec.plugs.iter().try_for_each(|plug| check_protocol(plug.model, plug.protocol))
}

/// A model has one dialect for life; what carries it changes with the firmware.
fn check_protocol(model: Model, protocol: Protocol) -> io::Result<()> {
    if model.is_smart() == is_smart(protocol) {
        return Ok(());
    }
    Err(invalid(format!("{model} does not speak {protocol}: the dialect of a model never changes")))
}

const fn is_smart(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::SmartKlap | Protocol::SmartTpap | Protocol::SmartAes)
}

fn check_loopback(address: Ipv4Addr) -> io::Result<()> {
    if address.is_loopback() {
        return Ok(());
    }
    Err(invalid(format!("{address} is not a loopback address (127.x.y.z); simulated plugs serve no other")))
}

/// Raises the soft limit of open files to what the fleet may use: two sockets for each plug and its connections. Where
/// the hard limit does not allow it, binding says so.
fn make_room_for(spec: &FleetSpec) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Room for one connection each, for the agent's ends of them in the same process, and for everything else.
    let wanted = u64::try_from(spec.plugs.len()).unwrap_or(u64::MAX).saturating_mul(5).saturating_add(512);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum });
    }
}

/// The thread: binds, reports, obeys until the handle is dropped. Leaving the executor drops every task and socket.
async fn run(
    spec: FleetSpec,
    ledger: Arc<Mutex<Ledger>>,
    orders: Receiver<Command>,
    started: mpsc::SyncSender<io::Result<()>>,
) {
    let executor = Rc::new(LocalExecutor::new());
    executor
        .run(async {
            let world = World::new(&spec, ledger, Rc::downgrade(&executor));
            if let Err(error) = world.bind(spec.discovery).await {
                let _ = started.send(Err(error));
                return;
            }
            if started.send(Ok(())).is_err() {
                return;
            }
            while let Ok(Command { task, done }) = orders.recv().await {
                let _ = done.send(match task {
                    Task::Fault(which, fault) => Done::Changed(world.set_fault(which, fault).await),
                    Task::Move(which, address) => Done::Changed(world.move_to(which, address).await),
                    Task::Speak(which, protocol) => Done::Changed(world.speak(which, protocol).await),
                    Task::View => Done::Plugs(world.view()),
                });
            }
        })
        .await;
}

/// All plugs and what they share.
struct World {
    plugs: Vec<Rc<Plug>>,
    port: u16,
    http_port: u16,
    pace: Pace,
    clock: SystemClock,
    ledger: Arc<Mutex<Ledger>>,
    /// Weak, because the executor holds tasks that hold this.
    executor: Weak<LocalExecutor<'static>>,
}

/// One plug: what it is, how it fares, and its sockets.
struct Plug {
    index: usize,
    mac: Mac,
    model: Model,
    loads: Vec<super::Load>,
    address: Cell<Ipv4Addr>,
    state: RefCell<PlugState>,
    protocol: Cell<Protocol>,
    keeper: Keeper,
    door: RefCell<Door>,
    /// When each outlet was last read.
    read: RefCell<BTreeMap<DeviceId, Duration>>,
    fault: Cell<Option<Fault>>,
    counters: Cell<Counters>,
    /// Requests without a finished reply.
    in_flight: Cell<u64>,
    /// Datagrams that wait for their delay.
    delayed: Cell<u64>,
    /// Set while it listens.
    sockets: RefCell<Option<Sockets>>,
    /// Counts the changes of fault and address, so that a restart does not undo a later one.
    changes: Cell<u64>,
}

#[derive(Clone)]
struct Sockets {
    /// Held so that `life` is not closed before its time; nothing is ever sent.
    _sender: Sender<()>,
    /// Closing it ends every task of the plug's.
    life: Receiver<()>,
    /// By their ports.
    udp: Vec<(u16, UdpSocket)>,
    /// Whether connections are taken.
    is_open: Rc<Cell<bool>>,
    /// Held once here and once by each task that serves these sockets.
    tasks: Rc<()>,
}

impl Sockets {
    fn task(&self) -> Alive {
        Alive { life: self.life.clone(), _task: Rc::clone(&self.tasks) }
    }
}

/// What a task of a plug needs to know when to end.
struct Alive {
    life: Receiver<()>,
    _task: Rc<()>,
}

impl Alive {
    /// Does `work` unless the plug's sockets are closed first.
    async fn during(self, work: impl Future<Output = ()>) {
        future::or(work, async {
            let _ = self.life.recv().await; // nothing is ever sent: this returns when it is closed
        })
        .await;
    }
}

/// One more while it lives.
struct Counted<'a>(&'a Cell<u64>);

impl<'a> Counted<'a> {
    fn one(cell: &'a Cell<u64>) -> Self {
        cell.set(cell.get() + 1);
        Self(cell)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Plug {
    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Notes `waiting` more requests than those in flight.
    fn note_in_flight(&self, waiting: u64) {
        let now = self.in_flight.get() + waiting;
        self.count(|counters| counters.max_in_flight = counters.max_in_flight.max(now));
    }

    /// Notes that these were read now.
    fn note_pace(&self, served: &[ServedReading], now: Duration) {
        for reading in served {
            let before = self.read.borrow_mut().insert(reading.device, now);
            if let Some(gap) = before.and_then(|before| now.checked_sub(before)) {
                self.count(|counters| counters.closest = Some(counters.closest.map_or(gap, |least| least.min(gap))));
            }
        }
    }

    /// Closes its sockets and waits until nothing uses them any more.
    async fn take_down(&self) {
        let sockets = self.sockets.borrow_mut().take();
        if let Some(Sockets { _sender, life, udp, tasks, .. }) = sockets {
            life.close();
            drop(udp);
            while Rc::strong_count(&tasks) > 1 {
                future::yield_now().await;
            }
        }
    }
}

impl World {
    fn new(spec: &FleetSpec, ledger: Arc<Mutex<Ledger>>, executor: Weak<LocalExecutor<'static>>) -> Rc<Self> {
        let clock = SystemClock::start();
        let epoch = spec.epoch.unwrap_or_else(|| clock.wall());
        let plugs = spec.plugs.iter().enumerate().map(|(index, plug)| {
            Rc::new(Plug {
                index,
                mac: plug.mac,
                model: plug.model,
                loads: plug.loads.clone(),
                address: Cell::new(plug.address),
                state: RefCell::new(PlugState::new(plug, epoch)),
                protocol: Cell::new(plug.protocol),
                door: RefCell::new(Door::new(plug.protocol, &Keeper::new(plug, &spec.account), spec.http_port)),
                keeper: Keeper::new(plug, &spec.account),
                read: RefCell::default(),
                fault: Cell::new(None),
                counters: Cell::default(),
                in_flight: Cell::default(),
                delayed: Cell::default(),
                sockets: RefCell::default(),
                changes: Cell::default(),
            })
        });
        let (port, http_port) = (spec.port, spec.http_port);
        Rc::new(Self { plugs: plugs.collect(), port, http_port, pace: spec.pace, clock, ledger, executor })
    }

    /// Simulated time.
    fn now(&self) -> Duration {
        match self.pace {
            Pace::Frozen(at) => at,
            Pace::Times(factor) => {
                let factor = if factor.is_finite() { factor.clamp(0.0, 100_000.0) } else { 1.0 };
                Duration::try_from_secs_f64(self.clock.elapsed().as_secs_f64() * factor).unwrap_or(Duration::MAX)
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if let Some(executor) = self.executor.upgrade() {
            executor.spawn(task).detach();
        }
    }

    async fn bind(self: &Rc<Self>, discovery: Option<Ipv4Addr>) -> io::Result<()> {
        for plug in &self.plugs {
            self.bring_up(plug).await?;
        }
        if let Some(address) = discovery {
            for port in [self.port].into_iter().chain(tdp::PORTS) {
                let socket = bind_udp(address, port).await?;
                let world = Rc::clone(self);
                self.spawn(async move { world.hear_discovery(port, &socket).await });
            }
        }
        Ok(())
    }

    /// Lets a plug listen on its address; nothing to do when it does.
    async fn bring_up(self: &Rc<Self>, plug: &Rc<Plug>) -> io::Result<()> {
        let is_asleep = plug.fault.get() == Some(Fault::Asleep) && plug.protocol.get() != Protocol::IotXor;
        let standing = plug.sockets.borrow().clone();
        if let Some(sockets) = standing {
            return if is_asleep { Ok(()) } else { self.open(plug, &sockets).await };
        }
        let address = plug.address.get();
        let ports: &[u16] = if plug.protocol.get() == Protocol::IotXor { &[self.port] } else { &tdp::PORTS };
        let (_sender, life) = smol::channel::bounded(1);
        let mut sockets = Sockets { _sender, life, udp: Vec::new(), is_open: Rc::default(), tasks: Rc::new(()) };
        for port in ports {
            sockets.udp.push((*port, bind_udp(address, *port).await?));
        }
        if !is_asleep {
            self.open(plug, &sockets).await?;
        }
        for (port, socket) in sockets.udp.clone() {
            let (world, of) = (Rc::clone(self), Rc::clone(plug));
            self.spawn(sockets.task().during(async move { world.hear(&of, port, &socket).await }));
        }
        *plug.sockets.borrow_mut() = Some(sockets);
        Ok(())
    }

    /// Lets a plug take connections; nothing to do when it does.
    async fn open(self: &Rc<Self>, plug: &Rc<Plug>, sockets: &Sockets) -> io::Result<()> {
        if sockets.is_open.get() {
            return Ok(());
        }
        let (address, is_xor) = (plug.address.get(), plug.protocol.get() == Protocol::IotXor);
        let port = if is_xor { self.port } else { self.http_port };
        let listener = TcpListener::bind((address, port)).await.map_err(|error| explain(error, address, port))?;
        sockets.is_open.set(true);
        let (world, of, its) = (Rc::clone(self), Rc::clone(plug), sockets.clone());
        self.spawn(sockets.task().during(async move { world.accept(&of, &listener, &its).await }));
        Ok(())
    }

    fn find(&self, which: Which) -> io::Result<&Rc<Plug>> {
        let found = match which {
            Which::Index(index) => self.plugs.get(index),
            Which::Address(address) => self.plugs.iter().find(|plug| plug.address.get() == address),
        };
        found.ok_or_else(|| {
            let what = match which {
                Which::Index(index) => {
                    format!("there are {} plugs, none is number {}", self.plugs.len(), index.saturating_add(1))
                }
                Which::Address(address) => format!("no plug has the address {address}"),
            };
            io::Error::new(io::ErrorKind::NotFound, what)
        })
    }

    async fn set_fault(self: &Rc<Self>, which: Which, fault: Option<Fault>) -> io::Result<()> {
        let plug = self.find(which)?;
        if fault == Some(Fault::CounterReset) {
            plug.state.borrow_mut().reset_counters(self.now());
            return Ok(());
        }
        if fault == Some(Fault::SessionLost) {
            plug.door.borrow_mut().forget();
            return Ok(());
        }
        plug.fault.set(fault);
        plug.changes.set(plug.changes.get() + 1);
        plug.state.borrow_mut().set_lie(match fault {
            Some(Fault::WrongDevice) => Some(Lie::Identity),
            Some(Fault::Glitch) => Some(Lie::Power),
            _ => None,
        });
        match fault {
            Some(Fault::Refuse) => plug.take_down().await,
            Some(Fault::Restart(off_for)) => self.restart(plug, off_for).await,
            Some(Fault::Close | Fault::Asleep) => {
                plug.take_down().await; // its connections go as well
                self.bring_up(plug).await?;
            }
            _ => self.bring_up(plug).await?,
        }
        Ok(())
    }

    /// Takes a plug down at once, and up again after `off_for` unless something else was ordered in between.
    async fn restart(self: &Rc<Self>, plug: &Rc<Plug>, off_for: Duration) {
        plug.take_down().await;
        let (world, plug, change) = (Rc::clone(self), Rc::clone(plug), plug.changes.get());
        self.spawn(async move {
            Timer::after(off_for).await;
            // Should someone have taken the address meanwhile, it is tried again for some time.
            for _ in 0..100 {
                if plug.changes.get() != change {
                    return;
                }
                plug.state.borrow_mut().restart(world.now());
                plug.door.borrow_mut().forget();
                plug.fault.set(None);
                if world.bring_up(&plug).await.is_ok() {
                    return;
                }
                Timer::after(Duration::from_millis(500)).await;
            }
            plug.fault.set(Some(Fault::Refuse));
        });
    }

    async fn move_to(self: &Rc<Self>, which: Which, to: Ipv4Addr) -> io::Result<()> {
        check_loopback(to)?;
        let plug = self.find(which)?;
        let from = plug.address.get();
        if from == to {
            return Ok(());
        }
        if self.plugs.iter().any(|other| other.address.get() == to) {
            return Err(invalid(format!("{to} is another plug's address; choose one that is free")));
        }
        let was_listening = plug.sockets.borrow().is_some();
        plug.take_down().await;
        plug.address.set(to);
        plug.state.borrow_mut().set_address(to);
        if was_listening && let Err(error) = self.bring_up(plug).await {
            plug.address.set(from);
            plug.state.borrow_mut().set_address(from);
            self.bring_up(plug).await?;
            return Err(error);
        }
        Ok(())
    }

    async fn speak(self: &Rc<Self>, which: Which, protocol: Protocol) -> io::Result<()> {
        let plug = self.find(which)?;
        check_protocol(plug.model, protocol)?;
        let was_listening = plug.sockets.borrow().is_some();
        plug.take_down().await;
        plug.protocol.set(protocol);
        *plug.door.borrow_mut() = Door::new(protocol, &plug.keeper, self.http_port);
        if was_listening { self.bring_up(plug).await } else { Ok(()) }
    }

    fn view(&self) -> Vec<PlugView> {
        let view = |plug: &Rc<Plug>| {
            let state = plug.state.borrow();
            PlugView {
                index: plug.index,
                address: plug.address.get(),
                mac: plug.mac,
                model: plug.model,
                alias: state.alias().to_owned(),
                protocol: plug.protocol.get(),
                loads: plug.loads.iter().copied().take(plug.model.outlets().into()).collect(),
                fault: plug.fault.get(),
                counters: Counters { writes_seen: state.writes_seen(), ..plug.counters.get() },
            }
        };
        self.plugs.iter().map(view).collect()
    }

    async fn accept(self: &Rc<Self>, plug: &Rc<Plug>, listener: &TcpListener, sockets: &Sockets) {
        let open = Rc::new(Cell::new(0));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of files, most likely. The peer may try again, and so may we.
                breathe().await;
                continue;
            };
            plug.count(|counters| counters.connections += 1);
            if plug.fault.get() == Some(Fault::Close) {
                continue;
            }
            if open.get() >= CONNECTIONS_PER_PLUG {
                plug.count(|counters| counters.over_limit += 1);
                continue;
            }
            let (world, plug, open) = (Rc::clone(self), Rc::clone(plug), Rc::clone(&open));
            // Counted before its task runs first: the next one may be accepted sooner than that.
            open.set(open.get() + 1);
            plug.count(|counters| counters.max_connections = counters.max_connections.max(open.get()));
            self.spawn(sockets.task().during(async move {
                // How a connection ends is its peer's business.
                let _ = match plug.protocol.get() {
                    Protocol::IotXor => world.converse(&plug, stream).await,
                    _ => world.converse_http(&plug, stream).await,
                };
                open.set(open.get().saturating_sub(1));
            }));
        }
    }

    /// One connection: requests and replies in turn until one side has enough.
    async fn converse(self: &Rc<Self>, plug: &Rc<Plug>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut received = Vec::new();
        while let Some(mut request) = read_request(plug, &mut stream, &mut received).await? {
            plug.count(|counters| counters.requests += 1);
            let _one = Counted::one(&plug.in_flight);
            plug.note_in_flight(u64::from(!received.is_empty()));
            xor::decrypt(&mut request);
            self.answer(plug, &mut stream, &request).await?;
            let wants_restart = plug.state.borrow_mut().take_restart();
            if wants_restart {
                self.reboot(plug);
            }
        }
        Ok(())
    }

    /// The same over HTTP.
    async fn converse_http(self: &Rc<Self>, plug: &Rc<Plug>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut received = Vec::new();
        while let Some(ask) = web::read(&mut stream, &mut received, IDLE).await? {
            plug.count(|counters| counters.requests += 1);
            let _one = Counted::one(&plug.in_flight);
            plug.note_in_flight(u64::from(!received.is_empty()));
            // What follows a body without a length is no request.
            let closes = plug.fault.get() == Some(Fault::OneReply) || plug.model == Model::P100 || ask.body.is_none();
            self.answer_http(plug, &mut stream, &ask, closes).await?;
            let wants_restart = plug.state.borrow_mut().take_restart();
            if wants_restart {
                self.reboot(plug);
            }
            if closes {
                return Ok(());
            }
            if plug.fault.get() == Some(Fault::ResetReused) {
                // Closing while something is unread resets the connection.
                stream.peek(&mut [0]).await?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Answers as the plug's present fault has it.
    async fn answer_http(&self, plug: &Plug, stream: &mut TcpStream, ask: &Ask, closes: bool) -> io::Result<()> {
        let fault = plug.fault.get();
        if let Some(Fault::Delay(time)) = fault {
            wait(plug, stream, time).await?;
        }
        if fault == Some(Fault::Silence) {
            return silence(plug, stream).await;
        }
        let mut inner = |plain: &[u8]| {
            let mut state = plug.state.borrow_mut();
            if is_smart(plug.protocol.get()) {
                smart::reply(&mut state, plain, fault, self.now())
            } else {
                Some(reply(&mut state, plain, Via::Tcp, self.now()))
            }
        };
        let (answer, event) = plug.door.borrow_mut().hear(ask, fault, self.clock.elapsed(), &mut inner);
        plug.count(|counters| match event {
            Event::Handshake => counters.handshakes += 1,
            Event::Refused => counters.logins_refused += 1,
            Event::Other => {}
        });
        let served = plug.state.borrow_mut().take_served();
        plug.note_pace(&served, self.clock.elapsed());
        let Some(answer) = answer else { return silence(plug, stream).await };
        let length = u64::try_from(answer.body.len()).unwrap_or(u64::MAX);
        let mut message = answer.head(length, closes);
        let head = message.len();
        message.extend(&answer.body);
        let half = message.len() / 2;
        match fault {
            Some(Fault::HalfThenClose) => {
                message.truncate(half);
                send(stream, &message).await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Some(Fault::HalfThenSilence) => {
                message.truncate(half);
                send(stream, &message).await?;
                silence(plug, stream).await
            }
            Some(Fault::HugeLength) => {
                send(stream, &answer.head(u32::MAX.into(), closes)).await?;
                silence(plug, stream).await
            }
            Some(Fault::ZeroLength) => send(stream, &answer.head(0, closes)).await,
            Some(Fault::Garbage) => send(stream, &garbage(message, head)).await,
            Some(Fault::Drip) => {
                for byte in &message {
                    send(stream, std::slice::from_ref(byte)).await?;
                    wait(plug, stream, Duration::from_secs(1)).await?;
                }
                lock(&self.ledger).add(served);
                Ok(())
            }
            other => {
                if other == Some(Fault::StrayBytes) {
                    message.extend(STRAY);
                }
                // As over XOR: before whoever reads it can look.
                lock(&self.ledger).add(served);
                send(stream, &message).await
            }
        }
    }

    /// What the plug's own reboot command leads to, a moment after its answer.
    fn reboot(self: &Rc<Self>, plug: &Rc<Plug>) {
        let (world, index) = (Rc::clone(self), plug.index);
        self.spawn(async move {
            let _ = world.set_fault(Which::Index(index), Some(Fault::Restart(Duration::from_secs(1)))).await;
        });
    }

    /// Answers as the plug's present fault has it.
    async fn answer(&self, plug: &Plug, stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
        let fault = plug.fault.get();
        if let Some(Fault::Delay(time)) = fault {
            wait(plug, stream, time).await?;
        }
        // Made after the delay: a late answer of a real plug is a fresh one too.
        let (plain, served) = self.reply(plug, request, Via::Tcp);
        plug.note_pace(&served, self.clock.elapsed());
        let mut message = xor::frame(&plain).map_err(|_| io::ErrorKind::InvalidData)?;
        let half = message.len() / 2;
        match fault {
            Some(Fault::Silence) => silence(plug, stream).await,
            Some(Fault::HalfThenClose) => {
                message.truncate(half);
                send(stream, &message).await?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Some(Fault::HalfThenSilence) => {
                message.truncate(half);
                send(stream, &message).await?;
                silence(plug, stream).await
            }
            Some(Fault::HugeLength) => {
                send(stream, &[0xff; xor::PREFIX]).await?;
                silence(plug, stream).await
            }
            Some(Fault::ZeroLength) => send(stream, &[0; xor::PREFIX]).await,
            Some(Fault::Garbage) => send(stream, &garbage(message, xor::PREFIX)).await,
            Some(Fault::Drip) => {
                for byte in &message {
                    send(stream, std::slice::from_ref(byte)).await?;
                    wait(plug, stream, Duration::from_secs(1)).await?;
                }
                lock(&self.ledger).add(served);
                Ok(())
            }
            other => {
                if other == Some(Fault::StrayBytes) {
                    message.extend(STRAY);
                }
                // Whoever reads the reply may look into the ledger at once: it has to be there before.
                lock(&self.ledger).add(served);
                send(stream, &message).await?;
                if other == Some(Fault::OneReply) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
            }
        }
    }

    fn reply(&self, plug: &Plug, request: &[u8], via: Via) -> (Vec<u8>, Vec<ServedReading>) {
        let mut state = plug.state.borrow_mut();
        let plain = reply(&mut state, request, via, self.now());
        (plain, state.take_served())
    }

    /// One of the plug's own UDP sockets.
    async fn hear(self: &Rc<Self>, plug: &Rc<Plug>, port: u16, socket: &UdpSocket) {
        let mut buffer = vec![0; BUFFER];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, from)) => {
                    self.answer_datagram(plug, port, buffer.get(..length).unwrap_or_default(), from).await;
                }
                // An earlier answer found nobody there; that is the peer's business.
                Err(_) => breathe().await,
            }
        }
    }

    /// A port of the fleet's discovery address: what comes here every plug hears that listens on it.
    async fn hear_discovery(self: &Rc<Self>, port: u16, socket: &UdpSocket) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                breathe().await;
                continue;
            };
            for (n, plug) in self.plugs.iter().enumerate() {
                self.answer_datagram(plug, port, buffer.get(..length).unwrap_or_default(), from).await;
                // A thousand answers at once overflow the buffer of any peer; on a real network they come by and by too.
                if n % 16 == 15 {
                    Timer::after(Duration::from_millis(2)).await;
                }
            }
        }
    }

    async fn answer_datagram(self: &Rc<Self>, plug: &Rc<Plug>, port: u16, datagram: &[u8], from: SocketAddr) {
        let fault = plug.fault.get();
        let Some(sockets) = plug.sockets.borrow().clone() else { return };
        let Some((_, socket)) = sockets.udp.iter().find(|(its, _)| *its == port) else { return };
        plug.count(|counters| counters.datagrams += 1);
        if fault.is_some_and(Fault::is_mute) {
            return;
        }
        if fault == Some(Fault::Asleep) {
            let _ = self.open(plug, &sockets).await; // a port that cannot be had stays closed
        }
        let Some(Fault::Delay(time)) = fault else {
            return self.send_datagram(plug, socket, datagram, from, fault).await;
        };
        if plug.delayed.get() < DELAYED {
            plug.delayed.set(plug.delayed.get() + 1);
            let (world, plug, socket, datagram) = (Rc::clone(self), Rc::clone(plug), socket.clone(), datagram.to_vec());
            self.spawn(sockets.task().during(async move {
                let waiting = Counted(&plug.delayed);
                Timer::after(time).await;
                drop(waiting);
                world.send_datagram(&plug, &socket, &datagram, from, fault).await;
            }));
        }
    }

    async fn send_datagram(
        &self,
        plug: &Plug,
        socket: &UdpSocket,
        datagram: &[u8],
        to: SocketAddr,
        fault: Option<Fault>,
    ) {
        let (mut message, header, served) = if plug.protocol.get() == Protocol::IotXor {
            let mut request = datagram.to_vec();
            xor::decrypt(&mut request);
            let (plain, served) = self.reply(plug, &request, Via::Udp);
            (xor::encrypt(&plain), xor::PREFIX, served)
        } else if is_probe(datagram) {
            let state = plug.state.borrow();
            let announced = announce::reply(&state, plug.protocol.get(), self.http_port, &plug.keeper);
            (announced, tdp::HEADER, Vec::new())
        } else {
            return;
        };
        if message.is_empty() {
            return;
        }
        match fault {
            Some(Fault::HalfThenClose | Fault::HalfThenSilence) => message.truncate(message.len() / 2),
            Some(Fault::Garbage) => message = garbage(message, header),
            _ => {
                if fault == Some(Fault::StrayBytes) {
                    message.extend(STRAY);
                }
                lock(&self.ledger).add(served);
            }
        }
        let _ = socket.send_to(&message, to).await; // a peer that has gone needs no answer
    }
}

/// Whether a datagram is a discovery probe with the right checksum.
fn is_probe(datagram: &[u8]) -> bool {
    let Some((header, payload)) = datagram.split_at_checked(tdp::HEADER) else { return false };
    let [2, 0, 0, 1, _, _, flags, _, a, b, c, d, ..] = header else { return false };
    tdp::packet(*flags, u32::from_be_bytes([*a, *b, *c, *d]), payload) == datagram
}

/// The next request's cipher bytes, or `None` at the end of the connection, be it closed, idle or out of step.
/// `received` holds what came behind it.
async fn read_request(plug: &Plug, stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut reads = 0;
    let mut buffer = [0; BUFFER];
    loop {
        if let Some(prefix) = received.first_chunk() {
            let Ok(length) = xor::payload_length(*prefix) else { return Ok(None) };
            if received.len() >= xor::PREFIX + length {
                let rest = received.split_off(xor::PREFIX + length);
                let request = std::mem::replace(received, rest).split_off(xor::PREFIX);
                if reads > 1 {
                    plug.count(|counters| counters.split_requests += 1);
                }
                return Ok(Some(request));
            }
        }
        let read = future::or(stream.read(&mut buffer), async {
            Timer::after(IDLE).await;
            Ok(0)
        });
        match read.await? {
            0 => return Ok(None),
            n => received.extend(buffer.iter().take(n)),
        }
        reads += 1;
    }
}

/// One write, which a peer that reads nothing cannot hold for ever.
async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    future::or(stream.write_all(message), async {
        Timer::after(IDLE).await;
        Err(io::ErrorKind::TimedOut.into())
    })
    .await
}

/// Lets `time` pass unless the peer closes first. What the peer sends meanwhile counts as another request in flight.
async fn wait(plug: &Plug, stream: &TcpStream, time: Duration) -> io::Result<()> {
    let pass = async {
        Timer::after(time).await;
        Ok(())
    };
    future::or(pass, async {
        match stream.peek(&mut [0]).await? {
            0 => Err(io::ErrorKind::ConnectionReset.into()),
            _ => {
                plug.note_in_flight(1);
                future::pending().await
            }
        }
    })
    .await
}

/// Says nothing more until the peer closes. The request stays in flight: whoever asks again on this connection, or on
/// another before closing it, asks twice at a time.
async fn silence(plug: &Plug, stream: &TcpStream) -> io::Result<()> {
    wait(plug, stream, IDLE).await?;
    Err(io::ErrorKind::TimedOut.into())
}

/// A pause after an error, so that one that stays does not take the whole thread.
async fn breathe() {
    Timer::after(Duration::from_millis(100)).await;
}

/// The message with a rightful head of so many bytes, and behind it bytes that mean nothing.
fn garbage(mut message: Vec<u8>, head: usize) -> Vec<u8> {
    for (byte, salt) in message.iter_mut().skip(head).zip(0_u64..) {
        [*byte, ..] = mix(0x6761_7262, salt).to_be_bytes();
    }
    message
}

async fn bind_udp(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind((address, port)).await.map_err(|error| explain(error, address, port))
}

/// The error with the address and what to do about it.
fn explain(error: io::Error, address: Ipv4Addr, port: u16) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another simulator may be running there: stop it, or choose another base or port",
        io::ErrorKind::PermissionDenied => "choose a port from 1024 on",
        io::ErrorKind::AddrNotAvailable => {
            "this system has no such loopback address; on Linux all of 127.0.0.0/8 exist"
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "too many files are open: simulate fewer plugs, or raise the limit with ulimit -n"
        }
        _ => "choose another base or port",
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}:{port}: {error}; {advice}"))
}
