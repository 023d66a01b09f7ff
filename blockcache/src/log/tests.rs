//! The log in memory: where appends go, and that room which was granted is there.

use super::*;
use crate::index::{Base, Found};
use crate::record::Stamp;
use crate::{ForkBase, PendingFork};

const VOLUME: Id = Id([7; 16]);

/// A log of so many ready chunks that knows one volume.
fn log(chunks: ChunkNo) -> Log {
    let mut log = Log::new(256, Run::default(), 1);
    for no in 0..chunks {
        log.chunks.push(Chunk::free());
        log.prepare(no, ChunkKind::Writes, Id([1; 16]));
        log.prepared(no);
    }
    let state = VolumeState::sample(VOLUME);
    log.volumes.insert(VOLUME, Volume::new(state));
    log
}

fn hand_out(log: &mut Log) {
    while let Some(staged) = log.take_staged() {
        log.written(staged.chunk, staged.end_page, staged.buf);
    }
}

/// A committer that is faster than the writers leaves nothing being built; the chunk is still open.
#[test]
fn appends_go_on_in_the_open_chunk_after_all_was_handed_out() {
    let mut log = log(2);
    for _ in 0..50 {
        assert!(
            log.has_room(1, Spare::None),
            "50 batches of 2 pages fit one chunk"
        );
        log.append_write(VOLUME, 0, &[1; PAGE], Instant::default());
        hand_out(&mut log);
    }
    assert_eq!((log.ready.len(), log.sealing.len()), (1, 0));
}

/// Appending what `has_room` granted never runs out of chunks, whatever is handed out in between.
#[test]
fn room_that_was_granted_is_there() {
    let mut log = log(6);
    for round in 0_u64.. {
        let pages = 1 + round * 37 % 97;
        if !log.has_room(pages, Spare::None) {
            break;
        }
        let bytes = usize::try_from(pages).expect("small") * PAGE;
        let at = 512 * (round % 8);
        log.append_write(VOLUME, at, &vec![1; bytes], Instant::default());
        if round % 3 != 0 {
            hand_out(&mut log);
        }
    }
    assert!(
        log.ready.len() <= 1,
        "room was refused before it was used up"
    );
}

/// A moved record that is published no longer serves as a copy: in its new chunk it may outlive newer
/// writes of its pages, which lie before it, and in its old one an older page lies under it.
#[test]
fn a_moved_record_is_forgotten_once_it_is_published() {
    let mut log = log(4);
    let one = PageRange::new(0, 1);
    log.append_write(VOLUME, 0, &[1; PAGE], Instant::default());
    publish(&mut log, 1);
    log.append_write(VOLUME, 512, &[2; 512], Instant::default());
    log.append_write(VOLUME, PAGE as u64, &[3; PAGE], Instant::default());
    move_all(&mut log);
    let found = log.volumes[&VOLUME].index.lookup(one, Seq(1)).remove(0).1;
    assert!(matches!(found, Found::Overlaid { .. }), "{found:?}");
    log.append_write(VOLUME, 1024, &[4; 512], Instant::default());
    publish(&mut log, 3);
    let index = &log.volumes[&VOLUME].index;
    let found = index.lookup(one, Seq(3)).remove(0).1;
    let Found::Overlaid { base, overlays } = found else {
        panic!("{found:?}");
    };
    assert_eq!((base, overlays.len()), (Base::Absent, 1), "{overlays:?}");
    let second = index.lookup(PageRange::new(1, 2), Seq(3)).remove(0).1;
    assert_eq!(second, Found::Absent);
}

/// A thousand idle volumes must not hold what each of them once needed.
#[test]
fn a_volume_that_is_clean_again_keeps_no_room_for_what_was_dirty() {
    let mut log = log(20);
    for round in 0..2 {
        let before = log.volumes[&VOLUME].last.0;
        for page in 0..80 {
            log.append_write(VOLUME, page * 4096, &[1; PAGE], Instant::default());
            hand_out(&mut log);
        }
        assert!(log.volumes[&VOLUME].dirty.capacity() >= 80);
        // Some are written while the others are published: there is room for as many again.
        publish(&mut log, before + 70);
        let dirty = &log.volumes[&VOLUME].dirty;
        assert_eq!(dirty.len(), 10);
        assert!((20..80).contains(&dirty.capacity()), "{}", dirty.capacity());
        publish(&mut log, before + 80);
        let dirty = &log.volumes[&VOLUME].dirty;
        assert!(dirty.capacity() <= 2 * DIRTY_KEPT_MIN, "round {round}");
    }
}

/// A fork of what is lost must not be published as if that were there; one of what is kept goes on. A fork that is not
/// in the store itself goes on as well: nothing of it can be on its way there.
#[test]
fn a_loss_that_is_accepted_ends_the_forks_that_are_made_of_it() {
    let mut log = log(4);
    for n in 0..3 {
        log.append_write(VOLUME, n * PAGE as u64, &[1; PAGE], Instant::default());
    }
    let volume = log.volumes.get_mut(&VOLUME).expect("known");
    volume.dirty.remove(1);
    volume.damage = Some("write 2 is missing".into());
    volume.state.forks = vec![fork(1, 1), fork(2, 3)];
    volume.state.base = Some(ForkBase {
        parent: Id([9; 16]),
        name: "image".into(),
        cut: Seq(0),
    });
    log.accept_loss(VOLUME);
    let volume = &log.volumes[&VOLUME];
    assert_eq!(volume.state.forks, vec![fork(1, 1)]);
    assert_eq!((volume.last, volume.damage.clone()), (Seq(1), None));
    assert!(volume.state.attached);
}

fn fork(child: u8, cut: u64) -> PendingFork {
    PendingFork {
        child: Id([child; 16]),
        cut: Seq(cut),
        is_carried: false,
    }
}

fn publish(log: &mut Log, to: u64) {
    hand_out(log);
    let volume = log
        .volumes
        .get_mut(&VOLUME)
        .expect("the volume of the test");
    volume.state.published = Seq(to);
    assert!(!log.sweep_published(VOLUME, 100));
}

fn move_all(log: &mut Log) {
    hand_out(log);
    let unpublished: Vec<Dirty> = log.volumes[&VOLUME].dirty.iter().cloned().collect();
    for record in unpublished {
        let stamp = Stamp {
            volume: VOLUME,
            epoch: crate::Epoch(1),
            seq: record.seq,
        };
        let (again, pages) = match record.what {
            Written::Pages { pages, .. } => {
                let (start, crcs) = (pages.start, vec![0; 1]);
                (Record::Write { stamp, start, crcs }, 1)
            }
            Written::Sectors { page, overlay } => {
                let (mask, crc) = (overlay.mask, 0);
                let record = Record::Partial {
                    stamp,
                    page,
                    mask,
                    crc,
                };
                (record, 1)
            }
            Written::Zeros { pages } => (Record::Zero { stamp, pages }, 0),
        };
        log.append_moved(&record, again, &vec![0; pages * PAGE]);
    }
    hand_out(log);
}
