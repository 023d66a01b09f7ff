//! A client's view of the whole server: bytes in, bytes out.

use std::task::Waker;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::device::{Access, IoError, RunKind};
use crate::nbd::ORPHAN_TIMEOUT;
use crate::nbd::testing::{Client, House, run};
use crate::nbd::wire::{self, Cursor, Errno, RequestHeader, chunk, flag, option, reply};

const MIB: u32 = 1 << 20;

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short");
    let mut bytes = OptionHeader { option, length }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    wire::push_string(&mut data, name);
    data.extend_from_slice(rest);
    data
}

fn go(name: &str) -> Vec<u8> {
    option_bytes(option::GO, &named(name, &[0, 0]))
}

fn greeted(house: &House) -> Client {
    let client = house.client();
    assert_eq!(client.hear(), Handshake::greeting());
    assert_eq!(client.talk(&[0, 0, 0, 3]), b"");
    client
}

/// Kind of the last reply to options that is in the bytes.
fn last_kind(bytes: &[u8]) -> u32 {
    let mut cursor = Cursor::new(bytes);
    let mut last = None;
    while !cursor.is_empty() {
        cursor.bytes(12).expect("magic and option");
        last = cursor.u32();
        let length = usize::try_from(cursor.u32().expect("length")).expect("64 bits");
        cursor.bytes(length).expect("data");
    }
    last.expect("a reply")
}

fn plain(house: &House) -> Client {
    let client = greeted(house);
    assert_eq!(last_kind(&client.talk(&go("disk"))), reply::ACK);
    client
}

fn structured(house: &House) -> Client {
    let client = greeted(house);
    client.talk(&option_bytes(option::STRUCTURED_REPLY, &[]));
    let mut query = 1_u32.to_be_bytes().to_vec();
    wire::push_string(&mut query, "base:allocation");
    let set = option_bytes(option::SET_META_CONTEXT, &named("disk", &query));
    assert_eq!(last_kind(&client.talk(&set)), reply::ACK);
    assert_eq!(last_kind(&client.talk(&go("disk"))), reply::ACK);
    client
}

fn ask(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let header = RequestHeader {
        flags,
        command,
        cookie,
        offset,
        length,
    };
    header.encode().to_vec()
}

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short");
    let mut bytes = ask(command::WRITE, 0, cookie, offset, length);
    bytes.extend_from_slice(data);
    bytes
}

fn ok(cookie: u64) -> Vec<u8> {
    wire::simple_reply(cookie, 0).to_vec()
}

fn failed(cookie: u64, errno: Errno) -> Vec<u8> {
    wire::simple_reply(cookie, errno.number()).to_vec()
}

/// Flags, kind and data of the one chunk in the bytes.
fn one_chunk(bytes: &[u8], cookie: u64) -> (u16, Vec<u8>) {
    let mut cursor = Cursor::new(bytes);
    assert_eq!(cursor.u32(), Some(wire::CHUNK_MAGIC));
    assert_eq!(cursor.u16(), Some(chunk::DONE));
    let kind = cursor.u16().expect("kind");
    assert_eq!(cursor.u64(), Some(cookie));
    let length = usize::try_from(cursor.u32().expect("length")).expect("64 bits");
    let data = cursor.bytes(length).expect("data").to_vec();
    assert!(cursor.is_empty(), "more than one chunk");
    (kind, data)
}

#[test]
fn what_was_written_is_read_by_simple_replies() {
    let house = House::new();
    let client = plain(&house);
    let data = vec![7; 1024];
    assert_eq!(client.talk(&write(1, 512, &data)), ok(1));
    let mut expected = ok(2);
    expected.extend_from_slice(&[0; 512]);
    expected.extend_from_slice(&data);
    assert_eq!(client.talk(&ask(command::READ, 0, 2, 0, 1536)), expected);
    let asked = ["write 512+1024 No", "read 0+1536"];
    assert_eq!(*house.device.asked.borrow(), asked);
}

