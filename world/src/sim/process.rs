//! A process of a simulated host: its tasks, and the world as it sees it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::clock::Sleep;
use super::{HostId, Pid, Sim, SimFile, SimListener, SimStore, SimStream};
use crate::exec::Executor;
use crate::{Address, DiskError, Instant, OpenMode, UnixTime, World};

/// The tasks of a process, and whether it lives.
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) host: HostId,
    /// `host#pid`, for the trace.
    pub(super) label: String,
    executor: Executor,
    state: Cell<State>,
    yielded: Yielded,
    /// What its monotonic clock shows more than the simulation's.
    clock_ahead: Duration,
}

/// Tasks that let all others that are ready go first. As the next task is chosen by chance, that is
/// certain only when no other is left.
#[derive(Default)]
struct Yielded {
    wakers: RefCell<Vec<Waker>>,
    steps: Cell<u32>,
}

/// Where tasks never cease to be ready, a task that yielded goes on after so many steps of them.
const YIELDED_STEPS_MAX: u32 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Dead,
}

/// 2026-11-20: what the wall clocks show at the start, give or take.
const UNIX_MS_AT_START: u64 = 1_795_132_800_000;

impl Process {
    pub(super) fn new(pid: Pid, host: HostId, label: String, clock_ahead: Duration) -> Self {
        Self {
            pid,
            host,
            label,
            executor: Executor::new(|| ()),
            state: Cell::new(State::Running),
            yielded: Yielded::default(),
            clock_ahead,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.state.get() != State::Dead
    }

    pub(super) fn pause(&self) {
        if self.is_alive() {
            self.state.set(State::Paused);
        }
    }

    pub(super) fn resume(&self) {
        if self.is_alive() {
            self.state.set(State::Running);
        }
    }

    /// Drops all tasks where they stand.
    pub(super) fn end(&self) {
        self.state.set(State::Dead);
        self.executor.kill();
    }

    pub(super) fn ready_count(&self) -> usize {
        match self.state.get() {
            State::Running => {
                self.wake_yielded();
                self.executor.ready_count()
            }
            State::Paused | State::Dead => 0,
        }
    }

    pub(super) fn run_ready(&self, skip: usize) {
        self.yielded.steps.set(self.yielded.steps.get() + 1);
        self.executor.run_ready(skip);
    }

    fn wake_yielded(&self) {
        let patient = self.yielded.steps.get() < YIELDED_STEPS_MAX;
        if patient && self.executor.ready_count() > 0 {
            return;
        }
        self.yielded.steps.set(0);
        let wakers = std::mem::take(&mut *self.yielded.wakers.borrow_mut());
        wakers.into_iter().for_each(Waker::wake);
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            self.yielded.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A dead process starts nothing: its destructors may try.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.is_alive() {
            self.executor.spawn(task);
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.label, self.state.get())
    }
}

/// The world of one simulated process.
#[derive(Clone)]
pub struct SimWorld {
    pub(super) sim: Sim,
    pub(super) process: Rc<Process>,
}

impl SimWorld {
    pub fn host(&self) -> HostId {
        self.process.host
    }

    pub fn pid(&self) -> Pid {
        self.process.pid
    }

    /// The object store as this process reaches it.
    pub fn store(&self) -> SimStore {
        SimStore::of_process(self)
    }

    /// False once the process was killed; its futures never finish from then on.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    pub(super) fn trace(&self, what: fmt::Arguments<'_>) {
        self.sim.trace_line(&self.process.label, what);
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimWorld({})", self.process.label)
    }
}

impl World for SimWorld {
    type File = SimFile;
    type Stream = SimStream;
    type Listener = SimListener;
    type Store = SimStore;

    fn now(&self) -> Instant {
        self.sim.now() + self.process.clock_ahead
    }

    fn unix_time(&self) -> UnixTime {
        let skew_ms = self.sim.wall_skew_ms(self.process.host);
        UnixTime(UNIX_MS_AT_START + skew_ms + self.sim.now().as_nanos() / 1_000_000)
    }

    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()> {
        let ahead = u64::try_from(self.process.clock_ahead.as_nanos()).unwrap_or(u64::MAX);
        let nanos = match deadline.as_nanos() {
            u64::MAX => u64::MAX,
            nanos => nanos.saturating_sub(ahead),
        };
        Sleep::new(self.sim.clone(), Instant::from_nanos(nanos))
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.sim.chance(|chance| chance.fill(bytes));
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.process.spawn(task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        self.process.yield_now()
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let took = self.sim.delay(|delays| delays.compute);
        self.sim.sleep(took).await;
        work()
    }

    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = Result<SimFile, DiskError>> {
        SimFile::open(self.clone(), path.to_owned(), mode)
    }

    fn listen(&self, at: &Address) -> impl Future<Output = io::Result<SimListener>> {
        SimListener::bind(self.clone(), at.clone())
    }

    fn connect(&self, to: &Address) -> impl Future<Output = io::Result<SimStream>> {
        SimStream::connect(self.clone(), to.clone())
    }
}
