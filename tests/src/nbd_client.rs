//! An NBD client for tests and simulation, in any world.
//!
//! [`NbdClient`] is a cheap handle; its clones share one connection, and requests of all of them
//! are in flight together, found again by their cookies. Dropping the last handle closes the
//! connection without a goodbye, as a process that dies does; [`NbdClient::disconnect`] is polite.
//! [`RawNbd`] sends whatever bytes a test likes.
//!
//! It trusts nobody: an answer that breaks the protocol is [`ClientError::Protocol`], so a test
//! that uses it checks the server's replies as well.

mod raw;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::Bytes;
use glidefs::nbd::wire::{self, Cursor, RequestHeader, chunk, command, flag, option, reply};
use world::sync::{Receiver, Sender, channel, oneshot};
use world::{Address, Stream, World};

pub use raw::RawNbd;

/// Requests that wait for the socket; further ones wait for room.
const SEND_QUEUE_MAX: usize = 1024;
/// A reply with more data than this is a broken server.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// What went wrong, as a client sees it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An error reply in the handshake: its kind and text.
    #[error("the server refused ({kind:#x}): {text}")]
    Refused { kind: u32, text: String },
    /// An error reply to a request; the text is empty with simple replies.
    #[error("the request failed (error {errno}): {text}")]
    Failed { errno: u32, text: String },
    /// The connection ended before the answer: the request may or may not have happened.
    #[error("the connection is closed")]
    Closed,
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

impl ClientError {
    /// The error number of a failed request.
    pub fn errno(&self) -> Option<u32> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// How to shake hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Options {
    /// GO with structured replies and `base:allocation`.
    #[default]
    Modern,
    /// GO with simple replies.
    Simple,
    /// EXPORT_NAME with simple replies.
    Old,
}

/// A connection to an export.
pub struct NbdClient<W: World> {
    inner: Rc<Inner<W>>,
}

impl<W: World> Clone for NbdClient<W> {
    fn clone(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
        }
    }
}

impl<W: World> fmt::Debug for NbdClient<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdClient")
            .field("export", &self.inner.export)
            .field("in_flight", &self.inner.waiting.requests.borrow().len())
            .field("closed", &self.is_closed())
            .finish()
    }
}

struct Inner<W: World> {
    stream: Rc<W::Stream>,
    waiting: Rc<Waiting>,
    outgoing: Sender<Outgoing>,
    cookie: Cell<u64>,
    export: Export,
}

impl<W: World> Drop for Inner<W> {
    fn drop(&mut self) {
        self.stream.shutdown();
    }
}

/// What the handshake told about the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub size_bytes: u64,
    /// The bits of [`wire::export`].
    pub flags: u16,
    /// Minimum, preferred, maximum.
    pub block_sizes: Option<(u32, u32, u32)>,
    pub structured: bool,
    /// The id of `base:allocation`.
    pub allocation_id: Option<u32>,
}

/// Requests on their way, by cookie.
#[derive(Default)]
struct Waiting {
    requests: RefCell<BTreeMap<u64, Asked>>,
    closed: Cell<bool>,
}

struct Asked {
    header: RequestHeader,
    answer: oneshot::Sender<Result<Answer, ClientError>>,
}

/// What a request brought: bytes of a read, or pairs of length and flags of a block status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub data: Vec<u8>,
    pub extents: Vec<(u32, u32)>,
}

struct Outgoing {
    header: RequestHeader,
    payload: Bytes,
}

impl<W: World> NbdClient<W> {
    /// Connects and shakes hands.
    pub async fn connect(
        world: &W,
        to: &Address,
        export: &str,
        options: Options,
    ) -> Result<Self, ClientError> {
        let mut raw = RawNbd::connect(world, to).await?;
        raw.greet().await?;
        let export = match options {
            Options::Modern => {
                raw.structured().await?;
                let id = raw.set_allocation(export).await?;
                let described = raw.describe(option::GO, export).await?;
                Export {
                    structured: true,
                    allocation_id: id,
                    ..described
                }
            }
            Options::Simple => raw.describe(option::GO, export).await?,
            Options::Old => raw.export_name(export).await?,
        };
        Ok(Self::begin(world, raw, export))
    }

    fn begin(world: &W, raw: RawNbd<W>, export: Export) -> Self {
        let (outgoing, queue) = channel(SEND_QUEUE_MAX);
        let waiting = Rc::<Waiting>::default();
        let stream = Rc::clone(&raw.stream);
        world.spawn(send_all::<W>(Rc::clone(&stream), queue));
        world.spawn(receive_all(raw, Rc::clone(&waiting), export));
        let inner = Inner {
            stream,
            waiting,
            outgoing,
            cookie: Cell::new(0),
            export,
        };
        Self {
            inner: Rc::new(inner),
        }
    }

    pub fn export(&self) -> Export {
        self.inner.export
    }

    pub fn size_bytes(&self) -> u64 {
        self.inner.export.size_bytes
    }

    pub fn is_closed(&self) -> bool {
        self.inner.waiting.closed.get()
    }

