//! The HTTP API over a real socket, byte for byte: what clients see, and what they cannot do to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use async_net::{TcpListener, TcpStream};
use common::server::*;
use http_body_util::BodyExt as _;
use serde_json::Value;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use wattd::clock::Clock;
use wattd::http::access::{Access, Secret};
use wattd::http::serve;
use wattd::limits;
use wattd::poll::fleet::Presence;
use wattd::reading::Alias;
use wattd::units::UnixMillis;

#[test]
fn health_says_what_the_store_holds_and_readiness_waits_for_the_first_round() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 2, 1);
        world.commit().await;
        world.append(FRIDGE, NOW - 1, 1);
        let health = world.get("/health").await.json();
        assert_eq!(health["status"], "ok");
        assert_eq!((&health["readings_committed"], &health["readings_pending"]), (&1.into(), &1.into()));
        assert_eq!((&health["batches"], &health["readings_dropped"]), (&1.into(), &0.into()));
        assert_eq!(world.get("/ready").await.status, 200);
        world.app.ready.set(false);
        let answer = world.get("/ready").await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "not_ready"));
        assert!(answer.header("retry-after").is_some());
    });
}

#[test]
fn devices_are_listed_with_what_is_known_of_them() {
    with_server(local(), |world| async move {
        let list = world.get("/api/v1/devices").await.json();
        assert_eq!(list["devices"].as_array().unwrap().len(), 2);
        let strip = &list["devices"][1];
        assert_eq!(strip["id"], "9c5322000002");
        assert_eq!(
            (&strip["alias"], &strip["address"], &strip["port"]),
            (&"Desk".into(), &"192.168.1.2".into(), &9999.into())
        );
        assert_eq!((&strip["online"], &strip["offline_since"]), (&false.into(), &"2026-11-23T08:43:34.120Z".into()));
        assert_eq!(strip["last_error"]["text"], "no answer within 5 s");
        assert_eq!(strip["outlets"][1], serde_json::json!({"id": "9c5322000002.1", "alias": "Right"}));
        assert_eq!((&strip["interval_s"], &strip["protocol"]), (&10.into(), &"iot-xor".into()));
        assert_eq!(strip["first_seen"], "2026-11-22T07:44:34.120Z");
        assert_eq!(strip["polls"]["mean_ms"], Value::Null);
        assert_eq!((&strip["interval_reason"], &strip["polls"]["worst_late_ms"]), (&"fixed".into(), &0.into()));
        assert_eq!(strip["outages"], serde_json::json!({"count": 0, "last_from": null, "last_to": null}));
        assert_eq!(
            list["unmet"][0],
            serde_json::json!({"address": "192.168.1.77", "port": 9999, "name": "Boiler", "last_error": null})
        );
        for name in ["9c5322000002", "9C-53-22-00-00-02", "desk", "9c5322000002.1", "Right"] {
            assert_eq!(world.get(&format!("/api/v1/devices/{name}")).await.json(), *strip, "{name}");
        }
        world.app.fleet.borrow_mut().get_mut(STRIP).unwrap().presence = Presence::Unknown;
        assert_eq!(world.get("/api/v1/devices/desk").await.json()["online"], Value::Null);
        let answer = world.get("/api/v1/devices/Dask").await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_device"));
        assert!(answer.json()["error"]["hint"].as_str().unwrap().contains("Desk"));
    });
}

#[test]
fn the_latest_reading_has_an_age_and_a_stale_one_is_never_live() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1_000, 41_237);
        world.append(LEFT, NOW - 70_000, 5_000);
        let rows = world.get("/api/v1/latest").await.json()["readings"].clone();
        assert_eq!(rows.as_array().unwrap().len(), 2, "an outlet that was never read is left out");
        assert_eq!(
            rows[0],
            serde_json::json!({
                "time": "2026-11-23T08:44:33.120Z", "device": "9c5322000001", "alias": "Fridge <b>", "power_w": 41.237,
                "voltage_v": 231.4, "current_a": null, "counter_wh": 8123, "relay": true, "total_wh": 0,
                "age_ms": 1000, "online": true
            })
        );
        assert_eq!((&rows[1]["alias"], &rows[1]["online"]), (&"Left".into(), &false.into()));
        let strip = world.get("/api/v1/latest?device=Desk&fields=device&format=csv&device=Left").await;
        assert_eq!(strip.text(), "device\r\n9c5322000002.0\r\n");
        world.clock.set_wall(UnixMillis::new(NOW - 5_000));
        let row = world.get("/api/v1/latest?device=9c5322000001&time=ms").await.json()["readings"][0].clone();
        assert_eq!((&row["age_ms"], &row["time"]), (&0.into(), &(NOW - 1_000).into()));
        world.clock.set_wall(UnixMillis::new(NOW + 3_600_000));
        let row = world.get("/api/v1/latest?device=9c5322000001").await.json()["readings"][0].clone();
        assert_eq!(row["online"], false, "an hour old is not live, whatever the plug answers");
    });
}

