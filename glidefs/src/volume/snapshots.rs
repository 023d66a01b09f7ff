//! Snapshots: entries of the volume's root, so that one exists exactly if the published root lists it
//! (rule 22). As an object of its own it could name what a collector, which saw the root alone, has
//! deleted (`docs/model.md`, mistake `snapshot-apart`).

use blockcache::{Epoch, Id, Seq};
use world::{UnixTime, World};

use super::bucket::Bucket;
use super::root::{Root, SNAPSHOTS_MAX, Snapshot};
use super::{Hold, Volume, VolumeError, VolumeName};

/// A change of the list, carried by a publish. Carried twice, it changes nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotChange {
    /// Lists the state at the cut that the publish brings. Without effect where another snapshot has the name,
    /// or the list is full: whoever asked looks for the id.
    Take { id: Id, name: String },
    /// Takes it off the list. Without effect where it is not there.
    Drop { id: Id },
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

/// Changes the list of a root whose content is already that of the cut.
pub(crate) fn apply(root: &mut Root, changes: &[SnapshotChange], now_ms: u64) {
    for change in changes {
        match change {
            SnapshotChange::Take { id, name } => {
                let mut there = root.snapshots.iter();
                let taken = there.any(|it| it.name == *name || it.id == id.0);
                if !taken && root.snapshots.len() < SNAPSHOTS_MAX {
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
        let mut stored = stored.ok_or_else(|| super::bucket::vanished(&name))?;
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
        let loaded = self.load(stored).await?;
        Ok(Some(Volume::new(self.clone(), name, loaded, Hold::Free)))
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
