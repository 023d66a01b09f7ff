//! A shard in the simulated world: the real cache, volume, sync and registry; simulated disks,
//! store, clocks and crashes.

#[path = "driver/node.rs"]
mod node;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{Cache, CacheConfig};
use bytes::Bytes;
use glidefs::control::{
    AcceptLossDocument, ControlError, ControlErrorKind, DeleteQuery, ExportDocument, ForkDocument,
    ForkWait, GcDocument, MakeForkDocument, MetersDocument, OperationDocument, OperationState,
    PrepareDocument, PromoteDocument, PruneQuery, PutDocument, Request, RestoreDocument,
    SalvageDocument, SalvageKind, SalvageRanges, SnapshotDocument, TakeSnapshotDocument,
};
use glidefs::device::{Access, BlockDevice, ConnectError, Exports, Fua, IoError, Run, RunKind};
use glidefs::export::clients::Sharing;
use glidefs::meter::store::StoreRequests;
use glidefs::shard::{Drain, ShardConfig};
use glidefs::volume::Tidy;
use world::sim::{Corruption, Crash, DiskFaults, HostId, Odds, Sim, SimConfig, StoreFaults};
use world::{Peer, World};

use node::{Device, Node, PAGE, VM, simulate};

const VOLUME_BYTES: u64 = 64 << 20;

fn config(password: Option<&str>) -> ShardConfig {
    node::config("node", password, VOLUME_BYTES)
}

async fn start_with(sim: &Sim, host: HostId, config: ShardConfig) -> Node {
    let node = Node::open(sim, host, config).await;
    node.expect("the shard opens")
}

async fn start(sim: &Sim, host: &str) -> Node {
    start_with(sim, sim.host(host), config(None)).await
}

impl Node {
    async fn connect(&self, name: &str) -> Result<Device, ConnectError> {
        self.connect_as(name, &VM).await
    }

    async fn drain(&self, name: &str) -> ExportDocument {
        self.ask(name, Request::Drain).await.expect("drained")
    }

    async fn put(&self, name: &str, size_gb: f64) -> Result<ExportDocument, ControlError> {
        let wanted = PutDocument { size_gb };
        self.ask(name, |name, reply| Request::Put(name, wanted, reply))
            .await
    }

    async fn get(&self, name: &str) -> ExportDocument {
        self.ask(name, Request::Get).await.expect("got")
    }

    async fn force(&self, name: &str) -> ExportDocument {
        let how = PromoteDocument {
            force: true,
            expected_epoch: Some(self.get(name).await.epoch),
            ..PromoteDocument::default()
        };
        let promoted = self.ask(name, |name, reply| Request::Promote(name, how, reply));
        promoted.await.expect("promoted")
    }

    async fn try_take(
        &self,
        name: &str,
        wanted: TakeSnapshotDocument,
    ) -> Result<SnapshotDocument, ControlError> {
        self.ask(name, |name, reply| {
            Request::TakeSnapshot(name, wanted, reply)
        })
        .await
    }

    async fn snapshot(&self, name: &str, snapshot: &str) -> SnapshotDocument {
        let wanted = TakeSnapshotDocument {
            name: Some(snapshot.to_owned()),
            request_id: None,
        };
        self.try_take(name, wanted).await.expect("taken")
    }

    async fn try_fork(
        &self,
        name: &str,
        wanted: MakeForkDocument,
    ) -> Result<ForkDocument, ControlError> {
        self.ask(name, |name, reply| Request::Fork(name, wanted, reply))
            .await
    }

    /// One that is in the store.
    async fn fork(&self, name: &str, fork: &str) -> ForkDocument {
        let wanted = MakeForkDocument {
            name: fork.to_owned(),
            wait: Some(ForkWait::Published),
            ..MakeForkDocument::default()
        };
        self.try_fork(name, wanted).await.expect("forked")
    }

    /// One that is here.
    async fn fork_live(&self, name: &str, fork: &str) -> ForkDocument {
        let wanted = MakeForkDocument {
            name: fork.to_owned(),
            wait: Some(ForkWait::Local),
            ..MakeForkDocument::default()
        };
        self.try_fork(name, wanted).await.expect("forked")
    }

    async fn restore(
        &self,
        name: &str,
        wanted: RestoreDocument,
    ) -> Result<ExportDocument, ControlError> {
        self.ask(name, |name, reply| Request::Restore(name, wanted, reply))
            .await
    }

    async fn prune(&self, name: &str, how: PruneQuery) -> Vec<String> {
        let gone = self.ask(name, |name, reply| {
            Request::PruneSnapshots(name, how, reply)
        });
        let gone = gone.await.expect("pruned");
        gone.into_iter().map(|it| it.name).collect()
    }

    async fn salvage(&self) -> Vec<SalvageDocument> {
        self.control.ask(Request::Salvage).await.expect("listed")
    }

    async fn salvage_ranges(&self, id: &str, from: u64) -> SalvageRanges {
        let shown = self.ask(id, |id, reply| Request::SalvageRanges(id, from, reply));
        shown.await.expect("shown")
    }

    async fn salvage_data(&self, id: &str, at: u64, len: u64) -> Result<Bytes, ControlError> {
        self.ask(id, |id, reply| Request::SalvageData(id, at, len, reply))
            .await
    }

    async fn snapshots(&self, name: &str) -> Vec<String> {
        let listed = self.ask(name, Request::Snapshots).await.expect("listed");
        listed.into_iter().map(|it| it.name).collect()
    }

    async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<(), ControlErrorKind> {
        let snapshot = snapshot.to_owned();
        let gone = self.ask(name, |name, reply| {
            Request::DeleteSnapshot(name, snapshot, reply)
        });
        gone.await.map(drop).map_err(|error| error.kind)
    }
}

fn page(stamp: u8) -> Bytes {
    Bytes::from(vec![stamp; 4096])
}

async fn write(device: &Device, page_no: u64, stamp: u8) {
    let written = device.write(page_no * PAGE, page(stamp), Fua::No).await;
    written.expect("written");
}

async fn stamp(device: &Device, page_no: u64) -> u8 {
    let bytes = device.read(page_no * PAGE, PAGE).await.expect("read");
    assert!(
        bytes.iter().all(|b| *b == bytes[0]),
        "page {page_no} is torn"
    );
    bytes[0]
}

/// Waits until a fork is in the store.
async fn published(node: &Node, name: &str) {
    for _ in 0..600 {
        if node.get(name).await.published {
            return;
        }
        node.sim.sleep(Duration::from_millis(500)).await;
    }
    panic!("{name} is never published");
}

async fn expect(device: &Device, stamps: &[u8]) {
    for (n, wanted) in (0..).zip(stamps) {
        assert_eq!(stamp(device, n).await, *wanted, "page {n}");
    }
}

fn at(page_no: u64) -> usize {
    usize::try_from(page_no).expect("small")
}

#[test]
fn what_is_written_reads_back_at_any_offset_and_wakes_elsewhere_after_a_drain() {
    simulate(1, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(device.size_bytes(), VOLUME_BYTES);
        for n in 0..100 {
            write(&device, n, u8::try_from(n).expect("small") + 1).await;
        }
        // Sectors across page lines, on data and on nothing.
        let sectors = Bytes::from(vec![0xee; 8192]);
        for at in [512, 1_000 * PAGE + 3_584] {
            let written = device.write(at, sectors.clone(), Fua::Yes).await;
            written.expect("written");
        }
        device
            .zero(50 * PAGE + 512, 4 * PAGE, Fua::No)
            .await
            .expect("zeroed");
        let before = device.read(0, 2_000 * PAGE).await.expect("read");
        assert_eq!(before[511], 1);
        assert_eq!(before[512], 0xee);
        let drained = a.drain("vm").await;
        assert_eq!(
            (drained.dirty_bytes, drained.role.as_str()),
            (0, "read-write")
        );

        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await.expect("opened");
        assert_eq!(reader.access(), Access::ReadOnly);
        assert_eq!(reader.read(0, 2_000 * PAGE).await.expect("read"), before);
        assert_eq!(
            reader.write(0, page(9), Fua::No).await,
            Err(IoError::ReadOnly)
        );
        assert_eq!(reader.flush().await, Ok(()));
        assert_eq!(b.force("vm").await.role, "read-write");
        assert_eq!(
            reader.write(0, page(9), Fua::No).await,
            Err(IoError::ReadOnly)
        );
        let writer = b.connect("vm").await.expect("promoted");
        assert_eq!(writer.access(), Access::ReadWrite);
        assert_eq!(writer.read(0, 2_000 * PAGE).await.expect("read"), before);
    });
}

#[test]
fn a_snapshot_stays_what_it_was_on_every_node_and_through_a_kill() {
    simulate(51, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        for n in 0..50 {
            write(&device, n, 1).await;
        }
        let first = a.snapshot("vm", "first").await;
        assert_eq!(first.cut_seq, 50);
        for n in 0..25 {
            write(&device, n, 2).await;
        }
        // Nothing is dirty here: it costs the list alone.
        a.drain("vm").await;
        a.snapshot("vm", "second").await;
        write(&device, 0, 3).await;
        a.kill();

        let a = start_with(&sim, host, config(None)).await;
        let b = start(&sim, "b").await;
        let device = a.connect("vm").await.expect("resumed");
        for node in [&a, &b] {
            assert_eq!(node.snapshots("vm").await, ["first", "second"]);
            let first = node.connect("vm@first").await.expect("opened");
            assert_eq!(first.access(), Access::ReadOnly);
            let second = node.connect("vm@second").await.expect("opened");
            for n in [0, 24, 25, 49, 50] {
                let (was, then) = (u8::from(n < 50), u8::from(n < 50) + u8::from(n < 25));
                assert_eq!(stamp(&first, n).await, was);
                assert_eq!(stamp(&second, n).await, then);
            }
            let refused = first.write(0, page(9), Fua::No).await;
            assert_eq!(refused, Err(IoError::ReadOnly));
        }
        assert_eq!(stamp(&device, 0).await, 3);
        assert_eq!(a.delete_snapshot("vm", "first").await, Ok(()));
        assert_eq!(b.snapshots("vm").await, ["second"]);
        let gone = b.connect("vm@first").await.err();
        assert!(matches!(gone, Some(ConnectError::Unknown(_))), "{gone:?}");
        let gone = a.delete_snapshot("vm", "first").await;
        assert_eq!(gone, Err(ControlErrorKind::NotFound));
    });
}

#[test]
fn a_snapshot_is_refused_with_a_reason_or_taken_once() {
    simulate(52, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        let wanted = TakeSnapshotDocument {
            name: None,
            request_id: Some("r-1".to_owned()),
        };
        let first = a.try_take("vm", wanted.clone()).await.expect("taken");
        write(&device, 0, 2).await;
        // The answer may have been lost.
        let again = a.try_take("vm", wanted).await.expect("taken before");
        assert_eq!(first, again);
        let kind = async |node: &Node, name: &str, snapshot: &str| {
            let wanted = TakeSnapshotDocument {
                name: Some(snapshot.to_owned()),
                request_id: None,
            };
            let refused = node.try_take(name, wanted).await;
            refused.expect_err("refused").kind
        };
        assert_eq!(
            kind(&a, "vm", &first.name).await,
            ControlErrorKind::Conflict
        );
        assert_eq!(kind(&a, "vm", "No Name").await, ControlErrorKind::Invalid);
        assert_eq!(kind(&a, "other", "s").await, ControlErrorKind::NotFound);
        let b = start(&sim, "b").await;
        assert_eq!(kind(&b, "vm", "s").await, ControlErrorKind::Conflict);
        assert_eq!(a.snapshots("vm").await, [first.name]);
    });
}

/// A node that lost `vm` to another while it held three unpublished changes.
async fn fenced(sim: &Sim, host: HostId) -> Node {
    let a = start_with(sim, host, config(None)).await;
    let b = start(sim, "b").await;
    let device = a.connect("vm").await.expect("created");
    for n in 0..20 {
        write(&device, n, 1).await;
    }
    a.drain("vm").await;
    assert!(a.salvage().await.is_empty(), "all of it is published");
    sim.set_store_outage(Some(host), true);
    for n in 5..8 {
        write(&device, n, 2).await;
    }
    device
        .zero(10 * PAGE, 2 * PAGE, Fua::No)
        .await
        .expect("zeroed");
    let sectors = Bytes::from(vec![3; 1024]);
    device
        .write(15 * PAGE + 512, sectors, Fua::No)
        .await
        .expect("written");
    assert!(a.salvage().await.is_empty(), "it may still be published");
    b.force("vm").await;
    let writer = b.connect("vm").await.expect("promoted");
    write(&writer, 5, 9).await;
    b.drain("vm").await;
    sim.set_store_outage(Some(host), false);
    sim.sleep(Duration::from_secs(90)).await;
    assert_eq!(a.get("vm").await.role, "fenced");
    a
}

#[test]
fn what_a_fenced_log_holds_is_shown_byte_by_byte_also_after_a_kill() {
    simulate(57, |sim| async move {
        let host = sim.host("a");
        let a = fenced(&sim, host).await;
        let before = a.salvage().await;
        a.kill();

        let a = start_with(&sim, host, config(None)).await;
        // But for the bytes of the log that it takes, which a start counts anew.
        let found = a.salvage().await;
        let same = |it: &SalvageDocument| (it.id.clone(), it.epoch, it.first_seq, it.last_seq);
        assert!(found.iter().map(same).eq(before.iter().map(same)));
        let [one] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((one.export.as_str(), one.epoch), ("vm", 1));
        assert_eq!((one.first_seq, one.last_seq), (21, 25));
        let all = a.salvage_ranges(&one.id, 0).await;
        let ranges: Vec<_> = all
            .ranges
            .iter()
            .map(|it| (it.at, it.len, it.kind))
            .collect();
        let expected = [
            (5 * PAGE, 3 * PAGE, SalvageKind::Data),
            (10 * PAGE, 2 * PAGE, SalvageKind::Zero),
            (15 * PAGE + 512, 1024, SalvageKind::Data),
        ];
        assert_eq!(ranges, expected);
        assert_eq!(a.salvage_ranges(&one.id, 12 * PAGE).await.ranges.len(), 1);
        let bytes = a
            .salvage_data(&one.id, 4 * PAGE, 12 * PAGE)
            .await
            .expect("read");
        for (at, byte) in (4 * PAGE..).zip(&bytes) {
            let expected = match at {
                at if (5 * PAGE..8 * PAGE).contains(&at) => 2,
                at if (15 * PAGE + 512..15 * PAGE + 1536).contains(&at) => 3,
                _ => 0,
            };
            assert_eq!(*byte, expected, "byte {at}");
        }
        let outside = a.salvage_data(&one.id, VOLUME_BYTES - PAGE, 2 * PAGE).await;
        assert_eq!(
            outside.expect_err("too far").kind,
            ControlErrorKind::Invalid
        );
        let unknown = a.salvage_data(&"0".repeat(32), 0, 512).await;
        assert_eq!(
            unknown.expect_err("unknown").kind,
            ControlErrorKind::NotFound
        );
    });
}

#[test]
fn a_volume_is_restored_in_place_and_what_it_was_is_kept() {
    simulate(55, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.snapshot("vm", "s").await;
        for n in 0..10 {
            write(&device, n, 2).await;
        }
        let wanted = RestoreDocument {
            snapshot: "s".to_owned(),
            before: Some("until-now".to_owned()),
            request_id: Some("r-1".to_owned()),
        };
        let refused = a.restore("vm", wanted.clone()).await.expect_err("in use");
        assert_eq!(refused.kind, ControlErrorKind::Conflict);
        let epoch = a.get("vm").await.epoch;
        drop(device);
        let restored = a.restore("vm", wanted.clone()).await.expect("restored");
        assert_eq!(restored.epoch, epoch + 1);
        assert_eq!(a.snapshots("vm").await, ["s", "until-now"]);
        // The answer may have been lost.
        a.restore("vm", wanted).await.expect("restored before");
        assert_eq!(a.snapshots("vm").await, ["s", "until-now"]);

        // The log here holds what was written after the snapshot: nothing of it may be read.
        let device = a.connect("vm").await.expect("opened");
        assert_eq!((stamp(&device, 0).await, stamp(&device, 1).await), (1, 0));
        write(&device, 1, 3).await;
        a.drain("vm").await;
        a.kill();
        let a = start_with(&sim, host, config(None)).await;
        let b = start(&sim, "b").await;
        let device = a.connect("vm").await.expect("resumed");
        assert_eq!((stamp(&device, 0).await, stamp(&device, 1).await), (1, 3));
        let kept = b.connect("vm@until-now").await.expect("opened");
        assert_eq!((stamp(&kept, 0).await, stamp(&kept, 9).await), (2, 2));
        let reader = b.connect("vm").await.expect("opened");
        assert_eq!((stamp(&reader, 0).await, stamp(&reader, 1).await), (1, 3));
    });
}