#[test]
fn readings_come_newest_first_up_to_this_very_millisecond() {
    with_server(local(), |world| async move {
        for n in 0..5 {
            world.append(FRIDGE, NOW - n, n);
            if n == 2 {
                world.commit().await;
            }
        }
        world.append(FRIDGE, NOW - 86_400_000, 9);
        let times = |json: &Value| -> Vec<i64> {
            json["readings"].as_array().unwrap().iter().map(|row| row["time"].as_i64().unwrap()).collect()
        };
        let all = world.get("/api/v1/readings?time=ms").await.json();
        assert_eq!(times(&all), [NOW, NOW - 1, NOW - 2, NOW - 3, NOW - 4]);
        assert_eq!(all["next"], Value::Null);
        let part = world.get(&format!("/api/v1/readings?time=ms&order=asc&start={}&end={NOW}", NOW - 3)).await.json();
        assert_eq!(times(&part), [NOW - 3, NOW - 2, NOW - 1]);
        let skipped = world.get("/api/v1/readings?time=ms&offset=3").await.json();
        assert_eq!(times(&skipped), [NOW - 3, NOW - 4]);
        assert_eq!(times(&world.get("/api/v1/readings?time=ms&offset=9").await.json()), [0i64; 0]);
        let chosen = world.get("/api/v1/readings?fields=power_w,device&limit=1").await;
        assert!(chosen.text().starts_with("{\"readings\":[{\"power_w\":0,\"device\":\"9c5322000001\"}],\"next\":\""));
        assert_eq!(world.get("/api/v1/readings?device=Left").await.json()["readings"], serde_json::json!([]));
        let day = world.get("/api/v1/readings?start=2026-11-23&end=2026-11-24&limit=10000&fields=time").await.json();
        assert_eq!(day["readings"].as_array().unwrap().len(), 5);
    });
}

/// Pages of any size see each reading of the first page's range once and in order, whatever arrives and is committed
/// between them, and however long the walk takes.
#[test]
fn paging_sees_every_reading_exactly_once_while_others_arrive() {
    for seed in 0..6 {
        with_server(local(), |world| async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let ids = [FRIDGE, LEFT, RIGHT];
            let mut expected = BTreeSet::new();
            for n in 0..300 {
                let (id, time) = (ids[random.usize(0..3)], NOW - random.i64(0..86_000_000));
                let time = if random.bool() { time - time % 1_000_000 } else { time }; // many at the same time
                let time = time.max(NOW - 86_399_000);
                if expected.insert((time, id.to_string())) {
                    world.append(id, time, 1);
                }
                if n % 90 == 40 {
                    world.commit().await;
                }
            }
            let order = if seed % 2 == 0 { "asc" } else { "desc" };
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let limit = random.usize(1..40);
                let page = world
                    .get(&format!("/api/v1/readings?fields=time,device&time=ms&order={order}&limit={limit}{cursor}"))
                    .await
                    .json();
                for row in page["readings"].as_array().unwrap() {
                    seen.push((row["time"].as_i64().unwrap(), row["device"].as_str().unwrap().to_owned()));
                }
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={next}");
                world.clock.advance(Duration::from_secs(5));
                for id in ids {
                    world.append(id, world.clock.wall().get(), 2);
                }
                if random.bool() {
                    world.commit().await;
                }
            }
            let numbers = |id: &String| world.app.store.number(id.parse().unwrap()).unwrap();
            let mut sorted: Vec<_> = expected.into_iter().collect();
            sorted.sort_by_key(|(time, id)| (*time, numbers(id)));
            if order == "desc" {
                sorted.reverse();
            }
            assert_eq!(seen, sorted, "seed {seed}");
        });
    }
}

