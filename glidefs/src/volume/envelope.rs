//! The envelope of the few objects that change (root, keyring): magic, format, body, 32 bytes of
//! hash or MAC over all before. The format is read before anything else is believed, so that an
//! older version can always say which later one is needed (rule 31).

use super::VolumeError;
use super::keys::Secret;

const HEADER_BYTES: usize = 32;
const CHECK_BYTES: usize = 32;
const NEEDS_BYTES: usize = 12;

/// One kind of object in an envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) magic: [u8; 8],
    /// The highest format that this version reads.
    pub(crate) known: u16,
    pub(crate) body_bytes_max: usize,
}

/// The first version of glidefs that reads a format: written into the object for those that do not.
pub(crate) fn first_reader(format: u16) -> &'static str {
    match format {
        1 | 2 => "0.1.0",
        _ => env!("CARGO_PKG_VERSION"),
    }
}

/// How the body is held together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// BLAKE3: against decay and mistakes.
    Hash = 0,
    /// BLAKE3 keyed: against anybody without the key.
    Mac = 1,
}

/// What an envelope held.
#[derive(Debug)]
pub(crate) struct Letter<'a> {
    pub(crate) format: u16,
    pub(crate) body: &'a [u8],
}

impl Envelope {
    pub(crate) fn seal(&self, format: u16, body: &[u8], key: Option<&Secret>) -> Vec<u8> {
        assert!(
            body.len() <= self.body_bytes_max,
            "the writer bounds its body"
        );
        let check = if key.is_some() {
            Check::Mac
        } else {
            Check::Hash
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len() + CHECK_BYTES);
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&[check as u8, 0, 0, 0, 0, 0]);
        let mut needs = [0; NEEDS_BYTES];
        let version = first_reader(format).as_bytes();
        needs[..version.len()].copy_from_slice(version);
        out.extend_from_slice(&needs);
        let len = u32::try_from(body.len()).expect("bounded above");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(body);
        let sum = sum(&out, key);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    /// Checks everything. `key` decides what is accepted: with one, only a MAC; without, only a
    /// hash. The bytes have no say in it, or whoever can write could take the lock off.
    pub(crate) fn open<'a>(
        &self,
        object: &str,
        bytes: &'a [u8],
        key: Option<&Secret>,
    ) -> Result<Letter<'a>, VolumeError> {
        let damaged = |what: &str| VolumeError::damaged(object, what);
        let format = self.format(object, bytes)?;
        let (signed, check) = bytes
            .split_last_chunk::<CHECK_BYTES>()
            .filter(|(signed, _)| signed.len() >= HEADER_BYTES)
            .ok_or_else(|| damaged("it is too short"))?;
        let len = u32::from_le_bytes(*signed[28..].first_chunk().expect("a header is 32 bytes"));
        let body = &signed[HEADER_BYTES..];
        if body.len() > self.body_bytes_max || u32::try_from(body.len()) != Ok(len) {
            return Err(damaged("its length is not what it says"));
        }
        match (signed[10], key.is_some()) {
            (0, false) | (1, true) => {}
            (1, false) => {
                return Err(VolumeError::Key(format!(
                    "object `{object}` is encrypted: set `encryption_password`"
                )));
            }
            _ => return Err(damaged("it is not authenticated, but a password is set")),
        }
        // blake3::Hash compares in constant time.
        if sum(signed, key) != blake3::Hash::from_bytes(*check) {
            return Err(damaged(match key {
                None => "its bytes are not those that were written (hash)",
                Some(_) => {
                    "its bytes are not those that were written under this prefix's key (MAC): it \
                     was changed, or the keyring is that of another prefix"
                }
            }));
        }
        Ok(Letter { format, body })
    }

    /// How the object says that it is held together; believed by nobody but a person's error text.
    pub(crate) fn check_of(&self, object: &str, bytes: &[u8]) -> Result<Check, VolumeError> {
        self.format(object, bytes)?;
        match bytes.get(10) {
            Some(0) => Ok(Check::Hash),
            Some(1) => Ok(Check::Mac),
            _ => Err(VolumeError::damaged(object, "its header makes no sense")),
        }
    }

    fn format(&self, object: &str, bytes: &[u8]) -> Result<u16, VolumeError> {
        let magic = bytes.first_chunk::<8>();
        let header = bytes.first_chunk::<HEADER_BYTES>();
        let Some(header) = header.filter(|_| magic == Some(&self.magic)) else {
            return Err(VolumeError::damaged(
                object,
                "it is not an object of glidefs",
            ));
        };
        let format = u16::from_le_bytes([header[8], header[9]]);
        if format > self.known {
            let needs = &header[16..16 + NEEDS_BYTES];
            let needs = String::from_utf8_lossy(needs)
                .trim_end_matches('\0')
                .to_owned();
            return Err(VolumeError::Newer {
                key: object.to_owned(),
                found: format,
                known: self.known,
                needs,
            });
        }
        if format == 0 {
            return Err(VolumeError::damaged(object, "its format is 0"));
        }
        Ok(format)
    }
}

fn sum(bytes: &[u8], key: Option<&Secret>) -> blake3::Hash {
    match key {
        Some(key) => blake3::keyed_hash(key.bytes(), bytes),
        None => blake3::hash(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LETTERS: Envelope = Envelope {
        magic: *b"TESTTEST",
        known: 1,
        body_bytes_max: 100,
    };

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for key in [None, Some(Secret::new([5; 32]))] {
            let good = LETTERS.seal(1, b"body", key.as_ref());
            let letter = LETTERS.open("x", &good, key.as_ref()).expect("as written");
            assert_eq!((letter.format, letter.body), (1, &b"body"[..]));
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                LETTERS
                    .open("x", &bad, key.as_ref())
                    .expect_err("a flipped bit");
            }
            for len in 0..good.len() {
                LETTERS
                    .open("x", &good[..len], key.as_ref())
                    .expect_err("a cut");
            }
        }
    }

    #[test]
    fn the_reader_decides_whether_a_mac_is_needed() {
        let key = Secret::new([5; 32]);
        let plain = LETTERS.seal(1, b"body", None);
        let error = LETTERS.open("x", &plain, Some(&key)).expect_err("no MAC");
        assert!(matches!(error, VolumeError::Damaged { .. }), "{error}");
        let keyed = LETTERS.seal(1, b"body", Some(&key));
        let error = LETTERS.open("x", &keyed, None).expect_err("no password");
        assert!(matches!(error, VolumeError::Key(_)), "{error}");
        let other = Secret::new([6; 32]);
        LETTERS
            .open("x", &keyed, Some(&other))
            .expect_err("another key");
    }

    #[test]
    fn a_later_format_says_which_version_reads_it() {
        let mut later = LETTERS.seal(1, b"body", None);
        later[8] = 9;
        later[16..28].copy_from_slice(b"9.8.7\0\0\0\0\0\0\0");
        let error = LETTERS.open("nbd/x/root", &later, None).expect_err("later");
        let text = error.to_string();
        assert!(
            text.contains("nbd/x/root") && text.contains("use glidefs 9.8.7"),
            "{text}"
        );
    }
}
