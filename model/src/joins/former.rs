//! Whoever forms a group: one of several calls of one request, which all mean the same group as long as its members have
//! not changed. Each may be slow between any two steps, until the group is over and deleted.

use super::state::{Former, Group, Home, MEMBERS, Root, Seen, State, Volume};
use super::{Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormerStep {
    /// The members are read.
    Look,
    /// The group is created, forming, if it is not there.
    Create,
    /// A member is read again.
    Read(usize),
    /// Its root names the group from now on.
    Tell(usize),
    Commit,
    GiveUp,
}

impl Scene {
    pub(super) fn former_may(
        &self,
        state: &State,
        group: usize,
        call: usize,
    ) -> Option<FormerStep> {
        let first = |left: &[Option<Volume>; MEMBERS], is: bool| {
            let mut left = left.iter();
            left.position(|it| it.is_some() == is)
        };
        match state.formers[group][call] {
            // One begins behind the other, to tell them apart.
            Former::Idle if group > 0 && state.ids[group - 1].is_none() => None,
            Former::Idle if call > 0 && state.formers[group][call - 1] == Former::Idle => None,
            Former::Idle => Some(FormerStep::Look),
            Former::Looked => Some(FormerStep::Create),
            Former::Tells { .. } if self.is(Mistake::CommitsFirst) => Some(FormerStep::Commit),
            Former::Tells { told, base, .. } => Some(match (first(&told, false), base) {
                (Some(member), None) => FormerStep::Read(member),
                (Some(member), Some(_)) => FormerStep::Tell(member),
                (None, _) => FormerStep::Commit,
            }),
            Former::Sent { .. } => Some(FormerStep::Commit),
            Former::GivesUp => Some(FormerStep::GiveUp),
            Former::Late(left) => first(&left, true).map(FormerStep::Tell),
            Former::Ended => None,
        }
    }

    pub(super) fn former_does(
        &self,
        next: &mut State,
        (group, call): (usize, usize),
        step: FormerStep,
    ) -> Option<()> {
        let former = next.formers[group][call];
        next.formers[group][call] = match (step, former) {
            (FormerStep::Look, _) => self.looks(next, group)?,
            (FormerStep::Create, _) => self.creates(next, group, call),
            (FormerStep::Read(member), Former::Tells { created, told, .. }) => {
                match self.reads(next, group, member) {
                    Reads::Named(own) => {
                        let mut told = told;
                        told[member] = Some(own);
                        tells(created, told)
                    }
                    Reads::Free(seen) => Former::Tells {
                        created,
                        told,
                        base: Some(seen),
                    },
                    Reads::Changed => Former::GivesUp,
                }
            }
            (
                FormerStep::Tell(member),
                Former::Tells {
                    created,
                    mut told,
                    base: Some(base),
                },
            ) => match told_by_swap(next, group, member, base) {
                None => Former::GivesUp,
                Some(own) => {
                    told[member] = Some(own);
                    tells(created, told)
                }
            },
            (FormerStep::Tell(member), Former::Late(mut left)) => {
                let volume = left[member].take()?;
                if next.roots[member] == Root::Plain(volume) {
                    next.tell(member, group, volume);
                }
                Former::Late(left)
            }
            (FormerStep::Commit, Former::Tells { created, told, .. }) => {
                match self.is(Mistake::CommitsFirst) {
                    true => {
                        let members = plain(next)?;
                        commits(next, group, created, members);
                        Former::Late(members.map(Some))
                    }
                    false => {
                        let members = [told[0]?, told[1]?];
                        commits(next, group, created, members);
                        Former::Sent { created, members }
                    }
                }
            }
            // Once more: it had not landed when it was sent, or a store that says nothing has it twice.
            (FormerStep::Commit, Former::Sent { created, members }) => {
                commits(next, group, created, members);
                former
            }
            (FormerStep::GiveUp, _) => {
                if matches!(next.groups[group], Group::Forming(_)) {
                    next.groups[group] = Group::Dissolved(None);
                }
                Former::Ended
            }
            _ => return None,
        };
        Some(())
    }

    /// The id follows from the request and from what was read here. If that is another one, it is another group. None:
    /// it cannot be formed.
    fn looks(&self, next: &mut State, group: usize) -> Option<Former> {
        let mut id = [0; MEMBERS];
        let mut is_named = false;
        for (member, epoch) in id.iter_mut().enumerate() {
            let seen = self.ask(next, member, next.roots[member])?;
            *epoch = match seen.home {
                Home::Own if seen.now.owner.is_none() => seen.now.epoch,
                // By an earlier call, which has raised the epoch.
                Home::Forming(named) if named == group => {
                    is_named = true;
                    seen.now.epoch - 1
                }
                Home::Own | Home::Forming(_) | Home::Group(..) => return None,
            };
        }
        match (*next.ids[group].get_or_insert(id) == id, is_named) {
            (true, false) => Some(Former::Looked),
            (true, true) => match next.groups[group] {
                Group::Forming(created) => Some(tells(created, [None; MEMBERS])),
                _ => None,
            },
            // A member that was not told has changed.
            (false, true) => Some(Former::GivesUp),
            (false, false) => None,
        }
    }

    fn creates(&self, next: &mut State, group: usize, call: usize) -> Former {
        if matches!(next.groups[group], Group::Absent | Group::Gone) {
            let is_alike = self.is(Mistake::CreatesAlike);
            next.groups[group] = Group::Forming(if is_alike { 0 } else { call });
        }
        match next.groups[group] {
            Group::Forming(created) => tells(created, [None; MEMBERS]),
            _ => Former::Ended,
        }
    }

    /// What was read is swapped in a later step, which fails if it is over. So reading is one step here.
    fn reads(&self, state: &State, group: usize, member: usize) -> Reads {
        let before = state.ids[group].map(|epochs| epochs[member]);
        let Some(seen) = self.ask(state, member, state.roots[member]) else {
            return Reads::Changed;
        };
        // It may have been in this very group, which is over.
        let is_same = before == Some(seen.now.epoch) || self.is(Mistake::TellsWhatIsOver);
        match seen.home {
            Home::Forming(named) if named == group => Reads::Named(seen.now),
            Home::Own if seen.now.owner.is_none() && is_same => Reads::Free(seen),
            Home::Own | Home::Forming(_) | Home::Group(..) => Reads::Changed,
        }
    }
}

/// How a member is when it is to be told.
enum Reads {
    /// It names the group by an earlier call, and says this.
    Named(Volume),
    Free(Seen),
    Changed,
}

fn commits(next: &mut State, group: usize, created: usize, members: [Volume; MEMBERS]) {
    if next.groups[group] == Group::Forming(created) {
        next.groups[group] = Group::Formed(members);
    }
}

fn tells(created: usize, told: [Option<Volume>; MEMBERS]) -> Former {
    Former::Tells {
        created,
        told,
        base: None,
    }
}

/// What its root says from now on; none if somebody has changed it. Another call may have said the same.
fn told_by_swap(next: &mut State, group: usize, member: usize, base: Seen) -> Option<Volume> {
    if next.roots[member] == base.own {
        return Some(next.tell(member, group, base.now));
    }
    let own = Volume {
        epoch: base.now.epoch + 1,
        ..base.now
    };
    (next.group_of(member) == Some(group)).then_some(own)
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
