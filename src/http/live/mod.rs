//! Readings and comings and goings of plugs to those who listen, as they happen.
//!
//! [`Hub`] takes what happens and hands it on: one encoded batch, shared by all who want the same, into a bounded queue for
//! each. Promises that nobody who listens slows what is recorded: taking a reading never waits; a listener whose queue is
//! full is dropped and counted. Without listeners nothing is kept, and while nothing happens nobody wakes, but for a sign
//! of life after [`limits::EVENT_BEAT`] of silence. [`Feed`] is what one listener hears, first what it missed.

pub mod batch;
pub mod form;
pub mod sse;
pub mod ws;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Clock, within};
use crate::limits;
use crate::poll::fleet::{Fleet, Plug, Presence};
use crate::reading::{DeviceId, Mac, Reading};
use crate::stats::{Stats, count};
use crate::store::replay::{After, Mark};
use crate::store::{Row, Store, StoreError};
use batch::Batcher;
use form::{DeviceEvent, Form};

/// Whose events a listener wants. None for all.
pub type Only = Option<BTreeSet<DeviceId>>;

/// A reading that has come, and the place after it.
struct Arrived {
    id: DeviceId,
    reading: Reading,
    mark: Mark,
}

/// What is put into a listener's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An event, encoded.
    Data(Bytes),
    /// Nothing has happened for a while: a sign of life is due.
    Beat,
}

/// A listener's side of the hub.
#[derive(Default)]
struct Queue {
    messages: RefCell<VecDeque<Message>>,
    /// No more will come: the hub closed, or the listener did not keep up.
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// False when there is no room.
    fn push(&self, message: Message) -> bool {
        let mut messages = self.messages.borrow_mut();
        if messages.len() >= limits::EVENT_QUEUE {
            return false;
        }
        messages.push_back(message);
        drop(messages);
        self.wake();
        true
    }

    fn end(&self) {
        self.ended.set(true);
        self.wake();
    }
}

/// Listeners who want the same, so that it is encoded once for all of them.
struct Channel {
    form: Form,
    only: Only,
    queues: Vec<Rc<Queue>>,
    /// When something was last sent.
    sent: Duration,
}

impl Channel {
    fn wants(&self, id: DeviceId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&id))
    }
}

/// Takes what happens, and hands it to all who listen.
pub struct Hub {
    clock: Rc<dyn Clock>,
    stats: Rc<Stats>,
    /// The most listeners.
    places: usize,
    waiting: RefCell<Batcher<Arrived>>,
    channels: RefCell<Vec<Channel>>,
    closed: Cell<bool>,
    /// Whoever runs [`Hub::run`].
    runner: RefCell<Option<Waker>>,
    /// What a listener to all plugs hears first, and of which version of the fleet it was made: many may come at once.
    hello: RefCell<Option<(Form, u64, Bytes)>>,
}

impl Hub {
    /// A hub with places for so many listeners.
    #[must_use]
    pub fn new(clock: Rc<dyn Clock>, stats: Rc<Stats>, places: usize) -> Self {
        Self {
            clock,
            stats,
            places,
            waiting: RefCell::default(),
            channels: RefCell::default(),
            closed: Cell::default(),
            runner: RefCell::default(),
            hello: RefCell::default(),
        }
    }

    /// Takes a reading that was just appended; `mark` is the place after it. Never waits.
    pub fn reading(&self, id: DeviceId, reading: Reading, mark: Mark) {
        if self.channels.borrow().is_empty() {
            return;
        }
        let full = self.waiting.borrow_mut().push(self.clock.elapsed(), Arrived { id, reading, mark });
        match full {
            Some(batch) => self.send(&batch),
            None => self.wake_runner(),
        }
    }

    /// Takes news of a plug: what it was, and what it is.
    pub fn device(&self, event: &DeviceEvent, plug: Mac) {
        self.flush(); // what came before goes before
        self.each(|channel| {
            let concerns = channel.only.as_ref().is_none_or(|only| only.iter().any(|id| id.plug == plug));
            concerns.then(|| channel.form.devices(std::slice::from_ref(event)))
        });
    }

    /// Sends what waits.
    pub fn flush(&self) {
        let batch = self.waiting.borrow_mut().take();
        self.send(&batch);
    }

