//! From the configuration of a person to those of the parts.

use std::time::Duration;

use blockcache::CacheConfig;
use world::Address;
use world::linux::StoreConfig;

use crate::config::{Config, Secret, StoreKind};
use crate::export::clients::Sharing;
use crate::export::site::ExportConfig;
use crate::shard::ShardConfig;
use crate::sync::SyncConfig;
use crate::volume::BucketConfig;

/// Google limits one object to about one change a second; others do not.
const PUBLISH_INTERVAL_GCS: Duration = Duration::from_secs(1);
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
/// One request to the store, body included: a segment of 16 MiB at 1 MiB/s takes half of it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Where to listen, with the key that says so.
pub(super) fn doors(config: &Config) -> Vec<(&'static str, Address)> {
    let unix = config.nbd.unix_socket.iter().map(|path| {
        let address = Address::Unix(path.clone());
        ("servers.nbd.unix_socket", address)
    });
    let tcp = config
        .nbd
        .address
        .iter()
        .map(|address| ("servers.nbd.address", Address::Tcp(*address)));
    unix.chain(tcp).collect()
}

pub(super) fn store(config: &Config) -> StoreConfig {
    let access = &config.storage.access;
    let revealed = |secret: &Option<Secret>| secret.as_ref().map(|it| it.reveal().to_owned());
    let mut store = StoreConfig::new(config.storage.url.to_string());
    store.request_timeout = REQUEST_TIMEOUT;
    if config.storage.url.kind() == StoreKind::S3 {
        store.endpoint = access.endpoint.clone();
        store.region = access.region.clone();
        store.access_key_id = access.access_key_id.clone();
        store.secret_access_key = revealed(&access.secret_access_key);
        store.session_token = revealed(&access.session_token);
        store.allow_http = access.allow_http;
    }
    store
}

pub(super) fn bucket(config: &Config) -> BucketConfig {
    let password = config.storage.password.as_ref();
    BucketConfig {
        password: password.map(|password| password.reveal().to_owned()),
        ..BucketConfig::new(config.storage.compression)
    }
}

pub(super) fn shard(config: &Config) -> ShardConfig {
    let mut cache = CacheConfig::new(&config.cache.dir, config.cache.size_bytes);
    cache.dirty_bytes_max = config.cache.dirty_bytes_max;
    // One export may use most of the room for dirty data; the rest is for the others.
    cache.volume_dirty_bytes_max = config.cache.dirty_bytes_max / 4 * 3;
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().into_owned();
    let mut shard = ShardConfig::new(cache, bucket(config), host);
    shard.exports = ExportConfig {
        create_bytes: config.nbd.auto_create_bytes,
        sharing: if config.nbd.shared {
            Sharing::Shared
        } else {
            Sharing::OneClient
        },
        grace: config.nbd.grace,
        sync: SyncConfig {
            delay: config.nbd.sync_delay,
            blocks_per_batch: config.nbd.blocks_per_batch,
            publish_interval_min: match config.storage.url.kind() {
                StoreKind::Gcs => PUBLISH_INTERVAL_GCS,
                StoreKind::S3 | StoreKind::Azure | StoreKind::File | StoreKind::Memory => {
                    PUBLISH_INTERVAL
                }
            },
            ..SyncConfig::default()
        },
        #[cfg(feature = "planted")]
        trust_any_nonce: false,
        #[cfg(feature = "planted")]
        forgets_intents: false,
        #[cfg(feature = "planted")]
        snapshots_of_any_cut: false,
    };
    shard
}
