//! What the simulated world promises, as tests: each over many seeds, since one shows little.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::net::{Listener, Stream};
use crate::store::{Part, RETRY_AFTER_MAX};
use crate::{Address, Buf, DiskErrorKind, ETag, File, OpenMode, Store, StoreErrorKind, World};

const LOG: &str = "/cache/log";

/// Runs a scenario and returns its result; a stuck one fails the test.
fn simulate<T, F>(seed: u64, scenario: impl FnOnce(Sim) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    match Sim::simulate(seed, SimConfig::default(), scenario) {
        Ok((value, _)) => value,
        Err(stuck) => panic!("{stuck}"),
    }
}

async fn open(world: &SimWorld) -> SimFile {
    let opened = world.open(Path::new(LOG), OpenMode::Create).await;
    opened.expect("nobody else has it open")
}

async fn write(file: &SimFile, at: u64, byte: u8, len: usize) {
    let buf = Buf::copy_of(&vec![byte; len]);
    file.write_at(at, buf).await.1.expect("the disk is healthy");
}

/// The first byte of each sector of the file as the kernel sees it.
fn sectors(sim: &Sim, host: HostId, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * 512];
    sim.read_file(host, Path::new(LOG), 0, &mut bytes);
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

/// A bit of everything, with crashes in between.
async fn busy(sim: Sim) {
    sim.set_store_faults(StoreFaults {
        lost_request: Odds::one_in(10),
        throttled: Odds::one_in(10),
        lost_answer: Odds::one_in(5),
        late: Odds::one_in(5),
        repeated: Odds::one_in(10),
        ..StoreFaults::default()
    });
    let host = sim.host("a");
    for round in 0..6_u64 {
        sim.start(host, move |world| busy_process(world, round));
        let operations = sim.chance(|chance| chance.below(60));
        let how = [Crash::Process, Crash::Power][usize::from(round % 2 == 0)];
        sim.crash_after(host, operations, how);
        sim.sleep(Duration::from_secs(2)).await;
        sim.crash(host, how);
    }
}

