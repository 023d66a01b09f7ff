//! What a server finds after a crash: a new world with the cache folder and the objects of one moment,
//! the server that ships on top, and a client that reads the whole volume.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use blockcache::CacheConfig;
use bytes::Bytes;
use glidefs::nbd::wire::{allocation, export};
use glidefs::shard::ShardConfig;
use glidefs::volume::{BucketConfig, Compression, KeyringCost};
use world::sim::{Delays, DiskImage, Sim, SimConfig, SimWorld, Spread};
use world::{Address, World};

use super::stream::Content;
use crate::nbd_client::{ClientError, NbdClient, Options};
use crate::sim::node::{NAME, Node, Started, socket};

const PASSWORD: &str = "correct horse battery staple";
/// Smaller than what is written in all, so that chunks are recycled on the way.
const CACHE_CHUNKS: u64 = 16;
const CHUNK_BYTES: u32 = 512 << 10;
const SYNC_DELAY: Duration = Duration::from_millis(4);
const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);
const NO_GRACE: Duration = Duration::from_secs(1_000_000);
/// A store that is close, so that many cuts are published in a short stream.
const STORE: Spread = Spread::micros(100, 2_000);
const READ_BYTES: u64 = 1 << 20;
const STATUS_BYTES: u64 = 64 << 20;
const TRIES_MAX: u32 = 60;
const TRY_PAUSE: Duration = Duration::from_secs(1);

pub(super) type Objects = BTreeMap<String, Bytes>;

/// The world of a replay and of a look.
pub(super) fn world() -> SimConfig {
    let usual = SimConfig::default();
    SimConfig {
        steps_max: u64::MAX / 2,
        trace_lines_max: 1,
        panic_lines_max: 0,
        delays: Delays {
            store: STORE,
            ..usual.delays
        },
        ..usual
    }
}

/// The settings of every server here.
pub(super) fn config(host: &str, volume_bytes: u64) -> ShardConfig {
    let size = 64 * 1024 + CACHE_CHUNKS * u64::from(CHUNK_BYTES);
    let mut cache = CacheConfig::new("/cache", size);
    cache.chunk_bytes = Some(CHUNK_BYTES);
    cache.volume_dirty_bytes_max = size / 2;
    let bucket = BucketConfig {
        password: Some(PASSWORD.to_owned()),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::Lz4)
    };
    let mut config = ShardConfig::new(cache, bucket, host);
    config.exports.create_bytes = Some(volume_bytes);
    config.exports.grace = NO_GRACE;
    config.exports.sync.delay = SYNC_DELAY;
    config.exports.sync.publish_interval_min = PUBLISH_INTERVAL;
    config
}

/// Where the server starts, and with what.
#[derive(Debug)]
pub(super) enum From {
    /// The host that crashed, with what the crash left of its cache folder.
    Ssd(DiskImage),
    /// Another host, with an empty cache.
    StoreAlone,
}

/// How much of the volume a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// All but what the server tells to be holes.
    Data,
    All,
}

/// One look.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) seed: u64,
    pub(super) volume_bytes: u64,
    pub(super) from: From,
    pub(super) objects: Objects,
    pub(super) reads: Reads,
}

impl Look {
    /// The content of the volume.
    pub(super) fn content(self) -> Result<Content> {
        let seed = self.seed;
        let seen = Sim::simulate(seed, world(), |sim| async move {
            Box::pin(self.play(sim)).await
        });
        match seen {
            Ok((content, _hash)) => content,
            Err(stuck) => Err(anyhow!("{} after {} steps", stuck.why, stuck.steps)),
        }
    }

    async fn play(self, sim: Sim) -> Result<Content> {
        sim.restore_objects(&self.objects);
        let (name, disk, writable) = match self.from {
            From::Ssd(image) => ("a", Some(image), true),
            From::StoreAlone => ("b", None, false),
        };
        let host = sim.host(name);
        if let Some(image) = disk {
            sim.restore_disk(host, &image);
        }
        start(&sim, name, self.volume_bytes).await?;
        let (size, reads) = (self.volume_bytes, self.reads);
        let read = sim.call(host, move |world| async move {
            let client = connect(&world).await?;
            let is_writable = client.export().flags & export::READ_ONLY == 0;
            ensure!(
                is_writable || !writable,
                "the owner cannot write to its own volume"
            );
            ensure!(client.size_bytes() == size, "the volume has another size");
            read_all(&client, reads).await
        });
        read.await.unwrap_or_else(|| bail!("the client is gone"))
    }
}

/// Starts a server on a host that nothing happens to.
pub(super) async fn start(sim: &Sim, host: &str, volume_bytes: u64) -> Result<Node> {
    match Node::start(sim, sim.host(host), config(host, volume_bytes)).await {
        Started::Up(node) => Ok(node),
        Started::Crashed => bail!("a host crashed that nobody touched"),
        Started::Refused(why) => bail!("the server does not start: {why}"),
    }
}

/// Connects with the patience of an operator.
pub(super) async fn connect(world: &SimWorld) -> Result<NbdClient<SimWorld>> {
    let at: Address = socket();
    let mut tries = 0;
    loop {
        match NbdClient::connect(world, &at, NAME, Options::default()).await {
            Err(ClientError::Refused { .. }) if tries < TRIES_MAX => {
                tries += 1;
                world.sleep(TRY_PAUSE).await;
            }
            other => return Ok(other?),
        }
    }
}

async fn read_all(client: &NbdClient<SimWorld>, reads: Reads) -> Result<Content> {
    let mut content = Content::default();
    let size = client.size_bytes();
    let mut at = 0;
    while at < size {
        let len = STATUS_BYTES.min(size - at);
        let runs = client.block_status(at, u32::try_from(len)?).await?;
        ensure!(!runs.is_empty(), "no status at {at}");
        for (len, flags) in runs {
            let end = (at + u64::from(len)).min(size);
            if reads == Reads::All || flags & allocation::ZERO == 0 {
                read_range(client, at..end, &mut content).await?;
            }
            at = end;
        }
    }
    Ok(content)
}

async fn read_range(
    client: &NbdClient<SimWorld>,
    range: std::ops::Range<u64>,
    content: &mut Content,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = READ_BYTES.min(range.end - at);
        let bytes = client.read(at, u32::try_from(len)?).await?;
        content.write(at, &bytes);
        at += len;
    }
    Ok(())
}
