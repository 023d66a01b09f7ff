//! Nodes die with requests on their way, and start again with their logs.

use super::Scene;
use super::owner::contents;
use super::state::{
    Child, Collector, Content, Late, Life, Node, SEGMENTS_MAX, Set, State, Sweeper,
};

/// What a node was asking of the store when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pending {
    Nothing,
    Upload,
    Publish(Set),
    Delete(usize),
}

impl Scene {
    pub(super) fn crash_may(&self, state: &State, number: usize) -> Vec<Pending> {
        let node = &state.nodes[number];
        let (true, Some(view)) = (node.holds && state.crashes < self.crashes, node.view) else {
            return Vec::new();
        };
        let mut pending = vec![Pending::Nothing];
        if state.made < self.segments && view.life == Life::Open {
            pending.push(Pending::Upload);
        }
        if node.is_current && view.life == Life::Open && view.now.cut + 1 < self.cuts {
            pending.extend(contents(&view, node.uploaded).map(Pending::Publish));
        }
        if let Collector::Doomed { left, .. } = node.collector {
            pending.extend(left.iter().map(Pending::Delete));
        }
        if let Sweeper::Doomed(left) = node.sweeper {
            pending.extend(left.iter().map(Pending::Delete));
        }
        pending
    }
}

impl State {
    /// One that knows that it is fenced has forgotten its view.
    pub(super) fn may_resume(&self, number: usize) -> bool {
        let node = &self.nodes[number];
        node.view.is_some() && !node.holds
    }

    pub(super) fn resume(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.holds = true;
        node.is_unproved = true;
    }

    pub(super) fn crash(&mut self, number: usize, pending: Pending) -> Option<()> {
        self.crashes += 1;
        match pending {
            Pending::Nothing => (),
            Pending::Upload => {
                let segment = self.make(number)?;
                self.late.insert(Late::Upload(segment));
            }
            Pending::Publish(live) => {
                let mut root = self.nodes[number].view?;
                let cut = root.now.cut + 1;
                root.turn_to(Content { cut, live });
                self.nodes[number].intents.insert(root);
                self.late.insert(Late::Publish(root));
            }
            Pending::Delete(segment) => {
                self.late.insert(Late::Delete(segment));
            }
        }
        let node = &mut self.nodes[number];
        *node = Node {
            view: node.view,
            is_current: node.is_current,
            intents: std::mem::take(&mut node.intents),
            ..Node::default()
        };
        Some(())
    }

    /// Rule 13: a root that it intended is its own; any other is somebody else's.
    pub(super) fn read_back(&mut self, number: usize) {
        let root = self.root;
        let node = &mut self.nodes[number];
        if node.intents.contains(&root) {
            // Not proved by that: the next publish, on top of it, does.
            node.view = Some(root);
            node.is_current = true;
        } else {
            *node = Node::default();
        }
    }

    pub(super) fn lands(&mut self, late: Late) {
        self.late.remove(&late);
        match late {
            Late::Publish(root) => self.replace(None, root),
            Late::Upload(segment) => self.segments = self.segments.with(Set::of(segment)),
            Late::Delete(segment) => self.segments = self.segments.without(Set::of(segment)),
            Late::Pin(fork, pin) => {
                self.pins[fork].get_or_insert(pin);
            }
            Late::Create(fork, from) => self.create(fork, from),
        }
    }

    /// A name for a segment, which carries the epoch.
    pub(super) fn make(&mut self, number: usize) -> Option<usize> {
        let segment = self.made;
        *self.epochs.get_mut(segment)? = self.nodes[number].view?.epoch;
        self.made += 1;
        (segment < SEGMENTS_MAX).then_some(segment)
    }

    pub(super) fn create(&mut self, fork: usize, from: Content) {
        if self.children[fork] == Child::Absent {
            let is_flat = false;
            self.children[fork] = Child::Live { from, is_flat };
        }
    }
}
