//! One shard: a cache, its exports with their sync tasks, and the answers to the operator.
//!
//! Promises: what the log holds unpublished is synced from the start on, client or none; a start
//! while the store is down serves what the log holds (rule 14); `shutdown` with
//! [`Drain::Everything`] returns when all that was answered is in the store, and what no client
//! holds is given up to whoever opens it next. Absent: signals, sockets, HTTP.

mod answer;
mod delete;
mod forks;
mod gc;
mod groups;
mod leave;
mod loss;
mod meters;
mod prepare;
mod purge;
pub(crate) mod renew;
mod restore;
mod salvage;
mod snapshots;
mod stored;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{Cache, CacheConfig, CacheError, LocalVolume};
use world::sync::{Receiver, Semaphore};
use world::{StoreErrorKind, World};

use crate::control::{ExportDocument, Request, ServerDocument};
use crate::device::ConnectError;
use crate::export::base::Lineage;
use crate::export::clients::Sharing;
use crate::export::document::of_export;
use crate::export::meter::Meters;
use crate::export::open::Wish;
use crate::export::registry::Registry;
use crate::export::shelf::Shelf;
use crate::export::site::{ExportConfig, Site};
use crate::export::warm;
use crate::operations::Operations;
use crate::repeats::Repeats;
use crate::sync::SyncConfig;
use crate::sync::attempt::PACKING_MAX;
use crate::sync::backoff::Backoff;
use crate::sync::uploads::Uploads;
use crate::volume::{BucketConfig, Owner, VolumeError};
use answer::Answers;

/// Between two attempts to bring a volume back while the store does not answer.
const BRING_BACK: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
};

/// Everything a shard is told.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub cache: CacheConfig,
    pub bucket: BucketConfig,
    /// The host's name, for people.
    pub host: String,
    pub exports: ExportConfig,
}

impl ShardConfig {
    /// What a config file leaves open.
    pub fn new(cache: CacheConfig, bucket: BucketConfig, host: impl Into<String>) -> Self {
        Self {
            cache,
            bucket,
            host: host.into(),
            exports: ExportConfig {
                create_bytes: None,
                sharing: Sharing::OneClient,
                grace: Duration::from_secs(30),
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
            },
        }
    }
}

/// Why a shard does not start.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The store answered, and a person must act.
    #[error(transparent)]
    Store(VolumeError),
}

/// What `shutdown` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    Everything,
    /// What was answered is in the log, nothing is given up, and the next start goes on from there.
    Nothing,
}

/// One shard, running.
#[derive(Debug)]
pub struct Shard<W: World> {
    registry: Rc<Registry<W>>,
}

impl<W: World> Shard<W> {
    /// Opens the cache, reaches for the store, and brings back every volume that the log holds.
    pub async fn open(world: W, store: W::Store, config: ShardConfig) -> Result<Self, ShardError> {
        let cache = Box::pin(Cache::open(world.clone(), config.cache)).await?;
        let shelf = Shelf::new(world.clone(), store, config.bucket);
        let held = cache.volumes().into_iter();
        let held = held.filter(|local| is_held(&cache, local));
        let held: Vec<String> = held.map(|local| local.name).collect();
        if let Err(error) = Box::pin(shelf.bucket()).await {
            // Guests that run on what the log holds must not wait for the store. Without any, a
            // mistake in the config is better said at once; and with a wrong password, or a prefix of
            // a later version, nothing can be served either way.
            if !is_of_store(&error) || held.is_empty() && !is_outage(&error) {
                return Err(ShardError::Store(error));
            }
            tracing::error!(%error, "the store cannot be used now; serving what the cache holds, and trying again (docs/runbooks/store-unavailable.md)");
        }
        let sync = &config.exports.sync;
        let site = Rc::new(Site {
            owner: Owner {
                cache: cache.id(),
                host: config.host,
            },
            uploads: Uploads::new(sync.uploads_total_min, sync.uploads_total_max),
            packing: Semaphore::new(PACKING_MAX),
            warming: Semaphore::new(warm::READS_MAX),
            closing: Cell::new(false),
            world,
            cache,
            shelf,
            meters: Meters::default(),
            repeats: Repeats::default(),
            operations: Operations::default(),
            lineage: Lineage::default(),
            config: config.exports,
        });
        let registry = Rc::new(Registry::new(site));
        for name in held {
            bring_back(&registry, name);
        }
        bring_back_parents(&registry);
        Ok(Self { registry })
    }

    /// What front doors connect to.
    pub fn exports(&self) -> Rc<Registry<W>> {
        Rc::clone(&self.registry)
    }

