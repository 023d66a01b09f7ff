//! Forks that begin here, before the store has heard of them (rules 2, 20, 22).
//!
//! One step chooses the cut and notes the fork: in the parent's state, so that nothing behind the cut is published
//! before a snapshot holds it; in a state of the child's own, so that it is there after a crash. Until the child is in
//! the store it is read as a [`Cut`] of its parent, whatever is written to that meanwhile.
//!
//! ```text
//! parent:  noted ── published at exactly the cut, with a snapshot ─► carried ── the snapshot is dropped ─► forgotten
//! child:   has a base ── its root is in the store, and it is attached ─► has none
//! ```
//!
//! Absent: what a snapshot is, and how the child comes into the store.

use world::World;

use super::cut::part;
use super::relocate::is_held_by_cuts;
use super::{Cache, CacheVolume, Cut, Missing, VOLUMES_MAX};
use crate::extents::{Cover, ExtentMap};
use crate::index::Found;
use crate::log::{Log, Volume};
use crate::record::{FORKS_MAX, TEXT_BYTES_MAX, VolumeState};
use crate::{CacheError, Epoch, Id, PageNo, PageRange, Seq};

/// A fork of a volume that is not done in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingFork {
    /// Its volume.
    pub child: Id,
    /// The parent's write up to which it holds everything.
    pub cut: Seq,
    /// The parent's root has a snapshot of that cut for it.
    pub is_carried: bool,
}

/// What a volume is made of that is not in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkBase {
    pub parent: Id,
    /// Of the parent.
    pub name: String,
    pub cut: Seq,
}

/// A fork to be noted.
#[derive(Clone, Debug)]
pub struct NewFork {
    /// Its volume, which must be new to the log.
    pub child: Id,
    pub name: String,
    /// That the first root of it will have.
    pub nonce: Id,
}

/// What was written to a volume behind a cut.
#[derive(Debug)]
pub(super) struct Newer {
    /// Up to here it is known.
    seq: Seq,
    /// Since when the volume's records count. Once it is forgotten, its seqs may stand for other writes.
    valid_lsn: Option<u64>,
    pages: ExtentMap<Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written;

impl Cover for Written {
    fn skip(&self, _pages: u64) -> Self {
        Self
    }
}

impl Newer {
    pub(super) fn since(seq: Seq, valid_lsn: Option<u64>) -> Self {
        Self {
            seq,
            valid_lsn,
            pages: ExtentMap::default(),
        }
    }
}

impl<W: World> CacheVolume<W> {
    /// Notes a fork that begins with everything written so far, durably, with all of that: from here on it may be
    /// read and written. Returns the cut. Noted again, it is the same one.
    pub async fn fork(&self, new: NewFork) -> Result<Seq, CacheError> {
        assert!(
            new.name.len() <= TEXT_BYTES_MAX,
            "volume names are checked at the border"
        );
        let shared = self.shared();
        shared.room_for_state().await?;
        let (cut, lsn) = noted(&mut shared.log.borrow_mut(), self.id(), new)?;
        shared.flush_to(lsn).await?;
        Ok(cut)
    }

    /// The cut of a fork that is noted here, to be read by [`Cut::read_all`]. May be taken while older cuts are
    /// published, and in the middle of writes. It is to be given back when others need the room
    /// ([`CacheVolume::wants_cuts`]), and may be taken again.
    pub async fn cut_for_fork(&self, cut: Seq) -> Result<Cut<W>, CacheError> {
        if let Some(state) = self.state()
            && let Some(what) = state.damage
        {
            let name = state.name;
            return Err(CacheError::VolumeDamaged { name, what });
        }
        let noted = self.noted_at(cut)?;
        let taken = self.pieces(cut).await?;
        // Forgotten and attached again meanwhile, its seqs stand for other writes.
        if self.noted_at(cut)? != noted {
            return Err(CacheError::UnknownVolume(self.id()));
        }
        Ok(taken)
    }

    /// Since when the records count that a fork's cut is made of. An error if none is to be published at that cut.
    fn noted_at(&self, cut: Seq) -> Result<u64, CacheError> {
        let log = self.shared().log.borrow();
        let volume = log.volumes.get(&self.id());
        let noted = volume.filter(|volume| {
            let mut forks = volume.state.forks.iter();
            forks.any(|fork| fork.cut == cut && !fork.is_carried)
        });
        let valid_lsn = noted.map(|volume| volume.state.valid_lsn);
        valid_lsn.ok_or(CacheError::UnknownVolume(self.id()))
    }

