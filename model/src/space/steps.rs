//! Every step that may come next, and what it does: put together from those who act.

use super::collector::CollectorStep;
use super::forker::ForkStep;
use super::owner::OwnerStep;
use super::process::Pending;
use super::state::{Late, State};
use super::sweeper::SweeperStep;
use super::{Actor, Scene};

/// One step. A node or a fork is meant by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Owner(usize, OwnerStep),
    Collector(usize, CollectorStep),
    Sweeper(usize, SweeperStep),
    Fork(usize, ForkStep),
    Crash(usize, Pending),
    /// Starts again with its log, and goes on without asking the store.
    Resume(usize),
    /// A request of somebody dead takes effect.
    Lands(Late),
}

impl Scene {
    pub(super) fn may(&self, state: &State, steps: &mut Vec<Step>) {
        for number in 0..self.nodes {
            let owner = self.owner_may(state, number).into_iter();
            steps.extend(owner.map(|step| Step::Owner(number, step)));
            if self.has(Actor::Collector) {
                let collector = self.collector_may(state, number).into_iter();
                steps.extend(collector.map(|step| Step::Collector(number, step)));
            }
            if self.has(Actor::Sweeper) {
                let sweeper = state.sweeper_may(number).into_iter();
                steps.extend(sweeper.map(|step| Step::Sweeper(number, step)));
            }
            let crashes = self.crash_may(state, number).into_iter();
            steps.extend(crashes.map(|pending| Step::Crash(number, pending)));
            if self.has(Actor::Resume) && state.may_resume(number) {
                steps.push(Step::Resume(number));
            }
        }
        for fork in 0..self.forks.len() {
            let fork_may = self.fork_may(state, fork).into_iter();
            steps.extend(fork_may.map(|step| Step::Fork(fork, step)));
        }
        steps.extend(state.late.iter().copied().map(Step::Lands));
    }

    /// The state after the step; none if the step turns out to do nothing.
    pub(super) fn does(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Owner(number, step) => self.owner_does(&mut next, number, step)?,
            Step::Collector(number, step) => self.collector_does(&mut next, number, step)?,
            Step::Sweeper(number, step) => self.sweeper_does(&mut next, number, step),
            Step::Fork(fork, step) => self.fork_does(&mut next, fork, step),
            Step::Crash(number, pending) => next.crash(number, pending)?,
            Step::Resume(number) => next.resume(number),
            Step::Lands(late) => next.lands(late),
        }
        (next != *state).then_some(next)
    }
}
