//! Folding the tail into a run, and merging runs, beside whatever else the volume does. Objects are
//! written here; nothing refers to them before the publish that carries the resulting [`Edit`]. One
//! that is never carried leaves garbage, no more.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use world::World;

use super::extent::{Extent, ObjectName};
use super::leaf::{LEAF_ENTRIES_MAX, LeafRow};
use super::ledger::{Counts, ObjectId};
use super::merge::{Carry, Head, Step, decide};
use super::nodes::open_leaf;
use super::reader::Reader;
use super::root::TailSegment;
use super::runs::{Edit, LEVEL_RUNS_MAX, MergePlan, RUNS_MAX, Run, plan_merge, plan_merge_all};
use super::sealed::Kind;
use super::writer::{Maker, RunWriter, Written, Zeros};
use super::{Hold, Now, Uploaded, Volume, VolumeError};

/// A smaller leaf is carried over only where it is alone in its slot: else leaves would crumble.
const CARRY_ENTRIES_MIN: usize = LEAF_ENTRIES_MAX / 4;

/// Finished pieces of work on the map that wait for a publish. At the bound no more is begun.
const EDITS_MAX: usize = 8;

/// Stored bytes of leaves that a merge reads at a time, shared by its inputs: a leaf in a request of its own
/// cost as many requests as there are leaves, and a round trip for each.
pub(crate) const READ_AHEAD_BYTES: u32 = 4 << 20;

/// What is left as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Segments and extents of the tail from which it is folded.
    pub(crate) tail_segments: usize,
    pub(crate) tail_extents: usize,
    /// Runs of one level, beyond which they are merged.
    pub(crate) level_runs: usize,
    /// Entries above the oldest run, beyond which all runs are merged: what they hide is not counted before. Or this
    /// share of what the oldest run has, if that is more.
    pub(crate) upper_entries: u64,
    pub(crate) upper_share: u64,
}

impl Patience {
    /// Well before a publish must.
    pub(crate) const USUAL: Self = Self {
        tail_segments: 32,
        tail_extents: 48 << 10,
        level_runs: LEVEL_RUNS_MAX,
        upper_entries: 4 << 10,
        upper_share: 16,
    };
}

impl<W: World> Volume<W> {
    /// Works on the map: folds a long tail into a run, merges runs of one level that have become
    /// many. To be called after each publish, in a task of its own: publishes go on beside it, and
    /// a later one carries the result. Does nothing if there is nothing to do, or one call runs.
    pub async fn compact_map(&self) -> Result<(), VolumeError> {
        self.compact_beyond(Patience::USUAL).await
    }

    pub(crate) async fn compact_beyond(&self, patience: Patience) -> Result<(), VolumeError> {
        let Ok(_turn) = self.inner.compacting.try_acquire() else {
            return Ok(());
        };
        if let Some(work) = self.fold_work(patience) {
            let FoldWork {
                segments,
                extents,
                zeros,
            } = work;
            let maker = self.maker(&self.inner.state.borrow());
            let folded = Box::pin(fold(maker, extents, zeros, &segments)).await?;
            let Written { run, tally } = folded;
            let segments = segments.iter().map(|it| Id(it.id())).collect();
            self.finished(Edit::Fold {
                segments,
                run,
                tally,
            });
        }
        let plan = {
            let state = self.inner.state.borrow();
            let room = state.edits.len() < EDITS_MAX && state.hold == Hold::Held;
            let runs = room.then(|| state.shape().0.runs);
            runs.and_then(|runs| {
                let all = plan_merge_all(&runs, patience.upper_entries, patience.upper_share);
                all.or_else(|| plan_merge(&runs, patience.level_runs))
            })
        };
        match plan {
            Some(plan) => Box::pin(self.merge(plan)).await,
            None => Ok(()),
        }
    }

