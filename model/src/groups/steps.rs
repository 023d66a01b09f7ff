//! Every step that may come next, and what it does: put together from those who act.

use super::collector::CollectorStep;
use super::forker::ForkStep;
use super::owner::OwnerStep;
use super::process::ProcessStep;
use super::reader::ReaderStep;
use super::state::State;
use super::sweeper::SweeperStep;
use super::{Actor, Scene};

/// One step. A node is meant by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Owner(usize, OwnerStep),
    Process(usize, ProcessStep),
    Collector(usize, CollectorStep),
    Sweeper(usize, SweeperStep),
    Reader(ReaderStep),
    Fork(ForkStep),
    /// A publish of somebody who heard nothing takes effect.
    Lands,
}

impl Scene {
    pub(super) fn may(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        for number in 0..self.nodes {
            let owner = self.owner_may(state, number).into_iter();
            steps.extend(owner.map(|step| Step::Owner(number, step)));
            let process = self.process_may(state, number).into_iter();
            steps.extend(process.map(|step| Step::Process(number, step)));
            if self.has(Actor::Collector) {
                let collector = self.collector_may(state, number).into_iter();
                steps.extend(collector.map(|step| Step::Collector(number, step)));
            }
            if self.has(Actor::Sweeper) {
                let sweeper = self.sweeper_may(state, number).into_iter();
                steps.extend(sweeper.map(|step| Step::Sweeper(number, step)));
            }
        }
        if self.has(Actor::Reader) {
            steps.extend(self.reader_may(state).into_iter().map(Step::Reader));
        }
        if self.has(Actor::Forker) {
            steps.extend(self.fork_may(state).into_iter().map(Step::Fork));
        }
        if !state.late.is_empty() {
            steps.push(Step::Lands);
        }
    }

    /// The state after the step; none if the step turns out to do nothing.
    pub(super) fn does(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Owner(number, step) => self.owner_does(&mut next, number, step)?,
            Step::Process(number, step) => self.process_does(&mut next, number, step)?,
            Step::Collector(number, step) => self.collector_does(&mut next, number, step)?,
            Step::Sweeper(number, step) => self.sweeper_does(&mut next, number, step),
            Step::Reader(step) => self.reader_does(&mut next, step)?,
            Step::Fork(step) => self.fork_does(&mut next, step)?,
            Step::Lands => next.lands()?,
        }
        (next != *state).then_some(next)
    }
}
