//! The cache as its users see it. Bodies to come; this is the agreed interface.

use bytes::Bytes;
use std::path::PathBuf;
use world::{ETag, World};

use crate::{CacheError, Epoch, Id, PageRange, Seq};

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
}

/// The log-structured cache of one shard: a cheap handle.
#[derive(Debug)]
pub struct Cache<W: World> {
    world: W,
}

/// A publish that was decided and is durable here before the store hears of it (rule 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The nonce that the new root will carry.
    pub nonce: Id,
    /// The cut that it publishes.
    pub cut: Seq,
    /// The version of the root that it replaces.
    pub replaces: ETag,
}

/// What the log holds of a volume, found at open or kept since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalVolume {
    pub id: Id,
    pub name: String,
    pub epoch: Epoch,
    /// The nonce of the last root that this log knows to be published or opened by itself.
    pub nonce: Id,
    /// Everything up to here is in the store.
    pub published: Seq,
    /// The last write.
    pub last: Seq,
    /// Publishes whose outcome is not known, oldest first.
    pub intents: Vec<Intent>,
    /// Unpublished bytes in the log.
    pub dirty_bytes: u64,
}

/// One volume in the cache: a cheap handle. All offsets and lengths are multiples of 512 bytes.
#[derive(Debug)]
pub struct CacheVolume<W: World> {
    cache: Cache<W>,
}

impl<W: World> Clone for Cache<W> {
    fn clone(&self) -> Self {
        Self {
            world: self.world.clone(),
        }
    }
}

impl<W: World> Clone for CacheVolume<W> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
        }
    }
}

impl<W: World> Cache<W> {
    /// Opens or creates the cache folder, recovers the index, retires torn tails, writes the start
    /// record durably. Fails if another process holds it, or its format is foreign or newer.
    pub async fn open(world: W, config: CacheConfig) -> Result<Self, CacheError> {
        let _ = (world, config);
        todo!()
    }

    /// The random id of this cache folder: the owner in a root (rule 18).
    pub fn id(&self) -> Id {
        todo!()
    }

    /// Every volume that the log knows, by name.
    pub fn volumes(&self) -> Vec<LocalVolume> {
        todo!()
    }

    /// Begins (or resumes) writing a volume under `epoch`. Durable when it returns. The next write
    /// gets `max(last local, after) + 1`. `nonce` is that of the root read or written at open,
    /// `published` its cut. Drops the zero overlay and marks clean whatever is at or below it.
    pub async fn attach(&self, opened: Opened) -> Result<CacheVolume<W>, CacheError> {
        let _ = opened;
        todo!()
    }

    /// Drops all LBA-keyed records of a volume (rule 11: the root was last published by somebody
    /// else). Durable when it returns. Fills stay. The volume must have no dirty records, or
    /// `salvage` has kept them.
    pub async fn forget(&self, volume: Id) -> Result<(), CacheError> {
        let _ = volume;
        todo!()
    }

    /// One fdatasync for all who wait: every write that returned before this call is durable after.
    pub async fn flush(&self) -> Result<(), CacheError> {
        todo!()
    }

    /// Keeps decoded frame bytes (a multiple of 4 KiB, at most 128 KiB) under (object, frame).
    /// Best effort: a full cache drops it.
    pub async fn fill(&self, key: FillKey, data: &[u8]) {
        let _ = (key, data);
    }

    /// Copies pages `pages` (relative to the frame) of a kept frame into `out`; false if absent.
    pub async fn filled(&self, key: FillKey, pages: std::ops::Range<u32>, out: &mut [u8]) -> bool {
        let _ = (key, pages, out);
        todo!()
    }
}

/// What [`Cache::attach`] needs to know of the root.
#[derive(Clone, Debug)]
pub struct Opened {
    pub id: Id,
    pub name: String,
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

impl<W: World> CacheVolume<W> {
    /// Appends a write and returns its seq once it, and all before it, outlive the process.
    /// Waits while the dirty bound is reached (rule 10); never fails because the store is slow.
    pub async fn write(&self, at: u64, data: Bytes) -> Result<Seq, CacheError> {
        let _ = (at, data);
        todo!()
    }

    /// Appends "these bytes are zero": O(1) in the length. Used for TRIM and WRITE_ZEROES.
    pub async fn zero(&self, at: u64, len: u64) -> Result<Seq, CacheError> {
        let _ = (at, len);
        todo!()
    }

    /// Reads whole pages into `out` (`pages.bytes()` long) as far as they are here; the rest is
    /// returned, in order of address. Nothing is read from the store.
    pub async fn read(&self, pages: PageRange, out: &mut [u8]) -> Result<Vec<Missing>, CacheError> {
        let _ = (pages, out);
        todo!()
    }

    /// What is known of the range, as runs in order that cover it.
    pub fn known(&self, pages: PageRange) -> Vec<(PageRange, Known)> {
        let _ = pages;
        todo!()
    }

    /// Takes a cut of everything answered so far, after making it, and the intent to publish it,
    /// durable (rules 5, 11). None if nothing is dirty. One cut of a volume at a time.
    pub async fn cut(&self, nonce: Id, replaces: ETag) -> Result<Option<Cut<W>>, CacheError> {
        let _ = (nonce, replaces);
        todo!()
    }

    /// The root with this cut is published and its map is installed: all up to it is clean now.
    /// To be called in the same step that installs the map (no await between).
    pub fn published(&self, cut: Seq, nonce: Id) {
        let _ = (cut, nonce);
    }

    /// The state of the volume, as for [`Cache::volumes`].
    pub fn state(&self) -> LocalVolume {
        todo!()
    }

    /// How long the oldest unpublished write has waited.
    pub fn dirty_age(&self) -> std::time::Duration {
        todo!()
    }

    /// Waits until something is dirty that was not when the last cut was taken.
    pub async fn wait_dirty(&self) {}

    /// True once the dirty bytes are at half of the bound or more, or a writer waits: sync now.
    pub fn pressed(&self) -> bool {
        todo!()
    }
}

/// The immutable content of a cut: what changed since the last published one.
#[derive(Debug)]
pub struct Cut<W: World> {
    pub seq: Seq,
    /// In order of address, disjoint.
    pub extents: Vec<CutExtent>,
    #[expect(dead_code, reason = "interface sketch")]
    volume: CacheVolume<W>,
}

/// A run of pages of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutExtent {
    pub pages: PageRange,
    pub content: CutContent,
}

/// What the pages of a cut's extent hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutContent {
    Data,
    /// Data, to be completed from the volume's published map below: [`Cut::read`] returns patches.
    Partial,
    Zero,
}

impl<W: World> Cut<W> {
    /// Reads pages of the cut as they were when it was taken, whatever was written since.
    /// `Missing` only for `Partial` extents.
    pub async fn read(&self, pages: PageRange, out: &mut [u8]) -> Result<Vec<Missing>, CacheError> {
        let _ = (pages, out);
        todo!()
    }
}
