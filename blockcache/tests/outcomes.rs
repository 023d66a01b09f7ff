//! What can go wrong with the SSD and its folder, and the one clear outcome that each has.

use std::path::Path;
use std::time::Duration;

use blockcache::{
    Cache, CacheConfig, CacheError, CacheVolume, CutContent, Epoch, Id, Known, Opened, PageRange,
    Seq,
};
use bytes::Bytes;
use world::sim::{Crash, DiskFaults, HostId, Odds, Sim, SimConfig, SimWorld};
use world::{Buf, DiskErrorKind, ETag, File, OpenMode, World};

const PAGE: usize = 4096;
const CHUNK: u64 = 64 * 1024;
const SUPERBLOCK: u64 = 64 * 1024;
const LOG: &str = "/cache/log";

fn config() -> CacheConfig {
    CacheConfig {
        dirty_bytes_max: u64::MAX,
        volume_dirty_bytes_max: u64::MAX,
        chunk_bytes: Some(u32::try_from(CHUNK).expect("small")),
        ..CacheConfig::new("/cache", SUPERBLOCK + 24 * CHUNK)
    }
}

fn sim(seed: u64) -> (Sim, HostId) {
    let config = SimConfig {
        steps_max: 3_000_000,
        time_max: Duration::from_secs(600),
        trace_lines_max: 30,
        ..SimConfig::default()
    };
    let sim = Sim::new(seed, config);
    let host = sim.host("node");
    (sim, host)
}

fn on<T, F>(sim: &Sim, host: HostId, main: impl FnOnce(SimWorld) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let done = sim.block_on(host, main);
    done.expect("nobody waits for ever").expect("lives")
}

fn opened(published: Seq) -> Opened {
    Opened {
        id: Id([1; 16]),
        name: "vm".into(),
        size_bytes: 1 << 30,
        epoch: Epoch(1),
        nonce: Id([1; 16]),
        published,
    }
}

fn page(stamp: u64) -> Bytes {
    Bytes::from(stamp.to_le_bytes().repeat(PAGE / 8))
}

async fn write(volume: &CacheVolume<SimWorld>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let written = volume.write(n * PAGE as u64, page(n)).await;
        written.expect("room");
    }
}

async fn expect(volume: &CacheVolume<SimWorld>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let mut out = vec![0; PAGE];
        let missing = volume.read(PageRange::new(n, n + 1), &mut out).await;
        assert_eq!(missing.expect("readable"), vec![], "page {n} is here");
        assert_eq!(out, page(n), "page {n}");
    }
}

async fn publish(world: &SimWorld, volume: &CacheVolume<SimWorld>) {
    let nonce = Id(world.random_id());
    let cut = volume
        .cut(nonce, ETag("v".into()), None, usize::MAX)
        .await
        .expect("sound");
    let seq = cut.expect("dirty").seq;
    volume.published(seq, nonce);
}

/// The bytes of the log that follow a seed: where pages of content lie.
fn find(sim: &Sim, host: HostId, content: &[u8]) -> u64 {
    let (_, len) = sim.files(host).remove(0);
    let mut at = SUPERBLOCK;
    while at < len {
        let mut seen = vec![0; content.len()];
        sim.read_file(host, Path::new(LOG), at, &mut seen);
        if seen == content {
            return at;
        }
        at += PAGE as u64;
    }
    panic!("the log does not hold these bytes");
}

/// The newest chunk header's place with this ordinal.
fn header_of(sim: &Sim, host: HostId, ordinal: u64) -> u64 {
    let (_, len) = sim.files(host).remove(0);
    let found = (0..(len - SUPERBLOCK) / CHUNK).map(|no| SUPERBLOCK + no * CHUNK);
    let mut found = found.filter(|at| {
        let mut head = [0; 32];
        sim.read_file(host, Path::new(LOG), *at, &mut head);
        head[..4] == *b"GCHK" && head[6] == 1 && head[24..32] == ordinal.to_le_bytes()
    });
    found.next().expect("the chunk is there")
}

