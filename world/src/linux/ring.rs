//! One io_uring per shard thread: operations go in, futures complete with their results.
//!
//! Promises:
//! - What an operation needs (its file and its buffer) belongs to the operation until the kernel has
//!   answered it, also when the future that waited was dropped: such an operation is cancelled, and
//!   its buffer is freed when the answer arrives, not before.
//! - Dropping the ring waits for everything in flight.
//! - Operations reach the kernel once per [`Ring::turn`], together; a full submission queue is
//!   handed over early.
//!
//! Deliberately absent: registered files and buffers, linked operations, kernel-side polling.
#![expect(
    unsafe_code,
    reason = "the kernel works on memory behind the compiler's back; this is the only file that lets it"
)]

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFlags};
use rustix::io::Errno;

use crate::Buf;
use crate::sync::{OwnedSemaphorePermit, Semaphore};

/// Operations that fit into one batch to the kernel; more are handed over in several.
const SUBMISSIONS_MAX: u32 = 1024;
/// Answers that fit into the shared queue; the kernel keeps what does not fit.
const COMPLETIONS_MAX: u32 = 4096;
/// Disk operations in flight; further callers wait. Polls do not count: each open socket has at
/// most two, and an idle one must not keep a disk operation from starting.
const DISK_OPERATIONS_MAX: usize = 1024;
/// Bytes of one read or write: what the kernel moves at most in one call.
const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;

/// Answers to these are nobody's: cancel requests, and the doorbell.
const CANCEL: u64 = u64::MAX;
const DOORBELL: u64 = u64::MAX - 1;

/// Wakes a shard that sleeps in the kernel, from another thread.
#[derive(Debug)]
pub(crate) struct Doorbell {
    eventfd: OwnedFd,
    /// The shard sleeps, or is about to. Saves a system call for each wake of a busy shard.
    asleep: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            eventfd: rustix::event::eventfd(0, flags)?,
            asleep: AtomicBool::new(false),
        })
    }

    /// To be called after the work was put where the shard will look for it.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `announce_sleep`: either this load sees `asleep`, or the shard,
        // looking again after it announced its sleep, sees the work.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the shard is being woken anyway.
            let _woken = rustix::io::write(&self.eventfd, &1_u64.to_le_bytes());
        }
    }

    /// To be called before the shard looks for work a last time and sleeps.
    pub(crate) fn announce_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn announce_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    fn reset(&self) {
        let mut count = [0; 8];
        // Nothing to read is fine too.
        let _count = rustix::io::read(&self.eventfd, &mut count);
    }
}

/// What the kernel may touch while an operation is in flight.
#[derive(Debug, Default)]
#[expect(
    dead_code,
    reason = "the file and the permit are only kept, and then dropped"
)]
struct Held {
    fd: Option<Rc<OwnedFd>>,
    buf: Buf,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Slot {
    Vacant,
    InFlight {
        held: Held,
        waiter: Waiter,
    },
    /// Answered, and not yet fetched by its future.
    Answered {
        held: Held,
        result: i32,
    },
}

#[derive(Debug)]
enum Waiter {
    /// The future lives, and has not been polled yet.
    Unpolled,
    Polled(Waker),
    /// The future was dropped: nobody wants the answer.
    Gone,
}

/// The ring of one shard thread.
pub(crate) struct Ring {
    inner: RefCell<Inner>,
    disk_operations: Arc<Semaphore>,
    doorbell: Arc<Doorbell>,
}

struct Inner {
    uring: IoUring,
    slots: Vec<Slot>,
    vacant: Vec<usize>,
    in_flight: usize,
    doorbell_armed: bool,
    /// No new operations: the shard ends.
    closed: bool,
    /// Collected under the borrow, to be woken and dropped outside it.
    woken: Vec<Waker>,
    released: Vec<Held>,
}

impl Ring {
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> io::Result<Self> {
        let inner = Inner {
            uring: new_uring()?,
            slots: Vec::new(),
            vacant: Vec::new(),
            in_flight: 0,
            doorbell_armed: false,
            closed: false,
            woken: Vec::new(),
            released: Vec::new(),
        };
        Ok(Self {
            inner: RefCell::new(inner),
            disk_operations: Arc::new(Semaphore::new(DISK_OPERATIONS_MAX)),
            doorbell,
        })
    }

