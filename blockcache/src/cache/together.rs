//! Volumes that are committed by one root: their cuts, their intents, and losses of them that are accepted (rule 30).
//!
//! A volume alone is the case of one. What several have in common is decided in `log/together.rs`.
//!
//! Absent: what a group is in the store. The log knows one by the nonces that its members have in common.

#[cfg(feature = "planted")]
use std::time::Duration;

use world::{ETag, World};

use super::{Cache, CacheVolume, Cut, Intent};
use crate::record::{INTENTS_MAX, LOSSES_MAX, TEXT_BYTES_MAX};
use crate::{CacheError, Id, Seq};

/// Of the planted bug: long enough for some writes.
#[cfg(feature = "planted")]
const CUTS_APART_BY: Duration = Duration::from_millis(20);

/// An intent to be made.
#[derive(Clone, Debug)]
pub struct NewIntent {
    /// That the new root will carry. New each time: in a copy of this log an earlier one stands for an earlier cut
    /// (rule 11).
    pub nonce: Id,
    /// The version of the root that is replaced.
    pub replaces: ETag,
    /// The nonce of an earlier intent of which the store never heard: it is forgotten.
    pub unsent: Option<Id>,
}

/// What a cut of several volumes has of one.
#[derive(Debug)]
pub struct CutPart<W: World> {
    /// Where it ends.
    pub seq: Seq,
    /// None: all of it is published.
    pub cut: Option<Cut<W>>,
}

/// Where a cut of one volume ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the last write before the intent is noted.
    Last,
    At(Seq),
}

/// Where a cut ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// Of one volume.
    One(End),
    /// At the newest mark with so many records of all; with all that was written.
    Mark(u64),
}

impl<W: World> Cache<W> {
    /// Takes a cut of volumes that are committed together, after making it, and an intent to publish it for each of them,
    /// durable: one nonce, one flush (rules 5, 11). In the order of `volumes`. None as for [`CacheVolume::cut`]: nothing of any is to be
    /// cut.
    ///
    /// Of two writes to them of which one was answered before the other was sent, the cut has that one if it has the other
    /// (rule 30). A cut of several that is bounded holds at most `extents_max` records of all together, and ends at
    /// a mark. One write is in one piece, and so is what a start found moved: a cut of nothing else may have more.
    pub async fn cut_together(
        &self,
        volumes: &[CacheVolume<W>],
        intent: &NewIntent,
        extents_max: usize,
    ) -> Result<Option<Vec<CutPart<W>>>, CacheError> {
        let Some(bound) = self.bound(volumes, extents_max).await? else {
            return Ok(None);
        };
        let ends = self.note_intents(volumes, intent, bound).await?;
        let mut parts = Vec::with_capacity(ends.len());
        for (volume, seq) in volumes.iter().zip(ends) {
            let is_news = volume.state().is_none_or(|it| seq > it.published);
            let cut = match is_news {
                true => Some(volume.pieces(seq).await?),
                false => None,
            };
            parts.push(CutPart { seq, cut });
        }
        Ok(Some(parts))
    }

    /// As [`CacheVolume::intend`], for volumes that are committed together: of all the same moment.
    pub async fn intend_together(
        &self,
        volumes: &[CacheVolume<W>],
        intent: &NewIntent,
    ) -> Result<Vec<Seq>, CacheError> {
        let bound = match volumes {
            [_] => Bound::One(End::Last),
            _ => Bound::Mark(u64::MAX),
        };
        self.note_intents(volumes, intent, bound).await
    }

    /// The volumes that this log knows as committed together with one, itself first. For a start that cannot ask the store.
    pub fn together_with(&self, id: Id) -> Vec<Id> {
        self.shared.log.borrow().together_with(id)
    }

    /// Accepts that all writes of a damaged volume after `kept` are lost, and keeps those up to there
    /// (rule 8). Durable when it returns; the volume may be attached then. Refused if the volume is
    /// not damaged, or its unbroken run ends elsewhere: who accepts a loss must have seen which.
    ///
    /// Of a volume that is committed together with others the loss is theirs too: all go back to their last published cut,
    /// for nothing of one may be kept that was written behind what is lost of another (rule 30).
    pub async fn accept_loss(&self, volume: Id, kept: Seq) -> Result<(), CacheError> {
        self.shared.room_for_state().await?;
        let lost = self.may_accept(volume, kept)?;
        let mut lsn = 0;
        for (number, id) in lost.into_iter().enumerate() {
            if number > 0 {
                self.shared.room_for_state().await?;
            }
            // Each is noted as damaged since the start that found it. So whatever dies here, some are damaged still, and
            // the others with them: it is accepted once more.
            lsn = self.accept(id).unwrap_or(lsn);
        }
        self.shared.dirty_freed.notify_waiters();
        self.shared.space_wanted.notify_one();
        self.shared.flush_to(lsn).await
    }

    /// In the step in which there is room for its state. Returns the batch of that; none if it is not damaged any more.
    fn accept(&self, lost: Id) -> Option<u64> {
        let mut log = self.shared.log.borrow_mut();
        log.volumes.get(&lost)?.damage.as_ref()?;
        log.accept_loss(lost);
        Some(log.append_state(lost))
    }

