//! One client connection's hold on an export: what it was told when it came stays true for it.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use world::{Instant, Peer, World};

use super::{Export, Role};
use crate::device::{Access, BlockDevice, Fua, IoError, Run};
use crate::meter::Histogram;

/// Stands for one connection; its end may be the beginning of the export's (rule 15).
#[derive(Debug)]
pub struct Connection<W: World> {
    /// Of one that was prepared: until another one takes its place.
    export: RefCell<Rc<Export<W>>>,
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
        Self {
            access: Self::access_to(&export),
            size_bytes: export.size_bytes(),
            peer: peer.clone(),
            export: RefCell::new(export),
        }
    }

    /// What is announced to whoever connects now.
    pub(crate) fn access_to(export: &Export<W>) -> Access {
        match export.role() {
            Role::ReadWrite | Role::Prepared => Access::ReadWrite,
            Role::ReadOnly
            | Role::Damaged
            | Role::Leaving
            | Role::Fenced
            | Role::Vanished
            | Role::Closed => Access::ReadOnly,
        }
    }

    /// What the client is connected to now.
    pub fn export(&self) -> Rc<Export<W>> {
        let mut export = self.export.borrow_mut();
        while let Some(next) = export.successor().cloned() {
            *export = next;
        }
        Rc::clone(&export)
    }

    /// The same once it is not one that waits to be promoted.
    async fn promoted(&self) -> Rc<Export<W>> {
        loop {
            let export = self.export();
            if export.role() != Role::Prepared || export.stops() {
                return export;
            }
            // No wait in between: nothing is missed.
            export.orders.news.notified().await;
        }
    }

    /// What is asked of an export that gives way to another one meanwhile is asked of that one.
    async fn asked<T>(
        &self,
        ask: impl AsyncFn(&Rc<Export<W>>) -> Result<T, IoError>,
    ) -> Result<T, IoError> {
        loop {
            let export = self.export();
            let answer = ask(&export).await;
            if answer.is_ok() || export.successor().is_none() {
                return answer;
            }
        }
    }

    /// Counts how long it took, also if it failed in the end; but a refusal at once says nothing of the disk.
    fn record<T>(
        export: &Export<W>,
        histogram: &Histogram,
        started: Instant,
        outcome: &Result<T, IoError>,
    ) {
        if matches!(outcome, Ok(_) | Err(IoError::Io)) {
            histogram.record(export.world().now() - started);
        }
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
        let export = self.export();
        let now = export.world().now();
        export.clients.leave(&self.peer, now);
        export.orders.wake.notify_one();
        export.orders.news.notify_waiters();
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
        self.asked(async |export| {
            let started = export.world().now();
            let outcome = export.read(at, len).await;
            Self::record(export, &export.meter().read, started, &outcome);
            outcome
        })
        .await
    }

    async fn write(&self, at: u64, data: Bytes, fua: Fua) -> Result<(), IoError> {
        self.may_write()?;
        let export = self.promoted().await;
        let started = export.world().now();
        let outcome = export.write(at, data, fua).await;
        Self::record(&export, &export.meter().write, started, &outcome);
        outcome
    }

    async fn zero(&self, at: u64, len: u64, fua: Fua) -> Result<(), IoError> {
        self.may_write()?;
        let export = self.promoted().await;
        let started = export.world().now();
        let outcome = export.zero(at, len, fua).await;
        Self::record(&export, &export.meter().zero, started, &outcome);
        outcome
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.asked(async |export| {
            let started = export.world().now();
            let outcome = export.flush().await;
            Self::record(export, &export.meter().flush, started, &outcome);
            outcome
        })
        .await
    }

    async fn prefetch(&self, at: u64, len: u64) -> Result<(), IoError> {
        self.asked(async |export| export.prefetch(at, len).await)
            .await
    }

    async fn status(&self, at: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, IoError> {
        self.asked(async |export| export.status(at, len, runs_max).await)
            .await
    }
}