#[test]
fn every_command_reaches_the_device() {
    let house = House::new();
    let client = structured(&house);
    let mut fua = write(1, 0, &[1; 512]);
    fua[5] = 1;
    let all = [
        fua,
        ask(command::FLUSH, 0, 2, 0, 0),
        ask(command::TRIM, 0, 3, 512, 512),
        ask(command::CACHE, 0, 4, 0, 4096),
        ask(
            command::WRITE_ZEROES,
            flag::FUA | flag::FAST_ZERO,
            5,
            0,
            512,
        ),
        ask(command::READ, flag::DF, 6, 0, 512),
    ];
    let mut bytes = client.talk(&all.concat());
    let read = bytes.split_off(5 * wire::CHUNK_HEADER_BYTES);
    for (index, done) in bytes.chunks(wire::CHUNK_HEADER_BYTES).enumerate() {
        let cookie = u64::try_from(index).expect("small") + 1;
        assert_eq!(one_chunk(done, cookie), (chunk::NONE, vec![]));
    }
    assert_eq!(one_chunk(&read, 6), (chunk::OFFSET_DATA, vec![0; 520]));
    let asked = [
        "write 0+512 Yes",
        "flush",
        "zero 512+512 No",
        "prefetch 0+4096",
        "zero 0+512 Yes",
        "read 0+512",
    ];
    assert_eq!(*house.device.asked.borrow(), asked);
}

#[test]
fn a_read_may_begin_and_end_anywhere() {
    let house = House::new();
    let client = plain(&house);
    client.talk(&write(1, 0, &[5; 1024]));
    let answer = client.talk(&ask(command::READ, 0, 2, 1000, 100));
    assert_eq!(answer[16..], [[5; 24].as_slice(), &[0; 76]].concat());
}

#[test]
fn block_status_tells_data_from_holes() {
    let house = House::new();
    let client = structured(&house);
    *house.device.runs.borrow_mut() = vec![
        run(4096, RunKind::Data),
        run(4096, RunKind::Hole),
        run(1 << 30, RunKind::Hole),
    ];
    let (kind, data) = one_chunk(&client.talk(&ask(command::BLOCK_STATUS, 0, 9, 0, MIB)), 9);
    let words: Vec<u32> = data
        .chunks(4)
        .map(|word| Cursor::new(word).u32().expect("four bytes"))
        .collect();
    assert_eq!(kind, chunk::BLOCK_STATUS);
    assert_eq!(words, [1, 4096, 0, MIB - 4096, 3]);
    let one = ask(command::BLOCK_STATUS, flag::REQ_ONE, 10, 0, MIB);
    assert_eq!(one_chunk(&client.talk(&one), 10).1.len(), 12);
}

#[test]
fn faults_have_their_numbers_and_words() {
    let house = House::new();
    let (simple, modern) = (plain(&house), structured(&house));
    for (fault, errno) in [
        (IoError::ReadOnly, Errno::NotPermitted),
        (IoError::NoSpace, Errno::NoSpace),
        (IoError::Shutdown, Errno::Shutdown),
        (IoError::Io, Errno::Io),
    ] {
        house.device.fault.set(Some(fault));
        assert_eq!(simple.talk(&write(3, 0, &[0; 512])), failed(3, errno));
        let (kind, data) = one_chunk(&modern.talk(&ask(command::READ, 0, 4, 0, 512)), 4);
        assert_eq!(kind, chunk::ERROR);
        assert_eq!(data[..4], errno.number().to_be_bytes());
        assert_eq!(data[6..], *fault.to_string().as_bytes());
    }
}

#[test]
fn bad_requests_are_refused_and_the_next_is_served() {
    let house = House::new();
    let client = plain(&house);
    for (bad, errno) in [
        (write(1, 1, &[0; 512]), Errno::Invalid),
        (write(1, 64 << 20, &[0; 512]), Errno::NoSpace),
        (ask(command::READ, 0, 1, 64 << 20, 512), Errno::Invalid),
        (ask(command::READ, 0, 1, 0, 33 * MIB), Errno::Invalid),
        (ask(99, 0, 1, 0, 0), Errno::Invalid),
        (ask(command::FLUSH, 0x8000, 1, 0, 0), Errno::Invalid),
        (ask(command::BLOCK_STATUS, 0, 1, 0, 512), Errno::Invalid),
        (write(1, 0, &vec![0; 33 << 20]), Errno::Invalid),
    ] {
        assert_eq!(client.talk(&bad), failed(1, errno));
    }
    house.device.access.set(Access::ReadOnly);
    let refused = failed(1, Errno::NotPermitted);
    assert_eq!(client.talk(&write(1, 0, &[0; 512])), refused);
    assert_eq!(client.talk(&ask(command::FLUSH, 0, 2, 0, 0)), ok(2));
    assert_eq!(*house.device.asked.borrow(), ["flush"]);
}

