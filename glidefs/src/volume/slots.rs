//! Changing the password slots of a prefix: one compare-and-swap of the keyring, whatever the number
//! of volumes. Nothing else in the store is touched, and servers that run hold the prefix key: they
//! notice nothing.
//!
//! ```text
//! read -> decide (pure) -> replace If-Match -- ok ----------------------------> done
//!   ^                          unclear, refused for its version: read back
//!   |                             our very bytes ----------------------------> done
//!   |                             the version that we read ---> the same bytes again
//!   \---------------------------- anything else: somebody was faster
//! ```
//!
//! Behind the swap a note says that the old one was replaced (`replaced.rs`).
//!
//! Of two operators at once one wins, and the other decides again on what the first has left: no
//! slot is lost. The last slot is never removed, and the one that the configuration's own password
//! opens only if that is asked for.

use blockcache::Id;
use bytes::Bytes;
use world::store::Part;
use world::{ETag, Store, StoreErrorKind, World};
use zeroize::Zeroizing;

use super::keyring::{FreshSlot, Keyring, KeyringCost, Opened, SLOTS_MAX, SlotView, slot_id};
use super::name::KEYRING;
use super::{VolumeError, probe, replaced, retry};

/// Times that another operator may be faster before this one gives up.
const ROUNDS_MAX: u32 = 16;
/// Digits of a slot's id that a person must give at least.
const SLOT_DIGITS_MIN: usize = 4;

/// What is asked of the slots.
#[derive(Clone)]
pub enum KeyChange {
    /// One more password. If it opens a slot already, nothing is done.
    Add { password: Zeroizing<String> },
    /// The slot whose id begins so.
    Remove { slot: String, in_use: InUse },
    /// All slots but the newest, which the configuration's password must open.
    KeepNewest,
}

impl std::fmt::Debug for KeyChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { .. } => f.write_str("Add"),
            Self::Remove { slot, in_use } => write!(f, "Remove({slot}, {in_use:?})"),
            Self::KeepNewest => f.write_str("KeepNewest"),
        }
    }
}

/// Whether the slot that the configuration's password opens may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    Keep,
    Remove,
}

/// The slots of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyslots {
    /// Oldest first. Empty: the prefix is plain.
    pub slots: Vec<SlotView>,
    /// The one that the configuration's password opens.
    pub in_use: Option<Id>,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub added: Option<SlotView>,
    pub removed: Vec<SlotView>,
    /// Afterwards.
    pub now: Keyslots,
    /// Should the keyring that was replaced be put back, it will be noticed. False: the store failed
    /// when this was to be noted.
    pub is_guarded: bool,
}

impl Keyslots {
    /// Looks. The password need not fit: what is shown is no secret.
    pub async fn read<W: World>(
        world: &W,
        store: &W::Store,
        password: Option<Zeroizing<String>>,
    ) -> Result<Self, VolumeError> {
        let (keyring, _) = read(world, store).await?;
        let looking = world.compute(move || {
            let opened = password.map(|password| keyring.opened_by(&password));
            let opened = opened.transpose()?.flatten();
            Ok(Self {
                slots: keyring.slots(),
                in_use: opened.map(|opened| opened.slot),
            })
        });
        looking.await
    }

    /// Changes the slots. `password` is the configuration's, and must open one of them.
    pub async fn change<W: World>(
        world: &W,
        store: &W::Store,
        password: Zeroizing<String>,
        change: KeyChange,
        cost: KeyringCost,
    ) -> Result<Changed, VolumeError> {
        // A store that ignores conditions would lose a slot of one of two operators.
        probe::probe(world, store).await?;
        let new_id = slot_id(world.random_id(), world.unix_time());
        let before = read(world, store).await?;
        let (mut keyring, mut etag) = before.clone();
        for _ in 0..ROUNDS_MAX {
            let fresh = FreshSlot {
                id: new_id,
                salt: world.random_id(),
                opener_salt: world.random_id(),
                cost,
            };
            let decision = {
                let (keyring, change) = (keyring.clone(), change.clone());
                let (password, first) = (password.clone(), before.0.clone());
                let deciding = move || decide(&keyring, &first, &password, &change, &fresh);
                world.compute(deciding).await?
            };
            let Some(next) = decision.next else {
                return Ok(decision.outcome);
            };
            let body = Bytes::from(next.encode());
            let swapped = swap(world, store, &etag, body).await?;
            // Also if somebody else's took its place: it may be ours that did, and was replaced in turn.
            let noted = replaced::note(world, store, &keyring).await;
            match swapped {
                Swapped::Landed => {
                    let mut changed = decision.outcome;
                    changed.is_guarded = noted.is_ok();
                    return Ok(changed);
                }
                Swapped::Lost(now) => (keyring, etag) = *now,
            }
        }
        Err(VolumeError::Invalid(format!(
            "object `{KEYRING}` was changed by somebody else {ROUNDS_MAX} times in a row; nothing was \
             done: try again when nobody else changes keys"
        )))
    }
}

/// What to write, if anything, and what is true once it is there.
struct Decision {
    next: Option<Keyring>,
    outcome: Changed,
}

