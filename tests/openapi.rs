//! The contract that is served holds: every route is in it, and every real reply is of the form that it says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::as_conversions)]
#![allow(clippy::disallowed_methods)]

mod common;

use common::server::*;
use serde_json::{Value, json};
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
            // What goes on for as long as somebody listens: tests/live.rs.
            if ["/api/v1/events", "/api/v1/ws"].contains(&path.as_str()) {
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
