//! Opening a cache folder: superblock, headers and footers to an index, torn tails retired, the start
//! record durable before anything is served (rules 3, 4, 8). `recover.rs` decides what counts.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use world::sync::Notify;
use world::{Buf, DiskError, DiskErrorKind, File, OpenMode, World};

use super::{Cache, CacheConfig, Counters, Shared, WRITE_BYTES_MAX};
use crate::chunk::{
    Batch, ChunkHeader, ChunkKind, FORMAT, FooterBuilder, SUPERBLOCK_AT, SUPERBLOCK_BYTES,
    Superblock, Trailer, open_footer,
};
use crate::codec::page_crc;
use crate::log::{Chunk, ChunkState, Log, Run, Sealing};
use crate::record::{PAGE, PAGE_U32, Record, open_batch, records};
use crate::recover::{ChunkScan, Plan, plan, replay};
use crate::watermark::Watermark;
use crate::{CacheError, Id};

/// Chunks of a log that is large enough.
const CHUNK_BYTES_MAX: u64 = 8 * 1024 * 1024;
const CHUNK_BYTES_MIN: u64 = 1024 * 1024;
/// A log has at least so many chunks, so that evicting one of them is a small loss.
const CHUNKS_MIN: u64 = 64;
/// Chunks that a start waits for, if they can be had.
const READY_AT_START: usize = 2;
/// Bytes read at once when a chunk without a footer is scanned.
const FOOTER_READ_BYTES: usize = 64 * 1024;
/// How often, and how long apart, a folder that is in use is tried again.
const BUSY_ATTEMPTS_MAX: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

impl<W: World> Cache<W> {
    /// Opens or creates the cache folder, recovers the index, retires torn tails, writes the start
    /// record durably. Fails if another process holds it, or its format is foreign or newer.
    pub async fn open(world: W, config: CacheConfig) -> Result<Self, CacheError> {
        let path = config.dir.join("log");
        let Some(file) = open_once_free(&world, &path).await? else {
            return Err(CacheError::InUse(config.dir));
        };
        let (superblock, fresh) = match read_superblock(&file, &config).await? {
            Some(superblock) => (superblock, false),
            None => (create(&world, &file, &config).await?, true),
        };
        let chunk_bytes = u64::from(superblock.chunk_bytes);
        let file_bytes = file.size().await?;
        let count = (file_bytes - SUPERBLOCK_BYTES) / chunk_bytes;
        check_size(&config, chunk_bytes, count)?;
        let reader = Reader {
            file: &file,
            chunk_bytes,
            from_device: superblock.stopped,
        };
        let mut scans = Vec::new();
        for no in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            scans.push(reader.scan_head(no).await?);
        }
        let plan = plan(scans);
        let shared = Shared::new(world, file.clone(), config, superblock);
        let cache = Self {
            shared: Rc::new(shared),
        };
        cache.recover(&reader, plan, count).await?;
        if !fresh {
            cache.report();
        }
        cache.start_tasks();
        cache.first_chunks().await?;
        Ok(cache)
    }

    /// Replays what counts into the log, and seals chunks that have no footer.
    async fn recover(
        &self,
        reader: &Reader<'_, W>,
        plan: Plan,
        count: u64,
    ) -> Result<(), CacheError> {
        let shared = &self.shared;
        let chunk_pages = u32::try_from(reader.chunk_bytes / PAGE as u64).expect("bounded");
        let mut log = Log::new(chunk_pages, Run::default(), 1);
        log.chunks
            .resize_with(usize::try_from(count).expect("bounded"), Chunk::free);
        let outcome = replay(&mut log, &plan, reader, shared.world.now()).await?;
        log.run = Run {
            process: Id(shared.world.random_id()),
            previous: plan.newest_process,
            accepted_lsn: outcome.accepted_lsn,
        };
        log.next_lsn = outcome.accepted_lsn + 1;
        log.durable_lsn = outcome.accepted_lsn;
        #[cfg(feature = "planted")]
        {
            let planted = shared.config.planted;
            log.superseded_is_free = planted == Some(super::Planted::SupersededIsFree);
        }
        let unused = outcome.unused;
        log.next_ordinal = unused
            .first()
            .map_or(plan.next_ordinal, |(_, ordinal)| *ordinal);
        log.next_fill_ordinal = plan.next_fill_ordinal;
        log.next_age = plan.next_ordinal + plan.next_fill_ordinal;
        *shared.log.borrow_mut() = log;
        shared.committed.advance(outcome.accepted_lsn);
        shared.durable.advance(outcome.accepted_lsn);
        // Accepted records must be durable before a footer vouches for them: after a kill they may
        // only be in the page cache, and a power cut later would contradict what was served.
        shared.file.persist().await?;
        for (no, footer) in outcome.unsealed {
            let sealing = Sealing {
                chunk: no,
                footer,
                last_lsn: 0,
            };
            shared.seal(sealing).await?;
        }
        shared.file.persist().await?;
        shared
            .unused
            .borrow_mut()
            .extend(unused.iter().map(|(no, _)| *no));
        Ok(())
    }

    /// Chunks for the first writes, with the start record in their headers.
    async fn first_chunks(&self) -> Result<(), CacheError> {
        let shared = &self.shared;
        let unused = std::mem::take(&mut *shared.unused.borrow_mut());
        if !unused.is_empty() {
            // All of them, in order: each gets its old ordinal, and a new life.
            shared.prepare(&unused, ChunkKind::Writes).await?;
        }
        shared.chunks_wanted.set(READY_AT_START);
        let mut overgrown = false;
        loop {
            shared.check()?;
            let before = shared.log.borrow().ready.len();
            if before >= READY_AT_START {
                break;
            }
            let wait = shared.reclaimed.notified();
            shared.space_wanted.notify_one();
            wait.await;
            let after = shared.log.borrow().ready.len();
            if after > before {
                continue;
            }
            // All others hold what is not published. One is enough to publish, which frees some;
            // with none the cache would never open again, as each crash ends a chunk.
            if after > 0 {
                break;
            }
            shared.overgrow(overgrown)?;
            overgrown = true;
        }
        // Only now: everything of the stopped run that was not on the device is known to be gone.
        if shared.superblock.borrow().stopped {
            let superblock = {
                let mut superblock = shared.superblock.borrow_mut();
                superblock.stopped = false;
                superblock.generation += 1;
                *superblock
            };
            write_superblock(&shared.file, &superblock).await?;
        }
        Ok(())
    }

    fn report(&self) {
        for volume in self.volumes() {
            match &volume.damage {
                Some(damage) => tracing::error!(
                    volume = volume.name, %damage,
                    "unpublished writes in the cache log are not readable; the export stays closed until the loss is accepted"
                ),
                None => tracing::info!(
                    volume = volume.name, epoch = %volume.epoch, last = %volume.last,
                    published = %volume.published, dirty_bytes = volume.dirty_bytes,
                    "recovered from the cache log"
                ),
            }
        }
    }
}

