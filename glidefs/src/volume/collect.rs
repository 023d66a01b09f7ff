//! The collector: deletes what the map named once and nobody needs any more (rule 20). Only the owner does, and only
//! once a publish or an open has proved that it is.
//!
//! ```text
//! a root with dead objects is published -> list the pins -> delete what no snapshot of that root and no pin holds
//! ```
//!
//! In this order: a fork whose pin is not in the list has not read a root that names what is deleted. Everything is
//! decided by the root of before the list, also which snapshots hold: one that is dropped meanwhile may have been
//! forked behind the list (`docs/model.md`, mistakes `list-before-publish`, `snapshots-too-late`).

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt};
use world::{Instant, World};

use super::books::{known, load};
use super::ledger::{Dead, Ledger, Totals};
use super::name::object_key;
use super::pins::Cleans;
use super::root::Root;
use super::tidy::Tidy;
use super::{Hold, Now, Volume, VolumeError, retry};

/// Deletes in flight.
const DELETES_MAX: usize = 8;

/// What a round of the collector found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    /// Dead, and needed by a snapshot or a fork.
    pub held_objects: u64,
    pub held_bytes: u64,
    /// Why nothing was deleted: a pin, by its key. The next round may know more.
    pub blocked_by: Option<String>,
}

/// What is known of earlier rounds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// What was dead and not gone when the last one ended: held, most likely.
    pub(crate) left: Totals,
    /// When a pin held one up, if it was the last.
    pub(crate) blocked_at: Option<Instant>,
}

/// Whether anything is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    Really,
    /// Only what it would be is told.
    Not,
}

impl<W: World> Volume<W> {
    /// One round. May be called at any time; may stop anywhere.
    pub async fn collect(&self, tidy: &Tidy, deletes: Deletes) -> Result<Collected, VolumeError> {
        let turn = self.inner.collecting.acquire().await;
        let _turn = turn.expect("nobody closes the semaphore");
        let Some((root, ledger)) = self.proved() else {
            return Ok(Collected::default());
        };
        if self.inner.state.borrow().dead().dead_objects == 0 {
            return Ok(Collected::default());
        }
        let bucket = &self.inner.bucket;
        let (name, volume) = (&self.inner.name, blockcache::Id(root.volume));
        let cleans = Cleans::AfterWait(tidy.childless_wait);
        let cleans = (deletes == Deletes::Really).then_some(cleans);
        let held = bucket.held(name, volume, &self.inner.pins, cleans);
        let held = Box::pin(held).await?;
        #[cfg(feature = "planted")]
        let held = if bucket.is_planted(super::Planted::ListBeforePublish) {
            let before = self.inner.pins.before.replace(Some(held.clone()));
            before.unwrap_or(held)
        } else {
            held
        };
        let mut cuts = held.cuts;
        cuts.extend(root.snapshots.iter().map(|it| it.content.cut_seq));
        let mut collected = Collected {
            blocked_by: held.blocked_by,
            ..Collected::default()
        };
        self.collect_from(&ledger.recent.dead, &cuts, deletes, &mut collected)
            .await?;
        let reader = {
            let mut state = self.inner.state.borrow_mut();
            let now = self.inner.bucket.world().now();
            if deletes == Deletes::Really {
                state.round.blocked_at = collected.blocked_by.is_some().then_some(now);
            }
            self.reader(&state)
        };
        for (at, chunk) in ledger.chunks.iter().enumerate() {
            if chunk.totals.dead_objects > 0 {
                // What a lost one lists stays for good.
                let table = known(load(&reader, chunk, ledger.next(at)).await)?;
                let table = table.unwrap_or_default();
                self.collect_from(&table.dead, &cuts, deletes, &mut collected)
                    .await?;
            }
        }
        // What stays is no reason for another round.
        let mut state = self.inner.state.borrow_mut();
        if deletes == Deletes::Really && collected.blocked_by.is_none() {
            state.round.left = state.dead();
        }
        Ok(collected)
    }

    /// The root and the ledger by which this handle may delete.
    fn proved(&self) -> Option<(Root, std::rc::Rc<Ledger>)> {
        let state = self.inner.state.borrow();
        let Now {
            stored, map, hold, ..
        } = &*state;
        let may = *hold == Hold::Held && state.is_proved;
        may.then(|| (stored.root.clone(), std::rc::Rc::clone(&map.ledger)))
    }

    async fn collect_from(
        &self,
        dead: &[Dead],
        cuts: &BTreeSet<u64>,
        deletes: Deletes,
        collected: &mut Collected,
    ) -> Result<(), VolumeError> {
        let left: Vec<Dead> = {
            let state = self.inner.state.borrow();
            let left = dead
                .iter()
                .filter(|dead| !state.gone.contains_key(&dead.id));
            left.copied().collect()
        };
        let (held, doomed): (Vec<Dead>, Vec<Dead>) =
            left.into_iter().partition(|dead| dead.is_held(cuts));
        collected.held_objects += held.len() as u64;
        collected.held_bytes += held.iter().map(|dead| dead.bytes).sum::<u64>();
        if collected.blocked_by.is_some() {
            return Ok(());
        }
        collected.deleted_objects += doomed.len() as u64;
        collected.deleted_bytes += doomed.iter().map(|dead| dead.bytes).sum::<u64>();
        if deletes == Deletes::Not {
            return Ok(());
        }
        let (bucket, name) = (&self.inner.bucket, &self.inner.name);
        let deleted = doomed.iter().map(|dead| async move {
            let epoch = blockcache::Epoch(dead.epoch);
            let id = blockcache::Id(dead.id);
            let key = object_key(name.as_str(), dead.kind.folder(), epoch, id);
            retry::delete(bucket.world(), bucket.store(), &key).await?;
            let mut state = self.inner.state.borrow_mut();
            state.gone.insert(dead.id, dead.bytes);
            Ok::<_, VolumeError>(())
        });
        futures_util::stream::iter(deleted)
            .buffer_unordered(DELETES_MAX)
            .try_collect::<()>()
            .await
    }
}
