//! The bytes of the log, pinned: a change here is a new format (`docs/format/log.md`, rule 31).

use world::ETag;

use crate::cache::{FillKey, ForkBase, Intent, PendingFork};
use crate::chunk::{ChunkHeader, ChunkKind, FooterBuilder, Superblock};
use crate::record::{
    BATCH_HEAD_BYTES, BatchHead, Loss, PAGE, Record, Stamp, VolumeState, seal_batch,
};
use crate::{Epoch, Id, PageNo, PageRange, Seq};

/// Hex, without the zeros that end a page.
fn hex(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |n| n + 1);
    bytes[..end]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn stamp() -> Stamp {
    Stamp {
        volume: Id([0xaa; 16]),
        epoch: Epoch(0x0102),
        seq: Seq(0x0304_0506),
    }
}

fn write() -> Record {
    Record::Write {
        stamp: stamp(),
        start: PageNo(0x1122),
        crcs: vec![0xdead_beef, 0xcafe_f00d],
    }
}

fn descriptor(record: &Record) -> String {
    let mut out = Vec::new();
    record.encode(&mut out);
    hex(&out)
}

const STAMP: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa02010000000000000605040300000000";

#[test]
fn records_have_these_bytes() {
    let pages = PageRange::new(1, 0x0100_0000_0001);
    let zero = Record::Zero {
        stamp: stamp(),
        pages,
    };
    let partial = Record::Partial {
        stamp: stamp(),
        page: PageNo(9),
        mask: 0b1010_0101,
        crc: 0x0102_0304,
    };
    let key = FillKey {
        object: Id([0xbb; 16]),
        frame: 7,
    };
    let fill = Record::Fill { key, crcs: vec![1] };
    let bytes = format!("01{STAMP}221100000000000002000000efbeadde0df0feca");
    assert_eq!(descriptor(&write()), bytes);
    assert_eq!(
        descriptor(&Record::Moved(Box::new(write()))),
        format!("06{bytes}")
    );
    let bytes = format!("02{STAMP}0900000000000000a504030201");
    assert_eq!(descriptor(&partial), bytes);
    let bytes = format!("03{STAMP}01000000000000000100000000010000");
    assert!(
        bytes.starts_with(&descriptor(&zero)),
        "{}",
        descriptor(&zero)
    );
    let bytes = format!("05{}070000000100000001000000", "bb".repeat(16));
    assert!(
        bytes.starts_with(&descriptor(&fill)),
        "{}",
        descriptor(&fill)
    );
}

#[test]
fn a_state_record_has_these_bytes() {
    let state = Record::State(VolumeState {
        id: Id([0xaa; 16]),
        name: "vm".into(),
        size_bytes: 1 << 30,
        epoch: Epoch(2),
        nonce: Id([0xcc; 16]),
        published: Seq(3),
        last: Seq(4),
        valid_lsn: 5,
        attached: true,
        damaged: false,
        intents: vec![Intent {
            nonce: Id([0xdd; 16]),
            cut: Seq(4),
            replaces: ETag("e1".into()),
        }],
        losses: vec![Loss {
            lsn: 6,
            kept: Seq(7),
        }],
        forks: vec![PendingFork {
            child: Id([0xee; 16]),
            cut: Seq(8),
            is_carried: true,
        }],
        base: Some(ForkBase {
            parent: Id([0xff; 16]),
            name: "pa".into(),
            cut: Seq(9),
        }),
    });
    let (id, nonce, intent) = ("aa".repeat(16), "cc".repeat(16), "dd".repeat(16));
    let number = |n: u64| hex_of(&n.to_le_bytes());
    let expected = [
        "04".into(),
        id,
        "0200766d".into(),
        number(1 << 30),
        number(2),
        nonce,
        number(3),
        number(4),
        number(5),
        "01".into(),
        "00".into(),
        "01".into(),
        intent,
        number(4),
        "02006531".into(),
        "01".into(),
        number(6),
        number(7),
        "01".into(),
        "ee".repeat(16),
        number(8),
        "01".into(),
        "01".into(),
        "ff".repeat(16),
        "02007061".into(),
        // The zeros behind it are the page's.
        "09".into(),
    ];
    assert_eq!(descriptor(&state), expected.concat());
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_superblock_has_these_bytes() {
    let page = Superblock {
        cache: Id([0x11; 16]),
        chunk_bytes: 0x0080_0000,
        generation: 2,
        oldest_live: 3,
        stopped: true,
        damaged: false,
        answered_lsn: 4,
    }
    .encode();
    assert_eq!(page.len(), PAGE);
    assert_eq!(hex(&page[..508]), SUPERBLOCK);
    assert_eq!(hex_of(&page[508..512]), "ff3cb007");
    assert_eq!(hex(&page[512..]), "");
}

const SUPERBLOCK: &str = "474c4944454c4f470100\
    11111111111111111111111111111111000080000200000000000000\
    0300000000000000010004";

#[test]
fn a_chunk_header_has_these_bytes() {
    let page = ChunkHeader {
        kind: ChunkKind::Fills,
        life: Id([0x22; 16]),
        ordinal: 5,
        oldest_live: 3,
        durable_ordinal: 4,
        process: Id([0x33; 16]),
        previous: Id([0x44; 16]),
        accepted_lsn: 6,
    }
    .encode();
    assert_eq!(page.len(), PAGE);
    assert_eq!(hex(&page[..508]), HEADER);
    assert_eq!(hex_of(&page[508..512]), "fba8cfaf");
    assert_eq!(hex(&page[512..]), "");
}

const HEADER: &str = "4743484b0100020022222222222222222222222222222222\
    050000000000000003000000000000000400000000000000\
    333333333333333333333333333333334444444444444444444444444444444406";

#[test]
fn a_batch_has_these_bytes() {
    let mut page = vec![0; BATCH_HEAD_BYTES];
    write().encode(&mut page);
    let used = page.len();
    page.resize(PAGE, 0xee);
    let head = BatchHead {
        lsn: 0x0a0b,
        durable_lsn: 0x0a00,
        data_pages: 2,
    };
    seal_batch(&mut page, used, head, Id([0x22; 16]));
    let expected = format!(
        "47424154e9ab51fc0b0a000000000000000a0000000000000200000055000000{}",
        descriptor(&write())
    );
    assert_eq!(hex(&page), expected);
}

#[test]
fn a_footer_has_these_bytes() {
    let mut builder = FooterBuilder::default();
    let mut descriptors = Vec::new();
    Record::Zero {
        stamp: stamp(),
        pages: PageRange::new(0, 0),
    }
    .encode(&mut descriptors);
    builder.add(0x0a0b, 1, &descriptors);
    builder.add(0x0a0c, 2, &[]);
    let footer = builder.encode(Id([0x22; 16]));
    assert_eq!(footer.len(), PAGE);
    let body = format!(
        "0b0a000000000000010000003100000003{STAMP}{}0c0a0000000000000200000000000000",
        "00".repeat(16)
    );
    assert_eq!(hex_of(&footer[..body.len() / 2]), body);
    assert_eq!(
        hex_of(&footer[PAGE - 40..]),
        "47464f5451000000020000000b0a0000000000000c0a00000000000000000000000000001d2bda69"
    );
}
