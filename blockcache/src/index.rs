//! Where the newest bytes of each page of a volume are. Pure.
//!
//! Three layers, newest rule first: sectors written since (`partials`) over a page in the log
//! (`regions`) over unpublished zeros (`zeros`); what none of them knows, the store's map knows.
//! A flat table per 2 MiB region costs 8 bytes a page and one look-up; a tree of pages was measured
//! at four times the memory and fifty times the time. A region of which little is here is a short list
//! instead: with tables alone, pages scattered over a large volume cost 4 KiB each.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::extents::{Cover, ExtentMap};
use crate::{PageNo, PageRange, Seq};

const REGION_PAGES: u64 = 512;
const REGION_SLOTS: usize = 512;
/// Pages of a region up to which it is a list, and down to which it becomes one again: not the same, or one page
/// that comes and goes would build a table each time.
const LIST_PAGES_MAX: usize = 32;
const LIST_PAGES_AGAIN: u16 = 16;
/// All sectors of a page.
pub(crate) const FULL_MASK: u8 = 0xff;

/// Where a page is: its number in the log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub(crate) u64);

/// Some sectors of a page, in a data page of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) at: Position,
    pub(crate) mask: u8,
}

/// What lies under the overlays of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Log(Position),
    Zero,
    /// The store's map knows.
    Absent,
}

/// A run of pages of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Consecutive in the log from here.
    Log(Position),
    Zero,
    Absent,
    /// One page with newer sectors, oldest first.
    Overlaid {
        base: Base,
        overlays: Vec<Overlay>,
    },
}

#[derive(Clone, Copy, Debug)]
struct ZeroedAt(Seq);

impl Cover for ZeroedAt {
    fn skip(&self, _pages: u64) -> Self {
        *self
    }
}

struct Region {
    slots: Slots,
    used: u16,
}

/// Positions of pages in the log file; 0 is none (the superblock is there).
enum Slots {
    /// By the page's number in the region, in order; none of them 0.
    List(Vec<(u16, u64)>),
    Table(Box<[u64; REGION_SLOTS]>),
}

impl Region {
    const EMPTY: Self = Self {
        slots: Slots::List(Vec::new()),
        used: 0,
    };

    fn get(&self, slot: usize) -> u64 {
        match &self.slots {
            Slots::List(list) => {
                let found = list.binary_search_by_key(&slot, |(at, _)| usize::from(*at));
                found.map_or(0, |found| list[found].1)
            }
            Slots::Table(table) => table[slot],
        }
    }

    /// The first slot from `from` on, and before `end`, that holds something; else `end`.
    fn next_used(&self, from: usize, end: usize) -> usize {
        let found = match &self.slots {
            Slots::List(list) => {
                let next = list.partition_point(|(at, _)| usize::from(*at) < from);
                list.get(next).map(|(at, _)| usize::from(*at))
            }
            Slots::Table(table) => {
                let used = table[from..end].iter().position(|at| *at != 0);
                used.map(|used| from + used)
            }
        };
        found.unwrap_or(end).min(end)
    }

    fn set(&mut self, slot: usize, value: u64) {
        let before = self.get(slot);
        if before == value {
            return;
        }
        self.used = self.used + u16::from(value != 0) - u16::from(before != 0);
        match &mut self.slots {
            Slots::Table(table) => {
                table[slot] = value;
                if self.used <= LIST_PAGES_AGAIN {
                    self.slots = Slots::List(listed(table));
                }
            }
            Slots::List(list) => {
                let number = u16::try_from(slot).expect("below 512");
                match list.binary_search_by_key(&number, |(at, _)| *at) {
                    Ok(found) if value == 0 => {
                        list.remove(found);
                    }
                    Ok(found) => list[found].1 = value,
                    Err(place) if list.len() < LIST_PAGES_MAX => {
                        list.insert(place, (number, value));
                    }
                    Err(_) => {
                        let mut table = Box::new([0; REGION_SLOTS]);
                        for (at, position) in &*list {
                            table[usize::from(*at)] = *position;
                        }
                        table[slot] = value;
                        self.slots = Slots::Table(table);
                    }
                }
            }
        }
    }

