//! The log in memory: chunks, the batch being built, what is staged for the disk. No I/O here;
//! `cache.rs` performs what this file decides, in order.
//!
//! ```text
//! a chunk:  Free -> Preparing -> Ready -> Open -> Sealing -> Sealed -> Evicting -> Free
//!            header written+durable^      ^records   ^footer written, records durable
//! ```
//!
//! All exports of a shard share one log, and its write chunks are evicted in their order: then "older
//! never outlives newer" (rule 1) needs no bookkeeping per volume, and one number in a chunk header
//! (`oldest_live`) tells a start which chunks count.

mod append;
mod together;
mod volume;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use world::sync::Notify;
use world::{Buf, Instant};

use crate::cache::{FillKey, VolumeCounts};
use crate::chunk::{ChunkHeader, ChunkKind, FooterBuilder, SUPERBLOCK_BYTES, footer_cost};
use crate::index::{Overlay, Position, VolumeIndex};
use crate::record::{BATCH_HEAD_BYTES, BatchHead, Loss, PAGE, Record, VolumeState, seal_batch};
use crate::{Id, PageNo, PageRange, Seq};

/// Pages of one staging buffer: the largest single write to the disk.
const STAGE_PAGES: u32 = 512;
/// Staging buffers kept for reuse.
const SPARE_BUFS_MAX: usize = 8;
/// Dirty records for which a volume keeps room.
const DIRTY_KEPT_MIN: usize = 8;
/// Bytes appended and not yet handed to the kernel, at which writers wait.
pub(crate) const STAGED_PAGES_MAX: u32 = 16 * 1024;

/// Between the moments of two writes at least (rule 30).
pub(crate) const TICK: Duration = Duration::from_nanos(1);

/// Ready chunks that an append leaves to others. Who makes room must never wait for room: freeing a
/// chunk takes appends, so does publishing, and writers come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// By the reclaimer.
    None,
    /// By state records: a chunk for the reclaimer.
    Reclaim,
    /// By writers: a chunk for state records, without which nothing is published, and that one.
    States,
}

impl Spare {
    pub(crate) fn chunks(self) -> usize {
        match self {
            Self::None => 0,
            Self::Reclaim => 1,
            Self::States => 2,
        }
    }
}

/// The number of a chunk in the file.
pub(crate) type ChunkNo = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkState {
    Free,
    Preparing,
    Ready,
    Open,
    Sealing,
    Sealed,
    Evicting,
}

/// What memory knows of a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) state: ChunkState,
    pub(crate) kind: ChunkKind,
    pub(crate) life: Id,
    pub(crate) ordinal: u64,
    /// When it was opened, in chunks: the lower, the older.
    pub(crate) age: u64,
    /// Pages from the start of the chunk that are in the kernel's hands.
    pub(crate) written: u32,
    /// Unpublished records in it: it must not go (promise 6).
    pub(crate) dirty: u32,
    /// Reads in flight: its space must not be reused.
    pub(crate) pins: u32,
    /// Cuts that will read from it: the same, but for long, so nobody waits for them.
    pub(crate) cuts: u32,
    /// The CRC of each data page, by page of the chunk.
    pub(crate) crcs: Vec<u32>,
}

impl Chunk {
    pub(crate) fn free() -> Self {
        Self {
            state: ChunkState::Free,
            kind: ChunkKind::Writes,
            life: Id::default(),
            ordinal: 0,
            age: 0,
            written: 0,
            dirty: 0,
            pins: 0,
            cuts: 0,
            crcs: Vec::new(),
        }
    }

    pub(crate) fn set_crcs(&mut self, first_page: u32, crcs: &[u32]) {
        let first = usize::try_from(first_page).expect("a page number fits");
        if self.crcs.len() < first + crcs.len() {
            self.crcs.resize(first + crcs.len(), 0);
        }
        self.crcs[first..first + crcs.len()].copy_from_slice(crcs);
    }
}

/// A record that the store does not hold yet.
#[derive(Clone, Debug)]
pub(crate) struct Dirty {
    pub(crate) seq: Seq,
    pub(crate) what: Written,
    pub(crate) chunk: ChunkNo,
    pub(crate) log_bytes: u32,
    /// Of its write, and of no other: see [`Log::moment`]. Of what a start found, several may have one together.
    pub(crate) since: Instant,
    /// Taken along from a chunk that had to go: what was written after it may lie before it.
    pub(crate) moved: bool,
}

