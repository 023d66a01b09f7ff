//! Opening a volume: asks the store, decides ([`super::decide`]), performs.
//!
//! The order of effects is the argument: stale records are set aside before anything can be
//! attached over them; the intent to take a volume is durable before the compare-and-swap; the new
//! epoch is durable in the log before the first write can be answered. A crash between any two
//! leaves a root that names this cache as owner, and the next open takes it again.

use std::rc::Rc;

use blockcache::{CacheError, Epoch, Hold, Id, Intent, LocalVolume, Opened};
use world::World;

use super::decide::{Ours, Plan, Records, Refusal, Seen, decide};
use super::document::owner_text;
use super::shelf::Asked;
use super::site::Site;
use super::{Export, Parts};
use crate::device::ConnectError;
use crate::sync;
use crate::volume::{RootView, Volume, VolumeError};

/// How often an open that lost a race looks again.
const OPEN_ATTEMPTS_MAX: u32 = 4;

/// What the opener wants beyond what is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) create_bytes: Option<u64>,
    /// Take the volume from another owner, if the root still has this epoch.
    pub(crate) force: Option<Epoch>,
}

/// How an attempt ended.
enum Attempted<W: World> {
    Opened(Rc<Export<W>>),
    /// Somebody else changed the root meanwhile: look again.
    Raced,
}

impl<W: World> Site<W> {
    /// Opens a volume, read-write if it may be, and starts its sync task.
    pub(crate) async fn open(
        self: &Rc<Self>,
        name: &str,
        wish: Wish,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        for _attempt in 0..OPEN_ATTEMPTS_MAX {
            let asked = self.shelf.ask(name).await;
            if let Attempted::Opened(export) = self.perform(name, wish, asked).await? {
                if export.local().is_some() {
                    sync::start(self, &export);
                }
                return Ok(export);
            }
        }
        let text = format!("`{name}`: others change its root all the time; try again");
        Err(ConnectError::Unavailable(text))
    }

    /// What the log knows under a name: the volume of the root, if there are several.
    pub(crate) fn local_volume(&self, name: &str, root: Option<&RootView>) -> Option<LocalVolume> {
        let mut found: Vec<LocalVolume> = self.cache.volumes();
        found.retain(|local| local.name == name);
        let id = root.map(|root| root.volume);
        found.sort_by_key(|local| (Some(local.id) != id, !local.attached));
        found.into_iter().next()
    }

    /// What opening would mean now.
    pub(crate) fn plan(&self, name: &str, wish: Wish, seen: &Seen) -> Plan {
        let root = match seen {
            Seen::Root(root) => Some(root),
            Seen::Absent | Seen::Unreachable(_) => None,
        };
        let local = self.local_volume(name, root);
        let ours = Ours {
            cache: self.owner.cache,
            local: local.as_ref(),
            create_bytes: wish.create_bytes,
        };
        match (decide(seen, ours), wish.force, root) {
            (Plan::ReadOnly { records }, Some(epoch), Some(root)) if root.epoch == epoch => {
                Plan::Take { records }
            }
            (plan, _, _) => plan,
        }
    }

    async fn perform(
        &self,
        name: &str,
        wish: Wish,
        asked: Asked<W>,
    ) -> Result<Attempted<W>, ConnectError> {
        let (seen, volume) = (asked.seen, asked.volume);
        let plan = self.plan(name, wish, &seen);
        let root = match &seen {
            Seen::Root(root) => Some(root),
            Seen::Absent | Seen::Unreachable(_) => None,
        };
        let local = self.local_volume(name, root);
        match (plan, volume, local) {
            (Plan::Refuse(refusal), _, _) => Err(refused(name, refusal)),
            (Plan::Create { size_bytes }, _, _) => self.create(name, size_bytes).await,
            (Plan::ResumeUnasked, _, Some(local)) => self.resume_unasked(local).await,
            (Plan::Resume { records }, Some(volume), Some(local)) => {
                self.set_aside(&local, records).await?;
                self.attach(volume.root(), Some(volume)).await
            }
            (Plan::Take { records }, Some(volume), local) => {
                if let Some(local) = local.filter(|l| l.id == volume.root().volume) {
                    self.set_aside(&local, records).await?;
                }
                self.take(volume, wish.force).await
            }
            (Plan::ReadOnly { records }, Some(volume), local) => {
                if let Some(local) = local.filter(|l| l.id == volume.root().volume) {
                    self.set_aside(&local, records).await?;
                }
                Ok(Attempted::Opened(self.read_only(volume)))
            }
            (plan, volume, local) => {
                unreachable!("{plan:?} with volume {volume:?} and local {local:?}")
            }
        }
    }

    async fn create(&self, name: &str, size_bytes: u64) -> Result<Attempted<W>, ConnectError> {
        let failed = |error: VolumeError| unavailable(name, &error);
        let bucket = self.shelf.bucket().await.map_err(failed)?;
        let nonce = Id(self.world.random_id());
        match Box::pin(bucket.create(name, size_bytes, &self.owner, nonce)).await {
            Ok(volume) => {
                tracing::info!(export = name, size_bytes, "created");
                self.attach(volume.root(), Some(volume)).await
            }
            Err(error) => {
                // Another creator may have won, and our own lost answer may have been a success:
                // the root says which.
                match bucket.root(name).await {
                    Ok(Some(_)) => Ok(Attempted::Raced),
                    Ok(None) | Err(_) => Err(failed(error)),
                }
            }
        }
    }

