//! GlideFS: block devices for microVMs that live in an object store.

pub mod device;
pub mod volume;
