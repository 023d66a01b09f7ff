//! The root of a group: one object that holds, for each of its members, all that its root would say, so that they
//! change together or not at all (rule 30). Pure: bytes to [`Group`] and back. `docs/format/group.md`,
//! `docs/decisions/0019-groups.md`.
//!
//! ```text
//! a member's root    plain ──────────────► names the group ──────────────► plain
//!                                     │                        ▲
//! the group's root           forming ─┴─► formed ──► dissolved ┘   (or at once: given up)
//! ```
//!
//! While it is forming the roots of its members count, and from then on they do not. An id is used once, so no root
//! names a group that it has left.

use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::Id;
use serde::{Deserialize, Serialize};
use world::ETag;

use super::envelope::Envelope;
use super::keys::Secret;
use super::name::VolumeName;
use super::root::{GroupRef, Home, Root, Snapshot, State, Stored, TAIL_SEGMENTS_MAX};
use super::{RootView, VolumeError};

pub(crate) const FORMAT: u16 = 1;
/// Everything that belongs to groups lies under this.
pub(crate) const GROUPS: &str = "groups/";
/// Members of a group.
pub const GROUP_MEMBERS_MIN: usize = 2;
pub const GROUP_MEMBERS_MAX: usize = 16;
/// Of the body of a group's root, beyond which nothing is done that makes it larger for good: no group is formed or
/// forked, no snapshot kept. What is left to [`Envelope::body_bytes_max`] is for what comes and goes.
pub(crate) const GROWTH_BYTES_MAX: usize = 2 << 20;

pub(crate) const ENVELOPE: Envelope = Envelope {
    magic: *b"GLIDGRUP",
    known: FORMAT,
    body_bytes_max: 4 << 20,
};

/// Everything that the root of a group says. The order of the fields is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) id: [u8; 16],
    /// For people.
    pub(crate) name: String,
    /// Of the change that made this version (rule 13).
    pub(crate) nonce: [u8; 16],
    pub(crate) phase: Phase,
    pub(crate) members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// The roots of its members count.
    Forming,
    /// This one counts.
    Formed,
    /// What it says was the last, until a member's own root says more. One that says nothing was given up while it was
    /// forming: then the members' own roots count.
    Dissolved,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) volume: [u8; 16],
    pub(crate) name: String,
    /// Names no group. While the group is forming: of a fork, what its members will say; else none.
    pub(crate) root: Option<Root>,
}

/// A group's root as it was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredGroup {
    pub(crate) group: Group,
    pub(crate) etag: ETag,
}

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    Forming,
    Formed,
    Dissolved,
    /// Dissolved before it was formed.
    GivenUp,
}

/// A group as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub id: Id,
    pub name: String,
    pub state: GroupState,
    pub members: Vec<MemberView>,
}

/// A member of a group as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    pub name: String,
    pub volume: Id,
    /// As the group's root has it. None where that does not count: it is forming, or was given up.
    pub root: Option<RootView>,
}

/// Where the root of a group lies.
pub(crate) fn key(id: Id) -> String {
    format!("{GROUPS}{id}")
}

/// Segments that the tail of one of so many volumes may have, which are published together: 64 in all, so that the
/// root of a group is not larger than that of a volume can be, but for its fixed part.
pub(crate) fn tail_segments_max(members: usize) -> usize {
    let share = TAIL_SEGMENTS_MAX / members.max(1);
    share.max(TAIL_SEGMENTS_MAX / GROUP_MEMBERS_MAX)
}

impl Group {
    /// The body of one that has grown too large is an error of who wants it so, and found before anything is sent.
    pub(crate) fn encode(&self, mac_key: Option<&Secret>) -> Result<Vec<u8>, VolumeError> {
        let body = self.body();
        if body.len() > ENVELOPE.body_bytes_max {
            return Err(VolumeError::Invalid(format!(
                "the root of group `{}` would have {} bytes, and {} is the most: delete snapshots of it",
                self.name,
                body.len(),
                ENVELOPE.body_bytes_max
            )));
        }
        Ok(ENVELOPE.seal(FORMAT, &body, mac_key))
    }

