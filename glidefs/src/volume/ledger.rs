//! The ledger of a volume: which of its own objects the map names, how much of each, and which were named
//! before and are not known to be gone. Pure. `docs/format/ledger.md`.
//!
//! It is part of the map, so it is as old as the map, whatever dies. Nobody has to read a map to know what is
//! garbage: folding and merging count what they name and what they leave out ([`Tally`]), and the publish that
//! carries their work carries the sum.
//!
//! ```text
//! born ------> live: named by the map ------> dead: named by an earlier one ------> forgotten
//!      publish        nothing is left of it          it was deleted in the store
//! ```
//!
//! An object has a **span**: the first and the last cut at which the volume's content named it. No snapshot and no
//! fork outside of the span can need it (`docs/model.md`).

use std::collections::{BTreeMap, BTreeSet};

use blockcache::Id;
use serde::{Deserialize, Serialize};

use super::extent::{Extent, ObjectName};
use super::root::TailSegment;
use super::sealed::{Kind, ObjectRef};

/// Entries that lie in the map index itself, but for replaced chunks. More go to a chunk. Few in unit tests, which
/// are to meet chunks.
pub(crate) const RECENT_MAX: usize = if cfg!(test) { 8 } else { 1024 };
/// Entries of a chunk, from which it is split.
pub(crate) const CHUNK_ENTRIES_MAX: usize = if cfg!(test) { 16 } else { 64 << 10 };
/// Chunks of one ledger: more objects than the largest volume has.
pub(crate) const CHUNKS_MAX: usize = 4096;
/// Pages, and cuts, count up by one; so a number beyond this is none.
const COUNT_MAX: u64 = 1 << 62;

pub(crate) type ObjectId = [u8; 16];

/// One of the volume's own objects that its map names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: ObjectId,
    pub(crate) kind: Kind,
    pub(crate) epoch: u64,
    /// Of the whole object.
    pub(crate) bytes: u64,
    /// The first cut whose content named it.
    pub(crate) birth: u64,
    /// What it holds, and how much of it the map names: pages of a segment, bytes of a part.
    pub(crate) whole: u64,
    pub(crate) live: u64,
}

/// One of the volume's own objects that an earlier map named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dead {
    pub(crate) id: ObjectId,
    pub(crate) kind: Kind,
    pub(crate) epoch: u64,
    pub(crate) bytes: u64,
    /// Its span: the first and the last cut whose content named it. Never too short.
    pub(crate) birth: u64,
    pub(crate) last: u64,
}

/// A part of the ledger in an object of its own: everything with ids from `first` on, up to the next chunk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) first: ObjectId,
    pub(crate) object: ObjectRef,
    /// The cut whose content named it first.
    pub(crate) birth: u64,
    pub(crate) totals: Totals,
}

/// The part of the ledger in the map index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// By `first`, the lowest of which is zero.
    pub(crate) chunks: Vec<Chunk>,
    /// Not in a chunk yet.
    pub(crate) recent: Table,
    /// Something that an earlier map named is in none of the lists: that map could not be read when the volume was
    /// restored over it. Then what is unnamed here may be named there, and nobody may sweep.
    pub(crate) has_gaps: bool,
}

/// Entries by id, each id in one of the lists, once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) live: Vec<Entry>,
    pub(crate) dead: Vec<Dead>,
}

/// Bytes in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Of objects that the map names.
    pub named_bytes: u64,
    /// The part of them that it names.
    pub live_bytes: u64,
    /// Of objects that an earlier map named.
    pub dead_bytes: u64,
    pub dead_objects: u64,
}

/// What one change of the map does.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Objects that are new in the map. Their `birth` is 0 if it is the publish that carries the change.
    pub(crate) born: Vec<Entry>,
    /// Of all others: how much more of them is named.
    pub(crate) counts: Counts,
}

/// Differences, by object. Objects of other volumes are not counted: they are not ours to delete.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    volume: Id,
    by_id: BTreeMap<ObjectId, i64>,
}

impl Tally {
    /// Of a volume's map that nothing has happened to yet.
    pub(crate) fn new(volume: Id) -> Self {
        Self {
            born: Vec::new(),
            counts: Counts::new(volume),
        }
    }

