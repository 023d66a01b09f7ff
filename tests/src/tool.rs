//! Other people's programs: the real clients. A tool that is not installed may be skipped at a
//! desk; where the environment says `CI`, it must be there.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::server::wait_until;
use crate::site::text;

/// This machine cannot play something, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be played here: {0}")]
pub struct NotHere(pub String);

/// Whether all tools are there. False means: skip the test, and say so.
///
/// # Panics
/// In CI, where a missing tool would be a test that silently tests nothing.
#[expect(
    clippy::print_stderr,
    reason = "a skipped test says so where the person who runs it looks"
)]
pub fn are_here(tools: &[&str]) -> bool {
    let missing: Vec<&&str> = tools.iter().filter(|tool| !is_here(tool)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{missing:?} must be installed in CI; .ci/run does it"
    );
    eprintln!("skipped: {missing:?} not installed");
    false
}

fn is_here(tool: &str) -> bool {
    path_of(tool).is_some()
}

/// Where a tool is, by its name or path.
pub fn path_of(tool: &str) -> Option<PathBuf> {
    if tool.starts_with('/') {
        return Some(PathBuf::from(tool)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps mkfs and losetup where an ordinary PATH does not look.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut candidates = folders.map(|folder| folder.join(tool));
    candidates.find(|path| path.is_file())
}

/// For what is no test and goes on without it, if it says so.
pub fn must_be_here(tool: &str) -> Result<(), NotHere> {
    if is_here(tool) {
        Ok(())
    } else {
        Err(NotHere(format!("{tool} is not installed")))
    }
}

/// Words that, before those of a program, make it end with this process, whatever ends that: in a release build a panic
/// cleans nothing up. None where the machine cannot do it.
pub fn ends_with_us() -> Vec<String> {
    match path_of("setpriv") {
        Some(setpriv) => {
            let words = [text(&setpriv), "--pdeathsig", "KILL", "--"];
            words.map(str::to_owned).to_vec()
        }
        None => Vec::new(),
    }
}

/// Runs a tool to its end and returns what it said on stdout; an exit code is an error.
pub fn run(tool: &str, arguments: &[&str]) -> Result<String> {
    let output = output(tool, arguments)?;
    ensure!(
        output.status.success(),
        "{tool} {arguments:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a tool to its end, however it ends.
pub fn output(tool: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = command(tool, arguments);
    command.output().with_context(|| format!("running {tool}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "running other programs is what this file is for"
)]
fn command(tool: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A tool that is spoken with, line by line. Dropping it kills it, by its id.
#[derive(Debug)]
pub struct Talk {
    child: std::process::Child,
    says: std::io::BufReader<std::process::ChildStdout>,
    tool: String,
}

impl Talk {
    pub fn start(tool: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = command(tool, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {tool}"))?;
        let says = child.stdout.take().context("its output is a pipe")?;
        Ok(Self {
            child,
            says: std::io::BufReader::new(says),
            tool: tool.to_owned(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to go on.
    pub fn go_on(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its input is a pipe")?;
        stdin.write_all(b"\n")?;
        Ok(stdin.flush()?)
    }

    /// The next line that it says.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} ended early", self.tool);
        Ok(line.trim().to_owned())
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}", self.tool);
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A tool that runs until it is told to stop. Dropping it tells it, then kills it by its id.
#[derive(Debug)]
pub struct Background {
    child: std::process::Child,
    /// What makes it stop by itself.
    goodbye: Vec<String>,
}

impl Background {
    pub fn start(tool: &str, arguments: &[&str], goodbye: &[&str]) -> Result<Self> {
        let child = command(tool, arguments).spawn();
        Ok(Self {
            child: child.with_context(|| format!("starting {tool}"))?,
            goodbye: goodbye.iter().map(|&word| word.to_owned()).collect(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some((tool, arguments)) = self.goodbye.split_first() {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            output(tool, &arguments).ok();
            let patience = std::time::Duration::from_secs(10);
            wait_until(patience, || {
                !self.child.try_wait().is_ok_and(|it| it.is_none())
            });
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
