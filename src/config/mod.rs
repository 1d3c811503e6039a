//! What the user has set, checked, and where each value came from.
//!
//! Owns the settings and the only reading of the environment. Data goes one way: [`Sources`] (texts, gathered by
//! [`gather`] from the file, the environment and the flags) become [`Loaded`] by [`load`], which reads nothing but them
//! and the time zone database. Promises that a [`Config`] holds only allowed values, and that all problems are told,
//! not only the first, each with its place. A later source beats an earlier one: default, file, environment, flag.

mod file;
mod keys;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

pub use keys::{EntryKey, KEYS, Key, Kind, PLUG_KEYS, PRICE_KEYS, Shape, reference};
pub use value::{ByteSize, Keep, LogFilter, Shown, ValueError, duration, duration_text};

use crate::limits;
use crate::nearest::nearest;
use crate::reading::Alias;
use crate::tariff::{Tariff, Unpriced};

/// The file that is read when nothing names another.
pub const DEFAULT_FILE: &str = "/etc/wattd/wattd.toml";
/// The variable that names the file.
const FILE_VARIABLE: &str = "WATTD_CONFIG";
/// What our variables begin with.
const PREFIX: &str = "WATTD_";
/// Variables of others that tell where data belongs.
const PLACES: [&str; 4] = ["STATE_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_DATA_HOME", "HOME"];
/// Where systemd puts the credentials that it hands to a service.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// The settings whose default is a credential: section, name, the credential's name in the unit, and the file that the unit
/// makes it of.
const CREDENTIALS: [(&str, &str, &str, &str); 2] = [
    ("account", "password_file", "account-password", "/etc/wattd/password"),
    ("http", "token_file", "http-token", "/etc/wattd/token"),
];

/// Everything that can be set. Every value lies within the bounds of its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the readings are kept.
    pub data_dir: PathBuf,
    /// A directory in memory for readings not yet committed, if any.
    pub journal_dir: Option<PathBuf>,
    /// Where the HTTP interface listens. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The zone in which days begin. Always one with an IANA name.
    pub timezone: TimeZone,
    /// How often readings are committed, 100 ms to 1 h.
    pub commit_interval: Duration,
    /// How plugs are asked.
    pub poll: Poll,
    /// How plugs are found.
    pub discovery: Discovery,
    /// The vendor's account.
    pub account: Account,
    /// Known plugs in the file's order, at most [`limits::PLUGS`], no address twice.
    pub plugs: Vec<Plug>,
    /// How long what is kept. Planned.
    pub retention: Retention,
    /// Who may ask.
    pub http: Http,
    /// Where readings go on to. Planned.
    pub forward: Forward,
    /// What energy costs. Where it is set, every moment of every week has a price, and prices have a currency.
    pub tariff: Tariff,
    /// What is logged.
    pub log: Log,
}

/// How plugs are asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Poll {
    /// Time between polls of a plug, [`Poll::min_interval`] to 1 h.
    pub interval: Duration,
    /// Time between polls of a strip's outlets, [`Poll::min_interval`] to 1 h.
    pub strip_interval: Duration,
    /// The least time between polls of a plug, whatever asks, 100 ms to 1 h.
    pub min_interval: Duration,
    /// The longest a whole exchange may take, 100 ms to 60 s.
    pub timeout: Duration,
    /// Plugs asked at once, 1 to 256.
    pub in_flight: usize,
    /// Whether intervals follow the load.
    pub adaptive: bool,
    /// The longest interval that adapting may choose, 100 ms to [`limits::ADAPTIVE_LAST`].
    pub max_interval: Duration,
}

/// How plugs are found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Discovery {
    /// Whether to look for plugs.
    pub enabled: bool,
    /// Time between rounds, 1 s to 24 h.
    pub every: Duration,
    /// Broadcast and unicast addresses to probe, at most [`limits::CONFIG_LIST`], none twice.
    pub targets: Vec<Ipv4Addr>,
}

/// The vendor's account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Its name.
    pub username: Option<String>,
    /// The file with its password, an absolute path. Not read here.
    pub password_file: Option<PathBuf>,
}

/// A known plug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    /// Where it is.
    pub address: IpAddr,
    /// What to call it; its own alias otherwise.
    pub name: Option<Alias>,
}

