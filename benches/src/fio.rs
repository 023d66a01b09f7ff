//! What is measured, by fio's nbd engine: workloads, command lines, and what its JSON says.

use anyhow::{Context, Result};
use glidefs_tests::tool;
use serde::Serialize;
use serde_json::Value;

/// Size and length of every run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) region_mib: u64,
    pub(crate) seconds: u64,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
    /// A flush after every write.
    is_flushed: bool,
}

const fn workload(
    name: &'static str,
    rw: &'static str,
    block: &'static str,
    depth: u32,
) -> Workload {
    Workload {
        name,
        rw,
        block,
        depth,
        is_flushed: false,
    }
}

/// Reads come first, so that they see the region as it was filled.
const WORKLOADS: [Workload; 9] = [
    workload("sequential read 1 MiB, depth 8", "read", "1m", 8),
    workload(RANDOM_READ_DEEP, "randread", "4k", 64),
    workload("random read 4 KiB, depth 1", "randread", "4k", 1),
    workload(RANDOM_WRITE_DEEP, "randwrite", "4k", 64),
    workload("random write 4 KiB, depth 1", "randwrite", "4k", 1),
    workload("mix 70/30 4 KiB, depth 64", "randrw", "4k", 64),
    workload("mix 70/30 4 KiB, depth 1", "randrw", "4k", 1),
    Workload {
        is_flushed: true,
        ..workload(WRITE_FLUSH, "randwrite", "4k", 1)
    },
    workload("sequential write 1 MiB, depth 8", "write", "1m", 8),
];

pub(crate) const RANDOM_READ_DEEP: &str = "random read 4 KiB, depth 64";
pub(crate) const RANDOM_WRITE_DEEP: &str = "random write 4 KiB, depth 64";
pub(crate) const WRITE_FLUSH: &str = "write + flush 4 KiB, depth 1";

impl Workload {
    pub(crate) fn all() -> &'static [Self] {
        &WORKLOADS
    }
}

/// One run's numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) iops: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of the flushes alone.
    pub(crate) flush_p50_us: Option<f64>,
    /// All requests of the run.
    pub(crate) requests: f64,
    /// The server's, user and system, over the whole run.
    pub(crate) cpu_seconds: f64,
}

impl Measured {
    /// Requests that one core of the server would carry per second.
    pub(crate) fn iops_per_core(&self) -> f64 {
        if self.cpu_seconds > 0.0 {
            self.requests / self.cpu_seconds
        } else {
            f64::NAN
        }
    }
}

/// Writes the whole region by 1 MiB, as an image is written.
pub(crate) fn fill(uri: &str, shape: &Shape) -> Result<()> {
    let arguments = [
        "--name=fill".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        "--rw=write".to_owned(),
        "--bs=1m".to_owned(),
        "--iodepth=8".to_owned(),
        "--end_fsync=1".to_owned(),
        format!("--size={}m", shape.region_mib),
    ];
    run_fio(&arguments).map(drop)
}

pub(crate) fn run(uri: &str, workload: &Workload, shape: &Shape) -> Result<Measured> {
    let mut arguments = vec![
        "--name=run".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={}", workload.rw),
        format!("--bs={}", workload.block),
        format!("--iodepth={}", workload.depth),
        format!("--size={}m", shape.region_mib),
        "--time_based=1".to_owned(),
        format!("--runtime={}", shape.seconds),
        // Pages may repeat and the order is free: a bitmap of pages would cost fio more than the request.
        "--norandommap=1".to_owned(),
        "--randrepeat=0".to_owned(),
        "--rwmixread=70".to_owned(),
    ];
    if workload.is_flushed {
        arguments.push("--fsync=1".to_owned());
    }
    parse(&run_fio(&arguments)?)
}

fn run_fio(arguments: &[String]) -> Result<Value> {
    let mut all = vec!["--output-format=json"];
    all.extend(arguments.iter().map(String::as_str));
    let said = tool::run("fio", &all)?;
    // Warnings may precede the document.
    let begin = said.find('{').context("fio said no JSON")?;
    serde_json::from_str(&said[begin..]).context("fio's JSON")
}

fn parse(document: &Value) -> Result<Measured> {
    let job = document["jobs"].get(0).context("fio ran no job")?;
    let number = |side: &str, field: &str| job[side][field].as_f64().unwrap_or(0.0);
    let both = |field: &str| number("read", field) + number("write", field);
    // In a mix the slower half is what a client feels.
    let percentile = |name: &str| {
        let of = |side: &str| job[side]["clat_ns"]["percentile"][name].as_f64();
        of("read").unwrap_or(0.0).max(of("write").unwrap_or(0.0)) / 1000.0
    };
    Ok(Measured {
        iops: both("iops"),
        megabytes_per_second: both("bw_bytes") / 1e6,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        flush_p50_us: job["sync"]["lat_ns"]["percentile"]["50.000000"]
            .as_f64()
            .map(|ns| ns / 1000.0),
        requests: both("total_ios"),
        cpu_seconds: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_understood() {
        let percentile = serde_json::json!({"50.000000": 2000, "99.000000": 9000});
        let document = serde_json::json!({"jobs": [{
            "read": {"iops": 70.0, "bw_bytes": 286_720, "total_ios": 140,
                     "clat_ns": {"percentile": percentile}},
            "write": {"iops": 30.0, "bw_bytes": 122_880, "total_ios": 60, "clat_ns": {}},
            "sync": {"lat_ns": {"percentile": {"50.000000": 5000}}},
        }]});
        let mut measured = parse(&document).expect("a job");
        measured.cpu_seconds = 0.5;
        assert!((measured.iops - 100.0).abs() < 1e-9);
        assert!((measured.p99_us - 9.0).abs() < 1e-9);
        assert_eq!(measured.flush_p50_us, Some(5.0));
        assert!((measured.iops_per_core() - 400.0).abs() < 1e-9);
        assert!(parse(&serde_json::json!({"jobs": []})).is_err());
    }
}
