//! What buckets cost: the tariff of the configured zone, applied when an answer is made and never stored.
//!
//! Promises that each quarter hour is priced by its own local time, on the days of a clock change too, and that sums are
//! exact. Where a price changes within an hour of UTC, quarter hours are read even where hours would do for everything
//! else. Where retention has dropped the quarter hours and kept the hour, what only the hour knows is priced at the mean of
//! the hour's prices.

use jiff::tz::TimeZone;

use crate::reading::DeviceId;
use crate::rollup::bucket::quarter_hour;
use crate::rollup::{Bucket, Period, Step, periods};
use crate::store::{Store, StoreError, Tier};
use crate::tariff::{Cost, Prices, Tariff};
use crate::units::{MilliwattHours, UnixMillis};

const HOUR_MS: i64 = 3_600_000;

/// Costs of one device's buckets, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Costs(Vec<(UnixMillis, Cost)>);

impl Costs {
    /// What `period` cost.
    #[must_use]
    pub fn within(&self, period: Period) -> Cost {
        let from = self.0.partition_point(|(start, _)| *start < period.start);
        self.0.iter().skip(from).take_while(|(start, _)| *start < period.end).map(|(_, cost)| *cost).sum()
    }

    /// What all of it cost.
    #[must_use]
    pub fn total(&self) -> Cost {
        self.0.iter().map(|(_, cost)| *cost).sum()
    }

    /// The costs of `buckets` of `tier`, which `id` has in `[from, to)`.
    ///
    /// # Errors
    /// [`StoreError`] when quarter hours are needed and the file cannot be read.
    pub async fn of(
        prices: &Prices,
        store: &Store,
        id: DeviceId,
        (buckets, tier): (&[Bucket], Tier),
        (from, to): (UnixMillis, UnixMillis),
        now: UnixMillis,
    ) -> Result<Self, StoreError> {
        let priced = |bucket: &Bucket| (bucket.start, prices.at(bucket.start).of(bucket.energy));
        if tier == Tier::QuarterHour || prices.is_hourly() {
            return Ok(Self(buckets.iter().map(priced).collect()));
        }
        let quarters = store.buckets(id, Tier::QuarterHour, from, to, now).await?;
        let mut costs: Vec<_> = quarters.iter().map(priced).collect();
        costs.extend(only_in_hours(buckets, &quarters).map(|(hour, energy)| (hour, prices.spread(hour, energy))));
        costs.sort_by_key(|(start, _)| *start);
        Ok(Self(costs))
    }
}

/// The hours of which `buckets` know more energy than the `quarters` do, and how much more.
fn only_in_hours(buckets: &[Bucket], quarters: &[Bucket]) -> impl Iterator<Item = (UnixMillis, MilliwattHours)> {
    let hour = |bucket: &Bucket| bucket.start.plus(-bucket.start.get().rem_euclid(HOUR_MS));
    buckets.chunk_by(move |a, b| hour(a) == hour(b)).filter_map(move |same| {
        let start = same.first().map(hour)?;
        let from = quarters.partition_point(|quarter| quarter.start < start);
        let known = quarters.iter().skip(from).take_while(|quarter| quarter.start < start.plus(HOUR_MS));
        let sum = |all: &mut dyn Iterator<Item = &Bucket>| all.map(|bucket| bucket.energy.get()).sum::<u64>();
        let more = sum(&mut same.iter()).saturating_sub(sum(&mut known.into_iter()));
        let more = i64::try_from(more).ok().and_then(|more| MilliwattHours::new(more).ok())?;
        (more > MilliwattHours::ZERO).then_some((start, more))
    })
}

/// The prices of `[from, to)`, when there are any.
#[must_use]
pub fn prices(tariff: &Tariff, zone: &TimeZone, from: UnixMillis, to: UnixMillis) -> Option<Prices> {
    tariff.is_set().then(|| tariff.prices(zone, quarter_hour(from), to))
}

/// The standing charge of a span: each civil day's, and of a day that the span cuts the part that lies in it, by time. None
/// where there is no such charge.
#[must_use]
pub fn standing_charge(tariff: &Tariff, zone: &TimeZone, span: Period) -> Option<Cost> {
    let charge = tariff.standing_charge?;
    let length = |from: UnixMillis, to: UnixMillis| u64::try_from(to.since(from)).unwrap_or(0);
    let of_day = |day: Period| {
        let within = length(day.start.max(span.start), day.end.min(span.end));
        charge.share(within, length(day.start, day.end))
    };
    Some(periods(Step::Day, zone, span.start, span.end).map(of_day).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tariff::Amount;

    fn at(text: &str) -> UnixMillis {
        UnixMillis::new(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn a_day_has_its_charge_however_long_it_is_and_a_part_of_a_day_its_part() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let tariff = Tariff { standing_charge: Amount::parse("0.46"), ..Tariff::default() };
        let charge = |from, to| {
            let span = Period { start: at(from), end: at(to) };
            standing_charge(&tariff, &zone, span).unwrap().to_string()
        };
        assert_eq!(charge("2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z"), "1.38"); // 24, 23 and 24 hours
        assert_eq!(charge("2026-03-28T23:00:00Z", "2026-03-29T10:30:00Z"), "0.23"); // half of 23 hours
        assert_eq!(charge("2026-03-28T23:00:00Z", "2026-03-28T23:00:00Z"), "0");
        assert_eq!(
            standing_charge(
                &Tariff::default(),
                &zone,
                Period { start: at("2026-03-01T00:00:00Z"), end: at("2026-03-02T00:00:00Z") }
            ),
            None
        );
    }

    #[test]
    fn what_only_the_hour_knows_is_found() {
        let bucket =
            |time: &str, energy| Bucket { energy: MilliwattHours::new(energy).unwrap(), ..Bucket::empty(at(time)) };
        let hours = [
            bucket("2026-01-01T00:00:00Z", 100),
            bucket("2026-01-01T01:00:00Z", 50),
            bucket("2026-01-01T02:15:00Z", 7),
        ];
        let quarters =
            [bucket("2026-01-01T01:15:00Z", 30), bucket("2026-01-01T01:30:00Z", 20), bucket("2026-01-01T02:15:00Z", 7)];
        let found: Vec<_> = only_in_hours(&hours, &quarters).collect();
        assert_eq!(found, [(at("2026-01-01T00:00:00Z"), MilliwattHours::new(100).unwrap())]);
    }
}
