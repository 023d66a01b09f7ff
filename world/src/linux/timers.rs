//! Who sleeps on a shard, by deadline.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::Instant;

/// The sleepers of one shard. Their number is bounded by that of its tasks' sleeps.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    sleepers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    /// Tells sleepers with the same deadline apart.
    next: Cell<u64>,
}

impl Timers {
    /// A future that completes once [`Timers::fire`] was given a time at or after `deadline`.
    pub(crate) fn sleep_until(&self, deadline: Instant) -> Sleep<'_> {
        let number = self.next.replace(self.next.get() + 1);
        Sleep {
            timers: self,
            key: (deadline, number),
            state: SleepState::Unpolled,
        }
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let sleepers = self.sleepers.borrow();
        sleepers.keys().next().map(|&(deadline, _)| deadline)
    }

    /// Wakes who has slept long enough.
    pub(crate) fn fire(&self, now: Instant) {
        loop {
            let mut sleepers = self.sleepers.borrow_mut();
            let Some(entry) = sleepers.first_entry().filter(|entry| entry.key().0 <= now) else {
                return;
            };
            let waker = entry.remove();
            // The waker may be anybody's code: not under the borrow.
            drop(sleepers);
            waker.wake();
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SleepState {
    Unpolled,
    Waiting,
    Over,
}

/// See [`Timers::sleep_until`].
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    timers: &'a Timers,
    key: (Instant, u64),
    state: SleepState,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut sleepers = self.timers.sleepers.borrow_mut();
        let fired = match self.state {
            SleepState::Unpolled => false,
            SleepState::Waiting => !sleepers.contains_key(&self.key),
            SleepState::Over => true,
        };
        if !fired {
            sleepers.insert(self.key, cx.waker().clone());
        }
        drop(sleepers);
        if fired {
            self.state = SleepState::Over;
            Poll::Ready(())
        } else {
            self.state = SleepState::Waiting;
            Poll::Pending
        }
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if self.state == SleepState::Waiting {
            self.timers.sleepers.borrow_mut().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(sleep: &mut Sleep<'_>) -> Poll<()> {
        Pin::new(sleep).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn sleepers_wake_at_their_deadline_and_not_before() {
        let timers = Timers::default();
        let at = Instant::from_nanos;
        let (mut early, mut late) = (timers.sleep_until(at(10)), timers.sleep_until(at(20)));
        assert!(poll(&mut early).is_pending());
        assert!(poll(&mut late).is_pending());
        assert_eq!(timers.next_deadline(), Some(at(10)));
        timers.fire(at(9));
        assert!(poll(&mut early).is_pending());
        timers.fire(at(10));
        assert!(poll(&mut early).is_ready());
        assert!(poll(&mut late).is_pending());
        assert_eq!(timers.next_deadline(), Some(at(20)));
    }

    #[test]
    fn a_dropped_sleep_leaves_nothing_behind() {
        let timers = Timers::default();
        let mut sleep = timers.sleep_until(Instant::from_nanos(10));
        assert!(poll(&mut sleep).is_pending());
        drop(sleep);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn equal_deadlines_are_two_sleepers() {
        let timers = Timers::default();
        let at = Instant::from_nanos(10);
        let (mut one, mut two) = (timers.sleep_until(at), timers.sleep_until(at));
        assert!(poll(&mut one).is_pending());
        assert!(poll(&mut two).is_pending());
        timers.fire(at);
        assert!(poll(&mut one).is_ready());
        assert!(poll(&mut two).is_ready());
    }
}
