//! Replies that are kept are never stale, say whether they were kept, and are compressed when that is asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::Read as _;
use std::time::Duration;

use common::server::*;
use wattd::http::access::{Access, Secret};
use wattd::limits;
use wattd::poll::fleet::Presence;
use wattd::reading::Alias;
use wattd::units::UnixMillis;

const DAY: i64 = 86_400_000;

async fn kept(world: &World, target: &str) -> (Option<String>, Answer) {
    let answer = world.get(target).await;
    assert_eq!(answer.status, 200, "{target}: {answer:?}");
    (answer.header("x-cache").map(str::to_owned), answer)
}

async fn is_hit(world: &World, target: &str) -> bool {
    match kept(world, target).await.0.as_deref() {
        Some("HIT") => true,
        Some("MISS") => false,
        other => panic!("{target}: {other:?}"),
    }
}

#[test]
fn a_reply_is_kept_until_what_it_shows_changes() {
    with_server(local(), |world| async move {
        for n in 0..10 {
            world.append(FRIDGE, NOW - 2 * DAY - n * 10_000, 1_000 + n);
            world.append(LEFT, NOW - 2 * DAY - n * 10_000, 1_000 + n);
        }
        world.append(FRIDGE, NOW - 10_000, 5_000);
        world.append(LEFT, NOW - 10_000, 5_000);
        let past = format!("/api/v1/readings?device=9c5322000001&start={}&end={}", NOW - 3 * DAY, NOW - DAY);
        let rolled = format!("/api/v1/rollups?device=9c5322000001&start={}&end={}", NOW - 3 * DAY, NOW - DAY);
        let desk = "/api/v1/readings?device=9c5322000002.0";
        let targets =
            [&past, &rolled, "/api/v1/readings", desk, "/api/v1/latest", "/api/v1/devices", "/api/v1/summary"];
        for target in targets {
            assert!(!is_hit(&world, target).await && is_hit(&world, target).await, "{target}");
        }
        // A reading of the fridge: what is past and what is of others stays.
        world.append(FRIDGE, NOW, 6_000);
        for (target, hit) in targets.iter().zip([true, true, false, true, false, false, false]) {
            let (said, answer) = kept(&world, target).await;
            assert_eq!(said.as_deref() == Some("HIT"), hit, "{target}");
            assert!(hit || *target == "/api/v1/devices" || answer.text().contains('6'), "{target}: {}", answer.text());
        }
        // A commit changes no answer; one that comes late does, in the past too.
        world.commit().await;
        world.append(FRIDGE, NOW - 2 * DAY + 5, 7_777);
        let (said, answer) = kept(&world, &past).await;
        assert!(said.as_deref() == Some("MISS") && answer.text().contains("7.777"));
        // Other names, other presence.
        assert!(is_hit(&world, "/api/v1/devices").await || is_hit(&world, "/api/v1/devices").await);
        world.app.fleet.borrow_mut().get_mut(FRIDGE.plug).unwrap().name = Some(Alias::new("Cellar"));
        for target in ["/api/v1/devices", "/api/v1/latest", "/api/v1/summary", "/api/v1/devices/9c5322000001"] {
            let (said, answer) = kept(&world, target).await;
            assert!(said.as_deref() == Some("MISS") && answer.text().contains("Cellar"), "{target}");
        }
        assert!(is_hit(&world, "/api/v1/latest").await);
        world.app.fleet.borrow_mut().get_mut(FRIDGE.plug).unwrap().presence =
            Presence::Offline { since: UnixMillis::new(NOW) };
        assert!(!is_hit(&world, "/api/v1/latest").await);
    });
}

#[test]
fn the_same_question_in_other_words_is_the_same() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1, 1);
        assert!(!is_hit(&world, "/api/v1/readings?device=9c5322000001&limit=5&order=desc").await);
        for same in [
            "order=desc&limit=5&device=9c5322000001",
            "device=Fridge+%3Cb%3E&limit=5&order=desc",
            "limit=5&format=json&device=9C:53:22:00:00:01&order=desc",
        ] {
            assert!(is_hit(&world, &format!("/api/v1/readings?{same}")).await, "{same}");
        }
        for other in
            ["device=9c5322000001&limit=6&order=desc", "limit=5&order=desc", "device=9c5322000001&limit=5&order=asc"]
        {
            assert!(!is_hit(&world, &format!("/api/v1/readings?{other}")).await, "{other}");
        }
        for unkept in ["/health", "/ready", "/", "/api/v1/readings?format=csv", "/api/v1/latest?max_age=5s", "/api/v1/"]
        {
            assert_eq!(kept(&world, unkept).await.0, None, "{unkept}");
        }
        let kept_for_ever = "/api/v1/openapi.json";
        assert!(!is_hit(&world, kept_for_ever).await);
        world.append(LEFT, NOW, 1);
        assert!(is_hit(&world, kept_for_ever).await);
    });
}