#[test]
fn snapshots_that_are_too_many_or_too_old_go_together() {
    simulate(56, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        for n in 0..6 {
            write(&device, 0, n + 1).await;
            a.snapshot("vm", &format!("s-{n}")).await;
            sim.sleep(Duration::from_secs(3600)).await;
        }
        let how = PruneQuery {
            keep: Some(2),
            older_than_s: Some(9000 + 3600),
        };
        assert_eq!(a.prune("vm", how).await, ["s-0", "s-1", "s-2"]);
        let how = PruneQuery {
            keep: Some(2),
            older_than_s: None,
        };
        assert_eq!(a.prune("vm", how).await, ["s-3"]);
        assert_eq!(a.prune("vm", how).await, [""; 0]);
        assert_eq!(a.snapshots("vm").await, ["s-4", "s-5"]);
        let name = "vm".to_owned();
        let request = |reply| Request::PruneSnapshots(name, PruneQuery::default(), reply);
        let refused = a.control.ask(request).await.expect_err("all of them?");
        assert_eq!(refused.kind, ControlErrorKind::Invalid);
    });
}

#[test]
fn a_live_fork_holds_all_that_was_answered_and_goes_its_own_way() {
    simulate(53, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        for n in 0..50 {
            write(&device, n, 1).await;
        }
        let made = a.fork("vm", "child").await;
        assert_eq!((made.cut_seq, made.published), (50, true));
        let child = a.connect("child").await.expect("opened");
        assert_eq!(child.access(), Access::ReadWrite);
        write(&child, 0, 2).await;
        write(&device, 1, 3).await;
        a.kill();

        let a = start_with(&sim, host, config(None)).await;
        let (device, child) = (a.connect("vm").await, a.connect("child").await);
        let (device, child) = (device.expect("resumed"), child.expect("resumed"));
        let seen = [
            stamp(&child, 0).await,
            stamp(&child, 1).await,
            stamp(&child, 49).await,
        ];
        assert_eq!(seen, [2, 1, 1]);
        assert_eq!((stamp(&device, 0).await, stamp(&device, 1).await), (1, 3));
        // Whoever does not own the parent forks what it has published.
        a.drain("vm").await;
        write(&device, 2, 4).await;
        let b = start(&sim, "b").await;
        b.fork("vm", "other").await;
        let other = b.connect("other").await.expect("opened");
        assert_eq!((stamp(&other, 1).await, stamp(&other, 2).await), (3, 1));
    });
}

#[test]
fn a_live_fork_needs_no_store_and_survives_a_kill_before_it_is_published() {
    simulate(55, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        for n in 0..50 {
            write(&device, n, 1).await;
        }
        a.drain("vm").await;
        for n in 25..60 {
            write(&device, n, 2).await;
        }
        sim.set_store_outage(None, true);
        let asked = sim.now();
        let made = a.fork_live("vm", "child").await;
        assert_eq!((made.cut_seq, made.published), (85, false));
        let took = sim.now() - asked;
        assert!(took < Duration::from_millis(200), "{took:?}");
        let mut was = [vec![1; 25], vec![2; 35]].concat();
        let child = a.connect("child").await.expect("opened");
        assert_eq!(child.access(), Access::ReadWrite);
        expect(&child, &was).await;
        write(&child, 0, 7).await;
        write(&child, 30, 8).await;
        child.flush().await.expect("durable");
        (was[0], was[30]) = (7, 8);
        for n in [26, 31, 70] {
            write(&device, n, 9).await;
        }
        expect(&child, &was).await;
        let document = a.get("child").await;
        assert!(!document.published);
        assert_eq!(document.parent.as_deref(), Some("vm"));
        a.kill();

        // The store is down still.
        let a = start_with(&sim, host, config(None)).await;
        let child = a.connect("child").await.expect("resumed");
        let device = a.connect("vm").await.expect("resumed");
        expect(&child, &was).await;
        assert_eq!(stamp(&device, 31).await, 9);
        write(&child, 1, 6).await;
        was[1] = 6;
        sim.set_store_outage(None, false);
        published(&a, "child").await;
        expect(&child, &was).await;
        a.drain("child").await;
        write(&device, 2, 9).await;
        a.drain("vm").await;
        assert_eq!(a.snapshots("vm").await, [""; 0], "it went by itself");
        let b = start(&sim, "b").await;
        let there = b.connect("child").await.expect("opened");
        expect(&there, &was).await;
        let there = b.connect("vm").await.expect("opened");
        for (n, wanted) in [(0, 1), (2, 9), (26, 9), (30, 2), (31, 9), (70, 9)] {
            assert_eq!(stamp(&there, n).await, wanted, "page {n} of the parent");
        }
    });
}

/// Two forks of one parent that writes on, with the store up or down, and kills and power cuts in between.
#[test]
fn a_live_fork_is_exact_whatever_dies_at_any_step() {
    for seed in 0..40 {
        simulate(seed, |sim| async move {
            let host = sim.host("a");
            let mut a = start_with(&sim, host, config(None)).await;
            let device = a.connect("vm").await.expect("created");
            let mut vm = vec![0_u8; 40];
            let mut forks: Vec<(String, Vec<u8>)> = Vec::new();
            for n in 0..40 {
                write(&device, n, 1).await;
                vm[at(n)] = 1;
            }
            drop(device);
            for round in 0..5_u8 {
                let device = a.connect("vm").await.expect("resumed");
                let down = sim.chance(|chance| chance.below(2)) == 0;
                sim.set_store_outage(None, down);
                for n in 0..20 {
                    let n = (n * 7 + u64::from(round)) % 40;
                    write(&device, n, 10 + round).await;
                    vm[at(n)] = 10 + round;
                }
                if round < 2 {
                    let name = format!("child-{round}");
                    a.fork_live("vm", &name).await;
                    forks.push((name, vm.clone()));
                }
                for n in 0..5 {
                    write(&device, n, 20 + round).await;
                    vm[at(n)] = 20 + round;
                }
                for (name, was) in &mut forks {
                    let child = a.connect(name).await.expect("opened");
                    for n in 3..6 {
                        write(&child, n, 30 + round).await;
                        was[at(n)] = 30 + round;
                    }
                    child.flush().await.expect("durable");
                }
                device.flush().await.expect("durable");
                let pause = sim.chance(|chance| chance.between(0, 4_000));
                sim.sleep(Duration::from_millis(pause)).await;
                drop(device);
                match sim.chance(|chance| chance.below(3)) {
                    0 => a.kill(),
                    1 => {
                        drop(a);
                        sim.crash(host, Crash::Power);
                    }
                    _ => continue_with(a, &mut forks).await,
                }
                a = start_with(&sim, host, config(None)).await;
            }
            sim.set_store_outage(None, false);
            for (name, was) in &forks {
                published(&a, name).await;
                let child = a.connect(name).await.expect("opened");
                expect(&child, was).await;
                a.drain(name).await;
            }
            a.drain("vm").await;
            let b = start(&sim, "b").await;
            for (name, was) in forks.iter().chain([&("vm".to_owned(), vm)]) {
                let there = b.connect(name).await.expect("opened");
                expect(&there, was).await;
            }
        });
    }
}

/// All of them read once more; then the node is killed.
async fn continue_with(node: Node, forks: &mut [(String, Vec<u8>)]) {
    node.sim.set_store_outage(None, false);
    for (name, was) in forks {
        let child = node.connect(name).await.expect("opened");
        expect(&child, was).await;
    }
    node.kill();
}

#[test]
fn a_live_fork_whose_parent_is_taken_ends_and_keeps_what_was_written_to_it() {
    simulate(57, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.drain("vm").await;
        sim.set_store_outage(Some(host), true);
        write(&device, 0, 2).await;
        a.fork_live("vm", "child").await;
        let child = a.connect("child").await.expect("opened");
        write(&child, 1, 3).await;
        assert_eq!(stamp(&child, 0).await, 2);
        let b = start(&sim, "b").await;
        b.force("vm").await;
        sim.set_store_outage(Some(host), false);
        sim.sleep(Duration::from_secs(120)).await;
        assert_eq!(a.get("vm").await.role, "fenced");
        assert_eq!(a.get("child").await.role, "fenced");
        let refused = child.write(0, page(4), Fua::No).await;
        assert_eq!(refused, Err(IoError::Shutdown));
        let salvage = a.salvage().await;
        assert!(salvage.iter().any(|it| it.export == "child"), "{salvage:?}");
        drop((device, child));
        a.kill();
        let a = start_with(&sim, host, config(None)).await;
        sim.sleep(Duration::from_secs(120)).await;
        let gone = a.connect("child").await.err();
        assert!(gone.is_some(), "it is not invented");
        let salvage = a.salvage().await;
        assert!(salvage.iter().any(|it| it.export == "child"), "{salvage:?}");
    });
}

#[test]
fn a_live_fork_whose_name_is_taken_in_the_store_ends() {
    simulate(58, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.drain("vm").await;
        sim.set_store_outage(Some(host), true);
        a.fork_live("vm", "child").await;
        let b = start(&sim, "b").await;
        let other = b.connect("child").await.expect("created");
        write(&other, 0, 5).await;
        sim.set_store_outage(Some(host), false);
        sim.sleep(Duration::from_secs(120)).await;
        // Its parent goes on, and holds nothing for it any more.
        write(&device, 0, 2).await;
        a.drain("vm").await;
        assert_eq!(a.snapshots("vm").await, [""; 0]);
        b.drain("child").await;
        let seen = a.connect("child").await.expect("the other one");
        assert_eq!(seen.access(), Access::ReadOnly);
        assert_eq!(stamp(&seen, 0).await, 5);
    });
}

impl Node {
    async fn try_delete(
        &self,
        name: &str,
        accept_loss: bool,
    ) -> Result<ExportDocument, ControlError> {
        let how = DeleteQuery {
            accept_loss,
            ..DeleteQuery::default()
        };
        let name = name.to_owned();
        let request = |reply| Request::Delete(name, how, reply);
        self.control.ask(request).await
    }

    async fn try_accept_loss(
        &self,
        name: &str,
        kept_seq: u64,
    ) -> Result<ExportDocument, ControlError> {
        let (name, wanted) = (name.to_owned(), AcceptLossDocument { kept_seq });
        let request = |reply| Request::AcceptLoss(name, wanted, reply);
        self.control.ask(request).await
    }

    /// Where writes to it are missing.
    async fn accept_whatever(&self, name: &str) {
        if let Some(damage) = self.get(name).await.damage {
            let accepted = self.try_accept_loss(name, damage.kept_seq).await;
            accepted.expect("accepted");
        }
    }

    async fn has_salvage(&self, name: &str) -> bool {
        self.salvage().await.iter().any(|it| it.export == name)
    }
}

/// Who closed a connection a moment ago may still be counted.
async fn seen_closed(sim: &Sim) {
    sim.sleep(Duration::from_secs(1)).await;
}

/// A node whose log stopped at a failed fsync while a fork of `vm` was on its way. The cut is write 21; behind it page n
/// of the fork was written by write 22 + n, not flushed. None where the disk has them all.
async fn stopped_with_a_fork(sim: &Sim) -> Option<Node> {
    let a = start(sim, "a").await;
    let host = a.world.host();
    let device = a.connect("vm").await.expect("created");
    for n in 0..20 {
        write(&device, n, 1).await;
    }
    a.drain("vm").await;
    write(&device, 0, 2).await;
    sim.set_store_outage(Some(host), true);
    let made = a.fork_live("vm", "child").await;
    assert_eq!(made.cut_seq, 21);
    let child = a.connect("child").await.expect("opened");
    for n in 0..20 {
        write(&child, n, 3).await;
    }
    let faults = DiskFaults {
        persist_error: Odds::one_in(1),
        ..DiskFaults::default()
    };
    sim.set_disk_faults(host, faults);
    assert_eq!(child.flush().await, Err(IoError::Io));
    sim.set_disk_faults(host, DiskFaults::default());
    seen_closed(sim).await;
    drop((device, child));
    a.kill();
    sim.set_store_outage(Some(host), false);
    let a = start(sim, "a").await;
    let is_damaged = a.get("child").await.damage.is_some();
    is_damaged.then_some(a)
}

#[test]
fn the_loss_of_a_live_fork_is_accepted_by_number_and_what_is_kept_is_published() {
    let mut accepted = 0;
    for seed in 0..20 {
        accepted += simulate(seed, |sim| async move {
            let Some(a) = stopped_with_a_fork(&sim).await else {
                return 0;
            };
            let damage = a.get("child").await.damage.expect("damaged");
            let refused = a.connect("child").await.expect_err("damaged");
            assert!(refused.to_string().contains("accept-loss"), "{refused}");
            let other = a.try_accept_loss("child", damage.kept_seq + 1).await;
            let other = other.expect_err("that is not what is left");
            assert_eq!(other.kind, ControlErrorKind::Conflict, "{other}");
            let open = a.try_accept_loss("child", damage.kept_seq).await;
            let open = open.expect("accepted");
            assert_eq!((&*open.role, open.published), ("read-write", false));
            a.accept_whatever("vm").await;
            published(&a, "child").await;
            let child = a.connect("child").await.expect("opened");
            for n in 0..20 {
                let expected = match n {
                    n if 22 + n <= damage.kept_seq => 3,
                    0 => 2,
                    _ => 1,
                };
                assert_eq!(stamp(&child, n).await, expected, "page {n}");
            }
            assert_eq!(a.drain("child").await.published_seq, damage.kept_seq);
            let gone = a.try_delete("vm", false).await.expect("given up");
            assert_eq!(gone.role, "closed");
            1
        });
    }
    assert!(accepted > 5, "{accepted} losses");
}

#[test]
fn a_damaged_live_fork_is_dropped_and_its_parent_goes_on_and_is_given_up() {
    let mut dropped = 0;
    for seed in 0..20 {
        dropped += simulate(seed, |sim| async move {
            let Some(a) = stopped_with_a_fork(&sim).await else {
                return 0;
            };
            a.accept_whatever("vm").await;
            let device = a.connect("vm").await.expect("opened");
            assert_eq!(stamp(&device, 0).await, 2);
            drop(device);
            seen_closed(&sim).await;
            let held = a.try_delete("vm", false).await;
            let held = held.expect_err("its fork would wait for ever");
            assert_eq!(held.kind, ControlErrorKind::Conflict, "{held}");
            assert!(held.message.contains("its fork `child`"), "{held}");
            let kept = a.try_delete("child", false).await;
            let kept = kept.expect_err("it would be lost");
            assert_eq!(kept.kind, ControlErrorKind::Conflict, "{kept}");
            a.try_delete("child", true).await.expect("dropped");
            let gone = a.try_delete("vm", false).await.expect("given up");
            assert_eq!(gone.role, "closed");
            let b = start(&sim, "b").await;
            let there = b.connect("vm").await.expect("opened");
            assert_eq!(there.access(), Access::ReadWrite);
            assert_eq!(stamp(&there, 0).await, 2);
            assert_eq!(b.snapshots("vm").await, [""; 0], "it went with the fork");
            1
        });
    }
    assert!(dropped > 5, "{dropped} losses");
}

/// Nobody opens the parent before somebody has accepted its loss.
#[test]
fn a_server_that_ends_does_not_wait_for_a_live_fork_of_a_damaged_parent() {
    let mut ended = 0;
    for seed in 0..20 {
        ended += simulate(seed, |sim| async move {
            let Some(a) = stopped_with_a_fork(&sim).await else {
                return 0;
            };
            a.accept_whatever("child").await;
            if a.get("vm").await.damage.is_none() {
                return 0;
            }
            let name = "child".to_owned();
            let drained = a.control.ask(|reply| Request::Drain(name, reply)).await;
            let why = drained.expect_err("its parent is damaged").message;
            assert!(why.contains("its parent `vm`"), "{why}");
            let owned = a.shard.shutdown(Drain::Everything).await;
            assert!(owned.contains(&"child".to_owned()), "{owned:?}");
            a.kill();
            let a = start(&sim, "a").await;
            a.accept_whatever("vm").await;
            published(&a, "child").await;
            1
        });
    }
    assert!(ended > 5, "{ended} parents");
}

