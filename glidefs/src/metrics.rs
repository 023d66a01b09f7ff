//! Prometheus metrics, as OpenMetrics text, made anew for each scrape from the same documents that
//! the API shows: there is one count of everything, and it lives on the shard.
//!
//! Names carry base units; counters end in `_total` (the encoder adds it).

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::control::{ExportDocument, ServerDocument};

/// Ticks per second of the times in `/proc`: part of the kernel's interface, not of its config.
const USER_HZ: f64 = 100.0;

/// The text of one scrape.
pub fn render(server: ServerDocument, exports: Vec<ExportDocument>, process: Process) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        server,
        exports,
        process,
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("writing to a string cannot fail");
    text
}

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

#[derive(Debug)]
struct Scrape {
    server: ServerDocument,
    exports: Vec<ExportDocument>,
    process: Process,
}

/// Name, help, value.
type Row<T, V> = (&'static str, &'static str, fn(&T) -> V);

const EXPORT_COUNTERS: &[Row<ExportDocument, u64>] = &[
    ("reads", "Read requests answered", |e| e.io.reads),
    ("read_bytes", "Bytes read by clients", |e| e.io.read_bytes),
    ("writes", "Write requests answered", |e| e.io.writes),
    ("written_bytes", "Bytes written by clients", |e| {
        e.io.written_bytes
    }),
    ("flushes", "Flush requests answered", |e| e.io.flushes),
    ("zeroes", "Trim and write-zeroes requests answered", |e| {
        e.io.zeroes
    }),
    (
        "cache_hit_pages",
        "Pages of 4 KiB read that the cache held",
        |e| e.io.hit_pages,
    ),
    (
        "cache_miss_pages",
        "Pages of 4 KiB read that came from the store",
        |e| e.io.miss_pages,
    ),
    ("errors", "Requests answered with an error", |e| e.io.errors),
    ("syncs", "Cuts published to the store", |e| e.io.syncs),
    ("sync_errors", "Failed attempts to sync", |e| {
        e.io.sync_errors
    }),
    ("uploaded_segments", "Segments uploaded to the store", |e| {
        e.io.uploaded_segments
    }),
    ("uploaded_bytes", "Bytes uploaded to the store", |e| {
        e.io.uploaded_bytes
    }),
];

const EXPORT_GAUGES: &[Row<ExportDocument, f64>] = &[
    ("size_bytes", "Size of the block device", |e| {
        float(e.size_bytes)
    }),
    ("clients", "Connections", |e| f64::from(e.clients)),
    (
        "dirty_bytes",
        "Bytes in the log that the store does not hold yet",
        |e| float(e.dirty_bytes),
    ),
    (
        "dirty_age_seconds",
        "Age of the oldest write that the store does not hold yet",
        |e| Duration::from_millis(e.dirty_age_ms).as_secs_f64(),
    ),
    ("epoch", "The current right to write", |e| float(e.epoch)),
    ("last_seq", "Position of the last write", |e| {
        float(e.last_seq)
    }),
    (
        "published_seq",
        "Position of the cut that the store holds",
        |e| float(e.published_seq),
    ),
    ("read_write", "1 if this server may write the export", |e| {
        f64::from(u8::from(e.role == "read-write"))
    }),
    (
        "damaged",
        "1 while unpublished writes are missing and the loss is not accepted",
        |e| f64::from(u8::from(e.damage.is_some())),
    ),
    ("fenced", "1 if another owner has taken the export", |e| {
        f64::from(u8::from(e.role == "fenced"))
    }),
];

const SERVER_GAUGES: &[Row<ServerDocument, f64>] = &[
    (
        "glidefs_dirty_bytes",
        "Bytes in the log that the store does not hold yet",
        |s| float(s.dirty_bytes),
    ),
    (
        "glidefs_cache_size_bytes",
        "The cache never grows beyond this",
        |s| float(s.cache_bytes),
    ),
    ("glidefs_cache_used_bytes", "Bytes in the cache", |s| {
        float(s.cache_used_bytes)
    }),
    ("glidefs_exports", "Exports known to this server", |s| {
        float(s.exports)
    }),
    ("glidefs_clients", "Connections of all exports", |s| {
        float(s.clients)
    }),
    (
        "glidefs_log_stopped",
        "1 once the log has stopped after a failed write or fsync",
        |s| f64::from(u8::from(s.stopped.is_some())),
    ),
];

