//! Forks of groups, and of their members: what they hold, and who cleans up after a forker that died.

use std::time::Duration;

use super::super::pins::{Cleans, PinBook};
use super::groups::{
    detach_all, ends, form, grouped, next, open_all, own_all, pages, plain, seen, try_publish,
};
use super::*;

const PARENTS: [&str; 2] = ["data", "log"];
const CHILDREN: [&str; 2] = ["data-2", "log-2"];
const OUTAGE: Fault = Fault::Before(StoreErrorKind::Retry);

fn fork_of(group: &GroupView, snapshot: Option<&str>, number: u8) -> GroupFork {
    let names = PARENTS.into_iter().zip(CHILDREN);
    let names: Vec<(String, String)> = names
        .map(|(parent, child)| (parent.to_owned(), child.to_owned()))
        .collect();
    let id = Id([number; 16]);
    GroupFork::new(group.id, snapshot, "copy", id, &names).expect("names")
}

fn try_fork(node: &Node, fork: &GroupFork) -> Result<GroupView, VolumeError> {
    let (bucket, fork) = (node.bucket.clone(), fork.clone());
    node.world
        .run(async move { bucket.fork_group(&fork).await })
}

fn pins(store: &TestStore) -> [usize; 2] {
    PARENTS.map(|name| {
        let folder = format!("nbd/{name}/pins/");
        let keys = store.keys().into_iter();
        keys.filter(|key| key.starts_with(&folder)).count()
    })
}

/// Looks at the pins of both as their owner's collector does, so often that all is cleaned up that can be.
fn clean_up(node: &Node) {
    for _ in 0..3 {
        for name in PARENTS {
            let volume = node.open(name).expect("opens").root().volume;
            let bucket = node.bucket.clone();
            let look = async move {
                let name = VolumeName::parse(name)?;
                let cleans = Some(Cleans::AfterWait(Duration::ZERO));
                let book = PinBook::default();
                Box::pin(bucket.held(&name, volume, &book, cleans)).await
            };
            node.world.run(look).expect("listed");
        }
    }
}

#[test]
fn a_fork_of_a_group_is_a_group_of_one_moment() {
    for password in [None, Some("geheim")] {
        let (store, node, group) = grouped(password);
        let members = own_all(&node, "data");
        let mut changes = next(&node, &members, [3, 4]);
        for change in &mut changes {
            change.snapshots = vec![SnapshotChange::Take {
                id: Id([1; 16]),
                name: "s".to_owned(),
            }];
        }
        try_publish(&node, &members, &changes).expect("published");
        let changes = next(&node, &members, [5, 6]);
        try_publish(&node, &members, &changes).expect("published");

        let there = Node::new(2, &store, password);
        let made = try_fork(&there, &fork_of(&group, None, 1)).expect("forked");
        assert_eq!((made.state, made.id), (GroupState::Formed, Id([1; 16])));
        let again = try_fork(&there, &fork_of(&group, None, 1)).expect("it is there");
        assert_eq!(again, made);
        assert_eq!(pins(&store), [1, 1]);
        let other = try_fork(&there, &fork_of(&group, Some("s"), 2));
        assert!(
            matches!(other, Err(VolumeError::Exists { .. })),
            "{other:?}"
        );
        assert!(seen(&store, password, CHILDREN) == pages([1, 5, 2, 6]));

        let fork = own_all(&there, "log-2");
        let changes = next(&there, &fork, [7, 8]);
        try_publish(&there, &fork, &changes).expect("published");
        let changes = next(&node, &members, [9, 9]);
        try_publish(&node, &members, &changes).expect("published");
        assert!(seen(&store, password, CHILDREN) == pages([1, 7, 2, 8]));
        assert!(seen(&store, password, PARENTS) == pages([1, 9, 2, 9]));
        // It was opened since.
        let again = try_fork(&there, &fork_of(&group, None, 1)).expect("it is there");
        assert_eq!(again.id, made.id);

        let names = [("data", "data-3"), ("log", "log-3")]
            .map(|(parent, child)| (parent.to_owned(), child.to_owned()));
        let of_snapshot = GroupFork::new(group.id, Some("s"), "old", Id([3; 16]), &names);
        try_fork(&there, &of_snapshot.expect("names")).expect("forked");
        assert!(seen(&store, password, ["data-3", "log-3"]) == pages([1, 3, 2, 4]));
    }
}

#[test]
fn a_fork_of_one_member_is_a_volume_like_any_other() {
    let (store, node, _) = grouped(None);
    let members = own_all(&node, "data");
    let changes = next(&node, &members, [3, 4]);
    try_publish(&node, &members, &changes).expect("published");
    let fork = Fork::new("log", None, "alone", Id([1; 16]), Id([2; 16])).expect("names");
    let bucket = node.bucket.clone();
    let forked = node.world.run(async move { bucket.fork(&fork).await });
    assert_eq!(forked.expect("forked").group, None);
    assert_eq!(pins(&store), [0, 1]);
    let alone = node.own("alone");
    assert!(node.read(&alone, 1, 2) == [page(2), page(4)].concat());
}

