//! A log-structured write-back cache on a local SSD. Knows no NBD and no S3.

mod cache;
mod error;
mod types;

pub use cache::{
    Cache, CacheConfig, CacheVolume, Cut, CutContent, CutExtent, FillKey, Intent, Known,
    LocalVolume, Missing, Opened, Patch,
};
pub use error::CacheError;
pub use types::{Epoch, Id, PAGE_BYTES, PageNo, PageRange, SECTOR_BYTES, Seq};
