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
//! Behind the swap a note says that the old one was replaced (`replaced.rs`). Before it the note of the
//! one before that is made sure of, as the new keyring will name the old one alone.
//!
//! An older keyring that was put back is not built on, unless a person says so of this very one, because the newest is
//! lost. Then the same slots take its place as a new version: its own note stays, and the lost one gets one.
//!
//! Slots are in lines: `rotate` makes one of the same line as the one that the configuration's password
//! opens, `add` one that begins a line. So what a rotation ends is its own older slots, and never a
//! password that was added to stay.
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
use super::replaced::{self, Found};
use super::{VolumeError, probe, retry};

/// Times that another operator may be faster before this one gives up.
const ROUNDS_MAX: u32 = 16;
/// Digits of a slot's id that a person must give at least.
const SLOT_DIGITS_MIN: usize = 4;

/// What is asked of the slots.
#[derive(Clone)]
pub enum KeyChange {
    /// One more password, to stay. If it opens a slot already, nothing is done.
    Add { password: Zeroizing<String> },
    /// One more password, to replace the configuration's.
    Rotate { password: Zeroizing<String> },
    /// The slot whose id begins so.
    Remove { slot: String, in_use: InUse },
    /// Removes all slots that the one which the configuration's password opens was rotated from. It must be the
    /// newest of them.
    Finish,
    /// Goes on with this version of the keyring, which was replaced and is put back: the newest is lost. Nothing
    /// if the newest is there.
    AcceptOlder { version: String },
}

impl std::fmt::Debug for KeyChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { .. } => f.write_str("Add"),
            Self::Rotate { .. } => f.write_str("Rotate"),
            Self::Remove { slot, in_use } => write!(f, "Remove({slot}, {in_use:?})"),
            Self::Finish => f.write_str("Finish"),
            Self::AcceptOlder { version } => write!(f, "AcceptOlder({version})"),
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
    /// Should the keyring that this one replaced be put back, it will be noticed. False: the store failed when this was
    /// to be noted, which the next start or look makes up for.
    pub is_guarded: bool,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub added: Option<SlotView>,
    pub removed: Vec<SlotView>,
    /// Afterwards.
    pub now: Keyslots,
}

