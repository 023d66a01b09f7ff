//! `{prefix}/keyring`: whether the prefix is encrypted, and the slots that open it.
//!
//! It is written once, at the first start on an empty prefix, also where no password is set: so a
//! later start cannot mix encrypted and plain volumes, or mistake a lost keyring for a new prefix.
//! Its slots change one at a time (`slots.rs`): each is the same prefix key under another password,
//! so nothing else in the store is written again. Deliberately absent: another prefix key.

use blockcache::Id;
use serde::{Deserialize, Serialize};
use world::UnixTime;
use zeroize::Zeroizing;

use super::VolumeError;
use super::envelope::Envelope;
use super::keys::{KEY_BYTES, Secret, Wrapped};
use super::name::KEYRING;

pub(crate) const FORMAT: u16 = 1;
pub(crate) const SLOTS_MAX: usize = 32;
/// Slot ids tell when they were made: 2020 to 2099, in milliseconds. Others are from elsewhere.
const ADDED_MS: std::ops::Range<u64> = 1_577_836_800_000..4_102_444_800_000;
/// Digits of a slot's id that an error shows: its time, and some of what is random.
const SLOT_ID_SHOWN: usize = 16;
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
    Plain { prefix: [u8; 16] },
    Password {
        prefix: [u8; 16],
        /// The version that this one was put in the place of (`replaced.rs`); none: the first.
        replaces: Option<[u8; 16]>,
        slots: Vec<Slot>,
    },
}

/// The prefix key under one password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    id: [u8; 16],
    /// The id of the first slot of those that rotations replaced one by another.
    line: [u8; 16],
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

/// A slot as people see it. None of it is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotView {
    pub id: Id,
    /// The same for all slots that rotations replace one by another. Of one line the newest stays.
    pub line: Id,
    /// By the clock of the machine that added it; none if the id does not tell.
    pub added: Option<UnixTime>,
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

/// A slot that a password has opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) slot: Id,
    pub(crate) line: Id,
    key: Secret,
}

/// The random values of a change of the slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreshSlot {
    pub(crate) id: [u8; 16],
    pub(crate) salt: [u8; 16],
    /// Of the slot that opened.
    pub(crate) opener_salt: [u8; 16],
    pub(crate) cost: KeyringCost,
}

/// A random id that tells when it was made, as in UUID version 7: the format has no other place.
pub(crate) fn slot_id(random: [u8; 16], now: UnixTime) -> [u8; 16] {
    let mut id = random;
    id[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
    id[6] = 0x70 | (id[6] & 0x0f);
    id[8] = 0x80 | (id[8] & 0x3f);
    id
}

fn added(id: [u8; 16]) -> Option<UnixTime> {
    let mut ms = [0; 8];
    ms[2..].copy_from_slice(&id[..6]);
    let ms = u64::from_be_bytes(ms);
    let is_ours = id[6] >> 4 == 7 && id[8] >> 6 == 2;
    (is_ours && ADDED_MS.contains(&ms)).then_some(UnixTime(ms))
}

/// What tells a slot apart.
#[derive(Clone, Copy, Debug)]
struct SlotName {
    id: [u8; 16],
    line: [u8; 16],
    salt: [u8; 16],
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
        let name = SlotName {
            id: fresh.slot,
            line: fresh.slot,
            salt: fresh.salt,
        };
        let slot = Slot::new(prefix, name, cost, password, &fresh.key);
        let keys = PrefixKeys::new(fresh.key.clone());
        let keyring = Self::Password {
            prefix,
            replaces: None,
            slots: vec![slot],
        };
        (keyring, Some(keys))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        ENVELOPE.seal(FORMAT, &self.body(), None)
    }

    fn body(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    /// Names exactly this keyring among all that the prefix ever has.
    pub(crate) fn version(&self) -> Id {
        let hash = blake3::derive_key("glidefs 1 keyring version", &self.body());
        let (id, _) = hash.split_first_chunk().expect("32 bytes");
        Id(*id)
    }

    /// The version that this one was put in the place of.
    pub(crate) fn replaces(&self) -> Option<Id> {
        match self {
            Self::Plain { .. } => None,
            Self::Password { replaces, .. } => replaces.map(Id),
        }
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
        let opened = self.open(password)?;
        Ok(opened.map(|opened| PrefixKeys::new(opened.key)))
    }

    /// The slot that the password opens; none where the prefix is plain and no password is given.
    pub(crate) fn open(&self, password: Option<&str>) -> Result<Option<Opened>, VolumeError> {
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
            (Self::Password { slots, .. }, Some(password)) => match self.opened_by(password)? {
                Some(opened) => Ok(Some(opened)),
                None => {
                    let slots: Vec<_> = slots.iter().map(|slot| slot.view().text()).collect();
                    Err(VolumeError::Password(format!(
                        "`encryption_password` does not open this prefix's keyring: wrong password, \
                         or its slot was removed by `glidefs key`; set the current password, and \
                         see `glidefs key list`. Slots: {}",
                        slots.join(", ")
                    )))
                }
            },
        }
    }

    /// The first slot that the password opens.
    pub(crate) fn opened_by(&self, password: &str) -> Result<Option<Opened>, VolumeError> {
        let Self::Password { prefix, slots, .. } = self else {
            return Ok(None);
        };
        for slot in slots {
            let key = slot
                .stretch(password)?
                .unwrap(&slot.wrapped, &slot.about(*prefix));
            if let Some(key) = key {
                return Ok(Some(Opened {
                    slot: Id(slot.id),
                    line: Id(slot.line),
                    key,
                }));
            }
        }
        Ok(None)
    }

    /// All slots, oldest first. Empty: the prefix is plain.
    pub(crate) fn slots(&self) -> Vec<SlotView> {
        match self {
            Self::Plain { .. } => Vec::new(),
            Self::Password { slots, .. } => slots.iter().map(Slot::view).collect(),
        }
    }

    /// With one more slot, at the end.
    pub(crate) fn with_slot(
        &self,
        opened: &Opened,
        fresh: &FreshSlot,
        line: Id,
        password: &str,
    ) -> Self {
        let mut changed = self.clone();
        if let Self::Password { prefix, slots, .. } = &mut changed {
            let name = SlotName {
                id: fresh.id,
                line: line.0,
                salt: fresh.salt,
            };
            slots.push(Slot::new(*prefix, name, fresh.cost, password, &opened.key));
        }
        changed
    }

    /// With these slots only.
    pub(crate) fn keeping(&self, keep: impl Fn(&SlotView) -> bool) -> Self {
        let mut changed = self.clone();
        if let Self::Password { slots, .. } = &mut changed {
            slots.retain(|slot| keep(&slot.view()));
        }
        changed
    }

    /// Naming the one that it is put in the place of: so whoever reads it can note that that one is old, should who
    /// replaced it not have come so far.
    pub(crate) fn replacing(&self, old: &Self) -> Self {
        let mut changed = self.clone();
        if let Self::Password { replaces, .. } = &mut changed {
            *replaces = Some(old.version().0);
        }
        changed
    }

    /// With the opened slot wrapped anew, under another salt: the same id and password. Every change
    /// of the slots does this, so that no bytes of a keyring ever come again: a store may name a
    /// version by its bytes, and a request that was thought lost could land on an equal one later.
    pub(crate) fn rewrapped(&self, opened: &Opened, fresh: &FreshSlot, password: &str) -> Self {
        let mut changed = self.clone();
        if let Self::Password { prefix, slots, .. } = &mut changed {
            for slot in slots.iter_mut().filter(|slot| slot.id == opened.slot.0) {
                let name = SlotName {
                    id: slot.id,
                    line: slot.line,
                    salt: fresh.opener_salt,
                };
                *slot = Slot::new(*prefix, name, fresh.cost, password, &opened.key);
            }
        }
        changed
    }
}

