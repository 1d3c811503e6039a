//! A walk through the buckets of some devices: civil periods in a time zone, page by page.
//!
//! Promises that pages of one walk, joined by [`Cursor`]s, show each bucket of the first page's range once, in order of
//! start and device; that a period without any stored bucket is left out, so that a gap stays a gap; and that the period
//! under way is as of now. Reads the store a slice of time at a time, so that memory holds a slice and a page however
//! long the range is, and passes over spans in which nothing was recorded without looking at them.
//!
//! Periods are sums of quarter hours, which are right in every zone. Stored hours take their place where every border of
//! a slice is a whole hour of UTC: they are four times fewer.

use std::rc::Rc;

use jiff::ToSpan;
use jiff::tz::TimeZone;

use crate::query::cost::{self, Costs};
use crate::query::cursor::{Cursor, Listing};
use crate::query::readings::{Ahead, NoWalk, Wanted};
use crate::query::time::Moment;
use crate::reading::DeviceId;
use crate::rollup::civil::gather;
use crate::rollup::{Bucket, Period, Step, periods};
use crate::store::{DeviceNumber, Order, Position, Store, StoreError, Tier};
use crate::tariff::{Cost, Tariff};
use crate::units::UnixMillis;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// One period of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub device: DeviceId,
    /// Its number.
    pub number: DeviceNumber,
    /// When.
    pub period: Period,
    /// What was recorded in it.
    pub bucket: Bucket,
    /// What its energy cost. None without a tariff.
    pub cost: Option<Cost>,
}

impl Row {
    const fn position(&self) -> Position {
        Position { time: self.period.start, device: self.number }
    }
}

/// One page of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the walk's order.
    pub rows: Vec<Row>,
    /// Where the next page goes on. None after the last.
    pub next: Option<Cursor>,
}

/// A place in the buckets of some devices.
#[derive(Clone, Debug)]
pub struct Walk {
    devices: Vec<(DeviceNumber, DeviceId)>,
    ids: Vec<DeviceId>,
    step: Step,
    zone: TimeZone,
    tariff: Rc<Tariff>,
    now: UnixMillis,
    order: Order,
    /// What is not yet read: whole periods.
    from: UnixMillis,
    to: UnixMillis,
    after: Option<Position>,
    far: UnixMillis,
}

impl Walk {
    /// The walk that a request wants, at the place where its cursor stands: periods that begin in the range. The usual is a
    /// day of quarter hours and hours, 30 days of days, 12 months of months up to now, oldest first.
    ///
    /// # Errors
    /// [`NoWalk`] for an empty range and a cursor of another list or the other order.
    pub fn new(
        devices: Vec<(DeviceNumber, DeviceId)>,
        step: Step,
        wanted: Wanted,
        (zone, tariff): (&TimeZone, Rc<Tariff>),
        now: UnixMillis,
    ) -> Result<Self, NoWalk> {
        let cursor = wanted.cursor;
        // A period that begins in this very millisecond is in.
        let end = wanted.end.unwrap_or(Moment { time: now.plus(1), relative: true });
        let usual = || Moment { time: usual_start(step, zone, end.time), relative: end.relative };
        let start = wanted.start.unwrap_or_else(usual);
        let ahead = Ahead::of(Listing::Rollups(step), (start, end), wanted.order, Order::Ascending, cursor)?;
        let first = periods(step, zone, ahead.from, UnixMillis::MAX).find(|period| period.start >= ahead.from);
        let last = periods(step, zone, ahead.to.plus(-1), ahead.to).next();
        Ok(Self {
            ids: devices.iter().map(|(_, id)| *id).collect(),
            devices,
            step,
            zone: zone.clone(),
            tariff,
            now,
            order: ahead.order,
            from: first.map_or(UnixMillis::MAX, |period| period.start),
            to: last.map_or(ahead.to, |period| period.end),
            after: cursor.map(|cursor| cursor.position),
            far: ahead.far,
        })
    }

