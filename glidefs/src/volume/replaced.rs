//! Notes of keyrings that were replaced, so that one of them put back is noticed: by a restored
//! backup, a tool that copies versions, a person in a hurry. Then a removed password would open again,
//! and a newer one would not.
//!
//! No bytes of a keyring ever come twice (`slots.rs`), so its hash names a version of it. Whoever
//! replaces one creates an object of that name; whoever reads one looks whether it has such a note.
//!
//! ```text
//! N is put in the place of P ---- dies here ----> note of P
//!   N names P                        \-- a start, or `glidefs key`, reads N ----> note of P
//! ```
//!
//! The note cannot come first: of a P that is still there because the swap failed it would say that
//! somebody put it back. So N names P, and whoever finds N there knows that P is old. N names P alone:
//! before N itself is replaced, the note of P must be there (`slots.rs`), and so those of all before
//! it. What is left: from the swap until somebody reads N, a P that is put back is not noticed.
//!
//! A note names the keyring that came next. So where the newest is lost and an older one is put back on purpose, the
//! lost one is found and noted too ([`note_lost`]) before that goes on: else nobody would notice if it came back.
//!
//! What no note can do: stop somebody who deletes the note as well (docs/encryption.md).

use blockcache::Id;
use bytes::Bytes;
use world::store::Part;
use world::{ETag, Store, StoreError, StoreErrorKind, World};

use super::keyring::Keyring;
use super::name::{KEYRING, REPLACED};
use super::{VolumeError, retry};

/// Keyrings that may take each other's place while one is read. Each takes an operator a second or so.
const LOOKS_MAX: u32 = 16;
/// Changes of the keys behind an older keyring that is put back. Each is an operator's command.
const CHANGES_MAX: u32 = 4096;
/// For people.
const TEXT: &str = "glidefs key has replaced the keyring of this name. This note must stay: an old keyring that is put back is known by it.\n";
/// What a note says of the keyring that came next.
const BY: &str = "by ";
const NAMES_NONE: &str = "it does not say which keyring came next; delete it to go on all the same: if that keyring is put back, nothing will notice";

/// What there is of a keyring.
#[derive(Debug)]
pub(crate) enum Found {
    Absent,
    Newest(Keyring, ETag),
    /// It was replaced, and somebody put it back.
    PutBack(Keyring, ETag),
}

/// The keyring, unless there is none; an error if it is one that was replaced.
pub(crate) async fn read<W: World>(
    world: &W,
    store: &impl Store,
) -> Result<Option<(Keyring, ETag)>, VolumeError> {
    match look(world, store).await? {
        Found::Absent => Ok(None),
        Found::Newest(keyring, etag) => Ok(Some((keyring, etag))),
        Found::PutBack(keyring, _) => Err(put_back(keyring.version())),
    }
}

/// The keyring, whichever it is.
pub(crate) async fn look<W: World>(world: &W, store: &impl Store) -> Result<Found, VolumeError> {
    let mut replaced = None;
    for _ in 0..LOOKS_MAX {
        let object = match retry::get(world, store, KEYRING, Part::All).await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Found::Absent),
            Err(error) => return Err(error.into()),
        };
        let keyring = Keyring::decode(&object.bytes)?;
        if matches!(keyring, Keyring::Plain { .. }) {
            // Never replaced.
            return Ok(Found::Newest(keyring, object.etag));
        }
        let version = keyring.version();
        if replaced == Some(version) {
            return Ok(Found::PutBack(keyring, object.etag));
        }
        match retry::get(world, store, &note_key(version), Part::All).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Ok(Found::Newest(keyring, object.etag));
            }
            Err(error) => return Err(error.into()),
            // It may have been replaced between the two reads: then another one is there now.
            Ok(_note) => replaced = Some(version),
        }
    }
    Err(VolumeError::Invalid(format!(
        "object `{KEYRING}` was changed {LOOKS_MAX} times while it was read: try again when nobody \
         changes keys"
    )))
}

fn put_back(version: Id) -> VolumeError {
    VolumeError::Key(format!(
        "object `{KEYRING}` is an older version that `glidefs key` has replaced: somebody put it back, \
         and passwords that were removed would open again; restore the newest version of `{KEYRING}`, \
         or, if that is lost, go on with this one by `glidefs key accept-older {version}`, and rotate \
         the password"
    ))
}

/// Sees to it that the keyring which this one was put in the place of is noted. `keyring` was read from the store:
/// so the other one is old, whatever became of who replaced it. May be repeated.
pub(crate) async fn catch_up<W: World>(
    world: &W,
    store: &impl Store,
    keyring: &Keyring,
) -> Result<(), StoreError> {
    let Some(old) = keyring.replaces() else {
        return Ok(());
    };
    match retry::get(world, store, &note_key(old), Part::All).await {
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            note(world, store, old, keyring.version()).await
        }
        outcome => outcome.map(|_note| ()),
    }
}

/// Notes that another keyring, `by`, has taken the place of this version. May be repeated. If there is a note that names
/// another one, that stays.
pub(crate) async fn note<W: World>(
    world: &W,
    store: &impl Store,
    old: Id,
    by: Id,
) -> Result<(), StoreError> {
    let (key, text) = (note_key(old), Bytes::from(format!("{TEXT}{BY}{by}\n")));
    match retry::create(world, store, &key, text).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => {
            let there = retry::get(world, store, &key, Part::All).await;
            there.map(|_note| ())
        }
        outcome => outcome,
    }
}

/// Notes whatever came behind this version, up to the last one, as replaced by `by`, which is about to take the place of
/// `old`. Of two at once each notes what the other was about to put there, so none is forgotten.
pub(crate) async fn note_lost<W: World>(
    world: &W,
    store: &impl Store,
    old: Id,
    by: Id,
) -> Result<(), VolumeError> {
    let mut at = old;
    for _ in 0..CHANGES_MAX {
        let key = note_key(at);
        match retry::get(world, store, &key, Part::All).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                note(world, store, at, by).await?;
            }
            Err(error) => return Err(error.into()),
            Ok(note) => match named(&note.bytes) {
                Some(next) if next == by => return Ok(()),
                Some(next) => at = next,
                None => return Err(VolumeError::damaged(&key, NAMES_NONE)),
            },
        }
    }
    Err(VolumeError::Invalid(format!(
        "more than {CHANGES_MAX} changes of the keys came behind this keyring: restore a newer version of \
         `{KEYRING}`"
    )))
}

/// The keyring that came next, as a note says.
fn named(note: &[u8]) -> Option<Id> {
    let text = std::str::from_utf8(note).ok()?;
    let hex = text.lines().find_map(|line| line.strip_prefix(BY))?;
    let is_id = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(hex, 16).ok().filter(|_| is_id)?;
    Some(Id(number.to_be_bytes()))
}

fn note_key(version: Id) -> String {
    format!("{REPLACED}{version}")
}
