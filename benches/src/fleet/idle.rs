//! Many exports that are connected and have nothing to do: what they hold, and how often they wake.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use glidefs_benches::process::{self, Memory};
use glidefs_tests::blocking_client::Client;
use glidefs_tests::pages::Stamp;

use crate::site::{Site, sleep};
use crate::{Arguments, progress};

const SIZE_GIB: f64 = 1.0;
/// A MiB.
const WRITTEN_PAGES: u64 = 256;
/// As a guest's file system sends requests: it decides how large the server's buffers become.
const DEPTH: usize = 32;
const TOLD_EVERY: u64 = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) exports: u64,
    pub(crate) seconds: u64,
    pub(crate) write_kib: u16,
    /// Of the server before its first export.
    pub(crate) empty: Memory,
    /// At the end of the idle time.
    pub(crate) memory: Memory,
    pub(crate) requests: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) wake_ups: u64,
}

pub(crate) fn measure(folder: &Path, arguments: &Arguments) -> Result<Found> {
    // A connection here is two files, as it is read and written by itself.
    process::raise_open_files()?;
    let (exports, seconds) = (arguments.exports, arguments.idle_seconds);
    let site = Site::start(folder, Some(SIZE_GIB))?;
    site.settle()?;
    let pid = site.server.pid();
    let empty = process::memory(pid)?;
    let clients = connected(&site, exports, usize::from(arguments.idle_write_kib) << 10)?;
    progress("idle: bringing all to the store");
    for number in 0..exports {
        site.server.drain(&name(number))?;
    }
    site.settle()?;
    progress(&format!("idle: watching for {seconds} s"));
    // From here to the end of the watch nobody asks the server anything.
    let requests = site.requests()?;
    let cpu_seconds = process::cpu_seconds(pid)?;
    let sleeps = process::sleeps(pid)?;
    sleep(Duration::from_secs(seconds));
    let found = Found {
        exports,
        seconds,
        write_kib: arguments.idle_write_kib,
        empty,
        wake_ups: process::sleeps(pid)?.since(&sleeps),
        cpu_seconds: process::cpu_seconds(pid)? - cpu_seconds,
        memory: process::memory(pid)?,
        requests: (site.requests()? - requests).total(),
    };
    let numbers = site.server.numbers()?;
    let is_idle = numbers["clients"] == exports && numbers["dirty_bytes"] == 0;
    ensure!(is_idle, "{exports} clean clients were wanted: {numbers}");
    drop(clients);
    Ok(found)
}

fn name(number: u64) -> String {
    format!("export-{number:05}")
}

/// All of them, written and flushed. While later ones come, the earlier ones sync by themselves.
fn connected(site: &Site, exports: u64, write_bytes: usize) -> Result<Vec<Client>> {
    let pages = 0..WRITTEN_PAGES;
    let pages = pages.flat_map(|page| Stamp::new(0, page, 1).bytes());
    let data: Vec<u8> = pages.collect();
    let mut clients = Vec::new();
    for number in 0..exports {
        if number.is_multiple_of(TOLD_EVERY) {
            progress(&format!("idle: {number} of {exports} exports"));
        }
        let mut client = site.server.connect(&name(number))?;
        let mut at = 0;
        for block in data.chunks(write_bytes) {
            client.take_answers(DEPTH - 1)?;
            client.submit_write(at, block)?;
            at += u64::try_from(block.len())?;
        }
        client.take_answers(0)?;
        client.flush()?;
        clients.push(client);
    }
    Ok(clients)
}
