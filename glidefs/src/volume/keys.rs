//! Keys in memory: derived, wrapped, wiped.
//!
//! The tree: password -> (Argon2id) slot key -> prefix key -> data key of a volume -> key of one
//! object. Every key that seals is made for one purpose from a random value that never comes again
//! (the slot's salt, the data key's id, the object's id), so a nonce only has to count within it.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const TAG_BYTES: usize = 16;

/// 32 secret bytes. Wiped when dropped, never printed.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<[u8; KEY_BYTES]>);

impl Secret {
    pub(crate) fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A key for one purpose and one thing: HKDF-SHA256 with the thing's id as salt.
    pub(crate) fn derive(&self, id: &[u8], purpose: &'static [u8]) -> Self {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                KEY_BYTES
            }
        }
        let mut derived = Self::new([0; KEY_BYTES]);
        Salt::new(HKDF_SHA256, id)
            .extract(&self.0[..])
            .expand(&[purpose], Length)
            .and_then(|key| key.fill(&mut derived.0[..]))
            .expect("32 bytes are within what HKDF gives");
        derived
    }

    pub(crate) fn sealing(&self) -> SealingKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.0[..]).expect("the length is AES-256's");
        SealingKey(LessSafeKey::new(key))
    }

    /// Wraps another key; `self` must have been derived for just that.
    pub(crate) fn wrap(&self, inner: &Self, about: &[u8]) -> Wrapped {
        let mut key = Zeroizing::new(*inner.0);
        let tag = self.sealing().seal(0, about, &mut key[..]);
        Wrapped { key: *key, tag }
    }

    /// None: another key wrapped it, or it is about something else.
    pub(crate) fn unwrap(&self, wrapped: &Wrapped, about: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new([&wrapped.key[..], &wrapped.tag[..]].concat());
        let plain = self.sealing().open(0, about, &mut bytes)?;
        let mut inner = Self::new([0; KEY_BYTES]);
        inner.0.copy_from_slice(plain);
        Some(inner)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A key under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Wrapped {
    pub(crate) key: [u8; KEY_BYTES],
    pub(crate) tag: [u8; TAG_BYTES],
}

/// AES-256-GCM with a counter as nonce.
pub(crate) struct SealingKey(LessSafeKey);

impl SealingKey {
    /// Seals in place and returns the tag, which belongs behind the bytes. A number is used once per
    /// key.
    pub(crate) fn seal(&self, number: u32, about: &[u8], bytes: &mut [u8]) -> [u8; TAG_BYTES] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(about), bytes)
            .expect("a frame is far below what GCM can seal");
        let tag = tag.as_ref().try_into();
        tag.expect("GCM's tag has 16 bytes")
    }

    /// The plain bytes, or none if anything differs from what was sealed.
    pub(crate) fn open<'a>(
        &self,
        number: u32,
        about: &[u8],
        bytes: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let plain = self
            .0
            .open_in_place(nonce(number), Aad::from(about), bytes)
            .ok()?;
        Some(plain)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_with_its_key_and_its_subject_only() {
        let outer = Secret::new([1; 32]);
        let inner = Secret::new([2; 32]);
        let wrapped = outer.wrap(&inner, b"this");
        let back = outer.unwrap(&wrapped, b"this").expect("same key");
        assert_eq!(back.bytes(), inner.bytes());
        assert!(outer.unwrap(&wrapped, b"that").is_none());
        assert!(inner.unwrap(&wrapped, b"this").is_none());
    }

    #[test]
    fn keys_for_different_things_differ() {
        let key = Secret::new([1; 32]);
        let one = key.derive(b"a", b"purpose");
        assert_ne!(one.bytes(), key.derive(b"b", b"purpose").bytes());
        assert_ne!(one.bytes(), key.derive(b"a", b"other").bytes());
        assert!(!format!("{key:?}{:?}", key.sealing()).contains('1'));
    }
}
