//! The place where a page ended, as an opaque text that a client hands back for the next one. Pure.
//!
//! ```text
//! u8 version | u8 list and order | i64 time, ms | u32 device number | i64 far end, ms | u32 CRC-32 over all before
//! ```
//!
//! Big-endian, in lower-case hex. The far end is the bound of the range that the walk runs towards: a range that was
//! given relative to the clock stays the one of the first page, so that a slow walk loses nothing at its end.

use std::fmt;
use std::str::FromStr;

use crate::rollup::Step;
use crate::store::{DeviceNumber, Order, Position};
use crate::units::UnixMillis;

const VERSION: u8 = 1;
const BODY: usize = 22;
const LENGTH: usize = BODY + 4;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Readings.
    Readings,
    /// Buckets of this length.
    Rollups(Step),
    /// Events; the position holds an event's rank where others hold a device's number.
    History,
}

impl Listing {
    const ALL: [Self; 6] = [
        Self::Readings,
        Self::Rollups(Step::QuarterHour),
        Self::Rollups(Step::Hour),
        Self::Rollups(Step::Day),
        Self::Rollups(Step::Month),
        Self::History,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Readings => 0,
            Self::Rollups(Step::QuarterHour) => 2,
            Self::Rollups(Step::Hour) => 4,
            Self::Rollups(Step::Day) => 6,
            Self::Rollups(Step::Month) => 8,
            Self::History => 10,
        }
    }
}

/// Where a page ended, and the walk that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// What is walked through.
    pub listing: Listing,
    /// Which way the walk goes.
    pub order: Order,
    /// The last row of the page.
    pub position: Position,
    /// The bound of the range ahead: its end when walking forwards, its start when walking back.
    pub far: UnixMillis,
}

/// A text that is not a cursor of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotACursor;

impl fmt::Display for NotACursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a cursor is the `next` of the page before, unchanged")
    }
}

impl std::error::Error for NotACursor {}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(VERSION);
        let order = match self.order {
            Order::Ascending => 0,
            Order::Descending => 1,
        };
        bytes.push(self.listing.code() | order);
        bytes.extend(self.position.time.get().to_be_bytes());
        bytes.extend(self.position.device.get().to_be_bytes());
        bytes.extend(self.far.get().to_be_bytes());
        bytes.extend(check(&bytes));
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let bytes: [u8; LENGTH] = parse_hex(text).ok_or(NotACursor)?;
        let (body, sum) = bytes.split_at(BODY);
        if check(body) != sum {
            return Err(NotACursor);
        }
        let mut input = body;
        let [version] = take(&mut input)?;
        let [list] = take(&mut input)?;
        if version != VERSION {
            return Err(NotACursor);
        }
        let order = if list & 1 == 0 { Order::Ascending } else { Order::Descending };
        let listing = Listing::ALL.into_iter().find(|known| known.code() == list & !1).ok_or(NotACursor)?;
        let time = UnixMillis::new(i64::from_be_bytes(take(&mut input)?));
        let device = DeviceNumber::new(u32::from_be_bytes(take(&mut input)?));
        let far = UnixMillis::new(i64::from_be_bytes(take(&mut input)?));
        Ok(Self { listing, order, position: Position { time, device }, far })
    }
}

/// Tells a slip from a cursor; it keeps nobody from making one.
fn check(body: &[u8]) -> [u8; 4] {
    crc32fast::hash(body).to_be_bytes()
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], NotACursor> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(NotACursor)?;
    *input = rest;
    Ok(*head)
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut digits = text.bytes();
    for byte in &mut bytes {
        let mut digit = || match digits.next()? {
            digit @ b'0'..=b'9' => Some(digit - b'0'),
            letter @ b'a'..=b'f' => Some(letter - b'a' + 10),
            _ => None,
        };
        let (high, low) = (digit()?, digit()?);
        *byte = high << 4 | low;
    }
    digits.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_cursor() -> impl Strategy<Value = Cursor> {
        let times = 0..=UnixMillis::MAX.get();
        let lists = 0..Listing::ALL.len();
        (any::<bool>(), lists, times.clone(), any::<u32>(), times).prop_map(|(ascending, list, time, device, far)| {
            Cursor {
                listing: Listing::ALL[list],
                order: if ascending { Order::Ascending } else { Order::Descending },
                position: Position { time: UnixMillis::new(time), device: DeviceNumber::new(device) },
                far: UnixMillis::new(far),
            }
        })
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_went(cursor in any_cursor()) {
            let text = cursor.to_string();
            prop_assert_eq!(text.parse::<Cursor>(), Ok(cursor));
            prop_assert!(text.len() == 2 * LENGTH && text.bytes().all(|b| b.is_ascii_alphanumeric()));
        }

        #[test]
        fn one_wrong_digit_is_noticed(cursor in any_cursor(), at in 0..2 * LENGTH, other in 0u32..16) {
            let mut text = cursor.to_string().into_bytes();
            let digit = char::from_digit(other, 16).unwrap() as u8;
            prop_assume!(text[at] != digit);
            text[at] = digit;
            prop_assert_eq!(String::from_utf8(text).unwrap().parse::<Cursor>(), Err(NotACursor));
        }

        #[test]
        fn garbage_never_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<Cursor>();
        }

        #[test]
        fn hex_garbage_is_refused_or_comes_back(text in "[0-9a-f]{52}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
            }
        }
    }
}
