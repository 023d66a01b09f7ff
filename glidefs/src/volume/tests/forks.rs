//! Forks: what they hold, what they cost, what they leave in the parent's folder.

use std::cell::Cell;

use super::collect::overwrite;
use super::*;

fn fork_of(parent: &str, snapshot: Option<&str>, child: &str, number: u8) -> Fork {
    let snapshot = snapshot.map(str::to_owned);
    let fork = Fork::new(parent, snapshot, child, Id([number; 16]), Id([!number; 16]));
    fork.expect("names")
}

fn try_fork(node: &Node, fork: &Fork) -> Result<RootView, VolumeError> {
    let (bucket, fork) = (node.bucket.clone(), fork.clone());
    node.world.run(async move { bucket.fork(&fork).await })
}

fn pins(store: &TestStore, of: &str) -> usize {
    let folder = format!("nbd/{of}/pins/");
    store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&folder))
        .count()
}

#[test]
fn a_fork_begins_as_its_parent_and_both_go_their_own_ways() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let parent = node.create("parent");
        for stamp in 1..=100 {
            node.sync(&parent, vec![data(stamp, &[stamp])]);
            node.compact(&parent);
        }
        let mut change = node.change(&parent, Vec::new());
        change.snapshots = vec![SnapshotChange::Take {
            id: Id([1; 16]),
            name: "s".to_owned(),
        }];
        node.try_publish(&parent, &change).expect("published");
        node.sync(&parent, vec![data(1, &[200])]);

        let there = Node::new(2, &store, password);
        let made = try_fork(&there, &fork_of("parent", None, "child", 7)).expect("forked");
        assert_eq!(
            (made.cut, made.state),
            (parent.root().cut, VolumeState::Detached)
        );
        try_fork(&there, &fork_of("parent", Some("s"), "of-snapshot", 8)).expect("forked");
        assert_eq!(pins(&store, "parent"), 2);

        let child = there.own("child");
        for stamp in 300..=400 {
            there.sync(&child, vec![data(2, &[stamp])]);
            there.compact(&child);
        }
        node.sync(&parent, vec![data(3, &[500])]);
        let seen = |node: &Node, name| node.read(&node.open(name).expect("opens"), 1, 4);
        let pages = |stamps: [u64; 4]| stamps.map(page).concat();
        assert!(seen(&node, "child") == pages([200, 400, 3, 4]));
        assert!(seen(&node, "of-snapshot") == pages([1, 2, 3, 4]));
        assert!(seen(&there, "parent") == pages([200, 2, 500, 4]));
        let own_objects = store
            .keys()
            .iter()
            .filter(|key| key.contains("/child/seg/"))
            .count();
        assert_eq!(own_objects, 101, "nothing is copied");
    }
}

#[test]
fn a_fork_costs_three_requests_whatever_the_size() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let parent = node.create("parent");
    let fork = |number: u8| fork_of("parent", None, &format!("child-{number}"), number);
    try_fork(&node, &fork(1)).expect("forked");
    for (number, publishes) in [(2, 0), (3, 10), (4, 300)] {
        for stamp in 0..publishes {
            node.sync(&parent, vec![data(stamp * 40, &[stamp + 1])]);
            node.compact(&parent);
        }
        let before = store.counts();
        try_fork(&node, &fork(number)).expect("forked");
        let after = store.counts();
        let cost = (
            after.gets - before.gets,
            after.puts - before.puts,
            after.lists - before.lists,
        );
        assert_eq!(cost, (1, 2, 0), "after {publishes} publishes");
    }
}

#[test]
fn a_fork_of_a_fork_pins_every_volume_that_it_names() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let first = node.create("a");
    node.sync(&first, vec![data(1, &[1])]);
    try_fork(&node, &fork_of("a", None, "b", 1)).expect("forked");
    let second = node.own("b");
    node.sync(&second, vec![data(2, &[2])]);
    try_fork(&node, &fork_of("b", None, "c", 2)).expect("forked");
    let third = node.own("c");
    node.sync(&third, vec![data(3, &[3])]);
    try_fork(&node, &fork_of("c", None, "d", 3)).expect("forked");
    let there = Node::new(2, &store, Some("geheim"));
    let last = there.open("d").expect("opens");
    assert!(there.read(&last, 1, 3) == [page(1), page(2), page(3)].concat());
    let counts = ["a", "b", "c", "d"].map(|name| pins(&store, name));
    assert_eq!(counts, [3, 2, 1, 0]);
    let bucket = node.bucket.clone();
    let listed = async move {
        let first = bucket.forks_after("a", None, 2).await?;
        let last = first.last().map(|fork| fork.id);
        let second = bucket.forks_after("a", last, 2).await?;
        Ok::<_, VolumeError>([first, second].concat())
    };
    let listed = node.world.run(listed).expect("readable");
    let listed: Vec<(&str, bool)> = listed
        .iter()
        .map(|f| (f.name.as_str(), f.is_direct))
        .collect();
    assert_eq!(listed, [("b", true), ("c", false), ("d", false)]);
    assert_eq!(last.root().parent.as_deref(), Some("c"));
}

