//! What a column is expected to say next, and how the difference is written. The same code runs both ways.
//!
//! Integers only, so that every machine expects the same. A [`Surprise`] writes a difference in units of its usual size;
//! the columns below differ in how they expect:
//!
//! * **time** lies on the grid of polls, later by a delay that is followed ([`Level`]);
//! * **power** and **voltage** stay near their level; how near is remembered for each octave of power;
//! * **current** is power over voltage times a factor that is followed for each octave of power (the load's power factor);
//! * **counter** is the integral of power: what is written is by how many steps it differs from that.

use super::coder::{Odds, Stream};

/// Octaves of a power in mW: 0 for no power, else its number of bits.
const OCTAVES: usize = 24;

fn octave(power: u32) -> usize {
    usize::try_from(u32::BITS.saturating_sub(power.leading_zeros())).unwrap_or(0).min(OCTAVES - 1)
}

/// The usual size of a difference: a running mean, in 1/256.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    mean: u32,
    seen: u8,
}

impl Size {
    fn learn(&mut self, size: u64) {
        let size = u32::try_from(size.min(1 << 23)).unwrap_or(1 << 23) << 8; // below 2^31
        // One outlier must not blind us to what is usual.
        let size = if self.seen > 3 { size.min(self.mean.saturating_mul(8).saturating_add(1024)) } else { size };
        let shift = match self.seen {
            0 => 0,
            1..=2 => 1,
            3..=6 => 2,
            7..=14 => 3,
            _ => 4,
        };
        self.seen = self.seen.saturating_add(1).min(15);
        self.mean = if size > self.mean {
            self.mean.wrapping_add(size.wrapping_sub(self.mean) >> shift)
        } else {
            self.mean.wrapping_sub(self.mean.wrapping_sub(size) >> shift)
        };
    }

    /// Whether a difference of this size is far beyond the usual.
    fn is_step(&self, size: u64) -> bool {
        size > u64::from(self.mean >> 5).wrapping_add(2)
    }
}

/// Lengths in bits that are asked for one by one; longer ones are written as a number.
const NODES: usize = 10;
const FAR: u32 = 10;
/// Kinds of difference by usual size: below 2 by half octaves, from there on by the half of the octave.
const KINDS: usize = 10;

fn of_sign<T>([above, below]: &mut [T; 2], is_below: bool) -> &mut T {
    if is_below { below } else { above }
}

/// Questions about a magnitude, by its length in bits: each length's first.
type ByLength = [Odds; NODES];

/// Writes differences of one column: sign, length in bits by unary questions, two bits more, the rest as it is.
///
/// Pairs are for differences from zero up, and for those below.
#[derive(Clone, Debug)]
pub struct Surprise {
    below: [Odds; KINDS],
    /// Whether there are more bits.
    more: [[ByLength; 2]; KINDS],
    /// The first bit after the leading one.
    top: [ByLength; 2],
    /// The second bit after the leading one, when the first is 0 and when it is 1.
    second: [[ByLength; 2]; 2],
}

impl Default for Surprise {
    fn default() -> Self {
        let unknown = [Odds::EVEN; NODES];
        Self { below: [Odds::EVEN; KINDS], more: [[unknown; 2]; KINDS], top: [unknown; 2], second: [[unknown; 2]; 2] }
    }
}

