//! The configuration: raw text in, a [`Config`] in which every value is legal out.
//!
//! Checked once, with all defaults in this file. Sizes in the file end in `_gb` and mean GiB
//! (2^30 bytes), here they are bytes. No file system and no environment is touched: the command line
//! hands both in. Deliberately absent: settings that change while the server runs, and those that only a
//! benchmark would change. What may be read again is named here and read elsewhere: keys of the store in
//! files of their own (`KeyFiles`). What a restart would change can be told (`changes.rs`).

mod changes;
mod environment;
mod error;
mod expand;
mod secret;
mod source;
mod store_url;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use environment::{Environment, ReadSecret, SecretFile};
pub use error::{ConfigError, Problem};
pub use secret::Secret;
pub use store_url::{StoreKind, StoreUrl};

use crate::volume::Compression;
use source::Source;

/// The commented file that `glidefs init` writes.
pub const TEMPLATE: &str = include_str!("config/template.toml");
/// The file that `glidefs run` looks for in the working directory when none is named.
pub const FILE_NAME: &str = "glidefs.toml";
/// The folder of the embedded default, in the working directory.
pub const EMBEDDED_DIR: &str = "glidefs-data";

const GIB: f64 = 1_073_741_824.0;
/// The largest volume: 8 PiB, which is 2^53 bytes.
const SIZE_GB_MAX: f64 = 8_388_608.0;
/// The smallest size that is meant in earnest: 1 MiB.
const SIZE_GB_MIN: f64 = 1.0 / 1024.0;
/// Sizes are rounded up to whole MiB, so that every size is a multiple of every block size.
const SIZE_STEP_BYTES: u64 = 1 << 20;
/// Of the kernel: longer paths cannot be bound.
const UNIX_SOCKET_PATH_BYTES_MAX: usize = 107;

const CACHE_GB_DEFAULT: f64 = 10.0;
/// Of the cache: dirty data may fill half by default, and never so much that clean-up stalls.
const DIRTY_SHARE_DEFAULT: f64 = 0.5;
const DIRTY_SHARE_MAX: f64 = 0.75;
const BLOCKS_PER_BATCH_DEFAULT: u64 = 25;
const BLOCKS_PER_BATCH_MAX: u64 = 1000;
const SYNC_DELAY_MS_DEFAULT: u64 = 8000;
const SYNC_DELAY_MS_MAX: u64 = 3_600_000;
const GRACE_S_DEFAULT: u64 = 30;
const GRACE_S_MAX: u64 = 86_400;
const READ_WAIT_S_DEFAULT: u64 = 900;
const READ_WAIT_S_MAX: u64 = 86_400;
const AUTO_CREATE_GB_EMBEDDED: f64 = 10.0;
const NBD_ADDRESS_DEFAULT: &str = "127.0.0.1:10809";
const API_ADDRESS_DEFAULT: &str = "127.0.0.1:8080";
const REGION_DEFAULT: &str = "us-east-1";
/// Of zstd: the level at which it keeps up with a network.
const ZSTD_LEVEL: i32 = 1;

/// All settings of one server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub cache: CacheSettings,
    pub storage: StorageSettings,
    pub nbd: NbdSettings,
    pub api: ApiSettings,
    pub log: LogSettings,
    /// Where this came from, for people: a file's name or "the embedded default".
    pub origin: String,
    /// What was noticed while reading and deserves a thought.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    pub dir: PathBuf,
    pub size_bytes: u64,
    /// Unpublished bytes of all exports together, at which writers wait.
    pub dirty_bytes_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageSettings {
    pub url: StoreUrl,
    pub password: Option<Secret>,
    pub compression: Compression,
    pub access: StoreAccess,
}

/// How to reach an S3 store, from the file or the environment. What is not set here (and all of
/// GCS and Azure) the store's client finds out by its cloud's own rules: roles, metadata services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreAccess {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub session_token: Option<Secret>,
    /// Those of the three that stand in files of their own.
    pub files: KeyFiles,
    pub allow_http: bool,
}

