//! Forks, as an operator asks for them.

use blockcache::Id;
use world::World;

use super::answer::{Answer, drain, refusal, unavailable};
use crate::control::{ControlError, ControlErrorKind, ForkDocument, MakeForkDocument};
use crate::export::frames::is_temporary;
use crate::export::registry::{Registry, check_name};
use crate::volume::{Fork, VolumeError};

/// Returns once the fork is in the store. Of an export that this node has it is the state at one moment between
/// question and answer; of one that another node has, what that node had published.
pub(super) async fn fork<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: &MakeForkDocument,
) -> Answer<ForkDocument> {
    check_name(name).map_err(refusal)?;
    check_name(&wanted.name).map_err(refusal)?;
    if let Some(snapshot) = &wanted.snapshot {
        check_name(snapshot).map_err(refusal)?;
    }
    // What stays only here would hide the fork from who connects here.
    let known = || registry.site().local_volume(&wanted.name, None);
    let (id, nonce) = ids(registry, wanted);
    if known().is_some_and(|local| local.id != id) {
        return Err(taken(&wanted.name));
    }
    let live = wanted.snapshot.is_none();
    let here = registry.get(name).is_some()
        || registry
            .site()
            .local_volume(name, None)
            .is_some_and(|it| it.attached);
    if live && here {
        drain(registry, name).await?;
    }
    let failed = |error: VolumeError| failure(&error);
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    let snapshot = wanted.snapshot.clone();
    let fork = Fork::new(name, snapshot, &wanted.name, id, nonce).map_err(failed)?;
    let child = Box::pin(bucket.fork(&fork)).await.map_err(failed)?;
    tracing::info!(export = name, fork = %wanted.name, cut = %child.cut, "forked");
    Ok(ForkDocument {
        name: child.name,
        parent: name.to_owned(),
        snapshot: wanted.snapshot.clone(),
        size_bytes: child.size_bytes,
        cut_seq: child.cut.0,
        published: true,
    })
}

/// The same request makes the same volume.
fn ids<W: World>(registry: &Registry<W>, wanted: &MakeForkDocument) -> (Id, Id) {
    let world = &registry.site().world;
    let Some(request) = &wanted.request_id else {
        return (Id(world.random_id()), Id(world.random_id()));
    };
    let hash = blake3::derive_key("glidefs 1 fork of a request", request.as_bytes());
    let (id, nonce) = hash.split_at(16);
    let half = |bytes: &[u8]| Id(*bytes.first_chunk().expect("16 of 32"));
    (half(id), half(nonce))
}

fn failure(error: &VolumeError) -> ControlError {
    let kind = match error {
        VolumeError::Vanished { .. } => ControlErrorKind::NotFound,
        VolumeError::Invalid(_) | VolumeError::Exists { .. } => ControlErrorKind::Conflict,
        error if is_temporary(error) => {
            return unavailable(format!(
                "not forked: {error}; ask again with the same `request_id`"
            ));
        }
        _ => ControlErrorKind::Failed,
    };
    ControlError::new(kind, error.to_string())
}

fn taken(name: &str) -> ControlError {
    let text = format!("an export `{name}` exists already; choose another name for the fork");
    ControlError::new(ControlErrorKind::Conflict, text)
}