/// How long what is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Retention {
    /// Single readings.
    pub raw: Keep,
    /// Quarter hours.
    pub quarter_hour: Keep,
    /// Hours.
    pub hour: Keep,
    /// Days.
    pub day: Keep,
    /// The most that all of it may take, 16 MiB to 1 TiB.
    pub max_size: ByteSize,
}

/// Who may ask.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Http {
    /// The file with the token, an absolute path. Not read here.
    pub token_file: Option<PathBuf>,
    /// Whether reading needs no token.
    pub public_read: bool,
    /// Further host names, in lower case, at most [`limits::CONFIG_LIST`], none twice.
    pub hosts: Vec<String>,
    /// The most connections at a time, 4 to 10,000.
    pub connections: usize,
    /// The most that kept replies may take, up to 1 GiB; 0 keeps none.
    pub cache: ByteSize,
}

/// Where readings go on to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forward {
    /// An `http://` URL without a secret in it.
    pub url: Option<String>,
}

/// What is logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// In the language of `RUST_LOG`.
    pub level: LogFilter,
}

impl Config {
    /// A place to put values in; not a configuration yet.
    fn blank() -> Self {
        Self {
            journal_dir: None,
            data_dir: PathBuf::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            timezone: TimeZone::UTC,
            commit_interval: Duration::ZERO,
            poll: Poll::default(),
            discovery: Discovery::default(),
            account: Account::default(),
            plugs: Vec::new(),
            retention: Retention {
                raw: Keep::Forever,
                quarter_hour: Keep::Forever,
                hour: Keep::Forever,
                day: Keep::Forever,
                max_size: ByteSize::default(),
            },
            http: Http::default(),
            forward: Forward::default(),
            tariff: Tariff::default(),
            log: Log::default(),
        }
    }
}

impl Default for Config {
    /// Every key at its default, in UTC, with the data directory of a service.
    fn default() -> Self {
        let mut config = Self::blank();
        for key in KEYS {
            // A test holds each default to be acceptable.
            let _ = key.kind.fill(&mut config, key.default);
        }
        config
    }
}

/// Everything that settings are made from, as texts. The default is a machine that says nothing.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's path and text, when there is one.
    pub file: Option<(PathBuf, String)>,
    /// Names and values of the environment. Those not meant for us are passed over.
    pub env: Vec<(String, String)>,
    /// Values given on the command line.
    pub flags: Vec<(&'static Key, String)>,
    /// What the machine tells.
    pub machine: Machine,
}

/// What defaults depend on beside the environment.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Whether the program runs as root.
    pub is_root: bool,
    /// The IANA name of the system's time zone, when it has one.
    pub zone: Option<String>,
    /// The files with the secrets that systemd handed over, or would.
    pub credentials: Vec<PathBuf>,
}

/// Where a value came from, or where a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file as a whole.
    WholeFile(PathBuf),
    /// A line of a file, from 1.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A command-line flag, with its dashes.
    Flag(String),
}