    /// Segments of the tail that the map takes in, counted by what it names of them.
    pub(crate) fn takes_in(&mut self, segments: &[TailSegment]) {
        for segment in segments {
            let object = &segment.object;
            if self.counts.volume.0 != object.volume {
                continue;
            }
            let live = self.counts.take(&object.id);
            self.born.push(Entry {
                id: object.id,
                kind: Kind::Segment,
                epoch: object.epoch,
                bytes: object.bytes,
                birth: segment.birth,
                whole: segment.pages,
                live: u64::try_from(live).unwrap_or(0),
            });
        }
    }
}

impl Counts {
    pub(crate) fn new(volume: Id) -> Self {
        Self {
            volume,
            by_id: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, object: &ObjectName, more: i64) {
        if object.volume == self.volume {
            *self.by_id.entry(object.id.0).or_default() += more;
        }
    }

    /// One more mention of these pages, or (`sign` -1) one less.
    pub(crate) fn extent(&mut self, extent: &Extent, sign: i64) {
        if let Some(spot) = &extent.spot {
            let pages = i64::try_from(extent.pages.pages()).unwrap_or(i64::MAX);
            self.add(&spot.segment, sign * pages);
        }
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        for (id, more) in &other.by_id {
            *self.by_id.entry(*id).or_default() += more;
        }
    }

    pub(crate) fn take(&mut self, id: &ObjectId) -> i64 {
        self.by_id.remove(id).unwrap_or(0)
    }

    fn sorted(&self) -> Vec<(ObjectId, i64)> {
        let changed = self.by_id.iter().filter(|(_, more)| **more != 0);
        changed.map(|(id, more)| (*id, *more)).collect()
    }
}

impl Entry {
    pub(crate) fn live_bytes(&self) -> u64 {
        share(self.bytes, self.live, self.whole)
    }

    /// The map that comes after `last` does not name it.
    pub(crate) fn into_dead(self, last: u64) -> Dead {
        Dead {
            id: self.id,
            kind: self.kind,
            epoch: self.epoch,
            bytes: self.bytes,
            birth: self.birth,
            last,
        }
    }
}

impl Dead {
    /// An object that only the index or the root named, and that they do not name any more.
    pub(crate) fn of(kind: Kind, object: &ObjectRef, birth: u64, last: u64) -> Self {
        Self {
            id: object.id,
            kind,
            epoch: object.epoch,
            bytes: object.bytes,
            birth,
            last,
        }
    }

    /// Whether one of the cuts (in order) lies in the span, so that what holds it may need the object.
    pub(crate) fn is_held(&self, cuts: &BTreeSet<u64>) -> bool {
        self.birth <= self.last && cuts.range(self.birth..=self.last).next().is_some()
    }
}

impl Totals {
    /// Bytes of objects that the map names, and of which it names not all.
    pub(crate) fn waste_bytes(&self) -> u64 {
        self.named_bytes.saturating_sub(self.live_bytes)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.named_bytes += other.named_bytes;
        self.live_bytes += other.live_bytes;
        self.dead_bytes += other.dead_bytes;
        self.dead_objects += other.dead_objects;
    }
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.live.len() + self.dead.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for entry in &self.live {
            totals.named_bytes += entry.bytes;
            totals.live_bytes += entry.live_bytes();
        }
        for dead in &self.dead {
            totals.dead_bytes += dead.bytes;
            totals.dead_objects += 1;
        }
        totals
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    /// Reads a chunk's table, which must lie between `first` and `next`.
    pub(crate) fn parse(
        bytes: &[u8],
        first: &ObjectId,
        next: Option<&ObjectId>,
    ) -> Result<Self, &'static str> {
        let (table, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_bad| "a chunk of the ledger does not decode")?;
        if !rest.is_empty() {
            return Err("a chunk of the ledger goes on after its end");
        }
        table.check()?;
        let inside = |id: &ObjectId| id >= first && next.is_none_or(|next| id < next);
        let mut ids = table.live.iter().map(|entry| &entry.id);
        let mut dead = table.dead.iter().map(|dead| &dead.id);
        if ids.all(inside) && dead.all(inside) {
            Ok(table)
        } else {
            Err("a chunk of the ledger leaves its range")
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let sorted = self.live.is_sorted_by(|a, b| a.id < b.id)
            && self.dead.is_sorted_by(|a, b| a.id < b.id);
        if !sorted {
            return Err("the ledger is not in order");
        }
        let sound = self.live.iter().all(|entry| {
            entry.live <= entry.whole && entry.whole <= COUNT_MAX && entry.birth <= COUNT_MAX
        });
        if !sound || self.dead.iter().any(|dead| dead.last > COUNT_MAX) {
            return Err("the ledger has an impossible count");
        }
        Ok(())
    }

