//! Pages that only the store has: fill cache, else one fetch per frame, however many wait for it.
//!
//! Promises: a frame is fetched once at a time; at most [`FETCHES_MAX`] fetches of an export are in
//! flight, further ones queue behind the readers that wait for them. A fetched frame goes into the
//! fill cache behind the reader's back, best effort. Absent: retries (the reader decides how long
//! it is worth waiting), read-ahead.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{Cache, CacheError, FillKey, PAGE_BYTES, PageRange};
use bytes::Bytes;
use world::sync::{Notify, Semaphore};
use world::{StoreErrorKind, World};

use super::base::Base;
use crate::volume::{FrameRef, Source, Volume, VolumeError};

/// Fetches of one export in flight; more wait their turn.
const FETCHES_MAX: usize = 32;
/// Look-ups of one read: each one but the last met a map that changed under it.
const LOOKS_MAX: u32 = 8;
/// Fills of one export on their way to the SSD; a frame beyond that is not kept.
const FILLS_MAX: usize = 16;

/// Where an export reads what its cache does not hold.
#[derive(Debug)]
pub(crate) struct Frames<W: World> {
    world: W,
    cache: Cache<W>,
    /// None after a restart during an outage, until the store has been asked.
    volume: RefCell<Option<Volume<W>>>,
    /// Of a fork that is not in the store: what it is made of. Then there is no volume.
    base: RefCell<Option<Rc<Base<W>>>>,
    joined: RefCell<BTreeMap<FillKey, Rc<Joined>>>,
    fetches: Semaphore,
    fills: Semaphore,
}

/// One fetch and all who wait for it.
#[derive(Debug, Default)]
struct Joined {
    result: RefCell<Option<Result<Bytes, VolumeError>>>,
    done: Notify,
}

/// Why pages could not be read from the store.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The volume was resumed during an outage and the store has not answered since.
    #[error("the store has not been reached since the start")]
    NotYet,
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The parent of a fork, as it is here, cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl ReadError {
    /// It passes by itself.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::NotYet => true,
            Self::Volume(error) => is_temporary(error),
            Self::Cache(_) => false,
        }
    }

    /// For how long the store asked to be left alone, if it did.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NotYet | Self::Cache(_) => None,
            Self::Volume(error) => error.retry_after(),
        }
    }

    /// A reader had better wait: also where credentials ran out, a clock is off, or a gateway knows no
    /// bucket. Such a thing is put right in a moment, and a guest's filesystem does not survive an error.
    pub(crate) fn may_pass(&self) -> bool {
        let is_refused = match self {
            Self::Volume(VolumeError::Store(error)) => error.kind == StoreErrorKind::Refused,
            Self::NotYet | Self::Volume(_) | Self::Cache(_) => false,
        };
        is_refused || self.is_temporary()
    }
}

/// The store may answer the same request later.
pub(crate) fn is_temporary(error: &VolumeError) -> bool {
    let VolumeError::Store(error) = error else {
        return false;
    };
    matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown)
}

