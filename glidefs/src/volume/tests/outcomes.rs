//! The outcomes of a compare-and-swap (rule 13), one by one.

use super::super::retry::ATTEMPTS_MAX;
use super::*;

fn prepared() -> (TestStore, Node, Volume<TestWorld>) {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    node.sync(&volume, vec![data(1, &[1])]);
    (store, node, volume)
}

/// Uploads page 2 and makes the change that publishes it.
fn next(node: &Node, volume: &Volume<TestWorld>) -> Publish {
    let segment = node.upload(volume, vec![data(2, &[2])]);
    node.change(volume, vec![segment])
}

fn assert_published(node: &Node, volume: &Volume<TestWorld>, change: &Publish) {
    let again = node.open("a").expect("opens");
    assert_eq!(again.root(), volume.root());
    assert_eq!(
        (again.root().nonce, again.root().cut),
        (change.nonce, change.cut)
    );
    for volume in [volume, &again] {
        assert!(node.read(volume, 1, 2) == [page(1), page(2)].concat());
    }
}

#[test]
fn a_lost_answer_is_resolved_by_reading_back() {
    use StoreErrorKind::{Conflict, Retry, Unknown};
    let outcomes = [
        vec![Fault::After(Unknown)],
        vec![Fault::Before(Unknown)],
        vec![Fault::Late(Unknown)],
        vec![Fault::Before(Retry), Fault::After(Unknown)],
        // A client below repeated it and met its own first half.
        vec![Fault::After(Conflict)],
        // 409: two requests met; neither may have won.
        vec![Fault::Before(Conflict)],
    ];
    for faults in outcomes {
        let (store, node, volume) = prepared();
        let change = next(&node, &volume);
        store.fail("replace", faults.clone());
        let root = node.try_publish(&volume, &change);
        assert!(root.is_ok(), "{faults:?}: {root:?}");
        assert_published(&node, &volume, &change);
        // And it goes on from there.
        node.sync(&volume, vec![data(3, &[3])]);
    }
}

#[test]
fn an_outage_gives_an_error_and_the_same_change_succeeds_later() {
    for fault in [
        Fault::Before(StoreErrorKind::Retry),
        Fault::After(StoreErrorKind::Unknown),
    ] {
        let (store, node, volume) = prepared();
        let change = next(&node, &volume);
        store.fail("replace", vec![fault; 100]);
        store.fail("get", vec![Fault::Before(StoreErrorKind::Retry); 100]);
        let error = node.try_publish(&volume, &change).expect_err("an outage");
        assert!(matches!(error, VolumeError::Store(_)), "{error}");
        store.heal();
        node.try_publish(&volume, &change).expect("published");
        assert_published(&node, &volume, &change);
    }
}

#[test]
fn attempts_are_bounded() {
    let (store, node, volume) = prepared();
    let change = next(&node, &volume);
    store.fail("replace", vec![Fault::Before(StoreErrorKind::Retry); 100]);
    let before = store.counts().puts;
    node.try_publish(&volume, &change).expect_err("an outage");
    assert_eq!(store.counts().puts - before, ATTEMPTS_MAX as usize);
}

#[test]
fn an_older_intent_that_landed_after_all_is_adopted() {
    for late in [false, true] {
        let (store, node, volume) = prepared();
        let older = next(&node, &volume);
        let fault = if late {
            Fault::Late(StoreErrorKind::Unknown)
        } else {
            Fault::After(StoreErrorKind::Unknown)
        };
        store.fail("replace", [fault]);
        store.fail(
            "get",
            vec![Fault::Before(StoreErrorKind::Retry); ATTEMPTS_MAX as usize],
        );
        node.try_publish(&volume, &older).expect_err("an outage");
        store.heal();
        // Given up here; the next sync has a later cut and another segment.
        let segment = node.upload(&volume, vec![data(3, &[3])]);
        let mut change = node.change(&volume, vec![segment]);
        change.cut = Seq(older.cut.0 + 5);
        change.ours = vec![older.nonce];
        let root = node
            .try_publish(&volume, &change)
            .expect("published on top");
        assert_eq!((root.nonce, root.cut), (change.nonce, change.cut));
        let again = node.open("a").expect("opens");
        for volume in [&volume, &again] {
            assert!(node.read(volume, 1, 3) == [page(1), page(2), page(3)].concat());
        }
    }
}

