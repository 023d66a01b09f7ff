//! Whoever opens volumes, publishes them and gives them up; and sweeps by what it has read.

use super::state::{Group, Home, MEMBERS, Root, Seen, Session, State, Volume};
use super::{Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeStep {
    /// The volume's root is read.
    Look(usize),
    /// And that of the group which it names.
    Ask,
    /// The group was forming, and is given up.
    GiveUp,
    /// The volume is opened for writing, as it was seen: by itself, or with its group.
    Open,
    /// What it has seen is up to date, or not: then it is read again. What the root does not name is deleted.
    Sweep,
    Publish,
    Detach,
}

impl Scene {
    pub(super) fn node_may(&self, state: &State, number: usize) -> Vec<NodeStep> {
        let publishes = |volumes: &[Volume]| {
            let room = volumes.iter().all(|it| it.cut < self.cuts);
            let publish = room.then_some(NodeStep::Publish);
            publish.into_iter().chain([NodeStep::Detach]).collect()
        };
        match state.nodes[number] {
            Session::Idle => {
                let has_room = |it: Volume| it.epoch < self.epochs;
                let may = (0..MEMBERS).filter(|it| state.volume(*it).is_some_and(has_room));
                may.map(NodeStep::Look).collect()
            }
            Session::Looks { .. } => vec![NodeStep::Ask],
            Session::Saw { seen, .. } => match seen.home {
                Home::Forming(_) => vec![NodeStep::GiveUp, NodeStep::Sweep],
                Home::Own | Home::Group(..) => vec![NodeStep::Open, NodeStep::Sweep],
            },
            Session::HoldsVolume { now, .. } => publishes(&[now]),
            Session::HoldsGroup { members, .. } => publishes(&members),
        }
    }

    pub(super) fn node_does(&self, next: &mut State, number: usize, step: NodeStep) -> Option<()> {
        let session = next.nodes[number];
        next.nodes[number] = match (step, session) {
            (NodeStep::Look(member), _) => match next.roots[member] {
                own @ Root::Plain(_) => self.saw(next, member, own),
                own @ Root::Member { .. } => Session::Looks { member, own },
            },
            (NodeStep::Ask, Session::Looks { member, own }) => self.saw(next, member, own),
            (NodeStep::GiveUp, Session::Saw { member, seen }) => self.gives_up(next, member, seen),
            (NodeStep::Open, Session::Saw { member, seen }) => opened(next, number, member, seen),
            (NodeStep::Sweep, Session::Saw { member, seen }) => {
                self.sweeps(next, member, seen)?;
                session
            }
            (NodeStep::Publish, _) => changed(next, session, |it| it.cut += 1),
            (NodeStep::Detach, _) => {
                changed(next, session, |it| it.owner = None);
                Session::Idle
            }
            _ => return None,
        };
        Some(())
    }

    /// Who may not take it has no use for it.
    fn saw(&self, state: &State, member: usize, own: Root) -> Session {
        let is_free = |it: &Volume| self.force || it.owner.is_none();
        let may_take = |it: &Volume| is_free(it) && it.epoch < self.epochs;
        let Some(seen) = self.ask(state, member, own) else {
            return Session::Idle;
        };
        let is_useful = match seen.home {
            Home::Own | Home::Forming(_) => may_take(&seen.now),
            Home::Group(_, members) => members.iter().all(may_take),
        };
        match is_useful {
            true => Session::Saw { member, seen },
            false => Session::Idle,
        }
    }

    /// What was seen counts if the group was never formed, and else is over.
    fn gives_up(&self, next: &mut State, member: usize, seen: Seen) -> Session {
        let Home::Forming(group) = seen.home else {
            return Session::Idle;
        };
        if matches!(next.groups[group], Group::Forming(_)) || self.is(Mistake::GivesUpBlindly) {
            next.groups[group] = Group::Dissolved(None);
        }
        match next.groups[group] {
            Group::Dissolved(None) => {}
            Group::Dissolved(Some(_)) if self.is(Mistake::SwapsWhatWasForming) => {}
            _ => return Session::Idle,
        }
        let seen = Seen {
            home: Home::Own,
            ..seen
        };
        Session::Saw { member, seen }
    }

    fn sweeps(&self, next: &mut State, member: usize, seen: Seen) -> Option<()> {
        let now = next.volume(member)?;
        let formed = next.group_of(member).map(|it| next.groups[it]);
        let is_version = match seen.home {
            Home::Group(_, members) => formed == Some(Group::Formed(members)),
            Home::Own | Home::Forming(_) => {
                let is_formed = matches!(formed, Some(Group::Formed(_)));
                next.roots[member] == seen.own && !is_formed
            }
        };
        // A root that names a group stays as it is while that is formed and dissolved, and says something else then.
        let is_same = seen.now == now || self.is(Mistake::SweepsWhatWasForming);
        if is_version && is_same && seen.now.cut < now.cut {
            next.broken = Some("a sweep deleted what the root names");
        }
        Some(())
    }
}

fn opened(next: &mut State, number: usize, member: usize, seen: Seen) -> Session {
    let taken = |it: Volume| Volume {
        epoch: it.epoch + 1,
        owner: Some(number),
        ..it
    };
    match seen.home {
        // Its own root becomes a plain one, of the next epoch.
        Home::Own if next.roots[member] == seen.own => {
            let now = taken(seen.now);
            next.roots[member] = Root::Plain(now);
            Session::HoldsVolume { member, now }
        }
        Home::Group(group, members) if next.groups[group] == Group::Formed(members) => {
            let members = members.map(taken);
            next.groups[group] = Group::Formed(members);
            Session::HoldsGroup { group, members }
        }
        Home::Own | Home::Forming(_) | Home::Group(..) => Session::Idle,
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
        _ => Session::Idle,
    }
}
