//! Where pages are: the tail over the runs, newest first.
//!
//! For each stretch of addresses everything that may be needed is read in two rounds (directories,
//! then leaves), each in parallel: a cold look-up costs two round trips, however many runs there are.

use std::rc::Rc;

use blockcache::PageRange;
use futures_util::{StreamExt, TryStreamExt};
use world::World;

use super::VolumeError;
use super::extent::Extent;
use super::leaf::{Leaf, LeafRow};
use super::reader::Reader;
use super::runs::{Part, Run};

/// Reads in flight of one look-up or one open.
pub(crate) const READS_MAX: usize = 16;
/// Addresses that one round of reads is about: bounds the leaves held at once. 16 MiB.
const WINDOW_PAGES: u64 = (16 << 20) / blockcache::PAGE_BYTES;

/// Leaves of one run that meet a window, in order.
type Leaves = Vec<(LeafRow, Rc<Leaf>)>;

/// Completes `known` (in order, disjoint, within `pages`) by what the runs say, and by zeros.
pub(crate) async fn complete<W: World>(
    reader: &Reader<W>,
    runs: &[Rc<Run>],
    pages: PageRange,
    mut known: Vec<Extent>,
) -> Result<Vec<Extent>, VolumeError> {
    let mut holes = gaps(pages, &known);
    while let Some(first) = holes.first() {
        let from = first.start.0;
        let window = match first_part(runs, from) {
            // No run says anything from here on.
            None => PageRange::new(from, pages.end.0),
            Some(at) if at > from => PageRange::new(from, at.min(pages.end.0)),
            Some(_) => PageRange::new(from, (from + WINDOW_PAGES).min(pages.end.0)),
        };
        let rest = PageRange::new(window.end.0, pages.end.0);
        let inside = clip(&holes, window);
        holes = clip(&holes, rest);
        resolve(reader, runs, inside, &mut known).await?;
    }
    known.sort_unstable_by_key(Extent::start);
    Ok(known)
}

async fn resolve<W: World>(
    reader: &Reader<W>,
    runs: &[Rc<Run>],
    mut holes: Vec<PageRange>,
    known: &mut Vec<Extent>,
) -> Result<(), VolumeError> {
    for leaves in leaves(reader, runs, &holes).await? {
        let mut left = Vec::new();
        for hole in holes {
            let from = leaves.partition_point(|(row, _)| row.pages.end <= hole.start);
            let met = leaves[from..].iter();
            let met = met.take_while(|(row, _)| row.pages.start < hole.end);
            let found: Vec<Extent> = met.flat_map(|(_, leaf)| leaf.within(hole)).collect();
            left.extend(gaps(hole, &found));
            known.extend(found);
        }
        holes = left;
    }
    // What nobody knows was never written.
    known.extend(holes.into_iter().map(|pages| Extent { pages, spot: None }));
    Ok(())
}

/// Per run, newest first, the leaves that meet any of the holes.
async fn leaves<W: World>(
    reader: &Reader<W>,
    runs: &[Rc<Run>],
    holes: &[PageRange],
) -> Result<Vec<Leaves>, VolumeError> {
    let nodes = reader.bucket.nodes();
    let around = match (holes.first(), holes.last()) {
        (Some(first), Some(last)) => PageRange::new(first.start.0, last.end.0),
        _ => return Ok(Vec::new()),
    };
    let meets = |pages: PageRange| {
        let at = holes.partition_point(|hole| hole.end <= pages.start);
        holes.get(at).is_some_and(|hole| hole.start < pages.end)
    };
    let parts = runs.iter().enumerate().flat_map(|(number, run)| {
        let parts = run.within(around).iter();
        parts.map(move |part| (number, part))
    });
    let parts: Vec<(usize, &Part)> = parts.filter(|(_, part)| meets(part.pages())).collect();
    let directories = parts.into_iter().map(|(number, part)| async move {
        let directory = nodes.directory(reader, part).await?;
        let rows = directory.within(around).to_vec();
        Ok::<_, VolumeError>(rows.into_iter().map(move |row| (number, row)))
    });
    let rows: Vec<_> = futures_util::stream::iter(directories)
        .buffered(READS_MAX)
        .try_collect()
        .await?;
    let rows = rows
        .into_iter()
        .flatten()
        .filter(|(_, row)| meets(row.pages));
    let read = rows.map(|(number, row)| async move {
        let leaf = nodes.leaf(reader, &row).await?;
        Ok::<_, VolumeError>((number, row, leaf))
    });
    let read: Vec<_> = futures_util::stream::iter(read)
        .buffered(READS_MAX)
        .try_collect()
        .await?;
    let mut found: Vec<Leaves> = runs.iter().map(|_| Vec::new()).collect();
    for (number, row, leaf) in read {
        found[number].push((row, leaf));
    }
    Ok(found)
}

/// The first page at or after `from` that a part of any run covers.
fn first_part(runs: &[Rc<Run>], from: u64) -> Option<u64> {
    let starts = runs.iter().filter_map(|run| {
        let next = run.parts.partition_point(|part| part.end <= from);
        run.parts.get(next).map(|part| part.first.max(from))
    });
    starts.min()
}

/// The pages of the range that no extent (in order, disjoint, within the range) covers.
fn gaps(pages: PageRange, known: &[Extent]) -> Vec<PageRange> {
    let mut gaps = Vec::new();
    let mut at = pages.start.0;
    for extent in known {
        if extent.start() > at {
            gaps.push(PageRange::new(at, extent.start()));
        }
        at = extent.end();
    }
    if at < pages.end.0 {
        gaps.push(PageRange::new(at, pages.end.0));
    }
    gaps
}

fn clip(ranges: &[PageRange], to: PageRange) -> Vec<PageRange> {
    ranges
        .iter()
        .filter_map(|range| range.overlap(to))
        .collect()
}
