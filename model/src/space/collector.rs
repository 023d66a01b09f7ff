//! The owner deletes what no content, snapshot or fork needs any more.

use super::plan;
use super::state::{Child, Collector, Set, Span, State};
use super::{Mistake, Scene};
use crate::segments::doomed;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CollectorStep {
    ListPins,
    /// The root of the child that a pin names.
    ReadChild(usize),
    Decide,
    /// A segment is deleted.
    Collect(usize),
    /// A root without the garbage that is gone.
    Forget,
}

impl Scene {
    pub(super) fn collector_may(&self, state: &State, number: usize) -> Vec<CollectorStep> {
        let node = &state.nodes[number];
        let (true, Some(view)) = (node.holds && !node.is_unproved, node.view) else {
            return Vec::new();
        };
        match node.collector {
            Collector::Idle => {
                let early = self.mistake == Some(Mistake::ListBeforePublish);
                let begins = early || !view.garbage.is_empty();
                begins
                    .then_some(CollectorStep::ListPins)
                    .into_iter()
                    .collect()
            }
            Collector::Listed { to_read, .. } => {
                let unread = (0..self.forks.len()).filter(|fork| to_read[*fork]);
                let reads: Vec<CollectorStep> = unread.map(CollectorStep::ReadChild).collect();
                if reads.is_empty() {
                    vec![CollectorStep::Decide]
                } else {
                    reads
                }
            }
            Collector::Doomed { left, gone } => {
                let over = left.is_empty() && (gone.is_empty() || node.is_current);
                let forget = over.then_some(CollectorStep::Forget);
                left.iter()
                    .map(CollectorStep::Collect)
                    .chain(forget)
                    .collect()
            }
        }
    }

    pub(super) fn collector_does(
        &self,
        next: &mut State,
        number: usize,
        step: CollectorStep,
    ) -> Option<()> {
        match step {
            CollectorStep::ListPins => {
                next.nodes[number].collector = self.listed(next, number)?;
            }
            CollectorStep::ReadChild(fork) => {
                let child = next.children[fork];
                self.read(&mut next.nodes[number].collector, fork, child);
            }
            CollectorStep::Decide => {
                let node = &mut next.nodes[number];
                node.collector = self.decided(node.collector, &node.view?)?;
            }
            CollectorStep::Collect(segment) => {
                next.segments = next.segments.without(Set::of(segment));
                if let Collector::Doomed { left, gone } = &mut next.nodes[number].collector {
                    *left = left.without(Set::of(segment));
                    *gone = gone.with(Set::of(segment));
                }
            }
            CollectorStep::Forget => {
                let Collector::Doomed { gone, .. } = next.nodes[number].collector else {
                    return None;
                };
                next.nodes[number].collector = Collector::Idle;
                if !gone.is_empty() {
                    let mut root = next.nodes[number].view?;
                    root.garbage = root.garbage.without(gone);
                    gone.iter().for_each(|it| root.spans[it] = Span::default());
                    next.replace(Some(number), root);
                }
            }
        }
        Some(())
    }

    fn listed(&self, state: &State, number: usize) -> Option<Collector> {
        let view = state.nodes[number].view?;
        let mut listed = plan::listed(&view, &state.pins);
        if let Collector::Listed { held, .. } = &mut listed {
            if self.mistake == Some(Mistake::SnapshotsTooLate) {
                *held &= !plan::snapshots(&view);
            }
            if let Some(apart) = state.apart {
                *held |= 1 << apart.cut;
            }
        }
        Some(listed)
    }

    fn read(&self, collector: &mut Collector, fork: usize, child: Child) {
        let Collector::Listed {
            to_read,
            held,
            is_blocked,
            ..
        } = collector
        else {
            return;
        };
        to_read[fork] = false;
        match child {
            Child::Absent => *is_blocked |= self.mistake != Some(Mistake::AbsentChildFrees),
            Child::Live {
                from,
                is_flat: false,
            } => *held |= 1 << from.cut,
            // It held something when the pins were listed, and a fork of it may have been made since, with
            // a pin that is not in the list. The next round will see.
            Child::Live { .. } | Child::Tombstone => {
                *is_blocked |= self.mistake != Some(Mistake::GoneChildFrees);
            }
        }
    }

    fn decided(&self, collector: Collector, view: &super::state::Root) -> Option<Collector> {
        let Collector::Listed {
            garbage,
            held,
            is_blocked,
            ..
        } = collector
        else {
            return None;
        };
        let held = match self.mistake {
            Some(Mistake::SnapshotsTooLate) => held | plan::snapshots(view),
            _ => held,
        };
        let garbage = match self.mistake {
            Some(Mistake::ListBeforePublish) => view.garbage,
            // What was named again meanwhile is none any more.
            _ => garbage.filter(|it| view.garbage.has(it)),
        };
        let left = doomed(garbage, &view.spans, held);
        Some(Collector::Doomed {
            left: if is_blocked { Set::default() } else { left },
            gone: Set::default(),
        })
    }
}
