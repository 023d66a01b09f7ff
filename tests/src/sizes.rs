//! Resize and TRIM on real processes: an export that grows from 1 MiB to 16 TiB under a connected client and wakes on
//! another node, and trims of terabytes, timed at the client.
//!
//! - **Grow**: node `a` makes the export, and makes it larger step by step, by the API, while a client is connected. What
//!   that client was told stays true for it; one that connects next is told the new size, and writes the first page and
//!   the last one.
//! - **Wake**: everything is drained and given up; node `b`, whose cache is empty, opens it and reads all pages back.
//! - **Trim**: there, one page in each stretch is written and published; then all is trimmed, in parts and as a whole. A
//!   TRIM of NBD covers less than 4 GiB, so a trim of terabytes is hundreds of requests in flight together. Controls of the
//!   same run: as many trims of a page each, a write, a flush.
//!
//! Whenever something has changed BLOCK_STATUS must name exactly the pages that hold data, over the whole export. At the
//! end the bucket must hold less than before. Times are told and never judged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{Either, select};
use glidefs::nbd::wire::{Errno, allocation};
use serde_json::{Value, json};
use world::linux::{LinuxConfig, LinuxWorld};
use world::{Address, World};

use crate::blocking_client::Client;
use crate::bucket::{Bucket, Held, Place};
use crate::load::now;
use crate::nbd_client::{NbdClient, Options};
use crate::pages::{Filler, PAGE_BYTES, Stamp};
use crate::server::{Server, wait_until};

const EXPORT: &str = "sizes";
/// Stamped into every page.
const VOLUME: u64 = 0x7369_7a65;
const PAGE: u64 = 4096;
const GIB: f64 = (1_u64 << 30) as f64;
const TIB: u64 = 1 << 40;
const SIZE_BYTES_LEAST: u64 = 1 << 20;
/// Of one TRIM or BLOCK_STATUS: as many whole pages as its length can tell.
const REQUEST_BYTES_MAX: u64 = (1 << 32) - PAGE;
const DEPTH: usize = 32;
/// As deep as QEMU and kernels go.
const TRIM_DEPTH: usize = 64;
const HOLE: u32 = allocation::HOLE | allocation::ZERO;
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(120);
/// Thousands of questions for 16 TiB.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(300);
const COLLECT_WAIT_MAX: Duration = Duration::from_secs(600);

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Each size is so many times the one before.
    pub factor: u64,
    pub size_bytes_max: u64,
    /// For the trims one page is written in each stretch of so many bytes.
    pub stretch_bytes: u64,
    /// Trimmed at once, until all is; then all at once.
    pub part_bytes: u64,
    pub rounds: u32,
}

impl Plan {
    /// What is measured: 64 MiB in 16,384 pages.
    pub const WHOLE: Self = Self {
        factor: 4,
        size_bytes_max: 16 * TIB,
        stretch_bytes: 1 << 30,
        part_bytes: 2 * TIB,
        rounds: 3,
    };
    /// The same sizes with fewer steps and pages.
    pub const GLANCE: Self = Self {
        factor: 16,
        stretch_bytes: 64 << 30,
        rounds: 1,
        ..Self::WHOLE
    };
}

/// What was seen, and how long it took.
#[derive(Clone, Debug)]
pub struct Found {
    pub plan: Plan,
    pub grown: Vec<Grown>,
    pub woken: Woken,
    pub trims: Trims,
}

/// One step to a larger size.
#[derive(Clone, Copy, Debug)]
pub struct Grown {
    pub size_bytes: u64,
    /// From the order to the answer that it is published.
    pub order: Duration,
    /// Until a client that connects has been told the size.
    pub connect: Duration,
}

/// The other node, with an empty cache.
#[derive(Clone, Copy, Debug)]
pub struct Woken {
    pub connect: Duration,
    /// Pages that were read and compared, holes beside them too.
    pub pages: usize,
    /// BLOCK_STATUS of the whole export.
    pub status: Duration,
}

#[derive(Clone, Debug, Default)]
pub struct Trims {
    /// Requests for a part, and for all.
    pub part_requests: usize,
    pub whole_requests: usize,
    pub part: Vec<Duration>,
    pub whole: Vec<Duration>,
    /// Controls: as many requests as for a part, of a page each; one write of a page; a flush behind it.
    pub small: Vec<Duration>,
    pub write: Vec<Duration>,
    pub flush: Vec<Duration>,
    /// In the bucket: before the last trim of all, once that was published, and once space was given back by order.
    pub written: Held,
    pub trimmed: Held,
    pub collected: Held,
}

