//! The real cache in the simulated world: many clients, many crashes, and the model disk as judge.

use std::cell::RefCell;
use std::rc::Rc;

use blockcache::{Cache, CacheConfig, CacheVolume, Epoch, Id, Opened, PageRange, Seq};
use glidefs_tests::oracle::{Judge, Oracle, SECTOR_BYTES, Violation};
use world::World;
use world::sim::{Crash, Sim, SimConfig, SimWorld};

const VOLUME_PAGES: u64 = 64;
const VOLUME_BYTES: u64 = VOLUME_PAGES * 4096;
const WRITE_SECTORS_MAX: u64 = 40;
const CLIENTS: usize = 6;
const LIVES: usize = 4;
const OPERATIONS_MAX: u64 = 300;

type Model = Rc<RefCell<Oracle>>;

/// What a client does when it is told to flush. The second is a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Done,
    OnlyAnswered,
}

async fn open(world: SimWorld) -> CacheVolume<SimWorld> {
    let cache = Cache::open(world, CacheConfig::new("/cache", 256 << 20)).await;
    let cache = cache.unwrap_or_else(|error| panic!("the cache does not open: {error}"));
    let opened = Opened {
        id: Id([1; 16]),
        name: "vm".to_owned(),
        size_bytes: VOLUME_BYTES,
        epoch: Epoch(1),
        nonce: Id([2; 16]),
        published: Seq(0),
    };
    let volume = cache.attach(opened).await;
    volume.unwrap_or_else(|error| panic!("the volume does not attach: {error}"))
}

/// Writes, zeroes, flushes and reads until the process dies.
async fn client(sim: Sim, volume: CacheVolume<SimWorld>, model: Model, flush: Flush) {
    let sectors = VOLUME_BYTES / SECTOR_BYTES;
    loop {
        let (what, first, count) = sim.chance(|chance| {
            let first = chance.below(sectors);
            let count = 1 + chance.below(WRITE_SECTORS_MAX.min(sectors - first));
            (chance.below(10), first, count)
        });
        let (at, len) = (first * SECTOR_BYTES, count * SECTOR_BYTES);
        match what {
            0..6 => {
                let (no, data) = model.borrow_mut().submit_write(at, len);
                volume.write(at, data).await.expect("the disk is healthy");
                model.borrow_mut().answered(no);
            }
            6 => {
                let no = model.borrow_mut().submit_zero(at, len);
                volume.zero(at, len).await.expect("the disk is healthy");
                model.borrow_mut().answered(no);
            }
            7 | 8 => {
                let begun = model.borrow_mut().flush_begin();
                if flush == Flush::Done {
                    volume.flush().await.expect("the disk is healthy");
                }
                model.borrow_mut().flush_done(begun);
            }
            _ => {
                let begun = model.borrow_mut().read_begin();
                let pages = PageRange::touched_by(at, len);
                let bytes = read(&volume, pages).await;
                let verdict = model.borrow().check_read(begun, pages.start.byte(), &bytes);
                verdict.unwrap_or_else(|violation| panic!("a read: {violation}"));
            }
        }
    }
}

/// Pages of the volume; what the cache does not hold is zero, since the store holds nothing.
async fn read(volume: &CacheVolume<SimWorld>, pages: PageRange) -> Vec<u8> {
    let index = |byte: u64| usize::try_from(byte).expect("small");
    let mut bytes = vec![0; index(pages.bytes())];
    let missing = volume.read(pages, &mut bytes).await;
    for missing in missing.expect("the disk is healthy") {
        let start = missing.pages.start.byte() - pages.start.byte();
        bytes[index(start)..index(start + missing.pages.bytes())].fill(0);
        for patch in missing.patches {
            let at = index(patch.at - pages.start.byte());
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
    }
    bytes
}

/// Lives that end in a crash each, judged after each.
async fn crashes(sim: Sim, flush: Flush) -> Result<(), Violation> {
    let host = sim.host("node");
    let model: Model = Rc::new(RefCell::new(Oracle::new(sim.seed(), VOLUME_BYTES)));
    for _ in 0..LIVES {
        let (driver, told) = (sim.clone(), Rc::clone(&model));
        sim.start(host, move |world| async move {
            let volume = open(world.clone()).await;
            for _ in 0..CLIENTS {
                let (driver, volume, told) = (driver.clone(), volume.clone(), Rc::clone(&told));
                world.spawn(client(driver, volume, told, flush));
            }
        });
        let (operations, power) =
            sim.chance(|chance| (chance.below(OPERATIONS_MAX), chance.one_in(2)));
        let (how, judge) = if power {
            (Crash::Power, Judge::Power)
        } else {
            (Crash::Process, Judge::Process)
        };
        sim.crash_after(host, operations, how);
        sim.until(|| !sim.is_up(host)).await;
        let dump = sim.call(host, |world| async move {
            read(&open(world).await, PageRange::new(0, VOLUME_PAGES)).await
        });
        let pid = dump.pid();
        let content = dump.await.expect("nobody kills it");
        let survivors = model.borrow().check(&content, judge)?;
        sim.note(format_args!(
            "{} writes lost, legally",
            survivors.lost_writes()
        ));
        model.borrow_mut().reset_to(&survivors);
        sim.kill(pid);
    }
    Ok(())
}

/// The verdict and the hash of the trace.
fn run(seed: u64, flush: Flush) -> (Result<(), Violation>, u64) {
    match Sim::simulate(seed, SimConfig::default(), |sim| crashes(sim, flush)) {
        Ok(outcome) => outcome,
        Err(stuck) => panic!("{stuck}"),
    }
}

#[test]
fn the_cache_survives_kills_and_power_cuts() {
    for seed in 0..60 {
        if let (Err(violation), _) = run(seed, Flush::Done) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_flush_that_is_only_answered_is_found() {
    let found = (0..20).find_map(|seed| run(seed, Flush::OnlyAnswered).0.err());
    assert!(matches!(found, Some(Violation::Lost { .. })), "{found:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace_of_the_real_cache() {
    for seed in 0..5 {
        assert_eq!(
            run(seed, Flush::Done),
            run(seed, Flush::Done),
            "seed {seed}"
        );
    }
}
