//! What every scenario stands on: settings drawn from the seed, nodes and guests, the judgement.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use blockcache::CacheConfig;
use glidefs::control::ExportDocument;
use glidefs::device::Access;
use glidefs::nbd::wire::export;
use glidefs::shard::ShardConfig;
use glidefs::volume::{
    Audit, Bucket, BucketConfig, Compression, KeyringCost, Metered, Tidy, Volume,
};
use world::World;
use world::sim::{DiskFaults, HostId, Odds, Sim, SimWorld, StoreFaults};

use super::age;
use super::disks::Disks;
use super::guest::{Guest, Load, Model};
use super::node::{NAME, Node, Started, socket};
use super::plant::plant;
use super::{Run, Scenario};
use crate::nbd_client::{NbdClient, Options};
use crate::oracle::Judge;

pub(super) const PAGE: u64 = 4096;
/// Pages of the smallest, a middling and the largest volume.
pub(super) const VOLUME_PAGES: [u64; 3] = [24, 64, 160];
/// How often a connection, a read or a question is tried again, a second apart.
pub(super) const TRIES_MAX: u32 = 400;
pub(super) const TRY_PAUSE: Duration = Duration::from_secs(1);
/// Objects that may be left when an operator has cleaned up.
const LEFT_MAX: usize = 4;
/// Of the runs that are sealed.
const PASSWORD: &str = "correct horse battery staple";
/// No healthy system leaves a request unanswered for so long.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2_400);

/// Sizes and times of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) volume_bytes: u64,
    pub(super) chunk_bytes: u32,
    pub(super) chunks: u64,
    /// Eighths of the cache that may be dirty.
    pub(super) dirty_eighths: u64,
    pub(super) delay: Duration,
    pub(super) interval: Duration,
    pub(super) blocks_per_batch: u32,
    pub(super) cut_extents_max: usize,
    pub(super) grace: Duration,
    pub(super) compression: Compression,
}

impl Settings {
    fn drawn(sim: &Sim, scenario: Scenario) -> Self {
        let tiny = scenario == Scenario::Evict;
        let drawn = sim.chance(|chance| Self {
            volume_bytes: PAGE * VOLUME_PAGES[chance.index(3)],
            chunk_bytes: if tiny {
                64 * 1024
            } else {
                [64, 128, 256][chance.index(3)] * 1024
            },
            chunks: if tiny {
                chance.between(12, 18)
            } else {
                chance.between(28, 40)
            },
            dirty_eighths: if tiny { chance.between(2, 6) } else { 2 },
            delay: Duration::from_millis([20, 200, 1_500][chance.index(3)]),
            interval: Duration::from_millis([1, 50, 400][chance.index(3)]),
            blocks_per_batch: [1, 3, 25][chance.index(3)],
            cut_extents_max: [4, 40, usize::MAX][chance.index(3)],
            grace: match scenario {
                Scenario::Answers => Duration::from_millis(chance.between(100, 4_000)),
                Scenario::Migrate => Duration::from_secs([2, 100_000][chance.index(2)]),
                _ => Duration::from_secs(100_000),
            },
            compression: [Compression::Lz4, Compression::Zstd(1)][chance.index(2)],
        });
        if scenario == Scenario::Age {
            return age::settings(sim, drawn);
        }
        drawn
    }
}

/// A scenario's world.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) sim: Sim,
    pub(super) run: Run,
    pub(super) settings: Settings,
    pub(super) disks: Rc<Disks>,
    pub(super) model: Model,
    answers: Cell<u64>,
    /// Counts takeovers: who follows an earlier owner stops.
    branch: Rc<Cell<u64>>,
}

impl Stage {
    pub(super) fn new(sim: Sim, run: Run) -> Self {
        let settings = Settings::drawn(&sim, run.scenario);
        sim.note(format_args!("{run:?} {settings:?}"));
        let disks = match run.scenario {
            Scenario::Group => Disks::drawn(&sim, settings.volume_bytes),
            _ => Disks::one(settings.volume_bytes),
        };
        Self {
            model: Rc::new(RefCell::new(disks.oracle(sim.seed()))),
            disks: Rc::new(disks),
            sim,
            run,
            settings,
            answers: Cell::new(0),
            branch: Rc::default(),
        }
    }

    pub(super) fn answers(&self) -> u64 {
        self.answers.get()
    }