    /// Waits until a socket is ready for `events` (or broken: its next system call tells).
    pub(crate) async fn ready(&self, fd: &Rc<OwnedFd>, events: PollFlags) -> Result<(), Errno> {
        let held = Held {
            fd: Some(Rc::clone(fd)),
            ..Held::default()
        };
        let entry =
            opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), u32::from(events.bits())).build();
        let (_, result) = self.start(entry, held)?.await;
        result.map(|_events| ())
    }

    /// Reads into `buf` from its byte `filled` on; returns how many bytes arrived.
    pub(crate) async fn read(
        &self,
        fd: &Rc<OwnedFd>,
        at: u64,
        mut buf: Buf,
        filled: usize,
    ) -> (Buf, Result<usize, Errno>) {
        let permit = self.disk_permit().await;
        let target = &mut buf[filled..];
        let len = target.len().min(TRANSFER_BYTES_MAX);
        let Ok(len) = u32::try_from(len) else {
            unreachable!("TRANSFER_BYTES_MAX fits 32 bits")
        };
        let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), target.as_mut_ptr(), len)
            .offset(at)
            .build();
        let held = Held {
            fd: Some(Rc::clone(fd)),
            buf,
            permit,
        };
        match self.start(entry, held) {
            Ok(operation) => {
                let (buf, result) = operation.await;
                (buf, result.map(|count| usize::try_from(count).unwrap_or(0)))
            }
            Err(errno) => (Buf::default(), Err(errno)),
        }
    }

    /// Writes the first `len` bytes of `buf`; returns how many were taken.
    pub(crate) async fn write(
        &self,
        fd: &Rc<OwnedFd>,
        at: u64,
        buf: Buf,
        len: usize,
    ) -> (Buf, Result<usize, Errno>) {
        let permit = self.disk_permit().await;
        let source = &buf[..len];
        let Ok(len) = u32::try_from(source.len().min(TRANSFER_BYTES_MAX)) else {
            unreachable!("TRANSFER_BYTES_MAX fits 32 bits")
        };
        let entry = opcode::Write::new(types::Fd(fd.as_raw_fd()), source.as_ptr(), len)
            .offset(at)
            .build();
        let held = Held {
            fd: Some(Rc::clone(fd)),
            buf,
            permit,
        };
        match self.start(entry, held) {
            Ok(operation) => {
                let (buf, result) = operation.await;
                (buf, result.map(|count| usize::try_from(count).unwrap_or(0)))
            }
            Err(errno) => (Buf::default(), Err(errno)),
        }
    }

    /// Makes all completed writes to the file durable.
    pub(crate) async fn fdatasync(&self, fd: &Rc<OwnedFd>) -> Result<(), Errno> {
        let permit = self.disk_permit().await;
        let held = Held {
            fd: Some(Rc::clone(fd)),
            buf: Buf::default(),
            permit,
        };
        let entry = opcode::Fsync::new(types::Fd(fd.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        let (_, result) = self.start(entry, held)?.await;
        result.map(|_zero| ())
    }

    async fn disk_permit(&self) -> Option<OwnedSemaphorePermit> {
        let semaphore = Arc::clone(&self.disk_operations);
        // The semaphore is never closed; an error would only lift the bound.
        semaphore.acquire_owned().await.ok()
    }

    /// Queues an operation. `held` keeps alive whatever `entry` points to.
    fn start(&self, entry: squeue::Entry, held: Held) -> Result<Operation<'_>, Errno> {
        let mut inner = self.inner.borrow_mut();
        if inner.closed {
            return Err(Errno::CANCELED);
        }
        let index = inner.vacant.pop().unwrap_or(inner.slots.len());
        let slot = Slot::InFlight {
            held,
            waiter: Waiter::Unpolled,
        };
        if index == inner.slots.len() {
            inner.slots.push(slot);
        } else {
            inner.slots[index] = slot;
        }
        inner.in_flight += 1;
        inner.push(&entry.user_data(slot_name(index)));
        Ok(Operation { ring: self, index })
    }

    /// Hands what was queued to the kernel and collects what it has answered. With nothing
    /// collected it waits for an answer: for ever (`None`), or for so long.
    pub(crate) fn turn(&self, timeout: Option<Duration>) -> io::Result<()> {
        let (woken, released) = {
            let mut inner = self.inner.borrow_mut();
            let timeout = if inner.woken.is_empty() {
                timeout
            } else {
                Some(Duration::ZERO)
            };
            if timeout != Some(Duration::ZERO) {
                inner.arm_doorbell(&self.doorbell);
            }
            inner.enter(timeout)?;
            inner.collect(&self.doorbell);
            (
                std::mem::take(&mut inner.woken),
                std::mem::take(&mut inner.released),
            )
        };
        woken.into_iter().for_each(Waker::wake);
        drop(released);
        Ok(())
    }

    /// Cancels what can be cancelled and waits for the rest. Later operations fail.
    pub(crate) fn close(&self) {
        let (woken, released) = {
            let mut inner = self.inner.borrow_mut();
            inner.close(&self.doorbell);
            (
                std::mem::take(&mut inner.woken),
                std::mem::take(&mut inner.released),
            )
        };
        drop((woken, released));
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let in_flight = self.inner.try_borrow().map_or(0, |inner| inner.in_flight);
        f.debug_struct("Ring")
            .field("in_flight", &in_flight)
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the file and the buffer of the entry are owned by its slot until the kernel
            // answers it (`collect` is the only place that takes them out), so they stay valid for
            // as long as the kernel may use them. Cancel and doorbell entries point to nothing.
            let pushed = unsafe { self.uring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            // The queue is full: make room. An error here leaves it full, so it is tried again;
            // a ring that accepts nothing any more is a broken kernel.
            if let Err(error) = self.uring.submit() {
                let passing = matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)
                );
                assert!(passing, "io_uring refuses submissions: {error}");
            }
        }
    }

    fn arm_doorbell(&mut self, doorbell: &Doorbell) {
        if self.doorbell_armed {
            return;
        }
        self.doorbell_armed = true;
        let fd = types::Fd(doorbell.eventfd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits())).build();
        self.push(&entry.user_data(DOORBELL));
    }

    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let answered = !self.uring.completion().is_empty();
        let entered = if answered || timeout == Some(Duration::ZERO) {
            let queue = self.uring.submission();
            let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
            drop(queue);
            if idle { Ok(0) } else { self.uring.submit() }
        } else if let Some(timeout) = timeout {
            let timespec = types::Timespec::from(timeout);
            let args = types::SubmitArgs::new().timespec(&timespec);
            self.uring.submitter().submit_with_args(1, &args)
        } else {
            self.uring.submit_and_wait(1)
        };
        match entered {
            Ok(_submitted) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // Time is up, a signal, or answers to be collected first: the next turn goes on.
                Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes the kernel's answers out of the shared queue.
    fn collect(&mut self, doorbell: &Doorbell) {
        for answer in self.uring.completion() {
            let name = answer.user_data();
            if name == CANCEL {
                continue;
            }
            if name == DOORBELL {
                self.doorbell_armed = false;
                doorbell.reset();
                continue;
            }
            let index = slot_index(name);
            let slot = std::mem::replace(&mut self.slots[index], Slot::Vacant);
            let Slot::InFlight { held, waiter } = slot else {
                unreachable!("the kernel answered operation {index} twice");
            };
            self.in_flight -= 1;
            let result = answer.result();
            match waiter {
                Waiter::Gone => {
                    self.released.push(held);
                    self.vacant.push(index);
                }
                Waiter::Unpolled => self.slots[index] = Slot::Answered { held, result },
                Waiter::Polled(waker) => {
                    self.slots[index] = Slot::Answered { held, result };
                    self.woken.push(waker);
                }
            }
        }
    }

    fn close(&mut self, doorbell: &Doorbell) {
        if self.closed {
            return;
        }
        self.closed = true;
        for index in 0..self.slots.len() {
            if matches!(self.slots[index], Slot::InFlight { .. }) {
                self.cancel(slot_name(index));
            }
        }
        if self.doorbell_armed {
            self.cancel(DOORBELL);
        }
        while self.in_flight > 0 || self.doorbell_armed {
            if let Err(error) = self.enter(None) {
                // The kernel may still write into these buffers: they are given away for good.
                tracing::error!(%error, "io_uring cannot be drained; restart the process if it does not end by itself");
                Box::leak(Box::new(std::mem::take(&mut self.slots)));
                return;
            }
            self.collect(doorbell);
        }
    }

    fn cancel(&mut self, name: u64) {
        let entry = opcode::AsyncCancel::new(name).build().user_data(CANCEL);
        self.push(&entry);
    }
}