    async fn take(
        &self,
        volume: Volume<W>,
        force: Option<Epoch>,
    ) -> Result<Attempted<W>, ConnectError> {
        let before = volume.root();
        let nonce = Id(self.world.random_id());
        let intent = Intent {
            nonce,
            cut: before.cut,
            replaces: before.etag,
        };
        let intended = self.cache.intend(before.volume, intent, Hold::Keep).await;
        intended.map_err(|error| cache_failed(&before.name, &error))?;
        let force = force.filter(|_| owned_elsewhere(&before.owner, self.owner.cache));
        match Box::pin(volume.take(&self.owner, nonce, force)).await {
            Ok(root) => {
                tracing::info!(export = %root.name, epoch = %root.epoch, from = %owner_text(before.owner.as_ref()), cut = %root.cut, cut_time = %root.cut_time, "taken");
                self.attach(root, Some(volume)).await
            }
            Err(
                VolumeError::Fenced { .. }
                | VolumeError::Owned { .. }
                | VolumeError::Vanished { .. },
            ) => Ok(Attempted::Raced),
            Err(error) => Err(unavailable(&before.name, &error)),
        }
    }

    async fn resume_unasked(&self, local: LocalVolume) -> Result<Attempted<W>, ConnectError> {
        tracing::warn!(export = %local.name, epoch = %local.epoch, "resumed from the log: the store cannot be asked");
        let opened = Opened {
            id: local.id,
            name: local.name,
            size_bytes: local.size_bytes,
            epoch: local.epoch,
            nonce: local.nonce,
            published: local.published,
        };
        self.attach_opened(opened, None).await
    }

    async fn attach(
        &self,
        root: RootView,
        volume: Option<Volume<W>>,
    ) -> Result<Attempted<W>, ConnectError> {
        let opened = Opened {
            id: root.volume,
            name: root.name,
            size_bytes: root.size_bytes,
            epoch: root.epoch,
            nonce: root.nonce,
            published: root.cut,
        };
        self.attach_opened(opened, volume).await
    }

    async fn attach_opened(
        &self,
        opened: Opened,
        volume: Option<Volume<W>>,
    ) -> Result<Attempted<W>, ConnectError> {
        let attached = Box::pin(self.cache.attach(opened.clone())).await;
        let local = attached.map_err(|error| cache_failed(&opened.name, &error))?;
        Ok(Attempted::Opened(Export::new(Parts {
            world: self.world.clone(),
            cache: self.cache.clone(),
            name: opened.name,
            id: opened.id,
            size_bytes: opened.size_bytes,
            local: Some(local),
            volume,
        })))
    }

    fn read_only(&self, volume: Volume<W>) -> Rc<Export<W>> {
        let root = volume.root();
        tracing::info!(export = %root.name, owner = %owner_text(root.owner.as_ref()), epoch = %root.epoch, cut = %root.cut, "opened read-only: another node owns the volume; `POST /api/exports/{}/promote` takes it", root.name);
        Export::new(Parts {
            world: self.world.clone(),
            cache: self.cache.clone(),
            name: root.name,
            id: root.volume,
            size_bytes: root.size_bytes,
            local: None,
            volume: Some(volume),
        })
    }

    /// Rule 11: what somebody else's publish made stale is never read again; what was never
    /// published is kept for a person.
    async fn set_aside(&self, local: &LocalVolume, records: Records) -> Result<(), ConnectError> {
        let failed = |error: CacheError| cache_failed(&local.name, &error);
        match records {
            Records::Keep => {}
            Records::Drop => {
                self.cache.forget(local.id).await.map_err(failed)?;
                tracing::info!(export = %local.name, "cached pages dropped: the volume was published elsewhere since");
            }
            Records::Salvage(_) => {
                let bytes = self.cache.salvage(local.id).await.map_err(failed)?;
                tracing::error!(export = %local.name, volume = %local.id, bytes, from_seq = local.published.0 + 1, to_seq = local.last.0, "writes that were answered here were never published, and another owner published since; they are kept in the log as salvage and are not part of the volume");
            }
        }
        Ok(())
    }
}

fn owned_elsewhere(owner: &Option<crate::volume::Owner>, here: Id) -> bool {
    owner.as_ref().is_some_and(|owner| owner.cache != here)
}

fn unavailable(name: &str, error: &VolumeError) -> ConnectError {
    tracing::warn!(export = name, %error, "the volume cannot be opened");
    ConnectError::Unavailable(format!("`{name}` cannot be opened: {error}"))
}

fn cache_failed(name: &str, error: &CacheError) -> ConnectError {
    tracing::error!(export = name, %error, "the cache does not take the volume");
    ConnectError::Unavailable(format!("`{name}` cannot be opened: {error}"))
}

/// The sentence for the person at the client.
pub(crate) fn refused(name: &str, refusal: Refusal) -> ConnectError {
    match refusal {
        Refusal::Unknown => ConnectError::Unknown(format!(
            "no export `{name}`; create it with `PUT /api/exports/{name}`, or set `auto_create_size_gb`"
        )),
        Refusal::Vanished => ConnectError::Unavailable(format!(
            "`{name}` is known to this node's cache, but its root is not in the store; restore the object, or drop the local copy with `DELETE /api/exports/{name}`"
        )),
        Refusal::Deleted => ConnectError::Unknown(format!("export `{name}` was deleted")),
        Refusal::NotInThisVersion => ConnectError::Refused(format!(
            "`{name}` is pending or suspended; this version cannot open it"
        )),
        Refusal::Unavailable(why) => ConnectError::Unavailable(format!(
            "`{name}` cannot be opened: the store cannot be asked ({why})"
        )),
    }
}
