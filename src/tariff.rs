//! What energy costs: prices by day, hour and season, a standing charge, and amounts of money. Pure.
//!
//! Owns the grammar of a tariff and the one multiplication of energy by price. Promises exact sums: an amount is a whole
//! number of millionths of the currency, a cost a whole number of millionths of those (1 mWh at one millionth per kWh is
//! one of them), so that nothing is rounded before a reply is written; there it is rounded half up to the sixth decimal.
//! Prices change on quarter hours of local time only, and civil time is a whole number of quarter hours from UTC, so each
//! stored bucket of 15 minutes has one price, whatever the clock does that day. Leaves to `query` which buckets are priced.

use std::fmt;
use std::ops::{Add, AddAssign};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::units::{MilliwattHours, UnixMillis};

const QUARTER_HOUR_MS: i64 = 900_000;
const QUARTERS_A_DAY: u32 = 96;

/// Money: a price per kWh, or a charge per day. In millionths of the currency, at most a million units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(u64);

impl Amount {
    /// The largest amount: a million units.
    pub const MAX: Self = Self(1_000_000_000_000);

    /// Reads a decimal such as `0.3215`: digits, and at most six after a point.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 6 {
            return None;
        }
        let millionths = format!("{fraction:0<6}").parse::<u64>().ok()?;
        let amount = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(millionths).map(Self)?;
        (amount <= Self::MAX).then_some(amount)
    }

    /// What `energy` costs at this price per kWh.
    #[must_use]
    pub fn of(self, energy: MilliwattHours) -> Cost {
        Cost(u128::from(self.0) * u128::from(energy.get())) // 1e12 times 1e12 at most
    }

    /// The part of this charge for `part` of `whole` milliseconds, rounded down; nothing of an empty whole.
    #[must_use]
    pub fn share(self, part: u64, whole: u64) -> Cost {
        let all = u128::from(self.0) * 1_000_000;
        Cost((all * u128::from(part)).checked_div(u128::from(whole)).unwrap_or(0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Cost(u128::from(self.0) * 1_000_000))
    }
}

/// What something cost, exactly: in millionths of millionths of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    /// Rounded half up to hundredths of the currency, with two decimals: for people.
    #[must_use]
    pub fn cents(self) -> impl fmt::Display {
        let cents = self.0.saturating_add(5_000_000_000) / 10_000_000_000;
        format!("{}.{:02}", cents / 100, cents % 100)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Cost {
    /// Rounded half up to the sixth decimal, without trailing zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millionths = self.0.saturating_add(500_000) / 1_000_000;
        let (whole, rest) = (millionths / 1_000_000, millionths % 1_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
    }
}

/// The code of a currency, three capital letters (ISO 4217).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Reads a code, in any case of letters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let code: [u8; 3] = text.to_ascii_uppercase().into_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Self(code))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| fmt::Write::write_char(f, char::from(*letter)))
    }
}

/// Days of the week, a bit for each from Monday on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u8);

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_NAMES: [&str; 7] = ["Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays"];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

impl Days {
    /// Every day.
    pub const ALL: Self = Self(0x7f);

    /// Reads days and spans of days with commas between: `mon-fri`, `sat,sun`, `fri-mon`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut days = 0;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (place(&DAYS, first)?, place(&DAYS, last)?);
            let length = (last + 7 - first) % 7;
            days |= (0..=length).map(|n| 1 << ((first + n) % 7)).fold(0, |all, day: u8| all | day);
        }
        Some(Self(days))
    }

    /// `day` counts from Monday, 0 to 6.
    const fn has(self, day: u32) -> bool {
        self.0 >> (day % 7) & 1 == 1
    }
}

/// Times of a day, a bit for each quarter hour from midnight on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours(u128);

impl Hours {
    /// The whole day.
    pub const ALL: Self = Self((1 << QUARTERS_A_DAY) - 1);

    /// Reads spans with commas between: `06:00-22:00`, `22:00-06:00,12:00-14:30`. The end is not in the span; one that does
    /// not lie after the start goes over midnight. Times lie on quarter hours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut hours = 0;
        for part in text.split(',') {
            let (start, end) = part.split_once('-')?;
            let (start, end) = (quarter(start)? % QUARTERS_A_DAY, quarter(end)?);
            let length = if end > start { end - start } else { end + QUARTERS_A_DAY - start };
            hours |= (0..length).map(|n| 1 << ((start + n) % QUARTERS_A_DAY)).fold(0, |all, bit: u128| all | bit);
        }
        Some(Self(hours))
    }
}

/// Parts of a year: spans of days, both ends in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Season(Vec<(YearDay, YearDay)>);

/// A day of any year, as month times 32 and day.
type YearDay = u16;

impl Season {
    /// The whole year.
    pub const ALL: Self = Self(Vec::new());

