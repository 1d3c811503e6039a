//! Physical quantities and wall time as types of their own.
//!
//! Owns the meaning of every number that crosses a module border: integers in thousandths of the unit a person reads,
//! checked once where they enter. Promises that a value of one of these types is in range. Leaves it to `reading` to say
//! which of them make up a reading.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number that its unit cannot hold: what it was meant to be, what came, and the most that is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfRange {
    /// The quantity in plain words, for example `power`.
    pub what: &'static str,
    /// The number that came, in the base unit (W, V, A, Wh, dBm).
    pub got: f64,
    /// The largest number allowed, in the base unit.
    pub max: f64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} is outside 0 to {}", self.what, self.got, self.max)
    }
}

impl std::error::Error for OutOfRange {}

/// An integer count of thousandths, written as a decimal without trailing zeros: 41237 is `41.237`, 231400 is `231.4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thousandths(pub u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1_000, self.0 % 1_000);
        match rest {
            0 => write!(f, "{whole}"),
            r if r % 100 == 0 => write!(f, "{whole}.{}", r / 100),
            r if r % 10 == 0 => write!(f, "{whole}.{:02}", r / 10),
            r => write!(f, "{whole}.{r:03}"),
        }
    }
}

macro_rules! thousandths {
    ($(#[$doc:meta])* $name:ident($inner:ty), $what:literal, $unit:literal, max $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        // Each cast is either widening or guarded by the comparison beside it; `From` is not const.
        #[allow(clippy::as_conversions)]
        impl $name {
            /// The largest value this quantity may have.
            pub const MAX: Self = Self($max);
            /// Zero.
            pub const ZERO: Self = Self(0);

            /// From a count of thousandths.
            ///
            /// # Errors
            /// [`OutOfRange`] below zero and above [`Self::MAX`].
            pub fn new(thousandths: i64) -> Result<Self, OutOfRange> {
                <$inner>::try_from(thousandths)
                    .ok()
                    .filter(|n| *n <= Self::MAX.0)
                    .map(Self)
                    // A float is only the error's picture of the number.
                    .ok_or_else(|| Self::refused(thousandths as f64 / 1_000.0))
            }

            /// From a decimal count of the base unit, rounded to the nearest thousandth.
            ///
            /// # Errors
            /// [`OutOfRange`] below zero, above [`Self::MAX`], and for a number that is not finite.
            pub fn from_base(base: f64) -> Result<Self, OutOfRange> {
                let rounded = (base * 1_000.0).round();
                // Both bounds are whole numbers far below 2^53, so the comparison is exact and the cast is in range.
                if (0.0..=Self::MAX.0 as f64).contains(&rounded) { Ok(Self(rounded as $inner)) } else { Err(Self::refused(base)) }
            }

            /// The count of thousandths.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The number in the base unit without its unit, exact: for replies and tables.
            #[must_use]
            pub const fn decimal(self) -> Thousandths {
                Thousandths(self.0 as u64) // widening
            }

            fn refused(got: f64) -> OutOfRange {
                OutOfRange { what: $what, got, max: Self::MAX.0 as f64 / 1_000.0 }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} {}", self.decimal(), $unit)
            }
        }
    };
}

thousandths!(
    /// Active power of one outlet, in milliwatts. No household outlet carries more than 5 kW; more is a glitch.
    Milliwatts(u32), "power", "W", max 5_000_000
);
thousandths!(
    /// Mains voltage, in millivolts. Mains lie between 80 V and 270 V; what is odd but possible is kept.
    Millivolts(u32), "voltage", "V", max 500_000
);
thousandths!(
    /// Current, in milliamps.
    Milliamps(u32), "current", "A", max 100_000
);
thousandths!(
    /// Energy, in milliwatt-hours. Plugs count whole Wh or thousandths of a kWh; the finer unit loses neither.
    MilliwattHours(u64), "energy", "Wh", max 1_000_000_000_000
);

impl Millivolts {
    /// Whether a mains socket can have this voltage: 0 (a meter that does not measure it) or 80 V to 270 V.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        matches!(self.0, 0 | 80_000..=270_000)
    }
}

/// Signal strength at the plug, in dBm, always below zero in practice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dbm(pub i8);

impl fmt::Display for Dbm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dBm", self.0)
    }
}

/// Wall time: milliseconds since 1970-01-01 UTC. It may jump when the clock is set; schedules never use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct UnixMillis(i64);

impl From<i64> for UnixMillis {
    fn from(millis: i64) -> Self {
        Self::new(millis)
    }
}

impl From<UnixMillis> for i64 {
    fn from(time: UnixMillis) -> Self {
        time.0
    }
}

impl UnixMillis {
    /// 1970-01-01T00:00:00Z.
    pub const MIN: Self = Self(0);
    /// 9999-12-30T21:59:59.999Z: the last moment that can be written in every time zone with a year of four digits.
    pub const MAX: Self = Self(253_402_207_199_999);

    /// From milliseconds since 1970; times outside the range become the nearest end.
    #[must_use]
    pub const fn new(millis: i64) -> Self {
        if millis < Self::MIN.0 {
            Self::MIN
        } else if millis > Self::MAX.0 {
            Self::MAX
        } else {
            Self(millis)
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// This time moved by `millis`, kept within the range.
    #[must_use]
    pub const fn plus(self, millis: i64) -> Self {
        Self::new(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this time; negative when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> i64 {
        self.0 - earlier.0 // both lie within the range above
    }
}

impl fmt::Display for UnixMillis {
    /// RFC 3339 in UTC with milliseconds: `2026-11-23T08:44:34.120Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}", self.0), // cannot happen: the range is jiff's
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_read_as_decimals_without_trailing_zeros() {
        for (n, text) in [
            (0, "0"),
            (1, "0.001"),
            (10, "0.01"),
            (100, "0.1"),
            (41_237, "41.237"),
            (231_400, "231.4"),
            (8_123_000, "8123"),
        ] {
            assert_eq!(Thousandths(n).to_string(), text);
        }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest_milli() {
        assert_eq!(Milliwatts::from_base(41.2374).unwrap().get(), 41_237);
        assert_eq!(Milliwatts::from_base(41.2375).unwrap().get(), 41_238);
        assert_eq!(Milliamps::from_base(0.013_961).unwrap().get(), 14);
        assert_eq!(Milliwatts::from_base(-0.0001).unwrap(), Milliwatts::ZERO);
    }

    #[test]
    fn impossible_values_are_refused_with_the_number_in_the_text() {
        for bad in [-1.0, 5_000.001, f64::NAN, f64::INFINITY] {
            assert!(Milliwatts::from_base(bad).is_err(), "{bad}");
        }
        assert!(Milliwatts::new(5_000_000).is_ok());
        let error = Milliwatts::new(5_000_001).unwrap_err();
        assert_eq!(error.to_string(), "power 5000.001 is outside 0 to 5000");
        assert!(MilliwattHours::new(-1).is_err());
    }

    #[test]
    fn wall_time_is_written_with_milliseconds_and_a_zone() {
        assert_eq!(UnixMillis::new(1_795_423_474_120).to_string(), "2026-11-23T08:44:34.120Z");
        assert_eq!(UnixMillis::MIN.to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMillis::MAX.to_string(), "9999-12-30T21:59:59.999Z");
        assert_eq!(UnixMillis::new(i64::MIN), UnixMillis::MIN);
        assert_eq!(UnixMillis::MAX.plus(1), UnixMillis::MAX);
    }
}