#[test]
fn a_live_fork_whose_name_is_still_needed_ends_and_nothing_waits_for_it() {
    simulate(61, |sim| async move {
        let a = start(&sim, "a").await;
        let old = a.connect("child").await.expect("created");
        write(&old, 0, 5).await;
        a.fork("child", "heir").await;
        drop(old);
        seen_closed(&sim).await;
        let purged = purge(&a, "child", None).await.expect("purged");
        assert!(purged.exports[0].note.is_some(), "its fork needs it");
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        assert!(!a.fork_live("vm", "child").await.published);
        let child = a.connect("child").await.expect("opened");
        write(&child, 1, 2).await;
        sim.sleep(Duration::from_secs(120)).await;
        assert_eq!(a.get("child").await.role, "fenced");
        assert!(a.has_salvage("child").await);
        drop((device, child));
        seen_closed(&sim).await;
        let gone = a.try_delete("vm", false).await.expect("given up");
        assert_eq!(gone.role, "closed");
        a.shard.shutdown(Drain::Everything).await;
    });
}

#[test]
fn a_live_fork_that_is_dropped_ends_undrained_and_its_parent_waits_for_it_no_more() {
    simulate(62, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.drain("vm").await;
        sim.set_store_outage(Some(host), true);
        a.fork_live("vm", "child").await;
        let child = a.connect("child").await.expect("opened");
        write(&child, 1, 3).await;
        drop(child);
        seen_closed(&sim).await;
        let kept = a.try_delete("child", false).await;
        let kept = kept.expect_err("it cannot be drained");
        assert_eq!(kept.kind, ControlErrorKind::Unavailable, "{kept}");
        assert_eq!(a.get("child").await.role, "read-write");
        a.try_delete("child", true).await.expect("dropped");
        assert!(!a.has_salvage("child").await, "nobody wants it");
        sim.set_store_outage(Some(host), false);
        sim.sleep(Duration::from_secs(60)).await;
        write(&device, 0, 2).await;
        a.drain("vm").await;
        assert_eq!(a.snapshots("vm").await, [""; 0]);
        assert_eq!(sim.object("nbd/child/root"), None);
        drop(device);
        seen_closed(&sim).await;
        let gone = a.try_delete("vm", false).await.expect("given up");
        assert_eq!(gone.role, "closed");
    });
}

/// A node whose `vm` has just ended, as its root is not there, with a fork on its way; and the store as it was before.
async fn without_a_root(sim: &Sim) -> (Node, BTreeMap<String, Bytes>) {
    let a = start(sim, "a").await;
    let device = a.connect("vm").await.expect("created");
    for n in 0..10 {
        write(&device, n, 1).await;
    }
    a.drain("vm").await;
    write(&device, 0, 2).await;
    sim.set_store_outage(None, true);
    a.fork_live("vm", "child").await;
    let child = a.connect("child").await.expect("opened");
    write(&child, 1, 3).await;
    write(&device, 2, 4).await;
    let saved = sim.objects();
    assert!(sim.delete_object("nbd/vm/root"));
    sim.set_store_outage(None, false);
    while a.get("vm").await.role != "vanished" {
        sim.sleep(Duration::from_millis(100)).await;
    }
    (a, saved)
}

/// Nobody connects to the parent: it is opened again for its fork, and what was read of it before is not gone on with.
#[test]
fn a_live_fork_outlives_a_moment_without_its_parents_root() {
    simulate(63, |sim| async move {
        let (a, saved) = without_a_root(&sim).await;
        sim.restore_objects(&saved);
        published(&a, "child").await;
        let child = a.connect("child").await.expect("opened");
        let was = [2, 3, 1, 1, 1, 1, 1, 1, 1, 1];
        expect(&child, &was).await;
        let device = a.connect("vm").await.expect("it is back");
        assert_eq!(stamp(&device, 2).await, 4);
        write(&device, 3, 5).await;
        a.drain("vm").await;
        assert_eq!(a.snapshots("vm").await, [""; 0]);
        a.drain("child").await;
        let b = start(&sim, "b").await;
        let there = b.connect("child").await.expect("published");
        expect(&there, &was).await;
    });
}

#[test]
fn a_live_fork_whose_parents_root_stays_gone_ends_at_last() {
    simulate(64, |sim| async move {
        let (a, _saved) = without_a_root(&sim).await;
        let child = a.connect("child").await.expect("it is here");
        sim.sleep(Duration::from_secs(10)).await;
        assert_eq!(a.get("child").await.role, "read-write", "perhaps a moment");
        sim.sleep(Duration::from_secs(600)).await;
        assert_eq!(a.get("child").await.role, "fenced");
        assert!(a.has_salvage("child").await);
        drop(child);
        a.shard.shutdown(Drain::Everything).await;
    });
}

/// Who asked does not wait for the answer, and asks again in a way that needs no store: it is the same fork.
#[test]
fn a_fork_that_went_to_the_store_does_not_begin_in_the_log_when_it_is_asked_for_again() {
    simulate(65, |sim| async move {
        let a = Rc::new(start(&sim, "a").await);
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.drain("vm").await;
        let wanted = |wait| MakeForkDocument {
            name: "child".to_owned(),
            request_id: Some("r-1".to_owned()),
            wait: Some(wait),
            ..MakeForkDocument::default()
        };
        let (first, asked) = (Rc::clone(&a), wanted(ForkWait::Published));
        sim.spawn(async move {
            drop(first.try_fork("vm", asked).await);
        });
        while !sim.keys().iter().any(|key| key.starts_with("nbd/vm/pins/")) {
            sim.sleep(Duration::from_millis(1)).await;
        }
        let again = a.try_fork("vm", wanted(ForkWait::Local)).await;
        assert!(again.expect("the same").published);
        sim.sleep(Duration::from_secs(60)).await;
        let later = a.try_fork("vm", wanted(ForkWait::Local)).await;
        assert!(later.expect("the same").published);
        let child = a.connect("child").await.expect("opened");
        write(&child, 0, 2).await;
        assert_eq!(a.drain("child").await.role, "read-write");
        // One that began in the log, was published and given up here, is found in the store as well.
        let wanted = MakeForkDocument {
            name: "other".to_owned(),
            ..wanted(ForkWait::Local)
        };
        let made = a.try_fork("vm", wanted.clone()).await.expect("forked");
        assert!(!made.published);
        published(&a, "other").await;
        a.try_delete("other", false).await.expect("given up");
        let again = a.try_fork("vm", wanted).await.expect("the same");
        assert!(again.published);
    });
}

/// The parent cannot be published, as the store has lost what it is to complete a page with. What a fork reads of it steadily
/// must not keep the log from being reused by others.
#[test]
fn a_live_fork_that_reads_on_holds_up_no_writer_of_another_export() {
    simulate(66, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 50, 1).await;
        drop(device);
        seen_closed(&sim).await;
        a.try_delete("vm", false).await.expect("given up");
        let mut small = config(None);
        small.cache = CacheConfig {
            chunk_bytes: Some(64 << 10),
            ..CacheConfig::new("/cache", 8 << 20)
        };
        let b = start_with(&sim, sim.host("b"), small).await;
        let device = b.connect("vm").await.expect("taken");
        let segments = sim.keys().into_iter();
        for key in segments.filter(|key| key.starts_with("nbd/vm/seg/")) {
            assert!(sim.delete_object(&key));
        }
        let sector = Bytes::from(vec![2; 512]);
        let written = device.write(50 * PAGE, sector, Fua::No).await;
        written.expect("written");
        for n in 0..20 {
            write(&device, n, 2).await;
        }
        b.fork_live("vm", "child").await;
        let child = b.connect("child").await.expect("opened");
        let (done, reader) = (Rc::new(Cell::new(false)), sim.clone());
        let ends = Rc::clone(&done);
        let reading = async move {
            while !ends.get() {
                assert_eq!(stamp(&child, 3).await, 2);
                reader.sleep(Duration::from_millis(5)).await;
            }
        };
        sim.spawn(reading);
        let other = b.connect("other").await.expect("created");
        let mut longest = Duration::ZERO;
        for round in 0..18 {
            for n in 0..400 {
                let began = sim.now();
                write(&other, n, round).await;
                longest = longest.max(sim.now() - began);
            }
            b.drain("other").await;
        }
        done.set(true);
        assert!(longest < Duration::from_secs(5), "{longest:?}");
        assert!(!b.get("child").await.published, "its parent cannot");
    });
}

#[test]
fn what_a_fork_cannot_do_before_it_is_published_is_refused_with_a_reason() {
    simulate(59, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        a.drain("vm").await;
        sim.set_store_outage(None, true);
        let wanted = MakeForkDocument {
            name: "child".to_owned(),
            request_id: Some("r-1".to_owned()),
            wait: Some(ForkWait::Local),
            ..MakeForkDocument::default()
        };
        let made = a.try_fork("vm", wanted.clone()).await.expect("forked");
        let again = a.try_fork("vm", wanted.clone()).await.expect("the same");
        assert_eq!(made, again);
        let more = MakeForkDocument {
            name: "grandchild".to_owned(),
            ..MakeForkDocument::default()
        };
        let refused = a.try_fork("child", more).await.expect_err("too early");
        assert_eq!(refused.kind, ControlErrorKind::Unavailable);
        let snapshot = |name: &str| TakeSnapshotDocument {
            name: Some(name.to_owned()),
            request_id: None,
        };
        let refused = a.try_take("child", snapshot("s")).await;
        let refused = refused.expect_err("too early");
        assert_eq!(refused.kind, ControlErrorKind::Unavailable);
        let refused = a.try_take("vm", snapshot("live-fork.mine")).await;
        let refused = refused.expect_err("kept");
        assert_eq!(refused.kind, ControlErrorKind::Invalid);
        sim.set_store_outage(None, false);
        let wanted = MakeForkDocument {
            wait: Some(ForkWait::Published),
            ..wanted
        };
        // What failed before may still be told of.
        let mut waited = a.try_fork("vm", wanted.clone()).await;
        while waited.is_err() {
            sim.sleep(Duration::from_secs(5)).await;
            waited = a.try_fork("vm", wanted.clone()).await;
        }
        assert!(waited.expect("made").published);
        assert!(a.get("child").await.published);
        a.fork_live("child", "grandchild").await;
        assert_eq!(a.shard.shutdown(Drain::Everything).await, ["vm"]);
        let b = start(&sim, "b").await;
        let grandchild = b.connect("grandchild").await.expect("published");
        assert_eq!(grandchild.access(), Access::ReadWrite);
        assert_eq!(stamp(&grandchild, 0).await, 1);
    });
}

#[test]
fn a_fork_is_refused_with_a_reason_or_made_once() {
    simulate(54, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 0, 1).await;
        let wanted = MakeForkDocument {
            name: "child".to_owned(),
            request_id: Some("r-1".to_owned()),
            ..MakeForkDocument::default()
        };
        a.try_fork("vm", wanted.clone()).await.expect("forked");
        let child = a.connect("child").await.expect("opened");
        write(&child, 0, 2).await;
        // The answer may have been lost.
        a.try_fork("vm", wanted).await.expect("forked before");
        assert_eq!(stamp(&child, 0).await, 2);
        for (parent, snapshot, name, kind) in [
            ("vm", None, "child", ControlErrorKind::Conflict),
            ("vm", None, "vm", ControlErrorKind::Conflict),
            ("vm", None, "No", ControlErrorKind::Invalid),
            ("vm", Some("s"), "x", ControlErrorKind::Conflict),
            ("none", None, "x", ControlErrorKind::NotFound),
        ] {
            let wanted = MakeForkDocument {
                name: name.to_owned(),
                snapshot: snapshot.map(str::to_owned),
                ..MakeForkDocument::default()
            };
            let refused = a.try_fork(parent, wanted).await;
            assert_eq!(refused.expect_err(name).kind, kind, "{parent} {name}");
        }
    });
}

#[test]
fn an_idle_export_detaches_and_opens_read_write_anywhere() {
    simulate(2, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 3, 33).await;
        drop(device);
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(a.get("vm").await.role, "closed");
        let b = start(&sim, "b").await;
        let device = b.connect("vm").await.expect("opened");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 3).await, 33);
        write(&device, 3, 34).await;
        drop(device);
        sim.sleep(Duration::from_secs(60)).await;
        // Back where it was warm: what B published since must be seen.
        let device = a.connect("vm").await.expect("opened");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 3).await, 34);
    });
}

#[test]
fn a_client_that_returns_within_the_grace_time_finds_the_export_open() {
    simulate(3, |sim| async move {
        let a = start(&sim, "a").await;
        drop(a.connect("vm").await.expect("created"));
        let epoch = a.get("vm").await.epoch;
        sim.sleep(Duration::from_secs(20)).await;
        let device = a.connect("vm").await.expect("open still");
        sim.sleep(Duration::from_secs(600)).await;
        write(&device, 1, 1).await;
        assert_eq!(a.get("vm").await.epoch, epoch);
    });
}

#[test]
fn a_killed_process_resumes_its_epoch_and_lost_nothing_that_was_answered() {
    for seed in 0..20 {
        simulate(seed, |sim| async move {
            let mut node = start(&sim, "a").await;
            let mut model = [0_u8; 64];
            for round in 1..6_u8 {
                let device = node.connect("vm").await.expect("opened");
                for n in 0..64 {
                    assert_eq!(stamp(&device, n).await, model[at(n)], "page {n}");
                }
                for _ in 0..sim.chance(|c| c.between(1, 100)) {
                    let n = sim.chance(|c| c.below(64));
                    write(&device, n, round).await;
                    model[at(n)] = round;
                }
                sim.sleep(Duration::from_millis(sim.chance(|c| c.below(12_000))))
                    .await;
                assert_eq!(node.get("vm").await.epoch, 1);
                node.kill();
                node = start(&sim, "a").await;
            }
        });
    }
}

#[test]
fn a_restart_during_an_outage_serves_and_takes_writes() {
    simulate(5, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        write(&device, 1, 11).await;
        sim.set_store_outage(None, true);
        node.kill();
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("resumed unasked");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 1).await, 11);
        write(&device, 2, 22).await;
        assert_eq!(device.flush().await, Ok(()));
        // A name that nobody knows is not created while the store is silent.
        let unknown = node.connect("other").await.expect_err("not created");
        assert!(
            matches!(unknown, ConnectError::Unavailable(_)),
            "{unknown:?}"
        );
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(node.drain("vm").await.dirty_bytes, 0);
        assert_eq!(stamp(&device, 5).await, 0);
    });
}

#[test]
fn a_node_that_lost_its_volume_to_another_is_fenced_and_says_what_it_holds() {
    simulate(6, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 11).await;
        a.drain("vm").await;
        sim.set_store_outage(Some(sim.host("a")), true);
        write(&device, 1, 12).await;
        assert_eq!(b.force("vm").await.epoch, 2);
        let writer = b.connect("vm").await.expect("promoted");
        assert_eq!(stamp(&writer, 1).await, 11);
        write(&writer, 1, 13).await;
        b.drain("vm").await;
        sim.set_store_outage(Some(sim.host("a")), false);
        sim.sleep(Duration::from_secs(90)).await;
        let document = a.get("vm").await;
        assert_eq!(document.role, "fenced");
        assert!(document.dirty_bytes > 0);
        assert_eq!(
            device.write(0, page(1), Fua::No).await,
            Err(IoError::Shutdown)
        );
        assert_eq!(device.read(0, PAGE).await, Err(IoError::Shutdown));
        assert_eq!(device.flush().await, Err(IoError::Shutdown));
        let refused = a.connect("vm").await.expect_err("clients first");
        assert!(matches!(refused, ConnectError::Refused(_)), "{refused:?}");
        drop(device);
        // Not even a restart without the store brings the lost epoch back.
        sim.set_store_outage(Some(sim.host("a")), true);
        a.kill();
        let a = start(&sim, "a").await;
        let refused = a.connect("vm").await.expect_err("the epoch is over");
        assert!(
            matches!(refused, ConnectError::Unavailable(_)),
            "{refused:?}"
        );
        sim.set_store_outage(Some(sim.host("a")), false);
        let reader = a.connect("vm").await.expect("read-only");
        assert_eq!(reader.access(), Access::ReadOnly);
        assert_eq!(stamp(&reader, 1).await, 13);
        drop(reader);
        drop(writer);
        sim.sleep(Duration::from_secs(90)).await;
        // Detached now, but what A holds unpublished is not dropped in silence.
        let refused = a.connect("vm").await.expect_err("salvage");
        assert!(refused.to_string().contains("unpublished"), "{refused}");
        let delete = async |accept_loss| {
            let how = DeleteQuery {
                accept_loss,
                ..DeleteQuery::default()
            };
            let asked = a
                .control
                .ask(|reply| Request::Delete("vm".to_owned(), how, reply));
            asked.await
        };
        let refused = delete(false).await.expect_err("it would be lost");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert!(refused.export.expect("the numbers").dirty_bytes > 0);
        delete(true).await.expect("the loss is accepted");
        let device = a.connect("vm").await.expect("taken");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 1).await, 13);
    });
}

