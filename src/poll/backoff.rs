//! How long a plug that failed is left alone. Pure.
//!
//! Each kind of failure has its own pace, because each has its own reason and its own price. All double from miss to
//! miss; they differ in where they begin and end.

use std::time::Duration;

use crate::limits;

/// The shortest and the longest pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// After the first failure.
    pub first: Duration,
    /// After many; not shorter than `first`.
    pub last: Duration,
}

impl Default for Pauses {
    /// [`limits::BACKOFF_FIRST`] to [`limits::BACKOFF_LAST`].
    fn default() -> Self {
        Self { first: limits::BACKOFF_FIRST, last: limits::BACKOFF_LAST }
    }
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No complete answer in time, or no way to the plug: unplugged, out of the Wi-Fi's reach. Each try holds a place
    /// for as long as the exchange may last.
    Timeout,
    /// The port is closed, or the connection ended early: mostly a plug that restarts or is busy with its own app. Soon
    /// over, and a try costs a packet.
    Refused,
    /// It answers, but not in its protocol: firmware that speaks another one does not change back within seconds.
    Garbage,
    /// Another plug has its address. Only a probe can find where it went; asking here again is of little use.
    WrongDevice,
    /// It does not take the credentials, or there are none: minutes, for each try may bring a lock nearer, and what would
    /// help is for a person to do.
    Login,
    /// It has locked itself after wrong passwords: each try prolongs that. Half an hour.
    LockedOut,
}

impl Failure {
    /// The word for it in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Garbage => "garbage",
            Self::WrongDevice => "wrong_device",
            Self::Login => "login",
            Self::LockedOut => "locked_out",
        }
    }

    /// Where the pauses begin and end.
    fn range(self, pauses: Pauses) -> (Duration, Duration) {
        let Pauses { first, last } = pauses;
        let later = |factor: u32| first.saturating_mul(factor).min(last);
        match self {
            Self::Timeout => (first, last),
            Self::Refused => (first, (last / 5).max(first)),
            Self::Garbage => (later(2), last),
            Self::WrongDevice => (later(6), last),
            Self::Login => (later(24), last.saturating_mul(6)),
            Self::LockedOut => (last.saturating_mul(6), last.saturating_mul(6)),
        }
    }
}

/// The pause after the `misses`-th failure in a row, the last of which was `failure`: the first one of its kind, doubled
/// with each miss up to the last, moved by up to a fifth either way so that plugs which failed together do not come back
/// together. Never outside the two.
#[must_use]
pub fn pause(failure: Failure, misses: u32, pauses: Pauses, random: &mut fastrand::Rng) -> Duration {
    let (first, last) = failure.range(pauses);
    let doublings = misses.saturating_sub(1).min(16);
    let plain = first.saturating_mul(1 << doublings).min(last);
    plain.mul_f64(0.8 + 0.4 * random.f64()).max(first).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_five_seconds_to_five_minutes_and_stay_there() {
        let mut random = fastrand::Rng::with_seed(1);
        for (misses, low, high) in
            [(1, 5.0, 6.0), (2, 8.0, 12.0), (4, 32.0, 48.0), (7, 240.0, 300.0), (u32::MAX, 240.0, 300.0)]
        {
            for _ in 0..100 {
                let seconds = pause(Failure::Timeout, misses, Pauses::default(), &mut random).as_secs_f64();
                assert!((low..=high).contains(&seconds), "{misses} misses: {seconds} s");
            }
        }
    }

    #[test]
    fn each_kind_of_failure_has_a_pace_of_its_own() {
        let mut random = fastrand::Rng::with_seed(2);
        for (failure, misses, low, high) in [
            (Failure::Refused, 1, 5.0, 6.0),
            (Failure::Refused, 9, 48.0, 60.0),
            (Failure::Timeout, 9, 240.0, 300.0),
            (Failure::Garbage, 1, 10.0, 12.0),
            (Failure::WrongDevice, 1, 30.0, 36.0),
            (Failure::WrongDevice, 9, 240.0, 300.0),
            (Failure::Login, 1, 120.0, 144.0),
            (Failure::Login, 9, 1_440.0, 1_800.0),
            (Failure::LockedOut, 1, 1_800.0, 1_800.0),
        ] {
            for _ in 0..100 {
                let seconds = pause(failure, misses, Pauses::default(), &mut random).as_secs_f64();
                assert!((low..=high).contains(&seconds), "{failure:?}, {misses} misses: {seconds} s");
            }
        }
        let tiny = Pauses { first: Duration::from_millis(1), last: Duration::from_millis(1) };
        for failure in [Failure::Refused, Failure::Timeout, Failure::Garbage, Failure::WrongDevice] {
            assert_eq!(pause(failure, 3, tiny, &mut random), tiny.first);
        }
    }
}
