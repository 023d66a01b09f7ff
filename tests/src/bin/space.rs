//! Space in the store over time, under random overwrites. `cargo space` simulates hours of them; `space --real` plays them
//! for minutes on real processes, reads everything back, and its exit code says whether both the bytes and the space were
//! as wanted. Prints a table, and writes plot and report of `docs/space.md` if asked to.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and the table are for a person or a log"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a tool that writes the file that it was told to write"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, value_parser};
use glidefs_tests::bucket::Place;
use glidefs_tests::endpoint::own_prefix;
use glidefs_tests::overwrites::{self, Found};
use glidefs_tests::s3::S3Server;
use glidefs_tests::sim::SpaceRun;
use glidefs_tests::space::{MEAN_MAX, PEAK_MAX, Ratios, SpacePoint, plot, table};
use glidefs_tests::{marks, tool};

/// Where the report of a real run goes.
const MARK: &str = "real";
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Of the table of a real run, about.
const ROWS_MAX: usize = 31;

/// One volume, overwritten at random.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pages of 4 KiB of the simulated volume.
    #[arg(long, default_value_t = 65_536, conflicts_with = "real")]
    pages: u64,
    /// Of a page each, simulated.
    #[arg(long, default_value_t = 40, conflicts_with = "real")]
    writes_per_second: u64,
    /// Of simulated time.
    #[arg(long, default_value_t = 8, conflicts_with = "real")]
    hours: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the plot, an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// On real processes, in real time: a server, encrypted, before an S3 endpoint.
    #[arg(long)]
    real: bool,
    /// How long pieces are overwritten.
    #[arg(long, default_value_t = 30, requires = "real", value_parser = value_parser!(u64).range(1..))]
    minutes: u64,
    /// Size of the volume.
    #[arg(long, default_value_t = 1024, requires = "real", value_parser = value_parser!(u32).range(1..))]
    size_mib: u32,
    /// How much is overwritten in a second.
    #[arg(long, default_value_t = 4, requires = "real", value_parser = value_parser!(u64).range(1..=1024))]
    mib_per_s: u64,
    /// URL of an S3 endpoint that runs already, with the bucket and the keys of the tests' own one. What is written stays
    /// there, under a prefix that is told.
    #[arg(long, requires = "real")]
    endpoint: Option<String>,
    /// Where cache and store go: three times the size of the volume at least.
    #[arg(long, default_value = ".", requires = "real")]
    folder: PathBuf,
    /// Put the report into this file, between the marks of its kind.
    #[arg(long, value_name = "FILE", requires = "real")]
    report: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.real {
        real(&arguments)
    } else {
        simulated(&arguments)
    }
}

fn simulated(arguments: &Arguments) -> Result<ExitCode> {
    let run = SpaceRun {
        pages: arguments.pages,
        writes_per_second: arguments.writes_per_second,
        hours: arguments.hours,
        seed: arguments.seed,
    };
    let points = run.perform()?;
    print!("{}", table(&points, usize::MAX));
    let Ratios { mean, peak } = Ratios::of(&points);
    println!("\nmean of the last two thirds: {mean:.3}, peak: {peak:.3}");
    let hours = points.last().map_or(0, |point| point.seconds / 3600);
    let what = format!("stored over live bytes, 0 to {hours} hours of simulated time");
    draw(arguments, &points, &what)?;
    Ok(ExitCode::SUCCESS)
}

fn real(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(path) = &arguments.report {
        // Before half an hour has gone by.
        marks::check(path, MARK)?;
    }
    let folder = tempfile::Builder::new()
        .prefix("glidefs-space")
        .tempdir_in(&arguments.folder)
        .with_context(|| format!("a folder in {}", arguments.folder.display()))?;
    let path = folder.path().canonicalize()?;
    let found = overwrite(arguments, &path)?;
    let ratios = Ratios::of(&found.points);
    let text = report(arguments, &found, ratios);
    println!("{text}");
    let minutes = arguments.minutes;
    let what = format!("stored over live bytes, 0 to {minutes} minutes of a real run");
    draw(arguments, &found.points, &what)?;
    if let Some(path) = &arguments.report {
        marks::put(path, MARK, &text)?;
    }
    if ratios.are_held() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the store holds more than is wanted: {ratios:?}");
    Ok(ExitCode::FAILURE)
}

