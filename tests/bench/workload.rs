//! A week of twenty plugs as a KP115 would report it: the workload that sizes and speeds are stated for.
//!
//! Owns the shapes, the noise and their seed. Promises the same entries on each run of one machine. The noise is assumed,
//! not captured: voltage 80 mV, power 12 mW + 0.12 %, current 0.5 mA + 0.1 % (standard deviations), answers some 25 ms
//! after their slot with 8 ms of noise and an exponential tail of 10 ms, one in 200 slow. Milliwatts, millivolts and
//! milliamps are whole, the counter steps in whole Wh. 0.4 % of the polls are lost, all plugs are away for two hours, one
//! counter restarts.
#![allow(dead_code)] // each benchmark uses a part of it
#![allow(missing_docs, clippy::unwrap_used, clippy::as_conversions)]

use wattd::reading::{Entry, Reading, Relay};
use wattd::units::{Milliamps, Millivolts, MilliwattHours, Milliwatts, UnixMillis};

/// When the workload begins.
pub const START: i64 = 1_767_225_600_000;
/// Milliseconds between two polls.
pub const INTERVAL: u32 = 10_000;
/// Slots of a day.
pub const DAY: usize = 8_640;
/// Plugs.
pub const PLUGS: usize = 20;
/// Days.
pub const DAYS: usize = 7;

/// What hangs on a plug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Fridge,
    Standby,
    WashingMachine,
    Kettle,
    Off,
}

/// The load of plug `plug`.
pub fn load_of(plug: usize) -> Load {
    match plug % 10 {
        0 | 3 | 6 => Load::Fridge,
        1 | 4 | 8 => Load::Standby,
        2 => Load::WashingMachine,
        5 | 7 => Load::Kettle,
        _ => Load::Off,
    }
}

/// Draws from splitmix64.
pub struct Draw(pub u64);

impl Draw {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Gaussian, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Exponential, mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

/// Where a plug's appliance stands.
struct Appliance {
    load: Load,
    draw: Draw,
    /// Seconds into the current phase, and how long it lasts.
    into: f64,
    lasts: f64,
    active: bool,
    size: f64,
}

impl Appliance {
    fn new(load: Load, seed: u64) -> Self {
        let mut draw = Draw(seed);
        let size = draw.unit();
        let lasts = 600.0 + 2_000.0 * draw.unit();
        Self { load, draw, into: 0.0, lasts, active: false, size }
    }

