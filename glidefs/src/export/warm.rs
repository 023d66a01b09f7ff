//! Warming up: of an export that is prepared, what was written last is brought into the cache, so that its guest does
//! not begin on a cold disk.
//!
//! ```text
//! prepared -> Running --> Done      what was asked for is there, or all that there is
//!                |  '---> Stopped   the store fails too often, or the cache takes no more
//!                '------> over: promoted, closed, or prepared anew (which goes on with the newer cut)
//! ```
//!
//! A level: what is in the cache already counts, so asking again costs next to nothing, and never brings more than was
//! asked for last. It stands behind everybody else: [`READS_MAX`] requests at a time of all warm-ups of the server, each
//! export one after the other; none while clients wait for room in the cache; and never more than half of what the cache
//! may give. Nobody waits for it, and what it could not bring is fetched when it is read.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use blockcache::{CacheStats, PAGE_BYTES};
use bytes::Bytes;
use world::World;

use super::site::Site;
use super::{Export, Role};
use crate::control::{WarmDocument, WarmState};
use crate::volume::{FrameRef, Volume, VolumeError, together};

/// Requests of all warm-ups under way at a time; further ones wait their turn.
pub(crate) const READS_MAX: usize = 2;
/// Where nobody says how much.
pub(crate) const BYTES_DEFAULT: u64 = 256 << 20;
/// A leaf of the map is looked at for each so many bytes that are asked for: where little lies far apart the map would
/// cost more than it brings. Full ones stand for 8 MiB at least.
const LEAF_WORTH_BYTES: u64 = 2 << 20;
/// Requests that fail, each after several attempts. Then it is over, until somebody prepares again.
const FAILURES_MAX: u32 = 4;
/// Tries to put one frame into the cache, and how long room may take to be made in between.
const KEEPS_MAX: u32 = 20;
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// Before it is looked again whether clients still wait for room.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// How warm an export is.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    /// None: nobody asked.
    state: Cell<Option<WarmState>>,
    wanted_bytes: Cell<u64>,
    bytes_max: Cell<u64>,
    bytes: Cell<u64>,
    note: RefCell<Option<String>>,
}

impl Warm {
    pub(crate) fn document(&self) -> Option<WarmDocument> {
        let document = |state| WarmDocument {
            state,
            bytes_max: self.bytes_max.get(),
            bytes: self.bytes.get(),
            note: self.note.borrow().clone(),
        };
        self.state.get().map(document)
    }

    fn is_running(&self) -> bool {
        self.state.get() == Some(WarmState::Running)
    }

    fn end(&self, state: WarmState, note: Option<String>) {
        self.state.set(Some(state));
        self.note.replace(note);
    }
}

/// Brings up to so many bytes of a prepared export into the cache, in the background; one that is under way goes on to
/// the new bound.
pub(crate) fn start<W: World>(site: &Rc<Site<W>>, export: &Rc<Export<W>>, wanted_bytes: u64) {
    let warm = &export.warm;
    let bytes_max = wanted_bytes.min(half_of_room(&site.cache.stats()));
    warm.wanted_bytes.set(wanted_bytes);
    warm.bytes_max.set(bytes_max);
    if warm.is_running() {
        return;
    }
    warm.bytes.set(0);
    warm.end(WarmState::Running, None);
    let (site, export) = (Rc::clone(site), Rc::clone(export));
    let world = site.world.clone();
    world.spawn(async move { run(&site, &export).await });
}

/// A prepared export that takes the place of another one is as warm as that was asked to be.
pub(super) fn go_on<W: World>(site: &Rc<Site<W>>, before: &Export<W>, export: &Rc<Export<W>>) {
    if before.warm.document().is_some() {
        start(site, export, before.warm.wanted_bytes.get());
    }
}

/// Half of what the cache may give for it: the rest of its size, or what it may evict. What is dirty it must keep.
fn half_of_room(stats: &CacheStats) -> u64 {
    let size = if stats.disk_full {
        stats.used_bytes
    } else {
        stats.size_bytes
    };
    size.saturating_sub(stats.dirty_bytes) / 2
}

/// What a frame takes in the cache.
fn cost(frame: &FrameRef) -> u64 {
    frame.pages.bytes() + PAGE_BYTES
}

/// Why it ends before all is there.
enum Stop {
    /// Nobody wants it any more.
    Over,
    Failed(String),
}

async fn run<W: World>(site: &Site<W>, export: &Export<W>) {
    let Some(volume) = export.frames().volume() else {
        export.warm.end(WarmState::Done, None);
        return;
    };
    let before = export.meter().io.get().warmed_bytes;
    let mut warming = Warming {
        site,
        export,
        volume,
        planned: 0,
        failures: 0,
    };
    match Box::pin(warming.bring_all()).await {
        Ok(()) => export.warm.end(WarmState::Done, None),
        Err(Stop::Over) => export.warm.end(WarmState::Stopped, None),
        Err(Stop::Failed(why)) => export.warm.end(WarmState::Stopped, Some(why)),
    }
    let fetched_bytes = export.meter().io.get().warmed_bytes - before;
    let bytes = export.warm.bytes.get();
    tracing::info!(export = %export.name(), bytes, fetched_bytes, "warmed up, as far as it goes");
}

