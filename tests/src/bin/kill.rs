//! Kill rounds against the real binary: `kill --rounds 50`.
//!
//! Half of the rounds start again on the same cache, half lose the node with its cache. Then a volume moves between two
//! nodes, is taken by force, and what the old owner held is compared. With `--endpoint` it is a store that runs already, which is held against the contract of ours first.

#![expect(clippy::print_stdout, reason = "the tally is for a person or a log")]

use std::path::Path;

use anyhow::Result;
use clap::Parser;
use glidefs_tests::endpoint::{check_contract, own_prefix};
use glidefs_tests::kill::{Load, Rounds};
use glidefs_tests::moves;
use glidefs_tests::s3::S3Server;
use glidefs_tests::server::Store;
use world::contract::Losers;

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
    /// URL of an S3 endpoint with the bucket and the keys of the tests' own one.
    #[arg(long)]
    endpoint: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let load = Load {
        seed: arguments.seed,
        answers_min: arguments.answers_min,
        answers_max: arguments.answers_max.max(arguments.answers_min),
    };
    let lost = arguments.rounds / 2;
    if let Some(endpoint) = &arguments.endpoint {
        let prefix = format!("/{}", own_prefix("contract"));
        check_contract(endpoint, &prefix, Losers::MayNotKnow)?;
        println!("the contract of the store is kept");
    }
    let folder = tempfile::tempdir()?;
    let mut rounds = rounds(&arguments, folder.path(), load, "restart")?;
    rounds.restart(arguments.rounds - lost)?;
    println!("same cache again: {:?}", rounds.tally);
    drop(rounds);
    let folder = tempfile::tempdir()?;
    let mut rounds = crate::rounds(&arguments, folder.path(), load, "loss")?;
    rounds.lose_node(lost)?;
    println!("node and cache lost: {:?}", rounds.tally);
    drop(rounds);
    let folder = tempfile::tempdir()?;
    let told = match &arguments.endpoint {
        None => {
            let s3 = S3Server::start(&folder.path().join("objects"), 0)?;
            moves::play(folder.path(), &store(&s3.url(), "moves"), arguments.seed)?
        }
        Some(endpoint) => moves::play(folder.path(), &store(endpoint, "moves"), arguments.seed)?,
    };
    println!("moved between two nodes: {told:?}");
    Ok(())
}

fn store(endpoint: &str, name: &str) -> Store {
    Store::S3 {
        endpoint: endpoint.to_owned(),
        prefix: own_prefix(name),
    }
}

fn rounds(arguments: &Arguments, folder: &Path, load: Load, name: &str) -> Result<Rounds> {
    match &arguments.endpoint {
        None => Rounds::new(folder, load),
        Some(endpoint) => Ok(Rounds::with(folder, load, store(endpoint, name))),
    }
}
