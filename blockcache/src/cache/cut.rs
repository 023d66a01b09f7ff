//! A cut: a position in a volume's write order, and an immutable list of where everything up to it
//! is. A sync reads those positions, never the index, so that what is written meanwhile does not
//! leak into it (rule 2).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use world::{ETag, World};

use super::fork::Newer;
use super::together::{End, NewIntent};
use super::{CacheVolume, Missing, Shared};
use crate::extents::{Cover, ExtentMap};
use crate::index::{Base, FULL_MASK, Overlay, Position, covered, prune};
use crate::log::{Log, Written};
use crate::{CacheError, Id, PAGE_BYTES, PageNo, PageRange, Seq};

/// Dirty records that a cut goes through between two yields.
const STEP: usize = 1024;

/// The immutable content of a cut: what changed since the last published one. It may outlive its publish: what it
/// holds stays as it is. But chunks go in their order, so as long as it lives nothing behind the oldest chunk that it
/// holds comes free: to be dropped as soon as the store has it.
pub struct Cut<W: World> {
    pub seq: Seq,
    /// In order of address, disjoint.
    pub extents: Vec<CutExtent>,
    pieces: ExtentMap<Piece>,
    pub(super) volume: CacheVolume<W>,
    /// What was written since: [`Cut::read_all`] goes by it.
    pub(super) newer: RefCell<Newer>,
    /// Whatever becomes of the volume meanwhile, the space is not reused under the reader: the bytes
    /// of another life would have sound checksums too.
    _held: Held<W>,
}

/// Chunks that a cut reads from.
struct Held<W: World> {
    shared: Rc<Shared<W>>,
    chunks: BTreeSet<u32>,
}

impl<W: World> Drop for Held<W> {
    fn drop(&mut self) {
        let mut log = self.shared.log.borrow_mut();
        for chunk in &self.chunks {
            log.chunk_mut(*chunk).cuts -= 1;
        }
        drop(log);
        self.shared.space_wanted.notify_one();
    }
}

/// A run of pages of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutExtent {
    pub pages: PageRange,
    pub content: CutContent,
}

/// What the pages of a cut's extent hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutContent {
    Data,
    /// Data, to be completed from the volume's published map below: [`Cut::read`] returns patches.
    Partial,
    Zero,
}

/// Where the pages of an extent are.
#[derive(Clone, Debug)]
enum Piece {
    Log(Position),
    Zero,
    /// One page.
    Overlaid {
        base: Base,
        overlays: Vec<Overlay>,
    },
}

impl Cover for Piece {
    fn skip(&self, pages: u64) -> Self {
        match self {
            Self::Log(at) => Self::Log(Position(at.0 + pages)),
            Self::Zero => Self::Zero,
            Self::Overlaid { .. } => self.clone(),
        }
    }
}

impl Piece {
    fn content(&self) -> CutContent {
        match self {
            Self::Log(_) => CutContent::Data,
            Self::Zero => CutContent::Zero,
            Self::Overlaid {
                base: Base::Absent,
                overlays,
            } if covered(overlays) != FULL_MASK => CutContent::Partial,
            Self::Overlaid { .. } => CutContent::Data,
        }
    }
}

impl<W: World> fmt::Debug for Cut<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut")
            .field("seq", &self.seq)
            .field("extents", &self.extents.len())
            .finish()
    }
}

impl<W: World> CacheVolume<W> {
    /// Takes a cut after making it, and the intent to publish it, durable (rules 5, 11). It holds the
    /// oldest writes: all, or as many as fit `extents_max`, which bounds its memory, and the rest of
    /// the write that was the last to fit. None if nothing is dirty, or nothing of it may be published before a fork
    /// that begins at the published cut (rule 22).
    ///
    /// Only who publishes takes cuts, one at a time, so nothing is published meanwhile. A fork's cut is taken beside it:
    /// [`CacheVolume::cut_for_fork`]. What is committed together is cut together: [`Cache::cut_together`](super::Cache::cut_together).
    ///
    /// `nonce` and `unsent` as in [`NewIntent`].
    pub async fn cut(
        &self,
        nonce: Id,
        replaces: ETag,
        unsent: Option<Id>,
        extents_max: usize,
    ) -> Result<Option<Cut<W>>, CacheError> {
        let intent = NewIntent {
            nonce,
            replaces,
            unsent,
        };
        let alone = std::slice::from_ref(self);
        let parts = self.cache.cut_together(alone, &intent, extents_max).await?;
        let only = parts.and_then(|mut parts| parts.pop());
        Ok(only.and_then(|part| part.cut))
    }

