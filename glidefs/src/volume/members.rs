//! Volumes that are taken and published together, by one compare-and-swap (rule 30): one that is in no group, or all
//! members of one. There is no other way to publish a volume.
//!
//! Taking raises the epoch of each: raised for the one that was asked for alone, a zombie would take another
//! member's epoch for its own, and sweep what the new owner uploads for it (`docs/model.md`, mistake `epoch-of-one`).

use std::rc::Rc;

use blockcache::{Epoch, Id};
use futures_util::future::{join_all, try_join_all};
use world::World;
use world::sync::SemaphorePermit;

use super::bucket::{Bucket, vanished};
use super::group::StoredGroup;
use super::home::{Swapped, SwappedAll};
use super::name::VolumeName;
use super::publish::{Plan, Published, owned, taken};
use super::root::{Home, Root, Stored};
use super::runs::Map;
use super::sealed::ObjectRef;
use super::snapshots;
use super::{GroupName, Owner, Publish, RootView, Volume, VolumeError, VolumeState};

/// Own older intents that may be found landed during one publish.
const ADOPTIONS_MAX: usize = 16;

/// Volumes that are taken and published together. A cheap handle.
#[derive(Clone, Debug)]
pub struct Members<W: World> {
    /// In the order of the group.
    volumes: Rc<[Volume<W>]>,
    /// The place of the one that was asked for.
    asked: usize,
}

/// Where each map is that a publish planned, and what it is.
type Planned = Vec<(Option<ObjectRef>, Map)>;

impl<W: World> Bucket<W> {
    /// Opens a volume for reading, with all that is published with it, at one moment. Takes nothing.
    pub async fn open_members(&self, name: &str) -> Result<Members<W>, VolumeError> {
        let name = VolumeName::parse(name)?;
        let stored = self.read_root(&name).await?;
        let stored = stored.ok_or_else(|| vanished(&name))?;
        let group = match &stored.home {
            Home::Group(group) => Some(Rc::clone(group)),
            Home::Own | Home::Forming(_) => None,
        };
        let all = group.map_or_else(|| vec![stored], |group| group.of_all());
        let is_asked = |it: &Stored| it.root.name == name.as_str();
        let asked = all.iter().position(is_asked).unwrap_or_default();
        let opened = all.into_iter().map(|stored| async move {
            let name = VolumeName::parse(&stored.root.name)?;
            Box::pin(self.opened(name, stored)).await
        });
        let volumes = try_join_all(opened).await?.into();
        Ok(Members { volumes, asked })
    }
}

impl<W: World> Volume<W> {
    /// For what is done with one volume. Of a member of a group hardly anything can be.
    pub(super) fn alone(&self) -> Members<W> {
        Members {
            volumes: Rc::new([self.clone()]),
            asked: 0,
        }
    }

    fn stored_now(&self) -> Stored {
        self.inner.state.borrow().stored.clone()
    }

    /// The group that it lies in.
    fn group(&self) -> Option<Rc<StoredGroup>> {
        match &self.inner.state.borrow().stored.home {
            Home::Own | Home::Forming(_) => None,
            Home::Group(group) => Some(Rc::clone(group)),
        }
    }

    /// Segments that its tail may have: fewer, if others are published with it.
    pub fn tail_max(&self) -> usize {
        self.inner.state.borrow().stored.tail_max()
    }
}

impl<W: World> Members<W> {
    /// Handles that are open already, in any order: one volume that is in no group, or each member of one once. The one
    /// that was asked for is the first.
    pub fn of(mut volumes: Vec<Volume<W>>) -> Result<Self, VolumeError> {
        let first = volumes.first().map(|it| it.inner.name.clone());
        let first = first.ok_or_else(|| VolumeError::Invalid("no volume is given".to_owned()))?;
        let group = volumes.iter().find_map(Volume::group);
        if let Some(group) = &group {
            let place = |volume: &Volume<W>| {
                let name = volume.inner.name.as_str();
                let mut members = group.group.members.iter();
                members.position(|member| member.name == name)
            };
            volumes.sort_by_key(place);
        }
        let asked = volumes.iter().position(|it| it.inner.name == first);
        let members = Self {
            volumes: volumes.into(),
            asked: asked.unwrap_or_default(),
        };
        members.check_whole("published")?;
        Ok(members)
    }

