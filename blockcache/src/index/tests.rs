use proptest::prelude::*;

use super::*;

/// What one sector of a page should hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cell {
    Absent,
    Zero,
    At(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Partial(u64, u8),
    Zero(u64, u64),
    Publish,
    EvictOldest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u64..1200, 1_u64..40).prop_map(|(at, len)| Step::Write(at, len)),
        (0_u64..1200, 1_u8..=255).prop_map(|(at, mask)| Step::Partial(at, mask)),
        (0_u64..1200, 1_u64..600).prop_map(|(at, len)| Step::Zero(at, len)),
        Just(Step::Publish),
        Just(Step::EvictOldest),
    ];
    prop::collection::vec(step, 1..80)
}

/// Looks a page up and says for each sector where it is; absent sectors come from `store`.
fn seen(index: &VolumeIndex, page: u64, published: Seq, store: &[[Cell; 8]]) -> [Cell; 8] {
    let below = store[usize::try_from(page).expect("small")];
    let (_, found) = index
        .lookup(PageRange::new(page, page + 1), published)
        .remove(0);
    match found {
        Found::Absent => below,
        Found::Zero => [Cell::Zero; 8],
        Found::Log(at) => [Cell::At(at.0); 8],
        Found::Overlaid { base, overlays } => {
            let mut cells = match base {
                Base::Absent => below,
                Base::Zero => [Cell::Zero; 8],
                Base::Log(at) => [Cell::At(at.0); 8],
            };
            for overlay in overlays {
                for (sector, cell) in cells.iter_mut().enumerate() {
                    if overlay.mask >> sector & 1 == 1 {
                        *cell = Cell::At(overlay.at.0);
                    }
                }
            }
            cells
        }
    }
}

proptest! {
    /// The index over a published store shows each sector's newest write, whatever was evicted.
    #[test]
    fn newest_write_shows_through_eviction(steps in steps()) {
        const PAGES: usize = 2000;
        let mut index = VolumeIndex::default();
        let mut model = vec![[Cell::Absent; 8]; PAGES];
        let mut store = model.clone();
        let (mut seq, mut published, mut next_at) = (0_u64, 0_u64, 1_u64);
        let mut evictable: Vec<(u64, Step, u64)> = Vec::new();
        for step in steps {
            match step.clone() {
                Step::Write(at, len) => {
                    seq += 1;
                    index.write(PageRange::new(at, at + len), Position(next_at));
                    for n in 0..len {
                        model[usize::try_from(at + n).expect("small")] = [Cell::At(next_at + n); 8];
                    }
                    evictable.push((seq, step, next_at));
                    next_at += len;
                }
                Step::Partial(page, mask) => {
                    seq += 1;
                    index.write_partial(PageNo(page), Overlay { at: Position(next_at), mask });
                    let cells = &mut model[usize::try_from(page).expect("small")];
                    (0..8).filter(|s| mask >> s & 1 == 1).for_each(|s| cells[s] = Cell::At(next_at));
                    evictable.push((seq, step, next_at));
                    next_at += 1;
                }
                Step::Zero(at, len) => {
                    seq += 1;
                    index.zero(PageRange::new(at, at + len), Seq(seq));
                    (at..at + len).for_each(|p| {
                        model[usize::try_from(p).expect("small")] = [Cell::Zero; 8];
                    });
                }
                Step::Publish => {
                    published = seq;
                    store.clone_from(&model);
                    if seq % 2 == 0 {
                        index.sweep_zeros(Seq(published));
                    }
                }
                Step::EvictOldest => {
                    if evictable.first().is_some_and(|(of, ..)| *of <= published) {
                        let (_, what, at) = evictable.remove(0);
                        match what {
                            Step::Write(start, len) => {
                                index.evict(PageRange::new(start, start + len), Position(at));
                            }
                            Step::Partial(page, _) => {
                                index.evict_partial(PageNo(page), Position(at));
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
        for page in 0..1900_u64 {
            let expected = model[usize::try_from(page).expect("small")];
            prop_assert_eq!(seen(&index, page, Seq(published), &store), expected, "page {}", page);
        }
        let runs = index.lookup(PageRange::new(0, 1900), Seq(published));
        prop_assert_eq!(runs.iter().map(|(run, _)| run.pages()).sum::<u64>(), 1900);
    }
}

#[test]
fn zeroing_two_tebibytes_costs_what_is_held_not_what_is_covered() {
    let mut index = VolumeIndex::default();
    index.write(PageRange::new(1 << 20, (1 << 20) + 8), Position(5));
    index.zero(PageRange::new(0, 1 << 29), Seq(2));
    assert!(index.memory_bytes() < 1024, "{}", index.memory_bytes());
    let all = PageRange::new(0, 1 << 29);
    assert_eq!(index.lookup(all, Seq(0)), vec![(all, Found::Zero)]);
}
