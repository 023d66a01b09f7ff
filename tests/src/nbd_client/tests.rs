//! The client and the real server, in simulation.

use std::future::Future;

use futures_util::future::join_all;
use glidefs::nbd::wire::{Errno, export};
use glidefs::nbd::{Limits, Server};
use world::sim::{Sim, SimConfig, SimWorld};
use world::sync::watch;

use super::*;
use crate::memory_exports::MemoryExports;

const SIZE_BYTES: u64 = 16 << 20;

fn at() -> Address {
    Address::Unix("/run/glidefs.sock".into())
}

/// Runs a client's story on the host of a server; then the server must stop, with nobody left.
fn with_server<F: Future<Output = ()>>(story: impl FnOnce(SimWorld) -> F + 'static) {
    let sim = Sim::new(7, SimConfig::default());
    let host = sim.host("node");
    let done = sim.block_on(host, |world| async move {
        let (stop, stopped) = watch::channel(false);
        let exports = Rc::new(MemoryExports::new(SIZE_BYTES));
        let server = Server::new(world.clone(), exports, Limits::default(), stopped);
        let listener = world.listen(&at()).await.expect("a free address");
        let (ended, end) = oneshot::channel();
        let serving = server.clone();
        world.spawn(async move {
            serving.serve(listener).await;
            ended.send(()).expect("the story waits for the end");
        });
        story(world).await;
        stop.send_replace(true);
        end.await.expect("the server ends by itself");
        assert_eq!(server.connections(), 0);
    });
    assert_eq!(done.expect("not stuck"), Some(()));
    sim.end();
}

async fn connect(world: &SimWorld, options: Options) -> NbdClient<SimWorld> {
    NbdClient::connect(world, &at(), MemoryExports::NAME, options)
        .await
        .expect("the export is there")
}

#[test]
fn every_handshake_leads_to_a_disk() {
    with_server(async |world| {
        for options in [Options::Modern, Options::Simple, Options::Old] {
            let client = connect(&world, options).await;
            assert_eq!(client.size_bytes(), SIZE_BYTES);
            assert_ne!(client.export().flags & export::CAN_MULTI_CONN, 0);
            client.write(512, vec![1; 1024]).await.expect("write");
            client.write_fua(1024, vec![2; 512]).await.expect("write");
            client.cache(0, 4096).await.expect("cache");
            client.flush().await.expect("flush");
            let data = client.read(0, 2048).await.expect("read");
            let expected = [[0; 512], [1; 512], [2; 512], [0; 512]].concat();
            assert_eq!(data, expected);
            client.zero(512, 512).await.expect("zero");
            client.trim(1024, 512).await.expect("trim");
            assert_eq!(client.read(0, 2048).await.expect("read"), [0; 2048]);
            client.disconnect().await;
            assert!(client.is_closed());
        }
    });
}

#[test]
fn block_status_finds_what_was_written() {
    with_server(async |world| {
        let client = connect(&world, Options::Modern).await;
        client.write(8192, vec![1; 4096]).await.expect("write");
        let extents = client.block_status(0, 1 << 20).await.expect("status");
        assert_eq!(extents, [(8192, 3), (4096, 0), ((1 << 20) - 12288, 3)]);
    });
}

#[test]
fn many_requests_are_in_flight_on_many_connections() {
    with_server(async |world| {
        let (first, second) = (
            connect(&world, Options::Modern).await,
            connect(&world, Options::Simple).await,
        );
        let writes = (0..200_u8).map(|n| {
            let client = [&first, &second][usize::from(n % 2)].clone();
            async move {
                client
                    .write(u64::from(n) * 70_000 / 512 * 512, vec![n; 70_144])
                    .await
            }
        });
        for outcome in join_all(writes).await {
            outcome.expect("write");
        }
        let reads = (0..200_u8).map(|n| {
            let client = [&second, &first][usize::from(n % 2)].clone();
            async move { client.read(u64::from(n) * 70_000 / 512 * 512, 512).await }
        });
        for (n, data) in join_all(reads).await.into_iter().enumerate() {
            let data = data.expect("read");
            assert_eq!(data, vec![data[0]; 512], "sector {n} is torn");
        }
    });
}

#[test]
fn errors_arrive_with_number_and_text() {
    with_server(async |world| {
        let client = connect(&world, Options::Modern).await;
        let failed = client.write(1, vec![0; 512]).await.expect_err("unaligned");
        assert_eq!(failed.errno(), Some(Errno::Invalid.number()));
        assert!(failed.to_string().contains("512"), "{failed}");
        let failed = client.zero(SIZE_BYTES, 512).await.expect_err("beyond");
        assert_eq!(failed.errno(), Some(Errno::NoSpace.number()));
        let refused = NbdClient::connect(&world, &at(), "other", Options::Modern).await;
        let refused = refused.expect_err("no such export");
        assert!(refused.to_string().contains("`other`"), "{refused}");
    });
}

#[test]
fn lists_and_descriptions_open_nothing() {
    with_server(async |world| {
        assert_eq!(list(&world, &at()).await.expect("list"), ["memory"]);
        let described = describe(&world, &at(), "memory").await.expect("info");
        assert_eq!(described.size_bytes, SIZE_BYTES);
        assert_eq!(described.block_sizes, Some((512, 4096, 32 << 20)));
    });
}

#[test]
fn a_broken_connection_is_no_answer() {
    with_server(async |world| {
        let client = connect(&world, Options::Modern).await;
        client.vanish();
        let lost = client.flush().await.expect_err("nobody answers");
        assert!(matches!(lost, ClientError::Closed), "{lost}");
        assert!(client.is_closed());
        // A handle that is dropped is a connection that is closed.
        drop(connect(&world, Options::Modern).await);
        let mut raw = RawNbd::connect(&world, &at()).await.expect("connect");
        raw.greet().await.expect("greeting");
        raw.send(b"whatever this may be").await.expect("send");
        let ended = raw.receive(1).await.expect_err("the server hangs up");
        assert!(matches!(ended, ClientError::Closed | ClientError::Io(_)));
    });
}
