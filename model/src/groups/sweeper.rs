//! Any node deletes what no root will ever name: left behind by uploads of the dead. Each member for itself.

use super::state::{MEMBERS, Set, State};
use super::{Mistake, Scene};
use crate::segments::orphans;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweeperStep {
    /// Segments of a member.
    List(usize),
    ReadRoot,
    /// A segment is deleted.
    Sweep(usize),
}

/// A round of the sweep, for one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sweeper {
    #[default]
    Idle,
    Listed {
        member: usize,
        found: Set,
        /// What the node itself had uploaded for a cut on its way, after the listing.
        in_flight: Set,
    },
    Doomed(Set),
}

impl Scene {
    pub(super) fn sweeper_may(&self, state: &State, number: usize) -> Vec<SweeperStep> {
        match state.nodes[number].sweeper {
            Sweeper::Idle => {
                let members = 0..MEMBERS;
                let has_any =
                    |member: &usize| state.made_of(*member).any(|it| state.segments.has(it));
                members.filter(has_any).map(SweeperStep::List).collect()
            }
            Sweeper::Listed { .. } => vec![SweeperStep::ReadRoot],
            Sweeper::Doomed(left) => left.iter().map(SweeperStep::Sweep).collect(),
        }
    }

    pub(super) fn sweeper_does(&self, next: &mut State, number: usize, step: SweeperStep) {
        match (step, next.nodes[number].sweeper) {
            (SweeperStep::List(member), _) => {
                let found = next.segments.filter(|it| it % MEMBERS == member);
                let node = &mut next.nodes[number];
                let in_flight = node.attempt.uploaded[member].map(usize::from);
                node.sweeper = Sweeper::Listed {
                    member,
                    found,
                    in_flight: in_flight.map_or(Set::default(), Set::of),
                };
            }
            (SweeperStep::ReadRoot, Sweeper::Listed { member, .. }) => {
                let left = self.orphans(next, number, member);
                next.nodes[number].sweeper = round(left);
            }
            (SweeperStep::Sweep(segment), Sweeper::Doomed(left)) => {
                let gone = Set::of(segment);
                next.segments = next.segments.without(gone);
                next.nodes[number].sweeper = round(left.without(gone));
            }
            (SweeperStep::ReadRoot | SweeperStep::Sweep(_), _) => (),
        }
    }

    fn orphans(&self, state: &State, number: usize, member: usize) -> Set {
        let node = &state.nodes[number];
        let Sweeper::Listed {
            found, in_flight, ..
        } = node.sweeper
        else {
            return Set::default();
        };
        let epoch = state.root.members[member].epoch;
        // An epoch has one owner, so whoever has it need not ask whom the root names.
        let is_same = node
            .view
            .is_some_and(|it| it.members[member].epoch == epoch);
        let is_own = node.holds[member] && !node.is_unproved && is_same;
        let in_flight = match self.is(Mistake::SweepsPrepared) {
            true => Set::default(),
            false => in_flight,
        };
        let unnamed = found.without(state.root.named(member));
        orphans(unnamed, in_flight, &state.epochs, epoch, is_own)
    }
}

fn round(left: Set) -> Sweeper {
    match left.is_empty() {
        true => Sweeper::Idle,
        false => Sweeper::Doomed(left),
    }
}