/// Overwrites bytes of the log with nothing running.
fn scribble(sim: &Sim, host: HostId, at: u64, bytes: Vec<u8>) {
    on(sim, host, move |world| async move {
        let file = world.open(Path::new(LOG), OpenMode::Existing).await;
        let file = file.expect("there");
        let (_, written) = file.write_at(at, Buf::copy_of(&bytes)).await;
        written.expect("sound");
        file.persist().await.expect("sound");
    });
    sim.crash(host, Crash::Process);
}

async fn open(world: SimWorld) -> Result<Cache<SimWorld>, CacheError> {
    Cache::open(world, config()).await
}

#[test]
fn a_disk_that_is_full_at_the_first_start_is_said_at_once() {
    let (sim, host) = sim(1);
    sim.set_disk_bytes_max(host, SUPERBLOCK + CHUNK);
    let error = on(&sim, host, |world| async move { open(world).await.err() });
    let error = error.expect("no room for a cache");
    assert!(matches!(error, CacheError::TooSmall { .. }), "{error}");
    sim.end();
}

#[test]
fn a_disk_that_fills_up_later_is_a_smaller_cache() {
    let (sim, host) = sim(2);
    sim.set_disk_bytes_max(host, SUPERBLOCK + 14 * CHUNK);
    let evictions = on(&sim, host, |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
        for round in 0..20 {
            write(&volume, round * 20..(round + 1) * 20).await;
            publish(&world, &volume).await;
        }
        expect(&volume, 390..400).await;
        cache.stats().evictions
    });
    assert!(evictions > 10, "{evictions} evictions");
    sim.end();
}

#[test]
fn a_disk_that_gives_no_space_for_a_write_stops_the_log() {
    let (sim, host) = sim(3);
    let (inside, error) = (sim.clone(), CacheError::Fenced);
    let error = on(&sim, host, move |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
        write(&volume, 0..5).await;
        volume.flush().await.expect("sound");
        // A copy-on-write file system can do that, however much was allocated before.
        inside.set_disk_faults(
            host,
            DiskFaults {
                write_full: Odds::one_in(1),
                ..DiskFaults::default()
            },
        );
        let failed = volume.write(0, page(9)).await.err().unwrap_or(error);
        volume
            .flush()
            .await
            .expect_err("an error of fsync is final");
        inside.set_disk_faults(host, DiskFaults::default());
        volume.write(0, page(9)).await.expect_err("for good");
        expect(&volume, 1..5).await;
        failed
    });
    assert!(
        matches!(&error, CacheError::Stopped(e) if e.kind == DiskErrorKind::Full),
        "{error}"
    );
    // What was answered before is all there.
    sim.crash(host, Crash::Process);
    on(&sim, host, |world| async move {
        let cache = open(world).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("undamaged");
        expect(&volume, 1..5).await;
    });
    sim.end();
}

/// Promise 8: what an fsync may have lost is reported, and nobody writes on as if nothing was.
#[test]
fn writes_lost_by_a_failed_fsync_are_damage_until_somebody_accepts_it() {
    let mut lost = 0;
    for seed in 0..30 {
        let (sim, host) = sim(seed);
        let inside = sim.clone();
        on(&sim, host, move |world| async move {
            let cache = open(world).await.expect("opens");
            let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
            write(&volume, 0..20).await;
            inside.set_disk_faults(
                host,
                DiskFaults {
                    persist_error: Odds::one_in(1),
                    ..DiskFaults::default()
                },
            );
            volume.flush().await.expect_err("the disk says no");
            volume.flush().await.expect_err("and it is final");
            inside.set_disk_faults(host, DiskFaults::default());
        });
        // Long enough for the mark of the stop to be written.
        sim.run_for(Duration::from_secs(1)).expect("runs");
        sim.crash(host, Crash::Process);
        // Twice: a start that finds damage must not be the last that knows of it.
        for _ in 0..2 {
            let damaged = on(&sim, host, |world| async move {
                let cache = open(world).await.expect("opens");
                let local = cache.volumes().remove(0);
                let attached = cache.attach(opened(Seq(0))).await;
                match (local.last == Seq(20), attached) {
                    (true, Ok(volume)) => {
                        expect(&volume, 0..20).await;
                        false
                    }
                    (false, Err(CacheError::VolumeDamaged { .. })) => true,
                    other => panic!("seed {seed}: {other:?} {local:?}"),
                }
            });
            lost += u32::from(damaged);
            sim.crash(host, Crash::Process);
        }
        on(&sim, host, |world| async move {
            let cache = open(world).await.expect("opens");
            cache.forget(Id([1; 16])).await.expect("accepted");
            cache.attach(opened(Seq(0))).await.expect("attaches");
        });
        sim.end();
    }
    assert!(lost > 10, "{lost} starts found a loss");
}

