//! The background of a cache: four tasks, each with one duty.
//!
//! - *committer*: hands staged bytes to the kernel, in order;
//! - *flusher*: one fdatasync at a time, for everybody who asked before it was submitted. Nobody else
//!   asks for one while the log runs: the kernel tells of an error once, so of two at a time one may
//!   succeed although the other has lost its data;
//! - *sealer*: writes the footer of a full chunk once its records are durable (rule 4);
//! - *reclaimer*: keeps chunks ready: free ones, new ones while the file may grow, evicted ones.
//!
//! All end when the log stops (promise 8).

use std::rc::Rc;

use world::{Buf, DiskError, DiskErrorKind, File, World};

use super::open::{put_superblock, write_superblock};
use super::relocate::is_held_by_cuts;
use super::{Cache, Shared, Spare};
use crate::chunk::{ChunkKind, Superblock, Trailer, open_footer};
use crate::index::Position;
use crate::log::{Chunk, ChunkNo, ChunkState, Log, Sealing};
use crate::record::{PAGE, Record};
use crate::{CacheError, Id, PageRange};

/// Ready write chunks that the reclaimer keeps ahead of the writers.
pub(super) const READY_CHUNKS_MIN: usize = 3;
/// Chunks that the file grows by at once.
const GROW_CHUNKS: u32 = 4;
/// Chunks that the file may have beyond its configured size, where nothing could be published without
/// them. Each start ends a chunk, so this is also about how many crashes a log bears that is full and
/// whose store is down. At the bound it waits for a larger `cache.disk_size_gb`.
const OVERGROWN_CHUNKS_MAX: u64 = 64;
/// Chunks whose headers share one fdatasync.
const PREPARE_CHUNKS_MAX: usize = 8;

impl<W: World> Cache<W> {
    pub(super) fn start_log(&self) {
        let world = &self.shared.world;
        world.spawn(committer(Rc::clone(&self.shared)));
        world.spawn(flusher(Rc::clone(&self.shared)));
        world.spawn(sealer(Rc::clone(&self.shared)));
    }

    /// Last: until then the opener reclaims by itself.
    pub(super) fn start_reclaimer(&self) {
        let reclaimer = reclaimer(Rc::clone(&self.shared));
        self.shared.world.spawn(reclaimer);
    }
}

async fn committer<W: World>(shared: Rc<Shared<W>>) {
    loop {
        shared.commit_wanted.notified().await;
        loop {
            if shared.failed.borrow().is_some() {
                return;
            }
            let Some(staged) = shared.log.borrow_mut().take_staged() else {
                break;
            };
            let (chunk, end_page, lsn) = (staged.chunk, staged.end_page, staged.last_lsn);
            let (buf, written) = shared.file.write_at(staged.at, staged.buf).await;
            if let Err(error) = written {
                return shared.stop(error).await;
            }
            shared.log.borrow_mut().written(chunk, end_page, buf);
            shared.committed.advance(lsn);
            if !shared.log.borrow().sealing.is_empty() {
                shared.seal_wanted.notify_one();
            }
            shared.space_freed.notify_waiters();
        }
    }
}

async fn flusher<W: World>(shared: Rc<Shared<W>>) {
    loop {
        shared.persist_wanted.notified().await;
        while shared.persists_started.get() < shared.persists_wanted.get() {
            if shared.failed.borrow().is_some() {
                return;
            }
            // What is with the kernel now is covered by a persist submitted from here on (rule 3).
            let covered = shared.committed.value();
            let round = shared.persists_started.get() + 1;
            shared.persists_started.set(round);
            if let Err(error) = shared.file.persist().await {
                return shared.stop(error).await;
            }
            shared.counters.borrow_mut().persists += 1;
            shared.log.borrow_mut().durable_lsn = covered;
            shared.durable.advance(covered);
            shared.persists_done.advance(round);
        }
    }
}

