//! How often a plug is worth asking, from what it said last: a pure policy.
//!
//! Owns the rules and one ring of recent readings per outlet. Promises: never an interval outside [`Bounds`], which
//! themselves leave three readings to every quarter hour; a step in power is answered at once with the shortest
//! interval; what goes slower goes only after a whole window of calm readings, and what is calm must become clearly
//! restless before it goes faster again, so that noise at a threshold moves nothing. A strip goes by its most restless
//! outlet. Only *when* a plug is asked depends on this, never what a reading counts for: means and energy weigh each
//! reading with the time for which it held.

use std::time::Duration;

use heapless::HistoryBuf;

use crate::limits;
use crate::units::Milliwatts;

/// Readings by which an outlet is judged.
pub const WINDOW: usize = 8;
/// Readings from which variation is measured at all.
const FEWEST: usize = 3;

/// Between which intervals the policy chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The interval of a plug of which nothing special is to be said.
    pub base: Duration,
    /// The shortest interval.
    pub least: Duration,
    /// The longest interval; [`limits::ADAPTIVE_LAST`] holds beside it, and neither makes a plug faster than its base.
    pub most: Duration,
}

impl Bounds {
    fn interval(self, reason: Reason) -> Duration {
        let most = self.most.min(limits::ADAPTIVE_LAST).max(self.base);
        let plain = match reason {
            Reason::Step | Reason::Changing => self.base / 2,
            Reason::Fixed | Reason::Settling | Reason::Usual => self.base,
            Reason::Steady => self.base.saturating_mul(2),
            Reason::Unchanged => self.base.saturating_mul(4),
        };
        plain.min(most).max(self.least.min(self.base))
    }
}

/// Why a plug is asked as often as it is. In order of interval, the shortest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its power has jumped within the window: half the interval.
    Step,
    /// Its readings vary by more than a tenth of their mean: half the interval.
    Changing,
    /// The interval is as configured; nothing is adapted.
    #[default]
    Fixed,
    /// Too few readings to judge it by.
    Settling,
    /// Neither restless nor calm.
    Usual,
    /// Its readings vary by less than a hundredth of their mean: twice the interval.
    Steady,
    /// Its readings are the same, as far as a meter can tell: four times the interval.
    Unchanged,
}

impl Reason {
    /// The name in replies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Changing => "changing",
            Self::Fixed => "fixed",
            Self::Settling => "settling",
            Self::Usual => "usual",
            Self::Steady => "steady",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A jump is at least this much in milliwatts, and at least a [`STEP_PART`]th of the larger reading: a lamp that goes on
/// is one, the ripple of a motor is none.
const STEP_LEAST: u32 = 5_000;
const STEP_PART: u32 = 5;
/// Readings count as the same within this much in milliwatts, or within a [`SAME_PART`]th of the largest.
const SAME_LEAST: u32 = 500;
const SAME_PART: u32 = 200;
/// The mean in milliwatts below which variation is measured against this instead. So a mean of 0 needs no case of its
/// own, and the flicker of a standby load (0.1 W of 1 W) does not count as restless.
const MEAN_LEAST: u32 = 30_000;

/// One outlet's recent readings and what they were last judged to be.
#[derive(Clone, Debug, Default)]
struct Outlet {
    /// Milliwatts, since the last step at most.
    recent: HistoryBuf<u32, WINDOW>,
    /// Whether the ring began with a step, not with the first reading of all.
    stepped: bool,
    reason: Reason,
}

impl Outlet {
    fn note(&mut self, power: Milliwatts) {
        let power = power.get();
        if let Some(last) = self.recent.recent() {
            let (jump, larger) = (last.abs_diff(power), power.max(*last));
            if jump >= STEP_LEAST && jump >= larger / STEP_PART {
                self.recent.clear();
                self.stepped = true;
            }
        }
        self.recent.write(power);
        self.reason = self.judge();
    }