#[test]
fn every_refusal_is_json_with_its_status_and_code() {
    with_server(local(), |world| async move {
        world.app.fleet.borrow_mut().get_mut(FRIDGE.plug).unwrap().name = Some(Alias::new("Left"));
        world.append(FRIDGE, NOW, 1);
        world.append(FRIDGE, NOW - 1, 1);
        let next = world.get("/api/v1/readings?limit=1&order=asc").await.json()["next"].as_str().unwrap().to_owned();
        for (target, status, code) in [
            ("/nowhere", 404, "not_found"),
            ("/api/v1/devices/nobody", 404, "unknown_device"),
            ("/api/v1/devices/%ff", 400, "bad_encoding"),
            ("/api/v1/devices?limit=1", 400, "unknown_parameter"),
            ("/api/v1/latest?devcie=a", 400, "unknown_parameter"),
            ("/api/v1/latest?device=nobody", 404, "unknown_device"),
            ("/api/v1/latest?device=Left", 400, "ambiguous_device"),
            ("/api/v1/latest?fields=time,watts", 400, "unknown_field"),
            ("/api/v1/readings?fields=age_ms", 400, "unknown_field"),
            ("/api/v1/readings?limit=10001", 400, "bad_parameter"),
            ("/api/v1/readings?limit=1&limit=2", 400, "duplicate_parameter"),
            ("/api/v1/readings?format=xml", 400, "bad_parameter"),
            ("/api/v1/readings?start=yesterday", 400, "bad_time"),
            ("/api/v1/readings?start=now&end=-1h", 400, "empty_range"),
            ("/api/v1/readings?cursor=00", 400, "bad_cursor"),
            (&format!("/api/v1/readings?order=desc&cursor={next}"), 400, "bad_cursor"),
            (&format!("/api/v1/readings?offset=1&cursor={next}"), 400, "bad_parameter"),
            ("/health?verbose=1", 400, "unknown_parameter"),
        ] {
            let answer = world.get(target).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{target}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        }
        assert_eq!(world.get(&format!("/api/v1/readings?cursor={next}")).await.status, 200);
        let empty = world.get("/api/v1/readings?start=now&end=-1h").await.json();
        let message = empty["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("2026-11-23T08:44:34.120Z") && message.contains("2026-11-23T07:44:34.120Z"));
    });
}

#[test]
fn only_get_and_head_without_a_body_are_answered() {
    with_server(local(), |world| async move {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = world.ask(method, "/api/v1/devices", "Content-Length: 0\r\n").await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
        }
        for method in ["GET", "HEAD", "PUT", "OPTIONS"] {
            let answer = world.ask(method, "/api/v1/batch", "").await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
        }
        assert_eq!(world.ask("POST", "/nowhere", "").await.status, 404);
        let answer = world.ask("GET", "/health", "Content-Length: 1000000000\r\n").await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "body_refused"));
        let answer = world.ask("GET", "/health", "Transfer-Encoding: chunked\r\n").await;
        assert_eq!(answer.status, 413);
        assert_eq!(world.ask("GET", "/health", "Content-Length: 0\r\n").await.status, 200);
    });
}

/// Sends a batch with these headers.
async fn batch(world: &World, headers: &str, body: &str) -> Answer {
    let head = "POST /api/v1/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n";
    world.raw(&format!("{head}{headers}\r\n{body}")).await
}

async fn batch_of(world: &World, body: &str) -> Answer {
    batch(world, &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()), body).await
}

