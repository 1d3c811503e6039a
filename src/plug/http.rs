//! HTTP/1.1 to a plug: one connection, one request at a time.
//!
//! Owns the hyper client. Promises header names in title case and a `Content-Length` on each request, because the plugs'
//! server compares letter by letter and knows no chunks; a bound on the head and the body of what comes back, whose
//! length must be announced; and that a connection which broke is never used again. Leaves deadlines to the caller.

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE};
use smol_hyper::rt::FuturesIo;

use super::session::{Reply, Request};
use super::{PollError, Stream};
use crate::limits;

type Driver<S> = http1::Connection<FuturesIo<S>, Full<Bytes>>;

/// An open connection. Dropping it closes it.
pub struct Connection<S: Stream> {
    sender: http1::SendRequest<Full<Bytes>>,
    /// What moves the bytes; None once it has ended.
    driver: Option<Pin<Box<Driver<S>>>>,
}

impl<S: Stream> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", if self.driver.is_some() { "open" } else { "closed" })
    }
}

/// A whole reply, and whether the plug keeps the connection open behind it.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// Whether it says that it closes.
    pub closes: bool,
}

impl<S: Stream> Connection<S> {
    /// Speaks HTTP over `stream`.
    ///
    /// # Errors
    /// When the stream is of no use.
    pub async fn over(stream: S) -> Result<Self, PollError> {
        let mut builder = http1::Builder::new();
        builder.title_case_headers(true).max_buf_size(limits::HTTP_PLUG_HEAD).max_headers(limits::HTTP_HEADERS);
        let (sender, driver) = builder.handshake(FuturesIo::new(stream)).await.map_err(why)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Whether the plug has neither closed it nor sent anything unasked.
    pub async fn is_quiet(&mut self) -> bool {
        let Some(driver) = &mut self.driver else { return false };
        let ended = poll_fn(|context| Poll::Ready(driver.as_mut().poll(context).is_ready())).await;
        if ended {
            self.driver = None;
        }
        !ended && !self.sender.is_closed()
    }

    /// Sends `request` and reads the whole reply. After an error the connection is of no use any more.
    ///
    /// # Errors
    /// [`PollError::Closed`] when the connection ended before the reply did, [`PollError::BadHttp`] for what is no reply
    /// within the bounds.
    pub async fn exchange(&mut self, host: SocketAddr, request: Request) -> Result<Answer, PollError> {
        let Self { sender, driver } = self;
        let mut work = pin!(ask(sender, host, request));
        // The connection moves the bytes; when it ends, what it has brought is still to be read.
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if let Some(moving) = driver
                && moving.as_mut().poll(context).is_ready()
            {
                *driver = None;
                return work.as_mut().poll(context);
            }
            Poll::Pending
        })
        .await
    }
}

async fn ask(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    host: SocketAddr,
    request: Request,
) -> Result<Answer, PollError> {
    // Port 80 is not named, as browsers do not name it.
    let host = if host.port() == 80 { host.ip().to_string() } else { host.to_string() };
    let mut wire = hyper::Request::post(request.path).header(HOST, host).header(CONTENT_TYPE, request.content_type);
    if let Some(cookie) = request.cookie {
        wire = wire.header(COOKIE, cookie);
    }
    for (name, value) in request.headers {
        wire = wire.header(*name, *value);
    }
    let wire = wire.body(Full::new(Bytes::from(request.body)));
    let wire = wire.map_err(|_| PollError::BadHttp { what: "a path or cookie that HTTP cannot carry" })?;
    let response = sender.send_request(wire).await.map_err(why)?;
    let (head, body) = response.into_parts();
    let closes = head.version < hyper::Version::HTTP_11
        || head.headers.get_all(CONNECTION).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let body = whole(body).await?;
    let cookies = head.headers.get_all(SET_COOKIE).iter().map(|value| value.as_bytes());
    Ok(Answer { reply: Reply::new(head.status.as_u16(), cookies, body), closes })
}

async fn whole(body: Incoming) -> Result<Vec<u8>, PollError> {
    let Some(length) = body.size_hint().exact() else {
        return Err(PollError::BadHttp { what: "a reply of unknown length" });
    };
    if usize::try_from(length).is_ok_and(|length| length <= limits::HTTP_PLUG_BODY) {
        let body = Limited::new(body, limits::HTTP_PLUG_BODY).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => why(*error),
            Err(_) => PollError::BadHttp { what: "a reply longer than it said" },
        });
        return Ok(body?.to_bytes().to_vec());
    }
    Err(PollError::BadHttp { what: "a reply of more than 64 KiB" })
}

/// What an error of the client means.
fn why(error: hyper::Error) -> PollError {
    if error.is_parse_too_large() {
        return PollError::BadHttp { what: "a reply whose head is too long" };
    }
    if error.is_parse() {
        return PollError::BadHttp { what: "a reply that is no HTTP" };
    }
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause {
        Some(cause) => io::Error::from(cause.kind()).into(),
        None => PollError::Closed,
    }
}
