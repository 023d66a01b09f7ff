//! Cuts the bytes of a connection into requests. Pure: it lends a buffer to read into, takes it
//! back, and hands out requests as long as there is room for them.
//!
//! Small payloads are copied out, so that the buffer is used again and again and a stalled 4 KiB
//! write holds 4 KiB, not the buffer it came in. Large ones get memory of their own, into which
//! the socket is read directly.
//!
//! A connection has a buffer only while there is something to read: one for which nothing has
//! arrived gives it to [`Spares`], where all connections of a server find it. So a thousand that
//! were busy once and are idle now hold what one needs, without a timer that takes it away.
//!
//! While whole requests wait for room, reading goes on a little: a client that has gone is noticed
//! early, and what it left unstarted is dropped. Otherwise such a write could be carried out late,
//! over what the same client wrote through its next connection.

use bytes::Bytes;

use super::wire::{self, REQUEST_HEADER_BYTES, RequestHeader, Violation};

/// The usual receive buffer: little of a large payload lands in it, from where it has to be copied.
const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// The receive buffer of a client that fills the usual one with short requests, and of one whose
/// requests wait for room.
const LARGE_BUFFER_BYTES: usize = 256 << 10;
/// Buffers of each size that wait for a connection; one more is freed.
const SPARES_MAX: usize = 8;
/// What is left of a request, up to which it is copied out of the buffer when nothing follows it.
const REST_BYTES_MAX: usize = 8 << 10;
/// A payload up to this is copied out of the receive buffer.
const COPIED_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Bytes that are read beyond a request that waits for room: what a socket may hold, so that its
/// end is seen.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// Payload of a write that is too long which is read and thrown away. More ends the connection.
const SKIPPED_BYTES_MAX: u32 = 256 << 20;

const _: () = assert!(REST_BYTES_MAX < SMALL_BUFFER_BYTES);
const _: () = assert!(REQUEST_HEADER_BYTES + COPIED_PAYLOAD_BYTES_MAX < LARGE_BUFFER_BYTES);

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
    /// What the client sends fits this.
    size: Size,
    /// The last read left no room in the buffer.
    is_filled: bool,
    waits: Waits,
}

/// Receive buffers that no connection needs now.
#[derive(Debug, Default)]
pub(super) struct Spares {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Size {
    #[default]
    Small,
    Large,
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
        let is_copied = length <= COPIED_PAYLOAD_BYTES_MAX;
        if !is_copied {
            // The next of its kind is to arrive in memory of its own.
            self.size = Size::Small;
        }
        if let Some(payload) = rest.get(..length) {
            let payload = Bytes::copy_from_slice(payload);
            self.at += REQUEST_HEADER_BYTES + length;
            return Ok(Some(Request { header, payload }));
        }
        if is_copied {
            self.waits = Waits::Bytes;
        } else {
            let payload = Vec::with_capacity(length);
            self.partial = Some(Partial::Large { header, payload });
            self.at += REQUEST_HEADER_BYTES;
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
    pub(super) fn lend(&mut self, spares: &mut Spares) -> Option<Vec<u8>> {
        assert!(self.lent.is_none(), "one read at a time");
        match self.waits {
            Waits::Look => None,
            Waits::Room if self.buffer.len() - self.at >= AHEAD_BYTES_MAX => None,
            Waits::Room => {
                self.lent = Some(Lent::Ahead);
                Some(spares.take(Size::Large))
            }
            Waits::Bytes => Some(self.lend_for_bytes(spares)),
        }
    }

    fn lend_for_bytes(&mut self, spares: &mut Spares) -> Vec<u8> {
        self.drop_taken();
        let is_filled = std::mem::take(&mut self.is_filled);
        if let Some(Partial::Large { payload, .. }) = &mut self.partial {
            self.lent = Some(Lent::Payload);
            return std::mem::take(payload);
        }
        self.lent = Some(Lent::Buffer);
        let mut rest = std::mem::take(&mut self.buffer);
        if is_filled || rest.len() > REST_BYTES_MAX {
            self.size = Size::Large;
        }
        let fits = match self.size {
            Size::Small => rest.capacity() == SMALL_BUFFER_BYTES,
            // One that grew while requests waited for room serves as well: they may wait again.
            Size::Large => rest.capacity() >= LARGE_BUFFER_BYTES,
        };
        if fits {
            return rest;
        }
        // What is left is less than one short request, so this always leaves spare capacity.
        let mut buffer = spares.take(self.size);
        buffer.append(&mut rest);
        spares.give(rest);
        buffer
    }

    /// Takes back what [`Inbox::lend`] gave, with what was read appended.
    pub(super) fn put(&mut self, mut read: Vec<u8>, spares: &mut Spares) {
        match self.lent.take().expect("only what was lent comes back") {
            Lent::Buffer => {
                self.is_filled = read.len() == read.capacity();
                self.buffer = read;
            }
            Lent::Ahead => {
                self.drop_taken();
                self.buffer.append(&mut read);
                spares.give(read);
            }
            Lent::Payload => self.put_payload(read),
        }
        self.waits = Waits::Look;
    }

    /// Takes back what [`Inbox::lend`] gave, as nothing had arrived. The next bytes may be days away:
    /// until then a buffer is kept only where much of a request lies in it.
    pub(super) fn put_unread(&mut self, lent: Vec<u8>, spares: &mut Spares) {
        match self.lent.take().expect("only what was lent comes back") {
            Lent::Buffer => self.buffer = lent,
            Lent::Ahead => spares.give(lent),
            Lent::Payload => self.put_payload(lent),
        }
        let rest = &self.buffer[self.at..];
        if rest.len() <= REST_BYTES_MAX && self.buffer.capacity() > REST_BYTES_MAX {
            let rest = rest.to_vec();
            spares.give(std::mem::replace(&mut self.buffer, rest));
            self.at = 0;
        }
    }

    /// Makes room where the requests were that have been handed out.
    fn drop_taken(&mut self) {
        self.buffer.drain(..self.at);
        self.at = 0;
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

impl Spares {
    fn take(&mut self, size: Size) -> Vec<u8> {
        let kept = match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        };
        kept.pop()
            .unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        let kept = match buffer.capacity() {
            SMALL_BUFFER_BYTES => &mut self.small,
            LARGE_BUFFER_BYTES => &mut self.large,
            // What came behind a handshake, or grew while requests waited for room.
            _ => return,
        };
        if kept.len() < SPARES_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.small.len() + self.large.len()
    }
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL_BUFFER_BYTES,
            Self::Large => LARGE_BUFFER_BYTES,
        }
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
