//! Exports in memory, to test a front door by itself: what it costs, and what clients make of it.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use glidefs::device::{
    Access, BlockDevice, ConnectError, Exports, Fua, IoError, Look, Run, RunKind,
};
use world::Peer;

/// One export by the name of `memory`.
#[derive(Debug)]
pub struct MemoryExports {
    pub device: Rc<MemoryDevice>,
}

impl MemoryExports {
    pub const NAME: &'static str = "memory";

    pub fn new(size_bytes: u64) -> Self {
        let device = Rc::new(MemoryDevice::new(size_bytes));
        Self { device }
    }

    fn check(name: &str) -> Result<(), ConnectError> {
        if name == Self::NAME {
            return Ok(());
        }
        let text = format!("there is no export `{name}`; there is `{}`", Self::NAME);
        Err(ConnectError::Unknown(text))
    }
}

impl Exports for MemoryExports {
    type Device = MemoryDevice;

    async fn connect(&self, name: &str, _peer: &Peer) -> Result<Rc<MemoryDevice>, ConnectError> {
        Self::check(name).map(|()| Rc::clone(&self.device))
    }

    async fn look(&self, name: &str) -> Result<Look, ConnectError> {
        Self::check(name).map(|()| Look {
            size_bytes: self.device.size_bytes(),
            access: self.device.access(),
        })
    }

    async fn names(&self) -> Vec<String> {
        vec![Self::NAME.to_owned()]
    }
}

/// A disk that knows which of its 4 KiB pages were written.
#[derive(Debug)]
pub struct MemoryDevice {
    bytes: RefCell<Vec<u8>>,
    written: RefCell<Vec<bool>>,
}

const PAGE_BYTES: u64 = 4096;

impl MemoryDevice {
    fn new(size_bytes: u64) -> Self {
        let pages = size_bytes.div_ceil(PAGE_BYTES);
        Self {
            bytes: RefCell::new(vec![0; index(size_bytes)]),
            written: RefCell::new(vec![false; index(pages)]),
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        u64::try_from(self.bytes.borrow().len()).expect("it was a u64")
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    async fn read(&self, at: u64, len: u64) -> Result<Bytes, IoError> {
        let bytes = self.bytes.borrow();
        Ok(Bytes::copy_from_slice(&bytes[index(at)..index(at + len)]))
    }

    async fn write(&self, at: u64, data: Bytes, _fua: Fua) -> Result<(), IoError> {
        let start = index(at);
        let end = start + data.len();
        self.bytes.borrow_mut()[start..end].copy_from_slice(&data);
        let pages = start / index(PAGE_BYTES)..end.div_ceil(index(PAGE_BYTES));
        self.written.borrow_mut()[pages].fill(true);
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64, _fua: Fua) -> Result<(), IoError> {
        self.bytes.borrow_mut()[index(at)..index(at + len)].fill(0);
        // Pages that are zeroed in part stay written.
        let pages = index(at.div_ceil(PAGE_BYTES))..index((at + len) / PAGE_BYTES);
        if pages.start < pages.end {
            self.written.borrow_mut()[pages].fill(false);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn prefetch(&self, _at: u64, _len: u64) -> Result<(), IoError> {
        Ok(())
    }

    async fn status(&self, at: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, IoError> {
        let written = self.written.borrow();
        let mut runs: Vec<Run> = Vec::new();
        let mut place = at;
        while place < at + len {
            let end = ((place / PAGE_BYTES + 1) * PAGE_BYTES).min(at + len);
            let kind = if written[index(place / PAGE_BYTES)] {
                RunKind::Data
            } else {
                RunKind::Hole
            };
            let is_full = runs.len() == runs_max;
            match runs.last_mut() {
                Some(last) if last.kind == kind => last.len += end - place,
                _ if is_full => break,
                _ => runs.push(Run {
                    len: end - place,
                    kind,
                }),
            }
            place = end;
        }
        Ok(runs)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a device in memory is smaller than memory")
}
