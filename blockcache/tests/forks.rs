//! Forks that begin in the log: the note of one survives a crash, its cut stays as it was, and its parent publishes
//! nothing behind the cut before a snapshot holds it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blockcache::{
    Cache, CacheConfig, CacheError, CacheVolume, Cut, Epoch, FORKS_MAX, ForkBase, Id, Missing,
    NewFork, Opened, PageRange, PendingFork, Seq,
};
use bytes::Bytes;
use world::sim::{Crash, HostId, Sim, SimConfig, SimWorld};
use world::{ETag, World};

const PAGE: usize = 4096;
const CHUNK: u64 = 64 * 1024;
const PARENT: Id = Id([1; 16]);
const CHILD: Id = Id([2; 16]);
const NONCE: Id = Id([3; 16]);

fn config() -> CacheConfig {
    CacheConfig {
        dirty_bytes_max: u64::MAX,
        volume_dirty_bytes_max: u64::MAX,
        chunk_bytes: Some(u32::try_from(CHUNK).expect("small")),
        ..CacheConfig::new("/cache", 65_536 + 64 * CHUNK)
    }
}

fn sim(seed: u64) -> (Sim, HostId) {
    let config = SimConfig {
        steps_max: 3_000_000,
        time_max: Duration::from_secs(600),
        trace_lines_max: 30,
        ..SimConfig::default()
    };
    let sim = Sim::new(seed, config);
    let host = sim.host("node");
    (sim, host)
}

fn on<T, F>(sim: &Sim, host: HostId, main: impl FnOnce(SimWorld) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let done = sim.block_on(host, main);
    done.expect("nobody waits for ever").expect("lives")
}

async fn open(world: SimWorld) -> Cache<SimWorld> {
    Cache::open(world, config()).await.expect("opens")
}

async fn attached(world: SimWorld) -> (Cache<SimWorld>, CacheVolume<SimWorld>) {
    let cache = open(world).await;
    let opened = Opened {
        id: PARENT,
        name: "vm".into(),
        size_bytes: 1 << 30,
        epoch: Epoch(1),
        nonce: Id([1; 16]),
        published: Seq(0),
    };
    let volume = cache.attach(opened).await.expect("attached");
    (cache, volume)
}

fn page(stamp: u64) -> Bytes {
    Bytes::from(stamp.to_le_bytes().repeat(PAGE / 8))
}

/// Page n holds n + `plus`.
async fn write(volume: &CacheVolume<SimWorld>, numbers: std::ops::Range<u64>, plus: u64) {
    for n in numbers {
        let written = volume.write(n * PAGE as u64, page(n + plus)).await;
        written.expect("room");
    }
}

async fn fork(volume: &CacheVolume<SimWorld>, child: Id) -> Result<Seq, CacheError> {
    let new = NewFork {
        child,
        name: "child".into(),
        nonce: NONCE,
    };
    volume.fork(new).await
}

/// Publishes the next cut of so many extents; none if nothing may be.
async fn publish(
    world: &SimWorld,
    volume: &CacheVolume<SimWorld>,
    extents_max: usize,
) -> Option<Seq> {
    let nonce = Id(world.random_id());
    let cut = volume.cut(nonce, ETag("v".into()), None, extents_max).await;
    let seq = cut.expect("sound")?.seq;
    volume.published(seq, nonce);
    Some(seq)
}

async fn expect_cut(cut: &Cut<SimWorld>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let mut out = vec![0; PAGE];
        let missing = cut.read_all(PageRange::new(n, n + 1), &mut out).await;
        assert_eq!(missing.expect("readable"), vec![], "page {n} is here");
        assert_eq!(out, page(n), "page {n}");
    }
}

