//! Volumes end to end against a store in memory.

use std::collections::BTreeSet;

use super::testing::{Counts, Fault, Flaw, TestStore, TestWorld};
use super::*;
use world::StoreErrorKind;

mod collect;
mod damage;
mod flatten;
mod forks;
mod golden;
mod group_forks;
mod groups;
mod levels;
mod outcomes;
mod parsers;
mod prefix;
mod purge;
mod recent;
mod renew;
mod slots;
mod snapshots;

/// One node: a world, the store it sees, its bucket.
#[derive(Clone, Debug)]
struct Node {
    world: TestWorld,
    store: TestStore,
    bucket: Bucket<TestWorld>,
}

fn config(password: Option<&str>) -> BucketConfig {
    BucketConfig {
        password: password.map(str::to_owned),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::Lz4)
    }
}

impl Node {
    fn new(seed: u64, store: &TestStore, password: Option<&str>) -> Self {
        Self::with(seed, store, config(password)).expect("the store is sound")
    }

    fn with(seed: u64, store: &TestStore, config: BucketConfig) -> Result<Self, VolumeError> {
        let world = TestWorld::new(seed);
        let metered = Metered::new(world.clone(), store.clone());
        let bucket = world.run(Bucket::open(world.clone(), metered, config))?;
        let store = store.clone();
        Ok(Self {
            world,
            store,
            bucket,
        })
    }

    fn owner(number: u8) -> Owner {
        Owner {
            cache: Id([number; 16]),
            host: format!("host-{number}"),
        }
    }

    fn create(&self, name: &'static str) -> Volume<TestWorld> {
        let bucket = self.bucket.clone();
        let created = async move {
            let owner = Self::owner(1);
            bucket.create(name, 1 << 40, &owner, Id([9; 16])).await
        };
        self.world.run(created).expect("created")
    }

    fn open(&self, name: &'static str) -> Result<Volume<TestWorld>, VolumeError> {
        let bucket = self.bucket.clone();
        self.world
            .run(async move { bucket.open_volume(name).await })
    }

    /// Opens it and becomes its owner.
    fn own(&self, name: &'static str) -> Volume<TestWorld> {
        let volume = self.open(name).expect("opens");
        let (taken, nonce) = (volume.clone(), self.nonce());
        let take = async move { taken.take(&Self::owner(1), nonce, None).await };
        self.world.run(take).expect("it is nobody's");
        volume
    }

    fn nonce(&self) -> Id {
        Id(self.world.random_id())
    }

    fn upload(&self, volume: &Volume<TestWorld>, frames: Vec<PlainFrame>) -> Uploaded {
        let volume = volume.clone();
        let uploaded = self.world.run(async move { volume.upload(frames).await });
        uploaded.expect("uploaded")
    }

    fn change(&self, volume: &Volume<TestWorld>, segments: Vec<Uploaded>) -> Publish {
        Publish {
            nonce: self.nonce(),
            ours: Vec::new(),
            cut: volume.root().cut.next(),
            segments,
            size_bytes: None,
            state: None,
            snapshots: Vec::new(),
            data_key: None,
        }
    }

    fn try_publish(
        &self,
        volume: &Volume<TestWorld>,
        change: &Publish,
    ) -> Result<RootView, VolumeError> {
        let (volume, change) = (volume.clone(), change.clone());
        self.world.run(async move {
            let published = volume.publish(&change).await?;
            Ok(volume.install(published))
        })
    }

    /// Uploads and publishes frames as the next cut.
    fn sync(&self, volume: &Volume<TestWorld>, frames: Vec<PlainFrame>) -> RootView {
        let segment = self.upload(volume, frames);
        let change = self.change(volume, vec![segment]);
        self.try_publish(volume, &change).expect("published")
    }

    fn compact(&self, volume: &Volume<TestWorld>) {
        let volume = volume.clone();
        let done = self.world.run(async move { volume.compact_map().await });
        done.expect("compacted");
    }

    fn lookup(
        &self,
        volume: &Volume<TestWorld>,
        pages: PageRange,
    ) -> Result<Vec<(PageRange, Source)>, VolumeError> {
        let volume = volume.clone();
        self.world.run(async move { volume.lookup(pages).await })
    }