    fn body(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    /// Whether it is small enough for what stays.
    pub(crate) fn has_room(&self) -> bool {
        self.body().len() <= GROWTH_BYTES_MAX
    }

    /// Whether it would be with one more snapshot of each member.
    pub(crate) fn has_room_for_snapshot(&self) -> bool {
        let mut next = self.clone();
        for root in next.members.iter_mut().filter_map(|it| it.root.as_mut()) {
            root.snapshots.push(Snapshot {
                id: root.nonce,
                name: root.name.clone(),
                size_bytes: root.size_bytes,
                content: root.content.clone(),
            });
        }
        next.has_room()
    }

    /// Parses and checks the root of a group that was found under its key.
    pub(crate) fn decode(
        id: Id,
        bytes: &[u8],
        mac_key: Option<&Secret>,
    ) -> Result<Self, VolumeError> {
        let key = key(id);
        let letter = ENVELOPE.open(&key, bytes, mac_key)?;
        let damaged = |what: &str| VolumeError::damaged(&key, what);
        let (group, rest) = postcard::take_from_bytes::<Self>(letter.body)
            .map_err(|_bad| damaged("its body does not decode"))?;
        if !rest.is_empty() {
            return Err(damaged("its body goes on after its end"));
        }
        if group.id != id.0 {
            return Err(damaged("it is the root of another group"));
        }
        group.check(mac_key.is_some()).map_err(damaged)?;
        Ok(group)
    }

    fn check(&self, keyed: bool) -> Result<(), &'static str> {
        let count = self.members.len();
        if !(GROUP_MEMBERS_MIN..=GROUP_MEMBERS_MAX).contains(&count) {
            return Err("it has too few members, or too many");
        }
        VolumeName::parse(&self.name).map_err(|_bad| "its name is impossible")?;
        let names: BTreeSet<&str> = self.members.iter().map(|it| it.name.as_str()).collect();
        let volumes: BTreeSet<&[u8; 16]> = self.members.iter().map(|it| &it.volume).collect();
        if names.len() != count || volumes.len() != count {
            return Err("it has a member twice");
        }
        for member in &self.members {
            VolumeName::parse(&member.name).map_err(|_bad| "it names a member impossibly")?;
            if let Some(root) = &member.root {
                if root.volume != member.volume || root.name != member.name || root.group.is_some()
                {
                    return Err("what it says of a member is of another volume");
                }
                root.check(keyed)?;
            }
        }
        self.check_phase()
    }

    /// What one member is, all are.
    fn check_phase(&self) -> Result<(), &'static str> {
        let count = self.roots().count();
        if count != 0 && count != self.members.len() || count == 0 && self.phase == Phase::Formed {
            return Err("it does not say what all of its members are");
        }
        let mut roots = self.roots();
        let Some(first) = roots.next() else {
            return Ok(());
        };
        let may_be = match self.phase {
            Phase::Forming => first.state == State::Pending,
            Phase::Formed => matches!(first.state, State::Open | State::Detached),
            Phase::Dissolved => first.state == State::Detached,
        };
        if !may_be {
            return Err("its members are in an impossible state");
        }
        if roots.any(|it| it.state != first.state || it.owner != first.owner) {
            return Err("its members have several owners");
        }
        Ok(())
    }

    /// As far as it says what its members are.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Root> {
        self.members.iter().filter_map(|it| it.root.as_ref())
    }

    /// Whether what it says of its members counts: it does from the moment on at which it was formed.
    pub(crate) fn counts(&self) -> bool {
        match self.phase {
            Phase::Forming => false,
            Phase::Formed => true,
            Phase::Dissolved => self.roots().next().is_some(),
        }
    }

    /// How far it is.
    pub(crate) fn state(&self) -> GroupState {
        match self.phase {
            Phase::Forming => GroupState::Forming,
            Phase::Formed => GroupState::Formed,
            Phase::Dissolved if self.counts() => GroupState::Dissolved,
            Phase::Dissolved => GroupState::GivenUp,
        }
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|it| it.name == name)
    }

    /// As a member's root names it.
    pub(crate) fn reference(&self) -> GroupRef {
        GroupRef {
            id: self.id,
            name: self.name.clone(),
        }
    }

    /// The same with other roots of some members.
    pub(crate) fn with(&self, roots: &[Root], nonce: [u8; 16]) -> Self {
        let mut next = self.clone();
        next.nonce = nonce;
        for root in roots {
            let found = next.members.iter_mut().find(|it| it.volume == root.volume);
            let member = found.expect("a root of a group is replaced by one of the same volume");
            member.root = Some(Root {
                group: None,
                ..root.clone()
            });
        }
        next
    }

    /// The same in another phase.
    pub(crate) fn turned(&self, phase: Phase, nonce: Id) -> Self {
        let mut next = Self {
            nonce: nonce.0,
            phase,
            ..self.clone()
        };
        // One that is given up says nothing of its members: it stays for good.
        if self.phase == Phase::Forming && phase == Phase::Dissolved {
            next.members.iter_mut().for_each(|it| it.root = None);
        }
        next
    }

    /// For people: which volumes.
    pub(crate) fn names(&self) -> String {
        let names = self.members.iter().map(|it| it.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    }
}

impl StoredGroup {
    /// A member's part, where the group's root counts.
    pub(crate) fn of_member(self: &Rc<Self>, member: &Member) -> Option<Stored> {
        let root = member.root.clone().filter(|_| self.group.counts())?;
        Some(Stored {
            root: Root {
                group: Some(self.group.reference()),
                ..root
            },
            etag: self.etag.clone(),
            home: Home::Group(Rc::clone(self)),
        })
    }

    /// In the order of the group.
    pub(crate) fn of_all(self: &Rc<Self>) -> Vec<Stored> {
        let members = self.group.members.iter();
        members.filter_map(|it| self.of_member(it)).collect()
    }

    pub(crate) fn view(&self) -> GroupView {
        let group = &self.group;
        let counts = group.counts();
        let members = group.members.iter().map(|member| MemberView {
            name: member.name.clone(),
            volume: Id(member.volume),
            root: member.root.as_ref().filter(|_| counts).map(|root| {
                let named = Root {
                    group: (group.phase == Phase::Formed).then(|| group.reference()),
                    ..root.clone()
                };
                named.view(&self.etag)
            }),
        });
        GroupView {
            id: Id(group.id),
            name: group.name.clone(),
            state: group.state(),
            members: members.collect(),
        }
    }
}