    /// Whether a fork of it is noted whose cut no snapshot holds: then that cut is here, and nothing behind it is
    /// published.
    pub fn holds_cut_of(&self, child: Id) -> bool {
        let log = self.shared().log.borrow();
        let volume = log.volumes.get(&self.id());
        volume.is_some_and(|volume| {
            let mut forks = volume.state.forks.iter();
            forks.any(|fork| fork.child == child && !fork.is_carried)
        })
    }

    /// Somebody waits for room in the log, and a cut is all that keeps the oldest chunk: whoever can take his cut again
    /// later gives it back. Chunks go in their order, so one that is held stops the writers of all volumes.
    pub fn wants_cuts(&self) -> bool {
        let shared = self.shared();
        let log = shared.log.borrow();
        shared.chunks_wanted.get() > log.ready.len() && is_held_by_cuts(&log)
    }

    /// Returns once [`CacheVolume::wants_cuts`].
    pub async fn cuts_wanted(&self) {
        loop {
            // Made before the look: a writer that comes in between wakes it.
            let next = self.shared().cuts_wanted.notified();
            if self.wants_cuts() {
                return;
            }
            next.await;
        }
    }

    /// What a publish did for forks: of some the snapshot is in the root now, others need none any more. To be called
    /// just before [`CacheVolume::published`], which writes it down.
    pub fn forks_published(&self, carried: &[Id], ended: &[Id]) {
        let mut log = self.shared().log.borrow_mut();
        let Some(volume) = log.volumes.get_mut(&self.id()) else {
            return;
        };
        let forks = &mut volume.state.forks;
        forks.retain(|fork| !ended.contains(&fork.child));
        for fork in forks.iter_mut() {
            fork.is_carried |= carried.contains(&fork.child);
        }
    }
}

impl<W: World> Cache<W> {
    /// Whether the volume is a fork that is to come into the store still.
    pub fn is_pending_fork(&self, child: Id) -> bool {
        let log = self.shared.log.borrow();
        let state = log.volumes.get(&child).map(|volume| &volume.state);
        state.is_some_and(|state| state.base.is_some() && state.attached)
    }
}

/// Both notes, in one step with the choice of the cut. The parent's first: a child that is known after a crash has a
/// parent that knows it.
fn noted(log: &mut Log, parent: Id, new: NewFork) -> Result<(Seq, u64), CacheError> {
    let valid_lsn = log.next_lsn;
    let count = log.volumes.len();
    let is_known = log.volumes.contains_key(&new.child);
    let volume = log.volumes.get_mut(&parent);
    let volume = volume.ok_or(CacheError::UnknownVolume(parent))?;
    if volume.fenced {
        return Err(CacheError::Fenced);
    }
    if let Some(what) = volume.damage.clone() {
        let name = volume.state.name.clone();
        return Err(CacheError::VolumeDamaged { name, what });
    }
    let mut forks = volume.state.forks.iter();
    if let (Some(fork), true) = (forks.find(|it| it.child == new.child), is_known) {
        return Ok((fork.cut, log.next_lsn - 1));
    }
    if is_known {
        return Err(CacheError::KnownVolume(new.child));
    }
    if volume.state.forks.len() >= FORKS_MAX {
        return Err(CacheError::TooManyForks(FORKS_MAX));
    }
    if count >= VOLUMES_MAX {
        return Err(CacheError::TooManyVolumes(VOLUMES_MAX));
    }
    let cut = volume.last;
    volume.state.forks.push(PendingFork {
        child: new.child,
        cut,
        is_carried: false,
    });
    let state = VolumeState {
        id: new.child,
        name: new.name,
        size_bytes: volume.state.size_bytes,
        epoch: Epoch(1),
        nonce: new.nonce,
        published: cut,
        last: cut,
        valid_lsn,
        attached: true,
        damaged: false,
        intents: Vec::new(),
        losses: Vec::new(),
        forks: Vec::new(),
        base: Some(ForkBase {
            parent,
            name: volume.state.name.clone(),
            cut,
        }),
    };
    log.volumes.insert(new.child, Volume::new(state));
    log.append_state(parent);
    Ok((cut, log.append_state(new.child)))
}

/// Where pages of a cut are looked for.
enum Piece {
    /// Nobody wrote to them since: what the index has of them is that of the cut, clean pages too.
    Index(PageRange, Found),
    Cut(PageRange),
}

impl<W: World> Cut<W> {
    /// Reads pages as the whole volume was at the cut, as far as they are here; the rest is returned, in order of
    /// address, and is to be taken from what the volume had published at the cut or since, up to the cut.
    pub async fn read_all(
        &self,
        pages: PageRange,
        out: &mut [u8],
    ) -> Result<Vec<Missing>, CacheError> {
        let shared = self.volume.shared();
        let (found, pins) = loop {
            let mut pins = Vec::new();
            let (found, staged) = self.look(pages, &mut pins);
            if !staged {
                break (found, pins);
            }
            drop(pins);
            let lsn = shared.log.borrow().next_lsn - 1;
            shared.commit_wanted.notify_one();
            shared.reached(&shared.committed, lsn).await?;
        };
        let mut missing = Vec::new();
        for piece in found {
            match piece {
                Piece::Cut(run) => {
                    let into = part(pages, run, out);
                    self.read_or_miss(run, into, &mut missing).await?;
                }
                Piece::Index(run, found) => {
                    let into = part(pages, run, out);
                    let read = self.volume.read_run(run, &found, into, &mut missing);
                    read.await?;
                }
            }
        }
        drop(pins);
        Ok(missing)
    }

