//! What the tests that span crates share: clients, endpoints, models that judge.

pub mod memory_exports;
pub mod nbd_client;
pub mod oracle;
