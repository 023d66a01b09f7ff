//! Exports that are prepared for a promotion to come, and what a node answers that has lost a volume, or holds a copy of
//! somebody's log, and does not know it. In the simulated world: the real shard, simulated disks, store and clocks.

#[path = "driver/node.rs"]
mod node;

use std::time::Duration;

use bytes::Bytes;
use glidefs::control::{
    ControlError, ControlErrorKind, DeleteQuery, ExportDocument, OperationDocument,
    PrepareDocument, PromoteDocument, Request, WarmDocument, WarmState,
};
use glidefs::device::{Access, BlockDevice, Fua, IoError};
use glidefs::shard::ShardConfig;
use world::sim::{HostId, Sim, StoreStats};

use node::{Device, Node, PAGE, VM, simulate};

const VOLUME_BYTES: u64 = 64 << 20;
/// Of one frame.
const RUN: u64 = 32;
const NAME: &str = "vm";

/// The map is folded early, so that what was written last is not all that the root names.
fn config(host: &str) -> ShardConfig {
    let mut config = node::config(host, Some("x"), VOLUME_BYTES);
    config.exports.sync.tidy.tail_segments = 2;
    config
}

async fn start(sim: &Sim, host: &str) -> Node {
    start_on(sim, sim.host(host)).await
}

async fn start_on(sim: &Sim, host: HostId) -> Node {
    let node = Node::open(sim, host, config(&sim.host_name(host))).await;
    node.expect("the shard opens")
}

impl Node {
    async fn connect(&self) -> Device {
        self.connect_as(NAME, &VM).await.expect("connects")
    }

    async fn get(&self) -> ExportDocument {
        self.ask(NAME, Request::Get).await.expect("known")
    }

    async fn drain(&self) -> ExportDocument {
        self.ask(NAME, Request::Drain).await.expect("drained")
    }

    async fn prepare(&self, warm_bytes: Option<u64>) -> Result<ExportDocument, ControlError> {
        let wanted = PrepareDocument { warm_bytes };
        self.ask(NAME, |name, reply| Request::Prepare(name, wanted, reply))
            .await
    }

    async fn promote(&self, how: PromoteDocument) -> Result<ExportDocument, ControlError> {
        self.ask(NAME, |name, reply| Request::Promote(name, how, reply))
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
        self.promote(how).await
    }

    async fn delete(&self, accept_loss: bool) -> Result<ExportDocument, ControlError> {
        let how = DeleteQuery {
            accept_loss,
            ..DeleteQuery::default()
        };
        self.ask(NAME, |name, reply| Request::Delete(name, how, reply))
            .await
    }

    async fn purge(&self, accept_loss: bool) -> Result<OperationDocument, ControlError> {
        let how = DeleteQuery {
            accept_loss,
            purge: true,
            ..DeleteQuery::default()
        };
        self.ask(NAME, |name, reply| Request::Purge(name, how, reply))
            .await
    }

    /// How warm it is once nothing more comes.
    async fn warmed(&self) -> (WarmDocument, u64) {
        for _ in 0..10_000 {
            let export = self.get().await;
            let warm = export.warm.expect("it is prepared");
            if warm.state != WarmState::Running {
                return (warm, export.io.warmed_bytes);
            }
            self.sim.sleep(Duration::from_millis(10)).await;
        }
        panic!("it warms up for ever");
    }
}

/// Pages that do not compress, and that say which they are.
fn pages(first: u64, count: u64, version: u64) -> Bytes {
    let mut bytes = Vec::new();
    for page_no in first..first + count {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&page_no.to_le_bytes());
        hasher.update(&version.to_le_bytes());
        let mut page = [0; 4096];
        hasher.finalize_xof().fill(&mut page);
        bytes.extend_from_slice(&page);
    }
    bytes.into()
}

