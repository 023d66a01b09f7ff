//! Sockets on Linux: every call is tried at once, and only if it would wait, the ring says when to
//! try again.
//!
//! Unix sockets get larger buffers than the system's default, so that a deep queue of requests
//! crosses in few system calls. TCP sockets send without delay.

use std::cell::Cell;
use std::fs;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType, sockopt,
};

use super::disk::folder_of;
use super::shard::{self, Shard};
use crate::{Address, Listener, Peer, Stream};

/// Connections that the kernel holds until they are accepted; further ones wait or are refused.
const BACKLOG_MAX: i32 = 1024;
const UNIX_BUFFER_BYTES: usize = 1 << 20;
/// Parts of one sendmsg call: the kernel's IOV_MAX.
const PARTS_MAX: usize = 1024;
/// How often something that cannot be waited for by the ring is tried, and the pause in between.
const ATTEMPTS_MAX: u32 = 200;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(5);

/// A listening socket; closed, and its unix socket file removed, when dropped.
#[derive(Debug)]
pub struct LinuxListener {
    shard: Rc<Shard>,
    fd: Rc<OwnedFd>,
    address: Address,
    file: Option<SocketFile>,
}

/// The file of a listening unix socket: which one it was, since another may have its name now.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Ok(found) = fs::symlink_metadata(&self.path)
            && (found.dev(), found.ino()) == (self.device, self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

impl LinuxListener {
    pub(crate) async fn bind(shard: &Rc<Shard>, at: &Address) -> io::Result<Self> {
        let (fd, address, file) = match at {
            Address::Tcp(addr) => {
                let (fd, bound) = listen_tcp(*addr)?;
                (fd, Address::Tcp(bound), None)
            }
            Address::Unix(path) => {
                let (fd, file) = listen_unix(shard, path).await?;
                (fd, at.clone(), Some(file))
            }
        };
        Ok(Self {
            shard: Rc::clone(shard),
            fd: Rc::new(fd),
            address,
            file,
        })
    }
}

impl Listener for LinuxListener {
    type Stream = LinuxStream;

    async fn accept(&self) -> io::Result<LinuxStream> {
        loop {
            self.shard.take_turns().await;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&self.fd, flags) {
                Ok(fd) => match LinuxStream::new(&self.shard, fd) {
                    Ok(stream) => return Ok(stream),
                    // It has gone already; that is no fault of the listener.
                    Err(error) => tracing::debug!(%error, "a connection ended before its start"),
                },
                Err(Errno::AGAIN) => self.shard.ring.ready(&self.fd, PollFlags::IN).await?,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Drop for LinuxListener {
    fn drop(&mut self) {
        // The name goes first: whoever finds it can still connect.
        drop(self.file.take());
        // An accept that was given up may keep the descriptor for a moment longer.
        let _ended = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

fn socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

fn tcp_socket(addr: SocketAddr) -> Result<OwnedFd, Errno> {
    socket(match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    })
}

fn listen_tcp(addr: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let fd = tcp_socket(addr)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &addr)?;
    rustix::net::listen(&fd, BACKLOG_MAX)?;
    let bound = rustix::net::getsockname(&fd)?.try_into()?;
    Ok((fd, bound))
}

/// Binds a path. A file that is there stays unless it is a socket on which nobody listens.
///
/// The look and the replacement happen under a lock on the folder: of two servers that start at the
/// same time and find the same left-over, the second would otherwise remove the first one's socket.
async fn listen_unix(shard: &Rc<Shard>, path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    let _locked = lock_folder(shard, folder_of(path)).await?;
    let address = SocketAddrUnix::new(path)?;
    let fd = socket(AddressFamily::UNIX)?;
    match rustix::net::bind(&fd, &address) {
        Err(Errno::ADDRINUSE) if is_left_over(path, &address)? => {
            fs::remove_file(path)?;
            rustix::net::bind(&fd, &address)?;
        }
        other => other?,
    }
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_path_buf(),
        device: found.dev(),
        inode: found.ino(),
    };
    rustix::net::listen(&fd, BACKLOG_MAX)?;
    Ok((fd, file))
}

async fn lock_folder(shard: &Rc<Shard>, folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(folder, flags, Mode::empty())?;
    for _ in 0..ATTEMPTS_MAX {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::WOULDBLOCK | Errno::INTR) => pause(shard).await,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::WOULDBLOCK.into())
}

fn is_left_over(path: &Path, address: &SocketAddrUnix) -> io::Result<bool> {
    // Connecting to a file of another kind is refused too, and such a file is somebody's data.
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    // A datagram socket cannot connect to a listener; the kernel says so if there is one, and the
    // listener never sees a connection that nobody meant.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    Ok(rustix::net::connect(&probe, address) == Err(Errno::CONNREFUSED))
}

async fn pause(shard: &Shard) {
    shard.timers.sleep_until(shard::now() + ATTEMPT_PAUSE).await;
}

/// A connection.
#[derive(Debug)]
pub struct LinuxStream {
    shard: Rc<Shard>,
    fd: Rc<OwnedFd>,
    peer: Peer,
    /// What had arrived before the end stays readable for the kernel, but not for us.
    ended: Cell<bool>,
}

impl LinuxStream {
    fn new(shard: &Rc<Shard>, fd: OwnedFd) -> io::Result<Self> {
        let peer = if sockopt::socket_domain(&fd)? == AddressFamily::UNIX {
            // The system may allow less; it is a wish.
            let _grown = sockopt::set_socket_send_buffer_size(&fd, UNIX_BUFFER_BYTES);
            let _grown = sockopt::set_socket_recv_buffer_size(&fd, UNIX_BUFFER_BYTES);
            let credentials = sockopt::socket_peercred(&fd)?;
            Peer::Process {
                pid: u32::try_from(credentials.pid.as_raw_pid()).unwrap_or(0),
                uid: credentials.uid.as_raw(),
            }
        } else {
            sockopt::set_tcp_nodelay(&fd, true)?;
            let addr = rustix::net::getpeername(&fd)?.ok_or(Errno::NOTCONN)?;
            Peer::Host(SocketAddr::try_from(addr)?.ip().to_canonical())
        };
        Ok(Self {
            shard: Rc::clone(shard),
            fd: Rc::new(fd),
            peer,
            ended: Cell::new(false),
        })
    }

    pub(crate) async fn connect(shard: &Rc<Shard>, to: &Address) -> io::Result<Self> {
        let fd = match to {
            Address::Unix(path) => connect_unix(shard, path).await?,
            Address::Tcp(addr) => connect_tcp(shard, *addr).await?,
        };
        Self::new(shard, fd)
    }
}

async fn connect_unix(shard: &Rc<Shard>, path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let fd = socket(AddressFamily::UNIX)?;
    for _ in 0..ATTEMPTS_MAX {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(fd),
            // The listener's backlog is full; the kernel does not tell when that changes.
            Err(Errno::AGAIN | Errno::INTR) => pause(shard).await,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::TIMEDOUT.into())
}

async fn connect_tcp(shard: &Rc<Shard>, addr: SocketAddr) -> io::Result<OwnedFd> {
    let fd = Rc::new(tcp_socket(addr)?);
    match rustix::net::connect(&fd, &addr) {
        Err(Errno::INPROGRESS | Errno::INTR) => {
            shard.ring.ready(&fd, PollFlags::OUT).await?;
            sockopt::socket_error(&fd)??;
        }
        other => other?,
    }
    // The poll has been answered, so the ring has let go of it.
    Rc::into_inner(fd).ok_or_else(|| Errno::BADF.into())
}

impl Stream for LinuxStream {
    async fn read_now(&self, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        assert!(into.len() < into.capacity(), "no room to read into");
        loop {
            self.shard.take_turns().await;
            if self.ended.get() {
                return Ok(Some(0));
            }
            match rustix::io::read(&self.fd, spare_capacity(into)) {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    async fn readable(&self) -> io::Result<()> {
        Ok(self.shard.ring.ready(&self.fd, PollFlags::IN).await?)
    }

    async fn write_all(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = parts;
        // Empty parts in front would look like "nothing was sent".
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            self.shard.take_turns().await;
            let batch = &rest[..rest.len().min(PARTS_MAX)];
            let mut control = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.fd, batch, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(Errno::AGAIN) => self.shard.ring.ready(&self.fd, PollFlags::OUT).await?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.ended.set(true);
        // Wakes the polls of both directions. Fails only if the peer was faster.
        let _ended = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    fn peer(&self) -> Peer {
        self.peer.clone()
    }
}