/// Each member is a fork of a fork then, and pins what it names of all.
#[test]
fn a_fork_of_a_fork_of_a_group_pins_all_that_its_members_name() {
    let (store, node, group) = grouped(None);
    let first = try_fork(&node, &fork_of(&group, None, 1)).expect("forked");
    let names = [("data-2", "data-3"), ("log-2", "log-3")]
        .map(|(parent, child)| (parent.to_owned(), child.to_owned()));
    let second = GroupFork::new(first.id, None, "third", Id([2; 16]), &names);
    try_fork(&node, &second.expect("names")).expect("forked");
    assert_eq!(pins(&store), [2, 2]);
    assert!(seen(&store, None, ["data-3", "log-3"]) == pages([1, 0, 2, 0]));
}

#[test]
fn what_cannot_be_forked_as_a_group_is_named() {
    let (store, node, group) = grouped(None);
    let one = [("data".to_owned(), "copy".to_owned())];
    let half = GroupFork::new(group.id, None, "copy", Id([1; 16]), &one);
    assert!(matches!(half, Err(VolumeError::Invalid(_))), "{half:?}");
    let others = [("data", "a"), ("other", "b")]
        .map(|(parent, child)| (parent.to_owned(), child.to_owned()));
    let others = GroupFork::new(group.id, None, "copy", Id([1; 16]), &others).expect("names");
    let error = try_fork(&node, &others)
        .expect_err("not its members")
        .to_string();
    assert!(error.contains("data, log"), "{error}");
    let error = try_fork(&node, &fork_of(&group, Some("s"), 1)).expect_err("no snapshot");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    clean_up(&node);
    assert_eq!(pins(&store), [0, 0]);

    // Two snapshots of one name are not one moment.
    let (store, node) = plain(None);
    for (name, number) in PARENTS.into_iter().zip(1..) {
        let volume = node.own(name);
        let mut change = node.change(&volume, Vec::new());
        change.state = Some(VolumeState::Detached);
        change.snapshots = vec![SnapshotChange::Take {
            id: Id([number; 16]),
            name: "s".to_owned(),
        }];
        node.try_publish(&volume, &change).expect("published");
    }
    let group = form(&node, 7).expect("formed");
    let error = try_fork(&node, &fork_of(&group, Some("s"), 1)).expect_err("two moments");
    assert!(error.to_string().contains("one moment"), "{error}");
    assert!(!store.keys().contains(&"nbd/data-2/root".to_owned()));
}

#[test]
fn a_fork_of_a_group_is_made_once_however_its_answers_are_lost() {
    use StoreErrorKind::{Conflict, Unknown};
    // Two pins, the group, two roots; and then it is formed.
    let creates = (0..5).map(|at| ("create", at));
    for (operation, at) in creates.chain([("replace", 0)]) {
        for fault in [
            Fault::After(Unknown),
            Fault::Before(Unknown),
            Fault::Late(Unknown),
            Fault::After(Conflict),
            Fault::Before(Conflict),
        ] {
            let (store, node, group) = grouped(None);
            store.fail_after(operation, at, [fault]);
            let made = try_fork(&node, &fork_of(&group, None, 1));
            let made = made.unwrap_or_else(|error| panic!("{operation} {at} {fault:?}: {error}"));
            store.heal();
            let again = try_fork(&node, &fork_of(&group, None, 1)).expect("it is there");
            assert_eq!(again, made);
            assert!(seen(&store, None, CHILDREN) == pages([1, 0, 2, 0]));
        }
    }
}

/// A call that is repeated after an outage goes on with what the first one read: else its members would be of two moments
/// (mistake `forks-apart`).
#[test]
fn a_fork_that_is_taken_up_again_is_of_the_moment_at_which_it_was_begun() {
    for at in 3..6 {
        let (store, node, group) = grouped(None);
        let fork = fork_of(&group, None, 1);
        match at {
            5 => store.fail("replace", vec![OUTAGE; 100]),
            at => store.fail_after("create", at, vec![OUTAGE; 100]),
        }
        let error = try_fork(&node, &fork).expect_err("an outage");
        assert!(matches!(error, VolumeError::Store(_)), "{error}");
        store.heal();
        let members = own_all(&node, "data");
        let changes = next(&node, &members, [3, 4]);
        try_publish(&node, &members, &changes).expect("published");
        // Nobody opens a member of it yet.
        if let Ok(pending) = node.open("data-2") {
            assert_eq!(pending.root().state, VolumeState::Pending);
            let (taken, nonce) = (pending.clone(), node.nonce());
            let take = async move { taken.take(&Node::owner(1), nonce, None).await };
            let refused = node.world.run(take).expect_err("it is pending");
            assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
        }
        try_fork(&node, &fork).expect("goes on");
        assert!(seen(&store, None, CHILDREN) == pages([1, 0, 2, 0]), "{at}");
    }
}

