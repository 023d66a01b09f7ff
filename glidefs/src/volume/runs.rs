//! The upper level of the map: sorted runs, newest first, each a list of part objects; and what
//! folding and merging do to that list. Pure. `docs/format/map.md`.

use std::rc::Rc;

use blockcache::{Id, PageRange};
use serde::{Deserialize, Serialize};

use super::extent::VOLUME_PAGES_MAX;
use super::ledger::{Ledger, ObjectId, Tally};
use super::root::TailSegment;
use super::sealed::ObjectRef;

/// Runs of one map at most. A publish that would make more waits for a merge.
pub(crate) const RUNS_MAX: usize = 48;
/// Runs of one level that are left alone.
pub(crate) const LEVEL_RUNS_MAX: usize = 3;
/// Parts of all runs at most: 1024 leaves each, so far more than any volume needs.
pub(crate) const PARTS_MAX: usize = 1 << 16;
const LEVEL_MAX: u8 = 30;

/// The map index object's body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MapIndex {
    /// The cut of the root that named it first.
    pub(crate) birth: u64,
    /// Newest first.
    pub(crate) runs: Vec<Run>,
    pub(crate) ledger: Ledger,
}

/// A map index in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) birth: u64,
    pub(crate) runs: Vec<Rc<Run>>,
    /// Empty where the index is another volume's, of which this one is a fork.
    pub(crate) ledger: Rc<Ledger>,
    /// Objects that are gone, and that the ledger listed until this version.
    pub(crate) forgotten: Rc<[ObjectId]>,
    /// Objects that it names, and earlier ones did not.
    pub(crate) named: Rc<[ObjectId]>,
}

/// Extents of many segments in order of address. It hides what older runs say of the same pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: [u8; 16],
    /// How often it was merged. Never falls from newer to older runs.
    pub(crate) level: u8,
    pub(crate) parts: Vec<Part>,
}

/// One object of a run: leaves and their directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) entries: u64,
    pub(crate) directory: ObjectRef,
}

impl Part {
    pub(crate) fn pages(&self) -> PageRange {
        PageRange::new(self.first, self.end)
    }
}

impl Run {
    pub(crate) fn entries(&self) -> u64 {
        self.parts.iter().map(|part| part.entries).sum()
    }

    /// The parts that meet the pages.
    pub(crate) fn within(&self, pages: PageRange) -> &[Part] {
        let from = self.parts.partition_point(|part| part.end <= pages.start.0);
        let to = self.parts.partition_point(|part| part.first < pages.end.0);
        &self.parts[from..to.max(from)]
    }
}

impl MapIndex {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (index, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_bad| "the map index does not decode")?;
        let parts: usize = index.runs.iter().map(|run| run.parts.len()).sum();
        if !rest.is_empty() || index.runs.len() > RUNS_MAX || parts > PARTS_MAX {
            return Err("the map index is too long");
        }
        if !index.runs.is_sorted_by_key(|run| run.level) {
            return Err("the map index has levels out of order");
        }
        for run in &index.runs {
            if run.parts.is_empty() || run.level > LEVEL_MAX {
                return Err("the map index has an impossible run");
            }
            if !run.parts.is_sorted_by(|a, b| a.end <= b.first) {
                return Err("a run of the map index is not in order");
            }
            for part in &run.parts {
                if part.first >= part.end || part.end > VOLUME_PAGES_MAX {
                    return Err("a part of the map index covers an impossible range");
                }
                part.directory.check()?;
            }
        }
        index.ledger.check()?;
        Ok(index)
    }
}

/// A change of the map that is in the store and in no root yet.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// The oldest segments of the tail became a run (or nothing, if they held only zeros that hid
    /// nothing).
    Fold {
        segments: Vec<Id>,
        run: Option<Rc<Run>>,
        tally: Tally,
    },
    /// Neighbouring runs became one.
    Merge {
        inputs: Vec<[u8; 16]>,
        output: Option<Rc<Run>>,
        tally: Tally,
    },
}

impl Edit {
    pub(crate) fn tally(&self) -> &Tally {
        match self {
            Self::Fold { tally, .. } | Self::Merge { tally, .. } => tally,
        }
    }
}

/// What edits work on: the runs and the tail's segments.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) runs: Vec<Rc<Run>>,
    pub(crate) tail: Vec<TailSegment>,
}

impl Shape {
    /// Makes the change, or returns false because it is no longer about this shape: it is done
    /// already, since a root that carried it has landed.
    pub(crate) fn apply(&mut self, edit: &Edit) -> bool {
        match edit {
            Edit::Fold { segments, run, .. } => {
                let oldest = self.tail.iter().map(|segment| Id(segment.id()));
                if segments.is_empty() || !oldest.take(segments.len()).eq(segments.iter().copied())
                {
                    return false;
                }
                self.tail.drain(..segments.len());
                self.runs.splice(0..0, run.clone());
                true
            }
            Edit::Merge { inputs, output, .. } => {
                let first = self
                    .runs
                    .iter()
                    .position(|run| Some(&run.id) == inputs.first());
                let Some(first) = first else { return false };
                let same = self.runs[first..].iter().map(|run| run.id);
                if !same.take(inputs.len()).eq(inputs.iter().copied()) {
                    return false;
                }
                self.runs
                    .splice(first..first + inputs.len(), output.clone());
                true
            }
        }
    }
}

/// Neighbouring runs that should become one.
#[derive(Debug)]
pub(crate) struct MergePlan {
    pub(crate) inputs: Vec<Rc<Run>>,
    pub(crate) level: u8,
    /// Nothing older lies below: zeros need not be said.
    pub(crate) bottom: bool,
}

/// All runs, if those above the oldest have more entries than `entries_max`, and than this share of what the oldest
/// has: what they hide is space that nobody knows of. Each entry is rewritten `share` times for each time that all is
/// written anew.
pub(crate) fn plan_merge_all(runs: &[Rc<Run>], entries_max: u64, share: u64) -> Option<MergePlan> {
    let (oldest, upper) = runs.split_last()?;
    let above: u64 = upper.iter().map(|run| run.entries()).sum();
    if above <= entries_max.max(oldest.entries() / share) {
        return None;
    }
    Some(MergePlan {
        inputs: runs.to_vec(),
        level: oldest.level.max(1),
        bottom: true,
    })
}

/// Picks the lowest level that has too many runs. Each entry is rewritten once per level.
pub(crate) fn plan_merge(runs: &[Rc<Run>], level_runs_max: usize) -> Option<MergePlan> {
    let mut start = 0;
    for level in runs.chunk_by(|a, b| a.level == b.level) {
        let end = start + level.len();
        if level.len() > level_runs_max {
            return Some(MergePlan {
                inputs: level.to_vec(),
                level: (level[0].level + 1).min(LEVEL_MAX),
                bottom: end == runs.len(),
            });
        }
        start = end;
    }
    None
}
