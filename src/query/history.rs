//! A walk through what happened, page by page.
//!
//! Promises that pages of one walk, joined by [`Cursor`]s, show each event of the first page's range once, in order of
//! time, whatever happens meanwhile.

use crate::limits;
use crate::query::cursor::{Cursor, Listing};
use crate::query::readings::{Ahead, NoWalk, Wanted};
use crate::query::time::Moment;
use crate::store::event::Place;
use crate::store::{DeviceNumber, Event, EventPage, EventScan, Order, Position, Store, StoreError};
use crate::units::UnixMillis;

/// How far back a walk starts unless the request says so: a week, in milliseconds.
const USUAL_SPAN: i64 = 7 * 86_400_000;

/// A place in the events of some devices, or of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    scan: EventScan,
    far: UnixMillis,
}

impl Walk {
    /// The walk that a request wants, newest first unless it says otherwise, at the place where its cursor stands.
    ///
    /// # Errors
    /// [`NoWalk`] for an empty range and a cursor of another list or the other order.
    pub fn new(devices: Option<Vec<DeviceNumber>>, wanted: Wanted, now: UnixMillis) -> Result<Self, NoWalk> {
        // What happens in this very millisecond is in.
        let end = wanted.end.unwrap_or(Moment { time: now.plus(1), relative: true });
        let start = wanted.start.unwrap_or(Moment { time: end.time.plus(-USUAL_SPAN), relative: end.relative });
        let ahead = Ahead::of(Listing::History, (start, end), wanted.order, Order::Descending, wanted.cursor)?;
        let Ahead { from, to, order, far } = ahead;
        let after = wanted.cursor.map(|cursor| cursor.position);
        let after = after.map(|position| Place { time: position.time, rank: position.device.get() });
        Ok(Self { scan: EventScan { devices, from, to, order, after, limit: 0 }, far })
    }

    /// The next events, at most `limit` and at most [`limits::PAGE_ROWS`] of them.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read; the walk stays where it was.
    pub async fn page(&mut self, store: &Store, limit: usize) -> Result<EventPage, StoreError> {
        let page = store.events(EventScan { limit: limit.min(limits::PAGE_ROWS), ..self.scan.clone() }).await?;
        if let Some(last) = page.events.last() {
            self.scan.after = Some(last.place());
        }
        Ok(page)
    }

    /// Where the next page goes on. None before the first.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        let after = self.scan.after?;
        // An event's rank has the size of a device's number, and takes its place.
        let position = Position { time: after.time, device: DeviceNumber::new(after.rank) };
        Some(Cursor { listing: Listing::History, order: self.scan.order, position, far: self.far })
    }
}

/// An event and the id of whom it befell, for a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// To whom. None for what concerns the agent as a whole.
    pub device: Option<crate::reading::DeviceId>,
    /// What.
    pub event: Event,
}

impl Row {
    /// The row of an event.
    #[must_use]
    pub fn of(event: Event, store: &Store) -> Self {
        Self { device: event.device.and_then(|number| store.id(number)), event }
    }
}
