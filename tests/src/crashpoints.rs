//! Crash points: real work (mkfs, untar, synced files, SQLite) is recorded through NBD, replayed through
//! the server that ships in simulation, and at every answered flush, and at moments between, what a crash
//! would leave is opened, read back, judged and mounted:
//!
//! - the SSD after a power cut must hold all that was flushed, after a kill all that was answered
//!   (promises 1, 2);
//! - the store alone, as a fresh node sees it, must never go back, and hold everything after a drain
//!   (promise 3);
//! - each of them must be exactly the content after some prefix of the requests, and sound for the
//!   filesystem's own tools, with all files and rows there that the kernel had called durable by then.
//!
//! `stream` is pure; `record` and `work` make a recording, `replay` stops at crash points, `look` opens
//! what a crash left, `judge` and `lab` say what is wrong with it.
//!
//! Deliberately absent: requests that were in flight to the store and land after the crash (the
//! simulation proper has them), and reordering between flushes by the client, which a prefix includes.

mod filesystem;
mod judge;
mod lab;
mod look;
mod record;
mod replay;
mod stream;
mod work;

use std::rc::Rc;

use anyhow::{Result, bail, ensure};

pub use filesystem::Filesystem;
pub use judge::{Progress, Tally};
pub use lab::Lab;
pub use replay::Options;
pub use stream::{Content, Reached, Stream};
pub use work::{Owed, Recording, What};

use crate::tool;
use judge::Judge;

/// How much work is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Files of the tree that is untarred.
    pub files: u64,
    /// Entries that are appended and synced one by one.
    pub entries: usize,
    /// Times that a file is replaced by rename.
    pub versions: u64,
    /// Commits of each database.
    pub commits: u64,
}

impl Scale {
    /// Of the command.
    pub const FULL: Self = Self {
        files: 400,
        entries: 24,
        versions: 16,
        commits: 24,
    };
    /// Of a test.
    pub const SLICE: Self = Self {
        files: 30,
        entries: 4,
        versions: 4,
        commits: 4,
    };
}

/// A lie of the client's machine, for the judge to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// One write in the middle is answered and never happened.
    LostWrite,
    /// Flushes are answered and never happened.
    LostFlush,
}

impl Plant {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "lost-write" => Some(Self::LostWrite),
            "lost-flush" => Some(Self::LostFlush),
            _ => None,
        }
    }
}

/// Whether images are mounted and checked too, or only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examine {
    Images,
    Nothing,
}

/// Replays a recording and judges its crash points.
pub fn run(
    recording: &Recording,
    options: Options,
    examine: Examine,
    progress: Progress,
) -> Result<Tally> {
    let stream = Rc::new(recording.stream.clone());
    let lab = match examine {
        Examine::Images => Some(Lab::new(recording.filesystem, stream.size_bytes)?),
        Examine::Nothing => None,
    };
    let judge = Judge::new(recording, Rc::clone(&stream), lab, progress);
    let tally = replay::replay(stream, options, judge)?.into_tally();
    ensure!(
        tally.power_cuts > 0 && tally.store_cuts > 0,
        "no crash point was judged: {tally:?}"
    );
    Ok(tally)
}

/// Whether this machine can record and mount: root, loop devices, FUSE and the tools. False means: skip,
/// and say so.
pub fn is_possible(filesystem: Filesystem) -> Result<bool> {
    let common = [
        "nbdfuse",
        "fusermount3",
        "losetup",
        "mount",
        "fstrim",
        "tar",
        work::PYTHON,
        "/dev/fuse",
        "/dev/loop-control",
    ];
    let tools = [&common, filesystem.tools()].concat();
    if !tool::are_here(&tools) {
        return Ok(false);
    }
    let is_root = tool::run("id", &["-u"])?.trim() == "0";
    if !is_root && std::env::var_os("CI").is_some() {
        bail!("CI must run this as root");
    }
    if !is_root {
        return Ok(skipped("not root"));
    }
    // Whose kernel knows which filesystems is not ours to say.
    if !is_known(filesystem)? {
        return Ok(skipped(&format!("this kernel has no {filesystem}")));
    }
    Ok(true)
}

fn is_known(filesystem: Filesystem) -> Result<bool> {
    let is_listed = || -> Result<bool> {
        let listed = std::fs::read_to_string("/proc/filesystems")?;
        let names = listed
            .lines()
            .filter_map(|line| line.split_whitespace().last());
        Ok(names.into_iter().any(|name| name == filesystem.name()))
    };
    if !is_listed()? {
        // It may be a module that nobody has asked for yet.
        tool::output("modprobe", &[filesystem.name()]).ok();
    }
    is_listed()
}

#[expect(
    clippy::print_stderr,
    reason = "a skipped test says so where the person who runs it looks"
)]
fn skipped(why: &str) -> bool {
    eprintln!("skipped: {why}");
    false
}
