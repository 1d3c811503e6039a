//! The page for people: every plug and what it uses now. No script, nothing loaded from elsewhere.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use hyper::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::clock::Now;
use crate::http::App;
use crate::http::media::Media;
use crate::http::reply::{Body, whole};
use crate::poll::fleet::{Plug, Presence};
use crate::query::latest::Latest;
use crate::reading::DeviceId;
use crate::units::UnixMillis;

const POLICY: &str =
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta http-equiv=\"refresh\" content=\"10\">
<title>wattd</title>
<link rel=\"icon\" href=\"data:,\">
<link rel=\"stylesheet\" href=\"/style.css\">
</head>
<body>
<h1>Plugs</h1>
";

const FOOT: &str = "<p><a href=\"/api/v1/\">API</a> &middot; <a href=\"/api/v1/latest\">latest</a> &middot; \
<a href=\"/api/v1/devices\">devices</a> &middot; <a href=\"/api/v1/readings\">readings</a> &middot; \
<a href=\"/api/v1/readings?format=csv\">24 h as CSV</a></p>
</body>
</html>
";

/// The page's style.
#[must_use]
pub fn style() -> Response<Body> {
    whole(Media::Css, include_str!("style.css"))
}

/// The page.
#[must_use]
pub fn page(app: &App) -> Response<Body> {
    let fleet = app.fleet.borrow();
    let now = Now::of(app.clock.as_ref());
    let mut html = HEAD.to_owned();
    if fleet.plugs().next().is_none() {
        html.push_str("<p>No plug has been met yet.</p>\n");
    } else {
        html.push_str(
            "<div><table>\n<thead><tr><th>Name</th><th class=\"n\">Power</th><th>Seen</th><th class=\"n\">Voltage</th>\
             <th class=\"n\">Counter</th><th>Model</th></tr></thead>\n<tbody>\n",
        );
        for plug in fleet.plugs() {
            let ids: Vec<DeviceId> = plug.facts.metered_ids().collect();
            if ids.is_empty() {
                row(&mut html, plug, DeviceId::plug(plug.facts.mac), None, &app.zone);
            }
            for id in ids {
                row(&mut html, plug, id, Latest::of(id, &fleet, &app.store, now).as_ref(), &app.zone);
            }
        }
        html.push_str("</tbody>\n</table></div>\n");
    }
    for (address, unmet) in fleet.unmet() {
        let why = unmet.last_error.as_ref().map_or("nothing has answered there yet", |trouble| &trouble.text);
        let _ = writeln!(html, "<p>{}: {}</p>", Escaped(&address), Escaped(&why)); // a String takes everything
    }
    html.push_str(FOOT);
    let mut response = whole(Media::Html, html);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn row(html: &mut String, plug: &Plug, id: DeviceId, latest: Option<&Latest>, zone: &TimeZone) {
    let live = latest.filter(|latest| latest.online).map(|latest| &latest.reading);
    let class = if plug.presence == Presence::Online { "" } else { " class=\"off\"" };
    let dash = |value: Option<String>| value.unwrap_or_else(|| "&ndash;".to_owned());
    let counter = latest.and_then(|latest| latest.reading.counter);
    let _ = writeln!(
        html,
        "<tr{class}><td>{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
        Escaped(&plug.device_name(id)),
        dash(live.map(|reading| reading.power.to_string())),
        Escaped(&seen(plug, latest, zone)),
        dash(live.and_then(|reading| reading.voltage).map(|voltage| voltage.to_string())),
        dash(counter.map(|counter| counter.to_string())),
        Escaped(&plug.facts.model),
    ); // a String takes everything
}

/// How old the value is, or since when there is none.
fn seen(plug: &Plug, latest: Option<&Latest>, zone: &TimeZone) -> String {
    match (plug.presence, latest) {
        (Presence::Offline { since }, _) => format!("offline since {}", local(since, zone)),
        (_, Some(latest)) => format!("{} ago", rough(latest.age)),
        (_, None) if !plug.facts.has_meter => "has no meter".to_owned(),
        (_, None) => "not read yet".to_owned(),
    }
}

/// A time of day and date on the wall.
fn local(time: UnixMillis, zone: &TimeZone) -> String {
    let Ok(moment) = Timestamp::from_millisecond(time.get()) else { return time.to_string() };
    moment.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string()
}

fn rough(age: Duration) -> String {
    match age.as_secs() {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// A value whose text means nothing to HTML, neither between tags nor in a quoted attribute.
struct Escaped<'a, T>(&'a T);

impl<T: Display> Display for Escaped<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            other => self.0.write_char(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_a_plug_is_html() {
        assert_eq!(
            Escaped(&"<script>alert('x')</script> & \"K\u{fc}che\"").to_string(),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;K\u{fc}che&quot;"
        );
    }

    #[test]
    fn times_are_told_as_people_tell_them() {
        assert_eq!(rough(Duration::from_secs(12)), "12 s");
        assert_eq!(rough(Duration::from_secs(600)), "10 min");
        assert_eq!(rough(Duration::from_secs(200_000)), "2 days");
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(local(UnixMillis::new(1_795_423_474_120), &berlin), "2026-11-23 09:44");
    }
}
