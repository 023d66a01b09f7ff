//! What of a log counts at start. The choice of chunks is pure; the replay reads them in order.
//!
//! 1. The superblock tells the oldest ordinal that counts, durable before an older one is overwritten.
//! 2. From there on every ordinal whose header was durable once must be there. Where one is missing,
//!    clean records are dropped, since a newer one of the same page may have been in it (rule 1); who
//!    may have lost unpublished records is damaged, and told so by name.
//! 3. Chunks are replayed in order. A chunk without a footer is scanned batch by batch; the first
//!    hole in the batch numbers is the torn tail, and nothing behind it counts (rules 3, 4), unless
//!    something proves that it had been durable: then it is damage too.

use world::{Instant, World};

use crate::cache::{Reader, is_fill};
use crate::chunk::{ChunkHeader, FooterBuilder};
use crate::index::Overlay;
use crate::log::{ChunkNo, Dirty, FillAt, Log, Volume, Written};
use crate::record::{Record, Stamp};
use crate::{CacheError, Id, PageRange};

mod accept;
mod moments;
mod moved;

use accept::Accepting;
use moments::Moments;

/// One chunk as its header tells.
#[derive(Clone, Debug)]
pub(crate) struct ChunkScan {
    pub(crate) no: ChunkNo,
    /// None: free, torn or unreadable.
    pub(crate) header: Option<ChunkHeader>,
}

/// Which chunks count, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<(ChunkNo, ChunkHeader)>,
    pub(crate) fills: Vec<(ChunkNo, ChunkHeader)>,
    /// Between this ordinal and...
    pub(crate) live_from: u64,
    /// ...this one all must be there.
    pub(crate) durable_ordinal: u64,
    pub(crate) newest_ordinal: u64,
    pub(crate) next_fill_ordinal: u64,
    pub(crate) newest_process: Id,
}

/// Decides from headers, and what the superblock says of chunks that are gone, alone.
pub(crate) fn plan(scans: Vec<ChunkScan>, oldest_live: u64) -> Plan {
    let all = scans
        .into_iter()
        .filter_map(|scan| Some((scan.no, scan.header?)));
    let (mut fills, mut writes): (Vec<_>, Vec<_>) = all.partition(|(_, header)| is_fill(header));
    fills.sort_by_key(|(_, header)| header.ordinal);
    writes.sort_by_key(|(_, header)| header.ordinal);
    let next_fill_ordinal = fills.last().map_or(1, |(_, header)| header.ordinal + 1);
    let headers = || writes.iter().chain(&fills).map(|(_, header)| header);
    let durable_ordinal = headers().map(|header| header.durable_ordinal).max();
    let Some((_, newest)) = writes.last().copied() else {
        return Plan {
            durable_ordinal: durable_ordinal.unwrap_or(0),
            live_from: oldest_live,
            fills,
            newest_ordinal: 0,
            next_fill_ordinal,
            ..Plan::default()
        };
    };
    let live_from = oldest_live.max(newest.oldest_live);
    writes.retain(|(_, header)| header.ordinal >= live_from);
    Plan {
        writes,
        fills,
        live_from,
        durable_ordinal: durable_ordinal.unwrap_or(0),
        newest_ordinal: newest.ordinal,
        next_fill_ordinal,
        newest_process: newest.process,
    }
}

impl Plan {
    /// The highest ordinal that should be there and is not, if all up to `last` were in use.
    fn missing(&self, last: u64) -> Option<u64> {
        let present: Vec<u64> = self.writes.iter().map(|(_, h)| h.ordinal).collect();
        (self.live_from..=last.max(self.durable_ordinal))
            .rev()
            .find(|ordinal| present.binary_search(ordinal).is_err())
    }
}

/// What the superblock knows of the end of the last run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Batches up to here were answered when the log stopped; 0 if it did not.
    pub(crate) answered_lsn: u64,
    /// An earlier start found damage and did not come to note it.
    pub(crate) damaged: bool,
}

/// What the replay found besides the index.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) accepted_lsn: u64,
    /// Chunks that get their footer now.
    pub(crate) unsealed: Vec<(ChunkNo, FooterBuilder)>,
    /// The last chunks, without anything that counts: they get a new life before anything else, so
    /// that what was torn in them stays dead (rule 4).
    pub(crate) unused: Vec<(ChunkNo, u64)>,
    /// After the last chunk that counts: the ordinals stay dense.
    pub(crate) next_ordinal: u64,
    /// Something that was durable is not there.
    pub(crate) damaged: bool,
}

/// Replays the chunks of a plan into an empty log: first what is known of the volumes, whose newest
/// record may stand behind the writes that it is about, then the writes.
pub(crate) async fn replay<W: World>(
    log: &mut Log,
    plan: &Plan,
    reader: &Reader<'_, W>,
    known: Known,
    now: Instant,
) -> Result<Outcome, CacheError> {
    let mut accepting = Accepting::new(plan, known);
    for (no, header) in &plan.writes {
        accepting.offer(log, reader, *no, *header).await?;
    }
    let last = accepting.last_ordinal();
    let missing = plan.missing(last);
    let lost = Lost {
        tail: accepting.tail.is_damaged() || known.damaged,
        // With nothing behind it nobody is known to be unharmed.
        chunk: missing.map(|ordinal| {
            let behind = accepting.tail.resumed_at.filter(|_lsn| ordinal < last);
            (ordinal, behind.unwrap_or(u64::MAX))
        }),
    };
    if missing.is_some() {
        accepting.adopt_nameless(log);
    }
    let mut moments = Moments::new(now);
    let mut outcome = accepting.install(log, reader, &mut moments).await?;
    outcome.next_ordinal = plan.live_from.max(last.max(missing.unwrap_or(0)) + 1);
    outcome.damaged = finish(log, moments, lost);
    Ok(outcome)
}

