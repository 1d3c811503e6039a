//! The socket layer: a question goes out over a plug's transport, its answer comes back.
//!
//! Owns the connection and the session. Promises one connection and one exchange at a time; one deadline for each
//! exchange and one for the whole poll; that a connection which timed out, broke or brought a stray byte is closed and
//! never read again; that a kept connection which the plug has closed meanwhile is replaced once; that a session which
//! the plug has forgotten is renewed with one login and one more try, at most [`limits::LOGINS_A_POLL`] times a poll with
//! a pause between; and that a login which was refused is not repeated here.

use std::net::SocketAddr;
use std::time::Duration;

use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::http;
use super::keyring::Keyring;
use super::session::{Login, Reply, Request, Session, SessionError, Step};
use super::{Patience, PollError, Stream, Transport, xor};
use crate::clock::{Clock, within};
use crate::limits;
use crate::reading::Protocol;

/// What polls need beside the plug.
pub struct Means<'a, T> {
    /// The way to plugs.
    pub transport: &'a T,
    /// Time.
    pub clock: &'a dyn Clock,
    /// What opens them.
    pub keys: &'a Keyring,
    /// How long things may take.
    pub patience: Patience,
}

impl<T> Clone for Means<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Means<'_, T> {}

/// A request in two forms.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// For a peer that has said who it is.
    pub plain: &'a [u8],
    /// For one that has not: asks who answers as well.
    pub introducing: &'a [u8],
}

impl<'a> Question<'a> {
    /// One form for both.
    pub const fn the_same(request: &'a [u8]) -> Self {
        Self { plain: request, introducing: request }
    }
}

/// An answer, and whether it came from a peer that had not said who it is: over a new XOR connection or a new session.
#[derive(Debug)]
pub struct Heard {
    /// The plain JSON.
    pub payload: Vec<u8>,
    /// Whether the introducing form was asked.
    pub is_new: bool,
}

/// The way to one plug.
#[derive(Debug)]
pub struct Line<S: Stream> {
    address: SocketAddr,
    kind: Kind<S>,
}

#[derive(Debug)]
enum Kind<S: Stream> {
    Xor(Option<S>),
    Http(Box<Http<S>>),
}

/// One poll's use of a line: its deadline and how often it has logged in.
pub struct Call<'a, T> {
    means: Means<'a, T>,
    until: Duration,
    logins: u32,
}

impl<'a, T> Call<'a, T> {
    /// A poll that begins now.
    pub fn new(means: Means<'a, T>) -> Self {
        let until = means.clock.elapsed().saturating_add(means.patience.poll);
        Self { means, until, logins: 0 }
    }

    /// Time.
    pub fn clock(&self) -> &'a dyn Clock {
        self.means.clock
    }

    /// `work` before the deadline of one exchange.
    async fn in_time<R>(&self, work: impl Future<Output = Result<R, PollError>>) -> Result<R, PollError> {
        let now = self.means.clock.elapsed();
        let deadline = now.saturating_add(self.means.patience.exchange).min(self.until);
        let after = deadline.saturating_sub(now);
        within(self.means.clock, deadline, work).await.unwrap_or(Err(PollError::Timeout { after }))
    }

    /// Waits, but not beyond the end of the poll. Says whether there is time left.
    async fn rest(&self, time: Duration) -> bool {
        let clock = self.means.clock;
        let until = clock.elapsed().saturating_add(time);
        clock.sleep_until(until.min(self.until)).await;
        until < self.until
    }
}

impl<S: Stream> Line<S> {
    /// A way to the plug at `address`. Opens nothing yet.
    #[must_use]
    pub fn new(address: SocketAddr, protocol: Protocol) -> Self {
        let kind = match protocol {
            Protocol::IotXor => Kind::Xor(None),
            Protocol::IotKlap | Protocol::SmartKlap => Kind::Http(Box::new(Http::new(Scheme::Klap))),
            Protocol::SmartTpap => Kind::Http(Box::new(Http::new(Scheme::Tpap))),
            Protocol::SmartAes => Kind::Http(Box::new(Http::new(Scheme::Aes))),
        };
        Self { address, kind }
    }

    /// Gives up connection and session: whoever answers next has to say who it is.
    pub fn forget(&mut self) {
        match &mut self.kind {
            Kind::Xor(connection) => *connection = None,
            Kind::Http(http) => (http.connection, http.session) = (None, None),
        }
    }

