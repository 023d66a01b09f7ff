//! `glidefs run`: to come.

use std::process::ExitCode;

use crate::cli::Failure;
use crate::config::Config;

pub(crate) fn run(config: Config) -> Result<ExitCode, Failure> {
    let _ = config;
    Err(Failure::refused("not wired yet"))
}

pub(crate) fn probe(config: &Config) -> Result<String, String> {
    Ok(format!("{} (not asked)", config.storage.url))
}
