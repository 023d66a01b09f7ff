//! Volumes that are deleted for good, what outlives them, and who has their names next.

use std::time::Duration;

use super::super::name::object_key;
use super::super::pin::{Pin, Reader};
use super::super::pins::{Cleans, PinBook};
use super::super::purge::Purged;
use super::super::root::{Root, RootOwner, Stored};
use super::collect::overwrite;
use super::*;

fn root_of(node: &Node, name: &'static str) -> Stored {
    let bucket = node.bucket.clone();
    let name = VolumeName::parse(name).expect("a name");
    let root = node.world.run(async move { bucket.read_root(&name).await });
    root.expect("read").expect("there")
}

fn entomb(node: &Node, name: &'static str) -> Result<(), VolumeError> {
    let volume = Id(root_of(node, name).root.volume);
    let bucket = node.bucket.clone();
    node.world
        .run(async move { Box::pin(bucket.entomb(name, volume)).await })
}

fn bury(node: &Node, name: &'static str) -> Result<Vec<Purged>, VolumeError> {
    let bucket = node.bucket.clone();
    let buried = async move { bucket.bury(name, &|_| {}).await };
    node.world.run(buried)
}

fn purge(node: &Node, name: &'static str) -> Vec<Purged> {
    entomb(node, name).expect("a tombstone");
    bury(node, name).expect("buried")
}

fn detach(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.state = Some(VolumeState::Detached);
    node.try_publish(volume, &change).expect("detached");
}

fn create(node: &Node, name: &'static str) -> Result<Volume<TestWorld>, VolumeError> {
    let (bucket, nonce) = (node.bucket.clone(), node.nonce());
    let create = async move { bucket.create(name, 1 << 40, &Node::owner(1), nonce).await };
    node.world.run(create)
}

fn fork_of(parent: &str, child: &str, number: u8) -> Fork {
    Fork::new(parent, None, child, Id([number; 16]), Id([!number; 16])).expect("names")
}

fn fork(node: &Node, fork: &Fork) -> Result<RootView, VolumeError> {
    let (bucket, fork) = (node.bucket.clone(), fork.clone());
    node.world.run(async move { bucket.fork(&fork).await })
}

fn keys_of(store: &TestStore, name: &str) -> Vec<String> {
    let prefix = format!("nbd/{name}/");
    let keys = store.keys().into_iter();
    keys.filter(|key| key.starts_with(&prefix)).collect()
}

fn collect(node: &Node, volume: &Volume<TestWorld>) -> Collected {
    let volume = volume.clone();
    let tidy = Tidy {
        childless_wait: Duration::ZERO,
        ..Tidy::default()
    };
    let done = async move { volume.collect(&tidy, Deletes::Really).await };
    node.world.run(done).expect("collected")
}

#[test]
fn a_purged_volume_leaves_a_tombstone_and_its_name_comes_again() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let volume = create(&node, "a").expect("created");
        for stamp in 1..=50 {
            node.sync(&volume, vec![data(stamp, &[stamp])]);
            node.compact(&volume);
        }
        let refused = entomb(&node, "a").expect_err("it is open");
        assert!(matches!(refused, VolumeError::Owned { .. }), "{refused}");
        detach(&node, &volume);
        let objects = keys_of(&store, "a").len() as u64 - 1;
        let done = purge(&node, "a");
        assert_eq!((done.len(), done[0].deleted_objects), (1, objects));
        assert_eq!(keys_of(&store, "a"), ["nbd/a/root"]);
        let bucket = node.bucket.clone();
        let names = node.world.run(async move { bucket.names().await });
        assert_eq!(names.expect("listed"), Vec::<String>::new());
        assert_eq!(purge(&node, "a")[0].deleted_objects, 0, "once more");

        let again = create(&node, "a").expect("the name is free");
        assert!(again.root().epoch > volume.root().epoch);
        assert_ne!(again.root().volume, volume.root().volume);
        node.sync(&again, vec![data(1, &[7])]);
        let read = node.read(&node.open("a").expect("opens"), 0, 3);
        assert!(read == [vec![0; 4096], page(7), vec![0; 4096]].concat());
        assert!(matches!(
            create(&node, "a"),
            Err(VolumeError::Exists { .. })
        ));
    }
}

