//! The object store.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::store::{ETag, Part, Store, StoreError, StoreErrorKind};

/// Writers that race for one object.
const RACERS: usize = 12;

/// What those hear who lose a race for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Losers {
    /// That they have lost, or to try again.
    Know,
    /// Or nothing of use (Ceph's gateway answers 500): who is told so reads back.
    MayNotKnow,
}

/// A store without objects creates once, replaces what was seen, and lists in order.
pub async fn store<S: Store>(store: S, losers: Losers) {
    Box::pin(create_once(&store)).await;
    Box::pin(replace_what_was_seen(&store)).await;
    Box::pin(races_have_one_winner(&store, losers)).await;
    Box::pin(parts(&store)).await;
    Box::pin(deletes(&store)).await;
    Box::pin(lists(&store)).await;
}

fn kind<T: Debug>(outcome: Result<T, StoreError>) -> StoreErrorKind {
    outcome.expect_err("it must fail").kind
}

async fn bytes<S: Store>(store: &S, key: &str) -> Bytes {
    let object = store.get(key, Part::All).await.expect("it is there");
    assert_eq!(object.size, len(&object.bytes));
    object.bytes
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length in memory")
}

async fn create<S: Store>(store: &S, key: &str, body: &[u8]) -> ETag {
    let created = store.create(key, Bytes::copy_from_slice(body)).await;
    created.expect("the key is free")
}

async fn create_once<S: Store>(store: &S) {
    let key = "once/some/folders/object";
    for part in [Part::All, Part::Range(0..1), Part::Suffix(1)] {
        assert_eq!(kind(store.get(key, part).await), StoreErrorKind::NotFound);
    }
    let etag = create(store, key, b"first").await;
    let object = store.get(key, Part::All).await.expect("it is there");
    assert_eq!(&*object.bytes, b"first");
    assert_eq!(object.etag, etag, "create and get name the same version");

    let again = store.create(key, Bytes::from_static(b"second")).await;
    assert_eq!(kind(again), StoreErrorKind::Conflict);
    assert_eq!(&*bytes(store, key).await, b"first");

    create(store, "once/empty", b"").await;
    assert!(bytes(store, "once/empty").await.is_empty());
    let again = store.create("once/empty", Bytes::new()).await;
    assert_eq!(kind(again), StoreErrorKind::Conflict);

    let large: Vec<u8> = (0..=240).cycle().take(3_000_000).collect();
    create(store, "once/large", &large).await;
    assert!(bytes(store, "once/large").await == large);
}

async fn replace_what_was_seen<S: Store>(store: &S) {
    let key = "seen/object";
    let body = Bytes::from_static;
    let first = create(store, key, b"1").await;
    let second = store.replace(key, &first, body(b"2")).await;
    let second = second.expect("nobody has changed it");
    assert_ne!(first, second, "another version has another name");
    assert_eq!(&*bytes(store, key).await, b"2");

    let stale = store.replace(key, &first, body(b"3")).await;
    assert_eq!(kind(stale), StoreErrorKind::Conflict);
    assert_eq!(&*bytes(store, key).await, b"2");
    let third = store.replace(key, &second, body(b"three")).await;
    let third = third.expect("nobody has changed it");
    let object = store.get(key, Part::Range(1..3)).await.expect("there");
    assert_eq!((&*object.bytes, &object.etag), (&b"hr"[..], &third));

    let absent = store.replace("seen/nothing", &third, body(b"4")).await;
    assert_eq!(kind(absent), StoreErrorKind::NotFound);
    let absent = store.get("seen/nothing", Part::All).await;
    assert_eq!(kind(absent), StoreErrorKind::NotFound, "none was made");

    store.delete(key).await.expect("deleted");
    let gone = store.replace(key, &third, body(b"5")).await;
    assert_eq!(kind(gone), StoreErrorKind::NotFound);
    create(store, key, b"another life").await;
    let stale = store.replace(key, &third, body(b"6")).await;
    assert_eq!(kind(stale), StoreErrorKind::Conflict);
}

/// Exactly one of `outcomes` succeeded; its number.
fn winner(outcomes: Vec<Result<ETag, StoreError>>, losers: Losers) -> usize {
    let mut winners = Vec::new();
    for (number, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(_) => winners.push(number),
            Err(error) => {
                let legal = match error.kind {
                    // The second: turned away while another was being worked on.
                    StoreErrorKind::Conflict | StoreErrorKind::Retry => true,
                    StoreErrorKind::Unknown => losers == Losers::MayNotKnow,
                    _ => false,
                };
                assert!(legal, "a loser hears: {error}");
            }
        }
    }
    let [winner] = winners[..] else {
        panic!("winners: {winners:?}")
    };
    winner
}

fn body_of(racer: usize) -> Bytes {
    Bytes::from(format!("racer {racer}"))
}

