//! Durations counted in a few hundred buckets: bounded memory, quantiles within an eighth of the truth. Pure.

use std::time::Duration;

/// Each doubling of a duration is cut into this many buckets, as a power of two.
const PARTS_LOG2: u32 = 3;
const PARTS: usize = 1 << PARTS_LOG2;
/// Durations are counted in microseconds below two to this power, 71 minutes; longer ones count as that.
const RANGE_LOG2: u32 = 32;
const BUCKETS: usize = (32 - 3 + 1) * PARTS; // (RANGE_LOG2 - PARTS_LOG2 + 1) * PARTS

/// How long things took.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u32; BUCKETS]>,
    count: u64,
    total: Duration,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, total: Duration::ZERO, max: Duration::ZERO }
    }
}

impl Histogram {
    /// Notes one duration.
    pub fn note(&mut self, took: Duration) {
        self.count = self.count.saturating_add(1);
        self.total = self.total.saturating_add(took);
        self.max = self.max.max(took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(index(micros)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    /// Durations noted.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// All of them together.
    #[must_use]
    pub const fn total(&self) -> Duration {
        self.total
    }

    /// The longest.
    #[must_use]
    pub const fn max(&self) -> Duration {
        self.max
    }

    /// The mean. None before the first.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let nanos = self.total.as_nanos().checked_div(u128::from(self.count))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// A duration that at least so many thousandths did not exceed: the upper end of its bucket, at most the longest. None
    /// before the first.
    #[must_use]
    pub fn quantile(&self, thousandths: u64) -> Option<Duration> {
        let wanted = self.count.saturating_mul(thousandths).div_ceil(1_000).max(1);
        let mut seen = 0_u64;
        for (n, count) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(u64::from(*count));
            if seen >= wanted {
                return Some(Duration::from_micros(upper_end(n)).min(self.max));
            }
        }
        (self.count > 0).then_some(self.max)
    }

    /// How many were shorter than two to the power of `log2` microseconds: exact, since no bucket lies across.
    #[must_use]
    pub fn shorter_than(&self, log2: u32) -> u64 {
        let end = index(1_u64.checked_shl(log2).unwrap_or(u64::MAX));
        self.buckets.iter().take(end).map(|count| u64::from(*count)).sum()
    }
}

/// The bucket of a duration. Below [`PARTS`] microseconds each has its own; above, the three bits after the first choose.
fn index(micros: u64) -> usize {
    let micros = micros.min((1 << RANGE_LOG2) - 1);
    let doubling = micros.checked_ilog2().unwrap_or(0);
    let Some(shift) = doubling.checked_sub(PARTS_LOG2) else { return usize::try_from(micros).unwrap_or(0) };
    let part = usize::try_from(micros >> shift).unwrap_or(0) % PARTS;
    (usize::try_from(shift).unwrap_or(0) + 1) * PARTS + part
}

/// The longest duration of a bucket, in microseconds.
fn upper_end(index: usize) -> u64 {
    let (row, part) = (index / PARTS, index % PARTS);
    let part = u64::try_from(part).unwrap_or(0);
    match row.checked_sub(1) {
        None => part,
        Some(shift) => ((1 << PARTS_LOG2) + part + 1).saturating_mul(1 << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut next = 0;
        for n in 0..BUCKETS {
            assert_eq!((index(next), index(upper_end(n))), (n, n), "bucket {n}");
            next = upper_end(n) + 1;
        }
        assert_eq!(next, 1 << RANGE_LOG2);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_noted_has_no_quantile() {
        let none = Histogram::default();
        assert_eq!((none.quantile(500), none.mean(), none.max()), (None, None, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_an_eighth(mut micros in proptest::collection::vec(0_u64..10_000_000_000, 1..200), q in 1_u64..=1_000) {
            let mut histogram = Histogram::default();
            micros.iter().for_each(|micros| histogram.note(Duration::from_micros(*micros)));
            micros.sort_unstable();
            let rank = (micros.len() as u64 * q).div_ceil(1_000) as usize;
            let truth = micros[rank.max(1) - 1];
            let told = histogram.quantile(q).unwrap().as_micros() as u64;
            if truth < 1 << RANGE_LOG2 {
                prop_assert!(told >= truth && told <= truth + truth / 8, "{told} for {truth}");
            }
            for log2 in 0..RANGE_LOG2 {
                prop_assert_eq!(histogram.shorter_than(log2), micros.iter().filter(|m| **m < 1 << log2).count() as u64);
            }
        }
    }
}
