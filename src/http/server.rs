//! Connections: accepting, bounding and ending them.
//!
//! Promises: at most [`App::connections`] of them; when full, one without a complete request makes room, of the client
//! that holds the most (see [`Hall::make_room`]), and when all are being answered the newcomer is told to come again. A
//! client that has closed its sending side is answered all the same. Every phase of a connection
//! has an end ([`Line::deadline`]): a request's head and idleness, a reply, a stalled stream. At the end of the program
//! running requests have [`limits::HTTP_STOP_TIME`]. Time comes from the application's clock, so tests move it by hand.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_net::{TcpListener, TcpStream};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt};
use smol::{LocalExecutor, Task, future};
use smol_hyper::rt::FuturesIo;

use crate::clock::{Clock, Sleep, within};
use crate::http::App;
use crate::http::live::ws::Session;
use crate::http::media::Media;
use crate::http::reply::{Body, Problem};
use crate::limits;
use crate::reading::Text;
use crate::stats::{Stats, count};
use crate::store::StoreError;

/// A listener at `address`, with room for clients that come all at once.
///
/// # Errors
/// When the system refuses the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    rustix::net::listen(&listener, limits::HTTP_BACKLOG)?;
    Ok(listener)
}

/// Answers requests at `listener` from `app` until `shutdown` is ready, then ends within [`limits::HTTP_STOP_TIME`].
///
/// Connections run as tasks on `executor`; dropping the future ends them at once.
pub async fn serve(
    executor: Rc<LocalExecutor<'static>>,
    listener: TcpListener,
    app: Rc<App>,
    shutdown: impl Future<Output = ()>,
) {
    let hall = Closing(Rc::new(Hall::default()));
    let _sender = executor.spawn(app.live.clone().run());
    future::or(shutdown, accept(&executor, &listener, &app, &hall.0)).await;
    drop(listener);
    hall.0.stopping.set(true);
    app.live.close();
    hall.0.lines().iter().for_each(|line| line.wake());
    let end = app.clock.elapsed().saturating_add(limits::HTTP_STOP_TIME);
    if within(app.clock.as_ref(), end, hall.0.empty()).await.is_none() {
        log::warn!("{} HTTP connections are cut off: their requests took too long to end", hall.0.lines().len());
    }
}

async fn accept(executor: &LocalExecutor<'static>, listener: &TcpListener, app: &Rc<App>, hall: &Rc<Hall>) {
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                welcome(executor, stream, peer, app, hall);
                // So that a request which is there already is read before a crowd at the door takes its place.
                future::yield_now().await;
            }
            Err(error) => {
                // Out of files or memory, mostly. Room is made, and no loop runs hot while there is none.
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("HTTP connections cannot be accepted at the moment: {error}");
                }
                hall.make_room();
                app.clock.sleep_until(app.clock.elapsed().saturating_add(limits::HTTP_ACCEPT_PAUSE)).await;
            }
        }
    }
}

fn welcome(executor: &LocalExecutor<'static>, stream: TcpStream, peer: SocketAddr, app: &Rc<App>, hall: &Rc<Hall>) {
    let _ = stream.set_nodelay(true); // a slower connection is still one
    let connections = &app.stats.connections;
    if hall.seats.borrow().len() >= app.connections && !hall.make_room() {
        count(&connections.refused);
        log::debug!("HTTP {peer}: refused, {} connections are being answered", app.connections);
        let message = "every connection is in use";
        say_last(stream, &Problem::later("busy", message, "come again in a second", 1));
        return;
    }
    count(&connections.accepted);
    let line = Rc::new(Line::new(client(peer.ip()), app.clock.clone()));
    let seat = Seat { hall: hall.clone(), number: hall.next.get(), stats: app.stats.clone() };
    hall.next.set(seat.number.wrapping_add(1));
    let number = seat.number;
    let task = executor.spawn(converse(stream, peer, app.clone(), line.clone(), seat));
    hall.seats.borrow_mut().insert(number, (line, task));
    connections.open.set(hall.seats.borrow().len());
}