/// A cut has a bound by extents, so the first one behind a restart may end before one that was sent in front of it.
#[test]
fn an_older_intent_with_a_later_cut_voids_the_change() {
    let (store, node, volume) = prepared();
    let mut older = next(&node, &volume);
    older.cut = Seq(older.cut.0 + 5);
    store.fail("replace", [Fault::Late(StoreErrorKind::Unknown)]);
    let outage = vec![Fault::Before(StoreErrorKind::Retry); ATTEMPTS_MAX as usize];
    store.fail("get", outage);
    node.try_publish(&volume, &older).expect_err("an outage");
    store.heal();
    let segment = node.upload(&volume, vec![data(2, &[9])]);
    let mut change = node.change(&volume, vec![segment]);
    change.ours = vec![older.nonce];
    let error = node.try_publish(&volume, &change).expect_err("void");
    assert!(matches!(error, VolumeError::Overtaken { at, .. } if at == older.cut));
    assert_eq!(
        (volume.root().nonce, volume.root().cut),
        (older.nonce, older.cut)
    );
    let again = node.open("a").expect("opens");
    for volume in [&volume, &again] {
        assert!(node.read(volume, 1, 2) == [page(1), page(2)].concat());
    }
    let segment = node.upload(&volume, vec![data(3, &[3])]);
    let change = node.change(&volume, vec![segment]);
    node.try_publish(&volume, &change).expect("goes on");
}

#[test]
fn another_owner_fences_and_is_named() {
    let (store, node, volume) = prepared();
    let change = next(&node, &volume);
    let other = Node::new(2, &store, None);
    let theirs = other.open("a").expect("opens");
    let (taker, nonce) = (theirs.clone(), other.nonce());
    let refused = {
        let taker = taker.clone();
        other
            .world
            .run(async move { taker.take(&Node::owner(2), nonce, None).await })
    };
    let error = refused.expect_err("owned").to_string();
    assert!(
        error.contains("host-1") && error.contains("epoch 1"),
        "{error}"
    );
    let nonce = other.nonce();
    let force = Some(Epoch(1));
    let taken = other
        .world
        .run(async move { taker.take(&Node::owner(2), nonce, force).await });
    let taken = taken.expect("forced");
    assert_eq!(
        (taken.epoch, taken.cut, taken.cut_epoch),
        (Epoch(2), Seq(1), Epoch(1))
    );
    for _ in 0..2 {
        let error = node.try_publish(&volume, &change).expect_err("fenced");
        assert!(matches!(
            &error,
            VolumeError::Fenced {
                ours: Epoch(1),
                theirs: Epoch(2),
                ..
            }
        ));
        assert!(error.to_string().contains("host-2"), "{error}");
    }
    other.sync(&theirs, vec![data(7, &[7])]);
    let resumed = node
        .open("a")
        .expect("opens")
        .resume(&Node::owner(1), Epoch(1));
    assert!(matches!(resumed, Err(VolumeError::Fenced { .. })));
    let theirs = node.open("a").expect("opens");
    theirs
        .resume(&Node::owner(2), Epoch(2))
        .expect("the owner goes on");
}

#[test]
fn the_same_epoch_twice_has_one_winner() {
    // A copied cache directory: same cache id, same epoch.
    let (store, node, volume) = prepared();
    let twin = Node::new(2, &store, None);
    let other = twin.open("a").expect("opens");
    other
        .resume(&Node::owner(1), Epoch(1))
        .expect("looks like the owner");
    twin.sync(&other, vec![data(5, &[5])]);
    let change = next(&node, &volume);
    let error = node.try_publish(&volume, &change).expect_err("fenced");
    assert!(matches!(error, VolumeError::Fenced { .. }), "{error}");
}

