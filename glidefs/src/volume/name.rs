//! Names of volumes, and the keys of their objects. Checked here and nowhere else (rule 16).

use std::fmt;

use blockcache::{Epoch, Id};

use super::VolumeError;

pub(crate) const NAME_BYTES_MAX: usize = 63;
/// Everything that belongs to volumes lies under this.
pub(crate) const VOLUMES: &str = "nbd/";
pub(crate) const KEYRING: &str = "keyring";
/// Notes of keyrings that were replaced.
pub(crate) const REPLACED: &str = "keyring-replaced/";

/// A name that matches `[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName(String);

impl VolumeName {
    pub fn parse(name: &str) -> Result<Self, VolumeError> {
        let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = name.as_bytes();
        let ends = bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge);
        let inside = bytes.iter().all(|b| edge(b) || b"._-".contains(b));
        if ends && inside && bytes.len() <= NAME_BYTES_MAX {
            return Ok(Self(name.to_owned()));
        }
        // A name of any length may come from a client: the text repeats only its beginning.
        let shown: String = name.chars().take(NAME_BYTES_MAX + 1).collect();
        Err(VolumeError::Invalid(format!(
            "`{}` is not a volume name: 1 to {NAME_BYTES_MAX} of a-z, 0-9, `.`, `_`, `-`, \
             beginning and ending with a letter or digit",
            shown.escape_debug()
        )))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// All objects of the volume lie under this.
    pub(crate) fn prefix(&self) -> String {
        format!("{VOLUMES}{}/", self.0)
    }

    pub(crate) fn root_key(&self) -> String {
        format!("{VOLUMES}{}/root", self.0)
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of an immutable object. Epoch and id are both in it: a collector sees without a GET what
/// a former owner left behind (rule 21), and no name ever comes again (rule 12).
pub(crate) fn object_key(name: &str, folder: &str, epoch: Epoch, id: Id) -> String {
    format!("{VOLUMES}{name}/{folder}/{:016x}-{id}", epoch.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_one_rule() {
        for good in ["a", "0", "vm-alice", "a.b_c-d", &"x".repeat(63)] {
            assert_eq!(VolumeName::parse(good).expect(good).as_str(), good);
        }
        let long = "x".repeat(64);
        for bad in ["", "-a", "a-", ".", "A", "a/b", "a@b", "ä", "a b", &long] {
            let error = VolumeName::parse(bad).expect_err(bad);
            assert!(matches!(error, VolumeError::Invalid(_)), "{bad}: {error}");
        }
    }

    #[test]
    fn a_refused_name_of_any_length_gives_a_short_text() {
        let error = VolumeName::parse(&"\u{7}".repeat(1 << 20)).expect_err("too long");
        assert!(error.to_string().len() < 1000);
    }
}
