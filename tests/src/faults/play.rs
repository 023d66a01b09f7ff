//! One case, from a healthy server to every page read back by another node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Case, Elsewhere, How, Trouble};
use super::elsewhere::Wrong;
use super::trouble::{End, Look, Onlooker, Spell, Switch};
use crate::history::History;
use crate::load::{Moment, Run, Shape, now, read_timed};
use crate::pages::Filler;
use crate::server::{Store, wait_until};
use crate::site::Site;

pub(super) const EXPORT: &str = "vm";
/// Good weather before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// Until the store has everything, after the fault.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Of one write of a backlog: 64 KiB.
const BACKLOG_WRITE_PAGES: u64 = 16;
/// The node of the comparison holds all that it is told to write, far from its bound, and syncs nothing before
/// it is asked to.
const CONTROL_CACHE_GB: f64 = 4.0;
const CONTROL_SYNC_DELAY_MS: u64 = 3_600_000;
/// Distinct lines of the log that are told.
const LINES_MAX: usize = 8;
const LINE_CHARS_MAX: usize = 160;
const BAD_OUTCOMES: [&str; 6] = [
    "not_found",
    "conflict",
    "retry",
    "unknown",
    "refused",
    "unsupported",
];

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// During the fault.
    pub answered_writes: u64,
    pub flushes: u64,
    /// Between two answers, with requests in flight.
    pub longest_stall: Duration,
    /// Of a reader: until it had every page.
    pub reading: Duration,
    /// Requests and connections that the fault met, where that can be counted.
    pub hit: u64,
    /// What the log said at WARN or ERROR, and when it was over: each once, with its number.
    pub lines: Vec<(String, u64)>,
    /// Words of these lines that name the fault.
    pub named: Option<&'static str>,
    /// Requests to the store by outcome, without the good ones.
    pub outcomes: BTreeMap<String, f64>,
    /// When the fault ended.
    pub dirty_bytes: u64,
    /// Writes that were delayed because of a bound, and for how long in all.
    pub throttled_writes: f64,
    pub throttled: Duration,
    /// From the end of the fault until the store had everything.
    pub catch_up: CatchUp,
    /// Of a backlog: the same bytes on their way to the same store, and no fault before.
    pub control: Option<CatchUp>,
    pub pages_compared: u64,
}

/// Bytes on their way to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CatchUp {
    pub time: Duration,
    /// Before compression.
    pub bytes: f64,
    /// The part of the time in which the server did not ask the store yet, where that was watched.
    pub waited: Option<Duration>,
}

/// Runs a case. An I/O error at the client, a lost page or a server that does not come back is an error, and so is
/// a fault that nothing has met.
pub fn play(case: &Case) -> Result<Seen> {
    let mut switch = None;
    let site = Site::prepared(|s3, settings| {
        settings.disk_size_gb = case.cache_gb;
        settings.auto_create_size_gb = Some(case.volume_gb);
        if let Some(trouble) = case.how.trouble() {
            switch = Some(Switch::new(trouble, s3, settings)?);
        }
        Ok(())
    })?;
    let mut stage = Stage {
        site,
        switch,
        history: History::default(),
        filler: Filler::new(1),
        throttled_before: (0.0, 0.0),
        seen: Seen::default(),
    };
    stage
        .play(case)
        .with_context(|| stage.site.server.log_tail())?;
    Ok(stage.seen)
}

struct Stage {
    site: Site,
    switch: Option<Switch>,
    history: History,
    filler: Filler,
    /// Writes and seconds, of the process that meets the end of the fault.
    throttled_before: (f64, f64),
    seen: Seen,
}

