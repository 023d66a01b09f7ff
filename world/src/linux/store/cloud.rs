//! Clouds, and memory, through the `object_store` crate.
//!
//! Two of its habits are undone: it reports a failed If-Match and a missing object alike, so a
//! second look tells them apart; and some S3-compatible stores compare ETags without their quotes,
//! which shows when a store refuses the very version that it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutResult, RetryConfig, UpdateVersion,
};
use url::Url;

use super::failure::{Access, Failure, http_status};
use super::keys::RenewedKeys;
use super::retry_after::Connector;
use super::{StoreConfig, StoreConfigError};
use crate::store::{ETag, Listed, Object, Part, StoreErrorKind};

/// To connect, at most; a request may take longer.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// A bucket and a prefix in it.
pub(super) struct Cloud {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    version: Version,
    /// This store compares ETags without their quotes.
    bare_etags: AtomicBool,
    /// An answer named the version of an object beside its ETag.
    keeps_versions: AtomicBool,
}

/// What names the version of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    ETag,
    /// GCS conditions a put on the generation.
    Generation,
}

impl Cloud {
    pub(super) fn open(config: &StoreConfig) -> Result<Self, StoreConfigError> {
        let bad_url = |why: String| StoreConfigError::Url {
            url: config.url.clone(),
            why,
        };
        let url = Url::parse(&config.url).map_err(|error| bad_url(error.to_string()))?;
        let bucket = url.host_str().unwrap_or_default();
        if bucket.is_empty() && url.scheme() != "memory" {
            return Err(bad_url("it names no bucket".to_owned()));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|error| bad_url(error.to_string()))?;
        let built = match url.scheme() {
            "s3" => s3(config, bucket),
            "gs" => gcs(config, bucket),
            "az" => azure(config, bucket),
            "memory" => Ok(Arc::new(InMemory::new()) as Arc<dyn ObjectStore>),
            other => {
                return Err(bad_url(format!(
                    "unknown scheme `{other}`; use s3, gs, az, file or memory"
                )));
            }
        };
        Ok(Self {
            store: built.map_err(|source| StoreConfigError::Client {
                url: config.url.clone(),
                source,
            })?,
            prefix,
            version: match url.scheme() {
                "gs" => Version::Generation,
                _ => Version::ETag,
            },
            bare_etags: AtomicBool::new(false),
            keeps_versions: AtomicBool::new(false),
        })
    }

    pub(super) async fn get(&self, key: &str, part: Part) -> Result<Object, Failure> {
        let path = self.path(key)?;
        let range = match part {
            Part::All => None,
            // A client refuses to ask for nothing; so it is taken from the description.
            Part::Range(range) if range.is_empty() => return self.get_nothing(&path).await,
            Part::Suffix(0) => return self.get_nothing(&path).await,
            Part::Range(range) => Some(GetRange::Bounded(range)),
            Part::Suffix(len) => Some(GetRange::Suffix(len)),
        };
        match self.get_range(&path, range.clone()).await {
            // Not even the end of an empty object exists, say some; and Azure knows no suffixes.
            Err(error) if matches!(range, Some(GetRange::Suffix(_))) && suffix_refused(&error) => {
                self.get_end(&path, range).await
            }
            Err(error) => Err(Failure::of(Access::Read, &error)),
            Ok(answer) => self.object(range, answer),
        }
    }

    async fn get_range(
        &self,
        path: &Path,
        range: Option<GetRange>,
    ) -> object_store::Result<Answer> {
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let result = self.store.get_opts(path, options).await?;
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let bytes = result.bytes().await?;
        Ok(Answer { meta, range, bytes })
    }

    /// The last bytes, by length: for stores that do not count from the end.
    async fn get_end(&self, path: &Path, range: Option<GetRange>) -> Result<Object, Failure> {
        let nothing = self.get_nothing(path).await?;
        let Some(GetRange::Suffix(len)) = range else {
            return Ok(nothing);
        };
        if nothing.size == 0 {
            return Ok(nothing);
        }
        let range = GetRange::Bounded(nothing.size.saturating_sub(len)..nothing.size);
        match self.get_range(path, Some(range.clone())).await {
            Ok(answer) => self.object(Some(range), answer),
            Err(error) => Err(Failure::of(Access::Read, &error)),
        }
    }

    async fn get_nothing(&self, path: &Path) -> Result<Object, Failure> {
        let head = self.store.head(path).await;
        let meta = head.map_err(|error| Failure::of_head(&error))?;
        Ok(Object {
            bytes: Bytes::new(),
            etag: self.etag(meta.e_tag, meta.version, Access::Read)?,
            size: meta.size,
        })
    }

