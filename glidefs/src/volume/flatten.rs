//! Flattening: what a fork shares with the volumes that it came from becomes its own, so that it needs them no more,
//! and their owners may delete them.
//!
//! ```text
//! count what the map names of each of them -> choose
//!   -> move what it names of the chosen, some at a time, each time an edit of the map   (as repacking does)
//!   -> leaves and indices in their folders written anew
//!   -> the whole map looked through: nothing is named of them
//!   -> publish: `unnamed_from` is this cut
//!   -> no snapshot and no reader of this cut or before -> publish: not in the list any more -> the pins go
//! ```
//!
//! In this order: a pin that goes before the root that no longer lists its volume is published lets somebody fork this
//! one and find the data gone (`docs/model.md`, mistake `unpin-before-flat`). Forks of this volume hold what they need
//! by pins of their own; readers do not, so theirs are listed here, behind the publish from which on a new one reads
//! a map without these volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::rc::Rc;

use blockcache::{Id, Seq};
use world::{Instant, World};

use super::compact::{MergeInput, Patience};
use super::extent::Extent;
use super::name::VolumeName;
use super::pin;
use super::pins::Cleans;
use super::reader::Reader;
use super::repack::{Moved, PAGES_MAX, walk};
use super::root::{NamedVolume, Root, State};
use super::runs::{Edit, Map, MergePlan, Run};
use super::tidy::Tidy;
use super::writer::Written;
use super::{Hold, Now, Uploaded, Volume, VolumeError, retry};

/// What one pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flattened {
    pub moved_bytes: u64,
    /// Another pass has more to do: at once, or once what [`Volume::has_edits`] says is published.
    pub goes_on: bool,
    /// Other volumes whose data the volume needs still.
    pub needs: Vec<String>,
    /// Why some of them, though the map does not name them.
    pub held_by: Option<String>,
}

/// How far it is. Lost at a restart, which costs a look through the map.
#[derive(Debug, Default)]
pub(crate) struct Flattening {
    chosen: BTreeSet<[u8; 16]>,
    /// Before this page nothing is named of the chosen: all of it was moved by passes of this process.
    from: u64,
    /// All runs were merged since nothing was left to be moved.
    is_merged: bool,
    /// For the next publish to say: the map does not name them, and nobody needs them.
    unnamed: BTreeSet<[u8; 16]>,
    unneeded: BTreeSet<[u8; 16]>,
    /// Not in the published list any more, and pinned still.
    pinned: Vec<NamedVolume>,
    /// When somebody needed what the map does not name, or a pass failed.
    held_at: Option<Instant>,
    /// Snapshots and readers are not looked at.
    #[cfg(feature = "planted")]
    is_blind: bool,
}

impl Flattening {
    /// Whether the next publish would bring something.
    pub(crate) fn has_news(&self) -> bool {
        !self.unnamed.is_empty() || !self.unneeded.is_empty()
    }

    /// Whether the map index itself must be written anew, for it lies in the folder of a volume that is let go.
    pub(crate) fn needs_index(&self, root: &Root) -> bool {
        let map = root.content.map;
        map.is_some_and(|map| self.unnamed.contains(&map.volume))
    }

    /// Says it in the next root.
    pub(crate) fn apply(&self, root: &mut Root) {
        let cut = root.content.cut_seq;
        let oldest = oldest_snapshot(root);
        #[cfg(feature = "planted")]
        let oldest = if self.is_blind { u64::MAX } else { oldest };
        root.volumes.retain(|named| {
            let is_free = named.unnamed_from.is_some_and(|from| from < oldest);
            !(is_free && self.unneeded.contains(&named.volume))
        });
        for named in &mut root.volumes {
            if self.unnamed.contains(&named.volume) {
                named.unnamed_from.get_or_insert(cut);
            }
        }
    }

    /// A root is published, in the place of another one.
    pub(crate) fn landed(&mut self, before: &Root, now: &Root) {
        self.unnamed.retain(|id| {
            let named = now.volumes.iter().find(|it| it.volume == *id);
            named.is_some_and(|it| it.unnamed_from.is_none())
        });
        let is_listed = |id: &[u8; 16]| now.volumes.iter().any(|it| it.volume == *id);
        let gone = before.volumes.iter().filter(|it| !is_listed(&it.volume));
        self.pinned.extend(gone.cloned());
        // If a snapshot was in the way it must be asked for again.
        self.unneeded.clear();
    }
}

