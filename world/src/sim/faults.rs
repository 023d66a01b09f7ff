//! One file of a simulated disk, and what a crash leaves of it. Pure: values in, values out.
//!
//! # The fault model
//!
//! A file has three faces: the *kernel's* (page cache: what reads return), the *device's* (what
//! O_DIRECT reads return) and the *durable* one (what is there after a power cut).
//!
//! - A write that returned is in the kernel's face. A write that was submitted and did not return
//!   when its process died is there wholly, not at all, or up to some sector: the process was killed
//!   inside the call. While it is under way a reader may see its first part.
//! - A completed persist makes durable every change that returned before the persist was submitted.
//!   A change made while it was under way is covered or not.
//! - A power cut takes the kernel's face away. For each 512-byte sector, by the seed and
//!   independently of every other, any state since the last completed persist may be what the device
//!   holds: the durable one, the last, or one between. So unsynced writes are lost, torn at sector
//!   borders and reordered, each also with a persist under way. Some cuts instead keep all, nothing,
//!   or a prefix of the changes: the cases that a fair coin for each sector would never show.
//!   Writes that were submitted and had not returned take part. A sector itself is never torn.
//! - A growth counts as a change: a cut may take it back, with all that lies behind the old end. A
//!   file that was never persisted may be gone as a whole.
//! - A persist that fails has tried: by the seed, of the changes that it was to cover, some became
//!   durable and the others never will, though the kernel still shows them (Linux marks the pages
//!   clean). The error is told once: the next persist succeeds. The device's face lacks what was
//!   lost, until something else is written to that page: the kernel writes back whole pages, so it
//!   takes along what was lost on it.
//! - A write that fails has written a part by the seed, up to some sector.
//! - A bit that flips at rest flips in the kernel's and in the durable face.
//!
//! Deliberately absent: sectors larger than 512 bytes, device errors that come and go by
//! themselves, and a page cache that forgets clean pages.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::chance::{Chance, Odds};
use crate::buf::PAGE_BYTES;

/// What a power cut leaves whole.
pub const SECTOR_BYTES: u64 = 512;

/// How often the operations of a disk fail. All off at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// A persist fails with EIO.
    pub persist_error: Odds,
    /// A write fails with EIO.
    pub write_error: Odds,
    /// A write fails with ENOSPC.
    pub write_full: Odds,
    /// A read fails with EIO; the bytes are unharmed.
    pub read_error: Odds,
    /// A bit of the range that is read has flipped, for good.
    pub bit_flip: Odds,
}

/// Sparse bytes in shared pages, so that a copy of a disk costs little.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages(BTreeMap<u64, Rc<[u8; PAGE_BYTES]>>);

const PAGE: u64 = 4096;
const _: () = assert!(PAGE_BYTES == 4096);

