//! Two real nodes before one store, and a database on a group of two disks, its log and its data: a page of data is sent
//! once the record of it is answered. Whatever dies, nobody ever sees data without its record (protocol rule 30).
//!
//! It judges by one history of both disks: the pages of the second lie behind those of the first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::blocking_client::Client;
use crate::history::{Content, History};
use crate::pages::{Filler, PAGE_BYTES, Stamp};
use crate::server::{Server, Settings, Store, wait_until};

const GROUP: &str = "db";
/// The disks, what is stamped into their pages, and the disks of the fork.
const DISKS: [&str; 2] = ["db-log", "db-data"];
const VOLUMES: [u64; 2] = [0x6c6f_6721, 0x6461_7461];
const FORKS: [&str; 2] = ["copy-log", "copy-data"];
const LOG: usize = 0;
const DATA: usize = 1;
/// Of each disk that are used.
const PAGES: u64 = 256;
/// An operation takes some requests to the store.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The log is flushed once in so many transactions.
const FLUSHED_ONE_IN: u64 = 16;

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    pub answered_writes: u64,
    /// Answered by a node that was lost, and not in the cut that was taken over.
    pub not_taken: u64,
}

struct Stage {
    a: Server,
    b: Server,
    folder: PathBuf,
    store: Store,
    history: History,
    filler: Filler,
    told: Told,
}

/// Everything lives in `folder`, which the caller removes. Nothing may lie under the store's prefix.
pub fn play(folder: &Path, store: &Store, seed: u64) -> Result<Told> {
    let mut stage = Stage {
        a: start(folder, store, "a")?,
        b: start(folder, store, "b")?,
        folder: folder.to_owned(),
        store: store.clone(),
        history: History::default(),
        filler: Filler::new(seed),
        told: Told::default(),
    };
    let played = stage.play();
    played.with_context(|| format!("a: {}\nb: {}", stage.a.log_tail(), stage.b.log_tail()))
}

/// With a cache of its own of this name.
fn start(folder: &Path, store: &Store, name: &str) -> Result<Server> {
    let settings = Settings::new(store.clone(), &folder.join(format!("cache-{name}")));
    Server::start(&folder.join(name), &settings)
}

impl Stage {
    fn play(&mut self) -> Result<Told> {
        self.make()?;
        self.restart()?;
        self.lose()?;
        self.fork()?;
        self.read_elsewhere()?;
        Ok(self.told)
    }

    /// Volumes like any others become a group.
    fn make(&self) -> Result<()> {
        for disk in DISKS {
            self.a.connect(disk)?.disconnect()?;
            self.a.give_up(disk)?;
        }
        let body = json!({"name": GROUP, "members": DISKS, "request_id": "make-db"});
        done(&self.a, &post(&self.a, "/api/groups", &body)?)?;
        // A request that is repeated, to whichever node, is the same.
        done(&self.b, &post(&self.b, "/api/groups", &body)?)?;
        let groups = self.b.ask("GET", "/api/groups", None)?.json()?;
        let groups = groups.as_array().context("a list")?;
        let is_one = groups.len() == 1 && groups[0]["name"] == GROUP;
        ensure!(is_one, "one group was asked for: {groups:?}");
        Ok(())
    }

    /// kill -9, and the same node goes on with its cache.
    fn restart(&mut self) -> Result<()> {
        let mut clients = connect(&self.a, DISKS)?;
        self.work(&mut clients, 2000)?;
        self.a.kill()?;
        self.a = start(&self.folder, &self.store, "a")?;
        let content = self.content(&mut connect(&self.a, DISKS)?)?;
        self.history.check_nothing_lost(&content)?;
        self.history.settle(&content);
        Ok(())
    }

    /// kill -9, and the cache is gone too: the other node takes one disk over, and has both at one moment.
    fn lose(&mut self) -> Result<()> {
        let mut clients = connect(&self.a, DISKS)?;
        self.work(&mut clients, 5000)?;
        self.a.kill()?;
        self.b.promote_by_force(DISKS[DATA])?;
        let mut clients = connect(&self.b, DISKS)?;
        let writable = clients.iter().all(|client| !client.is_read_only());
        ensure!(writable, "the force of one is the force of all");
        let content = self.content(&mut clients)?;
        let verdict = self.history.check_cut(&content)?;
        self.told.not_taken = verdict.answered_missing;
        self.history.settle(&content);
        self.a = start(&self.folder, &self.store, "a-with-another-cache")?;
        Ok(())
    }

