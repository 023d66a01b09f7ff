//! Every step that may come next, and what it does.

use super::state::{NODES, Node, Role, Root, State, Writes};
use super::{Mistake, Scene};

/// One step; a node is meant by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A client's write is answered.
    Write(usize),
    Ask(usize, Ask, Outcome),
    /// An unclear answer, or a swap that failed: it reads the root.
    ReadBack(usize),
    Crash(usize),
    Restart(usize),
    /// The orchestrator places the volume there, with the next generation.
    Place(usize),
    /// A swap whose sender heard nothing lands.
    Lands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    Publish,
    /// Everything is published, and nobody owns it then.
    Detach,
    /// Promote, or a connect to a free volume.
    Open {
        force: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Answered,
    /// It took effect, and the answer was lost.
    Lost,
    /// It is on its way, and nobody knows.
    Stuck,
}

impl Scene {
    pub(super) fn may(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        for number in 0..NODES {
            let node = &state.nodes[number];
            if node.is_down {
                steps.push(Step::Restart(number));
                continue;
            }
            if node.is_unclear {
                steps.push(Step::ReadBack(number));
            }
            if node.role == Role::Owner {
                self.owner_may(state, number, steps);
            }
            // An owner that gave a detach up opens anew: that raises the epoch, so that the detach
            // cannot land any more.
            let gave_up = node.is_detaching;
            if (node.role != Role::Owner || gave_up) && !node.is_unclear {
                self.opener_may(state, number, steps);
            }
            let known = node.log.epoch.is_some() || node.is_unclear;
            if state.crashes < self.crashes && known {
                steps.push(Step::Crash(number));
            }
            if state.generations < self.generations {
                steps.push(Step::Place(number));
            }
        }
        if !state.late.is_empty() {
            steps.push(Step::Lands);
        }
    }

    fn owner_may(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let node = &state.nodes[number];
        let gated = node.is_detaching && self.mistake != Some(Mistake::WritesWhileDetaching);
        if state.writes < self.writes && !gated {
            steps.push(Step::Write(number));
        }
        if node.is_unclear {
            return;
        }
        let mut asks = vec![];
        if node.log.content != state.root.content && !gated {
            asks.push(Ask::Publish);
        }
        let drained = state.root.content == node.log.content;
        if drained || self.mistake == Some(Mistake::DetachUndrained) {
            asks.push(Ask::Detach);
        }
        for ask in asks {
            self.outcomes(state, number, ask, steps);
        }
    }

    fn opener_may(&self, state: &State, number: usize, steps: &mut Vec<Step>) {
        let root = &state.root;
        let node = &state.nodes[number];
        if root.epoch >= self.epochs {
            return;
        }
        let ordered = node.placed > 0 && self.mistake != Some(Mistake::IgnoresGeneration);
        if ordered && node.placed < root.generation {
            return;
        }
        let newer = ordered && node.placed > root.generation;
        let free = root.owner.is_none()
            || root.owner == Some(number)
            || self.mistake == Some(Mistake::PromotesOwned);
        if free || newer || self.force {
            let ask = Ask::Open { force: !free };
            self.outcomes(state, number, ask, steps);
        }
    }

    fn outcomes(&self, state: &State, number: usize, ask: Ask, steps: &mut Vec<Step>) {
        let opens = matches!(ask, Ask::Open { .. });
        steps.push(Step::Ask(number, ask, Outcome::Answered));
        if (opens || state.nodes[number].is_current) && state.lates < self.lates {
            steps.push(Step::Ask(number, ask, Outcome::Lost));
            steps.push(Step::Ask(number, ask, Outcome::Stuck));
        }
    }

