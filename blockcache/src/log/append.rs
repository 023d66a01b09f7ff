//! Appending: clients' writes as records, what is known of volumes, and records that are moved.

use world::Instant;

use super::{Appended, Dirty, Log, Written};
use crate::codec::page_crc;
use crate::index::Overlay;
use crate::record::{PAGE, PAGE_U32, RECORD_PAGES_MAX, Record, Stamp};
use crate::{Id, PageNo, PageRange};

impl Log {
    /// Appends a client's write of whole sectors, as records for its partial pages and its runs of
    /// whole ones. The caller has checked that there is room.
    pub(crate) fn append_write(
        &mut self,
        volume: Id,
        at: u64,
        data: &[u8],
        now: Instant,
    ) -> Appended {
        let end = at + data.len() as u64;
        let slice = |from: u64, to: u64| {
            let index = |byte: u64| usize::try_from(byte - at).expect("within the write");
            &data[index(from)..index(to)]
        };
        let mut from = at;
        let mut appended = None;
        while from < end {
            let page = PageNo(from / PAGE as u64);
            let page_end = page.byte() + PAGE as u64;
            if from > page.byte() || end < page_end {
                let to = end.min(page_end);
                appended = Some(self.append_sectors(volume, page, from, slice(from, to), now));
                from = to;
            } else {
                let to = end / PAGE as u64 * PAGE as u64;
                let (done, taken) = self.append_pages(volume, page, slice(from, to), now);
                appended = Some(done);
                from += taken;
            }
        }
        appended.expect("a write is not empty")
    }

