//! The judge of crash points: what is found must be the content after a prefix of the requests, not too
//! short a one; and what the filesystem's own tools say of it must be good.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Result;
use bytes::Bytes;
use world::sim::{Crash, DiskImage};

use super::lab::Lab;
use super::look::{From, Look, Objects, Reads};
use super::stream::{Content, Digest, Prefixes, Reached, Stream};
use super::work::{Owed, Recording};

/// Failures that are told; then the replay ends.
const FAILURES_MAX: usize = 10;
/// Of so many looks one reads the whole volume, also what the server tells to be holes.
const WHOLE_ONE_IN: u64 = 16;
/// The path of the root, under whatever prefix.
const ROOT: &str = "/root";

/// What the client knows at a moment, in requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The shortest prefix that holds all that was answered.
    pub(super) answered: usize,
    /// The same for what was answered before a flush that was answered.
    pub(super) flushed: usize,
    /// Requests that were sent.
    pub(super) came: usize,
}

/// Whether the first part of a request may be there that was not yet to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Allowed,
    Never,
}

/// A crash point.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) bounds: Bounds,
    pub(super) objects: Objects,
    pub(super) seed: u64,
    pub(super) what: String,
}

/// What was looked at, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// States from the SSD after a power cut, and after a kill.
    pub power_cuts: u64,
    pub kills: u64,
    /// Moments at which the store alone was looked at, and the different cuts found there.
    pub store_moments: u64,
    pub store_cuts: u64,
    /// Looks that found the first part of a request that was not yet to be kept.
    pub torn: u64,
    /// Different contents that the filesystem's own tools have judged.
    pub images: u64,
    /// Contents from before there was a filesystem.
    pub unformatted: u64,
    pub failures: Vec<String>,
    pub failed: u64,
}

/// Told after each crash point.
pub type Progress = Box<dyn Fn(&Tally)>;

pub(super) struct Judge {
    stream: Rc<Stream>,
    prefixes: Prefixes,
    owed: Vec<Owed>,
    formatted: usize,
    /// None: only whether contents are exact is judged.
    lab: Option<Lab>,
    tally: Tally,
    judged: BTreeSet<Digest>,
    looks: u64,
    /// The root that the store was last looked at with, and the prefix that it led to.
    root: Option<Bytes>,
    published: usize,
    progress: Progress,
}

impl Judge {
    pub(super) fn new(
        recording: &Recording,
        stream: Rc<Stream>,
        lab: Option<Lab>,
        progress: Progress,
    ) -> Self {
        Self {
            prefixes: Prefixes::of(&stream),
            stream,
            owed: recording.owed.clone(),
            formatted: recording.formatted(),
            lab,
            tally: Tally::default(),
            judged: BTreeSet::new(),
            looks: 0,
            root: None,
            published: 0,
            progress,
        }
    }

