//! Secrets from files, from standard input, from a terminal. Never from an argument: those can be
//! seen by everybody on the machine.

use std::io::{IsTerminal, Read, stdin};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{Failure, output};
use crate::config::{Environment, Secret, SecretFile};

/// A longer file was not meant.
const SECRET_BYTES_MAX: usize = 4096;
const NEW_PASSWORD: &str = "GLIDEFS_NEW_PASSWORD";
const OTHERS_READ: u32 = 0o004;
const STDIN: &str = "-";

/// Reads a file that holds a secret. What is wrong, and what to do, hold nothing of its content.
pub(crate) fn read(path: &Path) -> Result<SecretFile, (String, String)> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .open(path)
        .map_err(|error| {
            (
                format!("cannot read {}: {error}", path.display()),
                "give the file of a secret that this user may read".to_owned(),
            )
        })?;
    let is_public = file
        .metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & OTHERS_READ != 0);
    let secret = text(file).map_err(|wrong| {
        (
            format!("{} {wrong}", path.display()),
            "write the secret alone into it, as text".to_owned(),
        )
    })?;
    Ok(SecretFile { secret, is_public })
}

/// The new password: from the file that was named, the environment, or whoever sits there.
pub(super) fn new_password(
    file: Option<&Path>,
    environment: &Environment,
) -> Result<Secret, Failure> {
    let unusable = |wrong: String| Failure::unusable(format!("the new password: {wrong}"));
    match file {
        Some(path) if path.as_os_str() == STDIN => {
            text(stdin().lock()).map_err(|wrong| unusable(format!("standard input {wrong}")))
        }
        Some(path) => {
            let read =
                read(path).map_err(|(wrong, remedy)| unusable(format!("{wrong}; {remedy}")))?;
            if read.is_public {
                output::notice(format!(
                    "Warning: every user of this machine can read {}; chmod 600 it.",
                    path.display()
                ));
            }
            Ok(read.secret)
        }
        None => match environment.get(NEW_PASSWORD) {
            Some(text) => Ok(Secret::new(text.to_owned())),
            None if stdin().is_terminal() => ask_twice(),
            None => Err(unusable(format!(
                "none is given; use --new-password-file FILE (`-` is standard input), set \
                 {NEW_PASSWORD}, or run this in a terminal"
            ))),
        },
    }
}

/// The whole text, without the line end behind it.
fn text(from: impl Read) -> Result<Secret, String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 2));
    let most = u64::try_from(SECRET_BYTES_MAX).map_or(u64::MAX, |most| most + 1);
    from.take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(format!("holds more than {SECRET_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_binary| "is not text".to_owned())?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    Ok(Secret::new(text.to_owned()))
}

fn ask_twice() -> Result<Secret, Failure> {
    let first = ask("New password: ")?;
    let again = ask("Again: ")?;
    if again.matches(first.reveal()) {
        Ok(first)
    } else {
        Err(Failure::unusable("the new password: the two differ"))
    }
}

/// One line from the terminal, which shows nothing of it.
fn ask(question: &str) -> Result<Secret, Failure> {
    let unusable = |error| Failure::unusable(format!("cannot ask for the new password: {error}"));
    output::question(question);
    let terminal = stdin();
    let shown = tcgetattr(&terminal).map_err(|error| unusable(error.to_string()))?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden)
        .map_err(|error| unusable(error.to_string()))?;
    let mut line = Zeroizing::new(String::with_capacity(SECRET_BYTES_MAX));
    let read = terminal.read_line(&mut line);
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &shown);
    output::notice("");
    read.map_err(|error| unusable(error.to_string()))?;
    restored.map_err(|error| unusable(error.to_string()))?;
    text(line.as_bytes()).map_err(|wrong| Failure::unusable(format!("the new password {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_no_part_of_a_secret() {
        for (given, meant) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            (" a ", " a "),
        ] {
            assert_eq!(text(given.as_bytes()).expect("text").reveal(), meant);
        }
        for bad in [&b""[..], b"\n", b"\xff", &[b'x'; SECRET_BYTES_MAX + 1]] {
            text(bad).expect_err("no secret");
        }
    }
}
