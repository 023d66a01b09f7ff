//! The judge judged: by brute force over small histories, and by a reference disk that behaves for
//! many lives, or does not.

use std::collections::BTreeMap;
use std::ops::Range;

use world::sim::Chance;

use super::*;

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;

fn place(bytes: &mut [u8], sector: u64, value: &[u8]) {
    let at = usize::try_from(sector * SECTOR).expect("small");
    bytes[at..at + 512].copy_from_slice(value);
}

mod by_brute_force {
    use super::*;

    /// The sectors that writes touch: the end of one page and the beginning of the next.
    const AREA: Range<u64> = 6..10;

    #[derive(Debug)]
    struct Op {
        no: WriteNo,
        sectors: Range<u64>,
        zero: bool,
        submitted: usize,
        answered: Option<usize>,
        required: bool,
    }

    impl Op {
        fn before(&self, other: &Self) -> bool {
            self.answered
                .is_some_and(|answered| answered < other.submitted)
        }

        fn is_small(&self) -> bool {
            self.sectors.start / 8 == (self.sectors.end - 1) / 8
        }
    }

    /// A small history, told to the oracle and kept for the brute force.
    fn history(chance: &mut Chance, judge: Judge, zeros: bool) -> (Oracle, Vec<Op>) {
        let mut oracle = Oracle::new(1, 2 * PAGE);
        let mut ops: Vec<Op> = Vec::new();
        let mut required_before = None;
        for time in 0..10 {
            let open: Vec<usize> = (0..ops.len())
                .filter(|index| ops[*index].answered.is_none())
                .collect();
            match chance.below(5) {
                0 if judge != Judge::Process => {
                    let moment = oracle.flush_begin();
                    match judge {
                        Judge::Power => oracle.flush_done(moment),
                        Judge::Process | Judge::Store => oracle.publish_done(moment),
                    }
                    required_before = Some(time);
                }
                1 | 2 if !open.is_empty() => {
                    let op = &mut ops[open[chance.index(open.len())]];
                    oracle.answered(op.no);
                    op.answered = Some(time);
                }
                _ if ops.len() < 4 => {
                    let start = AREA.start + chance.below(4);
                    let end = start + 1 + chance.below(AREA.end - start);
                    let zero = zeros && chance.one_in(3);
                    let len = (end - start) * SECTOR;
                    let no = if zero {
                        oracle.submit_zero(start * SECTOR, len)
                    } else {
                        oracle.submit_write(start * SECTOR, len).0
                    };
                    ops.push(Op {
                        no,
                        sectors: start..end,
                        zero,
                        submitted: time,
                        answered: None,
                        required: false,
                    });
                }
                _ => {}
            }
        }
        for op in &mut ops {
            op.required = match judge {
                Judge::Process => op.answered.is_some(),
                Judge::Power | Judge::Store => op
                    .answered
                    .is_some_and(|at| required_before.is_some_and(|edge| at < edge)),
            };
        }
        (oracle, ops)
    }

    /// Whose sector it is; none is zeros.
    type Contents = BTreeMap<u64, Option<WriteNo>>;

    fn is_legal(ops: &[Op], judge: Judge, seen: &Contents) -> bool {
        (0..1_usize << ops.len()).any(|set| {
            let set: Vec<&Op> = pick(ops.iter().collect(), set);
            let there = |op: &Op| set.iter().any(|other| other.no == op.no);
            let closed = ops
                .iter()
                .all(|op| there(op) || !(op.required || set.iter().any(|other| op.before(other))));
            closed && explains(&set, judge, seen)
        })
    }

    fn pick(ops: Vec<&Op>, set: usize) -> Vec<&Op> {
        let chosen = ops
            .into_iter()
            .enumerate()
            .filter(|(index, _)| set >> index & 1 == 1);
        chosen.map(|(_, op)| op).collect()
    }

