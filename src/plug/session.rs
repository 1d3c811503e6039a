//! Plugs that want a login: what is sent, what is heard, and what went wrong. Pure, no socket and no clock.
//!
//! Owns the shape that all such transports share: a [`Login`] turns replies into further requests until there is a
//! [`Session`], which seals plain JSON into requests and opens replies into plain JSON. Promises that no request here is
//! sent twice, that a wrong password costs one attempt, that nothing secret shows in `Debug` or in an error, and that
//! randomness comes from the [`Seed`] given and from nowhere else. Leaves connecting, header names and deadlines to the
//! socket layer, and what the JSON means to the dialects.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

#[cfg(feature = "aes-passthrough")]
use super::aes::{self, RunKey};
use super::{klap, tpap};
use crate::limits;
#[cfg(feature = "aes-passthrough")]
use crate::units::UnixMillis;

/// An e-mail address and a password, as the vendor's cloud knows them. Case matters in both.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// From their texts, which are used as they are.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned() }
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Whose credentials opened a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The account's.
    Account,
    /// Those of a Kasa plug that was never bound to an account.
    KasaDefault,
    /// Those of a Tapo plug that was never bound to an account.
    TapoDefault,
    /// Empty ones, of a plug that was never bound to the cloud.
    Blank,
}

impl Whose {
    /// The credentials that plugs without an owner have.
    pub const UNOWNED: [Self; 3] = [Self::KasaDefault, Self::TapoDefault, Self::Blank];

    /// What these are; `None` for the account's, which only its owner knows.
    #[must_use]
    pub fn credentials(self) -> Option<Credentials> {
        match self {
            Self::Account => None,
            Self::KasaDefault => Some(Credentials::new("kasa@tp-link.net", "kasaSetup")),
            Self::TapoDefault => Some(Credentials::new("test@tp-link.net", "test")),
            Self::Blank => Some(Credentials::new("", "")),
        }
    }
}

/// 32 random bytes from the system, for one login. Never used twice.
pub struct Seed([u8; 32]);

impl Seed {
    /// From random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The `n`th block of the bytes that follow from it.
    pub(crate) fn block(&self, n: u32) -> [u8; 32] {
        Sha256::new().chain_update(self.0).chain_update(n.to_be_bytes()).finalize().into()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// One HTTP/1.1 POST. Header names go out in title case, with `Content-Length` always and never in chunks: the plugs'
/// server compares them letter by letter.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Cookie`, when there is one.
    pub cookie: Option<String>,
    /// What else the plug looks for.
    pub headers: &'static [(&'static str, &'static str)],
    /// The body.
    pub body: Vec<u8>,
}

/// `Content-Type` of bytes.
pub(crate) const BYTES: &str = "application/octet-stream";
/// `Content-Type` of JSON.
pub(crate) const JSON: &str = "application/json";

/// Paths hold session tokens, and bodies proofs of the password: neither is shown.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} bytes)", self.body.len())
    }
}

/// One whole HTTP reply, its body no longer than [`limits::HTTP_PLUG_BODY`].
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The session cookie, when one was set.
    pub cookie: Option<Cookie>,
    /// The body.
    pub body: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({}, {} bytes)", self.status, self.body.len())
    }
}

impl Reply {
    /// From the status, the values of all `Set-Cookie` headers and the body.
    pub fn new<'a>(status: u16, set_cookie: impl IntoIterator<Item = &'a [u8]>, body: Vec<u8>) -> Self {
        Self { status, cookie: set_cookie.into_iter().find_map(Cookie::parse), body }
    }
}

/// A session cookie, of which only the name and the value go back.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie {
    pair: String,
    timeout: Option<Duration>,
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(..)")
    }
}

impl Cookie {
    /// From a `Set-Cookie` value such as `TP_SESSIONID=0123456789ABCDEF;TIMEOUT=86400`. `TIMEOUT` is no attribute that
    /// cookies have; plugs write it all the same. `None` for another cookie, an over-long one, and for characters that
    /// have no business in a header.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= limits::COOKIE)?;
        let mut parts = text.split(';').map(str::trim);
        let pair = parts.next()?;
        let (name, id) = pair.split_once('=')?;
        if !matches!(name, "TP_SESSIONID" | "SESSIONID") || id.is_empty() || !id.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let timeout =
            parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("timeout"));
        let timeout = timeout.and_then(|(_, seconds)| seconds.parse().ok()).map(Duration::from_secs);
        Some(Self { pair: pair.to_owned(), timeout })
    }

    /// What goes back in `Cookie`.
    #[must_use]
    pub fn pair(&self) -> &str {
        &self.pair
    }

    /// What the plug said after `TIMEOUT=`, read as seconds.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