#[test]
fn a_lost_cache_wakes_at_the_published_cut() {
    simulate(7, |sim| async move {
        let host = sim.host("a");
        let node = start_with(&sim, host, config(Some("secret"))).await;
        let device = node.connect("vm").await.expect("created");
        for n in 0..200 {
            write(&device, n, 1).await;
        }
        sim.sleep(Duration::from_secs(20)).await;
        sim.crash(host, Crash::Power);
        sim.wipe_disk(host);
        let node = start_with(&sim, host, config(Some("secret"))).await;
        let reader = node.connect("vm").await.expect("read-only");
        assert_eq!(reader.access(), Access::ReadOnly);
        assert_eq!(stamp(&reader, 199).await, 1);
        node.force("vm").await;
        let device = node.connect("vm").await.expect("promoted");
        write(&device, 7, 2).await;
        assert_eq!(stamp(&device, 7).await, 2);
        assert_eq!(stamp(&device, 8).await, 1);
    });
}

#[test]
fn promote_without_force_is_refused_with_the_numbers() {
    simulate(8, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        for how in [
            PromoteDocument::default(),
            PromoteDocument {
                force: true,
                expected_epoch: Some(9),
                ..PromoteDocument::default()
            },
        ] {
            let asked = b
                .control
                .ask(|reply| Request::Promote("vm".to_owned(), how, reply));
            let refused = asked.await.expect_err("refused");
            assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
            let said = refused.to_string();
            for words in ["owned by node", "epoch 1", " s ago)", "not known here"] {
                assert!(said.contains(words), "{words}: {said}");
            }
            assert_eq!(refused.export.expect("the numbers").epoch, 1);
        }
        write(&device, 2, 2).await;
        assert_eq!(a.drain("vm").await.role, "read-write");
    });
}

/// Rule 24: a node that is new to a volume cannot know by itself that its root went back.
#[test]
fn a_root_older_than_the_promoter_has_seen_is_not_taken() {
    simulate(21, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let root = || sim.object("nbd/vm/root").expect("there is a root");
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        let old = root();
        write(&device, 1, 2).await;
        let seen = a.drain("vm").await;
        let new = root();
        a.kill();
        sim.corrupt("nbd/vm/root", &Corruption::Replace(old.clone()));
        let promote = async |epoch: u64, seq: u64| {
            let how = PromoteDocument {
                force: true,
                expected_epoch: Some(seen.epoch),
                min_epoch: Some(epoch),
                min_seq: Some(seq),
            };
            let asked = b
                .control
                .ask(|reply| Request::Promote("vm".to_owned(), how, reply));
            asked.await
        };
        for (epoch, seq) in [(0, seen.published_seq), (seen.epoch + 1, 0)] {
            let refused = promote(epoch, seq).await.expect_err("older");
            assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
            assert!(refused.message.contains("rolled back"), "{refused}");
            assert!(root() == old, "a refused root is not taken");
        }
        sim.corrupt("nbd/vm/root", &Corruption::Replace(new));
        let taken = promote(seen.epoch, seen.published_seq).await;
        assert_eq!(taken.expect("as new as was seen").role, "read-write");
        let device = b.connect("vm").await.expect("promoted");
        assert_eq!(stamp(&device, 1).await, 2);
        // Also where it is open already.
        let refused = promote(0, seen.published_seq + 1).await;
        let refused = refused.expect_err("newer than there is");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
    });
}

#[test]
fn the_age_of_what_is_unpublished_is_told_of_an_export_that_is_not_open_too() {
    simulate(20, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        sim.set_store_outage(Some(sim.host("a")), true);
        write(&device, 1, 2).await;
        sim.sleep(Duration::from_secs(20)).await;
        let open = a.get("vm").await.dirty_age_ms;
        assert!((20_000..25_000).contains(&open), "{open} ms");
        let b = start(&sim, "b").await;
        b.force("vm").await;
        sim.set_store_outage(Some(sim.host("a")), false);
        sim.sleep(Duration::from_secs(60)).await;
        drop(device);
        // Fenced and let go: what it holds is listed as closed.
        let listed = a.control.ask(Request::List).await.expect("listed");
        assert_eq!((listed.len(), listed[0].role.as_str()), (1, "closed"));
        assert!(listed[0].dirty_bytes > 0);
        let closed = listed[0].dirty_age_ms;
        assert!((80_000..90_000).contains(&closed), "{closed} ms");
    });
}

#[test]
fn one_client_at_a_time_whatever_its_number_of_connections() {
    simulate(9, |sim| async move {
        let a = start(&sim, "a").await;
        let (one, two) = (a.connect("vm").await, a.connect("vm").await);
        let other = Peer::Process { pid: 8, uid: 0 };
        let refused = a.connect_as("vm", &other).await.expect_err("refused");
        assert!(refused.to_string().contains("process 7"), "{refused}");
        drop((one, two));
        a.connect_as("vm", &other).await.expect("the first is gone");
    });
}

#[test]
fn a_shared_export_is_written_by_two_clients_at_a_time() {
    simulate(22, |sim| async move {
        let mut shared = config(None);
        shared.exports.sharing = Sharing::Shared;
        let node = start_with(&sim, sim.host("a"), shared).await;
        let other = Peer::Process { pid: 8, uid: 0 };
        let one = node.connect("vm").await.expect("created");
        let two = node.connect_as("vm", &other).await.expect("shared");
        for n in 0..20 {
            write(&one, 2 * n, 1).await;
            write(&two, 2 * n + 1, 2).await;
        }
        for n in 0..20 {
            assert_eq!(stamp(&two, 2 * n).await, 1);
            assert_eq!(stamp(&one, 2 * n + 1).await, 2);
        }
        // Neither leaves while the other is there.
        drop(one);
        sim.sleep(Duration::from_secs(120)).await;
        write(&two, 0, 3).await;
        assert_eq!(node.get("vm").await.clients, 1);
    });
}

/// A guest that is restarted during an outage, with writes of its former process still waiting. The
/// front door drops them after a while; nothing of them may land later.
#[test]
fn a_client_that_vanished_with_stalled_writes_makes_room_for_its_next_process() {
    simulate(23, |sim| async move {
        let mut small = config(None);
        small.cache.volume_dirty_bytes_max = 1 << 20;
        let node = start_with(&sim, sim.host("a"), small).await;
        let device = node.connect("vm").await.expect("created");
        sim.set_store_outage(None, true);
        let done = Rc::new(Cell::new(0_u64));
        let mut stalled = Vec::new();
        for page_no in 0..600 {
            let (device, done) = (Rc::clone(&device), Rc::clone(&done));
            stalled.push(Box::pin(async move {
                let written = device.write(page_no * PAGE, page(1), Fua::No).await;
                written.expect("slow, never failed");
                done.set(done.get() + 1);
            }));
        }
        let until = sim.now() + Duration::from_secs(60);
        let timer = sim.sleep_until(until);
        let mut all = Box::pin(futures_util::future::join_all(stalled));
        futures_util::future::select(&mut all, timer).await;
        let answered = done.get();
        assert!((100..600).contains(&answered), "{answered} answered");
        let next = Peer::Process { pid: 8, uid: 0 };
        let refused = node.connect_as("vm", &next).await.expect_err("in use");
        assert!(matches!(refused, ConnectError::Refused(_)), "{refused:?}");
        drop((all, device));
        let device = node.connect_as("vm", &next).await.expect("room");
        let mut before = Vec::new();
        for page_no in 0..600 {
            before.push(stamp(&device, page_no).await);
        }
        let there = before.iter().filter(|stamp| **stamp == 1).count();
        assert!(there >= at(answered), "{there} of {answered} are there");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(120)).await;
        for page_no in 0..600 {
            assert_eq!(stamp(&device, page_no).await, before[at(page_no)]);
        }
        // The turns of those that were dropped hold nobody up.
        write(&device, 599, 2).await;
        assert_eq!(stamp(&device, 599).await, 2);
    });
}

#[test]
fn a_vanished_root_is_an_error_and_never_a_new_volume() {
    simulate(10, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        node.drain("vm").await;
        assert!(sim.delete_object("nbd/vm/root"));
        write(&device, 1, 2).await;
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(device.write(0, page(1), Fua::No).await, Err(IoError::Io));
        drop(device);
        let refused = node.connect("vm").await.expect_err("vanished");
        assert!(
            matches!(refused, ConnectError::Unavailable(_)),
            "{refused:?}"
        );
        node.kill();
        let node = start(&sim, "a").await;
        let refused = node.connect("vm").await.expect_err("vanished");
        assert!(
            matches!(refused, ConnectError::Unavailable(_)),
            "{refused:?}"
        );
        // A fresh node finds the segments of a volume that lost its root, and does not cover them.
        let b = start(&sim, "b").await;
        let refused = b.connect("vm").await.expect_err("something is there");
        assert!(
            matches!(refused, ConnectError::Unavailable(_)),
            "{refused:?}"
        );
    });
}

/// A node that lost its volume to another while its store was out of reach, or was restored with the
/// wrong password, must not go on from its log as if it could not ask (promise 7).
#[test]
fn a_root_that_cannot_be_read_is_an_error_and_no_outage() {
    simulate(32, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        a.kill();
        let sound = sim.objects();
        assert!(sim.corrupt("nbd/vm/root", &Corruption::FlipBit { at: 40, bit: 0 }));
        let a = start(&sim, "a").await;
        let refused = a.connect("vm").await.expect_err("not readable");
        assert!(refused.to_string().contains("nbd/vm/root"), "{refused}");
        sim.restore_objects(&sound);
        let device = a.connect("vm").await.expect("readable again");
        assert_eq!(stamp(&device, 1).await, 1);
    });
}

/// The same for one that was opened while the store was out: it ends once the store answers.
#[test]
fn an_export_resumed_in_an_outage_ends_if_its_root_is_not_readable_afterwards() {
    simulate(33, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        a.kill();
        sim.set_store_outage(None, true);
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("the log holds the epoch");
        assert_eq!(stamp(&device, 1).await, 1);
        assert!(sim.corrupt("nbd/vm/root", &Corruption::FlipBit { at: 40, bit: 0 }));
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(300)).await;
        let late = device.write(0, page(9), Fua::No).await;
        assert_eq!(late, Err(IoError::Io));
    });
}

#[test]
fn another_volume_of_the_same_name_is_not_mixed_up_in_an_outage() {
    for seed in 0..8 {
        simulate(seed, |sim| async move {
            let a = start(&sim, "a").await;
            let device = a.connect("vm").await.expect("created");
            write(&device, 1, 1).await;
            a.drain("vm").await;
            a.kill();
            for key in sim.keys().iter().filter(|key| key.starts_with("nbd/")) {
                assert!(sim.delete_object(key));
            }
            let b = start(&sim, "b").await;
            let device = b.connect("vm").await.expect("created anew");
            write(&device, 1, 2).await;
            drop(device);
            let name = "vm".to_owned();
            let left = b
                .control
                .ask(|reply| Request::Delete(name, DeleteQuery::default(), reply))
                .await;
            left.expect("given up");
            let a = start(&sim, "a").await;
            let device = a.connect("vm").await.expect("taken");
            assert_eq!(stamp(&device, 1).await, 2);
            a.kill();
            sim.set_store_outage(None, true);
            let a = start(&sim, "a").await;
            let device = a.connect("vm").await.expect("the log holds the epoch");
            write(&device, 2, 3).await;
            sim.set_store_outage(None, false);
            a.drain("vm").await;
            assert_eq!((stamp(&device, 1).await, stamp(&device, 2).await), (2, 3));
        });
    }
}

/// Behind the door of the name a silent store is waited for, and who connects would wait with it.
#[test]
fn a_delete_under_a_client_is_refused_without_the_store() {
    simulate(7, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        sim.sleep(Duration::from_secs(20)).await;
        let before = sim.store_stats();
        let refused = a.try_delete("vm", false).await.expect_err("a client");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert_eq!(sim.store_stats(), before);
    });
}

/// The detach of an idle export meets a disk that fails: who connects then must not wait for a task
/// that has ended.
#[test]
fn a_client_that_returns_while_the_log_stops_is_told_and_does_not_wait() {
    for seed in 0..20 {
        simulate(seed, |sim| async move {
            let a = start(&sim, "a").await;
            let device = a.connect("vm").await.expect("created");
            write(&device, 1, 1).await;
            a.drain("vm").await;
            let faults = DiskFaults {
                persist_error: Odds::one_in(1),
                ..DiskFaults::default()
            };
            sim.set_disk_faults(a.world.host(), faults);
            drop(device);
            // Beyond the grace time: the detach has met the disk.
            sim.sleep(Duration::from_millis(30_000 + 10 * seed)).await;
            let early = a.connect("vm").await;
            sim.sleep(Duration::from_secs(60)).await;
            drop(early);
            sim.sleep(Duration::from_secs(60)).await;
            // Reads may go on; nothing is acknowledged.
            match a.connect("vm").await {
                Ok(device) => {
                    let written = device.write(0, page(2), Fua::No).await;
                    assert_eq!(written, Err(IoError::Io));
                }
                Err(refused) => assert!(matches!(refused, ConnectError::Unavailable(_))),
            }
        });
    }
}

/// Rule 8: after a failed fsync what is left is shown, nothing is taken and no flush answered well, and
/// the operator accepts the loss by the number that he has seen. What had been flushed is kept.
#[test]
fn writes_that_a_failed_fsync_lost_are_accepted_by_number_and_the_flushed_ones_kept() {
    let mut accepted = 0;
    for seed in 0..20 {
        accepted += simulate(seed, |sim| async move {
            let a = start(&sim, "a").await;
            let host = a.world.host();
            let device = a.connect("vm").await.expect("created");
            write(&device, 0, 1).await;
            device.flush().await.expect("flushed");
            for n in 1..40 {
                write(&device, n, 2).await;
            }
            let faults = DiskFaults {
                persist_error: Odds::one_in(1),
                ..DiskFaults::default()
            };
            sim.set_disk_faults(host, faults);
            assert_eq!(device.flush().await, Err(IoError::Io));
            sim.set_disk_faults(host, DiskFaults::default());
            sim.sleep(Duration::from_secs(1)).await;
            a.kill();
            let a = start(&sim, "a").await;
            let Some(damage) = a.get("vm").await.damage else {
                return 0;
            };
            let device = a.connect("vm").await.expect("shown");
            assert_eq!(device.access(), Access::ReadOnly);
            assert_eq!(a.get("vm").await.role, "damaged");
            assert_eq!(stamp(&device, 0).await, 1);
            assert_eq!(device.flush().await, Err(IoError::Io));
            let accept = async |kept_seq| {
                let wanted = AcceptLossDocument { kept_seq };
                let asked = a
                    .control
                    .ask(|reply| Request::AcceptLoss("vm".to_owned(), wanted, reply));
                asked.await
            };
            let other = accept(damage.kept_seq + 1).await.expect_err("not seen");
            assert_eq!(other.kind, ControlErrorKind::Conflict, "{other}");
            let open = accept(damage.kept_seq).await.expect("accepted");
            assert_eq!((open.role.as_str(), open.damage), ("read-write", None));
            assert_eq!(device.read(0, PAGE).await, Err(IoError::Shutdown));
            let device = a.connect("vm").await.expect("opened");
            for n in 0..40 {
                let expected = match n {
                    0 => 1,
                    n if n < damage.kept_seq => 2,
                    _ => 0,
                };
                assert_eq!(stamp(&device, n).await, expected, "page {n}");
            }
            assert_eq!(a.drain("vm").await.published_seq, damage.kept_seq);
            1
        });
    }
    assert!(accepted > 5, "{accepted} losses");
}

