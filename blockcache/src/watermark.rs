//! A number that only grows, and tasks that wait for it to reach theirs.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// One thread's watermark. Waiters are woken in order of what they wait for.
#[derive(Default)]
pub(crate) struct Watermark {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    value: u64,
    /// Nothing will advance any more.
    broken: bool,
    waiters: Vec<(u64, Waker)>,
}

/// The watermark will not advance any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Watermark {
    pub(crate) fn value(&self) -> u64 {
        self.state.borrow().value
    }

    /// Raises the mark and wakes who waits for it or less; not after the break: what was noted then as
    /// the last that was answered stays the last.
    pub(crate) fn advance(&self, to: u64) {
        let woken: Vec<Waker> = {
            let mut state = self.state.borrow_mut();
            if state.broken {
                return;
            }
            state.value = state.value.max(to);
            let value = state.value;
            state
                .waiters
                .extract_if(.., |(target, _)| *target <= value)
                .map(|(_, w)| w)
                .collect()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody, for good.
    pub(crate) fn break_off(&self) {
        let waiters = {
            let mut state = self.state.borrow_mut();
            state.broken = true;
            std::mem::take(&mut state.waiters)
        };
        waiters.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Returns once the mark is at `target` or beyond.
    pub(crate) async fn reached(&self, target: u64) -> Result<(), Broken> {
        poll_fn(|cx| {
            let mut state = self.state.borrow_mut();
            if state.value >= target {
                return Poll::Ready(Ok(()));
            }
            if state.broken {
                return Poll::Ready(Err(Broken));
            }
            state.waiters.push((target, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watermark({})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write that reaches the kernel after the log has stopped is not in what the stop noted as
    /// answered: were it answered all the same, its loss would look like a torn tail.
    #[test]
    fn nothing_is_reached_after_the_break() {
        let mark = Watermark::default();
        mark.advance(3);
        mark.break_off();
        mark.advance(5);
        assert_eq!(mark.value(), 3);
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let mut late = std::pin::pin!(mark.reached(5));
        assert_eq!(late.as_mut().poll(&mut cx), Poll::Ready(Err(Broken)));
    }
}