/// An operation that the kernel has, or will get at the next turn.
struct Operation<'a> {
    ring: &'a Ring,
    index: usize,
}

/// The slot was emptied by the future's completion.
const FETCHED: usize = usize::MAX;

impl Future for Operation<'_> {
    type Output = (Buf, Result<u32, Errno>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert_ne!(self.index, FETCHED, "polled after completion");
        let mut inner = self.ring.inner.borrow_mut();
        let slot = &mut inner.slots[self.index];
        if let Slot::InFlight { waiter, .. } = slot {
            match waiter {
                Waiter::Polled(known) if known.will_wake(cx.waker()) => {}
                other => *other = Waiter::Polled(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let Slot::Answered { held, result } = std::mem::replace(slot, Slot::Vacant) else {
            unreachable!("the slot belongs to this future until it is fetched");
        };
        inner.vacant.push(self.index);
        drop(inner);
        self.index = FETCHED;
        let result = u32::try_from(result).map_err(|_negative| Errno::from_raw_os_error(-result));
        Poll::Ready((held.buf, result))
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if self.index == FETCHED {
            return;
        }
        let mut inner = self.ring.inner.borrow_mut();
        // None: the ring could not be drained, and its slots were given away.
        let Some(slot) = inner.slots.get_mut(self.index) else {
            return;
        };
        match slot {
            Slot::InFlight { waiter, .. } => {
                *waiter = Waiter::Gone;
                inner.cancel(slot_name(self.index));
            }
            _ => {
                let slot = std::mem::replace(slot, Slot::Vacant);
                inner.vacant.push(self.index);
                drop(inner);
                // Its permit may wake somebody: not under the borrow.
                drop(slot);
            }
        }
    }
}

/// Answers are processed on this thread when it asks for them, without interrupting it; kernels
/// before 6.1 do not know how, and get a plain ring.
fn new_uring() -> io::Result<IoUring> {
    let modern = IoUring::builder()
        .setup_cqsize(COMPLETIONS_MAX)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS_MAX);
    match modern {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => IoUring::builder()
            .setup_cqsize(COMPLETIONS_MAX)
            .build(SUBMISSIONS_MAX),
        other => other,
    }
}

fn slot_name(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(CANCEL)
}

fn slot_index(name: u64) -> usize {
    usize::try_from(name).unwrap_or(FETCHED)
}

#[cfg(test)]
mod tests;