/// What a record wrote, and where the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Pages { pages: PageRange, at: Position },
    Sectors { page: PageNo, overlay: Overlay },
    Zeros { pages: PageRange },
}

impl Written {
    /// The pages that it touched.
    pub(crate) fn pages(&self) -> PageRange {
        match *self {
            Self::Pages { pages, .. } | Self::Zeros { pages } => pages,
            Self::Sectors { page, .. } => PageRange::new(page.0, page.0 + 1),
        }
    }
}

/// One volume in memory.
pub(crate) struct Volume {
    pub(crate) state: VolumeState,
    pub(crate) last: Seq,
    pub(crate) index: VolumeIndex,
    /// By seq, dense; those at or below `state.published` are about to be swept.
    pub(crate) dirty: VecDeque<Dirty>,
    pub(crate) dirty_bytes: u64,
    /// The batch of the newest record, and of the newest state record.
    pub(crate) last_lsn: u64,
    pub(crate) state_lsn: u64,
    pub(crate) state_chunk: ChunkNo,
    /// The published seq in the newest state record: what a start will know.
    pub(crate) noted: Seq,
    /// Why nothing may be written: records that should be there are not (rule 8).
    pub(crate) damage: Option<String>,
    /// Damaged, and of a group: what is left of it is what was published (rule 30).
    pub(crate) rolls_back: bool,
    /// Another epoch exists: writers must not wait for room that no publish will make.
    pub(crate) fenced: bool,
    /// To who waits for the first unpublished write.
    pub(crate) dirtied: Rc<Notify>,
    /// Writers that were not appended yet, in the order in which they came.
    pub(crate) turns: VecDeque<u64>,
    pub(crate) next_turn: u64,
    /// To writers that wait for those before them.
    pub(crate) turned: Rc<Notify>,
    pub(crate) counts: VolumeCounts,
}

impl Volume {
    pub(crate) fn new(state: VolumeState) -> Self {
        Self {
            last: state.published,
            state,
            index: VolumeIndex::default(),
            dirty: VecDeque::new(),
            dirty_bytes: 0,
            last_lsn: 0,
            state_lsn: 0,
            state_chunk: 0,
            noted: Seq(0),
            damage: None,
            rolls_back: false,
            fenced: false,
            dirtied: Rc::default(),
            turns: VecDeque::new(),
            next_turn: 0,
            turned: Rc::default(),
            counts: VolumeCounts::default(),
        }
    }
}

/// A kept frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FillAt {
    pub(crate) at: Position,
    pub(crate) pages: u32,
}

/// A chunk being filled.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) chunk: ChunkNo,
    pub(crate) next_page: u32,
    pub(crate) footer: FooterBuilder,
}

#[derive(Debug)]
struct OpenBatch {
    lsn: u64,
    /// Page of the chunk, and byte in the staging buffer, of the header.
    page: u32,
    at: usize,
    used: usize,
    data_pages: u32,
}

#[derive(Debug)]
struct Building {
    buf: Buf,
    chunk: ChunkNo,
    first_page: u32,
    pages: u32,
    last_lsn: u64,
}

/// Bytes on their way to the disk.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) buf: Buf,
    pub(crate) at: u64,
    pub(crate) chunk: ChunkNo,
    pub(crate) end_page: u32,
    pub(crate) last_lsn: u64,
}

/// A chunk whose footer is due once its records are durable.
#[derive(Debug)]
pub(crate) struct Sealing {
    pub(crate) chunk: ChunkNo,
    pub(crate) footer: FooterBuilder,
    pub(crate) last_lsn: u64,
}

/// This run of the server: what every chunk header repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) process: Id,
    pub(crate) previous: Id,
    pub(crate) accepted_lsn: u64,
}