    /// Forgets positions.
    fn forget(&mut self, gone: &Range<u64>) {
        match &mut self.slots {
            Slots::List(list) => list.retain(|(_, at)| !gone.contains(at)),
            Slots::Table(table) => {
                let lost = table.iter_mut().filter(|at| gone.contains(at));
                lost.for_each(|at| *at = 0);
            }
        }
        self.used = match &self.slots {
            Slots::List(list) => u16::try_from(list.len()).expect("a short list"),
            Slots::Table(table) => table.iter().map(|at| u16::from(*at != 0)).sum(),
        };
    }

    /// Of memory, with its place in the tree.
    fn bytes(&self) -> u64 {
        let held = match &self.slots {
            Slots::List(list) => list.capacity() * size_of::<(u16, u64)>(),
            Slots::Table(_) => REGION_SLOTS * 8,
        };
        48 + held as u64
    }
}

fn listed(table: &[u64; REGION_SLOTS]) -> Vec<(u16, u64)> {
    let slots = (0..).zip(table.iter().copied());
    slots.filter(|(_, at)| *at != 0).collect()
}

/// The index of one volume.
#[derive(Default)]
pub(crate) struct VolumeIndex {
    regions: BTreeMap<u64, Region>,
    /// Of all regions.
    region_bytes: u64,
    partials: BTreeMap<u64, Vec<Overlay>>,
    zeros: ExtentMap<ZeroedAt>,
}

impl VolumeIndex {
    /// Whole pages were written; they lie one after the other from `at`.
    pub(crate) fn write(&mut self, pages: PageRange, at: Position) {
        for (n, page) in (pages.start.0..pages.end.0).enumerate() {
            self.set(page, at.0 + n as u64);
        }
        self.clear_partials(pages);
    }

    /// Some sectors of a page were written. Older overlays that are wholly covered go, so a page
    /// never has more than eight.
    pub(crate) fn write_partial(&mut self, page: PageNo, overlay: Overlay) {
        let overlays = self.partials.entry(page.0).or_default();
        overlays.push(overlay);
        prune(overlays);
    }

    /// The pages are zeros since `seq`.
    pub(crate) fn zero(&mut self, pages: PageRange, seq: Seq) {
        self.clear(pages);
        self.zeros.insert(pages, ZeroedAt(seq));
    }

    /// Runs in order that cover `pages`. Zeros at or below `published` are the store's business by
    /// now: the map says so, or something newer.
    pub(crate) fn lookup(&self, pages: PageRange, published: Seq) -> Vec<(PageRange, Found)> {
        let mut runs = Vec::new();
        let mut partials = self.partials.range(pages.start.0..pages.end.0);
        let mut at = pages.start.0;
        loop {
            let next = partials.next();
            let until = next.map_or(pages.end.0, |(page, _)| *page);
            self.plain_runs(PageRange::new(at, until), published, &mut runs);
            let Some((&page, overlays)) = next else {
                return runs;
            };
            let one = PageRange::new(page, page + 1);
            let base = self.base(page, published);
            runs.push((
                one,
                Found::Overlaid {
                    base,
                    overlays: overlays.clone(),
                },
            ));
            at = page + 1;
        }
    }

    fn base(&self, page: u64, published: Seq) -> Base {
        match self.slot(page) {
            0 if self.zeroed(PageNo(page), published) => Base::Zero,
            0 => Base::Absent,
            at => Base::Log(Position(at)),
        }
    }

    fn zeroed(&self, page: PageNo, published: Seq) -> bool {
        self.zeros.get(page).is_some_and(|zero| zero.0 > published)
    }

