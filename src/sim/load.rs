//! What hangs on an outlet: power as a function of a seed and the simulated time, nothing else.
//!
//! Owns the shapes (compressor cycles, boils, wash programs) and the mains voltage. Promises that the same seed and time
//! give the same milliwatts on every machine, and that a load never leaves the range of [`Milliwatts`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::units::{Milliamps, Millivolts, Milliwatts};

/// The appliance on one outlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A compressor: some 90 W for a third of every 40 to 55 minutes, with a start surge, else about 1 W.
    Fridge,
    /// About 2 kW for two to four minutes, in some half hours; the first boil starts within 40 s. Else 0.
    Kettle,
    /// A program of 90 minutes (fill, heat, wash, rinse, spin), in some spans of 3 hours; the first starts at 20 s.
    WashingMachine,
    /// A few watts all the time: a router, a charger, a television that is off.
    Standby,
    /// Nothing connected: 0 W exactly.
    Zero,
    /// This power exactly, without noise: for tests that compare to the milliwatt.
    Constant(Milliwatts),
}

impl Load {
    /// Power at `at`, which is simulated time since the start. Noise is drawn anew for each millisecond.
    #[must_use]
    pub fn power(self, seed: u64, at: Duration) -> Milliwatts {
        let watts = match self {
            Self::Fridge => fridge(seed, at),
            Self::Kettle => kettle(seed, at.as_secs_f64()).map(|watts| watts + 8.0 * noise(seed, at)).unwrap_or(0.0),
            Self::WashingMachine => {
                let watts = washing_machine(seed, at.as_secs_f64());
                watts + (0.004 * watts + 0.08) * noise(seed, at)
            }
            Self::Standby => 1.5 + 4.0 * unit(mix(seed, 1)) + 0.3 * noise(seed, at),
            Self::Zero => 0.0,
            Self::Constant(power) => return power,
        };
        Milliwatts::from_base(watts.max(0.0)).unwrap_or(Milliwatts::ZERO)
    }

    /// Active over apparent power, above 0 and at most 1.
    #[must_use]
    pub const fn power_factor(self) -> f64 {
        match self {
            Self::Fridge => 0.62,
            Self::Kettle | Self::Zero | Self::Constant(_) => 1.0,
            Self::WashingMachine => 0.93,
            Self::Standby => 0.48,
        }
    }

    /// Energy of an ordinary day in Wh: what the invented history before the start is made of.
    #[must_use]
    pub fn usual_day_wh(self) -> f64 {
        match self {
            Self::Fridge => 800.0,
            Self::Kettle => 650.0,
            Self::WashingMachine => 900.0,
            Self::Standby => 80.0,
            Self::Zero => 0.0,
            Self::Constant(power) => f64::from(power.get()) * 0.024,
        }
    }

    /// The name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fridge => "fridge",
            Self::Kettle => "kettle",
            Self::WashingMachine => "washing-machine",
            Self::Standby => "standby",
            Self::Zero => "zero",
            Self::Constant(_) => "constant",
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(power) => write!(f, "constant:{}", power.decimal()),
            other => f.pad(other.name()),
        }
    }
}

impl FromStr for Load {
    type Err = NotALoad;

    /// A name as [`Load::name`] gives it, or `constant:WATTS`.
    fn from_str(text: &str) -> Result<Self, NotALoad> {
        if let Some(watts) = text.strip_prefix("constant:") {
            let watts = watts.parse().map_err(|_| NotALoad)?;
            return Milliwatts::from_base(watts).map(Self::Constant).map_err(|_| NotALoad);
        }
        let all = [Self::Fridge, Self::Kettle, Self::WashingMachine, Self::Standby, Self::Zero];
        all.into_iter().find(|load| load.name() == text).ok_or(NotALoad)
    }
}

/// A text that names no load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALoad;

impl fmt::Display for NotALoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such load; there are fridge, kettle, washing-machine, standby, zero and constant:WATTS")
    }
}

impl std::error::Error for NotALoad {}

/// Mains voltage at a plug: 230 V, drifting by 3 V over the hour, with noise of some tenths.
#[must_use]
pub fn mains_voltage(seed: u64, at: Duration) -> Millivolts {
    let turn = at.as_secs_f64() / 3_600.0 + unit(mix(seed, 7));
    let volts = 230.0 + 3.0 * (turn * std::f64::consts::TAU).sin() + 0.4 * noise(mix(seed, 8), at);
    Millivolts::from_base(volts).unwrap_or(Millivolts::ZERO)
}

/// The current that goes with a power: `P / (U * power factor)`, 0 without a voltage.
#[must_use]
pub fn current(power: Milliwatts, voltage: Millivolts, load: Load) -> Milliamps {
    let apparent = f64::from(voltage.get()) * load.power_factor();
    let amps = if apparent > 0.0 { f64::from(power.get()) / apparent } else { 0.0 };
    Milliamps::from_base(amps).unwrap_or(Milliamps::MAX)
}

fn fridge(seed: u64, at: Duration) -> f64 {
    let period = 2_400.0 + 900.0 * unit(mix(seed, 1));
    let position = (at.as_secs_f64() + period * unit(mix(seed, 2))) % period;
    if position > 0.36 * period {
        return 0.9 + 0.3 * noise(seed, at);
    }
    let running = 78.0 + 20.0 * unit(mix(seed, 3)) + 25.0 * (-position / 180.0).exp();
    let surge = if position < 2.0 { 380.0 } else { 0.0 };
    running + surge + 1.2 * noise(seed, at)
}

