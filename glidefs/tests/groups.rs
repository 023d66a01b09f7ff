//! Groups of exports in the simulated world: opened, taken, given up, read, prepared and restored together or not at all
//! (rule 30). The real shard, simulated disks, store and clocks.

#[path = "driver/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use glidefs::control::{
    AcceptLossDocument, ControlError, ControlErrorKind, DeleteQuery, EndGroupQuery, ExportDocument,
    ForkDocument, ForkGroupDocument, ForkWait, FormGroupDocument, GroupDocument, GroupRequest,
    GroupSnapshotDocument, MakeForkDocument, OperationDocument, OperationState, PrepareDocument,
    PromoteDocument, Reply, Request, RestoreDocument, TakeSnapshotDocument,
};
use glidefs::device::{Access, BlockDevice, ConnectError, Exports, Fua, IoError};
use glidefs::shard::Drain;
use world::World;
use world::sim::{Corruption, Crash, DiskFaults, Odds, Sim};

use node::{Device, Node, PAGE, VM, config, simulate};

const VOLUME_BYTES: u64 = 64 << 20;
const DB: &str = "db";
const LOG: &str = "db-log";
const DATA: &str = "db-data";
/// From the end of the last connection to the end of a detach.
const GONE: Duration = Duration::from_secs(60);

async fn start(sim: &Sim, host: &str) -> Node {
    let config = config(host, None, VOLUME_BYTES);
    let node = Node::open(sim, sim.host(host), config).await;
    node.expect("the shard opens")
}

impl Node {
    async fn try_connect(&self, name: &str) -> Result<Device, ConnectError> {
        self.connect_as(name, &VM).await
    }

    async fn connect(&self, name: &str) -> Device {
        self.try_connect(name).await.expect("connects")
    }

    async fn get(&self, name: &str) -> ExportDocument {
        self.ask(name, Request::Get).await.expect("known")
    }

    async fn drain(&self, name: &str) -> ExportDocument {
        self.ask(name, Request::Drain).await.expect("drained")
    }

    async fn promote(
        &self,
        name: &str,
        expected_epoch: u64,
    ) -> Result<ExportDocument, ControlError> {
        let how = PromoteDocument {
            force: true,
            expected_epoch: Some(expected_epoch),
            ..PromoteDocument::default()
        };
        self.ask(name, |name, reply| Request::Promote(name, how, reply))
            .await
    }

    async fn delete(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let how = DeleteQuery::default();
        self.ask(name, |name, reply| Request::Delete(name, how, reply))
            .await
    }

    async fn group<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> GroupRequest,
    ) -> Result<T, ControlError> {
        let asked = self.control.ask(|reply| Request::Group(request(reply)));
        asked.await
    }

    /// How an operation ended.
    async fn done(&self, begun: OperationDocument) -> OperationDocument {
        for _ in 0..10_000 {
            let id = begun.id.clone();
            let request = |reply| Request::Operation(id, reply);
            let now = self.control.ask(request).await.expect("known");
            if now.state != OperationState::Running {
                return now;
            }
            self.sim.sleep(Duration::from_millis(50)).await;
        }
        panic!("{} never ends", begun.id);
    }

    async fn form(&self, request_id: &str) -> Result<OperationDocument, ControlError> {
        let wanted = FormGroupDocument {
            name: DB.to_owned(),
            members: vec![LOG.to_owned(), DATA.to_owned()],
            request_id: Some(request_id.to_owned()),
        };
        let begun = self
            .group(|reply| GroupRequest::Form(wanted, reply))
            .await?;
        Ok(self.done(begun).await)
    }

    async fn fork_live(&self, name: &str, fork: &str) -> Result<ForkDocument, ControlError> {
        let wanted = MakeForkDocument {
            name: fork.to_owned(),
            wait: Some(ForkWait::Local),
            ..MakeForkDocument::default()
        };
        let name = name.to_owned();
        let asked = self.control.ask(|reply| Request::Fork(name, wanted, reply));
        asked.await
    }

    async fn fork_group(&self, group: &str, suffix: &str) -> Result<GroupDocument, ControlError> {
        let members = [LOG, DATA].map(|of| (of.to_owned(), format!("{of}{suffix}")));
        let wanted = ForkGroupDocument {
            name: format!("{DB}{suffix}"),
            members: BTreeMap::from(members),
            snapshot: None,
            request_id: Some("r".to_owned()),
        };
        let group = group.to_owned();
        self.group(|reply| GroupRequest::Fork(group, wanted, reply))
            .await
    }

    async fn end(&self, group: &str) -> OperationDocument {
        let (group, how) = (group.to_owned(), EndGroupQuery::default());
        let begun = self.group(|reply| GroupRequest::End(group, how, reply));
        let begun = begun.await.expect("begun");
        self.done(begun).await
    }

    async fn show(&self, group: &str) -> Result<GroupDocument, ControlError> {
        let group = group.to_owned();
        self.group(|reply| GroupRequest::Get(group, reply)).await
    }

    async fn snapshots(&self, group: &str) -> Vec<GroupSnapshotDocument> {
        let group = group.to_owned();
        let asked = self.group(|reply| GroupRequest::Snapshots(group, reply));
        asked.await.expect("listed")
    }
}

