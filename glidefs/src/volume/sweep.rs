//! The sweep: deletes objects that no root ever named and none will: left behind by uploads of the dead (rule 21).
//!
//! An object that the root does not name may be on its way into the next one. So its epoch decides: one that is
//! lower than that of a root which was read *after* the listing can be named by nobody any more. Of the root's
//! own epoch only the owner knows what is under way. Age decides nothing (`docs/model.md`, mistake `sweep-by-age`).

use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::{Epoch, Id};
use futures_util::{StreamExt, TryStreamExt};
use world::store::Part;
use world::{Listed, StoreError, StoreErrorKind, World};

use super::books::{known, load};
use super::bucket::{load_map, vanished};
use super::extent::ObjectName;
use super::ledger::ObjectId;
use super::name::object_key;
use super::pins::PinBook;
use super::reader::{Reader, Volumes};
use super::root::{Root, State, Stored};
use super::runs::Map;
use super::sealed::{Kind, TRAILER_BYTES, volume_of};
use super::{Fresh, Hold, Uploaded, Volume, VolumeError, retry};

/// Of a volume, with objects that have an epoch in their keys.
const FOLDERS: [&str; 2] = ["seg", "map"];
const PAGE: usize = 1000;
const DELETES_MAX: usize = 8;
/// Objects that one sweep looks at: bounds its memory. The next one goes on.
const FOUND_MAX: usize = 1 << 20;

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub listed_objects: u64,
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    /// What is needed is not known, so nothing was deleted.
    pub kept_all: Option<KeptAll>,
}

/// Why a sweep deleted nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptAll {
    /// The ledger does not know all that snapshots need.
    HasGaps,
    /// A tombstone names nothing, and forks may need all that it held. What is not needed goes with the purge.
    Deleted,
}

/// Whose leavings are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Of one epoch: a LIST or two, where it ended cleanly.
    Epoch(Epoch),
    /// Lists everything that the volume has.
    All,
}

pub(super) struct Found {
    key: String,
    id: ObjectId,
    pub(super) epoch: u64,
    bytes: u64,
}

/// What a volume has of its own.
enum Named {
    All(Box<Names>),
    Unknown(KeptAll),
}

struct Names {
    root: Root,
    /// The root's epoch is this handle's.
    is_own: bool,
    /// Everything that the root knows of.
    ids: BTreeSet<ObjectId>,
}