    /// Reads spans with commas between: `nov-mar`, `15 may-14 sep`, `jul`. Both ends are in the span; one that ends before it
    /// starts goes over the new year.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let span = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((year_day(first)?.0, year_day(last)?.1))
        };
        text.split(',').map(span).collect::<Option<_>>().map(Self)
    }

    fn has(&self, day: YearDay) -> bool {
        let within = |(first, last): &(YearDay, YearDay)| {
            if first <= last { (*first..=*last).contains(&day) } else { day >= *first || day <= *last }
        };
        self.0.is_empty() || self.0.iter().any(within)
    }
}

/// The first and last day that a text names: a month, or a day of one.
fn year_day(text: &str) -> Option<(YearDay, YearDay)> {
    let text = text.trim();
    let (day, month) = text.split_once(' ').map_or((None, text), |(day, month)| (Some(day), month));
    let month = place(&MONTHS, month)? + 1;
    let longest = match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let at = |day| u16::try_from(month * 32 + day).ok();
    match day {
        None => Some((at(1)?, at(longest)?)),
        Some(day) => {
            let day = day.parse().ok().filter(|day| (1..=longest).contains(day))?;
            Some((at(day)?, at(day)?))
        }
    }
}

/// Where in `names` the text is, by its first three letters in any case.
fn place(names: &[&str], text: &str) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    let position = names.iter().position(|name| *name == text)?;
    u32::try_from(position).ok()
}

/// The quarter hour at which a time of day such as `06:15` stands, 0 to 96.
fn quarter(text: &str) -> Option<u32> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two = |text: &str| text.parse::<u32>().ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
    let (hour, minute) = (two(hour)?, two(minute)?);
    (minute.is_multiple_of(15) && minute < 60 && hour * 60 + minute <= 1_440).then_some(hour * 4 + minute / 15)
}

/// A price and when it holds. The moment's own local date says day and season: `fri` with `22:00-06:00` is Friday's first six
/// and last two hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Per kWh.
    pub price: Amount,
    /// On these days of the week.
    pub days: Days,
    /// In these hours.
    pub hours: Hours,
    /// In this part of the year.
    pub season: Season,
}

impl Rule {
    fn is_on(&self, weekday: u32, day: YearDay) -> bool {
        self.days.has(weekday) && self.season.has(day)
    }
}

/// What the supplier takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tariff {
    /// In what.
    pub currency: Option<Currency>,
    /// Per kWh, where no rule says otherwise.
    pub price: Option<Amount>,
    /// Per civil day, whatever is used.
    pub standing_charge: Option<Amount>,
    /// Prices by time, the first that fits holds.
    pub rules: Vec<Rule>,
}

/// A time of a week that has no price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpriced {
    /// From Monday, 0 to 6.
    weekday: u32,
    month: u16,
    day: u16,
    quarter: u32,
}

impl fmt::Display for Unpriced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |names: &[&'static str], n: u32| usize::try_from(n).ok().and_then(|n| names.get(n).copied());
        let (day, month) = (name(&DAY_NAMES, self.weekday), name(&MONTHS, u32::from(self.month).saturating_sub(1)));
        let (hour, minute) = (self.quarter / 4, self.quarter % 4 * 15);
        let (day, month) = (day.unwrap_or_default(), month.unwrap_or_default());
        write!(f, "{day} at {hour:02}:{minute:02} around {} {month}", self.day)
    }
}

impl Tariff {
    /// Whether anything has a price.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.price.is_some() || !self.rules.is_empty()
    }

    /// The price per kWh at a local time.
    #[must_use]
    pub fn at(&self, local: DateTime) -> Option<Amount> {
        let weekday = u32::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
        let number = |n: i8| u16::try_from(n).unwrap_or(0);
        let day = number(local.month()) * 32 + number(local.day());
        let quarter = u32::from(number(local.hour())) * 4 + u32::from(number(local.minute())) / 15;
        let fits = |rule: &&Rule| rule.is_on(weekday, day) && rule.hours.0 >> quarter & 1 == 1;
        self.rules.iter().find(fits).map(|rule| rule.price).or(self.price)
    }

    /// The prices of the quarter hours that begin in `[from, to)`; `from` is the start of one.
    #[must_use]
    pub fn prices(&self, zone: &TimeZone, from: UnixMillis, to: UnixMillis) -> Prices {
        if self.rules.is_empty() {
            return Prices { from, flat: self.price.unwrap_or_default(), by_quarter: Vec::new() };
        }
        let mut by_quarter = Vec::new();
        let mut at = from;
        while at < to {
            let local = zone.to_datetime(Timestamp::from_millisecond(at.get()).unwrap_or(Timestamp::UNIX_EPOCH));
            by_quarter.push(self.at(local).unwrap_or_default());
            let next = at.plus(QUARTER_HOUR_MS);
            at = if next > at { next } else { to };
        }
        Prices { from, flat: Amount::default(), by_quarter }
    }

    /// Looks for times without a price, and for rules that never hold because others come first.
    ///
    /// # Errors
    /// [`Unpriced`], the first in the year.
    pub fn check(&self) -> Result<Vec<usize>, Unpriced> {
        let mut holds = vec![false; self.rules.len()];
        for (month, weekday) in (1..=12).flat_map(|month| (0..7).map(move |weekday| (month, weekday))) {
            for day in 1..=31 {
                let mut free = Hours::ALL.0;
                for (rule, holds) in self.rules.iter().zip(&mut holds) {
                    if rule.is_on(weekday, month * 32 + day) {
                        *holds |= rule.hours.0 & free != 0;
                        free &= !rule.hours.0;
                    }
                }
                // April has no 31st, and what names none of its days is no gap.
                let exists =
                    year_day(&format!("{day} {}", MONTHS.get(usize::from(month) - 1).unwrap_or(&""))).is_some();
                if free != 0 && self.price.is_none() && exists {
                    return Err(Unpriced { weekday, month, day, quarter: free.trailing_zeros() });
                }
            }
        }
        Ok((0..holds.len()).filter(|n| holds.get(*n) == Some(&false)).collect())
    }
}