/// Killed between the acceptance and the opening: nobody holds the epoch, and what was kept goes to the
/// store all the same, client or none.
#[test]
fn what_was_kept_of_a_loss_is_published_by_the_next_start() {
    let mut accepted = 0;
    for seed in 0..20 {
        accepted += simulate(seed, |sim| async move {
            let a = start(&sim, "a").await;
            let host = a.world.host();
            let device = a.connect("vm").await.expect("created");
            write(&device, 0, 1).await;
            device.flush().await.expect("flushed");
            for n in 1..40 {
                write(&device, n, 2).await;
            }
            let faults = DiskFaults {
                persist_error: Odds::one_in(1),
                ..DiskFaults::default()
            };
            sim.set_disk_faults(host, faults);
            assert_eq!(device.flush().await, Err(IoError::Io));
            sim.set_disk_faults(host, DiskFaults::default());
            sim.sleep(Duration::from_secs(1)).await;
            a.kill();
            let world = sim.process(host);
            let cache = Cache::open(world.clone(), config(None).cache).await;
            let cache = cache.expect("opens");
            let local = cache.volumes().remove(0);
            if local.damage.is_none() {
                return 0;
            }
            let kept = cache.accept_loss(local.id, local.kept).await;
            kept.expect("accepted");
            sim.kill(world.pid());
            let a = start(&sim, "a").await;
            sim.sleep(Duration::from_secs(25)).await;
            let left = a.get("vm").await;
            assert_eq!((left.published_seq, left.dirty_bytes), (local.kept.0, 0));
            1
        });
    }
    assert!(accepted > 5, "{accepted} losses");
}

#[test]
fn names_are_checked_and_explained() {
    simulate(11, |sim| async move {
        let a = start(&sim, "a").await;
        for name in ["", "Vm", "-vm", "a/b", "vm@", "@s", "vm@a@b", "vm@Monday"] {
            let refused = a.connect(name).await.expect_err(name);
            assert!(
                matches!(refused, ConnectError::Invalid(_)),
                "{name}: {refused:?}"
            );
        }
        // Nobody creates a volume by asking for a snapshot of it.
        let refused = a.connect("vm@monday").await.expect_err("no volume");
        assert!(matches!(refused, ConnectError::Unknown(_)), "{refused:?}");
        let mut quiet = config(None);
        quiet.exports.create_bytes = None;
        let b = start_with(&sim, sim.host("b"), quiet).await;
        let refused = b.connect("vm").await.expect_err("not created");
        assert!(matches!(refused, ConnectError::Unknown(_)), "{refused:?}");
        let looked = b.shard.exports().look("vm").await.expect_err("absent");
        assert!(matches!(looked, ConnectError::Unknown(_)), "{looked:?}");
        let looked = a
            .shard
            .exports()
            .look("vm")
            .await
            .expect("would be created");
        assert_eq!(
            (looked.size_bytes, looked.access),
            (VOLUME_BYTES, Access::ReadWrite)
        );
        a.connect("vm").await.expect("created");
        assert_eq!(b.shard.exports().names().await, vec!["vm".to_owned()]);
        let looked = b.shard.exports().look("vm").await.expect("there");
        assert_eq!(looked.access, Access::ReadOnly);
    });
}

#[test]
fn an_export_grows_and_its_old_connections_keep_their_size() {
    simulate(12, |sim| async move {
        let a = start(&sim, "a").await;
        let put = |size_gb| {
            let wanted = PutDocument { size_gb };
            a.control
                .ask(|reply| Request::Put("vm".to_owned(), wanted, reply))
        };
        assert_eq!(put(0.5).await.expect("created").size_bytes, 1 << 29);
        let old = a.connect("vm").await.expect("open");
        write(&old, 5, 5).await;
        assert_eq!(put(1.0).await.expect("grown").size_bytes, 1 << 30);
        assert_eq!(old.size_bytes(), 1 << 29);
        let refused = put(0.25).await.expect_err("never shrinks");
        assert_eq!(refused.kind, ControlErrorKind::Invalid);
        let new = a.connect("vm").await.expect("open");
        assert_eq!(new.size_bytes(), 1 << 30);
        write(&new, (1 << 30) / PAGE - 1, 9).await;
        a.drain("vm").await;
        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await.expect("open");
        assert_eq!(reader.size_bytes(), 1 << 30);
        assert_eq!(stamp(&reader, 5).await, 5);
        assert_eq!(stamp(&reader, (1 << 30) / PAGE - 1).await, 9);
    });
}

#[test]
fn status_tells_data_from_holes_here_and_on_another_node() {
    simulate(13, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 2, 1).await;
        write(&device, 3, 1).await;
        write(&device, 10, 1).await;
        device.zero(3 * PAGE, PAGE, Fua::No).await.expect("trimmed");
        let run = |pages: u64, kind| Run {
            len: pages * PAGE,
            kind,
        };
        let expected = vec![
            run(2, RunKind::Hole),
            run(1, RunKind::Data),
            run(7, RunKind::Hole),
            run(1, RunKind::Data),
            run(5, RunKind::Hole),
        ];
        assert_eq!(device.status(0, 16 * PAGE, 64).await, Ok(expected.clone()));
        a.drain("vm").await;
        assert_eq!(device.status(0, 16 * PAGE, 64).await, Ok(expected.clone()));
        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await.expect("open");
        assert_eq!(reader.status(0, 16 * PAGE, 64).await, Ok(expected.clone()));
        assert_eq!(
            reader.status(0, VOLUME_BYTES, 2).await,
            Ok(expected[..2].to_vec())
        );
    });
}

#[test]
fn delete_gives_the_volume_up_and_keeps_it_in_the_store() {
    simulate(14, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        let delete = || {
            a.control
                .ask(|reply| Request::Delete("vm".to_owned(), DeleteQuery::default(), reply))
        };
        let refused = delete().await.expect_err("in use");
        assert_eq!(refused.kind, ControlErrorKind::Conflict);
        drop(device);
        assert_eq!(delete().await.expect("left").role, "closed");
        let b = start(&sim, "b").await;
        let device = b.connect("vm").await.expect("open");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 1).await, 1);
    });
}

#[test]
fn shutdown_drains_through_an_outage_and_refuses_new_clients() {
    simulate(15, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        sim.set_store_outage(None, true);
        let shard = Rc::clone(&a.shard);
        let ending = Rc::new(Cell::new(false));
        let ended = Rc::clone(&ending);
        sim.spawn(async move {
            shard.shutdown(Drain::Everything).await;
            ended.set(true);
        });
        sim.sleep(Duration::from_secs(60)).await;
        assert!(!ending.get(), "drained into a store that is out");
        assert!(matches!(
            a.connect("vm").await,
            Err(ConnectError::ShuttingDown)
        ));
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(120)).await;
        assert!(ending.get());
        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await.expect("open");
        assert_eq!(stamp(&reader, 1).await, 1);
    });
}

/// The kill came after the publish and before the log had noted it: the root alone says that nothing
/// is left to do.
#[test]
fn a_drain_that_began_in_an_outage_ends_though_all_was_published_before_it() {
    // Which seeds kill between the two is up to every step before: some must.
    let hits = (52..84).filter(|seed| drain_behind_an_unnoted_publish(*seed));
    assert!(hits.count() > 0, "the log had noted the publish each time");
}

/// False: the kill came too late for what the test is about.
fn drain_behind_an_unnoted_publish(seed: u64) -> bool {
    simulate(seed, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        write(&device, 1, 11).await;
        assert_eq!(node.drain("vm").await.dirty_bytes, 0);
        node.kill();
        sim.set_store_outage(None, true);
        let node = start(&sim, "a").await;
        let _device = node.connect("vm").await.expect("resumed unasked");
        let dirty_bytes = node.get("vm").await.dirty_bytes;
        if dirty_bytes == 0 {
            return false;
        }
        let shard = Rc::clone(&node.shard);
        let ended = Rc::new(Cell::new(false));
        let tell = Rc::clone(&ended);
        sim.spawn(async move {
            shard.shutdown(Drain::Everything).await;
            tell.set(true);
        });
        // A drain tells of each failed attempt and is asked anew: the last of these must be waiting
        // when the store answers.
        sim.sleep(Duration::from_secs(60)).await;
        assert!(!ended.get(), "drained into a store that is out");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(60)).await;
        assert!(ended.get(), "the drain did not hear that nothing is left");
        true
    })
}

#[test]
fn what_a_stopped_node_had_drained_opens_read_write_on_any_other() {
    simulate(16, |sim| async move {
        let a = start(&sim, "a").await;
        let (idle, used) = (a.connect("idle").await, a.connect("used").await);
        let (idle, used) = (idle.expect("created"), used.expect("created"));
        write(&idle, 1, 1).await;
        write(&used, 1, 1).await;
        drop(idle);
        assert_eq!(a.shard.shutdown(Drain::Everything).await, ["used"]);
        // Its client is still there: it loses nothing, and what it writes goes along.
        write(&used, 2, 2).await;
        assert_eq!(used.flush().await, Ok(()));
        drop(used);
        let owned = a.shard.shutdown(Drain::Everything).await;
        assert!(owned.is_empty(), "{owned:?} stay owned");
        a.kill();
        let b = start(&sim, "b").await;
        for name in ["idle", "used"] {
            let device = b.connect(name).await.expect("opened");
            assert_eq!(device.access(), Access::ReadWrite, "{name}");
            assert_eq!(stamp(&device, 1).await, 1);
        }
        let used = b.connect("used").await.expect("opened");
        assert_eq!(stamp(&used, 2).await, 2);
    });
}

#[test]
fn a_stopped_node_that_starts_again_finds_its_cache_as_warm_as_it_left_it() {
    simulate(17, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        for n in 0..500 {
            write(&device, n, u8::try_from(n % 250).expect("small") + 1).await;
        }
        drop(device);
        assert!(a.shard.shutdown(Drain::Everything).await.is_empty());
        a.kill();
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("opened");
        assert_eq!(device.access(), Access::ReadWrite);
        sim.set_store_outage(None, true);
        for n in 0..500 {
            assert_eq!(u64::from(stamp(&device, n).await), n % 250 + 1);
        }
        assert_eq!(a.get("vm").await.io.miss_pages, 0);
    });
}

#[test]
fn a_node_that_is_stopped_during_an_outage_keeps_its_volumes_and_its_restart_serves_them() {
    simulate(18, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        drop(device);
        sim.set_store_outage(None, true);
        let before = sim.now();
        assert_eq!(a.shard.shutdown(Drain::Everything).await, ["vm"]);
        assert!(sim.now().since(before) < Duration::from_secs(60), "bounded");
        a.kill();
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("resumed unasked");
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 1).await, 1);
        write(&device, 1, 2).await;
        sim.set_store_outage(None, false);
        assert_eq!(a.drain("vm").await.epoch, 1);
        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await.expect("open");
        assert_eq!(reader.access(), Access::ReadOnly);
        assert_eq!(stamp(&reader, 1).await, 2);
    });
}

/// An export that nobody writes to any more, so that nothing is on its way to the store but its detach to come.
async fn left_behind(sim: &Sim) -> Node {
    let node = start(sim, "a").await;
    let device = node.connect("vm").await.expect("created");
    write(&device, 1, 1).await;
    node.drain("vm").await;
    sim.sleep(Duration::from_secs(60)).await;
    node
}

/// The store turns the next request away and is well again. For how long it asked to be left alone.
async fn asked_once(sim: &Sim) -> Duration {
    sim.set_store_faults(StoreFaults {
        asks_to_wait: Odds::ALWAYS,
        ..StoreFaults::default()
    });
    loop {
        if let Some(asked) = sim.store_stats().asked_to_wait {
            sim.set_store_faults(StoreFaults::default());
            return asked;
        }
        sim.sleep(Duration::from_millis(1)).await;
    }
}

/// More than anybody waits by himself behind one failure.
const LONG: Duration = Duration::from_secs(10);

#[test]
fn a_detach_leaves_the_store_alone_for_as_long_as_it_asks() {
    let asked_long = (640..660).filter(|seed| {
        simulate(*seed, |sim| async move {
            let a = left_behind(&sim).await;
            let asked = asked_once(&sim).await;
            let began = sim.now();
            while a.get("vm").await.role == "read-write" {
                sim.sleep(Duration::from_millis(100)).await;
            }
            let took = sim.now().since(began);
            assert!(took >= asked, "asked for {asked:?}, over after {took:?}");
            assert!(
                took < asked + LONG,
                "asked for {asked:?}, over after {took:?}"
            );
            let b = start(&sim, "b").await;
            let device = b.connect("vm").await.expect("given up");
            assert_eq!(device.access(), Access::ReadWrite);
            asked > LONG
        })
    });
    assert!(asked_long.count() > 0, "no store asked for long");
}

/// Where it asks for more than a server that ends has, it is left alone for a part of that, and asked once more.
#[test]
fn a_stop_keeps_a_part_of_what_the_store_asks_for_and_gives_everything_up() {
    let asked_long = (660..680).filter(|seed| {
        simulate(*seed, |sim| async move {
            let a = left_behind(&sim).await;
            let (shard, clock) = (Rc::clone(&a.shard), sim.clone());
            let ended = Rc::new(Cell::new(None));
            let tell = Rc::clone(&ended);
            sim.spawn(async move {
                let owned = shard.shutdown(Drain::Everything).await;
                tell.set(Some((owned.is_empty(), clock.now())));
            });
            let asked = asked_once(&sim).await;
            let began = sim.now();
            sim.sleep(Duration::from_secs(60)).await;
            let (is_free, at) = ended.get().expect("it ends");
            let took = at.since(began);
            assert!(
                is_free,
                "asked for {asked:?}: it stays owned, after {took:?}"
            );
            let kept = asked.min(Duration::from_secs(5));
            assert!(took >= kept, "asked for {asked:?}, over after {took:?}");
            assert!(took < LONG, "asked for {asked:?}, over after {took:?}");
            asked > LONG
        })
    });
    assert!(asked_long.count() > 0, "no store asked for long");
}

/// The minute that the store asked for began before the server was told to end.
#[test]
fn a_stop_does_not_sit_out_what_a_detach_waits_for_already() {
    let asked_long = (680..720).filter(|seed| {
        simulate(*seed, |sim| async move {
            let a = left_behind(&sim).await;
            let asked = asked_once(&sim).await;
            sim.sleep(LONG).await;
            let began = sim.now();
            let owned = a.shard.shutdown(Drain::Everything).await;
            let took = sim.now().since(began);
            assert!(
                owned.is_empty(),
                "asked for {asked:?}: owned, after {took:?}"
            );
            assert!(took < LONG, "asked for {asked:?}, over after {took:?}");
            // Long enough that it would still wait when the time of the server is up.
            asked > 2 * LONG
        })
    });
    assert!(asked_long.count() > 0, "no store asked for long");
}

/// A client that writes until it is sent away, a bad store, and sometimes a second signal.
#[test]
fn a_stop_at_any_moment_loses_nothing_that_was_answered() {
    let mut handed_over = 0;
    for seed in 500..540 {
        handed_over += simulate(seed, |sim| async move {
            sim.set_store_faults(StoreFaults {
                lost_request: Odds::one_in(20),
                throttled: Odds::one_in(20),
                lost_answer: Odds::one_in(10),
                late: Odds::one_in(40),
                ..StoreFaults::default()
            });
            let a = start_patiently(&sim).await;
            let device = connect_patiently(&sim, &a).await;
            let writer = Writer::default();
            sim.spawn(writer.clone().write_on(sim.clone(), device));
            let running = Duration::from_millis(sim.chance(|c| c.below(20_000)));
            sim.sleep(running).await;
            let owned = Rc::new(RefCell::new(None));
            let (shard, told, client) = (Rc::clone(&a.shard), Rc::clone(&owned), writer.clone());
            let clock = sim.clone();
            sim.spawn(async move {
                shard.shutdown(Drain::Everything).await;
                client.away.set(true);
                let clients = || shard.documents().iter().any(|export| export.clients > 0);
                clock.until(|| !clients()).await;
                *told.borrow_mut() = Some(shard.shutdown(Drain::Everything).await);
            });
            let patience = Duration::from_millis(sim.chance(|c| c.below(40_000)));
            sim.sleep(patience).await;
            writer.away.set(true);
            let answered = writer.pages.borrow().clone();
            let stays = owned.borrow_mut().take();
            a.kill();
            sim.set_store_faults(StoreFaults::default());
            sim.sleep(Duration::from_secs(40)).await;
            let is_free = stays.is_some_and(|names: Vec<String>| names.is_empty());
            let node = start(&sim, if is_free { "b" } else { "a" }).await;
            let device = connect_patiently(&sim, &node).await;
            assert_eq!(device.access(), Access::ReadWrite);
            for (n, (answered, sent)) in &answered {
                let found = stamp(&device, *n).await;
                assert!(found == *answered || found == *sent, "page {n}: {found}");
            }
            u32::from(is_free)
        });
    }
    assert!(handed_over > 10, "{handed_over} stops got through");
}

