//! Nodes die with a publish on its way, or lose power, and start again with their logs.

use super::state::{How, MEMBERS, Node, Part, Set, State};
use super::{Actor, Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessStep {
    /// It dies; what it was publishing may land later.
    Crash(Option<Part>),
    /// It loses power. This is left of its log.
    LosePower(Set),
    /// Starts again with its log, and goes on without asking the store.
    Resume,
}

impl Scene {
    pub(super) fn process_may(&self, state: &State, number: usize) -> Vec<ProcessStep> {
        let node = &state.nodes[number];
        let mut steps = Vec::new();
        if node.is_owner() && state.crashes < self.crashes {
            steps.push(ProcessStep::Crash(None));
            if node.is_current {
                let pending = self.publish_may(node).into_iter();
                steps.extend(pending.map(|part| ProcessStep::Crash(Some(part))));
            }
            if self.has(Actor::Power) {
                let left = self.left_after_power(state, node).into_iter();
                steps.extend(left.map(ProcessStep::LosePower));
            }
        }
        // One that knows that it is fenced has forgotten its view.
        if self.has(Actor::Resume) && node.view.is_some() && !node.is_owner() {
            steps.push(ProcessStep::Resume);
        }
        steps
    }

    /// What was flushed, and then any part that has no hole: one log tears at one place.
    fn left_after_power(&self, state: &State, node: &Node) -> Vec<Set> {
        let whole = node.log;
        let ends = |writes: Set| -> Vec<Set> {
            let cut = |end: usize| writes.filter(|write| write < end || node.durable.has(write));
            let mut ends: Vec<Set> = whole.iter().map(cut).chain([writes]).collect();
            ends.dedup();
            ends
        };
        let mut left = match self.is(Mistake::LogsApart) {
            false => ends(whole),
            true => {
                let [first, second] = [0, 1].map(|member| ends(state.of_member(whole, member)));
                let pairs = first.iter().flat_map(|a| second.iter().map(|b| a.with(*b)));
                pairs.collect()
            }
        };
        left.retain(|it| *it != whole);
        left
    }

    pub(super) fn process_does(
        &self,
        next: &mut State,
        number: usize,
        step: ProcessStep,
    ) -> Option<()> {
        match step {
            ProcessStep::Crash(pending) => {
                if let Some(part) = pending {
                    let root = self.published(&next.nodes[number], number, part)?;
                    next.nodes[number].intents.insert(root);
                    next.late.insert(root);
                }
                dies(next, number);
            }
            ProcessStep::LosePower(left) => {
                dies(next, number);
                next.nodes[number].log = left;
            }
            ProcessStep::Resume => {
                let owner = u8::try_from(number).ok()?;
                let node = &mut next.nodes[number];
                let view = node.view?;
                for member in 0..MEMBERS {
                    node.holds[member] = view.members[member].owner == Some(owner);
                }
                node.is_unproved = true;
                // A start flushes what it found.
                node.durable = node.log;
            }
        }
        Some(())
    }
}

fn dies(next: &mut State, number: usize) {
    next.crashes += 1;
    let node = &mut next.nodes[number];
    *node = Node {
        view: node.view,
        is_current: node.is_current,
        log: node.log,
        durable: node.durable,
        intents: std::mem::take(&mut node.intents),
        ..Node::default()
    };
}

impl State {
    /// A publish of somebody who heard nothing takes effect.
    pub(super) fn lands(&mut self) -> Option<()> {
        let root = self.late.pop_first()?;
        self.replace(None, root, How::Published);
        Some(())
    }
}
