//! The root: the one object of a volume that changes, and only by compare-and-swap. Pure: bytes to
//! [`Root`] and back. `docs/format/root.md`.
//!
//! It has a place for everything that later features need (snapshots, forks, suspend images, boot objects),
//! because adding one means a new format. Of a member of a group it names that (`group.rs`), and what it says
//! itself does not count any more: so it has a format of its own, which builds that know no groups refuse.

use std::rc::Rc;

use blockcache::{Epoch, Id, Seq};
use serde::{Deserialize, Serialize};
use world::{ETag, UnixTime};

use super::envelope::Envelope;
use super::extent::VOLUME_PAGES_MAX;
use super::group::{StoredGroup, tail_segments_max};
use super::keys::{Secret, Wrapped};
use super::name::VolumeName;
use super::sealed::ObjectRef;
use super::snapshots::is_of_fork;
use super::{GroupName, Owner, RootView, VolumeError, VolumeState};

/// Of a root that counts.
pub(crate) const FORMAT: u16 = 1;
/// Of one that names a group, which is to be asked instead.
pub(crate) const FORMAT_MEMBER: u16 = 2;
/// References in the tail of a root at most (rule 26).
pub(crate) const TAIL_SEGMENTS_MAX: usize = 64;
/// Snapshots of one volume at most, that people take.
pub const SNAPSHOTS_MAX: usize = 128;
/// With those that hold a cut for a fork.
pub(crate) const LISTED_MAX: usize = SNAPSHOTS_MAX + blockcache::FORKS_MAX;
/// Volumes that the map of one volume may name: itself and its parents.
pub(crate) const VOLUMES_MAX: usize = 256;
pub(crate) const KEYS_MAX: usize = 64;
const HOST_BYTES_MAX: usize = 255;
/// Epochs and cuts count up by one, so a number beyond this is no count.
const COUNT_MAX: u64 = 1 << 62;

pub(crate) const ENVELOPE: Envelope = Envelope {
    magic: *b"GLIDROOT",
    known: FORMAT_MEMBER,
    body_bytes_max: 4 << 20,
};

/// Everything that a root says. The order of the fields is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) volume: [u8; 16],
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) epoch: u64,
    /// Of the placement that opened it (rule 19); 0 if nobody orchestrates.
    pub(crate) generation: u64,
    pub(crate) owner: Option<RootOwner>,
    pub(crate) state: State,
    /// Of the change that made this version (rule 13).
    pub(crate) nonce: [u8; 16],
    /// The root that the last take-over replaced (rule 13).
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) content: Content,
    /// The volumes that the map names; the first is this one.
    pub(crate) volumes: Vec<NamedVolume>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) parent: Option<Parent>,
    /// A recorded working set (rule 28).
    pub(crate) boot: Option<Boot>,
    /// The volumes that are committed together with this one (rule 30). Set: what else the root says is what it said
    /// when it began to name the group.
    pub(crate) group: Option<GroupRef>,
    /// The memory image that belongs to exactly this cut (rule 34).
    pub(crate) suspend: Option<Image>,
}

/// The state of a volume's bytes at one cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) cut_epoch: u64,
    pub(crate) cut_seq: u64,
    pub(crate) cut_time_ms: u64,
    /// The map index; none while all that there is fits the tail.
    pub(crate) map: Option<ObjectRef>,
    /// Segments newer than the map, oldest first.
    pub(crate) tail: Vec<TailSegment>,
}

/// A segment that the map does not name yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TailSegment {
    pub(crate) object: ObjectRef,
    /// The cut that it came with.
    pub(crate) birth: u64,
    /// Pages of data that it holds.
    pub(crate) pages: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Open,
    Detached,
    Pending,
    Suspended,
    Deleted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootOwner {
    pub(crate) cache: [u8; 16],
    pub(crate) host: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Predecessor {
    pub(crate) epoch: u64,
    pub(crate) nonce: [u8; 16],
    pub(crate) cut_epoch: u64,
    pub(crate) cut_seq: u64,
}

/// A volume that the map names, and the keys that its objects were sealed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedVolume {
    pub(crate) volume: [u8; 16],
    pub(crate) name: String,
    /// In order of `from_epoch`. An object's key is one that began in the object's epoch, or the last that began before:
    /// an owner may be given a new one within its epoch. Empty without a password.
    pub(crate) keys: Vec<DataKey>,
    /// The cut since which the map does not name it any more: only snapshots and readers of earlier ones need it.
    pub(crate) unnamed_from: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataKey {
    pub(crate) id: [u8; 16],
    pub(crate) from_epoch: u64,
    pub(crate) wrapped: Wrapped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) id: [u8; 16],
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    pub(crate) volume: [u8; 16],
    pub(crate) name: String,
    pub(crate) snapshot: Option<[u8; 16]>,
    pub(crate) cut_epoch: u64,
    pub(crate) cut_seq: u64,
    /// By which a repeated request of the same fork finds out that it was made.
    pub(crate) request: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    pub(crate) object: ObjectRef,
    pub(crate) cut_epoch: u64,
    pub(crate) cut_seq: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRef {
    pub(crate) id: [u8; 16],
    /// For people.
    pub(crate) name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) id: [u8; 16],
    pub(crate) bytes: u64,
    pub(crate) hash: [u8; 32],
    pub(crate) hypervisor: String,
}