/// Files that keys were read from, and in which they may be renewed while the server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFiles {
    pub access_key_id: Option<PathBuf>,
    pub secret_access_key: Option<PathBuf>,
    pub session_token: Option<PathBuf>,
}

impl KeyFiles {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdSettings {
    pub unix_socket: Option<PathBuf>,
    pub address: Option<SocketAddr>,
    /// Size of an export that is created by connecting; none: connecting creates nothing.
    pub auto_create_bytes: Option<u64>,
    /// Blocks of 128 KiB in one segment.
    pub blocks_per_batch: u32,
    pub sync_delay: Duration,
    /// Clients of different identity may write one export at the same time (protocol rule 17).
    pub shared: bool,
    /// How long after the last client has left an export drains and detaches (protocol rule 15).
    pub grace: Duration,
    /// How long a read that needs a store which is down waits for it before it fails.
    pub read_wait: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    pub address: SocketAddr,
    pub token: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// As `tracing_subscriber::EnvFilter` reads it: `info`, `warn,glidefs=debug`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// Reads `text`; `file` is its name in messages.
    pub fn parse(file: &str, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let mut source = Source::parse(file, text, environment)?;
        let config = read(&mut source, file, environment);
        source.finish()?;
        Ok(config.expect("a missing required value was reported as a problem"))
    }

    /// What runs where there is no file: a `file://` store and a cache in the working directory.
    pub fn embedded(working_dir: &Path, environment: &Environment) -> Self {
        let data = working_dir.join(EMBEDDED_DIR);
        let socket = data.join("glidefs.sock");
        // A deep folder makes the absolute path too long to bind; the relative one never is.
        let socket = if socket.as_os_str().len() <= UNIX_SOCKET_PATH_BYTES_MAX {
            socket
        } else {
            Path::new(EMBEDDED_DIR).join("glidefs.sock")
        };
        Self {
            cache: CacheSettings {
                dir: data.join("cache"),
                size_bytes: bytes_from_gib(CACHE_GB_DEFAULT),
                dirty_bytes_max: bytes_from_gib(CACHE_GB_DEFAULT * DIRTY_SHARE_DEFAULT),
            },
            storage: StorageSettings {
                url: StoreUrl::of_folder(&data.join("store")),
                password: None,
                compression: Compression::Lz4,
                access: StoreAccess::default(),
            },
            nbd: NbdSettings {
                unix_socket: Some(socket),
                address: Some(default_address(NBD_ADDRESS_DEFAULT)),
                auto_create_bytes: Some(bytes_from_gib(AUTO_CREATE_GB_EMBEDDED)),
                blocks_per_batch: u32::try_from(BLOCKS_PER_BATCH_DEFAULT).expect("25 fits"),
                sync_delay: Duration::from_millis(SYNC_DELAY_MS_DEFAULT),
                shared: false,
                grace: Duration::from_secs(GRACE_S_DEFAULT),
                read_wait: Duration::from_secs(READ_WAIT_S_DEFAULT),
            },
            api: ApiSettings {
                address: default_address(API_ADDRESS_DEFAULT),
                token: None,
            },
            log: LogSettings {
                format: LogFormat::Text,
                filter: log_filter("info", environment),
            },
            origin: format!("the embedded default (no {FILE_NAME} here)"),
            notes: Vec::new(),
        }
    }

    /// What works but deserves a thought: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.notes.clone();
        if let Some(address) = self.nbd.address.filter(|it| !it.ip().is_loopback()) {
            warnings.push(format!(
                "`servers.nbd.address` = {address}: NBD over TCP is neither encrypted nor \
                 authenticated; whoever reaches this port can read and write every export"
            ));
        }
        if !self.api.address.ip().is_loopback() && self.api.token.is_none() {
            warnings.push(format!(
                "`servers.api.address` = {} without `servers.api.token`: whoever reaches this \
                 port can delete and promote exports",
                self.api.address
            ));
        }
        if self.storage.url.kind() == StoreKind::Memory {
            warnings.push(
                "`storage.url` = memory://: nothing outlives the process, drained or not".into(),
            );
        }
        if self.storage.password.is_none() && self.storage.url.is_remote() {
            warnings.push(
                "no `storage.encryption_password`: data is stored in the clear, guarded against \
                 decay but not against whoever can write to the store"
                    .into(),
            );
        }
        warnings
    }
}

