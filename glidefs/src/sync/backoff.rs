//! How long to wait before the next attempt. Pure: chance is passed in.

use std::time::Duration;

/// Doubles from `first` to `longest`, each time shortened by up to a half, so that many exports
/// do not return to a recovering store in step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (at least one). `chance` is any random number.
    pub(crate) fn wait(&self, failures: u32, chance: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        let half = full / 2;
        // 0..=1 in steps of 2^-16: enough to scatter, and exact in a simulation.
        half + half.saturating_mul(chance & 0xffff) / 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(30),
    };

    #[test]
    fn waits_double_and_stay_within_bounds_whatever_the_chance() {
        assert_eq!(BACKOFF.wait(1, 0), Duration::from_millis(500));
        assert_eq!(BACKOFF.wait(1, u32::MAX), Duration::from_secs(1));
        assert_eq!(BACKOFF.wait(3, u32::MAX), Duration::from_secs(4));
        assert_eq!(BACKOFF.wait(u32::MAX, u32::MAX), Duration::from_secs(30));
        assert_eq!(BACKOFF.wait(u32::MAX, 0), Duration::from_secs(15));
    }
}