    /// A publish that must fold needs room for one more run. Merging is far ahead of this unless
    /// nobody calls [`Volume::compact_map`]: then the publish pays.
    pub(crate) async fn make_room(&self) -> Result<(), VolumeError> {
        loop {
            let runs = self.inner.state.borrow().shape().0.runs;
            if runs.len() + 1 < RUNS_MAX {
                return Ok(());
            }
            let turn = self.inner.compacting.acquire().await;
            let _turn = turn.expect("nobody closes the semaphore");
            let runs = self.inner.state.borrow().shape().0.runs;
            if runs.len() + 1 < RUNS_MAX {
                return Ok(());
            }
            let plan = plan_merge(&runs, 1).expect("so many runs do not all have own levels");
            self.merge(plan).await?;
        }
    }

    async fn merge(&self, plan: MergePlan) -> Result<(), VolumeError> {
        let reader = self.reader(&self.inner.state.borrow());
        let input = MergeInput::default();
        let merged = self.merged(&reader, &plan, input, &[]);
        let Written { run, tally } = Box::pin(merged).await?;
        let inputs = plan.inputs.iter().map(|run| run.id).collect();
        self.finished(Edit::Merge {
            inputs,
            output: run,
            tally,
        });
        Ok(())
    }

    /// Merges runs, with what was moved for it into these segments. If it fails, no edit will ever bring them, nor what
    /// was written of the run: all of it is given back. Else each try would leave as much in the store as it moved, until
    /// the volume is given up.
    pub(crate) async fn merged(
        &self,
        reader: &Reader<W>,
        plan: &MergePlan,
        input: MergeInput,
        uploads: &[Uploaded],
    ) -> Result<Written, VolumeError> {
        let maker = self.maker(&self.inner.state.borrow());
        let made = Rc::clone(&maker.made);
        let written = Box::pin(merge(reader, maker, plan, input)).await;
        if written.is_err() {
            Box::pin(self.give_back(&made, uploads)).await;
        }
        written
    }

    pub(crate) fn finished(&self, edit: Edit) {
        let mut state = self.inner.state.borrow_mut();
        // A publish may have folded the same segments meanwhile: then this is garbage.
        if state.shape().0.apply(&edit) {
            state.edits.push(edit);
        }
    }

    fn fold_work(&self, patience: Patience) -> Option<FoldWork> {
        let state = self.inner.state.borrow();
        let Now { tail, edits, .. } = &*state;
        let waiting = edits.iter().any(|edit| matches!(edit, Edit::Fold { .. }));
        // Of a member of a group the tail is short, and a publish that folds holds up all of them.
        let segments_max = state.stored.tail_max() / 2;
        let long = tail.segments().count() >= patience.tail_segments.min(segments_max)
            || tail.extents_count() >= patience.tail_extents;
        let held = state.hold == Hold::Held;
        (held && long && !waiting && edits.len() < EDITS_MAX).then(|| FoldWork {
            segments: tail.segments().copied().collect(),
            extents: tail.extents(),
            zeros: zeros_over(&state.shape().0.runs),
        })
    }
}

/// The tail as it was when folding began.
struct FoldWork {
    segments: Vec<TailSegment>,
    extents: Vec<Extent>,
    zeros: Zeros,
}

pub(crate) fn zeros_over(runs: &[Rc<Run>]) -> Zeros {
    if runs.is_empty() {
        Zeros::Drop
    } else {
        Zeros::Keep
    }
}

/// Writes extents (in order, disjoint) of these segments as a run of the lowest level.
pub(crate) async fn fold<W: World>(
    maker: Maker<W>,
    extents: Vec<Extent>,
    zeros: Zeros,
    segments: &[TailSegment],
) -> Result<Written, VolumeError> {
    let mut writer = RunWriter::new(maker, zeros);
    for extent in extents {
        writer.push(extent).await?;
    }
    let mut written = writer.finish(0).await?;
    written.tally.takes_in(segments);
    Ok(written)
}

/// What a merge takes in beside the runs.
#[derive(Debug, Default)]
pub(crate) struct MergeInput {
    /// Newer than all runs, in order of address.
    pub(crate) moved: Vec<Extent>,
    /// Parts of which no leaf is carried over.
    pub(crate) stale_parts: BTreeSet<ObjectId>,
    /// Volumes of whose parts none is.
    pub(crate) stale_volumes: BTreeSet<Id>,
}

