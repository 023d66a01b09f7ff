//! One client connection's hold on an export: what it was told when it came stays true for it.

use std::rc::Rc;

use bytes::Bytes;
use world::{Peer, World};

use super::{Export, Role};
use crate::device::{Access, BlockDevice, Fua, IoError, Run};
use crate::meter::Histogram;

/// Stands for one connection; its end may be the beginning of the export's (rule 15).
#[derive(Debug)]
pub struct Connection<W: World> {
    export: Rc<Export<W>>,
    peer: Peer,
    /// As announced: a client that was told "read-only" never writes, whatever becomes of the
    /// export; one that was told a size keeps it until it connects again.
    access: Access,
    size_bytes: u64,
}

impl<W: World> Connection<W> {
    pub(crate) fn new(export: Rc<Export<W>>, peer: &Peer) -> Self {
        export.clients.join(peer);
        // The grace time is over: the sync task must not wake for it.
        export.orders.wake.notify_one();
        let access = match export.role() {
            Role::ReadWrite => Access::ReadWrite,
            Role::ReadOnly
            | Role::Damaged
            | Role::Leaving
            | Role::Fenced
            | Role::Vanished
            | Role::Closed => Access::ReadOnly,
        };
        Self {
            access,
            size_bytes: export.size_bytes(),
            peer: peer.clone(),
            export,
        }
    }

    pub fn export(&self) -> &Rc<Export<W>> {
        &self.export
    }

    /// Counts how long it took, if it succeeded: a refusal at once says nothing of the disk.
    async fn timed<T>(
        &self,
        histogram: &Histogram,
        operation: impl Future<Output = Result<T, IoError>>,
    ) -> Result<T, IoError> {
        let world = self.export.world();
        let started = world.now();
        let outcome = operation.await;
        if outcome.is_ok() {
            histogram.record(world.now() - started);
        }
        outcome
    }

    fn may_write(&self) -> Result<(), IoError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(IoError::ReadOnly),
        }
    }
}

impl<W: World> Drop for Connection<W> {
    fn drop(&mut self) {
        let now = self.export.world().now();
        self.export.clients.leave(&self.peer, now);
        self.export.orders.wake.notify_one();
        self.export.orders.news.notify_waiters();
    }
}

impl<W: World> BlockDevice for Connection<W> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn read(&self, at: u64, len: u64) -> Result<Bytes, IoError> {
        let export = &self.export;
        let read = self.timed(&export.meter().read, export.read(at, len));
        read.await
    }

    async fn write(&self, at: u64, data: Bytes, fua: Fua) -> Result<(), IoError> {
        self.may_write()?;
        let export = &self.export;
        let write = self.timed(&export.meter().write, export.write(at, data, fua));
        write.await
    }

    async fn zero(&self, at: u64, len: u64, fua: Fua) -> Result<(), IoError> {
        self.may_write()?;
        let export = &self.export;
        let zero = self.timed(&export.meter().zero, export.zero(at, len, fua));
        zero.await
    }

    async fn flush(&self) -> Result<(), IoError> {
        let export = &self.export;
        self.timed(&export.meter().flush, export.flush()).await
    }

    async fn prefetch(&self, at: u64, len: u64) -> Result<(), IoError> {
        self.export.prefetch(at, len).await
    }

    async fn status(&self, at: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, IoError> {
        self.export.status(at, len, runs_max).await
    }
}
