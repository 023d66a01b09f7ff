//! The disks of the simulated hosts: operations that take time, on files that follow `faults`.
//!
//! An operation begins when its future is first polled, takes effect at some moment, and answers
//! later: so a crash may come before the effect or between effect and answer. It goes on when its
//! caller gives it up, as on io_uring.

mod image;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use image::DiskImage;

use super::faults::{DiskFaults, FileState, PendingWrite, part_of};
use super::trace::fingerprint;
use super::{Sim, SimWorld, Spread};
use crate::sync::oneshot;
use crate::{Buf, DiskError, DiskErrorKind, File, OpenMode};

type Shared = Rc<RefCell<FileState>>;

/// The files of a host.
pub(super) struct Disk {
    files: BTreeMap<PathBuf, Shared>,
    bytes_max: u64,
    faults: DiskFaults,
    openings: u64,
}

/// A file of a simulated disk.
#[derive(Clone)]
pub struct SimFile {
    opening: Rc<Opening>,
}

struct Opening {
    world: SimWorld,
    path: PathBuf,
    state: Shared,
    lock: u64,
}

const EIO: i32 = 5;

impl Disk {
    pub(super) fn new(bytes_max: u64, faults: DiskFaults) -> Self {
        Self {
            files: BTreeMap::new(),
            bytes_max,
            faults,
            openings: 0,
        }
    }

    fn used(&self) -> u64 {
        self.files.values().map(|file| file.borrow().len()).sum()
    }

    fn is_open(&self) -> bool {
        self.files.values().any(|file| file.borrow().lock.is_some())
    }
}

impl SimFile {
    pub(super) async fn open(
        world: SimWorld,
        path: PathBuf,
        mode: OpenMode,
    ) -> Result<Self, DiskError> {
        world.begin().await;
        let took = world.sim.delay(|delays| delays.disk);
        world.sim.sleep(took).await;
        world.while_alive().await;
        let opened = Self::open_now(&world, &path, mode);
        let outcome = opened
            .as_ref()
            .map_or_else(ToString::to_string, |_| "done".into());
        world.trace(format_args!("open {} {mode:?}: {outcome}", path.display()));
        opened
    }

    fn open_now(world: &SimWorld, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        let failed = |kind| DiskError {
            operation: "open",
            path: path.to_owned(),
            kind,
        };
        let (state, lock) = world.sim.with_host(world.host(), |host| {
            let disk = &mut host.disk;
            if mode == OpenMode::Create {
                disk.files.entry(path.to_owned()).or_default();
            }
            disk.openings += 1;
            let state = disk.files.get(path).map(Rc::clone);
            (state, disk.openings)
        });
        let state = state.ok_or_else(|| failed(DiskErrorKind::NotFound))?;
        if state.borrow().lock.is_some() {
            return Err(failed(DiskErrorKind::Busy));
        }
        state.borrow_mut().lock = Some((lock, world.pid().0));
        let opening = Opening {
            world: world.clone(),
            path: path.to_owned(),
            state,
            lock,
        };
        Ok(Self {
            opening: Rc::new(opening),
        })
    }

    async fn read_face(&self, face: Face, at: u64, mut buf: Buf) -> (Buf, Result<(), DiskError>) {
        self.opening.world.begin().await;
        let opening = Rc::clone(&self.opening);
        let spread = self.disk_spread();
        let effect = move |sim: &Sim| {
            let outcome = opening.read(sim, face, at, &mut buf);
            (buf, outcome)
        };
        self.opening.perform(spread, effect).await
    }

    fn disk_spread(&self) -> Spread {
        self.opening.world.sim.shared.config.delays.disk
    }
}

/// Where a read looks.
#[derive(Clone, Copy, Debug)]
enum Face {
    Kernel,
    Device,
}

