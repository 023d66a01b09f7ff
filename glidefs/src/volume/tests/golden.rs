//! Objects byte by byte, as `docs/format/golden` has them. What a version wrote, every later one
//! reads; and a format changes only together with its number. A file is made by hand from the
//! message of the failing test, never by the test.

use super::super::envelope::Envelope;
use super::super::extent::{Extent, Spot};
use super::super::group::{Group, Member, Phase};
use super::super::keyring::{Fresh, FreshSlot, Keyring, KeyringCost};
use super::super::keys::{Secret, Wrapped};
use super::super::leaf::{Directory, Leaf, LeafBuilder, LeafRow};
use super::super::ledger::{Chunk, Dead, Entry, Ledger, Table, Totals};
use super::super::pin::{Pin, Reader};
use super::super::root::{
    self, Boot, Content, DataKey, GroupRef, Image, NamedVolume, Parent, Predecessor, Root,
    RootOwner, Snapshot, State, TailSegment,
};
use super::super::runs::{MapIndex, Part, Run};
use super::super::sealed::{self, Hash, Sealer, Target};
use super::super::segment;
use super::*;

/// The bytes of a golden file: hex digits and blanks.
macro_rules! golden {
    ($name:literal) => {
        bytes_of_hex(include_str!(concat!(
            "../../../../docs/format/golden/",
            $name,
            ".hex"
        )))
    };
}

pub(super) use golden;

pub(super) fn bytes_of_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs
        .map(|pair| u8::from_str_radix(&pair, 16).expect("a golden file holds hex"))
        .collect()
}

fn assert_golden(name: &str, written: &[u8], golden: &[u8]) {
    if written != golden {
        let lines = written.chunks(32).map(|line| {
            let digits = line.iter().map(|byte| format!("{byte:02x}"));
            digits.collect::<String>() + "\n"
        });
        let text: String = lines.collect();
        panic!("{name} is written differently now:\n{text}");
    }
}

fn reference(id: u8) -> ObjectRef {
    ObjectRef {
        volume: [1; 16],
        epoch: 3,
        id: [id; 16],
        bytes: 70_000,
        offset: 65_000,
        stored: 4_000,
        plain: 5_000,
        codec: 1,
        hash: [id; 32],
    }
}

fn tail_segment(id: u8) -> TailSegment {
    TailSegment {
        object: reference(id),
        birth: 900,
        pages: 800,
    }
}

fn content(map: u8) -> Content {
    Content {
        cut_epoch: 3,
        cut_seq: 1_000,
        cut_time_ms: 1_795_132_800_000,
        map: Some(reference(map)),
        tail: vec![tail_segment(map + 1), tail_segment(map + 2)],
    }
}

fn data_key() -> DataKey {
    DataKey {
        id: [20; 16],
        from_epoch: 1,
        wrapped: Wrapped {
            key: [21; 32],
            tag: [22; 16],
        },
    }
}

/// Every field is set.
fn full_root(keys: Vec<DataKey>) -> Root {
    let named = |id: u8, name: &str| NamedVolume {
        volume: [id; 16],
        name: name.to_owned(),
        keys: keys.clone(),
        unnamed_from: (id > 1).then_some(98),
    };
    Root {
        volume: [1; 16],
        name: "vm-alice".to_owned(),
        size_bytes: 1 << 40,
        epoch: 4,
        generation: 7,
        owner: Some(RootOwner {
            cache: [2; 16],
            host: "node-1".to_owned(),
        }),
        state: State::Open,
        nonce: [3; 16],
        predecessor: Some(Predecessor {
            epoch: 3,
            nonce: [4; 16],
            cut_epoch: 3,
            cut_seq: 900,
        }),
        content: content(30),
        volumes: vec![named(1, "vm-alice"), named(5, "template")],
        snapshots: vec![Snapshot {
            id: [6; 16],
            name: "before".to_owned(),
            size_bytes: 1 << 39,
            content: content(40),
        }],
        parent: Some(Parent {
            volume: [5; 16],
            name: "template".to_owned(),
            snapshot: Some([7; 16]),
            cut_epoch: 1,
            cut_seq: 55,
            request: [0x51; 16],
        }),
        boot: Some(Boot {
            object: reference(50),
            cut_epoch: 3,
            cut_seq: 900,
        }),
        group: None,
        suspend: Some(Image {
            id: [10; 16],
            bytes: 1 << 30,
            hash: [11; 32],
            hypervisor: "qemu".to_owned(),
        }),
    }
}

