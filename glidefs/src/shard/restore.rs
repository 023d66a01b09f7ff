//! Restoring a snapshot, as an operator asks for it.

use blockcache::Id;
use world::World;

use super::answer::{Answer, conflict, ids_of_request, leave, refusal, volume_failure};
use super::snapshots::{check_is_free, dated};
use crate::control::{ExportDocument, RestoreDocument};
use crate::export::Role;
use crate::export::document::of_parts;
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
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
    let before = wanted.before.unwrap_or_else(|| {
        let moment = dated(&world.unix_time().to_string());
        format!("before-{moment}")
    });
    check_name(&before).map_err(refusal)?;
    check_is_free(&before)?;
    // Nobody opens it in between.
    let _door = registry.door(name).await;
    let local = registry.site().local_volume(name, None);
    let open = registry.get(name);
    if let Some(export) = open.as_ref().filter(|export| export.clients.count() > 0) {
        return Err(conflict(export, "has clients; disconnect them first"));
    }
    if open.is_some() || local.is_some_and(|local| local.attached) {
        let export = Box::pin(registry.opened(name, Wish::default())).await;
        let export = export.map_err(refusal)?;
        match export.role() {
            Role::ReadWrite => leave(registry, &export).await?,
            Role::ReadOnly => {
                return Err(conflict(&export, "is owned by another node: ask that one"));
            }
            Role::Prepared
            | Role::Damaged
            | Role::Leaving
            | Role::Fenced
            | Role::Vanished
            | Role::Closed => {
                let why = export.halted().unwrap_or_else(|| "is not open".to_owned());
                return Err(conflict(&export, &format!("cannot be restored: {why}")));
            }
        }
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
