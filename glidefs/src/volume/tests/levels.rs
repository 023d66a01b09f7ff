//! The map under many publishes: right, bounded in memory, cheap to open.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::compact::Patience;
use super::super::nodes::NODES_BYTES_MAX;
use super::super::root::TAIL_SEGMENTS_MAX;
use super::super::runs::{LEVEL_RUNS_MAX, RUNS_MAX, Run};
use super::*;

const PAGES: u64 = 100_000;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write {
        start: u64,
        pages: u64,
    },
    Zero {
        start: u64,
        pages: u64,
    },
    Publish,
    Compact,
    /// Folds and merges whatever there is, so that few writes reach all levels.
    CompactAll,
    Reopen,
    Collect,
    Repack,
    Snapshot,
    DropSnapshot,
    /// Of the oldest snapshot; opens it again.
    Restore,
    /// Of what there is, or of the oldest snapshot.
    Fork {
        of_snapshot: bool,
    },
    /// A new data key, where there is one.
    Renew,
}

fn any_op() -> impl Strategy<Value = Op> {
    // Two crowded places, one of them across the border of a slot, and everywhere.
    let start = prop_oneof![0..200_u64, 16_300..16_500_u64, 0..PAGES - 40];
    let write = (start.clone(), 1..20_u64);
    let zero = (start, prop_oneof![1..40_u64, 1..40_000_u64]);
    prop_oneof![
        4 => write.prop_map(|(start, pages)| Op::Write { start, pages }),
        1 => zero.prop_map(|(start, pages)| Op::Zero { start, pages: pages.min(PAGES - start) }),
        8 => Just(Op::Publish),
        1 => Just(Op::Compact),
        4 => Just(Op::CompactAll),
        1 => Just(Op::Reopen),
        2 => Just(Op::Collect),
        2 => Just(Op::Repack),
        1 => Just(Op::Snapshot),
        1 => Just(Op::DropSnapshot),
        1 => Just(Op::Restore),
        1 => any::<bool>().prop_map(|of_snapshot| Op::Fork { of_snapshot }),
        1 => Just(Op::Renew),
    ]
}

/// A volume and what it must hold.
struct Checked {
    node: Node,
    volume: Volume<TestWorld>,
    pending: Vec<(PageRange, Option<u64>)>,
    model: BTreeMap<u64, u64>,
    stamp: u64,
    snapshots: Vec<(Id, BTreeMap<u64, u64>)>,
    /// By the number in their names.
    forks: Vec<BTreeMap<u64, u64>>,
}

impl Checked {
    fn new(password: Option<&str>) -> Self {
        let node = Node::new(1, &TestStore::default(), password);
        let volume = node.create("a");
        Self {
            node,
            volume,
            pending: Vec::new(),
            model: BTreeMap::new(),
            stamp: 0,
            snapshots: Vec::new(),
            forks: Vec::new(),
        }
    }

    /// A cut holds disjoint extents: what meets an earlier one goes to the next.
    fn add(&mut self, pages: PageRange, zero: bool) {
        if self
            .pending
            .iter()
            .any(|(other, _)| other.overlap(pages).is_some())
        {
            self.publish();
        }
        self.stamp += 1_000;
        self.pending.push((pages, (!zero).then_some(self.stamp)));
    }

