//! Snapshots, as an operator asks for them: taken, listed, deleted. Those of a member of a group are taken and deleted in
//! all members by one publish (rule 30): whoever asks for one member asks for all.

use std::rc::Rc;

use blockcache::Id;
use world::{UnixTime, World};

use super::answer::{Answer, ids_of_request, open, refusal, unavailable, volume_failure, wait_for};
use crate::control::{
    ControlError, ControlErrorKind, PruneQuery, SnapshotDocument, TakeSnapshotDocument,
};
use crate::export::decide::Seen;
use crate::export::document::{of_export, owner_text};
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::volume::{
    Members, SNAPSHOTS_MAX, SnapshotChange, SnapshotView, Volume, VolumeError, is_of_fork,
};

/// What only the owner can do.
const CHANGES: &str = "change its snapshots";

/// All of a volume, oldest first.
pub(super) async fn list<W: World>(
    registry: &Registry<W>,
    name: &str,
) -> Answer<Vec<SnapshotDocument>> {
    let snapshots = known(registry, name).await?;
    Ok(snapshots.iter().map(|it| document(name, it)).collect())
}

pub(super) async fn get<W: World>(
    registry: &Registry<W>,
    name: &str,
    snapshot: &str,
) -> Answer<SnapshotDocument> {
    let snapshots = known(registry, name).await?;
    let found = snapshots.iter().find(|it| it.name == snapshot);
    found
        .map(|it| document(name, it))
        .ok_or_else(|| absent(name, snapshot))
}

/// Returns once the root in the store lists it. It is the state at one moment between question and answer.
pub(super) async fn take<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: TakeSnapshotDocument,
) -> Answer<SnapshotDocument> {
    let world = registry.site().world.clone();
    let asked = wanted.name.clone();
    let snapshot = match wanted.name {
        Some(snapshot) => snapshot,
        None => dated(&world.unix_time().to_string()),
    };
    check_name(&snapshot).map_err(refusal)?;
    check_is_free(&snapshot)?;
    let export = writable(registry, name, CHANGES).await?;
    let id = match wanted.request_id {
        Some(request) => id_of_request(name, asked.as_deref(), &request)?,
        None => Id(world.random_id()),
    };
    if let Some(found) = listed(&export).iter().find(|it| it.id == id) {
        return Ok(document(name, found));
    }
    let all = export.together();
    all.iter().try_for_each(|it| check_room(it, &snapshot))?;
    check_room_of_all(&all)?;
    let change = SnapshotChange::Take {
        id,
        name: snapshot.clone(),
    };
    carry_out(&all, vec![change]).await?;
    let after = listed(&export);
    match after.iter().find(|it| it.id == id) {
        Some(found) => Ok(document(name, found)),
        // Somebody else was faster with the name.
        None if after.iter().any(|it| it.name == snapshot) => Err(taken(name, &snapshot)),
        None => Err(given_up()),
    }
}

/// Of the snapshot that a request takes of an export, and so of its group.
pub(super) fn id_of_request(name: &str, snapshot: Option<&str>, request: &str) -> Answer<Id> {
    let asked = snapshot.unwrap_or_default();
    let [id, _] = ids_of_request(&["take", name, asked], request)?;
    Ok(id)
}

/// Whether one more of this name can be listed.
fn check_room<W: World>(export: &Export<W>, snapshot: &str) -> Answer<()> {
    let (name, before) = (export.name(), listed(export));
    if before.iter().any(|it| it.name == snapshot) {
        return Err(taken(name, snapshot));
    }
    if before.iter().filter(|it| !is_of_fork(&it.name)).count() >= SNAPSHOTS_MAX {
        return Err(ControlError::new(
            ControlErrorKind::Conflict,
            format!("`{name}` has {SNAPSHOTS_MAX} snapshots, which is the most: delete one first"),
        ));
    }
    Ok(())
}

/// The root of a group has a bound of its own.
fn check_room_of_all<W: World>(exports: &[Rc<Export<W>>]) -> Answer<()> {
    let volumes = exports.iter().filter_map(|it| it.frames().volume());
    let members = Members::of(volumes.collect());
    let members = members.map_err(|error: VolumeError| volume_failure(&error))?;
    let group = members.group().filter(|_| !members.has_room_for_snapshot());
    let Some(group) = group else {
        return Ok(());
    };
    Err(ControlError::new(
        ControlErrorKind::Conflict,
        format!(
            "the root of group `{}` has no room for one more snapshot of all its members: delete one first",
            group.name
        ),
    ))
}

