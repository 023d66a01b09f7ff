//! The environment of the process as a value: `main` reads it once, nothing below does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::secret::Secret;

/// What a file that holds a secret is, to whoever reads the configuration.
#[derive(Debug)]
pub struct SecretFile {
    /// Without the line end that editors and `echo` put behind it.
    pub secret: Secret,
    /// Everybody on this machine can read it.
    pub is_public: bool,
}

/// Reads a file that holds a secret; or says what is wrong and what to do.
pub type ReadSecret = fn(&Path) -> Result<SecretFile, (String, String)>;

/// Names and values. Values may be secrets, so `Debug` shows none.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>, Option<ReadSecret>);

impl Environment {
    /// With a way to read files that hold secrets. Without one there are none.
    #[must_use]
    pub fn with_files(mut self, read: ReadSecret) -> Self {
        self.1 = Some(read);
        self
    }

    /// The content of a file that holds a secret.
    pub fn secret_file(&self, path: &Path) -> Result<SecretFile, (String, String)> {
        match self.1 {
            Some(read) => read(path),
            None => Err((
                "names a file, and no file can be read here".to_owned(),
                "write the value as \"${VARIABLE}\"".to_owned(),
            )),
        }
    }

    /// The value of a variable; an empty one counts as not set, as shells make it hard to tell.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The first of these variables that is set.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            None,
        )
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}
