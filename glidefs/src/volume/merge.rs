//! Merging runs, decided one step at a time. Pure: who acts on the steps is `compact.rs`.
//!
//! Each input is a cursor that shows its head: an extent, or a whole leaf that is not in memory. A
//! leaf that no other input overlaps is carried over by reference; else it is loaded, and its
//! extents come out one by one, the newest input first where several say something.

use blockcache::PageRange;

use super::extent::Extent;

/// What the next of an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Done,
    Leaf { pages: PageRange, carry: Carry },
    Extent(Extent),
}

/// Whether a leaf may be carried over as it is, if nothing overlaps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carry {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Finished,
    /// The input's next leaf is part of the result.
    Carry(usize),
    /// The input's next leaf must be read.
    Load(usize),
    /// The extent is part of the result. All inputs move on to its end: they drop what lies before
    /// it, and never show a leaf that begins there.
    Emit(Extent),
}

impl Head {
    fn start(&self) -> Option<u64> {
        match self {
            Self::Done => None,
            Self::Leaf { pages, .. } => Some(pages.start.0),
            Self::Extent(extent) => Some(extent.start()),
        }
    }

    /// What is left of an extent after all up to `to` is done.
    pub(crate) fn after(self, to: u64) -> Option<Extent> {
        match self {
            Self::Extent(extent) if extent.start() >= to => Some(extent),
            Self::Extent(extent) if extent.end() > to => Some(extent.part(to, extent.end())),
            Self::Extent(_) | Self::Leaf { .. } | Self::Done => None,
        }
    }
}

/// The next step. `heads` are newest first.
pub(crate) fn decide(heads: &[Head]) -> Step {
    let starts = || {
        heads
            .iter()
            .enumerate()
            .filter_map(|(i, h)| Some((i, h.start()?)))
    };
    // The first of equals, so the newest: min_by_key keeps it.
    let Some((winner, start)) = starts().min_by_key(|(_, start)| *start) else {
        return Step::Finished;
    };
    let others_start_before = |end: u64| starts().find(|&(i, s)| i != winner && s < end);
    match heads[winner] {
        Head::Done => Step::Finished,
        Head::Leaf { pages, carry } => match others_start_before(pages.end.0) {
            None if carry == Carry::Yes => Step::Carry(winner),
            None | Some(_) => Step::Load(winner),
        },
        Head::Extent(extent) => {
            // A leaf begins with an extent, so a newer one cuts at its start, loaded or not.
            let newer = starts()
                .take_while(|(i, _)| *i < winner)
                .map(|(_, start)| start);
            let end = newer
                .min()
                .map_or(extent.end(), |newer| newer.min(extent.end()));
            assert!(end > start, "a newer head at the same page would have won");
            Step::Emit(extent.part(start, end))
        }
    }
}

#[cfg(test)]
mod tests {
    use blockcache::{Epoch, Id};
    use proptest::prelude::*;

    use super::super::extent::{ObjectName, Spot};
    use super::*;

    const PAGES: usize = 80;

    fn extent(run: u8, start: u64, pages: u8, zero: bool) -> Extent {
        let spot = Spot {
            segment: ObjectName {
                volume: Id([0; 16]),
                epoch: Epoch(1),
                id: Id([run; 16]),
            },
            number: u32::try_from(start).expect("small"),
            offset: 0,
            stored: 1,
            codec: 0,
            skip: 0,
            frame_pages: pages,
            hash: [0; 16],
        };
        Extent {
            pages: PageRange::new(start, start + u64::from(pages)),
            spot: (!zero).then_some(spot),
        }
    }

    /// Disjoint extents of one run, cut in leaves.
    fn any_run(run: u8) -> impl Strategy<Value = Vec<Vec<Extent>>> {
        let step = (0_u64..6, 1_u8..6, any::<bool>());
        (prop::collection::vec(step, 0..12), 1_usize..4).prop_map(move |(steps, leaf)| {
            let mut at = 0;
            let mut extents = Vec::new();
            for (gap, pages, zero) in steps {
                extents.push(extent(run, at + gap, pages, zero));
                at += gap + u64::from(pages);
            }
            extents.chunks(leaf).map(<[Extent]>::to_vec).collect()
        })
    }

    fn paint(model: &mut [Option<Extent>], extents: &[Extent]) {
        for extent in extents {
            for page in extent.start()..extent.end() {
                let at = usize::try_from(page).expect("small");
                model[at] = Some(extent.part(page, page + 1));
            }
        }
    }

    /// A cursor over leaves in memory that pretends to load them.
    #[derive(Debug)]
    struct Cursor {
        leaves: std::vec::IntoIter<Vec<Extent>>,
        next: Option<Vec<Extent>>,
        loaded: std::collections::VecDeque<Extent>,
    }

    impl Cursor {
        fn new(leaves: Vec<Vec<Extent>>) -> Self {
            let mut leaves = leaves.into_iter();
            let next = leaves.next();
            let loaded = std::collections::VecDeque::new();
            Self {
                leaves,
                next,
                loaded,
            }
        }

        fn head(&self) -> Head {
            match (self.loaded.front(), &self.next) {
                (Some(extent), _) => Head::Extent(*extent),
                (None, Some(leaf)) => {
                    let (first, last) = (leaf[0], leaf[leaf.len() - 1]);
                    let pages = PageRange::new(first.start(), last.end());
                    let carry = Carry::Yes;
                    Head::Leaf { pages, carry }
                }
                (None, None) => Head::Done,
            }
        }

        fn take(&mut self) -> Vec<Extent> {
            let leaf = self.next.take().expect("a leaf was shown");
            self.next = self.leaves.next();
            leaf
        }

        fn advance(&mut self, to: u64) {
            self.drop_before(to);
            while self.loaded.is_empty()
                && self.next.as_ref().is_some_and(|leaf| leaf[0].start() < to)
            {
                let leaf = self.take();
                self.loaded.extend(leaf);
                self.drop_before(to);
            }
        }

        fn drop_before(&mut self, to: u64) {
            while let Some(extent) = self.loaded.pop_front() {
                if let Some(left) = Head::Extent(extent).after(to) {
                    self.loaded.push_front(left);
                    return;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_result_says_of_each_page_what_the_newest_input_says(
            newest in any_run(1), middle in any_run(2), oldest in any_run(3),
        ) {
            let mut model = vec![None; PAGES * 2];
            for run in [&oldest, &middle, &newest] {
                paint(&mut model, &run.concat());
            }
            let mut cursors: Vec<Cursor> =
                [newest, middle, oldest].into_iter().map(Cursor::new).collect();
            let mut result: Vec<Extent> = Vec::new();
            loop {
                let heads: Vec<Head> = cursors.iter().map(Cursor::head).collect();
                match decide(&heads) {
                    Step::Finished => break,
                    Step::Carry(i) => result.extend(cursors[i].take()),
                    Step::Load(i) => {
                        prop_assert!(cursors[i].loaded.is_empty());
                        let leaf = cursors[i].take();
                        cursors[i].loaded.extend(leaf);
                    }
                    Step::Emit(extent) => {
                        cursors.iter_mut().for_each(|cursor| cursor.advance(extent.end()));
                        result.push(extent);
                    }
                }
            }
            prop_assert!(result.is_sorted_by(|a, b| a.pages.end <= b.pages.start));
            let mut got = vec![None; PAGES * 2];
            paint(&mut got, &result);
            prop_assert_eq!(got, model);
        }
    }
}
