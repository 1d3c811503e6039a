//! The AES passthrough transport of older SMART firmware: the plug sends a key under our RSA key, then everything goes
//! inside `securePassthrough`.
//!
//! Owns the RSA key of a run ([`RunKey`]), the cipher ([`Cipher`]), the login and the session. Promises at most one attempt
//! for each way of writing each of two credentials. The RSA key lives as long as the program and only ever decrypts what a plug
//! on the local network sends: what is known of the timing of the `rsa` crate needs far more than that. Source: the known
//! answers in the tests, and the logins of two independent clients.

use std::fmt;
use std::sync::Arc;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use base64ct::{Base64, Encoding};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::traits::PublicKeyParts;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::lenient;
use super::session::{Credentials, JSON, Reply, Request, Seed, SessionError, Whose};
use crate::limits;
use crate::units::UnixMillis;

/// Bits of the RSA key: what these plugs take.
const BITS: usize = 1_024;

/// What stands before the modulus of such a key in DER, and behind it: an exponent of 65537.
const DER_HEAD: [u8; 29] = [
    0x30, 0x81, 0x9f, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00, 0x03,
    0x81, 0x8d, 0x00, 0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00,
];
const DER_TAIL: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// The lines around a key.
const PEM_HEAD: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_TAIL: &str = "-----END PUBLIC KEY-----";

/// Codes of refusal.
pub mod code {
    /// The session has ended.
    pub const SESSION: i64 = 9_999;
    /// The login was refused.
    pub const LOGIN: i64 = -1_501;
    /// The plug has moved to another protocol.
    pub const MOVED: i64 = 1_003;
    /// A parameter was missing or of the wrong form.
    pub const PARAMETERS: i64 = -1_008;
}

/// What the plugs' headers look for.
const HEADERS: &[(&str, &str)] = &[("Accept", "application/json"), ("requestByApp", "true")];

/// The RSA key of this run: one for all plugs, made once.
#[derive(Clone)]
pub struct RunKey(Arc<rsa::PrivateKey>);

impl fmt::Debug for RunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunKey(..)")
    }
}

impl RunKey {
    /// A key from a seed. Takes a second on a small machine: a worker's work.
    ///
    /// # Errors
    /// [`SessionError::Unsupported`] when no key can be made, which no seed is known to lead to.
    pub fn generate(seed: &Seed) -> Result<Self, SessionError> {
        let key = rsa::PrivateKey::new(&mut Stream { seed, next: 0 }, BITS);
        key.map(|key| Self(Arc::new(key))).map_err(|_| SessionError::Unsupported { what: "an RSA key" })
    }

    /// The public half as the plugs read it: PEM with all of its base64 in one line.
    fn pem(&self) -> String {
        let modulus = self.0.n().to_be_bytes();
        let der = [&DER_HEAD[..], &modulus, &DER_TAIL].concat();
        format!("{PEM_HEAD}\n{}\n{PEM_TAIL}\n", Base64::encode_string(&der))
    }

    fn decrypt(&self, cipher_text: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(rsa::Pkcs1v15Encrypt, cipher_text).ok()
    }
}

/// The modulus of a key that a client sent, big-endian; for the plug's side.
#[must_use]
pub fn modulus(pem: &str) -> Option<Vec<u8>> {
    let body: String = pem.trim().strip_prefix(PEM_HEAD)?.strip_suffix(PEM_TAIL)?.split_whitespace().collect();
    let der = Base64::decode_vec(&body).ok()?;
    Some(der.strip_prefix(&DER_HEAD)?.strip_suffix(&DER_TAIL)?.to_vec())
}

/// Random bytes without end from a seed.
struct Stream<'a> {
    seed: &'a Seed,
    next: u32,
}

impl TryRng for Stream<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in to.chunks_mut(32) {
            for (to, from) in chunk.iter_mut().zip(self.seed.block(self.next)) {
                *to = from;
            }
            self.next = self.next.wrapping_add(1);
        }
        Ok(())
    }
}

