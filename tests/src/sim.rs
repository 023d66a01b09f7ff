//! The whole system in simulation: the real NBD server, shard, cache, volumes and sync, on
//! simulated disks, store, sockets and clocks; guests that stamp what they write; the model disk
//! ([`crate::oracle`]) as the judge. One seed decides everything.
//!
//! A [`Scenario`] is one kind of trouble. All of them end alike: the trouble stops, everything is
//! drained, the node is lost with its disk, and another node must find exactly what was answered.
//!
//! - `stage`: what a scenario stands on: settings, nodes, guests;
//! - `look`: what clients see, and the judgement of it;
//! - `node`: a server as one process of a host;
//! - `guest`: one client process and its load, on the `disks` that all is about;
//! - `plant`: rules that are broken on purpose;
//! - the rest: the scenarios.
//!
//! Deliberately absent: the HTTP API and the config file (the edge), and more than one volume in a
//! log but for forks, and members of a group.

mod age;
mod answers;
mod copies;
mod crash;
mod damage;
mod disks;
mod fsync;
mod group;
mod guest;
mod livefork;
mod look;
mod loss;
mod migrate;
pub(crate) mod node;
mod plant;
mod snapshots;
mod space;
mod stage;
mod takeover;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use world::sim::{Sim, SimConfig};

pub use space::SpaceRun;

/// Steps of tasks in one run; the longest take a tenth.
const STEPS_MAX: u64 = 6_000_000;
/// Virtual time of one run; the longest take a tenth.
const TIME_MAX: Duration = Duration::from_secs(4 * 3_600);

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Kills and power cuts at random operations, under a bad store.
    Crash,
    /// The same with a tiny cache, hot pages and trims, so that chunks are reused all the time.
    Evict,
    /// The node dies with its disk.
    Loss,
    /// Another node takes the volume while the first is paused or cut off, and comes back.
    Takeover,
    /// Cache folders of the past, and copies of them on other hosts.
    Copies,
    /// Answers of the store get lost, guests come and go, the volume moves between nodes.
    Answers,
    /// Objects of the store are damaged, swapped, or put back to what they were.
    Damage,
    /// The disk reports an error.
    Fsync,
    /// The node dies with its disk while nothing is wrong with the store: how old is what it holds?
    Age,
    /// Everything at once that a store can do wrong, long outages, kills and power cuts.
    Weather,
    /// Snapshots are taken and deleted through all that happens in [`Scenario::Crash`].
    Snapshots,
    /// Forks are made of a volume that is written to, and used at once, whatever the store does.
    LiveFork,
    /// A running guest is moved from node to node, with both ends dying on the way.
    Migrate,
    /// Databases on several volumes that are published together, through all of this.
    Group,
}

