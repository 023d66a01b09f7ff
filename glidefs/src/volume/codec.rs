//! Compression of one frame. What comes back out is bounded by what was promised, whatever the
//! bytes say.

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

/// The codec used, and the bytes if they are not the plain ones.
pub(crate) fn compress(how: Compression, plain: &[u8]) -> (u8, Option<Vec<u8>>) {
    let (codec, packed) = match how {
        Compression::None => return (RAW, None),
        Compression::Lz4 => (LZ4, lz4_flex::block::compress(plain)),
        Compression::Zstd(level) => match zstd::bulk::compress(plain, level) {
            Ok(packed) => (ZSTD, packed),
            // Out of memory in the C library: uncompressed is always right.
            Err(_) => return (RAW, None),
        },
    };
    if packed.len() + plain.len() / GAIN_MIN < plain.len() {
        (codec, Some(packed))
    } else {
        (RAW, None)
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
            let (codec, packed) = compress(how, &plain);
            let stored = packed.unwrap_or_else(|| plain.clone());
            prop_assert!(stored.len() <= plain.len());
            prop_assert_eq!(decompress(codec, &stored, plain.len()), Ok(plain));
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
            assert_eq!(compress(how, &noise), (RAW, None));
        }
    }
}
