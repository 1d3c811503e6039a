//! The plug's side of TPAP. It locks itself after ten wrong passwords, as real ones do after some.

use std::cell::OnceCell;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use md5::{Digest, Md5};
use p256::Scalar;
use serde_json::{Value, json};

use super::Fault;
use super::announce;
use super::door::{Event, Inner, Keeper};
use super::web::{Answer, Ask};
use crate::plug::spake2::{self, Agreed, Context, Form, Secrets};
use crate::plug::tpap::{Cipher, code, context, shadow};

/// What real plugs ask for.
const ITERATIONS: u32 = 3_000;
/// Wrong passwords in a row before it locks itself, and for how long.
const ATTEMPTS: u32 = 10;
const LOCK: Duration = Duration::from_secs(1_800);
/// The number of a session's first request.
const START: u32 = 1_000;

#[derive(Debug)]
pub(super) struct Door {
    keeper: Keeper,
    http_port: u16,
    /// Of its own password and of another one, made when they are first needed.
    secrets: [OnceCell<Secrets>; 2],
    begun: u64,
    wrong: u32,
    locked_until: Duration,
    pending: Option<Pending>,
    session: Option<Session>,
}

#[derive(Debug)]
struct Pending {
    context: [u8; 32],
    y: Scalar,
    is_wrong: bool,
}

#[derive(Debug)]
struct Session {
    token: String,
    cipher: Cipher,
    next: u32,
}

impl Door {
    pub(super) const fn new(keeper: Keeper, http_port: u16) -> Self {
        Self {
            keeper,
            http_port,
            secrets: [const { OnceCell::new() }; 2],
            begun: 0,
            wrong: 0,
            locked_until: Duration::ZERO,
            pending: None,
            session: None,
        }
    }

    pub(super) fn forget(&mut self) {
        (self.pending, self.session) = (None, None);
    }

    pub(super) fn hear(
        &mut self,
        ask: &Ask,
        fault: Option<Fault>,
        now: Duration,
        inner: Inner<'_>,
    ) -> (Option<Answer>, Event) {
        let Some(body) = &ask.body else { return (Some(Answer::stock_page()), Event::Other) };
        if let Some(token) = ask.path().strip_prefix("/stok=").and_then(|rest| rest.strip_suffix("/ds")) {
            return (self.request(token, body, fault, inner), Event::Other);
        }
        match ask.path() {
            "/" => {
                let (answer, event) = self.login(body, fault, now);
                (Some(answer), event)
            }
            // What KLAP begins with.
            path if path.starts_with("/app/") => (Some(Answer::status(403)), Event::Other),
            "/app" => (Some(Answer::json(&json!({"error_code": 1_003}))), Event::Other),
            _ => (Some(Answer::stock_page()), Event::Other),
        }
    }

    fn login(&mut self, body: &[u8], fault: Option<Fault>, now: Duration) -> (Answer, Event) {
        let refused = |code: i64| Answer::json(&json!({ "error_code": code }));
        if fault == Some(Fault::LocalOff) {
            return (Answer::stock_page(), Event::Other);
        }
        if fault == Some(Fault::Locked) || now < self.locked_until {
            return (refused(code::LOCKED), Event::Refused);
        }
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let params = request.get("params").cloned().unwrap_or_default();
        if request.get("method") != Some(&json!("login")) {
            return (refused(-1_002), Event::Other);
        }
        match params.get("sub_method").and_then(Value::as_str) {
            Some("discover") => {
                let result = json!({
                    "sub_method": "discover", "tpap_preferred": true, "tpap": announce::tpap(self.http_port),
                });
                (Answer::json(&json!({"error_code": 0, "result": result})), Event::Other)
            }
            Some("pake_register") => match self.register(&params, fault) {
                Some(result) => (Answer::json(&json!({"error_code": 0, "result": result})), Event::Handshake),
                None => (refused(-1_008), Event::Handshake),
            },
            Some("pake_share") => match self.share(&params) {
                Some(result) => (Answer::json(&json!({"error_code": 0, "result": result})), Event::Other),
                None => {
                    self.wrong += 1;
                    if self.wrong >= ATTEMPTS {
                        (self.wrong, self.locked_until) = (0, now + LOCK);
                    }
                    (refused(code::WRONG_PASSWORD), Event::Refused)
                }
            },
            _ => (refused(-1_008), Event::Other),
        }
    }

    fn salt(&self) -> [u8; 16] {
        self.keeper.draw(0)
    }

    fn secrets(&self, is_wrong: bool) -> &Secrets {
        let [own, other] = &self.secrets;
        let fault = is_wrong.then_some(Fault::WrongPassword);
        (if is_wrong { other } else { own }).get_or_init(|| {
            let password = shadow(self.keeper.credentials_under(fault).password());
            Secrets::derive(password.as_bytes(), &self.salt(), ITERATIONS)
        })
    }

    fn register(&mut self, params: &Value, fault: Option<Fault>) -> Option<Value> {
        let user: String = Md5::digest("admin").iter().map(|byte| format!("{byte:02x}")).collect();
        let user_random = decode(params, "user_random").filter(|bytes| bytes.len() == 32)?;
        let suites = params.get("cipher_suites")?.as_array()?;
        let is_known = params.get("username")?.as_str()? == user && suites.contains(&json!(1));
        if !is_known || params.get("passcode_type")?.as_str()? != "userpw" {
            return None;
        }
        self.begun += 1;
        let draw = |n: u64| self.keeper.draw(8 * self.begun + n);
        let device_random = [draw(0), draw(1)].concat();
        let y = spake2::scalar(&[draw(2), draw(3), draw(4)].concat());
        let is_wrong = fault == Some(Fault::WrongPassword);
        let share = spake2::verifier_share(self.secrets(is_wrong), &y)?;
        self.pending = Some(Pending { context: context(&user_random, &device_random), y, is_wrong });
        Some(json!({
            "dev_random": Base64::encode_string(&device_random), "dev_salt": Base64::encode_string(&self.salt()),
            "dev_share": Base64::encode_string(&share), "iterations": ITERATIONS, "cipher_suites": 1,
            "encryption": "aes_128_ccm", "extra_crypt": {"type": "password_shadow", "params": {"passwd_id": 2}},
        }))
    }

