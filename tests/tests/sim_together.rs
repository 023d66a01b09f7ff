//! Volumes that are cut together by the real cache, in the simulated world: clients whose writes to one member depend on
//! those to another, cuts of every bound, many crashes, and the model disk of the whole group as judge (rule 30).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{
    Cache, CacheConfig, CacheVolume, Cut, CutContent, CutPart, Epoch, Id, NewIntent, Opened,
    PageRange, Seq,
};
use glidefs_tests::oracle::{Judge, Oracle, SECTOR_BYTES, Violation, Windows};
use world::sim::{Crash, Sim, SimConfig, SimWorld};
use world::{ETag, World};

const PAGE: usize = 4096;
const PAGES: u64 = 24;
const MEMBER_BYTES: u64 = PAGES * 4096;
const MEMBERS: usize = 3;
const WRITE_SECTORS_MAX: u64 = 24;
const CLIENTS: usize = 4;
const LIVES: usize = 5;
const OPERATIONS_MAX: u64 = 1_500;

/// A rule of the cache to be broken.
type Breaks = fn(&mut CacheConfig);

/// What is known of the group.
struct Told {
    windows: Windows,
    oracle: Oracle,
    /// The store: what the last publish made current.
    images: Vec<Vec<u8>>,
    cuts: Vec<Seq>,
    nonce: Id,
    /// Something illegal was published.
    found: Option<Violation>,
    publishes: u32,
    /// Those that left something for the next.
    bounded: u32,
}

type Model = Rc<RefCell<Told>>;