    /// Runs of a range without partial pages.
    fn plain_runs(&self, pages: PageRange, published: Seq, runs: &mut Vec<(PageRange, Found)>) {
        let mut at = pages.start.0;
        while at < pages.end.0 {
            let key = at / REGION_PAGES;
            let region_end = ((key + 1) * REGION_PAGES).min(pages.end.0);
            match self.regions.get(&key) {
                None => {
                    // Hop over regions that hold nothing: a huge sparse range costs nothing.
                    let next = self
                        .regions
                        .range(key..)
                        .next()
                        .map(|(k, _)| k * REGION_PAGES);
                    let end = next.unwrap_or(u64::MAX).min(pages.end.0);
                    self.unlogged_runs(PageRange::new(at, end), published, runs);
                    at = end;
                }
                Some(region) => {
                    self.region_runs(region, PageRange::new(at, region_end), published, runs);
                    at = region_end;
                }
            }
        }
    }

    fn region_runs(
        &self,
        region: &Region,
        pages: PageRange,
        published: Seq,
        runs: &mut Vec<(PageRange, Found)>,
    ) {
        let mut start = pages.start.0;
        let last = slot_of(pages.end.0 - 1) + 1;
        while start < pages.end.0 {
            let slot = slot_of(start);
            let first = region.get(slot);
            let end = match first {
                0 => start + (region.next_used(slot, last) - slot) as u64,
                at => {
                    let mut end = start + 1;
                    let follows = |page| region.get(slot_of(page)) == at + (page - start);
                    while end < pages.end.0 && follows(end) {
                        end += 1;
                    }
                    end
                }
            };
            let run = PageRange::new(start, end);
            match first {
                0 => self.unlogged_runs(run, published, runs),
                at => push(runs, run, Found::Log(Position(at))),
            }
            start = end;
        }
    }

    /// Pages that are not in the log: zeros or absent.
    fn unlogged_runs(&self, pages: PageRange, published: Seq, runs: &mut Vec<(PageRange, Found)>) {
        let mut at = pages.start.0;
        for (range, zero) in self.zeros.overlapping(pages) {
            if zero.0 <= published {
                continue;
            }
            if at < range.start.0 {
                push(runs, PageRange::new(at, range.start.0), Found::Absent);
            }
            push(runs, range, Found::Zero);
            at = range.end.0;
        }
        if at < pages.end.0 {
            push(runs, PageRange::new(at, pages.end.0), Found::Absent);
        }
    }

    /// A chunk goes: pages that still point to `at..` are forgotten.
    pub(crate) fn evict(&mut self, pages: PageRange, at: Position) {
        for (n, page) in (pages.start.0..pages.end.0).enumerate() {
            if self.slot(page) == at.0 + n as u64 {
                self.set(page, 0);
            }
        }
    }

    /// A chunk goes: an overlay that still points to it is forgotten.
    pub(crate) fn evict_partial(&mut self, page: PageNo, at: Position) {
        if let Some(overlays) = self.partials.get_mut(&page.0) {
            overlays.retain(|overlay| overlay.at != at);
            if overlays.is_empty() {
                self.partials.remove(&page.0);
            }
        }
    }

    /// The sectors of this overlay are in the store. Whatever lies below it here is older than that, and
    /// would show through: the whole page is the store's from now on, but for newer overlays.
    pub(crate) fn uncover_partial(&mut self, page: PageNo, at: Position) {
        let Some(overlays) = self.partials.get_mut(&page.0) else {
            return;
        };
        let Some(listed) = overlays.iter().position(|overlay| overlay.at == at) else {
            return;
        };
        overlays.drain(..=listed);
        if overlays.is_empty() {
            self.partials.remove(&page.0);
        }
        self.set(page.0, 0);
    }

    /// A chunk goes of which it is not known what it holds: whatever points into it is forgotten.
    /// Goes through the whole index.
    pub(crate) fn evict_positions(&mut self, gone: &Range<u64>) {
        let mut bytes = 0;
        self.regions.retain(|_key, region| {
            region.forget(gone);
            bytes += if region.used > 0 { region.bytes() } else { 0 };
            region.used > 0
        });
        self.region_bytes = bytes;
        self.partials.retain(|_page, overlays| {
            overlays.retain(|overlay| !gone.contains(&overlay.at.0));
            !overlays.is_empty()
        });
    }

    /// Whole pages lie elsewhere now: those that still point to `from..` point to `to..`.
    pub(crate) fn repoint(&mut self, pages: PageRange, from: Position, to: Position) {
        for (n, page) in (pages.start.0..pages.end.0).enumerate() {
            if self.slot(page) == from.0 + n as u64 {
                self.set(page, to.0 + n as u64);
            }
        }
    }

