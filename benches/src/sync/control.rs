//! What sync is held against: the same bytes put by a plain client of the same library, and the
//! same computing on one core in a loop.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use glidefs_benches::process;
use glidefs_tests::s3::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path as Key;
use object_store::{Certificate, ClientOptions, ObjectStore, PutMode, PutOptions, RetryConfig};

use crate::case::{Case, Codec, Encryption};
use crate::clock;
use crate::content::Pages;
use crate::endpoint::Endpoint;

/// Plain bytes of one round of computing.
const LOOP_BYTES: usize = 64 << 20;
const GIB: f64 = (1_u64 << 30) as f64;
/// The product stores a frame raw if it would not save a sixteenth.
const GAIN_MIN: usize = 16;
const ZSTD_LEVEL: i32 = 1;

/// What the plain client is to put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) objects: u64,
    pub(crate) object_bytes: usize,
    /// Requests at a time.
    pub(crate) parallel: usize,
}

/// What that took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    pub(crate) seconds: f64,
    /// Of the client alone.
    pub(crate) cpu_seconds: f64,
}

/// Puts new objects as the product does, and nothing else.
pub(crate) fn put_plainly(endpoint: &Endpoint, prefix: &str, load: Load) -> Result<Plain> {
    let mut body = vec![0; load.object_bytes / 8 * 8];
    let mut filler = glidefs_tests::pages::Filler::new(1);
    for word in body.chunks_exact_mut(8) {
        word.copy_from_slice(&filler.next_word().to_le_bytes());
    }
    let body = Bytes::from(body);
    let before = process::cpu_seconds(std::process::id())?;
    let (put, seconds) = clock::timed(|| match endpoint.url() {
        Some(url) => put_objects(&client(endpoint, url)?, prefix, &body, load),
        None => put_files(&endpoint.folder().join(prefix), &body, load),
    });
    put?;
    Ok(Plain {
        seconds,
        cpu_seconds: process::cpu_seconds(std::process::id())? - before,
    })
}

/// With the settings of the product's own client.
fn client(endpoint: &Endpoint, url: String) -> Result<Arc<AmazonS3>> {
    let mut options = ClientOptions::new().with_allow_http(true);
    if let Some(path) = endpoint.certificate() {
        options = options.with_root_certificate(Certificate::from_pem(&read(path)?)?);
    }
    let store = AmazonS3Builder::new()
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_region(REGION)
        .with_unsigned_payload(endpoint.certificate().is_some())
        .with_endpoint(url)
        .with_bucket_name(BUCKET)
        .with_client_options(options)
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        })
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .build()?;
    Ok(Arc::new(store))
}

#[expect(clippy::disallowed_methods, reason = "a key to read, once")]
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the control is what it is without our world"
)]
fn put_objects(store: &Arc<AmazonS3>, prefix: &str, body: &Bytes, load: Load) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let next = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let workers: Vec<_> = (0..load.parallel)
            .map(|_| {
                let (store, next, body) = (Arc::clone(store), Arc::clone(&next), body.clone());
                let prefix = prefix.to_owned();
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        if number >= load.objects {
                            return anyhow::Ok(());
                        }
                        let key = Key::parse(format!("{prefix}/seg/{number}"))?;
                        let options = PutOptions::from(PutMode::Create);
                        store.put_opts(&key, body.clone().into(), options).await?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await??;
        }
        Ok(())
    })
}

/// Durable files, as the product's store in a folder writes them.
#[expect(clippy::disallowed_types, reason = "a control on real files")]
fn put_files(folder: &Path, body: &Bytes, load: Load) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let next = AtomicU64::new(0);
    let put = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= load.objects {
                return Ok(());
            }
            let mut file = std::fs::File::create_new(folder.join(number.to_string()))?;
            file.write_all(body)?;
            file.sync_all()?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..load.parallel).map(|_| scope.spawn(put)).collect();
        let mut workers = workers.into_iter();
        workers.try_for_each(|it| it.join().expect("it does not panic"))
    })
}

