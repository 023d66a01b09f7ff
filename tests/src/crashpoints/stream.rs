//! A recorded stream of requests, and the content of the volume after each of its prefixes. Pure:
//! values in, values out.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;

/// The unit in which contents are held and compared.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = 4096;

/// A request that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Write {
        at: u64,
        data: Bytes,
        fua: bool,
    },
    /// TRIM or WRITE_ZEROES.
    Zero {
        at: u64,
        len: u64,
        fua: bool,
    },
    Flush,
}

/// What happened at the recorder, in order. Requests are numbered from zero as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Came(usize),
    Answered(usize),
}

/// Everything that one client did to one volume.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub size_bytes: u64,
    pub asks: Vec<Ask>,
    pub events: Vec<Event>,
}

impl Stream {
    pub fn flushes(&self) -> usize {
        let flushes = self.asks.iter().filter(|ask| **ask == Ask::Flush);
        flushes.count()
    }

    /// Bytes of all writes.
    pub fn written_bytes(&self) -> u64 {
        let lengths = self.asks.iter().map(|ask| match ask {
            Ask::Write { data, .. } => offset(data.len()),
            Ask::Zero { .. } | Ask::Flush => 0,
        });
        lengths.sum()
    }

    /// The most requests that were on their way together.
    pub fn in_flight_max(&self) -> usize {
        let (mut now, mut most) = (0_usize, 0);
        for event in &self.events {
            match event {
                Event::Came(_) => now += 1,
                Event::Answered(_) => now = now.saturating_sub(1),
            }
            most = most.max(now);
        }
        most
    }

    /// How far a content has come that holds `low` to `high` requests wholly and the first part of one
    /// more. A server may lose a request that it was not yet to keep from some page on, as a disk may.
    pub(super) fn torn(&self, found: &Content, low: usize, high: usize) -> Option<Reached> {
        let mut content = self.content_after(low);
        for whole in low..high {
            for piece in pieces(&self.asks[whole]) {
                content.apply(&piece);
                if content.digest() == found.digest() {
                    return Some(Reached { whole, torn: true });
                }
            }
        }
        None
    }

    /// The content after the first `count` requests.
    pub fn content_after(&self, count: usize) -> Content {
        let mut content = Content::default();
        for ask in &self.asks[..count] {
            content.apply(ask);
        }
        content
    }
}

/// A request in the parts of which each is there or not: its pages; of zeros its whole pages together.
fn pieces(ask: &Ask) -> Vec<Ask> {
    let (at, end) = match ask {
        Ask::Write { at, data, .. } => (*at, at + offset(data.len())),
        Ask::Zero { at, len, .. } => (*at, at + len),
        Ask::Flush => return Vec::new(),
    };
    let mut pieces = Vec::new();
    let mut from = at;
    while from < end {
        let page_end = (from / PAGE + 1) * PAGE;
        let to = match ask {
            Ask::Zero { .. } if from.is_multiple_of(PAGE) => (end / PAGE * PAGE).max(page_end),
            _ => page_end,
        };
        let to = to.min(end);
        pieces.push(match ask {
            Ask::Write { data, fua, .. } => Ask::Write {
                at: from,
                data: data.slice(index(from - at)..index(to - at)),
                fua: *fua,
            },
            _ => Ask::Zero {
                at: from,
                len: to - from,
                fua: false,
            },
        });
        from = to;
    }
    pieces
}

/// How far a content has come in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// It holds the first so many requests wholly.
    pub whole: usize,
    /// And the first part of the next one.
    pub torn: bool,
}

impl Reached {
    pub fn exactly(whole: usize) -> Self {
        let torn = false;
        Self { whole, torn }
    }

    /// Requests of which anything is there.
    pub fn touched(self) -> usize {
        self.whole + usize::from(self.torn)
    }
}