/// The price of each quarter hour of a span.
#[derive(Clone, Debug)]
pub struct Prices {
    from: UnixMillis,
    flat: Amount,
    /// Empty for a price that is always the same.
    by_quarter: Vec<Amount>,
}

impl Prices {
    /// The price of the quarter hour that begins at `start`, within the span.
    #[must_use]
    pub fn at(&self, start: UnixMillis) -> Amount {
        let n = usize::try_from(start.since(self.from) / QUARTER_HOUR_MS).ok();
        n.and_then(|n| self.by_quarter.get(n)).copied().unwrap_or(self.flat)
    }

    /// Whether the price is the same all through each hour of UTC.
    #[must_use]
    pub fn is_hourly(&self) -> bool {
        let start = |n: usize| self.from.plus(i64::try_from(n).unwrap_or(0) * QUARTER_HOUR_MS);
        let is_border = |n: usize| start(n).get().rem_euclid(4 * QUARTER_HOUR_MS) == 0;
        let same = |pair: &[Amount]| pair.first() == pair.last();
        self.by_quarter.windows(2).enumerate().all(|(n, pair)| same(pair) || is_border(n + 1))
    }

    /// What `energy` of the hour of UTC that begins at `start` costs when nobody knows when in the hour it was used: at the
    /// mean of its prices.
    #[must_use]
    pub fn spread(&self, start: UnixMillis, energy: MilliwattHours) -> Cost {
        let quarters = (0..4).map(|n| self.at(start.plus(n * QUARTER_HOUR_MS)).of(energy).0);
        Cost(quarters.sum::<u128>() / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(text: &str) -> Amount {
        Amount::parse(text).unwrap()
    }

    fn rule(price: &str, days: &str, hours: &str, season: &str) -> Rule {
        Rule {
            price: amount(price),
            days: if days.is_empty() { Days::ALL } else { Days::parse(days).unwrap() },
            hours: if hours.is_empty() { Hours::ALL } else { Hours::parse(hours).unwrap() },
            season: if season.is_empty() { Season::ALL } else { Season::parse(season).unwrap() },
        }
    }

    fn tariff(rules: Vec<Rule>) -> Tariff {
        Tariff { rules, ..Tariff::default() }
    }

    fn price(tariff: &Tariff, local: &str) -> String {
        tariff.at(local.parse().unwrap()).map(|price| price.to_string()).unwrap_or_default()
    }

    #[test]
    fn amounts_are_exact_decimals() {
        for (text, shown) in [("0.3215", "0.3215"), ("1", "1"), ("0.000001", "0.000001"), ("1000000", "1000000")] {
            assert_eq!(amount(text).to_string(), shown);
        }
        for text in
            ["", ".5", "1.", "-1", "+1", "1e3", "0,32", "0.1234567", "1000000.000001", "99999999999999999999", "nan"]
        {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
        let cost = amount("0.3215").of(MilliwattHours::new(1_234_567).unwrap());
        assert_eq!((cost.to_string().as_str(), cost.cents().to_string().as_str()), ("0.396913", "0.40"));
        assert_eq!(amount("0.005").of(MilliwattHours::new(1_000_000).unwrap()).cents().to_string(), "0.01");
        assert_eq!(amount("0.24").share(1, 3).to_string(), "0.08");
    }

    #[test]
    fn days_hours_and_seasons_are_read_and_go_round() {
        assert_eq!(Days::parse("mon-fri"), Some(Days(0b001_1111)));
        assert_eq!(Days::parse("Sat, Sun"), Some(Days(0b110_0000)));
        assert_eq!(Days::parse("sat-mon"), Some(Days(0b110_0001)));
        assert_eq!(Hours::parse("00:00-24:00"), Some(Hours::ALL));
        assert_eq!(Hours::parse("00:00-00:00"), Some(Hours::ALL));
        assert_eq!(Hours::parse("00:15-01:00,23:45-00:00"), Some(Hours(1 << 95 | 0b1110)));
        assert_eq!(Hours::parse("23:00-01:00"), Some(Hours(0xf << 92 | 0xf)));
        let winter = Season::parse("nov-mar").unwrap();
        assert!(
            winter.has(11 * 32 + 1) && winter.has(3 * 32 + 31) && !winter.has(4 * 32 + 1) && !winter.has(10 * 32 + 31)
        );
        let summer = Season::parse("15 may - 14 sep, 24 dec").unwrap();
        assert!(
            summer.has(5 * 32 + 15) && summer.has(9 * 32 + 14) && summer.has(12 * 32 + 24) && !summer.has(9 * 32 + 15)
        );
        for text in ["", "monday", "mon-", "1-5"] {
            assert_eq!(Days::parse(text), None, "{text}");
        }
        for text in ["", "6-22", "06:10-07:00", "06:00", "24:15-01:00", "06:00-25:00", "6:00-7:00", "+6:00-07:00"] {
            assert_eq!(Hours::parse(text), None, "{text}");
        }
        for text in ["", "31 apr", "30 feb", "0 jan", "nov-", "winter"] {
            assert_eq!(Season::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_holds_else_the_price_for_all_times() {
        let mut tariff = tariff(vec![
            rule("0.10", "", "22:00-06:00", ""),
            rule("0.20", "sat,sun", "", ""),
            rule("0.40", "mon-fri", "17:00-20:00", "nov-mar"),
        ]);
        tariff.price = Some(amount("0.30"));
        for (local, expected) in [
            ("2026-11-23T05:59", "0.1"), // a Monday
            ("2026-11-23T06:00", "0.3"),
            ("2026-11-23T17:00", "0.4"),
            ("2026-11-23T20:00", "0.3"),
            ("2026-07-20T17:00", "0.3"),
            ("2026-11-22T12:00", "0.2"),
            ("2026-11-22T23:59", "0.1"),
        ] {
            assert_eq!(price(&tariff, local), expected, "{local}");
        }
    }

    #[test]
    fn gaps_and_rules_that_never_hold_are_found() {
        let gap = |rules| tariff(rules).check().unwrap_err().to_string();
        assert_eq!(gap(vec![rule("0.1", "", "22:00-06:00", "")]), "Mondays at 06:00 around 1 jan");
        assert_eq!(gap(vec![rule("0.1", "mon-sat", "", "")]), "Sundays at 00:00 around 1 jan");
        let seasons = vec![rule("0.1", "", "", "nov-mar"), rule("0.2", "", "", "apr-30 sep")];
        assert_eq!(gap(seasons), "Mondays at 00:00 around 1 oct");
        let whole =
            vec![rule("0.1", "mon-fri", "", "apr-sep"), rule("0.2", "", "", ""), rule("0.3", "sun", "01:00-02:00", "")];
        assert_eq!(tariff(whole).check(), Ok(vec![2]));
        let leap = vec![rule("0.1", "", "", "mar-28 feb"), rule("0.2", "", "", "29 feb")];
        assert_eq!(tariff(leap).check(), Ok(vec![]));
    }

    #[test]
    fn each_quarter_hour_has_the_price_of_its_local_time() {
        let zone = TimeZone::get("Asia/Kathmandu").unwrap(); // +05:45
        let tariff = tariff(vec![rule("0.1", "", "06:00-22:00", ""), rule("0.2", "", "", "")]);
        let from = UnixMillis::new("2026-11-22T23:00:00Z".parse::<Timestamp>().unwrap().as_millisecond());
        let prices = tariff.prices(&zone, from, from.plus(8 * QUARTER_HOUR_MS));
        let shown: Vec<String> = (0..8).map(|n| prices.at(from.plus(n * QUARTER_HOUR_MS)).to_string()).collect();
        assert_eq!(shown, ["0.2", "0.2", "0.2", "0.2", "0.2", "0.1", "0.1", "0.1"]); // 06:00 is 00:15 UTC
        assert!(!prices.is_hourly());
        assert!(tariff.prices(&TimeZone::UTC, from, from.plus(96 * QUARTER_HOUR_MS)).is_hourly());
        let hour = prices.spread(from.plus(4 * QUARTER_HOUR_MS), MilliwattHours::new(1_000_000).unwrap());
        assert_eq!(hour.to_string(), "0.125");
    }
}
