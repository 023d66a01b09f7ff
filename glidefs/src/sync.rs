//! Brings what was written to the store: one task for each root, the only one that publishes it. That is the root of one
//! read-write export, or of those of a group (rule 30).
//!
//! ```text
//! (dirty for `delay`, pressed, or asked) -> cut -> plan -> read, complete -> upload -> publish
//!            ^                                                                            |
//!            '----- install the map and mark the cut clean, in one step <-----------------'
//! ```
//!
//! Promises: a root is published only after its segments are in the store and its intent is
//! durable in the log; a store error loses nothing and repeats only what failed; a fenced or
//! vanished volume is never written again. Absent: any bound on how long a store may be down, for
//! the cache's dirty bound slows the writers instead.

pub(crate) mod attempt;
pub(crate) mod backoff;
mod fork;
mod member;
pub mod plan;
mod prove;
pub(crate) mod uploads;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{CacheError, CacheVolume, Id, LocalVolume};
use world::{Instant, World};

use crate::export::frames::{ReadError, is_temporary};
use crate::export::site::Site;
use crate::export::{Export, Role};
use crate::race::{First, any, race};
use crate::volume::{Members, Tidied, Tidy, Volume, VolumeError};
use attempt::{Attempt, Kept};
use backoff::Backoff;
use member::Member;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
};

/// The longest that a detach leaves the store alone where the server ends: it has a bound for that
/// (`DETACH_WAIT_MAX` of the shard), and one more try must fit in. What is not detached then can be opened
/// elsewhere by force alone, which is worse than one request too early.
pub(crate) const ENDING_ASKED_MAX: Duration = Duration::from_secs(5);

/// A step of a sync that takes longer is said to. Several times what a slow store takes for the largest.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// When to sync, and how much at a time.
#[derive(Clone, Debug)]
pub struct SyncConfig {
    /// From the first unpublished write to its sync (`sync_delay_ms`).
    pub delay: Duration,
    /// Blocks of 128 KiB in one segment.
    pub blocks_per_batch: u32,
    /// Between two writes of one root: some stores limit how often one object may change (rule 29).
    pub publish_interval_min: Duration,
    /// Extents in one cut, from which on its memory is bounded: some 300 bytes for each, until the cut
    /// is in the map. What more is dirty goes with the next cut, at once.
    pub cut_extents_max: usize,
    /// Segments of one export on their way at a time.
    pub uploads_max: usize,
    /// Segments of all on their way at a time: how many follows the store's answers, within these. As
    /// many for one as for all: exports take turns, and one alone has them all. 16 of 3.2 MB are at most
    /// 500 MB/s where a store takes 100 ms.
    pub uploads_total_min: usize,
    pub uploads_total_max: usize,
    /// When space in the store is given back.
    pub tidy: Tidy,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(8),
            blocks_per_batch: 25,
            publish_interval_min: Duration::from_secs(1),
            cut_extents_max: 64 << 10,
            uploads_max: 16,
            uploads_total_min: 4,
            uploads_total_max: 16,
            tidy: Tidy::default(),
        }
    }
}

/// Why a sync did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Not an error but a race: look again, at once.
    #[error("something was written or published meanwhile")]
    Overtaken,
}

impl SyncError {
    /// For how long the store asked to be left alone, if it did.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Volume(error) => error.retry_after(),
            Self::Read(error) => error.retry_after(),
            Self::Cache(_) | Self::Overtaken => None,
        }
    }
}

/// The sync task of one root.
#[derive(Debug)]
pub(crate) struct Syncer<W: World> {
    site: Rc<Site<W>>,
    /// One export, or those of all members of a group; from the moment on when the store was reached in its order.
    members: Vec<Member<W>>,
    /// Not before this may the root be written again (rule 29).
    turn: Cell<Instant>,
    /// The intent of which the store has not heard, and never will if it is taken back.
    unsent: Cell<Option<Id>>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Sync,
    Leave,
    End,
}

/// Whether the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    GoesOn,
    Ends,
}

/// What an error means for the exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Try again later, with everything kept.
    Again,
    Fenced,
    Vanished,
    /// The log takes nothing more: there is nothing to publish from.
    Halt,
}

