//! From the extents of a cut to the frames of segments. Pure.
//!
//! Frames come in order of address, so that sequential reads stay sequential in the store. No frame
//! crosses a 128 KiB line of the volume: a region that is written again replaces whole frames of
//! its old self instead of leaving slivers of them alive.

use blockcache::{CutContent, CutExtent, PageNo, PageRange};

/// Pages in the largest frame (rule 27): 128 KiB.
pub const FRAME_PAGES_MAX: u64 = 32;
/// Frames in one segment, data and zero alike: bounds its index.
pub const SEGMENT_FRAMES_MAX: usize = 1 << 15;

const _: () = assert!(SEGMENT_FRAMES_MAX <= crate::volume::SEGMENT_ENTRIES_MAX);

/// Blocks in one segment at most: its bytes are in memory at a time.
pub const BLOCKS_PER_BATCH_MAX: u32 = 1024;

/// How large a segment becomes.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLimits {
    /// Pages of data (before compression), at least one frame's.
    pub pages_max: u64,
}

impl SegmentLimits {
    /// `blocks_per_batch` as the config means it: blocks of 128 KiB.
    pub fn from_blocks_per_batch(blocks: u32) -> Self {
        Self {
            pages_max: u64::from(blocks.clamp(1, BLOCKS_PER_BATCH_MAX)) * FRAME_PAGES_MAX,
        }
    }
}

/// One segment to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentPlan {
    pub frames: Vec<FramePlan>,
}

/// One frame to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlan {
    pub pages: PageRange,
    pub kind: FrameKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The cut holds every byte.
    Whole,
    /// Some page is to be completed from the published map below the cut.
    Completed,
    /// Zeros: an entry without bytes, of any length.
    Zero,
}

/// Packs the extents of one cut (disjoint, in order of address) into frames and segments.
pub fn plan(extents: &[CutExtent], limits: &SegmentLimits) -> Vec<SegmentPlan> {
    let mut segments: Vec<SegmentPlan> = Vec::new();
    let mut pages_left = 0;
    for frame in frames(extents) {
        let pages = match frame.kind {
            FrameKind::Zero => 0,
            FrameKind::Whole | FrameKind::Completed => frame.pages.pages(),
        };
        match segments.last_mut() {
            Some(open) if pages <= pages_left && open.frames.len() < SEGMENT_FRAMES_MAX => {
                open.frames.push(frame);
            }
            _ => {
                segments.push(SegmentPlan {
                    frames: vec![frame],
                });
                pages_left = limits.pages_max.max(FRAME_PAGES_MAX);
            }
        }
        pages_left -= pages;
    }
    segments
}

/// What of the extents of a cut lies in these pages, which may overlap and come in any order.
pub fn within(extents: &[CutExtent], mut wanted: Vec<PageRange>) -> Vec<CutExtent> {
    wanted.sort_unstable_by_key(|range| range.start);
    let mut both: Vec<CutExtent> = Vec::new();
    let mut extents = extents.iter().peekable();
    // What of the wanted pages lies behind all that were looked at.
    let mut from = PageNo(0);
    for range in wanted {
        from = from.max(range.start);
        while let Some(extent) = extents.peek().filter(|it| it.pages.start < range.end) {
            let pages = PageRange {
                start: extent.pages.start.max(from),
                end: extent.pages.end.min(range.end),
            };
            if pages.start < pages.end {
                both.push(CutExtent { pages, ..**extent });
            }
            if extent.pages.end > range.end {
                break;
            }
            extents.next();
        }
        from = from.max(range.end);
    }
    both
}

fn frames(extents: &[CutExtent]) -> Vec<FramePlan> {
    let mut frames: Vec<FramePlan> = Vec::new();
    for extent in extents {
        let kind = match extent.content {
            CutContent::Data => FrameKind::Whole,
            CutContent::Partial => FrameKind::Completed,
            CutContent::Zero => FrameKind::Zero,
        };
        if let Some(last) = frames.last() {
            assert!(
                last.pages.end <= extent.pages.start,
                "extents of a cut are in order: {} before {}",
                last.pages,
                extent.pages
            );
        }
        for pages in pieces(extent.pages, kind) {
            let piece = FramePlan { pages, kind };
            match frames.last_mut().and_then(|last| joined(last, &piece)) {
                Some(both) => *frames.last_mut().expect("there is a last one") = both,
                None => frames.push(piece),
            }
        }
    }
    frames
}

/// Data is cut at the 128 KiB lines; zeros are not.
fn pieces(pages: PageRange, kind: FrameKind) -> impl Iterator<Item = PageRange> {
    let mut at = pages.start;
    std::iter::from_fn(move || {
        if at == pages.end {
            return None;
        }
        let line = PageNo((at.0 / FRAME_PAGES_MAX + 1) * FRAME_PAGES_MAX);
        let end = match kind {
            FrameKind::Zero => pages.end,
            FrameKind::Whole | FrameKind::Completed => line.min(pages.end),
        };
        let piece = PageRange { start: at, end };
        at = end;
        Some(piece)
    })
}

/// Both as one frame, if they touch, are of one sort, and lie between the same lines.
fn joined(left: &FramePlan, right: &FramePlan) -> Option<FramePlan> {
    if left.pages.end != right.pages.start {
        return None;
    }
    let kind = match (left.kind, right.kind) {
        (FrameKind::Zero, FrameKind::Zero) => FrameKind::Zero,
        (FrameKind::Zero, _) | (_, FrameKind::Zero) => return None,
        (FrameKind::Whole, FrameKind::Whole) => FrameKind::Whole,
        (FrameKind::Completed, _) | (_, FrameKind::Completed) => FrameKind::Completed,
    };
    if kind != FrameKind::Zero && right.pages.start.0.is_multiple_of(FRAME_PAGES_MAX) {
        return None;
    }
    Some(FramePlan {
        pages: PageRange {
            start: left.pages.start,
            end: right.pages.end,
        },
        kind,
    })
}

#[cfg(test)]
mod tests;
