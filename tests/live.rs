//! What can be watched: metrics, figures of the agent, the history of what happened, and events as they happen, over real
//! sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use async_net::TcpStream;
use async_tungstenite::tungstenite::Message;
use async_tungstenite::{WebSocketStream, client_async};
use common::server::*;
use serde_json::Value;
use smol::future::yield_now;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::stream::StreamExt as _;
use wattd::http::live::form::DeviceEvent;
use wattd::limits;
use wattd::reading::{DeviceId, Reading, Relay, Text};
use wattd::store::replay::{After, Mark};
use wattd::store::{Keeping, Store, What, on_disk, path_in};
use wattd::units::{Dbm, MilliwattHours, UnixMillis};

#[test]
fn metrics_show_what_is_live_and_nothing_of_a_plug_that_does_not_answer() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1_000, 41_237);
        world.append(LEFT, NOW - 70_000, 5_000);
        world.app.fleet.borrow_mut().get_mut(FRIDGE.plug).unwrap().signal = Some(Dbm(-61));
        world.commit().await;
        let answer = world.get("/metrics").await;
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let lines: Vec<&str> = answer.text().lines().collect();
        for line in [
            "plug_power_watts{device=\"9c5322000001\"} 41.237",
            "plug_voltage_volts{device=\"9c5322000001\"} 231.4",
            "plug_energy_joules_total{device=\"9c5322000001\"} 0",
            "plug_energy_joules_total{device=\"9c5322000002.0\"} 0",
            "plug_up{device=\"9c5322000001\"} 1",
            "plug_up{device=\"9c5322000002.0\"} 0",
            "plug_rssi_dbm{device=\"9c5322000001\"} -61",
            "plug_relay_on{device=\"9c5322000001\"} 1",
            "plug_last_reading_timestamp_seconds{device=\"9c5322000001\"} 1795423473.12",
            "wattd_operation_seconds_count{operation=\"commit\"} 1",
            "wattd_store_readings_total 2",
            "wattd_http_connections 1",
        ] {
            assert!(lines.contains(&line), "{line} is not in {}", answer.text());
        }
        let info = "plug_info{device=\"9c5322000001\",alias=\"Fridge <b>\",model=\"HS110(EU)\",hardware=\"1.0\",firmware=\"1.2.6\"";
        assert!(answer.text().contains(info), "{}", answer.text());
        assert!(
            !answer.text().contains("plug_power_watts{device=\"9c5322000002"),
            "an offline plug uses nothing known"
        );
        let again = world.get("/metrics").await;
        assert!(again.text().contains("wattd_http_requests_total{route=\"/metrics\",status=\"200\"} 1\n"));
    });
}

