//! Space in the store over hours of random overwrites: `cargo space`. Prints a table, and writes the plot of
//! `docs/space.md` if asked to.

#![expect(clippy::print_stdout, reason = "the table is for a person or a log")]
#![expect(
    clippy::disallowed_methods,
    reason = "a tool that writes the file that it was told to write"
)]

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use glidefs_tests::sim::{SpacePoint, SpaceRun};

/// One volume, overwritten at random, in simulation.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pages of 4 KiB of the volume.
    #[arg(long, default_value_t = 65_536)]
    pages: u64,
    #[arg(long, default_value_t = 40)]
    writes_per_second: u64,
    /// Of simulated time.
    #[arg(long, default_value_t = 8)]
    hours: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the plot, an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let run = SpaceRun {
        pages: arguments.pages,
        writes_per_second: arguments.writes_per_second,
        hours: arguments.hours,
        seed: arguments.seed,
    };
    let points = run.perform()?;
    println!("| minutes | written / live | stored / live | sent / written | deleted objects |");
    println!("|---:|---:|---:|---:|---:|");
    for point in &points {
        println!(
            "| {} | {:.2} | {:.3} | {:.2} | {} |",
            point.minutes,
            ratio(point.written_bytes, point.live_bytes),
            stored(point),
            ratio(point.sent_bytes, point.written_bytes),
            point.collected_objects
        );
    }
    let peak = points.iter().map(stored).fold(0.0, f64::max);
    let steady = &points[points.len() / 3..];
    let mean = steady.iter().map(stored).sum::<f64>() / count(steady.len());
    println!("\nmean of the last two thirds: {mean:.3}, peak: {peak:.3}");
    if let Some(path) = arguments.plot {
        std::fs::write(&path, plot(&points)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn stored(point: &SpacePoint) -> f64 {
    ratio(point.stored_bytes, point.live_bytes)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn count(len: usize) -> f64 {
    len as f64
}

/// Stored over live, from 1.0 to 1.5, over time; lines at 1.25 and 1.5.
fn plot(points: &[SpacePoint]) -> String {
    const WIDTH: f64 = 800.0;
    const HEIGHT: f64 = 300.0;
    let last = points.last().map_or(1, |point| point.minutes.max(1));
    let x = |minutes: u64| 50.0 + WIDTH * ratio(minutes, last);
    let y = |value: f64| 20.0 + HEIGHT * (1.5 - value.clamp(1.0, 1.5)) / 0.5;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"880\" height=\"360\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"880\" height=\"360\" fill=\"white\"/>\n",
    );
    for value in [1.0, 1.125, 1.25, 1.375, 1.5] {
        let (at, colour) = (y(value), if value == 1.25 { "#c00" } else { "#ccc" });
        svg += &format!(
            "<line x1=\"50\" x2=\"850\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"{colour}\"/><text x=\"8\" y=\"{:.1}\">{value:.3}</text>\n",
            at + 4.0
        );
    }
    let line: Vec<String> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.minutes), y(stored(point))))
        .collect();
    svg += &format!(
        "<polyline fill=\"none\" stroke=\"#06c\" stroke-width=\"2\" points=\"{}\"/>\n",
        line.join(" ")
    );
    svg += &format!(
        "<text x=\"50\" y=\"345\">stored over live bytes, 0 to {} hours of simulated time</text>\n</svg>\n",
        last / 60
    );
    svg
}
