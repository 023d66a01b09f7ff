//! The cache as its users see it: effects in an order that keeps the promises.
//!
//! A write is appended in memory, handed to the kernel by the committer together with all others of
//! that moment, and answered when it and everything before it is there (promise 2). A flush waits for
//! one fdatasync that was submitted after those writes (promise 1). A cut becomes durable, together
//! with the intent to publish it, before the store hears of it (rules 5, 11). Background tasks
//! (`tasks.rs`) write, persist, seal and evict.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use world::sync::Notify;
use world::{DiskError, ETag, File, World};

use crate::budget::{self, Verdict};
use crate::chunk::Superblock;
use crate::index::{Base, Found, Overlay, Position, covered};
use crate::log::{ChunkState, Log, Open, Spare, Volume};
use crate::record::{INTENTS_MAX, PAGE, TEXT_BYTES_MAX, VolumeState};
use crate::watermark::Watermark;
use crate::{CacheError, Epoch, Id, PAGE_BYTES, PageNo, PageRange, SECTOR_BYTES, Seq};

mod cut;
mod fills;
mod open;
mod reader;
mod relocate;
mod tasks;

pub use cut::{Cut, CutContent, CutExtent};
pub(crate) use reader::{Reader, is_fill, recovered};

/// The largest single write; a client's request is at most this long.
pub const WRITE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Volumes that one log can know.
const VOLUMES_MAX: usize = 65_536;

/// How large, where, how much may be dirty.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The folder; holds one file `log` per shard.
    pub dir: PathBuf,
    /// The log file never grows beyond this.
    pub size_bytes_max: u64,
    /// Unpublished log bytes of all volumes together, at which writers wait.
    pub dirty_bytes_max: u64,
    /// The same for one volume.
    pub volume_dirty_bytes_max: u64,
    /// The size of a chunk in a log that does not exist yet; none: chosen by the size.
    pub chunk_bytes: Option<u32>,
    /// A rule broken on purpose, for the simulation to find.
    #[cfg(feature = "planted")]
    pub planted: Option<Planted>,
}

/// Which rule of the log a build for tests breaks.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Rule 1: the newest clean chunk goes first.
    EvictionOrder,
    /// Rule 2: a superseded record no longer keeps its chunk, though its replacement may be lost.
    SupersededIsFree,
    /// Rule 4: a recycled chunk goes on with the life that it had.
    LifeStays,
}

impl CacheConfig {
    /// A cache of this size where half may be dirty, a quarter by one volume.
    pub fn new(dir: impl Into<PathBuf>, size_bytes_max: u64) -> Self {
        Self {
            dir: dir.into(),
            size_bytes_max,
            dirty_bytes_max: size_bytes_max / 2,
            volume_dirty_bytes_max: size_bytes_max / 4,
            chunk_bytes: None,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }
}

/// A publish that was decided and is durable here before the store hears of it (rule 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The nonce that the new root will carry.
    pub nonce: Id,
    /// The cut that it publishes.
    pub cut: Seq,
    /// The version of the root that it replaces; empty: none.
    pub replaces: ETag,
}

/// What the log holds of a volume, found at open or kept since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalVolume {
    pub id: Id,
    pub name: String,
    pub size_bytes: u64,
    pub epoch: Epoch,
    /// The nonce of the last root that this log knows to be published or opened by itself.
    pub nonce: Id,
    /// Everything up to here is in the store.
    pub published: Seq,
    /// The last write.
    pub last: Seq,
    /// Attached and not detached since: this log may hold the epoch still (rule 14).
    pub attached: bool,
    /// Publishes whose outcome is not known, oldest first.
    pub intents: Vec<Intent>,
    /// Unpublished bytes in the log.
    pub dirty_bytes: u64,
    /// Unpublished records that should be in the log are not readable: nothing may be written
    /// until [`Cache::forget`] accepts the loss.
    pub damage: Option<String>,
}

/// What [`Cache::attach`] needs to know of the root.
#[derive(Clone, Debug)]
pub struct Opened {
    pub id: Id,
    pub name: String,
    pub size_bytes: u64,
    pub epoch: Epoch,
    pub nonce: Id,
    pub published: Seq,
}

