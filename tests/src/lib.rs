//! What the tests that span crates share.

pub mod nbd_client;