#[test]
fn a_batch_answers_each_as_it_would_be_answered_alone() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1_000, 41_237);
        let asked = [
            "/api/v1/latest?device=9c5322000001",
            "/api/v1/readings?limit=1",
            "/api/v1/devices/nobody",
            "/api/v1/latest?devcie=a",
            "/api/v1/readings?format=csv",
            "/api/v1/rollups?step=1h",
            "/api/v1/summary",
            "/api/v1/batch",
            "/api/v1/backup",
            "/",
            "/nowhere",
            "nowhere",
            "/a b",
            "http://evil.example/api/v1/latest",
            "/api/v1/devices",
        ];
        let list: Vec<Value> = (0..).zip(asked).map(|(id, path)| serde_json::json!({"id": id, "path": path})).collect();
        let answer = batch_of(&world, &Value::Array(list).to_string()).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "it is sent as it is made");
        let json = answer.json();
        let statuses: Vec<u64> =
            json["answers"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [200, 200, 404, 400, 406, 200, 200, 406, 406, 406, 404, 400, 400, 400, 200]);
        for (n, path) in asked.iter().enumerate().filter(|(n, _)| statuses[*n] == 200) {
            assert_eq!(json["answers"][n]["id"], n);
            assert_eq!(json["answers"][n]["body"], world.get(path).await.json(), "{path}");
        }
        let named = batch_of(&world, r#"[{"id":"a","path":"/health"}]"#).await.json();
        assert_eq!((&named["answers"][0]["id"], &named["answers"][0]["body"]["status"]), (&"a".into(), &"ok".into()));
    });
}

#[test]
fn a_batch_that_is_none_is_refused_before_it_is_read() {
    with_server(local(), |world| async move {
        let json = "Content-Type: application/json\r\n";
        let many = format!("[{}]", [r#"{"id":1,"path":"/health"}"#; limits::BATCH_PATHS + 1].join(","));
        for (body, code) in [
            ("[]", "bad_batch"),
            ("{}", "bad_batch"),
            ("[{\"path\":\"/health\"}]", "bad_batch"),
            ("[{\"id\":1,\"path\":\"/health\",\"method\":\"PUT\"}]", "bad_batch"),
            ("[{\"id\":1,\"path\":\"/heal", "bad_batch"),
            ("\u{1f4a9}", "bad_batch"),
            (many.as_str(), "bad_batch"),
        ] {
            let answer = batch_of(&world, body).await;
            assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}");
        }
        for (headers, status, code) in [
            ("", 415, "not_json"),
            ("Content-Type: text/plain\r\nContent-Length: 2\r\n", 415, "not_json"),
            (json, 411, "length_required"),
            (&format!("{json}Content-Length: 1073741824\r\n"), 413, "body_too_large"),
            (&format!("{json}Content-Length: {}\r\n", limits::BATCH_BODY + 1), 413, "body_too_large"),
        ] {
            let answer = batch(&world, headers, "").await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{headers}");
        }
        let chunk = format!("{:x}\r\n{}\r\n", 8_192, " ".repeat(8_192));
        let chunked = format!("{json}Transfer-Encoding: chunked\r\n");
        let answer = batch(&world, &chunked, &chunk.repeat(limits::BATCH_BODY / 8_192 + 1)).await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"), "however it is sent");
        let body = r#"[{"id":1,"path":"/health"}]"#;
        let answer = batch(&world, &chunked, &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn a_body_that_comes_too_slowly_is_told_so() {
    with_server(local(), |world| async move {
        let mut slow = TcpStream::connect(world.address).await.unwrap();
        let head = "POST /api/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n";
        slow.write_all(format!("{head}\r\n[{{").as_bytes()).await.unwrap();
        settle().await;
        assert_eq!(world.get("/health").await.status, 200);
        world.clock.advance(limits::HTTP_BODY_TIME);
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        let answer = parse(&rest);
        assert_eq!((answer.status, answer.code().as_str()), (408, "too_slow"));
    });
}

#[test]
fn head_has_the_headers_of_its_get_and_no_body() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW, 1);
        for target in ["/", "/health", "/api/v1/", "/api/v1/latest", "/api/v1/readings", "/nowhere"] {
            let (get, head) = (world.get(target).await, world.ask("HEAD", target, "").await);
            assert_eq!(head.body, b"", "{target}");
            assert_eq!(head.status, get.status);
            assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{target}");
            assert_eq!(head.header("content-type"), get.header("content-type"));
        }
        let head = world.ask("HEAD", "/api/v1/readings?format=csv", "").await;
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, None, 0), "{}", head.head);
    });
}

