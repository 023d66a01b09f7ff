//! Repacking: what is left of segments that are mostly dead moves into new ones, so that their space comes back.
//!
//! ```text
//! ledger -> victims: the emptiest segments        bounded by the pages that are left of them
//!        -> scan: what the runs still name of them, in order of address
//!        -> a few victims at a time: one GET each, their pages into new segments, in order of address
//!        -> one merge of all runs, with the moved extents on top
//! ```
//!
//! The merge is an edit of the map like any other: the next publish carries it, and the victims are dead from that
//! root on. Nothing here changes what a page holds, so it does not matter what is written meanwhile: that lies in the
//! tail, or in a run that is folded on top.
//!
//! Choosing the emptiest first is greedy cleaning (Rosenblum, Ousterhout: "The design and implementation of a
//! log-structured file system", 1992).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use blockcache::{PAGE_BYTES, PageRange};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use world::World;

use super::books::{known, load};
use super::compact::{Cursor, MergeInput, READ_AHEAD_BYTES};
use super::extent::{Extent, FRAME_PAGES_MAX, ObjectName};
use super::ledger::{Entry, Ledger, ObjectId};
use super::merge::{Step, decide};
use super::reader::Reader;
use super::runs::{Edit, MergePlan, Run};
use super::sealed::{Frame, Hash, Kind, Target};
use super::segment::plain_len;
use super::tidy::Tidy;
use super::writer::{Written, Zeros};
use super::{FrameContent, Hold, PlainFrame, Uploaded, Volume, VolumeError};

/// A segment of which more than this is live, in percent, is never a victim.
const LIVE_PERCENT_MAX: u64 = 90;
/// A part of the map of which less than this is live, in percent, is written anew.
const PART_PERCENT_MAX: u64 = 50;
/// Pages that one pass moves at most: 512 MiB. Bounds its memory (60 bytes for each extent), and how long folds wait. Few in
/// unit tests, which are to need several.
pub(crate) const PAGES_MAX: u64 = if cfg!(test) { 64 } else { 128 << 10 };
/// And this share of what is live: until the victims are deleted, it is in the store twice.
const MOVED_SHARE: u64 = 12;
/// Stored bytes of what is moved in memory at a time.
const GROUP_BYTES_MAX: u64 = 16 << 20;
/// Segments that are read at a time.
const READS_MAX: usize = 4;
/// Pages of one new segment.
const SEGMENT_PAGES: u64 = if cfg!(test) { 16 } else { 25 * FRAME_PAGES_MAX };

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repacked {
    pub victims: u64,
    pub victim_bytes: u64,
    pub moved_bytes: u64,
    /// There was too much for one pass: what is left is worth another as soon as this one is published.
    pub goes_on: bool,
}

/// What lies elsewhere now.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// In order of address.
    pub(crate) extents: Vec<Extent>,
    pub(crate) uploads: Vec<Uploaded>,
    /// Why it is not all.
    pub(crate) failure: Option<VolumeError>,
}

/// What is to be written anew.
#[derive(Debug, Default)]
struct Victims {
    segments: Vec<Entry>,
    parts: BTreeSet<ObjectId>,
    /// Waste that is worth a pass is left beside them.
    goes_on: bool,
}

