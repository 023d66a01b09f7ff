//! Forks of whole groups: another group, of which each member is a fork of one of the first, all of one moment.
//!
//! ```text
//! a pin in each member's folder -> read the group, once -> create the fork's group, forming, with what it will hold
//!     -> create each member's root, pending, which names it -> the fork's group is formed
//! ```
//!
//! The pins come first, as for any fork (`fork.rs`), and the group is read once, or the members would be of several
//! moments (`docs/model.md`, mistakes `pins-one`, `forks-apart`): also by a call that is repeated, so what it read stays in
//! the fork's group. Roots that are pending are opened by nobody. Whoever cleans up after one who died gives the fork's
//! group up first, and burns its members then (`burns-undissolved`): [`Bucket::abandon`].

use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::Id;
use world::World;

use super::VolumeError;
use super::bucket::{Bucket, exists, vanished};
use super::fork::{Fork, changed};
use super::form::{check_members, check_room, over};
use super::group::{Group, GroupState, GroupView, Member, Phase, StoredGroup};
use super::name::VolumeName;
use super::root::{Home, Root, State, Stored};

/// A fork of a group that is to be made. May be tried again as it is: it is made once.
#[derive(Clone, Debug)]
pub struct GroupFork {
    of: Id,
    name: VolumeName,
    id: Id,
    /// One of each member.
    forks: Vec<Fork>,
}

impl GroupFork {
    /// `id`, of the new group, is random, or follows from the request, so that a repeated one is the same. `members` are
    /// names of members of the group `of`, each with that of its fork.
    pub fn new(
        of: Id,
        snapshot: Option<&str>,
        name: &str,
        id: Id,
        members: &[(String, String)],
    ) -> Result<Self, VolumeError> {
        let name = VolumeName::parse(name)?;
        let forks = members.iter().map(|(parent, child)| {
            let mut hasher = blake3::Hasher::new_derive_key("glidefs 1 ids of a fork in a group");
            hasher.update(&id.0);
            hasher.update(child.as_bytes());
            let hash = hasher.finalize();
            let (volume, nonce) = hash.as_bytes().split_at(16);
            let half = |bytes: &[u8]| Id(*bytes.first_chunk().expect("16 of 32"));
            let snapshot = snapshot.map(str::to_owned);
            Fork::new(parent, snapshot, child, half(volume), half(nonce))
        });
        let forks = forks.collect::<Result<Vec<Fork>, _>>()?;
        for names in [
            forks.iter().map(|it| it.parent.clone()).collect::<Vec<_>>(),
            forks.iter().map(|it| it.child.clone()).collect(),
        ] {
            check_members(&name, &names)?;
        }
        Ok(Self {
            of,
            name,
            id,
            forks,
        })
    }
}

/// A member that is to be made.
struct Making {
    fork: Fork,
    /// What its root takes the place of.
    tomb: Option<Stored>,
}

impl<W: World> Bucket<W> {
    /// Makes a fork of what the group's root names now, or of a snapshot of it: some requests for each member, whatever
    /// the size. The new group is detached: whoever opens it first owns it.
    ///
    /// After an error the pins stay, as those of any fork do: who collects the garbage of a member cleans up.
    pub async fn fork_group(&self, fork: &GroupFork) -> Result<GroupView, VolumeError> {
        if let Some(done) = Box::pin(self.made_group(fork)).await? {
            return Ok(done);
        }
        let forming = match self.read_group(fork.id).await? {
            Some(there) => there,
            None => Box::pin(self.begin_fork(fork)).await?,
        };
        match forming.group.phase {
            Phase::Formed => return Ok(forming.view()),
            Phase::Dissolved => return Err(over(&forming.group)),
            Phase::Forming => {}
        }
        match Box::pin(self.create_members(fork, &forming)).await {
            Ok(()) => {}
            Err(error @ VolumeError::Store(_)) => return Err(error),
            Err(error) => {
                Box::pin(self.abandon_fork(&forming)).await?;
                return Err(error);
            }
        }
        let roots = forming.group.roots().map(|root| Root {
            state: State::Detached,
            ..root.clone()
        });
        let roots: Vec<Root> = roots.collect();
        Box::pin(self.commit(&forming, &roots)).await
    }