    /// Some of the writes in parts, the others whole and in some order.
    fn explains(set: &[&Op], judge: Judge, seen: &Contents) -> bool {
        let may_be_partial = |op: &&&Op| {
            let last = !op.required && !set.iter().any(|other| op.before(other));
            last && (!op.is_small() || judge == Judge::Process && op.answered.is_none())
        };
        let candidates: Vec<&Op> = set.iter().filter(may_be_partial).copied().collect();
        (0..1_usize << candidates.len()).any(|chosen| {
            let partial = pick(candidates.clone(), chosen);
            let whole: Vec<&Op> = set
                .iter()
                .filter(|op| partial.iter().all(|other| other.no != op.no))
                .copied()
                .collect();
            orders(&whole, &mut Vec::new(), &mut |order| {
                shows(order, &partial, seen)
            })
        })
    }

    fn orders<'a>(
        left: &[&'a Op],
        order: &mut Vec<&'a Op>,
        found: &mut dyn FnMut(&[&'a Op]) -> bool,
    ) -> bool {
        if left.is_empty() {
            return found(order);
        }
        left.iter().any(|next| {
            if left.iter().any(|other| other.before(next)) {
                return false;
            }
            let rest: Vec<&Op> = left.iter().filter(|op| op.no != next.no).copied().collect();
            order.push(next);
            let success = orders(&rest, order, found);
            order.pop();
            success
        })
    }

    fn shows(order: &[&Op], partial: &[&Op], seen: &Contents) -> bool {
        seen.iter().all(|(sector, seen)| {
            let value = |op: &Op| (!op.zero).then_some(op.no);
            let last = order.iter().rev().find(|op| op.sectors.contains(sector));
            let by_order = last.and_then(|op| value(op)) == *seen;
            let covers = |op: &&&Op| op.sectors.contains(sector);
            by_order || partial.iter().filter(covers).any(|op| value(op) == *seen)
        })
    }

    fn content(oracle: &Oracle, seen: &Contents) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(oracle.size_bytes()).expect("small")];
        for (sector, no) in seen {
            if let Some(no) = no {
                place(&mut bytes, *sector, &stamp::make(1, *no, *sector));
            }
        }
        bytes
    }

    /// How often legal, and how often not.
    fn compare(judge: Judge, zeros: bool) -> (usize, usize) {
        let mut counts = (0, 0);
        for seed in 0..3_000 {
            let mut chance = Chance::seeded(seed);
            let (oracle, ops) = history(&mut chance, judge, zeros);
            for _ in 0..8 {
                let seen: Contents = AREA
                    .map(|sector| {
                        let data = ops
                            .iter()
                            .filter(|op| !op.zero && op.sectors.contains(&sector));
                        let mut choices = vec![None];
                        choices.extend(data.map(|op| Some(op.no)));
                        (sector, choices[chance.index(choices.len())])
                    })
                    .collect();
                let legal = is_legal(&ops, judge, &seen);
                let verdict = oracle.check(&content(&oracle, &seen), judge);
                let agreed = legal == verdict.is_ok() || zeros && verdict.is_ok();
                assert!(agreed, "seed {seed}: {ops:?} {seen:?} {legal} {verdict:?}");
                if legal {
                    counts.0 += 1;
                } else {
                    counts.1 += usize::from(verdict.is_err());
                }
            }
        }
        counts
    }

    #[test]
    fn the_verdict_is_that_of_all_orders_tried() {
        for judge in [Judge::Process, Judge::Power, Judge::Store] {
            let (legal, illegal) = compare(judge, false);
            assert!(
                legal > 2_000 && illegal > 2_000,
                "{judge:?}: {legal} {illegal}"
            );
        }
    }

    #[test]
    fn zeros_raise_no_false_alarm() {
        for judge in [Judge::Process, Judge::Power, Judge::Store] {
            let (legal, illegal) = compare(judge, true);
            assert!(
                legal > 2_000 && illegal > 2_000,
                "{judge:?}: {legal} {illegal}"
            );
        }
    }
}

