//! Two real nodes before one store: a volume wakes on the other one, is handed over with the guest's next connection
//! open, and is taken by force from an owner under load, who is fenced. What that owner still held is exported, and put
//! over what the new owner has it is every answered write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::history::{Content, History};
use crate::load::{Run, Shape, read_content};
use crate::pages::{Filler, PAGE_BYTES, Stamp};
use crate::server::{self, Server, Settings, Store, wait_until};
use crate::tool;

const EXPORT: &str = "moves";
const SHAPE: Shape = Shape {
    volume: 0x6d6f_7665,
    pages: 2048,
    depth: 32,
    flush_one_in: 50,
};
/// Answers on the owner before it is taken from it, and behind that at most: it finds out by its next publish.
const ANSWERS_BEFORE: u64 = 3000;
const ANSWERS_BEHIND_MAX: u64 = 1_000_000;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    pub answered_writes: u64,
    /// Of the takeover: answered by the old owner and not in the cut that was taken.
    pub not_taken: u64,
    /// Pages of the salvage.
    pub salvaged: u64,
}

/// Two servers with a cache each.
struct Stage {
    a: Server,
    b: Server,
    folder: PathBuf,
    history: History,
    filler: Filler,
}

/// Everything lives in `folder`, which the caller removes. Nothing may lie under the store's prefix.
pub fn play(folder: &Path, store: &Store, seed: u64) -> Result<Told> {
    let start = |name: &str| {
        let settings = Settings::new(store.clone(), &folder.join(format!("cache-{name}")));
        Server::start(&folder.join(name), &settings)
    };
    let mut stage = Stage {
        a: start("a")?,
        b: start("b")?,
        folder: folder.to_owned(),
        history: History::default(),
        filler: Filler::new(seed),
    };
    let played = stage.play();
    played.with_context(|| format!("a: {}\nb: {}", stage.a.log_tail(), stage.b.log_tail()))
}

impl Stage {
    fn play(&mut self) -> Result<Told> {
        self.wake()?;
        self.hand_over()?;
        self.take_by_force()
    }

    /// Written on `a`, given up, read on `b`.
    fn wake(&mut self) -> Result<()> {
        let mut run = Run::new(self.a.connect(EXPORT)?, SHAPE);
        write_some(&mut run, &mut self.history, &mut self.filler, 2000)?;
        run.client.disconnect()?;
        self.a.give_up(EXPORT)?;
        self.check(false)
    }

    /// From `b` to `a`, where the guest's next connection is open before.
    fn hand_over(&mut self) -> Result<()> {
        let mut run = Run::new(self.b.connect(EXPORT)?, SHAPE);
        write_some(&mut run, &mut self.history, &mut self.filler, 2000)?;
        let asked = self
            .a
            .ask("POST", &format!("/api/exports/{EXPORT}/promote"), None)?;
        ensure!(asked.status == 409, "it is owned, and {}", asked.body);
        ensure!(
            asked.json()?["error"].is_object(),
            "no reason: {}",
            asked.body
        );
        post(&self.a, "prepare", None)?;
        let mut next = self.a.connect(EXPORT)?;
        ensure!(
            !next.is_read_only(),
            "a prepared export is announced writable"
        );
        next.read(0, u32::try_from(PAGE_BYTES)?)?;
        let number = self.history.send(0).context("nothing is in flight")?;
        let stamp = Stamp::new(SHAPE.volume, 0, number);
        next.submit_write(stamp.offset(), &stamp.bytes())?;
        next.send()?;
        run.client.disconnect()?;
        self.b.give_up(EXPORT)?;
        post(&self.a, "promote", None)?;
        let answer = next.next_answer()?.context("an answer")?;
        ensure!(answer.error == 0, "the write that waited: {}", answer.error);
        self.history.answer(number);
        next.disconnect()?;
        self.check(true)
    }

