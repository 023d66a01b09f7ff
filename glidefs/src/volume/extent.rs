//! One entry of the map: some pages, and where their bytes are.

use blockcache::{Epoch, Id, PageNo, PageRange};

/// Pages in one frame at most (rule 27).
pub(crate) const FRAME_PAGES_MAX: u64 = 32;
/// Pages of a volume at most: 2^60 bytes. Keeps every sum below overflow.
pub(crate) const VOLUME_PAGES_MAX: u64 = 1 << 48;

/// An object of a volume: what its key is made of, and what its frames are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectName {
    pub(crate) volume: Id,
    pub(crate) epoch: Epoch,
    pub(crate) id: Id,
}

/// Some pages: zero, or a part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) pages: PageRange,
    /// None: the pages are zero.
    pub(crate) spot: Option<Spot>,
}

/// Where in which frame an extent's first page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) segment: ObjectName,
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) codec: u8,
    /// Pages of the frame before the extent's first.
    pub(crate) skip: u8,
    /// Pages in the whole frame.
    pub(crate) frame_pages: u8,
    pub(crate) hash: [u8; 16],
}

impl Spot {
    /// Where the page is that comes so many pages later in the same frame.
    pub(crate) fn skip_pages(self, pages: u64) -> Self {
        let more = u8::try_from(pages).expect("a frame has few pages");
        Self {
            skip: self.skip + more,
            ..self
        }
    }
}

impl Extent {
    pub(crate) fn start(&self) -> u64 {
        self.pages.start.0
    }

    pub(crate) fn end(&self) -> u64 {
        self.pages.end.0
    }

    /// The part of the extent in `start..end`, which must lie within it and hold a page.
    pub(crate) fn part(&self, start: u64, end: u64) -> Self {
        assert!(self.start() <= start, "a part begins in its extent");
        assert!(
            start < end && end <= self.end(),
            "a part ends in its extent"
        );
        let spot = self.spot.map(|spot| spot.skip_pages(start - self.start()));
        Self {
            pages: PageRange::new(start, end),
            spot,
        }
    }

    /// Both as one, if `next` goes on where this one ends: zeros, or the same frame.
    pub(crate) fn join(&self, next: &Self) -> Option<Self> {
        if self.pages.end != next.pages.start {
            return None;
        }
        let pages = PageRange::new(self.start(), next.end());
        let fits = match (&self.spot, &next.spot) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.segment == b.segment
                    && a.number == b.number
                    && u64::from(a.skip) + self.pages.pages() == u64::from(b.skip)
            }
            (None, Some(_)) | (Some(_), None) => false,
        };
        fits.then_some(Self {
            pages,
            spot: self.spot,
        })
    }
}

impl Spot {
    /// The pages of the whole frame, given where the extent starts.
    pub(crate) fn frame_range(&self, extent_start: PageNo) -> PageRange {
        let start = extent_start.0 - u64::from(self.skip);
        PageRange::new(start, start + u64::from(self.frame_pages))
    }
}
