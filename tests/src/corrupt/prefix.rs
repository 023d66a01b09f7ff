//! What is attacked: a prefix with two volumes, one of them with all that a volume comes by in its life. A ledger that has
//! outgrown the map's index, and so has an object of its own; segments of several epochs, runs of the map, a tail; a
//! snapshot, forks of the volume and of the snapshot; dead objects that one of them holds, and dead ones that nobody does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use blockcache::{Id, PageRange};
use bytes::Bytes;
use glidefs::volume::{
    Bucket, BucketConfig, Compression, Fork, FrameContent, InUse, KeyChange, KeyringCost, Keyslots,
    Metered, Owner, PlainFrame, Publish, SnapshotChange, Tidy, Uploaded, Volume, VolumeError,
};
use world::World;
use world::sim::{HostId, Sim, SimConfig, SimWorld};
use zeroize::Zeroizing;

use super::Guard;

/// The volume that is attacked, and another one.
pub(super) const NAME: &str = "vm";
pub(super) const OTHER: &str = "other";
const SNAPSHOT: &str = "then";
/// Of the volume as it was a moment after the snapshot; of the snapshot; of the other volume.
const FORK: &str = "fork";
const FORK_OF_SNAPSHOT: &str = "second";
const FORK_OF_OTHER: &str = "of-other";
const PASSWORD: &str = "correct horse";
pub(super) const NEXT_PASSWORD: &str = "battery staple";
const PAGE: usize = 4096;
const SIZE_BYTES: u64 = 1 << 30;

const FOLDS: u64 = 3;
const PUBLISHES_PER_FOLD: u64 = 8;
/// Segments of one publish: more than the ledger keeps in the map's index (`RECENT_MAX`, 1,024).
const BURST: u64 = 1_100;
/// Pages that the burst wrote. Of its segments one is still there, and one died last; the ledger's object lists both.
const BURST_START: u64 = 1 << 16;
pub(super) const KEPT: u64 = BURST_START + BURST - 2;
/// Pages that were written and trimmed around the snapshot and the forks.
const HELD: u64 = 1 << 17;

/// Whoever reads pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reader {
    Volume,
    Snapshot,
    Fork,
}

pub(super) const READERS: [Reader; 3] = [Reader::Volume, Reader::Snapshot, Reader::Fork];

impl Reader {
    pub(super) async fn open(
        self,
        bucket: &Bucket<SimWorld>,
    ) -> Result<Volume<SimWorld>, VolumeError> {
        match self {
            Self::Volume => Box::pin(bucket.open_volume(NAME)).await,
            Self::Fork => Box::pin(bucket.open_volume(FORK)).await,
            Self::Snapshot => {
                let found = Box::pin(bucket.open_snapshot(NAME, SNAPSHOT)).await?;
                let missing = || VolumeError::Invalid(format!("`{NAME}` has no such snapshot"));
                found.ok_or_else(missing)
            }
        }
    }
}

/// What a reader must find.
pub(super) struct Sight {
    pub(super) reader: Reader,
    pub(super) pages: Vec<PageRange>,
    pub(super) expected: Vec<u8>,
}

/// What root and keyring were before their last changes.
pub(super) type Earlier = BTreeMap<String, Vec<Bytes>>;

pub(super) struct Prefix {
    pub(super) sim: Sim,
    pub(super) host: HostId,
    pub(super) built: Built,
}

/// What is known of a prefix.
pub(super) struct Built {
    pub(super) earlier: Earlier,
    pub(super) sights: Vec<Sight>,
    /// The key of the fork's pin.
    pub(super) pin: String,
    /// The handle that published last.
    pub(super) holder: Volume<SimWorld>,
}

/// Makes a prefix; and, if it is sealed, changes its password on the way.
pub(super) fn prefix(seed: u64, guard: Guard) -> Result<Prefix> {
    let sim = Sim::new(seed, SimConfig::default());
    let host = sim.host("node");
    let world = sim.process(host);
    let built = sim.run(Box::pin(build(sim.clone(), host, world, guard)))??;
    Ok(Prefix { sim, host, built })
}

async fn build(sim: Sim, host: HostId, world: SimWorld, guard: Guard) -> Result<Built> {
    let store = sim.store(host);
    let metered = Metered::new(world.clone(), store.clone());
    let config = config(guard, PASSWORD);
    let bucket = Box::pin(Bucket::open(world.clone(), metered, config)).await?;
    let mut other = Box::pin(Making::new(&bucket, &world, sim.seed(), OTHER)).await?;
    for _ in 0..FOLDS {
        Box::pin(other.fold()).await?;
    }
    Box::pin(other.fork(None, FORK_OF_OTHER)).await?;

    let mut own = Box::pin(Making::new(&bucket, &world, sim.seed(), NAME)).await?;
    Box::pin(own.past()).await?;
    Box::pin(own.fold()).await?;
    let forked = Box::pin(own.forks()).await?;
    for _ in 1..FOLDS {
        Box::pin(own.fold()).await?;
    }
    let mut earlier = Earlier::new();
    let changes = |key: &str| key == "keyring" || key.ends_with("/root");
    remember(&sim, &mut earlier, changes);
    own.sync().await?;
    if guard == Guard::Sealed {
        Box::pin(change_password(&sim, host, &world, &mut earlier)).await?;
    }
    let [then, fork] = forked.pages;
    let seed = sim.seed();
    Ok(Built {
        earlier,
        sights: vec![
            sight(Reader::Volume, seed, own.pages),
            sight(Reader::Snapshot, seed, then),
            sight(Reader::Fork, seed, fork),
        ],
        pin: forked.pin,
        holder: own.volume,
    })
}

