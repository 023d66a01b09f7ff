//! The object-store seam. There is no unconditional put: an object is created, or a version that
//! was seen is replaced, so that a race has one winner and the loser knows (promise 4).

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

/// The longest that a store may ask to be left alone: one that asks for an hour is asked again in a minute, for it may
/// be well by then, and meanwhile nothing is published.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The version of an object, as the store names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ETag(pub String);

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object, or the part of it that was asked for.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Bytes,
    pub etag: ETag,
    /// Bytes in the whole object.
    pub size: u64,
}

/// What of an object to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// Exactly these bytes; if the object ends before, that is [`StoreErrorKind::Refused`].
    Range(Range<u64>),
    /// The last so many bytes, or all if it has fewer.
    Suffix(u64),
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
}

/// A bucket and a prefix in it. Keys are relative to the prefix, `/`-separated.
/// Implementations retry nothing by themselves: who calls knows what is safe (protocol rule 13).
pub trait Store: Clone + fmt::Debug + 'static {
    fn get(&self, key: &str, part: Part) -> impl Future<Output = Result<Object, StoreError>>;

    /// Writes a key that must be absent, else [`StoreErrorKind::Conflict`].
    fn create(&self, key: &str, body: Bytes) -> impl Future<Output = Result<ETag, StoreError>>;

    /// Replaces exactly the version `seen`, else [`StoreErrorKind::Conflict`]; an object that is
    /// gone is [`StoreErrorKind::NotFound`].
    fn replace(
        &self,
        key: &str,
        seen: &ETag,
        body: Bytes,
    ) -> impl Future<Output = Result<ETag, StoreError>>;

    /// At most `count_max` keys under `prefix` that sort after `after`, in order.
    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> impl Future<Output = Result<Vec<Listed>, StoreError>>;

    /// Deletes a key; one that is absent is no error.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>>;

    /// True once an answer to a write has told that the store keeps what is replaced and deleted, as a
    /// versioned bucket does.
    fn keeps_versions(&self) -> bool {
        false
    }
}

/// A request that failed: which, on what, and what that means for the caller.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} of object `{key}`: {kind}: {message}")]
pub struct StoreError {
    pub operation: &'static str,
    pub key: String,
    pub kind: StoreErrorKind,
    /// The words of the store or the client, for people.
    pub message: String,
    /// For how long the store asked to be left alone, at most [`RETRY_AFTER_MAX`]; none if it did not say. Whoever asks again
    /// waits at least so long.
    pub retry_after: Option<Duration>,
}

/// Sorted by what the caller must do.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The store said: no such key. Nothing else says so (protocol rule 16).
    #[error("not found")]
    NotFound,
    /// The condition did not hold.
    #[error("condition failed")]
    Conflict,
    /// It certainly had no effect, and may be repeated as it is.
    #[error("temporary failure")]
    Retry,
    /// A write that may or may not have taken effect, now or later: read back.
    #[error("outcome unknown")]
    Unknown,
    /// Credentials, permissions, bucket: a person must act.
    #[error("refused")]
    Refused,
    /// The store cannot do what was asked for.
    #[error("not supported by this store")]
    Unsupported,
}