/// A frame of an immutable object in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FillKey {
    pub object: Id,
    pub frame: u32,
}

/// Pages that the cache does not hold. The reader puts the store's bytes there, then the patches on
/// top, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub pages: PageRange,
    pub patches: Vec<Patch>,
}

/// Newer bytes for a part of a missing page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Byte offset in the volume.
    pub at: u64,
    pub bytes: Bytes,
}

/// What the cache knows of a run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Data,
    Zero,
    /// Ask the store's map.
    Absent,
}

/// How full the cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub size_bytes: u64,
    /// Bytes in chunks that hold something.
    pub used_bytes: u64,
    pub dirty_bytes: u64,
    pub index_bytes: u64,
    pub volumes: u64,
    pub fills: u64,
    /// fdatasync calls and chunks evicted since the start.
    pub persists: u64,
    pub evictions: u64,
    /// Writes that had to wait or were delayed because of the dirty bound or a full log.
    pub throttled: u64,
    /// Set once the log stopped (promise 8).
    pub stopped: Option<String>,
}

/// The log-structured cache of one shard: a cheap handle.
pub struct Cache<W: World> {
    shared: Rc<Shared<W>>,
}

/// One volume in the cache: a cheap handle. All offsets and lengths are multiples of 512 bytes.
pub struct CacheVolume<W: World> {
    cache: Cache<W>,
    id: Id,
}

/// What the tasks of a cache share. One thread, one owner of the log.
struct Shared<W: World> {
    world: W,
    file: W::File,
    config: CacheConfig,
    log: RefCell<Log>,
    superblock: RefCell<Superblock>,
    failed: RefCell<Option<DiskError>>,
    counters: RefCell<Counters>,
    committed: Watermark,
    durable: Watermark,
    /// The flusher's rounds: a waiter needs one that starts after it came.
    persists_started: std::cell::Cell<u64>,
    persists_wanted: std::cell::Cell<u64>,
    persists_done: Watermark,
    commit_wanted: Notify,
    persist_wanted: Notify,
    seal_wanted: Notify,
    space_wanted: Notify,
    /// Ready chunks that a waiting writer needs.
    chunks_wanted: std::cell::Cell<usize>,
    space_freed: Notify,
    dirty_freed: Notify,
    dirty_grown: Notify,
    unpinned: Notify,
    /// Writers that wait now: syncs should hurry.
    writers_waiting: std::cell::Cell<u32>,
    /// The file may grow to here: the configured size, or what a full disk left.
    size_limit: std::cell::Cell<u64>,
    /// The fill chunk in use, and those that wait for their footer.
    open_fills: RefCell<Option<Open>>,
    sealing_fills: RefCell<VecDeque<Open>>,
    /// Chunks of the last run that hold nothing: prepared first.
    unused: RefCell<Vec<u32>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    persists: u64,
    evictions: u64,
    throttled: u64,
}

impl<W: World> Clone for Cache<W> {
    fn clone(&self) -> Self {
        Self {
            shared: Rc::clone(&self.shared),
        }
    }
}

impl<W: World> fmt::Debug for Cache<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("dir", &self.shared.config.dir)
            .finish_non_exhaustive()
    }
}

impl<W: World> Clone for CacheVolume<W> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            id: self.id,
        }
    }
}

impl<W: World> fmt::Debug for CacheVolume<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheVolume({})", self.id)
    }
}

impl<W: World> Cache<W> {
    /// The random id of this cache folder: the owner in a root (rule 18).
    pub fn id(&self) -> Id {
        self.shared.superblock.borrow().cache
    }

