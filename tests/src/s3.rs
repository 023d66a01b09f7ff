//! A real S3 endpoint over HTTP, for tests and benchmarks: signed requests, ETags, ranges, lists.
//!
//! `s3s` speaks the protocol and `s3s-fs` keeps the objects. That backend checks a condition and
//! then writes, so two creators can both win; here one lock makes check and write a single step,
//! and conditions mean what S3 says they mean. The same place counts every operation and injects
//! faults: an error before the effect, an error after it (the answer is lost, the effect is not),
//! a delay, an outage. What HTTP and the network do to requests is the [`weather`]; who is let in, and when,
//! is up to [`keys`] and its [`clock`]; the [`door`] may have TLS.
//!
//! Deliberately absent: durability (a test's objects need not survive a power cut), multipart
//! beyond what the backend does.

pub mod clock;
pub mod door;
pub mod identity;
pub mod keys;
pub mod weather;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::BytesMut;
use futures_util::StreamExt;
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, Uri};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput,
    DeleteObjectsInput, DeleteObjectsOutput, ETag, ETagCondition, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput, Range, StreamingBlob, UploadPartInput,
    UploadPartOutput,
};
use s3s::route::S3Route;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use clock::Clock;
use door::Door;
use keys::{Doorkeeper, Keys};
use weather::Weather;

pub const BUCKET: &str = "test-bucket";
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";
pub const REGION: &str = "us-east-1";
/// Requests to this path steer the server: `GET` tells the counts, `POST ?outage=1&delay_ms=20` sets faults.
const CONTROL_PATH: &str = "/test-control/faults";

/// What the server shall do wrong. All numbers may change while it runs; 0 is "never".
#[derive(Debug, Default)]
pub struct Faults {
    /// Every request answers 503, and nothing happens.
    pub outage: AtomicBool,
    pub delay_ms: AtomicU64,
    /// Every n-th request fails before its effect.
    pub before_every: AtomicU64,
    /// Every n-th request fails after its effect.
    pub after_every: AtomicU64,
    /// So many of the next writes fail after their effect.
    pub lost_answers: AtomicU64,
    /// The bucket keeps old versions: answers to writes name the version.
    pub versioned: AtomicBool,
    /// Conditions of writes are ignored, without a word. So does Garage 2.5, which also names versions.
    pub careless: AtomicBool,
    /// A PUT with If-Match on a key that is absent creates it.
    pub creates_absent: AtomicBool,
    /// A PUT with If-Match is refused whatever it says: so it is behind a proxy that changes ETags.
    pub refuses_if_match: AtomicBool,
    requests: AtomicU64,
}

impl Faults {
    pub fn set(&self, name: &str, value: u64) -> bool {
        match name {
            "outage" => self.outage.store(value != 0, Ordering::SeqCst),
            "delay_ms" => self.delay_ms.store(value, Ordering::SeqCst),
            "before_every" => self.before_every.store(value, Ordering::SeqCst),
            "after_every" => self.after_every.store(value, Ordering::SeqCst),
            "careless" => self.careless.store(value != 0, Ordering::SeqCst),
            "creates_absent" => self.creates_absent.store(value != 0, Ordering::SeqCst),
            "refuses_if_match" => self.refuses_if_match.store(value != 0, Ordering::SeqCst),
            "versioned" => self.versioned.store(value != 0, Ordering::SeqCst),
            "lost_answers" => self.lost_answers.store(value, Ordering::SeqCst),
            _ => return false,
        }
        true
    }
}

/// How many requests of each kind arrived, faulty ones included.
#[derive(Debug, Default)]
pub struct Counts {
    pub put: AtomicU64,
    pub get: AtomicU64,
    pub head: AtomicU64,
    pub list: AtomicU64,
    pub delete: AtomicU64,
    pub multipart: AtomicU64,
    pub put_bytes: AtomicU64,
    pub get_bytes: AtomicU64,
}

impl Counts {
    /// All of them by name.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        let all = [
            ("put", &self.put),
            ("get", &self.get),
            ("head", &self.head),
            ("list", &self.list),
            ("delete", &self.delete),
            ("multipart", &self.multipart),
            ("put_bytes", &self.put_bytes),
            ("get_bytes", &self.get_bytes),
        ];
        let load = |(name, count): (&'static str, &AtomicU64)| (name, count.load(Ordering::SeqCst));
        all.into_iter().map(load).collect()
    }

    /// Requests of all kinds.
    pub fn requests(&self) -> u64 {
        let kinds = [
            &self.put,
            &self.get,
            &self.head,
            &self.list,
            &self.delete,
            &self.multipart,
        ];
        kinds.map(|it| it.load(Ordering::SeqCst)).iter().sum()
    }
}

