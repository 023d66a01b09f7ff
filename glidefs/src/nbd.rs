//! The NBD server: many clients, many requests in flight on each, answered out of order.
//!
//! - [`wire`]: the bytes. Pure.
//! - `handshake`: what an option is answered with. Pure.
//! - `inbox`: cuts the byte stream into requests. Pure.
//! - `request`: judges a request, asks the device, makes the reply.
//! - `conn`: one connection, one task: reads, works and writes at the same time.
//! - `listener`: accepts, counts, stops ([`Server`]).
//!
//! Promises: an answered write, zero or flush is what [`crate::device::BlockDevice`] says it is; nothing a
//! client sends can hurt another client or grow memory beyond [`Limits`]; a request that was
//! started is carried out even if its client has gone, unless it stalls for longer than
//! [`ORPHAN_TIMEOUT`]; a request that stalls holds up no other.
//!
//! Deliberately absent: TLS, oldstyle negotiation, extended headers, export descriptions.
//! The details are in `docs/format/nbd.md`.

mod conn;
#[cfg(test)]
mod golden;
mod handshake;
mod inbox;
mod listener;
mod request;
#[cfg(test)]
mod testing;
pub mod wire;

use std::time::Duration;

pub use listener::Server;

/// Connections at once; one more is closed as soon as it is accepted.
pub const CONNECTIONS_MAX: usize = 4096;
/// Requests of one connection that are read and not yet answered. At the bound no more are started
/// until one is answered.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Bytes of reads and writes of one connection in flight. A single request always fits. At the
/// bound no more are started: this is the pool where stalled writes wait (protocol rule 10).
pub const PAYLOAD_IN_FLIGHT_MAX_BYTES: u64 = 64 << 20;
/// How long a client may take between connecting and its last option. Opening the export does not
/// count.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that has left, or that is being sent away, may take to accept the answers
/// that are still owed to it.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests of a client that has gone may still take. What has not ended then is dropped:
/// nobody was told that it happened. Until then the client counts as connected, so another one that
/// comes finds either all of a write or nothing, and nothing that lands behind its back.
pub const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

/// The bounds of a server; the default is the constants of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections_max: usize,
    pub requests_in_flight_max: usize,
    pub payload_in_flight_max_bytes: u64,
    pub handshake_timeout: Duration,
    pub linger_timeout: Duration,
    pub orphan_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            requests_in_flight_max: REQUESTS_IN_FLIGHT_MAX,
            payload_in_flight_max_bytes: PAYLOAD_IN_FLIGHT_MAX_BYTES,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            linger_timeout: LINGER_TIMEOUT,
            orphan_timeout: ORPHAN_TIMEOUT,
        }
    }
}
