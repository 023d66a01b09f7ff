//! One change of the root on its way: begun, uploaded, published. Each part may fail and be taken
//! up again; what succeeded is kept.

use std::cell::{Cell, RefCell};
use std::pin::pin;

use blockcache::{Cut, Id, PAGE_BYTES, PageRange, Seq};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use world::World;
use world::sync::SemaphorePermit;

use super::fork::ForksDue;
use super::plan::{
    FRAME_PAGES_MAX, FrameKind, FramePlan, SegmentLimits, SegmentPlan, plan, within,
};
use super::uploads::Turn;
use super::{SyncError, Syncer};
use crate::export::Role;
use crate::export::apply_patches;
use crate::export::frames::index;
use crate::volume::{
    FrameContent, NewDataKey, PlainFrame, Publish, SnapshotChange, Uploaded, VolumeError,
    VolumeState,
};

/// Segments of all exports that are read and sealed at a time.
pub(crate) const PACKING_MAX: usize = 4;
/// How often a newer cut takes the place of one of which something is in the store.
const REPLACEMENTS_MAX: u32 = 4;
/// Groups of frames of one segment that are read at a time.
const READS_MAX: usize = 8;

/// A change of the root that was decided and is durable in the log as an intent.
#[derive(Debug)]
pub(crate) struct Attempt<W: World> {
    pub(super) nonce: Id,
    /// What the root will say. Without a cut: what it says now.
    seq: Seq,
    /// Until it was read, or could not be uploaded. The log keeps the records until they are
    /// published, so it can be taken again.
    cut: RefCell<Option<Cut<W>>>,
    segments: Vec<Segment>,
    size_bytes: Option<u64>,
    state: VolumeState,
    snapshots: Vec<SnapshotChange>,
    /// Made before the store heard of anything: each try of the publish carries the same.
    data_key: Option<NewDataKey>,
    forks: ForksDue,
    /// The store may have heard of the nonce: it stands for this cut from now on.
    is_sent: Cell<bool>,
}

impl<W: World> Attempt<W> {
    /// True if a newer cut should take its place: the newest is always less to upload
    /// than this one and then the next. Not for a detach, whose cut is the last one, and not for ever: where
    /// more is written than a bad store takes, a cut that grows with each try would never be whole.
    pub(super) fn is_replaceable(&self, kept: &Kept) -> bool {
        let has_news = self.uploaded().count() > kept.uploaded.len();
        let is_due = !has_news || kept.replacements < REPLACEMENTS_MAX;
        is_due && !self.is_sent.get() && self.state == VolumeState::Open
    }

    fn uploaded(&self) -> impl Iterator<Item = Uploaded> {
        let uploaded = |segment: &Segment| segment.uploaded.borrow().clone();
        self.segments.iter().filter_map(uploaded)
    }
}

/// What is in the store of cuts that a newer one took the place of, and was not published yet.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Of the last of them.
    seq: Seq,
    /// In write order: the later ones win.
    uploaded: Vec<Uploaded>,
    /// Pages of that cut that are not in the store as they were in it.
    lacking: Vec<PageRange>,
    /// How often something was in the store by then.
    replacements: u32,
}

impl Kept {
    pub(super) fn uploaded(&self) -> &[Uploaded] {
        &self.uploaded
    }

    /// With what came of an attempt that began with this.
    pub(super) fn and<W: World>(&self, attempt: &Attempt<W>) -> Self {
        let uploaded: Vec<Uploaded> = attempt.uploaded().collect();
        let lacking = attempt.segments.iter().filter(|it| !it.is_uploaded());
        let frames = lacking.flat_map(|segment| &segment.plan.frames);
        Self {
            seq: attempt.seq,
            lacking: frames.map(|frame| frame.pages).collect(),
            replacements: self.replacements + u32::from(uploaded.len() > self.uploaded.len()),
            uploaded,
        }
    }
}

/// A segment of a cut, by the pages that it is to hold; without any, it was of an older one.
#[derive(Debug)]
struct Segment {
    plan: SegmentPlan,
    uploaded: RefCell<Option<Uploaded>>,
}

impl Segment {
    fn is_uploaded(&self) -> bool {
        self.uploaded.borrow().is_some()
    }
}