/// What a volume is, as it was read or written: with the object that says so, and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// It names a group exactly if it lies in one.
    pub(crate) root: Root,
    /// Of the object that it lies in.
    pub(crate) etag: ETag,
    pub(crate) home: Home,
}

/// Where a root lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the volume's own object.
    Own,
    /// The same, and that names this group, which is forming: it must be given up before anything is changed.
    Forming(Id),
    /// In that of its group.
    Group(Rc<StoredGroup>),
}

impl Stored {
    /// What the volume's own object says.
    pub(crate) fn own(mut root: Root, etag: ETag) -> Self {
        let home = match root.group.take() {
            Some(group) => Home::Forming(Id(group.id)),
            None => Home::Own,
        };
        Self { root, etag, home }
    }

    pub(crate) fn view(&self) -> RootView {
        self.root.view(&self.etag)
    }

    /// Segments that the volume's tail may have.
    pub(crate) fn tail_max(&self) -> usize {
        match &self.home {
            Home::Own | Home::Forming(_) => TAIL_SEGMENTS_MAX,
            Home::Group(group) => tail_segments_max(group.group.members.len()),
        }
    }

    /// Both are the same version of the same object. A store may give two objects the same ETag.
    pub(crate) fn is_version_of(&self, other: &Self) -> bool {
        let group = |stored: &Self| match &stored.home {
            Home::Own | Home::Forming(_) => None,
            Home::Group(group) => Some(group.group.id),
        };
        self.etag == other.etag && group(self) == group(other)
    }

    /// And it says the same of the same volume. An object that names a group stays as it is while that is formed and
    /// dissolved: it stands for what it says itself before, and for what the group said last behind that.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        let said = |it: &Self| (it.root.volume, it.root.epoch, it.root.nonce);
        self.is_version_of(other) && said(self) == said(other)
    }
}

impl Root {
    /// Follows from what it says: one that counts stays of the format that older builds read (rule 31).
    fn format(&self) -> u16 {
        match self.group {
            Some(_) => FORMAT_MEMBER,
            None => FORMAT,
        }
    }

