//! Every step that may come next, and what it does. A swap that fails changes nothing, so what was read for one and
//! the swap are one step. Only who reads without a swap does so in two.

use super::state::{Former, GROUPS, Group, MEMBERS, NODES, Reader, Root, Session, State, Volume};
use super::{Mistake, Scene};

/// One step. A node is meant by number, and who forms a group by that group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Node(usize, NodeStep),
    Former(usize, FormerStep),
    Reader(ReaderStep),
    /// A group that nobody owns is dissolved.
    Dissolve(usize),
    /// The root of a group that is over is deleted.
    Delete(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeStep {
    /// The volume is opened for writing: by itself, or with its group.
    Open(usize),
    /// Its group is forming, and is given up.
    GiveUp(usize),
    Publish,
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormerStep {
    Begin,
    /// The root of a volume names the group from now on.
    Tell(usize),
    Commit,
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
        for number in 0..NODES {
            let node = self.node_may(state, number).into_iter();
            steps.extend(node.map(|step| Step::Node(number, step)));
        }
        for group in 0..self.groups {
            let former = self.former_may(state, group).into_iter();
            steps.extend(former.map(|step| Step::Former(group, step)));
            steps.extend(may_dissolve(state, group).then_some(Step::Dissolve(group)));
            steps.extend(self.may_delete(state, group).then_some(Step::Delete(group)));
        }
        match state.reader {
            Reader::Idle => steps.push(Step::Reader(ReaderStep::Look)),
            Reader::Looked { .. } => steps.push(Step::Reader(ReaderStep::Ask)),
            Reader::Ended => (),
        }
    }

    fn node_may(&self, state: &State, number: usize) -> Vec<NodeStep> {
        let is_free = |it: &Volume| self.force || it.owner.is_none();
        let may_take = |it: &Volume| is_free(it) && it.epoch < self.epochs;
        let publishes = |volumes: &[Volume]| {
            let room = volumes.iter().all(|it| it.cut < self.cuts);
            let publish = room.then_some(NodeStep::Publish);
            publish.into_iter().chain([NodeStep::Detach]).collect()
        };
        match state.nodes[number] {
            Session::Idle => {
                let opens = (0..MEMBERS).flat_map(|member| {
                    let group = state.group_of(member).map(|it| state.groups[it]);
                    let is_forming = group == Some(Group::Forming);
                    let is_formed = matches!(group, Some(Group::Formed(_)));
                    let gives_up = is_forming && !self.is(Mistake::OpensForming)
                        || is_formed && self.is(Mistake::GivesUpBlindly);
                    let may = match group {
                        Some(Group::Formed(members)) => members.iter().all(may_take),
                        Some(Group::Forming) if gives_up => false,
                        _ => state.volume(member).as_ref().is_some_and(may_take),
                    };
                    let open = may.then_some(NodeStep::Open(member));
                    let give_up = gives_up.then_some(NodeStep::GiveUp(member));
                    open.into_iter().chain(give_up)
                });
                opens.collect()
            }
            Session::HoldsVolume { now, .. } => publishes(&[now]),
            Session::HoldsGroup { members, .. } => publishes(&members),
        }
    }

    fn former_may(&self, state: &State, group: usize) -> Vec<FormerStep> {
        let first = |left: &[Option<Volume>; MEMBERS], is: bool| {
            let found = left.iter().position(|it| it.is_some() == is);
            found.map(FormerStep::Tell)
        };
        match state.formers[group] {
            // One begins behind the other, to tell them apart.
            Former::Idle if group > 0 && state.groups[group - 1] == Group::Absent => Vec::new(),
            Former::Idle => vec![FormerStep::Begin],
            Former::Tells(_) if self.is(Mistake::CommitsFirst) => vec![FormerStep::Commit],
            Former::Tells(told) => vec![first(&told, false).unwrap_or(FormerStep::Commit)],
            Former::Late(left) => first(&left, true).into_iter().collect(),
            Former::Ended => Vec::new(),
        }
    }

    /// Nobody may come that asks for it: each member has named it, and does no more. One that was given up may be
    /// named yet, by who formed it and is slow.
    fn may_delete(&self, state: &State, group: usize) -> bool {
        let left = (0..MEMBERS).filter(|it| state.group_of(*it) == Some(group));
        let left = left.count();
        match state.groups[group] {
            Group::Dissolved(Some(_)) => left == 0 || left == 1 && self.is(Mistake::DeletesEarly),
            Group::Dissolved(None) => left == 0 && self.is(Mistake::DeletesGivenUp),
            Group::Absent | Group::Forming | Group::Formed(_) | Group::Gone => false,
        }
    }

    /// The state after the step; none if the step turns out to do nothing.
    pub(super) fn does(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Node(number, step) => self.node_does(&mut next, number, step)?,
            Step::Former(group, step) => self.former_does(&mut next, group, step)?,
            Step::Reader(step) => self.reader_does(&mut next, step)?,
            Step::Dissolve(group) => {
                if let Group::Formed(members) = next.groups[group] {
                    next.groups[group] = Group::Dissolved(Some(members));
                }
            }
            Step::Delete(group) => next.groups[group] = Group::Gone,
        }
        next.check(state);
        (next != *state).then_some(next)
    }

    fn node_does(&self, next: &mut State, number: usize, step: NodeStep) -> Option<()> {
        match step {
            NodeStep::Open(member) => next.nodes[number] = self.opened(next, number, member)?,
            NodeStep::GiveUp(member) => {
                let group = next.group_of(member)?;
                next.groups[group] = Group::Dissolved(None);
            }
            NodeStep::Publish => {
                let session = next.nodes[number];
                next.nodes[number] = changed(next, session, |it| it.cut += 1);
            }
            NodeStep::Detach => {
                let session = next.nodes[number];
                changed(next, session, |it| it.owner = None);
                next.nodes[number] = Session::Idle;
            }
        }
        Some(())
    }

    fn opened(&self, next: &mut State, number: usize, member: usize) -> Option<Session> {
        let taken = |it: Volume| Volume {
            epoch: it.epoch + 1,
            owner: Some(number),
            ..it
        };
        let volume = match next.roots[member] {
            Root::Plain(volume) => volume,
            Root::Member { group, own } => match next.groups[group] {
                Group::Formed(members) => {
                    let members = members.map(taken);
                    next.groups[group] = Group::Formed(members);
                    return Some(Session::HoldsGroup { group, members });
                }
                Group::Dissolved(_) if self.is(Mistake::OpensAsItCame) => own,
                over => over.member(member, own)?,
            },
        };
        // Its own root becomes a plain one, of the next epoch.
        let now = taken(volume);
        next.roots[member] = Root::Plain(now);
        Some(Session::HoldsVolume { member, now })
    }

    fn former_does(&self, next: &mut State, group: usize, step: FormerStep) -> Option<()> {
        let former = next.formers[group];
        next.formers[group] = match (step, former) {
            (FormerStep::Begin, _) => {
                next.groups[group] = Group::Forming;
                Former::Tells([None; MEMBERS])
            }
            (FormerStep::Tell(member), Former::Tells(mut told)) => match next.roots[member] {
                Root::Plain(volume) if volume.owner.is_none() => {
                    told[member] = Some(next.tell(member, group, volume));
                    Former::Tells(told)
                }
                // In use, or in another group.
                Root::Plain(_) | Root::Member { .. } => Former::Ended,
            },
            (FormerStep::Tell(member), Former::Late(mut left)) => {
                let volume = left[member].take()?;
                if next.roots[member] == Root::Plain(volume) {
                    next.tell(member, group, volume);
                }
                Former::Late(left)
            }
            (FormerStep::Commit, Former::Tells(told)) => {
                let is_first = self.is(Mistake::CommitsFirst);
                let members = match is_first {
                    true => plain(next)?,
                    false => [told[0]?, told[1]?],
                };
                if next.groups[group] == Group::Forming {
                    next.groups[group] = Group::Formed(members);
                }
                match is_first {
                    true => Former::Late(members.map(Some)),
                    false => Former::Ended,
                }
            }
            _ => return None,
        };
        Some(())
    }

    /// It reads the first volume. The other is no different.
    fn reader_does(&self, next: &mut State, step: ReaderStep) -> Option<()> {
        next.reader = match (step, next.reader) {
            (ReaderStep::Look, _) => {
                let floor = next.volume(0)?.cut;
                looked(next, floor)
            }
            (ReaderStep::Ask, Reader::Looked { root, floor }) => {
                let Root::Member { group, own } = root else {
                    return None;
                };
                let there = next.groups[group].member(0, own);
                let own = Some(own).filter(|_| self.is(Mistake::GoneIsForming));
                match there.or(own) {
                    Some(volume) => shown(next, volume.cut, floor),
                    // It was deleted, so the root names it no more.
                    None => looked(next, floor),
                }
            }
            (ReaderStep::Ask, _) => return None,
        };
        Some(())
    }
}