#[test]
fn a_bad_magic_closes_the_connection_and_no_other() {
    let house = House::new();
    let (bad, good) = (plain(&house), plain(&house));
    bad.talk(&[0; wire::REQUEST_HEADER_BYTES]);
    assert!(bad.is_closed());
    assert_eq!(good.talk(&ask(command::FLUSH, 0, 2, 0, 0)), ok(2));
}

#[test]
fn a_request_at_depth_one_costs_one_read_and_one_write() {
    let house = House::new();
    let client = plain(&house);
    let (reads, writes) = client.moves();
    assert_eq!(client.talk(&write(1, 0, &[1; 4096])), ok(1));
    assert_eq!(client.moves(), (reads + 1, writes + 1));
}

#[test]
fn many_answers_leave_in_one_write() {
    let house = House::new();
    let client = plain(&house);
    let (_, writes) = client.moves();
    let requests: Vec<u8> = (0..16)
        .flat_map(|cookie| ask(command::READ, 0, cookie, 0, 512))
        .collect();
    assert_eq!(client.talk(&requests).len(), 16 * (16 + 512));
    assert_eq!(client.moves().1, writes + 1);
}

/// What the device answers to one request.
fn reply_to(house: &House, command: u16, length: u32) -> Reply {
    let header = RequestHeader {
        flags: 0,
        command,
        cookie: 1,
        offset: 0,
        length,
    };
    let payload = bytes::Bytes::new();
    let request = Request { header, payload };
    let answer = request::answer(Rc::clone(&house.device), Features::default(), request);
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(answer).poll(&mut cx) {
        Poll::Ready(reply) => reply,
        Poll::Pending => panic!("the device answers at once"),
    }
}

/// The replies that go out next.
fn gather(line: &Line<std::future::Ready<Worked>>) -> VecDeque<Reply> {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(line.gather()).poll(&mut cx) {
        Poll::Ready(Some(batch)) => batch,
        Poll::Ready(None) | Poll::Pending => panic!("replies wait"),
    }
}

#[test]
fn a_burst_of_answers_leaves_in_bounded_writes_and_leaves_no_memory_behind() {
    let house = House::new();
    let line = Line::new(Vec::new(), Limits::default());
    let short = reply_to(&house, command::FLUSH, 0);
    line.replies
        .borrow_mut()
        .extend(vec![short; GATHERED_REPLIES_MAX + 9]);
    assert_eq!(gather(&line).len(), GATHERED_REPLIES_MAX);
    assert_eq!(gather(&line).len(), 9);
    assert_eq!(line.replies.borrow().capacity(), 0);
    let long = reply_to(&house, command::READ, 3 * MIB);
    line.replies.borrow_mut().extend(vec![long; 5]);
    let batches = [(); 3].map(|()| gather(&line).len());
    assert_eq!(batches, [2, 2, 1]);
}

/// A thousand idle clients must not hold what each of them once needed.
#[test]
fn clients_that_wait_hold_no_buffer_of_the_burst_before() {
    let house = House::new();
    let clients: Vec<Client> = (0..20).map(|_| plain(&house)).collect();
    let burst: Vec<u8> = (0..32).flat_map(|n| write(n, 0, &[9; 4096])).collect();
    for client in &clients {
        assert_eq!(client.talk(&burst).len(), 32 * ok(0).len());
    }
    let open_and_spare = || (house.server.connections(), house.server.spare_buffers());
    // They took turns with one small and one large buffer.
    assert_eq!(open_and_spare(), (20, 2));
    for client in &clients {
        assert_eq!(client.talk(&ask(command::FLUSH, 0, 1, 0, 0)), ok(1));
    }
    assert_eq!(open_and_spare(), (20, 2));
}

#[test]
fn reads_and_flushes_overtake_stalled_writes() {
    let house = House::new();
    let client = plain(&house);
    house.device.stall_writes(true);
    let stalled: Vec<u8> = (0..100).flat_map(|n| write(n, 0, &[9; 4096])).collect();
    assert_eq!(client.talk(&stalled), b"");
    assert_eq!(client.talk(&ask(command::FLUSH, 0, 500, 0, 0)), ok(500));
    let answer = client.talk(&ask(command::READ, 0, 501, 0, 512));
    assert_eq!(answer, [ok(501), vec![0; 512]].concat());
    house.device.stall_writes(false);
    assert_eq!(client.hear().len(), 100 * ok(0).len());
    assert_eq!(house.device.writes_done.get(), 100);
}

