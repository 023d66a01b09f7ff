//! The simulated world: one seed decides every delay, fault, crash and choice of task.
//!
//! A [`Sim`] holds hosts, each with a disk, and one object store for all. A *process* is a
//! [`SimWorld`] with tasks of its own ([`Sim::start`], [`Sim::call`]); it lives until it is killed
//! or its host crashes, also after its first task has returned. The scenario itself (the *driver*)
//! runs outside of all hosts, with the [`Sim`] in its hands: [`Sim::run`].
//!
//! It promises: the same seed, configuration and scenario give the same trace ([`Sim::trace_hash`]);
//! time jumps and nothing waits for real; a run that goes nowhere ends as [`Stuck`], with the tail
//! of the trace.
//!
//! What may break, and how, is said where it is done: `faults` (disks), [`net`] (sockets), [`store`]
//! (object store). Clocks are bad on purpose: each process has an origin of its own, each host a
//! wall clock of its own.
//!
//! Deliberately absent: threads (wakes must come from the simulating thread), and CPU time (a step
//! of a task takes about a microsecond, whatever it does).

mod chance;
mod clock;
mod disk;
mod faults;
mod hosts;
mod net;
mod process;
mod store;
#[cfg(test)]
mod tests;
mod trace;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

pub use chance::{Chance, Odds, Spread};
pub use clock::Sleep;
pub use disk::{DiskImage, SimFile};
pub use faults::{DiskFaults, SECTOR_BYTES};
pub use hosts::{Call, Crash, HostId, Pid};
pub use net::{BACKLOG_MAX, STREAM_BYTES_MAX, SimListener, SimStream};
pub use process::SimWorld;
pub use store::{Corruption, SimStore, StoreFaults, StoreStats};

use crate::Instant;
use crate::exec::Executor;
use clock::{Clock, Event, EventKey};
use hosts::Host;
use process::Process;
use trace::Trace;

/// What a simulation starts with. The defaults are quick machines that crash and never lie.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Steps of tasks in one [`Sim::run`], beyond which it is stuck.
    pub steps_max: u64,
    /// Virtual time in one [`Sim::run`], beyond which it is stuck.
    pub time_max: Duration,
    /// Lines of the trace that are kept.
    pub trace_lines_max: usize,
    /// Lines of it that are printed when a task panics.
    pub panic_lines_max: usize,
    /// Bytes of all files of one host.
    pub disk_bytes_max: u64,
    pub disk_faults: DiskFaults,
    pub store_faults: StoreFaults,
    /// How often [`crate::File::read_now`] finds the page cache warm.
    pub read_now: Odds,
    pub delays: Delays,
}

/// How long operations take.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Reads and writes of files.
    pub disk: Spread,
    pub persist: Spread,
    /// One way of a request to the object store.
    pub store: Spread,
    /// One way between two hosts, and between two processes.
    pub net: Spread,
    pub compute: Spread,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            steps_max: 20_000_000,
            time_max: Duration::from_secs(24 * 3_600),
            trace_lines_max: 2_000,
            panic_lines_max: 60,
            disk_bytes_max: 64 << 30,
            disk_faults: DiskFaults::default(),
            store_faults: StoreFaults::default(),
            read_now: Odds::one_in(2),
            delays: Delays {
                disk: Spread::micros(5, 200),
                persist: Spread::micros(100, 3_000),
                store: Spread::micros(2_000, 40_000),
                net: Spread::micros(10, 500),
                compute: Spread::micros(1, 300),
            },
        }
    }
}

/// A simulated world: a handle, cloned into the driver.
#[derive(Clone)]
pub struct Sim {
    shared: Rc<Shared>,
}

struct Shared {
    seed: u64,
    config: SimConfig,
    chance: RefCell<Chance>,
    clock: RefCell<Clock>,
    trace: RefCell<Trace>,
    steps: Cell<u64>,
    driver: Executor,
    /// The process whose task is being polled.
    running: Cell<Option<Pid>>,
    processes: RefCell<BTreeMap<Pid, Rc<Process>>>,
    next_pid: Cell<u32>,
    hosts: RefCell<Vec<Host>>,
    net: RefCell<net::Net>,
    store: RefCell<store::Objects>,
}

/// A run that goes nowhere.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}: {why} after {steps} steps, at {}\n{trace}", seconds(*.at))]
pub struct Stuck {
    pub seed: u64,
    pub why: StuckWhy,
    pub steps: u64,
    pub at: Instant,
    /// The last lines of the trace.
    pub trace: String,
}

