//! The binary: hands arguments and environment to the library, which reads neither by itself.

use std::ffi::OsString;
use std::process::ExitCode;

use glidefs::cli::Hangups;
use glidefs::config::Environment;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Before all that takes time: a reload that is asked for during a start must not end the server.
    let hangups = Hangups::of(&arguments);
    // A variable that is no text cannot be meant for us.
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    glidefs::cli::run(arguments, &environment, hangups)
}