#[test]
fn the_format_is_chosen_by_parameter_then_by_accept() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW, 1);
        for (target, accept, status, kind) in [
            ("/api/v1/readings", "*/*", 200, "application/json"),
            ("/api/v1/readings", "text/csv", 200, "text/csv; charset=utf-8; header=present"),
            ("/api/v1/readings", "application/x-ndjson", 200, "application/x-ndjson"),
            ("/api/v1/readings?format=json", "text/csv", 200, "application/json"),
            ("/api/v1/readings", "image/png", 406, "application/json"),
            ("/api/v1/devices", "text/csv", 406, "application/json"),
            ("/", "text/html,*/*;q=0.8", 200, "text/html; charset=utf-8"),
            ("/health", "text/plain", 200, "application/json"),
        ] {
            let answer = world.ask("GET", target, &format!("Accept: {accept}\r\n")).await;
            assert_eq!((answer.status, answer.header("content-type")), (status, Some(kind)), "{target} {accept}");
        }
    });
}

#[test]
fn a_host_that_is_not_ours_is_turned_away() {
    with_server(local(), |world| async move {
        for (host, status) in [("localhost:8650", 200), ("pi.local", 200), ("[::1]", 200), ("evil.example", 421)] {
            let bytes = format!("GET /api/v1/devices HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            assert_eq!(world.raw(&bytes).await.status, status, "{host}");
        }
        let answer = world.raw("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "missing_host"));
        let answer =
            world.raw("GET /health HTTP/1.1\r\nHost: a.local\r\nHost: b.local\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer.status, 400);
        assert_eq!(world.raw("GET /health HTTP/1.0\r\n\r\n").await.status, 200);
    });
}

#[test]
fn away_from_loopback_the_token_opens_everything_but_health() {
    let token = || Some(Secret::new("s3cret".to_owned()));
    let bearer = "Authorization: Bearer s3cret\r\n";
    let basic = "Authorization: Basic bWU6czNjcmV0\r\n";
    let wrong = "Authorization: Bearer s3cre\r\n";
    for (access, expected) in [
        (Access { token: token(), loopback: true, ..Access::default() }, [200, 200, 200, 200]),
        (Access { token: token(), ..Access::default() }, [401, 401, 200, 200]),
        (Access { token: token(), public_read: true, ..Access::default() }, [200, 200, 200, 200]),
        (Access::default(), [403, 403, 403, 403]),
    ] {
        with_server(access, |world| async move {
            for (headers, status) in ["", wrong, bearer, basic].into_iter().zip(expected) {
                let answer = world.ask("GET", "/api/v1/devices", headers).await;
                assert_eq!(answer.status, status, "{headers}");
                if status == 401 {
                    assert!(answer.header("www-authenticate").unwrap().starts_with("Basic realm=\"wattd\""));
                    assert_eq!(answer.code(), "unauthorized");
                    assert_eq!(world.ask("GET", "/nowhere", headers).await.status, 401, "paths are not told either");
                }
                assert_eq!(world.ask("GET", "/health", headers).await.status, 200);
            }
        });
    }
}

#[test]
fn the_page_and_the_landing_list_are_for_people() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 3_000, 41_237);
        let page = world.get("/").await;
        assert!(page.text().contains("<bdi>Fridge &lt;b&gt;</bdi>") && page.text().contains(">41.2 W</span>"));
        assert!(page.text().contains("192.168.1.77: nothing has answered there yet"), "{}", page.text());
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        let landing = world.get("/api/v1/").await;
        assert!(landing.text().contains("curl -s 'http://127.0.0.1/api/v1/devices'\n"), "{}", landing.text());
        for line in landing.text().lines().filter_map(|line| line.strip_prefix("curl -s 'http://127.0.0.1")) {
            let target = line.trim_end_matches('\'').replace("ID", "9c5322000001");
            // What goes on for as long as somebody listens would be waited for.
            let method = if target == "/api/v1/events" { "HEAD" } else { "GET" };
            assert_eq!(world.ask(method, &target, "").await.status, 200, "{target}");
        }
    });
}

#[test]
fn an_oversized_head_is_refused() {
    with_server(local(), |world| async move {
        let long = format!("X-Long: {}\r\n", "a".repeat(limits::HTTP_HEAD));
        assert_eq!(world.ask("GET", "/health", &long).await.status, 431);
        let many = "X-Many: 1\r\n".repeat(limits::HTTP_HEADERS);
        assert_eq!(world.ask("GET", "/health", &many).await.status, 431);
        assert_eq!(world.raw("nonsense\r\n\r\n").await.status, 400);
        assert_eq!(world.get("/health").await.status, 200, "and the next client is served");
    });
}