    fn send(&self, batch: &[Arrived]) {
        let Some(mark) = batch.last().map(|last| last.mark) else { return };
        let listeners = &self.stats.listeners;
        count(&listeners.batches);
        listeners.readings.set(listeners.readings.get().saturating_add(u64::try_from(batch.len()).unwrap_or(0)));
        self.each(|channel| {
            let mut rows = batch.iter().filter(|arrived| channel.wants(arrived.id)).peekable();
            rows.peek()?;
            Some(channel.form.batch(rows.map(|arrived| (arrived.id, &arrived.reading)), Some(mark)))
        });
    }

    /// Puts what `encode` makes for a channel into the queues of its listeners.
    fn each(&self, encode: impl Fn(&Channel) -> Option<Bytes>) {
        let now = self.clock.elapsed();
        for channel in self.channels.borrow_mut().iter_mut() {
            if let Some(bytes) = encode(channel) {
                channel.sent = now;
                self.put(channel, &Message::Data(bytes));
            }
        }
        self.channels.borrow_mut().retain(|channel| !channel.queues.is_empty());
    }

    fn put(&self, channel: &mut Channel, message: &Message) {
        channel.queues.retain(|queue| {
            let has_room = queue.push(message.clone());
            if !has_room {
                count(&self.stats.listeners.dropped);
                log::debug!("a listener to events does not keep up, and is dropped");
                queue.messages.borrow_mut().clear();
                queue.end();
            }
            has_room
        });
    }

    /// Sends batches that are due, and signs of life, until it is dropped.
    pub async fn run(self: Rc<Self>) {
        loop {
            let at = self.due().unwrap_or(Duration::MAX);
            within(self.clock.as_ref(), at, self.changed(at)).await;
            let now = self.clock.elapsed();
            if self.waiting.borrow().due().is_some_and(|due| due <= now) {
                self.flush();
            }
            for channel in self.channels.borrow_mut().iter_mut() {
                if channel.sent.saturating_add(limits::EVENT_BEAT) <= now {
                    channel.sent = now;
                    self.put(channel, &Message::Beat);
                }
            }
        }
    }

    /// When there is something to send. None while nobody listens.
    fn due(&self) -> Option<Duration> {
        let beats = self.channels.borrow().iter().map(|channel| channel.sent.saturating_add(limits::EVENT_BEAT)).min();
        self.waiting.borrow().due().into_iter().chain(beats).min()
    }