/// One connection, to its end.
async fn converse(stream: TcpStream, peer: SocketAddr, app: Rc<App>, line: Rc<Line>, seat: Seat) {
    let wire = Wire { stream: stream.clone(), line: line.clone() };
    let service = {
        let (app, line) = (app.clone(), line.clone());
        service_fn(move |request: Request<Incoming>| {
            let (app, line) = (app.clone(), line.clone());
            line.begin();
            async move { Ok::<_, Infallible>(respond(&app, line, peer, request).await) }
        })
    };
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_headers(limits::HTTP_HEADERS).half_close(true);
    builder.max_header_size(limits::HTTP_HEAD).max_buf_size(limits::HTTP_HEAD);
    let mut connection = pin!(builder.serve_connection(FuturesIo::new(wire), service));
    let (mut told, mut left) = (false, pin!(left(&stream)));
    let answering = poll_fn(|context| {
        if seat.hall.stopping.get() && !std::mem::replace(&mut told, true) {
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(done) = connection.as_mut().poll(context) {
            return Poll::Ready(End::Done(done.err()));
        }
        // Others that left are noticed by writing to them.
        if line.listens.get() { left.as_mut().poll(context).map(|()| End::Done(None)) } else { Poll::Pending }
    });
    let mut end = line.watch(answering).await;
    if let (End::Done(None), Some(session)) = (&end, line.session.take()) {
        line.stream();
        let wire = Wire { stream: stream.clone(), line: line.clone() };
        let speaking = async {
            session.run(wire).await;
            End::Done(None)
        };
        end = line.watch(speaking).await;
    }
    if !matches!(end, End::Done(_)) {
        count(&app.stats.connections.cut);
    }
    match end {
        End::Done(None) => {}
        End::Done(Some(error)) => log::debug!("HTTP {peer}: {}", Text::<200>::new(&error.to_string())),
        End::Cut => log::debug!("HTTP {peer}: closed to make room"),
        End::Late => {
            log::debug!("HTTP {peer}: closed, it took too long");
            if line.requests.get() == 0 && line.heard.get() {
                let message = "the request's head took too long";
                let status = hyper::StatusCode::REQUEST_TIMEOUT;
                say_last(stream.clone(), &Problem::new(status, "too_slow", message, "send it at once"));
            }
        }
    }
}

/// Ready once the client has closed its sending side with nothing before that which was not read.
async fn left(stream: &TcpStream) {
    if matches!(stream.peek(&mut [0]).await, Ok(1..)) {
        future::pending::<()>().await;
    }
}

/// Whom an address stands for: a machine with IPv6 has as many addresses as it likes in its network.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

enum End {
    Done(Option<hyper::Error>),
    Cut,
    Late,
}

async fn respond(app: &App, line: Rc<Line>, peer: SocketAddr, request: Request<Incoming>) -> Response<Watched> {
    let started = app.clock.elapsed();
    let (head, body) = request.into_parts();
    let end = started.saturating_add(limits::HTTP_REPLY_TIME);
    let response = within(app.clock.as_ref(), end, app.handle_with(&head, Some(body))).await.unwrap_or_else(|| {
        app.note(&head, hyper::StatusCode::SERVICE_UNAVAILABLE, limits::HTTP_REPLY_TIME);
        let hint = "ask for a shorter range; the disk may be busy";
        Problem::later("too_slow", "this reply took too long to make", hint, 10).into_response()
    });
    log::debug!(
        "HTTP {peer}: {} in {} ms",
        crate::http::shown(&head, response.status()),
        app.clock.elapsed().saturating_sub(started).as_millis()
    );
    let mut response = response;
    match response.body_mut() {
        Body::Stream(_) => {
            line.stream();
            let kind = response.headers().get(CONTENT_TYPE);
            line.listens.set(kind.is_some_and(|kind| kind == Media::EventStream.content_type()));
        }
        Body::Socket(session) => drop(line.session.replace(session.take())),
        Body::Whole(_) => {}
    }
    response.map(|body| Watched { body, line })
}

/// A last word before a connection is closed, if the system takes it at once.
fn say_last(mut stream: TcpStream, problem: &Problem) {
    let body = problem.to_json();
    let reason = problem.status.canonical_reason().unwrap_or_default();
    let retry = if problem.status == hyper::StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
        problem.status.as_u16(),
        body.len()
    );
    let bytes = [head.into_bytes(), body].concat();
    let _ = future::block_on(future::poll_once(stream.write_all(&bytes))); // one try, which never waits
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // What is closed with something unread is reset, and the client may never see that word.
    let _ = future::block_on(future::poll_once(stream.read(&mut [0; limits::HTTP_HEAD])));
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Without a complete request since then.
    Waiting(Duration),
    /// A request that came then is being answered.
    Answering(Duration),
    /// A stream is being sent; it last moved then.
    Streaming(Duration),
}

/// What is known of one connection: a state machine that its socket, its service and its replies report to.
struct Line {
    /// Who is at the other end.
    client: IpAddr,
    clock: Rc<dyn Clock>,
    phase: Cell<Phase>,
    requests: Cell<u64>,
    /// Whether any byte came.
    heard: Cell<bool>,
    /// Whether a stream is being sent that may be silent for long.
    listens: Cell<bool>,
    /// Whether the connection is to end at once.
    cut: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// What the connection becomes once the reply has left.
    session: RefCell<Option<Box<Session>>>,
}

impl Line {
    fn new(client: IpAddr, clock: Rc<dyn Clock>) -> Self {
        let phase = Cell::new(Phase::Waiting(clock.elapsed()));
        Self {
            client,
            clock,
            phase,
            requests: Cell::default(),
            heard: Cell::default(),
            listens: Cell::default(),
            cut: Cell::default(),
            waker: RefCell::default(),
            session: RefCell::default(),
        }
    }

    fn begin(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
        self.phase.set(Phase::Answering(self.clock.elapsed()));
    }

    fn stream(&self) {
        self.phase.set(Phase::Streaming(self.clock.elapsed()));
    }

