//! What each device used in a window of time up to now: one row for each.
//!
//! Owns windows. A window in hours or less than two days begins at its very millisecond, a longer one at the quarter hour
//! in which it begins; `today` and `month` begin where the civil day or month does. Everything after the first border of
//! quarter hours comes from stored buckets, the same that `rollups` shows. The quarter hour that the window cuts into is
//! made from its readings: power, times and counts are theirs, and of the bucket's energy the window gets the share that
//! its power over time has. So nothing is counted beyond what the buckets say, and a call reads at most a quarter hour of
//! readings, whatever the window.

use std::fmt;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::clock::Now;
use crate::limits;
use crate::nearest::nearest;
use crate::poll::fleet::Fleet;
use crate::query::cost::{self, Costs};
use crate::query::latest::Latest;
use crate::query::time;
use crate::reading::{DeviceId, Reading, Relay};
use crate::rollup::bucket::{QUARTER_HOUR_MS, quarter_hour};
use crate::rollup::{Bucket, Millijoules, Period, PowerRange, Step, periods};
use crate::store::chunk::Columns;
use crate::store::{Order, Row, Scan, Store, StoreError, Tier};
use crate::tariff::{Cost, Tariff};
use crate::units::{MilliwattHours, UnixMillis};

const HOUR_MS: i64 = 3_600_000;
/// Windows below this begin at their very millisecond.
const EXACT_BELOW_MS: i64 = 48 * HOUR_MS;
/// How much of a long window is read at once: some 2,000 hours of a device.
const SLICE_MS: i64 = 90 * 24 * HOUR_MS;
/// The interval of a device whose plug is not in this run's fleet: a strip's usual one. What is thereby held too long is
/// cut back to what the quarter hour's bucket has observed.
const USUAL_INTERVAL: Duration = Duration::from_secs(60);
/// The longest window, 100 years: as long as anything can be kept.
const LONGEST_MS: i64 = 36_525 * 24 * HOUR_MS;

/// A span of time up to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// So many milliseconds.
    Last(i64),
    /// The civil day under way.
    Today,
    /// The week under way, from Monday on.
    Week,
    /// The civil month under way.
    Month,
    /// The civil year under way.
    Year,
}

/// A text that names no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAWindow {
    nearest: Option<&'static str>,
}

impl fmt::Display for NotAWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(nearest) = self.nearest {
            write!(f, "did you mean {nearest}? ")?;
        }
        f.write_str("A window is a span up to now, such as 90s, 15m, 1h, 7d, 4w (at most 36525d), or today, week, month or year")
    }
}

impl std::error::Error for NotAWindow {}

impl Window {
    /// The window unless a request says otherwise: an hour.
    pub const USUAL: Self = Self::Last(HOUR_MS);

    /// The window that `text` names.
    ///
    /// # Errors
    /// [`NotAWindow`], whose text says what windows are.
    pub fn parse(text: &str) -> Result<Self, NotAWindow> {
        match text {
            "today" => Ok(Self::Today),
            "week" => Ok(Self::Week),
            "month" => Ok(Self::Month),
            "year" => Ok(Self::Year),
            span => {
                let span = time::parse_span(span).ok().filter(|span| (1..=LONGEST_MS).contains(span));
                span.map(Self::Last).ok_or_else(|| {
                    let known = ["today", "week", "month", "year", "90s", "15m", "1h", "24h", "7d", "4w"];
                    NotAWindow { nearest: known.into_iter().find(|known| nearest(text, [*known]).is_some()) }
                })
            }
        }
    }

    /// Its span, up to and with `now`.
    #[must_use]
    pub fn span(self, zone: &TimeZone, now: UnixMillis) -> Period {
        let civil = |step| periods(step, zone, now, now.plus(1)).next().map_or(now, |period| period.start);
        let start = match self {
            Self::Last(span) if span < EXACT_BELOW_MS => now.plus(-span),
            Self::Last(span) => quarter_hour(now.plus(-span)),
            Self::Today => civil(Step::Day),
            Self::Week => civil_start(zone, now, |date| {
                date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days())
            }),
            Self::Month => civil(Step::Month),
            Self::Year => civil_start(zone, now, |date| Ok(date.first_of_year())),
        };
        Period { start, end: now }
    }
}

