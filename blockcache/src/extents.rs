//! A map from ranges of pages to values, where the newest insert wins. Pure.

use std::collections::BTreeMap;

use crate::{PageNo, PageRange};

/// A value that covers a range and can be cut.
pub trait Cover: Clone {
    /// The value of the same range without its first `pages` pages.
    #[must_use]
    fn skip(&self, pages: u64) -> Self;
}

/// Disjoint ranges in order, each with a value.
#[derive(Clone, Debug)]
pub struct ExtentMap<V> {
    /// Start -> (end, value).
    extents: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self {
            extents: BTreeMap::new(),
        }
    }
}

impl<V: Cover> ExtentMap<V> {
    /// Puts `value` over `range`; whatever was there before is cut away.
    pub fn insert(&mut self, range: PageRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range);
        self.extents.insert(range.start.0, (range.end.0, value));
    }

    /// Clears a range; extents that reach beyond it keep their other parts.
    pub fn remove(&mut self, range: PageRange) {
        let (start, end) = (range.start.0, range.end.0);
        if let Some((&first, (first_end, value))) = self.extents.range_mut(..start).next_back()
            && *first_end > start
        {
            let old_end = std::mem::replace(first_end, start);
            if old_end > end {
                let rest = value.skip(end - first);
                self.extents.insert(end, (old_end, rest));
            }
        }
        while let Some((&at, (at_end, _))) = self.extents.range(start..end).next() {
            let at_end = *at_end;
            let (_, value) = self.extents.remove(&at).expect("the key was just seen");
            if at_end > end {
                self.extents.insert(end, (at_end, value.skip(end - at)));
            }
        }
    }

    /// The extents that meet `range`, cut to it, in order.
    pub fn overlapping(&self, range: PageRange) -> impl Iterator<Item = (PageRange, V)> + '_ {
        let (start, end) = (range.start.0, range.end.0);
        let before = self
            .extents
            .range(..start)
            .next_back()
            .filter(move |(_, (e, _))| *e > start);
        before
            .into_iter()
            .chain(self.extents.range(start..end))
            .map(move |(&at, (at_end, value))| {
                let from = at.max(start);
                (
                    PageRange::new(from, (*at_end).min(end)),
                    value.skip(from - at),
                )
            })
    }

    /// The extent that holds a page.
    pub fn get(&self, page: PageNo) -> Option<V> {
        self.overlapping(PageRange::new(page.0, page.0 + 1))
            .next()
            .map(|(_, value)| value)
    }

    /// All extents in order.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, &V)> {
        self.extents
            .iter()
            .map(|(&start, (end, value))| (PageRange::new(start, *end), value))
    }

    /// Keeps the extents for which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.extents.retain(|_, (_, value)| keep(value));
    }

    pub fn len(&self) -> usize {
        self.extents.len()
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn clear(&mut self) {
        self.extents.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A value that knows which page it was inserted for, so that a wrong cut shows.
    #[derive(Clone, Debug, PartialEq)]
    struct Stamp {
        write: usize,
        offset: u64,
    }

    impl Cover for Stamp {
        fn skip(&self, pages: u64) -> Self {
            Self {
                write: self.write,
                offset: self.offset + pages,
            }
        }
    }

    proptest! {
        #[test]
        fn newest_insert_wins_on_every_page(
            steps in prop::collection::vec((0_u64..60, 0_u64..20, any::<bool>()), 1..60)
        ) {
            let mut map = ExtentMap::default();
            let mut model: Vec<Option<Stamp>> = vec![None; 100];
            for (write, (start, len, insert)) in steps.into_iter().enumerate() {
                let range = PageRange::new(start, start + len);
                if insert {
                    map.insert(range, Stamp { write, offset: 0 });
                } else {
                    map.remove(range);
                }
                for page in start..start + len {
                    let slot = usize::try_from(page).expect("small");
                    model[slot] = insert.then_some(Stamp { write, offset: page - start });
                }
            }
            for (slot, expected) in model.iter().enumerate() {
                prop_assert_eq!(&map.get(PageNo(slot as u64)), expected);
            }
            let covered: u64 = map.overlapping(PageRange::new(10, 50)).map(|(r, _)| r.pages()).sum();
            let expected = model[10..50].iter().filter(|slot| slot.is_some()).count() as u64;
            prop_assert_eq!(covered, expected);
        }
    }
}