impl<W: World> Syncer<W> {
    /// Takes the cut. None if there is nothing to change. What is `kept` is not uploaded again.
    pub(super) async fn begin(&self, kept: &Kept) -> Result<Option<Attempt<W>>, SyncError> {
        let nonce = Id(self.site.world.random_id());
        let root = self.export.root().expect("the store was reached before");
        let leaving = self.export.role() == Role::Leaving;
        if leaving {
            self.reach().await?;
        }
        let grow_to = self.export.orders.grow_to();
        let size_bytes = grow_to.filter(|wanted| *wanted > root.size_bytes);
        // The intent is durable with the cut, before the store hears of either (rules 5, 11).
        // A detach goes with the last cut. Only what a vanished client had under way can be left for it.
        let extents_max = if leaving {
            usize::MAX
        } else {
            self.site.config.sync.cut_extents_max
        };
        let unsent = self.unsent.replace(Some(nonce));
        let cut = self
            .local
            .cut(nonce, root.etag.clone(), unsent, extents_max);
        let cut = cut.await?;
        let seq = match &cut {
            Some(cut) => cut.seq,
            None if size_bytes.is_none() && !leaving && !self.is_asked_to_publish() => {
                return Ok(None);
            }
            None => {
                let seq = self.local.intend(nonce, root.etag, unsent).await?;
                if seq > self.state().published {
                    // Something was written since the look for a cut: then there is one now. The
                    // intent is never sent.
                    return Err(SyncError::Overtaken);
                }
                seq
            }
        };
        if leaving {
            // Before the store hears of it: after the detach no start may resume this epoch.
            self.local.detached().await?;
        }
        let segments = match &cut {
            Some(cut) => self.segments(cut, kept).await?,
            None => Vec::new(),
        };
        let forks = self.forks_due(seq);
        Ok(Some(Attempt {
            nonce,
            seq,
            cut: RefCell::new(cut),
            segments,
            snapshots: self.export.orders.snapshots_at(self.snapshots_until(seq)),
            data_key: self.export.orders.data_key(),
            // A fork has the size that its parent had.
            size_bytes: size_bytes.filter(|_| forks.begun.is_empty()),
            forks,
            state: if leaving {
                VolumeState::Detached
            } else {
                VolumeState::Open
            },
            is_sent: Cell::new(false),
        }))
    }

    /// What is in the store already, and behind it what is to be uploaded: all the rest.
    async fn segments(&self, cut: &Cut<W>, kept: &Kept) -> Result<Vec<Segment>, SyncError> {
        // A cut of a bounded number of extents may end before one that had fewer when it was taken.
        let uploaded = kept.uploaded.iter().filter(|_| kept.seq <= cut.seq);
        let extents = if uploaded.clone().next().is_none() {
            cut.extents.clone()
        } else {
            // Whatever else the cut holds, the one before held, and it is in the store.
            let mut wanted = self.local.rewritten(kept.seq, cut.seq).await?;
            #[cfg(feature = "planted")]
            if self.site.config.keeps_rewritten {
                wanted.clear();
            }
            wanted.extend_from_slice(&kept.lacking);
            within(&cut.extents, wanted)
        };
        let blocks = self.site.config.sync.blocks_per_batch;
        let planned = plan(&extents, &SegmentLimits::from_blocks_per_batch(blocks));
        let there = uploaded.map(|uploaded| Segment {
            plan: SegmentPlan::default(),
            uploaded: RefCell::new(Some(uploaded.clone())),
        });
        let rest = planned.into_iter().map(|plan| Segment {
            plan,
            uploaded: RefCell::default(),
        });
        Ok(there.chain(rest).collect())
    }

    /// Also if nothing was written.
    fn is_asked_to_publish(&self) -> bool {
        let orders = &self.export.orders;
        // Behind the cut of a fork nothing is published before that is.
        let state = self.state();
        let has_cuts = state.forks.iter().any(|fork| !fork.is_carried);
        let has_forks = has_cuts || self.forks_wait(&state);
        orders.has_snapshots() || orders.has_data_key() || orders.is_carrying() || has_forks
    }

    /// Snapshots that were asked for up to this write go with the cut.
    fn snapshots_until(&self, cut: Seq) -> Seq {
        #[cfg(feature = "planted")]
        if self.site.config.snapshots_of_any_cut {
            return Seq(u64::MAX);
        }
        cut
    }

    /// Asks the store for the root, and looks at nothing but that it answers. What is noted in the log
    /// before a detach keeps a restart from serving while the store is silent, so a store that is
    /// known to be silent must not cost that. Whatever the root says, the swap finds out.
    async fn reach(&self) -> Result<(), SyncError> {
        let bucket = self.site.shelf.bucket().await?;
        bucket.root(self.export.name()).await?;
        Ok(())
    }

    /// Uploads the segments that are not in the store yet, several at a time; stops at the first
    /// failure. A root must never name a segment that is not there.
    pub(super) async fn upload(&self, attempt: &Attempt<W>) -> Result<(), SyncError> {
        if attempt.segments.iter().all(Segment::is_uploaded) {
            attempt.cut.take();
            return Ok(());
        }
        // Not kept over a failure: what a cut holds cannot go, so one volume that cannot be uploaded
        // would in the end stop the writers of all.
        let cut = match attempt.cut.take() {
            Some(cut) => cut,
            None => self.local.cut_again(attempt.seq).await?,
        };
        self.upload_all(attempt, &cut).await
    }

