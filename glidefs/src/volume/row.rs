//! An [`Extent`] as 40 bytes: the row of segment indexes and of leaves. See `docs/format/map.md`.

use blockcache::PageRange;

use super::codec::CODEC_MAX;
use super::extent::{Extent, FRAME_PAGES_MAX, ObjectName, Spot, VOLUME_PAGES_MAX};
use super::keys::TAG_BYTES;

pub(crate) const ROW_BYTES: usize = 40;
/// In place of a segment number: the pages are zero.
pub(crate) const ZERO: u16 = u16::MAX;

/// Appends a row. `segment` is the number of the extent's segment in the table that goes with it.
pub(crate) fn put(out: &mut Vec<u8>, extent: &Extent, segment: u16) {
    assert!(extent.end() <= VOLUME_PAGES_MAX, "beyond any volume");
    out.extend_from_slice(&extent.start().to_le_bytes()[..6]);
    let Some(spot) = &extent.spot else {
        out.extend_from_slice(&ZERO.to_le_bytes());
        out.extend_from_slice(&extent.pages.pages().to_le_bytes());
        out.extend_from_slice(&[0; 24]);
        return;
    };
    assert_ne!(segment, ZERO, "a table has fewer segments");
    let pages = u8::try_from(extent.pages.pages()).expect("a frame has few pages");
    out.extend_from_slice(&segment.to_le_bytes());
    out.extend_from_slice(&[pages, spot.skip, spot.frame_pages, spot.codec]);
    out.extend_from_slice(&spot.number.to_le_bytes());
    out.extend_from_slice(&spot.offset.to_le_bytes());
    out.extend_from_slice(&spot.stored.to_le_bytes());
    out.extend_from_slice(&spot.hash);
}

/// The page at which a row starts.
pub(crate) fn start(row: &[u8; ROW_BYTES]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&row[..6]);
    u64::from_le_bytes(bytes)
}

/// The number of the segment that a row names; [`ZERO`] if none.
pub(crate) fn segment(row: &[u8; ROW_BYTES]) -> u16 {
    u16::from_le_bytes([row[6], row[7]])
}