/// Two exports that somebody has used become a group.
async fn make(node: &Node) {
    for name in [LOG, DATA] {
        let device = node.connect(name).await;
        write(&device, 100, 100).await;
    }
    let formed = node.form("make").await.expect("begun");
    assert_eq!(formed.state, OperationState::Done, "{formed:?}");
}

async fn both(node: &Node) -> [Device; 2] {
    [node.connect(LOG).await, node.connect(DATA).await]
}

async fn write(device: &Device, page_no: u64, stamp: u8) {
    let page = Bytes::from(vec![stamp; 4096]);
    let written = device.write(page_no * PAGE, page, Fua::No).await;
    written.expect("written");
}

async fn stamp(device: &Device, page_no: u64) -> u8 {
    let bytes = device.read(page_no * PAGE, PAGE).await.expect("read");
    assert!(bytes.iter().all(|b| *b == bytes[0]), "page {page_no}");
    bytes[0]
}

/// What a database does: a record in its log, and what it tells of once that is answered.
async fn commit([log, data]: &[Device; 2], number: u8) {
    write(log, 1, number).await;
    write(data, 1, number).await;
}

async fn stamps([log, data]: &[Device; 2]) -> (u8, u8) {
    (stamp(log, 1).await, stamp(data, 1).await)
}

#[test]
fn whoever_takes_one_member_has_taken_all_and_whoever_loses_one_has_lost_all() {
    simulate(1, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        // What was written before is there, and one connection opens both.
        let data = a.connect(DATA).await;
        assert_eq!(
            (data.access(), stamp(&data, 100).await),
            (Access::ReadWrite, 100)
        );
        for name in [LOG, DATA] {
            let open = a.get(name).await;
            let group = open.group.expect("a member");
            assert_eq!(
                (open.role.as_str(), group.name.as_str()),
                ("read-write", DB)
            );
        }
        let log = a.connect(LOG).await;
        let disks = [log, data];
        commit(&disks, 1).await;
        a.drain(DATA).await;
        assert_eq!(
            a.get(LOG).await.dirty_bytes,
            0,
            "a drain of one is one of all"
        );
        // Another node reads either of them, and owns neither.
        let read = both(&b).await;
        assert_eq!(read[0].access(), Access::ReadOnly);
        assert_eq!(stamps(&read).await, (1, 1));
        let epochs = [a.get(LOG).await.epoch, a.get(DATA).await.epoch];
        let promoted = b.promote(DATA, epochs[1]).await.expect("promoted");
        assert_eq!(
            (promoted.role.as_str(), promoted.epoch),
            ("read-write", epochs[1] + 1)
        );
        let other = b.get(LOG).await;
        assert_eq!(
            (other.role.as_str(), other.epoch),
            ("read-write", epochs[0] + 1)
        );
        let taken = both(&b).await;
        commit(&taken, 2).await;
        b.drain(LOG).await;
        // What is written to either at the former owner ends both.
        write(&disks[0], 1, 9).await;
        sim.sleep(GONE).await;
        for name in [LOG, DATA] {
            assert_eq!(a.get(name).await.role, "fenced", "{name}");
        }
        assert_eq!(
            disks[1].flush().await,
            Ok(()),
            "all it was told is in the store"
        );
        assert_eq!(disks[0].flush().await, Err(IoError::Shutdown));
        assert_eq!(stamps(&taken).await, (2, 2));
    });
}