    /// In the order of the group, as all lists are.
    pub fn volumes(&self) -> &[Volume<W>] {
        &self.volumes
    }

    /// The one that was asked for.
    pub fn asked(&self) -> &Volume<W> {
        self.volumes.get(self.asked).expect("it is one of them")
    }

    /// None: one volume, which is in no group.
    pub fn group(&self) -> Option<GroupName> {
        let group = self.asked().group()?;
        Some(GroupName {
            id: Id(group.group.id),
            name: group.group.name.clone(),
        })
    }

    /// These and no others lie in one object.
    fn check_whole(&self, what: &str) -> Result<(), VolumeError> {
        let ours = self.volumes.iter().map(|it| it.root().volume.0);
        let name = &self.asked().inner.name;
        let Some(group) = self.volumes.iter().find_map(Volume::group) else {
            return match self.volumes.len() {
                1 => Ok(()),
                _ => Err(VolumeError::Invalid(format!(
                    "volume `{name}` is in no group (any more), so it is not {what} with others: open it again"
                ))),
            };
        };
        let theirs = group.group.members.iter().map(|it| it.volume);
        if ours.eq(theirs) {
            let mut groups = self.volumes.iter().map(Volume::group);
            let is_same = groups.all(|it| it.is_some_and(|it| it.etag == group.etag));
            return is_same.then_some(()).ok_or_else(|| {
                VolumeError::Invalid(format!(
                    "the members of group `{}` were read at several moments: open them again, all at once",
                    group.group.name
                ))
            });
        }
        Err(VolumeError::Invalid(format!(
            "volume `{name}` is a member of group `{}`, and is not {what} without the others: open all of {}",
            group.group.name,
            group.group.names()
        )))
    }

    /// Becomes the owner of all by one swap, which raises the epoch of each. Refused while another cache owns them and
    /// they are not detached, unless `force` names the epoch expected of the one that was asked for: the force of one
    /// is the force of all. A group that is forming is given up.
    pub async fn take(
        &self,
        owner: &Owner,
        nonce: Id,
        force: Option<Epoch>,
    ) -> Result<Vec<RootView>, VolumeError> {
        self.check_whole("taken")?;
        let _turns = self.turns().await;
        let bases: Vec<Stored> = self.volumes.iter().map(Volume::stored_now).collect();
        let asked = self.asked().root().epoch;
        let is_forced = force == Some(asked);
        let roots = bases.iter().map(|base| {
            let force = is_forced.then_some(Epoch(base.root.epoch));
            taken(&base.root, owner, nonce, force)
        });
        let roots = roots.collect::<Result<Vec<Root>, _>>()?;
        #[cfg(feature = "planted")]
        let roots = self.raised(&bases, roots);
        match Box::pin(self.swap(&bases, roots)).await? {
            SwappedAll::Landed(now) => {
                for (base, now) in bases.iter().zip(&now) {
                    // The map in memory is that of the root which was loaded.
                    if now.root.content != base.root.content {
                        let what = "it has the nonce of a take-over, but another cut";
                        let key = format!("nbd/{}/root", base.root.name);
                        return Err(VolumeError::damaged(&key, what));
                    }
                }
                let members = self.volumes.iter().zip(&bases).zip(now);
                Ok(members
                    .map(|((volume, base), now)| volume.took(base, now))
                    .collect())
            }
            SwappedAll::Lost(now) => {
                let now = now.get(self.asked).or(now.first());
                let now = now.expect("something is there instead");
                Err(owned(&now.root))
            }
        }
    }

    /// Goes on as the owner of all that the roots name already (a restart, rule 14), or of none. The next publish proves
    /// it. `epochs` are what the log holds.
    pub fn resume(&self, owner: &Owner, epochs: &[Epoch]) -> Result<Vec<RootView>, VolumeError> {
        self.check_whole("resumed")?;
        assert_eq!(
            epochs.len(),
            self.volumes.len(),
            "each member has one epoch"
        );
        let members = self.volumes.iter().zip(epochs);
        for (volume, epoch) in members.clone() {
            volume.may_resume(owner, *epoch)?;
        }
        members
            .map(|(volume, epoch)| volume.resume(owner, *epoch))
            .collect()
    }

