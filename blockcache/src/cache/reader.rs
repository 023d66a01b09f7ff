//! Reading chunks at start: headers, footers, and whole chunks where there is no footer.

use world::{Buf, DiskErrorKind, File, World};

use crate::chunk::{
    Batch, ChunkHeader, ChunkKind, FooterBuilder, SUPERBLOCK_BYTES, Trailer, open_footer,
};
use crate::codec::page_crc;
use crate::log::{Chunk, ChunkState};
use crate::record::{PAGE, open_batch, records};
use crate::recover::ChunkScan;
use crate::{CacheError, Id};

/// Bytes of a footer that are read at first.
const FOOTER_READ_BYTES: usize = 64 * 1024;

/// Reads chunks at start.
pub(crate) struct Reader<'a, W: World> {
    pub(super) file: &'a W::File,
    pub(super) chunk_bytes: u64,
    /// The last run stopped: the page cache may show what the device never got (rule 8).
    pub(super) from_device: bool,
}

impl<W: World> Reader<'_, W> {
    async fn read(&self, at: u64, len: usize) -> Result<Buf, CacheError> {
        let buf = Buf::zeroed(len);
        let (buf, read) = if self.from_device {
            self.file.read_device_at(at, buf).await
        } else {
            self.file.read_at(at, buf).await
        };
        read?;
        Ok(buf)
    }

    /// Unreadable pages are zeros: no batch has a checksum that fits them.
    async fn read_what_can_be(&self, at: u64, len: usize) -> Result<Buf, CacheError> {
        match self.read(at, len).await {
            Err(error) if is_unreadable(&error) => {}
            other => return other,
        }
        let mut whole = Buf::zeroed(len);
        let mut unreadable = 0;
        for (n, page) in whole.chunks_exact_mut(PAGE).enumerate() {
            match self.read(at + (n * PAGE) as u64, PAGE).await {
                Ok(bytes) => page.copy_from_slice(&bytes),
                Err(error) if is_unreadable(&error) => {
                    unreadable += 1;
                    tracing::debug!(%error, at, page = n, "unreadable page in the cache log");
                }
                Err(error) => return Err(error),
            }
        }
        // What that means is said once for the whole log, when all of it was read. Page by page the disk
        // may have given all of it after all.
        if unreadable > 0 {
            tracing::warn!(at, pages = unreadable, "unreadable pages in the cache log");
        }
        Ok(whole)
    }

    fn start(&self, no: u32) -> u64 {
        SUPERBLOCK_BYTES + u64::from(no) * self.chunk_bytes
    }

    /// Header and trailer of one chunk.
    pub(super) async fn scan_head(&self, no: u32) -> Result<ChunkScan, CacheError> {
        let page = match self.read(self.start(no), PAGE).await {
            Ok(page) => page,
            // An unreadable chunk is a missing one: what that means depends on the others.
            Err(error) if is_unreadable(&error) => {
                tracing::warn!(%error, chunk = no, "unreadable chunk in the cache log");
                return Ok(ChunkScan { no, header: None });
            }
            Err(error) => return Err(error),
        };
        Ok(ChunkScan {
            no,
            header: ChunkHeader::decode(&page),
        })
    }

    /// The batches of a sealed chunk; none if it has no sound footer.
    pub(crate) async fn footer(&self, no: u32, life: Id) -> Result<Option<Vec<Batch>>, CacheError> {
        let end = self.start(no) + self.chunk_bytes;
        let first = FOOTER_READ_BYTES.min(usize::try_from(self.chunk_bytes).expect("bounded") / 2);
        let tail = match self.read(end - first as u64, first).await {
            Ok(tail) => tail,
            // As good as none: what it would say is in the batches as well.
            Err(error) if is_unreadable(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let chunk_len = usize::try_from(self.chunk_bytes).expect("bounded");
        let Some(trailer) = Trailer::peek(&tail[first - PAGE..], chunk_len) else {
            return Ok(None);
        };
        let len = trailer.footer_bytes();
        if len <= first {
            return Ok(open_footer(&tail[first - len..], life));
        }
        match self.read(end - len as u64, len).await {
            Ok(whole) => Ok(open_footer(&whole, life)),
            Err(error) if is_unreadable(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The batches of a chunk without a footer, in order, as long as header and data are sound and
    /// the batch numbers follow each other from `expected` (where given).
    pub(crate) async fn scan(
        &self,
        no: u32,
        life: Id,
        expected: Option<u64>,
    ) -> Result<Scanned, CacheError> {
        let len = usize::try_from(self.chunk_bytes).expect("bounded");
        let chunk = self.read_what_can_be(self.start(no), len).await?;
        let mut scanned = Scanned::default();
        let mut next = expected;
        let mut page = 1;
        while let Some((batch, durable_lsn, descriptors)) = sound_batch(&chunk, page, life) {
            if next.is_some_and(|next| next != batch.lsn) {
                break;
            }
            next = Some(batch.lsn + 1);
            page += batch.pages() as usize;
            scanned.footer.add(batch.lsn, batch.page, descriptors);
            scanned.durable_lsn = scanned.durable_lsn.max(durable_lsn);
            scanned.batches.push(batch);
        }
        // Anything sound behind the break tells what was durable when it was written.
        let beyond = (page..len / PAGE).filter_map(|page| open_batch(&chunk[page * PAGE..], life));
        let durable = beyond.map(|(head, _)| head.durable_lsn).max().unwrap_or(0);
        scanned.durable_lsn = scanned.durable_lsn.max(durable);
        Ok(scanned)
    }
}

/// The device does not give the bytes; others it may.
fn is_unreadable(error: &CacheError) -> bool {
    matches!(error, CacheError::Disk(error) if matches!(error.kind, DiskErrorKind::Io(_)))
}

/// A chunk without a footer, as far as it is sound.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) batches: Vec<Batch>,
    pub(crate) footer: FooterBuilder,
    /// The highest durable batch number that the sound batches, and those behind a break, tell of.
    pub(crate) durable_lsn: u64,
}

/// The batch whose header is at `page`, if header and every data page are as they were written.
fn sound_batch(chunk: &[u8], page: usize, life: Id) -> Option<(Batch, u64, &[u8])> {
    let header = chunk.get(page * PAGE..(page + 1) * PAGE)?;
    let (head, descriptors) = open_batch(header, life)?;
    let batch = Batch {
        lsn: head.lsn,
        page: u32::try_from(page).ok()?,
        records: records(descriptors)?,
    };
    for (first, record) in batch.placed() {
        let crcs = record.crcs();
        for (n, crc) in crcs.iter().enumerate() {
            let at = (first as usize + n) * PAGE;
            if page_crc(chunk.get(at..at + PAGE)?) != *crc {
                return None;
            }
        }
    }
    Some((batch, head.durable_lsn, descriptors))
}

/// A chunk's state after recovery.
pub(crate) fn recovered(header: &ChunkHeader, age: u64, written: u32) -> Chunk {
    Chunk {
        state: ChunkState::Sealed,
        kind: header.kind,
        life: header.life,
        ordinal: header.ordinal,
        age,
        written,
        ..Chunk::free()
    }
}

/// Only fill chunks count for themselves.
pub(crate) fn is_fill(header: &ChunkHeader) -> bool {
    header.kind == ChunkKind::Fills
}
