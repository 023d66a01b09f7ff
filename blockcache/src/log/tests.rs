//! The log in memory: where appends go, and that room which was granted is there.

use super::*;

const VOLUME: Id = Id([7; 16]);

/// A log of so many ready chunks that knows one volume.
fn log(chunks: ChunkNo) -> Log {
    let mut log = Log::new(256, Run::default(), 1);
    for no in 0..chunks {
        log.chunks.push(Chunk::free());
        log.prepare(no, ChunkKind::Writes, Id([1; 16]));
        log.prepared(no);
    }
    let state = VolumeState {
        id: VOLUME,
        name: "test".into(),
        size_bytes: 1 << 30,
        epoch: crate::Epoch(1),
        nonce: Id([2; 16]),
        published: Seq(0),
        last: Seq(0),
        valid_lsn: 0,
        attached: true,
        damaged: false,
        intents: Vec::new(),
    };
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
