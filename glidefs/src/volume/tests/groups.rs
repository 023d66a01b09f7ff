//! Groups: several volumes with one root. What comes into one, is published by it, and leaves it, whatever answers are
//! lost and whoever stops between two steps.

use futures_util::FutureExt;

use super::super::group;
use super::super::name::VolumeName;
use super::super::restore::outrun;
use super::super::retry::ATTEMPTS_MAX;
use super::super::root::{LISTED_MAX, Snapshot};
use super::*;

const NAMES: [&str; 2] = ["data", "log"];
const OUTAGE: Fault = Fault::Before(StoreErrorKind::Retry);

pub(super) fn detach(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.cut = volume.root().cut;
    change.state = Some(VolumeState::Detached);
    node.try_publish(volume, &change).expect("detached");
}

/// Two volumes that nobody owns; page 1 of the first is 1, that of the second 2.
pub(super) fn plain(password: Option<&str>) -> (TestStore, Node) {
    let store = TestStore::default();
    let node = Node::new(1, &store, password);
    for (name, stamp) in NAMES.into_iter().zip(1..) {
        let volume = node.create(name);
        node.sync(&volume, vec![data(1, &[stamp])]);
        detach(&node, &volume);
    }
    (store, node)
}

fn form_of(number: u8) -> Form {
    let names = NAMES.map(str::to_owned);
    Form::new("db", Id([number; 16]), &names).expect("names")
}

pub(super) fn form(node: &Node, number: u8) -> Result<GroupView, VolumeError> {
    let (bucket, form) = (node.bucket.clone(), form_of(number));
    node.world.run(async move { bucket.form(&form).await })
}

/// The same as one group.
pub(super) fn grouped(password: Option<&str>) -> (TestStore, Node, GroupView) {
    let (store, node) = plain(password);
    let group = form(&node, 7).expect("formed");
    (store, node, group)
}

fn dissolve(node: &Node, id: Id) -> Result<Option<GroupView>, VolumeError> {
    let bucket = node.bucket.clone();
    node.world.run(async move { bucket.dissolve(id).await })
}

fn group_now(node: &Node, id: Id) -> Option<GroupView> {
    let bucket = node.bucket.clone();
    let read = node.world.run(async move { bucket.group(id).await });
    read.expect("readable")
}

pub(super) fn open_all(node: &Node, name: &'static str) -> Result<Members<TestWorld>, VolumeError> {
    let bucket = node.bucket.clone();
    node.world
        .run(async move { bucket.open_members(name).await })
}

fn try_take(
    node: &Node,
    members: &Members<TestWorld>,
    owner: u8,
    force: Option<Epoch>,
) -> Result<Vec<RootView>, VolumeError> {
    let (members, nonce) = (members.clone(), node.nonce());
    let owner = Node::owner(owner);
    node.world
        .run(async move { members.take(&owner, nonce, force).await })
}

pub(super) fn own_all(node: &Node, name: &'static str) -> Members<TestWorld> {
    let members = open_all(node, name).expect("opens");
    try_take(node, &members, 1, None).expect("it is nobody's");
    members
}

/// A cut that brings page 2 of each.
pub(super) fn next(node: &Node, members: &Members<TestWorld>, stamps: [u64; 2]) -> Vec<Publish> {
    let nonce = node.nonce();
    let both = members.volumes().iter().zip(stamps);
    let changes = both.map(|(volume, stamp)| {
        let segment = node.upload(volume, vec![data(2, &[stamp])]);
        Publish {
            nonce,
            ..node.change(volume, vec![segment])
        }
    });
    changes.collect()
}

pub(super) fn try_publish(
    node: &Node,
    members: &Members<TestWorld>,
    changes: &[Publish],
) -> Result<Vec<RootView>, VolumeError> {
    let (members, changes) = (members.clone(), changes.to_vec());
    node.world.run(async move {
        let published = members.publish(&changes).await?;
        Ok(members.install(published))
    })
}

pub(super) fn detach_all(node: &Node, members: &Members<TestWorld>) -> Vec<RootView> {
    let nonce = node.nonce();
    let changes = members.volumes().iter().map(|volume| Publish {
        nonce,
        cut: volume.root().cut,
        state: Some(VolumeState::Detached),
        ..node.change(volume, Vec::new())
    });
    let changes: Vec<Publish> = changes.collect();
    try_publish(node, members, &changes).expect("detached")
}

