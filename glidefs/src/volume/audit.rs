//! An audit of a volume in the store: reads the whole map and compares it with the ledger, by which the collector
//! deletes. For tests, and for whoever does not want to believe.

use std::collections::{BTreeMap, BTreeSet};

use blockcache::{Epoch, Id, PageRange};
use world::World;

use super::books::load_all;
use super::extent::{ObjectName, VOLUME_PAGES_MAX};
use super::ledger::Entry;
use super::reader::Reader;
use super::runs::Map;
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

/// How often objects are named: pages of segments, bytes of parts.
type Counted = BTreeMap<(Kind, ObjectName), u64>;

impl<W: World> Volume<W> {
    /// Reads the map to its last leaf.
    pub async fn audit(&self) -> Result<Audit, VolumeError> {
        let (reader, map, root) = {
            let state = self.inner.state.borrow();
            let root = state.stored.root.clone();
            (self.reader(&state), state.map.clone(), root)
        };
        let mut audit = Audit::default();
        let mut counted = count(&reader, &map).await?;
        let key = |kind, object| reader.volumes.address(kind, object).map(|it| it.key);
        let tail = root
            .content
            .tail
            .iter()
            .map(|it| (Kind::Segment, it.object));
        let index = root.content.map.map(|index| (Kind::MapIndex, index));
        let chunks = map.ledger.chunks.iter().map(|it| (Kind::Ledger, it.object));
        let whole = tail.chain(index).chain(chunks);
        let whole = whole.map(|(kind, object)| (kind, object.name()));
        for (kind, object) in whole.chain(counted.keys().copied()) {
            audit.needed.insert(key(kind, object)?);
        }
        let all = load_all(&reader, &map.ledger).await?;
        let volume = reader.volumes.own();
        let name = |epoch: u64, id| ObjectName {
            volume,
            epoch: Epoch(epoch),
            id: Id(id),
        };
        for entry in &all.live {
            let object = (entry.kind, name(entry.epoch, entry.id));
            let found = counted.remove(&object).unwrap_or(0);
            compare(entry, found, &mut audit.mistakes);
        }
        let own = counted.iter().filter(|((_, it), _)| it.volume == volume);
        let unlisted = own.map(|((kind, object), count)| {
            format!(
                "{kind:?} {} is named {count} times and not listed",
                object.id
            )
        });
        audit.mistakes.extend(unlisted);
        for dead in &all.dead {
            audit
                .dead
                .insert(key(dead.kind, name(dead.epoch, dead.id))?);
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

async fn count<W: World>(reader: &Reader<W>, map: &Map) -> Result<Counted, VolumeError> {
    let mut counted = Counted::new();
    let mut count = |kind: Kind, object: ObjectName, more: u64| {
        *counted.entry((kind, object)).or_default() += more;
    };
    let nodes = reader.bucket.nodes();
    for part in map.runs.iter().flat_map(|run| &run.parts) {
        let reference = &part.directory;
        count(Kind::MapPart, reference.name(), u64::from(reference.stored));
        let directory = nodes.directory(reader, part).await?;
        let everywhere = PageRange::new(0, VOLUME_PAGES_MAX);
        for row in directory.within(everywhere) {
            count(Kind::MapPart, row.object, u64::from(row.stored));
            let leaf = nodes.leaf(reader, row).await?;
            for extent in (0..leaf.len()).map(|at| leaf.extent(at)) {
                if let Some(spot) = extent.spot {
                    count(Kind::Segment, spot.segment, extent.pages.pages());
                }
            }
        }
    }
    Ok(counted)
}

fn compare(entry: &Entry, found: u64, mistakes: &mut Vec<String>) {
    if entry.live != found {
        mistakes.push(format!(
            "{:?} {} is named {found} times, and listed with {} of {}",
            entry.kind,
            Id(entry.id),
            entry.live,
            entry.whole
        ));
    }
}
