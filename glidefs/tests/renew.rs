//! New data keys of volumes that clients write to, in the simulated world: the real shard, simulated disks, store,
//! clocks and crashes.

#[path = "driver/node.rs"]
mod node;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use glidefs::control::{
    ControlError, ControlErrorKind, DataKeyDocument, ExportDocument, PrepareDocument,
    PromoteDocument, RenewDataDocument, Reply, Request,
};
use glidefs::device::{Access, BlockDevice, ConnectError, Fua};
use world::sim::{Odds, Sim, StoreFaults};

use node::{Device, Node, PAGE, VM, config, simulate};

const VOLUME_BYTES: u64 = 1 << 20;
const PAGES: u64 = 256;
/// How often somebody who is told "unavailable" asks again.
const TRIES_MAX: u32 = 400;

/// Starts a server on a host, as soon as the store lets it.
async fn start(sim: &Sim, host: &str) -> Node {
    start_as(sim, host, Some("x")).await
}

async fn start_as(sim: &Sim, host: &str, password: Option<&str>) -> Node {
    for _ in 0..TRIES_MAX {
        let config = config(host, password, VOLUME_BYTES);
        if let Ok(node) = Node::open(sim, sim.host(host), config).await {
            return node;
        }
        sim.sleep(Duration::from_secs(2)).await;
    }
    panic!("the store never let {host} start");
}

impl Node {
    async fn connect(&self, name: &str) -> Device {
        for _ in 0..TRIES_MAX {
            match self.connect_as(name, &VM).await {
                Ok(device) => return device,
                Err(ConnectError::Unavailable(_)) => self.sim.sleep(Duration::from_secs(2)).await,
                Err(other) => panic!("{other:?}"),
            }
        }
        panic!("the store never answered");
    }

    async fn try_renew(
        &self,
        name: &str,
        wanted: RenewDataDocument,
    ) -> Result<DataKeyDocument, ControlError> {
        self.ask(name, |name, reply| Request::RenewData(name, wanted, reply))
            .await
    }

    async fn renew(&self, name: &str, request_id: &str) -> Result<DataKeyDocument, ControlError> {
        self.try_renew(name, of(request_id)).await
    }

    async fn asked(
        &self,
        request: impl FnOnce(String, Reply<ExportDocument>) -> Request,
    ) -> ExportDocument {
        self.ask("vm", request).await.expect("answered")
    }
}

fn of(request_id: &str) -> RenewDataDocument {
    RenewDataDocument {
        request_id: Some(request_id.to_owned()),
        volume: None,
    }
}

async fn write(device: &Device, page_no: u64, stamp: u8) {
    let page = Bytes::from(vec![stamp; 4096]);
    let written = device.write(page_no * PAGE, page, Fua::No).await;
    written.expect("written");
}

async fn stamp(device: &Device, page_no: u64) -> u8 {
    let bytes = device.read(page_no * PAGE, PAGE).await.expect("read");
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn page");
    bytes[0]
}

async fn stamps(device: &Device) -> Vec<u8> {
    let mut stamps = Vec::new();
    for page_no in 0..PAGES {
        stamps.push(stamp(device, page_no).await);
    }
    stamps
}

#[test]
fn an_export_gets_a_new_data_key_under_its_client_and_any_node_reads_it() {
    simulate(1, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await;
        for n in 0..20 {
            write(&device, n, 1).await;
        }
        // Nothing of this is in the store when it is asked for.
        let first = a.renew("vm", "r-1").await.expect("renewed");
        assert_eq!((first.keys, first.from_epoch), (2, 1));
        for n in 0..10 {
            write(&device, n, 2).await;
        }
        a.asked(Request::Drain).await;
        let again = a.renew("vm", "r-1").await.expect("there");
        assert_eq!(again, first, "asked again");
        // Nothing is dirty: it costs the root alone.
        let second = a.renew("vm", "r-2").await.expect("renewed");
        assert_eq!(second.keys, 3);
        assert_ne!(second.id, first.id);
        for n in 0..5 {
            write(&device, n, 3).await;
        }
        let drained = a.asked(Request::Drain).await;
        assert_eq!((drained.epoch, drained.clients), (1, 1), "as it was");

        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await;
        assert_eq!(reader.access(), Access::ReadOnly);
        let expected = |n: u64| match n {
            0..5 => 3,
            5..10 => 2,
            10..20 => 1,
            _ => 0,
        };
        for n in 0..25 {
            assert_eq!(stamp(&reader, n).await, expected(n), "page {n}");
        }
        let refused = b.renew("vm", "r-3").await.expect_err("another one's");
        assert_eq!(refused.kind, ControlErrorKind::Conflict);
        for words in [
            "is owned by a ",
            "alone can give it a new data key",
            "do it there",
        ] {
            assert!(refused.message.contains(words), "{words}: {refused}");
        }
        later_owners_know_it(&sim, a, b).await;
        let c = start(&sim, "c").await;
        let reader = c.connect("vm").await;
        for n in 0..25 {
            assert_eq!(stamp(&reader, n).await, expected(n), "page {n}");
        }
        for (n, was) in [(30, 4), (31, 5), (32, 6)] {
            assert_eq!(stamp(&reader, n).await, was);
        }
    });
}