async fn change_password(
    sim: &Sim,
    host: HostId,
    world: &SimWorld,
    earlier: &mut Earlier,
) -> Result<()> {
    let (store, cost) = (sim.store(host), KeyringCost::LEAST);
    let password = |text: &str| Zeroizing::new(text.to_owned());
    let add = KeyChange::Add {
        password: password(NEXT_PASSWORD),
    };
    let adding = Keyslots::change(world, &store, password(PASSWORD), add, cost);
    let added = Box::pin(adding).await?;
    // It opens with either password, so that only its age can give it away.
    remember(sim, earlier, |key| key == "keyring");
    let old = added.now.in_use.context("it was opened")?;
    let remove = KeyChange::Remove {
        slot: old.to_string(),
        in_use: InUse::Keep,
    };
    let removing = Keyslots::change(world, &store, password(NEXT_PASSWORD), remove, cost);
    Box::pin(removing).await?;
    Ok(())
}

fn remember(sim: &Sim, earlier: &mut Earlier, is_wanted: impl Fn(&str) -> bool) {
    let objects = sim.objects().into_iter();
    for (key, bytes) in objects.filter(|(key, _)| is_wanted(key)) {
        earlier.entry(key).or_default().push(bytes);
    }
}

/// What a reader finds in the pages that all of them read, `pages` of which were written one after the other.
fn sight(reader: Reader, seed: u64, pages: u64) -> Sight {
    let held: &[(u64, &str)] = match reader {
        Reader::Volume => &[],
        Reader::Snapshot => &[(HELD, NAME), (HELD + 1, NAME)],
        Reader::Fork => &[
            (HELD + 2, NAME),
            (HELD + 3, NAME),
            (HELD + 4, FORK),
            (HELD + 5, FORK),
        ],
    };
    let written = (0..pages).chain([KEPT]).map(|number| (number, NAME));
    let written: BTreeMap<u64, &str> = written.chain(held.iter().copied()).collect();
    let ranges = [(0, pages), (KEPT, KEPT + 2), (HELD, HELD + 6)];
    let bytes = |number: u64| match written.get(&number) {
        Some(volume) => page(number, seed, volume),
        None => vec![0; PAGE],
    };
    Sight {
        reader,
        pages: ranges.map(|(from, to)| PageRange::new(from, to)).to_vec(),
        expected: ranges
            .iter()
            .flat_map(|(from, to)| (*from..*to).flat_map(bytes))
            .collect(),
    }
}

/// A volume in the making.
struct Making {
    bucket: Bucket<SimWorld>,
    world: SimWorld,
    seed: u64,
    name: &'static str,
    volume: Volume<SimWorld>,
    /// Written one after the other. No page is written twice, so that every stored frame is read.
    pages: u64,
}

/// What the forks are known by.
struct Forked {
    /// Pages that the snapshot has, and the fork.
    pages: [u64; 2],
    pin: String,
}

impl Making {
    async fn new(
        bucket: &Bucket<SimWorld>,
        world: &SimWorld,
        seed: u64,
        name: &'static str,
    ) -> Result<Self> {
        let nonce = Id(world.random_id());
        let volume = Box::pin(bucket.create(name, SIZE_BYTES, &owner(), nonce)).await?;
        Ok(Self {
            bucket: bucket.clone(),
            world: world.clone(),
            seed,
            name,
            volume,
            pages: 0,
        })
    }

    fn data(&self, number: u64) -> PlainFrame {
        data(number, self.seed, self.name)
    }

    /// Two new pages as the next cut.
    async fn sync(&mut self) -> Result<()> {
        let frames = vec![self.data(self.pages), self.data(self.pages + 1)];
        self.pages += 2;
        self.write(frames, Vec::new()).await
    }

    /// These frames as the next cut, in one segment; none makes a cut without one.
    async fn write(&self, frames: Vec<PlainFrame>, snapshots: Vec<SnapshotChange>) -> Result<()> {
        let mut segments = Vec::new();
        if !frames.is_empty() {
            segments.push(Box::pin(self.volume.upload(frames)).await?);
        }
        let published = publish(&self.world, &self.volume, segments, snapshots);
        Ok(Box::pin(published).await?)
    }

    /// One more run of the map, which the first cut of another epoch brings.
    async fn fold(&mut self) -> Result<()> {
        for _ in 0..PUBLISHES_PER_FOLD {
            self.sync().await?;
        }
        let folds = Tidy {
            tail_segments: 1,
            ..Tidy::default()
        };
        Box::pin(self.volume.tidy(&folds)).await?;
        let (nonce, epoch) = (Id(self.world.random_id()), self.volume.root().epoch);
        Box::pin(self.volume.take(&owner(), nonce, Some(epoch))).await?;
        self.sync().await
    }