/// Of what is needed in the store at least, or beyond all.
fn oldest_snapshot(root: &Root) -> u64 {
    let cuts = root.snapshots.iter().map(|it| it.content.cut_seq);
    cuts.min().unwrap_or(u64::MAX)
}

impl<W: World> Volume<W> {
    /// Other volumes that the map names, as far as is known.
    pub(crate) fn chain(&self) -> usize {
        let state = self.inner.state.borrow();
        named(&state.stored.root).count()
    }

    /// One pass towards a map that names `keep` other volumes at most: those of which the most would have to be copied.
    /// Does nothing where the volume is not open for writing, or a publish has to come first.
    pub(crate) async fn flatten(&self, keep: usize, tidy: &Tidy) -> Result<Flattened, VolumeError> {
        self.unpin().await?;
        if self.has_foreign_tail() {
            let patience = Patience {
                tail_segments: 1,
                ..Patience::USUAL
            };
            Box::pin(self.compact_beyond(patience)).await?;
        }
        let turn = self.inner.compacting.acquire().await;
        let _turn = turn.expect("nobody closes the semaphore");
        let (root, map) = {
            let state = self.inner.state.borrow();
            let waits = !state.edits.is_empty()
                || state.flattening.has_news()
                // Looked at together with the map: a publish may fold it in at any time.
                || has_foreign(&state);
            if state.hold != Hold::Held || !state.is_proved || waits {
                let goes_on = state.hold == Hold::Held;
                return Ok(flattened(&state.stored.root, goes_on));
            }
            (state.stored.root.clone(), state.map.clone())
        };
        if root.volumes.len() == 1 {
            return Ok(Flattened::default());
        }
        if named(&root).count() <= keep {
            return Box::pin(self.let_go(&root, tidy)).await;
        }
        Box::pin(self.move_some(&root, &map, keep)).await
    }

    /// The tail of the volume that it was forked from, while nothing has folded it.
    fn has_foreign_tail(&self) -> bool {
        has_foreign(&self.inner.state.borrow())
    }

    async fn move_some(
        &self,
        root: &Root,
        map: &Map,
        keep: usize,
    ) -> Result<Flattened, VolumeError> {
        let reader = self.reader(&self.inner.state.borrow());
        let more = || flattened(root, true);
        let known = {
            let flattening = &self.inner.state.borrow().flattening;
            (flattening.chosen.clone(), flattening.from)
        };
        let (chosen, from) = match known {
            (chosen, _) if chosen.is_empty() => (choose(&reader, root, map, keep).await?, 0),
            known => known,
        };
        let left = named_of(&reader, map, &chosen, from).await?;
        // Once nothing is left behind it, all is looked through.
        let next = left.last().map_or(0, Extent::end);
        let goes_to = |page: u64| {
            let flattening = &mut self.inner.state.borrow_mut().flattening;
            flattening.chosen.clone_from(&chosen);
            flattening.from = page;
        };
        if !left.is_empty() {
            let Moved {
                extents,
                uploads,
                failure,
            } = Box::pin(self.moved(&reader, left)).await;
            let input = MergeInput {
                moved: extents,
                ..MergeInput::default()
            };
            if !uploads.is_empty() {
                Box::pin(self.merge_all(&reader, map, input, &uploads)).await?;
            }
            if let Some(error) = failure {
                return Err(error);
            }
            goes_to(next);
            return Ok(Flattened {
                moved_bytes: uploads.iter().map(Uploaded::bytes).sum(),
                ..more()
            });
        }
        goes_to(0);
        if from > 0 {
            return Ok(more());
        }
        let is_merged = self.inner.state.borrow().flattening.is_merged;
        // Once in any case: what newer runs hide may name them still.
        if !is_merged && map.runs.len() > 1 || Box::pin(has_parts_of(&reader, map, &chosen)).await?
        {
            let input = MergeInput {
                stale_volumes: chosen.iter().copied().map(Id).collect(),
                ..MergeInput::default()
            };
            Box::pin(self.merge_all(&reader, map, input, &[])).await?;
            self.inner.state.borrow_mut().flattening.is_merged = true;
            return Ok(more());
        }
        let mut state = self.inner.state.borrow_mut();
        state.flattening.is_merged = false;
        state.flattening.unnamed = std::mem::take(&mut state.flattening.chosen);
        Ok(more())
    }

