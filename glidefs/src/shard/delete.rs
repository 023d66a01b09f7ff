//! Closing an export for good here: drained, detached, and dropped from the cache. What the store has stays. A member of
//! a group is given up with all others, whose pages stay in the cache.

use std::rc::Rc;

use blockcache::{Id, LocalVolume};
use world::World;

use super::answer::{Answer, check_unused, closed, conflict, leave, refusal};
use super::loss::{is_loss, not_accepted};
use crate::control::{ControlError, ControlErrorKind, DeleteQuery, ExportDocument};
use crate::export::decide::{Claim, Plan, Refusal, Seen, claim};
use crate::export::document::{of_parts, owner_text};
use crate::export::group::Door;
use crate::export::open::Wish;
use crate::export::registry::{Registry, check_name};
use crate::export::{Export, Role};
use crate::volume::RootView;

pub(super) async fn run<W: World>(
    registry: &Registry<W>,
    name: &str,
    how: &DeleteQuery,
) -> Answer<ExportDocument> {
    let deleted = Box::pin(delete(registry, name, how)).await?;
    Ok(deleted.before)
}

/// An export that is closed here.
pub(super) struct Deleted {
    pub(super) before: ExportDocument,
    /// The volume that it was. None: only the store knows, and it was not to be asked.
    pub(super) volume: Option<Id>,
}

/// Refused while clients are connected, where unpublished writes would go that nobody else has, and where another log
/// has the volume under the id of this cache.
pub(super) async fn delete<W: World>(
    registry: &Registry<W>,
    name: &str,
    how: &DeleteQuery,
) -> Answer<Deleted> {
    check_name(name).map_err(refusal)?;
    // Behind the door a store that is silent is waited for, and who connects waits with it.
    check_clients(registry, name)?;
    let (mut door, asked) = registry.ask_behind_doors(name).await.map_err(refusal)?;
    check_clients(registry, name)?;
    let site = registry.site();
    let open = registry.get(name);
    let seen = asked.seen;
    let root = root_of(&seen);
    check_alone(name, root.filter(|_| how.purge))?;
    // Of a fork that the store does not have yet the log alone knows which it is.
    let pending = site.pending_fork(name);
    let there = root.map(|root| root.volume);
    let there = there.or(pending.as_ref().map(|it| it.id));
    if let Some(other) = there.filter(|there| !is_meant(how, *there)) {
        return Err(not_meant(name, other));
    }
    let plan = site.plan(name, Wish::default(), &seen);
    let locals = site.local_volumes(name, root);
    // What the store said may be older than what was published here meanwhile: of an export that still
    // syncs only its own task can say that it is lost.
    let syncs = open
        .as_ref()
        .is_some_and(|e| matches!(e.role(), Role::ReadWrite | Role::Leaving));
    let is_deleted = plan == Plan::Refuse(Refusal::Deleted);
    // A fork that is not in the store may wait for something that never comes: who accepts the loss need not wait with it.
    let is_given_up = pending.is_some() && how.accept_loss;
    let is_over = is_given_up || !syncs && (is_loss(&plan) || is_deleted);
    // Ours is also one whose detach was given up, its answer lost: the log has noted it, the root has not.
    let claim = claim(root, &locals, site.owner.cache);
    let drains = syncs || !is_over && claim == Claim::Ours;
    let is_dirty = |local: &&LocalVolume| local.last > local.published;
    // Of an earlier volume of the name, which nobody can publish any more.
    let is_of_another = |local: &LocalVolume| root.is_some_and(|root| root.volume != local.id);
    let mut dirty = locals.iter().filter(is_dirty);
    let lost = match is_over {
        true if is_deleted => dirty.next(),
        true => locals.first(),
        false => dirty.find(|local| !drains || is_of_another(local)),
    };
    if let Some(lost) = lost.filter(|_| !how.accept_loss) {
        let others = match is_over && is_damaged(&plan) {
            true => lost_with(registry, &door, name),
            false => Vec::new(),
        };
        return Err(not_accepted(name, lost, &others));
    }
    let is_copied = claim == Claim::Copied && open.is_none() && !is_over;
    if let Some(root) = root.filter(|_| is_copied && !how.accept_loss) {
        return Err(copied(name, locals.first(), root));
    }
    if is_over {
        if is_damaged(&plan) {
            Box::pin(forget_others(registry, &door, name)).await?;
        }
        // It can never be drained: the operator says that the local copy may go, or there is nothing to lose.
        end(open.filter(|_| is_given_up));
        registry.remove(name);
    } else if open.is_some() || drains {
        let opened = registry.opened(&mut door, name, Wish::default());
        let export = Box::pin(opened).await;
        let export = export.map_err(refusal)?;
        close(registry, &export).await?;
    }
    let locals = site.local_volumes(name, root);
    let before = closed(registry, name, &seen)?;
    let volume = root.map(|root| root.volume);
    let volume = volume.or(locals.first().map(|local| local.id));
    for local in &locals {
        forget(registry, local).await?;
    }
    let before = ExportDocument {
        dirty_bytes: 0,
        ..before
    };
    Ok(Deleted { before, volume })
}

