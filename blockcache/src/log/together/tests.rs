//! Several volumes in one log: a cut of them is a beginning of all that was written to them, whatever bounds it.

use proptest::prelude::*;

use super::*;
use crate::cache::{Intent, PendingFork};
use crate::chunk::ChunkKind;
use crate::log::{Chunk, ChunkNo, Run};
use crate::record::VolumeState;

const VOLUMES: [Id; 3] = [Id([1; 16]), Id([2; 16]), Id([3; 16])];

fn log(chunks: ChunkNo) -> Log {
    let mut log = Log::new(256, Run::default(), 1);
    for no in 0..chunks {
        log.chunks.push(Chunk::free());
        log.prepare(no, ChunkKind::Writes, Id([1; 16]));
        log.prepared(no);
    }
    for id in VOLUMES {
        log.volumes.insert(id, Volume::new(VolumeState::sample(id)));
    }
    log
}

/// A write of so many bytes from the middle of a page on, so that it has several records. Its last one is returned.
fn write(log: &mut Log, volume: Id, bytes: usize, clock: u64) -> Seq {
    let moment = log.moment(Instant::from_nanos(clock));
    let appended = log.append_write(volume, 2048, &vec![1; bytes], moment);
    while let Some(staged) = log.take_staged() {
        log.written(staged.chunk, staged.end_page, staged.buf);
    }
    appended.seq
}

fn volume(log: &mut Log, id: Id) -> &mut Volume {
    log.volumes.get_mut(&id).expect("a volume of the test")
}

fn published(log: &Log) -> Vec<Seq> {
    let each = VOLUMES.iter().map(|id| log.volumes[id].state.published);
    each.collect()
}

/// How many of all writes, in their order, are in a cut that is to be a beginning of them.
fn beginning(order: &[(usize, Seq)], ends: &[Seq]) -> usize {
    let is_in = |(of, last): &(usize, Seq)| *last <= ends[*of];
    let count = order.iter().take_while(|&it| is_in(it)).count();
    let (within, behind) = order.split_at(count);
    assert!(!behind.iter().any(is_in), "a hole: {ends:?} of {order:?}");
    for (number, end) in ends.iter().enumerate() {
        let own = within.iter().filter(|(of, _)| *of == number);
        let last = own.map(|(_, last)| *last).max();
        assert_eq!(last.unwrap_or_default(), *end, "a part of a write");
    }
    count
}

#[derive(Clone, Debug)]
enum Step {
    /// What the clock says goes back as well.
    Write {
        of: usize,
        bytes: usize,
        clock: u64,
    },
    Publish {
        records_max: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..VOLUMES.len(), 1_usize..40, 0_u64..4);
    let write = write.prop_map(|(of, sectors, clock)| Step::Write {
        of,
        bytes: sectors * 512,
        clock,
    });
    let bound = prop_oneof![0_u64..12, Just(u64::MAX)];
    let publish = bound.prop_map(|records_max| Step::Publish { records_max });
    prop::collection::vec(prop_oneof![6 => write, 1 => publish], 1..60)
}

proptest! {
    #[test]
    fn a_bounded_cut_is_a_beginning_of_all_writes(steps in steps()) {
        let mut log = log(8);
        let mut order: Vec<(usize, Seq)> = Vec::new();
        let mut done = 0;
        for step in steps {
            match step {
                Step::Write { of, bytes, clock } => {
                    let last = write(&mut log, VOLUMES[of], bytes, clock);
                    order.push((of, last));
                }
                Step::Publish { records_max } => {
                    let ends = log.ends_at_mark(&VOLUMES, records_max).expect("known");
                    let count = beginning(&order, &ends);
                    let before = published(&log);
                    let records: u64 = ends.iter().zip(&before).map(|(end, from)| end.0 - from.0).sum();
                    assert!(records <= records_max || count == done + 1, "{records} records");
                    assert!(count > done || done == order.len(), "no progress");
                    assert!(records_max < u64::MAX || count == order.len(), "not all of it");
                    done = count;
                    for (id, end) in VOLUMES.into_iter().zip(ends) {
                        volume(&mut log, id).state.published = end;
                        // Some are forgotten later.
                        log.sweep_published(id, 3);
                    }
                }
            }
        }
    }
}

#[test]
fn what_has_one_moment_is_in_a_cut_wholly_and_what_came_since_is_not() {
    let mut log = log(4);
    for round in 0..3 {
        for id in VOLUMES {
            write(&mut log, id, 512, round);
        }
    }
    // As a start has it that does not know the order, and whose clock may stand still.
    let start = Instant::from_nanos(7);
    log.begin_at(start);
    let records = log.volumes.values_mut().flat_map(|it| it.dirty.iter_mut());
    records.for_each(|record| record.since = start);
    write(&mut log, VOLUMES[1], 512, 7);
    let ends = log.ends_at_mark(&VOLUMES, 1);
    assert_eq!(ends, Some(vec![Seq(3); 3]));
    let ends = log.ends_at_mark(&VOLUMES, 10);
    assert_eq!(ends, Some(vec![Seq(3), Seq(4), Seq(3)]));
}

