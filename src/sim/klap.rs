//! The plug's side of KLAP.

use std::time::Duration;

use serde_json::json;

use super::Fault;
use super::door::{Event, Inner, Keeper};
use super::web::{Answer, Ask};
use crate::plug::klap::{AuthHash, Keys, SEED, Seeds};

/// How long a session lasts.
const SESSION: Duration = Duration::from_secs(86_400);

#[derive(Debug)]
pub(super) struct Door {
    keeper: Keeper,
    /// Logins begun.
    begun: u64,
    pending: Option<Pending>,
    session: Option<Session>,
}

#[derive(Debug)]
struct Pending {
    cookie: String,
    seeds: Seeds,
    auth: AuthHash,
}

#[derive(Debug)]
struct Session {
    cookie: String,
    keys: Keys,
    /// Of the last request.
    number: i32,
    until: Duration,
}

impl Door {
    pub(super) const fn new(keeper: Keeper) -> Self {
        Self { keeper, begun: 0, pending: None, session: None }
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
        // A body without a length in title case is none, and gets what a browser would.
        let Some(body) = &ask.body else { return (Some(Answer::stock_page()), Event::Other) };
        match ask.path() {
            "/app/handshake1" => (Some(self.first(body, fault)), Event::Handshake),
            "/app/handshake2" => self.second(ask, body, now),
            "/app/request" => (self.request(ask, body, fault, now, inner), Event::Other),
            // What AES passthrough begins with is known and refused.
            "/app" => (Some(Answer::json(&json!({"error_code": 1_003}))), Event::Other),
            _ => (Some(Answer::stock_page()), Event::Other),
        }
    }

    fn first(&mut self, body: &[u8], fault: Option<Fault>) -> Answer {
        if matches!(fault, Some(Fault::LocalOff | Fault::Locked)) {
            return Answer::status(403);
        }
        let Ok(local): Result<[u8; SEED], _> = body.try_into() else { return Answer::status(400) };
        self.begun += 1;
        let seeds = Seeds { local, remote: self.keeper.draw(2 * self.begun) };
        let auth = self.keeper.hashes.auth(&self.keeper.credentials_under(fault));
        let proof = self.keeper.hashes.server_proof(&seeds, &auth);
        let id: String = self.keeper.draw(2 * self.begun + 1).iter().map(|byte| format!("{byte:02X}")).collect();
        let cookie = format!("TP_SESSIONID={id}");
        let answer = Answer::bytes([&seeds.remote[..], &proof].concat())
            .with_cookie(format!("{cookie};TIMEOUT={}", SESSION.as_secs()));
        self.pending = Some(Pending { cookie, seeds, auth });
        answer
    }

    fn second(&mut self, ask: &Ask, body: &[u8], now: Duration) -> (Option<Answer>, Event) {
        match self.pending.take() {
            Some(Pending { cookie, seeds, auth }) if cookie == ask.cookie => {
                if self.keeper.hashes.client_proof(&seeds, &auth) != body {
                    return (Some(Answer::status(403)), Event::Refused);
                }
                let (keys, number) = Keys::derive(&seeds, &auth);
                self.session = Some(Session { cookie, keys, number, until: now + SESSION });
                (Some(Answer::bytes(Vec::new())), Event::Other)
            }
            _ => (Some(Answer::status(403)), Event::Refused),
        }
    }

    fn request(
        &mut self,
        ask: &Ask,
        body: &[u8],
        fault: Option<Fault>,
        now: Duration,
        inner: Inner<'_>,
    ) -> Option<Answer> {
        let number = ask.query("seq").and_then(|number| number.parse::<i32>().ok());
        let session = self.session.as_mut().filter(|its| its.cookie == ask.cookie && now < its.until);
        let (Some(session), Some(number)) = (session, number) else { return Some(Answer::status(403)) };
        // A number that was used, or is older, is refused.
        if fault == Some(Fault::NoSession) || number.wrapping_sub(session.number) <= 0 {
            return Some(Answer::status(403));
        }
        let Ok(plain) = session.keys.open(number, body) else { return Some(Answer::status(403)) };
        session.number = number;
        let mut reply = session.keys.seal(number, &inner(&plain)?);
        if fault == Some(Fault::WrongSignature)
            && let Some(first) = reply.first_mut()
        {
            *first ^= 1;
        }
        Some(Answer::bytes(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plug::klap::{Hashes, Login, Step};
    use crate::plug::session::{Credentials, Reply, Request, Seed, SessionError};

    fn keeper() -> Keeper {
        Keeper { credentials: Credentials::new("user@example.com", "hunter22"), hashes: Hashes::Mixed, seed: 1 }
    }

    fn post(door: &mut Door, request: &Request, fault: Option<Fault>) -> Reply {
        let ask = Ask {
            target: request.path.clone(),
            cookie: request.cookie.clone().unwrap_or_default(),
            body: Some(request.body.clone()),
        };
        let (answer, _) = door.hear(&ask, fault, Duration::ZERO, &mut |plain| Some(plain.to_ascii_uppercase()));
        let answer = answer.unwrap();
        Reply::new(answer.status, answer.cookie.iter().map(String::as_bytes), answer.body)
    }

    fn login(door: &mut Door, seed: u8) -> crate::plug::klap::Session {
        let account = keeper().credentials;
        let (login, request) = Login::start(Some(&account), &Seed::new([seed; 32]));
        let Ok(Step::Send(login, request)) = login.hear(&post(door, &request, None)) else { panic!("known") };
        let Ok(Step::Ready(session)) = login.hear(&post(door, &request, None)) else { panic!("let in") };
        session
    }

    #[test]
    fn a_plug_keeps_one_session_and_takes_no_number_twice() {
        let mut door = Door::new(keeper());
        let mut first = login(&mut door, 1);
        let request = first.seal(b"abc");
        assert_eq!(first.open(&post(&mut door, &request, None)).unwrap(), b"ABC");
        assert_eq!(first.open(&post(&mut door, &request, None)), Err(SessionError::SessionGone));
        let request = first.seal(b"abc");
        let reply = post(&mut door, &request, Some(Fault::WrongSignature));
        assert_eq!(first.open(&reply), Err(SessionError::BadSignature));
        let mut second = login(&mut door, 2);
        let request = first.seal(b"abc");
        assert_eq!(first.open(&post(&mut door, &request, None)), Err(SessionError::SessionGone));
        let request = second.seal(b"abc");
        assert_eq!(second.open(&post(&mut door, &request, None)).unwrap(), b"ABC");
        door.forget();
        let request = second.seal(b"abc");
        assert_eq!(second.open(&post(&mut door, &request, None)), Err(SessionError::SessionGone));
    }
}