/// Page 1 and 2 of both, as another node finds them.
pub(super) fn seen(store: &TestStore, password: Option<&str>, names: [&'static str; 2]) -> Vec<u8> {
    let node = Node::new(99, store, password);
    let read = |name| node.read(&node.open(name).expect("opens"), 1, 2);
    names.map(read).concat()
}

pub(super) fn pages(stamps: [u64; 4]) -> Vec<u8> {
    let shown = |stamp| match stamp {
        0 => vec![0; usize(PAGE)],
        stamp => page(stamp),
    };
    stamps.map(shown).concat()
}

fn epochs(roots: &[RootView]) -> Vec<u64> {
    roots.iter().map(|root| root.epoch.0).collect()
}

#[test]
fn members_are_published_by_one_swap_and_read_on_another_node() {
    for password in [None, Some("geheim")] {
        let (store, node, group) = grouped(password);
        assert_eq!(group.state, GroupState::Formed);
        assert!(seen(&store, password, NAMES) == pages([1, 0, 2, 0]));
        let members = own_all(&node, "log");
        assert_eq!(members.asked().root().name, "log");
        assert_eq!(members.group().expect("a group").id, group.id);
        let before = store.counts();
        let changes = next(&node, &members, [3, 4]);
        let roots = try_publish(&node, &members, &changes).expect("published");
        assert_eq!(
            store.counts().puts - before.puts,
            3,
            "two segments, one root"
        );
        assert_eq!(roots[0].etag, roots[1].etag);
        assert_eq!(roots[0].nonce, roots[1].nonce);
        assert!(seen(&store, password, NAMES) == pages([1, 3, 2, 4]));
        for volume in members.volumes() {
            node.compact(volume);
        }
        detach_all(&node, &members);
        let there = Node::new(2, &store, password);
        let again = own_all(&there, "data");
        let changes = next(&there, &again, [5, 6]);
        try_publish(&there, &again, &changes).expect("published");
        assert!(seen(&store, password, NAMES) == pages([1, 5, 2, 6]));
    }
}

/// Rule 11: what the caches of all nodes hold stays good.
#[test]
fn forming_and_dissolving_keep_the_nonce_of_the_last_publish_and_raise_the_epoch() {
    let (store, node) = plain(None);
    let roots = |node: &Node| NAMES.map(|name| node.open(name).expect("opens").root());
    let before = roots(&node);
    let group = form(&node, 7).expect("formed");
    let formed = roots(&node);
    dissolve(&node, group.id).expect("dissolved");
    let after = roots(&node);
    for ((before, formed), after) in before.iter().zip(&formed).zip(&after) {
        assert_eq!((before.nonce, before.nonce), (formed.nonce, after.nonce));
        assert_eq!((before.cut, before.cut), (formed.cut, after.cut));
        assert_eq!(formed.epoch.0, before.epoch.0 + 1);
        assert_eq!(after.epoch.0, formed.epoch.0 + 1);
        assert!(formed.group.is_some() && before.group.is_none() && after.group.is_none());
    }
    let left = store.keys().into_iter();
    assert_eq!(left.filter(|key| key.starts_with("groups/")).count(), 0);
}

#[test]
fn a_member_is_not_changed_without_the_others_and_says_what_to_do() {
    let (_store, node, group) = grouped(None);
    let volume = node.open("data").expect("opens");
    let (taken, nonce) = (volume.clone(), node.nonce());
    let take = async move { taken.take(&Node::owner(1), nonce, None).await };
    let refused = node.world.run(take).expect_err("one alone").to_string();
    assert!(
        refused.contains("`db`") && refused.contains("data, log"),
        "{refused}"
    );
    let log = node.open("log").expect("opens");
    let half = Members::of(vec![log.clone()]).expect_err("a half");
    assert!(half.to_string().contains("`db`"), "{half}");
    Members::of(vec![log.clone(), volume.clone()]).expect("all, in any order");

    let id = volume.root().volume;
    let bucket = node.bucket.clone();
    let purge = node
        .world
        .run(async move { bucket.entomb("data", id).await });
    let refused = purge.expect_err("a member").to_string();
    assert!(refused.contains("dissolve the group first"), "{refused}");
    let bucket = node.bucket.clone();
    let wanted = Restore {
        snapshot: "s".to_owned(),
        id: Id([1; 16]),
        before: "before".to_owned(),
    };
    let restore = node
        .world
        .run(async move { bucket.restore("data", &wanted).await });
    let refused = restore.expect_err("a member").to_string();
    assert!(refused.contains("restore the group"), "{refused}");

    let members = own_all(&node, "data");
    let mut changes = next(&node, &members, [3, 4]);
    changes[1].state = Some(VolumeState::Detached);
    let refused = try_publish(&node, &members, &changes).expect_err("half detached");
    assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    let refused = try_publish(&node, &members, &changes[..1]).expect_err("half a cut");
    assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    let refused = node.try_publish(&members.volumes()[0], &changes[0]);
    let refused = refused.expect_err("one alone");
    assert!(matches!(refused, VolumeError::Invalid(_)), "{refused}");
    let refused = dissolve(&node, group.id).expect_err("it is open");
    assert!(matches!(refused, VolumeError::Owned { .. }), "{refused}");
    changes[1].state = None;
    try_publish(&node, &members, &changes).expect("goes on");
    let torn = Members::of(vec![log, members.volumes()[0].clone()]);
    let torn = torn.expect_err("of two moments").to_string();
    assert!(torn.contains("several moments"), "{torn}");
}

#[test]
fn what_may_not_become_a_group_is_named() {
    let (_store, node) = plain(None);
    let refused = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        Form::new("db", Id([1; 16]), &names).expect_err("refused")
    };
    for names in [&["data"][..], &["data", "data"][..], &["data", "-"][..]] {
        let error = refused(names);
        assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    }
    let many: Vec<String> = (0..17).map(|n| format!("v-{n}")).collect();
    Form::new("db", Id([1; 16]), &many).expect_err("too many");
    let open = node.own("data");
    let error = form(&node, 7).expect_err("it is open");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    detach(&node, &open);
    form(&node, 7).expect("the same, once it is free");
    let again = form(&node, 8).expect("it is that already");
    assert_eq!(again.state, GroupState::Formed);
    node.create("other");
    let names = ["data", "other"].map(str::to_owned);
    let other = Form::new("db-2", Id([9; 16]), &names).expect("names");
    let bucket = node.bucket.clone();
    let error = node.world.run(async move { bucket.form(&other).await });
    let error = error.expect_err("a member of another one").to_string();
    assert!(error.contains("`db` already"), "{error}");
}

