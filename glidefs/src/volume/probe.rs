//! Can the store do what everything else builds on? One that ignores conditions would let two owners
//! publish (promise 4); one that shows a write late, or sends whole objects for parts, would make a
//! wake wrong or slow. It is refused before anything else is done with it, by the name of what it
//! lacks.

use bytes::Bytes;
use world::store::Part;
use world::{Store, StoreError, StoreErrorKind, World};

use super::VolumeError;
use super::retry;

/// Whole probes, each under a new key: an unclear answer says nothing about the store's abilities.
const PROBES_MAX: u32 = 5;

/// What is written first, and what replaces it.
const FIRST: &[u8] = b"written first";
const SECOND: &[u8] = b"replaces what was written first";
/// Bytes asked of it.
const PART: std::ops::Range<u64> = 9..17;

/// What a store lacks.
#[derive(Clone, Copy, Debug)]
enum Lack {
    CreateOnly,
    ReplaceOnly,
    ListAfterWrite,
    ReadAfterWrite,
    Parts,
}

/// What there is to know of a store that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probed {
    /// What is replaced or deleted stays, and is paid for.
    pub(crate) keeps_versions: bool,
}

pub(crate) async fn probe<W: World>(world: &W, store: &impl Store) -> Result<Probed, VolumeError> {
    let mut attempt = 0;
    loop {
        let key = format!("probe/{}", blockcache::Id(world.random_id()));
        let outcome = abilities(store, &key).await;
        // Left behind by a failure here, it is a few bytes that nobody looks at.
        drop(store.delete(&key).await);
        match outcome {
            Ok(None) => {
                return Ok(Probed {
                    keeps_versions: store.keeps_versions(),
                });
            }
            Ok(Some(lack)) => return Err(lack.error(key, store.keeps_versions()).into()),
            Err(error) if temporary(&error) && attempt + 1 < PROBES_MAX => {
                retry::back_off(world, attempt).await;
                attempt += 1;
            }
            Err(error) => return Err(as_temporary(error).into()),
        }
    }
}

/// Of keys that nobody else can have, a conflict says that requests are repeated on the way, time and
/// again. It says nothing of what the store can do, and it passes.
fn as_temporary(error: StoreError) -> StoreError {
    let kind = match error.kind {
        StoreErrorKind::Conflict => StoreErrorKind::Retry,
        kind => kind,
    };
    StoreError { kind, ..error }
}

async fn abilities<S: Store>(store: &S, key: &str) -> Result<Option<Lack>, StoreError> {
    let first = store.create(key, Bytes::from_static(FIRST)).await?;
    match store.create(key, Bytes::from_static(b"again")).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(Some(Lack::CreateOnly)),
    }
    if !is_listed(store, key).await? {
        return Ok(Some(Lack::ListAfterWrite));
    }
    let second = Bytes::from_static(SECOND);
    store.replace(key, &first, second).await?;
    match store
        .replace(key, &first, Bytes::from_static(b"late"))
        .await
    {
        Err(error) if error.kind == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(Some(Lack::ReplaceOnly)),
    }
    part(store, key).await
}

/// Whether a list shows the key, which was written a moment ago. It begins right before the key: what
/// other probes left behind is not looked at.
async fn is_listed<S: Store>(store: &S, key: &str) -> Result<bool, StoreError> {
    let before = &key[..key.len() - 1];
    let rows = store.list(before, Some(before), 1).await?;
    let size = u64::try_from(FIRST.len()).expect("short");
    Ok(rows.iter().any(|row| row.key == key && row.size == size))
}

/// Reads a part of what was written last.
async fn part<S: Store>(store: &S, key: &str) -> Result<Option<Lack>, StoreError> {
    let [start, end] = [PART.start, PART.end].map(|at| usize::try_from(at).expect("short"));
    match store.get(key, Part::Range(PART)).await {
        Ok(object) if object.bytes == SECOND[start..end] => Ok(None),
        Ok(object) if FIRST.get(start..) == Some(&object.bytes) => Ok(Some(Lack::ReadAfterWrite)),
        Ok(_) => Ok(Some(Lack::Parts)),
        Err(error) => match error.kind {
            StoreErrorKind::Unsupported => Ok(Some(Lack::Parts)),
            StoreErrorKind::NotFound => Ok(Some(Lack::ReadAfterWrite)),
            _ => Err(error),
        },
    }
}

/// A conflict where none can be is the first half of a request that some client repeated.
fn temporary(error: &StoreError) -> bool {
    matches!(
        error.kind,
        StoreErrorKind::Retry | StoreErrorKind::Unknown | StoreErrorKind::Conflict
    )
}

impl Lack {
    fn error(self, key: String, keeps_versions: bool) -> StoreError {
        let (operation, message) = match self {
            Self::CreateOnly => (
                "conditional create",
                "this store accepts a PUT with `If-None-Match: *` on a key that exists, so two \
                 servers could both own a volume; use a store that honours it",
            ),
            Self::ReplaceOnly => (
                "conditional replace",
                "this store accepts a PUT with an `If-Match` that is out of date, so two servers \
                 could overwrite each other; use a store that honours it",
            ),
            Self::ListAfterWrite => (
                "list after write",
                "this store does not list a key that was just written, so volumes would be \
                 overlooked; use a store whose lists are up to date",
            ),
            Self::ReadAfterWrite => (
                "read after write",
                "this store does not return what was just written, so a volume could be opened at \
                 an older state; use a store whose reads are up to date (no cache on the way)",
            ),
            Self::Parts => (
                "range get",
                "this store does not return exactly the bytes that a GET with `Range` asks for, so \
                 every read would fetch whole objects; use a store (or proxy) that honours it",
            ),
        };
        // Seen with Ceph's gateway (16.2): exact in a plain bucket, careless in a versioned one. Garage
        // (2.5) is careless, and names versions though it keeps none.
        let hint = if keeps_versions {
            " (the store names versions: if the bucket is versioned, try one that is not)"
        } else {
            ""
        };
        StoreError {
            operation,
            key,
            kind: StoreErrorKind::Unsupported,
            message: format!("{message}{hint}"),
        }
    }
}
