//! What a person sees between the signal and the end.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::shard_thread::{Ended, Left};
use crate::cli::{bytes_text, output};
use crate::control::{Control, ExportDocument, Request};

/// Between two looks at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two lines where no person watches (a journal).
const LOOKS_PER_LINE: u32 = 10;
/// Exports that the last words name; of more than these, the number.
const OWNED_LISTED_MAX: usize = 20;
/// Looks without any byte going out, after which the store is named as the reason.
const LOOKS_UNTIL_STUCK: u32 = 20;

/// Shows how much is left until `ended` says that the data path has stopped.
pub(super) async fn watch(
    control: &Control,
    ended: impl Future<Output = Ended>,
    progress: &mut Progress,
) -> Ended {
    let mut ended = pin!(ended);
    let mut clock = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            outcome = &mut ended => {
                progress.finish();
                return outcome;
            }
            _ = clock.tick() => {}
        }
        // In a second step, so that a shard that is slow to answer cannot hide its own end.
        tokio::select! {
            outcome = &mut ended => {
                progress.finish();
                return outcome;
            }
            exports = control.ask(Request::List) => {
                if let Ok(exports) = exports {
                    progress.look(&exports);
                }
            }
        }
    }
}

/// The last words, and the exit code: 0 if the store holds everything.
pub(super) fn farewell(left: &Left, cache_dir: &Path) -> (String, ExitCode) {
    let kept: Vec<_> = left
        .exports
        .iter()
        .filter(|export| export.dirty_bytes > 0)
        .collect();
    let listed: u64 = kept.iter().map(|export| export.dirty_bytes).sum();
    let unlisted = left.dirty_bytes.saturating_sub(listed);
    if listed == 0 && unlisted == 0 {
        let mut text = String::from("Drained: the store holds everything");
        if left.owned.is_empty() {
            text.push_str(", and any node may open the exports.");
        } else {
            text.push_str(&format!(".{}", owned_text(&left.owned)));
        }
        return (text, ExitCode::SUCCESS);
    }
    let mut text = format!(
        "Stopped, and the store does NOT hold everything; do not delete {}:",
        cache_dir.display()
    );
    for export in kept {
        text.push_str(&format!(
            "\n  export {} ({}): {} stay in the cache",
            export.name,
            export.role,
            bytes_text(export.dirty_bytes)
        ));
    }
    if unlisted > 0 {
        text.push_str(&format!(
            "\n  exports that are not open: {} stay in the cache",
            bytes_text(unlisted)
        ));
    }
    text.push_str(&owned_text(&left.owned));
    (text, ExitCode::from(1))
}

/// What other nodes cannot have without force, and what to do about it.
fn owned_text(owned: &[String]) -> String {
    if owned.is_empty() {
        return String::new();
    }
    let mut names = owned[..owned.len().min(OWNED_LISTED_MAX)].join(", ");
    if owned.len() > OWNED_LISTED_MAX {
        names.push_str(&format!(", and {} more", owned.len() - OWNED_LISTED_MAX));
    }
    format!(
        "\n  still owned by this node: {names}. Start it again with the same cache to go on with \
         them or to give them up; another node needs `glidefs export promote --force`."
    )
}

/// A bar for a person, lines for a journal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    cache_dir: PathBuf,
    /// The most that was left at any look: with what was written meanwhile, the whole.
    most: u64,
    last: Option<u64>,
    looks: u32,
    looks_stuck: u32,
}

