//! A log-structured write-back cache on a local SSD. Knows no NBD and no S3.
//!
//! Promises (the numbers are those of `docs/promises.md`): an answered flush survives power loss (1);
//! an answered write survives the end of the process (2); a cut is an exact prefix of the writes and
//! never ahead of the disk (3); every page is checked as it is read (5); nothing dirty is evicted, and
//! a full cache slows writers down (6); a failed fsync stops the log for good (8).
//!
//! Reading order: `types`, `record` and `chunk` (the bytes), `log` (what is decided in memory),
//! `cache` (effects in order) with `cache/volume` and `cache/tasks` (the background), `recover` (a
//! start).
//!
//! Deliberately absent: a journal beside the data (the log is the metadata), sizes of volumes as
//! limits (the front door checks ranges), any knowledge of object stores beyond an opaque tag.

mod budget;
mod cache;
mod chunk;
mod codec;
mod error;
mod extents;
#[cfg(test)]
mod golden;
mod index;
mod log;
mod record;
mod recover;
mod types;
mod watermark;

#[cfg(feature = "planted")]
pub use cache::Planted;
pub use cache::{
    Cache, CacheConfig, CacheStats, CacheVolume, Cut, CutContent, CutExtent, CutPart, FillKey,
    ForkBase, Intent, Known, LocalVolume, Looked, Missing, NewFork, NewIntent, Opened, Patch,
    PendingFork, VolumeCounts, WRITE_BYTES_MAX,
};
pub use error::CacheError;
pub use extents::{Cover, ExtentMap};
pub use record::FORKS_MAX;
pub use types::{Epoch, Id, PAGE_BYTES, PageNo, PageRange, SECTOR_BYTES, Seq};
