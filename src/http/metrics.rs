//! `/metrics`: what Prometheus scrapes, made anew for each scrape from what is known at that moment.
//!
//! Promises base units, one fixed set of labels per metric, and no value of a plug that does not answer: its power is
//! absent, `plug_up` is 0, and its energy counter stands still. Names and labels are ours; only `plug_info` carries texts
//! from outside, escaped.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use hyper::Response;

use crate::clock::Now;
use crate::http::App;
use crate::http::media::Media;
use crate::http::reply::{Body, whole};
use crate::poll::fleet::{Plug, Presence};
use crate::query::latest::Latest;
use crate::reading::{DeviceId, Relay};
use crate::stats::memory::Process;
use crate::stats::{Operation, Stats, Work};
use crate::units::Thousandths;

/// The upper bounds of the buckets in which durations are shown, as powers of two of microseconds: 0.26 ms to 17 s.
const BOUNDS_LOG2: [u32; 9] = [8, 10, 12, 14, 16, 18, 20, 22, 24];

/// Everything there is to scrape.
#[must_use]
pub fn metrics(app: &App) -> Response<Body> {
    let mut out = Exposition::default();
    plugs(app, &mut out);
    polls(app, &mut out);
    operations(&app.stats, &mut out);
    store(app, &mut out);
    http(app, &mut out);
    process(&app.stats, &mut out);
    whole(Media::Exposition, out.text)
}

/// One device whose readings are recorded, or a plug without a meter, and what is known of it now.
struct Seen<'a> {
    id: DeviceId,
    plug: &'a Plug,
    latest: Option<Latest>,
}

impl Seen<'_> {
    fn live(&self) -> Option<&Latest> {
        self.latest.as_ref().filter(|latest| latest.online)
    }

    fn is_up(&self) -> bool {
        if self.plug.facts.has_meter { self.live().is_some() } else { self.plug.presence == Presence::Online }
    }
}

fn plugs(app: &App, out: &mut Exposition) {
    let (fleet, now) = (app.fleet.borrow(), Now::of(app.clock.as_ref()));
    let mut seen = Vec::new();
    for plug in fleet.plugs() {
        let bare = (!plug.facts.has_meter).then(|| DeviceId::plug(plug.facts.mac));
        let ids = plug.facts.metered_ids().chain(bare);
        seen.extend(ids.map(|id| Seen { id, plug, latest: Latest::of(id, &fleet, &app.store, now) }));
    }
    out.family("plug_info", GAUGE, "Who a device is; always 1.");
    for Seen { id, plug, .. } in &seen {
        let facts = &plug.facts;
        let labels: [(&str, &dyn Display); 7] = [
            ("device", id),
            ("alias", &plug.device_name(*id)),
            ("model", &facts.model),
            ("hardware", &facts.hardware),
            ("firmware", &facts.firmware),
            ("protocol", &facts.protocol),
            ("address", &plug.address.ip()),
        ];
        out.sample(&labels, 1);
    }
    out.family("plug_up", GAUGE, "Whether the device's newest reading is live (1) or it does not answer (0).");
    for seen in &seen {
        out.sample(&[("device", &seen.id)], u8::from(seen.is_up()));
    }
    let mut each = |name, kind, help, value: &dyn Fn(&Seen<'_>) -> Option<String>| {
        out.family(name, kind, help);
        for seen in &seen {
            if let Some(value) = value(seen) {
                out.sample(&[("device", &seen.id)], value);
            }
        }
    };
    let live = |seen: &Seen<'_>| seen.live().map(|latest| latest.reading);
    each("plug_power_watts", GAUGE, "Active power, while it is live.", &|seen| {
        live(seen).map(|reading| reading.power.decimal().to_string())
    });
    each("plug_voltage_volts", GAUGE, "Mains voltage, while it is live.", &|seen| {
        live(seen)?.voltage.map(|voltage| voltage.decimal().to_string())
    });
    each("plug_current_amperes", GAUGE, "Current, while it is live.", &|seen| {
        live(seen)?.current.map(|current| current.decimal().to_string())
    });
    each("plug_relay_on", GAUGE, "Whether the outlet is switched on, while it is live.", &|seen| {
        live(seen)?.relay.map(|relay| u8::from(relay == Relay::On).to_string())
    });
    each("plug_energy_joules_total", COUNTER, "Energy drawn since the device was first seen.", &|seen| {
        let total = seen.latest.as_ref()?.total?;
        Some(Thousandths(total.get().saturating_mul(3_600)).to_string()) // a milliwatt-hour is 3.6 J
    });
    each("plug_last_reading_timestamp_seconds", GAUGE, "When the newest reading was taken.", &|seen| {
        let time = seen.latest.as_ref()?.reading.time;
        u64::try_from(time.get()).ok().map(|millis| Thousandths(millis).to_string())
    });
    each("plug_poll_interval_seconds", GAUGE, "How often the plug is asked at present.", &|seen| {
        Some(Seconds(seen.plug.interval).to_string())
    });

    out.family(
        "plug_rssi_dbm",
        GAUGE,
        "Signal strength at the plug, while it answers; a strip has one for all outlets.",
    );
    for plug in fleet.plugs().filter(|plug| plug.presence == Presence::Online) {
        if let Some(signal) = plug.signal {
            out.sample(&[("device", &DeviceId::plug(plug.facts.mac))], signal.0);
        }
    }
    out.family("plug_polls_total", COUNTER, "Polls of the plug in this run, by how they ended.");
    for plug in fleet.plugs() {
        let id = DeviceId::plug(plug.facts.mac);
        out.sample(&[("device", &id), ("result", &"answered")], plug.polls.answered);
        out.sample(&[("device", &id), ("result", &"failed")], plug.polls.failed);
    }
}

