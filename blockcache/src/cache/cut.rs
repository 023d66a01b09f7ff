//! A cut: a position in a volume's write order, and an immutable list of where everything up to it
//! is. A sync reads those positions, never the index, so that what is written meanwhile does not
//! leak into it (rule 2).

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use world::{ETag, World};

use super::{CacheVolume, Intent, Missing, Shared};
use crate::extents::{Cover, ExtentMap};
use crate::index::{Base, FULL_MASK, Overlay, Position, covered, prune};
use crate::log::{Log, Written};
use crate::record::{INTENTS_MAX, TEXT_BYTES_MAX};
use crate::{CacheError, Id, PAGE_BYTES, PageRange, Seq};

/// Dirty records that a cut goes through between two yields.
const STEP: usize = 1024;

/// The immutable content of a cut: what changed since the last published one. To be dropped before
/// [`CacheVolume::published`] is called for it: until then its records are dirty and stay.
pub struct Cut<W: World> {
    pub seq: Seq,
    /// In order of address, disjoint.
    pub extents: Vec<CutExtent>,
    pieces: ExtentMap<Piece>,
    volume: CacheVolume<W>,
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
    /// Takes a cut of everything written so far, after making it, and the intent to publish it,
    /// durable (rules 5, 11). None if nothing is dirty. One cut of a volume at a time.
    pub async fn cut(&self, nonce: Id, replaces: ETag) -> Result<Option<Cut<W>>, CacheError> {
        if self
            .state()
            .is_none_or(|state| state.last == state.published)
        {
            return Ok(None);
        }
        let seq = self.intend(nonce, replaces).await?;
        self.pieces(seq).await.map(Some)
    }

    /// The cut at `seq` once more, with the extents that it had. For one that was dropped because it
    /// could not be uploaded: the chunks that a cut holds can neither go nor be moved, and all chunks
    /// behind them wait.
    ///
    /// `seq` is that of a cut of this volume that is not published.
    pub async fn cut_again(&self, seq: Seq) -> Result<Cut<W>, CacheError> {
        self.pieces(seq).await
    }

    /// Makes an intent to publish everything written so far durable, and returns that cut. For a
    /// publish that only changes other fields of the root, or when nothing is dirty.
    pub async fn intend(&self, nonce: Id, replaces: ETag) -> Result<Seq, CacheError> {
        assert!(
            replaces.0.len() <= TEXT_BYTES_MAX,
            "the store seam bounds ETags"
        );
        let shared = &self.cache.shared;
        shared.room_for_state().await?;
        let (seq, lsn) = {
            let mut log = shared.log.borrow_mut();
            let Some(volume) = log.volumes.get_mut(&self.id) else {
                return Err(CacheError::UnknownVolume(self.id));
            };
            // A longer list means that the outcome of so many publishes is unknown: the oldest are
            // those whose requests have long ended.
            if volume.state.intents.len() == INTENTS_MAX {
                volume.state.intents.remove(0);
            }
            let cut = volume.last;
            volume.state.intents.push(Intent {
                nonce,
                cut,
                replaces,
            });
            (cut, log.append_state(self.id))
        };
        shared.flush_to(lsn).await?;
        Ok(seq)
    }

    /// Replays the dirty records up to `seq`, in small steps.
    async fn pieces(&self, seq: Seq) -> Result<Cut<W>, CacheError> {
        let shared = &self.cache.shared;
        let mut pieces = ExtentMap::default();
        let mut held = Held {
            shared: Rc::clone(shared),
            chunks: BTreeSet::new(),
        };
        let mut next = self.state().map_or(seq, |state| state.published).next();
        while next <= seq {
            let before = next;
            next = self.replay_step(&mut pieces, &mut held, next, seq)?;
            if next == before {
                // Its records were dropped meanwhile.
                return Err(CacheError::UnknownVolume(self.id));
            }
            shared.world.yield_now().await;
        }
        // Records that were moved just before may be on their way to the kernel still.
        let lsn = shared.log.borrow().next_lsn - 1;
        shared.commit_wanted.notify_one();
        shared.reached(&shared.committed, lsn).await?;
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
            volume: self.clone(),
            _held: held,
        })
    }
}

impl<W: World> CacheVolume<W> {
    /// Replays some of the dirty records `next..=seq`; returns the first that is left.
    fn replay_step(
        &self,
        pieces: &mut ExtentMap<Piece>,
        held: &mut Held<W>,
        mut next: Seq,
        seq: Seq,
    ) -> Result<Seq, CacheError> {
        let mut log = self.cache.shared.log.borrow_mut();
        let Log {
            volumes, chunks, ..
        } = &mut *log;
        let volume = volumes
            .get(&self.id)
            .ok_or(CacheError::UnknownVolume(self.id))?;
        let first = volume.dirty.front().map_or(seq.next(), |record| record.seq);
        // Dense seqs make the list an array.
        let skip = usize::try_from(next.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        for record in volume.dirty.iter().skip(skip).take(STEP) {
            if record.seq > seq {
                break;
            }
            assert_eq!(record.seq, next, "dirty records are dense");
            add(pieces, record.what);
            if held.chunks.insert(record.chunk) {
                chunks[record.chunk as usize].cuts += 1;
            }
            next = next.next();
        }
        Ok(next)
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
            let from = usize::try_from((run.start.0 - pages.start.0) * PAGE_BYTES).expect("in out");
            let len = usize::try_from(run.bytes()).expect("in out");
            let into = &mut out[from..from + len];
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
        }
        Ok(missing)
    }
}
