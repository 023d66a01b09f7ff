//! Passwords come and go: one compare-and-swap of the keyring, and no slot is lost on the way.

use super::*;
use zeroize::Zeroizing;

fn text(password: &str) -> Zeroizing<String> {
    Zeroizing::new(password.to_owned())
}

fn add(password: &str) -> KeyChange {
    KeyChange::Add {
        password: text(password),
    }
}

fn rotate(password: &str) -> KeyChange {
    KeyChange::Rotate {
        password: text(password),
    }
}

fn remove(slot: Id) -> KeyChange {
    KeyChange::Remove {
        slot: slot.to_string(),
        in_use: InUse::Keep,
    }
}

async fn changing(
    world: TestWorld,
    store: TestStore,
    password: Zeroizing<String>,
    change: KeyChange,
) -> Result<Changed, VolumeError> {
    Keyslots::change(&world, &store, password, change, KeyringCost::LEAST).await
}

fn try_change(
    seed: u64,
    store: &TestStore,
    password: &str,
    change: KeyChange,
) -> Result<Changed, VolumeError> {
    let world = TestWorld::new(seed);
    world.run(changing(
        world.clone(),
        store.clone(),
        text(password),
        change,
    ))
}

fn change(seed: u64, store: &TestStore, password: &str, change: KeyChange) -> Changed {
    try_change(seed, store, password, change).expect("changed")
}

fn slots(store: &TestStore, password: &str) -> Keyslots {
    let world = TestWorld::new(77);
    let (store, password) = (store.clone(), text(password));
    let inner = world.clone();
    let read = world.run(async move { Keyslots::read(&inner, &store, Some(password)).await });
    read.expect("read")
}

