//! Whose writes count: opening, publishing, draining, detaching, promoting with and without force, placements
//! of an orchestrator, by nodes that die, come back, and do not learn what became of a request. Rules 11-15
//! and 19.

pub mod state;
mod steps;

use stateright::{Model, Property};

pub use state::State;
pub use steps::Step;

use crate::check;
use state::Role;

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mistake {
    /// Rule 11: local records stay valid, whoever published meanwhile.
    KeepsRecords,
    /// Rule 11: what was never published, and is no part of the volume any more, is thrown away.
    DropsUnpublished,
    /// Rule 11: intents are not written down before the request.
    IntentsInMemory,
    /// Rule 13: an own swap that landed unheard is taken for somebody else's.
    OwnConflictFences,
    /// Rule 13: a swap that failed is made again on the new root.
    RepeatsBlindly,
    /// Rule 15: a volume that has an owner is promoted without force.
    PromotesOwned,
    /// A detach before everything is published.
    DetachUndrained,
    /// Writes are answered while a detach may still land.
    WritesWhileDetaching,
    /// A restart does not know that a detach was asked for.
    ForgetsDetach,
    /// Rule 19: an open with an old generation is not refused.
    IgnoresGeneration,
    /// An open keeps the epoch, and who has that epoch believes to be the owner.
    EpochReuse,
}

/// A part of the whole, small enough to be explored to its end.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    /// Somebody may promote with force.
    pub force: bool,
    /// Bounds: writes, epochs, crashes, answers that are lost or late, placements.
    pub writes: u8,
    pub epochs: u8,
    pub crashes: u8,
    pub lates: u8,
    pub generations: u8,
    /// The mistakes that must show here.
    pub finds: &'static [Mistake],
    pub mistake: Option<Mistake>,
}

/// All scenes.
pub fn scenes() -> Vec<Scene> {
    vec![
        Scene {
            name: "moves",
            force: false,
            writes: 3,
            epochs: 4,
            crashes: 2,
            lates: 2,
            generations: 0,
            finds: &[
                Mistake::PromotesOwned,
                Mistake::DetachUndrained,
                Mistake::WritesWhileDetaching,
                Mistake::ForgetsDetach,
                Mistake::IntentsInMemory,
                Mistake::OwnConflictFences,
            ],
            mistake: None,
        },
        Scene {
            name: "takeovers",
            force: true,
            writes: 3,
            epochs: 4,
            crashes: 2,
            lates: 2,
            generations: 0,
            finds: &[
                Mistake::KeepsRecords,
                Mistake::DropsUnpublished,
                Mistake::RepeatsBlindly,
                Mistake::EpochReuse,
            ],
            mistake: None,
        },
        Scene {
            name: "placements",
            force: false,
            writes: 2,
            epochs: 4,
            crashes: 1,
            lates: 1,
            generations: 3,
            finds: &[Mistake::IgnoresGeneration],
            mistake: None,
        },
    ]
}

check::scene!("owners");

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
                "the store goes on, and owners know themselves",
                |_, state: &State| state.broken.is_none(),
            ),
            Property::always(
                "an answered write is in the store or in a log",
                |_, state: &State| (1..=state.writes).all(|write| is_somewhere(state, write)),
            ),
            Property::always(
                "without force, an answered write is in the store or in its owner's log",
                |_, state: &State| {
                    state.was_forced
                        || (1..=state.writes).all(|write| will_be_published(state, write))
                },
            ),
            Property::always("one epoch has one owner", |_, state: &State| {
                let holders = state.nodes.iter().filter(|node| {
                    node.role == Role::Owner && node.log.epoch == Some(state.root.epoch)
                });
                holders.count() <= 1
            }),
            Property::sometimes("a volume moves with all its writes", |_, state: &State| {
                let all = usize::from(state.writes) == state.root.content.len();
                all && state.writes > 1 && !state.was_forced && state.root.owner == Some(1)
            }),
            Property::sometimes("an owner is fenced", |model: &Self, state: &State| {
                let fenced = state.nodes.iter().any(|node| node.role == Role::Fenced);
                fenced || !(model.force || model.generations > 0)
            }),
        ]
    }
}

fn is_somewhere(state: &State, write: u8) -> bool {
    let in_log = state
        .nodes
        .iter()
        .any(|node| node.log.content.contains(&write) || node.log.salvage.contains(&write));
    in_log || state.root.content.contains(&write)
}

fn will_be_published(state: &State, write: u8) -> bool {
    let owner = state.root.owner.map(|owner| &state.nodes[owner]);
    let in_owner = owner.is_some_and(|node| node.log.content.contains(&write));
    in_owner || state.root.content.contains(&write)
}