#[test]
fn a_fork_is_made_once_however_its_answers_are_lost() {
    for operation in ["create", "get"] {
        for fault in [
            Fault::Before(StoreErrorKind::Unknown),
            Fault::After(StoreErrorKind::Unknown),
            Fault::Late(StoreErrorKind::Unknown),
        ] {
            if operation == "get" && fault != Fault::Before(StoreErrorKind::Unknown) {
                continue;
            }
            let store = TestStore::default();
            let node = Node::new(1, &store, None);
            let parent = node.create("parent");
            node.sync(&parent, vec![data(1, &[1])]);
            let fork = fork_of("parent", None, "child", 1);
            store.fail(operation, [fault, fault, fault]);
            let made = try_fork(&node, &fork).expect("forked");
            store.heal();
            // Somebody asks again, and the child is at work already.
            let child = node.own("child");
            node.sync(&child, vec![data(1, &[2])]);
            let again = try_fork(&node, &fork).expect("it is there");
            assert_eq!(again.volume, made.volume, "{operation} {fault:?}");
            let other = try_fork(&node, &fork_of("parent", None, "child", 9));
            assert!(
                matches!(other, Err(VolumeError::Exists { .. })),
                "{other:?}"
            );
            assert!(node.read(&child, 1, 1) == page(2));
        }
    }
}

#[test]
fn what_cannot_be_forked_is_named_and_leaves_no_folder() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let absent = try_fork(&node, &fork_of("none", None, "child", 1));
    assert!(
        matches!(absent, Err(VolumeError::Vanished { .. })),
        "{absent:?}"
    );
    assert_eq!(pins(&store, "none"), 0);
    node.create("parent");
    let snapshot = try_fork(&node, &fork_of("parent", Some("s"), "child", 1));
    assert!(
        matches!(snapshot, Err(VolumeError::Invalid(_))),
        "{snapshot:?}"
    );
    let own = Fork::new("a", None, "a", Id([1; 16]), Id([2; 16]));
    assert!(matches!(own, Err(VolumeError::Invalid(_))));
    assert!(node.open("child").is_err());
}

#[test]
fn a_pin_that_cannot_be_read_hides_no_other_fork_and_blocks_the_collector() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let parent = node.create("parent");
    node.sync(&parent, vec![data(1, &[1])]);
    for (number, child) in [(1, "a"), (2, "b"), (3, "c")] {
        try_fork(&node, &fork_of("parent", None, child, number)).expect("forked");
    }
    let bad = format!("nbd/parent/pins/{}", Id([2; 16]));
    let mut bytes = store.object(&bad).to_vec();
    *bytes.last_mut().expect("a pin") ^= 1;
    store.set(&bad, bytes.into());
    let bucket = node.bucket.clone();
    let listed = async move {
        let first = bucket.forks_after("parent", None, 2).await?;
        let last = first.last().map(|fork| fork.id);
        let second = bucket.forks_after("parent", last, 2).await?;
        Ok::<_, VolumeError>([first, second].concat())
    };
    let listed = node.world.run(listed).expect("the others are readable");
    let ids: Vec<Id> = listed.iter().map(|fork| fork.id).collect();
    assert_eq!(ids, [Id([1; 16]), Id([2; 16]), Id([3; 16])]);
    let names: Vec<&str> = listed.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["a", "", "c"]);
    let errors: Vec<bool> = listed.iter().map(|fork| fork.error.is_some()).collect();
    assert_eq!(errors, [false, true, false]);
    let why = listed[1].error.clone().expect("an error");
    assert!(why.contains(&bad), "{why}");
    // Nobody knows what it holds.
    overwrite(&node, &parent, 60, 0);
    let before = store.keys();
    let collector = parent.clone();
    let collected = async move { collector.collect(&Tidy::default(), Deletes::Really).await };
    node.world.run(collected).expect_err("a pin");
    let gone = before.iter().filter(|key| !store.keys().contains(*key));
    assert_eq!(gone.count(), 0);
}

/// As its parent's owner does for a fork that is open before the store knows it.
fn carry(node: &Node, parent: &Volume<TestWorld>, number: u8) {
    let id = Id([number; 16]);
    let mut change = node.change(parent, Vec::new());
    change.snapshots = vec![SnapshotChange::Take {
        id,
        name: fork_snapshot(id),
    }];
    node.try_publish(parent, &change).expect("published");
}

