use proptest::prelude::*;

use super::*;
use crate::nbd::wire::command;

fn header(command: u16, length: u32) -> RequestHeader {
    RequestHeader {
        flags: 0,
        command,
        cookie: u64::from(length) << 8 | u64::from(command),
        offset: 0,
        length,
    }
}

fn write(length: u32, fill: u8) -> Request {
    Request {
        header: header(command::WRITE, length),
        payload: vec![fill; length_in_memory(length)].into(),
    }
}

fn bytes_of(requests: &[Request]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        bytes.extend_from_slice(&request.header.encode());
        bytes.extend_from_slice(&request.payload);
    }
    bytes
}

/// Reads the stream in the pieces that a socket might give, and takes what comes out.
fn run(inbox: &mut Inbox, stream: &[u8], pieces: &[usize]) -> Result<Vec<Request>, Violation> {
    run_with(inbox, &mut Spares::default(), stream, pieces)
}

/// The same with buffers that others may have used. A piece of 0 bytes: nothing has arrived.
fn run_with(
    inbox: &mut Inbox,
    spares: &mut Spares,
    stream: &[u8],
    pieces: &[usize],
) -> Result<Vec<Request>, Violation> {
    let mut requests = Vec::new();
    let mut rest = stream;
    let mut pieces = pieces.iter().cycle();
    loop {
        while let Some(request) = inbox.next(|_| true)? {
            requests.push(request);
        }
        if rest.is_empty() {
            return Ok(requests);
        }
        let mut buffer = inbox
            .lend(spares)
            .expect("everything there was has been looked at");
        let spare = buffer.capacity() - buffer.len();
        assert!(spare > 0, "lent a full buffer");
        let count = spare.min(rest.len()).min(*pieces.next().expect("a cycle"));
        if count == 0 {
            inbox.put_unread(buffer, spares);
            continue;
        }
        buffer.extend_from_slice(&rest[..count]);
        rest = &rest[count..];
        inbox.put(buffer, spares);
    }
}

/// Looks for more, and finds that nothing has arrived.
fn fall_idle(inbox: &mut Inbox, spares: &mut Spares) {
    assert_eq!(inbox.next(|_| true), Ok(None), "a request was left");
    let buffer = inbox.lend(spares).expect("all has been looked at");
    inbox.put_unread(buffer, spares);
}

/// What the connection holds, and what waits for any other.
fn held(inbox: &Inbox, spares: &Spares) -> (usize, usize) {
    let kept = spares.small.iter().chain(&spares.large);
    (inbox.buffer.capacity(), kept.map(Vec::capacity).sum())
}

/// 4 KiB at depth 32, as a guest's file system writes.
fn burst() -> Vec<Request> {
    (0..32).map(|fill| write(4096, fill)).collect()
}

fn any_request() -> impl Strategy<Value = Request> {
    let length = prop_oneof![0..5000_u32, 60_000..70_000_u32, 200_000..400_000_u32];
    (length, any::<u8>(), any::<bool>()).prop_map(|(length, fill, is_write)| {
        if is_write {
            write(length, fill)
        } else {
            Request {
                header: header(command::READ, length),
                payload: Bytes::new(),
            }
        }
    })
}