/// Writes pages of a stamp, in order: write n is page n.
async fn write_stamped(volume: &CacheVolume<SimWorld>, pages: std::ops::Range<u64>, stamp: u64) {
    for number in pages {
        let written = volume.write(number * PAGE as u64, page(stamp + number));
        written.await.expect("room");
    }
}

async fn expect_stamp(volume: &CacheVolume<SimWorld>, number: u64, stamp: u64) {
    let mut out = vec![0; PAGE];
    let missing = volume.read(PageRange::new(number, number + 1), &mut out);
    assert_eq!(missing.await.expect("readable"), vec![], "page {number}");
    assert_eq!(out, page(stamp), "page {number}");
}

/// What survived a loss is kept, whoever accepts it must have seen where it ends, and the records
/// behind the hole never come back beside what is written in their place, loss after loss.
#[test]
fn an_accepted_loss_keeps_the_unbroken_run_and_nothing_else_ever() {
    let mut accepted = 0;
    for seed in 0..60 {
        let (sim, host) = sim(seed);
        on(&sim, host, |world| async move {
            let cache = open(world).await.expect("opens");
            let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
            write_stamped(&volume, 0..10, 0).await;
            volume.flush().await.expect("sound");
        });
        sim.crash(host, Crash::Process);
        // Pages 0..10 are flushed; each round loses some of what comes behind, and writes it anew.
        let (mut expected, mut round): (Vec<u64>, u64) = ((0..10).collect(), 0);
        while round < 3 {
            round += 1;
            let (inside, begun) = (sim.clone(), expected.len() as u64);
            on(&sim, host, move |world| async move {
                let cache = open(world).await.expect("opens");
                let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
                write_stamped(&volume, begun..begun + 20, 1000 * round).await;
                let faults = DiskFaults {
                    persist_error: Odds::one_in(1),
                    ..DiskFaults::default()
                };
                inside.set_disk_faults(host, faults);
                volume.flush().await.expect_err("the disk says no");
                inside.set_disk_faults(host, DiskFaults::default());
            });
            sim.run_for(Duration::from_secs(1)).expect("runs");
            sim.crash(host, Crash::Process);
            expected.extend((begun..begun + 20).map(|number| 1000 * round + number));
            let (kept, was_damaged) = on(&sim, host, |world| async move {
                let cache = open(world).await.expect("opens");
                let local = cache.volumes().remove(0);
                if local.damage.is_none() {
                    return (local.last, false);
                }
                let other = cache.accept_loss(local.id, local.kept.next()).await;
                assert!(matches!(other, Err(CacheError::LossRefused { .. })));
                let volume = cache.volume(local.id).expect("known");
                let mut out = vec![0; PAGE];
                let beyond = PageRange::new(local.kept.0, local.kept.0 + 1);
                let missing = volume.read(beyond, &mut out).await.expect("readable");
                assert_eq!(missing.len(), 1, "nothing behind the hole is shown");
                let kept = cache.accept_loss(local.id, local.kept).await;
                kept.expect("accepted");
                // A publish of what is lost may still be on its way: the epoch must end before its
                // seqs are given out again.
                assert!(!cache.volumes().remove(0).attached);
                (local.kept, true)
            });
            accepted += u32::from(was_damaged);
            assert!(kept >= Seq(10), "what was flushed is there: {kept}");
            expected.truncate(usize::try_from(kept.0).expect("small"));
            sim.crash(host, Crash::Power);
            let content = expected.clone();
            on(&sim, host, move |world| async move {
                let cache = open(world).await.expect("opens");
                let local = cache.volumes().remove(0);
                assert_eq!((local.damage, local.last), (None, kept), "seed {seed}");
                let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
                for (number, stamp) in (0..).zip(&content) {
                    expect_stamp(&volume, number, *stamp).await;
                }
                // Replaces what was lost, and must be what a later start finds.
                write_stamped(&volume, kept.0..kept.0 + 3, 500_000).await;
                volume.flush().await.expect("sound");
            });
            expected.extend((kept.0..kept.0 + 3).map(|number| 500_000 + number));
            sim.crash(host, Crash::Process);
        }
        sim.end();
    }
    assert!(accepted > 40, "{accepted} losses were accepted");
}

