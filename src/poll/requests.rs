//! The way to ask for newest values from above: a wish, never a connection.
//!
//! Owns the queue between those who want a value younger than the one in memory and the loop that alone may ask a plug.
//! Promises: however many want the same plug, it is asked once, when the schedule allows it; the queue and the wait have
//! an end; whoever asked finds the value where everything else is read, in store and fleet.

use std::time::Duration;

use smol::channel::{Receiver, Sender, bounded};

use crate::clock::{Clock, within};
use crate::limits;
use crate::reading::Mac;

/// A wish for a plug's newest value. It is over when `done` is dropped, whatever came of it.
#[derive(Debug)]
pub(super) struct Request {
    /// Whose.
    pub plug: Mac,
    /// Held until then; nothing is ever sent.
    pub done: Sender<()>,
}

/// The queue of wishes. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Requests {
    to: Sender<Request>,
    from: Receiver<Request>,
}

impl Default for Requests {
    fn default() -> Self {
        let (to, from) = bounded(limits::PLUGS);
        Self { to, from }
    }
}

impl Requests {
    /// A queue that nobody serves: every wish is over at once.
    #[must_use]
    pub fn unserved() -> Self {
        let requests = Self::default();
        requests.to.close();
        requests
    }

    /// Waits until each of these plugs has been asked once more, or will not be soon (it is in its back-off, or its
    /// minimum interval is far from over): at most [`limits::POLL_BUDGET`]. A wish that finds the queue full is dropped.
    pub async fn freshen(&self, plugs: impl IntoIterator<Item = Mac>, clock: &dyn Clock) {
        let (done, over) = bounded(1);
        for plug in plugs {
            if self.to.try_send(Request { plug, done: done.clone() }).is_err() {
                break; // full, or nobody there: the value in memory has to do
            }
        }
        drop(done);
        let until = clock.elapsed().saturating_add(limits::POLL_BUDGET);
        let _ = within(clock, until, over.recv()).await; // ends with an error once every sender is gone
    }

    /// The next wish.
    pub(super) async fn next(&self) -> Option<Request> {
        self.from.recv().await.ok()
    }

    /// The next wish, if one is there.
    pub(super) fn try_next(&self) -> Option<Request> {
        self.from.try_recv().ok()
    }
}

/// Whether a turn at `due` is soon enough to be waited for.
pub(super) fn is_soon(due: Duration, now: Duration) -> bool {
    due <= now.saturating_add(limits::POLL_BUDGET)
}