/// What one look at the socket brings; often nothing, or little.
fn any_piece() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0_usize), 1..100_usize, 1..100_000_usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_come_out_as_sent_however_the_stream_is_cut(
        requests in prop::collection::vec(any_request(), 0..12),
        pieces in prop::collection::vec(any_piece(), 1..5),
        last_piece in 1..100_000_usize,
        handshake_rest in prop_oneof![0..200_usize, 0..70_000_usize],
    ) {
        // Else nothing would ever arrive.
        let pieces = [pieces, vec![last_piece]].concat();
        let stream = bytes_of(&requests);
        let (first, rest) = stream.split_at(handshake_rest.min(stream.len()));
        let mut inbox = Inbox::new(first.to_vec());
        prop_assert_eq!(run(&mut inbox, rest, &pieces), Ok(requests));
    }

    /// A buffer that another connection has used is as good as a new one.
    #[test]
    fn connections_that_share_buffers_share_no_bytes(
        all in prop::collection::vec(prop::collection::vec(any_request(), 0..4), 2..4),
        pieces in prop::collection::vec(any_piece(), 1..5),
        turns in prop::collection::vec(0..4_usize, 1..200),
    ) {
        let mut spares = Spares::default();
        let streams: Vec<Vec<u8>> = all.iter().map(|requests| bytes_of(requests)).collect();
        let mut inboxes: Vec<Inbox> = all.iter().map(|_| Inbox::default()).collect();
        let mut sent = vec![0; all.len()];
        let mut got = vec![Vec::new(); all.len()];
        let mut pieces = pieces.into_iter().cycle();
        // At the end each gets what is left for it.
        let last = (0..all.len()).flat_map(|one| std::iter::repeat_n(one, 4));
        for (turn, is_last) in turns.into_iter().map(|turn| (turn, false)).chain(last.map(|one| (one, true))) {
            let one = turn % all.len();
            let left = &streams[one][sent[one]..];
            let piece = if is_last { left.len() } else { pieces.next().expect("a cycle") };
            let part = &left[..piece.min(left.len())];
            sent[one] += part.len();
            let pieces = [part.len().max(1), 0];
            got[one].extend(run_with(&mut inboxes[one], &mut spares, part, &pieces).expect("well-formed"));
            if inboxes[one].waits == Waits::Bytes {
                fall_idle(&mut inboxes[one], &mut spares);
            }
        }
        prop_assert_eq!(got, all);
    }

    #[test]
    fn bytes_of_any_kind_are_requests_or_a_violation(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        has_magic: bool,
        command in 0..3_u16,
    ) {
        let mut stream = bytes;
        if has_magic && stream.len() >= 8 {
            stream[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
            stream[6..8].copy_from_slice(&command.to_be_bytes());
        }
        drop(run(&mut Inbox::new(Vec::new()), &stream, &[100]));
    }

    /// Room comes and goes while a read is out: nothing is lost, nothing changes its place.
    #[test]
    fn waiting_for_room_loses_nothing(
        requests in prop::collection::vec(any_request(), 1..12),
        rooms in prop::collection::vec(any::<(bool, bool)>(), 1..50),
    ) {
        let stream = bytes_of(&requests);
        let mut rest = stream.as_slice();
        let mut inbox = Inbox::new(Vec::new());
        let mut spares = Spares::default();
        let mut out = Vec::new();
        let mut lent: Option<Vec<u8>> = None;
        // At the end there is always room, and always something that has arrived.
        let rooms = rooms.into_iter().chain(std::iter::repeat_n((true, true), 200));
        for (has_room, has_arrived) in rooms {
            if let Some(mut buffer) = lent.take() {
                if has_arrived {
                    let spare = buffer.capacity() - buffer.len();
                    let count = spare.min(rest.len()).min(50_000);
                    buffer.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                    inbox.put(buffer, &mut spares);
                } else {
                    inbox.put_unread(buffer, &mut spares);
                }
            }
            // Looked at before anything is lent, and again while it is.
            for _ in 0..2 {
                while let Some(request) = inbox.next(|_| has_room).expect("well-formed") {
                    out.push(request);
                }
                if lent.is_none() {
                    lent = inbox.lend(&mut spares);
                }
            }
        }
        prop_assert_eq!(out, requests);
    }
}

#[test]
fn reading_ahead_of_a_request_without_room_is_bounded() {
    let all = vec![write(4096, 1); 1000];
    let stream = bytes_of(&all);
    let mut inbox = Inbox::new(Vec::new());
    let mut spares = Spares::default();
    let mut rest = stream.as_slice();
    while inbox.next(|_| false).expect("well-formed").is_none() {
        let Some(mut buffer) = inbox.lend(&mut spares) else {
            break;
        };
        let count = (buffer.capacity() - buffer.len()).min(rest.len());
        buffer.extend_from_slice(&rest[..count]);
        rest = &rest[count..];
        inbox.put(buffer, &mut spares);
    }
    let read = stream.len() - rest.len();
    assert!(
        (AHEAD_BYTES_MAX..AHEAD_BYTES_MAX + LARGE_BUFFER_BYTES).contains(&read),
        "{read}"
    );
    // What was read ahead goes, and the memory that it took is nobody's then.
    let got = run_with(&mut inbox, &mut spares, rest, &[usize::MAX]);
    assert_eq!(got, Ok(all));
    fall_idle(&mut inbox, &mut spares);
    let (of_connection, spare) = held(&inbox, &spares);
    assert_eq!(of_connection, 0);
    assert!(spare < AHEAD_BYTES_MAX, "{spare} bytes");
}

#[test]
fn a_write_that_is_too_long_comes_without_its_payload() {
    let mut long = write(wire::REQUEST_BYTES_MAX + 1, 7);
    let stream = bytes_of(&[long.clone(), write(512, 1)]);
    long.payload = Bytes::new();
    let mut inbox = Inbox::new(Vec::new());
    let requests = run(&mut inbox, &stream, &[usize::MAX]);
    assert_eq!(requests, Ok(vec![long, write(512, 1)]));
    assert!(inbox.buffer.capacity() <= LARGE_BUFFER_BYTES);
}

#[test]
fn a_write_beyond_all_measure_is_a_violation() {
    let stream = header(command::WRITE, SKIPPED_BYTES_MAX + 1).encode();
    assert_eq!(
        run(&mut Inbox::new(Vec::new()), &stream, &[1]),
        Err(Violation::WriteTooLong(SKIPPED_BYTES_MAX + 1))
    );
}