impl<W: World> Shared<W> {
    /// Lets the file grow by one chunk beyond its configured size. Once; a disk that has no room even
    /// for that is an error.
    fn overgrow(&self, again: bool) -> Result<(), CacheError> {
        let log = self.log.borrow();
        let need = SUPERBLOCK_BYTES + (log.chunks.len() as u64 + 1) * log.chunk_bytes();
        let have = self.size_limit.get();
        if again {
            return Err(CacheError::TooSmall { have, need });
        }
        tracing::warn!(
            bytes = need,
            "the cache is full of unpublished writes; its file grows beyond the configured size, so that they can be published"
        );
        self.size_limit.set(need);
        Ok(())
    }

    fn new(world: W, file: W::File, config: CacheConfig, superblock: Superblock) -> Self {
        let chunk_pages = superblock.chunk_bytes / PAGE_U32;
        Self {
            world,
            file,
            size_limit: Cell::new(config.size_bytes_max),
            config,
            log: RefCell::new(Log::new(chunk_pages, Run::default(), 1)),
            superblock: RefCell::new(superblock),
            failed: RefCell::new(None),
            counters: RefCell::new(Counters::default()),
            committed: Watermark::default(),
            durable: Watermark::default(),
            persists_started: Cell::new(0),
            persists_wanted: Cell::new(0),
            persists_done: Watermark::default(),
            commit_wanted: Notify::new(),
            persist_wanted: Notify::new(),
            seal_wanted: Notify::new(),
            space_wanted: Notify::new(),
            chunks_wanted: Cell::new(0),
            space_freed: Notify::new(),
            reclaimed: Notify::new(),
            dirty_freed: Notify::new(),
            dirty_grown: Notify::new(),
            unpinned: Notify::new(),
            writers_waiting: Cell::new(0),
            open_fills: RefCell::new(None),
            sealing_fills: RefCell::new(VecDeque::new()),
            unused: RefCell::new(Vec::new()),
        }
    }
}