    pub(super) fn does(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Write(number) => {
                next.writes += 1;
                let write = next.writes;
                next.nodes[number].log.content.push(write);
            }
            Step::Ask(number, ask, outcome) => self.asks(&mut next, number, ask, outcome),
            Step::ReadBack(number) => self.reads_back(&mut next, number),
            Step::Crash(number) => {
                next.crashes += 1;
                let node = &mut next.nodes[number];
                node.is_down = true;
                node.is_unclear = false;
                if self.mistake == Some(Mistake::IntentsInMemory) {
                    node.log.intents.clear();
                }
                node.is_detaching = false;
            }
            Step::Restart(number) => {
                let node = &mut next.nodes[number];
                node.is_down = false;
                // Rule 14: it goes on without asking the store, unless it has asked to detach.
                node.role = if node.log.is_attached {
                    Role::Owner
                } else {
                    Role::Idle
                };
            }
            Step::Place(number) => {
                next.generations += 1;
                next.nodes[number].placed = next.generations;
            }
            Step::Lands => {
                let root = next.late.pop_first()?;
                next.replace(None, root);
            }
        }
        Some(next)
    }

    fn asks(&self, next: &mut State, number: usize, ask: Ask, outcome: Outcome) {
        let mut root = next.root.clone();
        match ask {
            Ask::Publish => {
                root.content.clone_from(&next.nodes[number].log.content);
                root.owner = Some(number);
            }
            Ask::Detach => root.owner = None,
            Ask::Open { force } => {
                next.was_forced |= force;
                root.epoch += u8::from(self.mistake != Some(Mistake::EpochReuse));
                root.owner = Some(number);
                root.generation = match next.nodes[number].placed {
                    0 => root.generation,
                    placed => placed,
                };
            }
        }
        let opens = matches!(ask, Ask::Open { .. });
        let node = &mut next.nodes[number];
        if !opens && !node.is_current {
            // The swap fails: somebody wrote the root, and that may be itself.
            node.is_unclear = true;
            return;
        }
        if opens {
            // Whatever it was before is closed: it reads the root, and acts on that.
            node.role = Role::Idle;
            node.is_detaching = false;
        }
        if ask == Ask::Detach {
            node.is_detaching = true;
            node.log.is_attached = self.mistake == Some(Mistake::ForgetsDetach);
        }
        node.log.intents.insert(root.clone());
        next.lates += u8::from(outcome != Outcome::Answered);
        match outcome {
            Outcome::Answered => {
                next.replace(Some(number), root);
                self.knows(next, number);
            }
            Outcome::Lost => {
                next.nodes[number].is_unclear = true;
                next.replace(None, root);
            }
            Outcome::Stuck => {
                let node = &mut next.nodes[number];
                node.is_unclear = true;
                node.is_current = true;
                next.late.insert(root);
            }
        }
    }

    fn reads_back(&self, next: &mut State, number: usize) {
        let root = &next.root;
        let node = &mut next.nodes[number];
        node.is_unclear = false;
        let is_own = node.log.intents.contains(root);
        if is_own && self.mistake != Some(Mistake::OwnConflictFences) {
            node.is_current = true;
            self.knows(next, number);
            return;
        }
        if node.is_current {
            // Nothing happened yet. It asks again.
            return;
        }
        let same_epoch = node.log.epoch == Some(root.epoch);
        let goes_on = match self.mistake {
            Some(Mistake::RepeatsBlindly) => true,
            Some(Mistake::EpochReuse) => same_epoch,
            _ => false,
        };
        if goes_on && node.role == Role::Owner {
            node.is_current = true;
            return;
        }
        if same_epoch && node.role == Role::Owner {
            next.broken = Some("an owner took itself for fenced");
            return;
        }
        node.role = match node.role {
            Role::Owner | Role::Fenced => Role::Fenced,
            Role::Idle => Role::Idle,
        };
        node.is_detaching = false;
        node.log.is_attached = false;
    }

    /// The node knows the root to be its own work, and acts on it.
    fn knows(&self, next: &mut State, number: usize) {
        let root = next.root.clone();
        let node = &mut next.nodes[number];
        let opened = node.log.epoch != Some(root.epoch) || node.role != Role::Owner;
        node.log.intents.clear();
        if root.owner.is_none() {
            node.log.is_attached = false;
            node.is_detaching = false;
            node.role = Role::Idle;
        } else if opened {
            self.opens(node, &root);
        }
    }

    /// Rule 11: which local records count after an open.
    fn opens(&self, node: &mut Node, root: &Root) {
        let continues = node.log.content.starts_with(&root.content);
        let keeps = self.mistake == Some(Mistake::KeepsRecords);
        if !continues && !keeps {
            let unpublished: Writes = std::mem::take(&mut node.log.content);
            let lost = unpublished
                .into_iter()
                .filter(|it| !root.content.contains(it));
            if self.mistake != Some(Mistake::DropsUnpublished) {
                node.log.salvage.extend(lost);
            }
            node.log.content.clone_from(&root.content);
        }
        node.log.epoch = Some(root.epoch);
        node.log.is_attached = true;
        node.is_detaching = false;
        node.role = Role::Owner;
    }
}
