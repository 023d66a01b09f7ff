//! Load on one connection: writes of stamped pages, and flushes, at depth.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::blocking_client::Client;
use crate::history::{Content, History};
use crate::pages::{Filler, PAGE_BYTES, Stamp};

/// A prime: the places of a volume are met in steps of so many, and each before any comes again.
const STEP: u64 = 9973;

/// What the load is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Stamped into every page.
    pub volume: u64,
    pub pages: u64,
    pub depth: usize,
    /// One request in so many is a flush.
    pub flush_one_in: u64,
}

/// Real time, for numbers that are told and never judged.
#[expect(clippy::disallowed_types, reason = "the server lives in real time")]
pub type Moment = std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the server lives in real time")]
pub fn now() -> Moment {
    Moment::now()
}

/// One connection's worth of load.
#[derive(Debug)]
pub struct Run {
    pub client: Client,
    shape: Shape,
    places: Places,
    /// Cookie to the numbers of a write's pages, none of a flush.
    in_flight: BTreeMap<u64, Vec<u64>>,
    pub answered_writes: u64,
    pub flushes: u64,
}

/// Where the next write goes.
#[derive(Clone, Copy, Debug)]
enum Places {
    /// To one page, any.
    Random,
    /// To so many pages in a row, and to each row before it comes to any again.
    Rows { pages: u64, next: u64 },
}

impl Places {
    fn next(&mut self, volume_pages: u64, filler: &mut Filler) -> Range<u64> {
        match self {
            Self::Random => {
                let page = filler.below(volume_pages);
                page..page + 1
            }
            Self::Rows { pages, next } => {
                let rows = volume_pages / *pages;
                let row = next.wrapping_mul(STEP) % rows;
                *next += 1;
                row * *pages..(row + 1) * *pages
            }
        }
    }
}

impl Run {
    pub fn new(client: Client, shape: Shape) -> Self {
        Self {
            client,
            shape,
            places: Places::Random,
            in_flight: BTreeMap::new(),
            answered_writes: 0,
            flushes: 0,
        }
    }

    /// The same with writes of so many pages, all to different places until the whole volume is written.
    pub fn of_rows(client: Client, shape: Shape, pages: u64) -> Self {
        assert!(pages > 0 && shape.pages >= pages, "a row is in the volume");
        assert!(
            !(shape.pages / pages).is_multiple_of(STEP),
            "or some rows are never met"
        );
        Self {
            places: Places::Rows { pages, next: 0 },
            ..Self::new(client, shape)
        }
    }

    /// Keeps the depth.
    pub fn fill(&mut self, history: &mut History, filler: &mut Filler) -> Result<()> {
        let shape = self.shape;
        while self.in_flight.len() < shape.depth {
            if filler.below(shape.flush_one_in) == 0 {
                let cookie = self.client.submit_flush()?;
                self.in_flight.insert(cookie, Vec::new());
                continue;
            }
            let pages = self.places.next(shape.pages, filler);
            let at = Stamp::new(shape.volume, pages.start, 0).offset();
            let Some((numbers, data)) = stamped(shape.volume, pages, history)? else {
                continue;
            };
            let cookie = self.client.submit_write(at, &data)?;
            self.in_flight.insert(cookie, numbers);
        }
        Ok(())
    }

    /// Takes one answer: the (last) number of the write, if it was one. None once the server is gone.
    pub fn take(&mut self, history: &mut History) -> Result<Option<Option<u64>>> {
        let Some(answer) = self.client.next_answer()? else {
            return Ok(None);
        };
        ensure!(
            answer.error == 0,
            "the server answered NBD error {}",
            answer.error
        );
        let request = self.in_flight.remove(&answer.cookie);
        let numbers = request.context("an answer to nothing")?;
        for number in &numbers {
            history.answer(*number);
        }
        match numbers.last() {
            Some(_) => self.answered_writes += 1,
            None => self.flushes += 1,
        }
        Ok(Some(numbers.last().copied()))
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}

/// The next write of each of these pages, and its bytes. None while one is in flight there.
fn stamped(
    volume: u64,
    pages: Range<u64>,
    history: &mut History,
) -> Result<Option<(Vec<u64>, Vec<u8>)>> {
    let (mut numbers, mut data) = (Vec::new(), Vec::new());
    for page in pages {
        let Some(number) = history.send(page) else {
            // What was sent before would be waited for, and nobody will answer it.
            ensure!(
                numbers.is_empty(),
                "a row in flight is in flight as a whole"
            );
            return Ok(None);
        };
        numbers.push(number);
        data.extend_from_slice(&Stamp::new(volume, page, number).bytes());
    }
    Ok(Some((numbers, data)))
}

/// Reads the pages that were ever written, at depth.
pub fn read_content(client: &mut Client, shape: Shape, history: &History) -> Result<Content> {
    let (content, _) = read_timed(client, shape, history)?;
    Ok(content)
}

/// The same, with the longest time between two answers.
pub fn read_timed(
    client: &mut Client,
    shape: Shape,
    history: &History,
) -> Result<(Content, Duration)> {
    let mut content = Content::new();
    let (mut longest, mut last) = (Duration::ZERO, now());
    let mut left: BTreeSet<u64> = history.pages().collect();
    let mut in_flight = BTreeMap::new();
    let len = u32::try_from(PAGE_BYTES)?;
    while !(left.is_empty() && in_flight.is_empty()) {
        while in_flight.len() < shape.depth
            && let Some(page) = left.pop_first()
        {
            let at = Stamp::new(shape.volume, page, 0).offset();
            in_flight.insert(client.submit_read(at, len)?, page);
        }
        let answer = client
            .next_answer()?
            .context("the server ended by itself")?;
        longest = longest.max(last.elapsed());
        last = now();
        ensure!(
            answer.error == 0,
            "a read answered NBD error {}",
            answer.error
        );
        let page = in_flight.remove(&answer.cookie).context("no such read")?;
        let number = Stamp::number_in(shape.volume, page, &answer.data)
            .with_context(|| format!("page {page}"))?;
        content.insert(page, number);
    }
    Ok((content, longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_again_only_after_all_others() {
        let (mut places, mut filler) = (Places::Rows { pages: 16, next: 0 }, Filler::new(1));
        let mut met = BTreeSet::new();
        for _ in 0..1024 {
            let row = places.next(16 * 1024, &mut filler);
            assert!(
                row.start.is_multiple_of(16) && row.end - row.start == 16,
                "{row:?}"
            );
            assert!(row.end <= 16 * 1024 && met.insert(row.start), "{row:?}");
        }
        assert_eq!(places.next(16 * 1024, &mut filler), 0..16);
    }

    #[test]
    fn a_row_is_stamped_page_by_page_and_not_while_it_is_in_flight() -> Result<()> {
        let mut history = History::default();
        let (numbers, data) = stamped(7, 32..34, &mut history)?.context("nothing is in flight")?;
        assert_eq!(
            (numbers.as_slice(), data.len()),
            ([1, 2].as_slice(), 2 * PAGE_BYTES)
        );
        assert_eq!(Stamp::number_in(7, 33, &data[PAGE_BYTES..]), Ok(2));
        assert!(stamped(7, 32..34, &mut history)?.is_none());
        assert!(stamped(7, 31..33, &mut history).is_err());
        Ok(())
    }
}
