//! The way of a fork into the store that is open here already (rules 20, 22).
//!
//! ```text
//! its parent's task: publish exactly the fork's cut, with a snapshot of it
//! its own task:      pin, read that snapshot, create the root as its owner -> attach it in the log -> sync
//! its parent's task: drop the snapshot, beside whatever is published next
//! ```
//!
//! Whatever dies in between, the store holds what the fork needs for as long as it needs it: the snapshot goes only
//! after the log knows that the fork's own root is there, and that has a pin. Each step may be taken again.

use std::cell::Cell;
use std::rc::Rc;

use blockcache::{FORKS_MAX, Id, LocalVolume, Opened, PendingFork, Seq};
use world::World;

use super::{BACKOFF, SyncError, Syncer, Task};
use crate::export::Role;
use crate::export::base::Base;
use crate::export::decide::{Ours, Plan, Refusal, Seen, decide};
use crate::race::race;
use crate::volume::{Born, Fork, SnapshotChange, Volume, fork_snapshot};

/// Snapshots that nobody needs any more wait for a publish; so many force one, or no more forks could be noted.
const ENDED_MAX: usize = FORKS_MAX / 2;

/// What a publish does for the forks of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ForksDue {
    /// They get a snapshot of the cut.
    pub(super) begun: Vec<Id>,
    /// They need theirs no more.
    pub(super) ended: Vec<Id>,
}

/// What becomes of a fork whose cut was passed without a snapshot, which must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    Lost,
    /// It gets what is published now: planted.
    #[cfg(feature = "planted")]
    Taken,
}

/// How far a fork has come.
#[derive(Debug)]
enum Step {
    Done,
    /// For its parent.
    Waits,
    /// It can never be published: why.
    Lost(String),
}

impl ForksDue {
    /// For a publish of exactly this cut.
    fn at(cut: Seq, forks: &[PendingFork], late: Late, is_pending: impl Fn(Id) -> bool) -> Self {
        let mut due = Self::default();
        for fork in forks {
            let is_passed = !fork.is_carried && fork.cut < cut && late == Late::Lost;
            // One whose cut is not to be had any more is lost, which its own task finds out.
            if !is_pending(fork.child) || is_passed {
                due.ended.push(fork.child);
            } else if !fork.is_carried && fork.cut <= cut {
                due.begun.push(fork.child);
            }
        }
        due
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = SnapshotChange> {
        let ended = self.ended.iter().map(|id| SnapshotChange::Drop { id: *id });
        let begun = self.begun.iter().map(|id| SnapshotChange::Take {
            id: *id,
            name: fork_snapshot(*id),
        });
        ended.chain(begun)
    }
}

impl<W: World> Syncer<W> {
    /// Whether forks of the volume are a reason to publish now, also if nothing was written.
    pub(super) fn forks_wait(&self, state: &LocalVolume) -> bool {
        let cache = &self.site.cache;
        let is_pending = |fork: &&PendingFork| cache.is_pending_fork(fork.child);
        let pending = state.forks.iter().filter(is_pending);
        let pending: Vec<bool> = pending.map(|fork| fork.is_carried).collect();
        pending.contains(&false) || state.forks.len() - pending.len() >= ENDED_MAX
    }

    /// Forks of it are on their way to the store: it is not given up before they are there.
    pub(super) fn has_forks(&self, state: &LocalVolume) -> bool {
        let mut forks = state.forks.iter();
        self.export.orders.is_forking()
            || forks.any(|fork| self.site.cache.is_pending_fork(fork.child))
    }

    pub(super) fn forks_due(&self, cut: Seq) -> ForksDue {
        let forks = self.state().forks;
        #[cfg(feature = "planted")]
        let late = match self.site.config.forks_of_any_cut {
            true => Late::Taken,
            false => Late::Lost,
        };
        #[cfg(not(feature = "planted"))]
        let late = Late::Lost;
        ForksDue::at(cut, &forks, late, |id| self.site.cache.is_pending_fork(id))
    }

