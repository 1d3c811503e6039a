//! The TPAP transport, which new firmware wants: a SPAKE2+ login, then AES-128-CCM. Over plain HTTP, as plugs have it.
//!
//! Owns the login ([`Login`]), the ciphers of a session ([`Cipher`]) and how long a login may take. Promises that a wrong
//! password costs one attempt, because plugs lock themselves after some; that whatever this program does not support is
//! found before an attempt is spent; and that no number is used for two requests. Source: known answers in the tests
//! below; the login of two independent clients with one simulated device.

use std::fmt;

use base64ct::{Base64, Encoding};
use ccm::aead::{Aead, KeyInit};
use ccm::consts::{U12, U16};
use md5::Md5;
use p256::Scalar;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::lenient;
use super::session::{BYTES, Credentials, JSON, Reply, Request, Seed, SessionError, Whose};
use super::spake2::{self, Agreed, Context, Form, Secrets};
use crate::limits;

/// The one user that plugs have.
const USER: &str = "admin";

/// What the transcript's context begins with.
const CONTEXT: &[u8] = b"PAKE V1";

/// Codes of refusal.
pub mod code {
    /// A wrong password.
    pub const WRONG_PASSWORD: i64 = -2_203;
    /// Locked after too many wrong ones.
    pub const LOCKED: i64 = -2_101;
    /// No cipher suite that was offered.
    pub const SUITE: i64 = -2_201;
    /// No passcode of the type that was offered.
    pub const PASSCODE: i64 = -2_202;
    /// The session is not known.
    pub const SESSION: i64 = -2_402;
}