impl Progress {
    pub(super) fn new(cache_dir: &Path, watched: bool) -> Self {
        let bar = watched.then(|| {
            let style =
                ProgressStyle::with_template("{bar:30} {binary_bytes}/{binary_total_bytes} {msg}")
                    .expect("the template is well formed");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
        });
        Self {
            bar,
            cache_dir: cache_dir.to_owned(),
            most: 0,
            last: None,
            looks: 0,
            looks_stuck: 0,
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn look(&mut self, exports: &[ExportDocument]) {
        let line = self.step(exports);
        let left = self.last.unwrap_or(0);
        match &self.bar {
            Some(bar) => {
                bar.set_length(self.most);
                bar.set_position(self.most - left);
                bar.set_message(if self.is_stuck() {
                    "(the store takes nothing; trying on)"
                } else {
                    ""
                });
            }
            None => {
                if let Some(line) = line {
                    output::notice(line);
                }
            }
        }
    }

    /// Counts one look; a line if it is time for one.
    fn step(&mut self, exports: &[ExportDocument]) -> Option<String> {
        let dirty = exports.iter().filter(|export| export.dirty_bytes > 0);
        let left: u64 = dirty.clone().map(|export| export.dirty_bytes).sum();
        let has_moved = self.last.is_none_or(|last| left < last);
        self.looks_stuck = if has_moved || left == 0 {
            0
        } else {
            self.looks_stuck + 1
        };
        self.most = self.most.max(left);
        self.last = Some(left);
        let is_due = self.looks.is_multiple_of(LOOKS_PER_LINE);
        self.looks += 1;
        if !is_due || left == 0 {
            return None;
        }
        let names: Vec<_> = dirty.map(|export| export.name.as_str()).take(5).collect();
        let mut line = format!("draining: {} left ({})", bytes_text(left), names.join(", "));
        if self.is_stuck() {
            line.push_str(&format!(
                "; the store takes nothing, trying on. A second signal stops at once: nothing is \
                 lost, it stays in {}",
                self.cache_dir.display()
            ));
        }
        Some(line)
    }

    fn is_stuck(&self) -> bool {
        self.looks_stuck >= LOOKS_UNTIL_STUCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::IoDocument;

    fn export(name: &str, dirty_bytes: u64) -> ExportDocument {
        ExportDocument {
            name: name.into(),
            volume: "1f".repeat(16),
            size_bytes: 1 << 30,
            role: "fenced".into(),
            epoch: 1,
            owner: String::new(),
            parent: None,
            group: None,
            published: true,
            clients: 0,
            dirty_bytes,
            dirty_age_ms: 0,
            published_seq: 0,
            published_at: String::new(),
            last_seq: 0,
            stored_bytes: 0,
            dead_bytes: 0,
            damage: None,
            warm: None,
            io: IoDocument::default(),
        }
    }

    #[test]
    fn a_store_that_takes_nothing_is_named() {
        let mut progress = Progress::new(Path::new("/c"), false);
        let dirty = [export("a", 4096), export("b", 0)];
        let first = progress.step(&dirty).expect("the first look is told");
        assert_eq!(first, "draining: 4 KiB left (a)");
        let later: Vec<_> = (0..LOOKS_UNTIL_STUCK)
            .filter_map(|_| progress.step(&dirty))
            .collect();
        assert_eq!(later.len(), 2, "one line for ten looks");
        assert!(later[1].contains("takes nothing") && later[1].contains("/c"));
        progress.step(&[export("a", 512)]);
        assert!(!progress.is_stuck(), "it moved");
    }

    #[test]
    fn what_stays_behind_is_told() {
        let words = |exports: &[ExportDocument], dirty_bytes| {
            let left = Left {
                exports: exports.to_vec(),
                dirty_bytes,
                owned: Vec::new(),
            };
            farewell(&left, Path::new("/c")).0
        };
        let text = words(&[export("a", 0)], 0);
        assert!(text.starts_with("Drained") && text.contains("any node may open"));
        let text = words(&[export("a", 4096)], 4096);
        assert!(text.contains("do not delete /c") && text.contains("export a (fenced): 4 KiB"));
        assert!(!text.contains("not open"));
        let text = words(&[export("a", 0)], 8192);
        assert!(text.contains("not open: 8 KiB"));
    }

    #[test]
    fn exports_that_stay_owned_are_named_within_a_bound() {
        let words = |count: usize| {
            let left = Left {
                exports: Vec::new(),
                dirty_bytes: 0,
                owned: (0..count).map(|n| format!("vm-{n}")).collect(),
            };
            farewell(&left, Path::new("/c"))
        };
        let (text, code) = words(2);
        assert_eq!(code, ExitCode::SUCCESS, "the store holds everything");
        assert!(text.contains("vm-0, vm-1. Start it again"), "{text}");
        assert!(!text.contains("any node may open"), "{text}");
        let (text, _code) = words(OWNED_LISTED_MAX + 3);
        assert!(text.contains("vm-19, and 3 more"), "{text}");
    }
}
