//! What there is: the group's root, the members' segments and pins, the nodes with their logs, requests on their way.

use std::collections::BTreeSet;

use super::collector::Collector;
use super::forker::{Child, Forker, MemberRoot};
use super::reader::Reader;
use super::sweeper::Sweeper;
pub use crate::segments::{Set, Span};

pub const MEMBERS: usize = 2;
pub const NODES: usize = 2;
/// Of all members together, in one history at most.
pub const SEGMENTS_MAX: usize = 8;
pub const WRITES_MAX: usize = 5;

/// Of one member, at one cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    /// The member's own number of the cut: it stays where a cut brings the member nothing.
    pub cut: u8,
    /// The member's writes up to there.
    pub writes: Set,
    /// Where they lie. Each write is over the same page, so what came before is garbage.
    pub segment: Option<u8>,
}

/// Of all of them, as one set.
pub fn union(contents: &[Content; MEMBERS]) -> Set {
    contents
        .iter()
        .fold(Set::default(), |all, it| all.with(it.writes))
}

/// What the group's root says of one member: what the root of a volume says that is in no group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub epoch: u8,
    /// None: detached. The same for all members, unless a rule is broken.
    pub owner: Option<u8>,
    pub now: Content,
    pub snapshot: Option<Content>,
    /// Named by an earlier content.
    pub garbage: Set,
}

/// The group's root: the one object that says what all members are. As in the other models no ETag is needed:
/// [`Node::is_current`] says whose would match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root {
    pub members: [Member; MEMBERS],
    pub spans: [Span; SEGMENTS_MAX],
}

impl Root {
    fn first() -> Self {
        let member = Member {
            epoch: 1,
            owner: Some(0),
            ..Member::default()
        };
        Self {
            members: [member; MEMBERS],
            spans: [Span::default(); SEGMENTS_MAX],
        }
    }

    pub fn now(&self) -> [Content; MEMBERS] {
        self.members.map(|member| member.now)
    }

    /// One that can be restored: of all members.
    pub fn snapshot(&self) -> Option<[Content; MEMBERS]> {
        match self.members.map(|member| member.snapshot) {
            [Some(first), Some(second)] => Some([first, second]),
            _ => None,
        }
    }

    /// All that the root knows of a member's segments.
    pub fn named(&self, member: usize) -> Set {
        let Member {
            now,
            snapshot,
            garbage,
            ..
        } = self.members[member];
        let kept = snapshot.and_then(|it| it.segment);
        let live = now.segment.into_iter().chain(kept);
        live.fold(garbage, |all, it| all.with(Set::of(usize::from(it))))
    }

    /// The member's content becomes `next`; what that does not name any more is garbage.
    pub fn turn_to(&mut self, member: usize, next: Content) {
        let known = self.named(member);
        let Member { now, garbage, .. } = &mut self.members[member];
        if let Some(dropped) = now.segment.filter(|_| now.segment != next.segment) {
            self.spans[usize::from(dropped)].last = now.cut;
            *garbage = garbage.with(Set::of(usize::from(dropped)));
        }
        if let Some(segment) = next.segment.map(usize::from) {
            if !known.has(segment) {
                self.spans[segment].birth = next.cut;
            }
            *garbage = garbage.without(Set::of(segment));
        }
        *now = next;
    }
}

/// Which members a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    All,
    /// Only where a rule is broken.
    One(usize),
}

impl Part {
    pub fn members(self) -> impl Iterator<Item = usize> {
        (0..MEMBERS).filter(move |member| self == Self::All || self == Self::One(*member))
    }
}

/// A cut on its way into the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// The writes of each member that it takes.
    pub cut: [Option<Set>; MEMBERS],
    pub uploaded: [Option<u8>; MEMBERS],
}

/// A process with its memory, and its log on the SSD: one for all members.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// The root that it knows. Survives a crash, in the log.
    pub view: Option<Root>,
    /// The root is still the one that it knows.
    pub is_current: bool,
    /// It asked something of the store and does not know what became of it.
    pub is_unclear: bool,
    /// It runs, and believes to be the owner of these.
    pub holds: [bool; MEMBERS],
    /// It went on after a crash without asking the store, and has not published since (rule 14).
    pub is_unproved: bool,
    /// Writes that it answered, and those of before that it shows. Of all members: numbers tell the order.
    pub log: Set,
    /// Those that survive a power cut.
    pub durable: Set,
    /// Roots that it may have published: written down before the request (rule 11).
    pub intents: BTreeSet<Root>,
    pub attempt: Attempt,
    pub collector: Collector,
    pub sweeper: Sweeper,
}

