//! One volume of those that are published together: what is asked of it, and its segments on their way to the store.
//!
//! Absent: when and what to publish ([`super::Syncer`], [`super::attempt`]).

use std::pin::pin;
use std::rc::Rc;

use blockcache::{CacheVolume, Cut, LocalVolume, PAGE_BYTES, PageRange, Seq};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use world::sync::SemaphorePermit;
use world::{Instant, World};

use super::plan::{FRAME_PAGES_MAX, FrameKind, FramePlan, SegmentLimits, SegmentPlan};
use super::uploads::Turn;
use super::{SyncError, count};
use crate::export::apply_patches;
use crate::export::frames::index;
use crate::export::site::Site;
use crate::export::{Export, Role};
use crate::race::race;
use crate::volume::{FrameContent, PlainFrame, Uploaded, Volume};

/// Groups of frames of one segment that are read at a time.
const READS_MAX: usize = 8;

/// An export, and its volume in the log.
#[derive(Debug)]
pub(super) struct Member<W: World> {
    pub(super) site: Rc<Site<W>>,
    pub(super) export: Rc<Export<W>>,
    pub(super) local: CacheVolume<W>,
}

impl<W: World> Member<W> {
    pub(super) fn state(&self) -> LocalVolume {
        let state = self.local.state();
        state.expect("a volume is dropped from the log only after its export has ended")
    }

    /// Only where the store was reached.
    pub(super) fn volume(&self) -> Volume<W> {
        let volume = self.export.frames().volume();
        volume.expect("the store was reached before")
    }

    pub(super) fn is_writable(&self) -> bool {
        self.export.role() == Role::ReadWrite
    }

    /// Somebody waits for a publish, also if nothing was written.
    pub(super) fn is_ordered(&self, state: &LocalVolume) -> bool {
        let orders = &self.export.orders;
        orders.drain_to() > state.published
            || orders.has_snapshots()
            || orders.has_data_key()
            || orders.is_carrying()
            || self.forks_wait(state)
            || self.must_grow()
    }

    fn must_grow(&self) -> bool {
        let size = self.export.size_bytes();
        self.export.orders.grow_to().is_some_and(|to| to > size)
    }

    /// When it may be given up, as far as it is concerned; none while somebody is here.
    pub(super) fn leave_at(&self, is_ordered: bool) -> Option<Instant> {
        let since = self.export.clients.none_since()?;
        if is_ordered {
            return Some(since);
        }
        // The grace time is not to end in the middle of a shutdown, which gives the order itself.
        (!self.site.closing.get()).then(|| since + self.site.config.grace)
    }

    /// Waits until somebody gives an order; or writes, while all is published; or presses, while it is not.
    pub(super) async fn news(&self, is_dirty: bool) {
        let written = async {
            if is_dirty {
                self.local.wait_pressed().await;
            } else {
                self.local.wait_dirty().await;
            }
        };
        race(self.export.orders.wake.notified(), written).await;
    }

    /// Also if nothing was written.
    pub(super) fn is_asked_to_publish(&self) -> bool {
        let orders = &self.export.orders;
        // Behind the cut of a fork nothing is published before that is.
        let state = self.state();
        let has_cuts = state.forks.iter().any(|fork| !fork.is_carried);
        let has_forks = has_cuts || self.forks_wait(&state);
        orders.has_snapshots() || orders.has_data_key() || orders.is_carrying() || has_forks
    }

    /// The size that the next root gets, if that is another.
    pub(super) fn new_size(&self) -> Option<u64> {
        let size_bytes = self.export.root().map(|root| root.size_bytes);
        let wanted = self.export.orders.grow_to();
        wanted.filter(|wanted| size_bytes.is_some_and(|size| *wanted > size))
    }

