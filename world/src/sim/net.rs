//! Sockets between simulated processes: byte streams that chop, delay and block.
//!
//! A stream delivers in order, in pieces of any size, each after a delay; a writer waits while
//! [`STREAM_BYTES_MAX`] bytes are under way or unread. A process that dies closes its streams as a
//! kernel does: what was sent still arrives, then the end, or a reset if it left bytes unread. A
//! power cut loses a part of what was under way, and the other side hears of it only later. Between
//! partitioned hosts nothing arrives until the partition heals; TCP brings it all then.

mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use wire::{Connection, End, Piece, Side};

use super::{HostId, Pid, Sim, SimWorld, Spread};
use crate::net::{Listener, Stream};
use crate::{Address, Peer};

/// Bytes of one direction of a stream that may be under way or unread.
pub const STREAM_BYTES_MAX: usize = 256 << 10;
/// Connections that may wait to be accepted; more are refused.
pub const BACKLOG_MAX: usize = 128;

const UID: u32 = 1_000;
const FIRST_FREE_PORT: u16 = 32_768;
/// One piece in so many is short.
const SHORT_ONE_IN: u64 = 4;
/// When a connection attempt over a partition gives up.
const CONNECT: Spread = Spread::micros(1_000_000, 10_000_000);

/// Who listens, which connections there are, and which hosts cannot reach each other.
#[derive(Default)]
pub(super) struct Net {
    listeners: BTreeMap<(HostId, Name), Weak<RefCell<Waiting>>>,
    connections: BTreeMap<u64, Weak<RefCell<Connection>>>,
    connected: u64,
    partitions: BTreeSet<(HostId, HostId)>,
}

/// What an address is within its host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Path(PathBuf),
    Port(u16),
}

/// The connections that a listener has not accepted yet.
struct Waiting {
    pid: Pid,
    world: SimWorld,
    streams: VecDeque<SimStream>,
    wakers: Vec<Waker>,
    closed: bool,
}

/// A simulated connection.
pub struct SimStream {
    world: SimWorld,
    connection: Rc<RefCell<Connection>>,
    side: usize,
    peer: Peer,
    /// A read has begun and found nothing yet: it is one operation, however often it looks.
    reading: Cell<bool>,
}

/// A simulated listening socket.
pub struct SimListener {
    world: SimWorld,
    address: Address,
    waiting: Rc<RefCell<Waiting>>,
}

impl SimListener {
    pub(super) async fn bind(world: SimWorld, at: Address) -> io::Result<Self> {
        world.begin().await;
        let sim = world.sim.clone();
        let mut net = sim.shared.net.borrow_mut();
        let address = match at {
            Address::Tcp(addr) if addr.port() == 0 => {
                let port = net.free_port(world.host())?;
                Address::Tcp(SocketAddr::new(addr.ip(), port))
            }
            address => address,
        };
        let key = (world.host(), name_of(&address));
        if net
            .listeners
            .get(&key)
            .and_then(Weak::upgrade)
            .is_some_and(|w| !w.borrow().closed)
        {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let waiting = Rc::new(RefCell::new(Waiting {
            pid: world.pid(),
            world: world.clone(),
            streams: VecDeque::new(),
            wakers: Vec::new(),
            closed: false,
        }));
        net.listeners.insert(key, Rc::downgrade(&waiting));
        drop(net);
        world.trace(format_args!("listens on {address}"));
        Ok(Self {
            world,
            address,
            waiting,
        })
    }
}

fn name_of(address: &Address) -> Name {
    match address {
        Address::Unix(path) => Name::Path(path.clone()),
        Address::Tcp(addr) => Name::Port(addr.port()),
    }
}

impl Net {
    fn free_port(&self, host: HostId) -> io::Result<u16> {
        let taken = |port: &u16| self.listeners.contains_key(&(host, Name::Port(*port)));
        let free = (FIRST_FREE_PORT..=u16::MAX).find(|port| !taken(port));
        free.ok_or_else(|| io::ErrorKind::AddrInUse.into())
    }

    fn is_partitioned(&self, one: HostId, other: HostId) -> bool {
        self.partitions.contains(&(one.min(other), one.max(other)))
    }

