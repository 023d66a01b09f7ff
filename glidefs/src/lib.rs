//! GlideFS: block devices for microVMs that live in an object store.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
mod daemon;
pub mod device;
pub mod metrics;
pub mod volume;
