//! How long to wait before the next attempt. Pure: chance is passed in, and what the store asked for.

use std::time::Duration;

/// Doubles from `first` to `longest`, each time shortened by up to a half, so that many exports
/// do not return to a recovering store in step. A store that asks to be left alone for longer (at most
/// [`world::store::RETRY_AFTER_MAX`]) is; who were told the same are scattered behind that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (at least one). `chance` is any random number, `asked` what the
    /// last of them asked for.
    pub(crate) fn wait(&self, failures: u32, chance: u32, asked: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        let half = full / 2;
        // 0..=1 in steps of 2^-16: enough to scatter, and exact in a simulation.
        let scatter = half.saturating_mul(chance & 0xffff) / 0xffff;
        half.max(asked.unwrap_or_default()) + scatter
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
        let wait = |failures, chance| BACKOFF.wait(failures, chance, None);
        assert_eq!(wait(1, 0), Duration::from_millis(500));
        assert_eq!(wait(1, u32::MAX), Duration::from_secs(1));
        assert_eq!(wait(3, u32::MAX), Duration::from_secs(4));
        assert_eq!(wait(u32::MAX, u32::MAX), Duration::from_secs(30));
        assert_eq!(wait(u32::MAX, 0), Duration::from_secs(15));
    }

    #[test]
    fn no_wait_is_shorter_than_the_store_asked_for_and_many_do_not_come_back_together() {
        let wait = |failures, chance, asked| {
            let asked = Some(Duration::from_secs(asked));
            BACKOFF.wait(failures, chance, asked).as_secs()
        };
        assert_eq!((wait(1, 0, 20), wait(3, 0, 20)), (20, 20));
        assert_eq!(wait(3, u32::MAX, 20), 22);
        assert_eq!(wait(u32::MAX, 0, 60), 60);
        assert_eq!(wait(u32::MAX, u32::MAX, 60), 75);
        // Our own wait is longer.
        assert_eq!(wait(u32::MAX, 0, 7), 15);
        assert_eq!(wait(u32::MAX, u32::MAX, 7), 30);
    }
}
