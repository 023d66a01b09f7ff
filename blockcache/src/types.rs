//! The units of the cache and of the store. Two `u64` in a row is a bug waiting.

use std::fmt;

/// The unit of the log, the index and the store: one page of a volume.
pub const PAGE_BYTES: u64 = 4096;
/// The unit of a client: a write covers whole sectors.
pub const SECTOR_BYTES: u64 = 512;

/// 128 random bits that name a volume, a segment, a cache, a life. Names never repeat (rule 12).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A position in a volume's write order. The first write is 1; 0 is "nothing yet".
    Seq
);
number!(
    /// The number of the current right to write a volume.
    Epoch
);
number!(
    /// A page of a volume: byte offset / 4096.
    PageNo
);

impl PageNo {
    /// The byte at which the page starts.
    pub fn byte(self) -> u64 {
        self.0 * PAGE_BYTES
    }
}

/// Pages `start..end` of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    pub start: PageNo,
    pub end: PageNo,
}

impl PageRange {
    /// `start` must not lie behind `end`.
    pub fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "page range {start}..{end} runs backwards");
        Self {
            start: PageNo(start),
            end: PageNo(end),
        }
    }

    /// The pages that the bytes `at..at + len` touch.
    pub fn touched_by(at: u64, len: u64) -> Self {
        Self::new(at / PAGE_BYTES, (at + len).div_ceil(PAGE_BYTES))
    }

    pub fn pages(self) -> u64 {
        self.end.0 - self.start.0
    }

    pub fn bytes(self) -> u64 {
        self.pages() * PAGE_BYTES
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The pages in both; none if they do not meet.
    pub fn overlap(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
