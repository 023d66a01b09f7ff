//! Which parts of an export hold data: the log's knowledge first, the published map below it.

use blockcache::{Known, PageRange};
use world::World;

use super::Export;
use crate::device::{IoError, Run, RunKind};
use crate::volume::Source;

/// A status request looks at the map in windows of this size...
const STATUS_WINDOW_BYTES: u64 = 1 << 30;
/// ...and at no more than so many; the rest of the range is the client's next question.
const STATUS_WINDOWS_MAX: usize = 64;
impl<W: World> Export<W> {
    pub(crate) async fn status(
        &self,
        at: u64,
        len: u64,
        runs_max: usize,
    ) -> Result<Vec<Run>, IoError> {
        self.check_range(at, len);
        self.may_read()?;
        let mut runs = Runs {
            runs: Vec::new(),
            at,
            end: at + len,
            runs_max: runs_max.max(1),
        };
        for _window in 0..STATUS_WINDOWS_MAX {
            let left = runs.end - runs.at;
            if left == 0 {
                break;
            }
            let window = PageRange::touched_by(runs.at, left.min(STATUS_WINDOW_BYTES));
            for (run, known) in self.known(window) {
                let room = match known {
                    Known::Data => runs.add(run, RunKind::Data),
                    Known::Zero => runs.add(run, RunKind::Hole),
                    Known::Absent => self.status_of_store(run, &mut runs).await,
                };
                if room == Room::None {
                    return Ok(runs.runs);
                }
            }
        }
        Ok(runs.runs)
    }

    async fn status_of_store(&self, pages: PageRange, runs: &mut Runs) -> Room {
        let found = match self.frames.volume() {
            Some(volume) => volume.lookup(pages).await.ok(),
            None => None,
        };
        // "Data" is always a true answer: it promises nothing.
        let Some(found) = found else {
            return runs.add(pages, RunKind::Data);
        };
        for (run, source) in found {
            let kind = match source {
                Source::Zero => RunKind::Hole,
                Source::Frame { .. } => RunKind::Data,
            };
            if runs.add(run, kind) == Room::None {
                return Room::None;
            }
        }
        Room::Left
    }
}

/// Runs of a status answer being put together.
#[derive(Debug)]
struct Runs {
    runs: Vec<Run>,
    /// Covered so far.
    at: u64,
    end: u64,
    runs_max: usize,
}

/// Whether an answer may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Left,
    None,
}

impl Runs {
    /// Adds the part of `pages` that lies between what is covered and the end.
    fn add(&mut self, pages: PageRange, kind: RunKind) -> Room {
        let end = pages.end.byte().min(self.end);
        let Some(len) = end.checked_sub(self.at).filter(|len| *len > 0) else {
            return Room::Left;
        };
        let full = self.runs.len() == self.runs_max;
        match self.runs.last_mut() {
            Some(last) if last.kind == kind => last.len += len,
            _ if full => return Room::None,
            _ => self.runs.push(Run { len, kind }),
        }
        self.at = end;
        Room::Left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(at: u64, len: u64, runs_max: usize) -> Runs {
        Runs {
            runs: Vec::new(),
            at,
            end: at + len,
            runs_max,
        }
    }

    #[test]
    fn a_status_is_trimmed_to_the_sectors_asked_for() {
        let mut runs = runs(512, 8192, 8);
        assert_eq!(runs.add(PageRange::new(0, 1), RunKind::Data), Room::Left);
        assert_eq!(runs.add(PageRange::new(1, 2), RunKind::Data), Room::Left);
        assert_eq!(runs.add(PageRange::new(2, 9), RunKind::Hole), Room::Left);
        let expected = vec![
            Run {
                len: 7680,
                kind: RunKind::Data,
            },
            Run {
                len: 512,
                kind: RunKind::Hole,
            },
        ];
        assert_eq!(runs.runs, expected);
    }

    #[test]
    fn a_status_ends_where_its_runs_are_used_up() {
        let mut runs = runs(0, 1 << 20, 1);
        assert_eq!(runs.add(PageRange::new(0, 1), RunKind::Hole), Room::Left);
        assert_eq!(runs.add(PageRange::new(1, 2), RunKind::Data), Room::None);
        assert_eq!(runs.runs.len(), 1);
    }
}
