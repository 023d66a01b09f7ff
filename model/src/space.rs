//! Whose segments are whose: fork, snapshot, restore, collect, sweep, delete, by owners that die, come back,
//! lose their epoch without knowing, and send requests that land late. Rules 12-14 and 20-22.

mod collector;
mod forker;
mod owner;
mod plan;
mod process;
mod scenes;
pub mod state;
mod steps;
mod sweeper;

use stateright::{Model, Property};

pub use collector::CollectorStep;
pub use forker::ForkStep;
pub use owner::OwnerStep;
pub use process::Pending;
pub use scenes::scenes;
pub use state::{Set, Source, State};
pub use steps::Step;
pub use sweeper::SweeperStep;

use crate::check;
use state::{Child, Life, Root};

/// Who takes part. Owners that write always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Another node takes the volume with force, so that the first is a zombie.
    Takeover,
    /// A node that died goes on with its log (rule 14).
    Resume,
    Collector,
    Sweeper,
    Snapshots,
    Restore,
    Delete,
    /// Rewriting segments that are mostly dead: other names at the same cut.
    Repack,
    /// Whoever makes a fork may die, and others clean up after him, also while he lives.
    DyingForkers,
    Flatten,
    DeleteForks,
}

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mistake {
    /// Rule 20: a fork reads the root first, and pins then.
    PinAfterRoot,
    /// Rule 20: the collector lists pins, and drops what it deletes in a later root.
    ListBeforePublish,
    /// Rule 20: a pin whose child is not there holds nothing.
    AbsentChildFrees,
    /// A pin whose child is gone, or flat, by the time its root is read holds nothing in that round.
    GoneChildFrees,
    /// The collector asks which snapshots hold when it decides, and not of the root that it published.
    SnapshotsTooLate,
    /// Rule 20: a fork of a fork pins the fork alone.
    PinOnlyChild,
    /// Rule 20: a fork of a fork does not read the fork's root again after it pinned.
    TrustsFirstLook,
    /// A fork lets its pin go before it holds everything by itself.
    UnpinBeforeFlat,
    /// Cleaning up after a dead forker removes the pin, and leaves nothing that stops a late create.
    UnpinUnburned,
    /// The same, with a tombstone that goes away at once.
    PurgeAtOnce,
    /// Rule 21: what no root names is swept, whatever its epoch (an age is no better).
    SweepByAge,
    /// Rule 21: the sweep asks what is being uploaded after it read the root, and not before.
    InFlightTooLate,
    /// Rule 14: the own epoch is swept before the first publish after a restart.
    SweepUnproved,
    /// A takeover keeps the epoch, and who has that epoch believes to be the owner.
    EpochReuse,
    /// Rule 22: a snapshot is an object of its own, beside the root.
    SnapshotApart,
    /// A restore leaves what it names again among the garbage.
    RestoreKeepsGarbage,
}

/// A part of the whole, small enough to be explored to its end.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    pub actors: &'static [Actor],
    pub nodes: usize,
    /// Of what each fork may be made.
    pub forks: &'static [&'static [Source]],
    /// Bounds: segments that are made, cuts, epochs, crashes.
    pub segments: usize,
    pub cuts: u8,
    pub epochs: u8,
    pub crashes: u8,
    /// The mistakes that must show here.
    pub finds: &'static [Mistake],
    pub mistake: Option<Mistake>,
}

impl Scene {
    fn has(&self, actor: Actor) -> bool {
        self.actors.contains(&actor)
    }
}

check::scene!("space");

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
        let mut properties = vec![
            Property::always("what a root or a snapshot names is there", |_, state| {
                named_is_there(state)
            }),
            Property::always("what a fork names is there", |_, state: &State| {
                state.children.iter().all(|child| match child {
                    Child::Live { from, is_flat } => {
                        *is_flat || from.live.is_within(state.segments)
                    }
                    Child::Absent | Child::Tombstone => true,
                })
            }),
        ];
        if self.has(Actor::Collector) {
            properties.push(Property::sometimes(
                "space comes back",
                |_, state: &State| state.root.garbage.is_empty() && gone(state) > 0,
            ));
        }
        if self.has(Actor::Sweeper) {
            properties.push(Property::sometimes(
                "an orphan is swept",
                |_, state: &State| gone(state) > 0 && state.root.epoch > 1,
            ));
        }
        if !self.forks.is_empty() {
            properties.push(Property::sometimes(
                "a fork holds what its parent dropped",
                |_, state: &State| {
                    let dropped = |child: &Child| match child {
                        Child::Live { from, .. } => !from
                            .live
                            .is_within(state.root.now.live.with(state.root.in_snapshots())),
                        Child::Absent | Child::Tombstone => false,
                    };
                    state.children.iter().any(dropped)
                },
            ));
        }
        properties
    }
}

fn named_is_there(state: &State) -> bool {
    let Root { now, life, .. } = state.root;
    let apart = state.apart.map_or(Set::default(), |it| it.live);
    let named = now.live.with(state.root.in_snapshots()).with(apart);
    life == Life::Deleted || named.is_within(state.segments)
}

/// Segments that were there once.
fn gone(state: &State) -> usize {
    let on_their_way = |it: &usize| state.late.contains(&state::Late::Upload(*it));
    let made = (0..state.made).filter(|it| !on_their_way(it));
    made.filter(|it| !state.segments.has(*it)).count()
}
