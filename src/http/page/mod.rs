//! The page for people: what every plug uses now and used, and one page for each plug.
//!
//! Everything is made here, charts too, so that it works without a script and is one request. The script then keeps the
//! numbers fresh from `/api/v1/events`, and switches plug and range by fetching the same pages and putting their `<main>`
//! in place of the old one: what is shown is made in one place. Promises that nothing is loaded from elsewhere, that style
//! and script run by their hash alone, and that no text of a plug is markup.

mod parts;

use std::sync::OnceLock;

use base64ct::{Base64, Encoding};
use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use sha2::{Digest, Sha256};

use crate::chart::{Frame, Level, Place};
use crate::clock::Now;
use crate::http::App;
use crate::http::drawing::{bars, levels};
use crate::http::media::Media;
use crate::http::params::{Params, find_device};
use crate::http::reply::{Body, Problem, whole};
use crate::markup::Escaped;
use crate::query::cost::standing_charge;
use crate::query::names::Names;
use crate::query::rollups::Row;
use crate::query::summary::{Pricing, Summary, Who, Window};
use crate::query::view::Range;
use crate::reading::DeviceId;
use crate::rollup::Step;
use crate::units::UnixMillis;
use parts::{Doc, Money};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Every plug, and all of them together.
///
/// # Errors
/// 400 for a wrong range, 503 when the store cannot be read.
pub async fn overview(app: &App, params: &Params) -> Result<Response<Body>, Problem> {
    let range = params.range()?;
    let now = app.clock.wall();
    let who = everybody(app, |_| true);
    let ids: Vec<DeviceId> = who.iter().map(|who| who.id).collect();
    let pricing = Pricing { tariff: &app.tariff, zone: &app.zone };
    let window = Window::Today.span(&app.zone, now);
    let today = Summary::of(&app.store, who, window, pricing).await?;
    let day = app.rows(&ids, Step::QuarterHour, Range::Day).await?;
    let charts = Charts::of(app, &ids, range, (range == Range::Day).then_some(&day)).await?;

    let mut doc = Doc::begin(app, "wattd", range);
    doc.put(format_args!("<h1 class=\"hidden\">Power now</h1>\n"));
    if ids.is_empty() && app.fleet.borrow().plugs().next().is_none() {
        doc.no_plugs(app);
    } else {
        let charge = standing_charge(&app.tariff, &app.zone, window);
        doc.totals(app, &today, charge);
        let newborn = app.store.newest_time().is_none() || charts.levels.len() < 2;
        if newborn {
            doc.newborn();
        }
        doc.ranges("/", range, "");
        doc.charts(app, "all plugs", &charts, "/api/v1/rollups?");
        doc.cards(app, &today, &day, Range::Day.span(&app.zone, now), now);
        doc.unmet(app);
    }
    Ok(sent(doc.end()))
}

/// One plug, a strip with all its outlets, or one outlet.
///
/// # Errors
/// 404 for nobody's name, 400 for wrong parameters, 503 when the store cannot be read.
pub async fn plug(app: &App, params: &Params, name: &str) -> Result<Response<Body>, Problem> {
    let (range, apart, now) = (params.range()?, params.apart()?, app.clock.wall());
    let (id, ids) = {
        let names = Names::of(&app.fleet.borrow(), &app.store);
        let id = find_device(&names, name)?;
        (id, names.recorded_under(id))
    };
    let title = name_of(app, id);
    let pricing = Pricing { tariff: &app.tariff, zone: &app.zone };
    let mut used = Vec::new();
    for (label, window) in [
        ("Today", Window::Today),
        ("This week", Window::Week),
        ("This month", Window::Month),
        ("This year", Window::Year),
    ] {
        let who = everybody(app, |known| ids.contains(known));
        used.push((label, Summary::of(&app.store, who, window.span(&app.zone, now), pricing).await?));
    }
    let charts = Charts::of(app, &ids, range, None).await?;

    let mut doc = Doc::begin(app, &title, range);
    doc.plug_head(app, id, &title, &used);
    let outlets = ids.len() > 1;
    let path = format!("/plug/{id}");
    doc.ranges(&path, range, if apart && outlets { "&amp;outlets=apart" } else { "" });
    if outlets {
        doc.together_or_apart(&path, range, apart);
    }
    let csv = format!("/api/v1/rollups?device={id}&amp;");
    if apart && outlets {
        doc.put(format_args!("<section class=\"charts\" aria-label=\"Charts\">\n"));
        for (n, one) in ids.iter().enumerate() {
            let rows: Vec<Row> = charts.rows.iter().filter(|row| row.device == *one).copied().collect();
            doc.apart(app, (n, *one), &name_of(app, *one), &charts, &levels(&rows, 1, now));
        }
        doc.put(format_args!("</section>\n"));
        doc.csv(&csv, &charts);
    } else {
        doc.charts(app, &title, &charts, &csv);
        doc.standby(&charts.levels);
    }
    if outlets {
        let today = used.first().map(|(_, today)| today.as_slice()).unwrap_or_default();
        doc.outlets(today);
    }
    doc.facts(app, id);
    Ok(sent(doc.end()))
}