#[test]
fn history_tells_switches_gaps_restarts_and_changes_once_each_across_pages_and_commits() {
    with_server(local(), |world| async move {
        let store = &world.app.store;
        let at = |secs: i64| NOW - 600_000 + secs * 1_000;
        let put = |secs, relay, counter| {
            let counter = Some(MilliwattHours::new(counter).unwrap());
            let reading = Reading { relay: Some(relay), counter, ..reading(at(secs), 1_000) };
            store.append(FRIDGE, reading, Duration::from_secs(10));
        };
        put(0, Relay::On, 8_000);
        put(10, Relay::Off, 8_000);
        world.commit().await;
        store.gap(FRIDGE, UnixMillis::new(at(20)));
        put(100, Relay::On, 500); // three things at one moment
        let mut newer = facts(STRIP, "Bench", &["Left", "Lamp"]);
        newer.firmware = Text::new("1.3.0");
        store.remember(&newer, "192.168.1.2:9999".parse().unwrap(), UnixMillis::new(at(110)));
        store.note(None, UnixMillis::new(at(120)), What::ClockStep { from: UnixMillis::new(at(50)) });
        store.note(Some(DeviceId::plug(STRIP)), UnixMillis::new(at(130)), What::Offline);
        let all = world.get("/api/v1/history?order=asc&format=csv&time=ms").await;
        let expected: Vec<String> = [
            (10, "9c5322000001,relay,", "\"on\",\"off\""),
            (100, "9c5322000001,gap,S", ","),
            (100, "9c5322000001,counter_restart,", "8,0.5"),
            (100, "9c5322000001,relay,", "off,on"),
            (110, "9c5322000002,firmware,", "\"1.2.6\",\"1.3.0\""),
            (110, "9c5322000002,renamed,", "\"Desk\",\"Bench\""),
            (110, "9c5322000002.1,renamed,", "\"Right\",\"Lamp\""),
            (120, ",clock_step,", "C"),
            (130, "9c5322000002,offline,", ","),
        ]
        .map(|(secs, who, change)| {
            let who = who.replace('S', &at(20).to_string());
            let change = change.replace('C', &format!("{},{}", at(50), at(120)));
            format!("{},{who},{change}", at(secs)).replace("\"on\",\"off\"", "on,off")
        })
        .to_vec();
        let lines: Vec<&str> = all.text().lines().collect();
        assert_eq!(lines[0], "time,device,event,since,from,to");
        assert_eq!(lines[1..], expected);
        let last = world.get("/api/v1/history?limit=1&device=Fridge%20%3Cb%3E").await.json();
        assert_eq!(
            last["events"][0],
            serde_json::json!({
                "time": "2026-11-23T08:36:14.120Z", "device": "9c5322000001", "event": "relay", "since": null,
                "from": "off", "to": "on"
            })
        );
        // Page by page, with a commit and another event between them.
        for order in ["asc", "desc"] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let target = format!("/api/v1/history?limit=2&order={order}&format=json&time=ms{cursor}");
                let page = world.get(&target).await.json();
                for event in page["events"].as_array().unwrap() {
                    seen.push((event["time"].as_i64().unwrap(), event["event"].as_str().unwrap().to_owned()));
                }
                world.commit().await;
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={next}");
                store.note(None, UnixMillis::new(NOW + 1), What::AgentStop);
            }
            if order == "desc" {
                seen.reverse();
            }
            let cells = |line: &String| line.split(',').map(str::to_owned).collect::<Vec<_>>();
            let wanted = expected.iter().map(cells).map(|cells| (cells[0].parse().unwrap(), cells[2].clone()));
            assert_eq!(seen, wanted.collect::<Vec<_>>(), "{order}");
        }
        let strip = world.get("/api/v1/history?device=9c5322000002.1&fields=device,event").await.json();
        assert_eq!(strip["events"].as_array().unwrap().len(), 4, "what befalls the strip befalls its outlets: {strip}");
        let wrong = world.get("/api/v1/history?step=1h").await;
        assert_eq!((wrong.status, wrong.code().as_str()), (400, "unknown_parameter"));
    });
}

#[test]
fn stats_say_how_everything_went() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1_000, 41_237);
        world.commit().await;
        for target in ["/api/v1/readings", "/api/v1/readings?limit=0", "/nothing"] {
            world.get(target).await;
        }
        let stats = world.get("/api/v1/stats").await.json();
        assert_eq!(stats["operations"]["commit"]["count"], 1);
        assert!(stats["operations"]["commit"]["p99_ms"].as_f64().unwrap() > 0.0);
        assert_eq!(stats["operations"]["query"]["count"], 1);
        assert_eq!(
            stats["operations"]["poll"],
            serde_json::json!({
                "count": 0, "errors": 0, "mean_ms": null, "p50_ms": null, "p90_ms": null, "p99_ms": null, "max_ms": null
            })
        );
        let statuses = &stats["routes"]["/api/v1/readings"]["statuses"];
        assert_eq!((&statuses["200"], &statuses["400"]), (&1.into(), &1.into()));
        assert_eq!(stats["routes"]["none"]["statuses"]["404"], 1);
        assert_eq!((&stats["store"]["readings"], &stats["store"]["pending"]), (&1.into(), &0.into()));
        assert_eq!((&stats["polls"]["online"], &stats["polls"]["offline"]), (&1.into(), &2.into()));
        assert!(stats["memory"]["anonymous_bytes"].as_u64().unwrap() > 100_000);
        assert_eq!((&stats["connections"]["open"], &stats["connections"]["accepted"]), (&1.into(), &4.into()));
    });
}

/// A client of `/api/v1/events`.
struct Listening {
    stream: TcpStream,
    heard: String,
}