/// A disk that keeps the promises, and a client of it that keeps several requests in flight.
mod over_many_lives {
    use super::*;

    const PAGES: u64 = 12;

    #[derive(Clone)]
    struct Entry {
        at: u64,
        bytes: Vec<u8>,
    }

    struct Reference {
        oracle: Oracle,
        chance: Chance,
        /// In the order in which the disk took them; a write of several pages is several entries.
        log: Vec<Entry>,
        durable: usize,
        /// Cuts that the store holds or held, the last is current.
        published: usize,
        /// Submitted, not in the log.
        waiting: Vec<(WriteNo, Vec<Entry>)>,
        /// In the log, not answered.
        taken: Vec<WriteNo>,
    }

    impl Reference {
        fn new(seed: u64) -> Self {
            Self {
                oracle: Oracle::new(seed, PAGES * PAGE),
                chance: Chance::seeded(seed),
                log: Vec::new(),
                durable: 0,
                published: 0,
                waiting: Vec::new(),
                taken: Vec::new(),
            }
        }

        fn content(&self, entries: usize) -> Vec<u8> {
            let mut bytes = vec![0; usize::try_from(PAGES * PAGE).expect("small")];
            for entry in &self.log[..entries] {
                let at = usize::try_from(entry.at).expect("small");
                bytes[at..at + entry.bytes.len()].copy_from_slice(&entry.bytes);
            }
            bytes
        }

        fn submit(&mut self) {
            let sectors = PAGES * PAGE / SECTOR;
            let first = self.chance.below(sectors);
            let count = 1 + self.chance.below((sectors - first).min(24));
            let (at, len) = (first * SECTOR, count * SECTOR);
            let (no, bytes) = if self.chance.one_in(8) {
                let zeros = vec![0; usize::try_from(len).expect("small")];
                (self.oracle.submit_zero(at, len), zeros)
            } else {
                let (no, bytes) = self.oracle.submit_write(at, len);
                (no, bytes.to_vec())
            };
            let mut entries: Vec<Entry> = Vec::new();
            for (sector, bytes) in (first..).zip(bytes.chunks(512)) {
                let at = sector * SECTOR;
                match entries.last_mut() {
                    Some(last) if !at.is_multiple_of(PAGE) => last.bytes.extend(bytes),
                    _ => entries.push(Entry {
                        at,
                        bytes: bytes.to_vec(),
                    }),
                }
            }
            self.waiting.push((no, entries));
        }

        fn step(&mut self) {
            match self.chance.below(12) {
                0..4 => self.submit(),
                4..7 if !self.waiting.is_empty() => {
                    let index = self.chance.index(self.waiting.len());
                    let (no, entries) = self.waiting.swap_remove(index);
                    self.log.extend(entries);
                    self.taken.push(no);
                }
                7..10 if !self.taken.is_empty() => {
                    let index = self.chance.index(self.taken.len());
                    let no = self.taken.swap_remove(index);
                    if self.chance.one_in(8) {
                        self.oracle.answered_durable(no);
                        self.durable = self.log.len();
                    } else {
                        self.oracle.answered(no);
                    }
                }
                10 => {
                    let moment = self.oracle.flush_begin();
                    self.durable = self.log.len();
                    self.oracle.flush_done(moment);
                }
                11 if self.chance.one_in(3) => {
                    let moment = self.oracle.publish_begin();
                    self.durable = self.log.len();
                    self.published = self.log.len();
                    if self.chance.one_in(2) {
                        self.oracle.publish_done(moment);
                    }
                }
                _ => {}
            }
            let begun = self.oracle.read_begin();
            let content = self.content(self.log.len());
            self.oracle
                .check_read(begun, 0, &content)
                .expect("the disk is right");
        }

        /// Everything is answered: nothing is left that could come after a planted fault and hide it.
        fn settle(&mut self) {
            for (no, entries) in std::mem::take(&mut self.waiting) {
                self.log.extend(entries);
                self.taken.push(no);
            }
            for no in std::mem::take(&mut self.taken) {
                self.oracle.answered(no);
            }
        }