#[test]
fn a_group_is_formed_once_however_its_answers_are_lost() {
    use StoreErrorKind::{Conflict, Unknown};
    let faults = [
        Fault::After(Unknown),
        Fault::Before(Unknown),
        Fault::Late(Unknown),
        Fault::After(Conflict),
        Fault::Before(Conflict),
    ];
    // Its object is created, two roots name it, and it is formed.
    let steps = [
        ("create", 0),
        ("replace", 0),
        ("replace", 1),
        ("replace", 2),
    ];
    for (operation, at) in steps {
        for fault in faults {
            let (store, node) = plain(None);
            store.fail_after(operation, at, [fault]);
            let group = form(&node, 7);
            let group = group.unwrap_or_else(|error| panic!("{operation} {at} {fault:?}: {error}"));
            store.heal();
            assert_eq!(group.state, GroupState::Formed);
            let again = form(&node, 7).expect("it is there");
            assert_eq!(again.id, group.id);
            let members = own_all(&node, "data");
            let changes = next(&node, &members, [3, 4]);
            try_publish(&node, &members, &changes).expect("published");
            assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 4]));
        }
    }
}

/// How a process ends, as the store sees it: its last request has no effect, or one that comes when somebody else changes
/// something.
pub(super) fn ends() -> [Vec<Fault>; 2] {
    let last = usize(u64::from(ATTEMPTS_MAX)) - 1;
    let mut late = vec![OUTAGE; 100];
    late[last] = Fault::Late(StoreErrorKind::Unknown);
    [vec![OUTAGE; 100], late]
}

/// The former stops at any request, also one of which the effect comes later; then its members are opened, by others or
/// by the same.
#[test]
fn whoever_stops_forming_leaves_volumes_that_open_as_they_were() {
    for (operation, steps) in [("get", 9), ("create", 1), ("replace", 3)] {
        for at in 0..steps {
            for end in ends() {
                let (store, node) = plain(None);
                // Before the fault, so that what is late lands under its hands.
                let there = Node::new(2, &store, None);
                let what = format!("{operation} {at} {:?}", end.get(4));
                store.fail_after(operation, at, end);
                let stopped = form(&node, 7);
                store.heal();
                let what = format!("{what}: {stopped:?}");
                for name in NAMES {
                    open_and_write(&there, name, &what);
                }
                assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 5]), "{what}");
                let group = form(&there, 8);
                let group = group.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(group.state, GroupState::Formed, "{what}");
                assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 5]), "{what}");
            }
        }
    }
}

/// As an opener does who loses a race: it looks again.
fn open_and_write(node: &Node, name: &'static str, what: &str) {
    for _ in 0..3 {
        let members = open_all(node, name).expect("opens");
        if try_take(node, &members, 1, None).is_err() {
            continue;
        }
        let nonce = node.nonce();
        let changes = members.volumes().iter().map(|volume| {
            let segment = node.upload(volume, vec![data(2, &[5])]);
            Publish {
                nonce,
                ..node.change(volume, vec![segment])
            }
        });
        let changes: Vec<Publish> = changes.collect();
        try_publish(node, &members, &changes).expect("published");
        detach_all(node, &members);
        return;
    }
    panic!("{what}: {name} is not to be had");
}

/// Mistakes `opens-forming`, `gives-up-blindly`, `deletes-given-up` of the model.
#[test]
fn who_opens_a_member_of_a_group_that_is_forming_gives_it_up_for_good() {
    let (store, node) = plain(None);
    store.fail_after("replace", 2, vec![OUTAGE; 100]);
    let error = form(&node, 7).expect_err("an outage");
    assert!(matches!(error, VolumeError::Store(_)), "{error}");
    store.heal();
    let root = node.open("data").expect("readable").root();
    assert_eq!((root.group, root.state), (None, VolumeState::Detached));
    let id = only_group(&store);
    let key = group::key(id);

    let there = Node::new(2, &store, None);
    let volume = there.own("data");
    there.sync(&volume, vec![data(2, &[3])]);
    assert_eq!(
        group_now(&node, id).expect("it stays").state,
        GroupState::GivenUp
    );
    let error = form(&node, 7).expect_err("it is open");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 0]));
    // Its other member says itself what it is, and the object stays, for whoever formed it may name it yet.
    detach(&there, &volume);
    let over = dissolve(&node, id)
        .expect("nothing to do")
        .expect("it stays");
    assert_eq!(over.state, GroupState::GivenUp);
    assert!(store.keys().contains(&key));
    let group = form(&node, 7).expect("another group of the same");
    assert_ne!(group.id, id);
    assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 0]));
}