/// Whole frames.
async fn write_runs(device: &Device, first: u64, runs: u64, version: u64) {
    for run in 0..runs {
        let page_no = first + run * RUN;
        let data = pages(page_no, RUN, version);
        let written = device.write(page_no * PAGE, data, Fua::No).await;
        written.expect("written");
    }
}

async fn write(device: &Device, page_no: u64, version: u64) {
    let data = pages(page_no, 1, version);
    let written = device.write(page_no * PAGE, data, Fua::No).await;
    written.expect("written");
}

async fn holds(device: &Device, page_no: u64, version: u64) -> bool {
    let bytes = device.read(page_no * PAGE, PAGE).await.expect("read");
    bytes == pages(page_no, 1, version)
}

#[test]
fn preparing_brings_what_was_written_last_and_no_more_than_was_asked_for() {
    simulate(1, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let source = a.connect().await;
        write_runs(&source, 0, 32, 1).await;
        a.drain().await;
        write_runs(&source, 2048, 2, 1).await;
        a.drain().await;
        // Two frames, each behind a page that says what it is; a third has no room.
        let wanted = 2 * (RUN + 1) * PAGE + PAGE;
        let prepared = b.prepare(Some(wanted)).await.expect("prepared");
        assert_eq!(prepared.role, "prepared");
        assert_eq!(prepared.warm.expect("it warms up").bytes_max, wanted);
        let (warm, warmed_bytes) = b.warmed().await;
        assert_eq!((warm.state, warm.note), (WarmState::Done, None));
        assert_eq!(warm.bytes, 2 * (RUN + 1) * PAGE);
        assert_eq!(warmed_bytes, 2 * RUN * PAGE);
        let target = b.connect().await;
        sim.set_store_outage(Some(sim.host("b")), true);
        for page_no in 2048..2048 + 2 * RUN {
            assert!(holds(&target, page_no, 1).await, "page {page_no}");
        }
        sim.set_store_outage(Some(sim.host("b")), false);
        assert!(holds(&target, 5, 1).await, "it is fetched when it is read");
        // Nothing of it, if somebody wants that.
        let cold = start(&sim, "c").await;
        cold.prepare(Some(0)).await.expect("prepared");
        let (warm, warmed_bytes) = cold.warmed().await;
        assert_eq!((warm.bytes_max, warm.bytes, warmed_bytes), (0, 0, 0));
    });
}

/// From the root's own segments down to the leaves of the map; what newer writes hide is left out.
#[test]
fn all_that_is_live_is_warm_once_and_again_only_what_is_new() {
    simulate(2, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let source = a.connect().await;
        let mut version_of = [0_u64; 16];
        for round in 1..=24_u64 {
            // Each run is written once, and half of them twice.
            let run = round * 5 % 16;
            write_runs(&source, run * RUN, 1, round).await;
            version_of[usize::try_from(run).expect("small")] = round;
            a.drain().await;
            // What was done to the map meanwhile goes with the next one.
            sim.sleep(Duration::from_secs(2)).await;
        }
        let all = 16 * RUN * PAGE;
        b.prepare(None).await.expect("prepared");
        let (warm, warmed_bytes) = b.warmed().await;
        assert_eq!((warm.state, warm.note), (WarmState::Done, None));
        assert_eq!(warmed_bytes, all);
        assert_eq!(warm.bytes, 16 * (RUN + 1) * PAGE);
        b.prepare(None).await.expect("prepared again");
        let (again, warmed_again) = b.warmed().await;
        assert_eq!(
            (again.bytes, warmed_again),
            (warm.bytes, all),
            "it is there"
        );
        write_runs(&source, 3 * RUN, 1, 99).await;
        version_of[3] = 99;
        a.drain().await;
        b.prepare(None).await.expect("prepared again");
        let (_, more) = b.warmed().await;
        assert_eq!(more, all + RUN * PAGE);

        let target = b.connect().await;
        sim.set_store_outage(Some(sim.host("b")), true);
        for (run, version) in (0..).zip(version_of) {
            for page_no in run * RUN..(run + 1) * RUN {
                assert!(holds(&target, page_no, version).await, "page {page_no}");
            }
        }
        sim.set_store_outage(Some(sim.host("b")), false);
        let drained = a.drain().await;
        let promoted = b.promote_drained(&drained).await.expect("promoted");
        assert_eq!(
            (promoted.role.as_str(), promoted.warm),
            ("read-write", None)
        );
        assert_eq!(promoted.io.warmed_bytes, more);
    });
}

