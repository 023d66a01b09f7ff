//! What there is: the roots of two volumes, those of the groups that they are in one after the other, and who knows
//! what of them.

pub const MEMBERS: usize = 2;
pub const NODES: usize = 2;
pub const GROUPS: usize = 2;
/// Of one request: repeated ones, of which each may be slow.
pub const CALLS: usize = 2;

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
    /// Of these names; the roots of its members say what they are. The number stands for the ETag: that of the call
    /// that created it.
    Forming(usize),
    Formed([Volume; MEMBERS]),
    /// What its members were at the end; none if it was given up while it was forming.
    Dissolved(Option<[Volume; MEMBERS]>),
    /// Deleted, once nobody asks for it.
    Gone,
}

/// Where that lies what counts, and is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    Own,
    /// In the volume's own root too, once this group is given up.
    Forming(usize),
    Group(usize, [Volume; MEMBERS]),
}

/// What somebody has read of a volume. It may be long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    pub own: Root,
    pub home: Home,
    pub now: Volume,
}

/// What a node is at, or believes to own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Session {
    #[default]
    Idle,
    /// It has read a root that names a group, and has not asked that.
    Looks {
        member: usize,
        own: Root,
    },
    Saw {
        member: usize,
        seen: Seen,
    },
    HoldsVolume {
        member: usize,
        now: Volume,
    },
    HoldsGroup {
        group: usize,
        members: [Volume; MEMBERS],
    },
}

/// Who forms a group: one call of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Former {
    #[default]
    Idle,
    /// It has read the members, and is to create the group.
    Looked,
    /// What the roots that name the group said before; and what it has read of the next one.
    Tells {
        created: usize,
        told: [Option<Volume>; MEMBERS],
        base: Option<Seen>,
    },
    GivesUp,
    /// It has sent what the group is to be formed of, which may land at any later time.
    Sent {
        created: usize,
        members: [Volume; MEMBERS],
    },
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
    pub formers: [[Former; CALLS]; GROUPS],
    /// The members' epochs of before, which the id of the group is made of. None: nobody has looked.
    pub ids: [Option<[u8; MEMBERS]>; GROUPS],
    /// Somebody has found that no root names the group, and deletes it, at any later time.
    pub deletes: [bool; GROUPS],
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
            formers: [[Former::Idle; CALLS]; GROUPS],
            ids: [None; GROUPS],
            deletes: [false; GROUPS],
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

    /// Of a version that is over no swap lands, and none comes again. So who believes in one is as good as idle.
    pub fn forget(&mut self) {
        for number in 0..NODES {
            let may_land = match self.nodes[number] {
                Session::Idle | Session::Looks { .. } => true,
                Session::Saw { member, seen } => match seen.home {
                    Home::Group(group, members) => self.groups[group] == Group::Formed(members),
                    Home::Own | Home::Forming(_) => self.roots[member] == seen.own,
                },
                Session::HoldsVolume { member, now } => self.roots[member] == Root::Plain(now),
                Session::HoldsGroup { group, members } => {
                    self.groups[group] == Group::Formed(members)
                }
            };
            if !may_land {
                self.nodes[number] = Session::Idle;
            }
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
        for group in self.groups {
            if let Group::Formed(members) = group {
                let mut said = members.iter().enumerate();
                if !said.all(|(member, now)| self.volume(member) == Some(*now)) {
                    self.broken = Some("a group that is formed says what is over");
                }
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
                Session::Idle | Session::Looks { .. } | Session::Saw { .. } => true,
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
            Self::Forming(_) | Self::Dissolved(None) => Some(own),
            Self::Formed(members) | Self::Dissolved(Some(members)) => Some(members[member]),
        }
    }
}
