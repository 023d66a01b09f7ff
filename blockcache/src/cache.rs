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
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use world::sync::Notify;
use world::{DiskError, ETag, Instant, World};

use crate::chunk::Superblock;
use crate::log::{ChunkState, Log, Open, Spare, Volume};
use crate::record::{INTENTS_MAX, TEXT_BYTES_MAX, VolumeState};
use crate::watermark::Watermark;
use crate::{CacheError, Epoch, Id, PageRange, Seq};

mod cut;
mod fills;
mod fork;
mod open;
mod reader;
mod relocate;
mod shared;
mod tasks;
mod together;
mod volume;

pub use cut::{Cut, CutContent, CutExtent};
pub use fork::{ForkBase, NewFork, PendingFork};
pub(crate) use reader::{Reader, is_fill, recovered};
pub use together::{CutPart, NewIntent};

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
    /// Rule 22: a volume with a fork that nobody has published goes on publishing behind the fork's cut.
    ForkCutPassed,
    /// Rule 2: a fork reads what its parent is now, and not its cut.
    ForkReadsIndex,
    /// Rule 30: volumes that are cut together are cut one after the other, and written in between.
    CutsApart,
    /// Rule 30: the bound of a cut counts for each volume by itself.
    BoundsApart,
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
    /// How long the oldest of them has waited: since it was written, or since this start found it.
    pub dirty_age: Duration,
    /// Unpublished records that should be in the log are not readable: nothing may be written
    /// until [`Cache::accept_loss`] or [`Cache::forget`] accepts that.
    pub damage: Option<String>,
    /// The last write of the unbroken run that is there: what reads of a damaged volume show.
    pub kept: Seq,
    /// Forks of it that are not done in the store, oldest first.
    pub forks: Vec<PendingFork>,
    /// Set: it is a fork that is not in the store, and nothing of it may be published before.
    pub base: Option<ForkBase>,
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

/// What a start would find in a cache folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nothing that counts: it would begin a new cache.
    Empty,
    /// The log of this cache.
    Kept(Id),
}

/// What happened to one volume since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeCounts {
    /// Writes that were delayed or had to wait because of the dirty bound or a full log, and for how
    /// long in all.
    pub throttled: u64,
    pub throttled_for: Duration,
    /// Pages of it that were evicted, those that newer ones had replaced too.
    pub evicted_pages: u64,
    /// Reads of clean pages that were damaged on the disk, and came from the store instead.
    pub decayed_reads: u64,
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
    /// Writes that wait now.
    pub writers_waiting: u32,
    /// The file could not grow to its size: the disk is full.
    pub disk_full: bool,
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
    /// To who holds a cut that he can take again: it is in the way of room that somebody waits for.
    cuts_wanted: Notify,
    space_freed: Notify,
    dirty_freed: Notify,
    dirty_grown: Notify,
    unpinned: Notify,
    /// Writers that wait now: syncs should hurry.
    writers_waiting: std::cell::Cell<u32>,
    /// State records that wait for room: without them nothing is published, and no room is made.
    states_waiting: std::cell::Cell<u32>,
    /// The file may grow to here: the configured size, what a full disk left, or a little more where
    /// nothing could be published otherwise.
    size_limit: std::cell::Cell<u64>,
    disk_full: std::cell::Cell<bool>,
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
        let now = self.shared.world.now();
        let volumes = log.volumes.values();
        let mut volumes: Vec<LocalVolume> = volumes.map(|volume| local(volume, now)).collect();
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
            writers_waiting: self.shared.writers_waiting.get(),
            disk_full: self.shared.disk_full.get(),
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
            // Whoever attaches it has seen its root.
            state.base = None;
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
            forgotten.state.base = None;
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

    /// Fails once the log has stopped (promise 8).
    pub fn check(&self) -> Result<(), CacheError> {
        self.shared.check()
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
        losses: Vec::new(),
        forks: Vec::new(),
        base: None,
    }
}

fn local(volume: &Volume, now: Instant) -> LocalVolume {
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
        dirty_age: dirty_age(volume, now),
        damage: volume.damage.clone(),
        kept: volume.kept(),
        forks: state.forks.clone(),
        base: state.base.clone(),
    }
}

/// How long the oldest unpublished write has waited.
fn dirty_age(volume: &Volume, now: Instant) -> Duration {
    let published = volume.state.published;
    let mut dirty = volume.dirty.iter();
    let first = dirty.find(|record| record.seq > published);
    first.map_or(Duration::ZERO, |record| now.since(record.since))
}