        /// The crash, as it should be.
        fn crash(&mut self, judge: Judge) {
            match judge {
                Judge::Process => {
                    for (_, entries) in std::mem::take(&mut self.waiting) {
                        let kept = self.chance.index(entries.len() + 1);
                        self.log.extend(entries.into_iter().take(kept));
                    }
                }
                Judge::Power => {
                    let lost = self.chance.index(self.log.len() - self.durable + 1);
                    self.log.truncate(self.log.len() - lost);
                }
                Judge::Store => {
                    self.log.truncate(self.published);
                    self.durable = self.published;
                }
            }
            self.waiting.clear();
            self.taken.clear();
        }

        fn live(&mut self, steps: usize) {
            for _ in 0..steps {
                self.step();
            }
        }

        fn check(&mut self, judge: Judge) -> Result<Survivors, Violation> {
            self.oracle.check(&self.content(self.log.len()), judge)
        }
    }

    fn any_judge(chance: &mut Chance) -> Judge {
        [Judge::Process, Judge::Power, Judge::Store][chance.index(3)]
    }

    #[test]
    fn a_disk_that_keeps_its_promises_is_never_blamed() {
        for seed in 0..100 {
            let mut disk = Reference::new(seed);
            for life in 0..8 {
                let steps = disk.chance.index(60);
                disk.live(steps);
                let judge = any_judge(&mut disk.chance);
                disk.crash(judge);
                match disk.check(judge) {
                    Ok(survivors) => disk.oracle.reset_to(&survivors),
                    Err(violation) => panic!("seed {seed}, life {life}, {judge:?}: {violation}"),
                }
            }
        }
    }

    /// The share of seeds on which a fault, where it shows at all, is found.
    fn found(fault: impl Fn(&mut Reference) -> Option<(Vec<u8>, Judge)>) -> (usize, usize) {
        let (mut planted, mut found) = (0, 0);
        for seed in 0..400 {
            let mut disk = Reference::new(seed);
            disk.live(80);
            if let Some((content, judge)) = fault(&mut disk) {
                planted += 1;
                found += usize::from(disk.oracle.check(&content, judge).is_err());
            }
        }
        (planted, found)
    }

    #[test]
    fn a_lost_flushed_write_is_found() {
        let (planted, found) = found(|disk| {
            disk.settle();
            let (no, bytes) = disk.oracle.submit_write(0, SECTOR);
            let before = disk.content(disk.log.len());
            disk.log.push(Entry {
                at: 0,
                bytes: bytes.to_vec(),
            });
            disk.oracle.answered(no);
            let moment = disk.oracle.flush_begin();
            disk.oracle.flush_done(moment);
            Some((before, Judge::Power))
        });
        assert_eq!((planted, found), (400, 400));
    }

    #[test]
    fn a_mix_of_two_times_is_found() {
        // One page is at an older cut than the rest, which has seen a write answered since.
        let (planted, found) = found(|disk| {
            disk.settle();
            let write = |disk: &mut Reference, at| {
                let (no, bytes) = disk.oracle.submit_write(at, PAGE);
                let bytes = bytes.to_vec();
                disk.log.push(Entry { at, bytes });
                disk.oracle.answered(no);
            };
            let older = disk.content(disk.log.len());
            write(disk, 3 * PAGE);
            write(disk, 7 * PAGE);
            let mut mixed = disk.content(disk.log.len());
            let old = usize::try_from(3 * PAGE).expect("small")..usize::try_from(4 * PAGE).ok()?;
            mixed[old.clone()].copy_from_slice(&older[old]);
            let judge = [Judge::Power, Judge::Store][disk.chance.index(2)];
            Some((mixed, judge))
        });
        assert_eq!((planted, found), (400, 400));
    }