    /// The group, if an earlier call made it. Its members may have been opened and written since.
    async fn made_group(&self, fork: &GroupFork) -> Result<Option<GroupView>, VolumeError> {
        for fork in &fork.forks {
            let Some(there) = self.read_root(&fork.child).await? else {
                continue;
            };
            let is_ours = fork.is_of(&there.root) || there.root.volume == fork.id.0;
            match (there.root.state, &there.home) {
                // It is in the making.
                (State::Pending, _) if is_ours => {}
                (State::Open | State::Detached, Home::Group(group)) if is_ours => {
                    return Ok(Some(group.view()));
                }
                (State::Deleted, _) if is_ours => {
                    return Err(VolumeError::Invalid(format!(
                        "volume `{}` was deleted after this fork had begun: fork again, with a new request id",
                        fork.child
                    )));
                }
                (State::Deleted, _) => {}
                _ => return Err(exists(&fork.child)),
            }
        }
        Ok(None)
    }

    /// Pins and reads the group, and puts down what the fork will hold.
    async fn begin_fork(&self, fork: &GroupFork) -> Result<Rc<StoredGroup>, VolumeError> {
        // So that no pins lie where no member is.
        self.forkable_group(fork).await?;
        let mut making = Vec::with_capacity(fork.forks.len());
        for member in &fork.forks {
            making.push(Box::pin(self.making(member)).await?);
        }
        for Making { fork, .. } in &making {
            self.put_pin(fork.parent.as_str(), &fork.pin(None)).await?;
        }
        let parents = Box::pin(self.read_pinned(fork, &making)).await?;
        let mut members = Vec::with_capacity(making.len());
        for Making { fork: member, tomb } in &making {
            let parent = parent_of(&parents, member)?;
            let root = self.forked(member, parent)?;
            let root = match tomb {
                Some(tomb) => root.over(&tomb.root),
                None => root,
            };
            members.push(Member {
                volume: root.volume,
                name: root.name.clone(),
                root: Some(Root {
                    state: State::Pending,
                    ..root
                }),
            });
        }
        check_one_moment(&parents, &members)?;
        let group = Group {
            id: fork.id.0,
            name: fork.name.to_string(),
            // Each attempt to create it has its own.
            nonce: [0; 16],
            phase: Phase::Forming,
            members,
        };
        check_room(&group)?;
        Box::pin(self.create_group(group)).await
    }

    /// Where a volume of the child's name was deleted, the child takes its place, with ids of its own.
    async fn making(&self, fork: &Fork) -> Result<Making, VolumeError> {
        Ok(match self.read_root(&fork.child).await? {
            None => Making {
                fork: fork.clone(),
                tomb: None,
            },
            Some(_) => {
                let tomb = Box::pin(self.vacant(&fork.child)).await?;
                Making {
                    fork: fork.over(Id(tomb.root.nonce)),
                    tomb: Some(tomb),
                }
            }
        })
    }

    /// The group behind the pins. What its members name of others is pinned too, and then the group is read again: they
    /// may have let go of it in between.
    async fn read_pinned(
        &self,
        fork: &GroupFork,
        making: &[Making],
    ) -> Result<Rc<StoredGroup>, VolumeError> {
        let first = self.forkable_group(fork).await?;
        let mut pinned = BTreeSet::new();
        let mut found = Ok(());
        for Making { fork, .. } in making {
            let parent = parent_of(&first, fork)?;
            let needed = fork.needs(parent).map(|it| (fork.id.0, it.volume));
            pinned.extend(needed);
            found = found.and(Box::pin(self.pin_ancestors(fork, parent)).await);
        }
        if pinned.is_empty() {
            return Ok(first);
        }
        let again = self.forkable_group(fork).await?;
        let mut needed = BTreeSet::new();
        for Making { fork, .. } in making {
            let parent = parent_of(&again, fork)?;
            needed.extend(fork.needs(parent).map(|it| (fork.id.0, it.volume)));
            if !needed.is_subset(&pinned) {
                return Err(changed(fork));
            }
        }
        match (found, making.first()) {
            (Ok(()), _) => Ok(again),
            // It may have been let go just then.
            (Err(_), Some(first)) if needed.len() < pinned.len() => Err(changed(&first.fork)),
            (Err(error), _) => Err(error),
        }
    }