fn only_group(store: &TestStore) -> Id {
    let keys = store.keys();
    let mut ids = keys.iter().filter_map(|key| key.strip_prefix("groups/"));
    let number = u128::from_str_radix(ids.next().expect("a group"), 16).expect("an id");
    assert_eq!(ids.next(), None);
    Id(number.to_be_bytes())
}

/// Mistakes `swaps-what-was-forming` and `sweeps-what-was-forming`, by one who looked while the group was forming, and is
/// slow: until that is dissolved, the member's own object stays the same.
#[test]
fn who_looked_while_a_group_was_forming_brings_nothing_back() {
    let (store, node) = plain(None);
    let there = Node::new(2, &store, None);
    store.fail_after("replace", 2, vec![OUTAGE; 100]);
    form(&node, 7).expect_err("an outage");
    store.heal();
    let slow = open_all(&there, "data").expect("opens");
    let group = form(&node, 7).expect("goes on");
    let members = own_all(&node, "data");
    // So many that they are folded into a map.
    for _ in 0..40 {
        let changes = next(&node, &members, [3, 4]);
        try_publish(&node, &members, &changes).expect("published");
    }
    let changes = next(&node, &members, [5, 6]);
    try_publish(&node, &members, &changes).expect("published");
    let volume = &members.volumes()[0];
    assert!(volume.stored().root.content.map.is_some());
    detach_all(&node, &members);
    // What it holds is of an epoch that is over, so a sweep goes by what the root knows.
    detach_all(&node, &own_all(&node, "log"));
    store.fail_after("replace", 1, vec![OUTAGE; 100]);
    dissolve(&node, group.id).expect_err("an outage");
    store.heal();
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]));

    let sweeper = slow.asked().clone();
    let swept = async move { sweeper.sweep(Scope::All, Deletes::Really).await };
    there.world.run(swept).expect("swept");
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]), "swept");
    let error = try_take(&there, &slow, 2, None).expect_err("it was changed");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]), "taken");
    dissolve(&node, group.id).expect("goes on");
    let error = try_take(&there, &slow, 2, None).expect_err("it was changed");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]), "deleted");
}

/// Mistake `tells-what-is-over`. One call of a request is slow while another one forms the group, and that is ended: then the
/// group's root is gone, and a member that named it could be opened by nobody.
#[test]
fn a_slow_call_makes_no_member_name_a_group_that_is_over() {
    let (store, node) = plain(None);
    let epochs = NAMES.map(|name| node.open(name).expect("opens").root().epoch.0);
    store.fail_after("replace", 2, vec![OUTAGE; 100]);
    form(&node, 7).expect_err("an outage");
    store.heal();
    let id = only_group(&store);
    let bucket = node.bucket.clone();
    let slow = node.world.run(async move { bucket.read_group(id).await });
    let slow = slow.expect("readable").expect("it is forming");
    assert_eq!(form(&node, 7).expect("goes on").id, id);
    dissolve(&node, id).expect("dissolved");
    assert!(!store.keys().contains(&group::key(id)));
    // It may also have been about to create it.
    for creates in [false, true] {
        let (bucket, slow) = (node.bucket.clone(), slow.clone());
        let told = async move {
            if creates {
                Box::pin(bucket.create_group(slow.group.clone())).await?;
            }
            Box::pin(bucket.tell_all(&slow, &epochs)).await
        };
        let error = node.world.run(told).expect_err("they have changed");
        assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
        assert!(seen(&store, None, NAMES) == pages([1, 0, 2, 0]));
    }
    let group = form(&node, 7).expect("another group of the same");
    assert_ne!(group.id, id);
}

#[test]
fn a_member_that_was_not_told_yet_may_change_before_the_call_is_repeated() {
    let (store, node) = plain(None);
    store.fail_after("replace", 1, vec![OUTAGE; 100]);
    form(&node, 7).expect_err("an outage");
    store.heal();
    let begun = only_group(&store);
    let volume = node.own("log");
    node.sync(&volume, vec![data(2, &[4])]);
    detach(&node, &volume);
    let group = form(&node, 7).expect("formed");
    assert_ne!(group.id, begun);
    assert_eq!(
        group_now(&node, begun).expect("it stays").state,
        GroupState::GivenUp
    );
    assert!(seen(&store, None, NAMES) == pages([1, 0, 2, 4]));
}

