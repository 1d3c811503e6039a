//! What a chart shows: a range of time up to now, its steps, and the rows of it.

use std::rc::Rc;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::query::readings::Wanted;
use crate::query::rollups::{Row, Walk};
use crate::query::time::Moment;
use crate::reading::DeviceId;
use crate::rollup::{Period, Step, periods};
use crate::store::{Store, StoreError};
use crate::tariff::Tariff;
use crate::units::UnixMillis;

/// A range of time that ends with the period under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 24 hours.
    Day,
    /// Seven civil days.
    Week,
    /// Thirty civil days.
    Month,
    /// Twelve civil months.
    Year,
}

impl Range {
    /// Every range and its name in requests, the usual one first.
    pub const WORDS: [(&'static str, Self); 4] =
        [("24h", Self::Day), ("7d", Self::Week), ("30d", Self::Month), ("12mo", Self::Year)];

    /// The name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, range)| *range == self).map_or("", |(name, _)| name)
    }

    /// The steps of its line of power: some hundred at most.
    #[must_use]
    pub const fn power_step(self) -> Step {
        match self {
            Self::Day => Step::QuarterHour,
            Self::Week | Self::Month => Step::Hour,
            Self::Year => Step::Day,
        }
    }

    /// The steps of its bars of energy.
    #[must_use]
    pub const fn energy_step(self) -> Step {
        match self {
            Self::Day => Step::Hour,
            Self::Week | Self::Month => Step::Day,
            Self::Year => Step::Month,
        }
    }

    /// Its span as of `now`, whole periods of its bars.
    #[must_use]
    pub fn span(self, zone: &TimeZone, now: UnixMillis) -> Period {
        let step = self.energy_step();
        let running = periods(step, zone, now, now.plus(1)).next();
        let Period { start, end } = running.unwrap_or(Period { start: now, end: now.plus(1) });
        let back = match self {
            Self::Day => return Period { start: end.plus(-24 * 3_600_000), end },
            Self::Week => 6.days(),
            Self::Month => 29.days(),
            Self::Year => 11.months(),
        };
        // From the middle of the period: its start may be a time of day that other days do not have.
        let middle = start.plus(end.since(start) / 2);
        let local = zone.to_datetime(Timestamp::from_millisecond(middle.get()).unwrap_or(Timestamp::UNIX_EPOCH));
        let first =
            local.checked_sub(back).and_then(|local| zone.to_timestamp(local)).map(|first| first.as_millisecond());
        let first = UnixMillis::new(first.unwrap_or_else(|_| start.get()));
        let start = periods(step, zone, first, first.plus(1)).next().map_or(start, |period| period.start);
        Period { start, end }
    }
}

/// The periods of `step` that begin in `span`, of these devices: in order of start and device. `zone` and `tariff` as the
/// configuration has them.
///
/// # Errors
/// [`StoreError`] when the file cannot be read.
pub async fn rows(
    store: &Store,
    ids: &[DeviceId],
    step: Step,
    span: Period,
    (zone, tariff): (&TimeZone, &Rc<Tariff>),
    now: UnixMillis,
) -> Result<Vec<Row>, StoreError> {
    let moment = |time| Some(Moment { time, relative: false });
    let wanted = Wanted { start: moment(span.start), end: moment(span.end), ..Wanted::default() };
    let devices = ids.iter().filter_map(|id| Some((store.number(*id)?, *id))).collect();
    let mut rows = Vec::new();
    // A span is never empty, and there is no cursor to be refused.
    let Ok(mut walk) = Walk::new(devices, step, wanted, (zone, tariff.clone()), now) else { return Ok(rows) };
    while let Some(more) = walk.next_rows(store, usize::MAX).await? {
        rows.extend(more);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_periods_up_to_the_one_under_way() {
        let span = |range: Range, zone: &str, now: &str| {
            let now = UnixMillis::new(now.parse::<Timestamp>().unwrap().as_millisecond());
            let span = range.span(&TimeZone::get(zone).unwrap(), now);
            (span.start.to_string()[..16].to_owned(), span.end.to_string()[..16].to_owned())
        };
        let (berlin, now) = ("Europe/Berlin", "2026-11-23T08:44:34Z");
        let is = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(span(Range::Day, berlin, now), is("2026-11-22T09:00", "2026-11-23T09:00"));
        assert_eq!(span(Range::Week, berlin, now), is("2026-11-16T23:00", "2026-11-23T23:00"));
        assert_eq!(span(Range::Month, berlin, now), is("2026-10-24T22:00", "2026-11-23T23:00"));
        assert_eq!(span(Range::Year, berlin, now), is("2025-11-30T23:00", "2026-11-30T23:00"));
        // The 31st has no counterpart in November, and Cairo's days begin at 01:00 once a year.
        assert_eq!(span(Range::Year, "UTC", "2026-10-31T12:00:00Z"), is("2025-11-01T00:00", "2026-11-01T00:00"));
        assert_eq!(span(Range::Week, "Africa/Cairo", "2026-04-24T12:00:00Z").1, "2026-04-24T21:00");
    }
}
