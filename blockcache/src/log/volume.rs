//! What the records of one volume come to: which is the newest for each page, and up to where they count.

use super::{Dirty, Volume, Written};
use crate::Seq;
use crate::index::{Overlay, Position, VolumeIndex};

impl Volume {
    /// An unpublished record; none if it is not in the list (any more).
    pub(crate) fn dirty_at(&mut self, seq: Seq) -> Option<&mut Dirty> {
        let index = self.dirty.binary_search_by_key(&seq, |record| record.seq);
        self.dirty.get_mut(index.ok()?)
    }

    /// The bytes of a record lie elsewhere now: its new self.
    pub(super) fn repoint(&mut self, what: Written, to: Position) -> Written {
        match what {
            Written::Pages { pages, at } => {
                self.index.repoint(pages, at, to);
                Written::Pages { pages, at: to }
            }
            Written::Sectors { page, overlay } => {
                self.index.repoint_partial(page, overlay.at, to);
                let overlay = Overlay { at: to, ..overlay };
                Written::Sectors { page, overlay }
            }
            Written::Zeros { pages } => Written::Zeros { pages },
        }
    }

    /// The index forgets a record that is published, where it still points to it.
    pub(super) fn unpoint(&mut self, what: Written) {
        match what {
            Written::Pages { pages, at } => self.index.evict(pages, at),
            Written::Sectors { page, overlay } => self.index.uncover_partial(page, overlay.at),
            Written::Zeros { .. } => {}
        }
    }

    /// Nothing behind it may be published yet: a fork begins there, and no snapshot holds that cut so far.
    pub(crate) fn fork_cut(&self) -> Option<Seq> {
        let open = self.state.forks.iter().filter(|fork| !fork.is_carried);
        let cuts = open.map(|fork| fork.cut);
        cuts.filter(|cut| *cut >= self.state.published).min()
    }

    /// The last write of the unbroken run of those that are there. Of a volume without damage, the last; of one whose
    /// group is damaged, the last that is published.
    pub(crate) fn kept(&self) -> Seq {
        if self.damage.is_none() {
            return self.last;
        }
        if self.rolls_back {
            return self.state.published;
        }
        let mut kept = self.state.published;
        for record in self.dirty.iter().filter(|d| d.seq > self.state.published) {
            if record.seq != kept.next() {
                break;
            }
            kept = record.seq;
        }
        kept
    }

    /// Forgets clean pages, and unpublished ones after `kept`.
    pub(crate) fn rebuild_index(&mut self, kept: Seq) {
        self.index = VolumeIndex::default();
        let dirty = self.dirty.iter().filter(|record| record.seq <= kept);
        let dirty: Vec<(Written, Seq)> = dirty.map(|d| (d.what, d.seq)).collect();
        dirty
            .into_iter()
            .for_each(|(what, seq)| self.apply(what, seq));
    }

    /// The newest record wins.
    pub(crate) fn apply(&mut self, what: Written, seq: Seq) {
        match what {
            Written::Pages { pages, at } => self.index.write(pages, at),
            Written::Sectors { page, overlay } => self.index.write_partial(page, overlay),
            Written::Zeros { pages } => self.index.zero(pages, seq),
        }
    }
}
