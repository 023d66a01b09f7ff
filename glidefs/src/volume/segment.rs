//! A segment: data frames and the index that says which pages they hold. `docs/format/segment.md`.

use blockcache::{PAGE_BYTES, PageRange};
use bytes::Bytes;

use super::codec::Compression;
use super::extent::{Extent, FRAME_PAGES_MAX, ObjectName, Spot};
use super::keys::{Secret, TAG_BYTES};
use super::row::{self, ROW_BYTES};
use super::sealed::{Kind, ObjectRef, Sealer, TRAILER_BYTES};
use super::{FrameContent, PlainFrame};

/// Entries of one segment at most. A writer that has more makes another segment.
pub const SEGMENT_ENTRIES_MAX: usize = 1 << 17;
/// Plain bytes of one segment at most.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// A segment ready for the store.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) body: Bytes,
    pub(crate) reference: ObjectRef,
    /// What it holds, in order of address.
    pub(crate) extents: Vec<Extent>,
}

/// Compresses and seals frames. They must be disjoint and within the bounds above: who breaks that
/// is our own code.
pub(crate) fn seal(
    name: ObjectName,
    key: Option<&Secret>,
    compression: Compression,
    mut frames: Vec<PlainFrame>,
) -> Sealed {
    frames.sort_by_key(|frame| frame.pages.start);
    assert!(
        frames.len() <= SEGMENT_ENTRIES_MAX,
        "too many frames for one segment"
    );
    assert!(
        frames.is_sorted_by(|a, b| a.pages.end <= b.pages.start),
        "frames of one segment overlap"
    );
    let mut sealer = Sealer::new(Kind::Segment, name, key, compression);
    sealer.reserve(bytes_max(&frames));
    let extents: Vec<Extent> = frames
        .iter()
        .map(|frame| place(&mut sealer, name, frame))
        .collect();
    let mut index = Vec::with_capacity(4 + extents.len() * ROW_BYTES);
    let count = u32::try_from(extents.len()).expect("bounded above");
    index.extend_from_slice(&count.to_le_bytes());
    for extent in &extents {
        row::put(&mut index, extent, 0);
    }
    let (body, reference) = sealer.finish(&index);
    Sealed {
        body,
        reference,
        extents,
    }
}

/// Of the whole object, if nothing compresses.
fn bytes_max(frames: &[PlainFrame]) -> usize {
    let data = frames.iter().map(|frame| match &frame.content {
        FrameContent::Data(data) => data.len() + TAG_BYTES,
        FrameContent::Zero => 0,
    });
    let index = 4 + frames.len() * ROW_BYTES + TAG_BYTES;
    data.sum::<usize>() + index + TRAILER_BYTES
}

fn place(sealer: &mut Sealer, name: ObjectName, frame: &PlainFrame) -> Extent {
    let pages = frame.pages;
    assert!(!pages.is_empty(), "a frame without pages");
    let FrameContent::Data(data) = &frame.content else {
        return Extent { pages, spot: None };
    };
    assert!(
        pages.pages() <= FRAME_PAGES_MAX,
        "frame of {pages} is too long"
    );
    assert_eq!(
        data.len() as u64,
        pages.bytes(),
        "data of the frame {pages}"
    );
    assert!(
        sealer.len() as u64 + pages.bytes() <= SEGMENT_BYTES_MAX,
        "too many bytes for one segment"
    );
    // Zeros that were written cost no more than zeros that were trimmed.
    if data.iter().all(|&byte| byte == 0) {
        return Extent { pages, spot: None };
    }
    let placed = sealer.push(pages, data);
    let spot = Spot {
        segment: name,
        number: placed.number,
        offset: placed.offset,
        stored: placed.stored,
        codec: placed.codec,
        skip: 0,
        frame_pages: u8::try_from(pages.pages()).expect("bounded above"),
        hash: placed.short_hash(),
    };
    let spot = Some(spot);
    Extent { pages, spot }
}

/// Reads a segment's index (its plain bytes).
pub(crate) fn parse(name: ObjectName, index: &[u8]) -> Result<Vec<Extent>, &'static str> {
    let (count, rows) = index.split_first_chunk().ok_or("its index is too short")?;
    let (rows, rest) = rows.as_chunks::<ROW_BYTES>();
    if !rest.is_empty() || u32::try_from(rows.len()) != Ok(u32::from_le_bytes(*count)) {
        return Err("its index is not as long as it says");
    }
    let own = |number| (number == 0).then_some(name);
    let extents = rows
        .iter()
        .map(|row| row::get(row, own))
        .collect::<Result<Vec<_>, _>>()?;
    if extents.is_sorted_by(|a, b| a.pages.end <= b.pages.start) {
        Ok(extents)
    } else {
        Err("its index is not in order")
    }
}

/// The plain length of a data frame of these pages.
pub(crate) fn plain_len(pages: PageRange) -> u32 {
    u32::try_from(pages.bytes()).expect("at most 128 KiB")
}

const _: () = assert!(FRAME_PAGES_MAX * PAGE_BYTES == 128 << 10);
const _: () = assert!((4 + SEGMENT_ENTRIES_MAX * ROW_BYTES) as u64 <= 32 << 20);
