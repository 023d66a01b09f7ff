//! Virtual time and what is to happen at which moment of it.
//!
//! Time moves a little with every step of a task, and jumps to the next event when no task is
//! ready. Events of one moment happen in the order in which they were set.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Sim;
use crate::Instant;

/// What happens when its time has come.
pub(super) enum Event {
    Wake(Waker),
    Act(Box<dyn FnOnce(&Sim)>),
}

/// When, and the how-manieth event ever set it is.
pub(super) type EventKey = (Instant, u64);

#[derive(Default)]
pub(super) struct Clock {
    now: Instant,
    set: u64,
    events: BTreeMap<EventKey, Event>,
}

/// A deadline of this value is never reached.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl Clock {
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    pub(super) fn set(&mut self, at: Instant, event: Event) -> EventKey {
        self.set += 1;
        let key = (at, self.set);
        self.events.insert(key, event);
        key
    }

    pub(super) fn unset(&mut self, key: EventKey) -> Option<Event> {
        self.events.remove(&key)
    }

    /// The first event whose time has come.
    pub(super) fn pop_due(&mut self) -> Option<Event> {
        let entry = self.events.first_entry()?;
        (entry.key().0 <= self.now).then(|| entry.remove())
    }

    /// When the next event is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves on to `to`, unless it is later already.
    pub(super) fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
    }

    /// Takes all events, so that they can be dropped where no borrow is held.
    pub(super) fn clear(&mut self) -> BTreeMap<EventKey, Event> {
        std::mem::take(&mut self.events)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?}, {} events)", self.now, self.events.len())
    }
}

/// Waits for a moment. Dropped earlier, it leaves no event behind.
#[derive(Debug)]
pub struct Sleep {
    sim: Sim,
    until: Instant,
    set: Option<EventKey>,
}

impl Sleep {
    pub(super) fn new(sim: Sim, until: Instant) -> Self {
        Self {
            sim,
            until,
            set: None,
        }
    }

    fn unset(&mut self) {
        let old = self
            .set
            .take()
            .and_then(|key| self.sim.shared.clock.borrow_mut().unset(key));
        drop(old);
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.unset();
        if self.sim.now() >= self.until {
            return Poll::Ready(());
        }
        if self.until != NEVER {
            let event = Event::Wake(cx.waker().clone());
            let key = self.sim.shared.clock.borrow_mut().set(self.until, event);
            self.set = Some(key);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.unset();
    }
}