    async fn merge_all(
        &self,
        reader: &Reader<W>,
        map: &Map,
        input: MergeInput,
        uploads: &[Uploaded],
    ) -> Result<(), VolumeError> {
        let Some(bottom) = map.runs.last() else {
            return Ok(());
        };
        let plan = MergePlan {
            inputs: map.runs.clone(),
            level: bottom.level,
            bottom: true,
        };
        let merged = self.merged(reader, &plan, input, uploads);
        let Written { run, mut tally } = Box::pin(merged).await?;
        let new = uploads.iter().map(|uploaded| uploaded.in_tail(0));
        tally.takes_in(&new.collect::<Vec<_>>());
        self.finished(Edit::Merge {
            inputs: map.runs.iter().map(|run| run.id).collect(),
            output: run,
            tally,
        });
        Ok(())
    }

    /// Finds out who needs the volumes that the map does not name any more. The root that says so is published.
    async fn let_go(&self, root: &Root, tidy: &Tidy) -> Result<Flattened, VolumeError> {
        let oldest = oldest_snapshot(root);
        #[cfg(feature = "planted")]
        let oldest = self.blinded(oldest);
        let free: Vec<&NamedVolume> = unnamed(root)
            .filter(|(_, from)| *from < oldest)
            .map(|(named, _)| named)
            .collect();
        let now = self.inner.bucket.world().now();
        let held = |by: Option<String>| {
            self.inner.state.borrow_mut().flattening.held_at = Some(now);
            Flattened {
                held_by: by,
                ..flattened(root, false)
            }
        };
        if free.is_empty() {
            let snapshots = root.snapshots.iter().map(|it| it.name.as_str());
            let snapshots: Vec<&str> = snapshots.collect();
            let is_held = unnamed(root).next().is_some();
            return Ok(held(is_held.then(|| {
                format!("snapshots of before: {}", snapshots.join(", "))
            })));
        }
        // One list of the pins at a time: each takes the marker of another one away.
        let turn = self.inner.collecting.acquire().await;
        let _turn = turn.expect("nobody closes the semaphore");
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        let cleans = Some(Cleans::AfterWait(tidy.childless_wait));
        let pins = bucket.held(name, Id(root.volume), &self.inner.pins, cleans);
        let pins = Box::pin(pins).await?;
        if let Some(by) = pins.blocked_by {
            return Ok(held(Some(format!("`{by}`, for now"))));
        }
        let oldest = pins.read_cuts.first().copied().unwrap_or(u64::MAX);
        #[cfg(feature = "planted")]
        let oldest = self.blinded(oldest);
        let free = free
            .iter()
            .filter(|named| named.unnamed_from.is_some_and(|from| from < oldest));
        let free: BTreeSet<[u8; 16]> = free.map(|named| named.volume).collect();
        if free.is_empty() {
            let text = format!("a reader of cut {}", Seq(oldest));
            return Ok(held(Some(text)));
        }
        self.inner.state.borrow_mut().flattening.unneeded = free;
        Ok(flattened(root, true))
    }

    #[cfg(feature = "planted")]
    fn blinded(&self, oldest: u64) -> u64 {
        let bucket = &self.inner.bucket;
        let is_blind = bucket.is_planted(super::Planted::FlattenBlind);
        self.inner.state.borrow_mut().flattening.is_blind = is_blind;
        if is_blind { u64::MAX } else { oldest }
    }

    /// Whether somebody may have stopped needing what the map does not name.
    fn may_let_go(&self) -> bool {
        let state = self.inner.state.borrow();
        let has_pins = !state.flattening.pinned.is_empty();
        has_pins || unnamed(&state.stored.root).next().is_some()
    }

    /// Copies the smallest parts of others where they are too many, and lets go of what nobody needs any more. Not again
    /// soon after it failed or was held up.
    pub(crate) async fn shorten(&self, tidy: &Tidy) -> Result<Flattened, VolumeError> {
        let now = self.inner.bucket.world().now();
        let held_at = self.inner.state.borrow().flattening.held_at;
        if held_at.is_some_and(|at| now.since(at) < tidy.blocked_wait) {
            return Ok(Flattened::default());
        }
        let chain = self.chain();
        let keep = match chain > tidy.chain_max {
            true => tidy.chain_max / 2,
            false if self.may_let_go() => chain,
            false => return Ok(Flattened::default()),
        };
        let done = Box::pin(self.flatten(keep, tidy)).await;
        if done.is_err() {
            self.inner.state.borrow_mut().flattening.held_at = Some(now);
        }
        done
    }

