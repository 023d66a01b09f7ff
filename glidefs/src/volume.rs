//! A volume in the object store: its root, its map, its segments (DESIGN sections 5 and 6).
//!
//! One [`Bucket`] per shard stands for the prefix; one [`Volume`] per open export. Everything in
//! the store is immutable but the root, and the root changes only by compare-and-swap: so whatever
//! dies, the store holds an exact cut (promise 3), and of two writers one is fenced (promise 4).
//! Every byte read is bound to its place by hash, and by AEAD where a password is set (promise 5).
//!
//! ```text
//! root -> tail: up to 64 segments, one extent map in memory          tail.rs
//!      -> map index -> runs -> parts -> leaves, read when needed     runs.rs leaf.rs nodes.rs
//!                                        |
//!                        segments: frames of pages                   segment.rs sealed.rs
//! ```
//!
//! Volumes may be changed together, as a group (`group.rs`): then one object holds the roots of all, and only `home.rs`
//! knows where a root lies.
//!
//! Deciding is pure (`merge.rs`, `runs.rs`, `tail.rs`, all formats); acting is `bucket.rs`, `home.rs`, `members.rs`,
//! `publish.rs`, `lookup.rs`, `compact.rs`. Deliberately absent: any cache of data (blockcache),
//! any clock that decides, deletion of anything.

mod audit;
mod books;
mod bucket;
mod codec;
mod collect;
mod compact;
mod envelope;
mod error;
mod extent;
mod flatten;
mod fork;
mod form;
mod group;
mod group_fork;
mod home;
mod keyring;
mod keys;
mod leaf;
mod ledger;
mod lookup;
mod lru;
mod members;
mod merge;
mod metered;
mod name;
mod nodes;
mod pin;
mod pins;
mod probe;
mod publish;
mod purge;
mod reader;
mod reading;
mod recent;
mod renew;
mod repack;
mod replaced;
mod restore;
mod retry;
mod root;
mod row;
mod runs;
mod sealed;
mod segment;
mod slots;
mod snapshots;
mod sweep;
mod tail;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tidy;
mod writer;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use blockcache::{Epoch, Id, PageRange, Seq};
use bytes::Bytes;
use world::sync::Semaphore;
use world::{ETag, UnixTime, World};

/// Which rule of the store a build for tests breaks.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Rule 13: a failed condition is taken for a fence, and nobody reads back whose write it was.
    OwnConflict,
    /// Rule 20: the collector goes by pins that it listed before the root was published.
    ListBeforePublish,
    /// Rule 20: the forker reads the root first, and pins then.
    PinAfterRoot,
    /// Rule 20: a volume is purged whoever needs it.
    PurgeHeld,
    /// Rule 20: a volume that is flat lets go of others, whoever reads what it was.
    FlattenBlind,
    /// Rule 21: whatever the root does not name is swept.
    SweepByAge,
    /// Rule 21: also of a tombstone, which names nothing.
    SweepTombstone,
    /// Rule 30: a reader believes what it read of the members of a group at several moments.
    ReadsApart,
    /// Rule 30: whoever takes a group raises the epoch of the member that was asked for alone.
    EpochOfOne,
    /// Rule 30: a member of a group that is forming changes hands, and that is not given up.
    OpensForming,
}

pub use audit::Audit;
pub use bucket::{Bucket, BucketConfig, FoundName, Looked, Prefix, versions_hint};
pub use codec::Compression;
pub use collect::{Collected, Deletes};
pub use error::VolumeError;
pub use flatten::Flattened;
pub(crate) use fork::Born;
pub use fork::{Fork, ForkView};
pub use form::Form;
pub use group::{GROUP_MEMBERS_MAX, GROUP_MEMBERS_MIN, GroupState, GroupView, MemberView};
pub use group_fork::GroupFork;
pub use keyring::{KeyringCost, SlotView};
pub use ledger::Totals;
pub use members::Members;
pub use metered::Metered;
pub use name::VolumeName;
pub use publish::Published;
pub use purge::Purged;
pub(crate) use reading::{RENEW_AFTER, ReadPin};
pub(crate) use recent::together;
pub use renew::{DataKeyView, NewDataKey, Renewal};
pub use repack::Repacked;
pub use restore::Restore;
pub use root::SNAPSHOTS_MAX;
pub use segment::{SEGMENT_BYTES_MAX, SEGMENT_ENTRIES_MAX};
pub use slots::{Changed, InUse, KeyChange, Keyslots};
pub use snapshots::{SnapshotChange, SnapshotView};
pub(crate) use snapshots::{fork_snapshot, is_of_fork};
pub use sweep::{KeptAll, Scope, Swept};
pub use tidy::{Tidied, Tidy};