    /// Takes in what is new, and counts. What nothing is left of is dead, named last at `last`. Returns how many
    /// counts made no sense: those objects stay as they are, and are never collected.
    pub(crate) fn apply(
        &mut self,
        news: Self,
        counts: &[(ObjectId, i64)],
        last: u64,
        gone: &BTreeSet<ObjectId>,
    ) -> usize {
        self.live.extend(news.live);
        self.dead.extend(news.dead);
        self.live.sort_unstable_by_key(|entry| entry.id);
        let mut wrong = 0;
        for (id, more) in counts {
            let at = self.live.binary_search_by_key(id, |entry| entry.id);
            let entry = at.ok().map(|at| &mut self.live[at]);
            let live = entry.as_ref().and_then(|entry| {
                let live = entry.live.checked_add_signed(*more);
                live.filter(|live| *live <= entry.whole)
            });
            match (entry, live) {
                (Some(entry), Some(live)) => entry.live = live,
                _ => wrong += 1,
            }
        }
        let dead = self.live.extract_if(.., |entry| entry.live == 0);
        self.dead.extend(dead.map(|entry| entry.into_dead(last)));
        self.dead.retain(|dead| !gone.contains(&dead.id));
        self.dead.sort_unstable_by_key(|dead| dead.id);
        wrong
    }

    /// In two, by id, if there are too many for one chunk.
    pub(crate) fn split(self, entries_max: usize) -> Vec<(ObjectId, Self)> {
        let mut whole = vec![([0; 16], self)];
        while let Some(at) = whole.iter().position(|(_, it)| it.len() > entries_max) {
            let (first, mut low) = whole.remove(at);
            let mut ids: Vec<ObjectId> = low.live.iter().map(|entry| entry.id).collect();
            ids.extend(low.dead.iter().map(|dead| dead.id));
            ids.sort_unstable();
            let middle = ids[ids.len() / 2];
            let live_at = low.live.partition_point(|entry| entry.id < middle);
            let dead_at = low.dead.partition_point(|dead| dead.id < middle);
            let high = Self {
                live: low.live.split_off(live_at),
                dead: low.dead.split_off(dead_at),
            };
            whole.insert(at, (middle, high));
            whole.insert(at, (first, low));
        }
        whole
    }

    /// What of it has ids from `first` on, up to `next`; the rest stays.
    pub(crate) fn take_range(&mut self, first: &ObjectId, next: Option<&ObjectId>) -> Self {
        let inside = |id: &ObjectId| id >= first && next.is_none_or(|next| id < next);
        Self {
            live: self
                .live
                .extract_if(.., |entry| inside(&entry.id))
                .collect(),
            dead: self.dead.extract_if(.., |dead| inside(&dead.id)).collect(),
        }
    }
}

impl Ledger {
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let from_zero = self
            .chunks
            .first()
            .is_none_or(|chunk| chunk.first == [0; 16]);
        let sorted = self.chunks.is_sorted_by(|a, b| a.first < b.first);
        if !from_zero || !sorted || self.chunks.len() > CHUNKS_MAX {
            return Err("the chunks of the ledger are not in order");
        }
        for chunk in &self.chunks {
            chunk.object.check()?;
        }
        if self.recent.len() > RECENT_MAX + CHUNKS_MAX {
            return Err("the ledger in the map index is too long");
        }
        self.recent.check()
    }

    /// Of all that the ledger has. Segments of the tail are not in it.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = self.recent.totals();
        for chunk in &self.chunks {
            totals.add(&chunk.totals);
        }
        totals
    }

    /// Where the chunk after this one begins.
    pub(crate) fn next(&self, chunk: usize) -> Option<&ObjectId> {
        self.chunks.get(chunk + 1).map(|next| &next.first)
    }
}

/// What the publish that carries some edits has to write down.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) table: Table,
    pub(crate) counts: Vec<(ObjectId, i64)>,
}

impl News {
    /// Of all tallies in order, in the publish of `cut`.
    pub(crate) fn new(volume: Id, tallies: &[Tally], cut: u64) -> Self {
        let mut table = Table::default();
        let mut counts = Counts::new(volume);
        for tally in tallies {
            table.live.extend(tally.born.iter().map(|entry| Entry {
                birth: if entry.birth == 0 { cut } else { entry.birth },
                ..*entry
            }));
            counts.extend(&tally.counts);
        }
        Self {
            table,
            counts: counts.sorted(),
        }
    }
}

