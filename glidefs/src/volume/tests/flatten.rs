//! Forks that become flat: what is copied, who holds what they named before, and what a chain costs.

use std::time::Duration;

use super::super::flatten::Flattened;
use super::super::name::VolumeName;
use super::super::purge::Purged;
use super::super::reading::ReadPin;
use super::super::root::Root;
use super::*;

fn fork(node: &Node, parent: &str, snapshot: Option<&str>, child: &str) {
    let snapshot = snapshot.map(str::to_owned);
    let [id, nonce] = [node.nonce(), node.nonce()];
    let fork = Fork::new(parent, snapshot, child, id, nonce).expect("names");
    let bucket = node.bucket.clone();
    let made = node.world.run(async move { bucket.fork(&fork).await });
    made.expect("forked");
}

fn root_of(node: &Node, name: &str) -> Root {
    let bucket = node.bucket.clone();
    let name = VolumeName::parse(name).expect("a name");
    let root = node.world.run(async move { bucket.read_root(&name).await });
    root.expect("read").expect("there").root
}

fn chain_of(node: &Node, name: &str) -> Vec<String> {
    let root = root_of(node, name);
    root.volumes.into_iter().map(|it| it.name).collect()
}

fn tidy() -> Tidy {
    Tidy {
        blocked_wait: Duration::ZERO,
        ..Tidy::default()
    }
}

/// A publish that brings nothing but finished work.
fn carry(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.cut = volume.root().cut;
    node.try_publish(volume, &change).expect("published");
}

fn pass(node: &Node, volume: &Volume<TestWorld>, keep: usize) -> Flattened {
    let flat = volume.clone();
    let done = async move { flat.flatten(keep, &tidy()).await };
    let done = node.world.run(done).expect("a pass");
    if volume.has_edits() {
        carry(node, volume);
    }
    done
}

/// Passes until nothing goes on; returns how many, and what the last one said.
fn flatten(node: &Node, volume: &Volume<TestWorld>) -> (u32, Flattened) {
    for passes in 1..1000 {
        let done = pass(node, volume, 0);
        if !done.goes_on {
            return (passes, done);
        }
    }
    panic!("it does not come to an end");
}

fn pins(store: &TestStore, of: &str) -> usize {
    let folder = format!("nbd/{of}/pins/");
    let keys = store.keys();
    keys.iter().filter(|key| key.starts_with(&folder)).count()
}

fn detach(node: &Node, volume: &Volume<TestWorld>) {
    let mut change = node.change(volume, Vec::new());
    change.state = Some(VolumeState::Detached);
    node.try_publish(volume, &change).expect("detached");
}

fn purge(node: &Node, name: &'static str) -> Vec<Purged> {
    let volume = Id(root_of(node, name).volume);
    let bucket = node.bucket.clone();
    let done = node.world.run(async move {
        Box::pin(bucket.entomb(name, volume)).await?;
        bucket.bury(name, &|_| {}).await
    });
    done.expect("buried")
}

fn snapshot(node: &Node, volume: &Volume<TestWorld>, change: SnapshotChange) {
    let mut publish = node.change(volume, Vec::new());
    publish.cut = volume.root().cut;
    publish.snapshots = vec![change];
    node.try_publish(volume, &publish).expect("published");
}

fn pin_to_read(node: &Node, volume: &Volume<TestWorld>) -> ReadPin<TestWorld> {
    let volume = volume.clone();
    let pin = async move { volume.pin_to_read("host").await };
    node.world.run(pin).expect("pinned").expect("still named")
}

const PAGES: u64 = 400;

/// Three generations that each wrote a part of 400 pages, more than a pass moves, in many segments.
fn generations(node: &Node) -> (Volume<TestWorld>, Vec<u64>) {
    let mut stamps = vec![0; usize(PAGES)];
    let mut last = None;
    for (generation, name) in (1..).zip(["a", "b", "c"]) {
        let volume = match generation {
            1 => node.create(name),
            _ => node.own(name),
        };
        for step in 0..40 {
            let mut frames = Vec::new();
            for at in (step * 10..(step + 1) * 10).filter(|at| at % generation == 0) {
                stamps[usize(at)] = generation * 1000 + at;
                frames.push(data(at, &[generation * 1000 + at]));
            }
            node.sync(&volume, frames);
            node.compact(&volume);
        }
        if let Some(child) = ["b", "c"].get(usize(generation - 1)) {
            fork(node, name, None, child);
        }
        last = Some(volume);
    }
    (last.expect("three"), stamps)
}

