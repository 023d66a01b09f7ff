//! Keeping a volume in the store in order, beside whatever else it does: the map short, and space given back.
//!
//! Each pass is worth its requests: nothing is listed or moved for less than what is set here, and an idle volume
//! asks for nothing.

use std::time::Duration;

use world::World;

use super::collect::{Collected, Deletes};
use super::compact::Patience;
use super::flatten::Flattened;
use super::ledger::Totals;
use super::repack::Repacked;
use super::runs::LEVEL_RUNS_MAX;
use super::{Volume, VolumeError};

/// From when on it is worth doing something. Shares are of the bytes that are live: a share of 8 is an eighth.
///
/// What is stored over what is live is at most 1 + 1/`waste_share` + 1/`upper_share` + 1/`dead_share`, and the
/// tail, between passes that keep up. Less waste costs more moves (docs/space.md).
#[derive(Clone, Copy, Debug)]
pub struct Tidy {
    /// Segments that are partly dead are repacked from this waste on, and from this many bytes.
    pub waste_share: u64,
    pub waste_bytes: u64,
    /// Segments that the root names one by one, from which they are folded into a run of the map.
    pub tail_segments: usize,
    /// All runs of the map are merged if those above the oldest have this share of its entries, and so many:
    /// what they hide is not counted before.
    pub upper_share: u64,
    pub upper_entries: u64,
    /// Dead objects are deleted from this share on that is new since the last round, and from so many bytes; or from
    /// so many objects.
    pub dead_share: u64,
    pub dead_bytes: u64,
    pub dead_objects: u64,
    /// After a round that a pin held up.
    pub blocked_wait: Duration,
    /// A pin whose child does not come is taken for that of a process that died. Nothing depends on it but that
    /// process, whose fork then fails.
    pub childless_wait: Duration,
    /// A volume that is made of parts of more other volumes than this copies the smallest parts, until it is half as
    /// many: each of them is kept from being deleted, and costs a fork a request.
    pub chain_max: usize,
}

impl Default for Tidy {
    fn default() -> Self {
        Self {
            waste_share: 8,
            waste_bytes: 16 << 20,
            tail_segments: 32,
            upper_share: 16,
            upper_entries: 4 << 10,
            dead_share: 32,
            dead_bytes: 16 << 20,
            dead_objects: 512,
            blocked_wait: Duration::from_secs(600),
            childless_wait: Duration::from_secs(3600),
            chain_max: 8,
        }
    }
}

impl Tidy {
    /// Whatever can be gained, for an operator who asks for it.
    pub fn thorough(self) -> Self {
        Self {
            waste_share: self.waste_share.max(20),
            waste_bytes: 0,
            tail_segments: 1,
            upper_share: u64::MAX,
            upper_entries: 0,
            dead_share: u64::MAX,
            dead_bytes: 0,
            dead_objects: 0,
            blocked_wait: Duration::ZERO,
            ..self
        }
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            tail_segments: self.tail_segments,
            upper_entries: self.upper_entries,
            upper_share: self.upper_share,
            level_runs: LEVEL_RUNS_MAX,
            ..Patience::USUAL
        }
    }

    pub(crate) fn is_wasteful(&self, totals: &Totals) -> bool {
        self.is_waste(totals.waste_bytes(), totals)
    }

    /// So many bytes of waste are worth a pass.
    pub(crate) fn is_waste(&self, waste_bytes: u64, totals: &Totals) -> bool {
        waste_bytes > self.waste_bytes.max(totals.live_bytes / self.waste_share)
    }

    /// `before`: what was dead after the last round, and stayed.
    pub(crate) fn is_worth_a_round(&self, totals: &Totals, before: &Totals) -> bool {
        let bytes = totals.dead_bytes.saturating_sub(before.dead_bytes);
        let objects = totals.dead_objects.saturating_sub(before.dead_objects);
        let bytes_min = self.dead_bytes.max(totals.live_bytes / self.dead_share);
        objects > 0 && (bytes > bytes_min || objects > self.dead_objects)
    }
}

/// What one pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    pub repacked: Repacked,
    pub flattened: Flattened,
    pub collected: Collected,
}

impl<W: World> Volume<W> {
    /// One pass over everything that is worth it. To be called after each publish, in a task of its own; a later
    /// publish carries what it did to the map. Does nothing while another call does.
    pub async fn tidy(&self, tidy: &Tidy) -> Result<Tidied, VolumeError> {
        match self.inner.tidying.try_acquire() {
            Ok(_turn) => Box::pin(self.pass(tidy)).await,
            Err(_busy) => Ok(Tidied::default()),
        }
    }

    /// The same, once no other call is under way.
    pub async fn tidy_in_turn(&self, tidy: &Tidy) -> Result<Tidied, VolumeError> {
        let turn = self.inner.tidying.acquire().await;
        let _turn = turn.expect("nobody closes the semaphore");
        Box::pin(self.pass(tidy)).await
    }

    /// What cannot be repacked, for an object is damaged, does not keep the rest from being collected.
    async fn pass(&self, tidy: &Tidy) -> Result<Tidied, VolumeError> {
        let repacked = Box::pin(self.rewrite(tidy)).await;
        let collected = if self.is_worth_a_round(tidy) {
            Box::pin(self.collect(tidy, Deletes::Really)).await?
        } else {
            Collected::default()
        };
        let flattened = Box::pin(self.shorten(tidy)).await;
        Box::pin(self.sweep_leavings()).await?;
        Ok(Tidied {
            repacked: repacked?,
            flattened: flattened?,
            collected,
        })
    }

    async fn rewrite(&self, tidy: &Tidy) -> Result<Repacked, VolumeError> {
        self.compact_beyond(tidy.patience()).await?;
        Box::pin(self.repack(tidy)).await
    }

    /// Reads all pins anew in the next round: forks may have been deleted, or flattened.
    pub(crate) fn forget_pins(&self) {
        self.inner.pins.forget();
    }

    fn is_worth_a_round(&self, tidy: &Tidy) -> bool {
        let state = self.inner.state.borrow();
        let round = &state.round;
        let now = self.inner.bucket.world().now();
        let waits = round
            .blocked_at
            .is_some_and(|at| now.since(at) < tidy.blocked_wait);
        !waits && tidy.is_worth_a_round(&state.dead(), &round.left)
    }
}
