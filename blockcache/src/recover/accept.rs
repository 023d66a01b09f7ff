//! Which chunks and batches count, one chunk after the other; then their records, in order.

use std::collections::BTreeMap;

use world::World;

use super::moved::Moved;
use super::{Known, Moments, Outcome, Place, Plan};
use crate::cache::{Reader, recovered};
use crate::chunk::{Batch, ChunkHeader, FooterBuilder};
use crate::log::{ChunkNo, Log, Volume};
use crate::record::{Record, VolumeState};
use crate::{CacheError, Epoch, Id, Seq};

/// A chunk that counts.
struct Accepted {
    no: ChunkNo,
    header: ChunkHeader,
    /// Of a chunk without a footer, what the scan found; the others are read again.
    scanned: Option<Vec<Batch>>,
}

/// What was accepted so far.
pub(super) struct Accepting<'a> {
    plan: &'a Plan,
    accepted: Vec<Accepted>,
    outcome: Outcome,
    pub(super) tail: Tail,
    moved: Moved,
    /// Whose writes were met, and in what epoch.
    writers: BTreeMap<Id, Epoch>,
    /// The ordinal of the last chunk that was offered.
    before: u64,
}

/// What lies before a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Chunk,
    /// A chunk that is lost takes its batches with it: what follows is no torn tail.
    Gap,
}

/// Where the list of batches comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Footer,
    Scan,
}

impl<'a> Accepting<'a> {
    pub(super) fn new(plan: &'a Plan, known: Known) -> Self {
        let tail = Tail {
            durable: known.answered_lsn,
            ..Tail::default()
        };
        Self {
            plan,
            accepted: Vec::new(),
            outcome: Outcome::default(),
            tail,
            moved: Moved::default(),
            writers: BTreeMap::new(),
            before: plan.live_from.saturating_sub(1),
        }
    }

    pub(super) fn last_ordinal(&self) -> u64 {
        self.accepted.last().map_or(0, |chunk| chunk.header.ordinal)
    }

    /// The next write chunk of the plan.
    pub(super) async fn offer<W: World>(
        &mut self,
        log: &mut Log,
        reader: &Reader<'_, W>,
        no: ChunkNo,
        header: ChunkHeader,
    ) -> Result<(), CacheError> {
        let accepted_lsn = self.outcome.accepted_lsn.max(header.accepted_lsn);
        self.outcome.accepted_lsn = accepted_lsn;
        self.tail.durable = self.tail.durable.max(header.accepted_lsn);
        let before = if header.ordinal > self.before + 1 {
            Before::Gap
        } else {
            Before::Chunk
        };
        self.before = header.ordinal;
        let (batches, footer) = match reader.footer(no, header.life).await? {
            // Written only after its records, and all before them, were durable.
            Some(batches) => {
                let last = batches.last().map_or(0, |batch| batch.lsn);
                self.tail.durable = self.tail.durable.max(last);
                (batches, None)
            }
            None => {
                let expected = self.tail.expected.filter(|_lsn| before == Before::Chunk);
                let scanned = reader.scan(no, header.life, expected).await?;
                self.tail.durable = self.tail.durable.max(scanned.durable_lsn);
                (scanned.batches, Some(scanned.footer))
            }
        };
        let source = footer.as_ref().map_or(Source::Footer, |_| Source::Scan);
        if !self.tail.accepts(&batches, source, before) {
            self.outcome.unused.push((no, header.ordinal));
            return Ok(());
        }
        self.keep_unused();
        let so_far = self.tail.expected.unwrap_or(1) - 1;
        self.outcome.accepted_lsn = self.outcome.accepted_lsn.max(so_far);
        learn_states(log, no, &batches);
        self.moved.learn(no, &batches);
        let records = batches.iter().flat_map(|batch| &batch.records);
        let stamps = records.filter_map(Record::stamp);
        self.writers
            .extend(stamps.map(|stamp| (stamp.volume, stamp.epoch)));
        self.accepted.push(Accepted {
            no,
            header,
            scanned: footer.is_some().then_some(batches),
        });
        let unsealed = footer.map(|footer| (no, footer));
        self.outcome.unsealed.extend(unsealed);
        Ok(())
    }

    /// Empty ones that something follows stay in the order, as sealed chunks without records.
    fn keep_unused(&mut self) {
        for (empty, ordinal) in std::mem::take(&mut self.outcome.unused) {
            let mut writes = self.plan.writes.iter();
            let kept = writes.find(|(_, header)| header.ordinal == ordinal);
            let (_, header) = *kept.expect("it came from the plan");
            self.accepted.push(Accepted {
                no: empty,
                header,
                scanned: Some(Vec::new()),
            });
            let footer = FooterBuilder::default();
            self.outcome.unsealed.push((empty, footer));
        }
    }