impl<W: World> Volume<W> {
    /// One sweep. Any node may, whoever owns the volume; of the epoch that is going on only its owner finds anything.
    pub async fn sweep(&self, scope: Scope, deletes: super::Deletes) -> Result<Swept, VolumeError> {
        let found = self.found(scope).await?;
        let mut swept = Swept {
            listed_objects: found.len() as u64,
            ..Swept::default()
        };
        if found.is_empty() {
            return Ok(swept);
        }
        // Before the root is read: what is published in between is in the root then.
        let under_way = self.inner.fresh.borrow().clone();
        let Names { root, is_own, ids } = match Box::pin(self.named()).await? {
            Named::All(names) => *names,
            Named::Unknown(why) => {
                swept.kept_all = Some(why);
                return Ok(swept);
            }
        };
        let may_go = |it: &Found| match it.epoch.cmp(&root.epoch) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => is_own && !under_way.contains_key(&it.id),
            // Of an owner that came after the root was read.
            std::cmp::Ordering::Greater => false,
        };
        #[cfg(feature = "planted")]
        let may_go =
            |it: &Found| may_go(it) || self.inner.bucket.is_planted(super::Planted::SweepByAge);
        let mut orphans: Vec<Found> = found.into_iter().filter(may_go).collect();
        orphans.retain(|it| !ids.contains(&it.id));
        let orphans = Box::pin(self.spare(orphans, Id(root.volume))).await?;
        swept.deleted_objects = orphans.len() as u64;
        swept.deleted_bytes = orphans.iter().map(|it| it.bytes).sum();
        if deletes == super::Deletes::Not {
            return Ok(swept);
        }
        let bucket = &self.inner.bucket;
        let deleted = orphans.iter().map(|it| async move {
            Ok::<_, VolumeError>(retry::delete(bucket.world(), bucket.store(), &it.key).await?)
        });
        futures_util::stream::iter(deleted)
            .buffer_unordered(DELETES_MAX)
            .try_collect::<()>()
            .await?;
        Ok(swept)
    }

    /// Without what forks of another volume may need: an object's key says an epoch and no volume, and where a root was
    /// lost and its name given to a fork, both have theirs in one folder (`docs/decisions/0022-names-of-forks.md`). Who
    /// made an object stands at its end; only if somebody else did, the pins are read.
    async fn spare(&self, orphans: Vec<Found>, volume: Id) -> Result<Vec<Found>, VolumeError> {
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        let looked = orphans.into_iter().map(|it| async move {
            let end = Part::Suffix(TRAILER_BYTES as u64);
            let got = retry::get(bucket.world(), bucket.store(), &it.key, end).await;
            match got {
                Ok(object) => Ok((volume_of(&object.bytes) == Some(volume), it)),
                // Gone already, whosever it was.
                Err(error) if error.kind == StoreErrorKind::NotFound => Ok((true, it)),
                Err(error) if is_passing(&error) => Err(VolumeError::from(error)),
                // One that cannot be read (another storage class, a policy) must not stop the sweep for good.
                Err(_) => Ok((false, it)),
            }
        });
        let looked = futures_util::stream::iter(looked).buffered(DELETES_MAX);
        let looked: Vec<(bool, Found)> = looked.try_collect().await?;
        let (own, others): (Vec<_>, Vec<_>) = looked.into_iter().partition(|(is_own, _)| *is_own);
        let mut may_go = own;
        if !others.is_empty() {
            let book = PinBook::default();
            let held = Box::pin(bucket.held(name, volume, &book, None)).await?;
            // What a purged volume of the name left late is nobody's.
            if !held.has_strangers && held.blocked_by.is_none() {
                may_go.extend(others);
            }
        }
        Ok(may_go.into_iter().map(|(_, it)| it).collect())
    }

    /// Looks once for what an epoch left that did not end with a detach. To be called after a publish.
    pub(crate) async fn sweep_leavings(&self) -> Result<(), VolumeError> {
        let leavings = {
            let state = self.inner.state.borrow();
            state.leavings.filter(|_| state.is_proved)
        };
        if let Some(epoch) = leavings {
            let swept = self.sweep(Scope::Epoch(epoch), super::Deletes::Really);
            let swept = Box::pin(swept).await?;
            self.inner.state.borrow_mut().leavings = None;
            if swept.deleted_objects > 0 {
                tracing::info!(
                    export = %self.inner.name,
                    objects = swept.deleted_objects,
                    bytes = swept.deleted_bytes,
                    "swept what an interrupted owner had left"
                );
            }
        }
        Ok(())
    }

    /// Deletes what this handle made and no root names, after the publish with which it gave the volume up: nothing
    /// that it sent before can land any more.
    pub(crate) async fn discard_fresh(&self) -> Result<(), VolumeError> {
        assert_eq!(self.inner.state.borrow().hold, Hold::Free, "it is given up");
        // A pass that is under way makes more of them.
        let turn = self.inner.tidying.acquire().await;
        let _turn = turn.expect("nobody closes the semaphore");
        // A publish may have landed without an answer, and the one that repeated it planned other objects.
        let Named::All(named) = Box::pin(self.named()).await? else {
            return Ok(());
        };
        let mut fresh = std::mem::take(&mut *self.inner.fresh.borrow_mut());
        fresh.retain(|id, _| !named.ids.contains(id));
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        for object in fresh.into_values() {
            for folder in FOLDERS {
                let key = object_key(name.as_str(), folder, object.epoch, object.id);
                retry::delete(bucket.world(), bucket.store(), &key).await?;
            }
        }
        Ok(())
    }

    /// The same for segments of a cut that will not be published.
    pub(crate) async fn give_back_uploads(&self, uploads: &[Uploaded]) {
        self.give_back(&Fresh::default(), uploads).await;
    }

    /// Deletes what work made that came to nothing: the edit that would have brought it was never finished, so no root
    /// names it and none will. Its names stay among the fresh ones: what was sent without an answer may land later, and
    /// goes when the volume is given up, as does what cannot be deleted now.
    pub(crate) async fn give_back(&self, made: &Fresh, uploads: &[Uploaded]) {
        let parts: Vec<ObjectName> = made.borrow().values().copied().collect();
        let parts = parts.into_iter().map(|part| (Kind::MapPart, part));
        let segments = uploads.iter();
        let segments = segments.map(|it| (Kind::Segment, it.reference.name()));
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        let deleted = parts.chain(segments).map(|(kind, object)| async move {
            let key = object_key(name.as_str(), kind.folder(), object.epoch, object.id);
            retry::delete(bucket.world(), bucket.store(), &key).await
        });
        let deleted = futures_util::stream::iter(deleted)
            .buffer_unordered(DELETES_MAX)
            .try_collect::<()>();
        if let Err(error) = deleted.await {
            tracing::info!(export = %name, %error, "what a failed pass over the map wrote stays in the store until the volume is given up");
        }
    }

    async fn found(&self, scope: Scope) -> Result<Vec<Found>, VolumeError> {
        let bucket = &self.inner.bucket;
        let mut found = Vec::new();
        for folder in FOLDERS {
            let prefix = match scope {
                Scope::Epoch(epoch) => {
                    format!("{}{folder}/{:016x}-", self.inner.name.prefix(), epoch.0)
                }
                Scope::All => format!("{}{folder}/", self.inner.name.prefix()),
            };
            let mut after: Option<String> = None;
            loop {
                let after_key = after.as_deref();
                let page = retry::list(bucket.world(), bucket.store(), &prefix, after_key, PAGE);
                let page = page.await?;
                found.extend(page.iter().filter_map(parse));
                after = page.last().map(|listed| listed.key.clone());
                if page.len() < PAGE || found.len() >= FOUND_MAX {
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn named(&self) -> Result<Named, VolumeError> {
        let bucket = &self.inner.bucket;
        let stored = bucket.read_root(&self.inner.name).await?;
        let stored = stored.ok_or_else(|| vanished(&self.inner.name))?;
        let is_deleted = stored.root.state == State::Deleted;
        #[cfg(feature = "planted")]
        let is_deleted = is_deleted && !bucket.is_planted(super::Planted::SweepTombstone);
        if is_deleted {
            return Ok(Named::Unknown(KeptAll::Deleted));
        }
        let (is_own, map, reader) = self.of_root(&stored).await?;
        if map.ledger.has_gaps {
            return Ok(Named::Unknown(KeptAll::HasGaps));
        }
        let root = stored.root;
        let mut ids = BTreeSet::new();
        let contents = root.snapshots.iter().map(|it| &it.content);
        for content in contents.chain([&root.content]) {
            ids.extend(content.map.map(|map| map.id));
            ids.extend(content.tail.iter().map(super::TailSegment::id));
        }
        let ledger = &map.ledger;
        ids.extend(ledger.chunks.iter().map(|chunk| chunk.object.id));
        let mut add = |table: &super::ledger::Table| {
            ids.extend(table.live.iter().map(|entry| entry.id));
            ids.extend(table.dead.iter().map(|dead| dead.id));
        };
        add(&ledger.recent);
        for (at, chunk) in ledger.chunks.iter().enumerate() {
            let Ok(table) = known(load(&reader, chunk, ledger.next(at)).await)? else {
                return Ok(Named::Unknown(KeptAll::HasGaps));
            };
            add(&table);
        }
        Ok(Named::All(Box::new(Names { root, is_own, ids })))
    }

    async fn of_root(&self, stored: &Stored) -> Result<(bool, Map, Reader<W>), VolumeError> {
        {
            let state = self.inner.state.borrow();
            if state.stored.is_same_as(stored) {
                let own = state.hold == Hold::Held && state.is_proved;
                return Ok((own, state.map.clone(), self.reader(&state)));
            }
            if state.stored.root.volume != stored.root.volume {
                return Err(VolumeError::Invalid(format!(
                    "volume `{}` is another one by now",
                    self.inner.name
                )));
            }
        }
        let bucket = self.inner.bucket.clone();
        let volumes = Rc::new(Volumes::new(&stored.root, bucket.prefix_keys())?);
        let reader = Reader { bucket, volumes };
        let map = load_map(&reader, stored.root.content.map.as_ref()).await?;
        let own = {
            let state = self.inner.state.borrow();
            let same = state.stored.root.epoch == stored.root.epoch;
            same && state.hold == Hold::Held && state.is_proved
        };
        Ok((own, map, reader))
    }
}

fn is_passing(error: &StoreError) -> bool {
    matches!(error.kind, StoreErrorKind::Retry | StoreErrorKind::Unknown)
}

/// What the key of an object says; none if it is not one that we make.
pub(super) fn parse(listed: &Listed) -> Option<Found> {
    let (folder, name) = listed.key.rsplit_once('/')?;
    if !FOLDERS.iter().any(|it| folder.ends_with(&format!("/{it}"))) {
        return None;
    }
    let (epoch, id) = name.split_once('-')?;
    let epoch = u64::from_str_radix(epoch, 16).ok()?;
    let id = u128::from_str_radix(id, 16).ok()?;
    Some(Found {
        key: listed.key.clone(),
        id: id.to_be_bytes(),
        epoch,
        bytes: listed.size,
    })
}