/// Opens the log, and waits a while for whoever holds it; none if he stays. The kernel releases the
/// file of a process that was killed only once the writes that it had in flight have ended, and that
/// is after its parent was told of its death: who restarts it at once must wait for those writes,
/// not fail, and by no means go on beside them.
async fn open_once_free<W: World>(world: &W, path: &Path) -> Result<Option<W::File>, DiskError> {
    for _ in 0..BUSY_ATTEMPTS_MAX {
        match world.open(path, OpenMode::Create).await {
            Err(error) if error.kind == DiskErrorKind::Busy => world.sleep(BUSY_PAUSE).await,
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// The newer of the two copies; none in a file that was never used.
async fn read_superblock<F: File>(
    file: &F,
    config: &CacheConfig,
) -> Result<Option<Superblock>, CacheError> {
    let path = config.dir.join("log");
    let foreign = |what: String| CacheError::Foreign {
        path: path.clone(),
        what,
    };
    let size = file.size().await?;
    if size == 0 {
        return Ok(None);
    }
    let mut newest: Option<Superblock> = None;
    let mut unborn = size <= SUPERBLOCK_BYTES;
    for at in SUPERBLOCK_AT {
        if size < at + PAGE as u64 {
            continue;
        }
        let (page, read) = file.read_at(at, Buf::zeroed(PAGE)).await;
        read?;
        unborn &= Superblock::may_be_torn(&page);
        if let Some(found) = Superblock::decode(&page, foreign)? {
            let newer = newest.is_none_or(|known| found.generation > known.generation);
            newest = if newer { Some(found) } else { newest };
        }
    }
    match newest {
        Some(superblock) => Ok(Some(superblock)),
        // A creation that a power cut interrupted: chunks are added only behind a durable superblock,
        // so nothing was served from it.
        None if unborn => Ok(None),
        None => Err(foreign(
            "this is not a glidefs cache log, or both copies of its superblock are damaged; \
             point `cache.dir` at an empty folder, or move this file away (unpublished writes in \
             it are lost then)"
                .to_owned(),
        )),
    }
}

async fn create<W: World>(
    world: &W,
    file: &W::File,
    config: &CacheConfig,
) -> Result<Superblock, CacheError> {
    let by_size = config.size_bytes_max / CHUNKS_MIN / 2;
    let chosen = by_size.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
    let floor = 1_u64 << (u64::BITS - 1 - chosen.leading_zeros());
    let chosen = u32::try_from(floor).expect("at most 8 MiB");
    let chunk_bytes = config.chunk_bytes.unwrap_or(chosen);
    let superblock = Superblock {
        cache: Id(world.random_id()),
        chunk_bytes,
        generation: 1,
        stopped: false,
    };
    if file.size().await? < SUPERBLOCK_BYTES {
        file.grow(SUPERBLOCK_BYTES).await?;
    }
    write_superblock(file, &superblock).await?;
    tracing::info!(dir = %config.dir.display(), cache = %superblock.cache, format = FORMAT, "created a cache");
    Ok(superblock)
}

async fn write_superblock<F: File>(file: &F, superblock: &Superblock) -> Result<(), CacheError> {
    let at = SUPERBLOCK_AT[usize::from(superblock.generation % 2 == 1)];
    let (_, written) = file.write_at(at, Buf::copy_of(&superblock.encode())).await;
    written?;
    file.persist().await?;
    Ok(())
}

/// A cache must hold the largest write several times over, and not lose chunks by shrinking.
fn check_size(config: &CacheConfig, chunk_bytes: u64, count: u64) -> Result<(), CacheError> {
    let chunks_for_writes = if config.chunk_bytes.is_some() {
        8
    } else {
        (2 * WRITE_BYTES_MAX).div_ceil(chunk_bytes) + 8
    };
    let need = SUPERBLOCK_BYTES + chunk_bytes * chunks_for_writes;
    let have = config
        .size_bytes_max
        .max(SUPERBLOCK_BYTES + count * chunk_bytes);
    if have < need {
        return Err(CacheError::TooSmall {
            have: config.size_bytes_max,
            need,
        });
    }
    Ok(())
}

/// Reads chunks at start.
pub(crate) struct Reader<'a, W: World> {
    file: &'a W::File,
    chunk_bytes: u64,
    /// The last run stopped: the page cache may show what the device never got (rule 8).
    from_device: bool,
}

impl<W: World> Reader<'_, W> {
    async fn read(&self, at: u64, len: usize) -> Result<Buf, CacheError> {
        let buf = Buf::zeroed(len);
        let (buf, read) = if self.from_device {
            self.file.read_device_at(at, buf).await
        } else {
            self.file.read_at(at, buf).await
        };
        read?;
        Ok(buf)
    }

    fn start(&self, no: u32) -> u64 {
        SUPERBLOCK_BYTES + u64::from(no) * self.chunk_bytes
    }

    /// Header and trailer of one chunk.
    async fn scan_head(&self, no: u32) -> Result<ChunkScan, CacheError> {
        let page = match self.read(self.start(no), PAGE).await {
            Ok(page) => page,
            // An unreadable chunk is a missing one: what that means depends on the others.
            Err(CacheError::Disk(error)) if matches!(error.kind, DiskErrorKind::Io(_)) => {
                tracing::error!(%error, chunk = no, "unreadable chunk in the cache log");
                return Ok(ChunkScan { no, header: None });
            }
            Err(error) => return Err(error),
        };
        Ok(ChunkScan {
            no,
            header: ChunkHeader::decode(&page),
        })
    }

    /// The batches of a sealed chunk; none if it has no sound footer.
    pub(crate) async fn footer(&self, no: u32, life: Id) -> Result<Option<Vec<Batch>>, CacheError> {
        let end = self.start(no) + self.chunk_bytes;
        let first = FOOTER_READ_BYTES.min(usize::try_from(self.chunk_bytes).expect("bounded") / 2);
        let tail = self.read(end - first as u64, first).await?;
        let chunk_len = usize::try_from(self.chunk_bytes).expect("bounded");
        let Some(trailer) = Trailer::peek(&tail[first - PAGE..], chunk_len) else {
            return Ok(None);
        };
        let len = trailer.footer_bytes();
        if len <= first {
            return Ok(open_footer(&tail[first - len..], life));
        }
        let whole = self.read(end - len as u64, len).await?;
        Ok(open_footer(&whole, life))
    }

    /// The batches of a chunk without a footer, in order, as long as header and data are sound and
    /// the batch numbers follow each other from `expected` (where given).
    pub(crate) async fn scan(
        &self,
        no: u32,
        life: Id,
        expected: Option<u64>,
    ) -> Result<Scanned, CacheError> {
        let len = usize::try_from(self.chunk_bytes).expect("bounded");
        let chunk = self.read(self.start(no), len).await?;
        let mut scanned = Scanned::default();
        let mut next = expected;
        let mut page = 1;
        while let Some((batch, durable_lsn, descriptors)) = sound_batch(&chunk, page, life) {
            if next.is_some_and(|next| next != batch.lsn) {
                break;
            }
            next = Some(batch.lsn + 1);
            page += batch.pages() as usize;
            scanned.footer.add(batch.lsn, batch.page, descriptors);
            scanned.durable_lsn = scanned.durable_lsn.max(durable_lsn);
            scanned.batches.push(batch);
        }
        // Anything sound behind the break tells what was durable when it was written.
        let beyond = (page..len / PAGE).filter_map(|page| open_batch(&chunk[page * PAGE..], life));
        let durable = beyond.map(|(head, _)| head.durable_lsn).max().unwrap_or(0);
        scanned.durable_lsn = scanned.durable_lsn.max(durable);
        Ok(scanned)
    }
}

/// A chunk without a footer, as far as it is sound.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) batches: Vec<Batch>,
    pub(crate) footer: FooterBuilder,
    /// The highest durable batch number that the sound batches, and those behind a break, tell of.
    pub(crate) durable_lsn: u64,
}