    pub async fn read(&self, at: u64, len: u32) -> Result<Vec<u8>, ClientError> {
        let answer = self.ask(command::READ, 0, at, len).await?;
        Ok(answer.data)
    }

    pub async fn write(&self, at: u64, data: impl Into<Bytes>) -> Result<(), ClientError> {
        self.write_with(0, at, data.into()).await
    }

    pub async fn write_fua(&self, at: u64, data: impl Into<Bytes>) -> Result<(), ClientError> {
        self.write_with(flag::FUA, at, data.into()).await
    }

    async fn write_with(&self, flags: u16, at: u64, data: Bytes) -> Result<(), ClientError> {
        let len = u32::try_from(data.len()).expect("tests write less than 4 GiB at once");
        let header = self.header(command::WRITE, flags, at, len);
        self.request(header, data).await.map(drop)
    }

    pub async fn zero(&self, at: u64, len: u32) -> Result<(), ClientError> {
        self.ask(command::WRITE_ZEROES, 0, at, len).await.map(drop)
    }

    pub async fn trim(&self, at: u64, len: u32) -> Result<(), ClientError> {
        self.ask(command::TRIM, 0, at, len).await.map(drop)
    }

    pub async fn cache(&self, at: u64, len: u32) -> Result<(), ClientError> {
        self.ask(command::CACHE, 0, at, len).await.map(drop)
    }

    pub async fn flush(&self) -> Result<(), ClientError> {
        self.ask(command::FLUSH, 0, 0, 0).await.map(drop)
    }

    /// Pairs of length and flags (the bits of [`wire::allocation`]) from `at` on.
    pub async fn block_status(&self, at: u64, len: u32) -> Result<Vec<(u32, u32)>, ClientError> {
        let answer = self.ask(command::BLOCK_STATUS, 0, at, len).await?;
        Ok(answer.extents)
    }

    /// Any request without a payload.
    pub async fn ask(
        &self,
        command: u16,
        flags: u16,
        at: u64,
        len: u32,
    ) -> Result<Answer, ClientError> {
        let header = self.header(command, flags, at, len);
        self.request(header, Bytes::new()).await
    }

    fn header(&self, command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        let cookie = self.inner.cookie.get() + 1;
        self.inner.cookie.set(cookie);
        RequestHeader {
            flags,
            command,
            cookie,
            offset,
            length,
        }
    }

    async fn request(&self, header: RequestHeader, payload: Bytes) -> Result<Answer, ClientError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { header, answer };
        if self.is_closed() {
            return Err(ClientError::Closed);
        }
        let requests = &self.inner.waiting.requests;
        requests.borrow_mut().insert(header.cookie, asked);
        let outgoing = Outgoing { header, payload };
        if self.inner.outgoing.send(outgoing).await.is_err() {
            requests.borrow_mut().remove(&header.cookie);
            return Err(ClientError::Closed);
        }
        answered.await.unwrap_or(Err(ClientError::Closed))
    }

    /// Says goodbye. The server finishes what is in flight and closes; wait for the answers first
    /// if they matter.
    pub async fn disconnect(&self) {
        let header = self.header(command::DISC, 0, 0, 0);
        // The goodbye has no answer: this one comes when the connection ends.
        drop(self.request(header, Bytes::new()).await);
    }

    /// Breaks the connection at once, as the death of the client does.
    pub fn vanish(&self) {
        self.inner.stream.shutdown();
    }
}

/// The names that the server lists.
pub async fn list<W: World>(world: &W, at: &Address) -> Result<Vec<String>, ClientError> {
    let mut raw = RawNbd::connect(world, at).await?;
    raw.greet().await?;
    raw.send_option(option::LIST, &[]).await?;
    let mut names = Vec::new();
    loop {
        match raw.receive_reply(option::LIST).await? {
            (reply::ACK, _) => break,
            (reply::SERVER, data) => {
                let name = Cursor::new(&data).string();
                names.push(name.ok_or_else(|| broken("a listed name"))?.to_owned());
            }
            (kind, _) => return Err(broken(format!("reply {kind:#x} to LIST"))),
        }
    }
    raw.send_option(option::ABORT, &[]).await?;
    raw.receive_reply(option::ABORT).await?;
    Ok(names)
}

/// What INFO tells about an export, which is not opened.
pub async fn describe<W: World>(
    world: &W,
    at: &Address,
    export: &str,
) -> Result<Export, ClientError> {
    let mut raw = RawNbd::connect(world, at).await?;
    raw.greet().await?;
    raw.describe(option::INFO, export).await
}

async fn send_all<W: World>(stream: Rc<W::Stream>, mut queue: Receiver<Outgoing>) {
    while let Some(Outgoing { header, payload }) = queue.recv().await {
        let head = header.encode();
        let mut parts = [IoSlice::new(&head), IoSlice::new(&payload)];
        if stream.write_all(&mut parts).await.is_err() {
            // The receiving half sees the end as well and tells everybody.
            stream.shutdown();
            return;
        }
    }
}