    /// From `a`, which is under load, to `b`.
    fn take_by_force(&mut self) -> Result<Told> {
        let mut told = Told::default();
        let mut run = Run::new(self.a.connect(EXPORT)?, SHAPE);
        let mut taken = None;
        for answers in 0..ANSWERS_BEFORE + ANSWERS_BEHIND_MAX {
            if answers == ANSWERS_BEFORE {
                let epoch = &self.b.export(EXPORT)?["epoch"];
                let body = json!({"force": true, "expected_epoch": epoch});
                taken = Some(post(&self.b, "promote", Some(&body))?);
            }
            run.fill(&mut self.history, &mut self.filler)?;
            // The first error is the fence.
            if run.take(&mut self.history).is_err() {
                break;
            }
        }
        let taken = taken.context("the load ended before the takeover")?;
        ensure!(taken["published_seq"].is_u64(), "which cut? {taken}");
        let is_fenced = || self.a.export(EXPORT).is_ok_and(|it| it["role"] == "fenced");
        ensure!(wait_until(WAIT_MAX, is_fenced), "it is not fenced");
        told.answered_writes = run.answered_writes;
        drop(run);
        let mut client = self.b.connect(EXPORT)?;
        let mut content = read_content(&mut client, SHAPE, &self.history)?;
        client.disconnect()?;
        let verdict = self.history.check_cut(&content).context("the cut taken")?;
        told.not_taken = verdict.answered_missing;
        told.salvaged = self.salvage(&mut content)?;
        let whole = self.history.check_nothing_lost(&content);
        whole.context("the cut with the salvage over it")?;
        Ok(told)
    }

    /// Exports what `a` holds, and puts it over the content. Returns how many pages those are.
    #[expect(clippy::disallowed_methods, reason = "the command writes a real file")]
    fn salvage(&self, content: &mut Content) -> Result<u64> {
        let listed = self.a.ask("GET", "/api/salvage", None)?.json()?;
        let id = listed[0]["id"].as_str().map(str::to_owned);
        let Some(id) = id else {
            return Ok(0);
        };
        let image = self.folder.join("salvage.img");
        let api = format!("http://{}", self.a.api);
        let binary = server::binary()?;
        let (binary, to) = (binary.display().to_string(), image.display().to_string());
        tool::run(
            &binary,
            &["salvage", "export", "--api", &api, "--to", &to, &id],
        )?;
        let bytes = std::fs::read(&image)?;
        let listing: Value = serde_json::from_slice(&std::fs::read(format!("{to}.json"))?)?;
        let mut pages = 0;
        for range in listing["ranges"].as_array().context("ranges")? {
            let number = |key: &str| range[key].as_u64().context("a number");
            let (at, len) = (number("at")?, number("len")?);
            for at in (at..at + len).step_by(PAGE_BYTES) {
                let page = at / u64::try_from(PAGE_BYTES)?;
                let from = usize::try_from(at)?;
                let page_bytes = &bytes[from..from + PAGE_BYTES];
                let found = Stamp::number_in(SHAPE.volume, page, page_bytes)?;
                content.insert(page, found);
                pages += 1;
            }
        }
        Ok(pages)
    }

    /// All that was answered is there.
    fn check(&mut self, on_a: bool) -> Result<()> {
        let server = if on_a { &self.a } else { &self.b };
        let mut client = server.connect(EXPORT)?;
        let content = read_content(&mut client, SHAPE, &self.history)?;
        client.disconnect()?;
        self.history.check_nothing_lost(&content)?;
        self.history.settle(&content);
        Ok(())
    }
}

fn write_some(
    run: &mut Run,
    history: &mut History,
    filler: &mut Filler,
    answers: u64,
) -> Result<()> {
    for _ in 0..answers {
        run.fill(history, filler)?;
        run.take(history)?.context("the server ended by itself")?;
    }
    while !run.is_idle() {
        run.take(history)?.context("the server ended by itself")?;
    }
    Ok(())
}

fn post(server: &Server, what: &str, body: Option<&Value>) -> Result<Value> {
    let answer = server.ask("POST", &format!("/api/exports/{EXPORT}/{what}"), body)?;
    ensure!(
        answer.status == 200,
        "{what}: {} {}",
        answer.status,
        answer.body
    );
    answer.json()
}