    /// Of both disks at one moment, whatever is written to them afterwards, and read on the other node.
    fn fork(&mut self) -> Result<()> {
        let mut clients = connect(&self.b, DISKS)?;
        self.work(&mut clients, 500)?;
        self.b.drain(DISKS[LOG])?;
        let members = json!({DISKS[LOG]: FORKS[LOG], DISKS[DATA]: FORKS[DATA]});
        let body = json!({"name": "copy", "members": members, "request_id": "fork-db"});
        post(&self.b, &format!("/api/groups/{GROUP}/fork"), &body)?;
        let then = self.history.clone();
        self.work(&mut clients, 500)?;
        let content = self.content(&mut connect(&self.a, FORKS)?)?;
        then.check_nothing_lost(&content)?;
        Ok(())
    }

    /// A reader sees both disks as they were when it came to the first of them.
    fn read_elsewhere(&mut self) -> Result<()> {
        let mut writers = connect(&self.b, DISKS)?;
        let data = self.a.connect(DISKS[DATA])?;
        let then = self.history.clone();
        self.work(&mut writers, 500)?;
        self.b.drain(DISKS[LOG])?;
        let log = self.a.connect(DISKS[LOG])?;
        let mut readers = [log, data];
        let read_only = readers.iter().all(Client::is_read_only);
        ensure!(
            read_only,
            "a group that another node owns is let in to read"
        );
        let content = self.content(&mut readers)?;
        then.check_cut(&content)?;
        Ok(())
    }

    /// So many transactions, one after the other.
    fn work(&mut self, clients: &mut [Client; 2], transactions: u64) -> Result<()> {
        for number in 0..transactions {
            self.write(clients, LOG, number % PAGES)?;
            if self.filler.below(FLUSHED_ONE_IN) == 0 {
                clients[LOG].flush()?;
            }
            let page = self.filler.below(PAGES);
            self.write(clients, DATA, page)?;
        }
        Ok(())
    }

    fn write(&mut self, clients: &mut [Client; 2], disk: usize, page: u64) -> Result<()> {
        let number = self.history.send(place(disk, page)?);
        let number = number.context("nothing is in flight")?;
        let stamp = Stamp::new(VOLUMES[disk], page, number);
        clients[disk].write(stamp.offset(), &stamp.bytes())?;
        self.history.answer(number);
        self.told.answered_writes += 1;
        Ok(())
    }

    /// What both disks hold where anything was ever written.
    fn content(&self, clients: &mut [Client; 2]) -> Result<Content> {
        let mut content = Content::new();
        for place in self.history.pages() {
            let (disk, page) = (usize::try_from(place / PAGES)?, place % PAGES);
            let at = Stamp::new(VOLUMES[disk], page, 0).offset();
            let bytes = clients[disk].read(at, u32::try_from(PAGE_BYTES)?)?;
            let found = Stamp::number_in(VOLUMES[disk], page, &bytes);
            let found = found.with_context(|| format!("page {page} of disk {disk}"))?;
            content.insert(place, found);
        }
        Ok(content)
    }
}

/// A page of a disk in the history of both.
fn place(disk: usize, page: u64) -> Result<u64> {
    Ok(u64::try_from(disk)? * PAGES + page)
}

fn connect(server: &Server, disks: [&str; 2]) -> Result<[Client; 2]> {
    let [log, data] = disks;
    Ok([server.connect(log)?, server.connect(data)?])
}

fn post(server: &Server, path: &str, body: &Value) -> Result<Value> {
    let answer = server.ask("POST", path, Some(body))?;
    ensure!(
        (200..300).contains(&answer.status),
        "{path}: {} {}",
        answer.status,
        answer.body
    );
    answer.json()
}

/// Waits for the end of an operation.
fn done(server: &Server, operation: &Value) -> Result<()> {
    let id = operation["id"].as_str().context("an operation has an id")?;
    let path = format!("/api/operations/{id}");
    let mut last = Value::Null;
    let is_over = wait_until(WAIT_MAX, || {
        let asked = server.ask("GET", &path, None);
        last = asked.and_then(|it| it.json()).unwrap_or_default();
        last["state"] == "done" || last["state"] == "failed"
    });
    ensure!(is_over && last["state"] == "done", "not done: {last}");
    Ok(())
}
