//! One rolled-up span of a device, and how spans are added.
//!
//! Owns [`Bucket`]. Promises that adding is exact and may be done in any order and grouping. Energy and the integral of
//! power are whole mWh and whole mJ: [`super::Fold`] rounds the running sums down at each border and reports the
//! differences, so that what is rounded off one bucket is in the next one and sums telescope to the whole.

use std::fmt;
use std::ops::BitOr;
use std::time::Duration;

use super::energy::{milliwatt_hours, milliwatts};
use crate::units::{MilliwattHours, Milliwatts, UnixMillis};

/// The length of the finest bucket, in ms. Every civil border of the world since 1980 falls on a multiple of it.
pub const QUARTER_HOUR_MS: i64 = 900_000;

/// The start of the quarter hour, in UTC, that `time` lies in.
#[must_use]
pub fn quarter_hour(time: UnixMillis) -> UnixMillis {
    time.plus(-time.get().rem_euclid(QUARTER_HOUR_MS))
}

/// Power integrated over observed time, in mW s. Divided by the observed time it is the time-weighted mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millijoules(u64);

impl Millijoules {
    /// From a count of mJ.
    #[must_use]
    pub const fn new(millijoules: u64) -> Self {
        Self(millijoules)
    }

    /// The count of mJ.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Millijoules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} J", crate::units::Thousandths(self.0))
    }
}

/// The smallest and the largest power that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerRange {
    /// The smallest.
    pub min: Milliwatts,
    /// The largest, not below `min`.
    pub max: Milliwatts,
}

/// What is to be known of a bucket beside its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The plug's counter fell: it lost power, or counts from midnight.
    pub const RESTART_SEEN: Self = Self(1);
    /// Some of the time after the device's first reading was not observed.
    pub const GAP_INSIDE: Self = Self(2);
    /// Energy drawn while nobody looked, known from the counter, stands in this bucket, where it was seen.
    pub const BOOKED_LATE: Self = Self(4);
    /// A value of the counter was dropped as impossible.
    pub const SPIKE_DROPPED: Self = Self(8);

    const NAMES: [(Self, &'static str); 4] = [
        (Self::RESTART_SEEN, "restart_seen"),
        (Self::GAP_INSIDE, "gap_inside"),
        (Self::BOOKED_LATE, "booked_late"),
        (Self::SPIKE_DROPPED, "spike_dropped"),
    ];

    /// Its bits; `None` when one of them has no meaning.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits < 16 { Some(Self(bits)) } else { None }
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of what is set, as replies write them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, name)| name)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One rolled-up span: 15 minutes as the fold makes it, or any longer one by [`Bucket::merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Where it begins.
    pub start: UnixMillis,
    /// The energy drawn.
    pub energy: MilliwattHours,
    /// The integral of power over the observed time. Where a counter is finer or coarser than the power, it differs
    /// from the energy.
    pub power: Millijoules,
    /// For how long a reading was held; the rest was not observed.
    pub observed: Duration,
    /// The powers held; `None` when nothing was observed.
    pub range: Option<PowerRange>,
    /// For how long the relay was on, as far as it was known; `None` when it never was.
    pub on: Option<Duration>,
    /// Readings taken; those with an impossible voltage do not count.
    pub readings: u32,
    /// What else is to be known.
    pub flags: Flags,
}

impl Bucket {
    /// A bucket in which nothing happened.
    #[must_use]
    pub const fn empty(start: UnixMillis) -> Self {
        Self {
            start,
            energy: MilliwattHours::ZERO,
            power: Millijoules(0),
            observed: Duration::ZERO,
            range: None,
            on: None,
            readings: 0,
            flags: Flags::NONE,
        }
    }

    /// Adds another span of the same device; the earlier start stays.
    pub fn merge(&mut self, other: &Self) {
        self.start = self.start.min(other.start);
        self.energy = milliwatt_hours(self.energy.get().saturating_add(other.energy.get()));
        self.power = Millijoules(self.power.0.saturating_add(other.power.0));
        self.observed = self.observed.saturating_add(other.observed);
        self.range = match (self.range, other.range) {
            (Some(a), Some(b)) => Some(PowerRange { min: a.min.min(b.min), max: a.max.max(b.max) }),
            (a, b) => a.or(b),
        };
        self.on = match (self.on, other.on) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        self.readings = self.readings.saturating_add(other.readings);
        self.flags = self.flags | other.flags;
    }

    /// All of `buckets` as one; `None` for none.
    pub fn sum(buckets: impl IntoIterator<Item = Self>) -> Option<Self> {
        buckets.into_iter().reduce(|mut sum, bucket| {
            sum.merge(&bucket);
            sum
        })
    }

    /// The time-weighted mean of the power, to the nearest mW. `None` when nothing was observed.
    #[must_use]
    pub fn mean(&self) -> Option<Milliwatts> {
        let range = self.range?;
        let observed = self.observed.as_millis();
        // The integral is rounded to whole mJ, so that the mean of a very short bucket could leave its range.
        let mean = (u128::from(self.power.0) * 1_000 + observed / 2).checked_div(observed)?;
        Some(milliwatts(u64::try_from(mean).unwrap_or(u64::MAX)).clamp(range.min, range.max.max(range.min)))
    }
}
