//! Replies: whole ones, streamed ones, and refusals.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;
use smol::stream::Stream;

use crate::http::live::ws::Session;
use crate::http::media::Media;
use crate::reading::Text;
use crate::store::StoreError;

/// A stream of a reply's bytes, chunk after chunk.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>>>>;

/// The body of a reply.
pub enum Body {
    /// All of it, in memory. None once it was sent.
    Whole(Option<Bytes>),
    /// Made while it is sent. An error breaks the connection, so that half a reply is never taken for a whole one.
    Stream(Chunks),
    /// None: the connection becomes a WebSocket.
    Socket(Option<Box<Session>>),
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Whole(None)
    }

    /// How many bytes, when that is known.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        match self {
            Self::Whole(bytes) => Some(bytes.as_ref().map_or(0, Bytes::len)),
            Self::Stream(_) | Self::Socket(_) => None,
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Socket(_) => Poll::Ready(None),
            Self::Stream(chunks) => chunks.as_mut().poll_next(context).map(|chunk| Some(chunk?.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Socket(_))
    }

    fn size_hint(&self) -> SizeHint {
        let exact = self.length().and_then(|length| u64::try_from(length).ok());
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A reply of `bytes`.
#[must_use]
pub fn whole(media: Media, bytes: impl Into<Bytes>) -> Response<Body> {
    typed(media, Body::Whole(Some(bytes.into())))
}

/// A reply of `value` as JSON.
#[must_use]
pub fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            whole(Media::Json, bytes)
        }
        Err(error) => {
            log::error!("bug: a reply is no JSON: {error}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "this reply could not be made", "see the log")
                .into_response()
        }
    }
}

/// A reply with `body` of this media type.
#[must_use]
pub fn typed(media: Media, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media.content_type()));
    response
}

/// A refusal: what the client did or met, and what to do about it.
#[derive(Debug)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// A short word that programs can rely on.
    pub code: &'static str,
    /// What is wrong, for people.
    pub message: String,
    /// What to do, for people.
    pub hint: String,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

#[derive(Serialize)]
struct Wrapped<'a> {
    error: Shown<'a>,
}

#[derive(Serialize)]
struct Shown<'a> {
    code: &'a str,
    message: &'a str,
    hint: &'a str,
}

impl Problem {
    /// A refusal.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), hint: hint.into(), header: None }
    }

    /// A refusal with status 400.
    #[must_use]
    pub fn bad(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message, hint)
    }

    /// A refusal for now, with status 503: the client may come again in `seconds`.
    #[must_use]
    pub fn later(code: &'static str, message: impl Into<String>, hint: impl Into<String>, seconds: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint).with(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The method is not one of those that are answered here.
    #[must_use]
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        let message = format!("only {allowed} is answered here");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, format!("send {allowed}"))
            .with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some(Box::new((name, value))), ..self }
    }

    /// The refusal as a reply.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        let mut response = whole(Media::Json, self.to_json());
        *response.status_mut() = self.status;
        if let Some((name, value)) = self.header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }

    /// The refusal as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let shown = Shown { code: self.code, message: &self.message, hint: &self.hint };
        let mut bytes = serde_json::to_vec(&Wrapped { error: shown }).unwrap_or_default(); // three texts are JSON
        bytes.push(b'\n');
        bytes
    }
}

/// What the client learns of an error of the store; the log has all of it.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        log::error!("a request could not read the store: {error}");
        Self::later("store", "the store cannot be read at the moment", "the log says why; `latest` still works", 10)
    }
}

/// A client's text as part of ours: cut, without control characters, in quotes.
#[must_use]
pub fn quoted(text: &str) -> impl fmt::Display {
    format!("\"{}\"", Text::<64>::new(text))
}
