//! Changing the root: taking a volume, publishing cuts, and carrying finished work on the map. Here is one volume's
//! part in that; `members.rs` does it for all that lie in one object.
//!
//! ```text
//!            replace If-Match                    read back
//! planned ---------------------> answered ok --------------------> Landed
//!    ^                             unclear ----> our nonce -------> Landed (as it was read)
//!    |                                    \----> same version ----> the identical body again
//!    +---- older intent of ours (install) <\---> own older nonce
//!                                            \-> anything else ---> Fenced; no root: Vanished
//! ```
//!
//! A body once sent may land at any later time. So it is repeated byte by byte while the version is
//! the same, and what is installed afterwards is what was read back, never what was meant.

use std::rc::Rc;

use blockcache::{Epoch, Id};
use world::World;

use super::books::{Change, keep};
use super::bucket::{check_size, load_map, load_segment, vanished};
use super::compact::{fold, zeros_over};
use super::extent::Extent;
use super::ledger::{Dead, News, ObjectId, Tally};
use super::renew;
use super::root::{Root, RootOwner, State, Stored, TailSegment};
use super::runs::{Map, MapIndex, Run};
use super::sealed::{Kind, ObjectRef};
use super::{Hold, Owner, Publish, RootView, Uploaded, Volume, VolumeError, VolumeState};

/// Extents of the tail in memory at which a publish must fold.
const TAIL_EXTENTS_MAX: usize = 128 << 10;

/// A root that is in the store, with what is needed to put its map in place.
#[derive(Debug)]
pub struct Published {
    /// As published.
    pub root: RootView,
    stored: Stored,
    map: Map,
    /// Segments of the tail that this handle did not have when they were published.
    fresh: Vec<(TailSegment, Rc<[Extent]>)>,
}

/// What a publish wants the root to be, and the map that it will name.
pub(super) struct Plan {
    pub(super) root: Root,
    pub(super) map: Map,
}

impl<W: World> Volume<W> {
    /// Becomes the owner by compare-and-swap of epoch + 1. Refused while another cache owns it
    /// and it is not detached, unless `force` names the epoch expected. A member of a group is taken with
    /// all others: [`super::Members::take`].
    pub async fn take(
        &self,
        owner: &Owner,
        nonce: Id,
        force: Option<Epoch>,
    ) -> Result<RootView, VolumeError> {
        let taken = Box::pin(self.alone().take(owner, nonce, force)).await?;
        Ok(taken.into_iter().next().expect("one was taken"))
    }

    /// It is taken, by a swap of what this handle had loaded.
    pub(super) fn took(&self, base: &Stored, now: Stored) -> RootView {
        let mut state = self.inner.state.borrow_mut();
        state.stored = now;
        state.hold = Hold::Held;
        state.is_proved = true;
        state.leavings = (base.root.state == State::Open).then_some(Epoch(base.root.epoch));
        state.installs += 1;
        state.stored.view()
    }

    /// Goes on as the owner that the root names already (a restart, rule 14). The next publish
    /// proves it. Fenced if the root says otherwise.
    pub fn resume(&self, owner: &Owner, epoch: Epoch) -> Result<RootView, VolumeError> {
        self.may_resume(owner, epoch)?;
        let mut state = self.inner.state.borrow_mut();
        state.hold = Hold::Held;
        state.leavings = Some(epoch);
        Ok(state.stored.root.view(&state.stored.etag))
    }

    pub(super) fn may_resume(&self, owner: &Owner, epoch: Epoch) -> Result<(), VolumeError> {
        let root = &self.inner.state.borrow().stored.root;
        let same = root
            .owner
            .as_ref()
            .is_some_and(|by| by.cache == owner.cache.0);
        if !same || root.epoch != epoch.0 || root.state != State::Open {
            return Err(fenced(epoch.0, root));
        }
        Ok(())
    }

    /// Makes `change.cut` the state of the volume, as [`super::Members::publish`] does. A member of a group is published with all
    /// others.
    pub async fn publish(&self, change: &Publish) -> Result<Published, VolumeError> {
        let published = Box::pin(self.alone().publish(std::slice::from_ref(change))).await?;
        Ok(published.into_iter().next().expect("one was published"))
    }

    /// Puts a published root's map in place, in one step. Lookups see it from now on.
    pub fn install(&self, published: Published) -> RootView {
        let installed = self.alone().install(vec![published]);
        installed.into_iter().next().expect("one was installed")
    }

