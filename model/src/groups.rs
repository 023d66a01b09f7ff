//! Volumes that are cut together and committed by one root (rule 30): whether what anybody sees of a group is
//! one moment of all its members, and whether that is kept. Two members, whose writes depend on each other in
//! the order in which they were answered. Owners die, lose power, are taken over from and do not know it;
//! publishes land unheard or late; forks, snapshots, readers, collectors and sweeps of each member run beside.
//!
//! What holds for one volume is in `owners` and `space`; how a volume comes into a group, and out of it, in
//! `joins`. `docs/decisions/0019-groups.md`.

mod collector;
mod forker;
mod owner;
mod process;
mod reader;
mod scenes;
pub mod state;
mod steps;
mod sweeper;

use stateright::{Model, Property};

pub use collector::CollectorStep;
pub use forker::ForkStep;
pub use owner::{Change, Cut, Outcome, OwnerStep};
pub use process::ProcessStep;
pub use reader::ReaderStep;
pub use scenes::scenes;
pub use state::{Part, State};
pub use steps::Step;
pub use sweeper::SweeperStep;

use crate::check;
use state::{Content, MEMBERS, union};

/// Who takes part, and what may happen. Owners that write and publish always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Another node takes the group with force, so that the first is a zombie.
    Takeover,
    /// An owner gives the group up, and whoever opens it next has it.
    Moves,
    /// A node that died goes on with its log (rule 14).
    Resume,
    /// A node loses power, and with it what was not flushed.
    Power,
    /// A cut has a bound: the oldest writes alone.
    BoundedCuts,
    /// What is published lies in segments, which are uploaded, replaced and deleted.
    Space,
    Collector,
    Sweeper,
    Snapshots,
    Restore,
    Reader,
    /// Somebody forks the group; others clean up after him, also while he lives.
    Forker,
}

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mistake {
    /// The members are cut one after the other, and writes are answered in between.
    CutsApart,
    /// The bound of a cut counts for each member by itself.
    BoundsApart,
    /// Each member's part of the root is published by a swap of its own.
    CommitsApart,
    /// Each member has a log of its own: a power cut takes another end from each.
    LogsApart,
    /// Somebody opens one member, and becomes the owner of that one alone.
    TakesOne,
    /// Whoever opens the group raises the epoch of the member that was asked for, and of no other.
    EpochOfOne,
    /// Rule 13: a swap that failed is made again on the new root.
    RepeatsBlindly,
    /// A publish of before a crash turns out to have landed, and holds more than the cut on its way: that is
    /// published all the same.
    KeepsOlderCut,
    /// The group is given up once the first member is drained.
    DetachesHalf,
    /// A reader asks for the group once for each member.
    ReadsApart,
    /// A reader does not look at the group again behind its pins.
    ReaderTrustsFirstLook,
    /// Each member's snapshot goes with a publish of its own.
    SnapshotsApart,
    /// One member alone is restored.
    RestoresOne,
    /// A fork asks for the group once for each member.
    ForksApart,
    /// A fork of the group has a pin in the first member's folder alone.
    PinsOne,
    /// Whoever cleans up after a forker burns a member of the fork before the fork's own root says that it is over.
    BurnsUndissolved,
    /// The collector takes for garbage what the group names still, and will not name once a cut on its way is in.
    DropsPrepared,
    /// The sweep of the own epoch does not ask what was uploaded for a cut on its way.
    SweepsPrepared,
}

/// A part of the whole, small enough to be explored to its end.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    pub actors: &'static [Actor],
    pub nodes: usize,
    /// Bounds: writes, segments of each member, epochs, crashes, answers that are lost or late.
    pub writes: u8,
    pub segments: u8,
    pub epochs: u8,
    pub crashes: u8,
    pub lates: u8,
    /// The mistakes that must show here.
    pub finds: &'static [Mistake],
    pub mistake: Option<Mistake>,
}

