//! Files.

use std::future::Future;
use std::path::Path;
use std::task::{Context, Waker};

use crate::buf::PAGE_BYTES;
use crate::{Buf, DiskErrorKind, File, OpenMode, World};

/// Files in `dir`, which must be empty or absent, keep what is written, in full, and belong to one
/// opener.
pub async fn disk<W: World>(world: W, dir: &Path) {
    opening(&world, dir).await;
    Box::pin(bytes(&world, &dir.join("bytes"))).await;
    Box::pin(ends(&world, &dir.join("ends"))).await;
    Box::pin(growth(&world, &dir.join("growth"))).await;
    Box::pin(many(&world, &dir.join("many"))).await;
    Box::pin(given_up(&world, &dir.join("given-up"))).await;
}

async fn create<W: World>(world: &W, path: &Path) -> W::File {
    let file = world.open(path, OpenMode::Create).await;
    file.expect("a file can be created")
}

async fn opening<W: World>(world: &W, dir: &Path) {
    let path = dir.join("some/folders/file");
    let absent = world.open(&path, OpenMode::Existing).await;
    let absent = absent.expect_err("nothing is there");
    assert_eq!(absent.kind, DiskErrorKind::NotFound);
    assert_eq!(absent.path, path, "an error names its file");

    let file = create(world, &path).await;
    assert_eq!(file.size().await, Ok(0));
    for mode in [OpenMode::Existing, OpenMode::Create] {
        let second = world.open(&path, mode).await;
        assert_eq!(
            second.expect_err("it is open").kind,
            DiskErrorKind::Busy,
            "a second opener must be refused"
        );
    }
    let (_, written) = file.write_at(0, Buf::copy_of(b"kept")).await;
    written.expect("writable");
    let clone = file.clone();
    drop(file);
    let second = world.open(&path, OpenMode::Existing).await;
    assert_eq!(
        second.expect_err("a clone is open").kind,
        DiskErrorKind::Busy
    );
    drop(clone);

    for mode in [OpenMode::Existing, OpenMode::Create] {
        let again = world.open(&path, mode).await;
        let again = again.expect("nobody has it open");
        assert_eq!(&*read(&again, 0, 4).await, b"kept");
    }
}

async fn read<F: File>(file: &F, at: u64, len: usize) -> Buf {
    let (buf, outcome) = file.read_at(at, Buf::zeroed(len)).await;
    outcome.expect("readable");
    buf
}

async fn write<F: File>(file: &F, at: u64, bytes: &[u8]) {
    let (buf, outcome) = file.write_at(at, Buf::copy_of(bytes)).await;
    outcome.expect("writable");
    assert_eq!(&*buf, bytes, "the buffer comes back as it was");
}

async fn bytes<W: World>(world: &W, path: &Path) {
    let file = create(world, path).await;
    let pages: Vec<u8> = (0..=250).cycle().take(3 * PAGE_BYTES).collect();
    write(&file, 0, &pages).await;
    assert_eq!(&*read(&file, 0, pages.len()).await, &pages[..]);
    // Any offset, any length.
    assert_eq!(&*read(&file, 5, 5000).await, &pages[5..5005]);
    write(&file, 4000, b"over the edge of a page, and further").await;
    assert_eq!(&*read(&file, 4000, 13).await, b"over the edge");
    assert_eq!(&*read(&file, 3990, 10).await, &pages[3990..4000]);
    // What is skipped reads as zeros.
    write(&file, 100_000, b"far").await;
    assert_eq!(file.size().await, Ok(100_003));
    assert_eq!(&*read(&file, 50_000, 100).await, [0; 100]);

    let mut now = [0; 13];
    if file.read_now(4000, &mut now) {
        assert_eq!(&now, b"over the edge", "what is read at once is the same");
    }
    // What is not persisted yet must not go with what is forgotten.
    file.forget_cached().await.expect("forgotten");
    assert_eq!(&*read(&file, 100_000, 3).await, b"far");
    assert_eq!(&*read(&file, 4000, 13).await, b"over the edge");
    file.persist().await.expect("persisted");
    file.forget_cached().await.expect("forgotten");
    assert_eq!(&*read(&file, 100_000, 3).await, b"far");
    let (buf, outcome) = file.read_device_at(4096, Buf::zeroed(4096)).await;
    outcome.expect("readable");
    let cached = read(&file, 4096, 4096).await;
    assert_eq!(&*buf, &*cached, "the device holds what was persisted");
}