use bucket::Loaded;
use collect::Round;
use extent::{Extent, ObjectName};
use flatten::Flattening;
use ledger::{ObjectId, Tally};
use pins::PinBook;
use reader::{Reader, Volumes};
use root::{Stored, TailSegment};
use runs::{Edit, Map, Shape};
use sealed::{Frame, Hash, Kind, ObjectRef, Target};
use segment::Sealed;
use tail::Tail;
use writer::Maker;

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
    /// The volume that it was forked from.
    pub parent: Option<String>,
    pub cut: Seq,
    /// The epoch whose owner published the cut (it may be older than `epoch`).
    pub cut_epoch: Epoch,
    pub cut_time: UnixTime,
    /// Of the last change.
    pub nonce: Id,
    /// Of the object that says so: the volume's own, or that of its group.
    pub etag: ETag,
    /// The group that it is a member of. None while that is forming, and once it is dissolved.
    pub group: Option<GroupName>,
}

/// A group, as its members name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupName {
    pub id: Id,
    /// For people.
    pub name: String,
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
    inner: Rc<Inner<W>>,
}

#[derive(Debug)]
struct Inner<W: World> {
    bucket: Bucket<W>,
    name: VolumeName,
    state: RefCell<Now>,
    /// One change of the root at a time.
    publishing: Semaphore,
    /// One fold or merge at a time.
    compacting: Semaphore,
    /// One round of the collector at a time.
    collecting: Semaphore,
    pins: PinBook,
    /// Objects that this handle made, or is making, and that no root is known to name.
    fresh: Fresh,
    /// One pass of [`Volume::tidy`] at a time.
    tidying: Semaphore,
}

/// Names that were given out.
type Fresh = Rc<RefCell<BTreeMap<ObjectId, ObjectName>>>;

/// What the volume is now, as far as this handle knows.
#[derive(Debug)]
struct Now {
    stored: Stored,
    volumes: Rc<Volumes>,
    map: Map,
    tail: Tail,
    /// Finished work on the map, for the next publish to carry.
    edits: Vec<Edit>,
    /// Objects that were deleted in the store, and their bytes, until the ledger has forgotten them.
    gone: BTreeMap<ObjectId, u64>,
    round: Round,
    flattening: Flattening,
    hold: Hold,
    /// The store has said so: this handle opened or published the volume. Until then nothing is deleted (rule 14).
    is_proved: bool,
    /// An epoch that did not end with a detach: uploads of it may lie about.
    leavings: Option<Epoch>,
    /// Changes of root and map.
    installs: u64,
}

/// Whether this handle may publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Free,
    Held,
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
#[derive(Clone, Debug)]
pub struct Uploaded {
    reference: ObjectRef,
    extents: Rc<[Extent]>,
}

impl Uploaded {
    /// Bytes of the object.
    pub fn bytes(&self) -> u64 {
        self.reference.bytes
    }

    /// As the root of the cut that names it first has it in its tail.
    fn in_tail(&self, cut: u64) -> TailSegment {
        let data = self.extents.iter().filter(|extent| extent.spot.is_some());
        TailSegment {
            object: self.reference,
            birth: cut,
            pages: data.map(|extent| extent.pages.pages()).sum(),
        }
    }
}

/// A change of the root.
#[derive(Clone, Debug)]
pub struct Publish {
    pub nonce: Id,
    /// Intents of this log that may still land.
    pub ours: Vec<Id>,
    pub cut: Seq,
    pub segments: Vec<Uploaded>,
    /// None: as it is. Set: the new size (grow) or state.
    pub size_bytes: Option<u64>,
    pub state: Option<VolumeState>,
    /// In this order, at the cut.
    pub snapshots: Vec<SnapshotChange>,
    /// What is sealed behind this publish is sealed under it.
    pub data_key: Option<NewDataKey>,
}

