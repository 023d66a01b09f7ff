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

#[test]
fn pages_that_are_scattered_cost_little_each_and_dense_ones_a_table() {
    let mut index = VolumeIndex::default();
    let scattered = 10_000;
    for region in 0..scattered {
        let page = region * REGION_PAGES + 7 + region % 100;
        index.write(PageRange::new(page, page + 1), Position(1 + region));
    }
    let each = index.memory_bytes() / scattered;
    assert!(
        each < 200,
        "{each} bytes for a page that is alone in its region"
    );
    let end = scattered * REGION_PAGES;
    let all = PageRange::new(0, end);
    let runs = index.lookup(all, Seq(0));
    assert_eq!(runs.len() as u64, 2 * scattered + 1);
    index.write(all, Position(1 << 30));
    let page = index.memory_bytes() / end;
    assert!(page <= 8, "{page} bytes for each of many pages");
    assert_eq!(
        index.lookup(all, Seq(0)),
        vec![(all, Found::Log(Position(1 << 30)))]
    );
    index.evict_positions(&((1 << 30)..(1 << 31)));
    assert_eq!(index.memory_bytes(), 0);
    assert_eq!(index.lookup(all, Seq(0)), vec![(all, Found::Absent)]);
}

proptest! {
    /// A region is a list or a table, and nobody sees which.
    #[test]
    fn a_region_holds_what_a_table_holds(
        steps in prop::collection::vec((0_usize..REGION_SLOTS, prop::option::of(1_u64..1000)), 0..300),
        spread in 1_usize..REGION_SLOTS,
        gone in 0_u64..1000,
    ) {
        let mut region = Region::EMPTY;
        let mut table = [0; REGION_SLOTS];
        for (slot, value) in steps {
            let slot = slot % spread;
            table[slot] = value.unwrap_or(0);
            region.set(slot, table[slot]);
            let used = table.iter().filter(|at| **at != 0).count();
            prop_assert_eq!(usize::from(region.used), used);
        }
        region.forget(&(0..gone));
        table.iter_mut().filter(|at| **at < gone).for_each(|at| *at = 0);
        for (slot, at) in table.iter().enumerate() {
            prop_assert_eq!(region.get(slot), *at);
            let next = (slot..REGION_SLOTS).find(|next| table[*next] != 0);
            prop_assert_eq!(region.next_used(slot, REGION_SLOTS), next.unwrap_or(REGION_SLOTS));
        }
        prop_assert_eq!(usize::from(region.used), table.iter().filter(|at| **at != 0).count());
    }
}