    /// A publish after it found it landed, and has put it, or more, in place already.
    pub(super) fn is_beyond(&self, published: &Published) -> bool {
        let now = &self.inner.state.borrow().stored;
        let there = &published.stored;
        let position = |stored: &Stored| (stored.root.epoch, stored.root.content.cut_seq);
        there.is_version_of(now) || position(there) < position(now)
    }

    pub(super) fn put_in_place(&self, published: Published) -> RootView {
        let mut state = self.inner.state.borrow_mut();
        let state = &mut *state;
        let Published {
            root: view,
            stored,
            map,
            fresh,
        } = published;
        let tail = &stored.root.content.tail;
        state
            .tail
            .keep(|id| tail.iter().any(|segment| segment.id() == id.0));
        for (segment, extents) in fresh {
            if !state.tail.holds(Id(segment.id())) {
                state.tail.push(segment, &extents);
            }
        }
        assert!(
            state.tail.segments().eq(tail),
            "the tail in memory is the root's"
        );
        map.forgotten.iter().for_each(|id| {
            state.gone.remove(id);
        });
        let mut unnamed = self.inner.fresh.borrow_mut();
        let named = tail.iter().map(TailSegment::id);
        named.chain(map.named.iter().copied()).for_each(|id| {
            unnamed.remove(&id);
        });
        state.map = map;
        state.installs += 1;
        let mut shape = super::Shape {
            runs: state.map.runs.clone(),
            tail: tail.clone(),
        };
        state.edits.retain(|edit| shape.apply(edit));
        if stored.root.state != State::Open {
            state.hold = Hold::Free;
        }
        state.is_proved = true;
        state.flattening.landed(&state.stored.root, &stored.root);
        state.stored = stored;
        view
    }

    /// Asks the store whether this handle's epoch is still the current one. What the map names may be gone only
    /// because it is not (rule 23).
    pub(crate) async fn check_epoch(&self) -> Result<(), VolumeError> {
        let ours = self.inner.state.borrow().stored.root.clone();
        let now = self.inner.bucket.read_root(&self.inner.name).await?;
        let now = now.ok_or_else(|| vanished(&self.inner.name))?;
        if now.root.epoch == ours.epoch && now.root.volume == ours.volume {
            return Ok(());
        }
        Err(fenced(ours.epoch, &now.root))
    }

