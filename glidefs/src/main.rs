//! The binary: hands arguments and environment to the library, which reads neither by itself.

use std::process::ExitCode;

use glidefs::config::Environment;

fn main() -> ExitCode {
    // A variable that is no text cannot be meant for us.
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    glidefs::cli::run(std::env::args_os(), &environment)
}