impl<W: World> Volume<W> {
    /// One pass, if there is enough to gain. The next publish carries it.
    pub(crate) async fn repack(&self, tidy: &Tidy) -> Result<Repacked, VolumeError> {
        let Ok(_turn) = self.inner.compacting.try_acquire() else {
            return Ok(Repacked::default());
        };
        let (reader, ledger, runs) = {
            let state = self.inner.state.borrow();
            // The ledger must have counted everything that the runs are made of.
            let ready = state.hold == Hold::Held && state.is_proved && state.edits.is_empty();
            if !ready || !tidy.is_wasteful(&state.map.ledger.totals()) {
                return Ok(Repacked::default());
            }
            let map = &state.map;
            let (ledger, runs) = (Rc::clone(&map.ledger), map.runs.clone());
            (self.reader(&state), ledger, runs)
        };
        let victims = choose(&reader, &ledger, tidy).await?;
        let Some(bottom) = runs.last() else {
            return Ok(Repacked::default());
        };
        if victims.segments.is_empty() && victims.parts.is_empty() {
            return Ok(Repacked::default());
        }
        let left = scan(&reader, &runs, &victims.segments).await?;
        let Moved {
            extents,
            uploads,
            failure,
        } = Box::pin(self.moved(&reader, left)).await;
        if let (Some(error), true) = (&failure, uploads.is_empty()) {
            return Err(error.clone());
        }
        let plan = MergePlan {
            inputs: runs.clone(),
            level: bottom.level,
            bottom: true,
        };
        let input = MergeInput {
            moved: extents,
            stale_parts: victims.parts,
            ..MergeInput::default()
        };
        let merged = self.merged(&reader, &plan, input, &uploads);
        let Written { run, mut tally } = Box::pin(merged).await?;
        let new = uploads.iter().map(|uploaded| uploaded.in_tail(0));
        tally.takes_in(&new.collect::<Vec<_>>());
        self.finished(Edit::Merge {
            inputs: runs.iter().map(|run| run.id).collect(),
            output: run,
            tally,
        });
        if let Some(error) = failure {
            return Err(error);
        }
        Ok(Repacked {
            victims: victims.segments.len() as u64,
            victim_bytes: victims.segments.iter().map(|it| it.bytes).sum(),
            moved_bytes: uploads.iter().map(Uploaded::bytes).sum(),
            goes_on: victims.goes_on,
        })
    }

    /// Writes what these extents hold into new segments. What was written before something failed counts, or each try
    /// would leave as much in the store as it could move, for nothing.
    pub(crate) async fn moved(&self, reader: &Reader<W>, left: Vec<Extent>) -> Moved {
        let mut moved = Moved::default();
        let done = Box::pin(self.move_all(reader, left, &mut moved)).await;
        moved.failure = done.err();
        moved.extents.sort_unstable_by_key(Extent::start);
        moved
    }

    async fn move_all(
        &self,
        reader: &Reader<W>,
        mut left: Vec<Extent>,
        moved: &mut Moved,
    ) -> Result<(), VolumeError> {
        let sources = sources(&left);
        let mut rest = &sources[..];
        while !rest.is_empty() {
            let (group, next) = rest.split_at(group_len(rest));
            rest = next;
            let names: BTreeSet<ObjectName> = group.iter().map(|(name, _)| *name).collect();
            let in_group = |extent: &mut Extent| matches!(&extent.spot, Some(it) if names.contains(&it.segment));
            let extents: Vec<Extent> = left.extract_if(.., in_group).collect();
            let bodies = Box::pin(bodies(reader, group)).await?;
            for chunk in segments(&extents) {
                let frames = Box::pin(read(reader, &bodies, chunk)).await?;
                let uploaded = Box::pin(self.upload(frames)).await?;
                moved.extents.extend(uploaded.extents.iter().copied());
                moved.uploads.push(uploaded);
            }
        }
        Ok(())
    }
}