#[test]
fn what_moves_with_the_clock_is_not_kept_for_long() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 5_000, 60_000);
        for target in ["/api/v1/rollups?step=15m", "/api/v1/summary", "/api/v1/readings?start=-1h"] {
            assert!(!is_hit(&world, target).await && is_hit(&world, target).await);
            world.clock.advance(limits::CACHE_MOVING);
            assert!(!is_hit(&world, target).await, "{target}");
        }
        // A value that stops being live although nothing comes: three intervals and a poll after it came.
        let online = |answer: &Answer| answer.json()["readings"][0]["online"].as_bool().unwrap();
        let latest = world.get("/api/v1/latest").await;
        assert!(online(&latest));
        for _ in 0..80 {
            world.clock.advance(Duration::from_millis(700));
            let latest = world.get("/api/v1/latest").await;
            let row = &latest.json()["readings"][0];
            let age = row["age_ms"].as_u64().unwrap();
            assert_eq!(online(&latest), age <= 45_000, "{row}");
            assert_eq!(age as i64, wattd::clock::Clock::wall(&*world.clock).get() - (NOW - 5_000));
        }
    });
}

/// Whatever happens, a kept reply is the one that would be made now.
#[test]
fn a_kept_reply_is_the_one_that_would_be_made_now() {
    for seed in 0..3 {
        with_server(local(), |world| async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut hits = 0;
            world.append(FRIDGE, NOW - 3_600_000, 1);
            for step in 0..250 {
                match random.u8(0..12) {
                    0..=2 => world.append([FRIDGE, LEFT, RIGHT][random.usize(0..3)], now(&world), random.i64(0..9_000)),
                    3 => world.append(FRIDGE, now(&world) - random.i64(0..3_600_000), random.i64(0..9_000)),
                    4 => world.app.store.gap(LEFT, UnixMillis::new(now(&world))),
                    5 => world.commit().await,
                    6 => world.clock.advance(Duration::from_millis(random.u64(0..30_000))),
                    7 => {
                        let mut fleet = world.app.fleet.borrow_mut();
                        fleet.get_mut(STRIP).unwrap().name = Some(Alias::new(&format!("n{}", random.u8(0..3))));
                    }
                    8 => {
                        let presence = if random.bool() { Presence::Online } else { Presence::Unknown };
                        world.app.fleet.borrow_mut().get_mut(FRIDGE.plug).unwrap().presence = presence;
                    }
                    _ => {}
                }
                // Ended, so that only what comes late changes it.
                let from = NOW - 2_700_000 + random.i64(0..2) * 900_000;
                for target in [
                    "/api/v1/latest".to_owned(),
                    "/api/v1/latest?device=9c5322000002&format=csv".to_owned(),
                    "/api/v1/devices".to_owned(),
                    format!("/api/v1/readings?start={from}&end={}&time=ms", from + 900_000),
                    format!("/api/v1/rollups?step=15m&start={from}&end={}&device=9c5322000001", from + 900_000),
                    "/api/v1/readings?start=0&limit=3".to_owned(),
                ] {
                    let (said, answer) = kept(&world, &target).await;
                    hits += usize::from(said.as_deref() == Some("HIT"));
                    let made = world.ask("GET", &target, "Cache-Control: no-cache\r\n").await;
                    assert_eq!(made.header("x-cache"), Some("MISS"));
                    assert_eq!(answer.text(), made.text(), "seed {seed}, step {step}, {target}");
                    assert_eq!(answer.header("etag"), made.header("etag"));
                }
            }
            assert!(hits > 200, "{hits}");
        });
    }
}

fn now(world: &World) -> i64 {
    wattd::clock::Clock::wall(&*world.clock).get()
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW - 1_000, 1);
        for (target, weak) in
            [("/api/v1/latest", true), ("/api/v1/readings", false), ("/", false), ("/api/v1/chart.svg", false)]
        {
            let tag = world.get(target).await.header("etag").unwrap().to_owned();
            assert_eq!(tag.starts_with("W/\""), weak, "{tag}");
            let again = |known: String| {
                let world = world.clone();
                async move { world.ask("GET", target, &format!("If-None-Match: {known}\r\n")).await }
            };
            let answer = again(tag.clone()).await;
            assert_eq!(
                (answer.status, answer.body.len(), answer.header("etag")),
                (304, 0, Some(tag.as_str())),
                "{target}"
            );
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
            assert!(answer.header("content-length").is_none());
            assert_eq!(again(format!("\"other\", {tag}")).await.status, 304);
            assert_eq!(again("*".to_owned()).await.status, 304);
            assert_eq!(again("\"other\"".to_owned()).await.status, 200);
        }
        // An age alone is no news, a value is.
        let tag = world.get("/api/v1/latest").await.header("etag").unwrap().to_owned();
        world.clock.advance(Duration::from_secs(3));
        let known = format!("If-None-Match: {tag}\r\n");
        assert_eq!(world.ask("GET", "/api/v1/latest", &known).await.status, 304);
        assert_eq!(world.ask("HEAD", "/api/v1/latest", &known).await.status, 304);
        world.append(FRIDGE, NOW + 2_000, 2);
        assert_eq!(world.ask("GET", "/api/v1/latest", &known).await.status, 200);
    });
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