    #[test]
    fn an_old_page_that_comes_back_in_a_later_life_is_found() {
        let (planted, found) = found(|disk| {
            let (no, bytes) = disk.oracle.submit_write(5 * PAGE, PAGE);
            disk.oracle.answered(no);
            // Lost with the node, and then there after all: protocol rule 11.
            disk.crash(Judge::Store);
            let survivors = disk.check(Judge::Store).expect("a legal loss");
            disk.oracle.reset_to(&survivors);
            disk.live(20);
            let judge = any_judge(&mut disk.chance);
            disk.crash(judge);
            let mut content = disk.content(disk.log.len());
            for (sector, bytes) in (40..).zip(bytes.chunks(512)) {
                place(&mut content, sector, bytes);
            }
            Some((content, judge))
        });
        assert_eq!((planted, found), (400, 400));
    }

    #[test]
    fn an_older_write_over_a_newer_one_is_found_in_every_judgement() {
        let (planted, found) = found(|disk| {
            let (one, old) = disk.oracle.submit_write(2 * PAGE, PAGE);
            disk.oracle.answered(one);
            let (two, _) = disk.oracle.submit_write(2 * PAGE, PAGE);
            disk.oracle.answered(two);
            let moment = disk.oracle.flush_begin();
            disk.oracle.flush_done(moment);
            disk.oracle.publish_done(moment);
            let mut content = disk.content(disk.log.len());
            for (sector, bytes) in (16..).zip(old.chunks(512)) {
                place(&mut content, sector, bytes);
            }
            Some((content, any_judge(&mut disk.chance)))
        });
        assert_eq!((planted, found), (400, 400));
    }

    #[test]
    fn a_torn_or_misplaced_or_foreign_sector_is_named() {
        let mut disk = Reference::new(1);
        let (no, bytes) = disk.oracle.submit_write(0, 2 * SECTOR);
        disk.oracle.answered(no);
        let mut content = disk.content(0);
        place(&mut content, 0, &bytes[..512]);
        place(&mut content, 1, &bytes[512..]);
        disk.oracle
            .check(&content, Judge::Process)
            .expect("as written");
        let mut torn = content.clone();
        torn[256..512].fill(0);
        let violation = disk.oracle.check(&torn, Judge::Process).expect_err("torn");
        assert_eq!(violation, Violation::Foreign { sector: 0 });
        let mut swapped = content.clone();
        place(&mut swapped, 9, &bytes[512..]);
        let violation = disk
            .oracle
            .check(&swapped, Judge::Process)
            .expect_err("misplaced");
        let misplaced = Violation::Misplaced {
            sector: 9,
            found: no,
            belongs: 1,
        };
        assert_eq!(violation, misplaced);
        let other = Oracle::new(2, PAGES * PAGE);
        let violation = other.check(&content, Judge::Process).expect_err("foreign");
        assert_eq!(violation, Violation::Foreign { sector: 0 });
    }

    #[test]
    fn a_read_older_than_an_answer_before_it_is_found() {
        let mut disk = Reference::new(1);
        let (one, old) = disk.oracle.submit_write(0, SECTOR);
        disk.oracle.answered(one);
        let (two, new) = disk.oracle.submit_write(0, SECTOR);
        let early = disk.oracle.read_begin();
        disk.oracle.answered(two);
        let late = disk.oracle.read_begin();
        disk.oracle
            .check_read(early, 0, &old)
            .expect("not yet answered");
        disk.oracle.check_read(early, 0, &new).expect("under way");
        disk.oracle.check_read(late, 0, &new).expect("the last one");
        let violation = disk.oracle.check_read(late, 0, &old).expect_err("stale");
        assert!(matches!(violation, Violation::Lost { missing, .. } if missing == two));
        let violation = disk
            .oracle
            .check_read(early, 0, &[0; 512])
            .expect_err("stale");
        assert!(matches!(violation, Violation::Lost { missing, .. } if missing == one));
    }
}