/// Mistakes `burns-undissolved` and `pins-one`: the forker stops anywhere, what it sent may land late, and the owner of the
/// group collects meanwhile.
#[test]
fn whoever_cleans_up_after_a_forker_leaves_a_whole_fork_or_none() {
    for (operation, steps) in [("create", 5), ("get", 12), ("replace", 1)] {
        for at in 0..steps {
            for end in ends() {
                let (store, node, group) = grouped(None);
                let members = own_all(&node, "data");
                let there = Node::new(2, &store, None);
                let what = format!("{operation} {at} {:?}", end.get(4));
                store.fail_after(operation, at, end);
                let fork = fork_of(&group, None, 1);
                let stopped = try_fork(&there, &fork);
                store.heal();
                let what = format!("{what}: {stopped:?}");
                clean_up(&node);
                collect_all(&node, &members);
                check_fork(&store, &there, &fork, &what);
            }
        }
    }
}

/// Everything is replaced, and what nobody holds is deleted.
fn collect_all(node: &Node, members: &Members<TestWorld>) {
    for stamp in 50..60 {
        let nonce = node.nonce();
        let changes = members.volumes().iter().map(|volume| {
            let segment = node.upload(volume, vec![data(1, &[stamp, stamp])]);
            Publish {
                nonce,
                ..node.change(volume, vec![segment])
            }
        });
        let changes: Vec<Publish> = changes.collect();
        try_publish(node, members, &changes).expect("published");
        let tidy = Tidy {
            childless_wait: Duration::ZERO,
            ..Tidy::default().thorough()
        };
        for volume in members.volumes() {
            let volume = volume.clone();
            let pass = async move { volume.tidy(&tidy).await };
            node.world.run(pass).expect("tidied");
        }
    }
}

/// Either it can be had, with all that it holds; or its names can.
fn check_fork(store: &TestStore, node: &Node, fork: &GroupFork, what: &str) {
    if let Ok(made) = try_fork(node, fork) {
        assert_eq!(made.state, GroupState::Formed, "{what}");
        let shown = seen(store, None, CHILDREN);
        let is_old = shown == pages([1, 0, 2, 0]);
        let is_new = shown == pages([59, 59, 59, 59]);
        assert!(is_old || is_new, "{what}");
        return;
    }
    clean_up(node);
    assert_eq!(pins(store), [0, 0], "{what}");
    let group = open_all(node, "data").expect("opens").group();
    let of = group.expect("a group").id;
    let names = PARENTS.into_iter().zip(CHILDREN);
    let names: Vec<(String, String)> = names
        .map(|(parent, child)| (parent.to_owned(), child.to_owned()))
        .collect();
    let again = GroupFork::new(of, None, "copy", Id([9; 16]), &names).expect("names");
    let made = try_fork(node, &again);
    let made = made.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(made.state, GroupState::Formed, "{what}");
    assert!(
        seen(store, None, CHILDREN) == pages([59, 59, 59, 59]),
        "{what}"
    );
}

/// A call that had looked and not begun is slow, while another one of the same request makes the fork, and that is ended.
/// Formed again, the group would say of volumes what they were once, and forks would be made of it.
#[test]
fn a_slow_call_does_not_form_a_fork_again_that_is_over() {
    let (store, node, group) = grouped(None);
    let fork = fork_of(&group, None, 1);
    store.fail("replace", vec![OUTAGE; 100]);
    try_fork(&node, &fork).expect_err("an outage");
    store.heal();
    let id = Id([1; 16]);
    let bucket = node.bucket.clone();
    let begun = node.world.run(async move { bucket.read_group(id).await });
    let begun = begun.expect("readable").expect("it is forming");
    try_fork(&node, &fork).expect("goes on");
    let bucket = node.bucket.clone();
    let dissolved = node.world.run(async move { bucket.dissolve(id).await });
    dissolved.expect("nobody has it open");
    assert!(!store.keys().contains(&format!("groups/{id}")));
    let bucket = node.bucket.clone();
    let again = async move {
        let forming = Box::pin(bucket.create_group(begun.group.clone())).await?;
        Box::pin(bucket.create_members(&fork, &forming)).await
    };
    let error = node.world.run(again).expect_err("they are in no group");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    assert!(seen(&store, None, CHILDREN) == pages([1, 0, 2, 0]));
}

#[test]
fn a_fork_that_was_not_formed_can_be_deleted_by_its_names() {
    let (store, node, group) = grouped(None);
    store.fail("replace", vec![OUTAGE; 100]);
    let fork = fork_of(&group, None, 1);
    try_fork(&node, &fork).expect_err("an outage");
    store.heal();
    for name in CHILDREN {
        let id = node.open(name).expect("it is there").root().volume;
        let bucket = node.bucket.clone();
        let purge = async move {
            Box::pin(bucket.entomb(name, id)).await?;
            bucket.bury(name, &|_| {}).await
        };
        node.world.run(purge).expect("purged");
    }
    assert_eq!(pins(&store), [0, 0]);
    let error = try_fork(&node, &fork).expect_err("it was deleted");
    assert!(error.to_string().contains("new request id"), "{error}");
    try_fork(&node, &fork_of(&group, None, 2)).expect("another one");
    assert!(seen(&store, None, CHILDREN) == pages([1, 0, 2, 0]));
    let members = own_all(&node, "data-2");
    detach_all(&node, &members);
}
