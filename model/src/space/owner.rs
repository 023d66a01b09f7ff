//! Who has the volume, or believes so: uploads, publishes, snapshots, and takes it from another.

use super::state::{Content, Life, Node, Root, SNAPSHOTS_MAX, Set, State};
use super::{Actor, Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnerStep {
    /// A new segment.
    Upload,
    /// What it uploaded; the content names `live` then. A repack changes no data, so the cut stays.
    Publish {
        live: Set,
        repack: bool,
    },
    Snapshot,
    /// A snapshot as an object of its own: the root is read, and then it is put.
    ReadForSnapshot,
    PutSnapshot,
    DropSnapshot(usize),
    Restore(usize),
    Delete,
    /// A publish that failed, or may have landed: it reads the root back.
    ReadBack,
    /// Opens with force: the next epoch.
    TakeOver,
}

impl Scene {
    pub(super) fn owner_may(&self, state: &State, number: usize) -> Vec<OwnerStep> {
        let node = &state.nodes[number];
        let mut steps = Vec::new();
        if state.root.epoch < self.epochs && !node.holds && self.has(Actor::Takeover) {
            steps.push(OwnerStep::TakeOver);
        }
        let (true, Some(view)) = (node.holds, node.view) else {
            return steps;
        };
        // One that is a zombie is told by its next publish; until then it does what it likes.
        if !node.is_current {
            steps.push(OwnerStep::ReadBack);
        }
        if view.life == Life::Deleted {
            return steps;
        }
        if state.made < self.segments && node.uploaded.iter().count() < 2 {
            steps.push(OwnerStep::Upload);
        }
        if node.is_current || self.believes(state, node) {
            self.publish_may(&view, node, &mut steps);
            self.snapshots_may(&view, node, &mut steps);
            if self.has(Actor::Delete) {
                steps.push(OwnerStep::Delete);
            }
        }
        steps
    }

    fn publish_may(&self, view: &Root, node: &Node, steps: &mut Vec<OwnerStep>) {
        for live in contents(view, node.uploaded) {
            if view.now.cut + 1 < self.cuts {
                steps.push(OwnerStep::Publish {
                    live,
                    repack: false,
                });
            }
            let rewrites = !node.uploaded.is_empty() && !view.now.live.is_within(live);
            if rewrites && self.has(Actor::Repack) {
                steps.push(OwnerStep::Publish { live, repack: true });
            }
        }
    }

    fn snapshots_may(&self, view: &Root, node: &Node, steps: &mut Vec<OwnerStep>) {
        if !self.has(Actor::Snapshots) {
            return;
        }
        if self.mistake == Some(Mistake::SnapshotApart) {
            steps.push(match node.snapping {
                None => OwnerStep::ReadForSnapshot,
                Some(_) => OwnerStep::PutSnapshot,
            });
            return;
        }
        let room = view.free_snapshot().is_some();
        let mut there = view.snapshots.iter().flatten();
        let new = there.all(|it| it.cut != view.now.cut);
        if room && new && !view.now.live.is_empty() {
            steps.push(OwnerStep::Snapshot);
        }
        let bounds = view.now.cut + 1 < self.cuts && view.epoch < self.epochs;
        let restores = self.has(Actor::Restore) && room && bounds && node.uploaded.is_empty();
        for at in (0..SNAPSHOTS_MAX).filter(|at| view.snapshots[*at].is_some()) {
            steps.push(OwnerStep::DropSnapshot(at));
            if restores {
                steps.push(OwnerStep::Restore(at));
            }
        }
    }

    /// It takes an epoch that looks like its own for its own.
    fn believes(&self, state: &State, node: &Node) -> bool {
        let same = node.view.is_some_and(|view| view.epoch == state.root.epoch);
        self.mistake == Some(Mistake::EpochReuse) && same && !node.is_unproved
    }

    pub(super) fn owner_does(
        &self,
        next: &mut State,
        number: usize,
        step: OwnerStep,
    ) -> Option<()> {
        match step {
            OwnerStep::Upload => {
                let segment = next.make(number)?;
                next.segments = next.segments.with(Set::of(segment));
                let uploaded = &mut next.nodes[number].uploaded;
                *uploaded = uploaded.with(Set::of(segment));
            }
            OwnerStep::ReadForSnapshot => next.nodes[number].snapping = Some(next.root.now),
            OwnerStep::PutSnapshot => next.apart = next.nodes[number].snapping.take(),
            OwnerStep::ReadBack => next.read_back(number),
            OwnerStep::TakeOver => {
                let mut root = next.root;
                root.epoch += u8::from(self.mistake != Some(Mistake::EpochReuse));
                root.owner = u8::try_from(number).ok()?;
                next.nodes[number] = Node {
                    holds: true,
                    ..Node::default()
                };
                next.replace(Some(number), root);
            }
            OwnerStep::Publish { .. }
            | OwnerStep::Snapshot
            | OwnerStep::DropSnapshot(_)
            | OwnerStep::Restore(_)
            | OwnerStep::Delete => {
                let root = self.changed(next.nodes[number].view?, step)?;
                if matches!(step, OwnerStep::Publish { .. }) {
                    next.nodes[number].uploaded = Set::default();
                }
                next.replace(Some(number), root);
            }
        }
        Some(())
    }

    /// The root that the step asks for.
    fn changed(&self, mut root: Root, step: OwnerStep) -> Option<Root> {
        match step {
            OwnerStep::Publish { live, repack } => {
                let cut = root.now.cut + u8::from(!repack);
                root.turn_to(Content { cut, live });
            }
            OwnerStep::Snapshot => {
                let at = root.free_snapshot()?;
                root.snapshots[at] = Some(root.now);
            }
            OwnerStep::DropSnapshot(at) => root.snapshots[at] = None,
            OwnerStep::Restore(at) => {
                let live = root.snapshots[at]?.live;
                let before = root.free_snapshot()?;
                root.snapshots[before] = Some(root.now);
                root.epoch += 1;
                let garbage = root.garbage;
                let cut = root.now.cut + 1;
                root.turn_to(Content { cut, live });
                if self.mistake == Some(Mistake::RestoreKeepsGarbage) {
                    root.garbage = root.garbage.with(garbage);
                }
            }
            OwnerStep::Delete => {
                root.life = Life::Deleted;
                let (cut, live) = (root.now.cut, Set::default());
                root.turn_to(Content { cut, live });
                root.snapshots = [None; SNAPSHOTS_MAX];
            }
            OwnerStep::Upload
            | OwnerStep::ReadForSnapshot
            | OwnerStep::PutSnapshot
            | OwnerStep::ReadBack
            | OwnerStep::TakeOver => return None,
        }
        Some(root)
    }
}

/// What the next content may name: everything new, and any part of what there was.
pub(super) fn contents(view: &Root, uploaded: Set) -> impl Iterator<Item = Set> {
    let old = view.now.live;
    let parts = old
        .parts()
        .filter(move |part| *part != old || !uploaded.is_empty());
    parts.map(move |part| part.with(uploaded))
}
