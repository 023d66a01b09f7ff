//! Every fault of the store on real processes: `faults` prints the table of docs/faults.md, `--report` writes it.
//! `--outages 60,600` does the long ones instead.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "progress and the table are for a person or a log"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use glidefs_tests::faults::{Case, Measured, cases, outages, play, table};

/// What a bad store does, seen from the client and from the operator.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Outages of so many seconds each, instead of the single faults.
    #[arg(long, value_delimiter = ',')]
    outages: Vec<u64>,
    /// Put the table into this file, between the marks of its kind.
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (kind, mut all) = if arguments.outages.is_empty() {
        ("faults", cases())
    } else {
        ("outages", outages(&arguments.outages))
    };
    if let Some(only) = &arguments.only {
        all.retain(|case| case.name.contains(only.as_str()));
        ensure!(
            !all.is_empty(),
            "--only {only}: no case has this in its name"
        );
    }
    let rows: Vec<Measured> = all.into_iter().map(measured).collect();
    let text = table(&rows);
    println!("{text}");
    if let Some(path) = &arguments.report {
        put_between(path, kind, &text)?;
    }
    let failed = rows.iter().filter(|row| row.outcome.is_err()).count();
    eprintln!("{} cases, {failed} failed", rows.len());
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measured(case: Case) -> Measured {
    eprintln!("{} for {} s", case.name, case.lasts.as_secs());
    let outcome = play(&case).map_err(|error| {
        eprintln!("FAILED {}: {error:?}", case.name);
        error.root_cause().to_string()
    });
    Measured { case, outcome }
}

/// Replaces what lies between `<!-- kind -->` and `<!-- end of kind -->`.
#[expect(clippy::disallowed_methods, reason = "the report is a real file")]
fn put_between(path: &Path, kind: &str, table: &str) -> Result<()> {
    let old =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (begin, end) = (
        format!("<!-- {kind} -->"),
        format!("<!-- end of {kind} -->"),
    );
    let missing = || format!("{} has no line {begin} or {end}", path.display());
    let (head, rest) = old.split_once(&begin).with_context(missing)?;
    let (_, tail) = rest.split_once(&end).with_context(missing)?;
    let new = format!("{head}{begin}\n\n{table}\n{end}{tail}");
    std::fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}
