//! Logs on paper, as writes, moved chunks and kills leave them: replayed, and cut at every bound (rule 30).

use std::collections::VecDeque;

use proptest::prelude::*;

use super::accept::install;
use super::moved::Moved;
use super::*;
use crate::cache::PendingFork;
use crate::chunk::Batch;
use crate::log::{Chunk, Run};
use crate::record::VolumeState;
use crate::{Epoch, PageNo, Seq};

const VOLUMES: [Id; 3] = [Id([1; 16]), Id([2; 16]), Id([3; 16])];
/// So few that a write lies in several chunks now and then.
const CHUNK_RECORDS: usize = 4;
/// Between the pages of two writes: none seems to go on with another one.
const APART: u64 = 16;

/// A record that is not published.
#[derive(Clone, Debug)]
struct Unpublished {
    of: usize,
    seq: Seq,
    record: Record,
    /// Which of all writes it is a part of.
    write: usize,
    /// Where it was written, and where its newest copy is: numbers of chunks.
    origin: usize,
    at: usize,
}

#[derive(Debug, Default)]
struct Paper {
    chunks: VecDeque<Vec<(u64, Record)>>,
    /// Chunks that are gone: the oldest that is there has this number.
    gone: usize,
    lsn: u64,
    writes: usize,
    last: [Seq; 3],
    published: [Seq; 3],
    /// In the order in which they were written.
    unpublished: Vec<Unpublished>,
}

impl Paper {
    fn append(&mut self, record: Record) -> usize {
        let is_full = |chunk: &Vec<(u64, Record)>| chunk.len() == CHUNK_RECORDS;
        if self.chunks.back().is_none_or(is_full) {
            self.chunks.push_back(Vec::new());
        }
        self.lsn += 1;
        let lsn = self.lsn;
        self.chunks.back_mut().expect("made").push((lsn, record));
        self.gone + self.chunks.len() - 1
    }

    fn write(&mut self, of: usize, records: usize) {
        let mut page = self.writes as u64 * APART;
        for kind in 0..records {
            let seq = self.last[of].next();
            let stamp = Stamp {
                volume: VOLUMES[of],
                epoch: Epoch(1),
                seq,
            };
            let (record, pages) = match kind % 3 {
                0 => {
                    let (mask, crc, page) = (1, 0, PageNo(page));
                    let record = Record::Partial {
                        stamp,
                        page,
                        mask,
                        crc,
                    };
                    (record, 1)
                }
                1 => {
                    let (start, crcs) = (PageNo(page), vec![0, 0]);
                    (Record::Write { stamp, start, crcs }, 2)
                }
                _ => {
                    let pages = PageRange::new(page, page + 2);
                    (Record::Zero { stamp, pages }, 2)
                }
            };
            page += pages;
            self.last[of] = seq;
            let at = self.append(record.clone());
            self.unpublished.push(Unpublished {
                of,
                seq,
                record,
                write: self.writes,
                origin: at,
                at,
            });
        }
        self.writes += 1;
    }

    /// Some of what is unpublished in the oldest chunk, by volume, as the log does it.
    fn move_away(&mut self, count: usize) {
        if self.chunks.len() < 2 {
            return;
        }
        let (oldest, records) = (self.gone, 0..self.unpublished.len());
        let mut found: Vec<usize> = records
            .filter(|at| self.unpublished[*at].at == oldest)
            .collect();
        found.sort_by_key(|at| (self.unpublished[*at].of, self.unpublished[*at].seq));
        for at in found.into_iter().take(count) {
            let copy = Record::Moved(Box::new(self.unpublished[at].record.clone()));
            self.unpublished[at].at = self.append(copy);
        }
    }

    fn evict(&mut self) {
        let is_needed = self.unpublished.iter().any(|it| it.at == self.gone);
        if self.chunks.len() > 1 && !is_needed {
            self.chunks.pop_front();
            self.gone += 1;
        }
    }