    /// Snapshots that were asked for up to this write go with the cut.
    pub(super) fn snapshots_until(&self, cut: Seq) -> Seq {
        #[cfg(feature = "planted")]
        if self.site.config.snapshots_of_any_cut {
            return Seq(u64::MAX);
        }
        cut
    }

    /// So that no restart during an outage resumes an epoch that is known to be over.
    pub(super) async fn give_up_epoch(&self) {
        if let Err(error) = self.local.detached().await {
            tracing::error!(export = %self.export.name(), %error, "the end of the epoch could not be noted in the log (docs/runbooks/fsync-failed.md)");
        }
    }

    /// Of uploads that no publish will name any more.
    pub(super) async fn give_back(&self, uploaded: &[Uploaded]) {
        if let Some(volume) = self.export.frames().volume() {
            Box::pin(volume.give_back_uploads(uploaded)).await;
        }
    }

    /// Keeps the map short and gives space back, beside the next syncs, which carry the result.
    pub(super) fn tidy(&self) {
        let Some(volume) = self.export.frames().volume() else {
            return;
        };
        let (export, tidy) = (Rc::clone(&self.export), self.site.config.sync.tidy);
        self.site.world.spawn(async move {
            match Box::pin(volume.tidy(&tidy)).await {
                Ok(tidied) => {
                    export.causes.settle("map");
                    count(&export, &tidied);
                    // What was moved is in the store twice until a publish says so. With as many overwrites as it gets
                    // behind a pass for each sync, waste would grow until the passes free as much as is overwritten.
                    if tidied.repacked.goes_on && export.role() == Role::ReadWrite {
                        export.orders.carry();
                    }
                }
                Err(error) if export.causes.raise("map", export.world().now()) => {
                    tracing::warn!(export = %export.name(), %error, "the volume in the store is not tidied; tried again after the next sync");
                }
                Err(_told) => {}
            }
        });
    }

    /// Work on the map that was under way is lost with the detach; what it wrote is not left behind.
    pub(super) fn discard(&self) {
        let Some(volume) = self.export.frames().volume() else {
            return;
        };
        let export = Rc::clone(&self.export);
        self.site.world.spawn(async move {
            if let Err(error) = Box::pin(volume.discard_fresh()).await {
                tracing::info!(export = %export.name(), %error, "objects that nobody needs stay in the store: `glidefs gc run` sweeps them");
            }
        });
    }

    pub(super) async fn upload_one(
        &self,
        cut: &Cut<W>,
        plan: &SegmentPlan,
        turn: Turn<'_>,
        packing: SemaphorePermit<'_>,
    ) -> Result<Uploaded, SyncError> {
        let volume = self.volume();
        let (frames, bytes) = self.read(cut, plan).await?;
        let sealed = Box::pin(volume.seal(frames)).await;
        drop(packing);
        let asked = self.site.world.now();
        let uploaded = Box::pin(volume.put(sealed)).await?;
        let took = self.site.world.now().since(asked);
        // A small one is answered sooner, which says nothing about a queue.
        let blocks = self.site.config.sync.blocks_per_batch;
        let full = SegmentLimits::from_blocks_per_batch(blocks).pages_max * PAGE_BYTES;
        if bytes >= full / 2 {
            turn.answered(took);
        }
        self.export.count(|io| {
            io.uploaded_segments += 1;
            io.uploaded_bytes += uploaded.bytes();
            io.packed_bytes += bytes;
        });
        Ok(uploaded)
    }

    /// The frames of a segment, and how many bytes they have. Some at a time: pages that have to come
    /// from the store, or the SSD, are waited for together.
    async fn read(
        &self,
        cut: &Cut<W>,
        plan: &SegmentPlan,
    ) -> Result<(Vec<PlainFrame>, u64), SyncError> {
        let groups = stream::iter(groups(&plan.frames)).then(async |group| {
            // What the page cache holds is read without waiting: clients are served in between.
            self.site.world.yield_now().await;
            group
        });
        let reads = groups.map(|group| self.read_group(cut, group));
        let mut reads = pin!(reads.buffered(READS_MAX));
        let mut frames = Vec::with_capacity(plan.frames.len());
        let mut bytes = 0;
        while let Some((group, group_bytes)) = reads.try_next().await? {
            bytes += group_bytes;
            frames.extend(group);
        }
        Ok((frames, bytes))
    }