    /// `None` for a proof of another password.
    fn share(&mut self, params: &Value) -> Option<Value> {
        let Pending { context, y, is_wrong } = self.pending.take()?;
        let (share, confirm) = (decode(params, "user_share")?, decode(params, "user_confirm")?);
        let secrets = self.secrets(is_wrong);
        let context = Context { text: &context, prover: b"", verifier: b"" };
        let agreed: Agreed = spake2::verify(secrets, &secrets.record(), Form::Whole, &y, context, &share)?;
        if !agreed.is_proof(&confirm) {
            return None;
        }
        self.wrong = 0;
        let token: String = self.keeper.draw(8 * self.begun + 5).iter().map(|byte| format!("{byte:02x}")).collect();
        let result = json!({
            "dev_confirm": Base64::encode_string(&agreed.confirm), "stok": token, "start_seq": START,
        });
        self.session = Some(Session { token, cipher: Cipher::derive(&agreed.shared)?, next: START });
        Some(result)
    }

    fn request(&mut self, token: &str, body: &[u8], fault: Option<Fault>, inner: Inner<'_>) -> Option<Answer> {
        let gone = Some(Answer::json(&json!({"error_code": code::SESSION})));
        let Some(session) = self.session.as_mut().filter(|its| its.token == token) else { return gone };
        let number = body.first_chunk().map(|number| u32::from_be_bytes(*number));
        // A number that was used, or is older, is refused.
        let Some(number) = number.filter(|n| n.wrapping_sub(session.next) < u32::MAX / 2) else { return gone };
        if fault == Some(Fault::NoSession) {
            return gone;
        }
        let Some(plain) = session.cipher.open(number, body) else { return gone };
        session.next = number.wrapping_add(1);
        let mut reply = session.cipher.seal(number, &inner(&plain)?)?;
        if fault == Some(Fault::WrongSignature)
            && let Some(last) = reply.last_mut()
        {
            *last ^= 1;
        }
        Some(Answer::bytes(reply))
    }
}

fn decode(params: &Value, name: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(params.get(name)?.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plug::klap::Hashes;
    use crate::plug::session::{Credentials, Reply, Request, Seed, SessionError};
    use crate::plug::tpap::{Login, Session as Client, Step};

    fn account() -> Credentials {
        Credentials::new("user@example.com", "hunter22")
    }

    fn post(door: &mut Door, request: &Request, fault: Option<Fault>, now: u64) -> Reply {
        let ask = Ask { target: request.path.clone(), cookie: String::new(), body: Some(request.body.clone()) };
        let mut inner = |plain: &[u8]| Some(plain.to_ascii_uppercase());
        let answer = door.hear(&ask, fault, Duration::from_secs(now), &mut inner).0.unwrap();
        Reply::new(answer.status, [], answer.body)
    }

    fn login(door: &mut Door, account: &Credentials, now: u64) -> Result<Client, SessionError> {
        let (mut login, mut request) = Login::start(Some(account), &Seed::new([3; 32])).unwrap();
        loop {
            match login.hear(&post(door, &request, None, now))? {
                Step::Send(next, sent) => (login, request) = (next, sent),
                Step::Ready(session) => return Ok(session),
            }
        }
    }

    #[test]
    fn a_login_leads_to_a_session_and_a_number_counts_once() {
        let keeper = Keeper { credentials: account(), hashes: Hashes::V2, seed: 1 };
        let mut door = Door::new(keeper, 80);
        let mut session = login(&mut door, &account(), 0).unwrap();
        let request = session.seal(b"abc").unwrap();
        assert_eq!(session.open(&post(&mut door, &request, None, 0)).unwrap(), b"ABC");
        assert_eq!(session.open(&post(&mut door, &request, None, 0)), Err(SessionError::SessionGone));
        let request = session.seal(b"abc").unwrap();
        let reply = post(&mut door, &request, Some(Fault::WrongSignature), 0);
        assert_eq!(session.open(&reply), Err(SessionError::BadSignature));
        door.forget();
        let request = session.seal(b"abc").unwrap();
        assert_eq!(session.open(&post(&mut door, &request, None, 0)), Err(SessionError::SessionGone));
    }

    #[test]
    fn wrong_passwords_lock_it_for_half_an_hour() {
        let keeper = Keeper { credentials: account(), hashes: Hashes::V2, seed: 1 };
        let mut door = Door::new(keeper, 80);
        let stranger = Credentials::new("user@example.com", "hunter23");
        for _ in 0..ATTEMPTS {
            assert_eq!(login(&mut door, &stranger, 5).err(), Some(SessionError::WrongCredentials));
        }
        assert_eq!(login(&mut door, &account(), 6).err(), Some(SessionError::LockedOut));
        assert_eq!(login(&mut door, &account(), 1_804).err(), Some(SessionError::LockedOut));
        assert!(login(&mut door, &account(), 1_805).is_ok());
    }
}
