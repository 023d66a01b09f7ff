//! Restoring a snapshot in place: the volume becomes what it was, and what it was until now stays as a snapshot
//! (rule 22).
//!
//! On a volume that nobody owns, by the compare-and-swap with which an opener raises the epoch. The nonce is
//! nobody's, so no log takes its records of before for those of the restored state (rule 11); the cut goes
//! on, so no node takes it for an older root that was put back (rule 24).

use std::collections::BTreeSet;

use blockcache::{Epoch, Id};
use world::World;

use super::books::{self, begin, load_all};
use super::bucket::{Bucket, load_map, vanished};
use super::group::{self, GroupView, Phase, StoredGroup};
use super::home::{Swapped, SwappedAll};
use super::ledger::{Dead, ObjectId, Table};
use super::reader::Reader;
use super::root::{Home, Root, SNAPSHOTS_MAX, Snapshot, State, Stored, TailSegment};
use super::runs::{MapIndex, Run};
use super::sealed::{Kind, ObjectRef};
use super::writer::Maker;
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
    /// Restores a detached volume. Refused while it is open anywhere, and of a member of a group: the others would stay
    /// at another moment.
    pub async fn restore(&self, name: &str, wanted: &Restore) -> Result<RootView, VolumeError> {
        // The root alone: what it names now may be damaged, which is when a restore is needed.
        let name = VolumeName::parse(name)?;
        let base = self.read_root(&name).await?;
        let base = base.ok_or_else(|| vanished(&name))?;
        if base.root.snapshots.iter().any(|it| it.id == wanted.id.0) {
            return Ok(base.view());
        }
        if let Home::Group(group) = &base.home {
            return Err(VolumeError::Invalid(format!(
                "volume `{name}` is a member of group `{}`, and is not restored without the others: restore the group",
                group.group.name
            )));
        }
        let moment = (Id(self.world().random_id()), self.world().unix_time().0);
        let root = Box::pin(self.restored(&name, &base, wanted, moment)).await?;
        match self.swap(&name, &base, root).await? {
            Swapped::Landed(now) => Ok(now.view()),
            Swapped::Lost(now) => Err(outrun(&now.root)),
        }
    }

    /// Restores all members of a group to a snapshot of it, by one swap. Refused while it is open anywhere.
    pub async fn restore_group(&self, id: Id, wanted: &Restore) -> Result<GroupView, VolumeError> {
        let base = self.read_group(id).await?.ok_or_else(|| no_group(id))?;
        if base.group.phase != Phase::Formed {
            let text = format!("group `{}` is not formed (any more)", base.group.name);
            return Err(VolumeError::Invalid(text));
        }
        let lists = |root: &Root, id: [u8; 16]| root.snapshots.iter().any(|it| it.id == id);
        if base.group.roots().all(|root| lists(root, wanted.id.0)) {
            return Ok(base.view());
        }
        check_is_of_group(&base, &wanted.snapshot)?;
        let moment = (Id(self.world().random_id()), self.world().unix_time().0);
        let mut roots = Vec::with_capacity(base.group.members.len());
        for member in base.of_all() {
            let name = VolumeName::parse(&member.root.name)?;
            let root = self.restored(&name, &member, wanted, moment);
            roots.push(Box::pin(root).await?);
        }
        let next = base.group.with(&roots, moment.0.0);
        if !next.has_room() {
            return Err(VolumeError::Invalid(format!(
                "the root of group `{}` has no room for what is restored over: delete a snapshot of it first",
                base.group.name
            )));
        }
        match Box::pin(self.swap_members(&base, roots)).await? {
            // It is done, whatever has become of the group since: an error would have it tried again.
            SwappedAll::Landed(now) => Ok(match now.first().map(|it| &it.home) {
                Some(Home::Group(group)) => group.view(),
                Some(Home::Own | Home::Forming(_)) | None => {
                    let etag = base.etag.clone();
                    StoredGroup { group: next, etag }.view()
                }
            }),
            SwappedAll::Lost(now) => Err(match now.first() {
                Some(now) => outrun(&now.root),
                None => no_group(id),
            }),
        }
    }

    /// The root with the snapshot's content, of which the map is written.
    async fn restored(
        &self,
        name: &VolumeName,
        base: &Stored,
        wanted: &Restore,
        (nonce, now_ms): (Id, u64),
    ) -> Result<Root, VolumeError> {
        let mut root = restored(&base.root, wanted, nonce, now_ms)?;
        // And nothing is restored that cannot be read.
        let snapshot = self.snapshot_of(name.clone(), base.clone(), &wanted.snapshot);
        let snapshot = Box::pin(snapshot).await?;
        let volume: Volume<W> = snapshot.ok_or_else(|| outrun(&base.root))?;
        root.content.map = Some(Box::pin(volume.restored_map(base, &root)).await?);
        Ok(root)
    }
}

