//! Deleting a volume for good: closed here, a tombstone in the store, and then its objects go, which may take a while.

use std::cell::Cell;
use std::rc::Rc;

use blockcache::Id;
use world::World;

use super::answer::{Answer, ids_of_request, volume_failure};
use super::delete::delete;
use crate::control::{
    CollectedDocument, ControlError, ControlErrorKind, DeleteQuery, OperationDocument,
    OperationState,
};
use crate::export::registry::Registry;
use crate::volume::{Bucket, Purged, VolumeError};

/// Of operations.
const KIND: &str = "purge";

/// Returns once the volume is a tombstone, which is for good. Asked again with the same request id, it is the same
/// operation, also if another volume has the name by then; after a restart only the volume's id tells those apart.
pub(super) async fn run<W: World>(
    registry: &Rc<Registry<W>>,
    name: &str,
    how: &DeleteQuery,
) -> Answer<OperationDocument> {
    let site = registry.site();
    let id = match &how.request_id {
        Some(request) => ids_of_request(&[KIND, name], request)?[0],
        None => Id(site.world.random_id()),
    };
    let id = id.to_string();
    if let Some(known) = site.operations.begun(&id) {
        return Ok(known);
    }
    let operation = OperationDocument {
        id: id.clone(),
        kind: KIND.to_owned(),
        state: OperationState::Running,
        dry_run: false,
        done: 0,
        total: 0,
        at: name.to_owned(),
        started_at: site.world.unix_time().to_string(),
        ended_at: None,
        error: None,
        exports: Vec::new(),
    };
    site.operations.begin(operation.clone())?;
    let bucket = match Box::pin(entombed(registry, name, how)).await {
        Ok(bucket) => bucket,
        Err(error) => {
            let now = site.world.unix_time().to_string();
            site.operations.end(&id, Some(error.message.clone()), now);
            return Err(error);
        }
    };
    let (registry, name) = (Rc::clone(registry), name.to_owned());
    site.world.spawn(async move {
        let operations = &registry.site().operations;
        let before = Cell::new(0);
        let tell = |purged: &Purged| {
            if purged.deleted_objects == 1 {
                before.set(operations.get(&id).map_or(0, |it| it.done));
            }
            operations.deleted(&id, &purged.name, before.get() + purged.deleted_objects);
        };
        let buried = Box::pin(bucket.bury(&name, &tell)).await;
        let failure = match buried {
            Ok(all) => {
                operations.purged(&id, all.into_iter().map(document).collect());
                None
            }
            Err(error) => Some(format!(
                "`{name}` is deleted, and not all of its space has come back: {error}; purge it again"
            )),
        };
        let now = registry.site().world.unix_time().to_string();
        operations.end(&id, failure, now);
    });
    Ok(operation)
}

async fn entombed<W: World>(
    registry: &Registry<W>,
    name: &str,
    how: &DeleteQuery,
) -> Answer<Bucket<W>> {
    let deleted = Box::pin(delete(registry, name, how)).await?;
    let volume = deleted.volume.ok_or_else(|| {
        let text = format!("the store does not say which volume `{name}` is; try again");
        ControlError::new(ControlErrorKind::Unavailable, text)
    })?;
    let failed = |error: VolumeError| match error {
        VolumeError::Owned { .. } => {
            let mut failure = volume_failure(&error);
            failure.message = format!("{error}; purge it there, or promote it here first");
            failure
        }
        error => volume_failure(&error),
    };
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    Box::pin(bucket.entomb(name, volume))
        .await
        .map_err(failed)?;
    tracing::info!(export = name, "deleted for good, as was asked for");
    Ok(bucket)
}

fn document(purged: Purged) -> CollectedDocument {
    let note = purged.held_by.map(|by| {
        format!(
            "everything of it stays, for {by}; it goes when they are purged, or purge it again then"
        )
    });
    CollectedDocument {
        export: purged.name,
        deleted_objects: purged.deleted_objects,
        deleted_bytes: purged.deleted_bytes,
        note,
        ..CollectedDocument::default()
    }
}