/// Watts while it boils.
fn kettle(seed: u64, seconds: f64) -> Option<f64> {
    let slot = Slot::of(seed, seconds, 1_800.0, 0.4)?;
    let start = if slot.is_first { 20.0 + 20.0 * slot.draw(1) } else { 60.0 + 1_400.0 * slot.draw(1) };
    let lasts = 120.0 + 120.0 * slot.draw(2);
    (start..start + lasts).contains(&slot.position).then(|| 1_950.0 + 150.0 * unit(mix(seed, 3)))
}

fn washing_machine(seed: u64, seconds: f64) -> f64 {
    const OFF: f64 = 1.1;
    let Some(slot) = Slot::of(seed, seconds, 10_800.0, 0.35) else { return OFF };
    let into = slot.position - if slot.is_first { 20.0 } else { 4_000.0 * slot.draw(1) };
    match into {
        t if t < 0.0 => OFF,
        t if t < 90.0 => 6.0,
        t if t < 1_290.0 => 2_050.0,
        t if t < 3_690.0 => {
            if t % 30.0 < 20.0 {
                160.0
            } else {
                9.0
            }
        }
        t if t < 4_590.0 => {
            if t % 40.0 < 15.0 {
                140.0
            } else {
                25.0
            }
        }
        t if t < 5_280.0 => 300.0 + (t - 4_590.0) * 0.36,
        t if t < 5_400.0 => 8.0,
        _ => OFF,
    }
}

/// A span of time in which something happens at most once.
struct Slot {
    seed: u64,
    is_first: bool,
    position: f64,
}

impl Slot {
    /// The slot at `seconds` if anything happens in it; in the first one something always does, so that a demonstration
    /// has something to show.
    fn of(seed: u64, seconds: f64, length: f64, chance: f64) -> Option<Self> {
        let number = (seconds / length).floor();
        let seed = mix(seed, number.to_bits());
        let is_first = number < 1.0;
        (is_first || unit(seed) < chance).then_some(Self { seed, is_first, position: seconds - number * length })
    }

    fn draw(&self, salt: u64) -> f64 {
        unit(mix(self.seed, salt))
    }
}

/// Noise between -1 and 1, mostly near 0, different for every millisecond.
fn noise(seed: u64, at: Duration) -> f64 {
    let drawn = mix(seed, 0x6e6f_6973_6500 ^ u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    unit(drawn) - unit(drawn << 32)
}

/// A number from 0 up to but not including 1, from the upper half of `bits`.
pub(super) fn unit(bits: u64) -> f64 {
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / 4_294_967_296.0
}

/// A well-mixed number from two: the finisher of splitmix64, by Sebastiano Vigna, in the public domain.
pub(super) const fn mix(seed: u64, salt: u64) -> u64 {
    let mut bits = seed.wrapping_add(salt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn loads_are_functions_of_seed_and_time() {
        for load in [Load::Fridge, Load::Kettle, Load::WashingMachine, Load::Standby, Load::Zero] {
            for second in (0..20_000).step_by(97) {
                assert_eq!(load.power(3, at(second)), load.power(3, at(second)), "{load} at {second}");
                let voltage = mains_voltage(3, at(second));
                assert!((225_000..=235_000).contains(&voltage.get()), "{voltage}");
            }
        }
        assert_ne!(Load::Standby.power(1, at(5)), Load::Standby.power(2, at(5)));
    }

    #[test]
    fn the_first_minutes_show_something() {
        for seed in 0..50 {
            assert!(Load::Kettle.power(seed, at(60)).get() > 1_800_000, "seed {seed}");
            assert_eq!(Load::Kettle.power(seed, at(1_000)), Milliwatts::ZERO);
            assert!(Load::WashingMachine.power(seed, at(600)).get() > 1_900_000);
        }
    }

    #[test]
    fn a_fridge_runs_for_about_a_third_of_the_time() {
        let running = (0..86_400).filter(|s| Load::Fridge.power(9, at(*s)).get() > 50_000).count();
        assert!((25_000..37_000).contains(&running), "{running} s of a day");
    }

    #[test]
    fn current_follows_from_power_voltage_and_power_factor() {
        let power = Milliwatts::new(2_300_000).unwrap();
        let voltage = Millivolts::new(230_000).unwrap();
        assert_eq!(current(power, voltage, Load::Kettle).get(), 10_000);
        assert_eq!(current(power, Millivolts::ZERO, Load::Kettle), Milliamps::ZERO);
    }

    #[test]
    fn noise_tells_neighbouring_readings_apart() {
        let mut seen: Vec<_> = (0..100).map(|s| Load::Fridge.power(1, at(s)).get()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 70, "{} different values", seen.len());
    }

    #[test]
    fn names_are_read_back() {
        for text in ["fridge", "kettle", "washing-machine", "standby", "zero", "constant:41.237"] {
            assert_eq!(text.parse::<Load>().unwrap().to_string(), text);
        }
        assert!("toaster".parse::<Load>().is_err());
        assert!("constant:-1".parse::<Load>().is_err());
    }
}
