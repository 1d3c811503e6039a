//! Who may ask, and under which names this server may be called.
//!
//! Two checks. `Host` must be a name that nobody outside the house can point at this machine, else a page of a stranger
//! could read plugs through a browser in the house (DNS rebinding). And away from loopback a request shows the token, as
//! `Authorization: Bearer` or as the password of HTTP Basic, which a phone's browser can ask for.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{StatusCode, Version};

use crate::http::reply::{Problem, quoted};

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret as it is; the caller has cut off line ends.
    #[must_use]
    pub const fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The `Authorization` header that shows it.
    #[must_use]
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether `given` is the secret, in a time that depends on the length of `given` alone.
    #[must_use]
    pub fn is(&self, given: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut difference = u8::from(secret.len() != given.len()) | u8::from(secret.is_empty());
        for (n, byte) in given.iter().enumerate() {
            let own = secret.get(n % secret.len().max(1)).copied().unwrap_or(0);
            difference = std::hint::black_box(difference | (own ^ byte));
        }
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who may ask a listener.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What a request shows when the listener is not on loopback.
    pub token: Option<Secret>,
    /// Whether anybody who reaches the listener may read.
    pub public_read: bool,
    /// Names for this server beside IP addresses, `localhost` and `*.local`: the configured ones, and the machine's own
    /// (see [`own_host_name`]). Case does not matter.
    pub hosts: Vec<String>,
    /// Whether the listener is on loopback, so that only this machine reaches it.
    pub loopback: bool,
}

/// The machine's own name, for [`Access::hosts`]. None when the system does not say.
#[must_use]
pub fn own_host_name() -> Option<String> {
    // Not from /proc/sys, which the unit's confinement hides.
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    Some(name).filter(|name| is_name(name))
}

impl Access {
    /// Whether a request has to show the token.
    #[must_use]
    pub const fn wants_token(&self) -> bool {
        !self.loopback && !self.public_read
    }

    /// The name and port under which `request` calls this server, when it says so. HTTP/1.0 need not.
    ///
    /// # Errors
    /// 400 without exactly one readable `Host`, 421 for a name that is not ours.
    pub fn check_host<'a>(&self, request: &'a Parts) -> Result<Option<&'a str>, Problem> {
        let bad = |message| Problem::bad("bad_host", message, "send one Host header with this server's address");
        let mut lines = request.headers.get_all(HOST).iter();
        let line = lines.next();
        if lines.next().is_some() {
            return Err(bad("there is more than one Host header"));
        }
        let header = match line {
            Some(line) => Some(line.to_str().map_err(|_| bad("the Host header is not readable"))?),
            None if request.version >= Version::HTTP_11 => {
                let hint = "send one Host header with this server's address";
                return Err(Problem::bad("missing_host", "HTTP/1.1 needs a Host header", hint));
            }
            None => None,
        };
        // What a request line names in full counts before the header (RFC 9112, 3.2.2); both must be ours.
        for named in header.into_iter().chain(request.uri.authority().map(Authority::as_str)) {
            let authority: Authority = named.parse().map_err(|_| bad("the Host header is not readable"))?;
            if named.contains('@') {
                return Err(bad("a Host header has no user name"));
            }
            if !self.is_ours(authority.host()) {
                let message = format!("this server is not called {}", quoted(authority.host()));
                let hint = "call it by its IP address, or list the name under [http] hosts";
                return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", message, hint));
            }
        }
        Ok(request.uri.authority().map(Authority::as_str).or(header))
    }

    fn is_ours(&self, host: &str) -> bool {
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.parse::<Ipv4Addr>().is_ok() || literal.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok()) {
            return true;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let local =
            ["localhost", "local"].iter().any(|top| host.strip_suffix(top).is_some_and(|rest| rest.ends_with('.')));
        is_name(&host)
            && (host == "localhost" || local || self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(&host)))
    }

    /// Whether `request`, which opens a WebSocket, comes from a page of this server, or from no page at all. Browsers let any
    /// page open one anywhere; only `Origin` tells.
    ///
    /// # Errors
    /// 403 for a page from elsewhere.
    pub fn check_origin(&self, request: &Parts) -> Result<(), Problem> {
        let Some(origin) = request.headers.get(ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("?");
        let place = origin.split_once("://").map(|(_, place)| place);
        let own = request.uri.authority().map(Authority::as_str);
        let own = own.or_else(|| request.headers.get(HOST).and_then(|host| host.to_str().ok()));
        if place.is_some() && place == own {
            return Ok(());
        }
        let message = format!("a page from {} may not open a WebSocket here", quoted(origin));
        Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", message, "open it from a page of this server"))
    }

    /// Whether `request` may read.
    ///
    /// # Errors
    /// 401 when it does not show the token; 403 when there is none to show.
    pub fn check_token(&self, request: &Parts) -> Result<(), Problem> {
        if self.wants_token() { self.check_shown(request) } else { Ok(()) }
    }

    /// Whether `request` may have everything that is stored: away from loopback with the token only, whoever may read.
    ///
    /// # Errors
    /// As [`Access::check_token`].
    pub fn check_owner(&self, request: &Parts) -> Result<(), Problem> {
        if self.loopback { Ok(()) } else { self.check_shown(request) }
    }

    fn check_shown(&self, request: &Parts) -> Result<(), Problem> {
        let Some(token) = &self.token else {
            let hint = "set token_file or public_read under [http]";
            let message = "this server has no token that a request could show";
            return Err(Problem::new(StatusCode::FORBIDDEN, "no_token", message, hint));
        };
        let shown = request.headers.get(AUTHORIZATION).and_then(|line| line.to_str().ok()).and_then(shown_secret);
        if shown.is_some_and(|shown| token.is(&shown)) {
            return Ok(());
        }
        let message = "this needs the token";
        let hint = "send it as `Authorization: Bearer TOKEN`, or as the password when asked for one (any user name)";
        Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message, hint)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"wattd\", charset=\"UTF-8\"")))
    }
}