/// The state of the log.
pub(crate) struct Log {
    pub(crate) chunk_pages: u32,
    pub(crate) run: Run,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) volumes: BTreeMap<Id, Volume>,
    pub(crate) fills: BTreeMap<FillKey, FillAt>,
    pub(crate) open: Option<Open>,
    pub(crate) ready: VecDeque<ChunkNo>,
    pub(crate) ready_fills: Option<ChunkNo>,
    pub(crate) sealing: VecDeque<Sealing>,
    pub(crate) next_ordinal: u64,
    pub(crate) next_fill_ordinal: u64,
    pub(crate) next_age: u64,
    pub(crate) next_lsn: u64,
    pub(crate) durable_lsn: u64,
    /// The newest state or moved record: must be durable before a chunk is reused.
    pub(crate) last_kept_lsn: u64,
    pub(crate) dirty_bytes: u64,
    /// Of the newest write, or of the start.
    last_moment: Instant,
    /// Chunks whose unpublished records were moved since anybody got room or anything was published:
    /// once around the log wins all that there is to win.
    pub(crate) relocated: usize,
    /// Rule 2 is broken on purpose.
    #[cfg(feature = "planted")]
    pub(crate) superseded_is_free: bool,
    batch: Option<OpenBatch>,
    building: Option<Building>,
    staged: VecDeque<Staged>,
    staged_pages: u32,
    spare: Vec<Buf>,
}

/// What an append did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    pub(crate) seq: Seq,
    pub(crate) lsn: u64,
}

impl Log {
    pub(crate) fn new(chunk_pages: u32, run: Run, next_lsn: u64) -> Self {
        Self {
            chunk_pages,
            run,
            chunks: Vec::new(),
            volumes: BTreeMap::new(),
            fills: BTreeMap::new(),
            open: None,
            ready: VecDeque::new(),
            ready_fills: None,
            sealing: VecDeque::new(),
            #[cfg(feature = "planted")]
            superseded_is_free: false,
            next_ordinal: 1,
            next_fill_ordinal: 1,
            next_age: 1,
            next_lsn,
            durable_lsn: next_lsn - 1,
            last_kept_lsn: 0,
            dirty_bytes: 0,
            last_moment: Instant::default(),
            relocated: 0,
            batch: None,
            building: None,
            staged: VecDeque::new(),
            staged_pages: 0,
            spare: Vec::new(),
        }
    }

    pub(crate) fn chunk(&self, no: ChunkNo) -> &Chunk {
        &self.chunks[usize::try_from(no).expect("a chunk number fits")]
    }

    pub(crate) fn chunk_mut(&mut self, no: ChunkNo) -> &mut Chunk {
        &mut self.chunks[usize::try_from(no).expect("a chunk number fits")]
    }

    pub(crate) fn chunk_bytes(&self) -> u64 {
        u64::from(self.chunk_pages) * PAGE as u64
    }

    /// Where a page of a chunk is in the file.
    pub(crate) fn byte_of(&self, chunk: ChunkNo, page: u32) -> u64 {
        SUPERBLOCK_BYTES + u64::from(chunk) * self.chunk_bytes() + u64::from(page) * PAGE as u64
    }

    pub(crate) fn position(&self, chunk: ChunkNo, page: u32) -> Position {
        Position(self.byte_of(chunk, page) / PAGE as u64)
    }

    /// The chunk, and the page in it, of a position.
    pub(crate) fn place_of(&self, at: Position) -> (ChunkNo, u32) {
        let page = at.0 - SUPERBLOCK_BYTES / PAGE as u64;
        let (chunk, page) = (
            page / u64::from(self.chunk_pages),
            page % u64::from(self.chunk_pages),
        );
        (
            u32::try_from(chunk).expect("a chunk number"),
            u32::try_from(page).expect("below 2^32"),
        )
    }

    /// Whether a write of so many pages fits without waiting, beside what is spared.
    pub(crate) fn has_room(&self, pages: u64, spare: Spare) -> bool {
        let open = self.open.as_ref().map_or(0, |open| {
            let used = self
                .batch
                .as_ref()
                .map_or(0, |batch| footer_cost(batch.used));
            u64::from(self.chunk_pages - open.next_page)
                .saturating_sub(u64::from(open.footer.pages_with(used)) + 4)
        });
        let ready = u64::try_from(self.ready.len().saturating_sub(spare.chunks())).unwrap_or(0);
        let usable = u64::from(self.chunk_pages) * 15 / 16 - 4;
        // A header page per batch; a batch holds at least 64 pages when a write is that long.
        let need = pages + pages / 32 + 4;
        self.staged_pages < STAGED_PAGES_MAX && need <= open + ready * usable
    }

    /// How many ready chunks a write of so many pages may need.
    pub(crate) fn chunks_for(&self, pages: u64) -> usize {
        let usable = u64::from(self.chunk_pages) * 15 / 16 - 4;
        usize::try_from((pages + pages / 32 + 4).div_ceil(usable)).unwrap_or(usize::MAX)
    }