/// The emptiest segments, and parts of the map of which little is left.
async fn choose<W: World>(
    reader: &Reader<W>,
    ledger: &Ledger,
    tidy: &Tidy,
) -> Result<Victims, VolumeError> {
    let mut victims = Victims::default();
    let mut add = |live: &[Entry]| {
        for entry in live {
            let percent = |share: u64| entry.live * 100 <= entry.whole * share;
            match entry.kind {
                Kind::Segment if percent(LIVE_PERCENT_MAX) => victims.segments.push(*entry),
                Kind::MapPart if percent(PART_PERCENT_MAX) => {
                    victims.parts.insert(entry.id);
                }
                _ => {}
            }
        }
    };
    add(&ledger.recent.live);
    for (at, chunk) in ledger.chunks.iter().enumerate() {
        let table = known(load(reader, chunk, ledger.next(at)).await)?;
        add(&table.unwrap_or_default().live);
    }
    let share =
        |it: &Entry| u128::from(it.live) * u128::from(u32::MAX) / u128::from(it.whole.max(1));
    victims
        .segments
        .sort_unstable_by_key(|it| (share(it), it.id));
    // To half of the waste that is worth a pass, so that passes are not many.
    let totals = ledger.totals();
    let left = tidy.waste_bytes.max(totals.live_bytes / tidy.waste_share) / 2;
    let goal = totals.waste_bytes().saturating_sub(left);
    let moved_max = totals.live_bytes / MOVED_SHARE;
    let (mut pages, mut moved, mut freed) = (0, 0, 0);
    let enough = victims.segments.iter().position(|it| {
        pages += it.live;
        moved += it.live_bytes();
        freed += it.bytes.saturating_sub(it.live_bytes());
        pages > PAGES_MAX || moved > moved_max || freed > goal
    });
    // The one with which it is enough is taken too: a segment is far smaller than a pass.
    let len = enough.map_or(victims.segments.len(), |last| last + 1);
    victims.segments.truncate(len);
    let left = totals.waste_bytes().saturating_sub(freed);
    victims.goes_on = enough.is_some() && tidy.is_waste(left, &totals);
    Ok(victims)
}

/// What the runs name of the victims, in order of address.
async fn scan<W: World>(
    reader: &Reader<W>,
    runs: &[Rc<Run>],
    victims: &[Entry],
) -> Result<Vec<Extent>, VolumeError> {
    let ids: BTreeSet<ObjectId> = victims.iter().map(|victim| victim.id).collect();
    let own = reader.volumes.own();
    let mut left = Vec::new();
    let collects = |extent: &Extent| {
        let segment = extent.spot.map(|spot| spot.segment);
        if segment.is_some_and(|it| it.volume == own && ids.contains(&it.id.0)) {
            left.push(*extent);
        }
        ControlFlow::Continue(())
    };
    walk(reader, runs, 0, collects).await?;
    Ok(left)
}

