//! Plugs: who they are and what they measure, over their own protocols.
//!
//! Owns the wire. The codecs ([`xor`], [`iot`]) are pure; [`Client`] moves their bytes over a [`Transport`]. Promises:
//! one connection and one request in flight per plug; a reply's length is checked before memory is taken for it; every
//! exchange has one deadline; a connection that timed out, broke or brought a stray byte is closed and never read
//! again; nothing is returned before the MAC that answers was compared with the MAC that was asked. Only ever reads:
//! there is no request here that switches, resets or configures.

#[cfg(feature = "aes-passthrough")]
pub mod aes;
pub mod discovery;
pub mod iot;
pub mod klap;
pub mod session;
pub mod spake2;
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
use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::clock::{Clock, within};
use crate::reading::{DeviceId, Label, Mac, PlugFacts, Reading, Relay};
use crate::units::{Dbm, OutOfRange};

/// How bytes reach a plug. One real form, [`Tcp`]; tests bring their own.
pub trait Transport {
    /// An open connection. Dropping it closes it.
    type Stream: AsyncRead + AsyncWrite + Unpin;

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

/// One plug's connection. Whoever holds the client is the only one who can ask the plug.
#[derive(Debug)]
pub struct Client<S> {
    address: SocketAddr,
    /// Who must answer. Learnt from the first answer when it is not known.
    expected: Option<Mac>,
    /// Whether it was found to have a meter and a single outlet: then one exchange asks for everything.
    single_meter: bool,
    connection: Option<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client for the plug at `address`, which must be `expected` where that is known. Opens nothing yet.
    #[must_use]
    pub fn new(address: SocketAddr, expected: Option<Mac>) -> Self {
        Self { address, expected, single_meter: false, connection: None }
    }

    /// Where it asks.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks the plug who it is and what each of its outlets measures.
    ///
    /// # Errors
    /// [`PollError`]; the connection is then closed, unless the plug has plainly refused.
    pub async fn poll<T>(&mut self, transport: &T, clock: &dyn Clock, patience: Patience) -> Result<Answer, PollError>
    where
        T: Transport<Stream = S>,
    {
        let until = clock.elapsed().saturating_add(patience.poll);
        let mut ask = Exchange { transport, clock, patience, until };
        // Until a plug has said that it has a meter, only `system` is asked.
        let first = if self.single_meter { iot::SYSINFO_AND_METER } else { iot::SYSINFO };
        let mut reply = self.ask(&mut ask, Question::the_same(first)).await?;
        let mut sysinfo = reply.sysinfo.take().ok_or(NO_SYSINFO)?;
        let single_meter = sysinfo.facts.has_meter && sysinfo.facts.outlets.is_empty();
        if single_meter && !self.single_meter {
            reply = self.ask(&mut ask, Question::the_same(iot::SYSINFO_AND_METER)).await?;
            sysinfo = reply.sysinfo.take().ok_or(NO_SYSINFO)?;
        }
        self.single_meter = single_meter;
        let mut answer = Answer { signal: sysinfo.signal, ..Answer::of(sysinfo.facts) };
        if single_meter {
            let relay = sysinfo.relays.first().copied().flatten();
            let measured = reply.measured.ok_or(NO_METER)?;
            answer.take(DeviceId::plug(answer.facts.mac), measured, relay, clock);
        } else if answer.facts.has_meter {
            let outlets: Vec<_> = answer.facts.metered_ids().zip(answer.facts.outlets.clone()).collect();
            for ((id, outlet), relay) in outlets.into_iter().zip(sysinfo.relays) {
                let question = Question {
                    plain: &iot::outlet_meter(&outlet.child),
                    introducing: &iot::sysinfo_and_outlet_meter(&outlet.child),
                };
                match self.ask(&mut ask, question).await.and_then(|reply| reply.measured.ok_or(NO_METER)) {
                    Ok(measured) => answer.take(id, measured, relay, clock),
                    // An outlet that refuses says nothing of the others.
                    Err(error @ (PollError::Refused { .. } | PollError::Missing { .. })) => {
                        answer.silent.push((id, error))
                    }
                    Err(error) => {
                        answer.broken_off = Some(error);
                        break;
                    }
                }
            }
        }
        Ok(answer)
    }

