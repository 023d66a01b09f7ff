//! Kill rounds: random writes and flushes at depth, kill -9 in the middle of them, and a judge.
//!
//! The moment of the kill is a number of answers, so a seed repeats it as far as a real process
//! can be repeated. Three things are shown, each by rounds of its own:
//!
//! - [`Rounds::restart`]: the same cache again. Nothing answered may be missing (promises 1, 2).
//! - [`Rounds::lose_node`]: another cache, ownership taken by force. One exact cut (promise 3).
//! - the latter after a drain: everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::history::{Content, History, Verdict};
use crate::load::{Moment, Run, Shape, now, read_content};
use crate::pages::Filler;
use crate::s3::S3Server;
use crate::server::{Server, Settings, Store, wait_until};

const EXPORT: &str = "kill-me";
const SHAPE: Shape = Shape {
    volume: 0x6b69_6c6c,
    // Few enough that pages are rewritten within a round.
    pages: 4096,
    depth: 64,
    flush_one_in: 50,
};
const PUBLISH_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long the rounds are.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub seed: u64,
    pub answers_min: u64,
    pub answers_max: u64,
}

/// What the rounds saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub rounds: u64,
    pub answered_writes: u64,
    pub flushes: u64,
    pub pages_checked: u64,
    /// Answered writes that a lost node took with it; only [`Rounds::lose_node`] may have any.
    pub lost_with_node: u64,
    /// How long before a kill the oldest of them had been answered.
    pub oldest_loss: Duration,
}

/// A store, nodes one after the other, and the history of one volume.
#[derive(Debug)]
pub struct Rounds {
    folder: PathBuf,
    store: Store,
    /// None: an endpoint that was there before.
    _s3: Option<S3Server>,
    node: u64,
    filler: Filler,
    load: Load,
    history: History,
    answered_at: BTreeMap<u64, Moment>,
    killed_at: Option<Moment>,
    pub tally: Tally,
}

impl Rounds {
    /// Everything lives in `folder`, which the caller removes.
    pub fn new(folder: &Path, load: Load) -> Result<Self> {
        let s3 = S3Server::start(&folder.join("objects"), 0)?;
        let store = Store::S3 {
            endpoint: s3.url(),
            prefix: "kills".to_owned(),
        };
        let rounds = Self::with(folder, load, store);
        Ok(Self {
            _s3: Some(s3),
            ..rounds
        })
    }

    /// The same against a store that runs already, and where nothing lies under its prefix.
    pub fn with(folder: &Path, load: Load, store: Store) -> Self {
        Self {
            folder: folder.to_owned(),
            store,
            _s3: None,
            node: 0,
            filler: Filler::new(load.seed),
            load,
            history: History::default(),
            answered_at: BTreeMap::new(),
            killed_at: None,
            tally: Tally::default(),
        }
    }

    fn settings(&self) -> Settings {
        Settings::new(self.store.clone(), &self.cache_dir())
    }

    fn cache_dir(&self) -> PathBuf {
        self.folder.join(format!("cache-{}", self.node))
    }

    /// The current node. Its folder is short: it holds a unix socket.
    fn start(&self) -> Result<Server> {
        Server::start(
            &self.folder.join(format!("node-{}", self.node)),
            &self.settings(),
        )
    }

    /// Writes, kill -9, the same cache again: nothing answered may be missing.
    pub fn restart(&mut self, rounds: u64) -> Result<()> {
        for round in 0..rounds {
            let mut server = self.start()?;
            // What the last round left must still be there after another start.
            self.check_nothing_lost(&server)?;
            self.write_until_killed(&mut server)?;
            drop(server);
            let server = self.start()?;
            self.check_nothing_lost(&server)
                .with_context(|| format!("after kill {round} of seed {}", self.load.seed))?;
            self.tally.rounds += 1;
        }
        Ok(())
    }

    /// Writes, kill -9, the cache deleted, another node: one exact cut. Then a drain, and the same
    /// again: everything.
    pub fn lose_node(&mut self, rounds: u64) -> Result<()> {
        for round in 0..rounds {
            let mut server = self.start()?;
            self.take_over(&server)?;
            let published = published_seq(&server)?;
            self.write_until_published(&server, published)?;
            self.write_until_killed(&mut server)?;
            let server = self.next_node(server)?;
            let verdict = self
                .check(&server, History::check_cut)
                .with_context(|| format!("after loss {round} of seed {}", self.load.seed))?;
            self.note_loss(&verdict);
            self.write_drained(&server)?;
            let server = self.next_node(server)?;
            self.check_nothing_lost(&server)
                .with_context(|| format!("after drain {round} of seed {}", self.load.seed))?;
            self.tally.rounds += 1;
        }
        Ok(())
    }

