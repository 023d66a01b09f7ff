//! One export under a steady load: which requests its syncs cost, what a month of that costs, and
//! that it asks for nothing once it is idle.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use glidefs_tests::blocking_client::Client;
use glidefs_tests::load::now;
use glidefs_tests::pages::{Filler, PAGE_BYTES, Stamp};

use crate::site::{Requests, SYNC_DELAY_MS, Site, sleep};
use crate::{Arguments, progress};

/// Amazon's list prices for S3 Standard in us-east-1, in dollars: of a PUT or LIST, of a GET, of a GB kept
/// for a month. DELETE is free.
pub(crate) const PUT_DOLLARS: f64 = 0.005 / 1000.0;
pub(crate) const GET_DOLLARS: f64 = 0.0004 / 1000.0;
pub(crate) const GB_MONTH_DOLLARS: f64 = 0.023;
/// What the seed's README assumes of a VM that scales to zero, and the API cost that it claims for it.
pub(crate) const ACTIVE_SHARE: f64 = 0.2;
pub(crate) const STORED_GB: f64 = 20.0;
pub(crate) const CLAIMED_DOLLARS: f64 = 0.44;
const MONTH_SECONDS: f64 = 30.0 * 86_400.0;

/// A sync that has little to say puts a segment and the root.
const PUTS_PER_SYNC: f64 = 2.0;
/// 25 blocks of 128 KiB.
const SEGMENT_BYTES: f64 = 3.2768e6;
const EXPORT: &str = "steady";
/// Before it counts: what only the first syncs of a volume cost is no steady state.
const WARM_UP_SYNCS: u64 = 2;
/// After the load nothing may be asked for so long.
const IDLE_SECONDS: u32 = 30;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) volume_mib: u32,
    pub(crate) writes: u64,
    /// How long writing took.
    pub(crate) seconds: f64,
    pub(crate) syncs: u64,
    /// From the first of these writes until the last was published, and what followed from it was done.
    pub(crate) busy: Requests,
    pub(crate) idle: Requests,
}

pub(crate) fn measure(folder: &Path, arguments: &Arguments) -> Result<Found> {
    let volume_mib = arguments.budget_mib;
    let site = Site::start(folder, Some(f64::from(volume_mib) / 1024.0))?;
    let mut client = site.server.connect(EXPORT)?;
    let mut load = Load {
        filler: Filler::new(1),
        pages: u64::from(volume_mib) << 8,
        per_second: arguments.rate,
        written: 0,
    };
    progress("budget: warming up");
    let warm_up_seconds = WARM_UP_SYNCS * u64::from(SYNC_DELAY_MS) / 1000;
    load.write(&mut client, warm_up_seconds)?;
    site.settle()?;
    let (warm, before, syncs_before) = (load.written, site.requests()?, syncs(&site)?);
    let wanted_seconds = arguments.budget_seconds;
    progress(&format!("budget: writing for {wanted_seconds} s"));
    let seconds = load.write(&mut client, wanted_seconds)?;
    // No order to drain: the last writes wait for their delay, as all others did.
    site.settle()?;
    let (after, syncs_after) = (site.requests()?, syncs(&site)?);
    progress(&format!("budget: idle for {IDLE_SECONDS} s"));
    sleep(Duration::from_secs(u64::from(IDLE_SECONDS)));
    let idle = site.requests()? - after;
    client.disconnect()?;
    Ok(Found {
        volume_mib,
        writes: load.written - warm,
        seconds,
        syncs: syncs_after - syncs_before,
        busy: after - before,
        idle,
    })
}

/// Cuts published since the server's start.
fn syncs(site: &Site) -> Result<u64> {
    let syncs = site.server.export(EXPORT)?["io"]["syncs"].as_u64();
    syncs.context("the export counts its syncs")
}

struct Load {
    filler: Filler,
    pages: u64,
    per_second: u64,
    written: u64,
}

impl Load {
    /// Writes anywhere. Returns how long it took: longer than asked for where the server is too slow.
    fn write(&mut self, client: &mut Client, seconds: u64) -> Result<f64> {
        let began = now();
        for done in 0..self.per_second * seconds {
            let due = done as f64 / self.per_second as f64;
            let wait = due - began.elapsed().as_secs_f64();
            sleep(Duration::from_secs_f64(wait.max(0.0)));
            self.written += 1;
            let stamp = Stamp::new(0, self.filler.below(self.pages), self.written);
            let mut page = stamp.bytes();
            // Half of it compresses away, as of most data.
            page[PAGE_BYTES / 2..].fill(0);
            client.write(stamp.offset(), &page)?;
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

fn dollars(requests: Requests) -> f64 {
    let puts = requests.puts + requests.lists;
    puts as f64 * PUT_DOLLARS + requests.gets as f64 * GET_DOLLARS
}

impl Found {
    /// PUTs that were made over those that there should be.
    pub(crate) fn of_budget(&self) -> f64 {
        let segments = self.busy.sent_bytes as f64 / SEGMENT_BYTES;
        self.busy.puts as f64 / (PUTS_PER_SYNC * self.syncs as f64 + segments)
    }

    /// From one sync to the next.
    pub(crate) fn window_seconds(&self) -> f64 {
        self.seconds / self.syncs.max(1) as f64
    }

    pub(crate) fn sync_dollars(&self) -> f64 {
        dollars(self.busy) / self.syncs.max(1) as f64
    }

    /// Of one VM, if this share of the windows of its active time has writes.
    pub(crate) fn month_dollars(&self, share: f64) -> f64 {
        let busy_seconds = MONTH_SECONDS * ACTIVE_SHARE * share;
        let idle_seconds = MONTH_SECONDS - busy_seconds;
        let idle = dollars(self.idle) / f64::from(IDLE_SECONDS);
        busy_seconds / self.window_seconds() * self.sync_dollars() + idle_seconds * idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_puts_in_every_eight_active_seconds_are_65_cents_a_month() {
        let busy = Requests {
            puts: 20,
            deletes: 1000,
            ..Requests::default()
        };
        let found = Found {
            volume_mib: 1024,
            writes: 16_000,
            seconds: 80.0,
            syncs: 10,
            busy,
            idle: Requests::default(),
        };
        assert!((found.of_budget() - 1.0).abs() < 1e-9);
        assert!((found.month_dollars(1.0) - 0.648).abs() < 1e-9);
        assert!((found.month_dollars(0.25) - 0.162).abs() < 1e-9);
    }
}
