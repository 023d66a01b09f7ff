//! A new data key: new objects are sealed under it, old ones stay readable, whatever happens beside it.

use futures_util::future::join;

use super::super::compact::Patience;
use super::super::keys::Secret;
use super::super::name::object_key;
use super::super::root::KEYS_MAX;
use super::super::sealed;
use super::*;

fn renew(node: &Node, name: &'static str) -> Result<DataKeyView, VolumeError> {
    renew_for(node, name, node.nonce())
}

fn renew_for(node: &Node, name: &'static str, request: Id) -> Result<DataKeyView, VolumeError> {
    let bucket = node.bucket.clone();
    node.world
        .run(async move { bucket.renew_data_key(name, request).await })
}

fn new_key(node: &Node, volume: &Volume<TestWorld>) -> NewDataKey {
    key_for(volume, node.nonce())
}

fn key_for(volume: &Volume<TestWorld>, request: Id) -> NewDataKey {
    match volume.new_data_key(request) {
        Ok(Renewal::New(key)) => key,
        other => panic!("no new key: {other:?}"),
    }
}

/// A publish of these segments that brings a new key.
fn renewal(node: &Node, volume: &Volume<TestWorld>, segments: Vec<Uploaded>) -> Publish {
    let mut change = node.change(volume, segments);
    change.data_key = Some(new_key(node, volume));
    change
}

fn detach(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.cut = volume.root().cut;
    change.state = Some(VolumeState::Detached);
    node.try_publish(volume, &change).expect("detached");
}

fn keys_listed(volume: &Volume<TestWorld>) -> usize {
    volume.stored().root.volumes[0].keys.len()
}

/// By which of the volume's keys, by number, each object is sealed that its root names: those of the tail, then the
/// index of the map.
fn sealed_by(node: &Node, volume: &Volume<TestWorld>) -> Vec<usize> {
    let root = volume.stored().root;
    let prefix = node.bucket.prefix_keys().expect("sealed");
    let keys = root.volumes[0].keys.iter();
    let keys = keys.map(|key| prefix.unwrap(root.volume, key.id, &key.wrapped));
    let keys: Vec<Secret> = keys.map(|key| key.expect("ours")).collect();
    let tail = root
        .content
        .tail
        .iter()
        .map(|it| (Kind::Segment, it.object));
    let map = root.content.map.iter().map(|it| (Kind::MapIndex, *it));
    let number = |(kind, object): (Kind, ObjectRef)| {
        let name = object.name();
        let body = node
            .store
            .object(&object_key(&root.name, kind.folder(), name.epoch, name.id));
        let start = usize(u64::from(object.offset));
        let index = &body[start..start + usize(u64::from(object.stored))];
        let target = object.target(kind);
        let opens = |key: &Secret| sealed::open(&target, std::slice::from_ref(key), index).is_ok();
        keys.iter().position(opens).expect("one of them")
    };
    tail.chain(map).map(number).collect()
}

/// As a node sees it that knows nothing.
fn read_cold(store: &TestStore, name: &'static str, pages: u64) -> Vec<u8> {
    let there = Node::new(77, store, Some("x"));
    let volume = there.open(name).expect("opens");
    there.read(&volume, 0, pages)
}

fn pages(stamps: Range<u64>) -> Vec<u8> {
    stamps.flat_map(page).collect()
}

fn fork(node: &Node, child: &'static str, snapshot: Option<&str>) {
    let snapshot = snapshot.map(str::to_owned);
    let fork = Fork::new("a", snapshot, child, node.nonce(), node.nonce());
    let (bucket, fork) = (node.bucket.clone(), fork.expect("names"));
    let made = node.world.run(async move { bucket.fork(&fork).await });
    made.expect("forked");
}

