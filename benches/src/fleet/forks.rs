//! Many forks of one large image: what each costs, and whether the last costs what the first did.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use glidefs_benches::process;
use glidefs_tests::blocking_client::Client;
use glidefs_tests::load::now;
use glidefs_tests::pages::{Filler, Stamp};
use glidefs_tests::server::Server;

use crate::control::Plain;
use crate::site::{Requests, Site};
use crate::{Arguments, progress};

const IMAGE: Parent = Parent {
    name: "image",
    size_gib: 100.0,
    letter: 'f',
};
/// A MiB: what forks cost whatever the size.
const SMALL: Parent = Parent {
    name: "small",
    size_gib: 1.0 / 1024.0,
    letter: 's',
};
/// 100 GiB in pages, of which 256 MiB are written.
const IMAGE_PAGES: u64 = 100 << 18;
const WRITTEN_PAGES: u64 = 64 << 10;
const QUICK_WRITTEN_PAGES: u64 = 4 << 10;
/// Stamped into every page.
const VOLUME: u64 = 1;
const PAGE_BYTES: u32 = 4096;
/// Read of each fork that is opened, from a written page on.
const READ_BYTES: u32 = 1 << 20;
const DEPTH: usize = 32;
/// Pages are written in steps of so many, around and around, so that no neighbours come in a row. Odd:
/// each of a power of two is met once.
const STEP: usize = 40_503;
const OPENED: u64 = 10;
const CONTROL_ROUNDS: u64 = 100;
const BLOCK_FORKS: u64 = 1000;

#[derive(Clone, Copy)]
struct Parent {
    name: &'static str,
    size_gib: f64,
    /// With which the names of its forks begin.
    letter: char,
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) written_bytes: u64,
    pub(crate) small: Block,
    pub(crate) image: Vec<Block>,
    /// Seconds from the beginning of connecting to a fork until it was open, the first page of its parent's
    /// was there, and a MiB.
    pub(crate) opened: Vec<[f64; 3]>,
    /// Of all these opens together.
    pub(crate) open_requests: Requests,
}

/// Forks in a row, and right behind them the control.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) first: u64,
    pub(crate) seconds: Vec<f64>,
    pub(crate) requests: Requests,
    pub(crate) resident_bytes: u64,
    pub(crate) control: Vec<f64>,
}

pub(crate) fn measure(folder: &Path, arguments: &Arguments) -> Result<Found> {
    let site = Site::start(folder, None)?;
    let mut plain = Plain::new(&site.url)?;
    let pages = places(if arguments.quick {
        QUICK_WRITTEN_PAGES
    } else {
        WRITTEN_PAGES
    });
    progress(&format!("forks: writing {} pages", pages.len()));
    // They stay connected: a parent that is given up meanwhile would be measured with it.
    let parents = [
        written(&site.server, IMAGE, &pages)?,
        written(&site.server, SMALL, &[0])?,
    ];
    site.settle()?;
    let forks = arguments.forks;
    // First, so that the first forks of the image are its neighbours in time.
    let small = block(&site, &mut plain, SMALL, 0..forks.div_ceil(10))?;
    let mut image = Vec::new();
    let each = BLOCK_FORKS.min(forks.div_ceil(2));
    for number in 0..forks.div_ceil(each) {
        let range = number * each..(number * each + each).min(forks);
        progress(&format!("forks: {range:?} of {forks}"));
        image.push(block(&site, &mut plain, IMAGE, range)?);
    }
    let before = site.requests()?;
    let count = OPENED.min(forks);
    let opened = (0..count).map(|n| {
        let page = pages[usize::try_from(n)? * STEP % pages.len()];
        open(&site.server, &IMAGE.fork(n * forks / count), page)
    });
    let opened = opened.collect::<Result<Vec<_>>>()?;
    let open_requests = site.requests()? - before;
    for parent in parents {
        parent.disconnect()?;
    }
    Ok(Found {
        written_bytes: u64::try_from(pages.len())? * u64::from(PAGE_BYTES),
        small,
        image,
        opened,
        open_requests,
    })
}

impl Parent {
    fn fork(self, number: u64) -> String {
        format!("{}{number:05}", self.letter)
    }
}

/// One page in each stretch of the image, with room for a whole read behind it.
fn places(count: u64) -> Vec<u64> {
    let stretch = IMAGE_PAGES / count;
    let mut filler = Filler::new(count);
    let place = |n: u64| n * stretch + filler.below(stretch / 4);
    (0..count).map(place).collect()
}

/// A new export, with these pages in the store.
fn written(server: &Server, parent: Parent, pages: &[u64]) -> Result<Client> {
    let path = format!("/api/exports/{}", parent.name);
    let body = serde_json::json!({ "size_gb": parent.size_gib });
    let made = server.ask("PUT", &path, Some(&body))?;
    ensure!(made.status == 200, "PUT {path}: {}", made.body);
    let mut client = server.connect(parent.name)?;
    for turn in 0..pages.len() {
        let stamp = Stamp::new(VOLUME, pages[turn * STEP % pages.len()], 1);
        client.take_answers(DEPTH - 1)?;
        client.submit_write(stamp.offset(), &stamp.bytes())?;
    }
    client.take_answers(0)?;
    client.flush()?;
    server.drain(parent.name)?;
    Ok(client)
}

fn block(site: &Site, plain: &mut Plain, parent: Parent, forks: Range<u64>) -> Result<Block> {
    let before = site.requests()?;
    let first = forks.start;
    let seconds = forks.map(|number| fork(&site.server, parent, number));
    let seconds = seconds.collect::<Result<Vec<f64>>>()?;
    Ok(Block {
        first,
        seconds,
        // Before the control, which asks the same store.
        requests: site.requests()? - before,
        resident_bytes: process::memory(site.server.pid())?.resident_bytes,
        control: plain.rounds(CONTROL_ROUNDS)?,
    })
}

/// From the connection to the API to its answer.
fn fork(server: &Server, parent: Parent, number: u64) -> Result<f64> {
    let path = format!("/api/exports/{}/fork", parent.name);
    let body = serde_json::json!({ "name": parent.fork(number), "wait": "published" });
    let began = now();
    let answer = server.ask("POST", &path, Some(&body))?;
    let seconds = began.elapsed().as_secs_f64();
    let is_made = answer.status == 200;
    ensure!(is_made, "{}\n{}", answer.body, server.log_tail());
    Ok(seconds)
}

/// A fork that nobody has opened before, up to what its parent wrote.
fn open(server: &Server, name: &str, page: u64) -> Result<[f64; 3]> {
    let at = Stamp::new(VOLUME, page, 1).offset();
    let began = now();
    let mut client = server.connect(name)?;
    let connected = began.elapsed().as_secs_f64();
    let first = client.read(at, PAGE_BYTES)?;
    let first_page = began.elapsed().as_secs_f64();
    client.read(at, READ_BYTES)?;
    let all_read = began.elapsed().as_secs_f64();
    let number = Stamp::number_in(VOLUME, page, &first);
    let number = number.with_context(|| format!("page {page} of {name}"))?;
    ensure!(number == 1, "page {page} of {name} is not its parent's");
    client.disconnect()?;
    Ok([connected, first_page, all_read])
}
