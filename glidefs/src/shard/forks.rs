//! Forks, as an operator asks for them.

use blockcache::{CacheError, FORKS_MAX, Id, LocalVolume, NewFork};
use world::World;

use super::answer::{Answer, drain, ids_of_request, refusal, unavailable, volume_failure};
use crate::control::{
    ControlError, ControlErrorKind, ForkDocument, ForkWait, ForkedDocument, MakeForkDocument,
};
use crate::device::ConnectError;
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::volume::{Fork, ForkView, RootView, VolumeError};

/// Forks in one answer. Who wants more asks again, from the last id on.
const PAGE_MAX: usize = 200;

/// The state of the export at one moment between question and answer, where this node has it; of one that another node
/// has, what that node had published.
///
/// Where it is open for writing here, and nobody waits for more, the answer is that the fork is in this node's log,
/// beside its parent, whatever the store does; else that it is in the store.
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
    let ids = ids(registry, name, wanted)?;
    if wanted.wait == Some(ForkWait::Local) && wanted.snapshot.is_none() {
        let live = Box::pin(fork_live(registry, name, wanted, ids[0])).await?;
        if let Some(made) = live {
            return Ok(made);
        }
    }
    let [id, nonce] = ids;
    if let Some(pending) = pending(registry, id) {
        // Asked for before, and now it is to be waited for.
        drain(registry, &wanted.name).await?;
        return Ok(local_document(name, &pending, true));
    }
    if is_lost(registry, id) {
        let text = format!(
            "fork `{}` of this request ended before it was in the store; `glidefs salvage` shows what it holds, DELETE drops it; then fork again with a new request id",
            wanted.name
        );
        return Err(ControlError::new(ControlErrorKind::Conflict, text));
    }
    let is_taken = is_taken(registry, &wanted.name, id);
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
    not_pending(registry, name)?;
    // A reader must not become the owner by this.
    let open = registry.get(name);
    let owns = open.is_some_and(|it| matches!(it.role(), Role::ReadWrite | Role::Leaving));
    let held = registry.site().local_volume(name, None);
    let here = owns || held.is_some_and(|local| local.attached);
    if live && here {
        drain(registry, name).await?;
    }
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    if wanted.request_id.is_some() {
        // The answer may be lost, and the fork be made all the same.
        registry.site().lineage.sent(id);
    }
    let child = Box::pin(bucket.fork(&fork)).await.map_err(failed)?;
    tracing::info!(export = name, fork = %wanted.name, cut = %child.cut, "forked");
    Ok(document(name, wanted, child))
}

/// What is only here would hide the fork from who connects here. What is left of one that was purged does not.
fn is_taken<W: World>(registry: &Registry<W>, name: &str, id: Id) -> bool {
    let stays = |local: &LocalVolume| local.attached || local.last > local.published;
    let mut known = registry.site().cache.volumes().into_iter();
    known.any(|local| local.name == name && local.id != id && stays(&local))
}

/// A fork that is here, and not in the store yet.
fn pending<W: World>(registry: &Registry<W>, id: Id) -> Option<LocalVolume> {
    let cache = &registry.site().cache;
    let state = cache.volume(id)?.state();
    state.filter(|_| cache.is_pending_fork(id))
}

/// A fork that is here and never came into the store.
fn is_lost<W: World>(registry: &Registry<W>, id: Id) -> bool {
    let cache = &registry.site().cache;
    let state = cache.volume(id).and_then(|volume| volume.state());
    state.is_some_and(|state| state.base.is_some()) && !cache.is_pending_fork(id)
}

/// One of its forks that is not in the store, and does not get there before somebody accepts a loss.
pub(super) fn damaged<W: World>(registry: &Registry<W>, parent: &Export<W>) -> Option<String> {
    let cache = &registry.site().cache;
    let forks = parent.local_state()?.forks;
    forks.iter().find_map(|fork| {
        let state = cache.volume(fork.child)?.state()?;
        let is_due = state.damage.is_some() && cache.is_pending_fork(fork.child);
        is_due.then_some(state.name)
    })
}

/// Its cut and its snapshot would have to wait for its own root.
fn not_pending<W: World>(registry: &Registry<W>, name: &str) -> Answer<()> {
    let open = registry.get(name);
    if open.is_some_and(|export| export.is_pending_fork()) {
        return Err(unavailable(format!(
            "`{name}` is a fork that is not in the store yet, and cannot be forked before: ask again when its document says `published`, or drain it first"
        )));
    }
    Ok(())
}