#[test]
fn of_a_detached_volume_new_objects_have_the_new_key_and_old_ones_stay_readable() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let mut volume = node.create("a");
    node.sync(&volume, vec![data(0, &[0])]);
    let error = renew(&node, "a").expect_err("it is open");
    assert!(matches!(error, VolumeError::Owned { .. }), "{error}");
    assert!(error.to_string().contains("host-1"), "{error}");
    for round in 1..4 {
        detach(&node, &volume);
        let before = volume.root();
        let renewed = renew(&node, "a").expect("renewed");
        let root = node.open("a").expect("opens").root();
        assert_eq!(root.epoch.0, before.epoch.0 + 1);
        assert_eq!((root.cut, root.state), (before.cut, VolumeState::Detached));
        assert_eq!(renewed.from_epoch, root.epoch);
        assert_eq!(renewed.keys as u64, round + 1);
        assert_eq!(renewed.keys + renewed.left, KEYS_MAX);
        volume = node.own("a");
        node.sync(&volume, vec![data(round, &[round])]);
        let numbers: Vec<usize> = (0..=usize(round)).collect();
        assert_eq!(sealed_by(&node, &volume), numbers);
        assert!(read_cold(&store, "a", round + 1) == pages(0..round + 1));
    }
}

#[test]
fn an_open_volume_seals_under_the_new_key_from_the_publish_on_that_lists_it() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    node.sync(&volume, vec![data(0, &[0])]);
    let there = Node::new(2, &store, Some("x"));
    let (reader, before) = (there.open("a").expect("opens"), volume.root());

    // Uploaded, and not published, while the key is on its way.
    let change = renewal(&node, &volume, Vec::new());
    let early = node.upload(&volume, vec![data(1, &[1])]);
    let change = Publish {
        segments: vec![early],
        ..change
    };
    let root = node.try_publish(&volume, &change).expect("published");
    assert_eq!((root.epoch, root.owner), (before.epoch, before.owner));
    node.sync(&volume, vec![data(2, &[2])]);
    assert_eq!(sealed_by(&node, &volume), [0, 0, 1]);
    for cold in [false, true] {
        let read = match cold {
            false => node.read(&volume, 0, 3),
            true => read_cold(&store, "a", 3),
        };
        assert!(read == pages(0..3));
    }
    // A reader of before sees its cut.
    assert!(there.read(&reader, 0, 2) == [page(0), vec![0; 4096]].concat());

    // Killed, and started again: the root says it.
    let resumed = node.open("a").expect("opens");
    resumed
        .resume(&Node::owner(1), before.epoch)
        .expect("still ours");
    node.sync(&resumed, vec![data(3, &[3])]);
    let publish = renewal(&node, &resumed, Vec::new());
    node.try_publish(&resumed, &publish).expect("published");
    node.sync(&resumed, vec![data(4, &[4])]);
    assert_eq!(sealed_by(&node, &resumed), [0, 0, 1, 1, 2]);

    // What goes on in the next epoch begins with the newest.
    detach(&node, &resumed);
    let next = node.own("a");
    assert_eq!(next.root().epoch, before.epoch.next());
    node.sync(&next, vec![data(5, &[5])]);
    assert_eq!(sealed_by(&node, &next), [0, 0, 1, 1, 2, 2]);
    assert!(read_cold(&store, "a", 6) == pages(0..6));
}

#[test]
fn the_map_has_the_new_key_too_and_work_on_it_goes_on_over_the_change() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    let everything = Patience {
        tail_segments: 1,
        tail_extents: 1,
        level_runs: 1,
        upper_entries: 1,
        upper_share: u64::MAX,
    };
    for round in 0..20 {
        node.sync(&volume, vec![data(round * 2, &[round * 2, round * 2 + 1])]);
        // Both at once, in small steps.
        let change = renewal(&node, &volume, Vec::new());
        let (compacts, publishes) = (volume.clone(), volume.clone());
        let both = async move {
            let publishing = async {
                let published = publishes.publish(&change).await?;
                Ok::<_, VolumeError>(publishes.install(published))
            };
            let compacting = Box::pin(compacts.compact_beyond(everything));
            join(compacting, Box::pin(publishing)).await
        };
        let (compacted, published) = node.world.run(both);
        compacted.expect("compacted");
        published.expect("published");
        // Carries what was compacted.
        let root = node.sync(&volume, vec![data(1000, &[round])]);
        assert_eq!(root.epoch, Epoch(1));
        let newest = keys_listed(&volume) - 1;
        assert_eq!(sealed_by(&node, &volume).last(), Some(&newest));
        assert!(read_cold(&store, "a", round * 2 + 2) == pages(0..round * 2 + 2));
    }
    let audit = node.world.run({
        let volume = volume.clone();
        async move { volume.audit().await }
    });
    assert_eq!(audit.expect("audited").mistakes, Vec::<String>::new());
}

