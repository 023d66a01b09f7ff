//! The world on Linux: one io_uring per shard thread, system calls for what never waits, and the
//! tokio runtime of the caller (the *edge*) for object stores and computing.
//!
//! [`run`] makes a thread a shard. Everything here but [`LinuxStore`] and [`LinuxConfig`] belongs to
//! the thread it was made on.
//!
//! Deliberately absent: threads of its own (the caller starts them), tokio in the data path, any
//! reading of configuration.

mod disk;
mod heap;
mod net;
mod ring;
mod shard;
mod store;
mod timers;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::Handle;

pub use disk::LinuxFile;
pub use heap::return_large_buffers;
pub use net::{LinuxListener, LinuxStream};
pub use shard::run;
pub use store::{LinuxStore, ReadKeys, StoreConfig, StoreConfigError, StoreKeys};

use crate::sync::Semaphore;
use crate::{Address, DiskError, Instant, OpenMode, UnixTime, World, exec};
use shard::Shard;

/// What a shard needs from its process. Clones share the threads for computing.
#[derive(Clone)]
pub struct LinuxConfig {
    edge: Handle,
    compute: Arc<Semaphore>,
}

impl LinuxConfig {
    /// `edge` is the runtime whose blocking threads compute, at most `compute_threads_max` of them
    /// at a time for all shards that share this configuration; more work waits its turn.
    pub fn new(edge: Handle, compute_threads_max: usize) -> Self {
        assert!(compute_threads_max > 0, "nothing could be computed");
        Self {
            edge,
            compute: Arc::new(Semaphore::new(compute_threads_max)),
        }
    }
}

impl fmt::Debug for LinuxConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxConfig").finish_non_exhaustive()
    }
}

/// One shard's view of Linux. See [`run`].
#[derive(Clone, Debug)]
pub struct LinuxWorld {
    shard: Rc<Shard>,
}

impl LinuxWorld {
    fn new(shard: &Rc<Shard>) -> Self {
        Self {
            shard: Rc::clone(shard),
        }
    }
}

impl World for LinuxWorld {
    type File = LinuxFile;
    type Stream = LinuxStream;
    type Listener = LinuxListener;
    type Store = LinuxStore;

    fn now(&self) -> Instant {
        shard::now()
    }

    fn unix_time(&self) -> UnixTime {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        UnixTime(seconds.saturating_mul(1000) + nanos / 1_000_000)
    }

    async fn sleep_until(&self, deadline: Instant) {
        if self.now() < deadline {
            self.shard.timers.sleep_until(deadline).await;
        }
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        fill_random(bytes);
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.shard.executor.spawn(task);
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        exec::yield_now()
    }

    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let config = &self.shard.config;
        let permit = Arc::clone(&config.compute).acquire_owned().await;
        let work = move || {
            shard::give_way();
            let output = work();
            drop(permit);
            output
        };
        match config.edge.spawn_blocking(work).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("the edge runtime ended before its shards: {error}"),
            },
        }
    }

    async fn open(&self, path: &Path, mode: OpenMode) -> Result<LinuxFile, DiskError> {
        LinuxFile::open(&self.shard, path, mode)
    }

    async fn listen(&self, at: &Address) -> io::Result<LinuxListener> {
        LinuxListener::bind(&self.shard, at).await
    }

    async fn connect(&self, to: &Address) -> io::Result<LinuxStream> {
        LinuxStream::connect(&self.shard, to).await
    }
}

/// The kernel's random generator, which blocks only in the first moments of a machine's life.
fn fill_random(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut *bytes, flags) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel has no random numbers: {error}"),
        }
    }
}