#[test]
fn none_is_given_up_while_somebody_is_connected_to_one_of_them() {
    simulate(2, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let [log, data] = both(&a).await;
        write(&log, 1, 1).await;
        write(&data, 1, 1).await;
        drop(data);
        sim.sleep(GONE).await;
        assert_eq!(a.get(DATA).await.role, "read-write", "its log is in use");
        let refused = a.delete(DATA).await.expect_err("the log has a client");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert!(refused.message.contains("`db-log` (1)"), "{refused}");
        let clients: u32 = refused.members.iter().map(|it| it.clients).sum();
        assert_eq!((refused.members.len(), clients), (2, 1));
        assert!(
            a.shard
                .shutdown(Drain::Everything)
                .await
                .contains(&DATA.to_owned())
        );
        a.kill();

        let a = start(&sim, "a").await;
        let log = a.connect(LOG).await;
        assert_eq!(b.connect(DATA).await.access(), Access::ReadOnly);
        drop(log);
        sim.sleep(GONE).await;
        for name in [LOG, DATA] {
            assert_eq!(a.get(name).await.owner, "nobody", "{name}");
        }
        for device in both(&b).await {
            assert_eq!(device.access(), Access::ReadWrite);
        }
    });
}

/// Two halves of a mirror that a reader opens one after the other are of one moment.
#[test]
fn a_reader_sees_all_members_at_one_moment_until_its_last_connection_has_gone() {
    simulate(3, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        a.drain(LOG).await;
        let data = b.connect(DATA).await;
        commit(&disks, 2).await;
        a.drain(LOG).await;
        sim.sleep(GONE).await;
        let log = b.connect(LOG).await;
        let more = b.connect(DATA).await;
        assert_eq!((stamp(&log, 1).await, stamp(&data, 1).await), (1, 1));
        assert_eq!(stamp(&more, 1).await, 1);
        // Who is told what the owner has, and that a promotion needs force, changes nothing for them.
        let how = PromoteDocument::default();
        let refused = b.ask(LOG, |name, reply| Request::Promote(name, how, reply));
        let refused = refused.await.expect_err("it has an owner");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        let again = b.connect(DATA).await;
        assert_eq!(stamp(&again, 1).await, 1);
        drop((log, data, more, again));
        let read = both(&b).await;
        assert_eq!(stamps(&read).await, (2, 2));
    });
}

#[test]
fn a_group_is_made_once_is_named_by_its_members_and_ends_as_plain_exports() {
    simulate(4, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let used = a.connect(LOG).await;
        let refused = a.form("make").await.expect_err("one is not there");
        assert_eq!(refused.kind, ControlErrorKind::NotFound, "{refused}");
        drop(a.connect(DATA).await);
        let refused = a.form("make").await.expect_err("one has a client");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        drop(used);
        let formed = a.form("make").await.expect("begun");
        assert_eq!((formed.state, formed.error), (OperationState::Done, None));
        assert_eq!(formed.done, formed.total);
        let disks = both(&a).await;
        commit(&disks, 1).await;
        // Asked again, anywhere, it is the same, and nobody is disturbed.
        for node in [&a, &b] {
            let again = node.form("make").await.expect("done before");
            assert_eq!(again.state, OperationState::Done, "{again:?}");
        }
        let other = b.form("other").await.expect("the same members");
        assert_eq!(other.state, OperationState::Done);
        let shown = b.show(DB).await.expect("formed");
        let names: Vec<&str> = shown.members.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            (shown.state.as_str(), &names[..]),
            ("formed", &[LOG, DATA][..])
        );
        assert_eq!(b.show(&shown.id).await.expect("by its id").id, shown.id);
        let listed = b.group(|reply| GroupRequest::List(String::new(), reply));
        assert_eq!(listed.await.expect("listed").len(), 1);
        // Neither is deleted for good, nor restored, out of it.
        let how = DeleteQuery {
            purge: true,
            ..DeleteQuery::default()
        };
        drop(disks);
        let purged = a
            .control
            .ask(|reply| Request::Purge(DATA.to_owned(), how, reply));
        let refused = purged.await.expect_err("a member");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        assert!(refused.message.contains("end the group first"), "{refused}");

        let ended = a.end(DB).await;
        assert_eq!((ended.state, ended.error), (OperationState::Done, None));
        let gone = a.show(DB).await.expect_err("it is over");
        assert_eq!(gone.kind, ControlErrorKind::NotFound, "{gone}");
        let data = b.connect(DATA).await;
        assert_eq!(
            (data.access(), stamp(&data, 1).await),
            (Access::ReadWrite, 1)
        );
        assert_eq!(b.get(DATA).await.group, None);
        assert_eq!(
            a.connect(LOG).await.access(),
            Access::ReadWrite,
            "each has its own owner"
        );
    });
}