impl<W: World> Frames<W> {
    pub(crate) fn new(
        world: W,
        cache: Cache<W>,
        volume: Option<Volume<W>>,
        base: Option<Rc<Base<W>>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            world,
            cache,
            volume: RefCell::new(volume),
            base: RefCell::new(base),
            joined: RefCell::default(),
            fetches: Semaphore::new(FETCHES_MAX),
            fills: Semaphore::new(FILLS_MAX),
        })
    }

    pub(crate) fn volume(&self) -> Option<Volume<W>> {
        self.volume.borrow().clone()
    }

    pub(crate) fn base(&self) -> Option<Rc<Base<W>>> {
        self.base.borrow().clone()
    }

    /// The fork is in the store: from here on it is read there.
    pub(crate) fn settle(&self, volume: Volume<W>) {
        self.set_volume(volume);
        self.base.take();
    }

    /// The store has answered at last.
    pub(crate) fn set_volume(&self, volume: Volume<W>) {
        let before = self.volume.replace(Some(volume));
        assert!(before.is_none(), "an export's volume is set once");
    }

    /// Fills the parts of `out` (which holds `whole`) that belong to `wanted` (in order, within
    /// `whole`) as the published map has them. All fetches are begun before one is waited for.
    ///
    /// What a look-up found may be collected before it is fetched, if the map was changed in between: then
    /// it is looked up again.
    pub(crate) async fn read(
        self: &Rc<Self>,
        wanted: &[PageRange],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        assert_eq!(out.len(), index(whole.bytes()), "buffer of {whole}");
        while let Some(base) = self.base() {
            let version = base.version();
            let read = Box::pin(base.read(self, wanted, whole, out)).await;
            // It changes a few times in its life. What was read or failed before may be of another cut.
            if base.version() == version {
                return read;
            }
        }
        let volume = self.volume().ok_or(ReadError::NotYet)?;
        self.read_of(&volume, wanted, whole, out).await
    }

    /// The same, as a volume has them.
    pub(crate) async fn read_of(
        self: &Rc<Self>,
        volume: &Volume<W>,
        wanted: &[PageRange],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let mut looks = 1;
        loop {
            let version = volume.version();
            let error = match self.read_once(volume, wanted, whole, out).await {
                Err(ReadError::Volume(error)) if error.is_missing() => error,
                outcome => return outcome,
            };
            if volume.version() == version || looks == LOOKS_MAX {
                return Err(error.into());
            }
            looks += 1;
        }
    }

    async fn read_once(
        self: &Rc<Self>,
        volume: &Volume<W>,
        wanted: &[PageRange],
        whole: PageRange,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let mut waiting = Vec::new();
        for pages in wanted {
            let mut covered = pages.start;
            for (run, source) in volume.lookup(*pages).await? {
                assert_eq!(run.start, covered, "a lookup covers {pages} without gaps");
                covered = run.end;
                let part = &mut out[place(whole, run)];
                match source {
                    Source::Zero => part.fill(0),
                    Source::Frame { frame, skip } => {
                        if !self.kept(&frame, skip, run, part).await {
                            let fetch = self.join(volume, &frame);
                            waiting.push((run, skip, frame, fetch));
                        }
                    }
                }
            }
            assert_eq!(covered, pages.end, "a lookup covers {pages} to its end");
        }
        for (run, skip, frame, fetch) in waiting {
            let bytes = fetch.wait().await?;
            let from = index(u64::from(skip) * PAGE_BYTES);
            let part = bytes.get(from..from + index(run.bytes()));
            let part = part.ok_or_else(|| short_frame(&frame))?;
            out[place(whole, run)].copy_from_slice(part);
        }
        Ok(())
    }

    /// Whether the fill cache has it, as far as is known without reading it.
    pub(crate) fn keeps(&self, frame: &FrameRef) -> bool {
        self.cache.keeps(key(frame))
    }

    /// Puts a frame that was fetched into the fill cache. False where no room is ready for it; some is made meanwhile.
    pub(crate) async fn keep(&self, frame: &FrameRef, bytes: &Bytes) -> bool {
        let key = key(frame);
        self.cache.fill(key, bytes).await;
        self.cache.keeps(key)
    }

    async fn kept(&self, frame: &FrameRef, skip: u32, run: PageRange, part: &mut [u8]) -> bool {
        let Ok(pages) = u32::try_from(run.pages()) else {
            return false;
        };
        self.cache
            .filled(key(frame), skip..skip + pages, part)
            .await
    }

    /// The fetch in flight for this frame, or a new one. It runs as a task of its own, so that
    /// those who wait do not depend on the one who came first.
    fn join(self: &Rc<Self>, volume: &Volume<W>, frame: &FrameRef) -> Rc<Joined> {
        let key = key(frame);
        if let Some(joined) = self.joined.borrow().get(&key) {
            return Rc::clone(joined);
        }
        let joined = Rc::new(Joined::default());
        self.joined.borrow_mut().insert(key, Rc::clone(&joined));
        let (frames, volume, frame) = (Rc::clone(self), volume.clone(), frame.clone());
        let task = Rc::clone(&joined);
        self.world.spawn(async move {
            let result = {
                let _turn = frames.fetches.acquire().await.expect("never closed");
                Box::pin(volume.fetch(&frame)).await
            };
            frames.joined.borrow_mut().remove(&key);
            task.finish(result.clone());
            let (Ok(bytes), Ok(_slot)) = (result, frames.fills.try_acquire()) else {
                return;
            };
            frames.cache.fill(key, &bytes).await;
        });
        joined
    }
}

impl Joined {
    fn finish(&self, result: Result<Bytes, VolumeError>) {
        *self.result.borrow_mut() = Some(result);
        self.done.notify_waiters();
    }

    async fn wait(&self) -> Result<Bytes, VolumeError> {
        loop {
            // Made before the look: a result that comes in between wakes it.
            let done = self.done.notified();
            if let Some(result) = self.result.borrow().clone() {
                return result;
            }
            done.await;
        }
    }
}

fn key(frame: &FrameRef) -> FillKey {
    FillKey {
        object: frame.segment,
        frame: frame.number,
    }
}

fn short_frame(frame: &FrameRef) -> VolumeError {
    VolumeError::Damaged {
        key: format!("segment {}", frame.segment),
        what: format!("frame {} is shorter than its map entry", frame.number),
    }
}

/// Where the bytes of `run` lie in a buffer that holds `pages`.
pub(crate) fn place(pages: PageRange, run: PageRange) -> std::ops::Range<usize> {
    assert!(
        pages.start <= run.start && run.end <= pages.end,
        "{run} lies outside {pages}"
    );
    let from = index((run.start.0 - pages.start.0) * PAGE_BYTES);
    from..from + index(run.bytes())
}

/// A length in memory: buffers are far smaller than the address space.
pub(crate) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a buffer's length fits the address space")
}
