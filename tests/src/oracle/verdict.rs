//! The judgement: is there a set of writes, and an order of them, that gives this content?
//!
//! The set must contain what is required, what is seen, and with each write all that was answered
//! before it was submitted. So it is settled by one moment, the latest submission in it (`edge`):
//! everything answered before it belongs to the set. A larger set only asks for more, so the
//! smallest is judged. Zeros do not tell who wrote them: the earliest write that explains them is
//! taken, as it moves the edge least.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{History, Piece};
use super::stamp::Seen;
use super::{Judge, Moment, WriteNo};

/// Why a content is illegal.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    #[error("sector {sector} holds bytes that nobody wrote")]
    Foreign { sector: u64 },
    #[error("sector {sector} holds what {found} wrote to sector {belongs}")]
    Misplaced {
        sector: u64,
        found: WriteNo,
        belongs: u64,
    },
    /// It was replaced or lost before, and a crash or a reader has seen that.
    #[error("sector {sector} holds {found}, which was gone for good")]
    Resurrected { sector: u64, found: WriteNo },
    #[error("sector {sector} holds {found}, older than {missing}, which must be there: {why}")]
    Lost {
        sector: u64,
        missing: WriteNo,
        found: Found,
        why: Why,
    },
    /// Each of them is older than another one of them in some sector.
    #[error("no order of these writes gives this content: {0:?}")]
    NoOrder(Vec<WriteNo>),
}

/// Why a write must be there.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Why {
    #[error("it was answered, flushed or published, as the crash demands")]
    Required,
    #[error("it was answered before {0} began, which is there")]
    Before(WriteNo),
    #[error("another part of the same page is there")]
    SamePage,
    #[error("it was answered before the read began")]
    Read,
}

/// What a sector holds instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found(Seen);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Seen::Zero => f.write_str("zeros"),
            Seen::Write(no) => no.fmt(f),
        }
    }
}

/// What a legal content is made of.
#[derive(Clone, Debug)]
pub struct Survivors {
    pub(super) judge: Judge,
    pub(super) seen: Vec<(u64, Seen)>,
    /// Writes that are there in all their sectors, seen or covered by later ones.
    pub(super) whole: BTreeSet<WriteNo>,
    /// Writes that can be seen somewhere.
    pub(super) visible: BTreeSet<WriteNo>,
    /// Answered writes that did not survive.
    lost: usize,
}

impl Survivors {
    /// How many answered writes are gone, as the judge allowed.
    pub fn lost_writes(&self) -> usize {
        self.lost
    }

    /// How many writes there must be.
    pub fn whole_writes(&self) -> usize {
        self.whole.len()
    }
}

/// The set of writes that must be there.
struct Set<'a> {
    history: &'a History,
    judge: Judge,
    visible: BTreeSet<WriteNo>,
    /// The latest submission in the set, and whose it is.
    edge: (Moment, Option<WriteNo>),
}

pub(super) fn judge(
    history: &History,
    judge: Judge,
    seen: Vec<(u64, Seen)>,
) -> Result<Survivors, Violation> {
    let set = Set::smallest(history, judge, &seen)?;
    for (sector, seen) in &seen {
        set.check_sector(*sector, *seen)?;
    }
    let whole: BTreeSet<WriteNo> = history
        .writes
        .keys()
        .copied()
        .filter(|no| set.why(*no).is_some())
        .collect();
    check_order(history, &whole, &seen)?;
    let lost = history
        .writes
        .iter()
        .filter(|(no, write)| write.answered && !whole.contains(no) && !set.visible.contains(no));
    Ok(Survivors {
        judge,
        lost: lost.count(),
        visible: set.visible,
        whole,
        seen,
    })
}

impl<'a> Set<'a> {
    fn smallest(
        history: &'a History,
        judge: Judge,
        seen: &[(u64, Seen)],
    ) -> Result<Self, Violation> {
        let mut set = Self {
            history,
            judge,
            visible: BTreeSet::new(),
            edge: (Moment::default(), None),
        };
        for (no, write) in &history.writes {
            if history.is_required(write, judge) {
                set.reach(*no);
            }
        }
        for (sector, seen) in seen {
            if let Seen::Write(no) = seen {
                set.add_seen(*sector, *no)?;
            }
        }
        set.add_zeros(seen);
        Ok(set)
    }

