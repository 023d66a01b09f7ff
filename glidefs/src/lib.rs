//! GlideFS: block devices for microVMs that live in an object store.

pub mod config;
pub mod control;
pub mod device;
pub mod volume;
