//! The settings as data: one entry per key, from which the file's, the environment's and the command line's reading,
//! `config show` and README's table all follow.
//!
//! Owns names, kinds, defaults, bounds and words. Promises that an entry names the one field it fills, with a type that
//! fits, so that a key without effect cannot be written. `[[plugs]]` is no scalar and stands apart, in [`PLUG_KEYS`].

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::Config;
use super::value::{self, ByteSize, Keep, LogFilter, Shown, ValueError};
use crate::limits;
use crate::nearest::nearest;
use crate::tariff::{Amount, Currency};

/// The field of a [`Config`] that a key fills.
type Field<T> = fn(&mut Config) -> &mut T;

/// The text of `timezone` that stands for the system's own.
pub(super) const SYSTEM_ZONE: &str = "system";

/// What a key's text means, what is allowed, and where the value goes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Truth(Field<bool>),
    /// A whole number from the first to the second.
    Count(usize, usize, Field<usize>),
    /// A duration from the first to the second.
    Span(Duration, Duration, Field<Duration>),
    /// How long to keep something: a duration from the first to the second, or `forever`.
    Keeping(Duration, Duration, Field<Keep>),
    /// A size from the first to the second.
    Size(ByteSize, ByteSize, Field<ByteSize>),
    /// A path.
    Path(Field<PathBuf>),
    /// The absolute path of a directory; empty for none.
    MemoryDir(Field<Option<PathBuf>>),
    /// The absolute path of a file with a secret; empty for none.
    SecretFile(Field<Option<PathBuf>>),
    /// An IP address and a port.
    Socket(Field<SocketAddr>),
    /// An IANA time zone; `system` for the machine's.
    Zone(Field<TimeZone>),
    /// IPv4 addresses to probe.
    Targets(Field<Vec<Ipv4Addr>>),
    /// Host names.
    Hosts(Field<Vec<String>>),
    /// A text of at most so many bytes; empty for none.
    Words(usize, Field<Option<String>>),
    /// An `http://` URL; empty for none.
    Url(Field<Option<String>>),
    /// A log filter.
    Filter(Field<LogFilter>),
    /// Money, per kWh or per day; empty for none.
    Money(Field<Option<Amount>>),
    /// The code of a currency; empty for none.
    Currency(Field<Option<Currency>>),
}

/// The shape of a value in the file and in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true`, `false`.
    Truth,
    /// A whole number.
    Number,
    /// A text.
    Text,
    /// A text, or nothing when it is empty.
    OptionalText,
    /// A text with a number and a unit, or a whole number where the kind has a unit of its own.
    Quantity,
    /// A decimal number, or nothing.
    OptionalDecimal,
    /// A list of texts.
    List,
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its table in the file; empty for those before the first table.
    pub section: &'static str,
    /// Its name in that table.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Its default, written as in the environment.
    pub default: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
    /// What else there is to know; may be empty.
    pub more: &'static str,
    /// Whether the program accepts and checks it without acting on it yet.
    pub planned: bool,
}

impl PartialEq for Key {
    /// Keys are told apart by name alone.
    fn eq(&self, other: &Self) -> bool {
        (self.section, self.name) == (other.section, other.name)
    }
}

impl Eq for Key {}

impl Key {
    /// Its full name: `poll.interval`, `listen`.
    #[must_use]
    pub fn path(&self) -> String {
        self.joined(".")
    }

    /// Its environment variable: `WATTD_POLL_INTERVAL`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WATTD_{}", self.joined("_").to_ascii_uppercase())
    }

    /// Its command-line flag without the dashes in front: `poll-interval`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.joined("-").replace('_', "-")
    }

    fn joined(&self, by: &str) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}{by}{}", self.section, self.name) }
    }

    /// Whether `text` would be accepted.
    ///
    /// # Errors
    /// [`ValueError`] says what is wrong; [`Kind::allowed`] what would be right.
    pub fn check(&self, text: &str) -> Result<(), ValueError> {
        self.kind.fill(&mut Config::blank(), text)
    }

    /// Whether `text` means the same as the default.
    pub(super) fn is_default(&self, text: &str) -> bool {
        let filled = |text| {
            let mut config = Config::blank();
            self.kind.fill(&mut config, text).map(|()| config)
        };
        filled(text) == filled(self.default)
    }
}

