//! Why a volume cannot be opened, read or published, by what the caller must do.

use std::time::Duration;

use blockcache::{Epoch, Seq};
use world::StoreError;

use super::group::GROUPS;

/// An error of a volume or of the prefix that it lives in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store failed, after all retries that are safe.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another epoch exists: stop, keep the log (rule 13).
    #[error("volume `{name}` is fenced: epoch {ours} is over, epoch {theirs} belongs to {owner}")]
    Fenced {
        name: String,
        ours: Epoch,
        theirs: Epoch,
        owner: String,
    },
    /// A publish of an earlier process of the same log landed meanwhile, with a later cut than this one. It is installed;
    /// nothing of this change was published, or will be.
    #[error(
        "volume `{name}` is at cut {at} already, by an earlier publish of this node that was answered late"
    )]
    Overtaken { name: String, at: Seq },
    /// The root of a known volume is gone, or that of a group, or of the group that a volume is in (rule 13; promise 7).
    #[error("{}", vanished_text(.name, .key))]
    Vanished { name: String, key: String },
    /// Somebody else owns it, and it is not ours to take without force (rule 15).
    #[error("volume `{name}` is owned by {owner} (epoch {epoch})")]
    Owned {
        name: String,
        owner: String,
        epoch: Epoch,
    },
    /// A volume of this name exists already: open it.
    #[error("volume `{name}` exists already")]
    Exists { name: String },
    /// A volume of this name was deleted, and the name is not free yet.
    #[error(
        "volume `{name}` was deleted, and is still needed by {by}: its name is free once those are deleted too"
    )]
    Needed { name: String, by: String },
    /// What a fork is made of, or its name, was changed by others meanwhile: the next try finds what is there now.
    #[error("volume `{name}` was changed while it was forked: try again")]
    Changed { name: String },
    /// Bytes in the store are not what was published.
    #[error("object `{key}` is damaged: {what}")]
    Damaged { key: String, what: String },
    /// Of a root that was current when it was read, an object is gone. The owner has published since and deleted
    /// it, if the root is another one by now (rule 23); else somebody has deleted it.
    #[error(
        "object `{key}` is missing, though `{root}` named it: restore it; or, if an older `{root}` was put back, the newest version of that"
    )]
    Missing { key: String, root: String },
    /// Written by a later version (rule 31). `needs` is what the object itself says.
    #[error(
        "object `{key}` has format {found}, this version reads up to {known}: use glidefs {needs} or later"
    )]
    Newer {
        key: String,
        found: u16,
        known: u16,
        needs: String,
    },
    /// Keys and passwords.
    #[error("{0}")]
    Key(String),
    /// The password opens no slot of the keyring, which is sound.
    #[error("{0}")]
    Password(String),
    /// The request breaks a rule; the text says which.
    #[error("{0}")]
    Invalid(String),
}

/// A member cannot be deleted without its group, and nobody knows any more what is in that.
fn vanished_text(name: &str, key: &str) -> String {
    match key.starts_with(GROUPS) {
        true => format!(
            "`{name}`: the root of the group vanished from the store; restore object `{key}`, which all its members are in: \
             none of them can be opened, or deleted, without it"
        ),
        false => format!(
            "volume `{name}`: its root vanished from the store; restore object `{key}` or delete the volume"
        ),
    }
}

impl VolumeError {
    /// For how long the store asked to be left alone, if it did.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Store(error) => error.retry_after,
            _ => None,
        }
    }

    /// An object that a map names is gone.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    pub(crate) fn damaged(key: &str, what: impl Into<String>) -> Self {
        Self::Damaged {
            key: key.to_owned(),
            what: what.into(),
        }
    }
}
