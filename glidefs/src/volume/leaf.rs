//! The two lower levels of a run: leaves of extents, and the directory of a part object that lists
//! its leaves. Pure: bytes to structs and back. `docs/format/map.md`.

use std::collections::BTreeMap;

use blockcache::{Epoch, Id, PageRange};

use super::codec::CODEC_MAX;
use super::extent::{Extent, ObjectName, VOLUME_PAGES_MAX};
use super::keys::TAG_BYTES;
use super::row::{self, ROW_BYTES};
use super::sealed::{Frame, Hash, Kind, OBJECT_BYTES_MAX, Target};

/// Entries of one leaf at most.
pub(crate) const LEAF_ENTRIES_MAX: usize = 2048;
/// Plain bytes of a leaf at most: as a frame, so that leaves can be kept where frames are.
pub(crate) const LEAF_BYTES_MAX: usize = 128 << 10;
/// A leaf's entries all start in one such stretch of addresses: 64 MiB.
pub(crate) const SLOT_PAGES: u64 = (64 << 20) / blockcache::PAGE_BYTES;
/// Leaves that one part lists at most.
pub(crate) const PART_LEAVES_MAX: usize = 1024;

const LEAF_HEADER_BYTES: usize = 8;
const OBJECT_BYTES: usize = 40;
const LEAF_ROW_BYTES: usize = 56;
const HAS_ZEROS: u8 = 1;

/// A leaf in memory: its plain bytes, checked once.
#[derive(Debug)]
pub(crate) struct Leaf {
    segments: Vec<ObjectName>,
    rows: Vec<u8>,
}

