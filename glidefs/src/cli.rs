//! The command line: arguments in, an exit code out.
//!
//! | code | means |
//! |---|---|
//! | 0 | done; for `status`: safe to stop; for `check`: all is well |
//! | 1 | the answer is no: not safe to stop, a check failed, the server refused or failed |
//! | 2 | nothing was tried: wrong usage, wrong configuration, a port that is taken, server not reachable |
//! | 130, 143 | `run` was told twice to stop (by SIGINT, SIGTERM) and stopped at once |
//!
//! Everything is printed by `output`; logs go to standard error, results to standard output.

mod check;
mod client;
mod export;
mod fork;
mod gc;
mod group;
mod key;
mod operation;
pub(crate) mod output;
mod process;
mod salvage;
mod secret;
mod setup;
mod snapshot;
mod status;
mod text;
mod top;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Environment, FILE_NAME};
pub use process::Hangups;
pub(crate) use secret::read as read_secret;
pub(crate) use setup::load_quietly;
pub(crate) use text::{bytes_text, duration_text};

const EXIT_CODES: &str = "\
Exit codes:
  0    done (status: safe to stop; check: all is well)
  1    the answer is no (status: not safe to stop; check: a check failed; the server refused)
  2    nothing was tried: wrong usage, wrong configuration, a port that is taken, or the server
       cannot be reached
  130  `run` got a second SIGINT and stopped at once
  143  `run` got a second SIGTERM and stopped at once";

