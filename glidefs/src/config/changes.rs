//! Which settings differ between two configurations. Pure.
//!
//! Compared is what is in effect: a default that is written out is no difference, and what follows from a setting differs
//! with it. Values are never told: they may be secrets.

use super::{
    ApiSettings, CacheSettings, Config, KeyFiles, LogSettings, NbdSettings, StorageSettings,
    StoreAccess,
};

/// A key, and whether both configurations mean the same by it.
type Compared = (&'static str, bool);

impl Config {
    /// The keys under which `other` says something else. Not among them is what is renewed while the server
    /// runs: the content of files that hold keys of the store.
    pub fn changed_keys(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            cache,
            storage,
            nbd,
            api,
            log,
            origin: _,
            notes: _,
        } = self;
        let compared = in_cache(cache, &other.cache)
            .into_iter()
            .chain(in_storage(storage, &other.storage))
            .chain(in_nbd(nbd, &other.nbd))
            .chain(in_api(api, &other.api))
            .chain(in_access(&storage.access, &other.storage.access))
            .chain(in_log(log, &other.log));
        let changed = compared.filter(|(_, is_same)| !is_same);
        changed.map(|(key, _)| key).collect()
    }
}

fn in_cache(ours: &CacheSettings, theirs: &CacheSettings) -> [Compared; 3] {
    let CacheSettings {
        dir,
        size_bytes,
        dirty_bytes_max,
    } = ours;
    [
        ("cache.dir", *dir == theirs.dir),
        ("cache.disk_size_gb", *size_bytes == theirs.size_bytes),
        (
            "cache.dirty_max_gb",
            *dirty_bytes_max == theirs.dirty_bytes_max,
        ),
    ]
}

fn in_storage(ours: &StorageSettings, theirs: &StorageSettings) -> [Compared; 3] {
    let StorageSettings {
        url,
        password,
        compression,
        // Compared by itself.
        access: _,
    } = ours;
    [
        ("storage.url", *url == theirs.url),
        ("storage.encryption_password", *password == theirs.password),
        ("storage.compression", *compression == theirs.compression),
    ]
}

fn in_nbd(ours: &NbdSettings, theirs: &NbdSettings) -> [Compared; 8] {
    let NbdSettings {
        unix_socket,
        address,
        auto_create_bytes,
        blocks_per_batch,
        sync_delay,
        shared,
        grace,
        read_wait,
    } = ours;
    [
        (
            "servers.nbd.unix_socket",
            *unix_socket == theirs.unix_socket,
        ),
        ("servers.nbd.address", *address == theirs.address),
        (
            "servers.nbd.auto_create_size_gb",
            *auto_create_bytes == theirs.auto_create_bytes,
        ),
        (
            "servers.nbd.blocks_per_batch",
            *blocks_per_batch == theirs.blocks_per_batch,
        ),
        (
            "servers.nbd.sync_delay_ms",
            *sync_delay == theirs.sync_delay,
        ),
        ("servers.nbd.shared", *shared == theirs.shared),
        ("servers.nbd.grace_s", *grace == theirs.grace),
        ("servers.nbd.read_wait_s", *read_wait == theirs.read_wait),
    ]
}

fn in_api(ours: &ApiSettings, theirs: &ApiSettings) -> [Compared; 2] {
    let ApiSettings { address, token } = ours;
    [
        ("servers.api.address", *address == theirs.address),
        ("servers.api.token", *token == theirs.token),
    ]
}

fn in_access(ours: &StoreAccess, theirs: &StoreAccess) -> [Compared; 8] {
    let StoreAccess {
        endpoint,
        region,
        access_key_id,
        secret_access_key,
        // In the environment, which never changes, or in a file.
        session_token: _,
        files,
        allow_http,
    } = ours;
    let KeyFiles {
        access_key_id: id_file,
        secret_access_key: secret_file,
        session_token: token_file,
    } = files;
    // What stands in a file of its own is looked at again by itself, and may be another by now.
    let same_id = id_file.is_some()
        || theirs.files.access_key_id.is_some()
        || *access_key_id == theirs.access_key_id;
    let same_secret = secret_file.is_some()
        || theirs.files.secret_access_key.is_some()
        || *secret_access_key == theirs.secret_access_key;
    [
        ("aws.endpoint", *endpoint == theirs.endpoint),
        ("aws.default_region", *region == theirs.region),
        ("aws.access_key_id", same_id),
        (
            "aws.access_key_id_file",
            *id_file == theirs.files.access_key_id,
        ),
        ("aws.secret_access_key", same_secret),
        (
            "aws.secret_access_key_file",
            *secret_file == theirs.files.secret_access_key,
        ),
        (
            "aws.session_token_file",
            *token_file == theirs.files.session_token,
        ),
        ("aws.allow_http", *allow_http == theirs.allow_http),
    ]
}

fn in_log(ours: &LogSettings, theirs: &LogSettings) -> [Compared; 2] {
    let LogSettings { format, filter } = ours;
    [
        ("log.format", *format == theirs.format),
        ("log.level", *filter == theirs.filter),
    ]
}
