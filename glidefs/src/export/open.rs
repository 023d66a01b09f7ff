//! Opening a volume: asks the store, decides ([`super::decide`]), performs.
//!
//! The order of effects is the argument: stale records are dropped before anything can be attached
//! over them; the intent to take a volume is durable before the compare-and-swap; the new
//! epoch is durable in the log before the first write can be answered. A crash between any two
//! leaves a root that names this cache as owner, and the next open takes it again.
//!
//! What is published together is opened together (rule 30): of a group each step is done for all members before the
//! next one, and there is one take of all. A volume in no group is one of one.

use std::rc::Rc;

use blockcache::{CacheError, CacheVolume, Epoch, Id, LocalVolume, Opened, Seq};
use world::World;

use super::base::Base;
use super::decide::{Joint, Ours, Plan, Records, Refusal, Seen, Unfit, decide, join};
use super::document::owner_text;
use super::group::bind;
use super::reader::{self, Reading};
use super::registry::check_name;
use super::shelf::Asked;
use super::site::Site;
use super::{Export, Parts, Role};
use crate::device::ConnectError;
use crate::sync;
use crate::volume::{Members, RootView, Volume, VolumeError};

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

/// What became of an open.
pub(super) enum Opening<W: World> {
    /// All that are published together, the one that was asked for first.
    Opened(Vec<Rc<Export<W>>>),
    /// Nothing was done: others are opened with it, whose doors are needed too. And what was seen.
    Needs(Vec<String>, Box<Asked<Members<W>>>),
}

/// How an attempt ended.
enum Attempted<W: World> {
    /// In any order.
    Opened(Vec<Rc<Export<W>>>),
    /// Somebody else changed the root meanwhile: look again.
    Raced,
}

