//! A store and a server in front of it, each a process of its own, and what the store is asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use glidefs_tests::http;
use glidefs_tests::server::{Server, Settings, Store, built};
use glidefs_tests::site::text;
use glidefs_tests::tool::Talk;
use serde_json::Value;

/// The product's own default, so that its timers run as they do anywhere.
pub(crate) const SYNC_DELAY_MS: u32 = 8000;
/// Room for all that the parts write, with no export near the bound of what may be dirty.
const CACHE_GIB: f64 = 8.0;
const CONTROL_PATH: &str = "/test-control/faults";
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longer than a sync waits: after that nothing is left that only its delay holds back.
const QUIET_LOOKS: u32 = 20;
/// Ten minutes.
const QUIET_LOOKS_MAX: u32 = 1200;

/// One server, alone before its store.
pub(crate) struct Site {
    /// First, so that it stops before its store does.
    pub(crate) server: Server,
    _store: Talk,
    pub(crate) url: String,
    address: SocketAddr,
}

impl Site {
    /// Encrypted, with the product's compression and delay. With a size, connecting creates exports.
    pub(crate) fn start(folder: &Path, create_gib: Option<f64>) -> Result<Self> {
        let objects = folder.join("store");
        let mut store = Talk::start(text(&built("s3server")?), &[text(&objects)])?;
        let said: Value = serde_json::from_str(&store.hear()?)?;
        let url = said["endpoint"].as_str().context("its address")?.to_owned();
        let bucket = Store::S3 {
            endpoint: url.clone(),
            prefix: "fleet".to_owned(),
        };
        let mut settings = Settings::new(bucket, &folder.join("cache"));
        settings.disk_size_gb = CACHE_GIB;
        settings.auto_create_size_gb = create_gib;
        settings.sync_delay_ms = u64::from(SYNC_DELAY_MS);
        Ok(Self {
            server: Server::start(&folder.join("node"), &settings)?,
            _store: store,
            address: url.trim_start_matches("http://").parse()?,
            url,
        })
    }

    /// Since the store's start, as the store counts them: each request that is billed, and the look
    /// costs the server nothing, which at idle is what is measured.
    pub(crate) fn requests(&self) -> Result<Requests> {
        let answer = http::ask(self.address, "GET", CONTROL_PATH, None)?;
        ensure!(answer.status == 200, "counts: {}", answer.status);
        let mut counts: BTreeMap<String, u64> = serde_json::from_str(&answer.body)?;
        let mut take = |kind: &str| counts.remove(kind).unwrap_or_default();
        let found = Requests {
            puts: take("put"),
            gets: take("get") + take("head"),
            lists: take("list"),
            deletes: take("delete"),
            sent_bytes: take("put_bytes"),
        };
        ensure!(take("multipart") == 0, "requests that are not priced here");
        Ok(found)
    }

    /// Waits until the store has not been asked for a while.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut last = self.requests()?;
        let mut quiet = 0;
        for _ in 0..QUIET_LOOKS_MAX {
            sleep(LOOK_EVERY);
            let now = self.requests()?;
            quiet = if now == last { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS {
                return Ok(());
            }
            last = now;
        }
        let log = self.server.log_tail();
        bail!("the server does not come to rest\n{log}")
    }
}

/// Requests to the store, by what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) puts: u64,
    pub(crate) gets: u64,
    pub(crate) lists: u64,
    pub(crate) deletes: u64,
    pub(crate) sent_bytes: u64,
}

impl Requests {
    pub(crate) fn total(&self) -> u64 {
        self.puts + self.gets + self.lists + self.deletes
    }
}

impl std::ops::Sub for Requests {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            puts: self.puts - before.puts,
            gets: self.gets - before.gets,
            lists: self.lists - before.lists,
            deletes: self.deletes - before.deletes,
            sent_bytes: self.sent_bytes - before.sent_bytes,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "processes that are watched live in real time"
)]
pub(crate) fn sleep(length: Duration) {
    std::thread::sleep(length);
}
