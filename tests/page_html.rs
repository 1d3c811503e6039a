//! The page without a browser: well formed, self-contained, within its size, and deaf to what plugs call themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::server::*;
use wattd::config::Discovery;
use wattd::http::App;
use wattd::poll::fleet::{Fleet, Presence, Trouble};
use wattd::reading::{DeviceId, Mac};
use wattd::tariff::{Amount, Currency, Tariff};
use wattd::units::UnixMillis;

const HOSTILE: &str = "</text><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;";

/// The answer of an app without a socket: status, policy and text.
fn get(app: &App, target: &str) -> (u16, String, String) {
    use http_body_util::BodyExt as _;
    let request = hyper::Request::get(target).header("host", "localhost").body(()).unwrap();
    smol::block_on(async {
        let response = app.handle(&request.into_parts().0).await;
        let status = response.status().as_u16();
        let policy = response.headers().get("content-security-policy").map(|line| line.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, policy.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
    })
}

/// `plugs` plugs, each with two days of readings, one of them a strip; the second is offline.
fn house(plugs: u8, alias: &str) -> (App, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = wattd::store::Store::open(
        wattd::store::on_disk(wattd::store::path_in(dir.path())),
        wattd::store::Keeping::default(),
    )
    .unwrap();
    let mut fleet = Fleet::default();
    for n in 0..plugs {
        let mac = Mac::new([0x9c, 0x53, 0x22, 0, 0, n]);
        let outlets: &[&str] = if n == 0 { &[alias, "Right"] } else { &[] };
        let facts = facts(mac, alias, outlets);
        store.remember(&facts, "192.168.1.2:9999".parse().unwrap(), UnixMillis::new(NOW));
        fleet.meet(facts.clone(), "192.168.1.2:9999".parse().unwrap(), None).interval = Duration::from_secs(300);
        let plug = fleet.get_mut(mac).unwrap();
        plug.presence =
            if n == 1 { Presence::Offline { since: UnixMillis::new(NOW - 60_000) } } else { Presence::Online };
        plug.last_error = Some(Trouble { time: UnixMillis::new(NOW), text: alias.to_owned() });
        for id in facts.metered_ids() {
            for time in (NOW - 100_000_000..=NOW).step_by(if plugs > 9 { 900_000 } else { 300_000 }) {
                store.append(id, reading(time, 40_000 + time / 300_000 % 977), Duration::from_secs(300));
            }
        }
    }
    smol::block_on(store.commit(UnixMillis::new(NOW))).unwrap();
    let clock = Rc::new(wattd::clock::ManualClock::at(UnixMillis::new(NOW)));
    let app = App {
        zone: jiff::tz::TimeZone::get("Europe/Berlin").unwrap(),
        tariff: Rc::new(Tariff {
            currency: Currency::parse("EUR"),
            price: Amount::parse("0.3"),
            standing_charge: Amount::parse("0.4"),
            rules: Vec::new(),
        }),
        ..App::local(Rc::new(store), Rc::new(RefCell::new(fleet)), clock)
    };
    (app, dir)
}

/// Every tag with its attributes, and whether tags are closed in order. Panics where the text is not well formed.
fn tags(html: &str) -> Vec<(String, Vec<(String, String)>)> {
    const VOID: [&str; 5] = ["meta", "link", "br", "img", "input"];
    let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), html);
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        for (n, _) in text.match_indices('&') {
            let entity = &text[n..text[n..].find(';').map_or(text.len(), |end| n + end + 1)];
            assert!(entity.ends_with(';') && entity.len() < 12, "a bare ampersand: {entity}");
        }
        rest = &rest[at..];
        let end = rest.find('>').unwrap_or_else(|| panic!("an open tag: {rest}"));
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        if tag.starts_with('!') {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(
                open.pop().as_deref(),
                Some(name),
                "closed out of order, before {}",
                &rest[..rest.len().min(80)]
            );
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let name = tag.split_whitespace().next().unwrap().to_owned();
        let (mut attributes, mut left) = (Vec::new(), tag[name.len()..].trim());
        while !left.is_empty() {
            let end = left.find(['=', ' ']).unwrap_or(left.len());
            let key = left[..end].to_owned();
            left = &left[end..];
            let mut value = String::new();
            if let Some(quoted) = left.strip_prefix("=\"") {
                let end = quoted.find('"').unwrap_or_else(|| panic!("an open quote in <{tag}>"));
                value = quoted[..end].to_owned();
                left = &quoted[end + 1..];
            }
            assert!(left.is_empty() || left.starts_with(' '), "<{tag}>");
            assert!(
                key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b':'),
                "{key} in <{tag}>"
            );
            attributes.push((key, value));
            left = left.trim();
        }
        if !alone && !VOID.contains(&name.as_str()) {
            if name == "style" || name == "script" {
                let end = rest.find(&format!("</{name}>")).unwrap();
                rest = &rest[end..];
            }
            open.push(name.clone());
        }
        found.push((name, attributes));
    }
    assert_eq!(open, [""; 0], "never closed");
    found
}

fn paths(plugs: u8) -> Vec<String> {
    let mut paths = Vec::new();
    for range in ["24h", "7d", "30d", "12mo"] {
        paths.push(format!("/?range={range}"));
        if plugs > 0 {
            paths.push(format!("/plug/9c5322000000?range={range}&outlets=apart"));
            paths.push(format!("/plug/9c5322000000?range={range}"));
            paths.push(format!("/plug/9c5322000001?range={range}"));
            paths.push(format!("/plug/9c5322000000.1?range={range}"));
        }
    }
    paths
}