    /// The logins since this was last asked: how long each took, and whether it led to a session.
    pub fn take_logins(&mut self) -> Vec<(Duration, bool)> {
        match &mut self.kind {
            Kind::Xor(_) => Vec::new(),
            Kind::Http(http) => std::mem::take(&mut http.logins),
        }
    }

    /// One question and its answer.
    ///
    /// # Errors
    /// [`PollError`]; the connection is then closed.
    pub async fn ask<T>(&mut self, call: &mut Call<'_, T>, question: Question<'_>) -> Result<Heard, PollError>
    where
        T: Transport<Stream = S>,
    {
        match &mut self.kind {
            Kind::Xor(connection) => ask_xor(self.address, connection, call, question).await,
            Kind::Http(http) => http.ask(self.address, call, question).await,
        }
    }
}

async fn ask_xor<T: Transport>(
    address: SocketAddr,
    connection: &mut Option<T::Stream>,
    call: &Call<'_, T>,
    question: Question<'_>,
) -> Result<Heard, PollError> {
    let mut kept = connection.take();
    if let Some(stream) = &mut kept
        && !is_quiet(stream).await
    {
        kept = None;
    }
    let mut is_new = kept.is_none();
    let message = if is_new { question.introducing } else { question.plain };
    let mut done = exchange_xor(address, kept, call, message).await;
    if !is_new && matches!(done, Err(PollError::Closed)) {
        is_new = true;
        done = exchange_xor(address, None, call, question.introducing).await;
    }
    let (payload, mut stream) = done?;
    if is_quiet(&mut stream).await {
        *connection = Some(stream);
    }
    Ok(Heard { payload, is_new })
}

/// Whether nothing waits to be read: no end, no error, no byte that nobody asked for.
async fn is_quiet<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    smol::future::poll_once(stream.read(&mut [0])).await.is_none()
}

/// Sends `message` over `kept`, or a new connection, and reads one reply. The connection comes back only after a whole
/// reply; in every other case it is closed.
async fn exchange_xor<T: Transport>(
    to: SocketAddr,
    kept: Option<T::Stream>,
    call: &Call<'_, T>,
    message: &[u8],
) -> Result<(Vec<u8>, T::Stream), PollError> {
    let message = xor::frame(message)?;
    call.in_time(async {
        let mut stream = match kept {
            Some(stream) => stream,
            None => call.means.transport.connect(to).await?,
        };
        stream.write_all(&message).await?;
        stream.flush().await?;
        let mut prefix = [0; xor::PREFIX];
        stream.read_exact(&mut prefix).await?;
        let mut payload = vec![0; xor::payload_length(prefix)?];
        stream.read_exact(&mut payload).await?;
        xor::decrypt(&mut payload);
        Ok((payload, stream))
    })
    .await
}

/// How a session begins.
#[derive(Clone, Copy, Debug)]
enum Scheme {
    Klap,
    Tpap,
    Aes,
}

/// A way over HTTP, where plugs want a login.
#[derive(Debug)]
struct Http<S: Stream> {
    scheme: Scheme,
    connection: Option<http::Connection<S>>,
    /// When the plug last closed a connection of its own accord: some need a moment before the next.
    closed: Option<Duration>,
    session: Option<Open>,
    /// How long each login took, and whether it led to a session, until somebody asks; a few in each poll.
    logins: Vec<(Duration, bool)>,
}

#[derive(Debug)]
struct Open {
    session: Session,
    /// When another one is made.
    until: Duration,
}

impl<S: Stream> Http<S> {
    const fn new(scheme: Scheme) -> Self {
        Self { scheme, connection: None, closed: None, session: None, logins: Vec::new() }
    }

    async fn ask<T>(
        &mut self,
        to: SocketAddr,
        call: &mut Call<'_, T>,
        question: Question<'_>,
    ) -> Result<Heard, PollError>
    where
        T: Transport<Stream = S>,
    {
        let mut is_new = false;
        loop {
            let now = call.means.clock.elapsed();
            let mut open = match self.session.take().filter(|open| now < open.until) {
                Some(open) => open,
                None => {
                    is_new = true;
                    let made = self.log_in(to, call).await;
                    self.logins.push((call.means.clock.elapsed().saturating_sub(now), made.is_ok()));
                    made?
                }
            };
            let message = if is_new { question.introducing } else { question.plain };
            match self.ask_in(&mut open.session, to, call, message).await {
                Ok(payload) => {
                    self.session = Some(open);
                    return Ok(Heard { payload, is_new });
                }
                Err(PollError::Session(SessionError::SessionGone)) => {
                    if call.logins >= limits::LOGINS_A_POLL {
                        return Err(PollError::Session(SessionError::SessionGone));
                    }
                }
                Err(error @ PollError::Session(_)) => return Err(error),
                Err(error) => {
                    self.session = Some(open); // the connection failed, not the session
                    return Err(error);
                }
            }
        }
    }

