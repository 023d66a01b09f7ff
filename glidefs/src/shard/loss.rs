//! What an operator gives up: unpublished writes that are not there any more, and those that can
//! never be published. Nothing of either goes without a request that names it.

use world::World;

use blockcache::LocalVolume;

use super::answer::Answer;
use crate::control::{AcceptLossDocument, ControlError, ControlErrorKind, ExportDocument};
use crate::export::Role;
use crate::export::decide::{Plan, Refusal, Seen};
use crate::export::document::{of_export, of_parts};
use crate::export::open::{Wish, refused};
use crate::export::registry::{Registry, check_name};

/// Accepts that the writes of a damaged volume after `kept_seq` are lost, and opens it with those
/// before (rule 8). Refused if something else is left than who asks has seen. Of a group it is accepted for all members,
/// which go back to what was published last (rule 30).
pub(super) async fn accept_loss<W: World>(
    registry: &Registry<W>,
    name: &str,
    wanted: &AcceptLossDocument,
) -> Answer<ExportDocument> {
    check_name(name).map_err(super::answer::refusal)?;
    let asked = registry.ask_behind_doors(name).await;
    let (mut door, asked) = asked.map_err(super::answer::refusal)?;
    let site = registry.site();
    let seen = asked.seen;
    let root = match &seen {
        Seen::Root(root) => Some(root),
        Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
    };
    let pending = site.pending_fork(name);
    let is_fork = pending.is_some();
    let Some(local) = pending.or_else(|| site.local_volume(name, root)) else {
        let text = format!("this node's cache holds nothing of `{name}`");
        return Err(ControlError::new(ControlErrorKind::NotFound, text));
    };
    let conflict = |message: String| ControlError {
        kind: ControlErrorKind::Conflict,
        message,
        export: Some(Box::new(of_parts(name, Some(&local), root))),
        members: Vec::new(),
    };
    match site.plan(name, Wish::default(), &seen) {
        Plan::Damaged { .. } => {}
        // Of a fork that is not in the store the log alone decides.
        Plan::Refuse(Refusal::Damaged(_)) if is_fork => {}
        Plan::Refuse(refusal) => return Err(super::answer::refusal(refused(name, refusal))),
        _ => return Err(conflict(format!("no write of `{name}` is missing here"))),
    }
    if wanted.kept_seq != local.kept.0 {
        return Err(conflict(format!(
            "what is left of `{name}` ends with write {}, not {}: look at it, then accept that",
            local.kept, wanted.kept_seq
        )));
    }
    let accepted = site.cache.accept_loss(local.id, local.kept).await;
    accepted.map_err(|error| conflict(error.to_string()))?;
    tracing::warn!(
        export = name,
        kept_seq = local.kept.0,
        "writes after this one are lost, as the operator accepted; those before are published"
    );
    // Who looked at it while it was damaged connects again. So do those of the others of its group: the loss is theirs too.
    for name in door.together() {
        if let Some(export) = registry.get(name) {
            export.end(Role::Closed);
        }
        registry.remove(name);
    }
    let opened = Box::pin(registry.opened(&mut door, name, Wish::default())).await;
    let export = opened.map_err(super::answer::refusal)?;
    Ok(of_export(&export))
}

/// What this node holds can never be drained: dropping it is a loss that somebody must accept.
pub(super) fn is_loss(plan: &Plan) -> bool {
    matches!(
        plan,
        Plan::Damaged { .. }
            | Plan::Refuse(
                Refusal::Vanished
                    | Refusal::Salvage(_)
                    | Refusal::Damaged(_)
                    | Refusal::RolledBack { .. }
            )
    )
}

/// The refusal of a DELETE that would drop it, and what goes with it of others.
pub(super) fn not_accepted(
    name: &str,
    local: &LocalVolume,
    others: &[LocalVolume],
) -> ControlError {
    let (bytes, from, to) = (local.dirty_bytes, local.published.next(), local.last);
    let of_others = others.iter().map(|it| {
        let (name, bytes) = (&it.name, it.dirty_bytes);
        format!(
            "{bytes} of `{name}` (writes {} to {})",
            it.published.next(),
            it.last
        )
    });
    let of_others: Vec<String> = of_others.collect();
    let along = match of_others.is_empty() {
        true => String::new(),
        false => format!(
            "; so go the unpublished bytes of the others of its group, {}, for nothing is kept that was written behind what is lost",
            of_others.join(", ")
        ),
    };
    ControlError {
        kind: ControlErrorKind::Conflict,
        message: format!(
            "`{name}` cannot be drained, and this node's cache holds {bytes} unpublished bytes of it (writes {from} to {to}, of volume {}), which nobody else has; drop them with `?accept_loss=true`{along}",
            local.id
        ),
        export: Some(Box::new(of_parts(name, Some(local), None))),
        members: Vec::new(),
    }
}
