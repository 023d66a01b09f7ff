//! An S3 endpoint that is there already, as a server of ours sees it.

use anyhow::{Context, Result};
use world::contract::{self, Losers};
use world::linux::{LinuxConfig, LinuxStore, StoreConfig};

use crate::s3::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};

/// The edge: sends the requests of the contract.
const EDGE_THREADS: usize = 2;
const COMPUTE_THREADS: usize = 2;

/// Runs the contract of the store's seam by the path that a server takes: a shard on io_uring, the
/// store client on the edge, signed requests, HTTP. Panics where it is not kept. The bucket and the keys
/// are those of [`crate::s3`]; nothing may lie under `prefix`.
pub fn check_contract(endpoint: &str, prefix: &str, losers: Losers) -> Result<()> {
    let mut config = StoreConfig::new(format!("s3://{BUCKET}{prefix}"));
    config.endpoint = Some(endpoint.to_owned());
    config.region = Some(REGION.to_owned());
    config.access_key_id = Some(ACCESS_KEY.to_owned());
    config.secret_access_key = Some(SECRET_KEY.to_owned());
    config.allow_http = true;
    let edge = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(EDGE_THREADS)
        .enable_all()
        .build()?;
    let handle = edge.handle().clone();
    let store = LinuxStore::open(&config, handle.clone())?;
    let shard = LinuxConfig::new(handle, COMPUTE_THREADS);
    let kept = world::linux::run(shard, |_world| contract::store(store, losers));
    kept.context("io_uring is not available")
}

/// A prefix of this process alone: a store may hold what earlier runs left.
#[expect(clippy::disallowed_types, reason = "a name that no earlier run had")]
pub fn own_prefix(name: &str) -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    let seconds = since.map_or(0, |since| since.as_secs());
    format!("{name}-{seconds}-{}", std::process::id())
}