/// What a range's charts are made of.
struct Charts {
    range: Range,
    span: crate::rollup::Period,
    rows: Vec<Row>,
    levels: Vec<Level>,
    bars: Vec<crate::chart::Bar>,
}

impl Charts {
    /// `known` are the rows of power, when somebody has read them already.
    async fn of(app: &App, ids: &[DeviceId], range: Range, known: Option<&Vec<Row>>) -> Result<Self, Problem> {
        let now = app.clock.wall();
        let rows = match known {
            Some(rows) => rows.clone(),
            None => app.rows(ids, range.power_step(), range).await?,
        };
        let bars = bars(&app.rows(ids, range.energy_step(), range).await?);
        let levels = levels(&rows, ids.len(), now);
        Ok(Self { range, span: range.span(&app.zone, now), rows, levels, bars })
    }

    fn frame<'a>(&self, app: &'a App, name: &'a str, step: Step, id: &'a str) -> Frame<'a> {
        let currency = app.tariff.currency;
        Frame { name, span: self.span, step, zone: &app.zone, currency, place: Place::Page, id }
    }
}

/// What is known of each device that is `wanted`.
fn everybody(app: &App, wanted: impl Fn(&DeviceId) -> bool) -> Vec<Who> {
    let fleet = app.fleet.borrow();
    let names = Names::of(&fleet, &app.store);
    let now = Now::of(app.clock.as_ref());
    names.metered().filter(wanted).map(|id| Who::of(id, &fleet, &app.store, now)).collect()
}

fn name_of(app: &App, id: DeviceId) -> String {
    let fleet = app.fleet.borrow();
    fleet.get(id.plug).map_or_else(|| id.to_string(), |plug| plug.device_name(id).to_owned())
}

fn sent(html: String) -> Response<Body> {
    static POLICY: OnceLock<String> = OnceLock::new();
    let policy = POLICY.get_or_init(|| {
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            Base64::encode_string(&Sha256::digest(STYLE)),
            Base64::encode_string(&Sha256::digest(SCRIPT))
        )
    });
    let mut response = whole(Media::Html, html);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy); // letters, digits and quotes: always a header
    }
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// An amount of energy with what it cost, of several devices together.
fn together(summaries: &[Summary]) -> (u64, Option<Money>) {
    let energy = summaries.iter().filter_map(|one| one.bucket).map(|bucket| bucket.energy.get()).sum();
    let cost = summaries.iter().filter_map(|one| one.cost).reduce(|a, b| a + b);
    (energy, cost)
}

/// A moment in the configured zone, for people and for the script.
fn time(app: &App, at: UnixMillis, now: UnixMillis) -> String {
    let zoned = |at: UnixMillis| {
        jiff::Timestamp::from_millisecond(at.get()).map(|time| time.to_zoned_datetime(app.zone.clone())).ok()
    };
    let Some((moment, today)) = zoned(at).zip(zoned(now)) else { return at.to_string() };
    let how = if moment.date() == today.date() { "%H:%M" } else { "%-d %b %Y %H:%M" };
    format!("<time datetime=\"{at}\" data-at=\"{}\">{}</time>", at.get(), Escaped(moment.strftime(how)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_and_script_can_stand_in_a_page_and_load_nothing() {
        for asset in [STYLE, SCRIPT] {
            for word in ["</", "<!--", "http:", "https:", "url(", "@import", "innerHTML", "eval("] {
                assert!(!asset.contains(word), "{word}");
            }
        }
        assert!(STYLE.len() + SCRIPT.len() < 20_000);
    }
}