/// Plays it to its end. An error if anything but a time is not as it must be.
pub fn play(place: &Place<'_>, plan: &Plan) -> Result<Found> {
    let start = |node: &str| place.start(node, &place.settings(node));
    let mut stage = Stage {
        a: start("a")?,
        b: start("b")?,
        bucket: Bucket::at(place.endpoint)?,
        objects: place.objects_of(EXPORT),
        plan: *plan,
        written: BTreeMap::new(),
        number: 0,
        filler: Filler::new(1),
    };
    let played = stage.play();
    played.with_context(|| format!("a: {}\nb: {}", stage.a.log_tail(), stage.b.log_tail()))
}

struct Stage {
    a: Server,
    b: Server,
    bucket: Bucket,
    objects: String,
    plan: Plan,
    /// Pages that hold data, and the numbers of their writes.
    written: BTreeMap<u64, u64>,
    number: u64,
    filler: Filler,
}

impl Stage {
    fn play(&mut self) -> Result<Found> {
        Ok(Found {
            plan: self.plan,
            grown: self.grow().context("growing")?,
            woken: self.wake().context("waking on another node")?,
            trims: self.trim().context("trimming")?,
        })
    }

    fn grow(&mut self) -> Result<Vec<Grown>> {
        let mut grown = Vec::new();
        let mut size = SIZE_BYTES_LEAST;
        make(&self.a, size)?;
        let mut client = connect(&self.a, size)?;
        self.write(&mut client, ends(size))?;
        while size < self.plan.size_bytes_max {
            let next = (size * self.plan.factor).min(self.plan.size_bytes_max);
            let began = now();
            make(&self.a, next)?;
            let order = began.elapsed();
            self.keeps_what_it_was_told(&mut client, size)?;
            let began = now();
            let again = connect(&self.a, next)?;
            let connect = began.elapsed();
            std::mem::replace(&mut client, again).disconnect()?;
            self.write(&mut client, ends(next))?;
            self.see(&self.a, next)?;
            size = next;
            grown.push(Grown {
                size_bytes: size,
                order,
                connect,
            });
        }
        let smaller = ask_for(&self.a, SIZE_BYTES_LEAST)?;
        ensure!(smaller.status == 400, "it shrinks: {}", smaller.body);
        client.disconnect()?;
        Ok(grown)
    }

    /// Nothing beyond the size that it knows, and everything within.
    fn keeps_what_it_was_told(&mut self, client: &mut Client, size: u64) -> Result<()> {
        client.submit_write(size, &[1; PAGE_BYTES])?;
        let answer = client.next_answer()?.context("the server is gone")?;
        let (found, wanted) = (answer.error, Errno::NoSpace.number());
        ensure!(
            found == wanted,
            "a write beyond {size} bytes, which the client was told: error {found} and not {wanted}"
        );
        self.write(client, [size / PAGE - 1])
    }

    fn wake(&mut self) -> Result<Woken> {
        self.a.drain(EXPORT)?;
        self.a.give_up(EXPORT)?;
        let size = self.plan.size_bytes_max;
        let began = now();
        let mut client = connect(&self.b, size)?;
        let connect = began.elapsed();
        ensure!(
            !client.is_read_only(),
            "nobody owns it, and it is read-only"
        );
        let pages = self.read_back(&mut client)?;
        client.disconnect()?;
        let status = self.see(&self.b, size)?;
        Ok(Woken {
            connect,
            pages,
            status,
        })
    }

    fn trim(&mut self) -> Result<Trims> {
        let size = self.plan.size_bytes_max;
        let mut client = connect(&self.b, size)?;
        let all = pieces(0..size);
        let mut trims = Trims {
            whole_requests: all.len(),
            ..Trims::default()
        };
        for _ in 0..self.plan.rounds {
            self.spread(&mut client)?;
            self.see(&self.b, size)?;
            for part in parts(&self.plan) {
                self.trim_part(&mut client, part, &mut trims)?;
            }
            self.see(&self.b, size)?;
            self.spread(&mut client)?;
            trims.written = self.bucket.held(&self.objects)?;
            trims.whole.push(discard(&mut client, &all)?);
            self.written.clear();
            self.see(&self.b, size)?;
        }
        self.b.drain(EXPORT)?;
        trims.trimmed = self.bucket.held(&self.objects)?;
        // What says so is the map by now.
        self.see(&self.b, size)?;
        collect(&self.b)?;
        trims.collected = self.bucket.held(&self.objects)?;
        self.see(&self.b, size)?;
        ensure!(
            trims.collected.bytes < trims.written.bytes,
            "all is trimmed, and the bucket holds {:?} where it held {:?}",
            trims.collected,
            trims.written
        );
        client.disconnect()?;
        Ok(trims)
    }

    /// A page in each stretch, and all of it in the store.
    fn spread(&mut self, client: &mut Client) -> Result<()> {
        let stretch = self.plan.stretch_bytes / PAGE;
        let pages = self.plan.size_bytes_max / PAGE;
        let mut places = Vec::new();
        for first in (0..pages).step_by(usize::try_from(stretch)?) {
            let room = stretch.min(pages - first);
            places.push(first + self.filler.below(room));
        }
        self.write(client, places)?;
        self.b.drain(EXPORT).map(drop)
    }

