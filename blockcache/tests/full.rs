//! A log without room: nobody waits for ever, and nobody is failed (promise 6).

use std::time::Duration;

use blockcache::{Cache, CacheConfig, CacheVolume, CutContent, Epoch, Id, Opened, PageRange, Seq};
use bytes::Bytes;
use world::sim::{Crash, Sim, SimConfig, SimWorld};
use world::{ETag, World};

const PAGE: usize = 4096;
const CHUNK: u32 = 64 * 1024;
const LOG: u64 = 1_500_000;

fn config() -> CacheConfig {
    CacheConfig {
        chunk_bytes: Some(CHUNK),
        ..CacheConfig::new("/cache", LOG)
    }
}

/// A config whose bounds on what is dirty never slow anybody: only the log does.
fn unbounded() -> CacheConfig {
    CacheConfig {
        dirty_bytes_max: u64::MAX,
        volume_dirty_bytes_max: u64::MAX,
        ..config()
    }
}

fn limits() -> SimConfig {
    SimConfig {
        steps_max: 3_000_000,
        time_max: Duration::from_secs(600),
        trace_lines_max: 30,
        ..SimConfig::default()
    }
}

fn opened(id: u8, published: Seq) -> Opened {
    Opened {
        id: Id([id; 16]),
        name: format!("vm-{id}"),
        size_bytes: 1 << 30,
        epoch: Epoch(1),
        nonce: Id([id; 16]),
        published,
    }
}

async fn open(world: &SimWorld, config: CacheConfig) -> Cache<SimWorld> {
    Cache::open(world.clone(), config).await.expect("opens")
}

fn page(stamp: u64) -> Bytes {
    Bytes::from(stamp.to_le_bytes().repeat(PAGE / 8))
}

/// Publishes all that is dirty; the content goes nowhere.
async fn publish(world: &SimWorld, volume: &CacheVolume<SimWorld>) {
    let nonce = Id(world.random_id());
    let cut = volume
        .cut(nonce, ETag("v".into()), None, usize::MAX)
        .await
        .expect("sound");
    let Some(cut) = cut else { return };
    for extent in &cut.extents {
        if extent.content == CutContent::Data {
            let mut out = vec![0; usize::try_from(extent.pages.bytes()).expect("small")];
            cut.read(extent.pages, &mut out).await.expect("readable");
        }
    }
    let seq = cut.seq;
    drop(cut);
    volume.published(seq, nonce);
}

/// Publishes whenever the cache asks for it.
async fn publisher(world: SimWorld, volume: CacheVolume<SimWorld>) {
    loop {
        volume.wait_pressed().await;
        publish(&world, &volume).await;
        world.yield_now().await;
    }
}

async fn expect_page(volume: &CacheVolume<SimWorld>, number: u64, stamp: u64) {
    let mut out = vec![0; PAGE];
    let missing = volume
        .read(PageRange::new(number, number + 1), &mut out)
        .await;
    assert_eq!(missing.expect("readable"), vec![], "page {number} is here");
    assert_eq!(out, page(stamp), "page {number}");
}

/// One volume is fenced with unpublished records; another writes many times the log around it.
#[test]
fn a_volume_that_publishes_nothing_does_not_stop_the_others() {
    for seed in 0..10 {
        let sim = Sim::new(seed, limits());
        let host = sim.host("node");
        let first = sim.block_on(host, |world| async move {
            let cache = open(&world, config()).await;
            let still = cache.attach(opened(1, Seq(0))).await.expect("attaches");
            let busy = cache.attach(opened(2, Seq(0))).await.expect("attaches");
            for number in 0..20 {
                still
                    .write(number * PAGE as u64, page(7))
                    .await
                    .expect("room");
                still
                    .write(number * PAGE as u64, page(number))
                    .await
                    .expect("room");
            }
            still.fence();
            world.spawn(publisher(world.clone(), busy.clone()));
            for n in 0..2_000_u64 {
                busy.write(n % 300 * PAGE as u64, page(n))
                    .await
                    .expect("room");
            }
            expect_page(&still, 3, 3).await;
            busy.flush().await.expect("sound");
            (
                cache.stats().evictions,
                busy.state().expect("known").published,
            )
        });
        let (evictions, published) = first.expect("nobody waits for ever").expect("lives");
        assert!(evictions > 30, "{evictions} evictions");
        sim.crash(host, Crash::Power);
        let second = sim.block_on(host, move |world| async move {
            let cache = open(&world, config()).await;
            assert!(cache.volumes().iter().all(|local| local.damage.is_none()));
            let still = cache.attach(opened(1, Seq(0))).await.expect("attaches");
            let busy = cache.attach(opened(2, published)).await.expect("attaches");
            for number in 0..20 {
                expect_page(&still, number, number).await;
            }
            for n in published.0 + 1..2_000 {
                expect_page(&busy, (n - 1) % 300, n - 1).await;
            }
            assert_eq!(still.state().expect("known").last, Seq(40));
        });
        second.expect("opens").expect("lives");
        sim.end();
    }
}

