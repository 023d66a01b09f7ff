//! What there is: the volume's root and objects, its forks, the nodes, requests still on their way.

use std::collections::BTreeSet;

pub use crate::segments::{Set, Span};

/// So many segments are made in one history at most.
pub const SEGMENTS_MAX: usize = 4;
pub const NODES: usize = 2;
pub const FORKS: usize = 2;
pub const SNAPSHOTS_MAX: usize = 2;

/// What a volume holds at one cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    pub cut: u8,
    /// The segments that its map names.
    pub live: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    Open,
    Deleted,
}

/// The volume's root. The model needs no ETag: a compare-and-swap on an old version is one by somebody whose
/// view [`Node::is_current`] denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root {
    pub epoch: u8,
    pub owner: u8,
    pub life: Life,
    pub now: Content,
    /// Named by an earlier content, and not known to be gone.
    pub garbage: Set,
    pub spans: [Span; SEGMENTS_MAX],
    pub snapshots: [Option<Content>; SNAPSHOTS_MAX],
}

impl Root {
    pub fn first() -> Self {
        Self {
            epoch: 1,
            owner: 0,
            life: Life::Open,
            now: Content::default(),
            garbage: Set::default(),
            spans: [Span::default(); SEGMENTS_MAX],
            snapshots: [None; SNAPSHOTS_MAX],
        }
    }

    pub fn in_snapshots(&self) -> Set {
        let snapshots = self.snapshots.iter().flatten();
        snapshots.fold(Set::default(), |all, it| all.with(it.live))
    }

    /// Everything of which the volume knows.
    pub fn named(&self) -> Set {
        let now = self.now.live.with(self.garbage);
        now.with(self.in_snapshots())
    }

    /// Its content becomes `next`; what that does not name any more is garbage.
    pub fn turn_to(&mut self, next: Content) {
        let dropped = self.now.live.without(next.live);
        for segment in dropped.iter() {
            self.spans[segment].last = self.now.cut;
        }
        for segment in next.live.without(self.named()).iter() {
            self.spans[segment].birth = next.cut;
        }
        self.garbage = self.garbage.with(dropped).without(next.live);
        self.now = next;
    }

    pub fn free_snapshot(&self) -> Option<usize> {
        self.snapshots.iter().position(Option::is_none)
    }
}

/// `pins/{child}` in the volume's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pin {
    /// Holds the cut that the child's root names; everything, while there is no such root.
    ByChild,
    /// Holds a cut by itself: of a fork of a fork, which knows the cut before it pins.
    Cut(u8),
}

/// The root of a fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Child {
    #[default]
    Absent,
    Live {
        /// The volume's content that it began with.
        from: Content,
        /// It holds all of that by itself by now, and names nothing of the volume.
        is_flat: bool,
    },
    /// Deleted, or burned by whoever cleaned up before it was there. Nobody can create it any more.
    Tombstone,
}

/// Of what a fork is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Now,
    Snapshot(u8),
    /// The first fork, so that this one is a grandchild.
    Fork,
}

/// How far a process that makes a fork has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forker {
    #[default]
    Idle,
    /// Of a fork: it has read the fork's root, and knows what that names.
    Looked {
        from: Content,
    },
    Pinned {
        of: Source,
        from: Option<Content>,
    },
    /// It knows with what the child begins, and creates it.
    Read {
        of: Source,
        from: Content,
        is_pinned: bool,
    },
    Ended,
}

/// A round of the collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collector {
    #[default]
    Idle,
    /// It has listed the pins, and reads the roots of those children whose pins do not say a cut.
    Listed {
        /// Garbage of the root that was published before.
        garbage: Set,
        to_read: [bool; FORKS],
        /// Cuts that are held, as bits.
        held: u16,
        is_blocked: bool,
    },
    /// `left` may go, `gone` went.
    Doomed { left: Set, gone: Set },
}

/// A round of the sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sweeper {
    #[default]
    Idle,
    Listed {
        found: Set,
        /// What the node itself was uploading after the listing.
        in_flight: Set,
    },
    Doomed(Set),
}

/// A process with its memory, and its log on the SSD.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// The root that it knows. Survives a crash, in the log.
    pub view: Option<Root>,
    /// The root is still the one that it knows: its ETag would match.
    pub is_current: bool,
    /// It runs, and believes to be the owner.
    pub holds: bool,
    /// It went on after a crash without asking the store, and has not published since (rule 14).
    pub is_unproved: bool,
    /// Roots that it may have published: written down before the request (rule 11).
    pub intents: BTreeSet<Root>,
    /// Uploaded by it, in no root that it knows.
    pub uploaded: Set,
    pub collector: Collector,
    pub sweeper: Sweeper,
    /// Only where a snapshot is an object of its own: what it read of the root.
    pub snapping: Option<Content>,
}

/// A request whose sender died. It takes effect at any later moment, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Late {
    Publish(Root),
    Upload(usize),
    Delete(usize),
    Pin(usize, Pin),
    Create(usize, Content),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub root: Root,
    /// Objects of the volume that are there.
    pub segments: Set,
    /// So many were made, uploaded or not.
    pub made: usize,
    /// In their keys.
    pub epochs: [u8; SEGMENTS_MAX],
    pub pins: [Option<Pin>; FORKS],
    pub children: [Child; FORKS],
    pub forkers: [Forker; FORKS],
    pub nodes: [Node; NODES],
    pub late: BTreeSet<Late>,
    pub crashes: u8,
    /// Only where a snapshot is an object of its own, which is a planted mistake.
    pub apart: Option<Content>,
}

impl State {
    pub fn first() -> Self {
        let mut nodes = [Node::default(), Node::default()];
        nodes[0].view = Some(Root::first());
        nodes[0].is_current = true;
        nodes[0].holds = true;
        Self {
            root: Root::first(),
            segments: Set::default(),
            made: 0,
            epochs: [0; SEGMENTS_MAX],
            pins: [None; FORKS],
            children: [Child::default(); FORKS],
            forkers: [Forker::default(); FORKS],
            nodes,
            late: BTreeSet::new(),
            crashes: 0,
            apart: None,
        }
    }

    /// The root changes: whoever swaps against the version before has lost, also what is on its way.
    pub fn replace(&mut self, by: Option<usize>, root: Root) {
        self.root = root;
        self.late.retain(|late| !matches!(late, Late::Publish(_)));
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.is_current = by == Some(number);
            if by == Some(number) {
                node.view = Some(root);
                node.intents.clear();
                node.is_unproved = false;
            }
        }
    }
}