impl Listening {
    async fn start(world: &World, query: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let request = format!("GET /api/v1/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut listening = Self { stream, heard: String::new() };
        listening.until("retry: 2000").await;
        listening
    }

    /// Listens until `word` was said; forgets all up to it, and returns that.
    async fn until(&mut self, word: &str) -> String {
        loop {
            if let Some(at) = self.heard.find(word) {
                let rest = self.heard.split_off(at + word.len());
                return std::mem::replace(&mut self.heard, rest);
            }
            let mut bytes = [0; 4_096];
            let count = self.stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "the stream ended before {word:?}: {}", self.heard);
            self.heard += std::str::from_utf8(&bytes[..count]).unwrap();
        }
    }

    /// The next event's id and data.
    async fn event(&mut self, name: &str) -> (Option<String>, Value) {
        let before = self.until(&format!("event: {name}\ndata: ")).await;
        let data = self.until("\n\n").await;
        let id = before.rsplit_once("id: ").map(|(_, id)| id.lines().next().unwrap().to_owned());
        (id, serde_json::from_str(&data).unwrap())
    }

    /// The times of the readings of the next events, up to that of `last`.
    async fn times_until(&mut self, last: i64) -> Vec<i64> {
        let mut times = Vec::new();
        while times.last() != Some(&last) {
            let (_, data) = self.event("reading").await;
            times.extend(times_of(&data["readings"]));
        }
        times
    }
}

