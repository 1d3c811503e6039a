//! One stream of a chunk: an adaptive binary range coder that grows from the front, and plain bits that grow from the back.
//!
//! Promises that what [`Reader`] takes with the same models is what [`Writer`] put, and that reading foreign bytes ends:
//! past the end come zeros. Needs 32-bit arithmetic only, and no division.

/// Below this the range gives up its highest byte.
const LOW_RANGE: u32 = 1 << 24;
/// The most plain bits moved at once.
const PLAIN: u32 = 16;

/// What is known of one yes-or-no question: how probable "no" is, in 1/65536.
#[derive(Clone, Copy, Debug)]
pub struct Odds {
    no: u16,
    /// Answers seen, up to the length of [`RATES`].
    seen: u8,
}

/// How far the n-th answer moves the odds, in 1/65536: 1/(n + 1.6), so that the first ones count most, down to 1/82.
const RATES: [u32; LIMIT] = {
    let mut rates = [0; LIMIT];
    let (mut n, mut tenths) = (0, 16);
    while n < LIMIT {
        if let Some((rate, _)) = rates.split_at_mut(n).1.split_first_mut() {
            *rate = 655_360 / tenths;
        }
        n += 1;
        tenths += 10;
    }
    rates
};
const LIMIT: usize = 80;
/// No answer is ever held for less probable than this.
const LEAST: u32 = 24;

impl Odds {
    /// Nothing known: even odds.
    pub const EVEN: Self = Self { no: 1 << 15, seen: 0 };

    #[inline(always)] // in every question: a call would cost as much as it does
    fn learn(&mut self, yes: bool) {
        let no = u32::from(self.no);
        let rate = RATES.get(usize::from(self.seen)).copied().unwrap_or(655_360 / (16 + 10 * 79));
        // Both products stay below 2^32: a rate is at most 40,960.
        let moved = if yes {
            no.wrapping_sub(no.wrapping_mul(rate) >> 16).max(LEAST)
        } else {
            no.wrapping_add((0x1_0000_u32.wrapping_sub(no)).wrapping_mul(rate) >> 16).min(0x1_0000 - LEAST)
        };
        let [low, high, ..] = moved.to_le_bytes();
        self.no = u16::from_le_bytes([low, high]);
        if usize::from(self.seen) < LIMIT - 1 {
            self.seen = self.seen.wrapping_add(1);
        }
    }
}

/// What a model speaks to, so that it is written once: a [`Writer`] puts what it is given, a [`Reader`] ignores that and
/// takes. Both return what stands in the stream.
pub trait Stream {
    /// A question and its answer.
    fn ask(&mut self, odds: &mut Odds, yes: bool) -> bool;
    /// The lowest `count` bits of `bits`, at most 64, as they are.
    fn plain(&mut self, bits: u64, count: u32) -> u64;
}

/// Writes one stream.
#[derive(Clone, Debug)]
pub struct Writer {
    low: u32,
    range: u32,
    front: Vec<u8>,
    back: Vec<u8>,
    held: u32,
    held_bits: u32,
}

impl Default for Writer {
    fn default() -> Self {
        Self { low: 0, range: u32::MAX, front: Vec::new(), back: Vec::new(), held: 0, held_bits: 0 }
    }
}

impl Stream for Writer {
    fn ask(&mut self, odds: &mut Odds, yes: bool) -> bool {
        let bound = (self.range >> 16).wrapping_mul(u32::from(odds.no)); // below the range: `no` is below 65536
        if yes {
            self.add(bound);
            self.range = self.range.wrapping_sub(bound);
        } else {
            self.range = bound;
        }
        odds.learn(yes);
        while self.range < LOW_RANGE {
            self.shift();
        }
        yes
    }

    fn plain(&mut self, bits: u64, count: u32) -> u64 {
        let (mut rest, mut left) = (bits, count);
        while left > PLAIN {
            self.put_few(rest & 0xffff, PLAIN);
            rest >>= PLAIN;
            left = left.wrapping_sub(PLAIN);
        }
        self.put_few(rest & !(u64::MAX << left), left);
        bits
    }
}