/// A fingerprint of a content; all zeros is zero. Not for enemies: page fingerprints are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The bytes of a volume: its pages that are not all zeros, and their fingerprint.
#[derive(Clone, Default)]
pub struct Content {
    pages: BTreeMap<u64, Rc<[u8; PAGE_BYTES]>>,
    sum: u128,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} pages, {:032x})", self.pages.len(), self.sum)
    }
}

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

impl Content {
    pub fn apply(&mut self, ask: &Ask) {
        match ask {
            Ask::Write { at, data, .. } => self.write(*at, data),
            Ask::Zero { at, len, .. } => self.zero(*at, *len),
            Ask::Flush => {}
        }
    }

    pub fn write(&mut self, at: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let place = at + offset(done);
            let inside = index(place % PAGE);
            let len = (PAGE_BYTES - inside).min(data.len() - done);
            self.change(place / PAGE, |page| {
                page[inside..inside + len].copy_from_slice(&data[done..done + len]);
            });
            done += len;
        }
    }

    /// Costs as much as there are pages in the range that are not zeros already.
    pub fn zero(&mut self, at: u64, len: u64) {
        let end = at + len;
        let pages = self.pages.range(at / PAGE..end.div_ceil(PAGE));
        let pages: Vec<u64> = pages.map(|(page, _)| *page).collect();
        for page in pages {
            let start = page * PAGE;
            let from = index(at.max(start) - start);
            let to = index(end.min(start + PAGE) - start);
            self.change(page, |bytes| bytes[from..to].fill(0));
        }
    }

    fn change(&mut self, number: u64, edit: impl FnOnce(&mut [u8; PAGE_BYTES])) {
        let old = self.pages.remove(&number);
        if let Some(old) = &old {
            self.sum = self.sum.wrapping_sub(fingerprint(number, old));
        }
        let mut page = old.unwrap_or_else(|| Rc::new(ZEROS));
        edit(Rc::make_mut(&mut page));
        if *page != ZEROS {
            self.sum = self.sum.wrapping_add(fingerprint(number, &page));
            self.pages.insert(number, page);
        }
    }

    pub fn read(&self, at: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let place = at + offset(done);
            let inside = index(place % PAGE);
            let len = (PAGE_BYTES - inside).min(out.len() - done);
            let out = &mut out[done..done + len];
            match self.pages.get(&(place / PAGE)) {
                Some(page) => out.copy_from_slice(&page[inside..inside + len]),
                None => out.fill(0),
            }
            done += len;
        }
    }

    pub fn digest(&self) -> Digest {
        Digest(self.sum)
    }

    /// Where each page that is not all zeros begins, and its bytes.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8; PAGE_BYTES])> {
        self.pages
            .iter()
            .map(|(page, bytes)| (page * PAGE, &**bytes))
    }

    /// Where the pages begin in which two contents differ.
    pub fn differences(&self, other: &Self) -> Vec<u64> {
        let numbers = self.pages.keys().chain(other.pages.keys());
        let numbers: std::collections::BTreeSet<&u64> = numbers.collect();
        let differ = |page: &&u64| self.pages.get(*page) != other.pages.get(*page);
        let found = numbers.into_iter().filter(differ);
        found.map(|page| page * PAGE).collect()
    }
}

fn fingerprint(number: u64, page: &[u8; PAGE_BYTES]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(page);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// The fingerprint of the content after each prefix of a stream.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// Ascending numbers of requests after which the content was this one.
    places: BTreeMap<Digest, Vec<usize>>,
}

impl Prefixes {
    pub(super) fn of(stream: &Stream) -> Self {
        let mut places: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
        let mut content = Content::default();
        places.entry(content.digest()).or_default().push(0);
        for (number, ask) in stream.asks.iter().enumerate() {
            content.apply(ask);
            places.entry(content.digest()).or_default().push(number + 1);
        }
        Self { places }
    }

