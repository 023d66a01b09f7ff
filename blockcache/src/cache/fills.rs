//! Kept frames: immutable pieces of the store, by (object, frame), never by LBA, so nothing has to be
//! invalidated and all forks of an image share them. Best effort: losing one costs a fetch.
//!
//! Fills have chunks of their own, written straight to the kernel; each frame is a batch by itself.

use std::ops::Range;

use world::{Buf, File, World};

use super::shared::Pins;
use super::{Cache, FillKey, Shared};
use crate::chunk::{ChunkKind, FooterBuilder, footer_cost};
use crate::codec::page_crc;
use crate::log::{ChunkNo, ChunkState, FillAt, Open};
use crate::record::{BATCH_HEAD_BYTES, BatchHead, PAGE, RECORD_PAGES_MAX, Record, seal_batch};

impl<W: World> Cache<W> {
    /// Keeps decoded frame bytes (a multiple of 4 KiB, at most 128 KiB) under (object, frame).
    /// Best effort: where no chunk is at hand, it is dropped.
    pub async fn fill(&self, key: FillKey, data: &[u8]) {
        let shared = &self.shared;
        let pages = (data.len() / PAGE) as u64;
        if !data.len().is_multiple_of(PAGE) || pages == 0 || pages > RECORD_PAGES_MAX {
            return;
        }
        if shared.failed.borrow().is_some() || shared.log.borrow().fills.contains_key(&key) {
            return;
        }
        let Some((chunk, page, buf)) = shared.place_fill(key, data) else {
            shared.space_wanted.notify_one();
            return;
        };
        let at = shared.log.borrow().byte_of(chunk, page);
        let (_, written) = shared.file.write_at(at, buf).await;
        let mut log = shared.log.borrow_mut();
        let entry = log.chunk_mut(chunk);
        entry.pins -= 1;
        // A chunk that is being evicted has forgotten its frames already, this one was not among
        // them, and soon its space holds something else.
        if written.is_ok() && entry.state != ChunkState::Evicting {
            let at = log.position(chunk, page + 1);
            let pages = u32::try_from(pages).expect("bounded above");
            log.fills.insert(key, FillAt { at, pages });
        }
        drop(log);
        shared.unpinned.notify_waiters();
    }

    /// Whether a frame is here, as far as is known without reading it.
    pub fn keeps(&self, key: FillKey) -> bool {
        self.shared.log.borrow().fills.contains_key(&key)
    }

    /// Copies pages `pages` (relative to the frame) of a kept frame into `out`; false if the frame
    /// is not here, or no longer what it was.
    pub async fn filled(&self, key: FillKey, pages: Range<u32>, out: &mut [u8]) -> bool {
        let found = {
            let mut log = self.shared.log.borrow_mut();
            let Some(fill) = log.fills.get(&key).copied() else {
                return false;
            };
            if pages.end > fill.pages {
                return false;
            }
            let at = crate::index::Position(fill.at.0 + u64::from(pages.start));
            let (chunk, _) = log.place_of(at);
            log.chunk_mut(chunk).pins += 1;
            (
                at,
                Pins {
                    shared: std::rc::Rc::clone(&self.shared),
                    chunks: vec![chunk],
                },
            )
        };
        let (at, pins) = found;
        let read = self.shared.read_log(at, out).await;
        drop(pins);
        if let Err(error) = read {
            tracing::warn!(%error, "dropping a damaged frame from the cache; it is fetched again");
            self.shared.log.borrow_mut().fills.remove(&key);
            return false;
        }
        true
    }
}

impl<W: World> Shared<W> {
    /// Finds a place for a frame and builds its batch. The chunk is pinned until it is written.
    fn place_fill(&self, key: FillKey, data: &[u8]) -> Option<(ChunkNo, u32, Buf)> {
        let crcs: Vec<u32> = data.chunks_exact(PAGE).map(page_crc).collect();
        let record = Record::Fill { key, crcs };
        let used = BATCH_HEAD_BYTES + record.encoded_len();
        let pages = u32::try_from(record.data_pages()).expect("bounded by the caller");
        let mut log = self.log.borrow_mut();
        let chunk_pages = log.chunk_pages;
        let fits = |open: &Open| {
            open.next_page + 1 + pages + open.footer.pages_with(footer_cost(used)) <= chunk_pages
        };
        let mut open = self.open_fills.borrow_mut();
        if !open.as_ref().is_some_and(fits) {
            let next = log.ready_fills.take()?;
            self.space_wanted.notify_one();
            if let Some(full) = open.take() {
                self.seal_fills(full);
            }
            let age = log.next_age;
            log.next_age += 1;
            let chunk = log.chunk_mut(next);
            assert_eq!(chunk.kind, ChunkKind::Fills);
            (chunk.state, chunk.age, chunk.written) = (ChunkState::Open, age, u32::MAX);
            *open = Some(Open {
                chunk: next,
                next_page: 1,
                footer: FooterBuilder::default(),
            });
        }
        let place = open.as_mut().filter(|open| fits(open))?;
        let (chunk, page) = (place.chunk, place.next_page);
        place.next_page += 1 + pages;
        let mut buf = Buf::zeroed((1 + pages as usize) * PAGE);
        let mut descriptor = Vec::new();
        record.encode(&mut descriptor);
        buf[BATCH_HEAD_BYTES..used].copy_from_slice(&descriptor);
        place.footer.add(u64::from(page), page, &descriptor);
        let head = BatchHead {
            lsn: u64::from(page),
            durable_lsn: 0,
            data_pages: pages,
        };
        seal_batch(&mut buf, used, head, log.chunk(chunk).life);
        buf[PAGE..].copy_from_slice(data);
        let Record::Fill { crcs, .. } = &record else {
            unreachable!("made above")
        };
        let entry = log.chunk_mut(chunk);
        entry.set_crcs(page + 1, crcs);
        entry.pins += 1;
        Some((chunk, page, buf))
    }

    /// Hands a full chunk to the sealer. Its footer needs no wait for its data: what a power cut
    /// takes fails its checksum and is fetched again.
    fn seal_fills(&self, full: Open) {
        let queue = &mut self.sealing_fills.borrow_mut();
        queue.push_back(full);
        self.seal_wanted.notify_one();
    }
}
