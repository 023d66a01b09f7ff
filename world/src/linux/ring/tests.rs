use std::task::Waker;

use super::*;

fn ring() -> (Ring, Arc<Doorbell>) {
    let doorbell = Arc::new(Doorbell::new().expect("an eventfd"));
    let ring = Ring::new(Arc::clone(&doorbell)).expect("io_uring is available");
    (ring, doorbell)
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn drive<F: Future>(ring: &Ring, future: F) -> F::Output {
    let mut future = Box::pin(future);
    loop {
        if let Poll::Ready(output) = poll_once(future.as_mut()) {
            return output;
        }
        ring.turn(None).expect("the ring works");
    }
}

/// A pipe that is read: such a read waits until somebody writes.
fn pipe() -> (Rc<OwnedFd>, OwnedFd) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (Rc::new(reader.into()), writer.into())
}

#[test]
fn a_dropped_read_keeps_its_buffer_until_the_kernel_has_answered() {
    let (ring, _doorbell) = ring();
    let (reader, _writer) = pipe();
    let mut read = Box::pin(ring.read(&reader, u64::MAX, Buf::zeroed(4096), 0));
    assert!(poll_once(read.as_mut()).is_pending());
    ring.turn(Some(Duration::ZERO)).expect("the ring works");
    assert_eq!(Rc::strong_count(&reader), 2);
    drop(read);
    assert_eq!(
        Rc::strong_count(&reader),
        2,
        "the operation still owns its file"
    );
    while ring.inner.borrow().in_flight > 0 {
        ring.turn(None).expect("the ring works");
    }
    assert_eq!(Rc::strong_count(&reader), 1);
    let permits = ring.disk_operations.available_permits();
    assert_eq!(permits, DISK_OPERATIONS_MAX);
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let (ring, _doorbell) = ring();
    let (reader, writer) = pipe();
    let polls = (0..3 * SUBMISSIONS_MAX).map(|_| ring.ready(&reader, PollFlags::IN));
    let mut polls: Vec<_> = polls.map(Box::pin).collect();
    for poll in &mut polls {
        assert!(poll_once(poll.as_mut()).is_pending());
    }
    rustix::io::write(&writer, b"x").expect("the pipe has room");
    for poll in polls {
        drive(&ring, poll).expect("readable");
    }
    assert_eq!(ring.inner.borrow().in_flight, 0);
}

#[test]
fn disk_operations_beyond_the_bound_wait_and_idle_polls_do_not_count() {
    let (ring, _doorbell) = ring();
    let (reader, _writer) = pipe();
    let mut reads: Vec<_> = (0..DISK_OPERATIONS_MAX)
        .map(|_| Box::pin(ring.read(&reader, u64::MAX, Buf::zeroed(1), 0)))
        .collect();
    for read in &mut reads {
        assert!(poll_once(read.as_mut()).is_pending());
    }
    let mut late = Box::pin(ring.read(&reader, u64::MAX, Buf::zeroed(1), 0));
    assert!(poll_once(late.as_mut()).is_pending());
    assert_eq!(ring.inner.borrow().in_flight, DISK_OPERATIONS_MAX);
    let (idle, _kept) = pipe();
    let mut poll = Box::pin(ring.ready(&idle, PollFlags::IN));
    assert!(poll_once(poll.as_mut()).is_pending());
    assert_eq!(ring.inner.borrow().in_flight, DISK_OPERATIONS_MAX + 1);
}

#[test]
fn closing_answers_what_is_in_flight_and_refuses_what_comes() {
    let (ring, _doorbell) = ring();
    let (reader, _writer) = pipe();
    let mut poll = Box::pin(ring.ready(&reader, PollFlags::IN));
    assert!(poll_once(poll.as_mut()).is_pending());
    ring.close();
    assert_eq!(drive(&ring, poll), Err(Errno::CANCELED));
    assert_eq!(drive(&ring, ring.fdatasync(&reader)), Err(Errno::CANCELED));
}

#[test]
fn the_doorbell_ends_a_sleep() {
    let (ring, doorbell) = ring();
    doorbell.announce_sleep();
    std::thread::scope(|scope| {
        scope.spawn(|| doorbell.ring());
        ring.turn(None).expect("the ring works");
    });
    // And again: it is armed anew.
    doorbell.announce_sleep();
    doorbell.ring();
    ring.turn(None).expect("the ring works");
}
