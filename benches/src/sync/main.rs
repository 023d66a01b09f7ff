//! `glidefs-bench-sync`: how fast and at what cost writes get from the cache into the store.
//!
//! Each run is a `glidefs run` of its own on an empty cache: exports are filled with stated content,
//! flushed, and then told to drain. From that order to the answer that all is published counts as
//! the time; the CPU time goes on until the process is quiet, so that the map's upkeep is in it.
//! Right behind each run a plain client puts as many objects of the same size to the same endpoint
//! at the same parallelism, and loops on one core compress, seal and hash the same content: ratios
//! to these decide. Deliberately absent: writes during the drain (the main bench has them).

mod case;
mod clock;
mod content;
mod control;
mod endpoint;
mod lean;
mod report;
mod run;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use glidefs::sync::SyncConfig;
use glidefs_tests::tool;

use case::{Case, StoreKind};
use control::{Load, Plain};
use endpoint::Endpoint;
use lean::Identity;
use report::{Report, Row, Run};
use run::{Measured, Site};

/// GlideFS's sync beside a plain client of the same store.
#[derive(Debug, Parser)]
struct Arguments {
    /// Written before each drain, by all exports together, in MiB.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Runs of each case; medians count.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long requests at idle are counted; 0: not at all.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// A glance instead of a measurement: 256 MiB, 1 run, 5 seconds.
    #[arg(long)]
    quick: bool,
    /// Every combination of settings, contents and delays, instead of one change at a time.
    #[arg(long)]
    full: bool,
    /// Only cases whose name contains this; may be given more than once.
    #[arg(long)]
    only: Vec<String>,
    /// Where caches and stores go: the disk that is used.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Be the lean endpoint.
    #[arg(long, hide = true)]
    endpoint: bool,
    #[arg(long, hide = true, requires = "key")]
    certificate: Option<PathBuf>,
    #[arg(long, hide = true)]
    key: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.endpoint {
        let pair = arguments.certificate.zip(arguments.key);
        let identity = pair.map(|(certificate, key)| Identity { certificate, key });
        return lean::serve(identity.as_ref());
    }
    if arguments.quick {
        (arguments.mib, arguments.runs, arguments.idle_seconds) = (256, 1, 5);
    }
    ensure!(arguments.runs > 0, "at least one run");
    ensure!(arguments.mib >= case::EXPORTS, "a MiB for each export");
    println!("{}", measure(&arguments)?.markdown());
    Ok(())
}

/// Cases take turns within each repetition, so that a slow minute of the machine meets all.
fn measure(arguments: &Arguments) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("glidefs-bench-sync")
        .tempdir_in(&arguments.folder)?;
    let folder = folder.path().canonicalize()?;
    let mut report = Report::new(format!(
        "{} MiB a run, medians of {}",
        arguments.mib, arguments.runs
    ))?;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for case in chosen(arguments) {
        if !endpoints.iter().any(|it| it.kind == case.store) {
            endpoints.push(Endpoint::start(case.store, &folder)?);
        }
        report.rows.push(Row {
            case,
            runs: Vec::new(),
            failures: Vec::new(),
        });
    }
    for run in 1..=arguments.runs {
        for (row, number) in report.rows.iter_mut().zip(1..) {
            let case = row.case;
            progress(&format!("{case}, run {run}"));
            let endpoint = of_kind(&endpoints, case.store);
            let prefix = format!("run-{run}-{number}");
            let site = Site {
                endpoint,
                folder: &folder,
                prefix: &prefix,
            };
            let sync = match run::measure(&case, &site, arguments.mib) {
                Ok(sync) => sync,
                // One bad minute of the disk must not cost what an hour has measured.
                Err(error) => {
                    progress(&format!("{case}, run {run}: {error:#}"));
                    row.failures.push(format!("run {run}: {error:#}"));
                    continue;
                }
            };
            let plain = plainly(&site, &sync)?;
            let computing = control::compute(&case)?;
            row.runs.push(Run {
                sync,
                plain,
                computing,
            });
        }
    }
    if arguments.idle_seconds > 0 {
        report.idle = Some(idle(&folder, arguments.idle_seconds)?);
    }
    report.finish()?;
    Ok(report)
}

fn chosen(arguments: &Arguments) -> Vec<Case> {
    let mut cases = if arguments.full {
        case::full()
    } else {
        case::short()
    };
    let wanted = arguments.only.iter();
    if wanted.len() > 0 {
        cases.retain(|case| wanted.clone().any(|only| case.to_string().contains(only)));
    }
    let has_tls = tool::path_of("openssl").is_some();
    if !has_tls {
        progress("without openssl there is no endpoint behind TLS");
    }
    cases.retain(|case| has_tls || case.store != StoreKind::LeanTls);
    cases
}

fn of_kind(endpoints: &[Endpoint], kind: StoreKind) -> &Endpoint {
    let mut endpoints = endpoints.iter();
    let found = endpoints.find(|it| it.kind == kind);
    found.expect("every case's endpoint was started")
}

/// As many objects of the same size, at most as many at a time.
fn plainly(site: &Site<'_>, sync: &Measured) -> Result<Plain> {
    site.endpoint.forget(site.prefix)?;
    let each = sync.stored_bytes / sync.segments.max(1);
    let load = Load {
        objects: sync.segments,
        object_bytes: usize::try_from(each)?,
        // One export may have all turns.
        parallel: SyncConfig::default().uploads_total_max,
    };
    let prefix = format!("{}-plain", site.prefix);
    let plain = control::put_plainly(site.endpoint, &prefix, load);
    site.endpoint.forget(&prefix)?;
    plain.with_context(|| format!("plain PUTs: {load:?}"))
}

fn idle(folder: &std::path::Path, seconds: u64) -> Result<(Case, run::Idle)> {
    let case = Case {
        store: StoreKind::S3,
        exports: case::EXPORTS,
        ..case::BASE
    };
    progress("idle");
    let endpoint = Endpoint::start(case.store, &folder.join("idle"))?;
    let site = Site {
        endpoint: &endpoint,
        folder,
        prefix: "idle",
    };
    Ok((case, run::idle(&case, &site, seconds)?))
}

#[expect(
    clippy::print_stderr,
    reason = "minutes pass; the table goes to stdout"
)]
fn progress(what: &str) {
    eprintln!("{what}");
}
