//! What the process itself costs, as the kernel counts it.

/// Ticks per second of the times in `/proc`: part of the kernel's interface, not of its config.
const USER_HZ: f64 = 100.0;

/// What the process itself costs; zero where `/proc` does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_fds: u64,
    pub threads: u64,
}

impl Process {
    /// Of this process, now.
    pub fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let mut process = Self::parse(&stat, &status);
        process.open_fds = u64::try_from(fds).unwrap_or(u64::MAX);
        process
    }

    fn parse(stat: &str, status: &str) -> Self {
        let field = |name: &str| -> u64 {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        // The second field is the name in parentheses and may hold anything: begin behind it.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |index: usize| -> f64 {
            after_name
                .split_whitespace()
                .nth(index)
                .and_then(|number| number.parse().ok())
                .unwrap_or(0.0)
        };
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            // utime and stime: fields 14 and 15, counted from 1 at the start of the line.
            cpu_seconds: (ticks(11) + ticks(12)) / USER_HZ,
            open_fds: 0,
            threads: field("Threads:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_read() {
        let stat = "77 (a (b) c) S 1 77 77 0 -1 4 100 0 0 0 250 50 0 0 20 0 9 0 5 6 7";
        let status = "Name:\tglidefs\nVmRSS:\t    2048 kB\nThreads:\t9\n";
        assert_eq!(
            Process::parse(stat, status),
            Process {
                resident_bytes: 2 << 20,
                cpu_seconds: 3.0,
                open_fds: 0,
                threads: 9,
            }
        );
        assert_eq!(Process::parse("", "VmRSS: x"), Process::default());
        assert!(Process::now().resident_bytes > 0);
    }
}
