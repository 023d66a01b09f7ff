//! Every fault of the store on real processes: `faults` prints the table of docs/faults.md, `--report` writes it.
//! `--outages 60,600` does the long ones instead, and `--all` both: with it, one command makes all of that page
//! that was measured.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and the table are for a person or a log"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use glidefs_tests::faults::{Case, Measured, Outcome, cases, outages, play, table};
use glidefs_tests::load::now;
use glidefs_tests::marks;
use glidefs_tests::tool::NotHere;

/// Seconds of the outages that `--all` plays.
const OUTAGES: [u64; 2] = [60, 600];

/// What a bad store does, seen from the client and from the operator.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose name contains this.
    #[arg(long, conflicts_with = "report")]
    only: Option<String>,
    /// Outages of so many seconds each, instead of the single faults.
    #[arg(long, value_delimiter = ',')]
    outages: Vec<u64>,
    /// The single faults, and outages: of 60 and 600 seconds, or as `--outages` says.
    #[arg(long)]
    all: bool,
    /// Put each table into this file, between the marks of its kind.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// What one table is about, by the marks around it.
type Kind = (&'static str, Vec<Case>);

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.report {
        // Before half an hour has gone by.
        for (kind, _) in kinds(&arguments)? {
            marks::check(path, kind)?;
        }
    }
    let (mut played, mut bad) = (0, 0);
    for (kind, cases) in kinds(&arguments)? {
        let began = now();
        let rows: Vec<Measured> = cases.into_iter().map(measured).collect();
        let cores = std::thread::available_parallelism()?;
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let text = format!(
            "{}\n{} cases, {minutes:.1} minutes, {cores} cores.\n",
            table(&rows),
            rows.len()
        );
        println!("{text}");
        if let Some(path) = &arguments.report {
            marks::put(path, kind, &text)?;
        }
        played += rows.len();
        bad += rows.iter().filter(|row| !is_good(row)).count();
    }
    eprintln!("{played} cases, {bad} failed or not played");
    Ok(if bad == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn kinds(arguments: &Arguments) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    if arguments.all || arguments.outages.is_empty() {
        kinds.push(("faults", cases()));
    }
    if !arguments.outages.is_empty() {
        kinds.push(("outages", outages(&arguments.outages)));
    } else if arguments.all {
        kinds.push(("outages", outages(&OUTAGES)));
    }
    if let Some(only) = &arguments.only {
        for (_, cases) in &mut kinds {
            cases.retain(|case| case.name.contains(only.as_str()));
        }
        kinds.retain(|(_, cases)| !cases.is_empty());
        ensure!(
            !kinds.is_empty(),
            "--only {only}: no case has this in its name"
        );
    }
    Ok(kinds)
}

fn is_good(row: &Measured) -> bool {
    matches!(row.outcome, Outcome::Seen(_))
}

fn measured(case: Case) -> Measured {
    eprintln!("{} for {} s", case.name, case.lasts.as_secs());
    let outcome = match play(&case) {
        Ok(seen) => Outcome::Seen(Box::new(seen)),
        Err(error) => match error.downcast_ref::<NotHere>() {
            Some(NotHere(why)) => {
                eprintln!("NOT PLAYED {}: {why}", case.name);
                Outcome::NotPlayed(why.clone())
            }
            None => {
                eprintln!("FAILED {}: {error:?}", case.name);
                Outcome::Failed(error.root_cause().to_string())
            }
        },
    };
    Measured { case, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_plays_both_tables() -> Result<()> {
        let named = |words: &[&str]| -> Result<Vec<(&'static str, usize)>> {
            let words = [["faults"].as_slice(), words].concat();
            let kinds = kinds(&Arguments::try_parse_from(words)?)?;
            let counted = kinds.into_iter().map(|(kind, cases)| (kind, cases.len()));
            Ok(counted.collect())
        };
        let (single, long) = (cases().len(), outages(&OUTAGES).len());
        assert_eq!(named(&[])?, [("faults", single)]);
        assert_eq!(named(&["--outages", "60,600"])?, [("outages", long)]);
        assert_eq!(named(&["--all"])?, [("faults", single), ("outages", long)]);
        let short = outages(&[60]).len();
        assert_eq!(
            named(&["--all", "--outages", "60"])?,
            [("faults", single), ("outages", short)]
        );
        // A part must not take the place of the whole.
        assert!(named(&["--only", "outage", "--report", "x"]).is_err());
        Ok(())
    }
}