impl TryCryptoRng for Stream<'_> {}

/// The cipher of one session, the same on both sides: one key and one vector for every message.
#[derive(Clone)]
pub struct Cipher {
    key: [u8; 16],
    iv: [u8; 16],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    /// From the key and the vector, one behind the other.
    #[must_use]
    pub fn new(both: &[u8; 32]) -> Self {
        let (key, iv) = both.split_at(16);
        Self { key: key.try_into().unwrap_or_default(), iv: iv.try_into().unwrap_or_default() }
    }

    /// The cipher text in base64.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> String {
        let cipher = cbc::Encryptor::<::aes::Aes128>::new(&self.key.into(), &self.iv.into());
        Base64::encode_string(&cipher.encrypt_padded_vec::<Pkcs7>(plain))
    }

    /// The plain text; `None` for what is no cipher text.
    #[must_use]
    pub fn open(&self, text: &str) -> Option<Vec<u8>> {
        let cipher_text = Base64::decode_vec(text).ok()?;
        let cipher = cbc::Decryptor::<::aes::Aes128>::new(&self.key.into(), &self.iv.into());
        cipher.decrypt_padded_vec::<Pkcs7>(&cipher_text).ok()
    }
}

/// How a login writes the password: firmware of the second level wants it hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it is.
    One,
    /// Its SHA-1.
    Two,
}

/// The parameters of `login_device`.
#[must_use]
pub fn login_params(credentials: &Credentials, level: Level) -> Value {
    let hashed = |text: &str| -> String {
        let hex: String = Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        Base64::encode_string(hex.as_bytes())
    };
    let username = hashed(credentials.user());
    match level {
        Level::One => {
            json!({"username": username, "password": Base64::encode_string(credentials.password().as_bytes())})
        }
        Level::Two => json!({"username": username, "password2": hashed(credentials.password())}),
    }
}

/// A login under way.
pub struct Login {
    key: RunKey,
    time: UnixMillis,
    /// What is still to be tried, the next one last.
    left: Vec<Attempt>,
    has_account: bool,
    state: State,
}

struct Attempt {
    whose: Whose,
    level: Level,
    credentials: Credentials,
}

enum State {
    Handshake,
    Login { attempt: Attempt, session: Session },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
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

#[derive(Deserialize)]
struct WireReply {
    error_code: i64,
    result: Option<WireResult>,
}

#[derive(Deserialize)]
struct WireResult {
    #[serde(default, deserialize_with = "lenient")]
    key: Option<String>,
    response: Option<Value>,
    #[serde(default, deserialize_with = "lenient")]
    token: Option<String>,
}

#[derive(Deserialize)]
struct WireCode {
    #[serde(default, deserialize_with = "lenient")]
    error_code: Option<i64>,
}

impl Login {
    /// Sends the public key. `time` stands in the login for the plug's own log.
    #[must_use]
    pub fn start(account: Option<&Credentials>, key: &RunKey, time: UnixMillis) -> (Self, Request) {
        let mut left = Vec::new();
        if let Some(credentials) = Whose::TapoDefault.credentials() {
            left.push(Attempt { whose: Whose::TapoDefault, level: Level::Two, credentials });
        }
        for level in [Level::One, Level::Two].into_iter().filter(|_| account.is_some()) {
            left.extend(account.map(|account| Attempt { whose: Whose::Account, level, credentials: account.clone() }));
        }
        let login = Self { key: key.clone(), time, left, has_account: account.is_some(), state: State::Handshake };
        login.handshake()
    }

    fn handshake(mut self) -> (Self, Request) {
        let body = json!({"method": "handshake", "params": {"key": self.key.pem()}});
        self.state = State::Handshake;
        (self, request("/app".to_owned(), None, &body))
    }

    /// What follows from the reply.
    ///
    /// # Errors
    /// [`SessionError`]: the login is over and has not led to a session.
    pub fn hear(mut self, reply: &Reply) -> Result<Step, SessionError> {
        match std::mem::replace(&mut self.state, State::Handshake) {
            State::Handshake => self.hear_handshake(reply),
            State::Login { attempt, session } => self.hear_login(&attempt, session, reply),
        }
    }