/// A login under way: it has sent a request and waits for the reply. `Send`, so that a reply that takes long to digest can
/// be given to a worker.
#[derive(Debug)]
pub struct Login(Kind);

#[derive(Debug)]
enum Kind {
    Klap(klap::Login),
    Tpap(tpap::Login),
    #[cfg(feature = "aes-passthrough")]
    Aes(aes::Login),
}

/// What a login does next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // moved a few times a day
pub enum Step {
    /// Send this and hear the reply.
    Send(Login, Request),
    /// It is over.
    Ready(Session),
}

impl Login {
    /// Begins a KLAP login. Which hashes the plug holds, and whose, is found from its first answer.
    #[must_use]
    pub fn klap(account: Option<&Credentials>, seed: &Seed) -> (Self, Request) {
        let (login, request) = klap::Login::start(account, seed);
        (Self(Kind::Klap(login)), request)
    }

    /// Begins a TPAP login, which takes the account's password alone.
    ///
    /// # Errors
    /// [`SessionError::AccountNeeded`] without an account.
    pub fn tpap(account: Option<&Credentials>, seed: &Seed) -> Result<(Self, Request), SessionError> {
        let (login, request) = tpap::Login::start(account, seed)?;
        Ok((Self(Kind::Tpap(login)), request))
    }

    /// Begins an AES passthrough login. `time` stands in it for the plug's own log.
    #[cfg(feature = "aes-passthrough")]
    #[must_use]
    pub fn aes(account: Option<&Credentials>, key: &RunKey, time: UnixMillis) -> (Self, Request) {
        let (login, request) = aes::Login::start(account, key, time);
        (Self(Kind::Aes(login)), request)
    }

    /// Whether [`Login::hear`] takes so long that a worker should do it.
    #[must_use]
    pub const fn is_slow(&self) -> bool {
        match &self.0 {
            Kind::Klap(_) => false,
            Kind::Tpap(login) => login.is_slow(),
            // Decrypting with the RSA key.
            #[cfg(feature = "aes-passthrough")]
            Kind::Aes(_) => true,
        }
    }

    /// What follows from the reply to the request sent last.
    ///
    /// # Errors
    /// [`SessionError`]: the login is over and has not led to a session.
    pub fn hear(self, reply: &Reply) -> Result<Step, SessionError> {
        match self.0 {
            Kind::Klap(login) => Ok(match login.hear(reply)? {
                klap::Step::Send(login, request) => Step::Send(Self(Kind::Klap(login)), request),
                klap::Step::Ready(session) => Step::Ready(Session(Carrier::Klap(session))),
            }),
            Kind::Tpap(login) => Ok(match login.hear(reply)? {
                tpap::Step::Send(login, request) => Step::Send(Self(Kind::Tpap(login)), request),
                tpap::Step::Ready(session) => Step::Ready(Session(Carrier::Tpap(session))),
            }),
            #[cfg(feature = "aes-passthrough")]
            Kind::Aes(login) => Ok(match login.hear(reply)? {
                aes::Step::Send(login, request) => Step::Send(Self(Kind::Aes(login)), request),
                aes::Step::Ready(session) => Step::Ready(Session(Carrier::Aes(session))),
            }),
        }
    }
}

/// An open session: one request at a time, sealed and then opened.
#[derive(Debug)]
pub struct Session(Carrier);

#[derive(Debug)]
enum Carrier {
    Klap(klap::Session),
    Tpap(tpap::Session),
    #[cfg(feature = "aes-passthrough")]
    Aes(aes::Session),
}

impl Session {
    /// The request that carries `plain`. Each carries its own number: to send one twice, seal it twice.
    ///
    /// # Errors
    /// [`SessionError`] when the plain text is too long.
    pub fn seal(&mut self, plain: &[u8]) -> Result<Request, SessionError> {
        match &mut self.0 {
            Carrier::Klap(session) => Ok(session.seal(plain)),
            Carrier::Tpap(session) => session.seal(plain),
            #[cfg(feature = "aes-passthrough")]
            Carrier::Aes(session) => Ok(session.seal(plain)),
        }
    }

    /// The plain text that answers the request sealed last.
    ///
    /// # Errors
    /// [`SessionError`]. After [`SessionError::SessionGone`], [`SessionError::BadSignature`] and
    /// [`SessionError::Garbage`] this session is to be forgotten.
    pub fn open(&mut self, reply: &Reply) -> Result<Vec<u8>, SessionError> {
        match &mut self.0 {
            Carrier::Klap(session) => session.open(reply),
            Carrier::Tpap(session) => session.open(reply),
            #[cfg(feature = "aes-passthrough")]
            Carrier::Aes(session) => session.open(reply),
        }
    }