/// Lets the server do everything that it can do now.
async fn settle() {
    for _ in 0..50 {
        smol::future::yield_now().await;
    }
}

#[test]
fn a_slow_head_and_an_idle_connection_are_closed_when_their_time_is_up() {
    with_server(local(), |world| async move {
        let mut slow = TcpStream::connect(world.address).await.unwrap();
        slow.write_all(b"GET /health HT").await.unwrap();
        let mut idle = TcpStream::connect(world.address).await.unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        settle().await;
        world.clock.advance(limits::HTTP_HEAD_TIME);
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        let answer = parse(&rest);
        assert_eq!((answer.status, answer.code().as_str()), (408, "too_slow"));
        rest.clear();
        idle.read_to_end(&mut rest).await.unwrap(); // ends: the server closed it
        assert!(!String::from_utf8_lossy(&rest).contains("408"), "an idle connection is closed without a word");
    });
}

#[test]
fn when_full_the_connection_longest_without_a_request_makes_room() {
    with_server(local(), |world| async move {
        let mut open = Vec::new();
        for _ in 0..limits::HTTP_CONNECTIONS {
            open.push(TcpStream::connect(world.address).await.unwrap());
            // A request on the newest makes sure that it was accepted, and in this order.
            let newest = open.last_mut().unwrap();
            newest.write_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            assert!(newest.read(&mut [0; 1024]).await.unwrap() > 0);
            world.clock.advance(Duration::from_millis(10));
        }
        assert_eq!(world.get("/health").await.status, 200);
        assert_eq!(open[0].read(&mut [0; 1]).await.unwrap(), 0, "the oldest was closed");
        let next = &mut open[1];
        next.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        next.read_to_end(&mut all).await.unwrap();
        assert_eq!(parse(&all).status, 200, "and only the oldest");
    });
}

#[test]
fn when_every_connection_is_being_answered_the_next_is_told_to_come_again() {
    with_app(
        |app| wattd::http::App { connections: 4, ..app },
        |world| async move {
            fill(&world).await;
            let mut busy = Vec::new();
            for _ in 0..4 {
                let mut stream = TcpStream::connect(world.address).await.unwrap();
                let ask = b"GET /api/v1/readings?format=ndjson HTTP/1.1\r\nHost: localhost\r\n\r\n";
                stream.write_all(ask).await.unwrap();
                stream.read_exact(&mut [0; 1000]).await.unwrap();
                busy.push(stream);
            }
            let mut next = TcpStream::connect(world.address).await.unwrap();
            let mut all = Vec::new();
            next.read_to_end(&mut all).await.unwrap();
            let answer = parse(&all);
            assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "busy", Some("1")));
            world.append(FRIDGE, NOW + 1, 1); // recording goes on
            drop(busy.pop());
            settle().await;
            assert_eq!(world.get("/health").await.status, 200);
        },
    );
}

/// A connection from another address of this machine.
fn connect_from(address: [u8; 4], world: &World) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((address, 0))).unwrap();
    connect(&socket, &world.address).unwrap();
    smol::Async::new(std::net::TcpStream::from(socket)).unwrap().into()
}

#[test]
fn a_crowd_takes_places_from_itself() {
    with_server(local(), |world| async move {
        let first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // A guest that has not said anything yet, one that has begun to, one that was answered once.
        let mut guests: Vec<_> = (2..5).map(|n| connect_from([127, 0, 0, n], &world)).collect();
        guests[1].write_all(&first[..10]).await.unwrap();
        guests[2].write_all(first).await.unwrap();
        assert!(guests[2].read(&mut [0; 1024]).await.unwrap() > 0);
        let mut crowd = Vec::new();
        for _ in 0..5 {
            crowd.extend((0..limits::HTTP_CONNECTIONS).map(|_| connect_from([127, 0, 0, 9], &world)));
            world.clock.advance(Duration::from_millis(10));
            assert_eq!(world.get("/health").await.status, 200);
        }
        for (n, rest) in [&first[..], &first[10..], &first[..]].into_iter().enumerate() {
            guests[n].write_all(rest).await.unwrap();
            let mut head = [0; 12];
            guests[n].read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200", "guest {n}");
        }
        // Of one client, those that never said anything go first.
        let mut loris = connect_from([127, 0, 0, 9], &world);
        loris.write_all(&first[..10]).await.unwrap();
        settle().await;
        for _ in 0..2 * limits::HTTP_CONNECTIONS {
            crowd.push(connect_from([127, 0, 0, 9], &world));
            settle().await;
        }
        assert_eq!(world.get("/health").await.status, 200);
        loris.write_all(&first[10..]).await.unwrap();
        assert!(loris.read(&mut [0; 1024]).await.unwrap() > 0);
    });
}