/// A warm-up under way.
struct Warming<'a, W: World> {
    site: &'a Site<W>,
    export: &'a Export<W>,
    volume: Volume<W>,
    /// Bytes that are there, or were asked for.
    planned: u64,
    failures: u32,
}

impl<W: World> Warming<'_, W> {
    async fn bring_all(&mut self) -> Result<(), Stop> {
        let mut recent = self.volume.recent();
        while self.planned < self.bytes_max() && recent.leaves() < self.leaves_max() {
            self.calm().await?;
            let looked = {
                // It may read leaves.
                let turn = self.site.warming.acquire().await;
                let _turn = turn.expect("never closed");
                Box::pin(recent.more()).await
            };
            match looked {
                Ok(Some(frames)) => Box::pin(self.bring(frames)).await?,
                Ok(None) => return Ok(()),
                Err(error) => self.failed(&error)?,
            }
        }
        Ok(())
    }

    async fn bring(&mut self, frames: Vec<FrameRef>) -> Result<(), Stop> {
        let lacking = self.lacking(frames);
        let mut rest = &lacking[..];
        while !rest.is_empty() {
            let (batch, next) = rest.split_at(together(rest));
            rest = next;
            self.calm().await?;
            if let Err(error) = Box::pin(self.fetch(batch)).await? {
                self.failed(&error)?;
            }
        }
        Ok(())
    }

    /// Those of the frames that are not here, as many as there is room for.
    fn lacking(&mut self, frames: Vec<FrameRef>) -> Vec<FrameRef> {
        let mut lacking = Vec::new();
        for frame in frames {
            let cost = cost(&frame);
            if self.planned + cost > self.bytes_max() {
                // Enough: what is smaller is not worth another look.
                self.planned = self.bytes_max();
                break;
            }
            self.planned += cost;
            if self.export.frames().keeps(&frame) {
                self.has(&frame);
            } else {
                lacking.push(frame);
            }
        }
        lacking
    }

    /// Neighbours, by one request. The inner error is the store's.
    async fn fetch(&self, batch: &[FrameRef]) -> Result<Result<(), VolumeError>, Stop> {
        let span = {
            let turn = self.site.warming.acquire().await;
            let _turn = turn.expect("never closed");
            Box::pin(self.volume.span(batch)).await
        };
        let span = match span {
            Ok(span) => span,
            Err(error) => return Ok(Err(error)),
        };
        for frame in batch {
            if self.is_over() {
                return Err(Stop::Over);
            }
            // A reader may have been faster.
            if !self.export.frames().keeps(frame) {
                match Box::pin(self.volume.frame_of(batch, &span, frame)).await {
                    Ok(bytes) => self.keep(frame, &bytes).await?,
                    Err(error) => return Ok(Err(error)),
                }
            }
            self.has(frame);
        }
        Ok(Ok(()))
    }

    async fn keep(&self, frame: &FrameRef, bytes: &Bytes) -> Result<(), Stop> {
        for _try in 0..KEEPS_MAX {
            if self.export.frames().keep(frame, bytes).await {
                let len = frame.pages.bytes();
                self.export.count(|io| io.warmed_bytes += len);
                return Ok(());
            }
            self.site.world.sleep(ROOM_PAUSE).await;
            if self.is_over() {
                return Err(Stop::Over);
            }
        }
        Err(no_room())
    }

    /// Waits until no client waits for room in the cache.
    async fn calm(&self) -> Result<(), Stop> {
        loop {
            if self.is_over() {
                return Err(Stop::Over);
            }
            let stats = self.site.cache.stats();
            if self.planned > half_of_room(&stats) {
                return Err(no_room());
            }
            if stats.writers_waiting == 0 {
                return Ok(());
            }
            self.site.world.sleep(BUSY_PAUSE).await;
        }
    }

    fn failed(&mut self, error: &VolumeError) -> Result<(), Stop> {
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return Ok(());
        }
        Err(Stop::Failed(format!(
            "the store does not give it ({error}); prepare again once it does"
        )))
    }

    /// Promoted, prepared anew, or let go.
    fn is_over(&self) -> bool {
        self.export.role() != Role::Prepared || self.export.stops()
    }

    fn has(&self, frame: &FrameRef) {
        let bytes = &self.export.warm.bytes;
        bytes.set(bytes.get() + cost(frame));
    }

    fn bytes_max(&self) -> u64 {
        self.export.warm.bytes_max.get()
    }

    fn leaves_max(&self) -> u64 {
        self.bytes_max().div_ceil(LEAF_WORTH_BYTES)
    }
}

fn no_room() -> Stop {
    let why = "the cache takes no more: too much of it is dirty, or it has stopped";
    Stop::Failed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_gets_half_of_what_may_go() {
        let stats = |size_bytes, used_bytes, dirty_bytes, disk_full| CacheStats {
            size_bytes,
            used_bytes,
            dirty_bytes,
            disk_full,
            ..CacheStats::default()
        };
        assert_eq!(half_of_room(&stats(1000, 0, 0, false)), 500);
        // What is clean may be evicted.
        assert_eq!(half_of_room(&stats(1000, 1000, 400, false)), 300);
        // The disk is smaller than the cache was meant to be.
        assert_eq!(half_of_room(&stats(1000, 600, 400, true)), 100);
        assert_eq!(half_of_room(&stats(1000, 300, 400, true)), 0);
    }
}