/// Letters, digits, `-`, `_` and `.`: a host's name, and nothing that means something to a shell or a page.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The secret in an `Authorization`.
fn shown_secret(line: &str) -> Option<Vec<u8>> {
    let (scheme, rest) = line.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let mut pair = parse_base64(rest)?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair.split_off(colon + 1))
}

/// Base64 of the usual alphabet, with or without padding.
fn parse_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    (held < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str) -> Parts {
        hyper::Request::builder().uri("/").header(HOST, host).body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_names_that_are_ours_are_answered() {
        let access = Access { hosts: vec!["Pi.example".to_owned()], ..Access::default() };
        for host in [
            "127.0.0.1",
            "192.168.1.5:8650",
            "[::1]:8650",
            "[fe80::1]",
            "localhost:8650",
            "LOCALHOST",
            "pi.local",
            "a.b.local:80",
            "pi.local.",
            "pi.EXAMPLE:8650",
            "wattd.localhost",
        ] {
            assert!(access.check_host(&request(host)).is_ok(), "{host}");
        }
        for (host, status) in [
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("evillocal", 421),
            (".local.evil", 421),
            ("local", 421),
            ("x';rm.local", 421),
            ("me@127.0.0.1", 400),
            ("", 400),
            ("a b", 400),
        ] {
            let refused = access.check_host(&request(host)).unwrap_err();
            assert_eq!(refused.status.as_u16(), status, "{host}");
        }
    }

    #[test]
    fn a_request_line_that_names_a_stranger_is_refused_too() {
        let mut request = request("127.0.0.1");
        request.uri = "http://evil.example/".parse().unwrap();
        assert_eq!(Access::default().check_host(&request).unwrap_err().status, StatusCode::MISDIRECTED_REQUEST);
    }

    #[test]
    fn the_secret_is_compared_whole_and_never_shown() {
        let secret = Secret::new("s3cret".to_owned());
        assert!(secret.is(b"s3cret"));
        for wrong in ["", "s3cre", "s3crets", "s3crets3cret", "S3cret"] {
            assert!(!secret.is(wrong.as_bytes()), "{wrong}");
        }
        assert!(!Secret::new(String::new()).is(b""));
        assert!(!format!("{secret:?}").contains("s3"));
    }

    #[test]
    fn the_token_comes_as_bearer_or_as_a_password() {
        assert_eq!(shown_secret("Bearer s3cret").as_deref(), Some(&b"s3cret"[..]));
        assert_eq!(shown_secret("bearer  s3cret").as_deref(), Some(&b"s3cret"[..]));
        assert_eq!(shown_secret("Basic bWU6czNjcmV0").as_deref(), Some(&b"s3cret"[..])); // me:s3cret
        assert_eq!(shown_secret("Basic OnM6Mw==").as_deref(), Some(&b"s:3"[..])); // :s:3
        for wrong in ["Basic", "Basic bWU", "Basic ???", "Digest x", "s3cret", ""] {
            assert_eq!(shown_secret(wrong), None, "{wrong}");
        }
    }
}