/// CPU seconds for each GiB of plain data, on one core, in a loop that does nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Computing {
    pub(crate) compress: f64,
    pub(crate) seal: f64,
    pub(crate) hash: f64,
    /// What a client adds where it signs the payload.
    pub(crate) sha256: f64,
    /// Bytes that come out, for each that goes in.
    pub(crate) stored: f64,
}

impl Computing {
    /// All that sync must do between the log and the client of the store.
    pub(crate) fn needed(&self, case: &Case) -> f64 {
        let seal = match case.encryption {
            Encryption::Off => 0.0,
            Encryption::On => self.seal,
        };
        self.compress + self.hash + seal
    }
}

/// Measures one content in frames of one size. Room and tables are there beforehand: what is left is
/// what the bytes themselves cost.
pub(crate) fn compute(case: &Case) -> Result<Computing> {
    let mut plain = vec![0; LOOP_BYTES];
    Pages::new(case.content, 1).fill(&mut plain);
    let frame_bytes = case.pattern.frame_bytes();
    let each_gib = |seconds: f64| seconds * GIB / LOOP_BYTES as f64;
    let mut packer = Packer::new(case.codec, frame_bytes)?;
    // Not zeros: those the kernel would only promise.
    let mut stored = vec![1; LOOP_BYTES];
    let (lengths, compress) = clock::cpu_timed(|| {
        let mut at = 0;
        let lengths = plain.chunks(frame_bytes).map(|frame| {
            let len = packer.pack(frame, &mut stored[at..])?;
            at += len;
            Ok(len)
        });
        lengths.collect::<Result<Vec<usize>>>()
    });
    let lengths = lengths?;
    stored.truncate(lengths.iter().sum());
    let (sealed, seal) = clock::cpu_timed(|| seal_all(&lengths, &mut stored));
    sealed?;
    let ((), hash) = clock::cpu_timed(|| {
        let mut rest = &stored[..];
        for len in &lengths {
            let (frame, behind) = rest.split_at(*len);
            std::hint::black_box(blake3::hash(frame));
            rest = behind;
        }
    });
    let (_, sha256) = clock::cpu_timed(|| digest(&SHA256, &stored));
    Ok(Computing {
        compress: each_gib(compress),
        seal: each_gib(seal),
        hash: each_gib(hash),
        sha256: each_gib(sha256),
        stored: stored.len() as f64 / LOOP_BYTES as f64,
    })
}

fn seal_all(lengths: &[usize], stored: &mut [u8]) -> Result<()> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).context("a key of 32 bytes")?;
    let key = LessSafeKey::new(key);
    let mut rest = stored;
    for (len, number) in lengths.iter().zip(0_u64..) {
        let (frame, behind) = rest.split_at_mut(*len);
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from([0; 68]), frame);
        std::hint::black_box(&tag.context("sealing")?);
        rest = behind;
    }
    Ok(())
}

enum Packer {
    None,
    Lz4(CompressTable, Vec<u8>),
    Zstd(Box<zstd::bulk::Compressor<'static>>, Vec<u8>),
}

impl Packer {
    fn new(codec: Codec, frame_bytes: usize) -> Result<Self> {
        let room = vec![1; get_maximum_output_size(frame_bytes)];
        Ok(match codec {
            Codec::None => Self::None,
            Codec::Lz4 => Self::Lz4(CompressTable::small(), room),
            Codec::Zstd => Self::Zstd(Box::new(zstd::bulk::Compressor::new(ZSTD_LEVEL)?), room),
        })
    }

    /// To the beginning of `out`; as it is, where compressing does not pay.
    fn pack(&mut self, frame: &[u8], out: &mut [u8]) -> Result<usize> {
        let (len, room) = match self {
            Self::None => {
                out[..frame.len()].copy_from_slice(frame);
                return Ok(frame.len());
            }
            Self::Lz4(table, room) => (compress_into_with_table(frame, room, table)?, room),
            Self::Zstd(compressor, room) => {
                (compressor.compress_to_buffer(frame, &mut room[..])?, room)
            }
        };
        let packed = if len + frame.len() / GAIN_MIN < frame.len() {
            &room[..len]
        } else {
            frame
        };
        out[..packed.len()].copy_from_slice(packed);
        Ok(packed.len())
    }
}