    pub(crate) fn encode(&self, mac_key: Option<&Secret>) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain data always encodes");
        ENVELOPE.seal(self.format(), &body, mac_key)
    }

    /// Parses and checks a root that was found under the volume's key.
    pub(crate) fn decode(
        name: &VolumeName,
        bytes: &[u8],
        mac_key: Option<&Secret>,
    ) -> Result<Self, VolumeError> {
        let key = name.root_key();
        let letter = ENVELOPE.open(&key, bytes, mac_key)?;
        let damaged = |what: &str| VolumeError::damaged(&key, what);
        let (root, rest) = postcard::take_from_bytes::<Self>(letter.body)
            .map_err(|_bad| damaged("its body does not decode"))?;
        if !rest.is_empty() {
            return Err(damaged("its body goes on after its end"));
        }
        if root.name != name.as_str() {
            return Err(damaged("it is the root of another volume"));
        }
        if root.format() != letter.format {
            return Err(damaged("its format is not that of what it says"));
        }
        root.check(mac_key.is_some()).map_err(damaged)?;
        Ok(root)
    }

    pub(crate) fn check(&self, keyed: bool) -> Result<(), &'static str> {
        let first = self.volumes.first().ok_or("it names no volume")?;
        if first.volume != self.volume || first.name != self.name {
            return Err("the first volume that it names is not itself");
        }
        if self.volumes.len() > VOLUMES_MAX || self.snapshots.len() > LISTED_MAX {
            return Err("its lists are too long");
        }
        let whole = self.size_bytes.is_multiple_of(blockcache::SECTOR_BYTES);
        let pages = self.size_bytes.div_ceil(blockcache::PAGE_BYTES);
        if !whole || pages > VOLUME_PAGES_MAX || !(1..=COUNT_MAX).contains(&self.epoch) {
            return Err("its size or epoch is impossible");
        }
        if self
            .owner
            .as_ref()
            .is_some_and(|owner| owner.host.len() > HOST_BYTES_MAX)
        {
            return Err("its owner's host name is too long");
        }
        for volume in &self.volumes {
            if volume.keys.is_empty() == keyed || volume.keys.len() > KEYS_MAX {
                return Err("its keys do not fit the keyring");
            }
            // They become part of object keys.
            VolumeName::parse(&volume.name).map_err(|_bad| "it names a volume impossibly")?;
            if volume.unnamed_from.is_some_and(|cut| cut > COUNT_MAX) {
                return Err("it let go of a volume at an impossible cut");
            }
        }
        // For people, who may have to type it.
        let named = self.group.as_ref();
        if named.is_some_and(|it| VolumeName::parse(&it.name).is_err()) {
            return Err("it names a group impossibly");
        }
        self.content.check()?;
        self.snapshots.iter().try_for_each(Snapshot::check)
    }

    /// For one more snapshot that somebody asked for.
    pub(crate) fn has_room(&self) -> bool {
        let snapshots = self.snapshots.iter();
        snapshots.filter(|it| !is_of_fork(&it.name)).count() < SNAPSHOTS_MAX
    }

    pub(crate) fn view(&self, etag: &ETag) -> RootView {
        RootView {
            volume: Id(self.volume),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            epoch: Epoch(self.epoch),
            state: self.state.into(),
            owner: self.owner.as_ref().map(|owner| Owner {
                cache: Id(owner.cache),
                host: owner.host.clone(),
            }),
            generation: self.generation,
            parent: self.parent.as_ref().map(|parent| parent.name.clone()),
            cut: Seq(self.content.cut_seq),
            cut_epoch: Epoch(self.content.cut_epoch),
            cut_time: UnixTime(self.content.cut_time_ms),
            nonce: Id(self.nonce),
            etag: etag.clone(),
            group: self.group.as_ref().map(|group| GroupName {
                id: Id(group.id),
                name: group.name.clone(),
            }),
        }
    }

    /// As the first root of a volume that takes the place of a tombstone: epochs of a name never come again.
    pub(crate) fn over(mut self, tomb: &Self) -> Self {
        self.epoch = tomb.epoch + 1;
        self.content.cut_epoch = self.epoch;
        self.predecessor = Some(tomb.as_predecessor());
        self
    }

    /// What the root that takes its place says of it.
    pub(crate) fn as_predecessor(&self) -> Predecessor {
        Predecessor {
            epoch: self.epoch,
            nonce: self.nonce,
            cut_epoch: self.content.cut_epoch,
            cut_seq: self.content.cut_seq,
        }
    }

    /// The owner, for a person.
    pub(crate) fn owner_text(&self) -> String {
        match &self.owner {
            Some(owner) => format!("host `{}` (cache {})", owner.host, Id(owner.cache)),
            None => "nobody".to_owned(),
        }
    }
}

impl Snapshot {
    fn check(&self) -> Result<(), &'static str> {
        let whole = self.size_bytes.is_multiple_of(blockcache::SECTOR_BYTES);
        if !whole || self.size_bytes.div_ceil(blockcache::PAGE_BYTES) > VOLUME_PAGES_MAX {
            return Err("the size of a snapshot is impossible");
        }
        // Clients connect by it.
        VolumeName::parse(&self.name).map_err(|_bad| "it names a snapshot impossibly")?;
        self.content.check()
    }
}

impl Content {
    fn check(&self) -> Result<(), &'static str> {
        if self.tail.len() > TAIL_SEGMENTS_MAX {
            return Err("its tail is too long");
        }
        if self.cut_seq > COUNT_MAX || self.cut_epoch > COUNT_MAX {
            return Err("its cut is impossible");
        }
        let mut ids: Vec<[u8; 16]> = self.tail.iter().map(TailSegment::id).collect();
        ids.sort_unstable();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err("its tail names a segment twice");
        }
        let tail = self.tail.iter();
        if tail
            .clone()
            .any(|it| it.birth > COUNT_MAX || it.pages > VOLUME_PAGES_MAX)
        {
            return Err("its tail has an impossible count");
        }
        let objects = self.map.iter().chain(tail.map(|it| &it.object));
        objects.into_iter().try_for_each(ObjectRef::check)
    }
}

impl TailSegment {
    pub(crate) fn id(&self) -> [u8; 16] {
        self.object.id
    }
}

impl RootOwner {
    pub(crate) fn new(owner: &Owner) -> Self {
        // For people only: cut rather than refused.
        let mut host = owner.host.clone();
        host.truncate(host.floor_char_boundary(HOST_BYTES_MAX));
        Self {
            cache: owner.cache.0,
            host,
        }
    }
}

impl From<State> for VolumeState {
    fn from(state: State) -> Self {
        match state {
            State::Open => Self::Open,
            State::Detached => Self::Detached,
            State::Pending => Self::Pending,
            State::Suspended => Self::Suspended,
            State::Deleted => Self::Deleted,
        }
    }
}

impl From<VolumeState> for State {
    fn from(state: VolumeState) -> Self {
        match state {
            VolumeState::Open => Self::Open,
            VolumeState::Detached => Self::Detached,
            VolumeState::Pending => Self::Pending,
            VolumeState::Suspended => Self::Suspended,
            VolumeState::Deleted => Self::Deleted,
        }
    }
}
