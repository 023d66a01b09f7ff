//! Kill rounds against the real binary: `kill --rounds 50`.
//!
//! Half of the rounds start again on the same cache, half lose the node with its cache.

#![expect(clippy::print_stdout, reason = "the tally is for a person or a log")]

use anyhow::Result;
use clap::Parser;
use glidefs_tests::kill::{Load, Rounds};

/// kill -9 under load, and a check of every page.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds in all.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Answers before a kill, at least.
    #[arg(long, default_value_t = 200)]
    answers_min: u64,
    /// Answers before a kill, at most.
    #[arg(long, default_value_t = 20_000)]
    answers_max: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let load = Load {
        seed: arguments.seed,
        answers_min: arguments.answers_min,
        answers_max: arguments.answers_max.max(arguments.answers_min),
    };
    let lost = arguments.rounds / 2;
    let folder = tempfile::tempdir()?;
    let mut rounds = Rounds::new(folder.path(), load)?;
    rounds.restart(arguments.rounds - lost)?;
    println!("same cache again: {:?}", rounds.tally);
    drop(rounds);
    let folder = tempfile::tempdir()?;
    let mut rounds = Rounds::new(folder.path(), load)?;
    rounds.lose_node(lost)?;
    println!("node and cache lost: {:?}", rounds.tally);
    Ok(())
}
