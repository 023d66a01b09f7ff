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
    let Change {
        news,
        last,
        cut,
        gone,
    } = change;
    let mut books = Books {
        recent: ledger.recent.clone(),
        chunks: Vec::with_capacity(ledger.chunks.len()),
        replaced: Vec::new(),
        forgotten: dead_ids(&ledger.recent, gone),
        last,
        cut,
        gone,
    };
    let mut has_gaps = ledger.has_gaps;
    let elsewhere = books.take_in(maker, news, has_gaps);
    if ledger.chunks.is_empty() && !has_gaps {
        report(maker, elsewhere.len());
    }
    let flushes = books.recent.len() > RECENT_MAX;
    if ledger.chunks.is_empty() && flushes {
        books.begin_chunks(maker).await?;
    }
    for (at, chunk) in ledger.chunks.iter().enumerate() {
        let next = ledger.next(at);
        let counts = within(&elsewhere, &chunk.first, next);
        let news = match flushes {
            true => books.recent.take_range(&chunk.first, next),
            false => Table::default(),
        };
        if counts.is_empty() && news.len() == 0 {
            books.chunks.push(*chunk);
            continue;
        }
        // A chunk that is lost must not keep the volume from being published. What it listed stays for good.
        let mut table = known(load(reader, chunk, next).await)?.unwrap_or_else(|lost| {
            has_gaps = true;
            tracing::error!(export = maker.name, error = %lost, "a part of the ledger is lost: no data is, but what it listed will never be collected; to get the space back, copy the volume into a new one (docs/runbooks/bill-too-high.md)");
            Table::default()
        });
        books.forgotten.extend(dead_ids(&table, gone));
        let wrong = table.apply(news, counts, last, gone);
        if !has_gaps {
            report(maker, wrong);
        }
        let old = Dead::of(Kind::Ledger, &chunk.object, chunk.birth, last);
        books.replaced.push(old);
        books.put(maker, chunk.first, table).await?;
    }
    Ok(books.kept(has_gaps))
}

/// The next version in the making.
#[derive(Debug)]
struct Books<'a> {
    recent: Table,
    chunks: Vec<Chunk>,
    /// Chunks that are not part of it any more.
    replaced: Vec<Dead>,
    forgotten: Vec<ObjectId>,
    last: u64,
    cut: u64,
    gone: &'a BTreeSet<ObjectId>,
}

impl Books<'_> {
    /// Returns the counts of what lies in chunks.
    fn take_in<W: World>(
        &mut self,
        maker: &Maker<W>,
        news: News,
        has_gaps: bool,
    ) -> Vec<(ObjectId, i64)> {
        let live = self.recent.live.iter().chain(&news.table.live);
        let fresh: BTreeSet<ObjectId> = live.map(|entry| entry.id).collect();
        let counts = news.counts.into_iter();
        let (here, elsewhere): (Vec<_>, Vec<_>) = counts.partition(|(id, _)| fresh.contains(id));
        let wrong = self.recent.apply(news.table, &here, self.last, self.gone);
        if !has_gaps {
            report(maker, wrong);
        }
        elsewhere
    }

    async fn begin_chunks<W: World>(&mut self, maker: &Maker<W>) -> Result<(), VolumeError> {
        let table = std::mem::take(&mut self.recent);
        self.put(maker, [0; 16], table).await
    }

    /// Uploads a chunk, or several, if it is too large.
    async fn put<W: World>(
        &mut self,
        maker: &Maker<W>,
        first: ObjectId,
        table: Table,
    ) -> Result<(), VolumeError> {
        for (low, table) in table.split(CHUNK_ENTRIES_MAX) {
            let totals = table.totals();
            let object = maker.put_index(Kind::Ledger, table.encode()).await?;
            self.chunks.push(Chunk {
                first: first.max(low),
                object,
                birth: self.cut,
                totals,
            });
        }
        Ok(())
    }

    fn kept(mut self, has_gaps: bool) -> Kept {
        let replaced = Table {
            live: Vec::new(),
            dead: self.replaced,
        };
        self.recent
            .apply(replaced, &[], self.last, &BTreeSet::new());
        let ledger = Ledger {
            chunks: self.chunks,
            recent: self.recent,
            has_gaps,
        };
        Kept {
            ledger,
            forgotten: self.forgotten,
        }
    }
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

/// Tells a chunk that is lost from one that cannot be read right now.
pub(crate) fn known(
    loaded: Result<Table, VolumeError>,
) -> Result<Result<Table, VolumeError>, VolumeError> {
    match loaded {
        Err(lost @ (VolumeError::Damaged { .. } | VolumeError::Missing { .. })) => Ok(Err(lost)),
        Err(error) => Err(error),
        Ok(table) => Ok(Ok(table)),
    }
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
            "the ledger counts what it does not have; these objects will never be collected; check the export with `glidefs gc run --dry-run` and report this"
        );
    }
}