#[test]
fn golden_roots() {
    let name = VolumeName::parse("vm-alice").expect("a name");
    let mac = Secret::new([12; 32]);
    let cases = [
        ("root-1-plain", golden!("root-1-plain"), None, Vec::new()),
        (
            "root-1-mac",
            golden!("root-1-mac"),
            Some(&mac),
            vec![data_key()],
        ),
    ];
    for (file, golden, key, data_keys) in cases {
        let root = full_root(data_keys);
        assert_golden(file, &root.encode(key), &golden);
        assert_eq!(Root::decode(&name, &golden, key).expect("reads"), root);
    }
    let member = Root {
        group: Some(GroupRef {
            id: [8; 16],
            name: "db".to_owned(),
        }),
        ..full_root(Vec::new())
    };
    let golden = golden!("root-2-member");
    assert_golden("root-2-member", &member.encode(None), &golden);
    assert_eq!(Root::decode(&name, &golden, None).expect("reads"), member);
}

/// What it says alone does not count, so a build that knows no groups must not read it as if it did.
#[test]
fn a_member_s_root_has_a_format_of_its_own() {
    let name = VolumeName::parse("vm-alice").expect("a name");
    let member = golden!("root-2-member");
    let plain = golden!("root-1-plain");
    let body = |bytes: &[u8]| bytes[32..bytes.len() - 32].to_vec();
    for (format, bytes) in [(1, &member), (2, &plain)] {
        let mixed = root::ENVELOPE.seal(format, &body(bytes), None);
        let error = Root::decode(&name, &mixed, None).expect_err("mixed up");
        assert!(error.to_string().contains("format"), "{error}");
    }
    let older = root::ENVELOPE;
    let older = Envelope { known: 1, ..older };
    let error = older.open("nbd/vm-alice/root", &member, None);
    let error = error.expect_err("a later format").to_string();
    assert!(error.contains("use glidefs 0.1.0 or later"), "{error}");
}

fn group(phase: Phase, keys: &[DataKey]) -> Group {
    let member = |id: u8, name: &str| {
        let mut root = full_root(keys.to_vec());
        root.volume = [id; 16];
        name.clone_into(&mut root.name);
        if let Some(own) = root.volumes.first_mut() {
            own.volume = [id; 16];
            name.clone_into(&mut own.name);
        }
        if phase == Phase::Dissolved {
            (root.owner, root.state) = (None, State::Detached);
        }
        Member {
            volume: [id; 16],
            name: name.to_owned(),
            root: (phase != Phase::Forming).then_some(root),
        }
    };
    Group {
        id: [8; 16],
        name: "db".to_owned(),
        nonce: [3; 16],
        phase,
        members: vec![member(1, "vm-alice"), member(2, "vm-alice.log")],
    }
}

#[test]
fn golden_groups() {
    let mac = Secret::new([12; 32]);
    let id = Id([8; 16]);
    let cases = [
        (
            "group-1-forming",
            golden!("group-1-forming"),
            None,
            Phase::Forming,
        ),
        (
            "group-1-formed",
            golden!("group-1-formed"),
            None,
            Phase::Formed,
        ),
        (
            "group-1-formed-mac",
            golden!("group-1-formed-mac"),
            Some(&mac),
            Phase::Formed,
        ),
        (
            "group-1-dissolved",
            golden!("group-1-dissolved"),
            None,
            Phase::Dissolved,
        ),
    ];
    for (file, golden, key, phase) in cases {
        let keys = key.map(|_| data_key());
        let group = group(phase, keys.as_slice());
        assert_golden(file, &group.encode(key).expect("small"), &golden);
        assert_eq!(Group::decode(id, &golden, key).expect("reads"), group);
        let elsewhere = Group::decode(Id([9; 16]), &golden, key);
        assert!(elsewhere.is_err(), "{file} under another key");
    }
}