fn check_clients<W: World>(registry: &Registry<W>, name: &str) -> Answer<()> {
    match registry.get(name) {
        Some(export) => check_unused(&export),
        None => Ok(()),
    }
}

/// Writes that were not published are missing.
fn is_damaged(plan: &Plan) -> bool {
    matches!(
        plan,
        Plan::Damaged { .. } | Plan::Refuse(Refusal::Damaged(_))
    )
}

/// Nothing is kept of one member of a group that was written behind what is lost of another (rule 30): what is not
/// published of the others goes as well. First, so that a crash in between leaves this one for the operator to ask again.
async fn forget_others<W: World>(registry: &Registry<W>, door: &Door, name: &str) -> Answer<()> {
    for other in door.together().iter().filter(|other| *other != name) {
        let open = registry.get(other);
        let open = open.filter(|it| matches!(it.role(), Role::ReadWrite | Role::Leaving));
        if let Some(export) = open {
            let text = "is open here without the others of its group; it finds that out by itself: ask again in a moment";
            return Err(conflict(&export, text));
        }
        registry.remove(other);
        if let Some(local) = lost_of(registry, other) {
            forget(registry, &local).await?;
        }
    }
    Ok(())
}

/// What goes with a damaged member, of the others of its group.
fn lost_with<W: World>(registry: &Registry<W>, door: &Door, name: &str) -> Vec<LocalVolume> {
    let others = door.together().iter().filter(|other| *other != name);
    let lost = others.filter_map(|other| lost_of(registry, other));
    lost.collect()
}

/// One that is not held has nothing that could be published.
fn lost_of<W: World>(registry: &Registry<W>, name: &str) -> Option<LocalVolume> {
    let local = registry.site().local_volume(name, None);
    local.filter(|it| it.attached && (it.damage.is_some() || it.last > it.published))
}

/// Drained and detached, if this node owns it; forgotten by the registry.
async fn close<W: World>(registry: &Registry<W>, export: &Rc<Export<W>>) -> Answer<()> {
    match export.role() {
        Role::ReadWrite => leave(registry, export).await?,
        Role::Prepared => export.end(Role::Closed),
        _ => {}
    }
    registry.remove(export.name());
    Ok(())
}

fn root_of(seen: &Seen) -> Option<&RootView> {
    match seen {
        Seen::Root(root) => Some(root),
        Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
    }
}

/// A member of a group is not deleted out of it.
fn check_alone(name: &str, root: Option<&RootView>) -> Answer<()> {
    let Some(group) = root.and_then(|root| root.group.as_ref()) else {
        return Ok(());
    };
    let group = &group.name;
    let text = format!(
        "`{name}` is a member of group `{group}`, and is not purged out of it: end the group first, with `DELETE /api/groups/{group}`"
    );
    Err(ControlError::new(ControlErrorKind::Conflict, text))
}

/// Of a fork that is given up: its task does nothing more in its name, whatever it is waiting for.
fn end<W: World>(export: Option<Rc<Export<W>>>) {
    if let Some(export) = export {
        export.end(Role::Closed);
    }
}

/// The refusal where only the id of the cache says that the volume is ours.
fn copied(name: &str, local: Option<&LocalVolume>, root: &RootView) -> ControlError {
    let (owner, epoch) = (owner_text(root.owner.as_ref()), root.epoch);
    ControlError {
        kind: ControlErrorKind::Conflict,
        message: format!(
            "`{name}` is open at epoch {epoch} by {owner}: that is the id of this cache too, and its log did not make the volume's last change. Another server has a copy of this cache folder, or the folder is older than it was, or this server died as it opened the volume. Delete it there; if there is no other server, promote it here first; or drop what is here of it, and leave the volume as it is, with `?accept_loss=true`"
        ),
        export: Some(Box::new(of_parts(name, local, Some(root)))),
        members: Vec::new(),
    }
}

fn not_meant(name: &str, other: Id) -> ControlError {
    let text =
        format!("`{name}` is volume {other} by now, not the one that was to be deleted; it stays");
    ControlError::new(ControlErrorKind::Conflict, text)
}

/// Whether who asks means this volume of the name.
fn is_meant(how: &DeleteQuery, volume: Id) -> bool {
    let wanted = how.volume.as_ref();
    wanted.is_none_or(|wanted| *wanted == volume.to_string())
}

async fn forget<W: World>(registry: &Registry<W>, local: &LocalVolume) -> Answer<()> {
    if local.last > local.published {
        tracing::warn!(export = %local.name, bytes = local.dirty_bytes, from_seq = local.published.0 + 1, to_seq = local.last.0, "unpublished writes dropped from the cache log, as the operator asked");
    }
    let forgotten = registry.site().cache.forget(local.id).await;
    forgotten.map_err(|error| ControlError::new(ControlErrorKind::Failed, error.to_string()))?;
    if let Some(base) = &local.base {
        // What its parent holds for it goes with the next publish.
        registry.site().lineage.left(base);
    }
    Ok(())
}