impl Scene {
    fn has(&self, actor: Actor) -> bool {
        self.actors.contains(&actor)
    }

    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }
}

check::scene!("groups");

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
            Property::always(
                "whoever sees a group sees one moment of it",
                |_, state: &State| seen(state).iter().all(|it| state.is_closed(union(it))),
            ),
            Property::always(
                "no published cut is lost, and nobody publishes who was fenced",
                |_, state: &State| state.broken.is_none(),
            ),
            Property::sometimes("both members are in the store", |_, state: &State| {
                state
                    .root
                    .members
                    .iter()
                    .all(|it| !it.now.writes.is_empty())
            }),
        ];
        if self.has(Actor::Space) {
            properties.push(Property::always(
                "what somebody sees of a group is there",
                |_, state: &State| {
                    let named = seen(state).into_iter().flatten();
                    named
                        .filter_map(|it| it.segment)
                        .all(|it| state.segments.has(usize::from(it)))
                },
            ));
        }
        if self.has(Actor::Moves) {
            properties.push(Property::always(
                "without force, an answered write is in the store or in its owner's log",
                |_, state: &State| {
                    (0..usize::from(state.writes)).all(|it| will_be_there(state, it))
                },
            ));
        }
        properties.extend(self.witnesses());
        properties
    }
}

impl Scene {
    /// What must happen somewhere, or the scene shows less than it says.
    fn witnesses(&self) -> Vec<Property<Self>> {
        let mut properties = Vec::new();
        if self.has(Actor::Takeover) || self.has(Actor::Moves) {
            properties.push(Property::sometimes(
                "another node publishes the group",
                |_, state: &State| {
                    let mut members = state.root.members.iter();
                    let has_more = members.clone().any(|it| it.now.cut > 1);
                    has_more && members.all(|it| it.owner == Some(1))
                },
            ));
        }
        if self.has(Actor::Sweeper) {
            properties.push(Property::sometimes(
                "an orphan of the epoch before is swept",
                |_, state: &State| {
                    let epochs = state.root.members.map(|it| it.epoch);
                    let gone = |member: usize| {
                        let old = |it: usize| state.epochs[it] < epochs[member];
                        let mut made = state.made_of(member);
                        made.any(|it| old(it) && !state.segments.has(it))
                    };
                    (0..MEMBERS).any(gone)
                },
            ));
        }
        if self.has(Actor::Collector) {
            properties.push(Property::sometimes(
                "space comes back",
                |_, state: &State| {
                    let gone =
                        |member: usize| state.made_of(member).any(|it| !state.segments.has(it));
                    (0..MEMBERS).any(gone)
                },
            ));
        }
        if self.has(Actor::Reader) && self.has(Actor::Collector) {
            properties.push(Property::sometimes(
                "a reader sees an older moment than the store",
                |_, state: &State| {
                    let seen = state.reader.content();
                    let now = state.root.now();
                    seen.is_some_and(|seen| !union(&seen).is_empty() && union(&seen) != union(&now))
                },
            ));
        }
        if self.has(Actor::Forker) {
            properties.push(Property::sometimes(
                "a fork holds a moment that its group has left",
                |_, state: &State| {
                    let seen = state.forked();
                    seen.is_some_and(|seen| !union(&seen).is_empty() && seen != state.root.now())
                },
            ));
        }
        properties
    }
}

/// Every state of the group that somebody can see: who opens it, reads it, forks it, restores it.
fn seen(state: &State) -> Vec<[Content; MEMBERS]> {
    let mut seen = vec![state.root.now()];
    seen.extend(state.root.snapshot());
    seen.extend(state.reader.content());
    seen.extend(state.forked());
    seen
}

fn will_be_there(state: &State, write: usize) -> bool {
    let member = state.member_of(write);
    let part = &state.root.members[member];
    let owner = part.owner.map(|owner| &state.nodes[usize::from(owner)]);
    part.now.writes.has(write) || owner.is_some_and(|node| node.log.has(write))
}