    fn publish(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut frames = Vec::new();
        for (pages, stamp) in self.pending.drain(..) {
            let stamps = (0..pages.pages()).map(|page| stamp.map(|stamp| stamp + page));
            for (page, stamp) in (pages.start.0..pages.end.0).zip(stamps) {
                match stamp {
                    Some(stamp) => self.model.insert(page, stamp),
                    None => self.model.remove(&page),
                };
            }
            frames.push(match stamp {
                Some(stamp) => {
                    let stamps: Vec<u64> = (0..pages.pages()).map(|page| stamp + page).collect();
                    data(pages.start.0, &stamps)
                }
                None => zero(pages.start.0, pages.pages()),
            });
        }
        self.node.sync(&self.volume, frames);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write { start, pages } => self.add(PageRange::new(start, start + pages), false),
            Op::Zero { start, pages } => self.add(PageRange::new(start, start + pages), true),
            Op::Publish => self.publish(),
            Op::Compact => self.node.compact(&self.volume),
            Op::CompactAll => {
                let volume = self.volume.clone();
                let patience = Patience {
                    tail_segments: 1,
                    tail_extents: 1,
                    level_runs: 1,
                    upper_entries: u64::MAX,
                    upper_share: u64::MAX,
                };
                let done = async move { volume.compact_beyond(patience).await };
                self.node.world.run(done).expect("compacted");
            }
            Op::Reopen => {
                let epoch = self.volume.root().epoch;
                self.volume = self.node.open("a").expect("opens");
                self.volume
                    .resume(&Node::owner(1), epoch)
                    .expect("still ours");
            }
            Op::Collect => {
                self.collect();
                self.check_ledger();
            }
            Op::Repack => {
                // Carries what is finished.
                self.add(PageRange::new(9, 10), false);
                self.publish();
                let volume = self.volume.clone();
                let done = async move { volume.repack(&Tidy::default().thorough()).await };
                self.node.world.run(done).expect("repacked");
            }
            Op::Snapshot => {
                self.publish();
                let id = Id(self.node.world.random_id());
                let name = format!("s-{id}");
                self.change_snapshots(SnapshotChange::Take { id, name });
                let model = self.model.clone();
                self.snapshots.push((id, model));
            }
            Op::DropSnapshot => {
                if !self.snapshots.is_empty() {
                    let (id, _) = self.snapshots.remove(0);
                    self.change_snapshots(SnapshotChange::Drop { id });
                }
            }
            Op::Restore => self.restore(),
            Op::Fork { of_snapshot } => self.fork(of_snapshot),
            Op::Renew => self.renew(),
        }
    }

    fn renew(&mut self) {
        let request = Id(self.node.world.random_id());
        // A plain volume has none, and the list may be full.
        let Ok(Renewal::New(key)) = self.volume.new_data_key(request) else {
            return;
        };
        let mut publish = self.node.change(&self.volume, Vec::new());
        publish.cut = self.volume.root().cut;
        publish.data_key = Some(key);
        self.node
            .try_publish(&self.volume, &publish)
            .expect("published");
    }

    fn restore(&mut self) {
        self.publish();
        let Some((id, model)) = self.snapshots.first().cloned() else {
            return;
        };
        let mut detach = self.node.change(&self.volume, Vec::new());
        detach.cut = self.volume.root().cut;
        detach.state = Some(VolumeState::Detached);
        self.node
            .try_publish(&self.volume, &detach)
            .expect("detached");
        let before = Id(self.node.world.random_id());
        let wanted = Restore {
            snapshot: format!("s-{id}"),
            id: before,
            before: format!("s-{before}"),
        };
        let bucket = self.node.bucket.clone();
        let restored = async move { bucket.restore("a", &wanted).await };
        self.node.world.run(restored).expect("restored");
        let model = std::mem::replace(&mut self.model, model);
        self.snapshots.push((before, model));
        self.volume = self.node.open("a").expect("opens");
        let (volume, nonce) = (self.volume.clone(), self.node.nonce());
        let take = async move { volume.take(&Node::owner(1), nonce, None).await };
        self.node.world.run(take).expect("it is nobody's");
        self.check_ledger();
    }

    fn fork(&mut self, of_snapshot: bool) {
        self.publish();
        let snapshot = self.snapshots.first().filter(|_| of_snapshot).cloned();
        let name = snapshot.as_ref().map(|(id, _)| format!("s-{id}"));
        let number = self.forks.len();
        let (id, nonce) = (self.node.nonce(), self.node.nonce());
        let fork = Fork::new("a", name, &format!("f{number}"), id, nonce).expect("names");
        let bucket = self.node.bucket.clone();
        let forked = async move { bucket.fork(&fork).await };
        self.node.world.run(forked).expect("forked");
        let model = snapshot.map_or_else(|| self.model.clone(), |(_, model)| model);
        self.forks.push(model);
    }

    fn change_snapshots(&mut self, change: SnapshotChange) {
        let mut publish = self.node.change(&self.volume, Vec::new());
        publish.cut = self.volume.root().cut;
        publish.snapshots = vec![change];
        self.node
            .try_publish(&self.volume, &publish)
            .expect("published");
    }

    fn collect(&self) -> Collected {
        let volume = self.volume.clone();
        let done = async move { volume.collect(&Tidy::default(), Deletes::Really).await };
        self.node.world.run(done).expect("collected")
    }

    fn audit(&self) -> Audit {
        let volume = self.volume.clone();
        let done = async move { volume.audit().await };
        self.node.world.run(done).expect("audited")
    }

    /// What is needed is there, and counted right.
    fn check_ledger(&self) -> Audit {
        let audit = self.audit();
        assert_eq!(audit.mistakes, Vec::<String>::new());
        let there: BTreeSet<String> = self.node.store.keys().into_iter().collect();
        let missing: Vec<&String> = audit.needed.difference(&there).collect();
        assert_eq!(missing, Vec::<&String>::new());
        audit
    }

    /// After a sweep nothing is there that nobody knows of.
    fn check_swept(&self) {
        let volume = self.volume.clone();
        let swept = async move { volume.sweep(Scope::All, Deletes::Really).await };
        let swept = self.node.world.run(swept).expect("swept");
        assert_eq!(swept.kept_all, None);
        let audit = self.check_ledger();
        let fresh = self.volume.inner.fresh.borrow().clone();
        let keys = self.node.store.keys().into_iter();
        let unknown = keys.filter(|key| {
            let id = key.rsplit('-').next().unwrap_or(key);
            let is_fresh = fresh.keys().any(|fresh| Id(*fresh).to_string() == id);
            let known = audit.needed.contains(key) || audit.dead.contains(key);
            let is_object = key.contains("nbd/a/seg/") || key.contains("nbd/a/map/");
            is_object && !known && !is_fresh
        });
        assert_eq!(unknown.collect::<Vec<_>>(), Vec::<String>::new());
    }

    /// A snapshot holds what the volume held.
    fn check_snapshot(&self, id: Id, model: BTreeMap<u64, u64>) {
        let bucket = self.node.bucket.clone();
        let opened = async move { bucket.open_snapshot("a", &format!("s-{id}")).await };
        let volume = self.node.world.run(opened).expect("opens").expect("listed");
        self.check_other(volume, model);
    }

    fn check_fork(&self, number: usize, model: BTreeMap<u64, u64>) {
        let bucket = self.node.bucket.clone();
        let opened = async move { bucket.open_volume(&format!("f{number}")).await };
        let volume = self.node.world.run(opened).expect("opens");
        self.check_other(volume, model);
    }

    fn check_other(&self, volume: Volume<TestWorld>, model: BTreeMap<u64, u64>) {
        let other = Self {
            node: self.node.clone(),
            volume,
            pending: Vec::new(),
            model,
            stamp: 0,
            snapshots: Vec::new(),
            forks: Vec::new(),
        };
        other.check(PageRange::new(0, PAGES));
    }

    fn check(&self, pages: PageRange) {
        let sources = self.node.lookup(&self.volume, pages).expect("found");
        let mut at = pages.start;
        for (range, source) in sources {
            assert_eq!(range.start, at);
            at = range.end;
            if source == Source::Zero {
                let there = self.model.range(range.start.0..range.end.0).next();
                assert_eq!(there, None, "{range} should not be zero");
                continue;
            }
            let bytes = self.node.try_read(&self.volume, range).expect("readable");
            for (page_no, bytes) in (range.start.0..).zip(bytes.chunks(4096)) {
                let stamp = self.model.get(&page_no);
                let stamp = stamp.unwrap_or_else(|| panic!("page {page_no} should be zero"));
                assert!(
                    bytes == page(*stamp),
                    "page {page_no} is not of stamp {stamp}"
                );
            }
        }
        assert_eq!(at, pages.end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_map_says_what_was_written_last(
        ops in prop::collection::vec(any_op(), 1..400),
        places in prop::collection::vec((0..PAGES - 300, 1..300_u64), 10),
        is_sealed in any::<bool>(),
    ) {
        let mut checked = Checked::new(is_sealed.then_some("x"));
        for op in ops {
            checked.run(op);
        }
        checked.publish();
        checked.check(PageRange::new(0, PAGES));
        for (start, pages) in places {
            checked.check(PageRange::new(start, start + pages));
        }
        checked.run(Op::Reopen);
        checked.check(PageRange::new(0, PAGES));
        // A resumed handle may delete once a publish has proved it.
        checked.add(PageRange::new(7, 8), false);
        checked.publish();
        checked.run(Op::Collect);
        checked.check_swept();
        checked.check(PageRange::new(0, PAGES));
        for (id, model) in std::mem::take(&mut checked.snapshots) {
            checked.check_snapshot(id, model);
        }
        for (number, model) in std::mem::take(&mut checked.forks).into_iter().enumerate() {
            checked.check_fork(number, model);
        }
    }
}

#[test]
fn hundreds_of_publishes_keep_the_tail_and_the_runs_short() {
    for compact in [true, false] {
        let mut checked = Checked::new(Some("x"));
        for number in 0..900_u64 {
            let start = number * 7_919 % PAGES;
            checked.add(PageRange::new(start, start + 1), number % 10 == 9);
            checked.publish();
            if compact {
                checked.run(Op::Compact);
            }
            let now = checked.volume.inner.state.borrow();
            assert!(now.tail.segments().count() <= TAIL_SEGMENTS_MAX);
            assert!(now.map.runs.len() <= RUNS_MAX);
        }
        if compact {
            let levels = checked.volume.inner.state.borrow().map.runs.len();
            assert!(levels <= 4 * LEVEL_RUNS_MAX, "{levels} runs");
        }
        checked.check(PageRange::new(0, PAGES));
        checked.run(Op::Reopen);
        checked.check(PageRange::new(0, PAGES));
    }
}

#[test]
fn a_change_with_more_segments_than_the_tail_holds_is_folded_at_once() {
    let mut checked = Checked::new(None);
    checked.add(PageRange::new(5, 6), false);
    checked.publish();
    let mut segments = Vec::new();
    for number in 0..3 * TAIL_SEGMENTS_MAX as u64 {
        segments.push(
            checked
                .node
                .upload(&checked.volume, vec![data(number % 100, &[number])]),
        );
        checked.model.insert(number % 100, number);
    }
    let change = checked.node.change(&checked.volume, segments);
    checked
        .node
        .try_publish(&checked.volume, &change)
        .expect("published");
    checked.check(PageRange::new(0, PAGES));
    checked.run(Op::Reopen);
    checked.check(PageRange::new(0, PAGES));
}

#[test]
fn publishes_go_on_while_the_map_is_compacted() {
    let mut checked = Checked::new(None);
    for round in 0..60_u64 {
        for number in 0..12_u64 {
            let start = (round * 12 + number) * 613 % 2_000;
            checked.add(PageRange::new(start, start + 3), number == 11);
            checked.publish();
        }
        // Starts, and is left half-way: the next publishes run beside it.
        let volume = checked.volume.clone();
        checked.node.world.spawn(async move {
            volume.compact_map().await.expect("compacted");
        });
    }
    checked.check(PageRange::new(0, 3_000));
    assert!(!checked.volume.inner.state.borrow().map.runs.is_empty());
    checked.run(Op::Reopen);
    checked.check(PageRange::new(0, 3_000));
}

#[test]
fn a_publish_whose_answer_was_lost_beside_finished_work_on_the_map() {
    use StoreErrorKind::{Retry, Unknown};
    let mut checked = Checked::new(None);
    for number in 0..40_u64 {
        checked.add(PageRange::new(number, number + 2), false);
        checked.publish();
    }
    // Sent without the fold, and it lands; the answer and the read-back are lost.
    let segment = checked.node.upload(&checked.volume, vec![data(3, &[77])]);
    checked.model.insert(3, 77);
    let change = checked.node.change(&checked.volume, vec![segment]);
    let store = &checked.node.store;
    store.fail("replace", [Fault::After(Unknown)]);
    store.fail("get", vec![Fault::Before(Retry); 5]);
    checked
        .node
        .try_publish(&checked.volume, &change)
        .expect_err("an outage");
    store.heal();
    checked.node.compact(&checked.volume);
    // Sent again, now with the fold: what is found is the first body.
    checked
        .node
        .try_publish(&checked.volume, &change)
        .expect("found");
    assert!(checked.volume.inner.state.borrow().map.runs.is_empty());
    checked.check(PageRange::new(0, 100));
    checked.add(PageRange::new(50, 51), false);
    checked.publish();
    assert_eq!(
        checked.volume.inner.state.borrow().map.runs.len(),
        1,
        "the fold came along"
    );
    checked.check(PageRange::new(0, 100));
    checked.run(Op::Reopen);
    checked.check(PageRange::new(0, 100));
}

#[test]
fn zeros_at_the_bottom_go_away() {
    let mut checked = Checked::new(None);
    for round in 0..160_u64 {
        let start = round % 16 * 32;
        checked.add(
            PageRange::new(start, start + 32),
            round >= 80 || round % 2 == 1,
        );
        checked.publish();
        checked.run(Op::Compact);
    }
    checked.publish();
    checked.check(PageRange::new(0, 2_000));
    let now = checked.volume.inner.state.borrow();
    let entries = |run: &Rc<Run>| run.parts.iter().map(|part| part.entries).sum::<u64>();
    let bottom = now.map.runs.last().map_or(0, entries);
    assert!(bottom < 16, "{bottom} entries for nothing");
}

#[test]
fn leaves_that_nothing_touched_are_carried_over() {
    let mut checked = Checked::new(None);
    // A wide base, folded and merged once.
    for number in 0..160_u64 {
        checked.add(PageRange::new(number * 16_384, number * 16_384 + 4), false);
        checked.publish();
        checked.run(Op::Compact);
    }
    let bytes = |node: &Node| -> usize {
        let keys = node.store.keys();
        let map = keys.iter().filter(|key| key.contains("/map/"));
        map.map(|key| node.store.object(key).len()).sum()
    };
    let before = bytes(&checked.node);
    // Then one corner is written again and again.
    for number in 0..200_u64 {
        let start = number % 8;
        checked.add(PageRange::new(start, start + 1), false);
        checked.publish();
        checked.run(Op::Compact);
    }
    let names: BTreeSet<ObjectName> = {
        let reader = checked.volume.reader(&checked.volume.inner.state.borrow());
        let runs = checked.volume.inner.state.borrow().map.runs.clone();
        let bottom = Rc::clone(runs.last().expect("there is a run"));
        checked.node.world.run(async move {
            let mut names = BTreeSet::new();
            for part in &bottom.parts {
                let nodes = reader.bucket.nodes();
                let directory = nodes.directory(&reader, part).await.expect("readable");
                names.extend(directory.leaves.iter().map(|leaf| leaf.object));
            }
            names
        })
    };
    assert!(names.len() > 1, "no leaf was carried over");
    let written = bytes(&checked.node) - before;
    assert!(written < 200_000, "{written} bytes of map for a corner");
    checked.check(PageRange::new(0, 161 * 16_384));
}

/// A merge before a slow store: a request for each leaf cost hundreds of round trips for each GiB.
#[test]
fn a_merge_reads_neighbouring_leaves_together() {
    const SLOTS: u64 = 60;
    let mut checked = Checked::new(None);
    for round in 0..4_u64 {
        for slot in 0..SLOTS {
            let start = slot * 16_384 + round;
            checked.add(PageRange::new(start, start + 16), false);
        }
        checked.publish();
        let only_fold = Patience {
            tail_segments: 1,
            tail_extents: 1,
            level_runs: RUNS_MAX,
            upper_entries: u64::MAX,
            upper_share: u64::MAX,
        };
        let volume = checked.volume.clone();
        let done = async move { volume.compact_beyond(only_fold).await };
        checked.node.world.run(done).expect("folded");
    }
    checked.publish();
    let before = checked.node.store.counts();
    checked.run(Op::CompactAll);
    let after = checked.node.store.counts();
    let (gets, puts) = (after.gets - before.gets, after.puts - before.puts);
    assert!(puts >= 1, "nothing was merged");
    assert!(gets <= 16, "{gets} GETs for 4 runs of {SLOTS} leaves");
    checked.check(PageRange::new(0, PAGES));
}

#[test]
fn identical_misses_join() {
    let mut checked = Checked::new(None);
    for number in 0..40_u64 {
        checked.add(PageRange::new(number, number + 1), false);
        checked.publish();
    }
    checked.run(Op::Compact);
    checked.add(PageRange::new(90, 91), false);
    checked.publish();
    checked.node.bucket = checked.node.bucket.clone().with_nodes_bytes(1 << 20);
    checked.run(Op::Reopen);
    let before = checked.node.store.counts().gets;
    let lookups = (0..10_u64).map(|number| {
        let volume = checked.volume.clone();
        async move {
            volume
                .lookup(PageRange::new(number, number + 1))
                .await
                .expect("found")
        }
    });
    let lookups = futures_util::future::join_all(lookups);
    checked.node.world.run(lookups);
    assert_eq!(
        checked.node.store.counts().gets - before,
        2,
        "one directory, one leaf"
    );
}

/// Issue: a 500 GB volume written at random keeps the memory of its map bounded, and wakes without
/// a GET per segment.
#[test]
fn a_large_volume_written_at_random_stays_small_in_memory_and_opens_quickly() {
    const NODES: usize = 2 << 20;
    let store = TestStore::default();
    let mut node = Node::new(1, &store, None);
    node.bucket = node.bucket.clone().with_nodes_bytes(NODES);
    let volume = node.create("big");
    let volume_pages = 500_000_000_000 / PAGE;
    let mut last = BTreeMap::new();
    for sync in 0..400_u64 {
        let mut pages = BTreeMap::new();
        for entry in 0..800_u64 {
            let hash = blake3::hash(&(sync * 800 + entry).to_le_bytes());
            let place = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("8 of 32"));
            pages.insert(place % volume_pages, sync * 800 + entry);
        }
        let frames = pages
            .iter()
            .map(|(&page, &stamp)| light(page, stamp))
            .collect();
        node.sync(&volume, frames);
        last.extend(pages);
        node.compact(&volume);
        let now = volume.inner.state.borrow();
        assert!(now.tail.extents_count() <= 64 * 800);
        assert!(node.bucket.nodes().bytes() <= NODES);
    }
    assert!(last.len() > 300_000);
    let segments = store
        .keys()
        .iter()
        .filter(|key| key.contains("/seg/"))
        .count();
    assert_eq!(segments, 400);

    let before = store.counts().gets;
    let volume = node.open("big").expect("opens");
    let gets = store.counts().gets - before;
    assert!(gets <= 2 + TAIL_SEGMENTS_MAX, "{gets} GETs to open");
    for (number, (&page, &stamp)) in last.iter().step_by(3_001).enumerate() {
        let before = store.counts().gets;
        let read = node.read(&volume, page, 1);
        assert!(read == light_page(stamp), "page {page}");
        let gets = store.counts().gets - before;
        assert!(gets <= 40, "{gets} GETs for look-up {number}");
        assert!(node.bucket.nodes().bytes() <= NODES);
    }
    const { assert!(NODES < NODES_BYTES_MAX) };
}

fn light_page(stamp: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..8].copy_from_slice(&stamp.to_le_bytes());
    page[8] = 1;
    page
}

fn light(page: u64, stamp: u64) -> PlainFrame {
    PlainFrame {
        pages: PageRange::new(page, page + 1),
        content: FrameContent::Data(light_page(stamp).into()),
    }
}
