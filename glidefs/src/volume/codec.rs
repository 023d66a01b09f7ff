//! Compression of one frame. What comes back out is bounded by what was promised, whatever the
//! bytes say.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

/// How frames are compressed before they are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Lz4,
    Zstd(i32),
}

pub(crate) const RAW: u8 = 0;
pub(crate) const LZ4: u8 = 1;
pub(crate) const ZSTD: u8 = 2;
pub(crate) const CODEC_MAX: u8 = ZSTD;

/// Compression must save at least one part in so many, else the frame is stored as it is: a reader
/// would pay for nothing.
const GAIN_MIN: usize = 16;
/// Frames below this have positions of 16 bits.
const LZ4_SMALL_BYTES_MAX: usize = 0xffff;

/// Compresses frame after frame. Tables and room stay from one to the next: for small frames, making
/// them anew costs more than compressing.
pub(crate) struct Packer {
    how: How,
    /// What comes out, before it is known whether it pays.
    room: Vec<u8>,
}

enum How {
    None,
    /// By the length of the frame: small ones need a table of half the size.
    Lz4 {
        small: CompressTable,
        large: CompressTable,
    },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    pub(crate) fn new(compression: Compression) -> Self {
        let how = match compression {
            Compression::None => How::None,
            Compression::Lz4 => How::Lz4 {
                small: CompressTable::small(),
                large: CompressTable::large(),
            },
            // Out of memory in the C library: uncompressed is always right.
            Compression::Zstd(level) => {
                zstd::bulk::Compressor::new(level).map_or(How::None, How::Zstd)
            }
        };
        Self {
            how,
            room: Vec::new(),
        }
    }

    /// Appends the frame, compressed where that pays, and says which codec reads it.
    pub(crate) fn append(&mut self, plain: &[u8], out: &mut Vec<u8>) -> u8 {
        let (codec, packed) = self.pack(plain);
        match packed {
            Some(len) if len + plain.len() / GAIN_MIN < plain.len() => {
                out.extend_from_slice(&self.room[..len]);
                codec
            }
            _ => {
                out.extend_from_slice(plain);
                RAW
            }
        }
    }

    /// The length in `room`; none if it was not compressed.
    fn pack(&mut self, plain: &[u8]) -> (u8, Option<usize>) {
        match &mut self.how {
            How::None => (RAW, None),
            How::Lz4 { small, large } => {
                make_room(&mut self.room, get_maximum_output_size(plain.len()));
                let table = if plain.len() < LZ4_SMALL_BYTES_MAX {
                    small
                } else {
                    large
                };
                let packed = compress_into_with_table(plain, &mut self.room, table);
                (LZ4, packed.ok())
            }
            How::Zstd(compressor) => {
                make_room(&mut self.room, zstd::zstd_safe::compress_bound(plain.len()));
                let packed = compressor.compress_to_buffer(plain, &mut self.room[..]);
                (ZSTD, packed.ok())
            }
        }
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::None => "none",
            How::Lz4 { .. } => "lz4",
            How::Zstd(_) => "zstd",
        };
        f.debug_tuple("Packer").field(&how).finish()
    }
}

fn make_room(room: &mut Vec<u8>, bytes: usize) {
    if room.len() < bytes {
        room.resize(bytes, 0);
    }
}

/// Exactly `plain_len` bytes, or why not. Never allocates more than that.
pub(crate) fn decompress(
    codec: u8,
    stored: &[u8],
    plain_len: usize,
) -> Result<Vec<u8>, &'static str> {
    let plain = match codec {
        RAW => stored.to_vec(),
        LZ4 => {
            let mut plain = vec![0; plain_len];
            let len = lz4_flex::block::decompress_into(stored, &mut plain)
                .map_err(|_bad| "its lz4 data does not decode")?;
            plain.truncate(len);
            plain
        }
        ZSTD => zstd::bulk::decompress(stored, plain_len)
            .map_err(|_bad| "its zstd data does not decode")?,
        _ => return Err("its codec is unknown"),
    };
    if plain.len() == plain_len {
        Ok(plain)
    } else {
        Err("its length is not what the index says")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_compression() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::None),
            Just(Compression::Lz4),
            (1..4).prop_map(Compression::Zstd)
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(how in any_compression(), seed: Vec<u8>, repeat in 1_usize..200) {
            let plain = seed.repeat(repeat);
            let mut packer = Packer::new(how);
            // Twice, and between others: nothing of one frame may show in the next.
            for plain in [&plain[..], &[7; 5000], &plain[..plain.len() / 2], &plain] {
                let mut stored = b"before".to_vec();
                let codec = packer.append(plain, &mut stored);
                let stored = stored.strip_prefix(b"before").expect("it appends");
                prop_assert!(stored.len() <= plain.len());
                let back = decompress(codec, stored, plain.len());
                prop_assert_eq!(back.as_deref(), Ok(plain));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_give_the_promised_length(
            codec: u8, stored: Vec<u8>, plain_len in 0_usize..10_000,
        ) {
            if let Ok(plain) = decompress(codec, &stored, plain_len) {
                prop_assert_eq!(plain.len(), plain_len);
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_without_its_memory() {
        let huge = vec![0; 64 << 20];
        let bomb = zstd::bulk::compress(&huge, 1).expect("compresses");
        assert!(bomb.len() < 16 << 10);
        assert!(decompress(ZSTD, &bomb, 4096).is_err());
        let bomb = lz4_flex::block::compress(&huge);
        assert!(decompress(LZ4, &bomb, 4096).is_err());
    }

    #[test]
    fn noise_is_stored_raw() {
        let mut noise = vec![0; 128 << 10];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for how in [Compression::Lz4, Compression::Zstd(1)] {
            let mut stored = Vec::new();
            assert_eq!(Packer::new(how).append(&noise, &mut stored), RAW);
            assert!(stored == noise);
        }
    }
}