fn overwrite(arguments: &Arguments, folder: &Path) -> Result<Found> {
    let (_own, endpoint) = match &arguments.endpoint {
        Some(endpoint) => (None, endpoint.clone()),
        None => {
            let s3 = S3Server::start(&folder.join("objects"), 0)?;
            let url = s3.url();
            (Some(s3), url)
        }
    };
    let prefix = own_prefix("space");
    eprintln!(
        "at {endpoint}, under {prefix}; filling {} MiB",
        arguments.size_mib
    );
    if tool::ends_with_us().is_empty() {
        eprintln!("without setpriv a server is left behind if this process is killed");
    }
    let place = Place {
        folder,
        endpoint: &endpoint,
        prefix: &prefix,
    };
    let plan = overwrites::Plan {
        size_mib: arguments.size_mib,
        bytes_per_second: arguments.mib_per_s << 20,
        lasts: Duration::from_secs(60 * arguments.minutes),
        sample_every: SAMPLE_EVERY,
        seed: arguments.seed,
    };
    overwrites::play(&place, &plan, |point| {
        let (seconds, stored) = (point.seconds, point.stored());
        eprintln!("{seconds} s: stored / live {stored:.3}");
    })
}

fn draw(arguments: &Arguments, points: &[SpacePoint], what: &str) -> Result<()> {
    let Some(path) = &arguments.plot else {
        return Ok(());
    };
    std::fs::write(path, plot(points, what)).with_context(|| format!("writing {}", path.display()))
}

/// The plot lies beside the document.
fn report(arguments: &Arguments, found: &Found, ratios: Ratios) -> String {
    let store = match arguments.endpoint {
        Some(_) => "an S3 endpoint that was given",
        None => "the S3 endpoint of the tests, in the same process",
    };
    let seconds = found.took.as_secs_f64();
    let rate = found.overwritten_bytes as f64 / seconds / f64::from(1 << 20);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let image = arguments.plot.as_ref().and_then(|path| path.file_name());
    let image = image.map_or_else(String::new, |name| {
        let name = name.to_string_lossy();
        format!("![stored over live bytes of a real run]({name})\n\n")
    });
    let verdict = if ratios.are_held() {
        "held"
    } else {
        "NOT held"
    };
    let (mean, peak) = (ratios.mean, ratios.peak);
    format!(
        "{} MiB, then {:.1} minutes of overwrites at {rate:.2} MiB/s ({} asked for): {} writes, {} trims, {} flushes; {} points, {store}; {cores} cores.\n\n\
         {image}Mean of the last two thirds: **{mean:.3}**, peak of the points: **{peak:.3}** (wanted: {MEAN_MAX}, {PEAK_MAX}): {verdict}. \
         {} pages were read back, half of them from the store alone by another node; all were what was written last.\n\n{}",
        arguments.size_mib,
        seconds / 60.0,
        arguments.mib_per_s,
        found.writes,
        found.trims,
        found.flushes,
        found.points.len(),
        found.pages_checked,
        table(&found.points, ROWS_MAX)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Arguments> {
        Ok(Arguments::try_parse_from(
            [["space"].as_slice(), words].concat(),
        )?)
    }

    #[test]
    fn settings_of_one_kind_of_run_are_not_taken_for_the_other() -> Result<()> {
        assert!(!parsed(&["--hours", "2"])?.real);
        assert_eq!(parsed(&["--real", "--minutes", "2"])?.minutes, 2);
        assert!(parsed(&["--minutes", "2"]).is_err());
        assert!(parsed(&["--real", "--hours", "2"]).is_err());
        assert!(parsed(&["--report", "x"]).is_err());
        Ok(())
    }

    #[test]
    fn a_report_says_what_was_asked_for_and_found() -> Result<()> {
        let arguments = parsed(&["--real", "--plot", "a/b.svg"])?;
        let point = SpacePoint {
            seconds: 60,
            stored_bytes: 130,
            live_bytes: 100,
            sent_bytes: 0,
            written_bytes: 100,
            collected_objects: 0,
        };
        let found = Found {
            points: vec![point],
            writes: 3,
            trims: 2,
            flushes: 1,
            took: Duration::from_secs(90),
            overwritten_bytes: 360 << 20,
            pages_checked: 8,
        };
        let text = report(&arguments, &found, Ratios::of(&found.points));
        for part in [
            "1.5 minutes",
            "4.00 MiB/s",
            "(b.svg)",
            "**1.300**",
            "NOT held",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        Ok(())
    }
}