/// Killed, the next process knows the newest key from the root, and so does another owner, which asks for a third.
async fn later_owners_know_it(sim: &Sim, a: Node, b: Node) {
    a.kill();
    let a = start(sim, "a").await;
    let device = a.connect("vm").await;
    write(&device, 30, 4).await;
    a.asked(Request::Drain).await;
    a.kill();
    let how = PromoteDocument {
        force: true,
        expected_epoch: Some(1),
        ..PromoteDocument::default()
    };
    let promoted = b
        .asked(|name, reply| Request::Promote(name, how, reply))
        .await;
    assert_eq!(promoted.role, "read-write");
    let writer = b.connect("vm").await;
    assert_eq!(stamp(&writer, 30).await, 4);
    write(&writer, 31, 5).await;
    let third = b.renew("vm", "r-3").await.expect("its own now");
    assert_eq!((third.keys, third.from_epoch), (4, 2));
    write(&writer, 32, 6).await;
    b.asked(Request::Drain).await;
}

/// It is opened for that, and left to whoever comes.
#[test]
fn an_export_that_nobody_has_open_gets_one_too() {
    simulate(2, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await;
        write(&device, 3, 33).await;
        drop(device);
        sim.sleep(Duration::from_secs(60)).await;
        let b = start(&sim, "b").await;
        let renewed = b.renew("vm", "r").await.expect("renewed");
        assert_eq!((renewed.keys, renewed.from_epoch), (2, 2));
        sim.sleep(Duration::from_secs(60)).await;
        assert_eq!(b.asked(Request::Get).await.role, "closed");
        let device = a.connect("vm").await;
        assert_eq!(device.access(), Access::ReadWrite);
        assert_eq!(stamp(&device, 3).await, 33);
        assert_eq!(a.renew("vm", "r").await.expect("there"), renewed);
    });
}

/// A reader sees its cut; the other end of a migration moves on to what is sealed under a key that it did not know.
#[test]
fn readers_keep_their_cut_and_prepared_exports_learn_the_key() {
    simulate(3, |sim| async move {
        let (a, b) = (start(&sim, "a").await, start(&sim, "b").await);
        let c = start(&sim, "c").await;
        let source = a.connect("vm").await;
        write(&source, 0, 1).await;
        a.asked(Request::Drain).await;
        let prepare = |name, reply| Request::Prepare(name, PrepareDocument::default(), reply);
        assert_eq!(b.asked(prepare).await.role, "prepared");
        let (target, reader) = (b.connect("vm").await, c.connect("vm").await);
        a.renew("vm", "r").await.expect("renewed");
        write(&source, 0, 2).await;
        write(&source, 1, 2).await;
        let drained = a.asked(Request::Drain).await;
        assert_eq!((stamp(&reader, 0).await, stamp(&reader, 1).await), (1, 0));
        assert_eq!((stamp(&target, 0).await, stamp(&target, 1).await), (1, 0));
        let again = b.asked(prepare).await;
        assert_eq!(again.published_seq, drained.published_seq);
        assert_eq!((stamp(&target, 0).await, stamp(&target, 1).await), (2, 2));
        assert_eq!((stamp(&reader, 0).await, stamp(&reader, 1).await), (1, 0));
    });
}

#[test]
fn a_new_data_key_is_refused_with_a_reason() {
    simulate(4, |sim| async move {
        let a = start(&sim, "a").await;
        let _device = a.connect("vm").await;
        let volume = a.asked(Request::Get).await.volume;
        let kind = async |name: &str, wanted| {
            let refused = a.try_renew(name, wanted).await.expect_err("refused");
            (refused.kind, refused.message)
        };
        let (found, _) = kind("other", of("r")).await;
        assert_eq!(found, ControlErrorKind::NotFound);
        for (name, wanted) in [("No Name", of("r")), ("vm", of(""))] {
            assert_eq!(kind(name, wanted).await.0, ControlErrorKind::Invalid);
        }
        let meant = |volume: String| RenewDataDocument {
            request_id: None,
            volume: Some(volume),
        };
        let (found, said) = kind("vm", meant("0".repeat(32))).await;
        assert_eq!(found, ControlErrorKind::Conflict);
        assert!(said.contains("another volume"), "{said}");
        let renewed = a.try_renew("vm", meant(volume)).await.expect("the one");
        assert_eq!(renewed.keys, 2);
    });
    simulate(5, |sim| async move {
        let a = start_as(&sim, "a", None).await;
        let _device = a.connect("vm").await;
        let refused = a.renew("vm", "r").await.expect_err("plain");
        assert_eq!(refused.kind, ControlErrorKind::Conflict);
        assert!(refused.message.contains("not encrypted"), "{refused}");
    });
}

