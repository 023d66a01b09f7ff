//! Volumes of one group in the log (rule 30): where a cut of them may end, and who they are. Decided here, without a wait.
//!
//! A *mark* is a moment of the log between two writes. Each write has a moment of its own, and they only grow, whatever the
//! clock says. Of two writes of which one was answered before the other was sent, that one has the earlier moment. So a
//! cut that ends all volumes at one mark has with each write all that its client may have waited for.
//! Marks cost nothing: they are in the records that are not published.
//!
//! What a start finds gets moments in the order of the log. What was moved has one together, for how that followed each
//! other is not known any more: it is in a cut wholly, or not at all (`recover/moments.rs`).

use std::collections::{BTreeMap, BTreeSet};

use world::Instant;

use super::{Log, TICK, Volume};
use crate::{Id, Seq};

impl Log {
    /// The moment of the next write, in all its records.
    pub(crate) fn moment(&mut self, now: Instant) -> Instant {
        self.last_moment = now.max(self.last_moment + TICK);
        self.last_moment
    }

    /// The newest moment of what was replayed. All writes from here on have later ones.
    pub(crate) fn begin_at(&mut self, newest: Instant) {
        self.last_moment = newest;
    }

    /// The last writes of several volumes at the newest mark up to which they have at most so many unpublished records
    /// together; at the first one behind the oldest of those, if that has more, as a long write may, and what a start found
    /// moved. Not behind a fork's cut that is not published. None if a volume is not known.
    pub(crate) fn ends_at_mark(&self, ids: &[Id], records_max: u64) -> Option<Vec<Seq>> {
        let known = ids.iter().map(|id| self.volumes.get(id));
        let volumes: Vec<&Volume> = known.collect::<Option<_>>()?;
        let before_forks = volumes.iter().filter_map(|volume| volume.mark_of_fork());
        let newest = before_forks.fold(self.last_moment, Instant::min);
        let mark = mark(&volumes, newest, records_max);
        Some(volumes.iter().map(|volume| volume.end_at(mark)).collect())
    }

    /// The volumes that are committed together with this one, and itself. Only they have nonces in common: of a publish that
    /// was, or is intended. Whatever is made of a group by one swap is intended in all members before.
    pub(crate) fn together_with(&self, id: Id) -> Vec<Id> {
        let mut found = vec![id];
        let mut nonces = BTreeSet::new();
        if let Some(volume) = self.volumes.get(&id) {
            nonces.extend(volume.nonces());
        }
        loop {
            let more: Vec<&Volume> = self
                .volumes
                .values()
                .filter(|it| !found.contains(&it.state.id))
                .filter(|it| it.nonces().any(|nonce| nonces.contains(&nonce)))
                .collect();
            if more.is_empty() {
                return found;
            }
            for volume in more {
                found.push(volume.state.id);
                nonces.extend(volume.nonces());
            }
        }
    }

    /// Where writes of one volume are missing, those of its group that were written behind them must not be kept: all
    /// go back to what is published, once an operator has accepted that.
    pub(crate) fn spread_damage(&mut self) {
        let damaged = self.volumes.values().filter(|it| it.damage.is_some());
        let mut damaged: BTreeSet<Id> = damaged.map(|it| it.state.id).collect();
        if damaged.is_empty() {
            return;
        }
        let shared = self.shared_nonces();
        while let Some(id) = damaged.pop_first() {
            let volume = self.volumes.get(&id);
            let is_member = |it: &&Volume| it.nonces().any(|nonce| shared.contains(&nonce));
            let Some(volume) = volume.filter(is_member) else {
                continue;
            };
            let name = volume.state.name.clone();
            for member in self.together_with(id) {
                damaged.remove(&member);
                let Some(volume) = self.volumes.get_mut(&member) else {
                    continue;
                };
                // Of one that is drained and given up nothing can be lost.
                let is_concerned = volume.state.attached || volume.last > volume.state.published;
                if volume.damage.is_none() && is_concerned {
                    volume.damage = Some(format!("writes of `{name}`, of its group, are missing"));
                }
                volume.rolls_back = volume.damage.is_some();
            }
        }
    }

    /// Those that several volumes have. After a loss all of ten thousand may be damaged, and few of them are in groups:
    /// looking for the others of each would keep the start for minutes.
    fn shared_nonces(&self) -> BTreeSet<Id> {
        let mut first: BTreeMap<Id, Id> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for volume in self.volumes.values() {
            for nonce in volume.nonces() {
                if *first.entry(nonce).or_insert(volume.state.id) != volume.state.id {
                    shared.insert(nonce);
                }
            }
        }
        shared
    }
}

impl Volume {
    /// Its last write at a mark; none of those that are published is behind one.
    fn end_at(&self, mark: Instant) -> Seq {
        let count = self.dirty.partition_point(|record| record.since <= mark);
        let last = count.checked_sub(1).and_then(|at| self.dirty.get(at));
        let published = self.state.published;
        last.map_or(published, |record| record.seq.max(published))
    }

    /// The mark just before its first write behind the cut of a fork that bounds what may be published.
    fn mark_of_fork(&self) -> Option<Instant> {
        let cut = self.fork_cut()?;
        let behind = self.dirty.partition_point(|record| record.seq <= cut);
        let next = self.dirty.get(behind)?;
        Some(Instant::from_nanos(next.since.as_nanos().saturating_sub(1)))
    }

    /// The moment of its oldest write that is not published.
    fn oldest_moment(&self) -> Option<Instant> {
        let published = self.state.published;
        let behind = self.dirty.partition_point(|record| record.seq <= published);
        self.dirty.get(behind).map(|record| record.since)
    }

    /// By which a start knows what is its own. One that is known by its id alone has none.
    fn nonces(&self) -> impl Iterator<Item = Id> + '_ {
        let intended = self.state.intents.iter().map(|intent| intent.nonce);
        let all = intended.chain([self.state.nonce]);
        all.filter(|nonce| *nonce != Id::default())
    }
}

/// The newest mark at or before `newest` up to which so many records are unpublished; the one right behind the oldest
/// write, if that alone has more: less would be no progress.
fn mark(volumes: &[&Volume], newest: Instant, records_max: u64) -> Instant {
    let records = |mark: Instant| -> u64 {
        let count = |volume: &&Volume| volume.end_at(mark).0 - volume.state.published.0;
        volumes.iter().map(count).sum()
    };
    let oldest = volumes.iter().filter_map(|it| it.oldest_moment()).min();
    let Some(oldest) = oldest.filter(|oldest| *oldest < newest) else {
        return newest;
    };
    if records(newest) <= records_max {
        return newest;
    }
    let (mut fits, mut over) = (oldest.as_nanos(), newest.as_nanos());
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if records(Instant::from_nanos(middle)) <= records_max {
            fits = middle;
        } else {
            over = middle;
        }
    }
    Instant::from_nanos(fits)
}

#[cfg(test)]
mod tests;