impl Opening {
    /// Has `effect` happen somewhere in a duration out of `spread`, and returns at its end. It never
    /// happens if the process is dead by then.
    async fn perform<T: 'static>(
        self: &Rc<Self>,
        spread: Spread,
        effect: impl FnOnce(&Sim) -> T + 'static,
    ) -> T {
        let sim = &self.world.sim;
        let (before, after) = sim.chance(|chance| (chance.delay(spread), chance.delay(spread)));
        let (sender, receiver) = oneshot::channel();
        let opening = Rc::clone(self);
        sim.later(before / 2, move |sim| {
            if !opening.world.is_alive() {
                return;
            }
            let result = effect(sim);
            // The caller may have given up: the effect stands.
            sim.later(after / 2, move |_| drop(sender.send(result)));
        });
        finished(receiver).await
    }

    fn failed(&self, operation: &'static str, kind: DiskErrorKind) -> DiskError {
        let error = DiskError {
            operation,
            path: self.path.clone(),
            kind,
        };
        self.world.trace(format_args!("{error}"));
        error
    }

    fn faults(&self) -> DiskFaults {
        self.world.sim.disk_faults(self.world.host())
    }

    fn read(&self, sim: &Sim, face: Face, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let operation = match face {
            Face::Kernel => "read",
            Face::Device => "read from the device",
        };
        if self.ends_before(at, out.len()) {
            return Err(self.failed(operation, DiskErrorKind::Short));
        }
        let faults = self.faults();
        if sim.chance(|chance| chance.hit(faults.read_error)) {
            return Err(self.failed(operation, DiskErrorKind::Io(EIO)));
        }
        if !out.is_empty() && sim.chance(|chance| chance.hit(faults.bit_flip)) {
            let (byte, bit) = sim.chance(|chance| (chance.index(out.len()), chance.below(8)));
            self.flip(at + length(byte), u8::try_from(bit).expect("below 8"));
        }
        match face {
            Face::Kernel => self.state.borrow().read(at, out),
            Face::Device => self.state.borrow().read_device(at, out),
        }
        self.world.trace(format_args!(
            "{operation} {}+{} = {:08x}",
            at,
            out.len(),
            fingerprint(out)
        ));
        Ok(())
    }

    fn flip(&self, at: u64, bit: u8) {
        self.world
            .trace(format_args!("bit {bit} of byte {at} flips"));
        self.state.borrow_mut().flip(at, bit);
    }

    fn ends_before(&self, at: u64, len: usize) -> bool {
        at.checked_add(length(len))
            .is_none_or(|end| end > self.state.borrow().len())
    }

    /// A pending write takes effect: wholly, or as far as its error lets it.
    fn write(&self, sim: &Sim, number: u64) -> (Buf, Result<(), DiskError>) {
        let write = self.state.borrow_mut().take(number);
        let write = write.expect("only a crash takes a pending write, and the process lives");
        let faults = self.faults();
        let end = write.at.saturating_add(length(write.buf.len()));
        let error = if sim.chance(|chance| chance.hit(faults.write_error)) {
            Some(DiskErrorKind::Io(EIO))
        } else if sim.chance(|chance| chance.hit(faults.write_full)) || !self.has_room(end) {
            Some(DiskErrorKind::Full)
        } else {
            None
        };
        let landed = match error {
            None => write.buf.len(),
            // Not a byte more than the disk has.
            Some(_) if !self.has_room(end) => 0,
            Some(_) => sim.chance(|chance| part_of(write.buf.len(), chance)),
        };
        self.state.borrow_mut().land(write.at, &write.buf[..landed]);
        self.world.trace(format_args!(
            "write {}+{landed} = {:08x}",
            write.at,
            fingerprint(&write.buf)
        ));
        let outcome = error.map_or(Ok(()), |kind| Err(self.failed("write", kind)));
        (write.buf, outcome)
    }

    fn has_room(&self, end: u64) -> bool {
        let len = self.state.borrow().len();
        end <= len
            || self.world.sim.with_host(self.world.host(), |host| {
                let used_by_others = host.disk.used().saturating_sub(len);
                used_by_others.saturating_add(end) <= host.disk.bytes_max
            })
    }

    fn persist(&self, sim: &Sim, mark: u64) -> Result<(), DiskError> {
        let faults = self.faults();
        if sim.chance(|chance| chance.hit(faults.persist_error)) {
            sim.chance(|chance| self.state.borrow_mut().persist_failed(mark, chance));
            return Err(self.failed("persist", DiskErrorKind::Io(EIO)));
        }
        self.state.borrow_mut().persisted(mark);
        self.world
            .trace(format_args!("persist up to change {mark}"));
        Ok(())
    }

    fn grow(&self, to: u64) -> Result<(), DiskError> {
        if !self.has_room(to) {
            return Err(self.failed("grow", DiskErrorKind::Full));
        }
        self.state.borrow_mut().grow(to);
        self.world
            .trace(format_args!("grow {} to {to}", self.path.display()));
        Ok(())
    }
}

