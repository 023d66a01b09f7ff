//! The bytes that are written, and the order of the places. All follow from a seed.

use glidefs_tests::pages::Filler;

use crate::case::{Content, Pattern};

pub(crate) const PAGE_BYTES: usize = 4096;
/// A row: key, time, hash, text.
const ROW_BYTES: usize = 128;
const HASH_WORDS: usize = 7;
/// Behind the rows of a page: free space, as databases leave it for updates.
const FREE_BYTES: usize = 512;
const WORDS: [&[u8; 8]; 8] = [
    b"pending ",
    b"shipped ",
    b"invoice ",
    b"germany ",
    b"customer",
    b"returned",
    b"express ",
    b"0000-00-",
];

/// Makes pages, one after the other.
#[derive(Debug)]
pub(crate) struct Pages {
    content: Content,
    filler: Filler,
    row: u64,
}

impl Pages {
    pub(crate) fn new(content: Content, seed: u64) -> Self {
        Self {
            content,
            filler: Filler::new(seed),
            row: seed << 32,
        }
    }

    /// Fills whole pages.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for page in out.chunks_exact_mut(PAGE_BYTES) {
            match self.content {
                Content::Noise => self.noise(page),
                Content::Rows => self.rows(page),
            }
        }
    }

    fn noise(&mut self, out: &mut [u8]) {
        for word in out.chunks_exact_mut(8) {
            word.copy_from_slice(&self.filler.next_word().to_le_bytes());
        }
    }

    fn rows(&mut self, page: &mut [u8]) {
        let (rows, free) = page.split_at_mut(PAGE_BYTES - FREE_BYTES);
        free.fill(0);
        for row in rows.chunks_exact_mut(ROW_BYTES) {
            let (head, rest) = row.split_at_mut(16);
            let (hash, text) = rest.split_at_mut(HASH_WORDS * 8);
            self.row += 1;
            head[..8].copy_from_slice(&self.row.to_be_bytes());
            head[8..].copy_from_slice(&(self.row * 977 + 1_700_000_000_000).to_be_bytes());
            self.noise(hash);
            let mut chance = self.filler.next_word();
            for word in text.chunks_exact_mut(8) {
                let chosen = usize::try_from(chance % 8).expect("below eight");
                word.copy_from_slice(WORDS[chosen]);
                chance /= 8;
            }
        }
    }
}

/// The places of the writes of one export, in order of writing.
pub(crate) fn places(pattern: Pattern, bytes: u64, seed: u64) -> Vec<u64> {
    let block = block_bytes(pattern) as u64;
    let count = bytes / block;
    match pattern {
        Pattern::Sequential => (0..count).map(|n| n * block).collect(),
        Pattern::Random => {
            // One in each stretch of so many, so that none comes twice; then all shuffled.
            let spread = pattern.spread();
            let mut filler = Filler::new(seed);
            let mut places: Vec<u64> = (0..count)
                .map(|n| (n * spread + filler.below(spread)) * block)
                .collect();
            for last in (1..places.len()).rev() {
                let other = filler.below(last as u64 + 1);
                places.swap(last, usize::try_from(other).expect("an index"));
            }
            places
        }
    }
}

pub(crate) fn block_bytes(pattern: Pattern) -> usize {
    match pattern {
        Pattern::Sequential => 1 << 20,
        Pattern::Random => PAGE_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// lz4 in frames of 128 KiB, as the product does it.
    fn packed_share(content: Content) -> f64 {
        let mut plain = vec![0; 128 << 10];
        Pages::new(content, 7).fill(&mut plain);
        let packed = lz4_flex::block::compress(&plain);
        packed.len() as f64 / plain.len() as f64
    }

    #[test]
    fn rows_compress_by_half_and_noise_does_not() {
        let rows = packed_share(Content::Rows);
        assert!((0.4..0.7).contains(&rows), "{rows}");
        assert!(packed_share(Content::Noise) > 0.99);
    }

    #[test]
    fn random_places_are_met_once_and_stay_inside() {
        let bytes = 4 << 20;
        let places = places(Pattern::Random, bytes, 3);
        let met: std::collections::BTreeSet<u64> = places.iter().copied().collect();
        assert_eq!(met.len() as u64, bytes / PAGE_BYTES as u64);
        assert!(!places.is_sorted());
        assert!(
            met.last()
                .is_some_and(|last| *last < bytes * Pattern::Random.spread())
        );
    }
}
