//! One client process: a few connections, several requests in flight, every payload stamped.
//!
//! Where it has the members of a group, half of what it writes is done as a database does it: a record goes to the log,
//! is answered, and only then what it tells of is written to another member.
//!
//! What is submitted and answered is told to the model at that very moment. A guest that has lost
//! its volume to another node is *estranged*: it goes on with a model of its own, whose stamps are
//! foreign to the first, so that nothing it writes may ever be seen there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use glidefs::nbd::wire::{command, export, flag};
use world::World;
use world::sim::{HostId, Pid, Sim, SimWorld};
use world::sync::{Notify, oneshot};

use super::disks::Disks;
use super::node::socket;
use crate::nbd_client::{ClientError, NbdClient, Options};
use crate::oracle::{Oracle, SECTOR_BYTES};

pub(super) type Model = Rc<RefCell<Oracle>>;

const EIO: u32 = 5;
const PAGE_SECTORS: u64 = 8;
/// The member of a group on which databases have their log, which they flush once in so many records.
const LOG: usize = 0;
const LOG_FLUSHED_ONE_IN: u64 = 4;

/// Which errors a guest may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tolerance {
    /// None but the end of its connection.
    Nothing,
    /// Reads may fail while the store is out.
    Reads,
    /// Everything may fail; a worker ends when something but a read does.
    Everything,
}

/// What the ranges of a guest's requests are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    Sectors,
    /// Nothing is ever to be completed from what the store has.
    Pages,
}

/// What guests do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) connections: u64,
    pub(super) workers: u64,
    /// Between two requests of a worker.
    pub(super) think_us_max: u64,
    pub(super) write_sectors_max: u64,
    /// One request in so many goes to the first pages.
    pub(super) hot_one_in: u64,
    pub(super) hot_pages: u64,
    /// Of a hundred requests: zeros, flushes, reads; the others write.
    pub(super) zeros: u64,
    pub(super) flushes: u64,
    pub(super) reads: u64,
    pub(super) grain: Grain,
    pub(super) tolerance: Tolerance,
}

impl Load {
    pub(super) fn drawn(sim: &Sim, tolerance: Tolerance) -> Self {
        sim.chance(|chance| Self {
            connections: chance.between(1, 2),
            workers: chance.between(1, 6),
            think_us_max: [0, 500, 5_000, 40_000][chance.index(4)],
            write_sectors_max: [8, 8, 40, 512][chance.index(4)],
            hot_one_in: chance.between(1, 4),
            hot_pages: chance.between(1, 16),
            zeros: [0, 4, 15][chance.index(3)],
            flushes: [2, 10, 25][chance.index(3)],
            reads: [5, 20][chance.index(2)],
            grain: Grain::Sectors,
            tolerance,
        })
    }
}

/// A client process under load.
#[derive(Debug)]
pub(super) struct Guest {
    sim: Sim,
    pub(super) pid: Pid,
    pub(super) world: SimWorld,
    state: Rc<State>,
    /// Connections, to say goodbye.
    clients: Rc<RefCell<Vec<Connected>>>,
}

/// A connection to each of the disks.
type Connected = Rc<[NbdClient<SimWorld>]>;

/// What the workers share with the driver, beyond the death of the process.
#[derive(Debug)]
pub(super) struct State {
    disks: Rc<Disks>,
    model: RefCell<Model>,
    load: Load,
    tolerance: Cell<Tolerance>,
    /// Workers wait before their next request; so many do.
    paused: Cell<bool>,
    resting: Cell<u64>,
    go: Notify,
    /// Workers that have not ended.
    pub(super) working: Cell<u64>,
    stop: Cell<bool>,
    pub(super) answers: Cell<u64>,
    /// Answers with success to writes, zeros and flushes.
    pub(super) changes: Cell<u64>,
    /// Requests that failed, as far as they may.
    pub(super) failures: Cell<u64>,
    violation: RefCell<Option<String>>,
    /// Reads are judged.
    judged: Cell<bool>,
    /// Where the next record of the log goes: it begins anew when it is full.
    log_end: Cell<u64>,
}

