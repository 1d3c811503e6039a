//! Rollups, summaries and `export`: civil periods are right in every zone, pages see each bucket once, every format says
//! the same, and an export from a closed store has the bytes of one from the agent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use async_net::TcpListener;
use http_body_util::BodyExt as _;
use jiff::tz::TimeZone;
use serde_json::Value;
use smol::LocalExecutor;
use wattd::cli::args::Export;
use wattd::cli::export;
use wattd::clock::{Clock, ManualClock, SystemClock};
use wattd::config::Config;
use wattd::http::{App, serve};
use wattd::poll::fleet::Presence;
use wattd::reading::{Alias, DeviceId, Mac, OutletFacts, PlugFacts, Protocol, Reading, Relay, Text};
use wattd::store::{Keeping, Store, on_disk, path_in};
use wattd::tariff::{Amount, Currency, Days, Hours, Rule, Season, Tariff};
use wattd::units::{Milliwatts, UnixMillis};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const NOW: i64 = 1_795_423_474_120; // 2026-11-23T08:44:34.120Z
const FRIDGE: DeviceId = DeviceId::plug(Mac::new([0x9c, 0x53, 0x22, 0, 0, 1]));
const STRIP: Mac = Mac::new([0x9c, 0x53, 0x22, 0, 0, 2]);
const LEFT: DeviceId = DeviceId::outlet(STRIP, 0);
const RIGHT: DeviceId = DeviceId::outlet(STRIP, 1);

/// What requests are answered from, and the clock.
struct World {
    app: App,
    clock: Rc<ManualClock>,
    dir: tempfile::TempDir,
}

