//! `/api/v1/ws`: the same batches as text messages of a WebSocket.
//!
//! The server only sends: a client's pings are answered, its closing is confirmed, anything else it says ends the
//! connection with a reason. Frames and messages have a bound, and so has what waits to be written.

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::error::{CapacityError, Error};
use async_tungstenite::tungstenite::handshake::derive_accept_key;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use async_tungstenite::tungstenite::{Message as Frame, Utf8Bytes};
use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use smol::future::{self, yield_now};
use smol::io::{AsyncRead, AsyncWrite};
use smol::stream::StreamExt as _;

use crate::http::App;
use crate::http::live::form::Form;
use crate::http::live::{Feed, Message, sse};
use crate::http::params::Params;
use crate::http::reply::{Body, Problem};
use crate::limits;
use crate::store::StoreError;

/// The one version there is.
const VERSION: &str = "13";
/// Base64 of the sixteen bytes of a key.
const KEY: usize = 24;

/// A WebSocket that was agreed on, before its connection is handed over.
pub struct Session {
    feed: Feed,
}

/// Agrees on a WebSocket.
///
/// # Errors
/// 400, 403, 404 and 426 for requests that ask for none, or badly; 503 when all places are taken.
pub fn agree(app: &App, params: &Params, request: &Parts) -> Result<Response<Body>, Problem> {
    let names = |header, word: &str| {
        let lines = request.headers.get_all(header).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if !names(UPGRADE, "websocket") || !names(CONNECTION, "upgrade") || request.method != hyper::Method::GET {
        let hint = "connect with a WebSocket client, or take the same from /api/v1/events";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "not_a_websocket", "this path is a WebSocket", hint);
        return Err(problem.with(UPGRADE, HeaderValue::from_static("websocket")));
    }
    if request.headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        let message = "this is not the WebSocket version spoken here";
        let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "bad_websocket", message, "speak version 13");
        return Err(problem.with(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION)));
    }
    let key = request.headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY);
    let key = key.ok_or_else(|| Problem::bad("bad_websocket", "there is no right Sec-WebSocket-Key", "send one"))?;
    app.access.check_origin(request)?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| Problem::bad("bad_websocket", "the Sec-WebSocket-Key is none", "send another"))?;
    let session = Session { feed: sse::open(app, params, request, Form::Socket)? };
    let mut response = Response::new(Body::Socket(Some(Box::new(session))));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// What the next turn of a session is about.
enum Turn {
    Heard(Option<Result<Frame, Error>>),
    Happened(Option<Result<Message, StoreError>>),
}

impl Session {
    /// Speaks on `wire` until either side ends. The wire has its own deadline for a client that takes nothing.
    pub async fn run(mut self, wire: impl AsyncRead + AsyncWrite + Unpin) {
        let mut config = WebSocketConfig::default();
        config.read_buffer_size = limits::SOCKET_MESSAGE;
        config.write_buffer_size = 0; // nothing is held back
        config.max_write_buffer_size = limits::SOCKET_WRITE;
        config.max_message_size = Some(limits::SOCKET_MESSAGE);
        config.max_frame_size = Some(limits::SOCKET_MESSAGE);
        let mut socket = WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await;
        let mut unheard = false;
        let reason = loop {
            let heard = async { Turn::Heard(socket.next().await) };
            let happened = async { Turn::Happened(self.feed.next().await) };
            match future::or(heard, happened).await {
                Turn::Heard(Some(Ok(Frame::Text(_) | Frame::Binary(_)))) => {
                    break Some((CloseCode::Unsupported, "this socket only sends"));
                }
                Turn::Heard(Some(Ok(_))) => {
                    unheard = false;
                    yield_now().await; // a flood of pings is one client's turn at a time
                }
                Turn::Heard(Some(Err(error))) => break complaint(&error),
                Turn::Heard(None) => break None,
                Turn::Happened(Some(Ok(Message::Data(bytes)))) => {
                    if socket.send(Frame::Text(text(bytes))).await.is_err() {
                        break None;
                    }
                }
                Turn::Happened(Some(Ok(Message::Beat))) => {
                    if std::mem::replace(&mut unheard, true) {
                        break Some((CloseCode::Policy, "no answer to a ping"));
                    }
                    if socket.send(Frame::Ping(Bytes::new())).await.is_err() {
                        break None;
                    }
                }
                Turn::Happened(Some(Err(_))) => break Some((CloseCode::Error, "the store cannot be read")),
                Turn::Happened(None) => break Some((CloseCode::Away, "the server stops, or you were too slow")),
            }
        };
        if let Some((code, reason)) = reason {
            let _ = socket.close(Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) })).await;
        }
    }
}

/// What a client that broke a rule is told. Nothing when the connection is gone.
fn complaint(error: &Error) -> Option<(CloseCode, &'static str)> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Some((CloseCode::Size, "too long")),
        Error::Capacity(_) | Error::Protocol(_) => Some((CloseCode::Protocol, "that is no frame")),
        Error::Utf8(_) => Some((CloseCode::Invalid, "that is no UTF-8")),
        _ => None,
    }
}

fn text(bytes: Bytes) -> Utf8Bytes {
    Utf8Bytes::try_from(bytes).unwrap_or_default() // ours are UTF-8
}