#[test]
fn a_cut_of_a_fork_stays_while_its_parent_writes_and_publishes() {
    let (sim, host) = sim(1);
    on(&sim, host, |world| async move {
        let (cache, vm) = attached(world.clone()).await;
        write(&vm, 0..50, 0).await;
        assert_eq!(publish(&world, &vm, usize::MAX).await, Some(Seq(50)));
        // None goes on from the one before: they are not taken together.
        for n in (50..100).rev() {
            write(&vm, n..n + 1, 0).await;
        }
        let cut_seq = fork(&vm, CHILD).await.expect("noted");
        assert_eq!(cut_seq, Seq(100));
        let cut = vm.cut_for_fork(cut_seq).await.expect("taken");
        expect_cut(&cut, 0..100).await;
        write(&vm, 40..60, 1000).await;
        // What was clean and is overwritten now is for the store to say.
        expect_cut(&cut, 0..40).await;
        expect_cut(&cut, 50..100).await;
        let mut out = vec![0; 20 * PAGE];
        let missing = cut.read_all(PageRange::new(35, 55), &mut out).await;
        let gone = Missing {
            pages: PageRange::new(40, 50),
            patches: vec![],
        };
        assert_eq!(missing.expect("readable"), vec![gone]);
        // It goes on in steps up to the cut, and not behind it.
        let first = publish(&world, &vm, 20).await.expect("dirty");
        assert!(first < cut_seq, "{first}");
        expect_cut(&cut, 50..100).await;
        let again = vm.cut_for_fork(cut_seq).await.expect("taken");
        expect_cut(&again, 50..100).await;
        assert_eq!(publish(&world, &vm, usize::MAX).await, Some(cut_seq));
        assert_eq!(publish(&world, &vm, usize::MAX).await, None);
        let nonce = Id(world.random_id());
        let intended = vm.intend(nonce, ETag("v".into()), None).await;
        assert_eq!(intended.expect("sound"), cut_seq, "for the snapshot alone");
        expect_cut(&cut, 50..100).await;
        vm.forks_published(&[CHILD], &[]);
        vm.published(cut_seq, nonce);
        assert_eq!(publish(&world, &vm, usize::MAX).await, Some(Seq(120)));
        let state = vm.state().expect("known");
        assert!(state.forks[0].is_carried);
        vm.forks_published(&[], &[CHILD]);
        assert_eq!(vm.state().expect("known").forks, vec![]);
        assert!(cache.is_pending_fork(CHILD), "until its root is there");
    });
    sim.end();
}

#[test]
fn a_cut_of_a_fork_keeps_its_chunks_until_it_is_dropped() {
    let (sim, host) = sim(2);
    on(&sim, host, |world| async move {
        let (_cache, vm) = attached(world.clone()).await;
        write(&vm, 0..20, 0).await;
        let cut_seq = fork(&vm, CHILD).await.expect("noted");
        let cut = vm.cut_for_fork(cut_seq).await.expect("taken");
        publish(&world, &vm, usize::MAX).await.expect("dirty");
        vm.forks_published(&[CHILD], &[]);
        // Half of the log: what is clean would go.
        for round in 0..3 {
            write(&vm, 100..200, round).await;
            publish(&world, &vm, usize::MAX).await.expect("dirty");
        }
        let mut out = vec![0; 20 * PAGE];
        let missing = cut.read_all(PageRange::new(0, 20), &mut out).await;
        assert_eq!(missing.expect("readable"), vec![]);
        for n in 0..20_u64 {
            let at = usize::try_from(n).expect("small") * PAGE;
            assert_eq!(out[at..at + PAGE], page(n), "page {n}");
        }
        drop(cut);
        // All of it, several times over: nothing holds the oldest chunks any more.
        for round in 0..20 {
            write(&vm, 100..300, round).await;
            publish(&world, &vm, usize::MAX).await.expect("dirty");
        }
    });
    sim.end();
}

fn opened(id: Id, name: &str, epoch: u64, published: u64) -> Opened {
    Opened {
        id,
        name: name.into(),
        size_bytes: 1 << 30,
        epoch: Epoch(epoch),
        nonce: Id([4; 16]),
        published: Seq(published),
    }
}

/// The numbers of writes come again, and stand for others.
#[test]
fn a_cut_of_a_fork_shows_nothing_of_a_volume_that_was_forgotten_and_attached_again() {
    let (sim, host) = sim(5);
    on(&sim, host, |world| async move {
        let (cache, vm) = attached(world.clone()).await;
        write(&vm, 0..50, 0).await;
        publish(&world, &vm, usize::MAX).await.expect("dirty");
        write(&vm, 50..60, 0).await;
        let cut_seq = fork(&vm, CHILD).await.expect("noted");
        let cut = vm.cut_for_fork(cut_seq).await.expect("taken");
        expect_cut(&cut, 0..60).await;
        assert!(vm.holds_cut_of(CHILD));
        cache.forget(PARENT).await.expect("sound");
        let again = opened(PARENT, "vm", 2, 50);
        let vm = cache.attach(again).await.expect("attached");
        assert!(!vm.holds_cut_of(CHILD), "what it is made of is gone");
        write(&vm, 0..10, 1000).await;
        assert_eq!(vm.state().expect("known").last, cut_seq);
        for n in 0..10 {
            let mut out = vec![0; PAGE];
            let missing = cut.read_all(PageRange::new(n, n + 1), &mut out).await;
            assert_eq!(missing.expect("readable").len(), 1, "page {n}");
        }
        expect_cut(&cut, 50..60).await;
        let taken = vm.cut_for_fork(cut_seq).await;
        assert!(matches!(taken, Err(CacheError::UnknownVolume(_))));
    });
    sim.end();
}

