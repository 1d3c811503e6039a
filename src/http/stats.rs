//! `/api/v1/stats`: the agent about itself, for people and scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Response;
use serde::Serialize;

use crate::http::App;
use crate::http::cache::Hits;
use crate::http::reply::{Body, json};
use crate::http::schema::Schema;
use crate::poll::fleet::Presence;
use crate::stats::memory::Process;
use crate::stats::{Operation, RouteWork, Work};

#[derive(Serialize)]
struct View {
    version: &'static str,
    uptime_s: u64,
    operations: BTreeMap<&'static str, WorkView>,
    routes: BTreeMap<&'static str, RouteView>,
    polls: PollsView,
    store: StoreView,
    connections: ConnectionsView,
    events: EventsView,
    memory: Option<MemoryView>,
}

/// Times in milliseconds; null before the first.
#[derive(Serialize)]
struct WorkView {
    count: u64,
    errors: u64,
    mean_ms: Option<f64>,
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

#[derive(Serialize)]
struct RouteView {
    #[serde(flatten)]
    work: WorkView,
    statuses: BTreeMap<u16, u64>,
    /// Null for a route that is not cached.
    cache: Option<CacheView>,
}

#[derive(Serialize)]
struct CacheView {
    hits: u64,
    misses: u64,
    hit_rate: f64,
}

#[derive(Serialize)]
struct PollsView {
    online: usize,
    offline: usize,
    failures: BTreeMap<&'static str, u64>,
    late_mean_ms: Option<f64>,
    late_p99_ms: f64,
    late_max_ms: f64,
}

#[derive(Serialize)]
struct StoreView {
    batches: u64,
    readings: u64,
    pending: usize,
    dropped: u64,
    chunks_sealed: u64,
    head_batches: usize,
    commits: u64,
    file_commits: u64,
    written_bytes: u64,
    recent_bytes: usize,
}

#[derive(Serialize)]
struct ConnectionsView {
    open: usize,
    accepted: u64,
    refused: u64,
    cut: u64,
}

#[derive(Serialize)]
struct EventsView {
    subscribers: usize,
    refused: u64,
    dropped: u64,
    batches: u64,
    readings: u64,
}

#[derive(Serialize)]
struct MemoryView {
    anonymous_bytes: u64,
    resident_bytes: u64,
    peak_bytes: u64,
    guard_strikes: u64,
    written_bytes: Option<u64>,
}

const MS: Schema = Schema::Maybe(&Schema::Number);

const WORK: Schema = Schema::Object(&[
    ("count", Schema::Whole),
    ("errors", Schema::Whole),
    ("mean_ms", MS),
    ("p50_ms", MS),
    ("p90_ms", MS),
    ("p99_ms", MS),
    ("max_ms", MS),
]);

const ROUTE: Schema = Schema::Object(&[
    ("count", Schema::Whole),
    ("errors", Schema::Whole),
    ("mean_ms", MS),
    ("p50_ms", MS),
    ("p90_ms", MS),
    ("p99_ms", MS),
    ("max_ms", MS),
    ("statuses", Schema::Map(&Schema::Whole)),
    (
        "cache",
        Schema::Maybe(&Schema::Object(&[
            ("hits", Schema::Whole),
            ("misses", Schema::Whole),
            ("hit_rate", Schema::Number),
        ])),
    ),
]);

/// The form of the reply.
pub const STATS: Schema = Schema::Object(&[
    ("version", Schema::Text),
    ("uptime_s", Schema::Whole),
    ("operations", Schema::Map(&WORK)),
    ("routes", Schema::Map(&ROUTE)),
    (
        "polls",
        Schema::Object(&[
            ("online", Schema::Whole),
            ("offline", Schema::Whole),
            ("failures", Schema::Map(&Schema::Whole)),
            ("late_mean_ms", MS),
            ("late_p99_ms", Schema::Number),
            ("late_max_ms", Schema::Number),
        ]),
    ),
    (
        "store",
        Schema::Object(&[
            ("batches", Schema::Whole),
            ("readings", Schema::Whole),
            ("pending", Schema::Whole),
            ("dropped", Schema::Whole),
            ("chunks_sealed", Schema::Whole),
            ("head_batches", Schema::Whole),
            ("commits", Schema::Whole),
            ("file_commits", Schema::Whole),
            ("written_bytes", Schema::Whole),
            ("recent_bytes", Schema::Whole),
        ]),
    ),
    (
        "connections",
        Schema::Object(&[
            ("open", Schema::Whole),
            ("accepted", Schema::Whole),
            ("refused", Schema::Whole),
            ("cut", Schema::Whole),
        ]),
    ),
    (
        "events",
        Schema::Object(&[
            ("subscribers", Schema::Whole),
            ("refused", Schema::Whole),
            ("dropped", Schema::Whole),
            ("batches", Schema::Whole),
            ("readings", Schema::Whole),
        ]),
    ),
    (
        "memory",
        Schema::Maybe(&Schema::Object(&[
            ("anonymous_bytes", Schema::Whole),
            ("resident_bytes", Schema::Whole),
            ("peak_bytes", Schema::Whole),
            ("guard_strikes", Schema::Whole),
            ("written_bytes", Schema::Maybe(&Schema::Whole)),
        ])),
    ),
]);

/// Everything that the agent notes about itself.
#[must_use]
pub fn stats(app: &App) -> Response<Body> {
    let stats = &app.stats;
    let cache: BTreeMap<_, _> = app.cache.counts().into_iter().collect();
    let mut routes = BTreeMap::new();
    stats.each_route(|route, work| {
        routes.insert(route, route_view(work, cache.get(route)));
    });
    let figures = app.store.figures();
    let (connections, listeners) = (&stats.connections, &stats.listeners);
    json(&View {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: stats.uptime().as_secs(),
        operations: Operation::ALL.map(|operation| (operation.name(), view(&stats.work(operation)))).into(),
        routes,
        polls: polls(app),
        store: StoreView {
            batches: figures.batches,
            readings: figures.readings,
            pending: figures.pending,
            dropped: figures.dropped,
            chunks_sealed: figures.chunks,
            head_batches: figures.head_batches,
            commits: figures.commits,
            file_commits: figures.file_commits,
            written_bytes: figures.written,
            recent_bytes: figures.recent_bytes,
        },
        connections: ConnectionsView {
            open: connections.open.get(),
            accepted: connections.accepted.get(),
            refused: connections.refused.get(),
            cut: connections.cut.get(),
        },
        events: EventsView {
            subscribers: listeners.open.get(),
            refused: listeners.refused.get(),
            dropped: listeners.dropped.get(),
            batches: listeners.batches.get(),
            readings: listeners.readings.get(),
        },
        memory: Process::now().map(|process| MemoryView {
            anonymous_bytes: process.anonymous,
            resident_bytes: process.resident,
            peak_bytes: process.peak,
            guard_strikes: stats.guard_strikes.get(),
            written_bytes: process.written,
        }),
    })
}

fn polls(app: &App) -> PollsView {
    let fleet = app.fleet.borrow();
    let online = fleet.plugs().filter(|plug| plug.presence == Presence::Online).count();
    let late = fleet.lateness;
    PollsView {
        online,
        offline: fleet.plugs().count() - online + fleet.unmet().count(),
        failures: app.stats.poll_failures().into_iter().collect(),
        late_mean_ms: u32::try_from(late.polls).ok().and_then(|polls| late.total.checked_div(polls)).map(millis),
        late_p99_ms: millis(late.quantile(990)),
        late_max_ms: millis(late.worst),
    }
}

fn route_view(route: &RouteWork, cache: Option<&Hits>) -> RouteView {
    let rate = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    RouteView {
        work: view(&route.work),
        statuses: route.statuses.clone(),
        cache: cache.map(|Hits { hits, misses }| CacheView {
            hits: *hits,
            misses: *misses,
            hit_rate: (rate(*hits) / rate(hits + misses).max(1.0) * 1_000.0).round() / 1_000.0,
        }),
    }
}

fn view(work: &Work) -> WorkView {
    let times = &work.times;
    let quantile = |thousandths| times.quantile(thousandths).map(millis);
    WorkView {
        count: times.count(),
        errors: work.errors,
        mean_ms: times.mean().map(millis),
        p50_ms: quantile(500),
        p90_ms: quantile(900),
        p99_ms: quantile(990),
        max_ms: (times.count() > 0).then(|| millis(times.max())),
    }
}

/// Milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}