impl Guest {
    /// Starts a client process beside the server; connecting is its own business.
    pub(super) fn start(
        sim: &Sim,
        host: HostId,
        disks: Rc<Disks>,
        model: Model,
        load: Load,
    ) -> Self {
        let state = Rc::new(State {
            disks,
            model: RefCell::new(model),
            load,
            tolerance: Cell::new(load.tolerance),
            paused: Cell::new(false),
            resting: Cell::new(0),
            go: Notify::new(),
            working: Cell::new(load.workers),
            stop: Cell::new(false),
            answers: Cell::new(0),
            changes: Cell::new(0),
            failures: Cell::new(0),
            violation: RefCell::new(None),
            judged: Cell::new(true),
            log_end: Cell::new(0),
        });
        let clients = Rc::<RefCell<Vec<Connected>>>::default();
        let (shared, told, driver) = (Rc::clone(&clients), Rc::clone(&state), sim.clone());
        let world = sim.process(host);
        let own = world.clone();
        world.spawn(async move {
            for _ in 0..load.connections {
                match connect_all(&own, &told.disks).await {
                    Ok(clients) => shared.borrow_mut().push(clients),
                    Err(error) => {
                        told.refused(&error);
                        return;
                    }
                }
            }
            let all: Vec<Connected> = shared.borrow().clone();
            for worker in 0..load.workers {
                let number = usize::try_from(worker).expect("a few") % all.len();
                let (clients, told, sim) =
                    (Rc::clone(&all[number]), Rc::clone(&told), driver.clone());
                own.spawn(async move {
                    while told.request(&sim, &clients).await == Goes::On {}
                    told.working.set(told.working.get() - 1);
                });
            }
        });
        Self {
            sim: sim.clone(),
            pid: world.pid(),
            world,
            state,
            clients,
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// What was seen that must not be.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.state.violation.borrow() {
            None => Ok(()),
            Some(what) => bail!("{what}"),
        }
    }

    /// True once every worker has ended, or the process is gone.
    pub(super) fn is_over(&self) -> bool {
        self.state.working.get() == 0 || !self.sim.is_alive(self.pid)
    }

    /// Asks the workers to end after the request that they are at.
    pub(super) fn stop(&self) {
        self.state.stop.set(true);
        self.resume();
    }

    /// The workers wait after the request that they are at: [`Self::quiet`] returns when all do.
    pub(super) fn pause(&self) {
        self.state.paused.set(true);
    }

    pub(super) fn resume(&self) {
        self.state.paused.set(false);
        self.state.go.notify_waiters();
    }

    /// Of one that is paused: it is connected, and nothing of its load is on its way any more.
    pub(super) async fn quiet(&self, within: Duration) -> Result<()> {
        let end = self.sim.now() + within;
        while !self.is_over() && self.state.resting.get() < self.state.working.get() {
            self.check()?;
            if self.sim.now() > end {
                bail!("a guest that is paused does not come to rest within {within:?}");
            }
            self.sim.sleep(Duration::from_millis(1)).await;
        }
        self.check()
    }

    /// What is coming may fail more than what was.
    pub(super) fn tolerate(&self, tolerance: Tolerance) {
        self.state.tolerance.set(tolerance);
    }