    /// Whose losses are accepted with that of one volume.
    fn may_accept(&self, volume: Id, kept: Seq) -> Result<Vec<Id>, CacheError> {
        let log = self.shared.log.borrow();
        let damaged = log.volumes.get(&volume);
        let damaged = damaged.ok_or(CacheError::UnknownVolume(volume))?;
        let refused = |why: String| {
            let name = damaged.state.name.clone();
            Err(CacheError::LossRefused { name, why })
        };
        if damaged.damage.is_none() {
            return refused("no write of it is missing".to_owned());
        }
        if damaged.kept() != kept {
            return refused(format!(
                "what is left of it ends with write {}, not {kept}",
                damaged.kept()
            ));
        }
        let mut lost = match damaged.rolls_back {
            true => log.together_with(volume),
            false => vec![volume],
        };
        lost.retain(|id| log.volumes.get(id).is_some_and(|it| it.damage.is_some()));
        let mut all = lost.iter().filter_map(|id| log.volumes.get(id));
        if all.any(|it| it.state.losses.len() == LOSSES_MAX) {
            return refused(format!(
                "{LOSSES_MAX} losses were accepted already, and this log can keep apart no more; save what is left by reading it, then drop it (`DELETE` with `accept_loss=true`)"
            ));
        }
        Ok(lost)
    }

    /// None: there is nothing to cut, or nothing that may be published.
    async fn bound(
        &self,
        volumes: &[CacheVolume<W>],
        extents_max: usize,
    ) -> Result<Option<Bound>, CacheError> {
        if let [only] = volumes {
            let end = only.cut_end(extents_max).await?;
            return Ok(end.map(Bound::One));
        }
        // Before anything is noted: whoever finds nothing to cut looks again soon.
        let bound = Bound::Mark(extents_max as u64);
        let ends = self.ends(volumes, bound)?;
        let mut all = volumes.iter().zip(ends);
        let has_news = all.any(|(volume, end)| {
            let state = volume.state();
            state.is_some_and(|state| end > state.published)
        });
        Ok(has_news.then_some(bound))
    }

    /// Notes the intents of all, and makes them durable. The cuts are chosen in one step, as the first of them is noted;
    /// what is written while the others wait for room is behind all of them.
    async fn note_intents(
        &self,
        volumes: &[CacheVolume<W>],
        intent: &NewIntent,
        bound: Bound,
    ) -> Result<Vec<Seq>, CacheError> {
        assert!(
            intent.replaces.0.len() <= TEXT_BYTES_MAX,
            "the store seam bounds ETags"
        );
        let mut ends = Vec::new();
        let mut lsn = 0;
        for (number, volume) in volumes.iter().enumerate() {
            #[cfg(feature = "planted")]
            if self.cuts_apart() {
                self.shared.world.sleep(CUTS_APART_BY).await;
                ends.truncate(number);
                ends.extend(self.ends(volumes, bound)?.into_iter().skip(number));
            }
            self.shared.room_for_state().await?;
            if ends.is_empty() {
                ends = self.ends(volumes, bound)?;
            }
            let cut = ends.get(number).copied();
            let cut = cut.ok_or(CacheError::UnknownVolume(volume.id))?;
            lsn = volume.note_intent(intent, cut)?;
        }
        self.shared.flush_to(lsn).await?;
        Ok(ends)
    }

    /// Where the cuts end now, at one moment of all.
    fn ends(&self, volumes: &[CacheVolume<W>], bound: Bound) -> Result<Vec<Seq>, CacheError> {
        let records_max = match (bound, volumes) {
            (Bound::One(end), [only]) => return Ok(vec![only.end_now(end)?]),
            (Bound::One(_), _) => u64::MAX,
            (Bound::Mark(records_max), _) => records_max,
        };
        let ids: Vec<Id> = volumes.iter().map(|volume| volume.id).collect();
        let log = self.shared.log.borrow();
        #[cfg(feature = "planted")]
        if self.shared.config.planted == Some(super::Planted::BoundsApart) {
            let each = ids.iter().map(|id| {
                let volume = log.volumes.get(id).ok_or(CacheError::UnknownVolume(*id));
                volume.map(|it| {
                    let bounded = it.state.published.0.saturating_add(records_max);
                    it.last.min(Seq(bounded))
                })
            });
            return each.collect();
        }
        let unknown = ids.iter().find(|id| !log.volumes.contains_key(id)).copied();
        let ends = log.ends_at_mark(&ids, records_max);
        ends.ok_or(CacheError::UnknownVolume(unknown.unwrap_or_default()))
    }
}

#[cfg(feature = "planted")]
impl<W: World> Cache<W> {
    fn cuts_apart(&self) -> bool {
        self.shared.config.planted == Some(super::Planted::CutsApart)
    }
}

impl<W: World> CacheVolume<W> {
    /// In the step in which there is room for it. Returns its batch.
    fn note_intent(&self, intent: &NewIntent, cut: Seq) -> Result<u64, CacheError> {
        let mut log = self.cache.shared.log.borrow_mut();
        let volume = log.volumes.get_mut(&self.id);
        let volume = volume.ok_or(CacheError::UnknownVolume(self.id))?;
        let NewIntent {
            nonce,
            replaces,
            unsent,
        } = intent.clone();
        let intents = &mut volume.state.intents;
        intents.retain(|known| Some(known.nonce) != unsent);
        // A longer list means that the outcome of so many publishes is unknown: the oldest are
        // those whose requests have long ended.
        if intents.len() == INTENTS_MAX {
            intents.remove(0);
        }
        intents.push(Intent {
            nonce,
            cut,
            replaces,
        });
        Ok(log.append_state(self.id))
    }
}
