//! Numbers, times and ids straight into a reply's buffer.
//!
//! Each value is written as its `Display` would write it, tests hold it to that, at a quarter of the instructions: most of a
//! reply is made of these.

use std::io::Write as _;

use jiff::fmt::temporal::DateTimePrinter;

use crate::reading::DeviceId;
use crate::tariff::Cost;
use crate::units::{Thousandths, UnixMillis};

/// A value that is written without escaping.
pub trait Plain {
    /// Appends it to `out`.
    fn put(self, out: &mut Vec<u8>);
}

macro_rules! integers {
    ($($kind:ty)*) => { $(
        impl Plain for $kind {
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(itoa::Buffer::new().format(self).as_bytes());
            }
        }
    )* };
}

integers!(u32 i64 u64 u128);

impl Plain for bool {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self { b"true" } else { b"false" });
    }
}

impl Plain for &str {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl Plain for Thousandths {
    fn put(self, out: &mut Vec<u8>) {
        let (whole, rest) = (self.0 / 1_000, self.0 % 1_000);
        whole.put(out);
        if rest > 0 {
            let digits = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + u8::try_from(digit).unwrap_or(0));
            out.push(b'.');
            out.extend_from_slice(match digits.as_slice() {
                [first @ .., b'0', b'0'] | [first @ .., b'0'] => first,
                all => all,
            });
        }
    }
}

impl Plain for DeviceId {
    fn put(self, out: &mut Vec<u8>) {
        let hex = |digit: u8| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        out.extend(self.plug.bytes().iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]));
        if let Some(outlet) = self.outlet {
            out.push(b'.');
            u32::from(outlet).put(out);
        }
    }
}

impl Plain for UnixMillis {
    fn put(self, out: &mut Vec<u8>) {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        if let Ok(time) = jiff::Timestamp::from_millisecond(self.get()) {
            let _ = PRINTER.print_timestamp(&time, out); // a Vec takes everything, and the range is jiff's
        }
    }
}

impl Plain for Cost {
    fn put(self, out: &mut Vec<u8>) {
        let _ = write!(out, "{self}"); // a Vec takes everything
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use super::*;
    use crate::reading::Mac;

    fn same(value: impl Plain + Display + Copy) {
        let mut out = b"x".to_vec();
        value.put(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("x{value}"));
    }

    #[test]
    fn every_value_is_written_as_it_is_shown() {
        let mut random = fastrand::Rng::with_seed(1);
        for n in (0..2_000).chain((0..2_000).map(|_| random.u64(..))) {
            same(Thousandths(n));
            same(n);
            same(u128::from(n) * u128::from(n));
            same(UnixMillis::new(i64::try_from(n % 253_370_764_800_000).unwrap()));
            let mac = Mac::new(std::array::from_fn(|byte| n.to_le_bytes()[byte]));
            same(DeviceId::plug(mac));
            same(DeviceId::outlet(mac, n.to_le_bytes()[7]));
        }
        for n in [i64::MIN, -1, 0, i64::MAX] {
            same(n);
        }
        same(UnixMillis::MIN);
        same(UnixMillis::MAX);
        same(true);
        same(false);
        same("word");
    }
}
