//! One connection, one task.
//!
//! During the transmission the task does three things at the same time, in turns: it starts the
//! requests that have come in, works on those in flight, and moves bytes in both directions. They
//! share [`Line`], and since one task polls them all, a change to it needs no waker: it counts a
//! turn, and the task goes round again until nothing changes. A request that the device answers at
//! once is read, worked on and answered in three turns of one poll.
//!
//! ```text
//! serving --DISC, EOF, error, violation, stop--> ending --all answered and sent--> closed
//! ```
//!
//! While ending, nothing more is read or started, but what was started is finished and answered if
//! anybody listens. Where the client has gone this has a bound: a write that stalls (the cache is
//! full, the store is out) would keep the export in use by a client that is no more, and so keep out
//! the same guest with a new process. It is dropped before it counts: a device appends a write in
//! one step, or not at all.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, Stream as _};
use world::sync::watch;
use world::{Stream, World};

use super::Limits;
use super::handshake::{Action, Features, Handshake, OPTION_DATA_MAX, OPTION_SKIP_MAX};
use super::inbox::{self, Inbox, Request, Spares};
use super::request::{self, Reply};
use super::wire::{OPTION_HEADER_BYTES, OptionHeader, Violation, command};
use crate::device::{BlockDevice, ConnectError, Exports, Look};
use crate::repeats::Repeats;

/// Rounds of one poll before other tasks get their turn.
const TURNS_MAX: usize = 64;
/// Replies gathered into one write: two parts each, and the system takes 1024 parts.
const GATHERED_REPLIES_MAX: usize = 512;
/// Bytes after which no more replies are gathered.
const GATHERED_BYTES_MAX: usize = 4 << 20;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client said goodbye")]
    Goodbye,
    #[error("the client closed the connection without a goodbye")]
    Vanished,
    #[error("the server stops")]
    Stopped,
    #[error("the client took too long over the handshake")]
    Slow,
    #[error("export `{name}`: {why}")]
    Refused { name: String, why: ConnectError },
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl End {
    /// What it is said under, and of which export: a client that tries again and again is said once.
    pub(super) fn cause(&self) -> (&'static str, &str) {
        match self {
            Self::Refused { name, why } => (kind_of(why), name),
            Self::Slow => ("slow", ""),
            Self::Violation(_) => ("violation", ""),
            Self::Broken(_) => ("broken", ""),
            Self::Goodbye | Self::Vanished | Self::Stopped => ("left", ""),
        }
    }
}

/// The text of an error may differ from one attempt to the next; its kind does not.
fn kind_of(why: &ConnectError) -> &'static str {
    match why {
        ConnectError::Unknown(_) => "unknown",
        ConnectError::Invalid(_) => "invalid",
        ConnectError::Refused(_) => "refused",
        ConnectError::Unavailable(_) => "unavailable",
        ConnectError::ShuttingDown => "stopping",
    }
}

/// What a connection needs from its server.
#[derive(Debug)]
pub(super) struct Server<W, E> {
    pub(super) world: W,
    pub(super) exports: Rc<E>,
    pub(super) limits: Limits,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) repeats: Repeats,
    /// Receive buffers, of all connections.
    pub(super) spares: RefCell<Spares>,
}

/// A connection that is through with its handshake.
pub(super) struct Opened<D> {
    pub(super) name: String,
    pub(super) device: Rc<D>,
    features: Features,
    /// What came behind the last option.
    rest: Vec<u8>,
}

impl<W: World, E: Exports> Server<W, E> {
    /// Speaks the handshake to its end.
    pub(super) async fn negotiate(&self, stream: &W::Stream) -> Result<Opened<E::Device>, End> {
        let deadline = self.world.now() + self.limits.handshake_timeout;
        let mut talk = Talk {
            server: self,
            stream,
            deadline,
            received: Vec::new(),
        };
        talk.send(&Handshake::greeting()).await?;
        let mut handshake = Handshake::begin(talk.receive_array().await?)?;
        loop {
            let (kind, data) = talk.receive_option().await?;
            let action = handshake.option(kind, data.as_deref())?;
            if let Some((name, device)) = talk.act(&handshake, action).await? {
                return Ok(Opened {
                    features: handshake.features(&name),
                    name,
                    device,
                    rest: talk.received,
                });
            }
        }
    }