impl<W: World> Volume<W> {
    fn new(bucket: Bucket<W>, name: VolumeName, loaded: Loaded, hold: Hold) -> Self {
        let now = Now {
            stored: loaded.stored,
            volumes: loaded.volumes,
            map: loaded.map,
            tail: loaded.tail,
            edits: Vec::new(),
            gone: BTreeMap::new(),
            round: Round::default(),
            flattening: Flattening::default(),
            hold,
            is_proved: hold == Hold::Held,
            leavings: None,
            installs: 0,
        };
        let inner = Inner {
            bucket,
            name,
            state: RefCell::new(now),
            publishing: Semaphore::new(1),
            compacting: Semaphore::new(1),
            collecting: Semaphore::new(1),
            pins: PinBook::default(),
            fresh: Fresh::default(),
            tidying: Semaphore::new(1),
        };
        Self {
            inner: Rc::new(inner),
        }
    }

    /// The root as last read or published.
    pub fn root(&self) -> RootView {
        let now = self.inner.state.borrow();
        now.stored.root.view(&now.stored.etag)
    }

    /// What is published now, for reading, whatever is published later. Only what a snapshot or a pin holds of it stays
    /// in the store.
    pub(crate) fn frozen(&self) -> Self {
        let loaded = {
            let now = self.inner.state.borrow();
            Loaded {
                stored: now.stored.clone(),
                volumes: Rc::clone(&now.volumes),
                map: now.map.clone(),
                tail: now.tail.clone(),
            }
        };
        let (bucket, name) = (self.inner.bucket.clone(), self.inner.name.clone());
        Self::new(bucket, name, loaded, Hold::Free)
    }

    /// A number that changes with the map: what a look-up found before may be gone by now.
    pub(crate) fn version(&self) -> u64 {
        self.inner.state.borrow().installs
    }

    /// Bytes in the store of what the map names and named. Segments of the tail are counted as live.
    pub fn totals(&self) -> Totals {
        let state = self.inner.state.borrow();
        let tail = &state.stored.root.content.tail;
        let own = tail
            .iter()
            .filter(|it| it.object.volume == state.stored.root.volume);
        let tail_bytes: u64 = own.map(|it| it.object.bytes).sum();
        let dead = state.dead();
        Totals {
            named_bytes: dead.named_bytes + tail_bytes,
            live_bytes: dead.live_bytes + tail_bytes,
            ..dead
        }
    }

    /// Whether the next publish would bring finished work on the map, or what came of it.
    pub(crate) fn has_edits(&self) -> bool {
        let state = self.inner.state.borrow();
        !state.edits.is_empty() || state.flattening.has_news()
    }

    #[cfg(test)]
    pub(crate) fn stored(&self) -> Stored {
        self.inner.state.borrow().stored.clone()
    }

    /// Where the bytes of the pages are, as runs in order that cover the range. Reads the map from
    /// the store where it is not in memory. All of it is the answer of one cut.
    pub async fn lookup(&self, pages: PageRange) -> Result<Vec<(PageRange, Source)>, VolumeError> {
        let (reader, runs, known) = {
            let now = self.inner.state.borrow();
            (
                self.reader(&now),
                now.map.runs.clone(),
                now.tail.within(pages),
            )
        };
        let extents = lookup::complete(&reader, &runs, pages, known).await?;
        let mut sources: Vec<(PageRange, Source)> = Vec::with_capacity(extents.len());
        for extent in extents {
            let source = source(&reader, &extent)?;
            match sources.last_mut() {
                Some((before, Source::Zero)) if source == Source::Zero => {
                    before.end = extent.pages.end;
                }
                _ => sources.push((extent.pages, source)),
            }
        }
        Ok(sources)
    }

    /// Gets, checks and decodes a frame: `frame.pages.bytes()` bytes.
    pub async fn fetch(&self, frame: &FrameRef) -> Result<Bytes, VolumeError> {
        let reader = self.reader(&self.inner.state.borrow());
        let plain = reader.frame(target(&reader, frame)).await?;
        Ok(Bytes::from(plain))
    }

    /// Compresses and seals frames as one segment. The frames must be disjoint, and within
    /// [`SEGMENT_ENTRIES_MAX`] and [`SEGMENT_BYTES_MAX`].
    pub(crate) async fn seal(&self, frames: Vec<PlainFrame>) -> Sealed {
        assert!(!frames.is_empty(), "a segment without frames");
        let maker = self.maker(&self.inner.state.borrow());
        let (name, compression) = (maker.fresh_name(), maker.compression());
        let key = maker.key();
        let sealing = move || segment::seal(name, key.as_ref(), compression, frames);
        self.inner.bucket.world().compute(sealing).await
    }