/// The endpoint, on a thread of its own; dropping it stops it.
#[derive(Debug)]
pub struct S3Server {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
    pub weather: Arc<Weather>,
    pub counts: Arc<Counts>,
    /// What requests must be signed with, from now on.
    pub keys: watch::Sender<Keys>,
    /// What dates of signatures and keys are held against.
    pub clock: Arc<Clock>,
    /// How connections come in, from now on. Those that are there end with each change.
    pub door: watch::Sender<Door>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Serves the folder on a free port of the loopback, or on the port given.
    #[expect(
        clippy::disallowed_methods,
        reason = "the endpoint is another machine: not in our world"
    )]
    pub fn start(folder: &Path, port: u16) -> Result<Self> {
        std::fs::create_dir_all(folder.join(BUCKET))?;
        let faults = Arc::new(Faults::default());
        let counts = Arc::new(Counts::default());
        let weather = Arc::new(Weather::default());
        let clock = Arc::new(Clock::default());
        let through = Arc::clone(&weather);
        let (keys, current) = watch::channel(Keys::default());
        let (door, now) = watch::channel(Door::default());
        let doorkeeper = Doorkeeper {
            keys: current,
            clock: Arc::clone(&clock),
            weather: Arc::clone(&weather),
        };
        let service = service(folder, &faults, &counts, doorkeeper)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port)))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = door::serve(listener, service, through, now) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address,
            faults,
            weather,
            counts,
            keys,
            clock,
            door,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for ever: what the binary does.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the endpoint's thread does not panic");
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Dropping the sender is the signal.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the endpoint's thread does not panic");
        }
    }
}

fn service(
    folder: &Path,
    faults: &Arc<Faults>,
    counts: &Arc<Counts>,
    doorkeeper: Doorkeeper,
) -> Result<S3Service> {
    let files = FileSystem::new(folder)
        .ok()
        .context("opening the folder of objects")?;
    let endpoint = Endpoint {
        files,
        objects: folder.join(BUCKET),
        gate: tokio::sync::Semaphore::new(1),
        faults: Arc::clone(faults),
        counts: Arc::clone(counts),
    };
    let mut builder = S3ServiceBuilder::new(endpoint);
    builder.set_auth(doorkeeper.clone());
    builder.set_access(doorkeeper);
    builder.set_route(ControlRoute {
        faults: Arc::clone(faults),
        counts: Arc::clone(counts),
    });
    Ok(builder.build())
}

/// The backend behind the lock, the faults and the counts.
struct Endpoint {
    files: FileSystem,
    /// Where the backend keeps those of the bucket.
    objects: PathBuf,
    /// One state change or read of state at a time: a condition and its write are one step.
    gate: tokio::sync::Semaphore,
    faults: Arc<Faults>,
    counts: Arc<Counts>,
}

/// Whether a request changes state: only then can a lost answer mislead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Change,
}

impl Endpoint {
    /// Faults before, the effect alone in the room, faults after.
    async fn perform<T>(
        &self,
        kind: Kind,
        effect: impl Future<Output = S3Result<T>> + Send,
    ) -> S3Result<T> {
        let number = self.faults.requests.fetch_add(1, Ordering::SeqCst) + 1;
        self.before(number).await?;
        let permit = self.gate.acquire().await;
        let _permit = permit.map_err(|_closed| s3_error!(ServiceUnavailable))?;
        let done = effect.await?;
        if is_turn(number, &self.faults.after_every) {
            return Err(s3_error!(InternalError, "injected after the effect"));
        }
        if kind == Kind::Change && take_one(&self.faults.lost_answers) {
            return Err(s3_error!(InternalError, "injected: the answer is lost"));
        }
        Ok(done)
    }

    /// Whether there is such an object: the backend keeps each in a file of its name.
    fn holds(&self, key: &str) -> bool {
        self.objects.join(key).is_file()
    }

    /// The last bytes of an object are all of it where it has fewer; the backend would look for
    /// bytes before its beginning, and call that an internal error.
    async fn bound_suffix(&self, request: &mut S3Request<GetObjectInput>) -> S3Result<()> {
        let Some(Range::Suffix { length }) = request.input.range else {
            return Ok(());
        };
        let mut whole = request.clone();
        whole.input.range = None;
        let size = self.files.get_object(whole).await?.output.content_length;
        let length = length.min(bytes_of(size));
        request.input.range = Some(Range::Suffix { length });
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a slow store is slow in real time"
    )]
    async fn before(&self, number: u64) -> S3Result<()> {
        let delay_ms = self.faults.delay_ms.load(Ordering::SeqCst);
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        if self.faults.outage.load(Ordering::SeqCst) {
            return Err(s3_error!(ServiceUnavailable, "injected outage"));
        }
        if is_turn(number, &self.faults.before_every) {
            return Err(s3_error!(SlowDown, "injected before the effect"));
        }
        Ok(())
    }
}

fn is_turn(number: u64, every: &AtomicU64) -> bool {
    let every = every.load(Ordering::SeqCst);
    every > 0 && number.is_multiple_of(every)
}

