//! One case, from a healthy server to every page read back by another node.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::case::{Case, Elsewhere, How};
use crate::history::History;
use crate::load::{Moment, Run, Shape, now, read_content};
use crate::openmetrics::Exposition;
use crate::pages::Filler;
use crate::s3::weather::{Fault, Weather};
use crate::s3::{Faults, S3Server};
use crate::server::{Store, wait_until};
use crate::site::{Site, text};
use crate::tool;

const EXPORT: &str = "vm";
const SHAPE: Shape = Shape {
    volume: 0x66_61_75_6c_74,
    pages: 8192,
    depth: 16,
    flush_one_in: 40,
};
/// Good weather before the fault.
const BEFORE: Duration = Duration::from_secs(1);
/// Until the store has everything, after the fault.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);
/// Distinct lines of the log that are told.
const LINES_MAX: usize = 8;
const LINE_CHARS_MAX: usize = 160;

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// During the fault.
    pub answered_writes: u64,
    pub flushes: u64,
    /// Between two answers, with requests in flight.
    pub longest_stall: Duration,
    /// Requests that the fault met, where that can be counted.
    pub hit: u64,
    /// What the log said at WARN or ERROR, and when it was over: each once, with its number.
    pub lines: Vec<(String, u64)>,
    /// Requests to the store by outcome, without the good ones.
    pub outcomes: BTreeMap<String, f64>,
    /// When the fault ended.
    pub dirty_bytes: u64,
    /// From the end of the fault until the store had everything.
    pub catch_up: Duration,
    pub pages_compared: u64,
}

/// Runs a case. An I/O error at the client, a lost page or a server that does not come back is an error.
pub fn play(case: &Case) -> Result<Seen> {
    let site = Site::with(|settings| {
        settings.disk_size_gb = case.cache_gb;
        settings.auto_create_size_gb = Some(0.125);
    })?;
    let mut stage = Stage {
        site,
        history: History::default(),
        filler: Filler::new(1),
        seen: Seen::default(),
    };
    stage
        .play(case)
        .with_context(|| stage.site.server.log_tail())?;
    Ok(stage.seen)
}

struct Stage {
    site: Site,
    history: History,
    filler: Filler,
    seen: Seen,
}

impl Stage {
    fn play(&mut self, case: &Case) -> Result<()> {
        let healthy = self.load(case, |_| Ends::After(BEFORE))?;
        healthy.disconnect()?;
        self.seen = Seen::default();
        let said_before = self.site.server.log().len();
        match case.how {
            How::Writing(fault) => self.under(case, Some(fault))?,
            How::Outage(outage) if outage.killed => self.killed_in_outage(case)?,
            How::Outage(_) => self.under(case, None)?,
            How::Elsewhere(elsewhere) => self.elsewhere(case, elsewhere)?,
            How::Waking(_) => self.site.server.drain(EXPORT).map(drop)?,
        }
        let began = now();
        let document = self.drain()?;
        self.seen.catch_up = began.elapsed();
        ensure!(document["dirty_bytes"] == 0, "drained, but {document}");
        if !matches!(case.how, How::Waking(_)) {
            self.note_log(said_before);
        }
        ensure!(self.site.server.terminate()?.success(), "a clean end");
        self.site.move_on()?;
        let waking = match case.how {
            How::Waking(fault) => Some(fault),
            _ => None,
        };
        self.compare(case, waking)
    }

    /// The fault, or 503 to everything, while the load goes on, and for as long as the load waits for it.
    fn under(&mut self, case: &Case, fault: Option<Fault>) -> Result<()> {
        let before = self.outcomes()?;
        let hit = self.site.s3.weather.hit();
        let over = Bad::new(&self.site.s3);
        let run = self.load(case, move |lasts| Ends::When(over.begin(fault, lasts)))?;
        self.seen.dirty_bytes = self.dirty_bytes()?;
        self.seen.hit = self.site.s3.weather.hit() - hit;
        self.seen.outcomes = since(&self.outcomes()?, &before);
        run.disconnect()
    }

    fn killed_in_outage(&mut self, case: &Case) -> Result<()> {
        self.site.s3.faults.outage.store(true, Ordering::SeqCst);
        let half = case.lasts / 2;
        let run = self.load(case, |_| Ends::After(half))?;
        self.kill(run)?;
        self.site.restart()?;
        let run = self.load(case, |_| Ends::After(half))?;
        self.seen.outcomes = self.outcomes()?;
        self.seen.dirty_bytes = self.dirty_bytes()?;
        self.site.s3.faults.outage.store(false, Ordering::SeqCst);
        run.disconnect()
    }

    /// kill -9, a start with another endpoint, load, kill -9, a start with the right one.
    fn elsewhere(&mut self, case: &Case, elsewhere: Elsewhere) -> Result<()> {
        let run = self.load(case, |_| Ends::After(BEFORE))?;
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
        let run = self.load(case, Ends::After)?;
        self.seen.outcomes = self.outcomes()?;
        self.seen.dirty_bytes = self.dirty_bytes()?;
        self.kill(run)?;
        drop(wrong);
        self.site.settings.store = right;
        self.site.restart()?;
        // The volume is known again once somebody asks for it.
        self.site.server.connect(EXPORT)?.disconnect()
    }

