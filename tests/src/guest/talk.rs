//! What is said over the guest's second serial port. Pure.
//!
//! A command is a line with its number and its length, then so many bytes of shell script. The guest
//! (`init`, beside this file) runs it and answers with all that it printed, then a mark: a line with
//! the number and the exit code. One command at a time.

use anyhow::{Context, Result};

/// How the kernel and its filesystems say that a disk failed them.
const COMPLAINTS: [&str; 5] = [
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "Remounting filesystem read-only",
    "Aborting journal",
];

/// Number 0 is the mark of a guest that is up.
pub const UP: u64 = 0;

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: i32,
    /// What it printed, errors too, without the last line break.
    pub output: String,
}

pub fn command(number: u64, script: &str) -> Vec<u8> {
    let mut bytes = format!("{number} {}\n", script.len()).into_bytes();
    bytes.extend_from_slice(script.as_bytes());
    bytes
}

/// The answer to a command, once all of it has arrived.
pub fn answer(received: &[u8], number: u64) -> Result<Option<Answer>> {
    let text = String::from_utf8_lossy(received);
    let mark = format!("\n@@ {number} ");
    let Some((output, rest)) = text.rsplit_once(&mark) else {
        return Ok(None);
    };
    let Some((code, _)) = rest.split_once('\n') else {
        return Ok(None);
    };
    let code = code.parse();
    Ok(Some(Answer {
        code: code.with_context(|| format!("the mark of command {number}"))?,
        output: output.trim_end_matches('\n').to_owned(),
    }))
}

/// Lines of a kernel's log that tell of failed requests. There must be none where a server only
/// died and came back.
pub fn complaints(log: &str) -> Vec<&str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|it| line.contains(it));
    log.lines().filter(complains).collect()
}

/// The shell commands in a document's code blocks that begin with this word, or with `sudo` and it;
/// without the comment behind.
pub fn commands_in<'a>(document: &'a str, word: &str) -> Vec<&'a str> {
    let commands = document.lines().filter(|line| {
        let command = line.strip_prefix("sudo ").unwrap_or(line);
        command.split(' ').next() == Some(word)
    });
    let without_comment = |line: &'a str| line.split(" #").next().unwrap_or(line).trim_end();
    commands.map(without_comment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_its_length_in_bytes() {
        assert_eq!(command(7, "echo ä\n"), "7 8\necho ä\n".as_bytes());
    }

    #[test]
    fn an_answer_is_complete_with_its_mark() {
        let said = "mkfs: done\n\n@@ 3 0\n";
        for length in 0..said.len() {
            let part = answer(&said.as_bytes()[..length], 3);
            assert_eq!(part.expect("no mark yet"), None, "{length}");
        }
        let whole = answer(said.as_bytes(), 3).expect("a mark");
        let output = "mkfs: done".to_owned();
        assert_eq!(whole, Some(Answer { code: 0, output }));
        assert_eq!(answer(said.as_bytes(), 4).expect("another's mark"), None);
        assert!(answer(b"\n@@ 3 x\n", 3).is_err());
    }

    #[test]
    fn a_lost_request_is_a_complaint_and_a_lost_connection_is_none() {
        // From a kernel whose server was killed: first with a client that came back, then with one that did not.
        let survived = "block nbd0: Receive control failed (result -32)\n\
                        block nbd0: Dead connection, failed to find a fallback\n\
                        block nbd0: reconnected socket\n\
                        block nbd0: Connection timed out, retrying (1/1 alive)\n\
                        EXT4-fs (nbd0): mounted filesystem with ordered data mode. Quota mode: none.\n";
        assert!(complaints(survived).is_empty());
        let failed = "I/O error, dev nbd0, sector 1168 op 0x1:(WRITE) flags 0x4000 phys_seg 32 prio class 2\n\
                      EXT4-fs error (device nbd0) in ext4_init_inode_table:1637: IO failure\n\
                      EXT4-fs warning (device nbd0): ext4_end_bio:343: I/O error 10 writing to inode 12\n\
                      Buffer I/O error on dev nbd0, logical block 0, lost sync page write\n\
                      Aborting journal on device nbd0-8.\n";
        assert_eq!(complaints(failed).len(), 5);
    }

    #[test]
    fn commands_are_taken_from_a_document_as_they_stand() {
        let document = "with `nbd-client` one may\n```bash\nsudo nbd-client -unix /s /dev/nbd0 -N a      # kernel\n\
                        nbd-client -d /dev/nbd0\nnbdcopy a b\n```\n";
        let expected = [
            "sudo nbd-client -unix /s /dev/nbd0 -N a",
            "nbd-client -d /dev/nbd0",
        ];
        assert_eq!(commands_in(document, "nbd-client"), expected);
    }
}
