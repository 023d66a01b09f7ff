//! Real time and CPU time: the only place of this bench that asks for either.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    timed_by(ClockId::Monotonic, work)
}

/// CPU time of this thread: what others do to the machine stays out.
pub(crate) fn cpu_timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    timed_by(ClockId::ThreadCPUTime, work)
}

/// Seconds since some moment.
pub(crate) fn now() -> f64 {
    seconds(ClockId::Monotonic)
}

fn timed_by<T>(clock: ClockId, work: impl FnOnce() -> T) -> (T, f64) {
    let begin = seconds(clock);
    let output = work();
    (output, seconds(clock) - begin)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[expect(
    clippy::disallowed_methods,
    reason = "processes that are watched live in real time"
)]
pub(crate) fn sleep(length: Duration) {
    std::thread::sleep(length);
}
