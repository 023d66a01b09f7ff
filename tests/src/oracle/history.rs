//! What was written to a volume, and which of it can still be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::stamp::{SECTOR_BYTES, Seen};
use super::verdict::Survivors;
use super::{Judge, Moment, WriteNo};

/// Sectors of a page: a write within one page is there as a whole or not at all.
const PAGE_SECTORS: u64 = 4096 / SECTOR_BYTES;

/// All writes that a legal content may be made of, above a base that is settled.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    now: Moment,
    last: u64,
    /// What the sectors held before all writes; absent is zero.
    base: BTreeMap<u64, WriteNo>,
    pub(super) writes: BTreeMap<WriteNo, Write>,
    /// The writes of each sector, in order of submission.
    pieces: BTreeMap<u64, Vec<Piece>>,
    /// When the last answered flush began.
    pub(super) flushed: Moment,
    /// When what is known to be published was answered at the latest.
    pub(super) published: Moment,
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) sectors: Range<u64>,
    pub(super) submitted: Moment,
    /// From then on it has happened, or never will.
    pub(super) ended: Option<Moment>,
    /// It has certainly happened.
    pub(super) answered: bool,
    pub(super) durable: bool,
    /// It lies in one page.
    pub(super) small: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Zero,
}

/// One sector of one write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) no: WriteNo,
    /// That of the write, here because a long history is gone through for every read.
    content: Content,
    /// Nobody knows whether it happened: the write did not end well, and others cover it.
    pub(super) optional: bool,
}

impl Write {
    /// It was over before `other` began.
    pub(super) fn before(&self, other: &Self) -> bool {
        self.ended.is_some_and(|ended| ended < other.submitted)
    }

    /// It was answered before `moment`.
    pub(super) fn answered_before(&self, moment: Moment) -> bool {
        self.answered && self.ended.is_some_and(|ended| ended < moment)
    }
}

impl History {
    pub(super) fn moment(&mut self) -> Moment {
        self.now.0 += 1;
        self.now
    }

    pub(super) fn submit(&mut self, sectors: Range<u64>, content: Content) -> WriteNo {
        assert!(!sectors.is_empty(), "a write of nothing");
        self.last += 1;
        let no = WriteNo(self.last);
        let write = Write {
            sectors: sectors.clone(),
            submitted: self.moment(),
            ended: None,
            answered: false,
            durable: false,
            small: sectors.start / PAGE_SECTORS == (sectors.end - 1) / PAGE_SECTORS,
        };
        self.writes.insert(no, write);
        for sector in sectors {
            let piece = Piece {
                no,
                content,
                optional: false,
            };
            self.pieces.entry(sector).or_default().push(piece);
        }
        no
    }

    pub(super) fn answer(&mut self, no: WriteNo) {
        let now = self.moment();
        let write = self.writes.get_mut(&no);
        let write = write.unwrap_or_else(|| panic!("{no} is unknown, or of an earlier life"));
        assert!(
            write.ended.is_none(),
            "{no} is answered twice, or of an earlier life"
        );
        write.ended = Some(now);
        write.answered = true;
    }

    pub(super) fn harden(&mut self, no: WriteNo) {
        if let Some(write) = self.writes.get_mut(&no) {
            write.durable = true;
        }
    }

    /// What lies in these sectors and was answered before `begun` survives power loss.
    pub(super) fn harden_within(&mut self, begun: Moment, sectors: &Range<u64>) {
        for write in self.writes.values_mut() {
            let is_inside =
                sectors.start <= write.sectors.start && write.sectors.end <= sectors.end;
            if is_inside && write.answered_before(begun) {
                write.durable = true;
            }
        }
    }

    pub(super) fn write(&self, no: WriteNo) -> &Write {
        &self.writes[&no]
    }

    pub(super) fn pieces(&self, sector: u64) -> &[Piece] {
        self.pieces.get(&sector).map_or(&[], Vec::as_slice)
    }

    /// What the sector held before all writes.
    pub(super) fn base(&self, sector: u64) -> Seen {
        self.base
            .get(&sector)
            .map_or(Seen::Zero, |no| Seen::Write(*no))
    }

    /// The writes of a sector that would show what was seen there.
    pub(super) fn candidates(&self, sector: u64, seen: Seen) -> impl Iterator<Item = WriteNo> {
        let pieces = self.pieces(sector).iter();
        let would_show = pieces.filter(move |piece| match (seen, piece.content) {
            (Seen::Zero, Content::Zero) => true,
            (Seen::Write(seen), Content::Data) => seen == piece.no,
            _ => false,
        });
        would_show.map(|piece| piece.no)
    }

    /// Was ever submitted, in any life.
    pub(super) fn knows(&self, no: WriteNo) -> bool {
        (1..=self.last).contains(&no.0)
    }

    /// What must be there whatever else is.
    pub(super) fn is_required(&self, write: &Write, judge: Judge) -> bool {
        let by = |moment: Moment| write.answered_before(moment);
        match judge {
            Judge::Process => write.answered,
            Judge::Power => write.durable || by(self.flushed) || by(self.published),
            Judge::Store => by(self.published),
        }
    }

    pub(super) fn reset_to(&mut self, survivors: &Survivors) {
        let now = self.moment();
        match survivors.judge {
            Judge::Store => self.settle(survivors, now),
            Judge::Process | Judge::Power => self.carry_on(survivors, now),
        }
    }

    /// The store is the only truth left: what it shows is the new base.
    fn settle(&mut self, survivors: &Survivors, now: Moment) {
        self.writes.clear();
        self.pieces.clear();
        let data = survivors
            .seen
            .iter()
            .filter_map(|(sector, seen)| match seen {
                Seen::Zero => None,
                Seen::Write(no) => Some((*sector, *no)),
            });
        self.base = data.collect();
        (self.flushed, self.published) = (now, now);
    }

    /// A later power cut, or the loss of the node, may still go back behind what is seen now. So the
    /// writes stay, less what has certainly not survived.
    fn carry_on(&mut self, survivors: &Survivors, now: Moment) {
        for (sector, seen) in &survivors.seen {
            let candidates: Vec<WriteNo> = self.candidates(*sector, *seen).collect();
            let Some(mut pieces) = self.pieces.remove(sector) else {
                continue;
            };
            pieces.retain_mut(|piece| {
                let whole = survivors.whole.contains(&piece.no);
                let certain = candidates == [piece.no] && *seen != self.base(*sector);
                let hidden = candidates
                    .iter()
                    .any(|other| !self.write(*other).before(self.write(piece.no)));
                piece.optional = !certain && (piece.optional || !whole);
                certain || whole || hidden
            });
            if !pieces.is_empty() {
                self.pieces.insert(*sector, pieces);
            }
        }
        let kept: BTreeSet<WriteNo> = self
            .pieces
            .values()
            .flatten()
            .map(|piece| piece.no)
            .collect();
        self.writes.retain(|no, _| kept.contains(no));
        for (no, write) in &mut self.writes {
            write.ended.get_or_insert(now);
            write.answered = survivors.whole.contains(no) || survivors.visible.contains(no);
            // A part of it may be gone for good: the rest stands for itself.
            write.small &= survivors.whole.contains(no);
        }
    }
}