#[test]
fn a_snapshot_of_a_member_is_one_of_all_at_one_moment() {
    simulate(5, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        // Of one member it is of all.
        let wanted = TakeSnapshotDocument {
            name: Some("first".to_owned()),
            request_id: None,
        };
        let taken = a
            .control
            .ask(|reply| Request::TakeSnapshot(DATA.to_owned(), wanted, reply));
        let taken = taken.await.expect("taken");
        commit(&disks, 2).await;
        let wanted = TakeSnapshotDocument {
            name: Some("second".to_owned()),
            request_id: Some("r".to_owned()),
        };
        for _ in 0..2 {
            let wanted = wanted.clone();
            let asked = a.group(|reply| GroupRequest::TakeSnapshot(DB.to_owned(), wanted, reply));
            assert_eq!(asked.await.expect("taken, once").members.len(), 2);
        }
        let listed = b.snapshots(DB).await;
        let names: Vec<&str> = listed.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);
        assert_eq!(listed[0].id, taken.id);
        let [log, data] = [LOG, DATA].map(|name| format!("{name}@first"));
        let seen = [b.connect(&log).await, b.connect(&data).await];
        assert_eq!(stamps(&seen).await, (1, 1));
        drop(seen);
        let (name, which) = (LOG.to_owned(), "second".to_owned());
        let gone = a
            .control
            .ask(|reply| Request::DeleteSnapshot(name, which, reply));
        gone.await.expect("deleted");
        assert_eq!(b.snapshots(DB).await.len(), 1, "in all members");
    });
}

fn to_first() -> RestoreDocument {
    RestoreDocument {
        snapshot: "first".to_owned(),
        before: Some("until-now".to_owned()),
        request_id: Some("r".to_owned()),
    }
}

#[test]
fn a_group_is_restored_as_a_whole_and_once() {
    simulate(9, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        let wanted = TakeSnapshotDocument {
            name: Some("first".to_owned()),
            request_id: None,
        };
        let taken = a.group(|reply| GroupRequest::TakeSnapshot(DB.to_owned(), wanted, reply));
        taken.await.expect("taken");
        commit(&disks, 2).await;
        let restore = async |node: &Node| {
            let asked = node.group(|reply| GroupRequest::Restore(DB.to_owned(), to_first(), reply));
            asked.await
        };
        let refused = restore(&a).await.expect_err("clients");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        drop(disks);
        let alone = a.ask(DATA, |name, reply| {
            Request::Restore(name, to_first(), reply)
        });
        let refused = alone.await.expect_err("a member alone");
        assert!(refused.message.contains("restored as a whole"), "{refused}");
        let restored = a.done(restore(&a).await.expect("begun")).await;
        assert_eq!(
            (restored.state, restored.error),
            (OperationState::Done, None)
        );
        let disks = both(&a).await;
        assert_eq!(stamps(&disks).await, (1, 1));
        // The answer may have been lost; it is not done again under who works on by now.
        let again = b.done(restore(&b).await.expect("done before")).await;
        assert_eq!(again.state, OperationState::Done, "{again:?}");
        let names: Vec<String> = b
            .snapshots(DB)
            .await
            .into_iter()
            .map(|it| it.name)
            .collect();
        assert_eq!(names, ["first", "until-now"]);
    });
}

