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
/// many who failed together do not come back together; and never less than the store `asked` for.
pub(crate) async fn back_off<W: World>(world: &W, attempt: u32, asked: Option<Duration>) {
    let whole = WAIT_MIN.saturating_mul(1 << attempt.min(10)).min(WAIT_MAX);
    let mut chance = [0; 1];
    world.fill_random(&mut chance);
    let half = whole / 2;
    let scatter = half * u32::from(chance[0]) / 255;
    let least = half.max(asked.unwrap_or_default());
    world.sleep(least + scatter).await;
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
            Err(error) if may_repeat(&error, attempt) => {
                back_off(world, attempt, error.retry_after).await;
            }
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
        back_off(world, attempt, error.retry_after).await;
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
            retry_after: None,
        }),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn may_repeat(error: &StoreError, attempt: u32) -> bool {
    let temporary = matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown);
    temporary && !is_last(error, attempt)
}

/// True if no other attempt follows number `attempt`, which failed so. If the store asks for more patience than
/// [`WAIT_MAX`], the caller hears of it at once, with the wait in the error: he knows who waits for him, and for how long
/// they can. A minute in here would be a minute for each export of a start, one behind the other.
pub(crate) fn is_last(error: &StoreError, attempt: u32) -> bool {
    error.retry_after > Some(WAIT_MAX) || attempt + 1 >= ATTEMPTS_MAX
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
            Err(error) if may_repeat(&error, attempt) => {
                back_off(world, attempt, error.retry_after).await;
            }
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
            Err(error) if may_repeat(&error, attempt) => {
                back_off(world, attempt, error.retry_after).await;
            }
            outcome => return outcome,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use world::Instant;

    use super::super::testing::{Fault, TestStore, TestWorld};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Reads an object whose store answers so: what came of it, in how many requests, after how long.
    fn read(faults: &[Fault]) -> (Result<Object, StoreError>, usize, Duration) {
        let (world, store) = (TestWorld::new(1), TestStore::default());
        store.set("key", Bytes::from_static(b"there"));
        store.fail("get", faults.iter().copied());
        let (ours, asked) = (world.clone(), store.clone());
        let outcome = world.run(async move { get(&ours, &asked, "key", Part::All).await });
        (
            outcome,
            store.counts().gets,
            world.now().since(Instant::default()),
        )
    }

    #[test]
    fn the_store_is_left_alone_for_as_long_as_it_asks() {
        let (outcome, gets, took) = read(&[Fault::Asks(2 * SECOND)]);
        outcome.expect("it is there");
        assert_eq!(gets, 2);
        assert!((2 * SECOND..3 * SECOND).contains(&took), "{took:?}");
        // Less than we would have waited anyway changes nothing.
        let (_, _, unasked) = read(&[Fault::Before(StoreErrorKind::Retry)]);
        let (_, _, asked) = read(&[Fault::Asks(Duration::from_millis(1))]);
        assert_eq!(asked, unasked);
    }

    #[test]
    fn who_waits_is_told_if_the_store_asks_for_more_patience() {
        let asks = Fault::Asks(60 * SECOND);
        let (outcome, gets, took) = read(&[asks; 5]);
        let error = outcome.expect_err("it is told");
        assert_eq!((error.retry_after, gets), (Some(60 * SECOND), 1));
        assert!(took < SECOND, "{took:?}");
        let failures = Fault::Before(StoreErrorKind::Retry);
        let (outcome, gets, took) = read(&[failures, failures, asks]);
        outcome.expect_err("not after others that failed");
        assert!(gets == 3 && took < SECOND, "{gets} {took:?}");
        // A short wait is as good as our own.
        let (outcome, gets, _) = read(&[Fault::Asks(SECOND); 5]);
        outcome.expect_err("it asks for ever");
        assert_eq!(gets, usize::try_from(ATTEMPTS_MAX).expect("few"));
    }
}