    /// Appends as many whole pages as one record takes here; returns the bytes taken.
    fn append_pages(
        &mut self,
        id: Id,
        start: PageNo,
        data: &[u8],
        now: Instant,
    ) -> (Appended, u64) {
        let wanted = (data.len() / PAGE) as u64;
        let pages = self.make_room(49, 4, wanted.min(RECORD_PAGES_MAX));
        let data = &data[..usize::try_from(pages).expect("at most 256") * PAGE];
        let crcs: Vec<u32> = data.chunks_exact(PAGE).map(page_crc).collect();
        let stamp = self.stamp(id);
        let record = Record::Write { stamp, start, crcs };
        let (at, log_pages) = self.place(&record, data);
        let range = PageRange::new(start.0, start.0 + pages);
        let written = Written::Pages { pages: range, at };
        (self.note(stamp, written, log_pages, now), range.bytes())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one private caller; a struct would only rename them"
    )]
    fn append_sectors(
        &mut self,
        id: Id,
        page: PageNo,
        from: u64,
        data: &[u8],
        now: Instant,
    ) -> Appended {
        let skip = usize::try_from(from - page.byte()).expect("within a page");
        let mut whole = vec![0; PAGE];
        whole[skip..skip + data.len()].copy_from_slice(data);
        let mask = sector_mask(skip, data.len());
        self.make_room(46, 0, 1);
        let stamp = self.stamp(id);
        let record = Record::Partial {
            stamp,
            page,
            mask,
            crc: page_crc(&whole),
        };
        let (at, log_pages) = self.place(&record, &whole);
        let written = Written::Sectors {
            page,
            overlay: Overlay { at, mask },
        };
        self.note(stamp, written, log_pages, now)
    }

    /// Appends "these whole pages are zero".
    pub(crate) fn append_zeros(&mut self, id: Id, pages: PageRange, now: Instant) -> Appended {
        self.make_room(49, 0, 0);
        let stamp = self.stamp(id);
        self.place(&Record::Zero { stamp, pages }, &[]);
        // Counted as a page, though it takes a fraction of one in the log: it takes memory until it
        // is published, and a client that trims page by page must meet the dirty bound as well.
        self.note(stamp, Written::Zeros { pages }, 1, now)
    }

    /// Appends what is known of a volume; returns the batch.
    pub(crate) fn append_state(&mut self, id: Id) -> u64 {
        let volume = self.volumes.get_mut(&id).expect("the caller knows it");
        volume.state.last = volume.last;
        volume.state.damaged = volume.damage.is_some();
        volume.noted = volume.state.published;
        let record = Record::State(volume.state.clone());
        self.make_room(record.encoded_len(), 0, 0);
        self.place(&record, &[]);
        let lsn = self.batch.as_ref().expect("just placed").lsn;
        let chunk = self.open.as_ref().expect("just placed").chunk;
        let volume = self.volumes.get_mut(&id).expect("just read");
        volume.state_lsn = lsn;
        volume.state_chunk = chunk;
        volume.last_lsn = lsn;
        self.last_kept_lsn = lsn;
        lsn
    }

    /// Whether a record that must not be split fits now.
    pub(crate) fn fits_whole(&self, record: &Record) -> bool {
        let pages = record.data_pages() as u64;
        !self.ready.is_empty() || self.chunk_fits(1 + record.encoded_len(), pages)
    }

    /// Appends an unpublished record again that lies in a chunk which must go. The caller has
    /// checked that it fits.
    pub(crate) fn append_moved(&mut self, moved: &Dirty, record: Record, data: &[u8]) {
        let stamp = match &record {
            Record::Write { stamp, .. }
            | Record::Partial { stamp, .. }
            | Record::Zero { stamp, .. } => *stamp,
            other => unreachable!("{other:?} is never moved"),
        };
        let record = Record::Moved(Box::new(record));
        let (len, pages) = (record.encoded_len(), record.data_pages() as u64);
        while self.fit(len, 0, pages) != Some(pages) {
            self.close_batch();
            if !self.chunk_fits(len, pages) {
                self.roll();
            }
            self.begin_batch(pages);
        }
        let (to, _) = self.place(&record, data);
        let chunk = self.open.as_ref().expect("just placed").chunk;
        let lsn = self.batch.as_ref().expect("just placed").lsn;
        self.last_kept_lsn = lsn;
        self.chunk_mut(moved.chunk).dirty -= 1;
        self.chunk_mut(chunk).dirty += 1;
        let volume = self.volumes.get_mut(&stamp.volume).expect("it is dirty");
        volume.last_lsn = lsn;
        let what = volume.repoint(moved.what, to);
        let entry = volume.dirty_at(stamp.seq).expect("the caller has it");
        (entry.what, entry.chunk, entry.moved) = (what, chunk, true);
    }

    fn stamp(&self, id: Id) -> Stamp {
        let volume = &self.volumes[&id];
        Stamp {
            volume: id,
            epoch: volume.state.epoch,
            seq: volume.last.next(),
        }
    }

    /// Puts a placed record into the index and the dirty list.
    fn note(&mut self, stamp: Stamp, what: Written, log_pages: u32, now: Instant) -> Appended {
        let chunk = self.open.as_ref().expect("just placed").chunk;
        let lsn = self.batch.as_ref().expect("just placed").lsn;
        self.chunk_mut(chunk).dirty += 1;
        let log_bytes = log_pages * PAGE_U32;
        self.dirty_bytes += u64::from(log_bytes);
        let volume = self.volumes.get_mut(&stamp.volume).expect("attached");
        volume.apply(what, stamp.seq);
        volume.last = stamp.seq;
        volume.last_lsn = lsn;
        volume.dirty_bytes += u64::from(log_bytes);
        #[cfg(feature = "planted")]
        if self.superseded_is_free
            && let Written::Pages { pages: by, .. } = what
        {
            let superseded = volume.dirty.iter_mut().filter(|old| match old.what {
                Written::Pages { pages, .. } => pages.overlap(by) == Some(pages),
                Written::Sectors { .. } | Written::Zeros { .. } => false,
            });
            for old in superseded {
                self.chunks[old.chunk as usize].dirty -= 1;
                self.chunks[chunk as usize].dirty += 1;
                old.chunk = chunk;
            }
        }
        volume.dirty.push_back(Dirty {
            seq: stamp.seq,
            what,
            chunk,
            log_bytes,
            since: now,
            moved: false,
        });
        Appended {
            seq: stamp.seq,
            lsn,
        }
    }
}

/// The sectors of a page that bytes `skip..skip + len` cover.
fn sector_mask(skip: usize, len: usize) -> u8 {
    assert!(
        skip.is_multiple_of(512) && len.is_multiple_of(512),
        "whole sectors: {skip} + {len}"
    );
    let mask = ((1_u32 << (len / 512)) - 1) << (skip / 512);
    u8::try_from(mask).expect("within a page")
}
