//! What of a log counts at start. The choice of chunks is pure; the replay reads them in order.
//!
//! 1. The newest write-chunk header tells the oldest ordinal that counts (`oldest_live`).
//! 2. Between the two every ordinal must be there. Where one is missing, clean records up to it are
//!    dropped, since a newer one of the same page may have been in it (rule 1); unpublished records
//!    that are missing are damage, told by name.
//! 3. Chunks are replayed in order. A chunk without a footer is scanned batch by batch; the first
//!    hole in the batch numbers is the torn tail, and nothing behind it counts (rules 3, 4), unless
//!    something proves that it had been durable: then it is damage too.

use world::{Instant, World};

use crate::cache::{Reader, is_fill, recovered};
use crate::chunk::{Batch, ChunkHeader, FooterBuilder};
use crate::index::Overlay;
use crate::log::{ChunkNo, Dirty, FillAt, Log, Volume, Written};
use crate::record::{Record, Stamp};
use crate::{CacheError, Id, PageRange, Seq};

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
    /// The highest missing ordinal that should count.
    pub(crate) missing: Option<u64>,
    pub(crate) next_ordinal: u64,
    pub(crate) next_fill_ordinal: u64,
    pub(crate) newest_process: Id,
}

/// Decides from headers alone.
pub(crate) fn plan(scans: Vec<ChunkScan>) -> Plan {
    let all = scans
        .into_iter()
        .filter_map(|scan| Some((scan.no, scan.header?)));
    let (mut fills, mut writes): (Vec<_>, Vec<_>) = all.partition(|(_, header)| is_fill(header));
    fills.sort_by_key(|(_, header)| header.ordinal);
    writes.sort_by_key(|(_, header)| header.ordinal);
    let next_fill_ordinal = fills.last().map_or(1, |(_, header)| header.ordinal + 1);
    let Some((_, newest)) = writes.last().copied() else {
        return Plan {
            fills,
            next_ordinal: 1,
            next_fill_ordinal,
            ..Plan::default()
        };
    };
    writes.retain(|(_, header)| header.ordinal >= newest.oldest_live);
    let present: Vec<u64> = writes.iter().map(|(_, header)| header.ordinal).collect();
    let missing = (newest.oldest_live..newest.ordinal)
        .rev()
        .find(|n| present.binary_search(n).is_err());
    Plan {
        writes,
        fills,
        missing,
        next_ordinal: newest.ordinal + 1,
        next_fill_ordinal,
        newest_process: newest.process,
    }
}

/// What the replay found besides the index.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) accepted_lsn: u64,
    /// Chunks that get their footer now.
    pub(crate) unsealed: Vec<(ChunkNo, FooterBuilder)>,
    /// The last chunks, without anything that counts: they keep their ordinals and get a new life,
    /// so that the ordinals stay dense and what was torn in them stays dead (rule 4).
    pub(crate) unused: Vec<(ChunkNo, u64)>,
}

/// A chunk that counts.
struct Accepted {
    no: ChunkNo,
    header: ChunkHeader,
    /// Of a chunk without a footer, what the scan found; the others are read again.
    scanned: Option<Vec<Batch>>,
}

/// Replays the chunks of a plan into an empty log: first what is known of the volumes, whose newest
/// record may stand behind the writes that it is about, then the writes.
pub(crate) async fn replay<W: World>(
    log: &mut Log,
    plan: &Plan,
    reader: &Reader<'_, W>,
    now: Instant,
) -> Result<Outcome, CacheError> {
    let mut outcome = Outcome::default();
    let mut tail = Tail::default();
    let mut accepted: Vec<Accepted> = Vec::new();
    for (no, header) in &plan.writes {
        outcome.accepted_lsn = outcome.accepted_lsn.max(header.accepted_lsn);
        tail.durable = tail.durable.max(header.accepted_lsn);
        let (batches, footer) = match reader.footer(*no, header.life).await? {
            // Written only after its records, and all before them, were durable.
            Some(batches) => {
                tail.durable = tail
                    .durable
                    .max(batches.last().map_or(0, |batch| batch.lsn));
                (batches, None)
            }
            None => {
                let scanned = reader.scan(*no, header.life, tail.expected).await?;
                tail.durable = tail.durable.max(scanned.durable_lsn);
                (scanned.batches, Some(scanned.footer))
            }
        };
        if !tail.accepts(&batches, footer.is_some()) {
            outcome.unused.push((*no, header.ordinal));
            continue;
        }
        // Empty ones that something follows stay in the order, as sealed chunks without records.
        for (empty, ordinal) in std::mem::take(&mut outcome.unused) {
            let kept = plan
                .writes
                .iter()
                .find(|(_, header)| header.ordinal == ordinal);
            let (_, header) = *kept.expect("it came from the plan");
            accepted.push(Accepted {
                no: empty,
                header,
                scanned: Some(Vec::new()),
            });
            outcome.unsealed.push((empty, FooterBuilder::default()));
        }
        outcome.accepted_lsn = outcome.accepted_lsn.max(tail.expected.unwrap_or(1) - 1);
        learn_states(log, *no, &batches);
        let scanned = footer.is_some().then_some(batches);
        accepted.push(Accepted {
            no: *no,
            header: *header,
            scanned,
        });
        outcome.unsealed.extend(footer.map(|footer| (*no, footer)));
    }
    accepted.extend(plan.fills.iter().map(|(no, header)| Accepted {
        no: *no,
        header: *header,
        scanned: None,
    }));
    for chunk in accepted {
        let batches = match chunk.scanned {
            Some(batches) => Some(batches),
            None => reader.footer(chunk.no, chunk.header.life).await?,
        };
        if let Some(batches) = batches {
            install(log, chunk.no, &chunk.header, &batches, now);
        }
    }
    finish(log, plan, tail.is_damaged());
    Ok(outcome)
}

