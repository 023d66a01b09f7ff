//! Chunk headers, chunk footers and the superblock, as bytes and back. Pure; `docs/format/log.md`
//! draws them.
//!
//! A chunk is one life of a fixed piece of the log file: a header page, batches, and a footer at its
//! end that repeats every descriptor, so that a start reads headers and footers and no data. A chunk
//! without a footer is scanned batch by batch.

use crate::codec::{Put, Take, crc32c};
use crate::record::{BATCH_HEAD_BYTES, PAGE, Record, records};
use crate::{CacheError, Id};

/// The format that this version writes and the highest that it reads (rule 31).
pub(crate) const FORMAT: u16 = 1;
/// Bytes before the first chunk: two copies of the superblock, and room.
pub(crate) const SUPERBLOCK_BYTES: u64 = 64 * 1024;
/// Where the copies are.
pub(crate) const SUPERBLOCK_AT: [u64; 2] = [0, 4096];

/// The unit that a disk writes wholly or not at all.
const SECTOR: usize = 512;
/// A smaller chunk has no room for a header, a batch and a footer to speak of.
pub(crate) const CHUNK_BYTES_MIN: u32 = 64 * 1024;

const SUPER_MAGIC: &[u8; 8] = b"GLIDELOG";
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"GCHK");
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"GFOT");
/// The fixed end of a footer, at the very end of its chunk.
pub(crate) const TRAILER_BYTES: usize = 40;
/// What each batch costs in the footer besides its descriptors.
pub(crate) const FOOTER_BATCH_BYTES: usize = 16;

/// The first page of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Random; names this cache as an owner (rule 18).
    pub(crate) cache: Id,
    pub(crate) chunk_bytes: u32,
    /// Of two copies the higher generation counts.
    pub(crate) generation: u64,
    /// Write chunks with lower ordinals are gone for good: durable before the first of them is
    /// overwritten, so that one that is missing later was not evicted but lost.
    pub(crate) oldest_live: u64,
    /// A write or fsync failed; memory and disk may differ (rule 8).
    pub(crate) stopped: bool,
    /// A start found durable records missing, and has not yet noted so with each volume.
    pub(crate) damaged: bool,
    /// Where it stopped: the last batch whose writes were answered.
    pub(crate) answered_lsn: u64,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE);
        out.put(SUPER_MAGIC);
        out.put_u16(FORMAT);
        out.put(&self.cache.0);
        out.put_u32(self.chunk_bytes);
        out.put_u64(self.generation);
        out.put_u64(self.oldest_live);
        out.put_u8(u8::from(self.stopped));
        out.put_u8(u8::from(self.damaged));
        out.put_u64(self.answered_lsn);
        sealed_page(out)
    }

    /// Whether the page can be what a power cut left of a superblock on a new file: of its first
    /// sector and its checksum, each is there or zero, and there is nothing else.
    pub(crate) fn may_be_torn(page: &[u8]) -> bool {
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let (first, rest) = page.split_at(512);
        (first.starts_with(SUPER_MAGIC) || zero(first)) && zero(&rest[..rest.len() - 4])
    }

    /// `Ok(None)`: not a superblock (torn, or never written).
    pub(crate) fn decode(
        page: &[u8],
        foreign: impl Fn(String) -> CacheError,
    ) -> Result<Option<Self>, CacheError> {
        let parse = || {
            let mut take = Take(page.get(..PAGE)?);
            if take.bytes(8)? != SUPER_MAGIC {
                return None;
            }
            let format = take.u16()?;
            let (cache, chunk_bytes) = (take.id()?, take.u32()?);
            let (generation, oldest_live) = (take.u64()?, take.u64()?);
            let (stopped, damaged) = (take.u8()? != 0, take.u8()? != 0);
            let answered_lsn = take.u64()?;
            let sound = is_sound(page);
            Some((
                format,
                sound,
                Self {
                    cache,
                    chunk_bytes,
                    generation,
                    oldest_live,
                    stopped,
                    damaged,
                    answered_lsn,
                },
            ))
        };
        match parse() {
            Some((format, _, _)) if format > FORMAT => Err(foreign(format!(
                "cache format {format}, but this version knows formats up to {FORMAT}; start the \
                 glidefs that wrote it, or give this one an empty `cache.dir`"
            ))),
            Some((_, true, superblock)) if superblock.plausible() => Ok(Some(superblock)),
            _ => Ok(None),
        }
    }

    fn plausible(&self) -> bool {
        let bytes = self.chunk_bytes;
        bytes.is_power_of_two() && (CHUNK_BYTES_MIN..=256 * 1024 * 1024).contains(&bytes)
    }
}

