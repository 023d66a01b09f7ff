//! One shard thread: run what is ready, hand operations to the kernel, sleep if there is nothing.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::ring::{Doorbell, Ring};
use super::timers::Timers;
use super::{LinuxConfig, LinuxWorld};
use crate::Instant;
use crate::exec::{Executor, yield_now};

/// Tasks polled between two looks at the kernel's answers: bounds how long an answer waits.
const TASKS_PER_TURN_MAX: u32 = 128;
/// System calls that one task may make in a row without letting others run. A peer that always has
/// more to read would otherwise keep the shard for itself.
const CALLS_PER_POLL_MAX: u32 = 32;
/// How often the tasks of an ending shard may start new ones from their destructors.
const KILL_ROUNDS_MAX: u32 = 16;

/// How far threads that compute step back (`nice`): a third of the share of a thread that serves.
const COMPUTE_NICE: i32 = 5;

/// What all handles of one shard share.
pub(crate) struct Shard {
    pub(crate) executor: Executor,
    pub(crate) ring: Ring,
    pub(crate) timers: Timers,
    pub(crate) config: LinuxConfig,
    doorbell: Arc<Doorbell>,
    calls_left: Cell<u32>,
}

/// Runs a shard on the calling thread until the future that `main` makes has completed; then ends
/// every other task of the shard, cancels what is in flight and waits for it.
///
/// Fails if the kernel gives no io_uring.
pub fn run<T, F>(config: LinuxConfig, main: impl FnOnce(LinuxWorld) -> F) -> io::Result<T>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let running = Running(Rc::new(Shard::new(config)?));
    let shard = &running.0;
    let outcome: Rc<RefCell<Option<T>>> = Rc::default();
    let (told, future) = (Rc::clone(&outcome), main(LinuxWorld::new(shard)));
    shard.executor.spawn(async move {
        let output = future.await;
        *told.borrow_mut() = Some(output);
    });
    loop {
        shard.run_tasks();
        // Before the wait: there may be nothing left that would end it.
        if let Some(output) = outcome.borrow_mut().take() {
            return Ok(output);
        }
        shard.wait()?;
    }
}

/// Ends the shard on every way out, a panic too.
struct Running(Rc<Shard>);

impl Drop for Running {
    fn drop(&mut self) {
        let executor = &self.0.executor;
        for _ in 0..KILL_ROUNDS_MAX {
            executor.kill();
            if executor.task_count() == 0 {
                break;
            }
        }
        self.0.ring.close();
    }
}

impl Shard {
    fn new(config: LinuxConfig) -> io::Result<Self> {
        let doorbell = Arc::new(Doorbell::new()?);
        let bell = Arc::clone(&doorbell);
        Ok(Self {
            executor: Executor::new(move || bell.ring()),
            ring: Ring::new(Arc::clone(&doorbell))?,
            timers: Timers::default(),
            config,
            doorbell,
            calls_left: Cell::new(0),
        })
    }

    fn run_tasks(&self) {
        for _ in 0..TASKS_PER_TURN_MAX {
            self.calls_left.set(CALLS_PER_POLL_MAX);
            if !self.executor.run_next() {
                break;
            }
        }
        self.timers.fire(now());
    }

    /// Hands operations to the kernel and takes its answers; sleeps if no task is ready.
    fn wait(&self) -> io::Result<()> {
        self.doorbell.announce_sleep();
        // After the announcement: a wake from another thread is either seen here or rings.
        let timeout = if self.executor.ready_count() > 0 {
            Some(Duration::ZERO)
        } else {
            self.timers.next_deadline().map(|at| at.since(now()))
        };
        if timeout == Some(Duration::ZERO) {
            self.doorbell.announce_awake();
        }
        let turned = self.ring.turn(timeout);
        self.doorbell.announce_awake();
        turned
    }

    /// To be awaited before a system call that may succeed at once again and again.
    pub(crate) async fn take_turns(&self) {
        if self.calls_left.get() == 0 {
            yield_now().await;
        }
        self.calls_left.set(self.calls_left.get().saturating_sub(1));
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("executor", &self.executor)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Lets the calling thread come after shards and guests where all of them want the processor: what
/// it computes can wait, an answer cannot.
pub(crate) fn give_way() {
    if !GIVES_WAY.replace(true) {
        // Of a thread, on Linux. Best effort: without it everything is right and slower.
        rustix::process::setpriority_process(None, COMPUTE_NICE).ok();
    }
}

/// CLOCK_MONOTONIC: stands still while the machine is suspended, never jumps.
pub(crate) fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;
    use crate::sync::oneshot;

    fn edge() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime")
    }

    /// Says that it was dropped.
    struct Tell(Rc<Cell<bool>>);

    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn main_ends_the_shard_and_its_other_tasks() {
        let edge = edge();
        let dropped = Rc::new(Cell::new(false));
        let tell = Tell(Rc::clone(&dropped));
        let config = LinuxConfig::new(edge.handle().clone(), 1);
        let output = run(config, |world| async move {
            let sleeper = world.clone();
            world.spawn(async move {
                let _tell = tell;
                sleeper.sleep(Duration::from_secs(3600)).await;
            });
            world.yield_now().await;
            world.sleep(Duration::from_nanos(1)).await;
            7
        });
        assert_eq!(output.expect("io_uring is available"), 7);
        assert!(dropped.get());
    }

    #[test]
    fn a_panic_on_a_computing_thread_reaches_who_waits_for_it() {
        let edge = edge();
        let config = LinuxConfig::new(edge.handle().clone(), 1);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(config, |world| async move {
                assert_eq!(world.compute(|| 3).await, 3);
                let () = world.compute(|| panic!("on purpose")).await;
            })
        }));
        assert!(outcome.is_err());
    }

    #[test]
    fn another_thread_wakes_a_sleeping_shard() {
        let edge = edge();
        let config = LinuxConfig::new(edge.handle().clone(), 1);
        let (to_shard, mut from_thread) = crate::sync::channel::<u32>(1);
        let (ready, told) = oneshot::channel();
        let sum = std::thread::scope(|scope| {
            scope.spawn(move || {
                told.blocking_recv().expect("the shard runs");
                for number in 1..=100 {
                    to_shard.blocking_send(number).expect("the shard listens");
                }
            });
            run(config, |_world| async move {
                ready.send(()).expect("the thread waits");
                let mut sum = 0;
                while let Some(number) = from_thread.recv().await {
                    sum += number;
                }
                sum
            })
        });
        assert_eq!(sum.expect("io_uring is available"), 5050);
    }
}
