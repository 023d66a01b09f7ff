//! Values that must not be seen: passwords, keys, tokens.

use std::fmt;

use zeroize::Zeroizing;

/// Text that no log, no error and no `Debug` shows, and that is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for the one place that uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `offered` is this text, in a time that tells only the length of what was offered.
    pub fn matches(&self, offered: &str) -> bool {
        let (ours, theirs) = (
            blake3::hash(self.0.as_bytes()),
            blake3::hash(offered.as_bytes()),
        );
        // blake3::Hash compares in constant time.
        ours == theirs
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_in_its_debug_text() {
        let secret = Secret::new("hunter2".into());
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
        assert!(secret.matches("hunter2"));
        assert!(!secret.matches("hunter"));
        assert!(!secret.matches(""));
    }
}