#[test]
fn nothing_more_is_fetched_once_it_is_promoted_or_let_go() {
    for (seed, is_promoted) in [(3, false), (4, true)] {
        simulate(seed, |sim| async move {
            let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
            let source = a.connect().await;
            write_runs(&source, 0, 256, 1).await;
            let drained = a.drain().await;
            sim.sleep(Duration::from_secs(20)).await;
            let all = 256 * RUN * PAGE;
            let before = sim.store_stats().bytes_out;
            b.prepare(None).await.expect("prepared");
            if is_promoted {
                b.promote_drained(&drained).await.expect("promoted");
            } else {
                b.delete(false).await.expect("let go");
            }
            // What was on its way.
            sim.sleep(Duration::from_secs(1)).await;
            let then = sim.store_stats();
            assert!(
                then.bytes_out - before < all,
                "it was faster: the test is blind"
            );
            sim.sleep(Duration::from_secs(30)).await;
            // An owner without clients detaches meanwhile, and reads the root for that.
            let later = sim.store_stats().bytes_out;
            assert!(later - then.bytes_out < RUN * PAGE, "{later}");
        });
    }
}

/// The orchestrator may ask again, and need not: a promotion asks the store for all that a preparation would know.
#[test]
fn a_server_that_restarts_before_the_promotion_forgets_the_preparation_and_nothing_else() {
    simulate(5, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let source = a.connect().await;
        write(&source, 1, 1).await;
        a.drain().await;
        b.prepare(None).await.expect("prepared");
        let target = b.connect().await;
        assert_eq!(target.access(), Access::ReadWrite);
        write(&source, 1, 2).await;
        let drained = a.drain().await;
        b.kill();
        let b = start(&sim, "b").await;
        assert_eq!(b.get().await.role, "closed");
        // Who comes back before anybody asked again is told that it must not write.
        let early = b.connect().await;
        assert_eq!(early.access(), Access::ReadOnly);
        let newer = PromoteDocument {
            force: true,
            expected_epoch: Some(drained.epoch),
            min_seq: Some(drained.published_seq + 1),
            ..PromoteDocument::default()
        };
        let refused = b.promote(newer).await.expect_err("it is older than that");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        let refused = b.promote(PromoteDocument::default()).await;
        let refused = refused.expect_err("it has an owner");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        let promoted = b.promote_drained(&drained).await.expect("promoted");
        assert_eq!(promoted.role, "read-write");
        let stray = early.write(0, pages(0, 1, 9), Fua::No).await;
        assert_eq!(stray, Err(IoError::ReadOnly));
        drop(early);
        let guest = b.connect().await;
        assert_eq!(guest.access(), Access::ReadWrite);
        assert!(holds(&guest, 1, 2).await);
        source.flush().await.expect("all of it is in the store");
        // Prepared again instead, it is as if nothing had been forgotten.
        write(&guest, 2, 3).await;
        let drained = b.drain().await;
        let c = start(&sim, "c").await;
        c.prepare(None).await.expect("prepared");
        c.kill();
        let c = start(&sim, "c").await;
        assert_eq!(c.prepare(None).await.expect("prepared").role, "prepared");
        let target = c.connect().await;
        c.promote_drained(&drained).await.expect("promoted");
        assert!(holds(&target, 2, 3).await);
    });
}