impl Surprise {
    /// A difference whose usual size is `size`.
    #[inline]
    pub fn code(&mut self, stream: &mut impl Stream, size: &mut Size, difference: i64) -> i64 {
        let log = 31_u32.wrapping_sub((size.mean | 1).leading_zeros());
        let half = size.mean >> log.saturating_sub(1) & 1;
        // From a usual size of 2 on, differences are coded in units of half the usual size or less; the rest is noise.
        let low = log.saturating_sub(9);
        let kind = match log {
            0..=2 => 0,
            3..=4 => 1,
            5 => 2,
            6 => 3,
            7 => 4 + half,
            8 => 6 + half,
            _ => 8 + half,
        };
        let kind = usize::try_from(kind).unwrap_or(0);
        let (Some(odds), Some(more)) = (self.below.get_mut(kind), self.more.get_mut(kind)) else {
            return 0; // there are ten kinds
        };
        let below = stream.ask(odds, difference < 0);
        let (more, top, second) =
            (of_sign(more, below), of_sign(&mut self.top, below), of_sign(&mut self.second, below));
        let magnitude = (if difference < 0 { !difference } else { difference }).cast_unsigned();
        let number = (magnitude >> low).wrapping_add(1);
        let bits = 63_u32.wrapping_sub(number.leading_zeros());

        let (mut length, mut node) = (0_u32, NODES - 1);
        for (at, odds) in more.iter_mut().enumerate() {
            if !stream.ask(odds, bits > length) {
                node = at;
                break;
            }
            length = length.wrapping_add(1);
        }
        if length == FAR {
            let further = stream.plain(bits.wrapping_sub(FAR).into(), 6);
            length = length.wrapping_add(u32::try_from(further).unwrap_or(0)).min(63);
        }
        let (mut coded, mut rest) = (1_u64, length);
        for step in 0..2 {
            let odds = match (rest, step) {
                (0, _) => break,
                (_, 0) => top.get_mut(node),
                _ => of_sign(second, coded == 3).get_mut(node),
            };
            rest = rest.wrapping_sub(1);
            if let Some(odds) = odds {
                coded = coded << 1 | u64::from(stream.ask(odds, number >> rest & 1 == 1));
            }
        }
        // What is left of the number, and the bits of the magnitude below it, are noise.
        let plain = rest.wrapping_add(low).min(63);
        let noise = number.wrapping_shl(low) | magnitude & !(u64::MAX << low);
        let noise = stream.plain(noise & !(u64::MAX << plain), plain);
        let magnitude = (coded.wrapping_shl(plain) | noise).wrapping_sub(1 << low);
        size.learn(magnitude);
        let magnitude = magnitude.cast_signed();
        if below { !magnitude } else { magnitude }
    }
}

/// A running level of a column, in 1/256: the last value, a short mean or a long one, whichever did best of late.
#[derive(Clone, Debug, Default)]
pub struct Level {
    means: [i32; 3],
    misses: [u32; 3],
    seen: u8,
}

/// Each mean's weight for a new value, in 1/65536, once it has seen enough.
const WEIGHTS: [i64; 3] = [65_536, 21_845, 5_461];

/// The weight of the n-th value after a step, 1/(n + 1) in 1/65536: as a table, for a division would cost more than all
/// the rest.
const FIRST_WEIGHTS: [i64; 31] = {
    let mut weights = [0; 31];
    let (mut n, mut next) = (0, 1);
    while n < 31 {
        if let Some((weight, _)) = weights.split_at_mut(n).1.split_first_mut() {
            *weight = 65_536 / next;
        }
        n += 1;
        next += 1;
    }
    weights
};

impl Level {
    /// What is expected next.
    #[inline]
    pub fn expect(&self) -> i64 {
        let best = self.misses.iter().zip(&self.means).min_by_key(|(miss, _)| **miss);
        best.map_or(0, |(_, mean)| i64::from(*mean).wrapping_add(128) >> 8)
    }

    /// Takes what came, which must be below 2^23 either way. After a step it starts anew.
    #[inline]
    pub fn learn(&mut self, value: i64, is_step: bool) {
        let value = i32::try_from(value.wrapping_shl(8)).unwrap_or(0);
        if is_step {
            self.seen = 0;
        }
        let weight = FIRST_WEIGHTS.get(usize::from(self.seen)).copied().unwrap_or(0);
        self.seen = self.seen.saturating_add(1).min(30);
        for ((mean, miss), least) in self.means.iter_mut().zip(&mut self.misses).zip(WEIGHTS) {
            let off = i64::from(value).wrapping_sub(i64::from(*mean));
            let size = u32::try_from(off.unsigned_abs()).unwrap_or(u32::MAX);
            *miss = miss.wrapping_sub(*miss >> 5).wrapping_add(size >> 5);
            let moved = off.wrapping_mul(weight.max(least)) >> 16;
            *mean = mean.wrapping_add(i32::try_from(moved).unwrap_or(0));
        }
    }

    /// The column is counted in units smaller by this factor from now on.
    pub fn rescale(&mut self, factor: i32) {
        for mean in &mut self.means {
            *mean = mean.saturating_mul(factor);
        }
    }
}

/// The time column.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// The slot of the last entry, less the delay.
    grid: i64,
    delay: Level,
    skips: Surprise,
    skip_size: Size,
    delays: Surprise,
    delay_size: Size,
    gaps: Surprise,
    gap_size: Size,
}

impl Times {
    /// Starts at `first`.
    pub fn start(first: i64) -> Self {
        Self { grid: first, ..Self::default() }
    }

