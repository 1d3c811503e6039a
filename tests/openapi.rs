//! The contract that is served holds: every route is in it, and every real reply is of the form that it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use std::rc::Rc;

use async_net::TcpStream;
use common::server::*;
use serde_json::{Value, json};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use wattd::http::access::{Access, Secret};
use wattd::store::What;
use wattd::units::UnixMillis;

/// What of `value` is not as `schema` says, in the part of JSON Schema that our document uses. Any other word is an error:
/// it would be a promise that nobody checks.
fn problems(at: &str, schema: &Value, value: &Value, document: &Value, found: &mut Vec<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => schema,
    };
    let mut fail = |why: String| found.push(format!("{at}: {why}, got {value}"));
    for (word, says) in schema.as_object().unwrap() {
        match word.as_str() {
            "type" => {
                let types: Vec<&str> = match says {
                    Value::Array(types) => types.iter().map(|word| word.as_str().unwrap()).collect(),
                    one => vec![one.as_str().unwrap()],
                };
                let is = |word: &&str| match *word {
                    "string" => value.is_string(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    "null" => value.is_null(),
                    other => panic!("{other}"),
                };
                if !types.iter().any(is) {
                    fail(format!("is no {types:?}"));
                }
            }
            "enum" if !says.as_array().unwrap().contains(value) => fail(format!("is none of {says}")),
            "minimum" if value.as_f64().is_some_and(|number| number < says.as_f64().unwrap()) => {
                fail(format!("is below {says}"));
            }
            "format" => {
                assert_eq!(says, "date-time");
                if value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_err()) {
                    fail("is no moment".to_owned());
                }
            }
            "required" => {
                for name in says.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        fail(format!("has no {name}"));
                    }
                }
            }
            "additionalProperties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    if !schema["properties"].as_object().is_some_and(|known| known.contains_key(name)) {
                        if *says == json!(false) {
                            fail(format!("{name} is not described"));
                        } else {
                            problems(&format!("{at}.{name}"), says, member, document, found);
                            return;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    for (word, says) in schema.as_object().unwrap() {
        match word.as_str() {
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = says.get(name) {
                        problems(&format!("{at}.{name}"), schema, member, document, found);
                    }
                }
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    problems(&format!("{at}[{n}]"), says, item, document, found);
                }
            }
            "anyOf" => {
                let fits = |schema: &Value| {
                    let mut found = Vec::new();
                    problems(at, schema, value, document, &mut found);
                    found.is_empty()
                };
                if !says.as_array().unwrap().iter().any(fits) {
                    found.push(format!("{at}: fits none of {says}, got {value}"));
                }
            }
            "type" | "enum" | "minimum" | "format" | "required" | "additionalProperties" | "description" => {}
            other => panic!("{at}: nobody checks {other}"),
        }
    }
}

