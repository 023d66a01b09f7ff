//! What opening a volume means, given what the log and the root say. Pure.
//!
//! ```text
//!  root \ log            knows it, its nonce is the root's    knows it, root moved on    does not know it
//!  open, ours, our epoch resume                               (moved on = other epoch)   take
//!  open, ours            take, records stay                   drop clean, take (*)       take
//!  detached or ownerless take, records stay                   drop clean, take (*)       take
//!  open, another's       read-only                            read-only                  read-only
//!  absent                refuse: vanished                     refuse: vanished           create, or unknown
//!  unreadable            refuse                               refuse                     refuse
//!  not to be asked       resume if the epoch is held, else unavailable
//! ```
//!
//! Where unpublished records are missing, "resume" and "take" become "damaged": read-only.
//! Volumes that are published together have one plan for all of them: [`join`].
//!
//! (*) Unpublished records are salvage then (rule 11): the volume stays closed here until an
//! operator accepts their loss, so that nothing answered is dropped in silence. A root whose last
//! nonce is one that this log made or durably intended is the only proof that its records still
//! count. A read-only export reads no records of the log, so it needs none of this.
//! A root that is older than what this log has seen published is refused, whoever owns it (rule 24).
//! "Take, records stay" also covers an open root after a detach that was intended
//! here: raising the epoch changes the root's version, so a detach that is still on its way to the
//! store can no longer land.

use blockcache::{Id, LocalVolume, Seq};

use crate::volume::{RootView, VolumeState};

/// What the store answered about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack of a request"
)]
pub(crate) enum Seen {
    Root(RootView),
    Absent,
    /// It could not be asked: why, for people.
    Unreachable(String),
    /// It answered, and what is there cannot be read (damage, a newer format, another password).
    Unreadable(String),
}

/// What to do with the LBA-keyed records of the log before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Records {
    /// They belong to the root's state, or there are none.
    Keep,
    /// They are stale, and the store has newer.
    Drop,
}

/// How to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The epoch is held still; the log goes on where it was.
    Resume {
        records: Records,
    },
    /// The same, without asking the store (rule 14).
    ResumeUnasked,
    /// Become the owner by epoch + 1.
    Take {
        records: Records,
    },
    /// Somebody else owns it: serve its cut.
    ReadOnly,
    /// Unpublished records are missing: show what is left, over the store's or the store's alone, until
    /// an operator accepts the loss (rule 8).
    Damaged {
        records: Records,
    },
    Create {
        size_bytes: u64,
    },
    Refuse(Refusal),
}

/// Why it cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such volume, and none is created by connecting.
    Unknown,
    /// The log knows the volume and the store does not: never invent it (promise 7).
    Vanished,
    Deleted,
    /// Pending or suspended: states of a later version.
    NotInThisVersion,
    Unavailable(String),
    /// The root, or what it names, is there and not readable (promise 7): which object, and why.
    Unreadable(String),
    /// So many bytes were answered here and never published, and somebody else published since.
    Salvage(u64),
    /// Unpublished records of the log are unreadable: what, for people.
    Damaged(String),
    /// The root is older than one that this log has seen published (rule 24).
    RolledBack {
        cut: Seq,
        seen: Seq,
    },
}

/// What this node knows and wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours<'a> {
    /// The owner that our roots name.
    pub(crate) cache: Id,
    pub(crate) local: Option<&'a LocalVolume>,
    pub(crate) create_bytes: Option<u64>,
    /// Also where a volume of the name was deleted.
    pub(crate) over_deleted: bool,
}

pub(crate) fn decide(seen: &Seen, ours: Ours<'_>) -> Plan {
    match seen {
        Seen::Unreachable(why) => match ours.local {
            Some(local) if local.attached => match &local.damage {
                Some(damage) => Plan::Refuse(Refusal::Damaged(damage.clone())),
                None => Plan::ResumeUnasked,
            },
            _ => Plan::Refuse(Refusal::Unavailable(why.clone())),
        },
        Seen::Unreadable(why) => Plan::Refuse(Refusal::Unreadable(why.clone())),
        Seen::Absent => match (ours.local, ours.create_bytes) {
            (Some(_), _) => Plan::Refuse(Refusal::Vanished),
            (None, Some(size_bytes)) => Plan::Create { size_bytes },
            (None, None) => Plan::Refuse(Refusal::Unknown),
        },
        Seen::Root(root) => match root.state {
            VolumeState::Open | VolumeState::Detached => decide_with_root(root, ours),
            // Only who asks for a new volume gets one: a guest that was away must not find an empty disk.
            VolumeState::Deleted => match ours.create_bytes.filter(|_| ours.over_deleted) {
                Some(size_bytes) => Plan::Create { size_bytes },
                None => Plan::Refuse(Refusal::Deleted),
            },
            VolumeState::Pending | VolumeState::Suspended => {
                Plan::Refuse(Refusal::NotInThisVersion)
            }
        },
    }
}

