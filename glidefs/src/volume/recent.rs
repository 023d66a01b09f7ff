//! What was written last, for who wants it before he is asked for it: the segments of the tail, the newest first, then
//! the runs of the map, the newest first, each in order of address. What newer ones hide is left out.
//!
//! Whether a run is hidden is asked of the map, so the leaves that readers of these pages will need are read on the way.
//! Absent: how much of it is worth having, and where it is put.

use std::collections::BTreeSet;
use std::rc::Rc;

use blockcache::Id;
use bytes::Bytes;
use world::World;

use super::leaf::LeafRow;
use super::reader::Reader;
use super::runs::Run;
use super::sealed::Kind;
use super::{Extent, FrameRef, Source, Volume, VolumeError, source, target};

/// Stored bytes of frames that are read by one request.
const READ_BYTES_MAX: u64 = 2 << 20;
/// Bytes between two frames that are read along: cheaper than a request.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// A way through what a volume holds.
#[derive(Debug)]
pub(crate) struct Recent<W: World> {
    volume: Volume<W>,
    /// Segments of the tail that are left, the newest last.
    segments: Vec<Id>,
    /// Runs that are left, the newest last.
    runs: Vec<Rc<Run>>,
    /// Of that run: the next part.
    part: usize,
    /// Of the part before: the leaves that are left, the first last.
    rows: Vec<LeafRow>,
    leaves: u64,
}

impl<W: World> Volume<W> {
    /// From what was written last on. It goes by the map as it is now: of a volume that is published meanwhile it may
    /// leave something out.
    pub(crate) fn recent(&self) -> Recent<W> {
        let state = self.inner.state.borrow();
        Recent {
            volume: self.clone(),
            segments: state.tail.segments().map(|it| Id(it.id())).collect(),
            runs: state.map.runs.iter().rev().map(Rc::clone).collect(),
            part: 0,
            rows: Vec::new(),
            leaves: 0,
        }
    }

    /// Gets the bytes of frames that lie [`together`], in one request.
    pub(crate) async fn span(&self, frames: &[FrameRef]) -> Result<Bytes, VolumeError> {
        let Some((first, end)) = ends(frames) else {
            return Ok(Bytes::new());
        };
        let reader = self.reader(&self.inner.state.borrow());
        let at = target(&reader, first);
        let end = u32::try_from(end).expect("an object is smaller than 4 GiB");
        reader
            .stored(Kind::Segment, at.object, at.offset..end)
            .await
    }

    /// One of the frames of such bytes, checked and decoded.
    pub(crate) async fn frame_of(
        &self,
        frames: &[FrameRef],
        span: &Bytes,
        frame: &FrameRef,
    ) -> Result<Bytes, VolumeError> {
        let reader = self.reader(&self.inner.state.borrow());
        let target = target(&reader, frame);
        let start = ends(frames).map_or(0, |(first, _)| first.bytes.start);
        let place = |at: u64| usize::try_from(at.checked_sub(start)?).ok();
        let range = place(frame.bytes.start).zip(place(frame.bytes.end));
        let range = range.filter(|(from, to)| from <= to && *to <= span.len());
        let (from, to) = range.expect("a frame lies in the bytes of its neighbours");
        let plain = reader.open(target, span.slice(from..to)).await?;
        Ok(Bytes::from(plain))
    }
}

