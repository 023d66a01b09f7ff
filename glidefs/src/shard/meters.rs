//! Everything that is counted, put together for one look. Nothing waits here, so all of it is of one
//! moment; the store is not asked.

use std::collections::BTreeMap;
use std::time::Duration;

use blockcache::{LocalVolume, VolumeCounts};
use world::World;

use super::answer::{list, server};
use super::salvage::is_salvage;
use crate::control::{CacheDocument, ExportDocument, ExportMeters, MetersDocument};
use crate::export::document::millis;
use crate::export::registry::Registry;

/// Exports in one document, the first by name: what one look and one scrape may cost. How many are
/// left out is said.
const EXPORTS_MAX: usize = 2000;

pub(super) fn meters<W: World>(registry: &Registry<W>) -> MetersDocument {
    let site = registry.site();
    let (listed, usage) = (list(registry), site.cache.stats());
    let left_out = listed.len().saturating_sub(EXPORTS_MAX);
    let exports = listed.into_iter().take(EXPORTS_MAX);
    // Once for all of them: clients wait meanwhile.
    let mut locals: Locals = BTreeMap::new();
    for local in site.cache.volumes() {
        locals.entry(local.name.clone()).or_default().push(local);
    }
    MetersDocument {
        at_ms: site.world.now().as_nanos() / 1_000_000,
        server: server(registry),
        cache: CacheDocument {
            evicted_chunks: usage.evictions,
            persists: usage.persists,
            throttled_writes: usage.throttled,
            writers_waiting: u64::from(usage.writers_waiting),
            kept_frames: usage.fills,
            index_bytes: usage.index_bytes,
            disk_full: usage.disk_full,
        },
        store: site.shelf.meter().snapshot(),
        exports: exports
            .map(|export| of_export(registry, &locals, export))
            .collect(),
        exports_left_out: u64::try_from(left_out).expect("usize fits u64"),
    }
}

/// What the log holds, by the names of the volumes.
type Locals = BTreeMap<String, Vec<LocalVolume>>;

fn of_export<W: World>(
    registry: &Registry<W>,
    locals: &Locals,
    export: ExportDocument,
) -> ExportMeters {
    let site = registry.site();
    let open = registry.get(&export.name);
    // Of the log and not of the handle: they must not fall to nothing and come back whenever it is closed and opened.
    let held = locals.get(&export.name).map_or(&[][..], Vec::as_slice);
    let local = held.iter().find(|local| local.attached).or(held.first());
    let local = local.and_then(|local| site.cache.volume(local.id));
    let counts = local.map_or_else(VolumeCounts::default, |local| local.counts());
    let root = open.as_ref().and_then(|open| open.root());
    let salvage = held.iter().filter(|local| is_salvage(registry, local));
    let salvage_bytes = salvage.map(|local| local.dirty_bytes).sum();
    // Nobody will publish that, so it is not late.
    let age = match salvage_bytes {
        0 => Duration::from_millis(export.dirty_age_ms),
        _ => Duration::ZERO,
    };
    let latency = site.meters.known(&export.name);
    ExportMeters {
        published_unix_ms: root.map_or(0, |root| root.cut_time.0),
        sync_lag_ms: millis(age.saturating_sub(site.config.sync.delay)),
        throttled_writes: counts.throttled,
        throttled_ms: millis(counts.throttled_for),
        evicted_pages: counts.evicted_pages,
        decayed_reads: counts.decayed_reads,
        salvage_bytes,
        store: site.shelf.meter().of_volume(&export.name),
        latency: latency.map(|meter| meter.latencies()).unwrap_or_default(),
        export,
    }
}