/// Its parent does not publish, and another volume goes around the log: only what is unpublished of the parent has to
/// stay, and that can be moved.
#[test]
fn a_cut_of_a_fork_is_asked_back_when_a_writer_needs_the_room() {
    let (sim, host) = sim(6);
    on(&sim, host, |world| async move {
        let (cache, vm) = attached(world.clone()).await;
        write(&vm, 0..20, 0).await;
        let cut_seq = fork(&vm, CHILD).await.expect("noted");
        let cut = vm.cut_for_fork(cut_seq).await.expect("taken");
        assert!(!vm.wants_cuts(), "there is room");
        let other = cache.attach(opened(Id([7; 16]), "other", 1, 0)).await;
        let other = other.expect("attached");
        let (done, task) = (Rc::new(Cell::new(false)), world.clone());
        let tell = Rc::clone(&done);
        world.spawn(async move {
            for round in 0..12 {
                write(&other, 0..200, round).await;
                publish(&task, &other, usize::MAX).await.expect("dirty");
            }
            tell.set(true);
        });
        vm.cuts_wanted().await;
        assert!(!done.get(), "it waits");
        drop(cut);
        while !done.get() {
            world.sleep(Duration::from_millis(10)).await;
        }
        let cut = vm.cut_for_fork(cut_seq).await.expect("taken again");
        expect_cut(&cut, 0..20).await;
    });
    sim.end();
}

#[test]
fn a_noted_fork_and_what_was_flushed_to_it_survive_a_power_cut() {
    let (sim, host) = sim(3);
    on(&sim, host, |world| async move {
        let (cache, vm) = attached(world.clone()).await;
        write(&vm, 0..10, 0).await;
        let cut = fork(&vm, CHILD).await.expect("noted");
        let again = fork(&vm, CHILD).await.expect("noted before");
        assert_eq!(cut, again);
        let child = cache.volume(CHILD).expect("noted");
        write(&child, 3..5, 500).await;
        child.flush().await.expect("sound");
        write(&vm, 0..10, 900).await;
    });
    sim.crash(host, Crash::Power);
    on(&sim, host, |world| async move {
        let cache = open(world.clone()).await;
        assert!(cache.is_pending_fork(CHILD));
        let volumes = cache.volumes();
        let (child, vm) = (&volumes[0], &volumes[1]);
        assert_eq!((&*child.name, &*vm.name), ("child", "vm"));
        assert_eq!((child.damage.clone(), vm.damage.clone()), (None, None));
        assert_eq!((child.published, child.last), (Seq(10), Seq(12)));
        assert_eq!((child.nonce, child.size_bytes), (NONCE, 1 << 30));
        let base = ForkBase {
            parent: PARENT,
            name: "vm".into(),
            cut: Seq(10),
        };
        assert_eq!(child.base, Some(base));
        let noted = PendingFork {
            child: CHILD,
            cut: Seq(10),
            is_carried: false,
        };
        assert_eq!(vm.forks, vec![noted]);
        let vm = cache.volume(PARENT).expect("known");
        let cut = vm.cut_for_fork(Seq(10)).await.expect("taken");
        expect_cut(&cut, 0..10).await;
        drop(cut);
        assert_eq!(publish(&world, &vm, usize::MAX).await, Some(Seq(10)));
        // It is in the store, and seen there.
        let opened = Opened {
            id: CHILD,
            name: "child".into(),
            size_bytes: 1 << 30,
            epoch: Epoch(1),
            nonce: NONCE,
            published: Seq(10),
        };
        let child = cache.attach(opened).await.expect("attached");
        assert!(!cache.is_pending_fork(CHILD));
        assert_eq!(publish(&world, &child, usize::MAX).await, Some(Seq(12)));
    });
    sim.end();
}

#[test]
fn more_forks_than_the_note_holds_are_refused_and_none_is_half_made() {
    let (sim, host) = sim(4);
    on(&sim, host, |world| async move {
        let (cache, vm) = attached(world).await;
        write(&vm, 0..1, 0).await;
        for n in 0..FORKS_MAX {
            let child = Id([u8::try_from(n).expect("small") + 10; 16]);
            fork(&vm, child).await.expect("room");
        }
        let refused = fork(&vm, CHILD).await;
        assert!(matches!(refused, Err(CacheError::TooManyForks(_))));
        assert!(cache.volume(CHILD).is_none());
        vm.fence();
        let refused = fork(&vm, CHILD).await;
        assert!(matches!(refused, Err(CacheError::Fenced)));
        let again = fork(&vm, Id([10; 16])).await;
        assert!(matches!(again, Err(CacheError::Fenced)));
        let unknown = cache.volume(Id([10; 16])).expect("noted");
        let refused = fork(&unknown, PARENT).await;
        assert!(matches!(refused, Err(CacheError::KnownVolume(_))));
    });
    sim.end();
}