impl Origin {
    /// The line in the file, from 1.
    #[must_use]
    pub const fn line(&self) -> Option<usize> {
        if let Self::File { line, .. } = self { Some(*line) } else { None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::WholeFile(path) => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug)]
pub enum Cause {
    /// The file cannot be read.
    Unreadable(io::Error),
    /// The file is larger than is believed.
    TooLarge {
        /// The most bytes read.
        limit: usize,
    },
    /// The file, or a variable of ours, is not UTF-8.
    NotUtf8,
    /// Not TOML.
    Syntax {
        /// The parser's words.
        what: String,
    },
    /// There is no such key.
    UnknownKey {
        /// Its full name.
        key: Shown,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// There is no such table.
    UnknownTable {
        /// Its name.
        name: Shown,
        /// The table that was probably meant.
        nearest: Option<String>,
    },
    /// A TOML value of the wrong type.
    WrongType {
        /// The key's full name.
        key: String,
        /// The type that came.
        got: &'static str,
        /// What is allowed.
        allowed: String,
    },
    /// A value that cannot be used.
    BadValue {
        /// The key's full name.
        key: String,
        /// What is wrong.
        error: ValueError,
        /// What is allowed.
        allowed: String,
    },
    /// A `[[plugs]]` entry without an address.
    NoAddress,
    /// Two `[[plugs]]` entries with one address.
    SamePlug {
        /// The address.
        address: IpAddr,
        /// The line of the first, from 1.
        first: Option<usize>,
    },
    /// A `[[prices]]` entry without a price.
    NoPrice,
    /// A time of the week without a price.
    Unpriced(Unpriced),
    /// Prices without a currency.
    NoCurrency,
    /// A standing charge or a currency, and no price.
    OnlyCharge,
    /// An interval below `poll.min_interval`.
    BelowMinimum {
        /// The interval's full name.
        key: String,
        /// The interval.
        interval: Duration,
        /// The value of `poll.min_interval`.
        min: Duration,
    },
    /// Listening beyond this machine with nothing said about who may read.
    Open {
        /// The address.
        listen: SocketAddr,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guess = |f: &mut fmt::Formatter<'_>, nearest: &Option<String>| match nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        };
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::TooLarge { limit } => write!(f, "larger than the {limit} bytes that a configuration may have"),
            Self::NotUtf8 => f.write_str("not UTF-8 text"),
            Self::Syntax { what } => write!(f, "not TOML: {what}"),
            Self::UnknownKey { key, nearest } => {
                write!(f, "unknown key `{key}`")?;
                guess(f, nearest)
            }
            Self::UnknownTable { name, nearest } => {
                write!(f, "unknown table `{name}`")?;
                guess(f, nearest)
            }
            Self::WrongType { key, got, allowed } => {
                let article = if got.starts_with(['a', 'i']) { "an" } else { "a" };
                write!(f, "`{key}`: {article} {got} is of no use here; allowed is {allowed}")
            }
            Self::BadValue { key, error, allowed } => write!(f, "`{key}`: {error}; allowed is {allowed}"),
            Self::NoAddress => f.write_str("`plugs`: this entry has no `address`; add one such as \"192.168.1.20\""),
            Self::SamePlug { address, first: Some(line) } => {
                write!(f, "`plugs.address`: {address} stands on line {line} already; remove one of the two")
            }
            Self::SamePlug { address, first: None } => write!(f, "`plugs.address`: {address} stands there twice"),
            Self::NoPrice => f.write_str("`prices`: this entry has no `price`; add one such as 0.32"),
            Self::Unpriced(when) => write!(
                f,
                "no price holds on {when}; set `tariff.price`, or add a [[prices]] entry with nothing but a price at the end"
            ),
            Self::NoCurrency => {
                f.write_str("there are prices and no currency; add to [tariff] a line such as `currency = \"EUR\"`")
            }
            Self::OnlyCharge => f.write_str(
                "[tariff] has a currency or a standing charge and no price; add a line such as `price = 0.32`, or [[prices]]",
            ),
            Self::BelowMinimum { key, interval, min } => {
                let (interval, min) = (duration_text(*interval), duration_text(*min));
                write!(f, "`{key}` is {interval}, below `poll.min_interval` of {min}; ")?;
                write!(f, "raise `{key}` to at least {min}, or lower `poll.min_interval` to {interval}")
            }
            Self::Open { listen } => write!(
                f,
                "`listen`: {listen} can be reached from other machines, and nothing says who may read; add to [http] \
                 either the line `token_file = \"/etc/wattd/token\"` or the line `public_read = true`"
            ),
        }
    }
}

/// One reason why a configuration is refused, with its place.
#[derive(Debug)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What.
    pub cause: Cause,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => write!(f, "{}", self.cause),
            origin => write!(f, "{origin}: {}", self.cause),
        }
    }
}

/// Something that is probably not what the user wants, though it stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A variable that looks like ours and is not.
    UnknownVariable {
        /// Its name.
        name: Shown,
        /// The variable that was probably meant.
        nearest: Option<String>,
    },
    /// A key that is set and does nothing yet.
    NoEffect {
        /// Its full name.
        key: String,
        /// Who set it.
        origin: Origin,
    },
    /// The system's time zone has no name.
    UnnamedZone,
    /// Discovery has nowhere to look.
    NoTargets,
    /// No plugs are listed, and none are looked for.
    NothingToWatch,
    /// A `[[prices]]` entry that never holds.
    NeverHolds(Origin),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVariable { name, nearest } => {
                write!(f, "{name}: unknown variable, ignored")?;
                nearest.as_ref().map_or(Ok(()), |nearest| write!(f, "; did you mean {nearest}?"))
            }
            Self::NoEffect { key, origin } => write!(f, "{origin}: `{key}` has no effect in this version"),
            Self::UnnamedZone => {
                f.write_str("the system's time zone has no name here, so days begin in UTC; set `timezone`")
            }
            Self::NoTargets => f.write_str("`discovery.targets` is empty, so discovery finds nothing"),
            Self::NothingToWatch => {
                f.write_str("no [[plugs]] are listed and discovery is off: there is nothing to watch")
            }
            Self::NeverHolds(origin) => {
                write!(f, "{origin}: this [[prices]] entry never holds, because those above it cover all its times")
            }
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Problems {
    /// The problems, at least one: the file's by line, then the environment's, the flags', and those between keys.
    pub problems: Vec<Problem>,
    /// What else was noticed.
    pub warnings: Vec<Warning>,
}