/// It believes to own the volume until it publishes, or is asked by somebody to whom it matters.
#[test]
fn a_former_owner_that_has_not_noticed_tells_the_truth_when_it_is_asked_to_prepare() {
    simulate(6, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let guest = a.connect().await;
        write(&guest, 1, 1).await;
        let drained = a.drain().await;
        b.promote_drained(&drained).await.expect("promoted");
        let moved = b.connect().await;
        write(&moved, 1, 2).await;
        let now = b.drain().await;
        assert_eq!((now.role.as_str(), now.epoch), ("read-write", 2));
        assert_eq!(a.get().await.role, "read-write", "nobody has told it");
        // Somebody is connected who was told that it may write.
        let refused = a.prepare(None).await.expect_err("a client");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        for words in ["is fenced", "close them first"] {
            assert!(refused.message.contains(words), "{words}: {refused}");
        }
        assert_eq!(a.get().await.role, "fenced");
        drop(guest);
        let prepared = a.prepare(None).await.expect("prepared");
        assert_eq!((prepared.role.as_str(), prepared.epoch), ("prepared", 2));
        assert_eq!(prepared.published_seq, now.published_seq);
        let back = a.connect().await;
        assert!(holds(&back, 1, 2).await);
        // And back again, over the connection that is there.
        let drained = b.drain().await;
        let promoted = a.promote_drained(&drained).await.expect("promoted");
        assert_eq!((promoted.role.as_str(), promoted.epoch), ("read-write", 3));
        write(&back, 2, 4).await;
        assert!(holds(&back, 1, 2).await && holds(&back, 2, 4).await);
    });
}

#[test]
fn a_former_owner_without_clients_is_prepared_at_once_and_promotes_nothing_unasked() {
    simulate(7, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let guest = a.connect().await;
        write(&guest, 1, 1).await;
        let drained = a.drain().await;
        b.promote_drained(&drained).await.expect("promoted");
        let moved = b.connect().await;
        write(&moved, 1, 2).await;
        b.drain().await;
        drop(guest);
        assert_eq!(a.get().await.role, "read-write", "nobody has told it");
        let refused = a.promote(PromoteDocument::default()).await;
        let refused = refused.expect_err("it has another owner");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert!(refused.message.contains("is owned by b"), "{refused}");
        let prepared = a.prepare(None).await.expect("prepared");
        assert_eq!((prepared.role.as_str(), prepared.epoch), ("prepared", 2));
        let back = a.connect().await;
        assert!(holds(&back, 1, 2).await);
        assert_eq!(b.drain().await.role, "read-write");
    });
}

#[test]
fn an_owner_that_is_asked_to_prepare_reads_the_root_and_writes_nothing() {
    simulate(8, |sim| async move {
        let a = start(&sim, "a").await;
        let guest = a.connect().await;
        write(&guest, 1, 1).await;
        a.drain().await;
        sim.sleep(Duration::from_secs(20)).await;
        let before = sim.store_stats();
        let answer = a.prepare(None).await.expect("it is more");
        assert_eq!((answer.role.as_str(), answer.warm), ("read-write", None));
        let after = sim.store_stats();
        assert_eq!(after.gets - before.gets, 1);
        let writes = |stats: &StoreStats| (stats.creates, stats.replaces);
        assert_eq!(writes(&after), writes(&before));
        // Nobody can tell now.
        sim.set_store_outage(None, true);
        let unclear = a.prepare(None).await.expect_err("an outage");
        assert_eq!(unclear.kind, ControlErrorKind::Unavailable, "{unclear}");
        sim.set_store_outage(None, false);
        write(&guest, 2, 2).await;
        assert_eq!(a.drain().await.epoch, answer.epoch, "and it goes on");
        assert_eq!(a.prepare(None).await.expect("again").role, "read-write");
    });
}

