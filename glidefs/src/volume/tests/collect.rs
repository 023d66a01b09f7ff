//! Garbage: what goes, what stays, and for whom.

use std::time::Duration;

use world::World;

use super::super::compact::Patience;
use super::super::name::object_key;
use super::super::pin::Pin;
use super::*;

const EVERYTHING: Patience = Patience {
    tail_segments: 1,
    tail_extents: 1,
    level_runs: 1,
    upper_entries: 40,
    upper_share: u64::MAX,
};

fn compact_all(node: &Node, volume: &Volume<TestWorld>) {
    let volume = volume.clone();
    let done = async move { volume.compact_beyond(EVERYTHING).await };
    node.world.run(done).expect("compacted");
}

fn collect(node: &Node, volume: &Volume<TestWorld>, deletes: Deletes) -> Collected {
    let volume = volume.clone();
    let done = async move { volume.collect(&Tidy::default(), deletes).await };
    node.world.run(done).expect("collected")
}

fn sweep(node: &Node, volume: &Volume<TestWorld>, scope: Scope) -> Swept {
    let volume = volume.clone();
    let done = async move { volume.sweep(scope, Deletes::Really).await };
    node.world.run(done).expect("swept")
}

fn audit(node: &Node, volume: &Volume<TestWorld>) -> Audit {
    let volume = volume.clone();
    let audit = node.world.run(async move { volume.audit().await });
    let audit = audit.expect("audited");
    assert_eq!(audit.mistakes, Vec::<String>::new());
    audit
}

fn take(node: &Node, volume: &Volume<TestWorld>, owner: u8, force: Option<Epoch>) {
    let (volume, nonce) = (volume.clone(), node.nonce());
    let take = async move { volume.take(&Node::owner(owner), nonce, force).await };
    node.world.run(take).expect("taken");
}

fn fork(node: &Node, child: &'static str, number: u8) {
    let fork = Fork::new("a", None, child, Id([number; 16]), Id([!number; 16]));
    let (bucket, fork) = (node.bucket.clone(), fork.expect("names"));
    let made = node.world.run(async move { bucket.fork(&fork).await });
    made.expect("forked");
}

fn stored(store: &TestStore) -> usize {
    let keys = store.keys().into_iter();
    let own = keys.filter(|key| key.starts_with("nbd/a/"));
    own.map(|key| store.object(&key).len()).sum()
}

/// Writes the same few pages again and again.
pub(super) fn overwrite(node: &Node, volume: &Volume<TestWorld>, rounds: u64, from: u64) {
    for round in from..from + rounds {
        let start = round * 7 % 50;
        let stamps: Vec<u64> = (0..20).map(|page| round * 100 + page).collect();
        node.sync(volume, vec![data(start, &stamps)]);
        compact_all(node, volume);
    }
}

#[test]
fn space_comes_back_and_what_is_needed_stays() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    let (mut peak, mut moved) = (0, 0);
    for round in 0..30 {
        overwrite(&node, &volume, 20, round * 20);
        // Carries what was compacted; the next one what is repacked.
        node.sync(&volume, vec![data(3, &[round])]);
        let again = volume.clone();
        let repacked = async move { again.repack(&Tidy::default().thorough()).await };
        moved += node.world.run(repacked).expect("repacked").moved_bytes;
        node.sync(&volume, vec![data(4, &[round])]);
        let seen = collect(&node, &volume, Deletes::Not);
        let keys = store.keys().len();
        let done = collect(&node, &volume, Deletes::Really);
        assert_eq!(seen, done);
        assert_eq!(
            store.keys().len() as u64 + done.deleted_objects,
            keys as u64,
            "as many as it says"
        );
        peak = peak.max(stored(&store));
        let audit = audit(&node, &volume);
        let there: BTreeSet<String> = store.keys().into_iter().collect();
        assert!(audit.needed.is_subset(&there));
    }
    assert!(!volume.inner.state.borrow().map.ledger.chunks.is_empty());
    assert!(moved > 0);
    // 70 pages of 4 KiB that do not compress are live. A pass moves 64 at most.
    assert!(peak < 4 * 70 * 4096, "{peak} bytes for 70 pages");
}

