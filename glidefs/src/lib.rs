//! GlideFS: block devices for microVMs that live in an object store.
//!
//! `nbd` speaks to clients, `device` is what stands behind a front door, `export` fills it with the
//! cache and the `volume` in the store, `sync` carries cuts from one to the other, `shard` owns all of
//! it on one thread; `daemon` puts a shard and the `api` together, `cli` is the command line.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
mod daemon;
pub mod device;
pub mod export;
pub mod meter;
pub mod metrics;
pub mod nbd;
mod operations;
mod race;
mod repeats;
pub mod shard;
pub mod sync;
pub mod volume;
