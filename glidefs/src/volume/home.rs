//! Where a root lies, and how it is replaced: everybody reads roots by [`Bucket::read_root`] and changes them by
//! [`Bucket::swap`], whether they lie in objects of their own or in that of a group (`group.rs`).
//!
//! ```text
//! the volume's own object -> names no group --------------------------------------> it counts
//!                         -> names one -> forming, or given up -------------------> it counts
//!                                      -> formed: what that says counts, and is replaced there
//!                                      -> dissolved: what that said last counts, and is replaced here
//!                                      -> not there: it was deleted, so the volume's own object names it no more
//! ```
//!
//! What is not there is never taken for one that is not formed yet: a group whose root was lost would be opened as its
//! members were long ago (`docs/model.md`, mistake `gone-is-forming`). Where the volume's own object counts although it
//! names a group, it is read again behind that: the group may be over and deleted, and created anew by who was slow
//! (`looks-once`). And whoever changes a member of a group that is forming gives that up first, or it could be formed of
//! what is old by then (`opens-forming`); if it was formed before he came, what he has seen is over
//! (`swaps-what-was-forming`).

use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use world::store::Part;
use world::{ETag, Store, StoreError, StoreErrorKind, World};

use super::bucket::{Bucket, vanished};
use super::group::{self, Group, GroupState, Phase, StoredGroup};
use super::name::VolumeName;
#[cfg(feature = "planted")]
use super::publish::fenced;
use super::root::{Home, Root, Stored};
use super::{VolumeError, retry};

/// Looks at a volume that leaves one group after the other while it is read: two for each.
const LOOKS_MAX: u32 = 8;

/// How an attempt to replace a root ended.
pub(crate) enum Swapped {
    Landed(Box<Stored>),
    /// This is there instead.
    Lost(Box<Stored>),
}

/// The same of several that lie in one object.
pub(crate) enum SwappedAll {
    Landed(Vec<Stored>),
    Lost(Vec<Stored>),
}

/// The same of the root of a group.
pub(crate) enum SwappedGroup {
    Landed(Rc<StoredGroup>),
    /// None: it was deleted.
    Lost(Option<Rc<StoredGroup>>),
}

/// The same of a volume's own object, whatever it says of groups.
pub(crate) enum SwappedOwn {
    Landed,
    /// This is there instead.
    Lost(Box<Root>),
}

/// One body on its way into the place of one version, until what became of it is known.
struct Sending<'a, W: World> {
    bucket: &'a Bucket<W>,
    key: String,
    seen: &'a ETag,
    body: Bytes,
    attempt: u32,
}

/// What the store said.
enum Answer {
    Replaced(ETag),
    Gone,
    /// Somebody has to look.
    Unclear(StoreError),
}

impl<W: World> Sending<'_, W> {
    async fn send(&mut self) -> Result<Answer, VolumeError> {
        loop {
            let store = self.bucket.store();
            let replaced = store.replace(&self.key, self.seen, self.body.clone());
            let error = match replaced.await {
                Ok(etag) => return Ok(Answer::Replaced(etag)),
                Err(error) => error,
            };
            match error.kind {
                StoreErrorKind::NotFound => return Ok(Answer::Gone),
                StoreErrorKind::Refused | StoreErrorKind::Unsupported => return Err(error.into()),
                StoreErrorKind::Conflict | StoreErrorKind::Unknown => {
                    return Ok(Answer::Unclear(error));
                }
                StoreErrorKind::Retry => self.again(error).await?,
            }
        }
    }

    /// It had no effect yet: the identical body once more, if that is not too often.
    async fn again(&mut self, error: StoreError) -> Result<(), VolumeError> {
        if retry::is_last(&error, self.attempt) {
            return Err(error.into());
        }
        retry::back_off(self.bucket.world(), self.attempt, error.retry_after).await;
        self.attempt += 1;
        Ok(())
    }
}