/// Starts the task of an export, or of those of all members of a group: all `ReadWrite`, all with their volumes, or all
/// resumed without the store. It ends with that role of all of them, and leaves nothing behind.
pub(crate) fn start<W: World>(site: &Rc<Site<W>>, exports: &[Rc<Export<W>>]) {
    assert!(!exports.is_empty(), "a task has something to publish");
    // The open wrote the root a moment ago, or the process before this one may have.
    let turn = site.world.now() + site.config.sync.publish_interval_min;
    let mut members = Vec::with_capacity(exports.len());
    for export in exports {
        let local = export.local().expect("only read-write exports sync");
        site.lineage.opened(local.id(), export);
        members.push(Member {
            site: Rc::clone(site),
            export: Rc::clone(export),
            local: local.clone(),
        });
    }
    let syncer = Syncer {
        site: Rc::clone(site),
        members,
        turn: Cell::new(turn),
        unsent: Cell::default(),
    };
    site.world.spawn(async move { syncer.run().await });
}

impl<W: World> Syncer<W> {
    async fn run(mut self) {
        let proved = match self.export().frames().base() {
            Some(base) => Box::pin(self.publish_fork(base)).await,
            None if self.export().root().is_none() => Box::pin(self.prove()).await,
            None => Task::GoesOn,
        };
        if proved == Task::Ends {
            return;
        }
        self.put_in_order();
        loop {
            match self.next_work().await {
                Work::Sync => {}
                // Whoever connects from now on opens the volumes anew, after this task has ended.
                Work::Leave if self.begin_leaving() => {}
                Work::Leave => continue,
                Work::End => return,
            }
            if Box::pin(self.sync()).await == Task::Ends {
                return;
            }
        }
    }

    /// The first: what is said once for all is said of it.
    fn lead(&self) -> &Member<W> {
        self.members.first().expect("one at least")
    }

    fn export(&self) -> &Rc<Export<W>> {
        &self.lead().export
    }

    fn locals(&self) -> Vec<CacheVolume<W>> {
        self.members.iter().map(|it| it.local.clone()).collect()
    }

    /// Of all, for people.
    fn names(&self) -> String {
        let names: Vec<&str> = self.members.iter().map(|it| it.export.name()).collect();
        names.join(", ")
    }

    fn states(&self) -> Vec<LocalVolume> {
        self.members.iter().map(Member::state).collect()
    }

    /// What they are in the store, as one.
    fn together(&self) -> Result<Members<W>, VolumeError> {
        Members::of(self.members.iter().map(Member::volume).collect())
    }

    /// In the order in which the store has them. Where they are not what is published together, each publish says so.
    fn put_in_order(&mut self) {
        let Ok(together) = self.together() else {
            return;
        };
        let order: Vec<Id> = ids(together.volumes());
        let place = |member: &Member<W>| order.iter().position(|id| *id == member.local.id());
        self.members.sort_by_key(place);
    }

    /// Looks at the state after every event until there is something to do.
    async fn next_work(&self) -> Work {
        loop {
            if !self.members.iter().all(Member::is_writable) {
                return Work::End;
            }
            let (now, states) = (self.site.world.now(), self.states());
            let dirty = states.iter().any(|state| state.last > state.published);
            let ages = self.members.iter().map(|it| it.local.dirty_age());
            let age = ages.max().unwrap_or_default();
            let delay = self.site.config.sync.delay;
            let mut all = self.members.iter().zip(&states);
            let has_forks = all.any(|(member, state)| member.has_forks(state));
            let leave_at = self.leave_at().filter(|_| !has_forks);
            let leaving = leave_at.is_some_and(|at| at <= now);
            let mut all = self.members.iter().zip(&states);
            let ordered = all.any(|(member, state)| member.is_ordered(state));
            let pressed = self.members.iter().any(|it| it.local.pressed());
            if ordered || dirty && (leaving || age >= delay || pressed) {
                return Work::Sync;
            }
            if leaving && !dirty {
                return Work::Leave;
            }
            let sync_at = dirty.then(|| now + delay.saturating_sub(age));
            self.wait(dirty, [leave_at, sync_at].into_iter().flatten().min())
                .await;
        }
    }

