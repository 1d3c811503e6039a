//! What is known of plugs, and how the agent is, as JSON.

use std::time::Duration;

use hyper::Response;
use serde::Serialize;
use serde_json::Number;

use crate::http::App;
use crate::http::params::find_device;
use crate::http::reply::{Body, Problem, json};
use crate::http::schema::Schema::{
    self, List as ListOf, Maybe, Number as Decimal, Object, Text, Time, Truth, Whole, Word,
};
use crate::poll::fleet::{Plug, Presence, Trouble};
use crate::reading::{DeviceId, Mac};
use crate::store::Device;

/// What [`health`] sends.
pub const HEALTH: Schema = Object(&[
    ("status", Word(&["ok"])),
    ("batches", Whole),
    ("readings_committed", Whole),
    ("readings_pending", Whole),
    ("readings_dropped", Whole),
    ("version", Text),
]);

/// What [`ready`] sends.
pub const READY: Schema = Object(&[("status", Word(&["ready"]))]);

/// What [`list`] sends.
pub const LIST: Schema = Object(&[("devices", ListOf(&DEVICE)), ("unmet", ListOf(&UNMET))]);

/// What [`one`] sends.
pub const DEVICE: Schema = Object(&[
    ("id", Text),
    ("alias", Text),
    ("model", Text),
    ("hardware", Text),
    ("firmware", Text),
    ("protocol", Text),
    ("address", Text),
    ("port", Whole),
    ("has_meter", Truth),
    ("online", Maybe(&Truth)),
    ("offline_since", Maybe(&Time)),
    ("last_seen", Maybe(&Time)),
    ("last_error", Maybe(&TROUBLE)),
    ("signal_dbm", Maybe(&Whole)),
    ("interval_s", Decimal),
    ("interval_reason", Text),
    ("outlets", ListOf(&Object(&[("id", Text), ("alias", Text)]))),
    (
        "polls",
        Object(&[
            ("answered", Whole),
            ("failed", Whole),
            ("refused", Whole),
            ("last_ms", Maybe(&Whole)),
            ("mean_ms", Maybe(&Whole)),
            ("worst_late_ms", Whole),
        ]),
    ),
    ("outages", Object(&[("count", Whole), ("last_from", Maybe(&Time)), ("last_to", Maybe(&Time))])),
    ("first_seen", Maybe(&Time)),
]);

const TROUBLE: Schema = Object(&[("time", Time), ("text", Text)]);

const UNMET: Schema =
    Object(&[("address", Text), ("port", Whole), ("name", Maybe(&Text)), ("last_error", Maybe(&TROUBLE))]);

#[derive(Serialize)]
struct Health {
    status: &'static str,
    batches: u64,
    readings_committed: u64,
    readings_pending: usize,
    readings_dropped: u64,
    version: &'static str,
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
}

#[derive(Serialize)]
struct List<'a> {
    devices: Vec<View<'a>>,
    unmet: Vec<UnmetView<'a>>,
}

#[derive(Serialize)]
struct View<'a> {
    id: String,
    alias: &'a str,
    model: &'a str,
    hardware: &'a str,
    firmware: &'a str,
    protocol: &'static str,
    address: String,
    port: u16,
    has_meter: bool,
    online: Option<bool>,
    offline_since: Option<String>,
    last_seen: Option<String>,
    last_error: Option<TroubleView<'a>>,
    signal_dbm: Option<i8>,
    interval_s: Number,
    interval_reason: &'static str,
    outlets: Vec<OutletView<'a>>,
    polls: PollsView,
    outages: OutagesView,
    first_seen: Option<String>,
}

#[derive(Serialize)]
struct OutletView<'a> {
    id: String,
    alias: &'a str,
}

#[derive(Serialize)]
struct TroubleView<'a> {
    time: String,
    text: &'a str,
}

#[derive(Serialize)]
struct PollsView {
    answered: u64,
    failed: u64,
    refused: u64,
    last_ms: Option<u64>,
    mean_ms: Option<u64>,
    worst_late_ms: u64,
}

#[derive(Serialize)]
struct OutagesView {
    count: u32,
    last_from: Option<String>,
    last_to: Option<String>,
}

#[derive(Serialize)]
struct UnmetView<'a> {
    address: String,
    port: u16,
    name: Option<&'a str>,
    last_error: Option<TroubleView<'a>>,
}