/// A guest whose connection broke comes back to its export, whatever an operator is waiting for.
#[test]
fn nobody_waits_at_the_door_behind_an_owner_that_asks_the_store() {
    simulate(11, |sim| async move {
        let a = start(&sim, "a").await;
        let guest = a.connect().await;
        write(&guest, 1, 1).await;
        a.drain().await;
        drop(guest);
        sim.set_store_outage(None, true);
        let comes_back = async {
            sim.sleep(Duration::from_millis(10)).await;
            let before = sim.now();
            let back = a.connect().await;
            assert_eq!(back.access(), Access::ReadWrite);
            assert!(holds(&back, 1, 1).await);
            sim.now().since(before)
        };
        let began = sim.now();
        let (unclear, waited) = futures_util::future::join(a.prepare(None), comes_back).await;
        unclear.expect_err("an outage");
        let asked = sim.now().since(began);
        assert!(
            waited < Duration::from_millis(100),
            "{waited:?} of {asked:?}"
        );
        assert!(
            asked > Duration::from_millis(200),
            "the test is blind: {asked:?}"
        );
    });
}

/// A node whose cache folder was copied from another one's, so that the root's owner has its own id.
#[test]
fn a_copy_of_a_cache_folder_gives_nothing_up_that_its_original_has() {
    simulate(9, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect().await;
        write(&device, 1, 1).await;
        a.drain().await;
        drop(device);
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(a.get().await.role, "closed");
        let image = sim.save_disk(sim.host("a"));
        let device = a.connect().await;
        write(&device, 2, 2).await;
        let owned = a.drain().await;
        assert_eq!((owned.role.as_str(), owned.epoch), ("read-write", 2));

        let host = sim.host("c");
        sim.restore_disk(host, &image);
        let copy = start_on(&sim, host).await;
        for refused in [
            copy.delete(false).await.expect_err("another log has it"),
            copy.purge(false).await.expect_err("another log has it"),
        ] {
            assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
            for words in ["epoch 2", "by a (cache ", "promote it here first"] {
                assert!(refused.message.contains(words), "{words}: {refused}");
            }
            let told = refused.export.expect("the numbers");
            assert_eq!((told.epoch, &told.owner), (2, &owned.owner));
        }
        // What is only here may go.
        copy.delete(true).await.expect("dropped here");
        let open = copy.purge(true).await.expect_err("it is open");
        assert_eq!(open.kind, ControlErrorKind::Conflict, "{open}");
        write(&device, 3, 3).await;
        let after = a.drain().await;
        assert_eq!((after.role.as_str(), after.epoch), ("read-write", 2));
        assert_eq!(after.volume, owned.volume);
        // The log that has it gives it up as ever, also behind a kill.
        a.kill();
        drop(device);
        let a = start(&sim, "a").await;
        assert_eq!(a.delete(false).await.expect("given up").role, "closed");
        let heir = start(&sim, "d").await.connect().await;
        assert_eq!(heir.access(), Access::ReadWrite);
        assert!(holds(&heir, 3, 3).await);
    });
}

/// What only this log holds goes if somebody says so, and also while another node has the volume.
#[test]
fn unpublished_writes_of_a_former_owner_are_not_dropped_unasked_while_the_new_one_is_there() {
    simulate(10, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let guest = a.connect().await;
        write(&guest, 1, 1).await;
        let drained = a.drain().await;
        sim.set_store_outage(Some(sim.host("a")), true);
        write(&guest, 1, 2).await;
        b.promote_drained(&drained).await.expect("promoted");
        let moved = b.connect().await;
        a.kill();
        drop(guest);
        sim.set_store_outage(Some(sim.host("a")), false);
        let a = start(&sim, "a").await;
        let refused = a.delete(false).await.expect_err("it would be lost");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert!(refused.message.contains("?accept_loss=true"), "{refused}");
        assert!(refused.export.expect("the numbers").dirty_bytes > 0);
        a.delete(true).await.expect("the loss is accepted");
        assert_eq!(a.get().await.dirty_bytes, 0);
        assert_eq!(b.drain().await.role, "read-write");
        assert!(holds(&moved, 1, 1).await);
    });
}