#[test]
fn a_client_that_has_said_all_it_wants_is_answered_in_full() {
    with_server(local(), |world| async move {
        fill(&world).await;
        let ask = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for (targets, statuses) in [
            (&["/health"][..], &["200"][..]),
            (&["/health", "/nowhere", "/api/v1/devices"], &["200", "404", "200"]),
            (&["/api/v1/readings?format=ndjson&limit=20000", "/health"], &["200", "200"]),
        ] {
            let mut stream = TcpStream::connect(world.address).await.unwrap();
            let asked: String = targets.iter().map(|target| ask(target)).collect();
            stream.write_all(asked.as_bytes()).await.unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            let text = String::from_utf8(all).unwrap();
            let said: Vec<&str> = text.split("HTTP/1.1 ").skip(1).map(|reply| &reply[..3]).collect();
            assert_eq!(said, statuses, "{targets:?}");
            assert!(text.ends_with("}\n"), "and to its end");
        }
    });
}

#[test]
fn a_client_that_is_gone_holds_no_place() {
    with_server(local(), |world| async move {
        fill(&world).await;
        let ask = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for (said, hears) in [
            (String::new(), false),
            ("GET /health HT".to_owned(), false),
            (ask("/health"), true),
            (ask("/health").repeat(100), true),
            (ask("/api/v1/readings?format=ndjson"), true),
            (ask("/api/v1/events"), true),
            ("POST /api/v1/batch HTTP/1.1\r\nHost: a.local\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[".to_owned(), false),
        ] {
            let mut leaving = TcpStream::connect(world.address).await.unwrap();
            leaving.write_all(said.as_bytes()).await.unwrap();
            assert!(!hears || leaving.read(&mut [0; 10]).await.unwrap() > 0);
            settle().await;
            drop(leaving);
            let open = &world.app.stats.connections.open;
            for _ in 0..1_000 {
                assert_eq!(world.get("/health").await.status, 200);
                settle().await;
                if open.get() == 0 {
                    break;
                }
            }
            assert_eq!(open.get(), 0, "{said:?}");
        }
    });
}

#[test]
fn a_path_is_what_it_says_whatever_tricks_it_has() {
    with_server(local(), |world| async move {
        for (target, status) in [
            ("/../../etc/passwd", 404),
            ("/%2e%2e/etc/passwd", 404),
            ("/api/v1/devices/..%2f..%2fetc", 404),
            ("//api/v1/latest", 404),
            ("/api/v1/latest%00", 404),
            ("/api/v1/devices/%ff", 400),
            ("/api/v1/latest?device=%c3%28", 400),
            ("*", 404),
            (&format!("/api/v1/latest?{}", "device=a&".repeat(1_000)), 400),
            // The path counts to the head, of which all is bounded.
            (&format!("/{}", "a".repeat(limits::HTTP_HEAD)), 431),
            (&format!("/{}", "a".repeat(limits::HTTP_HEAD / 2)), 404),
        ] {
            assert_eq!(world.get(target).await.status, status, "{target}");
        }
    });
}

/// Fifty thousand readings, most committed.
async fn fill(world: &World) {
    for n in 0..50_000 {
        world.append(FRIDGE, NOW - n, n % 1_000);
        if n == 48_000 {
            world.commit().await;
        }
    }
}

#[test]
fn streams_have_every_row_and_end_whole() {
    with_server(local(), |world| async move {
        fill(&world).await;
        let csv = world.get("/api/v1/readings?format=csv&time=ms&fields=time,power_w&order=asc").await;
        assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
        let mut lines = csv.text().split_terminator("\r\n");
        assert_eq!(lines.next(), Some("time,power_w"));
        let times: Vec<i64> = lines.map(|line| line.split_once(',').unwrap().0.parse().unwrap()).collect();
        assert!(times.iter().copied().eq(NOW - 49_999..=NOW));
        let lines = world.get("/api/v1/readings?format=ndjson&limit=12345").await;
        assert_eq!(lines.text().lines().count(), 12_345, "a limit that is asked for is kept");
        let first: Value = serde_json::from_str(lines.text().lines().next().unwrap()).unwrap();
        assert_eq!(first["time"], "2026-11-23T08:44:34.120Z");
    });
}