/// Mistake `looks-once`. Between the two objects that somebody reads the group ends, and is deleted, and a slow call creates
/// it again: the member's own object is of before all that.
#[test]
fn a_group_that_comes_again_while_a_member_is_read_brings_nothing_back() {
    let (store, node) = plain(None);
    store.fail("replace", vec![OUTAGE; 100]);
    form(&node, 7).expect_err("an outage");
    store.heal();
    let id = only_group(&store);
    let bucket = node.bucket.clone();
    let begun = node.world.run(async move { bucket.read_group(id).await });
    let begun = begun.expect("readable").expect("it is forming");
    assert_eq!(form(&node, 7).expect("goes on").id, id);
    let members = own_all(&node, "data");
    let changes = next(&node, &members, [3, 4]);
    try_publish(&node, &members, &changes).expect("published");
    detach_all(&node, &members);
    let last = node.open("data").expect("opens").root();

    let (bucket, there) = (node.bucket.clone(), store.clone());
    let read = async move {
        let name = VolumeName::parse("data")?;
        let gets = there.counts().gets;
        let mut read = Box::pin(bucket.read_root(&name));
        while there.counts().gets == gets {
            assert!((&mut read).now_or_never().is_none(), "it asks the group");
        }
        Box::pin(bucket.dissolve(id)).await?;
        assert!(!there.keys().contains(&group::key(id)));
        Box::pin(bucket.create_group(begun.group.clone())).await?;
        read.await
    };
    let now = node.world.run(read).expect("readable");
    let now = now.expect("it is there").root;
    assert_eq!(
        (Id(now.nonce), now.content.cut_seq),
        (last.nonce, last.cut.0)
    );
    assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 4]));
}

/// Mistake `creates-alike`: with the same bytes a store may give both the same ETag, and a commit that lands late would
/// find the version that it was meant for.
#[test]
fn no_two_calls_create_a_group_with_the_same_bytes() {
    let (store, node) = plain(None);
    let created = [(); 2].map(|()| {
        store.fail("replace", vec![OUTAGE; 100]);
        form(&node, 7).expect_err("an outage");
        store.heal();
        let key = group::key(only_group(&store));
        let body = store.object(&key);
        store.remove(&key);
        (key, body)
    });
    let [(first, before), (second, now)] = created;
    assert_eq!(first, second);
    assert_ne!(before, now);
}

/// Mistake `gone-is-forming`.
#[test]
fn a_group_whose_root_is_lost_is_not_taken_for_one_that_was_not_formed_yet() {
    let (store, node, group) = grouped(None);
    let members = own_all(&node, "data");
    let changes = next(&node, &members, [3, 4]);
    try_publish(&node, &members, &changes).expect("published");
    let key = group::key(group.id);
    store.remove(&key);
    for name in NAMES {
        let error = node.open(name).expect_err("its root is lost");
        assert!(
            matches!(&error, VolumeError::Vanished { key: lost, .. } if *lost == key),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(&key) && !text.contains("delete the volume"),
            "{text}"
        );
        let bucket = node.bucket.clone();
        let created = async move {
            bucket
                .create(name, 4096, &Node::owner(1), Id([1; 16]))
                .await
        };
        assert!(node.world.run(created).is_err(), "never an empty disk");
    }
    let changes = next(&node, &members, [5, 6]);
    let error = try_publish(&node, &members, &changes).expect_err("gone");
    assert!(matches!(error, VolumeError::Vanished { .. }), "{error}");
}

/// Mistakes `opens-as-it-came`, `deletes-early`.
#[test]
fn a_dissolved_group_s_members_are_what_it_said_last_wherever_that_stops() {
    for at in 0..3 {
        let (store, node, group) = grouped(None);
        let members = own_all(&node, "data");
        let changes = next(&node, &members, [3, 4]);
        try_publish(&node, &members, &changes).expect("published");
        detach_all(&node, &members);
        store.fail_after("replace", at, vec![OUTAGE; 100]);
        dissolve(&node, group.id).expect_err("an outage");
        store.heal();
        assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 4]), "{at}");
        let key = group::key(group.id);
        assert!(store.keys().contains(&key), "a root names it still");
        if at > 0 {
            let volume = node.own("log");
            node.sync(&volume, vec![data(2, &[8])]);
            assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 8]), "{at}");
            let error = try_publish(&node, &members, &next(&node, &members, [6, 6]));
            error.expect_err("the group is over");
        }
        dissolve(&node, group.id).expect("goes on");
        assert!(!store.keys().contains(&key), "nothing names it");
        assert_eq!(dissolve(&node, group.id).expect("nothing to do"), None);
        let volume = node.own("data");
        assert!(node.read(&volume, 1, 2) == [page(1), page(3)].concat());
    }
}

#[test]
fn lost_answers_of_a_dissolution_are_resolved() {
    use StoreErrorKind::{Conflict, Unknown};
    for at in 0..3 {
        for fault in [
            Fault::After(Unknown),
            Fault::Before(Unknown),
            Fault::Late(Unknown),
            Fault::After(Conflict),
        ] {
            let (store, node, group) = grouped(None);
            store.fail_after("replace", at, [fault]);
            let done = dissolve(&node, group.id);
            assert!(done.is_ok(), "{at} {fault:?}: {done:?}");
            for name in NAMES {
                node.own(name);
            }
            assert!(seen(&store, None, NAMES) == pages([1, 0, 2, 0]));
        }
    }
}

