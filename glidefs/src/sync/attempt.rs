//! One change of the root on its way: begun, uploaded, published. Each part may fail and be taken
//! up again; what succeeded is kept.

use std::cell::{Cell, RefCell};

use blockcache::{Cut, Id, PageRange, Seq};
use bytes::Bytes;
use world::World;

use super::plan::{FrameKind, FramePlan, SegmentLimits, SegmentPlan, plan};
use super::{SyncError, Syncer};
use crate::export::Role;
use crate::export::apply_patches;
use crate::export::frames::index;
use crate::race::join_all;
use crate::volume::{FrameContent, PlainFrame, Publish, Uploaded, VolumeState};

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
    /// The store may have heard of the nonce: it stands for this cut from now on.
    is_sent: Cell<bool>,
}

impl<W: World> Attempt<W> {
    /// True if a newer cut may take its place under the same nonce, and nothing is lost by that. Not
    /// for a detach, whose cut is the last one.
    pub(super) fn is_replaceable(&self) -> bool {
        let none_uploaded = !self.segments.iter().any(Segment::is_uploaded);
        none_uploaded && !self.is_sent.get() && self.state == VolumeState::Open
    }
}

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
    /// Takes the cut. None if there is nothing to change. The store must never have heard of `nonce`.
    pub(super) async fn begin(&self, nonce: Id) -> Result<Option<Attempt<W>>, SyncError> {
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
        let cut = self.local.cut(nonce, root.etag.clone(), extents_max);
        let cut = cut.await?;
        let seq = match &cut {
            Some(cut) => cut.seq,
            None if size_bytes.is_none() && !leaving => return Ok(None),
            None => {
                let seq = self.local.intend(nonce, root.etag).await?;
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
        let extents = cut.as_ref().map_or(&[][..], |cut| &cut.extents);
        let blocks = self.site.config.sync.blocks_per_batch;
        let segments = plan(extents, &SegmentLimits::from_blocks_per_batch(blocks))
            .into_iter()
            .map(|plan| Segment {
                plan,
                uploaded: RefCell::default(),
            })
            .collect();
        Ok(Some(Attempt {
            nonce,
            seq,
            cut: RefCell::new(cut),
            segments,
            size_bytes,
            state: if leaving {
                VolumeState::Detached
            } else {
                VolumeState::Open
            },
            is_sent: Cell::new(false),
        }))
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

    async fn upload_all(&self, attempt: &Attempt<W>, cut: &Cut<W>) -> Result<(), SyncError> {
        let next = Cell::new(0);
        let failure = RefCell::new(None);
        let open = attempt.segments.iter().filter(|s| !s.is_uploaded());
        let todo: Vec<&Segment> = open.collect();
        let workers = self.site.config.sync.uploads_max.max(1).min(todo.len());
        let worker = || async {
            while failure.borrow().is_none() {
                let Some(segment) = todo.get(next.replace(next.get() + 1)) else {
                    return;
                };
                match self.upload_one(cut, &segment.plan).await {
                    Ok(uploaded) => *segment.uploaded.borrow_mut() = Some(uploaded),
                    Err(error) => *failure.borrow_mut() = Some(error),
                }
            }
        };
        join_all((0..workers).map(|_| worker()).collect()).await;
        failure.into_inner().map_or(Ok(()), Err)
    }

    async fn upload_one(&self, cut: &Cut<W>, plan: &SegmentPlan) -> Result<Uploaded, SyncError> {
        // Before the data is read: it bounds the memory that all syncs together take.
        let _turn = self.site.uploads.acquire().await.expect("never closed");
        let mut frames = Vec::with_capacity(plan.frames.len());
        let mut bytes = 0;
        for frame in &plan.frames {
            let content = self.content(cut, frame).await?;
            if let FrameContent::Data(data) = &content {
                bytes += u64::try_from(data.len()).expect("usize fits u64");
            }
            frames.push(PlainFrame {
                pages: frame.pages,
                content,
            });
        }
        let volume = self
            .export
            .frames()
            .volume()
            .expect("the store was reached");
        let uploaded = Box::pin(volume.upload(frames)).await?;
        self.export.count(|io| {
            io.uploaded_segments += 1;
            io.uploaded_bytes += uploaded.bytes();
            io.packed_bytes += bytes;
        });
        Ok(uploaded)
    }

    /// The bytes of one frame: the cut's, over those of the map that was published before it.
    async fn content(&self, cut: &Cut<W>, frame: &FramePlan) -> Result<FrameContent, SyncError> {
        if frame.kind == FrameKind::Zero {
            return Ok(FrameContent::Zero);
        }
        let mut out = vec![0; index(frame.pages.bytes())];
        let missing = cut.read(frame.pages, &mut out).await?;
        if !missing.is_empty() {
            assert_eq!(
                frame.kind,
                FrameKind::Completed,
                "a cut holds its whole pages {}",
                frame.pages
            );
            let wanted: Vec<PageRange> = missing.iter().map(|m| m.pages).collect();
            let frames = self.export.frames();
            frames.read(&wanted, frame.pages, &mut out).await?;
            apply_patches(&missing, frame.pages, &mut out);
        }
        if out.iter().all(|byte| *byte == 0) {
            return Ok(FrameContent::Zero);
        }
        Ok(FrameContent::Data(Bytes::from(out)))
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
        let published = Box::pin(volume.publish(&self.change(attempt))).await;
        self.take_turn();
        let published = published?;
        // From here to the end of the step nothing waits: a reader finds a page either dirty in the
        // log or in the installed map, never in neither.
        let root = volume.install(published);
        self.local.published(root.cut, root.nonce);
        if let Some(size_bytes) = attempt.size_bytes {
            self.export.set_size(size_bytes);
            self.local.resized(size_bytes);
            self.export.orders.grown(size_bytes);
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
        let uploaded = |s: &Segment| s.uploaded.borrow().clone();
        let segments: Option<Vec<Uploaded>> = attempt.segments.iter().map(uploaded).collect();
        let intents = self.state().intents;
        let mut ours: Vec<Id> = intents.iter().map(|intent| intent.nonce).collect();
        ours.retain(|nonce| *nonce != attempt.nonce);
        ours.push(attempt.nonce);
        Publish {
            nonce: attempt.nonce,
            ours,
            cut: attempt.seq,
            segments: segments.expect("everything was uploaded before"),
            size_bytes: attempt.size_bytes,
            state: Some(attempt.state),
        }
    }
}