#[test]
fn a_torn_tail_ends_the_log_and_is_no_damage() {
    for seed in 0..20 {
        let (sim, host) = sim(seed);
        on(&sim, host, |world| async move {
            let cache = open(world).await.expect("opens");
            let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
            write(&volume, 0..30).await;
            volume.flush().await.expect("sound");
            write(&volume, 30..60).await;
        });
        sim.crash(host, Crash::Power);
        on(&sim, host, |world| async move {
            let cache = open(world).await.expect("opens");
            let local = cache.volumes().remove(0);
            assert_eq!(local.damage, None);
            assert!(local.last >= Seq(30));
            let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
            expect(&volume, 0..local.last.0).await;
        });
        sim.end();
    }
}

/// Writes 60 pages over several chunks, unpublished but for the first `published`, and stops.
fn written(sim: &Sim, host: HostId, published: u64) {
    on(sim, host, move |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
        if published > 0 {
            write(&volume, 0..published).await;
            publish(&world, &volume).await;
        }
        write(&volume, published..60).await;
        volume.flush().await.expect("sound");
    });
    sim.run_for(Duration::from_secs(1)).expect("runs");
    sim.crash(host, Crash::Process);
}

#[test]
fn an_unreadable_chunk_with_unpublished_writes_is_damage() {
    // At the beginning, in the middle, and the last that holds anything.
    for ordinal in [1, 4, 10] {
        let (sim, host) = sim(ordinal);
        written(&sim, host, 0);
        scribble(&sim, host, header_of(&sim, host, ordinal), vec![0xff; PAGE]);
        for _ in 0..2 {
            on(&sim, host, move |world| async move {
                let cache = open(world).await.expect("the others go on");
                let error = cache
                    .attach(opened(Seq(0)))
                    .await
                    .expect_err("writes are missing");
                assert!(
                    matches!(error, CacheError::VolumeDamaged { .. }),
                    "{ordinal}: {error}"
                );
                let other = Opened {
                    id: Id([2; 16]),
                    name: "other".into(),
                    // One that it shared would make them a group.
                    nonce: Id([2; 16]),
                    ..opened(Seq(0))
                };
                cache
                    .attach(other)
                    .await
                    .expect("another volume is not concerned");
            });
            sim.crash(host, Crash::Process);
        }
        sim.end();
    }
}

#[test]
fn an_unreadable_chunk_of_published_writes_costs_a_fetch() {
    let (sim, host) = sim(5);
    written(&sim, host, 40);
    scribble(&sim, host, header_of(&sim, host, 2), vec![0xff; PAGE]);
    on(&sim, host, |world| async move {
        let cache = open(world).await.expect("opens");
        let volume = cache
            .attach(opened(Seq(40)))
            .await
            .expect("nothing is lost");
        expect(&volume, 40..60).await;
        assert_eq!(volume.known(PageRange::new(0, 1))[0].1, Known::Absent);
    });
    sim.end();
}

/// The same where the device says so instead of giving other bytes.
#[test]
fn a_device_that_cannot_read_is_no_crash_and_no_data() {
    let (sim, host) = sim(6);
    written(&sim, host, 0);
    for odds in [20, 5, 1] {
        sim.set_disk_faults(
            host,
            DiskFaults {
                read_error: Odds::one_in(odds),
                ..DiskFaults::default()
            },
        );
        on(&sim, host, |world| async move {
            if let Ok(cache) = open(world).await {
                for local in cache.volumes() {
                    assert!(local.damage.is_some() || local.last == Seq(60), "{local:?}");
                }
            }
        });
        sim.crash(host, Crash::Process);
    }
    sim.end();
}

