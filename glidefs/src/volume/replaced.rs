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
/// For people; nobody reads it.
const TEXT: &str = "glidefs key has replaced the keyring of this name. This note must stay: an old keyring that is put back is known by it.\n";

/// The keyring, unless there is none; an error if it is one that was replaced.
pub(crate) async fn read<W: World>(
    world: &W,
    store: &impl Store,
) -> Result<Option<(Keyring, ETag)>, VolumeError> {
    let mut replaced = None;
    for _ in 0..LOOKS_MAX {
        let object = match retry::get(world, store, KEYRING, Part::All).await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let keyring = Keyring::decode(&object.bytes)?;
        if matches!(keyring, Keyring::Plain { .. }) {
            // Never replaced.
            return Ok(Some((keyring, object.etag)));
        }
        let key = note_key(keyring.version());
        if replaced.as_ref() == Some(&key) {
            return Err(put_back(&key));
        }
        match retry::get(world, store, &key, Part::All).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Ok(Some((keyring, object.etag)));
            }
            Err(error) => return Err(error.into()),
            // It may have been replaced between the two reads: then another one is there now.
            Ok(_note) => replaced = Some(key),
        }
    }
    Err(VolumeError::Invalid(format!(
        "object `{KEYRING}` was changed {LOOKS_MAX} times while it was read: try again when nobody \
         changes keys"
    )))
}

fn put_back(note: &str) -> VolumeError {
    VolumeError::Key(format!(
        "object `{KEYRING}` is an older version that `glidefs key` has replaced: somebody put it back, \
         and passwords that were removed would open again; restore the newest version of `{KEYRING}`, \
         or, if that is lost, delete `{note}` to go on with this one, and rotate the password"
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
        Err(error) if error.kind == StoreErrorKind::NotFound => note(world, store, old).await,
        outcome => outcome.map(|_note| ()),
    }
}

/// Notes that another keyring has taken the place of this version. May be repeated.
pub(crate) async fn note<W: World>(
    world: &W,
    store: &impl Store,
    old: Id,
) -> Result<(), StoreError> {
    let text = Bytes::from_static(TEXT.as_bytes());
    retry::create(world, store, &note_key(old), text).await
}

fn note_key(version: Id) -> String {
    format!("{REPLACED}{version}")
}
