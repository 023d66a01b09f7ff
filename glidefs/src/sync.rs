//! Brings what was written to the store: one task per read-write export, the only one that
//! publishes its root.
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
pub mod plan;
pub(crate) mod uploads;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{CacheError, CacheVolume, Id, LocalVolume};
use world::{Instant, World};

use crate::export::decide::{Ours, Plan, Records, Seen, decide};
use crate::export::frames::{ReadError, is_temporary};
use crate::export::open::adopt;
use crate::export::shelf::Trouble;
use crate::export::site::Site;
use crate::export::{Export, Role};
use crate::race::{First, race};
use crate::volume::{Tidied, Tidy, Volume, VolumeError};
use attempt::{Attempt, Kept};
use backoff::Backoff;

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

/// How often in all the store may answer with an unreadable root, before an export that was resumed
/// without asking it ends: what it serves may be over since long (promise 7).
const UNREADABLE_ANSWERS_MAX: u32 = 3;

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

/// The sync task of one export.
#[derive(Debug)]
pub(crate) struct Syncer<W: World> {
    site: Rc<Site<W>>,
    export: Rc<Export<W>>,
    local: CacheVolume<W>,
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

/// What an error means for the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Try again later, with everything kept.
    Again,
    Fenced,
    Vanished,
    /// The log takes nothing more: there is nothing to publish from.
    Halt,
}

/// Starts the task. It ends with the role `ReadWrite` of the export, and leaves nothing behind.
pub(crate) fn start<W: World>(site: &Rc<Site<W>>, export: &Rc<Export<W>>) {
    let local = export.local().expect("only read-write exports sync");
    // The open wrote the root a moment ago, or the process before this one may have.
    let turn = site.world.now() + site.config.sync.publish_interval_min;
    site.lineage.opened(local.id(), export);
    let syncer = Syncer {
        site: Rc::clone(site),
        export: Rc::clone(export),
        local: local.clone(),
        turn: Cell::new(turn),
        unsent: Cell::default(),
    };
    site.world.spawn(async move { syncer.run().await });
}

impl<W: World> Syncer<W> {
    async fn run(self) {
        let proved = match self.export.frames().base() {
            Some(base) => Box::pin(self.publish_fork(base)).await,
            None if self.export.root().is_none() => Box::pin(self.prove()).await,
            None => Task::GoesOn,
        };
        if proved == Task::Ends {
            return;
        }
        loop {
            match self.next_work().await {
                Work::Sync => {}
                // Whoever connects from now on opens the volume anew, after this task has ended.
                Work::Leave if self.export.begin_leaving() => {}
                Work::Leave => continue,
                Work::End => return,
            }
            if Box::pin(self.sync()).await == Task::Ends {
                return;
            }
        }
    }

