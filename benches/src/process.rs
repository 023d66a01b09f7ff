//! What a server costs, from `/proc`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

/// The kernel's unit in `/proc/*/stat`, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of utime among the fields after the process's name; stime, cutime and cstime follow.
const UTIME_INDEX: usize = 11;
const NICE_INDEX: usize = 16;

/// User and system time of all its threads, and of children that it has waited for.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))?;
    Ok(ticks / TICKS_PER_SECOND)
}

/// The name may contain anything; what counts begins after its closing bracket.
fn ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(UTIME_INDEX).take(4);
    let times: Option<Vec<f64>> = times.map(|field| field.parse().ok()).collect();
    times
        .filter(|times| times.len() == 4)
        .map(|times| times.iter().sum())
}

/// The most memory that was ever resident.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    peak(&status).with_context(|| format!("no VmHWM for process {pid}"))
}

fn peak(status: &str) -> Option<u64> {
    field(status, "VmHWM:").map(|kib| kib * 1024)
}

/// A number of a `status` file.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// How much of a process is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages of files too, its own program among them.
    pub resident_bytes: u64,
    /// Heap and stacks alone: what nobody can take from it.
    pub anonymous_bytes: u64,
    /// The most that was ever resident.
    pub peak_bytes: u64,
}

pub fn memory(pid: u32) -> Result<Memory> {
    let status = read(&format!("/proc/{pid}/status"))?;
    memory_of(&status).with_context(|| format!("/proc/{pid}/status: {status}"))
}

fn memory_of(status: &str) -> Option<Memory> {
    Some(Memory {
        resident_bytes: field(status, "VmRSS:")? * 1024,
        anonymous_bytes: field(status, "RssAnon:")? * 1024,
        peak_bytes: peak(status)?,
    })
}

/// How often each thread has gone to sleep by itself. Something woke it as often: timers, or work.
#[derive(Clone, Debug, Default)]
pub struct Sleeps(BTreeMap<OsString, u64>);

pub fn sleeps(pid: u32) -> Result<Sleeps> {
    let mut sleeps = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        // One that has just ended does not wake any more.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let count = field(&status, "voluntary_ctxt_switches:");
        let count = count.with_context(|| format!("a thread's status: {status}"))?;
        sleeps.insert(task.file_name(), count);
    }
    Ok(Sleeps(sleeps))
}

impl Sleeps {
    /// Of all threads together, also of those that have begun since.
    pub fn since(&self, before: &Self) -> u64 {
        let counts = self.0.iter().map(|(thread, count)| {
            let earlier = before.0.get(thread).copied();
            count.saturating_sub(earlier.unwrap_or_default())
        });
        counts.sum()
    }
}

/// Lets this process, and those that it starts, open as many files as the kernel allows it; says how many.
pub fn raise_open_files() -> Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Forgets that high-water mark: from here on it is that of what comes.
#[expect(clippy::disallowed_methods, reason = "an order to the kernel")]
pub fn reset_peak_memory(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

/// CPU time of a server's threads, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuParts {
    /// Moves data and serves clients.
    pub shard: f64,
    /// Speaks to the object store and the API.
    pub edge: f64,
    /// The rest: threads that compress, hash and seal. Also those that have ended since.
    pub compute: f64,
}

impl CpuParts {
    pub fn sum(&self) -> f64 {
        self.shard + self.edge + self.compute
    }
}

impl std::ops::Sub for CpuParts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            shard: self.shard - before.shard,
            edge: self.edge - before.edge,
            compute: self.compute - before.compute,
        }
    }
}

/// User and system time of a GlideFS process, by thread. Threads that compute have the name of the
/// edge's, and step back behind all others: that tells them apart.
pub fn cpu_parts(pid: u32) -> Result<CpuParts> {
    let mut parts = CpuParts::default();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended is in the sum below.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else {
            continue;
        };
        match thread(&stat) {
            Some(Thread { name, seconds, .. }) if name.starts_with("shard") => {
                parts.shard += seconds;
            }
            Some(Thread {
                nice: 0, seconds, ..
            }) => parts.edge += seconds,
            Some(_) => {}
            None => anyhow::bail!("a thread's stat: {stat}"),
        }
    }
    parts.compute = (cpu_seconds(pid)? - parts.shard - parts.edge).max(0.0);
    Ok(parts)
}

struct Thread<'a> {
    name: &'a str,
    seconds: f64,
    nice: i64,
}

fn thread(stat: &str) -> Option<Thread<'_>> {
    let (_, rest) = stat.split_once('(')?;
    let (name, fields) = rest.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Thread {
        name,
        seconds: (ticks(UTIME_INDEX)? + ticks(UTIME_INDEX + 1)?) / TICKS_PER_SECOND,
        nice: fields.get(NICE_INDEX)?.parse().ok()?,
    })
}

/// One line of facts about this machine.
pub fn machine() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let model = read("/proc/cpuinfo")?;
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| {
        rest.trim_start_matches([' ', '\t', ':'])
    });
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let memory = read("/proc/meminfo")?;
    let memory = memory
        .lines()
        .next()
        .unwrap_or_default()
        .replace("MemTotal:", "");
    let memory = memory.trim();
    Ok(format!(
        "{cpus} CPUs ({model}), {memory} memory, Linux {}",
        kernel.trim()
    ))
}

/// How busy the machine was, over 1, 5 and 15 minutes.
pub fn load_average() -> Result<String> {
    let load = read("/proc/loadavg")?;
    Ok(load.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 300 50 7 1 20 0 3";
        assert_eq!(ticks(stat), Some(358.0));
        assert_eq!(ticks("42 (cut off) S 1 2"), None);
    }

    #[test]
    fn a_thread_says_what_it_is() {
        let stat = "42 (edge (2)) S 1 2 3 4 5 6 7 8 9 10 300 50 0 0 25 5 3 0 77";
        let thread = thread(stat).expect("a whole line");
        assert_eq!((thread.name, thread.nice), ("edge (2)", 5));
        assert!((thread.seconds - 3.5).abs() < 1e-9);
        assert!(super::thread("42 (cut off) S 1 2").is_none());
    }

    #[test]
    fn peak_is_in_bytes() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t   12 kB\n"), Some(12 * 1024));
        assert_eq!(peak("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_held_is_told_from_what_is_mapped() {
        let status = "VmHWM:\t 3 kB\nVmRSS:\t 2 kB\nRssAnon:\t 1 kB\n";
        let memory = Memory {
            resident_bytes: 2048,
            anonymous_bytes: 1024,
            peak_bytes: 3072,
        };
        assert_eq!(memory_of(status), Some(memory));
        assert_eq!(memory_of("VmHWM:\t 3 kB\n"), None);
    }

    #[test]
    fn sleeps_are_those_of_threads_that_are_there() {
        let of = |counts: &[(&str, u64)]| {
            let counts = counts.iter().map(|(name, count)| (name.into(), *count));
            Sleeps(counts.collect())
        };
        let (before, after) = (of(&[("1", 5), ("2", 9)]), of(&[("1", 8), ("3", 2)]));
        assert_eq!(after.since(&before), 5);
        let status = "nonvoluntary_ctxt_switches:\t1\nvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(7));
    }
}