    /// Uploads a segment. Temporary failures are retried within a bound; an upload that fails for good
    /// is abandoned with its id.
    pub(crate) async fn put(&self, sealed: Sealed) -> Result<Uploaded, VolumeError> {
        let maker = self.maker(&self.inner.state.borrow());
        maker
            .put(Kind::Segment, &sealed.reference, sealed.body)
            .await?;
        Ok(Uploaded {
            reference: sealed.reference,
            extents: sealed.extents.into(),
        })
    }

    /// Both, one after the other.
    pub async fn upload(&self, frames: Vec<PlainFrame>) -> Result<Uploaded, VolumeError> {
        let sealed = self.seal(frames).await;
        self.put(sealed).await
    }

    fn reader(&self, now: &Now) -> Reader<W> {
        Reader {
            bucket: self.inner.bucket.clone(),
            volumes: Rc::clone(&now.volumes),
        }
    }

    fn maker(&self, now: &Now) -> Maker<W> {
        Maker {
            bucket: self.inner.bucket.clone(),
            name: self.inner.name.to_string(),
            volume: Id(now.stored.root.volume),
            epoch: Epoch(now.stored.root.epoch),
            volumes: Rc::clone(&now.volumes),
            fresh: Rc::clone(&self.inner.fresh),
            made: Fresh::default(),
        }
    }
}

impl Now {
    /// What is known to be dead, and not to be gone.
    fn dead(&self) -> Totals {
        let totals = self.map.ledger.totals();
        let gone: u64 = self.gone.values().sum();
        Totals {
            dead_objects: totals.dead_objects.saturating_sub(self.gone.len() as u64),
            dead_bytes: totals.dead_bytes.saturating_sub(gone),
            ..totals
        }
    }

    /// Runs and tail as they will be once the finished work is published, and what that counted.
    fn shape(&self) -> (Shape, Vec<&Tally>) {
        let mut shape = Shape {
            runs: self.map.runs.clone(),
            tail: self.tail.segments().copied().collect(),
        };
        let mut tallies = Vec::with_capacity(self.edits.len());
        for edit in &self.edits {
            if shape.apply(edit) {
                tallies.push(edit.tally());
            }
        }
        (shape, tallies)
    }
}

/// A frame as its segment has it.
fn target<W: World>(reader: &Reader<W>, frame: &FrameRef) -> Target {
    let volume = reader.volumes.id(frame.volume);
    let volume = volume.expect("a frame is fetched through the volume that looked it up");
    let stored = frame.bytes.end.saturating_sub(frame.bytes.start);
    let place = (u32::try_from(frame.bytes.start), u32::try_from(stored));
    let (Ok(offset), Ok(stored)) = place else {
        panic!("a frame is fetched as it was looked up, and lies below 4 GiB");
    };
    Target {
        kind: Kind::Segment,
        object: ObjectName {
            volume,
            epoch: frame.epoch,
            id: frame.segment,
        },
        offset,
        stored,
        frame: Frame {
            number: frame.number,
            pages: frame.pages,
            codec: frame.codec,
            plain: segment::plain_len(frame.pages),
        },
        hash: Hash::Half(frame.hash),
    }
}

fn source<W: World>(reader: &Reader<W>, extent: &Extent) -> Result<Source, VolumeError> {
    let Some(spot) = extent.spot else {
        return Ok(Source::Zero);
    };
    let segment = spot.segment;
    let volume = reader.volumes.number(segment.volume);
    let Some(volume) = volume else {
        let what = "it names a volume that the root does not list";
        return Err(reader.damaged(Kind::Segment, segment, what));
    };
    let start = u64::from(spot.offset);
    let frame = FrameRef {
        segment: segment.id,
        number: spot.number,
        pages: spot.frame_range(extent.pages.start),
        epoch: segment.epoch,
        bytes: start..start + u64::from(spot.stored),
        volume,
        codec: spot.codec,
        hash: spot.hash,
    };
    let skip = u32::from(spot.skip);
    Ok(Source::Frame { frame, skip })
}