async fn races_have_one_winner<S: Store>(store: &S, losers: Losers) {
    for round in 0..5 {
        let key = format!("races/{round}");
        let creates = (0..RACERS).map(|racer| store.create(&key, body_of(racer)));
        let first = winner(join_all(creates).await, losers);
        let object = store.get(&key, Part::All).await.expect("it is there");
        assert_eq!(object.bytes, body_of(first), "the winner's bytes stay");

        let seen = &object.etag;
        let replaces = (0..RACERS).map(|racer| store.replace(&key, seen, body_of(racer + 100)));
        let second = winner(join_all(replaces).await, losers);
        assert_eq!(bytes(store, &key).await, body_of(second + 100));
    }
}

async fn parts<S: Store>(store: &S) {
    let key = "parts/object";
    let etag = create(store, key, b"0123456789").await;
    for (part, expected) in [
        (Part::All, "0123456789"),
        (Part::Range(0..10), "0123456789"),
        (Part::Range(3..5), "34"),
        (Part::Range(9..10), "9"),
        (Part::Range(4..4), ""),
        (Part::Suffix(3), "789"),
        (Part::Suffix(10), "0123456789"),
        (Part::Suffix(1000), "0123456789"),
        (Part::Suffix(0), ""),
    ] {
        let object = store.get(key, part.clone()).await;
        let object = object.unwrap_or_else(|error| panic!("{part:?}: {error}"));
        assert_eq!(&*object.bytes, expected.as_bytes(), "{part:?}");
        assert_eq!(object.size, 10, "{part:?}");
        assert_eq!(object.etag, etag, "{part:?}");
    }
    // "Exactly these bytes": fewer would be taken for all. No repetition helps.
    for range in [8..11, 10..11, 500..501] {
        let beyond = store.get(key, Part::Range(range)).await;
        assert_eq!(kind(beyond), StoreErrorKind::Refused);
    }
    create(store, "parts/empty", b"").await;
    let object = store.get("parts/empty", Part::Suffix(5)).await;
    assert!(object.expect("it is there").bytes.is_empty());
}

async fn deletes<S: Store>(store: &S) {
    let key = "deletes/object";
    create(store, key, b"x").await;
    store.delete(key).await.expect("deleted");
    let gone = store.get(key, Part::All).await;
    assert_eq!(kind(gone), StoreErrorKind::NotFound);
    store.delete(key).await.expect("absent is no error");
    let never = store.delete("deletes/never/was").await;
    never.expect("absent is no error");
    create(store, key, b"y").await;
    assert_eq!(&*bytes(store, key).await, b"y");
}

async fn lists<S: Store>(store: &S) {
    // In the order of their bytes, in which `-` and `.` come before `/`, and `0` after it.
    let keys = [
        "list/a",
        "list/b-1",
        "list/b.1",
        "list/b/1",
        "list/b/2",
        "list/b0",
        "list/c/d/e",
        "list/ca",
        "listen",
    ];
    for key in keys.iter().rev() {
        create(store, key, key.as_bytes()).await;
    }
    let listed = |prefix: &'static str, after: Option<&'static str>, count_max| async move {
        let rows = store.list(prefix, after, count_max).await.expect("listed");
        for row in &rows {
            assert_eq!(row.size, len(row.key.as_bytes()), "{}", row.key);
        }
        rows.into_iter().map(|row| row.key).collect::<Vec<_>>()
    };
    assert_eq!(listed("list/", None, 100).await, keys[..8]);
    assert_eq!(listed("list", None, 100).await, keys);
    assert_eq!(listed("list/b", None, 100).await, keys[1..6]);
    assert_eq!(listed("list/b/", None, 100).await, keys[3..5]);
    assert_eq!(listed("list/c", None, 100).await, keys[6..8]);
    assert_eq!(listed("list/a", None, 100).await, ["list/a"]);
    assert!(listed("list/x/y", None, 100).await.is_empty());
    assert!(listed("list/aa", None, 100).await.is_empty());

    // Page by page, wherever a page ends.
    assert!(listed("list/", None, 0).await.is_empty());
    for at in 0..8 {
        let page = listed("list/", Some(keys[at]), 2).await;
        assert_eq!(page, keys[at + 1..8.min(at + 3)], "after {}", keys[at]);
    }
    assert_eq!(listed("list/", Some("list/b-"), 1).await, ["list/b-1"]);
    assert_eq!(listed("list/", Some("list/b/11"), 1).await, ["list/b/2"]);
    assert!(listed("list/", Some("list/zzz"), 9).await.is_empty());
    let all = store.list("", None, 10_000).await.expect("listed");
    assert!(all.len() > keys.len() && all.is_sorted_by(|a, b| a.key < b.key));
}
