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
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{FORKS_MAX, ForkBase, Id, LocalVolume, Opened, PendingFork, Seq};
use world::World;

use super::member::Member;
use super::{BACKOFF, SyncError, Syncer, Task};
use crate::export::Role;
use crate::export::base::Base;
use crate::export::decide::{Ours, Plan, Refusal, Seen, decide};
use crate::export::open::refused;
use crate::race::{First, race};
use crate::volume::{Born, Fork, SnapshotChange, Volume, fork_snapshot};

/// Snapshots that nobody needs any more wait for a publish; so many force one, or no more forks could be noted.
const ENDED_MAX: usize = FORKS_MAX / 2;
/// So many answers in a row that its parent's root is not there end a fork, after about a minute. What a gateway does
/// not find for a moment is there again by then.
const PARENT_ABSENCES_MAX: u32 = 8;
/// Between two looks whether somebody waits for the room that a fork holds, once somebody did.
const LET_GO_PAUSE: Duration = Duration::from_millis(200);

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
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    /// For its parent, which is open here, or has just been changed: what keeps that from publishing is told there.
    Waits,
    /// For its parent, which is not open here: why.
    Stuck(Until, String),
    /// The root of its parent is not there. One answer may be a moment's.
    Orphan,
    /// It can never be published: why.
    Lost(String),
}

/// What a fork waits for whose parent is not open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// It is opened as soon as that is possible.
    Opened,
    /// Somebody has to do something first, and who ends the server does not wait for that.
    Person,
}

/// A parent that is not open here, as the log and the store have it.
struct Away<'a> {
    of: &'a ForkBase,
    /// What the log said before the store was asked, and what it says now.
    before: &'a LocalVolume,
    now: Option<&'a LocalVolume>,
    /// It was opened here meanwhile.
    is_open: bool,
    seen: &'a Seen,
    /// The owner that our roots name.
    cache: Id,
}

/// The way of one fork so far.
#[derive(Debug, Default)]
struct Way {
    /// As for [`Bucket::bear`](crate::volume::Bucket).
    begun: Cell<Option<Option<Id>>>,
    failures: u32,
    /// Answers in a row that the parent's root is not there.
    absences: u32,
    /// Failures of the parent that were heard.
    heard: Option<u64>,
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

impl<W: World> Member<W> {
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
}

impl<W: World> Syncer<W> {
    /// Brings the fork into the store; what it is read from changes on the way. Ends only with that, or where it can
    /// never be, or is dropped.
    pub(super) async fn publish_fork(&self, base: Rc<Base<W>>) -> Task {
        // The right one never ends, so the left one is never dropped.
        let way = Box::pin(self.bring_fork(&base));
        match race(way, Box::pin(self.make_room(&base))).await {
            First::Left(task) => task,
            First::Right(never) => match never {},
        }
    }

    /// What the fork holds in the log goes whenever somebody waits for the room.
    async fn make_room(&self, base: &Base<W>) -> Infallible {
        loop {
            self.lead().local.cuts_wanted().await;
            base.let_go();
            self.site.world.sleep(LET_GO_PAUSE).await;
        }
    }

    async fn bring_fork(&self, base: &Base<W>) -> Task {
        let mut way = Way::default();
        loop {
            // Made before the look: what comes in between wakes it.
            let news = self.site.lineage.news.notified();
            if self.export().role() != Role::ReadWrite {
                return Task::Ends;
            }
            let step = Box::pin(self.fork_step(base, &way.begun)).await;
            // Dropped by an operator meanwhile: nothing is done in its name any more.
            if self.export().role() != Role::ReadWrite {
                return Task::Ends;
            }
            let is_stuck = matches!(&step, Ok(Step::Stuck(Until::Person, _)));
            self.export().orders.stick(is_stuck);
            if matches!(&step, Ok(Step::Waits | Step::Stuck(..))) {
                way.absences = 0;
            }
            match step {
                Ok(Step::Done) => {
                    self.recovered();
                    self.export().orders.news.notify_waiters();
                    self.site.lineage.left(&base.of);
                    return Task::GoesOn;
                }
                Ok(Step::Waits) => {
                    race(self.site.world.sleep(BACKOFF.longest), news).await;
                    self.hear_parent(base, &mut way.heard);
                }
                Ok(Step::Stuck(until, why)) => {
                    self.tell_stuck(base, until, &why);
                    race(self.site.world.sleep(BACKOFF.longest), news).await;
                }
                Ok(Step::Orphan) => {
                    if self.orphaned(base, &mut way).await == Task::Ends {
                        return Task::Ends;
                    }
                }
                Ok(Step::Lost(why)) => {
                    self.lose_fork(base, &why).await;
                    return Task::Ends;
                }
                Err(error) => {
                    way.failures += 1;
                    self.tell_parent(base, &error.to_string());
                    if self.failed(&error).await == Task::Ends
                        || self.back_off(way.failures, error.retry_after()).await == Task::Ends
                    {
                        return Task::Ends;
                    }
                }
            }
        }
    }