    fn connections_of(
        &self,
        is_one: impl Fn(&Side) -> bool,
    ) -> Vec<(Rc<RefCell<Connection>>, usize)> {
        let mut found = Vec::new();
        for connection in self.connections.values().filter_map(Weak::upgrade) {
            for side in 0..2 {
                if is_one(&connection.borrow().sides[side]) {
                    found.push((Rc::clone(&connection), side));
                }
            }
        }
        found
    }
}

impl SimStream {
    pub(super) async fn connect(world: SimWorld, to: Address) -> io::Result<Self> {
        world.begin().await;
        let sim = world.sim.clone();
        sim.sleep(sim.delay(|delays| delays.net)).await;
        world.while_alive().await;
        let target = sim.host_of(&world, &to)?;
        if sim.shared.net.borrow().is_partitioned(world.host(), target) {
            sim.sleep(sim.chance(|chance| chance.delay(CONNECT))).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        let key = (target, name_of(&to));
        let waiting = sim.shared.net.borrow().listeners.get(&key).cloned();
        let Some(waiting) = waiting.as_ref().and_then(Weak::upgrade) else {
            return Err(nobody_there(&to));
        };
        if waiting.borrow().closed || waiting.borrow().streams.len() >= BACKLOG_MAX {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let stream = Self::join(&world, &to, &waiting);
        world.trace(format_args!("connects to {to}"));
        sim.sleep(sim.delay(|delays| delays.net)).await;
        Ok(stream)
    }

    /// Makes both ends, and puts the far one before the listener.
    fn join(world: &SimWorld, to: &Address, waiting: &Rc<RefCell<Waiting>>) -> Self {
        let far_world = waiting.borrow().world.clone();
        let sim = &world.sim;
        let side = |world: &SimWorld| Side {
            host: world.host(),
            pid: world.pid(),
            open: true,
        };
        let mut net = sim.shared.net.borrow_mut();
        net.connected += 1;
        let number = net.connected;
        let connection = Rc::new(RefCell::new(Connection {
            number,
            sides: [side(world), side(&far_world)],
            ways: Default::default(),
        }));
        net.connections.insert(number, Rc::downgrade(&connection));
        drop(net);
        let near = Self {
            world: world.clone(),
            connection: Rc::clone(&connection),
            side: 0,
            peer: sim.peer(to, &far_world, world),
            reading: Cell::new(false),
        };
        let far = Self {
            world: far_world.clone(),
            connection,
            side: 1,
            peer: sim.peer(to, world, &far_world),
            reading: Cell::new(false),
        };
        let mut waiting = waiting.borrow_mut();
        waiting.streams.push_back(far);
        waiting.wakers.drain(..).for_each(Waker::wake);
        near
    }

    /// Waits for what [`SimStream::take`] takes.
    fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let mut connection = self.connection.borrow_mut();
        let is_open = connection.sides[self.side].open;
        let way = &mut connection.ways[1 - self.side];
        if !is_open || !way.arrived.is_empty() || way.ended.is_some() {
            return Poll::Ready(());
        }
        way.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes a first piece of what has arrived, if anything has; returns how long it was.
    fn take(&self, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let mut connection = self.connection.borrow_mut();
        if !connection.sides[self.side].open {
            return Ok(Some(0));
        }
        let way = &mut connection.ways[1 - self.side];
        if way.arrived.is_empty() {
            return match way.ended {
                Some(End::Closed) => Ok(Some(0)),
                Some(End::Reset) => Err(io::ErrorKind::ConnectionReset.into()),
                None => Ok(None),
            };
        }
        let spare = into.capacity() - into.len();
        let count = self.world.sim.piece(way.arrived.len().min(spare));
        let (front, back) = way.arrived.as_slices();
        let in_front = count.min(front.len());
        into.extend_from_slice(&front[..in_front]);
        into.extend_from_slice(&back[..count - in_front]);
        way.arrived.drain(..count);
        way.wake_writer();
        Ok(Some(count))
    }

    /// Takes a first piece of `bytes` over; returns how long it was.
    fn poll_write(&self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut connection = self.connection.borrow_mut();
        if !connection.sides[self.side].open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let way = &mut connection.ways[self.side];
        if way.broken {
            // The kernel learns of it by the answer to some packet: until then it takes bytes.
            let silent = self.world.sim.chance(|chance| chance.one_in(2));
            return Poll::Ready(if silent {
                Ok(bytes.len())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            });
        }
        if way.room() == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = self.world.sim.piece(bytes.len().min(way.room()));
        way.flying_bytes += count;
        drop(connection);
        let delay = self.world.sim.delay(|delays| delays.net);
        let piece = Piece::Bytes(bytes[..count].to_vec());
        self.world
            .sim
            .fly(&self.connection, self.side, piece, delay);
        Poll::Ready(Ok(count))
    }
}

fn nobody_there(to: &Address) -> io::Error {
    match to {
        Address::Unix(_) => io::ErrorKind::NotFound.into(),
        Address::Tcp(_) => io::ErrorKind::ConnectionRefused.into(),
    }
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<SimStream> {
        let stream = poll_fn(|cx| {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.streams.pop_front() {
                Some(stream) => Poll::Ready(stream),
                None => {
                    waiting.wakers.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        self.world.trace(format_args!("accepts {}", stream.peer));
        Ok(stream)
    }

    fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Stream for SimStream {
    async fn read_now(&self, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        assert!(into.capacity() > into.len(), "a read into no room at all");
        if !self.reading.replace(true) {
            self.world.begin().await;
        }
        let taken = self.take(into);
        self.reading.set(matches!(taken, Ok(None)));
        taken
    }

    async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_readable(cx)).await;
        Ok(())
    }

    async fn write_all(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.world.begin().await;
        IoSlice::advance_slices(&mut parts, 0);
        while let Some(first) = parts.first() {
            let count = poll_fn(|cx| self.poll_write(cx, first)).await?;
            IoSlice::advance_slices(&mut parts, count);
        }
        Ok(())
    }

    fn shutdown(&self) {
        self.world.sim.close(&self.connection, self.side);
    }

    fn peer(&self) -> Peer {
        self.peer.clone()
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.sim.close(&self.connection, self.side);
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        close_listener(&self.waiting);
        let key = (self.world.host(), name_of(&self.address));
        let mut net = self.world.sim.shared.net.borrow_mut();
        let ours = |there: &Weak<_>| Weak::ptr_eq(there, &Rc::downgrade(&self.waiting));
        if net.listeners.get(&key).is_some_and(ours) {
            net.listeners.remove(&key);
        }
    }
}

/// Refuses what comes, and closes what has come.
fn close_listener(waiting: &RefCell<Waiting>) {
    let streams = {
        let mut waiting = waiting.borrow_mut();
        waiting.closed = true;
        std::mem::take(&mut waiting.streams)
    };
    drop(streams);
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimListener({})", self.address)
    }
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStream({})", self.peer)
    }
}

impl Sim {
    /// Cuts two hosts off from each other. Nothing is lost: it arrives after [`Sim::heal`].
    pub fn partition(&self, one: HostId, other: HostId) {
        self.note(format_args!("partitions {one:?} and {other:?}"));
        let mut net = self.shared.net.borrow_mut();
        net.partitions.insert((one.min(other), one.max(other)));
    }

    pub fn heal(&self, one: HostId, other: HostId) {
        self.note(format_args!("heals {one:?} and {other:?}"));
        let connections = {
            let mut net = self.shared.net.borrow_mut();
            net.partitions.remove(&(one.min(other), one.max(other)));
            net.connections_of(|side| side.host == one)
        };
        for (connection, _) in connections {
            for way in 0..2 {
                let held = std::mem::take(&mut connection.borrow_mut().ways[way].held);
                for _ in 0..held {
                    let connection = Rc::clone(&connection);
                    self.later(Duration::ZERO, move |sim| sim.deliver(&connection, way));
                }
            }
        }
    }

    fn host_of(&self, world: &SimWorld, to: &Address) -> io::Result<HostId> {
        let Address::Tcp(addr) = to else {
            return Ok(world.host());
        };
        if addr.ip().is_loopback() || addr.ip().is_unspecified() {
            return Ok(world.host());
        }
        let count = self.shared.hosts.borrow().len();
        let host = (0..count)
            .map(HostId)
            .find(|host| self.ip(*host) == addr.ip());
        host.ok_or_else(|| io::ErrorKind::HostUnreachable.into())
    }

    /// Who `other` is for `own`, on a connection to `to`.
    fn peer(&self, to: &Address, other: &SimWorld, own: &SimWorld) -> Peer {
        match to {
            Address::Unix(_) => Peer::Process {
                pid: other.pid().0,
                uid: UID,
            },
            Address::Tcp(_) if other.host() == own.host() => {
                Peer::Host(IpAddr::V4(Ipv4Addr::LOCALHOST))
            }
            Address::Tcp(_) => Peer::Host(self.ip(other.host())),
        }
    }

    /// How much of `count` bytes goes in one piece: at least one.
    fn piece(&self, count: usize) -> usize {
        self.chance(|chance| {
            if count > 1 && chance.one_in(SHORT_ONE_IN) {
                1 + chance.index(count)
            } else {
                count
            }
        })
    }

    /// Closes what the process had open and its tasks did not close by being dropped.
    pub(super) fn net_process_died(&self, pid: Pid) {
        let (connections, listeners) = {
            let net = self.shared.net.borrow();
            let listeners: Vec<_> = net.listeners.values().filter_map(Weak::upgrade).collect();
            (
                net.connections_of(|side| side.pid == pid && side.open),
                listeners,
            )
        };
        for listener in listeners {
            if listener.borrow().pid == pid {
                close_listener(&listener);
            }
        }
        for (connection, side) in connections {
            self.close(&connection, side);
        }
    }
}