    /// The next `limit` rows, and where to go on after them.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn page(&mut self, store: &Store, limit: usize) -> Result<Page, StoreError> {
        let mut rows = Vec::new();
        while rows.len() <= limit {
            let left = limit.saturating_sub(rows.len()).saturating_add(1);
            match self.next_rows(store, left).await? {
                Some(more) => rows.extend(more),
                None => break,
            }
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let Some(last) = rows.last().filter(|_| more) else { return Ok(Page { rows, next: None }) };
        // What was read beyond the page is read again from the last row's period on.
        let position = last.position();
        self.after = Some(position);
        match self.order {
            Order::Ascending => self.from = last.period.start,
            Order::Descending => self.to = last.period.end,
        }
        let next = Cursor { listing: Listing::Rollups(self.step), order: self.order, position, far: self.far };
        Ok(Page { rows, next: Some(next) })
    }

    /// The next rows, never none of them: about so many, some hundreds more with many devices. None at the end.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read; the walk stays where it was.
    pub async fn next_rows(&mut self, store: &Store, about: usize) -> Result<Option<Vec<Row>>, StoreError> {
        loop {
            if self.from >= self.to {
                return Ok(None);
            }
            let range = (self.from, self.to);
            let Some(reach) = store.first_bucket(&self.ids, self.order, range, self.now).await? else {
                return Ok(None);
            };
            let length = self.slice_ms(about);
            let (low, high) = match self.order {
                Order::Ascending => (reach, reach.plus(length).min(self.to)),
                Order::Descending => (reach.plus(-length).max(self.from), reach),
            };
            let slice: Vec<Period> = periods(self.step, &self.zone, low, high).collect();
            let Some((first, last)) = slice.first().zip(slice.last()) else { return Ok(None) };
            let rows = self.read(store, &slice, (first.start, last.end)).await?;
            match self.order {
                Order::Ascending => self.from = last.end,
                Order::Descending => self.to = first.start,
            }
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
    }

    async fn read(
        &self,
        store: &Store,
        slice: &[Period],
        (from, to): (UnixMillis, UnixMillis),
    ) -> Result<Vec<Row>, StoreError> {
        let tier = tier(self.step, slice);
        let prices = cost::prices(&self.tariff, &self.zone, from, to);
        let mut rows = Vec::new();
        for (number, id) in &self.devices {
            let buckets = store.buckets(*id, tier, from, to, self.now).await?;
            let costs = match &prices {
                Some(prices) => Some(Costs::of(prices, store, *id, (&buckets, tier), (from, to), self.now).await?),
                None => None,
            };
            let row = |(period, bucket): (Period, Option<Bucket>)| {
                let cost = costs.as_ref().map(|costs| costs.within(period));
                Some(Row { device: *id, number: *number, period, bucket: bucket?, cost })
            };
            rows.extend(gather(slice.iter().copied(), buckets).filter_map(row));
        }
        match self.order {
            Order::Ascending => {
                rows.retain(|row: &Row| self.after.is_none_or(|after| row.position() > after));
                rows.sort_by_key(Row::position);
            }
            Order::Descending => {
                rows.retain(|row: &Row| self.after.is_none_or(|after| row.position() < after));
                rows.sort_by_key(|row| std::cmp::Reverse(row.position()));
            }
        }
        Ok(rows)
    }

    /// How much time to read at once for about so many rows: not so little that each blob is decoded many times, not so
    /// much that a device has more than some thousand quarter hours in it.
    fn slice_ms(&self, rows: usize) -> i64 {
        let (length, least, most) = match self.step {
            Step::QuarterHour => (HOUR_MS / 4, 24, 672),
            Step::Hour => (HOUR_MS, 24, 672),
            Step::Day => (DAY_MS, 8, 62),
            Step::Month => (31 * DAY_MS, 1, 2),
        };
        let wanted = rows.div_ceil(self.devices.len().max(1));
        i64::try_from(wanted).unwrap_or(most).clamp(least, most) * length
    }
}

/// The stored buckets that periods can be made of.
fn tier(step: Step, slice: &[Period]) -> Tier {
    let is_whole = |time: UnixMillis| time.get().rem_euclid(HOUR_MS) == 0;
    let whole = slice.iter().all(|period| is_whole(period.start) && is_whole(period.end));
    if step != Step::QuarterHour && whole { Tier::Hour } else { Tier::QuarterHour }
}

fn usual_start(step: Step, zone: &TimeZone, end: UnixMillis) -> UnixMillis {
    match step {
        Step::QuarterHour | Step::Hour => end.plus(-DAY_MS),
        Step::Day => end.plus(-30 * DAY_MS),
        Step::Month => {
            let end = jiff::Timestamp::from_millisecond(end.get()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            let start = zone.to_datetime(end).checked_sub(12.months()).and_then(|start| zone.to_timestamp(start));
            UnixMillis::new(start.map_or(0, |start| start.as_millisecond()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_423_474_120); // 2026-11-23T08:44:34.120Z

    fn walk(step: Step, zone: &str, start: Option<&str>, end: Option<&str>) -> (String, String) {
        let zone = TimeZone::get(zone).unwrap();
        let moment = |text: Option<&str>| text.map(|text| crate::query::time::parse(text, NOW, &zone).unwrap());
        let wanted = Wanted { start: moment(start), end: moment(end), ..Wanted::default() };
        let walk = Walk::new(vec![], step, wanted, (&zone, Rc::default()), NOW).unwrap();
        (walk.from.to_string(), walk.to.to_string())
    }

    fn span(from: &str, to: &str) -> (String, String) {
        (from.to_owned(), to.to_owned())
    }

    #[test]
    fn the_usual_ranges_end_with_the_period_under_way() {
        let berlin = "Europe/Berlin";
        let quarter = walk(Step::QuarterHour, berlin, None, None);
        assert_eq!(quarter, span("2026-11-22T08:45:00.000Z", "2026-11-23T08:45:00.000Z"));
        let hour = walk(Step::Hour, berlin, None, None);
        assert_eq!(hour, span("2026-11-22T09:00:00.000Z", "2026-11-23T09:00:00.000Z"));
        let day = walk(Step::Day, berlin, None, None);
        assert_eq!(day, span("2026-10-24T22:00:00.000Z", "2026-11-23T23:00:00.000Z"));
        let month = walk(Step::Month, berlin, None, None);
        assert_eq!(month, span("2025-11-30T23:00:00.000Z", "2026-11-30T23:00:00.000Z"));
    }

    #[test]
    fn a_range_is_the_periods_that_begin_in_it() {
        let part = walk(Step::Day, "UTC", Some("2026-11-01T00:00:00.001Z"), Some("2026-11-03T00:00:00.001Z"));
        assert_eq!(part, span("2026-11-02T00:00:00.000Z", "2026-11-04T00:00:00.000Z"));
        let (from, to) = walk(Step::Day, "UTC", Some("2026-11-01T10:00:00Z"), Some("2026-11-01T11:00:00Z"));
        assert_eq!(from, to, "no day begins between ten and eleven");
        let skipped = walk(Step::Day, "Pacific/Apia", Some("2011-12-29"), Some("2012-01-01"));
        assert_eq!(skipped, span("2011-12-29T10:00:00.000Z", "2011-12-31T10:00:00.000Z"));
    }

    #[test]
    fn stored_hours_are_used_only_where_every_border_is_a_whole_hour_of_utc() {
        let tier_of = |step, zone: &str, day: &str| {
            let zone = TimeZone::get(zone).unwrap();
            let start = crate::query::time::parse(day, NOW, &zone).unwrap().time;
            tier(step, &periods(step, &zone, start, start.plus(2 * DAY_MS)).collect::<Vec<_>>())
        };
        assert_eq!(tier_of(Step::Day, "Europe/Berlin", "2026-03-28"), Tier::Hour);
        assert_eq!(tier_of(Step::Hour, "Europe/Berlin", "2026-03-28"), Tier::Hour);
        assert_eq!(tier_of(Step::QuarterHour, "Europe/Berlin", "2026-03-28"), Tier::QuarterHour);
        assert_eq!(tier_of(Step::Day, "Asia/Kolkata", "2026-03-28"), Tier::QuarterHour);
        assert_eq!(tier_of(Step::Hour, "Asia/Kathmandu", "2026-03-28"), Tier::QuarterHour);
        assert_eq!(tier_of(Step::Day, "Australia/Lord_Howe", "2026-04-04"), Tier::QuarterHour);
    }
}
