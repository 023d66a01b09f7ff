//! Every byte in the store, changed, cut or swapped: an error that names the object, or the data as
//! it was, never other data (promise 5).

use super::*;

/// A volume with a map, a tail, several segments; and its first pages.
fn prepared(password: Option<&str>) -> (TestStore, Node, Vec<u8>) {
    let store = TestStore::default();
    let node = Node::new(1, &store, password);
    let volume = node.create("a");
    for number in 0..34_u64 {
        node.sync(
            &volume,
            vec![data(number, &[number]), data(number + 100, &[number])],
        );
    }
    node.compact(&volume);
    node.sync(&volume, vec![data(34, &[34]), data(3, &[1_003])]);
    let expected = node.read(&volume, 0, 36);
    (store, node, expected)
}

/// What a node without anything in memory reads.
fn read_cold(node: &Node) -> Result<Vec<u8>, VolumeError> {
    let mut node = node.clone();
    node.bucket = node.bucket.clone().with_nodes_bytes(1 << 20);
    let volume = node.open("a")?;
    node.try_read(&volume, PageRange::new(0, 36))
}

fn assert_named(outcome: Result<Vec<u8>, VolumeError>, expected: &[u8], key: &str, how: &str) {
    match outcome {
        Ok(bytes) => assert!(bytes == expected, "{key} {how}: other data"),
        Err(VolumeError::Damaged { key: named, .. } | VolumeError::Missing { key: named, .. }) => {
            assert_eq!(named, key, "{how}");
        }
        Err(VolumeError::Newer { key: named, .. }) => assert_eq!(named, key, "{how}"),
        Err(error) => panic!("{key} {how}: {error:?}"),
    }
}

#[test]
fn a_changed_byte_anywhere_is_noticed_or_harmless() {
    for password in [None, Some("x")] {
        let (store, node, expected) = prepared(password);
        let mut noticed = 0;
        for key in store
            .keys()
            .into_iter()
            .filter(|key| key.starts_with("nbd/"))
        {
            let good = store.object(&key);
            // All bytes of the small ones, some of the large ones.
            for at in (0..good.len()).step_by(1 + good.len() / 97) {
                let mut bad = good.to_vec();
                bad[at] ^= 0x10;
                store.set(&key, bad.into());
                let outcome = read_cold(&node);
                noticed += usize::from(outcome.is_err());
                if outcome.is_err() && key.ends_with("/root") && (10..16).contains(&at) {
                    // The header of a root: said in other words, but said.
                    assert!(outcome.expect_err("bad").to_string().contains(&key));
                    continue;
                }
                assert_named(outcome, &expected, &key, &format!("byte {at}"));
            }
            store.set(&key, good);
        }
        assert!(noticed > 1_000, "only {noticed} changes were noticed");
        assert!(read_cold(&node).expect("sound again") == expected);
    }
}

#[test]
fn an_object_that_is_cut_or_missing_is_named() {
    let some = Some("x");
    for (password, flaw) in [
        (None, None),
        (some, None),
        (some, Some(Flaw::RefusesBeyond)),
    ] {
        let (store, node, expected) = prepared(password);
        if let Some(flaw) = flaw {
            store.flawed(flaw);
        }
        let keys = store.keys();
        for key in keys
            .iter()
            .filter(|key| key.starts_with("nbd/a/") && !key.ends_with("root"))
        {
            let good = store.object(key);
            for len in [0, 1, good.len() / 2, good.len() - 129, good.len() - 1] {
                store.set(key, good.slice(..len));
                assert_named(read_cold(&node), &expected, key, &format!("cut to {len}"));
            }
            store.remove(key);
            assert_named(read_cold(&node), &expected, key, "missing");
            store.set(key, good);
        }
    }
}

#[test]
fn swapped_objects_are_named() {
    for password in [None, Some("x")] {
        let (store, node, expected) = prepared(password);
        let keys: Vec<String> = store.keys();
        let keys: Vec<&String> = keys
            .iter()
            .filter(|key| key.starts_with("nbd/a/"))
            .collect();
        for pair in keys.windows(2) {
            let bodies = [store.object(pair[0]), store.object(pair[1])];
            store.set(pair[0], bodies[1].clone());
            store.set(pair[1], bodies[0].clone());
            let outcome = read_cold(&node);
            match outcome {
                Ok(bytes) => assert!(bytes == expected, "{pair:?}: other data"),
                Err(VolumeError::Damaged { key, .. }) => {
                    assert!(pair.contains(&&key), "{pair:?}: named {key}");
                }
                Err(error) => panic!("{pair:?}: {error:?}"),
            }
            store.set(pair[0], bodies[0].clone());
            store.set(pair[1], bodies[1].clone());
        }
    }
}

#[test]
fn a_root_of_another_volume_is_refused() {
    for password in [None, Some("x")] {
        let (store, node, _) = prepared(password);
        node.create("b");
        store.set("nbd/a/root", store.object("nbd/b/root"));
        let error = read_cold(&node).expect_err("not its own").to_string();
        assert!(
            error.contains("nbd/a/root") && error.contains("another volume"),
            "{error}"
        );
    }
}

#[test]
fn nothing_in_an_encrypted_store_shows_the_data() {
    let store = TestStore::default();
    let node = Node::new(1, &store, Some("x"));
    let volume = node.create("a");
    let secret = b"attack at dawn. ".repeat(256);
    let frame = PlainFrame {
        pages: PageRange::new(0, 1),
        content: FrameContent::Data(secret.clone().into()),
    };
    node.sync(&volume, vec![frame]);
    for key in store.keys() {
        let found = store
            .object(&key)
            .windows(16)
            .any(|bytes| bytes == &secret[..16]);
        assert!(!found, "{key} shows the data");
    }
    assert!(node.read(&volume, 0, 1) == secret);
}
