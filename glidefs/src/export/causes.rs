//! Troubles that are logged when they begin and when they end, not once per request.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use world::Instant;

/// A trouble that ended and comes again is not said again for so long: a store that answers every other request would fill
/// the log.
const QUIET: Duration = Duration::from_secs(60);
/// Damaged objects of one export that are said. What is behind them is likely the same.
const DAMAGES_MAX: usize = 16;

/// The troubles an export has now, by cause.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    /// And whether it was said.
    raised: RefCell<BTreeMap<&'static str, bool>>,
    said: RefCell<BTreeMap<&'static str, Instant>>,
    damages: RefCell<BTreeSet<String>>,
}

impl Causes {
    /// True if it is to be logged now: this cause was not there before, or was not said yet.
    pub(crate) fn raise(&self, cause: &'static str, now: Instant) -> bool {
        let mut raised = self.raised.borrow_mut();
        let is_said = raised.entry(cause).or_insert(false);
        let mut said = self.said.borrow_mut();
        let is_quiet = said.get(cause).is_some_and(|at| now - *at < QUIET);
        if *is_said || is_quiet {
            return false;
        }
        said.insert(cause, now);
        *is_said = true;
        true
    }

    /// True if the cause was there, and was said: log that it ended.
    pub(crate) fn settle(&self, cause: &'static str) -> bool {
        // The common case on the data path: nothing is wrong.
        if self.raised.borrow().is_empty() {
            return false;
        }
        self.raised.borrow_mut().remove(cause).unwrap_or(false)
    }

    /// True if it is to be logged. What is damaged does not become sound when something else is read.
    pub(crate) fn damaged(&self, what: &str) -> bool {
        let mut damages = self.damages.borrow_mut();
        damages.len() < DAMAGES_MAX && damages.insert(what.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_cause_is_news_once_until_it_is_settled() {
        let causes = Causes::default();
        assert!(causes.raise("store", at(0)));
        assert!(!causes.raise("store", at(100)));
        assert!(causes.settle("store"));
        assert!(!causes.settle("store"));
        assert!(causes.raise("store", at(200)));
    }

    #[test]
    fn one_that_comes_and_goes_is_said_once_a_minute_and_its_end_with_it() {
        let causes = Causes::default();
        let mut said = Vec::new();
        for second in 0..150 {
            if causes.raise("store", at(second)) {
                said.push(second);
            }
            let ended = causes.settle("store");
            assert_eq!(ended, said.last() == Some(&second));
        }
        assert_eq!(said, [0, 60, 120]);
        // One that stays is said once the quiet time is over.
        assert!(!causes.raise("store", at(150)));
        assert!(causes.raise("store", at(180)));
        assert!(causes.settle("store"));
    }

    #[test]
    fn each_damaged_object_is_said_once_and_few_of_them() {
        let causes = Causes::default();
        assert!(causes.damaged("seg/1"));
        assert!(!causes.damaged("seg/1"));
        let more = (2..100).filter(|number| causes.damaged(&format!("seg/{number}")));
        assert_eq!(more.count(), DAMAGES_MAX - 1);
    }
}
