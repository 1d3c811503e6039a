//! Where civil hours, days and months begin and end.
//!
//! Owns the borders of periods in a time zone. Promises that periods tile time without hole or overlap, are never
//! empty, and that each border is a whole quarter hour in UTC, so that buckets never have to be cut. (A few zones had
//! offsets of odd minutes until 1979, Kiritimati last; their borders move down to the quarter hour.) Leaves the data to
//! others.
//!
//! A day begins at its first moment: 01:00 where the clock skips midnight, the first of two midnights where it goes
//! through one twice. A day that a zone left out (Apia's 2011-12-30) has no period. An hour begins where the local
//! clock is on the whole hour, and where a shift from a whole hour skips ahead: Lord Howe's half-hour shift makes an
//! hour of 30 minutes in spring and one of 90 in autumn.

use jiff::civil::{Date, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

use super::bucket::{Bucket, QUARTER_HOUR_MS, quarter_hour};
use crate::units::UnixMillis;

const HOUR_MS: i64 = 4 * QUARTER_HOUR_MS;

/// The length of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// 15 minutes of UTC.
    QuarterHour,
    /// An hour of local time.
    Hour,
    /// A local day: 23, 24 or 25 hours, or what the zone makes of it.
    Day,
    /// A local month.
    Month,
}

/// A span of time, its end not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Period {
    /// Its first moment.
    pub start: UnixMillis,
    /// The first moment after it.
    pub end: UnixMillis,
}

impl Period {
    /// Whether `time` lies in it.
    #[must_use]
    pub fn contains(&self, time: UnixMillis) -> bool {
        (self.start..self.end).contains(&time)
    }
}

/// Periods in order of time: see [`periods`].
#[derive(Clone, Debug)]
pub struct Periods {
    step: Step,
    zone: TimeZone,
    next: UnixMillis,
    to: UnixMillis,
}

/// The periods that `from` to `to` (not included) touches, in order of time; none when the range is empty.
///
/// The first one holds `from` and may begin before it; the last one may end after `to`.
#[must_use]
pub fn periods(step: Step, zone: &TimeZone, from: UnixMillis, to: UnixMillis) -> Periods {
    let next = match step {
        Step::QuarterHour => quarter_hour(from),
        Step::Day | Step::Month => calendar(step, zone, from).0,
        Step::Hour => {
            // A day always begins with an hour of its own.
            let mut hour = calendar(Step::Day, zone, from).0;
            loop {
                let end = hour_end(zone, hour);
                if end <= hour || end > from {
                    break hour;
                }
                hour = end;
            }
        }
    };
    Periods { step, zone: zone.clone(), next, to }
}

impl Iterator for Periods {
    type Item = Period;

    fn next(&mut self) -> Option<Period> {
        let start = self.next;
        if start >= self.to {
            return None;
        }
        let end = match self.step {
            Step::QuarterHour => start.plus(QUARTER_HOUR_MS),
            Step::Hour => hour_end(&self.zone, start),
            Step::Day | Step::Month => calendar(self.step, &self.zone, start).1,
        };
        // Only the end of time is not after its start.
        self.next = if end > start { end } else { UnixMillis::MAX };
        (end > start).then_some(Period { start, end })
    }
}

/// `buckets` in order of time added up by period: one item for each period, `None` where it has no bucket.
///
/// A sum begins where its period does. Buckets outside all periods are passed over.
pub fn gather(
    periods: impl Iterator<Item = Period>,
    buckets: impl IntoIterator<Item = Bucket>,
) -> impl Iterator<Item = (Period, Option<Bucket>)> {
    let mut buckets = buckets.into_iter().peekable();
    periods.map(move |period| {
        while buckets.next_if(|bucket| bucket.start < period.start).is_some() {}
        let mut sum: Option<Bucket> = None;
        while let Some(bucket) = buckets.next_if(|bucket| bucket.start < period.end) {
            sum.get_or_insert(Bucket::empty(period.start)).merge(&bucket);
        }
        (period, sum)
    })
}

/// Down to the quarter hour, into the range of times.
fn border(millis: i64) -> UnixMillis {
    quarter_hour(UnixMillis::new(millis))
}