impl<W: World> Bucket<W> {
    /// Reads and checks what a volume is; none if the store says that there is no such key.
    pub(crate) async fn read_root(&self, name: &VolumeName) -> Result<Option<Stored>, VolumeError> {
        let mut missing = None;
        // The group that this version names, where that is to count.
        let mut before: Option<(ETag, Rc<StoredGroup>)> = None;
        for _ in 0..LOOKS_MAX {
            let Some((own, etag)) = self.read_own(name).await? else {
                return Ok(None);
            };
            let Some(named) = own.group.as_ref().map(|named| Id(named.id)) else {
                return Ok(Some(Stored::own(own, etag)));
            };
            if let Some((seen, group)) = before.take()
                && seen == etag
            {
                return resolved(name, own, etag, &group).map(Some);
            }
            if missing == Some(named) {
                break;
            }
            match self.read_group(named).await? {
                Some(group) if group.group.counts() => {
                    return resolved(name, own, etag, &group).map(Some);
                }
                // The id may have come again, by who was slow to create the group until it was over and deleted. If the
                // volume names it still, it is not over.
                Some(group) => before = Some((etag, group)),
                None => missing = Some(named),
            }
        }
        let key = missing.map_or_else(|| name.root_key(), group::key);
        Err(VolumeError::Vanished {
            name: name.to_string(),
            key,
        })
    }