    fn publish(&mut self, writes: usize) {
        let Some(first) = self.unpublished.first() else {
            return;
        };
        let until = first.write + writes;
        let (published, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.unpublished)
            .into_iter()
            .partition(|it| it.write < until);
        published
            .iter()
            .for_each(|it| self.published[it.of] = it.seq);
        self.unpublished = left;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { of, records } => self.write(of, records),
            Step::MoveAway { count } => self.move_away(count),
            Step::Evict => self.evict(),
            Step::Publish { writes } => self.publish(writes),
        }
    }

    /// What a start makes of it, without one of the chunks.
    fn replayed(&self, lost: Option<usize>) -> Log {
        let mut log = Log::new(64, Run::default(), self.lsn + 1);
        log.chunks.resize_with(self.chunks.len(), Chunk::free);
        for (id, published) in VOLUMES.into_iter().zip(self.published) {
            log.volumes.insert(id, Volume::new(state(id, published)));
        }
        let numbered = (0..).zip(&self.chunks);
        let mut all: Vec<(ChunkNo, Vec<Batch>)> =
            numbered.map(|(no, chunk)| (no, batches(chunk))).collect();
        if let Some(lost) = lost {
            all.remove(lost);
        }
        let (mut moved, mut moments) = (Moved::default(), Moments::new(Instant::from_nanos(7)));
        for (no, batches) in &all {
            moved.learn(*no, batches);
        }
        for (no, batches) in &all {
            install(
                &mut log,
                &mut moments,
                &mut moved,
                (*no, batches.as_slice()),
            );
        }
        moved.replay_rest(&mut log, &mut moments);
        let lost = Lost {
            tail: false,
            chunk: lost.map(|at| (at as u64, u64::MAX)),
        };
        finish(&mut log, moments, lost);
        log
    }

    /// What belongs together: writes of which something is found by its copy alone, and each other one by itself. Of each
    /// record its volume and seq.
    fn moments(&self) -> Vec<Vec<(usize, Seq)>> {
        let mut moments: Vec<Vec<(usize, Seq)>> = Vec::new();
        let mut before = None;
        for record in &self.unpublished {
            let mut parts = self.unpublished.iter();
            let is_copied = parts.any(|it| it.write == record.write && it.origin < self.gone);
            let key = (!is_copied).then_some(record.write);
            if before != Some(key) {
                assert!(
                    moments.is_empty() || !is_copied,
                    "copies are the oldest of all"
                );
                moments.push(Vec::new());
            }
            before = Some(key);
            let moment = moments.last_mut().expect("just made");
            moment.push((record.of, record.seq));
        }
        moments
    }

    fn expected(&self, records_max: u64) -> Vec<Seq> {
        let mut ends = self.published.to_vec();
        let mut records = 0;
        for (number, moment) in self.moments().into_iter().enumerate() {
            records += moment.len() as u64;
            if number > 0 && records > records_max {
                break;
            }
            moment.into_iter().for_each(|(of, seq)| ends[of] = seq);
        }
        ends
    }
}

/// Each record is a batch.
fn batches(chunk: &[(u64, Record)]) -> Vec<Batch> {
    let mut page = 1;
    let mut all = Vec::new();
    for (lsn, record) in chunk {
        let batch = Batch {
            lsn: *lsn,
            page,
            records: vec![record.clone()],
        };
        page += batch.pages();
        all.push(batch);
    }
    all
}