fn all(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| page(*stamp)).collect()
}

#[test]
fn a_flat_fork_needs_nothing_of_those_that_it_came_from() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let node = Node::new(1, &store, password);
        let (volume, mut stamps) = generations(&node);
        assert_eq!(chain_of(&node, "c"), ["c", "b", "a"]);
        let mut moved = 0;
        for step in 0.. {
            // Clients write meanwhile, also where it was and where it will be.
            let at = step * 37 % PAGES;
            stamps[usize(at)] = 9000 + step;
            node.sync(&volume, vec![data(at, &[9000 + step])]);
            let done = pass(&node, &volume, 0);
            moved += done.moved_bytes;
            assert!(
                node.read(&volume, 0, PAGES) == all(&stamps),
                "at step {step}"
            );
            if !done.goes_on {
                assert_eq!((done.needs.len(), done.held_by), (0, None));
                break;
            }
        }
        assert!(moved > PAGE * PAGES / 4, "{moved} bytes moved");
        assert_eq!(chain_of(&node, "c"), ["c"]);
        assert_eq!((pins(&store, "a"), pins(&store, "b")), (1, 0));
        for name in ["a", "b"] {
            detach(&node, &node.own(name));
        }
        // Both go as a whole, under a fork that lives.
        let gone = purge(&node, "b");
        assert_eq!(gone[0].held_by, None);
        assert_eq!(purge(&node, "a")[0].held_by, None);
        for name in ["a", "b"] {
            let prefix = format!("nbd/{name}/");
            let keys = store.keys();
            let left: Vec<_> = keys.iter().filter(|it| it.starts_with(&prefix)).collect();
            assert_eq!(left, [&format!("{prefix}root")]);
        }
        let there = Node::new(2, &store, password);
        let read = there.read(&there.open("c").expect("opens"), 0, PAGES);
        assert!(read == all(&stamps));
        let audit = {
            let volume = volume.clone();
            node.world.run(async move { volume.audit().await })
        };
        let mistakes = audit.expect("audited").mistakes;
        assert_eq!(mistakes, Vec::<String>::new(), "what it copied is counted");
    }
}

#[test]
fn snapshots_and_readers_of_before_hold_what_they_name() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("geheim"));
    let (volume, stamps) = generations(&node);
    let id = Id([7; 16]);
    let name = "before".to_owned();
    snapshot(&node, &volume, SnapshotChange::Take { id, name });
    let reader = Node::new(2, &store, Some("geheim"));
    let read = reader.open("c").expect("opens");
    let pin = pin_to_read(&reader, &read);
    node.sync(&volume, vec![data(5, &[5])]);

    let (_, held) = flatten(&node, &volume);
    assert_eq!(held.needs, ["b", "a"]);
    let by = held.held_by.expect("held");
    assert!(by.contains("before"), "{by}");
    assert_eq!(chain_of(&node, "c"), ["c", "b", "a"]);
    assert_eq!((pins(&store, "a"), pins(&store, "b")), (2, 1));
    // A fork of now needs no pin but its own; one of the snapshot needs all of them.
    fork(&node, "c", None, "now");
    assert_eq!(chain_of(&node, "now"), ["now", "c"]);
    fork(&node, "c", Some("before"), "then");
    assert_eq!(chain_of(&node, "then"), ["then", "c", "b", "a"]);
    assert!(reader.read(&reader.open("then").expect("opens"), 0, PAGES) == all(&stamps));
    assert!(reader.read(&reader.open("now").expect("opens"), 5, 1) == page(5));

    snapshot(&node, &volume, SnapshotChange::Drop { id });
    let (_, held) = flatten(&node, &volume);
    let by = held.held_by.expect("held");
    assert!(by.contains("reader"), "{by}");
    assert!(reader.read(&read, 0, PAGES) == all(&stamps));
    reader.world.run(pin.release()).expect("released");

    let (_, flat) = flatten(&node, &volume);
    assert_eq!((flat.needs.len(), flat.held_by), (0, None));
    assert_eq!(chain_of(&node, "c"), ["c"]);
    // Those of `b` itself, and of the fork of the snapshot.
    assert_eq!((pins(&store, "a"), pins(&store, "b")), (2, 1));
    assert!(reader.read(&reader.open("then").expect("opens"), 0, PAGES) == all(&stamps));
}

