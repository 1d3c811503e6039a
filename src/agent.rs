//! The composition root: the one place where clock, transport, disk and plugs come together.
//!
//! Owns the order of start, reload and stop. Promises that what the store holds is served before the first plug is asked,
//! that everything read is committed before the program ends, however it is told to, and that settings which cannot be
//! used leave the present ones in force.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use async_net::TcpListener;
use smol::stream::{Stream, StreamExt as _};
use smol::{LocalExecutor, Task};

use crate::clock::{self, Clock, Now, Steps, within};
use crate::config::{Account, Config, Keep, Loaded};
use crate::http::access::{Access, Secret, own_host_name};
use crate::http::cache::Cache;
use crate::http::live::Hub;
use crate::http::live::form::DeviceEvent;
use crate::http::{self, App};
use crate::limits;
use crate::plug::discovery::{self, Ports};
use crate::plug::keyring::Keyring;
use crate::plug::session::Credentials;
use crate::plug::{Patience, Transport};
use crate::poll::backoff::Pauses;
use crate::poll::fleet::{Fleet, Plug, Presence};
use crate::poll::requests::Requests;
use crate::poll::{Poller, Settings, Sink, World};
use crate::reading::{DeviceId, Label, Mac, PlugFacts, Reading};
use crate::stats::count;
use crate::stats::memory::{Guard, Process};
use crate::store::disk::Disk;
use crate::store::hold::{Hold, Verdict};
use crate::store::{self, Keeping, Store, StoreError, What};
use crate::sys::supervisor::Supervisor;
use crate::sys::{self, Order};
use crate::units::{Thousandths, UnixMillis};
use crate::watchdog::{Pulse, Watchdog};

/// What the agent takes from outside; tests bring their own.
pub struct Outside<T> {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// The way to plugs.
    pub transport: Rc<T>,
    /// The ports that plugs listen on.
    pub ports: Ports,
    /// Where jitter comes from.
    pub seed: u64,
}

/// Why the agent did not start, or ended.
#[derive(Debug)]
pub enum AgentError {
    /// The data directory cannot be made.
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be written.
    Store(StoreError),
    /// The store's file cannot be used, and is left where it is: no empty one is begun in its place.
    StoreFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The HTTP address cannot be listened on.
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The token file cannot be read, or holds no token.
    Token {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The password of the account cannot be read, or is missing.
    Password {
        /// The file it should be in.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is an account's name without a password, or the other way round.
    HalfAnAccount {
        /// The key that is missing.
        missing: &'static str,
    },
    /// The disk did not take the last commit in time.
    StopTimeout {
        /// Readings that were lost.
        pending: usize,
    },
    /// Anything else the system refused.
    System(io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDir { path, source } => {
                write!(
                    f,
                    "data_dir {} cannot be made or written: {source}; give another with --data-dir",
                    path.display()
                )
            }
            Self::Store(error) => write!(f, "{error}"),
            Self::StoreFile { path, source } if source.is_damage() => write!(
                f,
                "{}: {source}. `wattd check` says what is wrong with it. To begin anew, move it away: mv {0} {0}.damaged",
                path.display()
            ),
            Self::StoreFile { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{address} is taken; is another wattd running? Give another address with --listen")
            }
            Self::Listen { address, source } => write!(f, "listen = \"{address}\": {source}"),
            Self::Token { path, source } if source.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "http.token_file {}: {source}; started by systemd, wattd gets it as a credential without this key",
                path.display()
            ),
            Self::Token { path, source } => write!(f, "http.token_file {}: {source}", path.display()),
            Self::Password { path, source } => write!(f, "account.password_file {}: {source}", path.display()),
            Self::HalfAnAccount { missing } => write!(
                f,
                "[account] lacks `{missing}`; plugs with a login want both the account's e-mail address and its password"
            ),
            Self::StopTimeout { pending } => write!(f, "the disk did not take the last {pending} readings in time"),
            Self::System(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for AgentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DataDir { source, .. }
            | Self::Listen { source, .. }
            | Self::Token { source, .. }
            | Self::Password { source, .. } => Some(source),
            Self::Store(error) | Self::StoreFile { source: error, .. } => Some(error),
            Self::StopTimeout { .. } | Self::HalfAnAccount { .. } => None,
            Self::System(error) => Some(error),
        }
    }
}

impl From<StoreError> for AgentError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The agent's parts, put together: open store, known plugs, nothing running yet.
pub struct Agent<T> {
    config: Config,
    outside: Outside<T>,
    executor: Rc<LocalExecutor<'static>>,
    /// The readings.
    pub store: Rc<Store>,
    /// The live picture of the plugs.
    pub fleet: Rc<RefCell<Fleet>>,
    /// Whether the first round of polls is over.
    pub ready: Rc<Cell<bool>>,
    /// The way from HTTP to the poll loop.
    requests: Requests,
    /// What takes the readings. It holds those that wait for the clock, so a reload keeps it.
    recorder: Rc<Recorder>,
    /// What opens plugs that want a login.
    keys: Rc<Keyring>,
}

/// Where HTTP is served, and to whom.
struct Door {
    /// As it stands in the settings; port 0 is any free one.
    listen: SocketAddr,
    listener: TcpListener,
    access: Access,
}

/// What runs between the start, or a reload, and the end.
struct Running {
    server: Task<()>,
    /// The server ends when this is dropped.
    serving: smol::channel::Sender<()>,
    polling: Task<()>,
    committing: Task<()>,
    supervising: Task<()>,
    guarding: Task<()>,
}

impl Running {
    /// Ends all at once but the server, which ends by itself within [`limits::HTTP_STOP_TIME`].
    async fn end(self) -> Task<()> {
        let Self { server, serving, polling, committing, supervising, guarding } = self;
        polling.cancel().await;
        committing.cancel().await;
        supervising.cancel().await;
        guarding.cancel().await;
        drop(serving);
        server
    }
}

/// The store as the poll loop sees it.
struct Recorder {
    store: Rc<Store>,
    clock: Rc<dyn Clock>,
    hold: RefCell<Hold>,
    /// The newest reading when the program started: the clock must not be before it.
    newest: Option<UnixMillis>,
    /// Whether the start was noted: not before the clock can be trusted.
    started: Cell<bool>,
    steps: RefCell<Steps>,
    /// Where those are who listen. None before HTTP is served.
    live: RefCell<Option<Rc<Hub>>>,
    /// The names of plugs, for them.
    fleet: Rc<RefCell<Fleet>>,
}

impl Sink for Recorder {
    fn remember(&self, facts: &PlugFacts, address: SocketAddr) {
        self.store.remember(facts, address, self.clock.wall());
    }

