//! The handshake as a state machine: an option in, bytes and the next thing to do out. Pure.
//!
//! ```text
//! greeting -> client flags -> option* -> GO, EXPORT_NAME -> transmission
//!                                     -> ABORT           -> closed
//! ```
//!
//! Every option but EXPORT_NAME has an error reply, so a refusal leaves the client free to ask for
//! something else. What an export is, only its own side knows: [`Action::Info`] and its like tell
//! the caller to find out and come back.

use super::wire::{self, Cursor, Violation, allocation, export, hello, info, option, reply};
use crate::device::{Access, ConnectError, Look};

/// Options that a client may send; one more ends the connection.
pub(super) const OPTIONS_MAX: u32 = 256;
/// Data of an option that is looked at. More is refused with ERR_TOO_BIG.
pub(super) const OPTION_DATA_MAX: u32 = 64 << 10;
/// Data of a refused option that is read and thrown away. More ends the connection.
pub(super) const OPTION_SKIP_MAX: u32 = 4 << 20;
/// Names in the answer to LIST; the rest are left out.
pub(super) const NAMES_LISTED_MAX: usize = 16 << 10;

/// What a client has negotiated so far.
#[derive(Debug)]
pub(super) struct Handshake {
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was asked.
    allocation_for: Option<String>,
    options: u32,
}

/// What the two sides agreed on for the transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// What to do about an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send this and go on.
    Reply(Vec<u8>),
    /// Find the names, send [`Handshake::listed`], go on.
    List,
    /// Look at the export, send [`Handshake::described`] or [`Handshake::refused`], go on.
    Info(Question),
    /// As above, but open it, and after success the transmission begins.
    Go(Question),
    /// Open the export and send [`Handshake::old_answer`]; a refusal can only be a closed door.
    ExportName(String),
    /// Send this and close.
    Leave(Vec<u8>),
}

/// What INFO and GO carry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) option: u32,
    pub(super) name: String,
    wants_name: bool,
}

impl Handshake {
    pub(super) fn greeting() -> [u8; wire::GREETING_BYTES] {
        let mut bytes = [0; wire::GREETING_BYTES];
        bytes[..8].copy_from_slice(&wire::GREETING_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        let flags = hello::FIXED_NEWSTYLE | hello::NO_ZEROES;
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Begins with the flags that the client answered the greeting with.
    pub(super) fn begin(client_flags: [u8; 4]) -> Result<Self, Violation> {
        let flags = u32::from_be_bytes(client_flags);
        let (fixed, no_zeroes) = (
            u32::from(hello::FIXED_NEWSTYLE),
            u32::from(hello::NO_ZEROES),
        );
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        Ok(Self {
            fixed: flags & fixed != 0,
            no_zeroes: flags & no_zeroes != 0,
            structured: false,
            allocation_for: None,
            options: 0,
        })
    }

    /// Decides about one option. `data` is none if it was longer than [`OPTION_DATA_MAX`].
    pub(super) fn option(&mut self, kind: u32, data: Option<&[u8]>) -> Result<Action, Violation> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Violation::TooManyOptions(OPTIONS_MAX));
        }
        if kind == option::EXPORT_NAME {
            return export_name(data);
        }
        if !self.fixed {
            return Err(Violation::OldClient(kind));
        }
        let Some(data) = data else {
            let text = "the option has too much data";
            return Ok(error(kind, reply::ERR_TOO_BIG, text));
        };
        Ok(match kind {
            option::ABORT => Action::Leave(single(kind, reply::ACK, &[])),
            option::LIST if data.is_empty() => Action::List,
            option::INFO | option::GO => question(kind, data),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                Action::Reply(single(kind, reply::ACK, &[]))
            }
            option::LIST | option::STRUCTURED_REPLY => {
                error(kind, reply::ERR_INVALID, "the option takes no data")
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(kind, data),
            option::STARTTLS => error(kind, reply::ERR_UNSUP, "this server does not speak TLS"),
            option::EXTENDED_HEADERS => {
                let text = "this server does not speak extended headers";
                error(kind, reply::ERR_UNSUP, text)
            }
            _ => error(
                kind,
                reply::ERR_UNSUP,
                "this server does not know the option",
            ),
        })
    }

    /// The contexts are the same for every export, so the name is remembered and not looked up:
    /// the GO that follows does that, and a look costs a request to the store.
    fn meta_context(&mut self, kind: u32, data: &[u8]) -> Action {
        let is_set = kind == option::SET_META_CONTEXT;
        if is_set {
            // Whatever comes of this one, it replaces the last.
            self.allocation_for = None;
        }
        if !self.structured {
            let text = "metadata contexts need structured replies";
            return error(kind, reply::ERR_INVALID, text);
        }
        let Some((name, wanted)) = parse_queries(data, is_set) else {
            return error(kind, reply::ERR_INVALID, "the queries cannot be read");
        };
        let mut bytes = Vec::new();
        if wanted {
            let id = if is_set { allocation::CONTEXT_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(allocation::CONTEXT.as_bytes());
            wire::push_option_reply(&mut bytes, kind, reply::META_CONTEXT, &context);
        }
        if is_set && wanted {
            self.allocation_for = Some(name.to_owned());
        }
        wire::push_option_reply(&mut bytes, kind, reply::ACK, &[]);
        Action::Reply(bytes)
    }

    /// The answer to LIST.
    pub(super) fn listed(names: &[String]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in names.iter().take(NAMES_LISTED_MAX) {
            let mut data = Vec::new();
            wire::push_string(&mut data, wire::clip(name));
            wire::push_option_reply(&mut bytes, option::LIST, reply::SERVER, &data);
        }
        wire::push_option_reply(&mut bytes, option::LIST, reply::ACK, &[]);
        bytes
    }

    /// The answer to INFO or GO about an export that can be had.
    pub(super) fn described(&self, question: &Question, look: Look) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut push = |data: &[u8]| {
            wire::push_option_reply(&mut bytes, question.option, reply::INFO, data);
        };
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&look.size_bytes.to_be_bytes());
        export.extend_from_slice(&self.export_flags(look.access).to_be_bytes());
        push(&export);
        if question.wants_name {
            let mut name = info::NAME.to_be_bytes().to_vec();
            name.extend_from_slice(question.name.as_bytes());
            push(&name);
        }
        // Told to everybody: a smaller minimum than 512 is not served to anybody.
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [
            wire::BLOCK_BYTES_MIN,
            wire::BLOCK_BYTES_PREFERRED,
            wire::REQUEST_BYTES_MAX,
        ] {
            sizes.extend_from_slice(&size.to_be_bytes());
        }
        push(&sizes);
        wire::push_option_reply(&mut bytes, question.option, reply::ACK, &[]);
        bytes
    }

    /// The answer to INFO or GO about an export that cannot be had, with the reason in words.
    pub(super) fn refused(question: &Question, why: &ConnectError) -> Vec<u8> {
        let kind = match why {
            ConnectError::Unknown(_) => reply::ERR_UNKNOWN,
            ConnectError::Invalid(_) => reply::ERR_INVALID,
            ConnectError::Refused(_) => reply::ERR_POLICY,
            // The only error that tells the client to come back: it must not take a store that is
            // out of reach for an export that does not exist.
            ConnectError::Unavailable(_) | ConnectError::ShuttingDown => reply::ERR_SHUTDOWN,
        };
        single(
            question.option,
            kind,
            wire::clip(&why.to_string()).as_bytes(),
        )
    }

    /// The answer to EXPORT_NAME.
    pub(super) fn old_answer(&self, look: Look) -> Vec<u8> {
        let mut bytes = look.size_bytes.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.export_flags(look.access).to_be_bytes());
        if !self.no_zeroes {
            bytes.resize(bytes.len() + wire::EXPORT_NAME_PADDING_BYTES, 0);
        }
        bytes
    }

    /// What holds for the transmission with this export.
    pub(super) fn features(&self, name: &str) -> Features {
        Features {
            structured: self.structured,
            // A context that was set for another export is not set for this one.
            allocation: self.structured && self.allocation_for.as_deref() == Some(name),
        }
    }

    fn export_flags(&self, access: Access) -> u16 {
        let mut flags = export::HAS_FLAGS
            | export::SEND_FLUSH
            | export::SEND_CACHE
            // A flush covers what was answered on every connection (promise 1).
            | export::CAN_MULTI_CONN;
        flags |= match access {
            Access::ReadOnly => export::READ_ONLY,
            Access::ReadWrite => {
                export::SEND_FUA
                    | export::SEND_TRIM
                    | export::SEND_WRITE_ZEROES
                    | export::SEND_FAST_ZERO
            }
        };
        if self.structured {
            flags |= export::SEND_DF;
        }
        flags
    }
}

