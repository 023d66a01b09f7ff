use super::*;

const SIZE: u64 = 1 << 30;

const PLAIN: Features = Features {
    structured: false,
    allocation: false,
};
const FULL: Features = Features {
    structured: true,
    allocation: true,
};

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
    let header = RequestHeader {
        flags,
        command,
        cookie: 1,
        offset,
        length,
    };
    let payload = Bytes::new();
    Request { header, payload }
}

fn judged(command: u16, flags: u16, offset: u64, length: u32) -> Result<Operation, Errno> {
    let request = request(command, flags, offset, length);
    judge(request, FULL, SIZE, Access::ReadWrite).map_err(|refusal| refusal.errno)
}

const CHANGING: [u16; 3] = [command::WRITE, command::TRIM, command::WRITE_ZEROES];
const LOOKING: [u16; 3] = [command::READ, command::CACHE, command::BLOCK_STATUS];

#[test]
fn what_lies_beyond_the_end_is_refused_by_kind() {
    for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 1024)] {
        for command in CHANGING {
            let got = judged(command, 0, offset, length);
            assert_eq!(got, Err(Errno::NoSpace));
        }
        for command in LOOKING {
            let got = judged(command, 0, offset, length);
            assert_eq!(got, Err(Errno::Invalid));
        }
    }
    assert!(judged(command::READ, 0, SIZE - 512, 512).is_ok());
}

#[test]
fn changes_keep_to_sectors_and_reads_need_not() {
    for command in CHANGING {
        assert_eq!(judged(command, 0, 1, 512), Err(Errno::Invalid));
        assert_eq!(judged(command, 0, 512, 513), Err(Errno::Invalid));
        assert!(judged(command, 0, 512, 512).is_ok());
    }
    assert!(judged(command::READ, 0, 1, 3).is_ok());
}

#[test]
fn only_what_carries_data_is_bounded_in_length() {
    let over = wire::REQUEST_BYTES_MAX + 512;
    for command in [command::READ, command::WRITE] {
        assert_eq!(judged(command, 0, 0, over), Err(Errno::Invalid));
        assert!(judged(command, 0, 0, wire::REQUEST_BYTES_MAX).is_ok());
    }
    for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert!(judged(command, 0, 0, over).is_ok());
    }
}

#[test]
fn a_read_only_export_refuses_changes_and_nothing_else() {
    for command in CHANGING {
        let got = judge(request(command, 0, 0, 512), FULL, SIZE, Access::ReadOnly);
        assert_eq!(got.map_err(|why| why.errno), Err(Errno::NotPermitted));
    }
    for command in LOOKING {
        let got = judge(request(command, 0, 0, 512), FULL, SIZE, Access::ReadOnly);
        assert!(got.is_ok());
    }
    let flush = judge(
        request(command::FLUSH, 0, 0, 0),
        FULL,
        SIZE,
        Access::ReadOnly,
    );
    assert_eq!(flush, Ok(Operation::Flush));
}

#[test]
fn flags_are_allowed_where_they_mean_something() {
    let all = [
        (command::READ, flag::DF),
        (command::WRITE, 0),
        (command::FLUSH, 0),
        (command::TRIM, 0),
        (command::CACHE, 0),
        (command::WRITE_ZEROES, flag::NO_HOLE | flag::FAST_ZERO),
        (command::BLOCK_STATUS, flag::REQ_ONE),
    ];
    for (command, known) in all {
        let length = if command == command::FLUSH { 0 } else { 512 };
        for bit in (0..16).map(|shift| 1 << shift) {
            let got = judged(command, bit, 0, length);
            let is_known = (known | flag::FUA) & bit != 0;
            assert_eq!(got.is_ok(), is_known, "command {command} flag {bit:#x}");
        }
    }
    let simple = judge(
        request(command::READ, flag::DF, 0, 512),
        PLAIN,
        SIZE,
        Access::ReadWrite,
    );
    assert!(simple.is_err(), "DF without structured replies");
}

#[test]
fn unknown_commands_are_invalid() {
    for command in [command::DISC, 8, 99, u16::MAX] {
        assert_eq!(judged(command, 0, 0, 0), Err(Errno::Invalid));
    }
}

#[test]
fn force_unit_access_is_handed_on() {
    let (at, len, fua) = (512, 512, Fua::Yes);
    for command in [command::TRIM, command::WRITE_ZEROES] {
        let got = judged(command, flag::FUA, at, 512);
        assert_eq!(got, Ok(Operation::Zero { at, len, fua }));
    }
    let got = judged(command::WRITE, flag::FUA, at, 512);
    let data = Bytes::new();
    assert_eq!(got, Ok(Operation::Write { at, data, fua }));
}

#[test]
fn nothing_to_do_is_done_without_the_device() {
    for command in CHANGING {
        assert_eq!(judged(command, 0, 512, 0), Ok(Operation::Nothing));
    }
    assert_eq!(judged(command::BLOCK_STATUS, 0, 0, 0), Err(Errno::Invalid));
    assert_eq!(judged(command::FLUSH, 0, 0, 512), Err(Errno::Invalid));
}

#[test]
fn status_needs_its_context() {
    let features = Features {
        structured: true,
        allocation: false,
    };
    let asked = request(command::BLOCK_STATUS, 0, 0, 512);
    let got = judge(asked, features, SIZE, Access::ReadWrite);
    assert_eq!(got.map_err(|why| why.errno), Err(Errno::Invalid));
}

fn runs(lens: &[(u64, RunKind)]) -> Vec<Run> {
    lens.iter().map(|&(len, kind)| Run { len, kind }).collect()
}

#[test]
fn runs_are_joined_cut_and_never_empty() {
    use RunKind::{Data, Hole};
    let given = runs(&[
        (512, Data),
        (0, Hole),
        (512, Data),
        (512, Hole),
        (9999, Data),
    ]);
    let whole = whole_runs(given.clone(), 2048, 10);
    assert_eq!(whole, runs(&[(1024, Data), (512, Hole), (512, Data)]));
    assert_eq!(whole_runs(given, 2048, 1), runs(&[(1024, Data)]));
    assert_eq!(whole_runs(vec![], 2048, 1), runs(&[(2048, Data)]));
}