fn opens(store: &TestStore, password: &str) -> bool {
    match Node::with(99, store, config(Some(password))) {
        Ok(node) => {
            node.open("a").expect("the same keys");
            true
        }
        Err(VolumeError::Key(_) | VolumeError::Password(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A prefix with volume `a`, and the node that runs all the time.
fn begun() -> (TestStore, Node, Volume<TestWorld>) {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("old"));
    let volume = node.create("a");
    node.sync(&volume, vec![data(0, &[1])]);
    (store, node, volume)
}

#[test]
fn a_password_is_changed_while_nodes_run() {
    let (store, node, volume) = begun();
    let old = slots(&store, "old").in_use.expect("one slot");
    let added = change(2, &store, "old", rotate("new"));
    let new = added.added.expect("a slot");
    assert!(added.removed.is_empty() && added.now.slots.len() == 2);
    assert_eq!(added.now.in_use, Some(old));
    assert!(new.added.is_some(), "a person sees when");
    assert!(opens(&store, "old") && opens(&store, "new"), "grace time");

    // Not before this configuration has the new one.
    let early = try_change(3, &store, "old", KeyChange::Finish).expect_err("too early");
    assert!(early.to_string().contains("not the newest"), "{early}");
    let done = change(4, &store, "new", KeyChange::Finish);
    assert_eq!(
        done.removed.iter().map(|slot| slot.id).collect::<Vec<_>>(),
        [old]
    );
    assert_eq!((done.now.slots.len(), done.now.in_use), (1, Some(new.id)));
    assert!(!opens(&store, "old") && opens(&store, "new"));

    // The node that was never restarted notices nothing.
    node.sync(&volume, vec![data(1, &[2])]);
    let there = Node::new(5, &store, Some("new"));
    let other = there.open("a").expect("opens");
    assert!(there.read(&other, 0, 2) == [page(1), page(2)].concat());
    let refused = Node::with(6, &store, config(Some("old"))).expect_err("removed");
    let refused = refused.to_string();
    for words in [
        "wrong password",
        "removed by `glidefs key`",
        "set the current password",
        "(added 20",
    ] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[test]
fn the_same_again_changes_nothing() {
    let (store, ..) = begun();
    change(2, &store, "old", rotate("new"));
    let before = store.object("keyring");
    for wish in [add("new"), rotate("new")] {
        let again = change(3, &store, "old", wish);
        assert!(again.added.is_none() && again.now.slots.len() == 2);
    }
    // It would go with the end of the rotation, so it is not "there already".
    for node in [(4, "new"), (5, "old")] {
        let ends = try_change(node.0, &store, node.1, add("old")).expect_err("it ends");
        assert!(ends.to_string().contains("--finish"), "{ends}");
    }
    assert_eq!(store.object("keyring"), before);
    change(5, &store, "new", KeyChange::Finish);
    let before = store.object("keyring");
    let again = change(6, &store, "new", KeyChange::Finish);
    assert!(again.removed.is_empty());
    assert_eq!(store.object("keyring"), before);
}

#[test]
fn the_last_slot_and_the_one_in_use_are_not_removed_unasked() {
    let (store, ..) = begun();
    let old = slots(&store, "old").in_use.expect("one slot");
    for in_use in [InUse::Keep, InUse::Remove] {
        let change = KeyChange::Remove {
            slot: old.to_string(),
            in_use,
        };
        let error = try_change(2, &store, "old", change).expect_err("the last one");
        assert!(error.to_string().contains("the last one"), "{error}");
    }
    change(3, &store, "old", add("new"));
    let error = try_change(4, &store, "old", remove(old)).expect_err("in use");
    assert!(error.to_string().contains("--in-use"), "{error}");
    for (start, says) in [("ff", "too short"), ("ffffffff", "no slot")] {
        let change = KeyChange::Remove {
            slot: start.to_owned(),
            in_use: InUse::Keep,
        };
        let error = try_change(5, &store, "old", change).expect_err(start);
        assert!(error.to_string().contains(says), "{error}");
    }
    let anyway = KeyChange::Remove {
        slot: old.to_string(),
        in_use: InUse::Remove,
    };
    let done = change(6, &store, "old", anyway);
    assert_eq!((done.now.slots.len(), done.now.in_use), (1, None));
    assert!(!opens(&store, "old") && opens(&store, "new"));
}

#[test]
fn a_wrong_password_and_a_plain_prefix_change_nothing() {
    let (store, ..) = begun();
    let before = store.object("keyring");
    let error = try_change(2, &store, "nope", add("new")).expect_err("wrong");
    assert!(error.to_string().contains("wrong password"), "{error}");
    assert_eq!(store.object("keyring"), before);
    assert_eq!(
        slots(&store, "nope").in_use,
        None,
        "looking needs no password"
    );

    let plain = TestStore::default();
    Node::new(1, &plain, None);
    let error = try_change(2, &plain, "x", add("y")).expect_err("plain");
    assert!(error.to_string().contains("not encrypted"), "{error}");
    assert!(slots(&plain, "x").slots.is_empty());
    let error = try_change(2, &TestStore::default(), "x", add("y")).expect_err("nothing there");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn lost_answers_and_late_writes_are_resolved_by_reading_back() {
    use StoreErrorKind::{Conflict, Retry, Unknown};
    let faults = [
        vec![Fault::After(Unknown)],
        vec![Fault::Before(Unknown)],
        vec![Fault::Late(Unknown)],
        vec![Fault::After(Conflict)],
        vec![Fault::Before(Retry), Fault::After(Unknown)],
        vec![Fault::Late(Unknown), Fault::After(Unknown)],
    ];
    for fault in faults {
        let (store, ..) = begun();
        // The three replacements of the probe come first.
        let clean = |store: &TestStore| store.fail_after("replace", 3, fault.clone());
        clean(&store);
        let added = change(2, &store, "old", rotate("new"));
        assert!(added.added.is_some(), "{fault:?}");
        assert_eq!(slots(&store, "new").slots.len(), 2, "{fault:?}");
        clean(&store);
        change(3, &store, "new", KeyChange::Finish);
        assert_eq!(slots(&store, "new").slots.len(), 1, "{fault:?}");
        assert!(!opens(&store, "old") && opens(&store, "new"), "{fault:?}");
    }
}

/// A store may name a version by its bytes: then a late request could land on bytes that came again.
#[test]
fn no_keyring_ever_has_the_bytes_of_an_earlier_one() {
    let (store, ..) = begun();
    let mut seen = vec![store.object("keyring")];
    for round in 0..8 {
        let slot = change(10 + round, &store, "old", add("new"))
            .added
            .expect("a slot");
        seen.push(store.object("keyring"));
        change(30 + round, &store, "old", remove(slot.id));
        seen.push(store.object("keyring"));
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert!(opens(&store, "old"));
}

#[test]
fn of_operators_at_once_nobody_loses_a_slot() {
    let (store, ..) = begun();
    let world = TestWorld::new(2);
    let passwords: Vec<String> = (0..6).map(|number| format!("new-{number}")).collect();
    let adding = passwords
        .iter()
        .map(|password| changing(world.clone(), store.clone(), text("old"), add(password)));
    let added = world.run(futures_util::future::join_all(adding.collect::<Vec<_>>()));
    for outcome in added {
        assert!(outcome.expect("added").added.is_some());
    }
    assert_eq!(slots(&store, "old").slots.len(), 7);
    for password in &passwords {
        assert!(opens(&store, password), "{password} was lost");
    }

    // Each removes the other's: one is left.
    let (store, ..) = begun();
    let old = slots(&store, "old").in_use.expect("one slot");
    let new = change(3, &store, "old", add("new"))
        .added
        .expect("a slot")
        .id;
    let removing = [
        changing(world.clone(), store.clone(), text("old"), remove(new)),
        changing(world.clone(), store.clone(), text("new"), remove(old)),
    ];
    let outcomes = world.run(futures_util::future::join_all(removing));
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert_eq!(slots(&store, "old").slots.len(), 1);
    assert!(opens(&store, "old") != opens(&store, "new"));
}

#[test]
fn a_change_costs_the_same_for_any_number_of_volumes() {
    let mut costs = Vec::new();
    for names in [&["a"][..], &["a", "b", "c", "d", "e", "f", "g", "h"]] {
        let store = TestStore::default();
        let node = Node::new(1, &store, Some("old"));
        for name in names {
            let volume = node.create(name);
            node.sync(&volume, vec![data(0, &[1])]);
        }
        let before = store.counts();
        change(2, &store, "old", add("new"));
        let after = store.counts();
        costs.push((
            after.gets - before.gets,
            after.puts - before.puts,
            after.lists - before.lists,
        ));
    }
    assert_eq!(costs[0], costs[1]);
    assert_eq!(
        costs[0],
        (3, 7, 1),
        "a get, five of the puts and the list are the probe's; the others: keyring and note"
    );
}

#[test]
fn a_full_or_missing_keyring_is_said_so() {
    let (store, ..) = begun();
    for number in 1..32 {
        change(number, &store, "old", add(&format!("p{number}")));
    }
    let error = try_change(50, &store, "old", add("one more")).expect_err("full");
    assert!(error.to_string().contains("32 slots"), "{error}");
    store.remove("keyring");
    let error = try_change(51, &store, "old", add("x")).expect_err("gone");
    assert!(
        error.to_string().contains("`keyring` is missing"),
        "{error}"
    );
}

#[test]
fn a_change_and_its_password_do_not_show() {
    let shown = format!("{:?}", add("geheim"));
    assert_eq!(shown, "Add");
}

/// As from a backup, or by a tool that copies versions.
#[test]
fn a_keyring_that_was_put_back_is_noticed_by_everybody() {
    let (store, ..) = begun();
    let first = store.object("keyring");
    change(2, &store, "old", rotate("new"));
    let second = store.object("keyring");
    change(3, &store, "new", KeyChange::Finish);
    let newest = store.object("keyring");
    for (old, password) in [(&first, "old"), (&second, "old"), (&second, "new")] {
        store.set("keyring", old.clone());
        let refused = Node::with(4, &store, config(Some(password))).expect_err("put back");
        let change = try_change(5, &store, password, add("x")).expect_err("put back");
        for error in [refused, change] {
            let text = error.to_string();
            assert!(text.contains("`keyring` is an older version"), "{text}");
        }
    }
    assert_eq!(store.object("keyring"), second, "nothing is built on it");
    store.set("keyring", newest);
    assert!(opens(&store, "new"));
}

/// What the error that refuses a keyring tells to give to `glidefs key accept-older`.
fn version_told(store: &TestStore, password: &str) -> String {
    let refused = Node::with(6, store, config(Some(password))).expect_err("put back");
    let text = refused.to_string();
    let mut words = text.split('`');
    let version = words.find_map(|word| word.strip_prefix("glidefs key accept-older "));
    version.expect("the error names it").to_owned()
}

fn accept(version: &str) -> KeyChange {
    KeyChange::AcceptOlder {
        version: version.to_owned(),
    }
}

#[test]
fn an_older_keyring_goes_on_only_by_its_id_and_the_lost_ones_stay_known() {
    let (store, ..) = begun();
    let mut all = vec![store.object("keyring")];
    change(2, &store, "old", rotate("new"));
    all.push(store.object("keyring"));
    change(3, &store, "new", KeyChange::Finish);
    all.push(store.object("keyring"));
    change(4, &store, "new", rotate("third"));
    // The newest is lost, and nobody has read it.
    let lost = store.object("keyring");
    store.set("keyring", all[1].clone());
    let version = version_told(&store, "new");
    let other = accept(&"0".repeat(32));
    let error = try_change(5, &store, "new", other).expect_err("another one");
    assert!(error.to_string().contains(&version), "{error}");
    let wrong = try_change(6, &store, "third", accept(&version)).expect_err("it has no slot");
    assert!(wrong.to_string().contains("wrong password"), "{wrong}");
    assert_eq!(store.object("keyring"), all[1], "nothing was done");

    let done = change(7, &store, "new", accept(&version));
    assert_eq!((done.now.slots.len(), done.added), (2, None));
    assert!(done.now.is_guarded && done.removed.is_empty());
    assert!(opens(&store, "old") && opens(&store, "new"));
    assert_eq!(slots(&store, "new").in_use, done.now.in_use);
    let accepted = store.object("keyring");
    // The answer was lost, or somebody asks when all is well.
    let again = change(8, &store, "new", accept(&version));
    assert_eq!(again.now.slots, done.now.slots);
    assert_eq!(store.object("keyring"), accepted);

    // Were the lost one found and put back, its passwords would open, and those of since would not.
    all.push(lost);
    change(9, &store, "new", KeyChange::Finish);
    all.push(accepted);
    for old in &all {
        store.set("keyring", old.clone());
        for password in ["old", "new", "third"] {
            let refused = Node::with(10, &store, config(Some(password))).expect_err("put back");
            let refused = refused.to_string();
            assert!(refused.contains("is an older version"), "{refused}");
        }
    }
}

/// A second loss: what came behind the keyring that was gone on with is found from any older one.
#[test]
fn what_was_lost_behind_an_accepted_keyring_is_found_as_well() {
    let (store, ..) = begun();
    let first = store.object("keyring");
    change(2, &store, "old", rotate("new"));
    let mut lost = vec![store.object("keyring")];
    for round in 0..3 {
        store.set("keyring", first.clone());
        let version = version_told(&store, "old");
        change(10 + round, &store, "old", accept(&version));
        lost.push(store.object("keyring"));
    }
    let newest = lost.pop().expect("some");
    for old in lost.iter().chain([&first]) {
        is_noticed(&store, old);
    }
    store.set("keyring", newest);
    assert!(opens(&store, "old") && !opens(&store, "new"));
}

#[test]
fn going_on_with_an_older_keyring_survives_every_fault_on_the_way() {
    use StoreErrorKind::{Refused, Unknown};
    for (operation, good, fault) in [
        // Behind the probe's.
        ("create", 2, Fault::Before(Refused)),
        ("create", 2, Fault::After(Unknown)),
        ("replace", 3, Fault::Before(Refused)),
        ("replace", 3, Fault::After(Unknown)),
        ("replace", 3, Fault::Late(Unknown)),
    ] {
        let (store, ..) = begun();
        let first = store.object("keyring");
        change(2, &store, "old", rotate("new"));
        let lost = store.object("keyring");
        store.set("keyring", first.clone());
        let version = version_told(&store, "old");
        store.fail_after(operation, good, [fault]);
        if let Err(error) = try_change(3, &store, "old", accept(&version)) {
            assert!(matches!(error, VolumeError::Store(_)), "{error}");
            store.heal();
            // As it was: refused, until it is accepted again.
            assert_eq!(store.object("keyring"), first, "{operation} {fault:?}");
            assert_eq!(version_told(&store, "old"), version);
            change(4, &store, "old", accept(&version));
        }
        assert!(opens(&store, "old"), "{operation} {fault:?}");
        for old in [&first, &lost] {
            is_noticed(&store, old);
        }
    }
}

#[test]
fn a_note_that_the_store_does_not_take_is_said_and_the_change_stands() {
    let (store, ..) = begun();
    // The creations of the probe come first.
    store.fail_after("create", 2, vec![Fault::Before(StoreErrorKind::Retry); 5]);
    let added = change(2, &store, "old", add("new"));
    assert!(added.added.is_some() && !added.now.is_guarded);
    assert!(opens(&store, "old") && opens(&store, "new"));
    assert!(change(3, &store, "new", add("third")).now.is_guarded);
}

/// The keyring as it was, and a rotation to `new` that landed and said that it failed: as if the process had died
/// before the note.
fn landed_without_note() -> (TestStore, Bytes) {
    let (store, ..) = begun();
    let first = store.object("keyring");
    // Behind the probe's, and the reads of keyring and note.
    store.fail_after("replace", 3, [Fault::After(StoreErrorKind::Unknown)]);
    store.fail_after("get", 3, [Fault::Before(StoreErrorKind::Refused)]);
    let failed = try_change(2, &store, "old", rotate("new"));
    failed.expect_err("nobody can tell");
    store.heal();
    assert!(store.object("keyring") != first, "it landed");
    let notes = store.keys();
    let notes = notes
        .iter()
        .filter(|key| key.starts_with("keyring-replaced/"));
    assert_eq!(notes.count(), 0);
    (store, first)
}

fn is_noticed(store: &TestStore, old: &Bytes) {
    store.set("keyring", old.clone());
    let refused = Node::with(9, store, config(Some("old"))).expect_err("put back");
    let refused = refused.to_string();
    assert!(refused.contains("is an older version"), "{refused}");
}

#[test]
fn a_note_that_is_missing_is_made_up_for_by_whoever_reads_the_keyring_next() {
    let readers: [fn(&TestStore); 4] = [
        // The same command again, which has nothing to do.
        |store| {
            let again = change(3, store, "old", rotate("new"));
            assert!(again.added.is_none() && again.now.is_guarded);
        },
        |store| assert!(opens(store, "old")),
        |store| assert!(slots(store, "nope").is_guarded),
        // The next rotation names the second keyring alone.
        |store| assert!(change(3, store, "new", KeyChange::Finish).now.is_guarded),
    ];
    for reader in readers {
        let (store, first) = landed_without_note();
        reader(&store);
        is_noticed(&store, &first);
    }
}

#[test]
fn no_keyring_is_replaced_while_the_one_before_it_cannot_be_noted() {
    let (store, first) = landed_without_note();
    let second = store.object("keyring");
    let fail = || store.fail_after("create", 2, [Fault::Before(StoreErrorKind::Refused)]);
    fail();
    let error = try_change(3, &store, "new", KeyChange::Finish).expect_err("not noted");
    assert!(error.to_string().contains("keyring-replaced/"), "{error}");
    assert_eq!(store.object("keyring"), second);
    // A look and a start go on, and the look says so.
    store.heal();
    store.fail("create", [Fault::Before(StoreErrorKind::Refused)]);
    assert!(!slots(&store, "new").is_guarded);
    fail();
    assert!(opens(&store, "new"));
    store.heal();
    change(4, &store, "new", KeyChange::Finish);
    let third = store.object("keyring");
    for old in [&first, &second] {
        is_noticed(&store, old);
    }
    store.set("keyring", third);
    assert!(opens(&store, "new") && !opens(&store, "old"));
}

#[test]
fn a_rotation_ends_its_own_slots_and_no_password_that_was_added() {
    let (store, ..) = begun();
    let ids = |slots: &[SlotView]| slots.iter().map(|slot| slot.id).collect::<Vec<_>>();
    let old = slots(&store, "old").in_use.expect("one slot");
    let escrow = change(2, &store, "old", add("escrow")).added.expect("one");
    // Given up halfway; then the one that is rolled out; and an escrow that is younger than it.
    let halfway = change(3, &store, "old", rotate("halfway")).added;
    let halfway = halfway.expect("a slot");
    let new = change(4, &store, "old", rotate("new")).added.expect("one");
    let site = change(5, &store, "escrow", add("site")).added.expect("one");
    assert!(old == new.line && old == halfway.line);
    assert!(escrow.line == escrow.id && site.line == site.id);

    for password in ["old", "halfway"] {
        let early = try_change(6, &store, password, KeyChange::Finish).expect_err("older");
        assert!(early.to_string().contains("not the newest"), "{early}");
    }
    let done = change(7, &store, "new", KeyChange::Finish);
    assert_eq!(ids(&done.removed), [old, halfway.id]);
    assert_eq!(ids(&done.now.slots), [escrow.id, new.id, site.id]);
    for (password, is_open) in [
        ("old", false),
        ("halfway", false),
        ("escrow", true),
        ("new", true),
        ("site", true),
    ] {
        assert_eq!(opens(&store, password), is_open, "{password}");
    }
    let again = change(8, &store, "new", KeyChange::Finish);
    assert!(again.removed.is_empty() && again.now.slots.len() == 3);

    // A site rotates its own, and nobody else's.
    change(9, &store, "site", rotate("site-2"));
    let done = change(10, &store, "site-2", KeyChange::Finish);
    assert_eq!(ids(&done.removed), [site.id]);
    assert!(opens(&store, "escrow") && opens(&store, "new"));
}

#[test]
fn a_rotation_to_a_password_that_would_not_take_effect_is_refused() {
    let (store, ..) = begun();
    change(2, &store, "old", add("escrow"));
    change(3, &store, "old", rotate("new"));
    let before = store.object("keyring");
    for (configured, new, says) in [
        ("old", "old", "the one that the configuration has"),
        ("new", "new", "--finish"),
        ("old", "escrow", "added to stay"),
        ("new", "old", "to be replaced itself"),
    ] {
        let error = try_change(4, &store, configured, rotate(new)).expect_err(new);
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(store.object("keyring"), before);
}
