//! Time, chance and tasks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::World;
use crate::sync::oneshot;

const MOMENT: Duration = Duration::from_millis(2);

/// The clock goes forward, and sleepers wake at or after their deadline, in its order.
pub async fn clock<W: World>(world: W) {
    let start = world.now();
    world.sleep(MOMENT).await;
    assert!(world.now().since(start) >= MOMENT, "woken too early");
    assert!(world.now() >= start, "the clock went back");

    // A deadline that has passed needs no waiting.
    world.sleep_until(start).await;

    let order: Rc<RefCell<Vec<u32>>> = Rc::default();
    let base = world.now();
    let mut ends = Vec::new();
    for number in [3, 1, 2] {
        let (end, ended) = oneshot::channel();
        let (sleeper, order) = (world.clone(), Rc::clone(&order));
        world.spawn(async move {
            sleeper.sleep_until(base + MOMENT * 10 * number).await;
            order.borrow_mut().push(number);
            end.send(()).expect("the suite waits");
        });
        ends.push(ended);
    }
    for ended in ends {
        ended.await.expect("a sleeper wakes");
    }
    assert_eq!(*order.borrow(), [1, 2, 3], "sleepers woke out of order");
    // For people only, but it must be something.
    assert!(world.unix_time().0 > 0, "wall time has not begun");
}

/// Random bytes fill the whole buffer and do not repeat.
pub async fn chance<W: World>(world: W) {
    world.fill_random(&mut []);
    let mut long = vec![0; 100_000];
    world.fill_random(&mut long);
    for part in long.chunks(1000) {
        assert!(part.iter().any(|&byte| byte != 0), "a part stayed empty");
    }
    assert_ne!(world.random_id(), world.random_id(), "an id repeats");
}

/// Tasks run, take turns, start others, and get the results of computations.
pub async fn tasks<W: World>(world: W) {
    let (end, ended) = oneshot::channel();
    let inner = world.clone();
    world.spawn(async move {
        let (innermost, told) = oneshot::channel();
        inner.spawn(async move { innermost.send(5).expect("somebody waits") });
        end.send(told.await).expect("the suite waits");
    });
    assert_eq!(ended.await.expect("the task runs"), Ok(5));

    // One yield lets a task run that was ready before.
    let ran = Rc::new(Cell::new(false));
    let tell = Rc::clone(&ran);
    world.spawn(async move { tell.set(true) });
    world.yield_now().await;
    assert!(ran.get(), "a ready task did not get its turn");

    let sums = (0..32_u64).map(|n| world.compute(move || (0..=n).sum::<u64>()));
    let sums = futures_util::future::join_all(sums).await;
    assert_eq!(sums[31], 496);
    assert_eq!(sums[..4], [0, 1, 3, 6]);
}
