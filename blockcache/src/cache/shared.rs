//! What the tasks of a cache do together: room, flushes, the stop, look-ups and checked reads.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;
use world::{DiskError, File, World};

use super::{Patch, Shared};
use crate::index::{Base, Found, Overlay, Position, covered};
use crate::log::{Log, Spare};
use crate::record::PAGE;
use crate::watermark::Watermark;
use crate::{CacheError, Id, PAGE_BYTES, PageNo, PageRange};

/// Keeps chunks from being reused while bytes are read from them.
pub(super) struct Pins<W: World> {
    pub(super) shared: Rc<Shared<W>>,
    pub(super) chunks: Vec<u32>,
}

impl<W: World> Drop for Pins<W> {
    fn drop(&mut self) {
        let mut log = self.shared.log.borrow_mut();
        for chunk in &self.chunks {
            log.chunk_mut(*chunk).pins -= 1;
        }
        drop(log);
        self.shared.unpinned.notify_waiters();
    }
}

/// Counts itself, also if what it waits for is given up.
pub(super) struct Waiting<'a>(&'a std::cell::Cell<u32>);

impl<'a> Waiting<'a> {
    pub(super) fn new(count: &'a std::cell::Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<W: World> Shared<W> {
    /// Fails once the log has stopped.
    pub(super) fn check(&self) -> Result<(), CacheError> {
        match &*self.failed.borrow() {
            None => Ok(()),
            Some(error) => Err(CacheError::Stopped(error.clone())),
        }
    }

    pub(super) async fn reached(&self, mark: &Watermark, target: u64) -> Result<(), CacheError> {
        mark.reached(target).await.or_else(|_broken| self.check())
    }

    /// As configured, as far as the log can hold it: it needs room to turn, and on a full disk it is
    /// smaller than it was meant to be.
    pub(super) fn dirty_bytes_max(&self) -> u64 {
        let holds = self.size_limit.get() / 8 * 5;
        self.config.dirty_bytes_max.min(holds)
    }

    /// Counts a waiting writer while it waits.
    pub(super) async fn waiting(&self, freed: impl Future<Output = ()>) {
        let _waiting = Waiting::new(&self.writers_waiting);
        freed.await;
    }

    /// Waits until a state record fits. It may use a chunk that writers leave.
    pub(super) async fn room_for_state(&self) -> Result<(), CacheError> {
        self.room(Spare::Reclaim).await
    }

    /// Waits until a state record fits beside what is spared for others.
    pub(super) async fn room(&self, spare: Spare) -> Result<(), CacheError> {
        let _waiting = Waiting::new(&self.states_waiting);
        loop {
            self.check()?;
            if self.log.borrow().has_room(0, spare) {
                // What the reclaimer appends is no reason to go around once more.
                if spare != Spare::None {
                    self.log.borrow_mut().relocated = 0;
                }
                return Ok(());
            }
            self.chunks_wanted.set(self.chunks_wanted.get().max(3));
            self.space_wanted.notify_one();
            self.commit_wanted.notify_one();
            self.space_freed.notified().await;
        }
    }

    /// Waits until the batch `lsn` and all before it survive a power cut.
    pub(super) async fn flush_to(&self, lsn: u64) -> Result<(), CacheError> {
        if self.durable.value() >= lsn {
            return self.check();
        }
        self.commit_wanted.notify_one();
        self.reached(&self.committed, lsn).await?;
        while self.durable.value() < lsn {
            self.persist_once().await?;
        }
        Ok(())
    }

    /// Waits for one fdatasync that is submitted after this call.
    pub(super) async fn persist_once(&self) -> Result<(), CacheError> {
        let wanted = self.persists_started.get() + 1;
        self.persists_wanted
            .set(self.persists_wanted.get().max(wanted));
        self.persist_wanted.notify_one();
        self.reached(&self.persists_done, wanted).await
    }

    /// A write or an fsync failed: nothing more is accepted, ever (promise 8).
    pub(super) fn fail(&self, error: DiskError) {
        if self.failed.borrow().is_some() {
            return;
        }
        tracing::error!(%error, "the cache log has stopped: writes and flushes are refused; replace or free the disk, then restart (docs/runbooks/fsync-failed.md)");
        *self.failed.borrow_mut() = Some(error);
        self.committed.break_off();
        self.durable.break_off();
        self.persists_done.break_off();
        for waiters in [&self.space_freed, &self.dirty_freed, &self.dirty_grown] {
            waiters.notify_waiters();
        }
    }

    /// Looks pages up, pins the chunks, and says whether some of them are not written yet.
    pub(super) fn look_up(
        self: &Rc<Self>,
        id: Id,
        pages: PageRange,
    ) -> (Vec<(PageRange, Found)>, Pins<W>, bool) {
        let mut log = self.log.borrow_mut();
        let runs = match log.volumes.get(&id) {
            Some(volume) => volume.index.lookup(pages, volume.state.published),
            None => vec![(pages, Found::Absent)],
        };
        let mut chunks = Vec::new();
        let mut staged = false;
        for (run, found) in &runs {
            let mut touch = |at: Position, count: u64| {
                for (chunk, end_page) in chunks_of(&log, at, count) {
                    staged |= end_page > log.chunk(chunk).written;
                    chunks.push(chunk);
                }
            };
            match found {
                Found::Log(at) => touch(*at, run.pages()),
                Found::Overlaid { base, overlays } => {
                    if let Base::Log(at) = base {
                        touch(*at, 1);
                    }
                    overlays.iter().for_each(|overlay| touch(overlay.at, 1));
                }
                Found::Zero | Found::Absent => {}
            }
        }
        chunks
            .iter()
            .for_each(|chunk| log.chunk_mut(*chunk).pins += 1);
        drop(log);
        (
            runs,
            Pins {
                shared: Rc::clone(self),
                chunks,
            },
            staged,
        )
    }

    /// Reads consecutive pages of the log and checks each (rule 4).
    pub(super) async fn read_log(&self, at: Position, into: &mut [u8]) -> Result<(), CacheError> {
        let byte = at.0 * PAGE_BYTES;
        if !self.file.read_now(byte, into) {
            let (buf, read) = self
                .file
                .read_at(byte, world::Buf::zeroed(into.len()))
                .await;
            read?;
            into.copy_from_slice(&buf);
        }
        let log = self.log.borrow();
        for (n, page) in into.chunks_exact(PAGE).enumerate() {
            let at = Position(at.0 + n as u64);
            let (chunk, page_no) = log.place_of(at);
            let expected = log.chunk(chunk).crcs.get(page_no as usize);
            if expected != Some(&crate::codec::page_crc(page)) {
                let what = "a page does not have the checksum it was written with";
                return Err(CacheError::Damaged {
                    at: at.0 * PAGE_BYTES,
                    what,
                });
            }
        }
        Ok(())
    }

    /// Puts a page together from its base and newer sectors. Where the store must give the base,
    /// returns the sectors as patches.
    pub(super) async fn overlay_patches(
        &self,
        page: PageNo,
        base: Base,
        overlays: &[Overlay],
        into: &mut [u8],
    ) -> Result<Option<Vec<Patch>>, CacheError> {
        let complete = covered(overlays) == crate::index::FULL_MASK;
        match base {
            _ if complete => {}
            Base::Zero => into.fill(0),
            Base::Log(at) => self.read_log(at, into).await?,
            Base::Absent => {}
        }
        let mut patches = Vec::new();
        for overlay in overlays {
            let mut sectors = vec![0; PAGE];
            self.read_log(overlay.at, &mut sectors).await?;
            for run in mask_runs(overlay.mask) {
                into[run.clone()].copy_from_slice(&sectors[run.clone()]);
                let at = page.byte() + run.start as u64;
                patches.push(Patch {
                    at,
                    bytes: Bytes::copy_from_slice(&sectors[run]),
                });
            }
        }
        let needs_base = !complete && base == Base::Absent;
        Ok(needs_base.then_some(patches))
    }

    /// Forgets published dirty records in small steps, so that no request waits behind a long list.
    pub(super) fn sweep(self: &Rc<Self>, id: Id) {
        const STEP: usize = 1024;
        let shared = Rc::clone(self);
        self.world.spawn(async move {
            while shared.log.borrow_mut().sweep_published(id, STEP) {
                shared.dirty_freed.notify_waiters();
                shared.world.yield_now().await;
            }
            shared.dirty_freed.notify_waiters();
            shared.space_wanted.notify_one();
        });
    }
}

/// The chunks that consecutive pages of the log lie in (one, as a record never crosses), with the
/// end page in it.
fn chunks_of(log: &Log, at: Position, count: u64) -> Vec<(u32, u32)> {
    let (mut chunks, mut from) = (Vec::new(), at.0);
    while from < at.0 + count {
        let (chunk, page) = log.place_of(Position(from));
        let left = u64::from(log.chunk_pages - page);
        let here = left.min(at.0 + count - from);
        chunks.push((chunk, page + u32::try_from(here).expect("within a chunk")));
        from += here;
    }
    chunks
}

/// The bytes of a page that a sector mask covers, as runs.
fn mask_runs(mask: u8) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for sector in (0..8).filter(|sector| mask >> sector & 1 == 1) {
        let bytes = sector * 512..(sector + 1) * 512;
        match runs.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => runs.push(bytes),
        }
    }
    runs
}
