//! The moments of what a start finds (rule 30): in the order in which it was written, as far as the log tells that.
//!
//! A mark must not put a write in and leave another one out that was answered before the former was sent. The answered
//! one was appended before, so moments that grow in the order of the log are right, for records that are where they were
//! written:
//!
//! - What is found by its copy alone was written before all of these. Only the oldest chunk of writes is moved away, and as
//!   long as it is there its own records count, not their copies. So it is gone; chunks go in their order; and none that
//!   is here is older than one that is gone.
//! - How copies followed each other is not known: a chunk that is moved away holds copies of older records beside its own,
//!   so what was copied twice lies behind what was written after it and copied once. All copies have the first
//!   moment: they are in a cut wholly, or not at all.
//! - Records of one write have one moment: they stand one behind the other, with nothing in between, and their pages follow each
//!   other. Where the first of them are copies, the rest is the first thing in the oldest chunk that is here.
//!   Writes that follow each other so are taken for one.
//!
//! Where anything of the log is lost, the order is not certain: what lay before a hole may be found by its copy behind it.
//! Then all that was found has one moment.

use world::Instant;

use crate::log::{Log, TICK, Volume};
use crate::{Id, PageRange, Seq};

/// Gives them out, as records are replayed.
#[derive(Debug)]
pub(super) struct Moments {
    /// Of all copies, and of all records where the order is not certain.
    first: Instant,
    newest: Instant,
    /// Whose record was the last that is unpublished, and where it was written.
    last: Option<Id>,
    is_certain: bool,
}

impl Moments {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            first: start,
            newest: start,
            last: None,
            is_certain: true,
        }
    }

    /// Of the next record of a volume, which is found by its copy alone.
    pub(super) fn of_copy(&mut self, volume: &Volume) -> Instant {
        let before = volume.dirty.back();
        // Never so in a log that is whole; believed, it would take a later write for an older one.
        self.is_certain &= before.is_none_or(|record| record.moved);
        self.first
    }

    /// Of the next record of a volume, which is where it was written.
    pub(super) fn of_record(&mut self, volume: &Volume, seq: Seq, pages: PageRange) -> Instant {
        let id = volume.state.id;
        let is_next = self.last.is_none_or(|last| last == id);
        if !(is_next && goes_on(volume, seq, pages)) {
            self.newest = self.newest + TICK;
        }
        self.last = Some(id);
        self.newest
    }

    /// Something of the log is not there.
    pub(super) fn not_certain(&mut self) {
        self.is_certain = false;
    }

    /// To be called once all is replayed.
    pub(super) fn settle(self, log: &mut Log) {
        if self.is_certain {
            log.begin_at(self.newest);
            return;
        }
        log.begin_at(self.first);
        let volumes = log.volumes.values_mut();
        let records = volumes.flat_map(|volume| volume.dirty.iter_mut());
        records.for_each(|record| record.since = self.first);
    }
}

/// Whether it may be of one write with the last unpublished record of its volume. Not behind the cut of a fork: that
/// must be the end of a moment, or nothing of it could be published before all of it, which is not published before the fork.
fn goes_on(volume: &Volume, seq: Seq, pages: PageRange) -> bool {
    let Some(before) = volume.dirty.back() else {
        return false;
    };
    let mut forks = volume.state.forks.iter();
    before.seq.next() == seq
        && before.what.pages().end == pages.start
        && !forks.any(|fork| fork.cut == before.seq)
}
