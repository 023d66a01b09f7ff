//! Forks: made by processes that may die, cleaned up after by others, flattened, deleted.

use super::state::{Child, Content, Forker, Late, Life, Pin, Source, State};
use super::{Actor, Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForkStep {
    /// Pins; of a fork, looks at its root first, to know what to pin.
    Begin(Source),
    Pin,
    /// Reads that of which it is made.
    Read,
    /// Creates the child's root, which must not be there.
    Create,
    /// The process dies; what it was about to ask may land later.
    Die {
        lands: bool,
    },
    /// Somebody cleans up after it: a tombstone, if there is no root yet.
    Burn,
    /// The pin of a child that is a tombstone, or flat.
    Unpin,
    /// The fork holds everything by itself from now on.
    Flatten,
    Delete,
}

impl Scene {
    pub(super) fn fork_may(&self, state: &State, fork: usize) -> Vec<ForkStep> {
        let mut steps = Vec::new();
        let after_root = self.mistake == Some(Mistake::PinAfterRoot);
        match state.forkers[fork] {
            Forker::Idle => {
                let sources = self.forks[fork].iter().copied();
                steps.extend(sources.map(ForkStep::Begin));
            }
            Forker::Looked { .. } => steps.push(ForkStep::Pin),
            Forker::Pinned { .. } => steps.push(ForkStep::Read),
            Forker::Read { is_pinned, .. } if after_root && !is_pinned => steps.push(ForkStep::Pin),
            Forker::Read { .. } => steps.push(ForkStep::Create),
            Forker::Ended => (),
        }
        let begun = !matches!(state.forkers[fork], Forker::Idle | Forker::Ended);
        if begun && self.has(Actor::DyingForkers) {
            steps.push(ForkStep::Die { lands: false });
            steps.push(ForkStep::Die { lands: true });
        }
        let pinned = state.pins[fork].is_some();
        match state.children[fork] {
            // Whoever cleans up cannot know whether the forker is dead.
            Child::Absent if pinned && self.has(Actor::DyingForkers) => steps.push(ForkStep::Burn),
            Child::Tombstone if pinned => steps.push(ForkStep::Unpin),
            Child::Absent | Child::Tombstone => (),
            Child::Live { is_flat, .. } => {
                let early = self.mistake == Some(Mistake::UnpinBeforeFlat);
                let flattens = self.has(Actor::Flatten);
                let unpins = flattens && pinned && (is_flat || early);
                steps.extend((flattens && !is_flat).then_some(ForkStep::Flatten));
                steps.extend(unpins.then_some(ForkStep::Unpin));
                steps.extend(self.has(Actor::DeleteForks).then_some(ForkStep::Delete));
            }
        }
        steps
    }

    pub(super) fn fork_does(&self, next: &mut State, fork: usize, step: ForkStep) {
        match step {
            ForkStep::Begin(of) => self.begins(next, fork, of),
            ForkStep::Pin => pins(next, fork),
            ForkStep::Read => {
                let Forker::Pinned { of, from } = next.forkers[fork] else {
                    return;
                };
                let trusts = self.mistake == Some(Mistake::TrustsFirstLook);
                let content = source(next, of).or(from.filter(|_| trusts));
                next.forkers[fork] = read(content, of, true);
            }
            ForkStep::Create => {
                if let Forker::Read { from, .. } = next.forkers[fork] {
                    next.create(fork, from);
                    next.forkers[fork] = Forker::Ended;
                }
            }
            ForkStep::Die { lands } => {
                let late = match next.forkers[fork] {
                    Forker::Looked { from } => Some(Late::Pin(fork, Pin::Cut(from.cut))),
                    Forker::Read { from, .. } => Some(Late::Create(fork, from)),
                    Forker::Pinned { .. } | Forker::Idle | Forker::Ended => None,
                };
                next.late.extend(late.filter(|_| lands));
                next.forkers[fork] = Forker::Ended;
            }
            ForkStep::Burn => {
                let child = match self.mistake {
                    Some(Mistake::PurgeAtOnce | Mistake::UnpinUnburned) => Child::Absent,
                    _ => Child::Tombstone,
                };
                if child == Child::Absent {
                    next.pins[fork] = None;
                }
                next.children[fork] = child;
            }
            ForkStep::Unpin => next.pins[fork] = None,
            ForkStep::Flatten => {
                if let Child::Live { is_flat, .. } = &mut next.children[fork] {
                    *is_flat = true;
                }
            }
            ForkStep::Delete => next.children[fork] = Child::Tombstone,
        }
    }

    fn begins(&self, next: &mut State, fork: usize, of: Source) {
        let content = source(next, of);
        next.forkers[fork] = match (of, self.mistake) {
            (Source::Fork, Some(Mistake::PinOnlyChild)) => read(content, of, true),
            (Source::Fork, _) => match content {
                Some(from) => Forker::Looked { from },
                // Nothing of the volume is named, or there is nothing to fork.
                None => Forker::Ended,
            },
            (_, Some(Mistake::PinAfterRoot)) => read(content, of, false),
            (Source::Now | Source::Snapshot(_), _) => {
                next.pins[fork] = Some(Pin::ByChild);
                Forker::Pinned { of, from: None }
            }
        };
    }
}

fn pins(next: &mut State, fork: usize) {
    match next.forkers[fork] {
        Forker::Looked { from } => {
            next.pins[fork] = Some(Pin::Cut(from.cut));
            let of = Source::Fork;
            let from = Some(from);
            next.forkers[fork] = Forker::Pinned { of, from };
        }
        Forker::Read { of, from, .. } => {
            next.pins[fork] = Some(Pin::ByChild);
            next.forkers[fork] = read(Some(from), of, true);
        }
        Forker::Idle | Forker::Pinned { .. } | Forker::Ended => (),
    }
}

fn read(content: Option<Content>, of: Source, is_pinned: bool) -> Forker {
    match content {
        Some(from) => Forker::Read {
            of,
            from,
            is_pinned,
        },
        None => Forker::Ended,
    }
}

/// What a fork of this would begin with now.
fn source(state: &State, of: Source) -> Option<Content> {
    let root = &state.root;
    let content = match of {
        Source::Now if root.life == Life::Open => Some(root.now),
        Source::Snapshot(at) => root.snapshots[usize::from(at)],
        Source::Now => None,
        Source::Fork => match state.children[0] {
            Child::Live {
                from,
                is_flat: false,
            } => Some(from),
            Child::Live { .. } | Child::Absent | Child::Tombstone => None,
        },
    };
    content.filter(|content| !content.live.is_empty())
}
