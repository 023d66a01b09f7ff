//! What a server costs, from `/proc`.

use anyhow::{Context, Result};

/// The kernel's unit in `/proc/*/stat`, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of utime among the fields after the process's name; stime, cutime and cstime follow.
const UTIME_INDEX: usize = 11;

/// User and system time of all its threads, and of children that it has waited for.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
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
pub(crate) fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    peak(&status).with_context(|| format!("no VmHWM for process {pid}"))
}

fn peak(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// One line of facts about this machine.
pub(crate) fn machine() -> Result<String> {
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
pub(crate) fn load_average() -> Result<String> {
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
    fn peak_is_in_bytes() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t   12 kB\n"), Some(12 * 1024));
        assert_eq!(peak("Name:\tx\n"), None);
    }
}