async fn sealer<W: World>(shared: Rc<Shared<W>>) {
    loop {
        shared.seal_wanted.notified().await;
        loop {
            let Some(sealing) = shared.log.borrow_mut().sealing.pop_front() else {
                break;
            };
            if let Err(error) = shared.seal(sealing).await {
                return shared.stop_for(error).await;
            }
            shared.space_wanted.notify_one();
        }
        loop {
            let Some(full) = shared.sealing_fills.borrow_mut().pop_front() else {
                break;
            };
            // No wait for the data: what a power cut takes fails its checksum and is fetched again.
            let sealing = Sealing {
                chunk: full.chunk,
                footer: full.footer,
                last_lsn: 0,
            };
            if let Err(error) = shared.seal(sealing).await {
                return shared.stop_for(error).await;
            }
            shared.space_wanted.notify_one();
        }
    }
}

async fn reclaimer<W: World>(shared: Rc<Shared<W>>) {
    let mut is_failing = false;
    loop {
        shared.space_wanted.notified().await;
        loop {
            match shared.reclaim_once().await {
                Ok(true) => is_failing = false,
                Ok(false) => break,
                Err(CacheError::Stopped(_)) => return,
                Err(CacheError::Disk(error)) => return shared.stop(error).await,
                Err(error) => {
                    // Once, not for each writer that waits for room.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(%error, "the cache cannot reclaim space; replace the disk of `cache.dir` (docs/runbooks/fsync-failed.md)");
                    }
                    break;
                }
            }
        }
        // Kept where it could not be met: what frees chunks later wakes this task and not the
        // writer, who would wait for ever behind a target that was forgotten.
        if shared.log.borrow().ready.len() >= shared.chunks_wanted.get() {
            shared.chunks_wanted.set(0);
        }
    }
}

impl<W: World> Shared<W> {
    /// Stops the log, and leaves a mark for the next start, which must not trust the page cache
    /// (rule 8). The mark may fail as well; then the next start finds out by checksums.
    async fn stop(&self, error: DiskError) {
        self.fail(error);
        let page = self.next_superblock(|superblock| {
            superblock.stopped = true;
            // What was answered, flushed or not, is what the next start must account for.
            superblock.answered_lsn = self.committed.value();
        });
        if write_superblock(&self.file, &page).await.is_ok() {
            tracing::warn!("the next start will read the log from the device");
        }
    }

    /// The superblock with a change, to be written.
    pub(super) fn next_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Superblock {
        let mut superblock = self.superblock.borrow_mut();
        change(&mut superblock);
        superblock.generation += 1;
        *superblock
    }

    /// Writes the superblock with a change, durably. Of a running log: the flusher persists it.
    pub(super) async fn change_superblock(
        &self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), CacheError> {
        let superblock = self.next_superblock(change);
        put_superblock(&self.file, &superblock).await?;
        self.persist_once().await
    }

    /// As [`Shared::stop`], for a task that cannot go on. A footer that fails is a write that fails:
    /// without a sealer no chunk would ever be evicted, and writers would wait for ever.
    async fn stop_for(&self, error: CacheError) {
        if let CacheError::Disk(error) = error {
            self.stop(error).await;
        }
    }

    /// The footer goes out after the records are durable, so that it never vouches for what a power
    /// cut can still take (rule 4).
    pub(super) async fn seal(&self, sealing: Sealing) -> Result<(), CacheError> {
        self.flush_to(sealing.last_lsn).await?;
        let (at, footer) = {
            let log = self.log.borrow();
            let footer = sealing.footer.encode(log.chunk(sealing.chunk).life);
            let pages = u32::try_from(footer.len() / PAGE).expect("within a chunk");
            (log.byte_of(sealing.chunk, log.chunk_pages - pages), footer)
        };
        let (_, written) = self.file.write_at(at, Buf::copy_of(&footer)).await;
        written?;
        self.log.borrow_mut().chunk_mut(sealing.chunk).state = ChunkState::Sealed;
        Ok(())
    }

