//! One volume of the cache: writes, reads, its state.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use world::{Instant, World};

use super::{
    CacheVolume, Known, LocalVolume, Missing, Shared, WRITE_BYTES_MAX, dirty_age, local, tasks,
};
use crate::budget::{self, Verdict};
use crate::index::Found;
use crate::log::{Log, Spare};
use crate::{CacheError, Id, PAGE_BYTES, PageRange, SECTOR_BYTES, Seq, VolumeCounts};

impl<W: World> CacheVolume<W> {
    pub fn id(&self) -> Id {
        self.id
    }

    pub(super) fn shared(&self) -> &Rc<Shared<W>> {
        &self.cache.shared
    }

    /// Appends a write and returns its seq once it, and all before it, outlive the process.
    /// Waits while the dirty bound is reached (rule 10); never fails because the store is slow.
    pub async fn write(&self, at: u64, data: Bytes) -> Result<Seq, CacheError> {
        let len = data.len() as u64;
        assert!(at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) && len > 0);
        assert!(
            len <= WRITE_BYTES_MAX,
            "a write of {len} bytes is over the limit"
        );
        let pages = PageRange::touched_by(at, len).pages();
        let turn = self.admit(pages).await?;
        // No await from here to the end of the append: all pieces of a write are in one cut or none.
        let appended = {
            let mut log = self.shared().log.borrow_mut();
            let now = log.moment(self.shared().world.now());
            log.append_write(self.id, at, &data, now)
        };
        drop((turn, data));
        self.commit(appended).await
    }

    /// Appends "these bytes are zero": O(1) in the length. For TRIM and WRITE_ZEROES.
    pub async fn zero(&self, at: u64, len: u64) -> Result<Seq, CacheError> {
        assert!(at.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) && len > 0);
        let turn = self.admit(3).await?;
        let appended = {
            let mut log = self.shared().log.borrow_mut();
            let now = log.moment(self.shared().world.now());
            let (end, first) = (at + len, at.next_multiple_of(PAGE_BYTES));
            let last = (at + len) / PAGE_BYTES * PAGE_BYTES;
            let sectors = |log: &mut Log, from: u64, to: u64| {
                let zeros = vec![0; usize::try_from(to - from).expect("within a page")];
                log.append_write(self.id, from, &zeros, now)
            };
            if first > last || first >= end {
                sectors(&mut log, at, end)
            } else {
                // In order of address, as a cut expects it of the pieces of one write.
                let mut appended = (at < first).then(|| sectors(&mut log, at, first));
                if first < last {
                    let pages = PageRange::new(first / PAGE_BYTES, last / PAGE_BYTES);
                    appended = Some(log.append_zeros(self.id, pages, now));
                }
                if last < end {
                    appended = Some(sectors(&mut log, last, end));
                }
                appended.expect("the range is not empty")
            }
        };
        drop(turn);
        self.commit(appended).await
    }

    /// Makes every write of this volume that returned before this call durable.
    pub async fn flush(&self) -> Result<(), CacheError> {
        let lsn = self
            .shared()
            .log
            .borrow()
            .volumes
            .get(&self.id)
            .map_or(0, |v| v.last_lsn);
        self.shared().flush_to(lsn).await
    }

    /// Waits for those who came before, for the dirty budget, then for room in the log. When it
    /// returns, an append of so many pages succeeds without waiting, if nothing is awaited before
    /// it. The turn is kept until after the append: writes take effect in the order in which they
    /// were first polled, so that a stalled one never lands on top of its own repetition.
    async fn admit(&self, pages: u64) -> Result<Turn<W>, CacheError> {
        let shared = self.shared();
        let turn = Turn::take(self);
        let mut delayed = false;
        let mut throttled = None;
        let since = |throttled: &mut Option<Instant>| {
            throttled.get_or_insert_with(|| shared.world.now());
        };
        loop {
            shared.check()?;
            if self.is_fenced() {
                return Err(CacheError::Fenced);
            }
            let verdict = self.verdict(pages * PAGE_BYTES);
            match verdict {
                Verdict::After(delay) if !delayed => {
                    delayed = true;
                    since(&mut throttled);
                    shared.dirty_grown.notify_waiters();
                    shared.world.sleep(delay).await;
                    continue;
                }
                _ if turn.waits().await => continue,
                Verdict::Wait => {
                    since(&mut throttled);
                    shared.dirty_grown.notify_waiters();
                    shared.waiting(shared.dirty_freed.notified()).await;
                    continue;
                }
                Verdict::Go | Verdict::After(_) => {}
            }
            if shared.log.borrow().has_room(pages, Spare::States) {
                shared.log.borrow_mut().relocated = 0;
                break;
            }
            since(&mut throttled);
            let chunks = shared.log.borrow().chunks_for(pages) + Spare::States.chunks();
            shared
                .chunks_wanted
                .set(shared.chunks_wanted.get().max(chunks));
            shared.space_wanted.notify_one();
            shared.commit_wanted.notify_one();
            shared.dirty_grown.notify_waiters();
            shared.waiting(shared.space_freed.notified()).await;
        }
        if let Some(since) = throttled {
            shared.counters.borrow_mut().throttled += 1;
            if let Some(volume) = shared.log.borrow_mut().volumes.get_mut(&self.id) {
                volume.counts.throttled += 1;
                volume.counts.throttled_for += shared.world.now() - since;
            }
        }
        if shared.log.borrow().ready.len() < tasks::READY_CHUNKS_MIN {
            shared.space_wanted.notify_one();
        }
        Ok(turn)
    }

    fn verdict(&self, bytes: u64) -> Verdict {
        let shared = self.shared();
        let log = shared.log.borrow();
        let own = log
            .volumes
            .get(&self.id)
            .map_or(0, |volume| volume.dirty_bytes);
        let of_volume = budget::admit(own, bytes, shared.config.volume_dirty_bytes_max);
        let of_all = budget::admit(log.dirty_bytes, bytes, shared.dirty_bytes_max());
        match (of_volume, of_all) {
            (Verdict::Wait, _) | (_, Verdict::Wait) => Verdict::Wait,
            (Verdict::After(a), Verdict::After(b)) => Verdict::After(a.max(b)),
            (Verdict::After(delay), Verdict::Go) | (Verdict::Go, Verdict::After(delay)) => {
                Verdict::After(delay)
            }
            (Verdict::Go, Verdict::Go) => Verdict::Go,
        }
    }

    async fn commit(&self, appended: crate::log::Appended) -> Result<Seq, CacheError> {
        let shared = self.shared();
        shared.commit_wanted.notify_one();
        if let Some(volume) = shared.log.borrow().volumes.get(&self.id) {
            volume.dirtied.notify_waiters();
        }
        if self.pressed() {
            shared.dirty_grown.notify_waiters();
        }
        shared.reached(&shared.committed, appended.lsn).await?;
        Ok(appended.seq)
    }

    /// What happened to it since the start.
    pub fn counts(&self) -> VolumeCounts {
        let log = self.shared().log.borrow();
        let volume = log.volumes.get(&self.id);
        volume.map(|volume| volume.counts).unwrap_or_default()
    }

    /// Reads whole pages into `out` (`pages.bytes()` long) as far as they are here; the rest is
    /// returned, in order of address. Nothing is read from the store.
    pub async fn read(&self, pages: PageRange, out: &mut [u8]) -> Result<Vec<Missing>, CacheError> {
        assert_eq!(
            out.len() as u64,
            pages.bytes(),
            "one buffer for the whole range"
        );
        let shared = self.shared();
        let runs = loop {
            let (runs, pins, staged) = shared.look_up(self.id, pages);
            if !staged {
                break (runs, pins);
            }
            drop(pins);
            // Newer bytes are on their way to the kernel; they are there in a moment.
            let lsn = shared.log.borrow().next_lsn - 1;
            shared.commit_wanted.notify_one();
            shared.reached(&shared.committed, lsn).await?;
        };
        let (runs, pins) = runs;
        let mut missing = Vec::new();
        for (run, found) in runs {
            let from = usize::try_from((run.start.0 - pages.start.0) * PAGE_BYTES).expect("in out");
            let len = usize::try_from(run.bytes()).expect("in out");
            let into = &mut out[from..from + len];
            self.read_run(run, &found, into, &mut missing).await?;
        }
        drop(pins);
        Ok(missing)
    }

    pub(super) async fn read_run(
        &self,
        run: PageRange,
        found: &Found,
        into: &mut [u8],
        missing: &mut Vec<Missing>,
    ) -> Result<(), CacheError> {
        match found {
            Found::Zero => into.fill(0),
            Found::Absent => missing.push(Missing {
                pages: run,
                patches: Vec::new(),
            }),
            Found::Log(at) => match self.shared().read_log(*at, into).await {
                Err(CacheError::Damaged { .. }) if self.is_clean(run) => {
                    // The store holds the same bytes: decay of the SSD costs a fetch, not data.
                    self.say_decay(run);
                    missing.push(Missing {
                        pages: run,
                        patches: Vec::new(),
                    });
                }
                other => other?,
            },
            Found::Overlaid { base, overlays } => {
                let patches = self
                    .shared()
                    .overlay_patches(run.start, *base, overlays, into)
                    .await?;
                if let Some(patches) = patches {
                    missing.push(Missing {
                        pages: run,
                        patches,
                    });
                }
            }
        }
        Ok(())
    }

    /// Says the first, second, fourth, eighth time that pages are damaged: a disk that decays is read
    /// again and again.
    fn say_decay(&self, pages: PageRange) {
        let mut log = self.shared().log.borrow_mut();
        let Some(volume) = log.volumes.get_mut(&self.id) else {
            return;
        };
        volume.counts.decayed_reads += 1;
        let times = volume.counts.decayed_reads;
        if times.is_power_of_two() {
            tracing::warn!(volume = %self.id, %pages, times, "damaged clean pages in the cache log; reading them from the store");
        }
    }

    /// No unpublished record touches these pages.
    fn is_clean(&self, pages: PageRange) -> bool {
        let log = self.shared().log.borrow();
        let Some(volume) = log.volumes.get(&self.id) else {
            return false;
        };
        let mut unpublished = volume
            .dirty
            .iter()
            .filter(|record| record.seq > volume.state.published);
        volume.damage.is_none()
            && !unpublished.any(|record| record.what.pages().overlap(pages).is_some())
    }

    /// What is known of the range, as runs in order that cover it.
    pub fn known(&self, pages: PageRange) -> Vec<(PageRange, Known)> {
        let log = self.shared().log.borrow();
        let Some(volume) = log.volumes.get(&self.id) else {
            return vec![(pages, Known::Absent)];
        };
        let runs = volume.index.lookup(pages, volume.state.published);
        let kind = |found: &Found| match found {
            Found::Log(_) | Found::Overlaid { .. } => Known::Data,
            Found::Zero => Known::Zero,
            Found::Absent => Known::Absent,
        };
        runs.iter()
            .map(|(run, found)| (*run, kind(found)))
            .collect()
    }

    /// The root with this cut is published and its map is installed: all up to it is clean now.
    /// To be called in the same step that installs the map (no await between).
    pub fn published(&self, cut: Seq, nonce: Id) {
        {
            let mut log = self.shared().log.borrow_mut();
            let Some(volume) = log.volumes.get_mut(&self.id) else {
                return;
            };
            assert!(
                cut <= volume.last,
                "published {cut} beyond the last write {}",
                volume.last
            );
            let state = &mut volume.state;
            state.published = state.published.max(cut);
            state.nonce = nonce;
            state.intents.clear();
        }
        self.keep_state();
        self.shared().sweep(self.id);
    }

    /// Ownership was given up: a later start does not resume this epoch by itself (rule 14).
    pub async fn detached(&self) -> Result<(), CacheError> {
        let shared = self.shared();
        shared.room_for_state().await?;
        let lsn = {
            let mut log = shared.log.borrow_mut();
            let Some(volume) = log.volumes.get_mut(&self.id) else {
                return Ok(());
            };
            volume.state.attached = false;
            log.append_state(self.id)
        };
        shared.flush_to(lsn).await
    }

    /// The volume grew; durable with the next state record.
    pub fn resized(&self, size_bytes: u64) {
        if let Some(volume) = self.shared().log.borrow_mut().volumes.get_mut(&self.id) {
            volume.state.size_bytes = size_bytes;
        }
        self.keep_state();
    }

    /// Writes the state down soon. Losing it costs nothing but a question to the store: the intent
    /// is durable already.
    fn keep_state(&self) {
        let (shared, id) = (Rc::clone(&self.cache.shared), self.id);
        self.shared().world.spawn(async move {
            if shared.room_for_state().await.is_ok() {
                let known = shared.log.borrow().volumes.contains_key(&id);
                if known {
                    shared.log.borrow_mut().append_state(id);
                    shared.commit_wanted.notify_one();
                }
            }
        });
    }

    /// The state of the volume, as for [`Cache::volumes`]; none once it is dropped from the log.
    pub fn state(&self) -> Option<LocalVolume> {
        let now = self.shared().world.now();
        let log = self.shared().log.borrow();
        log.volumes.get(&self.id).map(|volume| local(volume, now))
    }

    /// How long the oldest unpublished write has waited.
    pub fn dirty_age(&self) -> Duration {
        let shared = self.shared();
        let log = shared.log.borrow();
        let volume = log.volumes.get(&self.id);
        volume.map_or(Duration::ZERO, |volume| {
            dirty_age(volume, shared.world.now())
        })
    }

    /// Returns once something is unpublished.
    pub async fn wait_dirty(&self) {
        let dirtied = {
            let log = self.shared().log.borrow();
            log.volumes.get(&self.id).map(|v| Rc::clone(&v.dirtied))
        };
        // A volume that is dropped from the log never becomes dirty.
        let Some(dirtied) = dirtied else {
            return std::future::pending().await;
        };
        loop {
            // Made before the look: a write between the two wakes it.
            let next = dirtied.notified();
            let state = self.state();
            if state.is_some_and(|state| state.last > state.published) {
                return;
            }
            next.await;
        }
    }

    /// Returns once [`CacheVolume::pressed`].
    pub async fn wait_pressed(&self) {
        loop {
            let next = self.shared().dirty_grown.notified();
            if self.pressed() {
                return;
            }
            next.await;
        }
    }

    /// Another epoch of the volume exists: writes that wait for room, and all later ones, fail with
    /// [`CacheError::Fenced`] until the next attach, for nothing will be published that could make
    /// room for them.
    pub fn fence(&self) {
        if let Some(volume) = self.shared().log.borrow_mut().volumes.get_mut(&self.id) {
            volume.fenced = true;
        }
        self.shared().dirty_freed.notify_waiters();
        self.shared().space_freed.notify_waiters();
        // Those who wait for their turn follow one by one, as each before them gives up.
    }

    /// The epoch that was given up for lost is held still: its root was gone for a moment alone. Writes are taken again.
    pub fn unfence(&self) {
        if let Some(volume) = self.shared().log.borrow_mut().volumes.get_mut(&self.id) {
            volume.fenced = false;
        }
    }

    fn is_fenced(&self) -> bool {
        let log = self.shared().log.borrow();
        log.volumes.get(&self.id).is_none_or(|volume| volume.fenced)
    }

    /// True once the dirty bytes are at half of a bound or more, or a writer waits: sync now.
    pub fn pressed(&self) -> bool {
        let shared = self.shared();
        let log = shared.log.borrow();
        let own = log
            .volumes
            .get(&self.id)
            .map_or(0, |volume| volume.dirty_bytes);
        own > 0
            && (shared.writers_waiting.get() > 0
                || budget::pressed(own, shared.config.volume_dirty_bytes_max)
                || budget::pressed(log.dirty_bytes, shared.dirty_bytes_max()))
    }
}

