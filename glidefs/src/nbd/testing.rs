//! The smallest world that a server can live in, for the tests of this module: time that moves by
//! hand, sockets in memory, a device in memory. A test acts as the client, without any waiting:
//! it sends bytes, lets the server run until nothing is ready, and looks at what came back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use world::exec::Executor;
use world::store::Part;
use world::sync::watch;
use world::{
    Address, Buf, DiskError, ETag, File, Instant, Listed, Listener, Object, OpenMode, Peer, Store,
    StoreError, Stream, UnixTime, World,
};

use super::{Limits, Server};
use crate::device::{Access, BlockDevice, ConnectError, Exports, Fua, IoError, Look, Run, RunKind};

#[derive(Clone, Debug)]
pub(super) struct TestWorld(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    executor: Executor,
    now: Cell<Instant>,
    sleepers: RefCell<Vec<Waker>>,
}

impl TestWorld {
    pub(super) fn new() -> Self {
        Self(Rc::new(Inner {
            executor: Executor::new(|| ()),
            now: Cell::default(),
            sleepers: RefCell::default(),
        }))
    }

    /// Runs until nothing is ready.
    pub(super) fn run(&self) {
        while self.0.executor.run_next() {}
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.now.set(self.now() + by);
        for sleeper in self.0.sleepers.take() {
            sleeper.wake();
        }
        self.run();
    }
}

impl World for TestWorld {
    type File = Never;
    type Stream = TestStream;
    type Listener = TestListener;
    type Store = Never;

    fn now(&self) -> Instant {
        self.0.now.get()
    }

    fn unix_time(&self) -> UnixTime {
        UnixTime(0)
    }

    async fn sleep_until(&self, deadline: Instant) {
        poll_fn(|cx| {
            if self.now() >= deadline {
                return Poll::Ready(());
            }
            self.0.sleepers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        bytes.fill(4);
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        world::exec::yield_now()
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        work()
    }

    async fn open(&self, _path: &Path, _mode: OpenMode) -> Result<Never, DiskError> {
        unreachable!("the server has no disk")
    }

    async fn listen(&self, _at: &Address) -> io::Result<TestListener> {
        unreachable!("tests make their listeners")
    }

    async fn connect(&self, _to: &Address) -> io::Result<TestStream> {
        unreachable!("tests make their streams")
    }
}

/// What the server never touches.
#[derive(Clone, Debug)]
pub(super) enum Never {}

impl File for Never {
    async fn read_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }

    fn read_now(&self, _at: u64, _into: &mut [u8]) -> bool {
        match *self {}
    }

    async fn write_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }

    async fn persist(&self) -> Result<(), DiskError> {
        match *self {}
    }

    async fn size(&self) -> Result<u64, DiskError> {
        match *self {}
    }

    async fn grow(&self, _to: u64) -> Result<(), DiskError> {
        match *self {}
    }

    async fn forget_cached(&self) -> Result<(), DiskError> {
        match *self {}
    }

    async fn read_device_at(&self, _at: u64, _buf: Buf) -> (Buf, Result<(), DiskError>) {
        match *self {}
    }
}

impl Store for Never {
    async fn get(&self, _key: &str, _part: Part) -> Result<Object, StoreError> {
        match *self {}
    }

    async fn create(&self, _key: &str, _body: Bytes) -> Result<ETag, StoreError> {
        match *self {}
    }

    async fn replace(&self, _key: &str, _seen: &ETag, _body: Bytes) -> Result<ETag, StoreError> {
        match *self {}
    }

    async fn list(
        &self,
        _prefix: &str,
        _after: Option<&str>,
        _count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        match *self {}
    }