    fn hear_handshake(mut self, reply: &Reply) -> Result<Step, SessionError> {
        let result = match parse(reply) {
            Err(SessionError::Refused { code: code::MOVED }) => return Err(SessionError::OtherProtocol),
            other => other?,
        };
        let sealed = result.and_then(|result| result.key).and_then(|key| Base64::decode_vec(&key).ok());
        let both = sealed.and_then(|sealed| self.key.decrypt(&sealed)).and_then(|both| <[u8; 32]>::try_from(both).ok());
        let both = both.ok_or(SessionError::Garbage { what: "the handshake brought no key" })?;
        let cookie = reply.cookie.as_ref().map(|cookie| cookie.pair().to_owned());
        let attempt = self.left.pop().ok_or(SessionError::WrongCredentials)?;
        let session = Session { cipher: Cipher::new(&both), path: "/app".to_owned(), cookie, whose: attempt.whose };
        let login = json!({
            "method": "login_device", "params": login_params(&attempt.credentials, attempt.level),
            "request_time_milis": self.time.get(),
        });
        let request = session.seal(login.to_string().as_bytes());
        self.state = State::Login { attempt, session };
        Ok(Step::Send(self, request))
    }

    fn hear_login(mut self, attempt: &Attempt, mut session: Session, reply: &Reply) -> Result<Step, SessionError> {
        let plain = match session.open(reply) {
            // Some say it outside instead of inside.
            Err(SessionError::Refused { code }) => return self.refused(attempt, code),
            other => other?,
        };
        let inner: WireReply = serde_json::from_slice(&plain)
            .map_err(|_| SessionError::Garbage { what: "the login is answered with something else" })?;
        if inner.error_code != 0 {
            return self.refused(attempt, inner.error_code);
        }
        let token = inner.result.and_then(|result| result.token).filter(|token| is_token(token));
        let token = token.ok_or(SessionError::Garbage { what: "it has no token" })?;
        self.left.clear();
        session.path = format!("/app?token={token}");
        Ok(Step::Ready(session))
    }

    /// After a refusal the plug wants a new handshake, whatever is tried next.
    fn refused(mut self, attempt: &Attempt, code: i64) -> Result<Step, SessionError> {
        match code {
            code::PARAMETERS => {}
            // It has understood the form and refused what it holds: the other form would hold the same.
            code::LOGIN => self.left.retain(|next| next.whose != attempt.whose),
            code => return Err(SessionError::Refused { code }),
        }
        if self.left.is_empty() {
            return Err(if self.has_account { SessionError::WrongCredentials } else { SessionError::AccountNeeded });
        }
        let (login, request) = self.handshake();
        Ok(Step::Send(login, request))
    }
}

fn is_token(text: &str) -> bool {
    (1..=limits::COOKIE).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn request(path: String, cookie: Option<String>, body: &Value) -> Request {
    Request { path, content_type: JSON, cookie, headers: HEADERS, body: body.to_string().into_bytes() }
}

fn parse(reply: &Reply) -> Result<Option<WireResult>, SessionError> {
    match reply.status {
        200 => {}
        401 | 403 => return Err(SessionError::SessionGone),
        status => return Err(SessionError::Status(status)),
    }
    let outer: WireReply =
        serde_json::from_slice(&reply.body).map_err(|_| SessionError::Garbage { what: "it is no JSON" })?;
    match outer.error_code {
        0 => Ok(outer.result),
        code::SESSION => Err(SessionError::SessionGone),
        code => Err(SessionError::Refused { code }),
    }
}

/// An open session.
pub struct Session {
    cipher: Cipher,
    path: String,
    cookie: Option<String>,
    whose: Whose,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.whose)
    }
}

impl Session {
    /// See [`super::session::Session::seal`].
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Request {
        let body = json!({"method": "securePassthrough", "params": {"request": self.cipher.seal(plain)}});
        request(self.path.clone(), self.cookie.clone(), &body)
    }