    /// True watts and power factor, `step` seconds later.
    fn step(&mut self, step: f64) -> (f64, f64) {
        self.into += step;
        if self.into >= self.lasts {
            self.into = 0.0;
            self.active = !self.active;
            let unit = self.draw.unit();
            self.lasts = match (self.load, self.active) {
                (Load::Fridge, true) => 800.0 + 400.0 * unit,
                (Load::Fridge, false) => 1_500.0 + 1_200.0 * unit,
                (Load::WashingMachine, true) => 5_400.0,
                (Load::WashingMachine, false) => 40_000.0 + 60_000.0 * unit,
                (Load::Kettle, true) => 90.0 + 150.0 * unit,
                (Load::Kettle, false) => 2_000.0 + 15_000.0 * unit,
                (Load::Standby, _) => 3_000.0 + 20_000.0 * unit,
                (Load::Off, _) => f64::INFINITY,
            };
        }
        let t = self.into;
        match (self.load, self.active) {
            (Load::Fridge, true) => (72.0 + 20.0 * self.size + 25.0 * (-t / 180.0).exp(), 0.62 + 0.03 * self.size),
            (Load::Fridge, false) => (0.9 + 0.4 * self.size, 0.32),
            (Load::WashingMachine, true) => match t {
                t if t < 90.0 => (6.0, 0.5),
                t if t < 1_290.0 => (2_050.0, 0.998),
                t if t < 3_690.0 && t % 30.0 < 20.0 => (160.0 + 25.0 * self.draw.normal(), 0.7),
                t if t < 3_690.0 => (9.0, 0.5),
                t if t < 4_590.0 && t % 40.0 < 15.0 => (140.0 + 20.0 * self.draw.normal(), 0.7),
                t if t < 4_590.0 => (25.0, 0.55),
                t if t < 5_280.0 => (300.0 + (t - 4_590.0) * 0.36 + 15.0 * self.draw.normal(), 0.72),
                _ => (8.0, 0.5),
            },
            (Load::WashingMachine, false) => (0.45, 0.15),
            (Load::Kettle, true) => (1_950.0 + 150.0 * self.size, 0.999),
            (Load::Kettle, false) | (Load::Off, _) => (0.0, 1.0),
            (Load::Standby, true) => (4.0 + 9.0 * self.size + 0.4 * (t / 700.0).sin(), 0.52),
            (Load::Standby, false) => (1.2 + 2.0 * self.size, 0.43),
        }
    }
}

/// The power column of one plug: what the meter would show without noise, and the power factor, per slot.
pub type Shape<'a> = &'a mut dyn FnMut(usize) -> Option<(f64, f64)>;

/// The entries of plug `plug` over `slots` slots, in order of time.
pub fn plug(plug: usize, slots: usize) -> Vec<Entry> {
    let seed = Draw(0x7761_7474_6400 + plug as u64).bits();
    let mut appliance = Appliance::new(load_of(plug), seed);
    let mut step = |_| Some(appliance.step(10.0));
    metered(plug, slots, true, &mut step)
}

/// Entries as a meter brings them for a load of this shape. A slot without power is a lost poll. With `noise` false the
/// power is shown as it is, without the meter's own noise.
pub fn metered(plug: usize, slots: usize, noise: bool, shape: Shape<'_>) -> Vec<Entry> {
    let mut draw = Draw(0x6d65_7465_7200 + plug as u64);
    let phase = 500 * plug as i64;
    let gain = 1.0 + 0.004 * draw.normal();
    let outage = slots / 2..slots / 2 + 720.min(slots / 20);
    let reset = (plug == 4).then_some(slots / 3);
    let mut energy = 1_000_000.0 * draw.unit();
    let mut step = 0.0_f64;
    let mut in_gap = false;
    let mut entries = Vec::new();
    let mut last = 0.0;
    for slot in 0..slots {
        let shaped = shape(slot);
        let (watts, factor) = shaped.unwrap_or((last, 1.0));
        last = watts;
        energy += watts * 10.0 / 3_600.0;
        if reset == Some(slot) {
            energy = 0.0;
        }
        if draw.unit() < 0.01 {
            step = 0.7 * step + 0.4 * draw.normal(); // another load of the house
        }
        let due = START + phase + slot as i64 * i64::from(INTERVAL);
        if shaped.is_none() || draw.unit() < 0.004 || outage.contains(&slot) {
            if !in_gap {
                entries.push(Entry::Gap { time: UnixMillis::new(due) });
            }
            in_gap = true;
            continue;
        }
        in_gap = false;
        let hours = slot as f64 / 360.0;
        let tau = std::f64::consts::TAU;
        let mains = 230.0 + 2.5 * (hours / 24.0 * tau).sin() + 0.8 * (hours / 0.7 * tau).sin() + step;
        let volts = mains * gain - 0.3 * watts / 230.0;
        let amps = watts / (volts * factor);
        let late = 20.0 + 8.0 * draw.normal().abs() + 10.0 * draw.exponential();
        let slow = if draw.unit() < 0.005 { 500.0 * draw.unit() } else { 0.0 };
        let shown = if noise && watts > 0.0 { watts + (0.012 + 0.001_2 * watts) * draw.normal() } else { watts };
        let current = if amps > 0.0 { amps + (0.000_5 + 0.001 * amps) * draw.normal() } else { 0.0 };
        entries.push(Entry::Reading(Reading {
            time: UnixMillis::new(due + (late + slow) as i64),
            power: Milliwatts::from_base(shown.max(0.0)).unwrap(),
            voltage: Some(Millivolts::from_base(volts + 0.080 * draw.normal()).unwrap()),
            current: Some(Milliamps::from_base(current.max(0.0)).unwrap()),
            counter: Some(MilliwattHours::from_base(energy.floor()).unwrap()),
            relay: Some(Relay::On),
        }));
    }
    entries
}