impl fmt::Display for Problems {
    /// One line each, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let newline = if n == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], warnings: Vec::new() }
    }
}

/// One effective value, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key's full name; `plugs[0].address` for plugs.
    pub key: String,
    /// The value as it was written; lists with commas; empty for none. Never a secret.
    pub text: String,
    /// How the value is written in JSON.
    pub shape: Shape,
    /// Who set it.
    pub origin: Origin,
}

/// A checked configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The same as texts with their origins: every key in the order of [`KEYS`], then prices by time, then the plugs.
    pub settings: Vec<Setting>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What to log.
    pub warnings: Vec<Warning>,
}

/// Reads the machine's own sources and checks them: [`gather`], then [`load`].
///
/// # Errors
/// [`Problems`] with every problem that was found.
pub fn read(file: Option<&Path>, flags: Vec<(&'static Key, String)>) -> Result<Loaded, Problems> {
    load(&gather(file, flags)?)
}

/// Collects this machine's sources. The file is `file`, else `$WATTD_CONFIG`, else [`DEFAULT_FILE`] if there is one.
///
/// # Errors
/// [`Problems`] when the file cannot be read, when one that was named is not there, when it is larger than
/// [`limits::CONFIG_FILE`], and when the file or a variable of ours is not UTF-8.
pub fn gather(file: Option<&Path>, flags: Vec<(&'static Key, String)>) -> Result<Sources, Problems> {
    // The owner of our own entry in /proc is the user that we run as; no call of its own is needed for that.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let zone = TimeZone::try_system().ok().and_then(|zone| zone.iana_name().map(str::to_owned));
    let env = our_variables(std::env::vars_os())?;
    let file = find_file(file, &env, Path::new(DEFAULT_FILE))?;
    Ok(Sources { file, env, flags, machine: Machine { is_root, zone, credentials: credentials() } })
}

/// Whether stderr goes to the systemd journal, which adds the time itself and understands priorities.
#[must_use]
pub fn stderr_is_journal() -> bool {
    // The variable names the journal's end by device and inode; stderr may have been sent elsewhere since.
    let names = |own: &rustix::fs::Stat| {
        let journal = std::env::var_os("JOURNAL_STREAM")?.into_string().ok()?;
        Some(journal == format!("{}:{}", own.st_dev, own.st_ino))
    };
    rustix::fs::fstat(std::io::stderr()).ok().as_ref().and_then(names).unwrap_or(false)
}

/// The credentials that systemd handed over; outside of the unit the files that it would make them of, so that a verb finds
/// the same settings as the agent. A blank one is the unit's word for none.
fn credentials() -> Vec<PathBuf> {
    let says_something = |path: &PathBuf| read_file(path).is_ok_and(|text| !text.trim().is_empty());
    match std::env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from) {
        Some(dir) => CREDENTIALS.iter().map(|(.., name, _)| dir.join(name)).filter(says_something).collect(),
        None => CREDENTIALS.iter().map(|(.., file)| PathBuf::from(file)).filter(|path| path.exists()).collect(),
    }
}

/// What systemd tells a service of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Where it hears how the service is: a path, or an abstract name behind an `@`.
    pub notify_socket: Option<String>,
    /// How often it wants to hear that the service still works, if it does.
    pub watchdog: Option<Duration>,
}

/// What systemd tells this process. Nothing when it was started by hand.
#[must_use]
pub fn unit() -> Unit {
    let text = |name| std::env::var_os(name)?.into_string().ok().filter(|value| !value.is_empty());
    // A child of the service inherits the variables without being meant.
    let is_ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let micros = text("WATCHDOG_USEC").filter(|_| is_ours).and_then(|micros| micros.parse().ok());
    let watchdog = micros.filter(|micros| *micros > 0).map(Duration::from_micros);
    Unit { notify_socket: text("NOTIFY_SOCKET"), watchdog }
}