#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StuckWhy {
    #[error("nobody can go on, and nothing will happen (deadlock)")]
    Deadlock,
    #[error("too many steps (livelock?)")]
    Steps,
    #[error("too much virtual time has passed")]
    Time,
}

fn seconds(at: Instant) -> String {
    format!("{:?}", at.since(Instant::default()))
}

/// A step of a task takes this long, in nanoseconds.
const STEP_NS_MIN: u64 = 100;
const STEP_NS_MAX: u64 = 2_000;

impl Sim {
    pub fn new(seed: u64, config: SimConfig) -> Self {
        let shared = Shared {
            seed,
            chance: RefCell::new(Chance::seeded(seed)),
            clock: RefCell::default(),
            trace: RefCell::new(Trace::new(seed, config.trace_lines_max)),
            steps: Cell::new(0),
            driver: Executor::new(|| ()),
            running: Cell::new(None),
            processes: RefCell::default(),
            next_pid: Cell::new(0),
            hosts: RefCell::default(),
            net: RefCell::default(),
            store: RefCell::new(store::Objects::new(config.store_faults)),
            config,
        };
        Self {
            shared: Rc::new(shared),
        }
    }

    /// A whole scenario from its seed to its end, with everything freed behind it. Returns what it
    /// returned and the hash of its trace.
    pub fn simulate<T, F>(
        seed: u64,
        config: SimConfig,
        scenario: impl FnOnce(Self) -> F,
    ) -> Result<(T, u64), Stuck>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let sim = Self::new(seed, config);
        let end = TearDown(sim.clone());
        let outcome = sim.run(scenario(sim.clone()));
        let hash = sim.trace_hash();
        drop(end);
        outcome.map(|value| (value, hash))
    }

    /// Runs the world until the driver has finished.
    pub fn run<T: 'static>(&self, driver: impl Future<Output = T> + 'static) -> Result<T, Stuck> {
        let result = Rc::new(RefCell::new(None));
        let place = Rc::clone(&result);
        self.spawn(async move {
            let value = driver.await;
            *place.borrow_mut() = Some(value);
        });
        self.run_until(|| result.borrow().is_some())?;
        let value = result.borrow_mut().take();
        Ok(value.expect("the condition of the loop above"))
    }

    /// Runs the world until `done`, which is asked after each step.
    pub fn run_until(&self, done: impl Fn() -> bool) -> Result<(), Stuck> {
        let _seen = PanicTail(self);
        let steps_end = self.shared.steps.get() + self.shared.config.steps_max;
        let time_end = self.now() + self.shared.config.time_max;
        while !done() {
            if !self.step() {
                return Err(self.stuck(StuckWhy::Deadlock));
            }
            if self.shared.steps.get() > steps_end {
                return Err(self.stuck(StuckWhy::Steps));
            }
            if self.now() > time_end {
                return Err(self.stuck(StuckWhy::Time));
            }
        }
        Ok(())
    }

    /// Runs the world for a time.
    pub fn run_for(&self, duration: Duration) -> Result<(), Stuck> {
        let sim = self.clone();
        self.run(async move { sim.sleep(duration).await })
    }

    /// Runs `main` as a process of the host until it has finished. None if the host crashed first.
    pub fn block_on<T, F>(
        &self,
        host: HostId,
        main: impl FnOnce(SimWorld) -> F,
    ) -> Result<Option<T>, Stuck>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        self.run(self.call(host, main))
    }

    /// Adds a task of the driver.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.shared.driver.spawn(task);
    }

    /// Waits in virtual time, for the driver.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    pub fn sleep_until(&self, until: Instant) -> Sleep {
        Sleep::new(self.clone(), until)
    }

    /// Waits until `condition` holds, looking every tenth of a millisecond.
    pub async fn until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.sleep(Duration::from_micros(100)).await;
        }
    }

    /// Virtual time since the start of the simulation. Processes see other clocks.
    pub fn now(&self) -> Instant {
        self.shared.clock.borrow().now()
    }

    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// How many steps of tasks there have been.
    pub fn steps(&self) -> u64 {
        self.shared.steps.get()
    }

    /// Draws from the chance of this world.
    pub fn chance<T>(&self, draw: impl FnOnce(&mut Chance) -> T) -> T {
        draw(&mut self.shared.chance.borrow_mut())
    }

    /// Adds a line of the scenario to the trace.
    pub fn note(&self, what: impl fmt::Display) {
        self.trace_line("driver", format_args!("{what}"));
    }

    /// A number that stands for everything that has happened.
    pub fn trace_hash(&self) -> u64 {
        self.shared.trace.borrow().hash()
    }

    /// The last lines of the trace.
    pub fn trace_tail(&self, lines: usize) -> String {
        self.shared.trace.borrow().tail(lines)
    }

    /// Ends the world: kills everybody and drops what is on its way. Without it, tasks that are left
    /// keep the memory of the world.
    pub fn end(&self) {
        let processes = std::mem::take(&mut *self.shared.processes.borrow_mut());
        for process in processes.values() {
            process.end();
        }
        self.shared.driver.kill();
        let events = self.shared.clock.borrow_mut().clear();
        drop(events);
        drop(processes);
    }

    /// What is due happens, then one task makes a step; if none can, time jumps to the next event.
    /// False if there is nothing left that could ever happen.
    fn step(&self) -> bool {
        self.fire_due();
        let ready = self.ready_count();
        if ready > 0 {
            self.poll(self.chance(|chance| chance.index(ready)));
            return true;
        }
        let next = self.shared.clock.borrow().next();
        let Some(next) = next else {
            return false;
        };
        self.shared.clock.borrow_mut().advance(next);
        true
    }

    fn fire_due(&self) {
        loop {
            let event = self.shared.clock.borrow_mut().pop_due();
            match event {
                Some(Event::Wake(waker)) => waker.wake(),
                Some(Event::Act(act)) => act(self),
                None => return,
            }
        }
    }

    fn ready_count(&self) -> usize {
        let processes = self.shared.processes.borrow();
        let of_processes: usize = processes
            .values()
            .map(|process| process.ready_count())
            .sum();
        self.shared.driver.ready_count() + of_processes
    }

    /// Polls the ready task of this number, counted over the driver and then all processes.
    fn poll(&self, mut number: usize) {
        let shared = &self.shared;
        shared.steps.set(shared.steps.get() + 1);
        let took = self.chance(|chance| chance.between(STEP_NS_MIN, STEP_NS_MAX));
        shared.clock.borrow_mut().pass(Duration::from_nanos(took));
        if number < shared.driver.ready_count() {
            shared.trace.borrow_mut().fold(took);
            shared.driver.run_ready(number);
            return;
        }
        number -= shared.driver.ready_count();
        let process = self.process_of_ready(&mut number);
        shared
            .trace
            .borrow_mut()
            .fold(took ^ (u64::from(process.pid.0) << 32));
        shared.running.set(Some(process.pid));
        process.run_ready(number);
        shared.running.set(None);
    }

    /// Whose ready task it is; `number` counts within that process afterwards.
    fn process_of_ready(&self, number: &mut usize) -> Rc<Process> {
        let processes = self.shared.processes.borrow();
        for process in processes.values() {
            let count = process.ready_count();
            if *number < count {
                return Rc::clone(process);
            }
            *number -= count;
        }
        unreachable!("fewer tasks are ready than were counted");
    }

    fn stuck(&self, why: StuckWhy) -> Stuck {
        Stuck {
            seed: self.shared.seed,
            why,
            steps: self.shared.steps.get(),
            at: self.now(),
            trace: self.trace_tail(self.shared.config.trace_lines_max),
        }
    }

    fn trace_line(&self, who: &str, what: fmt::Arguments<'_>) {
        let now = self.now();
        self.shared.trace.borrow_mut().note(now, who, what);
    }

    /// Does `act` after `delay`, whoever lives or dies meanwhile.
    fn later(&self, delay: Duration, act: impl FnOnce(&Self) + 'static) -> EventKey {
        let at = self.now() + delay;
        self.shared
            .clock
            .borrow_mut()
            .set(at, Event::Act(Box::new(act)))
    }

    fn delay(&self, spread: impl FnOnce(&Delays) -> Spread) -> Duration {
        let spread = spread(&self.shared.config.delays);
        self.chance(|chance| chance.delay(spread))
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sim(seed {}, {})", self.shared.seed, seconds(self.now()))
    }
}

/// Ends the world also where a task panics.
struct TearDown(Sim);

impl Drop for TearDown {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Prints the tail of the trace if a task panics: the seed alone does not tell what happened.
struct PanicTail<'a>(&'a Sim);

impl Drop for PanicTail<'_> {
    #[expect(
        clippy::print_stderr,
        reason = "beside the message of the panic, where the person looks"
    )]
    fn drop(&mut self) {
        let lines = self.0.shared.config.panic_lines_max;
        if std::thread::panicking() && lines > 0 {
            eprintln!("seed {}\n{}", self.0.seed(), self.0.trace_tail(lines));
        }
    }
}
