//! The numbers of the NBD specification, written out once more as it has them: a constant that is
//! wrong by itself is right to a server and a client that share it. `docs/format/nbd.md` shows the
//! same numbers to people, and is held to them as well.

use super::wire::{
    self, Errno, allocation, chunk, command, export, flag, hello, info, option, reply,
};

/// A group of numbers: its name in the docs, and for each what the code has, then the specification.
struct Group {
    name: &'static str,
    numbers: Vec<(&'static str, u64, u64)>,
}

fn group<N: Into<u64>>(name: &'static str, numbers: Vec<(&'static str, N, u64)>) -> Group {
    let numbers = numbers.into_iter();
    let numbers = numbers.map(|(name, ours, theirs)| (name, ours.into(), theirs));
    let numbers = numbers.collect();
    Group { name, numbers }
}

fn handshake() -> Vec<Group> {
    let magics = vec![
        ("NBDMAGIC", wire::GREETING_MAGIC, 0x4e42_444d_4147_4943),
        ("IHAVEOPT", wire::OPTION_MAGIC, 0x4948_4156_454f_5054),
        (
            "option reply",
            wire::OPTION_REPLY_MAGIC,
            0x0003_e889_0455_65a9,
        ),
        ("request", wire::REQUEST_MAGIC.into(), 0x2560_9513),
        ("simple reply", wire::SIMPLE_REPLY_MAGIC.into(), 0x6744_6698),
        ("chunk", wire::CHUNK_MAGIC.into(), 0x668e_33ef),
    ];
    let hello = vec![
        ("FIXED_NEWSTYLE", hello::FIXED_NEWSTYLE, 0x1),
        ("NO_ZEROES", hello::NO_ZEROES, 0x2),
    ];
    let options = vec![
        ("EXPORT_NAME", option::EXPORT_NAME, 1),
        ("ABORT", option::ABORT, 2),
        ("LIST", option::LIST, 3),
        ("STARTTLS", option::STARTTLS, 5),
        ("INFO", option::INFO, 6),
        ("GO", option::GO, 7),
        ("STRUCTURED_REPLY", option::STRUCTURED_REPLY, 8),
        ("LIST_META_CONTEXT", option::LIST_META_CONTEXT, 9),
        ("SET_META_CONTEXT", option::SET_META_CONTEXT, 10),
        ("EXTENDED_HEADERS", option::EXTENDED_HEADERS, 11),
    ];
    let replies = vec![
        ("ACK", reply::ACK, 1),
        ("SERVER", reply::SERVER, 2),
        ("INFO", reply::INFO, 3),
        ("META_CONTEXT", reply::META_CONTEXT, 4),
        ("ERR_UNSUP", reply::ERR_UNSUP, 0x8000_0001),
        ("ERR_POLICY", reply::ERR_POLICY, 0x8000_0002),
        ("ERR_INVALID", reply::ERR_INVALID, 0x8000_0003),
        ("ERR_UNKNOWN", reply::ERR_UNKNOWN, 0x8000_0006),
        ("ERR_SHUTDOWN", reply::ERR_SHUTDOWN, 0x8000_0007),
        ("ERR_TOO_BIG", reply::ERR_TOO_BIG, 0x8000_0009),
    ];
    let info = vec![
        ("EXPORT", info::EXPORT, 0),
        ("NAME", info::NAME, 1),
        ("BLOCK_SIZE", info::BLOCK_SIZE, 3),
    ];
    vec![
        group("magic", magics),
        group("handshake flag", hello),
        group("option", options),
        group("option reply", replies),
        group("information", info),
    ]
}

fn transmission() -> Vec<Group> {
    let exports = vec![
        ("HAS_FLAGS", export::HAS_FLAGS, 0x1),
        ("READ_ONLY", export::READ_ONLY, 0x2),
        ("SEND_FLUSH", export::SEND_FLUSH, 0x4),
        ("SEND_FUA", export::SEND_FUA, 0x8),
        ("SEND_TRIM", export::SEND_TRIM, 0x20),
        ("SEND_WRITE_ZEROES", export::SEND_WRITE_ZEROES, 0x40),
        ("SEND_DF", export::SEND_DF, 0x80),
        ("CAN_MULTI_CONN", export::CAN_MULTI_CONN, 0x100),
        ("SEND_CACHE", export::SEND_CACHE, 0x400),
        ("SEND_FAST_ZERO", export::SEND_FAST_ZERO, 0x800),
    ];
    let commands = vec![
        ("READ", command::READ, 0),
        ("WRITE", command::WRITE, 1),
        ("DISC", command::DISC, 2),
        ("FLUSH", command::FLUSH, 3),
        ("TRIM", command::TRIM, 4),
        ("CACHE", command::CACHE, 5),
        ("WRITE_ZEROES", command::WRITE_ZEROES, 6),
        ("BLOCK_STATUS", command::BLOCK_STATUS, 7),
    ];
    let flags = vec![
        ("FUA", flag::FUA, 0x1),
        ("NO_HOLE", flag::NO_HOLE, 0x2),
        ("DF", flag::DF, 0x4),
        ("REQ_ONE", flag::REQ_ONE, 0x8),
        ("FAST_ZERO", flag::FAST_ZERO, 0x10),
    ];
    let chunks = vec![
        ("NONE", chunk::NONE, 0),
        ("OFFSET_DATA", chunk::OFFSET_DATA, 1),
        ("OFFSET_HOLE", chunk::OFFSET_HOLE, 2),
        ("BLOCK_STATUS", chunk::BLOCK_STATUS, 5),
        ("ERROR", chunk::ERROR, 0x8001),
        ("ERROR_OFFSET", chunk::ERROR_OFFSET, 0x8002),
    ];
    let errors = vec![
        ("EPERM", Errno::NotPermitted.number(), 1),
        ("EIO", Errno::Io.number(), 5),
        ("EINVAL", Errno::Invalid.number(), 22),
        ("ENOSPC", Errno::NoSpace.number(), 28),
        ("ESHUTDOWN", Errno::Shutdown.number(), 108),
    ];
    let allocation = vec![
        ("HOLE", allocation::HOLE, 0x1),
        ("ZERO", allocation::ZERO, 0x2),
    ];
    vec![
        group("export flag", exports),
        group("command", commands),
        group("command flag", flags),
        group("chunk flag", vec![("DONE", chunk::DONE, 0x1)]),
        group("chunk", chunks),
        group("error", errors),
        group("`base:allocation` flag", allocation),
    ]
}

/// Small numbers in tens, flags and large ones in sixteens, as the specification has them.
fn row(group: &Group) -> String {
    let sixteens = group.name.ends_with("flag");
    let numbers = group.numbers.iter().map(|(name, _, number)| {
        if sixteens || *number > 0xff {
            format!("{name} {number:#x}")
        } else {
            format!("{name} {number}")
        }
    });
    let numbers: Vec<String> = numbers.collect();
    format!("| {} | {} |", group.name, numbers.join(", "))
}

#[test]
fn every_number_is_that_of_the_specification_and_of_the_docs() {
    let docs = include_str!("../../../docs/format/nbd.md");
    for group in handshake().into_iter().chain(transmission()) {
        for (name, ours, theirs) in &group.numbers {
            assert_eq!(ours, theirs, "{} {name}", group.name);
        }
        let row = row(&group);
        assert!(docs.contains(&row), "docs/format/nbd.md lacks:\n{row}");
    }
    assert_eq!(allocation::CONTEXT, "base:allocation");
}
