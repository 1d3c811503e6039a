//! One GET over plain HTTP: how a verb asks the running agent.
//!
//! Promises a deadline for the whole exchange and a bound on the reply; for a streamed one a deadline for each piece, and
//! one piece in memory at a time. [`stream_from`] answers the same request from an [`App`] without an agent.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_net::TcpStream;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, Response, StatusCode};
use smol_hyper::rt::FuturesIo;

use super::access::Secret;
use crate::clock::{Clock, within};
use crate::http::App;
use crate::limits;

/// How long the agent may take to answer a verb.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest reply read.
const MOST: usize = 4 * 1024 * 1024;

/// GETs `path` from the agent that listens on `listen`; an unspecified address is asked over loopback. None when the
/// agent answers with another status than 200.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] when no agent runs, [`io::ErrorKind::TimedOut`], or what else went wrong.
pub async fn get(
    clock: &dyn Clock,
    listen: SocketAddr,
    path: &str,
    token: Option<&Secret>,
) -> io::Result<Option<Vec<u8>>> {
    let deadline = clock.elapsed().saturating_add(PATIENCE);
    let answer = within(clock, deadline, exchange(reachable(listen), path, token)).await;
    answer.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// GETs `path` and hands its body, piece by piece, to `sink`. There is no bound on the length, but one on the time.
///
/// # Errors
/// As [`get`], and when the agent answers with another status than 200, when the reply breaks off, or what `sink` returns.
pub async fn download(
    clock: &dyn Clock,
    listen: SocketAddr,
    path: &str,
    token: Option<&Secret>,
    patience: Duration,
    sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let deadline = clock.elapsed().saturating_add(patience);
    let answer = within(clock, deadline, fetch(reachable(listen), path, token, sink)).await;
    answer.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

async fn fetch(
    to: SocketAddr,
    path: &str,
    token: Option<&Secret>,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    let handshake = hyper::client::conn::http1::handshake(FuturesIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let mut request = Request::get(path).header(HOST, to.to_string());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token.bearer());
    }
    let request = request.body(Empty::<&[u8]>::new()).map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other(format!("the agent answers {}", response.status())));
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(io::Error::other)?.data_ref() {
                sink(data)?;
            }
        }
        Ok(())
    };
    // The connection makes the progress; when it ends, what it has brought is still to be read.
    smol::future::or(answer, async {
        let _ = connection.await;
        smol::future::pending().await
    })
    .await
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn exchange(to: SocketAddr, path: &str, token: Option<&Secret>) -> io::Result<Option<Vec<u8>>> {
    let stream = TcpStream::connect(to).await?;
    let handshake = hyper::client::conn::http1::handshake(FuturesIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let request = request(path, to, token)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MOST).collect().await.map_err(io::Error::other)?;
        Ok((head.status == StatusCode::OK).then(|| body.to_bytes().to_vec()))
    };
    // The connection makes the progress; whichever ends first ends the exchange.
    smol::future::or(answer, async {
        let why = connection.await.err().map_or_else(|| "it closed the connection".to_owned(), |e| e.to_string());
        Err(io::Error::other(why))
    })
    .await
}

/// Why a stream did not reach its end.
#[derive(Debug)]
pub enum StreamError {
    /// Nobody listens at the agent's address.
    NoAgent,
    /// The request was refused, in words for people.
    Refused(String),
    /// Who takes the bytes did not.
    Sink(io::Error),
    /// The connection, or what is read, failed on the way.
    BrokenOff(io::Error),
}

impl std::fmt::Display for StreamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAgent => f.write_str("no agent is running"),
            Self::Refused(why) => f.write_str(why),
            Self::Sink(error) => write!(f, "the output cannot be written: {error}"),
            Self::BrokenOff(error) => write!(f, "this broke off: {error}"),
        }
    }
}

impl std::error::Error for StreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Sink(error) | Self::BrokenOff(error) => Some(error),
            Self::NoAgent | Self::Refused(_) => None,
        }
    }
}

