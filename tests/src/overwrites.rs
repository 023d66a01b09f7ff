//! Random overwrites of a volume on real processes, for as long as one likes: what the bucket holds for each byte that is
//! live, and whether every byte reads back. Hours of it in simulated time are `sim::SpaceRun`.
//!
//! One client writes the volume once, then pieces of some pages at random places, at a steady pace, with trims and flushes
//! in between, each behind the answer to the one before. So a number for each page says what it must hold. The bucket is
//! listed at even distances, from outside of the server. At the end everything is read twice: through the server that
//! wrote it, and, once that has given the volume up, through one with an empty cache, which has the store alone.
//!
//! Bytes do not compress, so a live page is 4 KiB. Deliberately absent: snapshots, which would hold what was overwritten,
//! and a verdict on the space ([`crate::space::Ratios`]).

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::blocking_client::Client;
use crate::bucket::{Bucket, Place};
use crate::load::{Moment, now};
use crate::pages::{Filler, PAGE_BYTES, Stamp};
use crate::server::{Server, wait_until};
use crate::space::SpacePoint;

const EXPORT: &str = "overwrites";
/// Stamped into every page.
const VOLUME: u64 = 0x6f76_6572;
/// A MiB is written at once at first, and read in pieces of a frame.
const FILL_PAGES: usize = 256;
const READ_PAGES: usize = 32;
const DEPTH: usize = 16;
/// Of a piece that is overwritten or trimmed: 4 to 64 KiB.
const PIECE_PAGES_MAX: u64 = 16;
/// One piece in so many is trimmed, and behind one write in so many comes a flush.
const TRIM_ONE_IN: u64 = 16;
const FLUSH_ONE_IN: u64 = 64;
/// A writer waits while the cache is full and the store is slow, and so does a reader of a cold cache.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(300);
/// A GiB to a store that takes a MB a second.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(1200);
/// The cache has room for the volume, and for what was overwritten while the store was slow.
const CACHE_OVER_VOLUME: f64 = 2.0;
const CACHE_GIB_LEAST: f64 = 1.0;

/// What is written, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub size_mib: u32,
    pub bytes_per_second: u64,
    pub lasts: Duration,
    pub sample_every: Duration,
    pub seed: u64,
}

impl Plan {
    fn pages(&self) -> usize {
        usize::try_from(self.size_mib).expect("this runs on 64-bit machines") << 8
    }

    fn gib(&self) -> f64 {
        f64::from(self.size_mib) / 1024.0
    }
}

/// What was done, and what the bucket held meanwhile.
#[derive(Clone, Debug)]
pub struct Found {
    /// The first behind the first drain, the last behind the last one.
    pub points: Vec<SpacePoint>,
    pub writes: u64,
    pub trims: u64,
    pub flushes: u64,
    /// How long overwriting took, the last drain too, and how many bytes it wrote.
    pub took: Duration,
    pub overwritten_bytes: u64,
    /// Pages that were read and compared, each twice.
    pub pages_checked: u64,
}

/// Plays it to its end. An error if any byte is not what was written last; `tell` hears each point as it comes.
pub fn play(place: &Place<'_>, plan: &Plan, tell: impl FnMut(&SpacePoint)) -> Result<Found> {
    let mut settings = place.settings("writer");
    settings.disk_size_gb = (CACHE_OVER_VOLUME * plan.gib()).max(CACHE_GIB_LEAST);
    settings.auto_create_size_gb = Some(plan.gib());
    let server = place.start("writer", &settings)?;
    let played = Run::begin(place, plan, &server).and_then(|run| run.play(plan, tell));
    let (model, mut found) = played.with_context(|| server.log_tail())?;
    server.give_up(EXPORT)?;
    drop(server);
    let reader = place.start("reader", &place.settings("reader"))?;
    let mut client = reader.connect_within(EXPORT, ANSWER_WAIT_MAX)?;
    let read = model.read_back(&mut client);
    found.pages_checked += read.with_context(|| {
        let log = reader.log_tail();
        format!("read from the store by another node\n{log}")
    })?;
    client.disconnect()?;
    Ok(found)
}

/// One client, and all that is known of what it did.
struct Run<'a> {
    server: &'a Server,
    bucket: Bucket,
    objects: String,
    client: Client,
    model: Model,
    filler: Filler,
    writes: u64,
    trims: u64,
    flushes: u64,
    written_bytes: u64,
    /// When overwriting began.
    began: Moment,
}