impl Keyslots {
    /// Looks, and makes up for a note that is missing. The password need not fit: what is shown is no secret.
    pub async fn read<W: World>(
        world: &W,
        store: &W::Store,
        password: Option<Zeroizing<String>>,
    ) -> Result<Self, VolumeError> {
        let (keyring, _) = read(world, store).await?;
        let is_guarded = replaced::catch_up(world, store, &keyring).await.is_ok();
        let looking = world.compute(move || {
            let opened = password.map(|password| keyring.opened_by(&password));
            let opened = opened.transpose()?.flatten();
            Ok(Self {
                slots: keyring.slots(),
                in_use: opened.map(|opened| opened.slot),
                is_guarded,
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
        if let KeyChange::AcceptOlder { version } = &change
            && let Found::PutBack(keyring, etag) = replaced::look(world, store).await?
        {
            is_meant(&keyring, version)?;
            let fresh = fresh_slot(world, new_id, cost);
            let going_on = go_on(world, store, (keyring, etag), password, fresh);
            return Box::pin(going_on).await;
        }
        let before = read(world, store).await?;
        let (mut keyring, mut etag) = before.clone();
        for _ in 0..ROUNDS_MAX {
            // What this one replaced is named by it alone: noted now, or never.
            replaced::catch_up(world, store, &keyring).await?;
            let fresh = fresh_slot(world, new_id, cost);
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
            match swap(world, store, &etag, body).await? {
                Swapped::Landed => {
                    let (old, by) = (keyring.version(), next.version());
                    let noted = replaced::note(world, store, old, by).await;
                    let mut changed = decision.outcome;
                    changed.now.is_guarded = noted.is_ok();
                    return Ok(changed);
                }
                // Ours may have landed and been replaced in turn: then by somebody who noted the old one first.
                Swapped::Lost => (keyring, etag) = read(world, store).await?,
            }
        }
        Err(VolumeError::Invalid(format!(
            "object `{KEYRING}` was changed by somebody else {ROUNDS_MAX} times in a row; nothing was \
             done: try again when nobody else changes keys"
        )))
    }
}

fn fresh_slot<W: World>(world: &W, id: [u8; 16], cost: KeyringCost) -> FreshSlot {
    FreshSlot {
        id,
        salt: world.random_id(),
        opener_salt: world.random_id(),
        cost,
    }
}

/// A loss is accepted of what was seen, and not of what is there by now.
fn is_meant(keyring: &Keyring, version: &str) -> Result<(), VolumeError> {
    let there = keyring.version().to_string();
    if there == version {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "object `{KEYRING}` is an older version, {there}, and not `{}`: if that is the one to go on with, give \
         its id",
        version.escape_debug()
    )))
}

/// Puts the same slots in the place of a keyring that was put back, as a new version. First the lost one is noted: once
/// the new one is there, nobody has a reason to look for it.
async fn go_on<W: World>(
    world: &W,
    store: &W::Store,
    (keyring, etag): (Keyring, ETag),
    password: Zeroizing<String>,
    fresh: FreshSlot,
) -> Result<Changed, VolumeError> {
    let old = keyring.clone();
    let making = move || {
        let opened = keyring.open(Some(password.as_str()))?;
        let next = opened.map(|opened| {
            let next = keyring.rewrapped(&opened, &fresh, password.as_str());
            (opened.slot, next.replacing(&keyring))
        });
        // Only one with slots is ever replaced.
        next.ok_or_else(gone)
    };
    let (in_use, next) = world.compute(making).await?;
    replaced::note_lost(world, store, old.version(), next.version()).await?;
    let body = Bytes::from(next.encode());
    match swap(world, store, &etag, body).await? {
        Swapped::Landed => Ok(Changed {
            added: None,
            removed: Vec::new(),
            now: Keyslots {
                slots: next.slots(),
                in_use: Some(in_use),
                is_guarded: true,
            },
        }),
        Swapped::Lost => Err(VolumeError::Invalid(format!(
            "object `{KEYRING}` was changed by somebody else just then: look again (`glidefs key list`)"
        ))),
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
    let next = next(keyring, first, &opened, change, fresh)?;
    let next = next.map(|next| next.rewrapped(&opened, fresh, password).replacing(keyring));
    let now = next.as_ref().unwrap_or(keyring).slots();
    let first = first.slots();
    let is_in = |list: &[SlotView], slot: &SlotView| list.iter().any(|other| other.id == slot.id);
    let has_gone = |slot: &&SlotView| !is_in(&now, slot) && goes(change, &opened, slot);
    let added = now.iter().find(|slot| slot.id.0 == fresh.id).copied();
    let removed = first.iter().filter(has_gone).copied().collect();
    let in_use = now.iter().map(|slot| slot.id).find(|id| *id == opened.slot);
    Ok(Decision {
        outcome: Changed {
            added,
            removed,
            now: Keyslots {
                slots: now,
                in_use,
                is_guarded: true,
            },
        },
        next,
    })
}

/// The keyring with the change made; none if it is so already.
fn next(
    keyring: &Keyring,
    first: &Keyring,
    opened: &Opened,
    change: &KeyChange,
    fresh: &FreshSlot,
) -> Result<Option<Keyring>, VolumeError> {
    let slots = keyring.slots();
    match change {
        KeyChange::Add { password } => {
            if let Some(there) = keyring.opened_by(password)? {
                let ends = newest(&slots, &there) != there.slot;
                if ends {
                    return Err(VolumeError::Invalid(format!(
                        "the password opens slot {} already, which a rotation is to replace: it would go with \
                         `glidefs key rotate --finish`; finish that first, then add the password again",
                        there.slot
                    )));
                }
                return Ok(None);
            }
            has_room(&slots)?;
            Ok(Some(keyring.with_slot(
                opened,
                fresh,
                Id(fresh.id),
                password,
            )))
        }
        KeyChange::Rotate { password } => {
            if let Some(there) = keyring.opened_by(password)? {
                is_rotation(&slots, opened, &there, fresh)?;
                return Ok(None);
            }
            has_room(&slots)?;
            Ok(Some(keyring.with_slot(
                opened,
                fresh,
                opened.line,
                password,
            )))
        }
        KeyChange::Remove { slot, in_use } => {
            let target = find(&slots, &first.slots(), slot)?;
            removable(&slots, opened, target, *in_use)?;
            let is_there = slots.iter().any(|view| view.id == target);
            Ok(is_there.then(|| keyring.keeping(|slot| slot.id != target)))
        }
        KeyChange::Finish => {
            let newest = newest(&slots, opened);
            if newest != opened.slot {
                return Err(VolumeError::Invalid(format!(
                    "the configuration's password opens slot {}, which is not the newest: {newest} \
                     is to replace it; set that one's password in the configuration (of every node), \
                     then finish",
                    opened.slot
                )));
            }
            let ends = |slot: &SlotView| slot.line == opened.line && slot.id != opened.slot;
            let has_older = slots.iter().any(ends);
            Ok(has_older.then(|| keyring.keeping(|slot| !ends(slot))))
        }
        // The newest is there.
        KeyChange::AcceptOlder { .. } => Ok(None),
    }
}

/// Whether a slot that is gone went by this change.
fn goes(change: &KeyChange, opened: &Opened, slot: &SlotView) -> bool {
    match change {
        KeyChange::Add { .. } | KeyChange::Rotate { .. } | KeyChange::AcceptOlder { .. } => false,
        KeyChange::Remove { slot: start, .. } => slot.id.to_string().starts_with(start.as_str()),
        KeyChange::Finish => slot.line == opened.line,
    }
}

/// The newest slot of the line that the configuration's password opens.
fn newest(slots: &[SlotView], opened: &Opened) -> Id {
    let newest = slots.iter().rfind(|slot| slot.line == opened.line);
    newest.map_or(opened.slot, |slot| slot.id)
}

fn has_room(slots: &[SlotView]) -> Result<(), VolumeError> {
    if slots.len() < SLOTS_MAX {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "the keyring has {SLOTS_MAX} slots, which is the most: remove one that no node uses"
    )))
}

/// A new password that opens a slot already must be that of this very rotation, asked for again: `finish` would not
/// end at any other.
fn is_rotation(
    slots: &[SlotView],
    opened: &Opened,
    there: &Opened,
    fresh: &FreshSlot,
) -> Result<(), VolumeError> {
    if there.slot == opened.slot {
        return Err(VolumeError::Invalid(format!(
            "the new password is the one that the configuration has (slot {}): choose another; or, if \
             every node has the new one by now, end the rotation by `glidefs key rotate --finish`",
            there.slot
        )));
    }
    // Ours landed, its answer was lost, and somebody was faster with the next.
    let is_ours = there.slot.0 == fresh.id;
    if is_ours || there.slot == newest(slots, opened) {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "the new password opens slot {} already, which was added to stay or is to be replaced itself \
         (see `glidefs key list`): choose another, or remove that slot first",
        there.slot
    )))
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
    /// Another is there instead.
    Lost,
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
                    return Ok(Swapped::Lost);
                }
            }
        }
        if retry::is_last(&error, attempt) {
            return Err(error.into());
        }
        retry::back_off(world, attempt, error.retry_after).await;
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
