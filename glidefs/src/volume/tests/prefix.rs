//! The prefix: conditions, keyring, names, creation.

use super::*;

fn refused(store: &TestStore, password: Option<&str>) -> String {
    let outcome = Node::with(5, store, config(password));
    outcome.expect_err("refused").to_string()
}

#[test]
fn a_store_that_will_not_do_is_refused_by_what_it_lacks() {
    for (flaw, named) in [
        (Flaw::IgnoresConditions, "If-None-Match"),
        (Flaw::IgnoresIfMatch, "out of date"),
        (Flaw::CreatesAbsent, "none to match"),
        (Flaw::RefusesIfMatch, "still gives"),
        (Flaw::RenamesVersions, "the same ETag"),
        (Flaw::ListsLate, "list"),
        (Flaw::ReadsLate, "older state"),
        (Flaw::IgnoresRanges, "Range"),
    ] {
        let error = refused(&TestStore::with(flaw), None);
        assert!(error.contains(named), "{flaw:?}: {error}");
        assert!(error.contains("use a store"), "{flaw:?}: {error}");
    }
}

#[test]
fn a_look_tells_of_a_versioned_bucket() {
    for (store, versioned) in [
        (TestStore::default(), false),
        (TestStore::versioned(), true),
    ] {
        let world = TestWorld::new(1);
        let look = {
            let (world, store) = (world.clone(), store.clone());
            async move { Bucket::look(&world, &store, None).await }
        };
        let looked = world.run(look).expect("it will do");
        assert_eq!(looked.keeps_versions, versioned);
        assert_eq!(store.keys(), Vec::<String>::new(), "nothing is begun");
    }
}

/// Of a bucket that others use too, nothing of theirs may go; and nothing of ours is left that is replaced at each publish.
#[test]
fn the_hint_on_versions_is_a_rule_for_this_prefix_alone() {
    for (place, folders) in [
        ("vms/a", &["vms/a/"][..]),
        ("", &["nbd/", "groups/"]),
        ("a\"b", &["a\"b/"]),
    ] {
        let hint = versions_hint(place);
        let (start, end) = (
            hint.find('{').expect("JSON"),
            hint.rfind('}').expect("JSON"),
        );
        let rules = serde_json::Deserializer::from_str(&hint[start..=end]).into_iter();
        let rules: Vec<serde_json::Value> = rules.map(|rule| rule.expect("whole")).collect();
        let about: Vec<&serde_json::Value> =
            rules.iter().map(|it| &it["Filter"]["Prefix"]).collect();
        assert_eq!(about, folders, "{hint}");
        for rule in &rules {
            assert_eq!(rule["NoncurrentVersionExpiration"]["NoncurrentDays"], 7);
            assert_eq!(rule["Expiration"]["ExpiredObjectDeleteMarker"], true);
            let days = &rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"];
            assert_eq!(*days, 1);
            // One that expires current versions would delete the volumes.
            assert!(rule["Expiration"].get("Days").is_none());
        }
    }
}

#[test]
fn the_probe_cleans_up_and_survives_lost_answers() {
    use StoreErrorKind::{Retry, Unknown};
    let store = TestStore::default();
    store.fail("create", [Fault::Before(Retry), Fault::After(Unknown)]);
    store.fail("replace", [Fault::After(Unknown)]);
    Node::new(1, &store, None);
    assert_eq!(store.keys(), ["keyring"]);
}

/// As long as it passes: some stores and gateways refuse a condition that holds now and then.
#[test]
fn the_probe_survives_conditions_that_are_refused_for_a_while() {
    use StoreErrorKind::Conflict;
    for refusals in [
        vec![Fault::Before(Conflict); 5],
        vec![Fault::After(Conflict); 3],
    ] {
        let store = TestStore::default();
        store.fail("replace", refusals);
        Node::new(1, &store, None);
        assert_eq!(store.keys(), ["keyring"]);
    }
}

#[test]
fn a_prefix_stays_as_it_was_begun() {
    let plain = TestStore::default();
    Node::new(1, &plain, None).create("a");
    assert!(refused(&plain, Some("x")).contains("not encrypted"));
    Node::new(2, &plain, None).open("a").expect("opens");

    let sealed = TestStore::default();
    Node::new(1, &sealed, Some("x")).create("a");
    assert!(refused(&sealed, None).contains("set `encryption_password`"));
    assert!(refused(&sealed, Some("y")).contains("wrong password"));
    Node::new(2, &sealed, Some("x")).open("a").expect("opens");
}

#[test]
fn a_lost_keyring_is_an_error_unless_it_held_nothing() {
    let plain = TestStore::default();
    Node::new(1, &plain, None).create("a");
    plain.remove("keyring");
    assert!(refused(&plain, Some("x")).contains("restore `keyring`"));
    Node::new(2, &plain, None)
        .open("a")
        .expect("a plain keyring is made again");

    let sealed = TestStore::default();
    Node::new(1, &sealed, Some("x")).create("a");
    sealed.remove("keyring");
    for password in [None, Some("x")] {
        let error = refused(&sealed, password);
        assert!(error.contains("restore `keyring`"), "{error}");
    }
    sealed.remove("nbd/a/root");
    sealed.set("nbd/a/seg/x", Bytes::new());
    assert!(refused(&sealed, None).contains("no root"));
}

