//! What a fork is held against: as many small requests by a plain client of the same library, one
//! after the other, to the same store.

use anyhow::Result;
use bytes::Bytes;
use glidefs_tests::load::now;
use glidefs_tests::s3::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ClientOptions, GetOptions, ObjectStore, PutMode, PutOptions};
use tokio::runtime::{Builder, Runtime};

/// About what a root has.
const BODY: &[u8] = &[7; 1024];

pub(crate) struct Plain {
    runtime: Runtime,
    store: AmazonS3,
    rounds: u64,
}

impl Plain {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let store = AmazonS3Builder::new()
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .with_region(REGION)
            .with_endpoint(url)
            .with_bucket_name(BUCKET)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()?;
        // A worker beside the one that waits, so that connections are kept between rounds.
        let mut runtime = Builder::new_multi_thread();
        Ok(Self {
            runtime: runtime.worker_threads(1).enable_all().build()?,
            store,
            rounds: 0,
        })
    }

    /// Seconds of each of so many rounds.
    pub(crate) fn rounds(&mut self, count: u64) -> Result<Vec<f64>> {
        (0..count).map(|_| self.round()).collect()
    }

    /// Create, read, create: as a fork puts a pin, reads the parent's root and puts the child's.
    fn round(&mut self) -> Result<f64> {
        self.rounds += 1;
        let pin = Key::parse(format!("control/{}/pin", self.rounds))?;
        let root = Key::parse(format!("control/{}/root", self.rounds))?;
        let (store, body) = (&self.store, Bytes::from_static(BODY));
        let create = || PutOptions::from(PutMode::Create);
        let began = now();
        self.runtime.block_on(async {
            store.put_opts(&pin, body.clone().into(), create()).await?;
            let read = store.get_opts(&pin, GetOptions::default()).await?;
            read.bytes().await?;
            store.put_opts(&root, body.into(), create()).await?;
            anyhow::Ok(())
        })?;
        Ok(began.elapsed().as_secs_f64())
    }
}
