//! Finding the configuration, and writing the first one.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Failure, output};
use crate::config::{Config, Environment, FILE_NAME, TEMPLATE};

/// The file named; else `./glidefs.toml`; else the embedded default. Says which on standard error
/// where it was not named.
pub(super) fn load(named: Option<&Path>, environment: &Environment) -> Result<Config, Failure> {
    if place(named).is_none() {
        output::notice(format!(
            "No {FILE_NAME} here: using the embedded default, with all data in {}. \
             `glidefs init` writes a file to begin with.",
            working_dir()?.join(crate::config::EMBEDDED_DIR).display()
        ));
    } else if named.is_none() {
        output::notice(format!("Using ./{FILE_NAME}."));
    }
    load_quietly(named, environment)
}

/// The same without a word: what a start would use now. May block, and never touches what is in use.
pub(crate) fn load_quietly(
    named: Option<&Path>,
    environment: &Environment,
) -> Result<Config, Failure> {
    let Some(path) = place(named) else {
        return Ok(Config::embedded(&working_dir()?, environment));
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::unusable(format!(
            "cannot read the configuration {}: {error}; `glidefs init --path {}` writes one",
            path.display(),
            path.display()
        ))
    })?;
    Config::parse(&path.display().to_string(), &text, environment)
        .map_err(|error| Failure::unusable(format!("wrong configuration\n{error}")))
}

/// Where the configuration is; none: there is no file, and none was named.
fn place(named: Option<&Path>) -> Option<&Path> {
    let here = Path::new(FILE_NAME);
    named.or_else(|| here.exists().then_some(here))
}

/// Writes the commented template to a path where nothing is.
pub(super) fn init(path: &Path) -> Result<ExitCode, Failure> {
    match write_new(path) {
        Ok(()) => {
            output::line(format!(
                "Wrote {}. Start the server with: glidefs run -c {}",
                path.display(),
                path.display()
            ));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::refused(format!(
            "{} exists and is left alone; choose another with --path",
            path.display()
        ))),
        Err(error) => Err(Failure::refused(format!(
            "cannot write {}: {error}",
            path.display()
        ))),
    }
}

/// Passwords will be written into it: readable by its owner alone.
fn write_new(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(TEMPLATE.as_bytes())?;
    file.sync_all()
}

fn working_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| {
        Failure::unusable(format!("the working directory cannot be used: {error}"))
    })
}