    /// Every volume that the log knows, by name.
    pub fn volumes(&self) -> Vec<LocalVolume> {
        let log = self.shared.log.borrow();
        let mut volumes: Vec<LocalVolume> = log.volumes.values().map(local).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    pub fn stats(&self) -> CacheStats {
        let log = self.shared.log.borrow();
        let counters = *self.shared.counters.borrow();
        let used = log
            .chunks
            .iter()
            .filter(|chunk| chunk.state != ChunkState::Free)
            .count();
        CacheStats {
            size_bytes: self.shared.config.size_bytes_max,
            used_bytes: used as u64 * log.chunk_bytes(),
            dirty_bytes: log.dirty_bytes,
            index_bytes: log
                .volumes
                .values()
                .map(|volume| volume.index.memory_bytes())
                .sum::<u64>()
                + log
                    .chunks
                    .iter()
                    .map(|chunk| chunk.crcs.len() as u64 * 4)
                    .sum::<u64>(),
            volumes: log.volumes.len() as u64,
            fills: log.fills.len() as u64,
            persists: counters.persists,
            evictions: counters.evictions,
            throttled: counters.throttled,
            stopped: self
                .shared
                .failed
                .borrow()
                .as_ref()
                .map(ToString::to_string),
        }
    }

    /// Makes an intent to open (create, take) a volume durable, before the store hears of it: should
    /// the process die between that and [`Cache::attach`], the next start knows the nonce.
    pub async fn intend_open(&self, opened: &Opened) -> Result<(), CacheError> {
        let intent = Intent {
            nonce: opened.nonce,
            cut: opened.published,
            replaces: ETag(String::new()),
        };
        self.change_state(opened, |state| {
            if state.intents.len() == INTENTS_MAX {
                state.intents.remove(0);
            }
            state.intents.push(intent);
        })
        .await
    }

    /// Begins (or resumes) writing a volume under `epoch`. Durable when it returns. The next write
    /// gets `max(last local, published) + 1`; whatever is at or below `published` is clean from now
    /// on. If the root is ahead of the log all the same, the log's records of it are dropped
    /// (rule 5).
    pub async fn attach(&self, opened: Opened) -> Result<CacheVolume<W>, CacheError> {
        let behind = {
            let log = self.shared.log.borrow();
            // Damaged: what is missing may be unpublished all the same, and an operator decides.
            log.volumes
                .get(&opened.id)
                .is_some_and(|volume| volume.last < opened.published && volume.damage.is_none())
        };
        if behind {
            self.shared.log.borrow_mut().forget(opened.id);
        }
        let changed = opened.clone();
        self.change_state(&opened, move |state| {
            state.name = changed.name;
            state.size_bytes = changed.size_bytes;
            state.epoch = changed.epoch;
            state.nonce = changed.nonce;
            state.published = state.published.max(changed.published);
            state.attached = true;
            state.intents.clear();
        })
        .await?;
        self.shared.sweep(opened.id);
        Ok(CacheVolume {
            cache: self.clone(),
            id: opened.id,
        })
    }

    /// Changes the durable knowledge of a volume, which is added where it is new.
    async fn change_state(
        &self,
        opened: &Opened,
        change: impl FnOnce(&mut VolumeState),
    ) -> Result<(), CacheError> {
        assert!(
            opened.name.len() <= TEXT_BYTES_MAX,
            "volume names are checked at the border"
        );
        self.shared.room_for_state().await?;
        let lsn = {
            let mut log = self.shared.log.borrow_mut();
            let known = log.volumes.contains_key(&opened.id);
            // Of a volume that is new here nothing before counts. There may be something: a chunk that
            // was evicted with the last that was known of the volume, and is not overwritten yet,
            // comes back at a start, with pages that somebody else has replaced since.
            let valid_lsn = log.next_lsn;
            if !known && log.volumes.len() >= VOLUMES_MAX {
                return Err(CacheError::TooManyVolumes(VOLUMES_MAX));
            }
            let volume = log
                .volumes
                .entry(opened.id)
                .or_insert_with(|| Volume::new(new_state(opened, valid_lsn)));
            if let Some(damage) = &volume.damage {
                return Err(CacheError::VolumeDamaged {
                    name: volume.state.name.clone(),
                    what: damage.clone(),
                });
            }
            change(&mut volume.state);
            volume.fenced = false;
            volume.last = volume.last.max(volume.state.published);
            log.append_state(opened.id)
        };
        self.shared.flush_to(lsn).await
    }

    /// Drops all LBA-keyed records of a volume (rule 11: somebody else published since). Durable
    /// when it returns. Fills stay. Dirty records go too: whoever calls has decided that.
    pub async fn forget(&self, volume: Id) -> Result<(), CacheError> {
        self.shared.room_for_state().await?;
        let lsn = {
            let mut log = self.shared.log.borrow_mut();
            log.forget(volume);
            if !log.volumes.contains_key(&volume) {
                return Ok(());
            }
            let forgotten = log.volumes.get_mut(&volume).expect("just seen");
            forgotten.state.attached = false;
            forgotten.state.intents.clear();
            // Nor is it known any more what the store once held: an operator may accept a root that
            // went back behind it.
            (forgotten.state.published, forgotten.state.epoch) = (Seq(0), Epoch(0));
            forgotten.last = Seq(0);
            log.append_state(volume)
        };
        self.shared.dirty_freed.notify_waiters();
        self.shared.space_wanted.notify_one();
        self.shared.flush_to(lsn).await
    }

    /// A handle to a volume that the log knows, also one that is not attached (to read what it
    /// holds).
    pub fn volume(&self, id: Id) -> Option<CacheVolume<W>> {
        let known = self.shared.log.borrow().volumes.contains_key(&id);
        known.then(|| CacheVolume {
            cache: self.clone(),
            id,
        })
    }

    /// One fdatasync for all who wait: every write that returned before this call is durable after.
    pub async fn flush(&self) -> Result<(), CacheError> {
        let lsn = self.shared.log.borrow().next_lsn - 1;
        self.shared.flush_to(lsn).await
    }

    /// Makes everything durable and the next start quick. The handle stays usable.
    pub async fn close(&self) -> Result<(), CacheError> {
        self.flush().await
    }
}

fn new_state(opened: &Opened, valid_lsn: u64) -> VolumeState {
    VolumeState {
        id: opened.id,
        name: opened.name.clone(),
        size_bytes: opened.size_bytes,
        epoch: opened.epoch,
        nonce: opened.nonce,
        published: Seq(0),
        last: Seq(0),
        valid_lsn,
        attached: false,
        damaged: false,
        intents: Vec::new(),
    }
}

fn local(volume: &Volume) -> LocalVolume {
    let state = &volume.state;
    let dirty = volume.last > state.published;
    LocalVolume {
        id: state.id,
        name: state.name.clone(),
        size_bytes: state.size_bytes,
        epoch: state.epoch,
        nonce: state.nonce,
        published: state.published,
        last: volume.last,
        attached: state.attached,
        intents: state.intents.clone(),
        // Records that are published and not yet swept are not dirty.
        dirty_bytes: if dirty { volume.dirty_bytes } else { 0 },
        damage: volume.damage.clone(),
    }
}

impl<W: World> CacheVolume<W> {
    pub fn id(&self) -> Id {
        self.id
    }

