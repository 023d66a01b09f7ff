//! The model disk: it knows every legal content of one volume, at any time and after any crash.
//!
//! A scenario tells it what it submits and what is answered; the payloads come from here, each
//! sector stamped with the number of its write, so that what is read back says which writes it is
//! made of. Then [`Oracle::check`] judges a whole content:
//!
//! - after a process crash ([`Judge::Process`]) every answered write is there;
//! - after a power cut ([`Judge::Power`]) there is a *cut*: everything up to it is there, nothing
//!   behind it, and it lies at or behind the last answered flush;
//! - read from the store alone ([`Judge::Store`]) likewise, at or behind the last cut known to be
//!   published.
//!
//! Two writes under way at the same time have no order of their own: either may come first, but in
//! all their sectors alike. A write comes before another if it was answered before the other was
//! submitted. So a content is legal if there is a set of writes that contains with each write all
//! that came before it, and an order of them, which give exactly this content. A write that nothing
//! in the set came after may be there in part if it has several pages (a cut may go through it), or
//! if it was never answered and the process died (a part of it was taken over).
//!
//! The check is exact, which a comparison with brute force over small histories shows.
//!
//! Volumes of a group are judged as one disk: [`Windows`].
//!
//! Deliberately absent: torn sectors (nothing may ever show one), and writes that shrink or grow
//! the volume.

mod history;
mod stamp;
mod verdict;
mod windows;

#[cfg(test)]
mod tests;

use std::ops::Range;

use bytes::Bytes;

use history::{Content, History};
pub use stamp::SECTOR_BYTES;
pub use verdict::{Survivors, Violation, Why};
pub use windows::Windows;

/// A write of an oracle; numbers grow in the order of submission, over all lives of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteNo(pub u64);

impl std::fmt::Display for WriteNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "write {}", self.0)
    }
}

/// A moment in the history of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What a content must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Every answered write: after a process crash, after a drain, or at rest.
    Process,
    /// At least what was answered before the last answered flush began, and an exact cut.
    Power,
    /// At least the last cut known to be published, and an exact cut.
    Store,
}

/// The model of one volume.
#[derive(Clone, Debug)]
pub struct Oracle {
    id: u64,
    size_bytes: u64,
    history: History,
}

impl Oracle {
    /// A volume of zeros. Oracles of different ids know each other's stamps as foreign.
    pub fn new(id: u64, size_bytes: u64) -> Self {
        assert!(
            size_bytes.is_multiple_of(SECTOR_BYTES),
            "a volume of {size_bytes} bytes ends inside a sector"
        );
        Self {
            id,
            size_bytes,
            history: History::default(),
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// A write is about to be submitted; these are its bytes. One that is never answered, or by an
    /// error, may have happened or not.
    pub fn submit_write(&mut self, at: u64, len: u64) -> (WriteNo, Bytes) {
        let sectors = self.sectors(at, len);
        let no = self.history.submit(sectors.clone(), Content::Data);
        let mut bytes = Vec::with_capacity(usize::try_from(len).expect("a payload in memory"));
        for sector in sectors {
            bytes.extend_from_slice(&stamp::make(self.id, no, sector));
        }
        (no, bytes.into())
    }

    /// A trim or a write of zeros is about to be submitted.
    pub fn submit_zero(&mut self, at: u64, len: u64) -> WriteNo {
        let sectors = self.sectors(at, len);
        self.history.submit(sectors, Content::Zero)
    }

    fn sectors(&self, at: u64, len: u64) -> Range<u64> {
        let end = at + len;
        assert!(
            end <= self.size_bytes,
            "{at}+{len} is behind the end of the volume"
        );
        for edge in [at, end] {
            assert!(
                edge.is_multiple_of(SECTOR_BYTES),
                "byte {edge} is inside a sector"
            );
        }
        at / SECTOR_BYTES..end / SECTOR_BYTES
    }

    /// A write or zeroing was answered with success.
    pub fn answered(&mut self, no: WriteNo) {
        self.history.answer(no);
    }

    /// The same for one with FUA: it survives power loss by itself.
    pub fn answered_durable(&mut self, no: WriteNo) {
        self.history.answer(no);
        self.history.harden(no);
    }

    /// A flush is about to be submitted.
    pub fn flush_begin(&mut self) -> Moment {
        self.history.moment()
    }

    /// That flush was answered with success.
    pub fn flush_done(&mut self, begun: Moment) {
        self.history.flushed = self.history.flushed.max(begun);
    }

    /// The same where it was asked of one volume of several, which has this window: it hardens what lies there.
    pub fn flush_done_within(&mut self, begun: Moment, window: &Range<u64>) {
        let sectors = self.sectors(window.start, window.end - window.start);
        self.history.harden_within(begun, &sectors);
    }

    /// Something begins that publishes at least what is answered by now: a drain, or waiting until
    /// the published seq has reached the current one.
    pub fn publish_begin(&mut self) -> Moment {
        self.history.moment()
    }

    /// It has succeeded.
    pub fn publish_done(&mut self, begun: Moment) {
        self.history.published = self.history.published.max(begun);
    }

    /// What is known to be published now: what is looked up from here on holds at least that.
    pub fn published(&self) -> Moment {
        self.history.published
    }

    /// The model of a copy (a snapshot, a fork) that was asked for at `begun` and is there now: it holds at least what
    /// was answered by then, whatever the volume itself has published since.
    pub fn of_copy(&self, begun: Moment) -> Self {
        let mut copy = self.clone();
        copy.history.published = begun;
        copy
    }

    /// A read is about to be submitted.
    pub fn read_begin(&mut self) -> Moment {
        self.history.moment()
    }

    /// Judges the answer of a read in normal operation: no sector may be older than what was
    /// answered before the read began.
    pub fn check_read(&self, begun: Moment, at: u64, bytes: &[u8]) -> Result<(), Violation> {
        let len = u64::try_from(bytes.len()).expect("a length fits u64");
        let seen = stamp::read(self.id, self.sectors(at, len), bytes)?;
        verdict::judge_read(&self.history, begun, &seen)
    }

    /// Judges the whole content of the volume after a crash (or at rest), and finds out what
    /// survived. Nothing may have been submitted since the crash.
    pub fn check(&self, content: &[u8], judge: Judge) -> Result<Survivors, Violation> {
        assert_eq!(
            u64::try_from(content.len()).expect("a length fits u64"),
            self.size_bytes,
            "the whole content is judged"
        );
        let sectors = 0..self.size_bytes / SECTOR_BYTES;
        let seen = stamp::read(self.id, sectors, content)?;
        verdict::judge(&self.history, judge, seen)
    }

    /// The volume goes on from what survived: the rest must never be seen again. What was not
    /// flushed before may still be lost by the next power cut.
    pub fn reset_to(&mut self, survivors: &Survivors) {
        self.history.reset_to(survivors);
    }
}
