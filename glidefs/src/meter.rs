//! Latencies, counted where they arise: plain cells of one thread, no allocation and no lock.
//!
//! [`Histogram`] is what counts, [`Latency`] what of it goes to the edge; two of the latter, one after the
//! other, give what happened between. [`store`] does the same for requests to the object store.
//! Absent: the clock (whoever counts says how long it took) and names of metrics.

pub mod store;

use std::cell::Cell;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in nanoseconds, from an answer out of memory to a store that is nearly
/// lost; what took longer goes into one more. A step is a factor of 2 to 2.5.
pub const BOUNDS_NS: [u64; 19] = [
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// Counts of latencies, by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Cell<u64>; BUCKETS],
    sum_ns: Cell<u64>,
}

impl Histogram {
    /// Some nanoseconds: a search in one short array and two additions.
    pub fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = &self.counts[BOUNDS_NS.partition_point(|bound| *bound < ns)];
        bucket.set(bucket.get() + 1);
        self.sum_ns.set(self.sum_ns.get().saturating_add(ns));
    }

    /// The counts as they are now.
    pub fn latency(&self) -> Latency {
        let counts: Vec<u64> = self.counts.iter().map(Cell::get).collect();
        if counts.iter().all(|count| *count == 0) {
            return Latency::default();
        }
        Latency {
            counts,
            sum_ns: self.sum_ns.get(),
        }
    }
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Latency {
    /// One number for each of [`BOUNDS_NS`] and one for what took longer; none at all before the first.
    pub counts: Vec<u64>,
    pub sum_ns: u64,
}

impl Latency {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted since `earlier`. After a restart of the server `earlier` holds more: then it
    /// is what was counted since that.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |index: usize| earlier.counts.get(index).copied().unwrap_or(0);
        let counts = self.counts.iter().enumerate();
        let less: Option<Vec<u64>> = counts
            .map(|(index, now)| now.checked_sub(before(index)))
            .collect();
        match (less, self.sum_ns.checked_sub(earlier.sum_ns)) {
            (Some(counts), Some(sum_ns)) => Self { counts, sum_ns },
            _ => self.clone(),
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let len = self.counts.len().max(other.counts.len());
        let at = |of: &Self, index: usize| of.counts.get(index).copied().unwrap_or(0);
        Self {
            counts: (0..len).map(|i| at(self, i) + at(other, i)).collect(),
            sum_ns: self.sum_ns.saturating_add(other.sum_ns),
        }
    }

    /// The time within which so many of 1,000 were answered, as if they lay evenly in their bucket;
    /// none before the first. Of what lies above the last bound only the bound is known.
    pub fn quantile(&self, per_mille: u64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = (u128::from(count) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut below = 0_u128;
        let mut lower = 0;
        for (inside, upper) in self.counts.iter().zip(BOUNDS_NS) {
            let inside = u128::from(*inside);
            if below + inside >= wanted {
                let part = u128::from(upper - lower) * (wanted - below) / inside;
                let ns = lower.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
                return Some(Duration::from_nanos(ns));
            }
            below += inside;
            lower = upper;
        }
        Some(Duration::from_nanos(lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(took: &[(u64, u32)]) -> Histogram {
        let histogram = Histogram::default();
        for (micros, times) in took {
            (0..*times).for_each(|_| histogram.record(Duration::from_micros(*micros)));
        }
        histogram
    }

    #[test]
    fn a_latency_counts_in_the_bucket_whose_bound_it_does_not_exceed() {
        let latency = of(&[(20, 1), (21, 2), (40_000_000, 3)]).latency();
        assert_eq!(latency.counts[..3], [1, 2, 0]);
        assert_eq!(latency.counts.last(), Some(&3));
        assert_eq!(latency.count(), 6);
        assert_eq!(latency.sum_ns, 120_000_062_000);
        assert_eq!(of(&[]).latency(), Latency::default());
    }

    #[test]
    fn quantiles_lie_in_the_right_bucket() {
        let latency = of(&[(150, 98), (7_000, 2)]).latency();
        let micros = |per_mille| latency.quantile(per_mille).map(|it| it.as_micros());
        let p50 = micros(500).expect("counted");
        assert!((100..=200).contains(&p50), "{p50}");
        assert!((5_000..=10_000).contains(&micros(990).expect("counted")));
        assert_eq!(micros(1000), Some(10_000));
        assert_eq!(Latency::default().quantile(500), None);
        let beyond = of(&[(60_000_000, 1)]).latency();
        assert_eq!(beyond.quantile(500), Some(Duration::from_secs(30)));
    }

    #[test]
    fn the_difference_of_two_looks_is_what_happened_between() {
        let histogram = of(&[(30, 5)]);
        let first = histogram.latency();
        histogram.record(Duration::from_micros(30));
        let second = histogram.latency();
        assert_eq!(second.since(&first).count(), 1);
        assert_eq!(second.since(&Latency::default()), second);
        // A restart: the later look holds less.
        assert_eq!(first.since(&second), first);
        assert_eq!(first.and(&second).count(), 11);
        assert_eq!(Latency::default().and(&first), first);
    }
}