/// A page whose content, with its checksum, lies in its first sector: a power cut leaves the old one
/// or the new one, never a mix that is neither. A chunk that is prepared again keeps its place so.
fn sealed_page(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(SECTOR - 4, 0);
    let crc = crc32c(&[&out]);
    out.put_u32(crc);
    out.resize(PAGE, 0);
    out
}

fn is_sound(page: &[u8]) -> bool {
    page[SECTOR - 4..SECTOR] == crc32c(&[&page[..SECTOR - 4]]).to_le_bytes()
}

/// What a chunk holds; write chunks are evicted in order, fill chunks in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    Writes,
    Fills,
}

/// The first page of a chunk's life: durable before its first record (rule 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    pub(crate) kind: ChunkKind,
    /// Random; in the CRC of everything in the chunk.
    pub(crate) life: Id,
    /// Dense over all write chunks ever (fill chunks count for themselves).
    pub(crate) ordinal: u64,
    /// Write chunks with lower ordinals are gone for good, even if their bytes are still there.
    pub(crate) oldest_live: u64,
    /// Write chunks up to this ordinal had durable headers when this one was written: one of them
    /// that is missing was lost, one beyond may never have been.
    pub(crate) durable_ordinal: u64,
    /// The start record, repeated in every chunk of the process: which run of the server wrote this,
    /// which one came before it, and the last batch that counted then.
    pub(crate) process: Id,
    pub(crate) previous: Id,
    pub(crate) accepted_lsn: u64,
}

impl ChunkHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE);
        out.put_u32(HEADER_MAGIC);
        out.put_u16(FORMAT);
        out.put_u16(match self.kind {
            ChunkKind::Writes => 1,
            ChunkKind::Fills => 2,
        });
        out.put(&self.life.0);
        out.put_u64(self.ordinal);
        out.put_u64(self.oldest_live);
        out.put_u64(self.durable_ordinal);
        out.put(&self.process.0);
        out.put(&self.previous.0);
        out.put_u64(self.accepted_lsn);
        sealed_page(out)
    }

    pub(crate) fn decode(page: &[u8]) -> Option<Self> {
        let page = page.get(..PAGE)?;
        if !is_sound(page) {
            return None;
        }
        let mut take = Take(page);
        if take.u32()? != HEADER_MAGIC || take.u16()? > FORMAT {
            return None;
        }
        let kind = match take.u16()? {
            1 => ChunkKind::Writes,
            2 => ChunkKind::Fills,
            _ => return None,
        };
        Some(Self {
            kind,
            life: take.id()?,
            ordinal: take.u64()?,
            oldest_live: take.u64()?,
            durable_ordinal: take.u64()?,
            process: take.id()?,
            previous: take.id()?,
            accepted_lsn: take.u64()?,
        })
    }
}

/// One batch as a footer or a scan tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) lsn: u64,
    /// The page of the chunk that holds its header; data follows.
    pub(crate) page: u32,
    pub(crate) records: Vec<Record>,
}