#[test]
fn a_full_pool_stops_reading_and_goes_on_when_there_is_room() {
    let limits = Limits {
        payload_in_flight_max_bytes: 8192,
        ..Limits::default()
    };
    let house = House::with(limits);
    let client = plain(&house);
    house.device.stall_writes(true);
    let many: Vec<u8> = (0..1000).flat_map(|n| write(n, 0, &[9; 4096])).collect();
    assert_eq!(client.talk(&many), b"");
    assert_eq!(house.device.asked.borrow().len(), 2);
    assert!(client.unread() > many.len() / 2, "reading goes on for ever");
    house.device.stall_writes(false);
    assert_eq!(client.hear().len(), 1000 * ok(0).len());
    assert_eq!(client.unread(), 0);
}

#[test]
fn the_number_of_requests_in_flight_is_bounded() {
    let limits = Limits {
        requests_in_flight_max: 3,
        ..Limits::default()
    };
    let house = House::with(limits);
    let client = plain(&house);
    house.device.stall_writes(true);
    let many: Vec<u8> = (0..10).flat_map(|n| write(n, 0, &[9; 512])).collect();
    client.talk(&many);
    assert_eq!(house.device.asked.borrow().len(), 3);
    house.device.stall_writes(false);
    assert_eq!(client.hear().len(), 10 * ok(0).len());
}

#[test]
fn one_request_always_fits() {
    let limits = Limits {
        payload_in_flight_max_bytes: 1,
        ..Limits::default()
    };
    let house = House::with(limits);
    let client = plain(&house);
    assert_eq!(client.talk(&write(1, 0, &vec![1; 32 << 20])), ok(1));
    let answer = client.talk(&ask(command::READ, 0, 2, 0, 32 * MIB));
    assert_eq!(answer.len(), 16 + (32 << 20));
}

#[test]
fn a_client_that_does_not_take_its_answers_is_not_asked_for_more() {
    let limits = Limits {
        payload_in_flight_max_bytes: MIB.into(),
        ..Limits::default()
    };
    let house = House::with(limits);
    let client = plain(&house);
    client.stick(true);
    let reads: Vec<u8> = (0..10)
        .flat_map(|n| ask(command::READ, 0, n, 0, MIB))
        .collect();
    assert_eq!(client.talk(&reads), b"");
    assert_eq!(house.device.asked.borrow().len(), 1);
    client.stick(false);
    assert_eq!(client.hear().len(), 10 * (16 + (1 << 20)));
}

#[test]
fn a_client_that_vanishes_leaves_its_started_writes_behind() {
    let house = House::new();
    let client = plain(&house);
    house.device.stall_writes(true);
    client.talk(&[write(1, 0, &[1; 512]), write(2, 512, &[2; 512])].concat());
    client.vanish();
    assert_eq!(house.server.connections(), 1);
    house.device.stall_writes(false);
    house.world.run();
    assert_eq!(house.device.writes_done.get(), 2);
    assert_eq!(house.server.connections(), 0);
    assert_eq!(Rc::strong_count(&house.device), 2, "a device is kept");
}

#[test]
fn a_client_that_vanishes_does_not_hold_its_export_for_longer_than_the_bound() {
    let house = House::new();
    let client = plain(&house);
    house.device.stall_writes(true);
    client.talk(&[write(1, 0, &[1; 512]), write(2, 512, &[2; 512])].concat());
    client.vanish();
    house.world.advance(ORPHAN_TIMEOUT - Duration::from_secs(1));
    assert_eq!(house.server.connections(), 1, "its writes may still end");
    house.world.advance(Duration::from_secs(2));
    assert_eq!(house.server.connections(), 0);
    assert_eq!(Rc::strong_count(&house.device), 2, "a device is kept");
    house.device.stall_writes(false);
    house.world.run();
    assert_eq!(house.device.writes_done.get(), 0, "a write came late");
}

#[test]
fn a_client_that_is_there_is_waited_for_however_long_its_writes_stall() {
    let house = House::new();
    let client = plain(&house);
    house.device.stall_writes(true);
    assert_eq!(client.talk(&write(1, 0, &[1; 512])), b"");
    house.world.advance(10 * ORPHAN_TIMEOUT);
    assert_eq!(house.server.connections(), 1);
    house.device.stall_writes(false);
    house.world.run();
    assert_eq!(client.hear(), ok(1));
}

