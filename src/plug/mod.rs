//! Plugs: who they are and what they measure, over their own protocols.
//!
//! Owns the wire. The codecs are pure: dialects ([`iot`], [`smart`]) and transports ([`xor`], and those behind
//! [`session`]). [`Client`] is one dialect over one transport, and moves their bytes over a [`Transport`]. Promises: one
//! connection and one request in flight per plug; a reply's length is checked before memory is taken for it; every
//! exchange has one deadline; a connection that timed out, broke or brought a stray byte is closed and never read
//! again; nothing is returned before the MAC that answers was compared with the MAC that was asked; a login that was
//! refused is not repeated. Only ever reads: there is no request here that switches, resets or configures.

#[cfg(feature = "aes-passthrough")]
pub mod aes;
pub mod discovery;
mod http;
pub mod iot;
pub mod keyring;
pub mod klap;
mod line;
pub mod measured;
pub mod session;
pub mod smart;
pub mod spake2;
mod talk;
pub mod tdp;
pub mod tpap;
pub mod xor;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use smol::io::{AsyncRead, AsyncWrite};

use crate::reading::{DeviceId, Label, Mac, PlugFacts, Protocol, Reading};
use crate::units::{Dbm, OutOfRange};
use line::{Call, Line};
use session::SessionError;
use talk::Expected;

pub use line::Means;

/// A byte stream to a plug.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// How bytes reach a plug. One real form, [`Tcp`]; tests bring their own.
pub trait Transport {
    /// An open connection. Dropping it closes it.
    type Stream: Stream;

    /// Opens a connection. The caller sets the deadline.
    fn connect(&self, to: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;
}

/// The network.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Transport for Tcp {
    type Stream = async_net::TcpStream;

    async fn connect(&self, to: SocketAddr) -> io::Result<Self::Stream> {
        let stream = async_net::TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Why a poll brought no reading. Each variant has its own answer: who does what next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollError {
    /// Nothing, or not everything, came in time.
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// The plug's port is closed.
    ConnectionRefused,
    /// The connection ended in the middle of an exchange.
    Closed,
    /// The network has no way to the plug.
    Io(io::ErrorKind),
    /// A message of this many bytes was announced.
    BadLength(xor::BadLength),
    /// The reply is not JSON.
    NotJson,
    /// The reply lacks something that every plug says.
    Missing {
        /// What.
        what: &'static str,
    },
    /// The plug answers that it cannot.
    Refused {
        /// Its code.
        code: i64,
        /// Its words.
        message: Label,
    },
    /// What answers is a bulb, a camera or something else.
    NotAPlug {
        /// What it calls itself.
        kind: Label,
    },
    /// A strip with more outlets than any that is sold.
    TooManyOutlets,
    /// The reply is not HTTP within the bounds.
    BadHttp {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It wants a protocol that is not known here.
    UnknownProtocol {
        /// What the plug calls it.
        name: Label,
    },
    /// There is no session, or no longer.
    Session(SessionError),
    /// Another plug answers at this address.
    WrongDevice {
        /// Who was expected.
        expected: Mac,
        /// Who answered.
        found: Box<PlugFacts>,
    },
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { after } => {
                write!(f, "no complete answer within {after:?}; is the plug powered and on the Wi-Fi?")
            }
            Self::ConnectionRefused => f.write_str(
                "its port is closed; newer firmware closes port 9999 (in the vendor's app: Me > Third-Party Services > Third-Party Compatibility)",
            ),
            Self::Closed => f.write_str("it closed the connection before it had answered"),
            Self::Io(kind) => write!(f, "the network says: {kind}"),
            Self::BadLength(length) => write!(f, "{length}"),
            Self::NotJson => f.write_str("its answer is not in the protocol's form"),
            Self::Missing { what } => write!(f, "its answer lacks {what}"),
            Self::Refused { code, message } => write!(f, "it answers \"{message}\" (code {code})"),
            Self::NotAPlug { kind } => write!(f, "what answers is no plug but \"{kind}\""),
            Self::TooManyOutlets => f.write_str("it claims more outlets than any strip has"),
            Self::BadHttp { what } => write!(f, "its answer is not in the protocol's form: {what}"),
            Self::UnknownProtocol { name } => write!(
                f,
                "it wants the protocol \"{name}\", which is not supported (in the vendor's app: Me > Third-Party Services > Third-Party Compatibility)"
            ),
            Self::Session(error) => write!(f, "{error}"),
            Self::WrongDevice { expected, found } => {
                write!(f, "another plug answers there: {} instead of {expected}", found.mac)
            }
        }
    }
}

impl std::error::Error for PollError {}

impl From<io::Error> for PollError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::ConnectionRefused,
            Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Self::Closed,
            kind => Self::Io(kind),
        }
    }
}

