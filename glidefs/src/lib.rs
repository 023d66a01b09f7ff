//! GlideFS: block devices for microVMs that live in an object store.

pub mod control;
pub mod device;
pub mod export;
mod race;
pub mod shard;
pub mod sync;
pub mod volume;
