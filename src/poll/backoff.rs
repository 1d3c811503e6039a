//! How long a plug that failed is left alone. Pure.

use std::time::Duration;

use crate::limits;

/// The pause after the `misses`-th failure in a row: [`limits::BACKOFF_FIRST`], doubled each time up to
/// [`limits::BACKOFF_LAST`], moved by up to a fifth either way so that plugs which failed together do not come back
/// together. Never outside the two limits.
#[must_use]
pub fn pause(misses: u32, random: &mut fastrand::Rng) -> Duration {
    let doublings = misses.saturating_sub(1).min(16);
    let plain = limits::BACKOFF_FIRST.saturating_mul(1 << doublings).min(limits::BACKOFF_LAST);
    plain.mul_f64(0.8 + 0.4 * random.f64()).clamp(limits::BACKOFF_FIRST, limits::BACKOFF_LAST)
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
                let seconds = pause(misses, &mut random).as_secs_f64();
                assert!((low..=high).contains(&seconds), "{misses} misses: {seconds} s");
            }
        }
    }
}