    /// When all are to be given up, if nobody connects before; none while somebody is at one of them. The order to one is
    /// an order to all: the right to write is theirs together.
    fn leave_at(&self) -> Option<Instant> {
        let mut members = self.members.iter();
        let is_ordered = members.any(|it| it.export.orders.is_leaving());
        let each = self.members.iter().map(|it| it.leave_at(is_ordered));
        let each: Option<Vec<Instant>> = each.collect();
        each?.into_iter().max()
    }

    /// In one step: from here on nobody writes to any. False if one cannot go yet.
    fn begin_leaving(&self) -> bool {
        let may_leave = self.members.iter().all(|it| it.export.may_leave());
        if may_leave {
            self.end(Role::Leaving);
        }
        may_leave
    }

    /// Ends the right to write of all.
    fn end(&self, role: Role) {
        for member in &self.members {
            member.export.end(role);
        }
    }

    async fn wait(&self, dirty: bool, until: Option<Instant>) {
        let timer = async {
            match until {
                Some(at) => self.site.world.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let news = self.members.iter().map(|it| it.news(dirty)).collect();
        race(timer, any(news)).await;
    }

    /// One cut, or one change of the root without one, until it is published or never will be.
    async fn sync(&self) -> Task {
        let (mut attempt, mut kept) = (None, Kept::default());
        let mut failures = 0;
        let began = self.site.world.now();
        loop {
            match self.watched(self.step(&mut attempt, &kept)).await {
                Ok(()) => {
                    let took = self.site.world.now() - began;
                    for member in &self.members {
                        member.export.meter().sync.record(took);
                    }
                    self.recovered();
                    return self.after_publish();
                }
                Err(SyncError::Overtaken) => {
                    if let Some(attempt) = attempt.take() {
                        // What was uploaded is older than what is published by now.
                        self.give_back(&kept.and(&attempt)).await;
                        kept = Kept::default();
                    }
                }
                Err(error) => {
                    let error = self.explained(error).await;
                    failures += 1;
                    if self.failed(&error).await == Task::Ends {
                        return Task::Ends;
                    }
                    if self.back_off(failures, error.retry_after()).await == Task::Ends {
                        return Task::Ends;
                    }
                    // Pages that were written again meanwhile would go to the store twice, with this cut
                    // and with the next. What is there already is used.
                    if let Some(attempt) = attempt.take_if(|it| it.is_replaceable(&kept)) {
                        kept = kept.and(&attempt);
                    }
                }
            }
        }
    }

    /// Of uploads that no publish will name any more.
    async fn give_back(&self, kept: &Kept) {
        for (member, uploaded) in self.members.iter().zip(kept.uploaded()) {
            member.give_back(uploaded).await;
        }
    }

    /// Says it if the store keeps us waiting: one that is silent fails a request only after minutes.
    async fn watched<T>(&self, step: impl Future<Output = T>) -> T {
        let mut step = Box::pin(step);
        let world = &self.site.world;
        loop {
            let uploaded = || -> u64 {
                let each = self.members.iter();
                each.map(|it| it.export.meter().io.get().uploaded_segments)
                    .sum()
            };
            let before = uploaded();
            if let First::Left(done) = race(&mut step, world.sleep(SILENCE_MAX)).await {
                return done;
            }
            // A large cut takes its time.
            if uploaded() == before {
                break;
            }
        }
        if self.export().causes.raise("sync", world.now()) {
            tracing::warn!(export = %self.names(), waited_s = SILENCE_MAX.as_secs(), dirty_bytes = self.dirty_bytes(), "the store takes long for the sync; writes stay in the cache");
        }
        step.await
    }

    fn dirty_bytes(&self) -> u64 {
        self.states().iter().map(|state| state.dirty_bytes).sum()
    }

    /// A page that is to be completed may be gone from the store because another owner has collected it: then this
    /// one is fenced, and would never find out by publishing.
    async fn explained(&self, error: SyncError) -> SyncError {
        let is_missing = match &error {
            SyncError::Volume(error) | SyncError::Read(ReadError::Volume(error)) => {
                error.is_missing()
            }
            _ => false,
        };
        // Whoever takes one of a group has taken all.
        let volume = self.export().frames().volume();
        match volume.filter(|_| is_missing) {
            Some(volume) => match Box::pin(volume.check_epoch()).await {
                Ok(()) => error,
                Err(why) => why.into(),
            },
            None => error,
        }
    }

    /// What a failed step leaves in `attempt` is taken up by the next.
    async fn step(&self, attempt: &mut Option<Attempt<W>>, kept: &Kept) -> Result<(), SyncError> {
        if attempt.is_none() {
            *attempt = Box::pin(self.begin(kept)).await?;
        }
        let Some(attempt) = attempt else {
            return Ok(());
        };
        self.upload(attempt).await?;
        self.publish(attempt).await
    }

    fn after_publish(&self) -> Task {
        if self.export().role() != Role::Leaving {
            for member in &self.members {
                member.export.orders.news.notify_waiters();
                member.tidy();
            }
            return Task::GoesOn;
        }
        for member in &self.members {
            member.discard();
            tracing::info!(export = %member.export.name(), "drained and detached: any node may open the volume now");
        }
        self.end(Role::Closed);
        Task::Ends
    }

    fn recovered(&self) {
        let causes = &self.export().causes;
        if causes.settle("sync") | causes.settle("sync fails") {
            tracing::info!(export = %self.names(), "sync to the store works again");
        }
    }

    /// Says it once per outage, to the log and to those who wait for a drain.
    async fn failed(&self, error: &SyncError) -> Task {
        for member in &self.members {
            member.export.count(|io| io.sync_errors += 1);
        }
        let task = self.judge(error).await;
        // Forks of them wait for what failed.
        let mut states = self.members.iter().filter_map(|it| it.local.state());
        if states.any(|state| !state.forks.is_empty()) {
            self.site.lineage.news.notify_waiters();
        }
        task
    }

    async fn judge(&self, error: &SyncError) -> Task {
        let text = error.to_string();
        match verdict(error) {
            Verdict::Again => {
                self.say_failure(error);
                self.tell_failure(&text);
                return Task::GoesOn;
            }
            Verdict::Fenced => {
                tracing::error!(export = %self.names(), %error, dirty_bytes = self.dirty_bytes(), "fenced: this node stops serving the volume; unpublished writes are kept in its log (docs/runbooks/export-fenced.md)");
                self.end(Role::Fenced);
                self.give_up_epochs().await;
            }
            Verdict::Vanished => {
                tracing::error!(export = %self.names(), %error, "the volume is gone from the store; it is not created again (docs/runbooks/volume-vanished.md)");
                self.end(Role::Vanished);
            }
            Verdict::Halt => {
                tracing::error!(export = %self.names(), %error, "the cache log has stopped; nothing more is published (docs/runbooks/fsync-failed.md)");
                for member in &self.members {
                    member.export.orders.halt(text.clone());
                }
                // Who waits for the detach must not wait for a task that has ended.
                if self.export().role() == Role::Leaving {
                    self.end(Role::Closed);
                }
            }
        }
        self.tell_failure(&text);
        Task::Ends
    }

    /// To those who wait for one of them.
    fn tell_failure(&self, text: &str) {
        for member in &self.members {
            member.export.orders.failed(text.to_owned());
        }
    }

    async fn give_up_epochs(&self) {
        for member in &self.members {
            member.give_up_epoch().await;
        }
    }

    /// Apart from each other: an outage must not hide that credentials ran out in it.
    fn say_failure(&self, error: &SyncError) {
        let (names, causes) = (self.names(), &self.export().causes);
        let now = self.site.world.now();
        if is_passing(error) {
            if causes.raise("sync", now) {
                tracing::warn!(export = %names, %error, "the store does not take the sync; writes stay in the cache and are retried");
            }
        } else if causes.raise("sync fails", now) {
            if let SyncError::Cache(CacheError::Damaged { .. }) = error {
                tracing::error!(export = %names, %error, "a write that is not in the store yet cannot be read back from the cache disk, and what came after it waits; replace the disk, and restart to see what is left (docs/runbooks/fsync-failed.md)");
            } else {
                tracing::error!(export = %names, %error, "the sync fails; writes stay in the cache and are retried (docs/runbooks/store-unavailable.md)");
            }
        }
    }

    /// Waits before the next attempt. A detach that does not get through is given up as soon as
    /// somebody wants to open one of the volumes: opening raises the epochs, so it cannot land later.
    async fn back_off(&self, failures: u32, asked: Option<Duration>) -> Task {
        let world = &self.site.world;
        let mut chance = [0; 4];
        world.fill_random(&mut chance);
        let chance = u32::from_le_bytes(chance);
        let began = world.now();
        self.say_asked(asked, began);
        loop {
            let is_leaving = self.export().role() == Role::Leaving;
            let mut members = self.members.iter();
            if is_leaving && members.any(|it| it.export.orders.is_staying()) {
                self.end(Role::Closed);
                return Task::Ends;
            }
            let members = self.members.iter();
            let wakes = members.map(|it| it.export.orders.wake.notified());
            let woken = any(wakes.collect());
            // Looked at again after each order: the server may end in the middle of a minute that was asked for.
            let kept = match asked {
                Some(asked) if is_leaving && self.site.closing.get() => {
                    Some(asked.min(ENDING_ASKED_MAX))
                }
                asked => asked,
            };
            let deadline = began + BACKOFF.wait(failures, chance, kept);
            if let First::Left(()) = race(world.sleep_until(deadline), woken).await {
                return Task::GoesOn;
            }
        }
    }

    /// That a detach waits because the store wants it: whoever waits for the volume elsewhere would look in vain for a
    /// fault.
    fn say_asked(&self, asked: Option<Duration>, now: Instant) {
        let is_leaving = self.export().role() == Role::Leaving;
        let Some(asked) = asked.filter(|_| is_leaving) else {
            return;
        };
        if self.export().causes.raise("detach waits", now) {
            tracing::warn!(export = %self.names(), asked_s = asked.as_secs(), at_the_end_s = ENDING_ASKED_MAX.as_secs(), "the store asks to be left alone: the detach waits as long as it says, and no other node can open the volume before without force; a server that is told to end waits `at_the_end_s` at most. Whoever opens the volume here has it at once");
        }
    }
}

/// The volumes, by what the log calls them too.
fn ids<W: World>(volumes: &[Volume<W>]) -> Vec<Id> {
    let ids = volumes.iter().map(|volume| volume.root().volume);
    ids.collect()
}

/// What a pass did, for the meters.
pub(crate) fn count<W: World>(export: &Export<W>, tidied: &Tidied) {
    export.count(|io| {
        io.repacked_bytes += tidied.repacked.moved_bytes;
        io.flattened_bytes += tidied.flattened.moved_bytes;
        io.collected_objects += tidied.collected.deleted_objects;
        io.collected_bytes += tidied.collected.deleted_bytes;
    });
}

fn verdict(error: &SyncError) -> Verdict {
    let volume = match error {
        SyncError::Cache(CacheError::Stopped(_)) => return Verdict::Halt,
        SyncError::Cache(_)
        | SyncError::Overtaken
        | SyncError::Read(ReadError::NotYet | ReadError::Cache(_)) => {
            return Verdict::Again;
        }
        SyncError::Volume(error) | SyncError::Read(ReadError::Volume(error)) => error,
    };
    match volume {
        VolumeError::Fenced { .. } | VolumeError::Owned { .. } => Verdict::Fenced,
        VolumeError::Vanished { .. } => Verdict::Vanished,
        _ => Verdict::Again,
    }
}

/// It passes by itself; otherwise a person should look.
fn is_passing(error: &SyncError) -> bool {
    match error {
        SyncError::Volume(error) => is_temporary(error),
        SyncError::Read(error) => error.is_temporary(),
        SyncError::Overtaken => true,
        SyncError::Cache(_) => false,
    }
}

#[cfg(test)]
mod tests;