    /// Ready when something is due earlier than `at`.
    async fn changed(&self, at: Duration) {
        poll_fn(|context| {
            if self.due().is_some_and(|due| due < at) {
                return Poll::Ready(());
            }
            self.runner.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn wake_runner(&self) {
        if let Some(runner) = self.runner.take() {
            runner.wake();
        }
    }

    /// Who is there, for a listener that comes.
    fn hello(&self, form: Form, only: &Only, fleet: &Fleet) -> Bytes {
        let is_kept = |(of, version, _): &&(Form, u64, Bytes)| *of == form && *version == fleet.version();
        if let Some((_, _, hello)) = self.hello.borrow().as_ref().filter(is_kept).filter(|_| only.is_none()) {
            return hello.clone();
        }
        let now = self.clock.wall();
        let concerns = |plug: &&Plug| only.as_ref().is_none_or(|only| only.iter().any(|id| id.plug == plug.facts.mac));
        let events = fleet.plugs().filter(concerns).map(|plug| {
            let (time, online) = match plug.presence {
                Presence::Unknown => (now, None),
                Presence::Online => (now, Some(true)),
                Presence::Offline { since } => (since, Some(false)),
            };
            DeviceEvent::new(time, DeviceId::plug(plug.facts.mac), plug.display_name(), online)
        });
        let hello = form.devices(&events.collect::<Vec<_>>());
        if only.is_none() {
            self.hello.replace(Some((form, fleet.version(), hello.clone())));
        }
        hello
    }

    /// A place for a listener, from now on. None when all are taken.
    #[must_use]
    pub fn listen(self: &Rc<Self>, form: Form, only: Only) -> Option<Listener> {
        let open = &self.stats.listeners.open;
        if open.get() >= self.places || self.closed.get() {
            count(&self.stats.listeners.refused);
            return None;
        }
        open.set(open.get() + 1);
        Some(Listener { hub: self.clone(), queue: Rc::default(), form, only, joined: false })
    }

    /// Ends every listener; what is in their queues still goes out.
    pub fn close(&self) {
        self.flush();
        self.closed.set(true);
        for channel in self.channels.borrow_mut().drain(..) {
            channel.queues.iter().for_each(|queue| queue.end());
        }
    }
}

/// A place at the hub, given back when it is dropped.
pub struct Listener {
    hub: Rc<Hub>,
    queue: Rc<Queue>,
    form: Form,
    only: Only,
    joined: bool,
}

impl Listener {
    /// From now on, what happens comes into the queue.
    fn join(&mut self) {
        if std::mem::replace(&mut self.joined, true) || self.hub.closed.get() {
            return self.queue.end();
        }
        self.hub.flush(); // what waits is for those who are there
        let mut channels = self.hub.channels.borrow_mut();
        let same = channels.iter_mut().find(|channel| channel.form == self.form && channel.only == self.only);
        match same {
            Some(channel) => channel.queues.push(self.queue.clone()),
            None => channels.push(Channel {
                form: self.form,
                only: self.only.clone(),
                queues: vec![self.queue.clone()],
                sent: self.hub.clock.elapsed(),
            }),
        }
        drop(channels);
        self.hub.wake_runner();
    }

    /// The next message. None when no more will come.
    async fn next(&self) -> Option<Message> {
        poll_fn(|context| {
            if let Some(message) = self.queue.messages.borrow_mut().pop_front() {
                return Poll::Ready(Some(message));
            }
            if self.queue.ended.get() {
                return Poll::Ready(None);
            }
            self.queue.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let open = &self.hub.stats.listeners.open;
        open.set(open.get().saturating_sub(1));
        let mut channels = self.hub.channels.borrow_mut();
        for channel in channels.iter_mut() {
            channel.queues.retain(|queue| !Rc::ptr_eq(queue, &self.queue));
        }
        channels.retain(|channel| !channel.queues.is_empty());
    }
}

/// What one listener hears: who is there, what it missed, then what happens.
pub struct Feed {
    listener: Listener,
    store: Rc<Store>,
    /// Sent first, oldest first.
    first: VecDeque<Bytes>,
    /// Where the replay stands. None once it is over, or when none was asked for.
    replay: Option<Mark>,
}

impl Feed {
    /// A feed that goes on after `resume`: a mark, a text that is none, or nothing at all for one that begins now.
    #[must_use]
    pub fn new(mut listener: Listener, store: Rc<Store>, fleet: &Fleet, resume: Option<&str>) -> Self {
        let form = listener.form;
        let hello = listener.hub.hello(form, &listener.only, fleet);
        let mut first: VecDeque<_> = (!hello.is_empty()).then_some(hello).into_iter().collect();
        let replay = resume.and_then(|text| text.parse().ok());
        if resume.is_some() && replay.is_none() {
            first.push_back(form.reset("this is no id of an event"));
        }
        if replay.is_none() {
            listener.join();
        }
        Self { listener, store, first, replay }
    }

    /// The next message. None when no more will come.
    ///
    /// # Errors
    /// [`StoreError`] when what was missed cannot be read.
    pub async fn next(&mut self) -> Option<Result<Message, StoreError>> {
        loop {
            if let Some(bytes) = self.first.pop_front() {
                return Some(Ok(Message::Data(bytes)));
            }
            let Some(mark) = self.replay else { return self.listener.next().await.map(Ok) };
            if let Err(error) = self.go_on(mark).await {
                return Some(Err(error));
            }
        }
    }

    /// Takes the next part of what was missed. The last part and joining the others are one step.
    async fn go_on(&mut self, mark: Mark) -> Result<(), StoreError> {
        let after = match self.store.after(mark) {
            Some(after) => after,
            None => self.store.after_in_file(mark).await?,
        };
        match after {
            After::Rows(rows, next) => {
                self.replay = Some(next);
                self.encode(&rows, next);
            }
            After::Nothing => {
                self.replay = None;
                self.listener.join();
            }
            After::Lost => {
                self.first.push_back(self.listener.form.reset("what came after this event is no longer at hand"));
                self.replay = None;
                self.listener.join();
            }
        }
        Ok(())
    }

    /// Rows in batches of the usual size. The place is told with the last, when all have gone out.
    fn encode(&mut self, rows: &[Row], next: Mark) {
        let Listener { only, form, .. } = &self.listener;
        let ids = rows.iter().filter_map(|row| Some((self.store.id(row.device)?, &row.reading)));
        let wanted: Vec<_> = ids.filter(|(id, _)| only.as_ref().is_none_or(|only| only.contains(id))).collect();
        let batches = wanted.chunks(limits::EVENT_BATCH);
        let last = batches.len();
        for (n, batch) in (1..).zip(batches) {
            let mark = (n == last).then_some(next);
            self.first.push_back(form.batch(batch.iter().copied(), mark));
        }
    }
}