/// The newest state record of each volume counts.
fn learn_states(log: &mut Log, no: ChunkNo, batches: &[Batch]) {
    for batch in batches {
        for (_, record) in batch.placed() {
            let Record::State(state) = record else {
                continue;
            };
            let volume = log
                .volumes
                .entry(state.id)
                .or_insert_with(|| Volume::new(state.clone()));
            volume.state = state.clone();
            volume.last = state.published;
            (volume.state_lsn, volume.state_chunk) = (batch.lsn, no);
            volume.last_lsn = batch.lsn;
            log.last_state_lsn = batch.lsn;
        }
    }
}

/// Follows the batch numbers through the chunks.
#[derive(Debug, Default)]
struct Tail {
    /// The next batch number; none before the first batch.
    expected: Option<u64>,
    /// The highest batch that is known to have been durable once.
    durable: u64,
    /// The first batch number that is missing although later ones are there.
    hole: Option<u64>,
}

impl Tail {
    /// Whether the batches of the next chunk count.
    fn accepts(&mut self, batches: &[Batch], unsealed: bool) -> bool {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return false;
        };
        if self.expected.is_some_and(|expected| first.lsn > expected) && self.hole.is_none() {
            self.hole = self.expected;
        }
        if self.hole.is_some() && unsealed {
            // Behind a hole only what a footer vouches for counts.
            return false;
        }
        self.expected = Some(last.lsn + 1);
        true
    }

    /// Something that was durable is not there any more: no torn tail does that.
    fn is_damaged(&self) -> bool {
        let hole = self.hole.or(self.expected);
        hole.is_some_and(|hole| hole <= self.durable)
    }
}

/// Puts the records of one chunk into the log, in their order.
fn install(log: &mut Log, no: ChunkNo, header: &ChunkHeader, batches: &[Batch], now: Instant) {
    let written = batches.last().map_or(1, |batch| batch.page + batch.pages());
    *log.chunk_mut(no) = recovered(header, header.ordinal, written);
    for batch in batches {
        for (page, record) in batch.placed() {
            Place {
                no,
                lsn: batch.lsn,
                now,
            }
            .replay(log, page, record);
        }
    }
}

/// Where and when a replayed record stands.
#[derive(Clone, Copy)]
struct Place {
    no: ChunkNo,
    lsn: u64,
    now: Instant,
}

impl Place {
    fn replay(self, log: &mut Log, page: u32, record: &Record) {
        let at = log.position(self.no, page);
        let (stamp, what) = match record {
            Record::State(_) => return,
            Record::Fill { key, crcs } => {
                log.chunk_mut(self.no).set_crcs(page, crcs);
                let pages = u32::try_from(crcs.len()).expect("bounded by the parser");
                log.fills.insert(*key, FillAt { at, pages });
                return;
            }
            Record::Write { stamp, start, crcs } => {
                log.chunk_mut(self.no).set_crcs(page, crcs);
                let pages = PageRange::new(start.0, start.0 + crcs.len() as u64);
                (stamp, Written::Pages { pages, at })
            }
            Record::Partial {
                stamp,
                page: of,
                mask,
                crc,
            } => {
                log.chunk_mut(self.no).set_crcs(page, &[*crc]);
                (
                    stamp,
                    Written::Sectors {
                        page: *of,
                        overlay: Overlay { at, mask: *mask },
                    },
                )
            }
            Record::Zero { stamp, pages } => (stamp, Written::Zeros { pages: *pages }),
        };
        self.replay_write(log, *stamp, what);
    }

    fn replay_write(self, log: &mut Log, stamp: Stamp, what: Written) {
        // Without a state record the volume was dropped from the log's knowledge.
        let Some(volume) = log.volumes.get_mut(&stamp.volume) else {
            return;
        };
        if self.lsn < volume.state.valid_lsn {
            return;
        }
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
        let (chunk, since) = (self.no, self.now);
        volume.dirty.push_back(Dirty {
            seq: stamp.seq,
            what,
            chunk,
            log_bytes,
            since,
        });
        volume.dirty_bytes += u64::from(log_bytes);
        log.dirty_bytes += u64::from(log_bytes);
        log.chunk_mut(chunk).dirty += 1;
    }
}

/// Draws the consequences of what is missing.
fn finish(log: &mut Log, plan: &Plan, damaged: bool) {
    if damaged || plan.missing.is_some() {
        tracing::error!(
            missing_chunk = plan.missing,
            damaged,
            "the cache log is damaged: cached data that the store also holds is dropped"
        );
    }
    let drop_clean = damaged || plan.missing.is_some();
    let ids: Vec<Id> = log.volumes.keys().copied().collect();
    for id in ids {
        let volume = log.volumes.get_mut(&id).expect("just listed");
        let unpublished = volume.last > volume.state.published;
        let open = volume.state.attached;
        if drop_clean && !unpublished {
            if open && damaged {
                volume.damage =
                    Some("durable records at the end of the log are missing".to_owned());
            }
            clear_clean(volume);
        } else if drop_clean {
            clear_clean(volume);
            if damaged && volume.damage.is_none() {
                volume.damage = Some("durable records of the log are missing".to_owned());
            }
        }
    }
}

/// Forgets clean pages: rebuilds the index from the dirty records alone.
fn clear_clean(volume: &mut Volume) {
    volume.index = crate::index::VolumeIndex::default();
    let dirty: Vec<(Written, Seq)> = volume.dirty.iter().map(|d| (d.what, d.seq)).collect();
    dirty
        .into_iter()
        .for_each(|(what, seq)| volume.apply(what, seq));
}
