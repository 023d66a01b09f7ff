//! What one client did to one volume, and whether a content read back is legal.
//!
//! The client numbers its writes and notes, on one logical clock, when each was sent and when it
//! was answered. It cannot know how the server ordered writes that were in flight together, and it
//! needs not: a content is a cut exactly if no write is missing from it that was answered before
//! another write, which is in it, was even sent. No wall clock takes part.

use std::collections::BTreeMap;

use crate::pages::Spoilt;

/// Instants of the client's logical clock.
type Tick = u64;

const NEVER: Tick = Tick::MAX;

#[derive(Clone, Debug)]
struct Write {
    sent: Tick,
    answered: Tick,
}

/// Writes of one page, in the order sent; at most the last is unanswered, because the client never
/// has two writes of one page in flight.
#[derive(Clone, Debug, Default)]
struct PageHistory {
    /// Number that the page held when the history began.
    base: u64,
    numbers: Vec<u64>,
}

/// The history since the last [`History::settle`].
#[derive(Clone, Debug, Default)]
pub struct History {
    clock: Tick,
    number_last: u64,
    writes: BTreeMap<u64, Write>,
    pages: BTreeMap<u64, PageHistory>,
}

/// A content that no promise allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("page {page}: {spoilt}")]
    Spoilt { page: u64, spoilt: Spoilt },
    #[error("page {page} holds write {found}, which nobody sent there")]
    Unknown { page: u64, found: u64 },
    #[error("page {page} holds write {found}, and {answered} was answered after it")]
    Lost {
        page: u64,
        found: u64,
        answered: u64,
    },
    #[error(
        "no cut: write {missing} was answered before {present} was sent, and only the second is there"
    )]
    Mixed { missing: u64, present: u64 },
}

/// A legal content, and what it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub pages: u64,
    /// Answered writes that the content does not include; zero wherever nothing may be lost.
    pub answered_missing: u64,
    /// The one of them that was answered first.
    pub first_missing: Option<u64>,
}

/// The number found on each page: exactly the pages that [`History::pages`] names.
pub type Content = BTreeMap<u64, u64>;

impl History {
    /// A write of the page is about to be sent; returns its number. None while one is in flight there.
    pub fn send(&mut self, page: u64) -> Option<u64> {
        let history = self.pages.entry(page).or_default();
        if let Some(last) = history.numbers.last()
            && self.writes[last].answered == NEVER
        {
            return None;
        }
        self.clock += 1;
        self.number_last += 1;
        history.numbers.push(self.number_last);
        let write = Write {
            sent: self.clock,
            answered: NEVER,
        };
        self.writes.insert(self.number_last, write);
        Some(self.number_last)
    }

    pub fn answer(&mut self, number: u64) {
        self.clock += 1;
        let write = self
            .writes
            .get_mut(&number)
            .expect("only sent writes are answered");
        assert_eq!(write.answered, NEVER, "write {number} is answered twice");
        write.answered = self.clock;
    }