    /// Answers the operator until the sending ends are gone. Slow answers do not hold up others.
    pub async fn serve_control(&self, mut requests: Receiver<Request>) {
        let answers = Answers::new(Rc::clone(&self.registry));
        while let Some(request) = requests.recv().await {
            answers.answer(request).await;
        }
    }

    /// Every open export.
    pub fn documents(&self) -> Vec<ExportDocument> {
        let exports = self.registry.exports();
        exports.iter().map(|export| of_export(export)).collect()
    }

    /// Numbers of the whole server.
    pub fn server(&self) -> ServerDocument {
        answer::server(&self.registry)
    }

    /// Refuses new connections, drains, then gives up every export that has no client. Open
    /// connections go on being served meanwhile; their exports leave behind them, at the next call.
    /// Returns the volumes that another node cannot open without force.
    pub async fn shutdown(&self, drain: Drain) -> Vec<String> {
        let site = self.registry.site();
        site.closing.set(true);
        // Who waits for something to be opened learns that nothing is any more.
        site.lineage.news.notify_waiters();
        site.lineage.wants.notify_one();
        let mut unclear = Vec::new();
        if drain == Drain::Everything {
            answer::drain_all(&self.registry).await;
            unclear = Box::pin(leave::leave_all(&self.registry)).await;
        }
        // Or a guest's read keeps the process until the store is back.
        self.registry.exports().iter().for_each(|it| it.stop());
        leave::owned(site.cache.volumes(), unclear)
    }
}

/// With an intent open, a detach may not have got through: until it has, nobody else may open the volume. With writes
/// that are not published and no epoch, a loss was accepted and the process died before the volume was opened again; or
/// they are salvage, which is said. With a fork that waits for its cut, nobody else could publish that.
fn is_held<W: World>(cache: &Cache<W>, local: &LocalVolume) -> bool {
    let mut forks = local.forks.iter();
    let is_waited_for = forks.any(|fork| !fork.is_carried && cache.is_pending_fork(fork.child));
    let has_writes = local.last > local.published;
    local.attached || !local.intents.is_empty() || has_writes || is_waited_for
}

/// Opens a volume that this log holds, without a client: its unpublished writes go to the store,
/// and if nobody comes back, it is detached. Tried until the store answers or a client was faster.
fn bring_back<W: World>(registry: &Rc<Registry<W>>, name: String) {
    let (registry, world) = (Rc::clone(registry), registry.site().world.clone());
    world.spawn(async move {
        Box::pin(brought_back(&registry, &name)).await;
        // A fork that waits for it may ask again.
        registry.site().lineage.settled(&name);
    });
}

async fn brought_back<W: World>(registry: &Registry<W>, name: &str) {
    let site = registry.site();
    let mut failures = 0;
    while registry.get(name).is_none() && !site.closing.get() {
        let mut door = registry.door(name).await;
        // Somebody who deleted it was in the door: it would be taken back from whoever is to have it.
        let mut locals = site.cache.volumes().into_iter();
        if !locals.any(|local| local.name == name && is_held(&site.cache, &local)) {
            return;
        }
        let opened = Box::pin(registry.opened(&mut door, name, Wish::default())).await;
        drop(door);
        match opened {
            Ok(_) => return,
            Err(ConnectError::Unavailable(why)) => {
                failures += 1;
                if failures == 1 {
                    tracing::error!(export = %name, why, "a volume that the cache holds cannot be brought back now; trying again (docs/runbooks/store-unavailable.md)");
                }
            }
            Err(error) => {
                tracing::error!(export = %name, %error, "a volume that the cache holds could not be brought back (docs/runbooks/volume-read-only.md)");
                return;
            }
        }
        let mut chance = [0; 4];
        site.world.fill_random(&mut chance);
        let wait = BRING_BACK.wait(failures, u32::from_le_bytes(chance), None);
        site.world.sleep(wait).await;
    }
}

/// Opens parents that forks wait for, until the server ends: such a one was given up because of something that has
/// passed, as a root that was not there for a moment, and nobody need ever connect to it.
fn bring_back_parents<W: World>(registry: &Rc<Registry<W>>) {
    let (registry, world) = (Rc::clone(registry), registry.site().world.clone());
    world.spawn(async move {
        let site = registry.site();
        loop {
            // Made before the look: what is wanted in between wakes it.
            let wants = site.lineage.wants.notified();
            if site.closing.get() {
                return;
            }
            while let Some(name) = site.lineage.take_wanted() {
                bring_back(&registry, name);
            }
            wants.await;
        }
    });
}

fn is_of_store(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Store(_))
}

fn is_outage(error: &VolumeError) -> bool {
    let VolumeError::Store(error) = error else {
        return false;
    };
    matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown)
}