/// The batch whose header is at `page`, if header and every data page are as they were written.
fn sound_batch(chunk: &[u8], page: usize, life: Id) -> Option<(Batch, u64, &[u8])> {
    let header = chunk.get(page * PAGE..(page + 1) * PAGE)?;
    let (head, descriptors) = open_batch(header, life)?;
    let batch = Batch {
        lsn: head.lsn,
        page: u32::try_from(page).ok()?,
        records: records(descriptors)?,
    };
    for (first, record) in batch.placed() {
        let crcs = match record {
            Record::Write { crcs, .. } | Record::Fill { crcs, .. } => crcs.as_slice(),
            Record::Partial { crc, .. } => std::slice::from_ref(crc),
            Record::Zero { .. } | Record::State(_) => &[],
        };
        for (n, crc) in crcs.iter().enumerate() {
            let at = (first as usize + n) * PAGE;
            if page_crc(chunk.get(at..at + PAGE)?) != *crc {
                return None;
            }
        }
    }
    Some((batch, head.durable_lsn, descriptors))
}

/// A chunk's state after recovery.
pub(crate) fn recovered(header: &ChunkHeader, age: u64, written: u32) -> Chunk {
    Chunk {
        state: ChunkState::Sealed,
        kind: header.kind,
        life: header.life,
        ordinal: header.ordinal,
        age,
        written,
        ..Chunk::free()
    }
}

/// Only fill chunks count for themselves.
pub(crate) fn is_fill(header: &ChunkHeader) -> bool {
    header.kind == ChunkKind::Fills
}
