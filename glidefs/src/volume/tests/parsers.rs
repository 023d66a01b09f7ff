//! Parsers of bytes from the store that nothing has checked: an error or a sound value, no panic and
//! no memory beyond the bytes. (In a volume the hash is checked first; these are the second wall.)

use proptest::prelude::*;

use super::super::extent::VOLUME_PAGES_MAX;
use super::super::group::{self, Group};
use super::super::keyring::Keyring;
use super::super::leaf::{Directory, Leaf};
use super::super::root::Root;
use super::super::runs::MapIndex;
use super::super::segment;
use super::golden::{bytes_of_hex, golden, object};
use super::*;

const EVERYWHERE: PageRange = PageRange {
    start: blockcache::PageNo(0),
    end: blockcache::PageNo(VOLUME_PAGES_MAX),
};

/// Valid bytes with a few changes, or anything.
fn any_bytes(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = valid.len();
    let changes = prop::collection::vec((0..len, any::<u8>()), 0..4);
    let changed = (changes, len / 2..=len).prop_map(move |(changes, keep)| {
        let mut bytes = valid.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if keep % 3 == 0 {
            bytes.truncate(keep);
        }
        bytes
    });
    prop_oneof![9 => changed, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

/// The plain index of a golden object that is stored as it is.
fn index(body: &[u8]) -> Vec<u8> {
    let reference = golden::from_trailer(body);
    let start = usize(u64::from(reference.offset));
    body[start..start + usize(u64::from(reference.stored))].to_vec()
}

fn leaf() -> Vec<u8> {
    let part = golden!("map-part-1");
    let reference = golden::from_trailer(&part);
    part[..usize(u64::from(reference.offset))].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn segments(bytes in any_bytes(index(&golden!("segment-1-raw")))) {
        if let Ok(extents) = segment::parse(object(), &bytes) {
            prop_assert!(extents.is_sorted_by(|a, b| a.pages.end <= b.pages.start));
        }
    }

    #[test]
    fn leaves(bytes in any_bytes(leaf()), start in 0_u64..200, pages in 1_u64..1_000) {
        if let Ok(leaf) = Leaf::parse(EVERYWHERE, &bytes) {
            let asked = PageRange::new(start, start + pages);
            let mut end = asked.start;
            for extent in leaf.within(asked) {
                prop_assert!(end <= extent.pages.start && extent.pages.end <= asked.end);
                end = extent.pages.end;
            }
        }
    }

    #[test]
    fn directories(bytes in any_bytes(index(&golden!("map-part-1"))), start in 0_u64..70_000) {
        if let Ok(directory) = Directory::parse(EVERYWHERE, &bytes) {
            prop_assert!(directory.within(PageRange::new(start, start + 1)).len() <= 1);
        }
    }

    #[test]
    fn map_indexes(bytes in any_bytes(index(&golden!("map-index-1")))) {
        if let Ok(index) = MapIndex::parse(&bytes) {
            prop_assert!(index.runs.iter().all(|run| run.within(EVERYWHERE).len() == run.parts.len()));
        }
    }

    #[test]
    fn roots_and_keyrings(root in any_bytes(golden!("root-1-plain")),
                          keyring in any_bytes(golden!("keyring-1-rotated"))) {
        let name = VolumeName::parse("vm-alice").expect("a name");
        // The envelope stops nearly all; what is inside meets the parser below.
        drop(Root::decode(&name, &root, None));
        drop(Keyring::decode(&keyring));
        let body = root.get(32..root.len().saturating_sub(32)).unwrap_or_default();
        for format in [root::FORMAT, root::FORMAT_MEMBER] {
            let sealed = root::ENVELOPE.seal(format, body, None);
            if let Ok(root) = Root::decode(&name, &sealed, None) {
                prop_assert_eq!(root.name.as_str(), name.as_str());
                let again = Root::decode(&name, &root.encode(None), None);
                prop_assert_eq!(again.expect("reads what it wrote"), root);
            }
        }
    }

    #[test]
    fn groups(group in prop_oneof![
        any_bytes(golden!("group-1-formed")),
        any_bytes(golden!("group-1-forming")),
        any_bytes(golden!("group-1-dissolved")),
    ]) {
        let id = Id([8; 16]);
        drop(Group::decode(id, &group, None));
        let body = group.get(32..group.len().saturating_sub(32)).unwrap_or_default();
        let sealed = group::ENVELOPE.seal(group::FORMAT, body, None);
        if let Ok(group) = Group::decode(id, &sealed, None) {
            let again = Group::decode(id, &group.encode(None).expect("small"), None);
            prop_assert_eq!(again.expect("reads what it wrote"), group);
        }
    }
}