    /// The edge is at or behind the submission of `no`.
    fn reach(&mut self, no: WriteNo) {
        let submitted = self.history.write(no).submitted;
        if submitted > self.edge.0 {
            self.edge = (submitted, Some(no));
        }
    }

    fn add_seen(&mut self, sector: u64, no: WriteNo) -> Result<(), Violation> {
        if self
            .history
            .pieces(sector)
            .iter()
            .any(|piece| piece.no == no)
        {
            self.visible.insert(no);
            self.reach(no);
            return Ok(());
        }
        if self.history.base(sector) == Seen::Write(no) {
            return Ok(());
        }
        Err(if self.history.knows(no) {
            Violation::Resurrected { sector, found: no }
        } else {
            Violation::Foreign { sector }
        })
    }

    /// Explains all zeros, each by as early a write as possible. Each addition may make more writes
    /// necessary, and so more zeros in need of an explanation.
    fn add_zeros(&mut self, seen: &[(u64, Seen)]) {
        let zeros: Vec<u64> = seen
            .iter()
            .filter(|(sector, seen)| {
                *seen == Seen::Zero && !self.history.pieces(*sector).is_empty()
            })
            .map(|(sector, _)| *sector)
            .collect();
        loop {
            let edge = self.edge.0;
            let visible = self.visible.len();
            for sector in &zeros {
                self.add_zero(*sector, seen);
            }
            if self.edge.0 == edge && self.visible.len() == visible {
                return;
            }
        }
    }

    fn add_zero(&mut self, sector: u64, seen: &[(u64, Seen)]) {
        let needed: Vec<WriteNo> = self.needed(sector).map(|(no, _)| no).collect();
        if needed.is_empty() && self.history.base(sector) == Seen::Zero {
            return;
        }
        let explains = |no: &WriteNo| {
            let zero = self.history.write(*no);
            let newest = needed
                .iter()
                .all(|no| !zero.before(self.history.write(*no)));
            newest && (self.why(*no).is_some() || !self.at_once(*no) || self.fits(*no, seen))
        };
        let mut zeros = self.history.candidates(sector, Seen::Zero).filter(explains);
        // Submission goes with the number. None: the check of the sector says what is wrong.
        if let Some(first) = zeros.next() {
            let already = std::iter::once(first)
                .chain(zeros)
                .find(|no| self.why(*no).is_some());
            if already.is_none() {
                self.visible.insert(first);
                self.reach(first);
            }
        }
    }

    /// Why a write must be there in all its sectors; none if it need not.
    fn why(&self, no: WriteNo) -> Option<Why> {
        let write = self.history.write(no);
        if self.history.is_required(write, self.judge) {
            return Some(Why::Required);
        }
        if write.answered_before(self.edge.0) {
            return self.edge.1.map(Why::Before);
        }
        (self.at_once(no) && self.visible.contains(&no)).then_some(Why::SamePage)
    }

    /// If a part of it is there, all of it is.
    fn at_once(&self, no: WriteNo) -> bool {
        let write = self.history.write(no);
        write.small && (write.answered || self.judge != Judge::Process)
    }

    /// No sector shows that this write cannot have happened.
    fn fits(&self, no: WriteNo, seen: &[(u64, Seen)]) -> bool {
        let write = self.history.write(no);
        write.sectors.clone().all(|sector| {
            let index = usize::try_from(sector).expect("an index in memory");
            let mut candidates = self.history.candidates(sector, seen[index].1);
            candidates.any(|candidate| !self.history.write(candidate).before(write))
        })
    }

    /// The writes that must be there in this sector.
    fn needed(&self, sector: u64) -> impl Iterator<Item = (WriteNo, Why)> {
        let pieces = self.history.pieces(sector).iter();
        pieces
            .filter(|piece| !piece.optional)
            .filter_map(|piece| Some((piece.no, self.why(piece.no)?)))
    }

    /// Nothing that must be there may be newer than what is.
    fn check_sector(&self, sector: u64, seen: Seen) -> Result<(), Violation> {
        let candidates: Vec<WriteNo> = self.history.candidates(sector, seen).collect();
        for (no, why) in self.needed(sector) {
            let write = self.history.write(no);
            let covered = candidates.iter().any(|candidate| {
                let there = self.visible.contains(candidate) || self.why(*candidate).is_some();
                there && !self.history.write(*candidate).before(write)
            });
            if !covered {
                return Err(Violation::Lost {
                    sector,
                    missing: no,
                    found: Found(seen),
                    why,
                });
            }
        }
        if candidates.is_empty() && seen != self.history.base(sector) {
            return Err(lost_to_zeros(self.history, sector));
        }
        Ok(())
    }
}