    /// The first node creates the volume by connecting; later ones own it already.
    fn take_over(&self, server: &Server) -> Result<()> {
        server.connect(EXPORT)?.disconnect()
    }

    /// Loses the node with its cache and starts another one, which takes the volume by force.
    fn next_node(&mut self, mut server: Server) -> Result<Server> {
        // A node that was killed under load is dead already.
        server.kill().ok();
        drop(server);
        remove_folder(&self.cache_dir())?;
        self.node += 1;
        let server = self.start()?;
        server.promote_by_force(EXPORT)?;
        Ok(server)
    }

    /// At depth until a random number of answers and a flush among them, then kill -9 with requests in
    /// flight. On a slow disk many writes are answered before the first flush is.
    fn write_until_killed(&mut self, server: &mut Server) -> Result<()> {
        let span = self.load.answers_max - self.load.answers_min + 1;
        let answers = self.load.answers_min + self.filler.below(span);
        let mut run = Run::new(server.connect(EXPORT)?, SHAPE);
        let mut taken = 0;
        while taken < answers || run.flushes == 0 {
            taken += 1;
            run.fill(&mut self.history, &mut self.filler)?;
            ensure!(
                self.take(&mut run)?,
                "the server ended by itself\n{}",
                server.log_tail()
            );
        }
        run.fill(&mut self.history, &mut self.filler)?;
        self.killed_at = Some(now());
        server.kill()?;
        // Answers that were on their way when it died were given: they count.
        while self.take(&mut run)? {}
        self.count(&run);
        Ok(())
    }

    /// Writes on, round after round, until the background sync has published a cut.
    fn write_until_published(&mut self, server: &Server, before: u64) -> Result<()> {
        let mut run = Run::new(server.connect(EXPORT)?, SHAPE);
        let mut failed = None;
        let is_published = wait_until(PUBLISH_WAIT_MAX, || {
            let outcome = self
                .write_some(&mut run)
                .and_then(|()| published_seq(server));
            match outcome {
                Ok(seq) => seq > before,
                Err(error) => {
                    failed = Some(error);
                    true
                }
            }
        });
        self.count(&run);
        if let Some(error) = failed {
            return Err(error);
        }
        ensure!(is_published, "nothing was published\n{}", server.log_tail());
        run.client.disconnect()
    }

    /// How old the cut was (promise 3): told, not judged, since it depends on the machine.
    fn note_loss(&mut self, verdict: &Verdict) {
        self.tally.lost_with_node += verdict.answered_missing;
        let answered = verdict.first_missing.and_then(|n| self.answered_at.get(&n));
        if let (Some(answered), Some(killed)) = (answered, self.killed_at) {
            let age = killed.duration_since(*answered);
            self.tally.oldest_loss = self.tally.oldest_loss.max(age);
        }
        self.answered_at.clear();
    }

    fn write_drained(&mut self, server: &Server) -> Result<()> {
        let mut run = Run::new(server.connect(EXPORT)?, SHAPE);
        self.write_some(&mut run)?;
        self.count(&run);
        let document = server.drain(EXPORT)?;
        ensure!(document["dirty_bytes"] == 0, "drained, but {document}");
        run.client.disconnect()
    }

    /// Takes one answer; false once the server is gone.
    fn take(&mut self, run: &mut Run) -> Result<bool> {
        let Some(answer) = run.take(&mut self.history)? else {
            return Ok(false);
        };
        if let Some(number) = answer {
            self.answered_at.insert(number, now());
        }
        Ok(true)
    }

    /// A burst, answered to its end.
    fn write_some(&mut self, run: &mut Run) -> Result<()> {
        run.fill(&mut self.history, &mut self.filler)?;
        while !run.is_idle() {
            ensure!(self.take(run)?, "the server ended by itself");
        }
        Ok(())
    }

    fn count(&mut self, run: &Run) {
        self.tally.answered_writes += run.answered_writes;
        self.tally.flushes += run.flushes;
    }

    fn check_nothing_lost(&mut self, server: &Server) -> Result<()> {
        self.check(server, History::check_nothing_lost).map(drop)
    }

    /// Reads every page that was ever written, judges it, and takes it as the new beginning.
    fn check(
        &mut self,
        server: &Server,
        judge: fn(&History, &Content) -> Result<Verdict, crate::history::Broken>,
    ) -> Result<Verdict> {
        let mut client = server.connect(EXPORT)?;
        let content = read_content(&mut client, SHAPE, &self.history)?;
        client.disconnect()?;
        let verdict = judge(&self.history, &content)?;
        self.history.settle(&content);
        self.tally.pages_checked += verdict.pages;
        Ok(verdict)
    }
}

fn published_seq(server: &Server) -> Result<u64> {
    let document = server.export(EXPORT)?;
    document["published_seq"].as_u64().context("published_seq")
}

fn remove_folder(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
}