impl Kind {
    /// Reads `text` into this kind's field of `config`, which is left alone when the text is refused.
    pub(super) fn fill(&self, config: &mut Config, text: &str) -> Result<(), ValueError> {
        let text = text.trim();
        match *self {
            Self::Truth(field) => *field(config) = value::truth(text)?,
            Self::Count(min, max, field) => *field(config) = value::count(text, min, max)?,
            Self::Span(min, max, field) => *field(config) = value::duration(text, min, max)?,
            Self::Keeping(min, max, field) => *field(config) = value::keep(text, min, max)?,
            Self::Size(min, max, field) => *field(config) = value::size(text, min, max)?,
            Self::Path(field) => *field(config) = value::path(text)?.into(),
            Self::MemoryDir(field) => *field(config) = optional(text, value::absolute_path)?.map(PathBuf::from),
            Self::SecretFile(field) => *field(config) = optional(text, value::absolute_path)?.map(PathBuf::from),
            Self::Socket(field) => {
                *field(config) = text.parse().map_err(|_| ValueError::Form(Shown::new(text)))?;
            }
            // The loader puts the machine's zone in the place of UTC; it alone knows the machine.
            Self::Zone(field) if text == SYSTEM_ZONE => *field(config) = TimeZone::UTC,
            Self::Zone(field) => *field(config) = value::zone(text)?,
            Self::Targets(field) => *field(config) = value::list(text, value::target)?,
            Self::Hosts(field) => *field(config) = value::list(text, value::host)?,
            Self::Words(max, field) => {
                *field(config) = optional(text, |text| value::words(text, max))?.map(str::to_owned);
            }
            Self::Url(field) => *field(config) = optional(text, value::url)?.map(str::to_owned),
            Self::Filter(field) => *field(config) = value::log_filter(text)?,
            Self::Money(field) => *field(config) = optional(text, value::amount)?,
            Self::Currency(field) => *field(config) = optional(text, value::currency)?,
        }
        Ok(())
    }

    /// What is allowed, in words that continue "allowed is".
    #[must_use]
    pub fn allowed(&self) -> String {
        let span = |min, max| format!("{} to {}", value::duration_text(min), value::duration_text(max));
        let list = |what: &str| format!("at most {} {what}", limits::CONFIG_LIST);
        match *self {
            Self::Truth(_) => "true or false".to_owned(),
            Self::Count(min, max, _) => format!("{min} to {max}"),
            Self::Span(min, max, _) => span(min, max),
            Self::Keeping(min, max, _) => format!("{}, or forever", span(min, max)),
            Self::Size(min, max, _) => format!("{min} to {max}"),
            Self::Path(_) => "a path".to_owned(),
            Self::MemoryDir(_) => "the absolute path of a directory, or empty for none".to_owned(),
            Self::SecretFile(_) => "the absolute path of a file, or empty for none".to_owned(),
            Self::Socket(_) => "IP address and port, such as 127.0.0.1:8650 or [::]:8650".to_owned(),
            Self::Zone(_) => format!("an IANA name such as Europe/Berlin, or {SYSTEM_ZONE}"),
            Self::Targets(_) => list("IPv4 addresses"),
            Self::Hosts(_) => list("host names without port"),
            Self::Words(max, _) => format!("a text of at most {max} bytes, or empty for none"),
            Self::Url(_) => "an http:// URL without user name and password, or empty for none".to_owned(),
            Self::Filter(_) => "off, error, warn, info, debug or trace, or TARGET=LEVEL parts with commas".to_owned(),
            Self::Money(_) => format!("{MONEY}, or empty for none"),
            Self::Currency(_) => "a code of three letters such as EUR, or empty for none".to_owned(),
        }
    }

