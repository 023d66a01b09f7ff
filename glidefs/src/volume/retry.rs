//! Repeating what is safe to repeat: reads, deletes, and the creation of an object whose name and
//! bytes nobody else can have. Changes of a root are not here: `publish.rs`.

use std::time::Duration;

use bytes::Bytes;
use world::store::Part;
use world::{Object, Store, StoreError, StoreErrorKind, World};

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
/// conflict therefore means that an attempt of ours landed although it was answered with an error:
/// with the same bytes, so nothing is sealed twice (rule 12).
pub(crate) async fn create<W: World>(
    world: &W,
    store: &impl Store,
    key: &str,
    body: Bytes,
) -> Result<(), StoreError> {
    let mut attempt = 0;
    let mut unclear = false;
    loop {
        match store.create(key, body.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == StoreErrorKind::Conflict && unclear => return Ok(()),
            Err(error) if may_repeat(&error, attempt) => {
                // Also after `Retry`: a client below us may have sent it twice.
                unclear = true;
                back_off(world, attempt).await;
            }
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

pub(crate) fn may_repeat(error: &StoreError, attempt: u32) -> bool {
    let temporary = matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown);
    temporary && attempt + 1 < ATTEMPTS_MAX
}
