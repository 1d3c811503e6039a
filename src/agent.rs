//! The composition root: the one place where clock, transport, disk and plugs come together.
//!
//! Owns the order of start and stop. Promises that what the store holds is served before the first plug is asked, and
//! that everything read is committed before the program ends, however it is told to.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use async_net::TcpListener;
use smol::LocalExecutor;

use crate::clock::{self, Clock, Now, within};
use crate::config::{Config, Keep};
use crate::http::access::{Access, Secret, own_host_name};
use crate::http::{self, App};
use crate::limits;
use crate::plug::{Patience, Transport, discovery};
use crate::poll::backoff::Pauses;
use crate::poll::fleet::Fleet;
use crate::poll::requests::Requests;
use crate::poll::{Poller, Settings, Sink, World};
use crate::reading::{DeviceId, PlugFacts, Reading};
use crate::store::file::Disk;
use crate::store::hold::{Hold, Verdict};
use crate::store::{self, Keeping, Store, StoreError};
use crate::units::UnixMillis;

/// What the agent takes from outside; tests bring their own.
pub struct Outside<T> {
    /// Time.
    pub clock: Rc<dyn Clock>,
    /// The way to plugs.
    pub transport: Rc<T>,
    /// The port that plugs listen on.
    pub plug_port: u16,
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
            Self::Token { path, source } => write!(f, "http.token_file {}: {source}", path.display()),
            Self::StopTimeout { pending } => write!(f, "the disk did not take the last {pending} readings in time"),
            Self::System(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for AgentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::DataDir { source, .. } | Self::Listen { source, .. } | Self::Token { source, .. } => Some(source),
            Self::Store(error) | Self::StoreFile { source: error, .. } => Some(error),
            Self::StopTimeout { .. } => None,
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
}

/// The store as the poll loop sees it.
struct Recorder {
    store: Rc<Store>,
    clock: Rc<dyn Clock>,
    hold: RefCell<Hold>,
    /// The newest reading when the program started: the clock must not be before it.
    newest: Option<UnixMillis>,
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
                }
            }
        }
    }

    fn gap(&self, id: DeviceId, from: UnixMillis) {
        self.store.gap(id, from);
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
        Ok(Self { config, outside, executor, store, fleet, ready: Rc::default(), requests: Requests::default() })
    }

    /// Starts asking plugs. Ends when the returned task is dropped.
    pub async fn start_polling(&self) -> smol::Task<()> {
        let discovery = discovery::open(self.outside.plug_port).await;
        let discovery = discovery.inspect_err(|error| log::error!("no plugs can be looked for: {error}")).ok();
        let world = World {
            executor: self.executor.clone(),
            clock: self.outside.clock.clone(),
            transport: self.outside.transport.clone(),
            fleet: self.fleet.clone(),
            sink: Rc::new(Recorder {
                store: self.store.clone(),
                clock: self.outside.clock.clone(),
                hold: RefCell::default(),
                newest: self.store.newest_time(),
            }),
            requests: self.requests.clone(),
            ready: self.ready.clone(),
        };
        let poller = Poller::new(self.poll_settings(), world, discovery);
        self.executor.spawn(poller.run())
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
            port: self.outside.plug_port,
            pinned: plugs.iter().map(|plug| (plug.address, plug.name.clone())).collect(),
            seed: self.outside.seed,
        }
    }

    /// Runs until `stop` is ready, then commits what is left. `listening` hears the address that HTTP is served on.
    ///
    /// # Errors
    /// [`AgentError`] when a part does not start, or the last commit fails.
    pub async fn run(
        self,
        stop: impl Future<Output = &'static str>,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<(), AgentError> {
        let app = App {
            requests: self.requests.clone(),
            access: self.access()?,
            zone: self.config.timezone.clone(),
            ready: self.ready.clone(),
            ..App::local(self.store.clone(), self.fleet.clone(), self.outside.clock.clone())
        };
        let address = self.config.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| AgentError::Listen { address, source })?;
        let address = listener.local_addr().map_err(AgentError::System)?;
        let (stop_serving, serving_ends) = smol::channel::bounded::<()>(1);
        let shutdown = async move {
            let _ = serving_ends.recv().await; // ready when the sender is dropped
        };
        let server = self.executor.spawn(http::serve(self.executor.clone(), listener, Rc::new(app), shutdown));
        self.say_hello(address);
        listening(address);

        let polling = self.start_polling().await;
        let committing = self.executor.spawn(commit_for_ever(
            self.store.clone(),
            self.outside.clock.clone(),
            self.config.commit_interval,
        ));
        let reason = stop.await;
        log::info!("{reason}: stopping");
        polling.cancel().await;
        committing.cancel().await;
        drop(stop_serving);
        let committed = self.commit_last().await;
        server.await;
        committed
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

    fn access(&self) -> Result<Access, AgentError> {
        let settings = &self.config.http;
        Ok(Access {
            token: token(&self.config)?,
            public_read: settings.public_read,
            hosts: settings.hosts.iter().cloned().chain(own_host_name()).collect(),
            loopback: self.config.listen.ip().is_loopback(),
        })
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
        log::info!("serving http://{address}/");
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

/// A file that should hold a line: no more than a few are read, whatever it is.
fn read_short(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limits::TOKEN_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Commits at a steady pace. A commit that fails is said once, and tried again with the next.
async fn commit_for_ever(store: Rc<Store>, clock: Rc<dyn Clock>, every: Duration) {
    let mut failing = false;
    let mut due = clock.elapsed();
    loop {
        due = due.saturating_add(every).max(clock.elapsed());
        clock.sleep_until(due).await;
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