    /// The name of the value in a usage line.
    #[must_use]
    pub const fn placeholder(&self) -> &'static str {
        match self {
            Self::Truth(_) => "BOOL",
            Self::Count(..) => "N",
            Self::Span(..) | Self::Keeping(..) => "DURATION",
            Self::Size(..) => "SIZE",
            Self::Path(_) => "DIR",
            Self::MemoryDir(_) => "DIR",
            Self::SecretFile(_) => "FILE",
            Self::Socket(_) => "ADDRESS",
            Self::Zone(_) => "ZONE",
            Self::Targets(_) | Self::Hosts(_) => "LIST",
            Self::Words(..) => "TEXT",
            Self::Url(_) => "URL",
            Self::Filter(_) => "FILTER",
            Self::Money(_) => "AMOUNT",
            Self::Currency(_) => "CODE",
        }
    }

    /// How the value is written in the file and in JSON.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Truth(_) => Shape::Truth,
            Self::Count(..) => Shape::Number,
            Self::Span(..) | Self::Keeping(..) | Self::Size(..) => Shape::Quantity,
            Self::Path(_) | Self::Socket(_) | Self::Zone(_) | Self::Filter(_) => Shape::Text,
            Self::MemoryDir(_) | Self::SecretFile(_) | Self::Words(..) | Self::Url(_) | Self::Currency(_) => {
                Shape::OptionalText
            }
            Self::Money(_) => Shape::OptionalDecimal,
            Self::Targets(_) | Self::Hosts(_) => Shape::List,
        }
    }
}

/// What money is, in words that continue "allowed is".
const MONEY: &str = "0 to 1000000 with at most six decimals";

/// Nothing for an empty text, else what `parse` makes of it.
fn optional<'a, T>(
    text: &'a str,
    parse: impl FnOnce(&'a str) -> Result<T, ValueError>,
) -> Result<Option<T>, ValueError> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

