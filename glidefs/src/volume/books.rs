//! Keeping the ledger (`ledger.rs`) in the store: what is new lies in the map index, and goes to chunks where it
//! is much, or where it counts what a chunk has. Chunks are objects like all others: written anew, never changed.

use std::collections::BTreeSet;

use world::World;

use super::VolumeError;
use super::ledger::{CHUNK_ENTRIES_MAX, Chunk, Dead, Ledger, News, ObjectId, RECENT_MAX, Table};
use super::reader::Reader;
use super::sealed::Kind;
use super::writer::Maker;

/// A ledger as the next root will name it.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) ledger: Ledger,
    /// Which of those that are known to be gone it does not list any more.
    pub(crate) forgotten: Vec<ObjectId>,
}

/// What the next version of a ledger is made of.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(crate) news: News,
    /// The cut of the root that the change is made on, and of the one that it makes.
    pub(crate) last: u64,
    pub(crate) cut: u64,
    /// Objects that were deleted in the store.
    pub(crate) gone: &'a BTreeSet<ObjectId>,
}

/// Writes what is new; uploads chunks where that is needed.
pub(crate) async fn keep<W: World>(
    reader: &Reader<W>,
    maker: &Maker<W>,
    ledger: &Ledger,
    change: Change<'_>,
) -> Result<Kept, VolumeError> {
    let Change { mut news, .. } = change;
    let mut recent = ledger.recent.clone();
    let counts = std::mem::take(&mut news.counts);
    let fresh: BTreeSet<ObjectId> = {
        let live = recent.live.iter().chain(&news.table.live);
        live.map(|entry| entry.id).collect()
    };
    let (here, mut elsewhere): (Vec<_>, Vec<_>) =
        counts.into_iter().partition(|(id, _)| fresh.contains(id));
    if ledger.chunks.is_empty() {
        report(maker, elsewhere.len());
        elsewhere.clear();
    }
    let before = dead_ids(&recent, change.gone);
    let wrong = recent.apply(news.table, &here, change.last, change.gone);
    report(maker, wrong);
    let mut forgotten = before;
    let flushes = recent.len() > RECENT_MAX;
    let mut chunks = Vec::with_capacity(ledger.chunks.len());
    let mut replaced = Vec::new();
    let old: Vec<Option<Chunk>> = match ledger.chunks.as_slice() {
        [] if flushes => vec![None],
        chunks => chunks.iter().copied().map(Some).collect(),
    };
    for (at, chunk) in old.into_iter().enumerate() {
        let first = chunk.map_or([0; 16], |chunk| chunk.first);
        let next = ledger.next(at);
        let counts = within(&elsewhere, &first, next);
        let news = if flushes {
            recent.take_range(&first, next)
        } else {
            Table::default()
        };
        match chunk {
            Some(chunk) if counts.is_empty() && news.len() == 0 => {
                chunks.push(chunk);
                continue;
            }
            _ => {}
        }
        let mut table = match &chunk {
            Some(chunk) => load(reader, chunk, next).await?,
            None => Table::default(),
        };
        forgotten.extend(dead_ids(&table, change.gone));
        let wrong = table.apply(news, counts, change.last, change.gone);
        report(maker, wrong);
        if let Some(chunk) = chunk {
            let old = Dead::of(Kind::Ledger, &chunk.object, chunk.birth, change.last);
            replaced.push(old);
        }
        for (low, table) in table.split(CHUNK_ENTRIES_MAX) {
            let first = if low == [0; 16] { first } else { low };
            let totals = table.totals();
            let object = maker.put_index(Kind::Ledger, table.encode()).await?;
            let birth = change.cut;
            chunks.push(Chunk {
                first,
                object,
                birth,
                totals,
            });
        }
    }
    let news = Table {
        live: Vec::new(),
        dead: replaced,
    };
    recent.apply(news, &[], change.last, &BTreeSet::new());
    let ledger = Ledger {
        chunks,
        recent,
        has_gaps: ledger.has_gaps,
    };
    Ok(Kept { ledger, forgotten })
}

/// All that a ledger lists. Tens of bytes for each object of the volume.
pub(crate) async fn load_all<W: World>(
    reader: &Reader<W>,
    ledger: &Ledger,
) -> Result<Table, VolumeError> {
    let mut all = ledger.recent.clone();
    for (at, chunk) in ledger.chunks.iter().enumerate() {
        let table = load(reader, chunk, ledger.next(at)).await?;
        all.live.extend(table.live);
        all.dead.extend(table.dead);
    }
    Ok(all)
}

/// A ledger that begins with all this.
pub(crate) async fn begin<W: World>(
    reader: &Reader<W>,
    maker: &Maker<W>,
    table: Table,
    has_gaps: bool,
    cut: u64,
) -> Result<Ledger, VolumeError> {
    let empty = Ledger {
        has_gaps,
        ..Ledger::default()
    };
    let counts = Vec::new();
    let change = Change {
        news: News { table, counts },
        last: cut,
        cut,
        gone: &BTreeSet::new(),
    };
    Ok(keep(reader, maker, &empty, change).await?.ledger)
}

/// One chunk.
pub(crate) async fn load<W: World>(
    reader: &Reader<W>,
    chunk: &Chunk,
    next: Option<&ObjectId>,
) -> Result<Table, VolumeError> {
    let bytes = reader.index(Kind::Ledger, &chunk.object).await?;
    Table::parse(&bytes, &chunk.first, next)
        .map_err(|what| reader.damaged(Kind::Ledger, chunk.object.name(), what))
}

fn within<'a>(
    counts: &'a [(ObjectId, i64)],
    first: &ObjectId,
    next: Option<&ObjectId>,
) -> &'a [(ObjectId, i64)] {
    let from = counts.partition_point(|(id, _)| id < first);
    let to = next.map_or(counts.len(), |next| {
        counts.partition_point(|(id, _)| id < next)
    });
    &counts[from..to.max(from)]
}

fn dead_ids(table: &Table, gone: &BTreeSet<ObjectId>) -> Vec<ObjectId> {
    let dead = table.dead.iter().map(|dead| dead.id);
    dead.filter(|id| gone.contains(id)).collect()
}

/// A count that makes no sense is a mistake of ours: what it is about stays for good, and nothing is lost.
fn report<W: World>(maker: &Maker<W>, wrong: usize) {
    debug_assert_eq!(
        wrong, 0,
        "volume `{}` counts what it does not have",
        maker.name
    );
    if wrong > 0 {
        tracing::error!(
            export = maker.name,
            objects = wrong,
            "the ledger counts what it does not have; these objects will never be collected: please report this"
        );
    }
}