/// The writes that are wholly there must have an order: by time, and in each sector the one seen
/// last. A sector of zeros that several writes explain asks for none.
fn check_order(
    history: &History,
    whole: &BTreeSet<WriteNo>,
    seen: &[(u64, Seen)],
) -> Result<(), Violation> {
    let mut after: BTreeMap<WriteNo, BTreeSet<WriteNo>> = BTreeMap::new();
    let mut earlier: BTreeMap<WriteNo, usize> = whole.iter().map(|no| (*no, 0)).collect();
    for (sector, seen) in seen {
        let mut candidates = history.candidates(*sector, *seen);
        let (Some(last), None) = (candidates.next(), candidates.next()) else {
            continue;
        };
        if !whole.contains(&last) {
            continue;
        }
        for piece in history.pieces(*sector) {
            let other = piece.no;
            let counts = !piece.optional && other != last && whole.contains(&other);
            if counts && after.entry(other).or_default().insert(last) {
                *earlier.entry(last).or_default() += 1;
            }
        }
    }
    take_in_order(history, after, earlier)
}

/// Takes writes away as long as one is there that no other must come before.
fn take_in_order(
    history: &History,
    after: BTreeMap<WriteNo, BTreeSet<WriteNo>>,
    mut earlier: BTreeMap<WriteNo, usize>,
) -> Result<(), Violation> {
    let never = Moment(u64::MAX);
    let end = |no: WriteNo| history.write(no).ended.unwrap_or(never);
    let mut left: BTreeSet<(Moment, WriteNo)> = earlier.keys().map(|no| (end(*no), *no)).collect();
    // By number, which is by submission: if the first cannot be taken, none can.
    let mut free: BTreeSet<WriteNo> = earlier
        .iter()
        .filter_map(|(no, count)| (*count == 0).then_some(*no))
        .collect();
    while let Some(no) = free.pop_first() {
        let first_end = left.first().map_or(never, |(end, _)| *end);
        if first_end < history.write(no).submitted {
            break;
        }
        left.remove(&(end(no), no));
        for later in after.get(&no).into_iter().flatten() {
            let count = earlier
                .get_mut(later)
                .expect("all writes of the graph are counted");
            *count -= 1;
            if *count == 0 {
                free.insert(*later);
            }
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(Violation::NoOrder(
        left.into_iter().map(|(_, no)| no).collect(),
    ))
}

/// A read shows nothing older than what was answered before it began.
pub(super) fn judge_read(
    history: &History,
    begun: Moment,
    seen: &[(u64, Seen)],
) -> Result<(), Violation> {
    for (sector, seen) in seen {
        let candidates: Vec<WriteNo> = history.candidates(*sector, *seen).collect();
        if candidates.is_empty() && history.base(*sector) != *seen {
            return Err(match seen {
                Seen::Write(no) if history.knows(*no) => Violation::Resurrected {
                    sector: *sector,
                    found: *no,
                },
                Seen::Write(_) => Violation::Foreign { sector: *sector },
                Seen::Zero => lost_to_zeros(history, *sector),
            });
        }
        // None that was submitted before a candidate can have come after it.
        let last = candidates.last().copied();
        let later = |piece: &&Piece| !piece.optional && last.is_none_or(|last| piece.no > last);
        for piece in history.pieces(*sector).iter().filter(later) {
            let write = history.write(piece.no);
            let newest = |no: &WriteNo| !history.write(*no).before(write);
            if write.answered_before(begun) && !candidates.iter().any(newest) {
                return Err(Violation::Lost {
                    sector: *sector,
                    missing: piece.no,
                    found: Found(*seen),
                    why: Why::Read,
                });
            }
        }
    }
    Ok(())
}

fn lost_to_zeros(history: &History, sector: u64) -> Violation {
    match history.base(sector) {
        Seen::Write(missing) => Violation::Lost {
            sector,
            missing,
            found: Found(Seen::Zero),
            why: Why::Required,
        },
        Seen::Zero => Violation::Foreign { sector },
    }
}
