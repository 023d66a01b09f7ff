//! How much may be dirty, and how writers slow down on the way there. Pure.

use std::time::Duration;

/// The longest a write is delayed below the bound.
const DELAY_MAX: Duration = Duration::from_millis(20);
/// The share of the bound (in eighths) up to which nobody is delayed.
const FREE_EIGHTHS: u64 = 5;
/// The share of the bound (in eighths) from which a sync should not wait for its delay.
const PRESSED_EIGHTHS: u64 = 4;

/// What a write that would make so much dirty must do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    /// Once; then go. Grows with the square of how far the soft share is exceeded, so that the rate
    /// of writing meets the rate of publishing without a cliff.
    After(Duration),
    /// Wait until something was published.
    Wait,
}

/// `dirty` are the unpublished bytes now, `more` those of the write, `max` the bound.
/// A write larger than the bound goes when nothing else is dirty.
pub(crate) fn admit(dirty: u64, more: u64, max: u64) -> Verdict {
    let after = dirty.saturating_add(more);
    let soft = max / 8 * FREE_EIGHTHS;
    if after <= soft || dirty == 0 {
        return Verdict::Go;
    }
    if after > max {
        return Verdict::Wait;
    }
    let (over, room) = (u128::from(after - soft), u128::from((max - soft).max(1)));
    let micros = DELAY_MAX.as_micros() * over * over / (room * room);
    Verdict::After(Duration::from_micros(
        u64::try_from(micros).unwrap_or(u64::MAX),
    ))
}

/// A sync should start now rather than wait for more writes to coalesce.
pub(crate) fn pressed(dirty: u64, max: u64) -> bool {
    dirty > max / 8 * PRESSED_EIGHTHS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_slow_down_smoothly_and_stop_at_the_bound() {
        let max = 800;
        assert_eq!(admit(0, 10_000, max), Verdict::Go);
        assert_eq!(admit(400, 100, max), Verdict::Go);
        let mut last = Duration::ZERO;
        for dirty in 500..=790 {
            let Verdict::After(delay) = admit(dirty, 10, max) else {
                panic!("at {dirty}")
            };
            assert!(delay >= last && delay <= DELAY_MAX);
            last = delay;
        }
        assert_eq!(last, DELAY_MAX);
        assert_eq!(admit(795, 10, max), Verdict::Wait);
    }
}