impl Pages {
    pub(super) fn read(&self, at: u64, out: &mut [u8]) {
        for (page, inside, part) in split(at, out.len()) {
            let out = &mut out[part];
            match self.0.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[inside..inside + out.len()]),
                None => out.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (page, inside, part) in split(at, bytes.len()) {
            let bytes = &bytes[part];
            let page = self
                .0
                .entry(page)
                .or_insert_with(|| Rc::new([0; PAGE_BYTES]));
            Rc::make_mut(page)[inside..inside + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn truncate(&mut self, len: u64) {
        drop(self.0.split_off(&len.div_ceil(PAGE)));
        let inside = index(len % PAGE);
        if inside > 0
            && let Some(page) = self.0.get_mut(&(len / PAGE))
        {
            Rc::make_mut(page)[inside..].fill(0);
        }
    }

    fn flip(&mut self, at: u64, bit: u8) {
        let mut byte = [0];
        self.read(at, &mut byte);
        byte[0] ^= 1 << bit;
        self.write(at, &byte);
    }
}

/// The page, the offset in it, and the part of the whole, for each page of `at..at + len`.
fn split(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = at + offset(done);
        let inside = index(position % PAGE);
        let part = done..len.min(done + PAGE_BYTES - inside);
        done = part.end;
        Some((position / PAGE, inside, part))
    })
}

fn index(small: u64) -> usize {
    usize::try_from(small).expect("an offset inside a buffer")
}

fn offset(index: usize) -> u64 {
    u64::try_from(index).expect("a length fits u64")
}

/// A change that no completed persist covers.
#[derive(Clone, Debug)]
struct Unsynced {
    number: u64,
    change: Change,
}

impl Unsynced {
    /// The pages that it dirties.
    fn pages(&self) -> std::ops::Range<u64> {
        match &self.change {
            Change::Data { at, bytes } => at / PAGE..(at + offset(bytes.len())).div_ceil(PAGE),
            Change::Grow { .. } => 0..0,
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Data { at: u64, bytes: Rc<[u8]> },
    Grow { to: u64 },
}

/// Beyond this the oldest changes become durable by themselves, as the kernel writes back.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;

/// A write between submission and return.
#[derive(Clone, Debug)]
pub(super) struct PendingWrite {
    pub(super) pid: u32,
    pub(super) at: u64,
    pub(super) buf: crate::Buf,
}

/// A file: its faces, and what is on the way to them.
#[derive(Clone, Debug, Default)]
pub(super) struct FileState {
    kernel: Pages,
    len: u64,
    durable: Pages,
    durable_len: u64,
    /// A persist of it has completed, so that its name survives a power cut.
    named: bool,
    unsynced: Vec<Unsynced>,
    unsynced_bytes: usize,
    changes: u64,
    pending: BTreeMap<u64, PendingWrite>,
    submitted: u64,
    /// Pages that the kernel shows otherwise than the device and holds for clean.
    lost: BTreeSet<u64>,
    /// Who has it open: the number of the opening, and the process.
    pub(super) lock: Option<(u64, u32)>,
}

impl FileState {
    /// A file that a copy or a restore put there: durable as it is.
    pub(super) fn settled(content: Pages, len: u64) -> Self {
        Self {
            kernel: content.clone(),
            len,
            durable: content,
            durable_len: len,
            named: true,
            ..Self::default()
        }
    }

    /// The content as a copying program sees it.
    pub(super) fn content(&self) -> (Pages, u64) {
        (self.kernel.clone(), self.len)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn read(&self, at: u64, out: &mut [u8]) {
        self.kernel.read(at, out);
    }

    /// What an O_DIRECT read returns: dirty pages are written back for it, lost ones are not.
    pub(super) fn read_device(&self, at: u64, out: &mut [u8]) {
        self.durable.read(at, out);
        for unsynced in &self.unsynced {
            if let Change::Data { at: from, bytes } = &unsynced.change {
                overlay(at, out, *from, bytes);
            }
        }
    }

    pub(super) fn submit(&mut self, write: PendingWrite) -> u64 {
        self.submitted += 1;
        self.pending.insert(self.submitted, write);
        self.submitted
    }

    pub(super) fn pending(&self, number: u64) -> Option<&PendingWrite> {
        self.pending.get(&number)
    }

    /// Takes a pending write out; none if a crash took it.
    pub(super) fn take(&mut self, number: u64) -> Option<PendingWrite> {
        self.pending.remove(&number)
    }

    /// The first `len` bytes of a pending write reach the page cache.
    pub(super) fn land_part(&mut self, number: u64, len: usize) {
        if let Some(write) = self.pending.get(&number) {
            let (at, bytes) = (write.at, Rc::from(&write.buf[..len]));
            self.land_shared(at, bytes);
        }
    }

    /// Bytes reach the page cache.
    pub(super) fn land(&mut self, at: u64, bytes: &[u8]) {
        self.land_shared(at, Rc::from(bytes));
    }

    fn land_shared(&mut self, at: u64, bytes: Rc<[u8]>) {
        if bytes.is_empty() {
            return;
        }
        let end = at + offset(bytes.len());
        if end > self.len {
            self.grow(end);
        }
        self.kernel.write(at, &bytes);
        self.unsynced_bytes += bytes.len();
        let pages = at / PAGE..end.div_ceil(PAGE);
        self.changed(Change::Data { at, bytes });
        for page in pages {
            if self.lost.remove(&page) {
                self.dirty_again(page);
            }
        }
        self.write_back();
    }

    /// The whole page will be written back as the kernel has it.
    fn dirty_again(&mut self, page: u64) {
        let at = page * PAGE;
        let mut bytes = vec![0; index(PAGE.min(self.len.saturating_sub(at)))];
        self.kernel.read(at, &mut bytes);
        self.unsynced_bytes += bytes.len();
        let bytes = Rc::from(bytes);
        self.changed(Change::Data { at, bytes });
    }

    /// The kernel drops the pages that it holds for clean.
    pub(super) fn forget_cached(&mut self) {
        for page in std::mem::take(&mut self.lost) {
            let at = page * PAGE;
            let mut bytes = [0; PAGE_BYTES];
            self.read_device(at, &mut bytes);
            self.kernel.write(at, &bytes);
        }
    }

    pub(super) fn grow(&mut self, to: u64) {
        if to > self.len {
            self.len = to;
            self.changed(Change::Grow { to });
        }
    }

    fn changed(&mut self, change: Change) {
        self.changes += 1;
        self.unsynced.push(Unsynced {
            number: self.changes,
            change,
        });
    }

    fn write_back(&mut self) {
        if self.unsynced_bytes > UNSYNCED_BYTES_MAX {
            let half = self.unsynced.len().div_ceil(2);
            let mark = self.unsynced[half - 1].number;
            self.settle(mark, |_| true);
        }
    }

    /// What a persist submitted now will cover.
    pub(super) fn mark(&self) -> u64 {
        self.changes
    }

    /// A persist with this mark has completed.
    pub(super) fn persisted(&mut self, mark: u64) {
        self.settle(mark, |_| true);
        self.named = true;
    }

    /// A persist with this mark has failed: of what it was to cover, a part is lost.
    pub(super) fn persist_failed(&mut self, mark: u64, chance: &mut Chance) {
        self.settle(mark, |change| match change {
            Change::Data { .. } => chance.one_in(2),
            Change::Grow { .. } => true,
        });
        // What was written to such a page since then has it written back all the same.
        let dirty: BTreeSet<u64> = self.unsynced.iter().flat_map(Unsynced::pages).collect();
        let rescued: Vec<u64> = self.lost.intersection(&dirty).copied().collect();
        for page in rescued {
            self.lost.remove(&page);
            self.dirty_again(page);
        }
    }

    /// Moves changes up to `mark` to the durable face, or drops them where `keep` says no.
    fn settle(&mut self, mark: u64, mut keep: impl FnMut(&Change) -> bool) {
        let covered = self.unsynced.partition_point(|u| u.number <= mark);
        for Unsynced { change, .. } in self.unsynced.drain(..covered) {
            let kept = keep(&change);
            match change {
                Change::Data { at, bytes } => {
                    self.unsynced_bytes -= bytes.len();
                    if kept {
                        self.durable.write(at, &bytes);
                    } else {
                        self.lost
                            .extend(at / PAGE..(at + offset(bytes.len())).div_ceil(PAGE));
                    }
                }
                Change::Grow { to } => self.durable_len = self.durable_len.max(to),
            }
        }
    }

    pub(super) fn flip(&mut self, at: u64, bit: u8) {
        self.kernel.flip(at, bit);
        self.durable.flip(at, bit);
    }

    /// Every process that writes to it dies.
    pub(super) fn all_died(&mut self, chance: &mut Chance) {
        let pids: BTreeSet<u32> = self.pending.values().map(|write| write.pid).collect();
        for pid in pids {
            self.process_died(pid, chance);
        }
    }

    /// The process dies: its writes under way land wholly, partly or not at all.
    pub(super) fn process_died(&mut self, pid: u32, chance: &mut Chance) {
        if self.lock.is_some_and(|(_, holder)| holder == pid) {
            self.lock = None;
        }
        let mut numbers: Vec<u64> = self
            .pending
            .iter()
            .filter_map(|(number, write)| (write.pid == pid).then_some(*number))
            .collect();
        while !numbers.is_empty() {
            let number = numbers.swap_remove(chance.index(numbers.len()));
            let write = self.pending.remove(&number).expect("listed above");
            let len = match chance.below(3) {
                0 => 0,
                1 => part_of(write.buf.len(), chance),
                _ => write.buf.len(),
            };
            self.land(write.at, &write.buf[..len]);
        }
    }

    /// The power goes. False if the file as a whole did not survive.
    pub(super) fn power_cut(&mut self, chance: &mut Chance) -> bool {
        self.lock = None;
        for (_, write) in std::mem::take(&mut self.pending) {
            self.land(write.at, &write.buf);
        }
        if !self.named && chance.one_in(2) {
            return false;
        }
        self.named = true;
        let unsynced = std::mem::take(&mut self.unsynced);
        self.unsynced_bytes = 0;
        Survivors::chosen(chance, unsynced.len()).apply(self, &unsynced, chance);
        self.lost.clear();
        self.durable.truncate(self.durable_len);
        self.kernel = self.durable.clone();
        self.len = self.durable_len;
        true
    }
}

/// A length below `len` on a sector border.
pub(super) fn part_of(len: usize, chance: &mut Chance) -> usize {
    let sectors = offset(len).div_ceil(SECTOR_BYTES).max(1);
    index(chance.below(sectors) * SECTOR_BYTES)
}

/// Copies what of `bytes` at `from` lies in `out` at `at`.
fn overlay(at: u64, out: &mut [u8], from: u64, bytes: &[u8]) {
    let start = at.max(from);
    let end = (at + offset(out.len())).min(from + offset(bytes.len()));
    if start < end {
        let part = &bytes[index(start - from)..index(end - from)];
        out[index(start - at)..index(end - at)].copy_from_slice(part);
    }
}

/// What a power cut leaves of the unsynced changes.
enum Survivors {
    /// The first so many, wholly.
    Prefix(usize),
    /// Each sector for itself: its last state with these odds, else any earlier one.
    Sectors(Odds),
}

impl Survivors {
    fn chosen(chance: &mut Chance, changes: usize) -> Self {
        match chance.below(8) {
            0 => Self::Prefix(0),
            1 => Self::Prefix(changes),
            2 => Self::Prefix(chance.index(changes + 1)),
            3 => Self::Sectors(Odds::one_in(10)),
            4 => Self::Sectors(Odds::per_million(900_000)),
            _ => Self::Sectors(Odds::one_in(2)),
        }
    }

    fn apply(self, file: &mut FileState, unsynced: &[Unsynced], chance: &mut Chance) {
        match self {
            Self::Prefix(count) => {
                for Unsynced { change, .. } in &unsynced[..count] {
                    match change {
                        Change::Data { at, bytes } => file.durable.write(*at, bytes),
                        Change::Grow { to } => file.durable_len = *to,
                    }
                }
            }
            Self::Sectors(latest) => keep_sectors(file, unsynced, latest, chance),
        }
    }
}

fn keep_sectors(file: &mut FileState, unsynced: &[Unsynced], latest: Odds, chance: &mut Chance) {
    let mut touched: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (number, Unsynced { change, .. }) in unsynced.iter().enumerate() {
        match change {
            Change::Data { at, bytes } => {
                let end = at + offset(bytes.len());
                for sector in at / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                    touched.entry(sector).or_default().push(number);
                }
            }
            Change::Grow { to } if chance.hit(latest) => file.durable_len = *to,
            Change::Grow { .. } => {}
        }
    }
    for (sector, numbers) in touched {
        let count = if chance.hit(latest) {
            numbers.len()
        } else {
            chance.index(numbers.len())
        };
        let at = sector * SECTOR_BYTES;
        let mut content = [0; 512];
        file.durable.read(at, &mut content);
        for number in &numbers[..count] {
            if let Change::Data { at: from, bytes } = &unsynced[*number].change {
                overlay(at, &mut content, *from, bytes);
            }
        }
        file.durable.write(at, &content);
    }
}