/// Notes the fork in the log and opens it. None: it has to go through the store.
async fn fork_live<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: &MakeForkDocument,
    id: Id,
) -> Answer<Option<ForkDocument>> {
    let site = registry.site();
    // One at a time: the second of two equal requests finds what the first has made.
    let mut door = registry.door(&wanted.name).await;
    if site.closing.get() {
        return Err(refusal(ConnectError::ShuttingDown));
    }
    if let Some(made) = pending(registry, id) {
        return Ok(Some(local_document(name, &made, false)));
    }
    not_pending(registry, name)?;
    let parent = registry.get(name).filter(|it| it.role() == Role::ReadWrite);
    let Some(parent) = parent.filter(|it| may_be_live(registry, it)) else {
        return Ok(None);
    };
    let is_known = site.cache.volume(id).is_some() || site.lineage.was_sent(id);
    if is_known || is_taken(registry, &wanted.name, id) || registry.get(&wanted.name).is_some() {
        // The store tells what was made before from what is in the way.
        return Ok(None);
    }
    let Some(local) = parent.local() else {
        return Ok(None);
    };
    // Until it is noted, which the sync task of the parent must live to publish.
    let forking = parent.orders.forking();
    if parent.role() != Role::ReadWrite {
        return Ok(None);
    }
    // Not the one that follows from the request: should this fork be lost and the request come again, what the store makes
    // of it then is not what this log holds (rule 11).
    let nonce = Id(site.world.random_id());
    let new = NewFork {
        child: id,
        name: wanted.name.clone(),
        nonce,
    };
    let noted = local.fork(new).await;
    drop(forking);
    let cut = match noted {
        Ok(cut) => cut,
        Err(CacheError::TooManyForks(_) | CacheError::KnownVolume(_) | CacheError::Fenced) => {
            return Ok(None);
        }
        Err(error) => return Err(unavailable(format!("`{name}` cannot be forked: {error}"))),
    };
    // From here on it is there, whether this very answer arrives or not. Should it be published and then given up here,
    // the same request finds it in the store.
    if wanted.request_id.is_some() {
        site.lineage.sent(id);
    }
    let opened = registry.opened(&mut door, &wanted.name, Wish::default());
    Box::pin(opened).await.map_err(refusal)?;
    tracing::info!(export = name, fork = %wanted.name, %cut, "forked; it is published in the background");
    Ok(Some(ForkDocument {
        name: wanted.name.clone(),
        parent: name.to_owned(),
        snapshot: None,
        size_bytes: parent.size_bytes(),
        cut_seq: cut.0,
        published: false,
    }))
}

/// Whether the log can hold the cut as long as the store does not answer. Not that of a member of a group: what a start
/// finds of one may have to be cut at once, where the order of its writes is not known any more, and a fork that begins in
/// the middle of that would bound each cut of the group for ever.
fn may_be_live<W: World>(registry: &Registry<W>, parent: &Export<W>) -> bool {
    if parent.has_fellows() {
        return false;
    }
    let Some(state) = parent.local_state() else {
        return false;
    };
    let volume = parent.frames().volume();
    // Resumed in an outage, by itself: the log may know others of its group that it cannot go on with.
    if volume.is_none() && registry.site().cache.together_with(state.id).len() > 1 {
        return false;
    }
    let most = registry.site().config.sync.cut_extents_max;
    let records = usize::try_from(state.last.0.saturating_sub(state.published.0));
    let noted = state.forks.iter().filter(|fork| !fork.is_carried).count();
    records.is_ok_and(|records| records <= most)
        && state.forks.len() < FORKS_MAX
        && volume.is_none_or(|volume| volume.has_room_for_fork(noted))
}

fn local_document(parent: &str, fork: &LocalVolume, published: bool) -> ForkDocument {
    let cut = fork.base.as_ref().map_or(fork.published, |base| base.cut);
    ForkDocument {
        name: fork.name.clone(),
        parent: parent.to_owned(),
        snapshot: None,
        size_bytes: fork.size_bytes,
        cut_seq: cut.0,
        published,
    }
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
pub(super) fn parsed(hex: &str) -> Option<Id> {
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