/// Bytes of so many GiB, rounded up to whole MiB. Out-of-range values are held at the nearest end.
pub fn bytes_from_gib(gib: f64) -> u64 {
    let bytes = gib.clamp(SIZE_GB_MIN, SIZE_GB_MAX) * GIB;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to between 1 MiB and 8 PiB, which is 2^53"
    )]
    let bytes = bytes.ceil() as u64;
    bytes.next_multiple_of(SIZE_STEP_BYTES)
}

/// None only where a problem was noted.
fn read(source: &mut Source<'_>, file: &str, environment: &Environment) -> Option<Config> {
    let cache = read_cache(source);
    let storage = read_storage(source, environment);
    let nbd = read_nbd(source);
    let api = read_api(source);
    let log = read_log(source, environment);
    Some(Config {
        cache: cache?,
        storage: storage?,
        nbd,
        api,
        log,
        origin: file.to_owned(),
        notes: source.take_notes(),
    })
}

fn read_cache(source: &mut Source<'_>) -> Option<CacheSettings> {
    let dir = source.string("cache.dir").filter(|dir| !dir.is_empty());
    let sizes = SIZE_GB_MIN..=SIZE_GB_MAX;
    let size = source
        .number("cache.disk_size_gb", sizes.clone())
        .unwrap_or(CACHE_GB_DEFAULT);
    let dirty = source.number("cache.dirty_max_gb", sizes);
    if dirty.is_some_and(|dirty| dirty > size * DIRTY_SHARE_MAX) {
        source.problem(
            "cache.dirty_max_gb",
            format!(
                "is more than three quarters of `cache.disk_size_gb` ({size} GiB), so that the \
                 cache could fill with data that must not be evicted"
            ),
            format!(
                "give at most {} or raise `cache.disk_size_gb`",
                size * DIRTY_SHARE_MAX
            ),
        );
    }
    if dir.is_none() {
        source.problem(
            "cache.dir",
            "is missing or empty",
            "name a folder on a local SSD, as in dir = \"/var/cache/glidefs\" under [cache]",
        );
    }
    Some(CacheSettings {
        dir: PathBuf::from(dir?),
        size_bytes: bytes_from_gib(size),
        dirty_bytes_max: bytes_from_gib(dirty.unwrap_or(size * DIRTY_SHARE_DEFAULT)),
    })
}

fn read_storage(source: &mut Source<'_>, environment: &Environment) -> Option<StorageSettings> {
    let given = source.has("storage.url");
    let url = source.string("storage.url").and_then(|text| {
        StoreUrl::parse(&text)
            .map_err(|wrong| {
                source.problem(
                    "storage.url",
                    wrong,
                    "write for example s3://bucket/prefix or file:///var/lib/glidefs",
                );
            })
            .ok()
    });
    if !given {
        source.problem(
            "storage.url",
            "is missing",
            "say where volumes live, as in url = \"s3://my-bucket/vms\" under [storage]",
        );
    }
    let password = source.secret_or_file(
        "storage.encryption_password",
        "storage.encryption_password_file",
    );
    let compression = source
        .string("storage.compression")
        .and_then(|name| read_compression(source, &name))
        .unwrap_or(Compression::Lz4);
    let access = read_access(source, environment);
    Some(StorageSettings {
        url: url?,
        password,
        compression,
        access,
    })
}