impl From<SessionError> for PollError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<xor::BadLength> for PollError {
    fn from(bad: xor::BadLength) -> Self {
        Self::BadLength(bad)
    }
}

/// What one poll of a plug brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Who answered.
    pub facts: PlugFacts,
    /// Signal strength at the plug, where it tells.
    pub signal: Option<Dbm>,
    /// One reading per outlet that answered, in outlet order; empty for a plug without a meter.
    pub readings: Vec<(DeviceId, Reading)>,
    /// Values that no outlet can have. They are not in the readings; without its power a reading is none.
    pub implausible: Vec<(DeviceId, OutOfRange)>,
    /// Outlets of a strip that refused, and why. The others' readings stand.
    pub silent: Vec<(DeviceId, PollError)>,
    /// Why a strip's later outlets are missing. What came before it stands.
    pub broken_off: Option<PollError>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One exchange: connect to last byte.
    pub exchange: Duration,
    /// A whole poll.
    pub poll: Duration,
}

/// Where a plug is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks there.
    pub protocol: Protocol,
}

/// One plug's connection. Whoever holds the client is the only one who can ask the plug.
#[derive(Debug)]
pub struct Client<S: Stream> {
    place: Place,
    expected: Expected,
    line: Line<S>,
    dialect: Dialect,
}

/// What is spoken over the line, and what is remembered of it.
#[derive(Debug)]
enum Dialect {
    Iot(talk::Iot),
    Smart(talk::Smart),
}

impl<S: Stream> Client<S> {
    /// A client for the plug at `place`, which must be `expected` where that is known. Opens nothing yet.
    #[must_use]
    pub fn new(place: Place, expected: Option<Mac>) -> Self {
        let Place { address, protocol } = place;
        let smart = protocol.is_smart();
        Self {
            place,
            expected: Expected(expected),
            line: Line::new(address, protocol),
            dialect: if smart { Dialect::Smart(Default::default()) } else { Dialect::Iot(Default::default()) },
        }
    }

    /// Where it asks, and how.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// The logins since this was last asked: how long each took, and whether it led to a session.
    pub fn take_logins(&mut self) -> Vec<(Duration, bool)> {
        self.line.take_logins()
    }

    /// Asks the plug who it is and what each of its outlets measures.
    ///
    /// # Errors
    /// [`PollError`]; the connection is then closed, unless the plug has plainly refused.
    pub async fn poll<T>(&mut self, means: Means<'_, T>) -> Result<Answer, PollError>
    where
        T: Transport<Stream = S>,
    {
        let ends = talk::Ends {
            line: &mut self.line,
            call: Call::new(means),
            expected: &mut self.expected,
            protocol: self.place.protocol,
            terminal: means.keys.terminal(),
        };
        match &mut self.dialect {
            Dialect::Iot(iot) => iot.poll(ends).await,
            Dialect::Smart(smart) => smart.poll(ends).await,
        }
    }
}

/// A field that is missing, null or of an unexpected type is absent: one odd field must not cost the plug.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(from)?).ok())
}

#[cfg(test)]
fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
