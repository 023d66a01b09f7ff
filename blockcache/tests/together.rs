//! Volumes that are cut together: one nonce, one moment, one loss (rule 30).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use blockcache::{
    Cache, CacheConfig, CacheError, CacheVolume, CutPart, Epoch, Id, LocalVolume, NewIntent,
    Opened, PageRange, Seq,
};
use bytes::Bytes;
use world::sim::{Crash, DiskFaults, HostId, Odds, Sim, SimConfig, SimWorld};
use world::{ETag, World};

const PAGE: usize = 4096;
const CHUNK: u64 = 64 * 1024;
const MEMBERS: u8 = 3;
/// All members have it before the first cut, as whoever took the group gave it to them.
const TAKEN: Id = Id([0x77; 16]);

fn config() -> CacheConfig {
    CacheConfig {
        dirty_bytes_max: u64::MAX,
        volume_dirty_bytes_max: u64::MAX,
        chunk_bytes: Some(u32::try_from(CHUNK).expect("small")),
        ..CacheConfig::new("/cache", 65_536 + 64 * CHUNK)
    }
}

fn limits() -> SimConfig {
    SimConfig {
        steps_max: 3_000_000,
        time_max: Duration::from_secs(600),
        trace_lines_max: 30,
        ..SimConfig::default()
    }
}