    fn judge(&self) -> Reason {
        let readings = self.recent.as_slice();
        let count = readings.len();
        let is_whole = count == WINDOW;
        if !is_whole && self.stepped {
            return Reason::Step;
        }
        if count < FEWEST {
            return Reason::Settling;
        }
        let (least, most) = readings.iter().fold((u32::MAX, 0), |(least, most), n| (least.min(*n), most.max(*n)));
        let was = self.reason;
        // Whoever is in a state already is held in it by half as much again, or by a fifth less.
        let same = SAME_LEAST.max(most / SAME_PART);
        let same = if was == Reason::Unchanged { same.saturating_mul(2) } else { same };
        if is_whole && most.saturating_sub(least) <= same {
            return Reason::Unchanged;
        }
        let (restless, calm) =
            (if was == Reason::Changing { 80 } else { 100 }, if was == Reason::Steady { 15 } else { 10 });
        if varies_by_more_than(restless, readings) {
            Reason::Changing
        } else if is_whole && !varies_by_more_than(calm, readings) {
            Reason::Steady
        } else if is_whole {
            Reason::Usual
        } else {
            Reason::Settling
        }
    }
}

/// Whether the coefficient of variation (standard deviation over mean, of the readings as a whole) is above so many
/// thousandths. In integers: `n * sum of squares - square of the sum` is n squared times the variance, exactly.
fn varies_by_more_than(thousandths: u32, readings: &[u32]) -> bool {
    let count = u128::try_from(readings.len()).unwrap_or(0);
    let sum: u128 = readings.iter().map(|n| u128::from(*n)).sum();
    let squares: u128 = readings.iter().map(|n| u128::from(*n) * u128::from(*n)).sum();
    let variance = (count * squares).saturating_sub(sum * sum);
    let mean = sum.max(count * u128::from(MEAN_LEAST));
    variance * 1_000_000 > mean * mean * u128::from(thousandths) * u128::from(thousandths)
}

/// The policy for one plug.
#[derive(Clone, Debug, Default)]
pub struct Adaptive {
    outlets: Vec<Outlet>,
}

impl Adaptive {
    /// Takes a reading of outlet `outlet`, from 0; a plug without numbered outlets has outlet 0.
    pub fn note(&mut self, outlet: u8, power: Milliwatts) {
        let outlet = usize::from(outlet);
        if outlet >= crate::reading::MAX_OUTLETS {
            return; // no strip has so many: readings of one are refused where they enter
        }
        if self.outlets.len() <= outlet {
            self.outlets.resize_with(outlet + 1, Outlet::default);
        }
        if let Some(outlet) = self.outlets.get_mut(outlet) {
            outlet.note(power);
        }
    }

    /// Forgets what was read: after an outage nothing is known of what comes next.
    pub fn forget(&mut self) {
        self.outlets.clear();
    }