async fn ends<W: World>(world: &W, path: &Path) {
    let file = create(world, path).await;
    write(&file, 0, &[7; 6000]).await;
    for (at, len) in [(5999, 2), (6000, 1), (1 << 40, 1), (0, 8192)] {
        let (buf, outcome) = file.read_at(at, Buf::zeroed(len)).await;
        let error = outcome.expect_err("the file ends before");
        assert_eq!(error.kind, DiskErrorKind::Short, "{len} bytes at {at}");
        assert_eq!(buf.len(), len, "the buffer comes back");
        assert!(!file.read_now(at, &mut vec![0; len]));
    }
    let (buf, outcome) = file.read_device_at(4096, Buf::zeroed(4096)).await;
    let error = outcome.expect_err("the file ends before");
    assert_eq!((error.kind, buf.len()), (DiskErrorKind::Short, 4096));
    assert_eq!(&*read(&file, 5999, 1).await, [7]);
    // Nothing is there to be read, and nothing is missing.
    assert!(read(&file, 6000, 0).await.is_empty());
}

async fn growth<W: World>(world: &W, path: &Path) {
    let file = create(world, path).await;
    write(&file, 0, &[1; 5000]).await;
    let to = 5 * 1024 * 1024 + 4096;
    file.grow(to).await.expect("there is space");
    assert_eq!(file.size().await, Ok(to));
    assert_eq!(&*read(&file, 4990, 20).await, [[1; 10], [0; 10]].concat());
    assert_eq!(&*read(&file, to - 4096, 4096).await, [0; 4096]);
    write(&file, to - 4096, &[2; 4096]).await;
    file.persist().await.expect("persisted");
    file.grow(to + 4096).await.expect("there is space");
    assert_eq!(&*read(&file, to - 4096, 4096).await, [2; 4096]);
    assert_eq!(file.size().await, Ok(to + 4096));
}

fn page_of(number: u64) -> [u8; PAGE_BYTES] {
    let mut page = [7; PAGE_BYTES];
    page[..8].copy_from_slice(&number.to_be_bytes());
    page
}

/// Writes and persists in flight together, more than any queue holds at once.
async fn many<W: World>(world: &W, path: &Path) {
    const WRITES: u64 = 1500;
    let file = create(world, path).await;
    let writes = (0..WRITES).map(|number| {
        let file = file.clone();
        async move {
            write(&file, number * 4096, &page_of(number)).await;
            if number % 100 == 0 {
                file.persist().await.expect("persisted");
            }
        }
    });
    futures_util::future::join_all(writes).await;
    let reads = (0..WRITES).map(|number| {
        let file = &file;
        async move {
            let (page, outcome) = file
                .read_device_at(number * 4096, Buf::zeroed(PAGE_BYTES))
                .await;
            outcome.expect("readable");
            assert_eq!(&*page, page_of(number));
        }
    });
    futures_util::future::join_all(reads).await;
}

/// A read or persist whose future is dropped harms nobody.
async fn given_up<W: World>(world: &W, path: &Path) {
    let file = create(world, path).await;
    write(&file, 0, &[9; 8192]).await;
    for _ in 0..100 {
        let mut cx = Context::from_waker(Waker::noop());
        let mut persist = Box::pin(file.persist());
        let mut device = Box::pin(file.read_device_at(0, Buf::zeroed(8192)));
        let mut cached = Box::pin(file.read_at(0, Buf::zeroed(8192)));
        // Started, and dropped wherever they are.
        let _started = persist.as_mut().poll(&mut cx).is_ready();
        let _started = device.as_mut().poll(&mut cx).is_ready();
        let _started = cached.as_mut().poll(&mut cx).is_ready();
    }
    world.yield_now().await;
    file.persist().await.expect("persisted");
    assert_eq!(&*read(&file, 0, 8192).await, [9; 8192]);
}