    fn append(&self, id: DeviceId, reading: Reading, interval: Duration) {
        let now = Now::of(self.clock.as_ref());
        let trusted = clock::is_trusted(now.wall, self.newest);
        match self.hold.borrow_mut().take((id, reading, interval), now, trusted) {
            Verdict::Held => self.store.show(id, reading),
            Verdict::Store { readings, doubtful } => {
                self.note_clock(now);
                if doubtful {
                    log::error!(
                        "the clock says {} and was not set in {:?}: readings get that time",
                        now.wall,
                        limits::HOLD_TIME
                    );
                } else if readings.len() > 1 {
                    log::info!("the clock is set: {} readings taken before get their times", readings.len() - 1);
                }
                for (id, reading, interval) in readings {
                    self.store.append(id, reading, interval);
                    if let Some(live) = self.live.borrow().as_ref() {
                        live.reading(id, reading, self.store.mark());
                    }
                }
            }
        }
    }

    fn gap(&self, id: DeviceId, from: UnixMillis) {
        self.store.gap(id, from);
    }

    fn presence(&self, plug: Mac, was: Presence, is: Presence) {
        let (id, now) = (DeviceId::plug(plug), self.clock.wall());
        if let Some(live) = self.live.borrow().as_ref() {
            let fleet = self.fleet.borrow();
            let alias = fleet.get(plug).map_or("", Plug::display_name);
            live.device(&DeviceEvent::new(now, id, alias, Some(is == Presence::Online)), plug);
        }
        let what = match (was, is) {
            (Presence::Offline { .. }, Presence::Online) => What::Online,
            (_, Presence::Offline { .. }) => What::Offline,
            _ => return, // met, at the start
        };
        if clock::is_trusted(now, self.newest) {
            self.store.note(Some(id), now, what);
        }
    }
}

impl Recorder {
    /// Notes, once, that the agent began, and from then on each step of the wall clock.
    fn note_clock(&self, now: Now) {
        let step = self.steps.borrow_mut().take(now);
        if !self.started.replace(true) {
            let version = Label::new(env!("CARGO_PKG_VERSION"));
            self.store.note(None, now.wall, What::AgentStart { version });
        } else if let Some(from) = step {
            log::warn!("the clock was set from {from} to {}, or the machine slept", now.wall);
            self.store.note(None, now.wall, What::ClockStep { from });
        }
    }
}

impl<T: Transport + 'static> Agent<T>
where
    T::Stream: 'static,
{
    /// Opens the store and recalls the plugs that it knows.
    ///
    /// # Errors
    /// [`AgentError`] with what to change.
    pub fn new(
        config: Config,
        disk: Disk,
        outside: Outside<T>,
        executor: Rc<LocalExecutor<'static>>,
    ) -> Result<Self, AgentError> {
        let keys = Rc::new(Keyring::new(account(&config)?));
        let open = Store::open(disk, keeping(&config));
        let store = open.map_err(|source| AgentError::StoreFile { path: store::path_in(&config.data_dir), source })?;
        match config.journal_dir.as_deref().map(|dir| store.keep_journal(dir)) {
            Some(Ok(0)) => {}
            Some(Ok(saved)) => log::info!("{saved} readings that no commit had covered come back from the journal"),
            Some(Err(error)) => {
                log::warn!("no journal: {error}; a crash may cost {:?} of readings", config.commit_interval)
            }
            None => log::info!(
                "no journal_dir: a crash may cost {:?} of readings, as a power cut does",
                config.commit_interval
            ),
        }
        let fleet = recall(&store);
        let (store, fleet) = (Rc::new(store), Rc::new(RefCell::new(fleet)));
        let recorder = Recorder {
            store: store.clone(),
            clock: outside.clock.clone(),
            hold: RefCell::default(),
            newest: store.newest_time(),
            started: Cell::default(),
            steps: RefCell::default(),
            live: RefCell::default(),
            fleet: fleet.clone(),
        };
        let (requests, recorder) = (Requests::default(), Rc::new(recorder));
        let ready = Rc::default();
        Ok(Self { config, outside, executor, store, fleet, ready, requests, recorder, keys })
    }

    /// Starts asking plugs. Ends when the returned task is dropped; the pulse tells that it goes on.
    pub async fn start_polling(&self) -> (Task<()>, Pulse) {
        let discovery = discovery::open(self.outside.ports).await;
        let discovery = discovery.inspect_err(|error| log::error!("no plugs can be looked for: {error}")).ok();
        let now = Now::of(self.outside.clock.as_ref());
        if clock::is_trusted(now.wall, self.recorder.newest) {
            self.recorder.note_clock(now);
        }
        let world = World {
            executor: self.executor.clone(),
            clock: self.outside.clock.clone(),
            transport: self.outside.transport.clone(),
            keys: self.keys.clone(),
            fleet: self.fleet.clone(),
            sink: self.recorder.clone(),
            requests: self.requests.clone(),
            ready: self.ready.clone(),
            stats: self.store.stats().clone(),
        };
        let poller = Poller::new(self.poll_settings(), world, discovery);
        let pulse = poller.pulse();
        (self.executor.spawn(poller.run()), pulse)
    }

    fn poll_settings(&self) -> Settings {
        let Config { poll, discovery, plugs, .. } = &self.config;
        Settings {
            interval: poll.interval,
            strip_interval: poll.strip_interval,
            min_interval: poll.min_interval,
            adaptive: poll.adaptive.then_some(poll.max_interval),
            in_flight: poll.in_flight,
            pauses: Pauses::default(),
            patience: Patience { exchange: poll.timeout, poll: limits::POLL_BUDGET },
            discover_every: discovery.enabled.then_some(discovery.every),
            targets: discovery.targets.clone(),
            port: self.outside.ports.iot,
            pinned: plugs.iter().map(|plug| (plug.address, plug.name.clone())).collect(),
            seed: self.outside.seed,
        }
    }

    /// Runs until an order says to stop, then commits what is left. `listening` hears the address that HTTP is served on,
    /// `supervisor` how the agent is.
    ///
    /// # Errors
    /// [`AgentError`] when a part does not start, or the last commit fails.
    pub async fn run(
        mut self,
        mut orders: impl Stream<Item = Order> + Unpin,
        supervisor: Supervisor,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<(), AgentError> {
        let supervisor = Rc::new(supervisor);
        let mut door = open_door(&self.config, None).await?;
        let address = door.listener.local_addr().map_err(AgentError::System)?;
        self.say_hello(address);
        listening(address);
        let mut news = None;
        let (reason, running) = loop {
            let running = self.start(&door, &supervisor).await;
            supervisor.ready(&news.take().unwrap_or_else(|| status(&self.store, &self.fleet.borrow())));
            match self.wait(&mut orders, &door, &supervisor).await {
                Err(reason) => break (reason, running),
                Ok((config, new_door)) => {
                    // Requests under way are answered to their end by what they were asked of.
                    running.end().await.detach();
                    self.fleet.borrow_mut().forget_configured();
                    news = Some(self.take_over(config));
                    door = new_door;
                }
            }
        };
        log::info!("{reason}: stopping");
        supervisor.stopping();
        let server = running.end().await;
        self.store.note(None, self.outside.clock.wall(), What::AgentStop);
        let committed = self.commit_last().await;
        server.await;
        committed
    }

    /// Starts what works on the open store.
    async fn start(&self, door: &Door, supervisor: &Rc<Supervisor>) -> Running {
        let app = App {
            requests: self.requests.clone(),
            access: door.access.clone(),
            zone: self.config.timezone.clone(),
            tariff: Rc::new(self.config.tariff.clone()),
            discovery: self.config.discovery.clone(),
            ready: self.ready.clone(),
            connections: self.config.http.connections,
            live: Rc::new(Hub::new(
                self.outside.clock.clone(),
                self.store.stats().clone(),
                limits::event_places(self.config.http.connections),
            )),
            cache: Rc::new(Cache::new(usize::try_from(self.config.http.cache.get()).unwrap_or(usize::MAX))),
            ..App::local(self.store.clone(), self.fleet.clone(), self.outside.clock.clone())
        };
        let app = Rc::new(app);
        self.recorder.live.replace(Some(app.live.clone()));
        let (serving, serving_ends) = smol::channel::bounded::<()>(1);
        let shutdown = async move {
            let _ = serving_ends.recv().await; // ready when the sender is dropped
        };
        let (executor, clock) = (&self.executor, &self.outside.clock);
        let server = executor.spawn(http::serve(executor.clone(), door.listener.clone(), app.clone(), shutdown));
        let guarding = executor.spawn(guard_memory(app));
        let (polling, polls) = self.start_polling().await;
        let commits = Pulse::default();
        let every = self.config.commit_interval;
        let committing = executor.spawn(commit_for_ever(self.store.clone(), clock.clone(), every, commits.clone()));
        let mut watchdog = Watchdog::default();
        watchdog.watch("polls", polls, limits::POLLS_STUCK);
        watchdog.watch("commits", commits, limits::COMMIT_STUCK);
        let (store, fleet, clock) = (self.store.clone(), self.fleet.clone(), clock.clone());
        let supervising = executor.spawn(supervise(supervisor.clone(), watchdog, store, fleet, clock));
        Running { server, serving, polling, committing, supervising, guarding }
    }

    /// Waits for the reason to stop, as an error, or for settings that can be used, with the door that they ask for.
    async fn wait(
        &self,
        orders: &mut (impl Stream<Item = Order> + Unpin),
        door: &Door,
        supervisor: &Supervisor,
    ) -> Result<(Config, Door), &'static str> {
        loop {
            let refused = match orders.next().await {
                None => return Err("nobody can say stop any more"),
                Some(Order::Stop(reason)) => return Err(reason),
                Some(Order::Reload(loaded)) => match *loaded {
                    Err(problems) => problems.to_string(),
                    Ok(Loaded { config, warnings, .. }) => {
                        match (account(&config), open_door(&config, Some(door)).await) {
                            (Err(error), _) | (_, Err(error)) => error.to_string(),
                            (Ok(_), Ok(door)) => {
                                warnings.iter().for_each(|warning| log::warn!("{warning}"));
                                return Ok((config, door));
                            }
                        }
                    }
                },
            };
            for line in refused.lines() {
                log::error!("the new settings are refused, the old ones stay in force: {line}");
            }
            let first = refused.lines().next().unwrap_or_default();
            supervisor.status(&format!("new settings refused, the old ones are in force: {first}"));
        }
    }

    /// Takes new settings, all but those that only a start can change. Returns what happened, in a line.
    fn take_over(&mut self, new: Config) -> String {
        let old = std::mem::replace(&mut self.config, new);
        let new = &mut self.config;
        let fixed = [
            ("data_dir", new.data_dir != old.data_dir),
            ("journal_dir", new.journal_dir != old.journal_dir),
            ("retention", new.retention != old.retention),
        ];
        (new.data_dir, new.journal_dir, new.retention) = (old.data_dir, old.journal_dir, old.retention);
        if new.log != old.log {
            sys::start_log(&new.log.level, crate::config::stderr_is_journal());
        }
        if let Ok(account) = account(new) {
            self.keys = Rc::new(Keyring::new(account)); // read anew: the password's file may have changed
        }
        let fixed: Vec<_> = fixed.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect();
        let mut news = "the new settings are in force".to_owned();
        if !fixed.is_empty() {
            news += &format!(", but for {}, which only a restart changes", fixed.join(" and "));
        }
        log::info!("{news}");
        news
    }

    /// Commits all that is left, within [`limits::STOP_TIME`].
    ///
    /// # Errors
    /// [`AgentError::Store`], or [`AgentError::StopTimeout`].
    pub async fn commit_last(&self) -> Result<(), AgentError> {
        let clock = self.outside.clock.as_ref();
        let until = clock.elapsed().saturating_add(limits::STOP_TIME);
        match within(clock, until, self.store.commit(clock.wall())).await {
            Some(committed) => {
                log::info!("the last {} readings are on disk", committed?);
                Ok(())
            }
            None => Err(AgentError::StopTimeout { pending: self.store.figures().pending }),
        }
    }

    fn say_hello(&self, address: SocketAddr) {
        let figures = self.store.figures();
        log::info!(
            "wattd {}: {} readings in {}, {} plugs known",
            env!("CARGO_PKG_VERSION"),
            figures.readings,
            self.config.data_dir.display(),
            self.fleet.borrow().plugs().count()
        );
        log::info!("readings are committed every {:?}: that much a power cut may cost", self.config.commit_interval);
        match figures.wear.bytes_a_day() {
            Some(bytes) => log::info!(
                "{} MB a day are written to the disk, by the store's own count",
                Thousandths(bytes / 100_000 * 100)
            ),
            None => log::info!("how much is written to the disk each day will be known after ten minutes of recording"),
        }
        log::info!("serving http://{address}/");
    }
}

/// Listens where `config` says, unless the `present` door stands there already, and reads who may come in.
async fn open_door(config: &Config, present: Option<&Door>) -> Result<Door, AgentError> {
    let listen = config.listen;
    let listener = match present.filter(|door| door.listen == listen) {
        Some(door) => door.listener.clone(),
        None => http::bind(listen).await.map_err(|source| AgentError::Listen { address: listen, source })?,
    };
    let access = Access {
        token: token(config)?,
        public_read: config.http.public_read,
        hosts: config.http.hosts.iter().cloned().chain(own_host_name()).collect(),
        loopback: listen.ip().is_loopback(),
    };
    Ok(Door { listen, listener, access })
}

/// How the agent is, in a line.
fn status(store: &Store, fleet: &Fleet) -> String {
    let figures = store.figures();
    let known = fleet.plugs().count();
    let online = fleet.plugs().filter(|plug| plug.presence == Presence::Online).count();
    format!(
        "{online} of {known} plugs answer; {} readings on disk, {} waiting to be written",
        figures.readings, figures.pending
    )
}

/// Tells systemd how the agent is, and that it works, while it does.
async fn supervise(
    supervisor: Rc<Supervisor>,
    watchdog: Watchdog,
    store: Rc<Store>,
    fleet: Rc<RefCell<Fleet>>,
    clock: Rc<dyn Clock>,
) {
    if !supervisor.listens() {
        return;
    }
    // Twice as often as it must be, as sd_watchdog_enabled(3) asks for.
    let every = supervisor.watchdog.map_or(limits::STATUS_EVERY, |time| (time / 2).min(limits::STATUS_EVERY));
    let mut said = false;
    loop {
        clock.sleep_until(clock.elapsed().saturating_add(every)).await;
        match watchdog.stuck(clock.elapsed()) {
            None => {
                said = false;
                supervisor.alive();
                supervisor.status(&status(&store, &fleet.borrow()));
            }
            Some(stuck) if !std::mem::replace(&mut said, true) => {
                let problem = format!("the {} are stuck, overdue by {} s", stuck.name, stuck.overdue.as_secs());
                log::error!("{problem}: systemd is no longer told that all is well, and will start wattd anew");
                supervisor.status(&problem);
            }
            Some(_) => {}
        }
    }
}

/// The plugs that the store knows, where they were last.
#[must_use]
pub fn recall(store: &Store) -> Fleet {
    let mut fleet = Fleet::default();
    for device in store.devices() {
        if let Some(plug) = device.record.plug {
            let newest = plug.facts.metered_ids().filter_map(|id| store.latest(id)).map(|reading| reading.time).max();
            fleet.meet(plug.facts, plug.address, None).last_seen = newest;
        }
    }
    fleet
}

/// What the configuration says of retention.
fn keeping(config: &Config) -> Keeping {
    let kept = |keep| match keep {
        Keep::Forever => None,
        Keep::For(time) => Some(time),
    };
    let retention = &config.retention;
    Keeping {
        raw: kept(retention.raw),
        quarter_hour: kept(retention.quarter_hour),
        hour: kept(retention.hour),
        max_size: Some(retention.max_size.get()),
    }
}

/// The token that the configuration names a file for.
///
/// # Errors
/// [`AgentError::Token`] when the file cannot be read or is empty.
pub fn token(config: &Config) -> Result<Option<Secret>, AgentError> {
    let read = |path: &PathBuf| {
        let text = read_short(path).and_then(|text| match text.trim() {
            "" => Err(io::Error::other("the file is empty; write the token into it")),
            token if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err(io::Error::other("a token is one word of printable ASCII characters"))
            }
            token => Ok(token.to_owned()),
        });
        text.map(Secret::new).map_err(|source| AgentError::Token { path: path.clone(), source })
    };
    config.http.token_file.as_ref().map(read).transpose()
}