#[test]
fn a_restored_snapshot_of_before_is_named_again() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let (volume, stamps) = generations(&node);
    let id = Id([7; 16]);
    let name = "before".to_owned();
    snapshot(&node, &volume, SnapshotChange::Take { id, name });
    node.sync(&volume, vec![data(5, &[5])]);
    flatten(&node, &volume);
    detach(&node, &volume);
    let bucket = node.bucket.clone();
    let wanted = Restore {
        snapshot: "before".to_owned(),
        id: Id([8; 16]),
        before: "after".to_owned(),
    };
    let restored = node
        .world
        .run(async move { bucket.restore("c", &wanted).await });
    restored.expect("restored");
    let volume = node.own("c");
    for (id, number) in [(Id([7; 16]), 1), (Id([8; 16]), 2)] {
        snapshot(&node, &volume, SnapshotChange::Drop { id });
        assert_eq!(chain_of(&node, "c").len(), 3, "{number} dropped");
    }
    node.sync(&volume, vec![data(6, &[6])]);
    let (_, flat) = flatten(&node, &volume);
    assert_eq!(flat.needs.len(), 0);
    let mut stamps = stamps;
    stamps[6] = 6;
    assert!(node.read(&node.open("c").expect("opens"), 0, PAGES) == all(&stamps));
}

#[test]
fn a_long_chain_is_shortened_beside_other_work_and_the_largest_parts_stay() {
    const NAMES: [&str; 12] = [
        "g0", "g1", "g2", "g3", "g4", "g5", "g6", "g7", "g8", "g9", "ga", "gb",
    ];
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let base = node.create("g0");
    for step in 0..30 {
        node.sync(&base, vec![data(step * 10, &[step + 1; 10])]);
    }
    let mut last = base;
    for (number, pair) in (1_u64..).zip(NAMES.windows(2)) {
        fork(&node, pair[0], None, pair[1]);
        last = node.own(pair[1]);
        node.sync(&last, vec![data(number, &[1000 + number])]);
    }
    assert_eq!(chain_of(&node, "gb").len(), 12);
    for step in 0..100 {
        let volume = last.clone();
        let done = async move { volume.tidy(&tidy()).await };
        node.world.run(done).expect("tidied");
        node.sync(&last, vec![data(1000 + step, &[step])]);
    }
    let chain = chain_of(&node, "gb");
    assert_eq!(chain.len(), 5, "{chain:?}");
    assert!(chain.contains(&"g0".to_owned()), "{chain:?}");
    let expected: Vec<u8> = (1..12).flat_map(|number| page(1000 + number)).collect();
    let there = Node::new(2, &store, None);
    let read = there.open("gb").expect("opens");
    assert!(there.read(&read, 1, 11) == expected);
    assert!(there.read(&read, 299, 1) == page(30));
    // What was let go of has no pin of it any more.
    let id = Id(root_of(&node, "gb").volume);
    for name in NAMES {
        let pinned = store.keys().contains(&format!("nbd/{name}/pins/{id}"));
        let is_named = name != "gb" && chain.contains(&name.to_owned());
        assert_eq!(pinned, is_named, "{name}");
    }
}

/// Whatever fails in between, the data is there, and it comes to an end.
#[test]
fn a_flattening_that_fails_anywhere_goes_on_later() {
    for operation in ["create", "get", "replace", "delete", "list"] {
        for after in 0..12 {
            let store = TestStore::default();
            let node = Node::new(1, &store, None);
            let (volume, stamps) = generations(&node);
            store.fail_after(
                operation,
                after * 3,
                [Fault::Before(StoreErrorKind::Refused)],
            );
            let mut failed = 0;
            loop {
                let flat = volume.clone();
                let done = node
                    .world
                    .run(async move { flat.flatten(0, &tidy()).await });
                if volume.has_edits() {
                    let mut change = node.change(&volume, Vec::new());
                    change.cut = volume.root().cut;
                    failed += u32::from(node.try_publish(&volume, &change).is_err());
                }
                match done {
                    Ok(done) if !done.goes_on => break,
                    Ok(_) => {}
                    Err(_) => failed += 1,
                }
                assert!(failed < 20, "{operation} {after}");
            }
            store.heal();
            assert_eq!(chain_of(&node, "c"), ["c"], "{operation} {after}");
            let there = Node::new(2, &store, None);
            let read = there.read(&there.open("c").expect("opens"), 0, PAGES);
            assert!(read == all(&stamps), "{operation} {after}");
        }
    }
}

