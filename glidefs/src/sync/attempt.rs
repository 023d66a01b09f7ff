//! One change of the root on its way: begun, uploaded, published. Each part may fail and be taken
//! up again; what succeeded is kept.
//!
//! The volumes of a group are cut, uploaded and published together, by one change (rule 30); one alone is a group of one.

use std::cell::{Cell, RefCell};

use blockcache::{Cut, CutPart, Id, NewIntent, PageRange, Seq};
use futures_util::stream::{self, StreamExt};
use world::World;

use super::fork::ForksDue;
use super::member::Member;
use super::plan::{SegmentLimits, SegmentPlan, plan, within};
use super::{SyncError, Syncer};
use crate::export::Role;
use crate::volume::{
    NewDataKey, Publish, RootView, SnapshotChange, Uploaded, VolumeError, VolumeState, is_of_fork,
};

/// Segments of all exports that are read and sealed at a time.
pub(crate) const PACKING_MAX: usize = 4;
/// How often a newer cut takes the place of one of which something is in the store.
const REPLACEMENTS_MAX: u32 = 4;

/// A change of the root that was decided and is durable in the log as an intent.
#[derive(Debug)]
pub(crate) struct Attempt<W: World> {
    pub(super) nonce: Id,
    state: VolumeState,
    /// Of each member, in their order.
    parts: Vec<Part<W>>,
    /// The store may have heard of the nonce: it stands for these cuts from now on.
    is_sent: Cell<bool>,
}

/// What the change is for one member.
#[derive(Debug)]
struct Part<W: World> {
    /// What its root will say. Without a cut: what it says now.
    seq: Seq,
    /// Until it was read, or could not be uploaded. The log keeps the records until they are
    /// published, so it can be taken again.
    cut: RefCell<Option<Cut<W>>>,
    segments: Vec<Segment>,
    size_bytes: Option<u64>,
    snapshots: Vec<SnapshotChange>,
    /// Made before the store heard of anything: each try of the publish carries the same.
    data_key: Option<NewDataKey>,
    forks: ForksDue,
}

impl<W: World> Attempt<W> {
    /// True if a newer cut should take its place: the newest is always less to upload
    /// than this one and then the next. Not for a detach, whose cut is the last one, and not for ever: where
    /// more is written than a bad store takes, a cut that grows with each try would never be whole.
    pub(super) fn is_replaceable(&self, kept: &Kept) -> bool {
        let has_news = self.uploaded_count() > kept.uploaded_count();
        let is_due = !has_news || kept.replacements < REPLACEMENTS_MAX;
        is_due && !self.is_sent.get() && self.state == VolumeState::Open
    }

    fn uploaded_count(&self) -> usize {
        let counts = self.parts.iter().map(|part| part.uploaded().count());
        counts.sum()
    }
}

impl<W: World> Part<W> {
    fn uploaded(&self) -> impl Iterator<Item = Uploaded> {
        let uploaded = |segment: &Segment| segment.uploaded.borrow().clone();
        self.segments.iter().filter_map(uploaded)
    }

    fn is_uploaded(&self) -> bool {
        self.segments.iter().all(Segment::is_uploaded)
    }

    fn kept(&self) -> KeptPart {
        let lacking = self.segments.iter().filter(|it| !it.is_uploaded());
        let frames = lacking.flat_map(|segment| &segment.plan.frames);
        KeptPart {
            seq: self.seq,
            lacking: frames.map(|frame| frame.pages).collect(),
            uploaded: self.uploaded().collect(),
        }
    }
}

/// What is in the store of cuts that a newer one took the place of, and was not published yet.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Of each member, in their order; empty: nothing.
    parts: Vec<KeptPart>,
    /// How often something was in the store by then.
    replacements: u32,
}

/// The same of one member.
#[derive(Debug, Default)]
struct KeptPart {
    /// Of the last of the cuts.
    seq: Seq,
    /// In write order: the later ones win.
    uploaded: Vec<Uploaded>,
    /// Pages of that cut that are not in the store as they were in it.
    lacking: Vec<PageRange>,
}

impl Kept {
    /// Of each member, in their order.
    pub(super) fn uploaded(&self) -> impl Iterator<Item = &[Uploaded]> {
        self.parts.iter().map(|part| &*part.uploaded)
    }