    pub(super) async fn turn(&self) -> world::sync::SemaphorePermit<'_> {
        let turn = self.inner.publishing.acquire().await;
        turn.expect("nobody closes the semaphore")
    }

    pub(super) fn holding(&self) -> Result<Stored, VolumeError> {
        let state = self.inner.state.borrow();
        match state.hold {
            Hold::Held => Ok(state.stored.clone()),
            Hold::Free => Err(VolumeError::Invalid(format!(
                "volume `{}` is not open for writing here",
                self.inner.name
            ))),
        }
    }

    /// Fine only if what is there is an older intent of this very log.
    pub(super) fn check_lost(
        &self,
        base: &Stored,
        now: &Stored,
        change: &Publish,
    ) -> Result<(), VolumeError> {
        let position = |root: &Root| (root.epoch, root.content.cut_seq);
        let ours = change.ours.iter().any(|nonce| nonce.0 == now.root.nonce);
        if ours && now.root.epoch == base.root.epoch && now.root.volume == base.root.volume {
            return Ok(());
        }
        if now.root.volume == base.root.volume && position(&now.root) < position(&base.root) {
            let what = format!(
                "it was rolled back from epoch {} cut {} to epoch {} cut {}",
                base.root.epoch,
                base.root.content.cut_seq,
                now.root.epoch,
                now.root.content.cut_seq
            );
            return Err(VolumeError::damaged(&self.inner.name.root_key(), what));
        }
        Err(fenced(base.root.epoch, &now.root))
    }

    /// The root that the change asks for, on top of `base`, but for its snapshots. Uploads a map index if work on the map
    /// is finished, and folds in place if the tail would grow beyond its bound.
    pub(super) async fn plan(
        &self,
        base: &Stored,
        change: &Publish,
        now_ms: u64,
    ) -> Result<Plan, VolumeError> {
        let mut root = changed(&base.root, change, now_ms)?;
        let (mut shape, mut tallies, tail_extents, maker) = {
            let state = self.inner.state.borrow();
            let (shape, tallies) = state.shape();
            let tallies: Vec<Tally> = tallies.into_iter().cloned().collect();
            let extents = state.tail.extents_count();
            (shape, tallies, extents, self.maker(&state))
        };
        let cut = root.content.cut_seq;
        let new: Vec<&Uploaded> = new_segments(&base.root, change).collect();
        let extents = tail_extents + new.iter().map(|new| new.extents.len()).sum::<usize>();
        if shape.tail.len() + new.len() > base.tail_max() || extents > TAIL_EXTENTS_MAX {
            let extents = self.tail_with(&shape.tail, &new, cut);
            let all = shape.tail.iter().copied();
            let all = all.chain(new.iter().map(|new| new.in_tail(cut)));
            let all: Vec<TailSegment> = all.collect();
            let zeros = zeros_over(&shape.runs);
            let folded = fold(maker.clone(), extents, zeros, &all).await?;
            shape.runs.splice(0..0, folded.run);
            tallies.push(folded.tally);
            root.content.tail.clear();
        } else {
            let new = new.iter().map(|new| new.in_tail(cut));
            root.content.tail = shape.tail.into_iter().chain(new).collect();
        }
        let keeps_index = {
            let state = self.inner.state.borrow();
            state.flattening.apply(&mut root);
            tallies.is_empty() && !state.flattening.needs_index(&base.root)
        };
        let map = if keeps_index {
            self.inner.state.borrow().map.clone()
        } else {
            let index = self.index(base, shape.runs, &tallies, cut);
            let (map, reference) = Box::pin(index).await?;
            root.content.map = Some(reference);
            map
        };
        Ok(Plan { root, map })
    }

    /// Writes a map index that names these runs, with the ledger that goes with them.
    async fn index(
        &self,
        base: &Stored,
        runs: Vec<Rc<Run>>,
        tallies: &[Tally],
        cut: u64,
    ) -> Result<(Map, ObjectRef), VolumeError> {
        let (reader, maker, before, gone) = {
            let state = self.inner.state.borrow();
            let gone = state.gone.keys().copied().collect();
            (
                self.reader(&state),
                self.maker(&state),
                state.map.clone(),
                gone,
            )
        };
        let last = base.root.content.cut_seq;
        let mut news = News::new(maker.volume, tallies, cut);
        let old = base.root.content.map;
        let old = old.filter(|map| map.volume == maker.volume.0);
        let old = old.map(|map| Dead::of(Kind::MapIndex, &map, before.birth, last));
        news.table.dead.extend(old);
        let change = Change {
            news,
            last,
            cut,
            gone: &gone,
        };
        let mut named: Vec<ObjectId> = {
            let live = change.news.table.live.iter();
            live.map(|entry| entry.id).collect()
        };
        let kept = keep(&reader, &maker, &before.ledger, change).await?;
        named.extend(kept.ledger.chunks.iter().map(|chunk| chunk.object.id));
        let index = MapIndex {
            birth: cut,
            runs: runs.iter().map(|run| Run::clone(run)).collect(),
            ledger: kept.ledger.clone(),
        };
        let index = maker.put_index(Kind::MapIndex, index.encode()).await?;
        named.push(index.id);
        let map = Map {
            birth: cut,
            runs,
            ledger: Rc::new(kept.ledger),
            forgotten: kept.forgotten.into(),
            named: named.into(),
        };
        Ok((map, index))
    }

    /// Everything that these segments of the tail and then the new ones say.
    fn tail_with(&self, kept: &[TailSegment], new: &[&Uploaded], cut: u64) -> Vec<Extent> {
        let mut tail = self.inner.state.borrow().tail.clone();
        tail.keep(|id| kept.iter().any(|segment| segment.id() == id.0));
        for segment in new {
            tail.push(segment.in_tail(cut), &segment.extents);
        }
        tail.extents()
    }

    /// What is needed to install a root that is in the store. Reads what this handle lacks, which
    /// is nothing unless an earlier, forgotten publish of ours was found.
    pub(super) async fn prepare(
        &self,
        stored: Stored,
        change: &Publish,
        planned: Option<(Option<ObjectRef>, Map)>,
    ) -> Result<Published, VolumeError> {
        let reader = self.reader(&self.inner.state.borrow());
        // It is in the store: what it lists seals from here on.
        let prefix_keys = self.inner.bucket.prefix_keys();
        reader.volumes.learn(&stored.root, prefix_keys)?;
        let content = &stored.root.content;
        let map = match planned {
            Some((reference, map)) if reference == content.map => map,
            _ if self.inner.state.borrow().stored.root.content.map == content.map => {
                self.inner.state.borrow().map.clone()
            }
            _ => load_map(&reader, content.map.as_ref()).await?,
        };
        let unknown: Vec<TailSegment> = {
            let tail = &self.inner.state.borrow().tail;
            let (known, unknown): (Vec<TailSegment>, _) =
                content.tail.iter().partition(|it| tail.holds(Id(it.id())));
            let oldest = &content.tail[..known.len()];
            let youngest = tail.segments().skip(tail.segments().count() - known.len());
            if !oldest.iter().eq(youngest) {
                let what = "its tail does not go on from the one before";
                return Err(VolumeError::damaged(&self.inner.name.root_key(), what));
            }
            unknown
        };
        let mut fresh = Vec::with_capacity(unknown.len());
        for segment in unknown {
            let mut known = change.segments.iter();
            let extents = match known.find(|it| it.reference == segment.object) {
                Some(known) => Rc::clone(&known.extents),
                None => load_segment(&reader, &segment.object).await?.into(),
            };
            fresh.push((segment, extents));
        }
        Ok(Published {
            root: stored.root.view(&stored.etag),
            stored,
            map,
            fresh,
        })
    }
}