impl<'a> Run<'a> {
    fn begin(place: &Place<'_>, plan: &Plan, server: &'a Server) -> Result<Self> {
        let client = server.connect_within(EXPORT, ANSWER_WAIT_MAX)?;
        let bytes = bytes_of(plan.pages());
        ensure!(
            client.size_bytes == bytes,
            "the export has {} bytes and not {bytes}",
            client.size_bytes
        );
        Ok(Self {
            server,
            bucket: Bucket::at(place.endpoint)?,
            objects: place.objects_of(EXPORT),
            client,
            model: Model::new(plan.pages()),
            filler: Filler::new(plan.seed),
            writes: 0,
            trims: 0,
            flushes: 0,
            written_bytes: 0,
            began: now(),
        })
    }

    fn play(mut self, plan: &Plan, tell: impl FnMut(&SpacePoint)) -> Result<(Model, Found)> {
        self.fill()?;
        let filled_bytes = self.written_bytes;
        self.began = now();
        let points = self.overwrite(plan, tell)?;
        let took = self.began.elapsed();
        let read = self.model.read_back(&mut self.client);
        let pages_checked = read.context("read from the server that wrote it")?;
        self.client.disconnect()?;
        let found = Found {
            points,
            writes: self.writes,
            trims: self.trims,
            flushes: self.flushes,
            took,
            overwritten_bytes: self.written_bytes - filled_bytes,
            pages_checked,
        };
        Ok((self.model, found))
    }

    fn fill(&mut self) -> Result<()> {
        let all = self.model.numbers.len();
        for first in (0..all).step_by(FILL_PAGES) {
            let pages = first..(first + FILL_PAGES).min(all);
            let data = self.model.write(pages);
            self.written_bytes += bytes_of(data.len() / PAGE_BYTES);
            self.client.take_answers(DEPTH - 1)?;
            self.client.submit_write(bytes_of(first), &data)?;
        }
        self.client.take_answers(0)?;
        self.drain()
    }

    fn overwrite(
        &mut self,
        plan: &Plan,
        mut tell: impl FnMut(&SpacePoint),
    ) -> Result<Vec<SpacePoint>> {
        let mut points = Vec::new();
        let mut point = |run: &Self| {
            let point = run.point()?;
            tell(&point);
            points.push(point);
            anyhow::Ok(())
        };
        point(self)?;
        let filled_bytes = self.written_bytes;
        let mut due = plan.sample_every;
        while self.began.elapsed() < plan.lasts {
            if self.began.elapsed() >= due {
                point(self)?;
                due = self.began.elapsed() + plan.sample_every;
            }
            let ahead = (self.written_bytes - filled_bytes) as f64 / plan.bytes_per_second as f64;
            let wait = Duration::from_secs_f64(ahead).saturating_sub(self.began.elapsed());
            sleep(wait);
            self.change()?;
        }
        self.drain()?;
        point(self)?;
        Ok(points)
    }

    /// One piece, somewhere.
    fn change(&mut self) -> Result<()> {
        let all = self.model.numbers.len();
        let count = usize::try_from(1 + self.filler.below(PIECE_PAGES_MAX))?.min(all);
        let room = u64::try_from(all - count)?;
        let first = usize::try_from(self.filler.below(room + 1))?;
        let pages = first..first + count;
        if self.filler.below(TRIM_ONE_IN) == 0 {
            let bytes = u32::try_from(bytes_of(count))?;
            self.client.submit_trim(bytes_of(first), bytes)?;
            self.client.take_answers(0).context("a trim")?;
            self.model.trim(pages);
            self.trims += 1;
            return Ok(());
        }
        let data = self.model.write(pages);
        self.client
            .write(bytes_of(first), &data)
            .context("a write")?;
        self.written_bytes += bytes_of(count);
        self.writes += 1;
        if self.filler.below(FLUSH_ONE_IN) == 0 {
            self.client.flush().context("a flush")?;
            self.flushes += 1;
        }
        Ok(())
    }

    /// Flushed, and everything in the store.
    fn drain(&mut self) -> Result<()> {
        self.client.flush()?;
        let mut last = None;
        let is_drained = wait_until(DRAIN_WAIT_MAX, || {
            last = self.server.drain(EXPORT).err();
            last.is_none()
        });
        if is_drained {
            return Ok(());
        }
        let why = last.unwrap_or_else(|| anyhow!("nobody answered"));
        Err(why.context("it is not drained"))
    }

    fn point(&self) -> Result<SpacePoint> {
        let document = self.server.export(EXPORT)?;
        let count = |key: &str| {
            let number = document["io"][key].as_u64();
            number.with_context(|| format!("the export's document has no io.{key}"))
        };
        Ok(SpacePoint {
            seconds: self.began.elapsed().as_secs(),
            stored_bytes: self.bucket.held(&self.objects)?.bytes,
            live_bytes: bytes_of(self.model.live_pages),
            sent_bytes: count("uploaded_bytes")? + count("repacked_bytes")?,
            written_bytes: self.written_bytes,
            collected_objects: count("collected_objects")?,
        })
    }
}

