//! The numbers as one table, and the marks that they are held against.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use glidefs_benches::conditions::Conditions;
use serde::Serialize;

use crate::fio::{Measured, RANDOM_READ_DEEP, RANDOM_WRITE_DEEP, WRITE_FLUSH};
use crate::target::{GLIDEFS, NBDKIT_FILE, NBDKIT_MEMORY};

/// A ratio to a control that the product sets itself.
struct Mark {
    workload: &'static str,
    control: &'static str,
    ratio_min: f64,
}

const MARKS: [Mark; 3] = [
    Mark {
        workload: RANDOM_WRITE_DEEP,
        control: NBDKIT_FILE,
        ratio_min: 2.0,
    },
    Mark {
        workload: RANDOM_READ_DEEP,
        control: NBDKIT_FILE,
        ratio_min: 0.7,
    },
    Mark {
        workload: WRITE_FLUSH,
        control: NBDKIT_FILE,
        ratio_min: 0.6,
    },
];

/// Memory of GlideFS beside the index of what its cache holds: the fourth mark.
const MEMORY_BYTES_MAX: u64 = 100_000_000;
/// Memory of the index per page of 4 KiB in the cache: a position and a checksum.
const INDEX_BYTES_PER_PAGE: u64 = 12;

/// All that one run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(flatten)]
    conditions: Conditions,
    pub(crate) rows: Vec<Row>,
    peak_memory_bytes: BTreeMap<String, u64>,
    /// Of GlideFS's cache, at its end: never less than at any time before.
    cache_used_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) target: String,
    pub(crate) measured: Measured,
}

impl Report {
    pub(crate) fn new(conditions: &str) -> Result<Self> {
        Ok(Self {
            conditions: Conditions::begin(conditions)?,
            rows: Vec::new(),
            peak_memory_bytes: BTreeMap::new(),
            cache_used_bytes: 0,
        })
    }

    pub(crate) fn add_memory(&mut self, target: &str, bytes: u64) {
        self.peak_memory_bytes.insert(target.to_owned(), bytes);
    }

    pub(crate) fn set_cache_used(&mut self, bytes: u64) {
        self.cache_used_bytes = bytes;
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        self.conditions.end()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        self.write_all(&mut text)
            .expect("a String takes everything");
        text
    }

    fn write_all(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "{}", self.conditions)?;
        writeln!(
            text,
            "| workload | server | IOPS | MB/s | p50 µs | p99 µs | flush p50 µs | IOPS per server core | peak memory, MiB | to nbdkit memory | to nbdkit file |"
        )?;
        writeln!(
            text,
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for row in &self.rows {
            self.write_row(text, row)?;
        }
        writeln!(text, "\n| mark | wanted | found | |\n|---|---:|---:|---|")?;
        for mark in &MARKS {
            let Some(ratio) = self.ratio(mark.workload, GLIDEFS, mark.control) else {
                continue;
            };
            let verdict = if ratio >= mark.ratio_min {
                "reached"
            } else {
                "missed"
            };
            let (name, control, min) = (mark.workload, mark.control, mark.ratio_min);
            writeln!(
                text,
                "| {name}, to {control} | {min:.2} | {ratio:.2} | {verdict} |"
            )?;
        }
        self.write_memory(text)
    }

    /// What the cache holds is not in the process: it is the kernel's page cache. Its index is.
    fn write_memory(&self, text: &mut String) -> std::fmt::Result {
        let Some(bytes) = self.peak_memory_bytes.get(GLIDEFS) else {
            return Ok(());
        };
        let index = self.cache_used_bytes / 4096 * INDEX_BYTES_PER_PAGE;
        let verdict = if *bytes <= MEMORY_BYTES_MAX + index {
            "reached"
        } else {
            "missed"
        };
        writeln!(
            text,
            "| peak memory, MB (100, and {} of index for a cache of {} MB) | {} | {} | {verdict} |",
            index / 1_000_000,
            self.cache_used_bytes / 1_000_000,
            (MEMORY_BYTES_MAX + index) / 1_000_000,
            bytes / 1_000_000,
        )
    }

    fn write_row(&self, text: &mut String, row: &Row) -> std::fmt::Result {
        let it = &row.measured;
        // A flush is a column of its own: in other workloads nobody asked for one.
        let flush = it.flush_p50_us.filter(|us| *us > 0.0);
        let flush = flush.map_or_else(String::new, |us| format!("{us:.0}"));
        let memory = self.peak_memory_bytes.get(&row.target);
        let memory = memory.map_or_else(String::new, |bytes| (bytes >> 20).to_string());
        let ratio = |control| {
            let ratio = self.ratio(&row.workload, &row.target, control);
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
        };
        writeln!(
            text,
            "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {flush} | {:.0} | {memory} | {} | {} |",
            row.workload,
            row.target,
            it.iops,
            it.megabytes_per_second,
            it.p50_us,
            it.p99_us,
            it.iops_per_core(),
            ratio(NBDKIT_MEMORY),
            ratio(NBDKIT_FILE),
        )
    }

    fn ratio(&self, workload: &str, target: &str, control: &str) -> Option<f64> {
        let iops = |name: &str| {
            let mut rows = self.rows.iter();
            let row = rows.find(|row| row.workload == workload && row.target == name)?;
            Some(row.measured.iops)
        };
        Some(iops(target)? / iops(control).filter(|iops| *iops > 0.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: &str, iops: f64) -> Row {
        Row {
            workload: RANDOM_WRITE_DEEP.to_owned(),
            target: target.to_owned(),
            measured: Measured {
                iops,
                megabytes_per_second: 1.0,
                p50_us: 1.0,
                p99_us: 2.0,
                flush_p50_us: None,
                requests: 10.0,
                cpu_seconds: 1.0,
            },
        }
    }

    #[test]
    fn marks_are_judged_by_ratio() {
        let mut report = Report::new("a test").expect("this machine has facts");
        report.rows = vec![row(NBDKIT_FILE, 100.0), row(GLIDEFS, 150.0)];
        assert!(report.markdown().contains("| 2.00 | 1.50 | missed |"));
        report.rows[1].measured.iops = 200.0;
        assert!(report.markdown().contains("| 2.00 | 2.00 | reached |"));
    }

    #[test]
    fn memory_is_judged_without_the_index_of_the_cache() {
        let mut report = Report::new("a test").expect("this machine has facts");
        report.add_memory(GLIDEFS, 130_000_000);
        assert!(report.markdown().contains("| 100 | 130 | missed |"));
        report.set_cache_used(12 << 30);
        assert!(report.markdown().contains("| 137 | 130 | reached |"));
    }
}
