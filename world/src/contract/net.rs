//! Sockets.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use crate::sync::oneshot;
use crate::{Address, Listener, Peer, Stream, World};

/// More than any pair of socket buffers holds.
const FLOOD_BYTES: usize = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// Connections to `address`, where nobody may listen yet (a TCP port may be 0), carry bytes in
/// order, in both directions at once, and end when they are told to.
pub async fn net<W: World>(world: W, address: &Address) {
    let listener = world.listen(address).await.expect("the address is free");
    let bound = listener.address();
    if let Address::Tcp(addr) = &bound {
        assert_ne!(addr.port(), 0, "the port that was chosen is told");
    }
    let second = world.listen(&bound).await;
    let error = second.expect_err("the address is taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);

    Box::pin(bytes_and_ends(&world, &listener)).await;
    Box::pin(waits_without_a_buffer(&world, &listener)).await;
    Box::pin(slow_reader(&world, &listener)).await;
    Box::pin(both_directions(&world, &listener)).await;
    Box::pin(shutdown_wakes(&world, &listener)).await;
    Box::pin(many(&world, &listener)).await;

    drop(listener);
    let refused = world.connect(&bound).await;
    assert!(refused.is_err(), "nobody listens any more");
    let again = world.listen(&bound).await;
    drop(again.expect("the address is free again"));
}

/// A client and its server end.
async fn pair<W: World>(world: &W, listener: &W::Listener) -> (W::Stream, W::Stream) {
    let address = listener.address();
    let both = futures_util::future::join(world.connect(&address), listener.accept()).await;
    (both.0.expect("connected"), both.1.expect("accepted"))
}

async fn send<S: Stream>(stream: &S, bytes: &[u8]) {
    let sent = stream.write_all(&mut [IoSlice::new(bytes)]).await;
    sent.expect("sent");
}

async fn receive<S: Stream>(stream: &S, len: usize) -> Vec<u8> {
    let mut got = Vec::with_capacity(len);
    while got.len() < len {
        let count = stream.read(&mut got).await.expect("received");
        assert_ne!(count, 0, "the peer closed after {} bytes", got.len());
    }
    got
}

async fn bytes_and_ends<W: World>(world: &W, listener: &W::Listener) {
    let (client, server) = pair(world, listener).await;
    for stream in [&client, &server] {
        let fits = matches!(
            (stream.peer(), listener.address()),
            (Peer::Process { .. }, Address::Unix(_)) | (Peer::Host(_), Address::Tcp(_))
        );
        assert!(fits, "{:?} at {:?}", stream.peer(), listener.address());
    }
    // Parts go out in order, empty ones and many of them too.
    let parts: Vec<Vec<u8>> = (0..=255)
        .cycle()
        .zip(0..3000)
        .map(|(byte, number)| vec![byte; number % 7])
        .collect();
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    client.write_all(&mut slices).await.expect("sent");
    client.write_all(&mut []).await.expect("nothing to send");
    let mut empty = [IoSlice::new(b""), IoSlice::new(b"")];
    client.write_all(&mut empty).await.expect("nothing to send");
    let all = parts.concat();
    assert_eq!(receive(&server, all.len()).await, all);

    // A read appends, and only into the room that there is.
    send(&server, b"abcdef").await;
    let mut got = Vec::with_capacity(16);
    got.extend_from_slice(b"0123456789abc");
    let room = got.capacity() - got.len();
    let count = client.read(&mut got).await.expect("received");
    assert!(count >= 1 && count <= room, "{count} bytes into {room}");
    assert!(got.starts_with(b"0123456789abca"));
    assert_eq!(receive(&client, 6 - count).await, b"abcdef"[count..]);

    // What was sent before the end arrives before it.
    send(&client, b"last words").await;
    drop(client);
    assert_eq!(receive(&server, 10).await, b"last words");
    let mut rest = Vec::with_capacity(10);
    assert_eq!(
        server.read(&mut rest).await.expect("the end is no error"),
        0
    );
    assert!(rest.is_empty());
}

/// Who waits for bytes without room for them hears of them and of the end, and misses nothing.
async fn waits_without_a_buffer<W: World>(world: &W, listener: &W::Listener) {
    let (client, server) = pair(world, listener).await;
    let mut got = Vec::with_capacity(64);
    for round in 0..20_u8 {
        let early = server.read_now(&mut got).await.expect("it is open");
        assert_eq!(early, None, "nothing was sent");
        {
            // One that is given up.
            let mut waiting = pin!(server.readable());
            let look = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(look.await, "nothing was sent");
        }
        let (heard, told) = oneshot::channel();
        let both = futures_util::future::join(
            async {
                server.readable().await.expect("it is open");
                heard.send(()).expect("the other half waits");
            },
            async {
                send(&client, &[round; 3]).await;
                told.await.expect("it hears of the bytes");
            },
        );
        both.await;
        got.clear();
        while got.len() < 3 {
            // Bytes that are here are announced again and again.
            server.readable().await.expect("it is open");
            let count = server.read_now(&mut got).await.expect("it is open");
            assert_ne!(count, Some(0), "it is open");
        }
        assert_eq!(got, [round; 3]);
        got.clear();
    }
    drop(client);
    let end = loop {
        server.readable().await.expect("the end is no error");
        if let Some(end) = server.read_now(&mut got).await.expect("nor is it here") {
            break end;
        }
    };
    assert_eq!(end, 0);
}

/// A writer waits for a reader that takes its time.
async fn slow_reader<W: World>(world: &W, listener: &W::Listener) {
    let (client, server) = pair(world, listener).await;
    let sent = Rc::new(Cell::new(0));
    let (end, ended) = oneshot::channel();
    let count = Rc::clone(&sent);
    world.spawn(async move {
        let piece = vec![5; PIECE_BYTES];
        for _ in 0..FLOOD_BYTES / PIECE_BYTES {
            send(&client, &piece).await;
            count.set(count.get() + piece.len());
        }
        end.send(()).expect("the suite waits");
    });
    for _ in 0..1000 {
        world.yield_now().await;
    }
    assert!(sent.get() < FLOOD_BYTES, "nobody has read, yet all is sent");
    let mut read = 0;
    let mut room = Vec::with_capacity(PIECE_BYTES);
    while read < FLOOD_BYTES {
        room.clear();
        let count = server.read(&mut room).await.expect("received");
        assert_ne!(count, 0, "the end came after {read} bytes");
        assert!(room.iter().all(|&byte| byte == 5));
        read += count;
    }
    ended.await.expect("the writer ends");
    assert_eq!(
        server.read(&mut room).await.ok(),
        Some(0),
        "and then the end"
    );
}

/// Both ends write more than fits while both read: neither waits for the other.
async fn both_directions<W: World>(world: &W, listener: &W::Listener) {
    let (client, server) = pair(world, listener).await;
    let mut ends = Vec::new();
    for stream in [Rc::new(client), Rc::new(server)] {
        let (end, ended) = oneshot::channel();
        ends.push(ended);
        world.spawn(async move {
            let piece = vec![6; PIECE_BYTES];
            let write = async {
                for _ in 0..FLOOD_BYTES / PIECE_BYTES / 4 {
                    send(&*stream, &piece).await;
                }
            };
            let read = receive(&*stream, FLOOD_BYTES / 4);
            let ((), got) = futures_util::future::join(write, read).await;
            end.send(got.len()).expect("the suite waits");
            // Kept until both are done: closing would cut off what the other has not read.
        });
    }
    for ended in ends {
        assert_eq!(ended.await.expect("no deadlock"), FLOOD_BYTES / 4);
    }
}

/// A shutdown ends a read and a write that wait, and all that come.
async fn shutdown_wakes<W: World>(world: &W, listener: &W::Listener) {
    let (client, server) = pair(world, listener).await;
    let client = Rc::new(client);
    let (read_end, read_ended) = oneshot::channel();
    let (write_end, write_ended) = oneshot::channel();
    let (reader, writer) = (Rc::clone(&client), Rc::clone(&client));
    world.spawn(async move {
        let mut got = Vec::with_capacity(10);
        let outcome = reader.read(&mut got).await;
        read_end.send(outcome).expect("the suite waits");
    });
    world.spawn(async move {
        let piece = vec![8; FLOOD_BYTES];
        let outcome = writer.write_all(&mut [IoSlice::new(&piece)]).await;
        write_end.send(outcome).expect("the suite waits");
    });
    for _ in 0..1000 {
        world.yield_now().await;
    }
    client.shutdown();
    let read = read_ended.await.expect("the reader wakes");
    assert!(matches!(read, Ok(0) | Err(_)), "read {read:?}");
    let write = write_ended.await.expect("the writer wakes");
    assert!(write.is_err(), "not all can have been written");

    let mut got = Vec::with_capacity(10);
    let later = client.read(&mut got).await;
    assert!(matches!(later, Ok(0) | Err(_)), "read {later:?}");
    let late = client.write_all(&mut [IoSlice::new(b"late")]).await;
    assert!(late.is_err(), "a write after the shutdown");
    client.shutdown();

    // The peer sees the end, after whatever was sent.
    let mut room = Vec::with_capacity(PIECE_BYTES);
    while let Ok(1..) = server.read(&mut room).await {
        room.clear();
    }
}

/// Connections do not mix.
async fn many<W: World>(world: &W, listener: &W::Listener) {
    const CONNECTIONS: u8 = 50;
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        pairs.push(pair(world, listener).await);
    }
    for (number, (client, _)) in (0_u8..).zip(&pairs) {
        send(client, &[number; 100]).await;
    }
    let echoes = pairs.iter().map(|(_, server)| async move {
        let got = receive(server, 100).await;
        send(server, &got).await;
    });
    futures_util::future::join_all(echoes).await;
    for (number, (client, _)) in (0_u8..).zip(&pairs) {
        assert_eq!(receive(client, 100).await, [number; 100]);
    }
}
