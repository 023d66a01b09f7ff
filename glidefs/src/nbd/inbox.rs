//! Cuts the bytes of a connection into requests. Pure: it lends a buffer to read into, takes it
//! back, and hands out requests as long as there is room for them.
//!
//! Small payloads are copied out, so that the buffer is used again and again and a stalled 4 KiB
//! write holds 4 KiB, not the buffer it came in. Large ones get memory of their own, into which
//! the socket is read directly.
//!
//! While whole requests wait for room, reading goes on a little: a client that has gone is noticed
//! early, and what it left unstarted is dropped. Otherwise such a write could be carried out late,
//! over what the same client wrote through its next connection.

use bytes::Bytes;

use super::wire::{self, REQUEST_HEADER_BYTES, RequestHeader, Violation};

/// The receive buffer begins with this and doubles while reads fill it.
const BUFFER_BYTES_MIN: usize = 16 << 10;
/// The receive buffer does not grow beyond this.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Reads in a row that would have fitted the smallest buffer, behind which a larger one is given back: a client that
/// has become quiet must not keep what its busiest moment needed.
const SMALL_READS: u32 = 16;
/// A payload up to this is copied out of the receive buffer.
const COPIED_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Bytes that are read beyond a request that waits for room: what a socket may hold, so that its
/// end is seen.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// Payload of a write that is too long which is read and thrown away. More ends the connection.
const SKIPPED_BYTES_MAX: u32 = 256 << 20;

const _: () = assert!(REQUEST_HEADER_BYTES + COPIED_PAYLOAD_BYTES_MAX < BUFFER_BYTES_MAX);

/// A request with what it carries. A write that was too long comes without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) header: RequestHeader,
    pub(super) payload: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// Where the first byte that was not handed out lies in the buffer.
    at: usize,
    /// A write whose payload is being read.
    partial: Option<Partial>,
    lent: Option<Lent>,
    /// What the buffer held when it was lent.
    lent_bytes: usize,
    small_reads: u32,
    waits: Waits,
}

#[derive(Debug)]
enum Partial {
    Large {
        header: RequestHeader,
        payload: Vec<u8>,
    },
    Skipped {
        header: RequestHeader,
        left: u64,
    },
}

/// Which memory is out for reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lent {
    Buffer,
    /// A second buffer, while the first holds requests that wait for room.
    Ahead,
    Payload,
}

/// What the next request needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Waits {
    #[default]
    Bytes,
    Room,
    /// Nobody has looked since bytes came.
    Look,
}

impl Inbox {
    /// Begins with what came behind the handshake.
    pub(super) fn new(rest: Vec<u8>) -> Self {
        Self {
            buffer: rest,
            waits: Waits::Look,
            ..Self::default()
        }
    }

    /// The next whole request. None if bytes are missing, or if `has_room` says no to the bytes
    /// that it will occupy.
    pub(super) fn next(
        &mut self,
        has_room: impl FnOnce(u64) -> bool,
    ) -> Result<Option<Request>, Violation> {
        if matches!(self.lent, Some(Lent::Buffer | Lent::Payload)) {
            return Ok(None);
        }
        if self.partial.is_none() {
            match self.header(has_room)? {
                Some(request) => return Ok(Some(request)),
                None if self.partial.is_none() => return Ok(None),
                None => {}
            }
        }
        let request = self.finish_partial();
        if request.is_none() {
            self.waits = Waits::Bytes;
        }
        Ok(request)
    }

    /// Takes a header, and with it a request that is short and complete, or begins a partial one.
    fn header(&mut self, has_room: impl FnOnce(u64) -> bool) -> Result<Option<Request>, Violation> {
        let unread = &self.buffer[self.at..];
        let Some((header, rest)) = unread.split_first_chunk::<REQUEST_HEADER_BYTES>() else {
            self.waits = Waits::Bytes;
            return Ok(None);
        };
        let header = RequestHeader::parse(header)?;
        let announced = header.payload_bytes();
        if announced > SKIPPED_BYTES_MAX {
            return Err(Violation::WriteTooLong(announced));
        }
        if !has_room(occupied_bytes(&header)) {
            self.waits = Waits::Room;
            return Ok(None);
        }
        if announced > wire::REQUEST_BYTES_MAX {
            let left = u64::from(announced);
            self.partial = Some(Partial::Skipped { header, left });
            self.at += REQUEST_HEADER_BYTES;
            return Ok(None);
        }
        let length = length_in_memory(announced);
        if let Some(payload) = rest.get(..length) {
            let payload = Bytes::copy_from_slice(payload);
            self.at += REQUEST_HEADER_BYTES + length;
            return Ok(Some(Request { header, payload }));
        }
        if length > COPIED_PAYLOAD_BYTES_MAX {
            let payload = Vec::with_capacity(length);
            self.partial = Some(Partial::Large { header, payload });
            self.at += REQUEST_HEADER_BYTES;
        } else {
            self.waits = Waits::Bytes;
        }
        Ok(None)
    }