#[test]
fn what_forks_need_stays_until_the_last_of_them_is_purged() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let parent = create(&node, "a").expect("created");
    node.sync(&parent, vec![data(1, &[1])]);
    fork(&node, &fork_of("a", "b", 1)).expect("forked");
    let child = node.own("b");
    node.sync(&child, vec![data(2, &[2])]);
    fork(&node, &fork_of("b", "c", 2)).expect("forked");
    detach(&node, &parent);
    detach(&node, &child);
    let held = |done: Vec<Purged>, by: &str| {
        assert_eq!((done.len(), done[0].deleted_objects), (1, 0));
        let holder = done[0].held_by.clone().expect("held");
        assert!(holder.contains(by), "{holder}");
    };
    held(purge(&node, "a"), "b, c");
    let wanted = create(&node, "a").expect_err("its forks need it");
    assert!(matches!(wanted, VolumeError::Needed { .. }), "{wanted}");
    held(purge(&node, "b"), "forks of it: c");
    let there = Node::new(2, &store, Some("geheim"));
    let last = there.open("c").expect("opens");
    assert!(there.read(&last, 1, 2) == [page(1), page(2)].concat());
    let forked = fork(&node, &fork_of("a", "d", 4)).expect_err("deleted");
    assert!(forked.to_string().contains("cannot be forked"), "{forked}");
    let done = purge(&node, "c");
    let names: Vec<&str> = done.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    let left: Vec<String> = store.keys();
    let left = left.iter().filter(|key| key.starts_with("nbd/"));
    assert_eq!(
        left.collect::<Vec<_>>(),
        ["nbd/a/root", "nbd/b/root", "nbd/c/root", "nbd/d/root"]
    );
}

#[test]
fn a_fork_takes_the_place_of_one_that_was_purged() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = create(&node, "a").expect("created");
    node.sync(&parent, vec![data(1, &[1])]);
    for number in 1..=4 {
        let made = fork(&node, &fork_of("a", "job", number)).expect("forked");
        let same = fork(&node, &fork_of("a", "job", number)).expect("the same");
        assert_eq!(made.volume, same.volume);
        let child = node.own("job");
        assert!(node.read(&child, 1, 1) == page(1));
        node.sync(&child, vec![data(1, &[u64::from(number) + 10])]);
        let same = fork(&node, &fork_of("a", "job", number)).expect("still the same");
        assert_eq!(made.volume, same.volume);
        let other = fork(&node, &fork_of("a", "job", 77)).expect_err("it exists");
        assert!(matches!(other, VolumeError::Exists { .. }), "{other}");
        assert_eq!(keys_of(&store, "a/pins").len(), 1);
        detach(&node, &child);
        purge(&node, "job");
        let gone = fork(&node, &fork_of("a", "job", number)).expect_err("deleted since");
        assert!(gone.to_string().contains("new request id"), "{gone}");
        assert_eq!(keys_of(&store, "a/pins").len(), 0);
    }
}

/// A fork that has pinned, is to replace a tombstone, and dies; or is slow.
#[test]
fn a_fork_over_a_tombstone_is_held_until_it_is_given_up_for_good() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = create(&node, "a").expect("created");
    let job = create(&node, "job").expect("created");
    detach(&node, &job);
    purge(&node, "job");
    let bucket = node.bucket.clone();
    let name = VolumeName::parse("job").expect("a name");
    let tomb = node.world.run({
        let (bucket, name) = (bucket.clone(), name.clone());
        async move { bucket.vacant(&name).await }
    });
    let tomb = tomb.expect("vacant");
    for over in [Some(tomb.root.nonce), None, Some([1; 16])] {
        let pin = Pin {
            child: [5; 16],
            name: "job".to_owned(),
            cut: None,
            over,
            reader: None,
        };
        store.set(&pin.key("a"), Bytes::from(pin.encode(None)));
        let before = store.object("nbd/job/root");
        let is_awaited = over == Some(tomb.root.nonce);
        overwrite(&node, &parent, 20, 0);
        node.sync(&parent, vec![data(1, &[1])]);
        let first = collect(&node, &parent);
        assert!(first.blocked_by.is_some());
        assert_eq!(store.object("nbd/job/root") != before, is_awaited);
        assert_eq!(keys_of(&store, "a/pins").len(), usize::from(is_awaited));
        parent.forget_pins();
        if is_awaited {
            collect(&node, &parent);
            assert_eq!(keys_of(&store, "a/pins").len(), 0);
        }
        assert_eq!(collect(&node, &parent).blocked_by, None);
    }
    // The slow one comes at last.
    let (root, late) = (tomb.root.clone(), node.bucket.clone());
    let reused = node
        .world
        .run(async move { late.reuse(&name, &tomb, root).await });
    assert!(matches!(reused, Err(VolumeError::Exists { .. })));
}

