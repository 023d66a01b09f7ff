//! What the tests that span crates share.

pub mod memory_exports;
pub mod nbd_client;