    /// Makes a batch current that takes a descriptor of `fixed + each * pages` bytes and `pages`
    /// data pages, or fewer pages but at least one; says how many.
    fn make_room(&mut self, fixed: usize, each: usize, pages: u64) -> u64 {
        loop {
            if let Some(fit) = self.fit(fixed, each, pages) {
                return fit;
            }
            self.close_batch();
            if !self.chunk_fits(fixed + each, pages.min(1)) {
                self.roll();
            }
            self.begin_batch(pages.min(1));
        }
    }

    /// Pages that fit the current batch; none if not even one (or the bare descriptor) does.
    fn fit(&self, fixed: usize, each: usize, pages: u64) -> Option<u64> {
        let (batch, open) = (self.batch.as_ref()?, self.open.as_ref()?);
        let building = self.building.as_ref()?;
        let header = (PAGE - batch.used).checked_sub(fixed)?;
        if pages == 0 {
            let footer = open.footer.pages_with(footer_cost(batch.used + fixed));
            return (open.next_page + footer <= self.chunk_pages).then_some(0);
        }
        let by_header = header.checked_div(each).map_or(pages, |fit| fit as u64);
        let used = batch.used + fixed + each * usize::try_from(pages).expect("at most 256");
        let footer = open.footer.pages_with(footer_cost(used.min(PAGE)));
        let by_chunk = u64::from(self.chunk_pages.saturating_sub(open.next_page + footer));
        let by_stage = u64::from(STAGE_PAGES - building.pages);
        let fit = pages.min(by_header).min(by_chunk).min(by_stage);
        match fit {
            // The footer of a shorter record may be a page less.
            0 if pages > 1 => self.fit(fixed, each, 1),
            0 => None,
            fit => Some(fit),
        }
    }

