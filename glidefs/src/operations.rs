//! Operations: what takes longer than an answer should. Each has an id, by which anybody can ask how far it is.
//!
//! They are remembered in memory: after a restart an id is unknown, and what it had begun may be asked for again,
//! for all of it can be repeated.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::control::{
    CollectedDocument, ControlError, ControlErrorKind, OperationDocument, OperationState,
};

/// Operations that are remembered, and that run at a time.
const KEPT_MAX: usize = 64;
const RUNNING_MAX: usize = 4;

/// The operations of a shard, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Operations(RefCell<VecDeque<OperationDocument>>);

impl Operations {
    pub(crate) fn get(&self, id: &str) -> Option<OperationDocument> {
        let all = self.0.borrow();
        all.iter().find(|it| it.id == id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<OperationDocument> {
        self.0.borrow().iter().cloned().collect()
    }

    /// The one that a request began before. One that failed is not: whoever asks again wants it tried again.
    pub(crate) fn begun(&self, id: &str) -> Option<OperationDocument> {
        self.get(id).filter(|it| it.state != OperationState::Failed)
    }

    /// Begins to remember one, in the place of one of the same id. Refused while too many run.
    pub(crate) fn begin(&self, operation: OperationDocument) -> Result<(), ControlError> {
        let mut all = self.0.borrow_mut();
        let running = all.iter().filter(|it| it.state == OperationState::Running);
        if running.count() >= RUNNING_MAX {
            let text = format!("{RUNNING_MAX} operations run already: ask again when one is done");
            return Err(ControlError::new(ControlErrorKind::Unavailable, text));
        }
        all.retain(|it| it.id != operation.id);
        if all.len() >= KEPT_MAX {
            let ended = all
                .iter()
                .position(|it| it.state != OperationState::Running);
            ended.and_then(|at| all.remove(at));
        }
        all.push_back(operation);
        Ok(())
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut OperationDocument)) {
        if let Some(found) = self.0.borrow_mut().iter_mut().find(|it| it.id == id) {
            change(found);
        }
    }

    pub(crate) fn at(&self, id: &str, export: &str) {
        self.change(id, |it| export.clone_into(&mut it.at));
    }

    pub(crate) fn collected(&self, id: &str, collected: CollectedDocument) {
        self.change(id, |it| {
            it.done += 1;
            it.exports.push(collected);
        });
    }

    /// One more is done, of which there is nothing to tell.
    pub(crate) fn passed(&self, id: &str) {
        self.change(id, |it| it.done += 1);
    }

    /// Of a purge, of which nobody knows before how much there is.
    pub(crate) fn deleted(&self, id: &str, export: &str, objects: u64) {
        self.change(id, |it| {
            it.done = objects;
            if it.at != export {
                export.clone_into(&mut it.at);
            }
        });
    }

    pub(crate) fn purged(&self, id: &str, exports: Vec<CollectedDocument>) {
        self.change(id, |it| it.exports = exports);
    }

    pub(crate) fn end(&self, id: &str, error: Option<String>, now: String) {
        self.change(id, |it| {
            it.at.clear();
            it.ended_at = Some(now);
            it.state = match &error {
                None => OperationState::Done,
                Some(_) => OperationState::Failed,
            };
            it.error = error;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(number: usize) -> OperationDocument {
        OperationDocument {
            id: number.to_string(),
            kind: "gc".to_owned(),
            state: OperationState::Running,
            dry_run: false,
            done: 0,
            total: 1,
            at: String::new(),
            started_at: String::new(),
            ended_at: None,
            error: None,
            exports: Vec::new(),
        }
    }

    #[test]
    fn few_run_at_a_time_and_the_oldest_that_ended_are_forgotten() {
        let operations = Operations::default();
        for number in 0..3 {
            operations.begin(operation(number)).expect("room");
        }
        for number in 3..200 {
            operations.begin(operation(number)).expect("room");
            operations.begin(operation(1000)).expect_err("four run");
            operations.end(&number.to_string(), None, String::new());
        }
        assert_eq!(operations.all().len(), KEPT_MAX);
        assert!(
            operations
                .get("0")
                .is_some_and(|it| it.state == OperationState::Running)
        );
        assert!(operations.get("3").is_none());
        operations.end("0", Some("broken".to_owned()), String::new());
        let ended = operations.get("0").expect("known");
        assert_eq!(
            (ended.state, ended.error),
            (OperationState::Failed, Some("broken".to_owned()))
        );
        assert_eq!(operations.begun("0"), None, "it is tried again");
        operations.begin(operation(0)).expect("room");
        assert_eq!(operations.begun("0"), Some(operation(0)));
        assert_eq!(operations.all().iter().filter(|it| it.id == "0").count(), 1);
    }
}