#[test]
fn what_a_vanished_client_had_not_started_is_dropped() {
    let limits = Limits {
        requests_in_flight_max: 1,
        ..Limits::default()
    };
    let house = House::with(limits);
    let client = plain(&house);
    house.device.stall_writes(true);
    client.talk(&[write(1, 0, &[1; 512]), write(2, 512, &[2; 512])].concat());
    client.vanish();
    house.device.stall_writes(false);
    house.world.run();
    assert_eq!(house.device.writes_done.get(), 1);
    assert_eq!(house.server.connections(), 0);
}

#[test]
fn half_a_request_harms_nobody() {
    let house = House::new();
    for cut in [3, 28, 100] {
        let client = plain(&house);
        client.talk(&write(1, 0, &[1; 512])[..cut]);
        client.vanish();
    }
    assert_eq!(house.server.connections(), 0);
    assert_eq!(house.device.asked.borrow().len(), 0);
}

#[test]
fn goodbye_waits_for_what_is_in_flight() {
    let house = House::new();
    let client = plain(&house);
    house.device.stall_writes(true);
    let goodbye = ask(command::DISC, 0, 0, 0, 0);
    let behind = ask(command::FLUSH, 0, 9, 0, 0);
    client.talk(&[write(1, 0, &[1; 512]), goodbye, behind].concat());
    assert!(!client.is_closed());
    house.device.stall_writes(false);
    assert_eq!(client.hear(), ok(1), "nothing behind a goodbye is served");
    assert!(client.is_closed());
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_closes() {
    let house = House::new();
    let (busy, idle, greeting) = (plain(&house), plain(&house), house.client());
    house.device.stall_writes(true);
    busy.talk(&write(1, 0, &[1; 512]));
    house.stop.send_replace(true);
    house.world.run();
    assert!(idle.is_closed() && greeting.is_closed());
    assert!(!busy.is_closed() && !house.is_closed.get());
    assert_eq!(busy.talk(&ask(command::FLUSH, 0, 2, 0, 0)), b"");
    house.device.stall_writes(false);
    assert_eq!(busy.hear(), ok(1));
    assert!(busy.is_closed() && house.is_closed.get());
}

#[test]
fn a_client_that_takes_no_answers_cannot_hold_up_a_stop() {
    let house = House::new();
    let client = plain(&house);
    client.stick(true);
    client.talk(&ask(command::READ, 0, 1, 0, 512));
    house.stop.send_replace(true);
    house.world.run();
    assert!(!house.is_closed.get());
    house.world.advance(Limits::default().linger_timeout);
    assert!(house.is_closed.get());
}

#[test]
fn a_slow_handshake_ends_by_its_deadline() {
    let house = House::new();
    let client = greeted(&house);
    let limit = Limits::default().handshake_timeout;
    house.world.advance(limit - Duration::from_millis(1));
    client.talk(b"IHAVE");
    assert!(!client.is_closed());
    house.world.advance(Duration::from_millis(1));
    assert!(client.is_closed());
    let client = plain(&house);
    house.world.advance(limit);
    assert!(!client.is_closed(), "the deadline is for handshakes only");
}

#[test]
fn refused_clients_learn_why_and_may_try_another() {
    let house = House::new();
    let client = greeted(&house);
    for (name, kind) in [
        ("nothing", reply::ERR_UNKNOWN),
        ("invalid", reply::ERR_INVALID),
        ("refused", reply::ERR_POLICY),
        ("unavailable", reply::ERR_SHUTDOWN),
        ("shutdown", reply::ERR_SHUTDOWN),
    ] {
        for option in [option::INFO, option::GO] {
            let answer = client.talk(&option_bytes(option, &named(name, &[0, 0])));
            assert_eq!(last_kind(&answer), kind);
            let text = String::from_utf8_lossy(&answer[wire::OPTION_REPLY_HEADER_BYTES..]);
            let expected = format!("about {name}");
            assert!(text == expected || name == "shutdown", "{text}");
        }
    }
    let info = client.talk(&option_bytes(option::INFO, &named("disk", &[0, 0])));
    assert_eq!(last_kind(&info), reply::ACK);
    assert_eq!(last_kind(&client.talk(&go("disk"))), reply::ACK);
}

#[test]
fn the_old_way_in_serves_or_closes() {
    let house = House::new();
    let client = greeted(&house);
    let answer = client.talk(&option_bytes(option::EXPORT_NAME, b"disk"));
    assert_eq!(answer.len(), 10);
    assert_eq!(client.talk(&ask(command::FLUSH, 0, 1, 0, 0)), ok(1));
    for name in [&b"nothing"[..], b"", b"\xff"] {
        let client = greeted(&house);
        assert_eq!(client.talk(&option_bytes(option::EXPORT_NAME, name)), b"");
        assert!(client.is_closed());
    }
}

#[test]
fn a_client_may_send_everything_at_once() {
    let house = House::new();
    let client = house.client();
    let all = [
        vec![0, 0, 0, 3],
        option_bytes(option::LIST, &[]),
        option_bytes(option::EXPORT_NAME, b"disk"),
        write(1, 0, &[1; 512]),
        ask(command::READ, 0, 2, 0, 512),
        ask(command::DISC, 0, 3, 0, 0),
    ];
    let answer = client.talk(&all.concat());
    assert!(answer.ends_with(&[ok(1), ok(2), vec![1; 512]].concat()));
    assert!(client.is_closed());
}

#[test]
fn abort_and_list_and_long_options_are_answered() {
    let house = House::new();
    let client = greeted(&house);
    let listed = client.talk(&option_bytes(option::LIST, &[]));
    assert_eq!(last_kind(&listed), reply::ACK);
    let long = vec![0; 70_000];
    let answer = client.talk(&option_bytes(option::GO, &long));
    assert_eq!(last_kind(&answer), reply::ERR_TOO_BIG);
    let answer = client.talk(&option_bytes(option::ABORT, &[]));
    assert_eq!(last_kind(&answer), reply::ACK);
    assert!(client.is_closed());
    let client = greeted(&house);
    let endless = OptionHeader {
        option: option::GO,
        length: u32::MAX,
    };
    client.talk(&endless.encode());
    assert!(client.is_closed());
}

#[test]
fn one_connection_too_many_is_closed_at_once() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let house = House::with(limits);
    let (first, second) = (plain(&house), plain(&house));
    let third = house.client();
    assert_eq!(third.hear(), b"");
    assert!(third.is_closed());
    assert_eq!(house.server.connections(), 2);
    first.vanish();
    let fourth = plain(&house);
    assert_eq!(fourth.talk(&ask(command::FLUSH, 0, 1, 0, 0)), ok(1));
    assert_eq!(second.talk(&ask(command::FLUSH, 0, 1, 0, 0)), ok(1));
}