impl Scenario {
    pub const ALL: [Self; 14] = [
        Self::Crash,
        Self::Evict,
        Self::Loss,
        Self::Takeover,
        Self::Copies,
        Self::Answers,
        Self::Damage,
        Self::Fsync,
        Self::Age,
        Self::Weather,
        Self::Snapshots,
        Self::Migrate,
        Self::LiveFork,
        Self::Group,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Evict => "evict",
            Self::Loss => "loss",
            Self::Takeover => "takeover",
            Self::Copies => "copies",
            Self::Answers => "answers",
            Self::Damage => "damage",
            Self::Fsync => "fsync",
            Self::Age => "age",
            Self::Weather => "weather",
            Self::Snapshots => "snapshots",
            Self::Migrate => "migrate",
            Self::LiveFork => "livefork",
            Self::Group => "group",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// The one that a seed stands for where none is named.
    pub fn of_seed(seed: u64) -> Self {
        let count = u64::try_from(Self::ALL.len()).expect("a few");
        Self::ALL[usize::try_from(seed % count).expect("an index")]
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule broken on purpose (`docs/promises.md`); only in builds with the feature `planted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A clean chunk is evicted before an older one.
    Rule1,
    /// A dirty record counts as clean once a newer write covers it.
    Rule2,
    /// What was uploaded of a cut counts for the newer one that takes its place, also if it was written again.
    Rule2Kept,
    /// A recycled chunk keeps its life, and its header is not waited for.
    Rule4,
    /// Local records count whoever published last.
    Rule11,
    /// A failed condition is taken for a fence, though it may be our own write that it met.
    Rule13Conflict,
    /// A write of our own that lands late is taken for a stranger's.
    Rule13Intent,
    /// A promotion without force takes an open volume.
    Rule15,
    /// The collector goes by a list of pins from before the root was published.
    Rule20List,
    /// A forker reads the parent's root before it pins.
    Rule20Pin,
    /// A volume is purged whoever needs it.
    Rule20Purge,
    /// A fork that is flat lets go of what snapshots and readers of before need.
    Rule20Flat,
    /// The sweep deletes whatever the root does not name.
    Rule21,
    /// The sweep deletes what a tombstone does not name.
    Rule21Tombstone,
    /// A volume publishes behind the cut of a fork that nobody has published.
    Rule22Fork,
    /// A fork reads what its parent is now.
    Rule2Fork,
    /// A snapshot goes with whatever cut is published next, also one from before it was asked for.
    Rule22,
    /// Members of a group are cut one after the other, and written in between.
    CutsApart,
    /// The bound of a cut counts for each member of a group by itself.
    BoundsApart,
    /// A reader believes what it read of the members of a group at two moments.
    ReadsApart,
    /// Whoever takes a group raises the epoch of the one member that was asked for.
    EpochOfOne,
    /// A member of a group that is forming is opened, and the group is formed all the same.
    OpensForming,
    /// A sync waits ten times as long as it is told to.
    Late,
}

impl Plant {
    pub const ALL: [Self; 23] = [
        Self::Rule1,
        Self::Rule2,
        Self::Rule2Kept,
        Self::Rule4,
        Self::Rule11,
        Self::Rule13Conflict,
        Self::Rule13Intent,
        Self::Rule15,
        Self::Rule20Flat,
        Self::Rule20List,
        Self::Rule20Pin,
        Self::Rule20Purge,
        Self::Rule21,
        Self::Rule21Tombstone,
        Self::Rule22,
        Self::Rule22Fork,
        Self::Rule2Fork,
        Self::CutsApart,
        Self::BoundsApart,
        Self::ReadsApart,
        Self::EpochOfOne,
        Self::OpensForming,
        Self::Late,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rule1 => "rule1",
            Self::Rule2 => "rule2",
            Self::Rule2Kept => "rule2-kept",
            Self::Rule4 => "rule4",
            Self::Rule11 => "rule11",
            Self::Rule13Conflict => "rule13-conflict",
            Self::Rule13Intent => "rule13-intent",
            Self::Rule15 => "rule15",
            Self::Rule20Flat => "rule20-flat",
            Self::Rule20List => "rule20-list",
            Self::Rule20Pin => "rule20-pin",
            Self::Rule20Purge => "rule20-purge",
            Self::Rule21 => "rule21",
            Self::Rule21Tombstone => "rule21-tombstone",
            Self::Rule22 => "rule22",
            Self::Rule22Fork => "rule22-fork",
            Self::Rule2Fork => "rule2-fork",
            Self::CutsApart => "cuts-apart",
            Self::BoundsApart => "bounds-apart",
            Self::ReadsApart => "reads-apart",
            Self::EpochOfOne => "epoch-of-one",
            Self::OpensForming => "opens-forming",
            Self::Late => "late",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub scenario: Scenario,
    pub seed: u64,
    pub plant: Option<Plant>,
}

/// A run that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub trace_hash: u64,
    /// Steps of tasks, and requests that guests were answered.
    pub steps: u64,
    pub answers: u64,
    /// The last lines of the trace, where they were asked for.
    pub trace: String,
}

/// A run that broke a promise.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} seed {}: {what}", run.scenario, run.seed)]
pub struct Failed {
    pub run: Run,
    pub what: String,
    pub trace: String,
}

impl Run {
    /// Runs it to its end. `lines` of the trace are kept for people.
    pub fn perform(self, lines: usize) -> Result<Passed, Box<Failed>> {
        let failed = |what: String, trace: String| {
            let run = self;
            Box::new(Failed { run, what, trace })
        };
        let ended = catch_unwind(AssertUnwindSafe(|| self.simulate(lines)));
        match ended {
            Ok(Ok((outcome, trace_hash))) => match outcome.result {
                Ok(answers) => Ok(Passed {
                    trace_hash,
                    answers,
                    steps: outcome.steps,
                    trace: outcome.trace,
                }),
                Err(error) => Err(failed(format!("{error:#}"), outcome.trace)),
            },
            Ok(Err(stuck)) => Err(failed(
                format!("{} after {} steps", stuck.why, stuck.steps),
                stuck.trace,
            )),
            Err(panic) => Err(failed(
                format!("panic: {}", text_of(&*panic)),
                String::new(),
            )),
        }
    }

    fn simulate(self, lines: usize) -> Result<(Outcome, u64), world::sim::Stuck> {
        let mut config = SimConfig {
            steps_max: STEPS_MAX,
            // Some of them wait until the pins of dead readers are old.
            time_max: match self.scenario {
                Scenario::Snapshots | Scenario::LiveFork => TIME_MAX + snapshots::READERS_AGE,
                _ => TIME_MAX,
            },
            trace_lines_max: lines.max(1),
            panic_lines_max: lines,
            ..SimConfig::default()
        };
        if self.scenario == Scenario::Age {
            config.delays.store = age::STORE;
        }
        // Scenarios of one seed must not see the same numbers.
        let mixed = self.seed ^ (u64::from(self.scenario.name().as_bytes()[1]) << 56);
        Sim::simulate(mixed, config, move |sim| async move {
            let result = Box::pin(self.play(sim.clone())).await;
            Outcome {
                result,
                steps: sim.steps(),
                trace: sim.trace_tail(lines),
            }
        })
    }

    async fn play(self, sim: Sim) -> anyhow::Result<u64> {
        let stage = stage::Stage::new(sim, self);
        match self.scenario {
            Scenario::Crash | Scenario::Evict | Scenario::Weather | Scenario::Snapshots => {
                crash::play(&stage).await?;
            }
            Scenario::Loss => loss::play(&stage).await?,
            Scenario::Takeover => takeover::play(&stage).await?,
            Scenario::Copies => copies::play(&stage).await?,
            Scenario::Answers => answers::play(&stage).await?,
            Scenario::Damage => damage::play(&stage).await?,
            Scenario::Fsync => fsync::play(&stage).await?,
            Scenario::Age => age::play(&stage).await?,
            Scenario::Migrate => migrate::play(&stage).await?,
            Scenario::LiveFork => livefork::play(&stage).await?,
            Scenario::Group => Box::pin(group::play(&stage)).await?,
        }
        Ok(stage.answers())
    }
}

struct Outcome {
    result: anyhow::Result<u64>,
    steps: u64,
    trace: String,
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a text").to_owned()
}
