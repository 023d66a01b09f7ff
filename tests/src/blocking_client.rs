//! A small NBD client over the standard library's sockets, for tests against the real server.
//!
//! It pipelines: requests are sent without waiting, answers are taken in whatever order they come.
//! Deliberately absent: structured replies, metadata contexts, TLS; real clients cover those.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_REPLY: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes.
const CLIENT_FLAGS: u32 = 0b11;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR_BIT: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const OPTION_REPLY_BYTES_MAX: u32 = 64 * 1024;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_TRIM: u16 = 4;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// One connection to one export.
pub struct Client {
    input: BufReader<Box<dyn Read>>,
    output: Box<dyn Write>,
    /// What must be sent before the next answer is waited for.
    pending: Vec<u8>,
    pub size_bytes: u64,
    pub transmission_flags: u16,
    cookie_next: u64,
    /// Requests in flight, with the bytes that their answer carries.
    in_flight: BTreeMap<u64, usize>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Client");
        debug.field("size_bytes", &self.size_bytes);
        debug
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// An answer to one request.
#[derive(Debug)]
pub struct Answer {
    pub cookie: u64,
    /// NBD's error number; 0 is success.
    pub error: u32,
    pub data: Vec<u8>,
}

struct Request {
    command: u16,
    at: u64,
    len: u32,
}

impl Request {
    fn bare(command: u16) -> Self {
        Self {
            command,
            at: 0,
            len: 0,
        }
    }

    fn header(&self, cookie: u64) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend_from_slice(&MAGIC_REQUEST.to_be_bytes());
        header.extend_from_slice(&0_u16.to_be_bytes());
        header.extend_from_slice(&self.command.to_be_bytes());
        header.extend_from_slice(&cookie.to_be_bytes());
        header.extend_from_slice(&self.at.to_be_bytes());
        header.extend_from_slice(&self.len.to_be_bytes());
        header
    }
}

impl Client {
    /// Connects and opens the export, or says with the server's own text why not.
    pub fn connect(address: &Address, export: &str) -> Result<Self> {
        Self::connect_waiting(address, export, None)
    }

    /// The same, where an answer that takes longer than this is an error, and so is a request that is not taken for so long.
    pub fn connect_within(address: &Address, export: &str, wait_max: Duration) -> Result<Self> {
        Self::connect_waiting(address, export, Some(wait_max))
    }