    pub(super) fn one_in(&self, times: u64) -> bool {
        self.sim.chance(|chance| chance.one_in(times))
    }

    pub(super) fn between(&self, low: u64, high: u64) -> u64 {
        self.sim.chance(|chance| chance.between(low, high))
    }

    pub(super) async fn pause_ms(&self, low: u64, high: u64) {
        let pause = self.between(low, high);
        self.sim.sleep(Duration::from_millis(pause)).await;
    }

    /// Half of the seeds run with a password. Told by the number and not drawn, so that all else that
    /// a seed decides stays as it was; the seeds of `seeds.txt` that were found before are plain.
    pub(super) fn is_sealed(&self) -> bool {
        self.run.seed % 10 < 5
    }

    /// How keen a node is to give space back: three of four are, so that all that can go wrong with it goes wrong with
    /// these few pages.
    fn tidy(&self) -> Tidy {
        let usual = Tidy::default();
        match self.run.seed / 10 % 4 {
            0 => usual,
            1 => Tidy {
                tail_segments: 2,
                childless_wait: Duration::from_secs(5),
                ..usual.thorough()
            },
            2 => Tidy {
                blocked_wait: Duration::from_secs(2),
                ..usual.thorough()
            },
            _ => Tidy {
                tail_segments: 4,
                upper_entries: 40,
                dead_objects: 8,
                dead_bytes: u64::MAX,
                childless_wait: Duration::from_secs(60),
                ..usual.thorough()
            },
        }
    }

    /// Everything that the export needs is there, and its ledger tells the truth (rules 20, 21, 26). Nothing happens
    /// to the host.
    pub(super) async fn audit(&self, host: HostId, name: &str) -> Result<Audit> {
        let (config, name) = (self.config(host).bucket, name.to_owned());
        let of = name.clone();
        let call = self.sim.call(host, |world| audit(world, config, of));
        let pid = call.pid();
        let audit = call.await;
        self.sim.kill(pid);
        let audit = audit.context("a host crashed that nobody touched")?;
        let audit = audit.with_context(|| format!("audit of {name}"))?;
        let there: BTreeSet<String> = self.sim.keys().into_iter().collect();
        let missing: Vec<&String> = audit.needed.difference(&there).collect();
        ensure!(missing.is_empty(), "{name} needs what is gone: {missing:?}");
        ensure!(audit.mistakes.is_empty(), "{name}: {:?}", audit.mistakes);
        Ok(audit)
    }

    /// An operator collects, sweeps, and looks at what is left: nothing that nobody knows.
    async fn clean(&self, node: &Node) -> Result<()> {
        for name in self.disks.names() {
            self.clean_one(node, name).await?;
        }
        Ok(())
    }

    async fn clean_one(&self, node: &Node, name: &str) -> Result<()> {
        let collected = node.gc_of(name, false).await?;
        self.sim.note(format_args!("gc: {collected:?}"));
        let mut unknown = self.unknown(node, name).await?;
        if unknown.len() > LEFT_MAX {
            // A writer may publish between the look at the root and the look at the keys: what it made for that is
            // known a moment later. What is lost for good is as unknown then.
            let later = self.unknown(node, name).await?;
            unknown.retain(|key| later.contains(key));
        }
        // What a request of the dead leaves that lands after the sweep, and what is on its way.
        ensure!(unknown.len() <= LEFT_MAX, "nobody knows {unknown:?}");
        Ok(())
    }

    /// Objects of an export that neither its root nor its ledger names.
    async fn unknown(&self, node: &Node, name: &str) -> Result<BTreeSet<String>> {
        let audit = self.audit(node.host, name).await?;
        let own = |key: &String| {
            ["seg", "map"]
                .iter()
                .any(|folder| key.starts_with(&format!("nbd/{name}/{folder}/")))
        };
        let known = |key: &String| audit.needed.contains(key) || audit.dead.contains(key);
        let keys = self.sim.keys().into_iter();
        Ok(keys.filter(|key| own(key) && !known(key)).collect())
    }