impl Batch {
    /// Each record with the page of the chunk where its data starts.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (u32, &Record)> {
        let mut next = self.page + 1;
        self.records.iter().map(move |record| {
            let at = next;
            next += u32::try_from(record.data_pages()).expect("within a chunk");
            (at, record)
        })
    }

    /// Pages that the batch takes, its header included.
    pub(crate) fn pages(&self) -> u32 {
        let data: usize = self.records.iter().map(Record::data_pages).sum();
        1 + u32::try_from(data).expect("within a chunk")
    }
}

/// Collects the footer while a chunk fills.
#[derive(Clone, Debug, Default)]
pub(crate) struct FooterBuilder {
    body: Vec<u8>,
    batches: u32,
    first_lsn: u64,
    last_lsn: u64,
}

impl FooterBuilder {
    pub(crate) fn add(&mut self, lsn: u64, page: u32, descriptors: &[u8]) {
        if self.batches == 0 {
            self.first_lsn = lsn;
        }
        self.last_lsn = lsn;
        self.batches += 1;
        self.body.put_u64(lsn);
        self.body.put_u32(page);
        self.body
            .put_u32(u32::try_from(descriptors.len()).expect("within one page"));
        self.body.put(descriptors);
    }

    /// Pages that the footer takes if `more` bytes of batches are still added.
    pub(crate) fn pages_with(&self, more: usize) -> u32 {
        u32::try_from((self.body.len() + more + TRAILER_BYTES).div_ceil(PAGE)).expect("in a chunk")
    }

    /// The footer's bytes: whole pages, to be put at the very end of the chunk.
    pub(crate) fn encode(&self, life: Id) -> Vec<u8> {
        let pages = usize::try_from(self.pages_with(0)).expect("in a chunk");
        let mut out = self.body.clone();
        out.resize(pages * PAGE - TRAILER_BYTES, 0);
        out.put_u32(FOOTER_MAGIC);
        out.put_u32(u32::try_from(self.body.len()).expect("in a chunk"));
        out.put_u32(self.batches);
        out.put_u64(self.first_lsn);
        out.put_u64(self.last_lsn);
        out.put_u64(0);
        let crc = crc32c(&[&life.0, &out]);
        out.put_u32(crc);
        out
    }
}

/// The end of a footer: how long the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) body_bytes: usize,
    pub(crate) first_lsn: u64,
    pub(crate) last_lsn: u64,
}

impl Trailer {
    /// From the last page of a chunk. Only plausible yet: the CRC is checked over the whole footer.
    pub(crate) fn peek(last_page: &[u8], chunk_bytes: usize) -> Option<Self> {
        let mut take = Take(last_page.get(PAGE - TRAILER_BYTES..PAGE)?);
        if take.u32()? != FOOTER_MAGIC {
            return None;
        }
        let body_bytes = usize::try_from(take.u32()?).ok()?;
        let _batches = take.u32()?;
        let (first_lsn, last_lsn) = (take.u64()?, take.u64()?);
        (body_bytes + TRAILER_BYTES + PAGE <= chunk_bytes).then_some(Self {
            body_bytes,
            first_lsn,
            last_lsn,
        })
    }

    /// Bytes of the whole footer, in whole pages.
    pub(crate) fn footer_bytes(&self) -> usize {
        (self.body_bytes + TRAILER_BYTES).div_ceil(PAGE) * PAGE
    }
}

/// Parses a whole footer (as many bytes as [`Trailer::footer_bytes`]); none unless it is sound and
/// of this life.
pub(crate) fn open_footer(footer: &[u8], life: Id) -> Option<Vec<Batch>> {
    let (covered, crc) = footer.split_at_checked(footer.len().checked_sub(4)?)?;
    if crc != crc32c(&[&life.0, covered]).to_le_bytes() {
        return None;
    }
    let trailer = Trailer::peek(
        footer.get(footer.len().checked_sub(PAGE)?..)?,
        usize::MAX - PAGE,
    )?;
    let mut take = Take(footer.get(..trailer.body_bytes)?);
    let mut batches = Vec::new();
    while !take.0.is_empty() {
        let (lsn, page, len) = (take.u64()?, take.u32()?, take.u32()?);
        let descriptors = take.bytes(usize::try_from(len).ok()?)?;
        batches.push(Batch {
            lsn,
            page,
            records: records(descriptors)?,
        });
    }
    Some(batches)
}