#[test]
fn a_flipped_bit_is_an_error_while_unpublished_and_a_fetch_after() {
    let (sim, host) = sim(7);
    written(&sim, host, 30);
    for n in [10, 50] {
        sim.flip_bit(host, Path::new(LOG), find(&sim, host, &page(n)) + 99, 3);
    }
    on(&sim, host, |world| async move {
        let cache = open(world).await.expect("opens");
        let volume = cache.attach(opened(Seq(30))).await.expect("attaches");
        let mut out = vec![0; PAGE];
        let clean = volume.read(PageRange::new(10, 11), &mut out).await;
        assert_eq!(
            clean.expect("the store has it")[0].pages,
            PageRange::new(10, 11)
        );
        let dirty = volume.read(PageRange::new(50, 51), &mut out).await;
        assert!(
            matches!(dirty, Err(CacheError::Damaged { .. })),
            "{dirty:?}"
        );
        let cut = volume
            .cut(Id([5; 16]), ETag("v".into()), None, usize::MAX)
            .await
            .expect("taken");
        let cut = cut.expect("dirty");
        let holds = |e: &&blockcache::CutExtent| {
            e.content == CutContent::Data && e.pages.overlap(PageRange::new(50, 51)).is_some()
        };
        let whole = cut.extents.iter().find(holds).expect("data").pages;
        let mut out = vec![0; usize::try_from(whole.bytes()).expect("small")];
        let read = cut.read(whole, &mut out).await;
        assert!(
            matches!(read, Err(CacheError::Damaged { .. })),
            "never published as data"
        );
        // Written again, it is sound again.
        drop(cut);
        write(&volume, 50..51).await;
        expect(&volume, 31..60).await;
    });
    sim.end();
}

#[test]
fn a_footer_that_decays_does_not_keep_its_chunk() {
    let (sim, host) = sim(8);
    let inside = sim.clone();
    on(&sim, host, move |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
        write(&volume, 0..30).await;
        publish(&world, &volume).await;
        for ordinal in 1..4 {
            let end = header_of(&inside, host, ordinal) + CHUNK;
            inside.flip_bit(host, Path::new(LOG), end - 1, 0);
        }
        for round in 0..40 {
            write(&volume, round * 20..(round + 1) * 20).await;
            publish(&world, &volume).await;
        }
        expect(&volume, 790..800).await;
        assert!(cache.stats().stopped.is_none());
    });
    sim.end();
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    let (sim, host) = sim(9);
    on(&sim, host, |world| async move {
        let file = world
            .open(Path::new(LOG), OpenMode::Create)
            .await
            .expect("made");
        file.grow(1 << 20).await.expect("room");
        let (_, written) = file.write_at(0, Buf::copy_of(&[b'x'; 8192])).await;
        written.expect("sound");
    });
    sim.crash(host, Crash::Process);
    let error = on(&sim, host, |world| async move { open(world).await.err() });
    let error = error.expect("not ours");
    assert!(matches!(error, CacheError::Foreign { .. }), "{error}");
    let mut kept = [0; 8192];
    sim.read_file(host, Path::new(LOG), 0, &mut kept);
    assert_eq!(kept, [b'x'; 8192]);
    sim.end();
}

#[test]
fn a_newer_format_is_refused_with_its_number() {
    let (sim, host) = sim(10);
    on(&sim, host, |world| async move {
        open(world).await.map(drop).expect("opens");
    });
    sim.crash(host, Crash::Process);
    let mut page = vec![0; PAGE];
    sim.read_file(host, Path::new(LOG), 4096, &mut page);
    page[8] = 7;
    scribble(&sim, host, 4096, page);
    let error = on(&sim, host, |world| async move { open(world).await.err() });
    let text = error.expect("newer").to_string();
    assert!(text.contains("format 7"), "{text}");
    sim.end();
}