const MIN_SPAN: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Every scalar setting, in the order of the file. Sections stand together.
pub static KEYS: &[Key] = &[
    Key {
        section: "",
        name: "data_dir",
        kind: Kind::Path(|c| &mut c.data_dir),
        default: "/var/lib/wattd",
        doc: "Where the readings are kept",
        more: "The default is systemd's $STATE_DIRECTORY where it is set; run by hand by anyone but root it is \
               $XDG_DATA_HOME/wattd or ~/.local/share/wattd.",
        planned: false,
    },
    Key {
        section: "",
        name: "journal_dir",
        kind: Kind::MemoryDir(|c| &mut c.journal_dir),
        default: "",
        doc: "A directory in memory (tmpfs) for readings not yet committed, so that a crash or an upgrade loses none",
        more: "The default is systemd's $RUNTIME_DIRECTORY where it is set. Without one, kill -9 costs what a power cut does.",
        planned: false,
    },
    Key {
        section: "",
        name: "listen",
        kind: Kind::Socket(|c| &mut c.listen),
        default: "127.0.0.1:8650",
        doc: "Where the HTTP interface listens",
        more: "An address other than loopback needs http.token_file, or http.public_read = true.",
        planned: false,
    },
    Key {
        section: "",
        name: "timezone",
        kind: Kind::Zone(|c| &mut c.timezone),
        default: SYSTEM_ZONE,
        doc: "The zone in which days begin",
        more: "Readings are stored in UTC; a change alters answers, never what is stored.",
        planned: false,
    },
    Key {
        section: "",
        name: "commit_interval",
        kind: Kind::Span(MIN_SPAN, HOUR, |c| &mut c.commit_interval),
        default: "60s",
        doc: "How often readings are written to disk",
        more: "This is what a power cut may cost, and also what the SD card pays.",
        planned: false,
    },
    Key {
        section: "poll",
        name: "interval",
        kind: Kind::Span(MIN_SPAN, HOUR, |c| &mut c.poll.interval),
        default: "10s",
        doc: "How often each plug is asked",
        more: "Not below poll.min_interval.",
        planned: false,
    },
    Key {
        section: "poll",
        name: "strip_interval",
        kind: Kind::Span(MIN_SPAN, HOUR, |c| &mut c.poll.strip_interval),
        default: "60s",
        doc: "How often the outlets of a strip are asked",
        more: "Not below poll.min_interval.",
        planned: false,
    },
    Key {
        section: "poll",
        name: "min_interval",
        kind: Kind::Span(MIN_SPAN, HOUR, |c| &mut c.poll.min_interval),
        default: "5s",
        doc: "The least time between two questions to a plug, whatever asks",
        more: "",
        planned: false,
    },
    Key {
        section: "poll",
        name: "timeout",
        kind: Kind::Span(MIN_SPAN, MINUTE, |c| &mut c.poll.timeout),
        default: "5s",
        doc: "The longest a whole exchange may take, from connecting to the last byte",
        more: "",
        planned: false,
    },
    Key {
        section: "poll",
        name: "in_flight",
        kind: Kind::Count(1, 256, |c| &mut c.poll.in_flight),
        default: "16",
        doc: "How many plugs are asked at once; each plug always gets one question at a time",
        more: "",
        planned: false,
    },
    Key {
        section: "poll",
        name: "adaptive",
        kind: Kind::Truth(|c| &mut c.poll.adaptive),
        default: "false",
        doc: "Ask a plug more often while its load changes, less often while it does not",
        more: "A strip is never asked more often than poll.strip_interval. The interval in force, and why, stand in \
               /api/v1/devices.",
        planned: false,
    },
    Key {
        section: "poll",
        name: "max_interval",
        kind: Kind::Span(MIN_SPAN, limits::ADAPTIVE_LAST, |c| &mut c.poll.max_interval),
        default: "300s",
        doc: "The longest interval that poll.adaptive may choose",
        more: "Without effect on a plug whose fixed interval is longer.",
        planned: false,
    },
    Key {
        section: "discovery",
        name: "enabled",
        kind: Kind::Truth(|c| &mut c.discovery.enabled),
        default: "true",
        doc: "Look for plugs on the network, beside those listed under [[plugs]]",
        more: "",
        planned: false,
    },
    Key {
        section: "discovery",
        name: "every",
        kind: Kind::Span(Duration::from_secs(1), DAY, |c| &mut c.discovery.every),
        default: "5m",
        doc: "How often to look",
        more: "",
        planned: false,
    },
    Key {
        section: "discovery",
        name: "targets",
        kind: Kind::Targets(|c| &mut c.discovery.targets),
        default: "255.255.255.255",
        doc: "The broadcast or unicast addresses to probe",
        more: "",
        planned: false,
    },
    Key {
        section: "account",
        name: "username",
        kind: Kind::Words(128, |c| &mut c.account.username),
        default: "",
        doc: "The e-mail address of the TP-Link account, for plugs that want a login",
        more: "Capitals count.",
        planned: false,
    },
    Key {
        section: "account",
        name: "password_file",
        kind: Kind::SecretFile(|c| &mut c.account.password_file),
        default: "",
        doc: "The file with the account's password; never the password itself",
        more: "The default is /etc/wattd/password where there is one; the unit hands it over as its credential account-password.",
        planned: false,
    },
    Key {
        section: "retention",
        name: "raw",
        kind: Kind::Keeping(DAY, CENTURY, |c| &mut c.retention.raw),
        default: "400d",
        doc: "How long single readings are kept",
        more: "",
        planned: false,
    },
    Key {
        section: "retention",
        name: "quarter_hour",
        kind: Kind::Keeping(DAY, CENTURY, |c| &mut c.retention.quarter_hour),
        default: "forever",
        doc: "How long quarter hours are kept",
        more: "",
        planned: false,
    },
    Key {
        section: "retention",
        name: "hour",
        kind: Kind::Keeping(DAY, CENTURY, |c| &mut c.retention.hour),
        default: "forever",
        doc: "How long hours are kept",
        more: "",
        planned: false,
    },
    Key {
        section: "retention",
        name: "day",
        kind: Kind::Keeping(DAY, CENTURY, |c| &mut c.retention.day),
        default: "forever",
        doc: "How long days are kept",
        more: "",
        planned: true,
    },
    Key {
        section: "retention",
        name: "max_size",
        kind: Kind::Size(ByteSize::new(16 << 20), ByteSize::new(1 << 40), |c| &mut c.retention.max_size),
        default: "2GiB",
        doc: "The most that the stored readings may take on disk",
        more: "",
        planned: false,
    },
    Key {
        section: "http",
        name: "token_file",
        kind: Kind::SecretFile(|c| &mut c.http.token_file),
        default: "",
        doc: "The file with the token that clients must send",
        more: "The default is /etc/wattd/token where there is one; the unit hands it over as its credential http-token.",
        planned: false,
    },
    Key {
        section: "http",
        name: "public_read",
        kind: Kind::Truth(|c| &mut c.http.public_read),
        default: "false",
        doc: "Let anyone on the network read without a token",
        more: "",
        planned: false,
    },
    Key {
        section: "http",
        name: "hosts",
        kind: Kind::Hosts(|c| &mut c.http.hosts),
        default: "",
        doc: "Further names under which a browser may reach this machine",
        more: "IP addresses, the machine's own name and names in .local are always accepted.",
        planned: false,
    },
    Key {
        section: "http",
        name: "connections",
        kind: Kind::Count(4, 10_000, |c| &mut c.http.connections),
        default: "64",
        doc: "How many clients may be connected at a time",
        more: "1,000 idle ones take 15 MB.",
        planned: false,
    },
    Key {
        section: "http",
        name: "cache",
        kind: Kind::Size(ByteSize::new(0), ByteSize::new(1 << 30), |c| &mut c.http.cache),
        default: "1MiB",
        doc: "How much memory replies may take that are kept to be sent again; 0 keeps none",
        more: "",
        planned: false,
    },
    Key {
        section: "forward",
        name: "url",
        kind: Kind::Url(|c| &mut c.forward.url),
        default: "",
        doc: "Where readings are sent on to, in InfluxDB's line protocol",
        more: "",
        planned: true,
    },
    Key {
        section: "tariff",
        name: "currency",
        kind: Kind::Currency(|c| &mut c.tariff.currency),
        default: "",
        doc: "What prices are in",
        more: "",
        planned: false,
    },
    Key {
        section: "tariff",
        name: "price",
        kind: Kind::Money(|c| &mut c.tariff.price),
        default: "",
        doc: "The price of a kWh, where no [[prices]] entry says otherwise",
        more: "A change alters answers, never what is stored.",
        planned: false,
    },
    Key {
        section: "tariff",
        name: "standing_charge",
        kind: Kind::Money(|c| &mut c.tariff.standing_charge),
        default: "",
        doc: "What each day costs, whatever is used",
        more: "It is shown beside the cost of energy and is part of no plug's.",
        planned: false,
    },
    Key {
        section: "log",
        name: "level",
        kind: Kind::Filter(|c| &mut c.log.level),
        default: "info",
        doc: "What is logged: a level, or levels by module as in warn,wattd::poll=debug",
        more: "",
        planned: false,
    },
];

