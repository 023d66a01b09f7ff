//! Taking along what cannot go: unpublished records of the oldest chunk are appended again, so that the
//! chunk, and the clean ones behind it, can be evicted.
//!
//! Chunks go in their order (rule 1), so one volume that publishes nothing (fenced, damaged, not
//! opened since a start) would hold everything behind its oldest record, and in the end stop all
//! volumes of the log. Only done while a writer waits, while at least a quarter of the log would
//! be won by going once around. Once around without room for anybody ends it until something is
//! published: what is full then is full of unpublished records, and moving them again would wear the
//! disk out for nothing.

use std::rc::Rc;

use world::{Buf, File, World};

use super::Shared;
use super::shared::Pins;
use crate::chunk::ChunkKind;
use crate::log::{Chunk, ChunkNo, ChunkState, Dirty, Log, Spare, Written};
use crate::record::{Record, Stamp};
use crate::{CacheError, Id, PAGE_BYTES};

/// The share of the log (in quarters) that may be unpublished for it to be worth the writing.
const DIRTY_QUARTERS_MAX: u64 = 3;
/// Records without data pages that fit one batch: 50 bytes each in a page of which 32 are the head.
const RECORDS_PER_BATCH: u64 = 64;

impl<W: World> Shared<W> {
    /// Moves what is unpublished in the oldest chunk to the end of the log. True if the chunk can go
    /// now.
    pub(super) async fn relocate(self: &Rc<Self>) -> Result<bool, CacheError> {
        let Some(source) = source(&self.log.borrow()) else {
            return Ok(false);
        };
        let records = unpublished(&self.log.borrow(), source);
        tracing::debug!(
            chunk = source,
            records = records.len(),
            "moving unpublished writes to the end of the cache log"
        );
        self.log.borrow_mut().relocated += 1;
        for (id, record) in records {
            let data = self.raw_pages(source, &record).await;
            let mut log = self.log.borrow_mut();
            let volume = log.volumes.get_mut(&id);
            // Published or dropped meanwhile.
            let Some(now) = volume.and_then(|volume| volume.dirty_at(record.seq)) else {
                continue;
            };
            if now.chunk != source || now.what != record.what {
                continue;
            }
            let again = again(&log, id, &record);
            if !log.fits_whole(&again) {
                break;
            }
            log.append_moved(&record, again, &data);
        }
        self.commit_wanted.notify_one();
        let log = self.log.borrow();
        Ok(log.chunk(source).dirty == 0 && log.chunk(source).cuts == 0)
    }

    /// The data pages of a record as they are, sound or not: a page that does not fit its checksum
    /// is moved with the checksum that it does not fit.
    async fn raw_pages(self: &Rc<Self>, source: ChunkNo, record: &Dirty) -> Buf {
        let (at, pages) = match record.what {
            Written::Pages { pages, at } => (at, pages.pages()),
            Written::Sectors { overlay, .. } => (overlay.at, 1),
            Written::Zeros { .. } => return Buf::zeroed(0),
        };
        self.log.borrow_mut().chunk_mut(source).pins += 1;
        let _pins = Pins {
            shared: Rc::clone(self),
            chunks: vec![source],
        };
        let len = usize::try_from(pages * PAGE_BYTES).expect("one record");
        let (mut buf, read) = self.file.read_at(at.0 * PAGE_BYTES, Buf::zeroed(len)).await;
        if read.is_err() {
            buf.fill(0);
        }
        buf
    }
}

/// The next chunk to go: the oldest that writes are in (rule 1).
fn oldest(log: &Log) -> Option<(ChunkNo, &Chunk)> {
    let used = (0..).zip(&log.chunks).filter(|(_, chunk)| {
        let idle = [ChunkState::Free, ChunkState::Ready, ChunkState::Preparing];
        chunk.kind == ChunkKind::Writes && !idle.contains(&chunk.state)
    });
    used.min_by_key(|(_, chunk)| chunk.ordinal)
}

/// Whether moving what is unpublished would win room.
fn is_worth(log: &Log) -> bool {
    let capacity = log.chunks.len() as u64 * log.chunk_bytes();
    log.dirty_bytes <= capacity / 4 * DIRTY_QUARTERS_MAX && log.relocated < log.chunks.len()
}

/// The oldest chunk could go, or be emptied, if no cut held it.
pub(super) fn is_held_by_cuts(log: &Log) -> bool {
    oldest(log).is_some_and(|(_, chunk)| {
        let is_held = chunk.state == ChunkState::Sealed && chunk.cuts > 0;
        is_held && (chunk.dirty == 0 || is_worth(log))
    })
}

/// The oldest chunk, if unpublished records are all that keeps it, and they fit elsewhere.
fn source(log: &Log) -> Option<ChunkNo> {
    let (no, oldest) = oldest(log)?;
    let may = oldest.state == ChunkState::Sealed && oldest.dirty > 0 && oldest.cuts == 0;
    if !may || !is_worth(log) {
        return None;
    }
    let pages = |(_, record): &(Id, Dirty)| match record.what {
        Written::Pages { pages, .. } => pages.pages(),
        Written::Sectors { .. } => 1,
        Written::Zeros { .. } => 0,
    };
    let records = unpublished(log, no);
    let pages: u64 = records.iter().map(pages).sum();
    // Of records without data a batch takes so many at least.
    let batches = (records.len() as u64).div_ceil(RECORDS_PER_BATCH);
    log.has_room(pages + batches, Spare::None).then_some(no)
}

fn unpublished(log: &Log, chunk: ChunkNo) -> Vec<(Id, Dirty)> {
    let all = log.volumes.iter();
    all.flat_map(|(id, volume)| volume.dirty.iter().map(|record| (*id, record)))
        .filter(|(_, record)| record.chunk == chunk)
        .map(|(id, record)| (id, record.clone()))
        .collect()
}

/// The record as it is appended again.
fn again(log: &Log, volume: Id, record: &Dirty) -> Record {
    let stamp = Stamp {
        volume,
        epoch: log.volumes[&volume].state.epoch,
        seq: record.seq,
    };
    let crcs = |at, pages: u64| -> Vec<u32> {
        let (chunk, page) = log.place_of(at);
        let first = usize::try_from(page).expect("within a chunk");
        let count = usize::try_from(pages).expect("one record");
        log.chunk(chunk).crcs[first..first + count].to_vec()
    };
    match record.what {
        Written::Pages { pages, at } => Record::Write {
            stamp,
            start: pages.start,
            crcs: crcs(at, pages.pages()),
        },
        Written::Sectors { page, overlay } => Record::Partial {
            stamp,
            page,
            mask: overlay.mask,
            crc: crcs(overlay.at, 1)[0],
        },
        Written::Zeros { pages } => Record::Zero { stamp, pages },
    }
}