#[test]
fn a_stream_is_made_in_small_chunks_only_as_they_are_taken() {
    with_server(local(), |world| async move {
        fill(&world).await;
        let request =
            hyper::Request::get("/api/v1/readings?format=ndjson").header("host", "localhost").body(()).unwrap();
        let mut response = world.app.handle(&request.into_parts().0).await;
        let (mut chunks, mut bytes) = (0, 0);
        while let Some(frame) = response.body_mut().frame().await {
            let length = frame.unwrap().into_data().unwrap().len();
            assert!(length < limits::STREAM_CHUNK + 512, "{length}");
            (chunks, bytes) = (chunks + 1, bytes + length);
        }
        assert!(chunks > 100 && bytes > 100 * limits::STREAM_CHUNK, "{chunks} {bytes}");
    });
}

#[test]
fn a_client_that_leaves_or_stalls_in_a_stream_is_let_go() {
    with_server(local(), |world| async move {
        fill(&world).await;
        let ask = b"GET /api/v1/readings?format=ndjson HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut leaving = TcpStream::connect(world.address).await.unwrap();
        leaving.write_all(ask).await.unwrap();
        leaving.read_exact(&mut [0; 1000]).await.unwrap();
        drop(leaving);
        assert_eq!(world.get("/health").await.status, 200);

        let mut stalled = TcpStream::connect(world.address).await.unwrap();
        stalled.write_all(ask).await.unwrap();
        stalled.read_exact(&mut [0; 1000]).await.unwrap();
        while world.executor.try_tick() {} // until the socket takes no more
        for _ in 0..40 {
            assert_eq!(world.get("/health").await.status, 200);
        }
        world.clock.advance(limits::HTTP_STALL_TIME);
        settle().await;
        let mut rest = Vec::new();
        let _ = stalled.read_to_end(&mut rest).await; // the end, or a reset
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a stream that was cut is not taken for a whole one");
    });
}

#[test]
fn a_stopping_server_ends_idle_connections_and_finishes() {
    with_server(local(), |world| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let server = world.executor.spawn(serve(world.executor.clone(), listener, world.app.clone(), async move {
            let _ = stopped.recv().await;
        }));
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
        stop.send(()).await.unwrap();
        server.await;
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn a_backup_is_streamed_to_its_end_and_wants_the_token_even_where_anybody_may_read() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1, 1);
        let answer = world.get("/api/v1/backup").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/octet-stream")));
        let file = world.dir.path().join("backup");
        std::fs::write(&file, &answer.body).unwrap();
        assert!(wattd::store::backup::verify(&file).unwrap().rows >= 5, "devices and the reading that waited");
        assert_eq!(world.ask("HEAD", "/api/v1/backup", "").await.status, 200);
        // While somebody takes one slowly, nobody else gets one.
        let mut random = fastrand::Rng::with_seed(1);
        for n in 0..60_000 {
            world.append(FRIDGE, NOW + n, random.i64(0..3_000_000));
        }
        world.commit().await;
        let slow = world.app.store.back_up().unwrap();
        slow.recv().await.unwrap().unwrap();
        let refused = world.get("/api/v1/backup").await;
        assert_eq!((refused.status, refused.code().as_str()), (409, "backup_running"));
    });
    let token = Some(Secret::new("secret".to_owned()));
    let open = Access { token, public_read: true, loopback: false, ..Access::default() };
    with_server(open, |world| async move {
        assert_eq!(world.get("/api/v1/devices").await.status, 200);
        assert_eq!(world.get("/api/v1/backup").await.status, 401);
        let shown = world.ask("GET", "/api/v1/backup", "Authorization: Bearer secret\r\n").await;
        assert_eq!(shown.status, 200);
    });
    with_server(Access { public_read: true, ..Access::default() }, |world| async move {
        assert_eq!(world.get("/api/v1/backup").await.status, 403);
    });
}
