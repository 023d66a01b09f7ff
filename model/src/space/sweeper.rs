//! Any node deletes what no root will ever name: left behind by uploads of the dead.

use super::plan;
use super::state::{Set, State, Sweeper};
use super::{Mistake, Scene};
use crate::segments::orphans;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweeperStep {
    List,
    ReadRoot,
    /// A segment is deleted.
    Sweep(usize),
}

impl State {
    pub(super) fn sweeper_may(&self, number: usize) -> Vec<SweeperStep> {
        match self.nodes[number].sweeper {
            Sweeper::Idle if self.segments.is_empty() => Vec::new(),
            Sweeper::Idle => vec![SweeperStep::List],
            Sweeper::Listed { .. } => vec![SweeperStep::ReadRoot],
            Sweeper::Doomed(left) => left.iter().map(SweeperStep::Sweep).collect(),
        }
    }
}

impl Scene {
    pub(super) fn sweeper_does(&self, next: &mut State, number: usize, step: SweeperStep) {
        match (step, next.nodes[number].sweeper) {
            (SweeperStep::List, _) => {
                let node = &mut next.nodes[number];
                node.sweeper = Sweeper::Listed {
                    found: next.segments,
                    in_flight: node.uploaded,
                };
            }
            (SweeperStep::ReadRoot, Sweeper::Listed { found, in_flight }) => {
                let left = self.orphans(next, number, found, in_flight);
                next.nodes[number].sweeper = doomed(left);
            }
            (SweeperStep::Sweep(segment), Sweeper::Doomed(left)) => {
                let asks = self.mistake == Some(Mistake::InFlightTooLate);
                if !(asks && next.nodes[number].uploaded.has(segment)) {
                    next.segments = next.segments.without(Set::of(segment));
                }
                next.nodes[number].sweeper = doomed(left.without(Set::of(segment)));
            }
            (SweeperStep::ReadRoot | SweeperStep::Sweep(_), _) => (),
        }
    }

    fn orphans(&self, state: &State, number: usize, found: Set, in_flight: Set) -> Set {
        let (node, root) = (&state.nodes[number], &state.root);
        let same = node.view.is_some_and(|view| view.epoch == root.epoch);
        let is_own = match self.mistake {
            Some(Mistake::EpochReuse) => node.holds && !node.is_unproved && same,
            Some(Mistake::SweepUnproved) => node.holds && same && usize::from(root.owner) == number,
            _ => plan::sweeps_own(node, number, root),
        };
        let unnamed = found.without(root.named());
        let in_flight = match self.mistake {
            Some(Mistake::SweepByAge) => return unnamed,
            // Asked for each one, right before it is deleted.
            Some(Mistake::InFlightTooLate) => Set::default(),
            _ => in_flight,
        };
        orphans(unnamed, in_flight, &state.epochs, root.epoch, is_own)
    }
}

fn doomed(left: Set) -> Sweeper {
    if left.is_empty() {
        Sweeper::Idle
    } else {
        Sweeper::Doomed(left)
    }
}