/// A client that writes at random until it is sent away, and remembers what it was told.
#[derive(Clone, Default)]
struct Writer {
    away: Rc<Cell<bool>>,
    /// Of each page the last write that was answered, and the last that was sent.
    pages: Rc<RefCell<BTreeMap<u64, (u8, u8)>>>,
}

impl Writer {
    async fn write_on(self, sim: Sim, device: Device) {
        for number in 1..=250 {
            if self.away.get() {
                return;
            }
            let n = sim.chance(|c| c.below(32));
            self.pages.borrow_mut().entry(n).or_default().1 = number;
            write(&device, n, number).await;
            self.pages.borrow_mut().entry(n).or_default().0 = number;
            let pause = Duration::from_millis(sim.chance(|c| c.below(300)));
            sim.sleep(pause).await;
        }
    }
}

/// Writes, kills and a bad store, judged by a model of the disk; at the end another node reads
/// everything.
#[test]
fn a_bad_store_and_kills_lose_nothing() {
    for seed in 100..130 {
        simulate(seed, |sim| async move {
            sim.set_store_faults(StoreFaults {
                lost_request: Odds::one_in(20),
                throttled: Odds::one_in(20),
                lost_answer: Odds::one_in(15),
                late: Odds::one_in(40),
                ..StoreFaults::default()
            });
            let mut node = start_patiently(&sim).await;
            let mut model = [0_u8; 256];
            for round in 1..8_u8 {
                let device = connect_patiently(&sim, &node).await;
                for n in 0..256 {
                    assert_eq!(stamp(&device, n).await, model[at(n)], "page {n}");
                }
                for _ in 0..sim.chance(|c| c.between(1, 60)) {
                    let n = sim.chance(|c| c.below(256));
                    write(&device, n, round).await;
                    model[at(n)] = round;
                    sim.sleep(Duration::from_millis(sim.chance(|c| c.below(400))))
                        .await;
                }
                drop(device);
                // Sometimes long enough to detach.
                sim.sleep(Duration::from_millis(sim.chance(|c| c.below(60_000))))
                    .await;
                if sim.chance(|c| c.one_in(2)) {
                    node.kill();
                    node = start_patiently(&sim).await;
                }
            }
            sim.set_store_faults(StoreFaults::default());
            sim.sleep(Duration::from_secs(200)).await;
            let b = start(&sim, "b").await;
            let reader = b.connect("vm").await.expect("open");
            assert_eq!(reader.access(), Access::ReadWrite, "detached by now");
            for n in 0..256 {
                assert_eq!(stamp(&reader, n).await, model[at(n)], "page {n}");
            }
        });
    }
}

#[test]
fn volumes_that_are_only_in_the_store_are_listed_when_asked_for() {
    simulate(21, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let device = a.connect("vm-a").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm-a").await;
        b.connect("vm-b").await.expect("created");
        a.connect("broken").await.expect("created");
        sim.sleep(Duration::from_secs(60)).await;
        assert!(sim.corrupt("nbd/broken/root", &Corruption::FlipBit { at: 40, bit: 3 }));
        let all = |after: &str| {
            let after = after.to_owned();
            b.control.ask(|reply| Request::ListStored(after, reply))
        };
        let listed = all("").await.expect("listed");
        let rows: Vec<(&str, &str)> = listed
            .iter()
            .map(|export| (export.name.as_str(), export.role.as_str()))
            .collect();
        let expected = [
            ("broken", "unreadable"),
            ("vm-a", "closed"),
            ("vm-b", "closed"),
        ];
        assert_eq!(rows, expected);
        assert_eq!(listed[1].published_seq, 1);
        assert!(listed[1].owner.starts_with("node "), "{}", listed[1].owner);
        assert_eq!(all("vm-a").await.expect("listed").len(), 1);
        assert!(all("vm-b").await.expect("listed").is_empty());
        sim.set_store_outage(None, true);
        let refused = all("").await.expect_err("the store is out");
        assert_eq!(refused.kind, ControlErrorKind::Unavailable);
    });
}

/// Rule 29: also where the writes are its creation, and attempts that failed or are unclear.
#[test]
fn a_root_is_never_written_twice_within_the_interval_of_its_store() {
    let interval = Duration::from_secs(5);
    for seed in 600..610 {
        simulate(seed, |sim| async move {
            sim.set_store_faults(StoreFaults {
                lost_request: Odds::one_in(10),
                throttled: Odds::one_in(10),
                lost_answer: Odds::one_in(6),
                ..StoreFaults::default()
            });
            let mut slow = config(None);
            slow.exports.sync.publish_interval_min = interval;
            let mut node = start_with(&sim, sim.host("a"), slow.clone()).await;
            let writes = Rc::new(RefCell::new(Vec::new()));
            let (seen, clock) = (Rc::clone(&writes), sim.clone());
            sim.spawn(async move {
                let mut before = None;
                loop {
                    let root = clock.object("nbd/vm/root");
                    if root != before {
                        seen.borrow_mut().push(clock.now());
                        before = root;
                    }
                    clock.sleep(Duration::from_millis(10)).await;
                }
            });
            for round in 1..=20 {
                let device = connect_patiently(&sim, &node).await;
                write(&device, 1, round).await;
                // A drain that fails goes on all the same.
                let asked = node
                    .control
                    .ask(|reply| Request::Drain("vm".to_owned(), reply));
                drop(asked.await);
                let pause = sim.chance(|c| c.below(3_000));
                sim.sleep(Duration::from_millis(pause)).await;
                if round == 10 {
                    node.kill();
                    node = start_with(&sim, sim.host("a"), slow.clone()).await;
                }
            }
            let writes = writes.borrow();
            assert!(writes.len() > 10, "{} writes", writes.len());
            for pair in writes.windows(2) {
                let apart = pair[1].since(pair[0]);
                assert!(apart + Duration::from_millis(20) > interval, "{apart:?}");
            }
        });
    }
}

async fn start_patiently(sim: &Sim) -> Node {
    start(sim, "a").await
}

async fn connect_patiently(sim: &Sim, node: &Node) -> Device {
    for _ in 0..50 {
        match node.connect("vm").await {
            Ok(device) => return device,
            Err(ConnectError::Unavailable(_)) => sim.sleep(Duration::from_secs(2)).await,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("the store never answered");
}

/// The number that a page was written with; 0 for never.
async fn number(device: &Device, page_no: u64) -> u32 {
    let bytes = device.read(page_no * PAGE, PAGE).await.expect("read");
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
        .collect();
    assert!(
        words.iter().all(|w| *w == words[0]),
        "page {page_no} is torn"
    );
    words[0]
}

fn numbered(number: u32) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(1024))
}

/// Promise 3: whatever is lost, the store holds the state after some prefix of the writes.
#[test]
fn a_lost_node_leaves_an_exact_cut() {
    for seed in 200..240 {
        simulate(seed, |sim| async move {
            sim.set_store_faults(StoreFaults {
                lost_request: Odds::one_in(30),
                throttled: Odds::one_in(30),
                lost_answer: Odds::one_in(20),
                late: Odds::one_in(50),
                ..StoreFaults::default()
            });
            let node = start(&sim, "a").await;
            let device = connect_patiently(&sim, &node).await;
            let mut history = Vec::new();
            for number in 1..=sim.chance(|c| c.between(1, 400)) {
                let page_no = sim.chance(|c| c.below(48));
                let number = u32::try_from(number).expect("small");
                let written = device
                    .write(page_no * PAGE, numbered(number), Fua::No)
                    .await;
                written.expect("written");
                history.push((page_no, number));
                sim.sleep(Duration::from_millis(sim.chance(|c| c.below(200))))
                    .await;
            }
            let published = node.get("vm").await.published_seq;
            node.kill();
            sim.wipe_disk(sim.host("a"));
            sim.set_store_faults(StoreFaults::default());
            // Whatever was on its way when the node died may land until now.
            sim.sleep(Duration::from_secs(40)).await;
            let b = start(&sim, "b").await;
            b.force("vm").await;
            let device = b.connect("vm").await.expect("promoted");
            let mut found = Vec::new();
            for page_no in 0..48 {
                found.push(number(&device, page_no).await);
            }
            let prefix = (0..=history.len()).rev().find(|end| {
                let mut state = vec![0; 48];
                for (page_no, number) in &history[..*end] {
                    state[at(*page_no)] = *number;
                }
                state == found
            });
            let prefix = prefix.unwrap_or_else(|| panic!("{found:?} was never the state"));
            assert!(u64::try_from(prefix).expect("small") >= published);
        });
    }
}

/// Promise 1 under power cuts: what was flushed is there, and what is there is a prefix.
#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    for seed in 300..340 {
        simulate(seed, |sim| async move {
            let host = sim.host("a");
            let mut history: Vec<(u64, u32)> = Vec::new();
            let (mut flushed, mut next) = (0, 1);
            for _round in 0..4 {
                let node = start(&sim, "a").await;
                let device = connect_patiently(&sim, &node).await;
                let mut found = Vec::new();
                for page_no in 0..32 {
                    found.push(number(&device, page_no).await);
                }
                let prefix = (flushed..=history.len()).rev().find(|end| {
                    let mut state = vec![0; 32];
                    for (page_no, number) in &history[..*end] {
                        state[at(*page_no)] = *number;
                    }
                    state == found
                });
                let prefix = prefix.unwrap_or_else(|| panic!("flushed {flushed}: {found:?}"));
                history.truncate(prefix);
                flushed = prefix;
                for _ in 0..sim.chance(|c| c.between(1, 80)) {
                    let page_no = sim.chance(|c| c.below(32));
                    let fua = if sim.chance(|c| c.one_in(10)) {
                        Fua::Yes
                    } else {
                        Fua::No
                    };
                    let written = device.write(page_no * PAGE, numbered(next), fua).await;
                    written.expect("written");
                    history.push((page_no, next));
                    next += 1;
                    if sim.chance(|c| c.one_in(12)) {
                        device.flush().await.expect("flushed");
                        flushed = history.len();
                    }
                    sim.sleep(Duration::from_millis(sim.chance(|c| c.below(500))))
                        .await;
                }
                sim.crash(host, Crash::Power);
            }
        });
    }
}

/// Two clients of a full cache: writers wait, in order, and go on when the store is back.
#[test]
fn a_full_cache_slows_writers_and_keeps_their_order() {
    simulate(400, |sim| async move {
        let mut small = config(None);
        small.cache.volume_dirty_bytes_max = 2 << 20;
        let node = start_with(&sim, sim.host("a"), small).await;
        let device = node.connect("vm").await.expect("created");
        sim.set_store_outage(None, true);
        let done = Rc::new(Cell::new(0_u32));
        // Each page is written twice; the first must not come last.
        for number in 1..=2_000_u32 {
            let (device, done) = (Rc::clone(&device), Rc::clone(&done));
            let page_no = u64::from((number - 1) % 1_000);
            let write = async move {
                let written = device
                    .write(page_no * PAGE, numbered(number), Fua::No)
                    .await;
                written.expect("slow, never failed");
                done.set(done.get() + 1);
            };
            let mut write = Box::pin(write);
            // First polled here, in order.
            let first = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx)));
            if first.await.is_pending() {
                sim.spawn(write);
            }
        }
        sim.sleep(Duration::from_secs(600)).await;
        assert!(done.get() > 300, "{} written", done.get());
        assert!(
            done.get() < 700,
            "{} written while the store is out",
            done.get()
        );
        // Reads and flushes go on beside writers that wait.
        assert_eq!(number(&device, 0).await, 1);
        device.flush().await.expect("flushed");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(600)).await;
        assert_eq!(done.get(), 2_000);
        for page_no in 0..1_000 {
            assert_eq!(u64::from(number(&device, page_no).await), page_no + 1_001);
        }
    });
}

#[test]
fn writers_of_a_full_cache_are_let_go_when_they_are_fenced() {
    simulate(401, |sim| async move {
        let mut small = config(None);
        small.cache.volume_dirty_bytes_max = 1 << 20;
        let node = start_with(&sim, sim.host("a"), small).await;
        let b = start(&sim, "b").await;
        let device = node.connect("vm").await.expect("created");
        sim.set_store_outage(Some(sim.host("a")), true);
        let ended = Rc::new(Cell::new(0_u32));
        for page_no in 0..1_000 {
            let (device, ended) = (Rc::clone(&device), Rc::clone(&ended));
            sim.spawn(async move {
                let written = device.write(page_no * PAGE, page(1), Fua::No).await;
                assert!(
                    matches!(written, Ok(()) | Err(IoError::Shutdown)),
                    "{written:?}"
                );
                ended.set(ended.get() + 1);
            });
        }
        sim.sleep(Duration::from_secs(60)).await;
        assert!(ended.get() < 1_000);
        b.force("vm").await;
        sim.set_store_outage(Some(sim.host("a")), false);
        sim.sleep(Duration::from_secs(120)).await;
        assert_eq!(ended.get(), 1_000);
    });
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let scenario = |sim: Sim| async move {
            let node = start(&sim, "a").await;
            let device = node.connect("vm").await.expect("created");
            for n in 0..50 {
                write(&device, n, 1).await;
            }
            drop(device);
            sim.sleep(Duration::from_secs(90)).await;
        };
        let run = Sim::simulate(seed, SimConfig::default(), scenario);
        run.unwrap_or_else(|stuck| panic!("{stuck}")).1
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

async fn meters(node: &Node) -> MetersDocument {
    let asked = node.control.ask(Request::Meters).await;
    asked.expect("never refused")
}

#[test]
fn every_request_to_the_store_is_counted_by_kind_and_volume() {
    simulate(500, |sim| async move {
        let a = start(&sim, "a").await;
        for name in ["vm-a", "vm-b"] {
            let device = a.connect(name).await.expect("created");
            for page_no in 0..100 {
                write(&device, page_no, 1).await;
            }
            a.drain(name).await;
            drop(device);
        }
        a.control
            .ask(|reply| Request::ListStored(String::new(), reply))
            .await
            .expect("listed");
        sim.sleep(Duration::from_secs(60)).await;
        let (meters, stats) = (meters(&a).await, sim.store_stats());
        let of = |rows: &[StoreRequests], kind: &str| -> u64 {
            let rows = rows.iter().filter(|row| row.kind == kind);
            rows.map(|row| row.count).sum()
        };
        for (kind, arrived) in [
            ("get", stats.gets),
            ("create", stats.creates),
            ("replace", stats.replaces),
            ("list", stats.lists),
            ("delete", stats.deletes),
        ] {
            assert!(arrived > 0, "no {kind}: the scenario is blind to it");
            assert_eq!(of(&meters.store.requests, kind), arrived, "{kind}");
        }
        assert_eq!(meters.store.in_flight, 0);
        assert_eq!(meters.store.received_bytes, stats.bytes_out);
        for export in &meters.exports {
            assert!(of(&export.store, "replace") >= 2, "{export:?}");
            assert!(of(&export.store, "create") >= 2, "{export:?}");
            assert_eq!(export.latency.write.count(), 100);
            // Each was closed since, and what was counted is still there.
            assert_eq!((export.export.io.writes, export.export.clients), (100, 0));
        }
        assert_eq!(meters.exports.len(), 2);
    });
}

#[test]
fn slow_writers_and_a_late_store_are_seen_and_pass() {
    simulate(501, |sim| async move {
        let mut small = config(None);
        small.cache.volume_dirty_bytes_max = 2 << 20;
        let node = start_with(&sim, sim.host("a"), small).await;
        let device = node.connect("vm").await.expect("created");
        sim.set_store_outage(None, true);
        for page_no in 0..800 {
            let device = Rc::clone(&device);
            sim.spawn(async move { write(&device, page_no, 1).await });
        }
        sim.sleep(Duration::from_secs(300)).await;
        let late = meters(&node).await;
        let export = &late.exports[0];
        assert!(late.cache.writers_waiting > 0);
        assert!(export.throttled_writes > 0 && export.throttled_ms > 0);
        assert!(export.sync_lag_ms > 200_000, "{}", export.sync_lag_ms);
        assert!(export.export.io.sync_errors > 0);
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(300)).await;
        let well = meters(&node).await;
        let export = &well.exports[0];
        assert_eq!((well.cache.writers_waiting, export.sync_lag_ms), (0, 0));
        assert_eq!(export.export.io.writes, 800);
        assert_eq!(export.latency.write.count(), 800);
        // Some waited for minutes, and that is in the histogram.
        let slowest = export.latency.write.quantile(1000);
        assert!(slowest > Some(Duration::from_secs(10)), "{slowest:?}");
        assert_eq!(export.export.published_seq, export.export.last_seq);
        assert!(export.published_unix_ms > 0);
    });
}

