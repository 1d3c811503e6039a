//! How a plug lets its peers in: the server side of the transports that want a login.
//!
//! Owns the state that a plug keeps of its logins. Uses the same hashes and ciphers as the clients, and nothing else of
//! theirs: what is asked in which order is judged here by the plug's own rules. A plug keeps one session; a new login ends
//! the one before, as on real plugs.

use std::time::Duration;

#[cfg(feature = "aes-passthrough")]
use super::aes;
use super::load::mix;
use super::web::{Answer, Ask};
use super::{Fault, PlugSpec, klap, tpap};
use crate::plug::session::Credentials;
use crate::reading::Protocol;

/// What a plug needs to know to judge logins.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    /// What it takes.
    pub credentials: Credentials,
    /// How it hashes them over KLAP.
    pub hashes: crate::plug::klap::Hashes,
    /// Seed of everything that it draws.
    pub seed: u64,
}

impl Keeper {
    pub(super) fn new(spec: &PlugSpec, account: &Credentials) -> Self {
        let credentials = spec.owner.credentials().unwrap_or_else(|| account.clone());
        Self { credentials, hashes: spec.hashes, seed: mix(spec.seed, 0x6b65_6570) }
    }

    /// What it takes while its password is another one.
    pub(super) fn credentials_under(&self, fault: Option<Fault>) -> Credentials {
        match fault {
            Some(Fault::WrongPassword) => Credentials::new("someone@example.org", "something else"),
            _ => self.credentials.clone(),
        }
    }

    /// The `n`th 16 bytes drawn.
    pub(super) fn draw(&self, n: u64) -> [u8; 16] {
        let mut drawn = [0; 16];
        let words = [mix(self.seed, 2 * n), mix(self.seed, 2 * n + 1)];
        for (to, from) in drawn.iter_mut().zip(words.into_iter().flat_map(u64::to_be_bytes)) {
            *to = from;
        }
        drawn
    }
}

/// What a request was to the plug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The start of a login.
    Handshake,
    /// A login that was refused.
    Refused,
    /// Anything else.
    Other,
}

/// What makes the plain reply to a plain request; `None` when there is none.
pub(super) type Inner<'a> = &'a mut dyn FnMut(&[u8]) -> Option<Vec<u8>>;

/// The door of a plug.
#[derive(Debug)]
pub(super) enum Door {
    /// Nothing to be opened: XOR.
    None,
    Klap(Box<klap::Door>),
    Tpap(Box<tpap::Door>),
    #[cfg(feature = "aes-passthrough")]
    Aes(Box<aes::Door>),
}

impl Door {
    pub(super) fn new(protocol: Protocol, keeper: &Keeper, http_port: u16) -> Self {
        match protocol {
            Protocol::IotXor => Self::None,
            Protocol::IotKlap | Protocol::SmartKlap => Self::Klap(Box::new(klap::Door::new(keeper.clone()))),
            Protocol::SmartTpap => Self::Tpap(Box::new(tpap::Door::new(keeper.clone(), http_port))),
            #[cfg(feature = "aes-passthrough")]
            Protocol::SmartAes => Self::Aes(Box::new(aes::Door::new(keeper.clone()))),
            #[cfg(not(feature = "aes-passthrough"))]
            Protocol::SmartAes => Self::None,
        }
    }

    /// The answer to a request; `None` when nothing is ever said. `now` is time since the start.
    pub(super) fn hear(
        &mut self,
        ask: &Ask,
        fault: Option<Fault>,
        now: Duration,
        inner: Inner<'_>,
    ) -> (Option<Answer>, Event) {
        match self {
            Self::None => (Some(Answer::status(404)), Event::Other),
            Self::Klap(door) => door.hear(ask, fault, now, inner),
            Self::Tpap(door) => door.hear(ask, fault, now, inner),
            #[cfg(feature = "aes-passthrough")]
            Self::Aes(door) => door.hear(ask, fault, inner),
        }
    }

    /// Ends the session, as a restart does.
    pub(super) fn forget(&mut self) {
        match self {
            Self::None => {}
            Self::Klap(door) => door.forget(),
            Self::Tpap(door) => door.forget(),
            #[cfg(feature = "aes-passthrough")]
            Self::Aes(door) => door.forget(),
        }
    }
}