    /// One step towards enough ready chunks; false if nothing is wanted or nothing can be done.
    pub(super) async fn reclaim_once(self: &Rc<Self>) -> Result<bool, CacheError> {
        self.check()?;
        let (wanted, fills_wanted) = {
            let log = self.log.borrow();
            let target = READY_CHUNKS_MIN.max(self.chunks_wanted.get());
            (
                target.saturating_sub(log.ready.len()),
                log.ready_fills.is_none(),
            )
        };
        if wanted == 0 && !fills_wanted {
            return Ok(false);
        }
        let free = self.free_chunks(wanted.clamp(1, PREPARE_CHUNKS_MAX));
        if !free.is_empty() {
            // Writers first: fills are a convenience.
            let kind = if wanted > 0 {
                ChunkKind::Writes
            } else {
                ChunkKind::Fills
            };
            let count = if kind == ChunkKind::Writes {
                free.len()
            } else {
                1
            };
            self.prepare(&free[..count], kind).await?;
            return Ok(true);
        }
        if self.grow().await? {
            return Ok(true);
        }
        let victim = victim(&self.log.borrow());
        #[cfg(feature = "planted")]
        let victim = match self.config.planted {
            Some(super::Planted::EvictionOrder) => newest_clean(&self.log.borrow()),
            _ => victim,
        };
        match victim {
            Some(victim) => self.evict(victim).await.map(|()| true),
            // Somebody waits, and nothing may go: perhaps because of a few old records at the end.
            None if wanted > 0 && self.chunks_wanted.get() > 0 => {
                if is_held_by_cuts(&self.log.borrow()) {
                    self.cuts_wanted.notify_waiters();
                }
                Ok(self.relocate().await? || self.states_are_stuck() && self.overgrow())
            }
            None => Ok(false),
        }
    }

    fn free_chunks(&self, count: usize) -> Vec<ChunkNo> {
        let log = self.log.borrow();
        let numbered = (0..).zip(&log.chunks);
        let free = numbered.filter(|(_, chunk)| {
            chunk.state == ChunkState::Free && chunk.pins == 0 && chunk.cuts == 0
        });
        free.map(|(no, _)| no).take(count).collect()
    }

    /// Gives free chunks a new life: header first, durable, before any record of that life (rule 4).
    /// Before that, durable knowledge of what was published, as the old life may hold records that
    /// only this knowledge makes superfluous; then of the end of the old life.
    pub(super) async fn prepare(
        &self,
        free: &[ChunkNo],
        kind: ChunkKind,
    ) -> Result<(), CacheError> {
        let state_lsn = self.log.borrow().last_kept_lsn;
        self.flush_to(state_lsn).await?;
        let oldest_live = self.log.borrow().oldest_live();
        if oldest_live > self.superblock.borrow().oldest_live {
            self.change_superblock(|superblock| superblock.oldest_live = oldest_live)
                .await?;
        }
        for &no in free {
            let life = Id(self.world.random_id());
            #[cfg(feature = "planted")]
            let life = match self.config.planted {
                Some(super::Planted::LifeStays) => Id([no.to_le_bytes()[0]; 16]),
                _ => life,
            };
            let (at, header) = {
                let mut log = self.log.borrow_mut();
                (log.byte_of(no, 0), log.prepare(no, kind, life).encode())
            };
            let (_, written) = self.file.write_at(at, Buf::copy_of(&header)).await;
            written?;
        }
        self.persist_once().await?;
        free.iter()
            .for_each(|&no| self.log.borrow_mut().prepared(no));
        self.space_freed.notify_waiters();
        Ok(())
    }

