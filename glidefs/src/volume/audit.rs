//! An audit of a volume in the store: reads the whole map and compares it with the ledger, by which the collector
//! deletes. For tests, and for whoever does not want to believe.

use std::collections::{BTreeMap, BTreeSet};

use blockcache::PageRange;
use world::World;

use super::books::load_all;
use super::extent::{ObjectName, VOLUME_PAGES_MAX};
use super::ledger::Entry;
use super::sealed::Kind;
use super::{Volume, VolumeError};

/// What an audit found.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Keys of all objects that the content needs, also those of other volumes.
    pub needed: BTreeSet<String>,
    /// Keys of the volume's own objects that are known to be dead.
    pub dead: BTreeSet<String>,
    /// What the ledger says wrong.
    pub mistakes: Vec<String>,
    /// Bytes of the objects that the map names, what of them it names, and of dead ones. Without the tail.
    pub named_bytes: u64,
    pub live_bytes: u64,
    pub dead_bytes: u64,
}

impl<W: World> Volume<W> {
    /// Reads the map to its last leaf.
    pub async fn audit(&self) -> Result<Audit, VolumeError> {
        let (reader, map, root) = {
            let state = self.inner.state.borrow();
            let root = state.stored.root.clone();
            (self.reader(&state), state.map.clone(), root)
        };
        let mut audit = Audit::default();
        let mut counted: BTreeMap<(Kind, ObjectName), u64> = BTreeMap::new();
        let mut count = |kind: Kind, object: ObjectName, more: u64| {
            *counted.entry((kind, object)).or_default() += more;
        };
        let nodes = reader.bucket.nodes();
        for part in map.runs.iter().flat_map(|run| &run.parts) {
            let reference = &part.directory;
            count(Kind::MapPart, reference.name(), u64::from(reference.stored));
            let directory = nodes.directory(&reader, part).await?;
            let everywhere = PageRange::new(0, VOLUME_PAGES_MAX);
            for row in directory.within(everywhere) {
                count(Kind::MapPart, row.object, u64::from(row.stored));
                let leaf = nodes.leaf(&reader, row).await?;
                for extent in (0..leaf.len()).map(|at| leaf.extent(at)) {
                    if let Some(spot) = extent.spot {
                        count(Kind::Segment, spot.segment, extent.pages.pages());
                    }
                }
            }
        }
        let key = |kind, object| reader.volumes.address(kind, object).map(|it| it.key);
        for (kind, object) in counted.keys() {
            audit.needed.insert(key(*kind, *object)?);
        }
        for segment in &root.content.tail {
            let object = segment.object.name();
            audit.needed.insert(key(Kind::Segment, object)?);
        }
        if let Some(index) = &root.content.map {
            audit.needed.insert(key(Kind::MapIndex, index.name())?);
        }
        for chunk in &map.ledger.chunks {
            audit.needed.insert(key(Kind::Ledger, chunk.object.name())?);
        }
        let all = load_all(&reader, &map.ledger).await?;
        let own = reader.volumes.own();
        for entry in &all.live {
            let name = ObjectName {
                volume: own,
                epoch: blockcache::Epoch(entry.epoch),
                id: blockcache::Id(entry.id),
            };
            let found = counted.remove(&(entry.kind, name)).unwrap_or(0);
            compare(entry, found, &mut audit.mistakes);
        }
        for ((kind, object), count) in counted {
            if object.volume == own {
                audit.mistakes.push(format!(
                    "{kind:?} {} is named {count} times and not listed",
                    object.id
                ));
            }
        }
        for dead in &all.dead {
            let object = ObjectName {
                volume: own,
                epoch: blockcache::Epoch(dead.epoch),
                id: blockcache::Id(dead.id),
            };
            audit.dead.insert(key(dead.kind, object)?);
        }
        let totals = map.ledger.totals();
        audit.named_bytes = totals.named_bytes;
        audit.live_bytes = totals.live_bytes;
        audit.dead_bytes = totals.dead_bytes;
        let both = audit.needed.intersection(&audit.dead);
        let both = both.map(|key| format!("`{key}` is needed, and listed as dead"));
        audit.mistakes.extend(both);
        Ok(audit)
    }
}

fn compare(entry: &Entry, found: u64, mistakes: &mut Vec<String>) {
    if entry.live != found {
        mistakes.push(format!(
            "{:?} {} is named {found} times, and listed with {} of {}",
            entry.kind,
            blockcache::Id(entry.id),
            entry.live,
            entry.whole
        ));
    }
}
