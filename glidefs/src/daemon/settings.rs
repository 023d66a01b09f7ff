//! From the configuration of a person to those of the parts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockcache::CacheConfig;
use world::Address;
use world::linux::{ReadKeys, StoreConfig, StoreKeys};

use crate::cli::read_secret;
use crate::config::{Config, Secret, StoreAccess, StoreKind};
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
    let mut store = StoreConfig::new(config.storage.url.to_string());
    store.request_timeout = REQUEST_TIMEOUT;
    if config.storage.url.kind() == StoreKind::S3 {
        store.endpoint = access.endpoint.clone();
        store.region = access.region.clone();
        store.access_key_id = access.access_key_id.clone();
        store.secret_access_key = revealed(access.secret_access_key.as_ref());
        store.session_token = revealed(access.session_token.as_ref());
        store.read_keys = read_keys(access);
        store.allow_http = access.allow_http;
    }
    store
}

fn revealed(secret: Option<&Secret>) -> Option<String> {
    secret.map(|secret| secret.reveal().to_owned())
}

/// Reads again the keys that stand in files; none if none does.
fn read_keys(access: &StoreAccess) -> Option<ReadKeys> {
    if access.files.is_empty() {
        return None;
    }
    let access = access.clone();
    Some(Arc::new(move || keys_now(&access)))
}

/// Those in files as they are now, the others as they were at the start.
fn keys_now(access: &StoreAccess) -> Result<StoreKeys, String> {
    let files = &access.files;
    let now = |file: Option<&Path>, first: Option<String>| match file {
        None => Ok(first),
        Some(file) => match read_secret(file) {
            Ok(found) => Ok(revealed(Some(&found.secret))),
            Err((wrong, remedy)) => Err(format!("{wrong}; {remedy}")),
        },
    };
    let secret = revealed(access.secret_access_key.as_ref());
    let token = revealed(access.session_token.as_ref());
    let id = now(files.access_key_id.as_deref(), access.access_key_id.clone())?;
    let secret = now(files.secret_access_key.as_deref(), secret)?;
    Ok(StoreKeys {
        access_key_id: id.expect("files are taken with a whole pair alone"),
        secret_access_key: secret.expect("files are taken with a whole pair alone"),
        session_token: now(files.session_token.as_deref(), token)?,
    })
}

pub(super) fn bucket(config: &Config) -> BucketConfig {
    let password = config.storage.password.as_ref();
    BucketConfig {
        password: password.map(|password| password.reveal().to_owned()),
        place: config.storage.url.prefix().to_owned(),
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
        read_wait: config.nbd.read_wait,
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
        takes_unasked: false,
        #[cfg(feature = "planted")]
        keeps_rewritten: false,
        #[cfg(feature = "planted")]
        snapshots_of_any_cut: false,
        #[cfg(feature = "planted")]
        forks_of_any_cut: false,
    };
    shard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever renews keys is another process"
    )]
    fn keys_in_files_are_read_again_and_others_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let [secret, token] = ["secret", "token"].map(|name| folder.path().join(name));
        let write = |secret_text: &str, token_text: &str| {
            std::fs::write(&secret, secret_text).expect("written");
            std::fs::write(&token, token_text).expect("written");
        };
        write("first\n", "first token\n");
        let text =
            |aws: &str| format!("[cache]\ndir = \"/c\"\n[storage]\nurl = \"s3://b\"\n[aws]\n{aws}");
        let aws = format!(
            "access_key_id = \"AK\"\nsecret_access_key_file = {secret:?}\nsession_token_file = {token:?}\n"
        );
        let environment = Environment::default().with_files(read_secret);
        let config = Config::parse("t", &text(&aws), &environment).expect("legal");
        let store = store(&config);
        assert_eq!(store.secret_access_key.as_deref(), Some("first"));
        assert_eq!(store.session_token.as_deref(), Some("first token"));

        let read = store.read_keys.expect("files are named");
        write("second\n", "second token\n");
        let renewed = StoreKeys {
            access_key_id: "AK".to_owned(),
            secret_access_key: "second".to_owned(),
            session_token: Some("second token".to_owned()),
        };
        assert_eq!(read(), Ok(renewed));
        // Half of a file is none, if it is empty; and what is said names it, and nothing that it holds.
        write("", "second token");
        let said = read().expect_err("no secret");
        assert!(
            said.contains(&format!("{} is empty", secret.display())),
            "{said}"
        );
        assert!(!said.contains("token"), "{said}");

        let aws = "access_key_id = \"AK\"\nsecret_access_key = \"it\"\n";
        let config = Config::parse("t", &text(aws), &environment).expect("legal");
        assert!(
            super::store(&config).read_keys.is_none(),
            "nothing is renewed"
        );
    }
}