/// Of `all` variables those that matter here.
fn our_variables(all: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, Problems> {
    let mut ours = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in all {
        let Ok(name) = name.into_string() else { continue };
        if !name.starts_with(PREFIX) && !PLACES.contains(&name.as_str()) {
            continue;
        }
        match value.into_string() {
            Ok(value) => ours.push((name, value)),
            Err(_) => problems.push(Problem { origin: Origin::Variable(name), cause: Cause::NotUtf8 }),
        }
    }
    ours.sort(); // so that the same environment always gives the same messages
    if problems.is_empty() { Ok(ours) } else { Err(Problems { problems, warnings: Vec::new() }) }
}

/// The file named by the flag, else by the environment, else the usual one, with its text.
fn find_file(
    flag: Option<&Path>,
    env: &[(String, String)],
    usual: &Path,
) -> Result<Option<(PathBuf, String)>, Problems> {
    let named = flag.or_else(|| variable(env, FILE_VARIABLE).map(Path::new));
    let path = named.unwrap_or(usual);
    match read_file(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(Cause::Unreadable(error)) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Problem { origin: Origin::WholeFile(path.to_owned()), cause }.into()),
    }
}

fn read_file(path: &Path) -> Result<String, Cause> {
    let limit = limits::CONFIG_FILE;
    let mut bytes = Vec::new();
    // One byte more than is allowed tells a file that is too large from one that just fits.
    let cap = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path).and_then(|file| file.take(cap).read_to_end(&mut bytes)).map_err(Cause::Unreadable)?;
    if bytes.len() > limit {
        return Err(Cause::TooLarge { limit });
    }
    String::from_utf8(bytes).map_err(|_| Cause::NotUtf8)
}

/// A variable that is set and not empty: `NAME=` is how many a script says that it is not.
fn variable<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
}

/// Makes a checked configuration out of `sources`. Beside them only the time zone database has a say.
///
/// # Errors
/// [`Problems`] with every problem in any source, also of values that another source overrides.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut loader = Loader::new(sources);
    loader.file(sources);
    loader.environment(sources);
    for (key, text) in &sources.flags {
        loader.set(key, text, Origin::Flag(format!("--{}", key.flag())));
    }
    loader.zone(sources);
    loader.check_intervals();
    loader.check_listen();
    loader.check_tariff();
    loader.finish(sources)
}