fn may_dissolve(state: &State, group: usize) -> bool {
    match state.groups[group] {
        Group::Formed(members) => members.iter().all(|it| it.owner.is_none()),
        _ => false,
    }
}

/// Both, where nobody owns them.
fn plain(state: &State) -> Option<[Volume; MEMBERS]> {
    match state.roots {
        [Root::Plain(one), Root::Plain(two)] => {
            let are_free = one.owner.is_none() && two.owner.is_none();
            are_free.then_some([one, two])
        }
        _ => None,
    }
}

/// A change by who believes to be the owner. Who is not finds out.
fn changed(next: &mut State, session: Session, change: impl Fn(&mut Volume)) -> Session {
    match session {
        Session::HoldsVolume { member, mut now } if next.roots[member] == Root::Plain(now) => {
            change(&mut now);
            next.roots[member] = Root::Plain(now);
            Session::HoldsVolume { member, now }
        }
        Session::HoldsGroup { group, mut members }
            if next.groups[group] == Group::Formed(members) =>
        {
            members.iter_mut().for_each(change);
            next.groups[group] = Group::Formed(members);
            Session::HoldsGroup { group, members }
        }
        Session::Idle | Session::HoldsVolume { .. } | Session::HoldsGroup { .. } => Session::Idle,
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