/// The segments of a change that the root does not name yet: all, unless the change landed before.
fn new_segments<'a>(base: &Root, change: &'a Publish) -> impl Iterator<Item = &'a Uploaded> {
    let known = base.content.tail.clone();
    let new = change.segments.iter();
    new.filter(move |new| !known.iter().any(|it| it.object == new.reference))
}

/// The root with everything of the change but its map.
fn changed(base: &Root, change: &Publish, now_ms: u64) -> Result<Root, VolumeError> {
    let mut root = base.clone();
    root.nonce = change.nonce.0;
    if change.cut.0 < root.content.cut_seq {
        return Err(VolumeError::Invalid(format!(
            "volume `{}` is at cut {} and cannot go back to {}",
            root.name, root.content.cut_seq, change.cut
        )));
    }
    // A change of state alone does not make the data younger.
    if change.cut.0 > root.content.cut_seq || !change.segments.is_empty() {
        root.content.cut_seq = change.cut.0;
        root.content.cut_epoch = root.epoch;
        root.content.cut_time_ms = now_ms;
    }
    if let Some(size_bytes) = change.size_bytes {
        check_size(size_bytes)?;
        if size_bytes < root.size_bytes {
            let text = format!("volume `{}` cannot shrink to {size_bytes} bytes", root.name);
            return Err(VolumeError::Invalid(text));
        }
        root.size_bytes = size_bytes;
    }
    if let Some(state) = change.state {
        root.state = state.into();
    }
    if root.state == State::Detached {
        root.owner = None;
    }
    if let Some(key) = &change.data_key {
        renew::add(&mut root, key);
    }
    Ok(root)
}

/// The root after a take-over, if it may be taken.
pub(super) fn taken(
    base: &Root,
    owner: &Owner,
    nonce: Id,
    force: Option<Epoch>,
) -> Result<Root, VolumeError> {
    match base.state {
        State::Detached => {}
        State::Open => {
            let same = base
                .owner
                .as_ref()
                .is_some_and(|by| by.cache == owner.cache.0);
            let forced = force.is_some_and(|expected| expected.0 == base.epoch);
            if !same && !forced {
                return Err(owned(base));
            }
        }
        State::Pending | State::Suspended | State::Deleted => {
            let (name, state) = (&base.name, VolumeState::from(base.state));
            let text = format!("volume `{name}` cannot be opened for writing: it is {state:?}");
            return Err(VolumeError::Invalid(text));
        }
    }
    let mut root = base.clone();
    root.predecessor = Some(base.as_predecessor());
    root.epoch += 1;
    root.owner = Some(RootOwner::new(owner));
    root.state = State::Open;
    root.nonce = nonce.0;
    Ok(root)
}

pub(super) fn owned(root: &Root) -> VolumeError {
    VolumeError::Owned {
        name: root.name.clone(),
        owner: root.owner_text(),
        epoch: Epoch(root.epoch),
    }
}

pub(crate) fn fenced(ours: u64, root: &Root) -> VolumeError {
    VolumeError::Fenced {
        name: root.name.clone(),
        ours: Epoch(ours),
        theirs: Epoch(root.epoch),
        owner: root.owner_text(),
    }
}
