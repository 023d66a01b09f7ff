//! Accepts connections, bounds and counts them, and stops.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use world::sync::watch;
use world::{Listener, Stream, World};

use super::Limits;
use super::conn::{self, End};
use crate::device::Exports;
use crate::repeats::Repeats;

/// How long to wait after the system refused to accept (out of files or memory, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The front door: serves the same exports on any number of listeners, with one bound on all
/// connections. A cheap handle.
#[derive(Debug)]
pub struct Server<W, E> {
    conn: Rc<conn::Server<W, E>>,
    open: Rc<Open>,
}

impl<W, E> Clone for Server<W, E> {
    fn clone(&self) -> Self {
        Self {
            conn: Rc::clone(&self.conn),
            open: Rc::clone(&self.open),
        }
    }
}

/// The connections that are open now.
#[derive(Debug, Default)]
struct Open {
    count: watch::Sender<usize>,
    /// The bound was reached and has been logged.
    is_full: Cell<bool>,
    /// The system refuses to accept, and that has been logged.
    is_deaf: Cell<bool>,
}

impl<W: World, E: Exports> Server<W, E> {
    /// `stop` turning true, or its sender going away, stops the server.
    pub fn new(world: W, exports: Rc<E>, limits: Limits, stop: watch::Receiver<bool>) -> Self {
        Self {
            conn: Rc::new(conn::Server {
                world,
                exports,
                limits,
                stop,
                repeats: Repeats::default(),
                spares: RefCell::default(),
            }),
            open: Rc::default(),
        }
    }

    /// Serves a listener until the server stops. Returns once the last connection of the server,
    /// of whatever listener, has finished what it had started and is closed.
    pub async fn serve(&self, listener: W::Listener) {
        let address = listener.address();
        tracing::info!(%address, "serving NBD");
        self.accept_until_stopped(&listener).await;
        drop(listener);
        tracing::info!(%address, connections = self.connections(), "serving NBD no more");
        self.closed().await;
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        *self.open.count.borrow()
    }

    /// Receive buffers that no connection holds.
    #[cfg(test)]
    pub(super) fn spare_buffers(&self) -> usize {
        self.conn.spares.borrow().count()
    }

    async fn accept_until_stopped(&self, listener: &W::Listener) {
        let mut stop = pin!(conn::stopped(self.conn.stop.clone()));
        loop {
            let accepted = match select(pin!(listener.accept()), stop.as_mut()).await {
                Either::Left((accepted, _)) => accepted,
                Either::Right(((), _)) => return,
            };
            match accepted {
                Ok(stream) => {
                    if self.open.is_deaf.replace(false) {
                        tracing::info!("NBD connections are accepted again");
                    }
                    // Else closed by dropping it: the client sees the end of the stream at once.
                    if self.has_room() {
                        self.open(stream);
                    }
                }
                Err(error) => {
                    if !self.open.is_deaf.replace(true) {
                        tracing::error!(%error, "cannot accept NBD connections; trying on: raise the limit of open files (`LimitNOFILE` of the unit), or free memory");
                    }
                    let pause = pin!(self.conn.world.sleep(ACCEPT_PAUSE));
                    if let Either::Right(_) = select(pause, stop.as_mut()).await {
                        return;
                    }
                }
            }
        }
    }

    /// Says once, not for every client that tries again, that there is no room.
    fn has_room(&self) -> bool {
        let connections_max = self.conn.limits.connections_max;
        let has_room = self.connections() < connections_max;
        let was_full = self.open.is_full.replace(!has_room);
        if !has_room && !was_full {
            tracing::warn!(
                connections_max,
                "all NBD connections are in use; closing new ones until one ends"
            );
        }
        has_room
    }

    fn open(&self, stream: W::Stream) {
        let counted = Counted::new(Rc::clone(&self.open));
        let conn = Rc::clone(&self.conn);
        self.conn.world.spawn(async move {
            run(&conn, stream).await;
            drop(counted);
        });
    }

    async fn closed(&self) {
        let mut count = self.open.count.subscribe();
        // The sender is ours, so this ends by the count alone.
        drop(count.wait_for(|count| *count == 0).await);
    }
}

/// One connection, from greeting to goodbye.
async fn run<W: World, E: Exports>(server: &conn::Server<W, E>, stream: W::Stream) {
    let peer = stream.peer();
    // The two halves are boxed: a task has the size of the larger for all its life.
    let opened = match Box::pin(server.negotiate(&stream)).await {
        Ok(opened) => opened,
        Err(End::Goodbye) => return,
        Err(end @ (End::Vanished | End::Stopped)) => {
            tracing::debug!(%peer, why = %end, "a client left during the handshake");
            return;
        }
        Err(end) => {
            let (cause, name) = end.cause();
            if let Some(held_back) = server.repeats.news(cause, name, server.world.now()) {
                tracing::warn!(%peer, why = %end, held_back, "a handshake failed");
            }
            return;
        }
    };
    let name = opened.name.clone();
    tracing::info!(export = name, %peer, "a client connected");
    let end = Box::pin(server.transmit(&stream, opened)).await;
    match end {
        End::Violation(_) => {
            tracing::warn!(export = name, %peer, why = %end, "a client was disconnected");
        }
        _ => tracing::info!(export = name, %peer, why = %end, "a client disconnected"),
    }
}

/// Counts one connection for as long as it lives.
#[derive(Debug)]
struct Counted(Rc<Open>);

impl Counted {
    fn new(open: Rc<Open>) -> Self {
        open.count.send_modify(|count| *count += 1);
        Self(open)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}