    /// The publish is installed. In the same step, before the log calls anything clean.
    pub(super) fn forks_published(&self, volume: &Volume<W>, due: &ForksDue) {
        let (carried, left): (Vec<Id>, Vec<Id>) =
            due.begun.iter().partition(|id| volume.has_snapshot(**id));
        for id in &left {
            tracing::error!(export = %self.export.name(), fork = %id, "the volume lists too many snapshots: none could be taken for a fork, which is lost; delete those whose names begin with `live-fork.` and have no fork any more (docs/runbooks/export-fenced.md)");
        }
        self.site.lineage.published(&carried, volume);
        let ended = [&*due.ended, &*left].concat();
        self.local.forks_published(&carried, &ended);
    }

    /// Brings the fork into the store; what it is read from changes on the way. Ends only with that, or where it can
    /// never be.
    pub(super) async fn publish_fork(&self, base: Rc<Base<W>>) -> Task {
        let mut failures = 0;
        let mut seen = None;
        let begun = Cell::new(None);
        loop {
            // Made before the look: what comes in between wakes it.
            let news = self.site.lineage.news.notified();
            if self.export.role() != Role::ReadWrite {
                return Task::Ends;
            }
            match Box::pin(self.fork_step(&base, &begun)).await {
                Ok(Step::Done) => {
                    self.recovered();
                    self.export.orders.news.notify_waiters();
                    self.tell_parent(&base, None);
                    return Task::GoesOn;
                }
                Ok(Step::Waits) => {
                    race(self.site.world.sleep(BACKOFF.longest), news).await;
                    self.hear_parent(&base, &mut seen);
                }
                Ok(Step::Lost(why)) => {
                    self.lose_fork(&base, &why).await;
                    return Task::Ends;
                }
                Err(error) => {
                    failures += 1;
                    self.tell_parent(&base, Some(&error));
                    if self.failed(&error).await == Task::Ends
                        || self.back_off(failures, error.retry_after()).await == Task::Ends
                    {
                        return Task::Ends;
                    }
                }
            }
        }
    }

    /// `begun` as for [`Bucket::bear`](crate::volume::Bucket).
    async fn fork_step(
        &self,
        base: &Base<W>,
        begun: &Cell<Option<Option<Id>>>,
    ) -> Result<Step, SyncError> {
        let parent = self.site.cache.volume(base.of.parent);
        let parent = parent.and_then(|parent| parent.state());
        if let Some(parent) = parent {
            let mut forks = parent.forks.iter();
            let is_due = forks.any(|fork| fork.child == base.child && !fork.is_carried);
            if is_due && let Some(step) = self.wait_for_parent(base, &parent).await? {
                return Ok(step);
            }
        }
        let state = self.state();
        let owner = &self.site.owner;
        let fork = Fork::live(&base.of.name, self.export.name(), base.child, state.nonce)?;
        let bucket = self.site.shelf.bucket().await?;
        match Box::pin(bucket.bear(&fork, owner, begun)).await? {
            Born::Never(why) => Ok(Step::Lost(why)),
            Born::Made => self.own_fork(&state).await,
        }
    }

    /// None: there is nothing to wait for, as the store has the snapshot.
    async fn wait_for_parent(
        &self,
        base: &Base<W>,
        parent: &LocalVolume,
    ) -> Result<Option<Step>, SyncError> {
        if let Some(export) = self.site.lineage.writer(parent.id) {
            base.find(&export);
            return Ok(Some(Step::Waits));
        }
        if parent.damage.is_some() {
            return Ok(Some(Step::Waits));
        }
        let asked = self.site.shelf.ask(&base.of.name).await;
        // Opened here while the store was asked, it may have published since: what was asked is no news of it.
        let now = self.site.cache.volume(parent.id).and_then(|it| it.state());
        let known = |it: &LocalVolume| (it.nonce, it.published, it.epoch, it.attached);
        if self.site.lineage.writer(parent.id).is_some()
            || now.as_ref().map(known) != Some(known(parent))
        {
            return Ok(Some(Step::Waits));
        }
        if let Some(volume) = &asked.volume
            && volume.root().volume == parent.id
            && volume.has_snapshot(base.child)
        {
            return Ok(None);
        }
        let ours = Ours {
            cache: self.site.owner.cache,
            local: Some(parent),
            create_bytes: None,
            over_deleted: false,
        };
        let is_another = matches!(&asked.seen, Seen::Root(root) if root.volume != parent.id);
        Ok(Some(match decide(&asked.seen, ours) {
            _ if is_another => lost_with(&base.of.name, "another volume has its name"),
            Plan::ReadOnly => lost_with(&base.of.name, "another node has taken it"),
            Plan::Refuse(Refusal::Vanished | Refusal::Deleted) => {
                lost_with(&base.of.name, "it is gone from the store")
            }
            Plan::Refuse(Refusal::Salvage(_)) => {
                lost_with(&base.of.name, "another node has published it since")
            }
            // It is opened again, sooner or later.
            _ => Step::Waits,
        }))
    }