/// The calendar's period, a day or a month, that holds `time`.
fn calendar(step: Step, zone: &TimeZone, time: UnixMillis) -> (UnixMillis, UnixMillis) {
    let nearest = first(step, zone.to_datetime(timestamp(time.get())).date());
    let start_of = |date: Option<Date>| date.map(|date| border(day_start(zone, date)));
    // A clock that goes back over midnight can be at the date before while the next one has begun.
    let (mut date, mut start) = (Some(nearest), border(day_start(zone, nearest)));
    while start > time && start > UnixMillis::MIN {
        date = date.and_then(|date| date.yesterday().ok()).map(|date| first(step, date));
        start = start_of(date).unwrap_or(UnixMillis::MIN);
    }
    loop {
        date = date.and_then(|date| after(step, date));
        match start_of(date) {
            Some(end) if end > time => return (start, end),
            Some(end) => start = end, // a date left out by the zone ends where it starts
            None => return (start, UnixMillis::MAX),
        }
    }
}

fn first(step: Step, date: Date) -> Date {
    if step == Step::Month { date.first_of_month() } else { date }
}

fn after(step: Step, date: Date) -> Option<Date> {
    let span = if step == Step::Month { 1.month() } else { 1.day() };
    date.checked_add(span).ok()
}

/// The first moment of a date in ms; of a date that the zone left out, the first moment after it.
fn day_start(zone: &TimeZone, date: Date) -> i64 {
    let midnight = date.to_datetime(Time::midnight());
    let in_utc = TimeZone::UTC.to_ambiguous_timestamp(midnight).compatible();
    let in_utc = in_utc.map_or(if date.year() < 1970 { i64::MIN } else { i64::MAX }, |time| time.as_millisecond());
    let at = |offset: jiff::tz::Offset| in_utc.saturating_sub(i64::from(offset.seconds()).saturating_mul(1_000));
    match zone.to_ambiguous_timestamp(midnight).offset() {
        AmbiguousOffset::Unambiguous { offset } => at(offset),
        AmbiguousOffset::Fold { before, .. } => at(before),
        // Midnight was skipped: the day begins at the shift, which is the last one up to midnight by the old clock.
        AmbiguousOffset::Gap { before, .. } => {
            let skipped = at(before);
            let shift = zone.preceding(timestamp(skipped.saturating_add(1))).next();
            shift.map_or(skipped, |shift| shift.timestamp().as_millisecond())
        }
    }
}

/// Where the hour that begins at `start` ends.
fn hour_end(zone: &TimeZone, start: UnixMillis) -> UnixMillis {
    let end = hour_after(zone, start.get());
    // Where borders move down to the quarter hour, `start` itself may lie before the border that it stands for.
    if border(end) > start { border(end) } else { border(hour_after(zone, end)) }
}

/// The first border of hours after `time`, in ms.
fn hour_after(zone: &TimeZone, time: i64) -> i64 {
    let mut at = time;
    let mut offset = offset_ms(zone, at);
    // A zone has few shifts within an hour or two; the bound is for a foreign zone file.
    for _ in 0..8 {
        let local = at.saturating_add(offset);
        let by_this_clock = at.saturating_add(HOUR_MS - local.rem_euclid(HOUR_MS));
        let Some(shift) = zone.following(timestamp(at)).next() else { return by_this_clock };
        let shift_at = shift.timestamp().as_millisecond();
        if shift_at > by_this_clock {
            return by_this_clock;
        }
        let new = i64::from(shift.offset().seconds()).saturating_mul(1_000);
        let passed = |length: i64, offset: i64, at: i64| at.saturating_add(offset).div_euclid(length);
        let before = shift_at.saturating_sub(1);
        let is_on_the_hour = |offset: i64| shift_at.saturating_add(offset).rem_euclid(HOUR_MS) == 0;
        let is_other_hour = passed(HOUR_MS, offset, before) != passed(HOUR_MS, new, shift_at);
        let is_new_day = passed(24 * HOUR_MS, offset, before) < passed(24 * HOUR_MS, new, shift_at);
        // Other shifts, at 00:01 (St. John's until 2011) or 02:45 (Chatham), leave the hour as long as ever.
        if is_on_the_hour(new) || is_on_the_hour(offset) && is_other_hour || is_new_day {
            return shift_at;
        }
        (at, offset) = (shift_at, new);
    }
    time.saturating_add(HOUR_MS)
}

fn offset_ms(zone: &TimeZone, millis: i64) -> i64 {
    i64::from(zone.to_offset(timestamp(millis)).seconds()).saturating_mul(1_000)
}

/// As jiff's time; times it cannot have become the nearest end.
fn timestamp(millis: i64) -> Timestamp {
    let end = if millis < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_duration(SignedDuration::from_millis(millis)).unwrap_or(end)
}