    fn shared(&self) -> &Rc<Shared<W>> {
        &self.cache.shared
    }

    /// Appends a write and returns its seq once it, and all before it, outlive the process.
    /// Waits while the dirty bound is reached (rule 10); never fails because the store is slow.
    pub async fn write(&self, at: u64, data: Bytes) -> Result<Seq, CacheError> {
        let len = data.len() as u64;
        assert!(at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) && len > 0);
        assert!(
            len <= WRITE_BYTES_MAX,
            "a write of {len} bytes is over the limit"
        );
        let pages = PageRange::touched_by(at, len).pages();
        let turn = self.admit(pages).await?;
        // No await from here to the end of the append: all pieces of a write are in one cut or none.
        let appended = {
            let mut log = self.shared().log.borrow_mut();
            log.append_write(self.id, at, &data, self.shared().world.now())
        };
        drop((turn, data));
        self.commit(appended).await
    }

    /// Appends "these bytes are zero": O(1) in the length. For TRIM and WRITE_ZEROES.
    pub async fn zero(&self, at: u64, len: u64) -> Result<Seq, CacheError> {
        assert!(at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) && len > 0);
        let turn = self.admit(3).await?;
        let appended = {
            let now = self.shared().world.now();
            let mut log = self.shared().log.borrow_mut();
            let (end, first) = (at + len, at.next_multiple_of(PAGE_BYTES));
            let last = (at + len) / PAGE_BYTES * PAGE_BYTES;
            let mut sectors = |from: u64, to: u64| {
                let zeros = vec![0; usize::try_from(to - from).expect("within a page")];
                log.append_write(self.id, from, &zeros, now)
            };
            if first > last || first >= end {
                sectors(at, end)
            } else {
                let mut appended = (at < first).then(|| sectors(at, first));
                if last < end {
                    appended = Some(sectors(last, end));
                }
                if first < last {
                    let pages = PageRange::new(first / PAGE_BYTES, last / PAGE_BYTES);
                    appended = Some(log.append_zeros(self.id, pages, now));
                }
                appended.expect("the range is not empty")
            }
        };
        drop(turn);
        self.commit(appended).await
    }

    /// Makes every write of this volume that returned before this call durable.
    pub async fn flush(&self) -> Result<(), CacheError> {
        let lsn = self
            .shared()
            .log
            .borrow()
            .volumes
            .get(&self.id)
            .map_or(0, |v| v.last_lsn);
        self.shared().flush_to(lsn).await
    }

    /// Waits for those who came before, for the dirty budget, then for room in the log. When it
    /// returns, an append of so many pages succeeds without waiting, if nothing is awaited before
    /// it. The turn is kept until after the append: writes take effect in the order in which they
    /// were first polled, so that a stalled one never lands on top of its own repetition.
    async fn admit(&self, pages: u64) -> Result<Turn<W>, CacheError> {
        let shared = self.shared();
        let turn = Turn::take(self);
        let mut delayed = false;
        let mut throttled = false;
        loop {
            shared.check()?;
            if self.is_fenced() {
                return Err(CacheError::Fenced);
            }
            let verdict = self.verdict(pages * PAGE_BYTES);
            match verdict {
                Verdict::After(delay) if !delayed => {
                    delayed = true;
                    throttled = true;
                    shared.dirty_grown.notify_waiters();
                    shared.world.sleep(delay).await;
                    continue;
                }
                _ if turn.waits().await => continue,
                Verdict::Wait => {
                    throttled = true;
                    shared.dirty_grown.notify_waiters();
                    shared.waiting(shared.dirty_freed.notified()).await;
                    continue;
                }
                Verdict::Go | Verdict::After(_) => {}
            }
            if shared.log.borrow().has_room(pages, Spare::States) {
                break;
            }
            throttled = true;
            let chunks = shared.log.borrow().chunks_for(pages) + Spare::States.chunks();
            shared
                .chunks_wanted
                .set(shared.chunks_wanted.get().max(chunks));
            shared.space_wanted.notify_one();
            shared.commit_wanted.notify_one();
            shared.dirty_grown.notify_waiters();
            shared.waiting(shared.space_freed.notified()).await;
        }
        if throttled {
            shared.counters.borrow_mut().throttled += 1;
        }
        if shared.log.borrow().ready.len() < tasks::READY_CHUNKS_MIN {
            shared.space_wanted.notify_one();
        }
        Ok(turn)
    }

    fn verdict(&self, bytes: u64) -> Verdict {
        let shared = self.shared();
        let log = shared.log.borrow();
        let own = log
            .volumes
            .get(&self.id)
            .map_or(0, |volume| volume.dirty_bytes);
        let of_volume = budget::admit(own, bytes, shared.config.volume_dirty_bytes_max);
        let of_all = budget::admit(log.dirty_bytes, bytes, shared.dirty_bytes_max());
        match (of_volume, of_all) {
            (Verdict::Wait, _) | (_, Verdict::Wait) => Verdict::Wait,
            (Verdict::After(a), Verdict::After(b)) => Verdict::After(a.max(b)),
            (Verdict::After(delay), Verdict::Go) | (Verdict::Go, Verdict::After(delay)) => {
                Verdict::After(delay)
            }
            (Verdict::Go, Verdict::Go) => Verdict::Go,
        }
    }

    async fn commit(&self, appended: crate::log::Appended) -> Result<Seq, CacheError> {
        let shared = self.shared();
        shared.commit_wanted.notify_one();
        if let Some(volume) = shared.log.borrow().volumes.get(&self.id) {
            volume.dirtied.notify_waiters();
        }
        if self.pressed() {
            shared.dirty_grown.notify_waiters();
        }
        shared.reached(&shared.committed, appended.lsn).await?;
        Ok(appended.seq)
    }

    /// Reads whole pages into `out` (`pages.bytes()` long) as far as they are here; the rest is
    /// returned, in order of address. Nothing is read from the store.
    pub async fn read(&self, pages: PageRange, out: &mut [u8]) -> Result<Vec<Missing>, CacheError> {
        assert_eq!(
            out.len() as u64,
            pages.bytes(),
            "one buffer for the whole range"
        );
        let shared = self.shared();
        let runs = loop {
            let (runs, pins, staged) = shared.look_up(self.id, pages);
            if !staged {
                break (runs, pins);
            }
            drop(pins);
            // Newer bytes are on their way to the kernel; they are there in a moment.
            let lsn = shared.log.borrow().next_lsn - 1;
            shared.commit_wanted.notify_one();
            shared.reached(&shared.committed, lsn).await?;
        };
        let (runs, pins) = runs;
        let mut missing = Vec::new();
        for (run, found) in runs {
            let from = usize::try_from((run.start.0 - pages.start.0) * PAGE_BYTES).expect("in out");
            let len = usize::try_from(run.bytes()).expect("in out");
            let into = &mut out[from..from + len];
            self.read_run(run, &found, into, &mut missing).await?;
        }
        drop(pins);
        Ok(missing)
    }

    async fn read_run(
        &self,
        run: PageRange,
        found: &Found,
        into: &mut [u8],
        missing: &mut Vec<Missing>,
    ) -> Result<(), CacheError> {
        match found {
            Found::Zero => into.fill(0),
            Found::Absent => missing.push(Missing {
                pages: run,
                patches: Vec::new(),
            }),
            Found::Log(at) => match self.shared().read_log(*at, into).await {
                Err(CacheError::Damaged { .. }) if self.is_clean(run) => {
                    // The store holds the same bytes: decay of the SSD costs a fetch, not data.
                    tracing::warn!(volume = %self.id, pages = %run, "damaged clean pages in the cache log; reading them from the store");
                    missing.push(Missing {
                        pages: run,
                        patches: Vec::new(),
                    });
                }
                other => other?,
            },
            Found::Overlaid { base, overlays } => {
                let patches = self
                    .shared()
                    .overlay_patches(run.start, *base, overlays, into)
                    .await?;
                if let Some(patches) = patches {
                    missing.push(Missing {
                        pages: run,
                        patches,
                    });
                }
            }
        }
        Ok(())
    }

    /// No unpublished record touches these pages.
    fn is_clean(&self, pages: PageRange) -> bool {
        let log = self.shared().log.borrow();
        let Some(volume) = log.volumes.get(&self.id) else {
            return false;
        };
        let mut unpublished = volume
            .dirty
            .iter()
            .filter(|record| record.seq > volume.state.published);
        volume.damage.is_none()
            && !unpublished.any(|record| match record.what {
                crate::log::Written::Pages { pages: p, .. }
                | crate::log::Written::Zeros { pages: p } => p.overlap(pages).is_some(),
                crate::log::Written::Sectors { page, .. } => {
                    pages.overlap(PageRange::new(page.0, page.0 + 1)).is_some()
                }
            })
    }

    /// What is known of the range, as runs in order that cover it.
    pub fn known(&self, pages: PageRange) -> Vec<(PageRange, Known)> {
        let log = self.shared().log.borrow();
        let Some(volume) = log.volumes.get(&self.id) else {
            return vec![(pages, Known::Absent)];
        };
        let runs = volume.index.lookup(pages, volume.state.published);
        let kind = |found: &Found| match found {
            Found::Log(_) | Found::Overlaid { .. } => Known::Data,
            Found::Zero => Known::Zero,
            Found::Absent => Known::Absent,
        };
        runs.iter()
            .map(|(run, found)| (*run, kind(found)))
            .collect()
    }

    /// The root with this cut is published and its map is installed: all up to it is clean now.
    /// To be called in the same step that installs the map (no await between).
    pub fn published(&self, cut: Seq, nonce: Id) {
        {
            let mut log = self.shared().log.borrow_mut();
            let Some(volume) = log.volumes.get_mut(&self.id) else {
                return;
            };
            assert!(
                cut <= volume.last,
                "published {cut} beyond the last write {}",
                volume.last
            );
            let state = &mut volume.state;
            state.published = state.published.max(cut);
            state.nonce = nonce;
            state.intents.clear();
        }
        self.keep_state();
        self.shared().sweep(self.id);
    }

    /// Ownership was given up: a later start does not resume this epoch by itself (rule 14).
    pub async fn detached(&self) -> Result<(), CacheError> {
        let shared = self.shared();
        shared.room_for_state().await?;
        let lsn = {
            let mut log = shared.log.borrow_mut();
            let Some(volume) = log.volumes.get_mut(&self.id) else {
                return Ok(());
            };
            volume.state.attached = false;
            log.append_state(self.id)
        };
        shared.flush_to(lsn).await
    }

    /// The volume grew; durable with the next state record.
    pub fn resized(&self, size_bytes: u64) {
        if let Some(volume) = self.shared().log.borrow_mut().volumes.get_mut(&self.id) {
            volume.state.size_bytes = size_bytes;
        }
        self.keep_state();
    }

    /// Writes the state down soon. Losing it costs nothing but a question to the store: the intent
    /// is durable already.
    fn keep_state(&self) {
        let (shared, id) = (Rc::clone(&self.cache.shared), self.id);
        self.shared().world.spawn(async move {
            if shared.room_for_state().await.is_ok() {
                let known = shared.log.borrow().volumes.contains_key(&id);
                if known {
                    shared.log.borrow_mut().append_state(id);
                    shared.commit_wanted.notify_one();
                }
            }
        });
    }

    /// The state of the volume, as for [`Cache::volumes`]; none once it is dropped from the log.
    pub fn state(&self) -> Option<LocalVolume> {
        self.shared().log.borrow().volumes.get(&self.id).map(local)
    }

    /// How long the oldest unpublished write has waited.
    pub fn dirty_age(&self) -> Duration {
        let shared = self.shared();
        let log = shared.log.borrow();
        let Some(volume) = log.volumes.get(&self.id) else {
            return Duration::ZERO;
        };
        let first = volume
            .dirty
            .iter()
            .find(|record| record.seq > volume.state.published);
        first.map_or(Duration::ZERO, |record| {
            shared.world.now().since(record.since)
        })
    }

    /// Returns once something is unpublished.
    pub async fn wait_dirty(&self) {
        let dirtied = {
            let log = self.shared().log.borrow();
            log.volumes.get(&self.id).map(|v| Rc::clone(&v.dirtied))
        };
        // A volume that is dropped from the log never becomes dirty.
        let Some(dirtied) = dirtied else {
            return std::future::pending().await;
        };
        loop {
            // Made before the look: a write between the two wakes it.
            let next = dirtied.notified();
            let state = self.state();
            if state.is_some_and(|state| state.last > state.published) {
                return;
            }
            next.await;
        }
    }

    /// Returns once [`CacheVolume::pressed`].
    pub async fn wait_pressed(&self) {
        loop {
            let next = self.shared().dirty_grown.notified();
            if self.pressed() {
                return;
            }
            next.await;
        }
    }

    /// Another epoch of the volume exists: writes that wait for room, and all later ones, fail with
    /// [`CacheError::Fenced`] until the next attach, for nothing will be published that could make
    /// room for them.
    pub fn fence(&self) {
        if let Some(volume) = self.shared().log.borrow_mut().volumes.get_mut(&self.id) {
            volume.fenced = true;
        }
        self.shared().dirty_freed.notify_waiters();
        self.shared().space_freed.notify_waiters();
        // Those who wait for their turn follow one by one, as each before them gives up.
    }

    fn is_fenced(&self) -> bool {
        let log = self.shared().log.borrow();
        log.volumes.get(&self.id).is_none_or(|volume| volume.fenced)
    }

    /// True once the dirty bytes are at half of a bound or more, or a writer waits: sync now.
    pub fn pressed(&self) -> bool {
        let shared = self.shared();
        let log = shared.log.borrow();
        let own = log
            .volumes
            .get(&self.id)
            .map_or(0, |volume| volume.dirty_bytes);
        own > 0
            && (shared.writers_waiting.get() > 0
                || budget::pressed(own, shared.config.volume_dirty_bytes_max)
                || budget::pressed(log.dirty_bytes, shared.dirty_bytes_max()))
    }
}