/// Writes the union of runs as one. Holds a directory and a leaf per input, and [`READ_AHEAD_BYTES`].
async fn merge<W: World>(
    reader: &Reader<W>,
    maker: Maker<W>,
    plan: &MergePlan,
    input: MergeInput,
) -> Result<Written, VolumeError> {
    let zeros = if plan.bottom {
        Zeros::Drop
    } else {
        Zeros::Keep
    };
    let mut left = Counts::new(maker.volume);
    let mut writer = RunWriter::new(maker, zeros);
    let inputs = u32::try_from(plan.inputs.len()).expect("a map has few runs");
    let ahead = READ_AHEAD_BYTES / inputs.max(1);
    let inputs = plan.inputs.iter();
    let cursor = |run| Cursor::new(reader, Rc::as_ref(run), ahead);
    let mut cursors: Vec<Cursor<'_, W>> = inputs.map(cursor).collect();
    let mut moved = VecDeque::from(input.moved);
    loop {
        let mut heads = Vec::with_capacity(cursors.len() + 1);
        for cursor in &mut cursors {
            let carries = |row: &LeafRow| {
                let entries = usize::try_from(row.entries).unwrap_or(usize::MAX);
                let whole =
                    entries >= CARRY_ENTRIES_MIN || writer.between_leaves(row.pages.start.0);
                whole
                    && !input.stale_parts.contains(&row.object.id.0)
                    && !input.stale_volumes.contains(&row.object.volume)
            };
            heads.push(cursor.head(carries, zeros).await?);
        }
        // First, so that it is the newest; and as the last of the inputs it has no number of a run.
        heads.insert(0, moved.front().map_or(Head::Done, |it| Head::Extent(*it)));
        match decide(&heads) {
            Step::Finished => {
                cursors.iter().for_each(|cursor| left.extend(&cursor.left));
                let mut written = writer.finish(plan.level).await?;
                written.tally.counts.extend(&left);
                return Ok(written);
            }
            Step::Carry(input) => writer.carry(cursors[input - 1].take_row()).await?,
            Step::Load(input) => cursors[input - 1].load().await?,
            Step::Emit(extent) => {
                let to = extent.end();
                cursors.iter_mut().for_each(|cursor| cursor.advance(to));
                pass(&mut moved, to);
                writer.push(extent).await?;
            }
        }
    }
}

/// Drops what lies before a page.
fn pass(extents: &mut VecDeque<Extent>, to: u64) {
    while let Some(extent) = extents.pop_front() {
        if let Some(left) = Head::Extent(extent).after(to) {
            extents.push_front(left);
            return;
        }
    }
}

/// A place in a run.
#[derive(Debug)]
pub(crate) struct Cursor<'a, W: World> {
    reader: &'a Reader<W>,
    run: &'a Run,
    next_part: usize,
    rows: VecDeque<LeafRow>,
    extents: VecDeque<Extent>,
    /// Stored bytes from the leaf that was read last, as many as `ahead_max` allows.
    ahead: Option<Ahead>,
    ahead_max: u32,
    /// Leaves before this page are not read at all.
    from: u64,
    /// Everything before this page is in the result.
    done: u64,
    /// What the run named and was passed by. All of it has been read, also what is hidden: else nobody would know
    /// that it was the last that named something.
    left: Counts,
}

/// A stretch of an object that holds leaves.
#[derive(Debug)]
struct Ahead {
    object: ObjectName,
    start: u32,
    bytes: Bytes,
}

impl Ahead {
    fn leaf(&self, row: &LeafRow) -> Option<Bytes> {
        let at = usize::try_from(row.offset.checked_sub(self.start)?).ok()?;
        let end = at.checked_add(usize::try_from(row.stored).ok()?)?;
        let here = self.object == row.object && end <= self.bytes.len();
        here.then(|| self.bytes.slice(at..end))
    }
}

