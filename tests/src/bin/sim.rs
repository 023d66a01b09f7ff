//! The simulation: `cargo sim --seeds 1000`, and `cargo sim --seed N` to see one again.
//!
//! Without `--scenario` the seed also decides which one it is.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the tally and the trace are for a person or a log"
)]

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use glidefs_tests::sim::{Failed, Plant, Run, Scenario};

/// Lines of the trace that one replayed seed prints.
const REPLAY_LINES: usize = 60_000;
/// Seeds between two lines of progress.
const PROGRESS: u64 = 500;

/// The whole system under one seed: crashes, a bad store, lost nodes, and a judge.
#[derive(Debug, Parser)]
struct Arguments {
    /// Replay this seed and print the tail of its trace.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Run so many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// crash, evict, loss, takeover, copies, answers, damage, fsync, age, weather, snapshots, migrate, livefork or group.
    #[arg(long)]
    scenario: Option<String>,
    /// Break a rule on purpose, by the name that `Plant::name` in tests/src/sim.rs gives it
    /// (needs `--features planted`).
    #[arg(long)]
    plant: Option<String>,
    /// Lines of the trace to print with `--seed`.
    #[arg(long, default_value_t = 200)]
    lines: usize,
    /// Print the server's own log as well.
    #[arg(long)]
    log: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.log {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .init();
    }
    let scenario = match &arguments.scenario {
        None => None,
        Some(name) => Some(Scenario::named(name).with_context(|| format!("no scenario `{name}`"))?),
    };
    let plant = match &arguments.plant {
        None => None,
        Some(_) if cfg!(not(feature = "planted")) => bail!("build with `--features planted`"),
        Some(name) => Some(Plant::named(name).with_context(|| format!("no plant `{name}`"))?),
    };
    let run = |seed| Run {
        scenario: scenario.unwrap_or_else(|| Scenario::of_seed(seed)),
        seed,
        plant,
    };
    Ok(match arguments.seed {
        Some(seed) => replay(run(seed), arguments.lines.min(REPLAY_LINES)),
        None => many(&arguments, run),
    })
}

fn replay(run: Run, lines: usize) -> ExitCode {
    match run.perform(lines) {
        Ok(passed) => {
            println!("{}", passed.trace);
            println!(
                "{} seed {} passed: {} steps, {} answers, trace {:016x}",
                run.scenario, run.seed, passed.steps, passed.answers, passed.trace_hash
            );
            ExitCode::SUCCESS
        }
        Err(failed) => {
            println!("{}", failed.trace);
            println!("FAILED: {failed}");
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments, run: impl Fn(u64) -> Run) -> ExitCode {
    // Panics are reported as failures, with the seed.
    std::panic::set_hook(Box::new(|_| {}));
    let mut passed: BTreeMap<Scenario, (u64, u64)> = BTreeMap::new();
    let mut failures: Vec<Box<Failed>> = Vec::new();
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let run = run(seed);
        match run.perform(0) {
            Ok(one) => {
                let tally = passed.entry(run.scenario).or_default();
                *tally = (tally.0 + 1, tally.1 + one.answers);
            }
            Err(failed) => {
                let plant = run
                    .plant
                    .map_or_else(String::new, |p| format!(" --plant {}", p.name()));
                println!(
                    "FAILED: {failed}\n  cargo sim --scenario {}{plant} --seed {seed}",
                    run.scenario
                );
                failures.push(failed);
                if !arguments.keep_going {
                    break;
                }
            }
        }
        if (seed + 1 - arguments.from).is_multiple_of(PROGRESS) {
            eprintln!("{} seeds", seed + 1 - arguments.from);
        }
    }
    for (scenario, (runs, answers)) in &passed {
        println!("{scenario}: {runs} passed, {answers} answers judged");
    }
    let all: u64 = passed.values().map(|(runs, _)| runs).sum();
    println!("{all} passed, {} failed", failures.len());
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
