//! Purging: a volume's objects go, its root stays as a tombstone (rule 20).
//!
//! ```text
//! root becomes `Deleted` by compare-and-swap -> no pins? -> its objects go -> its own pins in other folders go
//! ```
//!
//! From the swap on nobody makes a fork of it, for whoever does reads the root behind the pin. So the pins that are
//! listed afterwards are all that there will ever be: each is of a fork that lives, of one that will not come (its
//! child is burned at once), or of a reader. While there is one, everything stays.
//!
//! A name comes again by a compare-and-swap of its tombstone, once that holds nothing: the root is never absent
//! again, so a create that was on its way for longer finds no room. The epoch goes on, and only objects of epochs up
//! to the tombstone's are deleted: whoever purges late does not touch what the name's next volume has.

use std::collections::{BTreeSet, VecDeque};

use blockcache::{Epoch, Id};
use futures_util::{StreamExt, TryStreamExt};
use world::{Listed, World};

use super::bucket::{Bucket, exists, vanished};
use super::home::Swapped;
use super::name::VolumeName;
use super::pin::Pin;
use super::pins::{Cleans, Held, PinBook};
use super::restore::{in_use, outrun};
use super::root::{Home, Root, State, Stored};
use super::sweep::parse;
use super::{VolumeError, retry};

const PAGE: usize = 1000;
const DELETES_MAX: usize = 8;
/// Looks at the pins: a child that does not come is burned by the first, its pin goes by the next.
const LOOKS_MAX: usize = 4;
/// Volumes that one purge looks at, up the tree of forks.
const VOLUMES_MAX: usize = 1000;

/// What a purge found and did, of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub name: String,
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    /// Who needs what it holds, for people: then nothing was deleted.
    pub held_by: Option<String>,
}

impl<W: World> Bucket<W> {
    /// Makes a tombstone of a detached volume: nobody opens or forks it from now on. Refused while it is open
    /// anywhere, of a member of a group, and if another volume has the name: whoever was slow does not delete what came
    /// next. May be repeated. A fork of a group that was never formed is given up by this.
    pub async fn entomb(&self, name: &str, volume: Id) -> Result<(), VolumeError> {
        let name = VolumeName::parse(name)?;
        let base = self.read_root(&name).await?;
        let base = base.ok_or_else(|| vanished(&name))?;
        if base.root.volume != volume.0 {
            return Err(another(&name));
        }
        if let Home::Group(group) = &base.home {
            return Err(VolumeError::Invalid(format!(
                "volume `{name}` is a member of group `{}` (with {}), and is not deleted out of it: dissolve the group first",
                group.group.name,
                group.group.names()
            )));
        }
        match base.root.state {
            State::Deleted => return Ok(()),
            State::Detached | State::Pending => {}
            State::Open | State::Suspended => return Err(in_use(&base.root)),
        }
        let root = self.tombstone(&base.root);
        match self.swap(&name, &base, root).await? {
            Swapped::Landed(_) => Ok(()),
            Swapped::Lost(now) if now.root.volume != volume.0 => Err(another(&name)),
            Swapped::Lost(now) if now.root.state == State::Deleted => Ok(()),
            Swapped::Lost(now) => Err(outrun(&now.root)),
        }
    }

    /// What takes the place of a root for good.
    fn tombstone(&self, root: &Root) -> Root {
        let mut tomb = Root {
            owner: None,
            state: State::Deleted,
            snapshots: Vec::new(),
            ..self.after(root)
        };
        // Whoever reads the root does not look for what will be gone.
        (tomb.content.map, tomb.content.tail) = (None, Vec::new());
        tomb
    }

    /// Burns a member of a fork of a group, which nobody has opened: its group is given up first, or it could be formed
    /// still, and its members need what is not held any more (`docs/model.md`, mistake `burns-undissolved`). Nothing is
    /// done if it was formed meanwhile.
    pub(super) async fn abandon(
        &self,
        name: &VolumeName,
        pending: &Stored,
    ) -> Result<(), VolumeError> {
        let root = self.tombstone(&pending.root);
        match Box::pin(self.swap(name, pending, root)).await? {
            // No fork of it was made, and nobody reads it.
            Swapped::Landed(now) => self.unpin(&now.root).await,
            Swapped::Lost(_) => Ok(()),
        }
    }

    /// Deletes what a tombstone holds, and then what those hold that were kept for it alone. `tell` hears of each
    /// object. May be repeated, and may stop anywhere.
    pub async fn bury(
        &self,
        name: &str,
        tell: &impl Fn(&Purged),
    ) -> Result<Vec<Purged>, VolumeError> {
        let mut next = VecDeque::from([VolumeName::parse(name)?]);
        let (mut all, mut done, mut looks) = (Vec::new(), BTreeSet::new(), 0);
        while let Some(name) = next.pop_front() {
            if looks == VOLUMES_MAX || done.contains(&name) {
                continue;
            }
            looks += 1;
            let stored = self.read_root(&name).await?;
            let tomb = stored.filter(|stored| stored.root.state == State::Deleted);
            let Some(tomb) = tomb else {
                done.insert(name);
                continue;
            };
            let purged = Box::pin(self.bury_one(&name, &tomb, tell)).await?;
            if purged.held_by.is_none() {
                done.insert(name);
                for named in &tomb.root.volumes[1..] {
                    next.push_back(VolumeName::parse(&named.name)?);
                }
            }
            // One that was held may not be any more.
            all.retain(|before: &Purged| before.name != purged.name);
            all.push(purged);
        }
        Ok(all)
    }