    /// Whether the open chunk takes a new batch with such a record.
    fn chunk_fits(&self, descriptor: usize, pages: u64) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let footer = open
                .footer
                .pages_with(footer_cost(BATCH_HEAD_BYTES + descriptor));
            u64::from(open.next_page) + 1 + pages + u64::from(footer) <= u64::from(self.chunk_pages)
        })
    }

    /// Begins a batch in the open chunk, which has room for it and for a record of so many pages.
    fn begin_batch(&mut self, pages: u64) {
        if self
            .building
            .as_ref()
            .is_some_and(|b| u64::from(STAGE_PAGES - b.pages) < 1 + pages)
        {
            self.stage();
        }
        let open = self.open.as_mut().expect("it fits");
        let building = self.building.get_or_insert_with(|| Building {
            buf: self
                .spare
                .pop()
                .unwrap_or_else(|| Buf::zeroed(STAGE_PAGES as usize * PAGE)),
            chunk: open.chunk,
            first_page: open.next_page,
            pages: 0,
            last_lsn: 0,
        });
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        self.batch = Some(OpenBatch {
            lsn,
            page: open.next_page,
            at: building.pages as usize * PAGE,
            used: BATCH_HEAD_BYTES,
            data_pages: 0,
        });
        building.pages += 1;
        building.last_lsn = lsn;
        open.next_page += 1;
        self.staged_pages += 1;
    }

    /// Writes a record into the current batch; returns where its data went and the log pages that
    /// it cost (the first record of a batch pays for the header).
    fn place(&mut self, record: &Record, data: &[u8]) -> (Position, u32) {
        let batch = self.batch.as_mut().expect("room was made");
        let building = self.building.as_mut().expect("room was made");
        let open = self.open.as_mut().expect("room was made");
        let pages = u32::try_from(record.data_pages()).expect("at most 256");
        assert_eq!(
            data.len(),
            pages as usize * PAGE,
            "the data is that of the record"
        );
        let first = u32::from(batch.used == BATCH_HEAD_BYTES);
        let mut descriptor = Vec::with_capacity(record.encoded_len());
        record.encode(&mut descriptor);
        let header_at = batch.at + batch.used;
        building.buf[header_at..header_at + descriptor.len()].copy_from_slice(&descriptor);
        batch.used += descriptor.len();
        let data_at = building.pages as usize * PAGE;
        building.buf[data_at..data_at + data.len()].copy_from_slice(data);
        building.pages += pages;
        batch.data_pages += pages;
        let (chunk, page) = (open.chunk, open.next_page);
        open.next_page += pages;
        self.staged_pages += pages;
        if pages > 0 {
            self.chunk_mut(chunk).set_crcs(page, record.crcs());
        }
        (self.position(chunk, page), pages + first)
    }

    fn close_batch(&mut self) {
        let Some(batch) = self.batch.take() else {
            return;
        };
        let building = self.building.as_mut().expect("a batch is in a buffer");
        let open = self.open.as_mut().expect("a batch is in a chunk");
        let life = self.chunks[open.chunk as usize].life;
        let head = BatchHead {
            lsn: batch.lsn,
            durable_lsn: self.durable_lsn,
            data_pages: batch.data_pages,
        };
        let page = &mut building.buf[batch.at..batch.at + PAGE];
        open.footer
            .add(batch.lsn, batch.page, &page[BATCH_HEAD_BYTES..batch.used]);
        seal_batch(page, batch.used, head, life);
    }

    /// Moves what was built to the disk's queue.
    fn stage(&mut self) {
        self.close_batch();
        let Some(mut building) = self.building.take() else {
            return;
        };
        building.buf.set_len(building.pages as usize * PAGE);
        self.staged.push_back(Staged {
            at: self.byte_of(building.chunk, building.first_page),
            chunk: building.chunk,
            end_page: building.first_page + building.pages,
            last_lsn: building.last_lsn,
            buf: building.buf,
        });
    }

    /// Goes on in the next ready chunk.
    fn roll(&mut self) {
        self.stage();
        if let Some(open) = self.open.take() {
            self.chunk_mut(open.chunk).state = ChunkState::Sealing;
            let last_lsn = self.next_lsn - 1;
            self.sealing.push_back(Sealing {
                chunk: open.chunk,
                footer: open.footer,
                last_lsn,
            });
        }
        let chunk = self
            .ready
            .pop_front()
            .expect("the caller has checked that there is room");
        let age = self.next_age;
        self.next_age += 1;
        let entry = self.chunk_mut(chunk);
        entry.state = ChunkState::Open;
        entry.age = age;
        entry.written = 1;
        entry.crcs.clear();
        self.open = Some(Open {
            chunk,
            next_page: 1,
            footer: FooterBuilder::default(),
        });
    }

    /// The next bytes for the disk, in order.
    pub(crate) fn take_staged(&mut self) -> Option<Staged> {
        if self.staged.is_empty() {
            self.stage();
        }
        self.staged.pop_front()
    }

    /// The bytes of [`Log::take_staged`] are in the kernel's hands.
    pub(crate) fn written(&mut self, chunk: ChunkNo, end_page: u32, mut buf: Buf) {
        self.staged_pages -= u32::try_from(buf.len() / PAGE).expect("a staging buffer");
        self.chunk_mut(chunk).written = end_page;
        if self.spare.len() < SPARE_BUFS_MAX {
            buf.set_len(buf.capacity());
            self.spare.push(buf);
        }
    }

    /// Takes a free chunk into a new life; the header is to be written and made durable before
    /// [`Log::prepared`].
    pub(crate) fn prepare(&mut self, no: ChunkNo, kind: ChunkKind, life: Id) -> ChunkHeader {
        let (oldest_live, durable_ordinal) = (self.oldest_live(), self.durable_ordinal());
        let counter = match kind {
            ChunkKind::Writes => &mut self.next_ordinal,
            ChunkKind::Fills => &mut self.next_fill_ordinal,
        };
        let ordinal = *counter;
        *counter += 1;
        let run = self.run;
        let chunk = self.chunk_mut(no);
        assert_eq!(chunk.state, ChunkState::Free, "chunk {no} is in use");
        *chunk = Chunk {
            state: ChunkState::Preparing,
            kind,
            life,
            ordinal,
            ..Chunk::free()
        };
        ChunkHeader {
            kind,
            life,
            ordinal,
            oldest_live: if kind == ChunkKind::Writes {
                oldest_live.min(ordinal)
            } else {
                0
            },
            durable_ordinal,
            process: run.process,
            previous: run.previous,
            accepted_lsn: run.accepted_lsn,
        }
    }

    /// The header of a prepared chunk is durable.
    pub(crate) fn prepared(&mut self, no: ChunkNo) {
        let chunk = self.chunk_mut(no);
        chunk.state = ChunkState::Ready;
        match chunk.kind {
            ChunkKind::Writes => self.ready.push_back(no),
            ChunkKind::Fills => self.ready_fills = Some(no),
        }
    }

    /// The highest ordinal of a write chunk whose header is durable.
    fn durable_ordinal(&self) -> u64 {
        let durable = self.chunks.iter().filter(|chunk| {
            chunk.kind == ChunkKind::Writes
                && !matches!(chunk.state, ChunkState::Free | ChunkState::Preparing)
        });
        durable.map(|chunk| chunk.ordinal).max().unwrap_or(0)
    }

    /// The lowest ordinal of a write chunk that still counts.
    pub(crate) fn oldest_live(&self) -> u64 {
        let live = self.chunks.iter().filter(|chunk| {
            chunk.kind == ChunkKind::Writes
                && !matches!(chunk.state, ChunkState::Free | ChunkState::Evicting)
        });
        live.map(|chunk| chunk.ordinal)
            .min()
            .unwrap_or(self.next_ordinal)
    }

    /// Forgets dirty records at or below the published seq, at most `count_max` of them; true if
    /// there are more.
    pub(crate) fn sweep_published(&mut self, id: Id, count_max: usize) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else {
            return false;
        };
        for _ in 0..count_max {
            match volume.dirty.front() {
                Some(record) if record.seq <= volume.state.published => {}
                _ => {
                    volume.index.sweep_zeros(volume.state.published);
                    // One that was busy and is not must not hold what it needed then. What this
                    // copies is less than what was swept, so busy ones pay little for it.
                    let kept = 2 * volume.dirty.len().max(DIRTY_KEPT_MIN / 2);
                    if volume.dirty.capacity() >= 2 * kept {
                        volume.dirty.shrink_to(kept);
                    }
                    return false;
                }
            }
            let record = volume.dirty.pop_front().expect("just seen");
            // The chunk of a newer write of the same page may go before the one that this record was
            // moved to, and then an old page would be read (rule 1). The store has it now.
            if record.moved {
                volume.unpoint(record.what);
            }
            volume.dirty_bytes -= u64::from(record.log_bytes);
            self.dirty_bytes -= u64::from(record.log_bytes);
            self.chunks[record.chunk as usize].dirty -= 1;
            self.relocated = 0;
        }
        true
    }

    /// Goes on from the unbroken run of a damaged volume; what lies behind it never counts again. The
    /// state record that is to follow makes it so for later starts.
    pub(crate) fn accept_loss(&mut self, id: Id) {
        let lsn = self.next_lsn;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        let kept = volume.kept();
        volume.rebuild_index(kept);
        volume.state.losses.push(Loss { lsn, kept });
        // Publishes of what is lost may be on their way to the store, with seqs that are given out again.
        // So the epoch is over: the next opening changes the root first, and none of them can land.
        // Of a fork that is not in the store none can be.
        volume.state.attached = volume.state.base.is_some();
        volume.damage = None;
        volume.rolls_back = false;
        volume.last = kept;
        // What they are made of is lost, and must not be published as if it were not.
        volume.state.forks.retain(|fork| fork.cut <= kept);
        while let Some(record) = volume.dirty.pop_back_if(|record| record.seq > kept) {
            volume.dirty_bytes -= u64::from(record.log_bytes);
            self.dirty_bytes -= u64::from(record.log_bytes);
            self.chunks[record.chunk as usize].dirty -= 1;
        }
        self.relocated = 0;
    }

    /// Drops all that the log knows of a volume's pages.
    pub(crate) fn forget(&mut self, id: Id) {
        let valid_lsn = self.next_lsn;
        let Some(volume) = self.volumes.get_mut(&id) else {
            return;
        };
        volume.index = VolumeIndex::default();
        volume.state.valid_lsn = valid_lsn;
        volume.state.losses.clear();
        // What they are made of goes.
        volume.state.forks.clear();
        volume.damage = None;
        volume.rolls_back = false;
        self.dirty_bytes -= volume.dirty_bytes;
        self.relocated = 0;
        volume.dirty_bytes = 0;
        for record in volume.dirty.drain(..) {
            self.chunks[record.chunk as usize].dirty -= 1;
        }
        // Nothing is unpublished any more: the list of dirty records starts after `published`.
        volume.last = volume.state.published;
    }
}

#[cfg(test)]
mod tests;