    async fn delete(&self, _key: &str) -> Result<(), StoreError> {
        match *self {}
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    /// Whoever writes waits while this is set: the reader has stopped reading.
    stuck: Cell<bool>,
    /// Calls of read or write that moved something.
    moves: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Pipe {
    fn changed(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    fn close(&self) {
        self.closed.set(true);
        self.changed();
    }
}

/// The server's end of a connection.
#[derive(Debug)]
pub(super) struct TestStream {
    from_client: Rc<Pipe>,
    to_client: Rc<Pipe>,
}

impl Stream for TestStream {
    async fn read_now(&self, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let spare = into.capacity() - into.len();
        assert!(spare > 0, "a read into no room at all");
        let pipe = &self.from_client;
        let mut bytes = pipe.bytes.borrow_mut();
        if bytes.is_empty() && !pipe.closed.get() {
            return Ok(None);
        }
        let count = spare.min(bytes.len());
        into.extend(bytes.drain(..count));
        pipe.moves.set(pipe.moves.get() + 1);
        Ok(Some(count))
    }

    async fn readable(&self) -> io::Result<()> {
        let pipe = &self.from_client;
        poll_fn(|cx| {
            if pipe.bytes.borrow().is_empty() && !pipe.closed.get() {
                pipe.waiting.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn write_all(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let pipe = &self.to_client;
        poll_fn(|cx| {
            if pipe.closed.get() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if pipe.stuck.get() {
                pipe.waiting.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            let mut bytes = pipe.bytes.borrow_mut();
            parts.iter().for_each(|part| bytes.extend(part.iter()));
            pipe.moves.set(pipe.moves.get() + 1);
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn shutdown(&self) {
        self.from_client.close();
        self.to_client.close();
    }

    fn peer(&self) -> Peer {
        Peer::Host(Ipv4Addr::LOCALHOST.into())
    }
}

impl Drop for TestStream {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct TestListener(Rc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    streams: RefCell<VecDeque<io::Result<TestStream>>>,
    waker: RefCell<Option<Waker>>,
}

impl Listener for TestListener {
    type Stream = TestStream;

    async fn accept(&self) -> io::Result<TestStream> {
        poll_fn(|cx| {
            if let Some(stream) = self.0.streams.borrow_mut().pop_front() {
                return Poll::Ready(stream);
            }
            *self.0.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn address(&self) -> Address {
        Address::Unix("test.sock".into())
    }
}

impl TestListener {
    pub(super) fn push(&self, stream: io::Result<TestStream>) {
        self.0.streams.borrow_mut().push_back(stream);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

/// A device in memory, whose writes can be made to stall.
#[derive(Debug)]
pub(super) struct TestDevice {
    size_bytes: u64,
    pub(super) access: Cell<Access>,
    bytes: RefCell<Vec<u8>>,
    /// What is returned by everything from now on.
    pub(super) fault: Cell<Option<IoError>>,
    /// Writes wait while this is set.
    stalled: watch::Sender<bool>,
    pub(super) runs: RefCell<Vec<Run>>,
    /// What was asked, in the order in which it was begun.
    pub(super) asked: RefCell<Vec<String>>,
    pub(super) writes_done: Cell<usize>,
}

impl TestDevice {
    fn new(size_bytes: u64) -> Self {
        let length = usize::try_from(size_bytes).expect("a test device is small");
        Self {
            size_bytes,
            access: Cell::new(Access::ReadWrite),
            bytes: RefCell::new(vec![0; length]),
            fault: Cell::new(None),
            stalled: watch::Sender::new(false),
            runs: RefCell::default(),
            asked: RefCell::default(),
            writes_done: Cell::new(0),
        }
    }

    pub(super) fn stall_writes(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    fn begin(&self, asked: String, at: u64, len: u64) -> Result<std::ops::Range<usize>, IoError> {
        self.asked.borrow_mut().push(asked);
        assert!(at.is_multiple_of(512) && len.is_multiple_of(512));
        assert!(len > 0 && at + len <= self.size_bytes);
        let place = |byte: u64| usize::try_from(byte).expect("within the device");
        match self.fault.get() {
            Some(fault) => Err(fault),
            None => Ok(place(at)..place(at + len)),
        }
    }
}

impl BlockDevice for TestDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn access(&self) -> Access {
        self.access.get()
    }

    async fn read(&self, at: u64, len: u64) -> Result<Bytes, IoError> {
        let place = self.begin(format!("read {at}+{len}"), at, len)?;
        Ok(Bytes::copy_from_slice(&self.bytes.borrow()[place]))
    }

    async fn write(&self, at: u64, data: Bytes, fua: Fua) -> Result<(), IoError> {
        let len = u64::try_from(data.len()).expect("a length fits 64 bits");
        let place = self.begin(format!("write {at}+{len} {fua:?}"), at, len)?;
        let mut stalled = self.stalled.subscribe();
        stalled
            .wait_for(|stalled| !stalled)
            .await
            .expect("the device has the sender");
        self.bytes.borrow_mut()[place].copy_from_slice(&data);
        self.writes_done.set(self.writes_done.get() + 1);
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64, fua: Fua) -> Result<(), IoError> {
        let place = self.begin(format!("zero {at}+{len} {fua:?}"), at, len)?;
        self.bytes.borrow_mut()[place].fill(0);
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.begin("flush".to_owned(), 0, 512).map(drop)
    }

    async fn prefetch(&self, at: u64, len: u64) -> Result<(), IoError> {
        self.begin(format!("prefetch {at}+{len}"), at, len)
            .map(drop)
    }

    async fn status(&self, at: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, IoError> {
        self.begin(format!("status {at}+{len} {runs_max}"), at, len)?;
        Ok(self.runs.borrow().clone())
    }
}

/// One export, `disk`; other names say what is wrong with them.
#[derive(Debug)]
pub(super) struct TestExports {
    pub(super) device: Rc<TestDevice>,
}

impl TestExports {
    fn refusal(name: &str) -> Option<ConnectError> {
        let text = format!("about {name}");
        match name {
            "disk" => None,
            "invalid" => Some(ConnectError::Invalid(text)),
            "refused" => Some(ConnectError::Refused(text)),
            "unavailable" => Some(ConnectError::Unavailable(text)),
            "shutdown" => Some(ConnectError::ShuttingDown),
            _ => Some(ConnectError::Unknown(text)),
        }
    }
}

impl Exports for TestExports {
    type Device = TestDevice;

    async fn connect(&self, name: &str, _peer: &Peer) -> Result<Rc<TestDevice>, ConnectError> {
        match Self::refusal(name) {
            Some(why) => Err(why),
            None => Ok(Rc::clone(&self.device)),
        }
    }

    async fn look(&self, name: &str) -> Result<Look, ConnectError> {
        match Self::refusal(name) {
            Some(why) => Err(why),
            None => Ok(Look {
                size_bytes: self.device.size_bytes,
                access: self.device.access.get(),
            }),
        }
    }

    async fn names(&self) -> Vec<String> {
        vec!["disk".to_owned(), "other".to_owned()]
    }
}

pub(super) const DEVICE_BYTES: u64 = 64 << 20;

/// A server with one listener that is being served.
pub(super) struct House {
    pub(super) world: TestWorld,
    pub(super) device: Rc<TestDevice>,
    pub(super) server: Server<TestWorld, TestExports>,
    pub(super) listener: TestListener,
    pub(super) stop: watch::Sender<bool>,
    /// `serve` has returned.
    pub(super) is_closed: Rc<Cell<bool>>,
}

impl House {
    pub(super) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> Self {
        let world = TestWorld::new();
        let device = Rc::new(TestDevice::new(DEVICE_BYTES));
        let exports = TestExports {
            device: Rc::clone(&device),
        };
        let (stop, stopped) = watch::channel(false);
        let server = Server::new(world.clone(), Rc::new(exports), limits, stopped);
        let listener = TestListener::default();
        let is_closed = Rc::new(Cell::new(false));
        let (serving, listening, closed) = (server.clone(), listener.clone(), is_closed.clone());
        world.spawn(async move {
            serving.serve(listening).await;
            closed.set(true);
        });
        Self {
            world,
            device,
            server,
            listener,
            stop,
            is_closed,
        }
    }

    pub(super) fn client(&self) -> Client {
        let (from_client, to_client) = (Rc::<Pipe>::default(), Rc::<Pipe>::default());
        let client = Client {
            world: self.world.clone(),
            sends: Rc::clone(&from_client),
            receives: Rc::clone(&to_client),
        };
        self.listener.push(Ok(TestStream {
            from_client,
            to_client,
        }));
        self.world.run();
        client
    }
}

/// The client's end of a connection, in the hands of a test.
pub(super) struct Client {
    world: TestWorld,
    sends: Rc<Pipe>,
    receives: Rc<Pipe>,
}

impl Client {
    /// Sends, lets everybody run, and returns all that came back.
    pub(super) fn talk(&self, bytes: &[u8]) -> Vec<u8> {
        self.sends.bytes.borrow_mut().extend(bytes);
        self.sends.changed();
        self.hear()
    }

    pub(super) fn hear(&self) -> Vec<u8> {
        self.world.run();
        self.receives.bytes.take().into()
    }

    /// Sends nothing more and hears nothing more, as a process that was killed.
    pub(super) fn vanish(&self) {
        self.sends.close();
        self.receives.close();
        self.world.run();
    }

    /// Stops or goes on accepting answers.
    pub(super) fn stick(&self, stuck: bool) {
        self.receives.stuck.set(stuck);
        self.receives.changed();
        self.world.run();
    }

    /// The server has closed the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.receives.closed.get()
    }

    /// Reads and writes of the server so far.
    pub(super) fn moves(&self) -> (usize, usize) {
        (self.sends.moves.get(), self.receives.moves.get())
    }

    /// Bytes that the server has not read.
    pub(super) fn unread(&self) -> usize {
        self.sends.bytes.borrow().len()
    }
}

/// A run of data or hole, for [`TestDevice::runs`].
pub(super) fn run(len: u64, kind: RunKind) -> Run {
    Run { len, kind }
}