#[test]
fn a_lost_answer_of_a_group_s_publish_or_take_is_resolved_by_reading_back() {
    use StoreErrorKind::{Conflict, Retry, Unknown};
    for faults in [
        vec![Fault::After(Unknown)],
        vec![Fault::Before(Unknown)],
        vec![Fault::Late(Unknown)],
        vec![Fault::Before(Retry), Fault::After(Unknown)],
        vec![Fault::After(Conflict)],
        vec![Fault::Before(Conflict)],
    ] {
        let (store, node, _) = grouped(None);
        store.fail("replace", faults.clone());
        let members = own_all(&node, "data");
        store.heal();
        let changes = next(&node, &members, [3, 4]);
        store.fail("replace", faults.clone());
        let roots = try_publish(&node, &members, &changes);
        assert!(roots.is_ok(), "{faults:?}: {roots:?}");
        assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 4]));
        let changes = next(&node, &members, [5, 6]);
        try_publish(&node, &members, &changes).expect("goes on");
    }
}

/// Mistakes `epoch-of-one` and `takes-one`, and a zombie of all.
#[test]
fn force_takes_all_members_and_no_zombie_publishes_or_sweeps_any() {
    let (store, node, _) = grouped(None);
    let zombie = own_all(&node, "data");
    let changes = next(&node, &zombie, [3, 4]);
    try_publish(&node, &zombie, &changes).expect("published");
    let late = next(&node, &zombie, [9, 9]);

    let there = Node::new(2, &store, None);
    let theirs = open_all(&there, "log").expect("opens");
    let error = try_take(&there, &theirs, 2, None).expect_err("owned");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    let wrong = Epoch(theirs.asked().root().epoch.0 + 1);
    try_take(&there, &theirs, 2, Some(wrong)).expect_err("another epoch");
    let force = Some(theirs.asked().root().epoch);
    let before: Vec<RootView> = theirs.volumes().iter().map(Volume::root).collect();
    let taken = try_take(&there, &theirs, 2, force).expect("forced");
    let raised: Vec<u64> = epochs(&before).iter().map(|epoch| epoch + 1).collect();
    assert_eq!(epochs(&taken), raised);
    assert!(taken.iter().all(|it| it.owner == Some(Node::owner(2))));

    // Under way: uploaded, in no root.
    let under_way = next(&there, &theirs, [5, 6]);
    for volume in zombie.volumes() {
        let sweeper = volume.clone();
        let swept = async move { sweeper.sweep(Scope::All, Deletes::Really).await };
        node.world.run(swept).expect("swept");
    }
    let error = try_publish(&node, &zombie, &late).expect_err("fenced");
    assert!(matches!(error, VolumeError::Fenced { .. }), "{error}");
    let epochs: Vec<Epoch> = before.iter().map(|it| it.epoch).collect();
    let again = open_all(&node, "data").expect("opens");
    let error = again.resume(&Node::owner(1), &epochs).expect_err("fenced");
    assert!(matches!(error, VolumeError::Fenced { .. }), "{error}");
    try_publish(&there, &theirs, &under_way).expect("all of it is there");
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]));
}

/// Mistake `keeps-older-cut`, of the whole group.
#[test]
fn an_older_intent_with_later_cuts_voids_the_change_of_all_members() {
    let (store, node, _) = grouped(None);
    let members = own_all(&node, "data");
    let mut older = next(&node, &members, [3, 4]);
    older[0].cut = Seq(older[0].cut.0 + 5);
    store.fail("replace", [Fault::Late(StoreErrorKind::Unknown)]);
    store.fail("get", vec![OUTAGE; ATTEMPTS_MAX as usize]);
    try_publish(&node, &members, &older).expect_err("an outage");
    store.heal();
    let mut changes = next(&node, &members, [8, 9]);
    for change in &mut changes {
        change.ours = vec![older[0].nonce];
    }
    let error = try_publish(&node, &members, &changes).expect_err("void");
    assert!(
        matches!(error, VolumeError::Overtaken { at, .. } if at == older[0].cut),
        "{error}"
    );
    for (volume, older) in members.volumes().iter().zip(&older) {
        assert_eq!(volume.root().cut, older.cut);
        assert_eq!(volume.root().nonce, older.nonce);
    }
    assert!(seen(&store, None, NAMES) == pages([1, 3, 2, 4]));
    let changes = next(&node, &members, [5, 6]);
    try_publish(&node, &members, &changes).expect("goes on");
}

/// A root that was published by a copy of the same log is not ours, in any member.
#[test]
fn the_same_epoch_of_a_group_twice_has_one_winner() {
    let (store, node, _) = grouped(None);
    let members = own_all(&node, "data");
    let twin = Node::new(2, &store, None);
    let copied = open_all(&twin, "data").expect("opens");
    let epochs: Vec<Epoch> = copied.volumes().iter().map(|it| it.root().epoch).collect();
    copied
        .resume(&Node::owner(1), &epochs)
        .expect("looks like the owner");
    let changes = next(&twin, &copied, [5, 6]);
    try_publish(&twin, &copied, &changes).expect("published");
    let changes = next(&node, &members, [3, 4]);
    let error = try_publish(&node, &members, &changes).expect_err("fenced");
    assert!(matches!(error, VolumeError::Fenced { .. }), "{error}");
    assert!(seen(&store, None, NAMES) == pages([1, 5, 2, 6]));
}

