//! Forks: what they hold, what they cost, what they leave in the parent's folder.

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
