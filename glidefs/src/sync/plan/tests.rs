use proptest::prelude::*;

use super::*;

fn extent(start: u64, end: u64, content: CutContent) -> CutExtent {
    CutExtent {
        pages: PageRange::new(start, end),
        content,
    }
}

fn frame(start: u64, end: u64, kind: FrameKind) -> FramePlan {
    FramePlan {
        pages: PageRange::new(start, end),
        kind,
    }
}

#[test]
fn neighbours_share_a_frame_up_to_the_line() {
    let extents = [
        extent(30, 31, CutContent::Data),
        extent(31, 40, CutContent::Data),
        extent(40, 41, CutContent::Partial),
        extent(42, 43, CutContent::Data),
    ];
    let segments = plan(&extents, &SegmentLimits::from_blocks_per_batch(25));
    let expected = vec![
        frame(30, 32, FrameKind::Whole),
        frame(32, 41, FrameKind::Completed),
        frame(42, 43, FrameKind::Whole),
    ];
    assert_eq!(segments, vec![SegmentPlan { frames: expected }]);
}

#[test]
fn a_trim_of_the_whole_volume_is_one_entry() {
    let extents = [extent(0, 1 << 29, CutContent::Zero)];
    let segments = plan(&extents, &SegmentLimits::from_blocks_per_batch(25));
    let expected = vec![frame(0, 1 << 29, FrameKind::Zero)];
    assert_eq!(segments, vec![SegmentPlan { frames: expected }]);
}

#[test]
fn what_is_wanted_of_a_cut_may_overlap_and_come_in_any_order() {
    let extents = [
        extent(0, 10, CutContent::Data),
        extent(10, 11, CutContent::Partial),
        extent(20, 40, CutContent::Zero),
    ];
    let wanted = [(30, 50), (2, 4), (3, 6), (9, 25), (60, 70)];
    let wanted = wanted.map(|(start, end)| PageRange::new(start, end));
    let expected = [
        extent(2, 4, CutContent::Data),
        extent(4, 6, CutContent::Data),
        extent(9, 10, CutContent::Data),
        extent(10, 11, CutContent::Partial),
        extent(20, 25, CutContent::Zero),
        extent(30, 40, CutContent::Zero),
    ];
    assert_eq!(within(&extents, wanted.to_vec()), expected);
    assert!(within(&extents, Vec::new()).is_empty());
}

#[test]
fn nothing_dirty_needs_no_segment() {
    assert!(plan(&[], &SegmentLimits::from_blocks_per_batch(1)).is_empty());
}

#[test]
fn a_segment_ends_at_its_data_bound() {
    let extents = [extent(0, 3 * FRAME_PAGES_MAX + 1, CutContent::Data)];
    let segments = plan(&extents, &SegmentLimits::from_blocks_per_batch(2));
    let sizes: Vec<usize> = segments.iter().map(|s| s.frames.len()).collect();
    assert_eq!(sizes, vec![2, 2]);
}

fn content() -> impl Strategy<Value = CutContent> {
    prop_oneof![
        3 => Just(CutContent::Data),
        1 => Just(CutContent::Partial),
        1 => Just(CutContent::Zero),
    ]
}

/// Disjoint extents in order, some touching.
fn extents() -> impl Strategy<Value = Vec<CutExtent>> {
    let one = (prop_oneof![Just(0_u64), 1..50_u64], 1..200_u64, content());
    prop::collection::vec(one, 0..60).prop_map(|steps| {
        let mut at = 0;
        steps
            .into_iter()
            .map(|(gap, len, content)| {
                let start = at + gap;
                at = start + len;
                extent(start, at, content)
            })
            .collect()
    })
}

/// What each page of the plan is, in order.
fn pages_of(frames: &[FramePlan]) -> Vec<(u64, FrameKind)> {
    let pages = |f: &FramePlan| f.pages.start.0..f.pages.end.0;
    let one = |f: &FramePlan| pages(f).map(|p| (p, f.kind)).collect::<Vec<_>>();
    frames.iter().flat_map(one).collect()
}

proptest! {
    #[test]
    fn frames_hold_each_page_of_the_cut_once_in_order(extents in extents(), blocks in 1..30_u32) {
        let segments = plan(&extents, &SegmentLimits::from_blocks_per_batch(blocks));
        let frames: Vec<FramePlan> = segments.iter().flat_map(|s| s.frames.clone()).collect();
        let planned = pages_of(&frames);
        let mut at = 0;
        for extent in &extents {
            for page in extent.pages.start.0..extent.pages.end.0 {
                let (planned_page, kind) = planned[at];
                prop_assert_eq!(planned_page, page);
                match extent.content {
                    CutContent::Zero => prop_assert_eq!(kind, FrameKind::Zero),
                    CutContent::Partial => prop_assert_eq!(kind, FrameKind::Completed),
                    CutContent::Data => prop_assert_ne!(kind, FrameKind::Zero),
                }
                at += 1;
            }
        }
        prop_assert_eq!(at, planned.len());
    }

    #[test]
    fn frames_and_segments_keep_their_bounds(extents in extents(), blocks in 1..30_u32) {
        let limits = SegmentLimits::from_blocks_per_batch(blocks);
        for segment in plan(&extents, &limits) {
            prop_assert!(!segment.frames.is_empty());
            prop_assert!(segment.frames.len() <= SEGMENT_FRAMES_MAX);
            let mut data = 0;
            for frame in segment.frames.iter().filter(|f| f.kind != FrameKind::Zero) {
                let lines = (frame.pages.start.0 / FRAME_PAGES_MAX, (frame.pages.end.0 - 1) / FRAME_PAGES_MAX);
                prop_assert_eq!(lines.0, lines.1, "{:?} crosses a line", frame);
                data += frame.pages.pages();
            }
            prop_assert!(data <= limits.pages_max);
        }
    }

    #[test]
    fn what_is_within_is_every_wanted_page_once(
        extents in extents(),
        wanted in prop::collection::vec((0..6000_u64, 0..900_u64), 0..12),
    ) {
        let is_wanted = |page: &u64| wanted.iter().any(|(start, pages)| (*start..start + pages).contains(page));
        let pages = |extents: &[CutExtent]| {
            let each = extents.iter().flat_map(|it| {
                (it.pages.start.0..it.pages.end.0).map(move |page| (page, it.content))
            });
            each.collect::<Vec<_>>()
        };
        let mut expected = pages(&extents);
        expected.retain(|(page, _)| is_wanted(page));
        let ranges = wanted.iter().map(|(start, pages)| PageRange::new(*start, start + pages));
        prop_assert_eq!(pages(&within(&extents, ranges.collect())), expected);
    }

    #[test]
    fn a_frame_is_completed_only_where_some_page_needs_it(extents in extents()) {
        let limits = SegmentLimits::from_blocks_per_batch(25);
        for frame in plan(&extents, &limits).iter().flat_map(|s| &s.frames) {
            let partial = |e: &CutExtent| e.content == CutContent::Partial && e.pages.overlap(frame.pages).is_some();
            prop_assert_eq!(frame.kind == FrameKind::Completed, extents.iter().any(partial));
        }
    }
}