/// The first moment of the date that `first` makes of today's.
fn civil_start(zone: &TimeZone, now: UnixMillis, first: impl Fn(Date) -> Result<Date, jiff::Error>) -> UnixMillis {
    let today = zone.to_datetime(Timestamp::from_millisecond(now.get()).unwrap_or(Timestamp::UNIX_EPOCH)).date();
    // By noon, which every day has; the day's own first moment is found from there.
    let noon = first(today).and_then(|date| zone.to_timestamp(date.at(12, 0, 0, 0)));
    let noon = UnixMillis::new(noon.map_or(now.get(), |noon| noon.as_millisecond()));
    periods(Step::Day, zone, noon, noon.plus(1)).next().map_or(now, |day| day.start)
}

/// A device and what is known of it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its id.
    pub id: DeviceId,
    /// The name people know it by; empty when the plug is not in this run's fleet.
    pub alias: String,
    /// Its newest reading, whenever it was.
    pub latest: Option<Latest>,
    /// For how long one of its readings holds.
    hold_ms: i64,
}

impl Who {
    /// What is known of `id` now.
    #[must_use]
    pub fn of(id: DeviceId, fleet: &Fleet, store: &Store, now: Now) -> Self {
        let plug = fleet.get(id.plug);
        let interval = plug.map(|plug| plug.interval).filter(|interval| !interval.is_zero());
        let interval = interval.unwrap_or(USUAL_INTERVAL);
        Self {
            id,
            alias: plug.map_or_else(String::new, |plug| plug.device_name(id).to_owned()),
            latest: Latest::of(id, fleet, store, now),
            hold_ms: i64::try_from(interval.as_millis()).unwrap_or(0).saturating_mul(limits::HOLD_INTERVALS.into()),
        }
    }
}

/// What one device used in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The device.
    pub who: Who,
    /// The window.
    pub window: Period,
    /// What was recorded in it. None when nothing was.
    pub bucket: Option<Bucket>,
    /// What its energy cost. None without a tariff, and when nothing was recorded.
    pub cost: Option<Cost>,
}

/// A tariff in its zone.
#[derive(Clone, Copy, Debug)]
pub struct Pricing<'a> {
    /// The prices.
    pub tariff: &'a Tariff,
    /// Whose time they are by.
    pub zone: &'a TimeZone,
}

impl Summary {
    /// One for each device, in the same order.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn of(
        store: &Store,
        who: Vec<Who>,
        window: Period,
        pricing: Pricing<'_>,
    ) -> Result<Vec<Self>, StoreError> {
        // Until the first border of quarter hours, when the window does not begin at one.
        let first = quarter_hour(window.start);
        let border = if first == window.start { first } else { first.plus(QUARTER_HOUR_MS).min(window.end) };
        let mut cuts = cuts(store, &who, window.start, border).await?.into_iter();
        let mut summaries = Vec::with_capacity(who.len());
        for who in who {
            let mut sum = Sum { bucket: None, cost: Cost::default() };
            if let Some(cut) = cuts.next() {
                let whole = store.buckets(who.id, Tier::QuarterHour, first, first.plus(1), window.end).await?;
                sum.bucket = whole.first().and_then(|whole| cut.finish(whole));
                let prices = cost::prices(pricing.tariff, pricing.zone, first, first.plus(1));
                if let Some((bucket, prices)) = sum.bucket.zip(prices) {
                    sum.cost = prices.at(first).of(bucket.energy);
                }
            }
            sum.up(store, who.id, (border, window.end), pricing).await?;
            let cost = sum.bucket.filter(|_| pricing.tariff.is_set()).map(|_| sum.cost);
            summaries.push(Self { who, window, bucket: sum.bucket, cost });
        }
        Ok(summaries)
    }
}

/// A device's energy in the making.
struct Sum {
    bucket: Option<Bucket>,
    cost: Cost,
}

impl Sum {
    /// Adds the buckets of a device from `from`, a border of quarter hours, up to now.
    async fn up(
        &mut self,
        store: &Store,
        id: DeviceId,
        (from, now): (UnixMillis, UnixMillis),
        pricing: Pricing<'_>,
    ) -> Result<(), StoreError> {
        let end = now.plus(1);
        let hour = from.plus((HOUR_MS - from.get().rem_euclid(HOUR_MS)) % HOUR_MS);
        let mut at = if end.since(from) > EXACT_BELOW_MS { hour } else { end };
        if from < at {
            self.add(store, id, (Tier::QuarterHour, from, at), now, pricing).await?;
        }
        while at < end {
            // Years in which nothing was recorded are passed over.
            let Some(reach) = store.first_bucket(&[id], Order::Ascending, (at, end), now).await? else { break };
            let start = reach.plus(-reach.get().rem_euclid(HOUR_MS));
            at = start.plus(SLICE_MS).min(end);
            self.add(store, id, (Tier::Hour, start, at), now, pricing).await?;
        }
        Ok(())
    }