/// A configuration in the making.
struct Loader {
    config: Config,
    /// The scalar settings in the order of [`KEYS`], then the prices' and the plugs'.
    settings: Vec<Setting>,
    /// Where each price by time stands.
    prices: Vec<Origin>,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Loader {
    /// Every key at the default that it has on this machine.
    fn new(sources: &Sources) -> Self {
        let setting = |key: &Key| Setting {
            key: key.path(),
            text: key.default.to_owned(),
            shape: key.kind.shape(),
            origin: Origin::Default,
        };
        let settings = KEYS.iter().map(setting).collect();
        let mut loader = Self {
            config: Config::default(),
            settings,
            prices: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        let places = [("data_dir", Some(data_dir(sources))), ("journal_dir", runtime_dir(sources))];
        for (section, name, credential, usual) in CREDENTIALS {
            let is_it = |path: &&PathBuf| path.ends_with(credential) || *path == Path::new(usual);
            let file = sources.machine.credentials.iter().find(is_it);
            if let Some((key, file)) = keys::find(section, name).zip(file.and_then(|file| file.to_str())) {
                let is_usual = file == usual;
                let origin =
                    if is_usual { Origin::Default } else { Origin::Variable(CREDENTIALS_DIRECTORY.to_owned()) };
                loader.set(key, file, origin);
            }
        }
        for (name, place) in places {
            if let Some((key, (place, origin))) = keys::find("", name).zip(place) {
                loader.set(key, &place, origin);
            }
        }
        loader
    }

    /// Gives `key` the value `text`, or notes why not.
    fn set(&mut self, key: &Key, text: &str, origin: Origin) {
        match key.kind.fill(&mut self.config, text) {
            Ok(()) => {
                let path = key.path();
                if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key == path) {
                    (setting.text, setting.origin) = (text.trim().to_owned(), origin);
                }
            }
            Err(error) => {
                let cause = Cause::BadValue { key: key.path(), error, allowed: key.kind.allowed() };
                self.problems.push(Problem { origin, cause });
            }
        }
    }

    fn file(&mut self, sources: &Sources) {
        let Some((path, text)) = &sources.file else { return };
        let contents = file::read(path, text);
        self.problems.extend(contents.problems);
        for entry in contents.entries {
            self.set(entry.key, &entry.text, entry.origin);
        }
        self.problems.sort_by_key(|problem| problem.origin.line());
        for (n, entry) in contents.prices.into_iter().enumerate() {
            for (name, text, origin) in entry.texts {
                let shape = if name == "price" { Shape::OptionalDecimal } else { Shape::Text };
                self.settings.push(Setting { key: format!("prices[{n}].{name}"), text, shape, origin });
            }
            self.prices.push(entry.origin);
            self.config.tariff.rules.push(entry.rule);
        }
        for (n, entry) in contents.plugs.into_iter().enumerate() {
            let setting = |name: &str, text: String, origin| Setting {
                key: format!("plugs[{n}].{name}"),
                text,
                shape: Shape::Text,
                origin,
            };
            self.settings.push(setting("address", entry.plug.address.to_string(), entry.address));
            if let (Some(name), Some(origin)) = (&entry.plug.name, entry.name) {
                self.settings.push(setting("name", name.to_string(), origin));
            }
            self.config.plugs.push(entry.plug);
        }
    }

    fn environment(&mut self, sources: &Sources) {
        let known: Vec<String> = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]).collect();
        for (name, text) in sources.env.iter().filter(|(name, _)| name.starts_with(PREFIX) && name != FILE_VARIABLE) {
            match KEYS.iter().find(|key| key.variable() == *name) {
                Some(key) if !text.is_empty() => self.set(key, text, Origin::Variable(name.clone())),
                Some(_) => {}
                None => {
                    let nearest = nearest_variable(name, &known);
                    self.warnings.push(Warning::UnknownVariable { name: Shown::new(name), nearest });
                }
            }
        }
    }

    fn origin_of(&self, key: &str) -> Origin {
        self.settings
            .iter()
            .find(|setting| setting.key == key)
            .map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Puts the system's own zone, by name, in the place of the word for it.
    fn zone(&mut self, sources: &Sources) {
        let Some(setting) = self.settings.iter_mut().find(|setting| setting.key == "timezone") else { return };
        if setting.text != keys::SYSTEM_ZONE {
            return;
        }
        let named = sources.machine.zone.as_deref().and_then(|name| value::zone(name).ok());
        if named.is_none() {
            self.warnings.push(Warning::UnnamedZone);
        }
        self.config.timezone = named.unwrap_or(TimeZone::UTC);
        setting.text = self.config.timezone.iana_name().unwrap_or("UTC").to_owned();
    }

    /// Whether a text for `key` was refused or may have been lost, so that its value is not what the user meant.
    fn is_refused(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| match &problem.cause {
            Cause::BadValue { key: refused, .. } | Cause::WrongType { key: refused, .. } => refused == key,
            Cause::Syntax { .. } => true,
            _ => false,
        })
    }

    fn check_intervals(&mut self) {
        let min = self.config.poll.min_interval;
        for (key, interval) in
            [("poll.interval", self.config.poll.interval), ("poll.strip_interval", self.config.poll.strip_interval)]
        {
            if interval >= min || self.is_refused(key) || self.is_refused("poll.min_interval") {
                continue;
            }
            // To blame is who set one of the two; the interval first.
            let origin = match self.origin_of(key) {
                Origin::Default => self.origin_of("poll.min_interval"),
                origin => origin,
            };
            let cause = Cause::BelowMinimum { key: key.to_owned(), interval, min };
            self.problems.push(Problem { origin, cause });
        }
    }

    fn check_tariff(&mut self) {
        let tariff = &self.config.tariff;
        let refused = |problem: &Problem| match &problem.cause {
            Cause::NoPrice | Cause::Syntax { .. } => true,
            Cause::BadValue { key, .. } | Cause::WrongType { key, .. } => {
                key.starts_with("tariff") || key.starts_with("prices")
            }
            Cause::UnknownKey { key, .. } => {
                let key = key.to_string();
                key.starts_with("tariff") || key.starts_with("prices")
            }
            _ => false,
        };
        if self.problems.iter().any(refused) {
            return;
        }
        if !tariff.is_set() && tariff.currency.is_none() && tariff.standing_charge.is_none() {
            return;
        }
        let set = ["tariff.price", "tariff.standing_charge", "tariff.currency"].map(|key| self.origin_of(key));
        let blamed = self.prices.iter().chain(&set).find(|origin| **origin != Origin::Default);
        let origin = blamed.cloned().unwrap_or(Origin::Default);
        let cause = if !tariff.is_set() {
            Cause::OnlyCharge
        } else if tariff.currency.is_none() {
            Cause::NoCurrency
        } else {
            match tariff.check() {
                Err(when) => Cause::Unpriced(when),
                Ok(idle) => {
                    let idle = idle.into_iter().filter_map(|n| self.prices.get(n).cloned());
                    self.warnings.extend(idle.map(Warning::NeverHolds));
                    return;
                }
            }
        };
        self.problems.push(Problem { origin, cause });
    }

    fn check_listen(&mut self) {
        let (listen, http) = (self.config.listen, &self.config.http);
        // A mapped address such as [::ffff:127.0.0.1] is as local as the address it stands for.
        if listen.ip().to_canonical().is_loopback() || http.token_file.is_some() || http.public_read {
            return;
        }
        if !["listen", "http.token_file", "http.public_read"].iter().any(|key| self.is_refused(key)) {
            self.problems.push(Problem { origin: self.origin_of("listen"), cause: Cause::Open { listen } });
        }
    }

    fn finish(mut self, sources: &Sources) -> Result<Loaded, Problems> {
        for (key, setting) in KEYS.iter().zip(&self.settings) {
            if key.planned && !key.is_default(&setting.text) {
                self.warnings.push(Warning::NoEffect { key: key.path(), origin: setting.origin.clone() });
            }
        }
        match (self.config.discovery.enabled, self.config.plugs.is_empty()) {
            (true, _) if self.config.discovery.targets.is_empty() => self.warnings.push(Warning::NoTargets),
            (false, true) => self.warnings.push(Warning::NothingToWatch),
            _ => {}
        }
        if !self.problems.is_empty() {
            return Err(Problems { problems: self.problems, warnings: self.warnings });
        }
        let file = sources.file.as_ref().map(|(path, _)| path.clone());
        Ok(Loaded { config: self.config, settings: self.settings, file, warnings: self.warnings })
    }
}