fn no_group(id: Id) -> VolumeError {
    VolumeError::Invalid(format!(
        "there is no group {id} in this prefix: it was dissolved, or `{}` was lost",
        group::key(id)
    ))
}

/// A snapshot that one member had before it came into the group is of another moment than those of the others, also if
/// they have the same name.
fn check_is_of_group(group: &StoredGroup, snapshot: &str) -> Result<(), VolumeError> {
    let found = |root: &Root| {
        let found = root.snapshots.iter().find(|it| it.name == snapshot);
        found.map(|it| it.id)
    };
    let mut found = group.group.roots().map(found);
    let first = found.next().flatten();
    if first.is_some() && found.all(|it| it == first) {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "`{snapshot}` is not a snapshot of all members of group `{}` at one moment: one member alone is not restored; a \
         fork of it can be made",
        group.group.name
    )))
}

impl<W: World> Volume<W> {
    /// Writes the map of the snapshot, which this handle is, with the ledger of all that the volume has: what the
    /// snapshot names is live again, and all else that `base` knows of is dead. It may be held by what is restored
    /// over, which becomes a snapshot itself.
    async fn restored_map(&self, base: &Stored, root: &Root) -> Result<ObjectRef, VolumeError> {
        let (reader, map, maker) = {
            let state = self.inner.state.borrow();
            let maker = Maker {
                epoch: Epoch(root.epoch),
                ..self.maker(&state)
            };
            (self.reader(&state), state.map.clone(), maker)
        };
        // A lost part of the ledger may have listed what is live again, so nothing is said to be dead.
        let (live, is_lost) = match books::known(load_all(&reader, &map.ledger).await)? {
            Ok(table) => (table.live, map.ledger.has_gaps),
            Err(_lost) => (Vec::new(), true),
        };
        let mut named: BTreeSet<ObjectId> = live.iter().map(|entry| entry.id).collect();
        named.extend(root.content.tail.iter().map(TailSegment::id));
        let (mut dead, has_gaps) = match ended(&reader, &base.root).await {
            Ok((dead, has_gaps)) if !is_lost => (dead, has_gaps),
            Ok(_) => (Vec::new(), true),
            // It is restored because of that, perhaps.
            Err(VolumeError::Damaged { .. } | VolumeError::Missing { .. }) => (Vec::new(), true),
            Err(error) => return Err(error),
        };
        dead.retain(|dead| !named.contains(&dead.id));
        let cut = root.content.cut_seq;
        let ledger = begin(&reader, &maker, Table { live, dead }, has_gaps, cut).await?;
        let index = MapIndex {
            birth: cut,
            runs: map.runs.iter().map(|run| Run::clone(run)).collect(),
            ledger,
        };
        maker.put_index(Kind::MapIndex, index.encode()).await
    }
}

/// Everything of its own that a root names or knows to be dead, as if nothing named it any more; and whether
/// there may be more.
async fn ended<W: World>(
    reader: &Reader<W>,
    root: &Root,
) -> Result<(Vec<Dead>, bool), VolumeError> {
    let (content, own) = (&root.content, |object: &ObjectRef| {
        object.volume == root.volume
    });
    let last = content.cut_seq;
    let tail = content.tail.iter().filter(|it| own(&it.object));
    let tail = tail.map(|it| Dead::of(Kind::Segment, &it.object, it.birth, last));
    let mut dead: Vec<Dead> = tail.collect();
    let Some(index) = content.map.filter(own) else {
        return Ok((dead, false));
    };
    let map = load_map(reader, Some(&index)).await?;
    dead.push(Dead::of(Kind::MapIndex, &index, map.birth, last));
    let chunks = map.ledger.chunks.iter();
    dead.extend(chunks.map(|it| Dead::of(Kind::Ledger, &it.object, it.birth, last)));
    let all = load_all(reader, &map.ledger).await?;
    dead.extend(all.live.iter().map(|entry| entry.into_dead(last)));
    dead.extend(all.dead);
    Ok((dead, map.ledger.has_gaps))
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
    if !base.has_room() {
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
    // It may name again what the map did not name any more.
    for named in &mut root.volumes {
        named.unnamed_from = None;
    }
    root.content.cut_seq = base.content.cut_seq + 1;
    root.content.cut_epoch = root.epoch;
    root.content.cut_time_ms = now_ms;
    // A volume never shrinks: behind the end of the snapshot there are zeros, as there were before it grew.
    root.size_bytes = base.size_bytes.max(found.size_bytes);
    Ok(root)
}

/// Somebody was faster, of whom this is.
pub(super) fn outrun(root: &Root) -> VolumeError {
    if root.state == State::Open {
        return in_use(root);
    }
    VolumeError::Invalid(format!(
        "volume `{}` was changed by somebody else just then: try again",
        root.name
    ))
}

pub(super) fn in_use(root: &Root) -> VolumeError {
    VolumeError::Owned {
        name: root.name.clone(),
        owner: root.owner_text(),
        epoch: Epoch(root.epoch),
    }
}
