//! Files on Linux.
//!
//! What the page cache holds is read inline; everything else that waits for the device goes through
//! the ring. Writes are plain `pwrite` calls: they only copy into the page cache, and a file system
//! that would make a ring write wait hands it to a kernel worker, which costs more than the copy.
//! The price: when the kernel throttles dirty pages, the whole shard waits with the writer.
//!
//! The exclusive lock is `flock`: it belongs to the open file and dies with the process.
//!
//! [`File::read_device_at`] uses a second descriptor with O_DIRECT. Where the file system refuses
//! that, the cached pages are dropped by `posix_fadvise` before a normal read, which is best effort:
//! pages that are dirty or in use stay.

use std::cell::OnceCell;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::shard::Shard;
use crate::exec::yield_now;
use crate::{Buf, DiskError, DiskErrorKind, File, OpenMode};

/// Bytes of zeros written at once while a file grows; other tasks run in between.
const GROW_PIECE_BYTES: u64 = 1 << 20;
/// What offsets and lengths of a direct transfer are multiples of.
const DIRECT_ALIGN: u64 = 4096;
/// Bytes of one pwrite: what the kernel moves at most in one call.
const WRITE_BYTES_MAX: usize = 0x7fff_f000;

/// An open, locked file. A cheap handle.
#[derive(Clone, Debug)]
pub struct LinuxFile {
    shard: Rc<Shard>,
    open: Rc<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    fd: Rc<OwnedFd>,
    device: OnceCell<Device>,
}

/// How to read and write past the page cache.
#[derive(Clone, Debug)]
enum Device {
    Direct(Rc<OwnedFd>),
    /// The file system refuses O_DIRECT.
    DropCached,
}

