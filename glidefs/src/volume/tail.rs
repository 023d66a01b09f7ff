//! The youngest part of the map: the segments that the root names one by one, as one extent map in
//! memory, later ones over earlier ones.

use blockcache::{Cover, ExtentMap, Id, PageRange};

use super::extent::{Extent, Spot};
use super::root::TailSegment;

#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// Oldest first, each with its place in the order of all segments this handle has seen.
    segments: Vec<(u64, TailSegment)>,
    extents: ExtentMap<Piece>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    spot: Option<Spot>,
    /// The segment that said so. A zero names none, so this cannot be read from the spot.
    order: u64,
}

impl Cover for Piece {
    fn skip(&self, pages: u64) -> Self {
        Self {
            spot: self.spot.map(|spot| spot.skip_pages(pages)),
            order: self.order,
        }
    }
}

impl Tail {
    pub(crate) fn segments(&self) -> impl Iterator<Item = &TailSegment> {
        self.segments.iter().map(|(_, segment)| segment)
    }

    pub(crate) fn holds(&self, segment: Id) -> bool {
        self.segments().any(|it| it.id() == segment.0)
    }

    pub(crate) fn extents_count(&self) -> usize {
        self.extents.len()
    }

    /// Everything, in order of address.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let all = self.extents.iter();
        all.map(|(pages, piece)| Extent {
            pages,
            spot: piece.spot,
        })
        .collect()
    }

    /// What is left of one of its segments: data that no later one covers, in order of address.
    pub(crate) fn of_segment(&self, segment: Id) -> Vec<Extent> {
        let all = self.extents.iter();
        let own = all.filter_map(|(pages, piece)| {
            let spot = piece.spot.filter(|spot| spot.segment.id == segment)?;
            Some(Extent {
                pages,
                spot: Some(spot),
            })
        });
        own.collect()
    }

    /// What it says of the pages, in order of address, cut to them.
    pub(crate) fn within(&self, pages: PageRange) -> Vec<Extent> {
        let met = self.extents.overlapping(pages);
        met.map(|(pages, piece)| Extent {
            pages,
            spot: piece.spot,
        })
        .collect()
    }

    /// Adds the next segment over all that is there.
    pub(crate) fn push(&mut self, segment: TailSegment, extents: &[Extent]) {
        let order = self.next;
        self.next += 1;
        self.segments.push((order, segment));
        for extent in extents {
            let spot = extent.spot;
            self.extents.insert(extent.pages, Piece { spot, order });
        }
    }

    /// Drops the segments that are not `kept`, and what only they said. Only the oldest may go:
    /// what lies under a younger one is gone already, and is in the run that took their place.
    pub(crate) fn keep(&mut self, kept: impl Fn(Id) -> bool) {
        let gone = self
            .segments
            .iter()
            .take_while(|(_, s)| !kept(Id(s.id())))
            .count();
        if gone == 0 {
            return;
        }
        self.segments.drain(..gone);
        let from = self.segments.first().map_or(self.next, |(order, _)| *order);
        self.extents.retain(|piece| piece.order >= from);
    }
}

#[cfg(test)]
mod tests {
    use blockcache::Epoch;
    use proptest::prelude::*;

    use super::super::extent::ObjectName;
    use super::super::sealed::ObjectRef;
    use super::*;

    fn reference(number: u8) -> TailSegment {
        let object = ObjectRef {
            volume: [0; 16],
            epoch: 1,
            id: [number; 16],
            bytes: 0,
            offset: 0,
            stored: 1,
            plain: 0,
            codec: 0,
            hash: [0; 32],
        };
        TailSegment {
            object,
            birth: 1,
            pages: 1,
        }
    }

    fn extent(segment: u8, start: u64, pages: u8, zero: bool) -> Extent {
        let spot = Spot {
            segment: ObjectName {
                volume: Id([0; 16]),
                epoch: Epoch(1),
                id: Id([segment; 16]),
            },
            number: 0,
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

    /// Segment and page in its frame, per page of the volume.
    type Model = Vec<Option<(Option<u8>, u64)>>;

    fn read(tail: &Tail, pages: u64) -> Model {
        let mut model = vec![None; usize::try_from(pages).expect("small")];
        for extent in tail.within(PageRange::new(0, pages)) {
            for page in extent.start()..extent.end() {
                let value = match extent.spot {
                    Some(spot) => (
                        Some(spot.segment.id.0[0]),
                        u64::from(spot.skip) + page - extent.start(),
                    ),
                    None => (None, 0),
                };
                model[usize::try_from(page).expect("small")] = Some(value);
            }
        }
        model
    }

    proptest! {
        #[test]
        fn later_segments_cover_earlier_ones_and_folding_takes_only_what_was_folded(
            writes in prop::collection::vec((0_u64..60, 1_u8..9, any::<bool>()), 1..30),
            fold in 0_usize..30,
        ) {
            let mut tail = Tail::default();
            let mut model: Model = vec![None; 70];
            let mut younger: Model = vec![None; 70];
            for (number, &(start, pages, zero)) in writes.iter().enumerate() {
                let segment = u8::try_from(number).expect("few");
                let extent = extent(segment, start, pages, zero);
                tail.push(reference(segment), &[extent]);
                for page in 0..u64::from(pages) {
                    let at = usize::try_from(start + page).expect("small");
                    let value = if zero { (None, 0) } else { (Some(segment), page) };
                    model[at] = Some(value);
                    if number >= fold {
                        younger[at] = Some(value);
                    }
                }
            }
            prop_assert_eq!(read(&tail, 70), model);
            tail.keep(|id| usize::from(id.0[0]) >= fold);
            prop_assert_eq!(read(&tail, 70), younger);
            prop_assert_eq!(tail.segments().count(), writes.len().saturating_sub(fold));
        }
    }
}