    async fn add(
        &mut self,
        store: &Store,
        id: DeviceId,
        (tier, from, to): (Tier, UnixMillis, UnixMillis),
        now: UnixMillis,
        pricing: Pricing<'_>,
    ) -> Result<(), StoreError> {
        let buckets = store.buckets(id, tier, from, to, now).await?;
        if let Some(prices) = cost::prices(pricing.tariff, pricing.zone, from, to) {
            self.cost += Costs::of(&prices, store, id, (&buckets, tier), (from, to), now).await?.total();
        }
        for bucket in buckets {
            self.bucket.get_or_insert(Bucket::empty(bucket.start)).merge(&bucket);
        }
        Ok(())
    }
}

/// What the readings of `who` say of `[from, to)`, a part of a quarter hour; nothing when it is empty.
async fn cuts(store: &Store, who: &[Who], from: UnixMillis, to: UnixMillis) -> Result<Vec<Cut>, StoreError> {
    if from >= to {
        return Ok(Vec::new());
    }
    let mut cuts: Vec<Cut> = who.iter().map(|who| Cut::new(who.hold_ms, from, to)).collect();
    let numbers: Vec<_> = who.iter().map(|who| store.number(who.id)).collect();
    // The reading before the part may hold into it, and the one after it.
    let hold = who.iter().map(|who| who.hold_ms).max().unwrap_or(0);
    let mut scan = Scan {
        devices: numbers.iter().flatten().copied().collect(),
        from: from.plus(-hold),
        to: to.plus(hold),
        order: Order::Ascending,
        after: None,
        limit: limits::EXPORT_ROWS,
        columns: Columns::POWER.with(Columns::VOLTAGE),
    };
    loop {
        let page = store.scan(scan.clone()).await?;
        for row in &page.rows {
            let index = numbers.iter().position(|number| *number == Some(row.device));
            if let Some(cut) = index.and_then(|index| cuts.get_mut(index)) {
                cut.push(&row.reading);
            }
        }
        scan.after = page.rows.last().map(Row::position);
        if !page.more {
            return Ok(cuts);
        }
    }
}

/// A part of a quarter hour, made from readings in order of time.
struct Cut {
    hold_ms: i64,
    from: UnixMillis,
    to: UnixMillis,
    last: Option<Reading>,
    /// Power over time, in mW ms.
    power: u64,
    bucket: Bucket,
}

impl Cut {
    fn new(hold_ms: i64, from: UnixMillis, to: UnixMillis) -> Self {
        Self { hold_ms, from, to, last: None, power: 0, bucket: Bucket::empty(from) }
    }

    fn push(&mut self, reading: &Reading) {
        // As the energy account has it: what came before such a reading holds on.
        if reading.voltage.is_some_and(|voltage| !voltage.is_plausible()) {
            return;
        }
        self.hold_until(reading.time, Some(reading));
        self.bucket.readings += u32::from((self.from..self.to).contains(&reading.time));
        self.last = Some(*reading);
    }

    /// The last reading holds until `time`; half of that time is that of the reading which comes then.
    fn hold_until(&mut self, time: UnixMillis, next: Option<&Reading>) {
        let Some(last) = self.last else { return };
        let until = time.min(last.time.plus(self.hold_ms));
        match next.filter(|_| until == time) {
            Some(next) => {
                let turn = last.time.plus(until.since(last.time) / 2);
                self.hold(&last, last.time, turn);
                self.hold(next, turn, until);
            }
            None => self.hold(&last, last.time, until),
        }
    }

    /// A reading stands for a span of time; what of it lies outside the part does not count.
    fn hold(&mut self, reading: &Reading, from: UnixMillis, until: UnixMillis) {
        let Ok(millis) = u64::try_from(until.min(self.to).since(from.max(self.from))) else { return };
        if millis == 0 {
            return;
        }
        let held = Duration::from_millis(millis);
        self.power = self.power.saturating_add(u64::from(reading.power.get()).saturating_mul(millis));
        self.bucket.observed = self.bucket.observed.saturating_add(held);
        let range = self.bucket.range.unwrap_or(PowerRange { min: reading.power, max: reading.power });
        self.bucket.range = Some(PowerRange { min: range.min.min(reading.power), max: range.max.max(reading.power) });
        if let Some(relay) = reading.relay {
            let on = if relay == Relay::On { held } else { Duration::ZERO };
            self.bucket.on = Some(self.bucket.on.unwrap_or_default().saturating_add(on));
        }
    }