#[test]
fn a_fork_of_a_group_is_a_group_of_one_moment_on_any_node() {
    simulate(6, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        let fork = |node: &Node, members: &[(&str, &str)]| {
            let members = members
                .iter()
                .map(|(of, to)| ((*of).to_owned(), (*to).to_owned()));
            let wanted = ForkGroupDocument {
                name: "db2".to_owned(),
                members: members.collect::<BTreeMap<_, _>>(),
                snapshot: None,
                request_id: Some("r".to_owned()),
            };
            let control = node.control.clone();
            let request = |reply| Request::Group(GroupRequest::Fork(DB.to_owned(), wanted, reply));
            async move { control.ask(request).await }
        };
        let refused = fork(&a, &[(LOG, "log2"), ("other", "data2")]).await;
        let refused = refused.expect_err("another member");
        assert_eq!(refused.kind, ControlErrorKind::Invalid, "{refused}");
        let members = [(LOG, "log2"), (DATA, "data2")];
        let made = fork(&a, &members).await.expect("forked");
        assert_eq!((made.name.as_str(), made.state.as_str()), ("db2", "formed"));
        commit(&disks, 2).await;
        a.drain(DATA).await;
        let forked = [b.connect("log2").await, b.connect("data2").await];
        assert_eq!(forked[0].access(), Access::ReadWrite);
        assert_eq!(stamps(&forked).await, (1, 1));
        commit(&forked, 7).await;
        b.drain("data2").await;
        // Asked again, it is the same, whoever has it.
        assert_eq!(fork(&a, &members).await.expect("made before").id, made.id);
        let read = [a.connect("log2").await, a.connect("data2").await];
        assert_eq!(stamps(&read).await, (7, 7));
        assert_eq!(stamps(&disks).await, (2, 2));
    });
}

#[test]
fn a_start_in_an_outage_goes_on_with_all_members() {
    simulate(7, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        a.drain(LOG).await;
        commit(&disks, 2).await;
        sim.set_store_outage(None, true);
        a.kill();
        let a = start(&sim, "a").await;
        let disks = both(&a).await;
        assert_eq!(disks[1].access(), Access::ReadWrite);
        assert_eq!(stamps(&disks).await, (2, 2));
        commit(&disks, 3).await;
        sim.set_store_outage(None, false);
        sim.sleep(GONE).await;
        let drained = a.drain(DATA).await;
        assert_eq!(
            (drained.dirty_bytes, drained.role.as_str()),
            (0, "read-write")
        );
        assert_eq!(drained.group.expect("proved").name, DB);
        let b = start(&sim, "b").await;
        assert_eq!(stamps(&both(&b).await).await, (3, 3));
    });
}

/// What is wrong with one of them is wrong with all: none is served for ever beside what cannot be read.
#[test]
fn a_group_resumed_in_an_outage_ends_if_one_member_is_not_readable_afterwards() {
    simulate(11, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        a.drain(LOG).await;
        a.kill();
        sim.set_store_outage(None, true);
        let a = start(&sim, "a").await;
        let disks = both(&a).await;
        // Not of the member that is asked for: the first by name.
        let folder = format!("nbd/{LOG}/seg/");
        for key in sim.keys().iter().filter(|key| key.starts_with(&folder)) {
            let zeros = Bytes::from(vec![0; 1 << 16]);
            assert!(sim.corrupt(key, &Corruption::Replace(zeros)));
        }
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(300)).await;
        for device in &disks {
            let late = device.write(0, Bytes::from(vec![9; 4096]), Fua::No).await;
            assert_eq!(late, Err(IoError::Io));
        }
    });
}

