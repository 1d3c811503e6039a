//! Several requests in one: each is answered as it would be alone, with its own status.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use smol::stream;

use crate::clock::within;
use crate::http::App;
use crate::http::media::Media;
use crate::http::reply::{Body, Problem, quoted, typed};
use crate::http::routes;
use crate::http::schema::Schema;
use crate::limits;

/// What is asked.
pub const ASKED: Schema =
    Schema::Few(limits::BATCH_PATHS, &Schema::Object(&[("id", Schema::Id), ("path", Schema::Text)]));

/// What is answered, in the same order.
pub const ANSWERS: Schema = Schema::Object(&[(
    "answers",
    Schema::List(&Schema::Object(&[("id", Schema::Id), ("status", Schema::Whole), ("body", Schema::Any)])),
)]);

/// One request: a path with its query, and what the client calls it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    id: Id,
    path: String,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

/// Answers each of the requests in `body`, one after the other, while the reply is sent.
///
/// # Errors
/// 400, 408, 411, 413 and 415 for a body that is none.
pub async fn batch(app: &App, request: &Parts, body: Option<Incoming>) -> Result<Response<Body>, Problem> {
    let bytes = read(app, request, body).await?;
    let asked: Vec<Asked> = serde_json::from_slice(&bytes).map_err(|why| {
        let hint = "send [{\"id\": 1, \"path\": \"/api/v1/latest\"}, ...]";
        Problem::bad("bad_batch", format!("the body is no list of requests: {why}"), hint)
    })?;
    if asked.is_empty() || asked.len() > limits::BATCH_PATHS {
        let message = format!("{} requests in one batch; it can have 1 to {}", asked.len(), limits::BATCH_PATHS);
        return Err(Problem::bad("bad_batch", message, "send several batches"));
    }
    let (app, outer) = (app.clone(), request.clone());
    let chunks = stream::unfold(Some((true, asked.into_iter())), move |left| {
        let (app, outer) = (app.clone(), outer.clone());
        async move {
            let (first, mut asked) = left?;
            let lead = if first { "{\"answers\":[\n" } else { ",\n" };
            Some(match asked.next() {
                Some(next) => {
                    let mut chunk = lead.as_bytes().to_vec();
                    answer(app, &outer, next, &mut chunk).await;
                    (Ok(Bytes::from(chunk)), Some((false, asked)))
                }
                None => (Ok(Bytes::from_static(b"\n]}\n")), None),
            })
        }
    });
    Ok(typed(Media::Json, Body::Stream(Box::pin(chunks))))
}

/// The whole body.
async fn read(app: &App, request: &Parts, body: Option<Incoming>) -> Result<Vec<u8>, Problem> {
    let header = |name| request.headers.get(name).and_then(|value: &hyper::header::HeaderValue| value.to_str().ok());
    let kind = header(CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = format!("a batch is application/json, not {}", quoted(kind));
        let hint = "send `Content-Type: application/json`; with curl: --json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message, hint));
    }
    if header(CONTENT_LENGTH).is_none() && !request.headers.contains_key(TRANSFER_ENCODING) {
        let message = "this request has no Content-Length";
        return Err(Problem::new(StatusCode::LENGTH_REQUIRED, "length_required", message, "send it with one"));
    }
    let too_large = || {
        let message = format!("a batch may have {} bytes", limits::BATCH_BODY);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message, "send several batches")
    };
    let announced = header(CONTENT_LENGTH).map_or(Some(0), |length| length.parse::<usize>().ok());
    if announced.is_none_or(|length| length > limits::BATCH_BODY) {
        return Err(too_large());
    }
    let reading = async {
        let mut bytes = Vec::new();
        let Some(mut body) = body else { return Ok(bytes) };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|why| {
                Problem::bad("broken_body", format!("the body breaks off: {why}"), "send all that is announced")
            })?;
            bytes.extend(frame.into_data().unwrap_or_default());
            if bytes.len() > limits::BATCH_BODY {
                return Err(too_large());
            }
        }
        Ok(bytes)
    };
    let end = app.clock.elapsed().saturating_add(limits::HTTP_BODY_TIME);
    within(app.clock.as_ref(), end, reading).await.unwrap_or_else(|| {
        let message = "the request's body took too long";
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message, "send it at once"))
    })
}

/// Writes the answer to one request.
async fn answer(app: App, outer: &Parts, asked: Asked, out: &mut Vec<u8>) {
    let (status, body) = match prepare(outer, &asked.path) {
        Ok(parts) => {
            let mut response = handle(app, parts).await;
            let status = response.status();
            match response.body_mut() {
                Body::Whole(bytes) => (status, bytes.take().unwrap_or_default()),
                Body::Stream(_) | Body::Socket(_) => refused(not_here(&asked.path)),
            }
        }
        Err(problem) => refused(problem),
    };
    out.extend(b"{\"id\":");
    let _ = serde_json::to_writer(&mut *out, &asked.id); // a Vec takes everything, and both forms are JSON
    out.extend(format!(",\"status\":{},\"body\":", status.as_u16()).as_bytes());
    out.extend(body.trim_ascii_end());
    out.push(b'}');
}

/// Ends the recursion of types: a batch is a request that has requests in it.
fn handle(app: App, parts: Parts) -> Pin<Box<dyn Future<Output = Response<Body>>>> {
    Box::pin(async move { app.handle(&parts).await })
}

fn prepare(outer: &Parts, path: &str) -> Result<Parts, Problem> {
    let refuse =
        |_| Problem::bad("bad_path", format!("{} is no path", quoted(path)), "write it as in a URL, from / on");
    let mut request = Request::get(path).body(()).map_err(refuse)?.into_parts().0;
    if !path.starts_with('/') {
        return Err(Problem::bad("bad_path", format!("{} is no path", quoted(path)), "begin it with /"));
    }
    let (route, _) = routes::find(request.uri.path())?;
    if !route.sends_json() {
        return Err(not_here(path));
    }
    for name in [HOST, AUTHORIZATION] {
        if let Some(value) = outer.headers.get(&name) {
            request.headers.insert(name, value.clone());
        }
    }
    Ok(request)
}

fn not_here(path: &str) -> Problem {
    let message = format!("{} does not send one JSON object, so it cannot be part of a batch", quoted(path));
    Problem::new(StatusCode::NOT_ACCEPTABLE, "not_in_batch", message, "ask for it by itself, or leave out `format`")
}

fn refused(problem: Problem) -> (StatusCode, Bytes) {
    (problem.status, problem.to_json().into())
}