    async fn fork_step(
        &self,
        base: &Base<W>,
        begun: &Cell<Option<Option<Id>>>,
    ) -> Result<Step, SyncError> {
        // Nothing comes of a parent that waits for a log which has stopped.
        self.site.cache.check()?;
        // Before anything is waited for: it may be dropped from the log meanwhile.
        let state = self.lead().state();
        let parent = self.site.cache.volume(base.of.parent);
        let parent = parent.and_then(|parent| parent.state());
        if let Some(parent) = parent {
            let mut forks = parent.forks.iter();
            let is_due = forks.any(|fork| fork.child == base.child && !fork.is_carried);
            if is_due && let Some(step) = self.wait_for_parent(base, &parent).await? {
                return Ok(step);
            }
        }
        let owner = &self.site.owner;
        let fork = Fork::live(&base.of.name, self.export().name(), base.child, state.nonce)?;
        let bucket = self.site.shelf.bucket().await?;
        match Box::pin(bucket.bear(&fork, owner, begun)).await? {
            Born::Never(why) => Ok(Step::Lost(why)),
            Born::Orphan => Ok(Step::Orphan),
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
            let why =
                "writes to it are missing in this node's cache: accept their loss, or drop it";
            return Ok(Some(Step::Stuck(Until::Person, why.to_owned())));
        }
        if self.site.closing.get() {
            let why = "the server is shutting down, and opens nothing any more";
            return Ok(Some(Step::Stuck(Until::Person, why.to_owned())));
        }
        let asked = self.site.shelf.ask(&base.of.name).await;
        let now = self.site.cache.volume(parent.id).and_then(|it| it.state());
        let away = Away {
            of: &base.of,
            before: parent,
            now: now.as_ref(),
            is_open: self.site.lineage.writer(parent.id).is_some(),
            seen: &asked.seen,
            cache: self.site.owner.cache,
        };
        let step = away.step();
        let is_known = step != Step::Waits
            && asked.volume.is_some_and(|volume| {
                volume.root().volume == parent.id && volume.has_snapshot(base.child)
            });
        if is_known {
            return Ok(None);
        }
        if let Step::Stuck(Until::Opened, _) = &step {
            self.site.lineage.want(&base.of.name);
        }
        Ok(Some(step))
    }

    /// The root of the fork is there. Before anything of the fork may be published the log must know that.
    async fn own_fork(&self, state: &LocalVolume) -> Result<Step, SyncError> {
        let bucket = self.site.shelf.bucket().await?;
        let volume = Box::pin(bucket.open_volume(self.export().name())).await?;
        let root = volume.root();
        let is_ours = root.volume == state.id && root.nonce == state.nonce;
        if !is_ours || volume.resume(&self.site.owner, root.epoch).is_err() {
            let text = "somebody else has taken it since it was made there";
            return Ok(Step::Lost(text.to_owned()));
        }
        let size_bytes = root.size_bytes.max(self.export().size_bytes());
        let opened = Opened {
            id: root.volume,
            name: root.name,
            size_bytes: root.size_bytes,
            epoch: root.epoch,
            nonce: root.nonce,
            published: root.cut,
        };
        if self.export().role() != Role::ReadWrite {
            return Ok(Step::Waits);
        }
        self.site.cache.attach(opened).await?;
        if self.export().role() != Role::ReadWrite {
            // It was dropped from the log in between, which this has undone.
            self.site.cache.forget(state.id).await?;
            return Ok(Step::Waits);
        }
        tracing::info!(export = %self.export().name(), cut = %root.cut, "the fork is in the store now");
        self.export().frames().settle(volume);
        self.export().set_size(size_bytes);
        Ok(Step::Done)
    }

