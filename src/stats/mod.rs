//! What the agent notes about itself: how long things took, how often they failed, how much of what there is.
//!
//! Owns histograms by operation and by route, counters, and the log of what was slow. Others report here and know nothing of
//! who asks. Promises bounded memory (a kilobyte per operation and route), no allocation and no lock on the way of a
//! reading, and at most one line a minute about each kind of slowness. Nothing here is written to disk.

pub mod histogram;
pub mod memory;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::limits;
use histogram::Histogram;

/// A kind of work that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// One poll of one plug, with all its exchanges.
    Poll,
    /// A login to a plug.
    Handshake,
    /// A commit to the disk.
    Commit,
    /// The part of a commit that sealed chunks.
    Seal,
    /// A read of stored readings or buckets.
    Query,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] = [Self::Poll, Self::Handshake, Self::Commit, Self::Seal, Self::Query];

    /// The name in replies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Handshake => "handshake",
            Self::Commit => "commit",
            Self::Seal => "seal",
            Self::Query => "query",
        }
    }

    /// What is longer than this is said in the log.
    const fn slow(self) -> Duration {
        match self {
            Self::Poll | Self::Handshake => limits::SLOW_POLL,
            Self::Commit | Self::Seal => limits::SLOW_COMMIT,
            Self::Query => limits::SLOW_QUERY,
        }
    }
}

/// How one kind of work went.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// How long it took, the failures included.
    pub times: Histogram,
    /// How often it failed.
    pub errors: u64,
}

impl Work {
    fn note(&mut self, took: Duration, ok: bool) {
        self.times.note(took);
        self.errors = self.errors.saturating_add(u64::from(!ok));
    }
}

/// How the requests of one route went.
#[derive(Clone, Debug, Default)]
pub struct RouteWork {
    /// Until the reply began. An error is a status of 500 or above.
    pub work: Work,
    /// Replies by status.
    pub statuses: BTreeMap<u16, u64>,
}

/// What is said of HTTP connections.
#[derive(Debug, Default)]
pub struct Connections {
    /// Open now.
    pub open: Cell<usize>,
    /// Accepted.
    pub accepted: Cell<u64>,
    /// Sent away because all were in use.
    pub refused: Cell<u64>,
    /// Closed to make room, or because they took too long.
    pub cut: Cell<u64>,
}

/// What is said of those who listen to events.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Listening now.
    pub open: Cell<usize>,
    /// Sent away because all places were taken.
    pub refused: Cell<u64>,
    /// Dropped because they did not keep up.
    pub dropped: Cell<u64>,
    /// Batches made.
    pub batches: Cell<u64>,
    /// Readings in them.
    pub readings: Cell<u64>,
}

/// Adds one.
pub fn count(counter: &Cell<u64>) {
    counter.set(counter.get().saturating_add(1));
}

/// Where everything is noted. One per agent, handed to whoever has something to report.
#[derive(Debug, Default)]
pub struct Stats {
    operations: RefCell<BTreeMap<Operation, Work>>,
    routes: RefCell<BTreeMap<&'static str, RouteWork>>,
    poll_failures: RefCell<BTreeMap<&'static str, u64>>,
    /// HTTP connections.
    pub connections: Connections,
    /// Listeners to events.
    pub listeners: Listeners,
    /// How often the memory guard dropped the caches.
    pub guard_strikes: Cell<u64>,
    since: Stopwatch,
    /// By kind: when a line was last written, and how many were not.
    said: RefCell<BTreeMap<&'static str, (Duration, u64)>>,
}

impl Stats {
    /// Notes that `operation` took so long, and whether it did what it should. When it was slow, the log says so with what it
    /// did.
    pub fn note<D: Display>(&self, operation: Operation, took: Duration, ok: bool, did: impl FnOnce() -> D) {
        self.operations.borrow_mut().entry(operation).or_default().note(took, ok);
        if took >= operation.slow() {
            self.say_slow(operation.name(), took, did);
        }
    }

    /// Notes why a poll failed, in one of few words.
    pub fn poll_failed(&self, kind: &'static str) {
        let mut failures = self.poll_failures.borrow_mut();
        let count = failures.entry(kind).or_default();
        *count = count.saturating_add(1);
    }

    /// Notes a reply to a request of `route`. `did` says what the request was.
    pub fn replied<D: Display>(&self, route: &'static str, status: u16, took: Duration, did: impl FnOnce() -> D) {
        let mut routes = self.routes.borrow_mut();
        let route = routes.entry(route).or_default();
        route.work.note(took, status < 500);
        let count = route.statuses.entry(status).or_default();
        *count = count.saturating_add(1);
        drop(routes);
        if took >= limits::SLOW_REQUEST {
            self.say_slow("request", took, did);
        }
    }

    /// How an operation went so far.
    #[must_use]
    pub fn work(&self, operation: Operation) -> Work {
        self.operations.borrow().get(&operation).cloned().unwrap_or_default()
    }

    /// Hands every route that was asked for to `visit`, in order of path.
    pub fn each_route(&self, mut visit: impl FnMut(&'static str, &RouteWork)) {
        self.routes.borrow().iter().for_each(|(route, work)| visit(route, work));
    }

    /// Failed polls by kind.
    #[must_use]
    pub fn poll_failures(&self) -> Vec<(&'static str, u64)> {
        self.poll_failures.borrow().iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    /// How long the agent has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.since.elapsed()
    }

    /// One line a minute for each kind.
    fn say_slow<D: Display>(&self, kind: &'static str, took: Duration, did: impl FnOnce() -> D) {
        let (now, mut said) = (self.since.elapsed(), self.said.borrow_mut());
        let more = match said.get_mut(kind) {
            Some((last, untold)) if now < last.saturating_add(limits::SLOW_LOG_EVERY) => {
                *untold = untold.saturating_add(1);
                return;
            }
            Some((_, untold)) => *untold,
            None => 0,
        };
        said.insert(kind, (now, 0));
        let others = if more > 0 { format!("; {more} more were slow since the last such line") } else { String::new() };
        let did = did();
        log::warn!("a {kind} took {} ms: {did}{others}", took.as_millis());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_said_once_a_minute_and_counted_always() {
        let stats = Stats::default();
        let said = Cell::new(0);
        for _ in 0..5 {
            stats.note(Operation::Commit, limits::SLOW_COMMIT, false, || {
                said.set(said.get() + 1);
                "3 readings"
            });
        }
        stats.note(Operation::Commit, Duration::from_millis(1), true, || -> &str { unreachable!("it was quick") });
        assert_eq!(said.get(), 1);
        let commits = stats.work(Operation::Commit);
        assert_eq!((commits.times.count(), commits.errors, commits.times.max()), (6, 5, limits::SLOW_COMMIT));
        assert_eq!(stats.said.borrow().get("commit").unwrap().1, 4);
    }

    #[test]
    fn a_route_has_its_statuses() {
        let stats = Stats::default();
        for status in [200, 200, 304, 503] {
            stats.replied("/a", status, Duration::from_millis(2), || "GET /a");
        }
        let mut seen = Vec::new();
        stats.each_route(|route, work| seen.push((route, work.clone())));
        let (route, work) = &seen[0];
        assert_eq!((*route, work.work.errors, work.work.times.count()), ("/a", 1, 4));
        assert_eq!(work.statuses.iter().map(|(s, n)| (*s, *n)).collect::<Vec<_>>(), [(200, 2), (304, 1), (503, 1)]);
    }
}
