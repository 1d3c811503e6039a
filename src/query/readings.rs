//! A walk through the readings of some devices in a range of time, page by page.
//!
//! Promises that pages of one walk, joined by [`Cursor`]s, show each reading of the first page's range once, in order.
//! Readings that arrive meanwhile shift nothing: a place in the walk is a time and a device, not a count.

use std::fmt;

use crate::limits;
use crate::query::cursor::{Cursor, Listing};
use crate::query::time::Moment;
use crate::store::chunk::Columns;
use crate::store::{DeviceNumber, Order, Page, Position, Row, Scan, Store, StoreError};
use crate::units::UnixMillis;

/// How far back a walk starts unless the request says so: a day, in milliseconds.
const USUAL_SPAN: i64 = 86_400_000;

/// What a request said about its walk through a range of time. Absent is the usual of what is listed, from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The start of the range.
    pub start: Option<Moment>,
    /// Its end, not in it.
    pub end: Option<Moment>,
    /// Which end first.
    pub order: Option<Order>,
    /// Where an earlier page ended.
    pub cursor: Option<Cursor>,
}

/// Why there is no such walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWalk {
    /// The range holds no moment.
    Empty {
        /// Its start.
        start: UnixMillis,
        /// Its end.
        end: UnixMillis,
    },
    /// The cursor belongs to a walk the other way.
    OtherOrder,
    /// The cursor belongs to a list of something else.
    OtherList,
}

impl fmt::Display for NoWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty { start, end } => write!(f, "the range is empty: start is {start}, end is {end}"),
            Self::OtherOrder => f.write_str("the cursor comes from a list in the other order"),
            Self::OtherList => f.write_str("the cursor comes from another list"),
        }
    }
}

impl std::error::Error for NoWalk {}

/// The part of time that a walk has before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ahead {
    pub from: UnixMillis,
    pub to: UnixMillis,
    pub order: Order,
    /// The bound that the walk runs towards.
    pub far: UnixMillis,
}

impl Ahead {
    /// What of `[start, end)` lies ahead of a cursor, `usual` first unless the request or the cursor says otherwise.
    pub fn of(
        listing: Listing,
        (start, end): (Moment, Moment),
        order: Option<Order>,
        usual: Order,
        cursor: Option<Cursor>,
    ) -> Result<Self, NoWalk> {
        if end.time <= start.time {
            return Err(NoWalk::Empty { start: start.time, end: end.time });
        }
        let order = order.or(cursor.map(|cursor| cursor.order)).unwrap_or(usual);
        let (mut from, mut to) = (start.time, end.time);
        if let Some(cursor) = cursor {
            if cursor.listing != listing {
                return Err(NoWalk::OtherList);
            }
            if cursor.order != order {
                return Err(NoWalk::OtherOrder);
            }
            // What moves with the clock stays where the first page had it; what lies behind the cursor is done.
            let (behind_start, behind_end) = match order {
                Order::Ascending => (cursor.position.time, cursor.far),
                Order::Descending => (cursor.far, cursor.position.time.plus(1)),
            };
            from = if start.relative { behind_start } else { from };
            to = if end.relative { behind_end } else { to };
        }
        let far = match order {
            Order::Ascending => to,
            Order::Descending => from,
        };
        Ok(Self { from, to, order, far })
    }
}

/// A place in the readings of some devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    scan: Scan,
    far: UnixMillis,
    /// Whether nothing is left of the range. What arrives now does not belong to this walk.
    over: bool,
}

impl Walk {
    /// The walk that a request wants, at the place where its cursor stands: a day up to now, newest first, unless it says
    /// otherwise. Columns not named may be absent in its rows.
    ///
    /// # Errors
    /// [`NoWalk`] for an empty range and a cursor of another list or the other order.
    pub fn new(devices: Vec<DeviceNumber>, columns: Columns, wanted: Wanted, now: UnixMillis) -> Result<Self, NoWalk> {
        // A reading of this very millisecond is in.
        let end = wanted.end.unwrap_or(Moment { time: now.plus(1), relative: true });
        let start = wanted.start.unwrap_or(Moment { time: end.time.plus(-USUAL_SPAN), relative: end.relative });
        let ahead = Ahead::of(Listing::Readings, (start, end), wanted.order, Order::Descending, wanted.cursor)?;
        let Ahead { from, to, order, far } = ahead;
        let after = wanted.cursor.map(|cursor| cursor.position);
        Ok(Self { scan: Scan { devices, from, to, order, after, limit: 0, columns }, far, over: false })
    }