/// Whoever purged, or collected, an earlier volume of a name, and was paused.
#[test]
fn who_is_late_does_not_touch_the_next_volume_of_a_name() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let old = create(&node, "a").expect("created");
    node.sync(&old, vec![data(1, &[1])]);
    let late = node.upload(&old, vec![data(2, &[2])]);
    detach(&node, &old);
    entomb(&node, "a").expect("a tombstone");
    let name = VolumeName::parse("a").expect("a name");
    let tomb = root_of(&node, "a");
    bury(&node, "a").expect("buried");
    let again = create(&node, "a").expect("the name is free");
    node.sync(&again, vec![data(1, &[7])]);
    fork(&node, &fork_of("a", "b", 1)).expect("forked");
    let before = keys_of(&store, "a");
    let (bucket, old_id) = (node.bucket.clone(), old.root().volume);
    let purged = node.world.run(async move {
        let book = PinBook::default();
        let held = bucket.held(&name, old_id, &book, Some(Cleans::Purged));
        held.await.expect("listed");
        bucket.bury_one(&name, &tomb, &|_| {}).await
    });
    assert!(purged.expect("looked").held_by.is_some());
    assert_eq!(keys_of(&store, "a"), before);
    let mut change = node.change(&old, vec![late]);
    change.state = Some(VolumeState::Detached);
    node.try_publish(&old, &change).expect_err("it is over");
    assert!(node.read(&node.open("b").expect("opens"), 1, 1) == page(7));
    // What an owner of the old one uploads at last, the next one sweeps.
    let leaving = object_key("a", "seg", old.root().epoch, Id([3; 16]));
    store.set(&leaving, Bytes::from_static(b"late"));
    let sweep = async move { again.sweep(Scope::All, Deletes::Really).await };
    let swept = node.world.run(sweep).expect("swept");
    assert_eq!(swept.deleted_objects, 1);
    assert!(!store.keys().contains(&leaving));
}

/// A tombstone names nothing, and forks need what it named.
#[test]
fn nobody_sweeps_what_the_forks_of_a_tombstone_need() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = create(&node, "a").expect("created");
    for stamp in 1..=20 {
        node.sync(&parent, vec![data(stamp, &[stamp])]);
        node.compact(&parent);
    }
    fork(&node, &fork_of("a", "b", 1)).expect("forked");
    // Three that have it open: who read it, who owned it and was interrupted, and who gives it up.
    let reader = node.open("a").expect("opens");
    let stale = node.own("b");
    node.sync(&stale, vec![data(30, &[30])]);
    detach(&node, &stale);
    fork(&node, &fork_of("b", "c", 2)).expect("forked");
    detach(&node, &parent);
    entomb(&node, "a").expect("a tombstone");
    entomb(&node, "b").expect("a tombstone");
    let before = store.keys();
    for volume in [reader, stale, parent.clone()] {
        let sweep = async move { volume.sweep(Scope::All, Deletes::Really).await };
        let swept = node.world.run(sweep).expect("looked");
        assert_eq!(swept.kept_all, Some(KeptAll::Deleted));
        assert_eq!(swept.deleted_objects, 0);
    }
    let discard = async move { parent.discard_fresh().await };
    node.world.run(discard).expect("looked");
    assert_eq!(store.keys(), before);
    let there = Node::new(2, &store, None);
    let last = there.open("c").expect("opens");
    assert!(there.read(&last, 20, 1) == page(20));
}

/// `b` is a fork of `a`, and both are tombstones: what `b` had is still read by somebody.
#[test]
fn a_tombstone_that_is_held_holds_what_it_names() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = create(&node, "a").expect("created");
    node.sync(&parent, vec![data(1, &[1])]);
    fork(&node, &fork_of("a", "b", 1)).expect("forked");
    let child = node.own("b");
    node.sync(&child, vec![data(2, &[2])]);
    let root = root_of(&node, "b").root;
    let pin = Pin {
        child: [9; 16],
        name: "b".to_owned(),
        cut: Some((root.content.cut_epoch, root.content.cut_seq)),
        over: None,
        reader: Some(Reader::new("there", node.world.unix_time().0)),
    };
    store.set(&pin.key("b"), Bytes::from(pin.encode(None)));
    detach(&node, &child);
    let held = purge(&node, "b");
    assert!(held[0].held_by.is_some(), "{held:?}");
    let pins = keys_of(&store, "a/pins");
    assert_eq!(pins.len(), 1);
    // The parent's collector, and whoever purges the parent.
    node.sync(&parent, vec![data(1, &[7])]);
    assert_eq!(collect(&node, &parent).blocked_by, None);
    assert_eq!(keys_of(&store, "a/pins"), pins);
    detach(&node, &parent);
    let held = purge(&node, "a");
    let by = held[0].held_by.clone().expect("held");
    assert!(by.contains("forks of it: b"), "{by}");
    // The reader leaves.
    store.remove(&pin.key("b"));
    let done = bury(&node, "b").expect("buried");
    let names: Vec<&str> = done.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    let left = store
        .keys()
        .into_iter()
        .filter(|key| key.starts_with("nbd/"));
    assert_eq!(left.collect::<Vec<_>>(), ["nbd/a/root", "nbd/b/root"]);
}