    fn uploaded_count(&self) -> usize {
        self.uploaded().map(<[Uploaded]>::len).sum()
    }

    /// With what came of an attempt that began with this.
    pub(super) fn and<W: World>(&self, attempt: &Attempt<W>) -> Self {
        let has_news = attempt.uploaded_count() > self.uploaded_count();
        Self {
            parts: attempt.parts.iter().map(Part::kept).collect(),
            replacements: self.replacements + u32::from(has_news),
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
        let leaving = self.export().role() == Role::Leaving;
        if leaving {
            self.reach().await?;
        }
        // All at one moment, and decided before the store hears of any of it.
        let sizes: Vec<Option<u64>> = self.members.iter().map(Member::new_size).collect();
        let is_asked = leaving
            || sizes.iter().any(Option::is_some)
            || self.members.iter().any(Member::is_asked_to_publish);
        // A detach goes with the last cut. Only what a vanished client had under way can be left for it.
        let extents_max = match leaving {
            true => usize::MAX,
            false => self.site.config.sync.cut_extents_max,
        };
        let Some(cuts) = self.cut(nonce, extents_max, is_asked).await? else {
            return Ok(None);
        };
        if leaving {
            // Before the store hears of it: after the detach no start may resume this epoch.
            for member in &self.members {
                member.local.detached().await?;
            }
        }
        let seqs: Vec<Seq> = cuts.iter().map(|cut| cut.seq).collect();
        let mut parts = Vec::with_capacity(cuts.len());
        for (number, (member, cut)) in self.members.iter().zip(cuts).enumerate() {
            let size_bytes = sizes.get(number).copied().flatten();
            let kept = kept.parts.get(number);
            parts.push(member.part(cut, kept, size_bytes).await?);
        }
        let snapshots = self.snapshots_due(&seqs);
        for (part, snapshots) in parts.iter_mut().zip(snapshots) {
            part.snapshots = snapshots;
        }
        let state = match leaving {
            true => VolumeState::Detached,
            false => VolumeState::Open,
        };
        Ok(Some(Attempt {
            nonce,
            state,
            parts,
            is_sent: Cell::new(false),
        }))
    }

    /// The intent is durable with the cut, before the store hears of either (rules 5, 11). None if nothing is to be
    /// published: nothing was written, or may be published, and nobody has asked.
    async fn cut(
        &self,
        nonce: Id,
        extents_max: usize,
        is_asked: bool,
    ) -> Result<Option<Vec<CutPart<W>>>, SyncError> {
        let root = self.export().root().expect("the store was reached before");
        let intent = NewIntent {
            nonce,
            // All members have the same root, or there is one.
            replaces: root.etag,
            unsent: self.unsent.replace(Some(nonce)),
        };
        let (cache, locals) = (&self.site.cache, self.locals());
        let cuts = cache.cut_together(&locals, &intent, extents_max).await?;
        if cuts.is_some() || !is_asked {
            return Ok(cuts);
        }
        let seqs = cache.intend_together(&locals, &intent).await?;
        let mut cuts = Vec::with_capacity(seqs.len());
        for (member, seq) in self.members.iter().zip(seqs) {
            if seq > member.state().published {
                // Something was written since the look for a cut: then there is one now. The
                // intent is never sent.
                return Err(SyncError::Overtaken);
            }
            cuts.push(CutPart { seq, cut: None });
        }
        Ok(Some(cuts))
    }

    /// For a publish of these cuts.
    fn snapshots_due(&self, seqs: &[Seq]) -> Vec<Vec<SnapshotChange>> {
        let members = self.members.iter().zip(seqs);
        let due = members.map(|(member, seq)| {
            let until = member.snapshots_until(*seq);
            member.export.orders.snapshots_at(until)
        });
        of_all(due.collect())
    }

    /// Asks the store for the root, and looks at nothing but that it answers. What is noted in the log
    /// before a detach keeps a restart from serving while the store is silent, so a store that is
    /// known to be silent must not cost that. Whatever the root says, the swap finds out.
    async fn reach(&self) -> Result<(), SyncError> {
        let bucket = self.site.shelf.bucket().await?;
        bucket.root(self.export().name()).await?;
        Ok(())
    }

    /// Uploads the segments that are not in the store yet, several at a time; stops at the first
    /// failure. A root must never name a segment that is not there.
    pub(super) async fn upload(&self, attempt: &Attempt<W>) -> Result<(), SyncError> {
        // Not kept over a failure: what a cut holds cannot go, so one volume that cannot be uploaded
        // would in the end stop the writers of all.
        let mut cuts = Vec::with_capacity(self.members.len());
        for (member, part) in self.members.iter().zip(&attempt.parts) {
            let cut = part.cut.take();
            cuts.push(match cut {
                _ if part.is_uploaded() => None,
                Some(cut) => Some(cut),
                None => Some(member.local.cut_again(part.seq).await?),
            });
        }
        self.upload_all(attempt, &cuts).await
    }

    /// An export, or group, stands in the queues with one segment at a time, and behind all others when it comes
    /// back: so those that sync at once share the turns evenly, and one alone has them all.
    async fn upload_all(
        &self,
        attempt: &Attempt<W>,
        cuts: &[Option<Cut<W>>],
    ) -> Result<(), SyncError> {
        let failure = RefCell::new(None);
        let parts = self.members.iter().zip(&attempt.parts).zip(cuts);
        let open = parts.flat_map(|((member, part), cut)| {
            let open = part.segments.iter().filter(|it| !it.is_uploaded());
            let cut = cut.as_ref();
            open.filter_map(move |segment| Some((member, cut?, segment)))
        });
        let turns = stream::iter(open)
            .take_while(|_| std::future::ready(failure.borrow().is_none()))
            .then(async |(member, cut, segment)| {
                // Before the data is read: it bounds the memory that all syncs together take. Few are
                // packed at a time, so that what waits for a slow store is what is sealed.
                let turn = self.site.uploads.turn().await;
                let packing = self.site.packing.acquire().await.expect("never closed");
                ((member, cut, segment), turn, packing)
            });
        let uploads = turns.map(async |((member, cut, segment), turn, packing)| {
            // It may have stood in the queue when another failed.
            if failure.borrow().is_some() {
                return;
            }
            match member.upload_one(cut, &segment.plan, turn, packing).await {
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

    /// Makes it the state of all members.
    pub(super) async fn publish(&self, attempt: &Attempt<W>) -> Result<(), SyncError> {
        self.site.world.sleep_until(self.turn.get()).await;
        let together = self.together()?;
        // Both before and behind: an attempt that fails may have been carried out, and at any moment
        // between the two. Of one that is unclear the store has seen a write as well.
        self.take_turn();
        attempt.is_sent.set(true);
        self.unsent.set(None);
        let published = Box::pin(together.publish(&self.changes(attempt))).await;
        self.take_turn();
        if let Err(VolumeError::Overtaken { .. }) = published {
            // It was installed in this very step, in all of them.
            for member in &self.members {
                let root = member.volume().root();
                member.local.published(root.cut, root.nonce);
            }
            return Err(SyncError::Overtaken);
        }
        let published = published?;
        // From here to the end of the step nothing waits: a reader finds a page either dirty in the
        // log or in the installed map, never in neither.
        let roots = together.install(published);
        for ((member, part), root) in self.members.iter().zip(&attempt.parts).zip(&roots) {
            member.published(part, root);
        }
        Ok(())
    }

    /// The root is written now: the next write of it waits.
    fn take_turn(&self) {
        let interval = self.site.config.sync.publish_interval_min;
        self.turn.set(self.site.world.now() + interval);
    }

    fn changes(&self, attempt: &Attempt<W>) -> Vec<Publish> {
        let states = self.members.iter().map(Member::state);
        let intents = states.flat_map(|state| state.intents);
        let mut ours: Vec<Id> = Vec::new();
        // One of a crash between two members may be known to some of them alone.
        for intent in intents {
            if intent.nonce != attempt.nonce && !ours.contains(&intent.nonce) {
                ours.push(intent.nonce);
            }
        }
        ours.push(attempt.nonce);
        let parts = attempt.parts.iter();
        parts.map(|part| change(attempt, part, &ours)).collect()
    }
}

impl<W: World> Member<W> {
    /// Its part of an attempt, but for its snapshots.
    async fn part(
        &self,
        cut: CutPart<W>,
        kept: Option<&KeptPart>,
        size_bytes: Option<u64>,
    ) -> Result<Part<W>, SyncError> {
        let CutPart { seq, cut } = cut;
        let segments = match &cut {
            Some(cut) => self.segments(cut, kept).await?,
            None => Vec::new(),
        };
        let forks = self.forks_due(seq);
        Ok(Part {
            seq,
            cut: RefCell::new(cut),
            segments,
            // A fork has the size that its parent had.
            size_bytes: size_bytes.filter(|_| forks.begun.is_empty()),
            snapshots: Vec::new(),
            data_key: self.export.orders.data_key(),
            forks,
        })
    }

    /// What is in the store already, and behind it what is to be uploaded: all the rest.
    async fn segments(
        &self,
        cut: &Cut<W>,
        kept: Option<&KeptPart>,
    ) -> Result<Vec<Segment>, SyncError> {
        // A bounded cut may end before one that had fewer extents, or ended elsewhere, when it was taken.
        let kept = kept.filter(|kept| kept.seq <= cut.seq && !kept.uploaded.is_empty());
        let extents = match kept {
            None => cut.extents.clone(),
            Some(kept) => {
                // Whatever else the cut holds, the one before held, and it is in the store.
                let mut wanted = self.local.rewritten(kept.seq, cut.seq).await?;
                #[cfg(feature = "planted")]
                if self.site.config.keeps_rewritten {
                    wanted.clear();
                }
                wanted.extend_from_slice(&kept.lacking);
                within(&cut.extents, wanted)
            }
        };
        let blocks = self.site.config.sync.blocks_per_batch;
        let planned = plan(&extents, &SegmentLimits::from_blocks_per_batch(blocks));
        let uploaded = kept.into_iter().flat_map(|kept| &kept.uploaded);
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

    /// Its part is in the store, and its map is installed, in this very step.
    fn published(&self, part: &Part<W>, root: &RootView) {
        let orders = &self.export.orders;
        self.forks_published(&self.volume(), &part.forks);
        self.local.published(root.cut, root.nonce);
        if let Some(size_bytes) = part.size_bytes {
            self.export.set_size(size_bytes);
            self.local.resized(size_bytes);
            orders.grown(size_bytes);
        }
        orders.snapshots_done(&part.snapshots);
        if let Some(key) = &part.data_key {
            orders.renewed(key);
        }
        orders.carried();
        if part.forks != ForksDue::default() {
            self.site.lineage.news.notify_waiters();
        }
        self.export.count(|io| io.syncs += 1);
    }
}

fn change<W: World>(attempt: &Attempt<W>, part: &Part<W>, ours: &[Id]) -> Publish {
    assert!(part.is_uploaded(), "everything was uploaded before");
    Publish {
        nonce: attempt.nonce,
        ours: ours.to_vec(),
        cut: part.seq,
        segments: part.uploaded().collect(),
        size_bytes: part.size_bytes,
        state: Some(attempt.state),
        snapshots: {
            let asked = part.snapshots.iter().cloned();
            asked.chain(part.forks.changes()).collect()
        },
        data_key: part.data_key.clone(),
    }
}

/// A snapshot of a group is taken of all members by one publish, or it would show two moments: where the cut of one does
/// not have what was answered before it was asked for, it waits.
fn of_all(mut due: Vec<Vec<SnapshotChange>>) -> Vec<Vec<SnapshotChange>> {
    let is_of_one = |change: &SnapshotChange| match change {
        SnapshotChange::Take { name, .. } => is_of_fork(name),
        SnapshotChange::Drop { .. } => true,
    };
    let all = due.clone();
    for changes in &mut due {
        changes.retain(|it| is_of_one(it) || all.iter().all(|other| other.contains(it)));
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_goes_with_the_cut_of_all_members_that_have_it_due() {
        let take = |id: u8| SnapshotChange::Take {
            id: Id([id; 16]),
            name: format!("snapshot-{id}"),
        };
        let gone = |id: u8| SnapshotChange::Drop { id: Id([id; 16]) };
        assert_eq!(of_all(vec![vec![take(1)]]), [[take(1)]], "alone");
        let due = vec![vec![take(1), gone(7), take(2)], vec![take(2)]];
        assert_eq!(of_all(due), [vec![gone(7), take(2)], vec![take(2)]]);
        let due = of_all(vec![vec![take(1)], vec![]]);
        assert!(due.iter().all(Vec::is_empty), "{due:?}");
    }
}
