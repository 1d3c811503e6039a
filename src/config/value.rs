//! The texts that a setting may have, and what they mean.
//!
//! Owns the parsers of durations, sizes, addresses, names and filters, and the types that hold them. Promises that each
//! parser is total (any text gives a value or a [`ValueError`]) and exact (nothing is rounded). Leaves it to `keys` to
//! say what a key allows, and to the loader to know where a text came from.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::limits;
use crate::nearest::nearest;
use crate::reading::Text;
use crate::tariff::{Amount, Currency, Days, Hours, Season};

/// A refused text as it is shown: cut to 80 bytes, without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// As much of `text` as is shown.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Text::<80>::new(text).as_str().to_owned())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is wrong with a text. What would be right is said beside it, by the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// The text has another form.
    Form(Shown),
    /// Not a whole number with a unit.
    NotAQuantity {
        /// The text as given.
        got: Shown,
        /// The units that there are.
        units: String,
    },
    /// A number where a duration is wanted.
    NoUnit(Shown),
    /// A number outside the key's bounds.
    OutOfBounds(Shown),
    /// No such zone in this machine's time zone database.
    UnknownZone {
        /// The name as given.
        got: Shown,
        /// The known zone that looks most like it.
        nearest: Option<String>,
    },
    /// Something that must have a text has none.
    Empty,
    /// More bytes than a text may have.
    TooLong {
        /// The most bytes allowed.
        limit: usize,
    },
    /// More items than a list may have.
    TooMany {
        /// The most items allowed.
        limit: usize,
    },
    /// The same item twice in one list.
    Repeated(Shown),
    /// A path of a secret's file that does not begin with `/`. Not shown: it may be the secret itself.
    NotAbsolute,
    /// Not a usable URL. Not shown: it may hold a password in a place where none is looked for.
    NotAUrl,
    /// A URL with a user name, password or token inside. Not shown.
    SecretInUrl,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form(got) => write!(f, "`{got}` cannot be understood"),
            Self::NotAQuantity { got, units } => {
                write!(f, "`{got}` is not a whole number with one of the units {units}")
            }
            Self::NoUnit(got) => write!(f, "`{got}` has no unit; write `{got}s` for seconds"),
            Self::OutOfBounds(got) => write!(f, "`{got}` is out of bounds"),
            Self::UnknownZone { got, nearest: None } => write!(f, "`{got}` is no time zone known to this machine"),
            Self::UnknownZone { got, nearest: Some(nearest) } => {
                write!(f, "`{got}` is no time zone known to this machine (the nearest is `{nearest}`)")
            }
            Self::Empty => f.write_str("the text is empty"),
            Self::TooLong { limit } => write!(f, "the text is longer than {limit} bytes"),
            Self::TooMany { limit } => write!(f, "the list has more than {limit} items"),
            Self::Repeated(got) => write!(f, "`{got}` stands twice in the list"),
            Self::NotAbsolute => {
                f.write_str("the path does not begin with `/` (not shown, in case the secret itself stands there)")
            }
            Self::NotAUrl => f.write_str("this is no URL that can be used (not shown, in case it holds a password)"),
            Self::SecretInUrl => f.write_str("the URL holds a user name, password or token (not shown)"),
        }
    }
}

impl std::error::Error for ValueError {}

/// How long something is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As long as there is room.
    Forever,
    /// This long.
    For(Duration),
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of so many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The count of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    /// Exact, in the largest binary unit that leaves no rest: `2GiB`, `1536MiB`, `1000B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes) = largest_unit(&SIZES, u128::from(self.0));
        write!(f, "{}{unit}", u128::from(self.0) / bytes)
    }
}

