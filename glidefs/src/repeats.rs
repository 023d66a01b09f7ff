//! Log lines whose cause comes again and again (a client that reconnects every second): said once, then
//! held back and counted, and said again with that count when some time has passed. Troubles that an
//! export has until they end are `export/causes.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use world::Instant;

/// How long a cause is held back after it was said.
const QUIET: Duration = Duration::from_secs(600);
/// Causes that are remembered; at the bound the one that was said longest ago is forgotten, and would be
/// said again.
const CAUSES_MAX: usize = 1024;

/// What was said, and when.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    said: RefCell<BTreeMap<(&'static str, String), Said>>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    held_back: u64,
}

impl Repeats {
    /// How often this was held back since it was said last, if it is to be said now: of what, and whose
    /// (an export's name).
    pub(crate) fn news(&self, what: &'static str, whose: &str, now: Instant) -> Option<u64> {
        let mut said = self.said.borrow_mut();
        let cause = (what, whose.to_owned());
        let held_back = match said.get_mut(&cause) {
            Some(before) if now - before.at < QUIET => {
                before.held_back += 1;
                return None;
            }
            Some(before) => before.held_back,
            None => 0,
        };
        if said.len() >= CAUSES_MAX {
            let oldest = said.iter().min_by_key(|(_, said)| said.at);
            if let Some(oldest) = oldest.map(|(cause, _)| cause.clone()) {
                said.remove(&oldest);
            }
        }
        said.insert(
            cause,
            Said {
                at: now,
                held_back: 0,
            },
        );
        Some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_cause_is_said_once_and_then_counted_for_a_while() {
        let repeats = Repeats::default();
        let refused = |seconds| repeats.news("refused", "vm-a", at(seconds));
        assert_eq!(refused(0), Some(0));
        for second in 1..600 {
            assert_eq!(refused(second), None);
        }
        assert_eq!(refused(600), Some(599));
        assert_eq!(refused(601), None);
        assert_eq!(repeats.news("refused", "vm-b", at(601)), Some(0));
        assert_eq!(repeats.news("closed", "vm-a", at(601)), Some(0));
        assert_eq!(refused(5000), Some(1));
    }

    #[test]
    fn causes_are_bounded_and_the_oldest_goes() {
        let repeats = Repeats::default();
        for number in 0..CAUSES_MAX as u64 + 10 {
            let name = format!("vm-{number}");
            assert_eq!(repeats.news("refused", &name, at(number)), Some(0));
        }
        assert_eq!(repeats.said.borrow().len(), CAUSES_MAX);
        assert_eq!(repeats.news("refused", "vm-1033", at(1034)), None);
        assert_eq!(repeats.news("refused", "vm-0", at(1034)), Some(0));
    }
}
