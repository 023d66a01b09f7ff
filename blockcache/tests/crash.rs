//! The cache against a model, through process crashes and power cuts, by seed.
//!
//! One volume on one host: random writes of whole sectors, zeros, flushes, cuts that are "published"
//! into an image (the store as this test knows it), evictions forced by a small log, then a crash at
//! a random operation, again and again. A second volume is written once and never published, so its
//! records are taken along whenever their chunk has to go. After each start the recovered seq must cover everything that
//! was promised, and the content must be exactly the model at that seq: a prefix, never a mix.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use blockcache::{
    Cache, CacheConfig, CacheError, CacheVolume, CutContent, Epoch, Id, Opened, PageRange, Seq,
};
use bytes::Bytes;
use world::sim::{Chance, Crash, Sim, SimConfig, SimWorld};
use world::{ETag, World};

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const PAGES: u64 = 96;
const VOLUME: Id = Id([7; 16]);
const STILL: Id = Id([8; 16]);
const STILL_NONCE: Id = Id([9; 16]);
const STILL_PAGES: u64 = 8;
const ROUNDS: u32 = 6;
const SEEDS: u64 = 60;

type Image = Vec<u8>;

fn blank() -> Image {
    vec![0; usize::try_from(PAGES).expect("small") * PAGE]
}

/// What the test knows of the volume.
#[derive(Clone)]
struct Model {
    /// The store: what the last publish made current.
    store: Image,
    store_cut: Seq,
    store_nonce: Id,
    /// Every later write by the first of its seqs.
    writes: BTreeMap<u64, (usize, Vec<u8>)>,
    /// Highest seq answered, and highest covered by an answered flush.
    answered: Seq,
    flushed: Seq,
    publishes: u32,
    evictions: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            store: blank(),
            store_cut: Seq(0),
            store_nonce: Id([1; 16]),
            writes: BTreeMap::new(),
            answered: Seq(0),
            flushed: Seq(0),
            publishes: 0,
            evictions: 0,
        }
    }

    /// The content after all writes up to `seq`, which the store does not hold yet.
    fn at(&self, seq: Seq) -> Image {
        let mut image = self.store.clone();
        for (_, (at, data)) in self.writes.range(..=seq.0) {
            image[*at..*at + data.len()].copy_from_slice(data);
        }
        image
    }
}

fn config() -> CacheConfig {
    CacheConfig {
        chunk_bytes: Some(64 * 1024),
        ..CacheConfig::new("/cache", 1_500_000)
    }
}

/// Opens the cache and attaches the volume as an opener would that has read the root.
async fn open(
    world: SimWorld,
    model: &Rc<RefCell<Model>>,
) -> Result<(Cache<SimWorld>, CacheVolume<SimWorld>), CacheError> {
    let cache = Cache::open(world, config()).await?;
    let (nonce, published) = (model.borrow().store_nonce, model.borrow().store_cut);
    if let Some(local) = cache.volumes().iter().find(|local| local.id == VOLUME) {
        let known = local.nonce == nonce || local.intents.iter().any(|i| i.nonce == nonce);
        assert!(known, "the root's nonce {nonce} is in the log: {local:?}");
        assert_eq!(local.damage, None);
    }
    let volume = cache
        .attach(Opened {
            id: VOLUME,
            name: "vm".into(),
            size_bytes: PAGES * PAGE as u64,
            epoch: Epoch(1),
            nonce,
            published,
        })
        .await?;
    Ok((cache, volume))
}

/// Attaches the volume that never publishes; writes it at first, and finds it as it was later.
async fn still(cache: &Cache<SimWorld>, written: &Cell<bool>) -> Result<(), CacheError> {
    for local in cache.volumes().iter().filter(|local| local.id == STILL) {
        assert_eq!(local.damage, None);
    }
    let opened = Opened {
        id: STILL,
        name: "still".into(),
        size_bytes: STILL_PAGES * PAGE as u64,
        epoch: Epoch(1),
        nonce: STILL_NONCE,
        published: Seq(0),
    };
    let volume = cache.attach(opened).await?;
    let mut expected = stamped(77, 4 * PAGE);
    expected.extend(vec![0; PAGE]);
    expected.extend(stamped(78, PAGE));
    expected[5 * PAGE + SECTOR..5 * PAGE + 2 * SECTOR].copy_from_slice(&stamped(79, SECTOR));
    if !written.get() {
        // Everything twice, so that an older record that outlives a newer one shows.
        volume.write(0, Bytes::from(stamped(1, 8 * PAGE))).await?;
        volume
            .write(0, Bytes::from(expected[..4 * PAGE].to_vec()))
            .await?;
        volume.zero(4 * PAGE as u64, PAGE as u64).await?;
        volume
            .write(5 * PAGE as u64, Bytes::from(stamped(78, PAGE)))
            .await?;
        let at = (5 * PAGE + SECTOR) as u64;
        volume.write(at, Bytes::from(stamped(79, SECTOR))).await?;
        volume.flush().await?;
        written.set(true);
    }
    let mut seen = vec![0; expected.len()];
    let missing = volume.read(PageRange::new(0, 6), &mut seen).await?;
    assert_eq!(missing, vec![]);
    same(&seen, &expected, "the volume that never publishes");
    Ok(())
}