    /// The controls first, and then the part: nothing of it is left.
    fn trim_part(
        &mut self,
        client: &mut Client,
        part: Range<u64>,
        trims: &mut Trims,
    ) -> Result<()> {
        let stamp = self.stamp(part.start / PAGE);
        let data = stamp.bytes();
        let began = now();
        client.write(stamp.offset(), &data)?;
        trims.write.push(began.elapsed());
        let began = now();
        client.flush()?;
        trims.flush.push(began.elapsed());
        let large = pieces(part.clone());
        let small = large.iter().map(|it| it.start..it.start + PAGE);
        let small: Vec<Range<u64>> = small.collect();
        trims.part_requests = large.len();
        trims.small.push(discard(client, &small)?);
        trims.part.push(discard(client, &large)?);
        self.written
            .retain(|page, _| !part.contains(&(*page * PAGE)));
        Ok(())
    }

    fn write(&mut self, client: &mut Client, pages: impl IntoIterator<Item = u64>) -> Result<()> {
        for page in pages {
            let stamp = self.stamp(page);
            client.take_answers(DEPTH - 1)?;
            client.submit_write(stamp.offset(), &stamp.bytes())?;
        }
        client.take_answers(0)?;
        client.flush()
    }

    /// The next write of a page.
    fn stamp(&mut self, page: u64) -> Stamp {
        self.number += 1;
        self.written.insert(page, self.number);
        Stamp::new(VOLUME, page, self.number)
    }

    /// All pages that were written, and the holes behind them. Returns how many those are.
    fn read_back(&self, client: &mut Client) -> Result<usize> {
        let end = client.size_bytes / PAGE;
        let pages = self.written.keys().flat_map(|page| [*page, *page + 1]);
        let pages: BTreeSet<u64> = pages.filter(|page| *page < end).collect();
        let bytes = u32::try_from(PAGE)?;
        let ranges = pages.iter().map(|page| (page * PAGE, bytes));
        client.read_all(ranges, DEPTH, |at, bytes| {
            let page = at / PAGE;
            let found = Stamp::number_in(VOLUME, page, bytes);
            let found = found.with_context(|| format!("page {page}"))?;
            let wanted = self.written.get(&page).copied().unwrap_or(0);
            ensure!(
                found == wanted,
                "page {page} holds write {found}, and write {wanted} came last (0: zeros)"
            );
            Ok(())
        })?;
        Ok(pages.len())
    }

    /// BLOCK_STATUS names the pages that were written as data, and all others as holes. Returns how long it took.
    fn see(&self, server: &Server, size_bytes: u64) -> Result<Duration> {
        let began = now();
        let found = data_of(server, size_bytes)?;
        let took = began.elapsed();
        let wanted = self.written.keys().map(|page| page * PAGE);
        let wanted = joined(wanted.map(|at| at..at + PAGE));
        if found != wanted {
            let mut pairs = found.iter().zip(&wanted);
            let same = pairs.position(|(found, wanted)| found != wanted);
            let first = same.unwrap_or(found.len().min(wanted.len()));
            bail!(
                "BLOCK_STATUS of {size_bytes} bytes: {} runs of data and not {}; run {first} is {:?} and not {:?}",
                found.len(),
                wanted.len(),
                found.get(first),
                wanted.get(first)
            );
        }
        Ok(took)
    }
}

/// The first page and the last one.
fn ends(size_bytes: u64) -> [u64; 2] {
    [0, size_bytes / PAGE - 1]
}

fn parts(plan: &Plan) -> Vec<Range<u64>> {
    cut(0..plan.size_bytes_max, plan.part_bytes)
}

/// What one request each can cover.
fn pieces(range: Range<u64>) -> Vec<Range<u64>> {
    cut(range, REQUEST_BYTES_MAX)
}

fn cut(range: Range<u64>, each: u64) -> Vec<Range<u64>> {
    let mut cut = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = (at + each).min(range.end);
        cut.push(at..end);
        at = end;
    }
    cut
}

/// Ranges in order, neighbours as one.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

fn path() -> String {
    format!("/api/exports/{EXPORT}")
}

fn ask_for(server: &Server, size_bytes: u64) -> Result<crate::http::Response> {
    let body = json!({ "size_gb": size_bytes as f64 / GIB });
    server.ask("PUT", &path(), Some(&body))
}

/// Makes the export, or makes it larger.
fn make(server: &Server, size_bytes: u64) -> Result<()> {
    let made = ask_for(server, size_bytes)?;
    ensure!(
        made.status == 200,
        "{size_bytes} bytes: {} {}",
        made.status,
        made.body
    );
    let told = made.json()?["size_bytes"].as_u64();
    ensure!(
        told == Some(size_bytes),
        "{size_bytes} bytes were asked for, and it has {told:?}"
    );
    Ok(())
}