/// Takes the bytes of a stream, piece after piece.
pub type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// GETs `path` from the agent as [`get`] does, and gives `sink` the reply as it comes.
///
/// # Errors
/// [`StreamError`]; `sink` may have had a part by then.
pub async fn stream(
    clock: &dyn Clock,
    listen: SocketAddr,
    path: &str,
    token: Option<&Secret>,
    sink: &mut Sink<'_>,
) -> Result<(), StreamError> {
    let to = reachable(listen);
    let deadline = clock.elapsed().saturating_add(PATIENCE);
    let stream = match within(clock, deadline, TcpStream::connect(to)).await {
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(StreamError::NoAgent),
        Some(stream) => stream.map_err(StreamError::BrokenOff)?,
        None => return Err(StreamError::BrokenOff(io::ErrorKind::TimedOut.into())),
    };
    let broken = |error: hyper::Error| StreamError::BrokenOff(io::Error::other(error));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(FuturesIo::new(stream)).await.map_err(broken)?;
    let request = request(path, to, token).map_err(StreamError::BrokenOff)?;
    let answer = async {
        let deadline = clock.elapsed().saturating_add(limits::HTTP_REPLY_TIME);
        match within(clock, deadline, sender.send_request(request)).await {
            Some(response) => pump(clock, response.map_err(broken)?, sink).await,
            None => Err(StreamError::BrokenOff(io::ErrorKind::TimedOut.into())),
        }
    };
    // The connection makes the progress; that it ended shows in the answer.
    smol::future::or(answer, async {
        let _ = connection.await;
        std::future::pending().await
    })
    .await
}

/// Gives `sink` what `app` answers to a GET of `path`.
///
/// # Errors
/// [`StreamError`]; `sink` may have had a part by then.
pub async fn stream_from(app: &App, path: &str, sink: &mut Sink<'_>) -> Result<(), StreamError> {
    let request = request(path, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), None);
    let (head, _) = request.map_err(StreamError::BrokenOff)?.into_parts();
    pump(app.clock.as_ref(), app.handle(&head).await, sink).await
}

fn request(path: &str, to: SocketAddr, token: Option<&Secret>) -> io::Result<Request<Empty<&'static [u8]>>> {
    let mut request = Request::get(path).header(HOST, to.to_string());
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token.bearer());
    }
    request.body(Empty::new()).map_err(io::Error::other)
}

async fn pump<B>(clock: &dyn Clock, response: Response<B>, sink: &mut Sink<'_>) -> Result<(), StreamError>
where
    B: hyper::body::Body<Data = bytes::Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        let body = Limited::new(body, MOST)
            .collect()
            .await
            .map_err(|error| StreamError::BrokenOff(io::Error::other(error)))?;
        return Err(StreamError::Refused(refusal(head.status, &body.to_bytes())));
    }
    loop {
        let deadline = clock.elapsed().saturating_add(limits::HTTP_STALL_TIME);
        match within(clock, deadline, body.frame()).await {
            None => return Err(StreamError::BrokenOff(io::ErrorKind::TimedOut.into())),
            Some(None) => return Ok(()),
            Some(Some(frame)) => {
                let frame = frame.map_err(|error| StreamError::BrokenOff(io::Error::other(error)))?;
                if let Some(bytes) = frame.data_ref() {
                    sink(bytes).map_err(StreamError::Sink)?;
                }
            }
        }
    }
}

/// A refusal's message and hint; its status when it has none.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key| json.get("error").and_then(|error| error.get(key)).and_then(serde_json::Value::as_str);
    match (text("message"), text("hint")) {
        (Some(message), Some(hint)) => format!("{message}; {hint}"),
        _ => format!("the agent's address answers {status}"),
    }
}

/// A path with parameters, each value escaped.
#[must_use]
pub fn target<'a>(path: &str, params: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut target = path.to_owned();
    for (n, (name, value)) in params.into_iter().enumerate() {
        target.push(if n == 0 { '?' } else { '&' });
        target.push_str(name);
        target.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                target.push(char::from(byte));
            } else {
                let _ = write!(target, "%{byte:02X}"); // a String takes everything
            }
        }
    }
    target
}