/// What is logged: a level for everything, or `TARGET=LEVEL` parts separated by commas. The language of `RUST_LOG`
/// without its bare targets, because a level with a typing error would be one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The units of a duration in milliseconds, largest first. A year has 365 days.
const UNITS: [(&str, u128); 6] =
    [("y", 365 * 86_400_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The units of a size in bytes, binary ones first and largest first, because that is how a size is written out.
const SIZES: [(&str, u128); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
];

/// The first unit that divides `number`; the unit of one when there is nothing to divide.
fn largest_unit(units: &[(&'static str, u128)], number: u128) -> (&'static str, u128) {
    let fits = |size: u128| if number == 0 { size == 1 } else { number.is_multiple_of(size) };
    units.iter().copied().find(|(_, size)| fits(*size)).unwrap_or(("", 1))
}

/// A duration as settings write it, in the largest unit that leaves no rest: `1m` for sixty seconds, `1500ms`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (unit, size) = largest_unit(&UNITS, millis);
    format!("{}{unit}", millis / size)
}

/// The digits at the head of `text`, and the rest without space around it.
fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end); // a border: digits are single bytes
    (number, unit.trim())
}

/// A whole number with a unit from `units`, as a count of the smallest unit.
fn scaled(text: &str, units: &[(&'static str, u128)]) -> Result<u128, ValueError> {
    let (number, unit) = number_and_unit(text);
    if !number.is_empty() && unit.is_empty() {
        return Err(ValueError::NoUnit(Shown::new(text)));
    }
    let known = units.iter().find(|(name, _)| *name == unit && !number.is_empty());
    let (_, size) = known.ok_or_else(|| {
        let units = units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        ValueError::NotAQuantity { got: Shown::new(text), units }
    })?;
    // Digits only, so that the one thing left to fail is the number's size.
    number
        .parse()
        .ok()
        .and_then(|n: u128| n.checked_mul(*size))
        .ok_or_else(|| ValueError::OutOfBounds(Shown::new(text)))
}

/// `250ms`, `10s`, `5m`, `2h`, `400d`, `5y` (365 days each), within `min..=max`.
pub fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, ValueError> {
    let millis = scaled(text, &UNITS)?;
    let duration = u64::try_from(millis).map(Duration::from_millis).ok();
    duration.filter(|d| (min..=max).contains(d)).ok_or_else(|| ValueError::OutOfBounds(Shown::new(text)))
}

/// A [`duration`], or `forever`.
pub fn keep(text: &str, min: Duration, max: Duration) -> Result<Keep, ValueError> {
    if text == "forever" { Ok(Keep::Forever) } else { duration(text, min, max).map(Keep::For) }
}

/// `2GiB`, `500MB`, `2048KiB`, or a plain number of bytes, within `min..=max`.
pub fn size(text: &str, min: ByteSize, max: ByteSize) -> Result<ByteSize, ValueError> {
    let bytes = match scaled(text, &SIZES) {
        Err(ValueError::NoUnit(_)) => text.parse().map_err(|_| ValueError::OutOfBounds(Shown::new(text)))?,
        other => other?,
    };
    let size = u64::try_from(bytes).map(ByteSize).ok();
    size.filter(|s| (min..=max).contains(s)).ok_or_else(|| ValueError::OutOfBounds(Shown::new(text)))
}

/// A whole number within `min..=max`.
pub fn count(text: &str, min: usize, max: usize) -> Result<usize, ValueError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ValueError::Form(Shown::new(text)));
    }
    let number = text.parse().ok();
    number.filter(|n| (min..=max).contains(n)).ok_or_else(|| ValueError::OutOfBounds(Shown::new(text)))
}

/// What `read` makes of a text, or that the text has another form.
fn formed<T>(text: &str, read: fn(&str) -> Option<T>) -> Result<T, ValueError> {
    read(text).ok_or_else(|| ValueError::Form(Shown::new(text)))
}

/// Money.
pub fn amount(text: &str) -> Result<Amount, ValueError> {
    formed(text, Amount::parse)
}

/// The code of a currency.
pub fn currency(text: &str) -> Result<Currency, ValueError> {
    formed(text, Currency::parse)
}

/// Days of the week.
pub fn days(text: &str) -> Result<Days, ValueError> {
    formed(text, Days::parse)
}

/// Times of day.
pub fn hours(text: &str) -> Result<Hours, ValueError> {
    formed(text, Hours::parse)
}

/// Parts of a year.
pub fn season(text: &str) -> Result<Season, ValueError> {
    formed(text, Season::parse)
}

/// `true` or `false`.
pub fn truth(text: &str) -> Result<bool, ValueError> {
    text.parse().map_err(|_| ValueError::Form(Shown::new(text)))
}

/// A text that is safe to hand on: not too long, no control characters.
fn plain(text: &str) -> Result<&str, ValueError> {
    if text.len() > limits::CONFIG_TEXT {
        return Err(ValueError::TooLong { limit: limits::CONFIG_TEXT });
    }
    if text.chars().any(char::is_control) { Err(ValueError::Form(Shown::new(text))) } else { Ok(text) }
}

/// A path that is not empty.
pub fn path(text: &str) -> Result<&str, ValueError> {
    if text.is_empty() { Err(ValueError::Empty) } else { plain(text) }
}