    /// Begins a request beside the load, on the first connection to the first disk. The answer is an error if the process dies first, or
    /// has no connection.
    pub(super) fn send<T, F>(
        &self,
        request: impl FnOnce(NbdClient<SimWorld>) -> F,
    ) -> oneshot::Receiver<T>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, answer) = oneshot::channel();
        let first = self.clients.borrow().first().cloned();
        if let Some(client) = first.and_then(|clients| clients.first().cloned()) {
            let asked = request(client);
            self.world.spawn(async move {
                // Nobody waits any more: fine.
                drop(sender.send(asked.await));
            });
        }
        answer
    }

    /// The same, and waits for the answer.
    pub(super) async fn ask<T, F>(
        &self,
        request: impl FnOnce(NbdClient<SimWorld>) -> F,
    ) -> Option<T>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        self.send(request).await.ok()
    }

    /// Waits for the workers, within a time that no healthy system needs.
    pub(super) async fn over(&self, within: Duration) -> Result<()> {
        let end = self.sim.now() + within;
        while !self.is_over() {
            self.check()?;
            if self.sim.now() > end {
                bail!(
                    "{} requests were not answered within {within:?}",
                    self.state.working.get()
                );
            }
            self.sim.sleep(Duration::from_millis(1)).await;
        }
        self.check()
    }

    /// Says goodbye on every connection, or vanishes.
    pub(super) fn leave(&self, politely: bool) {
        let clients = self.clients.take().into_iter();
        for client in clients.flat_map(|clients| clients.to_vec()) {
            if politely {
                self.sim.spawn(async move { client.disconnect().await });
            } else {
                client.vanish();
            }
        }
    }

    /// From here on this guest writes to a volume that is not the model's any more.
    pub(super) fn estrange(&self) {
        let size = self.state.model.borrow().borrow().size_bytes();
        let foreign = Oracle::new(!self.sim.seed(), size);
        *self.state.model.borrow_mut() = Rc::new(RefCell::new(foreign));
        self.state.judged.set(false);
    }
}

/// Whether a worker goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goes {
    On,
    Away,
}

impl State {
    async fn request(&self, sim: &Sim, clients: &[NbdClient<SimWorld>]) -> Goes {
        if self.stop.get() {
            return Goes::Away;
        }
        if self.load.think_us_max > 0 {
            let think = sim.chance(|chance| chance.below(self.load.think_us_max));
            sim.sleep(Duration::from_micros(think)).await;
        }
        if self.gate().await == Goes::Away {
            return Goes::Away;
        }
        let what = sim.chance(|chance| chance.below(100));
        let model = Rc::clone(&self.model.borrow());
        let (zeros, flushes) = (self.load.zeros, self.load.flushes);
        let done = if what < zeros {
            self.zero(sim, clients, &model).await
        } else if what < zeros + flushes {
            self.flush(clients, &model, self.disks.any(sim)).await
        } else if what < zeros + flushes + self.load.reads {
            return self.read(sim, clients, &model).await;
        } else if self.disks.is_group() && sim.chance(|chance| chance.one_in(2)) {
            Box::pin(self.transact(sim, clients, &model)).await
        } else {
            self.write(sim, clients, &model).await
        };
        match done {
            Ok(()) => {
                self.answers.set(self.answers.get() + 1);
                self.changes.set(self.changes.get() + 1);
                Goes::On
            }
            Err(error) => self.failed(&error, Request::Change),
        }
    }

    /// Waits while the guest is paused.
    async fn gate(&self) -> Goes {
        while self.paused.get() {
            // Made before anybody sees that it waits: a resume in between wakes it.
            let go = self.go.notified();
            self.resting.set(self.resting.get() + 1);
            go.await;
            self.resting.set(self.resting.get() - 1);
            if self.stop.get() {
                return Goes::Away;
            }
        }
        Goes::On
    }

    /// What is told by a record of the log is not there without it: only behind its answer the data is sent.
    async fn transact(
        &self,
        sim: &Sim,
        clients: &[NbdClient<SimWorld>],
        model: &Model,
    ) -> Result<(), ClientError> {
        let page = PAGE_SECTORS * SECTOR_BYTES;
        let at = self.log_end.get();
        self.log_end.set((at + page) % self.disks.member_bytes());
        let record = (self.disks.at(LOG, at), page);
        self.write_at(sim, clients, model, record).await?;
        if sim.chance(|chance| chance.one_in(LOG_FLUSHED_ONE_IN)) {
            self.flush(clients, model, LOG).await?;
        }
        self.write(sim, clients, model).await
    }