#[test]
fn a_root_that_vanished_or_went_back_is_said_so() {
    let (store, node, volume) = prepared();
    let old = store.object("nbd/a/root");
    node.sync(&volume, vec![data(3, &[3])]);
    let change = next(&node, &volume);
    store.set("nbd/a/root", old);
    let error = node.try_publish(&volume, &change).expect_err("rolled back");
    assert!(error.to_string().contains("rolled back"), "{error}");
    store.remove("nbd/a/root");
    let error = node.try_publish(&volume, &change).expect_err("gone");
    assert!(matches!(error, VolumeError::Vanished { .. }), "{error}");
    assert!(error.to_string().contains("nbd/a/root"), "{error}");
    let error = node.open("a").expect_err("gone");
    assert!(matches!(error, VolumeError::Vanished { .. }), "{error}");
}

#[test]
fn detach_and_take_without_force() {
    let (store, node, volume) = prepared();
    let mut change = node.change(&volume, Vec::new());
    change.cut = volume.root().cut;
    change.state = Some(VolumeState::Detached);
    let before = volume.root();
    let root = node.try_publish(&volume, &change).expect("detached");
    assert_eq!((root.state, root.owner), (VolumeState::Detached, None));
    assert_eq!((root.cut, root.cut_time), (before.cut, before.cut_time));
    let error = node
        .try_publish(&volume, &next(&node, &volume))
        .expect_err("detached");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");

    let other = Node::new(2, &store, None);
    let theirs = other.open("a").expect("opens");
    let (taker, nonce) = (theirs.clone(), other.nonce());
    store.fail("replace", [Fault::After(StoreErrorKind::Unknown)]);
    let root = other
        .world
        .run(async move { taker.take(&Node::owner(2), nonce, None).await });
    let root = root.expect("nobody's");
    assert_eq!((root.epoch, root.owner), (Epoch(2), Some(Node::owner(2))));
    let stored = theirs.inner.state.borrow().stored.root.clone();
    let predecessor = stored.predecessor.expect("it had one");
    assert_eq!((predecessor.epoch, predecessor.cut_seq), (1, 1));
    assert_eq!(predecessor.nonce, change.nonce.0);
    other.sync(&theirs, vec![data(3, &[3])]);
    // Of two who saw it detached, the second is told who was first.
    let late = node.open("a").expect("opens");
    assert!(late.resume(&Node::owner(1), Epoch(2)).is_err());
}

#[test]
fn a_cut_cannot_go_back_and_a_volume_cannot_shrink() {
    let (_store, node, volume) = prepared();
    let mut change = next(&node, &volume);
    change.cut = Seq(0);
    let error = node.try_publish(&volume, &change).expect_err("back");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    let mut change = next(&node, &volume);
    change.size_bytes = Some(4096);
    let error = node.try_publish(&volume, &change).expect_err("shrink");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    let mut change = next(&node, &volume);
    change.size_bytes = Some(1 << 41);
    let root = node.try_publish(&volume, &change).expect("grown");
    assert_eq!(root.size_bytes, 1 << 41);
}

#[test]
fn uploads_survive_lost_answers_under_one_name() {
    let (store, node, volume) = prepared();
    let before = store.keys().len();
    use StoreErrorKind::{Retry, Unknown};
    store.fail("create", [Fault::After(Unknown), Fault::Before(Retry)]);
    let change = next(&node, &volume);
    assert_eq!(store.keys().len(), before + 1);
    node.try_publish(&volume, &change).expect("published");
    assert_published(&node, &volume, &change);
    // Reads, too, are repeated.
    store.fail("get", vec![Fault::Before(Retry); 3]);
    assert!(node.read(&volume, 1, 1) == page(1));
}
