//! What others ask of the one task that publishes an export, and how they learn the outcome.

use std::cell::{Cell, RefCell};

use blockcache::Seq;
use world::sync::Notify;

use crate::volume::{NewDataKey, SnapshotChange};

/// Changes of the list of snapshots that wait for a publish. At the bound, who asks for more is refused.
pub(crate) const SNAPSHOT_ORDERS_MAX: usize = 256;

/// Orders for an export's sync task. Levels, not messages: asking twice is asking once.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// Publish at least up to here, without delay.
    drain_to: Cell<Seq>,
    /// Publish this size.
    grow_to: Cell<Option<u64>>,
    /// Change the list of snapshots, at a cut that is not before the one named: whatever was answered when
    /// it was asked for is in it.
    snapshots: RefCell<Vec<(Seq, SnapshotChange)>>,
    /// Publish this data key, so that what is sealed from there on is sealed under it. One at a time.
    data_key: RefCell<Option<NewDataKey>>,
    /// Publish what was done to the map, also if nothing was written.
    carry: Cell<bool>,
    /// Forks that are being noted: their cuts must be published by this very task.
    forking: Cell<u32>,
    /// Detach as soon as nobody is connected and nothing is dirty, not after the grace time.
    leave: Cell<bool>,
    /// Somebody waits to open the volume again: give a detach up that does not get through.
    stay: Cell<bool>,
    /// Attempts to publish that failed since the export was opened.
    failures: Cell<u64>,
    last_failure: RefCell<String>,
    /// A fork that waits for something that only a person can bring about.
    stuck: Cell<bool>,
    /// Why the task ended while the export goes on (the log stopped).
    halted: RefCell<Option<String>>,
    /// To the task: look at the orders.
    pub(crate) wake: Notify,
    /// To those who wait: something was published, failed, or ended.
    pub(crate) news: Notify,
}

impl Orders {
    pub(crate) fn drain(&self, target: Seq) {
        self.drain_to.set(self.drain_to.get().max(target));
        self.wake.notify_one();
    }

    pub(crate) fn drain_to(&self) -> Seq {
        self.drain_to.get()
    }

    pub(crate) fn grow(&self, size_bytes: u64) {
        self.grow_to.set(self.grow_to.get().max(Some(size_bytes)));
        self.wake.notify_one();
    }

    pub(crate) fn grow_to(&self) -> Option<u64> {
        self.grow_to.get()
    }

    /// The size is published; a larger order that came since stays.
    pub(crate) fn grown(&self, size_bytes: u64) {
        if self
            .grow_to
            .get()
            .is_some_and(|wanted| wanted <= size_bytes)
        {
            self.grow_to.set(None);
        }
    }

    /// False if too many wait already. Asked twice, it is done once.
    pub(crate) fn snapshot(&self, target: Seq, change: SnapshotChange) -> bool {
        let mut waiting = self.snapshots.borrow_mut();
        if waiting.iter().any(|(_, known)| *known == change) {
            return true;
        }
        if waiting.len() == SNAPSHOT_ORDERS_MAX {
            return false;
        }
        waiting.push((target, change));
        self.wake.notify_one();
        true
    }

    pub(crate) fn has_snapshots(&self) -> bool {
        !self.snapshots.borrow().is_empty()
    }

    pub(crate) fn has_snapshot(&self, change: &SnapshotChange) -> bool {
        let waiting = self.snapshots.borrow();
        waiting.iter().any(|(_, known)| known == change)
    }

    /// What a publish of this cut carries.
    pub(crate) fn snapshots_at(&self, cut: Seq) -> Vec<SnapshotChange> {
        let waiting = self.snapshots.borrow();
        let due = waiting.iter().filter(|(target, _)| *target <= cut);
        due.map(|(_, change)| change.clone()).collect()
    }

    /// Nobody waits for them any more. What an attempt carries already may still come.
    pub(crate) fn withdraw(&self, changes: &[SnapshotChange]) {
        self.snapshots_done(changes);
    }

    /// They are published. What was asked for since stays.
    pub(crate) fn snapshots_done(&self, done: &[SnapshotChange]) {
        let mut waiting = self.snapshots.borrow_mut();
        waiting.retain(|(_, change)| !done.contains(change));
    }

    /// False if one for another request waits already. Asked twice, it is done once.
    pub(crate) fn renew(&self, key: NewDataKey) -> bool {
        let mut waiting = self.data_key.borrow_mut();
        if let Some(known) = &*waiting {
            return known.is_same(&key);
        }
        *waiting = Some(key);
        self.wake.notify_one();
        true
    }

    /// What the next publish carries.
    pub(crate) fn data_key(&self) -> Option<NewDataKey> {
        self.data_key.borrow().clone()
    }

    pub(crate) fn has_data_key(&self) -> bool {
        self.data_key.borrow().is_some()
    }

    /// One for the same request waits.
    pub(crate) fn renews(&self, key: &NewDataKey) -> bool {
        let waiting = self.data_key.borrow();
        waiting.as_ref().is_some_and(|known| known.is_same(key))
    }

    /// It is published, or nobody waits for it any more. What an attempt carries already may still come; one that was
    /// asked for since stays.
    pub(crate) fn renewed(&self, key: &NewDataKey) {
        let mut waiting = self.data_key.borrow_mut();
        waiting.take_if(|known| known.is_same(key));
    }

    pub(crate) fn carry(&self) {
        self.carry.set(true);
        self.wake.notify_one();
    }

    pub(crate) fn is_carrying(&self) -> bool {
        self.carry.get()
    }

    /// Something was published.
    pub(crate) fn carried(&self) {
        self.carry.set(false);
    }

    /// Until it is dropped, the export is not given up.
    pub(crate) fn forking(&self) -> Forking<'_> {
        self.forking.set(self.forking.get() + 1);
        Forking(self)
    }

    pub(crate) fn is_forking(&self) -> bool {
        self.forking.get() > 0
    }

    pub(crate) fn leave(&self) {
        self.leave.set(true);
        self.wake.notify_one();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leave.get()
    }

    pub(crate) fn stay(&self) {
        self.stay.set(true);
        self.wake.notify_one();
    }

    pub(crate) fn is_staying(&self) -> bool {
        self.stay.get()
    }

    pub(crate) fn failed(&self, text: String) {
        self.failures.set(self.failures.get() + 1);
        self.last_failure.replace(text);
        self.news.notify_waiters();
    }

    /// Whoever ends the server does not wait for it.
    pub(crate) fn stick(&self, is_stuck: bool) {
        self.stuck.set(is_stuck);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.get()
    }

    pub(crate) fn halt(&self, text: String) {
        self.halted.replace(Some(text));
        self.news.notify_waiters();
    }

    pub(crate) fn halted(&self) -> Option<String> {
        self.halted.borrow().clone()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.get()
    }

    pub(crate) fn last_failure(&self) -> String {
        self.last_failure.borrow().clone()
    }
}

/// A fork that is being noted.
#[derive(Debug)]
pub(crate) struct Forking<'a>(&'a Orders);

impl Drop for Forking<'_> {
    fn drop(&mut self) {
        self.0.forking.set(self.0.forking.get() - 1);
        self.0.wake.notify_one();
    }
}