    /// The time of the next reading or gap.
    pub fn code(&mut self, stream: &mut impl Stream, is_gap: bool, interval: u32, time: i64) -> i64 {
        let interval = i64::from(interval.max(1));
        let delay = self.delay.expect();
        let expected = self.grid.wrapping_add(interval).wrapping_add(delay);
        let early = time.wrapping_sub(expected);
        let half = interval / 2;
        // How many slots beyond the next one; a division only when it is not the next one.
        let skip = if (-half..=half).contains(&early) { 0 } else { early.wrapping_add(half).div_euclid(interval) };
        let skip = self.skips.code(stream, &mut self.skip_size, skip);
        let expected = expected.wrapping_add(skip.wrapping_mul(interval));
        let off = time.wrapping_sub(expected);
        self.grid = expected.wrapping_sub(delay);
        if is_gap {
            return expected.wrapping_add(self.gaps.code(stream, &mut self.gap_size, off));
        }
        let size = self.delay_size;
        let off = self.delays.code(stream, &mut self.delay_size, off);
        let time = expected.wrapping_add(off);
        let late = time.wrapping_sub(self.grid);
        if (-0x3f_ffff..0x3f_ffff).contains(&late) {
            self.delay.learn(late, size.is_step(off.unsigned_abs()));
        } else {
            self.grid = time;
            self.delay = Level::default();
        }
        time
    }
}

/// A column that stays near its level.
#[derive(Clone, Debug)]
pub struct Steady {
    level: Level,
    sizes: [Size; OCTAVES],
    surprise: Surprise,
    last_size: Size,
    is_started: bool,
}

impl Default for Steady {
    fn default() -> Self {
        Self {
            level: Level::default(),
            sizes: [Size::default(); OCTAVES],
            surprise: Surprise::default(),
            last_size: Size::default(),
            is_started: false,
        }
    }
}

impl Steady {
    /// The next value, below 2^23. With `by_octave` the usual difference is remembered for each octave of the value.
    pub fn code(&mut self, stream: &mut impl Stream, by_octave: bool, value: i64) -> i64 {
        let expected = self.level.expect();
        let slot = if by_octave { octave(u32::try_from(expected).unwrap_or(0)) } else { 0 };
        let Some(size) = self.sizes.get_mut(slot) else { return 0 };
        if !self.is_started {
            // How far the first value is from nothing tells nothing.
            self.is_started = true;
            let value = self.surprise.code(stream, &mut Size::default(), value);
            self.level.learn(value, true);
            return value;
        }
        if size.seen == 0 {
            *size = Size { mean: self.last_size.mean, seen: 1 };
        }
        let usual = *size;
        let off = self.surprise.code(stream, size, value.wrapping_sub(expected));
        self.last_size = *size;
        let value = expected.wrapping_add(off);
        self.level.learn(value, usual.is_step(off.unsigned_abs()));
        value
    }