fn sim(seed: u64) -> (Sim, HostId) {
    let sim = Sim::new(seed, limits());
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

fn opened(member: u8) -> Opened {
    Opened {
        id: Id([member; 16]),
        name: format!("vm-{member}"),
        size_bytes: 1 << 30,
        epoch: Epoch(1),
        nonce: TAKEN,
        published: Seq(0),
    }
}

async fn open(world: &SimWorld) -> Cache<SimWorld> {
    Cache::open(world.clone(), config()).await.expect("opens")
}

async fn attached(world: &SimWorld) -> (Cache<SimWorld>, Vec<CacheVolume<SimWorld>>) {
    let cache = open(world).await;
    let mut members = Vec::new();
    for member in 1..=MEMBERS {
        let attached = cache.attach(opened(member)).await;
        members.push(attached.expect("attached"));
    }
    (cache, members)
}

fn page(stamp: u64) -> Bytes {
    Bytes::from(stamp.to_le_bytes().repeat(PAGE / 8))
}

async fn write(volume: &CacheVolume<SimWorld>, number: u64, stamp: u64) -> Result<Seq, CacheError> {
    volume.write(number * PAGE as u64, page(stamp)).await
}

fn intent(nonce: Id) -> NewIntent {
    NewIntent {
        nonce,
        replaces: ETag("v".into()),
        unsent: None,
    }
}

fn ends(parts: &[CutPart<SimWorld>]) -> Vec<Seq> {
    parts.iter().map(|part| part.seq).collect()
}

fn member(cache: &Cache<SimWorld>, number: u8) -> LocalVolume {
    let mut known = cache.volumes().into_iter();
    let found = known.find(|local| local.id == Id([number; 16]));
    found.expect("the log knows it")
}

fn knows(local: &LocalVolume, nonce: Id) -> bool {
    local.nonce == nonce || local.intents.iter().any(|it| it.nonce == nonce)
}

#[test]
fn a_cut_of_all_has_one_nonce_and_is_durable_with_it() {
    let (sim, host) = sim(1);
    on(&sim, host, |world| async move {
        let (cache, members) = attached(&world).await;
        write(&members[0], 1, 10).await.expect("room");
        write(&members[2], 1, 20).await.expect("room");
        write(&members[2], 2, 21).await.expect("room");
        let cut = cache
            .cut_together(&members, &intent(Id([5; 16])), usize::MAX)
            .await;
        let parts = cut.expect("sound").expect("dirty");
        assert_eq!(ends(&parts), [Seq(1), Seq(0), Seq(2)]);
        assert!(parts[1].cut.is_none(), "nothing of it is to be uploaded");
        let mut out = vec![0; PAGE];
        let cut = parts[2].cut.as_ref().expect("it was written");
        let missing = cut.read(PageRange::new(2, 3), &mut out).await;
        assert_eq!(
            (missing.expect("readable"), out),
            (vec![], page(21).to_vec())
        );
    });
    sim.crash(host, Crash::Power);
    on(&sim, host, |world| async move {
        let cache = open(&world).await;
        for (number, last) in [(1, Seq(1)), (2, Seq(0)), (3, Seq(2))] {
            let local = member(&cache, number);
            assert_eq!((local.last, local.damage.clone()), (last, None));
            assert_eq!(local.intents.len(), 1);
            assert_eq!(local.intents[0].nonce, Id([5; 16]));
            assert_eq!(local.intents[0].cut, last);
        }
        let all: Vec<Id> = (1..=MEMBERS).map(|number| Id([number; 16])).collect();
        assert_eq!(cache.together_with(all[0]), all);
    });
    sim.end();
}

#[test]
fn nothing_is_cut_where_nothing_was_written_and_an_intent_takes_all_the_same() {
    let (sim, host) = sim(2);
    on(&sim, host, |world| async move {
        let (cache, members) = attached(&world).await;
        let cut = cache.cut_together(&members, &intent(Id([5; 16])), 1).await;
        assert!(cut.expect("sound").is_none());
        assert_eq!(member(&cache, 1).intents, vec![]);
        let ends = cache.intend_together(&members, &intent(Id([6; 16]))).await;
        assert_eq!(ends.expect("sound"), [Seq(0); 3]);
        assert!((1..=MEMBERS).all(|number| knows(&member(&cache, number), Id([6; 16]))));
        // The store never heard of it: the next takes its place.
        let next = NewIntent {
            unsent: Some(Id([6; 16])),
            ..intent(Id([7; 16]))
        };
        write(&members[1], 0, 1).await.expect("room");
        let cut = cache.cut_together(&members, &next, 1).await;
        assert_eq!(ends_of(cut), [Seq(0), Seq(1), Seq(0)]);
        assert!(!(1..=MEMBERS).any(|number| knows(&member(&cache, number), Id([6; 16]))));
    });
    sim.end();
}

fn ends_of(cut: Result<Option<Vec<CutPart<SimWorld>>>, CacheError>) -> Vec<Seq> {
    ends(&cut.expect("sound").expect("dirty"))
}

/// Clients that wait for an answer of one member before they write to the next, beside cuts of every bound.
#[test]
fn a_cut_has_with_each_write_all_that_were_answered_before_it_was_sent() {
    let mut bounded = 0;
    for seed in 0..40 {
        let (sim, host) = sim(seed);
        let (inside, cuts) = (sim.clone(), Rc::new(Cell::new(0)));
        let counted = Rc::clone(&cuts);
        on(&sim, host, move |world| async move {
            let (cache, members) = attached(&world).await;
            // Of each answered write its place, and what was answered when it was sent.
            let known = Rc::new(RefCell::new(Vec::new()));
            for _client in 0..3 {
                let (members, known) = (members.clone(), Rc::clone(&known));
                let sim = inside.clone();
                world.spawn(async move {
                    loop {
                        let at = sim.chance(|chance| chance.below(u64::from(MEMBERS)));
                        let at = usize::try_from(at).expect("small");
                        let before = answered(&known.borrow());
                        let seq = write(&members[at], 0, 1).await.expect("room");
                        known.borrow_mut().push((at, seq, before));
                    }
                });
            }
            for _cut in 0..30 {
                let pause = inside.chance(|chance| chance.between(1, 2000));
                world.sleep(Duration::from_micros(pause)).await;
                let most = [1, 5, 40, usize::MAX][inside.chance(|chance| chance.index(4))];
                let nonce = Id(world.random_id());
                let lasts: Vec<Seq> = members.iter().map(last).collect();
                let cut = cache.cut_together(&members, &intent(nonce), most).await;
                let Some(parts) = cut.expect("sound") else {
                    continue;
                };
                let ends = ends(&parts);
                drop(parts);
                let is_short = ends.iter().zip(&lasts).any(|(end, last)| end < last);
                counted.set(counted.get() + u32::from(is_short));
                for (at, seq, before) in known.borrow().iter() {
                    let holds = |(end, before): (&Seq, &Seq)| before <= end;
                    let has_all = ends.iter().zip(before).all(holds);
                    assert!(
                        *seq > ends[*at] || has_all,
                        "seed {seed}: {before:?} {ends:?}"
                    );
                }
                for (volume, end) in members.iter().zip(&ends) {
                    volume.published(*end, nonce);
                }
            }
        });
        bounded += cuts.get();
        sim.end();
    }
    assert!(bounded > 40, "{bounded} cuts left something");
}

fn last(volume: &CacheVolume<SimWorld>) -> Seq {
    volume.state().expect("attached").last
}

/// The last answered write of each member.
fn answered(known: &[(usize, Seq, [Seq; 3])]) -> [Seq; 3] {
    let mut all = [Seq(0); 3];
    for (at, seq, _) in known {
        all[*at] = all[*at].max(*seq);
    }
    all
}

/// Whatever step the power fails at: a cut that was returned is known to all members, one that was not is none that
/// any of them needs, and the next goes on from all that is there.
#[test]
fn a_power_cut_at_any_step_of_a_cut_leaves_all_members_sound() {
    let mut returned = 0;
    for fuse in 0..40 {
        let simulated = Sim::simulate(fuse, limits(), move |sim| cut_short(sim, fuse));
        let (was_returned, _) = simulated.unwrap_or_else(|stuck| panic!("fuse {fuse}: {stuck}"));
        returned += u32::from(was_returned);
    }
    assert!(
        (1..40).contains(&returned),
        "{returned} of 40 were returned"
    );
}

/// Returns whether the cut was returned before the power failed.
async fn cut_short(sim: Sim, fuse: u64) -> bool {
    let host = sim.host("node");
    let done = Rc::new(Cell::new(false));
    let (inside, told) = (sim.clone(), Rc::clone(&done));
    sim.start(host, move |world| async move {
        let (cache, members) = attached(&world).await;
        for volume in &members {
            write(volume, 0, 1).await.expect("room");
        }
        inside.crash_after(host, fuse, Crash::Power);
        let cut = cache.cut_together(&members, &intent(Id([5; 16])), 1).await;
        told.set(cut.expect("sound").is_some());
        std::future::pending::<()>().await;
    });
    sim.sleep(Duration::from_secs(5)).await;
    sim.crash(host, Crash::Power);
    let was_returned = done.get();
    sim.start(host, move |world| async move {
        let cache = open(&world).await;
        let all = (1..=MEMBERS).map(|number| member(&cache, number));
        let all: Vec<LocalVolume> = all.collect();
        let intended = all.iter().filter(|it| knows(it, Id([5; 16]))).count();
        assert!(!was_returned || intended == all.len(), "{all:?}");
        // The root has the nonce of before: it is everybody's still.
        let is_sound = |it: &LocalVolume| it.damage.is_none() && knows(it, TAKEN);
        assert!(all.iter().all(is_sound), "{all:?}");
        let ids: Vec<Id> = all.iter().map(|it| it.id).collect();
        assert_eq!(cache.together_with(ids[0]), ids);
        let known = ids.iter().filter_map(|id| cache.volume(*id));
        let members: Vec<CacheVolume<SimWorld>> = known.collect();
        let written = all.iter().filter(|it| it.last > Seq(0)).count();
        for done in 1..=written {
            let nonce = Id(world.random_id());
            let cut = cache.cut_together(&members, &intent(nonce), 1).await;
            let expected = (0..members.len()).map(|at| Seq(u64::from(at < done)));
            let expected: Vec<Seq> = expected.collect();
            assert_eq!(ends_of(cut), expected, "one write after the other");
            let known = members.iter().zip(expected);
            known.for_each(|(volume, end)| volume.published(end, nonce));
        }
        std::future::pending::<()>().await;
    });
    sim.sleep(Duration::from_secs(5)).await;
    assert!(sim.is_up(host));
    was_returned
}

/// A log that goes around several times: what is not published is moved out of the way, and kills come in between. What a
/// start finds is cut in pieces, and each of them is a beginning of all that was written.
#[test]
fn what_a_start_finds_is_cut_in_pieces_each_of_them_a_beginning_of_all() {
    let (mut bounded, mut evictions) = (0, 0);
    for seed in 0..12 {
        let (sim, host) = sim(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        for _life in 0..4 {
            let (inside, order) = (sim.clone(), Rc::clone(&order));
            let lived = on(&sim, host, move |world| async move {
                life(&world, &inside, &order).await
            });
            bounded += lived.0;
            evictions += lived.1;
            sim.crash(host, Crash::Process);
        }
        sim.end();
    }
    assert!(bounded > 20, "{bounded} cuts left something");
    assert!(evictions > 200, "{evictions} evictions");
}

/// Every write, by its member and its seq. Each was sent when all before it were answered.
type Order = RefCell<Vec<(usize, Seq)>>;

/// Cuts what was found, publishes some of that, and writes. Returns how many cuts left something, and the evictions.
async fn life(world: &SimWorld, sim: &Sim, order: &Order) -> (u32, u64) {
    let small = CacheConfig {
        size_bytes_max: 65_536 + 22 * CHUNK,
        ..config()
    };
    let cache = Cache::open(world.clone(), small).await.expect("opens");
    let mut members = Vec::new();
    for member in 1..=MEMBERS {
        members.push(cache.attach(opened(member)).await.expect("attached"));
    }
    // Of no group, and published all the time: by its writes the log goes around.
    let other = Opened {
        nonce: Id([9; 16]),
        ..opened(9)
    };
    let other = cache.attach(other).await.expect("attached");
    let mut bounded = 0;
    for _cut in 0..3 {
        let most = [1, 4, 20][sim.chance(|chance| chance.index(3))];
        let nonce = Id(world.random_id());
        let cut = cache.cut_together(&members, &intent(nonce), most).await;
        let Some(parts) = cut.expect("sound") else {
            break;
        };
        let ends = ends(&parts);
        drop(parts);
        expect_beginning(&order.borrow(), &ends);
        let is_short = members.iter().zip(&ends).any(|(it, end)| *end < last(it));
        bounded += u32::from(is_short);
        if sim.chance(|chance| chance.one_in(2)) {
            let known = members.iter().zip(ends);
            known.for_each(|(volume, end)| volume.published(end, nonce));
        }
    }
    for _write in 0..12 {
        let (at, number, others) = sim.chance(|chance| {
            (
                chance.index(usize::from(MEMBERS)),
                chance.below(200),
                chance.below(40),
            )
        });
        let seq = write(&members[at], number, 1).await.expect("room");
        order.borrow_mut().push((at, seq));
        for number in 0..others {
            write(&other, number, 2).await.expect("room");
        }
        let nonce = Id(world.random_id());
        let cut = other.cut(nonce, ETag("v".into()), None, usize::MAX).await;
        if let Some(cut) = cut.expect("sound") {
            other.published(cut.seq, nonce);
        }
    }
    (bounded, cache.stats().evictions)
}

fn expect_beginning(order: &[(usize, Seq)], ends: &[Seq]) {
    let is_in = |(at, seq): &(usize, Seq)| *seq <= ends[*at];
    let within = order.iter().take_while(|&it| is_in(it)).count();
    let behind = &order[within..];
    assert!(!behind.iter().any(is_in), "a hole: {ends:?} of {order:?}");
}

/// Promise 8 for a group: what is lost of one member takes what was written behind it to the others along, back to what
/// is published of all; and whatever dies while that is accepted, no member keeps more.
#[test]
fn a_loss_of_one_member_is_accepted_for_all_back_to_the_published_cut() {
    let mut accepted = 0;
    for seed in 0..60 {
        let (sim, host) = sim(seed);
        lose(&sim, host);
        // Now and then it dies on the way.
        for fuse in [3 + seed, 20 + seed] {
            let inside = sim.clone();
            let begun = sim.block_on(host, move |world| async move {
                let cache = open(&world).await;
                let Some(damaged) = damaged(&cache) else {
                    return;
                };
                inside.crash_after(host, fuse, Crash::Power);
                let done = cache.accept_loss(damaged.id, damaged.kept).await;
                done.expect("sound");
            });
            begun.expect("nobody waits for ever");
            sim.crash(host, Crash::Power);
        }
        accepted += on(&sim, host, move |world| async move {
            let cache = open(&world).await;
            if let Some(damaged) = damaged(&cache) {
                let done = cache.accept_loss(damaged.id, damaged.kept).await;
                done.expect("sound");
            }
            let all = (1..=MEMBERS).map(|number| member(&cache, number));
            let all: Vec<LocalVolume> = all.collect();
            assert!(all.iter().all(|it| it.damage.is_none()), "{all:?}");
            // Either nothing was lost, or all went back to what is published.
            let is_back = all.iter().all(|it| it.last == Seq(1) && !it.attached);
            let is_whole = all.iter().all(|it| it.last == Seq(11) && it.attached);
            assert!(is_back || is_whole, "seed {seed}: {all:?}");
            for number in 1..=MEMBERS {
                let attached = cache.attach(opened(number)).await;
                let volume = attached.expect("undamaged");
                assert_eq!(last(&volume), all[usize::from(number) - 1].last);
            }
            u32::from(is_back)
        });
        sim.end();
    }
    assert!(accepted > 10, "{accepted} losses");
}

/// Publishes one write of each member, and loses some of what they write behind that.
fn lose(sim: &Sim, host: HostId) {
    let inside = sim.clone();
    on(sim, host, move |world| async move {
        let (cache, members) = attached(&world).await;
        for volume in &members {
            write(volume, 0, 1).await.expect("room");
        }
        let nonce = Id([5; 16]);
        let cut = cache
            .cut_together(&members, &intent(nonce), usize::MAX)
            .await;
        assert_eq!(ends_of(cut), [Seq(1); 3]);
        members.iter().for_each(|it| it.published(Seq(1), nonce));
        // That they are published is noted in the background.
        world.sleep(Duration::from_secs(1)).await;
        cache.flush().await.expect("sound");
        for number in 1..=10 {
            for volume in &members {
                write(volume, number, number).await.expect("room");
            }
        }
        let faults = DiskFaults {
            persist_error: Odds::one_in(1),
            ..DiskFaults::default()
        };
        inside.set_disk_faults(host, faults);
        cache.flush().await.expect_err("the disk says no");
        inside.set_disk_faults(host, DiskFaults::default());
    });
    sim.run_for(Duration::from_secs(1)).expect("runs");
    sim.crash(host, Crash::Process);
}

/// The first damaged member; if there is one, all are that may have lost anything.
fn damaged(cache: &Cache<SimWorld>) -> Option<LocalVolume> {
    let all = (1..=MEMBERS).map(|number| member(cache, number));
    let all: Vec<LocalVolume> = all.collect();
    let damaged = all.iter().find(|it| it.damage.is_some())?.clone();
    for local in &all {
        let is_done = !local.attached && local.last == local.published;
        assert!(local.damage.is_some() || is_done, "{all:?}");
        assert_eq!(local.kept, local.published, "{local:?}");
    }
    Some(damaged)
}