/// What stands in the place of the password where `extra_crypt` is `password_shadow` with `passwd_id` 2: the hex of its
/// SHA-1, in lower case.
#[must_use]
pub fn shadow(password: &str) -> String {
    Sha1::digest(password).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The context of a login's transcript.
#[must_use]
pub fn context(user_random: &[u8], device_random: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(CONTEXT).chain_update(user_random).chain_update(device_random).finalize().into()
}

type Ccm = ccm::Ccm<aes::Aes128, U16, U12>;

/// The cipher of one session, the same on both sides.
#[derive(Clone)]
pub struct Cipher {
    key: [u8; 16],
    nonce: [u8; 8],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    /// From the key that the login has led to.
    #[must_use]
    pub fn derive(shared: &[u8; 32]) -> Option<Self> {
        let (mut key, mut nonce) = ([0; 16], [0; 12]);
        spake2::expand(shared, b"tp-kdf-salt-aes128-key", b"tp-kdf-info-aes128-key", &mut key)?;
        spake2::expand(shared, b"tp-kdf-salt-aes128-iv", b"tp-kdf-info-aes128-iv", &mut nonce)?;
        // The rest of the nonce is the number.
        Some(Self { key, nonce: *nonce.first_chunk()? })
    }

    /// A frame: the number, the cipher text and its tag.
    #[must_use]
    pub fn seal(&self, number: u32, plain: &[u8]) -> Option<Vec<u8>> {
        let mut frame = number.to_be_bytes().to_vec();
        frame.extend(Ccm::new(&self.key.into()).encrypt(&self.nonce(number).into(), plain).ok()?);
        Some(frame)
    }

    /// The plain text of a frame; `None` for one with another number or another key.
    #[must_use]
    pub fn open(&self, number: u32, frame: &[u8]) -> Option<Vec<u8>> {
        let (its, sealed) = frame.split_first_chunk::<4>()?;
        if u32::from_be_bytes(*its) != number {
            return None;
        }
        Ccm::new(&self.key.into()).decrypt(&self.nonce(number).into(), sealed).ok()
    }

    fn nonce(&self, number: u32) -> [u8; 12] {
        let mut nonce = [0; 12];
        for (to, from) in nonce.iter_mut().zip(self.nonce.iter().chain(&number.to_be_bytes())) {
            *to = *from;
        }
        nonce
    }
}

/// A login under way.
pub struct Login {
    state: State,
    password: String,
    user_random: [u8; 32],
    x: Scalar,
    form: Form,
}

enum State {
    Discover,
    Register { user: String },
    Share { user: String, agreed: Agreed, is_short: bool },
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
    #[serde(default)]
    result: Value,
}

#[derive(Deserialize)]
struct WireDiscover {
    tpap: Option<WireTpap>,
}

#[derive(Deserialize)]
struct WireTpap {
    #[serde(default, deserialize_with = "lenient")]
    tls: Option<i64>,
    #[serde(default, deserialize_with = "lenient")]
    pake: Option<Vec<i64>>,
    #[serde(default, deserialize_with = "lenient")]
    user_hash_type: Option<i64>,
}

#[derive(Deserialize)]
struct WireRegister {
    dev_random: String,
    dev_salt: String,
    dev_share: String,
    iterations: i64,
    #[serde(default)]
    cipher_suites: Value,
    #[serde(default)]
    encryption: Value,
    #[serde(default)]
    extra_crypt: Value,
}

#[derive(Deserialize)]
struct WireShare {
    dev_confirm: String,
    #[serde(default, deserialize_with = "lenient")]
    stok: Option<String>,
    #[serde(rename = "sessionId", default, deserialize_with = "lenient")]
    session_id: Option<String>,
    start_seq: i64,
}

impl Login {
    /// Asks how the plug wants to be logged in to.
    ///
    /// # Errors
    /// [`SessionError::AccountNeeded`] without an account: the plugs' default passcodes are not tried.
    pub fn start(account: Option<&Credentials>, seed: &Seed) -> Result<(Self, Request), SessionError> {
        let account = account.ok_or(SessionError::AccountNeeded)?;
        let login = Self {
            state: State::Discover,
            password: account.password().to_owned(),
            user_random: seed.block(0),
            x: spake2::scalar(&[seed.block(1), seed.block(2)].concat()),
            form: Form::Whole,
        };
        Ok((login, ask(&json!({"sub_method": "discover"}))))
    }

    /// Whether the next reply leads to a key derivation.
    #[must_use]
    pub const fn is_slow(&self) -> bool {
        matches!(self.state, State::Register { .. })
    }

    /// What follows from the reply.
    ///
    /// # Errors
    /// [`SessionError`]: the login is over and has not led to a session.
    pub fn hear(mut self, reply: &Reply) -> Result<Step, SessionError> {
        let state = std::mem::replace(&mut self.state, State::Discover);
        match state {
            State::Discover => self.hear_discover(reply),
            State::Register { user } => self.hear_register(user, reply),
            State::Share { user, agreed, is_short } => self.hear_share(user, &agreed, is_short, reply),
        }
    }

    fn hear_discover(self, reply: &Reply) -> Result<Step, SessionError> {
        // What knows nothing of TPAP answers with a page or an error of its own.
        let found = match parse::<WireDiscover>(reply) {
            Err(SessionError::LockedOut) => return Err(SessionError::LockedOut),
            found => found.ok().and_then(|found| found.tpap).ok_or(SessionError::OtherProtocol)?,
        };
        if found.tls.unwrap_or_default() != 0 {
            return Err(SessionError::Unsupported { what: "TPAP over TLS" });
        }
        if !found.pake.unwrap_or_default().contains(&2) {
            return Err(SessionError::Unsupported { what: "another passcode than the account's password" });
        }
        let user = match found.user_hash_type {
            Some(1) => Sha256::digest(USER).iter().map(|byte| format!("{byte:02X}")).collect(),
            _ => Md5::digest(USER).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        Ok(self.register(user))
    }

    fn register(mut self, user: String) -> Step {
        let request = ask(&json!({
            "sub_method": "pake_register", "username": user, "user_random": Base64::encode_string(&self.user_random),
            "cipher_suites": [1], "encryption": ["aes_128_ccm"], "passcode_type": "userpw", "stok": null,
        }));
        self.state = State::Register { user };
        Step::Send(self, request)
    }

    fn hear_register(mut self, user: String, reply: &Reply) -> Result<Step, SessionError> {
        let device: WireRegister = parse(reply)?;
        let first = |value: &Value| value.as_array().and_then(|list| list.first()).unwrap_or(value).clone();
        if first(&device.cipher_suites) != json!(1) {
            return Err(SessionError::Unsupported { what: "another cipher suite" });
        }
        if first(&device.encryption) != json!("aes_128_ccm") {
            return Err(SessionError::Unsupported { what: "another cipher" });
        }
        let is_shadow = device.extra_crypt.get("type") == Some(&json!("password_shadow"))
            && device.extra_crypt.pointer("/params/passwd_id") == Some(&json!(2));
        if !is_shadow {
            return Err(SessionError::Unsupported { what: "another form of the password" });
        }
        let iterations = u32::try_from(device.iterations).ok().filter(|n| (1..=limits::PBKDF2_ITERATIONS).contains(n));
        let iterations =
            iterations.ok_or(SessionError::Unsupported { what: "a longer key derivation than is sane" })?;
        let device_random = decode(&device.dev_random).filter(|bytes| bytes.len() == 32);
        let salt = decode(&device.dev_salt).filter(|bytes| (1..=limits::TPAP_SALT).contains(&bytes.len()));
        let (Some(device_random), Some(salt), Some(device_share)) = (device_random, salt, decode(&device.dev_share))
        else {
            return Err(SessionError::Garbage { what: "its part of the login" });
        };
        let secrets = Secrets::derive(shadow(&self.password).as_bytes(), &salt, iterations);
        let text = context(&self.user_random, &device_random);
        let context = Context { text: &text, prover: b"", verifier: b"" };
        let agreed = spake2::prove(&secrets, self.form, &self.x, context, &device_share);
        let share = spake2::prover_share(&secrets, &self.x);
        let (Some(agreed), Some(share)) = (agreed, share) else {
            return Err(SessionError::Garbage { what: "its share is none" });
        };
        let request = ask(&json!({
            "sub_method": "pake_share", "user_share": Base64::encode_string(&share),
            "user_confirm": Base64::encode_string(&agreed.confirm),
        }));
        self.state = State::Share { user, agreed, is_short: secrets.is_short() };
        Ok(Step::Send(self, request))
    }

    fn hear_share(
        mut self,
        user: String,
        agreed: &Agreed,
        is_short: bool,
        reply: &Reply,
    ) -> Result<Step, SessionError> {
        let device: WireShare = match parse(reply) {
            // One password in 256 has two forms. Only then is there a second attempt, and never a third.
            Err(SessionError::WrongCredentials) if is_short && self.form == Form::Whole => {
                self.form = Form::Minimal;
                return Ok(self.register(user));
            }
            other => other?,
        };
        let confirm = decode(&device.dev_confirm).ok_or(SessionError::Garbage { what: "its proof" })?;
        if !agreed.is_proof(&confirm) {
            return Err(SessionError::BadSignature);
        }
        let token = device.stok.or(device.session_id).filter(|token| is_token(token));
        let (Some(token), Some(cipher)) = (token, Cipher::derive(&agreed.shared)) else {
            return Err(SessionError::Garbage { what: "it has no session" });
        };
        let start = u32::try_from(device.start_seq).ok();
        // Some firmware may write it with a sign.
        let start = start.or_else(|| i32::try_from(device.start_seq).ok().map(i32::cast_unsigned));
        let start = start.ok_or(SessionError::Garbage { what: "its first number" })?;
        Ok(Step::Ready(Session { cipher, path: format!("/stok={token}/ds"), next: start, sent: start }))
    }
}

/// Whether a text can stand in a path.
fn is_token(text: &str) -> bool {
    (1..=limits::COOKIE).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn ask(params: &Value) -> Request {
    Request {
        path: "/".to_owned(),
        content_type: JSON,
        cookie: None,
        headers: &[],
        body: json!({"method": "login", "params": params}).to_string().into_bytes(),
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(text).ok()
}

fn parse<T: for<'de> Deserialize<'de>>(reply: &Reply) -> Result<T, SessionError> {
    if reply.status != 200 {
        return Err(SessionError::Status(reply.status));
    }
    let garbage = |_| SessionError::Garbage { what: "the login is answered with something else" };
    let reply: WireReply = serde_json::from_slice(&reply.body).map_err(garbage)?;
    match reply.error_code {
        0 => serde_json::from_value(reply.result).map_err(garbage),
        code::WRONG_PASSWORD => Err(SessionError::WrongCredentials),
        code::LOCKED => Err(SessionError::LockedOut),
        code::SUITE => Err(SessionError::Unsupported { what: "another cipher suite" }),
        code::PASSCODE => Err(SessionError::Unsupported { what: "another passcode than the account's password" }),
        code::SESSION => Err(SessionError::SessionGone),
        code => Err(SessionError::Refused { code }),
    }
}

/// An open session.
pub struct Session {
    cipher: Cipher,
    path: String,
    /// For the next request.
    next: u32,
    /// Of the request sealed last.
    sent: u32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

impl Session {
    /// See [`super::session::Session::seal`].
    ///
    /// # Errors
    /// [`SessionError::Garbage`] for a plain text of 4 GB.
    pub fn seal(&mut self, plain: &[u8]) -> Result<Request, SessionError> {
        self.sent = self.next;
        self.next = self.next.wrapping_add(1);
        let body =
            self.cipher.seal(self.sent, plain).ok_or(SessionError::Garbage { what: "the request is too long" })?;
        Ok(Request { path: self.path.clone(), content_type: BYTES, cookie: None, headers: &[], body })
    }

    /// See [`super::session::Session::open`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn open(&self, reply: &Reply) -> Result<Vec<u8>, SessionError> {
        match reply.status {
            200 => {}
            401 | 403 => return Err(SessionError::SessionGone),
            status => return Err(SessionError::Status(status)),
        }
        // Decrypted first: a frame may begin like JSON.
        match self.cipher.open(self.sent, &reply.body) {
            Some(plain) => Ok(plain),
            // In the open it says that it does not know the session, with one code or another.
            None => match serde_json::from_slice::<WireReply>(&reply.body) {
                Ok(WireReply { error_code: code::LOCKED, .. }) => Err(SessionError::LockedOut),
                Ok(WireReply { error_code: 1.. | ..=-1, .. }) => Err(SessionError::SessionGone),
                _ => Err(SessionError::BadSignature),
            },
        }
    }

    /// Whose credentials the plug took: only the account's are tried.
    #[must_use]
    pub const fn whose(&self) -> Whose {
        Whose::Account
    }
}

#[cfg(test)]
mod tests {
    use super::super::hex;
    use super::*;
    use proptest::prelude::*;

    const DEV_SHARE: &str = "047cd924799bdae8b1009af26a39f1617ee25b045ed306b979a1ff8f70a4abce12b3b6d5fae282c9cca00a4df4d4c94085d8d1ef18941e2a1703f4176b39db47c6";

    fn account() -> Credentials {
        Credentials::new("user@example.com", "hunter22")
    }

    fn json_reply(value: &Value) -> Reply {
        Reply::new(200, [], value.to_string().into_bytes())
    }

    /// A login that is about to hear the answer to its registration, with the numbers of the known answers.
    fn registering() -> Login {
        Login {
            state: State::Register { user: "admin".to_owned() },
            password: "hunter22".to_owned(),
            user_random: std::array::from_fn(|i| u8::try_from(i).unwrap()),
            x: spake2::scalar(&[0x11; 32]),
            form: Form::Whole,
        }
    }

    fn registration() -> Value {
        let device_random: Vec<u8> = (0x20..0x40).collect();
        json!({"error_code": 0, "result": {
            "dev_random": Base64::encode_string(&device_random),
            "dev_salt": Base64::encode_string(&hex("202122232425262728292a2b2c2d2e2f")),
            "dev_share": Base64::encode_string(&hex(DEV_SHARE)), "iterations": 3_000, "cipher_suites": 1,
            "encryption": "aes_128_ccm", "extra_crypt": {"type": "password_shadow", "params": {"passwd_id": 2}},
        }})
    }

    fn params(request: &Request) -> Value {
        serde_json::from_slice::<Value>(&request.body).unwrap()["params"].clone()
    }

    fn field(value: &Value, name: &str) -> Vec<u8> {
        Base64::decode_vec(value[name].as_str().unwrap()).unwrap()
    }

    #[test]
    fn known_answers() {
        assert_eq!(shadow("hunter22"), "60b3af8bfe3735623c7d4a5ef749bb6ac1a4413a");
        let login = registering();
        assert!(login.is_slow());
        let Ok(Step::Send(login, request)) = login.hear(&json_reply(&registration())) else { panic!("a share") };
        let sent = params(&request);
        assert_eq!(
            field(&sent, "user_share"),
            hex(
                "04a508328f4b1baf6107cf6a8c91f76e3c682e0b53557d6e05a4a5d4e2bf9b777329565e7859690064a7689ea32bf006128f6883826c048f2363d37ba17be773d9"
            )
        );
        let user_confirm = "536e855eb21f4d42fdd14a1b72717002ab647f29a17758fd009d3a58508d82cd";
        assert_eq!(field(&sent, "user_confirm"), hex(user_confirm));
        let dev_confirm = hex("5a02a5a6be443039d068d9a29bf14f218d6fd3d7f64ca6d12fdc468efb914e95");
        let answer = json!({"error_code": 0, "result": {
            "dev_confirm": Base64::encode_string(&dev_confirm), "stok": "0123ABCD", "start_seq": 1_000}});
        let Ok(Step::Ready(mut session)) = login.hear(&json_reply(&answer)) else { panic!("a session") };
        let shared = hex("bf0a048bf1bec74065fc7322fa8a2340e2f92341b021fb35b113f1a546e500c2");
        let cipher = Cipher::derive(shared.as_slice().try_into().unwrap()).unwrap();
        assert_eq!((cipher.key, cipher.nonce), (session.cipher.key, session.cipher.nonce));
        assert_eq!(cipher.key.to_vec(), hex("86bb870600eb59999eb238c5b19613aa"));
        assert_eq!(cipher.nonce(0)[..8].to_vec(), hex("4995fc5f2acb78b4"));
        let request = session.seal(br#"{"method":"get_emeter_data"}"#).unwrap();
        assert_eq!(request.path, "/stok=0123ABCD/ds");
        let frame = "000003e866382ac52175ac221abda7f1477b872022b953542f49887978fb1f832b3a0d231d76277313263290492af5d5";
        assert_eq!(request.body, hex(frame));
        let reply = Reply::new(200, [], cipher.seal(1_000, b"yes").unwrap());
        assert_eq!(session.open(&reply).unwrap(), b"yes");
        session.seal(b"").unwrap();
        assert_eq!(session.open(&reply), Err(SessionError::BadSignature), "an answer of before");
    }

    #[test]
    fn the_plug_says_how_it_wants_to_be_logged_in_to() {
        let discover = |body: &Value| {
            let (login, request) = Login::start(Some(&account()), &Seed::new([1; 32])).unwrap();
            assert_eq!((request.path.as_str(), params(&request)), ("/", json!({"sub_method": "discover"})));
            login.hear(&json_reply(body))
        };
        let tpap = |tpap: Value| json!({"error_code": 0, "result": {"mac": "AABBCCDDEEFF", "tpap": tpap}});
        let user = |found| match found {
            Ok(Step::Send(_, request)) => params(&request)["username"].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        let md5 = "21232f297a57a5a743894a0e4a801fc3";
        assert_eq!(user(discover(&tpap(json!({"tls": 0, "pake": [2], "port": 80})))), md5);
        let sha = "8C6976E5B5410415BDE908BD4DEE15DFB167A9C873FC4BB8A81F6F2AB448A918";
        assert_eq!(user(discover(&tpap(json!({"pake": [0, 2], "user_hash_type": 1})))), sha);
        let error = |body: &Value| discover(body).err();
        assert!(matches!(error(&tpap(json!({"tls": 2, "pake": [2]}))), Some(SessionError::Unsupported { .. })));
        assert!(matches!(error(&tpap(json!({"tls": 0, "pake": [0]}))), Some(SessionError::Unsupported { .. })));
        assert_eq!(error(&json!({"error_code": -2_101})), Some(SessionError::LockedOut));
        assert_eq!(error(&json!({"error_code": 1_003})), Some(SessionError::OtherProtocol));
        assert_eq!(error(&json!({"error_code": 0, "result": {}})), Some(SessionError::OtherProtocol));
        assert_eq!(error(&json!("<html>")), Some(SessionError::OtherProtocol));
        assert!(matches!(Login::start(None, &Seed::new([1; 32])), Err(SessionError::AccountNeeded)));
    }

    #[test]
    fn what_is_not_supported_is_found_before_an_attempt_is_spent() {
        let wanted = |name: &str, value: Value| {
            let mut body = registration();
            body["result"][name] = value;
            registering().hear(&json_reply(&body)).unwrap_err()
        };
        for (name, value) in [
            ("iterations", json!(0)),
            ("iterations", json!(20_001)),
            ("iterations", json!(-1)),
            ("cipher_suites", json!(2)),
            ("encryption", json!("aes_256_ccm")),
            ("extra_crypt", Value::Null),
            ("extra_crypt", json!({"type": "password_shadow", "params": {"passwd_id": 5}})),
        ] {
            assert!(matches!(wanted(name, value), SessionError::Unsupported { .. }), "{name}");
        }
        for (name, value) in
            [("dev_random", "AAAA"), ("dev_salt", ""), ("dev_salt", "?"), ("dev_share", "BAAA"), ("dev_share", "")]
        {
            assert!(matches!(wanted(name, json!(value)), SessionError::Garbage { .. }), "{name}");
        }
    }

    #[test]
    fn a_wrong_password_costs_one_attempt_and_a_short_number_two() {
        let refused = json_reply(&json!({"error_code": -2_203}));
        let sharing = |is_short, form| {
            let Ok(Step::Send(mut login, _)) = registering().hear(&json_reply(&registration())) else {
                panic!("a share")
            };
            let State::Share { is_short: short, .. } = &mut login.state else { panic!("sharing") };
            *short = is_short;
            Login { form, ..login }
        };
        assert_eq!(sharing(false, Form::Whole).hear(&refused).err(), Some(SessionError::WrongCredentials));
        let Ok(Step::Send(login, request)) = sharing(true, Form::Whole).hear(&refused) else { panic!("once more") };
        assert_eq!((login.form, &params(&request)["sub_method"]), (Form::Minimal, &json!("pake_register")));
        assert_eq!(sharing(true, Form::Minimal).hear(&refused).err(), Some(SessionError::WrongCredentials));
        let locked = json_reply(&json!({"error_code": -2_101}));
        assert_eq!(sharing(true, Form::Whole).hear(&locked).err(), Some(SessionError::LockedOut));
        let forged = json!({"error_code": 0, "result": {
            "dev_confirm": Base64::encode_string(&[0; 32]), "stok": "A", "start_seq": 1}});
        assert_eq!(sharing(false, Form::Whole).hear(&json_reply(&forged)).err(), Some(SessionError::BadSignature));
    }

    fn session() -> Session {
        Session { cipher: Cipher { key: [1; 16], nonce: [2; 8] }, path: "/".to_owned(), next: u32::MAX, sent: 0 }
    }

    #[test]
    fn a_session_that_is_gone_is_told_from_a_forged_answer() {
        let mut session = session();
        let request = session.seal(b"{}").unwrap();
        assert_eq!(session.cipher.open(u32::MAX, &request.body).unwrap(), b"{}");
        assert_eq!(session.next, 0);
        let open = |body: &[u8]| session.open(&Reply::new(200, [], body.to_vec())).err();
        assert_eq!(open(br#"{"error_code":-2402}"#), Some(SessionError::SessionGone));
        assert_eq!(open(br#"{"error_code": -2203, "result": {}}"#), Some(SessionError::SessionGone));
        assert_eq!(open(br#"{"error_code":-2101}"#), Some(SessionError::LockedOut));
        assert_eq!(open(b"{\x00\x01"), Some(SessionError::BadSignature));
        assert_eq!(open(b""), Some(SessionError::BadSignature));
        assert_eq!(session.open(&Reply::new(403, [], vec![])), Err(SessionError::SessionGone));
        assert_eq!(session.open(&Reply::new(500, [], vec![])), Err(SessionError::Status(500)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn open_undoes_seal_and_nothing_else(plain: Vec<u8>, number: u32, at: prop::sample::Index, flip in 1_u8..) {
            let Session { cipher, .. } = session();
            let mut frame = cipher.seal(number, &plain).unwrap();
            prop_assert_eq!(cipher.open(number, &frame), Some(plain));
            let at = at.index(frame.len());
            frame[at] ^= flip;
            prop_assert_eq!(cipher.open(number, &frame), None);
        }

        #[test]
        fn foreign_bytes_never_panic(body: Vec<u8>, at: prop::sample::Index, byte: u8) {
            let _ = session().open(&Reply::new(200, [], body.clone()));
            let _ = registering().hear(&Reply::new(200, [], body));
            let mut damaged = registration().to_string().into_bytes();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            // Whatever number of iterations comes of it, it is bounded.
            let _ = registering().hear(&Reply::new(200, [], damaged));
        }
    }
}
