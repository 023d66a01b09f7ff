//! A single-thread executor: tasks, a ready queue, nothing else.
//!
//! Who drives it decides when time passes and what is polled next: a shard thread takes the oldest
//! ready task ([`Executor::run_next`]), the simulator takes one by its seed
//! ([`Executor::run_ready`]). Wakers may be used from any thread; a wake from another thread calls
//! the `unpark` given at creation (an eventfd of the ring).

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;

use crossbeam_queue::SegQueue;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one shard or one simulated host.
pub struct Executor {
    slots: RefCell<Slots>,
    ready: Arc<Ready>,
}

#[derive(Default)]
struct Slots {
    tasks: Vec<Slot>,
    free: Vec<usize>,
}

/// A task is out of its slot while it is polled, so that it may spawn others.
struct Slot {
    task: Option<Task>,
    waker: Arc<TaskWaker>,
}

struct Ready {
    queue: SegQueue<Arc<TaskWaker>>,
    owner: ThreadId,
    unpark: Box<dyn Fn() + Send + Sync>,
}

struct TaskWaker {
    slot: usize,
    /// In the ready queue already: a task is there at most once, so the queue is bounded by the
    /// number of tasks.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        self.ready.queue.push(Arc::clone(self));
        if std::thread::current().id() != self.ready.owner {
            (self.ready.unpark)();
        }
    }
}

impl Executor {
    /// `unpark` is called, from the waking thread, after a wake that came from another thread.
    pub fn new(unpark: impl Fn() + Send + Sync + 'static) -> Self {
        let owner = std::thread::current().id();
        let ready = Ready {
            queue: SegQueue::new(),
            owner,
            unpark: Box::new(unpark),
        };
        Self {
            slots: RefCell::default(),
            ready: Arc::new(ready),
        }
    }

    /// Adds a task; it is ready at once.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut slots = self.slots.borrow_mut();
        let index = slots.free.pop().unwrap_or(slots.tasks.len());
        let waker = Arc::new(TaskWaker {
            slot: index,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        let slot = Slot {
            task: Some(Box::pin(task)),
            waker: Arc::clone(&waker),
        };
        if index == slots.tasks.len() {
            slots.tasks.push(slot);
        } else {
            slots.tasks[index] = slot;
        }
        drop(slots);
        waker.wake();
    }

    /// How many tasks are in the ready queue.
    pub fn ready_count(&self) -> usize {
        self.ready.queue.len()
    }

    /// How many tasks live.
    pub fn task_count(&self) -> usize {
        let slots = self.slots.borrow();
        slots.tasks.len() - slots.free.len()
    }

    /// Polls the task that has been ready longest. False if none was ready.
    pub fn run_next(&self) -> bool {
        self.run_ready(0)
    }

    /// Polls the ready task behind `skip` others (those move to the end of the queue, in order).
    /// False if none was ready.
    pub fn run_ready(&self, skip: usize) -> bool {
        for _ in 0..skip {
            if let Some(waker) = self.ready.queue.pop() {
                self.ready.queue.push(waker);
            }
        }
        let Some(waker) = self.ready.queue.pop() else {
            return false;
        };
        self.poll(&waker);
        true
    }

    fn poll(&self, waker: &Arc<TaskWaker>) {
        // Before the poll: a wake during it must queue the task again.
        waker.queued.store(false, Ordering::Release);
        let Some(mut task) = self.take(waker) else {
            return;
        };
        let outcome = {
            let waker = Waker::from(Arc::clone(waker));
            task.as_mut().poll(&mut Context::from_waker(&waker))
        };
        let mut slots = self.slots.borrow_mut();
        match outcome {
            Poll::Pending => slots.tasks[waker.slot].task = Some(task),
            Poll::Ready(()) => {
                slots.free.push(waker.slot);
                // The task's destructors may spawn or wake: not under the borrow.
                drop(slots);
                drop(task);
            }
        }
    }

    /// The task of a waker; none if it has ended and its slot serves another by now.
    fn take(&self, waker: &Arc<TaskWaker>) -> Option<Task> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.tasks.get_mut(waker.slot)?;
        if Arc::ptr_eq(&slot.waker, waker) {
            slot.task.take()
        } else {
            None
        }
    }

    /// Drops every task where it stands, as the end of a process does.
    pub fn kill(&self) {
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        while self.ready.queue.pop().is_some() {}
        drop(slots);
        // Destructors above may have woken tasks that are gone.
        while self.ready.queue.pop().is_some() {}
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("tasks", &self.task_count())
            .field("ready", &self.ready_count())
            .finish()
    }
}

/// Lets the other ready tasks run once. The body of every [`crate::World::yield_now`].
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    fn run_all(executor: &Executor) {
        while executor.run_next() {}
    }

    #[test]
    fn a_task_may_spawn_another_while_it_runs() {
        let executor = Rc::new(Executor::new(|| ()));
        let done = Rc::new(Cell::new(0));
        let (inner, count) = (Rc::clone(&executor), Rc::clone(&done));
        executor.spawn(async move {
            let count_too = Rc::clone(&count);
            inner.spawn(async move { count_too.set(count_too.get() + 1) });
            count.set(count.get() + 1);
        });
        run_all(&executor);
        assert_eq!(done.get(), 2);
        assert_eq!(executor.task_count(), 0);
    }

    #[test]
    fn a_wake_during_a_poll_is_not_lost() {
        let executor = Executor::new(|| ());
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        executor.spawn(async move {
            for _ in 0..3 {
                yield_now().await;
            }
            seen.set(true);
        });
        run_all(&executor);
        assert!(done.get());
    }

    #[test]
    fn a_stale_waker_does_not_touch_the_next_task_of_its_slot() {
        let executor = Executor::new(|| ());
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let keep = Rc::clone(&kept);
        executor.spawn(std::future::poll_fn(move |cx| {
            *keep.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        }));
        run_all(&executor);
        let polls = Rc::new(Cell::new(0));
        let count = Rc::clone(&polls);
        executor.spawn(std::future::poll_fn(move |_| {
            count.set(count.get() + 1);
            Poll::Pending
        }));
        run_all(&executor);
        kept.borrow_mut()
            .take()
            .expect("the first task stored its waker")
            .wake();
        run_all(&executor);
        assert_eq!(polls.get(), 1);
    }

    #[test]
    fn a_wake_from_another_thread_unparks() {
        let unparked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&unparked);
        let executor = Executor::new(move || flag.store(true, Ordering::SeqCst));
        let (sender, receiver) = crate::sync::oneshot::channel::<()>();
        executor.spawn(async move { receiver.await.expect("the sender sends") });
        run_all(&executor);
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(()).expect("the task waits"));
        });
        assert!(unparked.load(Ordering::SeqCst));
        run_all(&executor);
        assert_eq!(executor.task_count(), 0);
    }
}
