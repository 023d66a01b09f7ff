//! What a collector and a sweep may delete, for one volume (`space`) as for each member of a group (`groups`): sets of
//! segments, and the two rules that decide. Pure: values in, values out.

use std::cmp::Ordering;
use std::fmt;

/// That a set has room for.
const SET_MAX: usize = 8;

/// Segments, by number; or writes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(u8);

impl Set {
    pub fn of(segment: usize) -> Self {
        Self(1 << segment)
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn has(self, segment: usize) -> bool {
        self.0 >> segment & 1 == 1
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn is_within(self, other: Self) -> bool {
        self.without(other).is_empty()
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..SET_MAX).filter(move |segment| self.has(*segment))
    }

    pub fn filter(self, keep: impl Fn(usize) -> bool) -> Self {
        let kept = self.iter().filter(|segment| keep(*segment));
        kept.fold(Self::default(), |set, segment| set.with(Self::of(segment)))
    }

    /// All that can be left out of it.
    pub fn parts(self) -> impl Iterator<Item = Self> {
        (0..=self.0)
            .map(Self)
            .filter(move |part| part.is_within(self))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The cuts at which the current content named a segment, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub birth: u8,
    pub last: u8,
}

/// What a round of the collector may delete of `garbage`: what no held cut (`held`, as bits) lies in the span of.
pub(crate) fn doomed(garbage: Set, spans: &[Span], held: u16) -> Set {
    garbage.filter(|segment| {
        let span = spans[segment];
        (span.birth..=span.last).all(|cut| held >> cut & 1 == 0)
    })
}

/// What a sweep may delete of what it found, and the root does not name that it read after the listing. `epoch` is
/// that root's; `is_own` says that the sweeping node holds it and has proved it.
pub(crate) fn orphans(unnamed: Set, in_flight: Set, epochs: &[u8], epoch: u8, is_own: bool) -> Set {
    unnamed.filter(|segment| match epochs[segment].cmp(&epoch) {
        Ordering::Less => true,
        Ordering::Equal => is_own && !in_flight.has(segment),
        // Of an owner that came after the root was read.
        Ordering::Greater => false,
    })
}