#[test]
fn a_fork_has_the_keys_of_all_that_it_shares_and_one_of_its_own() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    node.sync(&volume, vec![data(0, &[0])]);
    let mut change = renewal(&node, &volume, Vec::new());
    change.snapshots = vec![SnapshotChange::Take {
        id: Id([5; 16]),
        name: "s".to_owned(),
    }];
    node.try_publish(&volume, &change).expect("published");
    node.sync(&volume, vec![data(1, &[1])]);
    fork(&node, "live", None);
    fork(&node, "of-s", Some("s"));
    // The parent goes on, under a key that the forks know nothing of.
    let change = renewal(&node, &volume, Vec::new());
    node.try_publish(&volume, &change).expect("published");
    node.sync(&volume, vec![data(0, &[100])]);
    for (child, second) in [("live", page(1)), ("of-s", vec![0; 4096])] {
        let child_volume = node.own(child);
        let shared = [page(0), second].concat();
        assert!(node.read(&child_volume, 0, 2) == shared, "{child}");
        assert_eq!(keys_listed(&child_volume), 1, "{child}");
        let change = renewal(&node, &child_volume, Vec::new());
        node.try_publish(&child_volume, &change).expect("published");
        node.sync(&child_volume, vec![data(2, &[2])]);
        assert_eq!(keys_listed(&child_volume), 2, "{child}");
        assert!(
            read_cold(&store, child, 3) == [shared, page(2)].concat(),
            "{child}"
        );
    }
}

#[test]
fn a_lost_answer_renews_once_and_a_plain_volume_has_no_key() {
    use StoreErrorKind::{Conflict, Unknown};
    for fault in [
        Fault::After(Unknown),
        Fault::Before(Unknown),
        Fault::Late(Unknown),
        Fault::After(Conflict),
    ] {
        for open in [false, true] {
            let store = TestStore::default();
            let node = Node::new(1, &store, Some("x"));
            let mut volume = node.create("a");
            node.sync(&volume, vec![data(0, &[0])]);
            if open {
                let change = renewal(&node, &volume, Vec::new());
                store.fail("replace", [fault]);
                node.try_publish(&volume, &change).expect("published");
            } else {
                detach(&node, &volume);
                store.fail("replace", [fault]);
                renew(&node, "a").expect("renewed");
                volume = node.own("a");
            }
            assert_eq!(keys_listed(&volume), 2, "{fault:?} {open}");
            node.sync(&volume, vec![data(1, &[1])]);
            assert_eq!(sealed_by(&node, &volume), [0, 1], "{fault:?} {open}");
            assert!(read_cold(&store, "a", 2) == pages(0..2));
        }
    }
    let node = Node::new(1, &TestStore::default(), None);
    let volume = node.create("a");
    let asked = volume.new_data_key(node.nonce()).expect_err("plain");
    detach(&node, &volume);
    for error in [asked, renew(&node, "a").expect_err("plain")] {
        assert!(error.to_string().contains("not encrypted"), "{error}");
    }
}

#[test]
fn a_publish_that_is_unclear_for_long_brings_its_key_once_and_nothing_is_sealed_under_it_before() {
    for fault in [
        Fault::Before(StoreErrorKind::Retry),
        Fault::After(StoreErrorKind::Unknown),
    ] {
        let store = TestStore::default();
        let node = Node::new(1, &store, Some("x"));
        let volume = node.create("a");
        node.sync(&volume, vec![data(0, &[0])]);
        let segment = node.upload(&volume, vec![data(1, &[1])]);
        let change = renewal(&node, &volume, vec![segment]);
        store.fail("replace", vec![fault; 100]);
        store.fail("get", vec![Fault::Before(StoreErrorKind::Retry); 100]);
        let error = node.try_publish(&volume, &change).expect_err("an outage");
        assert!(matches!(error, VolumeError::Store(_)), "{error}");
        store.heal();
        // Whether it landed is not known.
        let between = node.upload(&volume, vec![data(2, &[2])]);
        node.try_publish(&volume, &change).expect("published");
        let change = node.change(&volume, vec![between]);
        node.try_publish(&volume, &change).expect("published");
        node.sync(&volume, vec![data(3, &[3])]);
        assert_eq!(sealed_by(&node, &volume), [0, 0, 0, 1], "{fault:?}");
        assert_eq!(keys_listed(&volume), 2, "{fault:?}");
        assert!(read_cold(&store, "a", 4) == pages(0..4));
    }
}