/// A writer's place among those of its volume; given up when it is dropped.
struct Turn<W: World> {
    volume: CacheVolume<W>,
    number: u64,
}

impl<W: World> Turn<W> {
    fn take(volume: &CacheVolume<W>) -> Self {
        let mut log = volume.shared().log.borrow_mut();
        let number = log.volumes.get_mut(&volume.id).map_or(0, |known| {
            let number = known.next_turn;
            known.next_turn += 1;
            known.turns.push_back(number);
            number
        });
        drop(log);
        Self {
            volume: volume.clone(),
            number,
        }
    }

    /// False if nobody is before. Otherwise waits until somebody before has gone, and returns true.
    async fn waits(&self) -> bool {
        let turned = {
            let log = self.volume.shared().log.borrow();
            let Some(known) = log.volumes.get(&self.volume.id) else {
                return false;
            };
            if known.turns.front() == Some(&self.number) {
                return false;
            }
            Rc::clone(&known.turned)
        };
        turned.notified().await;
        true
    }
}

impl<W: World> Drop for Turn<W> {
    fn drop(&mut self) {
        let mut log = self.volume.shared().log.borrow_mut();
        let Some(known) = log.volumes.get_mut(&self.volume.id) else {
            return;
        };
        if known.turns.front() == Some(&self.number) {
            known.turns.pop_front();
        } else {
            known.turns.retain(|number| *number != self.number);
        }
        known.turned.notify_waiters();
    }
}