#[test]
fn golden_keyrings() {
    let fresh = Fresh {
        prefix: [1; 16],
        slot: [2; 16],
        salt: [3; 16],
        key: Secret::new([4; 32]),
    };
    let (plain, _) = Keyring::new(&fresh, None, KeyringCost::default());
    let file = golden!("keyring-1-plain");
    assert_golden("keyring-1-plain", &plain.encode(), &file);
    assert_eq!(Keyring::decode(&file).expect("reads"), plain);
    let (sealed, keys) = Keyring::new(&fresh, Some("correct horse"), KeyringCost::default());
    let file = golden!("keyring-1-password");
    assert_golden("keyring-1-password", &sealed.encode(), &file);
    let opened = Keyring::decode(&file).expect("reads");
    let opened = opened.unlock(Some("correct horse")).expect("right");
    let (opened, keys) = (opened.expect("keys"), keys.expect("keys"));
    assert_eq!(opened.root_mac.bytes(), keys.root_mac.bytes());
    golden_rotated_keyring(&fresh);
    // The tree below the prefix key is a format as well: pinned by one of its leaves.
    let wrapped = keys.wrap([5; 16], [6; 16], &Secret::new([7; 32]));
    let pinned = golden!("data-key-1");
    assert_golden(
        "data-key-1",
        &[&wrapped.key[..], &wrapped.tag].concat(),
        &pinned,
    );
}

/// One that took the place of another, with two slots of one line.
fn golden_rotated_keyring(fresh: &Fresh) {
    let cost = KeyringCost::LEAST;
    let (first, _) = Keyring::new(fresh, Some("correct horse"), cost);
    let opened = first.open(Some("correct horse")).expect("right");
    let opened = opened.expect("a slot");
    let slot = FreshSlot {
        id: [8; 16],
        salt: [9; 16],
        opener_salt: [10; 16],
        cost,
    };
    let rotated = first.with_slot(&opened, &slot, opened.line, "battery staple");
    let rotated = rotated.rewrapped(&opened, &slot, "correct horse");
    let rotated = rotated.replacing(&first);
    let file = golden!("keyring-1-rotated");
    assert_golden("keyring-1-rotated", &rotated.encode(), &file);
    let read = Keyring::decode(&file).expect("reads");
    assert_eq!(read.replaces(), Some(first.version()));
    assert!(read.slots().iter().all(|slot| slot.line.0 == fresh.slot));
    for password in ["correct horse", "battery staple"] {
        assert!(read.unlock(Some(password)).is_ok_and(|keys| keys.is_some()));
    }
}

pub(super) fn object() -> ObjectName {
    ObjectName {
        volume: Id([1; 16]),
        epoch: Epoch(3),
        id: Id([2; 16]),
    }
}

/// A page that every codec makes small.
fn golden_page() -> Vec<u8> {
    (0..=255).cycle().take(4096).collect()
}

fn golden_segment(key: Option<&Secret>, compression: Compression) -> Sealed {
    let frames = vec![
        PlainFrame {
            pages: PageRange::new(100, 101),
            content: FrameContent::Data(golden_page().into()),
        },
        zero(200, 1 << 20),
    ];
    segment::seal(object(), key, compression, frames)
}

/// Reads a segment through nothing but its reference.
fn read_segment(body: &[u8], reference: &ObjectRef, key: Option<&Secret>) -> Vec<Extent> {
    let part = |target: &Target| {
        let start = usize(u64::from(target.offset));
        let stored = &body[start..start + usize(u64::from(target.stored))];
        sealed::open(target, key.map_or(&[][..], std::slice::from_ref), stored).expect("opens")
    };
    let index = part(&reference.target(Kind::Segment));
    let extents = segment::parse(reference.name(), &index).expect("parses");
    let spot = extents[0].spot.expect("data");
    let target = Target {
        kind: Kind::Segment,
        object: spot.segment,
        offset: spot.offset,
        stored: spot.stored,
        frame: Frame {
            number: spot.number,
            pages: extents[0].pages,
            codec: spot.codec,
            plain: 4096,
        },
        hash: Hash::Half(spot.hash),
    };
    assert!(part(&target) == golden_page());
    assert_eq!(
        (extents[1].pages, extents[1].spot),
        (PageRange::new(200, 200 + (1 << 20)), None)
    );
    extents
}

#[test]
fn golden_segments() {
    let key = Secret::new([13; 32]);
    // Uncompressed ones are written the same for ever.
    for (file, golden, key) in [
        ("segment-1-raw", golden!("segment-1-raw"), None),
        (
            "segment-1-raw-sealed",
            golden!("segment-1-raw-sealed"),
            Some(&key),
        ),
    ] {
        let sealed = golden_segment(key, Compression::None);
        assert_golden(file, &sealed.body, &golden);
        assert_eq!(
            read_segment(&golden, &sealed.reference, key),
            sealed.extents
        );
    }
    // A later compressor may find shorter bytes; these must stay readable. The reference is read
    // from the trailer, as a repair tool would.
    for golden in [golden!("segment-1-lz4"), golden!("segment-1-zstd")] {
        let reference = from_trailer(&golden);
        read_segment(&golden, &reference, None);
    }
    let sealed = golden!("segment-1-lz4-sealed");
    read_segment(&sealed, &from_trailer(&sealed), Some(&key));
}

