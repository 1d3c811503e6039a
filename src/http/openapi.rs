//! The contract as an OpenAPI 3.1 document, written from the table of routes: a route that is not in it is not served, and
//! one that is served is in it.

use hyper::Response;
use serde_json::{Map, Value, json};

use crate::http::media::Media;
use crate::http::params::Param;
use crate::http::reply::{Body, json as reply_json};
use crate::http::routes::{Endpoint, HEALTH, Method, ROUTES, Reply, Route};
use crate::http::schema::{self, Schema};

/// What every refusal looks like.
pub const ERROR: Schema = Schema::Object(&[(
    "error",
    Schema::Object(&[("code", Schema::Text), ("message", Schema::Text), ("hint", Schema::Text)]),
)]);

/// The document as a reply.
#[must_use]
pub fn openapi() -> Response<Body> {
    reply_json(&document())
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES.iter().filter(|route| route.path != "/api/v1") {
        let method = match route.method {
            Method::Get => "get",
            Method::Post => "post",
        };
        paths.insert(route.path.to_owned(), json!({ method: operation(route) }));
    }
    let params: Map<_, _> = Param::ALL.iter().map(|param| (param.name().to_owned(), parameter(*param))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "wattd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What TP-Link Kasa and Tapo plugs measure. Read-only. GET stands for HEAD too.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}, {"password": []}],
        "paths": paths,
        "components": {
            "parameters": params,
            "responses": {
                "Error": {"description": "a refusal", "content": content(Media::Json, &ERROR.to_json())},
                "Later": {
                    "description": "not now: come again after `Retry-After`",
                    "headers": {"Retry-After": {
                        "required": true, "description": "seconds", "schema": {"type": "integer", "minimum": 1},
                    }},
                    "content": content(Media::Json, &ERROR.to_json()),
                },
                "TooLong": {"description": "the request's head is longer than is read; without a body"},
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "the token as password, any user name"},
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let refer = |param: Param| json!({"$ref": format!("#/components/parameters/{}", param.name())});
    let mut params: Vec<Value> = route.params().map(refer).collect();
    if route.path.ends_with("{id}") {
        params.push(json!({
            "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            "description": "a device's id or alias",
        }));
    }
    let (media, schema) = match &route.reply {
        Reply::Json(schema) => (Media::Json, schema.to_json()),
        Reply::Rows { list, columns, next } => (Media::Json, schema::rows(list, &columns(), *next)),
        Reply::OpenApi => (Media::Json, json!({"type": "object"})),
        Reply::Socket => return with_body(route, params, responses(route, "101", json!({"description": route.about}))),
        Reply::Other(media) => (*media, json!({"type": "string"})),
    };
    let mut contents = content(media, &schema);
    for other in route.media.iter().filter(|other| **other != media) {
        contents.extend(content(*other, &json!({"type": "string"})));
    }
    with_body(route, params, responses(route, "200", json!({"description": route.about, "content": contents})))
}

/// What a path can answer: `reply` with the status `done`, and every refusal there is.
fn responses(route: &Route, done: &str, reply: Value) -> Value {
    let mut all: Map<_, _> = refusals(route).map(|status| (status.to_string(), refer_to(status))).collect();
    all.insert(done.to_owned(), reply);
    if route.sends_json() || matches!(route.reply, Reply::Other(Media::Html | Media::Svg | Media::Text)) {
        all.insert("304".to_owned(), json!({"description": "what If-None-Match names is still so"}));
    }
    all.into()
}

fn refer_to(status: u16) -> Value {
    let kind = match status {
        431 => "TooLong",
        503 => "Later",
        _ => "Error",
    };
    json!({"$ref": format!("#/components/responses/{kind}")})
}

/// The statuses of a path's refusals.
fn refusals(route: &Route) -> impl Iterator<Item = u16> + use<> {
    // A wrong parameter, method, body or host; too slow; a bug; too much at once.
    let always: &[u16] = &[400, 405, 408, 413, 421, 431, 500, 503];
    let token: &[u16] = if route.path == HEALTH { &[] } else { &[401, 403] };
    let device: &[u16] =
        if route.path.ends_with("{id}") || route.params().any(|param| param == Param::Device) { &[404] } else { &[] };
    let media: &[u16] = if route.media.is_empty() { &[] } else { &[406] };
    let own: &[u16] = match route.endpoint {
        Endpoint::Batch => &[411, 415],
        Endpoint::Backup => &[409],
        Endpoint::Socket => &[426],
        _ => &[],
    };
    [always, token, device, media, own].into_iter().flatten().copied()
}

fn with_body(route: &Route, params: Vec<Value>, responses: Value) -> Value {
    let mut operation = json!({
        "summary": route.about,
        "operationId": format!("{:?}", route.endpoint),
        "parameters": params,
        "responses": responses,
    });
    if let (Some(body), Some(operation)) = (&route.body, operation.as_object_mut()) {
        let body = json!({"required": true, "content": content(Media::Json, &body.to_json())});
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

fn content(media: Media, schema: &Value) -> Map<String, Value> {
    let kind = media.content_type().split(';').next().unwrap_or_default();
    [(kind.to_owned(), json!({ "schema": schema }))].into_iter().collect()
}

/// A parameter; one that may be repeated is a list, which `form` and `explode`, both usual, write so.
fn parameter(param: Param) -> Value {
    json!({
        "name": param.name(), "in": "query", "required": false, "description": param.about(), "schema": param.schema(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
        let document = document();
        let mut names = std::collections::BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                assert!(names.insert(operation["operationId"].as_str().unwrap()), "{path}");
                for param in operation["parameters"].as_array().unwrap() {
                    if let Some(reference) = param["$ref"].as_str() {
                        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                }
            }
        }
    }
}