    /// The column is counted in units smaller by this factor from now on.
    pub fn rescale(&mut self, factor: u32) {
        self.level.rescale(i32::try_from(factor).unwrap_or(1));
        for size in self.sizes.iter_mut().chain([&mut self.last_size]) {
            size.mean = size.mean.saturating_mul(factor);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Ratio {
    factor: u32,
    seen: u8,
    size: Size,
}

/// The current column.
#[derive(Clone, Debug, Default)]
pub struct Currents {
    ratios: [Ratio; OCTAVES],
    last: Ratio,
    level: Level,
    misses: [u32; 2],
    surprise: Surprise,
}

const ONE: u32 = 1 << 16;

impl Currents {
    /// The next current in units of `quantum` mA. `voltage` is in mV, `power` in mW.
    pub fn code(
        &mut self,
        stream: &mut impl Stream,
        power: u32,
        voltage: Option<u32>,
        quantum: u32,
        value: i64,
    ) -> i64 {
        let voltage = voltage.filter(|voltage| *voltage > 0).unwrap_or(230_000);
        // With power factor 1, in 1/16 mA.
        let plain = (u64::from(power) * 16_000).checked_div(u64::from(voltage)).unwrap_or(0).min(1 << 24);
        let Some(ratio) = self.ratios.get_mut(octave(power)) else { return 0 };
        if ratio.seen == 0 {
            let factor = if self.last.factor == 0 { ONE } else { self.last.factor };
            *ratio = Ratio { factor, seen: 1, size: Size { mean: self.last.size.mean, seen: 1 } };
        }
        let by_power = ((plain * u64::from(ratio.factor)) >> 16).min(1 << 21).cast_signed();
        let unit = i64::from(quantum.max(1)) * 16;
        let by_power_units = if quantum == 1 { (by_power + 8) >> 4 } else { (by_power + unit / 2) / unit };
        let by_level = self.level.expect();
        let [power_miss, level_miss] = &mut self.misses;
        let expected = if *power_miss <= *level_miss { by_power_units } else { by_level };
        let usual = ratio.size;
        let off = self.surprise.code(stream, &mut ratio.size, value.wrapping_sub(expected));
        let value = expected.wrapping_add(off);
        if !(0..=100_000).contains(&value) {
            return value; // no current is so high; the caller refuses it
        }
        for (miss, expected) in [(power_miss, by_power_units), (level_miss, by_level)] {
            let off = u32::try_from(value.wrapping_sub(expected).unsigned_abs().min(1 << 20)).unwrap_or(0) << 8;
            *miss = miss.wrapping_sub(*miss >> 4).wrapping_add(off >> 4);
        }
        self.level.learn(value, usual.is_step(off.unsigned_abs()));
        if plain >= 16 {
            let log = 63_u32.wrapping_sub(plain.leading_zeros());
            let error = ((value * unit).wrapping_sub(by_power) << 16) >> log;
            let moved = error.checked_div(i64::from(ratio.seen)).unwrap_or(0);
            let factor = i64::from(ratio.factor).wrapping_add(moved).clamp(1 << 10, 1 << 24);
            ratio.factor = u32::try_from(factor).unwrap_or(ONE);
            ratio.seen = ratio.seen.saturating_add(1).min(20);
        }
        self.last = *ratio;
        value
    }

    /// The column is counted in units smaller by this factor from now on.
    pub fn rescale(&mut self, factor: u32) {
        self.level.rescale(i32::try_from(factor).unwrap_or(1));
        for ratio in self.ratios.iter_mut().chain([&mut self.last]) {
            ratio.size.mean = ratio.size.mean.saturating_mul(factor);
        }
    }
}

const PHASES: usize = 16;

/// The counter column.
#[derive(Clone, Debug)]
pub struct Counters {
    last: i64,
    /// Power of the last reading, mW.
    power: u32,
    time: i64,
    /// Energy since the counter's last step, in 1/65536 of its unit.
    since: i64,
    off: [[Odds; 2]; PHASES],
    surprise: Surprise,
    size: Size,
    is_started: bool,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            last: 0,
            power: 0,
            time: 0,
            since: 0,
            off: [[Odds::EVEN; 2]; PHASES],
            surprise: Surprise::default(),
            size: Size::default(),
            is_started: false,
        }
    }
}

impl Counters {
    /// A reading passes, with a counter or without. `unit` is the power of ten of mWh that the counter counts in.
    pub fn pass(&mut self, time: i64, power: u32, unit: u8) {
        let elapsed = time.wrapping_sub(self.time).clamp(0, 1 << 30);
        let work = (elapsed * (i64::from(self.power) + i64::from(power))) >> 1; // mW ms, at most 2^53
        // One unit is 3.6e6 mW ms and ten, a hundred, a thousand times as much; 2^16 units over that, without division.
        let (reciprocal, shift) = match unit {
            0 => (610_839, 25),
            1 => (488_671, 28),
            2 => (781_874, 32),
            _ => (625_499, 35),
        };
        let work = work.min(1 << 43);
        self.since = self.since.wrapping_add((work * reciprocal) >> shift).min(1 << 46);
        (self.time, self.power) = (time, power);
    }

    /// The next counter, in its units.
    pub fn code(&mut self, stream: &mut impl Stream, value: i64) -> i64 {
        if !self.is_started {
            self.is_started = true;
            self.last = self.surprise.code(stream, &mut Size::default(), value);
            self.since = 0x8000;
            return self.last;
        }
        let steps = self.since >> 16;
        let phase = usize::try_from(self.since >> 12 & 15).unwrap_or(0);
        let expected = self.last.wrapping_add(steps);
        let difference = value.wrapping_sub(expected);
        let Some(off) = self.off.get_mut(phase) else { return 0 };
        let [none, some] = off;
        let off = if stream.ask(if steps > 0 { some } else { none }, difference != 0) {
            self.surprise.code(stream, &mut self.size, difference)
        } else {
            0
        };
        let value = expected.wrapping_add(off);
        self.last = value;
        self.since = match off {
            0 => self.since & 0xffff,
            // The step came a little later or earlier than the integral says: it is due now, or just was.
            -1 => 0xffff,
            1 => 0,
            _ => 0x8000,
        };
        value
    }

    /// The column is counted in units smaller by this factor from now on.
    pub fn rescale(&mut self, factor: u32) {
        self.last = self.last.wrapping_mul(i64::from(factor));
        self.since = self.since.wrapping_mul(i64::from(factor));
    }
}
