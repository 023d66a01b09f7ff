//! What happened, in two forms: a running hash of everything, by which two runs are compared, and
//! the last lines of it, for the person who looks for the bug.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use crate::Instant;

#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    lines: VecDeque<String>,
    lines_max: usize,
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Trace {
    pub(super) fn new(seed: u64, lines_max: usize) -> Self {
        let mut trace = Self {
            hash: FNV_BASIS,
            lines: VecDeque::new(),
            lines_max,
        };
        trace.fold(seed);
        trace
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Counts a step that deserves no line.
    pub(super) fn fold(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(FNV_PRIME).rotate_left(29);
    }

    /// Adds a line; the oldest is forgotten when there are too many.
    pub(super) fn note(&mut self, at: Instant, who: &str, what: fmt::Arguments<'_>) {
        let mut line = if self.lines.len() >= self.lines_max.max(1) {
            self.lines.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        let (seconds, nanos) = (at.as_nanos() / 1_000_000_000, at.as_nanos() % 1_000_000_000);
        write!(line, "{seconds:4}.{nanos:09} {who:8} {what}").expect("a String takes any text");
        self.hash = fnv(self.hash, line.as_bytes());
        self.lines.push_back(line);
    }

    /// The last lines, oldest first.
    pub(super) fn tail(&self, lines: usize) -> String {
        let skipped = self.lines.len().saturating_sub(lines);
        let mut text = String::new();
        for line in self.lines.iter().skip(skipped) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// A short name for some bytes, so that a trace tells different contents apart.
pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut hash = FNV_BASIS;
    for word in words.by_ref() {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight bytes"));
        hash = (hash ^ word).wrapping_mul(FNV_PRIME).rotate_left(29);
    }
    fnv(hash, words.remainder()) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_all_count_in_the_hash() {
        let run = |first: &str| {
            let mut trace = Trace::new(1, 2);
            for (number, what) in [first, "b", "c"].into_iter().enumerate() {
                let at = Instant::from_nanos(u64::try_from(number).expect("small"));
                trace.note(at, "a", format_args!("{what}"));
            }
            (trace.hash(), trace.tail(10))
        };
        let (one, two) = (run("x"), run("y"));
        assert_eq!(one.1, two.1);
        assert_eq!(one.1.lines().count(), 2);
        assert_ne!(one.0, two.0);
    }

    #[test]
    fn a_fingerprint_sees_every_byte() {
        let bytes = [7_u8; 29];
        for place in 0..bytes.len() {
            let mut other = bytes;
            other[place] ^= 1;
            assert_ne!(fingerprint(&bytes), fingerprint(&other), "byte {place}");
        }
    }
}
