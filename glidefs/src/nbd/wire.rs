//! The bytes of the NBD protocol, both directions: numbers, fixed headers, and a reader for what
//! comes from outside. Pure, and total: no bytes make it panic.
//!
//! All integers are big-endian. The tables are in `docs/format/nbd.md`. Absent: oldstyle
//! negotiation, TLS, extended (64-bit) headers.

/// "NBDMAGIC", the first bytes of a server.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", before every option and second in the greeting.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub const GREETING_BYTES: usize = 18;
pub const OPTION_HEADER_BYTES: usize = 16;
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
pub const REQUEST_HEADER_BYTES: usize = 28;
pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;
/// Zeros after an old EXPORT_NAME answer, unless the client declined them.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Payload of one READ or WRITE.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Offsets and lengths of requests are multiples of this (reads may be anything).
pub const BLOCK_BYTES_MIN: u32 = 512;
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// Any string of the protocol: the protocol's own limit.
pub const STRING_BYTES_MAX: usize = 4096;

/// Handshake flags, the same bits in both directions.
pub mod hello {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 2;
}

/// What a client may ask during the handshake.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// What an option is answered with. Errors have the top bit set.
pub mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;

    pub const fn is_error(kind: u32) -> bool {
        kind & ERROR != 0
    }
}

/// Kinds of information in answers to INFO and GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do: transmission flags.
pub mod export {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Kinds of requests.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Kinds of chunks in structured replies.
pub mod chunk {
    /// Flag of the last chunk of a reply.
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// Of the metadata context `base:allocation`.
pub mod allocation {
    pub const CONTEXT: &str = "base:allocation";
    /// Chosen by the server, the same on every connection.
    pub const CONTEXT_ID: u32 = 1;
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
}

/// Errors of requests, by their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    NotPermitted,
    Io,
    Invalid,
    NoSpace,
    Shutdown,
}

impl Errno {
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Shutdown => 108,
        }
    }
}

/// What a client did that ends its connection. For the log: it gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the client sent unknown handshake flags {0:#x}")]
    ClientFlags(u32),
    #[error("the client does not speak fixed newstyle and asks for option {0}")]
    OldClient(u32),
    #[error("the client sent {0:#018x} where an option begins")]
    OptionMagic(u64),
    #[error("the client announced {0} bytes of option data")]
    OptionTooLong(u32),
    #[error("the client asked for more than {0} options")]
    TooManyOptions(u32),
    #[error("the client asked for a bad export name by EXPORT_NAME, which has no error reply: {0}")]
    ExportName(String),
    #[error("the client sent {0:#010x} where a request begins")]
    RequestMagic(u32),
    #[error("the client announced a write of {0} bytes")]
    WriteTooLong(u32),
}

/// An option of the handshake: what, and how many bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub option: u32,
    pub length: u32,
}

impl OptionHeader {
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, Violation> {
        let magic = be_u64(bytes, 0);
        if magic != OPTION_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        Ok(Self {
            option: be_u32(bytes, 8),
            length: be_u32(bytes, 12),
        })
    }

    pub fn encode(&self) -> [u8; OPTION_HEADER_BYTES] {
        let mut bytes = [0; OPTION_HEADER_BYTES];
        bytes[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// A request as it stands on the wire, before anybody has judged it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHeader {
    pub fn parse(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Result<Self, Violation> {
        let magic = be_u32(bytes, 0);
        if magic != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(magic));
        }
        Ok(Self {
            flags: be_u16(bytes, 4),
            command: be_u16(bytes, 6),
            cookie: be_u64(bytes, 8),
            offset: be_u64(bytes, 16),
            length: be_u32(bytes, 24),
        })
    }

    pub fn encode(&self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut bytes = [0; REQUEST_HEADER_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }
}

/// The head of a simple reply; the data of a read follows. Error 0 is success.
pub fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The head of one chunk of a structured reply; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub length: u32,
}

impl ChunkHeader {
    pub fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// Appends one reply to an option.
pub fn push_option_reply(into: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let length = u32::try_from(data.len()).expect("option replies are made of bounded strings");
    into.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    into.extend_from_slice(&option.to_be_bytes());
    into.extend_from_slice(&kind.to_be_bytes());
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(data);
}

/// A string as it stands in options and their replies: its length, then its bytes.
pub fn push_string(into: &mut Vec<u8>, string: &str) {
    let length = u32::try_from(string.len()).expect("strings of the protocol are bounded");
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(string.as_bytes());
}

/// The longest beginning of a text that the protocol allows as one string.
pub fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(STRING_BYTES_MAX)]
}

