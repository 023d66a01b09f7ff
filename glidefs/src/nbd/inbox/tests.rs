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
            .lend()
            .expect("everything there was has been looked at");
        let spare = buffer.capacity() - buffer.len();
        assert!(spare > 0, "lent a full buffer");
        let count = spare.min(rest.len()).min(*pieces.next().expect("a cycle"));
        buffer.extend_from_slice(&rest[..count]);
        rest = &rest[count..];
        inbox.put(buffer);
    }
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_come_out_as_sent_however_the_stream_is_cut(
        requests in prop::collection::vec(any_request(), 0..12),
        pieces in prop::collection::vec(1..100_000_usize, 1..5),
        handshake_rest in 0..200_usize,
    ) {
        let stream = bytes_of(&requests);
        let (first, rest) = stream.split_at(handshake_rest.min(stream.len()));
        let mut inbox = Inbox::new(first.to_vec());
        prop_assert_eq!(run(&mut inbox, rest, &pieces), Ok(requests));
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
        rooms in prop::collection::vec(any::<bool>(), 1..50),
    ) {
        let stream = bytes_of(&requests);
        let mut rest = stream.as_slice();
        let mut inbox = Inbox::new(Vec::new());
        let mut out = Vec::new();
        let mut lent: Option<Vec<u8>> = None;
        // At the end there is always room.
        let rooms = rooms.into_iter().chain(std::iter::repeat_n(true, 200));
        for has_room in rooms {
            if let Some(mut buffer) = lent.take() {
                let spare = buffer.capacity() - buffer.len();
                let count = spare.min(rest.len()).min(50_000);
                buffer.extend_from_slice(&rest[..count]);
                rest = &rest[count..];
                inbox.put(buffer);
            }
            // Looked at before anything is lent, and again while it is.
            for _ in 0..2 {
                while let Some(request) = inbox.next(|_| has_room).expect("well-formed") {
                    out.push(request);
                }
                if lent.is_none() {
                    lent = inbox.lend();
                }
            }
        }
        prop_assert_eq!(out, requests);
    }
}

#[test]
fn reading_ahead_of_a_request_without_room_is_bounded() {
    let stream = bytes_of(&vec![write(4096, 1); 1000]);
    let mut inbox = Inbox::new(Vec::new());
    let mut rest = stream.as_slice();
    while inbox.next(|_| false).expect("well-formed").is_none() {
        let Some(mut buffer) = inbox.lend() else {
            break;
        };
        let count = (buffer.capacity() - buffer.len()).min(rest.len());
        buffer.extend_from_slice(&rest[..count]);
        rest = &rest[count..];
        inbox.put(buffer);
    }
    let read = stream.len() - rest.len();
    assert!(
        (AHEAD_BYTES_MAX..AHEAD_BYTES_MAX + BUFFER_BYTES_MAX).contains(&read),
        "{read}"
    );
}

#[test]
fn a_write_that_is_too_long_comes_without_its_payload() {
    let mut long = write(wire::REQUEST_BYTES_MAX + 1, 7);
    let stream = bytes_of(&[long.clone(), write(512, 1)]);
    long.payload = Bytes::new();
    let mut inbox = Inbox::new(Vec::new());
    let requests = run(&mut inbox, &stream, &[usize::MAX]);
    assert_eq!(requests, Ok(vec![long, write(512, 1)]));
    assert!(inbox.buffer.capacity() <= BUFFER_BYTES_MAX);
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
    assert_eq!(run(&mut inbox, &stream, &[100]), Ok(vec![]));
    assert!(inbox.buffer.capacity() <= BUFFER_BYTES_MIN);
}

#[test]
fn a_socket_that_fills_more_than_the_payload_is_cut_off() {
    let requests = [write(100_000, 1), write(512, 2)];
    let stream = bytes_of(&requests);
    let mut inbox = Inbox::new(stream[..REQUEST_HEADER_BYTES].to_vec());
    assert_eq!(inbox.next(|_| true), Ok(None));
    let mut payload = inbox.lend().expect("the payload is missing");
    payload.extend_from_slice(&stream[REQUEST_HEADER_BYTES..]);
    inbox.put(payload);
    assert_eq!(inbox.next(|_| true), Ok(Some(requests[0].clone())));
    assert_eq!(inbox.next(|_| true), Ok(Some(requests[1].clone())));
}

/// A thousand idle connections must not hold what each of them once needed.
#[test]
fn a_buffer_that_grew_under_load_is_given_back_once_the_client_is_quiet() {
    let mut inbox = Inbox::default();
    let busy: Vec<Request> = std::iter::repeat_n(write(4096, 7), 400).collect();
    let got = run(&mut inbox, &bytes_of(&busy), &[usize::MAX]);
    assert_eq!(got, Ok(busy));
    let grown = inbox.buffer.capacity();
    assert!(grown > 100 << 10, "{grown} bytes");
    for fill in 0..40 {
        let one = vec![write(4096, fill)];
        let got = run(&mut inbox, &bytes_of(&one), &[usize::MAX]);
        assert_eq!(got, Ok(one));
    }
    let left = inbox.buffer.capacity();
    assert!(left <= 2 * BUFFER_BYTES_MIN, "{left} bytes");
}