/// What each page must hold: the number of the write that it comes from, or 0 for zeros.
#[derive(Debug)]
struct Model {
    numbers: Vec<u64>,
    number_last: u64,
    live_pages: usize,
}

impl Model {
    fn new(pages: usize) -> Self {
        Self {
            numbers: vec![0; pages],
            number_last: 0,
            live_pages: 0,
        }
    }

    /// The bytes of the next write of these pages.
    fn write(&mut self, pages: Range<usize>) -> Vec<u8> {
        self.number_last += 1;
        let mut data = Vec::with_capacity(pages.len() * PAGE_BYTES);
        for page in pages {
            let stamp = Stamp::new(VOLUME, page_no(page), self.number_last);
            data.extend_from_slice(&stamp.bytes());
            self.live_pages += usize::from(self.numbers[page] == 0);
            self.numbers[page] = self.number_last;
        }
        data
    }

    fn trim(&mut self, pages: Range<usize>) {
        for number in &mut self.numbers[pages] {
            self.live_pages -= usize::from(*number != 0);
            *number = 0;
        }
    }

    /// Bytes that were read from this page on are what was written last.
    fn check(&self, first: usize, bytes: &[u8]) -> Result<()> {
        ensure!(
            bytes.len().is_multiple_of(PAGE_BYTES),
            "{} bytes are no whole pages",
            bytes.len()
        );
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            let found = Stamp::number_in(VOLUME, page_no(page), bytes);
            let found = found.with_context(|| format!("page {page}"))?;
            let wanted = self.numbers.get(page).context("a page beyond the end")?;
            ensure!(
                found == *wanted,
                "page {page} holds write {found}, and write {wanted} came last (0: zeros)"
            );
        }
        Ok(())
    }

    /// Reads and compares all of it. Returns how many pages that are.
    fn read_back(&self, client: &mut Client) -> Result<u64> {
        let all = self.numbers.len();
        ensure!(
            client.size_bytes == bytes_of(all),
            "{} bytes and not {}",
            client.size_bytes,
            bytes_of(all)
        );
        let firsts = (0..all).step_by(READ_PAGES);
        let ranges = firsts.map(|first| {
            let count = READ_PAGES.min(all - first);
            let bytes = u32::try_from(count * PAGE_BYTES).expect("some pages");
            (bytes_of(first), bytes)
        });
        let mut checked = 0;
        client.read_all(ranges, DEPTH, |at, bytes| {
            let first = usize::try_from(at)? / PAGE_BYTES;
            checked += bytes.len() / PAGE_BYTES;
            self.check(first, bytes)
        })?;
        ensure!(checked == all, "{checked} of {all} pages came");
        Ok(page_no(all))
    }
}

fn page_no(page: usize) -> u64 {
    u64::try_from(page).expect("usize fits u64")
}

fn bytes_of(pages: usize) -> u64 {
    page_no(pages) * page_no(PAGE_BYTES)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a pace on real processes is real time; no verdict rests on it"
)]
fn sleep(length: Duration) {
    std::thread::sleep(length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_knows_what_was_written_last_and_what_is_live() -> Result<()> {
        let mut model = Model::new(8);
        let first = model.write(0..4);
        let second = model.write(2..6);
        assert_eq!(model.live_pages, 6);
        model.trim(5..8);
        assert_eq!(model.live_pages, 5);
        let zeros = [0; 3 * PAGE_BYTES];
        let whole = [&first[..2 * PAGE_BYTES], &second[..3 * PAGE_BYTES], &zeros].concat();
        model.check(0, &whole)?;
        model.check(3, &whole[3 * PAGE_BYTES..])
    }

    #[test]
    fn a_page_that_is_old_foreign_torn_or_back_from_a_trim_is_found() {
        let mut model = Model::new(4);
        let old = model.write(0..2);
        let new = model.write(0..2);
        assert!(model.check(0, &new).is_ok());
        assert!(model.check(0, &old).is_err());
        assert!(model.check(1, &new[..PAGE_BYTES]).is_err());
        let mut torn = new.clone();
        torn[PAGE_BYTES + 4000] ^= 1;
        assert!(model.check(0, &torn).is_err());
        assert!(model.check(2, &new[..PAGE_BYTES]).is_err());
        model.trim(1..2);
        assert!(model.check(0, &new).is_err());
        assert!(model.check(4, &[0; PAGE_BYTES]).is_err());
    }
}