fn connect(server: &Server, size_bytes: u64) -> Result<Client> {
    let client = server.connect_within(EXPORT, ANSWER_WAIT_MAX)?;
    ensure!(
        client.size_bytes == size_bytes,
        "it has {size_bytes} bytes, and the client is told {}",
        client.size_bytes
    );
    Ok(client)
}

/// TRIMs of these ranges, at depth. Returns how long it took until the last answer.
fn discard(client: &mut Client, ranges: &[Range<u64>]) -> Result<Duration> {
    let began = now();
    for range in ranges {
        client.take_answers(TRIM_DEPTH - 1)?;
        let bytes = u32::try_from(range.end - range.start)?;
        client.submit_trim(range.start, bytes)?;
    }
    client.take_answers(0)?;
    Ok(began.elapsed())
}

/// The ranges of the export that hold data, as BLOCK_STATUS tells a client of its own.
fn data_of(server: &Server, size_bytes: u64) -> Result<Vec<Range<u64>>> {
    let edge = tokio::runtime::Builder::new_current_thread().build()?;
    let config = LinuxConfig::new(edge.handle().clone(), 1);
    let to = Address::Unix(server.socket.clone());
    let told = world::linux::run(config, |world| async move {
        let asked = Box::pin(status(world.clone(), to, size_bytes));
        let late = Box::pin(world.sleep(STATUS_WAIT_MAX));
        match select(asked, late).await {
            Either::Left((told, _)) => told,
            Either::Right(((), _)) => bail!("no answer within {STATUS_WAIT_MAX:?}"),
        }
    });
    let told = told.context("io_uring is not available")?;
    told.with_context(|| format!("BLOCK_STATUS of {size_bytes} bytes"))
}

async fn status(world: LinuxWorld, to: Address, size_bytes: u64) -> Result<Vec<Range<u64>>> {
    let client = Box::pin(NbdClient::connect(&world, &to, EXPORT, Options::Modern)).await?;
    ensure!(
        client.size_bytes() == size_bytes,
        "the client is told {}",
        client.size_bytes()
    );
    let mut data = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let asked = (size_bytes - at).min(REQUEST_BYTES_MAX);
        let extents = client.block_status(at, u32::try_from(asked)?).await?;
        for (len, flags) in extents {
            let run = at..at + u64::from(len);
            at = run.end;
            match flags {
                0 => data.push(run),
                HOLE => {}
                other => bail!("flags {other:#x} of {run:?}"),
            }
        }
    }
    client.disconnect().await;
    Ok(joined(data.into_iter()))
}

/// Gives back all the space that can be given back, and waits for it.
fn collect(server: &Server) -> Result<()> {
    let body = json!({ "export": EXPORT });
    let begun = server.ask("POST", "/api/gc", Some(&body))?;
    ensure!(begun.status == 200, "gc: {} {}", begun.status, begun.body);
    let begun = begun.json()?;
    let id = begun["id"].as_str().context("an operation has an id")?;
    let operation = format!("/api/operations/{id}");
    let mut last = Value::Null;
    let has_ended = wait_until(COLLECT_WAIT_MAX, || {
        let asked = server.ask("GET", &operation, None);
        last = asked.and_then(|it| it.json()).unwrap_or(Value::Null);
        last["state"] == "done" || last["state"] == "failed"
    });
    ensure!(has_ended && last["state"] == "done", "gc: {last}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terabytes_are_cut_into_what_a_request_can_say() {
        let pieces = pieces(2 * TIB..4 * TIB);
        assert_eq!(pieces.len(), 513);
        assert_eq!(pieces[0].start, 2 * TIB);
        assert_eq!(pieces[512].end, 4 * TIB);
        assert_eq!(joined(pieces.iter().cloned()).len(), 1);
        for piece in &pieces {
            assert!(piece.start.is_multiple_of(PAGE) && piece.end.is_multiple_of(PAGE));
            assert!(u32::try_from(piece.end - piece.start).is_ok());
        }
        assert_eq!(parts(&Plan::WHOLE).len(), 8);
    }

    #[test]
    fn neighbours_are_one_run() {
        let ranges = [0..4, 4..8, 12..16];
        assert_eq!(joined(ranges.into_iter()), [0..8, 12..16]);
    }

    #[test]
    fn sizes_in_gib_are_exact() {
        let mut size = SIZE_BYTES_LEAST;
        while size <= 16 * TIB {
            let gib = size as f64 / GIB;
            assert_eq!((gib * GIB).to_bits(), (size as f64).to_bits());
            size *= Plan::WHOLE.factor;
        }
    }
}