    /// Looks at the state after every event until there is something to do.
    async fn next_work(&self) -> Work {
        loop {
            if self.export.role() != Role::ReadWrite {
                return Work::End;
            }
            let (now, state) = (self.site.world.now(), self.state());
            let dirty = state.last > state.published;
            let age = self.local.dirty_age();
            let delay = self.site.config.sync.delay;
            let leave_at = self.leave_at().filter(|_| !self.has_forks(&state));
            let leaving = leave_at.is_some_and(|at| at <= now);
            let orders = &self.export.orders;
            let ordered = orders.drain_to() > state.published
                || orders.has_snapshots()
                || orders.has_data_key()
                || orders.is_carrying()
                || self.forks_wait(&state)
                || self.must_grow();
            if ordered || dirty && (leaving || age >= delay || self.local.pressed()) {
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

    /// When the export is to be given up, if nobody connects before; none while somebody is here.
    fn leave_at(&self) -> Option<Instant> {
        let since = self.export.clients.none_since()?;
        if self.export.orders.is_leaving() {
            return Some(since);
        }
        // The grace time is not to end in the middle of a shutdown, which gives the order itself.
        (!self.site.closing.get()).then(|| since + self.site.config.grace)
    }

    fn must_grow(&self) -> bool {
        let size = self.export.size_bytes();
        self.export.orders.grow_to().is_some_and(|to| to > size)
    }

    async fn wait(&self, dirty: bool, until: Option<Instant>) {
        let timer = async {
            match until {
                Some(at) => self.site.world.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let news = async {
            if dirty {
                self.local.wait_pressed().await;
            } else {
                self.local.wait_dirty().await;
            }
        };
        race(self.export.orders.wake.notified(), race(timer, news)).await;
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
                    self.export.meter().sync.record(took);
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
        if let Some(volume) = self.export.frames().volume() {
            Box::pin(volume.give_back_uploads(kept.uploaded())).await;
        }
    }

    /// Says it if the store keeps us waiting: one that is silent fails a request only after minutes.
    async fn watched<T>(&self, step: impl Future<Output = T>) -> T {
        let mut step = Box::pin(step);
        let world = &self.site.world;
        loop {
            let uploaded = || self.export.meter().io.get().uploaded_segments;
            let before = uploaded();
            if let First::Left(done) = race(&mut step, world.sleep(SILENCE_MAX)).await {
                return done;
            }
            // A large cut takes its time.
            if uploaded() == before {
                break;
            }
        }
        let (export, causes) = (&self.export, &self.export.causes);
        if causes.raise("sync", world.now()) {
            tracing::warn!(export = %export.name(), waited_s = SILENCE_MAX.as_secs(), dirty_bytes = self.state().dirty_bytes, "the store takes long for the sync; writes stay in the cache");
        }
        step.await
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
        let volume = self.export.frames().volume();
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
            *attempt = self.begin(kept).await?;
        }
        let Some(attempt) = attempt else {
            return Ok(());
        };
        self.upload(attempt).await?;
        self.publish(attempt).await
    }

    fn after_publish(&self) -> Task {
        if self.export.role() != Role::Leaving {
            self.export.orders.news.notify_waiters();
            self.tidy();
            return Task::GoesOn;
        }
        self.discard();
        tracing::info!(export = %self.export.name(), "drained and detached: any node may open the volume now");
        self.export.end(Role::Closed);
        Task::Ends
    }

    /// Keeps the map short and gives space back, beside the next syncs, which carry the result.
    fn tidy(&self) {
        let Some(volume) = self.export.frames().volume() else {
            return;
        };
        let (export, tidy) = (Rc::clone(&self.export), self.site.config.sync.tidy);
        self.site.world.spawn(async move {
            match Box::pin(volume.tidy(&tidy)).await {
                Ok(tidied) => {
                    export.causes.settle("map");
                    count(&export, &tidied);
                }
                Err(error) if export.causes.raise("map", export.world().now()) => {
                    tracing::warn!(export = %export.name(), %error, "the volume in the store is not tidied; tried again after the next sync");
                }
                Err(_told) => {}
            }
        });
    }

    /// Work on the map that was under way is lost with the detach; what it wrote is not left behind.
    fn discard(&self) {
        let Some(volume) = self.export.frames().volume() else {
            return;
        };
        let export = Rc::clone(&self.export);
        self.site.world.spawn(async move {
            if let Err(error) = Box::pin(volume.discard_fresh()).await {
                tracing::info!(export = %export.name(), %error, "objects that nobody needs stay in the store: `glidefs gc run` sweeps them");
            }
        });
    }

    fn recovered(&self) {
        let causes = &self.export.causes;
        if causes.settle("sync") | causes.settle("sync fails") {
            tracing::info!(export = %self.export.name(), "sync to the store works again");
        }
    }

    /// Says it once per outage, to the log and to those who wait for a drain.
    async fn failed(&self, error: &SyncError) -> Task {
        self.export.count(|io| io.sync_errors += 1);
        let task = self.judge(error).await;
        // Forks of it wait for what failed.
        if self
            .local
            .state()
            .is_some_and(|state| !state.forks.is_empty())
        {
            self.site.lineage.news.notify_waiters();
        }
        task
    }

    async fn judge(&self, error: &SyncError) -> Task {
        let name = self.export.name();
        let text = error.to_string();
        match verdict(error) {
            Verdict::Again => {
                self.say_failure(error);
                self.export.orders.failed(text);
                return Task::GoesOn;
            }
            Verdict::Fenced => {
                tracing::error!(export = %name, %error, dirty_bytes = self.state().dirty_bytes, "fenced: this node stops serving the volume; unpublished writes are kept in its log (docs/runbooks/export-fenced.md)");
                self.export.end(Role::Fenced);
                self.give_up_epoch().await;
            }
            Verdict::Vanished => {
                tracing::error!(export = %name, %error, "the volume is gone from the store; it is not created again (docs/runbooks/volume-vanished.md)");
                self.export.end(Role::Vanished);
            }
            Verdict::Halt => {
                tracing::error!(export = %name, %error, "the cache log has stopped; nothing more is published (docs/runbooks/fsync-failed.md)");
                self.export.orders.halt(text.clone());
                // Who waits for the detach must not wait for a task that has ended.
                if self.export.role() == Role::Leaving {
                    self.export.end(Role::Closed);
                }
            }
        }
        self.export.orders.failed(text);
        Task::Ends
    }

    /// Apart from each other: an outage must not hide that credentials ran out in it.
    fn say_failure(&self, error: &SyncError) {
        let (name, causes) = (self.export.name(), &self.export.causes);
        let now = self.site.world.now();
        if is_passing(error) {
            if causes.raise("sync", now) {
                tracing::warn!(export = %name, %error, "the store does not take the sync; writes stay in the cache and are retried");
            }
        } else if causes.raise("sync fails", now) {
            if let SyncError::Cache(CacheError::Damaged { .. }) = error {
                tracing::error!(export = %name, %error, "a write that is not in the store yet cannot be read back from the cache disk, and what came after it waits; replace the disk, and restart to see what is left (docs/runbooks/fsync-failed.md)");
            } else {
                tracing::error!(export = %name, %error, "the sync fails; writes stay in the cache and are retried (docs/runbooks/store-unavailable.md)");
            }
        }
    }

    /// So that no restart during an outage resumes an epoch that is known to be over.
    async fn give_up_epoch(&self) {
        if let Err(error) = self.local.detached().await {
            tracing::error!(export = %self.export.name(), %error, "the end of the epoch could not be noted in the log (docs/runbooks/fsync-failed.md)");
        }
    }

    fn state(&self) -> LocalVolume {
        let state = self.local.state();
        state.expect("a volume is dropped from the log only after its export has ended")
    }

    /// Waits before the next attempt. A detach that does not get through is given up as soon as
    /// somebody wants to open the volume: opening raises the epoch, so it cannot land later.
    async fn back_off(&self, failures: u32, asked: Option<Duration>) -> Task {
        let world = &self.site.world;
        let mut chance = [0; 4];
        world.fill_random(&mut chance);
        let chance = u32::from_le_bytes(chance);
        let began = world.now();
        self.say_asked(asked, began);
        loop {
            let is_leaving = self.export.role() == Role::Leaving;
            if is_leaving && self.export.orders.is_staying() {
                self.export.end(Role::Closed);
                return Task::Ends;
            }
            let wake = self.export.orders.wake.notified();
            // Looked at again after each order: the server may end in the middle of a minute that was asked for.
            let kept = match asked {
                Some(asked) if is_leaving && self.site.closing.get() => {
                    Some(asked.min(ENDING_ASKED_MAX))
                }
                asked => asked,
            };
            let deadline = began + BACKOFF.wait(failures, chance, kept);
            if let First::Left(()) = race(world.sleep_until(deadline), wake).await {
                return Task::GoesOn;
            }
        }
    }

    /// That a detach waits because the store wants it: whoever waits for the volume elsewhere would look in vain for a
    /// fault.
    fn say_asked(&self, asked: Option<Duration>, now: Instant) {
        let is_leaving = self.export.role() == Role::Leaving;
        let Some(asked) = asked.filter(|_| is_leaving) else {
            return;
        };
        if self.export.causes.raise("detach waits", now) {
            tracing::warn!(export = %self.export.name(), asked_s = asked.as_secs(), at_the_end_s = ENDING_ASKED_MAX.as_secs(), "the store asks to be left alone: the detach waits as long as it says, and no other node can open the volume before without force; a server that is told to end waits `at_the_end_s` at most. Whoever opens the volume here has it at once");
        }
    }

    /// After a start without the store: asks it until it answers, and believes the log only if the
    /// root agrees (rule 14).
    async fn prove(&self) -> Task {
        let mut failures = 0;
        let mut unreadable = 0;
        loop {
            let asked = self.site.shelf.ask(self.export.name()).await;
            match asked.seen {
                // The password was changed elsewhere while the store was out of reach: guests go on as in the outage, and a
                // person puts it right.
                Seen::Unreadable(why) if asked.trouble == Trouble::Keys => {
                    failures += 1;
                    let (name, causes) = (self.export.name(), &self.export.causes);
                    if causes.raise("sync fails", self.site.world.now()) {
                        tracing::error!(export = %name, error = %why, "the store's keys cannot be opened; the volume is served from the cache, and nothing is published: give this node the current password, and start it again with two SIGTERMs (docs/runbooks/store-unavailable.md)");
                    }
                    self.export.orders.failed(why);
                    if self.back_off(failures, asked.retry_after).await == Task::Ends {
                        return Task::Ends;
                    }
                }
                // Once may be something on the way that answers in the store's place.
                Seen::Unreadable(why) => {
                    unreadable += 1;
                    tracing::error!(export = %self.export.name(), error = %why, "what the store holds of the volume cannot be read; restore the object that is named (docs/runbooks/volume-vanished.md)");
                    if unreadable == UNREADABLE_ANSWERS_MAX {
                        self.export.end(Role::Vanished);
                        return Task::Ends;
                    }
                    self.export.orders.failed(why);
                    if self.back_off(unreadable, asked.retry_after).await == Task::Ends {
                        return Task::Ends;
                    }
                }
                Seen::Unreachable(why) => {
                    failures += 1;
                    let (name, causes) = (self.export.name(), &self.export.causes);
                    let now = self.site.world.now();
                    let is_refused = asked.trouble == Trouble::Refused;
                    if is_refused && causes.raise("sync fails", now) {
                        tracing::error!(export = %name, error = %why, "the store refuses to be asked; the volume is served from the cache (docs/runbooks/store-unavailable.md)");
                    } else if !is_refused && causes.raise("sync", now) {
                        tracing::warn!(export = %name, error = %why, "the store cannot be asked; the volume is served from the cache");
                    }
                    self.export.orders.failed(why);
                    if self.back_off(failures, asked.retry_after).await == Task::Ends {
                        return Task::Ends;
                    }
                }
                Seen::Absent => {
                    tracing::error!(export = %self.export.name(), "the volume is gone from the store; it is not created again (docs/runbooks/volume-vanished.md)");
                    self.export.end(Role::Vanished);
                    return Task::Ends;
                }
                Seen::Root(_) => {
                    let volume = asked.volume.expect("a root comes with its volume");
                    if self.agree(volume) {
                        self.recovered();
                        // The root may hold more than the log had noted: nothing may be left to
                        // publish, and so nothing else would tell those who wait for a drain.
                        self.export.orders.news.notify_waiters();
                        return Task::GoesOn;
                    }
                    self.export.end(Role::Fenced);
                    self.give_up_epoch().await;
                    return Task::Ends;
                }
            }
        }
    }

    /// True if the root is what this log made of it: then the store is read from now on.
    fn agree(&self, volume: Volume<W>) -> bool {
        let (root, state) = (volume.root(), self.state());
        let ours = Ours {
            cache: self.site.owner.cache,
            local: Some(&state),
            create_bytes: None,
            over_deleted: false,
        };
        let plan = decide(&Seen::Root(root.clone()), ours);
        let records = Records::Keep;
        if plan != (Plan::Resume { records })
            || volume.resume(&self.site.owner, state.epoch).is_err()
        {
            tracing::error!(export = %self.export.name(), epoch = %state.epoch, root_epoch = %root.epoch, dirty_bytes = state.dirty_bytes, "fenced: somebody else changed the volume since; unpublished writes are kept in the log (docs/runbooks/export-fenced.md)");
            return false;
        }
        // In one step: what counts as clean must be readable from the map.
        self.export.frames().set_volume(volume);
        adopt(&self.local, &state, &root);
        self.export
            .set_size(root.size_bytes.max(self.export.size_bytes()));
        true
    }
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