    /// Frames that lie in one buffer: small ones cost less so.
    async fn read_group(
        &self,
        cut: &Cut<W>,
        group: &[FramePlan],
    ) -> Result<(Vec<PlainFrame>, u64), SyncError> {
        let len = index(group.iter().map(data_bytes).sum());
        let mut buffer = vec![0; len];
        let mut spots = Vec::with_capacity(group.len());
        let mut from = 0;
        for frame in group {
            let to = from + index(data_bytes(frame));
            let into = &mut buffer[from..to];
            if from < to {
                self.fill(cut, frame, into).await?;
            }
            let is_zero = into.iter().all(|byte| *byte == 0);
            spots.push((frame.pages, (!is_zero).then_some(from..to)));
            from = to;
        }
        let buffer = Bytes::from(buffer);
        let mut bytes = 0;
        let frames = spots.into_iter().map(|(pages, spot)| {
            let content = match spot {
                None => FrameContent::Zero,
                Some(spot) => {
                    bytes += pages.bytes();
                    FrameContent::Data(buffer.slice(spot))
                }
            };
            PlainFrame { pages, content }
        });
        Ok((frames.collect(), bytes))
    }

    /// The bytes of one frame: the cut's, over those of the map that was published before it.
    async fn fill(&self, cut: &Cut<W>, frame: &FramePlan, out: &mut [u8]) -> Result<(), SyncError> {
        let missing = cut.read(frame.pages, out).await?;
        if missing.is_empty() {
            return Ok(());
        }
        assert_eq!(
            frame.kind,
            FrameKind::Completed,
            "a cut holds its whole pages {}",
            frame.pages
        );
        let wanted: Vec<PageRange> = missing.iter().map(|m| m.pages).collect();
        let frames = self.export.frames();
        frames.read(&wanted, frame.pages, out).await?;
        apply_patches(&missing, frame.pages, out);
        Ok(())
    }
}

/// Frames that follow each other, up to the size of the largest single one.
fn groups(frames: &[FramePlan]) -> impl Iterator<Item = &[FramePlan]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|frame| {
            bytes += data_bytes(frame);
            bytes <= FRAME_PAGES_MAX * PAGE_BYTES
        });
        let (group, behind) = rest.split_at(fitting.count());
        rest = behind;
        (!group.is_empty()).then_some(group)
    })
}

/// Of a frame in the segment before compression; zeros have none.
fn data_bytes(frame: &FramePlan) -> u64 {
    match frame.kind {
        FrameKind::Zero => 0,
        FrameKind::Whole | FrameKind::Completed => frame.pages.bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(start: u64, pages: u64, kind: FrameKind) -> FramePlan {
        FramePlan {
            pages: PageRange::new(start, start + pages),
            kind,
        }
    }

    #[test]
    fn groups_hold_every_frame_once_and_no_more_than_a_large_one() {
        let mut frames = vec![frame(0, 32, FrameKind::Whole)];
        frames.extend((0..70).map(|n| frame(100 + n * 2, 1, FrameKind::Completed)));
        frames.push(frame(1000, 1 << 20, FrameKind::Zero));
        frames.push(frame(1 << 21, 31, FrameKind::Whole));
        let grouped: Vec<&[FramePlan]> = groups(&frames).collect();
        assert_eq!(grouped.concat(), frames);
        let counts: Vec<usize> = grouped.iter().map(|group| group.len()).collect();
        assert_eq!(counts, [1, 32, 32, 7, 1]);
        assert_eq!(groups(&[]).count(), 0);
    }
}