    async fn write(
        &self,
        sim: &Sim,
        clients: &[NbdClient<SimWorld>],
        model: &Model,
    ) -> Result<(), ClientError> {
        let range = self.range(sim);
        self.write_at(sim, clients, model, range).await
    }

    async fn write_at(
        &self,
        sim: &Sim,
        clients: &[NbdClient<SimWorld>],
        model: &Model,
        (at, len): (u64, u64),
    ) -> Result<(), ClientError> {
        let fua = sim.chance(|chance| chance.one_in(10));
        let (no, data) = model.borrow_mut().submit_write(at, len);
        let (member, place) = self.disks.place(at);
        sim.note(format_args!(
            "{no} {at}+{len}{}",
            if fua { " FUA" } else { "" }
        ));
        if fua {
            clients[member].write_fua(place, data).await?;
        } else {
            clients[member].write(place, data).await?;
        }
        if self.is_current(model) {
            sim.note(format_args!("{no} answered"));
            let mut model = model.borrow_mut();
            if fua {
                model.answered_durable(no);
            } else {
                model.answered(no);
            }
        }
        Ok(())
    }

    async fn zero(
        &self,
        sim: &Sim,
        clients: &[NbdClient<SimWorld>],
        model: &Model,
    ) -> Result<(), ClientError> {
        let (at, len) = self.range(sim);
        let (member, place) = self.disks.place(at);
        let (what, flags) = sim.chance(|chance| {
            let what = [command::TRIM, command::WRITE_ZEROES][chance.index(2)];
            (what, if chance.one_in(10) { flag::FUA } else { 0 })
        });
        let no = model.borrow_mut().submit_zero(at, len);
        sim.note(format_args!("{no} {at}+{len} zeros"));
        let len = u32::try_from(len).expect("small");
        clients[member].ask(what, flags, place, len).await?;
        if self.is_current(model) {
            sim.note(format_args!("{no} answered"));
            let mut model = model.borrow_mut();
            if flags == 0 {
                model.answered(no);
            } else {
                model.answered_durable(no);
            }
        }
        Ok(())
    }

    /// Of one member it makes durable what was written to that.
    async fn flush(
        &self,
        clients: &[NbdClient<SimWorld>],
        model: &Model,
        member: usize,
    ) -> Result<(), ClientError> {
        let begun = model.borrow_mut().flush_begin();
        clients[member].flush().await?;
        if self.is_current(model) {
            let mut model = model.borrow_mut();
            match self.disks.is_group() {
                true => model.flush_done_within(begun, &self.disks.window(member)),
                false => model.flush_done(begun),
            }
        }
        Ok(())
    }

    async fn read(&self, sim: &Sim, clients: &[NbdClient<SimWorld>], model: &Model) -> Goes {
        let (at, len) = self.range(sim);
        let (member, place) = self.disks.place(at);
        let begun = model.borrow_mut().read_begin();
        let len_asked = u32::try_from(len).expect("small");
        let bytes = match clients[member].read(place, len_asked).await {
            Ok(bytes) => bytes,
            Err(error) => return self.failed(&error, Request::Read),
        };
        self.answers.set(self.answers.get() + 1);
        if self.is_current(model) && self.judged.get() {
            let verdict = model.borrow().check_read(begun, at, &bytes);
            if let Err(violation) = verdict {
                self.accuse(format!("a read of {at}+{len}: {violation}"));
                return Goes::Away;
            }
        }
        Goes::On
    }

    /// A guest that was estranged meanwhile has nothing to tell the old model.
    fn is_current(&self, model: &Model) -> bool {
        Rc::ptr_eq(model, &self.model.borrow())
    }