fn decide_with_root(root: &RootView, ours: Ours<'_>) -> Plan {
    // A volume of the same name with another id is another volume.
    let local = ours.local.filter(|local| local.id == root.volume);
    let detached = root.state == VolumeState::Detached;
    let owned_here = root.owner.as_ref().is_some_and(|o| o.cache == ours.cache);
    // Whoever takes a volume begins at its cut, so neither number ever falls.
    if let Some(local) = local.filter(|l| root.cut < l.published || root.epoch < l.epoch) {
        return Plan::Refuse(Refusal::RolledBack {
            cut: root.cut,
            seen: local.published,
        });
    }
    if !(detached || owned_here || root.owner.is_none()) {
        return Plan::ReadOnly;
    }
    let Some(local) = local else {
        let records = Records::Keep;
        return Plan::Take { records };
    };
    if let Some(damage) = &local.damage {
        if !is_ours(root, local) {
            return Plan::Refuse(Refusal::Damaged(damage.clone()));
        }
        let records = if root.cut > local.kept {
            Records::Drop
        } else {
            Records::Keep
        };
        return Plan::Damaged { records };
    }
    let records = match (is_ours(root, local), local.last > local.published) {
        (false, true) => return Plan::Refuse(Refusal::Salvage(local.dirty_bytes)),
        (false, false) => Records::Drop,
        // The store is ahead of the disk (rule 5): what is here is older than what is there.
        (true, _) if root.cut > local.last => Records::Drop,
        (true, _) => Records::Keep,
    };
    let held = local.attached && local.epoch == root.epoch && is_ours(root, local);
    if held && owned_here && !detached {
        Plan::Resume { records }
    } else {
        Plan::Take { records }
    }
}

/// What is done with all volumes that are published together (rule 30), the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Joint {
    Resume,
    Take,
    Damaged,
    ReadOnly,
}

/// Why some volumes are not opened together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// The place of the one that it is about.
    pub(crate) number: usize,
    pub(crate) refusal: Refusal,
}

/// What the plans for volumes that are published together come to, and what becomes of the records of each: one that
/// cannot be opened keeps the others closed, one that has to be taken has them taken, and what is missing of one makes
/// them all read-only. The other way round an order between them would be lost.
pub(crate) fn join(plans: Vec<Plan>) -> Result<(Joint, Vec<Records>), Unfit> {
    let mut joint = Joint::Resume;
    let mut all = Vec::with_capacity(plans.len());
    for (number, plan) in plans.into_iter().enumerate() {
        let (one, records) = match plan {
            Plan::Resume { records } => (Joint::Resume, records),
            Plan::Take { records } => (Joint::Take, records),
            Plan::Damaged { records } => (Joint::Damaged, records),
            Plan::ReadOnly => (Joint::ReadOnly, Records::Keep),
            Plan::Refuse(refusal) => return Err(Unfit { number, refusal }),
            // It has a root, so all that this can be is a fork of the same name, which is here alone.
            Plan::ResumeUnasked | Plan::Create { .. } => {
                let why = "a fork of the same name is on its way to the store here".to_owned();
                let refusal = Refusal::Unavailable(why);
                return Err(Unfit { number, refusal });
            }
        };
        joint = joint.max(one);
        all.push(records);
    }
    Ok((joint, all))
}

/// What this log may give up of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It made the root's last change as its owner; or the root is not known, and the log says that it is the owner.
    Ours,
    /// The root's owner has the id of this cache, and another log made its last change: one that is a copy of this, or
    /// that this is an old copy of. Taking the volume in order to give it up would fence whoever has it.
    Copied,
    Nothing,
}

/// `locals` are what the log knows under the name of the root.
pub(crate) fn claim(root: Option<&RootView>, locals: &[LocalVolume], cache: Id) -> Claim {
    let Some(root) = root else {
        return match locals.iter().any(|local| local.attached) {
            true => Claim::Ours,
            false => Claim::Nothing,
        };
    };
    let own = locals.iter().find(|local| local.id == root.volume);
    let is_last = own.is_some_and(|local| is_ours(root, local));
    let is_owner = root.owner.as_ref().is_some_and(|o| o.cache == cache);
    match root.state == VolumeState::Open && is_owner {
        true if is_last => Claim::Ours,
        true => Claim::Copied,
        false if is_last && own.is_some_and(|local| local.attached) => Claim::Ours,
        false => Claim::Nothing,
    }
}

/// Whether the root is what an owner of the volume knows it to be: the last that this log made, of the epoch that it
/// holds. A copy of the cache folder has the same id, and the owner's name in the root says nothing of which it is.
pub(crate) fn owns(root: &RootView, local: &LocalVolume, cache: Id) -> bool {
    let is_owner = root.owner.as_ref().is_some_and(|o| o.cache == cache);
    let is_same = root.volume == local.id && root.epoch == local.epoch;
    is_owner && root.state == VolumeState::Open && is_same && is_ours(root, local)
}

/// Whether this log made or durably intended the root's last change (rule 11).
fn is_ours(root: &RootView, local: &LocalVolume) -> bool {
    root.nonce == local.nonce || local.intents.iter().any(|i| i.nonce == root.nonce)
}

#[cfg(test)]
mod tests;