    /// See [`super::session::Session::open`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(&self, reply: &Reply) -> Result<Vec<u8>, SessionError> {
        let response = parse(reply)?.and_then(|result| result.response);
        let plain = match response.ok_or(SessionError::Garbage { what: "it has no response" })? {
            // Now and then it is in the open.
            Value::String(text) if text.trim_start().starts_with('{') => text.into_bytes(),
            Value::String(text) => {
                self.cipher.open(&text).ok_or(SessionError::Garbage { what: "its response cannot be decrypted" })?
            }
            other => other.to_string().into_bytes(),
        };
        match serde_json::from_slice(&plain) {
            Ok(WireCode { error_code: Some(code::SESSION) }) => Err(SessionError::SessionGone),
            _ => Ok(plain),
        }
    }

    /// Whose credentials the plug took.
    #[must_use]
    pub const fn whose(&self) -> Whose {
        self.whose
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<RunKey> = LazyLock::new(|| RunKey::generate(&Seed::new([1; 32])).unwrap());

    fn account() -> Credentials {
        Credentials::new("user@example.com", "hunter22")
    }

    fn cipher() -> Cipher {
        Cipher::new(&std::array::from_fn(|i| u8::try_from(i).unwrap()))
    }

    fn reply(body: &Value) -> Reply {
        Reply::new(200, [&b"TP_SESSIONID=ABC;TIMEOUT=1440"[..]], body.to_string().into_bytes())
    }

    fn handshake_reply() -> Reply {
        let both: Vec<u8> = (0..32).collect();
        let sealed = rsa::PublicKey::from(&*KEY.0)
            .encrypt(&mut Stream { seed: &Seed::new([2; 32]), next: 0 }, rsa::Pkcs1v15Encrypt, &both)
            .unwrap();
        reply(&json!({"error_code": 0, "result": {"key": Base64::encode_string(&sealed)}}))
    }

    fn sealed(inner: &Value) -> Reply {
        reply(&json!({"error_code": 0, "result": {"response": cipher().seal(inner.to_string().as_bytes())}}))
    }

    fn inner(request: &Request) -> Value {
        let outer: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(outer["method"], "securePassthrough");
        serde_json::from_slice(&cipher().open(outer["params"]["request"].as_str().unwrap()).unwrap()).unwrap()
    }

    fn start(account: Option<&Credentials>) -> (Login, Request) {
        Login::start(account, &KEY, UnixMillis::new(1))
    }

    fn logging_in(account: Option<&Credentials>) -> (Login, Request) {
        match start(account).0.hear(&handshake_reply()) {
            Ok(Step::Send(login, request)) => (login, request),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_answers() {
        let two = login_params(&account(), Level::Two);
        assert_eq!(two["username"], "NjNhNzEwNTY5MjYxYTI0YjM3NjYyNzViNzAwMGNlOGQ3YjMyZTJmNw==");
        assert_eq!(two["password2"], "NjBiM2FmOGJmZTM3MzU2MjNjN2Q0YTVlZjc0OWJiNmFjMWE0NDEzYQ==");
        assert_eq!(login_params(&account(), Level::One)["password"], "aHVudGVyMjI=");
        let (_, request) = start(None);
        // What another client sends has this length.
        assert_eq!((request.path.as_str(), request.body.len()), ("/app", 314));
        assert_eq!(modulus(&KEY.pem()).unwrap(), KEY.0.n().to_be_bytes().to_vec());
    }

    #[test]
    fn a_login_leads_to_a_session() {
        let (login, request) = logging_in(Some(&account()));
        assert_eq!(request.cookie.as_deref(), Some("TP_SESSIONID=ABC"));
        assert_eq!((&inner(&request)["method"], request.path.as_str()), (&json!("login_device"), "/app"));
        let accepted = sealed(&json!({"error_code": 0, "result": {"token": "0123ABC"}}));
        let Ok(Step::Ready(session)) = login.hear(&accepted) else { panic!("a session") };
        let request = session.seal(br#"{"method":"get_device_info"}"#);
        assert_eq!((request.path.as_str(), session.whose()), ("/app?token=0123ABC", Whose::Account));
        assert_eq!(inner(&request)["method"], "get_device_info");
        let answer = json!({"error_code": 0, "result": {"model": "P110"}});
        assert_eq!(session.open(&sealed(&answer)).unwrap(), answer.to_string().into_bytes());
        // In the open, as a text or as an object.
        for response in [json!(answer.to_string()), answer.clone()] {
            let reply = reply(&json!({"error_code": 0, "result": {"response": response}}));
            assert_eq!(session.open(&reply).unwrap(), answer.to_string().into_bytes());
        }
        assert_eq!(session.open(&reply(&json!({"error_code": 9_999}))), Err(SessionError::SessionGone));
        assert_eq!(session.open(&sealed(&json!({"error_code": 9_999}))), Err(SessionError::SessionGone));
        let garbage = reply(&json!({"error_code": 0, "result": {"response": "AAAA"}}));
        assert!(matches!(session.open(&garbage), Err(SessionError::Garbage { .. })));
    }

    #[test]
    fn each_credential_is_tried_once() {
        let refuse = |code: i64, account: Option<&Credentials>| {
            let (mut login, mut request) = logging_in(account);
            let mut tried = Vec::new();
            loop {
                let params = inner(&request)["params"].clone();
                tried.push((
                    params["username"] == login_params(&self::account(), Level::Two)["username"],
                    params["password2"].is_string(),
                ));
                match login.hear(&sealed(&json!({ "error_code": code }))) {
                    Err(error) => return (tried, error),
                    Ok(Step::Send(next, _)) => match next.hear(&handshake_reply()) {
                        Ok(Step::Send(next, sent)) => (login, request) = (next, sent),
                        other => panic!("{other:?}"),
                    },
                    Ok(Step::Ready(_)) => panic!("refused"),
                }
            }
        };
        let own = account();
        assert_eq!(refuse(-1_501, Some(&own)), (vec![(true, true), (false, true)], SessionError::WrongCredentials));
        assert_eq!(
            refuse(-1_008, Some(&own)),
            (vec![(true, true), (true, false), (false, true)], SessionError::WrongCredentials)
        );
        assert_eq!(refuse(-1_501, None), (vec![(false, true)], SessionError::AccountNeeded));
        assert_eq!(refuse(-7, Some(&own)).1, SessionError::Refused { code: -7 });
    }

    #[test]
    fn a_plug_that_has_moved_says_so() {
        let hear = |reply: &Reply| start(None).0.hear(reply).err();
        assert_eq!(hear(&reply(&json!({"error_code": 1_003}))), Some(SessionError::OtherProtocol));
        assert_eq!(hear(&reply(&json!({"error_code": -1_010}))), Some(SessionError::Refused { code: -1_010 }));
        assert_eq!(hear(&Reply::new(500, [], vec![])), Some(SessionError::Status(500)));
        assert!(matches!(hear(&reply(&json!({"error_code": 0}))), Some(SessionError::Garbage { .. })));
        let wrong = reply(&json!({"error_code": 0, "result": {"key": Base64::encode_string(&[7; 128])}}));
        assert!(matches!(hear(&wrong), Some(SessionError::Garbage { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn foreign_bytes_never_panic(body: Vec<u8>, key: Vec<u8>) {
            let _ = start(None).0.hear(&Reply::new(200, [], body.clone()));
            let _ = start(None).0.hear(&reply(&json!({"error_code": 0, "result": {"key": Base64::encode_string(&key)}})));
            let session = Session { cipher: cipher(), path: String::new(), cookie: None, whose: Whose::Account };
            let _ = session.open(&Reply::new(200, [], body.clone()));
            let _ = session.open(&reply(&json!({"error_code": 0, "result": {"response": Base64::encode_string(&body)}})));
            let _ = modulus(&String::from_utf8_lossy(&body));
        }
    }
}