/// An absolute path, of a file with a secret among others. A relative one is refused without being repeated: a token written
/// where its file belongs must not end in a log.
pub fn absolute_path(text: &str) -> Result<&str, ValueError> {
    if text.starts_with('/') { plain(text) } else { Err(ValueError::NotAbsolute) }
}

/// A text of at most `max` bytes without control characters.
pub fn words(text: &str, max: usize) -> Result<&str, ValueError> {
    if text.len() > max { Err(ValueError::TooLong { limit: max }) } else { plain(text) }
}

/// An `http://` URL with a host, and without a user name, password or token: it is shown in logs and by `config show`.
pub fn url(text: &str) -> Result<&str, ValueError> {
    let query = text.split_once('?').map_or("", |(_, query)| query);
    // `u` and `p` are InfluxDB 1's own.
    let is_secret = |pair: &str| matches!(pair.split('=').next(), Some("u" | "p" | "username" | "password" | "token"));
    if text.contains('@') || query.split('&').any(is_secret) {
        return Err(ValueError::SecretInUrl);
    }
    let rest = text.strip_prefix("http://").ok_or(ValueError::NotAUrl)?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == '#';
    if authority.is_empty() || authority.starts_with(':') || text.contains(is_odd) {
        return Err(ValueError::NotAUrl);
    }
    plain(text)
}

/// An IANA time zone that this machine's database knows, in any case of letters.
pub fn zone(text: &str) -> Result<TimeZone, ValueError> {
    let known = TimeZone::get(text).ok().filter(|zone| zone.iana_name().is_some_and(|name| name != "Etc/Unknown"));
    known.ok_or_else(|| {
        let names: Vec<_> = jiff::tz::db().available().collect();
        let nearest = nearest(text, names.iter().map(|name| name.as_str())).map(str::to_owned);
        ValueError::UnknownZone { got: Shown::new(text), nearest }
    })
}

/// Items separated by commas, each through `item`, none twice. An empty text is an empty list.
pub fn list<T: PartialEq>(text: &str, item: fn(&str) -> Result<T, ValueError>) -> Result<Vec<T>, ValueError> {
    let mut items = Vec::new();
    if text.is_empty() {
        return Ok(items);
    }
    for part in text.split(',').map(str::trim) {
        let value = item(part)?;
        if items.contains(&value) {
            return Err(ValueError::Repeated(Shown::new(part)));
        }
        if items.len() == limits::CONFIG_LIST {
            return Err(ValueError::TooMany { limit: limits::CONFIG_LIST });
        }
        items.push(value);
    }
    Ok(items)
}

/// An IPv4 address that a probe can be sent to: a host's or a broadcast address.
pub fn target(text: &str) -> Result<Ipv4Addr, ValueError> {
    let address: Option<Ipv4Addr> = text.parse().ok();
    address.filter(|a| !a.is_unspecified() && !a.is_multicast()).ok_or_else(|| ValueError::Form(Shown::new(text)))
}

/// A host name without port, in lower case.
pub fn host(text: &str) -> Result<String, ValueError> {
    let is_label = |label: &str| {
        let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_part)
    };
    if text.len() > 253 || !text.split('.').all(is_label) {
        return Err(ValueError::Form(Shown::new(text)));
    }
    Ok(text.to_ascii_lowercase())
}

