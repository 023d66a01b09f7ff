//! What all exports of a shard stand on: cache, store, identity, settings.

use std::cell::Cell;
use std::time::Duration;

use blockcache::Cache;
use world::World;
use world::sync::Semaphore;

use super::base::Lineage;
use super::clients::Sharing;
use super::meter::Meters;
use super::shelf::Shelf;
use crate::operations::Operations;
use crate::repeats::Repeats;
use crate::sync::SyncConfig;
use crate::sync::uploads::Uploads;
use crate::volume::Owner;

/// Shared by the registry and the sync tasks.
#[derive(Debug)]
pub struct Site<W: World> {
    pub(crate) world: W,
    pub(crate) cache: Cache<W>,
    pub(crate) shelf: Shelf<W>,
    pub(crate) meters: Meters,
    pub(crate) repeats: Repeats,
    pub(crate) operations: Operations,
    pub(crate) lineage: Lineage<W>,
    /// What our roots name as owner (rule 18).
    pub(crate) owner: Owner,
    pub(crate) config: ExportConfig,
    /// Segments of all exports in memory and on their way to the store; whoever waits is served in turn.
    pub(crate) uploads: Uploads,
    /// Of them, those that are being read and sealed.
    pub(crate) packing: Semaphore,
    /// Requests of warm-ups under way.
    pub(crate) warming: Semaphore,
    /// The server is going down: nothing new is opened, and nothing detaches but by its order.
    pub(crate) closing: Cell<bool>,
}

impl<W: World> Site<W> {
    /// How often this was held back since it was said last, if it is to be said now.
    pub(crate) fn news(&self, what: &'static str, name: &str) -> Option<u64> {
        self.repeats.news(what, name, self.world.now())
    }
}

/// How exports behave.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// Set: connecting to a name that nobody has creates a volume of this size.
    pub create_bytes: Option<u64>,
    pub sharing: Sharing,
    /// From the end of the last connection to drain and detach (rule 15).
    pub grace: Duration,
    /// How long a read asks a store that is down before it is an error, which few filesystems survive. And then as long as
    /// its last request takes.
    pub read_wait: Duration,
    pub sync: SyncConfig,
    /// Rule 11 is broken on purpose, for the simulation to find: whoever published last, the log's
    /// records count.
    #[cfg(feature = "planted")]
    pub trust_any_nonce: bool,
    /// Rule 13 the same way: a write of the root that landed unheard is taken for a stranger's.
    #[cfg(feature = "planted")]
    pub forgets_intents: bool,
    /// Rule 15 the same way: a promotion without force takes a volume from its owner.
    #[cfg(feature = "planted")]
    pub takes_unasked: bool,
    /// Rule 2 the same way: what is in the store of an older cut counts for the newer one, whatever was written since.
    #[cfg(feature = "planted")]
    pub keeps_rewritten: bool,
    /// Rule 22 the same way: a snapshot goes with any cut.
    #[cfg(feature = "planted")]
    pub snapshots_of_any_cut: bool,
    /// The same for the cut of a fork, with `blockcache::Planted::ForkCutPassed`.
    #[cfg(feature = "planted")]
    pub forks_of_any_cut: bool,
}