/// The process died, and its last publish takes effect under its successor.
#[test]
fn a_key_that_lands_late_is_found_and_used() {
    for late in [false, true] {
        let store = TestStore::default();
        let node = Node::new(1, &store, Some("x"));
        let volume = node.create("a");
        node.sync(&volume, vec![data(0, &[0])]);
        let request = node.nonce();
        let mut older = node.change(&volume, Vec::new());
        older.data_key = Some(key_for(&volume, request));
        let fault = match late {
            true => Fault::Late(StoreErrorKind::Unknown),
            false => Fault::After(StoreErrorKind::Unknown),
        };
        store.fail("replace", [fault]);
        store.fail("get", vec![Fault::Before(StoreErrorKind::Retry); 5]);
        node.try_publish(&volume, &older).expect_err("an outage");
        store.heal();
        // Of the time when the root did not list it: its owner asks for it again.
        let segment = node.upload(&volume, vec![data(1, &[1])]);
        let mut change = node.change(&volume, vec![segment]);
        change.cut = Seq(older.cut.0 + 5);
        change.ours = vec![older.nonce];
        change.data_key = Some(key_for(&volume, request));
        node.try_publish(&volume, &change).expect("published");
        assert_eq!(keys_listed(&volume), 2, "one for one request, {late}");
        let again = volume.new_data_key(request).expect("sealed");
        assert!(matches!(again, Renewal::Done(_)), "{again:?}");
        node.sync(&volume, vec![data(2, &[2])]);
        assert_eq!(sealed_by(&node, &volume), [0, 0, 1], "{late}");
        assert!(read_cold(&store, "a", 3) == pages(0..3));
    }
}

#[test]
fn the_same_request_is_one_key() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    let (first, second) = (node.nonce(), node.nonce());
    let mut change = node.change(&volume, Vec::new());
    change.data_key = Some(key_for(&volume, first));
    node.try_publish(&volume, &change).expect("published");
    let done = volume.new_data_key(first).expect("sealed");
    let Renewal::Done(view) = done else {
        panic!("{done:?}");
    };
    assert_eq!((view.keys, view.from_epoch), (2, Epoch(1)));
    // Found also where nobody has it open, and then it is open again.
    assert_eq!(renew_for(&node, "a", first).expect("there"), view);
    detach(&node, &volume);
    let other = renew_for(&node, "a", second).expect("renewed");
    assert_eq!(renew_for(&node, "a", second).expect("there"), other);
    assert!(other.id != view.id && other.keys == 3);
    // No id ever wraps two keys.
    let volume = node.own("a");
    let third = node.nonce();
    let (one, two) = (key_for(&volume, third), key_for(&volume, third));
    assert!(one != two && one.is_same(&two));
}

#[test]
fn at_the_bound_it_is_said_what_to_do_and_publishes_go_on() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    for number in 0..KEYS_MAX as u64 - 2 {
        node.sync(&volume, vec![data(number, &[number])]);
        let change = renewal(&node, &volume, Vec::new());
        node.try_publish(&volume, &change).expect("published");
    }
    // Two are made while there is room for one.
    let made = [
        renewal(&node, &volume, Vec::new()),
        renewal(&node, &volume, Vec::new()),
    ];
    for (number, mut change) in (KEYS_MAX as u64 - 2..).zip(made) {
        change.segments = vec![node.upload(&volume, vec![data(number, &[number])])];
        change.cut = volume.root().cut.next();
        node.try_publish(&volume, &change).expect("published");
        assert_eq!(keys_listed(&volume), KEYS_MAX);
    }
    node.sync(&volume, vec![data(64, &[64])]);
    assert!(
        read_cold(&store, "a", 65) == pages(0..65),
        "all of one epoch"
    );
    let open = volume.new_data_key(node.nonce()).expect_err("full");
    detach(&node, &volume);
    for error in [open, renew(&node, "a").expect_err("full")] {
        let error = error.to_string();
        for words in [
            "64 data keys",
            "glidefs fork a NEW",
            "glidefs gc run NEW --flatten",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    fork(&node, "b", None);
    let child = node.own("b");
    assert_eq!(keys_listed(&child), 1);
    assert!(node.read(&child, 0, 65) == pages(0..65));
    let change = renewal(&node, &child, Vec::new());
    node.try_publish(&child, &change).expect("published");
}
