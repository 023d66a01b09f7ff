//! Whose word counts: a volume's own root, or that of its group. Volumes that are in use come into a group and out
//! of it by a few swaps of several objects, and any process may stop between two of them, or be slow. So each object
//! says which other one to ask, and none is believed that another one has overruled. What a volume is spans two objects
//! then, and a swap covers one: it goes by what was read, which may be over in a way that the one object does not show.
//!
//! ```text
//! a member's root    plain ──────────────► names the group ──────────────► plain
//!                                     │                        ▲
//! the group's root           forming ─┴─► formed ──► dissolved ┘   (or at once: given up)
//! ```
//!
//! What a group does while it is one is in `groups`. `docs/decisions/0019-groups.md`.

mod former;
mod node;
pub mod state;
mod steps;

use stateright::{Model, Property};

pub use former::FormerStep;
pub use node::NodeStep;
pub use state::State;
pub use steps::{ReaderStep, Step};

use crate::check;
use state::{Group, Root, Session};

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mistake {
    /// The group is formed of roots that were read, and their volumes are told behind that.
    CommitsFirst,
    /// Whoever finds a group that is forming opens the member by its own root, and lets the group be.
    OpensForming,
    /// A group that is forming is given up whatever it is by then.
    GivesUpBlindly,
    /// A group that is not there is taken for one that was not formed yet.
    GoneIsForming,
    /// A group that was given up before it was formed is deleted once no root names it.
    DeletesGivenUp,
    /// A dissolved group is deleted once one of its members has a root of its own.
    DeletesEarly,
    /// A member of a dissolved group is opened as it was when it came in.
    OpensAsItCame,
    /// Whoever saw a member while its group was forming swaps that, whatever became of the group by then.
    SwapsWhatWasForming,
    /// A member is told of the group as it is by then, which may be over.
    TellsWhatIsOver,
    /// What was seen of a member while its group was forming is taken for what the same root stands for since it was formed.
    SweepsWhatWasForming,
    /// Where a member's own root is to count, it is not looked at again behind the group's.
    LooksOnce,
    /// Calls of one request create the group with the same bytes, so with the same ETag.
    CreatesAlike,
}

/// A part of the whole, small enough to be explored to its end.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    /// Somebody may take by force what another node owns.
    pub force: bool,
    /// Somebody reads who does not open.
    pub reads: bool,
    /// Bounds: nodes, calls of one request to form a group, groups that are formed, epochs of a member up to which it is
    /// opened, cuts that are published of it.
    pub nodes: usize,
    pub calls: usize,
    pub groups: usize,
    pub epochs: u8,
    pub cuts: u8,
    /// The mistakes that must show here.
    pub finds: &'static [Mistake],
    pub mistake: Option<Mistake>,
}

impl Scene {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }
}

/// All scenes.
pub fn scenes() -> Vec<Scene> {
    vec![
        Scene {
            name: "joins",
            force: true,
            reads: false,
            nodes: 2,
            calls: 1,
            groups: 1,
            epochs: 5,
            cuts: 2,
            finds: &[
                Mistake::CommitsFirst,
                Mistake::OpensForming,
                Mistake::GivesUpBlindly,
                Mistake::DeletesGivenUp,
                Mistake::DeletesEarly,
                Mistake::OpensAsItCame,
                Mistake::SwapsWhatWasForming,
                Mistake::SweepsWhatWasForming,
            ],
            mistake: None,
        },
        Scene {
            name: "slow-joins",
            force: false,
            reads: true,
            nodes: 1,
            calls: 2,
            groups: 1,
            epochs: 4,
            cuts: 1,
            finds: &[
                Mistake::GoneIsForming,
                Mistake::TellsWhatIsOver,
                Mistake::LooksOnce,
                Mistake::CreatesAlike,
            ],
            mistake: None,
        },
        Scene {
            name: "rejoins",
            force: false,
            reads: false,
            nodes: 1,
            calls: 1,
            groups: 2,
            epochs: 4,
            cuts: 1,
            finds: &[Mistake::CommitsFirst, Mistake::OpensForming],
            mistake: None,
        },
    ]
}

check::scene!("joins");

impl Model for Scene {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::first()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.may(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        self.does(state, step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "each volume has one state and one owner, and neither is lost",
                |_, state: &State| state.broken.is_none(),
            ),
            Property::sometimes("a group is published", |_, state: &State| {
                let holds = |it: &Session| match it {
                    Session::HoldsGroup { members, .. } => members.iter().all(|it| it.cut > 0),
                    _ => false,
                };
                state.nodes.iter().any(holds)
            }),
            Property::sometimes(
                "a volume that was published in a group is published alone",
                |model: &Self, state: &State| {
                    let holds = |it: &Session| match it {
                        Session::HoldsVolume { now, .. } => now.cut == model.cuts,
                        _ => false,
                    };
                    state.groups.contains(&Group::Gone) && state.nodes.iter().any(holds)
                },
            ),
            Property::sometimes(
                "all groups there may be are formed",
                |model: &Self, state: &State| {
                    let last = &state.groups[model.groups - 1];
                    matches!(last, Group::Formed(_))
                },
            ),
            Property::sometimes("a group that is forming is given up", |_, state: &State| {
                let is_plain = |it: &Root| matches!(it, Root::Plain(_));
                state.groups.contains(&Group::Dissolved(None)) && state.roots.iter().all(is_plain)
            }),
        ]
    }
}
