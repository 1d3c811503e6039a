//! HTTP as the plugs' own server speaks it: one request at a time, header names compared letter by letter.

use std::time::Duration;

use async_net::TcpStream;
use smol::io::AsyncReadExt;
use smol::{Timer, future};

/// Bytes of a request's head and body.
const HEAD: usize = 8 * 1024;
const BODY: usize = 64 * 1024;

/// What the server says to a request that it makes nothing of.
const STOCK_PAGE: &[u8] = b"<html><body><center>200 OK</center></body></html>";

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// Path and query.
    pub target: String,
    /// The whole of `Cookie`.
    pub cookie: String,
    /// The body; `None` without a `Content-Length` that is written just so.
    pub body: Option<Vec<u8>>,
}

impl Ask {
    pub(super) fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    /// A parameter of the query.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    /// `Set-Cookie`.
    pub cookie: Option<String>,
    pub kind: &'static str,
    pub body: Vec<u8>,
}

impl Answer {
    pub(super) fn bytes(body: Vec<u8>) -> Self {
        Self { status: 200, cookie: None, kind: "application/octet-stream", body }
    }

    pub(super) fn json(body: &serde_json::Value) -> Self {
        Self { status: 200, cookie: None, kind: "application/json;charset=UTF-8", body: body.to_string().into_bytes() }
    }

    pub(super) fn status(status: u16) -> Self {
        Self { status, cookie: None, kind: "text/html", body: Vec::new() }
    }

    pub(super) fn stock_page() -> Self {
        Self { kind: "text/html", body: STOCK_PAGE.to_vec(), ..Self::status(200) }
    }

    pub(super) fn with_cookie(self, cookie: String) -> Self {
        Self { cookie: Some(cookie), ..self }
    }

    /// The head, which announces `length` bytes.
    pub(super) fn head(&self, length: u64, closes: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            403 => "Forbidden",
            _ => "Error",
        };
        let cookie = self.cookie.as_ref().map(|cookie| format!("Set-Cookie: {cookie}\r\n")).unwrap_or_default();
        let connection = if closes { "close" } else { "keep-alive" };
        format!(
            "HTTP/1.1 {} {reason}\r\nServer: SHIP 2.0\r\nContent-Type: {}\r\nContent-Length: {length}\r\n{cookie}Connection: {connection}\r\n\r\n",
            self.status, self.kind
        )
        .into_bytes()
    }
}

/// The next request, and whether it came whole in what was read first; `None` at the end of the connection, be it closed,
/// idle or out of step. `received` holds what came behind it.
pub(super) async fn read(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    idle: Duration,
) -> std::io::Result<Option<Ask>> {
    let mut buffer = [0; 4_096];
    loop {
        match parse(received) {
            Parsed::Whole(ask, length) => {
                received.drain(..length);
                return Ok(Some(ask));
            }
            Parsed::Broken => return Ok(None),
            Parsed::Part => {}
        }
        let read = future::or(stream.read(&mut buffer), async {
            Timer::after(idle).await;
            Ok(0)
        });
        match read.await? {
            0 => return Ok(None),
            n => received.extend(buffer.iter().take(n)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// A request, and how many bytes it has.
    Whole(Ask, usize),
    Part,
    Broken,
}

fn parse(received: &[u8]) -> Parsed {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if received.len() > HEAD { Parsed::Broken } else { Parsed::Part };
    };
    let Some(head) = received.get(..end).and_then(|head| std::str::from_utf8(head).ok()) else { return Parsed::Broken };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some("POST" | "GET"), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next()) else {
        return Parsed::Broken;
    };
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    // Letter by letter, as the plugs do it.
    let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let length = match header("Content-Length").map(str::parse::<usize>) {
        Some(Ok(length)) if length <= BODY => Some(length),
        Some(_) => return Parsed::Broken,
        None => None,
    };
    let whole = end + 4 + length.unwrap_or(0);
    let Some(body) = received.get(end + 4..whole) else { return Parsed::Part };
    let ask = Ask {
        target: target.to_owned(),
        cookie: header("Cookie").unwrap_or_default().to_owned(),
        body: length.map(|_| body.to_vec()),
    };
    Parsed::Whole(ask, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_count_letter_by_letter() {
        let rightly = b"POST /app/request?seq=-7 HTTP/1.1\r\nHost: a\r\nCookie: X=1\r\nContent-Length: 3\r\n\r\nabcGET";
        let Parsed::Whole(ask, length) = parse(rightly) else { panic!("a request") };
        assert_eq!((ask.path(), ask.query("seq"), ask.query("x")), ("/app/request", Some("-7"), None));
        assert_eq!((ask.cookie.as_str(), ask.body.as_deref(), length), ("X=1", Some(&b"abc"[..]), rightly.len() - 3));
        let wrongly = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc";
        assert!(matches!(parse(wrongly), Parsed::Whole(Ask { body: None, .. }, _)));
        assert_eq!(parse(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"), Parsed::Part);
        assert_eq!(parse(b"POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"), Parsed::Broken);
        assert_eq!(parse(b"PUT / HTTP/1.1\r\n\r\n"), Parsed::Broken);
        assert_eq!(parse(&[b'a'; HEAD + 1]), Parsed::Broken);
    }
}