#[test]
fn a_purge_that_is_late_does_not_delete_the_next_volume_of_a_name() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let first = create(&node, "a").expect("created");
    detach(&node, &first);
    let (bucket, meant) = (node.bucket.clone(), first.root().volume);
    purge(&node, "a");
    let again = create(&node, "a").expect("the name is free");
    node.sync(&again, vec![data(1, &[7])]);
    detach(&node, &again);
    let late = node
        .world
        .run(async move { Box::pin(bucket.entomb("a", meant)).await });
    let late = late.expect_err("another one").to_string();
    assert!(late.contains("another one by now"), "{late}");
    assert!(node.read(&node.open("a").expect("opens"), 1, 1) == page(7));
}

fn taken_over(bytes: &[u8]) -> Vec<u8> {
    let name = VolumeName::parse("a").expect("a name");
    let mut root = Root::decode(&name, bytes, None).expect("a root");
    root.epoch += 1;
    root.nonce = [8; 16];
    root.owner = Some(RootOwner::new(&Node::owner(2)));
    root.encode(None)
}

/// The fork's first root landed in the place of a tombstone without an answer, and somebody opened it.
#[test]
fn who_forks_onto_a_name_finds_its_fork_opened() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let old = create(&node, "a").expect("created");
    detach(&node, &old);
    purge(&node, "a");
    create(&node, "parent").expect("created");
    let wanted = fork_of("parent", "a", 1);
    store.fail("replace", [Fault::After(StoreErrorKind::Unknown)]);
    store.meanwhile(taken_over);
    let made = fork(&node, &wanted).expect("it was made");
    let root = root_of(&node, "a").root;
    assert_eq!((made.volume.0, made.nonce.0), (root.volume, [8; 16]));
    let (bucket, fork) = (node.bucket.clone(), wanted.clone());
    let known = node.world.run(async move { bucket.made(&fork).await });
    assert_eq!(known.expect("asked").expect("made").volume, made.volume);
    let (bucket, fork) = (node.bucket.clone(), fork_of("parent", "a", 2));
    let other = node.world.run(async move { bucket.made(&fork).await });
    assert_eq!(other.expect("asked"), None);
}

/// Its first root landed without an answer, and somebody took it over before it looked.
#[test]
fn who_creates_a_volume_that_was_taken_over_does_not_own_it_too() {
    for over_tomb in [false, true] {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        if over_tomb {
            let old = create(&node, "a").expect("created");
            detach(&node, &old);
            purge(&node, "a");
        }
        let (bucket, nonce) = (node.bucket.clone(), node.nonce());
        let operation = if over_tomb { "replace" } else { "create" };
        store.fail(operation, [Fault::After(StoreErrorKind::Unknown)]);
        store.meanwhile(taken_over);
        let create = async move { bucket.create("a", 1 << 40, &Node::owner(1), nonce).await };
        let refused = node.world.run(create).expect_err("it is another's");
        assert!(matches!(refused, VolumeError::Exists { .. }), "{refused}");
        let root = root_of(&node, "a").root;
        assert_eq!(root.owner, Some(RootOwner::new(&Node::owner(2))));
    }
}

/// The answer of a fork was lost, the fork was deleted meanwhile, and somebody still reads it.
#[test]
fn a_fork_that_is_asked_for_again_leaves_the_pin_of_one_that_is_read_still() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = create(&node, "a").expect("created");
    node.sync(&parent, vec![data(1, &[1])]);
    fork(&node, &fork_of("a", "b", 1)).expect("forked");
    let reader = Node::new(2, &store, None);
    let read = reader.open("b").expect("opens");
    let pinned = read.clone();
    let pin = reader
        .world
        .run(async move { pinned.pin_to_read("host").await });
    let pin = pin.expect("pinned").expect("still named");
    assert!(purge(&node, "b")[0].held_by.is_some());
    fork(&node, &fork_of("a", "b", 1)).expect_err("it was deleted");
    assert_eq!(keys_of(&store, "a/pins").len(), 1);
    overwrite(&node, &parent, 40, 1);
    collect(&node, &parent);
    assert!(reader.read(&read, 1, 1) == page(1));
    reader.world.run(pin.release()).expect("released");
    bury(&node, "b").expect("buried");
    assert_eq!(keys_of(&store, "a/pins").len(), 0);
}