    /// One run of everything, published. What it hides is counted by that, and nothing is deleted.
    async fn settle(&self) -> Result<()> {
        let merges = Tidy {
            waste_bytes: u64::MAX,
            dead_bytes: u64::MAX,
            dead_objects: u64::MAX,
            ..Tidy::default().thorough()
        };
        Box::pin(self.volume.tidy(&merges)).await?;
        self.write(Vec::new(), Vec::new()).await
    }

    /// A burst of segments, which gives the ledger an object of its own; then all but two of them die, and are collected;
    /// then one more dies.
    async fn past(&self) -> Result<()> {
        let mut segments = Vec::new();
        for number in BURST_START..BURST_START + BURST {
            let frames = vec![self.data(number)];
            segments.push(Box::pin(self.volume.upload(frames)).await?);
        }
        let published = publish(&self.world, &self.volume, segments, Vec::new());
        Box::pin(published).await?;
        self.write(vec![zeros(BURST_START, KEPT)], Vec::new())
            .await?;
        self.settle().await?;
        Box::pin(self.volume.tidy(&Tidy::default().thorough())).await?;
        self.write(vec![zeros(KEPT + 1, KEPT + 2)], Vec::new())
            .await?;
        self.settle().await
    }

    /// A snapshot and forks, each with something that the volume has trimmed since.
    async fn forks(&mut self) -> Result<Forked> {
        let then = self.pages;
        let take = SnapshotChange::Take {
            id: Id(self.world.random_id()),
            name: SNAPSHOT.to_owned(),
        };
        let frames = vec![self.data(HELD), self.data(HELD + 1)];
        self.write(frames, vec![take]).await?;
        self.sync().await?;
        let frames = vec![
            zeros(HELD, HELD + 2),
            self.data(HELD + 2),
            self.data(HELD + 3),
        ];
        self.write(frames, Vec::new()).await?;
        let pages = [then, self.pages];
        let pin = Box::pin(self.fork(None, FORK)).await?;
        Box::pin(self.fork(Some(SNAPSHOT), FORK_OF_SNAPSHOT)).await?;
        self.write(vec![zeros(HELD + 2, HELD + 4)], Vec::new())
            .await?;
        self.settle().await?;

        let fork = Box::pin(self.bucket.open_volume(FORK)).await?;
        let nonce = Id(self.world.random_id());
        Box::pin(fork.take(&owner(), nonce, None)).await?;
        let frames = [HELD + 4, HELD + 5].map(|number| data(number, self.seed, FORK));
        let segment = Box::pin(fork.upload(frames.to_vec())).await?;
        let published = publish(&self.world, &fork, vec![segment], Vec::new());
        Box::pin(published).await?;
        Ok(Forked { pages, pin })
    }

    /// Returns the key of the fork's pin.
    async fn fork(&self, snapshot: Option<&str>, child: &str) -> Result<String> {
        let [id, nonce] = [(); 2].map(|()| Id(self.world.random_id()));
        let snapshot = snapshot.map(str::to_owned);
        let fork = Fork::new(self.name, snapshot, child, id, nonce)?;
        Box::pin(self.bucket.fork(&fork)).await?;
        Ok(format!("nbd/{}/pins/{id}", self.name))
    }
}

/// Makes these segments, which may be none, the next cut.
pub(super) async fn publish(
    world: &SimWorld,
    volume: &Volume<SimWorld>,
    segments: Vec<Uploaded>,
    snapshots: Vec<SnapshotChange>,
) -> Result<(), VolumeError> {
    let change = Publish {
        nonce: Id(world.random_id()),
        ours: Vec::new(),
        cut: volume.root().cut.next(),
        segments,
        size_bytes: None,
        state: None,
        snapshots,
        data_key: None,
    };
    let published = Box::pin(volume.publish(&change)).await?;
    volume.install(published);
    Ok(())
}

pub(super) fn owner() -> Owner {
    Owner {
        cache: Id([1; 16]),
        host: "node".to_owned(),
    }
}

pub(super) fn config(guard: Guard, password: &str) -> BucketConfig {
    BucketConfig {
        password: (guard == Guard::Sealed).then(|| password.to_owned()),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::Lz4)
    }
}

pub(super) fn data(number: u64, seed: u64, volume: &str) -> PlainFrame {
    PlainFrame {
        pages: PageRange::new(number, number + 1),
        content: FrameContent::Data(page(number, seed, volume).into()),
    }
}

fn zeros(from: u64, to: u64) -> PlainFrame {
    PlainFrame {
        pages: PageRange::new(from, to),
        content: FrameContent::Zero,
    }
}

/// Half of it compresses, half does not. No two prefixes or volumes hold the same.
fn page(number: u64, seed: u64, volume: &str) -> Vec<u8> {
    let mut page = vec![7; PAGE];
    let volume: u64 = volume.bytes().map(u64::from).sum();
    let mixed = number ^ (seed << 20) ^ (volume << 44);
    let mut state = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut page[..PAGE / 2] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    page
}