    /// Makes the cuts of all members their state: one compare-and-swap of the root that names the segments (in write
    /// order; later ones win). Unclear answers are resolved by reading back (rule 13): `ours` of the changes are the
    /// nonces of all intents that may still land. After [`VolumeError::Store`] the outcome is open, and the same
    /// changes may be tried again. After [`VolumeError::Overtaken`] a later cut of this log is published and
    /// installed, and the changes are void.
    /// Returns the new roots, whose maps are not yet installed: see [`Members::install`].
    pub async fn publish(&self, changes: &[Publish]) -> Result<Vec<Published>, VolumeError> {
        self.check_whole("published")?;
        self.check(changes)?;
        let _turns = self.turns().await;
        for _ in 0..ADOPTIONS_MAX {
            let bases = self.volumes.iter().map(Volume::holding);
            let bases = bases.collect::<Result<Vec<Stored>, _>>()?;
            let mut both = bases.iter().zip(changes);
            if both.all(|(base, change)| base.root.nonce == change.nonce.0) {
                // An earlier call landed, and was installed when its turn came.
                return Box::pin(self.prepare(bases, changes, Vec::new())).await;
            }
            let (roots, planned) = Box::pin(self.plan(&bases, changes)).await?;
            match Box::pin(self.swap(&bases, roots)).await? {
                SwappedAll::Landed(now) => {
                    return Box::pin(self.prepare(now, changes, planned)).await;
                }
                SwappedAll::Lost(now) => {
                    let lost = self.volumes.iter().zip(&bases).zip(&now).zip(changes);
                    for (((volume, base), now), change) in lost {
                        volume.check_lost(base, now, change)?;
                    }
                    // Its map may be installed before anybody calls it clean; not after.
                    let older = Box::pin(self.prepare(now, changes, planned)).await?;
                    let roots = self.install(older);
                    let mut both = roots.into_iter().zip(changes);
                    // A cut may be smaller than one before a restart: it has a bound by extents. Of a group the cuts of
                    // all are one moment, so what is beyond in one member is behind in none.
                    if let Some((root, _)) = both.find(|(root, change)| root.cut > change.cut) {
                        return Err(VolumeError::Overtaken {
                            name: root.name,
                            at: root.cut,
                        });
                    }
                }
            }
        }
        let text = "more intents of this cache landed late than it can have sent";
        let key = self.asked().inner.name.root_key();
        Err(VolumeError::damaged(&key, text))
    }

    /// Puts the maps of published roots in place, in one step. Look-ups see them from now on.
    pub fn install(&self, published: Vec<Published>) -> Vec<RootView> {
        assert_eq!(
            published.len(),
            self.volumes.len(),
            "each member has its root"
        );
        let mut both = self.volumes.iter().zip(&published);
        if both.any(|(volume, published)| volume.is_beyond(published)) {
            return published.into_iter().map(|it| it.root).collect();
        }
        let both = self.volumes.iter().zip(published);
        both.map(|(volume, published)| volume.put_in_place(published))
            .collect()
    }

    /// Whether one more snapshot that a person asks for would be listed.
    pub fn has_room_for_snapshot(&self) -> bool {
        let has_room = |it: &Volume<W>| it.inner.state.borrow().stored.root.has_room();
        let group = self.asked().group();
        let has_bytes = group.is_none_or(|it| it.group.has_room_for_snapshot());
        has_bytes && self.volumes.iter().all(has_room)
    }

