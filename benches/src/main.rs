//! `glidefs-bench`: GlideFS beside its controls, in one run on one machine, in one table.
//!
//! Every target gets a region filled by 1 MiB writes first, as a disk image is. Then each workload
//! runs on each target in turn, several times; the run with the median rate is kept. Targets are
//! measured alone: the others are idle, and GlideFS has drained what an earlier workload left.
//! Deliberately absent: building anything, and verdicts on single numbers — only ratios to the
//! controls of the same run carry over to another machine.

mod fio;
mod report;
mod target;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use glidefs_benches::process;
use glidefs_tests::tool;

use fio::{Measured, Shape, Workload};
use report::{Report, Row};
use target::Target;

/// GlideFS beside nbdkit and qemu-nbd, by fio's nbd engine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Size of the region, in MiB.
    #[arg(long, default_value_t = 1024)]
    region_mib: u64,
    /// Length of one run, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Runs of each workload on each target; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A glance instead of a measurement: 256 MiB, 2 seconds, 1 run.
    #[arg(long)]
    quick: bool,
    /// Where files of the targets go: the disk that is measured.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Size of GlideFS's cache, in GiB.
    #[arg(long, default_value_t = 12.0)]
    cache_gb: f64,
    /// Only workloads whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Also write the numbers as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.region_mib, arguments.seconds, arguments.runs) = (256, 2, 1);
    }
    ensure!(arguments.runs > 0, "at least one run");
    ensure!(
        tool::are_here(&["fio", "nbdkit", "qemu-nbd"]),
        "install fio, nbdkit and qemu-utils"
    );
    let report = measure(&arguments)?;
    println!("{}", report.markdown());
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the result goes to a real file")]
fn write_json(path: &std::path::Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("glidefs-bench")
        .tempdir_in(&arguments.folder)?;
    let folder = folder.path().canonicalize()?;
    let mut report = Report::new(&format!(
        "region {} MiB, {} s a run, median of {}",
        arguments.region_mib, arguments.seconds, arguments.runs
    ))?;
    let shape = Shape {
        region_mib: arguments.region_mib,
        seconds: arguments.seconds,
    };
    let mut targets = vec![
        Target::nbdkit_memory(&folder, shape.region_mib)?,
        Target::nbdkit_file(&folder, shape.region_mib)?,
        Target::qemu_nbd(&folder, shape.region_mib)?,
        Target::glidefs(&folder, shape.region_mib, arguments.cache_gb)?,
    ];
    for target in &mut targets {
        progress(&format!("filling {}", target.name));
        fio::fill(&target.uri, &shape)?;
        target.settle()?;
    }
    for workload in Workload::all() {
        let skip = |only: &String| !workload.name.contains(only.as_str());
        if arguments.only.as_ref().is_some_and(skip) {
            continue;
        }
        for row in measure_one(workload, &mut targets, &shape, arguments.runs)? {
            report.rows.push(row);
        }
    }
    for target in &targets {
        report.add_memory(target.name, process::peak_memory_bytes(target.pid())?);
    }
    for target in &targets {
        if let Some(bytes) = target.cache_used_bytes()? {
            report.set_cache_used(bytes);
        }
    }
    report.finish()?;
    Ok(report)
}

/// Targets take turns within each repetition, so that a slow minute of the machine meets all.
fn measure_one(
    workload: &Workload,
    targets: &mut [Target],
    shape: &Shape,
    runs: usize,
) -> Result<Vec<Row>> {
    let mut measured: Vec<Vec<Measured>> = targets.iter().map(|_| Vec::new()).collect();
    for run in 1..=runs {
        for (target, results) in targets.iter_mut().zip(&mut measured) {
            progress(&format!("{} on {}, run {run}", workload.name, target.name));
            let before = process::cpu_seconds(target.pid())?;
            let mut result = fio::run(&target.uri, workload, shape).with_context(|| {
                format!("{} on {}\n{}", workload.name, target.name, target.log())
            })?;
            result.cpu_seconds = process::cpu_seconds(target.pid())? - before;
            target.settle()?;
            results.push(result);
        }
    }
    let rows = targets.iter().zip(measured).map(|(target, results)| Row {
        workload: workload.name.to_owned(),
        target: target.name.to_owned(),
        measured: median(results),
    });
    Ok(rows.collect())
}

/// The run with the median rate: its latencies belong together.
fn median(mut results: Vec<Measured>) -> Measured {
    assert!(!results.is_empty(), "every workload ran at least once");
    results.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    results.swap_remove(results.len() / 2)
}

#[expect(
    clippy::print_stderr,
    reason = "minutes pass; the table goes to stdout"
)]
fn progress(what: &str) {
    eprintln!("{what}");
}