    /// An export stands in the queues with one segment at a time, and behind all others when it comes
    /// back: so exports that sync at once share the turns evenly, and one alone has them all.
    async fn upload_all(&self, attempt: &Attempt<W>, cut: &Cut<W>) -> Result<(), SyncError> {
        let failure = RefCell::new(None);
        let open = attempt.segments.iter().filter(|s| !s.is_uploaded());
        let turns = stream::iter(open)
            .take_while(|_| std::future::ready(failure.borrow().is_none()))
            .then(async |segment| {
                // Before the data is read: it bounds the memory that all syncs together take. Few are
                // packed at a time, so that what waits for a slow store is what is sealed.
                let turn = self.site.uploads.turn().await;
                let packing = self.site.packing.acquire().await.expect("never closed");
                (segment, turn, packing)
            });
        let uploads = turns.map(async |(segment, turn, packing)| {
            // It may have stood in the queue when another failed.
            if failure.borrow().is_some() {
                return;
            }
            match self.upload_one(cut, &segment.plan, turn, packing).await {
                Ok(uploaded) => *segment.uploaded.borrow_mut() = Some(uploaded),
                Err(error) => *failure.borrow_mut() = Some(error),
            }
        });
        let uploads_max = self.site.config.sync.uploads_max.max(1);
        uploads
            .buffer_unordered(uploads_max)
            .for_each(|()| std::future::ready(()))
            .await;
        failure.into_inner().map_or(Ok(()), Err)
    }

    async fn upload_one(
        &self,
        cut: &Cut<W>,
        plan: &SegmentPlan,
        turn: Turn<'_>,
        packing: SemaphorePermit<'_>,
    ) -> Result<Uploaded, SyncError> {
        let volume = self
            .export
            .frames()
            .volume()
            .expect("the store was reached");
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

    /// Makes it the volume's state.
    pub(super) async fn publish(&self, attempt: &Attempt<W>) -> Result<(), SyncError> {
        self.site.world.sleep_until(self.turn.get()).await;
        let volume = self
            .export
            .frames()
            .volume()
            .expect("the store was reached");
        // Both before and behind: an attempt that fails may have been carried out, and at any moment
        // between the two. Of one that is unclear the store has seen a write as well.
        self.take_turn();
        attempt.is_sent.set(true);
        self.unsent.set(None);
        let published = Box::pin(volume.publish(&self.change(attempt))).await;
        self.take_turn();
        if let Err(VolumeError::Overtaken { .. }) = published {
            // It was installed in this very step.
            let root = volume.root();
            self.local.published(root.cut, root.nonce);
            return Err(SyncError::Overtaken);
        }
        let published = published?;
        // From here to the end of the step nothing waits: a reader finds a page either dirty in the
        // log or in the installed map, never in neither.
        let root = volume.install(published);
        self.forks_published(&volume, &attempt.forks);
        self.local.published(root.cut, root.nonce);
        if let Some(size_bytes) = attempt.size_bytes {
            self.export.set_size(size_bytes);
            self.local.resized(size_bytes);
            self.export.orders.grown(size_bytes);
        }
        self.export.orders.snapshots_done(&attempt.snapshots);
        if let Some(key) = &attempt.data_key {
            self.export.orders.renewed(key);
        }
        self.export.orders.carried();
        if attempt.forks != ForksDue::default() {
            self.site.lineage.news.notify_waiters();
        }
        self.export.count(|io| io.syncs += 1);
        Ok(())
    }

    /// The root is written now: the next write of it waits.
    fn take_turn(&self) {
        let interval = self.site.config.sync.publish_interval_min;
        self.turn.set(self.site.world.now() + interval);
    }

    fn change(&self, attempt: &Attempt<W>) -> Publish {
        let is_whole = attempt.segments.iter().all(Segment::is_uploaded);
        assert!(is_whole, "everything was uploaded before");
        let intents = self.state().intents;
        let mut ours: Vec<Id> = intents.iter().map(|intent| intent.nonce).collect();
        ours.retain(|nonce| *nonce != attempt.nonce);
        ours.push(attempt.nonce);
        Publish {
            nonce: attempt.nonce,
            ours,
            cut: attempt.seq,
            segments: attempt.uploaded().collect(),
            size_bytes: attempt.size_bytes,
            state: Some(attempt.state),
            snapshots: {
                let asked = attempt.snapshots.iter().cloned();
                asked.chain(attempt.forks.changes()).collect()
            },
            data_key: attempt.data_key.clone(),
        }
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