/// Block devices on S3: an NBD server with a local write-back cache.
#[derive(Debug, Parser)]
#[command(name = "glidefs", version, about, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve exports until a signal; the first SIGTERM or SIGINT drains and gives the exports up, the
    /// second stops at once
    Run(ConfigArgument),
    /// Write a configuration file with every key explained
    Init {
        /// Where to write it; an existing file is left alone
        #[arg(long, value_name = "FILE", default_value = FILE_NAME)]
        path: PathBuf,
    },
    /// Check configuration, cache folder, addresses and object store; begins and changes nothing
    Check {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Is it safe to stop this server, or is there data that the store does not have?
    Status {
        #[command(flatten)]
        remote: Remote,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show live what the exports of a running server do: states, rates, latencies, errors, dirty data, sync lag
    Top {
        #[command(flatten)]
        remote: Remote,
        /// Milliseconds between two looks
        #[arg(long, value_name = "MS", default_value_t = 1000)]
        interval_ms: u64,
        /// Print one table of one interval and end
        #[arg(long)]
        once: bool,
        /// Print one document of one interval as JSON and end
        #[arg(long)]
        json: bool,
    },
    /// Look at and change the exports of a running server
    Export {
        #[command(subcommand)]
        command: ExportCommand,
    },
    /// Take, list and delete snapshots: exact states of an export, read-only, that cost next to nothing
    Snapshot {
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Make a new export that begins as another one, or as a snapshot of it (EXPORT@SNAPSHOT), and copies nothing
    Fork(ForkArguments),
    /// Make groups of exports whose writes keep their order among each other (a database's log and data disks), and look at,
    /// snapshot, restore, fork and end them as one
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Look at and save what a server's log still holds of exports that another node has taken
    Salvage {
        #[command(subcommand)]
        command: SalvageCommand,
    },
    /// Give space in the store back at once, or show how much that would be; what is worth it happens by itself
    Gc {
        #[command(subcommand)]
        command: GcCommand,
    },
    /// Look at and change the passwords that open the prefix in the store, and the data keys of exports; needs no
    /// running server
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Print a script that completes arguments in a shell
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
struct ConfigArgument {
    /// The configuration; without it ./glidefs.toml if there is one, else an embedded default that
    /// keeps everything in ./glidefs-data
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Remote {
    /// Where the server's API is
    #[arg(
        long,
        value_name = "URL",
        env = "GLIDEFS_API",
        default_value = "http://127.0.0.1:8080"
    )]
    api: String,
    /// The API's token (`servers.api.token`); better in the environment than on the command line
    #[arg(
        long,
        value_name = "TOKEN",
        env = "GLIDEFS_API_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ExportCommand {
    /// List exports that the server has open or holds data of
    List {
        #[command(flatten)]
        remote: Remote,
        /// Also those that are only in the store
        #[arg(long)]
        all: bool,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one export
    Get(Named),
    /// Upload everything written so far; returns when it is in the store
    Drain(Named),
    /// Drain, give up ownership and forget locally; the data stays in the store, unless it is purged
    Delete {
        #[command(flatten)]
        named: Named,
        /// Drop unpublished writes that can never be published
        #[arg(long)]
        accept_loss: bool,
        /// Delete the volume and its snapshots in the store, for good; forks of it stay whole
        #[arg(long)]
        purge: bool,
        /// Return at once; `glidefs gc show` tells how far it is
        #[arg(long, requires = "purge")]
        no_wait: bool,
        /// Repeated with the same text, the purge is the same one
        #[arg(long, requires = "purge")]
        request_id: Option<String>,
        /// Only if the export is this volume (`volume` in `export get --json`), and not a later one of its name
        #[arg(long, requires = "purge", value_name = "ID")]
        volume: Option<String>,
    },
    /// Show the forks that were made of an export, and those of them, as a tree
    Forks {
        #[command(flatten)]
        of: Of,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on without unpublished writes that are missing from the cache (`damage` in `export get`)
    AcceptLoss {
        #[command(flatten)]
        named: Named,
        /// The last write that is left, as `export get` tells: those after it are lost
        #[arg(long, value_name = "SEQ")]
        kept_seq: u64,
    },
    /// Open an export that another node owns for a promotion to come: clients may connect, and their writes wait for it
    Prepare {
        #[command(flatten)]
        named: Named,
        /// Bring at most so many bytes into the cache, what was written last first: 256 MiB if nothing is said, 0 for none
        #[arg(long, value_name = "BYTES")]
        warm_bytes: Option<u64>,
    },
    /// Make a read-only export read-write: take its ownership
    Promote {
        #[command(flatten)]
        named: Named,
        /// Take it although its owner has not given it up; what that owner did not publish is lost
        #[arg(long, requires = "expected_epoch")]
        force: bool,
        /// The epoch that you have seen; the promotion fails if it has changed
        #[arg(long, value_name = "EPOCH")]
        expected_epoch: Option<u64>,
        /// Fail if the volume's root has a lower epoch: it was rolled back
        #[arg(long, value_name = "EPOCH")]
        min_epoch: Option<u64>,
        /// Fail if the volume's root holds less than this write: it was rolled back
        #[arg(long, value_name = "SEQ")]
        min_seq: Option<u64>,
    },
    /// Make an export larger; clients see it when they connect again
    Grow {
        #[command(flatten)]
        named: Named,
        /// The new size in GiB (2^30 bytes)
        #[arg(value_name = "SIZE_GB")]
        size_gb: f64,
    },
    /// Create an export
    Create {
        #[command(flatten)]
        named: Named,
        /// The size in GiB (2^30 bytes)
        #[arg(value_name = "SIZE_GB")]
        size_gb: f64,
    },
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// List the snapshots of an export, oldest first
    List {
        #[command(flatten)]
        of: Of,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a snapshot; returns when it is in the store. Clients may go on writing meanwhile
    Take {
        #[command(flatten)]
        of: Of,
        /// Its name; without it, the date
        name: Option<String>,
        /// Any text: asked again with the same one, no second snapshot is taken
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one snapshot
    Get {
        #[command(flatten)]
        of: Of,
        /// Its name
        name: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the export what it was, while no client is connected; what it was until now is kept as a snapshot
    Restore {
        #[command(flatten)]
        of: Of,
        /// The snapshot to restore
        name: String,
        /// The name under which the state until now is kept; without it, `before-` and the date
        #[arg(long, value_name = "NAME")]
        before: Option<String>,
        /// Any text: asked again with the same one, it is not restored a second time
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete the snapshots that are too many or too old; with both options, those that are both
    #[command(group(clap::ArgGroup::new("which").required(true).multiple(true)))]
    Prune {
        #[command(flatten)]
        of: Of,
        /// So many of the newest stay
        #[arg(long, value_name = "COUNT", group = "which")]
        keep: Option<usize>,
        /// Younger ones stay
        #[arg(long, value_name = "SECONDS", group = "which")]
        older_than_s: Option<u64>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a snapshot; the export and its other snapshots stay as they are
    Delete {
        #[command(flatten)]
        of: Of,
        /// Its name
        name: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// Make a group of 2 to 16 exports that no client is connected to; they are drained and given up for that
    Make {
        #[command(flatten)]
        group: OfGroup,
        /// Its members
        #[arg(required = true, num_args = 2..=16)]
        members: Vec<String>,
        /// Return at once; `glidefs gc show` tells how far it is
        #[arg(long)]
        no_wait: bool,
        /// Any text: asked again with the same one, it is the same group
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Show a group and its members
    Show {
        #[command(flatten)]
        group: OfGroup,
    },
    /// List the groups in the store
    List {
        #[command(flatten)]
        remote: Remote,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a snapshot of all members, at one moment; without a name it gets the date. Clients may go on writing meanwhile
    Snapshot {
        #[command(flatten)]
        group: OfGroup,
        /// Its name
        #[arg(conflicts_with = "list")]
        name: Option<String>,
        /// Take none, and list those that all members have, oldest first
        #[arg(long, conflicts_with = "request_id")]
        list: bool,
        /// Any text: asked again with the same one, no second snapshot is taken
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Make all members what they were, while no client is connected; what they were until now is kept as a snapshot
    Restore {
        #[command(flatten)]
        group: OfGroup,
        /// The snapshot to restore
        name: String,
        /// The name under which the state until now is kept; without it, `before-` and the date
        #[arg(long, value_name = "NAME")]
        before: Option<String>,
        /// Return at once; `glidefs gc show` tells how far it is
        #[arg(long)]
        no_wait: bool,
        /// Any text: asked again with the same one, it is not restored a second time
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Make a new group that begins as this one, or as a snapshot of it (GROUP@SNAPSHOT), and copies nothing
    Fork {
        #[command(flatten)]
        group: OfGroup,
        /// The new group
        name: String,
        /// For each member, its name and that of its fork
        #[arg(required = true, num_args = 2..=16, value_name = "MEMBER=FORK")]
        members: Vec<String>,
        /// Any text: asked again with the same one, no second fork is made and none is in the way
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// Make exports of its members that are in no group, while no client is connected
    End {
        #[command(flatten)]
        group: OfGroup,
        /// Return at once; `glidefs gc show` tells how far it is
        #[arg(long)]
        no_wait: bool,
        /// Any text: asked again with the same one, it is the same operation
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
}

/// A group at a server.
#[derive(Debug, Args)]
struct OfGroup {
    /// The group: its name, or its id once it is there
    group: String,
    #[command(flatten)]
    remote: Remote,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum GcCommand {
    /// Merge the map, move what is left of segments that are mostly dead, delete what nobody needs
    Run {
        /// The export; without it, all that the server has open for writing
        export: Option<String>,
        #[command(flatten)]
        remote: Remote,
        /// Change nothing, and tell what would be deleted
        #[arg(long)]
        dry_run: bool,
        /// Copy what the export shares with those that it was forked from, so that it needs them no more
        #[arg(long, requires = "export", conflicts_with = "dry_run")]
        flatten: bool,
        /// Return at once, with the id of the operation
        #[arg(long)]
        no_wait: bool,
        /// Any text: asked again with the same one, it is the same operation
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how far an operation is, and what it did
    Show {
        /// The operation's id, as `run` and `list` tell
        id: String,
        #[command(flatten)]
        remote: Remote,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the operations of this server, oldest first
    List {
        #[command(flatten)]
        remote: Remote,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum SalvageCommand {
    /// List volumes of which the log holds answered writes that nobody will publish
    List {
        #[command(flatten)]
        remote: Remote,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show which bytes of a volume they are
    Show {
        #[command(flatten)]
        remote: Remote,
        /// The volume's id, as `list` tells
        id: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write them into a new file, an image of the volume with zeros elsewhere, and which they are into FILE.json
    Export {
        #[command(flatten)]
        remote: Remote,
        /// The volume's id, as `list` tells
        id: String,
        /// The image; nothing may be there
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct ForkArguments {
    #[command(flatten)]
    of: Of,
    /// The new export
    name: String,
    /// Any text: asked again with the same one, no second fork is made and none is in the way
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Return as soon as the server has it, before it is in the store (experimental)
    #[arg(long)]
    live: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// An export at a server.
#[derive(Debug, Args)]
struct Of {
    #[command(flatten)]
    remote: Remote,
    /// The export
    export: String,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the password slots, and which of them the configuration's password opens
    List {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a slot for another password, to stay (an escrow, one per site); the present ones stay valid, and
    /// a rotation does not touch it
    Add(NewSlot),
    /// Remove a slot: its password opens nothing any more. Running servers go on
    Remove {
        /// The slot's id, or its beginning
        slot: String,
        #[command(flatten)]
        config: ConfigArgument,
        /// Remove it although it is the one that the configuration's password opens
        #[arg(long)]
        in_use: bool,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give one export a new data key for everything that is uploaded from now on. Where it is open, the server of
    /// this configuration does it, and clients go on; where nobody has it open, no server is needed
    RenewData {
        /// The export
        name: String,
        #[command(flatten)]
        config: ConfigArgument,
        /// Any text: asked again with the same one, it is the same data key
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on with an older keyring that was put back because the newest is lost. Passwords that were removed since open
    /// again: rotate them afterwards
    AcceptOlder {
        /// Its id, as the error tells that refuses it
        id: String,
        #[command(flatten)]
        config: ConfigArgument,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the password: add a slot for the new one, roll it out, then run it with --finish
    Rotate {
        #[command(flatten)]
        new: NewSlot,
        /// All nodes have the new password in their configuration, and so has this one: remove the
        /// slots that it replaces. Those of `key add` stay
        #[arg(long, conflicts_with = "new_password_file")]
        finish: bool,
    },
}

#[derive(Debug, Args)]
struct NewSlot {
    #[command(flatten)]
    config: ConfigArgument,
    /// The file that holds the new password; `-` is standard input. Without it the variable
    /// GLIDEFS_NEW_PASSWORD is taken, else a terminal is asked
    #[arg(long, value_name = "FILE")]
    new_password_file: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Named {
    /// The export
    name: String,
    #[command(flatten)]
    remote: Remote,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Why a command did not end well: what to print, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Tried, and the answer is no.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }

    /// Nothing was tried.
    pub(crate) fn unusable(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs the command that the arguments name. `hangups`: what came of SIGHUP until now, for a server.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    hangups: Hangups,
) -> ExitCode {
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return output::usage(&error),
    };
    process::protect();
    let environment = environment.clone().with_files(secret::read);
    match dispatch(parsed.command, &environment, hangups) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(
    command: Command,
    environment: &Environment,
    hangups: Hangups,
) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(argument) => {
            let config = setup::load(argument.config.as_deref(), environment)?;
            crate::daemon::run(config, argument.config, environment, hangups)
        }
        Command::Init { path } => setup::init(&path),
        Command::Check { config, json } => {
            let config = setup::load(config.config.as_deref(), environment)?;
            Ok(check::run(&config, json))
        }
        Command::Status { remote, json } => status::run(&remote, json),
        Command::Top {
            remote,
            interval_ms,
            once,
            json,
        } => {
            let shown = match (json, once) {
                (true, _) => top::Shown::Json,
                (false, true) => top::Shown::Table,
                (false, false) => top::Shown::Live,
            };
            top::run(&remote, interval_ms, shown)
        }
        Command::Export { command } => export::run(command),
        Command::Snapshot { command } => snapshot::run(command),
        Command::Fork(arguments) => fork::run(arguments),
        Command::Group { command } => group::run(command),
        Command::Salvage { command } => salvage::run(command),
        Command::Gc { command } => gc::run(command),
        Command::Key { command } => key::run(command, environment),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "glidefs", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Lines of code blocks in the manuals that begin with `glidefs`.
    #[test]
    fn commands_in_the_runbooks_parse() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
        let mut checked = 0;
        for entry in std::fs::read_dir(folder).expect("runbooks") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let blocks = text.split("```").skip(1).step_by(2);
            let lines = blocks.flat_map(str::lines).map(str::trim);
            for line in lines.filter(|line| line.starts_with("glidefs ")) {
                let command = line.split('#').next().unwrap_or_default();
                let parsed = Arguments::try_parse_from(command.split_whitespace());
                assert!(parsed.is_ok(), "{}: {line}: {parsed:?}", path.display());
                checked += 1;
            }
        }
        assert!(checked > 10, "only {checked} commands: is this test blind?");
    }

    #[test]
    fn force_wants_the_epoch_that_was_seen() {
        let parse = |words: &[&str]| Arguments::try_parse_from(words);
        assert!(parse(&["glidefs", "export", "promote", "a", "--force"]).is_err());
        let words = [
            "glidefs",
            "export",
            "promote",
            "a",
            "--force",
            "--expected-epoch",
            "7",
        ];
        assert!(parse(&words).is_ok());
    }
}