async fn busy_process(world: SimWorld, round: u64) {
    let file = open(&world).await;
    for number in 0..8_u64 {
        let (file, store) = (file.clone(), world.store());
        let inner = world.clone();
        world.spawn(async move {
            let id = inner.random_id();
            write(&file, number * 4096, id[0], 4096).await;
            let persisted = file.persist().await;
            assert!(persisted.is_ok(), "no faults of disks are on");
            let body = Bytes::copy_from_slice(&id);
            let key = format!("key/{}", number / 2);
            if let Err(error) = store.create(&key, body).await {
                let known = [
                    StoreErrorKind::Conflict,
                    StoreErrorKind::Retry,
                    StoreErrorKind::Unknown,
                ];
                assert!(known.contains(&error.kind), "round {round}: {error}");
            }
        });
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_does_not() {
    let hash = |seed| match Sim::simulate(seed, SimConfig::default(), busy) {
        Ok(((), hash)) => hash,
        Err(stuck) => panic!("{stuck}"),
    };
    let first: Vec<u64> = (0..50).map(hash).collect();
    let second: Vec<u64> = (0..50).map(hash).collect();
    assert_eq!(first, second);
    let different: BTreeSet<u64> = first.into_iter().collect();
    assert_eq!(different.len(), 50);
}

#[test]
fn a_process_crash_keeps_every_write_that_returned() {
    for seed in 0..50 {
        simulate(seed, |sim| async move {
            let host = sim.host("a");
            sim.call(host, |world| async move {
                let file = open(&world).await;
                write(&file, 0, 1, 8192).await;
                write(&file, 512, 2, 512).await;
            })
            .await
            .expect("nothing crashes yet");
            sim.crash(host, Crash::Process);
            assert_eq!(sectors(&sim, host, 4), [1, 2, 1, 1]);
        });
    }
}

#[test]
fn a_write_under_way_in_a_process_crash_lands_wholly_partly_or_not() {
    let seen: BTreeSet<&str> = (0..200)
        .map(|seed| {
            simulate(seed, |sim| async move {
                let host = sim.host("a");
                sim.call(host, |world| async move {
                    write(&open(&world).await, 0, 1, 4096).await;
                })
                .await;
                sim.kill_all_and_reopen(host).await;
                sim.start(host, |world| async move {
                    write(&open(&world).await, 0, 2, 4096).await;
                });
                // The opening is one operation, the write is the next.
                sim.crash_after(host, 1, Crash::Process);
                sim.until(|| !sim.is_up(host)).await;
                let sectors = sectors(&sim, host, 8);
                let new = sectors.iter().take_while(|byte| **byte == 2).count();
                assert!(sectors[new..].iter().all(|byte| *byte == 1), "{sectors:?}");
                match new {
                    0 => "not",
                    8 => "wholly",
                    _ => "partly",
                }
            })
        })
        .collect();
    assert_eq!(seen.len(), 3, "{seen:?}");
}

impl Sim {
    async fn kill_all_and_reopen(&self, host: HostId) {
        self.crash(host, Crash::Process);
        self.sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_power_cut_keeps_what_was_persisted_and_mixes_the_rest() {
    let mut mixes = BTreeSet::new();
    for seed in 0..200 {
        let left = simulate(seed, |sim| async move {
            let host = sim.host("a");
            sim.call(host, |world| async move {
                let file = open(&world).await;
                write(&file, 0, 1, 2048).await;
                file.persist().await.expect("the disk is healthy");
                write(&file, 512, 2, 1024).await;
                write(&file, 1024, 3, 1024).await;
            })
            .await;
            sim.crash(host, Crash::Power);
            sectors(&sim, host, 4)
        });
        assert_eq!(left[0], 1);
        assert!([1, 2].contains(&left[1]), "{left:?}");
        assert!([1, 2, 3].contains(&left[2]), "{left:?}");
        assert!([1, 3].contains(&left[3]), "{left:?}");
        mixes.insert(left);
    }
    assert_eq!(mixes.len(), 12, "every mix is legal, so every mix is seen");
}

#[test]
fn what_a_crash_would_leave_is_told_without_one() {
    let mut mixes = BTreeSet::new();
    for seed in 0..100 {
        let (cut, killed, kept) = simulate(seed, |sim| async move {
            let host = sim.host("a");
            sim.call(host, |world| async move {
                let file = open(&world).await;
                write(&file, 0, 1, 1024).await;
                file.persist().await.expect("the disk is healthy");
                write(&file, 512, 2, 512).await;
            })
            .await;
            let look = |how| {
                let image = sim.disk_after(host, how, seed);
                let other = sim.host(&format!("{how:?}"));
                sim.restore_disk(other, &image);
                sectors(&sim, other, 2)
            };
            let (cut, killed) = (look(Crash::Power), look(Crash::Process));
            (cut, killed, sectors(&sim, host, 2))
        });
        assert_eq!((killed, kept), (vec![1, 2], vec![1, 2]));
        assert_eq!(cut[0], 1, "it was persisted");
        mixes.insert(cut[1]);
    }
    assert_eq!(mixes, BTreeSet::from([1, 2]), "both are legal and seen");
}

#[test]
fn a_persist_does_not_cover_a_write_that_returned_after_it_was_submitted() {
    let mut lost = 0;
    for seed in 0..100 {
        let left = simulate(seed, |sim| async move {
            let host = sim.host("a");
            sim.call(host, |world| async move {
                let file = open(&world).await;
                write(&file, 0, 1, 512).await;
                file.persist().await.expect("the disk is healthy");
                let done = Rc::new(Cell::new(false));
                let (persisting, flag) = (file.clone(), Rc::clone(&done));
                world.spawn(async move {
                    persisting.persist().await.expect("the disk is healthy");
                    flag.set(true);
                });
                world.yield_now().await;
                write(&file, 0, 2, 512).await;
                while !done.get() {
                    world.sleep(Duration::from_micros(50)).await;
                }
            })
            .await;
            sim.crash(host, Crash::Power);
            sectors(&sim, host, 1)[0]
        });
        lost += usize::from(left == 1);
    }
    assert!((1..100).contains(&lost), "{lost} of 100 were lost");
}

#[test]
fn after_a_failed_persist_the_next_one_succeeds_and_the_data_is_lost_all_the_same() {
    let mut lost = 0;
    for seed in 0..50 {
        let (kernel, device, durable) = simulate(seed, |sim| async move {
            let host = sim.host("a");
            let driver = sim.clone();
            let device = sim.call(host, move |world| async move {
                let file = open(&world).await;
                write(&file, 0, 1, 4096).await;
                file.persist().await.expect("the disk is healthy");
                write(&file, 0, 2, 4096).await;
                let failing = DiskFaults {
                    persist_error: Odds::ALWAYS,
                    ..DiskFaults::default()
                };
                driver.set_disk_faults(world.host(), failing);
                let error = file.persist().await.expect_err("the fault is on");
                assert_eq!(error.kind, DiskErrorKind::Io(5));
                driver.set_disk_faults(world.host(), DiskFaults::default());
                file.persist().await.expect("Linux tells an error once");
                let (buf, read) = file.read_device_at(0, Buf::zeroed(4096)).await;
                read.expect("the file is as long");
                buf[0]
            });
            let device = device.await.expect("nothing crashes yet");
            let kernel = sectors(&sim, host, 1)[0];
            sim.crash(host, Crash::Power);
            (kernel, device, sectors(&sim, host, 1)[0])
        });
        assert_eq!(kernel, 2);
        assert_eq!(device, durable, "seed {seed}");
        lost += usize::from(durable == 1);
    }
    assert!((1..50).contains(&lost), "{lost} of 50 were lost");
}

/// What the kernel and the device hold of the first sectors, after page 0 was written twice and the
/// second persist failed, and `then` was done.
async fn after_a_loss(
    sim: &Sim,
    then: impl AsyncFnOnce(SimFile) + 'static,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let host = sim.host("a");
    let driver = sim.clone();
    let device = sim.call(host, move |world| async move {
        let file = open(&world).await;
        write(&file, 0, 1, 4096).await;
        file.persist().await.expect("the disk is healthy");
        write(&file, 0, 2, 4096).await;
        let failing = DiskFaults {
            persist_error: Odds::ALWAYS,
            ..DiskFaults::default()
        };
        driver.set_disk_faults(world.host(), failing);
        file.persist().await.expect_err("the fault is on");
        driver.set_disk_faults(world.host(), DiskFaults::default());
        let (buf, read) = file.read_device_at(0, Buf::zeroed(4096)).await;
        read.expect("the file is as long");
        if buf[0] != 1 {
            return None;
        }
        then(file.clone()).await;
        let (buf, read) = file.read_device_at(0, Buf::zeroed(4096)).await;
        read.expect("the file is as long");
        Some(buf.chunks(512).map(|sector| sector[0]).collect())
    });
    let device = device.await.expect("nothing crashes");
    device.map(|device: Vec<u8>| (sectors(sim, host, 8), device))
}

#[test]
fn a_write_to_a_page_that_was_lost_takes_the_rest_of_it_along() {
    let outcomes = (0..50).filter_map(|seed| {
        simulate(seed, |sim| async move {
            after_a_loss(&sim, async |file: SimFile| write(&file, 512, 3, 512).await).await
        })
    });
    let mut lost = 0;
    for (kernel, device) in outcomes {
        assert_eq!(kernel, [2, 3, 2, 2, 2, 2, 2, 2]);
        assert_eq!(device, kernel, "the kernel writes back whole pages");
        lost += 1;
    }
    assert!(lost > 0);
}

#[test]
fn a_kernel_that_forgets_what_it_holds_for_clean_shows_what_the_device_has() {
    let outcomes = (0..50).filter_map(|seed| {
        simulate(seed, |sim| async move {
            let forget = async |file: SimFile| file.forget_cached().await.expect("forgotten");
            after_a_loss(&sim, forget).await
        })
    });
    let mut lost = 0;
    for (kernel, device) in outcomes {
        assert_eq!((kernel, device), (vec![1; 8], vec![1; 8]));
        lost += 1;
    }
    assert!(lost > 0);
}

#[test]
fn a_file_is_open_once_until_its_process_dies() {
    simulate(1, |sim| async move {
        let (host, path) = (sim.host("a"), Path::new(LOG));
        let (one, other) = (sim.process(host), sim.process(host));
        let missing = one.open(path, OpenMode::Existing).await;
        assert_eq!(missing.expect_err("absent").kind, DiskErrorKind::NotFound);
        let kept = open(&one).await;
        let busy = other.open(path, OpenMode::Existing).await;
        assert_eq!(busy.expect_err("open").kind, DiskErrorKind::Busy);
        sim.kill(one.pid());
        let again = open(&other).await;
        // The dead handle must not unlock what another process holds.
        drop(kept);
        let third = sim.process(host).open(path, OpenMode::Existing).await;
        assert_eq!(third.expect_err("open").kind, DiskErrorKind::Busy);
        drop(again);
        open(&other).await;
    });
}

#[test]
fn a_full_disk_says_so_and_leaves_the_length() {
    simulate(1, |sim| async move {
        let host = sim.host("a");
        sim.set_disk_bytes_max(host, 8192);
        let file = open(&sim.process(host)).await;
        file.grow(8192).await.expect("as large as the disk");
        let error = file.grow(8193).await.expect_err("larger than the disk");
        assert_eq!(error.kind, DiskErrorKind::Full);
        let (_, written) = file.write_at(8000, Buf::zeroed(512)).await;
        assert_eq!(written.expect_err("no room").kind, DiskErrorKind::Full);
        assert_eq!(file.size().await, Ok(8192));
        let (_, read) = file.read_at(8000, Buf::zeroed(512)).await;
        assert_eq!(read.expect_err("behind the end").kind, DiskErrorKind::Short);
    });
}

#[test]
fn a_copied_disk_goes_its_own_way() {
    simulate(1, |sim| async move {
        let (one, two) = (sim.host("a"), sim.host("b"));
        sim.call(one, |world| async move {
            write(&open(&world).await, 0, 1, 512).await;
        })
        .await;
        sim.crash(one, Crash::Process);
        sim.copy_disk(one, two);
        let saved = sim.save_disk(one);
        sim.call(one, |world| async move {
            write(&open(&world).await, 0, 2, 512).await;
        })
        .await;
        sim.crash(one, Crash::Process);
        sim.crash(two, Crash::Power);
        assert_eq!(
            (sectors(&sim, one, 1), sectors(&sim, two, 1)),
            (vec![2], vec![1])
        );
        sim.restore_disk(one, &saved);
        assert_eq!(sectors(&sim, one, 1), [1]);
        sim.wipe_disk(one);
        assert_eq!(sim.files(one), []);
    });
}

fn port(sim: &Sim, host: HostId) -> Address {
    Address::Tcp(SocketAddr::new(sim.ip(host), 10_809))
}

/// Listens on the host and sends back whatever comes, until the end.
fn start_echo(sim: &Sim, host: HostId) {
    let at = port(sim, host);
    sim.start(host, |world| async move {
        let listener = world.listen(&at).await.expect("nobody else listens");
        loop {
            let stream = listener.accept().await.expect("the listener is open");
            world.spawn(async move {
                let mut bytes = Vec::with_capacity(4096);
                while matches!(stream.read(&mut bytes).await, Ok(1..)) {
                    let sent = stream.write_all(&mut [IoSlice::new(&bytes)]).await;
                    if sent.is_err() {
                        return;
                    }
                    bytes.clear();
                }
            });
        }
    });
}

#[test]
fn bytes_come_back_in_order_through_full_buffers() {
    for seed in 0..10 {
        simulate(seed, |sim| async move {
            let (server, client) = (sim.host("server"), sim.host("client"));
            start_echo(&sim, server);
            sim.sleep(Duration::from_millis(5)).await;
            let sent: Vec<u8> = (0..3 * STREAM_BYTES_MAX)
                .map(|n| n.to_le_bytes()[1])
                .collect();
            let (body, to) = (sent.clone(), port(&sim, server));
            let got = sim.call(client, |world| async move {
                let stream = Rc::new(world.connect(&to).await.expect("the server listens"));
                let writer = Rc::clone(&stream);
                world.spawn(async move {
                    let (one, two) = body.split_at(1_000);
                    let mut parts = [IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)];
                    writer
                        .write_all(&mut parts)
                        .await
                        .expect("the server lives");
                });
                let mut got = Vec::with_capacity(4 * STREAM_BYTES_MAX);
                while got.len() < 3 * STREAM_BYTES_MAX {
                    let count = stream.read(&mut got).await.expect("the server lives");
                    assert!(count > 0, "the end came early");
                }
                got
            });
            assert_eq!(got.await.expect("nothing crashes"), sent);
        });
    }
}

#[test]
fn peers_know_each_other_and_hear_of_a_death() {
    for (seed, how) in (0..20).zip([Crash::Process, Crash::Power].into_iter().cycle()) {
        simulate(seed, move |sim| async move {
            let (server, client) = (sim.host("server"), sim.host("client"));
            start_echo(&sim, server);
            sim.sleep(Duration::from_millis(5)).await;
            let world = sim.process(client);
            let stream = world
                .connect(&port(&sim, server))
                .await
                .expect("it listens");
            assert_eq!(stream.peer(), crate::Peer::Host(sim.ip(server)));
            sim.crash(server, how);
            let mut bytes = Vec::with_capacity(16);
            let heard = stream.read(&mut bytes).await;
            assert!(!matches!(heard, Ok(1..)), "{heard:?}");
            let mut failed = false;
            for _ in 0..64 {
                failed |= stream.write_all(&mut [IoSlice::new(b"x")]).await.is_err();
            }
            assert!(failed, "writes to the dead succeed for ever");
            let refused = world.connect(&port(&sim, server)).await;
            assert!(refused.is_err(), "a dead server listens");
        });
    }
}

#[test]
fn a_unix_socket_names_the_process_and_is_free_after_a_crash() {
    simulate(3, |sim| async move {
        let at = Address::Unix("/run/a.sock".into());
        let host = sim.host("a");
        let (server, client) = (sim.process(host), sim.process(host));
        let listener = server.listen(&at).await.expect("free");
        let taken = client.listen(&at).await;
        assert_eq!(
            taken.expect_err("taken").kind(),
            std::io::ErrorKind::AddrInUse
        );
        let near = client.connect(&at).await.expect("listening");
        let far = listener.accept().await.expect("connected");
        let pid = client.pid().0;
        assert_eq!(far.peer(), crate::Peer::Process { pid, uid: 1_000 });
        sim.kill(server.pid());
        let mut bytes = Vec::with_capacity(1);
        assert!(!matches!(near.read(&mut bytes).await, Ok(1..)));
        client.listen(&at).await.expect("free again");
    });
}

#[test]
fn a_partition_holds_everything_back_until_it_heals() {
    simulate(4, |sim| async move {
        let (server, client) = (sim.host("server"), sim.host("client"));
        start_echo(&sim, server);
        sim.sleep(Duration::from_millis(5)).await;
        let world = sim.process(client);
        let stream = world
            .connect(&port(&sim, server))
            .await
            .expect("it listens");
        sim.partition(server, client);
        stream
            .write_all(&mut [IoSlice::new(b"hello")])
            .await
            .expect("buffered");
        let got = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&got);
        sim.spawn(async move {
            let mut bytes = Vec::with_capacity(5);
            while bytes.len() < 5 {
                stream.read(&mut bytes).await.expect("the server lives");
            }
            *into.borrow_mut() = bytes;
        });
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(*got.borrow(), b"");
        let refused = world.connect(&port(&sim, server)).await;
        assert!(refused.is_err(), "a connection over a partition");
        sim.heal(client, server);
        sim.sleep(Duration::from_secs(1)).await;
        assert_eq!(*got.borrow(), b"hello");
    });
}

#[test]
fn a_race_for_an_object_has_one_winner() {
    for seed in 0..20 {
        simulate(seed, |sim| async move {
            let wins = Rc::new(Cell::new(0));
            for number in 0..4_u8 {
                let store = sim.store(sim.host(&format!("h{number}")));
                let (sim, wins) = (sim.clone(), Rc::clone(&wins));
                sim.clone().spawn(async move {
                    match store
                        .create("root", Bytes::copy_from_slice(&[number]))
                        .await
                    {
                        Ok(_) => wins.set(wins.get() + 1),
                        Err(error) => assert_eq!(error.kind, StoreErrorKind::Conflict),
                    }
                    let seen = store.get("root", Part::All).await.expect("it is there");
                    assert_eq!(seen.bytes, sim.object("root").expect("it is there"));
                });
            }
            sim.sleep(Duration::from_secs(2)).await;
            assert_eq!(wins.get(), 1);
        });
    }
}

#[test]
fn replace_wants_the_version_seen_and_lists_show_every_write() {
    simulate(5, |sim| async move {
        let store = sim.store(sim.host("a"));
        let kind = |error: crate::StoreError| error.kind;
        let none = store
            .replace("k/1", &ETag("\"v0\"".into()), Bytes::new())
            .await;
        assert_eq!(none.map_err(kind), Err(StoreErrorKind::NotFound));
        let first = store
            .create("k/1", Bytes::from_static(b"one"))
            .await
            .expect("new");
        let second = store
            .replace("k/1", &first, Bytes::from_static(b"two!"))
            .await;
        let second = second.expect("the version is right");
        let stale = store.replace("k/1", &first, Bytes::new()).await;
        assert_eq!(stale.map_err(kind), Err(StoreErrorKind::Conflict));
        for key in ["j", "k/2", "k/3", "l"] {
            store.create(key, Bytes::new()).await.expect("new");
        }
        let rows = store.list("k/", Some("k/1"), 1).await.expect("up");
        assert_eq!(
            rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(),
            ["k/2"]
        );
        let rows = store.list("k/", None, 9).await.expect("up");
        assert_eq!(rows.len(), 3);
        let part = store.get("k/1", Part::Suffix(2)).await.expect("there");
        assert_eq!(
            (&part.bytes[..], part.size, part.etag),
            (&b"o!"[..], 4, second)
        );
        let part = store.get("k/1", Part::Range(1..3)).await.expect("there");
        assert_eq!(part.bytes, "wo");
        let beyond = store.get("k/1", Part::Range(1..5)).await;
        assert!(beyond.is_err(), "bytes that are not there");
        store.delete("k/1").await.expect("up");
        store.delete("k/1").await.expect("absent is no error");
    });
}

#[test]
fn a_late_write_lands_after_its_caller_was_told_that_nobody_knows() {
    let late = StoreFaults {
        late: Odds::ALWAYS,
        ..StoreFaults::default()
    };
    simulate(6, move |sim| async move {
        sim.set_store_faults(late);
        let store = sim.store(sim.host("a"));
        let error = store.create("k", Bytes::new()).await.expect_err("late");
        assert_eq!(error.kind, StoreErrorKind::Unknown);
        assert_eq!(sim.keys(), [""; 0]);
        sim.sleep(Duration::from_secs(600)).await;
        assert_eq!(sim.keys(), ["k"]);
    });
}

#[test]
fn a_store_that_asks_to_be_left_alone_says_for_how_long_and_does_nothing() {
    let asks = StoreFaults {
        asks_to_wait: Odds::ALWAYS,
        ..StoreFaults::default()
    };
    let waits = simulate(6, move |sim| async move {
        sim.set_store_faults(asks);
        let store = sim.store(sim.host("a"));
        let mut waits = BTreeSet::new();
        for _ in 0..100 {
            let error = store.create("k", Bytes::new()).await.expect_err("asks");
            let wait = error.retry_after.expect("it says when");
            assert_eq!(error.kind, StoreErrorKind::Retry);
            assert_eq!(sim.store_stats().asked_to_wait, Some(wait));
            assert!(wait <= RETRY_AFTER_MAX && wait >= Duration::from_secs(1));
            waits.insert(wait);
        }
        assert_eq!(sim.keys(), [""; 0]);
        waits
    });
    // Such as are repeated where they were made, and such as the caller hears of.
    let short = waits.iter().filter(|wait| wait.as_secs() <= 2).count();
    assert!(short == 2 && waits.len() > 10, "{waits:?}");
}

#[test]
fn an_outage_of_one_host_is_none_of_the_others() {
    simulate(7, |sim| async move {
        let (one, two) = (sim.host("a"), sim.host("b"));
        sim.set_store_outage(Some(one), true);
        for number in 0..20 {
            let key = format!("{number}");
            let error = sim.store(one).create(&key, Bytes::new()).await;
            let kind = error.expect_err("outage").kind;
            assert!([StoreErrorKind::Retry, StoreErrorKind::Unknown].contains(&kind));
        }
        assert_eq!(sim.keys(), [""; 0]);
        sim.store(two).create("k", Bytes::new()).await.expect("up");
        sim.set_store_outage(Some(one), false);
        sim.store(one).get("k", Part::All).await.expect("up");
    });
}

#[test]
fn waiting_for_nothing_is_a_deadlock_and_spinning_is_a_livelock() {
    let stuck = Sim::simulate(1, SimConfig::default(), |_| std::future::pending::<()>());
    assert_eq!(stuck.expect_err("nothing happens").why, StuckWhy::Deadlock);
    let config = SimConfig {
        steps_max: 1_000,
        ..SimConfig::default()
    };
    let stuck = Sim::simulate(1, config, |sim| async move {
        let world = sim.process(sim.host("a"));
        loop {
            world.yield_now().await;
        }
    });
    let stuck: Result<((), u64), Stuck> = stuck;
    assert_eq!(stuck.expect_err("it spins").why, StuckWhy::Steps);
    let stuck: Result<((), u64), Stuck> =
        Sim::simulate(1, SimConfig::default(), |sim| async move {
            loop {
                sim.sleep(Duration::from_secs(3_600)).await;
            }
        });
    assert_eq!(stuck.expect_err("days pass").why, StuckWhy::Time);
}

#[test]
fn a_paused_process_stands_still_and_its_requests_go_on() {
    simulate(8, |sim| async move {
        let host = sim.host("a");
        let done = Rc::new(Cell::new(false));
        let flag = Rc::clone(&done);
        sim.start(host, |world| async move {
            let created = world.store().create("k", Bytes::new()).await;
            flag.set(created.is_ok());
        });
        sim.until(|| sim.steps() > 1).await;
        sim.sleep(Duration::from_micros(10)).await;
        sim.pause(host);
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!((done.get(), sim.keys().len()), (false, 1));
        sim.resume(host);
        sim.until(|| done.get()).await;
    });
}

#[test]
fn the_same_moment_reads_differently_on_two_clocks_and_sleeps_equally() {
    simulate(9, |sim| async move {
        let (one, two) = (sim.process(sim.host("a")), sim.process(sim.host("b")));
        assert_ne!(one.now(), two.now());
        assert_ne!(one.unix_time(), two.unix_time());
        let before = sim.now();
        one.sleep(Duration::from_secs(5)).await;
        let passed = sim.now().since(before);
        assert!((5_000..5_010).contains(&passed.as_millis()), "{passed:?}");
        assert_eq!(one.compute(|| 6 * 7).await, 42);
    });
}
