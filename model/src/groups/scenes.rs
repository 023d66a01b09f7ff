//! Parts of the whole that are small enough to be explored to their end.

use super::{Actor, Mistake, Scene};

/// All of them.
pub fn scenes() -> Vec<Scene> {
    vec![
        cuts(),
        power(),
        moves(),
        snapshots(),
        readers(),
        forks(),
        sweep(),
    ]
}

/// Cuts and commits of two nodes, of which one may be a zombie, and somebody who reads.
fn cuts() -> Scene {
    Scene {
        name: "group-cuts",
        actors: &[
            Actor::Takeover,
            Actor::Resume,
            Actor::BoundedCuts,
            Actor::Reader,
        ],
        nodes: 2,
        writes: 4,
        segments: 0,
        epochs: 2,
        crashes: 1,
        lates: 1,
        finds: &[
            Mistake::CutsApart,
            Mistake::BoundsApart,
            Mistake::CommitsApart,
            Mistake::TakesOne,
            Mistake::RepeatsBlindly,
            Mistake::KeepsOlderCut,
            Mistake::ReadsApart,
        ],
        mistake: None,
    }
}

/// Logs that a power cut shortens.
fn power() -> Scene {
    Scene {
        name: "group-power",
        actors: &[Actor::Resume, Actor::Power, Actor::BoundedCuts],
        nodes: 1,
        writes: 4,
        segments: 0,
        epochs: 1,
        crashes: 2,
        lates: 1,
        finds: &[Mistake::LogsApart, Mistake::BoundsApart],
        mistake: None,
    }
}

/// From node to node, with all that was answered.
fn moves() -> Scene {
    Scene {
        name: "group-moves",
        actors: &[Actor::Moves, Actor::Resume, Actor::BoundedCuts],
        nodes: 2,
        writes: 4,
        segments: 0,
        epochs: 4,
        crashes: 1,
        lates: 1,
        finds: &[Mistake::DetachesHalf, Mistake::CutsApart],
        mistake: None,
    }
}

/// Moments that are kept and restored, beside a collector.
fn snapshots() -> Scene {
    Scene {
        name: "group-snapshots",
        actors: &[
            Actor::Space,
            Actor::Collector,
            Actor::Snapshots,
            Actor::Restore,
        ],
        nodes: 1,
        writes: 4,
        segments: 3,
        epochs: 3,
        crashes: 0,
        lates: 0,
        finds: &[
            Mistake::SnapshotsApart,
            Mistake::RestoresOne,
            Mistake::DropsPrepared,
        ],
        mistake: None,
    }
}

/// A reader beside a collector.
fn readers() -> Scene {
    Scene {
        name: "group-readers",
        actors: &[
            Actor::Takeover,
            Actor::Space,
            Actor::Collector,
            Actor::Reader,
        ],
        nodes: 2,
        writes: 3,
        segments: 4,
        epochs: 2,
        crashes: 0,
        lates: 0,
        finds: &[Mistake::ReaderTrustsFirstLook],
        mistake: None,
    }
}

/// A fork of the group beside a collector.
fn forks() -> Scene {
    Scene {
        name: "group-forks",
        actors: &[Actor::Space, Actor::Collector, Actor::Forker],
        nodes: 1,
        writes: 4,
        segments: 3,
        epochs: 1,
        crashes: 0,
        lates: 0,
        finds: &[
            Mistake::ForksApart,
            Mistake::PinsOne,
            Mistake::BurnsUndissolved,
        ],
        mistake: None,
    }
}

/// Orphans of owners that die and of zombies.
fn sweep() -> Scene {
    Scene {
        name: "group-sweep",
        actors: &[Actor::Takeover, Actor::Resume, Actor::Space, Actor::Sweeper],
        nodes: 2,
        writes: 2,
        segments: 2,
        epochs: 2,
        crashes: 1,
        lates: 0,
        finds: &[Mistake::EpochOfOne, Mistake::SweepsPrepared],
        mistake: None,
    }
}