    /// The volume's own object, whether it counts or not.
    pub(crate) async fn read_own(
        &self,
        name: &VolumeName,
    ) -> Result<Option<(Root, ETag)>, VolumeError> {
        let key = name.root_key();
        let object = match retry::get(self.world(), self.store(), &key, Part::All).await {
            Ok(object) => object,
            // Nothing else means that it is not there (rule 16).
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let root = Root::decode(name, &object.bytes, self.root_mac())?;
        Ok(Some((root, object.etag)))
    }

    pub(crate) async fn read_group(&self, id: Id) -> Result<Option<Rc<StoredGroup>>, VolumeError> {
        let key = group::key(id);
        let object = match retry::get(self.world(), self.store(), &key, Part::All).await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let group = Group::decode(id, &object.bytes, self.root_mac())?;
        let etag = object.etag;
        Ok(Some(Rc::new(StoredGroup { group, etag })))
    }

    /// What these volumes are now, of members of one group at one moment.
    pub(crate) async fn read_roots(
        &self,
        names: &[VolumeName],
    ) -> Result<Vec<Stored>, VolumeError> {
        let mut roots: Vec<Stored> = Vec::with_capacity(names.len());
        for name in names {
            let known = roots.first().and_then(|first| match &first.home {
                Home::Group(group) => group.of_member(group.group.member(name.as_str())?),
                Home::Own | Home::Forming(_) => None,
            });
            let stored = match known {
                Some(known) => known,
                None => {
                    let stored = self.read_root(name).await?;
                    stored.ok_or_else(|| vanished(name))?
                }
            };
            roots.push(stored);
        }
        Ok(roots)
    }

    /// Replaces the version `base` of a root, whatever answers are lost on the way.
    pub(crate) async fn swap(
        &self,
        name: &VolumeName,
        base: &Stored,
        root: Root,
    ) -> Result<Swapped, VolumeError> {
        match &base.home {
            Home::Own => Box::pin(self.swap_alone(name, base, root)).await,
            #[cfg(feature = "planted")]
            Home::Forming(_) if self.is_planted(super::Planted::OpensForming) => {
                Box::pin(self.swap_alone(name, base, root)).await
            }
            Home::Forming(group) => match Box::pin(self.give_up(*group)).await? {
                Some(GroupState::GivenUp) => Box::pin(self.swap_alone(name, base, root)).await,
                // It was formed since `base` was read, and may be over again: what `base` says is of before that, though
                // the volume's own object can still be the same.
                Some(GroupState::Forming | GroupState::Formed | GroupState::Dissolved) | None => {
                    let now = self.read_root(name).await?;
                    let now = now.ok_or_else(|| vanished(name))?;
                    Ok(Swapped::Lost(Box::new(now)))
                }
            },
            Home::Group(group) => {
                let roots = vec![root];
                let swapped = Box::pin(self.swap_members(group, roots)).await?;
                let (now, is_ours) = match swapped {
                    SwappedAll::Landed(now) => (now, true),
                    SwappedAll::Lost(now) => (now, false),
                };
                let now = now.into_iter().next().ok_or_else(|| vanished(name))?;
                Ok(match is_ours {
                    true => Swapped::Landed(Box::new(now)),
                    false => Swapped::Lost(Box::new(now)),
                })
            }
        }
    }

    async fn swap_alone(
        &self,
        name: &VolumeName,
        base: &Stored,
        root: Root,
    ) -> Result<Swapped, VolumeError> {
        let nonce = root.nonce;
        let mut sending = Sending {
            bucket: self,
            key: name.root_key(),
            seen: &base.etag,
            body: Bytes::from(root.encode(self.root_mac())),
            attempt: 0,
        };
        loop {
            let error = match sending.send().await? {
                Answer::Replaced(etag) => {
                    return Ok(Swapped::Landed(Box::new(Stored::own(root, etag))));
                }
                Answer::Gone => return Err(vanished(name)),
                Answer::Unclear(error) => error,
            };
            #[cfg(feature = "planted")]
            if error.kind == StoreErrorKind::Conflict
                && self.is_planted(super::Planted::OwnConflict)
            {
                return Err(fenced(base.root.epoch, &base.root));
            }
            let now = self.read_root(name).await?;
            let now = Box::new(now.ok_or_else(|| vanished(name))?);
            if now.root.nonce == nonce {
                return Ok(Swapped::Landed(now));
            }
            if !now.is_same_as(base) {
                return Ok(Swapped::Lost(now));
            }
            sending.again(error).await?;
        }
    }

    /// Replaces what a group's root says of these members, who all get the same nonce. The answer is in their order.
    pub(crate) async fn swap_members(
        &self,
        base: &Rc<StoredGroup>,
        roots: Vec<Root>,
    ) -> Result<SwappedAll, VolumeError> {
        let nonce = roots.first().map(|root| root.nonce);
        let nonce = nonce.expect("something is replaced");
        assert!(
            roots.iter().all(|root| root.nonce == nonce),
            "one change has one nonce"
        );
        let names = roots.iter().map(|root| VolumeName::parse(&root.name));
        let names: Vec<VolumeName> = names.collect::<Result<_, _>>()?;
        let next = base.group.with(&roots, nonce);
        match Box::pin(self.swap_group(base, next)).await? {
            SwappedGroup::Landed(now) => {
                let members = roots.iter().filter_map(|root| {
                    let member = now.group.member(&root.name)?;
                    now.of_member(member)
                });
                Ok(SwappedAll::Landed(members.collect()))
            }
            SwappedGroup::Lost(_) => {
                let now = Box::pin(self.read_roots(&names)).await?;
                // It landed, its answer was lost, and somebody has changed the group since, but not these.
                match now.iter().all(|it| it.root.nonce == nonce) {
                    true => Ok(SwappedAll::Landed(now)),
                    false => Ok(SwappedAll::Lost(now)),
                }
            }
        }
    }

    /// Replaces the root of a group, whatever answers are lost on the way.
    pub(crate) async fn swap_group(
        &self,
        base: &Rc<StoredGroup>,
        next: Group,
    ) -> Result<SwappedGroup, VolumeError> {
        let id = Id(next.id);
        let mut sending = Sending {
            bucket: self,
            key: group::key(id),
            seen: &base.etag,
            body: Bytes::from(next.encode(self.root_mac())?),
            attempt: 0,
        };
        loop {
            let error = match sending.send().await? {
                Answer::Replaced(etag) => {
                    let group = next;
                    return Ok(SwappedGroup::Landed(Rc::new(StoredGroup { group, etag })));
                }
                Answer::Gone => return Ok(SwappedGroup::Lost(None)),
                Answer::Unclear(error) => error,
            };
            #[cfg(feature = "planted")]
            if error.kind == StoreErrorKind::Conflict
                && self.is_planted(super::Planted::OwnConflict)
                && let Some(root) = base.group.roots().next()
            {
                return Err(fenced(root.epoch, root));
            }
            let Some(now) = self.read_group(id).await? else {
                return Ok(SwappedGroup::Lost(None));
            };
            if now.group.nonce == next.nonce {
                return Ok(SwappedGroup::Landed(now));
            }
            if now.etag != base.etag {
                return Ok(SwappedGroup::Lost(Some(now)));
            }
            sending.again(error).await?;
        }
    }

    /// Replaces a volume's own object by one that says the same of the volume, so with the nonce of its last change, and
    /// something else of groups. `is_done` tells from what is there whether it was.
    pub(crate) async fn swap_own(
        &self,
        name: &VolumeName,
        seen: &ETag,
        root: &Root,
        is_done: impl Fn(&Root) -> bool,
    ) -> Result<SwappedOwn, VolumeError> {
        let mut sending = Sending {
            bucket: self,
            key: name.root_key(),
            seen,
            body: Bytes::from(root.encode(self.root_mac())),
            attempt: 0,
        };
        loop {
            let error = match sending.send().await? {
                Answer::Replaced(_) => return Ok(SwappedOwn::Landed),
                Answer::Gone => return Err(vanished(name)),
                Answer::Unclear(error) => error,
            };
            let now = self.read_own(name).await?;
            let (now, etag) = now.ok_or_else(|| vanished(name))?;
            if is_done(&now) {
                return Ok(SwappedOwn::Landed);
            }
            if etag != *seen {
                return Ok(SwappedOwn::Lost(Box::new(now)));
            }
            sending.again(error).await?;
        }
    }

    /// A group that is forming will never be formed, so that the roots of its members count for good. What it is then:
    /// it may have been formed just before, and be dissolved since. None: it is not there, so it was formed and is over,
    /// or was lost.
    pub(crate) async fn give_up(&self, id: Id) -> Result<Option<GroupState>, VolumeError> {
        let Some(group) = self.read_group(id).await? else {
            return Ok(None);
        };
        if group.group.phase != Phase::Forming {
            return Ok(Some(group.group.state()));
        }
        let next = group
            .group
            .turned(Phase::Dissolved, Id(self.world().random_id()));
        match Box::pin(self.swap_group(&group, next)).await? {
            SwappedGroup::Landed(now) => Ok(Some(now.group.state())),
            // From forming there is one step, whoever takes it.
            SwappedGroup::Lost(now) => Ok(now.map(|now| now.group.state())),
        }
    }
}

/// What the volume is of which the own object says `own`, and names this group.
fn resolved(
    name: &VolumeName,
    own: Root,
    etag: ETag,
    group: &Rc<StoredGroup>,
) -> Result<Stored, VolumeError> {
    let member = group.group.member(name.as_str());
    let member = member.filter(|it| it.volume == own.volume).ok_or_else(|| {
        let what = format!(
            "its members are {}, and `{name}` names it too",
            group.group.names()
        );
        VolumeError::damaged(&group::key(Id(group.group.id)), what)
    })?;
    let Some(theirs) = group.of_member(member) else {
        let own = Stored::own(own, etag);
        return Ok(match group.group.phase {
            Phase::Forming | Phase::Formed => own,
            // Given up: there is nothing left to be given up first.
            Phase::Dissolved => Stored {
                home: Home::Own,
                ..own
            },
        });
    };
    if theirs.root.epoch < own.epoch {
        let what = format!(
            "it says less of `{name}` (epoch {}) than that said itself (epoch {}): an older version was put back",
            theirs.root.epoch, own.epoch
        );
        return Err(VolumeError::damaged(&group::key(Id(group.group.id)), what));
    }
    match group.group.phase {
        Phase::Formed => Ok(theirs),
        // What is said of it next, it says itself.
        Phase::Forming | Phase::Dissolved => Ok(Stored::own(
            Root {
                group: None,
                ..theirs.root
            },
            etag,
        )),
    }
}
