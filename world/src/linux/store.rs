//! Object stores on Linux: clouds through the `object_store` crate, folders (`file://`) and memory
//! (`memory://`), all on the edge runtime; a shard only waits for the result.
//!
//! Promises:
//! - Nothing is retried here: an answer that was lost is reported as lost (protocol rule 13).
//! - A read whose future is dropped is given up; so is a write, whose outcome is unknown then.
//! - Only what the store itself calls an absent key is [`StoreErrorKind::NotFound`]: a missing
//!   bucket, folder or permission is not.
//! - Keys that are renewed while it runs are used soon (`keys.rs`).
//! - What a store says of when to come again is passed on (`retry_after.rs`).
//!
//! GCS and Azure run through the same code as S3 and are not tested.

mod cloud;
mod failure;
mod files;
mod keys;
mod retry_after;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::store::{ETag, Listed, Object, Part, Store, StoreError, StoreErrorKind};
use crate::sync::Semaphore;
use cloud::Cloud;
use failure::Failure;
use files::Files;
pub use keys::{ReadKeys, StoreKeys};

/// Requests in flight through one [`LinuxStore`] and its clones; more wait their turn.
const REQUESTS_MAX: usize = 256;

/// Where the objects are, and how to get there.
#[derive(Clone)]
pub struct StoreConfig {
    /// `s3://bucket/prefix`, `gs://…`, `az://container/prefix`, `file:///folder` (or `file://` and a
    /// relative path; no percent-encoding), `memory://`.
    pub url: String,
    /// Where an S3-compatible store listens, if it is not Amazon's.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// For Azure the account. None: what the environment of the process says, by the cloud's own
    /// rules.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
    /// Of S3: reads the three above again, which may be renewed while the store is used. None: they stay as they are.
    pub read_keys: Option<ReadKeys>,
    /// Allow an endpoint without TLS.
    pub allow_http: bool,
    /// For one request, its body included.
    pub request_timeout: Duration,
}

impl StoreConfig {
    /// The store at `url`, with credentials from the environment.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            read_keys: None,
            allow_http: false,
            request_timeout: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for StoreConfig {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("url", &self.url)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("allow_http", &self.allow_http)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

/// A store that cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreConfigError {
    #[error("store url `{url}`: {why}")]
    Url { url: String, why: String },
    #[error("store `{url}`: {source}")]
    Client {
        url: String,
        source: object_store::Error,
    },
    #[error("store folder {}: {source}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// An object store. A cheap handle that may be used by any number of shards.
#[derive(Clone)]
pub struct LinuxStore {
    url: Arc<str>,
    backend: Backend,
    edge: Handle,
    requests: Arc<Semaphore>,
}

#[derive(Clone)]
enum Backend {
    Cloud(Arc<Cloud>),
    Files(Arc<Files>),
}

impl LinuxStore {
    /// Prepares a store, without asking it anything; a folder is created where it is missing.
    /// Requests run on `edge`, which must have its I/O and time drivers enabled.
    pub fn open(config: &StoreConfig, edge: Handle) -> Result<Self, StoreConfigError> {
        let backend = if let Some(folder) = config.url.strip_prefix("file://") {
            let path = PathBuf::from(folder);
            let files = Files::open(&path);
            let files = files.map_err(|source| StoreConfigError::Folder { path, source })?;
            Backend::Files(Arc::new(files))
        } else {
            Backend::Cloud(Arc::new(Cloud::open(config)?))
        };
        Ok(Self {
            url: config.url.as_str().into(),
            backend,
            edge,
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        })
    }

    /// Runs a request on the edge and says, if it fails, which one it was.
    async fn request<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        request: Request<T>,
    ) -> Result<T, StoreError> {
        // Never closed: an error would only lift the bound.
        let permit = Arc::clone(&self.requests).acquire_owned().await.ok();
        let task = match (request, &self.backend) {
            (Request::Cloud(future), _) => self.edge.spawn(future),
            (Request::Files(work), Backend::Files(files)) => {
                let files = Arc::clone(files);
                self.edge.spawn_blocking(move || work(&files))
            }
            (Request::Files(_), Backend::Cloud(_)) => {
                unreachable!("a request is made for the backend of its store")
            }
        };
        let outcome = GivenUpOnDrop(task).await;
        drop(permit);
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => {
                    let why = format!("the process is ending: {error}");
                    Err(Failure::new(StoreErrorKind::Unknown, why))
                }
            },
        };
        outcome.map_err(|failure| StoreError {
            operation,
            key: key.to_owned(),
            kind: failure.kind,
            message: failure.message,
            retry_after: failure.retry_after,
        })
    }
}

/// Work for the edge: asynchronous for a cloud, blocking for a folder.
enum Request<T> {
    Cloud(Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>),
    Files(FilesWork<T>),
}

type FilesWork<T> = Box<dyn FnOnce(&Files) -> Result<T, Failure> + Send>;

struct GivenUpOnDrop<T>(JoinHandle<T>);

impl<T> Future for GivenUpOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for GivenUpOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Store for LinuxStore {
    async fn get(&self, key: &str, part: Part) -> Result<Object, StoreError> {
        let name = key.to_owned();
        let request = match &self.backend {
            Backend::Cloud(cloud) => {
                let cloud = Arc::clone(cloud);
                Request::Cloud(Box::pin(async move { cloud.get(&name, part).await }))
            }
            Backend::Files(_) => Request::Files(Box::new(move |files| files.get(&name, &part))),
        };
        self.request("get", key, request).await
    }

    async fn create(&self, key: &str, body: Bytes) -> Result<ETag, StoreError> {
        let name = key.to_owned();
        let request = match &self.backend {
            Backend::Cloud(cloud) => {
                let cloud = Arc::clone(cloud);
                Request::Cloud(Box::pin(async move { cloud.create(&name, body).await }))
            }
            Backend::Files(_) => Request::Files(Box::new(move |files| files.create(&name, &body))),
        };
        self.request("create", key, request).await
    }

    async fn replace(&self, key: &str, seen: &ETag, body: Bytes) -> Result<ETag, StoreError> {
        let (name, seen) = (key.to_owned(), seen.clone());
        let request = match &self.backend {
            Backend::Cloud(cloud) => {
                let cloud = Arc::clone(cloud);
                let replace = async move { cloud.replace(&name, &seen, body).await };
                Request::Cloud(Box::pin(replace))
            }
            Backend::Files(_) => {
                Request::Files(Box::new(move |files| files.replace(&name, &seen, &body)))
            }
        };
        self.request("replace", key, request).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        count_max: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let (under, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        let request = match &self.backend {
            Backend::Cloud(cloud) => {
                let cloud = Arc::clone(cloud);
                let list = async move { cloud.list(&under, &after, count_max).await };
                Request::Cloud(Box::pin(list))
            }
            Backend::Files(_) => {
                Request::Files(Box::new(move |files| files.list(&under, &after, count_max)))
            }
        };
        self.request("list", prefix, request).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let name = key.to_owned();
        let request = match &self.backend {
            Backend::Cloud(cloud) => {
                let cloud = Arc::clone(cloud);
                Request::Cloud(Box::pin(async move { cloud.delete(&name).await }))
            }
            Backend::Files(_) => Request::Files(Box::new(move |files| files.delete(&name))),
        };
        self.request("delete", key, request).await
    }

    fn keeps_versions(&self) -> bool {
        match &self.backend {
            Backend::Cloud(cloud) => cloud.keeps_versions(),
            Backend::Files(_) => false,
        }
    }
}

impl fmt::Debug for LinuxStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinuxStore").field(&self.url).finish()
    }
}
