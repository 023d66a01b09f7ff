//! What there is: the roots of two volumes, those of the groups that they are in one after the other, and who knows
//! what of them.

pub const MEMBERS: usize = 2;
pub const NODES: usize = 2;
pub const GROUPS: usize = 2;

/// What is said of one volume. It never says the same again: the epoch grows with each owner, the cut with each
/// publish. So a whole root stands for its ETag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Volume {
    pub epoch: u8,
    /// None: detached.
    pub owner: Option<usize>,
    pub cut: u8,
}

/// A volume's own root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    Plain(Volume),
    /// It names a group, and what it said itself before.
    Member {
        group: usize,
        own: Volume,
    },
}

/// The root of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Absent,
    /// Of these names; the roots of its members say what they are.
    Forming,
    Formed([Volume; MEMBERS]),
    /// What its members were at the end; none if it was given up while it was forming.
    Dissolved(Option<[Volume; MEMBERS]>),
    /// Deleted, once nobody asks for it.
    Gone,
}

/// What a node believes to own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Session {
    #[default]
    Idle,
    HoldsVolume {
        member: usize,
        now: Volume,
    },
    HoldsGroup {
        group: usize,
        members: [Volume; MEMBERS],
    },
}

/// Who forms a group, one for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Former {
    #[default]
    Idle,
    /// What the roots that name the group said before.
    Tells([Option<Volume>; MEMBERS]),
    /// Only where a rule is broken: the group is formed, and these are to name it.
    Late([Option<Volume>; MEMBERS]),
    Ended,
}

/// Who reads a volume, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reader {
    #[default]
    Idle,
    Looked {
        root: Root,
        /// The volume's cut when it began: it must not be shown an older one.
        floor: u8,
    },
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub roots: [Root; MEMBERS],
    pub groups: [Group; GROUPS],
    pub nodes: [Session; NODES],
    pub formers: [Former; GROUPS],
    pub reader: Reader,
    /// What must never happen has happened.
    pub broken: Option<&'static str>,
}

impl State {
    pub fn first() -> Self {
        let volume = Volume {
            epoch: 1,
            owner: None,
            cut: 0,
        };
        Self {
            roots: [Root::Plain(volume); MEMBERS],
            groups: [Group::Absent; GROUPS],
            nodes: [Session::Idle; NODES],
            formers: [Former::Idle; GROUPS],
            reader: Reader::Idle,
            broken: None,
        }
    }

    /// The group that its root names.
    pub fn group_of(&self, member: usize) -> Option<usize> {
        match self.roots[member] {
            Root::Plain(_) => None,
            Root::Member { group, .. } => Some(group),
        }
    }

    /// The volume comes into a group, as far as its own root can say that.
    pub fn tell(&mut self, member: usize, group: usize, mut own: Volume) -> Volume {
        own.epoch += 1;
        self.roots[member] = Root::Member { group, own };
        own
    }

    /// What the volume is. None: nobody can tell, for what its root names is not there.
    pub fn volume(&self, member: usize) -> Option<Volume> {
        match self.roots[member] {
            Root::Plain(volume) => Some(volume),
            Root::Member { group, own } => self.groups[group].member(member, own),
        }
    }

    /// A step was taken: nothing of before is lost.
    pub fn check(&mut self, before: &Self) {
        for member in 0..MEMBERS {
            match (before.volume(member), self.volume(member)) {
                (_, None) => self.broken = Some("a volume's group is not there"),
                (Some(old), Some(new)) if new.cut < old.cut || new.epoch < old.epoch => {
                    self.broken = Some("a volume went back");
                }
                (Some(old), Some(new)) if new.epoch == old.epoch && moved(old, new) => {
                    self.broken = Some("an epoch has two owners");
                }
                _ => (),
            }
        }
        for (old, new) in before.nodes.iter().zip(self.nodes) {
            // Who was just told that it published, or took, is the owner, and others see that.
            let is_seen = match new {
                _ if *old == new => true,
                Session::HoldsVolume { member, now } => self.volume(member) == Some(now),
                Session::HoldsGroup { members, .. } => {
                    let mut seen = members.iter().enumerate();
                    seen.all(|(member, now)| self.volume(member) == Some(*now))
                }
                Session::Idle => true,
            };
            if !is_seen {
                self.broken = Some("what an owner published is not what others see");
            }
        }
    }
}

fn moved(old: Volume, new: Volume) -> bool {
    new.owner.is_some() && new.owner != old.owner
}

impl Group {
    /// What one is of which the root names the group.
    pub fn member(&self, member: usize, own: Volume) -> Option<Volume> {
        match self {
            Self::Absent | Self::Gone => None,
            Self::Forming | Self::Dissolved(None) => Some(own),
            Self::Formed(members) | Self::Dissolved(Some(members)) => Some(members[member]),
        }
    }
}