fn facts(mac: Mac, alias: &str, outlets: &[&str]) -> PlugFacts {
    PlugFacts {
        mac,
        alias: Alias::new(alias),
        model: Text::new("KP115(EU)"),
        hardware: Text::new("1.0"),
        firmware: Text::new("1.0.16"),
        protocol: Protocol::IotXor,
        has_meter: true,
        outlets: outlets.iter().map(|alias| OutletFacts { alias: Alias::new(alias), child: Text::new("00") }).collect(),
    }
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

impl World {
    fn new(zone_name: &str, now: i64) -> Self {
        Self::keeping(zone_name, now, Keeping::default())
    }

    fn keeping(zone_name: &str, now: i64, keeping: Keeping) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(on_disk(path_in(dir.path())), keeping).unwrap();
        let clock = Rc::new(ManualClock::at(UnixMillis::new(now)));
        let mut fleet = wattd::poll::fleet::Fleet::default();
        for facts in [facts(FRIDGE.plug, "Fridge", &[]), facts(STRIP, "Desk", &["Left", "Right"])] {
            let (mac, address) = (facts.mac, "192.168.1.2:9999".parse().unwrap());
            store.remember(&facts, address, UnixMillis::new(now));
            fleet.meet(facts, address, None).interval = Duration::from_secs(10);
            fleet.get_mut(mac).unwrap().presence = Presence::Online;
        }
        let app =
            App { zone: zone(zone_name), ..App::local(Rc::new(store), Rc::new(RefCell::new(fleet)), clock.clone()) };
        Self { app, clock, dir }
    }

    fn append(&self, id: DeviceId, time: i64, milliwatts: i64, interval_ms: i64) {
        let reading = Reading {
            time: UnixMillis::new(time),
            power: Milliwatts::new(milliwatts).unwrap(),
            voltage: None,
            current: None,
            counter: None,
            relay: Some(if milliwatts > 0 { Relay::On } else { Relay::Off }),
        };
        self.app.store.append(id, reading, Duration::from_millis(interval_ms as u64));
    }

    /// A reading every `interval_ms` from `from` to `to`, that one too, committed day by day.
    fn feed(&self, id: DeviceId, (from, to): (i64, i64), interval_ms: i64, milliwatts: impl Fn(i64) -> i64) {
        let mut day = from / DAY;
        for time in (from..=to).step_by(interval_ms as usize) {
            if time / DAY != day {
                day = time / DAY;
                self.commit(time);
            }
            self.append(id, time, milliwatts(time), interval_ms);
        }
        self.commit(to);
    }

    fn commit(&self, now: i64) {
        smol::block_on(self.app.store.commit(UnixMillis::new(now))).unwrap();
    }

    /// Status and body.
    fn get(&self, target: &str) -> (u16, Vec<u8>) {
        let request = hyper::Request::get(target).header("host", "localhost").body(()).unwrap();
        smol::block_on(async {
            let response = self.app.handle(&request.into_parts().0).await;
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
        })
    }

    fn json(&self, target: &str) -> Value {
        let (status, body) = self.get(target);
        assert_eq!(status, 200, "{target}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    fn text(&self, target: &str) -> String {
        let (status, body) = self.get(target);
        assert_eq!(status, 200, "{target}");
        String::from_utf8(body).unwrap()
    }

    fn buckets(&self, query: &str) -> Vec<Value> {
        let json = self.json(&format!("/api/v1/rollups?limit=10000&{query}"));
        assert_eq!(json["next"], Value::Null);
        json["buckets"].as_array().unwrap().clone()
    }
}

/// Milli-units of a decimal, exact.
fn milli(value: &Value) -> i64 {
    (value.as_f64().unwrap() * 1_000.0).round() as i64
}

fn sum(buckets: &[Value], key: &str) -> i64 {
    buckets.iter().map(|bucket| milli(&bucket[key])).sum()
}

#[test]
fn days_are_as_long_as_the_zone_makes_them() {
    for (zone_name, first, last, expected) in [
        ("Europe/Berlin", "2026-03-28", "2026-03-31", vec![("03-28", 24.0), ("03-29", 23.0), ("03-30", 24.0)]),
        ("Europe/Berlin", "2026-10-24", "2026-10-27", vec![("10-24", 24.0), ("10-25", 25.0), ("10-26", 24.0)]),
        ("Australia/Lord_Howe", "2026-04-04", "2026-04-07", vec![("04-04", 24.0), ("04-05", 24.5), ("04-06", 24.0)]),
        ("Australia/Lord_Howe", "2026-10-03", "2026-10-06", vec![("10-03", 24.0), ("10-04", 23.5), ("10-05", 24.0)]),
        ("Pacific/Apia", "2011-12-28", "2012-01-01", vec![("12-28", 24.0), ("12-29", 24.0), ("12-31", 24.0)]),
    ] {
        let tz = zone(zone_name);
        let midnight = |date: &str| {
            let date: jiff::civil::Date = date.parse().unwrap();
            tz.to_timestamp(date.at(0, 0, 0, 0)).unwrap().as_millisecond()
        };
        let (from, to) = (midnight(first), midnight(last));
        let world = World::new(zone_name, to + DAY);
        world.feed(FRIDGE, (from - DAY, to + DAY), 300_000, |_| 1_000_000);
        for order in ["asc", "desc"] {
            let mut days = world.buckets(&format!("step=1d&start={first}&end={last}&order={order}"));
            if order == "desc" {
                days.reverse();
            }
            let told: Vec<(String, f64)> = days
                .iter()
                .map(|day| {
                    let start: jiff::Timestamp = day["start"].as_str().unwrap().parse().unwrap();
                    let end: jiff::Timestamp = day["end"].as_str().unwrap().parse().unwrap();
                    let hours = end.duration_since(start).as_secs() as f64 / 3_600.0;
                    assert_eq!(milli(&day["energy_wh"]), (hours * 1_000_000.0) as i64, "1 kW all day: {day}");
                    assert_eq!(day["observed_s"].as_f64(), Some(hours * 3_600.0));
                    assert_eq!((&day["power_mean_w"], &day["on_s"]), (&1_000.into(), &day["observed_s"]));
                    (tz.to_datetime(start).date().to_string()[5..].to_owned(), hours)
                })
                .collect();
            let expected: Vec<_> = expected.iter().map(|(day, hours)| ((*day).to_owned(), *hours)).collect();
            assert_eq!(told, expected, "{zone_name} {order}");
        }
        // Another zone is another answer from the same store.
        let utc = World { app: App { zone: TimeZone::UTC, ..world.app }, clock: world.clock, dir: world.dir };
        let days = utc.buckets(&format!("step=1d&start={}&end={}", from - from % DAY, to));
        assert!(days.iter().all(|day| day["energy_wh"] == 24_000), "{days:?}");
    }
}

#[test]
fn months_days_and_hours_are_the_sums_of_their_quarter_hours() {
    let mut world = World::new("UTC", NOW);
    let mut random = fastrand::Rng::with_seed(7);
    let power: Vec<i64> = (0..97).map(|_| random.i64(0..2_000_000)).collect();
    world.feed(FRIDGE, (NOW - 400 * DAY, NOW), 3 * HOUR, |time| power[(time / HOUR % 97) as usize]);
    for zone_name in ["Europe/Berlin", "Asia/Kolkata"] {
        world.app.zone = zone(zone_name);
        let usual = world.buckets("step=1mo");
        assert_eq!(usual.len(), 12, "December to November");
        assert_eq!(usual[11]["end"], world.buckets("step=1mo&start=-40d").last().unwrap()["end"]);
        assert_eq!(world.buckets("step=1d").len(), 30);
        assert_eq!(world.buckets("").len(), 24);
        assert_eq!(world.buckets("step=15m").len(), 96);
        let ndjson = |step: &str| -> Vec<Value> {
            let lines = world.text(&format!("/api/v1/rollups?step={step}&start=0&format=ndjson"));
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let quarters = ndjson("15m");
        assert!(quarters.len() > 38_300, "{}", quarters.len());
        for (step, count) in [("1h", 9_600), ("1d", 401), ("1mo", 14)] {
            let longer = ndjson(step);
            assert!((count..count + 2).contains(&longer.len()), "{step}: {}", longer.len());
            for key in ["energy_wh", "observed_s", "on_s", "readings"] {
                assert_eq!(sum(&longer, key), sum(&quarters, key), "{zone_name} {step} {key}");
            }
            let ends = longer.windows(2).all(|pair| pair[0]["end"] == pair[1]["start"]);
            assert!(ends, "periods tile");
        }
        let total = world.json("/api/v1/latest?device=Fridge&fields=total_wh");
        let total = milli(&total["readings"][0]["total_wh"]);
        assert!((sum(&quarters, "energy_wh") - total).abs() <= 1_000, "the total as of the last reading");
    }
}

#[test]
fn paging_sees_every_bucket_once_and_in_order_while_readings_arrive() {
    for seed in 0..3 {
        let world = World::new("Europe/Berlin", NOW);
        let mut random = fastrand::Rng::with_seed(seed);
        for id in [FRIDGE, LEFT, RIGHT] {
            let mut time = NOW - 12 * DAY;
            while time < NOW {
                let until = (time + random.i64(1..30) * HOUR).min(NOW);
                world.feed(id, (time, until), 600_000, |time| time / 600_000 % 1_000);
                time = until + random.i64(0..40) * HOUR;
            }
        }
        for (step, order) in [("15m", "asc"), ("1h", "desc"), ("1d", "asc"), ("1d", "desc"), ("1mo", "asc")] {
            let key = |row: &Value| (row["start"].as_i64().unwrap(), row["device"].as_str().unwrap().to_owned());
            let query = format!("step={step}&order={order}&time=ms&start=-21d&fields=start,device");
            let expected: Vec<_> = world.buckets(&query).iter().map(key).collect();
            let numbers = |id: &str| world.app.store.number(id.parse().unwrap()).unwrap();
            let mut sorted = expected.clone();
            sorted.sort_by_key(|(start, id)| (*start, numbers(id)));
            if order == "desc" {
                sorted.reverse();
            }
            assert_eq!(expected, sorted);
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let limit = random.usize(1..200);
                let page = world.json(&format!("/api/v1/rollups?{query}&limit={limit}{cursor}"));
                let rows = page["buckets"].as_array().unwrap();
                assert!(rows.len() <= limit);
                seen.extend(rows.iter().map(key));
                let Some(next) = page["next"].as_str() else { break };
                assert_eq!(rows.len(), limit);
                cursor = format!("&cursor={next}");
                world.clock.advance(Duration::from_secs(40));
                world.append(FRIDGE, world.clock.wall().get(), 2, 10_000);
            }
            assert_eq!(seen, expected, "seed {seed} {step} {order}");
            world.clock.set_wall(UnixMillis::new(NOW));
        }
    }
}

#[test]
fn every_format_says_the_same() {
    let world = World::new("Europe/Berlin", NOW);
    world.feed(FRIDGE, (NOW - 3 * DAY, NOW - DAY), 60_000, |time| time / 1_000 % 90_000);
    world.feed(LEFT, (NOW - 2 * DAY, NOW), 60_000, |_| 0);
    for step in ["15m", "1h", "1d"] {
        for query in [format!("step={step}&start=-4d"), format!("step={step}&start=-4d&order=desc&time=ms")] {
            let rows = world.buckets(&query);
            assert!(rows.len() >= 5, "{}", rows.len());
            let lines = world.text(&format!("/api/v1/rollups?{query}&format=ndjson"));
            let parsed: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(parsed, rows, "{query}");
            let csv = world.text(&format!("/api/v1/rollups?{query}&format=csv"));
            let mut lines = csv.split_terminator("\r\n");
            let names: Vec<_> = lines.next().unwrap().split(',').collect();
            assert_eq!(
                names.join(","),
                "start,end,device,energy_wh,power_mean_w,power_min_w,power_max_w,on_s,observed_s,readings,flags,cost"
            );
            let cells: Vec<Vec<String>> = lines.map(|line| line.split(',').map(str::to_owned).collect()).collect();
            let cell = |value: &Value| match value {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                Value::Array(list) => list.iter().map(|flag| flag.as_str().unwrap()).collect::<Vec<_>>().join(" "),
                other => other.to_string(),
            };
            let expected: Vec<Vec<String>> =
                rows.iter().map(|row| names.iter().map(|name| cell(&row[*name])).collect()).collect();
            assert_eq!(cells, expected);
            assert!(cells.iter().any(|cells| cells[10] == "gap_inside"), "{csv}");
        }
    }
    let few = world.text("/api/v1/rollups?start=-4d&format=csv&limit=3&fields=device,energy_wh");
    assert_eq!(few.lines().count(), 4, "a limit that is asked for is kept");
}

#[test]
fn a_strip_is_its_outlets_a_gap_is_a_gap_and_the_period_under_way_grows() {
    let world = World::new("Europe/Berlin", NOW);
    let start = NOW - NOW % HOUR;
    for id in [FRIDGE, LEFT, RIGHT] {
        world.feed(id, (start - 5 * HOUR, start - 3 * HOUR), 10_000, |_| 100_000);
        world.feed(id, (start, NOW), 10_000, |_| 100_000);
    }
    let rows = world.buckets("device=Desk&step=1h&time=ms&fields=start,device,readings,flags");
    let told: Vec<_> =
        rows.iter().map(|row| (row["start"].as_i64().unwrap(), row["device"].as_str().unwrap())).collect();
    let (left, right) = ("9c5322000002.0", "9c5322000002.1");
    let hours = [start - 5 * HOUR, start - 4 * HOUR, start - 3 * HOUR, start];
    let expected: Vec<_> = hours.iter().flat_map(|hour| [(*hour, left), (*hour, right)]).collect();
    assert_eq!(told, expected, "hours without a reading are left out");
    let both = world.buckets("device=Right&device=fridge&step=1h&start=-1h&fields=device");
    assert_eq!(both.len(), 2);
    let energy = || milli(&world.buckets("device=Fridge&step=1h").last().unwrap()["energy_wh"]);
    let before = energy();
    world.clock.advance(Duration::from_secs(9));
    assert_eq!(energy() - before, 125, "100 W for 9 s more are 0.25 Wh, of which half is certain");
    world.append(FRIDGE, NOW + 10_000, 100_000, 10_000);
    world.clock.advance(Duration::from_secs(1));
    assert!(energy() > before + 277, "all of it is, with the next reading");
    let future = world.buckets("step=1h&start=-1h&end=2027-01-01");
    assert_eq!(future.len(), 3, "nothing lies ahead");
}

#[test]
fn refusals_name_what_is_wrong_and_what_is_near() {
    let world = World::new("Europe/Berlin", NOW);
    world.feed(FRIDGE, (NOW - DAY, NOW), 60_000, |_| 1);
    let next = world.json("/api/v1/rollups?limit=1")["next"].as_str().unwrap().to_owned();
    let reading = world.json("/api/v1/readings?limit=1&order=asc")["next"].as_str().unwrap().to_owned();
    for (target, status, code, hint) in [
        ("/api/v1/rollups?step=1mon", 400, "bad_parameter", "did you mean 1mo?"),
        ("/api/v1/rollups?step=week", 400, "bad_parameter", "15m, 1h, 1d, 1mo"),
        ("/api/v1/rollups?stp=1h", 400, "unknown_parameter", "did you mean step?"),
        ("/api/v1/rollups?window=1h", 400, "unknown_parameter", "known: device, step"),
        ("/api/v1/rollups?fields=energy", 400, "unknown_field", "did you mean energy_wh?"),
        ("/api/v1/rollups?fields=power_w", 400, "unknown_field", "the fields here are start"),
        ("/api/v1/rollups?fields=alias", 400, "unknown_field", "the fields here are start"),
        ("/api/v1/rollups?limit=10001", 400, "bad_parameter", "from 1 to 10000"),
        ("/api/v1/rollups?start=now&end=-1h", 400, "empty_range", "end is not in the range"),
        ("/api/v1/rollups?device=Frigde", 404, "unknown_device", "Fridge"),
        (&format!("/api/v1/rollups?step=1d&cursor={next}"), 400, "bad_cursor", "`step`"),
        (&format!("/api/v1/rollups?order=desc&cursor={next}"), 400, "bad_cursor", "`order`"),
        (&format!("/api/v1/rollups?cursor={reading}"), 400, "bad_cursor", "path"),
        (&format!("/api/v1/readings?cursor={next}"), 400, "bad_cursor", "path"),
        ("/api/v1/summary?window=todya", 400, "bad_parameter", "did you mean today?"),
        ("/api/v1/summary?window=0h", 400, "bad_parameter", "such as 90s"),
        ("/api/v1/summary?start=-1h", 400, "unknown_parameter", "known: device, window"),
        ("/api/v1/summary?fields=power_w", 400, "unknown_field", "the fields here are device"),
        ("/api/v1/rollup", 404, "not_found", "/api/v1/rollups?"),
    ] {
        let (got, body) = world.get(target);
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((got, json["error"]["code"].as_str()), (status, Some(code)), "{target}");
        assert!(json["error"]["hint"].as_str().unwrap().contains(hint), "{target}: {json}");
    }
    assert_eq!(world.get(&format!("/api/v1/rollups?cursor={next}")).0, 200);
    let (all, passed) = (world.buckets("order=desc"), world.buckets("order=desc&offset=3"));
    assert_eq!(passed, all[3..], "an offset passes over rows, in either order");
    assert_eq!(world.buckets("offset=3"), world.buckets("")[3..]);
    assert!(world.buckets("offset=100").is_empty());
}

#[test]
fn a_summary_has_every_device_and_is_exact_to_the_window() {
    let world = World::new("Europe/Berlin", NOW);
    // 60 W, and 600 W for the last 44 minutes.
    let switch = NOW - 44 * 60_000;
    world.feed(FRIDGE, (NOW - 3 * DAY, NOW), 10_000, |time| if time < switch { 60_000 } else { 600_000 });
    let rows = world.json("/api/v1/summary");
    let rows = rows["devices"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "one for each metered device");
    let fridge = &rows[0];
    assert_eq!((&fridge["device"], &fridge["alias"]), (&"9c5322000001".into(), &"Fridge".into()));
    assert_eq!(
        (&fridge["start"], &fridge["end"]),
        (&"2026-11-23T07:44:34.120Z".into(), &"2026-11-23T08:44:34.120Z".into())
    );
    let energy = 600.0 * 44.0 / 60.0 + 60.0 * 16.0 / 60.0;
    assert!((fridge["energy_wh"].as_f64().unwrap() - energy).abs() < 1.8, "{fridge}");
    assert_eq!(
        (&fridge["observed_s"], &fridge["on_s"], &fridge["readings"]),
        (&3_600.into(), &3_600.into(), &361.into())
    );
    assert_eq!((&fridge["power_min_w"], &fridge["power_max_w"]), (&60.into(), &600.into()));
    assert!((fridge["power_mean_w"].as_f64().unwrap() - energy).abs() < 1.8, "{fridge}");
    assert_eq!((&fridge["last_seen"], &fridge["online"]), (&"2026-11-23T08:44:34.120Z".into(), &true.into()));
    assert!(fridge["total_wh"].as_f64().unwrap() > 4_000.0);
    assert_eq!(
        rows[1],
        serde_json::json!({
            "device": "9c5322000002.0", "alias": "Left", "start": fridge["start"], "end": fridge["end"],
            "energy_wh": null, "power_mean_w": null, "power_min_w": null, "power_max_w": null, "on_s": null,
            "observed_s": 0, "readings": 0, "flags": [], "cost": null, "total_wh": null, "last_seen": null,
            "online": false
        })
    );
    let one =
        |window: &str| world.json(&format!("/api/v1/summary?device=fridge&window={window}"))["devices"][0].clone();
    let minutes = one("5m");
    assert_eq!((milli(&minutes["energy_wh"]), &minutes["observed_s"]), (50_000, &300.into()));
    assert_eq!(minutes["power_min_w"], 600);
    assert_eq!(one("today")["start"], "2026-11-22T23:00:00.000Z");
    assert_eq!(one("month")["start"], "2026-10-31T23:00:00.000Z");
    // Longer windows say the same as the buckets, by hours and by quarter hours.
    let quarters = world.buckets("device=fridge&step=15m&start=-7d");
    for window in ["7d", "365d", "month"] {
        assert_eq!(milli(&one(window)["energy_wh"]), sum(&quarters, "energy_wh"), "{window}");
    }
    let day = one("24h");
    assert_eq!((&day["observed_s"], &day["start"]), (&86_400.into(), &"2026-11-22T08:44:34.120Z".into()));
    let csv =
        world.text("/api/v1/summary?device=fridge&window=24h&format=csv&fields=alias,online,observed_s,flags,cost");
    assert_eq!(csv, "alias,online,observed_s,flags,cost\r\n\"Fridge\",true,86400,,\r\n");
    world.clock.advance(Duration::from_secs(3_600));
    let quiet = one("15m");
    assert_eq!((&quiet["energy_wh"], &quiet["observed_s"], &quiet["online"]), (&Value::Null, &0.into(), &false.into()));
}

fn wanted(what: &str, format: &str) -> Export {
    Export {
        devices: vec!["Fridge".to_owned(), "Desk".to_owned()],
        from: None,
        to: Some(NOW.to_string()),
        what: what.to_owned(),
        format: format.to_owned(),
        fields: None,
        time: None,
    }
}

#[test]
fn an_export_from_the_agent_and_from_a_closed_store_are_the_same_bytes() {
    let world = World::new("Europe/Berlin", NOW);
    for id in [FRIDGE, LEFT] {
        world.feed(id, (NOW - 3 * DAY, NOW), 30_000, |time| time / 1_000 % 90_000);
    }
    let World { app, clock, dir } = world;
    let all =
        [("readings", "csv"), ("readings", "ndjson"), ("15m", "csv"), ("1h", "ndjson"), ("1d", "csv"), ("1mo", "csv")];
    let executor = Rc::new(LocalExecutor::new());
    let real: Rc<dyn Clock> = Rc::new(SystemClock::start());
    let mut config = Config { data_dir: dir.path().to_owned(), timezone: zone("Europe/Berlin"), ..Config::default() };
    let from_agent: Vec<Vec<u8>> = smol::block_on(executor.clone().run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        config.listen = listener.local_addr().unwrap();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let server = executor.spawn(serve(executor.clone(), listener, Rc::new(app), async move {
            let _ = stopped.recv().await;
        }));
        let mut outputs = Vec::new();
        for (what, format) in all {
            let mut out = Vec::new();
            let outcome = export::run(&config, real.clone(), &wanted(what, format), &mut out).await;
            assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{what}");
            outputs.push(out);
        }
        let bad = Export { fields: Some("powr_w".to_owned()), ..wanted("readings", "csv") };
        let refused = export::run(&config, real.clone(), &bad, &mut Vec::new()).await;
        assert_eq!(
            (refused.code, refused.stderr.as_str()),
            (1, "there is no field \"powr_w\"; did you mean power_w?\n")
        );
        let mut full = Full;
        let outcome = export::run(&config, real.clone(), &wanted("readings", "csv"), &mut full).await;
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "who reads has seen enough");
        drop(stop);
        server.await;
        outputs
    }));
    drop(executor);
    assert!(from_agent[0].len() > 500_000 && from_agent[0].starts_with(b"time,device,power_w"));
    assert_eq!(from_agent[0].iter().filter(|byte| **byte == b'\n').count(), 1 + 2 * 8_640);

    // The agent is gone and its store closed.
    for ((what, format), expected) in all.iter().zip(&from_agent) {
        wait_until_closed(dir.path());
        let mut out = Vec::new();
        let later: Rc<dyn Clock> = clock.clone();
        let outcome = smol::block_on(export::run(&config, later, &wanted(what, format), &mut out));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{what}");
        assert!(out == *expected, "{what}: {} and {} bytes", out.len(), expected.len());
    }
    wait_until_closed(dir.path());
    // Another process has the file and does not listen here.
    let held = Store::open(on_disk(path_in(dir.path())), Keeping::default()).unwrap();
    let refused = smol::block_on(export::run(&config, clock.clone(), &wanted("1d", "csv"), &mut Vec::new()));
    assert!(refused.code == 1 && refused.stderr.contains("another wattd has the store open"), "{refused:?}");
    drop(held);
    config.data_dir = dir.path().join("nowhere");
    let refused = smol::block_on(export::run(&config, clock, &wanted("1d", "csv"), &mut Vec::new()));
    assert!(refused.code == 1 && refused.stderr.contains("there is no store at"), "{refused:?}");
    assert!(!config.data_dir.exists(), "nothing is made");
}