/// The known variable most like `name`. What all names begin with is no likeness.
fn nearest_variable(name: &str, known: &[String]) -> Option<String> {
    let tail = |name: &str| name.strip_prefix(PREFIX).unwrap_or_default().to_owned();
    let tails: Vec<String> = known.iter().map(|name| tail(name)).collect();
    nearest(&tail(name), tails.iter().map(String::as_str)).map(|tail| format!("{PREFIX}{tail}"))
}

/// Where data belongs on this machine when nobody says: systemd's place, root's place, the user's own.
fn data_dir(sources: &Sources) -> (String, Origin) {
    let from = |name: &str| variable(&sources.env, name).map(|value| (value, Origin::Variable(name.to_owned())));
    if let Some(given) = unit_dir(sources, "STATE_DIRECTORY") {
        return given;
    }
    let service = || (keys::find("", "data_dir").map_or("", |key| key.default).to_owned(), Origin::Default);
    if sources.machine.is_root {
        return service();
    }
    // Base directories that are not absolute are to be ignored, says their specification.
    if let Some((dir, origin)) = from("XDG_DATA_HOME").filter(|(dir, _)| dir.starts_with('/')) {
        return (format!("{dir}/wattd"), origin);
    }
    match from("HOME").filter(|(dir, _)| dir.starts_with('/')) {
        Some((home, _)) => (format!("{}/.local/share/wattd", home.trim_end_matches('/')), Origin::Default),
        None => service(),
    }
}

/// The directory in memory that systemd gives, if it does.
fn runtime_dir(sources: &Sources) -> Option<(String, Origin)> {
    unit_dir(sources, "RUNTIME_DIRECTORY")
}

/// A directory that systemd made for the unit. It separates several by colons; the first is the one that the unit names
/// first.
fn unit_dir(sources: &Sources, name: &str) -> Option<(String, Origin)> {
    let dir = variable(&sources.env, name)?.split(':').next().filter(|dir| dir.starts_with('/'))?;
    Some((dir.to_owned(), Origin::Variable(name.to_owned())))
}

#[cfg(test)]
mod tests;