async fn receive_all<W: World>(mut raw: RawNbd<W>, waiting: Rc<Waiting>, export: Export) {
    let why = loop {
        if let Err(why) = receive_one(&mut raw, &waiting, export).await {
            break why;
        }
    };
    raw.stream.shutdown();
    waiting.closed.set(true);
    let requests = waiting.requests.take();
    for (_, asked) in requests {
        let answer = match &why {
            // A broken server is everybody's business.
            ClientError::Protocol(what) => ClientError::Protocol(what.clone()),
            _ => ClientError::Closed,
        };
        drop(asked.answer.send(Err(answer)));
    }
}

async fn receive_one<W: World>(
    raw: &mut RawNbd<W>,
    waiting: &Waiting,
    export: Export,
) -> Result<(), ClientError> {
    let magic = u32::from_be_bytes(raw.receive_array().await?);
    let (cookie, outcome) = match magic {
        wire::SIMPLE_REPLY_MAGIC => receive_simple(raw, waiting, export).await?,
        wire::CHUNK_MAGIC if export.structured => receive_chunk(raw, waiting, export).await?,
        other => return Err(broken(format!("a reply begins with {other:#x}"))),
    };
    let asked = waiting.requests.borrow_mut().remove(&cookie);
    let asked = asked.expect("the cookie was found before");
    // Whoever asked may have given up.
    drop(asked.answer.send(outcome));
    Ok(())
}

type Outcome = (u64, Result<Answer, ClientError>);

fn header_of(waiting: &Waiting, cookie: u64) -> Result<RequestHeader, ClientError> {
    let requests = waiting.requests.borrow();
    let asked = requests.get(&cookie);
    Ok(asked
        .ok_or_else(|| broken(format!("an answer to nothing: {cookie}")))?
        .header)
}

async fn receive_simple<W: World>(
    raw: &mut RawNbd<W>,
    waiting: &Waiting,
    export: Export,
) -> Result<Outcome, ClientError> {
    let errno = u32::from_be_bytes(raw.receive_array().await?);
    let cookie = u64::from_be_bytes(raw.receive_array().await?);
    let header = header_of(waiting, cookie)?;
    if export.structured && matches!(header.command, command::READ | command::BLOCK_STATUS) {
        return Err(broken("a simple reply to a request that needs chunks"));
    }
    if errno != 0 {
        let text = String::new();
        return Ok((cookie, Err(ClientError::Failed { errno, text })));
    }
    let mut answer = Answer::default();
    if header.command == command::READ {
        answer.data = raw.receive(length(header.length)).await?;
    }
    Ok((cookie, Ok(answer)))
}

/// The server promises that every reply is one chunk.
async fn receive_chunk<W: World>(
    raw: &mut RawNbd<W>,
    waiting: &Waiting,
    export: Export,
) -> Result<Outcome, ClientError> {
    let flags = u16::from_be_bytes(raw.receive_array().await?);
    let kind = u16::from_be_bytes(raw.receive_array().await?);
    let cookie = u64::from_be_bytes(raw.receive_array().await?);
    let count = length(u32::from_be_bytes(raw.receive_array().await?));
    if count > REPLY_BYTES_MAX {
        return Err(broken(format!("a chunk of {count} bytes")));
    }
    let header = header_of(waiting, cookie)?;
    let body = raw.receive(count).await?;
    if flags != chunk::DONE {
        return Err(broken(format!("a chunk with flags {flags:#x}")));
    }
    let outcome = parse_chunk(kind, &header, &body, export.allocation_id)
        .ok_or_else(|| broken(format!("chunk {kind:#x} in answer to {header:?}")))?;
    Ok((cookie, outcome))
}

fn parse_chunk(
    kind: u16,
    header: &RequestHeader,
    body: &[u8],
    allocation_id: Option<u32>,
) -> Option<Result<Answer, ClientError>> {
    let mut cursor = Cursor::new(body);
    let mut answer = Answer::default();
    let is_read = header.command == command::READ;
    match kind {
        chunk::NONE if body.is_empty() && (!is_read || header.length == 0) => {}
        chunk::OFFSET_DATA if is_read && cursor.u64()? == header.offset => {
            answer.data = cursor.bytes(length(header.length))?.to_vec();
        }
        chunk::BLOCK_STATUS if header.command == command::BLOCK_STATUS => {
            if Some(cursor.u32()?) != allocation_id {
                return None;
            }
            while !cursor.is_empty() {
                answer.extents.push((cursor.u32()?, cursor.u32()?));
            }
            if answer.extents.is_empty() || answer.extents.iter().any(|&(len, _)| len == 0) {
                return None;
            }
        }
        chunk::ERROR => {
            let errno = cursor.u32()?;
            let count = usize::from(cursor.u16()?);
            let text = std::str::from_utf8(cursor.bytes(count)?).ok()?.to_owned();
            let is_whole = cursor.is_empty() && errno != 0;
            return is_whole.then_some(Err(ClientError::Failed { errno, text }));
        }
        _ => return None,
    }
    cursor.is_empty().then_some(Ok(answer))
}

fn broken(what: impl Into<String>) -> ClientError {
    ClientError::Protocol(what.into())
}

fn length(length: u32) -> usize {
    usize::try_from(length).expect("this runs on 64-bit machines")
}

#[cfg(test)]
mod tests;