/// A key of a `[[plugs]]` or `[[prices]]` entry.
#[derive(Debug)]
pub struct EntryKey {
    /// Its name in the entry.
    pub name: &'static str,
    /// What is allowed, in words that continue "allowed is".
    pub allowed: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
}

/// The keys of a `[[plugs]]` entry, which only the file has.
pub static PLUG_KEYS: &[EntryKey] = &[
    EntryKey { name: "address", allowed: "an IP address", doc: "Where a known plug is" },
    EntryKey { name: "name", allowed: "a text of at most 64 bytes", doc: "Its name here, else the plug's own alias" },
];

/// The keys of a `[[prices]]` entry, which only the file has.
pub static PRICE_KEYS: &[EntryKey] = &[
    EntryKey {
        name: "price",
        allowed: MONEY,
        doc: "The price of a kWh at some times; of several that fit, the first holds",
    },
    EntryKey {
        name: "days",
        allowed: "days of the week such as \"mon-fri\" or \"sat,sun\"",
        doc: "On which days; every day unless it is set",
    },
    EntryKey {
        name: "hours",
        allowed: "times of day on quarter hours such as \"22:00-06:00\" or \"06:00-09:00,17:00-20:00\"",
        doc: "At which times of these days; at all of them unless it is set",
    },
    EntryKey {
        name: "season",
        allowed: "months or days of the year such as \"nov-mar\" or \"15 may-14 sep\", both ends in it",
        doc: "In which part of the year; all year unless it is set",
    },
];

/// The lists of entries that only the file has, and their keys.
pub(super) static LISTS: [(&str, &[EntryKey]); 2] = [("prices", PRICE_KEYS), ("plugs", PLUG_KEYS)];

/// The key `name` of table `section`; an empty section stands for the keys before the first table.
#[must_use]
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// The tables of the file in order, each once, the lists of entries last.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let starts = |pair: &[Key]| match pair {
        [before, key] if before.section != key.section => Some(key.section),
        _ => None,
    };
    KEYS.windows(2).filter_map(starts).chain(LISTS.iter().map(|(name, _)| *name))
}

