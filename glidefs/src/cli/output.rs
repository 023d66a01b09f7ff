//! The one place that prints.
#![expect(
    clippy::print_stderr,
    reason = "the command line talks to people and pipes"
)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

/// A result, to standard output. A closed pipe (`| head`) is no error.
pub(crate) fn line(text: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{}", text.as_ref()).is_err() {
        // Whoever read has seen enough.
    }
}

/// A result for programs, to standard output.
pub(crate) fn json(value: &impl Serialize) {
    line(serde_json::to_string_pretty(value).expect("our documents are JSON"));
}

/// Something for people beside the result, to standard error.
pub(crate) fn notice(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// A question to whoever sits at the terminal, whose answer stands on the same line.
pub(crate) fn question(text: &str) {
    eprint!("{text}");
}

/// Why a command failed, to standard error.
pub(crate) fn failure(message: &str) {
    eprintln!("glidefs: {message}");
}

/// clap's own help, version and usage errors; usage errors end with 2.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if error.print().is_err() {
        // Nobody reads.
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Whether a person watches standard error.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}