    fn failed(&self, error: &ClientError, request: Request) -> Goes {
        match (error, self.tolerance.get(), request) {
            // Killed, or cut off: whether it happened is unknown, and the model says so.
            (ClientError::Closed | ClientError::Io(_), _, _) => Goes::Away,
            (ClientError::Failed { errno, .. }, Tolerance::Reads, Request::Read)
                if *errno == EIO =>
            {
                self.failures.set(self.failures.get() + 1);
                Goes::On
            }
            (ClientError::Failed { errno, .. }, Tolerance::Everything, Request::Read)
                if *errno == EIO =>
            {
                self.failures.set(self.failures.get() + 1);
                Goes::On
            }
            (ClientError::Failed { .. }, Tolerance::Everything, _) => {
                self.failures.set(self.failures.get() + 1);
                Goes::Away
            }
            _ => {
                self.accuse(format!("{request:?} failed: {error}"));
                Goes::Away
            }
        }
    }

    fn refused(&self, error: &ClientError) {
        let cut_off = matches!(error, ClientError::Closed | ClientError::Io(_));
        if !cut_off && self.tolerance.get() != Tolerance::Everything {
            self.accuse(format!("a guest cannot connect: {error}"));
        }
        self.working.set(0);
    }

    fn accuse(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(what);
    }

    /// Bytes of one disk to work on: mostly a page, sometimes a part of one, sometimes many.
    fn range(&self, sim: &Sim) -> (u64, u64) {
        let member = self.disks.any(sim);
        let (at, len) = self.range_within(sim);
        (self.disks.at(member, at), len)
    }

    fn range_within(&self, sim: &Sim) -> (u64, u64) {
        let sectors = self.disks.member_bytes() / SECTOR_BYTES;
        let load = &self.load;
        sim.chance(|chance| {
            let region = if chance.one_in(load.hot_one_in) {
                (load.hot_pages * PAGE_SECTORS).min(sectors)
            } else {
                sectors
            };
            let (first, count) = match chance.below(8) {
                0..4 => (
                    chance.below(region) / PAGE_SECTORS * PAGE_SECTORS,
                    PAGE_SECTORS,
                ),
                4 | 5 => (chance.below(region), chance.between(1, PAGE_SECTORS)),
                _ => (
                    chance.below(region),
                    chance.between(1, load.write_sectors_max),
                ),
            };
            let (first, end) = match load.grain {
                Grain::Sectors => (first, first + count),
                Grain::Pages => (
                    first / PAGE_SECTORS * PAGE_SECTORS,
                    (first + count).next_multiple_of(PAGE_SECTORS),
                ),
            };
            (
                first * SECTOR_BYTES,
                (end.min(sectors) - first) * SECTOR_BYTES,
            )
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Change,
}

/// How often a guest waits until the server has seen that the client before it is gone.
const IN_USE_TRIES_MAX: u32 = 100;

async fn connect_all(world: &SimWorld, disks: &Disks) -> Result<Connected, ClientError> {
    let mut clients = Vec::new();
    for name in disks.names() {
        clients.push(connect(world, name).await?);
    }
    Ok(clients.into())
}

/// A connection that may write.
async fn connect(world: &SimWorld, name: &str) -> Result<NbdClient<SimWorld>, ClientError> {
    let mut tries = 0;
    let client = loop {
        match NbdClient::connect(world, &socket(), name, Options::default()).await {
            Err(ClientError::Refused { text, .. })
                if text.contains("in use by") && tries < IN_USE_TRIES_MAX =>
            {
                tries += 1;
                world.sleep(Duration::from_millis(5)).await;
            }
            other => break other?,
        }
    };
    if client.export().flags & export::READ_ONLY != 0 {
        let (kind, text) = (0, "the export is read-only".to_owned());
        return Err(ClientError::Refused { kind, text });
    }
    Ok(client)
}
