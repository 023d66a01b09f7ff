//! Load on one connection: random writes of stamped pages, and flushes, at depth.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::blocking_client::Client;
use crate::history::{Content, History};
use crate::pages::{Filler, PAGE_BYTES, Stamp};

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
    /// Cookie to write number, or none for a flush.
    in_flight: BTreeMap<u64, Option<u64>>,
    pub answered_writes: u64,
    pub flushes: u64,
}

impl Run {
    pub fn new(client: Client, shape: Shape) -> Self {
        Self {
            client,
            shape,
            in_flight: BTreeMap::new(),
            answered_writes: 0,
            flushes: 0,
        }
    }

    /// Keeps the depth.
    pub fn fill(&mut self, history: &mut History, filler: &mut Filler) -> Result<()> {
        let shape = self.shape;
        while self.in_flight.len() < shape.depth {
            if filler.below(shape.flush_one_in) == 0 {
                let cookie = self.client.submit_flush()?;
                self.in_flight.insert(cookie, None);
                continue;
            }
            let page = filler.below(shape.pages);
            let Some(number) = history.send(page) else {
                continue;
            };
            let stamp = Stamp::new(shape.volume, page, number);
            let cookie = self.client.submit_write(stamp.offset(), &stamp.bytes())?;
            self.in_flight.insert(cookie, Some(number));
        }
        Ok(())
    }

    /// Takes one answer: the number of the write, if it was one. None once the server is gone.
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
        let number = request.context("an answer to nothing")?;
        match number {
            Some(number) => {
                history.answer(number);
                self.answered_writes += 1;
            }
            None => self.flushes += 1,
        }
        Ok(Some(number))
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}

/// Reads the pages that were ever written, at depth.
pub fn read_content(client: &mut Client, shape: Shape, history: &History) -> Result<Content> {
    let mut content = Content::new();
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
    Ok(content)
}