    pub(super) fn config(&self, host: HostId) -> ShardConfig {
        let s = &self.settings;
        let size = 64 * 1024 + s.chunks * u64::from(s.chunk_bytes);
        let mut cache = CacheConfig::new("/cache", size);
        cache.chunk_bytes = Some(s.chunk_bytes);
        cache.volume_dirty_bytes_max = size / 8 * s.dirty_eighths;
        cache.dirty_bytes_max = cache.dirty_bytes_max.max(cache.volume_dirty_bytes_max);
        let bucket = BucketConfig {
            password: self.is_sealed().then(|| PASSWORD.to_owned()),
            cost: KeyringCost::LEAST,
            ..BucketConfig::new(s.compression)
        };
        let mut config = ShardConfig::new(cache, bucket, self.sim.host_name(host));
        config.exports.create_bytes = Some(s.volume_bytes);
        config.exports.grace = s.grace;
        config.exports.sync.delay = s.delay;
        config.exports.sync.publish_interval_min = s.interval;
        config.exports.sync.blocks_per_batch = s.blocks_per_batch;
        config.exports.sync.cut_extents_max = s.cut_extents_max;
        config.exports.sync.tidy = self.tidy();
        plant(self.run.plant, &mut config);
        config
    }

    /// Starts a server. None if its host crashed meanwhile.
    pub(super) async fn start(&self, host: HostId) -> Result<Option<Node>> {
        match self.try_start(host).await {
            Started::Up(node) => Ok(Some(node)),
            Started::Crashed => Ok(None),
            Started::Refused(why) => bail!("the server does not start: {why}"),
        }
    }

    pub(super) async fn try_start(&self, host: HostId) -> Started {
        Node::start(&self.sim, host, self.config(host)).await
    }

    /// Starts a server on a host that nothing happens to.
    pub(super) async fn start_surely(&self, host: HostId) -> Result<Node> {
        let node = self.start(host).await?;
        node.context("a host crashed that nobody touched")
    }

    pub(super) fn guest(&self, node: &Node, load: Load) -> Guest {
        self.sim.note(format_args!("{load:?}"));
        let (disks, model) = (Rc::clone(&self.disks), Rc::clone(&self.model));
        Guest::start(&self.sim, node.host, disks, model, load)
    }

    /// Counts what a guest was answered, and passes on what it accuses somebody of.
    pub(super) fn dismiss(&self, guest: &Guest) -> Result<()> {
        let answers = guest.state().answers.get();
        self.answers.set(self.answers.get() + answers);
        guest.check()
    }

    /// From here on another node owns the volume, or is about to.
    pub(super) fn branch(&self) {
        self.branch.set(self.branch.get() + 1);
    }

    /// What this guest does from here on is not part of the volume.
    pub(super) fn estrange(&self, guest: &Guest) {
        self.branch();
        guest.estrange();
    }

    /// Lets a guest finish what it is at and leave.
    pub(super) async fn rest(&self, guest: &Guest) -> Result<()> {
        guest.stop();
        guest.over(ANSWER_MAX).await?;
        guest.leave(self.one_in(2));
        self.pause_ms(0, 5).await;
        self.sim.kill(guest.pid);
        self.dismiss(guest)
    }