#[test]
fn a_fork_keeps_what_it_needs_and_nothing_newer() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    overwrite(&node, &volume, 30, 0);
    let before = node.read(&volume, 0, 70);
    fork(&node, "child", 7);
    overwrite(&node, &volume, 300, 30);
    let first = collect(&node, &volume, Deletes::Really);
    assert!(
        first.held_objects > 0 && first.deleted_objects > first.held_objects,
        "{first:?}"
    );
    let child = node.open("child").expect("opens");
    assert!(node.read(&child, 0, 70) == before);
    // Nobody needs the pin of a child whose name another volume has.
    store.remove("nbd/child/root");
    node.create("child");
    let second = collect(&node, &volume, Deletes::Really);
    assert_eq!(
        second.deleted_objects, 0,
        "what was learned of a pin is kept"
    );
    let volume = node.open("a").expect("opens");
    take(&node, &volume, 1, None);
    let third = collect(&node, &volume, Deletes::Really);
    assert!(third.blocked_by.is_some(), "{third:?}");
    let fourth = collect(&node, &volume, Deletes::Really);
    assert_eq!((fourth.blocked_by, fourth.held_objects), (None, 0));
    assert!(fourth.deleted_objects > 0);
    audit(&node, &volume);
}

#[test]
fn a_pin_without_a_child_blocks_until_its_child_is_burned() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    overwrite(&node, &volume, 100, 0);
    let pin = Pin {
        child: [5; 16],
        name: "late".to_owned(),
        cut: None,
        over: None,
        reader: None,
    };
    store.set(&pin.key("a"), Bytes::from(pin.encode(None)));
    let blocked = || {
        let collected = collect(&node, &volume, Deletes::Really);
        assert_eq!(collected.deleted_objects, 0);
        collected.blocked_by.expect("blocked")
    };
    assert_eq!(blocked(), pin.key("a"));
    assert!(!store.keys().contains(&"nbd/late/root".to_owned()));
    let world = node.world.clone();
    node.world
        .run(async move { world.sleep(Duration::from_secs(3600)).await });
    // Burned, unpinned, free.
    blocked();
    assert!(store.keys().contains(&"nbd/late/root".to_owned()));
    blocked();
    assert!(!store.keys().contains(&pin.key("a")));
    let collected = collect(&node, &volume, Deletes::Really);
    assert!(collected.deleted_objects > 0);
    let late = Fork::new("a", None, "late", Id([5; 16]), Id([6; 16])).expect("names");
    let bucket = node.bucket.clone();
    let late = node.world.run(async move { bucket.fork(&late).await });
    late.expect_err("its child is burned");
}

#[test]
fn what_is_under_way_is_not_swept_and_what_the_dead_left_is() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    overwrite(&node, &volume, 40, 0);
    let upload = node.upload(&volume, vec![data(3, &[9_999])]);
    let key = object_key("a", "seg", Epoch(1), Id(upload.reference.id));
    let is_there = || store.keys().contains(&key);
    sweep(&node, &volume, Scope::All);
    assert!(is_there(), "it may be published yet");
    // Another node may look; it does not know.
    let there = Node::new(2, &store, Some("x"));
    sweep(&there, &there.open("a").expect("opens"), Scope::All);
    assert!(is_there());
    // The same owner after a crash, which cannot know before its first publish.
    let again = node.open("a").expect("opens");
    again.resume(&Node::owner(1), Epoch(1)).expect("ours");
    sweep(&node, &again, Scope::All);
    assert!(is_there());
    assert_eq!(
        collect(&node, &again, Deletes::Really),
        Collected::default()
    );
    node.sync(&again, vec![data(4, &[1])]);
    sweep(&node, &again, Scope::Epoch(Epoch(1)));
    assert!(!is_there());
    // Of an epoch that is over, anybody.
    let upload = node.upload(&again, vec![data(3, &[9_999])]);
    let key = object_key("a", "seg", Epoch(1), Id(upload.reference.id));
    let taker = there.open("a").expect("opens");
    take(&there, &taker, 2, Some(Epoch(1)));
    let third = Node::new(3, &store, Some("x"));
    sweep(&third, &third.open("a").expect("opens"), Scope::All);
    assert!(!store.keys().contains(&key));
    audit(&there, &taker);
    assert!(there.read(&taker, 4, 1) == page(1));
}

