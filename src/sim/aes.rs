//! The plug's side of AES passthrough.

use base64ct::{Base64, Encoding};
use rsa::BoxedUint;
use rsa::rand_core::{TryCryptoRng, TryRng};
use serde_json::{Value, json};

use super::Fault;
use super::door::{Event, Inner, Keeper};
use super::load::mix;
use super::web::{Answer, Ask};
use crate::plug::aes::{Cipher, Level, code, login_params, modulus};

/// What the plug says a session lasts: minutes, by all appearance.
const TIMEOUT: u32 = 1_440;

#[derive(Debug)]
pub(super) struct Door {
    keeper: Keeper,
    begun: u64,
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    cookie: String,
    cipher: Cipher,
    /// Set by a login.
    token: Option<String>,
}

impl Door {
    pub(super) const fn new(keeper: Keeper) -> Self {
        Self { keeper, begun: 0, session: None }
    }

    pub(super) fn forget(&mut self) {
        self.session = None;
    }

    pub(super) fn hear(&mut self, ask: &Ask, fault: Option<Fault>, inner: Inner<'_>) -> (Option<Answer>, Event) {
        // A body without a length in title case is more than this server can bear.
        let Some(body) = &ask.body else { return (Some(Answer::status(500)), Event::Other) };
        match ask.path() {
            "/app" => {}
            // What KLAP begins with.
            "/app/handshake1" => return (Some(Answer::status(404)), Event::Other),
            _ => return (Some(refused(1_003)), Event::Other),
        }
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| request.pointer(&format!("/params/{name}")).and_then(Value::as_str).unwrap_or_default();
        match request.get("method").and_then(Value::as_str) {
            Some("handshake") => (Some(self.handshake(text("key"), fault)), Event::Handshake),
            Some("securePassthrough") => self.passthrough(ask, text("request"), fault, inner),
            _ => (Some(refused(1_003)), Event::Other),
        }
    }

    fn handshake(&mut self, pem: &str, fault: Option<Fault>) -> Answer {
        if fault == Some(Fault::LocalOff) {
            return refused(code::MOVED);
        }
        self.begun += 1;
        let draw = |n: u64| self.keeper.draw(8 * self.begun + n);
        let both = [draw(0), draw(1)].concat();
        let mut random = Drawn { seed: mix(self.keeper.seed, self.begun), next: 0 };
        let sealed = modulus(pem).and_then(|modulus| {
            let modulus = BoxedUint::from_be_slice(&modulus, 1_024).ok()?;
            let key = rsa::PublicKey::new(modulus, BoxedUint::from(65_537_u32)).ok()?;
            key.encrypt(&mut random, rsa::Pkcs1v15Encrypt, &both).ok()
        });
        let (Some(sealed), Ok(both)) = (sealed, <[u8; 32]>::try_from(both)) else { return refused(-1_010) };
        let id: String = draw(2).iter().map(|byte| format!("{byte:02X}")).collect();
        let cookie = format!("TP_SESSIONID={id}");
        self.session = Some(Session { cookie: cookie.clone(), cipher: Cipher::new(&both), token: None });
        Answer::json(&json!({"error_code": 0, "result": {"key": Base64::encode_string(&sealed)}}))
            .with_cookie(format!("{cookie};TIMEOUT={TIMEOUT}"))
    }

    fn passthrough(
        &mut self,
        ask: &Ask,
        sealed: &str,
        fault: Option<Fault>,
        inner: Inner<'_>,
    ) -> (Option<Answer>, Event) {
        let gone = || (Some(refused(code::SESSION)), Event::Other);
        let token_given = ask.query("token").map(str::to_owned);
        let Some(session) = self.session.as_mut().filter(|its| its.cookie == ask.cookie) else { return gone() };
        let Some(plain) = session.cipher.open(sealed) else { return (Some(refused(-1_005)), Event::Other) };
        let request: Value = serde_json::from_slice(&plain).unwrap_or_default();
        let mut event = Event::Other;
        let reply = if request.get("method") == Some(&json!("login_device")) {
            let credentials = self.keeper.credentials_under(fault);
            let wanted = login_params(&credentials, Level::Two);
            let is_right = request.get("params").is_some_and(|params| {
                params.get("username") == wanted.get("username") && params.get("password2") == wanted.get("password2")
            });
            if is_right && fault != Some(Fault::Locked) {
                let id = self.keeper.draw(8 * self.begun + 3);
                let token: String = id.iter().map(|byte| format!("{byte:02X}")).collect();
                session.token = Some(token.clone());
                json!({"error_code": 0, "result": {"token": token}}).to_string().into_bytes()
            } else {
                event = Event::Refused;
                json!({"error_code": code::LOGIN}).to_string().into_bytes()
            }
        } else {
            let is_in = session.token.is_some() && session.token == token_given;
            if !is_in || fault == Some(Fault::NoSession) {
                return gone();
            }
            match inner(&plain) {
                Some(reply) => reply,
                None => return (None, event),
            }
        };
        if event == Event::Refused {
            // After a refused login it wants a new handshake.
            let answer = passed(session.cipher.seal(&reply));
            self.session = None;
            return (Some(answer), event);
        }
        let response = match fault {
            Some(Fault::PlainInner) => String::from_utf8_lossy(&reply).into_owned(),
            // This transport signs nothing: what is wrong shows as what cannot be decrypted.
            Some(Fault::WrongSignature) => Base64::encode_string(b"nothing that has whole blocks"),
            _ => session.cipher.seal(&reply),
        };
        (Some(passed(response)), event)
    }
}