impl Writer {
    fn put_few(&mut self, bits: u64, count: u32) {
        let [a, b, ..] = bits.to_le_bytes();
        self.held |= u32::from(u16::from_le_bytes([a, b])) << self.held_bits; // held_bits is below 8
        self.held_bits = self.held_bits.wrapping_add(count);
        while self.held_bits >= 8 {
            let [low, ..] = self.held.to_le_bytes();
            self.back.push(low);
            self.held >>= 8;
            self.held_bits = self.held_bits.wrapping_sub(8);
        }
    }

    fn add(&mut self, amount: u32) {
        let (low, mut carry) = self.low.overflowing_add(amount);
        self.low = low;
        for byte in self.front.iter_mut().rev() {
            if !carry {
                break;
            }
            (*byte, carry) = byte.overflowing_add(1);
        }
    }

    fn shift(&mut self) {
        let [high, ..] = self.low.to_be_bytes();
        self.front.push(high);
        self.low <<= 8;
        self.range <<= 8;
    }

    /// The most bytes that [`Self::finish`] gives now.
    pub fn len(&self) -> usize {
        self.front.len() + self.back.len() + 2 + usize::from(self.held_bits > 0)
    }

    /// The stream.
    pub fn finish(mut self) -> Vec<u8> {
        // A number in the range whose rest may be anything, so that the reader may run on into the bits behind.
        if self.range != u32::MAX || self.low != 0 {
            let mask = (LOW_RANGE >> 1).wrapping_sub(1);
            self.add(mask);
            self.low &= !mask;
            self.shift();
            self.shift();
        }
        if self.held_bits > 0 {
            let [low, ..] = self.held.to_le_bytes();
            self.back.push(low);
        }
        self.front.extend(self.back.iter().rev());
        self.front
    }
}

/// Reads one stream.
pub struct Reader<'a> {
    code: u32,
    range: u32,
    front: std::slice::Iter<'a, u8>,
    back: std::iter::Rev<std::slice::Iter<'a, u8>>,
    held: u32,
    held_bits: u32,
}

impl<'a> Reader<'a> {
    /// Reads `stream`.
    pub fn new(stream: &'a [u8]) -> Self {
        let mut front = stream.iter();
        let code = [0; 4].map(|_: u8| front.next().copied().unwrap_or(0));
        let (code, range) = (u32::from_be_bytes(code), u32::MAX);
        Self { code, range, front, back: stream.iter().rev(), held: 0, held_bits: 0 }
    }

    #[inline]
    fn take_few(&mut self, count: u32) -> u32 {
        while self.held_bits < count {
            self.held |= self.back.next().map_or(0, |byte| u32::from(*byte)) << self.held_bits;
            self.held_bits = self.held_bits.wrapping_add(8);
        }
        let bits = self.held & !(u32::MAX << count);
        self.held >>= count;
        self.held_bits = self.held_bits.wrapping_sub(count);
        bits
    }
}

impl Stream for Reader<'_> {
    #[inline]
    fn ask(&mut self, odds: &mut Odds, _: bool) -> bool {
        let bound = (self.range >> 16).wrapping_mul(u32::from(odds.no));
        let yes = self.code >= bound;
        if yes {
            self.code = self.code.wrapping_sub(bound);
            self.range = self.range.wrapping_sub(bound);
        } else {
            self.range = bound;
        }
        odds.learn(yes);
        while self.range < LOW_RANGE {
            self.range <<= 8;
            self.code = self.code << 8 | self.front.next().map_or(0, |byte| u32::from(*byte));
        }
        yes
    }

    #[inline]
    fn plain(&mut self, _: u64, count: u32) -> u64 {
        if count <= PLAIN {
            return self.take_few(count).into();
        }
        let (mut bits, mut at) = (0, 0);
        while at < count {
            let few = count.wrapping_sub(at).min(PLAIN);
            bits |= u64::from(self.take_few(few)) << at;
            at = at.wrapping_add(few);
        }
        bits
    }
}