    /// Some sectors of a page lie elsewhere now.
    pub(crate) fn repoint_partial(&mut self, page: PageNo, from: Position, to: Position) {
        let overlays = self.partials.get_mut(&page.0).into_iter().flatten();
        overlays
            .filter(|overlay| overlay.at == from)
            .for_each(|overlay| overlay.at = to);
    }

    /// Zeros that are published need no memory any more.
    pub(crate) fn sweep_zeros(&mut self, published: Seq) {
        self.zeros.retain(|zero| zero.0 > published);
    }

    /// Forgets a range altogether: cost grows with what is held in it, not with its length.
    fn clear(&mut self, pages: PageRange) {
        let (first, last) = (
            pages.start.0 / REGION_PAGES,
            pages.end.0.div_ceil(REGION_PAGES),
        );
        let keys: Vec<u64> = self
            .regions
            .range(first..last)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            let region = PageRange::new(key * REGION_PAGES, (key + 1) * REGION_PAGES);
            let within = region.overlap(pages).expect("the key is in range");
            if within == region {
                let gone = self.regions.remove(&key);
                self.region_bytes -= gone.map_or(0, |region| region.bytes());
            } else {
                (within.start.0..within.end.0).for_each(|page| self.set(page, 0));
            }
        }
        self.clear_partials(pages);
        self.zeros.remove(pages);
    }

    fn clear_partials(&mut self, pages: PageRange) {
        while let Some((&page, _)) = self.partials.range(pages.start.0..pages.end.0).next() {
            self.partials.remove(&page);
        }
    }

    fn slot(&self, page: u64) -> u64 {
        self.regions
            .get(&(page / REGION_PAGES))
            .map_or(0, |region| region.get(slot_of(page)))
    }

    fn set(&mut self, page: u64, value: u64) {
        let key = page / REGION_PAGES;
        if value == 0 && !self.regions.contains_key(&key) {
            return;
        }
        let region = self.regions.entry(key).or_insert_with(|| {
            self.region_bytes += Region::EMPTY.bytes();
            Region::EMPTY
        });
        let before = region.bytes();
        region.set(slot_of(page), value);
        self.region_bytes = self.region_bytes - before + region.bytes();
        if region.used == 0 {
            self.region_bytes -= region.bytes();
            self.regions.remove(&key);
        }
    }

    /// Bytes of memory that the index takes, about.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.region_bytes + self.partials.len() as u64 * 96 + self.zeros.len() as u64 * 64
    }
}

fn slot_of(page: u64) -> usize {
    usize::try_from(page % REGION_PAGES).expect("below 512")
}

/// Adds a run, joined with the one before where they are of one kind and follow each other.
fn push(runs: &mut Vec<(PageRange, Found)>, pages: PageRange, found: Found) {
    if let Some((before, kind)) = runs.last_mut()
        && before.end == pages.start
    {
        let joins = match (&*kind, &found) {
            (Found::Zero, Found::Zero) | (Found::Absent, Found::Absent) => true,
            (Found::Log(a), Found::Log(b)) => a.0 + before.pages() == b.0,
            _ => false,
        };
        if joins {
            before.end = pages.end;
            return;
        }
    }
    runs.push((pages, found));
}

/// Drops overlays of which newer ones cover every sector.
pub(crate) fn prune(overlays: &mut Vec<Overlay>) {
    let mut covered = 0_u8;
    let mut keep: Vec<Overlay> = Vec::with_capacity(overlays.len());
    for overlay in overlays.iter().rev() {
        if overlay.mask & !covered != 0 {
            keep.push(*overlay);
            covered |= overlay.mask;
        }
    }
    keep.reverse();
    *overlays = keep;
}

/// The sectors that a set of overlays covers.
pub(crate) fn covered(overlays: &[Overlay]) -> u8 {
    overlays.iter().fold(0, |mask, overlay| mask | overlay.mask)
}

#[cfg(test)]
mod tests;