    /// Volumes whose writes are here and of which nothing else is known: what was known went with a lost
    /// chunk. They are kept under their ids, damaged, until somebody accepts the loss.
    pub(super) fn adopt_nameless(&self, log: &mut Log) {
        for (&id, &epoch) in &self.writers {
            if log.volumes.contains_key(&id) {
                continue;
            }
            let state = VolumeState {
                id,
                name: id.to_string(),
                size_bytes: 0,
                epoch,
                nonce: Id::default(),
                published: Seq(0),
                last: Seq(0),
                valid_lsn: 0,
                attached: false,
                damaged: false,
                intents: Vec::new(),
                losses: Vec::new(),
                forks: Vec::new(),
                base: None,
            };
            let mut volume = Volume::new(state);
            volume.damage = Some("what was known of the volume is not readable".to_owned());
            log.volumes.insert(id, volume);
        }
    }

    /// Puts the records of everything accepted into the log, and the frames.
    pub(super) async fn install<W: World>(
        mut self,
        log: &mut Log,
        reader: &Reader<'_, W>,
        moments: &mut Moments,
    ) -> Result<Outcome, CacheError> {
        // All chunks before the first record: a moved one counts before its chunk's turn.
        for chunk in &self.accepted {
            *log.chunk_mut(chunk.no) = recovered(&chunk.header, chunk.header.ordinal, 1);
        }
        for chunk in self.accepted {
            let batches = match chunk.scanned {
                Some(batches) => batches,
                None => match reader.footer(chunk.no, chunk.header.life).await? {
                    Some(batches) => batches,
                    // It was readable a moment ago.
                    None => {
                        let scanned = reader.scan(chunk.no, chunk.header.life, None).await?;
                        scanned.batches
                    }
                },
            };
            install(
                log,
                moments,
                &mut self.moved,
                (chunk.no, batches.as_slice()),
            );
        }
        self.moved.replay_rest(log, moments);
        for (no, header) in &self.plan.fills {
            // Without a footer it is empty space: frames are fetched again.
            if let Some(batches) = reader.footer(*no, header.life).await? {
                *log.chunk_mut(*no) = recovered(header, header.ordinal, 1);
                install(
                    log,
                    moments,
                    &mut Moved::default(),
                    (*no, batches.as_slice()),
                );
            }
        }
        Ok(self.outcome)
    }
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
            volume.noted = state.published;
            (volume.state_lsn, volume.state_chunk) = (batch.lsn, no);
            volume.last_lsn = batch.lsn;
            log.last_kept_lsn = batch.lsn;
        }
    }
}

/// Follows the batch numbers through the chunks.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The next batch number; none before the first batch.
    expected: Option<u64>,
    /// The highest batch that is known to have been durable once.
    durable: u64,
    /// The first batch number that is missing although later ones are there.
    hole: Option<u64>,
    /// The first batch behind the last chunk that is lost.
    pub(super) resumed_at: Option<u64>,
}

impl Tail {
    /// Whether the batches of the next chunk count.
    fn accepts(&mut self, batches: &[Batch], source: Source, before: Before) -> bool {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return false;
        };
        let jumps = self.expected.is_some_and(|expected| first.lsn > expected);
        if jumps && before == Before::Chunk && self.hole.is_none() {
            self.hole = self.expected;
        }
        if self.hole.is_some() && source == Source::Scan {
            // Behind a hole only what a footer vouches for counts.
            return false;
        }
        if before == Before::Gap {
            self.resumed_at = Some(first.lsn);
        }
        self.expected = Some(last.lsn + 1);
        true
    }

    /// Something that was durable is not there any more: no torn tail does that.
    pub(super) fn is_damaged(&self) -> bool {
        let hole = self.hole.or(self.expected);
        hole.is_some_and(|hole| hole <= self.durable)
    }
}

/// Puts the records of one chunk into the log, in their order.
pub(super) fn install(
    log: &mut Log,
    moments: &mut Moments,
    moved: &mut Moved,
    (no, batches): (ChunkNo, &[Batch]),
) {
    if let Some(last) = batches.last() {
        log.chunk_mut(no).written = last.page + last.pages();
    }
    for batch in batches {
        for (page, record) in batch.placed() {
            log.chunk_mut(no).set_crcs(page, record.crcs());
            let place = Place {
                no,
                lsn: batch.lsn,
                moved: false,
            };
            if let Some(stamp) = record.stamp()
                && place.counts(log, stamp)
            {
                moved.replay_before(log, moments, stamp);
            }
            place.replay(log, moments, page, record);
        }
    }
}