#[test]
fn a_payload_that_was_promised_and_not_sent_takes_no_memory() {
    let stream = header(command::WRITE, 4096).encode();
    let mut inbox = Inbox::new(Vec::new());
    let mut spares = Spares::default();
    assert_eq!(
        run_with(&mut inbox, &mut spares, &stream, &[100]),
        Ok(vec![])
    );
    fall_idle(&mut inbox, &mut spares);
    assert_eq!(inbox.buffer.capacity(), REQUEST_HEADER_BYTES);
}

#[test]
fn a_socket_that_fills_more_than_the_payload_is_cut_off() {
    let requests = [write(100_000, 1), write(512, 2)];
    let stream = bytes_of(&requests);
    let mut inbox = Inbox::new(stream[..REQUEST_HEADER_BYTES].to_vec());
    assert_eq!(inbox.next(|_| true), Ok(None));
    let mut spares = Spares::default();
    let mut payload = inbox.lend(&mut spares).expect("the payload is missing");
    payload.extend_from_slice(&stream[REQUEST_HEADER_BYTES..]);
    inbox.put(payload, &mut spares);
    assert_eq!(inbox.next(|_| true), Ok(Some(requests[0].clone())));
    assert_eq!(inbox.next(|_| true), Ok(Some(requests[1].clone())));
}

/// A thousand idle connections must not hold what each of them once needed, nor what one needs.
#[test]
fn a_thousand_connections_that_were_busy_hold_no_buffer() {
    let mut spares = Spares::default();
    let mut idle = Vec::new();
    for _ in 0..1000 {
        let mut inbox = Inbox::default();
        let got = run_with(&mut inbox, &mut spares, &bytes_of(&burst()), &[usize::MAX]);
        assert_eq!(got, Ok(burst()));
        assert!(inbox.buffer.capacity() > SMALL_BUFFER_BYTES, "no burst");
        fall_idle(&mut inbox, &mut spares);
        idle.push(inbox);
    }
    let of_all: usize = idle.iter().map(|inbox| held(inbox, &spares).0).sum();
    assert_eq!(of_all, 0);
    // They took turns with one of each size.
    assert_eq!(spares.count(), 2);
}

#[test]
fn spare_buffers_are_bounded() {
    let mut spares = Spares::default();
    let mut busy = Vec::new();
    for _ in 0..3 * SPARES_MAX {
        let mut inbox = Inbox::default();
        run_with(&mut inbox, &mut spares, &bytes_of(&burst()), &[usize::MAX]).expect("well-formed");
        busy.push(inbox);
    }
    for inbox in &mut busy {
        fall_idle(inbox, &mut spares);
    }
    assert_eq!(spares.large.len(), SPARES_MAX);
    assert!(spares.small.len() <= SPARES_MAX);
}

/// Depth 1 costs no memory that has to be made and freed again for each request.
#[test]
fn a_request_at_depth_one_comes_into_a_buffer_that_was_there() {
    let mut spares = Spares::default();
    let mut inbox = Inbox::default();
    let mut places = Vec::new();
    for fill in 0..10 {
        let one = [write(4096, fill)];
        let got = run_with(&mut inbox, &mut spares, &bytes_of(&one), &[usize::MAX]);
        assert_eq!(got, Ok(one.to_vec()));
        fall_idle(&mut inbox, &mut spares);
        places.push(spares.small[0].as_ptr());
    }
    assert_eq!((spares.small.len(), spares.large.len()), (1, 0));
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
}

/// The half of a request that is here is kept, and the buffer around it is not.
#[test]
fn a_connection_that_waits_for_the_rest_of_a_request_holds_what_is_here_of_it() {
    let all = [burst(), burst()].concat();
    let stream = bytes_of(&all);
    let half = stream.len() / 2 + 2000;
    let mut spares = Spares::default();
    let mut inbox = Inbox::default();
    let first = run_with(&mut inbox, &mut spares, &stream[..half], &[usize::MAX]);
    fall_idle(&mut inbox, &mut spares);
    assert_eq!(inbox.buffer.capacity(), 2000);
    let second = run_with(&mut inbox, &mut spares, &stream[half..], &[usize::MAX]);
    let got = [first.expect("well-formed"), second.expect("well-formed")].concat();
    assert_eq!(got, all);
}

/// Bytes that land in the buffer are copied out of it, so of a large payload few should.
#[test]
fn large_payloads_come_into_their_own_memory_also_behind_a_burst() {
    let mut spares = Spares::default();
    let mut inbox = Inbox::default();
    let busy = bytes_of(&burst());
    run_with(&mut inbox, &mut spares, &busy, &[usize::MAX]).expect("well-formed");
    for _ in 0..3 {
        let one = [write(1 << 20, 3)];
        let got = run_with(&mut inbox, &mut spares, &bytes_of(&one), &[usize::MAX]);
        assert_eq!(got, Ok(one.to_vec()));
        fall_idle(&mut inbox, &mut spares);
        assert_eq!(inbox.size, Size::Small);
    }
}