fn assert_fits(at: &str, schema: &Value, value: &Value, document: &Value) {
    let mut found = Vec::new();
    problems(at, schema, value, document, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_reply_is_as_the_document_says() {
    with_server(local(), |world| async move {
        for n in (0..200).rev() {
            world.append(FRIDGE, NOW - n * 10_000, n);
            world.append(LEFT, NOW - n * 10_000 - 1, 1_000);
        }
        world.app.store.note(Some(FRIDGE), UnixMillis::new(NOW), What::Online);
        world.commit().await;
        let document = world.get("/api/v1/openapi.json").await.json();
        let error = &document["components"]["responses"]["Error"]["content"]["application/json"]["schema"];
        for (path, methods) in document["paths"].as_object().unwrap() {
            let Some(operation) = methods.get("get") else { continue };
            // What goes on for as long as somebody listens is heard to its first line only.
            if path == "/api/v1/events" {
                let first = begin(&world, path, "").await;
                assert!(
                    first.starts_with("HTTP/1.1 200 ") && first.contains("\r\ncontent-type: text/event-stream\r\n")
                );
                assert!(operation["responses"]["200"]["content"]["text/event-stream"].is_object());
                continue;
            }
            if path == "/api/v1/ws" {
                let upgrade = "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                assert!(begin(&world, path, upgrade).await.starts_with("HTTP/1.1 101 "));
                assert!(operation["responses"]["101"].is_object());
                continue;
            }
            let target = path.replace("{id}", "9c5322000002");
            let answer = world.get(&target).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            let kind = answer.header("content-type").unwrap().split(';').next().unwrap();
            let contents = &operation["responses"]["200"]["content"];
            let schema = &contents[kind]["schema"];
            assert!(schema.is_object(), "{path} sends {kind}, which the document does not say");
            if kind == "application/json" && path != "/api/v1/openapi.json" {
                let json = answer.json();
                assert_fits(path, schema, &json, &document);
                assert_has_all(path, schema, &json);
            }
            // Times as numbers, and every column alone.
            if let Some(list) = list_of(schema) {
                for query in ["time=ms", "device=fridge%20%3Cb%3E", "device=Right"] {
                    let answer = world.get(&format!("{target}?{query}")).await;
                    assert_eq!(answer.status, 200);
                    assert_fits(path, schema, &answer.json(), &document);
                }
                let row = &schema["properties"][list]["items"]["properties"];
                for column in row.as_object().unwrap().keys() {
                    let answer = world.get(&format!("{target}?fields={column}&format=csv")).await;
                    assert!(answer.text().starts_with(&format!("{column}\r\n")), "{path} {column}");
                }
            }
            let refused = world.get(&format!("{target}?wrong=1")).await;
            assert_eq!(refused.status, 400);
            assert_fits(path, error, &refused.json(), &document);
            for param in operation["parameters"].as_array().unwrap() {
                let Some(param) = param["$ref"].as_str().map(|reference| document.pointer(&reference[1..]).unwrap())
                else {
                    continue;
                };
                let name = param["name"].as_str().unwrap();
                for word in param["schema"]["enum"].as_array().into_iter().flatten() {
                    let answer = world.get(&format!("{target}?{name}={}", word.as_str().unwrap())).await;
                    assert_eq!(answer.status, 200, "{path} {name}={word}");
                }
                for example in param["schema"]["examples"].as_array().into_iter().flatten() {
                    let target = format!("{target}?{name}={}", example.as_str().unwrap());
                    let answer = world.get(&target).await;
                    let empty = name == "start" && example == "now" || name == "end";
                    assert!(answer.status == 200 || empty && answer.code() == "empty_range", "{target}: {answer:?}");
                }
            }
        }
    });
}

/// The head of a reply that goes on.
async fn begin(world: &World, target: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        all.extend(byte);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn every_refusal_is_one_that_the_document_tells() {
    let refused = |world: Rc<World>, expected: &'static [(&'static str, &'static str, &'static str, u16)]| async move {
        let document = wattd::http::openapi::document();
        for (method, path, headers, status) in expected {
            let target = path.replace("{id}", "nobody");
            let answer = world.ask(method, &target, headers).await;
            assert_eq!(answer.status, *status, "{method} {path} {headers}");
            let path = path.split('?').next().unwrap();
            let asked = if path == "/api/v1/batch" { "post" } else { "get" };
            let told = &document["paths"][path][asked]["responses"][status.to_string()];
            let told =
                document.pointer(&told["$ref"].as_str().unwrap_or_else(|| panic!("{path} {status}"))[1..]).unwrap();
            for name in told["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
                assert!(answer.header(name).is_some(), "{path} {status} has no {name}");
            }
            if *status != 431 {
                assert_fits(path, &told["content"]["application/json"]["schema"], &answer.json(), &document);
            }
        }
    };
    with_server(local(), |world| async move {
        world.app.ready.set(false);
        let long: &'static str = format!("X-Long: {}\r\n", "a".repeat(wattd::limits::HTTP_HEAD)).leak();
        let expected = vec![
            ("GET", "/api/v1/latest?limit=1", "", 400),
            ("GET", "/api/v1/devices/{id}", "", 404),
            ("GET", "/plug/{id}", "", 404),
            ("GET", "/api/v1/readings?device=nobody", "", 404),
            ("GET", "/api/v1/rollups?device=nobody", "", 404),
            ("GET", "/api/v1/summary?device=nobody", "", 404),
            ("GET", "/api/v1/history?device=nobody", "", 404),
            ("GET", "/api/v1/chart.svg?device=nobody", "", 404),
            ("GET", "/api/v1/events?device=nobody", "", 404),
            ("POST", "/api/v1/latest", "", 405),
            ("GET", "/api/v1/batch", "", 405),
            ("GET", "/api/v1/devices", "Accept: image/png\r\n", 406),
            ("POST", "/api/v1/batch", "Content-Type: application/json\r\n", 411),
            ("POST", "/api/v1/batch", "", 415),
            ("GET", "/health", "Content-Length: 5\r\n", 413),
            ("GET", "/health", long, 431),
            ("GET", "/api/v1/ws", "", 426),
            ("GET", "/ready", "", 503),
        ];
        refused(world, expected.leak()).await;
    });
    let access = Access { token: Some(Secret::new("s3cret".to_owned())), ..Access::default() };
    with_server(access, |world| async move {
        refused(
            world,
            &[("GET", "/api/v1/latest", "", 401), ("GET", "/metrics", "", 401), ("POST", "/api/v1/batch", "", 401)],
        )
        .await;
    });
    with_server(Access::default(), |world| async move {
        refused(world, &[("GET", "/api/v1/latest", "", 403)]).await;
    });
}

/// The name of the list of rows, where a reply is one.
fn list_of(schema: &Value) -> Option<&str> {
    let mut names = schema["properties"].as_object()?.keys();
    names
        .find(|name| *name != "next" && schema["properties"][*name]["items"]["required"] == json!([]))
        .map(String::as_str)
}

/// A row without `fields` has every column that is described.
fn assert_has_all(path: &str, schema: &Value, json: &Value) {
    let Some(list) = list_of(schema) else { return };
    let row = json[list].get(0).unwrap_or_else(|| panic!("{path} has no row"));
    let mut described: Vec<_> = schema["properties"][list]["items"]["properties"].as_object().unwrap().keys().collect();
    let mut sent: Vec<_> = row.as_object().unwrap().keys().collect();
    described.sort();
    sent.sort();
    assert_eq!(sent, described, "{path}");
}

#[test]
fn the_check_notices_what_is_wrong() {
    let schema = json!({"type": "object", "properties": {"a": {"type": ["integer", "null"], "minimum": 0}},
        "required": ["a"], "additionalProperties": false});
    for (value, right) in [
        (json!({"a": 1}), true),
        (json!({"a": null}), true),
        (json!({"a": -1}), false),
        (json!({"a": "1"}), false),
        (json!({}), false),
        (json!({"a": 1, "b": 1}), false),
    ] {
        let mut found = Vec::new();
        problems("", &schema, &value, &schema, &mut found);
        assert_eq!(found.is_empty(), right, "{value}");
    }
}