const PROCESS_GAUGES: &[Row<Process, f64>] = &[
    (
        "process_resident_memory_bytes",
        "Resident memory size",
        |p| float(p.resident_bytes),
    ),
    ("process_open_fds", "Open file descriptors", |p| {
        float(p.open_fds)
    }),
    ("process_threads", "Threads of the process", |p| {
        float(p.threads)
    }),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let version = [("version", self.server.version.as_str())];
        let mut build = encoder.encode_descriptor(
            "glidefs_build_info",
            "Always 1; the version is in the label",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(1_i64).encode(build.encode_family(&version)?)?;
        gauges(&mut encoder, SERVER_GAUGES, &self.server)?;
        gauges(&mut encoder, PROCESS_GAUGES, &self.process)?;
        let cpu = ConstCounter::new(self.process.cpu_seconds);
        let metric = encoder.encode_descriptor(
            "process_cpu_seconds",
            "Processor time spent",
            None,
            MetricType::Counter,
        )?;
        cpu.encode(metric)?;
        for (name, help, value) in EXPORT_COUNTERS {
            let name = format!("glidefs_export_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for export in &self.exports {
                let label = [("export", export.name.as_str())];
                ConstCounter::new(value(export)).encode(family.encode_family(&label)?)?;
            }
        }
        for (name, help, value) in EXPORT_GAUGES {
            let name = format!("glidefs_export_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for export in &self.exports {
                let label = [("export", export.name.as_str())];
                ConstGauge::new(value(export)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

fn gauges<T>(
    encoder: &mut DescriptorEncoder<'_>,
    rows: &[Row<T, f64>],
    of: &T,
) -> Result<(), fmt::Error> {
    for (name, help, value) in rows {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value(of)).encode(metric)?;
    }
    Ok(())
}

/// Exact up to 2^53 (8 PiB); beyond that the nearest number, as every reader of metrics does.
fn float(count: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "metrics are floating-point numbers to whoever reads them"
    )]
    let nearest = count as f64;
    nearest
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

    #[test]
    fn the_text_is_open_metrics_by_convention() {
        let export = ExportDocument {
            name: "vm-a".into(),
            size_bytes: 1 << 30,
            role: "read-write".into(),
            epoch: 3,
            owner: "host".into(),
            clients: 2,
            dirty_bytes: 4096,
            dirty_age_ms: 1500,
            published_seq: 7,
            published_at: String::new(),
            last_seq: 8,
            damage: None,
            io: crate::control::IoDocument {
                writes: 5,
                ..Default::default()
            },
        };
        let server = ServerDocument {
            version: "0.1.0".into(),
            cache_id: "00".into(),
            cache_bytes: 1 << 34,
            cache_used_bytes: 4096,
            dirty_bytes: 4096,
            exports: 1,
            clients: 2,
            stopped: None,
        };
        let text = render(server, vec![export], Process::default());
        for line in [
            "# TYPE glidefs_export_writes counter",
            "glidefs_export_writes_total{export=\"vm-a\"} 5",
            "glidefs_export_dirty_age_seconds{export=\"vm-a\"} 1.5",
            "glidefs_dirty_bytes 4096.0",
            "glidefs_log_stopped 0.0",
            "glidefs_build_info{version=\"0.1.0\"} 1",
            "process_cpu_seconds_total 0.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let manual = include_str!("../../docs/http-api.md");
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample
                .split([' ', '{'])
                .next()
                .expect("split gives one part");
            let short = name.strip_prefix("glidefs_export").unwrap_or(name);
            assert!(manual.contains(short), "{name} is in no manual");
        }
        for help in text.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(help.split(' ').count() > 3, "no help text: {help}");
        }
    }
}