/// By `docs/format/segment.md`.
pub(super) fn from_trailer(body: &[u8]) -> ObjectRef {
    let trailer = &body[body.len() - sealed::TRAILER_BYTES..];
    assert_eq!(trailer[..8], sealed::MAGIC);
    assert_eq!(
        blake3::hash(&trailer[..104]).as_bytes()[..24],
        trailer[104..]
    );
    let u32_at = |at: usize| u32::from_le_bytes(*trailer[at..].first_chunk().expect("4"));
    ObjectRef {
        volume: *trailer[16..].first_chunk().expect("16"),
        id: *trailer[32..].first_chunk().expect("16"),
        epoch: u64::from_le_bytes(*trailer[48..].first_chunk().expect("8")),
        bytes: body.len() as u64,
        offset: u32_at(56),
        stored: u32_at(60),
        plain: u32_at(64),
        codec: trailer[11],
        hash: *trailer[72..].first_chunk().expect("32"),
    }
}

#[test]
fn the_trailer_says_what_a_reference_says() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let sealed = golden_segment(None, compression);
        assert_eq!(from_trailer(&sealed.body), sealed.reference);
    }
}

fn golden_extents() -> Vec<Extent> {
    let spot = |number: u8| Spot {
        segment: ObjectName {
            volume: Id([1; 16]),
            epoch: Epoch(u64::from(number)),
            id: Id([number; 16]),
        },
        number: u32::from(number),
        offset: 4_096,
        stored: 1_000,
        codec: 2,
        skip: 1,
        frame_pages: 4,
        hash: [number; 16],
    };
    let extent = |start: u64, pages: u64, spot: Option<Spot>| Extent {
        pages: PageRange::new(start, start + pages),
        spot,
    };
    vec![
        extent(10, 2, Some(spot(60))),
        extent(12, 3, Some(spot(61))),
        extent(100, 50_000, None),
    ]
}

fn golden_table() -> Table {
    let entry = Entry {
        id: [90; 16],
        kind: Kind::Segment,
        epoch: 3,
        bytes: 3_200_000,
        birth: 900,
        whole: 800,
        live: 799,
    };
    let dead = Dead {
        id: [91; 16],
        kind: Kind::MapPart,
        epoch: 2,
        bytes: 70_000,
        birth: 700,
        last: 989,
    };
    Table {
        live: vec![entry],
        dead: vec![dead],
    }
}

#[test]
fn golden_map_objects() {
    let mut builder = LeafBuilder::default();
    for extent in golden_extents() {
        builder.push(extent).expect("fits");
    }
    let leaf = builder.take().expect("not empty");
    let mut sealer = Sealer::new(Kind::MapPart, object(), None, Compression::None);
    let placed = sealer.push(leaf.pages, &leaf.bytes);
    let row = LeafRow {
        pages: leaf.pages,
        object: object(),
        number: placed.number,
        offset: placed.offset,
        stored: placed.stored,
        plain: placed.stored,
        entries: leaf.entries,
        codec: placed.codec,
        has_zeros: leaf.has_zeros,
        hash: placed.short_hash(),
    };
    let carried = LeafRow {
        pages: PageRange::new(60_000, 60_010),
        object: ObjectName {
            id: Id([5; 16]),
            ..object()
        },
        has_zeros: false,
        ..row
    };
    let directory = Directory {
        leaves: vec![row, carried],
    };
    let (body, reference) = sealer.finish(&directory.encode());
    assert_golden("map-part-1", &body, &golden!("map-part-1"));
    let part = |target: &Target| {
        let start = usize(u64::from(target.offset));
        let stored = &body[start..start + usize(u64::from(target.stored))];
        sealed::open(target, &[], stored).expect("opens")
    };
    let all = PageRange::new(0, 1 << 20);
    let index = part(&reference.target(Kind::MapPart));
    let read = Directory::parse(all, &index).expect("parses");
    assert_eq!(read.leaves, directory.leaves);
    let read = Leaf::parse(row.pages, &part(&row.target())).expect("parses");
    let extents: Vec<Extent> = (0..read.len()).map(|at| read.extent(at)).collect();
    assert_eq!(extents, golden_extents());
}