    /// Where its next cut ends. None if there is nothing to cut, or nothing that may be published.
    pub(super) async fn cut_end(&self, extents_max: usize) -> Result<Option<End>, CacheError> {
        let Some(state) = self.state().filter(|state| state.last > state.published) else {
            return Ok(None);
        };
        let end = self
            .fork_cut()
            .map_or(state.last, |cut| cut.min(state.last));
        if end <= state.published {
            return Ok(None);
        }
        // Every record is one extent, or a few where it splits an older one.
        if end.0 - state.published.0 <= extents_max as u64 {
            return Ok(Some(End::Last));
        }
        // Looked for without holding what it reads: an intent waits for room in the log, and
        // what is held cannot make room.
        let (_, end) = self.replay(None, end, extents_max).await?;
        Ok(Some(End::At(end)))
    }

    /// The cut at `seq` once more, with the extents that it had. For one that was dropped because it
    /// could not be uploaded: the chunks that a cut holds can neither go nor be moved, and all chunks
    /// behind them wait.
    ///
    /// `seq` is that of a cut of this volume that is not published.
    pub async fn cut_again(&self, seq: Seq) -> Result<Cut<W>, CacheError> {
        self.pieces(seq).await
    }

    /// Pages that were written or trimmed behind the write `after`, up to `until`, in order of address. Of a cut at
    /// `after` these hold something else in a cut at `until`, and all others the same. Both are unpublished: `after` is
    /// at or above the last published cut.
    pub async fn rewritten(&self, after: Seq, until: Seq) -> Result<Vec<PageRange>, CacheError> {
        let (replayed, _) = self.replay(Some(after), until, usize::MAX).await?;
        Ok(replayed.pieces.iter().map(|(pages, _)| pages).collect())
    }

    /// Makes an intent to publish everything written so far durable, or everything up to where a fork begins that no
    /// snapshot holds, and returns that cut. For a publish that only changes other fields of the root, or when nothing is
    /// dirty. `nonce` and `unsent` as in [`NewIntent`].
    pub async fn intend(
        &self,
        nonce: Id,
        replaces: ETag,
        unsent: Option<Id>,
    ) -> Result<Seq, CacheError> {
        let intent = NewIntent {
            nonce,
            replaces,
            unsent,
        };
        let alone = std::slice::from_ref(self);
        let cuts = self.cache.intend_together(alone, &intent).await?;
        cuts.first()
            .copied()
            .ok_or(CacheError::UnknownVolume(self.id))
    }

    /// Where its cut ends that was to end there: a fork may have been noted since that was thought of.
    pub(super) fn end_now(&self, end: End) -> Result<Seq, CacheError> {
        #[cfg(feature = "planted")]
        let passes = self.passes_forks();
        #[cfg(not(feature = "planted"))]
        let passes = false;
        let log = self.cache.shared.log.borrow();
        let volume = log.volumes.get(&self.id);
        let volume = volume.ok_or(CacheError::UnknownVolume(self.id))?;
        let cut = match end {
            End::Last => volume.last,
            End::At(cut) => cut,
        };
        let fork_cut = volume.fork_cut().filter(|_| !passes);
        Ok(fork_cut.map_or(cut, |fork_cut| cut.min(fork_cut)))
    }

    /// Where the oldest fork begins that no snapshot holds.
    fn fork_cut(&self) -> Option<Seq> {
        #[cfg(feature = "planted")]
        if self.passes_forks() {
            return None;
        }
        let log = self.cache.shared.log.borrow();
        log.volumes.get(&self.id)?.fork_cut()
    }