impl<W: World> Site<W> {
    /// Opens a volume with all that is published with it, read-write if it may be, and starts their sync task. `together`
    /// are names whose doors the caller has, and for which there is room; `asked` is what was seen just now, if it was.
    pub(super) async fn open(
        self: &Rc<Self>,
        name: &str,
        wish: Wish,
        together: &[String],
        mut asked: Option<Asked<Members<W>>>,
    ) -> Result<Opening<W>, ConnectError> {
        // The store cannot know it yet.
        if let Some(local) = self.pending_fork(name) {
            let fork = self.open_fork(local, wish)?;
            return Ok(Opening::Opened(vec![fork]));
        }
        for _attempt in 0..OPEN_ATTEMPTS_MAX {
            let asked = match asked.take() {
                Some(asked) => asked,
                None => Box::pin(self.shelf.ask_all(name)).await,
            };
            let names = self.names_of(name, &asked.seen, asked.volume.as_ref());
            if names.iter().any(|it| !together.contains(it)) {
                return Ok(Opening::Needs(names, Box::new(asked)));
            }
            #[cfg(feature = "planted")]
            let wish = self.unasked(wish, &asked.seen);
            let attempted = Box::pin(self.perform(name, wish, asked)).await?;
            if let Attempted::Opened(mut exports) = attempted {
                exports.sort_by_key(|export| export.name() != name);
                bind(&exports);
                if exports.iter().all(|it| it.role() == Role::ReadWrite) {
                    sync::start(self, &exports);
                }
                return Ok(Opening::Opened(exports));
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
        sync::start(self, std::slice::from_ref(&export));
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

    /// In all attempts the roots are of one moment.
    async fn perform(
        &self,
        name: &str,
        wish: Wish,
        asked: Asked<Members<W>>,
    ) -> Result<Attempted<W>, ConnectError> {
        let Some(members) = asked.volume else {
            return self.perform_unseen(name, wish, &asked.seen).await;
        };
        let root = members.asked().root();
        // Before anything is dropped or taken.
        wish.floor.check(name, root.epoch, root.cut)?;
        let plans = self.plans(&members, wish);
        if let [Plan::Create { size_bytes }] = plans.as_slice() {
            return self.create(name, *size_bytes).await;
        }
        let (joint, records) = join(plans).map_err(|unfit| unfit_text(&members, unfit))?;
        match joint {
            Joint::ReadOnly => {
                let role = match wish.prepared {
                    true => Role::Prepared,
                    false => Role::ReadOnly,
                };
                self.read_only(members, role).await
            }
            Joint::Damaged => Ok(Attempted::Opened(self.damaged(&members, &records))),
            Joint::Resume => self.resume(&members, &records).await,
            Joint::Take if wish.purpose == Purpose::Prepare => {
                self.read_only(members, Role::Prepared).await
            }
            Joint::Take => self.take(&members, &records, wish.force).await,
        }
    }

    /// Where there is no root to go by.
    async fn perform_unseen(
        &self,
        name: &str,
        wish: Wish,
        seen: &Seen,
    ) -> Result<Attempted<W>, ConnectError> {
        let plan = self.plan(name, wish, seen);
        let local = self.local_volume(name, None);
        // Where the store cannot be asked, the log speaks for it.
        if let (Seen::Unreachable(_), Some(local)) = (seen, &local) {
            wish.floor.check(name, local.epoch, local.published)?;
        }
        match (plan, local) {
            (Plan::Refuse(refusal), _) => Err(refused(name, refusal)),
            (Plan::Create { size_bytes }, _) => self.create(name, size_bytes).await,
            (Plan::ResumeUnasked, Some(local)) => Ok(self.resume_unasked(&local)),
            (plan, local) => unreachable!("{plan:?} without a root, and local {local:?}"),
        }
    }

    /// What opening each would mean. The force that ends the epoch of the one that was asked for ends those of all.
    fn plans(&self, members: &Members<W>, wish: Wish) -> Vec<Plan> {
        let is_forced = wish.force == Some(members.asked().root().epoch);
        let plans = members.volumes().iter().map(|volume| {
            let root = volume.root();
            let force = is_forced.then_some(root.epoch);
            let name = root.name.clone();
            self.plan(&name, Wish { force, ..wish }, &Seen::Root(root))
        });
        plans.collect()
    }

    /// What the log knows of the volume of a root.
    fn local_of(&self, root: &RootView) -> Option<LocalVolume> {
        let found = self.local_volume(&root.name, Some(root));
        found.filter(|local| local.id == root.volume)
    }

    async fn create(&self, name: &str, size_bytes: u64) -> Result<Attempted<W>, ConnectError> {
        let failed = |error: VolumeError| unavailable(name, &error);
        let bucket = self.shelf.bucket().await.map_err(failed)?;
        let nonce = Id(self.world.random_id());
        match Box::pin(bucket.create(name, size_bytes, &self.owner, nonce)).await {
            Ok(volume) => {
                tracing::info!(export = name, size_bytes, "created");
                let export = self.attach(volume.root(), volume).await?;
                Ok(Attempted::Opened(vec![export]))
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

    /// Goes on with the epochs that log and roots agree on. Intents whose requests may still be on
    /// their way stay known: one that lands later is then ours, and not a stranger's.
    async fn resume(
        &self,
        members: &Members<W>,
        records: &[Records],
    ) -> Result<Attempted<W>, ConnectError> {
        let roots = members.volumes().iter().map(Volume::root);
        let locals: Option<Vec<LocalVolume>> = roots.map(|root| self.local_of(&root)).collect();
        let Some(locals) = locals else {
            return Ok(Attempted::Raced);
        };
        let epochs: Vec<Epoch> = locals.iter().map(|local| local.epoch).collect();
        let Ok(roots) = members.resume(&self.owner, &epochs) else {
            return Ok(Attempted::Raced);
        };
        let mut exports = Vec::with_capacity(roots.len());
        let all = members.volumes().iter().zip(roots).zip(&locals);
        for (((volume, root), local), records) in all.zip(records) {
            let volume = volume.clone();
            if *records == Records::Drop {
                self.forget(local).await?;
                exports.push(self.attach(root, volume).await?);
                continue;
            }
            let Some(held) = self.cache.volume(local.id) else {
                return Ok(Attempted::Raced);
            };
            adopt(&held, local, &root);
            // The one that was open before may have ended because this very root was not there for a moment.
            held.unfence();
            let role = Role::ReadWrite;
            exports.push(self.export(role, opened(&root), Some(held), Some(volume)));
        }
        Ok(Attempted::Opened(exports))
    }

    async fn take(
        &self,
        members: &Members<W>,
        records: &[Records],
        force: Option<Epoch>,
    ) -> Result<Attempted<W>, ConnectError> {
        // One for all: by that the log knows who belongs together.
        let nonce = Id(self.world.random_id());
        for (volume, records) in members.volumes().iter().zip(records) {
            self.intend_take(&volume.root(), *records, nonce).await?;
        }
        let before = members.asked().root();
        let force = force.filter(|_| owned_elsewhere(&before.owner, self.owner.cache));
        let taken = Box::pin(members.take(&self.owner, nonce, force)).await;
        let roots = match taken {
            Ok(roots) => roots,
            Err(
                VolumeError::Fenced { .. }
                | VolumeError::Owned { .. }
                | VolumeError::Vanished { .. },
            ) => return Ok(Attempted::Raced),
            Err(error) => return Err(unavailable(&before.name, &error)),
        };
        let from = owner_text(before.owner.as_ref());
        let mut exports = Vec::with_capacity(roots.len());
        for (volume, root) in members.volumes().iter().zip(roots) {
            tracing::info!(export = %root.name, epoch = %root.epoch, %from, cut = %root.cut, cut_time = %root.cut_time, "taken");
            exports.push(self.attach(root, volume.clone()).await?);
        }
        Ok(Attempted::Opened(exports))
    }

    /// What is stale goes, and the new epoch is intended: of a member of a group also where the log knew nothing of it, so
    /// that a start in an outage that finds another one alone knows that it is not (`shard/forks.rs`).
    async fn intend_take(
        &self,
        before: &RootView,
        records: Records,
        nonce: Id,
    ) -> Result<(), ConnectError> {
        let local = self.local_of(before);
        if local.is_none() && before.group.is_none() {
            return Ok(());
        }
        if let Some(local) = local.filter(|_| records == Records::Drop) {
            self.forget(&local).await?;
        }
        // Should we die between the two: the next start knows that the new epoch is its own.
        let intent = Opened {
            nonce,
            ..opened(before)
        };
        let intended = self.cache.intend_open(&intent).await;
        intended.map_err(|error| self.cache_failed(&before.name, &error))
    }

    /// All that the log may go on with. Where it does not know all members, the rest is closed until the store answers, and
    /// then nothing is published by these alone (`sync/prove.rs`).
    fn resume_unasked(&self, local: &LocalVolume) -> Attempted<W> {
        let mut exports = Vec::new();
        for local in self.known_together(local) {
            let Some(held) = self.cache.volume(local.id) else {
                return Attempted::Raced;
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
            exports.push(self.export(Role::ReadWrite, opened, Some(held), None));
        }
        Attempted::Opened(exports)
    }

    async fn attach(
        &self,
        root: RootView,
        volume: Volume<W>,
    ) -> Result<Rc<Export<W>>, ConnectError> {
        self.retire_namesakes(&root).await?;
        let opened = opened(&root);
        let attached = Box::pin(self.cache.attach(opened.clone())).await;
        let local = attached.map_err(|error| self.cache_failed(&root.name, &error))?;
        Ok(self.export(Role::ReadWrite, opened, Some(local), Some(volume)))
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

    /// What is left of volumes of which, or of one of which, unpublished writes are missing.
    fn damaged(&self, members: &Members<W>, records: &[Records]) -> Vec<Rc<Export<W>>> {
        let each = members.volumes().iter().zip(records);
        let exports = each.map(|(volume, records)| {
            let root = volume.root();
            let local = self.local_of(&root);
            let held = match records {
                Records::Keep => local.as_ref().and_then(|local| self.cache.volume(local.id)),
                // The store has more than that.
                Records::Drop => None,
            };
            if let Some(local) = local.filter(|local| local.damage.is_some()) {
                self.say_damaged(&root.name, &local);
            }
            self.export(Role::Damaged, opened(&root), held, Some(volume.clone()))
        });
        exports.collect()
    }

    fn say_damaged(&self, name: &str, local: &LocalVolume) {
        // Each client that connects opens it anew.
        if let Some(held_back) = self.news("damaged", name) {
            tracing::error!(export = %name, damage = local.damage, kept_seq = local.kept.0, held_back, "opened read-only: unpublished writes are missing; look at what is left, then accept the loss with `POST /api/exports/{name}/accept-loss` (docs/runbooks/fsync-failed.md)");
        }
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
    async fn read_only(
        &self,
        members: Members<W>,
        role: Role,
    ) -> Result<Attempted<W>, ConnectError> {
        for volume in members.volumes() {
            self.note_taken(&volume.root()).await?;
        }
        let root = members.asked().root();
        if let (Role::ReadOnly, Some(held_back)) = (role, self.news("read-only", &root.name)) {
            tracing::info!(export = %root.name, owner = %owner_text(root.owner.as_ref()), epoch = %root.epoch, cut = %root.cut, held_back, "opened read-only: another node owns the volume; `POST /api/exports/{}/promote` takes it", root.name);
        }
        #[cfg(feature = "planted")]
        let apart = Box::pin(members.read_apart()).await;
        #[cfg(feature = "planted")]
        let members = apart.map_err(|error| unavailable(&root.name, &error))?;
        let pinned = Box::pin(members.pin_to_read(&self.owner.host)).await;
        let Some(pin) = pinned.map_err(|error| unavailable(&root.name, &error))? else {
            return Ok(Attempted::Raced);
        };
        let exports = members.volumes().iter().map(|volume| {
            let opened = opened(&volume.root());
            self.export(role, opened, None, Some(volume.clone()))
        });
        let exports: Vec<Rc<Export<W>>> = exports.collect();
        reader::watch(self, &exports, Reading::Volumes(members), pin);
        Ok(Attempted::Opened(exports))
    }

    /// Where another node owns it, the epoch is over: no start during an outage may go on with it.
    async fn note_taken(&self, root: &RootView) -> Result<(), ConnectError> {
        if owned_elsewhere(&root.owner, self.owner.cache)
            && let Some(local) = self.cache.volume(root.volume)
            && local.state().is_some_and(|state| state.attached)
        {
            let noted = local.detached().await;
            noted.map_err(|error| self.cache_failed(&root.name, &error))?;
            tracing::error!(export = %root.name, dirty_bytes = local.state().map_or(0, |s| s.dirty_bytes), "another node took the volume; unpublished writes of this node are kept in its log (docs/runbooks/export-fenced.md)");
        }
        Ok(())
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
        let reading = Reading::Snapshot(volume);
        reader::watch(self, std::slice::from_ref(&export), reading, pin);
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

/// Why some are not opened, for who asked for one of them.
fn unfit_text<W: World>(members: &Members<W>, unfit: Unfit) -> ConnectError {
    let found = members.volumes().get(unfit.number);
    let name = found.map_or_else(|| members.asked().root().name, |it| it.root().name);
    let refusal = refused(&name, unfit.refusal);
    let Some(group) = members.group() else {
        return refusal;
    };
    let text = |why: String| {
        format!(
            "all of group `{}` are opened together, or none: {why}",
            group.name
        )
    };
    match refusal {
        ConnectError::Unknown(why) => ConnectError::Unknown(text(why)),
        ConnectError::Refused(why) => ConnectError::Refused(text(why)),
        ConnectError::Unavailable(why) => ConnectError::Unavailable(text(why)),
        ConnectError::Invalid(_) | ConnectError::ShuttingDown => refusal,
    }
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
