//! How many segments are on their way to the store at a time.
//!
//! Each one holds its sealed bytes in memory until the store has answered. A far store needs many of
//! them to be kept busy; a near one is kept busy by few, and more of them only wait in memory for the
//! same processor. So the number follows what the store's answers say, as TCP Vegas does with packets
//! (Brakmo, O'Malley, Peterson: "TCP Vegas: new techniques for congestion detection and avoidance", 1994):
//! what an answer took beyond the fastest one of late was spent in a queue.

use std::cell::RefCell;
use std::time::Duration;

use world::sync::{Semaphore, SemaphorePermit};

/// Fewer uploads than this in the queue: one more will be faster. More than [`QUEUE_MAX`]: one less will
/// not be slower. Vegas' alpha and beta.
const QUEUE_MIN: f64 = 2.0;
const QUEUE_MAX: f64 = 4.0;

/// How often in one round trip the number may grow by one: a drain of a second should not wait for it.
const GROWTH: usize = 4;

/// Answers, after which the fastest one is forgotten, for a store may have moved away: the number goes back to the
/// least, and the fastest is looked for among so few. Looked for among many it would be one that waited itself.
const MEMORY: u32 = 1024;

/// The same where the number is the least anyway, so that forgetting costs nothing: few, or one answer that was faster
/// than any will be again keeps a drain of a minute slow.
const MEMORY_OF_FEW: u32 = 32;

/// The turns of a shard's uploads; whoever waits is served in order.
#[derive(Debug)]
pub(crate) struct Uploads {
    turns: Semaphore,
    window: RefCell<Window>,
}

/// One upload's place. Dropped without an answer (it failed), it says nothing about the store.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    permit: SemaphorePermit<'a>,
    of: &'a Uploads,
}

impl Uploads {
    /// Begins with `min` (one at least) at a time; never more than `max`.
    pub(crate) fn new(min: usize, max: usize) -> Self {
        let window = Window::new(min, max);
        Self {
            turns: Semaphore::new(window.limit),
            window: RefCell::new(window),
        }
    }

    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn {
            permit: self.turns.acquire().await.expect("never closed"),
            of: self,
        }
    }
}

impl Turn<'_> {
    /// The store has answered, `took` after it was asked.
    pub(crate) fn answered(self, took: Duration) {
        let is_full = self.of.turns.available_permits() == 0;
        match self.of.window.borrow_mut().answered(took, is_full) {
            Change::None => {}
            Change::More => self.of.turns.add_permits(1),
            Change::Less => self.permit.forget(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    More,
    Less,
}

/// Decides from the answers' times alone.
#[derive(Debug)]
struct Window {
    limit: usize,
    min: usize,
    max: usize,
    /// The fastest answer since it was forgotten last, so many answers ago.
    fastest: Duration,
    answers: u32,
    /// Answers until the limit may change again: those to what was asked under the limit before say
    /// nothing about this one.
    pause: usize,
}

impl Window {
    fn new(min: usize, max: usize) -> Self {
        let min = min.max(1);
        Self {
            limit: min,
            min,
            max: max.max(min),
            fastest: Duration::MAX,
            answers: 0,
            pause: min,
        }
    }

    /// `is_full`: all turns were taken; otherwise more of them would change nothing.
    fn answered(&mut self, took: Duration, is_full: bool) -> Change {
        self.answers += 1;
        if self.answers >= MEMORY && self.limit > self.min {
            self.limit -= 1;
            // Those that were asked beside many more say nothing.
            self.pause = 2 * self.max;
            return Change::Less;
        }
        self.pause = self.pause.saturating_sub(1);
        if self.pause > 0 {
            return Change::None;
        }
        if self.answers >= MEMORY_OF_FEW && self.limit == self.min {
            self.answers = 0;
            self.fastest = Duration::MAX;
        }
        self.fastest = self.fastest.min(took);
        let queued = queued(self.limit, self.fastest, took);
        if queued > QUEUE_MAX && self.limit > self.min {
            self.limit -= 1;
            self.pause = self.limit;
            Change::Less
        } else if queued < QUEUE_MIN && is_full && self.limit < self.max {
            self.limit += 1;
            self.pause = self.limit / GROWTH;
            Change::More
        } else {
            Change::None
        }
    }
}

/// How many of `limit` uploads waited behind others, if an answer took `took` where `fastest` is possible.
fn queued(limit: usize, fastest: Duration, took: Duration) -> f64 {
    if took.is_zero() {
        return 0.0;
    }
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    f64::from(limit) * (1.0 - fastest.as_secs_f64() / took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store whose answers take `far`, and that takes one upload after another, each for `work`.
    fn settled(far: Duration, work: Duration) -> usize {
        let mut window = Window::new(4, 16);
        for _ in 0..10 * MEMORY + 500 {
            let queue = u32::try_from(window.limit).expect("a few");
            window.answered((far + work).max(work * queue), true);
        }
        window.limit
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_far_store_gets_as_many_as_keep_it_busy_and_a_near_one_few() {
        assert_eq!(settled(100 * MS, MS), 16);
        assert!((4..=7).contains(&settled(Duration::ZERO, 4 * MS)));
        let between = settled(30 * MS, 4 * MS);
        assert!((9..=13).contains(&between), "{between}");
    }

    #[test]
    fn a_store_that_moves_away_is_followed_and_one_that_comes_back_too() {
        let mut window = Window::new(4, 16);
        let mut run = |far: Duration| {
            for _ in 0..3 * MEMORY {
                let queue = u32::try_from(window.limit).expect("a few");
                window.answered((far + 4 * MS).max(4 * MS * queue), true);
            }
            window.limit
        };
        assert!(run(Duration::ZERO) <= 7);
        assert_eq!(run(100 * MS), 16);
        assert!(run(Duration::ZERO) <= 7);
    }

    /// An answer that came while the store was nearer, or from something that stood in between.
    #[test]
    fn one_fast_answer_does_not_keep_the_number_small() {
        let mut window = Window::new(4, 16);
        for took in [5 * MS; 8].into_iter().chain([100 * MS; 100]) {
            window.answered(took, true);
        }
        assert_eq!(window.limit, 16);
    }

    #[test]
    fn who_does_not_need_more_gets_no_more() {
        let mut window = Window::new(4, 16);
        for _ in 0..100 {
            assert_eq!(window.answered(100 * MS, false), Change::None);
        }
    }

    #[test]
    fn times_without_length_and_bounds_without_room_are_no_matter() {
        let mut window = Window::new(0, 0);
        for took in [Duration::ZERO, MS, Duration::MAX, Duration::ZERO] {
            assert_eq!(window.answered(took, true), Change::None);
            assert_eq!(window.limit, 1);
        }
    }

    #[test]
    fn turns_follow_the_window() {
        let uploads = Uploads::new(1, 2);
        let turn = || Turn {
            permit: uploads.turns.try_acquire().expect("free"),
            of: &uploads,
        };
        let is_full = || uploads.turns.try_acquire().is_err();
        let first = turn();
        assert!(is_full());
        first.answered(MS);
        let [slow, failed] = [turn(), turn()];
        assert!(is_full());
        // One that failed gives its turn back, and says nothing.
        drop(failed);
        let _kept = turn();
        assert!(is_full());
        slow.answered(MS);
        assert!(!is_full());
    }
}