    /// Those who wait for its parent must not wait for a store that says no.
    fn tell_parent(&self, base: &Base<W>, error: &str) {
        if let Some(parent) = self.site.lineage.writer(base.of.parent) {
            let name = self.export().name();
            let text = format!("its fork `{name}` is not in the store: {error}");
            parent.orders.failed(text);
            parent.orders.wake.notify_one();
        }
    }

    /// Says it to those who wait for a drain, and once to the log.
    fn tell_stuck(&self, base: &Base<W>, until: Until, why: &str) {
        let (name, parent) = (self.export().name(), &base.of.name);
        let now = self.site.world.now();
        if until == Until::Person && self.export().causes.raise("sync fails", now) {
            tracing::error!(export = %name, parent = %parent, why, "the fork waits for its parent, which is not open here; what is written to it stays in the cache (docs/runbooks/export-fenced.md)");
        }
        let text = format!("its parent `{parent}` is not open here: {why}");
        self.export().orders.failed(text);
    }

    /// The parent's root was not there: that must not end the fork before it was said for some time.
    async fn orphaned(&self, base: &Base<W>, way: &mut Way) -> Task {
        way.absences += 1;
        let why = gone(&base.of, "its root is gone from the store");
        if way.absences == PARENT_ABSENCES_MAX {
            self.lose_fork(base, &why).await;
            return Task::Ends;
        }
        if way.absences == 1 {
            tracing::error!(export = %self.export().name(), parent = %base.of.name, "the root of the fork's parent is not in the store: restore it, or the fork ends (docs/runbooks/volume-vanished.md)");
        }
        self.export().orders.failed(why);
        self.back_off(way.absences, None).await
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
            self.export().orders.failed(parent.orders.last_failure());
            base.let_go();
        }
    }

    async fn lose_fork(&self, base: &Base<W>, why: &str) {
        let state = self.lead().state();
        tracing::error!(export = %self.export().name(), parent = %base.of.name, why, dirty_bytes = state.dirty_bytes, "the fork can never be published: this node stops serving it; what was written to it is kept in the log (`glidefs salvage`), fork again (docs/runbooks/export-fenced.md)");
        self.export().end(Role::Fenced);
        base.let_go();
        self.give_up_epochs().await;
        self.site.lineage.left(&base.of);
    }
}

impl Away<'_> {
    /// Pure.
    fn step(&self) -> Step {
        let known = |it: &LocalVolume| (it.nonce, it.published, it.epoch, it.attached);
        // Opened here while the store was asked, it may have published since: what was asked is no news of it.
        if self.is_open || self.now.map(known) != Some(known(self.before)) {
            return Step::Waits;
        }
        let lost = |what: &str| Step::Lost(gone(self.of, what));
        if matches!(self.seen, Seen::Root(root) if root.volume != self.before.id) {
            return lost("another volume has its name");
        }
        let ours = Ours {
            cache: self.cache,
            local: Some(self.before),
            create_bytes: None,
            over_deleted: false,
        };
        match decide(self.seen, ours) {
            Plan::ReadOnly => lost("another node has taken it"),
            Plan::Refuse(Refusal::Vanished) => Step::Orphan,
            Plan::Refuse(Refusal::Deleted) => lost("it is gone from the store"),
            Plan::Refuse(Refusal::Salvage(_)) => lost("another node has published it since"),
            Plan::Refuse(Refusal::Unavailable(why)) => {
                Step::Stuck(Until::Opened, format!("the store cannot be asked: {why}"))
            }
            Plan::Refuse(refusal) => {
                let why = refused(&self.of.name, refusal).to_string();
                Step::Stuck(Until::Person, why)
            }
            _ => Step::Stuck(Until::Opened, "it is about to be opened".to_owned()),
        }
    }
}