    /// Serves requests until the connection ends, and finishes what was started.
    pub(super) async fn transmit(&self, stream: &W::Stream, opened: Opened<E::Device>) -> End {
        let Opened {
            device,
            features,
            rest,
            ..
        } = opened;
        let begin = |request: Request| {
            let payload_bytes = inbox::occupied_bytes(&request.header);
            let device = Rc::clone(&device);
            // Made in there: one that is moved in takes its memory twice, in each request.
            async move {
                let reply = request::answer(device, features, request).await;
                Worked {
                    reply,
                    payload_bytes,
                }
            }
        };
        let line = Line::new(rest, self.limits);
        let mut fill = pin!(line.fill(stream, &self.spares));
        let mut send = pin!(line.send(stream));
        let mut stop = pin!(stopped(self.stop.clone()));
        let mut linger = pin!(async {
            line.until_only_unsent().await;
            self.world.sleep(self.limits.linger_timeout).await;
        });
        let mut orphaned = pin!(async {
            line.until_client_gone().await;
            self.world.sleep(self.limits.orphan_timeout).await;
        });
        poll_fn(|cx| {
            for turn in 0..TURNS_MAX {
                let before = line.turn.get();
                line.start(&begin);
                line.work(cx);
                let is_over = send.as_mut().poll(cx).is_ready()
                    || linger.as_mut().poll(cx).is_ready()
                    || orphaned.as_mut().poll(cx).is_ready();
                if is_over {
                    return Poll::Ready(());
                }
                // Once a poll is enough: its waker wakes the task.
                if turn == 0 && line.is_serving() && stop.as_mut().poll(cx).is_ready() {
                    line.end_by(End::Stopped);
                }
                if line.is_serving()
                    && let Poll::Ready(end) = fill.as_mut().poll(cx)
                {
                    line.end_by(end);
                }
                if line.turn.get() == before {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        line.end.take().unwrap_or(End::Vanished)
    }
}

/// Returns once the server stops, or whoever could stop it is gone.
pub(super) async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error says that the sender is gone, which is a stop too.
    drop(stop.wait_for(|is_stopped| *is_stopped).await);
}

/// The acting half of the handshake.
struct Talk<'a, W: World, E> {
    server: &'a Server<W, E>,
    stream: &'a W::Stream,
    deadline: world::Instant,
    received: Vec<u8>,
}

type Connected<D> = Option<(String, Rc<D>)>;

impl<W: World, E: Exports> Talk<'_, W, E> {
    /// Does what the handshake decided. Some means that the transmission begins.
    async fn act(
        &mut self,
        handshake: &Handshake,
        action: Action,
    ) -> Result<Connected<E::Device>, End> {
        let exports = &self.server.exports;
        let peer = self.stream.peer();
        match action {
            Action::Reply(bytes) => self.send(&bytes).await?,
            Action::Leave(bytes) => {
                self.send(&bytes).await?;
                return Err(End::Goodbye);
            }
            Action::List => {
                let names = exports.names().await;
                self.send(&Handshake::listed(&names)).await?;
            }
            Action::Info(question) => {
                let bytes = match exports.look(&question.name).await {
                    Ok(look) => handshake.described(&question, look),
                    Err(why) => Handshake::refused(&question, &why),
                };
                self.send(&bytes).await?;
            }
            Action::Go(question) => match exports.connect(&question.name, &peer).await {
                Ok(device) => {
                    let bytes = handshake.described(&question, look_at(&*device));
                    self.send(&bytes).await?;
                    return Ok(Some((question.name, device)));
                }
                Err(why) => {
                    let repeats = &self.server.repeats;
                    let now = self.server.world.now();
                    if let Some(held_back) = repeats.news(kind_of(&why), &question.name, now) {
                        tracing::warn!(export = question.name, %peer, %why, held_back, "a client was refused");
                    }
                    self.send(&Handshake::refused(&question, &why)).await?;
                }
            },
            Action::ExportName(name) => match exports.connect(&name, &peer).await {
                Ok(device) => {
                    self.send(&handshake.old_answer(look_at(&*device))).await?;
                    return Ok(Some((name, device)));
                }
                Err(why) => return Err(End::Refused { name, why }),
            },
        }
        Ok(None)
    }

    /// One option with its data, or without if that is too long to be looked at.
    async fn receive_option(&mut self) -> Result<(u32, Option<Vec<u8>>), End> {
        let header = OptionHeader::parse(&self.receive_array::<OPTION_HEADER_BYTES>().await?)?;
        let length = usize::try_from(header.length).expect("this runs on 64-bit machines");
        if header.length <= OPTION_DATA_MAX {
            return Ok((header.option, Some(self.receive(length).await?)));
        }
        if header.length > OPTION_SKIP_MAX {
            return Err(Violation::OptionTooLong(header.length).into());
        }
        let mut left = length;
        while left > 0 {
            if self.received.is_empty() {
                self.receive_some().await?;
            }
            let skipped = left.min(self.received.len());
            self.received.drain(..skipped);
            left -= skipped;
        }
        Ok((header.option, None))
    }

    async fn receive_array<const N: usize>(&mut self) -> Result<[u8; N], End> {
        let bytes = self.receive(N).await?;
        Ok(bytes.try_into().expect("receive gives what was asked"))
    }

    async fn receive(&mut self, count: usize) -> Result<Vec<u8>, End> {
        while self.received.len() < count {
            self.receive_some().await?;
        }
        let rest = self.received.split_off(count);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    async fn receive_some(&mut self) -> Result<(), End> {
        self.received.reserve(4096);
        let (server, deadline) = (self.server, self.deadline);
        let reading = self.stream.read(&mut self.received);
        match server.in_time(deadline, reading).await?? {
            0 => Err(End::Vanished),
            _ => Ok(()),
        }
    }

    /// The deadline holds for sending as well: a client that does not read its answers is slow.
    async fn send(&self, bytes: &[u8]) -> Result<(), End> {
        let mut parts = [IoSlice::new(bytes)];
        let writing = self.stream.write_all(&mut parts);
        Ok(self.server.in_time(self.deadline, writing).await??)
    }
}

impl<W: World, E> Server<W, E> {
    /// Waits for the client, but not beyond the deadline or the server's end.
    async fn in_time<T>(
        &self,
        deadline: world::Instant,
        waiting: impl Future<Output = T>,
    ) -> Result<T, End> {
        let late = pin!(self.world.sleep_until(deadline));
        let stop = pin!(stopped(self.stop.clone()));
        match select(pin!(waiting), select(late, stop)).await {
            Either::Left((done, _)) => Ok(done),
            Either::Right((Either::Left(_), _)) => Err(End::Slow),
            Either::Right((Either::Right(_), _)) => Err(End::Stopped),
        }
    }
}

fn look_at(device: &impl BlockDevice) -> Look {
    Look {
        size_bytes: device.size_bytes(),
        access: device.access(),
    }
}

/// The state of a transmission, shared by what one task does in turns.
struct Line<F> {
    inbox: RefCell<Inbox>,
    working: RefCell<FuturesUnordered<F>>,
    replies: RefCell<VecDeque<Reply>>,
    /// Requests started and not yet answered on the socket, and the payload that they hold.
    requests: Cell<usize>,
    payload_bytes: Cell<u64>,
    limits: Limits,
    end: RefCell<Option<End>>,
    /// Grows with every change that may let one of the others go on.
    turn: Cell<u64>,
}

/// A request that was carried out.
struct Worked {
    reply: Reply,
    /// What it held while it was worked on.
    payload_bytes: u64,
}

impl<F: Future<Output = Worked>> Line<F> {
    fn new(rest: Vec<u8>, limits: Limits) -> Self {
        Self {
            inbox: RefCell::new(Inbox::new(rest)),
            working: RefCell::default(),
            replies: RefCell::default(),
            requests: Cell::new(0),
            payload_bytes: Cell::new(0),
            limits,
            end: RefCell::new(None),
            turn: Cell::new(0),
        }
    }

    fn changed(&self) {
        self.turn.set(self.turn.get() + 1);
    }

    fn is_serving(&self) -> bool {
        self.end.borrow().is_none()
    }

    /// The first reason counts: the others follow from it.
    fn end_by(&self, end: End) {
        self.end.borrow_mut().get_or_insert(end);
        self.changed();
    }

    /// Starts every request that has come in whole and for which there is room.
    fn start(&self, begin: &impl Fn(Request) -> F) {
        let mut inbox = self.inbox.borrow_mut();
        while self.is_serving() {
            match inbox.next(|bytes| self.has_room(bytes)) {
                Ok(None) => return,
                Ok(Some(request)) if request.header.command == command::DISC => {
                    self.end_by(End::Goodbye);
                }
                Ok(Some(request)) => {
                    self.requests.set(self.requests.get() + 1);
                    self.hold(inbox::occupied_bytes(&request.header));
                    self.working.borrow_mut().push(begin(request));
                    self.changed();
                }
                Err(violation) => self.end_by(End::Violation(violation)),
            }
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        let held = self.payload_bytes.get();
        let fits = held == 0 || held + bytes <= self.limits.payload_in_flight_max_bytes;
        fits && self.requests.get() < self.limits.requests_in_flight_max
    }

    fn hold(&self, bytes: u64) {
        self.payload_bytes.set(self.payload_bytes.get() + bytes);
    }

    fn release(&self, bytes: u64) {
        let held = self.payload_bytes.get();
        assert!(bytes <= held, "releasing {bytes} bytes of {held}");
        self.payload_bytes.set(held - bytes);
    }

    /// Works on the requests in flight and queues the replies of those that are done. The queue is
    /// bounded by the requests in flight.
    fn work(&self, cx: &mut Context<'_>) {
        let mut working = self.working.borrow_mut();
        while let Poll::Ready(Some(worked)) = Pin::new(&mut *working).poll_next(cx) {
            self.release(worked.payload_bytes);
            self.hold(body_bytes(&worked.reply));
            self.replies.borrow_mut().push_back(worked.reply);
            self.changed();
        }
    }

    /// Writes the replies, all that are ready at once. When nobody listens any more they are
    /// dropped, so that what is still in flight can end.
    async fn send(&self, stream: &impl Stream) {
        let mut is_heard = true;
        while let Some(batch) = self.gather().await {
            if is_heard {
                let mut parts = Vec::with_capacity(2 * batch.len());
                for reply in &batch {
                    parts.push(IoSlice::new(reply.head()));
                    if !reply.body.is_empty() {
                        parts.push(IoSlice::new(&reply.body));
                    }
                }
                if let Err(error) = stream.write_all(&mut parts).await {
                    is_heard = false;
                    self.end_by(End::Broken(error));
                }
            }
            for reply in batch {
                self.release(body_bytes(&reply));
                self.requests.set(self.requests.get() - 1);
            }
            self.changed();
        }
    }

    /// Waits for replies and takes them, with the memory of their queue: a client that falls idle
    /// leaves none behind. None: there will be no more.
    async fn gather(&self) -> Option<VecDeque<Reply>> {
        poll_fn(|_| {
            let mut replies = self.replies.borrow_mut();
            let count = gathered(&replies);
            if count > 0 {
                let later = replies.split_off(count);
                Poll::Ready(Some(std::mem::replace(&mut *replies, later)))
            } else if self.is_worked_off() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Nothing is in flight and nothing more will be started.
    fn is_worked_off(&self) -> bool {
        !self.is_serving() && self.working.borrow().is_empty()
    }

    /// Returns once only the client can hold up the end of the connection.
    async fn until_only_unsent(&self) {
        poll_fn(|_| {
            if self.is_worked_off() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Returns once the connection ends by its client: only a server that stops has one that waits.
    async fn until_client_gone(&self) {
        poll_fn(|_| match *self.end.borrow() {
            None | Some(End::Stopped) => Poll::Pending,
            Some(_) => Poll::Ready(()),
        })
        .await;
    }

    /// Reads into the inbox until the client closes or breaks the connection.
    async fn fill(&self, stream: &impl Stream, spares: &RefCell<Spares>) -> End {
        loop {
            let mut buffer = self.lent(spares).await;
            match stream.read_now(&mut buffer).await {
                Ok(Some(0)) => return End::Vanished,
                Ok(Some(_)) => {
                    let mut inbox = self.inbox.borrow_mut();
                    inbox.put(buffer, &mut spares.borrow_mut());
                    self.changed();
                    continue;
                }
                Ok(None) => {
                    let mut inbox = self.inbox.borrow_mut();
                    inbox.put_unread(buffer, &mut spares.borrow_mut());
                }
                Err(error) => return End::Broken(error),
            }
            if let Err(error) = stream.readable().await {
                return End::Broken(error);
            }
        }
    }

    async fn lent(&self, spares: &RefCell<Spares>) -> Vec<u8> {
        poll_fn(|_| {
            let lent = self.inbox.borrow_mut().lend(&mut spares.borrow_mut());
            lent.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// How many replies go in one write: at least one, if there is any.
fn gathered(replies: &VecDeque<Reply>) -> usize {
    let mut bytes = 0;
    let some = replies.iter().take(GATHERED_REPLIES_MAX);
    let fitting = some.take_while(|reply| {
        let fits = bytes < GATHERED_BYTES_MAX;
        bytes += reply.body.len();
        fits
    });
    fitting.count()
}

fn body_bytes(reply: &Reply) -> u64 {
    u64::try_from(reply.body.len()).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests;