    /// Checks that what came is what was asked for, in full.
    fn object(&self, asked: Option<GetRange>, answer: Answer) -> Result<Object, Failure> {
        let Answer { meta, range, bytes } = answer;
        if u64::try_from(bytes.len()) != Ok(range.end.saturating_sub(range.start)) {
            let why = format!("{} bytes came of {range:?}", bytes.len());
            return Err(Failure::new(StoreErrorKind::Retry, why));
        }
        let wanted = match asked {
            None => 0..meta.size,
            Some(GetRange::Bounded(wanted)) => wanted,
            Some(GetRange::Offset(start)) => start..meta.size,
            Some(GetRange::Suffix(len)) => meta.size.saturating_sub(len)..meta.size,
        };
        if wanted != range {
            let why = format!("{wanted:?} asked of an object of {} bytes", meta.size);
            return Err(Failure::new(StoreErrorKind::Refused, why));
        }
        Ok(Object {
            bytes,
            etag: self.etag(meta.e_tag, meta.version, Access::Read)?,
            size: meta.size,
        })
    }

    pub(super) async fn create(&self, key: &str, body: Bytes) -> Result<ETag, Failure> {
        let path = self.path(key)?;
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(&path, body.into(), options).await {
            Ok(put) => self.etag_of(put),
            Err(error) => {
                let failure = Failure::of(Access::Write, &error);
                Err(match failure.kind {
                    // A key cannot be missing for a create: it is the bucket.
                    StoreErrorKind::NotFound => Failure {
                        kind: StoreErrorKind::Refused,
                        ..failure
                    },
                    _ => failure,
                })
            }
        }
    }

    pub(super) async fn replace(
        &self,
        key: &str,
        seen: &ETag,
        body: Bytes,
    ) -> Result<ETag, Failure> {
        let path = self.path(key)?;
        let refused = match self.put_over(&path, seen, body.clone()).await {
            Ok(put) => return self.etag_of(put),
            Err(error) => Failure::of(Access::Write, &error),
        };
        if refused.kind != StoreErrorKind::Conflict {
            return Err(refused);
        }
        // Is it gone, or another version? A wrong answer here (it changed since) is still one that
        // was true at some moment after the request.
        match self.store.head(&path).await {
            // The answer to a HEAD has no body, and a 404 without one may be a proxy's. That of a GET
            // says whether it is this key that is missing (protocol rule 16).
            Err(error) if Failure::of_head(&error).kind == StoreErrorKind::NotFound => {
                match self.get(key, Part::All).await {
                    Err(gone) if gone.kind == StoreErrorKind::NotFound => Err(gone),
                    _ => Err(refused),
                }
            }
            Err(_) => Err(refused),
            Ok(meta) if self.is_quoted(seen) && meta.e_tag.as_ref() == Some(&seen.0) => {
                match self.replace_by_bare_etag(&path, seen, body).await {
                    // It does not understand that at all: so its first answer is the one that counts.
                    Err(worse) if worse.kind == StoreErrorKind::Refused => Err(refused),
                    outcome => outcome,
                }
            }
            Ok(_) => Err(refused),
        }
    }

    /// The store refused the version that it says it has. It may want the ETag bare; asking so is
    /// still a conditional put. Only a success proves it, and is remembered.
    async fn replace_by_bare_etag(
        &self,
        path: &Path,
        seen: &ETag,
        body: Bytes,
    ) -> Result<ETag, Failure> {
        let bare = ETag(bare(&seen.0).to_owned());
        match self.put_over(path, &bare, body).await {
            Ok(put) => {
                self.bare_etags.store(true, Ordering::Relaxed);
                self.etag_of(put)
            }
            Err(error) => Err(Failure::of(Access::Write, &error)),
        }
    }

    async fn put_over(
        &self,
        path: &Path,
        seen: &ETag,
        body: Bytes,
    ) -> object_store::Result<PutResult> {
        let seen = if self.bare_etags.load(Ordering::Relaxed) {
            bare(&seen.0)
        } else {
            &seen.0
        };
        let seen = Some(seen.to_owned());
        let version = match self.version {
            Version::ETag => UpdateVersion {
                e_tag: seen,
                version: None,
            },
            Version::Generation => UpdateVersion {
                e_tag: None,
                version: seen,
            },
        };
        let options = PutOptions::from(PutMode::Update(version));
        self.store.put_opts(path, body.into(), options).await
    }

    fn is_quoted(&self, etag: &ETag) -> bool {
        self.version == Version::ETag && bare(&etag.0) != etag.0
    }

    pub(super) async fn list(
        &self,
        prefix: &str,
        after: &str,
        count_max: usize,
    ) -> Result<Vec<Listed>, Failure> {
        // The library lists whole path segments; the rest of the prefix is filtered.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let under = self.path(folder)?;
        let mut rows = if after.is_empty() {
            self.store.list(Some(&under))
        } else {
            let after = self.path(after)?;
            self.store.list_with_offset(Some(&under), &after)
        };
        let mut listed = Vec::new();
        while listed.len() < count_max {
            let Some(row) = rows.next().await else {
                break;
            };
            let row = row.map_err(|error| Failure::of(Access::Read, &error))?;
            let Some(key) = self.key(&row.location) else {
                continue;
            };
            if key.starts_with(prefix) {
                listed.push(Listed {
                    key,
                    size: row.size,
                });
            } else if key.as_str() > prefix {
                // In order, so nothing more will match.
                break;
            }
        }
        Ok(listed)
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), Failure> {
        let path = self.path(key)?;
        match self.store.delete(&path).await {
            Ok(()) => Ok(()),
            Err(error) => match Failure::of(Access::Write, &error) {
                gone if gone.kind == StoreErrorKind::NotFound => Ok(()),
                failure => Err(failure),
            },
        }
    }