fn read_compression(source: &mut Source<'_>, name: &str) -> Option<Compression> {
    match name {
        "lz4" => Some(Compression::Lz4),
        "zstd" => Some(Compression::Zstd(ZSTD_LEVEL)),
        "none" => Some(Compression::None),
        _ => {
            source.problem(
                "storage.compression",
                "is no compression that glidefs knows",
                "write \"lz4\" (fast), \"zstd\" (dense) or \"none\"",
            );
            None
        }
    }
}

/// The file wins over the environment, key by key.
fn read_access(source: &mut Source<'_>, environment: &Environment) -> StoreAccess {
    let variable = |names: &[&str]| environment.first(names).map(str::to_owned);
    let endpoint = source
        .string("aws.endpoint")
        .or_else(|| variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]));
    let region = source
        .string("aws.default_region")
        .or_else(|| variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
        .unwrap_or_else(|| REGION_DEFAULT.to_owned());
    let allow_http = source.boolean("aws.allow_http").unwrap_or_else(|| {
        variable(&["AWS_ALLOW_HTTP"]).is_some_and(|text| text == "true" || text == "1")
    });
    if let Some(endpoint) = &endpoint {
        check_endpoint(source, endpoint, allow_http);
    }
    StoreAccess {
        endpoint,
        region: Some(region),
        allow_http,
        ..read_keys(source, environment)
    }
}

/// The pair of keys is taken from the file and the files that it names, or from the environment; a session token from
/// where its pair is, for it belongs to no other.
fn read_keys(source: &mut Source<'_>, environment: &Environment) -> StoreAccess {
    const ID: &str = "aws.access_key_id";
    const SECRET: &str = "aws.secret_access_key";
    const TOKEN_FILE: &str = "aws.session_token_file";
    let id = source.found_secret(ID, "aws.access_key_id_file");
    let secret = source.found_secret(SECRET, "aws.secret_access_key_file");
    let token = source.secret_in_file(TOKEN_FILE);
    let is_given = |key: &str| source.has(key) || source.has(&format!("{key}_file"));
    let (has_id, has_secret) = (is_given(ID), is_given(SECRET));
    if has_id != has_secret {
        let remedy = format!("give both `{ID}` and `{SECRET}`, or neither");
        let key = if has_id { ID } else { SECRET };
        source.problem(key, "stands without its other half", remedy);
    } else if !has_id && source.has(TOKEN_FILE) {
        let remedy = format!("give `{ID}_file` and `{SECRET}_file` too");
        source.problem(TOKEN_FILE, "stands without the keys that it is of", remedy);
    }
    let variable = |name: &str| environment.get(name).map(str::to_owned);
    match (id, secret) {
        (Some(id), Some(secret)) => StoreAccess {
            access_key_id: Some(id.secret.reveal().to_owned()),
            secret_access_key: Some(secret.secret),
            session_token: token.as_ref().map(|token| token.secret.clone()),
            files: KeyFiles {
                access_key_id: id.file,
                secret_access_key: secret.file,
                session_token: token.and_then(|token| token.file),
            },
            ..StoreAccess::default()
        },
        // What is wrong with them has been noted.
        _ if has_id || has_secret => StoreAccess::default(),
        _ => StoreAccess {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY").map(Secret::new),
            session_token: variable("AWS_SESSION_TOKEN").map(Secret::new),
            ..StoreAccess::default()
        },
    }
}

fn check_endpoint(source: &mut Source<'_>, endpoint: &str, allow_http: bool) {
    if endpoint.starts_with("http://") {
        if !allow_http {
            source.problem(
                "aws.endpoint",
                "is plain http, which anybody on the way can read and change",
                "use https, or add allow_http = true under [aws] if the network is your own",
            );
        }
    } else if !endpoint.starts_with("https://") {
        source.problem(
            "aws.endpoint",
            "is no http or https URL",
            "write for example https://s3.example.com or http://127.0.0.1:9000",
        );
    }
}