#[test]
fn in_an_outage_nobody_waits_for_ever_and_the_same_request_is_one_key() {
    simulate(6, |sim| async move {
        let a = start(&sim, "a").await;
        let device = a.connect("vm").await;
        write(&device, 1, 1).await;
        sim.set_store_outage(None, true);
        let refused = a.renew("vm", "r").await.expect_err("an outage");
        assert_eq!(refused.kind, ControlErrorKind::Unavailable);
        assert!(refused.message.contains("`request_id`"), "{refused}");
        write(&device, 2, 2).await;
        sim.set_store_outage(None, false);
        sim.sleep(Duration::from_secs(60)).await;
        let renewed = a.renew("vm", "r").await.expect("renewed");
        assert_eq!(renewed.keys, 2);
        a.asked(Request::Drain).await;
        let b = start(&sim, "b").await;
        let reader = b.connect("vm").await;
        assert_eq!((stamp(&reader, 1).await, stamp(&reader, 2).await), (1, 2));
    });
}

#[test]
fn of_requests_at_once_one_is_carried_out_and_the_same_one_is_one_key() {
    simulate(7, |sim| async move {
        let a = start(&sim, "a").await;
        let _device = a.connect("vm").await;
        let (one, two) = join(a.renew("vm", "r"), a.renew("vm", "r")).await;
        let one = one.expect("renewed");
        assert_eq!((&two.expect("the same"), one.keys), (&one, 2));
        // The root is written once a second at most, so both wait for one publish.
        let (one, two) = join(a.renew("vm", "s"), a.renew("vm", "t")).await;
        let refused = match (one, two) {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            both => panic!("one of two: {both:?}"),
        };
        assert_eq!(refused.kind, ControlErrorKind::Unavailable);
        assert!(refused.message.contains("another request"), "{refused}");
        for request in ["s", "t"] {
            a.renew("vm", request).await.expect("renewed");
        }
        assert_eq!(a.renew("vm", "t").await.expect("there").keys, 4);
    });
}

/// Writes, kills and a bad store, and new keys all the time: nothing is lost, and each request is one key.
#[test]
fn new_data_keys_under_a_bad_store_and_kills_lose_nothing_and_come_once() {
    for seed in 700..720 {
        simulate(seed, |sim| async move {
            sim.set_store_faults(StoreFaults {
                lost_request: Odds::one_in(20),
                throttled: Odds::one_in(20),
                lost_answer: Odds::one_in(10),
                late: Odds::one_in(20),
                ..StoreFaults::default()
            });
            let mut a = start(&sim, "a").await;
            let mut model = vec![0_u8; 256];
            let mut answered = None;
            for round in 1..8_u8 {
                let device = a.connect("vm").await;
                assert_eq!(stamps(&device).await, model, "round {round}");
                let request = format!("r-{round}");
                for _ in 0..sim.chance(|chance| chance.between(1, 40)) {
                    let n = sim.chance(|chance| chance.below(PAGES));
                    write(&device, n, round).await;
                    model[usize::try_from(n).expect("small")] = round;
                    let pause = sim.chance(|chance| chance.below(300));
                    sim.sleep(Duration::from_millis(pause)).await;
                    // Whatever became of it, it is asked for again until it is answered.
                    if answered != Some(round) && a.renew("vm", &request).await.is_ok() {
                        answered = Some(round);
                    }
                }
                drop(device);
                // Sometimes long enough to detach.
                let pause = sim.chance(|chance| chance.below(50_000));
                sim.sleep(Duration::from_millis(pause)).await;
                if sim.chance(|chance| chance.one_in(2)) {
                    a.kill();
                    a = start(&sim, "a").await;
                }
                while answered != Some(round) {
                    match a.renew("vm", &request).await {
                        Ok(_) => answered = Some(round),
                        Err(error) => {
                            assert_eq!(error.kind, ControlErrorKind::Unavailable, "{error}");
                            sim.sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            }
            sim.set_store_faults(StoreFaults::default());
            sim.sleep(Duration::from_secs(200)).await;
            let b = start(&sim, "b").await;
            let device = b.connect("vm").await;
            assert_eq!(device.access(), Access::ReadWrite, "detached by now");
            assert_eq!(stamps(&device).await, model);
            let last = b.renew("vm", "r-7").await.expect("there");
            assert_eq!(last.keys, 8, "one to begin with, and one for each request");
        });
    }
}
