//! Notes of keyrings that were replaced, so that one of them put back is noticed: by a restored
//! backup, a tool that copies versions, a person in a hurry. Then a removed password would open again,
//! and a newer one would not.
//!
//! No bytes of a keyring ever come twice (`slots.rs`), so its hash names a version of it. Whoever
//! replaces one creates an object of that name; whoever reads one looks whether it has such a note.
//! What no note can do: stop somebody who deletes the note as well (docs/encryption.md).

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
        let Some(key) = note_key(&keyring) else {
            return Ok(Some((keyring, object.etag)));
        };
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

/// Notes that another keyring has taken its place. May be repeated.
pub(crate) async fn note<W: World>(
    world: &W,
    store: &impl Store,
    keyring: &Keyring,
) -> Result<(), StoreError> {
    let Some(key) = note_key(keyring) else {
        return Ok(());
    };
    retry::create(world, store, &key, Bytes::from_static(TEXT.as_bytes())).await
}

/// None: a plain keyring is never replaced.
fn note_key(keyring: &Keyring) -> Option<String> {
    match keyring {
        Keyring::Plain { .. } => None,
        Keyring::Password { .. } => Some(format!("{REPLACED}{}", keyring.version())),
    }
}
