//! What a sector written by an oracle looks like: who wrote it, in which write, for which place.

use std::ops::Range;

use super::{Violation, WriteNo};

/// The smallest part of a volume that is written as a whole.
pub const SECTOR_BYTES: u64 = 512;

const LEN: usize = 512;
const MAGIC: u64 = 0x5374_616d_7021_0a01;

/// What a sector was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    Zero,
    Write(WriteNo),
}

/// The bytes of a sector. Every other write compresses well, the rest not at all.
pub(super) fn make(id: u64, no: WriteNo, sector: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    let mut word = MAGIC ^ id.rotate_left(32) ^ (no.0 << 20) ^ sector;
    for (place, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match place {
            0 => MAGIC,
            1 => id,
            2 => no.0,
            3 => sector,
            _ if no.0.is_multiple_of(2) => no.0,
            _ => {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word
            }
        };
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Reads the stamps of a run of sectors.
pub(super) fn read(
    id: u64,
    sectors: Range<u64>,
    bytes: &[u8],
) -> Result<Vec<(u64, Seen)>, Violation> {
    let stamps = sectors.zip(bytes.chunks_exact(LEN));
    stamps
        .map(|(sector, bytes)| Ok((sector, read_one(id, sector, bytes)?)))
        .collect()
}

fn read_one(id: u64, sector: u64, bytes: &[u8]) -> Result<Seen, Violation> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Seen::Zero);
    }
    let word = |place: usize| {
        let bytes = &bytes[place * 8..place * 8 + 8];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    };
    let (no, place) = (WriteNo(word(2)), word(3));
    if word(0) != MAGIC || word(1) != id || bytes != make(id, no, place) {
        return Err(Violation::Foreign { sector });
    }
    if place != sector {
        return Err(Violation::Misplaced {
            sector,
            found: no,
            belongs: place,
        });
    }
    Ok(Seen::Write(no))
}
