//! A volume in the object store: its root, its map, its segments. Bodies to come; this is the
//! agreed interface.
//!
//! One [`Bucket`] per process stands for the prefix; one [`Volume`] per open export.

use std::ops::Range;

use blockcache::{Epoch, Id, PageRange, Seq};
use bytes::Bytes;
use world::{ETag, StoreError, UnixTime, World};

/// The prefix in the object store: the keyring and all volumes.
#[derive(Clone, Debug)]
pub struct Bucket<W: World> {
    #[expect(dead_code, reason = "interface sketch")]
    world: W,
    #[expect(dead_code, reason = "interface sketch")]
    store: W::Store,
}

/// How frames are stored, and how much work is in flight.
#[derive(Clone, Debug)]
pub struct BucketConfig {
    pub compression: Compression,
    /// Set: everything is sealed under the keyring. Not set: hash-chained.
    pub password: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd(i32),
}

/// The part of a root that others look at. The rest (map pointer, tail, keys) stays inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootView {
    pub volume: Id,
    pub name: String,
    pub size_bytes: u64,
    pub epoch: Epoch,
    pub state: VolumeState,
    /// Who may publish: a cache folder's id and a host name for people.
    pub owner: Option<Owner>,
    pub generation: u64,
    pub cut: Seq,
    /// The epoch whose owner published the cut (it may be older than `epoch`).
    pub cut_epoch: Epoch,
    pub cut_time: UnixTime,
    /// Of the last change.
    pub nonce: Id,
    pub etag: ETag,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cache: Id,
    pub host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    Open,
    Detached,
    Pending,
    Suspended,
    Deleted,
}

/// A volume opened from a root that was read. A cheap handle.
#[derive(Clone, Debug)]
pub struct Volume<W: World> {
    #[expect(dead_code, reason = "interface sketch")]
    bucket: Bucket<W>,
}

/// Where the bytes of some pages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nothing was ever written, or it was trimmed.
    Zero,
    /// In a frame; `skip` pages of it come before the first page of the range.
    Frame { frame: FrameRef, skip: u32 },
}

/// One frame of one segment: all that is needed to get and to check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// The segment's id and the frame's number: the key of the fill cache.
    pub segment: Id,
    pub number: u32,
    /// The pages of the volume that it was made for.
    pub pages: PageRange,
    pub epoch: Epoch,
    /// Where in the object.
    pub bytes: Range<u64>,
    /// Index into the volumes that this map names (0 is the volume itself; others are parents).
    pub volume: u16,
    pub codec: u8,
    /// BLAKE3 of the stored bytes, first half.
    pub hash: [u8; 16],
}

/// A frame to be stored: whole pages of the volume, at most 128 KiB.
#[derive(Clone, Debug)]
pub struct PlainFrame {
    pub pages: PageRange,
    pub content: FrameContent,
}

#[derive(Clone, Debug)]
pub enum FrameContent {
    Data(Bytes),
    /// The pages are zero from now on: costs an entry, no bytes. May be longer than a frame.
    Zero,
}

/// A segment that is in the store and that no root names yet.
#[derive(Debug)]
pub struct Uploaded {
    #[expect(dead_code, reason = "interface sketch")]
    id: Id,
}

/// Why a volume cannot be opened or published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another epoch exists: stop, keep the log (rule 13).
    #[error("volume `{name}` is fenced: epoch {ours} is over, epoch {theirs} belongs to {owner}")]
    Fenced {
        name: String,
        ours: Epoch,
        theirs: Epoch,
        owner: String,
    },
    /// The root of a known volume is gone (rule 13; promise 7).
    #[error(
        "volume `{name}`: its root vanished from the store; restore object `{key}` or delete the volume"
    )]
    Vanished { name: String, key: String },
    /// Somebody else owns it, and it is not ours to take without force (rule 15).
    #[error("volume `{name}` is owned by {owner} (epoch {epoch})")]
    Owned {
        name: String,
        owner: String,
        epoch: Epoch,
    },
    /// Bytes in the store are not what was published.
    #[error("object `{key}` is damaged: {what}")]
    Damaged { key: String, what: String },
    /// Written by a later version.
    #[error(
        "object `{key}` has format {found}; this version reads up to {known}: use a later glidefs"
    )]
    Newer { key: String, found: u16, known: u16 },
    /// Keys and passwords.
    #[error("{0}")]
    Key(String),
    #[error("{0}")]
    Invalid(String),
}

