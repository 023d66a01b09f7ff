//! The task of a group in the simulated world: real log, real volumes, a store that may be away.

use blockcache::{Cache, CacheConfig, Epoch, Opened, Seq};
use bytes::Bytes;
use world::Peer;
use world::sim::{Crash, HostId, Sim, SimConfig, SimWorld};
use world::sync::Semaphore;

use super::attempt::PACKING_MAX;
use super::uploads::Uploads;
use super::*;
use crate::export::Parts;
use crate::export::base::Lineage;
use crate::export::clients::Sharing;
use crate::export::meter::Meters;
use crate::export::shelf::Shelf;
use crate::export::site::ExportConfig;
use crate::volume::{BucketConfig, Compression, Form, Owner, Publish, RootView, VolumeState};

const NAMES: [&str; 3] = ["db-data", "db-index", "db-log"];
const VOLUME_BYTES: u64 = 1 << 20;
const PAGE: usize = 4096;

fn sim(seed: u64) -> (Sim, HostId) {
    let config = SimConfig {
        time_max: Duration::from_secs(3600),
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

fn config() -> ExportConfig {
    ExportConfig {
        create_bytes: None,
        sharing: Sharing::OneClient,
        grace: Duration::from_secs(900),
        read_wait: Duration::from_secs(900),
        sync: SyncConfig::default(),
        #[cfg(feature = "planted")]
        trust_any_nonce: false,
        #[cfg(feature = "planted")]
        forgets_intents: false,
        #[cfg(feature = "planted")]
        takes_unasked: false,
        #[cfg(feature = "planted")]
        keeps_rewritten: false,
        #[cfg(feature = "planted")]
        snapshots_of_any_cut: false,
        #[cfg(feature = "planted")]
        forks_of_any_cut: false,
    }
}

async fn site(world: &SimWorld) -> Rc<Site<SimWorld>> {
    let cache = Cache::open(world.clone(), CacheConfig::new("/cache", 256 << 20)).await;
    let cache = cache.expect("opens");
    let bucket = BucketConfig::new(Compression::Lz4);
    let config = config();
    Rc::new(Site {
        owner: Owner {
            cache: cache.id(),
            host: "node".into(),
        },
        uploads: Uploads::new(config.sync.uploads_total_min, config.sync.uploads_total_max),
        packing: Semaphore::new(PACKING_MAX),
        warming: Semaphore::new(1),
        closing: Cell::new(false),
        shelf: Shelf::new(world.clone(), world.store(), bucket),
        world: world.clone(),
        cache,
        meters: Meters::default(),
        repeats: Default::default(),
        operations: Default::default(),
        lineage: Lineage::default(),
        config,
    })
}

/// Volumes that nobody owns, as a group.
async fn form(site: &Site<SimWorld>) {
    let bucket = site.shelf.bucket().await.expect("a store");
    for name in NAMES {
        let nonce = Id(site.world.random_id());
        let created = bucket.create(name, VOLUME_BYTES, &site.owner, nonce);
        let volume = Box::pin(created).await.expect("created");
        let nonce = Id(site.world.random_id());
        let detach = Publish {
            nonce,
            ours: vec![nonce],
            cut: Seq(0),
            segments: Vec::new(),
            size_bytes: None,
            state: Some(VolumeState::Detached),
            snapshots: Vec::new(),
            data_key: None,
        };
        let published = Box::pin(volume.publish(&detach)).await.expect("detached");
        volume.install(published);
    }
    let names = NAMES.map(str::to_owned);
    let form = Form::new("db", Id(site.world.random_id()), &names).expect("a group");
    Box::pin(bucket.form(&form)).await.expect("formed");
}

async fn members(site: &Site<SimWorld>) -> Members<SimWorld> {
    let bucket = site.shelf.bucket().await.expect("a store");
    let opened = Box::pin(bucket.open_members(NAMES[2])).await;
    opened.expect("opened")
}

async fn roots(site: &Site<SimWorld>) -> Vec<RootView> {
    let members = members(site).await;
    members.volumes().iter().map(Volume::root).collect()
}

fn export(
    site: &Site<SimWorld>,
    local: CacheVolume<SimWorld>,
    volume: Option<Volume<SimWorld>>,
) -> Rc<Export<SimWorld>> {
    let name = local.state().expect("known").name;
    Export::new(Parts {
        world: site.world.clone(),
        cache: site.cache.clone(),
        role: Role::ReadWrite,
        meter: site.meters.of(&name),
        name,
        size_bytes: VOLUME_BYTES,
        local: Some(local),
        volume,
        base: None,
        read_wait: site.config.read_wait,
    })
}

/// Takes the group, and starts its task. The exports are given in another order than the group has.
async fn open(site: &Rc<Site<SimWorld>>) -> Vec<Rc<Export<SimWorld>>> {
    let members = members(site).await;
    let nonce = Id(site.world.random_id());
    let roots = Box::pin(members.take(&site.owner, nonce, None)).await;
    let mut exports = Vec::new();
    for (root, volume) in roots.expect("free").into_iter().zip(members.volumes()) {
        let opened = Opened {
            id: root.volume,
            name: root.name,
            size_bytes: root.size_bytes,
            epoch: root.epoch,
            nonce: root.nonce,
            published: root.cut,
        };
        let local = Box::pin(site.cache.attach(opened)).await.expect("attached");
        exports.push(export(site, local, Some(volume.clone())));
    }
    exports.reverse();
    start(site, &exports);
    exports.reverse();
    exports
}

async fn write(export: &Export<SimWorld>, number: u64, stamp: u8) {
    let data = Bytes::from(vec![stamp; PAGE]);
    let local = export.local().expect("it takes writes");
    local.write(number * PAGE as u64, data).await.expect("room");
}

fn cuts(roots: &[RootView]) -> Vec<Seq> {
    roots.iter().map(|root| root.cut).collect()
}

fn lasts(exports: &[Rc<Export<SimWorld>>]) -> Vec<Seq> {
    let states = exports.iter().filter_map(|it| it.local_state());
    states.map(|state| state.last).collect()
}

fn has_ended(exports: &[Rc<Export<SimWorld>>], role: Role) -> bool {
    exports.iter().all(|it| it.role() == role)
}

#[test]
fn members_are_published_by_one_swap_and_given_up_together() {
    let (sim, host) = sim(1);
    on(&sim, host, |world| async move {
        let site = site(&world).await;
        form(&site).await;
        let exports = open(&site).await;
        write(&exports[0], 0, 1).await;
        write(&exports[2], 0, 2).await;
        write(&exports[2], 9, 3).await;
        // A drain of one is one of all.
        exports[0].drain().await.expect("drained");
        let published = roots(&site).await;
        assert_eq!(cuts(&published), [Seq(1), Seq(0), Seq(2)]);
        let first = &published[0];
        let is_one = |it: &RootView| it.nonce == first.nonce && it.etag == first.etag;
        assert!(published.iter().all(is_one), "{published:?}");
        for export in &exports {
            let state = export.local_state().expect("attached");
            assert_eq!((state.published, state.nonce), (state.last, first.nonce));
        }
        // Somebody is at one of them: none goes.
        let guest = Peer::Process { pid: 7, uid: 0 };
        exports[1].clients.join(&guest);
        exports[0].orders.leave();
        world.sleep(Duration::from_secs(60)).await;
        assert!(has_ended(&exports, Role::ReadWrite));
        exports[1].clients.leave(&guest, world.now());
        exports[1].orders.wake.notify_one();
        world.sleep(Duration::from_secs(60)).await;
        assert!(has_ended(&exports, Role::Closed));
        let left = roots(&site).await;
        let is_left = |it: &RootView| it.state == VolumeState::Detached && it.owner.is_none();
        assert!(left.iter().all(is_left), "{left:?}");
        assert!(site.cache.volumes().iter().all(|local| !local.attached));
    });
    sim.end();
}

#[test]
fn what_was_written_in_an_outage_is_published_of_all_members_at_one_moment() {
    let (sim, host) = sim(2);
    let inside = sim.clone();
    on(&sim, host, move |world| async move {
        let site = site(&world).await;
        form(&site).await;
        let exports = open(&site).await;
        for (round, export) in (1..).zip(&exports) {
            write(export, 0, round).await;
        }
        inside.set_store_outage(None, true);
        exports[1].drain().await.expect_err("the store is away");
        // Newer than the cut that could not be uploaded: the next one takes its place.
        for (round, export) in (10..).zip(&exports) {
            write(export, 0, round).await;
            write(export, 5, round).await;
        }
        inside.set_store_outage(None, false);
        world.sleep(Duration::from_secs(120)).await;
        assert_eq!(cuts(&roots(&site).await), lasts(&exports));
        assert!(exports.iter().all(|it| it.meter().io.get().sync_errors > 0));
    });
    sim.end();
}

#[test]
fn the_force_of_one_ends_all_members() {
    let (sim, host) = sim(3);
    on(&sim, host, |world| async move {
        let site = site(&world).await;
        form(&site).await;
        let exports = open(&site).await;
        let members = members(&site).await;
        let other = Owner {
            cache: Id([9; 16]),
            host: "other".into(),
        };
        let epoch: Epoch = members.asked().root().epoch;
        let taken = members.take(&other, Id([8; 16]), Some(epoch));
        Box::pin(taken).await.expect("taken");
        write(&exports[0], 0, 1).await;
        exports[0].drain().await.expect_err("fenced");
        world.sleep(Duration::from_secs(10)).await;
        assert!(has_ended(&exports, Role::Fenced));
        // No start during an outage goes on with any of them.
        assert!(site.cache.volumes().iter().all(|local| !local.attached));
    });
    sim.end();
}

/// Rule 14: the log knows who belongs together. What was resumed alone all the same publishes nothing alone.
#[test]
fn a_start_in_an_outage_goes_on_with_all_members_and_never_with_one() {
    let (sim, host) = sim(4);
    on(&sim, host, |world| async move {
        let site = site(&world).await;
        form(&site).await;
        let exports = open(&site).await;
        for export in &exports {
            write(export, 0, 1).await;
        }
        exports[0].drain().await.expect("drained");
        write(&exports[0], 1, 2).await;
        write(&exports[2], 1, 3).await;
        site.cache.flush().await.expect("sound");
    });
    sim.crash(host, Crash::Power);
    let inside = sim.clone();
    on(&sim, host, move |world| async move {
        inside.set_store_outage(None, true);
        let site = site(&world).await;
        let held = |name: &str| {
            let mut known = site.cache.volumes().into_iter();
            let local = known.find(|local| local.name == name)?;
            site.cache.volume(local.id)
        };
        let alone = held(NAMES[0]).expect("in the log");
        let together = site.cache.together_with(alone.id());
        assert_eq!(together.len(), NAMES.len());
        // As if nobody had asked.
        let one = export(&site, alone, None);
        start(&site, &[Rc::clone(&one)]);
        write(&one, 2, 4).await;
        inside.set_store_outage(None, false);
        world.sleep(Duration::from_secs(120)).await;
        assert_eq!(one.role(), Role::Closed);
        let wanted = site.lineage.take_wanted();
        assert_eq!(wanted.as_deref(), Some(NAMES[0]), "opened with the others");
        assert_eq!(cuts(&roots(&site).await), [Seq(1); 3]);
        let all = together.iter().filter_map(|id| site.cache.volume(*id));
        let all: Vec<_> = all.map(|local| export(&site, local, None)).collect();
        inside.set_store_outage(None, true);
        start(&site, &all);
        write(&all[1], 2, 5).await;
        inside.set_store_outage(None, false);
        world.sleep(Duration::from_secs(120)).await;
        assert!(has_ended(&all, Role::ReadWrite));
        let is_clean = |it: &Rc<Export<SimWorld>>| {
            let state = it.local_state().expect("attached");
            state.published == state.last
        };
        assert!(all.iter().all(is_clean));
        let total: u64 = roots(&site).await.iter().map(|root| root.cut.0).sum();
        assert_eq!(total, 3 + 2 + 2);
    });
    sim.end();
}

/// Rule 14: what was resumed alone is over once another node has all of its group, and no later start goes on with it.
#[test]
fn what_was_resumed_alone_ends_fenced_where_another_node_has_its_group() {
    let (sim, host) = sim(5);
    on(&sim, host, |world| async move {
        let site = site(&world).await;
        form(&site).await;
        let exports = open(&site).await;
        write(&exports[0], 0, 1).await;
        exports[0].drain().await.expect("drained");
        site.cache.flush().await.expect("sound");
    });
    sim.crash(host, Crash::Power);
    let inside = sim.clone();
    on(&sim, host, move |world| async move {
        let site = site(&world).await;
        let members = members(&site).await;
        let other = Owner {
            cache: Id([9; 16]),
            host: "other".into(),
        };
        let epoch: Epoch = members.asked().root().epoch;
        let taken = members.take(&other, Id([8; 16]), Some(epoch));
        Box::pin(taken).await.expect("taken");
        inside.set_store_outage(None, true);
        let mut known = site.cache.volumes().into_iter();
        let known = known.find(|local| local.name == NAMES[0]);
        let held = known.and_then(|local| site.cache.volume(local.id));
        let held = held.expect("in the log");
        let one = export(&site, held, None);
        start(&site, &[Rc::clone(&one)]);
        inside.set_store_outage(None, false);
        world.sleep(Duration::from_secs(120)).await;
        assert_eq!(one.role(), Role::Fenced);
        let local = one.local_state().expect("known");
        assert!(!local.attached, "{local:?}");
        assert_eq!(site.lineage.take_wanted(), None);
    });
    sim.end();
}