    fn try_read(
        &self,
        volume: &Volume<TestWorld>,
        pages: PageRange,
    ) -> Result<Vec<u8>, VolumeError> {
        let volume = volume.clone();
        self.world.run(async move {
            let mut out = Vec::new();
            let sources = volume.lookup(pages).await?;
            let mut at = pages.start;
            for (range, source) in sources {
                assert_eq!(range.start, at, "the answer covers the range in order");
                at = range.end;
                match source {
                    Source::Zero => out.extend(vec![0; usize(range.bytes())]),
                    Source::Frame { frame, skip } => {
                        let bytes = volume.fetch(&frame).await?;
                        let from = usize(u64::from(skip) * PAGE);
                        out.extend_from_slice(&bytes[from..from + usize(range.bytes())]);
                    }
                }
            }
            assert_eq!(at, pages.end, "the answer covers the range");
            Ok(out)
        })
    }

    fn read(&self, volume: &Volume<TestWorld>, start: u64, pages: u64) -> Vec<u8> {
        let pages = PageRange::new(start, start + pages);
        self.try_read(volume, pages).expect("readable")
    }
}

const PAGE: u64 = blockcache::PAGE_BYTES;

fn usize(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

/// A page that says what it is: half of it compresses, half does not.
fn page(stamp: u64) -> Vec<u8> {
    let mut page = vec![0; usize(PAGE)];
    let mut noise = blake3::Hasher::new()
        .update(&stamp.to_le_bytes())
        .finalize_xof();
    noise.fill(&mut page[..usize(PAGE / 2)]);
    page[usize(PAGE / 2)..].fill(1);
    page
}

fn data(start: u64, stamps: &[u64]) -> PlainFrame {
    let bytes: Vec<u8> = stamps.iter().flat_map(|stamp| page(*stamp)).collect();
    PlainFrame {
        pages: PageRange::new(start, start + stamps.len() as u64),
        content: FrameContent::Data(bytes.into()),
    }
}

fn zero(start: u64, pages: u64) -> PlainFrame {
    PlainFrame {
        pages: PageRange::new(start, start + pages),
        content: FrameContent::Zero,
    }
}

#[test]
fn what_is_published_is_read_on_another_node() {
    for password in [None, Some("geheim")] {
        let store = TestStore::default();
        let here = Node::new(1, &store, password);
        let volume = here.create("vm-alice");
        here.sync(&volume, vec![data(10, &[1, 2, 3]), data(100, &[4])]);
        here.sync(&volume, vec![data(11, &[5]), zero(12, 1 << 28)]);
        let root = here.sync(&volume, vec![data(13, &[6])]);
        assert_eq!((root.cut, root.epoch), (Seq(3), Epoch(1)));

        let there = Node::new(2, &store, password);
        let other = there.open("vm-alice").expect("opens");
        assert_eq!(other.root(), volume.root());
        for (node, volume) in [(&here, &volume), (&there, &other)] {
            let expected = [page(1), page(5), vec![0; 4096], page(6)].concat();
            assert!(node.read(volume, 10, 4) == expected);
            assert!(node.read(volume, 100, 1) == [0; 4096], "trimmed");
            assert!(node.read(volume, 1 << 29, 2) == [0; 8192], "never written");
        }
    }
}

#[test]
fn a_small_sync_costs_two_puts_and_an_open_one_get_per_segment_of_the_tail() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    let before = store.counts();
    node.sync(&volume, vec![data(10, &[1])]);
    let after = store.counts();
    assert_eq!(after.puts - before.puts, 2);
    assert_eq!((after.gets, after.lists), (before.gets, before.lists));
    let volume = node.open("a").expect("opens");
    assert_eq!(store.counts().gets - after.gets, 2);
    node.read(&volume, 10, 1);
    assert_eq!(
        store.counts().gets - after.gets,
        3,
        "one ranged GET for one frame"
    );
    let Counts { lists, .. } = store.counts();
    assert_eq!(lists, after.lists);
}

#[test]
fn a_zero_of_any_length_is_one_entry() {
    let store = TestStore::default();
    let node = Node::new(1, &store, None);
    let volume = node.create("a");
    let segment = node.upload(&volume, vec![zero(0, 1 << 29)]);
    assert!(segment.bytes() < 300, "{} bytes for 2 TiB", segment.bytes());
    let frames: Vec<PlainFrame> = (0..4).map(|i| zeros_written(i * 32)).collect();
    let segment = node.upload(&volume, frames);
    assert!(segment.bytes() < 400, "zeros that were written are found");
}

fn zeros_written(start: u64) -> PlainFrame {
    PlainFrame {
        pages: PageRange::new(start, start + 32),
        content: FrameContent::Data(vec![0; 128 << 10].into()),
    }
}