#[test]
fn a_cut_of_a_fork_that_is_not_published_bounds_all_members_at_one_mark() {
    let mut log = log(4);
    for id in VOLUMES {
        write(&mut log, id, 512, 0);
    }
    volume(&mut log, VOLUMES[1]).state.forks.push(PendingFork {
        child: Id([8; 16]),
        cut: Seq(1),
        is_carried: false,
    });
    write(&mut log, VOLUMES[0], 512, 0);
    // Nothing is behind the cut so far.
    let ends = log.ends_at_mark(&VOLUMES, u64::MAX);
    assert_eq!(ends, Some(vec![Seq(2), Seq(1), Seq(1)]));
    write(&mut log, VOLUMES[1], 512, 0);
    write(&mut log, VOLUMES[2], 512, 0);
    let ends = log.ends_at_mark(&VOLUMES, u64::MAX);
    assert_eq!(ends, Some(vec![Seq(2), Seq(1), Seq(1)]));
}

#[test]
fn members_are_known_by_the_nonces_that_they_share() {
    let mut log = log(2);
    let [first, second, third] = VOLUMES;
    assert_eq!(log.together_with(first), [first, second, third]);
    // The first has noted that it is published; of the second only the intent is known; the third left before.
    volume(&mut log, first).state.nonce = Id([4; 16]);
    volume(&mut log, second).state.intents.push(Intent {
        nonce: Id([4; 16]),
        cut: Seq(0),
        replaces: world::ETag("e".into()),
    });
    volume(&mut log, third).state.nonce = Id([5; 16]);
    assert_eq!(log.together_with(first), [first, second]);
    assert_eq!(log.together_with(third), [third]);
    // None that is known by its id alone is taken for another's.
    for id in VOLUMES {
        volume(&mut log, id).state.nonce = Id::default();
        volume(&mut log, id).state.intents.clear();
    }
    assert_eq!(log.together_with(first), [first]);
}

#[test]
fn damage_of_one_is_that_of_all_members_and_of_nobody_else() {
    let mut log = log(4);
    let [first, second, third] = VOLUMES;
    volume(&mut log, third).state.nonce = Id([5; 16]);
    for id in VOLUMES {
        write(&mut log, id, 512, 0);
        volume(&mut log, id).state.published = Seq(1);
        write(&mut log, id, 512, 0);
    }
    volume(&mut log, first).damage = Some("writes 3 to 4 are missing".into());
    log.spread_damage();
    assert_eq!(log.volumes[&first].kept(), Seq(1));
    assert_eq!(log.volumes[&second].kept(), Seq(1));
    assert_eq!(log.volumes[&third].kept(), Seq(2));
    let why = log.volumes[&second].damage.clone().unwrap_or_default();
    assert!(why.contains("`vm-1`"), "{why}");
    assert_eq!(log.volumes[&third].damage, None);
    // Accepted of one before a crash: the other is damaged as before, and goes back as far.
    log.accept_loss(first);
    volume(&mut log, second).damage = Some("an earlier start found it".into());
    log.spread_damage();
    assert_eq!(log.volumes[&first].damage, None, "nothing of it is left");
    assert_eq!(log.volumes[&first].last, Seq(1));
    assert_eq!(log.volumes[&second].kept(), Seq(1));
}

/// A loss at the end of the log damages all that are held; who belongs together goes back together, and nobody else.
#[test]
fn where_all_are_damaged_only_those_of_a_group_go_back_to_what_is_published() {
    let mut log = log(4);
    let [first, second, third] = VOLUMES;
    volume(&mut log, third).state.nonce = Id([5; 16]);
    for id in VOLUMES {
        write(&mut log, id, 512, 0);
        volume(&mut log, id).damage = Some("the end of the log is missing".into());
    }
    log.spread_damage();
    let kept = VOLUMES.map(|id| log.volumes[&id].kept());
    assert_eq!(kept, [Seq(0), Seq(0), Seq(1)]);
    let rolls_back = [first, second, third].map(|id| log.volumes[&id].rolls_back);
    assert_eq!(rolls_back, [true, true, false]);
}

/// A volume that is in no group keeps its unbroken run, as before.
#[test]
fn damage_of_a_volume_alone_keeps_what_is_whole() {
    let mut log = log(4);
    for id in VOLUMES {
        volume(&mut log, id).state.nonce = id;
        write(&mut log, id, 512, 0);
    }
    volume(&mut log, VOLUMES[0]).damage = Some("writes 2 to 4 are missing".into());
    log.spread_damage();
    assert_eq!(log.volumes[&VOLUMES[0]].kept(), Seq(1));
    assert_eq!(log.volumes[&VOLUMES[1]].damage, None);
}