    #[cfg(feature = "planted")]
    fn passes_forks(&self) -> bool {
        self.cache.shared.config.planted == Some(super::Planted::ForkCutPassed)
    }

    pub(super) async fn pieces(&self, seq: Seq) -> Result<Cut<W>, CacheError> {
        let shared = &self.cache.shared;
        let (replayed, _) = self.replay(None, seq, usize::MAX).await?;
        // Records that were moved just before may be on their way to the kernel still.
        let lsn = shared.log.borrow().next_lsn - 1;
        shared.commit_wanted.notify_one();
        shared.reached(&shared.committed, lsn).await?;
        let valid_lsn = {
            let log = shared.log.borrow();
            let volume = log.volumes.get(&self.id);
            volume.map(|volume| volume.state.valid_lsn)
        };
        let Replayed { pieces, held, .. } = replayed;
        let extents = pieces
            .iter()
            .map(|(pages, piece)| CutExtent {
                pages,
                content: piece.content(),
            })
            .collect();
        Ok(Cut {
            seq,
            extents,
            pieces,
            newer: RefCell::new(Newer::since(seq, valid_lsn)),
            volume: self.clone(),
            _held: held,
        })
    }

    /// Replays the dirty records up to `until` in small steps, or to the end of the write with which
    /// there are `extents_max` extents: all, or those behind `after`. Returns where it ended, too.
    async fn replay(
        &self,
        after: Option<Seq>,
        until: Seq,
        extents_max: usize,
    ) -> Result<(Replayed<W>, Seq), CacheError> {
        let shared = &self.cache.shared;
        let published = || self.state().map_or(until, |state| state.published);
        let mut from = published();
        let mut replayed = Replayed::new(shared);
        let begin = |from: Seq| after.unwrap_or(from).max(from).next();
        let mut next = begin(from);
        while next <= until {
            // A fork's cut is taken while others are published. What it has so far may be older than what the store
            // has now, so it begins anew; there is less to go through each time.
            if published() != from {
                from = published();
                (replayed, next) = (Replayed::new(shared), begin(from));
                continue;
            }
            let before = next;
            next = self.replay_step(&mut replayed, next, until, extents_max)?;
            if next == before {
                break;
            }
            shared.world.yield_now().await;
        }
        let is_full = replayed.pieces.len() >= extents_max;
        if next <= until && !is_full {
            // Its records were dropped meanwhile.
            return Err(CacheError::UnknownVolume(self.id));
        }
        Ok((replayed, Seq(next.0 - 1)))
    }

    /// Replays some of the dirty records `next..=until`; returns the first that is left.
    fn replay_step(
        &self,
        replayed: &mut Replayed<W>,
        mut next: Seq,
        until: Seq,
        extents_max: usize,
    ) -> Result<Seq, CacheError> {
        let mut log = self.cache.shared.log.borrow_mut();
        let Log {
            volumes, chunks, ..
        } = &mut *log;
        let volume = volumes
            .get(&self.id)
            .ok_or(CacheError::UnknownVolume(self.id))?;
        let first = volume
            .dirty
            .front()
            .map_or(until.next(), |record| record.seq);
        // Dense seqs make the list an array.
        let skip = usize::try_from(next.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        for record in volume.dirty.iter().skip(skip).take(STEP) {
            let what = record.what;
            let is_full = replayed.pieces.len() >= extents_max;
            if record.seq > until || is_full && !replayed.goes_on(&what) {
                break;
            }
            assert_eq!(record.seq, next, "dirty records are dense");
            add(&mut replayed.pieces, what);
            replayed.last = Some(what);
            let held = &mut replayed.held;
            if held.chunks.insert(record.chunk) {
                chunks[record.chunk as usize].cuts += 1;
            }
            next = next.next();
        }
        Ok(next)
    }
}

/// What a run of dirty records comes to.
struct Replayed<W: World> {
    pieces: ExtentMap<Piece>,
    held: Held<W>,
    /// The newest record.
    last: Option<Written>,
}

impl<W: World> Replayed<W> {
    fn new(shared: &Rc<Shared<W>>) -> Self {
        Self {
            pieces: ExtentMap::default(),
            held: Held {
                shared: Rc::clone(shared),
                chunks: BTreeSet::new(),
            },
            last: None,
        }
    }

