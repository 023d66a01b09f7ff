//! Opening a cache folder: superblock, headers and footers to an index, torn tails retired, the start
//! record durable before anything is served (rules 3, 4, 8). `recover.rs` decides what counts.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use world::sync::Notify;
use world::{Buf, DiskError, DiskErrorKind, File, OpenMode, World};

use super::reader::Reader;
use super::{Cache, CacheConfig, Counters, Looked, Shared, WRITE_BYTES_MAX};
use crate::chunk::{ChunkKind, FORMAT, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use crate::log::{Chunk, Log, Run, Sealing, Spare, Volume};
use crate::record::{PAGE, PAGE_U32};
use crate::recover::{Known, Plan, plan, replay};
use crate::watermark::Watermark;
use crate::{CacheError, Id};

/// Chunks of a log that is large enough.
const CHUNK_BYTES_MAX: u64 = 8 * 1024 * 1024;
const CHUNK_BYTES_MIN: u64 = 1024 * 1024;
/// A log has at least so many chunks, so that evicting one of them is a small loss.
const CHUNKS_MIN: u64 = 64;
/// Fewer chunks than this are no cache: two spared, one to write, one to read, and room to turn.
const CHUNKS_LEAST: u64 = 8;
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
        let count = chunks_in(file.size().await?, chunk_bytes)?;
        check_size(&config, chunk_bytes, count)?;
        if superblock.stopped {
            // What is recovered is what the device has. Reads after the start must see the same: a page
            // whose write-back failed is other bytes in memory, and passes for clean there.
            file.forget_cached().await?;
        }
        let reader = Reader {
            file: &file,
            chunk_bytes,
            from_device: superblock.stopped,
        };
        let mut scans = Vec::new();
        for no in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            scans.push(reader.scan_head(no).await?);
        }
        let plan = plan(scans, superblock.oldest_live);
        let shared = Shared::new(world, file.clone(), config, superblock);
        let cache = Self {
            shared: Rc::new(shared),
        };
        cache.recover(&reader, plan, count).await?;
        if !fresh {
            cache.report();
        }
        cache.start_log();
        cache.first_chunks().await?;
        cache.start_reclaimer();
        Ok(cache)
    }

    /// Looks at the cache folder as [`Cache::open`] would, and changes nothing in it: nothing is
    /// created, recovered or written. Fails where an open would fail before its recovery; a folder
    /// that is in use is not waited for. It holds the lock of the log for the moment of the look.
    pub async fn look(world: &W, config: &CacheConfig) -> Result<Looked, CacheError> {
        let file = match world
            .open(&config.dir.join("log"), OpenMode::Existing)
            .await
        {
            Ok(file) => file,
            Err(error) if error.kind == DiskErrorKind::NotFound => return Ok(Looked::Empty),
            Err(error) if error.kind == DiskErrorKind::Busy => {
                return Err(CacheError::InUse(config.dir.clone()));
            }
            Err(error) => return Err(error.into()),
        };
        let Some(superblock) = read_superblock(&file, config).await? else {
            return Ok(Looked::Empty);
        };
        let chunk_bytes = u64::from(superblock.chunk_bytes);
        let count = chunks_in(file.size().await?, chunk_bytes)?;
        check_size(config, chunk_bytes, count)?;
        Ok(Looked::Kept(superblock.cache))
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
        let before = *shared.superblock.borrow();
        let known = Known {
            answered_lsn: if before.stopped {
                before.answered_lsn
            } else {
                0
            },
            damaged: before.damaged,
        };
        let outcome = replay(&mut log, &plan, reader, known, shared.world.now()).await?;
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
        log.next_ordinal = outcome.next_ordinal;
        log.next_fill_ordinal = plan.next_fill_ordinal;
        log.next_age = plan.newest_ordinal + plan.next_fill_ordinal + 1;
        *shared.log.borrow_mut() = log;
        shared.committed.advance(outcome.accepted_lsn);
        shared.durable.advance(outcome.accepted_lsn);
        if outcome.damaged && !before.damaged {
            // What follows destroys the evidence, so a start after a crash in it must be told.
            let superblock = shared.next_superblock(|superblock| superblock.damaged = true);
            write_superblock(&shared.file, &superblock).await?;
        }
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
            .extend(outcome.unused.iter().map(|(no, _)| *no));
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
        self.ready_chunks().await?;
        self.note_damage().await?;
        // Only now: everything of the stopped run that was not on the device is known to be gone.
        let superblock = *shared.superblock.borrow();
        if superblock.stopped || superblock.damaged {
            let clear = |superblock: &mut Superblock| {
                superblock.stopped = false;
                superblock.damaged = false;
            };
            shared.change_superblock(clear).await?;
        }
        Ok(())
    }

    /// Waits until writers can go on, or it is clear that they cannot yet. With everything full of
    /// unpublished records a start must not wait for what only comes after it.
    async fn ready_chunks(&self) -> Result<(), CacheError> {
        let shared = &self.shared;
        let wanted = Spare::States.chunks() + 1;
        while shared.log.borrow().ready.len() < wanted {
            shared.chunks_wanted.set(wanted);
            if shared.reclaim_once().await? {
                continue;
            }
            // All others hold what is not published. What state records need is enough to publish,
            // which frees some; without it the cache would never get out of this, as each crash
            // ends a chunk.
            let publishes = shared.log.borrow().ready.len() > Spare::Reclaim.chunks();
            if publishes || !shared.overgrow() {
                break;
            }
        }
        let ready = shared.log.borrow().ready.len();
        if ready >= wanted {
            return Ok(());
        }
        if shared.log.borrow().volumes.is_empty() {
            return Err(CacheError::TooSmall {
                have: shared.size_limit.get(),
                need: SUPERBLOCK_BYTES + CHUNKS_LEAST * shared.log.borrow().chunk_bytes(),
            });
        }
        tracing::error!(
            ready,
            "the cache is full of unpublished writes; writers wait until some are published (docs/runbooks/store-unavailable.md; raise `cache.disk_size_gb` if that does not end)"
        );
        Ok(())
    }

    /// Writes down which volumes are damaged: the next start will not find out by itself.
    async fn note_damage(&self) -> Result<(), CacheError> {
        let shared = &self.shared;
        let damaged: Vec<Id> = {
            let log = shared.log.borrow();
            let news = |v: &&Volume| v.damage.is_some() && !v.state.damaged;
            let news = log.volumes.values().filter(news);
            news.map(|volume| volume.state.id).collect()
        };
        let mut lsn = 0;
        for id in damaged {
            // Nobody makes room before the start has ended.
            if !shared.log.borrow().has_room(0, Spare::None) {
                let have = shared.size_limit.get();
                let need = have + shared.log.borrow().chunk_bytes();
                return Err(CacheError::TooSmall { have, need });
            }
            lsn = shared.log.borrow_mut().append_state(id);
        }
        shared.flush_to(lsn).await
    }

    fn report(&self) {
        for volume in self.volumes() {
            match &volume.damage {
                Some(damage) => tracing::error!(
                    volume = volume.name, %damage,
                    "unpublished writes in the cache log are not readable; the export takes no writes until the loss is accepted (docs/runbooks/fsync-failed.md)"
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
    fn new(world: W, file: W::File, config: CacheConfig, superblock: Superblock) -> Self {
        let chunk_pages = superblock.chunk_bytes / PAGE_U32;
        Self {
            world,
            file,
            size_limit: Cell::new(config.size_bytes_max),
            disk_full: Cell::new(false),
            states_waiting: Cell::new(0),
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
            cuts_wanted: Notify::new(),
            space_freed: Notify::new(),
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
    assert!(
        chunk_bytes.is_power_of_two() && chunk_bytes >= crate::chunk::CHUNK_BYTES_MIN,
        "chunks of {chunk_bytes} bytes"
    );
    let superblock = Superblock {
        cache: Id(world.random_id()),
        chunk_bytes,
        generation: 1,
        oldest_live: 1,
        stopped: false,
        damaged: false,
        answered_lsn: 0,
    };
    if file.size().await? < SUPERBLOCK_BYTES {
        file.grow(SUPERBLOCK_BYTES).await?;
    }
    write_superblock(file, &superblock).await?;
    tracing::info!(dir = %config.dir.display(), cache = %superblock.cache, format = FORMAT, "created a cache");
    Ok(superblock)
}

/// Durably, where no flusher runs.
pub(super) async fn write_superblock<F: File>(
    file: &F,
    superblock: &Superblock,
) -> Result<(), CacheError> {
    put_superblock(file, superblock).await?;
    file.persist().await?;
    Ok(())
}

pub(super) async fn put_superblock<F: File>(
    file: &F,
    superblock: &Superblock,
) -> Result<(), CacheError> {
    let at = SUPERBLOCK_AT[usize::from(superblock.generation % 2 == 1)];
    let (_, written) = file.write_at(at, Buf::copy_of(&superblock.encode())).await;
    Ok(written?)
}

/// Whole chunks of a log file.
fn chunks_in(file_bytes: u64, chunk_bytes: u64) -> Result<u64, CacheError> {
    let chunks_bytes = file_bytes.checked_sub(SUPERBLOCK_BYTES);
    let chunks_bytes = chunks_bytes.ok_or(CacheError::Damaged {
        at: file_bytes,
        what: "the file was cut short",
    })?;
    Ok(chunks_bytes / chunk_bytes)
}

/// A cache must hold the largest write several times over, and not lose chunks by shrinking.
fn check_size(config: &CacheConfig, chunk_bytes: u64, count: u64) -> Result<(), CacheError> {
    let chunks_for_writes = if config.chunk_bytes.is_some() {
        CHUNKS_LEAST
    } else {
        (2 * WRITE_BYTES_MAX).div_ceil(chunk_bytes) + CHUNKS_LEAST
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
