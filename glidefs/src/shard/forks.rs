//! Forks, as an operator asks for them.

use blockcache::{Id, LocalVolume};
use world::World;

use super::answer::{Answer, drain, ids_of_request, refusal, volume_failure};
use crate::control::{
    ControlError, ControlErrorKind, ForkDocument, ForkedDocument, MakeForkDocument,
};
use crate::export::Role;
use crate::export::registry::{Registry, check_name};
use crate::volume::{Fork, ForkView, RootView, VolumeError};

/// Forks in one answer. Who wants more asks again, from the last id on.
const PAGE_MAX: usize = 200;

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
    let [id, nonce] = ids(registry, name, wanted)?;
    // What is only here would hide the fork from who connects here. What is left of one that was purged does not.
    let stays = |local: &LocalVolume| local.attached || local.last > local.published;
    let mut known = registry.site().cache.volumes().into_iter();
    let is_taken = known.any(|local| local.name == wanted.name && local.id != id && stays(&local));
    let failed = |error: VolumeError| volume_failure(&error);
    let snapshot = wanted.snapshot.clone();
    let fork = Fork::new(name, snapshot, &wanted.name, id, nonce).map_err(failed)?;
    if is_taken {
        // By this very fork perhaps, which has an id of its own in the place of one that was purged.
        let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
        let made = bucket.made(&fork).await.map_err(failed)?;
        let child = made.ok_or_else(|| taken(&wanted.name))?;
        return Ok(document(name, wanted, child));
    }
    let live = wanted.snapshot.is_none();
    // A reader must not become the owner by this.
    let open = registry.get(name);
    let owns = open.is_some_and(|it| matches!(it.role(), Role::ReadWrite | Role::Leaving));
    let held = registry.site().local_volume(name, None);
    let here = owns || held.is_some_and(|local| local.attached);
    if live && here {
        drain(registry, name).await?;
    }
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    let child = Box::pin(bucket.fork(&fork)).await.map_err(failed)?;
    tracing::info!(export = name, fork = %wanted.name, cut = %child.cut, "forked");
    Ok(document(name, wanted, child))
}

fn document(parent: &str, wanted: &MakeForkDocument, child: RootView) -> ForkDocument {
    ForkDocument {
        name: child.name,
        parent: parent.to_owned(),
        snapshot: wanted.snapshot.clone(),
        size_bytes: child.size_bytes,
        cut_seq: child.cut.0,
        published: true,
    }
}

/// Forks of a volume, a page at a time, by id.
pub(super) async fn list<W: World>(
    registry: &Registry<W>,
    name: &str,
    after: &str,
) -> Answer<Vec<ForkedDocument>> {
    check_name(name).map_err(refusal)?;
    let after = match after {
        "" => None,
        id => Some(parsed(id).ok_or_else(|| {
            let text = format!("`after={id}`: not the id of a fork, which is 32 hex digits");
            ControlError::new(ControlErrorKind::Invalid, text)
        })?),
    };
    let failed = |error: VolumeError| volume_failure(&error);
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    let forks = Box::pin(bucket.forks_after(name, after, PAGE_MAX)).await;
    let document = |fork: ForkView| ForkedDocument {
        name: fork.name,
        id: fork.id.to_string(),
        direct: fork.is_direct,
        error: fork.error,
    };
    Ok(forks.map_err(failed)?.into_iter().map(document).collect())
}

/// As ids are shown.
fn parsed(hex: &str) -> Option<Id> {
    let is_id = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(hex, 16).ok().filter(|_| is_id);
    number.map(|number| Id(number.to_be_bytes()))
}

/// The child's volume, and the nonce of its first root.
fn ids<W: World>(registry: &Registry<W>, name: &str, wanted: &MakeForkDocument) -> Answer<[Id; 2]> {
    let world = &registry.site().world;
    let Some(request) = &wanted.request_id else {
        return Ok([Id(world.random_id()), Id(world.random_id())]);
    };
    let snapshot = wanted.snapshot.as_deref().unwrap_or_default();
    ids_of_request(&["fork", name, snapshot, &wanted.name], request)
}

fn taken(name: &str) -> ControlError {
    let text = format!("an export `{name}` exists already; choose another name for the fork");
    ControlError::new(ControlErrorKind::Conflict, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_shown() {
        let id = Id([0x1f; 16]);
        assert_eq!(parsed(&id.to_string()), Some(id));
        for bad in [
            "",
            "1f",
            "+1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1",
            &"z".repeat(32),
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