fn read_nbd(source: &mut Source<'_>) -> NbdSettings {
    let unix_socket = source.string("servers.nbd.unix_socket").map(PathBuf::from);
    if let Some(path) = &unix_socket {
        let bytes = path.as_os_str().len();
        if bytes == 0 || bytes > UNIX_SOCKET_PATH_BYTES_MAX {
            source.problem(
                "servers.nbd.unix_socket",
                format!(
                    "is {bytes} bytes long; the kernel takes 1 to {UNIX_SOCKET_PATH_BYTES_MAX}"
                ),
                "choose a shorter path, as in /run/glidefs.sock",
            );
        }
    }
    let mut address = read_address(source, "servers.nbd.address");
    if unix_socket.is_none() && address.is_none() {
        address = Some(default_address(NBD_ADDRESS_DEFAULT));
    }
    let auto_create = source.number("servers.nbd.auto_create_size_gb", SIZE_GB_MIN..=SIZE_GB_MAX);
    let blocks = source
        .integer("servers.nbd.blocks_per_batch", 1..=BLOCKS_PER_BATCH_MAX)
        .unwrap_or(BLOCKS_PER_BATCH_DEFAULT);
    let delay = source
        .integer("servers.nbd.sync_delay_ms", 1..=SYNC_DELAY_MS_MAX)
        .unwrap_or(SYNC_DELAY_MS_DEFAULT);
    let grace = source
        .integer("servers.nbd.grace_s", 0..=GRACE_S_MAX)
        .unwrap_or(GRACE_S_DEFAULT);
    let read_wait = source
        .integer("servers.nbd.read_wait_s", 1..=READ_WAIT_S_MAX)
        .unwrap_or(READ_WAIT_S_DEFAULT);
    NbdSettings {
        unix_socket,
        address,
        auto_create_bytes: auto_create.map(bytes_from_gib),
        blocks_per_batch: u32::try_from(blocks).expect("at most 1000"),
        sync_delay: Duration::from_millis(delay),
        shared: source.boolean("servers.nbd.shared").unwrap_or(false),
        grace: Duration::from_secs(grace),
        read_wait: Duration::from_secs(read_wait),
    }
}

fn read_api(source: &mut Source<'_>) -> ApiSettings {
    ApiSettings {
        address: read_address(source, "servers.api.address")
            .unwrap_or_else(|| default_address(API_ADDRESS_DEFAULT)),
        token: source.secret_or_file("servers.api.token", "servers.api.token_file"),
    }
}

fn read_log(source: &mut Source<'_>, environment: &Environment) -> LogSettings {
    let format = match source.string("log.format").as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(_) => {
            source.problem(
                "log.format",
                "is no log format",
                "write \"text\" or \"json\"",
            );
            LogFormat::Text
        }
    };
    let level = source.string("log.level").unwrap_or_else(|| "info".into());
    if level.parse::<tracing_subscriber::EnvFilter>().is_err() {
        source.problem(
            "log.level",
            "is no log level",
            "write error, warn, info, debug or trace",
        );
    }
    LogSettings {
        format,
        filter: log_filter(&level, environment),
    }
}

/// `RUST_LOG` wins: who sets it is looking for something now.
fn log_filter(level: &str, environment: &Environment) -> String {
    environment.get("RUST_LOG").unwrap_or(level).to_owned()
}

fn read_address(source: &mut Source<'_>, key: &'static str) -> Option<SocketAddr> {
    let text = source.string(key)?;
    let numeric = text
        .strip_prefix("localhost:")
        .map_or_else(|| text.clone(), |port| format!("127.0.0.1:{port}"));
    let parsed = numeric.parse().ok();
    if parsed.is_none() {
        source.problem(
            key,
            "is no address with a port",
            "write IP and port, as in 127.0.0.1:8080 or [::1]:8080",
        );
    }
    parsed
}

fn default_address(text: &str) -> SocketAddr {
    text.parse().expect("the defaults are addresses")
}

#[cfg(test)]
mod tests;