    /// How long after the login began another one should be made: some time before the plug forgets this one. `None`
    /// when only the plug knows.
    #[must_use]
    pub const fn lifetime(&self) -> Option<Duration> {
        match &self.0 {
            Carrier::Klap(session) => Some(session.lifetime()),
            Carrier::Tpap(_) => None,
            #[cfg(feature = "aes-passthrough")]
            Carrier::Aes(_) => None,
        }
    }

    /// Whose credentials the plug took.
    #[must_use]
    pub const fn whose(&self) -> Whose {
        match &self.0 {
            Carrier::Klap(session) => session.whose(),
            Carrier::Tpap(session) => session.whose(),
            #[cfg(feature = "aes-passthrough")]
            Carrier::Aes(session) => session.whose(),
        }
    }
}

/// Why there is no session, or no longer. Each variant has its own answer: who does what next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// The plug does not know the account's e-mail and password. Not tried again before they change, or minutes later.
    WrongCredentials,
    /// The plug is bound to an account and none is configured.
    AccountNeeded,
    /// The plug has forgotten the session: log in once more and ask again, at most [`limits::LOGINS_A_POLL`] times a
    /// poll.
    SessionGone,
    /// The plug does not take this protocol now: look again what it announces. When nothing else is announced, local
    /// access is switched off in the vendor's app.
    OtherProtocol,
    /// Too many wrong passwords: every further attempt keeps the lock. Not asked before [`limits::LOCKED_OUT`] has passed.
    LockedOut,
    /// The plug wants a way of logging in that this program does not have.
    Unsupported {
        /// Which.
        what: &'static str,
    },
    /// The reply is not from whoever the login was made with: forget the session.
    BadSignature,
    /// The reply is not in the protocol's form: forget the session.
    Garbage {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The plug refuses with an HTTP status that has no meaning here.
    Status(u16),
    /// The plug refuses with a code that has no meaning here.
    Refused {
        /// Its code.
        code: i64,
    },
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCredentials => f.write_str(
                "it does not take the account's e-mail and password; check [account], capitals in the e-mail included",
            ),
            Self::AccountNeeded => {
                f.write_str("it wants the e-mail and password of its account; set them in [account]")
            }
            Self::SessionGone => f.write_str("it has ended the session"),
            Self::OtherProtocol => f.write_str(
                "it refuses this protocol; local access may be off (in the vendor's app: Me > Third-Party Services > Third-Party Compatibility)",
            ),
            Self::LockedOut => f.write_str("it is locked after too many wrong passwords; it is left alone for a while"),
            Self::Unsupported { what } => write!(f, "it wants {what}, which is not supported"),
            Self::BadSignature => f.write_str("its answer is not signed by whom the login was made with"),
            Self::Garbage { what } => write!(f, "its answer is not in the protocol's form: {what}"),
            Self::Status(status) => write!(f, "it answers with HTTP status {status}"),
            Self::Refused { code } => write!(f, "it refuses with code {code}"),
        }
    }
}

impl std::error::Error for SessionError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cookie_gives_its_pair_and_its_timeout_apart() {
        let cookie = Cookie::parse(b"TP_SESSIONID=8B4CE1F0A1B2;TIMEOUT=86400").unwrap();
        assert_eq!((cookie.pair(), cookie.timeout()), ("TP_SESSIONID=8B4CE1F0A1B2", Some(Duration::from_secs(86_400))));
        let cookie = Cookie::parse(b"SESSIONID=1; Path=/; timeout=x").unwrap();
        assert_eq!((cookie.pair(), cookie.timeout()), ("SESSIONID=1", None));
        for other in
            [&b"theme=dark"[..], b"TP_SESSIONID=", b"TP_SESSIONID=a b", b"TP_SESSIONID=a\r\nX: y", b"", b"\xff"]
        {
            assert_eq!(Cookie::parse(other), None);
        }
        let long = [b"TP_SESSIONID=", &[b'a'; limits::COOKIE][..]].concat();
        assert_eq!(Cookie::parse(&long), None);
        let reply = Reply::new(200, [&b"theme=dark"[..], b"TP_SESSIONID=1"], Vec::new());
        assert_eq!(reply.cookie.unwrap().pair(), "TP_SESSIONID=1");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let account = Credentials::new("user@example.com", "hunter22");
        let (login, request) = Login::klap(Some(&account), &Seed::new([7; 32]));
        let reply = Reply::new(200, [&b"TP_SESSIONID=SECRET;TIMEOUT=1"[..]], b"hunter22".to_vec());
        let shown = format!("{account:?} {login:?} {request:?} {reply:?} {:?}", Seed::new([7; 32]));
        for secret in ["user@", "hunter", "SECRET", "104, 117", "7, 7"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }

    proptest! {
        #[test]
        fn foreign_cookies_never_panic(value: Vec<u8>) {
            let _ = Cookie::parse(&value);
        }
    }
}
