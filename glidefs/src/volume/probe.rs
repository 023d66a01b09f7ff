//! Does the store honour conditions? One that ignores them would let two owners publish (promise 4),
//! so it is refused before anything else is done with it.

use bytes::Bytes;
use world::{Store, StoreError, StoreErrorKind, World};

use super::VolumeError;
use super::retry;

/// Whole probes, each under a new key: an unclear answer says nothing about the store's abilities.
const PROBES_MAX: u32 = 5;

/// What a store lacks.
#[derive(Clone, Copy, Debug)]
enum Lack {
    CreateOnly,
    ReplaceOnly,
}

pub(crate) async fn probe<W: World>(world: &W, store: &impl Store) -> Result<(), VolumeError> {
    let mut attempt = 0;
    loop {
        let key = format!("probe/{}", blockcache::Id(world.random_id()));
        let outcome = conditions(store, &key).await;
        // Left behind by a failure here, it is a few bytes that nobody looks at.
        drop(store.delete(&key).await);
        match outcome {
            Ok(None) => return Ok(()),
            Ok(Some(lack)) => return Err(lack.error(key).into()),
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

async fn conditions<S: Store>(store: &S, key: &str) -> Result<Option<Lack>, StoreError> {
    let first = store.create(key, Bytes::from_static(b"1")).await?;
    match store.create(key, Bytes::from_static(b"2")).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(Some(Lack::CreateOnly)),
    }
    store.replace(key, &first, Bytes::from_static(b"3")).await?;
    match store.replace(key, &first, Bytes::from_static(b"4")).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => Ok(None),
        Err(error) => Err(error),
        Ok(_) => Ok(Some(Lack::ReplaceOnly)),
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
    fn error(self, key: String) -> StoreError {
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
        };
        StoreError {
            operation,
            key,
            kind: StoreErrorKind::Unsupported,
            message: message.to_owned(),
        }
    }
}