#[test]
fn a_log_cut_short_is_refused() {
    let (sim, host) = sim(11);
    on(&sim, host, |world| async move {
        open(world).await.map(drop).expect("opens");
    });
    let mut superblock = vec![0; PAGE];
    sim.read_file(host, Path::new(LOG), 4096, &mut superblock);
    sim.crash(host, Crash::Process);
    sim.wipe_disk(host);
    on(&sim, host, |world| async move {
        let file = world
            .open(Path::new(LOG), OpenMode::Create)
            .await
            .expect("made");
        file.grow(8192).await.expect("room");
        let (_, written) = file.write_at(4096, Buf::copy_of(&superblock)).await;
        written.expect("sound");
    });
    sim.crash(host, Crash::Process);
    let error = on(&sim, host, |world| async move { open(world).await.err() });
    let error = error.expect("cut short");
    assert!(matches!(error, CacheError::Damaged { .. }), "{error}");
    sim.end();
}

#[test]
fn a_folder_in_use_is_said_to_be() {
    let (sim, host) = sim(12);
    on(&sim, host, |world| async move {
        open(world).await.map(drop).expect("opens");
    });
    let error = on(&sim, host, |world| async move { open(world).await.err() });
    let error = error.expect("one at a time");
    assert!(matches!(error, CacheError::InUse(_)), "{error}");
    sim.end();
}

/// Rule 11: a copy knows the same volumes at the same epoch as its original; what it tells its user is
/// which roots its own log has made. Once the original publishes, that is not the root's any more.
#[test]
fn a_copied_folder_does_not_know_what_its_original_published_since() {
    let (sim, host) = sim(13);
    written(&sim, host, 30);
    let other = sim.host("copy");
    sim.copy_disk(host, other);
    let nonce = on(&sim, host, |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(30))).await.expect("attaches");
        publish(&world, &volume).await;
        volume.state().expect("known").nonce
    });
    on(&sim, other, move |world| async move {
        let cache = open(world).await.expect("opens");
        let local = cache.volumes().remove(0);
        assert_eq!((local.published, local.last), (Seq(30), Seq(60)));
        let knows = local.nonce == nonce || local.intents.iter().any(|i| i.nonce == nonce);
        assert!(!knows, "the copy takes the root for its own");
        // Its user then drops what it has, and a start after that does not bring it back.
        cache.forget(local.id).await.expect("dropped");
    });
    sim.crash(other, Crash::Power);
    on(&sim, other, |world| async move {
        let cache = open(world).await.expect("opens");
        let volume = cache.attach(opened(Seq(60))).await.expect("attaches");
        let known = volume.known(PageRange::new(0, 60));
        assert_eq!(known, vec![(PageRange::new(0, 60), Known::Absent)]);
    });
    sim.end();
}

/// A cut with a bound holds the oldest writes, each wholly; what it leaves goes with the next ones.
#[test]
fn a_bounded_cut_ends_between_two_writes() {
    const EXTENTS: usize = 4;
    let (sim, host) = sim(1);
    on(&sim, host, |world| async move {
        let cache = open(world.clone()).await.expect("opens");
        let volume = cache.attach(opened(Seq(0))).await.expect("attaches");
        // Three pages apart from one another, then a write of sectors, 60 pages (several records), and
        // sectors: the bound is met in the middle of it.
        for n in [10, 20, 30] {
            write(&volume, n..n + 1).await;
        }
        let long = Bytes::from(vec![7; 60 * PAGE + 1024]);
        let end = volume
            .write(40 * PAGE as u64 - 512, long)
            .await
            .expect("room");
        write(&volume, 5..6).await;
        let last = volume.state().expect("attached").last;

        let mut cuts = Vec::new();
        loop {
            let nonce = Id(world.random_id());
            let cut = volume.cut(nonce, ETag("v".into()), None, EXTENTS).await;
            let Some(cut) = cut.expect("sound") else {
                break;
            };
            let pages: u64 = cut.extents.iter().map(|extent| extent.pages.pages()).sum();
            cuts.push((cut.seq, pages));
            let seq = cut.seq;
            drop(cut);
            volume.published(seq, nonce);
        }
        assert!(end.0 >= 3 + 4, "the long write has several records");
        assert_eq!(cuts, [(end, 3 + 62), (last, 1)]);
    });
}