fn times_of(rows: &Value) -> Vec<i64> {
    let time = |row: &Value| row["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    rows.as_array().unwrap().iter().map(time).collect()
}

/// Appends a reading, as the poll loop does.
fn happen(world: &World, id: DeviceId, time: i64) {
    world.append(id, time, 41_237);
    world.app.live.reading(id, reading(time, 41_237), world.app.store.mark());
}

/// Lets everybody have a turn.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[test]
fn readings_leave_ten_at_a_time_or_a_tenth_of_a_second_after_the_first() {
    with_server(local(), |world| async move {
        let mut listening = Listening::start(&world, "", "").await;
        let (_, fridge) = listening.event("device").await;
        assert_eq!((&fridge["device"], &fridge["online"]), (&"9c5322000001".into(), &true.into()));
        let (_, strip) = listening.event("device").await;
        assert_eq!((&strip["alias"], &strip["online"]), (&"Desk".into(), &false.into()));
        (0..12).for_each(|n| happen(&world, FRIDGE, NOW + n));
        let (id, batch) = listening.event("reading").await;
        assert_eq!(times_of(&batch["readings"]), (NOW..NOW + 10).collect::<Vec<_>>());
        let row = serde_json::json!({
            "time": "2026-11-23T08:44:34.120Z", "device": "9c5322000001", "power_w": 41.237, "voltage_v": 231.4,
            "current_a": null, "counter_wh": 8123, "relay": true
        });
        assert_eq!(batch["readings"][0], row);
        assert_eq!(id.unwrap(), format!("0.10.{}", NOW + 9));
        settle().await;
        assert_eq!(listening.heard.trim(), "", "two are not enough");
        world.clock.advance(limits::EVENT_DELAY);
        assert_eq!(times_of(&listening.event("reading").await.1["readings"]), [NOW + 10, NOW + 11]);
        // A plug that goes away: what came before it is told before it.
        happen(&world, FRIDGE, NOW + 20);
        let gone = DeviceEvent::new(UnixMillis::new(NOW), FRIDGE, "Fridge", Some(false));
        world.app.live.device(&gone, FRIDGE.plug);
        assert_eq!(times_of(&listening.event("reading").await.1["readings"]), [NOW + 20]);
        assert_eq!(listening.event("device").await.1["online"], false);
        // Silence has a sign of life, once.
        world.clock.advance(limits::EVENT_BEAT);
        listening.until(":\n\n").await;
        assert_eq!(world.app.stats.listeners.open.get(), 1);
        drop(listening);
        while world.app.stats.listeners.open.get() > 0 {
            happen(&world, FRIDGE, NOW + 30);
            world.clock.advance(limits::EVENT_DELAY);
            yield_now().await;
        }
    });
}

#[test]
fn a_listener_hears_those_it_names_only_and_closing_ends_the_stream() {
    with_server(local(), |world| async move {
        let mut listening = Listening::start(&world, "?device=Left", "").await;
        assert_eq!(listening.event("device").await.1["device"], "9c5322000002");
        (0..30).for_each(|n| happen(&world, [FRIDGE, RIGHT, LEFT][n as usize % 3], NOW + n));
        assert_eq!(listening.times_until(NOW + 29).await, (0..10).map(|n| NOW + 2 + 3 * n).collect::<Vec<_>>());
        world.app.live.close();
        listening.until("\r\n0\r\n\r\n").await;
        assert_eq!(world.get("/api/v1/events").await.status, 503);
        let wrong = world.get("/api/v1/events?device=nobody").await;
        assert_eq!((wrong.status, wrong.code().as_str()), (404, "unknown_device"));
        assert_eq!(world.ask("HEAD", "/api/v1/events", "").await.status, 200);
    });
}

#[test]
fn who_was_cut_off_hears_what_it_missed() {
    with_server(local(), |world| async move {
        let mut first = Listening::start(&world, "", "").await;
        (0..10).for_each(|n| happen(&world, FRIDGE, NOW + n * 10_000));
        let id = first.event("reading").await.0.unwrap();
        drop(first);
        (10..13).for_each(|n| happen(&world, FRIDGE, NOW + n * 10_000));
        // Not yet committed: exactly what was missed, then what happens.
        let header = format!("Last-Event-ID: {id}\r\n");
        let mut second = Listening::start(&world, "", &header).await;
        let missed: Vec<i64> = (10..13).map(|n| NOW + n * 10_000).collect();
        assert_eq!(second.times_until(NOW + 120_000).await, missed);
        happen(&world, FRIDGE, NOW + 130_000);
        world.clock.advance(limits::EVENT_DELAY);
        assert_eq!(second.times_until(NOW + 130_000).await, [NOW + 130_000]);
        // Committed meanwhile: all of it, and no more than fifteen seconds twice.
        world.commit().await;
        (14..16).for_each(|n| happen(&world, FRIDGE, NOW + n * 10_000));
        let mut third = Listening::start(&world, &format!("?last_event_id={id}"), "").await;
        let times = third.times_until(NOW + 150_000).await;
        assert_eq!(times, (8..16).map(|n| NOW + n * 10_000).collect::<Vec<_>>());
        // The last id of the replay goes on from there.
        let mut fourth = Listening::start(&world, "?last_event_id=0", "").await;
        assert_eq!(fourth.times_until(NOW + 150_000).await.len(), 16);
        for lost in ["999.0.0", "yesterday"] {
            let mut listening = Listening::start(&world, &format!("?last_event_id={lost}"), "").await;
            let reset = listening.event("reset").await.1;
            assert!(reset["hint"].as_str().unwrap().contains("/api/v1/readings"));
            happen(&world, FRIDGE, NOW + 200_000);
            world.clock.advance(limits::EVENT_DELAY);
            assert_eq!(listening.times_until(NOW + 200_000).await, [NOW + 200_000]);
        }
    });
}

/// Everything after `mark`, as a listener that comes back would hear it.
fn replayed(store: &Store, mut mark: Mark) -> Option<Vec<i64>> {
    let mut times = Vec::new();
    loop {
        let after = store.after(mark).unwrap_or_else(|| smol::block_on(store.after_in_file(mark)).unwrap());
        match after {
            After::Nothing => return Some(times),
            After::Lost => return None,
            After::Rows(rows, next) => {
                times.extend(rows.iter().map(|row| row.reading.time.get()));
                mark = next;
            }
        }
    }
}

#[test]
fn nothing_after_a_mark_is_lost_across_commits_and_restarts() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(on_disk(path_in(dir.path())), Keeping::default()).unwrap();
        let mut store = open();
        // Marks, and what had come by then.
        let (mut marks, mut come, mut durable) = (vec![(store.mark(), 0)], Vec::new(), 0);
        for n in 0..200 {
            let time = NOW + n * 1_000 - random.i64(0..15_000); // a strip's outlets come seconds after they were read
            let id = DeviceId::outlet(STRIP, random.u8(0..3));
            store.append(id, reading(time, n), Duration::from_secs(10));
            come.push(time);
            if random.u8(0..20) == 0 {
                smol::block_on(store.commit(UnixMillis::new(NOW))).unwrap();
                durable = come.len();
            }
            if random.u8(0..60) == 0 {
                drop(store);
                store = open();
                come.truncate(durable);
                marks.retain(|(_, by)| *by <= durable);
            }
            if random.u8(0..4) == 0 {
                marks.push((store.mark(), come.len()));
            }
        }
        for (mark, by) in marks {
            let mark: Mark = mark.to_string().parse().unwrap();
            let heard = replayed(&store, mark).unwrap();
            let (mut left, wanted): (Vec<i64>, _) = (heard.clone(), &come[by..]);
            for time in wanted {
                let at = left.iter().position(|heard| heard == time);
                left.remove(at.unwrap_or_else(|| panic!("seed {seed}: {time} after {mark} is lost")));
            }
            let came: BTreeSet<_> = come.iter().collect();
            assert!(left.iter().all(|time| came.contains(time)), "what was told twice had come");
        }
    }
}