    /// Adds chunks to the file while it may grow; false if it may not, or the disk is full (which
    /// is then the size that the cache has, rule 10).
    async fn grow(&self) -> Result<bool, CacheError> {
        let (count, chunk_bytes) = {
            let log = self.log.borrow();
            (
                u32::try_from(log.chunks.len()).expect("chunk numbers fit"),
                log.chunk_bytes(),
            )
        };
        let start = crate::chunk::SUPERBLOCK_BYTES + u64::from(count) * chunk_bytes;
        let room = self.size_limit.get().saturating_sub(start) / chunk_bytes;
        let more = GROW_CHUNKS.min(u32::try_from(room).unwrap_or(u32::MAX));
        if more == 0 {
            return Ok(false);
        }
        match self.file.grow(start + u64::from(more) * chunk_bytes).await {
            Ok(()) => {
                let mut log = self.log.borrow_mut();
                log.chunks.extend((0..more).map(|_| Chunk::free()));
                Ok(true)
            }
            Err(error) if error.kind == DiskErrorKind::Full => {
                tracing::error!(
                    bytes = start,
                    "the disk of `cache.dir` is full: the cache stays at this size; free space or lower `cache.disk_size_gb` (docs/runbooks/cache-disk-full.md)"
                );
                self.size_limit.set(start);
                self.disk_full.set(true);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Room for a record of the reclaimer, who must not wait for what only he makes.
    async fn room_of_its_own(&self) -> Result<(), CacheError> {
        if !self.log.borrow().has_room(0, Spare::None) {
            if self.free_chunks(1).is_empty() && self.overgrow() {
                self.grow().await?;
            }
            let free = self.free_chunks(1);
            if !free.is_empty() {
                self.prepare(&free, ChunkKind::Writes).await?;
            }
        }
        self.room(Spare::None).await
    }

    /// A state record waits, and what is ready is spared for the reclaimer, who has nothing to
    /// reclaim before something is published.
    fn states_are_stuck(&self) -> bool {
        self.states_waiting.get() > 0 && self.log.borrow().ready.len() <= Spare::Reclaim.chunks()
    }

    /// Lets the file grow by one chunk beyond its configured size; false at the bound, and on a full
    /// disk.
    pub(super) fn overgrow(&self) -> bool {
        let log = self.log.borrow();
        let chunks = log.chunks.len() as u64 + 1;
        let need = crate::chunk::SUPERBLOCK_BYTES + chunks * log.chunk_bytes();
        let most = self.config.size_bytes_max + OVERGROWN_CHUNKS_MAX * log.chunk_bytes();
        if self.disk_full.get() || need > most {
            return false;
        }
        tracing::warn!(
            bytes = need,
            "the cache is full of unpublished writes; its file grows a little beyond the configured size, so that they can be published"
        );
        self.size_limit.set(need);
        true
    }

    /// Frees a chunk whose records are all in the store (promise 6).
    async fn evict(self: &Rc<Self>, victim: ChunkNo) -> Result<(), CacheError> {
        let (kind, life) = {
            let log = self.log.borrow();
            (log.chunk(victim).kind, log.chunk(victim).life)
        };
        let batches = self.read_footer(victim, life).await;
        self.carry_states(victim).await?;
        {
            let mut log = self.log.borrow_mut();
            match batches {
                Ok(batches) => batches.iter().for_each(|batch| {
                    for (page, record) in batch.placed() {
                        let at = log.position(victim, page);
                        forget_record(&mut log, record, at);
                    }
                }),
                // Everything in it is in the store: it may go without being read. If it stayed, so
                // would all after it, and writers would wait for ever.
                Err(error) => {
                    tracing::warn!(%error, chunk = victim, "evicting a chunk whose footer is not readable");
                    forget_chunk(&mut log, victim);
                }
            }
            log.chunk_mut(victim).state = ChunkState::Evicting;
        }
        // Who looked a page up before this line may still wait for the disk.
        while self.log.borrow().chunk(victim).pins > 0 {
            self.unpinned.notified().await;
        }
        let mut log = self.log.borrow_mut();
        assert_eq!(
            log.chunk(victim).dirty,
            0,
            "evicting dirty {kind:?} chunk {victim}"
        );
        *log.chunk_mut(victim) = Chunk::free();
        drop(log);
        self.counters.borrow_mut().evictions += 1;
        Ok(())
    }

    async fn read_footer(
        &self,
        no: ChunkNo,
        life: Id,
    ) -> Result<Vec<crate::chunk::Batch>, CacheError> {
        let (end, chunk_bytes) = {
            let log = self.log.borrow();
            (log.byte_of(no, log.chunk_pages), log.chunk_bytes())
        };
        let damaged = || CacheError::Damaged {
            at: end,
            what: "the footer of a chunk is not readable",
        };
        let (last, read) = self
            .file
            .read_at(end - PAGE as u64, Buf::zeroed(PAGE))
            .await;
        read?;
        let chunk_len = usize::try_from(chunk_bytes).map_err(|_too_big| damaged())?;
        let trailer = Trailer::peek(&last, chunk_len).ok_or_else(damaged)?;
        let len = trailer.footer_bytes();
        let (footer, read) = self.file.read_at(end - len as u64, Buf::zeroed(len)).await;
        read?;
        open_footer(&footer, life).ok_or_else(damaged)
    }

    /// Writes again what a chunk that goes is the last to know of volumes, and what was published since
    /// a volume's state was last written: of records that a start does not find it must know that
    /// the store has them. Volumes of which nothing is left are dropped instead.
    async fn carry_states(&self, victim: ChunkNo) -> Result<(), CacheError> {
        let concerned: Vec<Id> = {
            let log = self.log.borrow();
            let due = log.volumes.values().filter(|volume| {
                volume.state_chunk == victim || volume.noted < volume.state.published
            });
            due.map(|volume| volume.state.id).collect()
        };
        for id in concerned {
            self.room_of_its_own().await?;
            let mut log = self.log.borrow_mut();
            let Some(volume) = log.volumes.get(&id) else {
                continue;
            };
            let idle = volume.state_chunk == victim
                && !volume.state.attached
                && volume.state.intents.is_empty()
                && volume.dirty.is_empty()
                && volume.damage.is_none()
                && volume.index.memory_bytes() == 0;
            if idle {
                log.volumes.remove(&id);
            } else {
                log.append_state(id);
            }
        }
        self.commit_wanted.notify_one();
        Ok(())
    }
}

#[cfg(feature = "planted")]
fn newest_clean(log: &Log) -> Option<ChunkNo> {
    let clean = (0..)
        .zip(&log.chunks)
        .filter(|(_, chunk)| chunk.state == ChunkState::Sealed && chunk.dirty == 0);
    let newest = clean.max_by_key(|(_, chunk)| chunk.age);
    newest.map(|(no, _)| no)
}

/// The next chunk to go: the oldest write chunk if it may go (no later one may before it, rule 1),
/// or the oldest fill chunk if that is older or the write chunk must stay.
fn victim(log: &Log) -> Option<ChunkNo> {
    let sealed = |kind: ChunkKind| {
        let numbered = (0..).zip(&log.chunks);
        numbered.filter(move |(_, chunk)| {
            chunk.kind == kind
                && !matches!(
                    chunk.state,
                    ChunkState::Free | ChunkState::Ready | ChunkState::Preparing
                )
        })
    };
    let first_write = sealed(ChunkKind::Writes).min_by_key(|(_, chunk)| chunk.ordinal);
    let write = first_write
        .filter(|(_, chunk)| chunk.state == ChunkState::Sealed && chunk.dirty == 0)
        .filter(|(_, chunk)| chunk.cuts == 0)
        .map(|(no, chunk)| (chunk.age, no));
    let fill = sealed(ChunkKind::Fills)
        .filter(|(_, chunk)| chunk.state == ChunkState::Sealed)
        .map(|(no, chunk)| (chunk.age, no))
        .min();
    write.into_iter().chain(fill).min().map(|(_, no)| no)
}

/// The same for a chunk whose records are not known.
fn forget_chunk(log: &mut Log, victim: ChunkNo) {
    let first = log.position(victim, 0);
    let gone = first.0..first.0 + u64::from(log.chunk_pages);
    for volume in log.volumes.values_mut() {
        volume.index.evict_positions(&gone);
    }
    log.fills.retain(|_key, fill| !gone.contains(&fill.at.0));
}

/// The index forgets a record, where it still points to it.
fn forget_record(log: &mut Log, record: &Record, at: Position) {
    match record {
        Record::Moved(record) => forget_record(log, record, at),
        Record::Write { stamp, start, crcs } => {
            let pages = PageRange::new(start.0, start.0 + crcs.len() as u64);
            if let Some(volume) = log.volumes.get_mut(&stamp.volume) {
                volume.index.evict(pages, at);
                volume.counts.evicted_pages += pages.pages();
            }
        }
        Record::Partial { stamp, page, .. } => {
            if let Some(volume) = log.volumes.get_mut(&stamp.volume) {
                volume.index.evict_partial(*page, at);
                volume.counts.evicted_pages += 1;
            }
        }
        Record::Fill { key, .. } => {
            if log.fills.get(key).is_some_and(|fill| fill.at == at) {
                log.fills.remove(key);
            }
        }
        Record::Zero { .. } | Record::State(_) => {}
    }
}