    /// In one step: a write after it changes neither what was found, nor the bytes there.
    fn look(&self, pages: PageRange, pins: &mut Vec<super::shared::Pins<W>>) -> (Vec<Piece>, bool) {
        let mut found = Vec::new();
        let mut staged = false;
        for (run, is_newer) in self.apart(pages) {
            if is_newer {
                found.push(Piece::Cut(run));
                continue;
            }
            let (runs, pinned, waits) = self.volume.shared().look_up(self.volume.id(), run);
            staged |= waits;
            pins.push(pinned);
            found.extend(runs.into_iter().map(|(run, it)| Piece::Index(run, it)));
        }
        (found, staged)
    }

    /// The pages as runs, and whether somebody wrote to them behind the cut.
    fn apart(&self, pages: PageRange) -> Vec<(PageRange, bool)> {
        let mut newer = self.newer.borrow_mut();
        if !self.catch_up(&mut newer) {
            return vec![(pages, true)];
        }
        let mut runs: Vec<(PageRange, bool)> = Vec::new();
        let mut add = |start: PageNo, end: PageNo, is_newer: bool| match runs.last_mut() {
            _ if start == end => {}
            Some((last, kind)) if *kind == is_newer => last.end = end,
            _ => runs.push((PageRange { start, end }, is_newer)),
        };
        let mut at = pages.start;
        for (run, _) in newer.pages.overlapping(pages) {
            add(at, run.start, false);
            add(run.start, run.end, true);
            at = run.end;
        }
        add(at, pages.end, false);
        runs
    }

    /// Takes in what was written since. False if that is not known any more: it was published, or the volume is gone.
    fn catch_up(&self, newer: &mut Newer) -> bool {
        let shared = self.volume.shared();
        let log = shared.log.borrow();
        let Some(volume) = log.volumes.get(&self.volume.id()) else {
            return false;
        };
        #[cfg(feature = "planted")]
        if shared.config.planted == Some(super::Planted::ForkReadsIndex) {
            return true;
        }
        let is_same = Some(volume.state.valid_lsn) == newer.valid_lsn && volume.damage.is_none();
        if !is_same || volume.state.published > self.seq || volume.last < newer.seq {
            return false;
        }
        let next = newer.seq.next();
        let skip = volume.dirty.partition_point(|record| record.seq < next);
        for record in volume.dirty.iter().skip(skip) {
            if record.seq != newer.seq.next() {
                return false;
            }
            newer.pages.insert(record.what.pages(), Written);
            newer.seq = record.seq;
        }
        newer.seq == volume.last
    }
}