impl Leaf {
    /// Checks every row, so that later look-ups cannot fail.
    pub(crate) fn parse(pages: PageRange, bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, rest) = bytes
            .split_first_chunk::<LEAF_HEADER_BYTES>()
            .ok_or("a leaf is too short")?;
        let count = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let table = count * OBJECT_BYTES;
        let (table, rows) = rest.split_at_checked(table).ok_or("a leaf is too short")?;
        let segments: Vec<ObjectName> = table.as_chunks().0.iter().map(get_object).collect();
        let (parsed, left) = rows.as_chunks::<ROW_BYTES>();
        let entries = u32::from_le_bytes(*header.last_chunk().expect("8 bytes"));
        if !left.is_empty() || u32::try_from(parsed.len()) != Ok(entries) || entries == 0 {
            return Err("a leaf is not as long as it says");
        }
        let mut end = pages.start.0;
        for row in parsed {
            let extent = row::get(row, |number| segments.get(usize::from(number)).copied())?;
            if extent.start() < end || extent.end() > pages.end.0 {
                return Err("a leaf is not in order, or leaves its range");
            }
            end = extent.end();
        }
        Ok(Self {
            segments,
            rows: rows.to_vec(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len() / ROW_BYTES
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.rows.len() + self.segments.len() * size_of::<ObjectName>()
    }

    fn rows(&self) -> &[[u8; ROW_BYTES]] {
        self.rows.as_chunks().0
    }

    pub(crate) fn extent(&self, at: usize) -> Extent {
        let segment = |number| self.segments.get(usize::from(number)).copied();
        row::get(&self.rows()[at], segment).expect("checked when the leaf was parsed")
    }

    /// What it says of the pages, in order of address, cut to them.
    pub(crate) fn within(&self, pages: PageRange) -> impl Iterator<Item = Extent> {
        let after = self
            .rows()
            .partition_point(|row| row::start(row) <= pages.start.0);
        (after.saturating_sub(1)..self.len())
            .map(|at| self.extent(at))
            .take_while(move |extent| extent.pages.start < pages.end)
            .filter_map(move |extent| {
                let both = extent.pages.overlap(pages)?;
                Some(extent.part(both.start.0, both.end.0))
            })
    }
}

/// Collects extents in order of address until a leaf is full.
#[derive(Debug, Default)]
pub(crate) struct LeafBuilder {
    segments: Vec<ObjectName>,
    numbers: BTreeMap<ObjectName, u16>,
    extents: Vec<(Extent, u16)>,
}

/// A full leaf, encoded.
#[derive(Debug)]
pub(crate) struct LeafBody {
    pub(crate) pages: PageRange,
    pub(crate) entries: u32,
    pub(crate) has_zeros: bool,
    pub(crate) bytes: Vec<u8>,
}

impl LeafBuilder {
    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// False if a leaf must end before an extent that starts there.
    pub(crate) fn same_slot(&self, start: u64) -> bool {
        let first = self.extents.first();
        first.is_some_and(|(first, _)| first.start() / SLOT_PAGES == start / SLOT_PAGES)
    }

    /// Takes the extent, or gives it back because a new leaf must begin with it.
    pub(crate) fn push(&mut self, extent: Extent) -> Result<(), Extent> {
        let end = self.extents.last().map_or(0, |(last, _)| last.end());
        assert!(end <= extent.start(), "extents of a leaf come in order");
        let segment = extent.spot.map(|spot| spot.segment);
        let new = segment.filter(|segment| !self.numbers.contains_key(segment));
        let new = usize::from(new.is_some());
        let table = (self.segments.len() + new) * OBJECT_BYTES;
        let bytes = LEAF_HEADER_BYTES + table + (self.extents.len() + 1) * ROW_BYTES;
        let full = self.extents.len() == LEAF_ENTRIES_MAX || bytes > LEAF_BYTES_MAX;
        if !self.is_empty() && (full || !self.same_slot(extent.start())) {
            return Err(extent);
        }
        let number = segment.map_or(0, |segment| self.number(segment));
        self.extents.push((extent, number));
        Ok(())
    }

    fn number(&mut self, segment: ObjectName) -> u16 {
        let next = u16::try_from(self.segments.len()).expect("bounded by the bytes of a leaf");
        let number = *self.numbers.entry(segment).or_insert(next);
        if number == next {
            self.segments.push(segment);
        }
        number
    }

    /// The leaf so far, and starts the next one. None if it is empty.
    pub(crate) fn take(&mut self) -> Option<LeafBody> {
        let (first, last) = (self.extents.first()?.0, self.extents.last()?.0);
        let entries = u32::try_from(self.extents.len()).expect("bounded");
        let mut bytes = Vec::with_capacity(LEAF_BYTES_MAX);
        let segments = u16::try_from(self.segments.len()).expect("bounded");
        bytes.extend_from_slice(&segments.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&entries.to_le_bytes());
        self.segments
            .iter()
            .for_each(|segment| put_object(&mut bytes, segment));
        for (extent, number) in &self.extents {
            row::put(&mut bytes, extent, *number);
        }
        let body = LeafBody {
            pages: PageRange::new(first.start(), last.end()),
            entries,
            has_zeros: self.extents.iter().any(|(extent, _)| extent.spot.is_none()),
            bytes,
        };
        *self = Self::default();
        Some(body)
    }
}

/// Where a leaf is. It may be in another object than the part that lists it: a merge carries leaves
/// over that nothing newer or older overlaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeafRow {
    pub(crate) pages: PageRange,
    pub(crate) object: ObjectName,
    pub(crate) number: u32,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) plain: u32,
    pub(crate) entries: u32,
    pub(crate) codec: u8,
    pub(crate) has_zeros: bool,
    pub(crate) hash: [u8; 16],
}

impl LeafRow {
    pub(crate) fn target(&self) -> Target {
        Target {
            kind: Kind::MapPart,
            object: self.object,
            offset: self.offset,
            stored: self.stored,
            frame: Frame {
                number: self.number,
                pages: self.pages,
                codec: self.codec,
                plain: self.plain,
            },
            hash: Hash::Half(self.hash),
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.pages.is_empty() || self.pages.end.0 > VOLUME_PAGES_MAX {
            return Err("a directory names an impossible range");
        }
        let plain = usize::try_from(self.plain).unwrap_or(usize::MAX);
        let stored = usize::try_from(self.stored).unwrap_or(usize::MAX);
        if plain > LEAF_BYTES_MAX || stored == 0 || stored > plain + TAG_BYTES {
            return Err("a directory names a leaf of impossible length");
        }
        let end = u64::from(self.offset) + u64::from(self.stored);
        if end > OBJECT_BYTES_MAX as u64 || self.codec > CODEC_MAX {
            return Err("a directory names a leaf at an impossible place");
        }
        Ok(())
    }
}

/// The index of a part object.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) leaves: Vec<LeafRow>,
}