impl Node {
    pub fn is_owner(&self) -> bool {
        self.holds != [false; MEMBERS]
    }

    /// It knows the root to be its own work. A cut on its way ends if it brings nothing more: that root may be a
    /// later one, of before a crash.
    pub fn knows(&mut self, root: Root) {
        self.view = Some(root);
        self.is_current = true;
        self.is_unclear = false;
        self.intents.clear();
        let Attempt { cut, .. } = self.attempt;
        let brings = |member: usize| {
            let writes = root.members[member].now.writes;
            cut[member].is_some_and(|it| !it.is_within(writes))
        };
        if !(0..MEMBERS).any(brings) {
            self.attempt = Attempt::default();
        }
    }
}

/// How a root came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Published,
    Opened,
    Restored,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub root: Root,
    /// Objects that are there. Even numbers are the first member's.
    pub segments: Set,
    /// So many were made of each member.
    pub made: [u8; MEMBERS],
    /// In their keys.
    pub epochs: [u8; SEGMENTS_MAX],
    pub writes: u8,
    /// Those of the second member.
    pub of_second: Set,
    /// For each write: what was answered before it, to who may have waited for that.
    pub before: [Set; WRITES_MAX],
    pub nodes: [Node; NODES],
    /// Publishes whose sender heard nothing.
    pub late: BTreeSet<Root>,
    pub crashes: u8,
    pub lates: u8,
    pub reader: Reader,
    pub read_pins: [Option<u8>; MEMBERS],
    pub forker: Forker,
    /// The fork's, in the folder of each member.
    pub pins: [bool; MEMBERS],
    /// The roots of the fork's members, and that of the fork as a group.
    pub member_roots: [MemberRoot; MEMBERS],
    pub child: Child,
    /// What must never happen has happened.
    pub broken: Option<&'static str>,
}

impl State {
    pub fn first() -> Self {
        let mut nodes = [Node::default(), Node::default()];
        nodes[0].view = Some(Root::first());
        nodes[0].is_current = true;
        nodes[0].holds = [true; MEMBERS];
        Self {
            root: Root::first(),
            segments: Set::default(),
            made: [0; MEMBERS],
            epochs: [0; SEGMENTS_MAX],
            writes: 0,
            of_second: Set::default(),
            before: [Set::default(); WRITES_MAX],
            nodes,
            late: BTreeSet::new(),
            crashes: 0,
            lates: 0,
            reader: Reader::default(),
            read_pins: [None; MEMBERS],
            forker: Forker::default(),
            pins: [false; MEMBERS],
            member_roots: [MemberRoot::default(); MEMBERS],
            child: Child::default(),
            broken: None,
        }
    }

    pub fn member_of(&self, write: usize) -> usize {
        usize::from(self.of_second.has(write))
    }

    /// A member's part of some writes.
    pub fn of_member(&self, writes: Set, member: usize) -> Set {
        writes.filter(|write| self.member_of(write) == member)
    }

    /// Whoever sees a write sees what was answered before it.
    pub fn is_closed(&self, writes: Set) -> bool {
        writes
            .iter()
            .all(|write| self.before[write].is_within(writes))
    }

    /// Numbers of a member's segments that were made.
    pub fn made_of(&self, member: usize) -> impl Iterator<Item = usize> {
        (0..usize::from(self.made[member])).map(move |it| it * MEMBERS + member)
    }

    /// What the fork shows, to who finds any of its members.
    pub fn forked(&self) -> Option<[Content; MEMBERS]> {
        match self.child {
            Child::Formed(content) if self.member_roots.contains(&MemberRoot::There) => {
                Some(content)
            }
            Child::Absent | Child::Forming(_) | Child::Formed(_) | Child::Dissolved(_) => None,
        }
    }

    /// The root changes: whoever swaps against the version before has lost, also what is on its way.
    pub fn replace(&mut self, by: Option<usize>, root: Root, how: How) {
        for (old, new) in self.root.members.iter().zip(&root.members) {
            let gives_up = new.owner.is_none();
            let same = new.epoch == old.epoch && (new.owner == old.owner || gives_up);
            if how == How::Published && !same {
                self.broken = Some("a node published that had lost its epoch");
            }
            let keeps = old.now.writes.is_within(new.now.writes);
            if how != How::Restored && !keeps {
                self.broken = Some("a published cut was lost");
            }
        }
        self.late.clear();
        self.root = root;
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.is_current = by == Some(number);
            if by == Some(number) {
                node.knows(root);
                node.is_unproved = false;
            }
        }
    }
}