    /// Removes the pins in volumes that the published root does not list any more.
    async fn unpin(&self) -> Result<(), VolumeError> {
        let (own, pinned) = {
            let state = self.inner.state.borrow();
            let own = Id(state.stored.root.volume);
            (own, state.flattening.pinned.clone())
        };
        for named in pinned {
            let of = VolumeName::parse(&named.name)?;
            let key = pin::key(of.as_str(), own);
            let (world, store) = (self.inner.bucket.world(), self.inner.bucket.store());
            retry::delete(world, store, &key).await?;
            // One that was deleted, and that this pin held, is nobody's to look after any more.
            let bucket = &self.inner.bucket;
            let left = bucket.read_root(&of).await?;
            let is_deleted = left.is_some_and(|it| {
                it.root.volume == named.volume && it.root.state == State::Deleted
            });
            if is_deleted {
                Box::pin(bucket.bury(of.as_str(), &|_| {})).await?;
            }
            let mut state = self.inner.state.borrow_mut();
            let pinned = &mut state.flattening.pinned;
            pinned.retain(|it| it.volume != named.volume);
            tracing::info!(export = %self.inner.name, of = named.name, "flat: nothing of the other volume is needed any more");
        }
        Ok(())
    }
}

fn has_foreign(now: &Now) -> bool {
    let own = now.stored.root.volume;
    now.tail.segments().any(|it| it.object.volume != own)
}

/// Volumes that the map may name, but for the volume itself.
fn named(root: &Root) -> impl Iterator<Item = &NamedVolume> {
    let others = root.volumes[1..].iter();
    others.filter(|named| named.unnamed_from.is_none())
}

/// Those that it does not name since a cut.
fn unnamed(root: &Root) -> impl Iterator<Item = (&NamedVolume, u64)> {
    let others = root.volumes[1..].iter();
    others.filter_map(|named| Some((named, named.unnamed_from?)))
}

fn flattened(root: &Root, goes_on: bool) -> Flattened {
    Flattened {
        goes_on,
        needs: root.volumes[1..].iter().map(|it| it.name.clone()).collect(),
        ..Flattened::default()
    }
}

/// The volumes of which the least has to be copied, all but `keep`.
async fn choose<W: World>(
    reader: &Reader<W>,
    root: &Root,
    map: &Map,
    keep: usize,
) -> Result<BTreeSet<[u8; 16]>, VolumeError> {
    let mut pages: BTreeMap<[u8; 16], u64> = named(root).map(|it| (it.volume, 0)).collect();
    let counts = |extent: &Extent| {
        let segment = extent.spot.map(|spot| spot.segment);
        if let Some(count) = segment.and_then(|it| pages.get_mut(&it.volume.0)) {
            *count += extent.pages.pages();
        }
        ControlFlow::Continue(())
    };
    walk(reader, &map.runs, 0, counts).await?;
    let mut pages: Vec<_> = pages.into_iter().map(|(id, count)| (count, id)).collect();
    pages.sort_unstable();
    pages.truncate(pages.len().saturating_sub(keep));
    Ok(pages.into_iter().map(|(_, id)| id).collect())
}

/// What the map names of these volumes from a page on, as much as one pass moves.
async fn named_of<W: World>(
    reader: &Reader<W>,
    map: &Map,
    chosen: &BTreeSet<[u8; 16]>,
    from: u64,
) -> Result<Vec<Extent>, VolumeError> {
    let (mut left, mut pages) = (Vec::new(), 0);
    let collects = |extent: &Extent| {
        let segment = extent.spot.map(|spot| spot.segment);
        if segment.is_none_or(|it| !chosen.contains(&it.volume.0)) {
            return ControlFlow::Continue(());
        }
        left.push(*extent);
        pages += extent.pages.pages();
        match pages < PAGES_MAX {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    walk(reader, &map.runs, from, collects).await?;
    Ok(left)
}

/// Whether directories or leaves of the map lie in the folders of these volumes.
async fn has_parts_of<W: World>(
    reader: &Reader<W>,
    map: &Map,
    chosen: &BTreeSet<[u8; 16]>,
) -> Result<bool, VolumeError> {
    let parts = map.runs.iter().map(Rc::as_ref);
    for part in parts.flat_map(|run: &Run| &run.parts) {
        if chosen.contains(&part.directory.volume) {
            return Ok(true);
        }
        let directory = reader.bucket.nodes().directory(reader, part).await?;
        let mut rows = directory.leaves.iter();
        if rows.any(|row| chosen.contains(&row.object.volume.0)) {
            return Ok(true);
        }
    }
    Ok(false)
}
