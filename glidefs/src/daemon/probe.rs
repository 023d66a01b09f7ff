//! What a start would find, without starting: the cache folder, the addresses, the store.
//!
//! It changes nothing that a start would build on: no cache and no keyring is begun. What it leaves
//! for a moment and takes away again is a listening socket at each address, and the keys by which
//! the store is tried.

use std::path::Path;

use blockcache::{Cache, Looked};
use tokio::runtime::Handle;
use world::linux::{LinuxStore, LinuxWorld, StoreConfig};
use world::{Address, World};

use super::shard_thread::{door_text, linux, ring_text};
use super::{EDGE_END_WAIT_MAX, edge, settings};
use crate::api;
use crate::config::Config;
use crate::volume::{Bucket, Prefix, versions_hint};

/// One thing that was looked at: what it is, or why a start would fail on it.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) outcome: Result<String, String>,
}

/// Everything that the shard looks at.
struct Plan {
    cache: blockcache::CacheConfig,
    doors: Vec<(&'static str, Address)>,
    store: StoreConfig,
    password: Option<String>,
    url: String,
    /// Of the URL, inside of the bucket.
    place: String,
    edge: Handle,
}

/// Looks at everything that a start needs, each by itself: one that fails does not hide the others.
pub(crate) fn probe(config: &Config) -> Vec<Finding> {
    let runtime = match edge() {
        Ok(runtime) => runtime,
        Err(failure) => return vec![finding("threads", Err(failure.to_string()))],
    };
    let plan = Plan {
        cache: settings::shard(config).cache,
        doors: settings::doors(config),
        store: settings::store(config),
        password: settings::bucket(config).password,
        url: config.storage.url.to_string(),
        place: config.storage.url.prefix().to_owned(),
        edge: runtime.handle().clone(),
    };
    let body = |world| Box::pin(look(world, plan));
    let mut findings = match world::linux::run(linux(runtime.handle().clone()), body) {
        Ok(findings) => findings,
        Err(error) => vec![finding("io_uring", Err(ring_text(&error)))],
    };
    let bound = runtime.block_on(api::bind(config.api.address));
    let api = bound.map_err(|error| error.to_string());
    let free = format!("{} is free", config.api.address);
    findings.push(finding("api address", api.map(|_listener| free)));
    runtime.shutdown_timeout(EDGE_END_WAIT_MAX);
    findings
}

async fn look(world: LinuxWorld, plan: Plan) -> Vec<Finding> {
    let cache = Box::pin(Cache::look(&world, &plan.cache)).await;
    let cache = cache.map_err(|error| error.to_string());
    let mut findings = vec![finding("cache log", cache.map(cache_text))];
    for (key, address) in &plan.doors {
        findings.push(finding("nbd address", door(&world, key, address).await));
    }
    findings.push(finding("object store", store(&world, plan).await));
    findings
}

/// Whether the address can be had. A folder that a start makes is not made here.
async fn door(world: &LinuxWorld, key: &str, address: &Address) -> Result<String, String> {
    if let Address::Unix(path) = address
        && path.parent().is_some_and(|folder| !exists(folder))
    {
        return Ok(format!("{address} is free (its folder will be made)"));
    }
    match world.listen(address).await {
        Ok(_listener) => Ok(format!("{address} is free")),
        Err(error) => Err(door_text(key, address, &error)),
    }
}

async fn store(world: &LinuxWorld, plan: Plan) -> Result<String, String> {
    let store = LinuxStore::open(&plan.store, plan.edge)
        .map_err(|error| format!("`storage.url`: {error}"))?;
    let is_encrypted = plan.password.is_some();
    let found = Box::pin(Bucket::look(world, &store, plan.password)).await;
    let found = found.map_err(|error| error.to_string())?;
    let url = plan.url;
    let protection = prefix_text(found.prefix, is_encrypted);
    let versions = if found.keeps_versions {
        let hint = versions_hint(&plan.place);
        format!("; the bucket is versioned: {hint}")
    } else {
        String::new()
    };
    Ok(format!(
        "{url}: reachable, conditional writes, lists and ranges work, {protection}{versions}"
    ))
}

fn cache_text(looked: Looked) -> String {
    match looked {
        Looked::Empty => "none yet: the first start makes one".to_owned(),
        Looked::Kept(cache) => format!("cache {cache}, not in use"),
    }
}

fn prefix_text(found: Prefix, is_encrypted: bool) -> &'static str {
    match (found, is_encrypted) {
        (Prefix::Begun, true) => "the password fits, data is encrypted",
        (Prefix::Begun, false) => "data is not encrypted",
        (Prefix::New, true) => {
            "no keyring yet: the first start makes this prefix an encrypted one, which cannot be \
             changed later"
        }
        (Prefix::New, false) => {
            "no keyring yet: the first start makes this prefix one that is NOT encrypted, which \
             cannot be changed later (`storage.encryption_password` is not set)"
        }
    }
}

fn exists(folder: &Path) -> bool {
    folder.as_os_str().is_empty() || folder.exists()
}

fn finding(check: &'static str, outcome: Result<String, String>) -> Finding {
    Finding { check, outcome }
}
