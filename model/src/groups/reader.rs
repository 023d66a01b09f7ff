//! A node that reads the group while another owns it: it shows one moment of all members, and holds that.

use super::state::{Content, MEMBERS, State};
use super::{Actor, Mistake, Scene};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReaderStep {
    /// The group, once for all members.
    Read,
    /// Only where a rule is broken: the group again, for the next member.
    ReadOne,
    /// A pin in the folder of the next member.
    Pin,
    /// The group again: does it still name what was read?
    Look,
    /// It shows it to nobody any more.
    Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reader {
    #[default]
    Idle,
    /// It knows the first member, and asks again for the second.
    Half(Content),
    Read {
        content: [Content; MEMBERS],
        pins: usize,
    },
    Shows([Content; MEMBERS]),
    Ended,
}

impl Reader {
    /// What it shows.
    pub fn content(&self) -> Option<[Content; MEMBERS]> {
        match self {
            Self::Shows(content) => Some(*content),
            Self::Idle | Self::Half(_) | Self::Read { .. } | Self::Ended => None,
        }
    }
}

impl Scene {
    pub(super) fn reader_may(&self, state: &State) -> Vec<ReaderStep> {
        match state.reader {
            Reader::Idle if self.is(Mistake::ReadsApart) => vec![ReaderStep::ReadOne],
            // It would show what the root shows at that moment.
            Reader::Idle if !self.has(Actor::Collector) => Vec::new(),
            Reader::Idle => vec![ReaderStep::Read],
            Reader::Half(_) => vec![ReaderStep::ReadOne],
            Reader::Read { pins, .. } if pins < MEMBERS => vec![ReaderStep::Pin],
            Reader::Read { .. } => vec![ReaderStep::Look],
            Reader::Shows(_) => vec![ReaderStep::Close],
            Reader::Ended => Vec::new(),
        }
    }

    pub(super) fn reader_does(&self, next: &mut State, step: ReaderStep) -> Option<()> {
        match (step, next.reader) {
            (ReaderStep::Read, _) => next.reader = self.read(next.root.now()),
            (ReaderStep::ReadOne, Reader::Half(first)) => {
                let [_, second] = next.root.now();
                next.reader = self.read([first, second]);
            }
            (ReaderStep::ReadOne, _) => {
                let [first, _] = next.root.now();
                next.reader = Reader::Half(first);
            }
            (ReaderStep::Pin, Reader::Read { content, pins }) => {
                next.read_pins[pins] = Some(content[pins].cut);
                let pins = pins + 1;
                next.reader = Reader::Read { content, pins };
            }
            (ReaderStep::Look, Reader::Read { content, .. }) => {
                let is_named = next.root.now() == content || next.root.snapshot() == Some(content);
                if is_named || self.is(Mistake::ReaderTrustsFirstLook) {
                    next.reader = Reader::Shows(content);
                } else {
                    ends(next);
                }
            }
            (ReaderStep::Close, _) => ends(next),
            (ReaderStep::Pin | ReaderStep::Look, _) => return None,
        }
        Some(())
    }

    /// Where nothing is deleted, nothing has to be held.
    fn read(&self, content: [Content; MEMBERS]) -> Reader {
        match self.has(Actor::Collector) {
            true => Reader::Read { content, pins: 0 },
            false => Reader::Shows(content),
        }
    }
}

fn ends(next: &mut State) {
    next.read_pins = [None; MEMBERS];
    next.reader = Reader::Ended;
}