    /// The next record may be a piece of the same write, which is in one cut or none. Pieces follow
    /// one another in the volume; records that a start found do not tell more. Where somebody writes
    /// small requests one behind the other this takes them all, up to the next step aside.
    fn goes_on(&self, next: &Written) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|last| last.pages().end == next.pages().start)
    }
}

/// The newer record wins; sectors lie on whatever the cut has below.
fn add(pieces: &mut ExtentMap<Piece>, what: Written) {
    match what {
        Written::Pages { pages, at } => pieces.insert(pages, Piece::Log(at)),
        Written::Zeros { pages } => pieces.insert(pages, Piece::Zero),
        Written::Sectors { page, overlay } => {
            let (base, mut overlays) = match pieces.get(page) {
                None => (Base::Absent, Vec::new()),
                Some(Piece::Log(at)) => (Base::Log(at), Vec::new()),
                Some(Piece::Zero) => (Base::Zero, Vec::new()),
                Some(Piece::Overlaid { base, overlays }) => (base, overlays),
            };
            overlays.push(overlay);
            prune(&mut overlays);
            let one = PageRange::new(page.0, page.0 + 1);
            pieces.insert(one, Piece::Overlaid { base, overlays });
        }
    }
}

impl<W: World> Cut<W> {
    fn shared(&self) -> &Shared<W> {
        &self.volume.cache.shared
    }

    /// Reads pages of the cut as they were when it was taken, whatever was written since. Pages
    /// that the cut does not hold are left as they are. `Missing` only for `Partial` extents.
    pub async fn read(&self, pages: PageRange, out: &mut [u8]) -> Result<Vec<Missing>, CacheError> {
        assert_eq!(
            out.len() as u64,
            pages.bytes(),
            "one buffer for the whole range"
        );
        let mut missing = Vec::new();
        for (run, piece) in self.pieces.overlapping(pages) {
            self.read_piece(run, piece, part(pages, run, out), &mut missing)
                .await?;
        }
        Ok(missing)
    }

    /// The same, and what the cut does not hold is missing too.
    pub(super) async fn read_or_miss(
        &self,
        pages: PageRange,
        out: &mut [u8],
        missing: &mut Vec<Missing>,
    ) -> Result<(), CacheError> {
        let mut at = pages.start;
        let absent = |start: PageNo, end: PageNo, missing: &mut Vec<Missing>| {
            if start < end {
                missing.push(Missing {
                    pages: PageRange { start, end },
                    patches: Vec::new(),
                });
            }
        };
        for (run, piece) in self.pieces.overlapping(pages) {
            absent(at, run.start, missing);
            self.read_piece(run, piece, part(pages, run, out), missing)
                .await?;
            at = run.end;
        }
        absent(at, pages.end, missing);
        Ok(())
    }

    async fn read_piece(
        &self,
        run: PageRange,
        piece: Piece,
        into: &mut [u8],
        missing: &mut Vec<Missing>,
    ) -> Result<(), CacheError> {
        match piece {
            Piece::Zero => into.fill(0),
            Piece::Log(at) => self.shared().read_log(at, into).await?,
            Piece::Overlaid { base, overlays } => {
                let shared = self.shared();
                let patches = shared
                    .overlay_patches(run.start, base, &overlays, into)
                    .await?;
                if let Some(patches) = patches {
                    missing.push(Missing {
                        pages: run,
                        patches,
                    });
                }
            }
        }
        Ok(())
    }
}

/// The part of `out`, which holds `pages`, that holds `run`.
pub(super) fn part(pages: PageRange, run: PageRange, out: &mut [u8]) -> &mut [u8] {
    let from = usize::try_from((run.start.0 - pages.start.0) * PAGE_BYTES).expect("in out");
    let len = usize::try_from(run.bytes()).expect("in out");
    &mut out[from..from + len]
}