#[test]
fn a_failed_accept_is_tried_again() {
    let house = House::new();
    house.listener.push(Err(io::ErrorKind::OutOfMemory.into()));
    let client = house.client();
    assert_eq!(client.hear(), b"");
    house.world.advance(Duration::from_secs(1));
    assert_eq!(client.hear(), Handshake::greeting());
}

/// What came out of any bytes: the server is still whole.
fn survives(house: &House, bytes: &[u8], client: &Client) {
    client.talk(bytes);
    client.vanish();
    assert_eq!(house.server.connections(), 0);
    let after = plain(house);
    assert_eq!(after.talk(&ask(command::FLUSH, 0, 1, 0, 0)), ok(1));
    after.vanish();
}

/// Bytes that are sometimes what the protocol wants.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let request = (0..10_u16, any::<u16>(), any::<u64>(), any::<u32>()).prop_map(
        |(command, flags, offset, length)| {
            let (flags, offset) = (flags & 0x3f, offset & 0x0fff_ffff);
            ask(command, flags, 1, offset, length & 0xf_ffff)
        },
    );
    let option = (0..13_u32, prop::collection::vec(0..9_u8, 0..40))
        .prop_map(|(option, data)| option_bytes(option, &data));
    let piece = prop_oneof![
        4 => request,
        4 => option,
        1 => prop::collection::vec(any::<u8>(), 0..2000),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_bytes_harm_the_server(bytes in noise(), stage in 0..4) {
        let house = House::new();
        let client = match stage {
            0 => house.client(),
            1 => greeted(&house),
            2 => plain(&house),
            _ => structured(&house),
        };
        survives(&house, &bytes, &client);
    }
}