    /// Writes and flushes until the end, and takes all answers. What `begin` does comes first.
    fn load(&mut self, case: &Case, begin: impl FnOnce(Duration) -> Ends) -> Result<Loaded> {
        let mut run = Run::new(self.site.server.connect(EXPORT)?, SHAPE);
        let ends = begin(case.lasts);
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

    /// The volume on another node, from the store alone.
    fn compare(&mut self, case: &Case, waking: Option<Fault>) -> Result<()> {
        let before = self.outcomes()?;
        let said_before = self.site.server.log().len();
        let hit = self.site.s3.weather.hit();
        let mut client = self.site.server.connect(EXPORT)?;
        if waking.is_some() {
            Bad::new(&self.site.s3).begin(waking, case.lasts);
        }
        let began = now();
        let content = read_content(&mut client, SHAPE, &self.history)?;
        if waking.is_some() {
            self.seen.longest_stall = began.elapsed();
            self.seen.outcomes = since(&self.outcomes()?, &before);
            self.seen.hit = self.site.s3.weather.hit() - hit;
            self.note_log(said_before);
        }
        client.disconnect()?;
        let verdict = self.history.check_nothing_lost(&content)?;
        self.seen.pages_compared = verdict.pages;
        Ok(())
    }

    fn dirty_bytes(&self) -> Result<u64> {
        let document = self.site.server.export(EXPORT)?;
        document["dirty_bytes"].as_u64().context("dirty_bytes")
    }

    /// Requests to the store by outcome, without the good ones.
    fn outcomes(&self) -> Result<BTreeMap<String, f64>> {
        let response = self.site.server.ask("GET", "/metrics", None)?;
        let found = Exposition::parse(&response.body)?;
        let names = [
            "not_found",
            "conflict",
            "retry",
            "unknown",
            "refused",
            "unsupported",
        ];
        let counted = names.map(|name| {
            let count = found.sum_of("glidefs_store_requests_total", name);
            (name.to_owned(), count)
        });
        Ok(counted
            .into_iter()
            .filter(|(_, count)| *count > 0.0)
            .collect())
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
}

/// Level and message of a line worth telling, without what differs from run to run.
fn said(line: &str) -> Option<String> {
    let level = ["ERROR", "WARN"]
        .into_iter()
        .find(|level| line.contains(&format!(" {level} ")));
    let is_over = line.contains("works again");
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

fn since(now: &BTreeMap<String, f64>, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let new = now.iter().map(|(name, count)| {
        let before = before.get(name).copied().unwrap_or(0.0);
        (name.clone(), count - before)
    });
    new.filter(|(_, count)| *count > 0.0).collect()
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

/// Bad weather that ends by itself: who waits for the store cannot end it.
struct Bad {
    weather: Arc<Weather>,
    faults: Arc<Faults>,
}

impl Bad {
    fn new(s3: &S3Server) -> Self {
        Self {
            weather: Arc::clone(&s3.weather),
            faults: Arc::clone(&s3.faults),
        }
    }

    /// The fault, or 503 to everything, from now on for so long. What is returned becomes true at its end.
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends while everybody else waits for it"
    )]
    fn begin(self, fault: Option<Fault>, lasts: Duration) -> Arc<AtomicBool> {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        match fault {
            Some(fault) => self.weather.set(Some(fault)),
            None => self.faults.outage.store(true, Ordering::SeqCst),
        }
        std::thread::spawn(move || {
            sleep(lasts);
            self.weather.set(None);
            self.faults.outage.store(false, Ordering::SeqCst);
            is_over.store(true, Ordering::SeqCst);
        });
        over
    }
}

/// A connection whose requests are answered.
struct Loaded(Run);

impl Loaded {
    fn disconnect(self) -> Result<()> {
        self.0.client.disconnect()
    }
}

/// An endpoint that is no store, as long as this lives.
struct Wrong {
    url: String,
    _tls: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Wrong {
    fn make(elsewhere: Elsewhere, folder: &Path, right: &str) -> Result<Self> {
        let free = || -> Result<u16> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            Ok(listener.local_addr()?.port())
        };
        let url = match elsewhere {
            // A name of this domain never exists (RFC 6761).
            Elsewhere::NoName => "http://store.invalid:9000".to_owned(),
            Elsewhere::NobodyListens => format!("http://127.0.0.1:{}", free()?),
            Elsewhere::NotTls => format!("https://{right}"),
            Elsewhere::Untrusted => {
                let port = free()?;
                return Ok(Self {
                    url: format!("https://127.0.0.1:{port}"),
                    _tls: Some(self_signed(folder, port)?),
                });
            }
        };
        Ok(Self { url, _tls: None })
    }
}

/// A TLS server that vouches for itself.
#[expect(clippy::disallowed_methods, reason = "a tool is a real process")]
fn self_signed(folder: &Path, port: u16) -> Result<Process> {
    let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
    let arguments = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=127.0.0.1",
        "-keyout",
        text(&key),
        "-out",
        text(&certificate),
    ];
    tool::run("openssl", &arguments)?;
    let port = port.to_string();
    let server = std::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &port])
        .args(["-key", text(&key), "-cert", text(&certificate)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting openssl s_server")?;
    Ok(Process(server))
}

#[expect(clippy::disallowed_methods, reason = "faults last in real time")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