/// Where and when a replayed record stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    no: ChunkNo,
    lsn: u64,
    /// Not where the record was written at first.
    moved: bool,
}

impl Place {
    fn replay(self, log: &mut Log, moments: &mut Moments, page: u32, record: &Record) {
        let at = log.position(self.no, page);
        let (stamp, what) = match record {
            Record::State(_) | Record::Moved(_) => return,
            Record::Fill { key, crcs } => {
                let pages = u32::try_from(crcs.len()).expect("bounded by the parser");
                log.fills.insert(*key, FillAt { at, pages });
                return;
            }
            Record::Write { stamp, start, crcs } => {
                let pages = PageRange::new(start.0, start.0 + crcs.len() as u64);
                (stamp, Written::Pages { pages, at })
            }
            Record::Partial {
                stamp,
                page: of,
                mask,
                ..
            } => (
                stamp,
                Written::Sectors {
                    page: *of,
                    overlay: Overlay { at, mask: *mask },
                },
            ),
            Record::Zero { stamp, pages } => (stamp, Written::Zeros { pages: *pages }),
        };
        self.replay_write(log, moments, *stamp, what);
    }

    /// Without a state record the volume was dropped from the log's knowledge.
    fn counts(self, log: &Log, stamp: Stamp) -> bool {
        let volume = log.volumes.get(&stamp.volume);
        volume.is_some_and(|volume| volume.state.counts(self.lsn, stamp.seq))
    }

    fn replay_write(self, log: &mut Log, moments: &mut Moments, stamp: Stamp, what: Written) {
        if !self.counts(log, stamp) {
            return;
        }
        let volume = log.volumes.get_mut(&stamp.volume).expect("it counts");
        volume.apply(what, stamp.seq);
        volume.last_lsn = volume.last_lsn.max(self.lsn);
        volume.last = volume.last.max(stamp.seq);
        let published = volume.state.published;
        if stamp.seq <= published {
            return;
        }
        let expected = volume
            .dirty
            .back()
            .map_or(published, |record| record.seq)
            .next();
        if stamp.seq != expected {
            let last_missing = stamp.seq.0.saturating_sub(1);
            volume.damage = Some(format!("writes {expected} to {last_missing} are missing"));
        }
        let log_bytes = match what {
            Written::Pages { pages, .. } => u32::try_from(pages.bytes()).expect("one record"),
            Written::Sectors { .. } => crate::record::PAGE_U32,
            Written::Zeros { .. } => crate::record::PAGE_U32,
        };
        let chunk = self.no;
        let since = match self.moved {
            true => moments.of_copy(volume),
            false => moments.of_record(volume, stamp.seq, what.pages()),
        };
        volume.dirty.push_back(Dirty {
            seq: stamp.seq,
            what,
            chunk,
            log_bytes,
            since,
            moved: self.moved,
        });
        volume.dirty_bytes += u64::from(log_bytes);
        log.dirty_bytes += u64::from(log_bytes);
        log.chunk_mut(chunk).dirty += 1;
    }
}

/// What is not there any more although it was durable once.
#[derive(Clone, Copy, Debug)]
struct Lost {
    /// Batches at the end of the log.
    tail: bool,
    /// A chunk, by its ordinal; and the first batch behind it.
    chunk: Option<(u64, u64)>,
}

/// Draws the consequences of what is missing. True if a volume is damaged by it.
fn finish(log: &mut Log, mut moments: Moments, lost: Lost) -> bool {
    let drop_clean = lost.tail || lost.chunk.is_some();
    if drop_clean {
        moments.not_certain();
    }
    moments.settle(log);
    if drop_clean {
        tracing::error!(
            ?lost,
            "the cache log is damaged: cached data that the store also holds is dropped; replace the disk of `cache.dir` if it says so again (docs/runbooks/fsync-failed.md)"
        );
    }
    for volume in log.volumes.values_mut() {
        if volume.damage.is_none() {
            volume.damage = damage(volume, lost);
        }
    }
    log.spread_damage();
    let mut damaged = false;
    for volume in log.volumes.values_mut() {
        if drop_clean || volume.damage.is_some() {
            // Without what lies behind a hole: what is left of a damaged volume reads as one cut.
            let kept = volume.kept();
            volume.rebuild_index(kept);
        }
        damaged |= volume.damage.is_some() && !volume.state.damaged;
    }
    damaged
}

/// Why unpublished records of a volume may be missing, beyond a gap between those that are there.
fn damage(volume: &Volume, lost: Lost) -> Option<String> {
    let state = &volume.state;
    if state.damaged {
        return Some("an earlier start found unpublished writes missing".to_owned());
    }
    if volume.last < state.last {
        let (from, to) = (volume.last.next(), state.last);
        return Some(format!("writes {from} to {to} are missing"));
    }
    let concerned = state.attached || volume.last > state.published;
    if concerned && lost.tail {
        return Some("durable records at the end of the log are missing".to_owned());
    }
    // A record behind the lost chunk says how many writes there were before it.
    let silent_since = |(_, resumed_at)| volume.last_lsn < resumed_at;
    if concerned && lost.chunk.is_some_and(silent_since) {
        return Some("a part of the log is not readable, and it may have held writes".to_owned());
    }
    None
}

#[cfg(test)]
mod tests;
