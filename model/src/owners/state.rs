//! What there is: the root, the nodes with their logs, requests still on their way.

use std::collections::BTreeSet;

pub const NODES: usize = 2;

/// Writes of clients, in order. Every write has its own number, so a list of them says whose it is.
pub type Writes = Vec<u8>;

/// The volume's root. As in the other half, no ETag is needed: [`Node::is_current`] says whose would match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root {
    pub epoch: u8,
    /// None: detached.
    pub owner: Option<usize>,
    pub generation: u8,
    pub content: Writes,
}

/// What a node's SSD holds of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Log {
    /// Of the last open; none: it never owned it.
    pub epoch: Option<u8>,
    /// A restart may go on with that epoch. Not once it was given up, or is known to be over.
    pub is_attached: bool,
    /// What a reader sees who reads through it.
    pub content: Writes,
    /// Unpublished records that an open found to be no part of the volume any more.
    pub salvage: BTreeSet<u8>,
    /// Roots that it may have written: written down before the request (rule 11).
    pub intents: BTreeSet<Root>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It serves nobody who writes.
    #[default]
    Idle,
    /// It answers writes.
    Owner,
    /// It knows that it lost its epoch.
    Fenced,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    pub role: Role,
    /// It has asked to detach, and answers no write any more.
    pub is_detaching: bool,
    pub log: Log,
    /// It is dead.
    pub is_down: bool,
    /// The root is still the one that it saw last.
    pub is_current: bool,
    /// It asked something of the store and does not know what became of it.
    pub is_unclear: bool,
    /// The orchestrator's order to open, with its generation.
    pub placed: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub root: Root,
    pub nodes: [Node; NODES],
    /// Swaps of the root that are on their way. All are against the root as it is.
    pub late: BTreeSet<Root>,
    pub writes: u8,
    pub crashes: u8,
    pub lates: u8,
    pub generations: u8,
    /// Somebody took the volume from an owner by force.
    pub was_forced: bool,
    /// What must never happen has happened.
    pub broken: Option<&'static str>,
}

impl State {
    pub fn first() -> Self {
        let root = Root {
            epoch: 1,
            owner: Some(0),
            generation: 0,
            content: Writes::new(),
        };
        let mut nodes = [Node::default(), Node::default()];
        nodes[0].role = Role::Owner;
        nodes[0].log.epoch = Some(1);
        nodes[0].log.is_attached = true;
        nodes[0].is_current = true;
        Self {
            root,
            nodes,
            late: BTreeSet::new(),
            writes: 0,
            crashes: 0,
            lates: 0,
            generations: 0,
            was_forced: false,
            broken: None,
        }
    }

    /// The root changes; `by` knows at once, if it is told.
    pub fn replace(&mut self, by: Option<usize>, root: Root) {
        if !root.content.starts_with(&self.root.content) {
            self.broken = Some("a publish took away what was in the store");
        }
        if root.generation < self.root.generation {
            self.broken = Some("an older placement took over from a newer one");
        }
        self.late.clear();
        self.root = root;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.is_current = by == Some(number);
        }
    }
}