/// Who opens one while somebody opens another waits for the same open.
#[test]
fn members_that_are_opened_at_once_are_opened_together() {
    for seed in 20..30 {
        simulate(seed, |sim| async move {
            let a = start(&sim, "a").await;
            make(&a).await;
            let opened = Rc::new(std::cell::Cell::new(0));
            for name in [LOG, DATA, LOG, DATA] {
                let (exports, opened) = (a.shard.exports(), Rc::clone(&opened));
                a.world.spawn(async move {
                    let device = exports.connect(name, &VM).await.expect("opened");
                    assert_eq!(device.access(), Access::ReadWrite);
                    write(&device, 1, 1).await;
                    opened.set(opened.get() + 1);
                });
            }
            sim.sleep(Duration::from_secs(20)).await;
            assert_eq!(opened.get(), 4);
            let epochs = [a.get(LOG).await.epoch, a.get(DATA).await.epoch];
            // Created, put into the group, and opened once.
            assert_eq!(epochs, [3, 3]);
        });
    }
}

#[test]
fn a_member_that_is_prepared_and_promoted_brings_the_others_along() {
    simulate(8, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        a.drain(LOG).await;
        let prepare = async |name: &str| {
            let wanted = PrepareDocument {
                warm_bytes: Some(0),
            };
            let asked = b.ask(name, |name, reply| Request::Prepare(name, wanted, reply));
            asked.await.expect("prepared")
        };
        assert_eq!(prepare(DATA).await.role, "prepared");
        assert_eq!(b.get(LOG).await.role, "prepared");
        let target = both(&b).await;
        assert_eq!(target[0].access(), Access::ReadWrite);
        commit(&disks, 2).await;
        a.drain(LOG).await;
        // Asked for one, all move on, with those who are connected.
        prepare(LOG).await;
        assert_eq!(stamps(&target).await, (2, 2));
        let epoch = a.drain(DATA).await.epoch;
        let promoted = b.promote(DATA, epoch).await.expect("promoted");
        assert_eq!(promoted.role, "read-write");
        commit(&target, 3).await;
        assert_eq!(stamps(&target).await, (3, 3));
        b.drain(LOG).await;
        assert_eq!(disks[0].flush().await, Ok(()), "all of it is in the store");
    });
}

/// A node that started again behind a disk which said no; the first commit is published, and some of those behind it may
/// be lost.
async fn lose(sim: &Sim) -> Node {
    let a = start(sim, "a").await;
    let host = a.world.host();
    make(&a).await;
    let disks = both(&a).await;
    commit(&disks, 1).await;
    a.drain(LOG).await;
    sim.set_store_outage(None, true);
    for number in 2..20 {
        commit(&disks, number).await;
    }
    let faults = DiskFaults {
        persist_error: Odds::one_in(1),
        ..DiskFaults::default()
    };
    sim.set_disk_faults(host, faults);
    assert_eq!(disks[0].flush().await, Err(IoError::Io));
    sim.set_disk_faults(host, DiskFaults::default());
    sim.sleep(Duration::from_secs(1)).await;
    a.kill();
    sim.set_store_outage(None, false);
    start(sim, "a").await
}

/// Writes of one that were made behind lost ones of another are not kept: a loss is accepted for the group, back to
/// what was published last.
#[test]
fn damage_of_one_member_holds_all_until_the_loss_is_accepted_for_all() {
    let damaged = (40..60).filter(|seed| {
        simulate(*seed, |sim| async move {
            let a = lose(&sim).await;
            let documents = [a.get(LOG).await, a.get(DATA).await];
            let Some(kept_seq) = documents[0].damage.as_ref().map(|it| it.kept_seq) else {
                return false;
            };
            let damage = documents[1].damage.as_ref().expect("of both");
            // The log hears of a publish behind the store, and may not have noted it.
            assert!(damage.kept_seq <= documents[1].published_seq);
            let shown = both(&a).await;
            for (device, name) in shown.iter().zip([LOG, DATA]) {
                assert_eq!(device.access(), Access::ReadOnly);
                assert_eq!(a.get(name).await.role, "damaged");
            }
            assert_eq!(stamps(&shown).await, (1, 1));
            let wanted = AcceptLossDocument { kept_seq };
            let accepted = a.ask(LOG, |name, reply| Request::AcceptLoss(name, wanted, reply));
            let open = accepted.await.expect("accepted");
            assert_eq!((open.role.as_str(), open.damage), ("read-write", None));
            let other = a.get(DATA).await;
            assert_eq!((other.role.as_str(), other.damage), ("read-write", None));
            let disks = both(&a).await;
            assert_eq!(stamps(&disks).await, (1, 1));
            commit(&disks, 30).await;
            a.drain(DATA).await;
            true
        })
    });
    let damaged = damaged.count();
    assert!(damaged > 3, "{damaged} losses");
}

