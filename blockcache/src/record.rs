//! Records and batches of the log, as bytes and back. Pure; `docs/format/log.md` draws them.
//!
//! A batch is one header page and the data pages of its records. The header's CRC covers the chunk's
//! random life id, so a batch of an earlier life of the same chunk never counts (rule 4). Every data
//! page has its own CRC in its record's descriptor, so a page is checked whenever it is read.

use world::ETag;

use crate::cache::{FillKey, ForkBase, Intent, PendingFork};
use crate::codec::{Put, Take, crc32c};
use crate::{Epoch, Id, PageNo, PageRange, Seq};

/// Bytes of a page, as the size of a buffer, and in 32 bits for counts within a chunk.
pub(crate) const PAGE: usize = 4096;
pub(crate) const PAGE_U32: u32 = 4096;
/// Fixed part of a batch header.
pub(crate) const BATCH_HEAD_BYTES: usize = 32;
/// What the descriptors of one batch may take.
pub(crate) const DESCRIPTORS_BYTES_MAX: usize = PAGE - BATCH_HEAD_BYTES;
/// Data pages of one record: its checksums must fit a header with room for others.
pub(crate) const RECORD_PAGES_MAX: u64 = 256;
/// Publishes of one volume with unknown outcome; more wait until one is resolved.
pub(crate) const INTENTS_MAX: usize = 8;
/// Accepted losses of one volume. Each is a branch that its log must know not to follow; a volume that
/// is dropped from the log begins anew.
pub(crate) const LOSSES_MAX: usize = 4;
/// Forks of one volume that are noted here and not done in the store. At the bound no more are noted.
pub const FORKS_MAX: usize = 16;
/// Longest volume name and longest ETag that a state record takes.
pub(crate) const TEXT_BYTES_MAX: usize = 255;

/// A state record without its name and lists: kind, id, length of the name, size, epoch, nonce, published,
/// last, valid_lsn, attached, damaged, number of intents, of losses, of forks, of bases.
const STATE_FIXED_BYTES: usize = 1 + 16 + 2 + 8 + 8 + 16 + 8 + 8 + 8 + 1 + 1 + 1 + 1 + 1 + 1;
const FORK_BYTES: usize = 16 + 8 + 1;
/// A base without its name.
const BASE_BYTES: usize = 16 + 2 + 8;

const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"GBAT");
const WRITE: u8 = 1;
const PARTIAL: u8 = 2;
const ZERO: u8 = 3;
const STATE: u8 = 4;
const FILL: u8 = 5;
const MOVED: u8 = 6;

const _: () = assert!(46 + 4 * RECORD_PAGES_MAX <= DESCRIPTORS_BYTES_MAX as u64);
const _: () = assert!(
    (INTENTS_MAX + 2) * (2 + TEXT_BYTES_MAX + 24) + LOSSES_MAX * 16 + FORKS_MAX * FORK_BYTES + 128
        <= DESCRIPTORS_BYTES_MAX,
    "a full state record fits one batch"
);

/// Whose write it is, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) volume: Id,
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
}

/// One descriptor. Its data pages, if any, follow in the batch in order of the descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Whole pages from `start`, one CRC each.
    Write {
        stamp: Stamp,
        start: PageNo,
        crcs: Vec<u32>,
    },
    /// Some 512-byte sectors of one page (bit 0 is the first); the data page holds them in place.
    Partial {
        stamp: Stamp,
        page: PageNo,
        mask: u8,
        crc: u32,
    },
    /// These pages are zeros.
    Zero { stamp: Stamp, pages: PageRange },
    /// What the log knows of a volume; the newest counts.
    State(VolumeState),
    /// A decoded frame of an immutable object.
    Fill { key: FillKey, crcs: Vec<u32> },
    /// A write, partial or zero record that was taken along from a chunk that had to go. It has its
    /// old place in the order of its volume, and counts only while it is unpublished: what was
    /// written after it may lie before it in the log.
    Moved(Box<Record>),
}