    /// The interval until the next question, and why it is that long.
    #[must_use]
    pub fn decide(&self, bounds: Bounds) -> (Duration, Reason) {
        let read = self.outlets.iter().filter(|outlet| !outlet.recent.is_empty());
        let reason = read.map(|outlet| outlet.reason).min().unwrap_or(Reason::Settling);
        (bounds.interval(reason), reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BOUNDS: Bounds =
        Bounds { base: Duration::from_secs(10), least: Duration::from_secs(5), most: limits::ADAPTIVE_LAST };

    fn watts(watts: f64) -> Milliwatts {
        Milliwatts::from_base(watts).unwrap()
    }

    fn after(readings: impl IntoIterator<Item = f64>) -> (u64, Reason) {
        let mut adaptive = Adaptive::default();
        readings.into_iter().for_each(|power| adaptive.note(0, watts(power)));
        let (interval, reason) = adaptive.decide(BOUNDS);
        (interval.as_secs(), reason)
    }

    #[test]
    fn each_rule_has_its_interval() {
        let wave = |mean: f64, part: f64| (0..8).map(move |n| mean * (1.0 + if n % 2 == 0 { part } else { -part }));
        assert_eq!(after([]), (10, Reason::Settling));
        assert_eq!(after([40.0; 7]), (10, Reason::Settling));
        assert_eq!(after([40.0; 8]), (40, Reason::Unchanged));
        assert_eq!(after([0.0; 8]), (40, Reason::Unchanged), "a mean of 0");
        assert_eq!(after(wave(100.0, 0.008)), (20, Reason::Steady));
        assert_eq!(after(wave(100.0, 0.05)), (10, Reason::Usual));
        assert_eq!(after(wave(50.0, 0.07)), (10, Reason::Usual));
        assert_eq!(after(wave(40.0, 0.12).take(4)), (5, Reason::Step), "9.6 W of 44.8 W are a step");
        assert_eq!(after((0..8).map(|n| 100.0 + 8.0 * f64::from(n))), (5, Reason::Changing));
        assert_eq!(after(wave(1.0, 0.27)), (20, Reason::Steady), "the flicker of a standby load is calm");
    }

    #[test]
    fn a_step_brings_the_interval_down_at_once_and_calm_brings_it_back_up() {
        let mut adaptive = Adaptive::default();
        let mut told = Vec::new();
        for n in 0..30 {
            adaptive.note(0, watts(if n < 10 { 0.0 } else { 2_000.0 }));
            told.push(adaptive.decide(BOUNDS).0.as_secs());
        }
        assert_eq!(told[..10], [10, 10, 10, 10, 10, 10, 10, 40, 40, 40]);
        assert_eq!(told[10..20], [5, 5, 5, 5, 5, 5, 5, 40, 40, 40]);
    }

    #[test]
    fn noise_at_a_threshold_does_not_move_the_interval_to_and_fro() {
        let mut random = fastrand::Rng::with_seed(1);
        for (mean, part) in [(100.0, 0.017), (40.0, 0.17), (100.0, 0.17), (400.0, 0.005)] {
            let (mut adaptive, mut changes, mut last) = (Adaptive::default(), 0, None);
            for _ in 0..1_000 {
                adaptive.note(0, watts(mean * (1.0 + part * (random.f64() * 2.0 - 1.0))));
                let now = adaptive.decide(BOUNDS).1;
                changes += usize::from(last.replace(now).is_some_and(|last| last != now));
            }
            assert!(changes <= 150, "{changes} changes at {mean} W, {part}");
        }
    }

    #[test]
    fn a_strip_goes_by_its_most_restless_outlet_and_never_below_its_own_least() {
        let mut adaptive = Adaptive::default();
        for n in 0..8 {
            adaptive.note(0, watts(3.0));
            adaptive.note(5, watts(if n < 7 { 0.0 } else { 60.0 }));
        }
        let minute = 60 * SECOND;
        let bounds = Bounds { base: minute, least: minute, most: limits::ADAPTIVE_LAST };
        assert_eq!(adaptive.decide(bounds), (minute, Reason::Step));
        (0..8).for_each(|_| adaptive.note(5, watts(60.0)));
        assert_eq!(adaptive.decide(bounds), (4 * minute, Reason::Unchanged));
        adaptive.forget();
        assert_eq!(adaptive.decide(bounds), (minute, Reason::Settling));
    }

    #[test]
    fn a_quarter_hour_gets_three_readings_and_a_slow_plug_is_not_made_faster() {
        let calm = Adaptive {
            outlets: vec![Outlet {
                reason: Reason::Unchanged,
                recent: [1; 8].into_iter().fold(HistoryBuf::new(), |mut ring, n| {
                    ring.write(n);
                    ring
                }),
                stepped: false,
            }],
        };
        for base in [1, 10, 60, 75, 200, 300, 3_600] {
            let bounds = Bounds { base: base * SECOND, least: SECOND, most: 3_600 * SECOND };
            let (interval, _) = calm.decide(bounds);
            assert!(interval <= (900 / 3 * SECOND).max(bounds.base) && interval >= bounds.base, "{base}: {interval:?}");
        }
    }

    proptest! {
        #[test]
        fn every_interval_lies_within_the_bounds(
            readings in proptest::collection::vec((0..20_u8, 0..=5_000_000_i64), 0..60),
            base in 1..4_000_u32, least in 1..100_u32, most in 1..4_000_u32,
        ) {
            let bounds = Bounds { base: SECOND * base, least: SECOND * least, most: SECOND * most };
            let mut adaptive = Adaptive::default();
            for (outlet, power) in readings {
                adaptive.note(outlet, Milliwatts::new(power).unwrap());
                let (interval, _) = adaptive.decide(bounds);
                prop_assert!(interval >= bounds.least.min(bounds.base) && interval >= bounds.base / 2);
                prop_assert!(interval <= bounds.most.min(limits::ADAPTIVE_LAST).max(bounds.base));
            }
        }

        /// The integers say what the definition says.
        #[test]
        fn variation_agrees_with_its_definition(readings in proptest::collection::vec(0..=5_000_000_u32, 1..9)) {
            let count = readings.len() as f64;
            let mean = readings.iter().map(|n| f64::from(*n)).sum::<f64>() / count;
            let variance = readings.iter().map(|n| (f64::from(*n) - mean).powi(2)).sum::<f64>() / count;
            let variation = variance.sqrt() / mean.max(f64::from(MEAN_LEAST));
            for thousandths in [10, 15, 80, 100] {
                if (variation - f64::from(thousandths) / 1_000.0).abs() > 1e-9 {
                    prop_assert_eq!(varies_by_more_than(thousandths, &readings), variation > f64::from(thousandths) / 1_000.0);
                }
            }
        }
    }
}