impl<'a, W: World> Cursor<'a, W> {
    pub(crate) fn new(reader: &'a Reader<W>, run: &'a Run, ahead_max: u32) -> Self {
        Self {
            reader,
            run,
            next_part: 0,
            rows: VecDeque::new(),
            extents: VecDeque::new(),
            ahead: None,
            ahead_max,
            from: 0,
            done: 0,
            left: Counts::new(reader.volumes.own()),
        }
    }

    /// The same for who has no use for what lies before a page. It does not know all that it passed by.
    pub(crate) fn from(self, from: u64) -> Self {
        let next_part = self.run.parts.partition_point(|part| part.end <= from);
        Self {
            next_part,
            from,
            done: from,
            ..self
        }
    }

    /// `carries` says which leaves may be carried over as they are.
    pub(crate) async fn head(
        &mut self,
        carries: impl Fn(&LeafRow) -> bool,
        zeros: Zeros,
    ) -> Result<Head, VolumeError> {
        loop {
            if let Some(extent) = self.extents.front() {
                return Ok(Head::Extent(*extent));
            }
            let Some(row) = self.row().await? else {
                return Ok(Head::Done);
            };
            if row.pages.start.0 < self.done {
                // Newer extents reach into it, or hide all of it.
                self.load().await?;
                continue;
            }
            let clean = zeros == Zeros::Keep || !row.has_zeros;
            let carry = if clean && carries(&row) {
                Carry::Yes
            } else {
                Carry::No
            };
            let pages = row.pages;
            return Ok(Head::Leaf { pages, carry });
        }
    }

    /// The next leaf.
    async fn row(&mut self) -> Result<Option<LeafRow>, VolumeError> {
        while self.rows.is_empty()
            && let Some(part) = self.run.parts.get(self.next_part)
        {
            self.next_part += 1;
            let nodes = self.reader.bucket.nodes();
            let directory = nodes.directory(self.reader, part).await?;
            let from = self.from;
            let rows = directory.leaves.iter().copied();
            self.rows.extend(rows.filter(|row| row.pages.end.0 > from));
            let reference = &part.directory;
            let stored = i64::from(reference.stored);
            self.left.add(&reference.name(), -stored);
        }
        Ok(self.rows.front().copied())
    }

    fn take_row(&mut self) -> LeafRow {
        let row = self.rows.pop_front().expect("the head was a leaf");
        self.left.add(&row.object, -i64::from(row.stored));
        row
    }

    pub(crate) async fn load(&mut self) -> Result<(), VolumeError> {
        let row = self.take_row();
        let stored = self.stored(&row).await?;
        let leaf = open_leaf(self.reader, &row, stored).await?;
        let extents = (0..leaf.len()).map(|at| leaf.extent(at));
        extents
            .clone()
            .for_each(|extent| self.left.extent(&extent, -1));
        self.extents.extend(extents);
        self.advance(self.done);
        Ok(())
    }

    /// The leaf's stored bytes, read together with those that follow it in the same object.
    async fn stored(&mut self, row: &LeafRow) -> Result<Bytes, VolumeError> {
        if let Some(bytes) = self.ahead.as_ref().and_then(|ahead| ahead.leaf(row)) {
            return Ok(bytes);
        }
        self.ahead = None;
        let start = row.offset;
        let mut end = start + row.stored;
        for next in &self.rows {
            let follows = next.object == row.object && next.offset == end;
            if !follows || end - start + next.stored > self.ahead_max {
                break;
            }
            end += next.stored;
        }
        let read = self.reader.stored(Kind::MapPart, row.object, start..end);
        let bytes = read.await?;
        let first = row.stored as usize;
        let leaf = bytes.slice(..first);
        self.ahead = Some(Ahead {
            object: row.object,
            start,
            bytes,
        });
        Ok(leaf)
    }

    pub(crate) fn advance(&mut self, to: u64) {
        self.done = to;
        pass(&mut self.extents, to);
    }
}