    /// The tombstone under a name that is wanted for another volume. An error if anybody needs what it holds.
    pub(super) async fn vacant(&self, name: &VolumeName) -> Result<Stored, VolumeError> {
        let stored = self.read_root(name).await?;
        let tomb = stored.filter(|stored| stored.root.state == State::Deleted);
        let tomb = tomb.ok_or_else(|| exists(name))?;
        let purged = Box::pin(self.bury_one(name, &tomb, &|_| {})).await?;
        match purged.held_by {
            None => Ok(tomb),
            Some(by) => Err(VolumeError::Needed {
                name: name.to_string(),
                by,
            }),
        }
    }

    /// Puts another volume's first root in the place of a tombstone. Whoever makes a fork finds it made also if it
    /// was opened since its own answer was lost; who creates a volume to own it must not take that for its own.
    pub(super) async fn reuse(
        &self,
        name: &VolumeName,
        tomb: &Stored,
        root: Root,
    ) -> Result<Stored, VolumeError> {
        let fork = root.parent.is_some().then_some(root.volume);
        match Box::pin(self.swap(name, tomb, root)).await? {
            Swapped::Landed(now) => Ok(*now),
            Swapped::Lost(now)
                if Some(now.root.volume) == fork && now.root.state != State::Deleted =>
            {
                Ok(*now)
            }
            Swapped::Lost(_) => Err(exists(name)),
        }
    }

    pub(super) async fn bury_one(
        &self,
        name: &VolumeName,
        tomb: &Stored,
        tell: &impl Fn(&Purged),
    ) -> Result<Purged, VolumeError> {
        let mut purged = Purged {
            name: name.to_string(),
            ..Purged::default()
        };
        purged.held_by = self.holders(name, &tomb.root).await?;
        #[cfg(feature = "planted")]
        if self.is_planted(super::Planted::PurgeHeld) {
            purged.held_by = None;
        }
        if purged.held_by.is_some() {
            return Ok(purged);
        }
        let mut after: Option<String> = None;
        loop {
            let (world, store, prefix) = (self.world(), self.store(), name.prefix());
            let page = retry::list(world, store, &prefix, after.as_deref(), PAGE).await?;
            let own = page.iter().filter(|it| is_of(it, tomb.root.epoch));
            let deleted = own.map(|it| async {
                retry::delete(world, store, &it.key).await?;
                Ok::<_, VolumeError>(it.size)
            });
            let mut deleted = futures_util::stream::iter(deleted).buffer_unordered(DELETES_MAX);
            while let Some(bytes) = deleted.try_next().await? {
                purged.deleted_objects += 1;
                purged.deleted_bytes += bytes;
                tell(&purged);
            }
            drop(deleted);
            after = page.last().map(|listed| listed.key.clone());
            if page.len() < PAGE {
                break;
            }
        }
        self.unpin(&tomb.root).await?;
        Ok(purged)
    }

    /// Who needs what the tombstone holds, as a text. Forks that do not come are given up at once.
    async fn holders(&self, name: &VolumeName, root: &Root) -> Result<Option<String>, VolumeError> {
        let (book, volume) = (PinBook::default(), Id(root.volume));
        let mut held = Held::default();
        for _ in 0..LOOKS_MAX {
            let looked = self.held(name, volume, &book, Some(Cleans::Purged));
            let looked = Box::pin(looked).await?;
            // What a look before this one read is in the book, and has no name there.
            let mut forks = std::mem::take(&mut held.forks);
            held = looked;
            held.forks.append(&mut forks);
            if held.blocked_by.is_none() {
                break;
            }
        }
        if held.blocked_by.is_none() && held.cuts.is_empty() {
            return Ok(None);
        }
        let forks: Vec<String> = held.forks.into_iter().collect();
        Ok(Some(match (forks.is_empty(), held.blocked_by) {
            (false, _) => format!("forks of it: {}", forks.join(", ")),
            (true, Some(pin)) => format!("`{pin}`, which is not understood yet"),
            (true, None) => "somebody who reads it on another node".to_owned(),
        }))
    }

    /// Nothing of the volume is left that could name anything.
    async fn unpin(&self, root: &Root) -> Result<(), VolumeError> {
        let pin = Pin {
            child: root.volume,
            name: root.name.clone(),
            cut: None,
            over: None,
            reader: None,
        };
        for named in &root.volumes[1..] {
            retry::delete(self.world(), self.store(), &pin.key(&named.name)).await?;
        }
        Ok(())
    }

    /// The same volume, one change later.
    pub(super) fn after(&self, root: &Root) -> Root {
        Root {
            predecessor: Some(root.as_predecessor()),
            epoch: root.epoch + 1,
            nonce: self.world().random_id(),
            ..root.clone()
        }
    }
}

fn another(name: &VolumeName) -> VolumeError {
    VolumeError::Invalid(format!(
        "volume `{name}` is another one by now than the one that was to be deleted; it stays"
    ))
}

fn is_of(listed: &Listed, epoch: u64) -> bool {
    parse(listed).is_some_and(|found| Epoch(found.epoch) <= Epoch(epoch))
}
