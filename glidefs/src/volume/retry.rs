//! Repeating what is safe to repeat: reads, deletes, and the creation of an object whose name and
//! bytes nobody else can have. Changes of a root are not here: `publish.rs`.

use std::time::Duration;

use bytes::Bytes;
use world::store::Part;
use world::{Listed, Object, Store, StoreError, StoreErrorKind, World};

/// Attempts of one request, the first included. Then the caller hears of it, and waits himself.
pub(crate) const ATTEMPTS_MAX: u32 = 5;
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Waits before the attempt after number `attempt` (from 0): doubling, with a random half so that
/// many who failed together do not come back together.
pub(crate) async fn back_off<W: World>(world: &W, attempt: u32) {
    let whole = WAIT_MIN.saturating_mul(1 << attempt.min(10)).min(WAIT_MAX);
    let mut chance = [0; 1];
    world.fill_random(&mut chance);
    let half = whole / 2;
    world.sleep(half + half * u32::from(chance[0]) / 255).await;
}

pub(crate) async fn get<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    part: Part,
) -> Result<Object, StoreError> {
    let mut attempt = 0;
    loop {
        match store.get(key, part.clone()).await {
            Err(error) if may_repeat(&error, attempt) => back_off(world, attempt).await,
            outcome => return outcome,
        }
        attempt += 1;
    }
}

/// Creates an object whose key holds a fresh random id, so that only this very call writes it. A
/// conflict therefore means that an attempt of ours landed, and somebody on the way repeated it or
/// lost its answer: with the same bytes, so nothing is sealed twice (rule 12). But some stores answer
/// 409 for reasons of their own, and a root must never name what is not there: so it is read back.
pub(crate) async fn create<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    body: Bytes,
) -> Result<(), StoreError> {
    let mut attempt = 0;
    loop {
        let Err(error) = store.create(key, body.clone()).await else {
            return Ok(());
        };
        let conflict = error.kind == StoreErrorKind::Conflict;
        if conflict && holds(world, store, key, &body).await? {
            return Ok(());
        }
        if !conflict && !may_repeat(&error, attempt) || attempt + 1 == ATTEMPTS_MAX {
            return Err(error);
        }
        back_off(world, attempt).await;
        attempt += 1;
    }
}

/// True if the store has exactly these bytes there; false if it has nothing. Other bytes under a name
/// that is ours alone are a reason to stop.
async fn holds<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    body: &Bytes,
) -> Result<bool, StoreError> {
    match get(world, store, key, Part::All).await {
        Ok(object) if object.bytes == body => Ok(true),
        Ok(_) => Err(StoreError {
            operation: "create",
            key: key.to_owned(),
            kind: StoreErrorKind::Conflict,
            message: "the store holds other bytes under a name that only this server writes"
                .to_owned(),
        }),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn may_repeat(error: &StoreError, attempt: u32) -> bool {
    let temporary = matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown);
    temporary && attempt + 1 < ATTEMPTS_MAX
}

/// Deletes an object; one that is gone is no error. What is deleted has a name that never comes again, so a
/// request that takes effect late does no harm.
pub(crate) async fn delete<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
) -> Result<(), StoreError> {
    let mut attempt = 0;
    loop {
        match store.delete(key).await {
            Err(error) if may_repeat(&error, attempt) => back_off(world, attempt).await,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(()),
            outcome => return outcome,
        }
        attempt += 1;
    }
}

/// A page of a listing.
pub(crate) async fn list<W: World>(
    world: &W,
    store: &impl Store,
    prefix: &str,
    after: Option<&str>,
    count_max: usize,
) -> Result<Vec<Listed>, StoreError> {
    let mut attempt = 0;
    loop {
        match store.list(prefix, after, count_max).await {
            Err(error) if may_repeat(&error, attempt) => back_off(world, attempt).await,
            outcome => return outcome,
        }
        attempt += 1;
    }
}
