//! The socket seam: byte streams, and who is at the other end.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where to listen or connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

/// The other end of a connection, as far as it can be known: the identity of protocol rule 17.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// A process on this machine.
    Process { pid: u32, uid: u32 },
    /// A host.
    Host(std::net::IpAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, uid } => write!(f, "process {pid} of user {uid}"),
            Self::Host(ip) => write!(f, "host {ip}"),
        }
    }
}

/// Accepts connections. Dropping it stops listening.
pub trait Listener: fmt::Debug + 'static {
    type Stream: Stream;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>>;

    /// The address bound, with the port that the system chose for port 0.
    fn address(&self) -> Address;
}

/// One connection. Reading and writing may go on at the same time from two tasks; of each kind one.
/// Dropping it closes it.
pub trait Stream: fmt::Debug + 'static {
    /// Appends what has arrived to `into`, at most its spare capacity (which must not be zero).
    /// Returns how many bytes; 0 means that the peer has closed, none that nothing has arrived.
    fn read_now(&self, into: &mut Vec<u8>) -> impl Future<Output = io::Result<Option<usize>>>;

    /// Waits until [`Stream::read_now`] has more to say than that nothing has arrived. It holds no
    /// memory for what will come, so one that waits for days costs little; given up half-way, it
    /// loses nothing. It may return too early, so the caller looks and waits again.
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// As [`Stream::read_now`], but waits if nothing has arrived.
    async fn read(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            if let Some(count) = self.read_now(into).await? {
                return Ok(count);
            }
            self.readable().await?;
        }
    }

    /// Writes all parts, in order.
    fn write_all(&self, parts: &mut [IoSlice<'_>]) -> impl Future<Output = io::Result<()>>;

    /// Ends both directions; pending and later reads return 0 or an error, writes an error.
    fn shutdown(&self);

    fn peer(&self) -> Peer;
}