fn told(id: u64) -> Model {
    let windows = Windows::new(vec![MEMBER_BYTES; MEMBERS]);
    Rc::new(RefCell::new(Told {
        oracle: windows.oracle(id),
        windows,
        images: vec![vec![0; index(MEMBER_BYTES)]; MEMBERS],
        cuts: vec![Seq(0); MEMBERS],
        nonce: Id([0x77; 16]),
        found: None,
        publishes: 0,
        bounded: 0,
    }))
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

async fn open(
    world: SimWorld,
    model: &Model,
    breaks: Breaks,
) -> (Cache<SimWorld>, Vec<CacheVolume<SimWorld>>) {
    let mut config = CacheConfig {
        chunk_bytes: Some(64 * 1024),
        ..CacheConfig::new("/cache", 1_500_000)
    };
    breaks(&mut config);
    let cache = Cache::open(world, config).await;
    let cache = cache.unwrap_or_else(|error| panic!("the cache does not open: {error}"));
    let (nonce, cuts) = (model.borrow().nonce, model.borrow().cuts.clone());
    let mut members = Vec::new();
    for (number, published) in (1..).zip(cuts) {
        let id = Id([number; 16]);
        if let Some(local) = cache.volumes().iter().find(|local| local.id == id) {
            let knows = local.nonce == nonce || local.intents.iter().any(|it| it.nonce == nonce);
            assert!(knows, "the root's nonce {nonce} is in the log: {local:?}");
            assert_eq!(local.damage, None);
        }
        let opened = Opened {
            id,
            name: format!("vm-{number}"),
            size_bytes: MEMBER_BYTES,
            epoch: Epoch(1),
            nonce,
            published,
        };
        let volume = cache.attach(opened).await;
        members.push(volume.unwrap_or_else(|error| panic!("it does not attach: {error}")));
    }
    (cache, members)
}

/// Writes, zeroes, flushes and reads members until the process dies, one after the other.
async fn client(sim: Sim, members: Vec<CacheVolume<SimWorld>>, model: Model) {
    let sectors = MEMBER_BYTES / SECTOR_BYTES;
    loop {
        let (what, member, first, count) = sim.chance(|chance| {
            let first = chance.below(sectors);
            let count = 1 + chance.below(WRITE_SECTORS_MAX.min(sectors - first));
            (chance.below(12), chance.index(MEMBERS), first, count)
        });
        let (at, len) = (first * SECTOR_BYTES, count * SECTOR_BYTES);
        let volume = &members[member];
        let place = model.borrow().windows.at(member, at);
        match what {
            0..8 => {
                let (no, data) = model.borrow_mut().oracle.submit_write(place, len);
                volume.write(at, data).await.expect("the disk is healthy");
                model.borrow_mut().oracle.answered(no);
            }
            8 => {
                let no = model.borrow_mut().oracle.submit_zero(place, len);
                volume.zero(at, len).await.expect("the disk is healthy");
                model.borrow_mut().oracle.answered(no);
            }
            9 | 10 => {
                // One fdatasync of the log is for all members.
                let begun = model.borrow_mut().oracle.flush_begin();
                let mut flushed = Vec::new();
                for volume in &members {
                    flushed.push(volume.flush().await);
                }
                assert!(flushed.iter().all(Result::is_ok), "the disk is healthy");
                model.borrow_mut().oracle.flush_done(begun);
            }
            _ => {
                let begun = model.borrow_mut().oracle.read_begin();
                let image = model.borrow().images[member].clone();
                let pages = PageRange::touched_by(at, len);
                let bytes = read(volume, pages, &image).await;
                let start = model.borrow().windows.at(member, pages.start.byte());
                // What was published meanwhile may be evicted, and is in a newer image.
                if image == model.borrow().images[member] {
                    let verdict = model.borrow().oracle.check_read(begun, start, &bytes);
                    verdict.unwrap_or_else(|violation| panic!("a read: {violation}"));
                }
            }
        }
    }
}

/// Pages of a member: the cache's, over those of the store.
async fn read(volume: &CacheVolume<SimWorld>, pages: PageRange, image: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; index(pages.bytes())];
    let missing = volume.read(pages, &mut bytes).await;
    for missing in missing.expect("the disk is healthy") {
        let (from, to) = (missing.pages.start.byte(), missing.pages.end.byte());
        let start = pages.start.byte();
        let below = &image[index(from)..index(to)];
        bytes[index(from - start)..index(to - start)].copy_from_slice(below);
        for patch in missing.patches {
            let at = index(patch.at - start);
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
    }
    bytes
}

/// The image with the cut in it.
async fn with(cut: &Cut<SimWorld>, mut image: Vec<u8>) -> Vec<u8> {
    for extent in &cut.extents {
        let pages = extent.pages;
        let (start, end) = (index(pages.start.byte()), index(pages.end.byte()));
        if extent.content == CutContent::Zero {
            image[start..end].fill(0);
            continue;
        }
        let mut out = vec![0; end - start];
        let missing = cut.read(pages, &mut out).await;
        for hole in missing.expect("the disk is healthy") {
            let from = index(hole.pages.start.byte());
            out[from - start..from - start + PAGE].copy_from_slice(&image[from..from + PAGE]);
            for patch in hole.patches {
                let at = index(patch.at) - start;
                out[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
            }
        }
        image[start..end].copy_from_slice(&out);
    }
    image
}

/// Cuts all members together, and makes that the store's state by one step, of which the cache hears later.
async fn publish(
    world: &SimWorld,
    cache: &Cache<SimWorld>,
    members: &[CacheVolume<SimWorld>],
    model: &Model,
    (nonce, records_max): (Id, usize),
) -> Result<(), Violation> {
    let intent = NewIntent {
        nonce,
        replaces: ETag("v".into()),
        unsent: None,
    };
    let cut = cache.cut_together(members, &intent, records_max).await;
    let Some(parts) = cut.expect("the disk is healthy") else {
        return Ok(());
    };
    let mut images = model.borrow().images.clone();
    let mut cuts = Vec::new();
    for (CutPart { seq, cut }, image) in parts.into_iter().zip(&mut images) {
        cuts.push(seq);
        if let Some(cut) = cut {
            *image = with(&cut, std::mem::take(image)).await;
        }
    }
    let lasts = members.iter().filter_map(CacheVolume::state);
    let is_bounded = lasts.zip(&cuts).any(|(state, cut)| *cut < state.last);
    {
        let mut told = model.borrow_mut();
        let content = told.windows.content(images.iter().map(Vec::as_slice));
        told.oracle.check(&content, Judge::Store)?;
        (told.images, told.cuts, told.nonce) = (images, cuts.clone(), nonce);
        told.publishes += 1;
        told.bounded += u32::from(is_bounded);
    }
    world.yield_now().await;
    let known = members.iter().zip(cuts);
    known.for_each(|(volume, cut)| volume.published(cut, nonce));
    Ok(())
}

async fn publisher(
    world: SimWorld,
    cache: Cache<SimWorld>,
    members: Vec<CacheVolume<SimWorld>>,
    model: Model,
) {
    loop {
        let mut dice = [0; 2];
        world.fill_random(&mut dice);
        for _ in 0..=dice[0] / 16 {
            world.sleep(Duration::from_millis(1)).await;
            if members.iter().any(CacheVolume::pressed) {
                break;
            }
        }
        let records_max = [1, 6, 30, usize::MAX][usize::from(dice[1]) % 4];
        let how = (Id(world.random_id()), records_max);
        if let Err(violation) = publish(&world, &cache, &members, &model, how).await {
            model.borrow_mut().found = Some(violation);
            return;
        }
    }
}

/// Lives that end in a crash each, judged after each. Returns how much was published, and how much of that was bounded.
async fn crashes(sim: Sim, breaks: Breaks) -> Result<(u32, u32), Violation> {
    let host = sim.host("node");
    let model = told(sim.seed());
    for _ in 0..LIVES {
        let (driver, inside) = (sim.clone(), Rc::clone(&model));
        sim.start(host, move |world| async move {
            let (cache, members) = open(world.clone(), &inside, breaks).await;
            for _ in 0..CLIENTS {
                let (driver, inside) = (driver.clone(), Rc::clone(&inside));
                world.spawn(client(driver, members.clone(), inside));
            }
            world.spawn(publisher(world.clone(), cache, members, inside));
        });
        let (operations, power) =
            sim.chance(|chance| (50 + chance.below(OPERATIONS_MAX), chance.one_in(2)));
        let (how, judge) = match power {
            true => (Crash::Power, Judge::Power),
            false => (Crash::Process, Judge::Process),
        };
        sim.crash_after(host, operations, how);
        // Once nothing is published any more the log is full, and nothing happens that could be the last.
        sim.until(|| !sim.is_up(host) || model.borrow().found.is_some())
            .await;
        if let Some(violation) = model.borrow_mut().found.take() {
            return Err(violation);
        }
        let inside = Rc::clone(&model);
        let dump = sim.call(host, move |world| async move {
            let (_cache, members) = open(world, &inside, breaks).await;
            let images = inside.borrow().images.clone();
            let mut contents = Vec::new();
            for (volume, image) in members.iter().zip(&images) {
                contents.push(read(volume, PageRange::new(0, PAGES), image).await);
            }
            contents
        });
        let pid = dump.pid();
        let contents = dump.await.expect("nobody kills it");
        {
            let mut told = model.borrow_mut();
            let content = told.windows.content(contents.iter().map(Vec::as_slice));
            let survivors = told.oracle.check(&content, judge)?;
            told.oracle.reset_to(&survivors);
        }
        sim.kill(pid);
    }
    let told = model.borrow();
    Ok((told.publishes, told.bounded))
}

fn limits() -> SimConfig {
    SimConfig {
        steps_max: 3_000_000,
        time_max: Duration::from_secs(600),
        ..SimConfig::default()
    }
}

/// The verdict and the hash of the trace.
fn run(seed: u64, breaks: Breaks) -> (Result<(u32, u32), Violation>, u64) {
    match Sim::simulate(seed, limits(), |sim| crashes(sim, breaks)) {
        Ok(outcome) => outcome,
        Err(stuck) => panic!("seed {seed}: {stuck}"),
    }
}

#[test]
fn what_is_published_of_a_group_is_one_moment_through_kills_and_power_cuts() {
    let (mut publishes, mut bounded) = (0, 0);
    for seed in 0..40 {
        let (done, left) = match run(seed, |_sound| {}).0 {
            Ok(counts) => counts,
            Err(violation) => panic!("seed {seed}: {violation}"),
        };
        publishes += done;
        bounded += left;
    }
    assert!(
        publishes > 200 && bounded > 40,
        "{publishes} publishes, {bounded} of them bounded"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace_of_a_group() {
    assert_eq!(run(3, |_sound| {}), run(3, |_sound| {}));
}

#[cfg(feature = "planted")]
#[test]
fn a_bound_of_each_member_by_itself_is_found() {
    let breaks: Breaks = |config| config.planted = Some(blockcache::Planted::BoundsApart);
    let found = (0..20).find_map(|seed| run(seed, breaks).0.err());
    assert!(matches!(found, Some(Violation::Lost { .. })), "{found:?}");
}

#[cfg(feature = "planted")]
#[test]
fn members_that_are_cut_one_after_the_other_are_found() {
    let breaks: Breaks = |config| config.planted = Some(blockcache::Planted::CutsApart);
    let found = (0..20).find_map(|seed| run(seed, breaks).0.err());
    assert!(matches!(found, Some(Violation::Lost { .. })), "{found:?}");
}