#[test]
fn a_volume_restored_over_a_lost_map_is_never_swept() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    overwrite(&node, &volume, 40, 0);
    let mut change = node.change(&volume, Vec::new());
    let id = Id([1; 16]);
    let name = "s".to_owned();
    change.snapshots = vec![SnapshotChange::Take { id, name }];
    node.try_publish(&volume, &change).expect("published");
    let before = node.read(&volume, 0, 70);
    overwrite(&node, &volume, 40, 40);
    let mut detach = node.change(&volume, Vec::new());
    detach.state = Some(VolumeState::Detached);
    node.try_publish(&volume, &detach).expect("detached");
    let map = volume
        .inner
        .state
        .borrow()
        .stored
        .root
        .content
        .map
        .expect("a map");
    store.remove(&object_key("a", "map", Epoch(map.epoch), Id(map.id)));
    let wanted = Restore {
        snapshot: "s".to_owned(),
        id: Id([2; 16]),
        before: "lost".to_owned(),
    };
    let bucket = node.bucket.clone();
    let restored = node
        .world
        .run(async move { bucket.restore("a", &wanted).await });
    restored.expect("restored");
    let volume = node.open("a").expect("opens");
    take(&node, &volume, 1, None);
    assert!(node.read(&volume, 0, 70) == before);
    let swept = sweep(&node, &volume, Scope::All);
    assert_eq!(swept.kept_all, Some(KeptAll::HasGaps));
    assert_eq!(swept.deleted_objects, 0);
    overwrite(&node, &volume, 40, 80);
    collect(&node, &volume, Deletes::Really);
    audit(&node, &volume);
}

#[test]
fn what_a_reader_reads_stays_until_it_lets_go_or_is_gone_for_days() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    overwrite(&node, &volume, 30, 0);
    let there = Node::new(2, &store, Some("x"));
    let late = there.open("a").expect("opens");
    let before = node.read(&volume, 0, 70);
    let pin_of = |volume: &Volume<TestWorld>| {
        let volume = volume.clone();
        let pinned = async move { volume.pin_to_read("host-2").await };
        there.world.run(pinned).expect("the store answers")
    };
    let reader = there.open("a").expect("opens");
    let pin = pin_of(&reader).expect("nothing has changed");
    overwrite(&node, &volume, 300, 30);
    collect(&node, &volume, Deletes::Really);
    assert!(there.read(&reader, 0, 70) == before);
    assert!(pin_of(&late).is_none(), "what it read is not held");
    let lets_go = async move { pin.release().await };
    there.world.run(lets_go).expect("released");
    overwrite(&node, &volume, 40, 330);
    let free = collect(&node, &volume, Deletes::Really);
    assert_eq!((free.held_objects, free.blocked_by), (0, None));

    let reader = there.open("a").expect("opens");
    let forgotten = pin_of(&reader).expect("nothing has changed");
    overwrite(&node, &volume, 40, 370);
    assert!(collect(&node, &volume, Deletes::Really).held_objects > 0);
    let world = node.world.clone();
    node.world
        .run(async move { world.sleep(Duration::from_secs(8 * 24 * 3600)).await });
    assert_eq!(collect(&node, &volume, Deletes::Really).held_objects, 0);
    drop(forgotten);
    audit(&node, &volume);
}

#[test]
fn a_list_of_pins_that_does_not_show_what_was_just_put_is_not_believed() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    overwrite(&node, &volume, 30, 0);
    let before = node.read(&volume, 0, 70);
    fork(&node, "child", 7);
    overwrite(&node, &volume, 100, 30);
    store.flawed(Flaw::ListsLate);
    let collected = collect(&node, &volume, Deletes::Really);
    assert_eq!(collected.deleted_objects, 0);
    assert!(
        collected
            .blocked_by
            .is_some_and(|key| key.contains("/pins/~"))
    );
    store.sound();
    assert!(node.read(&node.open("child").expect("opens"), 0, 70) == before);
    assert!(collect(&node, &volume, Deletes::Really).deleted_objects > 0);
    assert!(
        !store.keys().iter().any(|key| key.contains('~')),
        "no marker stays"
    );
    assert!(node.read(&node.open("child").expect("opens"), 0, 70) == before);
}

fn discard(node: &Node, volume: &Volume<TestWorld>) {
    let volume = volume.clone();
    let done = async move { volume.discard_fresh().await };
    node.world.run(done).expect("discarded");
}

