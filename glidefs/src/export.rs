//! One open volume as a block device: ranges to cache calls, roles to errors.
//!
//! Promises: what is answered is in the cache log; what is read is the log's bytes over the
//! published map's; a fenced, vanished or left export answers no write. What only the store has
//! is waited for within a bound, and an error names its cause once in the log, not per request.
//!
//! ```text
//!             fenced by another epoch ──────────────► Fenced ──► (last client leaves) gone
//!            /            root gone ────────────────► Vanished
//! ReadWrite ── idle, drained ─► Leaving ─► (detached, or given up) Closed
//! Damaged   ── (the loss is accepted) Closed
//! ReadOnly  ── (last client leaves) gone; promoted: replaced by a ReadWrite export
//! Prepared  ── (prepared again) replaced by a newer one; promoted: replaced by a ReadWrite export
//! ```
//!
//! Those of a group (rule 30) are opened together, and have one role from then on ([`group`]).
//!
//! A role never goes back. An export that is opened again is a new [`Export`]: connections that
//! were told "read-only" stay so, at their cut. Only those to one that was prepared go on with what takes its place.
//!
//! Absent: what a name means, who may connect ([`registry`]); when and how data goes to the store
//! ([`crate::sync`]).

pub(crate) mod base;
pub(crate) mod causes;
pub mod clients;
pub(crate) mod confirm;
pub mod connection;
pub(crate) mod decide;
pub mod document;
pub(crate) mod frames;
pub(crate) mod group;
pub(crate) mod meter;
pub(crate) mod open;
pub(crate) mod orders;
mod reader;
pub mod registry;
pub mod shelf;
pub mod site;
mod status;
pub(crate) mod warm;

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use blockcache::{
    Cache, CacheError, CacheVolume, Known, LocalVolume, Missing, PAGE_BYTES, PageRange,
    SECTOR_BYTES,
};
use bytes::Bytes;
use world::World;

use crate::control::IoDocument;
use crate::device::{Fua, IoError};
use crate::sync::backoff::Backoff;
use crate::volume::{RootView, Volume};
use base::Base;
use causes::Causes;
use clients::Clients;
use frames::{Frames, index};
use group::Fellows;
use meter::Meter;
use orders::Orders;
use warm::Warm;

const READ_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(8),
};
/// A prefetch brings at most so much, in pieces of so much.
const PREFETCH_BYTES_MAX: u64 = 64 << 20;
const PREFETCH_PIECE_BYTES: u64 = 1 << 20;

/// What an export may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    ReadWrite,
    /// Somebody else owns the volume; this is its cut at connect.
    ReadOnly,
    /// The same, and it is about to be promoted: a live migration's other end. It is announced writable, shows the cut
    /// at which it was prepared last, and writes wait.
    Prepared,
    /// Nobody is connected, all is published, the detach is on its way.
    Leaving,
    /// Unpublished writes are missing: what is left is shown, nothing is taken and no flush is answered
    /// well before an operator has accepted the loss.
    Damaged,
    /// Another epoch exists.
    Fenced,
    /// The root is gone from the store.
    Vanished,
    /// Detached, or left to be opened again.
    Closed,
}

/// An open volume.
#[derive(Debug)]
pub struct Export<W: World> {
    world: W,
    name: String,
    size_bytes: Cell<u64>,
    role: Cell<Role>,
    /// At the end of the role `ReadWrite`: everything answered was published (rule 15).
    ended_clean: Cell<bool>,
    cache: Cache<W>,
    /// None for a read-only export.
    local: Option<CacheVolume<W>>,
    frames: Rc<Frames<W>>,
    meter: Rc<Meter>,
    read_wait: Duration,
    /// The server ends: nobody waits for the store, or for a promotion, any more.
    stops: Cell<bool>,
    pub(crate) clients: Clients,
    /// What was opened together with it.
    pub(crate) fellows: Fellows<W>,
    pub(crate) orders: Orders,
    pub(crate) causes: Causes,
    /// Of one that is prepared.
    pub(crate) warm: Warm,
    /// Of one that was prepared: what took its place.
    successor: OnceCell<Rc<Self>>,
}

