//! `{prefix}/keyring`: whether the prefix is encrypted, and the slots that open it.
//!
//! It is written once, at the first start on an empty prefix, also where no password is set: so a
//! later start cannot mix encrypted and plain volumes, or mistake a lost keyring for a new prefix.
//! Deliberately absent: changing passwords. The slots have ids and a list, so that it can come.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::VolumeError;
use super::envelope::Envelope;
use super::keys::{KEY_BYTES, Secret, Wrapped};
use super::name::KEYRING;

pub(crate) const FORMAT: u16 = 1;
const SLOTS_MAX: usize = 32;
/// A slot that asks for more is damaged: it would stop the machine, not open the prefix.
const COST_MAX: KeyringCost = KeyringCost {
    memory_kib: 1 << 20,
    passes: 64,
    lanes: 64,
};

pub(crate) const ENVELOPE: Envelope = Envelope {
    magic: *b"GLIDKEYS",
    known: FORMAT,
    body_bytes_max: 64 << 10,
};

/// The body of the keyring object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Keyring {
    /// Volumes are not encrypted.
    Plain {
        prefix: [u8; 16],
    },
    Password {
        prefix: [u8; 16],
        slots: Vec<Slot>,
    },
}

/// The prefix key under one password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    id: [u8; 16],
    cost: KeyringCost,
    salt: [u8; 16],
    wrapped: Wrapped,
}

/// What Argon2id is given to stretch the password of a new slot. A slot that is there names its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringCost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Default for KeyringCost {
    /// What is shipped: about 0.1 s, once per process.
    fn default() -> Self {
        Self {
            memory_kib: 32 << 10,
            passes: 3,
            lanes: 1,
        }
    }
}

impl KeyringCost {
    /// The least that Argon2id takes. It protects no password: for simulations, which open thousands
    /// of prefixes.
    pub const LEAST: Self = Self {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };
}

/// The random values of a new keyring.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) prefix: [u8; 16],
    pub(crate) slot: [u8; 16],
    pub(crate) salt: [u8; 16],
    pub(crate) key: Secret,
}

/// The keys that the prefix key is split into.
#[derive(Clone, Debug)]
pub(crate) struct PrefixKeys {
    key: Secret,
    /// Authenticates roots.
    pub(crate) root_mac: Secret,
}

impl PrefixKeys {
    fn new(key: Secret) -> Self {
        let root_mac = key.derive(b"", b"glidefs 1 root mac");
        Self { key, root_mac }
    }

    /// The key that wraps one data key, and no other.
    fn wrapping(&self, key_id: [u8; 16]) -> Secret {
        self.key.derive(&key_id, b"glidefs 1 data key wrap")
    }

    pub(crate) fn wrap(&self, volume: [u8; 16], key_id: [u8; 16], data_key: &Secret) -> Wrapped {
        self.wrapping(key_id).wrap(data_key, &volume)
    }

    pub(crate) fn unwrap(
        &self,
        volume: [u8; 16],
        key_id: [u8; 16],
        wrapped: &Wrapped,
    ) -> Option<Secret> {
        self.wrapping(key_id).unwrap(wrapped, &volume)
    }
}

impl Keyring {
    /// A new keyring with one slot, and the keys it holds.
    pub(crate) fn new(
        fresh: &Fresh,
        password: Option<&str>,
        cost: KeyringCost,
    ) -> (Self, Option<PrefixKeys>) {
        let prefix = fresh.prefix;
        let Some(password) = password else {
            return (Self::Plain { prefix }, None);
        };
        let mut slot = Slot {
            id: fresh.slot,
            cost,
            salt: fresh.salt,
            wrapped: Wrapped {
                key: [0; KEY_BYTES],
                tag: [0; 16],
            },
        };
        let slot_key = slot
            .stretch(password)
            .expect("nobody can make an invalid cost");
        slot.wrapped = slot_key.wrap(&fresh.key, &slot.about(prefix));
        let keys = PrefixKeys::new(fresh.key.clone());
        let slots = vec![slot];
        (Self::Password { prefix, slots }, Some(keys))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain data always encodes");
        ENVELOPE.seal(FORMAT, &body, None)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, VolumeError> {
        let letter = ENVELOPE.open(KEYRING, bytes, None)?;
        let damaged = |what: &str| VolumeError::damaged(KEYRING, what);
        let (keyring, rest) = postcard::take_from_bytes::<Self>(letter.body)
            .map_err(|_bad| damaged("its body does not decode"))?;
        if let Self::Password { slots, .. } = &keyring
            && (slots.is_empty() || slots.len() > SLOTS_MAX)
        {
            return Err(damaged("it has no slots, or too many"));
        }
        if rest.is_empty() {
            Ok(keyring)
        } else {
            Err(damaged("its body goes on after its end"))
        }
    }

    /// The keys, if the password opens a slot. Stretches the password: slow on purpose.
    pub(crate) fn unlock(&self, password: Option<&str>) -> Result<Option<PrefixKeys>, VolumeError> {
        let refuse = |text: &str| Err(VolumeError::Key(text.to_owned()));
        match (self, password) {
            (Self::Plain { .. }, None) => Ok(None),
            (Self::Plain { .. }, Some(_)) => refuse(
                "`encryption_password` is set, but this prefix was begun without one and its \
                 volumes are not encrypted: remove the password, or use another prefix",
            ),
            (Self::Password { .. }, None) => {
                refuse("this prefix is encrypted: set `encryption_password`")
            }
            (Self::Password { prefix, slots }, Some(password)) => {
                for slot in slots {
                    let opened = slot
                        .stretch(password)?
                        .unwrap(&slot.wrapped, &slot.about(*prefix));
                    if let Some(key) = opened {
                        return Ok(Some(PrefixKeys::new(key)));
                    }
                }
                refuse("`encryption_password` does not open this prefix's keyring: wrong password")
            }
        }
    }
}

impl Slot {
    fn stretch(&self, password: &str) -> Result<Secret, VolumeError> {
        let KeyringCost {
            memory_kib,
            passes,
            lanes,
        } = self.cost;
        let bad = || VolumeError::damaged(KEYRING, "a slot asks for impossible work");
        if memory_kib > COST_MAX.memory_kib || passes > COST_MAX.passes || lanes > COST_MAX.lanes {
            return Err(bad());
        }
        let params = argon2::Params::new(memory_kib, passes, lanes, Some(KEY_BYTES))
            .map_err(|_invalid| bad())?;
        let argon =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        argon
            .hash_password_into(password.as_bytes(), &self.salt, &mut key[..])
            .map_err(|_invalid| bad())?;
        Ok(Secret::new(*key))
    }