impl Stage {
    fn play(&mut self, case: &Case) -> Result<()> {
        self.set_distance(case.distance)?;
        let run = self.pages(case)?;
        let healthy = self.load(case, run, |_| Ok(Ends::After(BEFORE)))?;
        healthy.disconnect()?;
        self.seen = Seen::default();
        let said_before = self.site.server.log().len();
        let end = match case.how {
            How::Outage(outage) if outage.killed => Some(self.killed_in_outage(case)?),
            How::Writing(_) | How::Outage(_) | How::Backlog => Some(self.under(case)?),
            How::Elsewhere(elsewhere) => Some(self.elsewhere(case, elsewhere)?),
            How::Waking(_) => None,
        };
        let document = self.drain()?;
        ensure!(document["dirty_bytes"] == 0, "drained, but {document}");
        if let Some(end) = end {
            self.note_catch_up(&end)?;
            let is_throttled = self.seen.throttled_writes > 0.0;
            ensure!(
                is_throttled || !matches!(case.how, How::Backlog),
                "the bound of what may be dirty was not reached: let the outage last longer"
            );
            self.note_log(said_before);
            self.note_words(case, said_before)?;
        }
        ensure!(self.site.server.terminate()?.success(), "a clean end");
        // How long reading back takes is not asked.
        self.set_distance(Duration::ZERO)?;
        if matches!(case.how, How::Backlog) {
            self.site.settings.disk_size_gb = CONTROL_CACHE_GB;
            self.site.settings.sync_delay_ms = CONTROL_SYNC_DELAY_MS;
        }
        self.site.move_on()?;
        self.compare(case)?;
        if matches!(case.how, How::Backlog) {
            self.set_distance(case.distance)?;
            self.control(case)?;
        }
        Ok(())
    }

    /// The fault while the load goes on, and for as long as the load waits for it.
    fn under(&mut self, case: &Case) -> Result<End> {
        let before = self.onlooker().look()?;
        let hit = self.site.s3.weather.hit();
        self.throttled_before = (before.throttled_writes(), before.throttled_seconds());
        let run = match case.how {
            How::Backlog => {
                let client = self.site.server.connect(EXPORT)?;
                Run::of_rows(client, shape(case), BACKLOG_WRITE_PAGES)
            }
            _ => self.pages(case)?,
        };
        let (switch, onlooker) = (self.switch()?, self.onlooker());
        let mut spell = None;
        let run = self.load(case, run, |lasts| {
            let begun = Spell::begin(switch, lasts, onlooker)?;
            let over = Arc::clone(&begun.is_over);
            spell = Some(begun);
            Ok(Ends::When(over))
        })?;
        let end = spell.context("the load has begun it")?.end()?;
        self.seen.dirty_bytes = end.look.dirty_bytes;
        self.seen.hit = self.site.s3.weather.hit() - hit;
        self.seen.outcomes = since(&self.onlooker().look()?, Some(&before));
        self.ensure_met()?;
        run.disconnect()?;
        Ok(end)
    }

    fn ensure_met(&self) -> Result<()> {
        let is_met = self.seen.hit > 0 || !self.seen.outcomes.is_empty();
        ensure!(is_met, "no request of the server met the fault");
        Ok(())
    }

    fn killed_in_outage(&mut self, case: &Case) -> Result<End> {
        let switch = self.switch()?;
        switch.begin()?;
        let half = case.lasts / 2;
        let run = self.pages(case)?;
        let run = self.load(case, run, |_| Ok(Ends::After(half)))?;
        self.kill(run)?;
        self.site.restart()?;
        let (run, onlooker) = (self.pages(case)?, self.onlooker());
        let mut spell = None;
        let run = self.load(case, run, |_| {
            let begun = Spell::ending(switch, half, onlooker);
            let over = Arc::clone(&begun.is_over);
            spell = Some(begun);
            Ok(Ends::When(over))
        })?;
        let end = spell.context("the load has begun it")?.end()?;
        self.seen.dirty_bytes = end.look.dirty_bytes;
        self.seen.outcomes = since(&self.onlooker().look()?, None);
        run.disconnect()?;
        Ok(end)
    }

    /// kill -9, a start with another endpoint, load, kill -9, a start with the right one.
    fn elsewhere(&mut self, case: &Case, elsewhere: Elsewhere) -> Result<End> {
        let run = self.pages(case)?;
        let run = self.load(case, run, |_| Ok(Ends::After(BEFORE)))?;
        self.kill(run)?;
        let right = self.site.settings.store.clone();
        let wrong = Wrong::make(
            elsewhere,
            self.site.folder.path(),
            &self.site.s3.address.to_string(),
        )?;
        self.site.settings.store = Store::S3 {
            endpoint: wrong.url.clone(),
            prefix: "vms".to_owned(),
        };
        self.site.restart()?;
        self.seen = Seen::default();
        let run = self.pages(case)?;
        let run = self.load(case, run, |lasts| Ok(Ends::After(lasts)))?;
        let look = self.onlooker().look()?;
        self.seen.outcomes = since(&look, None);
        self.seen.dirty_bytes = look.dirty_bytes;
        self.kill(run)?;
        drop(wrong);
        self.site.settings.store = right;
        self.site.restart()?;
        // The volume is known again once somebody asks for it.
        self.site.server.connect(EXPORT)?.disconnect()?;
        Ok(End::now(self.onlooker().look()?))
    }