/// The agent is alive, and how full its store is.
#[must_use]
pub fn health(app: &App) -> Response<Body> {
    let figures = app.store.figures();
    json(&Health {
        status: "ok",
        batches: figures.batches,
        readings_committed: figures.readings,
        readings_pending: figures.pending,
        readings_dropped: figures.dropped,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// The store is open and the first round of polls is done.
///
/// # Errors
/// 503 until then.
pub fn ready(app: &App) -> Result<Response<Body>, Problem> {
    if app.ready.get() {
        return Ok(json(&Ready { status: "ready" }));
    }
    Err(Problem::later("not_ready", "the first round of polls is not done yet", "come again in some seconds", 2))
}

/// Every plug, and the configured addresses behind which none has been met.
#[must_use]
pub fn list(app: &App) -> Response<Body> {
    let fleet = app.fleet.borrow();
    let stored = app.store.devices();
    let unmet = fleet.unmet().map(|unmet| UnmetView {
        address: unmet.address.ip().to_string(),
        port: unmet.address.port(),
        name: unmet.name.as_ref().map(|name| name.as_str()),
        last_error: unmet.last_error.as_ref().map(trouble),
    });
    json(&List { devices: fleet.plugs().map(|plug| view(plug, &stored)).collect(), unmet: unmet.collect() })
}

/// The plug with this id or alias; for an outlet's, the strip that it belongs to.
///
/// # Errors
/// 404 for nobody's, 400 for an alias that several have.
pub fn one(app: &App, name: &str) -> Result<Response<Body>, Problem> {
    let fleet = app.fleet.borrow();
    let id = find_device(&app.names(), name)?;
    let plug = fleet.get(id.plug).ok_or_else(|| gone(id.plug))?;
    Ok(json(&view(plug, &app.store.devices())))
}

/// A plug whose readings are stored, while the agent does not know where it is.
fn gone(plug: Mac) -> Problem {
    let message = format!("{plug} has stored readings, but this run knows no such plug");
    Problem::new(hyper::StatusCode::NOT_FOUND, "unknown_device", message, "its readings are at /api/v1/readings")
}

fn view<'a>(plug: &'a Plug, stored: &[Device]) -> View<'a> {
    let id = DeviceId::plug(plug.facts.mac);
    let (online, offline_since) = match plug.presence {
        Presence::Unknown => (None, None),
        Presence::Online => (Some(true), None),
        Presence::Offline { since } => (Some(false), Some(since.to_string())),
    };
    let outlets = (0..).zip(&plug.facts.outlets).map(|(n, _)| DeviceId::outlet(plug.facts.mac, n));
    let answered = u32::try_from(plug.polls.answered).unwrap_or(u32::MAX);
    View {
        id: id.to_string(),
        alias: plug.display_name(),
        model: plug.facts.model.as_str(),
        hardware: plug.facts.hardware.as_str(),
        firmware: plug.facts.firmware.as_str(),
        protocol: plug.facts.protocol.name(),
        address: plug.address.ip().to_string(),
        port: plug.address.port(),
        has_meter: plug.facts.has_meter,
        online,
        offline_since,
        last_seen: plug.last_seen.map(|time| time.to_string()),
        last_error: plug.last_error.as_ref().map(trouble),
        signal_dbm: plug.signal.map(|signal| signal.0),
        interval_s: seconds(plug.interval),
        interval_reason: plug.reason.name(),
        outlets: outlets.map(|id| OutletView { id: id.to_string(), alias: plug.device_name(id) }).collect(),
        polls: PollsView {
            answered: plug.polls.answered,
            failed: plug.polls.failed,
            refused: plug.polls.refused,
            last_ms: (answered > 0).then(|| millis(plug.polls.last)),
            mean_ms: plug.polls.total.checked_div(answered).map(millis),
            worst_late_ms: millis(plug.polls.worst_late),
        },
        outages: OutagesView {
            count: plug.outages.count,
            last_from: plug.outages.last_from.map(|time| time.to_string()),
            last_to: plug.outages.last_to.map(|time| time.to_string()),
        },
        first_seen: stored
            .iter()
            .find(|device| device.record.id == id)
            .map(|device| device.record.first_seen.to_string()),
    }
}

fn trouble(trouble: &Trouble) -> TroubleView<'_> {
    TroubleView { time: trouble.time.to_string(), text: &trouble.text }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whole seconds as a whole number, others as a decimal.
fn seconds(time: Duration) -> Number {
    let decimal = (time.subsec_nanos() > 0).then(|| Number::from_f64(time.as_secs_f64())).flatten();
    decimal.unwrap_or_else(|| time.as_secs().into())
}