impl SlotView {
    /// The day it was added, as `2026-08-20` in UTC.
    pub fn date(&self) -> Option<String> {
        self.added.map(|UnixTime(ms)| date_text(ms))
    }

    /// `0198c5d2a1b27f3e (added 2026-08-20)`.
    fn text(&self) -> String {
        let id = self.id.to_string();
        match self.date() {
            Some(date) => format!("{} (added {date})", &id[..SLOT_ID_SHOWN]),
            None => id[..SLOT_ID_SHOWN].to_owned(),
        }
    }
}

/// `2026-08-20` of milliseconds since 1970, by the proleptic Gregorian calendar, UTC.
fn date_text(ms: u64) -> String {
    const DAY_MS: u64 = 86_400_000;
    // Counted from 0000-03-01, so that a leap day is the last of its year.
    let days = ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

impl Slot {
    fn new(
        prefix: [u8; 16],
        name: SlotName,
        cost: KeyringCost,
        password: &str,
        key: &Secret,
    ) -> Self {
        let mut slot = Self {
            id: name.id,
            line: name.line,
            cost,
            salt: name.salt,
            wrapped: Wrapped {
                key: [0; KEY_BYTES],
                tag: [0; 16],
            },
        };
        let slot_key = slot
            .stretch(password)
            .expect("nobody can make an invalid cost");
        slot.wrapped = slot_key.wrap(key, &slot.about(prefix));
        slot
    }

    fn view(&self) -> SlotView {
        SlotView {
            id: Id(self.id),
            line: Id(self.line),
            added: added(self.id),
            memory_kib: self.cost.memory_kib,
            passes: self.cost.passes,
            lanes: self.cost.lanes,
        }
    }

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
    fn the_id_of_a_slot_tells_its_day_and_a_random_one_does_not() {
        for (ms, day) in [
            (1_735_689_600_000, "2025-01-01"),
            (1_772_236_800_000, "2026-02-28"),
            (1_835_481_599_999, "2028-02-29"),
            (4_102_444_799_999, "2099-12-31"),
        ] {
            let id = slot_id([0xff; 16], UnixTime(ms));
            assert_eq!(added(id), Some(UnixTime(ms)));
            assert_eq!(date_text(ms), day);
        }
        for strange in [[0; 16], [0xff; 16], slot_id([7; 16], UnixTime(1))] {
            assert_eq!(added(strange), None, "{strange:?}");
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