/// Shows everything that the runs say from a page on, in order of address, until it is enough.
pub(crate) async fn walk<W: World>(
    reader: &Reader<W>,
    runs: &[Rc<Run>],
    from: u64,
    mut visit: impl FnMut(&Extent) -> ControlFlow<()>,
) -> Result<(), VolumeError> {
    let inputs = u32::try_from(runs.len()).expect("a map has few runs");
    let ahead = READ_AHEAD_BYTES / inputs.max(1);
    let mut cursors: Vec<Cursor<'_, W>> = runs
        .iter()
        .map(|run| Cursor::new(reader, Rc::as_ref(run), ahead).from(from))
        .collect();
    loop {
        let mut heads = Vec::with_capacity(cursors.len());
        for cursor in &mut cursors {
            heads.push(cursor.head(|_| false, Zeros::Keep).await?);
        }
        match decide(&heads) {
            Step::Finished => return Ok(()),
            Step::Carry(input) | Step::Load(input) => cursors[input].load().await?,
            Step::Emit(extent) => {
                let to = extent.end();
                cursors.iter_mut().for_each(|cursor| cursor.advance(to));
                if visit(&extent).is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// A segment, and the stretch of it that holds what is moved.
type Source = (ObjectName, Range<u32>);

fn sources(left: &[Extent]) -> Vec<Source> {
    let mut spans: BTreeMap<ObjectName, Range<u32>> = BTreeMap::new();
    for spot in left.iter().filter_map(|extent| extent.spot) {
        let end = spot.offset.saturating_add(spot.stored);
        let span = spans.entry(spot.segment).or_insert(spot.offset..end);
        *span = span.start.min(spot.offset)..span.end.max(end);
    }
    spans.into_iter().collect()
}

/// How many of them are taken together: one at least.
fn group_len(sources: &[Source]) -> usize {
    let mut bytes = 0;
    let end = sources.iter().position(|(_, span)| {
        bytes += u64::from(span.end - span.start);
        bytes > GROUP_BYTES_MAX
    });
    end.unwrap_or(sources.len()).max(1)
}

/// Where the stretch begins, and its bytes.
type Bodies = BTreeMap<ObjectName, (u32, Bytes)>;

async fn bodies<W: World>(reader: &Reader<W>, group: &[Source]) -> Result<Bodies, VolumeError> {
    let got = group.iter().map(|(name, span)| async move {
        let body = reader.stored(Kind::Segment, *name, span.clone()).await?;
        Ok::<_, VolumeError>((*name, (span.start, body)))
    });
    let got = futures_util::stream::iter(got).buffered(READS_MAX);
    got.try_collect().await
}

/// Extents as they go into one segment each.
fn segments(extents: &[Extent]) -> Vec<&[Extent]> {
    let (mut segments, mut from, mut pages) = (Vec::new(), 0, 0);
    for (at, extent) in extents.iter().enumerate() {
        let more = extent.pages.pages();
        if pages + more > SEGMENT_PAGES && at > from {
            segments.push(&extents[from..at]);
            (from, pages) = (at, 0);
        }
        pages += more;
    }
    if from < extents.len() {
        segments.push(&extents[from..]);
    }
    segments
}

/// The pages of the extents as frames: neighbours together, as long as a frame may be.
async fn read<W: World>(
    reader: &Reader<W>,
    bodies: &Bodies,
    extents: &[Extent],
) -> Result<Vec<PlainFrame>, VolumeError> {
    let mut frames: Vec<(PageRange, Vec<u8>)> = Vec::new();
    for extent in extents {
        let bytes = Box::pin(pages_of(reader, bodies, extent)).await?;
        let joins = frames.last().is_some_and(|(pages, _)| {
            pages.end == extent.pages.start
                && pages.pages() + extent.pages.pages() <= FRAME_PAGES_MAX
        });
        match frames.last_mut().filter(|_| joins) {
            Some((pages, data)) => {
                pages.end = extent.pages.end;
                data.extend_from_slice(&bytes);
            }
            None => frames.push((extent.pages, bytes)),
        }
    }
    let frames = frames.into_iter().map(|(pages, data)| PlainFrame {
        pages,
        content: FrameContent::Data(Bytes::from(data)),
    });
    Ok(frames.collect())
}

/// The bytes of an extent, cut out of the frame that holds them.
async fn pages_of<W: World>(
    reader: &Reader<W>,
    bodies: &Bodies,
    extent: &Extent,
) -> Result<Vec<u8>, VolumeError> {
    let spot = extent.spot.expect("only data is left of a segment");
    let pages = spot.frame_range(extent.pages.start);
    let target = Target {
        kind: Kind::Segment,
        object: spot.segment,
        offset: spot.offset,
        stored: spot.stored,
        frame: Frame {
            number: spot.number,
            pages,
            codec: spot.codec,
            plain: plain_len(pages),
        },
        hash: Hash::Half(spot.hash),
    };
    let short = || {
        reader.damaged(
            Kind::Segment,
            spot.segment,
            "it is shorter than the map says",
        )
    };
    let body = bodies.get(&spot.segment);
    let stored = usize::try_from(spot.stored).map_err(|_wide| short())?;
    let stored = body.and_then(|(start, body)| {
        let from = usize::try_from(spot.offset.checked_sub(*start)?).ok()?;
        let end = from.checked_add(stored).filter(|end| *end <= body.len())?;
        Some(body.slice(from..end))
    });
    let mut plain = reader.open(target, stored.ok_or_else(short)?).await?;
    let page = usize::try_from(PAGE_BYTES).expect("4096");
    let skip = usize::from(spot.skip) * page;
    let len = usize::try_from(extent.pages.bytes()).expect("at most a frame");
    plain.drain(..skip);
    plain.truncate(len);
    Ok(plain)
}
