//! Restoring a snapshot in place: the volume becomes what it was, and what it was until now stays as a snapshot
//! (rule 22).
//!
//! On a volume that nobody owns, by the compare-and-swap with which an opener raises the epoch. The nonce is
//! nobody's, so no log takes its records of before for those of the restored state (rule 11); the cut goes
//! on, so no node takes it for an older root that was put back (rule 24).

use blockcache::{Epoch, Id};
use world::World;

use super::bucket::{Bucket, vanished};
use super::publish::Swapped;
use super::root::{Root, SNAPSHOTS_MAX, Snapshot, State};
use super::{RootView, Volume, VolumeError, VolumeName};

/// What is to be restored, and how what it replaces is kept. May be tried again as it is: it is done once.
#[derive(Clone, Debug)]
pub struct Restore {
    pub snapshot: String,
    /// Id and name of the new snapshot.
    pub id: Id,
    pub before: String,
}

impl<W: World> Bucket<W> {
    /// Restores a detached volume. Refused while it is open anywhere.
    pub async fn restore(&self, name: &str, wanted: &Restore) -> Result<RootView, VolumeError> {
        // The root alone: what it names now may be damaged, which is when a restore is needed.
        let name = VolumeName::parse(name)?;
        let base = self.read_root(&name).await?;
        let base = base.ok_or_else(|| vanished(&name))?;
        if base.root.snapshots.iter().any(|it| it.id == wanted.id.0) {
            return Ok(base.root.view(&base.etag));
        }
        let now_ms = self.world().unix_time().0;
        let root = restored(&base.root, wanted, Id(self.world().random_id()), now_ms)?;
        // And nothing is restored that cannot be read.
        let snapshot = self.open_snapshot(name.as_str(), &wanted.snapshot);
        let snapshot = Box::pin(snapshot).await?;
        let volume: Volume<W> = snapshot.ok_or_else(|| in_use(&base.root))?;
        match volume.swap(&base, root).await? {
            Swapped::Landed(now) => Ok(now.root.view(&now.etag)),
            Swapped::Lost(now) => Err(in_use(&now.root)),
        }
    }
}

fn restored(base: &Root, wanted: &Restore, nonce: Id, now_ms: u64) -> Result<Root, VolumeError> {
    if base.state != State::Detached {
        return Err(in_use(base));
    }
    let invalid = |text: String| VolumeError::Invalid(text);
    let found = base.snapshots.iter().find(|it| it.name == wanted.snapshot);
    let found = found.ok_or_else(|| {
        invalid(format!(
            "volume `{}` has no snapshot `{}`",
            base.name, wanted.snapshot
        ))
    })?;
    if base.snapshots.iter().any(|it| it.name == wanted.before) {
        return Err(invalid(format!(
            "volume `{}` has a snapshot `{}` already, and what is restored over was to be kept under that name",
            base.name, wanted.before
        )));
    }
    if base.snapshots.len() == SNAPSHOTS_MAX {
        return Err(invalid(format!(
            "volume `{}` has {SNAPSHOTS_MAX} snapshots, which is the most, and a restore adds one: delete one first",
            base.name
        )));
    }
    let mut root = base.clone();
    let mut before = base.content.clone();
    before.cut_time_ms = now_ms;
    root.snapshots.push(Snapshot {
        id: wanted.id.0,
        name: wanted.before.clone(),
        size_bytes: base.size_bytes,
        content: before,
    });
    root.predecessor = Some(base.as_predecessor());
    root.epoch += 1;
    root.nonce = nonce.0;
    root.content = found.content.clone();
    root.content.cut_seq = base.content.cut_seq + 1;
    root.content.cut_epoch = root.epoch;
    root.content.cut_time_ms = now_ms;
    // A volume never shrinks: behind the end of the snapshot there are zeros, as there were before it grew.
    root.size_bytes = base.size_bytes.max(found.size_bytes);
    Ok(root)
}

fn in_use(root: &Root) -> VolumeError {
    VolumeError::Owned {
        name: root.name.clone(),
        owner: root.owner_text(),
        epoch: Epoch(root.epoch),
    }
}
