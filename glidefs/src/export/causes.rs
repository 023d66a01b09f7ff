//! Troubles that are logged when they begin and when they end, not once per request.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// The troubles an export has now, by cause.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    raised: RefCell<BTreeMap<&'static str, String>>,
}

impl Causes {
    /// True if this cause was not there before: log it. The newest text is kept either way.
    pub(crate) fn raise(&self, cause: &'static str, text: String) -> bool {
        self.raised.borrow_mut().insert(cause, text).is_none()
    }

    /// True if the cause was there: log that it ended.
    pub(crate) fn settle(&self, cause: &'static str) -> bool {
        // The common case on the data path: nothing is wrong.
        if self.raised.borrow().is_empty() {
            return false;
        }
        self.raised.borrow_mut().remove(cause).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_news_once_until_it_is_settled() {
        let causes = Causes::default();
        assert!(causes.raise("store", "503".to_owned()));
        assert!(!causes.raise("store", "timeout".to_owned()));
        assert!(causes.settle("store"));
        assert!(!causes.settle("store"));
        assert!(causes.raise("store", "503".to_owned()));
    }
}