/// `first` is the keyring as it was when the change was asked for: what is gone since then, and was
/// to go, is done.
fn decide(
    keyring: &Keyring,
    first: &Keyring,
    password: &str,
    change: &KeyChange,
    fresh: &FreshSlot,
) -> Result<Decision, VolumeError> {
    let Some(opened) = keyring.open(Some(password))? else {
        return Err(VolumeError::Key(format!(
            "object `{KEYRING}` holds no slots: this prefix is not encrypted"
        )));
    };
    let slots = keyring.slots();
    let changed = match change {
        KeyChange::Add { password } => {
            let there = keyring.opened_by(password)?.is_some();
            if !there && slots.len() >= SLOTS_MAX {
                return Err(VolumeError::Invalid(format!(
                    "the keyring has {SLOTS_MAX} slots, which is the most: remove one that no node uses"
                )));
            }
            (!there).then(|| keyring.with_slot(&opened, fresh, password))
        }
        KeyChange::Remove { slot, in_use } => {
            let target = find(&slots, &first.slots(), slot)?;
            removable(&slots, &opened, target, *in_use)?;
            let is_there = slots.iter().any(|view| view.id == target);
            is_there.then(|| keyring.keeping(|id| id != target))
        }
        KeyChange::KeepNewest => {
            let newest = slots.last().map(|view| view.id);
            if newest != Some(opened.slot) {
                return Err(VolumeError::Invalid(format!(
                    "the configuration's password opens slot {}, which is not the newest: set the \
                     newest password in the configuration (of every node), then finish",
                    opened.slot
                )));
            }
            (slots.len() > 1).then(|| keyring.keeping(|id| id == opened.slot))
        }
    };
    let next = changed.map(|changed| changed.rewrapped(&opened, fresh, password));
    let now = next.as_ref().unwrap_or(keyring).slots();
    let first = first.slots();
    let is_in = |list: &[SlotView], slot: &SlotView| list.iter().any(|other| other.id == slot.id);
    let has_gone = |slot: &&SlotView| !is_in(&now, slot) && goes(change, slot);
    let added = now.iter().find(|slot| slot.id.0 == fresh.id).copied();
    let removed = first.iter().filter(has_gone).copied().collect();
    let in_use = now.iter().map(|slot| slot.id).find(|id| *id == opened.slot);
    Ok(Decision {
        outcome: Changed {
            added,
            removed,
            now: Keyslots { slots: now, in_use },
            is_guarded: true,
        },
        next,
    })
}

fn goes(change: &KeyChange, slot: &SlotView) -> bool {
    match change {
        KeyChange::Add { .. } => false,
        KeyChange::Remove { slot: start, .. } => slot.id.to_string().starts_with(start.as_str()),
        KeyChange::KeepNewest => true,
    }
}

/// The one slot that a person means; also one that was there when he asked.
fn find(slots: &[SlotView], first: &[SlotView], start: &str) -> Result<Id, VolumeError> {
    let refuse = |why: &str| {
        Err(VolumeError::Invalid(format!(
            "`{}` {why}: give more of an id that `glidefs key list` shows",
            start.escape_debug()
        )))
    };
    if start.len() < SLOT_DIGITS_MIN {
        return refuse("is too short for the id of a slot");
    }
    let all = slots.iter().chain(first).map(|slot| slot.id);
    let mut found: Vec<Id> = all.filter(|id| id.to_string().starts_with(start)).collect();
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [] => refuse("is the id of no slot"),
        [one] => Ok(one),
        [..] => refuse("begins the ids of several slots"),
    }
}

fn removable(
    slots: &[SlotView],
    opened: &Opened,
    target: Id,
    in_use: InUse,
) -> Result<(), VolumeError> {
    if slots.iter().all(|slot| slot.id == target) {
        return Err(VolumeError::Invalid(format!(
            "slot {target} is the last one: without it nobody could read this prefix again; add \
             another first"
        )));
    }
    if opened.slot == target && in_use == InUse::Keep {
        return Err(VolumeError::Invalid(format!(
            "slot {target} is the one that the configuration's password opens: a node that starts \
             with it would be refused; roll the nodes to another password first, or say --in-use"
        )));
    }
    Ok(())
}

enum Swapped {
    Landed,
    /// This is there instead.
    Lost(Box<(Keyring, ETag)>),
}

/// Replaces the version `etag`, whatever answers are lost on the way (rule 13). The bytes hold fresh
/// random salts, so nobody else can have written them.
async fn swap<W: World>(
    world: &W,
    store: &W::Store,
    etag: &ETag,
    body: Bytes,
) -> Result<Swapped, VolumeError> {
    let mut attempt = 0;
    loop {
        let Err(error) = store.replace(KEYRING, etag, body.clone()).await else {
            return Ok(Swapped::Landed);
        };
        match error.kind {
            StoreErrorKind::NotFound => return Err(gone()),
            StoreErrorKind::Refused | StoreErrorKind::Unsupported => return Err(error.into()),
            StoreErrorKind::Retry => {}
            StoreErrorKind::Conflict | StoreErrorKind::Unknown => {
                let now = retry::get(world, store, KEYRING, Part::All).await?;
                if now.bytes == body {
                    return Ok(Swapped::Landed);
                }
                if now.etag != *etag {
                    let keyring = Keyring::decode(&now.bytes)?;
                    return Ok(Swapped::Lost(Box::new((keyring, now.etag))));
                }
            }
        }
        if attempt + 1 == retry::ATTEMPTS_MAX {
            return Err(error.into());
        }
        retry::back_off(world, attempt).await;
        attempt += 1;
    }
}

async fn read<W: World>(world: &W, store: &W::Store) -> Result<(Keyring, ETag), VolumeError> {
    replaced::read(world, store).await?.ok_or_else(gone)
}

fn gone() -> VolumeError {
    VolumeError::Key(format!(
        "object `{KEYRING}` is missing: this prefix was never begun by a start (check `storage.url`), \
         or its keyring was lost; restore it from a copy or an older version"
    ))
}
