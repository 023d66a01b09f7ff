//! Judges a request, asks the device, makes the reply. Judging and replying are pure.

use std::rc::Rc;

use bytes::Bytes;

use super::handshake::Features;
use super::inbox::Request;
use super::wire::{
    self, CHUNK_HEADER_BYTES, ChunkHeader, Errno, RequestHeader, allocation, chunk, command, flag,
};
use crate::device::{Access, BlockDevice, Fua, IoError, Run, RunKind};

/// Runs in one answer to BLOCK_STATUS; a client asks again from where they end.
pub(super) const STATUS_RUNS_MAX: usize = 2048;

const HEAD_BYTES_MAX: usize = CHUNK_HEADER_BYTES + 8;

/// A reply as it goes to the socket: a head, and a body that is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes]
    }

    fn new(head: &[u8], body: Bytes) -> Self {
        let mut reply = Self {
            head: [0; HEAD_BYTES_MAX],
            head_bytes: head.len(),
            body,
        };
        reply.head[..head.len()].copy_from_slice(head);
        reply
    }
}

/// A request that may be put to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    Read { at: u64, len: u64 },
    Write { at: u64, data: Bytes, fua: Fua },
    Zero { at: u64, len: u64, fua: Fua },
    Flush,
    Prefetch { at: u64, len: u64 },
    Status { at: u64, len: u64, runs_max: usize },
    Nothing,
}

/// What the device had to say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Data(Bytes),
    Status(Vec<Run>),
}

/// Carries out one request. Whether the client is still there is not its business: what was
/// started is finished.
pub(super) async fn answer<D: BlockDevice>(
    device: Rc<D>,
    features: Features,
    request: Request,
) -> Reply {
    let header = request.header;
    let outcome = match judge(request, features, device.size_bytes(), device.access()) {
        Ok(operation) => perform(&*device, operation)
            .await
            .map_err(|why| (errno(why), why.to_string())),
        Err(refusal) => Err((refusal.errno, refusal.text.to_owned())),
    };
    match outcome {
        Ok(answer) if features.structured => structured_reply(&header, answer),
        Ok(answer) => simple_reply(&header, answer),
        Err((errno, text)) if features.structured => structured_error(&header, errno, &text),
        Err((errno, _)) => Reply::new(
            &wire::simple_reply(header.cookie, errno.number()),
            Bytes::new(),
        ),
    }
}

/// Why a request is not put to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    errno: Errno,
    text: &'static str,
}

const fn invalid(text: &'static str) -> Refusal {
    let errno = Errno::Invalid;
    Refusal { errno, text }
}

fn judge(
    request: Request,
    features: Features,
    size_bytes: u64,
    access: Access,
) -> Result<Operation, Refusal> {
    let header = request.header;
    check_flags(&header, features)?;
    let (at, len) = (header.offset, u64::from(header.length));
    let fua = if header.flags & flag::FUA == 0 {
        Fua::No
    } else {
        Fua::Yes
    };
    if header.command == command::FLUSH {
        return if (at, len) == (0, 0) {
            Ok(Operation::Flush)
        } else {
            Err(invalid("a flush covers everything: no offset, no length"))
        };
    }
    check_place(&header, size_bytes, access)?;
    if header.command == command::BLOCK_STATUS {
        return judge_status(&header, features);
    }
    if len == 0 {
        return Ok(match header.command {
            command::READ => Operation::Read { at, len },
            _ => Operation::Nothing,
        });
    }
    let data = request.payload;
    Ok(match header.command {
        command::READ => Operation::Read { at, len },
        command::WRITE => Operation::Write { at, data, fua },
        command::CACHE => Operation::Prefetch { at, len },
        // Both read as zeros from now on, and both cost nothing: so zeroing is always fast, and
        // there is no such thing as a hole that is not wanted.
        _ => Operation::Zero { at, len, fua },
    })
}

/// FUA is allowed on everything, as the protocol wants it; other flags where they mean something.
fn check_flags(header: &RequestHeader, features: Features) -> Result<(), Refusal> {
    let known = match header.command {
        command::READ if features.structured => flag::DF,
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
        command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS => flag::REQ_ONE,
        _ => return Err(invalid("unknown command")),
    };
    if header.flags & !(known | flag::FUA) != 0 {
        return Err(invalid("unknown flag for this command"));
    }
    Ok(())
}

fn check_place(header: &RequestHeader, size_bytes: u64, access: Access) -> Result<(), Refusal> {
    let (at, len) = (header.offset, u64::from(header.length));
    let changes = matches!(
        header.command,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    );
    if changes && access == Access::ReadOnly {
        let errno = Errno::NotPermitted;
        let text = "the export is read-only";
        return Err(Refusal { errno, text });
    }
    let has_payload = matches!(header.command, command::READ | command::WRITE);
    if has_payload && header.length > wire::REQUEST_BYTES_MAX {
        return Err(invalid("longer than 32 MiB"));
    }
    if at.checked_add(len).is_none_or(|end| end > size_bytes) {
        let text = "beyond the end of the export";
        return Err(if changes {
            let errno = Errno::NoSpace;
            Refusal { errno, text }
        } else {
            invalid(text)
        });
    }
    let block = u64::from(wire::BLOCK_BYTES_MIN);
    let is_aligned = at.is_multiple_of(block) && len.is_multiple_of(block);
    // Reads are widened instead: that costs nothing, and clients that negotiate no block size try.
    if !is_aligned && header.command != command::READ {
        return Err(invalid("not a multiple of 512 bytes"));
    }
    Ok(())
}