/// A writer's place among those of its volume; given up when it is dropped.
struct Turn<W: World> {
    volume: CacheVolume<W>,
    number: u64,
}

impl<W: World> Turn<W> {
    fn take(volume: &CacheVolume<W>) -> Self {
        let mut log = volume.shared().log.borrow_mut();
        let number = log.volumes.get_mut(&volume.id).map_or(0, |known| {
            let number = known.next_turn;
            known.next_turn += 1;
            known.turns.push_back(number);
            number
        });
        drop(log);
        Self {
            volume: volume.clone(),
            number,
        }
    }

    /// False if nobody is before. Otherwise waits until somebody before has gone, and returns true.
    async fn waits(&self) -> bool {
        let turned = {
            let log = self.volume.shared().log.borrow();
            let Some(known) = log.volumes.get(&self.volume.id) else {
                return false;
            };
            if known.turns.front() == Some(&self.number) {
                return false;
            }
            Rc::clone(&known.turned)
        };
        turned.notified().await;
        true
    }
}

impl<W: World> Drop for Turn<W> {
    fn drop(&mut self) {
        let mut log = self.volume.shared().log.borrow_mut();
        let Some(known) = log.volumes.get_mut(&self.volume.id) else {
            return;
        };
        if known.turns.front() == Some(&self.number) {
            known.turns.pop_front();
        } else {
            known.turns.retain(|number| *number != self.number);
        }
        known.turned.notify_waiters();
    }
}