#[test]
fn replies_are_compressed_when_that_is_asked_for() {
    with_server(local(), |world| async move {
        for n in 0..3_000 {
            world.append(FRIDGE, NOW - n * 1_000, n);
        }
        let zipped = |target: &'static str| {
            let world = world.clone();
            async move { world.ask("GET", target, "Accept-Encoding: gzip, br\r\n").await }
        };
        for (target, kept) in [
            ("/api/v1/readings?limit=1000", true),
            ("/api/v1/openapi.json", true),
            ("/api/v1/readings?format=ndjson", false),
            ("/api/v1/readings?format=csv&limit=100", false),
        ] {
            let (plain, first, second) = (world.get(target).await, zipped(target).await, zipped(target).await);
            for answer in [&first, &second] {
                assert_eq!(answer.header("content-encoding"), Some("gzip"), "{target}");
                assert!(answer.header("vary").unwrap().contains("accept-encoding"));
                assert!(answer.body.len() < plain.body.len() / 2);
                assert_eq!(unzip(&answer.body), plain.body, "{target}");
            }
            assert_eq!(second.header("x-cache") == Some("HIT"), kept, "{target}");
            assert_eq!(plain.header("content-encoding"), None);
            assert!(!kept || plain.header("etag") != first.header("etag"), "two forms have two tags");
            let tag = first.header("etag").map(|tag| format!("If-None-Match: {tag}\r\n"));
            assert!(!kept || world.ask("GET", target, &tag.unwrap()).await.status == 304, "and either will do");
            let head = world.ask("HEAD", target, "Accept-Encoding: gzip\r\n").await;
            assert_eq!((head.header("content-encoding"), head.body.len()), (Some("gzip"), 0));
        }
        let small = zipped("/health").await;
        assert_eq!((small.status, small.header("content-encoding")), (200, None), "not worth it");
    });
}

/// What depends on how a client calls this server, or on what it shows, is no one else's.
#[test]
fn host_and_token_are_not_kept_for_others() {
    let ask = |host: &str, target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")
    };
    with_server(local(), |world| async move {
        world.append(FRIDGE, NOW, 1);
        let (one, other) =
            (world.raw(&ask("a.local:1", "/api/v1/", "")).await, world.raw(&ask("b.local", "/api/v1/", "")).await);
        assert!(one.text().contains("'http://a.local:1/") && !one.text().contains("b.local"), "{}", one.text());
        assert!(other.text().contains("'http://b.local/") && !other.text().contains("a.local"), "{}", other.text());
        let known = format!("If-None-Match: {}\r\n", one.header("etag").unwrap());
        assert_eq!(world.raw(&ask("a.local:1", "/api/v1/", &known)).await.status, 304);
        assert_eq!(world.raw(&ask("b.local", "/api/v1/", &known)).await.status, 200);
        for target in ["/api/v1/latest", "/api/v1/devices", "/api/v1/openapi.json", "/api/v1/readings"] {
            world.raw(&ask("a.local:1", target, "")).await;
            let kept = world.raw(&ask("b.local", target, "")).await;
            assert_eq!((kept.status, kept.header("x-cache")), (200, Some("HIT")), "{target}");
            assert!(!kept.text().contains("a.local"), "{target}");
            assert_eq!(world.raw(&ask("evil.example", target, "")).await.status, 421, "{target}");
        }
    });
    let access = Access { token: Some(Secret::new("s3cret".to_owned())), ..Access::default() };
    with_server(access, |world| async move {
        world.append(FRIDGE, NOW, 1);
        let token = "Authorization: Bearer s3cret\r\n";
        for target in ["/api/v1/latest", "/api/v1/devices", "/api/v1/openapi.json", "/api/v1/"] {
            let tag = world.ask("GET", target, token).await.header("etag").unwrap().to_owned();
            for headers in [String::new(), format!("If-None-Match: {tag}\r\n")] {
                let refused = world.ask("GET", target, &headers).await;
                assert_eq!((refused.status, refused.header("etag")), (401, None), "{target}");
            }
            let known = format!("{token}If-None-Match: {tag}\r\n");
            assert_eq!(world.ask("GET", target, &known).await.status, 304, "{target}");
        }
    });
}