fn bear(node: &Node, child: &'static str, number: u8) -> Born {
    let bucket = node.bucket.clone();
    let born = async move {
        let fork = Fork::live("parent", child, Id([number; 16]), Id([!number; 16]))?;
        let (owner, begun) = (Node::owner(1), Cell::default());
        Box::pin(bucket.bear(&fork, &owner, &begun)).await
    };
    node.world.run(born).expect("the store answers")
}

#[test]
fn a_live_fork_ends_where_its_name_is_needed_and_waits_where_its_parent_is_gone_for_a_moment() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let parent = node.create("parent");
    node.sync(&parent, vec![data(1, &[1])]);
    carry(&node, &parent, 1);
    let before = node.create("child");
    node.sync(&before, vec![data(1, &[2])]);
    try_fork(&node, &fork_of("child", None, "heir", 2)).expect("forked");
    purge(&node, &before, "child");
    let Born::Never(why) = bear(&node, "child", 1) else {
        panic!("the name is not free");
    };
    assert!(why.contains("heir"), "{why}");

    let root = store.object("nbd/parent/root");
    store.remove("nbd/parent/root");
    assert_eq!(bear(&node, "other", 1), Born::Orphan);
    store.set("nbd/parent/root", root);
    assert_eq!(bear(&node, "other", 1), Born::Made);
    assert_eq!(bear(&node, "other", 1), Born::Made, "it is the same");
    let Born::Never(why) = bear(&node, "more", 3) else {
        panic!("nothing holds its cut");
    };
    assert!(why.contains("no snapshot"), "{why}");
}

/// The root of `lost` is gone, by accident, and its fork lives on what it has in its folder. A fork of something else
/// gets the name: it is made by three requests, so nobody looks whether the folder is empty.
#[test]
fn a_fork_under_the_name_of_a_lost_volume_takes_nothing_from_the_forks_of_that() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let lost = node.create("lost");
        overwrite(&node, &lost, 40, 0);
        let expected = node.read(&lost, 0, 70);
        try_fork(&node, &fork_of("lost", None, "heir", 1)).expect("forked");
        store.remove("nbd/lost/root");
        let image = node.create("image");
        node.sync(&image, vec![data(1, &[99])]);

        let there = Node::new(2, &store, password);
        try_fork(&there, &fork_of("image", None, "lost", 2)).expect("forked");
        let again = there.own("lost");
        overwrite(&there, &again, 60, 100);
        let is_whole = || {
            let fresh = Node::new(3, &store, password);
            fresh.read(&fresh.open("heir").expect("opens"), 0, 70) == expected
        };
        let volume = again.clone();
        let swept = async move { volume.sweep(Scope::All, Deletes::Really).await };
        let swept = there.world.run(swept).expect("swept");
        assert_eq!(swept.deleted_objects, 0, "{swept:?}");
        assert!(is_whole());
        let volume = again.clone();
        let tidy = Tidy {
            childless_wait: std::time::Duration::ZERO,
            ..Tidy::default()
        };
        let collected = async move { volume.collect(&tidy, Deletes::Really).await };
        let collected = there.world.run(collected).expect("collected");
        assert_eq!(collected.blocked_by, None, "its own space comes back");
        assert!(collected.deleted_objects > 0, "{collected:?}");
        assert_eq!(pins(&store, "lost"), 1, "that of the heir");

        let held = purge(&there, &again, "lost");
        let by = held[0].held_by.clone().expect("held");
        assert!(by.contains("heir"), "{by}");
        assert!(is_whole());
        let heir = there.own("heir");
        let gone = purge(&there, &heir, "heir");
        assert!(gone.iter().all(|it| it.held_by.is_none()), "{gone:?}");
        let left = store.keys().into_iter();
        let left: Vec<String> = left.filter(|key| key.starts_with("nbd/lost/")).collect();
        assert_eq!(left, ["nbd/lost/root"]);
    }
}

/// Given up and deleted for good.
fn purge(node: &Node, volume: &Volume<TestWorld>, name: &'static str) -> Vec<Purged> {
    let mut detach = node.change(volume, Vec::new());
    detach.state = Some(VolumeState::Detached);
    node.try_publish(volume, &detach).expect("detached");
    let (bucket, id) = (node.bucket.clone(), volume.root().volume);
    let done = node.world.run(async move {
        Box::pin(bucket.entomb(name, id)).await?;
        bucket.bury(name, &|_| {}).await
    });
    done.expect("buried")
}
