//! The node dies with its disk at any moment while nothing is wrong with the store. What the store
//! holds must be one exact cut, no older than `sync_delay_ms` plus one sync (promise 3).
//!
//! The bound holds under load that the store can carry: here a sync is over within the delay, and
//! guests write less than what makes a sync start early. Every latency of the simulated store has a
//! longest, so the bound is arithmetic ([`sync_max`]), not a guess.
//!
//! Deliberately absent: writes of less than a page. To complete them a sync first reads the old
//! page, and how many reads that takes has no bound that would be of use here.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use world::Instant;
use world::sim::{Crash, Sim, SimConfig, Spread};

use super::guest::{Grain, Guest, Load, Tolerance};
use super::loss::lose_nodes;
use super::stage::{PAGE, Settings, Stage, VOLUME_PAGES};
use crate::oracle::Moment;

/// One way of a request to the store: a near one, so that the bound is short beside what it judges.
pub(super) const STORE: Spread = Spread::micros(1_000, 10_000);
/// Between two looks at the clock and the model.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What a sync takes apart from the store: commits and reads of the log, sealing, waking up. Each is
/// below 25 ms at the worst and a sync has a few of them in a row.
const LOCAL_MAX: Duration = Duration::from_millis(250);
/// Pages of data in a block of `blocks_per_batch`.
const BLOCK_PAGES: u64 = 32;
/// A publish that folds the tail of the map writes a part of a run and the map's index first.
const MAP_PUTS_MAX: u32 = 2;
/// The slowest guest asks so seldom; six workers of it write about 0.3 MB/s.
const THINK_US_MAX: u64 = 400_000;
/// A write has so many sectors at most: 20 KiB.
const WRITE_SECTORS_MAX: u64 = 40;

/// Delays of which one holds a whole sync, and a cache that is never pressed: a log of 12 MiB of
/// which 6 MiB may be dirty, and 3 MiB are until a sync is to start early. In the time of the bound,
/// at most 6 s, not 2 MB come together.
pub(super) fn settings(sim: &Sim, drawn: Settings) -> Settings {
    let delay = sim.chance(|chance| [2_000, 4_000][chance.index(2)]);
    Settings {
        chunk_bytes: 256 * 1024,
        chunks: 48,
        dirty_eighths: 4,
        delay: Duration::from_millis(delay),
        // Of several small cuts each would wait for its turn.
        cut_extents_max: usize::MAX,
        ..drawn
    }
}

/// The longest that one sync takes, from the moment it is due until the root is the new one.
///
/// Requests to the store, there and back, one after another:
/// - the segments, as few at a time as may be on their way. A cut has every page of the volume at
///   most, and two segments that follow each other hold more than one takes, so there are less than
///   `2 * pages / pages of a segment` of them, and one at least;
/// - the map, if the tail is folded: [`MAP_PUTS_MAX`];
/// - the root: one.
///
/// Before the last the publish waits until its turn, no longer than the interval: the publish before
/// ended before this sync began.
fn sync_max(settings: &Settings) -> Duration {
    let pages = VOLUME_PAGES.into_iter().max().unwrap_or(0);
    let segment_pages = u64::from(settings.blocks_per_batch) * BLOCK_PAGES;
    let segments = (2 * pages).div_ceil(segment_pages).max(1);
    let uploads = u64::try_from(glidefs::sync::SyncConfig::default().uploads_total_min);
    let rounds = segments.div_ceil(uploads.expect("a few"));
    let requests = u32::try_from(rounds).expect("a few") + MAP_PUTS_MAX + 1;
    2 * STORE.longest() * requests + settings.interval + LOCAL_MAX
}

pub(super) async fn play(stage: &Stage) -> Result<()> {
    let s = &stage.settings;
    assert!(s.volume_bytes <= PAGE * VOLUME_PAGES[VOLUME_PAGES.len() - 1]);
    assert!(
        SimConfig::default().delays.persist.longest() < LOCAL_MAX / 4,
        "a flush of the log is a small part of a sync"
    );
    // A write waits for the sync under way, if that takes longer than its delay, and for its own.
    let sync = sync_max(s);
    assert!(sync <= s.delay, "the store carries the load: {sync:?}");
    let age_max = s.delay + sync;
    stage.sim.note(format_args!("the bound is {age_max:?}"));
    let node = lose_nodes(stage, async |node| {
        let guest = stage.guest(&node, light(stage));
        let long = 4 * u64::try_from(age_max.as_millis()).expect("seconds");
        let end = stage.sim.now() + Duration::from_millis(stage.between(0, long));
        let old = watch(stage, &guest, end, age_max).await?;
        stage.sim.crash(node.host, Crash::Power);
        stage.sim.wipe_disk(node.host);
        stage.dismiss(&guest)?;
        if let Some(old) = old {
            stage.model.borrow_mut().publish_done(old);
        }
        Ok(())
    });
    stage.finish(&node.await?).await.map(drop)
}

/// A load that the store can carry, without an error.
fn light(stage: &Stage) -> Load {
    let load = Load::drawn(&stage.sim, Tolerance::Nothing);
    Load {
        think_us_max: THINK_US_MAX,
        write_sectors_max: load.write_sectors_max.min(WRITE_SECTORS_MAX),
        grain: Grain::Pages,
        ..load
    }
}

/// Lets the guest work until `end`. Returns the latest moment that is older than the bound then:
/// what was answered before it must be in the store.
async fn watch(
    stage: &Stage,
    guest: &Guest,
    end: Instant,
    age_max: Duration,
) -> Result<Option<Moment>> {
    let mut moments: VecDeque<(Instant, Moment)> = VecDeque::new();
    let mut old = None;
    loop {
        let now = stage.sim.now();
        moments.push_back((now, stage.model.borrow_mut().publish_begin()));
        while let Some((at, moment)) = moments.front().copied()
            && at + age_max < now
        {
            old = Some(moment);
            moments.pop_front();
        }
        if now >= end {
            return Ok(old);
        }
        guest.check()?;
        stage.sim.sleep(LOOK_EVERY).await;
    }
}