/// What is written again and again during an outage goes to the store once, behind it; and a sync that
/// takes its bound several times still ends with everything there.
#[test]
fn the_newest_cut_goes_first_behind_an_outage() {
    simulate(502, |sim| async move {
        let mut bounded = config(None);
        bounded.exports.sync.cut_extents_max = 40;
        let node = start_with(&sim, sim.host("a"), bounded).await;
        let device = node.connect("vm").await.expect("created");
        sim.set_store_outage(None, true);
        for round in 1..=10 {
            for page_no in 0..10 {
                write(&device, page_no, round).await;
            }
            sim.sleep(Duration::from_secs(30)).await;
        }
        let before = meters(&node).await.exports[0].export.io;
        assert!(before.sync_errors > 0 && before.syncs == 0, "{before:?}");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(120)).await;
        let after = meters(&node).await.exports[0].clone();
        assert_eq!(after.export.published_seq, after.export.last_seq);
        let io = after.export.io;
        assert_eq!((io.syncs, io.packed_bytes), (1, 10 * 4096), "{io:?}");

        // A hundred pages apart are a hundred extents: three cuts.
        for page_no in 0..100 {
            write(&device, 2 * page_no, 11).await;
        }
        assert_eq!(node.drain("vm").await.dirty_bytes, 0);
        let io = meters(&node).await.exports[0].export.io;
        assert_eq!((io.syncs, io.packed_bytes), (4, 110 * 4096), "{io:?}");
    });
}

/// What of a cut is in the store when an outage begins is used by the newer cut behind it: only what was
/// written again meanwhile goes there twice.
#[test]
fn what_was_uploaded_before_an_outage_is_part_of_the_newest_cut() {
    const BLOCK: u64 = 128 << 10;
    simulate(505, |sim| async move {
        let mut narrow = config(None);
        let sync = &mut narrow.exports.sync;
        (
            sync.uploads_max,
            sync.uploads_total_min,
            sync.uploads_total_max,
        ) = (1, 1, 1);
        sync.blocks_per_batch = 1;
        let node = start_with(&sim, sim.host("a"), narrow).await;
        let device = node.connect("vm").await.expect("created");
        let block = async |block: u64, value: u8| {
            let bytes = Bytes::from(vec![value; 128 << 10]);
            let written = device.write(block * BLOCK, bytes, Fua::No).await;
            written.expect("written");
        };
        for number in 0..10 {
            block(number, 1).await;
        }
        let io = async || meters(&node).await.exports[0].export.io;
        while io().await.uploaded_segments < 3 {
            sim.sleep(Duration::from_millis(1)).await;
        }
        sim.set_store_outage(None, true);
        // In the store, and not: each many times.
        for value in 2..=9 {
            block(0, value).await;
            block(9, value).await;
            sim.sleep(Duration::from_secs(30)).await;
        }
        let before = io().await;
        assert!(before.sync_errors > 0 && before.syncs == 0, "{before:?}");
        assert!(before.uploaded_segments < 9, "{before:?}");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(120)).await;
        let after = meters(&node).await.exports[0].clone();
        assert_eq!(after.export.published_seq, after.export.last_seq);
        let io = after.export.io;
        assert_eq!((io.syncs, io.packed_bytes), (1, 11 * BLOCK), "{io:?}");

        drop(device);
        assert_eq!(node.drain("vm").await.dirty_bytes, 0);
        let other = start_with(&sim, sim.host("b"), config(None)).await;
        let device = other.connect("vm").await.expect("open for reading");
        for number in 0..10 {
            let expected = if number % 9 == 0 { 9 } else { 1 };
            let bytes = device.read(number * BLOCK, 128 << 10).await.expect("read");
            assert!(bytes.iter().all(|it| *it == expected), "block {number}");
        }
    });
}

/// More waste than one pass may move: the passes follow each other, also once nobody writes any more.
#[test]
fn waste_of_many_overwrites_is_gone_soon_after_the_last_of_them() {
    const LIVE: u64 = 16 << 20;
    const PIECE: u64 = 128 << 10;
    simulate(506, |sim| async move {
        let mut busy = config(None);
        busy.exports.sync.tidy = Tidy {
            waste_bytes: 1 << 20,
            dead_bytes: 1 << 20,
            upper_entries: 64,
            tail_segments: 2,
            ..Tidy::default()
        };
        let node = start_with(&sim, sim.host("a"), busy).await;
        let device = node.connect("vm").await.expect("created");
        let write = async |at: u64, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).expect("small")];
            node.world.fill_random(&mut bytes);
            let written = device.write(at, Bytes::from(bytes), Fua::No).await;
            written.expect("written");
        };
        for at in (0..LIVE).step_by(128 << 10) {
            write(at, PIECE).await;
        }
        sim.sleep(Duration::from_secs(60)).await;
        for at in (0..LIVE).step_by(8 << 10) {
            write(at, PAGE).await;
        }
        sim.sleep(Duration::from_secs(60)).await;
        // Carries the fold behind which the waste is known.
        write(0, PAGE).await;
        sim.sleep(Duration::from_secs(120)).await;
        let stored = node.get("vm").await.stored_bytes;
        assert!((LIVE..LIVE / 4 * 5).contains(&stored), "{stored} of {LIVE}");
        // And then it is quiet.
        let before = sim.store_stats();
        sim.sleep(Duration::from_secs(600)).await;
        assert_eq!(sim.store_stats(), before);
    });
}

/// Who has little to upload does not wait for all of somebody else's.
#[test]
fn exports_take_turns_at_the_uploads() {
    const BLOCK: u64 = 128 << 10;
    const BLOCKS: u64 = 200;
    simulate(503, |sim| async move {
        let mut narrow = config(None);
        let sync = &mut narrow.exports.sync;
        (
            sync.uploads_max,
            sync.uploads_total_min,
            sync.uploads_total_max,
        ) = (2, 2, 2);
        sync.blocks_per_batch = 1;
        sync.delay = Duration::from_secs(3600);
        let node = Rc::new(start_with(&sim, sim.host("a"), narrow).await);
        let large = node.connect("large").await.expect("created");
        let small = node.connect("small").await.expect("created");
        for block in 0..BLOCKS {
            let bytes = Bytes::from(vec![7; 128 << 10]);
            large
                .write(block * BLOCK, bytes, Fua::No)
                .await
                .expect("written");
        }
        write(&small, 0, 1).await;
        let uploaded = async || {
            let exports = meters(&node).await.exports;
            let found = exports.iter().find(|it| it.export.name == "large");
            found.expect("it is there").export.io.uploaded_segments
        };
        // Writers that wait while the log grows have begun a sync, whatever its delay.
        sim.sleep(Duration::from_secs(60)).await;
        let early = uploaded().await;
        assert!(early < BLOCKS / 2, "most of it is to come: {early}");
        let draining = Rc::clone(&node);
        sim.spawn(async move { drop(draining.drain("large").await) });
        while uploaded().await < early + 4 {
            sim.sleep(Duration::from_millis(10)).await;
        }
        assert!(node.get("small").await.dirty_bytes > 0, "it has to go too");
        assert_eq!(node.drain("small").await.dirty_bytes, 0);
        let meanwhile = uploaded().await - early;
        assert!(meanwhile < 50, "{meanwhile} of {BLOCKS} were before it");
        assert_eq!(node.drain("large").await.dirty_bytes, 0);
    });
}

/// Waits for the end of a collection that an operator asked for.
async fn gc(node: &Node, wanted: GcDocument) -> OperationDocument {
    let asked = node.control.ask(|reply| Request::Gc(wanted, reply)).await;
    let mut operation = asked.expect("begun");
    while operation.state == OperationState::Running {
        node.sim.sleep(Duration::from_millis(100)).await;
        let id = operation.id.clone();
        let asked = node.control.ask(|reply| Request::Operation(id, reply));
        operation = asked.await.expect("known");
    }
    operation
}

#[test]
fn an_operator_sees_what_would_come_back_then_gets_it_back_and_nothing_is_lost() {
    const PAGES: u64 = 200;
    simulate(600, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        for round in 1..=20_u8 {
            for page_no in 0..PAGES {
                write(&device, page_no, round).await;
            }
            node.drain("vm").await;
        }
        let stored = || -> u64 {
            let objects = sim.objects();
            let own = objects.iter().filter(|(key, _)| key.starts_with("nbd/vm/"));
            own.map(|(_, body)| body.len() as u64).sum()
        };
        let keys = sim.keys();
        let wanted = GcDocument {
            export: Some("vm".to_owned()),
            dry_run: true,
            ..GcDocument::default()
        };
        let looked = gc(&node, wanted.clone()).await;
        assert_eq!((looked.state, &looked.error), (OperationState::Done, &None));
        assert_eq!(sim.keys(), keys, "a dry run changes nothing");
        let before = stored();
        let wanted = GcDocument {
            dry_run: false,
            request_id: Some("once".to_owned()),
            ..wanted
        };
        let done = gc(&node, wanted.clone()).await;
        let after = &done.exports[0];
        assert!(
            after.deleted_objects >= 19 && stored() < before / 4,
            "{done:?}"
        );
        let again = gc(&node, wanted).await;
        assert_eq!(again, done, "asked again, it is the same operation");
        // All that are open, and one that is not.
        assert_eq!(gc(&node, GcDocument::default()).await.total, 1);
        let wanted = GcDocument {
            export: Some("nobody".to_owned()),
            ..GcDocument::default()
        };
        let failed = gc(&node, wanted).await;
        assert_eq!(failed.state, OperationState::Failed);
        assert!(failed.error.is_some_and(|why| why.contains("nobody")));
        for page_no in 0..PAGES {
            assert_eq!(stamp(&device, page_no).await, 20);
        }
        // Also for a node that has nothing in its cache.
        drop(device);
        let (name, how) = ("vm".to_owned(), DeleteQuery::default());
        let asked = node.control.ask(|reply| Request::Delete(name, how, reply));
        asked.await.expect("given up");
        let there = start(&sim, "b").await;
        let device = there.connect("vm").await.expect("opened");
        for page_no in 0..PAGES {
            assert_eq!(stamp(&device, page_no).await, 20);
        }
    });
}

#[test]
fn a_reader_of_another_nodes_export_reads_on_while_that_one_gives_space_back() {
    simulate(601, |sim| async move {
        let owner = start(&sim, "a").await;
        let device = owner.connect("vm").await.expect("created");
        for page_no in 0..100 {
            write(&device, page_no, 1).await;
        }
        owner.drain("vm").await;
        let there = start(&sim, "b").await;
        let reader = there.connect("vm").await.expect("read-only");
        for round in 2..=20_u8 {
            for page_no in 0..100 {
                write(&device, page_no, round).await;
            }
            owner.drain("vm").await;
        }
        let held = gc(&owner, GcDocument::default()).await;
        assert!(held.exports[0].held_objects > 0, "{held:?}");
        for page_no in 0..100 {
            assert_eq!(stamp(&reader, page_no).await, 1);
        }
        drop(reader);
        sim.sleep(Duration::from_secs(120)).await;
        let free = gc(&owner, GcDocument::default()).await;
        assert_eq!(free.exports[0].held_objects, 0, "{free:?}");
        assert!(free.exports[0].deleted_objects > 0, "{free:?}");
    });
}

#[test]
fn who_reads_a_snapshot_reads_on_when_it_is_deleted() {
    simulate(602, |sim| async move {
        let owner = start(&sim, "a").await;
        let device = owner.connect("vm").await.expect("created");
        for page_no in 0..100 {
            write(&device, page_no, 1).await;
        }
        owner.snapshot("vm", "s").await;
        let there = start(&sim, "b").await;
        let reader = there.connect("vm@s").await.expect("a snapshot");
        let again = there.connect("vm@s").await.expect("shared");
        owner.delete_snapshot("vm", "s").await.expect("deleted");
        for round in 2..=20_u8 {
            for page_no in 0..100 {
                write(&device, page_no, round).await;
            }
            owner.drain("vm").await;
        }
        let held = gc(&owner, GcDocument::default()).await;
        assert!(held.exports[0].held_objects > 0, "{held:?}");
        there.connect("vm@s").await.expect_err("deleted");
        drop(again);
        for page_no in 0..100 {
            assert_eq!(stamp(&reader, page_no).await, 1);
        }
        drop(reader);
        sim.sleep(Duration::from_secs(120)).await;
        let free = gc(&owner, GcDocument::default()).await;
        assert_eq!(free.exports[0].held_objects, 0, "{free:?}");
    });
}

async fn purge(
    node: &Node,
    name: &str,
    request_id: Option<&str>,
) -> Result<OperationDocument, ControlError> {
    let how = DeleteQuery {
        request_id: request_id.map(str::to_owned),
        ..DeleteQuery::default()
    };
    purge_as(node, name, how).await
}

async fn purge_as(
    node: &Node,
    name: &str,
    how: DeleteQuery,
) -> Result<OperationDocument, ControlError> {
    let (name, how) = (name.to_owned(), DeleteQuery { purge: true, ..how });
    let asked = node.control.ask(|reply| Request::Purge(name, how, reply));
    let mut operation = asked.await?;
    while operation.state == OperationState::Running {
        node.sim.sleep(Duration::from_millis(10)).await;
        let id = operation.id.clone();
        let asked = node.control.ask(|reply| Request::Operation(id, reply));
        operation = asked.await?;
    }
    Ok(operation)
}

#[test]
fn a_purged_export_is_gone_everywhere_and_its_forks_stay() {
    simulate(603, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        for page_no in 0..20 {
            write(&device, page_no, 1).await;
        }
        node.fork("vm", "job").await;
        let refused = purge(&node, "vm", None).await.expect_err("a client");
        assert_eq!(refused.kind, ControlErrorKind::Conflict);
        drop(device);
        sim.sleep(Duration::from_secs(1)).await;
        let held = purge(&node, "vm", Some("r")).await.expect("purged");
        assert_eq!(held.error, None);
        let note = held.exports[0].note.clone().expect("it is held");
        assert!(note.contains("forks of it: job"), "{note}");
        // Also where exports are created on connect.
        let there = start(&sim, "b").await;
        for node in [&node, &there] {
            let gone = node.connect("vm").await.expect_err("deleted");
            assert!(gone.to_string().contains("was deleted"), "{gone}");
        }
        let taken = there.put("vm", 1.0).await.expect_err("its fork needs it");
        assert_eq!(taken.kind, ControlErrorKind::Conflict);
        let job = there.connect("job").await.expect("whole");
        for page_no in 0..20 {
            assert_eq!(stamp(&job, page_no).await, 1);
        }
        let elsewhere = purge(&node, "job", None).await.expect_err("open there");
        assert!(elsewhere.message.contains("promote it here"), "{elsewhere}");
        drop(job);
        sim.sleep(Duration::from_secs(1)).await;
        let done = purge(&there, "job", None).await.expect("purged");
        let names: Vec<&str> = done.exports.iter().map(|it| it.export.as_str()).collect();
        assert_eq!(names, ["job", "vm"]);
        assert!(done.exports[1].deleted_objects > 0, "{done:?}");
        let left: Vec<String> = sim.keys();
        let left = left.iter().filter(|key| key.starts_with("nbd/"));
        assert_eq!(left.collect::<Vec<_>>(), ["nbd/job/root", "nbd/vm/root"]);

        there.put("vm", 1.0).await.expect("the name is free");
        let again = there.connect("vm").await.expect("new");
        assert_eq!(stamp(&again, 0).await, 0);
        // Its cache knew another one of the name.
        there.fork("vm", "job").await;
        let job = there.connect("job").await.expect("a new one");
        assert_eq!(stamp(&job, 0).await, 0);
        // The same request does not delete what has the name by now.
        let same = purge(&node, "vm", Some("r")).await.expect("known");
        assert_eq!(same.id, held.id);
        assert_eq!(stamp(&again, 1).await, 0);
    });
}

/// Of this volume, whether its unpublished writes may go.
fn of_volume(volume: &str, accept_loss: bool) -> DeleteQuery {
    DeleteQuery {
        volume: Some(volume.to_owned()),
        accept_loss,
        ..DeleteQuery::default()
    }
}