    /// The part, with its share of the energy of the `whole` quarter hour. None when nothing was observed in it.
    fn finish(mut self, whole: &Bucket) -> Option<Bucket> {
        self.hold_until(self.to, None);
        // A gap that was marked ends a hold; readings alone do not tell it.
        let observed = self.bucket.observed.min(whole.observed);
        let power = (self.power / 1_000).min(whole.power.get());
        let share = u128::from(whole.energy.get()) * u128::from(power);
        let energy = share.checked_div(u128::from(whole.power.get())).unwrap_or(0);
        let energy = i64::try_from(energy).ok().and_then(|energy| MilliwattHours::new(energy).ok());
        self.bucket.range?;
        Some(Bucket {
            energy: energy.unwrap_or(whole.energy),
            power: Millijoules::new(power),
            observed,
            flags: whole.flags,
            ..self.bucket
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Milliwatts;

    const NOW: UnixMillis = UnixMillis::new(1_795_423_474_120); // 2026-11-23T08:44:34.120Z

    #[test]
    fn windows_are_spans_and_the_civil_day_and_month() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (text, start) in [
            ("90s", "2026-11-23T08:43:04.120Z"),
            ("1h", "2026-11-23T07:44:34.120Z"),
            ("24h", "2026-11-22T08:44:34.120Z"),
            ("7d", "2026-11-16T08:30:00.000Z"),
            ("today", "2026-11-22T23:00:00.000Z"),
            ("week", "2026-11-22T23:00:00.000Z"),
            ("month", "2026-10-31T23:00:00.000Z"),
            ("year", "2025-12-31T23:00:00.000Z"),
            ("36525d", "1970-01-01T00:00:00.000Z"),
        ] {
            let span = Window::parse(text).unwrap().span(&berlin, NOW);
            assert_eq!((span.start.to_string().as_str(), span.end), (start, NOW), "{text}");
        }
        for (text, near) in [
            ("todya", "did you mean today?"),
            ("0h", "A window"),
            ("-1h", "1h?"),
            ("", "A window"),
            ("36526d", "A window"),
        ] {
            let refused = Window::parse(text).unwrap_err().to_string();
            assert!(refused.contains(near), "{text}: {refused}");
        }
    }

    #[test]
    fn a_cut_quarter_hour_has_its_readings_and_its_share_of_the_energy() {
        let from = UnixMillis::new(NOW.get() / QUARTER_HOUR_MS * QUARTER_HOUR_MS + 600_000);
        let to = from.plus(300_000);
        let reading = |time: i64, power: i64| Reading {
            time: from.plus(time),
            power: Milliwatts::new(power).unwrap(),
            voltage: None,
            current: None,
            counter: None,
            relay: Some(Relay::On),
        };
        let mut cut = Cut::new(30_000, from, to);
        // The first stands for 10 s of the window; then 100 W for a minute, then 300 W that hold for 30 s and no longer.
        for (time, power) in [(-5_000, 50_000), (25_000, 100_000), (55_000, 100_000), (85_000, 300_000)] {
            cut.push(&reading(time, power));
        }
        let whole = Bucket {
            energy: MilliwattHours::new(10_000).unwrap(),
            power: Millijoules::new(40_000_000),
            observed: Duration::from_secs(900),
            ..Bucket::empty(quarter_hour(from))
        };
        let part = cut.finish(&whole).unwrap();
        // 10 s x 50 W + 60 s x 100 W + 45 s x 300 W = 20,000 J: half of the quarter hour's.
        assert_eq!((part.energy.get(), part.power.get()), (5_000, 20_000_000));
        assert_eq!((part.observed.as_secs(), part.on), (115, Some(Duration::from_secs(115))));
        assert_eq!((part.readings, part.start), (3, from));
        let range = part.range.unwrap();
        assert_eq!((range.min.get(), range.max.get()), (50_000, 300_000));
        assert_eq!(Cut::new(30_000, from, to).finish(&whole), None);
    }
}
