//! Connections: what is under way in each direction, and how it arrives.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::STREAM_BYTES_MAX;
use crate::Instant;
use crate::sim::{Chance, HostId, Pid, Sim, Spread};

/// When the peers of a host without power give up.
const SILENCE: Spread = Spread::micros(1_000, 5_000_000);

pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) sides: [Side; 2],
    /// `ways[n]` is written by side `n` and read by the other.
    pub(super) ways: [Way; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub(super) host: HostId,
    pub(super) pid: Pid,
    pub(super) open: bool,
}

/// One direction.
#[derive(Default)]
pub(super) struct Way {
    pub(super) flying: VecDeque<Piece>,
    pub(super) flying_bytes: usize,
    pub(super) arrived: VecDeque<u8>,
    /// Nothing will be read behind what has arrived.
    pub(super) ended: Option<End>,
    /// The other side is gone: what is written goes nowhere.
    pub(super) broken: bool,
    /// Deliveries that a partition holds back.
    pub(super) held: usize,
    pub(super) last_delivery: Instant,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) enum Piece {
    Bytes(Vec<u8>),
    End(End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Reset,
}

impl Way {
    pub(super) fn room(&self) -> usize {
        STREAM_BYTES_MAX.saturating_sub(self.flying_bytes + self.arrived.len())
    }

    /// Of what is under way, only a first part arrives. The pieces stay, empty: each has a delivery
    /// of its own.
    fn lose_tail(&mut self, chance: &mut Chance) {
        let kept = chance.index(self.flying.len() + 1);
        for piece in self.flying.iter_mut().skip(kept) {
            if let Piece::Bytes(bytes) = piece {
                self.flying_bytes -= bytes.len();
                bytes.clear();
            }
        }
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

impl Sim {
    /// Sends a piece on its way, behind all that was sent before.
    pub(super) fn fly(
        &self,
        connection: &Rc<RefCell<Connection>>,
        side: usize,
        piece: Piece,
        delay: Duration,
    ) {
        let at = {
            let mut connection = connection.borrow_mut();
            let way = &mut connection.ways[side];
            way.flying.push_back(piece);
            way.last_delivery = way.last_delivery.max(self.now() + delay);
            way.last_delivery
        };
        let connection = Rc::clone(connection);
        self.later(at.since(self.now()), move |sim| {
            sim.deliver(&connection, side);
        });
    }

    pub(super) fn deliver(&self, connection: &Rc<RefCell<Connection>>, side: usize) {
        let mut held = connection.borrow_mut();
        let connection = &mut *held;
        let [one, other] = &connection.sides;
        if self
            .shared
            .net
            .borrow()
            .is_partitioned(one.host, other.host)
        {
            connection.ways[side].held += 1;
            return;
        }
        let reader_open = connection.sides[1 - side].open;
        let way = &mut connection.ways[side];
        match way.flying.pop_front() {
            None => unreachable!("each piece has one delivery"),
            Some(Piece::Bytes(bytes)) => {
                way.flying_bytes -= bytes.len();
                if reader_open {
                    way.arrived.extend(bytes);
                }
            }
            Some(Piece::End(end)) => {
                if end == End::Reset {
                    way.arrived.clear();
                }
                way.ended = Some(end);
                let back = &mut connection.ways[1 - side];
                back.broken = true;
                back.wake_writer();
            }
        }
        connection.ways[side].wake_reader();
    }

    /// One side closes both directions; the other hears of it behind what was sent.
    pub(super) fn close(&self, connection: &Rc<RefCell<Connection>>, side: usize) {
        let end = {
            let mut connection = connection.borrow_mut();
            if !std::mem::replace(&mut connection.sides[side].open, false) {
                return;
            }
            connection.ways[side].wake_writer();
            let incoming = &mut connection.ways[1 - side];
            incoming.wake_reader();
            let unread = !incoming.arrived.is_empty();
            incoming.arrived.clear();
            if unread { End::Reset } else { End::Closed }
        };
        let delay = self.delay(|delays| delays.net);
        self.fly(connection, side, Piece::End(end), delay);
        let number = connection.borrow().number;
        if connection.borrow().sides.iter().all(|side| !side.open) {
            self.shared.net.borrow_mut().connections.remove(&number);
        }
    }

    /// Silences all connections of a host that loses its power.
    pub(in crate::sim) fn net_power_cut(&self, host: HostId) {
        let connections = {
            let net = self.shared.net.borrow();
            net.connections_of(|side| side.host == host && side.open)
        };
        for (connection, side) in connections {
            connection.borrow_mut().sides[side].open = false;
            connection.borrow_mut().ways[side].lose_tail(&mut self.shared.chance.borrow_mut());
            let silence = self.chance(|chance| chance.delay(SILENCE));
            self.fly(&connection, side, Piece::End(End::Reset), silence);
        }
    }
}
