//! A place in the bucket of an S3 endpoint that is there already: servers before it, and what it holds, by lists of its
//! own. Neither a server nor the endpoint's folder is asked for that, so it is true for any store.

use std::path::Path;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore};
use tokio::runtime::{Builder, Runtime};

use crate::s3::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};
use crate::server::{Server, Settings, Store};
use crate::tool;

/// The product's own default, so that its timers run as they do anywhere.
const SYNC_DELAY_MS: u64 = 8000;

/// A folder and a prefix that nobody else uses; the bucket and its keys are those of [`crate::s3`].
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub folder: &'a Path,
    pub endpoint: &'a str,
    pub prefix: &'a str,
}

impl Place<'_> {
    /// Of a node with a cache of its own: encrypted, with the delay and the compression of the product. Connecting creates
    /// nothing, and the process ends with ours where the machine can do that.
    pub fn settings(&self, node: &str) -> Settings {
        let store = Store::S3 {
            endpoint: self.endpoint.to_owned(),
            prefix: self.prefix.to_owned(),
        };
        let cache = self.folder.join(format!("cache-{node}"));
        Settings {
            auto_create_size_gb: None,
            sync_delay_ms: SYNC_DELAY_MS,
            wrapper: tool::ends_with_us(),
            ..Settings::new(store, &cache)
        }
    }

    pub fn start(&self, node: &str, settings: &Settings) -> Result<Server> {
        Server::start(&self.folder.join(node), settings)
    }

    /// Where the objects of a volume are.
    pub fn objects_of(&self, export: &str) -> String {
        format!("{}/nbd/{export}", self.prefix)
    }
}

/// What lies under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub objects: u64,
    pub bytes: u64,
}

/// Lists the bucket. The library's own bounds hold: half a minute for a request, some repetitions.
#[derive(Debug)]
pub struct Bucket {
    runtime: Runtime,
    store: AmazonS3,
}

impl Bucket {
    pub fn at(endpoint: &str) -> Result<Self> {
        let store = AmazonS3Builder::new()
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_region(REGION)
            .with_endpoint(endpoint)
            .with_bucket_name(BUCKET)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()?;
        // A worker beside the one that waits, so that connections are kept between lists.
        let mut runtime = Builder::new_multi_thread();
        Ok(Self {
            runtime: runtime.worker_threads(1).enable_all().build()?,
            store,
        })
    }

    /// All objects below the key, one list after the other: what comes and goes meanwhile may count or not.
    pub fn held(&self, below: &str) -> Result<Held> {
        let key = Key::parse(below).with_context(|| format!("`{below}` is no key"))?;
        let listed = self.runtime.block_on(async {
            let mut held = Held::default();
            let mut objects = self.store.list(Some(&key));
            while let Some(object) = objects.next().await {
                held.objects += 1;
                held.bytes += object?.size;
            }
            Ok::<Held, object_store::Error>(held)
        });
        listed.with_context(|| format!("listing `{below}` in bucket {BUCKET}"))
    }
}