fn take_one(left: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

fn is_match(condition: &ETagCondition, tag: &ETag) -> bool {
    condition.is_any()
        || condition
            .as_etag()
            .is_some_and(|wanted| wanted.strong_cmp(tag))
}

/// If-Match on an object that is not there is a 404 at S3; the backend calls it a failed condition.
fn absent_is_404(error: S3Error) -> S3Error {
    match error.message() {
        Some("Object does not exist") => s3_error!(NoSuchKey),
        _ => error,
    }
}

/// Takes the whole body off the wire before anything is locked: a slow sender holds nobody up.
async fn collect(body: Option<StreamingBlob>) -> S3Result<Option<StreamingBlob>> {
    let Some(mut body) = body else {
        return Ok(None);
    };
    let mut bytes = BytesMut::new();
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(|_cut_off| s3_error!(IncompleteBody))?);
    }
    Ok(Some(StreamingBlob::from(Body::from(bytes.freeze()))))
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::SeqCst);
}

fn bytes_of(length: Option<i64>) -> u64 {
    length
        .and_then(|length| u64::try_from(length).ok())
        .unwrap_or(0)
}

#[async_trait::async_trait]
impl S3 for Endpoint {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        count(&self.counts.put, 1);
        count(
            &self.counts.put_bytes,
            bytes_of(request.input.content_length),
        );
        request.input.body = collect(request.input.body.take()).await?;
        if self.faults.careless.load(Ordering::SeqCst) {
            (request.input.if_match, request.input.if_none_match) = (None, None);
        }
        let is_replacing = request.input.if_match.is_some();
        let effect = async {
            if is_replacing && self.faults.refuses_if_match.load(Ordering::SeqCst) {
                return Err(s3_error!(PreconditionFailed));
            }
            let creates_absent = self.faults.creates_absent.load(Ordering::SeqCst);
            if creates_absent && !self.holds(&request.input.key) {
                request.input.if_match = None;
            }
            let mut done = self.files.put_object(request).await;
            if let Ok(done) = &mut done
                && self.faults.versioned.load(Ordering::SeqCst)
            {
                done.output.version_id = Some("one-of-many".to_owned());
            }
            done.map_err(|error| {
                if is_replacing {
                    absent_is_404(error)
                } else {
                    error
                }
            })
        };
        self.perform(Kind::Change, effect).await
    }

    async fn get_object(
        &self,
        mut request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        count(&self.counts.get, 1);
        let if_match = request.input.if_match.clone();
        let if_none_match = request.input.if_none_match.clone();
        let effect = async {
            self.bound_suffix(&mut request).await?;
            let response = self.files.get_object(request).await?;
            let tag = response.output.e_tag.as_ref();
            if let (Some(tag), Some(unwanted)) = (tag, if_none_match)
                && is_match(&unwanted, tag)
            {
                return Err(s3_error!(NotModified));
            }
            if let (Some(tag), Some(wanted)) = (tag, if_match)
                && !is_match(&wanted, tag)
            {
                return Err(s3_error!(PreconditionFailed));
            }
            Ok(response)
        };
        let response = self.perform(Kind::Read, effect).await?;
        count(
            &self.counts.get_bytes,
            bytes_of(response.output.content_length),
        );
        Ok(response)
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        count(&self.counts.head, 1);
        self.perform(Kind::Read, self.files.head_object(request))
            .await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        count(&self.counts.delete, 1);
        self.perform(Kind::Change, self.files.delete_object(request))
            .await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        count(&self.counts.delete, 1);
        self.perform(Kind::Change, self.files.delete_objects(request))
            .await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        count(&self.counts.list, 1);
        self.perform(Kind::Read, self.files.list_objects_v2(request))
            .await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        count(&self.counts.multipart, 1);
        self.perform(Kind::Change, self.files.create_multipart_upload(request))
            .await
    }

    async fn upload_part(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        count(&self.counts.multipart, 1);
        request.input.body = collect(request.input.body.take()).await?;
        self.perform(Kind::Change, self.files.upload_part(request))
            .await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        count(&self.counts.multipart, 1);
        self.perform(Kind::Change, self.files.complete_multipart_upload(request))
            .await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        count(&self.counts.multipart, 1);
        self.perform(Kind::Change, self.files.abort_multipart_upload(request))
            .await
    }

    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.perform(Kind::Change, self.files.create_bucket(request))
            .await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        count(&self.counts.head, 1);
        self.perform(Kind::Read, self.files.head_bucket(request))
            .await
    }
}

/// Steering by HTTP, for a server in another process.
struct ControlRoute {
    faults: Arc<Faults>,
    counts: Arc<Counts>,
}

#[async_trait::async_trait]
impl S3Route for ControlRoute {
    fn is_match(&self, _: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        uri.path() == CONTROL_PATH
    }

    /// Anybody on the loopback may: the server holds test data only.
    async fn check_access(&self, _: &mut S3Request<Body>) -> S3Result<()> {
        Ok(())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        if request.method == Method::POST {
            for pair in request.uri.query().unwrap_or_default().split('&') {
                let (name, value) = pair.split_once('=').ok_or(s3_error!(InvalidArgument))?;
                let value = value
                    .parse()
                    .map_err(|_no_number| s3_error!(InvalidArgument))?;
                if !self.faults.set(name, value) {
                    return Err(s3_error!(InvalidArgument, "no such fault"));
                }
            }
        }
        let counts = serde_json::to_string(&self.counts.snapshot());
        let counts = counts.map_err(|_never| s3_error!(InternalError))?;
        Ok(S3Response::new(Body::from(counts)))
    }
}