/// The durable knowledge of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeState {
    pub(crate) id: Id,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) epoch: Epoch,
    pub(crate) nonce: Id,
    pub(crate) published: Seq,
    /// The last write when this was written down: if it is not there at a start, it was lost.
    pub(crate) last: Seq,
    /// LBA-keyed records in batches before this one do not count (rule 11).
    pub(crate) valid_lsn: u64,
    pub(crate) attached: bool,
    /// A start found unpublished records of it missing, and nobody has accepted the loss yet.
    pub(crate) damaged: bool,
    pub(crate) intents: Vec<Intent>,
    pub(crate) losses: Vec<Loss>,
    /// Forks of it that are not done in the store.
    pub(crate) forks: Vec<PendingFork>,
    /// Of a fork that is not in the store: what it is made of.
    pub(crate) base: Option<ForkBase>,
}

/// A loss that an operator has accepted (rule 8): of the records in batches before `lsn` only those up
/// to `kept` count. What lay behind the hole must not come back beside what was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) lsn: u64,
    pub(crate) kept: Seq,
}

impl VolumeState {
    /// Of a volume to test with, whose cache took part in nothing so far.
    #[cfg(test)]
    pub(crate) fn sample(id: Id) -> Self {
        Self {
            id,
            name: format!("vm-{}", id.0[0]),
            size_bytes: 1 << 30,
            epoch: Epoch(1),
            nonce: Id([9; 16]),
            published: Seq(0),
            last: Seq(0),
            valid_lsn: 0,
            attached: true,
            damaged: false,
            intents: Vec::new(),
            losses: Vec::new(),
            forks: Vec::new(),
            base: None,
        }
    }

    /// Whether a record of the volume that stands in batch `lsn` counts.
    pub(crate) fn counts(&self, lsn: u64, seq: Seq) -> bool {
        let mut losses = self.losses.iter();
        lsn >= self.valid_lsn && losses.all(|loss| lsn >= loss.lsn || seq <= loss.kept)
    }
}

impl Record {
    /// How many data pages follow.
    pub(crate) fn data_pages(&self) -> usize {
        match self {
            Self::Write { crcs, .. } | Self::Fill { crcs, .. } => crcs.len(),
            Self::Partial { .. } => 1,
            Self::Zero { .. } | Self::State(_) => 0,
            Self::Moved(record) => record.data_pages(),
        }
    }

