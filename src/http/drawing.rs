//! Charts over HTTP: rows as drawings, for the page and for whoever embeds one.

use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};

use crate::chart::{Bar, Frame, Level, Place};
use crate::http::App;
use crate::http::media::Media;
use crate::http::params::Params;
use crate::http::reply::{Body, Problem, whole};
use crate::limits;
use crate::query::names::Names;
use crate::query::rollups::Row;
use crate::query::view::{self, Range};
use crate::reading::DeviceId;
use crate::rollup::Step;
use crate::store::StoreError;
use crate::tariff::Cost;
use crate::units::{Thousandths, UnixMillis};

/// What a chart is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line of power.
    Power,
    /// Bars of energy.
    Energy,
}

impl Kind {
    /// Every kind and its name in requests, the usual one first.
    pub const WORDS: [(&'static str, Self); 2] = [("power", Self::Power), ("energy", Self::Energy)];
}

/// Power by period, the devices' together, up to `now`. Of several devices what some of them say is the sum.
#[must_use]
pub fn levels(rows: &[Row], devices: usize, now: UnixMillis) -> Vec<Level> {
    let level = |rows: &[Row]| {
        let mut means = rows.iter().filter_map(|row| row.bucket.mean()).map(|mean| u64::from(mean.get())).peekable();
        means.peek()?;
        let first = rows.first()?;
        let range = first.bucket.range.filter(|_| devices == 1);
        Some(Level {
            period: crate::rollup::Period {
                start: first.period.start,
                end: first.period.end.min(now.max(first.period.start.plus(1))),
            },
            mean: Thousandths(means.sum()),
            band: range.map(|range| (range.min.decimal(), range.max.decimal())),
        })
    };
    rows.chunk_by(|a, b| a.period == b.period).filter_map(level).collect()
}

/// Energy by period, the devices' together.
#[must_use]
pub fn bars(rows: &[Row]) -> Vec<Bar> {
    let bar = |rows: &[Row]| {
        let energy = rows.iter().map(|row| row.bucket.energy.get()).sum();
        let cost = rows.iter().map(|row| row.cost).sum::<Option<Cost>>();
        Some(Bar { period: rows.first()?.period, energy: Thousandths(energy), cost })
    };
    rows.chunk_by(|a, b| a.period == b.period).filter_map(bar).collect()
}

/// A chart as a file of its own.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when the store cannot be read.
pub async fn svg(app: &App, params: &Params) -> Result<Response<Body>, Problem> {
    let (ids, name) = {
        let fleet = app.fleet.borrow();
        let names = Names::of(&fleet, &app.store);
        let ids = params.devices(&names)?.unwrap_or_else(|| names.metered().collect());
        let called: Vec<&str> = params.device_names().collect();
        let name = |text: &&str| fleet_name(app, names.find(text).ok()).unwrap_or_else(|| (*text).to_owned());
        (
            ids,
            if called.is_empty() {
                "all plugs".to_owned()
            } else {
                called.iter().map(name).collect::<Vec<_>>().join(", ")
            },
        )
    };
    let (range, kind, now) = (params.range()?, params.kind()?, app.clock.wall());
    let usual = if kind == Kind::Power { range.power_step() } else { range.energy_step() };
    let step = params.given_step()?.unwrap_or(usual);
    let span = range.span(&app.zone, now);
    let steps = span.end.since(span.start) / shortest_ms(step);
    if steps > limits::CHART_STEPS {
        let message = format!("{} in such steps is more than a chart can show", range.name());
        return Err(Problem::bad("bad_parameter", message, "leave out `step`, or take a longer one"));
    }
    let rows = view::rows(&app.store, &ids, step, span, (&app.zone, &app.tariff), now).await?;
    let currency = app.tariff.currency;
    let frame = Frame { name: &name, span, step, zone: &app.zone, currency, place: Place::File, id: "c" };
    let drawing = match kind {
        Kind::Power => frame.power(&levels(&rows, ids.len(), now)),
        Kind::Energy => frame.energy(&bars(&rows)),
    };
    let mut response = whole(Media::Svg, drawing);
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// The name people know a device by.
fn fleet_name(app: &App, id: Option<DeviceId>) -> Option<String> {
    let (id, fleet) = (id?, app.fleet.borrow());
    fleet.get(id.plug).map(|plug| plug.device_name(id).to_owned())
}

const fn shortest_ms(step: Step) -> i64 {
    match step {
        Step::QuarterHour => 900_000,
        Step::Hour => 3_600_000,
        Step::Day => 24 * 3_600_000,
        Step::Month => 28 * 24 * 3_600_000,
    }
}

impl App {
    /// The rows of a range's chart.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub(super) async fn rows(&self, ids: &[DeviceId], step: Step, range: Range) -> Result<Vec<Row>, StoreError> {
        let now = self.clock.wall();
        let span = range.span(&self.zone, now);
        view::rows(&self.store, ids, step, span, (&self.zone, &self.tariff), now).await
    }
}