#[test]
fn a_listener_that_takes_nothing_is_dropped_and_nobody_else_notices() {
    with_server(local(), |world| async move {
        let stuck = Listening::start(&world, "", "").await;
        let mut good = Listening::start(&world, "?device=Fridge%20%3Cb%3E", "").await;
        let listeners = &world.app.stats.listeners;
        let mut told = 0;
        for n in 0..200_000 {
            happen(&world, FRIDGE, NOW + n);
            if n % 10 == 9 {
                told += good.event("reading").await.1["readings"].as_array().unwrap().len();
                if listeners.dropped.get() > 0 {
                    break;
                }
            }
            if n % 1_000 == 0 {
                world.commit().await;
            }
        }
        assert_eq!(listeners.dropped.get(), 1);
        assert_eq!(told as u64, listeners.readings.get(), "the other one heard everything");
        let metrics = world.get("/metrics").await;
        assert!(metrics.text().contains("\nwattd_event_subscribers_dropped_total 1\n"), "{}", metrics.text());
        // Its connection ends at the stall's deadline, if not before.
        world.clock.advance(limits::HTTP_STALL_TIME);
        while listeners.open.get() > 1 {
            happen(&world, FRIDGE, NOW + 300_000);
            world.clock.advance(limits::EVENT_DELAY);
            yield_now().await;
        }
        drop(stuck);
    });
}

#[test]
fn places_are_bounded_and_others_are_still_answered() {
    with_server(local(), |world| async move {
        let mut all = Vec::new();
        for _ in 0..limits::event_places(limits::HTTP_CONNECTIONS) {
            all.push(Listening::start(&world, "", "").await);
        }
        let refused = world.get("/api/v1/events").await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "busy"));
        assert!(refused.header("retry-after").is_some());
        assert_eq!(world.get("/api/v1/latest").await.status, 200);
        assert_eq!(world.app.stats.listeners.refused.get(), 1);
        (0..10).for_each(|n| happen(&world, FRIDGE, NOW + n));
        for listening in &mut all {
            assert_eq!(listening.times_until(NOW + 9).await.len(), 10);
        }
        assert_eq!(world.app.stats.listeners.batches.get(), 1);
    });
}

async fn socket(world: &World, query: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    client_async(format!("ws://127.0.0.1/api/v1/ws{query}"), stream).await.unwrap().0
}

async fn heard(socket: &mut WebSocketStream<TcpStream>, kind: &str) -> Value {
    loop {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
            let value: Value = serde_json::from_str(text.as_str()).unwrap();
            if value["type"] == kind {
                return value;
            }
        }
    }
}

#[test]
fn a_web_socket_has_the_same_batches_and_goes_on_where_it_was() {
    with_server(local(), |world| async move {
        let mut all = socket(&world, "").await;
        let mut left = socket(&world, "?device=Left").await;
        let device = heard(&mut all, "device").await;
        assert_eq!(device["messages"][0]["alias"], "Fridge <b>");
        (0..20).for_each(|n| happen(&world, [FRIDGE, LEFT][n as usize % 2], NOW + n));
        let batch = heard(&mut all, "batch").await;
        assert_eq!(times_of(&batch["messages"]), (NOW..NOW + 10).collect::<Vec<_>>());
        assert_eq!(
            times_of(&heard(&mut left, "batch").await["messages"]),
            (0..5).map(|n| NOW + 1 + 2 * n).collect::<Vec<_>>()
        );
        let mut again = socket(&world, &format!("?last_event_id={}", batch["id"].as_str().unwrap())).await;
        assert_eq!(times_of(&heard(&mut again, "batch").await["messages"]), (NOW + 10..NOW + 20).collect::<Vec<_>>());
        all.send(Message::Ping(vec![1, 2].into())).await.unwrap();
        while !matches!(all.next().await.unwrap().unwrap(), Message::Pong(bytes) if bytes[..] == [1, 2]) {}
        // Silence is broken by a ping; a client that does not answer two of them is gone.
        world.clock.advance(limits::EVENT_BEAT);
        while !matches!(all.next().await.unwrap().unwrap(), Message::Ping(_)) {}
        let _ = all.close(None).await;
        while let Some(Ok(_)) = all.next().await {}
        world.app.live.close();
        loop {
            if let Message::Close(close) = left.next().await.unwrap().unwrap() {
                assert_eq!(u16::from(close.unwrap().code), 1001);
                break;
            }
        }
    });
}