    /// Whose write it is, if it is one where it stands.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Write { stamp, .. } | Self::Partial { stamp, .. } | Self::Zero { stamp, .. } => {
                Some(*stamp)
            }
            Self::State(_) | Self::Fill { .. } | Self::Moved(_) => None,
        }
    }

    /// The checksums of its data pages.
    pub(crate) fn crcs(&self) -> &[u32] {
        match self {
            Self::Write { crcs, .. } | Self::Fill { crcs, .. } => crcs,
            Self::Partial { crc, .. } => std::slice::from_ref(crc),
            Self::Zero { .. } | Self::State(_) => &[],
            Self::Moved(record) => record.crcs(),
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => 1 + 32 + 8 + 4 + 4 * crcs.len(),
            Self::Partial { .. } => 1 + 32 + 8 + 1 + 4,
            Self::Zero { .. } => 1 + 32 + 16,
            Self::State(state) => {
                let tags: usize = state
                    .intents
                    .iter()
                    .map(|i| 16 + 8 + 2 + i.replaces.0.len())
                    .sum();
                let lists = 16 * state.losses.len() + FORK_BYTES * state.forks.len();
                let base = state
                    .base
                    .as_ref()
                    .map_or(0, |it| BASE_BYTES + it.name.len());
                STATE_FIXED_BYTES + state.name.len() + tags + lists + base
            }
            Self::Fill { crcs, .. } => 1 + 16 + 4 + 4 + 4 * crcs.len(),
            Self::Moved(record) => 1 + record.encoded_len(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let before = out.len();
        match self {
            Self::Write { stamp, start, crcs } => {
                put_stamp(out, WRITE, *stamp);
                out.put_u64(start.0);
                put_crcs(out, crcs);
            }
            Self::Partial {
                stamp,
                page,
                mask,
                crc,
            } => {
                put_stamp(out, PARTIAL, *stamp);
                out.put_u64(page.0);
                out.put_u8(*mask);
                out.put_u32(*crc);
            }
            Self::Zero { stamp, pages } => {
                put_stamp(out, ZERO, *stamp);
                out.put_u64(pages.start.0);
                out.put_u64(pages.end.0);
            }
            Self::State(state) => put_state(out, state),
            Self::Fill { key, crcs } => {
                out.put_u8(FILL);
                out.put(&key.object.0);
                out.put_u32(key.frame);
                put_crcs(out, crcs);
            }
            Self::Moved(record) => {
                out.put_u8(MOVED);
                record.encode(out);
            }
        }
        assert_eq!(
            out.len() - before,
            self.encoded_len(),
            "the length told is the length written"
        );
    }

    /// The next descriptor; none if the bytes are not one.
    pub(crate) fn decode(take: &mut Take<'_>) -> Option<Self> {
        match take.u8()? {
            WRITE => {
                let stamp = take_stamp(take)?;
                Some(Self::Write {
                    stamp,
                    start: take.page()?,
                    crcs: take_crcs(take)?,
                })
            }
            PARTIAL => {
                let stamp = take_stamp(take)?;
                Some(Self::Partial {
                    stamp,
                    page: take.page()?,
                    mask: take.u8()?,
                    crc: take.u32()?,
                })
            }
            ZERO => {
                let stamp = take_stamp(take)?;
                let (start, end) = (take.u64()?, take.u64()?);
                (start <= end).then(|| Self::Zero {
                    stamp,
                    pages: PageRange::new(start, end),
                })
            }
            STATE => take_state(take).map(Self::State),
            FILL => {
                let key = FillKey {
                    object: take.id()?,
                    frame: take.u32()?,
                };
                Some(Self::Fill {
                    key,
                    crcs: take_crcs(take)?,
                })
            }
            // The kinds that may be moved, so that nothing nests.
            MOVED if matches!(take.0.first(), Some(&(WRITE | PARTIAL | ZERO))) => {
                Some(Self::Moved(Box::new(Self::decode(take)?)))
            }
            _ => None,
        }
    }
}

fn put_stamp(out: &mut Vec<u8>, kind: u8, stamp: Stamp) {
    out.put_u8(kind);
    out.put(&stamp.volume.0);
    out.put_u64(stamp.epoch.0);
    out.put_u64(stamp.seq.0);
}

fn take_stamp(take: &mut Take<'_>) -> Option<Stamp> {
    Some(Stamp {
        volume: take.id()?,
        epoch: Epoch(take.u64()?),
        seq: take.seq()?,
    })
}

fn put_crcs(out: &mut Vec<u8>, crcs: &[u32]) {
    out.put_u32(u32::try_from(crcs.len()).expect("at most RECORD_PAGES_MAX"));
    crcs.iter().for_each(|crc| out.put_u32(*crc));
}

fn take_crcs(take: &mut Take<'_>) -> Option<Vec<u32>> {
    let count = u64::from(take.u32()?);
    if count == 0 || count > RECORD_PAGES_MAX {
        return None;
    }
    (0..count).map(|_| take.u32()).collect()
}

fn put_state(out: &mut Vec<u8>, state: &VolumeState) {
    out.put_u8(STATE);
    out.put(&state.id.0);
    out.put_text(&state.name);
    out.put_u64(state.size_bytes);
    out.put_u64(state.epoch.0);
    out.put(&state.nonce.0);
    out.put_u64(state.published.0);
    out.put_u64(state.last.0);
    out.put_u64(state.valid_lsn);
    out.put_u8(u8::from(state.attached));
    out.put_u8(u8::from(state.damaged));
    out.put_u8(u8::try_from(state.intents.len()).expect("at most INTENTS_MAX"));
    for intent in &state.intents {
        out.put(&intent.nonce.0);
        out.put_u64(intent.cut.0);
        out.put_text(&intent.replaces.0);
    }
    out.put_u8(u8::try_from(state.losses.len()).expect("at most LOSSES_MAX"));
    for loss in &state.losses {
        out.put_u64(loss.lsn);
        out.put_u64(loss.kept.0);
    }
    out.put_u8(u8::try_from(state.forks.len()).expect("at most FORKS_MAX"));
    for fork in &state.forks {
        out.put(&fork.child.0);
        out.put_u64(fork.cut.0);
        out.put_u8(u8::from(fork.is_carried));
    }
    out.put_u8(u8::from(state.base.is_some()));
    if let Some(base) = &state.base {
        out.put(&base.parent.0);
        out.put_text(&base.name);
        out.put_u64(base.cut.0);
    }
}

fn take_state(take: &mut Take<'_>) -> Option<VolumeState> {
    let id = take.id()?;
    let name = take.text()?;
    let size_bytes = take.u64()?;
    let epoch = Epoch(take.u64()?);
    let nonce = take.id()?;
    let published = take.seq()?;
    let last = take.seq()?;
    let valid_lsn = take.u64()?;
    let (attached, damaged) = (take.u8()? != 0, take.u8()? != 0);
    let intents = (0..take.u8()?)
        .map(|_| {
            let (nonce, cut) = (take.id()?, take.seq()?);
            Some(Intent {
                nonce,
                cut,
                replaces: ETag(take.text()?),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let losses = (0..take.u8()?)
        .map(|_| {
            Some(Loss {
                lsn: take.u64()?,
                kept: take.seq()?,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let forks = (0..take.u8()?)
        .map(|_| {
            Some(PendingFork {
                child: take.id()?,
                cut: take.seq()?,
                is_carried: take.u8()? != 0,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    let base = match take.u8()? {
        0 => None,
        _ => Some(ForkBase {
            parent: take.id()?,
            name: take.text()?,
            cut: take.seq()?,
        }),
    };
    Some(VolumeState {
        id,
        name,
        size_bytes,
        epoch,
        nonce,
        published,
        last,
        valid_lsn,
        attached,
        damaged,
        intents,
        losses,
        forks,
        base,
    })
}

/// The head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    /// Position in the log's total order; dense.
    pub(crate) lsn: u64,
    /// Everything up to this batch was durable when this one was written. A hole at or below it is
    /// damage, not a torn tail.
    pub(crate) durable_lsn: u64,
    pub(crate) data_pages: u32,
}

/// Completes a header page whose descriptors stand at `BATCH_HEAD_BYTES..used`.
pub(crate) fn seal_batch(page: &mut [u8], used: usize, head: BatchHead, life: Id) {
    let mut fixed = Vec::with_capacity(BATCH_HEAD_BYTES);
    fixed.put_u32(BATCH_MAGIC);
    fixed.put_u32(0);
    fixed.put_u64(head.lsn);
    fixed.put_u64(head.durable_lsn);
    fixed.put_u32(head.data_pages);
    fixed.put_u32(u32::try_from(used).expect("within one page"));
    page[..BATCH_HEAD_BYTES].copy_from_slice(&fixed);
    page[used..PAGE].fill(0);
    let crc = crc32c(&[&life.0, &page[8..PAGE]]);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a header page of the chunk life `life`; gives the head and the bytes of the descriptors.
pub(crate) fn open_batch(page: &[u8], life: Id) -> Option<(BatchHead, &[u8])> {
    let page = page.get(..PAGE)?;
    let mut take = Take(page);
    if take.u32()? != BATCH_MAGIC {
        return None;
    }
    let crc = take.u32()?;
    if crc != crc32c(&[&life.0, &page[8..]]) {
        return None;
    }
    let head = BatchHead {
        lsn: take.u64()?,
        durable_lsn: take.u64()?,
        data_pages: take.u32()?,
    };
    let used = usize::try_from(take.u32()?).ok()?;
    Some((head, page.get(BATCH_HEAD_BYTES..used)?))
}

/// All descriptors of a batch; none if they do not parse to the end.
pub(crate) fn records(descriptors: &[u8]) -> Option<Vec<Record>> {
    let mut take = Take(descriptors);
    let mut records = Vec::new();
    while !take.0.is_empty() {
        records.push(Record::decode(&mut take)?);
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn samples() -> Vec<Record> {
        let stamp = Stamp {
            volume: Id([7; 16]),
            epoch: Epoch(3),
            seq: Seq(9),
        };
        let intent = Intent {
            nonce: Id([1; 16]),
            cut: Seq(8),
            replaces: ETag("\"e\"".into()),
        };
        vec![
            Record::Write {
                stamp,
                start: PageNo(5),
                crcs: vec![1, 2, 3],
            },
            Record::Partial {
                stamp,
                page: PageNo(6),
                mask: 0b101,
                crc: 9,
            },
            Record::Zero {
                stamp,
                pages: PageRange::new(0, 1 << 40),
            },
            Record::State(VolumeState {
                id: Id([7; 16]),
                name: "vm-alice".into(),
                size_bytes: 1 << 30,
                epoch: Epoch(3),
                nonce: Id([2; 16]),
                published: Seq(4),
                last: Seq(9),
                valid_lsn: 17,
                attached: true,
                damaged: false,
                intents: vec![intent],
                losses: vec![Loss {
                    lsn: 18,
                    kept: Seq(6),
                }],
                forks: vec![PendingFork {
                    child: Id([5; 16]),
                    cut: Seq(9),
                    is_carried: true,
                }],
                base: Some(ForkBase {
                    parent: Id([6; 16]),
                    name: "golden".into(),
                    cut: Seq(4),
                }),
            }),
            Record::Fill {
                key: FillKey {
                    object: Id([4; 16]),
                    frame: 2,
                },
                crcs: vec![5],
            },
            Record::Moved(Box::new(Record::Partial {
                stamp,
                page: PageNo(1),
                mask: 0b10,
                crc: 4,
            })),
        ]
    }

    fn page_of(records_in: &[Record], life: Id) -> (Vec<u8>, BatchHead) {
        let mut page = vec![0; BATCH_HEAD_BYTES];
        records_in
            .iter()
            .for_each(|record| record.encode(&mut page));
        let used = page.len();
        page.resize(PAGE, 0);
        let head = BatchHead {
            lsn: 11,
            durable_lsn: 10,
            data_pages: 6,
        };
        seal_batch(&mut page, used, head, life);
        (page, head)
    }

    #[test]
    fn a_batch_reads_back_as_written() {
        let life = Id([9; 16]);
        let (page, head) = page_of(&samples(), life);
        let (read, descriptors) = open_batch(&page, life).expect("valid");
        assert_eq!(read, head);
        assert_eq!(records(descriptors).expect("parses"), samples());
    }

    #[test]
    fn a_batch_of_another_life_does_not_count() {
        let (page, _) = page_of(&samples(), Id([9; 16]));
        assert!(open_batch(&page, Id([8; 16])).is_none());
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let life = Id([9; 16]);
        let (page, _) = page_of(&samples(), life);
        for at in 0..PAGE {
            let mut bad = page.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(open_batch(&bad, life).is_none(), "flip at byte {at}");
        }
    }

    proptest! {
        #[test]
        fn random_descriptors_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = records(&bytes);
        }
    }
}