fn judge_status(header: &RequestHeader, features: Features) -> Result<Operation, Refusal> {
    if !features.allocation {
        return Err(invalid("no metadata context was negotiated"));
    }
    if header.length == 0 {
        return Err(invalid("the status of nothing"));
    }
    let runs_max = if header.flags & flag::REQ_ONE == 0 {
        STATUS_RUNS_MAX
    } else {
        1
    };
    Ok(Operation::Status {
        at: header.offset,
        len: u64::from(header.length),
        runs_max,
    })
}

async fn perform<D: BlockDevice>(device: &D, operation: Operation) -> Result<Answer, IoError> {
    match operation {
        Operation::Read { len: 0, .. } => Ok(Answer::Data(Bytes::new())),
        Operation::Read { at, len } => read(device, at, len).await.map(Answer::Data),
        Operation::Write { at, data, fua } => done(device.write(at, data, fua).await),
        Operation::Zero { at, len, fua } => done(device.zero(at, len, fua).await),
        Operation::Flush => done(device.flush().await),
        Operation::Prefetch { at, len } => done(device.prefetch(at, len).await),
        Operation::Status { at, len, runs_max } => {
            let runs = device.status(at, len, runs_max).await?;
            Ok(Answer::Status(whole_runs(runs, len, runs_max)))
        }
        Operation::Nothing => Ok(Answer::Done),
    }
}

fn done(outcome: Result<(), IoError>) -> Result<Answer, IoError> {
    outcome.map(|()| Answer::Done)
}

/// Reads the blocks that hold the range, and cuts the range out of them.
async fn read<D: BlockDevice>(device: &D, at: u64, len: u64) -> Result<Bytes, IoError> {
    let block = u64::from(wire::BLOCK_BYTES_MIN);
    let start = at - at % block;
    let end = (at + len).next_multiple_of(block).min(device.size_bytes());
    let bytes = device.read(start, end - start).await?;
    let skip = usize::try_from(at - start).expect("less than a block");
    let len = usize::try_from(len).expect("bounded by REQUEST_BYTES_MAX");
    assert!(bytes.len() >= skip + len, "the device read less than asked");
    Ok(bytes.slice(skip..skip + len))
}

/// Joins neighbours of one kind and cuts to what was asked, as the protocol forbids empty runs and,
/// with REQ_ONE, ones beyond the request. Where the device said nothing, "data" is always true.
fn whole_runs(runs: Vec<Run>, len: u64, runs_max: usize) -> Vec<Run> {
    let mut whole: Vec<Run> = Vec::new();
    let mut left = len;
    for run in runs {
        let run = Run {
            len: run.len.min(left),
            ..run
        };
        left -= run.len;
        match whole.last_mut() {
            _ if run.len == 0 => {}
            Some(last) if last.kind == run.kind => last.len += run.len,
            _ => whole.push(run),
        }
    }
    whole.truncate(runs_max);
    if whole.is_empty() {
        let kind = RunKind::Data;
        whole.push(Run { len, kind });
    }
    whole
}

fn errno(why: IoError) -> Errno {
    match why {
        IoError::ReadOnly => Errno::NotPermitted,
        IoError::NoSpace => Errno::NoSpace,
        IoError::Shutdown => Errno::Shutdown,
        IoError::Io => Errno::Io,
    }
}

fn simple_reply(header: &RequestHeader, answer: Answer) -> Reply {
    let body = match answer {
        Answer::Data(data) => data,
        Answer::Done => Bytes::new(),
        // A context can only be set once structured replies are: `judge_status` saw to it.
        Answer::Status(_) => unreachable!("block status without structured replies"),
    };
    Reply::new(&wire::simple_reply(header.cookie, 0), body)
}

/// One chunk, whatever the answer: DF is always honoured.
fn structured_reply(header: &RequestHeader, answer: Answer) -> Reply {
    match answer {
        Answer::Data(data) if !data.is_empty() => {
            let length = u32::try_from(data.len() + 8).expect("bounded by REQUEST_BYTES_MAX");
            let mut head = [0; HEAD_BYTES_MAX];
            head[..CHUNK_HEADER_BYTES].copy_from_slice(&last_chunk(
                header,
                chunk::OFFSET_DATA,
                length,
            ));
            head[CHUNK_HEADER_BYTES..].copy_from_slice(&header.offset.to_be_bytes());
            Reply::new(&head, data)
        }
        // The protocol has no chunk with no data.
        Answer::Done | Answer::Data(_) => {
            Reply::new(&last_chunk(header, chunk::NONE, 0), Bytes::new())
        }
        Answer::Status(runs) => {
            let mut body = allocation::CONTEXT_ID.to_be_bytes().to_vec();
            for run in runs {
                let length = u32::try_from(run.len).expect("cut to the request, which is a u32");
                let flags = match run.kind {
                    RunKind::Data => 0,
                    RunKind::Hole => allocation::HOLE | allocation::ZERO,
                };
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(&u32::to_be_bytes(flags));
            }
            with_body(header, chunk::BLOCK_STATUS, body)
        }
    }
}

fn structured_error(header: &RequestHeader, errno: Errno, text: &str) -> Reply {
    let text = wire::clip(text);
    let length = u16::try_from(text.len()).expect("clipped to 4096");
    let mut body = errno.number().to_be_bytes().to_vec();
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(text.as_bytes());
    with_body(header, chunk::ERROR, body)
}

fn with_body(header: &RequestHeader, kind: u16, body: Vec<u8>) -> Reply {
    let length = u32::try_from(body.len()).expect("a bounded number of runs, or a clipped text");
    Reply::new(&last_chunk(header, kind, length), body.into())
}

fn last_chunk(header: &RequestHeader, kind: u16, length: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let chunk = ChunkHeader {
        flags: chunk::DONE,
        kind,
        cookie: header.cookie,
        length,
    };
    chunk.encode()
}

#[cfg(test)]
mod tests;
