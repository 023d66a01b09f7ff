//! The objects themselves, and what a request does to them: pure, and always right.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;

use super::StoreFaults;
use crate::sim::trace::fingerprint;
use crate::store::Part;
use crate::{ETag, Listed, Object, StoreError, StoreErrorKind};

/// What the store was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub gets: u64,
    pub creates: u64,
    pub replaces: u64,
    pub lists: u64,
    pub deletes: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// For how long it asked to be left alone, the last time that it did.
    pub asked_to_wait: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) bytes: Bytes,
    etag: ETag,
}

/// All objects.
#[derive(Debug)]
pub(in crate::sim) struct Objects {
    pub(super) entries: BTreeMap<String, Entry>,
    versions: u64,
    pub(super) faults: StoreFaults,
    pub(super) stats: StoreStats,
    /// Nobody can reach the store.
    pub(super) outage: bool,
}

impl Objects {
    pub(in crate::sim) fn new(faults: StoreFaults) -> Self {
        Self {
            entries: BTreeMap::new(),
            versions: 0,
            faults,
            stats: StoreStats::default(),
            outage: false,
        }
    }

    pub(super) fn apply(&mut self, request: &Request) -> Result<Answer, Refusal> {
        match &request.what {
            What::Get(part) => {
                self.stats.gets += 1;
                let object = self.get(&request.key, part)?;
                self.stats.bytes_out += length(&object.bytes);
                Ok(Answer::Object(object))
            }
            What::Create(body) => {
                self.stats.creates += 1;
                if self.entries.contains_key(&request.key) {
                    return Err(Refusal(StoreErrorKind::Conflict, "the key exists"));
                }
                Ok(self.put(&request.key, body))
            }
            What::Replace(seen, body) => {
                self.stats.replaces += 1;
                let entry = self.entries.get(&request.key).ok_or(ABSENT)?;
                if entry.etag != *seen {
                    return Err(Refusal(
                        StoreErrorKind::Conflict,
                        "another version is there",
                    ));
                }
                Ok(self.put(&request.key, body))
            }
            What::List { after, count_max } => {
                self.stats.lists += 1;
                Ok(Answer::Listed(self.list(
                    &request.key,
                    after.as_deref(),
                    *count_max,
                )))
            }
            What::Delete => {
                self.stats.deletes += 1;
                self.entries.remove(&request.key);
                Ok(Answer::Deleted)
            }
        }
    }

    fn get(&self, key: &str, part: &Part) -> Result<Object, Refusal> {
        let entry = self.entries.get(key).ok_or(ABSENT)?;
        let size = length(&entry.bytes);
        let range = match part {
            Part::All => 0..size,
            Part::Range(range) => range.clone(),
            Part::Suffix(count) => size.saturating_sub(*count)..size,
        };
        if range.start > range.end || range.end > size {
            return Err(Refusal(
                StoreErrorKind::Refused,
                "the range is not in the object",
            ));
        }
        let index = |at: u64| usize::try_from(at).expect("an offset in memory");
        Ok(Object {
            bytes: entry.bytes.slice(index(range.start)..index(range.end)),
            etag: entry.etag.clone(),
            size,
        })
    }

    pub(super) fn put(&mut self, key: &str, body: &Bytes) -> Answer {
        self.versions += 1;
        self.stats.bytes_in += length(body);
        let etag = ETag(format!("\"v{}\"", self.versions));
        let entry = Entry {
            bytes: body.clone(),
            etag: etag.clone(),
        };
        self.entries.insert(key.to_owned(), entry);
        Answer::Written(etag)
    }

    fn list(&self, prefix: &str, after: Option<&str>, count_max: usize) -> Vec<Listed> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let rows = self.entries.range::<str, _>((start, Bound::Unbounded));
        let rows = rows.take_while(|(key, _)| key.starts_with(prefix));
        let listed = rows.map(|(key, entry)| Listed {
            key: key.clone(),
            size: length(&entry.bytes),
        });
        listed.take(count_max).collect()
    }
}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).expect("a length fits u64")
}

pub(super) struct Request {
    /// The key, or the prefix of a list.
    pub(super) key: String,
    pub(super) what: What,
}

pub(super) enum What {
    Get(Part),
    Create(Bytes),
    Replace(ETag, Bytes),
    List {
        after: Option<String>,
        count_max: usize,
    },
    Delete,
}

pub(super) enum Answer {
    Object(Object),
    Written(ETag),
    Listed(Vec<Listed>),
    Deleted,
}

pub(super) struct Refusal(pub(super) StoreErrorKind, pub(super) &'static str);

const ABSENT: Refusal = Refusal(StoreErrorKind::NotFound, "no such key");

impl Request {
    pub(super) fn operation(&self) -> &'static str {
        match self.what {
            What::Get(_) => "get",
            What::Create(_) => "create",
            What::Replace(..) => "replace",
            What::List { .. } => "list",
            What::Delete => "delete",
        }
    }

    /// What the caller is told where nobody knows whether it took effect.
    pub(super) fn unclear(&self) -> StoreErrorKind {
        match self.what {
            What::Get(_) | What::List { .. } => StoreErrorKind::Retry,
            What::Create(_) | What::Replace(..) | What::Delete => StoreErrorKind::Unknown,
        }
    }

    /// Whether the store can say that a condition failed.
    pub(super) fn has_condition(&self) -> bool {
        matches!(self.what, What::Create(_) | What::Replace(..))
    }

    fn body_fingerprint(&self) -> u64 {
        match &self.what {
            What::Create(body) | What::Replace(_, body) => fingerprint(body),
            What::Get(_) | What::List { .. } | What::Delete => 0,
        }
    }

    pub(super) fn failed(&self, refusal: &Refusal) -> StoreError {
        StoreError {
            operation: self.operation(),
            key: self.key.clone(),
            kind: refusal.0,
            message: refusal.1.to_owned(),
            retry_after: None,
        }
    }
}

impl Answer {
    pub(super) fn told(&self) -> String {
        match self {
            Self::Object(object) => format!("{} bytes of {}", object.bytes.len(), object.etag),
            Self::Written(etag) => etag.to_string(),
            Self::Listed(rows) => format!("{} keys", rows.len()),
            Self::Deleted => "gone".to_owned(),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body_fingerprint();
        write!(f, "{} `{}` {body:08x}", self.operation(), self.key)
    }
}

impl Answer {
    pub(super) fn written(self) -> ETag {
        match self {
            Self::Written(etag) => etag,
            Self::Object(_) | Self::Listed(_) | Self::Deleted => {
                unreachable!("a write is answered by an etag")
            }
        }
    }
}
