//! Folding the tail into a run, and merging runs, beside whatever else the volume does. Objects are
//! written here; nothing refers to them before the publish that carries the resulting [`Edit`]. One
//! that is never carried leaves garbage, no more.

use std::collections::VecDeque;
use std::rc::Rc;

use world::World;

use super::VolumeError;
use super::extent::Extent;
use super::leaf::{LEAF_ENTRIES_MAX, LeafRow};
use super::merge::{Carry, Head, Step, decide};
use super::nodes::read_leaf;
use super::reader::Reader;
use super::runs::{MergePlan, Run};
use super::writer::{Maker, RunWriter, Zeros};

/// A smaller leaf is carried over only where it is alone in its slot: else leaves would crumble.
const CARRY_ENTRIES_MIN: usize = LEAF_ENTRIES_MAX / 4;

/// Writes extents (in order, disjoint) as a run of the lowest level.
pub(crate) async fn fold<W: World>(
    maker: Maker<W>,
    extents: Vec<Extent>,
    zeros: Zeros,
) -> Result<Option<Rc<Run>>, VolumeError> {
    let mut writer = RunWriter::new(maker, zeros);
    for extent in extents {
        writer.push(extent).await?;
    }
    writer.finish(0).await
}

/// Writes the union of runs as one. Holds a directory and a leaf per input.
pub(crate) async fn merge<W: World>(
    reader: &Reader<W>,
    maker: Maker<W>,
    plan: &MergePlan,
) -> Result<Option<Rc<Run>>, VolumeError> {
    let zeros = if plan.bottom {
        Zeros::Drop
    } else {
        Zeros::Keep
    };
    let mut writer = RunWriter::new(maker, zeros);
    let inputs = plan.inputs.iter();
    let mut cursors: Vec<Cursor<'_, W>> = inputs.map(|run| Cursor::new(reader, run)).collect();
    loop {
        let mut heads = Vec::with_capacity(cursors.len());
        for cursor in &mut cursors {
            heads.push(cursor.head(&writer, zeros).await?);
        }
        match decide(&heads) {
            Step::Finished => return writer.finish(plan.level).await,
            Step::Carry(input) => writer.carry(cursors[input].take_row()).await?,
            Step::Load(input) => cursors[input].load().await?,
            Step::Emit(extent) => {
                let to = extent.end();
                cursors.iter_mut().for_each(|cursor| cursor.advance(to));
                writer.push(extent).await?;
            }
        }
    }
}

/// A place in a run.
#[derive(Debug)]
struct Cursor<'a, W: World> {
    reader: &'a Reader<W>,
    run: &'a Run,
    next_part: usize,
    rows: VecDeque<LeafRow>,
    extents: VecDeque<Extent>,
    /// Everything before this page is in the result.
    done: u64,
}

impl<'a, W: World> Cursor<'a, W> {
    fn new(reader: &'a Reader<W>, run: &'a Run) -> Self {
        Self {
            reader,
            run,
            next_part: 0,
            rows: VecDeque::new(),
            extents: VecDeque::new(),
            done: 0,
        }
    }

    async fn head(&mut self, writer: &RunWriter<W>, zeros: Zeros) -> Result<Head, VolumeError> {
        loop {
            if let Some(extent) = self.extents.front() {
                return Ok(Head::Extent(*extent));
            }
            let Some(row) = self.row().await? else {
                return Ok(Head::Done);
            };
            if row.pages.start.0 < self.done {
                // Newer extents reach into it, or hide all of it.
                if row.pages.end.0 > self.done {
                    self.load().await?;
                } else {
                    self.take_row();
                }
                continue;
            }
            let entries = usize::try_from(row.entries).unwrap_or(usize::MAX);
            let whole = entries >= CARRY_ENTRIES_MIN || writer.between_leaves(row.pages.start.0);
            let clean = zeros == Zeros::Keep || !row.has_zeros;
            let carry = if whole && clean {
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
        if self.rows.is_empty()
            && let Some(part) = self.run.parts.get(self.next_part)
        {
            self.next_part += 1;
            let nodes = self.reader.bucket.nodes();
            let directory = nodes.directory(self.reader, part).await?;
            self.rows.extend(&directory.leaves);
        }
        Ok(self.rows.front().copied())
    }

    fn take_row(&mut self) -> LeafRow {
        self.rows.pop_front().expect("the head was a leaf")
    }

    async fn load(&mut self) -> Result<(), VolumeError> {
        let row = self.take_row();
        let leaf = read_leaf(self.reader, &row).await?;
        self.extents
            .extend((0..leaf.len()).map(|at| leaf.extent(at)));
        self.advance(self.done);
        Ok(())
    }

    fn advance(&mut self, to: u64) {
        self.done = to;
        while let Some(extent) = self.extents.pop_front() {
            if let Some(left) = Head::Extent(extent).after(to) {
                self.extents.push_front(left);
                return;
            }
        }
    }
}