/// The known key most like the unknown `name` in `section`, as a full name.
#[must_use]
pub fn nearest_key(section: &str, name: &str) -> Option<String> {
    let mut paths: Vec<String> = KEYS.iter().map(Key::path).collect();
    for (list, keys) in LISTS {
        paths.extend(keys.iter().map(|key| format!("{list}.{}", key.name)));
    }
    let wanted = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let by_path = nearest(&wanted, paths.iter().map(String::as_str)).map(str::to_owned);
    // The right name in the wrong table.
    by_path.or_else(|| {
        let by_name = nearest(name, KEYS.iter().map(|key| key.name))?;
        KEYS.iter().find(|key| key.name == by_name).map(Key::path)
    })
}

/// Every key with default, bounds and meaning, as the Markdown table of the README.
#[must_use]
pub fn reference() -> String {
    let mut table = "| key | default | allowed | meaning |\n|---|---|---|---|\n".to_owned();
    let mut row = |path: &str, default: &str, allowed: &str, doc: &str| {
        let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
        // Writing to a String cannot fail.
        let _ =
            writeln!(table, "| `{path}` | {default} | {} | {} |", allowed.replace('|', "\\|"), doc.replace('|', "\\|"));
    };
    for key in KEYS {
        let stop = if key.more.is_empty() { "" } else { ". " };
        let planned = if key.planned { " *(accepted and checked, without effect in this version)*" } else { "" };
        row(&key.path(), key.default, &key.kind.allowed(), &format!("{}{stop}{}{planned}", key.doc, key.more));
    }
    for (list, keys) in LISTS {
        for key in keys {
            row(&format!("{list}.{}", key.name), "", key.allowed, key.doc);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_in_every_form() {
        for form in [Key::path, Key::variable, Key::flag] {
            let names: BTreeSet<String> = KEYS.iter().map(form).collect();
            assert_eq!(names.len(), KEYS.len());
        }
        let key = find("poll", "strip_interval").unwrap();
        assert_eq!((key.path().as_str(), key.flag().as_str()), ("poll.strip_interval", "poll-strip-interval"));
        assert_eq!(key.variable(), "WATTD_POLL_STRIP_INTERVAL");
        assert_eq!(find("", "listen").unwrap().variable(), "WATTD_LISTEN");
    }

    #[test]
    fn every_default_is_accepted_and_is_its_own_default() {
        for key in KEYS {
            assert_eq!(key.check(key.default), Ok(()), "{}", key.path());
            assert!(key.is_default(key.default), "{}", key.path());
        }
        assert!(find("retention", "raw").unwrap().is_default("9600h"));
        assert!(!find("retention", "raw").unwrap().is_default("401d"));
    }

    #[test]
    fn sections_stand_together() {
        let sections: Vec<_> = sections().collect();
        assert_eq!(sections.iter().collect::<BTreeSet<_>>().len(), sections.len());
        assert_eq!(
            sections,
            ["poll", "discovery", "account", "retention", "http", "forward", "tariff", "log", "prices", "plugs"]
        );
    }

    #[test]
    fn the_nearest_key_is_found_by_typing_error_by_beginning_and_in_another_table() {
        for (section, name, known) in [
            ("poll", "intervall", "poll.interval"),
            ("http", "token", "http.token_file"),
            ("account", "password", "account.password_file"),
            ("", "in_flight", "poll.in_flight"),
            ("discovery", "public_read", "http.public_read"),
            ("plugs", "adress", "plugs.address"),
        ] {
            assert_eq!(nearest_key(section, name).as_deref(), Some(known), "{section}.{name}");
        }
        assert_eq!(nearest_key("poll", "colour"), None);
    }

    #[test]
    fn the_reference_has_a_row_of_four_cells_for_each_key() {
        let table = reference();
        assert_eq!(table.lines().count(), 2 + KEYS.len() + PLUG_KEYS.len() + PRICE_KEYS.len());
        assert!(table.lines().all(|line| line.matches(" | ").count() == 3 || line.starts_with("|---")), "{table}");
        assert!(table.contains("| `poll.interval` | `10s` | 100ms to 1h | How often each plug is asked."), "{table}");
    }
}