    /// The group, if a fork of it may be made.
    async fn forkable_group(&self, fork: &GroupFork) -> Result<Rc<StoredGroup>, VolumeError> {
        let invalid = |text: String| VolumeError::Invalid(text);
        let group = self.read_group(fork.of).await?.ok_or_else(|| {
            invalid(format!(
                "there is no group {} in this prefix: it was dissolved",
                fork.of
            ))
        })?;
        if group.group.phase != Phase::Formed {
            let name = &group.group.name;
            return Err(invalid(format!(
                "group `{name}` is not formed (any more), and is not forked"
            )));
        }
        let theirs: BTreeSet<&str> = group
            .group
            .members
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        let asked: BTreeSet<&str> = fork.forks.iter().map(|it| it.parent.as_str()).collect();
        if theirs != asked {
            return Err(invalid(format!(
                "group `{}` has the members {}: give each of them, and no other, the name of its fork; or fork one alone",
                group.group.name,
                group.group.names()
            )));
        }
        Ok(group)
    }

    /// The root of each member, pending, where none is, or in the place of a tombstone.
    pub(super) async fn create_members(
        &self,
        fork: &GroupFork,
        forming: &StoredGroup,
    ) -> Result<(), VolumeError> {
        for member in &fork.forks {
            let name = &member.child;
            let root = forming.group.member(name.as_str());
            let root = root.and_then(|it| it.root.clone());
            let root = root.ok_or_else(|| over(&forming.group))?;
            let volume = root.volume;
            let root = Root {
                group: Some(forming.group.reference()),
                ..root
            };
            let made = match root.predecessor {
                None => Box::pin(self.create_root(name, root)).await?,
                Some(_) => {
                    let there = self.read_root(name).await?;
                    let there = there.ok_or_else(|| vanished(name))?;
                    let is_tomb = there.root.state == State::Deleted
                        && root.predecessor == Some(there.root.as_predecessor());
                    match is_tomb {
                        true => Box::pin(self.reuse(name, &there, root)).await?,
                        false => there,
                    }
                }
            };
            if made.root.volume != volume {
                return Err(exists(name));
            }
            let is_in = match &made.home {
                Home::Forming(group) => group.0 == forming.group.id,
                Home::Group(group) => group.group.id == forming.group.id,
                Home::Own => false,
            };
            // Burned by somebody who took this process for dead; or the group was formed by another call, and is over:
            // formed again, it would say of volumes what they were once, and forks would be made of that.
            if !is_in {
                return Err(over(&forming.group));
            }
        }
        Ok(())
    }

    /// It will not come. Its names are free again.
    async fn abandon_fork(&self, forming: &StoredGroup) -> Result<(), VolumeError> {
        let state = Box::pin(self.give_up(Id(forming.group.id))).await?;
        if state != Some(GroupState::GivenUp) {
            return Ok(());
        }
        for member in &forming.group.members {
            let name = VolumeName::parse(&member.name)?;
            let there = self.read_root(&name).await?;
            let ours = there.filter(|it| it.root.volume == member.volume);
            if let Some(pending) = ours.filter(|it| it.root.state == State::Pending) {
                Box::pin(self.abandon(&name, &pending)).await?;
            }
        }
        Ok(())
    }
}

fn parent_of<'a>(group: &'a StoredGroup, fork: &Fork) -> Result<&'a Root, VolumeError> {
    let member = group.group.member(fork.parent.as_str());
    let root = member.and_then(|it| it.root.as_ref());
    root.ok_or_else(|| changed(fork))
}

/// All are of the group's last cut, or all of one snapshot of it: two members may have had snapshots of one name before
/// they came into the group.
fn check_one_moment(parents: &StoredGroup, members: &[Member]) -> Result<(), VolumeError> {
    let roots = members.iter().filter_map(|it| it.root.as_ref());
    let snapshots = roots.filter_map(|it| it.parent.as_ref());
    let mut snapshots = snapshots.map(|parent| parent.snapshot);
    let first = snapshots.next();
    if snapshots.all(|it| Some(it) == first) {
        return Ok(());
    }
    Err(VolumeError::Invalid(format!(
        "the snapshots of that name are not of all members of group `{}` at one moment: fork its members one by one",
        parents.group.name
    )))
}
