//! Opening a volume: asks the store, decides ([`super::decide`]), performs.
//!
//! The order of effects is the argument: stale records are dropped before anything can be attached
//! over them; the intent to take a volume is durable before the compare-and-swap; the new
//! epoch is durable in the log before the first write can be answered. A crash between any two
//! leaves a root that names this cache as owner, and the next open takes it again.

use std::rc::Rc;

use blockcache::{CacheError, CacheVolume, Epoch, Id, LocalVolume, Opened, Seq};
use world::World;

use super::base::Base;
use super::decide::{Ours, Plan, Records, Refusal, Seen, decide};
use super::document::owner_text;
use super::reader;
use super::registry::check_name;
use super::shelf::Asked;
use super::site::Site;
use super::{Export, Parts, Role};
use crate::device::ConnectError;
use crate::sync;
use crate::volume::{RootView, Volume, VolumeError};

/// How often an open that lost a race looks again.
const OPEN_ATTEMPTS_MAX: u32 = 4;

/// What the opener wants beyond what is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) create_bytes: Option<u64>,
    /// Create it also where a volume of the name was deleted.
    pub(crate) over_deleted: bool,
    /// Take the volume from another owner, if the root still has this epoch.
    pub(crate) force: Option<Epoch>,
    pub(crate) floor: Floor,
    pub(crate) purpose: Purpose,
    /// What another node owns is announced writable all the same: it is prepared.
    pub(crate) prepared: bool,
}

/// What it is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Clients, or work of ours: one that was prepared stays so.
    #[default]
    Serve,
    /// To be promoted later, while its owner goes on.
    Prepare,
    /// To be its owner, also in the place of one that was prepared.
    Promote,
}

/// An older state of the volume is not opened (rule 24). Both numbers grow with every owner and every
/// publish, so either may be asked for alone; zero asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) epoch: Epoch,
    pub(crate) seq: Seq,
}