    fn check_identity(&mut self, facts: &PlugFacts) -> Result<(), PollError> {
        match self.expected {
            Some(expected) if expected != facts.mac => {
                self.single_meter = false;
                Err(PollError::WrongDevice { expected, found: Box::new(facts.clone()) })
            }
            _ => {
                self.expected = Some(facts.mac);
                Ok(())
            }
        }
    }

    /// One question and its answer. A kept connection that the plug has closed meanwhile is replaced once. On a new
    /// connection the question asks who answers, and nothing is believed before that is known.
    async fn ask<T>(&mut self, exchange: &mut Exchange<'_, T>, question: Question<'_>) -> Result<iot::Reply, PollError>
    where
        T: Transport<Stream = S>,
    {
        let mut kept = self.connection.take();
        if let Some(stream) = &mut kept
            && !is_quiet(stream).await
        {
            kept = None;
        }
        let mut is_new = kept.is_none();
        let message = if is_new { question.introducing } else { question.plain };
        let mut done = exchange.run(self.address, kept, &xor::frame(message)?).await;
        if !is_new && matches!(done, Err(PollError::Closed)) {
            is_new = true;
            done = exchange.run(self.address, None, &xor::frame(question.introducing)?).await;
        }
        let (payload, mut stream) = done?;
        let reply = iot::parse(&payload);
        match &reply {
            Ok(iot::Reply { sysinfo: Some(sysinfo), .. }) => self.check_identity(&sysinfo.facts)?,
            Ok(_) if is_new => return Err(NO_SYSINFO),
            Ok(_) => {}
            Err(PollError::Refused { .. }) if !is_new => {} // a clear answer; the connection is as good as before
            Err(_) => return reply,
        }
        if is_quiet(&mut stream).await {
            self.connection = Some(stream);
        }
        reply
    }
}

const NO_SYSINFO: PollError = PollError::Missing { what: "system.get_sysinfo" };
const NO_METER: PollError = PollError::Missing { what: "emeter.get_realtime" };

/// A request in two forms.
#[derive(Clone, Copy)]
struct Question<'a> {
    /// For a connection on which the plug has said who it is.
    plain: &'a [u8],
    /// For a new one: asks who answers as well.
    introducing: &'a [u8],
}

impl<'a> Question<'a> {
    const fn the_same(request: &'a [u8]) -> Self {
        Self { plain: request, introducing: request }
    }
}

impl Answer {
    fn of(facts: PlugFacts) -> Self {
        Self {
            facts,
            signal: None,
            readings: Vec::new(),
            implausible: Vec::new(),
            silent: Vec::new(),
            broken_off: None,
        }
    }

    fn take(&mut self, id: DeviceId, measured: iot::Measured, relay: Option<Relay>, clock: &dyn Clock) {
        let iot::Measured { power, voltage, current, counter, implausible } = measured;
        self.implausible.extend(implausible.into_iter().map(|value| (id, value)));
        if let Some(power) = power {
            self.readings.push((id, Reading { time: clock.wall(), power, voltage, current, counter, relay }));
        }
    }
}

/// Whether nothing waits to be read: no end, no error, no byte that nobody asked for.
async fn is_quiet<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    smol::future::poll_once(stream.read(&mut [0])).await.is_none()
}

/// What an exchange needs beside the connection.
struct Exchange<'a, T> {
    transport: &'a T,
    clock: &'a dyn Clock,
    patience: Patience,
    until: Duration,
}

impl<T: Transport> Exchange<'_, T> {
    /// Sends `message` over `kept`, or a new connection, and reads one reply, all before one deadline. The connection
    /// comes back only after a whole reply; in every other case it is closed.
    async fn run(
        &mut self,
        to: SocketAddr,
        kept: Option<T::Stream>,
        message: &[u8],
    ) -> Result<(Vec<u8>, T::Stream), PollError> {
        let now = self.clock.elapsed();
        let deadline = now.saturating_add(self.patience.exchange).min(self.until);
        let work = async {
            let mut stream = match kept {
                Some(stream) => stream,
                None => self.transport.connect(to).await?,
            };
            stream.write_all(message).await?;
            stream.flush().await?;
            let mut prefix = [0; xor::PREFIX];
            stream.read_exact(&mut prefix).await?;
            let mut payload = vec![0; xor::payload_length(prefix)?];
            stream.read_exact(&mut payload).await?;
            xor::decrypt(&mut payload);
            Ok((payload, stream))
        };
        let after = deadline.saturating_sub(now);
        within(self.clock, deadline, work).await.unwrap_or(Err(PollError::Timeout { after }))
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