    fn path(&self, key: &str) -> Result<Path, Failure> {
        let full = match (self.prefix.as_ref(), key) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}/{key}"),
        };
        Path::parse(full)
            .map_err(|error| Failure::new(StoreErrorKind::Refused, format!("bad key: {error}")))
    }

    fn key(&self, path: &Path) -> Option<String> {
        let key = path.as_ref().strip_prefix(self.prefix.as_ref())?;
        Some(key.strip_prefix('/').unwrap_or(key).to_owned())
    }

    pub(super) fn keeps_versions(&self) -> bool {
        self.keeps_versions.load(Ordering::Relaxed)
    }

    fn etag_of(&self, put: PutResult) -> Result<ETag, Failure> {
        // Without versions, or while they are suspended, S3 calls it `null`, if anything. GCS names a
        // generation always.
        let named = put.version.as_ref().is_some_and(|name| name != "null");
        if named && self.version == Version::ETag {
            self.keeps_versions.store(true, Ordering::Relaxed);
        }
        self.etag(put.e_tag, put.version, Access::Write)
    }

    fn etag(
        &self,
        etag: Option<String>,
        version: Option<String>,
        access: Access,
    ) -> Result<ETag, Failure> {
        let name = match self.version {
            Version::ETag => etag,
            Version::Generation => version,
        };
        let kind = match access {
            Access::Read => StoreErrorKind::Unsupported,
            // It was written; what it is called now has to be read.
            Access::Write => StoreErrorKind::Unknown,
        };
        name.filter(|name| !name.is_empty())
            .map(ETag)
            .ok_or_else(|| Failure::new(kind, "the store named no version (ETag) of the object"))
    }
}

impl Failure {
    /// Of a HEAD request: its answer has no body that could name the reason for a 404.
    fn of_head(error: &object_store::Error) -> Self {
        let failure = Self::of(Access::Read, error);
        match error {
            object_store::Error::NotFound { .. } => Self {
                kind: StoreErrorKind::NotFound,
                ..failure
            },
            _ => failure,
        }
    }
}

struct Answer {
    meta: ObjectMeta,
    range: std::ops::Range<u64>,
    bytes: Bytes,
}

fn suffix_refused(error: &object_store::Error) -> bool {
    http_status(error) == Some(416)
        || matches!(error, object_store::Error::NotSupported { .. })
        // Memory says so in words of its own.
        || matches!(error, object_store::Error::Generic { store: "InMemory", .. })
}

fn bare(etag: &str) -> &str {
    etag.strip_prefix('"')
        .and_then(|etag| etag.strip_suffix('"'))
        .unwrap_or(etag)
}

fn client_options(config: &StoreConfig) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_timeout(config.request_timeout)
        .with_connect_timeout(config.request_timeout.min(CONNECT_TIMEOUT_MAX))
}

/// A repeated conditional put would lose against itself: its first answer got lost, and the second
/// says "conflict". Who calls knows how to find out.
fn no_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::ZERO,
    }
}

fn s3(config: &StoreConfig, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => AmazonS3Builder::new()
            .with_access_key_id(id)
            .with_secret_access_key(secret),
        _ => AmazonS3Builder::from_env(),
    };
    if let Some(token) = &config.session_token {
        builder = builder.with_token(token);
    }
    if let Some(renewed) = RenewedKeys::of(config) {
        // In place of those above, which are what it begins with.
        builder = builder.with_credentials(Arc::new(renewed));
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let plain = match &config.endpoint {
        Some(endpoint) => {
            builder = builder.with_endpoint(endpoint);
            endpoint.starts_with("http://")
        }
        None => false,
    };
    // Amazon wants the bucket in the host name; a dot in it would not match the certificate.
    let virtual_hosted = config.endpoint.is_none() && !bucket.contains('.');
    let store = builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(virtual_hosted)
        .with_allow_http(config.allow_http)
        .with_client_options(client_options(config))
        .with_http_connector(Connector)
        .with_retry(no_retries())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true)
        // TLS protects the body on its way already; hashing it once more costs 4x the CPU of a put.
        .with_unsigned_payload(!plain)
        .build()?;
    Ok(Arc::new(store))
}

fn gcs(config: &StoreConfig, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let store = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(config))
        .with_http_connector(Connector)
        .with_retry(no_retries())
        .build()?;
    Ok(Arc::new(store))
}

fn azure(config: &StoreConfig, container: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    if let Some(account) = &config.access_key_id {
        builder = builder.with_account(account);
    }
    if let Some(key) = &config.secret_access_key {
        builder = builder.with_access_key(key);
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let store = builder
        .with_allow_http(config.allow_http)
        .with_client_options(client_options(config))
        .with_http_connector(Connector)
        .with_retry(no_retries())
        .build()?;
    Ok(Arc::new(store))
}
