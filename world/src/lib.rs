//! Everything a process does not control: time, chance, tasks, disk, sockets, object store.
//!
//! The rest of the house is written against [`World`] alone, so the very code that ships runs on
//! io_uring ([`linux`]) and in deterministic simulation ([`sim`]), where one seed decides every
//! delay, fault and crash. `contract` holds one suite per seam and runs on both.
//!
//! Deliberately absent: any unconditional put of an object, any wall-clock time that decides
//! something, any blocking call inside a shard.

pub mod buf;
pub mod contract;
pub mod disk;
pub mod exec;
pub mod linux;
pub mod net;
pub mod sim;
pub mod store;
pub mod sync;
pub mod time;

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;

pub use buf::Buf;
pub use disk::{DiskError, DiskErrorKind, File, OpenMode};
pub use net::{Address, Listener, Peer, Stream};
pub use store::{ETag, Listed, Object, Store, StoreError, StoreErrorKind};
pub use time::{Instant, UnixTime};

/// One shard's view of the outside: a cheap handle, cloned into whoever needs it.
///
/// A world belongs to one thread; its futures are not `Send` and need no locks.
pub trait World: Clone + Debug + 'static {
    type File: File;
    type Stream: Stream;
    type Listener: Listener<Stream = Self::Stream>;
    type Store: Store;

    /// Monotonic time since an arbitrary origin of this process.
    fn now(&self) -> Instant;

    /// Wall time, for people to read. Nothing may be decided by it.
    fn unix_time(&self) -> UnixTime;

    /// Returns at or shortly after `deadline`.
    fn sleep_until(&self, deadline: Instant) -> impl Future<Output = ()>;

    /// Fills `bytes` from the only source of chance there is.
    fn fill_random(&self, bytes: &mut [u8]);

    /// Starts a task on this shard. It ends by returning; nothing cancels it but the end of the
    /// process (in simulation: a crash of its host).
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Lets every other task that is ready run before the caller goes on.
    fn yield_now(&self) -> impl Future<Output = ()>;

    /// Runs work that only computes (compression, hashing, sealing) away from the shard, so that it
    /// never delays a request. In simulation it runs in place.
    fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T>;

    /// Opens a file; creates it and its folder where `mode` says so.
    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = Result<Self::File, DiskError>>;

    /// Binds an address. A left-over unix socket that nobody answers on is replaced.
    fn listen(&self, at: &Address) -> impl Future<Output = std::io::Result<Self::Listener>>;

    /// Connects to an address.
    fn connect(&self, to: &Address) -> impl Future<Output = std::io::Result<Self::Stream>>;

    /// A random 128-bit id: such names never repeat (protocol rule 12).
    fn random_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.fill_random(&mut id);
        id
    }

    /// Returns after `duration`.
    fn sleep(&self, duration: std::time::Duration) -> impl Future<Output = ()> {
        self.sleep_until(self.now() + duration)
    }
}
