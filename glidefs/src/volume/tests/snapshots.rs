//! Snapshots in the root.

use super::super::root::SNAPSHOTS_MAX;
use super::*;

fn take(number: u8, name: &str) -> SnapshotChange {
    SnapshotChange::Take {
        id: Id([number; 16]),
        name: name.to_owned(),
    }
}

/// Publishes a page, and the changes with it.
fn publish(node: &Node, volume: &Volume<TestWorld>, stamp: u64, changes: &[SnapshotChange]) {
    let segment = node.upload(volume, vec![data(0, &[stamp])]);
    let mut change = node.change(volume, vec![segment]);
    change.snapshots = changes.to_vec();
    node.try_publish(volume, &change).expect("published");
}

fn names(volume: &Volume<TestWorld>) -> Vec<String> {
    volume.snapshots().into_iter().map(|it| it.name).collect()
}

#[test]
fn a_snapshot_holds_the_cut_that_its_publish_brought() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let volume = node.create("a");
        for stamp in 1..=200 {
            let changes = match stamp {
                3 => vec![take(3, "early")],
                150 => vec![take(150, "late")],
                _ => Vec::new(),
            };
            publish(&node, &volume, stamp, &changes);
            node.compact(&volume);
        }
        let there = Node::new(2, &store, password);
        let open = |snapshot: &'static str| {
            let bucket = there.bucket.clone();
            let opened = async move { bucket.open_snapshot("a", snapshot).await };
            there.world.run(opened).expect("readable")
        };
        assert!(open("other").is_none());
        for (snapshot, stamp) in [("early", 3), ("late", 150)] {
            let opened = open(snapshot).expect("it is listed");
            assert_eq!(opened.root().cut, Seq(stamp));
            assert!(there.read(&opened, 0, 1) == page(stamp), "{snapshot}");
        }
        assert!(there.read(&there.open("a").expect("opens"), 0, 1) == page(200));
    }
}

#[test]
fn names_are_given_once_and_the_list_is_bounded() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    publish(&node, &volume, 1, &[take(1, "x")]);
    publish(
        &node,
        &volume,
        2,
        &[take(1, "x"), take(2, "x"), take(1, "y")],
    );
    assert_eq!(names(&volume), ["x"]);
    assert_eq!(volume.snapshots()[0].cut, Seq(1), "it stays what it was");
    let drop = SnapshotChange::Drop { id: Id([1; 16]) };
    publish(&node, &volume, 3, &[drop.clone(), take(3, "x"), drop]);
    assert_eq!(volume.snapshots()[0].cut, Seq(3));
    let many: Vec<SnapshotChange> = (4..=255).map(|n| take(n, &format!("n-{n}"))).collect();
    publish(&node, &volume, 4, &many);
    assert_eq!(volume.snapshots().len(), SNAPSHOTS_MAX);
    assert_eq!(
        node.open("a").expect("readable").snapshots(),
        volume.snapshots()
    );
}

/// Ten are left over, or on their way: noted ones are not in the list yet.
#[test]
fn room_for_the_cuts_of_forks_counts_those_that_are_still_to_come() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    assert!(volume.has_room_for_fork(15));
    let held = (1..=10).map(|n| take(n, &fork_snapshot(Id([n; 16]))));
    publish(&node, &volume, 1, &held.collect::<Vec<_>>());
    assert!(volume.has_room_for_fork(5));
    assert!(!volume.has_room_for_fork(6));
}

#[test]
fn a_lost_answer_neither_loses_nor_doubles_a_snapshot() {
    for fault in [
        Fault::After(StoreErrorKind::Unknown),
        Fault::Before(StoreErrorKind::Unknown),
        Fault::Late(StoreErrorKind::Unknown),
    ] {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        let volume = node.create("a");
        store.fail("replace", [fault]);
        publish(&node, &volume, 1, &[take(1, "x")]);
        assert_eq!(names(&volume), ["x"], "{fault:?}");
        assert_eq!(
            names(&node.open("a").expect("readable")),
            ["x"],
            "{fault:?}"
        );
    }
}

#[test]
fn a_restore_goes_on_with_epoch_and_cut_and_is_done_once() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let volume = node.create("a");
    publish(&node, &volume, 1, &[take(1, "x")]);
    publish(&node, &volume, 2, &[]);
    let restore = |snapshot: &str, before: &str, number: u8| {
        let wanted = Restore {
            snapshot: snapshot.to_owned(),
            id: Id([number; 16]),
            before: before.to_owned(),
        };
        let bucket = node.bucket.clone();
        let restored = async move { bucket.restore("a", &wanted).await };
        node.world.run(restored)
    };
    let refused = restore("x", "before", 7).expect_err("it is open");
    assert!(matches!(refused, VolumeError::Owned { .. }), "{refused}");
    let mut change = node.change(&volume, Vec::new());
    change.state = Some(VolumeState::Detached);
    let detached = node.try_publish(&volume, &change).expect("detached");
    for (snapshot, before) in [("y", "before"), ("x", "x")] {
        let refused = restore(snapshot, before, 7).expect_err("refused");
        assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    }
    store.fail("replace", [Fault::After(StoreErrorKind::Unknown)]);
    let restored = restore("x", "before", 7).expect("restored");
    assert_eq!(restored.epoch, Epoch(detached.epoch.0 + 1));
    assert!(restored.cut > detached.cut && restored.nonce != detached.nonce);
    assert_eq!(restore("x", "before", 7).expect("done before"), restored);
    let now = node.open("a").expect("opens");
    assert!(node.read(&now, 0, 1) == page(1));
    assert_eq!(names(&now), ["x", "before"]);
    let bucket = node.bucket.clone();
    let before = async move { bucket.open_snapshot("a", "before").await };
    let before = node.world.run(before).expect("readable").expect("listed");
    assert!(node.read(&before, 0, 1) == page(2));
}
