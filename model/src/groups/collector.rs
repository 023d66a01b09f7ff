//! The owner deletes what no content, snapshot, fork or reader of a member needs any more: each member for itself,
//! by its part of the group's root and the pins in its folder.

use super::forker::MemberRoot;
use super::state::{MEMBERS, Set, State};
use super::{Mistake, Scene};
use crate::segments::doomed;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CollectorStep {
    /// Those in the folder of a member.
    ListPins(usize),
    /// The root of the fork's member that a pin names.
    ReadChild,
    Decide,
    /// A segment is deleted.
    Collect(usize),
}

/// A round of the collector, for one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collector {
    #[default]
    Idle,
    Listed {
        member: usize,
        /// Garbage of the root that was published before.
        garbage: Set,
        /// Cuts of the member that are held, as bits.
        held: u16,
        to_read: bool,
        is_blocked: bool,
    },
    Doomed(Set),
}

impl Scene {
    pub(super) fn collector_may(&self, state: &State, number: usize) -> Vec<CollectorStep> {
        let node = &state.nodes[number];
        if !node.is_owner() || node.is_unproved {
            return Vec::new();
        }
        match node.collector {
            Collector::Idle => {
                let held = (0..MEMBERS).filter(|member| node.holds[*member]);
                let begins = held.filter(|member| {
                    let garbage = self.garbage(state, number, *member);
                    // What is gone is not looked for again.
                    !garbage.filter(|it| state.segments.has(it)).is_empty()
                });
                begins.map(CollectorStep::ListPins).collect()
            }
            Collector::Listed { to_read: true, .. } => vec![CollectorStep::ReadChild],
            Collector::Listed { .. } => vec![CollectorStep::Decide],
            Collector::Doomed(left) => left.iter().map(CollectorStep::Collect).collect(),
        }
    }

    fn garbage(&self, state: &State, number: usize, member: usize) -> Set {
        let node = &state.nodes[number];
        let Some(view) = node.view else {
            return Set::default();
        };
        let published = view.members[member];
        let replaced = published.now.segment;
        let prepared = node.attempt.uploaded[member].and(replaced);
        match (self.is(Mistake::DropsPrepared), prepared) {
            (true, Some(segment)) => published.garbage.with(Set::of(usize::from(segment))),
            _ => published.garbage,
        }
    }

    pub(super) fn collector_does(
        &self,
        next: &mut State,
        number: usize,
        step: CollectorStep,
    ) -> Option<()> {
        match step {
            CollectorStep::ListPins(member) => {
                let listed = self.listed(next, number, member)?;
                next.nodes[number].collector = listed;
            }
            CollectorStep::ReadChild => {
                let State {
                    member_roots,
                    child,
                    ..
                } = *next;
                if let Collector::Listed {
                    member,
                    held,
                    to_read,
                    is_blocked,
                    ..
                } = &mut next.nodes[number].collector
                {
                    *to_read = false;
                    match (member_roots[*member], child.content()) {
                        (MemberRoot::There, Some(content)) => *held |= 1 << content[*member].cut,
                        // Nobody knows what it will need, or whether another pin came since.
                        _ => *is_blocked = true,
                    }
                }
            }
            CollectorStep::Decide => {
                let node = &mut next.nodes[number];
                let Collector::Listed {
                    garbage,
                    held,
                    is_blocked,
                    ..
                } = node.collector
                else {
                    return None;
                };
                let left = doomed(garbage, &node.view?.spans, held);
                node.collector = match is_blocked {
                    true => Collector::Idle,
                    false => round(left),
                };
            }
            CollectorStep::Collect(segment) => {
                let gone = Set::of(segment);
                next.segments = next.segments.without(gone);
                if let Collector::Doomed(left) = next.nodes[number].collector {
                    next.nodes[number].collector = round(left.without(gone));
                }
            }
        }
        Some(())
    }

    fn listed(&self, state: &State, number: usize, member: usize) -> Option<Collector> {
        let view = state.nodes[number].view?;
        let snapshot = view.members[member].snapshot.map(|it| it.cut);
        let cuts = snapshot.into_iter().chain(state.read_pins[member]);
        Some(Collector::Listed {
            member,
            garbage: self.garbage(state, number, member),
            held: cuts.fold(0, |held, cut| held | 1 << cut),
            to_read: state.pins[member],
            is_blocked: false,
        })
    }
}

fn round(left: Set) -> Collector {
    match left.is_empty() {
        true => Collector::Idle,
        false => Collector::Doomed(left),
    }
}
