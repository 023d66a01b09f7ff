//! Can the store do what everything else builds on? One that ignores conditions would let two owners
//! publish (promise 4), or make a root again that vanished (promise 7); one that refuses conditions that
//! hold would take no cut, ever; one that shows a write late, or sends whole objects for parts, would make
//! a wake wrong or slow. It is refused before anything else is done with it, by the name of what it lacks.

use bytes::Bytes;
use world::store::Part;
use world::{ETag, Object, Store, StoreError, StoreErrorKind, World};

use super::VolumeError;
use super::retry;

/// Whole probes, each under a new key: an unclear answer says nothing about the store's abilities.
const PROBES_MAX: u32 = 5;
/// So many times in a row a condition that holds is refused before that is what the store does. Less often it is the
/// weather: some stores and gateways say so for reasons of their own.
const REFUSALS_MAX: u32 = 6;

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
    /// An absent object is created by the replacement of what it was.
    ReplaceAbsent,
    /// Not even the version that is there is replaced.
    Replace,
    /// What an object is called depends on who is told.
    Versions,
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
        let outcome = abilities(world, store, &key).await;
        // Left behind by a failure here, it is a few bytes that nobody looks at.
        drop(store.delete(&key).await);
        match outcome {
            Ok(None) => {
                return Ok(Probed {
                    keeps_versions: store.keeps_versions(),
                });
            }
            Ok(Some(lack)) => return Err(lack.error(key, store.keeps_versions()).into()),
            Err(error) if temporary(&error) && !is_last(&error, attempt) => {
                retry::back_off(world, attempt, error.retry_after).await;
                attempt += 1;
            }
            Err(error) => return Err(as_temporary(error).into()),
        }
    }
}

fn is_last(error: &StoreError, attempt: u32) -> bool {
    attempt + 1 == PROBES_MAX || retry::is_last(error, attempt)
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

async fn abilities<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
) -> Result<Option<Lack>, StoreError> {
    let first = store.create(key, Bytes::from_static(FIRST)).await?;
    match store.create(key, Bytes::from_static(b"again")).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(Some(Lack::CreateOnly)),
    }
    if !is_listed(store, key).await? {
        return Ok(Some(Lack::ListAfterWrite));
    }
    let second = match replace(world, store, key, &first).await? {
        Ok(second) => second,
        Err(lack) => return Ok(Some(lack)),
    };
    match store
        .replace(key, &first, Bytes::from_static(b"late"))
        .await
    {
        Err(error) if error.kind == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(Some(Lack::ReplaceOnly)),
    }
    if let Some(lack) = part(store, key, &second).await? {
        return Ok(Some(lack));
    }
    makes_again(world, store, key, &second).await
}

/// Replaces what was written first, which nobody else can have changed: the key is random.
async fn replace<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    first: &ETag,
) -> Result<Result<ETag, Lack>, StoreError> {
    let mut refusals = 0;
    loop {
        let second = Bytes::from_static(SECOND);
        let refused = match store.replace(key, first, second).await {
            Ok(etag) => return Ok(Ok(etag)),
            Err(error) if error.kind == StoreErrorKind::Conflict => error,
            Err(error) => return Err(error),
        };
        // A condition that failed has left what was there. Else the answer was that to a repeated request.
        match store.get(key, Part::All).await {
            Ok(Object { bytes, .. }) if bytes != FIRST => return Err(refused),
            Ok(Object { etag, .. }) if etag != *first => return Ok(Err(Lack::Versions)),
            Ok(_) => refusals += 1,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Ok(Err(Lack::ReadAfterWrite));
            }
            Err(error) => return Err(error),
        }
        if refusals == REFUSALS_MAX {
            return Ok(Err(Lack::Replace));
        }
        retry::back_off(world, refusals, None).await;
    }
}

/// Whether the replacement of an object that is gone creates it. What is gone is one that was there, as a root that
/// vanishes was; or never was, for whom the store does not let delete anything.
async fn makes_again<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    last: &ETag,
) -> Result<Option<Lack>, StoreError> {
    let gone = match retry::delete(world, store, key).await {
        Ok(()) => key.to_owned(),
        Err(error) if error.kind == StoreErrorKind::Refused => format!("{key}-absent"),
        Err(error) => return Err(error),
    };
    let again = Bytes::from_static(b"made again");
    match store.replace(&gone, last, again).await {
        Ok(_) => Ok(Some(Lack::ReplaceAbsent)),
        Err(error) => match error.kind {
            StoreErrorKind::NotFound | StoreErrorKind::Conflict => Ok(None),
            _ => Err(error),
        },
    }
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
async fn part<S: Store>(store: &S, key: &str, last: &ETag) -> Result<Option<Lack>, StoreError> {
    let [start, end] = [PART.start, PART.end].map(|at| usize::try_from(at).expect("short"));
    match store.get(key, Part::Range(PART)).await {
        Ok(object) if object.bytes == SECOND[start..end] => {
            Ok((object.etag != *last).then_some(Lack::Versions))
        }
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
            Self::ReplaceAbsent => (
                "conditional replace",
                "this store creates an object by a PUT with an `If-Match`, though there is none to match, so \
                 a volume whose root was lost would be made anew, without what it held; use a store that honours it",
            ),
            Self::Replace => (
                "conditional replace",
                "this store refuses a PUT with the `If-Match` that it gave for the object and that it still gives, so \
                 nothing could ever be published; if a proxy on the way changes ETags (compression does), switch \
                 that off, or use a store that honours it",
            ),
            Self::Versions => (
                "conditional replace",
                "this store does not give the same ETag to whoever writes an object and whoever reads it, so an \
                 owner that is the only one would be taken for one of two; if a proxy on the way changes ETags \
                 (compression does), switch that off, or use a store that gives the same to both",
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
            retry_after: None,
        }
    }
}