/// The same where one of them is dropped here: the others must not go on with what they have beyond.
#[test]
fn a_damaged_member_that_is_dropped_takes_what_is_unpublished_of_the_others_along() {
    let damaged = (40..60).filter(|seed| {
        simulate(*seed, |sim| async move {
            let a = lose(&sim).await;
            if a.get(LOG).await.damage.is_none() {
                return false;
            }
            let refused = a.delete(LOG).await.expect_err("it would be lost");
            assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
            assert!(refused.message.contains(DATA), "that goes too: {refused}");
            assert!(a.get(DATA).await.damage.is_some(), "nothing was dropped");
            let how = DeleteQuery {
                accept_loss: true,
                ..DeleteQuery::default()
            };
            let dropped = a.ask(LOG, |name, reply| Request::Delete(name, how, reply));
            dropped.await.expect("the loss is accepted");
            let disks = both(&a).await;
            for device in &disks {
                assert_eq!(device.access(), Access::ReadWrite);
            }
            assert_eq!(stamps(&disks).await, (1, 1));
            commit(&disks, 30).await;
            a.drain(DATA).await;
            true
        })
    });
    let damaged = damaged.count();
    assert!(damaged > 3, "{damaged} losses");
}

/// What a start finds of a group may have to be cut at once. A fork that began in the middle of that, and waited in the log, would keep
/// the group from ever being published again.
#[test]
fn a_fork_of_a_member_is_in_the_store_and_in_nobodys_way_after_a_kill() {
    simulate(10, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let disks = both(&a).await;
        commit(&disks, 1).await;
        let made = a.fork_live(DATA, "look").await.expect("forked");
        commit(&disks, 2).await;
        a.kill();
        let a = start(&sim, "a").await;
        let drained = a.drain(LOG).await;
        assert_eq!((drained.dirty_bytes, a.get(DATA).await.dirty_bytes), (0, 0));
        assert!(made.published, "{made:?}");
        let look = a.connect("look").await;
        assert_eq!(stamp(&look, 1).await, 1);
        assert_eq!(stamps(&both(&a).await).await, (2, 2));
    });
}

/// A take is noted in the log for one member after the other. A start in an outage that finds one of them alone does not take
/// it for a volume that is in no group.
#[test]
fn a_member_that_is_resumed_alone_has_no_fork_that_waits_in_the_log() {
    let alone = Rc::new(std::cell::Cell::new(0));
    for fuse in 0..120 {
        let found = Rc::clone(&alone);
        simulate(fuse, |sim| async move {
            let a = start(&sim, "a").await;
            make(&a).await;
            a.kill();
            let b = start(&sim, "b").await;
            let (host, shard) = (b.world.host(), Rc::clone(&b.shard));
            sim.crash_after(host, fuse, Crash::Process);
            sim.spawn(async move {
                drop(shard.exports().connect(LOG, &VM).await);
            });
            sim.sleep(Duration::from_secs(5)).await;
            sim.crash(host, Crash::Process);
            sim.set_store_outage(None, true);
            let b = start(&sim, "b").await;
            let seen = [b.try_connect(LOG).await, b.try_connect(DATA).await];
            let is_open = |seen: &Result<Device, ConnectError>| {
                let device = seen.as_ref();
                device.is_ok_and(|it| it.access() == Access::ReadWrite)
            };
            let name = match [is_open(&seen[0]), is_open(&seen[1])] {
                [true, false] => LOG,
                [false, true] => DATA,
                _ => return,
            };
            found.set(found.get() + 1);
            let made = b.fork_live(name, "look").await;
            assert!(made.is_err(), "fuse {fuse}: {made:?}");
        });
    }
    assert!(alone.get() > 0, "one is never resumed alone");
}

