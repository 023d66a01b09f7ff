//! Moved records at a start: back to their places in the order of their volumes.

use std::collections::BTreeMap;

use super::{Moments, Place};
use crate::chunk::Batch;
use crate::log::{ChunkNo, Log};
use crate::record::{Record, Stamp};
use crate::{Id, Seq};

/// Records that were moved, by their place in the order of their volumes.
#[derive(Debug, Default)]
pub(super) struct Moved(BTreeMap<(Id, Seq), (Place, u32, Record)>);

impl Moved {
    pub(super) fn learn(&mut self, no: ChunkNo, batches: &[Batch]) {
        for batch in batches {
            for (page, record) in batch.placed() {
                let Record::Moved(record) = record else {
                    continue;
                };
                let place = Place {
                    no,
                    lsn: batch.lsn,
                    moved: true,
                };
                if let Some(stamp) = record.stamp() {
                    // Moved twice: the later copy outlives the other.
                    let known = (place, page, Record::clone(record));
                    self.0.insert((stamp.volume, stamp.seq), known);
                }
            }
        }
    }

    /// Those of the volume that come before this record, which is still where it was itself.
    pub(super) fn replay_before(&mut self, log: &mut Log, moments: &mut Moments, next: Stamp) {
        let range = (next.volume, Seq(0))..(next.volume, next.seq);
        while let Some((&key, _)) = self.0.range(range.clone()).next() {
            let known = self.0.remove(&key).expect("just seen");
            replay_moved(log, moments, &known);
        }
        self.0.remove(&(next.volume, next.seq));
    }

    pub(super) fn replay_rest(self, log: &mut Log, moments: &mut Moments) {
        let rest = self.0.values();
        rest.for_each(|known| replay_moved(log, moments, known));
    }
}

/// Counts only while it is unpublished: what is newer may lie before it.
fn replay_moved(
    log: &mut Log,
    moments: &mut Moments,
    (place, page, record): &(Place, u32, Record),
) {
    let unpublished = record.stamp().is_some_and(|stamp| {
        let volume = log.volumes.get(&stamp.volume);
        volume.is_some_and(|volume| stamp.seq > volume.state.published)
    });
    if unpublished {
        place.replay(log, moments, *page, record);
    }
}