/// Why a fork is lost.
fn gone(parent: &ForkBase, what: &str) -> String {
    format!(
        "its parent `{}` ended before the fork's cut was published: {what}",
        parent.name
    )
}

#[cfg(test)]
mod tests {
    use blockcache::Epoch;
    use world::{ETag, UnixTime};

    use super::*;
    use crate::volume::{Owner, RootView, VolumeState};

    const HERE: Id = Id([1; 16]);
    const PARENT: Id = Id([2; 16]);

    fn parent() -> LocalVolume {
        LocalVolume {
            id: PARENT,
            name: "vm".to_owned(),
            size_bytes: 1 << 30,
            epoch: Epoch(1),
            nonce: Id([3; 16]),
            published: Seq(5),
            last: Seq(9),
            attached: true,
            intents: Vec::new(),
            dirty_bytes: 4096,
            dirty_age: Duration::from_secs(1),
            damage: None,
            kept: Seq(9),
            forks: vec![fork(7, 8, false)],
            base: None,
        }
    }

    /// As this log knows it, or as somebody has published it since.
    fn root(cut: u64, nonce: Id) -> RootView {
        RootView {
            volume: PARENT,
            name: "vm".to_owned(),
            size_bytes: 1 << 30,
            epoch: Epoch(1),
            state: VolumeState::Open,
            group: None,
            owner: Some(Owner {
                cache: HERE,
                host: "node".to_owned(),
            }),
            generation: 0,
            parent: None,
            cut: Seq(cut),
            cut_epoch: Epoch(1),
            cut_time: UnixTime(0),
            nonce,
            etag: ETag("e".to_owned()),
        }
    }

    /// What comes of a look at the store, where the log says `now` behind it.
    fn step(seen: Seen, now: Option<&LocalVolume>, is_open: bool) -> Step {
        let of = ForkBase {
            parent: PARENT,
            name: "vm".to_owned(),
            cut: Seq(8),
        };
        let before = parent();
        let away = Away {
            of: &of,
            before: &before,
            now,
            is_open,
            seen: &seen,
            cache: HERE,
        };
        away.step()
    }

    /// It was opened while the store was asked, published, and went; or it is open still. Simulation, seed 1397: the fork
    /// took what its own node had published for another node's, and ended.
    #[test]
    fn what_the_parents_own_task_published_meanwhile_ends_no_fork() {
        let moved_on = || Seen::Root(root(8, Id([9; 16])));
        let was = parent();
        let published = LocalVolume {
            nonce: Id([9; 16]),
            published: Seq(8),
            ..parent()
        };
        assert_eq!(step(moved_on(), Some(&published), false), Step::Waits);
        assert_eq!(step(moved_on(), Some(&was), true), Step::Waits);
        assert_eq!(step(moved_on(), None, false), Step::Waits);
        let Step::Lost(why) = step(moved_on(), Some(&was), false) else {
            panic!("nobody here has published it");
        };
        assert!(why.contains("another node has published it"), "{why}");
    }

    #[test]
    fn a_fork_waits_for_a_parent_that_may_come_back_and_says_who_must_act() {
        let was = parent();
        let now = |seen| step(seen, Some(&was), false);
        let opened = |step: Step| matches!(step, Step::Stuck(Until::Opened, _));
        let person = |step: Step| matches!(step, Step::Stuck(Until::Person, _));
        assert!(opened(now(Seen::Root(root(5, Id([3; 16]))))));
        assert!(opened(now(Seen::Unreachable("down".to_owned()))));
        assert!(person(now(Seen::Unreadable("damaged".to_owned()))));
        assert!(person(now(Seen::Root(root(4, Id([3; 16]))))), "rolled back");
        assert_eq!(now(Seen::Absent), Step::Orphan, "perhaps for a moment");
        let other = RootView {
            volume: Id([8; 16]),
            ..root(5, Id([3; 16]))
        };
        assert!(matches!(now(Seen::Root(other)), Step::Lost(_)));
        let deleted = RootView {
            state: VolumeState::Deleted,
            ..root(5, Id([3; 16]))
        };
        assert!(matches!(now(Seen::Root(deleted)), Step::Lost(_)));
    }

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
