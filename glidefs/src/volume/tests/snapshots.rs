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