fn refused(code: i64) -> Answer {
    Answer::json(&json!({ "error_code": code }))
}

fn passed(response: String) -> Answer {
    Answer::json(&json!({"error_code": 0, "result": {"response": response}}))
}

/// Random bytes of a simulation: the same for the same seed.
struct Drawn {
    seed: u64,
    next: u64,
}

impl TryRng for Drawn {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let [a, b, c, d, ..] = self.try_next_u64()?.to_be_bytes();
        Ok(u32::from_be_bytes([a, b, c, d]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.next += 1;
        Ok(mix(self.seed, self.next))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in to.chunks_mut(8) {
            for (to, from) in chunk.iter_mut().zip(self.try_next_u64()?.to_be_bytes()) {
                *to = from;
            }
        }
        Ok(())
    }
}

impl TryCryptoRng for Drawn {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plug::aes::{Login, RunKey, Session as Client, Step};
    use crate::plug::klap::Hashes;
    use crate::plug::session::{Credentials, Reply, Request, Seed, SessionError};
    use crate::units::UnixMillis;

    fn account() -> Credentials {
        Credentials::new("user@example.com", "hunter22")
    }

    fn post(door: &mut Door, request: &Request, fault: Option<Fault>) -> Reply {
        let ask = Ask {
            target: request.path.clone(),
            cookie: request.cookie.clone().unwrap_or_default(),
            body: Some(request.body.clone()),
        };
        let mut inner = |_: &[u8]| Some(br#"{"error_code":0}"#.to_vec());
        let answer = door.hear(&ask, fault, &mut inner).0.unwrap();
        Reply::new(answer.status, answer.cookie.iter().map(String::as_bytes), answer.body)
    }

    fn login(
        door: &mut Door,
        account: &Credentials,
        key: &RunKey,
        fault: Option<Fault>,
    ) -> Result<Client, SessionError> {
        let (mut login, mut request) = Login::start(Some(account), key, UnixMillis::new(1));
        loop {
            match login.hear(&post(door, &request, fault))? {
                Step::Send(next, sent) => (login, request) = (next, sent),
                Step::Ready(session) => return Ok(session),
            }
        }
    }

    #[test]
    fn a_login_leads_to_a_session() {
        let key = RunKey::generate(&Seed::new([9; 32])).unwrap();
        let mut door = Door::new(Keeper { credentials: account(), hashes: Hashes::V2, seed: 1 });
        let session = login(&mut door, &account(), &key, None).unwrap();
        for fault in [None, Some(Fault::PlainInner)] {
            let reply = post(&mut door, &session.seal(b"{}"), fault);
            assert_eq!(session.open(&reply).unwrap(), br#"{"error_code":0}"#);
        }
        let reply = post(&mut door, &session.seal(b"{}"), Some(Fault::WrongSignature));
        assert!(matches!(session.open(&reply), Err(SessionError::Garbage { .. })));
        door.forget();
        let reply = post(&mut door, &session.seal(b"{}"), None);
        assert_eq!(session.open(&reply), Err(SessionError::SessionGone));
        let stranger = Credentials::new("user@example.com", "hunter23");
        assert_eq!(login(&mut door, &stranger, &key, None).err(), Some(SessionError::WrongCredentials));
        let off = login(&mut door, &account(), &key, Some(Fault::LocalOff));
        assert_eq!(off.err(), Some(SessionError::OtherProtocol));
        // A plug that nobody owns.
        let mut door = Door::new(Keeper {
            credentials: Credentials::new("test@tp-link.net", "test"),
            hashes: Hashes::V2,
            seed: 1,
        });
        assert!(login(&mut door, &account(), &key, None).is_ok());
    }
}
