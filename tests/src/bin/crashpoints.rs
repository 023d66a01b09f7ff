//! All crash points of real work: `crashpoints --report docs/crash-points.md` replays every flush on every
//! filesystem. Needs root, loop devices and FUSE.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and the tally are for a person or a log"
)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use glidefs_tests::crashpoints::{
    Examine, Filesystem, Options, Plant, Recording, Scale, Tally, is_possible, run,
};
use serde_json::{Value, json};

/// Crash points between two lines of progress.
const PROGRESS: u64 = 20;

/// Records real work through NBD, and judges what a crash would leave at every flush and between.
#[derive(Debug, Parser)]
struct Arguments {
    /// ext4, xfs or btrfs; all three where none is named.
    #[arg(long)]
    fs: Vec<String>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Of so many flushes one is a crash point.
    #[arg(long, default_value_t = 1)]
    flush_every: u64,
    /// About so many crash points between flushes, for each filesystem.
    #[arg(long, default_value_t = 150)]
    between: u64,
    /// As little work as in the tests.
    #[arg(long)]
    small: bool,
    /// Lie on purpose: lost-write or lost-flush; then failures are what should come.
    #[arg(long)]
    plant: Option<String>,
    /// Print the tally as JSON.
    #[arg(long)]
    json: bool,
    /// Write the tally to this file, as Markdown.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// One filesystem's run.
#[derive(Debug)]
struct Row {
    filesystem: Filesystem,
    requests: usize,
    flushes: usize,
    written_bytes: u64,
    in_flight_max: usize,
    synced: usize,
    tally: Tally,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let filesystems = if arguments.fs.is_empty() {
        Filesystem::ALL.to_vec()
    } else {
        let named = arguments.fs.iter();
        let known = named.map(|name| {
            Filesystem::named(name).with_context(|| {
                format!("--fs {name}: no such filesystem; there are ext4, xfs and btrfs")
            })
        });
        known.collect::<Result<_>>()?
    };
    let plant = match &arguments.plant {
        None => None,
        Some(name) => Some(Plant::named(name).with_context(|| {
            format!("--plant {name}: no such lie; there are lost-write and lost-flush")
        })?),
    };
    if arguments.flush_every == 0 {
        bail!("--flush-every 0: at least 1, which makes every flush a crash point");
    }
    let mut rows = Vec::new();
    for filesystem in filesystems {
        if !is_possible(filesystem)? {
            bail!("{filesystem}: needs root, and what `scripts/test` installs");
        }
        rows.push(replay(filesystem, &arguments, plant)?);
    }
    tell(&arguments, &rows)
}

fn replay(filesystem: Filesystem, arguments: &Arguments, plant: Option<Plant>) -> Result<Row> {
    let scale = if arguments.small {
        Scale::SLICE
    } else {
        Scale::FULL
    };
    let recording = Recording::make(filesystem, scale)?;
    let stream = &recording.stream;
    let mut row = Row {
        filesystem,
        requests: stream.asks.len(),
        flushes: stream.flushes(),
        written_bytes: stream.written_bytes(),
        in_flight_max: stream.in_flight_max(),
        synced: recording.owed.len(),
        tally: Tally::default(),
    };
    eprintln!(
        "{filesystem}: recorded {} requests, {} of them flushes, up to {} in flight",
        row.requests, row.flushes, row.in_flight_max
    );
    let options = Options {
        seed: arguments.seed,
        flush_every: arguments.flush_every,
        between: arguments.between,
        plant,
    };
    let progress = move |tally: &Tally| {
        if tally.store_moments.is_multiple_of(PROGRESS) {
            eprintln!(
                "{filesystem}: {} crash points, {} images checked, {} failed",
                tally.store_moments, tally.images, tally.failed
            );
        }
    };
    row.tally = run(&recording, options, Examine::Images, Box::new(progress))?;
    Ok(row)
}

fn tell(arguments: &Arguments, rows: &[Row]) -> Result<ExitCode> {
    if arguments.json {
        let documents: Vec<Value> = rows.iter().map(document).collect();
        println!("{}", serde_json::to_string_pretty(&documents)?);
    } else {
        println!("{}", table(rows)?);
    }
    if let Some(path) = &arguments.report {
        write_report(path, &report(arguments, rows)?)?;
    }
    let failed: u64 = rows.iter().map(|row| row.tally.failed).sum();
    for row in rows {
        for failure in &row.tally.failures {
            eprintln!("FAILED {}: {failure}", row.filesystem);
        }
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn document(row: &Row) -> Value {
    let tally = &row.tally;
    json!({
        "filesystem": row.filesystem.name(),
        "requests": row.requests,
        "flushes": row.flushes,
        "written_bytes": row.written_bytes,
        "in_flight_max": row.in_flight_max,
        "synced": row.synced,
        "crash_points": tally.store_moments,
        "ssd_power_cuts": tally.power_cuts,
        "ssd_kills": tally.kills,
        "store_moments": tally.store_moments,
        "store_cuts": tally.store_cuts,
        "torn": tally.torn,
        "images_checked": tally.images,
        "unformatted": tally.unformatted,
        "failed": tally.failed,
        "failures": tally.failures,
    })
}

fn table(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "| | requests | flushes | crash points | SSD, power cut | SSD, kill | store alone: moments | \
         store alone: cuts | images checked | failed |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|")?;
    for row in rows {
        let t = &row.tally;
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.filesystem,
            row.requests,
            row.flushes,
            t.store_moments,
            t.power_cuts,
            t.kills,
            t.store_moments,
            t.store_cuts,
            t.images,
            t.failed
        )?;
    }
    Ok(text)
}

fn report(arguments: &Arguments, rows: &[Row]) -> Result<String> {
    let mut text = String::from(REPORT_HEAD);
    write!(text, "\n{}\n", table(rows)?)?;
    for row in rows {
        writeln!(
            text,
            "- {}: {} MiB written, up to {} requests in flight, {} things that the kernel had called \
             durable; {} contents were from before there was a filesystem, {} held a part of a request",
            row.filesystem,
            row.written_bytes >> 20,
            row.in_flight_max,
            row.synced,
            row.tally.unformatted,
            row.tally.torn
        )?;
    }
    let flushes = match arguments.flush_every {
        1 => "every flush".to_owned(),
        some => format!("one flush in {some}"),
    };
    writeln!(
        text,
        "\nSeed {}; {flushes} and about {} moments between, for each filesystem.",
        arguments.seed, arguments.between
    )?;
    Ok(text)
}

const REPORT_HEAD: &str = include_str!("crashpoints/report.md");

#[expect(clippy::disallowed_methods, reason = "a command writes its report")]
fn write_report(path: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