/// Reads the whole volume: the cache, completed by the store.
async fn read_all(volume: &CacheVolume<SimWorld>, store: &Image) -> Result<Image, CacheError> {
    let mut image = blank();
    let missing = volume.read(PageRange::new(0, PAGES), &mut image).await?;
    for hole in missing {
        let start = usize::try_from(hole.pages.start.byte()).expect("small");
        let end = usize::try_from(hole.pages.end.byte()).expect("small");
        image[start..end].copy_from_slice(&store[start..end]);
        for patch in hole.patches {
            let at = usize::try_from(patch.at).expect("small");
            image[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
    }
    Ok(image)
}

fn same(seen: &Image, expected: &Image, what: &str) {
    for sector in 0..seen.len() / SECTOR {
        let bytes = sector * SECTOR..(sector + 1) * SECTOR;
        let stamp =
            |image: &Image| u64::from_le_bytes(image[bytes.clone()][..8].try_into().expect("8"));
        assert_eq!(
            seen[bytes.clone()],
            expected[bytes.clone()],
            "{what}: page {} sector {} holds write {} and not {}",
            sector / 8,
            sector % 8,
            stamp(seen),
            stamp(expected)
        );
    }
}

/// One random step of the workload.
async fn step(
    world: &SimWorld,
    cache: &Cache<SimWorld>,
    volume: &CacheVolume<SimWorld>,
    model: &Rc<RefCell<Model>>,
) -> Result<(), CacheError> {
    let mut dice = [0; 16];
    world.fill_random(&mut dice);
    let mut chance = Chance::seeded(u64::from_le_bytes(dice[..8].try_into().expect("8 bytes")));
    match chance.below(17) {
        0..=13 => {
            let sectors = PAGES * 8;
            let aligned = chance.one_in(2);
            let (unit, max) = if aligned { (8, 4) } else { (1, 20) };
            let at = chance.below(sectors / unit) * unit;
            let len = (chance.between(1, max) * unit).min(sectors - at);
            let zero = chance.one_in(6);
            let bytes = usize::try_from(len).expect("small") * SECTOR;
            // The next seq is known: one writer. It is the stamp of the data.
            let first = volume.state().expect("attached").last.0 + 1;
            let data = if zero {
                vec![0; bytes]
            } else {
                stamped(first, bytes)
            };
            let range = usize::try_from(at).expect("small") * SECTOR;
            let written = (range, data.clone());
            model.borrow_mut().writes.insert(first, written);
            let seq = if zero {
                volume.zero(at * 512, len * 512).await?
            } else {
                volume.write(at * 512, Bytes::from(data)).await?
            };
            model.borrow_mut().answered = seq;
            if chance.one_in(4) {
                let before = seq;
                volume.flush().await?;
                model.borrow_mut().flushed = before;
            }
        }
        _ => {
            let store = model.borrow().store.clone();
            let seen = read_all(volume, &store).await?;
            let expected = model.borrow().at(Seq(u64::MAX));
            same(&seen, &expected, "read while running");
        }
    }
    model.borrow_mut().evictions = cache.stats().evictions;
    Ok(())
}

fn stamped(stamp: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    for (n, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        sector[..8].copy_from_slice(&stamp.to_le_bytes());
        sector[8..16].copy_from_slice(&(n as u64).to_le_bytes());
    }
    data
}

/// Takes a cut, carries it to the store image, and makes it current: before the cache hears of it,
/// as a lost answer would.
async fn publish(
    world: &SimWorld,
    volume: &CacheVolume<SimWorld>,
    model: &Rc<RefCell<Model>>,
) -> Result<(), CacheError> {
    let nonce = Id(world.random_id());
    let mut dice = [0; 1];
    world.fill_random(&mut dice);
    let extents_max = [1, 8, usize::MAX][usize::from(dice[0]) % 3];
    let cut = volume.cut(nonce, ETag("v".into()), None, extents_max);
    let Some(cut) = cut.await? else {
        return Ok(());
    };
    let mut image = model.borrow().store.clone();
    for extent in cut.extents.clone() {
        let start = usize::try_from(extent.pages.start.byte()).expect("small");
        let end = usize::try_from(extent.pages.end.byte()).expect("small");
        if extent.content == CutContent::Zero {
            image[start..end].fill(0);
            continue;
        }
        let mut out = vec![0; end - start];
        for hole in cut.read(extent.pages, &mut out).await? {
            let from = usize::try_from(hole.pages.start.byte()).expect("small");
            out[from - start..from - start + PAGE].copy_from_slice(&image[from..from + PAGE]);
            for patch in hole.patches {
                let at = usize::try_from(patch.at).expect("small") - start;
                out[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
            }
        }
        image[start..end].copy_from_slice(&out);
    }
    let seq = cut.seq;
    drop(cut);
    same(&image, &model.borrow().at(seq), "the cut");
    {
        let mut model = model.borrow_mut();
        (model.store, model.store_cut, model.store_nonce) = (image, seq, nonce);
        model.writes = model.writes.split_off(&seq.next().0);
        model.flushed = model.flushed.max(seq);
        model.publishes += 1;
    }
    world.yield_now().await;
    volume.published(seq, nonce);
    Ok(())
}

/// Publishes now and then, at once when writers are slowed down.
async fn publisher(world: SimWorld, volume: CacheVolume<SimWorld>, model: Rc<RefCell<Model>>) {
    loop {
        let mut dice = [0; 1];
        world.fill_random(&mut dice);
        for _ in 0..=dice[0] {
            world.sleep(std::time::Duration::from_millis(1)).await;
            if volume.pressed() {
                break;
            }
        }
        publish(&world, &volume, &model)
            .await
            .expect("the disk is sound");
    }
}

async fn scenario(sim: Sim) -> (u32, u64) {
    let host = sim.host("node");
    let model = Rc::new(RefCell::new(Model::new()));
    let written = Rc::new(Cell::new(false));
    let mut evictions = 0;
    for _ in 0..ROUNDS {
        let power = sim.chance(|chance| chance.one_in(2));
        let how = if power { Crash::Power } else { Crash::Process };
        let fuse = sim.chance(|chance| chance.between(20, 4000));
        sim.crash_after(host, fuse, how);
        let (inside, written) = (Rc::clone(&model), Rc::clone(&written));
        sim.start(host, move |world| async move {
            let (cache, volume) = open(world.clone(), &inside).await.expect("opens");
            check_recovered(&volume, &inside).await;
            still(&cache, &written).await.expect("the disk is sound");
            world.spawn(publisher(world.clone(), volume.clone(), Rc::clone(&inside)));
            loop {
                step(&world, &cache, &volume, &inside)
                    .await
                    .expect("the disk is sound");
            }
        });
        while sim.is_up(host) {
            sim.sleep(std::time::Duration::from_millis(5)).await;
        }
        evictions += model.borrow().evictions;
        let mut model = model.borrow_mut();
        if power {
            // What was not flushed may be gone; the start finds out how much.
            model.answered = model.flushed;
        }
        model.evictions = 0;
    }
    (model.borrow().publishes, evictions)
}

/// The recovered volume is the model at its last seq, which covers what was promised.
async fn check_recovered(volume: &CacheVolume<SimWorld>, model: &Rc<RefCell<Model>>) {
    let last = volume.state().expect("attached").last;
    let (answered, store) = (model.borrow().answered, model.borrow().store.clone());
    assert!(
        last >= answered,
        "recovered to {last}, but {answered} was promised"
    );
    let seen = read_all(volume, &store).await.expect("readable");
    let expected = model.borrow().at(last);
    let torn = model
        .borrow()
        .writes
        .range(..=last.0)
        .next_back()
        .map(|(first, w)| (*first, w.clone()));
    // The last write may be there in part: it was not answered.
    let expected = match torn {
        Some((_, (at, data))) if last > model.borrow().answered => {
            let mut expected = expected;
            for (n, _) in data.chunks_exact(SECTOR).enumerate() {
                let bytes = at + n * SECTOR..at + (n + 1) * SECTOR;
                expected[bytes.clone()].copy_from_slice(&seen[bytes]);
            }
            expected
        }
        _ => expected,
    };
    same(&seen, &expected, "after a start");
    let mut model = model.borrow_mut();
    // What was lost is as if it had never been, and of the last write counts what is there. The rest
    // stays a list: a cut may end at any of them.
    model.writes.split_off(&last.next().0);
    if let Some(mut last) = model.writes.last_entry() {
        let (at, data) = last.get_mut();
        let end = *at + data.len();
        data.copy_from_slice(&seen[*at..end]);
    }
    (model.answered, model.flushed) = (last, last.min(model.flushed));
}

fn limits() -> SimConfig {
    SimConfig {
        steps_max: 3_000_000,
        time_max: std::time::Duration::from_secs(600),
        ..SimConfig::default()
    }
}

fn run(seed: u64) -> ((u32, u64), u64) {
    Sim::simulate(seed, limits(), scenario).unwrap_or_else(|stuck| panic!("seed {seed}: {stuck}"))
}

#[test]
fn content_is_an_exact_prefix_after_every_crash() {
    let (mut publishes, mut evictions) = (0, 0);
    for seed in 0..SEEDS {
        let ((published, evicted), _) = run(seed);
        publishes += u64::from(published);
        evictions += evicted;
    }
    assert!(
        publishes > SEEDS && evictions > SEEDS,
        "{publishes} publishes, {evictions} evictions"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_eq!(run(3).1, run(3).1);
}