/// Returns once the root in the store does not list it any more.
pub(super) async fn delete<W: World>(
    registry: &Registry<W>,
    name: &str,
    snapshot: &str,
) -> Answer<SnapshotDocument> {
    let export = writable(registry, name, CHANGES).await?;
    let before = listed(&export);
    let found = before.iter().find(|it| it.name == snapshot);
    let found = found.ok_or_else(|| absent(name, snapshot))?;
    if registry.site().cache.is_pending_fork(found.id) {
        let text = format!(
            "`{name}@{snapshot}` holds what a fork needs that is on its way to the store: it goes by itself when that is there"
        );
        return Err(ControlError::new(ControlErrorKind::Conflict, text));
    }
    let change = SnapshotChange::Drop { id: found.id };
    carry_out(&export.together(), vec![change]).await?;
    Ok(document(name, found))
}

/// Deletes all but the newest, all but the young, or, with both, what is neither.
pub(super) async fn prune<W: World>(
    registry: &Registry<W>,
    name: &str,
    how: PruneQuery,
) -> Answer<Vec<SnapshotDocument>> {
    if how == PruneQuery::default() {
        let text = "say which snapshots stay: `keep` (so many of the newest), `older_than_s` (the younger), or both";
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    let export = writable(registry, name, CHANGES).await?;
    let now = registry.site().world.unix_time();
    let mut all = listed(&export);
    all.retain(|it| !is_of_fork(&it.name));
    let pruned = pruned(&all, how, now);
    let drop = |it: &SnapshotView| SnapshotChange::Drop { id: it.id };
    carry_out(&export.together(), pruned.iter().map(drop).collect()).await?;
    Ok(pruned.iter().map(|it| document(name, it)).collect())
}

/// Names of snapshots that hold what a fork needs until it is in the store.
pub(super) fn check_is_free(name: &str) -> Answer<()> {
    if is_of_fork(name) {
        let text = format!(
            "snapshot names like `{name}` are kept for forks that are on their way to the store: choose another"
        );
        return Err(ControlError::new(ControlErrorKind::Invalid, text));
    }
    Ok(())
}

/// `all` are oldest first.
fn pruned(all: &[SnapshotView], how: PruneQuery, now: UnixTime) -> Vec<SnapshotView> {
    let spare = all.len() - how.keep.unwrap_or(0).min(all.len());
    let age_ms = how.older_than_s.unwrap_or(0).saturating_mul(1000);
    let old = |it: &&SnapshotView| it.taken.0.saturating_add(age_ms) <= now.0;
    let unbounded = how.older_than_s.is_none();
    let pruned = all[..spare].iter().filter(|it| unbounded || old(it));
    pruned.cloned().collect()
}

/// What the volume lists: of one that is open here for writing as last published, else as the store has it.
pub(super) async fn known<W: World>(
    registry: &Registry<W>,
    name: &str,
) -> Answer<Vec<SnapshotView>> {
    check_name(name).map_err(refusal)?;
    let here = registry.get(name).filter(|it| it.role() == Role::ReadWrite);
    if let Some(volume) = here.and_then(|export| export.frames().volume()) {
        return Ok(volume.snapshots());
    }
    let asked = registry.site().shelf.ask(name).await;
    match (asked.volume, asked.seen) {
        (Some(volume), _) => Ok(volume.snapshots()),
        (None, Seen::Unreachable(why)) => {
            Err(unavailable(format!("the store cannot be asked: {why}")))
        }
        (None, Seen::Unreadable(why)) => {
            Err(unavailable(format!("the volume cannot be read: {why}")))
        }
        (None, Seen::Absent | Seen::Root(_)) => Err(ControlError::new(
            ControlErrorKind::NotFound,
            format!("no export `{name}`"),
        )),
    }
}

/// The export, opened for writing: only the owner may change the root. `change` is what it alone can do, for people.
pub(super) async fn writable<W: World>(
    registry: &Registry<W>,
    name: &str,
    change: &str,
) -> Answer<Rc<Export<W>>> {
    let (door, export) = open(registry, name, Wish::default()).await?;
    drop(door);
    if export.role() == Role::ReadWrite {
        if export.is_pending_fork() {
            let text = format!(
                "`{name}` is a fork that is not in the store yet: ask again when its document says `published`, or drain it first"
            );
            return Err(unavailable(text));
        }
        if export.frames().volume().is_none() {
            let text = "the store has not been reached since the start: try again when it answers";
            return Err(unavailable(text.to_owned()));
        }
        return Ok(export);
    }
    let why = match (export.halted(), export.root()) {
        (Some(why), _) => why,
        (None, root) => {
            let owner = root.and_then(|root| root.owner);
            let owner = owner_text(owner.as_ref());
            format!("is owned by {owner}, which alone can {change}: do it there")
        }
    };
    Err(ControlError {
        kind: ControlErrorKind::Conflict,
        message: format!("export `{name}`: {why}"),
        export: Some(Box::new(of_export(&export))),
        members: Vec::new(),
    })
}

/// In all that are published together, by one publish.
async fn carry_out<W: World>(
    exports: &[Rc<Export<W>>],
    changes: Vec<SnapshotChange>,
) -> Answer<()> {
    let withdraw = || {
        for export in exports {
            export.orders.withdraw(&changes);
        }
    };
    // In one step: what was answered until now by any of them is in a snapshot of all.
    let orders = exports.iter().map(|export| {
        let target = export.local_state().map(|local| local.last);
        let target = target.unwrap_or_default();
        let mut each = changes.iter();
        let fits = each.all(|it| export.orders.snapshot(target, it.clone()));
        (export, export.orders.failures(), fits)
    });
    let orders: Vec<_> = orders.collect();
    if orders.iter().any(|(_, _, fits)| !fits) {
        withdraw();
        return Err(unavailable(
            "too many changes of snapshots wait for the store; ask again".to_owned(),
        ));
    }
    for (export, failures, _) in orders {
        let waits = || changes.iter().any(|it| export.orders.has_snapshot(it));
        if let Err(why) = wait_for(export, failures, || !waits()).await {
            // Nobody waits for it any more: hours later it would be a snapshot of those hours under a name of now. A
            // publish on its way may carry it all the same, so the answer is "unknown".
            withdraw();
            return Err(unavailable(format!(
                "it may not be in the store: {why}; look at the list, or ask again with the same `request_id`"
            )));
        }
    }
    let stays = |left: &[SnapshotView], it: &SnapshotChange| match it {
        SnapshotChange::Drop { id } => left.iter().any(|snapshot| snapshot.id == *id),
        SnapshotChange::Take { .. } => false,
    };
    for export in exports {
        let left = listed(export);
        if changes.iter().any(|it| stays(&left, it)) {
            return Err(given_up());
        }
    }
    Ok(())
}

/// Two asked for the same, and the first to hear of a failure took the order of both back.
pub(super) fn given_up() -> ControlError {
    unavailable(
        "the store did not take it when it was asked for by another request too; ask again"
            .to_owned(),
    )
}

fn listed<W: World>(export: &Export<W>) -> Vec<SnapshotView> {
    let volume = export.frames().volume();
    volume.as_ref().map(Volume::snapshots).unwrap_or_default()
}

pub(super) fn document(export: &str, snapshot: &SnapshotView) -> SnapshotDocument {
    SnapshotDocument {
        export: export.to_owned(),
        name: snapshot.name.clone(),
        id: snapshot.id.to_string(),
        size_bytes: snapshot.size_bytes,
        cut_seq: snapshot.cut.0,
        taken_at: snapshot.taken.to_string(),
    }
}

/// The moment as a name: `2026-11-26t07.49.04.123z`.
pub(super) fn dated(rfc3339: &str) -> String {
    rfc3339.to_ascii_lowercase().replace(':', ".")
}

fn absent(name: &str, snapshot: &str) -> ControlError {
    ControlError::new(
        ControlErrorKind::NotFound,
        format!(
            "`{name}` has no snapshot `{snapshot}`; `GET /api/exports/{name}/snapshots` lists them"
        ),
    )
}

fn taken(name: &str, snapshot: &str) -> ControlError {
    ControlError::new(
        ControlErrorKind::Conflict,
        format!(
            "`{name}` has a snapshot `{snapshot}` already; delete it first, or choose another name"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_name() {
        let name = dated(&UnixTime(1_795_132_800_123).to_string());
        assert!(name.ends_with("z") && name.contains('t'), "{name}");
        assert!(check_name(&name).is_ok(), "{name}");
    }

    #[test]
    fn what_is_kept_is_the_newest_or_the_young() {
        let snapshot = |day: u64| SnapshotView {
            id: Id([u8::try_from(day).expect("small"); 16]),
            name: format!("day-{day}"),
            size_bytes: 1,
            cut: blockcache::Seq(day),
            cut_epoch: blockcache::Epoch(1),
            taken: UnixTime(day * 86_400_000),
        };
        let all: Vec<SnapshotView> = (1..=10).map(snapshot).collect();
        let now = UnixTime(10 * 86_400_000);
        let goes = |keep, days: Option<u64>| {
            let older_than_s = days.map(|days| days * 86_400);
            let pruned = pruned(&all, PruneQuery { keep, older_than_s }, now);
            pruned.iter().map(|it| it.cut.0).collect::<Vec<u64>>()
        };
        assert_eq!(goes(Some(7), None), [1, 2, 3]);
        assert_eq!(goes(None, Some(8)), [1, 2]);
        assert_eq!(goes(Some(3), Some(5)), [1, 2, 3, 4, 5]);
        assert_eq!(goes(Some(9), Some(1)), [1]);
        assert!(goes(Some(10), None).is_empty());
        assert!(goes(Some(99), Some(u64::MAX / 86_400)).is_empty());
        assert_eq!(goes(Some(0), None).len(), 10);
    }
}
