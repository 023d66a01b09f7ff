//! Every step that may come next, and what it does: of who reads, ends a group, and deletes it. A volume is read in two
//! steps, for its own root may name a group, and changed in a third; what was read may be long ago by then.

use super::state::{CALLS, GROUPS, Group, Home, MEMBERS, NODES, Reader, Root, Seen, State};
use super::{FormerStep, Mistake, NodeStep, Scene};

/// One step. A node is meant by number, and who forms a group by that group's and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Node(usize, NodeStep),
    Former(usize, usize, FormerStep),
    Reader(ReaderStep),
    /// A group that nobody owns is dissolved.
    Dissolve(usize),
    /// A member of a group that is over is put back into its own root.
    LetOut(usize, usize),
    /// Somebody finds that no root names the group any more.
    Decide(usize),
    /// The root of a group is deleted, by who found that.
    Delete(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReaderStep {
    /// The volume's root.
    Look,
    /// That of the group which it names.
    Ask,
}

impl Scene {
    pub(super) fn may(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        for number in 0..self.nodes {
            let node = self.node_may(state, number).into_iter();
            steps.extend(node.map(|step| Step::Node(number, step)));
        }
        for group in 0..self.groups {
            for call in 0..self.calls {
                let step = self.former_may(state, group, call);
                steps.extend(step.map(|step| Step::Former(group, call, step)));
            }
            self.may_end(state, group, steps);
        }
        match state.reader {
            Reader::Idle if !self.reads => (),
            Reader::Idle => steps.push(Step::Reader(ReaderStep::Look)),
            Reader::Looked { .. } => steps.push(Step::Reader(ReaderStep::Ask)),
            Reader::Ended => (),
        }
    }

    fn may_end(&self, state: &State, group: usize, steps: &mut Vec<Step>) {
        let named = (0..MEMBERS).filter(|it| state.group_of(*it) == Some(group));
        let is_over = match state.groups[group] {
            Group::Formed(members) => {
                let is_free = members.iter().all(|it| it.owner.is_none());
                steps.extend(is_free.then_some(Step::Dissolve(group)));
                false
            }
            Group::Dissolved(_) => {
                steps.extend(named.clone().map(|member| Step::LetOut(group, member)));
                self.is_over(state.groups[group], named.count())
            }
            Group::Absent | Group::Forming(_) | Group::Gone => false,
        };
        if state.deletes[group] {
            let is_there = !matches!(state.groups[group], Group::Absent | Group::Gone);
            steps.extend(is_there.then_some(Step::Delete(group)));
        } else {
            steps.extend(is_over.then_some(Step::Decide(group)));
        }
    }

    /// Nobody may come that asks for it: each member has named it, and does no more. One that was given up may be
    /// named yet, by who formed it and is slow.
    fn is_over(&self, group: Group, named: usize) -> bool {
        match group {
            Group::Dissolved(Some(_)) => named == 0 || named == 1 && self.is(Mistake::DeletesEarly),
            Group::Dissolved(None) => named == 0 && self.is(Mistake::DeletesGivenUp),
            Group::Absent | Group::Forming(_) | Group::Formed(_) | Group::Gone => false,
        }
    }

    /// The state after the step; none if the step turns out to do nothing.
    pub(super) fn does(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Node(number, step) => self.node_does(&mut next, number, step)?,
            Step::Former(group, call, step) => self.former_does(&mut next, (group, call), step)?,
            Step::Reader(step) => self.reader_does(&mut next, step)?,
            Step::Dissolve(group) => {
                if let Group::Formed(members) = next.groups[group] {
                    next.groups[group] = Group::Dissolved(Some(members));
                }
            }
            Step::LetOut(_, member) => {
                let mut now = next.volume(member)?;
                now.epoch += 1;
                next.roots[member] = Root::Plain(now);
            }
            Step::Decide(group) => next.deletes[group] = true,
            Step::Delete(group) => next.groups[group] = Group::Gone,
        }
        next.check(state);
        next.forget();
        (next != *state).then_some(next)
    }

    /// What the volume is of which `own` was read. None: that is over by now, and is read again.
    pub(super) fn ask(&self, state: &State, member: usize, own: Root) -> Option<Seen> {
        let (group, said) = match own {
            Root::Plain(now) => {
                let home = Home::Own;
                return Some(Seen { own, home, now });
            }
            Root::Member { group, own } => (group, own),
        };
        // The same id may come again, by who is slow to create it. So where the volume's own root is to count, it still
        // names the group after that was read.
        let is_same = state.roots[member] == own || self.is(Mistake::LooksOnce);
        let (home, now) = match state.groups[group] {
            Group::Absent | Group::Gone if self.is(Mistake::GoneIsForming) => (Home::Own, said),
            Group::Absent | Group::Gone => return None,
            Group::Forming(_) | Group::Dissolved(None) if !is_same => return None,
            Group::Forming(_) if !self.is(Mistake::OpensForming) => (Home::Forming(group), said),
            Group::Forming(_) | Group::Dissolved(None) => (Home::Own, said),
            Group::Formed(members) => (Home::Group(group, members), members[member]),
            Group::Dissolved(Some(_)) if self.is(Mistake::OpensAsItCame) => (Home::Own, said),
            Group::Dissolved(Some(members)) => (Home::Own, members[member]),
        };
        Some(Seen { own, home, now })
    }

    /// It reads the first volume. The other is no different.
    fn reader_does(&self, next: &mut State, step: ReaderStep) -> Option<()> {
        next.reader = match (step, next.reader) {
            (ReaderStep::Look, _) => {
                let floor = next.volume(0)?.cut;
                looked(next, floor)
            }
            (ReaderStep::Ask, Reader::Looked { root, floor }) => match self.ask(next, 0, root) {
                Some(seen) => shown(next, seen.now.cut, floor),
                // The root names the group no more.
                None => looked(next, floor),
            },
            (ReaderStep::Ask, _) => return None,
        };
        Some(())
    }
}

fn looked(next: &mut State, floor: u8) -> Reader {
    match next.roots[0] {
        Root::Plain(volume) => shown(next, volume.cut, floor),
        root @ Root::Member { .. } => Reader::Looked { root, floor },
    }
}

fn shown(next: &mut State, cut: u8, floor: u8) -> Reader {
    if cut < floor {
        next.broken = Some("a reader was shown what had been left behind before it asked");
    }
    Reader::Ended
}

const _: () = assert!(GROUPS > 1, "a volume comes into a second group");
const _: () = assert!(NODES > 1, "somebody opens what another one has seen");
const _: () = assert!(CALLS > 1, "a request is repeated");