    /// The longest prefix of at most `high` requests that leaves this content.
    pub(super) fn longest(&self, digest: Digest, high: usize) -> Option<usize> {
        let places = self.places.get(&digest)?;
        let count = places.partition_point(|&place| place <= high);
        count.checked_sub(1).map(|last| places[last])
    }
}

fn index(small: u64) -> usize {
    usize::try_from(small).expect("an offset inside a page")
}

fn offset(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits u64")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64, byte: u8, len: usize) -> Ask {
        let data = Bytes::from(vec![byte; len]);
        let fua = false;
        Ask::Write { at, data, fua }
    }

    fn stream(asks: Vec<Ask>) -> Stream {
        Stream {
            size_bytes: 1 << 20,
            asks,
            events: Vec::new(),
        }
    }

    #[test]
    fn a_content_is_found_among_the_prefixes_and_a_mix_is_not() {
        let zero = Ask::Zero {
            at: 512,
            len: 9000,
            fua: false,
        };
        let asks = vec![write(0, 1, 6000), Ask::Flush, write(8192, 2, 512), zero];
        let stream = stream(asks);
        let prefixes = Prefixes::of(&stream);
        for (count, longest) in [(0, 0), (1, 2), (2, 2), (3, 3), (4, 4)] {
            let digest = stream.content_after(count).digest();
            assert_eq!(prefixes.longest(digest, 4), Some(longest));
        }
        let digest = stream.content_after(1).digest();
        assert_eq!(prefixes.longest(digest, 1), Some(1), "no more than came");
        let mut mix = Content::default();
        mix.apply(&stream.asks[2]);
        assert_eq!(prefixes.longest(mix.digest(), 4), None);
    }

    #[test]
    fn the_first_part_of_a_request_is_told_from_another_part() {
        let stream = stream(vec![write(512, 1, 512), write(1024, 2, 20_000), Ask::Flush]);
        let mut content = stream.content_after(1);
        let Ask::Write { data, .. } = &stream.asks[1] else {
            panic!("it is a write");
        };
        content.write(1024, &data[..3072 + PAGE_BYTES]);
        let reached = Reached {
            whole: 1,
            torn: true,
        };
        assert_eq!(stream.torn(&content, 0, 3), Some(reached));
        assert_eq!(stream.torn(&content, 2, 3), None, "it is to be whole");
        let mut second = stream.content_after(1);
        second.write(4096, &data[3072..3072 + PAGE_BYTES]);
        assert_eq!(stream.torn(&second, 0, 3), None, "its first part is lost");
    }

    #[test]
    fn zeros_are_torn_at_their_edges() {
        let at = |ask: &Ask| match ask {
            Ask::Zero { at, len, .. } => (*at, *len),
            _ => (0, 0),
        };
        let fua = false;
        let zero = |at, len| Ask::Zero { at, len, fua };
        let cut = |ask: Ask| pieces(&ask).iter().map(at).collect::<Vec<_>>();
        let long = cut(zero(512, 20_480));
        assert_eq!(long, vec![(512, 3584), (4096, 16_384), (20_480, 512)]);
        assert_eq!(cut(zero(4096, 1024)), vec![(4096, 1024)]);
    }

    #[test]
    fn zeroed_pages_leave_nothing_behind() {
        let mut content = Content::default();
        content.apply(&write(100, 7, 9000));
        content.zero(0, 1 << 40);
        assert_eq!(content.digest(), Content::default().digest());
        assert_eq!(content.pages().count(), 0);
    }

    #[test]
    fn what_was_written_is_read_at_any_offset() {
        let mut content = Content::default();
        content.apply(&write(4000, 3, 200));
        let mut out = [9; 300];
        content.read(3950, &mut out);
        let expected = |i: usize| if (50..250).contains(&i) { 3 } else { 0 };
        assert!(out.iter().enumerate().all(|(i, &byte)| byte == expected(i)));
        let mut other = content.clone();
        other.apply(&write(1 << 16, 1, 1));
        assert_eq!(content.differences(&other), vec![1 << 16]);
    }
}
