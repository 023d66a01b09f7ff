//! `glidefs-bench-fleet`: what many exports on one server cost, and what they cost in the store.
//!
//! Parts, each with a server and a store of its own: *forks* makes thousands of one large
//! image, *idle* holds many connected exports that do nothing, *budget* counts the requests of one
//! export under a steady load and says what a month of them costs, *sizes* grows one to 16 TiB and
//! trims terabytes of it. Deliberately absent: load on many exports at a time, and verdicts on
//! figures: what is wanted stands beside what was found.

mod budget;
mod control;
mod forks;
mod idle;
mod report;
mod site;
mod sizes;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum, value_parser};

use report::Report;

/// Forks, idle exports, the bill of the store, and sizes up to 16 TiB.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this part; may be given more than once.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// A glance instead of a measurement: 200 forks, 50 exports, few pages, seconds instead of minutes.
    #[arg(long)]
    quick: bool,
    /// Of the large image; of the small export a tenth of it.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    forks: u64,
    /// Connected and idle. The server takes no more connections than the most that may be asked for here.
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u64).range(1..=4096))]
    exports: u64,
    /// How long they are watched.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(1..))]
    idle_seconds: u64,
    /// Size of the writes that fill them: the server's buffers follow it.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u16).range(1..=1024))]
    idle_write_kib: u16,
    /// How long the steady load goes on.
    #[arg(long, default_value_t = 120, value_parser = value_parser!(u64).range(1..))]
    budget_seconds: u64,
    /// Size of the volume that it writes to: the smaller, the more is overwritten.
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u32).range(1..))]
    budget_mib: u32,
    /// Its writes of 4 KiB in a second.
    #[arg(long, default_value_t = 200, value_parser = value_parser!(u64).range(1..))]
    rate: u64,
    /// Shares of the sync windows of the active time that have writes: each gets a price.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0_f64, 0.25, 0.1])]
    share: Vec<f64>,
    /// How often all of 16 TiB is trimmed, in parts and at once.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    trim_rounds: u32,
    /// Where caches and stores go: the disk that is used.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Forks,
    Idle,
    Budget,
    Sizes,
}

#[expect(clippy::print_stdout, reason = "the report is the result")]
fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.forks, arguments.exports) = (200, 50);
        (arguments.idle_seconds, arguments.budget_seconds) = (5, 20);
    }
    let report = measure(&arguments)?;
    println!("{}", report.markdown());
    Ok(if report.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("glidefs-bench-fleet")
        .tempdir_in(&arguments.folder)?;
    let folder = folder.path().canonicalize()?;
    let mut report = Report::new(&arguments.share)?;
    for part in [Part::Forks, Part::Idle, Part::Budget, Part::Sizes] {
        if !arguments.only.is_empty() && !arguments.only.contains(&part) {
            continue;
        }
        let folder = folder.join(format!("{part:?}"));
        let done = match part {
            Part::Forks => forks::measure(&folder, arguments).map(|it| report.forks = Some(it)),
            Part::Idle => idle::measure(&folder, arguments).map(|it| report.idle = Some(it)),
            Part::Budget => budget::measure(&folder, arguments).map(|it| report.budget = Some(it)),
            Part::Sizes => sizes::measure(&folder, arguments).map(|it| report.sizes = Some(it)),
        };
        // One bad minute of the machine must not cost what other parts have measured.
        if let Err(error) = done {
            progress(&format!("{part:?}: {error:#}"));
            report.failures.push(format!("{part:?}: {error:#}"));
        }
    }
    report.finish()?;
    Ok(report)
}

#[expect(
    clippy::print_stderr,
    reason = "minutes pass; the report goes to stdout"
)]
fn progress(what: &str) {
    eprintln!("{what}");
}
