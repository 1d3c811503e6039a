//! `/api/v1/events`: Server-Sent Events.

use hyper::Response;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use hyper::http::request::Parts;

use crate::http::App;
use crate::http::live::form::Form;
use crate::http::live::{Feed, Message};
use crate::http::media::Media;
use crate::http::params::{Param, Params};
use crate::http::reply::{Body, Problem, typed};
use crate::http::stream;

/// How long a browser waits before it comes again, and a line that ends a proxy's waiting.
const HELLO: &[u8] = b"retry: 2000\n\n";
/// A comment: a sign of life.
const BEAT: &[u8] = b":\n\n";

/// Opens what a client wants to hear, in `form`.
///
/// # Errors
/// 400 and 404 for wrong parameters, 503 when all places are taken.
pub(super) fn open(app: &App, params: &Params, request: &Parts, form: Form) -> Result<Feed, Problem> {
    let fleet = app.fleet.borrow();
    let only = params.devices(&app.names())?.map(|ids| ids.into_iter().collect());
    let header = request.headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?"));
    let resume = header.or(params.one(Param::LastEventId)).filter(|id| !id.is_empty());
    let listener = app.live.listen(form, only).ok_or_else(|| {
        Problem::later("busy", "all places for listeners are taken", "come again in some seconds, or poll /latest", 5)
    })?;
    Ok(Feed::new(listener, app.store.clone(), &fleet, resume))
}

/// Events as they happen, for as long as the client listens.
///
/// # Errors
/// As [`open`].
pub fn events(app: &App, params: &Params, request: &Parts, head_only: bool) -> Result<Response<Body>, Problem> {
    if head_only {
        return Ok(typed(Media::EventStream, stream::none()));
    }
    let feed = open(app, params, request, Form::Stream)?;
    let stream = smol::stream::unfold((Some(HELLO), feed), |(hello, mut feed)| async move {
        let next = match hello {
            Some(hello) => Ok(hello.into()),
            None => feed.next().await?.map(|message| match message {
                Message::Data(bytes) => bytes,
                Message::Beat => BEAT.into(),
            }),
        };
        Some((next, (None, feed)))
    });
    let mut response = typed(Media::EventStream, Body::Stream(Box::pin(stream)));
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}