/// The thread that read last lets go of the file a moment after its answer.
fn wait_until_closed(dir: &std::path::Path) {
    let is_open = || Store::open(on_disk(path_in(dir)), Keeping::default()).is_err();
    for _ in 0..500 {
        if !is_open() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the store stays open");
}

/// A pipe whose reader is gone.
struct Full;

impl std::io::Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_range_of_decades_is_read_without_walking_through_it() {
    let world = World::new("Europe/Berlin", NOW);
    world.feed(FRIDGE, (at("1999-12-31T12:00:00Z"), at("1999-12-31T13:00:00Z")), 60_000, |_| 60_000);
    world.feed(FRIDGE, (NOW - HOUR, NOW), 60_000, |_| 60_000);
    for order in ["asc", "desc"] {
        let rows = world.buckets(&format!("step=15m&start=0&end=2100-01-01&device=Fridge&order={order}&fields=start"));
        assert_eq!(rows.len(), 5 + 5, "{rows:?}");
    }
    assert_eq!(world.buckets("step=1mo&start=0").len(), 2);
    for step in ["15m", "1h", "1d", "1mo"] {
        let last = format!("start=9999-12-01&end={}", UnixMillis::MAX);
        assert_eq!(world.buckets(&format!("step={step}&{last}")), [Value::Null; 0], "the end of time");
        assert!(world.buckets(&format!("step={step}&start=0&end={}", UnixMillis::MAX)).len() >= 2);
    }
    let years = world.json("/api/v1/summary?device=Fridge&window=36525d");
    assert_eq!(
        milli(&years["devices"][0]["energy_wh"]) / 1_000,
        123,
        "2 h, and 3 min of hold after the first: {years}"
    );
}

/// Nights, weekends, a winter peak, and a charge for each day.
fn by_time() -> Rc<Tariff> {
    let rule = |price, days, hours, season: Option<&str>| Rule {
        price: Amount::parse(price).unwrap(),
        days: Days::parse(days).unwrap(),
        hours: Hours::parse(hours).unwrap(),
        season: season.map_or(Season::ALL, |season| Season::parse(season).unwrap()),
    };
    Rc::new(Tariff {
        currency: Currency::parse("EUR"),
        price: Amount::parse("0.35"),
        standing_charge: Amount::parse("0.40"),
        rules: vec![
            rule("0.20", "mon-sun", "22:00-06:00", None),
            rule("0.25", "sat,sun", "00:00-24:00", None),
            rule("0.45", "mon-fri", "17:00-20:00", Some("nov-20 mar")),
        ],
    })
}

/// Costs in millionths, as a decimal says them.
fn cost(buckets: &[Value]) -> i64 {
    buckets.iter().map(|bucket| (bucket["cost"].as_f64().unwrap() * 1_000_000.0).round() as i64).sum()
}

/// By hand, 1 kW all month:
///
/// * Berlin, March 2026: 743 hours, because the night of Sunday 29 has an hour less. Nights 31 x 8 - 1 = 247 h at 0.20: 49.40.
///   Four Saturdays and five Sundays, 06 to 22: 144 h at 0.25: 36.00. 22 working days of 16 h = 352 h, of which the peak of
///   the 15 up to the 20th is 45 h at 0.45: 20.25; the other 307 h at 0.35: 107.45. Together 213.10.
/// * Kathmandu (+05:45), April 2026: nights 240 h: 48.00. Four Saturdays and four Sundays: 128 h: 32.00. 22 working days: 352 h
///   at 0.35: 123.20. Together 203.20.
/// * Lord Howe, April 2026: the same, and the night of Sunday 5 is half an hour longer: 203.30.
#[test]
fn a_month_with_a_clock_change_costs_what_a_calculation_by_hand_says() {
    for (zone_name, month, next, expected, charge) in [
        ("Europe/Berlin", "2026-03-01", "2026-04-01", "213.1", 12.4),
        ("Asia/Kathmandu", "2026-04-01", "2026-05-01", "203.2", 12.0),
        ("Australia/Lord_Howe", "2026-04-01", "2026-05-01", "203.3", 12.0),
    ] {
        let tz = zone(zone_name);
        let midnight = |date: &str| {
            let date: jiff::civil::Date = date.parse().unwrap();
            tz.to_timestamp(date.at(0, 0, 0, 0)).unwrap().as_millisecond()
        };
        let (from, to) = (midnight(month), midnight(next));
        let mut world = World::new(zone_name, to - 1);
        assert!(world.buckets("step=1mo").iter().all(|bucket| bucket["cost"].is_null()), "no tariff, no cost");
        world.feed(FRIDGE, (from - DAY, to), 300_000, |_| 1_000_000);
        world.app.tariff = by_time();
        let range = format!("start={month}&end={next}");
        let months = world.text(&format!("/api/v1/rollups?step=1mo&{range}&format=csv&fields=device,cost"));
        assert_eq!(months, format!("device,cost\r\n{},{expected}\r\n", FRIDGE), "{zone_name}");
        let all = (expected.parse::<f64>().unwrap() * 1_000_000.0).round() as i64;
        for step in ["1d", "1h", "15m"] {
            assert_eq!(cost(&world.buckets(&format!("step={step}&{range}"))), all, "{zone_name} {step}");
        }
        // The month up to its last millisecond, of which the reading before holds.
        let summary = world.json("/api/v1/summary?device=fridge&window=month");
        let told = cost(std::slice::from_ref(&summary["devices"][0]));
        assert!((all - 1..=all).contains(&told), "{zone_name}: {told}");
        assert_eq!((&summary["currency"], summary["standing_charge"].as_f64()), (&"EUR".into(), Some(charge)));
        assert_eq!(world.json(&format!("/api/v1/rollups?step=1mo&{range}"))["currency"], "EUR");
        // A flat price needs no quarter hours.
        world.app.tariff = Rc::new(Tariff { rules: Vec::new(), ..(*by_time()).clone() });
        let hours = (to - from) as f64 / HOUR as f64;
        assert_eq!(cost(&world.buckets(&format!("step=1mo&{range}"))), (hours * 350_000.0) as i64);
    }
}

#[test]
fn hours_whose_quarter_hours_are_gone_cost_the_mean_of_their_prices() {
    let keeping = Keeping {
        raw: Some(Duration::from_secs(86_400)),
        quarter_hour: Some(Duration::from_secs(40 * 86_400)),
        ..Keeping::default()
    };
    let mut world = World::keeping("Europe/Berlin", NOW, keeping);
    world.feed(FRIDGE, (NOW - 200 * DAY, NOW), 300_000, |_| 1_000_000);
    let rule = Rule {
        price: Amount::parse("1").unwrap(),
        days: Days::ALL,
        hours: Hours::parse("12:00-12:15").unwrap(),
        season: Season::ALL,
    };
    world.app.tariff = Rc::new(Tariff {
        price: Amount::parse("0"),
        rules: vec![rule],
        currency: Currency::parse("EUR"),
        standing_charge: None,
    });
    let old = format!("start={}&end={}", at("2026-07-01T00:00:00Z"), at("2026-07-11T00:00:00Z"));
    assert_eq!(world.buckets(&format!("step=15m&{old}")), [Value::Null; 0], "the quarter hours are gone");
    // 250 Wh at noon of each of nine whole days, from an hour of 1 kWh at a mean price of 0.25.
    let days = world.buckets(&format!("step=1d&{old}"));
    assert!(days.iter().all(|day| day["cost"] == 0.25 && day["energy_wh"] == 24_000), "{days:?}");
    assert_eq!(days.len(), 10);
    let new = world.buckets("step=1d&start=-20d");
    assert!(new.iter().rev().skip(1).all(|day| day["cost"] == 0.25), "{new:?}");
}