    /// Tells the model, for as long as the node lives and owns, what it has published.
    pub(super) fn follow(&self, node: &Rc<Node>) {
        let (sim, node, model) = (self.sim.clone(), Rc::clone(node), Rc::clone(&self.model));
        let (branch, own) = (Rc::clone(&self.branch), self.branch.get());
        let disks = Rc::clone(&self.disks);
        self.sim.spawn(async move {
            loop {
                let pause = sim.chance(|chance| chance.between(5, 500));
                sim.sleep(Duration::from_millis(pause)).await;
                let begun = model.borrow_mut().publish_begin();
                let Ok(before) = node.get_all(disks.names()).await else {
                    return;
                };
                loop {
                    let Ok(now) = node.get_all(disks.names()).await else {
                        return;
                    };
                    let both = || now.iter().zip(&before);
                    let owns = |(now, before): (&ExportDocument, &ExportDocument)| {
                        now.role == "read-write" && now.epoch == before.epoch
                    };
                    if !both().all(owns) || branch.get() != own {
                        return;
                    }
                    if both().all(|(now, before)| now.published_seq >= before.last_seq) {
                        let published = now.iter().map(|now| now.published_seq);
                        let published: Vec<u64> = published.collect();
                        sim.note(format_args!("published {published:?}"));
                        model.borrow_mut().publish_done(begun);
                        break;
                    }
                    sim.sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }

    /// Everything answered by now is in the store when it returns.
    pub(super) async fn drain(&self, node: &Node) -> Result<()> {
        let begun = self.model.borrow_mut().publish_begin();
        let mut last = String::new();
        for tries in 0..TRIES_MAX {
            // A guest that goes on writing under the worst weather has always more to drain; and no weather lasts.
            if tries == TRIES_MAX / 2 {
                self.calm();
            }
            match node.drain_all(self.disks.names()).await {
                Ok(()) => {
                    self.model.borrow_mut().publish_done(begun);
                    return Ok(());
                }
                Err(error) => last = error.to_string(),
            }
            self.sim.sleep(TRY_PAUSE).await;
        }
        bail!("never drained: {last}")
    }

    /// Takes the volume by force, whoever has it.
    pub(super) async fn take(&self, node: &Node) -> Result<()> {
        let taken = self.try_take(node, TRIES_MAX).await;
        taken.map_err(|why| anyhow!("never promoted: {why}"))
    }

    /// The same with less patience; returns the last refusal.
    pub(super) async fn try_take(&self, node: &Node, tries: u32) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..tries {
            match node.seize(&self.disks.any_name(&self.sim)).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            self.sim.sleep(TRY_PAUSE).await;
        }
        Err(last)
    }

    /// Makes the node the owner as an operator would: by force where another has the volume, and
    /// by giving up what nobody can publish any more.
    pub(super) async fn settle(&self, node: &Node) -> Result<()> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            match self.connects(node).await {
                Some(Ok(Access::ReadWrite)) => return Ok(()),
                Some(Ok(Access::ReadOnly)) => {
                    if let Err(why) = self.try_take(node, 1).await {
                        last = why;
                    }
                }
                Some(Err(why)) => last = why,
                None => bail!("a host crashed that nobody touched"),
            }
            if last.contains("accept their loss") {
                self.sim.note("the operator accepts the loss");
                let deleted = node.delete().await;
                last = deleted.map_or_else(|error| error.to_string(), |_| String::new());
            }
            self.sim.sleep(TRY_PAUSE).await;
        }
        bail!("never settled: {last}")
    }

    /// Nobody is let in, and the reason names `what`.
    pub(super) async fn refuses(&self, node: &Node, what: &str) -> Result<()> {
        match self.connects(node).await {
            Some(Err(why)) if why.contains(what) => Ok(()),
            other => bail!("no refusal that names `{what}`: {other:?}"),
        }
    }

    /// Connects once and leaves: what the client was told. None if its host crashed.
    async fn connects(&self, node: &Node) -> Option<Result<Access, String>> {
        let call = self.sim.call(node.host, |world| async move {
            let client = NbdClient::connect(&world, &socket(), NAME, Options::default()).await;
            let client = client.map_err(|error| error.to_string())?;
            Ok(if client.export().flags & export::READ_ONLY == 0 {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            })
        });
        let pid = call.pid();
        let told = call.await;
        self.sim.kill(pid);
        told
    }

    /// Each page is right, or an error. For a store that is damaged.
    pub(super) async fn check_pages(&self, node: &Node) -> Result<()> {
        let (size, model) = (self.settings.volume_bytes, Rc::clone(&self.model));
        let call = self.sim.call(node.host, move |world| async move {
            let client = NbdClient::connect(&world, &socket(), NAME, Options::default()).await;
            let Ok(client) = client else {
                return anyhow::Ok(0);
            };
            let (mut good, mut at) = (0, 0);
            while at < size {
                let len = world_len(&world, size - at);
                let begun = model.borrow_mut().read_begin();
                if let Ok(bytes) = client.read(at, u32::try_from(len).expect("small")).await {
                    let verdict = model.borrow().check_read(begun, at, &bytes);
                    verdict.map_err(|violation| anyhow!("a read of {at}+{len}: {violation}"))?;
                    good += 1;
                }
                at += len;
            }
            Ok(good)
        });
        let pid = call.pid();
        let outcome = call.await;
        self.sim.kill(pid);
        let good: u32 = outcome.context("a host crashed that nobody touched")??;
        self.sim.note(format_args!("{good} reads were answered"));
        Ok(())
    }

    /// One seed in five has a store that says when to come again. Told by the number, as [`Self::is_sealed`]; none of
    /// `seeds.txt` is among them that has a bad store at all.
    fn asks_to_wait(&self, odds: impl FnOnce() -> Odds) -> Odds {
        if self.run.seed % 5 == 2 {
            odds()
        } else {
            Odds::NEVER
        }
    }

    /// A bad store, more or less.
    pub(super) fn weather(&self) {
        let odds = |times: u32| Odds::one_in(times);
        let asks_to_wait = |times| self.asks_to_wait(|| odds(times));
        let faults = match self.between(0, 4) {
            0 => StoreFaults::default(),
            1 => StoreFaults {
                lost_request: odds(20),
                throttled: odds(20),
                asks_to_wait: asks_to_wait(20),
                lost_answer: odds(20),
                late: odds(40),
                ..StoreFaults::default()
            },
            2 => StoreFaults {
                late: odds(5),
                ..StoreFaults::default()
            },
            3 => StoreFaults {
                lost_answer: odds(4),
                ..StoreFaults::default()
            },
            _ => StoreFaults {
                lost_request: odds(4),
                throttled: odds(4),
                asks_to_wait: asks_to_wait(12),
                ..StoreFaults::default()
            },
        };
        self.sim.set_store_faults(faults);
    }

    /// Everything at once that a store can do wrong. A node that holds nothing yet does not start with
    /// credentials that are refused, as it should, so that one is spared.
    pub(super) fn storm(&self, held: bool) {
        let odds = |stage: &Self, low, high| {
            Odds::one_in(u32::try_from(stage.between(low, high)).expect("small"))
        };
        let faults = StoreFaults {
            lost_request: odds(self, 8, 60),
            throttled: odds(self, 8, 60),
            asks_to_wait: self.asks_to_wait(|| odds(self, 8, 60)),
            refused: if held { odds(self, 8, 60) } else { Odds::NEVER },
            false_conflict: odds(self, 8, 60),
            lost_answer: odds(self, 8, 60),
            late: odds(self, 3, 40),
            repeated: odds(self, 5, 60),
        };
        self.sim.set_store_faults(faults);
    }

    /// The only node that ever opened the volume owns it, whatever it was answered: who takes an
    /// unclear answer for a fence stops a guest without need (rule 13).
    pub(super) async fn owns(&self, node: &Node) -> Result<()> {
        match node.get().await {
            Ok(export) if matches!(export.role.as_str(), "fenced" | "vanished") => {
                bail!("the export is {}, and there is no other node", export.role)
            }
            _ => Ok(()),
        }
    }

    /// No more trouble from outside.
    pub(super) fn calm(&self) {
        self.sim.set_store_faults(StoreFaults::default());
        self.sim.set_store_outage(None, false);
        for name in ["a", "b", "c"] {
            let host = self.sim.host(name);
            self.sim.set_store_outage(Some(host), false);
            self.sim.set_disk_faults(host, DiskFaults::default());
            // Whatever crash was to come does not.
            self.sim
                .crash_after(host, u64::MAX, world::sim::Crash::Process);
        }
    }

    /// Everything is drained, the node and its disk are lost, and another one, which is returned, finds it all.
    pub(super) async fn finish(&self, node: &Node) -> Result<Node> {
        self.calm();
        self.drain(node).await?;
        let host = node.host;
        node.kill();
        let heir = self.sim.host("heir");
        if self.one_in(2) {
            self.sim.crash(host, world::sim::Crash::Power);
            self.sim.wipe_disk(host);
        }
        let heir = self.start_surely(heir).await?;
        self.take(&heir).await?;
        self.judge(&heir, Judge::Store).await?;
        self.clean(&heir).await?;
        self.judge(&heir, Judge::Store).await?;
        Ok(heir)
    }
}

async fn audit(world: SimWorld, config: BucketConfig, name: String) -> Result<Audit> {
    let store = Metered::new(world.clone(), world.store());
    let bucket = Bucket::open(world, store, config).await?;
    let volume: Volume<SimWorld> = bucket.open_volume(&name).await?;
    Ok(Box::pin(volume.audit()).await?)
}

/// One page, or several.
fn world_len(world: &SimWorld, left: u64) -> u64 {
    let mut byte = [0];
    world.fill_random(&mut byte);
    left.min(PAGE * (1 + u64::from(byte[0] % 4)))
}