    /// Writes and flushes until the end, and takes all answers. What `begin` does comes first.
    fn load(
        &mut self,
        case: &Case,
        mut run: Run,
        begin: impl FnOnce(Duration) -> Result<Ends>,
    ) -> Result<Loaded> {
        let ends = begin(case.lasts)?;
        let (began, mut last) = (now(), now());
        while !ends.is_over(began) {
            run.fill(&mut self.history, &mut self.filler)?;
            self.take(&mut run, &mut last)?;
            let due = Duration::from_secs_f64(run.answered_writes as f64 / case.rate as f64);
            let ahead = due.saturating_sub(began.elapsed());
            if !ahead.is_zero() {
                sleep(ahead);
                last = now();
            }
        }
        while !run.is_idle() {
            self.take(&mut run, &mut last)?;
        }
        self.seen.answered_writes += run.answered_writes;
        self.seen.flushes += run.flushes;
        Ok(Loaded(run))
    }

    fn take(&mut self, run: &mut Run, last: &mut Moment) -> Result<()> {
        let answer = run.take(&mut self.history)?;
        ensure!(answer.is_some(), "the server ended by itself");
        self.seen.longest_stall = self.seen.longest_stall.max(last.elapsed());
        *last = now();
        Ok(())
    }

    /// kill -9 with requests in flight.
    fn kill(&mut self, Loaded(mut run): Loaded) -> Result<()> {
        run.fill(&mut self.history, &mut self.filler)?;
        run.client.send()?;
        self.site.server.kill()?;
        // Answers that were on their way were given: they count.
        while run.take(&mut self.history)?.is_some() {}
        Ok(())
    }

    fn drain(&self) -> Result<serde_json::Value> {
        let mut drained = None;
        // A drain that the store fails says so; the sync goes on.
        let done = wait_until(CATCH_UP_MAX, || {
            drained = self.site.server.drain(EXPORT).ok();
            drained.is_some()
        });
        ensure!(done, "the store does not catch up");
        drained.context("a drain that succeeded")
    }

    /// The volume on another node, from the store alone; while the fault lasts, if it is one of reads.
    fn compare(&mut self, case: &Case) -> Result<()> {
        let before = self.onlooker().look()?;
        let said_before = self.site.server.log().len();
        let hit = self.site.s3.weather.hit();
        let mut client = self.site.server.connect(EXPORT)?;
        let spell = match case.how {
            How::Waking(_) => Some(Spell::begin(self.switch()?, case.lasts, self.onlooker())?),
            _ => None,
        };
        let began = now();
        let (content, longest) = read_timed(&mut client, shape(case), &self.history)?;
        let reading = began.elapsed();
        let verdict = self.history.check_nothing_lost(&content)?;
        self.seen.pages_compared = verdict.pages;
        if let Some(spell) = spell {
            (self.seen.reading, self.seen.longest_stall) = (reading, longest);
            self.seen.outcomes = since(&self.onlooker().look()?, Some(&before));
            self.seen.hit = self.site.s3.weather.hit() - hit;
            self.note_log(said_before);
            self.ensure_met()?;
            // Reads may be done before it is over.
            spell.end()?;
        }
        client.disconnect()
    }

    /// The writes of the backlog once more, to the node that is here now, and a drain: the same bytes to the same
    /// store, and there was no outage.
    fn control(&mut self, case: &Case) -> Result<()> {
        let client = self.site.server.connect(EXPORT)?;
        let mut run = Run::of_rows(client, shape(case), BACKLOG_WRITE_PAGES);
        while run.answered_writes < self.seen.answered_writes {
            run.fill(&mut self.history, &mut self.filler)?;
            let answer = run.take(&mut self.history)?;
            ensure!(answer.is_some(), "the server ended by itself");
        }
        while !run.is_idle() {
            let answer = run.take(&mut self.history)?;
            ensure!(answer.is_some(), "the server ended by itself");
        }
        let before = self.onlooker().look()?;
        let began = now();
        self.drain()?;
        let time = began.elapsed();
        let bytes = self.onlooker().look()?.packed_bytes() - before.packed_bytes();
        self.seen.control = Some(CatchUp {
            time,
            bytes,
            waited: None,
        });
        run.client.disconnect()
    }

