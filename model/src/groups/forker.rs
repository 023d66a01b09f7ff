//! A fork of the group: another group, of which each member is a fork of one of this. Made by a process that may be
//! slow or dead, cleaned up after by others.
//!
//! ```text
//! a pin in each member's folder -> read the group -> begin the fork's own root -> a root for each member of it
//!                                                       (forming)                 -> the fork's own root: formed
//! ```

use super::state::{Content, MEMBERS, State};
use super::{Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForkStep {
    /// A pin in the folder of the next member.
    Pin,
    /// The group, once for all members.
    Read,
    /// Only where a rule is broken: the group again, for the next member.
    ReadOne,
    /// The fork's own root: it says that the fork is forming.
    Begin,
    /// The root of the fork's next member, which must not be there.
    Create,
    /// The fork's own root says what its members are.
    Commit,
    /// Somebody cleans up after it: the fork's own root says that it is over.
    Dissolve,
    /// A tombstone for a member of the fork: in the place of its root, or where none is yet.
    Burn(usize),
    /// The pin of one that is a tombstone.
    Unpin(usize),
}

/// How far the process that makes the fork has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forker {
    #[default]
    Idle,
    /// So many pins.
    Pinned(usize),
    /// It knows the first member, and asks again for the second.
    Half(Content),
    Read([Content; MEMBERS]),
    /// So many roots of members.
    Begun(usize),
    Ended,
}

/// The root of one member of the fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberRoot {
    #[default]
    Absent,
    /// It names the group, which says what it is.
    There,
    Tombstone,
}

/// The fork's own root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Child {
    #[default]
    Absent,
    /// Nobody can open it. The contents are what the roots of its members say meanwhile.
    Forming([Content; MEMBERS]),
    Formed([Content; MEMBERS]),
    /// It will never be formed.
    Dissolved([Content; MEMBERS]),
}

impl Child {
    /// What the fork's members need of the group.
    pub fn content(&self) -> Option<[Content; MEMBERS]> {
        match self {
            Self::Absent => None,
            Self::Forming(content) | Self::Formed(content) | Self::Dissolved(content) => {
                Some(*content)
            }
        }
    }
}

impl Scene {
    pub(super) fn fork_may(&self, state: &State) -> Vec<ForkStep> {
        let pins = match self.is(Mistake::PinsOne) {
            true => 1,
            false => MEMBERS,
        };
        let mut steps = match state.forker {
            Forker::Idle => vec![ForkStep::Pin],
            Forker::Pinned(count) if count < pins => vec![ForkStep::Pin],
            Forker::Pinned(_) if self.is(Mistake::ForksApart) => vec![ForkStep::ReadOne],
            Forker::Pinned(_) => vec![ForkStep::Read],
            Forker::Half(_) => vec![ForkStep::ReadOne],
            Forker::Read(_) => vec![ForkStep::Begin],
            Forker::Begun(count) if count < MEMBERS => vec![ForkStep::Create],
            Forker::Begun(_) => vec![ForkStep::Commit],
            Forker::Ended => Vec::new(),
        };
        // Whoever cleans up cannot know whether the forker is dead.
        let is_forming = matches!(state.child, Child::Forming(_));
        let is_over = matches!(state.child, Child::Dissolved(_));
        if is_forming {
            steps.push(ForkStep::Dissolve);
        }
        for member in 0..MEMBERS {
            let pinned = state.pins[member];
            match state.member_roots[member] {
                MemberRoot::Absent if pinned => steps.push(ForkStep::Burn(member)),
                MemberRoot::There if is_over => steps.push(ForkStep::Burn(member)),
                MemberRoot::There if is_forming && self.is(Mistake::BurnsUndissolved) => {
                    steps.push(ForkStep::Burn(member));
                }
                MemberRoot::Tombstone if pinned => steps.push(ForkStep::Unpin(member)),
                MemberRoot::Absent | MemberRoot::There | MemberRoot::Tombstone => (),
            }
        }
        steps
    }

    pub(super) fn fork_does(&self, next: &mut State, step: ForkStep) -> Option<()> {
        match (step, next.forker) {
            (ForkStep::Pin, Forker::Pinned(count)) => {
                next.pins[count] = true;
                next.forker = Forker::Pinned(count + 1);
            }
            (ForkStep::Pin, _) => {
                next.pins[0] = true;
                next.forker = Forker::Pinned(1);
            }
            (ForkStep::Read, _) => next.forker = Forker::Read(next.root.now()),
            (ForkStep::ReadOne, Forker::Half(first)) => {
                let [_, second] = next.root.now();
                next.forker = Forker::Read([first, second]);
            }
            (ForkStep::ReadOne, _) => {
                let [first, _] = next.root.now();
                next.forker = Forker::Half(first);
            }
            (ForkStep::Begin, Forker::Read(content)) => {
                next.child = Child::Forming(content);
                next.forker = Forker::Begun(0);
            }
            (ForkStep::Create, Forker::Begun(count)) => {
                let is_free = next.member_roots[count] == MemberRoot::Absent;
                if is_free {
                    next.member_roots[count] = MemberRoot::There;
                }
                next.forker = match is_free {
                    true => Forker::Begun(count + 1),
                    false => Forker::Ended,
                };
            }
            (ForkStep::Commit, _) => {
                if let Child::Forming(content) = next.child {
                    next.child = Child::Formed(content);
                }
                next.forker = Forker::Ended;
            }
            (ForkStep::Dissolve, _) => {
                if let Child::Forming(content) = next.child {
                    next.child = Child::Dissolved(content);
                }
            }
            (ForkStep::Burn(member), _) => next.member_roots[member] = MemberRoot::Tombstone,
            (ForkStep::Unpin(member), _) => next.pins[member] = false,
            (ForkStep::Begin | ForkStep::Create, _) => return None,
        }
        Some(())
    }
}