    fn connect_waiting(
        address: &Address,
        export: &str,
        wait_max: Option<Duration>,
    ) -> Result<Self> {
        let (input, output): (Box<dyn Read>, Box<dyn Write>) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)
                    .with_context(|| format!("connecting to {}", path.display()))?;
                stream.set_read_timeout(wait_max)?;
                stream.set_write_timeout(wait_max)?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(wait_max)?;
                stream.set_write_timeout(wait_max)?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
        };
        Self::over(input, output, export)
    }

    /// The same over a connection that is open already. Nothing beyond the handshake is read from it.
    pub fn over(input: Box<dyn Read>, output: Box<dyn Write>, export: &str) -> Result<Self> {
        let mut client = Self {
            input: BufReader::new(input),
            output,
            pending: Vec::new(),
            size_bytes: 0,
            transmission_flags: 0,
            cookie_next: 1,
            in_flight: BTreeMap::new(),
        };
        client.greet()?;
        client.go(export)?;
        Ok(client)
    }

    fn greet(&mut self) -> Result<()> {
        ensure!(self.take_u64()? == MAGIC_SERVER, "no NBD server");
        ensure!(self.take_u64()? == MAGIC_OPTION, "an oldstyle server");
        let flags = self.take_u16()?;
        ensure!(flags & 0b11 == 0b11, "server flags {flags:#b}");
        self.output.write_all(&CLIENT_FLAGS.to_be_bytes())?;
        Ok(())
    }

    fn go(&mut self, export: &str) -> Result<()> {
        let name = export.as_bytes();
        let mut option = Vec::new();
        option.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
        option.extend_from_slice(&OPTION_GO.to_be_bytes());
        option.extend_from_slice(&u32::try_from(4 + name.len() + 2)?.to_be_bytes());
        option.extend_from_slice(&u32::try_from(name.len())?.to_be_bytes());
        option.extend_from_slice(name);
        option.extend_from_slice(&0_u16.to_be_bytes());
        self.output.write_all(&option)?;
        loop {
            ensure!(self.take_u64()? == MAGIC_OPTION_REPLY, "no option reply");
            ensure!(self.take_u32()? == OPTION_GO, "a reply to another option");
            let kind = self.take_u32()?;
            let len = self.take_u32()?;
            ensure!(len <= OPTION_REPLY_BYTES_MAX, "option reply of {len} bytes");
            let body = self.take(usize::try_from(len)?)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO if body.len() == 12 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    self.size_bytes = u64::from_be_bytes(body[2..10].try_into()?);
                    self.transmission_flags = u16::from_be_bytes(body[10..12].try_into()?);
                }
                REPLY_INFO => {}
                _ if kind & REPLY_ERROR_BIT != 0 => {
                    bail!("refused ({kind:#x}): {}", String::from_utf8_lossy(&body));
                }
                _ => bail!("unknown option reply {kind:#x}"),
            }
        }
    }

    /// Whether the server announced the export as read-only.
    pub fn is_read_only(&self) -> bool {
        self.transmission_flags & 0b10 != 0
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub fn submit_read(&mut self, at: u64, len: u32) -> Result<u64> {
        let request = Request {
            command: COMMAND_READ,
            at,
            len,
        };
        self.submit(&request, &[])
    }

    pub fn submit_write(&mut self, at: u64, data: &[u8]) -> Result<u64> {
        let request = Request {
            command: COMMAND_WRITE,
            at,
            len: u32::try_from(data.len())?,
        };
        self.submit(&request, data)
    }

    pub fn submit_flush(&mut self) -> Result<u64> {
        self.submit(&Request::bare(COMMAND_FLUSH), &[])
    }

    pub fn submit_trim(&mut self, at: u64, len: u32) -> Result<u64> {
        let request = Request {
            command: COMMAND_TRIM,
            at,
            len,
        };
        self.submit(&request, &[])
    }

    fn submit(&mut self, request: &Request, data: &[u8]) -> Result<u64> {
        let cookie = self.cookie_next;
        self.cookie_next += 1;
        let back = match request.command {
            COMMAND_READ => usize::try_from(request.len)?,
            _ => 0,
        };
        self.in_flight.insert(cookie, back);
        self.pending.extend_from_slice(&request.header(cookie));
        self.pending.extend_from_slice(data);
        Ok(cookie)
    }

    /// Sends what was submitted.
    pub fn send(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.output.write_all(&pending)?;
        self.output.flush()
    }

    /// Sends what was submitted and waits for the next answer. None: the server is gone.
    pub fn next_answer(&mut self) -> Result<Option<Answer>> {
        // A server that was killed refuses what we send and may still have answered before.
        if self.send().is_err() {
            self.pending.clear();
        }
        let magic = match self.take_u32() {
            Ok(magic) => magic,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        ensure!(magic == MAGIC_REPLY, "no simple reply: {magic:#x}");
        match self.take_answer() {
            Ok(answer) => Ok(Some(answer)),
            // Cut off in the middle of an answer: it was not given.
            Err(error) if error.downcast_ref::<io::Error>().is_some_and(is_gone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take_answer(&mut self) -> Result<Answer> {
        let error = self.take_u32()?;
        let cookie = self.take_u64()?;
        let back = self.in_flight.remove(&cookie);
        let back = back.with_context(|| format!("an answer to nothing: cookie {cookie}"))?;
        let data = if error == 0 {
            self.take(back)?
        } else {
            Vec::new()
        };
        Ok(Answer {
            cookie,
            error,
            data,
        })
    }

    pub fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>> {
        let cookie = self.submit_read(at, len)?;
        Ok(self.only_answer(cookie)?.data)
    }

    pub fn write(&mut self, at: u64, data: &[u8]) -> Result<()> {
        let cookie = self.submit_write(at, data)?;
        self.only_answer(cookie).map(drop)
    }

    pub fn flush(&mut self) -> Result<()> {
        let cookie = self.submit_flush()?;
        self.only_answer(cookie).map(drop)
    }

    /// Sends what was submitted, and takes answers until no more than so many requests have none.
    pub fn take_answers(&mut self, in_flight_max: usize) -> Result<()> {
        while self.in_flight.len() > in_flight_max {
            let answer = self.next_answer()?.context("the server is gone")?;
            ensure!(answer.error == 0, "NBD error {}", answer.error);
        }
        Ok(())
    }

    /// Reads pairs of place and length at depth, and hands over each with its bytes as it comes.
    pub fn read_all(
        &mut self,
        ranges: impl IntoIterator<Item = (u64, u32)>,
        depth: usize,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut ranges = ranges.into_iter().fuse();
        let mut places = BTreeMap::new();
        loop {
            while places.len() < depth
                && let Some((at, len)) = ranges.next()
            {
                places.insert(self.submit_read(at, len)?, at);
            }
            if places.is_empty() {
                return Ok(());
            }
            let answer = self.next_answer()?.context("the server is gone")?;
            let at = places.remove(&answer.cookie).context("no such read")?;
            ensure!(
                answer.error == 0,
                "the read at {at} answered NBD error {}",
                answer.error
            );
            take(at, &answer.data)?;
        }
    }

    fn only_answer(&mut self, cookie: u64) -> Result<Answer> {
        ensure!(self.in_flight.len() == 1, "other requests are in flight");
        let answer = self.next_answer()?.context("the server is gone")?;
        ensure!(answer.cookie == cookie, "an answer to another request");
        ensure!(answer.error == 0, "NBD error {}", answer.error);
        Ok(answer)
    }

    /// Says goodbye, so that the server need not wait for us to come back.
    pub fn disconnect(mut self) -> Result<()> {
        let goodbye = Request::bare(COMMAND_DISCONNECT);
        self.pending.extend_from_slice(&goodbye.header(0));
        self.send().context("saying goodbye")
    }

    fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn take_u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.input.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn take_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn take_u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.input.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