    /// The next rows, at most `limit` and at most [`limits::PAGE_ROWS`] of them.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read; the walk stays where it was.
    pub async fn page(&mut self, store: &Store, limit: usize) -> Result<Page, StoreError> {
        if self.over || self.scan.devices.is_empty() || self.scan.from >= self.scan.to {
            self.over = true;
            return Ok(Page::default());
        }
        let page = store.scan(Scan { limit: limit.min(limits::PAGE_ROWS), ..self.scan.clone() }).await?;
        if let Some(last) = page.rows.last().map(Row::position) {
            self.go_past(last);
        }
        self.over = !page.more;
        Ok(page)
    }

    fn go_past(&mut self, last: Position) {
        self.scan.after = Some(last);
        match self.scan.order {
            Order::Ascending => self.scan.from = self.scan.from.max(last.time),
            Order::Descending => self.scan.to = self.scan.to.min(last.time.plus(1)),
        }
    }

    /// The cursor that goes on after the last row seen. None before the first, and at the end.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.scan.after.filter(|_| !self.over).map(|position| Cursor {
            listing: Listing::Readings,
            order: self.scan.order,
            position,
            far: self.far,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_423_474_120);

    fn fixed(time: UnixMillis) -> Option<Moment> {
        Some(Moment { time, relative: false })
    }

    #[test]
    fn the_usual_walk_is_a_day_up_to_and_with_this_millisecond_newest_first() {
        let walk = Walk::new(vec![], Columns::ALL, Wanted::default(), NOW).unwrap();
        assert_eq!((walk.scan.from, walk.scan.to), (NOW.plus(1 - USUAL_SPAN), NOW.plus(1)));
        assert_eq!((walk.scan.order, walk.far, walk.cursor()), (Order::Descending, walk.scan.from, None));
    }

    #[test]
    fn an_empty_range_is_named_with_both_ends() {
        let wanted = Wanted { start: fixed(NOW), end: fixed(NOW), ..Wanted::default() };
        let error = Walk::new(vec![], Columns::ALL, wanted, NOW).unwrap_err();
        assert_eq!(error, NoWalk::Empty { start: NOW, end: NOW });
        assert!(error.to_string().contains("start is 2026-11-23T08:44:34.120Z"));
    }

    #[test]
    fn a_range_that_moves_with_the_clock_stays_where_the_first_page_had_it() {
        for order in [Order::Ascending, Order::Descending] {
            let wanted = Wanted { order: Some(order), ..Wanted::default() };
            let mut first = Walk::new(vec![], Columns::ALL, wanted, NOW).unwrap();
            let (from, to) = (first.scan.from, first.scan.to);
            let place = Position { time: from.plus(5), device: DeviceNumber::new(0) };
            first.go_past(place);
            let later = NOW.plus(3_600_000);
            let next = Walk::new(vec![], Columns::ALL, Wanted { cursor: first.cursor(), ..wanted }, later).unwrap();
            assert_eq!(next, first);
            match order {
                Order::Ascending => assert_eq!((next.scan.from, next.scan.to), (place.time, to)),
                Order::Descending => assert_eq!((next.scan.from, next.scan.to), (from, place.time.plus(1))),
            }
            let other = match order {
                Order::Ascending => Order::Descending,
                Order::Descending => Order::Ascending,
            };
            let turned = Wanted { order: Some(other), cursor: first.cursor(), ..Wanted::default() };
            assert_eq!(Walk::new(vec![], Columns::ALL, turned, later), Err(NoWalk::OtherOrder));
        }
    }
}