#[test]
fn bad_frames_of_every_kind_end_their_connection_and_nothing_else() {
    with_server(local(), |world| async move {
        let masked = |first: u8, payload: &[u8]| {
            let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
            frame.extend(payload);
            frame
        };
        let kinds: Vec<(&str, Vec<u8>)> = vec![
            ("a text", masked(0x81, b"hello")),
            ("bytes", masked(0x82, b"hello")),
            ("no mask", vec![0x81, 1, b'a']),
            ("reserved bits", masked(0xf1, b"a")),
            ("an unknown opcode", masked(0x83, b"a")),
            ("an unknown control", masked(0x8b, b"a")),
            ("a control in pieces", masked(0x09, b"a")),
            ("a long control", [vec![0x89, 0xfe, 0x01, 0x00, 0, 0, 0, 0], vec![0; 256]].concat()),
            ("a continuation of nothing", masked(0x80, b"a")),
            ("no UTF-8", masked(0x81, &[0xff, 0xfe])),
            ("a close without a code", masked(0x88, &[1])),
            ("a close with a wrong code", masked(0x88, &[0, 1])),
            ("a close", masked(0x88, &1_000_u16.to_be_bytes())),
            ("more than is taken", vec![0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0]),
            ("more than there is", vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            ("the highest length", vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            ("pieces without end", [masked(0x02, &[0; 100]), masked(0x00, &[0; 100]).repeat(60)].concat()),
            ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ];
        for (kind, bytes) in kinds {
            let mut stream = TcpStream::connect(world.address).await.unwrap();
            stream.write_all(HANDSHAKE.as_bytes()).await.unwrap();
            let mut head = vec![0; 12];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(head, b"HTTP/1.1 101");
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await; // it may be reset
            while world.app.stats.listeners.open.get() > 0 {
                yield_now().await;
            }
            assert_eq!(world.get("/health").await.status, 200, "{kind}");
        }
        // A flood of pings is answered one by one, and leaves a turn to others.
        let mut flood = TcpStream::connect(world.address).await.unwrap();
        flood.write_all(HANDSHAKE.as_bytes()).await.unwrap();
        let mut flooding = flood.clone();
        let pings = masked(0x89, b"a").repeat(1_000);
        let flooding = world.executor.spawn(async move { while flooding.write_all(&pings).await.is_ok() {} });
        for _ in 0..10 {
            assert_eq!(world.get("/api/v1/latest").await.status, 200);
        }
        flooding.cancel().await;
        drop(flood);
    });
}

const HANDSHAKE: &str = "GET /api/v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn a_handshake_is_checked_and_a_strangers_page_is_refused() {
    with_server(local(), |world| async move {
        let with = |old: &str, new: &str| HANDSHAKE.replace(old, new);
        for (request, status) in [
            (with("Upgrade: websocket\r\n", ""), 426),
            (with("Version: 13", "Version: 8"), 426),
            (with("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
            (with("Host: 127.0.0.1", "Host: 127.0.0.1\r\nOrigin: http://evil.example"), 403),
            (with("Host: 127.0.0.1", "Host: 127.0.0.1\r\nOrigin: null"), 403),
            (with("Host: 127.0.0.1", "Host: 127.0.0.1:8650\r\nOrigin: http://127.0.0.1:8123"), 403),
            (with("/api/v1/ws", "/api/v1/ws?device=nobody"), 404),
            (with("GET", "HEAD"), 426),
        ] {
            let answer = world.raw(&request.replace("keep-alive", "close")).await;
            assert_eq!(answer.status, status, "{request}");
        }
        let own = with("Host: 127.0.0.1", "Host: 127.0.0.1:8650\r\nOrigin: http://127.0.0.1:8650");
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(own.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.windows(4).any(|four| four == b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            heard.extend(byte);
        }
        let head = String::from_utf8(heard).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        assert!(!head.contains("content-length"), "{head}");
    });
}