/// `bytes * part / whole`, rounded up.
pub(crate) fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let product = u128::from(bytes) * u128::from(part);
    u64::try_from(product.div_ceil(u128::from(whole))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: u8, whole: u64, live: u64) -> Entry {
        Entry {
            id: [id; 16],
            kind: Kind::Segment,
            epoch: 1,
            bytes: 1000,
            birth: 5,
            whole,
            live,
        }
    }

    fn dead(birth: u64, last: u64) -> Dead {
        Dead {
            birth,
            ..entry(1, 1, 0).into_dead(last)
        }
    }

    #[test]
    fn what_nothing_is_left_of_is_dead_and_nothing_else() {
        let mut table = Table {
            live: vec![entry(1, 10, 10), entry(2, 10, 4)],
            dead: Vec::new(),
        };
        let news = Table {
            live: vec![entry(0, 7, 7), entry(3, 8, 0)],
            dead: Vec::new(),
        };
        let counts = [([0; 16], -3), ([1; 16], -9), ([2; 16], -4)];
        assert_eq!(table.apply(news, &counts, 9, &BTreeSet::new()), 0);
        assert_eq!(table.live, [entry(0, 7, 4), entry(1, 10, 1)]);
        let gone: Vec<ObjectId> = table.dead.iter().map(|dead| dead.id).collect();
        assert_eq!(gone, [[2; 16], [3; 16]]);
        assert_eq!((table.dead[0].birth, table.dead[0].last), (5, 9));
        let forget = BTreeSet::from([[2; 16]]);
        table.apply(Table::default(), &[], 9, &forget);
        assert_eq!(table.dead.len(), 1);
    }

    #[test]
    fn a_count_that_makes_no_sense_changes_nothing_and_is_told() {
        let mut table = Table {
            live: vec![entry(1, 10, 3)],
            dead: Vec::new(),
        };
        let counts = [([1; 16], -4), ([7; 16], 1)];
        assert_eq!(
            table.apply(Table::default(), &counts, 9, &BTreeSet::new()),
            2
        );
        assert_eq!(table.live, [entry(1, 10, 3)]);
        let counts = [([1; 16], 8)];
        assert_eq!(
            table.apply(Table::default(), &counts, 9, &BTreeSet::new()),
            1
        );
        assert_eq!(table.live, [entry(1, 10, 3)]);
    }

    #[test]
    fn a_span_holds_by_its_ends_too_and_an_empty_one_never() {
        let cuts = BTreeSet::from([4, 9]);
        for (birth, last, held) in [
            (4, 4, true),
            (1, 4, true),
            (9, 20, true),
            (5, 8, false),
            (10, 20, false),
            (9, 8, false),
        ] {
            assert_eq!(dead(birth, last).is_held(&cuts), held, "{birth} to {last}");
        }
    }

    proptest! {
        #[test]
        fn a_split_table_is_the_same_table(
            ids in prop::collection::btree_set(any::<u8>(), 0..60), entries_max in 1_usize..9,
        ) {
            let mut table = Table::default();
            for id in ids {
                if id % 3 == 0 {
                    table.dead.push(entry(id, 1, 0).into_dead(1));
                } else {
                    table.live.push(entry(id, 9, 5));
                }
            }
            let split = table.clone().split(entries_max);
            prop_assert_eq!(split[0].0, [0; 16]);
            let mut all = Table::default();
            for (at, (first, part)) in split.iter().enumerate() {
                prop_assert!(part.len() <= entries_max);
                let next = split.get(at + 1).map(|(first, _)| first);
                let back = Table::parse(&part.encode(), first, next);
                prop_assert_eq!(back.as_ref(), Ok(part));
                let mut rest = table.clone();
                prop_assert_eq!(&rest.take_range(first, next), part);
                all.live.extend(&part.live);
                all.dead.extend(&part.dead);
            }
            prop_assert_eq!(all, table);
        }

        #[test]
        fn any_bytes_are_refused_or_sound(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(table) = Table::parse(&bytes, &[0; 16], None) {
                prop_assert!(table.check().is_ok());
                let _ = table.totals();
            }
        }
    }
}