/// Keeps chunks from being reused while bytes are read from them.
struct Pins<W: World> {
    shared: Rc<Shared<W>>,
    chunks: Vec<u32>,
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
struct Waiting<'a>(&'a std::cell::Cell<u32>);

impl<'a> Waiting<'a> {
    fn new(count: &'a std::cell::Cell<u32>) -> Self {
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
    fn check(&self) -> Result<(), CacheError> {
        match &*self.failed.borrow() {
            None => Ok(()),
            Some(error) => Err(CacheError::Stopped(error.clone())),
        }
    }

    async fn reached(&self, mark: &Watermark, target: u64) -> Result<(), CacheError> {
        mark.reached(target).await.or_else(|_broken| self.check())
    }

    /// As configured, as far as the log can hold it: it needs room to turn, and on a full disk it is
    /// smaller than it was meant to be.
    fn dirty_bytes_max(&self) -> u64 {
        let holds = self.size_limit.get() / 8 * 5;
        self.config.dirty_bytes_max.min(holds)
    }

    /// Counts a waiting writer while it waits.
    async fn waiting(&self, freed: impl Future<Output = ()>) {
        let _waiting = Waiting::new(&self.writers_waiting);
        freed.await;
    }

    /// Waits until a state record fits. It may use a chunk that writers leave.
    async fn room_for_state(&self) -> Result<(), CacheError> {
        self.room(Spare::Reclaim).await
    }

    /// Waits until a state record fits beside what is spared for others.
    async fn room(&self, spare: Spare) -> Result<(), CacheError> {
        loop {
            self.check()?;
            if self.log.borrow().has_room(0, spare) {
                return Ok(());
            }
            self.chunks_wanted.set(self.chunks_wanted.get().max(3));
            self.space_wanted.notify_one();
            self.commit_wanted.notify_one();
            self.space_freed.notified().await;
        }
    }

    /// Waits until the batch `lsn` and all before it survive a power cut.
    async fn flush_to(&self, lsn: u64) -> Result<(), CacheError> {
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
    async fn persist_once(&self) -> Result<(), CacheError> {
        let wanted = self.persists_started.get() + 1;
        self.persists_wanted
            .set(self.persists_wanted.get().max(wanted));
        self.persist_wanted.notify_one();
        self.reached(&self.persists_done, wanted).await
    }

    /// A write or an fsync failed: nothing more is accepted, ever (promise 8).
    fn fail(&self, error: DiskError) {
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
    fn look_up(
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
    async fn read_log(&self, at: Position, into: &mut [u8]) -> Result<(), CacheError> {
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
    async fn overlay_patches(
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
    fn sweep(self: &Rc<Self>, id: Id) {
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