    /// Of a moment at which the store has everything.
    fn note_catch_up(&mut self, end: &End) -> Result<()> {
        let time = end.at.elapsed();
        let look = self.onlooker().look()?;
        let (writes, seconds) = self.throttled_before;
        self.seen.throttled_writes = look.throttled_writes() - writes;
        let seconds = (look.throttled_seconds() - seconds).max(0.0);
        self.seen.throttled = Duration::from_secs_f64(seconds);
        self.seen.catch_up = CatchUp {
            time,
            bytes: look.packed_bytes() - end.look.packed_bytes(),
            waited: end.asked_again(),
        };
        Ok(())
    }

    /// What the log said since: warnings, errors, and that it is over.
    fn note_log(&mut self, since: usize) {
        let log = self.site.server.log();
        let mut lines: Vec<(String, u64)> = Vec::new();
        for line in log.get(since..).unwrap_or_default().lines() {
            let Some(said) = said(line) else {
                continue;
            };
            match lines.iter_mut().find(|(known, _)| *known == said) {
                Some((_, times)) => *times += 1,
                None => lines.push((said, 1)),
            }
        }
        lines.truncate(LINES_MAX);
        self.seen.lines = lines;
    }

    /// A fault that the log gives another name was another fault.
    fn note_words(&mut self, case: &Case, since: usize) -> Result<()> {
        let Some(words) = case.how.trouble().and_then(Trouble::words) else {
            return Ok(());
        };
        let log = self.site.server.log();
        let mut lines = log.get(since..).unwrap_or_default().lines();
        let is_named = lines.any(|line| said(line).is_some() && line.contains(words));
        ensure!(is_named, "no error in the log says `{words}`");
        self.seen.named = Some(words);
        Ok(())
    }

    fn pages(&self, case: &Case) -> Result<Run> {
        Ok(Run::new(self.site.server.connect(EXPORT)?, shape(case)))
    }

    fn switch(&self) -> Result<Switch> {
        self.switch.clone().context("a case with a trouble")
    }

    fn onlooker(&self) -> Onlooker {
        Onlooker {
            api: self.site.server.api,
            counts: Arc::clone(&self.site.s3.counts),
        }
    }

    fn set_distance(&self, distance: Duration) -> Result<()> {
        let delay_ms = u64::try_from(distance.as_millis())?;
        self.site
            .s3
            .faults
            .delay_ms
            .store(delay_ms, Ordering::SeqCst);
        Ok(())
    }
}

fn shape(case: &Case) -> Shape {
    Shape {
        volume: 0x66_61_75_6c_74,
        pages: case.pages,
        depth: 16,
        flush_one_in: 40,
    }
}

/// Level and message of a line worth telling, without what differs from run to run.
fn said(line: &str) -> Option<String> {
    let level = ["ERROR", "WARN"]
        .into_iter()
        .find(|level| line.contains(&format!(" {level} ")));
    let is_over = line.contains("works again") || line.contains("were renewed");
    let level = level.or(is_over.then_some("INFO"))?;
    let (_, rest) = line.split_once(level)?;
    let (_, message) = rest.split_once(": ")?;
    // The fields come behind the message.
    let end = message
        .find(" export=")
        .or_else(|| message.find(" error="))
        .unwrap_or(message.len());
    let message: String = message[..end].chars().take(LINE_CHARS_MAX).collect();
    Some(format!("{level} {message}"))
}

/// Requests to the store by outcome, without the good ones: since that look, or since the process began.
fn since(now: &Look, before: Option<&Look>) -> BTreeMap<String, f64> {
    let new = BAD_OUTCOMES.map(|name| {
        let before = before.map_or(0.0, |before| before.requests(name));
        (name.to_owned(), now.requests(name) - before)
    });
    let counted = new.into_iter().filter(|(_, count)| *count > 0.0);
    counted.collect()
}

/// When a load ends.
enum Ends {
    After(Duration),
    When(Arc<AtomicBool>),
}

impl Ends {
    fn is_over(&self, began: Moment) -> bool {
        match self {
            Self::After(lasts) => began.elapsed() >= *lasts,
            Self::When(over) => over.load(Ordering::SeqCst),
        }
    }
}

/// A connection whose requests are answered.
struct Loaded(Run);

impl Loaded {
    fn disconnect(self) -> Result<()> {
        self.0.client.disconnect()
    }
}

#[expect(clippy::disallowed_methods, reason = "faults last in real time")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