/// Else each try would leave half a gigabyte that nothing names.
#[test]
fn a_pass_that_fails_half_way_keeps_what_it_moved() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let (volume, stamps) = generations(&node);
    let flat = volume.clone();
    let done = node
        .world
        .run(async move { flat.flatten(0, &tidy()).await });
    assert!(done.expect("a pass").goes_on);
    carry(&node, &volume);
    let uploads = || {
        let keys = store.keys();
        let own = keys.iter().filter(|it| it.starts_with("nbd/c/seg/"));
        own.count()
    };
    // The second segment of this pass is not taken.
    let before = uploads();
    store.fail_after("create", 1, [Fault::Before(StoreErrorKind::Refused)]);
    let flat = volume.clone();
    let failed = node
        .world
        .run(async move { flat.flatten(0, &tidy()).await });
    failed.expect_err("refused");
    store.heal();
    assert!(uploads() > before, "the test is blind");
    assert!(volume.has_edits(), "what was moved counts");
    carry(&node, &volume);
    let (_, flat) = flatten(&node, &volume);
    assert_eq!(flat.needs.len(), 0);
    assert!(node.read(&volume, 0, PAGES) == all(&stamps));
    let named = {
        let volume = volume.clone();
        node.world.run(async move { volume.audit().await })
    };
    let named = named.expect("audited");
    for key in store
        .keys()
        .iter()
        .filter(|it| it.starts_with("nbd/c/seg/"))
    {
        let is_known = named.needed.contains(key) || named.dead.contains(key);
        assert!(is_known, "{key} is nobody's");
    }
}

/// What was moved is named by nobody if the merge behind it fails; the next try moves it anew.
#[test]
fn a_pass_whose_merge_fails_gives_back_what_it_moved() {
    let (mut given_back, mut created) = (0, 0);
    for good in 0.. {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        let (volume, stamps) = generations(&node);
        // What it shares of a tail is folded first.
        assert!(pass(&node, &volume, 0).goes_on);
        let own = || {
            let keys = store.keys().into_iter();
            let own = keys.filter(|key| key.starts_with("nbd/c/"));
            own.collect::<Vec<String>>()
        };
        let before = own();
        store.fail_after("create", good, [Fault::Before(StoreErrorKind::Refused)]);
        let flat = volume.clone();
        let done = async move { flat.flatten(0, &tidy()).await };
        if node.world.run(done).is_ok() {
            // It creates no more than that.
            created = good;
            break;
        }
        store.heal();
        if !volume.has_edits() {
            assert_eq!(
                own(),
                before,
                "{good} were created, and then one was refused"
            );
            given_back += u32::from(good > 0);
        }
        carry(&node, &volume);
        let (_, flat) = flatten(&node, &volume);
        assert_eq!(flat.needs.len(), 0);
        assert!(node.read(&volume, 0, PAGES) == all(&stamps));
    }
    assert!(given_back > 0 && created > 2, "{given_back} of {created}");
}

#[test]
fn a_parent_that_was_purged_goes_with_the_last_fork_that_became_flat() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let (volume, stamps) = generations(&node);
    for name in ["a", "b"] {
        detach(&node, &node.own(name));
        assert!(purge(&node, name)[0].held_by.is_some());
    }
    flatten(&node, &volume);
    for name in ["a", "b"] {
        let prefix = format!("nbd/{name}/");
        let keys = store.keys();
        let left: Vec<_> = keys.iter().filter(|it| it.starts_with(&prefix)).collect();
        assert_eq!(left, [&format!("{prefix}root")]);
    }
    assert!(node.read(&node.open("c").expect("opens"), 0, PAGES) == all(&stamps));
}
