//! Restoring a snapshot, as an operator asks for it.

use std::rc::Rc;

use blockcache::{Id, LocalVolume};
use world::World;

use super::answer::{
    Answer, check_unused, conflict, ids_of_request, leave, refusal, volume_failure,
};
use super::snapshots::{check_is_free, dated};
use crate::control::{ExportDocument, RestoreDocument};
use crate::export::decide::{Claim, Seen, claim};
use crate::export::document::of_parts;
use crate::export::group::Door;
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::volume::Restore;

/// Drains the export, gives it up, and makes it what the snapshot is. What it was until now is kept as another
/// snapshot. Refused while clients are connected: a filesystem must not change under its reader.
pub(super) async fn restore<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: RestoreDocument,
) -> Answer<ExportDocument> {
    check_name(name).map_err(refusal)?;
    check_name(&wanted.snapshot).map_err(refusal)?;
    let world = &registry.site().world;
    let asked = wanted.before.clone().unwrap_or_default();
    let before = before_name(world, wanted.before)?;
    // Nobody opens it in between.
    let mut door = registry.door(name).await;
    if let Some(export) = registry.get(name) {
        check_alone(&export)?;
    }
    if let Some(export) = held(registry, &mut door, name).await? {
        check_alone(&export)?;
        leave(registry, &export).await?;
        registry.remove(name);
    }
    let id = match &wanted.request_id {
        Some(request) => {
            let [id, _] = ids_of_request(&["restore", name, &wanted.snapshot, &asked], request)?;
            id
        }
        None => Id(world.random_id()),
    };
    let snapshot = wanted.snapshot;
    let restore = Restore {
        snapshot,
        id,
        before,
    };
    let bucket = registry
        .site()
        .shelf
        .bucket()
        .await
        .map_err(|error| volume_failure(&error))?;
    let root = Box::pin(bucket.restore(name, &restore)).await;
    let root = root.map_err(|error| volume_failure(&error))?;
    tracing::info!(
        export = name,
        snapshot = restore.snapshot,
        before = restore.before,
        "restored"
    );
    Ok(of_parts(name, None, Some(&root)))
}

/// The log lets go of a volume before the store is told so. Where that was interrupted, the intent of it is left: then the
/// store says whether the volume is ours still.
async fn may_own<W: World>(registry: &Registry<W>, name: &str, local: Option<LocalVolume>) -> bool {
    let Some(local) = local else {
        return false;
    };
    if local.attached || local.intents.is_empty() {
        return local.attached;
    }
    let site = registry.site();
    let root = match Box::pin(site.shelf.ask(name)).await.seen {
        Seen::Root(root) => root,
        Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => return false,
    };
    let locals = site.local_volumes(name, Some(&root));
    claim(Some(&root), &locals, site.owner.cache) == Claim::Ours
}

/// The name under which is kept what a restore replaces.
pub(super) fn before_name<W: World>(world: &W, wanted: Option<String>) -> Answer<String> {
    let before = wanted.unwrap_or_else(|| {
        let moment = dated(&world.unix_time().to_string());
        format!("before-{moment}")
    });
    check_name(&before).map_err(refusal)?;
    check_is_free(&before)?;
    Ok(before)
}

/// The others of its group would stay at another moment.
fn check_alone<W: World>(export: &Rc<Export<W>>) -> Answer<()> {
    let Some(group) = export.root().and_then(|root| root.group) else {
        return Ok(());
    };
    let name = &group.name;
    let text = format!(
        "is a member of group `{name}`, which is restored as a whole: `POST /api/groups/{name}/restore`; one member alone can be forked, and the fork be looked at"
    );
    Err(conflict(export, &text))
}

/// What this node has to give up before the volume can be changed from outside: its export, opened for writing. None if it
/// has nothing of it. Refused while somebody is connected, and where another node owns it.
pub(super) async fn held<W: World>(
    registry: &Registry<W>,
    door: &mut Door,
    name: &str,
) -> Answer<Option<Rc<Export<W>>>> {
    let local = registry.site().local_volume(name, None);
    let open = registry.get(name);
    if let Some(export) = &open {
        check_unused(export)?;
    }
    if open.is_none() && !Box::pin(may_own(registry, name, local)).await {
        return Ok(None);
    }
    let export = Box::pin(registry.opened(door, name, Wish::default())).await;
    let export = export.map_err(refusal)?;
    match export.role() {
        Role::ReadWrite => Ok(Some(export)),
        Role::ReadOnly => Err(conflict(&export, "is owned by another node: ask that one")),
        Role::Prepared
        | Role::Damaged
        | Role::Leaving
        | Role::Fenced
        | Role::Vanished
        | Role::Closed => {
            let why = export.halted().unwrap_or_else(|| "is not open".to_owned());
            Err(conflict(&export, &format!("cannot be given up: {why}")))
        }
    }
}