#[test]
fn two_first_starts_agree_on_one_keyring() {
    let store = TestStore::default();
    let world = TestWorld::new(1);
    let metered = Metered::new(world.clone(), store.clone());
    let open = |_| Bucket::open(world.clone(), metered.clone(), config(Some("x")));
    let opened = futures_util::future::join_all((0..4).map(open));
    let buckets = world.run(opened);
    for (number, bucket) in buckets.into_iter().enumerate() {
        let bucket = bucket.expect("opened");
        let name = format!("volume-{number}");
        let created = async move {
            bucket
                .create(&name, 1 << 30, &Node::owner(1), Id([1; 16]))
                .await
        };
        world.run(created).expect("created");
    }
    let late = Node::new(2, &store, Some("x"));
    for name in ["volume-0", "volume-1", "volume-2", "volume-3"] {
        late.open(name).expect("the same keys");
    }
}

#[test]
fn a_damaged_or_later_keyring_is_named() {
    let store = TestStore::default();
    Node::new(1, &store, None);
    let mut bytes = store.object("keyring").to_vec();
    bytes[40] ^= 1;
    store.set("keyring", bytes.clone().into());
    assert!(refused(&store, None).contains("`keyring` is damaged"));
    bytes[8] = 2;
    store.set("keyring", bytes.into());
    assert!(refused(&store, None).contains("format 2"));
}

#[test]
fn names_hop_over_the_objects_of_volumes() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let names = ["a", "a-b", "a.b", "a0", "b", "z9"];
    for name in names {
        let volume = node.create(name);
        for stamp in 1..5 {
            node.sync(&volume, vec![data(stamp, &[stamp])]);
        }
    }
    store.set("nbd/Not A Name/x", Bytes::new());
    store.set("nbd/stray", Bytes::new());
    let before = store.counts();
    let bucket = node.bucket.clone();
    let listed = node.world.run(async move { bucket.names().await });
    assert_eq!(
        listed.expect("listed"),
        ["a", "a-b", "a.b", "a0", "b", "stray", "z9"]
    );
    assert!(store.counts().lists - before.lists <= names.len() + 3);
    assert_eq!(store.counts().gets, before.gets);
}

fn create(node: &Node, nonce: Id) -> Result<Volume<TestWorld>, VolumeError> {
    let bucket = node.bucket.clone();
    let created = async move { bucket.create("a", 1 << 30, &Node::owner(1), nonce).await };
    node.world.run(created)
}

#[test]
fn creation_survives_lost_answers_and_happens_once() {
    use StoreErrorKind::{Conflict, Retry, Unknown};
    let faults = [
        Fault::After(Unknown),
        Fault::Before(Unknown),
        Fault::Late(Unknown),
        Fault::After(Conflict),
        Fault::Before(Retry),
    ];
    for fault in faults {
        let store = TestStore::default();
        let node = Node::new(1, &store, None);
        store.fail("create", [fault]);
        let volume = create(&node, Id([1; 16])).expect("created");
        assert_eq!(volume.root().nonce, Id([1; 16]));
        node.sync(&volume, vec![data(1, &[1])]);
    }
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = create(&node, Id([1; 16])).expect("created");
    // The same intent again, as after a crash.
    assert_eq!(
        create(&node, Id([1; 16])).expect("ours").root(),
        volume.root()
    );
    let error = create(&node, Id([2; 16])).expect_err("another");
    assert!(matches!(error, VolumeError::Exists { .. }), "{error}");
}

#[test]
fn a_volume_is_not_created_over_remains() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    node.sync(&volume, vec![data(1, &[1])]);
    store.remove("nbd/a/root");
    let error = create(&node, Id([1; 16])).expect_err("remains").to_string();
    assert!(
        error.contains("nbd/a/seg/") && error.contains("nbd/a/root"),
        "{error}"
    );
    // No permission to list is not an empty list.
    store.fail("list", [Fault::Before(StoreErrorKind::Refused)]);
    let error = create(&node, Id([1; 16])).expect_err("refused");
    assert!(matches!(error, VolumeError::Store(_)), "{error}");
}

/// Some stores answer 409 for reasons of their own; that is no keyring of somebody else.
#[test]
fn a_false_conflict_does_not_keep_a_prefix_from_beginning() {
    use StoreErrorKind::Conflict;
    // Two creates of the probe come first.
    let store = TestStore::default();
    store.fail_after(
        "create",
        2,
        [Fault::Before(Conflict), Fault::Before(Conflict)],
    );
    Node::new(1, &store, Some("x")).create("a");
    Node::new(2, &store, Some("x")).open("a").expect("opens");

    let store = TestStore::default();
    store.fail_after("create", 2, vec![Fault::Before(Conflict); 20]);
    let error = refused(&store, Some("x"));
    assert!(
        error.contains("temporary") && error.contains("keyring"),
        "{error}"
    );
}