#[test]
fn tails_of_a_group_have_as_many_segments_together_as_one_volume_s() {
    assert_eq!(group::tail_segments_max(1), 64);
    for members in GROUP_MEMBERS_MIN..=GROUP_MEMBERS_MAX {
        let each = group::tail_segments_max(members);
        assert!(each >= 4 && each * members <= 64, "{members}");
    }
    // They come with what they had alone, and shrink at the first publish.
    let (store, node) = plain(None);
    let volume = node.own("log");
    for stamp in 1..=60 {
        node.sync(&volume, vec![data(stamp + 9, &[stamp])]);
    }
    detach(&node, &volume);
    form(&node, 7).expect("formed");
    let members = own_all(&node, "data");
    for stamp in 1..=70 {
        let changes = next(&node, &members, [stamp, stamp + 1]);
        try_publish(&node, &members, &changes).expect("published");
        for volume in members.volumes() {
            let tail = volume.stored().root.content.tail.len();
            assert!(tail <= volume.tail_max(), "{tail} segments");
        }
    }
    assert!(seen(&store, None, NAMES) == pages([1, 70, 2, 71]));
    let log = node.open("log").expect("opens");
    assert!(node.read(&log, 69, 1) == page(60));
}

fn take(id: u8, name: &str) -> SnapshotChange {
    SnapshotChange::Take {
        id: Id([id; 16]),
        name: name.to_owned(),
    }
}

fn names_of(members: &Members<TestWorld>) -> Vec<Vec<String>> {
    let names = |volume: &Volume<TestWorld>| {
        let all = volume.snapshots().into_iter();
        all.map(|it| it.name).collect()
    };
    members.volumes().iter().map(names).collect()
}

/// Mistakes `snapshots-apart`, `restores-one`.
#[test]
fn snapshots_are_of_all_members_or_of_none_and_all_are_restored() {
    let (store, node) = plain(Some("geheim"));
    let volume = node.own("log");
    let mut change = node.change(&volume, Vec::new());
    change.snapshots = vec![take(1, "x")];
    node.try_publish(&volume, &change).expect("published");
    detach(&node, &volume);
    let group = form(&node, 7).expect("formed");
    let members = own_all(&node, "data");
    assert!(members.has_room_for_snapshot());
    let mut changes = next(&node, &members, [3, 4]);
    for change in &mut changes {
        change.snapshots = vec![take(2, "x"), take(3, "y")];
    }
    try_publish(&node, &members, &changes).expect("published");
    // One of them had an `x` of its own.
    assert_eq!(names_of(&members), [vec!["y"], vec!["x", "y"]]);
    let changes = next(&node, &members, [5, 6]);
    try_publish(&node, &members, &changes).expect("published");
    let restore = |snapshot: &str| {
        let wanted = Restore {
            snapshot: snapshot.to_owned(),
            id: Id([4; 16]),
            before: "before".to_owned(),
        };
        let bucket = node.bucket.clone();
        let id = group.id;
        node.world
            .run(async move { bucket.restore_group(id, &wanted).await })
    };
    let error = restore("y").expect_err("it is open");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    let detached = detach_all(&node, &members);
    let error = restore("x").expect_err("of one member");
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    store.fail("replace", [Fault::After(StoreErrorKind::Unknown)]);
    let restored = restore("y").expect("restored");
    assert_eq!(restore("y").expect("done before"), restored);
    assert!(seen(&store, Some("geheim"), NAMES) == pages([1, 3, 2, 4]));
    let again = own_all(&node, "log");
    assert_eq!(
        names_of(&again),
        [vec!["y", "before"], vec!["x", "y", "before"]]
    );
    for (volume, before) in again.volumes().iter().zip(detached) {
        assert!(volume.root().cut > before.cut && volume.root().epoch > before.epoch);
    }
}

/// Whatever cannot be read any more then: who is told of an error would do it again.
#[test]
fn a_restore_of_a_group_that_landed_is_never_an_error() {
    let mut landed = 0;
    for good in 0..40 {
        let (store, node, group) = grouped(None);
        let members = own_all(&node, "data");
        let mut changes = next(&node, &members, [3, 4]);
        for change in &mut changes {
            change.snapshots = vec![take(3, "y")];
        }
        try_publish(&node, &members, &changes).expect("published");
        detach_all(&node, &members);
        store.fail_after("get", good, vec![OUTAGE; 1000]);
        let wanted = Restore {
            snapshot: "y".to_owned(),
            id: Id([4; 16]),
            before: "before".to_owned(),
        };
        let (bucket, id) = (node.bucket.clone(), group.id);
        let restore = async move { bucket.restore_group(id, &wanted).await };
        let restored = node.world.run(restore);
        store.heal();
        let members = open_all(&node, "data").expect("opens");
        let has_it = |names: &Vec<String>| names.contains(&"before".to_owned());
        let is_done = names_of(&members).iter().all(has_it);
        assert_eq!(restored.is_ok(), is_done, "{good}: {restored:?}");
        landed += u32::from(is_done);
    }
    assert!((1..40).contains(&landed), "{landed} of 40 landed");
}

/// Who lost a race against one who is done again is not sent to somebody who does not have it.
#[test]
fn who_was_outrun_is_told_of_an_owner_only_where_there_is_one() {
    let (_store, node) = plain(None);
    let root = |node: &Node| {
        let (bucket, name) = (node.bucket.clone(), VolumeName::parse("data"));
        let name = name.expect("a name");
        let read = node.world.run(async move { bucket.read_root(&name).await });
        read.expect("readable").expect("there").root
    };
    let error = outrun(&root(&node));
    assert!(matches!(error, VolumeError::Invalid(_)), "{error}");
    node.own("data");
    let error = outrun(&root(&node));
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
}

