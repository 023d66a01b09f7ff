//! Parts of the whole that are small enough to be explored to their end.

use super::{Actor, Mistake, Scene, Source};

/// All of them.
pub fn scenes() -> Vec<Scene> {
    vec![forks(), grandchildren(), sweep(), snapshots(), zombies()]
}

/// Forks of the volume and of a snapshot that comes and goes.
fn forks() -> Scene {
    Scene {
        name: "forks",
        actors: &[
            Actor::Collector,
            Actor::Snapshots,
            Actor::DyingForkers,
            Actor::DeleteForks,
            Actor::Repack,
        ],
        nodes: 1,
        forks: &[&[Source::Now, Source::Snapshot(0)]],
        segments: 3,
        cuts: 4,
        epochs: 1,
        crashes: 0,
        finds: &[
            Mistake::PinAfterRoot,
            Mistake::ListBeforePublish,
            Mistake::AbsentChildFrees,
            Mistake::SnapshotsTooLate,
            Mistake::UnpinUnburned,
            Mistake::PurgeAtOnce,
        ],
        mistake: None,
    }
}

/// Forks of a fork that is flattened or deleted meanwhile, of a volume that is deleted.
fn grandchildren() -> Scene {
    Scene {
        name: "grandchildren",
        actors: &[
            Actor::Collector,
            Actor::DyingForkers,
            Actor::DeleteForks,
            Actor::Flatten,
            Actor::Delete,
        ],
        nodes: 1,
        forks: &[&[Source::Now], &[Source::Fork]],
        segments: 2,
        cuts: 3,
        epochs: 1,
        crashes: 0,
        finds: &[
            Mistake::GoneChildFrees,
            Mistake::PinOnlyChild,
            Mistake::TrustsFirstLook,
            Mistake::UnpinBeforeFlat,
        ],
        mistake: None,
    }
}

/// Orphans of owners that die and of zombies.
fn sweep() -> Scene {
    Scene {
        name: "sweep",
        actors: &[Actor::Takeover, Actor::Resume, Actor::Sweeper],
        nodes: 2,
        forks: &[],
        segments: 3,
        cuts: 3,
        epochs: 3,
        crashes: 1,
        finds: &[
            Mistake::SweepByAge,
            Mistake::InFlightTooLate,
            Mistake::SweepUnproved,
            Mistake::EpochReuse,
        ],
        mistake: None,
    }
}

/// Snapshots and restores, beside a collector that may be a zombie's.
fn snapshots() -> Scene {
    Scene {
        name: "snapshots",
        actors: &[
            Actor::Takeover,
            Actor::Resume,
            Actor::Collector,
            Actor::Snapshots,
            Actor::Restore,
        ],
        nodes: 2,
        forks: &[],
        segments: 2,
        cuts: 4,
        epochs: 3,
        crashes: 1,
        finds: &[Mistake::SnapshotApart, Mistake::RestoreKeepsGarbage],
        mistake: None,
    }
}

/// A fork between two owners that collect and sweep.
fn zombies() -> Scene {
    Scene {
        name: "zombies",
        actors: &[
            Actor::Takeover,
            Actor::Resume,
            Actor::Collector,
            Actor::Sweeper,
            Actor::DeleteForks,
        ],
        nodes: 2,
        forks: &[&[Source::Now]],
        segments: 2,
        cuts: 3,
        epochs: 2,
        crashes: 1,
        finds: &[Mistake::PinAfterRoot, Mistake::SweepByAge],
        mistake: None,
    }
}
