//! The disk seam: files that are read and written at offsets, and made durable by one call.

use std::future::Future;
use std::path::PathBuf;

use crate::Buf;

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Must exist.
    Existing,
    /// Is created where absent (with its folders).
    Create,
}

/// A file opened read-write with an exclusive lock that ends with the process: a second opener,
/// also in another process, gets [`DiskErrorKind::Busy`].
pub trait File: Clone + std::fmt::Debug + 'static {
    /// Fills the whole of `buf` from `at`. Fewer bytes than that in the file is
    /// [`DiskErrorKind::Short`]. The buffer comes back either way.
    fn read_at(&self, at: u64, buf: Buf) -> impl Future<Output = (Buf, Result<(), DiskError>)>;

    /// Fills `into` from `at` if that needs no waiting (the bytes are in the page cache), else
    /// returns false and leaves `into` in any state. Any error is false too: the caller goes on
    /// with [`File::read_at`], which says what is wrong.
    fn read_now(&self, at: u64, into: &mut [u8]) -> bool;

    /// Writes the whole of `buf` at `at`. When it returns, the bytes outlive the process (they are
    /// in the kernel's hands), but not a power cut.
    fn write_at(&self, at: u64, buf: Buf) -> impl Future<Output = (Buf, Result<(), DiskError>)>;

    /// Makes every write that returned before this call survive a power cut (fdatasync).
    /// An error is final for what was written: it must not be retried (promise 8).
    fn persist(&self) -> impl Future<Output = Result<(), DiskError>>;

    /// The length in bytes.
    fn size(&self) -> impl Future<Output = Result<u64, DiskError>>;

    /// Grows the file to `to` bytes with blocks that are allocated and written once, so that later
    /// writes in place change no metadata. A full disk is [`DiskErrorKind::Full`] and leaves the
    /// length as it was.
    fn grow(&self, to: u64) -> impl Future<Output = Result<(), DiskError>>;

    /// Drops what the page cache holds of the file and no write-back is to come for, so that reads
    /// see what the device holds also where a failed write-back left other bytes in memory (protocol
    /// rule 8). What was written and not persisted yet stays.
    fn forget_cached(&self) -> impl Future<Output = Result<(), DiskError>>;

    /// Reads from the device itself, not from memory: what a failed write or fsync left behind
    /// (protocol rule 8). Same contract as [`File::read_at`]; `at` and the length are multiples of
    /// 4 KiB.
    fn read_device_at(
        &self,
        at: u64,
        buf: Buf,
    ) -> impl Future<Output = (Buf, Result<(), DiskError>)>;
}

/// A disk operation that failed: what, where, why.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{operation} {}: {kind}", path.display())]
pub struct DiskError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub kind: DiskErrorKind,
}

/// What a caller can act on.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiskErrorKind {
    #[error("no such file or folder")]
    NotFound,
    #[error("in use by another process")]
    Busy,
    #[error("no space left on the device")]
    Full,
    #[error("the file ends before the bytes that were asked for")]
    Short,
    #[error("permission denied")]
    Denied,
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Io(i32),
}