#[test]
fn a_root_of_a_group_that_is_too_large_keeps_no_more_snapshots() {
    let (_store, node, group) = grouped(None);
    let (bucket, id) = (node.bucket.clone(), group.id);
    let stored = node.world.run(async move { bucket.read_group(id).await });
    let stored = stored.expect("readable").expect("there");
    let mut large = stored.group.clone();
    assert!(large.has_room_for_snapshot());
    let name = "x".repeat(63);
    for root in large.members.iter_mut().filter_map(|it| it.root.as_mut()) {
        let segment = root.content.tail[0];
        let mut content = root.content.clone();
        content.tail = vec![segment; group::tail_segments_max(1)];
        root.snapshots = (0..LISTED_MAX)
            .map(|_| Snapshot {
                id: [1; 16],
                name: name.clone(),
                size_bytes: 1 << 40,
                content: content.clone(),
            })
            .collect();
    }
    let bytes = large.encode(None).expect("it can be written").len();
    assert!(bytes > group::GROWTH_BYTES_MAX / 2, "{bytes}");
    // Twice the members.
    let more = large.members.clone();
    large.members.extend(more);
    assert!(!large.has_room() && !large.has_room_for_snapshot());
    let more = large.members.clone();
    large.members.extend(more);
    let error = large.encode(None).expect_err("beyond all").to_string();
    assert!(error.contains("delete snapshots"), "{error}");
}

/// Mistakes `reads-apart`, `reader-trusts-first-look`.
#[test]
fn a_reader_pins_all_members_at_one_moment_and_looks_again() {
    let (store, node, _) = grouped(None);
    let members = own_all(&node, "data");
    let there = Node::new(2, &store, None);
    let pin = |members: &Members<TestWorld>| {
        let members = members.clone();
        let pinned = async move { members.pin_to_read("host-2").await };
        there.world.run(pinned).expect("the store answers")
    };
    let pins = || {
        let count = |name: &str| {
            let folder = format!("nbd/{name}/pins/");
            let keys = store.keys().into_iter();
            keys.filter(|key| key.starts_with(&folder)).count()
        };
        NAMES.map(count)
    };
    let reader = open_all(&there, "log").expect("opens");
    let late = open_all(&there, "log").expect("opens");
    let held = pin(&reader).expect("nothing has changed");
    assert_eq!(pins(), [1, 1]);
    // Only one of them is written, and it is the other that is asked for.
    let nonce = node.nonce();
    let mut changes = next(&node, &members, [3, 4]);
    changes[1] = Publish {
        nonce,
        cut: members.volumes()[1].root().cut,
        ..node.change(&members.volumes()[1], Vec::new())
    };
    changes[0].nonce = nonce;
    try_publish(&node, &members, &changes).expect("published");
    assert!(pin(&late).is_none(), "what it read is not held");
    assert_eq!(pins(), [1, 1]);
    let shown = |volume: &Volume<TestWorld>| there.read(volume, 1, 2);
    let shown: Vec<Vec<u8>> = reader.volumes().iter().map(shown).collect();
    assert!(shown.concat() == pages([1, 0, 2, 0]));
    there.world.run(held.release()).expect("released");
    assert_eq!(pins(), [0, 0]);
}

#[test]
fn a_member_gets_a_new_data_key_alone() {
    let (store, node, _) = grouped(Some("geheim"));
    let before = open_all(&node, "data").expect("opens");
    let bucket = node.bucket.clone();
    let renewed = async move { bucket.renew_data_key("log", Id([5; 16])).await };
    store.fail("replace", [Fault::After(StoreErrorKind::Unknown)]);
    let renewed = node.world.run(renewed).expect("renewed");
    assert_eq!(renewed.keys, 2);
    let stale = try_take(&node, &before, 1, None).expect_err("it was changed");
    assert!(matches!(stale, VolumeError::Owned { .. }), "{stale}");
    let members = own_all(&node, "data");
    let changes = next(&node, &members, [3, 4]);
    try_publish(&node, &members, &changes).expect("published");
    assert!(seen(&store, Some("geheim"), NAMES) == pages([1, 3, 2, 4]));
}

#[test]
fn groups_are_listed_in_pages() {
    let (_store, node, group) = grouped(None);
    let listed = |after: Option<Id>, count: usize| {
        let bucket = node.bucket.clone();
        let listed = async move { bucket.groups_after(after, count).await };
        node.world.run(listed).expect("listed")
    };
    let all = listed(None, 10);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].id, all[0].name.as_str()), (group.id, "db"));
    assert!(all[0].members.iter().all(|it| it.root.is_some()));
    assert!(listed(Some(group.id), 10).is_empty());
    assert!(listed(None, 0).is_empty());
    let bucket = node.bucket.clone();
    let of = node.world.run(async move { bucket.group_of("log").await });
    assert_eq!(of.expect("readable").expect("a group"), all[0]);
}