impl Directory {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut objects: Vec<ObjectName> = self.leaves.iter().map(|leaf| leaf.object).collect();
        objects.sort_unstable();
        objects.dedup();
        let count = |len: usize| u32::try_from(len).expect("bounded").to_le_bytes();
        let mut out = Vec::new();
        out.extend_from_slice(&count(objects.len()));
        out.extend_from_slice(&count(self.leaves.len()));
        objects
            .iter()
            .for_each(|object| put_object(&mut out, object));
        for leaf in &self.leaves {
            let object = objects.binary_search(&leaf.object).expect("all are listed");
            out.extend_from_slice(&leaf.pages.start.0.to_le_bytes());
            out.extend_from_slice(&leaf.pages.end.0.to_le_bytes());
            let object = u16::try_from(object).expect("bounded by the leaves of a part");
            out.extend_from_slice(&object.to_le_bytes());
            out.extend_from_slice(&[leaf.codec, u8::from(leaf.has_zeros) * HAS_ZEROS]);
            for number in [
                leaf.number,
                leaf.offset,
                leaf.stored,
                leaf.plain,
                leaf.entries,
            ] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&leaf.hash);
        }
        out
    }

    /// Reads a directory whose leaves must lie in `pages`.
    pub(crate) fn parse(pages: PageRange, bytes: &[u8]) -> Result<Self, &'static str> {
        let short = "a directory is not as long as it says";
        let count = |at: usize| -> Result<usize, &'static str> {
            let count = bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .ok_or(short)?;
            let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_wide| short)?;
            if count > PART_LEAVES_MAX {
                Err(short)
            } else {
                Ok(count)
            }
        };
        let (objects, leaves) = (count(0)?, count(4)?);
        let table = objects * OBJECT_BYTES;
        if leaves == 0 || bytes.len() != 8 + table + leaves * LEAF_ROW_BYTES {
            return Err(short);
        }
        let (table, rows) = bytes[8..].split_at(table);
        let objects: Vec<ObjectName> = table.as_chunks().0.iter().map(get_object).collect();
        let rows = rows.as_chunks::<LEAF_ROW_BYTES>().0.iter();
        let leaves: Vec<LeafRow> = rows
            .map(|row| get_leaf(row, &objects))
            .collect::<Result<_, _>>()?;
        let inside = |leaf: &LeafRow| leaf.pages.overlap(pages) == Some(leaf.pages);
        if leaves.is_sorted_by(|a, b| a.pages.end <= b.pages.start) && leaves.iter().all(inside) {
            Ok(Self { leaves })
        } else {
            Err("a directory is not in order, or leaves its range")
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.leaves.len() * size_of::<LeafRow>()
    }

    /// The leaves that meet the pages.
    pub(crate) fn within(&self, pages: PageRange) -> &[LeafRow] {
        let from = self
            .leaves
            .partition_point(|leaf| leaf.pages.end <= pages.start);
        let to = self
            .leaves
            .partition_point(|leaf| leaf.pages.start < pages.end);
        &self.leaves[from..to.max(from)]
    }
}

fn get_leaf(row: &[u8; LEAF_ROW_BYTES], objects: &[ObjectName]) -> Result<LeafRow, &'static str> {
    let u64_at = |at: usize| u64::from_le_bytes(*row[at..].first_chunk().expect("in the row"));
    let u32_at = |at: usize| u32::from_le_bytes(*row[at..].first_chunk().expect("in the row"));
    let object = usize::from(u16::from_le_bytes([row[16], row[17]]));
    let (start, end) = (u64_at(0), u64_at(8));
    if start > end || row[19] > HAS_ZEROS {
        return Err("a directory's row makes no sense");
    }
    let leaf = LeafRow {
        pages: PageRange::new(start, end),
        object: *objects
            .get(object)
            .ok_or("a directory names an unknown object")?,
        number: u32_at(20),
        offset: u32_at(24),
        stored: u32_at(28),
        plain: u32_at(32),
        entries: u32_at(36),
        codec: row[18],
        has_zeros: row[19] == HAS_ZEROS,
        hash: *row[40..].first_chunk().expect("in the row"),
    };
    leaf.check().map(|()| leaf)
}

fn put_object(out: &mut Vec<u8>, object: &ObjectName) {
    out.extend_from_slice(&object.volume.0);
    out.extend_from_slice(&object.id.0);
    out.extend_from_slice(&object.epoch.0.to_le_bytes());
}

fn get_object(bytes: &[u8; OBJECT_BYTES]) -> ObjectName {
    ObjectName {
        volume: Id(*bytes.first_chunk().expect("in the row")),
        id: Id(*bytes[16..].first_chunk().expect("in the row")),
        epoch: Epoch(u64::from_le_bytes(
            *bytes[32..].first_chunk().expect("in the row"),
        )),
    }
}