impl LinuxFile {
    pub(crate) fn open(shard: &Rc<Shard>, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        let failed = |operation| move |errno| disk_error(operation, path, errno);
        let fd = match open_at(path, OFlags::empty()) {
            Err(Errno::NOENT) if mode == OpenMode::Create => create(path).map_err(failed("create")),
            // Whoever created it may have died before its name was durable.
            Ok(fd) if mode == OpenMode::Create => persist_folder(folder_of(path))
                .map(|()| fd)
                .map_err(failed("persist the folder of")),
            other => other.map_err(failed("open")),
        }?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            let mut error = disk_error("lock", path, errno);
            if errno == Errno::WOULDBLOCK {
                error.kind = DiskErrorKind::Busy;
            }
            error
        })?;
        let open = Open {
            path: path.to_path_buf(),
            fd: Rc::new(fd),
            device: OnceCell::new(),
        };
        Ok(Self {
            shard: Rc::clone(shard),
            open: Rc::new(open),
        })
    }

    fn failed<T>(&self, operation: &'static str) -> impl FnOnce(Errno) -> Result<T, DiskError> {
        move |errno| Err(disk_error(operation, &self.open.path, errno))
    }

    fn short<T>(&self, operation: &'static str) -> Result<T, DiskError> {
        Err(DiskError {
            operation,
            path: self.open.path.clone(),
            kind: DiskErrorKind::Short,
        })
    }

    fn len(&self) -> Result<u64, DiskError> {
        match rustix::fs::fstat(&self.open.fd) {
            Ok(stat) => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
            Err(errno) => self.failed("measure")(errno),
        }
    }

    /// Fills `buf` through the ring, however many reads that takes.
    async fn read_by_ring(
        &self,
        fd: &Rc<OwnedFd>,
        at: u64,
        mut buf: Buf,
    ) -> (Buf, Result<(), DiskError>) {
        let mut filled = 0;
        while filled < buf.len() {
            let from = at.saturating_add(bytes(filled));
            let outcome;
            (buf, outcome) = self.shard.ring.read(fd, from, buf, filled).await;
            match outcome {
                Ok(0) => return (buf, self.short("read")),
                Ok(count) => filled += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return (buf, self.failed("read")(errno)),
            }
        }
        (buf, Ok(()))
    }

    fn device(&self) -> Device {
        let device = self.open.device.get_or_init(|| {
            // By descriptor, not by path: the path may name another file by now.
            let path = format!("/proc/self/fd/{}", self.open.fd.as_raw_fd());
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT;
            match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(fd) => Device::Direct(Rc::new(fd)),
                Err(_) => Device::DropCached,
            }
        });
        device.clone()
    }

    /// Allocates and zeroes `from..to`.
    async fn write_zeros(&self, from: u64, to: u64) -> Result<(), Errno> {
        let fd = &self.open.fd;
        // The new length first, where the file system can promise the space: a direct write beyond the
        // end of a file holds off every other write until it is done. Where it cannot, the length grows
        // with the zeros, so that a growth that is given up half-way leaves no range without space.
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), from, to - from) {
            // The writes below find out whether there is space.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        let mut zeros = Buf::zeroed(usize::try_from(GROW_PIECE_BYTES.min(to - from)).unwrap_or(0));
        let mut at = from;
        // Past the page cache: as dirty pages the zeros would have to be written by the next
        // fdatasync, and every flush of a client would wait for them.
        if let Device::Direct(fd) = self.device()
            && from.is_multiple_of(DIRECT_ALIGN)
            && to.is_multiple_of(DIRECT_ALIGN)
        {
            while at < to {
                let left = usize::try_from(to - at).unwrap_or(usize::MAX);
                let piece = left.min(zeros.len());
                let written;
                (zeros, written) = self.shard.ring.write(&fd, at, zeros, piece).await;
                match written {
                    Ok(0) => return Err(Errno::IO),
                    Ok(count) => at += bytes(count),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        while at < to {
            let piece = usize::try_from(to - at).map_or(zeros.len(), |left| left.min(zeros.len()));
            pwrite_all(fd, at, &zeros[..piece])?;
            at += bytes(piece);
            yield_now().await;
        }
        Ok(())
    }
}

impl File for LinuxFile {
    async fn read_at(&self, at: u64, mut buf: Buf) -> (Buf, Result<(), DiskError>) {
        self.shard.take_turns().await;
        if self.read_now(at, &mut buf) {
            return (buf, Ok(()));
        }
        self.read_by_ring(&self.open.fd, at, buf).await
    }

    fn read_now(&self, at: u64, into: &mut [u8]) -> bool {
        let mut filled = 0;
        while filled < into.len() {
            let from = at.saturating_add(bytes(filled));
            let mut target = [IoSliceMut::new(&mut into[filled..])];
            let flags = ReadWriteFlags::NOWAIT;
            match rustix::io::preadv2(&self.open.fd, &mut target, from, flags) {
                Ok(0) => return false,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    async fn write_at(&self, at: u64, buf: Buf) -> (Buf, Result<(), DiskError>) {
        self.shard.take_turns().await;
        let outcome = pwrite_all(&self.open.fd, at, &buf).or_else(self.failed("write"));
        (buf, outcome)
    }

    async fn persist(&self) -> Result<(), DiskError> {
        let outcome = self.shard.ring.fdatasync(&self.open.fd).await;
        outcome.or_else(self.failed("persist"))
    }

    async fn size(&self) -> Result<u64, DiskError> {
        self.len()
    }

    async fn grow(&self, to: u64) -> Result<(), DiskError> {
        let from = self.len()?;
        if to <= from {
            return Ok(());
        }
        let Err(errno) = self.write_zeros(from, to).await else {
            return Ok(());
        };
        // Also frees what was allocated behind the end. If even this fails, the length is wrong
        // but harmless: the bytes behind the old end are zeros, and the caller hears of the failure.
        if let Err(error) = rustix::fs::ftruncate(&self.open.fd, from) {
            tracing::warn!(path = %self.open.path.display(), %error, "cannot restore the length");
        }
        self.failed("grow")(errno)
    }

    async fn forget_cached(&self) -> Result<(), DiskError> {
        // Without a length: to the end of the file.
        rustix::fs::fadvise(&self.open.fd, 0, None, rustix::fs::Advice::DontNeed)
            .or_else(self.failed("drop the cached pages of"))
    }

    async fn read_device_at(&self, at: u64, buf: Buf) -> (Buf, Result<(), DiskError>) {
        // A direct read ends at the end of the file, at any offset; going on from there is invalid.
        match self.len() {
            Ok(len) if at.saturating_add(bytes(buf.len())) > len => {
                return (buf, self.short("read"));
            }
            Ok(_) => {}
            Err(error) => return (buf, Err(error)),
        }
        match self.device() {
            Device::Direct(fd) => self.read_by_ring(&fd, at, buf).await,
            Device::DropCached => {
                let advice = rustix::fs::Advice::DontNeed;
                let len = std::num::NonZeroU64::new(bytes(buf.len()));
                if let Err(errno) = rustix::fs::fadvise(&self.open.fd, at, len, advice) {
                    return (buf, self.failed("read")(errno));
                }
                self.read_by_ring(&self.open.fd, at, buf).await
            }
        }
    }
}

fn open_at(path: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | more;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
}

/// Creates a file that survives a power cut as a name in its folder: a log that vanishes together
/// with its folder entry would take flushed data with it.
fn create(path: &Path) -> Result<OwnedFd, Errno> {
    let folder = folder_of(path);
    create_folder(folder)?;
    let fd = open_at(path, OFlags::CREATE)?;
    persist_folder(folder)?;
    Ok(fd)
}

/// Creates a folder with those above it, each durably.
pub(super) fn create_folder(folder: &Path) -> Result<(), Errno> {
    let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP;
    match rustix::fs::mkdir(folder, mode) {
        Ok(()) => persist_folder(folder_of(folder)),
        // Whoever created it may have died before its name was durable. A folder above that may not
        // be opened, or knows no fsync, is not one that we create anything in.
        Err(Errno::EXIST) => match persist_folder(folder_of(folder)) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::INVAL) => Ok(()),
            other => other,
        },
        Err(Errno::NOENT) if folder_of(folder) != folder => {
            create_folder(folder_of(folder))?;
            // Once: below a link to nowhere, or in /proc, it stays "not found" for ever.
            rustix::fs::mkdir(folder, mode)?;
            persist_folder(folder_of(folder))
        }
        Err(errno) => Err(errno),
    }
}

pub(super) fn persist_folder(folder: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::fsync(rustix::fs::open(folder, flags, Mode::empty())?)
}

/// The folder that holds `path`; the working directory for a bare name.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

pub(super) fn pwrite_all(fd: &OwnedFd, mut at: u64, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        match rustix::io::pwrite(fd, &rest[..rest.len().min(WRITE_BYTES_MAX)], at) {
            // A regular file takes at least a byte or says why not.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => {
                at = at.saturating_add(bytes(count));
                rest = &rest[count..];
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn disk_error(operation: &'static str, path: &Path, errno: Errno) -> DiskError {
    let kind = match errno {
        Errno::NOENT => DiskErrorKind::NotFound,
        Errno::NOSPC | Errno::DQUOT => DiskErrorKind::Full,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => DiskErrorKind::Denied,
        other => DiskErrorKind::Io(other.raw_os_error()),
    };
    DiskError {
        operation,
        path: path.to_path_buf(),
        kind,
    }
}

/// Lengths in memory are lengths on disk.
fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