    /// Bytes went out, or rows came from the store.
    fn move_on(&self) {
        match self.phase.get() {
            Phase::Streaming(_) => self.stream(),
            // The rest of the last reply: a client that takes it slowly is no client that waits.
            Phase::Waiting(_) => self.finish(),
            Phase::Answering(_) => {}
        }
    }

    /// The reply has left our hands. Each time that the socket takes more of it, the time for the next request begins anew.
    fn finish(&self) {
        self.listens.set(false);
        self.phase.set(Phase::Waiting(self.clock.elapsed()));
    }

    fn deadline(&self) -> Duration {
        match self.phase.get() {
            Phase::Waiting(since) => since.saturating_add(limits::HTTP_HEAD_TIME),
            // The reply is refused at its own deadline; this one is for when even that cannot be sent.
            Phase::Answering(since) => {
                since.saturating_add(limits::HTTP_REPLY_TIME).saturating_add(limits::HTTP_STOP_TIME)
            }
            Phase::Streaming(moved) => moved.saturating_add(limits::HTTP_STALL_TIME),
        }
    }

    /// `work`, or why it had to end before: it was cut off, or its deadline has passed.
    async fn watch(&self, work: impl Future<Output = End>) -> End {
        let (mut work, mut alarm) = (pin!(work), None);
        poll_fn(|context| {
            self.waker.replace(Some(context.waker().clone()));
            if self.cut.get() {
                return Poll::Ready(End::Cut);
            }
            if let Poll::Ready(end) = work.as_mut().poll(context) {
                return Poll::Ready(end);
            }
            self.poll_deadline(&mut alarm, context).map(|()| End::Late)
        })
        .await
    }

    /// Ready once the deadline has passed. One timer serves many requests: it is looked at again when it rings.
    fn poll_deadline(&self, alarm: &mut Option<(Duration, Sleep)>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.deadline();
            if self.clock.elapsed() >= deadline {
                return Poll::Ready(());
            }
            let (at, mut sleep) = match alarm.take() {
                Some((at, sleep)) if at <= deadline => (at, sleep),
                _ => (deadline, self.clock.sleep_until(deadline)),
            };
            if sleep.as_mut().poll(context).is_pending() {
                *alarm = Some((at, sleep));
                return Poll::Pending;
            }
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Open connections by number, in order of arrival, and the tasks that run them.
type Seats = BTreeMap<u64, (Rc<Line>, Task<()>)>;

/// Every open connection.
#[derive(Default)]
struct Hall {
    seats: RefCell<Seats>,
    next: Cell<u64>,
    stopping: Cell<bool>,
    /// Who waits for the last connection to end.
    waiting: RefCell<Option<Waker>>,
}

impl Hall {
    fn lines(&self) -> Vec<Rc<Line>> {
        self.seats.borrow().values().map(|(line, _)| line.clone()).collect()
    }

    /// Ends a connection without a complete request: one of the client that holds the most, so that a crowd takes places
    /// from itself; of those one that never said anything, else the one that has waited longest. False when every one is
    /// being answered.
    fn make_room(&self) -> bool {
        let seats = self.seats.borrow();
        let lines = || seats.values().map(|(line, _)| line).filter(|line| !line.cut.get());
        let mut held = HashMap::new();
        lines().for_each(|line| *held.entry(line.client).or_insert(0u32) += 1);
        let waiting = lines().filter_map(|line| match line.phase.get() {
            Phase::Waiting(since) => Some((Reverse(held.get(&line.client)), line.heard.get(), since, line)),
            _ => None,
        });
        let victim = waiting.min_by_key(|(held, heard, since, _)| (*held, *heard, *since));
        let Some((.., line)) = victim else { return false };
        line.cut.set(true);
        line.wake();
        true
    }

    async fn empty(&self) {
        poll_fn(|context| {
            if self.seats.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.waiting.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Ends every connection when the server ends, however it does.
struct Closing(Rc<Hall>);

impl Drop for Closing {
    fn drop(&mut self) {
        drop(self.0.seats.take()); // dropping a task ends it
    }
}

/// A connection's place, given back when it ends.
struct Seat {
    hall: Rc<Hall>,
    number: u64,
    stats: Rc<Stats>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seat = self.hall.seats.borrow_mut().remove(&self.number);
        if let Some((_, task)) = seat {
            task.detach(); // it is ending by itself
        }
        self.stats.connections.open.set(self.hall.seats.borrow().len());
        if let Some(waker) = self.hall.waiting.take() {
            waker.wake();
        }
    }
}

/// A socket that reports what moves.
struct Wire {
    stream: TcpStream,
    line: Rc<Line>,
}

impl Wire {
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.line.move_on();
        }
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(1..))) {
            self.line.heard.set(true);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.sent(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// A reply's body that reports its moves and its end.
struct Watched {
    body: Body,
    line: Rc<Line>,
}

impl hyper::body::Body for Watched {
    type Data = bytes::Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, StoreError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.line.move_on();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.line.finish();
    }
}