/// A cut that cannot be uploaded is dropped and taken again later: while it is not held, its chunks are
/// moved out of the way, and it is the same cut all the same.
#[test]
fn a_cut_that_is_taken_again_is_the_same_and_holds_nobody_up_meanwhile() {
    let sim = Sim::new(3, limits());
    let host = sim.host("node");
    let done = sim.block_on(host, |world| async move {
        let cache = open(&world, config()).await;
        let still = cache.attach(opened(1, Seq(0))).await.expect("attaches");
        let busy = cache.attach(opened(2, Seq(0))).await.expect("attaches");
        for number in 0..20 {
            let at = number * PAGE as u64;
            still.write(at, page(number)).await.expect("room");
        }
        let cut = still
            .cut(Id([9; 16]), ETag("v".into()), None, usize::MAX)
            .await;
        let cut = cut.expect("sound").expect("dirty");
        let (seq, extents) = (cut.seq, cut.extents.clone());
        drop(cut);
        still.write(0, page(99)).await.expect("room");
        world.spawn(publisher(world.clone(), busy.clone()));
        for n in 0..2_000_u64 {
            let at = n % 300 * PAGE as u64;
            busy.write(at, page(n)).await.expect("room");
        }
        let again = still.cut_again(seq).await.expect("its records are there");
        assert_eq!(again.extents, extents);
        let mut out = vec![0; 20 * PAGE];
        let missing = again.read(PageRange::new(0, 20), &mut out).await;
        assert_eq!(missing.expect("readable"), vec![]);
        for (number, bytes) in (0..).zip(out.chunks_exact(PAGE)) {
            assert_eq!(bytes, page(number), "page {number}");
        }
    });
    done.expect("nobody waits for ever").expect("lives");
    sim.end();
}

/// Everything is unpublished and writers wait; the process dies. A start must not wait for room
/// that only a publish after it makes, however often it is repeated.
#[test]
fn a_full_log_starts_again_and_publishes() {
    for seed in 0..10 {
        let sim = Sim::new(seed, limits());
        let host = sim.host("node");
        let fill = sim.block_on(host, |world| async move {
            let cache = open(&world, unbounded()).await;
            let volume = cache.attach(opened(1, Seq(0))).await.expect("attaches");
            for n in 0_u64.. {
                let write = volume.write(n * PAGE as u64, page(n));
                let patience = world.sleep(Duration::from_secs(5));
                if !first(write, patience).await {
                    return n;
                }
            }
            unreachable!("the log is bounded")
        });
        let written = fill.expect("no deadlock").expect("lives");
        assert!(written > 100, "{written} pages fit");
        for _ in 0..6 {
            sim.crash(host, Crash::Process);
            let start = sim.block_on(host, move |world| async move {
                let cache = open(&world, unbounded()).await;
                let volume = cache.attach(opened(1, Seq(0))).await.expect("attaches");
                expect_page(&volume, written - 1, written - 1).await;
            });
            start.expect("a full log starts").expect("lives");
        }
        sim.crash(host, Crash::Process);
        let start = sim.block_on(host, move |world| async move {
            let cache = open(&world, unbounded()).await;
            let volume = cache.attach(opened(1, Seq(0))).await.expect("attaches");
            publish(&world, &volume).await;
            for n in 0..300 {
                volume.write(n * PAGE as u64, page(n)).await.expect("room");
                if n % 50 == 49 {
                    publish(&world, &volume).await;
                }
            }
            assert_eq!(volume.state().expect("known").damage, None);
        });
        start.expect("publishing makes room").expect("lives");
        sim.end();
    }
}

/// A large write waits for several chunks; what frees them comes after the reclaimer gave up.
#[test]
fn a_write_that_waits_for_many_chunks_is_woken() {
    for seed in 0..20 {
        let sim = Sim::new(seed, limits());
        let host = sim.host("node");
        let done = sim.block_on(host, |world| async move {
            let cache = open(&world, unbounded()).await;
            let volume = cache.attach(opened(1, Seq(0))).await.expect("attaches");
            for n in 0_u64.. {
                let write = volume.write(n * PAGE as u64, page(n));
                let patience = world.sleep(Duration::from_secs(5));
                if !first(write, patience).await {
                    break;
                }
            }
            let large = volume.clone();
            let large = async move { large.write(0, Bytes::from(vec![9; 100 * PAGE])).await };
            let later = async {
                world.sleep(Duration::from_secs(5)).await;
                publish(&world, &volume).await;
                std::future::pending::<()>().await;
            };
            first(large, later).await
        });
        assert_eq!(done.expect("nobody waits for ever"), Some(true));
        sim.end();
    }
}

/// True if the first of two futures ended first.
async fn first<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> bool {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    std::future::poll_fn(move |cx| {
        if a.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(true);
        }
        b.as_mut().poll(cx).map(|_| false)
    })
    .await
}