impl Floor {
    /// What is there, root or log, must be as new as what somebody saw.
    pub(crate) fn check(self, name: &str, epoch: Epoch, cut: Seq) -> Result<(), ConnectError> {
        if epoch >= self.epoch && cut >= self.seq {
            return Ok(());
        }
        let Self { epoch: min, seq } = self;
        Err(ConnectError::Refused(format!(
            "`{name}` is at epoch {epoch} and cut {cut}, older than the epoch {min} and cut {seq} that were asked for: \
             its root `nbd/{name}/root` was rolled back, or is another volume's; bring the newer one back, or ask for less"
        )))
    }
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
        // The store cannot know it yet.
        if let Some(local) = self.pending_fork(name) {
            return self.open_fork(local, wish);
        }
        for _attempt in 0..OPEN_ATTEMPTS_MAX {
            let asked = self.shelf.ask(name).await;
            #[cfg(feature = "planted")]
            let wish = self.unasked(wish, &asked.seen);
            if let Attempted::Opened(export) = self.perform(name, wish, asked).await? {
                if export.role() == Role::ReadWrite {
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
        self.local_volumes(name, root).into_iter().next()
    }

    /// All that the log knows under a name, the volume of the root first.
    pub(crate) fn local_volumes(&self, name: &str, root: Option<&RootView>) -> Vec<LocalVolume> {
        let mut found: Vec<LocalVolume> = self.cache.volumes();
        let id = root.map(|root| root.volume);
        // A damaged log may know a volume by its id alone.
        found.retain(|local| local.name == name || Some(local.id) == id);
        found.sort_by_key(|local| (Some(local.id) != id, !local.attached));
        found
    }

    /// What the log knows of a fork that is to come into the store under this name.
    pub(crate) fn pending_fork(&self, name: &str) -> Option<LocalVolume> {
        let known = self.cache.volumes().into_iter();
        let mut pending = known.filter(|local| local.base.is_some() && local.attached);
        pending.find(|local| local.name == name)
    }

    /// Opens a fork that is here and not in the store. Its sync task brings it there.
    fn open_fork(
        self: &Rc<Self>,
        local: LocalVolume,
        wish: Wish,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        let gone = || ConnectError::Unavailable(format!("`{}` is not here any more", local.name));
        wish.floor
            .check(&local.name, local.epoch, local.published)?;
        if let Some(damage) = &local.damage {
            return Err(ConnectError::Refused(format!(
                "`{0}` is a fork that is not in the store yet, and writes to it are missing in this node's cache ({damage}); it stays closed until you accept their loss: `POST /api/exports/{0}/accept-loss` keeps what is before them, `DELETE /api/exports/{0}?accept_loss=true` drops the fork",
                local.name
            )));
        }
        let held = self.cache.volume(local.id).ok_or_else(gone)?;
        let base = Base::new(local.id, local.base.clone().ok_or_else(gone)?);
        self.lineage.add(&base);
        if let Some(parent) = self.lineage.writer(base.of.parent) {
            base.find(&parent);
        }
        let export = Export::new(Parts {
            world: self.world.clone(),
            cache: self.cache.clone(),
            role: Role::ReadWrite,
            meter: self.meters.of(&local.name),
            name: local.name,
            size_bytes: local.size_bytes,
            local: Some(held),
            volume: None,
            base: Some(base),
            read_wait: self.config.read_wait,
        });
        sync::start(self, &export);
        Ok(export)
    }

    /// What opening would mean now.
    pub(crate) fn plan(&self, name: &str, wish: Wish, seen: &Seen) -> Plan {
        let root = match seen {
            Seen::Root(root) => Some(root),
            Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
        };
        if let Some(fork) = self.pending_fork(name) {
            return match fork.damage {
                Some(what) => Plan::Refuse(Refusal::Damaged(what)),
                None => Plan::ResumeUnasked,
            };
        }
        let local = self.local_volume(name, root);
        #[cfg(feature = "planted")]
        let local = local.map(|local| self.planted(local, root));
        let ours = Ours {
            cache: self.owner.cache,
            local: local.as_ref(),
            create_bytes: wish.create_bytes,
            over_deleted: wish.over_deleted,
        };
        let plan = decide(seen, ours);
        let (Plan::ReadOnly, Some(force), Some(root)) = (&plan, wish.force, root) else {
            return plan;
        };
        if root.epoch != force {
            return plan;
        }
        // By force: as if its owner had let go of it.
        let unowned = RootView {
            owner: None,
            ..root.clone()
        };
        decide(&Seen::Root(unowned), ours)
    }

    #[cfg(feature = "planted")]
    fn unasked(&self, wish: Wish, seen: &Seen) -> Wish {
        let Seen::Root(root) = seen else {
            return wish;
        };
        let takes = self.config.takes_unasked && wish.purpose == Purpose::Promote;
        let force = wish.force.or(takes.then_some(root.epoch));
        Wish { force, ..wish }
    }

    #[cfg(feature = "planted")]
    fn planted(&self, local: LocalVolume, root: Option<&RootView>) -> LocalVolume {
        let nonce = root
            .filter(|_| self.config.trust_any_nonce)
            .map(|r| r.nonce);
        let forgets = self.config.forgets_intents;
        LocalVolume {
            nonce: nonce.unwrap_or(local.nonce),
            intents: if forgets { Vec::new() } else { local.intents },
            ..local
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
            Seen::Absent | Seen::Unreachable(_) | Seen::Unreadable(_) => None,
        };
        let local = self.local_volume(name, root);
        // Before anything is dropped or taken. Where the store cannot be asked, the log speaks for it.
        let known = match (&seen, &local) {
            (Seen::Root(root), _) => Some((root.epoch, root.cut)),
            (Seen::Unreachable(_), Some(local)) => Some((local.epoch, local.published)),
            (Seen::Unreachable(_), None) | (Seen::Absent | Seen::Unreadable(_), _) => None,
        };
        if let Some((epoch, cut)) = known {
            wish.floor.check(name, epoch, cut)?;
        }
        match (plan, volume, local) {
            (Plan::Refuse(refusal), _, _) => Err(refused(name, refusal)),
            (Plan::Create { size_bytes }, _, _) => self.create(name, size_bytes).await,
            (Plan::ResumeUnasked, _, Some(local)) => self.resume_unasked(local).await,
            (Plan::Resume { records }, Some(volume), Some(local)) => {
                self.resume(volume, &local, records).await
            }
            (Plan::Take { .. }, Some(volume), _) if wish.purpose == Purpose::Prepare => {
                self.read_only(volume, Role::Prepared).await
            }
            (Plan::Take { records }, Some(volume), local) => {
                let local = local.filter(|local| local.id == volume.root().volume);
                if let (Some(local), Records::Drop) = (&local, records) {
                    self.forget(local).await?;
                }
                self.take(volume, wish.force, local.is_some()).await
            }
            (Plan::Damaged { records }, Some(volume), Some(local)) => {
                Ok(Attempted::Opened(self.damaged(volume, &local, records)))
            }
            (Plan::ReadOnly, Some(volume), _) => {
                let role = match wish.prepared {
                    true => Role::Prepared,
                    false => Role::ReadOnly,
                };
                self.read_only(volume, role).await
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
            Err(error @ VolumeError::Needed { .. }) => {
                Err(ConnectError::Refused(error.to_string()))
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

    /// Goes on with the epoch that log and root agree on. Intents whose requests may still be on
    /// their way stay known: one that lands later is then ours, and not a stranger's.
    async fn resume(
        &self,
        volume: Volume<W>,
        local: &LocalVolume,
        records: Records,
    ) -> Result<Attempted<W>, ConnectError> {
        let root = volume.root();
        if volume.resume(&self.owner, local.epoch).is_err() {
            return Ok(Attempted::Raced);
        }
        if records == Records::Drop {
            self.forget(local).await?;
            return self.attach(root, Some(volume)).await;
        }
        let Some(held) = self.cache.volume(local.id) else {
            return Ok(Attempted::Raced);
        };
        adopt(&held, local, &root);
        // The one that was open before may have ended because this very root was not there for a moment.
        held.unfence();
        let opened = opened(&root);
        Ok(Attempted::Opened(self.export(
            Role::ReadWrite,
            opened,
            Some(held),
            Some(volume),
        )))
    }

    async fn take(
        &self,
        volume: Volume<W>,
        force: Option<Epoch>,
        known: bool,
    ) -> Result<Attempted<W>, ConnectError> {
        let before = volume.root();
        let nonce = Id(self.world.random_id());
        if known {
            // Should we die between the two: the next start knows that the new epoch is its own.
            let intent = Opened {
                nonce,
                ..opened(&before)
            };
            let intended = self.cache.intend_open(&intent).await;
            intended.map_err(|error| self.cache_failed(&before.name, &error))?;
        }
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
        let Some(held) = self.cache.volume(local.id) else {
            return Ok(Attempted::Raced);
        };
        held.unfence();
        tracing::warn!(export = %local.name, epoch = %local.epoch, "resumed from the log: the store cannot be asked");
        let opened = Opened {
            id: local.id,
            name: local.name,
            size_bytes: local.size_bytes,
            epoch: local.epoch,
            nonce: local.nonce,
            published: local.published,
        };
        Ok(Attempted::Opened(self.export(
            Role::ReadWrite,
            opened,
            Some(held),
            None,
        )))
    }

    async fn attach(
        &self,
        root: RootView,
        volume: Option<Volume<W>>,
    ) -> Result<Attempted<W>, ConnectError> {
        self.retire_namesakes(&root).await?;
        let opened = opened(&root);
        let attached = Box::pin(self.cache.attach(opened.clone())).await;
        let local = attached.map_err(|error| self.cache_failed(&root.name, &error))?;
        Ok(Attempted::Opened(self.export(
            Role::ReadWrite,
            opened,
            Some(local),
            volume,
        )))
    }

    /// Another volume that had this name is over. A start during an outage knows names alone, and must
    /// not resume that one in place of this.
    async fn retire_namesakes(&self, root: &RootView) -> Result<(), ConnectError> {
        let known = self.cache.volumes().into_iter();
        for old in known.filter(|l| l.name == root.name && l.id != root.volume && l.attached) {
            let Some(held) = self.cache.volume(old.id) else {
                continue;
            };
            let retired = held.detached().await;
            retired.map_err(|error| self.cache_failed(&root.name, &error))?;
            tracing::error!(export = %root.name, volume = %old.id, dirty_bytes = old.dirty_bytes, "the store holds another volume of this name now; unpublished writes of the old one are kept in the cache log (docs/runbooks/export-fenced.md)");
        }
        Ok(())
    }

    /// What is left of a volume of which unpublished writes are missing.
    fn damaged(&self, volume: Volume<W>, local: &LocalVolume, records: Records) -> Rc<Export<W>> {
        let root = volume.root();
        let held = match records {
            Records::Keep => self.cache.volume(local.id),
            // The store has more than that.
            Records::Drop => None,
        };
        // Each client that connects opens it anew.
        if let Some(held_back) = self.news("damaged", &root.name) {
            tracing::error!(export = %root.name, damage = local.damage, kept_seq = local.kept.0, held_back, "opened read-only: unpublished writes are missing; look at what is left, then accept the loss with `POST /api/exports/{}/accept-loss` (docs/runbooks/fsync-failed.md)", root.name);
        }
        self.export(Role::Damaged, opened(&root), held, Some(volume))
    }

    fn export(
        &self,
        role: Role,
        opened: Opened,
        local: Option<CacheVolume<W>>,
        volume: Option<Volume<W>>,
    ) -> Rc<Export<W>> {
        Export::new(Parts {
            world: self.world.clone(),
            cache: self.cache.clone(),
            role,
            meter: self.meters.of(&opened.name),
            name: opened.name,
            size_bytes: opened.size_bytes,
            local,
            volume,
            base: None,
            read_wait: self.config.read_wait,
        })
    }

    /// As `ReadOnly` or `Prepared`.
    async fn read_only(&self, volume: Volume<W>, role: Role) -> Result<Attempted<W>, ConnectError> {
        let root = volume.root();
        if owned_elsewhere(&root.owner, self.owner.cache)
            && let Some(local) = self.cache.volume(root.volume)
            && local.state().is_some_and(|state| state.attached)
        {
            // The epoch is over: no start during an outage may go on with it.
            let noted = local.detached().await;
            noted.map_err(|error| self.cache_failed(&root.name, &error))?;
            tracing::error!(export = %root.name, dirty_bytes = local.state().map_or(0, |s| s.dirty_bytes), "another node took the volume; unpublished writes of this node are kept in its log (docs/runbooks/export-fenced.md)");
        }
        if let (Role::ReadOnly, Some(held_back)) = (role, self.news("read-only", &root.name)) {
            tracing::info!(export = %root.name, owner = %owner_text(root.owner.as_ref()), epoch = %root.epoch, cut = %root.cut, held_back, "opened read-only: another node owns the volume; `POST /api/exports/{}/promote` takes it", root.name);
        }
        let pinned = Box::pin(volume.pin_to_read(&self.owner.host)).await;
        let Some(pin) = pinned.map_err(|error| unavailable(&root.name, &error))? else {
            return Ok(Attempted::Raced);
        };
        let export = self.export(role, opened(&root), None, Some(volume.clone()));
        reader::watch(self, &export, volume, pin);
        Ok(Attempted::Opened(export))
    }

    /// Opens a snapshot for reading.
    pub(crate) async fn open_snapshot(
        &self,
        volume: &str,
        snapshot: &str,
    ) -> Result<Volume<W>, ConnectError> {
        check_name(volume)?;
        check_name(snapshot)?;
        let name = format!("{volume}@{snapshot}");
        let failed = |error: VolumeError| match error {
            VolumeError::Vanished { .. } => {
                ConnectError::Unknown(format!("no export `{volume}`, so no snapshot of it"))
            }
            error => unavailable(&name, &error),
        };
        let bucket = self.shelf.bucket().await.map_err(failed)?;
        let opened = Box::pin(bucket.open_snapshot(volume, snapshot)).await;
        opened.map_err(failed)?.ok_or_else(|| {
            ConnectError::Unknown(format!(
                "`{volume}` has no snapshot `{snapshot}`; `glidefs snapshot list {volume}` shows them"
            ))
        })
    }

    /// A snapshot that was opened, as an export. It can be read to the end, also if it is deleted meanwhile.
    pub(crate) async fn snapshot_export(
        &self,
        name: &str,
        volume: Volume<W>,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        let pinned = Box::pin(volume.pin_to_read(&self.owner.host)).await;
        let Some(pin) = pinned.map_err(|error| unavailable(name, &error))? else {
            return Err(ConnectError::Unavailable(format!(
                "`{name}` was deleted while it was opened; connect again to see what has that name now"
            )));
        };
        let opened = Opened {
            name: name.to_owned(),
            ..opened(&volume.root())
        };
        let export = self.export(Role::ReadOnly, opened, None, Some(volume.clone()));
        reader::watch(self, &export, volume, pin);
        Ok(export)
    }

    fn cache_failed(&self, name: &str, error: &CacheError) -> ConnectError {
        if let Some(held_back) = self.news("cache", name) {
            tracing::error!(export = name, %error, held_back, "the cache does not take the volume (docs/runbooks/fsync-failed.md)");
        }
        ConnectError::Unavailable(format!("`{name}` cannot be opened: {error}"))
    }

    /// Rule 11: what somebody else's publish made stale is never read again.
    async fn forget(&self, local: &LocalVolume) -> Result<(), ConnectError> {
        let forgotten = self.cache.forget(local.id).await;
        forgotten.map_err(|error| self.cache_failed(&local.name, &error))?;
        tracing::info!(export = %local.name, "cached pages dropped: the store has newer");
        Ok(())
    }
}

/// Notes in the log what the root says of a publish or growth whose answer the log did not see.
/// Only if there is one: noting it forgets the intents that can still land.
pub(crate) fn adopt<W: World>(held: &CacheVolume<W>, local: &LocalVolume, root: &RootView) {
    if root.nonce != local.nonce {
        held.published(root.cut, root.nonce);
    }
    if root.size_bytes != local.size_bytes {
        held.resized(root.size_bytes);
    }
}

fn opened(root: &RootView) -> Opened {
    Opened {
        id: root.volume,
        name: root.name.clone(),
        size_bytes: root.size_bytes,
        epoch: root.epoch,
        nonce: root.nonce,
        published: root.cut,
    }
}

fn owned_elsewhere(owner: &Option<crate::volume::Owner>, here: Id) -> bool {
    owner.as_ref().is_some_and(|owner| owner.cache != here)
}

fn unavailable(name: &str, error: &VolumeError) -> ConnectError {
    ConnectError::Unavailable(format!("`{name}` cannot be opened: {error}"))
}

/// The sentence for the person at the client.
pub(crate) fn refused(name: &str, refusal: Refusal) -> ConnectError {
    match refusal {
        Refusal::Unknown => ConnectError::Unknown(format!(
            "no export `{name}`; create it with `PUT /api/exports/{name}`, or set `auto_create_size_gb`"
        )),
        Refusal::Vanished => ConnectError::Unavailable(format!(
            "`{name}` is known to this node's cache, but its root is not in the store; restore the object, or drop the local copy with `DELETE /api/exports/{name}?accept_loss=true`"
        )),
        Refusal::Deleted => ConnectError::Unknown(format!(
            "export `{name}` was deleted; `PUT /api/exports/{name}` makes a new one of that name"
        )),
        Refusal::NotInThisVersion => ConnectError::Refused(format!(
            "`{name}` is pending or suspended; this version cannot open it"
        )),
        Refusal::Salvage(bytes) => ConnectError::Refused(format!(
            "`{name}` was published by another node while this one still held {bytes} bytes of unpublished writes; they are kept in this node's cache, and the volume stays closed here until you accept their loss with `DELETE /api/exports/{name}?accept_loss=true` (the volume in the store stays as it is)"
        )),
        Refusal::Damaged(what) => ConnectError::Refused(format!(
            "`{name}` has unpublished writes in this node's cache that cannot be read ({what}); it stays closed here until you accept their loss with `DELETE /api/exports/{name}?accept_loss=true`"
        )),
        Refusal::RolledBack { cut, seen } => ConnectError::Refused(format!(
            "the root `nbd/{name}/root` in the store is older than one that this node has seen (cut {cut}, seen {seen}); bring the newer one back, or accept the older state with `DELETE /api/exports/{name}?accept_loss=true` (the volume in the store stays as it is)"
        )),
        Refusal::Unreadable(why) => ConnectError::Unavailable(format!(
            "`{name}` cannot be opened: what the store holds of it cannot be read ({why})"
        )),
        Refusal::Unavailable(why) => ConnectError::Unavailable(format!(
            "`{name}` cannot be opened: the store cannot be asked ({why})"
        )),
    }
}
