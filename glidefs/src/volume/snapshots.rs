//! Snapshots: entries of the volume's root, so that one exists exactly if the published root lists it
//! (rule 22). As an object of its own it could name what a collector, which saw the root alone, has
//! deleted (`docs/model.md`, mistake `snapshot-apart`).

use std::collections::BTreeSet;

use blockcache::{Epoch, Id, Seq};
use world::{UnixTime, World};

use super::bucket::Bucket;
use super::root::{Home, LISTED_MAX, Root, SNAPSHOTS_MAX, Snapshot, Stored};
use super::{Publish, Volume, VolumeError, VolumeName};

/// A change of the list, carried by a publish. Carried twice, it changes nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Lists the state at the cut that the publish brings. Without effect where another snapshot has the name,
    /// or the list is full: whoever asked looks for the id.
    Take { id: Id, name: String },
    /// Takes it off the list. Without effect where it is not there.
    Drop { id: Id },
}

/// What the snapshots begin with that hold a cut for a fork until that is in the store. Nobody else may take them.
const FORK_PREFIX: &str = "live-fork.";

/// The name of the snapshot that holds a cut for a fork.
pub(crate) fn fork_snapshot(child: Id) -> String {
    format!("{FORK_PREFIX}{child}")
}

/// Whether a snapshot of this name is, or would be, of a fork and not of a person.
pub(crate) fn is_of_fork(name: &str) -> bool {
    name.starts_with(FORK_PREFIX)
}

/// A snapshot as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotView {
    pub id: Id,
    pub name: String,
    pub size_bytes: u64,
    /// Whose state it is: the write up to which it holds everything, and by whom that was published.
    pub cut: Seq,
    pub cut_epoch: Epoch,
    /// When it was taken, by the clock of the node that did.
    pub taken: UnixTime,
}

/// Changes the lists of roots that are published together, and of which the contents are already those of the cut.
/// `before` are the roots that they take the place of. A snapshot that a person asks for is listed by all of them or by
/// none: of a group it is one moment, and can be restored.
pub(crate) fn apply(before: &[Stored], roots: &mut [Root], changes: &[Publish], now_ms: u64) {
    for (root, change) in roots.iter_mut().zip(changes) {
        apply_one(root, &change.snapshots, now_ms);
    }
    let Some(Home::Group(group)) = before.first().map(|first| &first.home) else {
        return;
    };
    let asked = changes.iter().flat_map(|change| &change.snapshots);
    let asked: BTreeSet<[u8; 16]> = asked.filter_map(asked_by_a_person).collect();
    let is_new = |id: &[u8; 16]| !before.iter().any(|it| lists(&it.root, id));
    let mut undone: BTreeSet<[u8; 16]> = asked.into_iter().filter(is_new).collect();
    if undone.is_empty() {
        return;
    }
    let nonce = roots.first().map_or([0; 16], |root| root.nonce);
    if group.group.with(roots, nonce).has_room() {
        undone.retain(|id| !roots.iter().all(|root| lists(root, id)));
    }
    for root in roots {
        root.snapshots.retain(|it| !undone.contains(&it.id));
    }
}

fn lists(root: &Root, id: &[u8; 16]) -> bool {
    root.snapshots.iter().any(|it| it.id == *id)
}

fn asked_by_a_person(change: &SnapshotChange) -> Option<[u8; 16]> {
    match change {
        SnapshotChange::Take { id, name } => (!is_of_fork(name)).then_some(id.0),
        SnapshotChange::Drop { .. } => None,
    }
}

fn apply_one(root: &mut Root, changes: &[SnapshotChange], now_ms: u64) {
    for change in changes {
        match change {
            SnapshotChange::Take { id, name } => {
                let mut there = root.snapshots.iter();
                let taken = there.any(|it| it.name == *name || it.id == id.0);
                let room = match is_of_fork(name) {
                    true => root.snapshots.len() < LISTED_MAX,
                    false => root.has_room(),
                };
                if !taken && room {
                    let mut content = root.content.clone();
                    content.cut_time_ms = now_ms;
                    root.snapshots.push(Snapshot {
                        id: id.0,
                        name: name.clone(),
                        size_bytes: root.size_bytes,
                        content,
                    });
                }
            }
            SnapshotChange::Drop { id } => root.snapshots.retain(|it| it.id != id.0),
        }
    }
}

impl<W: World> Volume<W> {
    /// As last read or published.
    pub(crate) fn has_snapshot(&self, id: Id) -> bool {
        let now = self.inner.state.borrow();
        now.stored.root.snapshots.iter().any(|it| it.id == id.0)
    }

    /// Whether the cut of one more fork can be held, and the fork be made of it. `noted` forks are to come before it, with
    /// no snapshot so far. Left-over ones count too: nobody knows here whether a fork elsewhere needs them.
    pub(crate) fn has_room_for_fork(&self, noted: usize) -> bool {
        let now = self.inner.state.borrow();
        let root = &now.stored.root;
        let held = root.snapshots.iter().filter(|it| is_of_fork(&it.name));
        let due = held.count().saturating_add(noted);
        due < LISTED_MAX - SNAPSHOTS_MAX && root.volumes.len() < super::root::VOLUMES_MAX
    }

    /// Oldest first, as last read or published.
    pub fn snapshots(&self) -> Vec<SnapshotView> {
        let now = self.inner.state.borrow();
        now.stored
            .root
            .snapshots
            .iter()
            .map(Snapshot::view)
            .collect()
    }
}

impl<W: World> Bucket<W> {
    /// Opens a snapshot for reading: the volume as it was. None if the current root lists none of that name.
    pub async fn open_snapshot(
        &self,
        volume: &str,
        snapshot: &str,
    ) -> Result<Option<Volume<W>>, VolumeError> {
        let name = VolumeName::parse(volume)?;
        let stored = self.read_root(&name).await?;
        let stored = stored.ok_or_else(|| super::bucket::vanished(&name))?;
        Box::pin(self.snapshot_of(name, stored, snapshot)).await
    }

    /// The same of a root that was read.
    pub(super) async fn snapshot_of(
        &self,
        name: VolumeName,
        mut stored: Stored,
        snapshot: &str,
    ) -> Result<Option<Volume<W>>, VolumeError> {
        let found = stored.root.snapshots.iter().find(|it| it.name == snapshot);
        let Some(Snapshot {
            size_bytes,
            content,
            ..
        }) = found.cloned()
        else {
            return Ok(None);
        };
        stored.root.size_bytes = size_bytes;
        stored.root.content = content;
        Box::pin(self.opened(name, stored)).await.map(Some)
    }
}

impl Snapshot {
    fn view(&self) -> SnapshotView {
        SnapshotView {
            id: Id(self.id),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            cut: Seq(self.content.cut_seq),
            cut_epoch: Epoch(self.content.cut_epoch),
            taken: UnixTime(self.content.cut_time_ms),
        }
    }
}