/// The root that lands names another map index than the one that the repeated publish had planned.
#[test]
fn what_a_publish_named_whose_answer_was_lost_is_not_discarded() {
    use StoreErrorKind::{Retry, Unknown};
    for is_detach in [false, true] {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        let volume = node.create("a");
        overwrite(&node, &volume, 30, 0);
        let before = node.read(&volume, 0, 70);
        assert!(volume.has_edits(), "the publish carries work on the map");
        let mut change = node.change(&volume, Vec::new());
        change.state = is_detach.then_some(VolumeState::Detached);
        store.fail("replace", [Fault::After(Unknown)]);
        store.fail("get", vec![Fault::Before(Retry); 5]);
        node.try_publish(&volume, &change).expect_err("an outage");
        store.heal();
        node.try_publish(&volume, &change).expect("it has landed");
        if !is_detach {
            let mut detach = node.change(&volume, Vec::new());
            detach.state = Some(VolumeState::Detached);
            node.try_publish(&volume, &detach).expect("detached");
        }
        discard(&node, &volume);
        let again = node.open("a").expect("opens");
        assert!(node.read(&again, 0, 70) == before);
        let audit = audit(&node, &again);
        let there: BTreeSet<String> = store.keys().into_iter().collect();
        assert!(audit.needed.is_subset(&there));
    }
}

#[test]
fn a_publish_changes_the_version_by_which_readers_look_again() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    let before = volume.version();
    node.sync(&volume, vec![data(3, &[1])]);
    assert!(volume.version() > before);
}

#[test]
fn a_blocked_round_or_a_look_does_not_hide_what_could_be_deleted() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    overwrite(&node, &volume, 100, 0);
    let dead = collect(&node, &volume, Deletes::Not);
    assert!(dead.deleted_objects > 0);
    let tidy = Tidy {
        dead_objects: 1,
        waste_bytes: u64::MAX,
        ..Tidy::default()
    };
    let tidied = volume.clone();
    let tidied = node.world.run(async move { tidied.tidy(&tidy).await });
    assert!(tidied.expect("tidied").collected.deleted_objects > 0);
}

/// A chunk of the ledger is gone, or does not decode.
#[test]
fn a_lost_part_of_the_ledger_costs_space_and_nothing_else() {
    for is_damaged in [false, true] {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        let volume = node.create("a");
        overwrite(&node, &volume, 60, 0);
        node.sync(&volume, vec![data(3, &[1])]);
        let chunks = volume.inner.state.borrow().map.ledger.chunks.clone();
        assert!(!chunks.is_empty());
        for chunk in chunks {
            let object = chunk.object.name();
            let key = object_key("a", "map", object.epoch, object.id);
            assert!(store.keys().contains(&key));
            if is_damaged {
                store.set(&key, Bytes::from_static(b"not a chunk"));
            } else {
                store.remove(&key);
            }
        }
        let mut snapshot = node.change(&volume, Vec::new());
        snapshot.snapshots = vec![SnapshotChange::Take {
            id: Id([9; 16]),
            name: "s".to_owned(),
        }];
        node.try_publish(&volume, &snapshot).expect("published");
        let before = node.read(&volume, 0, 70);
        overwrite(&node, &volume, 60, 60);
        let after = node.read(&volume, 0, 70);
        assert!(volume.inner.state.borrow().map.ledger.has_gaps);
        collect(&node, &volume, Deletes::Really);
        let swept = sweep(&node, &volume, Scope::All);
        assert_eq!(swept.kept_all, Some(KeptAll::HasGaps));
        let again = volume.clone();
        let repacked = async move { again.repack(&Tidy::default().thorough()).await };
        node.world.run(repacked).expect("repacked");
        node.sync(&volume, vec![data(69, &[1])]);
        collect(&node, &volume, Deletes::Really);
        assert!(node.read(&volume, 0, 69) == after[..69 * 4096]);
        let mut detach = node.change(&volume, Vec::new());
        detach.state = Some(VolumeState::Detached);
        node.try_publish(&volume, &detach).expect("detached");
        let restore = Restore {
            snapshot: "s".to_owned(),
            id: Id([8; 16]),
            before: "before".to_owned(),
        };
        let bucket = node.bucket.clone();
        let restored = node
            .world
            .run(async move { bucket.restore("a", &restore).await });
        restored.expect("restored");
        let restored = node.open("a").expect("opens");
        assert!(node.read(&restored, 0, 70) == before);
        take(&node, &restored, 1, None);
        overwrite(&node, &restored, 30, 200);
        collect(&node, &restored, Deletes::Really);
        assert!(node.read(&node.open("a").expect("opens"), 0, 70) == node.read(&restored, 0, 70));
    }
}
