//! The contract of every seam, on Linux: real files, sockets and clocks.

use std::future::Future;
use std::path::{Path, PathBuf};

use world::linux::{LinuxConfig, LinuxStore, LinuxWorld, StoreConfig, run};
use world::{Address, Buf, DiskErrorKind, File, OpenMode, World, contract};

/// Runs `main` as a shard, with an edge runtime beside it.
fn shard<T, F>(main: impl FnOnce(LinuxWorld, tokio::runtime::Handle) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let edge = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let config = LinuxConfig::new(edge.handle().clone(), 2);
    let handle = edge.handle().clone();
    run(config, |world| main(world, handle)).expect("io_uring is available")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// On the disk of the build: the temporary folder of a machine may be a tmpfs.
fn disk_folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

#[test]
fn clock() {
    shard(|world, _| contract::clock(world));
}

#[test]
fn chance() {
    shard(|world, _| contract::chance(world));
}

#[test]
fn tasks() {
    shard(|world, _| contract::tasks(world));
}

#[test]
fn disk() {
    let folder = disk_folder();
    let dir = folder.path().join("made");
    shard(|world, _| async move { contract::disk(world, &dir).await });
}

#[test]
fn disk_on_a_tmpfs() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let dir = folder.path().join("made");
    shard(|world, _| async move { contract::disk(world, &dir).await });
}

#[test]
fn a_full_disk_leaves_the_length_as_it_was() {
    // A tmpfs refuses at once what it can never hold; a disk would be filled first.
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let path = folder.path().join("file");
    shard(|world, _| async move {
        let file = world.open(&path, OpenMode::Create).await.expect("created");
        let (_, written) = file.write_at(0, Buf::copy_of(b"kept")).await;
        written.expect("writable");
        let error = file.grow(1 << 50).await.expect_err("no space");
        assert_eq!((error.kind, error.path), (DiskErrorKind::Full, path));
        assert_eq!(file.size().await, Ok(4));
        let (buf, read) = file.read_at(0, Buf::zeroed(4)).await;
        assert_eq!((read, &*buf), (Ok(()), &b"kept"[..]));
    });
}

#[test]
fn net_over_a_unix_socket() {
    let folder = folder();
    let path = folder.path().join("socket");
    let address = Address::Unix(path.clone());
    shard(|world, _| async move { contract::net(world, &address).await });
    assert!(!path.exists(), "the socket file goes with its listener");
}

#[test]
fn net_over_tcp() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let address = host.parse().expect("an address");
        if std::net::TcpListener::bind(address).is_err() {
            continue; // A machine without IPv6.
        }
        let address = Address::Tcp(address);
        shard(|world, _| async move { contract::net(world, &address).await });
    }
}

fn store(url: String) {
    shard(|_world, edge| {
        let store = LinuxStore::open(&StoreConfig::new(url), edge);
        contract::store(store.expect("the store opens"), contract::Losers::Know)
    });
}

#[test]
fn store_in_memory() {
    store("memory://".to_owned());
}

#[test]
fn store_in_memory_under_a_prefix() {
    store("memory:///some/prefix".to_owned());
}

#[test]
fn store_in_a_folder() {
    let folder = disk_folder();
    store(format!("file://{}/made/here", folder.path().display()));
}

fn unix(path: &Path) -> Address {
    Address::Unix(path.to_path_buf())
}

fn listens(path: PathBuf) -> bool {
    shard(|world, _| async move { world.listen(&unix(&path)).await.is_ok() })
}

#[test]
fn a_left_over_socket_file_is_replaced() {
    let folder = folder();
    let path = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "left over");
    assert!(listens(path));
}

#[test]
fn a_socket_of_another_process_and_a_plain_file_are_not_replaced() {
    let folder = folder();
    let path = folder.path().join("socket");
    let other = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    assert!(!listens(path.clone()));
    assert!(path.exists());
    drop(other);

    let file = folder.path().join("file");
    tempfile::NamedTempFile::new_in(folder.path())
        .expect("a file")
        .persist(&file)
        .expect("renamed");
    assert!(!listens(file.clone()));
    assert!(file.exists(), "somebody's data");
}
