//! Stamped pages: 4 KiB whose every byte follows from (volume, page, write number).
//!
//! A page read back names the write that it came from, and any mix of two writes, any foreign page
//! and any flipped bit is seen. Number 0 is "never written" and stands for zeros.

use std::fmt;

pub const PAGE_BYTES: usize = 4096;
const PAGE_BYTES_U64: u64 = 4096;
const MAGIC: u64 = 0x676c_6964_6566_7331;
/// magic, volume, page, number
const HEADER_WORDS: usize = 4;
const WORD_BYTES: usize = 8;

/// What a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub volume: u64,
    pub page: u64,
    pub number: u64,
}

/// Why bytes are no page of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoilt {
    Length(usize),
    /// Neither zeros nor a stamp.
    NoStamp,
    /// A stamp of another volume or page.
    Foreign(Stamp),
    /// The stamp is right, and this byte is not of that write.
    Torn {
        stamp: Stamp,
        at: usize,
    },
}

impl fmt::Display for Spoilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(bytes) => write!(f, "{bytes} bytes are not one page"),
            Self::NoStamp => write!(f, "neither zeros nor a stamp"),
            Self::Foreign(stamp) => write!(f, "belongs elsewhere: {stamp:?}"),
            Self::Torn { stamp, at } => write!(f, "{stamp:?} but byte {at} is of another write"),
        }
    }
}

impl std::error::Error for Spoilt {}

impl Stamp {
    pub fn new(volume: u64, page: u64, number: u64) -> Self {
        Self {
            volume,
            page,
            number,
        }
    }

    /// Where the page lies in its volume.
    pub fn offset(&self) -> u64 {
        self.page * PAGE_BYTES_U64
    }

    /// The page's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        if self.number == 0 {
            return vec![0; PAGE_BYTES];
        }
        let mut page = Vec::with_capacity(PAGE_BYTES);
        for word in [MAGIC, self.volume, self.page, self.number] {
            page.extend_from_slice(&word.to_le_bytes());
        }
        let mut filler = Filler::new(self.volume ^ self.page.rotate_left(24) ^ self.number);
        for _ in HEADER_WORDS..PAGE_BYTES / WORD_BYTES {
            page.extend_from_slice(&filler.next_word().to_le_bytes());
        }
        page
    }

    /// The number of the write that the bytes of this volume's page come from.
    pub fn number_in(volume: u64, page: u64, bytes: &[u8]) -> Result<u64, Spoilt> {
        if bytes.len() != PAGE_BYTES {
            return Err(Spoilt::Length(bytes.len()));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        if word_at(bytes, 0) != MAGIC || word_at(bytes, 3) == 0 {
            return Err(Spoilt::NoStamp);
        }
        let stamp = Self::new(word_at(bytes, 1), word_at(bytes, 2), word_at(bytes, 3));
        if (stamp.volume, stamp.page) != (volume, page) {
            return Err(Spoilt::Foreign(stamp));
        }
        let expected = stamp.bytes();
        match expected.iter().zip(bytes).position(|(a, b)| a != b) {
            Some(at) => Err(Spoilt::Torn { stamp, at }),
            None => Ok(stamp.number),
        }
    }
}

fn word_at(bytes: &[u8], index: usize) -> u64 {
    let mut word = [0; WORD_BYTES];
    word.copy_from_slice(&bytes[index * WORD_BYTES..(index + 1) * WORD_BYTES]);
    u64::from_le_bytes(word)
}

/// A small seeded generator (an xorshift with a multiplied output): bytes that do not compress, and the choices of a test.
#[derive(Clone, Debug)]
pub struct Filler {
    state: u64,
}

impl Filler {
    pub fn new(seed: u64) -> Self {
        // An xorshift must not start at zero; the multiplier spreads small seeds.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { state }
    }

    pub fn next_word(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below the bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing lies below zero");
        self.next_word() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_its_write() {
        for number in [0, 1, 7, u64::MAX] {
            let page = Stamp::new(3, 9, number).bytes();
            assert_eq!(Stamp::number_in(3, 9, &page), Ok(number));
        }
    }

    #[test]
    fn a_foreign_page_is_seen() {
        let page = Stamp::new(3, 9, 1).bytes();
        let foreign = Spoilt::Foreign(Stamp::new(3, 9, 1));
        assert_eq!(Stamp::number_in(3, 8, &page), Err(foreign.clone()));
        assert_eq!(Stamp::number_in(4, 9, &page), Err(foreign));
    }

    #[test]
    fn any_sector_of_another_write_is_seen() {
        let old = Stamp::new(3, 9, 1).bytes();
        for sector in 0..8 {
            let mut page = Stamp::new(3, 9, 2).bytes();
            let range = sector * 512..(sector + 1) * 512;
            page[range.clone()].copy_from_slice(&old[range]);
            assert!(Stamp::number_in(3, 9, &page).is_err(), "sector {sector}");
        }
    }

    #[test]
    fn a_zeroed_half_is_seen() {
        let mut page = Stamp::new(3, 9, 2).bytes();
        page[..2048].fill(0);
        assert_eq!(Stamp::number_in(3, 9, &page), Err(Spoilt::NoStamp));
        let mut page = Stamp::new(3, 9, 2).bytes();
        page[2048..].fill(0);
        assert!(matches!(
            Stamp::number_in(3, 9, &page),
            Err(Spoilt::Torn { at: 2048.., .. })
        ));
    }
}