fn export_name(data: Option<&[u8]>) -> Result<Action, Violation> {
    let fault = |text: &str| Violation::ExportName(text.to_owned());
    let data = data.ok_or_else(|| fault("too long"))?;
    if data.len() > wire::STRING_BYTES_MAX {
        return Err(fault("too long"));
    }
    let name = std::str::from_utf8(data).map_err(|_not_text| fault("not UTF-8"))?;
    if name.is_empty() {
        return Err(fault(NO_NAME));
    }
    Ok(Action::ExportName(name.to_owned()))
}

const NO_NAME: &str = "no export name was given, and this server has no default export: \
                       name one (nbd-client -N NAME, nbd+unix:///NAME?socket=…)";

fn question(kind: u32, data: &[u8]) -> Action {
    let Some(question) = parse_question(kind, data) else {
        return error(kind, reply::ERR_INVALID, "the option cannot be read");
    };
    if question.name.is_empty() {
        return error(kind, reply::ERR_UNKNOWN, NO_NAME);
    }
    match kind {
        option::GO => Action::Go(question),
        _ => Action::Info(question),
    }
}

fn parse_question(kind: u32, data: &[u8]) -> Option<Question> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?.to_owned();
    let mut wants_name = false;
    for _ in 0..cursor.u16()? {
        wants_name |= cursor.u16()? == info::NAME;
    }
    cursor.is_empty().then_some(Question {
        option: kind,
        name,
        wants_name,
    })
}

/// The export's name, and whether a query selects `base:allocation`, the only context there is.
fn parse_queries(data: &[u8], is_set: bool) -> Option<(&str, bool)> {
    let mut cursor = Cursor::new(data);
    let name = cursor.string()?;
    let count = cursor.u32()?;
    // No query in a list means: everything there is. In a set it means: nothing.
    let mut wanted = count == 0 && !is_set;
    // Each round takes at least four bytes of the data or ends the loop.
    for _ in 0..count {
        let query = cursor.string()?;
        wanted |= query == allocation::CONTEXT || (!is_set && query == "base:");
    }
    cursor.is_empty().then_some((name, wanted))
}

fn error(option: u32, kind: u32, text: &str) -> Action {
    Action::Reply(single(option, kind, wire::clip(text).as_bytes()))
}

fn single(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(wire::OPTION_REPLY_HEADER_BYTES + data.len());
    wire::push_option_reply(&mut bytes, option, kind, data);
    bytes
}

#[cfg(test)]
mod tests;