    /// The root of the fork is there. Before anything of the fork may be published the log must know that.
    async fn own_fork(&self, state: &LocalVolume) -> Result<Step, SyncError> {
        let bucket = self.site.shelf.bucket().await?;
        let volume = Box::pin(bucket.open_volume(self.export.name())).await?;
        let root = volume.root();
        let is_ours = root.volume == state.id && root.nonce == state.nonce;
        if !is_ours || volume.resume(&self.site.owner, root.epoch).is_err() {
            let text = "somebody else has taken it since it was made there";
            return Ok(Step::Lost(text.to_owned()));
        }
        let size_bytes = root.size_bytes.max(self.export.size_bytes());
        let opened = Opened {
            id: root.volume,
            name: root.name,
            size_bytes: root.size_bytes,
            epoch: root.epoch,
            nonce: root.nonce,
            published: root.cut,
        };
        self.site.cache.attach(opened).await?;
        tracing::info!(export = %self.export.name(), cut = %root.cut, "the fork is in the store now");
        self.export.frames().settle(volume);
        self.export.set_size(size_bytes);
        Ok(Step::Done)
    }

    /// Its parent may be given up now, or those who wait for it must not wait for a store that says no.
    fn tell_parent(&self, base: &Base<W>, error: Option<&SyncError>) {
        let Some(parent) = self.site.lineage.writer(base.of.parent) else {
            return;
        };
        if let Some(error) = error {
            let name = self.export.name();
            parent
                .orders
                .failed(format!("its fork `{name}` is not in the store: {error}"));
        }
        parent.orders.wake.notify_one();
    }

    /// What keeps the parent from publishing keeps the fork from it.
    fn hear_parent(&self, base: &Base<W>, seen: &mut Option<u64>) {
        let Some(parent) = self.site.lineage.writer(base.of.parent) else {
            return;
        };
        let failures = parent.orders.failures();
        if seen
            .replace(failures)
            .is_some_and(|before| before < failures)
        {
            self.export.orders.failed(parent.orders.last_failure());
            base.let_go();
        }
    }

    async fn lose_fork(&self, base: &Base<W>, why: &str) {
        let state = self.state();
        tracing::error!(export = %self.export.name(), parent = %base.of.name, why, dirty_bytes = state.dirty_bytes, "the fork can never be published: this node stops serving it; what was written to it is kept in the log (`glidefs salvage`), fork again (docs/runbooks/export-fenced.md)");
        self.export.end(Role::Fenced);
        base.let_go();
        self.give_up_epoch().await;
        self.tell_parent(base, None);
    }
}

fn lost_with(parent: &str, what: &str) -> Step {
    Step::Lost(format!(
        "its parent `{parent}` ended before the fork's cut was published: {what}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(child: u8, cut: u64, is_carried: bool) -> PendingFork {
        PendingFork {
            child: Id([child; 16]),
            cut: Seq(cut),
            is_carried,
        }
    }

    #[test]
    fn a_snapshot_is_taken_at_its_cut_and_dropped_when_nobody_needs_it() {
        let forks = [
            fork(1, 5, true),
            fork(2, 5, false),
            fork(3, 9, false),
            fork(4, 9, false),
        ];
        let pending = |id: Id| id != Id([1; 16]) && id != Id([4; 16]);
        let due = ForksDue::at(Seq(5), &forks, Late::Lost, pending);
        assert_eq!(due.begun, [Id([2; 16])]);
        assert_eq!(due.ended, [Id([1; 16]), Id([4; 16])]);
        let due = ForksDue::at(Seq(4), &forks, Late::Lost, pending);
        assert_eq!(due.begun, []);
        let due = ForksDue::at(Seq(6), &forks, Late::Lost, pending);
        assert_eq!(due.begun, []);
        assert!(due.ended.contains(&Id([2; 16])), "never of another cut");
    }
}