fn polls(app: &App, out: &mut Exposition) {
    out.family("wattd_poll_failures_total", COUNTER, "Failed polls of this run, by kind of failure.");
    for (kind, count) in app.stats.poll_failures() {
        out.sample(&[("kind", &kind)], count);
    }
    let lateness = app.fleet.borrow().lateness;
    let help = "How long plugs that were due had to wait for their turn.";
    out.family("wattd_poll_lateness_seconds", HISTOGRAM, help);
    out.histogram(None, lateness.up_to(), lateness.polls, lateness.total);
}

fn operations(stats: &Stats, out: &mut Exposition) {
    out.family("wattd_operation_seconds", HISTOGRAM, "How long the agent's own work took, by kind of work.");
    let works: Vec<(Operation, Work)> = Operation::ALL.map(|operation| (operation, stats.work(operation))).to_vec();
    for (operation, work) in &works {
        let buckets = BOUNDS_LOG2.map(|log2| (Duration::from_micros(1 << log2), work.times.shorter_than(log2)));
        out.histogram(Some(("operation", operation.name())), buckets, work.times.count(), work.times.total());
    }
    out.family("wattd_operation_errors_total", COUNTER, "How often the agent's own work failed, by kind of work.");
    for (operation, work) in &works {
        out.sample(&[("operation", &operation.name())], work.errors);
    }
}

fn store(app: &App, out: &mut Exposition) {
    let figures = app.store.figures();
    out.single("wattd_store_batches_total", COUNTER, "Batches committed since the store was made.", figures.batches);
    out.single("wattd_store_readings_total", COUNTER, "Readings committed since the store was made.", figures.readings);
    out.single("wattd_store_chunks_sealed_total", COUNTER, "Chunks sealed in this run.", figures.chunks);
    let help = "Readings in memory that no commit covers yet.";
    out.single("wattd_store_pending_readings", GAUGE, help, figures.pending);
    let help = "Readings dropped in this run because the disk took none for too long.";
    out.single("wattd_store_dropped_readings_total", COUNTER, help, figures.dropped);
    out.single("wattd_store_commits_total", COUNTER, "Commits of this run.", figures.commits);
    let help = "Commits of this run that wrote the store's file, and not its log alone.";
    out.single("wattd_store_file_commits_total", COUNTER, help, figures.file_commits);
    let help = "Bytes that the store wrote in this run, in whole pages.";
    out.single("wattd_store_written_bytes_total", COUNTER, help, figures.written);
    out.single("wattd_store_recent_bytes", GAUGE, "Memory of the newest readings.", figures.recent_bytes);
    out.single("wattd_store_head_batches", GAUGE, "Batches not yet compacted.", figures.head_batches);
}

fn http(app: &App, out: &mut Exposition) {
    let stats = &app.stats;
    let mut routes = Vec::new();
    stats.each_route(|route, work| routes.push((route, work.clone())));
    out.family("wattd_http_requests_total", COUNTER, "Requests answered in this run, by route and status.");
    for (route, work) in &routes {
        for (status, count) in &work.statuses {
            out.sample(&[("route", route), ("status", status)], count);
        }
    }
    out.family("wattd_http_request_seconds", SUMMARY, "How long replies took to begin, by route.");
    for (route, work) in &routes {
        out.part("_sum", &[("route", route)], Seconds(work.work.times.total()));
        out.part("_count", &[("route", route)], work.work.times.count());
    }
    out.family("wattd_http_cache_total", COUNTER, "Kept replies: sent again (hit) or made anew (miss), by route.");
    for (route, hits) in app.cache.counts() {
        out.sample(&[("route", &route), ("result", &"hit")], hits.hits);
        out.sample(&[("route", &route), ("result", &"miss")], hits.misses);
    }
    out.single("wattd_http_cache_bytes", GAUGE, "Memory of the kept replies.", app.cache.bytes());
    let connections = &stats.connections;
    out.single("wattd_http_connections", GAUGE, "Open HTTP connections.", connections.open.get());
    out.single("wattd_http_connections_total", COUNTER, "HTTP connections accepted.", connections.accepted.get());
    let help = "HTTP connections sent away because all were in use.";
    out.single("wattd_http_connections_refused_total", COUNTER, help, connections.refused.get());
    let help = "HTTP connections closed to make room, or because they took too long.";
    out.single("wattd_http_connections_cut_total", COUNTER, help, connections.cut.get());
    let listeners = &stats.listeners;
    out.single("wattd_event_subscribers", GAUGE, "Clients that listen to events.", listeners.open.get());
    let help = "Clients of events dropped because they did not keep up.";
    out.single("wattd_event_subscribers_dropped_total", COUNTER, help, listeners.dropped.get());
    let help = "Clients of events sent away because all places were taken.";
    out.single("wattd_event_subscribers_refused_total", COUNTER, help, listeners.refused.get());
    out.single("wattd_event_batches_total", COUNTER, "Batches of events made.", listeners.batches.get());
}

