//! Attacks every kind of object in the store and prints what came of it:
//! `cargo run --release -p glidefs-tests --bin corrupt -- --cases 20000`. Exit code 0: all were detected
//! and named, and nothing else was ever served.

#![expect(clippy::print_stdout, reason = "the table is for a person or a log")]

use anyhow::Result;
use clap::Parser;
use glidefs_tests::corrupt;

/// Flips, cuts, swaps and rolls back objects of every kind, sealed and plain.
#[derive(Debug, Parser)]
struct Arguments {
    /// Draw so many cases (a few do not exist for the object drawn, and are not counted).
    #[arg(long, default_value_t = 20_000)]
    cases: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("{}", corrupt::run(arguments.seed, arguments.cases)?);
    Ok(())
}