/// What was sent; never, if the sender died with its process.
async fn finished<T>(receiver: oneshot::Receiver<T>) -> T {
    match receiver.await {
        Ok(value) => value,
        Err(_) => std::future::pending().await,
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits u64")
}

/// One write in so many is seen in part before it is done.
const WRITE_IN_PARTS_ONE_IN: u64 = 8;

impl File for SimFile {
    fn read_at(&self, at: u64, buf: Buf) -> impl Future<Output = (Buf, Result<(), DiskError>)> {
        self.read_face(Face::Kernel, at, buf)
    }

    fn read_now(&self, at: u64, into: &mut [u8]) -> bool {
        let opening = &self.opening;
        let sim = &opening.world.sim;
        let warm = sim.chance(|chance| chance.hit(sim.shared.config.read_now));
        if !warm || !opening.world.is_alive() || opening.ends_before(at, into.len()) {
            return false;
        }
        opening.state.borrow().read(at, into);
        true
    }

    async fn write_at(&self, at: u64, buf: Buf) -> (Buf, Result<(), DiskError>) {
        let opening = &self.opening;
        let world = &opening.world;
        world.begin().await;
        let parts = world.sim.chance(|chance| {
            let part = part_of(buf.len(), chance);
            chance.one_in(WRITE_IN_PARTS_ONE_IN).then_some(part)
        });
        let pid = world.pid().0;
        let pending = PendingWrite { pid, at, buf };
        let number = opening.state.borrow_mut().submit(pending);
        if let Some(part) = parts {
            let early = Rc::clone(opening);
            let soon = self.disk_spread();
            let delay = world.sim.chance(|chance| chance.delay(soon)) / 4;
            world
                .sim
                .later(delay, move |_| early.write_part(number, part));
        }
        let doing = Rc::clone(opening);
        let effect = move |sim: &Sim| doing.write(sim, number);
        opening.perform(self.disk_spread(), effect).await
    }

    async fn persist(&self) -> Result<(), DiskError> {
        let opening = Rc::clone(&self.opening);
        opening.world.begin().await;
        let mark = opening.state.borrow().mark();
        let spread = opening.world.sim.shared.config.delays.persist;
        let effect = move |sim: &Sim| opening.persist(sim, mark);
        self.opening.perform(spread, effect).await
    }

    async fn size(&self) -> Result<u64, DiskError> {
        let opening = Rc::clone(&self.opening);
        opening.world.begin().await;
        let effect = move |_: &Sim| opening.state.borrow().len();
        Ok(self.opening.perform(self.disk_spread(), effect).await)
    }

    async fn grow(&self, to: u64) -> Result<(), DiskError> {
        let opening = Rc::clone(&self.opening);
        opening.world.begin().await;
        let effect = move |_: &Sim| opening.grow(to);
        self.opening.perform(self.disk_spread(), effect).await
    }

    async fn forget_cached(&self) -> Result<(), DiskError> {
        let opening = Rc::clone(&self.opening);
        opening.world.begin().await;
        let effect = move |_: &Sim| {
            opening.state.borrow_mut().forget_cached();
            opening.world.trace(format_args!("forget cached pages"));
        };
        self.opening.perform(self.disk_spread(), effect).await;
        Ok(())
    }

    fn read_device_at(
        &self,
        at: u64,
        buf: Buf,
    ) -> impl Future<Output = (Buf, Result<(), DiskError>)> {
        let page = length(crate::buf::PAGE_BYTES);
        assert!(at.is_multiple_of(page), "a direct read at {at}");
        assert!(
            length(buf.len()).is_multiple_of(page),
            "a direct read of {}",
            buf.len()
        );
        self.read_face(Face::Device, at, buf)
    }
}

impl Opening {
    /// The first part of a write becomes visible before the rest.
    fn write_part(&self, number: u64, part: usize) {
        let mut state = self.state.borrow_mut();
        let Some(write) = state.pending(number) else {
            return;
        };
        // Only in place: the room behind the end is not known to be there yet.
        if write.at.saturating_add(length(part)) <= state.len() {
            state.land_part(number, part);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.lock.is_some_and(|(lock, _)| lock == self.lock) {
            state.lock = None;
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFile({})", self.opening.path.display())
    }
}

impl SimWorld {
    /// An operation begins: it counts, and those of the dead never end.
    pub(super) async fn begin(&self) {
        self.while_alive().await;
        self.sim.begin(self.host());
    }

    pub(super) async fn while_alive(&self) {
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
    }
}