#[test]
fn golden_map_index() {
    let index = MapIndex {
        birth: 990,
        runs: vec![Run {
            id: [70; 16],
            level: 1,
            parts: vec![Part {
                first: 10,
                end: 60_010,
                entries: 4,
                directory: reference(81),
            }],
        }],
        ledger: Ledger {
            chunks: vec![Chunk {
                first: [0; 16],
                object: reference(80),
                birth: 980,
                totals: Totals {
                    named_bytes: 1 << 40,
                    live_bytes: 1 << 39,
                    dead_bytes: 70_000,
                    dead_objects: 1,
                },
            }],
            recent: golden_table(),
            has_gaps: false,
        },
    };
    let sealer = Sealer::new(Kind::MapIndex, object(), None, Compression::None);
    let (body, reference) = sealer.finish(&index.encode());
    assert_golden("map-index-1", &body, &golden!("map-index-1"));
    let target = reference.target(Kind::MapIndex);
    let plain = sealed::open(&target, &[], &body[..usize(u64::from(target.stored))]);
    assert_eq!(MapIndex::parse(&plain.expect("opens")), Ok(index));
}

#[test]
fn golden_ledger() {
    let table = golden_table();
    let sealer = Sealer::new(Kind::Ledger, object(), None, Compression::None);
    let (body, chunk) = sealer.finish(&table.encode());
    assert_golden("ledger-1", &body, &golden!("ledger-1"));
    let target = chunk.target(Kind::Ledger);
    let plain = sealed::open(&target, &[], &body[..usize(u64::from(target.stored))]);
    let read = Table::parse(&plain.expect("opens"), &[0; 16], None);
    assert_eq!(read, Ok(table));
}

/// Else a publish that adds the last snapshot would stop the server.
#[test]
fn the_largest_root_that_may_be_written_fits_its_envelope() {
    let largest = ObjectRef {
        epoch: 1 << 62,
        bytes: 1 << 30,
        offset: u32::MAX,
        stored: u32::MAX,
        plain: u32::MAX,
        ..reference(9)
    };
    let content = Content {
        cut_epoch: 1 << 62,
        cut_seq: 1 << 62,
        map: Some(largest),
        tail: vec![
            TailSegment {
                object: largest,
                birth: 1 << 62,
                pages: 1 << 48,
            };
            root::TAIL_SEGMENTS_MAX
        ],
        ..content(1)
    };
    let name = "x".repeat(63);
    let key = DataKey {
        from_epoch: 1 << 62,
        ..data_key()
    };
    let volume = NamedVolume {
        volume: [1; 16],
        name: name.clone(),
        keys: vec![key; root::KEYS_MAX],
        unnamed_from: Some(1 << 62),
    };
    let snapshot = Snapshot {
        id: [6; 16],
        name: name.clone(),
        size_bytes: 1 << 53,
        content: content.clone(),
    };
    let mut root = full_root(Vec::new());
    root.name = name;
    root.content = content;
    root.volumes = vec![volume; root::VOLUMES_MAX];
    root.snapshots = vec![snapshot; SNAPSHOTS_MAX];
    root.owner = Some(RootOwner {
        cache: [2; 16],
        host: "h".repeat(255),
    });
    let bytes = root.encode(None).len();
    assert!(bytes <= root::ENVELOPE.body_bytes_max, "{bytes} bytes");
}

#[test]
fn golden_pin() {
    let pin = Pin {
        child: [7; 16],
        name: "child".to_owned(),
        cut: Some((3, 1_000)),
        over: None,
        reader: None,
    };
    let golden = golden!("pin-1");
    assert_golden("pin-1", &pin.encode(None), &golden);
    let key = pin.key("parent");
    assert_eq!(Pin::decode(&key, &golden, None).expect("readable"), pin);
    let pin = Pin {
        child: [8; 16],
        name: "parent".to_owned(),
        cut: Some((3, 1_000)),
        over: None,
        reader: Some(Reader::new("node-a", 1_795_132_800_000)),
    };
    let golden = golden!("pin-1-reader");
    assert_golden("pin-1-reader", &pin.encode(None), &golden);
    let key = pin.key("parent");
    assert_eq!(Pin::decode(&key, &golden, None).expect("readable"), pin);
}
