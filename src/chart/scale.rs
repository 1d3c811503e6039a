//! Round numbers along an axis, and places in tenths.

use std::fmt;

/// A place in tenths of the drawing's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tenths(pub i64);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10, self.0 % 10);
        if rest == 0 { write!(f, "{whole}") } else { write!(f, "{whole}.{}", rest.abs()) }
    }
}

/// The distance of marks on a scale up to `most`: 1, 2 or 5 times a power of ten, so that there are three to five.
fn distance(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for factor in [1, 2, 5] {
            let distance = power.saturating_mul(factor);
            if most.div_ceil(distance.max(1)) <= 5 {
                return distance;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// The least round number not below `most`.
pub(super) fn ceiling(most: u64) -> u64 {
    let distance = distance(most);
    most.div_ceil(distance).saturating_mul(distance)
}

/// Round numbers from zero up to `top`, which is a [`ceiling`].
pub(super) fn ticks(top: u64) -> impl Iterator<Item = u64> {
    let distance = distance(top);
    (0..=top / distance.max(1)).map(move |n| n.saturating_mul(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_on_round_numbers_a_few_steps_away() {
        for (most, top, count) in [
            (1_000, 1_000, 6),
            (41_237, 50_000, 6),
            (999_999, 1_000_000, 6),
            (2_100_000, 2_500_000, 6),
            (5, 5, 6),
            (6, 6, 4),
        ] {
            assert_eq!(ceiling(most), top, "{most}");
            assert_eq!(ticks(top).count(), count, "{most}");
        }
        assert!(ceiling(u64::MAX - 5) > 0);
    }
}
