//! Waiting for whichever of two things comes first; the other is dropped where it stands.
//!
//! Only for futures that lose nothing when dropped: timers, notifications, looks at a state. Never
//! for a write, a cut or a publish.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

/// Which one came first.
#[derive(Debug)]
pub(crate) enum First<A, B> {
    Left(A),
    Right(B),
}

/// If both are ready, the left one wins: the order is fixed, so a simulation repeats.
pub(crate) async fn race<A, B>(left: A, right: B) -> First<A::Output, B::Output>
where
    A: Future,
    B: Future,
{
    let (mut left, mut right) = (pin!(left), pin!(right));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = left.as_mut().poll(cx) {
            return Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}

/// Returns once one of them is done; the others are dropped where they stand.
pub(crate) async fn any<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        let is_done = waiting.iter_mut().any(|it| it.as_mut().poll(cx).is_ready());
        match is_done {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Drives all futures to their end within this task, so that none is left behind if it ends.
pub(crate) async fn join_all<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        running.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if running.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