/// The log lets go of an export before the store is told; whatever of that was interrupted, nobody else has it.
#[test]
fn a_group_is_formed_of_an_export_whose_detach_was_interrupted_anywhere() {
    for fuse in 0..60 {
        simulate(fuse, |sim| async move {
            let a = start(&sim, "a").await;
            for name in [LOG, DATA] {
                let device = a.connect(name).await;
                write(&device, 1, 1).await;
            }
            a.delete(DATA).await.expect("given up");
            let (host, control) = (a.world.host(), a.control.clone());
            sim.crash_after(host, fuse, Crash::Process);
            sim.spawn(async move {
                let how = DeleteQuery::default();
                let asked = control.ask(|reply| Request::Delete(LOG.to_owned(), how, reply));
                drop(asked.await);
            });
            sim.sleep(Duration::from_secs(5)).await;
            sim.crash(host, Crash::Process);
            let a = start(&sim, "a").await;
            let formed = a.form("make").await.expect("begun");
            let ended = (formed.state, formed.error);
            assert_eq!(ended, (OperationState::Done, None), "fuse {fuse}");
        });
    }
}

/// A name is looked for among some groups only: the requests are so many, whatever else is in the prefix.
#[test]
fn a_fork_of_a_group_costs_the_same_however_many_groups_there_are() {
    simulate(13, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let id = a.show(DB).await.expect("formed").id;
        let mut gets = Vec::new();
        for number in 0..45 {
            let before = sim.store_stats().gets;
            let made = a.fork_group(&id, &format!("-{number}")).await;
            made.expect("forked");
            gets.push(sim.store_stats().gets - before);
        }
        // Beyond 32 groups it grows no more.
        assert!(gets[0] < gets[20], "{gets:?}");
        assert!(gets[44] <= gets[36] + 2, "{gets:?}");
    });
}

/// Its answer was lost, and the group that it is of is over by now.
#[test]
fn a_fork_is_told_to_who_asks_again_after_its_group_was_ended() {
    simulate(14, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let made = a.fork_group(DB, "2").await.expect("forked");
        let ended = a.end(DB).await;
        assert_eq!((ended.state, ended.error), (OperationState::Done, None));
        let again = a.fork_group(DB, "2").await.expect("made before");
        assert_eq!((again.id, again.state), (made.id, "formed".to_owned()));
        let refused = a.fork_group(DB, "3").await.expect_err("it is over");
        assert_eq!(refused.kind, ControlErrorKind::NotFound, "{refused}");
    });
}

/// One of the members cannot be asked while it is ended. Who ends it again, by its name, tidies up; and until then a request
/// that is repeated is answered with what it did.
#[test]
fn a_group_that_is_over_and_not_tidied_up_after_is_found_by_its_name() {
    simulate(15, |sim| async move {
        let a = start(&sim, "a").await;
        make(&a).await;
        let take = async |node: &Node, request: &str| {
            let wanted = TakeSnapshotDocument {
                name: Some("first".to_owned()),
                request_id: Some(request.to_owned()),
            };
            let asked =
                node.group(|reply| GroupRequest::TakeSnapshot(DB.to_owned(), wanted, reply));
            asked.await
        };
        let taken = take(&a, "r").await.expect("taken");
        a.delete(LOG).await.expect("given up");
        let key = format!("nbd/{DATA}/root");
        let mut objects = sim.objects();
        let root = objects.remove(&key).expect("there");
        sim.restore_objects(&objects);
        let ended = a.end(DB).await;
        assert_eq!((ended.state, ended.error), (OperationState::Done, None));
        assert_eq!(a.show(DB).await.expect("not deleted").state, "dissolved");
        let mut objects = sim.objects();
        objects.insert(key, root);
        sim.restore_objects(&objects);
        assert_eq!(take(&a, "r").await.expect("taken before").id, taken.id);
        let refused = take(&a, "another").await.expect_err("it is over");
        assert_eq!(refused.kind, ControlErrorKind::Conflict, "{refused}");
        let ended = a.end(DB).await;
        assert_eq!((ended.state, ended.error), (OperationState::Done, None));
        let gone = a.show(DB).await.expect_err("it is deleted");
        assert_eq!(gone.kind, ControlErrorKind::NotFound, "{gone}");
        assert_eq!(a.connect(DATA).await.access(), Access::ReadWrite);
    });
}