    /// In one order, so that nobody waits for one who waits for him.
    async fn turns(&self) -> Vec<SemaphorePermit<'_>> {
        let mut turns = Vec::with_capacity(self.volumes.len());
        for volume in self.volumes.iter() {
            turns.push(volume.turn().await);
        }
        turns
    }

    fn check(&self, changes: &[Publish]) -> Result<(), VolumeError> {
        let refused = |what: &str| {
            let name = &self.asked().inner.name;
            let text = format!("volume `{name}` is not published with its group: {what}");
            Err(VolumeError::Invalid(text))
        };
        let Some(first) = changes.first() else {
            return refused("nothing is to be changed");
        };
        if changes.len() != self.volumes.len() {
            return refused("there is not one change for each member");
        }
        if changes.iter().any(|it| it.nonce != first.nonce) {
            return refused("their cuts have different nonces");
        }
        // An owner of half a group would keep the other half from being opened.
        let state = |it: &Publish| it.state.unwrap_or(VolumeState::Open);
        if changes.iter().any(|it| state(it) != state(first)) {
            return refused("only some would be given up");
        }
        Ok(())
    }

    /// The roots that the changes ask for, on top of `bases`. Members are worked on at the same time; none is given up in
    /// the middle of an upload because another one failed.
    async fn plan(
        &self,
        bases: &[Stored],
        changes: &[Publish],
    ) -> Result<(Vec<Root>, Planned), VolumeError> {
        let now_ms = self.asked().inner.bucket.world().unix_time().0;
        let members = self.volumes.iter().zip(bases).zip(changes);
        let plans = members.map(|((volume, base), change)| async move {
            Box::pin(volume.make_room()).await?;
            Box::pin(volume.plan(base, change, now_ms)).await
        });
        let plans = join_all(plans).await.into_iter();
        let plans = plans.collect::<Result<Vec<Plan>, VolumeError>>()?;
        let (mut roots, mut planned) = (Vec::new(), Vec::new());
        for Plan { root, map } in plans {
            planned.push((root.content.map, map));
            roots.push(root);
        }
        snapshots::apply(bases, &mut roots, changes, now_ms);
        Ok((roots, planned))
    }

    async fn swap(&self, bases: &[Stored], roots: Vec<Root>) -> Result<SwappedAll, VolumeError> {
        let first = bases.first().expect("there is at least one member");
        let bucket = &self.asked().inner.bucket;
        match &first.home {
            Home::Group(group) => {
                let is_same = bases.iter().all(|it| it.is_version_of(first));
                assert!(is_same, "members are installed together");
                Box::pin(bucket.swap_members(group, roots)).await
            }
            Home::Own | Home::Forming(_) => {
                let root = roots.into_iter().next().expect("one for the one volume");
                let name = &self.asked().inner.name;
                let swapped = Box::pin(bucket.swap(name, first, root)).await?;
                Ok(match swapped {
                    Swapped::Landed(now) => SwappedAll::Landed(vec![*now]),
                    Swapped::Lost(now) => SwappedAll::Lost(vec![*now]),
                })
            }
        }
    }

    async fn prepare(
        &self,
        stored: Vec<Stored>,
        changes: &[Publish],
        planned: Planned,
    ) -> Result<Vec<Published>, VolumeError> {
        let mut planned = planned.into_iter();
        let mut published = Vec::with_capacity(stored.len());
        for ((volume, stored), change) in self.volumes.iter().zip(stored).zip(changes) {
            let planned = planned.next();
            published.push(Box::pin(volume.prepare(stored, change, planned)).await?);
        }
        Ok(published)
    }
}

#[cfg(feature = "planted")]
impl<W: World> Members<W> {
    /// As [`super::Planted::ReadsApart`]: each as it is when its turn comes, while the owner of all goes on.
    pub(crate) async fn read_apart(&self) -> Result<Self, VolumeError> {
        let bucket = &self.asked().inner.bucket;
        if self.volumes.len() == 1 || !bucket.is_planted(super::Planted::ReadsApart) {
            return Ok(self.clone());
        }
        let mut volumes = Vec::with_capacity(self.volumes.len());
        for volume in self.volumes.iter() {
            let name = volume.inner.name.as_str();
            volumes.push(Box::pin(bucket.open_volume(name)).await?);
        }
        Ok(Self {
            volumes: volumes.into(),
            asked: self.asked,
        })
    }

    /// As [`super::Planted::EpochOfOne`].
    fn raised(&self, bases: &[Stored], mut roots: Vec<Root>) -> Vec<Root> {
        let bucket = &self.asked().inner.bucket;
        if bucket.is_planted(super::Planted::EpochOfOne) {
            let all = roots.iter_mut().zip(bases).enumerate();
            for (_, (root, base)) in all.filter(|(place, _)| *place != self.asked) {
                root.epoch = base.root.epoch;
            }
        }
        roots
    }
}