/// What a batch with so many descriptor bytes adds to a footer.
pub(crate) fn footer_cost(header_used: usize) -> usize {
    FOOTER_BATCH_BYTES + header_used.saturating_sub(BATCH_HEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Stamp;
    use crate::{Epoch, PageNo, Seq};

    fn foreign(what: String) -> CacheError {
        CacheError::Foreign {
            path: "log".into(),
            what,
        }
    }

    #[test]
    fn a_superblock_reads_back_and_a_flipped_bit_is_seen() {
        let superblock = Superblock {
            cache: Id([3; 16]),
            chunk_bytes: 1 << 20,
            generation: 4,
            oldest_live: 7,
            stopped: false,
            damaged: true,
            answered_lsn: 99,
        };
        let page = superblock.encode();
        assert_eq!(page.len(), PAGE);
        assert_eq!(
            Superblock::decode(&page, foreign).expect("known"),
            Some(superblock)
        );
        let mut bad = page;
        bad[100] ^= 1;
        assert_eq!(Superblock::decode(&bad, foreign).expect("known"), None);
    }

    #[test]
    fn a_newer_superblock_is_refused_with_its_format() {
        let superblock = Superblock {
            cache: Id([3; 16]),
            chunk_bytes: 1 << 20,
            generation: 4,
            oldest_live: 7,
            stopped: false,
            damaged: true,
            answered_lsn: 99,
        };
        let mut page = superblock.encode();
        page[8] = 9;
        let error = Superblock::decode(&page, foreign).expect_err("newer");
        assert!(error.to_string().contains("format 9"), "{error}");
    }

    #[test]
    fn a_header_reads_back_and_a_flipped_bit_is_seen() {
        let header = ChunkHeader {
            kind: ChunkKind::Fills,
            life: Id([1; 16]),
            ordinal: 7,
            oldest_live: 3,
            durable_ordinal: 6,
            process: Id([5; 16]),
            previous: Id([4; 16]),
            accepted_lsn: 99,
        };
        let page = header.encode();
        assert_eq!(ChunkHeader::decode(&page), Some(header));
        for at in 0..SECTOR {
            let mut bad = page.clone();
            bad[at] ^= 0x10;
            assert_eq!(ChunkHeader::decode(&bad), None, "flip at byte {at}");
        }
    }

    #[test]
    fn a_footer_reads_back_and_another_life_does_not() {
        let stamp = Stamp {
            volume: Id([7; 16]),
            epoch: Epoch(1),
            seq: Seq(2),
        };
        let record = Record::Write {
            stamp,
            start: PageNo(5),
            crcs: vec![1; 256],
        };
        let mut descriptors = Vec::new();
        record.encode(&mut descriptors);
        let mut builder = FooterBuilder::default();
        for n in 0..12 {
            builder.add(
                100 + n,
                u32::try_from(n).expect("small") * 300,
                &descriptors,
            );
        }
        let life = Id([6; 16]);
        let footer = builder.encode(life);
        assert_eq!(footer.len() % PAGE, 0);
        let trailer = Trailer::peek(&footer[footer.len() - PAGE..], 1 << 22).expect("plausible");
        assert_eq!(trailer.footer_bytes(), footer.len());
        assert_eq!((trailer.first_lsn, trailer.last_lsn), (100, 111));
        let batches = open_footer(&footer, life).expect("sound");
        assert_eq!(batches.len(), 12);
        assert_eq!(
            batches[3],
            Batch {
                lsn: 103,
                page: 900,
                records: vec![record]
            }
        );
        assert!(open_footer(&footer, Id([0; 16])).is_none());
    }
}