    /// One question within a session. Where a kept connection turns out to be closed, it is asked once more.
    async fn ask_in<T>(
        &mut self,
        session: &mut Session,
        to: SocketAddr,
        call: &Call<'_, T>,
        message: &[u8],
    ) -> Result<Vec<u8>, PollError>
    where
        T: Transport<Stream = S>,
    {
        let is_kept = self.has_connection(call.means.clock).await;
        let mut reply = self.exchange(to, call, session.seal(message)?).await;
        if is_kept && matches!(reply, Err(PollError::Closed)) {
            reply = self.exchange(to, call, session.seal(message)?).await;
        }
        session.open(&reply?).map_err(|error| {
            self.connection = None;
            error.into()
        })
    }

    /// Makes a session. The second and later logins of a poll keep a distance from the one before.
    async fn log_in<T>(&mut self, to: SocketAddr, call: &mut Call<'_, T>) -> Result<Open, PollError>
    where
        T: Transport<Stream = S>,
    {
        if call.logins > 0 && !call.rest(limits::LOGIN_SPACING).await {
            return Err(PollError::Session(SessionError::SessionGone));
        }
        call.logins += 1;
        let started = call.means.clock.elapsed();
        let keys = call.means.keys;
        let seed = || keys.seed().map_err(|error| PollError::Io(error.kind()));
        let (mut login, mut request) = match self.scheme {
            Scheme::Klap => Login::klap(keys.account(), &seed()?),
            Scheme::Tpap => Login::tpap(keys.account(), &seed()?)?,
            #[cfg(feature = "aes-passthrough")]
            Scheme::Aes => {
                // Made once, in a second or so on a small machine: that is no plug's fault, and counts as no exchange.
                let key = keys.run_key().await?;
                Login::aes(keys.account(), &key, call.means.clock.wall())
            }
            #[cfg(not(feature = "aes-passthrough"))]
            Scheme::Aes => return Err(PollError::Session(SessionError::Unsupported { what: "AES passthrough" })),
        };
        // A connection from before the session's end may be half closed by now: a login begins on a new one.
        self.connection = None;
        for _ in 0..limits::LOGIN_STEPS {
            let reply = self.exchange(to, call, request).await?;
            let step = if login.is_slow() {
                let work = async { keys.work(move || login.hear(&reply)).await.map_err(|e| PollError::Io(e.kind())) };
                call.in_time(work).await?
            } else {
                login.hear(&reply)
            };
            match step? {
                Step::Send(next, further) => (login, request) = (next, further),
                Step::Ready(session) => {
                    let lifetime = session.lifetime().unwrap_or(limits::SESSION_TIME);
                    return Ok(Open { session, until: started.saturating_add(lifetime) });
                }
            }
        }
        Err(PollError::Session(SessionError::Garbage { what: "a login without an end" }))
    }

    /// Whether there is an open connection. One that the plug has closed is put away.
    async fn has_connection(&mut self, clock: &dyn Clock) -> bool {
        if let Some(connection) = &mut self.connection
            && !connection.is_quiet().await
        {
            self.connection = None;
            self.closed = Some(clock.elapsed());
        }
        self.connection.is_some()
    }

    /// One request and its reply, over the kept connection or a new one. The connection is kept only after a whole reply.
    async fn exchange<T>(&mut self, to: SocketAddr, call: &Call<'_, T>, request: Request) -> Result<Reply, PollError>
    where
        T: Transport<Stream = S>,
    {
        let clock = call.means.clock;
        let kept = if self.has_connection(clock).await { self.connection.take() } else { None };
        if kept.is_none()
            && let Some(closed) = self.closed.take()
        {
            let rested = closed.saturating_add(limits::RECONNECT_PAUSE);
            call.rest(rested.saturating_sub(clock.elapsed())).await;
        }
        let work = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => http::Connection::over(call.means.transport.connect(to).await?).await?,
            };
            let answer = connection.exchange(to, request).await?;
            Ok((answer, connection))
        };
        let (http::Answer { reply, closes }, connection) = call.in_time(work).await?;
        if closes {
            self.closed = Some(clock.elapsed());
        } else {
            self.connection = Some(connection);
        }
        Ok(reply)
    }
}