/// A [`LogFilter`].
pub fn log_filter(text: &str) -> Result<LogFilter, ValueError> {
    let is_part = |part: &str| {
        let (target, level) = part.split_once('=').unwrap_or(("all", part));
        let is_target = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
        !target.trim().is_empty()
            && target.trim().chars().all(is_target)
            && level.trim().parse::<log::LevelFilter>().is_ok()
    };
    if text.len() > limits::CONFIG_TEXT {
        return Err(ValueError::TooLong { limit: limits::CONFIG_TEXT });
    }
    if text.split(',').all(is_part) { Ok(LogFilter(text.to_owned())) } else { Err(ValueError::Form(Shown::new(text))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEARS: Duration = Duration::from_secs(100 * 365 * 86_400);

    fn any_duration(text: &str) -> Result<Duration, ValueError> {
        duration(text, Duration::ZERO, YEARS)
    }

    #[test]
    fn durations_are_exact_and_need_a_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("10 s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("400d", 34_560_000_000),
            ("5y", 157_680_000_000),
        ] {
            assert_eq!(any_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(matches!(any_duration("10"), Err(ValueError::NoUnit(_))));
        for text in ["", "s", "1.5s", "-1s", "1h30m", "10S", "ten s", "forever", "10\u{e4}"] {
            assert!(matches!(any_duration(text), Err(ValueError::NotAQuantity { .. })), "{text}");
        }
        for text in
            ["101y", "99999999999999999999999999999999999999999999y", "340282366920938463463374607431768211455y"]
        {
            assert!(matches!(any_duration(text), Err(ValueError::OutOfBounds(_))), "{text}");
        }
    }

    #[test]
    fn sizes_tell_binary_and_decimal_units_apart() {
        let any = |text| size(text, ByteSize(0), ByteSize(u64::MAX)).map(ByteSize::get);
        for (text, bytes) in
            [("2GiB", 2 << 30), ("500MB", 500_000_000), ("2048KiB", 2 << 20), ("4096", 4_096), ("7B", 7)]
        {
            assert_eq!(any(text), Ok(bytes), "{text}");
        }
        for text in ["", "2gib", "2 G", "-1", "GiB", "1.5GiB"] {
            assert!(matches!(any(text), Err(ValueError::NotAQuantity { .. })), "{text}");
        }
        assert!(matches!(any("99999999999999999999"), Err(ValueError::OutOfBounds(_))));
        assert_eq!(ByteSize(3 << 29).to_string(), "1536MiB");
        assert_eq!(ByteSize(1_000).to_string(), "1000B");
    }

    #[test]
    fn secrets_are_never_repeated_in_an_error() {
        let urls = ["http://me:hunter2@host/", "https://me:hunter2@host/", "http://h/write?u=me&p=hunter2", "hunter2"];
        let errors = urls.map(|text| url(text).unwrap_err());
        for error in errors.into_iter().chain([absolute_path("hunter2").unwrap_err()]) {
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert!(url("http://192.168.1.5:8428/write?db=power").is_ok());
        assert_eq!(absolute_path("/etc/wattd/token"), Ok("/etc/wattd/token"));
    }

    #[test]
    fn zones_hosts_targets_and_filters_are_checked() {
        assert_eq!(zone("europe/berlin").unwrap().iana_name(), Some("Europe/Berlin"));
        let Err(ValueError::UnknownZone { nearest, .. }) = zone("Europe/Berln") else { panic!("accepted") };
        assert_eq!(nearest.as_deref(), Some("Europe/Berlin"));
        assert!(zone("Etc/Unknown").is_err() && zone("../passwd").is_err() && zone("").is_err());
        assert_eq!(host("Pi.Local"), Ok("pi.local".to_owned()));
        for bad in ["", "pi.local:80", "a..b", "a b", "*"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(target("255.255.255.255").is_ok() && target("192.168.1.7").is_ok());
        assert!(target("0.0.0.0").is_err() && target("224.0.0.1").is_err() && target("::1").is_err());
        for good in ["info", "warn,wattd::poll=debug", "WARN", "hyper=off"] {
            assert!(log_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inf", "wattd=", "=info", "info,,debug", "info/regex"] {
            assert!(log_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_bounded_and_free_of_repeats() {
        assert_eq!(list("", target), Ok(Vec::new()));
        assert_eq!(list("10.0.0.1, 10.0.0.2", target).map(|l| l.len()), Ok(2));
        assert!(matches!(list("10.0.0.1,10.0.0.1", target), Err(ValueError::Repeated(_))));
        assert!(list("10.0.0.1,", target).is_err());
        let many = |n: usize| (0..n).map(|i| format!("h{i}")).collect::<Vec<_>>().join(",");
        assert!(list(&many(limits::CONFIG_LIST), host).is_ok());
        assert!(matches!(list(&many(limits::CONFIG_LIST + 1), host), Err(ValueError::TooMany { .. })));
    }

    proptest! {
        #[test]
        fn a_duration_written_out_reads_as_itself(millis in 0_u64..=3_153_600_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(any_duration(&duration_text(duration)), Ok(duration));
        }

        #[test]
        fn a_size_written_out_reads_as_itself(bytes: u64) {
            let bytes = ByteSize(bytes);
            prop_assert_eq!(size(&bytes.to_string(), ByteSize(0), ByteSize(u64::MAX)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = (any_duration(&text), size(&text, ByteSize(0), ByteSize(9)), count(&text, 0, 9), url(&text));
            let _ = (list(&text, host), list(&text, target), log_filter(&text), absolute_path(&text), words(&text, 9));
        }
    }
}