fn process(stats: &Stats, out: &mut Exposition) {
    out.family("wattd_info", GAUGE, "Which wattd this is; always 1.");
    out.sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
    out.single("wattd_uptime_seconds", GAUGE, "How long the agent has run.", Seconds(stats.uptime()));
    let help = "How often the caches were dropped because memory had grown.";
    out.single("wattd_memory_guard_strikes_total", COUNTER, help, stats.guard_strikes.get());
    let Some(process) = Process::now() else { return };
    out.single("process_resident_memory_bytes", GAUGE, "Memory in use.", process.resident);
    let help = "Memory of its own, without pages of files.";
    out.single("wattd_memory_anonymous_bytes", GAUGE, help, process.anonymous);
    if let Some(written) = process.written {
        let help = "Bytes that this process caused to be written to a disk.";
        out.single("wattd_disk_written_bytes_total", COUNTER, help, written);
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";
const HISTOGRAM: &str = "histogram";
const SUMMARY: &str = "summary";

type Labels<'a> = [(&'a str, &'a dyn Display)];

/// Prometheus' text format, version 0.0.4.
#[derive(Default)]
struct Exposition {
    text: String,
    /// The metric under way, and its head while no sample has followed: a metric without any is left out.
    name: &'static str,
    head: String,
}

impl Exposition {
    /// Begins a metric, whose samples follow.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One value of the metric.
    fn sample(&mut self, labels: &Labels<'_>, value: impl Display) {
        self.part("", labels, value);
    }

    /// A metric with one value.
    fn single(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// One value of a part of the metric.
    fn part(&mut self, suffix: &str, labels: &Labels<'_>, value: impl Display) {
        self.text.push_str(&std::mem::take(&mut self.head));
        let mut open = '{';
        put(&mut self.text, format_args!("{}{suffix}", self.name));
        for (name, label) in labels {
            put(&mut self.text, format_args!("{open}{name}=\""));
            put(&mut Escaped(&mut self.text), label);
            self.text.push('"');
            open = ',';
        }
        let close = if labels.is_empty() { "" } else { "}" };
        put(&mut self.text, format_args!("{close} {value}\n"));
    }

    /// All values of a histogram: `buckets` are upper bounds and how many were not above them.
    fn histogram(
        &mut self,
        label: Option<(&str, &'static str)>,
        buckets: impl IntoIterator<Item = (Duration, u64)>,
        count: u64,
        total: Duration,
    ) {
        let mut labels: Vec<(&str, &dyn Display)> = Vec::new();
        if let Some((name, value)) = &label {
            labels.push((name, value));
        }
        for (bound, below) in buckets {
            let bound = Seconds(bound);
            self.part("_bucket", &[labels.as_slice(), &[("le", &bound)]].concat(), below);
        }
        self.part("_bucket", &[labels.as_slice(), &[("le", &"+Inf")]].concat(), count);
        self.part("_sum", &labels, Seconds(total));
        self.part("_count", &labels, count);
    }
}

/// Seconds as a decimal, exact to the microsecond.
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micros) = (self.0.as_secs(), self.0.subsec_micros());
        if micros == 0 {
            return write!(f, "{whole}");
        }
        let decimal = format!("{whole}.{micros:06}");
        f.write_str(decimal.trim_end_matches('0'))
    }
}

/// Takes a label's value and leaves nothing in it that ends a label or a line.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

fn put(out: &mut impl Write, value: impl Display) {
    let _ = write!(out, "{value}"); // a String takes everything
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_prometheus_own() {
        let mut out = Exposition::default();
        out.family("empty", GAUGE, "Without a sample.");
        out.family("a_info", GAUGE, "Help.");
        out.sample(&[("alias", &"\"K\\\u{fc}che\"\n"), ("n", &1)], 1);
        out.single("b_total", COUNTER, "Bees.", 7);
        out.family("c_seconds", HISTOGRAM, "Times.");
        out.histogram(Some(("kind", "x")), [(Duration::from_micros(256), 2)], 3, Duration::from_millis(1_500));
        assert_eq!(
            out.text,
            "# HELP a_info Help.\n# TYPE a_info gauge\na_info{alias=\"\\\"K\\\\\u{fc}che\\\"\\n\",n=\"1\"} 1\n\
             # HELP b_total Bees.\n# TYPE b_total counter\nb_total 7\n\
             # HELP c_seconds Times.\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{kind=\"x\",le=\"0.000256\"} 2\nc_seconds_bucket{kind=\"x\",le=\"+Inf\"} 3\n\
             c_seconds_sum{kind=\"x\"} 1.5\nc_seconds_count{kind=\"x\"} 3\n"
        );
    }
}
