//! A new data key: new objects are sealed under it, old ones stay readable.

use super::*;

fn renew(node: &Node, name: &'static str) -> Result<RootView, VolumeError> {
    let bucket = node.bucket.clone();
    node.world
        .run(async move { bucket.renew_data_key(name).await })
}

fn detach(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.cut = volume.root().cut;
    change.state = Some(VolumeState::Detached);
    node.try_publish(volume, &change).expect("detached");
}

fn take(node: &Node, name: &'static str) -> Volume<TestWorld> {
    let volume = node.open(name).expect("opens");
    let (taken, nonce) = (volume.clone(), node.nonce());
    let taking = async move { taken.take(&Node::owner(1), nonce, None).await };
    node.world.run(taking).expect("taken");
    // As an open does: with the keys of the root that is there now.
    volume
}

#[test]
fn new_objects_have_the_new_key_and_old_ones_stay_readable() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    node.sync(&volume, vec![data(0, &[1])]);
    let error = renew(&node, "a").expect_err("it is open").to_string();
    assert!(error.contains("give it up first"), "{error}");
    for round in 1..4_u64 {
        let volume = if round == 1 {
            volume.clone()
        } else {
            take(&node, "a")
        };
        detach(&node, &volume);
        let before = volume.root();
        let renewed = renew(&node, "a").expect("renewed");
        assert_eq!(renewed.epoch.0, before.epoch.0 + 1);
        assert_eq!(
            (renewed.cut, renewed.state),
            (before.cut, VolumeState::Detached)
        );
        let volume = take(&node, "a");
        let keys = volume.stored().root.volumes[0].keys.clone();
        assert_eq!(keys.len() as u64, round + 1);
        node.sync(&volume, vec![data(round, &[round + 1])]);
        let reader = volume.reader(&volume.inner.state.borrow());
        let writing = reader
            .volumes
            .writing_key(volume.root().epoch)
            .expect("sealed");
        let newest = keys.last().expect("some");
        let prefix = node.bucket.prefix_keys().expect("sealed");
        let unwrapped = prefix.unwrap(volume.stored().root.volume, newest.id, &newest.wrapped);
        assert_eq!(unwrapped.expect("ours").bytes(), writing.bytes());
        detach(&node, &volume);
        let there = Node::new(2, &store, Some("x"));
        let other = there.open("a").expect("opens");
        let expected: Vec<u8> = (1..round + 2).flat_map(page).collect();
        assert!(there.read(&other, 0, round + 1) == expected);
    }
}

#[test]
fn a_lost_answer_renews_once_and_a_plain_volume_has_no_key() {
    for fault in [
        Fault::After(StoreErrorKind::Unknown),
        Fault::Before(StoreErrorKind::Unknown),
        Fault::After(StoreErrorKind::Conflict),
    ] {
        let store = TestStore::default();
        let node = Node::new(1, &store, Some("x"));
        let volume = node.create("a");
        detach(&node, &volume);
        store.fail("replace", [fault]);
        renew(&node, "a").expect("renewed");
        let now = node.open("a").expect("opens").stored();
        assert_eq!(now.root.volumes[0].keys.len(), 2, "{fault:?}");
    }
    let node = Node::new(1, &TestStore::default(), None);
    let volume = node.create("a");
    detach(&node, &volume);
    let error = renew(&node, "a").expect_err("plain").to_string();
    assert!(error.contains("not encrypted"), "{error}");
}
