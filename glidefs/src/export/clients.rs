//! Who is connected to an export, and who may join them (rule 17).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use world::{Instant, Peer};

/// The connections of an export, by the identity at their other end.
#[derive(Debug)]
pub(crate) struct Clients {
    connections: RefCell<BTreeMap<Peer, u32>>,
    none_since: Cell<Option<Instant>>,
    /// Work of the server's own that the export must stay open for.
    holds: Cell<u32>,
}

/// Whether one export may be written by several clients at a time (a cluster filesystem).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    OneClient,
    Shared,
}

impl Clients {
    pub(crate) fn none_at(now: Instant) -> Self {
        Self {
            connections: RefCell::default(),
            none_since: Cell::new(Some(now)),
            holds: Cell::new(0),
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.connections.borrow().values().sum()
    }

    /// Since when nobody needs the export to be open; none while somebody does.
    pub(crate) fn none_since(&self) -> Option<Instant> {
        self.none_since.get().filter(|_| self.holds.get() == 0)
    }

    /// Keeps the export open, without a client.
    pub(crate) fn hold(&self) {
        self.holds.set(self.holds.get() + 1);
    }

    /// The grace time begins now, unless somebody is connected.
    pub(crate) fn release(&self, now: Instant) {
        self.holds.set(self.holds.get() - 1);
        if self.none_since.get().is_some() {
            self.none_since.set(Some(now));
        }
    }

    /// Those of an export that this one's takes the place of are connected to this one from here on.
    pub(crate) fn take_over(&self, before: &Self) {
        let mut connections = self.connections.borrow_mut();
        for (peer, count) in std::mem::take(&mut *before.connections.borrow_mut()) {
            *connections.entry(peer).or_default() += count;
        }
        if !connections.is_empty() {
            self.none_since.set(None);
        }
    }

    /// Somebody other than `peer` who is connected already.
    pub(crate) fn other_than(&self, peer: &Peer) -> Option<Peer> {
        let connections = self.connections.borrow();
        connections.keys().find(|other| *other != peer).cloned()
    }

    pub(crate) fn join(&self, peer: &Peer) {
        *self
            .connections
            .borrow_mut()
            .entry(peer.clone())
            .or_default() += 1;
        self.none_since.set(None);
    }

    pub(crate) fn leave(&self, peer: &Peer, now: Instant) {
        let mut connections = self.connections.borrow_mut();
        let count = connections.get_mut(peer).expect("who leaves has joined");
        *count -= 1;
        if *count == 0 {
            connections.remove(peer);
        }
        if connections.is_empty() {
            self.none_since.set(Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Peer {
        Peer::Process { pid, uid: 0 }
    }

    #[test]
    fn several_connections_of_one_process_are_one_client() {
        let clients = Clients::none_at(Instant::from_nanos(1));
        clients.join(&process(7));
        assert_eq!(clients.other_than(&process(7)), None);
        clients.join(&process(7));
        assert_eq!(clients.other_than(&process(8)), Some(process(7)));
        clients.leave(&process(7), Instant::from_nanos(2));
        assert_eq!(clients.count(), 1);
        assert_eq!(clients.none_since(), None);
    }

    #[test]
    fn who_was_connected_before_is_connected_after() {
        let before = Clients::none_at(Instant::from_nanos(1));
        let after = Clients::none_at(Instant::from_nanos(2));
        after.take_over(&before);
        assert_eq!(after.none_since(), Some(Instant::from_nanos(2)));
        before.join(&process(7));
        before.join(&process(7));
        after.join(&process(8));
        after.take_over(&before);
        assert_eq!((before.count(), after.count()), (0, 3));
        after.leave(&process(8), Instant::from_nanos(3));
        after.leave(&process(7), Instant::from_nanos(4));
        assert_eq!(after.none_since(), None);
        after.leave(&process(7), Instant::from_nanos(5));
        assert_eq!(after.none_since(), Some(Instant::from_nanos(5)));
    }

    #[test]
    fn a_new_process_may_come_once_the_old_one_is_gone() {
        let clients = Clients::none_at(Instant::from_nanos(1));
        clients.join(&process(7));
        clients.leave(&process(7), Instant::from_nanos(5));
        assert_eq!(clients.none_since(), Some(Instant::from_nanos(5)));
        assert_eq!(clients.other_than(&process(8)), None);
    }
}
