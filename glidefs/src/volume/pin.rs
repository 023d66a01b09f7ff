//! A pin: an object in a volume's folder that says that a fork needs what the volume holds (rule 20). Pure:
//! bytes to [`Pin`] and back. `docs/format/pin.md`.

use blockcache::Id;
use serde::{Deserialize, Serialize};

use super::VolumeError;
use super::envelope::Envelope;
use super::keys::Secret;
use super::name::{VOLUMES, VolumeName};

pub(crate) const FORMAT: u16 = 1;

pub(crate) const ENVELOPE: Envelope = Envelope {
    magic: *b"GLIDEPIN",
    known: FORMAT,
    body_bytes_max: 1024,
};

/// What a pin says. The order of the fields is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    /// The fork, by the id that it will have, and where its root will be.
    pub(crate) child: [u8; 16],
    pub(crate) name: String,
    /// The volume's cut that it needs: epoch and seq. None: what the child's root will name as its parent's;
    /// and until there is one, everything.
    pub(crate) cut: Option<(u64, u64)>,
    /// The nonce of the tombstone that the child's root is to replace. None: it is to be created where none is.
    pub(crate) over: Option<[u8; 16]>,
    /// Set: no fork is made, somebody reads the cut. Then `child` is a random id, and `name` the volume's own.
    pub(crate) reader: Option<Reader>,
}

/// Who reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reader {
    /// For people.
    pub(crate) host: String,
    /// Unix time, by its clock.
    pub(crate) since_ms: u64,
}

/// Of a reader's host name, what is more is cut off.
const HOST_BYTES_MAX: usize = 255;

impl Reader {
    pub(crate) fn new(host: &str, since_ms: u64) -> Self {
        let end = host.floor_char_boundary(HOST_BYTES_MAX);
        let host = host[..end].to_owned();
        Self { host, since_ms }
    }
}

/// Where the pin of a child lies.
pub(crate) fn key(of: &str, child: Id) -> String {
    format!("{VOLUMES}{of}/pins/{child}")
}

impl Pin {
    /// Where it lies. The id is in it and not the name: a name may come again, and the pin of an earlier
    /// child must not be taken for that of a later one.
    pub(crate) fn key(&self, of: &str) -> String {
        key(of, Id(self.child))
    }

    pub(crate) fn encode(&self, mac_key: Option<&Secret>) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("plain data always encodes");
        ENVELOPE.seal(FORMAT, &body, mac_key)
    }

    /// Parses and checks a pin that was found under `key`.
    pub(crate) fn decode(
        key: &str,
        bytes: &[u8],
        mac_key: Option<&Secret>,
    ) -> Result<Self, VolumeError> {
        let letter = ENVELOPE.open(key, bytes, mac_key)?;
        let damaged = |what: &str| VolumeError::damaged(key, what);
        let (pin, rest) = postcard::take_from_bytes::<Self>(letter.body)
            .map_err(|_bad| damaged("its body does not decode"))?;
        if !rest.is_empty() {
            return Err(damaged("its body goes on after its end"));
        }
        if !key.ends_with(&format!("/pins/{}", Id(pin.child))) {
            return Err(damaged("it is the pin of another fork"));
        }
        // It becomes part of the key of the child's root.
        VolumeName::parse(&pin.name).map_err(|_bad| damaged("it names a fork impossibly"))?;
        Ok(pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin() -> Pin {
        Pin {
            child: [7; 16],
            name: "child".to_owned(),
            cut: Some((3, 41)),
            over: Some([9; 16]),
            reader: None,
        }
    }

    #[test]
    fn a_pin_is_read_as_it_was_written_and_only_where_it_belongs() {
        let secret = Secret::new([12; 32]);
        for key in [None, Some(&secret)] {
            let at = pin().key("parent");
            let bytes = pin().encode(key);
            assert_eq!(Pin::decode(&at, &bytes, key).expect("whole"), pin());
            let elsewhere = at.replace("07", "08");
            assert!(Pin::decode(&elsewhere, &bytes, key).is_err());
            for flip in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[flip] ^= 1;
                assert!(Pin::decode(&at, &bad, key).is_err(), "byte {flip}");
            }
        }
    }
}