#[test]
fn pages_are_well_formed_self_contained_and_deaf_to_names() {
    for (plugs, alias) in [(3, HOSTILE), (0, "")] {
        let (app, _dir) = house(plugs, alias);
        for path in paths(plugs) {
            let (status, policy, html) = get(&app, &path);
            assert_eq!(status, 200, "{path}: {html}");
            assert!(
                policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"),
                "{policy}"
            );
            let tags = tags(&html);
            let mut ids = std::collections::BTreeSet::new();
            for (name, attributes) in &tags {
                for (key, value) in attributes {
                    assert!(!key.starts_with("on") && key != "src" && key != "style", "{path}: <{name} {key}>");
                    let inside = value.starts_with('/') && !value.starts_with("//")
                        || value.starts_with('#')
                        || value == "data:,";
                    assert!(key != "href" || inside, "{path}: {value}");
                    assert!(key != "id" || ids.insert(value.clone()), "{path}: two have the id {value}");
                }
            }
            let labels = tags.iter().flat_map(|(_, attributes)| attributes).filter(|(key, _)| key == "aria-labelledby");
            for (_, value) in labels {
                assert!(value.split(' ').all(|id| ids.contains(id)), "{path}: {value}");
            }
            assert_eq!(tags.iter().filter(|(name, _)| name == "script").count(), 1, "{path}");
            assert!(!tags.iter().any(|(name, _)| name == "img"), "{path}");
            assert_eq!(tags.iter().filter(|(name, _)| name == "h1").count(), 1, "{path}");
        }
    }
}

#[test]
fn a_chart_is_a_file_of_its_own_and_the_same_each_time() {
    let (app, _dir) = house(2, HOSTILE);
    for query in [
        "",
        "?device=9c5322000001&range=7d",
        "?device=9c5322000000&range=30d&kind=energy",
        "?range=12mo&kind=energy&step=1d",
        "?device=9c5322000000.1",
    ] {
        let target = format!("/api/v1/chart.svg{query}");
        let (status, policy, svg) = get(&app, &target);
        assert_eq!((status, policy.as_str()), (200, "default-src 'none'; style-src 'unsafe-inline'"), "{svg}");
        let tags = tags(&svg);
        assert_eq!(tags[0].0, "svg");
        assert!(tags.iter().any(|(name, _)| name == "title") && tags.iter().any(|(name, _)| name == "desc"));
        assert!(!tags.iter().any(|(name, _)| name == "script" || name == "img"), "{query}");
        assert!(!svg.contains("data-v"), "{query}");
        assert_eq!(svg, get(&app, &target).2);
    }
    for (query, status, word) in [
        ("?range=1d", 400, "did you mean"),
        ("?range=12mo&step=15m", 400, "leave out `step`"),
        ("?kind=watt", 400, "power, energy"),
        ("?device=nobody", 404, "nobody"),
    ] {
        let (told, _, text) = get(&app, &format!("/api/v1/chart.svg{query}"));
        assert!(told == status && text.contains(word), "{query}: {text}");
    }
}

#[test]
fn twenty_plugs_are_a_page_of_bounded_size() {
    let (app, _dir) = house(20, "a plug with a rather long name, as people give");
    let (_, _, html) = get(&app, "/");
    assert_eq!(html.matches("<li class=\"card").count(), 20);
    // Compressed it is a fifth of that: tests/page measures it.
    assert!(html.len() < 120_000, "{}", html.len());
    let assets = html.split("<style>").nth(1).unwrap().split("</style>").next().unwrap().len()
        + html.split("<script>").nth(1).unwrap().split("</script>").next().unwrap().len();
    assert!(assets < 20_000, "{assets}");
}

#[test]
fn the_overview_says_what_is_used_now_and_was_used_today() {
    let (app, _dir) = house(3, "lamp");
    let (_, _, html) = get(&app, "/");
    // Two outlets and one plug are live; the second plug is offline and counts for nothing.
    let live = 40_000 + NOW / 300_000 % 977;
    assert!(html.contains(&format!("id=\"total\" data-mw=\"{}\"", 3 * live)), "{html}");
    assert!(html.contains("2 of 3</strong><small>plugs</small>") && html.contains("offline since <time"), "{html}");
    assert!(html.contains("data-cost=") && html.contains("0.16 EUR</span> standing charge"), "{html}");
    let (_, _, plug) = get(&app, "/plug/9c5322000002");
    for word in ["This week", "This month", "This year", "Standby: ", "CSV of what is shown"] {
        assert!(plug.contains(word), "{word}");
    }
    let id = DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, 2]));
    assert!(plug.contains(&format!("/api/v1/rollups?device={id}&amp;step=15m&amp;start=")), "{plug}");
    assert_eq!(get(&app, "/plug/nobody").0, 404);
    assert_eq!(get(&app, "/?range=1y").0, 400);
}

#[test]
fn empty_pages_say_what_was_tried_and_what_to_try() {
    let (mut app, _dir) = house(0, "");
    app.discovery =
        Discovery { enabled: true, every: Duration::from_secs(300), targets: vec![[192, 168, 1, 255].into()] };
    let (_, _, html) = get(&app, "/");
    for word in ["192.168.1.255", "every 5m", "wattd discover", "account.username", "[[plugs]]"] {
        assert!(html.contains(word), "{word}: {html}");
    }
    app.discovery.enabled = false;
    assert!(get(&app, "/").2.contains("<code>discovery.enabled</code> is false"));
}