    /// Pages that were ever written.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    pub fn answered_writes(&self) -> u64 {
        let answered = self.writes.values().filter(|write| write.answered != NEVER);
        u64::try_from(answered.count()).expect("a count fits")
    }

    /// Every answered write is there (promises 1 and 2 after a kill; promise 3 after a drain).
    pub fn check_nothing_lost(&self, content: &Content) -> Result<Verdict, Broken> {
        for (page, history) in &self.pages {
            let found = content[page];
            let at = self.position(*page, history, found)?;
            let later = history.numbers[at..].iter();
            if let Some(answered) = later
                .rev()
                .find(|number| self.writes[number].answered != NEVER)
            {
                return Err(Broken::Lost {
                    page: *page,
                    found,
                    answered: *answered,
                });
            }
        }
        self.check_cut(content)
    }

    /// The content is the state after some prefix of the writes (promise 3).
    pub fn check_cut(&self, content: &Content) -> Result<Verdict, Broken> {
        let mut verdict = Verdict::default();
        // The present write that was sent last, and the missing one that was answered first.
        let mut present = (0, 0);
        let mut missing = (NEVER, 0);
        for (page, history) in &self.pages {
            let at = self.position(*page, history, content[page])?;
            verdict.pages += 1;
            if let Some(number) = at.checked_sub(1).map(|last| history.numbers[last]) {
                present = present.max((self.writes[&number].sent, number));
            }
            for number in &history.numbers[at..] {
                let answered = self.writes[number].answered;
                missing = missing.min((answered, *number));
                verdict.answered_missing += u64::from(answered != NEVER);
            }
        }
        verdict.first_missing = (missing.0 != NEVER).then_some(missing.1);
        if missing.0 < present.0 {
            return Err(Broken::Mixed {
                missing: missing.1,
                present: present.1,
            });
        }
        Ok(verdict)
    }

    /// Takes a content that was checked as the new beginning: from now on it must not change by itself.
    pub fn settle(&mut self, content: &Content) {
        self.writes.clear();
        for (page, history) in &mut self.pages {
            history.base = content[page];
            history.numbers.clear();
        }
    }

    /// How many of the page's writes the number found includes.
    fn position(&self, page: u64, history: &PageHistory, found: u64) -> Result<usize, Broken> {
        if found == history.base {
            return Ok(0);
        }
        let at = history.numbers.iter().position(|number| *number == found);
        at.map(|at| at + 1).ok_or(Broken::Unknown { page, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pages: 1 and 2 answered one after the other, then 3 on the first page in flight.
    fn history() -> History {
        let mut history = History::default();
        assert_eq!(history.send(10), Some(1));
        history.answer(1);
        assert_eq!(history.send(11), Some(2));
        history.answer(2);
        assert_eq!(history.send(10), Some(3));
        history
    }

    fn content(first: u64, second: u64) -> Content {
        Content::from([(10, first), (11, second)])
    }

    #[test]
    fn every_prefix_is_a_cut_and_only_those() {
        let history = history();
        let missing = |first, second| {
            let verdict = history.check_cut(&content(first, second));
            verdict.map(|verdict| verdict.answered_missing)
        };
        assert_eq!(missing(0, 0), Ok(2));
        assert_eq!(missing(1, 0), Ok(1));
        assert_eq!(missing(1, 2), Ok(0));
        assert_eq!(missing(3, 2), Ok(0));
        let mixed = |missing, present| Err(Broken::Mixed { missing, present });
        assert_eq!(missing(0, 2), mixed(1, 2));
        assert_eq!(missing(3, 0), mixed(2, 3));
    }

    #[test]
    fn writes_in_flight_together_may_go_either_way() {
        let mut history = History::default();
        history.send(10);
        history.send(11);
        history.answer(2);
        history.answer(1);
        for content in [content(0, 0), content(1, 0), content(0, 2), content(1, 2)] {
            assert!(history.check_cut(&content).is_ok(), "{content:?}");
        }
    }

    #[test]
    fn a_lost_answered_write_is_named() {
        let lost = Broken::Lost {
            page: 11,
            found: 0,
            answered: 2,
        };
        assert_eq!(history().check_nothing_lost(&content(1, 0)), Err(lost));
        assert!(history().check_nothing_lost(&content(1, 2)).is_ok());
        assert!(history().check_nothing_lost(&content(3, 2)).is_ok());
    }

    #[test]
    fn a_page_is_written_by_one_at_a_time() {
        let mut history = history();
        assert_eq!(history.send(10), None);
        history.answer(3);
        assert_eq!(history.send(10), Some(4));
    }

    #[test]
    fn what_was_seen_once_must_stay() {
        let mut history = history();
        history.settle(&content(1, 2));
        assert!(history.check_nothing_lost(&content(1, 2)).is_ok());
        let unknown = Broken::Unknown { page: 10, found: 3 };
        assert_eq!(history.check_nothing_lost(&content(3, 2)), Err(unknown));
    }
}