/// Reads a row back; every field is checked.
pub(crate) fn get(
    row: &[u8; ROW_BYTES],
    segment_of: impl FnOnce(u16) -> Option<ObjectName>,
) -> Result<Extent, &'static str> {
    let (start, number) = (start(row), segment(row));
    if number == ZERO {
        let pages = u64::from_le_bytes(*row[8..].first_chunk().expect("a row is 40 bytes"));
        let end = start.checked_add(pages).filter(|&e| e <= VOLUME_PAGES_MAX);
        let end = end
            .filter(|_| pages > 0)
            .ok_or("a row's pages are none or too many")?;
        if row[16..].iter().any(|&byte| byte != 0) {
            return Err("a zero row has left-over bytes");
        }
        return Ok(Extent {
            pages: PageRange::new(start, end),
            spot: None,
        });
    }
    let segment = segment_of(number).ok_or("a row names a segment that is not in its table")?;
    let u32_at = |at: usize| u32::from_le_bytes(*row[at..].first_chunk().expect("within the row"));
    let spot = Spot {
        segment,
        number: u32_at(12),
        offset: u32_at(16),
        stored: u32_at(20),
        codec: row[11],
        skip: row[9],
        frame_pages: row[10],
        hash: *row[24..].first_chunk().expect("a row is 40 bytes"),
    };
    let pages = u64::from(row[8]);
    let frame_pages = u64::from(spot.frame_pages);
    if pages == 0 || u64::from(spot.skip) + pages > frame_pages || frame_pages > FRAME_PAGES_MAX {
        return Err("a row's pages do not lie in its frame");
    }
    if start < u64::from(spot.skip) || start + frame_pages > VOLUME_PAGES_MAX {
        return Err("a row's frame lies outside of any volume");
    }
    let stored_max = frame_pages * blockcache::PAGE_BYTES + TAG_BYTES as u64;
    if spot.codec > CODEC_MAX || spot.stored == 0 || u64::from(spot.stored) > stored_max {
        return Err("a row's codec or stored length is impossible");
    }
    if spot.offset.checked_add(spot.stored).is_none() {
        return Err("a row's frame lies outside of any segment");
    }
    Ok(Extent {
        pages: PageRange::new(start, start + pages),
        spot: Some(spot),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use blockcache::{Epoch, Id};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn segment_name(number: u16) -> ObjectName {
        let mut id = [7; 16];
        id[..2].copy_from_slice(&number.to_le_bytes());
        ObjectName {
            volume: Id([1; 16]),
            epoch: Epoch(3),
            id: Id(id),
        }
    }

    fn any_extent() -> impl Strategy<Value = (Extent, u16)> {
        let frame = (
            32_u64..1 << 40,
            1_u8..=32,
            any::<[u8; 16]>(),
            0_u16..9,
            0_u8..3,
        );
        let frame = frame.prop_map(|(start, pages, hash, segment, codec)| {
            let skip = pages / 3;
            let spot = Spot {
                segment: segment_name(segment),
                number: 77,
                offset: 4096,
                stored: 100,
                codec,
                skip,
                frame_pages: pages,
                hash,
            };
            let pages = PageRange::new(start, start + u64::from(pages - skip));
            let spot = Some(spot);
            (Extent { pages, spot }, segment)
        });
        let zero = (0_u64..1 << 40, 1_u64..1 << 40).prop_map(|(start, pages)| {
            let pages = PageRange::new(start, start + pages);
            (Extent { pages, spot: None }, 0)
        });
        prop_oneof![frame, zero]
    }

    proptest! {
        #[test]
        fn a_row_reads_back((extent, segment) in any_extent()) {
            let mut bytes = Vec::new();
            put(&mut bytes, &extent, segment);
            let row: [u8; ROW_BYTES] = bytes.try_into().expect("one row");
            let back = get(&row, |number| Some(segment_name(number)));
            prop_assert_eq!(back, Ok(extent));
        }

        #[test]
        fn any_row_is_refused_or_sound(row in any::<[u8; 32]>(), tail in any::<[u8; 8]>()) {
            let row: [u8; ROW_BYTES] = [&row[..], &tail[..]].concat().try_into().expect("40");
            if let Ok(extent) = get(&row, |number| Some(segment_name(number))) {
                prop_assert!(extent.start() < extent.end());
                prop_assert!(extent.end() <= VOLUME_PAGES_MAX);
                // Must not overflow.
                let _ = extent.part(extent.end() - 1, extent.end());
                let _ = extent.spot.map(|spot| spot.frame_range(extent.pages.start));
            }
        }
    }

    #[test]
    fn golden_rows() {
        let mut bytes = Vec::new();
        let spot = Spot {
            segment: segment_name(2),
            number: 0x0403_0201,
            offset: 0x0807_0605,
            stored: 0x0001_0203,
            codec: 1,
            skip: 3,
            frame_pages: 32,
            hash: *b"0123456789abcdef",
        };
        let data = Extent {
            pages: PageRange::new(0x0605_0403_0201, 0x0605_0403_0201 + 29),
            spot: Some(spot),
        };
        let zero = Extent {
            pages: PageRange::new(16, 16 + 0x0102_0304),
            spot: None,
        };
        put(&mut bytes, &data, 2);
        put(&mut bytes, &zero, 0);
        let golden: [u8; 80] = *b"\
            \x01\x02\x03\x04\x05\x06\x02\x00\x1d\x03\x20\x01\x01\x02\x03\x04\
            \x05\x06\x07\x08\x03\x02\x01\x000123456789abcdef\
            \x10\x00\x00\x00\x00\x00\xff\xff\x04\x03\x02\x01\x00\x00\x00\x00\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
            \x00\x00\x00\x00\x00\x00\x00\x00";
        assert_eq!(bytes, golden);
    }
}