/// Takes values off the front of bytes from outside. Every take says when there is no such value.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn u16(&mut self) -> Option<u16> {
        let bytes = self.bytes(2)?;
        Some(be_u16(bytes, 0))
    }

    pub fn u32(&mut self) -> Option<u32> {
        let bytes = self.bytes(4)?;
        Some(be_u32(bytes, 0))
    }

    pub fn u64(&mut self) -> Option<u64> {
        let bytes = self.bytes(8)?;
        Some(be_u64(bytes, 0))
    }

    /// A length and so many bytes of UTF-8, within the protocol's limit for strings.
    pub fn string(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > STRING_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    /// Nothing is left: what was taken is the whole message.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// The callers above have made sure that the bytes are there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_have_the_bytes_of_the_protocol() {
        let request = RequestHeader {
            flags: flag::FUA,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x200,
        };
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(request.encode(), expected);
        assert_eq!(
            simple_reply(7, Errno::Invalid.number()),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 7]
        );
        let head = ChunkHeader {
            flags: chunk::DONE,
            kind: chunk::ERROR,
            cookie: 9,
            length: 6,
        };
        let expected = [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 6,
        ];
        assert_eq!(head.encode(), expected);
        assert_eq!(&GREETING_MAGIC.to_be_bytes(), b"NBDMAGIC");
        assert_eq!(&OPTION_MAGIC.to_be_bytes(), b"IHAVEOPT");
    }

    #[test]
    fn a_bad_magic_is_named() {
        let mut bytes = [0; REQUEST_HEADER_BYTES];
        bytes[3] = 5;
        assert_eq!(
            RequestHeader::parse(&bytes),
            Err(Violation::RequestMagic(5))
        );
        assert_eq!(
            OptionHeader::parse(&[0; OPTION_HEADER_BYTES]),
            Err(Violation::OptionMagic(0))
        );
    }

    #[test]
    fn a_string_is_clipped_between_characters() {
        let text = "x".to_owned() + &"ü".repeat(STRING_BYTES_MAX);
        let clipped = clip(&text);
        assert_eq!(clipped.len(), STRING_BYTES_MAX - 1);
        assert!(text.starts_with(clipped));
    }

    #[test]
    fn a_string_longer_than_its_message_or_the_protocol_allows_is_none() {
        assert_eq!(Cursor::new(&[0, 0, 0, 2, b'a']).string(), None);
        assert_eq!(Cursor::new(&[255; 8]).string(), None);
        let mut long = Vec::new();
        push_string(&mut long, &"x".repeat(STRING_BYTES_MAX + 1));
        assert_eq!(Cursor::new(&long).string(), None);
        assert_eq!(Cursor::new(&[0, 0, 0, 1, 0xff]).string(), None);
        assert_eq!(Cursor::new(&[0, 0, 0, 1, b'a']).string(), Some("a"));
    }

    proptest! {
        #[test]
        fn a_request_comes_back_as_it_was(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32
        ) {
            let request = RequestHeader { flags, command, cookie, offset, length };
            prop_assert_eq!(RequestHeader::parse(&request.encode()), Ok(request));
            let option = OptionHeader { option: length, length: u32::from(flags) };
            prop_assert_eq!(OptionHeader::parse(&option.encode()), Ok(option));
        }

        #[test]
        fn a_cursor_takes_no_more_than_there_is(bytes: Vec<u8>, takes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            for take in takes {
                match take % 4 {
                    0 => drop(cursor.u16()),
                    1 => drop(cursor.u32()),
                    2 => drop(cursor.string()),
                    _ => drop(cursor.bytes(usize::from(take))),
                }
            }
        }
    }
}