    /// Moves what the buffer holds of a payload to where it belongs.
    fn finish_partial(&mut self) -> Option<Request> {
        let unread = &self.buffer[self.at..];
        let (taken, is_whole) = match self.partial.as_mut()? {
            Partial::Large { header, payload } => {
                let missing = length_in_memory(header.length) - payload.len();
                let taken = missing.min(unread.len());
                payload.extend_from_slice(&unread[..taken]);
                (taken, taken == missing)
            }
            Partial::Skipped { left, .. } => {
                let missing = usize::try_from(*left).unwrap_or(usize::MAX);
                let taken = missing.min(unread.len());
                *left -= u64::try_from(taken).expect("a length fits 64 bits");
                (taken, taken == missing)
            }
        };
        self.at += taken;
        if !is_whole {
            return None;
        }
        match self.partial.take()? {
            Partial::Large { header, payload } => Some(Request {
                header,
                payload: payload.into(),
            }),
            Partial::Skipped { header, .. } => Some(Request {
                header,
                payload: Bytes::new(),
            }),
        }
    }

    /// Memory with spare capacity to read into, or none as long as reading would not help.
    pub(super) fn lend(&mut self) -> Option<Vec<u8>> {
        assert!(self.lent.is_none(), "one read at a time");
        match self.waits {
            Waits::Look => None,
            Waits::Room if self.buffer.len() - self.at >= AHEAD_BYTES_MAX => None,
            Waits::Room => {
                self.lent = Some(Lent::Ahead);
                Some(Vec::with_capacity(BUFFER_BYTES_MAX))
            }
            Waits::Bytes => Some(self.lend_for_bytes()),
        }
    }

    fn lend_for_bytes(&mut self) -> Vec<u8> {
        let was_filled = self.buffer.len() == self.buffer.capacity();
        self.buffer.drain(..self.at);
        self.at = 0;
        if let Some(Partial::Large { payload, .. }) = &mut self.partial {
            self.lent = Some(Lent::Payload);
            return std::mem::take(payload);
        }
        self.lent = Some(Lent::Buffer);
        let mut buffer = std::mem::take(&mut self.buffer);
        self.lent_bytes = buffer.len();
        let is_large = buffer.capacity() > BUFFER_BYTES_MIN;
        if is_large && self.small_reads >= SMALL_READS && buffer.len() < BUFFER_BYTES_MIN / 2 {
            buffer.shrink_to(BUFFER_BYTES_MIN);
        } else if was_filled {
            let capacity = (2 * buffer.capacity()).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
            // What is left is less than one short request, so this always leaves spare capacity.
            buffer.reserve_exact(capacity - buffer.len());
        }
        buffer
    }

    /// Takes back what [`Inbox::lend`] gave, with what was read appended.
    pub(super) fn put(&mut self, mut read: Vec<u8>) {
        match self.lent.take().expect("only what was lent comes back") {
            Lent::Buffer => {
                let is_small = read.len() - self.lent_bytes <= BUFFER_BYTES_MIN / 2;
                self.small_reads = match is_small {
                    true => self.small_reads.saturating_add(1),
                    false => 0,
                };
                self.buffer = read;
            }
            Lent::Ahead => {
                self.buffer.drain(..self.at);
                self.at = 0;
                self.buffer.append(&mut read);
            }
            Lent::Payload => self.put_payload(read),
        }
        self.waits = Waits::Look;
    }

    fn put_payload(&mut self, mut read: Vec<u8>) {
        let Some(Partial::Large { header, payload }) = &mut self.partial else {
            unreachable!("a payload is lent only while one is partial");
        };
        // The allocator may give more capacity than was asked for, and the socket may fill it.
        let length = length_in_memory(header.length);
        if read.len() > length {
            self.buffer.extend_from_slice(&read[length..]);
            read.truncate(length);
        }
        *payload = read;
    }
}

/// The payload bytes that a request keeps in memory until it is answered, in either direction.
/// A read or write that is too long will be refused and keeps none.
pub(super) fn occupied_bytes(header: &RequestHeader) -> u64 {
    let has_payload = matches!(header.command, wire::command::READ | wire::command::WRITE);
    if has_payload && header.length <= wire::REQUEST_BYTES_MAX {
        u64::from(header.length)
    } else {
        0
    }
}

fn length_in_memory(length: u32) -> usize {
    usize::try_from(length).expect("this runs on 64-bit machines")
}

#[cfg(test)]
mod tests;