impl<W: World> Recent<W> {
    /// Leaves of runs that were looked at.
    pub(crate) fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Some frames, each once, in the order in which they lie in their segments; there may be none in one step. None
    /// at the end. After an error it goes on behind what could not be read.
    pub(crate) async fn more(&mut self) -> Result<Option<Vec<FrameRef>>, VolumeError> {
        if let Some(segment) = self.segments.pop() {
            let state = self.volume.inner.state.borrow();
            let reader = self.volume.reader(&state);
            return frames(&reader, &state.tail.of_segment(segment)).map(Some);
        }
        match self.row().await? {
            Some(row) => {
                self.leaves += 1;
                self.of_leaf(row).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// The next leaf of the newest run that is left.
    async fn row(&mut self) -> Result<Option<LeafRow>, VolumeError> {
        loop {
            if let Some(row) = self.rows.pop() {
                return Ok(Some(row));
            }
            let Some(run) = self.runs.last().map(Rc::clone) else {
                return Ok(None);
            };
            let Some(part) = run.parts.get(self.part) else {
                self.runs.pop();
                self.part = 0;
                continue;
            };
            self.part += 1;
            let reader = self.volume.reader(&self.volume.inner.state.borrow());
            let nodes = reader.bucket.nodes();
            let directory = nodes.directory(&reader, part).await?;
            self.rows.extend(directory.leaves.iter().rev().copied());
        }
    }

    /// What is still to be seen of a leaf.
    async fn of_leaf(&self, row: LeafRow) -> Result<Vec<FrameRef>, VolumeError> {
        let reader = self.volume.reader(&self.volume.inner.state.borrow());
        let leaf = reader.bucket.nodes().leaf(&reader, &row).await?;
        let spots = (0..leaf.len()).filter_map(|at| leaf.extent(at).spot);
        let named: BTreeSet<(Id, u32)> = spots.map(|it| (it.segment.id, it.number)).collect();
        let seen = Box::pin(self.volume.lookup(row.pages)).await?.into_iter();
        let seen = seen.filter_map(|(_, source)| match source {
            Source::Frame { frame, .. } => Some(frame),
            Source::Zero => None,
        });
        let own = seen.filter(|frame| named.contains(&(frame.segment, frame.number)));
        Ok(in_place(own.collect()))
    }
}

fn frames<W: World>(reader: &Reader<W>, extents: &[Extent]) -> Result<Vec<FrameRef>, VolumeError> {
    let mut frames = Vec::with_capacity(extents.len());
    for extent in extents {
        if let Source::Frame { frame, .. } = source(reader, extent)? {
            frames.push(frame);
        }
    }
    Ok(in_place(frames))
}

/// Each frame once, as they lie in their segments.
fn in_place(mut frames: Vec<FrameRef>) -> Vec<FrameRef> {
    frames.sort_unstable_by_key(|frame| (frame.segment, frame.bytes.start));
    frames.dedup_by_key(|frame| (frame.segment, frame.number));
    frames
}

/// How many of the first of these frames, which are in order of place, are read together: neighbours in one segment.
/// One at least.
pub(crate) fn together(frames: &[FrameRef]) -> usize {
    let Some(first) = frames.first() else {
        return 0;
    };
    let mut end = first.bytes.end;
    let near = frames.iter().take_while(|frame| {
        let is_near = frame.segment == first.segment
            && frame.bytes.start.saturating_sub(end) <= GAP_BYTES_MAX
            && frame.bytes.end.saturating_sub(first.bytes.start) <= READ_BYTES_MAX;
        end = end.max(frame.bytes.end);
        is_near
    });
    near.count().max(1)
}

/// The frame with which such bytes begin, and where they end.
fn ends(frames: &[FrameRef]) -> Option<(&FrameRef, u64)> {
    let end = frames.iter().map(|frame| frame.bytes.end).max()?;
    Some((frames.first()?, end))
}

#[cfg(test)]
mod tests {
    use blockcache::{Epoch, PageRange};

    use super::*;

    fn frame(segment: u8, start: u64, len: u64) -> FrameRef {
        FrameRef {
            segment: Id([segment; 16]),
            number: u32::try_from(start >> 10).expect("small"),
            pages: PageRange::new(0, 1),
            epoch: Epoch(1),
            bytes: start..start + len,
            volume: 0,
            codec: 0,
            hash: [0; 16],
        }
    }

    #[test]
    fn neighbours_of_one_segment_are_read_together_up_to_a_bound() {
        let near = [frame(1, 0, 1000), frame(1, 1000, 1000), frame(1, 40_000, 1)];
        assert_eq!(together(&near), 3);
        assert_eq!(
            ends(&near).map(|(first, end)| (first.bytes.start, end)),
            Some((0, 40_001))
        );
        let far = [frame(1, 0, 1000), frame(1, 1000 + GAP_BYTES_MAX + 1, 1)];
        assert_eq!(together(&far), 1);
        let other = [frame(1, 0, 1000), frame(2, 1000, 1000)];
        assert_eq!(together(&other), 1);
        let many: Vec<FrameRef> = (0..100).map(|n| frame(1, n << 17, 1 << 17)).collect();
        assert_eq!(together(&many), 16);
        assert_eq!(together(&[frame(1, 0, READ_BYTES_MAX + 1)]), 1);
        assert_eq!(together(&[]), 0);
    }

    #[test]
    fn a_frame_of_which_several_parts_are_left_is_there_once() {
        let found = vec![
            frame(2, 0, 10),
            frame(1, 2048, 10),
            frame(1, 0, 10),
            frame(2, 0, 10),
        ];
        let places = in_place(found);
        let places: Vec<(u8, u64)> = places
            .iter()
            .map(|it| (it.segment.0[0], it.bytes.start))
            .collect();
        assert_eq!(places, [(1, 0), (1, 2048), (2, 0)]);
    }
}