/// What an export is made of.
#[derive(Debug)]
pub(crate) struct Parts<W: World> {
    pub(crate) world: W,
    pub(crate) cache: Cache<W>,
    /// `ReadWrite`, `ReadOnly`, `Prepared` or `Damaged`.
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// None: nothing of the log is read.
    pub(crate) local: Option<CacheVolume<W>>,
    /// None: resumed without the store.
    pub(crate) volume: Option<Volume<W>>,
    /// Of a fork that is not in the store.
    pub(crate) base: Option<Rc<Base<W>>>,
    pub(crate) meter: Rc<Meter>,
    /// [`site::ExportConfig::read_wait`].
    pub(crate) read_wait: Duration,
}

impl<W: World> Export<W> {
    pub(crate) fn new(parts: Parts<W>) -> Rc<Self> {
        assert!(
            parts.size_bytes.is_multiple_of(SECTOR_BYTES),
            "size of {} bytes is not whole sectors",
            parts.size_bytes
        );
        assert!(
            parts.local.is_some() || parts.volume.is_some(),
            "a read-only export needs a volume to read"
        );
        assert!(
            parts.role != Role::ReadWrite || parts.local.is_some(),
            "writes go to the log"
        );
        let (world, cache) = (parts.world.clone(), parts.cache.clone());
        let frames = Frames::new(world, cache, parts.volume, parts.base);
        Rc::new(Self {
            clients: Clients::none_at(parts.world.now()),
            world: parts.world,
            name: parts.name,
            size_bytes: Cell::new(parts.size_bytes),
            role: Cell::new(parts.role),
            ended_clean: Cell::new(parts.role != Role::Damaged),
            cache: parts.cache,
            local: parts.local,
            frames,
            meter: parts.meter,
            read_wait: parts.read_wait,
            stops: Cell::new(false),
            fellows: Fellows::default(),
            orders: Orders::default(),
            causes: Causes::default(),
            warm: Warm::default(),
            successor: OnceCell::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn role(&self) -> Role {
        self.role.get()
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.get()
    }

    /// Ends what waits for the store or for a promotion.
    pub(crate) fn stop(&self) {
        self.stops.set(true);
        self.orders.news.notify_waiters();
    }

    pub(crate) fn stops(&self) -> bool {
        self.stops.get()
    }

    /// What is counted of it.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(crate) fn world(&self) -> &W {
        &self.world
    }

    pub(crate) fn frames(&self) -> &Rc<Frames<W>> {
        &self.frames
    }

    pub(crate) fn local(&self) -> Option<&CacheVolume<W>> {
        self.local.as_ref()
    }

    pub(crate) fn local_state(&self) -> Option<LocalVolume> {
        self.local.as_ref().and_then(CacheVolume::state)
    }

    /// The root as last read or published; none while the store has not been reached.
    pub(crate) fn root(&self) -> Option<RootView> {
        self.frames.volume().map(|volume| volume.root())
    }

    /// It is a fork that the store does not have.
    pub(crate) fn is_pending_fork(&self) -> bool {
        self.frames.base().is_some()
    }

    /// Connections that are open keep the size they were told.
    pub(crate) fn set_size(&self, size_bytes: u64) {
        assert!(
            size_bytes >= self.size_bytes.get(),
            "an export never shrinks"
        );
        self.size_bytes.set(size_bytes);
    }

    pub(crate) fn count(&self, add: impl FnOnce(&mut IoDocument)) {
        let mut io = self.meter.io.get();
        add(&mut io);
        self.meter.io.set(io);
    }

    /// Ends the right to write. What waits for room in the cache is woken with an error.
    pub(crate) fn end(&self, role: Role) {
        assert!(
            !matches!(
                role,
                Role::ReadWrite | Role::ReadOnly | Role::Prepared | Role::Damaged
            ),
            "{role:?} is no end"
        );
        if self.role.get() == Role::ReadWrite {
            let clean = self.local_state().is_none_or(|l| l.last <= l.published);
            self.ended_clean.set(clean);
        }
        self.role.set(role);
        if let (Role::Fenced | Role::Vanished, Some(local)) = (role, &self.local) {
            local.fence();
        }
        self.orders.wake.notify_one();
        self.orders.news.notify_waiters();
    }

    /// Another one takes the place of one that was prepared, and has its clients from here on: what they wait for goes
    /// on there.
    pub(crate) fn give_way(&self, successor: &Rc<Self>) {
        assert_eq!(self.role(), Role::Prepared, "others end");
        successor.clients.take_over(&self.clients);
        let set = self.successor.set(Rc::clone(successor));
        set.expect("it gives way once");
        self.end(Role::Closed);
    }

    /// What took the place of one that was prepared.
    pub(crate) fn successor(&self) -> Option<&Rc<Self>> {
        self.successor.get()
    }

    /// The last client is gone for good and all is published: once its right to write has ended, a detach says the
    /// whole truth.
    pub(crate) fn may_leave(&self) -> bool {
        let clean = self.local_state().is_some_and(|l| l.last <= l.published);
        let is_held = self.clients.count() > 0 || self.orders.is_forking();
        self.role.get() == Role::ReadWrite && clean && !is_held
    }

    /// Waits until everything answered before this call is in the store. An error once an attempt
    /// fails; the attempts go on.
    pub(crate) async fn drain(&self) -> Result<(), String> {
        let Some(target) = self.local_state().map(|local| local.last) else {
            return Ok(());
        };
        let failures = self.orders.failures();
        self.orders.drain(target);
        loop {
            let news = self.orders.news.notified();
            if self
                .local_state()
                .is_none_or(|local| local.published >= target)
                && !self.is_pending_fork()
            {
                return Ok(());
            }
            if let Some(why) = self.halted() {
                return Err(why);
            }
            if self.orders.failures() > failures {
                return Err(self.orders.last_failure());
            }
            news.await;
        }
    }

    /// Why nothing will be published any more, if so.
    pub(crate) fn halted(&self) -> Option<String> {
        match self.role.get() {
            Role::ReadWrite | Role::ReadOnly | Role::Prepared | Role::Leaving => {
                self.orders.halted()
            }
            Role::Damaged => Some(format!(
                "unpublished writes of `{}` are missing; look at it, then accept the loss",
                self.name
            )),
            Role::Fenced => Some(format!("`{}` is fenced: another epoch exists", self.name)),
            Role::Vanished => Some(format!("the root of `{}` vanished", self.name)),
            Role::Closed => Some(format!("`{}` is closed", self.name)),
        }
    }

    // The operations of a block device; see `BlockDevice` for what each means.

    pub(crate) async fn read(&self, at: u64, len: u64) -> Result<Bytes, IoError> {
        self.check_range(at, len);
        self.may_read()?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let pages = PageRange::touched_by(at, len);
        let mut out = vec![0; index(pages.bytes())];
        let missing = match &self.local {
            Some(local) => {
                let read = local.read(pages, &mut out).await;
                read.map_err(|error| self.cache_failed(&error))?
            }
            None => vec![Missing {
                pages,
                patches: Vec::new(),
            }],
        };
        let miss_pages: u64 = missing.iter().map(|m| m.pages.pages()).sum();
        if miss_pages > 0 {
            self.read_store(&missing, pages, &mut out).await?;
        }
        self.count(|io| {
            io.reads += 1;
            io.read_bytes += len;
            io.miss_pages += miss_pages;
            io.hit_pages += pages.pages() - miss_pages;
        });
        let skip = index(at - pages.start.byte());
        Ok(Bytes::from(out).slice(skip..skip + index(len)))
    }

    pub(crate) async fn write(&self, at: u64, data: Bytes, fua: Fua) -> Result<(), IoError> {
        let len = u64::try_from(data.len()).expect("usize fits u64");
        self.check_range(at, len);
        let local = self.may_write()?;
        if len == 0 {
            return Ok(());
        }
        let written = local.write(at, data).await;
        written.map_err(|error| self.cache_failed(&error))?;
        self.seal(fua).await?;
        self.count(|io| {
            io.writes += 1;
            io.written_bytes += len;
        });
        Ok(())
    }

    pub(crate) async fn zero(&self, at: u64, len: u64, fua: Fua) -> Result<(), IoError> {
        self.check_range(at, len);
        let local = self.may_write()?;
        if len == 0 {
            return Ok(());
        }
        let zeroed = local.zero(at, len).await;
        zeroed.map_err(|error| self.cache_failed(&error))?;
        self.seal(fua).await?;
        self.count(|io| io.zeroes += 1);
        Ok(())
    }

    pub(crate) async fn flush(&self) -> Result<(), IoError> {
        match self.role.get() {
            Role::ReadWrite => {
                let flushed = self.cache.flush().await;
                flushed.map_err(|error| self.cache_failed(&error))?;
            }
            // Nothing was written through it.
            Role::ReadOnly | Role::Prepared => {}
            // Rule 15: a client that flushes behind a finished hand-over must not be failed, and
            // one whose writes were lost with the epoch must not be reassured.
            Role::Damaged | Role::Leaving | Role::Fenced | Role::Vanished | Role::Closed => {
                if !self.ended_clean.get() {
                    self.count(|io| io.errors += 1);
                    return Err(self.ended());
                }
            }
        }
        self.count(|io| io.flushes += 1);
        Ok(())
    }

    pub(crate) async fn prefetch(&self, at: u64, len: u64) -> Result<(), IoError> {
        self.check_range(at, len);
        self.may_read()?;
        let pages = PageRange::touched_by(at, len.min(PREFETCH_BYTES_MAX));
        let piece = PREFETCH_PIECE_BYTES / PAGE_BYTES;
        let mut scratch = vec![0; index(PREFETCH_PIECE_BYTES)];
        for start in (pages.start.0..pages.end.0).step_by(index(piece)) {
            let part = PageRange::new(start, (start + piece).min(pages.end.0));
            let absent: Vec<PageRange> = self
                .known(part)
                .into_iter()
                .filter_map(|(run, known)| (known == Known::Absent).then_some(run))
                .collect();
            let out = &mut scratch[..index(part.bytes())];
            if self.frames.read(&absent, part, out).await.is_err() {
                // Best effort: the read that needs it will say what is wrong.
                return Ok(());
            }
        }
        Ok(())
    }

    fn known(&self, pages: PageRange) -> Vec<(PageRange, Known)> {
        match &self.local {
            Some(local) => local.known(pages),
            None => vec![(pages, Known::Absent)],
        }
    }

    /// The store's bytes first, then the log's newer parts of the same pages on top, in order.
    async fn read_store(
        &self,
        missing: &[Missing],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), IoError> {
        let wanted: Vec<PageRange> = missing.iter().map(|m| m.pages).collect();
        let mut failures = 0;
        let began = self.world.now();
        while let Err(error) = self.frames.read(&wanted, whole, out).await {
            failures += 1;
            let now = self.world.now();
            if !error.may_pass() || now - began >= self.read_wait {
                return Err(self.read_failed(&error, now));
            }
            if self.causes.raise("slow read", now) {
                tracing::warn!(export = %self.name, %error, "reads wait for the store");
            }
            let mut chance = [0; 4];
            self.world.fill_random(&mut chance);
            // The client is to hear of it when he was promised to, whatever the store asks for.
            let left = self.read_wait.saturating_sub(now - began);
            let asked = error.retry_after().map(|asked| asked.min(left));
            let wait = READ_BACKOFF.wait(failures, u32::from_le_bytes(chance), asked);
            self.wait_unless_stopped(wait).await;
            self.may_read()?;
            if self.stops() {
                return Err(IoError::Shutdown);
            }
        }
        for cause in ["read", "slow read"] {
            if self.causes.settle(cause) {
                tracing::info!(export = %self.name, "reads from the store work again");
            }
        }
        apply_patches(missing, whole, out);
        Ok(())
    }

    /// In steps: a store that asks for a minute must not keep a server that ends for so long.
    async fn wait_unless_stopped(&self, wait: Duration) {
        let until = self.world.now() + wait;
        while !self.stops() && self.world.now() < until {
            let left = until - self.world.now();
            self.world.sleep(left.min(READ_BACKOFF.longest)).await;
        }
    }

    /// Says why, once, with what a person should do.
    fn read_failed(&self, error: &frames::ReadError, now: world::Instant) -> IoError {
        self.count(|io| io.errors += 1);
        if error.may_pass() {
            if self.causes.raise("read", now) {
                tracing::error!(export = %self.name, %error, waited_s = self.read_wait.as_secs(), "reads fail: the store does not give the data; clients get input/output errors (docs/runbooks/store-unavailable.md)");
            }
        } else if self.causes.damaged(&error.to_string()) {
            tracing::error!(export = %self.name, %error, "what the store holds cannot be read: clients get input/output errors for these pages; restore the object that is named (docs/runbooks/volume-vanished.md)");
        }
        IoError::Io
    }

    /// The end of every change: durable if asked, and still ours to answer.
    async fn seal(&self, fua: Fua) -> Result<(), IoError> {
        if fua == Fua::Yes {
            let flushed = self.cache.flush().await;
            flushed.map_err(|error| self.cache_failed(&error))?;
        }
        // Fenced while the write was on its way: its record is salvage, so it never happened.
        self.may_write().map(|_local| ())
    }

    fn may_read(&self) -> Result<(), IoError> {
        match self.role.get() {
            Role::ReadWrite | Role::ReadOnly | Role::Prepared | Role::Damaged | Role::Leaving => {
                Ok(())
            }
            Role::Fenced | Role::Vanished | Role::Closed => {
                self.count(|io| io.errors += 1);
                Err(self.ended())
            }
        }
    }

    fn may_write(&self) -> Result<&CacheVolume<W>, IoError> {
        match (self.role.get(), &self.local) {
            (Role::ReadWrite, Some(local)) => Ok(local),
            (Role::ReadOnly | Role::Prepared | Role::Damaged, _) | (Role::ReadWrite, None) => {
                Err(IoError::ReadOnly)
            }
            (Role::Leaving | Role::Fenced | Role::Vanished | Role::Closed, _) => {
                self.count(|io| io.errors += 1);
                Err(self.ended())
            }
        }
    }

    fn ended(&self) -> IoError {
        match self.role.get() {
            Role::Damaged | Role::Vanished => IoError::Io,
            Role::ReadWrite
            | Role::ReadOnly
            | Role::Prepared
            | Role::Leaving
            | Role::Fenced
            | Role::Closed => IoError::Shutdown,
        }
    }

    fn cache_failed(&self, error: &CacheError) -> IoError {
        self.count(|io| io.errors += 1);
        if matches!(error, CacheError::Fenced) {
            return self.ended();
        }
        if self.causes.raise("cache", self.world.now()) {
            tracing::error!(export = %self.name, %error, "the cache fails; clients get input/output errors (docs/runbooks/fsync-failed.md)");
        }
        IoError::Io
    }

    fn check_range(&self, at: u64, len: u64) {
        assert!(
            at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES),
            "{len} bytes at {at} are not whole sectors"
        );
        let end = at.checked_add(len).expect("the front door checked the end");
        let size = self.size_bytes.get();
        assert!(end <= size, "{len} bytes at {at} reach beyond {size}");
    }
}

/// Puts the log's newer parts of pages on top of what the store has of them, in order (rule 7).
pub(crate) fn apply_patches(missing: &[Missing], whole: PageRange, out: &mut [u8]) {
    for patch in missing.iter().flat_map(|m| &m.patches) {
        let from = index(patch.at - whole.start.byte());
        out[from..from + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
}