/// A node that was away while its volume was taken over, purged, and its name given to another one.
#[test]
fn what_only_this_cache_holds_of_a_purged_volume_goes_when_somebody_says_so() {
    for (comes_again, seed) in [(false, 604), (true, 605)] {
        simulate(seed, |sim| async move {
            let host = sim.host("a");
            let a = start_with(&sim, host, config(None)).await;
            let b = start(&sim, "b").await;
            let device = a.connect("vm").await.expect("created");
            write(&device, 1, 1).await;
            let old = a.drain("vm").await.volume;
            sim.set_store_outage(Some(host), true);
            write(&device, 2, 2).await;
            drop(device);
            b.force("vm").await;
            purge(&b, "vm", None).await.expect("purged");
            if comes_again {
                b.put("vm", 1.0).await.expect("the name is free");
            }
            a.kill();
            sim.set_store_outage(Some(host), false);
            let a = start_with(&sim, host, config(None)).await;
            let refused = purge(&a, "vm", None).await.expect_err("it would be lost");
            assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
            assert!(refused.message.contains(&old), "{refused}");
            assert_eq!(refused.export.expect("the numbers").dirty_bytes, 4096);
            if comes_again {
                let other = purge_as(&a, "vm", of_volume(&old, true)).await;
                let other = other.expect_err("the name is another's");
                assert_eq!(other.kind, ControlErrorKind::Conflict, "{other}");
                let elsewhere = purge_as(&a, "vm", of_volume(&b.get("vm").await.volume, true));
                let elsewhere = elsewhere.await.expect_err("open there");
                assert!(elsewhere.message.contains("promote it here"), "{elsewhere}");
                assert_eq!(b.get("vm").await.role, "read-write");
            } else {
                let purged = purge_as(&a, "vm", of_volume(&old, true)).await;
                assert_eq!(purged.expect("purged before").error, None);
            }
            assert!(a.salvage().await.is_empty(), "it was given up");
            let document = a.get("vm").await;
            assert_eq!(
                document.role,
                if comes_again { "closed" } else { "deleted" }
            );
            assert_eq!(document.dirty_bytes, 0);
        });
    }
}

/// Nothing of it is lost, so nobody has to say so.
#[test]
fn an_export_that_was_purged_elsewhere_is_dropped_here() {
    simulate(606, |sim| async move {
        let host = sim.host("a");
        let a = start_with(&sim, host, config(None)).await;
        let b = start(&sim, "b").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        // Until the log says so too.
        write(&device, 1, 2).await;
        a.drain("vm").await;
        device.flush().await.expect("flushed");
        sim.set_store_outage(Some(host), true);
        a.kill();
        b.force("vm").await;
        purge(&b, "vm", None).await.expect("purged");
        sim.set_store_outage(Some(host), false);
        let a = start_with(&sim, host, config(None)).await;
        for _ in 0..2 {
            let name = "vm".to_owned();
            let request = |reply| Request::Delete(name, DeleteQuery::default(), reply);
            let dropped = a.control.ask(request).await.expect("dropped");
            assert_eq!(dropped.role, "deleted");
        }
        let again = purge(&a, "vm", None).await.expect("nothing is left to do");
        assert_eq!(again.error, None);
    });
}

/// Also where it took the place of a purged one, and has been opened and written since.
#[test]
fn a_fork_that_is_asked_for_again_is_the_same_while_it_is_open() {
    simulate(607, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        let wanted = |request: &str| MakeForkDocument {
            name: "job".to_owned(),
            request_id: Some(request.to_owned()),
            ..MakeForkDocument::default()
        };
        let fork = async |request: &str| {
            let wanted = wanted(request);
            let request = |reply| Request::Fork("vm".to_owned(), wanted, reply);
            node.control.ask(request).await
        };
        for request in ["one", "two"] {
            let made = fork(request).await.expect("forked");
            let job = node.connect("job").await.expect("opens");
            write(&job, 2, 7).await;
            assert_eq!(fork(request).await.expect("the same").name, made.name);
            let other = fork("other").await.expect_err("it is taken");
            assert_eq!(other.kind, ControlErrorKind::Conflict, "{other}");
            assert_eq!(stamp(&job, 2).await, 7);
            drop(job);
            sim.sleep(Duration::from_secs(1)).await;
            purge(&node, "job", None).await.expect("purged");
        }
    });
}

#[test]
fn a_purge_that_failed_is_tried_again_by_the_same_request() {
    simulate(608, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        let busy = purge(&node, "vm", Some("r")).await.expect_err("a client");
        assert_eq!(busy.kind, ControlErrorKind::Conflict);
        drop(device);
        sim.sleep(Duration::from_secs(1)).await;
        let done = purge(&node, "vm", Some("r")).await.expect("purged");
        assert_eq!((done.state, done.error), (OperationState::Done, None));
    });
}

impl Node {
    async fn prepare(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let wanted = PrepareDocument::default();
        self.ask(name, |name, reply| Request::Prepare(name, wanted, reply))
            .await
    }

    /// After a drain elsewhere, whose answer this is.
    async fn promote_drained(
        &self,
        drained: &ExportDocument,
    ) -> Result<ExportDocument, ControlError> {
        let how = PromoteDocument {
            force: true,
            expected_epoch: Some(drained.epoch),
            min_seq: Some(drained.published_seq),
            ..PromoteDocument::default()
        };
        self.ask(&drained.name, |name, reply| {
            Request::Promote(name, how, reply)
        })
        .await
    }
}

/// Storage's half of a live migration, as QEMU goes about it: the other end connects and reads block 0 before it is
/// promoted, and the old end is flushed after it.
#[test]
fn a_prepared_export_is_writable_and_its_writes_wait_for_the_promotion() {
    simulate(609, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let source = a.connect("vm").await.expect("created");
        write(&source, 0, 1).await;
        write(&source, 1, 1).await;
        a.drain("vm").await;
        let prepared = b.prepare("vm").await.expect("prepared");
        assert_eq!(prepared.role, "prepared");
        let target = Rc::new(b.connect("vm").await.expect("connects"));
        assert_eq!(target.access(), Access::ReadWrite);
        assert_eq!(stamp(&target, 0).await, 1);
        target
            .flush()
            .await
            .expect("nothing was written through it");
        let (waiting, landed) = (Rc::clone(&target), Rc::new(Cell::new(false)));
        let tell = Rc::clone(&landed);
        sim.spawn(async move {
            write(&waiting, 2, 9).await;
            tell.set(true);
        });
        // The guest goes on at the source meanwhile; the other end moves on when it is asked to.
        write(&source, 1, 2).await;
        let middle = a.drain("vm").await;
        assert_eq!(stamp(&target, 1).await, 1);
        let again = b.prepare("vm").await.expect("prepared again");
        assert_eq!(again.published_seq, middle.published_seq);
        assert_eq!(stamp(&target, 1).await, 2);
        write(&source, 1, 3).await;
        // Without force: it has an owner. It stays prepared.
        let how = PromoteDocument::default();
        let request = |reply| Request::Promote("vm".to_owned(), how, reply);
        let owned = b.control.ask(request).await.expect_err("it has an owner");
        assert_eq!(owned.kind, ControlErrorKind::Conflict);
        assert_eq!(b.get("vm").await.role, "prepared");
        // The guest is paused: the last drain, and the promotion.
        let drained = a.drain("vm").await;
        sim.sleep(Duration::from_secs(5)).await;
        assert!(!landed.get(), "it waits");
        let promoted = b.promote_drained(&drained).await.expect("promoted");
        assert_eq!(
            (promoted.role.as_str(), promoted.clients),
            ("read-write", 1)
        );
        sim.sleep(Duration::from_millis(100)).await;
        assert!(landed.get(), "it goes on");
        assert_eq!(stamp(&target, 1).await, 3);
        assert_eq!(stamp(&target, 2).await, 9);
        source.flush().await.expect("all of it is in the store");
        // Again, as after a lost answer: the same.
        let again = b.promote_drained(&drained).await.expect("it is");
        assert_eq!(again.epoch, promoted.epoch);
        assert_eq!(
            b.prepare("vm").await.expect("it is more").role,
            "read-write"
        );
        // A guest that goes on there all the same harms itself alone.
        let stray = source.write(0, page(7), Fua::No).await;
        assert!(matches!(stray, Ok(()) | Err(IoError::Shutdown)));
        drop(source);
        sim.sleep(Duration::from_secs(120)).await;
        assert_eq!(a.get("vm").await.role, "closed");
        drop(target);
        sim.sleep(Duration::from_secs(120)).await;
        let heir = start(&sim, "c")
            .await
            .connect("vm")
            .await
            .expect("detached");
        assert_eq!((stamp(&heir, 0).await, stamp(&heir, 2).await), (1, 9));
    });
}

#[test]
fn a_migration_that_is_given_up_leaves_the_source_alone() {
    simulate(610, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let source = a.connect("vm").await.expect("created");
        write(&source, 0, 1).await;
        a.drain("vm").await;
        b.prepare("vm").await.expect("prepared");
        let target = Rc::new(b.connect("vm").await.expect("connects"));
        let busy = {
            let request = |reply| Request::Delete("vm".to_owned(), DeleteQuery::default(), reply);
            b.control.ask(request).await
        };
        assert_eq!(busy.expect_err("a client").kind, ControlErrorKind::Conflict);
        drop(target);
        let request = |reply| Request::Delete("vm".to_owned(), DeleteQuery::default(), reply);
        b.control.ask(request).await.expect("let go");
        write(&source, 0, 2).await;
        a.drain("vm").await;
        assert_eq!(a.get("vm").await.role, "read-write");
        // Who connects now reads what is there now, and never writes.
        let reader = b.connect("vm").await.expect("connects");
        assert_eq!(
            (reader.access(), stamp(&reader, 0).await),
            (Access::ReadOnly, 2)
        );
        drop(reader);
        // Nobody ever comes to one that was prepared: its pin goes.
        b.prepare("vm").await.expect("prepared");
        sim.sleep(Duration::from_secs(700)).await;
        let pins = sim.keys().into_iter();
        let pins: Vec<String> = pins.filter(|key| key.contains("/pins/")).collect();
        assert_eq!(pins, Vec::<String>::new());
        assert_eq!(b.get("vm").await.role, "closed");
    });
}

/// What becomes of a read while the store is down for so long; the export is opened first.
async fn read_in_an_outage(sim: &Sim, down: Duration, read_wait: Duration) -> (u8, Duration) {
    let a = start(sim, "a").await;
    let device = a.connect("vm").await.expect("created");
    write(&device, 1, 11).await;
    a.drain("vm").await;
    let mut patient = config(None);
    patient.exports.read_wait = read_wait;
    let b = start_with(sim, sim.host("b"), patient).await;
    let reader = b.connect("vm").await.expect("read-only");
    sim.set_store_outage(None, true);
    let healer = sim.clone();
    sim.spawn(async move {
        healer.sleep(down).await;
        healer.set_store_outage(None, false);
    });
    let began = b.world.now();
    let read = reader.read(PAGE, PAGE).await;
    let took = b.world.now() - began;
    (read.map_or(0, |bytes| bytes[0]), took)
}

#[test]
fn reads_bear_an_outage_of_ten_minutes_and_end_after_the_time_that_is_set() {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    simulate(900, |sim| async move {
        let wait = ShardConfig::new(CacheConfig::new("/", 1 << 30), config(None).bucket, "x");
        let wait = wait.exports.read_wait;
        let (stamp, took) = read_in_an_outage(&sim, minutes(10), wait).await;
        assert_eq!(stamp, 11);
        assert!(took >= minutes(10) && took < minutes(11), "{took:?}");
    });
    simulate(901, |sim| async move {
        let (stamp, took) = read_in_an_outage(&sim, minutes(10), minutes(2)).await;
        assert_eq!(stamp, 0, "an error");
        assert!(took >= minutes(2) && took < minutes(3), "{took:?}");
    });
}

/// The password was changed elsewhere, the node restarts with the old one while it cannot ask.
#[test]
fn a_guest_outlives_a_password_that_was_changed_in_an_outage() {
    simulate(902, |sim| async move {
        let a = start_with(&sim, sim.host("a"), config(Some("right"))).await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 1).await;
        a.drain("vm").await;
        write(&device, 2, 2).await;
        a.kill();
        sim.set_store_outage(None, true);
        let a = start_with(&sim, sim.host("a"), config(Some("wrong"))).await;
        let device = a.connect("vm").await.expect("the log holds the epoch");
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(600)).await;
        assert_eq!(stamp(&device, 2).await, 2);
        write(&device, 3, 3).await;
        assert_eq!(device.flush().await, Ok(()));
        let told = a.get("vm").await;
        assert_eq!(told.role, "read-write");
        a.kill();
        let a = start_with(&sim, sim.host("a"), config(Some("right"))).await;
        let device = a.connect("vm").await.expect("goes on");
        assert_eq!(a.drain("vm").await.dirty_bytes, 0);
        assert_eq!((stamp(&device, 2).await, stamp(&device, 3).await), (2, 3));
    });
}

/// A metric of the role alone would be over with the last client, and the writes forgotten.
#[test]
fn what_a_fenced_log_holds_is_counted_after_its_clients_have_left() {
    simulate(903, |sim| async move {
        let a = fenced(&sim, sim.host("a")).await;
        sim.sleep(Duration::from_secs(3600)).await;
        let meters = meters(&a).await;
        let rows = meters.exports.iter().filter(|it| it.export.name == "vm");
        let found: Vec<_> = rows.map(|it| (it.salvage_bytes, it.sync_lag_ms)).collect();
        let [one] = a.salvage().await.try_into().expect("one");
        let SalvageDocument { dirty_bytes, .. } = one;
        assert!(dirty_bytes > 0);
        assert_eq!(found, [(dirty_bytes, 0)]);
    });
}

#[test]
fn a_fork_that_was_made_flat_lives_on_where_its_parent_is_purged() {
    simulate(904, |sim| async move {
        let node = start(&sim, "a").await;
        let device = node.connect("vm").await.expect("created");
        for page_no in 0..100 {
            write(&device, page_no, 1).await;
        }
        node.fork("vm", "job").await;
        let child = node.connect("job").await.expect("taken");
        write(&child, 7, 2).await;
        let wanted = GcDocument {
            export: Some("job".to_owned()),
            flatten: true,
            ..GcDocument::default()
        };
        let asked = node.control.ask(|reply| {
            let export = None;
            Request::Gc(
                GcDocument {
                    export,
                    ..wanted.clone()
                },
                reply,
            )
        });
        assert_eq!(
            asked.await.expect_err("of which?").kind,
            ControlErrorKind::Invalid
        );
        let done = gc(&node, wanted.clone()).await;
        let [one] = &done.exports[..] else {
            panic!("{done:?}")
        };
        assert_eq!((&done.error, &one.note), (&None, &None));
        assert!(one.flattened_bytes > 0, "{one:?}");
        assert_eq!(gc(&node, wanted).await.exports[0].flattened_bytes, 0);
        drop(device);
        // The server may not have seen yet that the last client is gone.
        sim.sleep(Duration::from_secs(1)).await;
        let purged = purge(&node, "vm", None).await.expect("purged");
        assert_eq!(purged.error, None);
        let keys = sim.keys();
        let left: Vec<_> = keys.iter().filter(|it| it.starts_with("nbd/vm/")).collect();
        assert_eq!(left, ["nbd/vm/root"]);
        node.drain("job").await;
        let b = start(&sim, "b").await;
        let reader = b.connect("job").await.expect("read-only");
        assert_eq!((stamp(&reader, 6).await, stamp(&reader, 7).await), (1, 2));
    });
}

/// SIGTERM while a read waits for a store that is down, and nothing is to be drained.
#[test]
fn a_server_that_ends_does_not_wait_for_reads_that_wait_for_the_store() {
    simulate(905, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await.expect("created");
        write(&device, 1, 11).await;
        a.drain("vm").await;
        let b = start(&sim, "b").await;
        let reader = Rc::new(b.connect("vm").await.expect("read-only"));
        sim.set_store_outage(None, true);
        let (ended, device) = (Rc::new(Cell::new(None)), Rc::clone(&reader));
        let told = Rc::clone(&ended);
        sim.spawn(async move { told.set(Some(device.read(PAGE, PAGE).await)) });
        sim.sleep(Duration::from_secs(60)).await;
        assert!(ended.take().is_none(), "it waits");
        b.shard.shutdown(Drain::Everything).await;
        sim.sleep(Duration::from_secs(30)).await;
        assert_eq!(ended.take(), Some(Err(IoError::Shutdown)));
    });
}