/// The account that the configuration names, with the password from its file. None when nothing is said of one.
///
/// # Errors
/// [`AgentError::Password`] when the file cannot be read or is empty, [`AgentError::HalfAnAccount`].
pub fn account(config: &Config) -> Result<Option<Credentials>, AgentError> {
    let Account { username, password_file } = &config.account;
    match (username, password_file) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(AgentError::HalfAnAccount { missing: "username" }),
        (Some(_), None) => Err(AgentError::HalfAnAccount { missing: "password_file" }),
        (Some(username), Some(path)) => {
            // Passwords may begin or end with blanks; only the end of the line is not theirs.
            let password = read_short(path).and_then(|text| match text.trim_end_matches(['\n', '\r']) {
                "" => Err(io::Error::other("the file is empty; write the account's password into it")),
                password => Ok(Credentials::new(username, password)),
            });
            password.map(Some).map_err(|source| AgentError::Password { path: path.clone(), source })
        }
    }
}

/// A file that should hold a line: no more than a few are read, whatever it is.
fn read_short(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limits::TOKEN_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Drops the caches when memory of its own has grown too far, and says so.
async fn guard_memory(app: Rc<App>) {
    let mut guard = Guard::new(limits::GUARD_MEMORY);
    loop {
        app.clock.sleep_until(app.clock.elapsed().saturating_add(limits::GUARD_EVERY)).await;
        let Some(process) = Process::now() else { return };
        if guard.strikes(process.anonymous) {
            count(&app.stats.guard_strikes);
            app.drop_caches();
            let mb = |bytes: u64| bytes / 1_000_000;
            log::warn!(
                "{} MB of memory are in use, more than {} MB: the caches were dropped; /api/v1/stats says what is going on",
                mb(process.anonymous),
                mb(limits::GUARD_MEMORY)
            );
        }
    }
}

/// Commits at a steady pace. A commit that fails is said once, and tried again with the next.
async fn commit_for_ever(store: Rc<Store>, clock: Rc<dyn Clock>, every: Duration, pulse: Pulse) {
    let mut failing = false;
    let mut due = clock.elapsed();
    loop {
        due = due.saturating_add(every).max(clock.elapsed());
        pulse.rest(due);
        clock.sleep_until(due).await;
        pulse.work(clock.elapsed());
        match store.commit(clock.wall()).await {
            Ok(committed) => {
                if std::mem::take(&mut failing) {
                    log::info!("the disk takes readings again; nothing is waiting");
                }
                if committed > 0 {
                    log::debug!("committed {committed} readings, {} batches so far", store.figures().batches);
                }
            }
            Err(error) => {
                let pending = store.figures().pending;
                if !std::mem::replace(&mut failing, true) {
                    log::error!(
                        "the disk takes no readings: {error}; {pending} wait in memory, tried again every {every:?}"
                    );
                } else {
                    log::debug!("the disk still takes no readings: {error}; {pending} wait in memory");
                }
            }
        }
    }
}
