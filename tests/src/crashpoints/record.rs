//! The recorder: an NBD server on a real socket, with the front door that ships and a device behind it
//! that holds everything in memory and writes down, in one order, what came and what was answered.
//!
//! It takes its time over answers, so that clients have several requests in flight as they would
//! before a real disk, and what waits for an answer shows in the record as having come after it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use glidefs::device::{
    Access, BlockDevice, ConnectError, Exports, Fua, IoError, Look, Run, RunKind,
};
use glidefs::nbd::{Limits, Server};
use world::linux::{LinuxConfig, LinuxWorld};
use world::sync::watch;
use world::{Address, Peer, World};

use super::stream::{Ask, Content, Event, Stream};
use crate::server::wait_until;

const NAME: &str = "record";
const WRITE_TAKES: Duration = Duration::from_micros(150);
const FLUSH_TAKES: Duration = Duration::from_micros(600);
const START_WAIT_MAX: Duration = Duration::from_secs(20);

/// What whoever does the work may know while it is recorded. Read after the kernel has told that
/// something is durable, it says what must be there from now on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    came: AtomicUsize,
    durable: AtomicUsize,
}

impl Progress {
    /// Requests that have come.
    pub(super) fn came(&self) -> usize {
        self.came.load(Ordering::Acquire)
    }

    /// The shortest prefix of the requests that holds all that the last answered flush is about.
    pub(super) fn durable(&self) -> usize {
        self.durable.load(Ordering::Acquire)
    }
}

/// A running recorder.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) progress: Arc<Progress>,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<Stream>>,
}

impl Recorder {
    pub(super) fn start(folder: &Path, size_bytes: u64) -> Result<Self> {
        let socket = folder.join("record.sock");
        let progress = Arc::<Progress>::default();
        let (stop, stopped) = watch::channel(false);
        let (at, shown) = (Address::Unix(socket.clone()), Arc::clone(&progress));
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || record(at, size_bytes, shown, stopped))?;
        ensure!(
            wait_until(START_WAIT_MAX, || socket.exists() || thread.is_finished()),
            "the recorder does not listen"
        );
        Ok(Self {
            progress,
            socket,
            stop,
            thread,
        })
    }

    pub(super) fn uri(&self) -> String {
        format!("nbd+unix:///{NAME}?socket={}", self.socket.display())
    }

    /// Ends the recording; every client must have left.
    pub(super) fn finish(self) -> Result<Stream> {
        self.stop.send_replace(true);
        let ended = self.thread.join();
        ended.map_err(|_panic| anyhow!("the recorder panicked"))?
    }
}

fn record(
    at: Address,
    size_bytes: u64,
    progress: Arc<Progress>,
    stopped: watch::Receiver<bool>,
) -> Result<Stream> {
    let edge = tokio::runtime::Builder::new_current_thread().build()?;
    let config = LinuxConfig::new(edge.handle().clone(), 1);
    world::linux::run(config, |world| async move {
        let device = Rc::new(Device {
            world: world.clone(),
            size_bytes,
            progress,
            record: RefCell::default(),
        });
        let listener = world.listen(&at).await.context("cannot listen")?;
        let exports = Rc::new(Recorded(Rc::clone(&device)));
        let server = Server::new(world, exports, Limits::default(), stopped);
        server.serve(listener).await;
        let record = device.record.take();
        Ok(Stream {
            size_bytes,
            asks: record.asks,
            events: record.events,
        })
    })?
}

struct Recorded(Rc<Device>);

impl Recorded {
    fn check(name: &str) -> Result<(), ConnectError> {
        if name == NAME {
            return Ok(());
        }
        let text = format!("there is no export `{name}`; there is `{NAME}`");
        Err(ConnectError::Unknown(text))
    }
}

impl Exports for Recorded {
    type Device = Device;

    async fn connect(&self, name: &str, _peer: &Peer) -> Result<Rc<Device>, ConnectError> {
        Self::check(name).map(|()| Rc::clone(&self.0))
    }

    async fn look(&self, name: &str) -> Result<Look, ConnectError> {
        Self::check(name).map(|()| Look {
            size_bytes: self.0.size_bytes,
            access: Access::ReadWrite,
        })
    }

    async fn names(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }
}

struct Device {
    world: LinuxWorld,
    size_bytes: u64,
    progress: Arc<Progress>,
    record: RefCell<Record>,
}

#[derive(Default)]
struct Record {
    content: Content,
    asks: Vec<Ask>,
    events: Vec<Event>,
    /// One more than the largest number that was answered.
    answered: usize,
}

impl Device {
    /// Writes a request down, takes its time, and writes its answer down.
    async fn perform(&self, ask: Ask, takes: Duration) -> Result<(), IoError> {
        let is_flush = ask == Ask::Flush;
        let (number, covers) = {
            let mut record = self.record.borrow_mut();
            let number = record.asks.len();
            record.content.apply(&ask);
            record.asks.push(ask);
            record.events.push(Event::Came(number));
            self.progress.came.store(number + 1, Ordering::Release);
            (number, record.answered)
        };
        self.world.sleep(takes).await;
        let mut record = self.record.borrow_mut();
        record.events.push(Event::Answered(number));
        record.answered = record.answered.max(number + 1);
        if is_flush {
            self.progress.durable.fetch_max(covers, Ordering::AcqRel);
        }
        Ok(())
    }
}

impl BlockDevice for Device {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    async fn read(&self, at: u64, len: u64) -> Result<Bytes, IoError> {
        let len = usize::try_from(len).expect("a request fits memory");
        let mut out = vec![0; len];
        self.record.borrow().content.read(at, &mut out);
        Ok(out.into())
    }

    async fn write(&self, at: u64, data: Bytes, fua: Fua) -> Result<(), IoError> {
        // A copy: what came in may be a part of a much larger buffer.
        let data = Bytes::copy_from_slice(&data);
        let fua = fua == Fua::Yes;
        let ask = Ask::Write { at, data, fua };
        self.perform(ask, WRITE_TAKES).await
    }

    async fn zero(&self, at: u64, len: u64, fua: Fua) -> Result<(), IoError> {
        let fua = fua == Fua::Yes;
        self.perform(Ask::Zero { at, len, fua }, WRITE_TAKES).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.perform(Ask::Flush, FLUSH_TAKES).await
    }

    async fn prefetch(&self, _at: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    async fn status(&self, _at: u64, len: u64, _runs_max: usize) -> Result<Vec<Run>, IoError> {
        let kind = RunKind::Data;
        Ok(vec![Run { len, kind }])
    }
}
