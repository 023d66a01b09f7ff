//! What stands behind a front door: one block device, whoever speaks to it (NBD now).

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use world::Peer;

/// An open export. Offsets and lengths are multiples of 512 bytes and lie within the size: the
/// front door checks that, the device asserts it.
pub trait BlockDevice: 'static {
    fn size_bytes(&self) -> u64;

    fn access(&self) -> Access;

    fn read(&self, at: u64, len: u64) -> impl Future<Output = Result<Bytes, IoError>>;

    /// Returns once the write outlives the process; with [`Fua::Yes`], a power cut.
    ///
    /// Writes and zeros of the same bytes take effect in the order in which their futures were first
    /// polled, on whatever connection: a client that lost its connection sends a stalled write again
    /// through a new one, and the old one must not come last.
    fn write(&self, at: u64, data: Bytes, fua: Fua) -> impl Future<Output = Result<(), IoError>>;

    /// The range reads as zeros from now on, in O(1).
    fn zero(&self, at: u64, len: u64, fua: Fua) -> impl Future<Output = Result<(), IoError>>;

    /// Every write answered before this call, on any connection, survives a power cut after it.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>>;

    /// Brings the range into the cache; best effort.
    fn prefetch(&self, at: u64, len: u64) -> impl Future<Output = Result<(), IoError>>;

    /// Runs in order that cover the range (at least its beginning), at most `runs_max` of them.
    fn status(
        &self,
        at: u64,
        len: u64,
        runs_max: usize,
    ) -> impl Future<Output = Result<Vec<Run>, IoError>>;
}

/// Finds exports for a front door.
pub trait Exports: 'static {
    type Device: BlockDevice;

    /// Opens the export for a new connection. The value returned stands for that connection: when
    /// the last of an export is dropped, the export may drain and detach (rule 15).
    fn connect(
        &self,
        name: &str,
        peer: &Peer,
    ) -> impl Future<Output = Result<Rc<Self::Device>, ConnectError>>;

    /// What connecting would give, without opening anything for writing.
    fn look(&self, name: &str) -> impl Future<Output = Result<Look, ConnectError>>;

    /// Names that can be connected to, sorted.
    fn names(&self) -> impl Future<Output = Vec<String>>;
}

/// What NBD_OPT_INFO tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub size_bytes: u64,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// Force unit access: durable before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    No,
    Yes,
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub len: u64,
    pub kind: RunKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    Data,
    /// Nothing is stored, and it reads as zeros.
    Hole,
}

/// Why an operation failed, as far as the client can act on it. The cause is logged where it arises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    #[error("the export is read-only")]
    ReadOnly,
    #[error("no space")]
    NoSpace,
    /// Fenced, shut down: this server will not serve the export any more.
    #[error("the export is shut down")]
    Shutdown,
    #[error("input/output error")]
    Io,
}

/// Why a client cannot have an export. The text is for the person at the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No such export, and none is created by connecting.
    #[error("{0}")]
    Unknown(String),
    /// The name or the request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// Another client, another node, or the operator stands in the way.
    #[error("{0}")]
    Refused(String),
    /// The store cannot be asked now.
    #[error("{0}")]
    Unavailable(String),
    /// The server is going down.
    #[error("the server is shutting down; connect again when it is back")]
    ShuttingDown,
}