    /// What a wrapped prefix key is bound to.
    fn about(&self, prefix: [u8; 16]) -> Vec<u8> {
        let mut about = [&b"glidefs 1 slot"[..], &prefix, &self.id, &self.salt].concat();
        for cost in [self.cost.memory_kib, self.cost.passes, self.cost.lanes] {
            about.extend_from_slice(&cost.to_le_bytes());
        }
        about
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Fresh {
        Fresh {
            prefix: [1; 16],
            slot: [2; 16],
            salt: [3; 16],
            key: Secret::new([4; 32]),
        }
    }

    #[test]
    fn only_the_password_opens_and_every_mismatch_says_what_to_do() {
        let (keyring, keys) = Keyring::new(&fresh(), Some("geheim"), KeyringCost::LEAST);
        let keyring = Keyring::decode(&keyring.encode()).expect("as written");
        let opened = keyring
            .unlock(Some("geheim"))
            .expect("right")
            .expect("keys");
        let keys = keys.expect("made with a password");
        assert_eq!(opened.root_mac.bytes(), keys.root_mac.bytes());
        for (password, word) in [(Some("Geheim"), "wrong password"), (None, "set `enc")] {
            let error = keyring.unlock(password).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
        let (plain, none) = Keyring::new(&fresh(), None, KeyringCost::LEAST);
        assert!(none.is_none());
        assert!(plain.unlock(None).expect("plain").is_none());
        let error = plain.unlock(Some("x")).expect_err("plain").to_string();
        assert!(error.contains("not encrypted"), "{error}");
    }

    /// The shipped cost is what protects a password that is easy to guess.
    #[test]
    fn a_slot_names_its_cost_and_the_shipped_one_is_that_of_the_docs() {
        for (cost, numbers) in [
            (KeyringCost::default(), [32_768, 3, 1]),
            (KeyringCost::LEAST, [8, 1, 1]),
        ] {
            let (keyring, _) = Keyring::new(&fresh(), Some("x"), cost);
            assert!(keyring.unlock(Some("x")).is_ok(), "{cost:?}");
            let Keyring::Password { slots, .. } = keyring else {
                panic!("a password was given")
            };
            let cost = slots[0].cost;
            assert_eq!([cost.memory_kib, cost.passes, cost.lanes], numbers);
        }
    }

    #[test]
    fn a_slot_that_would_stop_the_machine_is_refused() {
        let (mut keyring, _) = Keyring::new(&fresh(), Some("x"), KeyringCost::LEAST);
        if let Keyring::Password { slots, .. } = &mut keyring {
            slots[0].cost.memory_kib = u32::MAX;
        }
        let error = keyring.unlock(Some("x")).expect_err("too much");
        assert!(matches!(error, VolumeError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_data_key_unwraps_for_its_volume_and_id_only() {
        let (_, keys) = Keyring::new(&fresh(), Some("x"), KeyringCost::LEAST);
        let keys = keys.expect("made with a password");
        let data_key = Secret::new([9; 32]);
        let wrapped = keys.wrap([5; 16], [6; 16], &data_key);
        assert!(keys.unwrap([5; 16], [6; 16], &wrapped).is_some());
        assert!(keys.unwrap([7; 16], [6; 16], &wrapped).is_none());
        assert!(keys.unwrap([5; 16], [7; 16], &wrapped).is_none());
    }
}