impl<W: World> Bucket<W> {
    /// Reads or creates the keyring, and checks that the store honours conditions.
    pub async fn open(
        world: W,
        store: W::Store,
        config: BucketConfig,
    ) -> Result<Self, VolumeError> {
        let _ = (world, store, config);
        todo!()
    }

    /// Reads and checks a volume's root; none if the store says that there is no such key.
    pub async fn root(&self, name: &str) -> Result<Option<RootView>, VolumeError> {
        let _ = name;
        todo!()
    }

    /// Names of all volumes: one LIST with a delimiter's worth of work. For people, never steady state.
    pub async fn names(&self) -> Result<Vec<String>, VolumeError> {
        todo!()
    }

    /// Creates a volume (rule 16: the prefix must be empty) open at epoch 1 for `owner`.
    /// `nonce` is that of the root; the intent is durable before the call.
    pub async fn create(
        &self,
        name: &str,
        size_bytes: u64,
        owner: &Owner,
        nonce: Id,
    ) -> Result<Volume<W>, VolumeError> {
        let _ = (name, size_bytes, owner, nonce);
        todo!()
    }

    /// Opens a volume for reading at its current cut: reads root, then map index and tail in
    /// parallel. Takes nothing.
    pub async fn open_volume(&self, name: &str) -> Result<Volume<W>, VolumeError> {
        let _ = name;
        todo!()
    }
}

impl<W: World> Volume<W> {
    /// The root as last read or published.
    pub fn root(&self) -> RootView {
        todo!()
    }

    /// Becomes the owner by compare-and-swap of epoch + 1. Refused while another cache owns it
    /// and it is not detached, unless `force` names the epoch expected.
    pub async fn take(
        &self,
        owner: &Owner,
        nonce: Id,
        force: Option<Epoch>,
    ) -> Result<RootView, VolumeError> {
        let _ = (owner, nonce, force);
        todo!()
    }

    /// Where the bytes of the pages are, as runs in order that cover the range. Reads the map from
    /// the store where it is not in memory.
    pub async fn lookup(&self, pages: PageRange) -> Result<Vec<(PageRange, Source)>, VolumeError> {
        let _ = pages;
        todo!()
    }

    /// Gets, checks and decodes a frame: `frame.pages.bytes()` bytes.
    pub async fn fetch(&self, frame: &FrameRef) -> Result<Bytes, VolumeError> {
        let _ = frame;
        todo!()
    }

    /// Compresses, seals and uploads frames as one segment. A failed upload is abandoned with its
    /// id; temporary failures are retried within a bound under a new one.
    pub async fn upload(&self, frames: Vec<PlainFrame>) -> Result<Uploaded, VolumeError> {
        let _ = frames;
        todo!()
    }

    /// Makes `cut` the state of the volume: one compare-and-swap of the root that names `segments`
    /// (in write order; later ones win). Unclear answers are resolved by reading back (rule 13):
    /// `ours` are the nonces of all intents that may still land. Returns the new root, whose map
    /// is not yet installed: see [`Volume::install`].
    pub async fn publish(&self, change: Publish) -> Result<Published, VolumeError> {
        let _ = change;
        todo!()
    }

    /// Puts a published root's map in place, in one step. Lookups see it from now on.
    pub fn install(&self, published: Published) -> RootView {
        let _ = published;
        todo!()
    }
}

/// A change of the root.
#[derive(Debug)]
pub struct Publish {
    pub nonce: Id,
    /// Intents of this log that may still land.
    pub ours: Vec<Id>,
    pub cut: Seq,
    pub segments: Vec<Uploaded>,
    /// None: as it is. Set: the new size (grow) or state.
    pub size_bytes: Option<u64>,
    pub state: Option<VolumeState>,
}

/// A root that is in the store, with the map that goes with it.
#[derive(Debug)]
pub struct Published {
    /// As published.
    pub root: RootView,
}