fn state(id: Id, published: Seq) -> VolumeState {
    VolumeState {
        published,
        last: published,
        ..VolumeState::sample(id)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { of: usize, records: usize },
    MoveAway { count: usize },
    Evict,
    Publish { writes: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..VOLUMES.len(), 1_usize..5);
    let write = write.prop_map(|(of, records)| Step::Write { of, records });
    let count = prop_oneof![1 => 1_usize..CHUNK_RECORDS, 2 => Just(CHUNK_RECORDS)];
    let move_away = count.prop_map(|count| Step::MoveAway { count });
    let publish = (1_usize..4).prop_map(|writes| Step::Publish { writes });
    let step = prop_oneof![
        8 => write,
        6 => move_away,
        6 => Just(Step::Evict),
        1 => publish,
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn what_a_start_finds_is_cut_in_the_order_in_which_it_was_written(steps in steps()) {
        let mut paper = Paper::default();
        steps.iter().for_each(|step| paper.step(step));
        let log = paper.replayed(None);
        for (id, last) in VOLUMES.iter().zip(paper.last) {
            let volume = &log.volumes[id];
            prop_assert_eq!((volume.last, volume.damage.clone()), (last, None));
        }
        let all = paper.unpublished.len() as u64;
        for records_max in (0..=all).chain([u64::MAX]) {
            let ends = log.ends_at_mark(&VOLUMES, records_max);
            prop_assert_eq!(ends, Some(paper.expected(records_max)), "at most {}", records_max);
        }
    }

    #[test]
    fn without_a_chunk_what_a_start_finds_is_cut_at_once(steps in steps(), lost in any::<prop::sample::Index>()) {
        let mut paper = Paper::default();
        steps.iter().for_each(|step| paper.step(step));
        if !paper.chunks.is_empty() {
            let log = paper.replayed(Some(lost.index(paper.chunks.len())));
            let whole = log.ends_at_mark(&VOLUMES, u64::MAX);
            prop_assert_eq!(log.ends_at_mark(&VOLUMES, 0), whole);
        }
    }
}

/// The writes of one volume, each to the page behind the one before, and of another one in between.
fn in_a_row(forks: Vec<PendingFork>) -> Log {
    let write = |of: usize, seq, page| {
        let stamp = Stamp {
            volume: VOLUMES[of],
            epoch: Epoch(1),
            seq: Seq(seq),
        };
        let (start, crcs) = (PageNo(page), vec![0]);
        Record::Write { stamp, start, crcs }
    };
    let records = [
        write(0, 1, 10),
        write(0, 2, 11),
        write(0, 3, 12),
        write(1, 1, 13),
        write(0, 4, 13),
    ];
    let mut log = Log::new(64, Run::default(), 6);
    log.chunks.push(Chunk::free());
    for id in VOLUMES {
        log.volumes.insert(id, Volume::new(state(id, Seq(0))));
    }
    if let Some(volume) = log.volumes.get_mut(&VOLUMES[0]) {
        volume.state.forks = forks;
    }
    let records: Vec<(u64, Record)> = (1..).zip(records).collect();
    let (mut moved, mut moments) = (Moved::default(), Moments::new(Instant::from_nanos(7)));
    let batches = batches(&records);
    install(&mut log, &mut moments, &mut moved, (0, batches.as_slice()));
    moments.settle(&mut log);
    log
}

/// They may be the pieces of one write, which is in one cut or none. But where a client waited for another member, a cut may
/// end.
#[test]
fn writes_that_follow_each_other_without_anything_in_between_are_taken_for_one() {
    let log = in_a_row(Vec::new());
    let ends = |records_max| log.ends_at_mark(&VOLUMES, records_max);
    assert_eq!(ends(1), Some(vec![Seq(3), Seq(0), Seq(0)]));
    assert_eq!(ends(4), Some(vec![Seq(3), Seq(1), Seq(0)]));
    assert_eq!(ends(5), Some(vec![Seq(4), Seq(1), Seq(0)]));
}

/// Else the volume would never be published up to there, and so the fork would not be, for which it waits.
#[test]
fn a_cut_may_end_where_a_fork_begins() {
    let log = in_a_row(vec![PendingFork {
        child: Id([8; 16]),
        cut: Seq(2),
        is_carried: false,
    }]);
    let ends = log.ends_at_mark(&VOLUMES, u64::MAX);
    assert_eq!(ends, Some(vec![Seq(2), Seq(0), Seq(0)]));
}

/// Not to be met in a log that is whole. Should it be, nothing is cut in two.
#[test]
fn a_copy_of_a_later_write_makes_all_of_it_one_moment() {
    let mut paper = Paper::default();
    paper.write(0, 1);
    paper.write(1, 1);
    paper.write(0, 1);
    let last = paper.unpublished[2].record.clone();
    paper.chunks[0][2].1 = Record::Moved(Box::new(last));
    let log = paper.replayed(None);
    let whole = Some(vec![Seq(2), Seq(1), Seq(0)]);
    assert_eq!(log.ends_at_mark(&VOLUMES, 0), whole);
}