    pub(super) fn has_seen_enough(&self) -> bool {
        self.tally.failures.len() >= FAILURES_MAX
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    /// Judges what a server finds that starts again on the disk that a crash left.
    pub(super) fn ssd(&mut self, how: Crash, disk: DiskImage, moment: &Moment) {
        let (what, low) = match how {
            Crash::Power => ("the SSD after a power cut", moment.bounds.flushed),
            Crash::Process => ("the SSD after a kill", moment.bounds.answered),
        };
        match how {
            Crash::Power => self.tally.power_cuts += 1,
            Crash::Process => self.tally.kills += 1,
        }
        let look = self.look(From::Ssd(disk), moment);
        self.judge(&look, (low, Part::Allowed), what, moment);
    }

    /// Judges what another node with an empty cache finds.
    pub(super) fn store(&mut self, moment: &Moment) {
        self.tally.store_moments += 1;
        let root = moment.objects.iter().find(|(key, _)| key.ends_with(ROOT));
        let root = root.map(|(_, bytes)| bytes.clone());
        // Everything but the root is immutable: the same root is the same content.
        if root.is_some() && root != self.root {
            self.root = root;
            self.cut(moment);
        }
        (self.progress)(&self.tally);
    }

    fn cut(&mut self, moment: &Moment) {
        self.tally.store_cuts += 1;
        let look = self.look(From::StoreAlone, moment);
        let low = (self.published, Part::Never);
        if let Some(prefix) = self.judge(&look, low, "the store alone", moment) {
            self.published = prefix;
        }
    }

    /// After a drain the store alone holds everything.
    pub(super) fn drained(&mut self, moment: &Moment) {
        self.root = None;
        self.published = moment.bounds.answered;
        self.store(moment);
    }

    fn look(&mut self, from: From, moment: &Moment) -> Result<Content> {
        self.looks += 1;
        let look = Look {
            seed: moment.seed,
            volume_bytes: self.stream.size_bytes,
            from,
            objects: moment.objects.clone(),
            reads: if self.looks.is_multiple_of(WHOLE_ONE_IN) {
                Reads::All
            } else {
                Reads::Data
            },
        };
        look.content()
    }

    /// The prefix whose content it is, if it is good.
    fn judge(
        &mut self,
        found: &Result<Content>,
        (low, part): (usize, Part),
        what: &str,
        moment: &Moment,
    ) -> Option<usize> {
        let content = match found {
            Ok(content) => content,
            Err(error) => {
                self.fail(what, moment, &format!("cannot be read: {error:#}"));
                return None;
            }
        };
        let reached = match self.place(content, low, part, moment.bounds.came) {
            Ok(reached) => reached,
            Err(text) => {
                self.fail(what, moment, &text);
                return None;
            }
        };
        self.tally.torn += u64::from(reached.torn);
        if let Err(error) = self.examine(content, reached) {
            let text = format!("the content after {} requests: {error:#}", reached.whole);
            self.fail(what, moment, &text);
            return None;
        }
        Some(reached.whole)
    }

    /// How far a content has come.
    fn place(
        &self,
        content: &Content,
        low: usize,
        part: Part,
        high: usize,
    ) -> Result<Reached, String> {
        match self.prefixes.longest(content.digest(), high) {
            Some(prefix) if prefix >= low => return Ok(Reached::exactly(prefix)),
            Some(prefix) => {
                return Err(format!(
                    "holds the first {prefix} requests, and must hold {low}"
                ));
            }
            None => {}
        }
        let torn = match part {
            Part::Allowed => self.stream.torn(content, low, high),
            Part::Never => None,
        };
        torn.ok_or_else(|| self.no_prefix(content, low, high))
    }

    /// Once for each content.
    fn examine(&mut self, content: &Content, reached: Reached) -> Result<()> {
        if !self.judged.insert(content.digest()) {
            return Ok(());
        }
        let Some(lab) = &mut self.lab else {
            return Ok(());
        };
        if reached.whole < self.formatted {
            self.tally.unformatted += 1;
            return Ok(());
        }
        self.tally.images += 1;
        lab.judge(content, reached, &self.owed)
    }

    /// Says how far a content is from the nearest legal one.
    fn no_prefix(&self, content: &Content, low: usize, high: usize) -> String {
        let mut legal = self.stream.content_after(low);
        let mut nearest = (legal.differences(content), low);
        for number in low..high {
            legal.apply(&self.stream.asks[number]);
            let differences = legal.differences(content);
            if differences.len() < nearest.0.len() {
                nearest = (differences, number + 1);
            }
        }
        let (differences, prefix) = nearest;
        let first = differences.first().copied().unwrap_or_default();
        format!(
            "is the content after no prefix of {low} to {high} requests; after {prefix}, {} pages \
             would be different, the first at byte {first}",
            differences.len()
        )
    }

    fn fail(&mut self, what: &str, moment: &Moment, text: &str) {
        self.tally.failed += 1;
        if self.tally.failures.len() < FAILURES_MAX {
            let text = format!("{}: {what} {text}", moment.what);
            self.tally.failures.push(text);
        }
    }
}
